//! Looks into journals whose end nobody may tell: those of connections that never sync, and zero the header.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::nodes::Node;

/// A commit is noticed after this, when no other has come.
const EVERY: Duration = Duration::from_millis(50);

/// Names databases to the thread that looks.
#[derive(Debug)]
pub(super) struct Unsynced {
    named: Sender<Arc<Node>>,
}

impl Unsynced {
    /// Starts the thread, which has the descriptors of this one. It ends with the result.
    pub(super) fn new() -> io::Result<Self> {
        let (named, names) = mpsc::channel();
        thread::Builder::new().name("mount-unsynced".to_owned()).spawn(move || run(&names))?;
        Ok(Self { named })
    }

    /// Looks into the journal of this database until nobody has it open.
    pub(super) fn name(&self, node: Arc<Node>) {
        let sent = self.named.send(node);
        assert!(sent.is_ok(), "the thread lives as long as this");
    }
}

fn run(names: &Receiver<Arc<Node>>) {
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    while let Ok(node) = names.recv() {
        nodes.push(node);
        while !nodes.is_empty() {
            let next = Instant::now() + EVERY;
            loop {
                match names.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(node) => nodes.push(node),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            nodes.retain(|node| node.database.look_at_unsynced(|| node.open(OFlags::RDONLY)));
        }
    }
}
