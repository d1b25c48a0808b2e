//! Writes of replicas, which the primary commits under a lock that it has lent ([`rhyolite_logic::lender`]). A client borrows the lock of whoever serves, or is thought to, and sends what is
//! to be committed until it hears what has become of it; or it goes away. Messages are lost, doubled and late; the primary loses its right, stands still, and ends.
//!
//! 1. What was sent under one id is committed once at most, and never when somebody heard that it was not.
//! 2. It is committed only where the lease says so, as what an application commits.
//! 3. Nobody else commits while the lock is lent, and the file is not rewritten under it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::{Checksum, Epoch, Pos};
use rhyolite_logic::lease::Monotonic;
use rhyolite_logic::lender::{Asked, Lender, Outcome, Write};
use rhyolite_writer::World;

use super::{net, truth};
use crate::executor::NodeId;
use crate::scenario::{MS, SECOND};
use crate::sim::{NodeWorld, Sim};

const DATABASE: &str = "db";
/// How long a lock is lent.
const TTL: Duration = Duration::from_secs(2);
/// Time between two looks at what is awaited.
const LOOK: u64 = 20 * MS;
/// How long something is awaited.
const PATIENCE: u64 = 3 * SECOND;
/// How often a client asks what has become of what it sent.
const TRIES: usize = 5;

/// The locks that a process has lent.
#[derive(Debug, Default)]
pub struct Lending {
    lender: Lender,
    held: BTreeMap<String, Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    content: Checksum,
    epoch: Epoch,
    /// The commit has begun.
    is_writing: bool,
    /// It was made, and the lock went back with it.
    is_done: bool,
}

impl Lending {
    /// Whether somebody else may not write.
    fn is_locked(&self) -> bool {
        self.held.values().any(|held| !held.is_done)
    }

    /// Whether a lock is lent under which nothing is being committed.
    pub fn is_idle(&self) -> bool {
        self.held.values().any(|held| !held.is_writing)
    }
}

fn now(sim: &Arc<Sim>, node: NodeId) -> Monotonic {
    NodeWorld { sim: Arc::clone(sim), node }.now()
}

/// The right that a node has at this moment.
fn right(sim: &Sim, node: NodeId) -> Option<Epoch> {
    // It looks at the clock, which is the node's.
    let handle = sim.node(node).handle.clone();
    handle.and_then(|handle| handle.right())
}

fn forwards(sim: &Sim) -> bool {
    sim.scenario.cluster.is_some_and(|cluster| cluster.forwards)
}

/// A node lends from here on.
pub fn open(sim: &Arc<Sim>, node: NodeId) {
    if forwards(sim) {
        sim.cluster().machine(node).lending.lender.open();
    }
}

/// A node lends nothing more, and takes back what is lent.
pub fn close(sim: &Arc<Sim>, node: NodeId) {
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.forward;
    if forwards(sim) && rules.close {
        let now = now(sim, node);
        let lending = &mut sim.cluster().machine(node).lending;
        // With those that are being taken.
        lending.held.retain(|_, held| held.is_writing);
        lending.lender.close(now);
    }
}

/// Whether the application has to wait for the lock.
pub fn keeps_out(sim: &Sim, node: NodeId) -> bool {
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.forward;
    rules.lock && sim.cluster().machine(node).lending.is_locked()
}

/// Takes the lock for `id`, and lets go of it when its time is over.
async fn take(sim: Arc<Sim>, node: NodeId, id: String) {
    let Some(epoch) = right(&sim, node) else { return end(&sim, node, &id, Outcome::Ended("no right".to_owned())) };
    let content = sim.node(node).disk.database().content;
    let held = Held { content, epoch, is_writing: false, is_done: false };
    sim.cluster().machine(node).lending.held.insert(id.clone(), held);
    let Some(pos) = captured(&sim, node, content).await else {
        return end(&sim, node, &id, Outcome::Ended("it is not captured".to_owned()));
    };
    let moment = now(&sim, node);
    let is_wanted = sim.cluster().machine(node).lending.lender.held(&id, pos, moment);
    if !is_wanted {
        sim.cluster().machine(node).lending.held.remove(&id);
        return;
    }
    sim.trace(|| format!("node {node} lends its lock at {content}"));
    loop {
        let moment = now(&sim, node);
        let due = {
            let lending = &mut sim.cluster().machine(node).lending;
            for id in lending.lender.expire(moment) {
                lending.held.remove(&id);
            }
            lending.lender.poll_timeout().filter(|_| lending.held.contains_key(&id))
        };
        let Some(due) = due else { return };
        let world = NodeWorld { sim: Arc::clone(&sim), node };
        world.sleep(moment.until(due).max(Duration::from_millis(1))).await;
    }
}

