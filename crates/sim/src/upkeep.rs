//! Looking after the history while a session writes: bundles, merges, snapshots, deletion, as `history_plan` says.

use rhyolite_format::manifest::{Manifest, ManifestFile};
use rhyolite_format::segment::{SegmentHeader, SegmentKind};
use rhyolite_format::{Timestamp, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::history_plan::{self, LogEntry, Piece, SnapshotReason, Step, Update};
use rhyolite_logic::log::LogSegment;
use rhyolite_logic::restore_plan;
use rhyolite_store::{LIST_PAGE, StoreErrorKind};
use rhyolite_writer::World;
use rhyolite_writer::delete::{self, Deletion};
use rhyolite_writer::manifest_swap;

use crate::objects;
use crate::session::{Again, Outcome, Session, retry_or_again};
use crate::store::DeletionOpen;

/// Plans in one look.
const ROUNDS_MAX: usize = 4;

/// Runs until there is a reason to begin again.
pub async fn run(session: &Session) -> Again {
    loop {
        let wait = session.life.sim.chance().between(400, 2000);
        session.life.pause(wait).await;
        if let Err(again) = look(session).await {
            return again;
        }
    }
}

/// What a plan is made from, and the time by which it judges.
struct Round<'a> {
    session: &'a Session,
    manifest: Manifest,
    log: Vec<LogSegment>,
    now: Timestamp,
}

async fn look(session: &Session) -> Outcome<()> {
    if session.life.sim.node(session.life.node).disk.pos().is_none() || session.claim().await?.is_none() {
        return Ok(None);
    }
    for _ in 0..ROUNDS_MAX {
        let (manifest, log) = match load(session).await? {
            Some(found) => found,
            None => return Ok(None),
        };
        if manifest.epoch > session.epoch {
            return Err(Again(format!("the manifest has epoch {}", manifest.epoch.get())));
        }
        let now = session.life.world.wall();
        session.life.sim.model().judging(now);
        let Ok(steps) = history_plan::plan(&manifest, &log, &session.life.sim.scenario.policy, now) else {
            return Ok(None);
        };
        if steps.is_empty() {
            return Ok(Some(()));
        }
        let round = Round { session, manifest, log, now };
        for step in &steps {
            if round.carry_out(step).await?.is_none() {
                return Ok(None);
            }
        }
    }
    Ok(Some(()))
}

/// The manifest and the log that belongs to it. `None` when they do not fit, or cannot be had.
async fn load(session: &Session) -> Outcome<(Manifest, Vec<LogSegment>)> {
    let store = &*session.life.store;
    let manifest = match manifest_swap::read(store).await {
        Ok(Some((manifest, _))) => manifest,
        Ok(None) => return Ok(None),
        Err(error) => return retry_or_again(error),
    };
    let after = manifest.first_seq.previous().map(keys::segment);
    let Ok(listed) = store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), after.as_deref(), LIST_PAGE).await else {
        return Ok(None);
    };
    let mut log = Vec::new();
    for seq in listed.iter().filter_map(|entry| keys::parse_segment(&entry.key)) {
        let known = session.cache().iter().find(|s| s.seq == seq).cloned();
        if let Some(known) = known {
            log.push(known);
            continue;
        }
        let Ok(object) = store.get(&keys::segment(seq)).await else { return Ok(None) };
        let segment = objects::decode(&object.bytes).map_err(Again)?;
        log.push(LogSegment::new(segment.header, segment.entries, object.size));
    }
    session.cache().clone_from(&log);
    Ok(Some((manifest, log)))
}

