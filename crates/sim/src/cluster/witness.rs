//! What a new primary hears from the witnesses that the lease names: where their files are, and what they hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rhyolite_format::lease::Witnesses;
use rhyolite_format::{Checksum, Lineage, Pos};
use rhyolite_logic::trail::Trail;
use rhyolite_logic::witness::{Passed, Testimony, is_enough, testimony};
use rhyolite_writer::World;

use super::files::Files;
use super::net;
use crate::executor::NodeId;
use crate::sim::{NodeWorld, Sim};

/// Pause before a node is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// The end of the log: what is asked for is beyond.
pub type End = (Lineage, Pos);

/// Who has what lies furthest from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub node: NodeId,
    /// Where its file is.
    pub pos: Pos,
}

/// What the file of a node has beyond the end. A file that was made ready to be written to, and was not written to since, is where it had come to.
pub fn look(sim: &Sim, node: NodeId, end: End) -> Testimony {
    let rules = sim.scenario.cluster.expect("a cluster").rules.node.witness;
    let node = sim.node(node);
    let disk = &node.disk;
    let content = {
        let database = disk.database();
        if !database.exists || database.content == end.1.checksum {
            return Testimony::Nothing;
        }
        database.content
    };
    let released = disk.released.filter(|_| rules.take_back);
    let at = disk.follow.or(released).and_then(|follow| {
        let known = [follow.after, follow.before].into_iter().find(|pos| pos.checksum == content);
        known.map(|pos| (follow.lineage, pos))
    });
    match at {
        Some(at) if rules.left => testimony(end, Some(at), Passed::by(&disk.trail, end.1)),
        Some(at) => testimony(end, Some(at), disk.trail.has(end.1)),
        None => Testimony::Unproved(Pos { checksum: content, ..end.1 }),
    }
}

/// Asks the witnesses, each until it has answered, until enough have. Gives what lies furthest.
pub async fn hear(files: &Files, world: &Arc<NodeWorld>, list: &Witnesses, end: End) -> Option<Found> {
    let mut open: FuturesUnordered<BoxFuture<'_, (&str, NodeId, Testimony)>> = FuturesUnordered::new();
    for name in &list.nodes {
        let node: NodeId = name.strip_prefix("node ").and_then(|n| n.parse().ok()).expect("nodes have such addresses");
        open.push(Box::pin(async move { (name.as_str(), node, ask(files, world, node, end).await) }));
    }
    let mut heard = BTreeMap::new();
    while let Some((name, node, said)) = open.next().await {
        files.say(|| format!("hears of {name}: {said:?}"));
        heard.insert(name, (node, said));
        if is_enough(list, heard.keys().copied()) || !files.rules.witness.enough {
            break;
        }
    }
    let beyond = heard.values().filter_map(|(node, said)| match said {
        Testimony::Beyond(pos) => Some(Found { node: *node, pos: *pos }),
        Testimony::Nothing | Testimony::Unproved(_) => None,
    });
    beyond.max_by_key(|found| found.pos.txid)
}

/// Until there is an answer.
async fn ask(files: &Files, world: &Arc<NodeWorld>, node: NodeId, end: End) -> Testimony {
    loop {
        let said =
            if node == files.node { Some(look(&files.sim, node, end)) } else { question(files, node, end).await };
        match said {
            Some(Testimony::Unproved(_)) if files.rules.witness.unproved => {}
            Some(said) => return said,
            None => {}
        }
        world.sleep(AGAIN).await;
    }
}

/// One question. A primary has other things to do.
async fn question(files: &Files, node: NodeId, end: End) -> Option<Testimony> {
    let sim = &files.sim;
    if !net::carry(sim, files.node, node).await || sim.cluster().machine(node).is_capturing {
        return None;
    }
    let said = look(sim, node, end);
    net::answer(sim, node, files.node).await.then_some(said)
}

/// What a node holds, and where its file has been, if it is still there.
pub async fn fetch(files: &Files, found: Found) -> Option<(Checksum, Trail)> {
    let sim = &files.sim;
    if !net::carry(sim, files.node, found.node).await || sim.cluster().machine(found.node).is_capturing {
        return None;
    }
    let held = {
        let node = sim.node(found.node);
        let content = node.disk.database().content;
        (content == found.pos.checksum).then(|| (content, node.disk.trail.clone()))
    }?;
    net::answer(sim, found.node, files.node).await.then_some(held)
}
