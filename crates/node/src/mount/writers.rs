//! Who may write on the mount: everybody, or only this process.
//!
//! A mount of a node that is a replica is written by the node alone, which applies there what the primary commits. Whoever else asks to write gets
//! EROFS, by which SQLite opens a database for reading only. One file is left to readers: `-shm`, in which SQLite's readers of a WAL note what they read.
//!
//! Invariant: when [`Writers::leave_to_us`] has returned, no write of another process is under way in a handler, and none begins. What the kernel
//! writes without a handler is not covered: [`super::revoke`] ends that.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::door::is_own;

/// Who may write.
#[derive(Debug)]
pub(super) struct Writers {
    is_ours_alone: RwLock<bool>,
}

/// A write may be made for as long as this lives.
pub(super) type Admitted<'a> = RwLockReadGuard<'a, bool>;

impl Writers {
    /// Everybody, or nobody but us.
    pub(super) fn new(is_ours_alone: bool) -> Self {
        Self { is_ours_alone: RwLock::new(is_ours_alone) }
    }

    /// From here on everybody may write, by the permissions of the files.
    pub(super) fn admit_all(&self) {
        *self.is_ours_alone.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// From here on only this process may write.
    pub(super) fn leave_to_us(&self) {
        *self.is_ours_alone.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Whether only this process may write.
    pub(super) fn is_ours_alone(&self) -> bool {
        *self.read()
    }

    fn read(&self) -> Admitted<'_> {
        self.is_ours_alone.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a thread change something, or refuses it.
    pub(super) fn admit(&self, pid: u32) -> io::Result<Admitted<'_>> {
        self.admit_if(|| is_own(pid))
    }

    /// Lets whoever is said to be one of us change something, or refuses it.
    pub(super) fn admit_if(&self, is_own: impl FnOnce() -> bool) -> io::Result<Admitted<'_>> {
        let admitted = self.read();
        if *admitted && !is_own() { Err(read_only()) } else { Ok(admitted) }
    }
}

/// Whether a file is one that readers write.
pub(super) fn is_for_readers(name: &OsStr) -> bool {
    name.as_bytes().strip_suffix(b"-shm").is_some_and(|base| !base.is_empty())
}

/// As on a file system that is mounted for reading only.
pub(super) fn read_only() -> io::Error {
    io::Error::from_raw_os_error(libc::EROFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_refused_while_it_is_ours_alone() {
        let writers = Writers::new(true);
        let refused = writers.admit_if(|| false).map(drop).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        assert!(writers.admit_if(|| true).is_ok());
        writers.admit_all();
        assert!(writers.admit_if(|| false).is_ok() && !writers.is_ours_alone());
        writers.leave_to_us();
        assert!(writers.admit_if(|| false).is_err());
    }

    #[test]
    fn readers_write_wal_indexes_and_nothing_else() {
        for (name, expected) in [("a.db-shm", true), ("a.db-wal", false), ("a.db", false), ("-shm", false)] {
            assert_eq!(is_for_readers(OsStr::new(name)), expected, "{name}");
        }
    }
}
