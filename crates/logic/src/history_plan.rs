//! What to do about a database's history in the store: bundle, merge, snapshot, expire, delete.
//!
//! ```text
//! log segments ──bundle──▶ bundles ──merge──▶ merged files (an hour each) ──merge──▶ merged files (a day each) ──expire──▶ gone
//!                             snapshots, from the database or the log, every so often ──────────────────────────expire──▶ gone
//! ```
//!
//! A plan is made from the manifest, the listing of the live log, the policy and the time; nothing is remembered. Each step is carried
//! out by writing its new objects, then swapping the manifest for the one that [`apply`] gives. A swap that is refused
//! throws the rest of the plan away.
//!
//! Rules:
//!
//! 1. A restore point is *kept* when it is younger than `keep_every_commit`; or younger than `keep_hourly` and the last of its
//!    merge interval; or younger than `keep_daily` and the last of its day; or pinned; or the newest. No step makes a kept point unreachable.
//!    (Intervals and days are aligned to UTC.)
//! 2. An object is deleted only after it has been in the manifest's lists of retired objects for the grace period. It gets there only
//!    when other live files hold what it held (bundle, merge), or when no kept point needs it (expire).
//! 3. The newest log segment is never bundled, the newest snapshot never expires.
//! 4. A bundle lies within one merge interval, so that merging a whole interval takes away no last point of another.
//! 5. An idle database gets no step but those that become due by age, once.

use std::time::Duration;

use rhyolite_format::manifest::{
    Crc64Hex, FileKind, Manifest, ManifestFile, RETIRED_MAX, RetiredFile, RetiredSegments,
};
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::{Epoch, Nonce, Pos, Seq, Timestamp, Txid, keys};

use crate::log::{LogSegment, MissingSegment, live};
use crate::restore_plan::{self, PlanError, Target};

/// The most merges in one plan. More are planned when these are done.
const MERGES_MAX: usize = 16;
/// Level of files merged over one merge interval.
const HOURLY_LEVEL: u8 = 2;
/// Level of files merged over one day.
const DAILY_LEVEL: u8 = 3;
/// Ranges of retired segments beyond which the oldest are made one.
const RETIRED_RANGES_MAX: usize = 1000;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// When to do what, and what to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long log segments wait to be bundled.
    pub bundle_interval: Duration,
    /// How many log segments are worth a bundle.
    pub bundle_segments_min: usize,
    /// Bundled at once even before the interval is over; the most for one bundling.
    pub bundle_segments_max: usize,
    /// The same for their bytes.
    pub bundle_bytes_max: u64,
    /// The same for their transactions.
    pub bundle_entries_max: usize,
    /// What is merged into one file once not every commit is kept any more. At least a second.
    pub merge_interval: Duration,
    /// How long commits may go without a snapshot.
    pub snapshot_interval: Duration,
    /// Every commit younger than this can be restored.
    pub keep_every_commit: Duration,
    /// The last commit of each merge interval younger than this can be restored.
    pub keep_hourly: Duration,
    /// The last commit of each day younger than this can be restored.
    pub keep_daily: Duration,
    /// How long retired objects stay for readers that hold an older manifest.
    pub grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self {
            bundle_interval: Duration::from_secs(300),
            bundle_segments_min: 8,
            bundle_segments_max: 1000,
            bundle_bytes_max: 64 << 20,
            bundle_entries_max: 50_000,
            merge_interval: hours(1),
            snapshot_interval: hours(24),
            keep_every_commit: hours(24),
            keep_hourly: hours(7 * 24),
            keep_daily: hours(30 * 24),
            grace: hours(1),
        }
    }
}

/// Which part of a plan somebody carries out. Credentials that may only create leave deletion to others, who leave the rest to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duty {
    /// All of it.
    #[default]
    All,
    /// Bundles, merges and snapshots: nothing is deleted, and no restore point expires.
    Compact,
    /// Expiry and deletion.
    Prune,
}

