//! What the state folder still knows after a stop of any kind.
//!
//! The folder holds `state` (one page, rewritten in place after every capture), `pages` (the page table as it was some time
//! ago) and `log/`. The table of the last commit is the saved one with the log's transactions applied, and it counts only if
//! every checksum on the way is right. Whatever is missing, torn or contradictory is dropped: the store and the page diff
//! stand in for it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rhyolite_format::ltx::Decoder;
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::state::page_table::{self, PageTableHeader};
use rhyolite_format::state::{LocalState, WalPosition};
use rhyolite_format::{Checksum, Lineage, Pos};

use super::local_log::{self, SealedSegment};
use super::table::PageTable;

/// File names in the state folder.
pub(crate) const STATE_FILE: &str = "state";
pub(crate) const TABLE_FILE: &str = "pages";
/// Holds a snapshot until it is sent, where it cannot be sent as it is read.
pub(super) const SPOOL_FILE: &str = "snapshot.tmp";
pub(crate) const LOG_FOLDER: &str = "log";
/// Held by the process that works with the folder.
pub(crate) const LOCK_FILE: &str = "lock";

/// What the state folder knows.
#[derive(Debug, Default)]
pub struct LocalStart {
    /// The state file, when it decodes.
    pub state: Option<LocalState>,
    /// The page table of the last transaction in the log, and that transaction.
    pub table: Option<(PageTable, Pos)>,
    /// Whole segments of the log, oldest first.
    pub segments: Vec<SealedSegment>,
    /// What was found damaged, one line each.
    pub problems: Vec<String>,
}

impl LocalStart {
    /// The place in the WAL where the log ends, when the state file tells it of exactly that transaction, in this boot of the
    /// machine.
    pub fn wal_position(&self, boot_id: [u8; 16]) -> Option<WalPosition> {
        let state = self.state.as_ref()?;
        let (_, pos) = self.table.as_ref()?;
        (state.pos == Some(*pos) && state.boot_id == boot_id).then_some(state.wal).flatten()
    }
}

/// So often, and after this time, a folder is looked at again that lacks what it had a moment ago.
const REMOVAL_LOOKS: u32 = 20;
const REMOVAL_LOOK: Duration = Duration::from_millis(50);

/// Reads the state folder.
pub fn load(meta_path: &Path) -> io::Result<LocalStart> {
    let mut start = LocalStart::default();
    // Left by a process that was killed.
    ignore_missing(fs::remove_file(meta_path.join(SPOOL_FILE)))?;
    let state = match fs::read(meta_path.join(STATE_FILE)) {
        // A start that captured nothing yet leaves an empty file.
        Ok(bytes) if bytes.is_empty() => return Ok(start),
        Ok(bytes) => LocalState::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(start),
        Err(error) => return Err(error),
    };
    let lineage = match state {
        Ok(state) => start.state.insert(state).lineage,
        Err(error) => {
            start.problems.push(format!("state file: {error}"));
            return Ok(start);
        }
    };
    let recovered = local_log::recover(&meta_path.join(LOG_FOLDER), lineage)?;
    start.segments = recovered.segments;
    start.problems.extend(recovered.damage);
    match load_table(meta_path, lineage, &start.segments) {
        Ok(table) => start.table = table,
        Err(reason) => start.problems.push(format!("page table: {reason}")),
    }
    Ok(start)
}

/// The same of a folder that somebody may be removing right now, file by file: what is not there any more is an error only once the lock file is gone, too, by which
/// a removal is told from damage, or when the folder stays like that.
pub fn load_whole(meta_path: &Path) -> io::Result<LocalStart> {
    for _ in 0..REMOVAL_LOOKS {
        match load(meta_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && meta_path.join(LOCK_FILE).exists() => {
                std::thread::sleep(REMOVAL_LOOK);
            }
            loaded => return loaded,
        }
    }
    load(meta_path)
}

/// The history to which the folder belongs, if that can be read. Needs no lock.
pub fn lineage(meta_path: &Path) -> Option<Lineage> {
    let bytes = fs::read(meta_path.join(STATE_FILE)).ok()?;
    LocalState::decode(&bytes).ok().map(|state| state.lineage)
}

/// Removes everything that [`load`] reads.
pub fn clear(meta_path: &Path) -> io::Result<()> {
    for name in [STATE_FILE, TABLE_FILE] {
        ignore_missing(fs::remove_file(meta_path.join(name)))?;
    }
    ignore_missing(fs::remove_dir_all(meta_path.join(LOG_FOLDER)))
}