impl Round<'_> {
    /// Does one step; `None` when the rest of the plan is void.
    async fn carry_out(&self, step: &Step) -> Outcome<()> {
        let life = &self.session.life;
        if let Step::Snapshot { reason: SnapshotReason::Unreachable, .. } = step {
            self.session.snapshot(None).await?;
            return Ok(None);
        }
        let made = match self.make(step).await? {
            Some(made) => made,
            None => return Ok(None),
        };
        if let Step::Delete { files, segments } = step {
            let _open = DeletionOpen::new(&life.sim, true);
            let deletion = Deletion {
                files,
                segments,
                epoch: self.session.epoch,
                grace: life.sim.scenario.policy.grace,
                now: self.now,
                guards: life.sim.scenario.guards,
            };
            if let Err(error) = delete::retired(&*life.store, deletion).await {
                return retry_or_again(error);
            }
        }
        let epoch = self.session.epoch;
        let update = Update { epoch, nonce: life.world.nonce(), now: self.now };
        let change = |manifest: Option<Manifest>| {
            let manifest = manifest.filter(|manifest| history_plan::fits(manifest, step))?;
            Some(history_plan::apply(&manifest, step, made.clone(), update))
        };
        match manifest_swap::update_as(&*life.store, &*life.world, life.sim.scenario.guards, epoch, change).await {
            Ok(Some(next)) => {
                life.say(|| format!("revision {}: {}", next.revision, name(step)));
                Ok(Some(()))
            }
            Ok(None) => Ok(None),
            Err(error) => retry_or_again(error),
        }
    }

    /// Writes the objects of a step.
    async fn make(&self, step: &Step) -> Outcome<Vec<ManifestFile>> {
        match step {
            Step::Bundle { pieces, .. } => {
                let mut made = Vec::new();
                for piece in pieces {
                    match self.bundle(piece).await? {
                        Some(file) => made.push(file),
                        None => return Ok(None),
                    }
                }
                Ok(Some(made))
            }
            Step::Merge { level, inputs } => self.merge(*level, inputs).await,
            Step::Snapshot { .. } => self.snapshot().await,
            Step::Expire { .. } | Step::Delete { .. } => Ok(Some(Vec::new())),
        }
    }

    async fn bundle(&self, piece: &Piece) -> Outcome<ManifestFile> {
        let world = &self.session.life.world;
        let bytes = match piece {
            Piece::Bundle(entries) => {
                let header = SegmentHeader {
                    kind: SegmentKind::Bundle { last_seq: entries[entries.len() - 1].seq },
                    lineage: self.session.lineage,
                    epoch: self.session.epoch,
                    seq: entries[0].seq,
                    nonce: world.nonce(),
                    created: self.now,
                };
                let entries: Vec<_> = entries.iter().map(|LogEntry { entry, .. }| entry.clone()).collect();
                objects::segment(&header, &entries)
            }
            Piece::Snapshot(LogEntry { entry, .. }) => objects::file(entry.end(), world.nonce()),
        };
        let object = objects::written(&bytes);
        let done = self.session.write_object(&piece.key(self.session.epoch), bytes).await?;
        Ok(done.map(|()| piece.file(self.session.epoch, object)))
    }

    async fn merge(&self, level: u8, inputs: &[ManifestFile]) -> Outcome<Vec<ManifestFile>> {
        for input in inputs {
            match self.session.life.store.get(&input.key).await {
                Ok(_) => {}
                Err(error) if error.kind == StoreErrorKind::NotFound => return Err(Again(error.to_string())),
                Err(_) => return Ok(None),
            }
        }
        let end = inputs.last().expect("a merge has inputs").end();
        let bytes = objects::file(end, self.session.life.world.nonce());
        let object = objects::written(&bytes);
        let key = history_plan::merged_key(level, inputs, self.session.epoch);
        let done = self.session.write_object(&key, bytes).await?;
        Ok(done.map(|()| vec![history_plan::merged_file(level, inputs, 2, self.session.epoch, object)]))
    }

    /// A snapshot of the end of the log, out of what is in the store.
    async fn snapshot(&self) -> Outcome<Vec<ManifestFile>> {
        let Ok(plan) = restore_plan::plan(&self.manifest, &self.log, &[], Target::Latest) else { return Ok(None) };
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, plan.pos.txid, self.session.epoch);
        let bytes = objects::file(plan.pos, self.session.life.world.nonce());
        let object = objects::written(&bytes);
        let oldest = self.manifest.files.iter().map(|file| file.min_time).min().unwrap_or(plan.time).min(plan.time);
        let done = self.session.write_object(&key, bytes).await?;
        Ok(done.map(|()| vec![objects::snapshot_file(key, plan.pos, (oldest, plan.time), object)]))
    }
}

fn name(step: &Step) -> String {
    match step {
        Step::Bundle { first_seq, last_seq, .. } => format!("bundled {first_seq} to {last_seq}"),
        Step::Merge { level, inputs } => format!("merged {} files to level {level}", inputs.len()),
        Step::Snapshot { .. } => "snapshot".to_owned(),
        Step::Expire { keys } => format!("expired {}", keys.join(" ")),
        Step::Delete { files, segments } => format!("deleted {} files, {} ranges", files.len(), segments.len()),
    }
}