/// Waits until a content is captured, with all that came before it.
async fn captured(sim: &Arc<Sim>, node: NodeId, content: Checksum) -> Option<Pos> {
    let deadline = sim.timeline.now() + PATIENCE;
    loop {
        let pos = sim.node(node).disk.pos();
        let is_there = pos.is_some_and(|pos| sim.cluster().truth().has(pos.checksum, content));
        if is_there && sim.cluster().machine(node).captures.is_some() {
            return pos;
        }
        if sim.timeline.now() >= deadline {
            return None;
        }
        sim.timeline.sleep(LOOK).await;
    }
}

fn end(sim: &Arc<Sim>, node: NodeId, id: &str, outcome: Outcome) {
    let moment = now(sim, node);
    let lending = &mut sim.cluster().machine(node).lending;
    lending.lender.ended(id, outcome, moment);
    lending.held.remove(id);
}

/// Commits what has come, and says what has become of it.
async fn commit(sim: Arc<Sim>, node: NodeId, id: String, held: Held, content: Checksum) {
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.forward;
    let wait = sim.chance().skewed(0, 400 * MS);
    sim.timeline.sleep(wait).await;
    if rules.right && right(&sim, node) != Some(held.epoch) {
        return end(&sim, node, &id, Outcome::Ended("the right is over".to_owned()));
    }
    let before = {
        let node_of = sim.node(node);
        let mut database = node_of.disk.database();
        let before = database.content;
        database.commit(content);
        database.uncaptured.push((before, content));
        before
    };
    if let Some(held) = sim.cluster().machine(node).lending.held.get_mut(&id) {
        held.is_done = true;
    }
    truth::commit(&sim, node, before, content);
    truth::forwarded(&sim, node, &id, (held.content, before));
    let outcome = match captured(&sim, node, content).await {
        Some(pos) if right(&sim, node) == Some(held.epoch) => Outcome::Committed(pos.txid),
        _ => Outcome::Unknown("the role has ended".to_owned()),
    };
    end(&sim, node, &id, outcome);
}

/// What is to be committed comes to a node.
fn deliver(sim: &Arc<Sim>, node: NodeId, id: &str, content: Checksum) -> Write {
    let moment = now(sim, node);
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.forward;
    let (write, held) = {
        let lending = &mut sim.cluster().machine(node).lending;
        let write = lending.lender.begin_write(id, moment);
        let held = lending.held.get_mut(id).filter(|_| write == Write::Begin).map(|held| {
            held.is_writing = true;
            *held
        });
        (write, held)
    };
    if let Some(held) = held {
        sim.timeline.spawn(Some(node), commit(Arc::clone(sim), node, id.to_owned(), held, content));
    }
    let epoch = right(sim, node);
    if let (Write::Over(Outcome::Committed(_)), false, Some(epoch)) = (&write, rules.ids, epoch) {
        // Nobody remembers that it was done.
        let base = sim.node(node).disk.database().content;
        let (held, again) =
            (Held { content: base, epoch, is_writing: true, is_done: false }, content.get().rotate_left(11));
        sim.cluster().machine(node).lending.held.insert(id.to_owned(), held);
        sim.timeline.spawn(Some(node), commit(Arc::clone(sim), node, id.to_owned(), held, Checksum::from_crc(again)));
    }
    write
}

