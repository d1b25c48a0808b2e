//! The bar: who opens a database waits while the node needs it for itself.
//!
//! A file that a node is to bring back to the history is locked as a whole for a moment. Readers who open it again and again would keep it from that, and
//! those who open it between the end of the role and that moment would lose it again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};

use super::handover::let_in;

/// Nobody waits longer than this.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether the wait is over.
const LOOK: Duration = Duration::from_millis(1);
/// So many wait at a time; others go in at once.
const WAITING_MAX: usize = 256;

/// Databases that are barred, by their paths below the mount.
#[derive(Clone, Debug, Default)]
pub(super) struct Bar {
    barred: Arc<Mutex<HashMap<PathBuf, Reason>>>,
    /// A clone for each that waits.
    waiting: Arc<()>,
}

/// Why a database is barred.
#[derive(Debug, Default)]
struct Reason {
    /// So many need it for themselves.
    users: usize,
    /// Somebody is about to, who may not come.
    until: Option<Instant>,
}

/// A database is barred for as long as this lives.
#[derive(Debug)]
pub(super) struct Barred {
    bar: Bar,
    database: PathBuf,
}

impl Bar {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Reason>> {
        self.barred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bars a database.
    pub(super) fn close(&self, database: &Path) -> Barred {
        self.lock().entry(database.to_owned()).or_default().users += 1;
        Barred { bar: self.clone(), database: database.to_owned() }
    }

    /// Bars a database until somebody has had it for himself, or until then.
    pub(super) fn close_until(&self, database: PathBuf, until: Instant) {
        self.lock().entry(database).or_default().until = Some(until);
    }

    /// Nobody needs to have one of them for himself any more who does not yet.
    pub(super) fn forget(&self) {
        self.lock().retain(|_, reason| {
            reason.until = None;
            reason.users > 0
        });
    }

    /// Whether nothing is barred, for all that is known without looking at a clock.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether who opens this database is to wait.
    pub(super) fn is_closed(&self, database: &Path) -> bool {
        let mut barred = self.lock();
        let Some(reason) = barred.get(database) else { return false };
        let is_closed = reason.users > 0 || reason.until.is_some_and(|until| until > Instant::now());
        if !is_closed {
            barred.remove(database);
        }
        is_closed
    }

    /// Tells the opener when the database is not barred any more.
    pub(super) fn wait(
        &self,
        database: PathBuf,
        handle: FileHandle,
        flags: FopenFlags,
        backing: Option<Arc<BackingId>>,
        reply: ReplyOpen,
    ) {
        let this = self.clone();
        if Arc::strong_count(&self.waiting) > WAITING_MAX {
            return let_in(handle, flags, backing.as_deref(), reply);
        }
        let wait = move || {
            let deadline = Instant::now() + WAIT_MAX;
            while this.is_closed(&database) && Instant::now() < deadline {
                thread::sleep(LOOK);
            }
            let_in(handle, flags, backing.as_deref(), reply);
        };
        // Without a thread the reply is dropped, which answers the opener with an error.
        if let Err(error) = thread::Builder::new().name("mount-bar".to_owned()).spawn(wait) {
            tracing::warn!("a file on the mount could not be opened: start a thread: {error}");
        }
    }
}

impl Drop for Barred {
    fn drop(&mut self) {
        let mut barred = self.bar.lock();
        if let Some(reason) = barred.get_mut(&self.database) {
            (reason.users, reason.until) = (reason.users - 1, None);
            if reason.users == 0 {
                barred.remove(&self.database);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_barred_until_the_last_who_wanted_it_lets_go() {
        let (bar, a, b) = (Bar::default(), Path::new("a.db"), Path::new("b.db"));
        let first = bar.close(a);
        let second = bar.close(a);
        drop(first);
        assert!(bar.is_closed(a) && !bar.is_closed(b));
        drop(second);
        assert!(!bar.is_closed(a) && bar.is_idle());
    }

    #[test]
    fn who_is_waited_for_may_come_or_not() {
        let (bar, a, b) = (Bar::default(), Path::new("a.db"), Path::new("b.db"));
        let later = Instant::now() + Duration::from_secs(1000);
        bar.close_until(a.to_owned(), later);
        bar.close_until(b.to_owned(), Instant::now());
        assert!(bar.is_closed(a) && !bar.is_closed(b));
        drop(bar.close(a));
        assert!(!bar.is_closed(a), "it was had");
        bar.close_until(a.to_owned(), later);
        bar.forget();
        assert!(!bar.is_closed(a) && bar.is_idle());
    }
}
