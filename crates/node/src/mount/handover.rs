//! The handover: who opens the wal-index of a new database waits until we have let go of the one that had its name before.
//!
//! A database may be removed, or replaced, and made anew while its `-shm` stays. SQLite trusts a wal-index that another connection holds. Ours
//! holds that of the old database for some milliseconds more, so the first connection to the new one would take the old index for its own. The folder
//! that both lie in is not locked while the kernel waits for the answer to an open, so we can let go meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackingId, FileHandle, FopenFlags, INodeNo, ReplyOpen};
use rustix::fs::{AtFlags, statat};

use super::door;
use super::nodes::{Node, Nodes};

/// Nobody waits longer than this, whatever holds us up.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether we have let go.
const LOOK: Duration = Duration::from_millis(1);
/// So many wait at a time; others go in at once.
const WAITING_MAX: usize = 32;

/// A wal-index that our own process has open.
#[derive(Clone, Copy, Debug)]
struct Held {
    wal_index: u64,
    /// The file that was the database when it was opened.
    database: Option<u64>,
}

/// Wal-indexes that our own process has open, by their handles.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover {
    held: Arc<Mutex<HashMap<u64, Held>>>,
    /// A clone for each that waits.
    waiting: Arc<()>,
}

/// A wal-index that was opened, and whose opener waits.
#[derive(Debug)]
pub(super) struct Opened {
    wal_index: u64,
    database: Option<u64>,
}

impl Handover {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a file that a thread has opened; tells when it is to wait.
    pub(super) fn opened(&self, pid: u32, node: &Node, nodes: &Nodes, handle: FileHandle) -> Option<Opened> {
        let place = node.place();
        let base = place.name.as_bytes().strip_suffix(b"-shm").filter(|base| !base.is_empty())?;
        let folder = nodes.get(INodeNo(place.parent)).ok()?;
        let stat = statat(&folder.fd, OsStr::from_bytes(base), AtFlags::SYMLINK_NOFOLLOW);
        let opened = Opened { wal_index: node.inode, database: stat.ok().map(|stat| stat.st_ino) };
        if door::is_own(pid) {
            self.lock().insert(handle.0, Held { wal_index: opened.wal_index, database: opened.database });
            return None;
        }
        self.is_held_for_another(&opened).then_some(opened)
    }

    /// A file was closed.
    pub(super) fn closed(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    fn is_held_for_another(&self, opened: &Opened) -> bool {
        let held = self.lock();
        held.values().any(|held| held.wal_index == opened.wal_index && held.database != opened.database)
    }

    /// Tells the opener when we have let go.
    pub(super) fn wait(
        &self,
        opened: Opened,
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
            while this.is_held_for_another(&opened) && Instant::now() < deadline {
                thread::sleep(LOOK);
            }
            let_in(handle, flags, backing.as_deref(), reply);
        };
        // Without a thread the reply is dropped, which answers the opener with an error.
        if let Err(error) = thread::Builder::new().name("mount-handover".to_owned()).spawn(wait) {
            tracing::warn!("a file on the mount could not be opened: start a thread: {error}");
        }
    }
}

/// Answers an open.
pub(super) fn let_in(handle: FileHandle, flags: FopenFlags, backing: Option<&BackingId>, reply: ReplyOpen) {
    match backing {
        Some(backing) => reply.opened_passthrough(handle, flags, backing),
        None => reply.opened(handle, flags),
    }
}
