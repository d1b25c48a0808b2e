//! Catches a new primary up with the store, in the order of the node: fence, end of the log, the file there, a state folder from which capture goes on.

use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::segment::Segment;
use rhyolite_format::{Epoch, Lineage, Pos};
use rhyolite_logic::lease::Guards;
use rhyolite_logic::prepare::{Approach, Content, FoundEnd, TakeEnd, approach, goes_on, take_end};
use rhyolite_logic::reconcile::{StoreEnd, is_overtaken, reconcile};
use rhyolite_store::Store;
use rhyolite_writer::World;
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create::{self, CreateError};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rhyolite_writer::log_end::{self, LogEnd};

use super::files::{Batch, Files, Trouble};
use super::rejoin::{empty_state_folder, keep, rejoin};
use super::witness::{self, Found};
use crate::sim::NodeWorld;

/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// Pause while the store has nothing that leads on.
const PAUSE: Duration = Duration::from_millis(50);

/// What a new primary prepares, and under which right.
#[derive(Debug)]
pub struct Prepare {
    /// The file.
    pub files: Files,
    /// Time and chance.
    pub world: Arc<NodeWorld>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The right.
    pub lease: LeaseHandle,
    /// Whoever had the right before did not give it up.
    pub must_fence: bool,
}

impl Prepare {
    fn guards(&self) -> Guards {
        self.files.sim.scenario.guards
    }

    /// Prepares the file. Dropped, it has not.
    pub async fn run(&self) {
        let mut fenced = None;
        while !self.try_once(&mut fenced).await {}
        if let Some(epoch) = fenced {
            // Capture goes on under a later right, by which it tells these fences from its own.
            self.raise(Epoch::next(epoch)).await;
        }
    }

    async fn raise(&self, least: Epoch) {
        self.lease.require_epoch(least);
        while self.lease.right().is_none_or(|epoch| epoch < least) {
            self.world.sleep(PAUSE).await;
        }
    }

    /// `false` when it is to be tried again.
    async fn try_once(&self, fenced: &mut Option<Epoch>) -> bool {
        let Ok(found) = log_end::find(&self.store, self.guards(), None).await else {
            self.world.sleep(AGAIN).await;
            return false;
        };
        let Some(mut end) = found else { return true };
        if !self.take_end(&mut end, fenced).await {
            return false;
        }
        let Some(pos) = end.pos else { return true };
        self.files.say(|| format!("takes {pos} for the end of the log"));
        let own = self.goes_on(&end);
        let has_all = own == Some(Content::Kept) || (self.files.rules.witness.overtaken && self.is_overtaken(&end));
        let has_all = has_all || (own.is_some() && !self.files.rules.witness.kept);
        let Some(found) = self.hear((end.identity.lineage, pos), has_all).await else {
            return false;
        };
        if own.is_some() && found.is_none() {
            return true;
        }
        self.files.take_back();
        let mut at = self.promote(pos, found.is_some()).await;
        if let Some(found) = found {
            match self.take_found((end.identity.lineage, pos), at, found).await {
                Some(taken) => at = taken,
                None => return false,
            }
        }
        self.files.step().await;
        self.files.release();
        self.leave(at, &end);
        true
    }

    /// What the witnesses have beyond the end, if there are any that have to be asked. `has_all`: nothing is beyond that was told here. `None`: the right is gone.
    async fn hear(&self, end: witness::End, has_all: bool) -> Option<Option<Found>> {
        let rules = self.files.rules.witness;
        if self.lease.right().is_none() {
            self.world.sleep(AGAIN).await;
            return None;
        }
        let Some(list) = self.lease.witnesses().filter(|_| rules.ask) else { return Some(None) };
        if has_all && list.of == format!("node {}", self.files.node) {
            return Some(None);
        }
        Some(witness::hear(&self.files, &self.world, &list, end).await)
    }

    /// Makes the file, which is at `at`, what was found, unless it has come through that. Gives where it is then; `None` when that cannot be had.
    async fn take_found(&self, (lineage, end): (Lineage, Pos), at: Pos, found: Found) -> Option<Pos> {
        let files = &self.files;
        if at == found.pos || files.has_passed(found.pos) {
            files.come_through(end, found.pos);
            return Some(at);
        }
        if !files.rules.witness.found_first && at.txid >= found.pos.txid {
            return Some(at);
        }
        let Some((content, trail)) = witness::fetch(files, found).await else {
            self.world.sleep(AGAIN).await;
            return None;
        };
        if !trail.has(at) {
            // It may be on a way of its own.
            keep(files, at.checksum).await;
        }
        files.apply(lineage, at, Pos { checksum: content, ..found.pos }, Batch::Whole).await.ok()?;
        files.sim.node(files.node).disk.trail = trail;
        files.say(|| format!("goes on from what node {} has: {}", found.node, found.pos));
        Some(found.pos)
    }

