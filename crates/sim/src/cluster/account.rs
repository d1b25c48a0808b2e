//! What a primary knows of those who follow it, what it has asked the lease to say of them, and whom it tells by that that a commit is safe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhyolite_format::lease::Witnesses;
use rhyolite_format::{Checksum, Lineage, Pos};
use rhyolite_logic::lease::Standing;
use rhyolite_logic::witness::Ledger;
use rhyolite_writer::lease_keeper::LeaseHandle;

use super::truth;
use crate::executor::NodeId;
use crate::scenario::{MS, SECOND};
use crate::sim::Sim;

/// For so long a node whose stream has ended is awaited, in microseconds.
const AWAITED: u64 = SECOND;

/// The account of a process.
#[derive(Debug, Default)]
pub struct Account {
    /// How far they are.
    pub ledger: Ledger,
    /// Who is here, and who was.
    present: BTreeMap<String, Present>,
    /// The taking of the lease under which somebody is told something.
    pub tenure: Option<u64>,
    /// What the lease is to say, once that was decided in this tenure.
    pub wish: Option<Option<Witnesses>>,
    /// Somebody is served.
    pub is_open: bool,
    /// How often that has begun.
    pub openings: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Present {
    /// Streams that are open.
    streams: u32,
    /// When the last one ended.
    left: u64,
}

impl Account {
    /// Databases are served under this taking of the lease. What was told under it before stays told.
    pub fn begin(&mut self, tenure: Option<u64>) {
        if self.tenure != tenure {
            (self.ledger, self.wish, self.tenure) = (Ledger::default(), None, tenure);
        }
        self.ledger.forget_reached();
    }

    /// The lease was given up: takings are counted anew.
    pub fn end(&mut self) {
        (self.tenure, self.wish, self.is_open) = (None, None, false);
    }

    /// Who is here, and whether somebody who was is awaited.
    pub fn present(&self, now: u64) -> (BTreeSet<String>, BTreeSet<String>) {
        let names = |is_one: &dyn Fn(&Present) -> bool| {
            self.present.iter().filter(|(_, present)| is_one(present)).map(|(name, _)| name.clone()).collect()
        };
        (names(&|present| present.streams > 0), names(&|present| present.streams == 0 && now < present.left + AWAITED))
    }
}

/// A stream of a node that has shown to be on the way of our log, for as long as it is open.
#[derive(Debug)]
pub struct Follower {
    sim: Arc<Sim>,
    primary: NodeId,
    name: String,
    is_here: bool,
}

impl Follower {
    /// A stream that begins.
    pub fn new(sim: &Arc<Sim>, primary: NodeId, replica: NodeId) -> Self {
        Self { sim: Arc::clone(sim), primary, name: format!("node {replica}"), is_here: false }
    }

    /// It says where it is.
    pub fn reached(&mut self, lineage: Lineage, pos: Pos) {
        let rules = self.sim.scenario.cluster.expect("a cluster").rules.node.witness;
        let is_ours = is_captured(&self.sim, self.primary, pos);
        let mut machine = self.sim.cluster().machine(self.primary);
        let is_served = machine.captures.is_some_and(|(ours, _)| ours == lineage);
        if !is_served || (rules.reached_position && !is_ours) {
            return;
        }
        machine.account.ledger.note(&self.name, pos.txid);
        if !self.is_here {
            self.is_here = true;
            machine.account.present.entry(self.name.clone()).or_default().streams += 1;
        }
    }

    /// It has ended.
    pub fn end(self) {
        let now = self.sim.timeline.now();
        let mut machine = self.sim.cluster().machine(self.primary);
        if let Some(present) = machine.account.present.get_mut(&self.name).filter(|_| self.is_here) {
            (present.streams, present.left) = (present.streams.saturating_sub(1), now);
        }
    }
}

/// Whether a position is one of what a node has captured, as far as its local log tells.
fn is_captured(sim: &Sim, node: NodeId, pos: Pos) -> bool {
    let node = sim.node(node);
    let state = node.disk.state.as_ref();
    let known = state.into_iter().flat_map(|state| [state.pos, state.durable]).flatten();
    let entries = node.disk.log.iter().flat_map(|s| &s.segment.entries).map(|entry| entry.end());
    known.chain(entries).any(|own| own == pos)
}

/// Tells whoever asks which commits are safe, until nobody is served any more.
pub async fn tell(sim: Arc<Sim>, node: NodeId, lease: LeaseHandle) {
    let opening = sim.cluster().machine(node).account.openings;
    loop {
        let wait = sim.chance().between(5 * MS, 200 * MS);
        sim.timeline.sleep(wait).await;
        {
            let machine = sim.cluster().machine(node);
            if !machine.account.is_open || machine.account.openings != opening {
                return;
            }
        }
        if let Some(content) = safe(&sim, node, &lease) {
            truth::promise(&sim, node, content);
        }
    }
}

/// The content of the last commit that may be told to be safe, if any may.
fn safe(sim: &Sim, node: NodeId, lease: &LeaseHandle) -> Option<Checksum> {
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.witness;
    if rules.right_at_tell && lease.right().is_none() {
        return None;
    }
    let own = format!("node {node}");
    let said = lease.witnesses().filter(|said| said.of == own);
    let is_same = |tenure| matches!(lease.standing(), Standing::Ours { origin, .. } if Some(origin.tenure) == tenure);
    let disk_end = sim.node(node).disk.pos()?;
    let mut machine = sim.cluster().machine(node);
    let account = &mut machine.account;
    if rules.right_at_tell && !is_same(account.tenure) {
        return None;
    }
    let wish = account.wish.clone()??;
    let lists = if rules.lists { vec![said?, wish] } else { vec![wish] };
    let txid = account.ledger.safe(&lists)?.min(disk_end.txid);
    drop(machine);
    let content = {
        let node = sim.node(node);
        let mut entries = node.disk.log.iter().flat_map(|s| &s.segment.entries).map(|entry| entry.end());
        let at = if disk_end.txid == txid { Some(disk_end) } else { entries.find(|pos| pos.txid == txid) };
        at?.checksum
    };
    sim.cluster().machine(node).account.ledger.tell(txid, &lists).then_some(content)
}
