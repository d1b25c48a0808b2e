//! `manifest.json`: the objects that a database's history is made of (docs/spec/manifest.md).
//!
//! Changed only by compare-and-swap. What is neither named here nor a log segment from `first_seq` on does not exist for
//! a reader, and is deleted only when it is named as retired. Invariants, checked by [`Manifest::validate`]:
//!
//! 1. `files` ascend by (level, min_txid, max_txid); key, level and kind agree; no two of one level below the snapshots overlap.
//! 2. A file is a snapshot if and only if it starts at TXID 1, and if and only if it has no pre-apply checksum.
//! 3. Whatever two files say about the checksum after one TXID is the same.
//! 4. `log_start` is the position right before log segment `first_seq`. It can be restored from `files` alone: the newest snapshot
//!    at or below it and a contiguous chain. Bundles and merged files end at or before it.
//! 5. Nothing is both live and retired.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, ErrorKind};
use crate::json::{self, Format1};
use crate::keys;
use crate::segment::ENTRIES_MAX;
use crate::types::{
    Checksum, Epoch, Lineage, Nonce, PageCount, PageSize, ParseError, Pos, Seq, Timestamp, Txid, deserialize_text,
    parse_hex64,
};

/// The most bytes that `manifest.json` may have.
pub const SIZE_MAX: usize = 64 << 20;
/// The most files that a manifest may name.
pub const FILES_MAX: usize = 100_000;
/// The most retired files, and the most ranges of retired segments.
pub const RETIRED_MAX: usize = 100_000;
/// The most pins.
pub const PINS_MAX: usize = 10_000;
/// The most bytes in the name of a pin.
pub const PIN_NAME_SIZE_MAX: usize = 255;

const WHAT: &str = "manifest.json";
/// Size of an LTX file without pages (LTX specification, section 2). Bundles are larger.
const LTX_SIZE_MIN: u64 = 131;

/// The live objects of one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always 1.
    pub format: Format1,
    /// The history.
    pub lineage: Lineage,
    /// The right to write under which this version was written.
    pub epoch: Epoch,
    /// Grows by one with each version, from 1.
    pub revision: u64,
    /// By which the writer recognises its own version.
    pub nonce: Nonce,
    /// The writer's clock.
    pub updated: Timestamp,
    /// The first live log segment. Those before it are void.
    pub first_seq: Seq,
    /// Highest epoch among the log segments before `first_seq`, 1 when there are none: a live segment of a lower epoch is void.
    pub log_epoch: Epoch,
    /// The position right before `first_seq`; absent while the log starts with its first segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_start: Option<Pos>,
    /// Bundles, merged files and snapshots.
    pub files: Vec<ManifestFile>,
    /// Files that may be deleted, by key.
    pub retired_files: Vec<RetiredFile>,
    /// Log segments that may be deleted, all before `first_seq`, in order.
    pub retired_segments: Vec<RetiredSegments>,
    /// Positions that stay restorable whatever the retention rules say.
    pub pins: Vec<Pin>,
}

/// What a file of the manifest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Log segments in one object: every commit can be restored.
    Bundle,
    /// One LTX file over a range of TXIDs: only its end can be restored.
    Merged,
    /// One LTX file with every page: needs no other.
    Snapshot,
}

/// An object that the manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Bundle, merged file or snapshot.
    pub kind: FileKind,
    /// Key relative to the database's prefix.
    pub key: String,
    /// 1 for bundles, 2 to 8 for merged files, 9 for snapshots.
    pub level: u8,
    /// First transaction.
    pub min_txid: Txid,
    /// Last transaction.
    pub max_txid: Txid,
    /// The smallest time of its transactions; of a merged file or snapshot, of those that it was made from.
    pub min_time: Timestamp,
    /// Time of the last transaction.
    pub max_time: Timestamp,
    /// Size of the object in bytes.
    pub size: u64,
    /// CRC-64 of the object.
    pub crc64: Crc64Hex,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database after it.
    pub commit: PageCount,
    /// The database before it; absent for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_apply: Option<Checksum>,
    /// The database after it.
    pub post_apply: Checksum,
    /// Number of pages in it; of a bundle, in all its LTX files together.
    pub pages: u64,
    /// Number of LTX files in it: 1 but for bundles.
    pub entries: u32,
}

/// A CRC-64, 16 hex digits in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Crc64Hex(pub u64);

impl fmt::Display for Crc64Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Crc64Hex {
    type Err = ParseError;

    /// Exactly 16 hex digits.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_hex64(text, "CRC of 16 hex digits").map(Self)
    }
}

impl Serialize for Crc64Hex {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Crc64Hex {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        deserialize_text(d)
    }
}

/// A bundle, merged file or snapshot that is no longer live. It may be deleted after the grace period: readers that hold an
/// older manifest may still want it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredFile {
    /// Key relative to the database's prefix.
    pub key: String,
    /// Since when no manifest names it, by the writer's clock.
    pub since: Timestamp,
}