/// Leaves a state from which capture goes on, in a folder that knew nothing: the database is at `state.pos` but for what its pages differ from
/// `table` in.
pub(crate) fn begin_at(meta_path: &Path, state: &LocalState, table: &PageTable) -> io::Result<()> {
    fs::create_dir_all(meta_path)?;
    let pos = state.pos.expect("there is a position to begin at");
    save_table(meta_path, state.lineage, pos, table)?;
    fs::write(meta_path.join(STATE_FILE), state.encode())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn load_table(
    meta_path: &Path,
    lineage: Lineage,
    segments: &[SealedSegment],
) -> Result<Option<(PageTable, Pos)>, String> {
    let file = match File::open(meta_path.join(TABLE_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let (header, entries) = page_table::read(BufReader::new(file)).map_err(|e| e.to_string())?;
    if header.lineage != lineage {
        return Err("belongs to another history".to_owned());
    }
    let mut table = PageTable::from_entries(header.page_size, entries);
    if table.checksum() != header.pos.checksum || table.first_hole().is_some() {
        return Err("its entries do not give its checksum".to_owned());
    }
    let mut pos = header.pos;
    for segment in segments.iter().filter(|s| s.end().is_some_and(|end| end.txid > header.pos.txid)) {
        apply_segment(&mut table, &mut pos, segment).map_err(|e| format!("apply segment {}: {e}", segment.seq))?;
    }
    Ok(Some((table, pos)))
}

fn apply_segment(table: &mut PageTable, pos: &mut Pos, segment: &SealedSegment) -> Result<(), String> {
    let bytes = segment.bytes().map_err(|e| e.to_string())?;
    let start = pos.txid;
    for entry in segment.entries.iter().filter(|e| e.max_txid > start) {
        let range = entry.range();
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let ltx = range.and_then(|(start, end)| bytes.get(start..end)).ok_or("an entry lies outside of it")?;
        apply_transaction(table, *pos, entry, ltx)?;
        *pos = entry.end();
    }
    Ok(())
}

fn apply_transaction(table: &mut PageTable, pos: Pos, entry: &SegmentEntry, mut ltx: &[u8]) -> Result<(), String> {
    if entry.pre_apply != Some(pos.checksum)
        || entry.min_txid != pos.txid.next()
        || entry.page_size != table.page_size()
    {
        return Err(format!("transaction {} does not follow {pos}", entry.min_txid));
    }
    let mut decoder = Decoder::new(&mut ltx).map_err(|e| e.to_string())?;
    let mut page = vec![0; entry.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).map_err(|e| e.to_string())? {
        table.set(pgno, Checksum::of_page(pgno, &page));
    }
    table.set_page_count(decoder.header().commit);
    decoder.finish().map_err(|e| e.to_string())?;
    if table.checksum() == entry.post_apply {
        Ok(())
    } else {
        Err(format!("transaction {} gives another checksum", entry.max_txid))
    }
}

/// Saves the page table beside the one before, then puts it in its place.
pub(super) fn save_table(meta_path: &Path, lineage: Lineage, pos: Pos, table: &PageTable) -> io::Result<()> {
    let temporary = meta_path.join("pages.tmp");
    let written =
        write_table(&temporary, lineage, pos, table).and_then(|()| fs::rename(&temporary, meta_path.join(TABLE_FILE)));
    if written.is_err() {
        // On a full disk its space is needed; the error that counts is that of the write.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Forgets the saved page table.
pub(super) fn drop_table(meta_path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(meta_path.join(TABLE_FILE)))
}

fn write_table(path: &Path, lineage: Lineage, pos: Pos, table: &PageTable) -> io::Result<()> {
    let header = PageTableHeader { lineage, pos, page_size: table.page_size(), count: table.page_count() };
    let mut out = BufWriter::with_capacity(256 << 10, File::create(path)?);
    page_table::write(&header, table.entries(), &mut out)?;
    out.flush()
}

/// The id of this boot of the machine; random per boot. Zeros where the system has none, which then never match. It is read once: a process does not outlive it.
pub fn boot_id() -> [u8; 16] {
    static KNOWN: OnceLock<[u8; 16]> = OnceLock::new();
    KNOWN.get().copied().unwrap_or_else(|| {
        let id = read_boot_id();
        // What could not be read may be another time.
        if id == [0; 16] { id } else { *KNOWN.get_or_init(|| id) }
    })
}

fn read_boot_id() -> [u8; 16] {
    let mut text = String::new();
    let read = File::open("/proc/sys/kernel/random/boot_id").and_then(|mut f| f.read_to_string(&mut text));
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = read.ok().and_then(|_| u128::from_str_radix(&digits, 16).ok());
    id.map_or([0; 16], u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Epoch, PageCount, Seq};

    use super::*;

    #[test]
    fn a_folder_that_is_just_being_removed_is_waited_for_until_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let meta = folder.path().join("meta");
        fs::create_dir_all(meta.join(LOG_FOLDER)).unwrap();
        let state = LocalState {
            lineage: Lineage([1; 16]),
            pos: None,
            durable: None,
            page_size: None,
            commit: PageCount(0),
            wal: None,
            epoch: Epoch::FIRST,
            next_seq: Seq::FIRST,
            boot_id: boot_id(),
        };
        fs::write(meta.join(STATE_FILE), state.encode()).unwrap();
        fs::write(meta.join(LOCK_FILE), "").unwrap();
        assert!(load_whole(&meta).unwrap().segments.is_empty());
        // Listed, and not there when it is opened.
        std::os::unix::fs::symlink("nowhere", meta.join(LOG_FOLDER).join("0000000000000001.seg")).unwrap();
        let removed = meta.clone();
        let removing = std::thread::spawn(move || {
            std::thread::sleep(3 * REMOVAL_LOOK);
            fs::remove_file(removed.join(LOCK_FILE)).unwrap();
        });
        assert_eq!(load_whole(&meta).unwrap_err().kind(), io::ErrorKind::NotFound);
        removing.join().unwrap();
        assert!(!meta.join(LOCK_FILE).exists(), "it was told as an error before the lock file was gone");
        fs::remove_dir_all(&meta).unwrap();
        assert!(load_whole(&meta).unwrap().state.is_none());
    }
}
