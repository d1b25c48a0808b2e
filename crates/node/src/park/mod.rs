//! Databases at rest: what is kept of them on disk, and how it is noticed that they are written again.
//!
//! A parked database has no connection, no thread and no timer. [`mark`] says what its files look like; `logic::park` has the proof
//! that a commit leaves another mark. How no commit is missed, from the last look of its last session on:
//!
//! 1. The session takes the mark under the write lock with everything captured, and ends ([`crate::capture`]).
//! 2. The [watcher](watcher::Watcher) arms its watch on the folder, and only then compares the mark: what was written between 1 and 2
//!    is seen by the comparison, what is written after it by the watch.
//! 3. Events can be lost (a full queue, a file system that sends none, a watch that could not be had). So all parked databases
//!    are looked at in turn as well, without the help of events.
//! 4. Either only leads to a look, and a look that finds another mark only to a session, which begins like after a start: it goes on in
//!    the same generation of the WAL, or compares all pages. So a false alarm costs time, never a commit.
//!
//! The record in the state folder lets a start take a database for parked without a connection and without a request to the store.
//! What the store has is then asked when the database wakes and before anything is uploaded ([`crate::replicate`]).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rhyolite_format::Timestamp;
use rhyolite_format::crc::crc64;
use rhyolite_format::sqlite::wal::Salt;
use rhyolite_format::state::LocalState;
use rhyolite_format::state::parked::{DatabaseMark, FileMark, HeaderMark, Parked};
use rhyolite_logic::park;

use crate::capture::restart;
use crate::capture::watch::beside;
use crate::config::DatabaseConfig;
use crate::forward::lent;

pub mod watcher;

/// Name of the record in the state folder.
const RECORD_FILE: &str = "parked";

/// What the files of the database look like now. Opens nothing.
pub fn mark(database: &Path) -> io::Result<DatabaseMark> {
    Ok(DatabaseMark { database: file_mark(database)?, wal: file_mark(&beside(database, "-wal"))? })
}

fn file_mark(path: &Path) -> io::Result<FileMark> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > 0 => Ok(FileMark {
            inode: meta.ino(),
            bytes: meta.len(),
            modified_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            changed_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        }),
        Ok(_) => Ok(FileMark::default()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(FileMark::default())
        }
        Err(error) => Err(error),
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// What the first bytes of both files say. Only for a database of which this process has no connection: closing a file drops the
/// process's locks on it.
/// Where a write lock is lent, nothing is opened: the mark is that of no database.
pub fn header_mark(database: &Path) -> HeaderMark {
    let none = HeaderMark { change_counter: u32::MAX, salt: Salt(u32::MAX, u32::MAX) };
    lent::unless(database, || read_header_mark(database)).unwrap_or(none)
}

fn read_header_mark(database: &Path) -> HeaderMark {
    let word = |path: &Path, at: usize| -> Option<[u8; 8]> {
        let mut bytes = [0; 32];
        File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
        bytes[at..at + 8].try_into().ok()
    };
    let first = |word: [u8; 8]| u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
    let second = |word: [u8; 8]| u32::from_be_bytes([word[4], word[5], word[6], word[7]]);
    HeaderMark {
        change_counter: word(database, 24).map_or(0, first),
        salt: word(&beside(database, "-wal"), 16).map_or(Salt(0, 0), |word| Salt(first(word), second(word))),
    }
}

/// The number that stands for a store's address in a record.
pub fn store_number(store: &str) -> u64 {
    crc64(store.as_bytes())
}

/// Writes the record of a database that was just closed, with everything durable, when its files looked like `mark`.
pub fn note_parked(config: &DatabaseConfig, mark: DatabaseMark, history_due: Option<Timestamp>) -> io::Result<()> {
    let state = fs::read(config.meta_path.join(restart::STATE_FILE))?;
    let Ok(LocalState { lineage, pos: Some(pos), next_seq, boot_id, .. }) = LocalState::decode(&state) else {
        return Ok(());
    };
    let (store, header) = (store_number(&config.store), header_mark(&config.path));
    save(&config.meta_path, &Parked { lineage, pos, next_seq, store, boot_id, mark, header, history_due })
}

/// Writes the record.
pub fn save(meta_path: &Path, parked: &Parked) -> io::Result<()> {
    let new = meta_path.join("parked.tmp");
    fs::write(&new, parked.encode())?;
    fs::rename(new, meta_path.join(RECORD_FILE))
}

/// The record of a database that was parked, if there is a whole one.
pub fn read(meta_path: &Path) -> Option<Parked> {
    Parked::decode(&fs::read(meta_path.join(RECORD_FILE)).ok()?).ok()
}

/// Removes the record, if there is one.
pub fn forget(meta_path: &Path) -> io::Result<()> {
    match fs::remove_file(meta_path.join(RECORD_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The record and the state of a database that is as it was when it was parked; `None` when anything speaks against it.
pub fn find(config: &DatabaseConfig, boot_id: [u8; 16]) -> Option<(Parked, LocalState)> {
    let parked = read(&config.meta_path)?;
    let state = LocalState::decode(&fs::read(config.meta_path.join(restart::STATE_FILE)).ok()?).ok()?;
    let mark = mark(&config.path).ok()?;
    let number = store_number(&config.store);
    park::is_still_parked(&parked, &state, number, boot_id, &mark).then_some((parked, state))
}
