//! The copy of a replica's file that a command changes, and what it has changed.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhyolite_format::follow::FollowEnd;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::{Checksum, Lineage, PageCount, PageNumber, PageSize, Pos};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::WRITE_BYTES_MAX;
use crate::config::io_text;
use crate::follow::replica;
use crate::time;

/// How long whoever writes is waited for.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// A copy, and what it was when it was made.
#[derive(Debug)]
pub(super) struct Copied {
    /// The file.
    pub(super) path: PathBuf,
    /// Where it was copied.
    pub(super) pos: Pos,
    page_size: PageSize,
    /// Checksum of each page; 0 for the lock page.
    table: Vec<u64>,
}

/// Copies the file of a replica to `to`, as the log has it, if it is at `pos` of this history. `None`: not yet, or not any more.
///
/// That it is, is proved by the checksum of what was copied.
pub(super) fn copy(from: &Path, to: &Path, lineage: Lineage, pos: Pos) -> Result<Option<Copied>, String> {
    let found = replica::end_at(from, pos).map_err(|e| e.to_string())?;
    let Some((held, end)) = found else { return Ok(None) };
    if held != lineage {
        return Err(format!("{} is of another history than the primary's", from.display()));
    }
    if end.commit.get() == 0 {
        return Err(format!("{} is empty: make its first table on the primary", from.display()));
    }
    let original = std::fs::metadata(from).map_err(|e| format!("{}: {}", from.display(), io_text(&e)))?;
    let failed = |e: &std::io::Error| format!("copy to {}: {}", to.display(), io_text(e));
    // Nobody else's until it has the owner and the permissions of the database.
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&error)),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(to).map_err(|e| failed(&e))?;
    let table = match copy_pages(from, &file, &end) {
        Ok(table) => table,
        Err(Failed::Busy) => return Ok(None),
        Err(Failed::Sqlite(error)) => return Err(format!("read {}: {error}", from.display())),
        Err(Failed::Io(error)) => return Err(failed(&error)),
    };
    let pages = table.len();
    let sum = table.iter().fold(Checksum::EMPTY, |sum, page| toggle(sum, *page));
    if pages != end.commit.get() as usize || sum != pos.checksum {
        // It went on while it was read.
        return Ok(None);
    }
    // Whoever may write to the file may write to its copy. Without the right to give it away it is the node's.
    let folder = to.parent().expect("a file in a folder");
    let _ = std::os::unix::fs::fchown(&file, Some(original.uid()), Some(original.gid()));
    file.set_permissions(original.permissions()).map_err(|e| failed(&e))?;
    let _ = std::os::unix::fs::lchown(folder, Some(original.uid()), Some(original.gid()));
    Ok(Some(Copied { path: to.to_owned(), pos, page_size: end.page_size, table }))
}

enum Failed {
    Busy,
    Sqlite(rusqlite::Error),
    Io(std::io::Error),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => Self::Busy,
            _ => Self::Sqlite(error),
        }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Copies all pages. Gives their checksums.
fn copy_pages(from: &Path, to: &File, end: &FollowEnd) -> Result<Vec<u64>, Failed> {
    let connection = open(from, OpenFlags::empty())?;
    let (page_bytes, mut table) = (end.page_size.bytes(), Vec::with_capacity(end.commit.get() as usize));
    let mut page = vec![0; page_bytes];
    let mut statement = connection.prepare("SELECT pgno, data FROM sqlite_dbpage")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let Some(pgno) = PageNumber::new(row.get(0)?).filter(|_| data.len() == page_bytes) else { break };
        if pgno == end.page_size.lock_page() {
            table.push(0);
            continue;
        }
        page.copy_from_slice(data);
        if pgno == PageNumber::FIRST {
            end.page_one.put(&mut page);
        }
        to.write_all_at(&page, pgno.offset(end.page_size))?;
        table.push(Checksum::of_page(pgno, &page).get());
    }
    Ok(table)
}

/// A database sum with what a page has in a table put in, or taken out.
fn toggle(sum: Checksum, page: u64) -> Checksum {
    Checksum::from_raw(page).map_or(sum, |page| sum.toggle(page))
}

