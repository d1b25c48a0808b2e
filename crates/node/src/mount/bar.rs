//! The bar: who opens a database waits while the node needs it for itself.
//!
//! A file that a node is to bring back to the history is locked as a whole for a moment. Readers who open it again and again would keep it from that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};

use super::handover::let_in;

/// Nobody waits longer than this.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether the wait is over.
const LOOK: Duration = Duration::from_millis(1);
/// So many wait at a time; others go in at once.
const WAITING_MAX: usize = 256;

/// Databases that are barred, by their inodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Bar {
    barred: Arc<Mutex<HashMap<u64, usize>>>,
    /// A clone for each that waits.
    waiting: Arc<()>,
}

/// A database is barred for as long as this lives.
#[derive(Debug)]
pub(super) struct Barred {
    bar: Bar,
    database: u64,
}

impl Bar {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.barred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bars a database.
    pub(super) fn close(&self, database: u64) -> Barred {
        *self.lock().entry(database).or_default() += 1;
        Barred { bar: self.clone(), database }
    }

    /// Whether who opens this file is to wait.
    pub(super) fn is_closed(&self, database: u64) -> bool {
        self.lock().contains_key(&database)
    }

    /// Tells the opener when the database is not barred any more.
    pub(super) fn wait(
        &self,
        database: u64,
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
            while this.is_closed(database) && Instant::now() < deadline {
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
        if let Some(count) = barred.get_mut(&self.database) {
            *count -= 1;
            if *count == 0 {
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
        let bar = Bar::default();
        let first = bar.close(7);
        let second = bar.close(7);
        drop(first);
        assert!(bar.is_closed(7) && !bar.is_closed(8));
        drop(second);
        assert!(!bar.is_closed(7));
    }
}
