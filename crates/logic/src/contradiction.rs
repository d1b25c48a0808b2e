//! What the manifest, the log, the lease and the store's own clock say of each other that cannot all be true.
//!
//! Each object alone may be sound: this compares them. What a healthy store may look like, after takeovers, lost answers, restarts and
//! clocks that were set back, is no contradiction:
//!
//! - void segments, segments without a transaction, snapshots within the log;
//! - retired objects that are still there, or gone already; objects that nobody names;
//! - commits whose times go backwards, or lie long before their upload.
//!
//! A clock that is behind looks like a late upload, so only one that is ahead of the store's is found.

use std::collections::BTreeMap;
use std::time::Duration;

use rhyolite_format::lease::LeaseRecord;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Epoch, Pos, Timestamp, Txid, keys};

use crate::log::{LogSegment, MissingSegment, live};

/// So much may the clocks of a writer and of its store differ.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// An object that cannot be right if the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The object, relative to the database's prefix.
    pub key: String,
    /// What it contradicts.
    pub detail: String,
}

fn contradiction(key: &str, detail: String) -> Contradiction {
    Contradiction { key: key.to_owned(), detail }
}

/// What one reading of a store gave.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The listing from the manifest's first live segment to the end.
    pub log: &'a [LogSegment],
    /// The lease as it was before manifest and log were read; none where there is no lease.
    pub lease_before: Option<&'a LeaseRecord>,
    /// The lease as it was afterwards.
    pub lease_after: Option<&'a LeaseRecord>,
    /// When objects were written, by the store's clock, where it says so.
    pub written: &'a BTreeMap<String, Timestamp>,
}

/// Everything that contradicts something else.
pub fn find(reading: &Reading<'_>) -> Result<Vec<Contradiction>, MissingSegment> {
    let live = live(reading.manifest, reading.log)?;
    let mut found = epochs(reading);
    found.extend(repeated(reading.manifest, &live));
    found.extend(behind_the_lease(reading, &live));
    found.extend(clock(reading, &live));
    Ok(found)
}

/// Objects of an epoch that nobody can have had yet. The lease was read last, and epochs only grow.
fn epochs(reading: &Reading<'_>) -> Vec<Contradiction> {
    let Reading { manifest, log, .. } = *reading;
    let mut found = Vec::new();
    let lease = reading.lease_after.map(|lease| lease.epoch);
    let of_log = log.iter().map(|segment| segment.header.epoch);
    let latest = lease.unwrap_or_else(|| of_log.fold(manifest.epoch, Epoch::max));
    let mut check = |key: &str, what: &str, epoch: Epoch| {
        if epoch > latest {
            found.push(contradiction(key, format!("{what} {epoch}, but the latest is {latest}")));
        }
    };
    check(keys::MANIFEST, "its epoch is", manifest.epoch);
    check(keys::MANIFEST, "its log is of epoch", manifest.log_epoch);
    for file in &manifest.files {
        let name = keys::parse_file(&file.key).expect("checked when the manifest was decoded");
        check(&file.key, "it is of epoch", name.epoch);
    }
    for segment in log {
        check(&segment.key, "it is of epoch", segment.header.epoch);
    }
    found
}

/// Transactions that lie in the log a second time, or before its start.
fn repeated(manifest: &Manifest, live: &[&LogSegment]) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut reached: Option<Txid> = manifest.log_start.map(|pos| pos.txid);
    for segment in live {
        let again = segment.entries.iter().find(|entry| {
            let first = if entry.is_snapshot() { entry.max_txid } else { entry.min_txid };
            let is_again = Some(first) <= reached;
            reached = reached.max(Some(entry.max_txid));
            is_again
        });
        if let Some(entry) = again {
            let detail = format!("transaction {} lies before it in the log already", entry.max_txid);
            found.push(contradiction(&segment.key, detail));
        }
    }
    found
}

/// The lease says what was durable: a log that ends before it has lost its end.
fn behind_the_lease(reading: &Reading<'_>, live: &[&LogSegment]) -> Option<Contradiction> {
    let manifest = reading.manifest;
    let durable = reading.lease_before?.durable?;
    if durable.lineage != manifest.lineage {
        let detail = format!("it is of history {}, the manifest of {}", durable.lineage, manifest.lineage);
        return Some(contradiction(keys::LEASE, detail));
    }
    let of_log = live.iter().flat_map(|segment| segment.entries.iter().map(|entry| entry.end()));
    let of_files = manifest.files.iter().map(|file| file.end());
    let known: Vec<Pos> = of_log.chain(of_files).chain(manifest.log_start).collect();
    let at = durable.pos.txid;
    match known.iter().map(|pos| pos.txid).max() {
        Some(last) if last >= at => {
            let other = known.iter().find(|pos| pos.txid == at && pos.checksum != durable.pos.checksum)?;
            let (theirs, ours) = (durable.pos.checksum, other.checksum);
            Some(contradiction(keys::LEASE, format!("transaction {at} was durable with checksum {theirs}, not {ours}")))
        }
        last => {
            let last = last.map_or_else(|| "there is none".to_owned(), |last| format!("the last is {last}"));
            Some(contradiction(keys::LEASE, format!("transaction {at} was durable, but {last}")))
        }
    }
}

/// Times that were still to come when the store wrote them down.
fn clock(reading: &Reading<'_>, live: &[&LogSegment]) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut ahead = |key: &str, what: &str, time: Timestamp| {
        let Some(written) = reading.written.get(key) else { return };
        let skew = time.0.saturating_sub(written.0);
        if skew > CLOCK_SKEW_MAX.as_millis() as i64 {
            let detail = format!("clock skew: {what} lies {} s after it was written", skew / 1000);
            found.push(contradiction(key, detail));
        }
    };
    let manifest = reading.manifest;
    let retired = manifest.retired_files.iter().map(|file| file.since);
    let retired = retired.chain(manifest.retired_segments.iter().map(|range| range.since));
    ahead(keys::MANIFEST, "a time in it", retired.fold(manifest.updated, Timestamp::max));
    for file in &manifest.files {
        ahead(&file.key, "a commit in it", file.max_time);
    }
    for segment in live {
        if let Some(time) = segment.entries.iter().map(|entry| entry.timestamp).max() {
            ahead(&segment.key, "a commit in it", time);
        }
    }
    found
}

#[cfg(test)]
mod tests;
