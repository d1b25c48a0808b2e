//! A machine as the outside sees it: what runs on it, and whom it reaches.

use rhyolite_format::{Epoch, Lineage};
use tokio::sync::{mpsc, watch};

use super::account::Account;
use super::driver::Event;
use super::forward::Lending;
use crate::executor::NodeId;

/// What runs on a machine.
#[derive(Debug, Default)]
pub struct Machine {
    /// The how manieth process of the node it is, or was.
    pub life: u64,
    /// The node runs.
    pub runs: bool,
    /// The guard runs, and with it the folder is locked.
    pub has_guard: bool,
    /// The application runs.
    pub has_application: bool,
    /// Tells the application to stop.
    pub signal: Option<watch::Sender<bool>>,
    /// The way to the node's driver.
    pub events: Option<mpsc::UnboundedSender<Event>>,
    /// Whose commits are captured here, and under which right; there is something to follow.
    pub captures: Option<(Lineage, Epoch)>,
    /// The node captures, or is to.
    pub is_capturing: bool,
    /// What it knows of those who follow it, and what the lease says of them.
    pub account: Account,
    /// Locks that it has lent.
    pub lending: Lending,
    /// No other node is reached before this time, in microseconds.
    pub alone_until: u64,
    /// The node, or all of the machine, stands still.
    pub frozen: Option<Frozen>,
    /// From when to when the machine stood still as a whole the last time.
    pub stood: Option<(u64, u64)>,
    /// Freezes so far.
    pub freezes: u64,
}

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Since when, in microseconds.
    pub since: u64,
    /// Guard and application, too.
    pub whole: bool,
}

impl Machine {
    /// The name of the guard of a life, as a lease has it.
    pub fn process(node: NodeId, life: u64) -> String {
        format!("guard {node} {life}")
    }

    /// Whether a process, as the lease names it, is one of this machine that is gone.
    pub fn is_dead(&self, node: NodeId, process: &str) -> bool {
        let is_ours = process.strip_prefix(&format!("guard {node} ")).is_some();
        is_ours && !(self.has_guard && process == Self::process(node, self.life))
    }
}

/// The number under which the guard of a node is run.
pub fn guard_of(nodes: usize, node: NodeId) -> NodeId {
    nodes + node
}

/// The number under which the application of a node is run.
pub fn application_of(nodes: usize, node: NodeId) -> NodeId {
    2 * nodes + node
}