/// Log segments that are no longer live, because bundles hold what they held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredSegments {
    /// The first of them.
    pub first_seq: Seq,
    /// The last of them.
    pub last_seq: Seq,
    /// Since when no manifest needs them, by the writer's clock.
    pub since: Timestamp,
}

/// A position that stays restorable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Name for people, unique.
    pub name: String,
    /// The position.
    pub pos: Pos,
}

impl ManifestFile {
    /// The position after it.
    pub fn end(&self) -> Pos {
        Pos { txid: self.max_txid, checksum: self.post_apply }
    }

    /// The rules that concern one file alone.
    fn check(&self) -> Result<(), (ErrorKind, &'static str)> {
        let name = keys::parse_file(&self.key).ok_or((ErrorKind::Field, "not the key of a file"))?;
        if (name.level, name.min_txid, name.max_txid) != (self.level, self.min_txid, self.max_txid) {
            return Err((ErrorKind::Field, "key and fields disagree"));
        }
        let level_fits = match self.kind {
            FileKind::Bundle => self.level == keys::BUNDLE_LEVEL,
            FileKind::Merged => (keys::MERGED_LEVEL_MIN..=keys::MERGED_LEVEL_MAX).contains(&self.level),
            FileKind::Snapshot => self.level == keys::SNAPSHOT_LEVEL,
        };
        if !level_fits {
            return Err((ErrorKind::Field, "kind and level disagree"));
        }
        let is_snapshot = self.kind == FileKind::Snapshot;
        if is_snapshot != (self.min_txid == Txid::FIRST) {
            return Err((ErrorKind::Txid, "a snapshot, and nothing else, starts at TXID 1"));
        }
        if is_snapshot != self.pre_apply.is_none() {
            return Err((ErrorKind::PreChecksum, "a snapshot, and nothing else, has no pre-apply checksum"));
        }
        if self.min_time > self.max_time {
            return Err((ErrorKind::Field, "min_time after max_time"));
        }
        if self.commit.get() == 0 && self.post_apply != Checksum::EMPTY {
            return Err((ErrorKind::PostChecksum, "an empty database has one checksum only"));
        }
        if self.entries == 0 || self.entries > ENTRIES_MAX || (self.kind != FileKind::Bundle && self.entries != 1) {
            return Err((ErrorKind::Field, "wrong number of entries"));
        }
        if self.size < LTX_SIZE_MIN {
            return Err((ErrorKind::Field, "smaller than the smallest file"));
        }
        Ok(())
    }
}

impl Manifest {
    /// The first version of a manifest: no files, the log starts at `first_seq`.
    pub fn new(lineage: Lineage, epoch: Epoch, nonce: Nonce, now: Timestamp, first_seq: Seq) -> Self {
        Self {
            format: Format1,
            lineage,
            epoch,
            revision: 1,
            nonce,
            updated: now,
            first_seq,
            log_epoch: Epoch::FIRST,
            log_start: None,
            files: Vec::new(),
            retired_files: Vec::new(),
            retired_segments: Vec::new(),
            pins: Vec::new(),
        }
    }