impl Duty {
    /// Whether this step belongs to it.
    pub fn includes(self, step: &Step) -> bool {
        let deletes = matches!(step, Step::Expire { .. } | Step::Delete { .. });
        match self {
            Self::All => true,
            Self::Compact => !deletes,
            Self::Prune => deletes,
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the log segments `first_seq` to `last_seq` as the objects in `pieces` (maybe none, when they are fences).
    Bundle {
        /// The manifest's first live segment.
        first_seq: Seq,
        /// The last to bundle.
        last_seq: Seq,
        /// The position after it; the log starts there from then on.
        end: Option<Pos>,
        /// The highest epoch among them and before.
        log_epoch: Epoch,
        /// The objects to write, in order.
        pieces: Vec<Piece>,
    },
    /// Merge contiguous files into one.
    Merge {
        /// Level of the result.
        level: u8,
        /// Bundles and merged files, in order.
        inputs: Vec<ManifestFile>,
    },
    /// Write a snapshot of the database at any position from `from` on.
    Snapshot {
        /// The end of the log.
        from: Txid,
        /// Why.
        reason: SnapshotReason,
    },
    /// Take files out of the manifest that no kept restore point needs.
    Expire {
        /// Their keys.
        keys: Vec<String>,
    },
    /// Delete retired objects, then take them out of the lists.
    Delete {
        /// Keys of files.
        files: Vec<String>,
        /// Log segments.
        segments: Vec<RetiredSegments>,
    },
}

/// What a bundling writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A bundle of these commits.
    Bundle(Vec<LogEntry>),
    /// A snapshot that was in the log, as a file of its own.
    Snapshot(LogEntry),
}

/// A transaction in the log and the segment in which it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The segment.
    pub seq: Seq,
    /// The entry in it; its offset is that in the segment.
    pub entry: SegmentEntry,
}

/// Why a snapshot is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// Commits have gone without one for the interval.
    Interval,
    /// The end of the log cannot be restored otherwise: files are missing or do not join.
    Unreachable,
}

/// What [`apply`] writes into the new version of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// A new random number.
    pub nonce: Nonce,
    /// The writer's clock.
    pub now: Timestamp,
}

