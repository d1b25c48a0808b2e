//! Writing a log under one epoch, from finding its end to the first reason to begin again: the order of the crate `writer`.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{Either, select};
use rhyolite_format::identity::Identity;
use rhyolite_format::lease::DurablePos;
use rhyolite_format::segment::{Segment, SegmentHeader};
use rhyolite_format::{Checksum, Epoch, Format1, Lineage, Nonce, Pos, Seq, Txid, keys};
use rhyolite_logic::log::LogSegment;
use rhyolite_logic::reconcile::{Start, StoreEnd, reconcile};
use rhyolite_store::StoreErrorKind;
use rhyolite_writer::World;
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create::{self, CreateError};
use rhyolite_writer::log_end::{self, Hint, LogEnd};
use rhyolite_writer::manifest_swap::{self, ManifestError};
use rhyolite_writer::name;

use crate::disk::PAGE_SIZE;
use crate::node::Life;
use crate::objects;
use crate::store::SimStore;
use crate::upkeep;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again(pub String);

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What comes of a request: done, or worth another try later, or a reason to begin again.
pub type Outcome<T> = Result<Option<T>, Again>;

/// Sorts an error by what is to be done about it.
pub fn retry_or_again<T>(error: ManifestError) -> Outcome<T> {
    match error {
        ManifestError::Store(_) | ManifestError::Contended => Ok(None),
        ManifestError::Damaged(_) | ManifestError::Fenced { .. } | ManifestError::Changed => {
            Err(Again(error.to_string()))
        }
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// The process.
    pub life: Life,
    /// The right to write.
    pub epoch: Epoch,
    /// The history.
    pub lineage: Lineage,
    /// The claim on the manifest.
    pub claim: Claim,
    /// Of this session's segments.
    nonce: Nonce,
    /// Of earlier ones.
    earlier: Vec<Nonce>,
    /// A segment of this epoch lies in the log.
    fenced: AtomicBool,
    /// The first sequence number, for a manifest that is not there yet.
    first_seq: Seq,
    /// Segments of the log that were read.
    cache: Mutex<Vec<LogSegment>>,
}

/// Runs a session.
pub async fn run(life: &Life, epoch: Epoch, seized: bool) -> Again {
    let begun = match begin(life, epoch).await {
        Ok(Some(session)) => Arc::new(session),
        Ok(None) => return Again("the store does not answer".to_owned()),
        Err(again) => return again,
    };
    let work = Box::pin(async { begun.write(seized).await.expect_err("writing ends with a reason") });
    let keep = Box::pin(upkeep::run(&begun));
    match select(work, keep).await {
        Either::Left((again, _)) | Either::Right((again, _)) => again,
    }
}

/// Finds the end of the log, and what the local log has to do with it.
pub(crate) async fn begin(life: &Life, epoch: Epoch) -> Outcome<Session> {
    let found = match log_end::find(&life.store, life.sim.scenario.guards, hint(life)).await {
        Ok(found) => found,
        Err(error) => return Err(Again(format!("find the end of the log: {error}"))),
    };
    if let Some(theirs) = found.as_ref().and_then(|end| end.epoch)
        && (theirs > epoch || (theirs == epoch && life.epoch_used() != Some(epoch)))
    {
        life.say(|| format!("asks for an epoch after {}", theirs.get()));
        life.handle.require_epoch(theirs.next());
        life.handle.over(epoch).await;
        return Err(Again("for a higher epoch".to_owned()));
    }
    life.uses(epoch);
    life.sim.node(life.node).session = Some(epoch);
    let Some(end) = found else { return fresh(life).await };
    let next_seq = settle(life, epoch, &end)?;
    let nonce = life.world.nonce();
    life.tried(nonce);
    let store = Arc::clone(&life.store);
    let world = Arc::clone(&life.world) as Arc<dyn World>;
    let claim = Claim::new(store, world, life.sim.scenario.guards, epoch, end.manifest_version.clone());
    let session = Session {
        life: life.clone(),
        epoch,
        lineage: end.identity.lineage,
        claim,
        nonce,
        earlier: life.earlier().into_iter().filter(|earlier| *earlier != nonce).collect(),
        fenced: AtomicBool::new(false),
        first_seq: next_seq,
        cache: Mutex::default(),
    };
    session.adopt_log();
    Ok(Some(session))
}

fn hint(life: &Life) -> Option<Hint> {
    let trusts = life.sim.chance().permille(700);
    let node = life.sim.node(life.node);
    let state = node.disk.state.as_ref().filter(|_| trusts)?;
    Some(Hint { next_seq: state.next_seq, pos: state.durable?, epoch: state.epoch })
}

/// An empty store gets its identity; then everything begins again.
async fn fresh(life: &Life) -> Outcome<Session> {
    let nonce = life.world.nonce();
    let identity =
        Identity { format: Format1, lineage: Lineage(nonce.0), created: life.world.wall(), page_size: PAGE_SIZE };
    let said = match life.store.create(keys::ID, identity.encode().into()).await {
        Ok(_) => "the store has its identity".to_owned(),
        Err(error) => format!("create the identity: {error}"),
    };
    Err(Again(said))
}

/// What the local log has to do with the end of the one in the store. Gives the next sequence number.
fn settle(life: &Life, epoch: Epoch, end: &LogEnd) -> Result<Seq, Again> {
    let mut node = life.sim.node(life.node);
    let disk = &mut node.disk;
    let local: Vec<Segment> = disk.log.iter().map(|s| s.segment.clone()).collect();
    let store_end = StoreEnd { lineage: end.identity.lineage, pos: end.pos, next_seq: end.next_seq };
    let start = reconcile(disk.state.as_ref(), &local, Some(&store_end));
    let line = format!("finds {:?} at {}, next {}: {start}", end.epoch, text(end.pos), end.next_seq);
    match start {
        Start::Continue { upload, next_seq, end: pos, .. } => {
            let mut log = std::mem::take(&mut disk.log);
            log.retain(|s| upload.contains(&s.segment.header.seq));
            disk.begin(end.identity.lineage, pos, epoch, next_seq);
            let state = disk.state.as_mut().expect("just begun");
            state.durable = end.pos;
            disk.log = log;
            disk.seal();
        }
        Start::Adopt { lineage, at, next_seq, .. } => disk.begin(lineage, at, epoch, next_seq),
        Start::Conflict { at, next_seq, .. } => disk.begin(end.identity.lineage, at, epoch, next_seq),
        Start::Fresh { .. } | Start::WrongLineage { .. } => {
            drop(node);
            life.sim.model().violated(format!("node {}: {line}", life.node));
            return Err(Again("another history".to_owned()));
        }
    }
    drop(node);
    life.say(|| line);
    Ok(end.next_seq)
}

fn text(pos: Option<Pos>) -> String {
    pos.map_or("nothing".to_owned(), |pos| pos.to_string())
}

impl Session {
    /// Segments of the log that were read before.
    pub fn cache(&self) -> MutexGuard<'_, Vec<LogSegment>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, seq: Seq) -> SegmentHeader {
        SegmentHeader::log(self.lineage, self.epoch, seq, self.nonce, self.life.world.wall())
    }

    /// What was not uploaded yet goes on under this session's epoch and nonce.
    fn adopt_log(&self) {
        let header = self.header(self.first_seq);
        let mut seq = self.first_seq;
        for local in &mut self.life.sim.node(self.life.node).disk.log {
            local.segment.header = SegmentHeader { seq, kind: header.kind, ..header.clone() };
            seq = seq.next();
        }
    }

    /// Writes until there is a reason to begin again.
    async fn write(&self, seized: bool) -> Outcome<()> {
        while self.life.sim.node(self.life.node).disk.pos().is_none() {
            if self.snapshot(Some(Txid::FIRST)).await?.is_none() {
                self.life.pause(100).await;
            }
        }
        if !self.life.sim.scenario.guards.fence {
            self.promise();
        } else if seized {
            self.fence().await?;
        }
        loop {
            self.capture();
            if self.life.sim.scenario.runs_ahead {
                self.capture();
            }
            if self.life.sim.chance().permille(40) {
                self.snapshot(None).await?;
            }
            while let Some(segment) = self.unsent() {
                self.upload(&segment).await?;
            }
            let tick = self.life.sim.chance().between(100, 500);
            self.life.pause(tick).await;
        }
    }

    pub(crate) fn unsent(&self) -> Option<Segment> {
        self.life.sim.node(self.life.node).disk.unsent()
    }

    /// Takes in what the application has committed.
    fn capture(&self) {
        let sim = &self.life.sim;
        let commits: Vec<(Checksum, u64)> = {
            let mut chance = sim.chance();
            let n = if chance.permille(500) { chance.below(4) } else { 0 };
            (0..n).map(|_| (Checksum::from_crc(chance.draw()), chance.between(131, 200))).collect()
        };
        let seal = sim.chance().permille(700);
        let time = self.life.world.wall();
        let header = self.header(self.first_seq);
        let begin = |seq| SegmentHeader { seq, ..header.clone() };
        let mut node = sim.node(self.life.node);
        let disk = &mut node.disk;
        let content = disk.database().content;
        if disk.pos().is_some_and(|pos| pos.checksum != content) {
            disk.record(content, time, 150, begin);
        }
        for (content, len) in commits {
            disk.database().commit(content);
            disk.record(content, time, len, begin);
        }
        if seal {
            disk.seal();
        }
    }

    /// Takes in what an application of its own has committed: commit by commit where they lead on from the local log, otherwise by comparing.
    pub(crate) fn capture_commits(&self) {
        let time = self.life.world.wall();
        let header = self.header(self.first_seq);
        let begin = |seq| SegmentHeader { seq, ..header.clone() };
        let mut node = self.life.sim.node(self.life.node);
        let disk = &mut node.disk;
        let (content, commits) = {
            let mut database = disk.database();
            (database.content, std::mem::take(&mut database.uncaptured))
        };
        for (before, after) in commits {
            if disk.pos().is_some_and(|pos| pos.checksum == before) {
                disk.record(after, time, 150, begin);
            }
        }
        let compared = disk.pos().map(|pos| pos.checksum).filter(|before| *before != content);
        if compared.is_some() {
            disk.record(content, time, 170, begin);
        }
        drop(node);
        if let Some(before) = compared {
            self.life.sim.cluster().truth().compared(before, content);
        }
    }

    /// Claims the manifest, if that was not done yet.
    pub async fn claim(&self) -> Outcome<()> {
        match self.claim.ensure().await {
            Ok(()) => Ok(Some(())),
            Err(error) => retry_or_again(error),
        }
    }

    /// Waits until the right is there; it may have run out.
    async fn right(&self) -> Result<(), Again> {
        match self.life.handle.acquired().await {
            Some(epoch) if epoch == self.epoch => Ok(()),
            _ => Err(Again("the right is gone".to_owned())),
        }
    }

    /// Creates a segment, however long it takes.
    async fn create(&self, header: &SegmentHeader, bytes: bytes::Bytes) -> Result<(), Again> {
        let guards = self.life.sim.scenario.guards;
        loop {
            self.right().await?;
            if self.claim().await?.is_some() {
                self.run_ahead(header.seq);
                match create::segment(&*self.life.store, guards, header, bytes.clone(), &self.earlier).await {
                    Ok(_) => break,
                    Err(CreateError::Store(_)) => {}
                    Err(error) => return Err(Again(format!("segment {}: {error:?}", header.seq))),
                }
            }
            self.life.pause(60).await;
        }
        if guards.right_at_answer && !self.life.handle.holds(self.epoch).await {
            return Err(Again("the right ran out before the answer".to_owned()));
        }
        self.fenced.store(true, Ordering::Relaxed);
        if guards.fence {
            self.promise();
        }
        Ok(())
    }

    /// Sends the segment after this one as well, which the store gets later, and never before it: no writer of ours does so. Where another
    /// writer's fence comes in between, what is sent ahead is void.
    fn run_ahead(&self, seq: Seq) {
        let sim = &self.life.sim;
        if !sim.scenario.runs_ahead || !sim.is_stormy() {
            return;
        }
        let next = sim.node(self.life.node).disk.sealed(seq.next());
        if let Some(next) = next.filter(|next| next.header.epoch == self.epoch) {
            let bytes = objects::segment(&next.header, &next.entries);
            SimStore { sim: Arc::clone(sim), node: self.life.node }.create_behind(seq, next.header.seq, bytes);
        }
    }

    async fn fence(&self) -> Result<(), Again> {
        let (seq, is_empty) = {
            let node = self.life.sim.node(self.life.node);
            (node.disk.state.as_ref().expect("a session has begun").next_seq, node.disk.log.is_empty())
        };
        if !is_empty {
            // What is to be uploaded is a fence as well.
            return Ok(());
        }
        let (header, bytes) = create::fence(&*self.life.world, self.lineage, self.epoch, seq);
        self.life.tried(header.nonce);
        self.create(&header, bytes).await?;
        self.life.say(|| format!("has fenced the log at {seq}"));
        self.life.sim.node(self.life.node).disk.confirmed(&Segment { header, entries: Vec::new() });
        Ok(())
    }

    /// From here on nothing of an earlier epoch may count any more.
    fn promise(&self) {
        let durable = {
            let node = self.life.sim.node(self.life.node);
            node.disk.state.as_ref().and_then(|state| state.durable)
        };
        if let Some(pos) = durable {
            self.life.sim.model().promise(self.epoch, pos);
        }
        self.life.handle.set_durable(durable.map(|pos| DurablePos { lineage: self.lineage, pos }));
    }

    /// Creates a segment of the local log, and says that it is durable.
    pub(crate) async fn upload(&self, segment: &Segment) -> Result<(), Again> {
        self.create(&segment.header, objects::segment(&segment.header, &segment.entries)).await?;
        self.life.sim.node(self.life.node).disk.confirmed(segment);
        if let Some(pos) = segment.end() {
            self.acknowledge(pos);
        }
        Ok(())
    }

    fn acknowledge(&self, pos: Pos) {
        let sim = &self.life.sim;
        self.life.say(|| format!("acknowledges {pos}"));
        let now = sim.timeline.now();
        sim.model().acknowledge(pos, now);
    }

    /// Writes a snapshot of the database and names it: at the position of the local log, or as the first one.
    pub async fn snapshot(&self, first: Option<Txid>) -> Outcome<()> {
        let (sim, time) = (&self.life.sim, self.life.world.wall());
        let pos = {
            let node = sim.node(self.life.node);
            let content = {
                let mut database = node.disk.database();
                if first.is_some() {
                    // It is in the snapshot.
                    database.uncaptured.clear();
                }
                database.content
            };
            match (node.disk.pos(), first) {
                (Some(pos), _) => pos,
                (None, Some(txid)) => Pos { txid, checksum: content },
                (None, None) => return Ok(None),
            }
        };
        if self.claim().await?.is_none() {
            return Ok(None);
        }
        // A snapshot may lie beyond the end that was found, and holds no place in the log.
        let must_fence = sim.scenario.guards.fence && !self.claim.is_first();
        if must_fence && !self.fenced.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, pos.txid, self.epoch);
        let bytes = objects::file(pos, self.life.world.nonce());
        let object = objects::written(&bytes);
        if self.write_object(&key, bytes).await?.is_none() {
            return Ok(None);
        }
        let file = objects::snapshot_file(key, pos, (time, time), object);
        let author = name::Author { lineage: self.lineage, epoch: self.epoch, first_seq: self.first_seq };
        let guards = sim.scenario.guards;
        if let Err(error) =
            name::snapshot(&*self.life.store, &*self.life.world, guards, &self.claim, author, &file).await
        {
            return retry_or_again(error);
        }
        self.life.say(|| format!("has named a snapshot at {pos}"));
        if first.is_some() {
            // Where there was no manifest nothing was fenced: whoever has the lease by now may have begun without having seen this one.
            if guards.right_at_answer && !self.life.handle.holds(self.epoch).await {
                return Err(Again("the right ran out before the first snapshot was named".to_owned()));
            }
            let next_seq = self.first_seq;
            sim.node(self.life.node).disk.begin(self.lineage, Some(pos), self.epoch, next_seq);
            self.acknowledge(pos);
        }
        Ok(Some(()))
    }

    /// Writes an object that the manifest is to name, and looks that it is there. `None`: try again later.
    pub async fn write_object(&self, key: &str, bytes: bytes::Bytes) -> Outcome<()> {
        let store = &self.life.store;
        let Some(name) = self.life.names.take(self.epoch, key) else {
            self.life.say(|| format!("{key} was used up"));
            if keys::parse_file(key)
                .is_some_and(|name| name.level == keys::SNAPSHOT_LEVEL && name.max_txid > Txid::FIRST)
            {
                // The next commit gives a snapshot another name.
                return Ok(None);
            }
            self.life.handle.require_epoch(self.epoch.next());
            return Err(Again("a name is used up".to_owned()));
        };
        let size = bytes.len() as u64;
        let written = async {
            manifest_swap::clear_unnamed(&**store, key).await?;
            let mut upload = store.upload(key).await?;
            upload.write(bytes).await?;
            upload.finish().await
        };
        let checked = match written.await {
            Ok(version) => store.verify_created(key, &version, size).await,
            Err(error) if error.kind == StoreErrorKind::Unavailable => {
                name.give_back();
                return Ok(None);
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &checked {
            self.life.say(|| format!("write {key}: {}", error.kind.name()));
        }
        Ok(checked.ok())
    }
}