    /// The bytes of `manifest.json`, the same for the same value. Panics when it breaks an invariant: it is our own.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(e) = self.validate() {
            panic!("a manifest that breaks the format: {e}");
        }
        json::encode(self)
    }

    /// Reads `manifest.json` and checks all invariants.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let manifest: Self = json::decode(bytes, WHAT, SIZE_MAX)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Checks all invariants. The error's offset is 0: a parsed value has no place any more.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let limits = [
            (self.files.len(), FILES_MAX, "files"),
            (self.retired_files.len(), RETIRED_MAX, "retired files"),
            (self.retired_segments.len(), RETIRED_MAX, "ranges of retired segments"),
            (self.pins.len(), PINS_MAX, "pins"),
        ];
        if let Some((n, max, what)) = limits.iter().find(|(n, max, _)| n > max) {
            return Err(error(ErrorKind::Field, format!("{n} {what}, at most {max} are allowed")));
        }
        if self.revision == 0 {
            return Err(error(ErrorKind::Field, "revision 0"));
        }
        self.check_files()?;
        self.check_checksums()?;
        self.check_log_start()?;
        self.check_retired()?;
        self.check_pins()
    }

    /// Invariants 1 and 2.
    fn check_files(&self) -> Result<(), DecodeError> {
        for file in &self.files {
            file.check().map_err(|(kind, detail)| error(kind, format!("{}: {detail}", file.key)))?;
        }
        for pair in self.files.windows(2) {
            let [a, b] = pair else { unreachable!("windows of two") };
            let order = |f: &ManifestFile| (f.level, f.min_txid, f.max_txid);
            if order(a) >= order(b) {
                return Err(error(ErrorKind::Field, format!("{} is out of order", b.key)));
            }
            if a.level == b.level && a.kind != FileKind::Snapshot {
                if b.min_txid <= a.max_txid {
                    return Err(error(ErrorKind::Txid, format!("{} overlaps {}", b.key, a.key)));
                }
                if a.max_txid.next() == b.min_txid && a.page_size != b.page_size {
                    return Err(error(ErrorKind::PageSize, format!("{} follows {}", b.key, a.key)));
                }
            }
        }
        Ok(())
    }

    /// Invariant 3.
    fn check_checksums(&self) -> Result<(), DecodeError> {
        let mut facts: Vec<(Txid, Checksum)> = Vec::with_capacity(2 * self.files.len() + self.pins.len() + 1);
        for file in &self.files {
            facts.push((file.max_txid, file.post_apply));
            facts.extend(file.min_txid.previous().zip(file.pre_apply));
        }
        let positions = self.pins.iter().map(|p| p.pos).chain(self.log_start);
        facts.extend(positions.map(|pos| (pos.txid, pos.checksum)));
        facts.sort_unstable_by_key(|(txid, checksum)| (*txid, checksum.get()));
        match facts.windows(2).find(|w| w[0].0 == w[1].0 && w[0].1 != w[1].1) {
            Some(w) => Err(error(ErrorKind::Chain, format!("two checksums after {}: {}, {}", w[0].0, w[0].1, w[1].1))),
            None => Ok(()),
        }
    }

    /// Invariant 4.
    fn check_log_start(&self) -> Result<(), DecodeError> {
        let mut chain: Vec<&ManifestFile> = self.files.iter().filter(|f| f.kind != FileKind::Snapshot).collect();
        let end = self.log_start.map_or(0, |pos| pos.txid.get());
        if let Some(file) = chain.iter().find(|f| f.max_txid.get() > end) {
            return Err(error(ErrorKind::Txid, format!("{} reaches into the live log", file.key)));
        }
        let Some(start) = self.log_start else { return Ok(()) };
        let snapshots = self.files.iter().filter(|f| f.kind == FileKind::Snapshot && f.max_txid <= start.txid);
        let newest = snapshots.max_by_key(|f| f.max_txid);
        let newest = newest.ok_or_else(|| error(ErrorKind::Gap, "no snapshot before the live log"))?;
        chain.sort_unstable_by_key(|f| f.min_txid);
        let (mut reached, mut reach) = (newest.max_txid, newest.max_txid);
        for file in chain {
            if file.min_txid > reached.next() {
                reached = reach;
            }
            if file.min_txid > reached.next() {
                break;
            }
            reach = reach.max(file.max_txid);
        }
        if reach == start.txid {
            return Ok(());
        }
        let detail = format!("nothing holds {} on the way to the live log at {}", reach.next(), start.txid);
        Err(error(ErrorKind::Gap, detail))
    }

    /// Invariant 5.
    fn check_retired(&self) -> Result<(), DecodeError> {
        let mut live: Vec<&str> = self.files.iter().map(|f| f.key.as_str()).collect();
        live.sort_unstable();
        for file in &self.retired_files {
            if keys::parse_file(&file.key).is_none() {
                return Err(error(ErrorKind::Field, format!("retired {:?}: not the key of a file", file.key)));
            }
            if live.binary_search(&file.key.as_str()).is_ok() {
                return Err(error(ErrorKind::Field, format!("{} is both live and retired", file.key)));
            }
        }
        if let Some(w) = self.retired_files.windows(2).find(|w| w[0].key >= w[1].key) {
            return Err(error(ErrorKind::Field, format!("retired {} is out of order", w[1].key)));
        }
        let mut previous: Option<Seq> = None;
        for range in &self.retired_segments {
            let ascends = previous.is_none_or(|p| p < range.first_seq) && range.first_seq <= range.last_seq;
            if !ascends || range.last_seq >= self.first_seq {
                return Err(error(ErrorKind::Field, format!("retired segments from {} on", range.first_seq)));
            }
            previous = Some(range.last_seq);
        }
        Ok(())
    }

    fn check_pins(&self) -> Result<(), DecodeError> {
        let name_fits = |name: &str| !name.is_empty() && name.len() <= PIN_NAME_SIZE_MAX;
        if let Some(pin) = self.pins.iter().find(|p| !name_fits(&p.name)) {
            return Err(error(ErrorKind::Field, format!("pin name of {} bytes", pin.name.len())));
        }
        match self.pins.windows(2).find(|w| w[0].name >= w[1].name) {
            Some(w) => Err(error(ErrorKind::Field, format!("pin {:?} is out of order", w[1].name))),
            None => Ok(()),
        }
    }
}

fn error(kind: ErrorKind, detail: impl Into<String>) -> DecodeError {
    DecodeError::new(kind, WHAT, 0).detail(detail)
}

#[cfg(test)]
mod tests;
