//! The primary's side of the stream: commits as they are captured, from the local log; what is not there any more is in the store only.

use std::sync::Arc;

use rhyolite_format::{Lineage, Pos};
use rhyolite_logic::stream::{Standing, Step, judge};
use tokio::sync::mpsc;

use super::net;
use crate::executor::NodeId;
use crate::scenario::{MS, SECOND};
use crate::sim::Sim;

/// Time between two looks at the log.
const LOOK: u64 = 40 * MS;
/// Time between two signs of life.
const HEARTBEAT: u64 = SECOND;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Commits.
    Commits(Step),
    /// There is nothing new.
    Heartbeat,
    /// There is no more on this way.
    End(EndReason),
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// What comes next is in the store only.
    Behind,
    /// The replica is on another branch.
    Diverged,
}

/// Sends what leads on from `pos` until nobody listens, or nothing does.
pub async fn log(
    sim: Arc<Sim>,
    (primary, replica): (NodeId, NodeId),
    (lineage, mut pos): (Lineage, Pos),
    to: mpsc::UnboundedSender<Message>,
) {
    let mut said = 0;
    while !to.is_closed() {
        let message = match next(&sim, primary, lineage, pos) {
            Ok(Some(step)) => {
                pos = step.after;
                Some(Message::Commits(step))
            }
            Ok(None) => (sim.timeline.now() >= said + HEARTBEAT).then_some(Message::Heartbeat),
            Err(reason) => {
                send(&sim, (primary, replica), &to, Message::End(reason));
                return;
            }
        };
        match message {
            Some(message) => {
                said = sim.timeline.now();
                send(&sim, (primary, replica), &to, message);
            }
            None => sim.timeline.sleep(LOOK).await,
        }
    }
}

/// The commits after `pos`, if there are any. The error is how the stream ends.
fn next(sim: &Sim, primary: NodeId, lineage: Lineage, pos: Pos) -> Result<Option<Step>, EndReason> {
    let Some((ours, epoch)) = sim.cluster().machine(primary).captures else { return Ok(None) };
    let node = sim.node(primary);
    let Some(end) = node.disk.pos() else { return Ok(None) };
    match judge((ours, end), lineage, pos) {
        Standing::AtEnd => Ok(None),
        Standing::Beyond | Standing::Other | Standing::OtherLineage => Err(EndReason::Diverged),
        Standing::Before => {
            let mut entries = node.disk.log.iter().flat_map(|s| &s.segment.entries);
            let first = entries.find(|entry| entry.min_txid == pos.txid.next());
            match first {
                None => Err(EndReason::Behind),
                Some(entry) if entry.pre_apply != Some(pos.checksum) => Err(EndReason::Diverged),
                Some(entry) => Ok(Some(Step { lineage: ours, epoch, before: pos, after: entry.end() })),
            }
        }
    }
}

/// Sends a message, which may come late, twice, or not at all.
fn send(sim: &Arc<Sim>, (from, to): (NodeId, NodeId), line: &mpsc::UnboundedSender<Message>, message: Message) {
    let Some(first) = net::delay(sim, from, to) else { return };
    let second = net::doubled(sim);
    for delay in [Some(first), second.map(|more| first + more)].into_iter().flatten() {
        let (line, message, timeline) = (line.clone(), message.clone(), sim.timeline.clone());
        sim.timeline.spawn(None, async move {
            timeline.sleep(delay).await;
            // Whoever has hung up hears nothing.
            let _ = line.send(message);
        });
    }
}
