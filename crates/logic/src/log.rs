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

/// The segments of `log` that count: from the manifest's `first_seq` on, without those of an epoch that was over when they were
/// written. `log` holds ascending sequence numbers up to the end of the log; those before `first_seq` may be there or not.
pub fn live<'a>(manifest: &Manifest, log: &'a [LogSegment]) -> Result<Vec<&'a LogSegment>, MissingSegment> {
    let mut expected = manifest.first_seq;
    let mut epoch: Epoch = manifest.log_epoch;
    let mut live = Vec::new();
    for segment in log.iter().filter(|s| s.seq >= manifest.first_seq) {
        if segment.seq != expected {
            return Err(MissingSegment { seq: expected });
        }
        expected = expected.next();
        if segment.header.epoch >= epoch {
            epoch = segment.header.epoch;
            live.push(segment);
        }
    }
    Ok(live)
}
