//! What happens to the machines of a cluster from outside.

use std::sync::Arc;

use super::account::Account;
use super::driver::{self, Event};
use super::forward::{self, Lending};
use super::guard::{self, Told};
use super::machine::{Frozen, application_of, guard_of};
use crate::director::{cut_time, freezing_time, jump};
use crate::executor::NodeId;
use crate::scenario::MS;
use crate::sim::Sim;

/// Share of machines, of a thousand, that have no database at first.
const EMPTY: u64 = 600;
/// A loss of power takes so many commits at most that were not synced.
const UNSYNCED_MAX: u64 = 7;

/// Clients that write through replicas.
const CLIENTS: usize = 2;

/// Starts everything, and lets things happen until the weather is calm.
pub fn begin(sim: &Arc<Sim>) {
    for id in 0..sim.scenario.nodes {
        let is_empty = sim.chance().permille(EMPTY);
        let mut node = sim.node(id);
        node.disk.boot = [1; 16];
        let content = {
            let mut database = node.disk.database();
            database.exists = !is_empty;
            database.content
        };
        drop(node);
        if !is_empty {
            sim.cluster().truth().root(content);
        }
        driver::start(sim, id);
    }
    sim.timeline.spawn(None, direct(Arc::clone(sim)));
    if sim.scenario.cluster.is_some_and(|cluster| cluster.forwards) {
        for client in 0..CLIENTS {
            sim.timeline.spawn(None, forward::client(Arc::clone(sim), client));
        }
    }
}

async fn direct(sim: Arc<Sim>) {
    loop {
        let mean = sim.scenario.weather.events;
        let wait = sim.chance().between(mean / 10, 2 * mean);
        sim.timeline.sleep(wait).await;
        if !sim.is_stormy() {
            break;
        }
        happen(&sim);
    }
    sim.trace(|| "calm".to_owned());
    for id in 0..sim.scenario.nodes {
        sim.node(id).cut_until = 0;
        sim.cluster().machine(id).alone_until = 0;
        thaw(&sim, id);
        driver::start(&sim, id);
    }
}

fn happen(sim: &Arc<Sim>) {
    let (id, roll) = {
        let mut chance = sim.chance();
        (chance.below(sim.scenario.nodes as u64) as NodeId, chance.below(100))
    };
    match roll {
        0..14 => lose_power(sim, sim.scenario.cluster.and_then(|cluster| cluster.frail).unwrap_or(id)),
        14..26 => crash(sim, id),
        26..31 => kill_guard(sim, id),
        31..48 => drop(freeze(sim, id)),
        48..56 => cut_store(sim, id),
        56..64 => leave_alone(sim, id),
        64..68 => (0..sim.scenario.nodes).for_each(|id| cut_store(sim, id)),
        68..86 => (0..sim.scenario.nodes).for_each(|id| tell(sim, id, &Event::Handoff)),
        86..92 => tell(sim, id, &Event::Stop),
        92..95 => end_application(sim, id),
        95..100 => jump(sim, id),
        _ => unreachable!("of a hundred"),
    }
}

fn tell(sim: &Arc<Sim>, id: NodeId, event: &Event) {
    if let Some(events) = &sim.cluster().machine(id).events {
        // A driver that is gone hears nothing.
        let _ = events.send(event.clone());
    }
}

/// A node has ended by itself.
pub fn ended(sim: &Arc<Sim>, id: NodeId) {
    forget(sim, id);
    sim.timeline.kill(id);
    start_later(sim, id);
}

/// What a node knew is gone.
fn forget(sim: &Arc<Sim>, id: NodeId) {
    {
        let mut machine = sim.cluster().machine(id);
        (machine.runs, machine.events, machine.captures) = (false, None, None);
        (machine.is_capturing, machine.account) = (false, Account::default());
        machine.lending = Lending::default();
    }
    let mut node = sim.node(id);
    (node.handle, node.session) = (None, None);
}

fn start_later(sim: &Arc<Sim>, id: NodeId) {
    let longest = if sim.is_stormy() { 15_000 * MS } else { 500 * MS };
    let wait = sim.chance().skewed(50 * MS, longest);
    let own = Arc::clone(sim);
    sim.timeline.spawn(None, async move {
        own.timeline.sleep(wait).await;
        driver::start(&own, id);
    });
}

/// The process of a node is killed. Its guard notices.
pub fn crash(sim: &Arc<Sim>, id: NodeId) {
    {
        let mut machine = sim.cluster().machine(id);
        if !machine.runs || machine.frozen.is_some_and(|frozen| frozen.whole) {
            return;
        }
        machine.frozen = None;
    }
    sim.trace(|| format!("node {id} is killed"));
    forget(sim, id);
    sim.timeline.kill(id);
    start_later(sim, id);
}

