//! The live log: which segments count (docs/spec/log-layout.md, "The log").

use std::fmt;

use rhyolite_format::keys;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::segment::{SegmentEntry, SegmentHeader};
use rhyolite_format::{Epoch, Seq};

/// A log segment as its header and entries describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSegment {
    /// Its sequence number.
    pub seq: Seq,
    /// Its key relative to the database's prefix.
    pub key: String,
    /// Size of the object in bytes.
    pub size: u64,
    /// Who wrote it.
    pub header: SegmentHeader,
    /// What it holds. Empty for a fence.
    pub entries: Vec<SegmentEntry>,
}

impl LogSegment {
    /// A log segment of `size` bytes in the store.
    pub fn new(header: SegmentHeader, entries: Vec<SegmentEntry>, size: u64) -> Self {
        Self { seq: header.seq, key: keys::segment(header.seq), size, header, entries }
    }
}

/// A hole in the listing of the log: the caller left out a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSegment {
    /// The first that is missing.
    pub seq: Seq,
}

impl fmt::Display for MissingSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log segment {} is missing", self.seq)
    }
}

impl std::error::Error for MissingSegment {}

/// Judges segments in the order of their sequence numbers: one of an epoch lower than that of one before it is void.
#[derive(Clone, Copy, Debug)]
pub struct VoidRule {
    highest: Epoch,
}

impl VoidRule {
    /// For the log that begins after what a manifest names.
    pub fn after(manifest: &Manifest) -> Self {
        Self { highest: manifest.log_epoch }
    }

    /// Whether the next segment, of this epoch, counts.
    pub fn counts(&mut self, epoch: Epoch) -> bool {
        let counts = epoch >= self.highest;
        self.highest = self.highest.max(epoch);
        counts
    }
}

/// The segments of `log` that count: from the manifest's `first_seq` on, without those of an epoch that was over when they were
/// written. `log` holds ascending sequence numbers up to the end of the log; those before `first_seq` may be there or not.
pub fn live<'a>(manifest: &Manifest, log: &'a [LogSegment]) -> Result<Vec<&'a LogSegment>, MissingSegment> {
    let mut expected = manifest.first_seq;
    let mut rule = VoidRule::after(manifest);
    let mut live = Vec::new();
    for segment in log.iter().filter(|s| s.seq >= manifest.first_seq) {
        if segment.seq != expected {
            return Err(MissingSegment { seq: expected });
        }
        expected = expected.next();
        if rule.counts(segment.header.epoch) {
            live.push(segment);
        }
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Commits, Random};

    /// Sequence numbers that count, of segments `SEQ/EPOCH` in a log that starts at 5 after epoch 2.
    fn check(segments: &str, expected: &str) {
        let mut commits = Commits::default();
        commits.push(0, false, &mut Random(1));
        let mut manifest = model::manifest();
        manifest.first_seq = model::seq(5);
        manifest.log_epoch = model::epoch(2);
        let listing: Vec<LogSegment> = segments
            .split_whitespace()
            .map(|s| s.split_once('/').unwrap())
            .map(|(seq, epoch)| commits.segment(seq.parse().unwrap(), epoch.parse().unwrap(), 1..1, 0))
            .collect();
        let said = match live(&manifest, &listing) {
            Ok(live) => live.iter().map(|s| s.seq.get().to_string()).collect::<Vec<_>>().join(" "),
            Err(missing) => missing.to_string(),
        };
        assert_eq!(said, expected, "{segments}");
    }

    #[test]
    fn what_counts() {
        check("", "");
        check("5/2 6/2 7/3", "5 6 7");
        check("3/1 4/1 5/2", "5");
        check("5/1 6/2", "6");
        check("5/2 6/3 7/2 8/2 9/3 10/4 11/3", "5 6 9 10");
        check("4/2 6/2", "log segment 0000000000000005 is missing");
        check("5/2 7/2", "log segment 0000000000000006 is missing");
    }
}
