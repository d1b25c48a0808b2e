//! What the file of a replica has, for another node that becomes the primary: where it is, and its pages.
//!
//! Nothing is known of a file that nobody has followed, or that is in the middle of a batch: whoever asks has no answer then, and asks again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rhyolite_format::follow::{FollowEnd, FollowState};
use rhyolite_format::{Checksum, Lineage, PageNumber, Pos};

use super::apply::{journal_path, pos_path, released, roll_back, state_path, still_released};
use super::lock::Locks;
use crate::restore::RestoreError;

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
        } else if let Some(name) = name.to_str().and_then(|name| name.strip_suffix("-rhyolite-follow"))
            && let Err(error) = roll_back(&folder.join(name))
        {
            warn(&path, &error);
        }
    }
}

/// Looks where the file at `path` is.
///
/// # Errors
/// It cannot be read.
pub(crate) fn look(path: &Path) -> Result<Found, RestoreError> {
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

/// Size and time of the last write of a file, and what it was then.
type Seen = (u64, Option<SystemTime>, Pos);

/// Files that still were what they had been: those who ask do so again and again.
static SEEN: Mutex<BTreeMap<PathBuf, Seen>> = Mutex::new(BTreeMap::new());

fn is_as_released(file: &File, path: &Path, end: &FollowEnd) -> Result<bool, RestoreError> {
    let meta = file.metadata().map_err(|e| RestoreError::io("read", path, e))?;
    let now = (meta.len(), meta.modified().ok(), end.pos);
    let lock = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if lock().get(path) == Some(&now) {
        return Ok(true);
    }
    let is_same = still_released(file, path, end)?.is_some();
    if is_same {
        lock().insert(path.to_owned(), now);
    }
    Ok(is_same)
}

fn is_wal(path: &Path) -> bool {
    std::fs::metadata(crate::restore::draft::beside(path, "-wal")).is_ok_and(|meta| meta.len() > 0)
}