/// Everything on a machine ends at once, and what was not synced is gone.
fn lose_power(sim: &Arc<Sim>, id: NodeId) {
    sim.trace(|| format!("machine {id} loses power"));
    let was_down = !sim.cluster().machine(id).runs;
    forget(sim, id);
    {
        let mut machine = sim.cluster().machine(id);
        (machine.has_guard, machine.has_application, machine.signal, machine.frozen) = (false, false, None, None);
    }
    let nodes = sim.scenario.nodes;
    for task in [id, guard_of(nodes, id), application_of(nodes, id)] {
        sim.timeline.kill(task);
    }
    {
        let mut chance = sim.chance();
        let mut node = sim.node(id);
        node.disk.lose_power(&mut chance);
        node.disk.boot[0] = node.disk.boot[0].wrapping_add(1).max(1);
        let mut database = node.disk.database();
        let back = chance.below(UNSYNCED_MAX).min(database.earlier.len() as u64);
        for _ in 0..back {
            database.content = database.earlier.pop().expect("counted");
        }
        database.uncaptured.clear();
    }
    if !was_down {
        start_later(sim, id);
    }
}

/// The guard of a machine is killed, and the system ends the application with it.
fn kill_guard(sim: &Arc<Sim>, id: NodeId) {
    if !sim.cluster().machine(id).has_guard {
        return;
    }
    sim.trace(|| format!("guard {id} is killed"));
    sim.timeline.kill(guard_of(sim.scenario.nodes, id));
    guard::kill(sim, id);
    sim.cluster().machine(id).has_guard = false;
    tell(sim, id, &Event::Told(Told::Gone));
}

fn end_application(sim: &Arc<Sim>, id: NodeId) {
    if let Some(signal) = &sim.cluster().machine(id).signal {
        signal.send_replace(true);
    }
}

/// Freezes a node, or all of its machine, and says for how long.
pub fn freeze(sim: &Arc<Sim>, id: NodeId) -> Option<u64> {
    let time = freezing_time(sim);
    let whole = sim.chance().permille(400);
    let now = sim.timeline.now();
    let number = {
        let mut machine = sim.cluster().machine(id);
        if !machine.runs || machine.frozen.is_some() {
            return None;
        }
        machine.frozen = Some(Frozen { since: now, whole });
        machine.freezes += 1;
        machine.freezes
    };
    let what = if whole { "machine" } else { "node" };
    sim.trace(|| format!("{what} {id} is frozen for {} ms", time / MS));
    hold(sim, id, whole);
    let own = Arc::clone(sim);
    sim.timeline.spawn(None, async move {
        own.timeline.sleep(time).await;
        if own.cluster().machine(id).freezes == number {
            thaw(&own, id);
        }
    });
    Some(time)
}

fn hold(sim: &Sim, id: NodeId, whole: bool) {
    let nodes = sim.scenario.nodes;
    sim.timeline.hold(id);
    if whole {
        sim.timeline.hold(guard_of(nodes, id));
        sim.timeline.hold(application_of(nodes, id));
    }
}

fn thaw(sim: &Arc<Sim>, id: NodeId) {
    let now = sim.timeline.now();
    let frozen = {
        let mut machine = sim.cluster().machine(id);
        let frozen = machine.frozen.take();
        if let Some(whole) = frozen.filter(|frozen| frozen.whole) {
            machine.stood = Some((whole.since, now));
        }
        frozen
    };
    let Some(frozen) = frozen else { return };
    sim.trace(|| format!("{} {id} goes on", if frozen.whole { "machine" } else { "node" }));
    let nodes = sim.scenario.nodes;
    sim.timeline.go(id);
    if frozen.whole {
        sim.timeline.go(guard_of(nodes, id));
        sim.timeline.go(application_of(nodes, id));
    }
}

fn cut_store(sim: &Arc<Sim>, id: NodeId) {
    let time = cut_time(sim);
    sim.trace(|| format!("node {id} does not reach the store for {} ms", time / MS));
    sim.node(id).cut_until = sim.timeline.now() + time;
}

fn leave_alone(sim: &Arc<Sim>, id: NodeId) {
    let time = cut_time(sim);
    sim.trace(|| format!("node {id} reaches no other for {} ms", time / MS));
    sim.cluster().machine(id).alone_until = sim.timeline.now() + time;
}