/// Plans. `log` is the listing from the manifest's first live segment to the end.
pub fn plan(
    manifest: &Manifest,
    log: &[LogSegment],
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Step>, MissingSegment> {
    let live = live(manifest, log)?;
    let mut steps = Vec::new();
    steps.extend(delete(manifest, policy, now));
    steps.extend(snapshot(manifest, log, &live, policy, now));
    steps.extend(bundle(manifest, log, &live, policy, now));
    let expired = expired(manifest, policy, now);
    let mut room = RETIRED_MAX.saturating_sub(manifest.retired_files.len());
    // What cannot be written down as retired waits for somebody to delete.
    let mut has_room = |count: usize| {
        let fits = count <= room;
        room -= if fits { count } else { 0 };
        fits
    };
    steps.extend(merges(manifest, &expired, policy, now).into_iter().filter(|step| match step {
        Step::Merge { inputs, .. } => has_room(inputs.len()),
        _ => true,
    }));
    if !expired.is_empty() && has_room(expired.len()) {
        steps.push(Step::Expire { keys: expired });
    }
    Ok(steps)
}

/// `now` less `age`.
fn ago(now: Timestamp, age: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(millis(age)))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Number of the interval of this length in which `time` lies.
fn interval(time: Timestamp, length: Duration) -> i64 {
    time.0.div_euclid(millis(length).max(1000))
}

fn delete(manifest: &Manifest, policy: &Policy, now: Timestamp) -> Option<Step> {
    let due = ago(now, policy.grace);
    let files: Vec<String> = manifest.retired_files.iter().filter(|f| f.since <= due).map(|f| f.key.clone()).collect();
    let segments: Vec<RetiredSegments> = manifest.retired_segments.iter().filter(|s| s.since <= due).cloned().collect();
    let is_due = !files.is_empty() || !segments.is_empty();
    is_due.then_some(Step::Delete { files, segments })
}

fn snapshot(
    manifest: &Manifest,
    log: &[LogSegment],
    live: &[&LogSegment],
    policy: &Policy,
    now: Timestamp,
) -> Option<Step> {
    let entries = || live.iter().flat_map(|s| &s.entries);
    let log_end = entries().next_back().map(SegmentEntry::end).or(manifest.log_start)?;
    let unreachable = match restore_plan::plan(manifest, log, &[], Target::Latest) {
        Ok(_) | Err(PlanError::Empty | PlanError::NeedIndex { .. } | PlanError::MissingSegment(_)) => false,
        Err(_) => true,
    };
    if unreachable {
        return Some(Step::Snapshot { from: log_end.txid, reason: SnapshotReason::Unreachable });
    }
    let of_manifest = manifest.files.iter().filter(|f| f.kind == FileKind::Snapshot).map(|f| f.max_txid);
    let of_log = entries().filter(|e| e.is_snapshot()).map(|e| e.max_txid);
    let newest = of_manifest.chain(of_log).max();
    let files = manifest.files.iter().filter(|f| f.kind != FileKind::Snapshot && Some(f.max_txid) > newest);
    let commits = entries().filter(|e| Some(e.max_txid) > newest);
    let oldest = files.map(|f| f.min_time).chain(commits.map(|e| e.timestamp)).min()?;
    let is_due = oldest <= ago(now, policy.snapshot_interval);
    is_due.then_some(Step::Snapshot { from: log_end.txid, reason: SnapshotReason::Interval })
}

fn bundle(
    manifest: &Manifest,
    log: &[LogSegment],
    live: &[&LogSegment],
    policy: &Policy,
    now: Timestamp,
) -> Option<Step> {
    let newest = log.last()?.seq;
    let waiting: Vec<&LogSegment> = log.iter().filter(|s| manifest.first_seq <= s.seq && s.seq < newest).collect();
    let entries = || live.iter().filter(|s| s.seq < newest).flat_map(|s| &s.entries);
    let oldest = entries().map(|e| e.timestamp).min();
    let is_old = oldest.is_some_and(|t| t <= ago(now, policy.bundle_interval));
    let is_due = (is_old && waiting.len() >= policy.bundle_segments_min)
        || waiting.len() >= policy.bundle_segments_max
        || entries().count() >= policy.bundle_entries_max
        || waiting.iter().map(|s| s.size).fold(0, u64::saturating_add) >= policy.bundle_bytes_max;
    if !is_due || waiting.is_empty() {
        return None;
    }
    let taken = &waiting[..count_within_limits(&waiting, policy)];
    let last_seq = taken.last().expect("at least one").seq;
    let parts: Vec<&LogSegment> = live.iter().copied().filter(|s| s.seq <= last_seq).collect();
    let end = parts.iter().rev().find_map(|s| s.entries.last()).map(SegmentEntry::end).or(manifest.log_start);
    if let Some(end) = end {
        // The manifest must be able to restore the position at which the log starts.
        let until = &log[..log.partition_point(|s| s.seq <= last_seq)];
        restore_plan::plan(manifest, until, &[], Target::Txid(end.txid)).ok()?;
    }
    let log_epoch = parts.iter().map(|s| s.header.epoch).max().unwrap_or(manifest.log_epoch);
    let pieces = pieces(&parts, policy.merge_interval);
    Some(Step::Bundle { first_seq: manifest.first_seq, last_seq, end, log_epoch, pieces })
}

/// How many of the waiting segments go into one bundling: as many as the limits allow, at least one.
fn count_within_limits(waiting: &[&LogSegment], policy: &Policy) -> usize {
    let (mut bytes, mut entries) = (0u64, 0);
    let within = waiting.iter().take(policy.bundle_segments_max).take_while(|s| {
        bytes = bytes.saturating_add(s.size);
        entries += s.entries.len();
        bytes <= policy.bundle_bytes_max && entries <= policy.bundle_entries_max
    });
    within.count().max(1)
}

/// Cuts the transactions of `parts` where a snapshot lies, where transactions are missing, and between merge intervals.
fn pieces(parts: &[&LogSegment], merge_interval: Duration) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for segment in parts {
        for entry in &segment.entries {
            let one = LogEntry { seq: segment.seq, entry: entry.clone() };
            if entry.is_snapshot() {
                pieces.push(Piece::Snapshot(one));
                continue;
            }
            match pieces.last_mut() {
                Some(Piece::Bundle(list)) if belongs(list, entry, merge_interval) => list.push(one),
                _ => pieces.push(Piece::Bundle(vec![one])),
            }
        }
    }
    pieces
}

fn belongs(list: &[LogEntry], entry: &SegmentEntry, merge_interval: Duration) -> bool {
    let Some(last) = list.last().map(|l| &l.entry) else { return true };
    let joins = last.max_txid.next() == entry.min_txid
        && entry.pre_apply == Some(last.post_apply)
        && entry.page_size == last.page_size;
    joins && interval(last.timestamp, merge_interval) == interval(entry.timestamp, merge_interval)
}