    /// `false` when the log has gone on meanwhile, or there is no right any more.
    async fn take_end(&self, end: &mut LogEnd, fenced: &mut Option<Epoch>) -> bool {
        let found = FoundEnd { epoch: end.epoch, has_manifest: end.manifest.is_some(), fenced: *fenced };
        let must_fence = self.must_fence && self.files.rules.prepare_fence;
        let epoch = match take_end(found, self.lease.right(), must_fence) {
            TakeEnd::Wait => {
                self.world.sleep(AGAIN).await;
                return false;
            }
            TakeEnd::Raise(least) => {
                self.raise(least).await;
                return false;
            }
            TakeEnd::Ours | TakeEnd::Quiet => return true,
            TakeEnd::Fence(epoch) => epoch,
        };
        let world = Arc::clone(&self.world) as Arc<dyn World>;
        let claim = Claim::new(Arc::clone(&self.store), world, self.guards(), epoch, end.manifest_version.clone());
        if claim.ensure().await.is_err() {
            self.world.sleep(AGAIN).await;
            return false;
        }
        let (header, bytes) = create::fence(&*self.world, end.identity.lineage, epoch, end.next_seq);
        match create::segment(&*self.store, self.guards(), &header, bytes, &[]).await {
            Ok(_) => {
                self.files.say(|| format!("has fenced the log at {} under epoch {}", end.next_seq, epoch.get()));
                end.next_seq = end.next_seq.next();
                end.epoch = Some(epoch);
                *fenced = (*fenced).max(Some(epoch));
                if let Some(pos) = end.pos {
                    self.files.sim.model().promise(epoch, pos);
                }
                true
            }
            Err(CreateError::Store(_)) => {
                self.world.sleep(AGAIN).await;
                false
            }
            // What came in before the fence is history.
            Err(_) => false,
        }
    }

    /// Whether the log has gone on without this node, whose machine has run since: whoever added to it had found all that was told here, and has put that there first.
    fn is_overtaken(&self, end: &LogEnd) -> bool {
        if self.files.is_there() != (true, false) {
            return false;
        }
        let node = self.files.sim.node(self.files.node);
        let disk = &node.disk;
        let log: Vec<Segment> = disk.log.iter().map(|s| s.segment.clone()).collect();
        let store = StoreEnd { lineage: end.identity.lineage, pos: end.pos, next_seq: end.next_seq };
        let state = disk.state.as_ref().filter(|state| state.boot_id == disk.boot);
        state.is_some_and(|state| is_overtaken(state, &log, &store))
    }

    /// What is known of the file, if it may be left to capture as it is.
    fn goes_on(&self, end: &LogEnd) -> Option<Content> {
        if self.files.is_there() != (true, false) {
            return None;
        }
        let node = self.files.sim.node(self.files.node);
        let disk = &node.disk;
        let log: Vec<Segment> = disk.log.iter().map(|s| s.segment.clone()).collect();
        let store = StoreEnd { lineage: end.identity.lineage, pos: end.pos, next_seq: end.next_seq };
        let start = reconcile(disk.state.as_ref(), &log, Some(&store));
        let is_same_boot = disk.state.as_ref().is_some_and(|state| state.boot_id == disk.boot);
        let content = match is_same_boot || !self.files.rules.measure_after_boot {
            true => Content::Kept,
            false => Content::Measured(Some(disk.database().content)),
        };
        (!self.files.rules.joins_end || goes_on(&start, content)).then_some(content)
    }

    /// Brings the file to the end, or leaves it further, and gives where it is. With something found a file beyond the end is left for that to take its place.
    async fn promote(&self, end: Pos, is_found: bool) -> Pos {
        let goes_straight = is_found && self.files.rules.witness.straight;
        let mut is_passed = self.files.has_passed(end) || !self.files.rules.passed;
        loop {
            match self.advance(end, is_passed, goes_straight).await {
                Ok(pos) => return pos,
                Err(Trouble::Passing) => {}
                Err(Trouble::Astray(reason)) => {
                    is_passed = false;
                    if rejoin(&self.files, &*self.store, &reason).await.is_ok() {
                        continue;
                    }
                }
            }
            self.world.sleep(PAUSE).await;
        }
    }

    async fn advance(&self, end: Pos, is_passed: bool, goes_straight: bool) -> Result<Pos, Trouble> {
        if !self.files.is_there().1 {
            self.files.restore(&*self.store).await?;
        }
        loop {
            let (lineage, pos) = self.files.open()?;
            match approach(Some(pos), end, is_passed, goes_straight) {
                Approach::There | Approach::Straight => return Ok(pos),
                Approach::Astray => return Err(Trouble::Astray(format!("the store ends at {end}"))),
                Approach::CatchUp => {
                    if !self.files.look_from(&*self.store, lineage, pos).await? {
                        self.world.sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn leave(&self, at: Pos, end: &LogEnd) {
        empty_state_folder(&self.files);
        if end.pos == Some(at) {
            let mut node = self.files.sim.node(self.files.node);
            let epoch = end.epoch.unwrap_or(Epoch::FIRST);
            node.disk.begin(end.identity.lineage, end.pos, epoch, end.next_seq);
        } else {
            self.files.say(|| format!("is ahead of the store, at {at}"));
        }
    }
}
