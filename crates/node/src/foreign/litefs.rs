//! Takes the databases out of a data directory of LiteFS: `dbs/NAME/` with `database`, `journal`, `wal` and `ltx/`.
//!
//! What LiteFS does when it starts is done to a copy: a hot journal is rolled back, the frames of the WAL that the newest LTX file
//! covers are applied, and that file itself once more. Then the copy must have the checksum that the file recorded: LiteFS keeps
//! one of the whole database with every transaction. So whichever way led there, what comes out is proved to be the
//! database at that TXID; what comes out otherwise gets no name.
//!
//! Only files are read, and nothing in the directory is changed. LiteFS must not run meanwhile; if it does, the checksum tells.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rhyolite_format::ltx::{LtxFile, LtxName, decode_any};
use rhyolite_format::sqlite::journal::Journal;
use rhyolite_format::sqlite::wal::{Salt, WalScan, frame_offset};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Pos, Timestamp};

use crate::restore::RestoreError;
use crate::restore::base::checksum_of_file;
use crate::restore::draft::Draft;
use crate::restore::{Existing, refuse_existing};

/// One database of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LitefsDatabase {
    /// Its name in the mount.
    pub name: String,
    folder: PathBuf,
}

/// A database that was taken out, proved by its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Its position in LiteFS.
    pub pos: Pos,
    /// When its last transaction was committed.
    pub time: Timestamp,
    /// Page size.
    pub page_size: PageSize,
    /// Size in pages.
    pub pages: PageCount,
}

/// What became of one database.
#[derive(Debug)]
pub enum Imported {
    /// It was written.
    Database(ImportReport),
    /// It was dropped in LiteFS, at this position: there is nothing to write.
    Dropped(Pos),
}