/// Keys of files that no kept restore point needs: those that end at or before the newest snapshot that lies at or below every kept
/// point. The last point before the kept times counts as kept, so that every kept time can be asked for.
pub(crate) fn expired(manifest: &Manifest, policy: &Policy, now: Timestamp) -> Vec<String> {
    let horizon = ago(now, policy.keep_daily.max(policy.keep_hourly).max(policy.keep_every_commit));
    let old = manifest.files.iter().filter(|f| f.max_time <= horizon).map(|f| f.max_txid);
    // Times need not ascend: nothing from the first young file on may go.
    let young = manifest.files.iter().filter(|f| f.max_time > horizon);
    let Some(floor) = old.max() else { return Vec::new() };
    // A young snapshot is a point by itself, whatever comes before it.
    let first = |f: &ManifestFile| if f.kind == FileKind::Snapshot { f.max_txid } else { f.min_txid };
    let floor = young.map(first).fold(floor, Txid::min);
    let floor = manifest.pins.iter().map(|p| p.pos.txid).fold(floor, Txid::min);
    // What the log continues from must stay restorable, however old it is.
    let floor = manifest.log_start.map_or(floor, |start| floor.min(start.txid));
    let snapshots = manifest.files.iter().filter(|f| f.kind == FileKind::Snapshot).map(|f| f.max_txid);
    let Some(base) = snapshots.filter(|txid| *txid <= floor).max() else { return Vec::new() };
    let is_below = |f: &&ManifestFile| f.max_txid < base || (f.max_txid == base && f.kind != FileKind::Snapshot);
    manifest.files.iter().filter(is_below).map(|f| f.key.clone()).collect()
}

fn merges(manifest: &Manifest, expired: &[String], policy: &Policy, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    let daily = ago(now, policy.keep_hourly.max(policy.keep_every_commit));
    let hourly = ago(now, policy.keep_every_commit);
    let mut taken: Vec<&str> = expired.iter().map(String::as_str).collect();
    for (level, length, before) in [(DAILY_LEVEL, DAY, daily), (HOURLY_LEVEL, policy.merge_interval, hourly)] {
        for run in runs(manifest, level, length, before) {
            let is_free = |f: &&ManifestFile| !taken.contains(&f.key.as_str());
            if steps.len() < MERGES_MAX && run.iter().all(is_free) {
                taken.extend(run.iter().map(|f| f.key.as_str()));
                steps.push(Step::Merge { level, inputs: run.into_iter().cloned().collect() });
            }
        }
    }
    steps
}

/// Runs of files below `level` (and of it, when an interval was merged in parts) that together hold what one interval of this
/// length has, when the interval was over before `before`. Only runs that are worth it: merging takes something away.
fn runs(manifest: &Manifest, level: u8, length: Duration, before: Timestamp) -> Vec<Vec<&ManifestFile>> {
    let mut files: Vec<&ManifestFile> =
        manifest.files.iter().filter(|f| f.kind != FileKind::Snapshot && f.level <= level).collect();
    files.sort_by_key(|f| (f.min_txid, f.max_txid));
    let is_pinned =
        |file: &ManifestFile| manifest.pins.iter().any(|p| file.min_txid <= p.pos.txid && p.pos.txid < file.max_txid);
    let ends_at_pin = |file: &ManifestFile| manifest.pins.iter().any(|p| p.pos.txid == file.max_txid);
    let end_of = |number: i64| number.saturating_add(1).saturating_mul(millis(length).max(1000));
    let mut runs: Vec<Vec<&ManifestFile>> = Vec::new();
    let mut reach: Option<Txid> = None;
    let mut is_open = false;
    for (i, file) in files.iter().copied().enumerate() {
        let number = interval(file.max_time, length);
        let overlaps = Some(file.min_txid) <= reach || files.get(i + 1).is_some_and(|n| n.min_txid <= file.max_txid);
        reach = reach.max(Some(file.max_txid));
        let fits = interval(file.min_time, length) == number && end_of(number) <= before.0;
        if !fits || overlaps || is_pinned(file) {
            is_open = false;
            continue;
        }
        let joins = |last: &ManifestFile| {
            last.max_txid.next() == file.min_txid
                && file.pre_apply == Some(last.post_apply)
                && file.page_size == last.page_size
                && interval(last.max_time, length) == number
        };
        match runs.last_mut() {
            Some(run) if is_open && run.last().is_some_and(|last| joins(last)) => run.push(file),
            _ => runs.push(vec![file]),
        }
        is_open = !ends_at_pin(file);
    }
    runs.retain(|run| run.len() > 1 || run[0].entries > 1);
    runs
}

