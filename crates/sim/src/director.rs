//! What happens to the nodes from outside: crashes, frozen processes, cut networks, clocks that jump, and an operator.

use std::sync::Arc;

use rhyolite_logic::lease::LastWill;

use crate::cluster;
use crate::executor::NodeId;
use crate::node;
use crate::scenario::{MS, SECOND};
use crate::sim::Sim;

/// Starts everything, and lets things happen until the weather is calm.
pub async fn direct(sim: Arc<Sim>) {
    for id in 0..sim.scenario.nodes {
        node::start(&sim, id, false);
    }
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
        thaw(&sim, id);
        node::start(&sim, id, true);
    }
}

fn happen(sim: &Arc<Sim>) {
    let (id, roll) = {
        let mut chance = sim.chance();
        let meddles = chance.permille(sim.scenario.weather.put_backs);
        (chance.below(sim.scenario.nodes as u64) as NodeId, if meddles { 99 } else { chance.below(90) })
    };
    match roll {
        0..20 => crash(sim, id),
        20..45 => {
            freeze(sim, id);
        }
        45..65 => cut(sim, id),
        65..70 => (0..sim.scenario.nodes).for_each(|id| cut(sim, id)),
        70..80 => release(sim, id),
        80..90 => jump(sim, id),
        90..100 => put_back(sim),
        _ => unreachable!("of a hundred"),
    }
}

fn crash(sim: &Arc<Sim>, id: NodeId) {
    let mut chance = sim.chance();
    let power = chance.permille(400);
    {
        let mut node = sim.node(id);
        if node.handle.take().is_none() {
            return;
        }
        node.frozen = false;
        node.session = None;
        if power {
            node.disk.lose_power(&mut chance);
        }
    }
    drop(chance);
    sim.trace(|| format!("node {id} {}", if power { "loses power" } else { "is killed" }));
    sim.timeline.kill(id);
    node::start_later(sim, id);
}

/// For how long something freezes.
pub(crate) fn freezing_time(sim: &Sim) -> u64 {
    let ttl = u64::try_from(sim.scenario.ttl.as_micros()).expect("short");
    let time = {
        let mut chance = sim.chance();
        if chance.permille(500) { chance.skewed(50 * MS, 2 * ttl) } else { chance.between(ttl, 10 * ttl) }
    };
    // What it was about to send leaves before long in calm weather as well.
    time.min(sim.scenario.calm.saturating_sub(sim.timeline.now()) + SECOND)
}

fn freeze(sim: &Arc<Sim>, id: NodeId) -> Option<u64> {
    let time = freezing_time(sim);
    if sim.node(id).handle.is_none() || std::mem::replace(&mut sim.node(id).frozen, true) {
        return None;
    }
    sim.trace(|| format!("node {id} is frozen for {} ms", time / MS));
    sim.timeline.hold(id);
    let own = Arc::clone(sim);
    sim.timeline.spawn(None, async move {
        own.timeline.sleep(time).await;
        thaw(&own, id);
    });
    Some(time)
}

/// Freezes a node as it sends a request, now and then, and says for how long.
pub fn freeze_at_request(sim: &Arc<Sim>, id: NodeId) -> Option<u64> {
    let share = sim.scenario.weather.freezes;
    let happens = sim.is_stormy() && sim.chance().permille(share);
    match sim.is_cluster() {
        _ if !happens => None,
        true => cluster::director::freeze(sim, id),
        false => freeze(sim, id),
    }
}

/// A process dies soon after a request whose fate nobody knows, now and then.
pub fn die_of_request(sim: &Arc<Sim>, id: NodeId) {
    let share = sim.scenario.weather.dies;
    if !sim.chance().permille(share) {
        return;
    }
    let wait = sim.chance().below(3 * SECOND);
    let own = Arc::clone(sim);
    sim.timeline.spawn(None, async move {
        own.timeline.sleep(wait).await;
        match own.is_cluster() {
            _ if !own.is_stormy() => {}
            true => cluster::director::crash(&own, id),
            false => crash(&own, id),
        }
    });
}

/// The network goes in so many microseconds, now and then.
pub fn cut_soon(sim: &Arc<Sim>, id: NodeId, share: u64, wait: u64) {
    let own = Arc::clone(sim);
    sim.timeline.spawn(None, async move {
        own.timeline.sleep(wait).await;
        if own.is_stormy() && own.chance().permille(share) {
            cut(&own, id);
        }
    });
}

fn thaw(sim: &Arc<Sim>, id: NodeId) {
    if std::mem::replace(&mut sim.node(id).frozen, false) {
        sim.trace(|| format!("node {id} goes on"));
        sim.timeline.go(id);
    }
}

/// For how long a network is away.
pub(crate) fn cut_time(sim: &Sim) -> u64 {
    let mut chance = sim.chance();
    if chance.permille(500) { chance.skewed(200 * MS, 3 * SECOND) } else { chance.between(SECOND, 12 * SECOND) }
}

fn cut(sim: &Arc<Sim>, id: NodeId) {
    let time = cut_time(sim);
    sim.trace(|| format!("node {id} has no network for {} ms", time / MS));
    sim.node(id).cut_until = sim.timeline.now() + time;
}

/// A planned end: the lease is given up.
fn release(sim: &Arc<Sim>, id: NodeId) {
    let handle = sim.node(id).handle.clone();
    if let Some(handle) = handle {
        sim.trace(|| format!("node {id} is asked to end"));
        sim.timeline.spawn(Some(id), async move { handle.release(LastWill::default()).await });
    }
}

pub(crate) fn jump(sim: &Arc<Sim>, id: NodeId) {
    if sim.scenario.wall_jumps {
        let by = sim.chance().below(40_000) as i64 - 20_000;
        sim.trace(|| format!("the wall clock of node {id} jumps by {by} ms"));
        sim.node(id).wall_offset += by;
    }
}

/// Across epochs only when nobody is left who wrote under an earlier one: a put-back undoes the claim that keeps them away.
fn put_back(sim: &Arc<Sim>) {
    if !sim.scenario.operator {
        return;
    }
    let (steps, sessions) = {
        let sessions: Vec<_> = (0..sim.scenario.nodes).filter_map(|id| sim.node(id).session).collect();
        (sim.chance().below(8) as usize, sessions)
    };
    let done = sim.model().put_back(&sim.store, steps, &sessions);
    if let Some(what) = done {
        sim.trace(|| format!("the operator puts {what} back"));
    }
}
