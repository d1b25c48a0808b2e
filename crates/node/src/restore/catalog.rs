//! What one database's part of the store holds: identity, manifest, and the entries of every live log segment.
//!
//! Requests: one for `id.json`, one for the manifest, one listing for each thousand segments, one for the end of each
//! segment, and one to learn that the segment after the last is not there. The listing saves a round trip per window of
//! guesses and gives the sizes; it is not trusted to be complete: sequence numbers have no gaps, so whatever it leaves out
//! is asked for by name.
//!
//! Memory: the ends of segments are kept for the restore that follows as far as they are whole segments and fit in
//! [`CACHE_BYTES_MAX`]; everything else is read again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::identity::Identity;
use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::{self, Segment, SegmentHeader, SegmentKind};
use rhyolite_format::{Epoch, Lineage, Nonce, Pos, Seq, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::log::LogSegment;
use rhyolite_logic::restore_plan::{BundleIndex, PlanError, points};
use tokio::task::JoinHandle;

use super::base::Base;
use super::pool::finished;
use super::reader::Reader;
use super::visit::bundle_entries;
use super::{RestoreError, blocking};
use crate::segment_source::{self, SegmentSource};

/// Bytes of small segments that are kept from planning to restoring.
const CACHE_BYTES_MAX: usize = 8 << 20;
/// Bytes at the end of a segment that are asked for first: a small segment comes whole.
const TAIL_BYTES: u64 = 64 * 1024;
/// Objects that are asked for at the same time.
const REQUESTS_MAX: usize = 32;
/// Keys that are asked for in one listing.
const LIST_KEYS: usize = 1000;

/// One database in a store, as it was at one moment.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) identity: Identity,
    pub(crate) manifest: Manifest,
    /// The live segments, by sequence number, without gaps. Some may be void.
    pub(crate) log: Vec<LogSegment>,
    /// Whole small segments, by key.
    pub(crate) cache: HashMap<String, Bytes>,
    /// What is wrong with segments, if that is to be collected; they count as empty then, of size 0.
    pub(crate) damage: Vec<RestoreError>,
    cached_bytes: usize,
    /// The highest epoch so far.
    epoch: Epoch,
}

/// What to do about a segment that is missing or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// It is an error.
    Refuse,
    /// Note it and go on.
    Collect,
}

impl Catalog {
    /// Reads everything. With `until`, the log is read no further than the segment that holds this transaction.
    pub(crate) async fn load(
        reader: &Arc<Reader>,
        until: Option<Txid>,
        on_damage: OnDamage,
    ) -> Result<Self, RestoreError> {
        Self::load_with(reader, None, until, on_damage).await
    }

    /// The same, with segments that need not be fetched.
    pub(crate) async fn load_with(
        reader: &Arc<Reader>,
        local: Option<&Arc<dyn SegmentSource>>,
        until: Option<Txid>,
        on_damage: OnDamage,
    ) -> Result<Self, RestoreError> {
        let Some(identity) = reader.find(keys::ID).await? else {
            // A store that has lost it holds a backup all the same.
            return Err(match reader.find(keys::MANIFEST).await? {
                Some(_) => RestoreError::Missing { key: keys::ID.to_owned() },
                None => RestoreError::NoDatabase { store: reader.store().describe() },
            });
        };
        let identity = Identity::decode(&identity.bytes).map_err(|e| RestoreError::damaged(keys::ID, e))?;
        let manifest = load_manifest(reader, &identity).await?;
        let (epoch, log, cache, damage) = (manifest.log_epoch, Vec::new(), HashMap::new(), Vec::new());
        let mut catalog = Self { identity, manifest, log, cache, damage, cached_bytes: 0, epoch };
        catalog.load_log(reader, local, until, on_damage).await?;
        Ok(catalog)
    }

    /// The index of a bundle that the manifest names.
    pub(crate) async fn bundle_index(&self, reader: &Reader, key: &str) -> Result<BundleIndex, RestoreError> {
        let file =
            self.manifest.files.iter().find(|file| file.key == key).expect("a plan names only what it was given");
        Ok(BundleIndex { key: key.to_owned(), entries: bundle_entries(reader, file).await? })
    }

    /// Every position that the store can restore, bundles looked into.
    pub(crate) async fn positions(&self, reader: &Reader) -> Result<Vec<Pos>, RestoreError> {
        let mut indexes = Vec::new();
        for bundle in self.manifest.files.iter().filter(|file| file.kind == FileKind::Bundle) {
            indexes.push(self.bundle_index(reader, &bundle.key).await?);
        }
        let known = points(&self.manifest, &self.log, &indexes).map_err(PlanError::from)?;
        Ok(known.into_iter().map(|point| point.pos).collect())
    }

