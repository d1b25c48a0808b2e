//! Random histories for the tests of plans: commits with times and resets, and files that hold them.
//!
//! The checksum after a TXID is a function of the TXID, so that whatever joins can be told from whatever does not.

use rhyolite_format::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::{SegmentEntry, SegmentHeader};
use rhyolite_format::{Checksum, Epoch, Lineage, Nonce, PageCount, PageSize, Pos, Seq, Timestamp, Txid, keys};

use crate::log::LogSegment;

pub(crate) const LINEAGE: Lineage = Lineage([7; 16]);

/// Random numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// One of `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub(crate) fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

pub(crate) fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

pub(crate) fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

pub(crate) fn checksum(n: u64) -> Checksum {
    Checksum::from_crc(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(crate) fn pos(n: u64) -> Pos {
    Pos { txid: txid(n), checksum: checksum(n) }
}

/// A commit, or a reset: a snapshot that starts the chain anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    pub(crate) time: i64,
    pub(crate) is_reset: bool,
    pub(crate) page_size: PageSize,
}

/// Commits 1, 2, 3 …; the first is a reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commits(pub(crate) Vec<Commit>);

impl Commits {
    pub(crate) fn last(&self) -> u64 {
        self.0.len() as u64
    }

    pub(crate) fn get(&self, n: u64) -> Commit {
        self.0[n as usize - 1]
    }

    pub(crate) fn push(&mut self, time: i64, is_reset: bool, random: &mut Random) {
        let page_size = match self.0.last() {
            Some(last) if !is_reset => last.page_size,
            _ => PageSize::new(512 << random.below(3)).unwrap(),
        };
        let is_reset = is_reset || self.0.is_empty();
        self.0.push(Commit { time, is_reset, page_size });
    }

    /// Whether one file may hold `min..=max`: no reset inside.
    pub(crate) fn is_one_chain(&self, min: u64, max: u64) -> bool {
        (min..=max).all(|n| !self.get(n).is_reset)
    }

    /// The entry of commit `n`.
    pub(crate) fn entry(&self, n: u64, len: u64) -> SegmentEntry {
        let commit = self.get(n);
        SegmentEntry {
            min_txid: if commit.is_reset { Txid::FIRST } else { txid(n) },
            max_txid: txid(n),
            offset: 0,
            len,
            timestamp: Timestamp(commit.time),
            page_size: commit.page_size,
            commit: PageCount(10),
            pages: if commit.is_reset { 10 } else { 2 },
            pre_apply: (!commit.is_reset).then(|| checksum(n - 1)),
            post_apply: checksum(n),
        }
    }

    /// A file of the manifest over `min..=max` (a snapshot: 1..=max).
    pub(crate) fn file(&self, kind: FileKind, level: u8, min: u64, max: u64, size: u64) -> ManifestFile {
        let key = match kind {
            FileKind::Bundle => keys::bundle(txid(min), txid(max), Epoch::FIRST),
            _ => keys::ltx(level, txid(min), txid(max), Epoch::FIRST),
        };
        let is_snapshot = kind == FileKind::Snapshot;
        let last = self.get(max);
        let times = if is_snapshot { max..=max } else { min..=max };
        ManifestFile {
            kind,
            key,
            level,
            min_txid: txid(min),
            max_txid: txid(max),
            min_time: Timestamp(times.map(|n| self.get(n).time).min().unwrap()),
            max_time: Timestamp(last.time),
            size,
            crc64: Crc64Hex(0),
            page_size: last.page_size,
            commit: PageCount(10),
            pre_apply: (!is_snapshot).then(|| checksum(min - 1)),
            post_apply: checksum(max),
            pages: 10,
            entries: if kind == FileKind::Bundle { (max - min + 1) as u32 } else { 1 },
        }
    }

    /// A log segment with the commits `range`.
    pub(crate) fn segment(&self, number: u64, writer: u64, range: std::ops::Range<u64>, len: u64) -> LogSegment {
        let nonce = Nonce([number as u8; 16]);
        let header = SegmentHeader::log(LINEAGE, epoch(writer), seq(number), nonce, Timestamp(0));
        let mut offset = 80;
        let mut entries: Vec<SegmentEntry> = range.map(|n| self.entry(n, len)).collect();
        for entry in &mut entries {
            entry.offset = offset;
            offset += len;
        }
        LogSegment::new(header, entries, offset + 100)
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest::new(LINEAGE, Epoch::FIRST, Nonce([0; 16]), Timestamp(0), Seq::FIRST)
}
