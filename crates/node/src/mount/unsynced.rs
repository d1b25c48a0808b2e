//! Looks into journals whose end nobody may tell: those of connections that never sync, and zero the header.
//!
//! It is done by a thread of the mount, whose descriptors are not those of the process: for databases that it knows of, from time to time, and for capture, which
//! takes a change that no commit explains for one that nobody can tell.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::nodes::Node;

/// A commit is noticed after this, when no other has come.
const EVERY: Duration = Duration::from_millis(50);
/// Longest wait for a look. Without it all pages are compared.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What the thread is asked for.
#[derive(Debug)]
enum Asked {
    /// To look into the journal of this database until nobody has it open.
    Watch(Arc<Node>),
    /// To look now, and tell when that is done.
    Look(Weak<Node>, SyncSender<()>),
    /// To end: the mount does.
    Stop,
}

/// Names databases to the thread that looks.
#[derive(Debug)]
pub(super) struct Unsynced {
    asked: Sender<Asked>,
}

impl Unsynced {
    /// Starts the thread, which has the descriptors of this one. It ends with the result.
    pub(super) fn new() -> io::Result<Self> {
        let (asked, questions) = mpsc::channel();
        thread::Builder::new().name("mount-unsynced".to_owned()).spawn(move || run(&questions))?;
        Ok(Self { asked })
    }

    /// Looks into the journal of this database until nobody has it open.
    pub(super) fn watch(&self, node: Arc<Node>) {
        if self.asked.send(Asked::Watch(node)).is_err() {
            tracing::warn!("nobody looks into journals any more: the last commit is captured with the next one");
        }
    }

    /// Has the thread look at a database, and waits for it. Whoever calls it may have other descriptors.
    pub(super) fn looker(&self, node: &Arc<Node>) -> impl Fn() + Send + Sync + use<> {
        let (asked, node) = (self.asked.clone(), Arc::downgrade(node));
        move || {
            let (done, is_done) = mpsc::sync_channel(1);
            if asked.send(Asked::Look(Weak::clone(&node), done)).is_ok()
                && is_done.recv_timeout(WAIT_MAX) == Err(RecvTimeoutError::Timeout)
            {
                tracing::warn!("nobody has looked into a journal in time: commits may be folded into one");
            }
        }
    }
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.asked.send(Asked::Stop);
    }
}

fn run(questions: &Receiver<Asked>) {
    let mut watched: Vec<Arc<Node>> = Vec::new();
    let mut next = Instant::now();
    loop {
        if !watched.is_empty() && Instant::now() >= next {
            watched.retain(|node| node.database.look_at_unsynced(|| node.open(OFlags::RDONLY)));
            next = Instant::now() + EVERY;
        }
        let asked = match watched.is_empty() {
            true => questions.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => questions.recv_timeout(next.saturating_duration_since(Instant::now())),
        };
        match asked {
            Ok(Asked::Watch(node)) => {
                if watched.is_empty() {
                    next = Instant::now() + EVERY;
                }
                watched.push(node);
            }
            Ok(Asked::Look(node, done)) => {
                if let Some(node) = node.upgrade() {
                    node.database.look_at_journal(|| node.open(OFlags::RDONLY));
                }
                // Whoever asked may have waited long enough.
                let _ = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Asked::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