/// Borrows and writes until the applications commit no more.
pub async fn client(sim: Arc<Sim>, own: usize) {
    let quiet = sim.scenario.cluster.expect("a cluster").quiet;
    let mut number = 0u64;
    loop {
        let wait = sim.chance().between(50 * MS, 1500 * MS);
        sim.timeline.sleep(wait).await;
        if sim.timeline.now() + 2 * PATIENCE >= quiet {
            return;
        }
        let serving: Vec<NodeId> =
            (0..sim.scenario.nodes).filter(|node| sim.cluster().machine(*node).captures.is_some()).collect();
        let (from, to) = {
            let mut chance = sim.chance();
            let from = chance.below(sim.scenario.nodes as u64) as NodeId;
            let to = serving.get(chance.below(serving.len().max(1) as u64) as usize).copied();
            (from, to)
        };
        if let Some(to) = to.filter(|to| *to != from) {
            number += 1;
            one(&sim, from, to, &format!("write {own}.{number}")).await;
        }
    }
}

async fn one(sim: &Arc<Sim>, from: NodeId, to: NodeId, id: &str) {
    if !borrow(sim, from, to, id).await {
        return;
    }
    let wait = sim.chance().skewed(0, 3 * SECOND);
    sim.timeline.sleep(wait).await;
    if sim.chance().permille(100) {
        // It has gone away.
        return;
    }
    let content = Checksum::from_crc(sim.chance().draw());
    for _ in 0..TRIES {
        if net::carry(sim, from, to).await {
            let first = deliver(sim, to, id, content);
            if let Some(more) = net::doubled(sim) {
                let (own, id) = (Arc::clone(sim), id.to_owned());
                sim.timeline.spawn(None, async move {
                    own.timeline.sleep(more).await;
                    if net::carry(&own, from, to).await {
                        deliver(&own, to, &id, content);
                    }
                });
            }
            let outcome = outcome(sim, to, id, first).await;
            if let Some(outcome) = outcome
                && net::answer(sim, to, from).await
            {
                return truth::heard(sim, id, &outcome);
            }
        }
        let wait = sim.chance().between(20 * MS, 500 * MS);
        sim.timeline.sleep(wait).await;
    }
}

/// Asks for the lock until it is held. `false` when it is not.
async fn borrow(sim: &Arc<Sim>, from: NodeId, to: NodeId, id: &str) -> bool {
    if !net::carry(sim, from, to).await {
        return false;
    }
    let deadline = sim.timeline.now() + PATIENCE;
    while sim.timeline.now() < deadline {
        let moment = now(sim, to);
        let asked = sim.cluster().machine(to).lending.lender.ask(id, DATABASE, TTL, moment);
        match asked {
            Asked::Take => sim.timeline.spawn(Some(to), take(Arc::clone(sim), to, id.to_owned())),
            Asked::Held { .. } => return net::answer(sim, to, from).await,
            Asked::Wait | Asked::Taken => {}
            Asked::Over(_) | Asked::Closed => return false,
        }
        sim.timeline.sleep(LOOK).await;
    }
    false
}

/// What has become of what was sent, as soon as the node says so.
async fn outcome(sim: &Arc<Sim>, node: NodeId, id: &str, first: Write) -> Option<Outcome> {
    let (mut write, deadline) = (first, sim.timeline.now() + PATIENCE);
    loop {
        match write {
            Write::Over(outcome) => return Some(outcome),
            Write::Unknown => return None,
            Write::Begin | Write::Wait if sim.timeline.now() >= deadline => return None,
            Write::Begin | Write::Wait => {}
        }
        sim.timeline.sleep(LOOK).await;
        let moment = now(sim, node);
        let lending = &mut sim.cluster().machine(node).lending;
        // Asked while it is done, it only answers; it is not begun by this.
        write = match lending.held.get(id) {
            Some(held) if held.is_writing => Write::Wait,
            _ => lending.lender.begin_write(id, moment),
        };
        if write == Write::Begin {
            // It was delivered before; only what is held and not begun gets here, and that never was.
            lending.lender.ended(id, Outcome::Ended("it was never begun".to_owned()), moment);
            lending.held.remove(id);
            return None;
        }
    }
}