/// Whether `step`, which was planned from an earlier version of the manifest, may be applied to this one.
pub fn fits(manifest: &Manifest, step: &Step) -> bool {
    let is_live = |key: &String| manifest.files.iter().any(|file| file.key == *key);
    match step {
        Step::Bundle { first_seq, .. } => manifest.first_seq == *first_seq,
        Step::Merge { inputs, .. } => inputs.iter().all(|input| manifest.files.contains(input)),
        Step::Snapshot { .. } => true,
        Step::Expire { keys } => keys.iter().all(is_live),
        Step::Delete { files, .. } => !files.iter().any(is_live),
    }
}

/// The manifest after `step`, whose new objects are `made` (one per piece of a bundling, one for a merge or snapshot, none otherwise).
///
/// Panics when `made` does not fit the step: that is our own mistake, and must not reach the store.
pub fn apply(manifest: &Manifest, step: &Step, made: Vec<ManifestFile>, update: Update) -> Manifest {
    let mut next = manifest.clone();
    next.epoch = update.epoch;
    next.nonce = update.nonce;
    next.updated = update.now;
    next.revision += 1;
    match step {
        Step::Bundle { first_seq, last_seq, end, log_epoch, pieces } => {
            assert_eq!(*first_seq, manifest.first_seq, "planned from another manifest");
            assert_eq!(made.len(), pieces.len(), "one file per piece");
            next.first_seq = last_seq.next();
            next.log_start = *end;
            next.log_epoch = *log_epoch;
            let since = update.now;
            next.retired_segments.push(RetiredSegments { first_seq: *first_seq, last_seq: *last_seq, since });
            shorten(&mut next.retired_segments);
        }
        Step::Merge { inputs, .. } => {
            let [file] = made.as_slice() else { panic!("a merge makes one file, not {}", made.len()) };
            let (first, last) = (inputs.first().expect("not empty"), inputs.last().expect("not empty"));
            assert!(
                (file.min_txid, file.pre_apply, file.end()) == (first.min_txid, first.pre_apply, last.end()),
                "{} does not hold what was to be merged",
                file.key
            );
            let merged: Vec<&str> = inputs.iter().map(|f| f.key.as_str()).filter(|key| *key != file.key).collect();
            retire(&mut next, &merged, update.now);
        }
        Step::Snapshot { from, .. } => {
            let [file] = made.as_slice() else { panic!("a snapshot is one file, not {}", made.len()) };
            assert!(file.kind == FileKind::Snapshot && file.max_txid >= *from, "{} is not the snapshot", file.key);
        }
        Step::Expire { keys } => {
            assert!(made.is_empty(), "expiring makes nothing");
            retire(&mut next, &keys.iter().map(String::as_str).collect::<Vec<_>>(), update.now);
        }
        Step::Delete { files, segments } => {
            assert!(made.is_empty(), "deleting makes nothing");
            next.retired_files.retain(|f| !files.contains(&f.key));
            next.retired_segments.retain(|s| !segments.contains(s));
        }
    }
    for file in made {
        enter(&mut next, file, update.now);
    }
    next
}

/// Makes one of the two oldest ranges that join, when nobody has deleted any for a long time. They wait as long as the younger one.
fn shorten(ranges: &mut Vec<RetiredSegments>) {
    if ranges.len() <= RETIRED_RANGES_MAX {
        return;
    }
    if let Some(i) = ranges.windows(2).position(|w| w[0].last_seq.next() == w[1].first_seq) {
        let first_seq = ranges.remove(i).first_seq;
        ranges[i].first_seq = first_seq;
    }
}

