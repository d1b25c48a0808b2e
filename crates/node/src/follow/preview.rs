//! Transactions that are in a replica's file before the stream has brought them: an application has written them there, after the primary had committed them
//! ([`crate::forward::transparent`]).
//!
//! The file is then ahead of where it is noted to be, by one transaction at most, and what the history goes on with may be another one: the primary may be lost with what it has
//! committed. So what the file had before is kept until the next batch, which writes both: first what was before, then what has come. Whatever that is, the file becomes what the
//! history has.
//!
//! It is kept in memory. A mark beside the file says so: a process that is started after it was killed takes a file with it that is at no known position for one that is to be written
//! anew, and not for one that somebody has spoiled.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhyolite_format::{PageCount, PageNumber, PageSize, Pos};

use crate::config::io_text;
use crate::restore::draft::beside;

/// What a file was before a transaction that it is ahead by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Preview {
    /// Where it was.
    pub(crate) pos: Pos,
    pub(crate) page_size: PageSize,
    /// How many pages it had.
    pub(crate) commit: PageCount,
    /// Those that the transaction has changed or cut off, as they were in the file.
    pub(crate) pages: BTreeMap<PageNumber, Vec<u8>>,
}

/// What is known of a file to which others may write.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The transaction that may be in it.
    pub(super) preview: Option<Arc<Preview>>,
    /// The primary does not have it.
    pub(super) is_void: bool,
}

static FILES: Mutex<BTreeMap<PathBuf, Known>> = Mutex::new(BTreeMap::new());

fn files() -> MutexGuard<'static, BTreeMap<PathBuf, Known>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mark(path: &Path) -> PathBuf {
    beside(path, "-rhyolite-preview")
}

/// Somebody may write to the file from here on, and is no stranger.
pub(crate) fn expect(path: &Path) {
    files().entry(path.to_owned()).or_default();
}

/// A transaction may come into the file from here on.
///
/// # Errors
/// The mark cannot be made: one line.
pub(crate) fn put(path: &Path, preview: Preview) -> Result<(), String> {
    let mark = mark(path);
    // Whoever removes it looks first whether it is of this process.
    let mut files = files();
    std::fs::write(&mark, []).map_err(|e| format!("make {}: {}", mark.display(), io_text(&e)))?;
    files.insert(path.to_owned(), Known { preview: Some(Arc::new(preview)), is_void: false });
    Ok(())
}

/// It does not come.
pub(crate) fn withdraw(path: &Path) {
    files().insert(path.to_owned(), Known::default());
    remove_mark(path);
}

/// Whether the file may be ahead of where it is noted to be.
pub(crate) fn is_unsettled(path: &Path) -> bool {
    // Without the other there is a mark of a process before this one.
    files().get(path).is_some_and(|known| known.preview.is_some()) || is_marked(path)
}

/// The primary is at `pos`, and stays there for now: what the file has after that is none of the history.
pub(crate) fn doubt(path: &Path, pos: Pos) {
    if let Some(known) = files().get_mut(path) {
        known.is_void = known.preview.as_ref().is_some_and(|preview| preview.pos == pos);
    }
}

/// What is known of a file.
pub(super) fn of(path: &Path) -> Option<Known> {
    files().get(path).cloned()
}

/// What was known has been looked at, and the transaction taken back, if there was one: the file is where it is noted to be.
pub(super) fn settled(path: &Path, known: &Known) {
    let mut files = files();
    let is_same = |now: &Known| match (&now.preview, &known.preview) {
        (Some(now), Some(known)) => Arc::ptr_eq(now, known),
        (now, known) => now.is_none() && known.is_none(),
    };
    if files.get(path).is_some_and(is_same) {
        files.remove(path);
        if known.preview.is_some() {
            remove_mark(path);
        }
    }
}

/// The file is where it is noted to be: a mark that a process before this one has left says nothing any more.
pub(super) fn forget_mark(path: &Path) {
    let files = files();
    if files.get(path).is_none_or(|known| known.preview.is_none()) {
        remove_mark(path);
    }
}

/// Whether the file was left ahead of where it is noted to be, or is now.
pub(super) fn is_marked(path: &Path) -> bool {
    mark(path).exists()
}

fn remove_mark(path: &Path) {
    match std::fs::remove_file(mark(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(database = %path.display(), "remove {}: {}", mark(path).display(), io_text(&error));
        }
        _ => {}
    }
}
