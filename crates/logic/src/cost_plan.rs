//! What the rules keep and delete, when, how many bytes that is, and what a month of it costs.
//!
//! What is there is counted exactly. What is to come is reckoned from what was observed: commits and bytes of the log and of the bundles that
//! are still there. Assumptions, which are on the safe side:
//!
//! - The database goes on as it did, around the clock.
//! - A merged file is as large as all that it was merged from, but never larger than a snapshot.
//! - Snapshots stay as large as the newest one.

use std::collections::BTreeMap;
use std::time::Duration;

use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile};
use rhyolite_format::{Timestamp, keys};

use crate::drill::IDLE_FACTOR;
use crate::history_plan::{Policy, expired};
use crate::log::{LogSegment, MissingSegment, live};

/// What a store takes for its services, in dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// For one GB (10^9 bytes) in a month.
    pub storage_gb_month: f64,
    /// For a thousand requests that create, replace or list.
    pub put_thousand: f64,
    /// For a thousand requests that read.
    pub get_thousand: f64,
    /// For one GB that leaves the store.
    pub egress_gb: f64,
}

impl Default for Prices {
    /// Amazon S3 Standard, us-east-1, to the internet.
    fn default() -> Self {
        Self { storage_gb_month: 0.023, put_thousand: 0.005, get_thousand: 0.0004, egress_gb: 0.09 }
    }
}

/// What to reckon from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The listing from the manifest's first live segment to the end.
    pub log: &'a [LogSegment],
    /// Sizes of objects, for those that the manifest names only by key.
    pub sizes: &'a BTreeMap<String, u64>,
    /// The rules.
    pub policy: &'a Policy,
    /// How long commits are collected before they are uploaded.
    pub sync_interval: Duration,
    /// How often a drill reads the database; zero never.
    pub drill_interval: Duration,
    /// How many bytes it reads at most.
    pub drill_bytes_max: u64,
    /// The prices.
    pub prices: Prices,
    /// The time.
    pub now: Timestamp,
}

/// Objects of one sort that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time of the oldest commit in them.
    pub oldest: Option<Timestamp>,
}

/// Objects that go at one time, if nothing is committed until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// When.
    pub at: Timestamp,
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How the database was written to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pattern {
    /// Hours that were observed.
    pub hours: f64,
    /// Commits in an hour.
    pub commits_hour: f64,
    /// Bytes of their transactions in an hour.
    pub bytes_hour: f64,
    /// Uploads of segments in an hour.
    pub uploads_hour: f64,
    /// Bytes of a snapshot.
    pub snapshot_bytes: u64,
}

/// What a month takes, once as much is deleted as is written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Month {
    /// Bytes in the store.
    pub bytes: f64,
    /// Requests that create, replace or list.
    pub puts: f64,
    /// Requests that read.
    pub gets: f64,
    /// Bytes that are read.
    pub egress_bytes: f64,
    /// For the bytes that lie there, in dollars.
    pub storage_cost: f64,
    /// For all requests.
    pub request_cost: f64,
    /// For the bytes that leave the store; nothing where reader and store are in the same region.
    pub egress_cost: f64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The live log and bundles: every commit.
    pub commits: Kept,
    /// Merged files: the last commit of each merge interval or day.
    pub merged: Kept,
    /// Snapshots.
    pub snapshots: Kept,
    /// What nothing needs any more, and is still there.
    pub retired: Kept,
    /// What goes when, the soonest first.
    pub deletions: Vec<Deletion>,
    /// How the database was written to.
    pub pattern: Pattern,
    /// What a month takes.
    pub month: Month,
}

const HOUR_MS: f64 = 3_600_000.0;
const HOURS_IN_MONTH: f64 = 730.0;
const GB: f64 = 1e9;
/// Parts in which a large object is sent.
const PART_BYTES: f64 = (8u64 << 20) as f64;
/// Most times at which it is looked what expires.
const LOOKS_MAX: usize = 400;
const DAY_MS: i64 = 24 * 3_600_000;