/// Makes `file` a live one. One of the same transactions under another name, which an earlier epoch wrote, retires.
pub fn enter(manifest: &mut Manifest, file: ManifestFile, now: Timestamp) {
    let place = |f: &ManifestFile| (f.level, f.min_txid, f.max_txid);
    let replaced = manifest.files.iter().filter(|f| place(f) == place(&file) && f.key != file.key);
    let replaced: Vec<String> = replaced.map(|f| f.key.clone()).collect();
    retire(manifest, &replaced.iter().map(String::as_str).collect::<Vec<_>>(), now);
    manifest.files.retain(|f| f.key != file.key);
    manifest.retired_files.retain(|f| f.key != file.key);
    manifest.files.push(file);
    manifest.files.sort_by_key(place);
}

/// Moves files from the live to the retired ones.
fn retire(manifest: &mut Manifest, keys: &[&str], since: Timestamp) {
    let before = manifest.files.len();
    manifest.files.retain(|f| !keys.contains(&f.key.as_str()));
    assert_eq!(before - manifest.files.len(), keys.len(), "only live files retire");
    manifest.retired_files.extend(keys.iter().map(|key| RetiredFile { key: (*key).to_owned(), since }));
    manifest.retired_files.sort_by(|a, b| a.key.cmp(&b.key));
    manifest.retired_files.dedup_by(|a, b| a.key == b.key);
}

impl Piece {
    fn entries(&self) -> &[LogEntry] {
        match self {
            Self::Bundle(entries) => entries,
            Self::Snapshot(entry) => std::slice::from_ref(entry),
        }
    }

    /// Key of its object in `epoch`.
    pub fn key(&self, epoch: Epoch) -> String {
        let (first, last) = ends(self.entries());
        match self {
            Self::Bundle(_) => keys::bundle(first.min_txid, last.max_txid, epoch),
            Self::Snapshot(_) => keys::ltx(keys::SNAPSHOT_LEVEL, first.min_txid, last.max_txid, epoch),
        }
    }

    /// Its place in the manifest, once its object has been written.
    pub fn file(&self, epoch: Epoch, object: Written) -> ManifestFile {
        let entries = self.entries();
        let (first, last) = ends(entries);
        let is_bundle = matches!(self, Self::Bundle(_));
        ManifestFile {
            kind: if is_bundle { FileKind::Bundle } else { FileKind::Snapshot },
            key: self.key(epoch),
            level: if is_bundle { keys::BUNDLE_LEVEL } else { keys::SNAPSHOT_LEVEL },
            min_txid: first.min_txid,
            max_txid: last.max_txid,
            min_time: entries.iter().map(|e| e.entry.timestamp).min().expect("not empty"),
            max_time: last.timestamp,
            size: object.size,
            crc64: Crc64Hex(object.crc64),
            page_size: last.page_size,
            commit: last.commit,
            pre_apply: first.pre_apply,
            post_apply: last.post_apply,
            pages: entries.iter().map(|e| u64::from(e.entry.pages)).sum(),
            entries: u32::try_from(entries.len()).expect("a segment holds fewer"),
        }
    }
}

fn ends(entries: &[LogEntry]) -> (&SegmentEntry, &SegmentEntry) {
    let (first, last) = entries.first().zip(entries.last()).expect("a piece is never empty");
    (&first.entry, &last.entry)
}

/// An object that has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its size in bytes.
    pub size: u64,
    /// Its CRC-64.
    pub crc64: u64,
}

/// The place in the manifest of the file that a merge of `inputs` made, `pages` pages large, once it has been written.
pub fn merged_file(level: u8, inputs: &[ManifestFile], pages: u64, epoch: Epoch, object: Written) -> ManifestFile {
    let (first, last) = inputs.first().zip(inputs.last()).expect("a merge has inputs");
    ManifestFile {
        kind: FileKind::Merged,
        key: merged_key(level, inputs, epoch),
        level,
        min_time: inputs.iter().map(|f| f.min_time).min().expect("not empty"),
        min_txid: first.min_txid,
        pre_apply: first.pre_apply,
        size: object.size,
        crc64: Crc64Hex(object.crc64),
        pages,
        entries: 1,
        ..last.clone()
    }
}

/// Key of the file that a merge of `inputs` makes in `epoch`.
pub fn merged_key(level: u8, inputs: &[ManifestFile], epoch: Epoch) -> String {
    let (first, last) = inputs.first().zip(inputs.last()).expect("a merge has inputs");
    keys::ltx(level, first.min_txid, last.max_txid, epoch)
}

#[cfg(test)]
mod tests;