pub(super) fn open(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags | more)?;
    connection.busy_timeout(BUSY)?;
    // A WAL stays as it is.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Nothing of its schema matters: what cannot be parsed is no error.
    connection.pragma_update(None, "writable_schema", "on")?;
    Ok(connection)
}

/// What has changed in the copy since it was made, as an LTX file of one transaction, with the number of its pages; `None` when nothing has.
pub(super) fn changes(copied: &Copied) -> Result<Option<(Vec<u8>, u32)>, String> {
    let name = copied.path.display();
    let sqlite = |e: rusqlite::Error| format!("read {name}: {e}");
    // The folder is the command's: what it has put there is not followed elsewhere.
    if !std::fs::symlink_metadata(&copied.path).is_ok_and(|meta| meta.is_file()) {
        return Err(format!("{name} is not there any more: the command has removed or renamed it"));
    }
    let folder = copied.path.parent().expect("a file in a folder").canonicalize();
    let real =
        folder.map_err(|e| format!("{name}: {}", io_text(&e)))?.join(copied.path.file_name().unwrap_or_default());
    let connection = open(&real, OpenFlags::SQLITE_OPEN_NOFOLLOW).map_err(sqlite)?;
    // One state of it, whatever else the command has left running.
    connection.execute_batch("BEGIN").map_err(sqlite)?;
    let pragma = |of| connection.pragma_query_value(None, of, |row| row.get::<_, u32>(0)).map_err(sqlite);
    let (count, page_size) = (pragma("page_count")?, pragma("page_size")?);
    if page_size != copied.page_size.get() {
        return Err(format!("{name} has another page size now: that can be changed on the primary only"));
    }
    let next = copied.pos.txid.next();
    let header = LtxHeader {
        no_checksum: false,
        page_size: copied.page_size,
        commit: PageCount(count),
        min_txid: next,
        max_txid: next,
        timestamp: time::now(),
        pre_apply: Some(copied.pos.checksum),
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    let odd = |e: &dyn std::fmt::Display| format!("send what has changed in {name}: {e}");
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut out).map_err(|e| odd(&e))?;
    let mut sum = copied.pos.checksum;
    let mut statement = connection.prepare("SELECT pgno, data FROM sqlite_dbpage").map_err(sqlite)?;
    let mut rows = statement.query([]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        let pgno = PageNumber::new(row.get(0).map_err(sqlite)?).filter(|pgno| *pgno != copied.page_size.lock_page());
        let Some(pgno) = pgno else { continue };
        let data = row.get_ref(1).map_err(sqlite)?.as_blob().map_err(|e| odd(&e))?;
        let (before, after) = (copied.sum_of(pgno.get()), Checksum::of_page(pgno, data));
        if before == after.get() {
            continue;
        }
        sum = toggle(sum, before).toggle(after);
        encoder.page(pgno, data, &mut out).map_err(|e| odd(&e))?;
        check_size(&out).map_err(|e| odd(&e))?;
    }
    if count == 0 {
        return Err(format!("{name} is empty: the command has removed what was in it"));
    }
    let gone = copied.table.iter().skip(count as usize);
    let sum = gone.fold(sum, |sum, page| toggle(sum, *page));
    let pages = encoder.pages();
    if pages == 0 && count as usize == copied.table.len() {
        return Ok(None);
    }
    encoder.finish(Some(sum), &mut out).map_err(|e| odd(&e))?;
    check_size(&out).map_err(|e| odd(&e))?;
    Ok(Some((out, pages)))
}

pub(super) fn check_size(out: &[u8]) -> Result<(), String> {
    let most = WRITE_BYTES_MAX >> 20;
    let is_small = out.len() as u64 <= WRITE_BYTES_MAX;
    is_small.then_some(()).ok_or_else(|| format!("it is more than {most} MiB: run the command on the primary"))
}

impl Copied {
    /// The checksum that a page had; 0 where there was none.
    fn sum_of(&self, number: u32) -> u64 {
        self.table.get(number as usize - 1).copied().unwrap_or(0)
    }
}
