//! Nodes that form a cluster: whoever has the lease runs the application, the others follow.
//!
//! ```text
//!   lease keeper ──┐                    ┌─► follow      a stream from the primary, and the store through it
//!   guard ─────────┤                    ├─► prepare     the end of the log, fenced; the file there
//!   events ────────┼─► role machine ────┼─► capture     sessions under a lent lease
//!   what has ended ┘     (driver)       └─► application (guard)
//! ```
//!
//! A machine has three that run: the node, the guard of its application, and the application. Each can be frozen or end without the others. Decisions are
//! `logic`'s and the order of requests is `writer`'s; what is here does what they say. A file is what its content is: [`truth`] knows from which content
//! each was made, and so what is a prefix of what.

pub mod account;
pub mod capture;
pub mod catalog;
pub mod director;
pub mod driver;
pub mod files;
pub mod follow;
pub mod forward;
pub mod guard;
pub mod machine;
pub mod net;
pub mod prepare;
pub mod rejoin;
pub mod rules;
pub mod serve;
pub mod truth;
pub mod witness;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::executor::NodeId;
use machine::Machine;
use truth::Truth;

/// What the nodes of a cluster share, and what each machine is to the outside.
#[derive(Debug)]
pub struct Shared {
    machines: Vec<Mutex<Machine>>,
    truth: Mutex<Truth>,
}

impl Shared {
    /// Machines on which nothing runs.
    pub fn new(nodes: usize) -> Self {
        Self { machines: (0..nodes).map(|_| Mutex::default()).collect(), truth: Mutex::default() }
    }

    /// A machine.
    pub fn machine(&self, node: NodeId) -> MutexGuard<'_, Machine> {
        self.machines[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is true.
    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