    async fn load_log(
        &mut self,
        reader: &Arc<Reader>,
        local: Option<&Arc<dyn SegmentSource>>,
        until: Option<Txid>,
        on_damage: OnDamage,
    ) -> Result<(), RestoreError> {
        let first = self.manifest.first_seq;
        let sizes = list_log(reader, first).await?;
        let listed = sizes.last_key_value().map(|(seq, _)| *seq);
        let mut asked: VecDeque<JoinHandle<Result<Option<Read>, RestoreError>>> = VecDeque::new();
        let (mut ask, mut seq) = (first, first);
        loop {
            // Past the end of the listing one request at a time: nearly always there is nothing.
            while asked.len() < REQUESTS_MAX && (asked.is_empty() || Some(ask) <= listed) {
                let here = local.cloned().zip(sizes.get(&ask).copied());
                asked.push_back(tokio::spawn(find_segment(here, Arc::clone(reader), self.identity.lineage, ask)));
                ask = ask.next();
            }
            let answer = asked.pop_front().expect("at least one was asked for");
            let read = match finished(answer.await) {
                Ok(Some(read)) => Ok(read),
                Ok(None) if listed.is_none_or(|last| last < seq) => return Ok(()),
                Ok(None) => Err(RestoreError::Missing { key: keys::segment(seq) }),
                Err(e) => Err(e),
            };
            match read {
                Ok(read) => self.take_in(read),
                Err(e) if on_damage == OnDamage::Collect && e.is_about_an_object() => self.take_in_damaged(seq, e),
                Err(e) => return Err(e),
            }
            if until.is_some_and(|until| self.reaches(until)) {
                return Ok(());
            }
            seq = seq.next();
        }
    }

    /// An error if damage was collected and the target may lie in it or behind it, with nothing that leads on from there. A time lies before
    /// it if a commit before the damage is later than that; where the clock ran backwards behind the damage, the plan finds that out.
    pub(crate) fn refuse_beyond_damage(&mut self, target: Target) -> Result<(), RestoreError> {
        if self.damage.is_empty() || self.is_led_over_damage() == Some(true) {
            return Ok(());
        }
        let damage = self.damage.swap_remove(0);
        let sound = self.log.iter().position(is_lost).unwrap_or(self.log.len());
        let known = points(&self.manifest, &self.log[..sound], &[]).map_err(PlanError::from)?;
        let last = known.last().map(|point| (point.pos.txid, point.time));
        let is_before = match (target, last) {
            (Target::Txid(txid), Some((last, _))) => txid <= last,
            (Target::Time(time) | Target::TimeNearest(time), Some((_, last))) => time < last,
            (Target::Latest, _) | (_, None) => false,
        };
        if is_before { Ok(()) } else { Err(RestoreError::Hole { damage: Box::new(damage), last }) }
    }

    /// Whether a snapshot of the manifest leads over all damage to the log: what comes after it can be restored as if nothing were lost. `None`
    /// when none can: the damage is at the end of the log, as far as anybody knows, or it is not certain what counts after it.
    ///
    /// Whether a segment counts depends on the epochs before it, and that of a lost one is not known. It was none that ended another's: who
    /// writes under a new epoch has put it into the manifest before, and the manifest still has that of the segments that follow.
    pub(crate) fn is_led_over_damage(&self) -> Option<bool> {
        let Some(lost) = self.log.iter().rposition(is_lost) else { return Some(true) };
        let after = &self.log[lost + 1..];
        let next = after.iter().find_map(|segment| segment.entries.first())?;
        let is_one_epoch = after.iter().all(|segment| segment.header.epoch == self.manifest.epoch);
        let snapshots = self.manifest.files.iter().filter(|file| file.kind == FileKind::Snapshot);
        is_one_epoch.then(|| snapshots.map(ManifestFile::end).any(|end| end.txid.next() >= next.min_txid))
    }

    /// Forgets everything before a state, as if the log began there.
    pub(crate) fn continue_from(&mut self, next_seq: Seq, base: &Base) {
        self.log.clear();
        self.cache.clear();
        self.cached_bytes = 0;
        self.manifest.files.clear();
        self.manifest.first_seq = next_seq;
        self.manifest.log_epoch = self.epoch;
        self.manifest.log_start = Some(base.pos);
    }

    pub(crate) fn take_in(&mut self, read: Read) {
        if let Some(bytes) = read.whole.filter(|bytes| self.cached_bytes + bytes.len() <= CACHE_BYTES_MAX) {
            self.cached_bytes += bytes.len();
            self.cache.insert(read.segment.key.clone(), bytes);
        }
        self.epoch = self.epoch.max(read.segment.header.epoch);
        self.log.push(read.segment);
    }

