//! Objects of a database that no manifest names: what lost swaps, aborted snapshots and late uploads have left.
//!
//! A listing only nominates. What proves that an object is garbage:
//!
//! 1. Its key is of one of our forms, and the manifest names it neither as live nor as retired.
//! 2. The manifest covers what it could hold: a log segment lies before the first live one, a file ends at or before the last
//!    position that the manifest's files reach, and is of no later epoch.
//! 3. By the store's own clock the manifest was written at least the grace period after the object, and still does not name it: whoever
//!    wrote it has had that long to enter it. An object whose time the store does not tell is left alone.
//!
//! Garbage is not deleted but named as retired ([`retire`]): deletion then follows the one rule that there is, after another grace
//! period and another look at the manifest.

use std::collections::HashSet;
use std::time::Duration;

use rhyolite_format::manifest::{Manifest, RETIRED_MAX, RetiredFile, RetiredSegments};
use rhyolite_format::{Seq, Timestamp, keys};

/// An object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key, relative to the database's prefix.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub written: Option<Timestamp>,
}

/// The objects among `listed` that are garbage under a manifest that was written at `manifest_written`, by the store's clock.
pub fn find<'a>(
    manifest: &Manifest,
    manifest_written: Timestamp,
    listed: &'a [Listed],
    grace: Duration,
) -> Vec<&'a Listed> {
    let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
    let is_old = |object: &Listed| object.written.is_some_and(|t| t.0.saturating_add(grace) <= manifest_written.0);
    let named = Named::new(manifest);
    listed.iter().filter(|object| is_old(object) && named.leaves_out(&object.key)).collect()
}

/// The manifest that names these objects as retired since `now`. Those that it names otherwise, or does not cover, are left out; so are
/// those that find no room: there is a next time.
pub fn retire(manifest: &Manifest, keys: &[String], now: Timestamp) -> Manifest {
    let named = Named::new(manifest);
    let mut next = manifest.clone();
    for key in keys.iter().filter(|key| named.leaves_out(key)) {
        match keys::parse_segment(key) {
            Some(seq) if next.retired_segments.len() < RETIRED_MAX => {
                next.retired_segments.push(RetiredSegments { first_seq: seq, last_seq: seq, since: now });
            }
            None if next.retired_files.len() < RETIRED_MAX => {
                next.retired_files.push(RetiredFile { key: key.clone(), since: now });
            }
            _ => {}
        }
    }
    next.retired_files.sort_by(|a, b| a.key.cmp(&b.key));
    next.retired_files.dedup_by(|a, b| a.key == b.key);
    next.retired_segments.sort_by_key(|range| range.first_seq);
    next.retired_segments.dedup_by(|a, b| a.first_seq == b.first_seq);
    next
}

/// What a manifest names.
struct Named<'a> {
    manifest: &'a Manifest,
    files: HashSet<&'a str>,
}

