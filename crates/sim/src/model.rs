//! What must hold of the store, whatever happens: looked at after each change of it.
//!
//! 1. No two segments or files that count give one TXID two checksums, and no segment of an epoch counts once a later one has
//!    promised where the log ends.
//! 2. What was acknowledged as durable was in a segment that counts, or in a snapshot that the manifest names.
//! 3. A restore point stays one for as long as the rules keep it (`history_plan`, rule 1), and the last one always.
//! 4. Every object that the manifest names exists, with the bytes that it names.
//!
//! What an operator's put-back took away is no loss.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::future::FutureExt;
use rhyolite_format::crc::crc64;
use rhyolite_format::manifest::{FileKind, Manifest};
use rhyolite_format::segment::Segment;
use rhyolite_format::{Checksum, Epoch, Pos, Seq, Timestamp, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::history_plan::Policy;
use rhyolite_logic::log::{LogSegment, live};
use rhyolite_logic::restore_plan::{self, BundleIndex};
use rhyolite_store::{Memory, Object, Store};

use crate::store::put;

/// Versions of the manifest that an operator can put back.
const BACKUPS_MAX: usize = 12;

/// A restore point that was seen.
#[derive(Clone, Copy, Debug)]
struct Point {
    checksum: Checksum,
    time: Timestamp,
    acknowledged: bool,
}

/// The truth.
#[derive(Debug)]
pub struct Model {
    policy: Policy,
    /// The first thing that did not hold.
    pub violation: Option<String>,
    /// Acknowledgements so far.
    pub acknowledged: u64,
    /// When the last one came, in microseconds.
    pub acknowledged_last: u64,
    /// Deletions that may still happen.
    pub deletions_open: u64,
    /// What an operator has put back so far.
    put_backs: u64,
    /// An operator has put something back when this was the latest state, and none that late has been restorable since.
    meddled: Option<Txid>,
    /// The latest time by which anybody judged what is old.
    judged: Timestamp,
    manifest: Option<Manifest>,
    log: Vec<LogSegment>,
    indexes: BTreeMap<String, BundleIndex>,
    /// Objects whose bytes were looked at, with their version and CRC.
    seen: BTreeMap<String, (String, u64)>,
    points: BTreeMap<Txid, Point>,
    facts: BTreeMap<Txid, Checksum>,
    interval_last: BTreeMap<i64, Txid>,
    promised: Option<(Epoch, Pos)>,
    epoch_highest: Epoch,
    /// For the operator: earlier manifests, and every object as it was written, the first time first.
    backups: Vec<Bytes>,
    archive: Option<BTreeMap<String, Vec<Bytes>>>,
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory answers at once")
}

fn object(store: &Memory, key: &str) -> Option<Object> {
    at_once(store.get(key)).ok()
}

impl Model {
    /// Of an empty store. With an operator, everything that was ever written is kept for a put-back.
    pub fn new(policy: Policy, operator: bool) -> Self {
        Self {
            policy,
            violation: None,
            acknowledged: 0,
            acknowledged_last: 0,
            deletions_open: 0,
            put_backs: 0,
            meddled: None,
            judged: Timestamp(i64::MIN),
            manifest: None,
            log: Vec::new(),
            indexes: BTreeMap::new(),
            seen: BTreeMap::new(),
            points: BTreeMap::new(),
            facts: BTreeMap::new(),
            interval_last: BTreeMap::new(),
            promised: None,
            epoch_highest: Epoch::FIRST,
            backups: Vec::new(),
            archive: operator.then(BTreeMap::new),
        }
    }

    /// The end of what is durable.
    pub fn end(&self) -> Option<Pos> {
        self.facts.last_key_value().map(|(txid, checksum)| Pos { txid: *txid, checksum: *checksum })
    }

    /// Something does not hold. Only the first counts.
    pub fn violated(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// Somebody plans what to keep by this time.
    pub fn judging(&mut self, now: Timestamp) {
        self.judged = self.judged.max(now);
    }

    /// Somebody says that under `epoch` the log ends at `pos`, and goes on from there.
    pub fn promise(&mut self, epoch: Epoch, pos: Pos) {
        if self.promised.is_none_or(|(highest, _)| highest <= epoch) {
            self.promised = Some((epoch, pos));
        }
        if self.facts.get(&pos.txid).is_some_and(|checksum| *checksum != pos.checksum) {
            self.violated(format!("epoch {} went on from {pos}, which is no position of the log", epoch.get()));
        }
    }

    /// Somebody was told that `pos` is durable.
    pub fn acknowledge(&mut self, pos: Pos, now: u64) {
        self.acknowledged += 1;
        self.acknowledged_last = now;
        // After a put-back it may lie in the log and count, and what leads to it is gone.
        let is_there = self.put_backs > 0 && self.log.iter().any(|s| s.entries.iter().any(|e| e.end() == pos));
        if self.facts.get(&pos.txid) != Some(&pos.checksum) && !is_there {
            self.violated(format!("{pos} was acknowledged, and is not in the log"));
        }
        let first = self.points.first_key_value().map(|(first, _)| *first);
        match self.points.get_mut(&pos.txid) {
            Some(point) => point.acknowledged = true,
            // Or it came so late that the rules have let it go, or an operator has taken away what led to it.
            None if self.put_backs > 0 || Some(pos.txid) < first => {}
            None => self.violated(format!("{pos} was acknowledged, and cannot be restored")),
        }
    }

    /// An object was written or deleted.
    pub fn changed(&mut self, store: &Memory, key: &str) {
        if let (Some(archive), Some(object)) = (self.archive.as_mut(), object(store, key))
            && key != keys::MANIFEST
        {
            archive.entry(key.to_owned()).or_default().push(object.bytes);
        }
        if let Some(seq) = keys::parse_segment(key) {
            self.segment_changed(store, seq);
        } else if key == keys::MANIFEST {
            self.manifest_changed(store);
        } else if key.starts_with(keys::LTX_PREFIX) {
            self.check(store);
        }
    }

    fn segment_changed(&mut self, store: &Memory, seq: Seq) {
        let place = self.log.binary_search_by_key(&seq, |s| s.seq);
        let Some(object) = object(store, &keys::segment(seq)) else {
            if let Ok(at) = place {
                self.log.remove(at);
            }
            return self.check(store);
        };
        let segment = match Segment::decode(&object.bytes) {
            Ok(segment) => segment,
            Err(e) => return self.violated(format!("segment {seq}: {e}")),
        };
        let segment = LogSegment::new(segment.header, segment.entries, object.size);
        match place {
            Ok(at) => self.log[at] = segment,
            Err(at) => self.log.insert(at, segment),
        }
        let Some(manifest) = &self.manifest else {
            return self.violated(format!("segment {seq} was written before the manifest"));
        };
        let counting: Vec<LogSegment> = match live(manifest, &self.log) {
            Ok(live) => live.into_iter().filter(|s| s.seq == seq).cloned().collect(),
            Err(missing) => return self.violated(missing.to_string()),
        };
        for segment in &counting {
            self.count(segment);
        }
        if !counting.is_empty() {
            self.check(store);
        }
    }

    /// A segment counts from here on.
    fn count(&mut self, segment: &LogSegment) {
        if let Some((epoch, pos)) = self.promised.filter(|(epoch, _)| segment.header.epoch < *epoch) {
            let theirs = segment.header.epoch.get();
            let seq = segment.seq;
            self.violated(format!(
                "segment {seq} of epoch {theirs} counts after epoch {} had gone on from {pos}",
                epoch.get()
            ));
        }
        for entry in &segment.entries {
            self.fact(entry.end());
        }
    }

    fn fact(&mut self, pos: Pos) {
        let known = *self.facts.entry(pos.txid).or_insert(pos.checksum);
        if known != pos.checksum {
            self.violated(format!("{pos} contradicts {known}"));
        }
    }

    fn point(&mut self, pos: Pos, time: Timestamp) {
        let number = self.interval(time);
        let last = self.interval_last.entry(number).or_insert(pos.txid);
        *last = (*last).max(pos.txid);
        self.points.entry(pos.txid).or_insert(Point { checksum: pos.checksum, time, acknowledged: false });
    }

    fn interval(&self, time: Timestamp) -> i64 {
        time.0.div_euclid(i64::try_from(self.policy.merge_interval.as_millis()).expect("short").max(1000))
    }

    fn manifest_changed(&mut self, store: &Memory) {
        let Some(object) = object(store, keys::MANIFEST) else { return };
        let manifest = match Manifest::decode(&object.bytes) {
            Ok(manifest) => manifest,
            Err(e) => return self.violated(e.to_string()),
        };
        if self.archive.is_some() {
            self.backups.push(object.bytes);
            if self.backups.len() > BACKUPS_MAX {
                self.backups.remove(0);
            }
        }
        self.judged = self.judged.max(manifest.updated);
        self.epoch_highest = self.epoch_highest.max(manifest.epoch);
        for file in &manifest.files {
            self.fact(file.end());
        }
        self.manifest = Some(manifest);
        self.check(store);
    }

    /// Looks at the objects of the manifest. `false` when one is not as it should be.
    fn check_files(&mut self, store: &Memory) {
        let Some(manifest) = self.manifest.take() else { return };
        for file in &manifest.files {
            let Ok(meta) = at_once(store.head(&file.key)) else {
                self.violated(format!("{} is named by the manifest, and missing", file.key));
                continue;
            };
            let version = meta.version.as_str();
            let known = self.seen.get(&file.key).filter(|(seen, _)| seen == version).map(|(_, crc)| *crc);
            let crc = known.unwrap_or_else(|| self.look(store, &file.key, file.kind, version));
            if crc != file.crc64.0 {
                self.violated(format!("{} is not the object that the manifest names", file.key));
            }
        }
        self.manifest = Some(manifest);
    }

    fn look(&mut self, store: &Memory, key: &str, kind: FileKind, version: &str) -> u64 {
        let bytes = object(store, key).expect("it has a version").bytes;
        if kind == FileKind::Bundle {
            match Segment::decode(&bytes) {
                Ok(bundle) => {
                    let index = BundleIndex { key: key.to_owned(), entries: bundle.entries };
                    self.indexes.insert(key.to_owned(), index);
                }
                Err(e) => self.violated(format!("{key}: {e}")),
            }
        }
        let crc = crc64(&bytes);
        self.seen.insert(key.to_owned(), (version.to_owned(), crc));
        crc
    }

    /// Everything that was restorable and is kept still is.
    fn check(&mut self, store: &Memory) {
        self.check_files(store);
        let Some(manifest) = &self.manifest else { return };
        let named: BTreeSet<&str> = manifest.files.iter().map(|f| f.key.as_str()).collect();
        self.indexes.retain(|key, _| named.contains(key.as_str()));
        self.seen.retain(|key, _| named.contains(key.as_str()));
        let indexes: Vec<BundleIndex> = self.indexes.values().cloned().collect();
        let points = match restore_plan::points(manifest, &self.log, &indexes) {
            Ok(points) => points,
            Err(missing) => return self.violated(missing.to_string()),
        };
        let latest = match restore_plan::plan(manifest, &self.log, &indexes, Target::Latest) {
            Ok(plan) => plan.pos.txid,
            // The snapshot that bridged what was never uploaded was named later. A new one will come.
            Err(_) if self.meddled.is_some() => return self.points.clear(),
            Err(error) => return self.violated(format!("the latest state cannot be restored: {error}")),
        };
        self.meddled = self.meddled.filter(|before| latest < *before);
        for point in &points {
            self.fact(point.pos);
            self.point(point.pos, point.time);
        }
        let there: BTreeMap<Txid, Checksum> = points.iter().map(|p| (p.pos.txid, p.pos.checksum)).collect();
        self.release(&there);
    }

    /// Forgets the points that the rules let go; finds those that they do not.
    fn release(&mut self, there: &BTreeMap<Txid, Checksum>) {
        let newest = self.points.last_key_value().map(|(txid, _)| *txid);
        let gone: Vec<(Txid, Point)> = self
            .points
            .iter()
            .filter(|(txid, point)| there.get(txid) != Some(&point.checksum))
            .map(|(txid, point)| (*txid, *point))
            .collect();
        for (txid, point) in gone {
            if Some(txid) == newest || self.is_kept(txid, point) {
                let what = if point.acknowledged { "acknowledged" } else { "seen" };
                self.violated(format!("{txid}/{} was {what}, and cannot be restored any more", point.checksum));
            }
            self.points.remove(&txid);
        }
    }

    /// Rule 1 of `history_plan`, but for days: no run passes midnight.
    fn is_kept(&self, txid: Txid, point: Point) -> bool {
        let younger = |age: std::time::Duration| {
            point.time.0 > self.judged.0.saturating_sub(i64::try_from(age.as_millis()).expect("short"))
        };
        let is_last = self.interval_last.get(&self.interval(point.time)) == Some(&txid);
        younger(self.policy.keep_every_commit) || (is_last && younger(self.policy.keep_hourly))
    }

    /// At the end: a plan for every point, which ends exactly there.
    pub fn check_all(&mut self, store: &Memory) {
        self.check(store);
        let Some(manifest) = &self.manifest else { return };
        let indexes: Vec<BundleIndex> = self.indexes.values().cloned().collect();
        let mut wrong = None;
        for (txid, point) in &self.points {
            match restore_plan::plan(manifest, &self.log, &indexes, Target::Txid(*txid)) {
                Ok(plan) if plan.pos == (Pos { txid: *txid, checksum: point.checksum }) => {}
                Ok(plan) => wrong = Some(format!("a restore to {txid} ends at {}", plan.pos)),
                Err(error) => wrong = Some(format!("restore to {txid}: {error}")),
            }
        }
        if let Some(text) = wrong {
            self.violated(text);
        }
    }

    /// An operator puts an earlier manifest back, and with it the objects that it names or that its log holds. `None` when there
    /// is nothing to put back, something is just being deleted, or it is of an earlier epoch and one of `sessions` as well.
    pub fn put_back(&mut self, store: &Memory, steps: usize, sessions: &[Epoch]) -> Option<String> {
        let at = self.backups.len().checked_sub(2 + steps)?;
        if self.deletions_open > 0 {
            return None;
        }
        let bytes = self.backups[at].clone();
        let manifest = Manifest::decode(&bytes).expect("it was there before");
        let highest = self.epoch_highest;
        if manifest.epoch < highest && sessions.iter().any(|epoch| *epoch < highest) {
            return None;
        }
        let archive = self.archive.as_ref()?;
        let mut missing: Vec<(String, Bytes)> = Vec::new();
        for file in &manifest.files {
            let is_it = |bytes: &&Bytes| crc64(bytes) == file.crc64.0;
            let bytes = archive.get(&file.key).and_then(|all| all.iter().find(is_it)).expect("it was written");
            missing.push((file.key.clone(), bytes.clone()));
        }
        let end = self.log.last().map_or(manifest.first_seq, |s| s.seq);
        for seq in manifest.first_seq.get()..=end.get() {
            let key = keys::segment(Seq::new(seq).expect("not below the first"));
            missing.extend(archive.get(&key).and_then(|all| all.first()).map(|bytes| (key, bytes.clone())));
        }
        for (key, bytes) in missing {
            if object(store, &key).is_none_or(|there| there.bytes != bytes) {
                put(store, &key, bytes).expect("memory takes it");
            }
        }
        put(store, keys::MANIFEST, bytes).expect("memory takes it");
        self.reload(store);
        Some(format!("revision {} of epoch {}", manifest.revision, manifest.epoch.get()))
    }

    /// Reads everything again after a hand that is not ours.
    fn reload(&mut self, store: &Memory) {
        self.backups.clear();
        let listed = at_once(store.list_all(keys::LOG_PREFIX.trim_end_matches('/'))).expect("memory lists");
        self.log.clear();
        for entry in listed {
            let bytes = object(store, &entry.key).expect("listed").bytes;
            let segment = Segment::decode(&bytes).expect("only segments lie there");
            self.log.push(LogSegment::new(segment.header, segment.entries, entry.size));
        }
        // What only a later manifest named is gone, and that is no loss.
        let latest = self.points.last_key_value().map(|(txid, _)| *txid);
        self.points.clear();
        self.meddled = self.meddled.max(latest).or(Some(Txid::FIRST));
        self.put_backs += 1;
        self.manifest_changed(store);
        let points = &self.points;
        self.facts
            .retain(|txid, _| points.contains_key(txid) || points.keys().next().is_some_and(|first| txid < first));
    }
}
