//! Files that whoever follows them is to close for a while.
//!
//! To take the files of a database from others makes everything dead that is open of them, in this process as well. A follower that finds its files dead cannot tell that from a file that somebody has
//! put in the place of its own. So it closes them before, and compares what it finds with what it had when it opens them again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::restore::RestoreError;

/// How long whoever opens a file waits for it. Nobody has one for himself for nearly as long.
const ENTER_MAX: Duration = Duration::from_secs(60);

/// Who uses a file.
#[derive(Debug, Default)]
struct Uses {
    /// So many have it open to follow it.
    open: usize,
    /// So many want nobody to.
    wanted: usize,
}

static FILES: Mutex<BTreeMap<PathBuf, Uses>> = Mutex::new(BTreeMap::new());
/// One of them has changed.
static CHANGED: Condvar = Condvar::new();
/// Somebody wants one of them.
static WANTED: Notify = Notify::const_new();

fn files() -> MutexGuard<'static, BTreeMap<PathBuf, Uses>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until this is so. Gives whether it is.
fn wait_until(path: &Path, within: Duration, is_so: impl Fn(&Uses) -> bool) -> bool {
    let deadline = Instant::now() + within;
    let mut all = files();
    while !all.get(path).is_none_or(&is_so) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        all = CHANGED.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

fn leave(path: &Path, change: impl FnOnce(&mut Uses)) {
    let mut all = files();
    if let Some(uses) = all.get_mut(path) {
        change(uses);
        if uses.open == 0 && uses.wanted == 0 {
            all.remove(path);
        }
    }
    drop(all);
    CHANGED.notify_all();
}

/// Somebody has a file open to follow it, for as long as this lives.
#[derive(Debug)]
pub(super) struct InUse(PathBuf);

impl Drop for InUse {
    fn drop(&mut self) {
        leave(&self.0, |uses| uses.open -= 1);
    }
}

/// A file is about to be opened, to follow it. Waits while somebody wants it for himself.
///
/// # Errors
/// It is wanted for too long; trying again helps.
pub(super) fn enter(path: &Path) -> Result<InUse, RestoreError> {
    let deadline = Instant::now() + ENTER_MAX;
    while wait_until(path, deadline.saturating_duration_since(Instant::now()), |uses| uses.wanted == 0) {
        let mut all = files();
        let uses = all.entry(path.to_owned()).or_default();
        if uses.wanted == 0 {
            uses.open += 1;
            return Ok(InUse(path.to_owned()));
        }
    }
    Err(wanted_error(path))
}

/// Whether whoever has a file open is to close it.
pub(super) fn is_wanted(path: &Path) -> bool {
    files().get(path).is_some_and(|uses| uses.wanted > 0)
}

/// Waits until that is so.
pub(super) async fn wanted(path: &Path) {
    loop {
        let told = WANTED.notified();
        if is_wanted(path) {
            return;
        }
        told.await;
    }
}

/// Refuses to go on with a file that is to be closed.
///
/// # Errors
/// It is; trying again helps.
pub(super) fn check(path: &Path) -> Result<(), RestoreError> {
    if is_wanted(path) { Err(wanted_error(path)) } else { Ok(()) }
}

fn wanted_error(path: &Path) -> RestoreError {
    let busy = io::Error::new(io::ErrorKind::WouldBlock, "its files are being taken from whoever has them open");
    RestoreError::io("follow", path, busy)
}

/// Nobody has a file open to follow it, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        leave(&self.0, |uses| uses.wanted -= 1);
    }
}

/// Has whoever follows a file close it, and waits for that. `None`: not in this time, and it goes on.
pub(crate) fn ask(path: &Path, within: Duration) -> Option<Aside> {
    files().entry(path.to_owned()).or_default().wanted += 1;
    let aside = Aside(path.to_owned());
    WANTED.notify_waiters();
    wait_until(path, within, |uses| uses.open == 0).then_some(aside)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_follows_a_file_closes_it_and_waits() {
        let path = Path::new("/aside/one.db");
        let using = enter(path).unwrap();
        assert!(ask(path, Duration::ZERO).is_none() && !is_wanted(path), "it goes on");
        let taking = thread::spawn(move || ask(path, Duration::from_secs(60)).unwrap());
        while !is_wanted(path) {
            thread::yield_now();
        }
        assert!(check(path).is_err_and(|error| crate::follow::live::is_passing(&error)));
        assert!(!is_wanted(Path::new("/aside/other.db")));
        drop(using);
        let aside = taking.join().unwrap();
        let entering = thread::spawn(move || enter(path).unwrap());
        assert_eq!(files()[path].open, 0, "whoever opens it waits");
        drop(aside);
        drop(entering.join().unwrap());
        assert!(!files().contains_key(path), "nothing is kept of a file that nobody uses");
    }
}
