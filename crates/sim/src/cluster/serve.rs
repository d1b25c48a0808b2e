//! The primary's side of the stream: commits as they are captured, from the local log; what is not there any more is in the store only.

use std::sync::Arc;

use rhyolite_format::{Lineage, Pos};
use rhyolite_logic::stream::{Standing, Step, judge};
use tokio::sync::mpsc;

use super::account::Follower;
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
    /// Everything was sent: the log ends there.
    AtEnd,
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

/// What there is to send.
enum Next {
    Commits(Step),
    AtEnd,
    /// Nothing is captured.
    Nothing,
}

/// Sends what leads on from `pos` until nobody listens, or nothing does, and hears how far the replica is.
pub async fn log(
    sim: Arc<Sim>,
    ends: (NodeId, NodeId),
    from: (Lineage, Pos),
    (to, mut heard): (mpsc::UnboundedSender<Message>, mpsc::UnboundedReceiver<(Lineage, Pos)>),
) {
    let mut follower = Follower::new(&sim, ends.0, ends.1);
    let mut stream = Stream { sim: &sim, ends, lineage: from.0, pos: from.1, said: 0, is_at_end: false };
    while !to.is_closed() {
        while let Ok((lineage, pos)) = heard.try_recv() {
            follower.reached(lineage, pos);
        }
        match stream.next() {
            Some(message) => {
                let is_last = matches!(message, Message::End(_));
                send(&sim, ends, &to, message);
                if is_last {
                    break;
                }
            }
            None => sim.timeline.sleep(LOOK).await,
        }
    }
    follower.end();
}

struct Stream<'a> {
    sim: &'a Sim,
    ends: (NodeId, NodeId),
    lineage: Lineage,
    pos: Pos,
    /// When something was sent last.
    said: u64,
    is_at_end: bool,
}

impl Stream<'_> {
    fn next(&mut self) -> Option<Message> {
        let now = self.sim.timeline.now();
        let is_due = now >= self.said + HEARTBEAT;
        let was_at_end = std::mem::replace(&mut self.is_at_end, false);
        let message = match next(self.sim, self.ends.0, self.lineage, self.pos) {
            Ok(Next::Commits(step)) => {
                self.pos = step.after;
                Message::Commits(step)
            }
            Ok(Next::AtEnd) => {
                self.is_at_end = true;
                let has_witnesses = self.sim.scenario.cluster.expect("a cluster").has_witnesses();
                if (was_at_end || !has_witnesses) && !is_due {
                    return None;
                }
                if has_witnesses { Message::AtEnd } else { Message::Heartbeat }
            }
            Ok(Next::Nothing) if is_due => Message::Heartbeat,
            Ok(Next::Nothing) => return None,
            Err(reason) => Message::End(reason),
        };
        self.said = now;
        Some(message)
    }
}

/// What comes after `pos`. The error is how the stream ends.
fn next(sim: &Sim, primary: NodeId, lineage: Lineage, pos: Pos) -> Result<Next, EndReason> {
    let Some((ours, epoch)) = sim.cluster().machine(primary).captures else { return Ok(Next::Nothing) };
    let node = sim.node(primary);
    let Some(end) = node.disk.pos() else { return Ok(Next::Nothing) };
    match judge((ours, end), lineage, pos) {
        Standing::AtEnd => Ok(Next::AtEnd),
        Standing::Beyond | Standing::Other | Standing::OtherLineage => Err(EndReason::Diverged),
        Standing::Before => {
            let mut entries = node.disk.log.iter().flat_map(|s| &s.segment.entries);
            let first = entries.find(|entry| entry.min_txid == pos.txid.next());
            match first {
                None => Err(EndReason::Behind),
                Some(entry) if entry.pre_apply != Some(pos.checksum) => Err(EndReason::Diverged),
                Some(entry) => Ok(Next::Commits(Step { lineage: ours, epoch, before: pos, after: entry.end() })),
            }
        }
    }
}

/// Sends a message, which may come late, twice, or not at all.
pub fn send<T: Clone + Send + 'static>(
    sim: &Arc<Sim>,
    (from, to): (NodeId, NodeId),
    line: &mpsc::UnboundedSender<T>,
    message: T,
) {
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