    fn take_in_damaged(&mut self, seq: Seq, error: RestoreError) {
        self.damage.push(error);
        let nonce = Nonce([0; 16]);
        let header = SegmentHeader::log(self.identity.lineage, self.epoch, seq, nonce, self.identity.created);
        self.log.push(LogSegment::new(header, Vec::new(), 0));
    }

    /// Whether the last segment, if it counts, ends at or after a transaction.
    fn reaches(&self, txid: Txid) -> bool {
        let counts = self.log.last().filter(|last| last.header.epoch == self.epoch);
        counts.and_then(|last| last.entries.last()).is_some_and(|entry| entry.max_txid >= txid)
    }
}

/// A segment that was missing or damaged has no size.
fn is_lost(segment: &LogSegment) -> bool {
    segment.size == 0
}

/// The manifest; before the first one is written, the log starts with its first segment.
async fn load_manifest(reader: &Reader, identity: &Identity) -> Result<Manifest, RestoreError> {
    let Some(object) = reader.find(keys::MANIFEST).await? else {
        let nonce = Nonce([0; 16]);
        return Ok(Manifest::new(identity.lineage, Epoch::FIRST, nonce, identity.created, Seq::FIRST));
    };
    let manifest = Manifest::decode(&object.bytes).map_err(|e| RestoreError::damaged(keys::MANIFEST, e))?;
    if manifest.lineage != identity.lineage {
        let detail = format!("it is of history {}, id.json of {}", manifest.lineage, identity.lineage);
        return Err(RestoreError::contradiction(keys::MANIFEST, detail));
    }
    Ok(manifest)
}

/// The segments that a listing shows, from `first` on, and their sizes.
async fn list_log(reader: &Reader, first: Seq) -> Result<BTreeMap<Seq, u64>, RestoreError> {
    let mut after = first.previous().map(keys::segment);
    let mut sizes = BTreeMap::new();
    loop {
        let page = reader.list(keys::LOG_PREFIX, after.as_deref(), LIST_KEYS).await?;
        sizes.extend(page.iter().filter_map(|entry| Some((keys::parse_segment(&entry.key)?, entry.size))));
        if page.len() < LIST_KEYS {
            return Ok(sizes);
        }
        after = page.last().map(|entry| entry.key.clone());
    }
}

/// A segment's entries, and all of its bytes if they came along.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) segment: LogSegment,
    pub(crate) whole: Option<Bytes>,
}

/// The entries of one log segment from this machine, if it is `here`, or from the store.
async fn find_segment(
    here: Option<(Arc<dyn SegmentSource>, u64)>,
    reader: Arc<Reader>,
    lineage: Lineage,
    seq: Seq,
) -> Result<Option<Read>, RestoreError> {
    if let Some((source, size)) = here {
        let read = blocking(move || Ok(segment_source::read(&*source, lineage, seq, size))).await?;
        if let Some((segment, whole)) = read {
            return Ok(Some(Read { segment, whole }));
        }
    }
    read_segment(reader, lineage, seq).await
}

/// The entries of one log segment; `None` if there is no such object.
pub(crate) async fn read_segment(
    reader: Arc<Reader>,
    lineage: Lineage,
    seq: Seq,
) -> Result<Option<Read>, RestoreError> {
    let key = keys::segment(seq);
    let Some(object) = reader.find_tail(&key, TAIL_BYTES).await? else { return Ok(None) };
    let size = object.size;
    let damaged = |e| RestoreError::damaged(&key, e);
    let is_whole = object.bytes.len() as u64 == size;
    let Segment { header, entries } = if is_whole {
        Segment::decode(&object.bytes).map_err(damaged)?
    } else {
        let header = reader.get_range(&key, 0..segment::HEADER_SIZE as u64).await?;
        let header = SegmentHeader::decode(&header).map_err(damaged)?;
        let index = segment::decode_footer(&object.bytes, size).map_err(damaged)?;
        let tail_start = size - object.bytes.len() as u64;
        let tail = match index.start.checked_sub(tail_start) {
            Some(skip) => object.bytes.slice(skip as usize..),
            None => reader.get_range(&key, index.start..size).await?,
        };
        let entries = segment::decode_index(&header, &tail, size).map_err(damaged)?;
        Segment { header, entries }
    };
    if header.kind != SegmentKind::Log || header.seq != seq || header.lineage != lineage {
        let detail = format!("it says it is segment {} of history {}", header.seq, header.lineage);
        return Err(RestoreError::contradiction(&key, detail));
    }
    let segment = LogSegment::new(header, entries, size);
    Ok(Some(Read { segment, whole: is_whole.then_some(object.bytes) }))
}