/// The databases of a data directory, by name.
///
/// # Errors
/// The directory cannot be read, or is none of LiteFS.
pub fn databases(folder: &Path) -> Result<Vec<LitefsDatabase>, RestoreError> {
    let dbs = folder.join("dbs");
    let entries = fs::read_dir(&dbs).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let what = folder.display().to_string();
            RestoreError::contradiction(&what, "it is no data directory of LiteFS (there is no folder dbs)")
        }
        _ => RestoreError::io("read", &dbs, e),
    })?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| RestoreError::io("read", &dbs, e))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|_| path.is_dir()) {
            found.push(LitefsDatabase { name: name.to_owned(), folder: path.clone() });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl LitefsDatabase {
    /// Writes the database to `output`, which gets its name only when it is proved. Blocks.
    ///
    /// # Errors
    /// Something is missing, damaged, or does not add up. Nothing has appeared under the output's name then.
    pub fn import(&self, output: &Path, existing: Existing) -> Result<Imported, RestoreError> {
        let newest = self.newest_transaction()?;
        let file = &newest.file;
        let pos = Pos { txid: file.header.max_txid, checksum: self.post_apply(&newest)? };
        if file.header.commit.get() == 0 {
            return Ok(Imported::Dropped(pos));
        }
        refuse_existing(output, existing)?;
        let draft = Draft::open(output)?;
        match self.fill(&newest, &draft).and_then(|()| self.prove(&newest, pos, &draft)) {
            Ok(report) => draft.publish().map(|()| Imported::Database(report)),
            Err(e) => {
                // What made it fail is said; that something is still there is the lesser evil.
                let _ = draft.discard();
                Err(e)
            }
        }
    }

    fn key(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The LTX file that says where the database is.
    fn newest_transaction(&self) -> Result<Newest, RestoreError> {
        let folder = self.folder.join("ltx");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(RestoreError::Missing { key: self.key("ltx") });
            }
            Err(e) => return Err(RestoreError::io("read", &folder, e)),
        };
        let mut newest: Option<LtxName> = None;
        for entry in entries {
            let name = entry.map_err(|e| RestoreError::io("read", &folder, e))?.file_name();
            let name = name.to_str().and_then(|name| name.parse::<LtxName>().ok());
            newest = newest.max(name.filter(|name| newest.is_none_or(|newest| name.max_txid > newest.max_txid)));
        }
        let name = newest.ok_or_else(|| RestoreError::Missing { key: format!("{}/*.ltx", self.key("ltx")) })?;
        let key = self.key(&format!("ltx/{name}"));
        let bytes = fs::read(&key).map_err(|e| RestoreError::io("read", Path::new(&key), e))?;
        let file = decode_any(&bytes).map_err(|e| RestoreError::damaged(&key, e))?;
        if (file.header.min_txid, file.header.max_txid) != (name.min_txid, name.max_txid) {
            return Err(RestoreError::contradiction(&key, "it holds other transactions than its name says"));
        }
        Ok(Newest { key, file })
    }

    fn post_apply(&self, newest: &Newest) -> Result<Checksum, RestoreError> {
        let missing = || RestoreError::contradiction(&newest.key, "it has no checksum of the database");
        newest.file.trailer.post_apply.ok_or_else(missing)
    }

    /// Brings a copy of the database to the newest transaction.
    fn fill(&self, newest: &Newest, draft: &Draft) -> Result<(), RestoreError> {
        draft.clear(0)?;
        self.copy_database(draft)?;
        self.roll_back(draft)?;
        self.apply_wal(newest, draft)?;
        let header = &newest.file.header;
        for page in &newest.file.pages {
            write(draft, page.pgno, header.page_size, &page.data)?;
        }
        draft.resize(header.commit.bytes(header.page_size))
    }

    fn copy_database(&self, draft: &Draft) -> Result<(), RestoreError> {
        let path = self.folder.join("database");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // A snapshot needs none.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(RestoreError::io("open", &path, e)),
        };
        let mut to = draft.file();
        let copied = io::Seek::rewind(&mut to).and_then(|()| io::copy(&mut file, &mut to));
        copied.map(|_| ()).map_err(|e| RestoreError::io("copy", &path, e))
    }

    /// The bytes of a side file, empty when there is none.
    fn side_file(&self, name: &str) -> Result<Vec<u8>, RestoreError> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(RestoreError::io("read", &path, e)),
        }
    }

    fn roll_back(&self, draft: &Draft) -> Result<(), RestoreError> {
        let bytes = self.side_file("journal")?;
        let journal = Journal::decode(&bytes).map_err(|e| RestoreError::damaged(&self.key("journal"), e))?;
        let Some(journal) = journal else { return Ok(()) };
        let playback = journal.playback();
        for record in &playback.pages {
            write(draft, record.pgno, playback.page_size, record.page)?;
        }
        draft.resize(playback.original.bytes(playback.page_size))
    }

    /// Applies what the newest transaction covers of the WAL. A WAL of another generation was started after it, and holds nothing
    /// that LiteFS has committed.
    fn apply_wal(&self, newest: &Newest, draft: &Draft) -> Result<(), RestoreError> {
        let bytes = self.side_file("wal")?;
        let scan = WalScan::new(&bytes).map_err(|e| RestoreError::damaged(&self.key("wal"), e))?;
        let header = &newest.file.header;
        let covers = |salt: Salt| (salt.0, salt.1) == header.wal_salt && header.wal_offset > 0;
        let Some(wal) = scan.header().copied().filter(|wal| covers(wal.salt)) else { return Ok(()) };
        let end = header.wal_offset + header.wal_size;
        for transaction in scan.take_while(|t| frame_offset(t.last_frame + 1, wal.page_size) <= end) {
            for frame in &transaction.pages {
                write(draft, frame.header.pgno, wal.page_size, frame.page)?;
            }
        }
        Ok(())
    }

    /// The copy must have the checksum of the newest transaction.
    fn prove(&self, newest: &Newest, pos: Pos, draft: &Draft) -> Result<ImportReport, RestoreError> {
        let header = &newest.file.header;
        let found = checksum_of_file(draft.file(), draft.path())?;
        let what = self.key("database");
        let (page_size, pages, checksum) =
            found.ok_or_else(|| RestoreError::contradiction(&what, "it is no SQLite database of whole pages"))?;
        if checksum != pos.checksum {
            return Err(RestoreError::WrongChecksum { pos, found: checksum });
        }
        assert_eq!((page_size, pages), (header.page_size, header.commit), "the checksum is that of these pages");
        Ok(ImportReport { pos, time: header.timestamp, page_size, pages })
    }
}

/// The LTX file that says where a database is.
struct Newest {
    key: String,
    file: LtxFile,
}

fn write(draft: &Draft, pgno: PageNumber, page_size: PageSize, page: &[u8]) -> Result<(), RestoreError> {
    let written = draft.file().write_all_at(page, pgno.offset(page_size));
    written.map_err(|e| RestoreError::io("write", draft.path(), e))
}
