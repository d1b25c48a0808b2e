//! Proof that nobody uses the WAL or the journal of a database behind the mount before it is served.
//!
//! The kernel passes `-wal`, `-shm` and `-journal` through, so whoever has them open goes on with them when the process that served the mount
//! dies. Its locks are those of the old mount, which nobody sees on a new one: both would write the same WAL, or what one writes into a
//! journal would be played back over the commits of the other. The same holds for whoever uses the folder behind. A write lease is granted on a file only when nobody else has it open.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::nodes::is_hidden;
use super::role::Role;

/// `F_SETSIG` of fcntl(2), which `libc` does not name.
const F_SETSIG: libc::c_int = 10;

/// Finds a WAL, wal-index or journal below `behind` that somebody has open.
///
/// # Errors
/// A folder cannot be read.
pub(super) fn in_use(behind: &Path) -> io::Result<Option<PathBuf>> {
    let mut folders = vec![behind.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let is_shared = Role::of(&name) != Role::Plain;
            if kind.is_dir() && !is_hidden(&name) {
                folders.push(entry.path());
            } else if kind.is_file() && is_shared && is_open_elsewhere(&entry.path()) {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

/// `false` also where the file system knows no leases, or the file is another user's.
fn is_open_elsewhere(path: &Path) -> bool {
    let Ok(file) = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) else {
        return false;
    };
    match lease(&file) {
        Ok(()) => false,
        Err(error) => matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)),
    }
}

/// Takes the lease; it ends when the file is closed.
fn lease(file: &File) -> io::Result<()> {
    let fcntl = |command, argument: libc::c_int| {
        // SAFETY: both commands take an integer and touch no memory of ours; the descriptor is open.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Whoever opens the file meanwhile waits a moment, and we are told by a signal. The usual one would end the process.
    fcntl(F_SETSIG, libc::SIGURG)?;
    fcntl(libc::F_SETLEASE, libc::F_WRLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_wal_that_is_open_and_only_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("x/.a.db-rhyolite")).unwrap();
        for name in ["x/a.db", "x/a.db-wal", "x/a.db-journal", "x/.a.db-rhyolite/b-wal"] {
            std::fs::write(path(name), "").unwrap();
        }
        let others = (File::open(path("x/a.db")).unwrap(), File::open(path("x/.a.db-rhyolite/b-wal")).unwrap());
        assert_eq!(in_use(folder.path()).unwrap(), None);
        for name in ["x/a.db-wal", "x/a.db-journal"] {
            let shared = File::open(path(name)).unwrap();
            assert_eq!(in_use(folder.path()).unwrap(), Some(path(name)));
            drop(shared);
        }
        assert_eq!(in_use(folder.path()).unwrap(), None);
        drop(others);
    }
}
