//! What the file of a replica has, for another node that becomes the primary: where it is, and its pages.
//!
//! Nothing is known of a file that nobody has followed, or that is in the middle of a batch: whoever asks has no answer then, and asks again.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rhyolite_format::follow::{FollowEnd, FollowState};
use rhyolite_format::{Checksum, Lineage, PageNumber, Pos};

use super::apply::{Follower, journal_path, pos_path, roll_back, state_path};
use super::lock::Locks;
use super::sums::{PageSums, page_sums};
use super::{ReplicaJournal, rejoin};
use crate::restore::RestoreError;
use crate::restore::draft::beside;

/// Pages that are compared by one request.
pub(crate) const PAGES_MAX: usize = 1024;
/// Bytes before the content of each page: its number.
pub(crate) const NUMBER_SIZE: usize = 4;

/// Folders in folders that are searched.
const DEPTH_MAX: usize = 32;

/// Where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The history that it belongs to.
    pub(crate) lineage: Lineage,
    /// Its position, and what it is there.
    pub(crate) end: FollowEnd,
}

/// What is found where the file of a replica should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No file.
    Nothing,
    /// A file of which is not known where it is.
    Unknown,
    /// One that is there.
    Held(Held),
}

/// The name under which the state of a followed database lies beside it.
pub(crate) fn follow_state_name(database: &OsStr) -> OsString {
    state_path(Path::new(database)).into_os_string()
}

/// Where it stands what a file was when it was last given to whoever writes to it.
pub(crate) fn released_path(path: &Path) -> PathBuf {
    beside(path, "-rhyolite-released")
}

/// What a file that nobody follows was when it was last given to whoever writes to it, if that is known. It may have been written to since.
pub(super) fn released(path: &Path) -> Option<FollowState> {
    FollowState::decode(&std::fs::read(released_path(path)).ok()?).ok()
}

/// The checksums of the pages of a file, if it still is what it was when it was given to whoever writes to it.
pub(super) fn still_released(file: &File, path: &Path, end: &FollowEnd) -> Result<Option<PageSums>, RestoreError> {
    let len = file.metadata().map_err(|e| RestoreError::io("read", path, e))?.len();
    if len != end.commit.bytes(end.page_size) {
        return Ok(None);
    }
    let sums = page_sums(file, path, (end.page_size, end.commit), Some(&end.page_one))?;
    Ok(Some(sums).filter(|sums| sums.checksum == end.pos.checksum))
}

/// What a file that follows is at `pos`, and its history, if its state says that it may be there. Whoever uses it proves the sum of the pages.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn end_at(path: &Path, pos: Pos) -> Result<Option<(Lineage, FollowEnd)>, RestoreError> {
    let state = match std::fs::read(state_path(path)) {
        Ok(bytes) => FollowState::decode(&bytes)
            .map_err(|e| RestoreError::Damaged { key: state_path(path).display().to_string(), source: e })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RestoreError::io("read", path, error)),
    };
    let end = [state.after, state.before].into_iter().find(|end| end.pos == pos);
    Ok(end.map(|end| (state.lineage, end)))
}

/// Lets SQLite roll back what a process before this one has left half applied in the files that follow in a folder, or below: otherwise nobody can say where they are until they are
/// followed again. To be called before anything is.
pub(crate) fn recover(folder: &Path, depth: usize) {
    let warn =
        |path: &Path, why: &dyn std::fmt::Display| tracing::warn!("recover what follows in {}: {why}", path.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return warn(folder, &crate::config::io_text(&error)),
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth < DEPTH_MAX {
                recover(&path, depth + 1);
            }
            continue;
        }
        let of = |suffix| Some(folder.join(name.to_str()?.strip_suffix(suffix)?));
        let settled = match (of("-rhyolite-follow"), of("-rhyolite-released")) {
            (Some(database), _) => settle(&database),
            (_, Some(database)) if is_wal(&database) && !state_path(&database).exists() => {
                // It was to be written to, and nobody has begun to.
                rejoin::recover(&database).map(drop)
            }
            _ => Ok(()),
        };
        if let Err(error) = settled {
            warn(&path, &error);
        }
    }
}

/// Finds out where a file is that was being applied to.
fn settle(database: &Path) -> Result<(), RestoreError> {
    roll_back(database)?;
    let bytes = std::fs::read(state_path(database)).map_err(|e| RestoreError::io("read", database, e))?;
    let at_the_end = FollowState::decode(&bytes).is_ok_and(|state| noted(database) == Some(state.after.pos));
    if at_the_end || !database.exists() || is_wal(database) {
        return Ok(());
    }
    // It compares the file with both ends, and notes at which it is.
    Follower::open(database, ReplicaJournal::Rollback).map(drop)
}

/// The position that is noted beside a file.
pub(crate) fn noted(database: &Path) -> Option<Pos> {
    std::fs::read_to_string(pos_path(database)).ok()?.trim_end().parse().ok()
}

/// Nobody but this node itself may look: it is not a replica, and SQLite may have the files open here.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);
/// Closing any descriptor of a file drops the locks that SQLite has on it in this process: whoever looks reads-locks this, and whoever has SQLite recover a file write-locks it.
static OPENING: RwLock<()> = RwLock::new(());

/// Lets others look, or not. Whoever looks already goes on until [`wait_for_looks`] has returned.
pub(crate) fn close(is_closed: bool) {
    IS_CLOSED.store(is_closed, Ordering::SeqCst);
}

/// Waits until nobody looks any more that began before.
pub(crate) fn wait_for_looks() {
    drop(OPENING.write().unwrap_or_else(PoisonError::into_inner));
}

