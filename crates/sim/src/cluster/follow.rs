//! Keeps the file of a replica up to date with the primary: a stream of commits, the store where that does not lead on, and back to the history where
//! the file is not on it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use rhyolite_format::{Epoch, Lineage, Pos};
use rhyolite_logic::stream::joins;
use rhyolite_store::Store;
use rhyolite_writer::World;
use tokio::sync::mpsc;

use super::files::{Batch, Files, Trouble};
use super::net::{self, Passed};
use super::rejoin::rejoin;
use super::serve::{self, EndReason, Message};
use crate::executor::NodeId;
use crate::sim::NodeWorld;

/// Shortest and longest pause before something is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long nothing may be heard.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// What is followed.
#[derive(Debug)]
pub struct Live {
    /// The file.
    pub files: Files,
    /// Time and chance.
    pub world: Arc<NodeWorld>,
    /// Who is followed.
    pub primary: NodeId,
}

/// How a stream has ended.
enum Ended {
    Lost,
    Behind,
}

impl Live {
    /// Follows until it is dropped.
    pub async fn run(&self) {
        let store: Arc<dyn Store> =
            Arc::new(Passed { sim: Arc::clone(&self.files.sim), node: self.files.node, primary: self.primary });
        let (mut pause, mut astray) = (RETRY.0, None::<String>);
        loop {
            let ended = match astray.take() {
                None => self.follow(&*store, &mut pause).await,
                Some(reason) => rejoin(&self.files, &*store, &reason).await,
            };
            match ended {
                Ok(()) => continue,
                Err(Trouble::Astray(reason)) => astray = Some(reason),
                Err(Trouble::Passing) => {}
            }
            self.world.sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn follow(&self, store: &dyn Store, pause: &mut Duration) -> Result<(), Trouble> {
        if self.files.is_there() == (false, false) {
            self.files.restore(store).await?;
        }
        self.files.take_back();
        let (lineage, mut pos) = self.files.open()?;
        self.files.note([pos]);
        let mut epoch = None;
        loop {
            let before = pos;
            if let Ended::Behind = self.stream(lineage, &mut pos, &mut epoch).await? {
                match self.files.look_from(store, lineage, pos).await {
                    Ok(true) => pos = self.files.open()?.1,
                    Ok(false) | Err(Trouble::Passing) => {}
                    Err(astray) => return Err(astray),
                }
            }
            *pause = if pos == before { (*pause * 2).min(RETRY.1) } else { RETRY.0 };
            self.world.sleep(*pause).await;
        }
    }

    /// Tells the primary where the file is, where it wants to know.
    fn reached(&self, back: &mpsc::UnboundedSender<(Lineage, Pos)>, lineage: Lineage, pos: Pos) {
        let sim = &self.files.sim;
        if sim.scenario.cluster.expect("a cluster").has_witnesses() {
            serve::send(sim, (self.files.node, self.primary), back, (lineage, pos));
        }
    }

    /// Applies what comes until nothing comes any more.
    async fn stream(&self, lineage: Lineage, pos: &mut Pos, epoch: &mut Option<Epoch>) -> Result<Ended, Trouble> {
        let sim = &self.files.sim;
        if !net::carry(sim, self.files.node, self.primary).await {
            return Ok(Ended::Lost);
        }
        let (to, mut from) = mpsc::unbounded_channel();
        let (back, heard) = mpsc::unbounded_channel();
        let ends = (self.primary, self.files.node);
        sim.timeline.spawn(Some(self.primary), serve::log(Arc::clone(sim), ends, (lineage, *pos), (to, heard)));
        loop {
            let silence = self.world.sleep(SILENCE_MAX);
            let message = match select(Box::pin(from.recv()), silence).await {
                Either::Left((message, _)) => message,
                Either::Right(_) => None,
            };
            let step = match message {
                None => return Ok(Ended::Lost),
                Some(Message::Heartbeat) => continue,
                Some(Message::AtEnd) => {
                    self.reached(&back, lineage, *pos);
                    continue;
                }
                Some(Message::End(EndReason::Behind)) => return Ok(Ended::Behind),
                Some(Message::End(EndReason::Diverged)) => {
                    return Err(Trouble::Astray("the primary has another history".to_owned()));
                }
                Some(Message::Commits(step)) => step,
            };
            if self.files.rules.stream_position && !joins(&step, lineage, *pos, *epoch) {
                return Ok(Ended::Lost);
            }
            self.files.apply(lineage, *pos, step.after, Batch::From(step.before.checksum)).await?;
            (*pos, *epoch) = (step.after, Some(step.epoch));
            self.reached(&back, lineage, *pos);
        }
    }
}
