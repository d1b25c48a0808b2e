//! The door: right after a mount, whoever opens a database that was captured before waits until it is captured again.
//!
//! After a kill the log is first to be brought to what the database holds. Commits made in the meantime would become one restore point;
//! a moment's wait at the door keeps them apart. Nobody can be within already: files that were opened on the mount before are
//! dead. Our own process does not wait, for it is who captures. Databases without a state folder are new, and wait for nothing.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use fuser::{FileHandle, FopenFlags, INodeNo, ReplyOpen};
use rustix::fs::{AtFlags, statat};

use super::nodes::{Node, Nodes, Place};
use crate::capture::commits::{CommitLine, CommitLines};
use crate::capture::restart::STATE_FILE;
use crate::config::default_meta_path;
use crate::follow::replica::released_path;

/// Nobody waits longer than this after the mount, whatever is the matter with a database.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether a database is captured.
const LOOK: Duration = Duration::from_millis(2);

/// An open file whose opener was not told yet.
struct Waiting {
    line: Arc<CommitLine>,
    handle: FileHandle,
    flags: FopenFlags,
    reply: ReplyOpen,
}

/// The door of a mount.
#[derive(Debug)]
pub(super) struct Door {
    closed_until: Instant,
    /// Gone when nobody waits any more.
    waiting: Arc<Mutex<Option<Sender<Waiting>>>>,
}

impl Door {
    /// A door that opens for each database when it is captured, and for all after a while.
    pub(super) fn new() -> io::Result<Self> {
        let closed_until = Instant::now() + WAIT_MAX;
        let (sender, come) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(Some(sender)));
        let own = Arc::clone(&waiting);
        let keep = move || {
            let waiting = keep(&come, closed_until);
            own.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Until the sender was gone more may have come; after that nobody is sent here.
            waiting.into_iter().chain(come).for_each(let_in);
        };
        thread::Builder::new().name("mount-door".to_owned()).spawn(keep)?;
        Ok(Self { closed_until, waiting })
    }

    /// What a process that opens this file has to wait for, if it is a database that was captured before.
    pub(super) fn closed_for(
        &self,
        pid: u32,
        node: &Node,
        nodes: &Nodes,
        lines: &CommitLines,
    ) -> Option<Arc<CommitLine>> {
        if Instant::now() >= self.closed_until {
            return None;
        }
        let line = lines.of(node.inode);
        let waits = !line.is_opened() && !is_own(pid) && was_captured(nodes, &node.place());
        waits.then_some(line)
    }

    /// Tells the opener when it is time.
    pub(super) fn wait(&self, line: Arc<CommitLine>, handle: FileHandle, flags: FopenFlags, reply: ReplyOpen) {
        let one = Waiting { line, handle, flags, reply };
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let late = match &*waiting {
            Some(sender) => sender.send(one).err().map(|unsent| unsent.0),
            None => Some(one),
        };
        late.into_iter().for_each(let_in);
    }
}

/// It has a state folder that says something.
pub(super) fn was_captured(nodes: &Nodes, place: &Place) -> bool {
    has_beside(nodes, place, &default_meta_path(Path::new(&place.name)).join(STATE_FILE))
}

/// It was a replica's before this node became the primary: the history has it, and capture goes on from there.
pub(super) fn was_followed(nodes: &Nodes, place: &Place) -> bool {
    has_beside(nodes, place, &released_path(Path::new(&place.name)))
}

fn has_beside(nodes: &Nodes, place: &Place, file: &Path) -> bool {
    let Ok(folder) = nodes.get(INodeNo(place.parent)) else { return false };
    statat(&folder.fd, file, AtFlags::empty()).is_ok_and(|stat| stat.st_size > 0)
}

/// A thread of this process; the kernel names threads.
pub(super) fn is_own(pid: u32) -> bool {
    std::fs::metadata(format!("/proc/self/task/{pid}")).is_ok()
}

/// Lets in whoever may go in, until the door stays open. Gives those who still wait.
fn keep(come: &Receiver<Waiting>, closed_until: Instant) -> Vec<Waiting> {
    let mut waiting: Vec<Waiting> = Vec::new();
    while let Some(left) = closed_until.checked_duration_since(Instant::now()) {
        match come.recv_timeout(if waiting.is_empty() { left } else { left.min(LOOK) }) {
            Ok(one) => waiting.push(one),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let (in_time, still) = waiting.into_iter().partition(|one| one.line.is_opened());
        waiting = still;
        let in_time: Vec<Waiting> = in_time;
        in_time.into_iter().for_each(let_in);
    }
    waiting
}

fn let_in(one: Waiting) {
    one.reply.opened(one.handle, one.flags);
}
