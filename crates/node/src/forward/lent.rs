//! Which databases have a connection of this process that holds a write lock for a replica ([`super::holder`]).
//!
//! SQLite locks with POSIX locks, which a process loses on every descriptor of a file when it closes any. So whoever of this program opens a database by itself, where it has
//! no connection by what it knows, does it by [`unless`], and not while there is such a connection.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static LENT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<PathBuf>> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The database at this path has such a connection for as long as this lives: made before it, and dropped after it was closed.
#[derive(Debug)]
pub(super) struct Lent(PathBuf);

impl Lent {
    pub(super) fn new(path: &Path) -> Self {
        lock().push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut all = lock();
        if let Some(place) = all.iter().position(|path| *path == self.0) {
            all.swap_remove(place);
        }
    }
}

/// Whether there is such a connection to a database.
pub(crate) fn is_lent(path: &Path) -> bool {
    lock().iter().any(|lent| lent == path)
}

/// Whether there is one to any.
pub(super) fn is_any() -> bool {
    !lock().is_empty()
}

/// Opens a database and closes it again, while there is none and none comes. `None` when there is one.
pub(crate) fn unless<T>(path: &Path, open_and_close: impl FnOnce() -> T) -> Option<T> {
    let all = lock();
    let is_free = !all.iter().any(|lent| lent == path);
    is_free.then(open_and_close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_opened_beside_a_connection_that_holds_a_lock() {
        let path = Path::new("/nowhere/lent.db");
        assert_eq!(unless(path, || 1), Some(1));
        let first = Lent::new(path);
        let second = Lent::new(path);
        assert!(is_lent(path) && is_any() && !is_lent(Path::new("/nowhere/other.db")));
        drop(first);
        assert_eq!(unless(path, || 1), None, "there is another one");
        let mark = crate::park::header_mark(path);
        drop(second);
        assert_eq!(unless(path, || 1), Some(1));
        assert_ne!(mark, crate::park::header_mark(path), "a mark that says nothing is none of a database");
    }
}