impl<'a> Named<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        let live = manifest.files.iter().map(|file| file.key.as_str());
        let retired = manifest.retired_files.iter().map(|file| file.key.as_str());
        Self { manifest, files: live.chain(retired).collect() }
    }

    /// Rules 1 and 2.
    fn leaves_out(&self, key: &str) -> bool {
        if let Some(seq) = keys::parse_segment(key) {
            return seq < self.manifest.first_seq && !self.is_retired(seq);
        }
        let Some(name) = keys::parse_file(key) else { return false };
        let ends = self.manifest.files.iter().map(|file| file.max_txid);
        let end = ends.chain(self.manifest.log_start.map(|pos| pos.txid)).max();
        Some(name.max_txid) <= end && name.epoch <= self.manifest.epoch && !self.files.contains(key)
    }

    fn is_retired(&self, seq: Seq) -> bool {
        let ranges = &self.manifest.retired_segments;
        let after = ranges.partition_point(|range| range.first_seq <= seq);
        after > 0 && seq <= ranges[after - 1].last_seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Commits, Random};
    use rhyolite_format::Txid;
    use rhyolite_format::manifest::FileKind;

    /// Commits 1 to 20: a snapshot at 10 and a bundle of 11 to 20, the log from segment 9 on, segments 5 to 8 and a file retired.
    fn manifest() -> Manifest {
        let mut commits = Commits::default();
        for n in 1..=20 {
            commits.push(n, n == 1, &mut Random(1));
        }
        let mut manifest = model::manifest();
        manifest.epoch = model::epoch(3);
        manifest.first_seq = model::seq(9);
        manifest.log_start = Some(model::pos(20));
        manifest.files.push(commits.file(FileKind::Bundle, 1, 11, 20, 1000));
        manifest.files.push(commits.file(FileKind::Snapshot, 9, 1, 10, 1000));
        let range = |first, last| RetiredSegments {
            first_seq: model::seq(first),
            last_seq: model::seq(last),
            since: Timestamp(0),
        };
        manifest.retired_segments = vec![range(5, 6), range(7, 8)];
        manifest.retired_files = vec![RetiredFile {
            key: keys::bundle(model::txid(5), model::txid(9), model::epoch(1)),
            since: Timestamp(0),
        }];
        manifest.validate().unwrap();
        manifest
    }

    fn bundle(min: u64, max: u64, epoch: u64) -> String {
        keys::bundle(model::txid(min), model::txid(max), model::epoch(epoch))
    }

    /// Whether an object that was written at 1,000 is garbage when the manifest was written at `manifest_written`.
    fn is_garbage(key: &str, manifest_written: i64) -> bool {
        let listed = [Listed { key: key.to_owned(), size: 1, written: Some(Timestamp(1_000)) }];
        !find(&manifest(), Timestamp(manifest_written), &listed, Duration::from_millis(500)).is_empty()
    }

    #[test]
    fn what_nobody_names_and_the_manifest_covers() {
        let segment = |n| keys::segment(model::seq(n));
        for (key, expected) in [
            (segment(4), true),
            (segment(5), false),
            (segment(6), false),
            (segment(8), false),
            (segment(9), false),
            (segment(99), false),
            (bundle(11, 20, 1), false),
            (bundle(11, 20, 2), true),
            (bundle(5, 9, 1), false),
            (bundle(5, 8, 1), true),
            (bundle(5, 8, 3), true),
            (bundle(5, 8, 4), false),
            (bundle(5, 21, 1), false),
            (keys::ltx(9, Txid::FIRST, model::txid(20), model::epoch(1)), true),
            (keys::ltx(9, Txid::FIRST, model::txid(10), model::epoch(1)), false),
            (keys::ltx(9, Txid::FIRST, model::txid(21), model::epoch(1)), false),
            ("manifest.json".to_owned(), false),
            ("log/readme.txt".to_owned(), false),
            ("other/log/0000000000000004.seg".to_owned(), false),
        ] {
            assert_eq!(is_garbage(&key, 1_500), expected, "{key}");
            assert!(!is_garbage(&key, 1_499), "{key} is too young");
        }
        let timeless = [Listed { key: segment(4), size: 1, written: None }];
        assert!(find(&manifest(), Timestamp(i64::MAX), &timeless, Duration::ZERO).is_empty());
    }

    #[test]
    fn garbage_becomes_retired_and_the_manifest_stays_valid() {
        let segment = |n| keys::segment(model::seq(n));
        let keys = [segment(2), segment(4), segment(1), segment(8), segment(9), bundle(5, 8, 3), bundle(5, 9, 1)];
        let next = retire(&manifest(), &keys, Timestamp(77));
        next.validate().unwrap();
        let seqs: Vec<u64> = next.retired_segments.iter().map(|range| range.first_seq.get()).collect();
        assert_eq!(seqs, [1, 2, 4, 5, 7]);
        assert_eq!(next.retired_files.len(), 2);
        assert_eq!(next.files, manifest().files);
        assert_eq!(retire(&next, &keys, Timestamp(99)), next, "what is named already stays as it is");
    }
}