/// Has SQLite do something with files, while nobody looks.
pub(super) fn with_sqlite<T>(work: impl FnOnce() -> T) -> T {
    let _gate = OPENING.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// This node.
    Own,
    /// Another.
    Other,
}

/// Looks where the file at `path` is.
///
/// # Errors
/// It cannot be read.
pub(crate) fn look(path: &Path, whom: For) -> Result<Found, RestoreError> {
    let _gate = OPENING.read().unwrap_or_else(PoisonError::into_inner);
    if whom == For::Other && IS_CLOSED.load(Ordering::SeqCst) {
        return Ok(Found::Unknown);
    }
    match open(path)? {
        Some(file) => with_lock(&file, path, |held| match held {
            Some((held, false)) if !is_as_released(&file, path, &held.end)? => Ok(Found::Unknown),
            Some((held, _)) => Ok(Found::Held(held)),
            None => Ok(Found::Unknown),
        }),
        None => Ok(Found::Nothing),
    }
}

/// Of the pages from `first` on whose checksums are given (0: the other has none), those that differ in the file: the number (big-endian) and the
/// content of each, in order, as the log has it. `None` when the file is not at `pos`.
///
/// # Errors
/// It cannot be read.
pub(crate) fn differing(
    path: &Path,
    pos: Pos,
    first: PageNumber,
    sums: &[u64],
) -> Result<Option<Vec<u8>>, RestoreError> {
    let _gate = OPENING.read().unwrap_or_else(PoisonError::into_inner);
    if IS_CLOSED.load(Ordering::SeqCst) {
        return Ok(None);
    }
    let Some(file) = open(path)? else { return Ok(None) };
    with_lock(&file, path, |held| {
        // Whoever asks has asked where it is before, and proves the sum of what it gets.
        let Some((held, _)) = held.filter(|(held, _)| held.end.pos == pos) else { return Ok(None) };
        let FollowEnd { page_size, commit, page_one, .. } = held.end;
        let (mut out, mut page) = (Vec::new(), vec![0; page_size.bytes()]);
        for (index, sum) in sums.iter().enumerate() {
            let number = u32::try_from(index).ok().and_then(|index| first.get().checked_add(index));
            let number = number.filter(|number| *number <= commit.get()).and_then(PageNumber::new);
            let Some(pgno) = number else { break };
            if pgno == page_size.lock_page() {
                continue;
            }
            file.read_exact_at(&mut page, pgno.offset(page_size)).map_err(|e| RestoreError::io("read", path, e))?;
            if pgno == PageNumber::FIRST {
                page_one.put(&mut page);
            }
            if Checksum::of_page(pgno, &page).get() != *sum {
                out.extend_from_slice(&pgno.get().to_be_bytes());
                out.extend_from_slice(&page);
            }
        }
        Ok(Some(out))
    })
}

fn open(path: &Path) -> Result<Option<File>, RestoreError> {
    // For reading and writing, as the locks want it, and never written.
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RestoreError::io("open", path, error)),
    }
}

/// Looks at a file to which nothing is applied meanwhile. `None`: nobody knows where it is.
fn with_lock<T>(
    file: &File,
    path: &Path,
    look: impl FnOnce(Option<(Held, bool)>) -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let locks = Locks::share(file).map_err(|e| RestoreError::io("lock", path, e))?;
    let Ok(_locks) = locks else { return look(None) };
    if journal_path(path).exists() {
        return look(None);
    }
    look(held(path)?)
}

/// Where the file says that it is, and whether it is one that follows: then its position beside it is written after each batch, and is one of the two ends of the last one.
/// One that was given to whoever writes to it may have been written to since.
fn held(path: &Path) -> Result<Option<(Held, bool)>, RestoreError> {
    let read = |path: &Path| match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RestoreError::io("read", path, error)),
    };
    let Some(state) = read(&state_path(path))? else {
        let released = released(path).filter(|_| !is_wal(path));
        return Ok(released.map(|state| (Held { lineage: state.lineage, end: state.after }, false)));
    };
    let state = FollowState::decode(&state)
        .map_err(|e| RestoreError::Damaged { key: state_path(path).display().to_string(), source: e })?;
    let pos = read(&pos_path(path))?.and_then(|text| std::str::from_utf8(&text).ok()?.trim_end().parse::<Pos>().ok());
    let end = [state.after, state.before].into_iter().find(|end| Some(end.pos) == pos);
    // In WAL mode the newest pages may lie elsewhere.
    Ok(end.filter(|_| !is_wal(path)).map(|end| (Held { lineage: state.lineage, end }, true)))
}

/// Size and time of the last write of a file, what it may have been then, and whether it was.
type Seen = (u64, Option<SystemTime>, Pos, bool);

/// Files that were compared with what they had been: those who ask do so again and again.
static SEEN: Mutex<BTreeMap<PathBuf, Seen>> = Mutex::new(BTreeMap::new());

fn is_as_released(file: &File, path: &Path, end: &FollowEnd) -> Result<bool, RestoreError> {
    let meta = file.metadata().map_err(|e| RestoreError::io("read", path, e))?;
    let (len, time) = (meta.len(), meta.modified().ok());
    let lock = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = lock().get(path).copied().filter(|known| (known.0, known.1, known.2) == (len, time, end.pos));
    if let Some((.., is_same)) = known {
        return Ok(is_same);
    }
    let is_same = still_released(file, path, end)?.is_some();
    lock().insert(path.to_owned(), (len, time, end.pos, is_same));
    Ok(is_same)
}

fn is_wal(path: &Path) -> bool {
    std::fs::metadata(beside(path, "-wal")).is_ok_and(|meta| meta.len() > 0)
}
