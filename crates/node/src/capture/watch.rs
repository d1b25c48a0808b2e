//! Waiting until something may have happened.
//!
//! A busy database is looked at on a timer: a look at the mapped wal-index costs the writer nothing. A watch on files does
//! cost it (9 to 25 % of a commit), so there is one only while the database is idle; the first event ends it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, inotify, statx};

/// Watches that this process has at most. By default a user has 128 inotify instances, for all programs.
const WATCHES_MAX: usize = 64;

/// Time between two looks at what a path names.
const NAME_LOOK: Duration = Duration::from_millis(5);

/// How many it has.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Lets other threads end a wait.
#[derive(Clone, Debug)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// A wake that nobody has rung.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the wait, or the next one.
    pub fn ring(&self) {
        // The counter can only be full: then the wait ends anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until rung or until `timeout` has passed.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        wait_for(&mut fds, timeout)?;
        self.clear();
        Ok(())
    }

    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        // Nothing to read means that nobody rang.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A watch on the files of one idle database.
#[derive(Debug)]
pub(super) struct FileWatch {
    inotify: OwnedFd,
    _right: Right,
}

/// The right to one of the watches of this process.
#[derive(Debug)]
struct Right;

impl Right {
    fn new() -> io::Result<Self> {
        let more = |count: usize| (count < WATCHES_MAX).then_some(count + 1);
        let taken = WATCHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(|_| Self).map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FileWatch {
    /// Watches the database, its WAL and its journal for writes, and its folder for files that come and go. Nothing is
    /// opened: closing a watch drops no lock.
    ///
    /// # Errors
    /// The process has as many watches as it may have, or the system gives no other. Then the database is to be looked at on a timer.
    pub(super) fn new(database: &Path) -> io::Result<Self> {
        let right = Right::new()?;
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // A file that we have open is not deleted when its name is: what it loses is a link, which is one of its attributes.
        let on_file = inotify::WatchFlags::MODIFY | inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MOVE_SELF;
        for path in [database.to_owned(), beside(database, "-wal"), beside(database, "-journal")] {
            match inotify::add_watch(&fd, path, on_file) {
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = database.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let in_folder = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, in_folder)?;
        Ok(Self { inotify: fd, _right: right })
    }

    /// Waits until a watched file changes, `wake` is rung, or `timeout` has passed.
    pub(super) fn wait(&self, wake: &Wake, timeout: Duration) -> io::Result<()> {
        let mut fds =
            [PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN), PollFd::new(&wake.0, PollFlags::IN)];
        wait_for(&mut fds, timeout)?;
        wake.clear();
        let mut events = [0; 4096];
        // The events themselves do not matter: something happened, so look. No event is no error.
        let _ = rustix::io::read(&self.inotify, &mut events);
        Ok(())
    }
}

/// The file that a path names, for cheap looks at whether it still does: who holds on to files that have lost their names is in the way of those who make
/// new ones (SQLite's "How To Corrupt An SQLite Database File", section 2.4).
#[derive(Debug)]
pub(super) struct NamedFile {
    path: PathBuf,
    /// Device and inode.
    file: Option<(u32, u32, u64)>,
    looked: Instant,
}

impl NamedFile {
    /// The file that has this path now.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), file: file_at(path), looked: Instant::now() }
    }

    /// Whether the path names another file than it did, or none. Looks at most once in [`NAME_LOOK`].
    pub(super) fn is_other(&mut self) -> bool {
        if self.looked.elapsed() < NAME_LOOK {
            return false;
        }
        self.looked = Instant::now();
        file_at(&self.path) != self.file
    }
}

/// What is asked of the kernel alone: on a mount of ours the handler is not troubled.
fn file_at(path: &Path) -> Option<(u32, u32, u64)> {
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

/// The path with `suffix` appended to the file name.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_and_loses_its_name_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let _open = std::fs::File::create(&database).unwrap();
        let (watch, wake) = (FileWatch::new(&database).unwrap(), Wake::new().unwrap());
        let mut named = NamedFile::at(&database);
        std::thread::sleep(NAME_LOOK);
        assert!(!named.is_other());
        std::fs::remove_file(&database).unwrap();
        let began = Instant::now();
        watch.wait(&wake, Duration::from_secs(20)).unwrap();
        assert!(began.elapsed() < Duration::from_secs(10));
        std::thread::sleep(NAME_LOOK);
        assert!(named.is_other());
        let mut named = NamedFile::at(&database);
        std::fs::File::create(&database).unwrap();
        std::thread::sleep(NAME_LOOK);
        assert!(named.is_other(), "there was none");
    }

    #[test]
    fn a_process_leaves_watches_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let mut watches: Vec<_> = std::iter::from_fn(|| FileWatch::new(&database).ok()).take(2 * WATCHES_MAX).collect();
        assert!(watches.len() <= WATCHES_MAX);
        assert_eq!(FileWatch::new(&database).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        watches.pop();
        watches.push(FileWatch::new(&database).unwrap());
    }
}