/// Explains.
pub fn explain(input: &Input<'_>) -> Result<Explained, MissingSegment> {
    let live = live(input.manifest, input.log)?;
    let of_kind = |kinds: &[FileKind]| {
        let files = input.manifest.files.iter().filter(|file| kinds.contains(&file.kind));
        files.fold(Kept::default(), |kept, file| kept.with(1, file.size, Some(file.min_time)))
    };
    let mut commits = of_kind(&[FileKind::Bundle]);
    for segment in input.log {
        commits = commits.with(1, segment.size, segment.entries.iter().map(|entry| entry.timestamp).min());
    }
    let pattern = pattern(input, &live);
    Ok(Explained {
        commits,
        merged: of_kind(&[FileKind::Merged]),
        snapshots: of_kind(&[FileKind::Snapshot]),
        retired: retired(input)
            .into_iter()
            .fold(Kept::default(), |kept, (_, objects, bytes)| kept.with(objects, bytes, None)),
        deletions: deletions(input),
        pattern,
        month: month(input, &pattern),
    })
}

impl Kept {
    fn with(self, objects: u64, bytes: u64, time: Option<Timestamp>) -> Self {
        Self {
            objects: self.objects + objects,
            bytes: self.bytes + bytes,
            oldest: [self.oldest, time].into_iter().flatten().min(),
        }
    }
}

/// Since when, how many and how large: what waits to be deleted.
fn retired(input: &Input<'_>) -> Vec<(Timestamp, u64, u64)> {
    let size = |key: &str| input.sizes.get(key).copied();
    let files = input.manifest.retired_files.iter();
    let files = files.filter_map(|file| Some((file.since, 1, size(&file.key)?)));
    let ranges = input.manifest.retired_segments.iter().map(|range| {
        let (first, last) = (keys::segment(range.first_seq), keys::segment(range.last_seq));
        let (mut objects, mut bytes) = (0, 0);
        for (_, size) in input.sizes.range(first..=last) {
            (objects, bytes) = (objects + 1, bytes + size);
        }
        (range.since, objects, bytes)
    });
    files.chain(ranges).filter(|(_, objects, _)| *objects > 0).collect()
}

/// What goes when, by day.
fn deletions(input: &Input<'_>) -> Vec<Deletion> {
    let Input { manifest, policy, now, .. } = *input;
    let grace = millis(policy.grace);
    let mut by_time: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    let mut add = |at: i64, objects: u64, bytes: u64| {
        let entry = by_time.entry(at.max(now.0)).or_default();
        *entry = (entry.0 + objects, entry.1 + bytes);
    };
    for (since, objects, bytes) in retired(input) {
        add(since.0.saturating_add(grace), objects, bytes);
    }
    let horizon = millis(policy.keep_daily.max(policy.keep_hourly).max(policy.keep_every_commit));
    let day_after = |file: &ManifestFile| file.max_time.0.saturating_add(horizon).div_euclid(DAY_MS) + 1;
    let mut days: Vec<i64> = manifest.files.iter().map(day_after).collect();
    days.sort_unstable();
    days.dedup();
    let mut gone: Vec<String> = Vec::new();
    for day in days.into_iter().take(LOOKS_MAX) {
        let at = day.saturating_mul(DAY_MS).max(now.0);
        let new: Vec<String> =
            expired(manifest, policy, Timestamp(at)).into_iter().filter(|key| !gone.contains(key)).collect();
        let bytes = manifest.files.iter().filter(|file| new.contains(&file.key)).map(|file| file.size).sum();
        if !new.is_empty() {
            add(at.saturating_add(grace), new.len() as u64, bytes);
        }
        gone.extend(new);
    }
    by_time.into_iter().map(|(at, (objects, bytes))| Deletion { at: Timestamp(at), objects, bytes }).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn hours(duration: Duration) -> f64 {
    duration.as_secs_f64() / 3600.0
}

/// What the log and the bundles show.
fn pattern(input: &Input<'_>, live: &[&LogSegment]) -> Pattern {
    let newest = input.manifest.files.iter().filter(|file| file.kind == FileKind::Snapshot).max_by_key(|f| f.max_txid);
    let snapshot_bytes = newest.map_or(0, |file| file.size);
    let bundles = input.manifest.files.iter().filter(|file| file.kind == FileKind::Bundle);
    let entries = || live.iter().flat_map(|segment| &segment.entries).filter(|entry| !entry.is_snapshot());
    let in_log = entries().count() as u64;
    let (mut commits, mut bytes) = (in_log, entries().map(|entry| entry.len).sum::<u64>());
    let mut first = entries().map(|entry| entry.timestamp).min();
    for bundle in bundles {
        commits += u64::from(bundle.entries);
        bytes += bundle.size;
        first = [first, Some(bundle.min_time)].into_iter().flatten().min();
    }
    let Some(first) = first else { return Pattern { snapshot_bytes, ..Pattern::default() } };
    // A single burst is not taken for what goes on around the clock.
    let hours = (input.now.0.saturating_sub(first.0) as f64 / HOUR_MS).max(1.0);
    let segments = live.iter().filter(|segment| !segment.entries.is_empty()).count() as u64;
    let per_commit = if in_log == 0 { 1.0 } else { segments as f64 / in_log as f64 };
    let commits_hour = commits as f64 / hours;
    let uploads_max = 3600.0 / input.sync_interval.as_secs_f64().max(1e-3);
    Pattern {
        hours,
        commits_hour,
        bytes_hour: bytes as f64 / hours,
        uploads_hour: (commits_hour * per_commit).min(uploads_max),
        snapshot_bytes,
    }
}

/// What a month takes when this goes on.
fn month(input: &Input<'_>, pattern: &Pattern) -> Month {
    let Input { policy, prices, .. } = *input;
    let snapshot = pattern.snapshot_bytes as f64;
    let changes = pattern.commits_hour > 0.0;
    let every = hours(policy.keep_every_commit);
    let hourly = hours(policy.keep_hourly.max(policy.keep_every_commit));
    let daily = hours(policy.keep_daily).max(hourly);
    let interval = hours(policy.merge_interval);
    let merged = |length: f64, span: f64| (pattern.bytes_hour * length).min(snapshot) * (span / length).ceil();
    let snapshots = if changes { (daily / hours(policy.snapshot_interval)).ceil() + 1.0 } else { 1.0 };
    let log = pattern.bytes_hour * (every + hours(policy.grace));
    let bytes = log + merged(interval, hourly - every) + merged(24.0, daily - hourly) + snapshots * snapshot;

    let per_hour = |every: Duration| if changes { 1.0 / hours(every) } else { 0.0 };
    let looks = per_hour(policy.bundle_interval).min(pattern.uploads_hour);
    let merges = per_hour(policy.merge_interval).min(pattern.commits_hour) + per_hour(Duration::from_secs(86_400));
    let written = per_hour(policy.snapshot_interval);
    let parts = (snapshot / PART_BYTES).ceil().max(1.0);
    let bundlings = looks.min(pattern.uploads_hour / policy.bundle_segments_min.max(1) as f64);
    // A look lists; a bundle, a merge and a snapshot are an object and a manifest each, a deletion is a request and a manifest.
    let puts = pattern.uploads_hour + looks + (bundlings + merges) * 4.0 + written * (parts + 1.0);
    let rarely = if changes { 1.0 } else { f64::from(IDLE_FACTOR) };
    let drills = if input.drill_interval.is_zero() { 0.0 } else { 1.0 / (hours(input.drill_interval) * rarely) };
    // A look reads identity and manifest, and finds the end of the log; what is written is looked up before and after.
    let gets = looks * 3.0 + (bundlings + merges) * 6.0 + (written + drills) * (parts * 2.0 + 4.0);
    let drilled = drills * snapshot.min(input.drill_bytes_max as f64);
    let read = pattern.bytes_hour + merged(interval, interval) * merges + written * snapshot + drilled;
    let (puts, gets, egress_bytes) = (puts * HOURS_IN_MONTH, gets * HOURS_IN_MONTH, read * HOURS_IN_MONTH);
    Month {
        bytes,
        puts,
        gets,
        egress_bytes,
        storage_cost: bytes / GB * prices.storage_gb_month,
        request_cost: puts / 1000.0 * prices.put_thousand + gets / 1000.0 * prices.get_thousand,
        egress_cost: egress_bytes / GB * prices.egress_gb,
    }
}

#[cfg(test)]
mod tests;
