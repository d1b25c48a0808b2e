//! One value of each of our own formats, with every field set: for golden files and the comparison with `docs/spec`.

use crate::identity::Identity;
use crate::json::Format1;
use crate::lease::{DurablePos, LeaseRecord, LeaseState};
use crate::lost::LostBranch;
use crate::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile, Pin, RetiredFile, RetiredSegments};
use crate::probe::ProbeRecord;
use crate::segment::{SegmentEntry, SegmentHeader, SegmentKind, encode_index};
use crate::sqlite::wal::Salt;
use crate::state::backlog::{BacklogEntry, BacklogHeader};
use crate::state::page_table::PageTableHeader;
use crate::state::parked::{DatabaseMark, FileMark, HeaderMark, Parked};
use crate::state::{LocalState, WalPosition};
use crate::types::{Checksum, Epoch, Lineage, Nonce, PageCount, PageNumber, PageSize, Pos, Seq, Timestamp, Txid};

pub(crate) const LINEAGE: Lineage = Lineage([0x4c; 16]);
const NONCE: Nonce = Nonce([0x4e; 16]);
const NOON: Timestamp = Timestamp(1_790_000_000_000);

pub(crate) fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

pub(crate) fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

/// Any checksum that belongs to `n` alone.
pub(crate) fn checksum(n: u64) -> Checksum {
    Checksum::from_crc(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(crate) fn pos(n: u64) -> Pos {
    Pos { txid: txid(n), checksum: checksum(n) }
}

fn later(ms: i64) -> Timestamp {
    Timestamp(NOON.0 + ms)
}

/// The entry of commit `n`, whose LTX file of `len` bytes starts at `offset`.
pub(crate) fn entry(n: u64, offset: u64, len: u64) -> SegmentEntry {
    SegmentEntry {
        min_txid: txid(n),
        max_txid: txid(n),
        offset,
        len,
        timestamp: later(n as i64),
        page_size: PageSize::new(4096).unwrap(),
        commit: PageCount(12),
        pages: 3,
        pre_apply: Some(checksum(n - 1)),
        post_apply: checksum(n),
    }
}

/// The entry of a snapshot up to `n`.
pub(crate) fn snapshot_entry(n: u64, offset: u64, len: u64) -> SegmentEntry {
    SegmentEntry { min_txid: Txid::FIRST, pages: 12, pre_apply: None, ..entry(n, offset, len) }
}

pub(crate) fn log_header() -> SegmentHeader {
    SegmentHeader::log(LINEAGE, epoch(2), seq(7), NONCE, NOON)
}

pub(crate) fn bundle_header() -> SegmentHeader {
    SegmentHeader { kind: SegmentKind::Bundle { last_seq: seq(9) }, ..log_header() }
}

/// A finished segment. Bodies of the LTX files are filler: they are not looked at here.
pub(crate) fn segment(header: &SegmentHeader, entries: &[SegmentEntry]) -> Vec<u8> {
    let mut bytes = header.encode().to_vec();
    for one in entries {
        bytes.resize(one.range().end as usize, 0xb0 | one.max_txid.get() as u8);
    }
    let end = bytes.len() as u64;
    encode_index(entries, header, end, &mut bytes);
    bytes
}

/// Two commits, a snapshot that starts the chain anew, a commit.
pub(crate) fn log_entries() -> Vec<SegmentEntry> {
    let mut after = entry(8, 80 + 140 + 131 + 150, 131);
    after.page_size = PageSize::new(512).unwrap();
    let mut reset = snapshot_entry(7, 80 + 140 + 131, 150);
    reset.page_size = after.page_size;
    vec![entry(5, 80, 140), entry(6, 80 + 140, 131), reset, after]
}

pub(crate) fn bundle_entries() -> Vec<SegmentEntry> {
    vec![entry(5, 80, 140), entry(6, 220, 131)]
}

pub(crate) fn local_state() -> LocalState {
    LocalState {
        lineage: LINEAGE,
        pos: Some(pos(8)),
        durable: Some(pos(6)),
        page_size: PageSize::new(4096),
        commit: PageCount(12),
        wal: Some(WalPosition { salt: Salt(0x0102_0304, 0x0506_0708), frame: 17, frame_header: [0xf7; 24] }),
        epoch: epoch(2),
        next_seq: seq(8),
        boot_id: [0xb0; 16],
    }
}

pub(crate) fn page_table() -> (PageTableHeader, Vec<u64>) {
    let entries: Vec<u64> = [1, 2, 0, 4].map(|n| if n == 0 { 0 } else { checksum(100 + n).get() }).to_vec();
    let page_size = PageSize::new(4096).unwrap();
    (PageTableHeader { lineage: LINEAGE, pos: pos(8), page_size, count: PageCount(4) }, entries)
}

pub(crate) fn identity() -> Identity {
    Identity { format: Format1, lineage: LINEAGE, created: NOON, page_size: PageSize::new(4096).unwrap() }
}

pub(crate) fn lease() -> LeaseRecord {
    LeaseRecord {
        format: Format1,
        epoch: epoch(2),
        state: LeaseState::Held,
        quiet: false,
        successor: None,
        holder: "host-a".to_owned(),
        address: Some("http://10.0.0.1:7391".to_owned()),
        process: Some("5f8e2f6a-0000-4000-8000-000000000001 pid:[4026531836] 77 4242".to_owned()),
        nonce: NONCE,
        ttl_ms: 10_000,
        renewed: NOON,
        durable: Some(DurablePos { lineage: LINEAGE, pos: pos(8) }),
        witnesses: None,
    }
}

pub(crate) fn probe() -> ProbeRecord {
    ProbeRecord {
        format: Format1,
        time: NOON,
        store: "s3://backups/app".to_owned(),
        backup: true,
        fencing: false,
        failed: vec!["create-race".to_owned(), "swap-race".to_owned()],
        clock_offset_ms: Some(-2_400),
    }
}

pub(crate) fn lost() -> LostBranch {
    LostBranch {
        format: Format1,
        time: NOON,
        reason: "the node has another history".to_owned(),
        lineage: Some(LINEAGE),
        txid: Some(txid(8)),
        epoch: Some(epoch(2)),
        checksum: Some(pos(8).checksum),
        size: 8192,
    }
}

/// A file of a manifest: `kind` follows from the level.
pub(crate) fn file(level: u8, min: u64, max: u64) -> ManifestFile {
    let (kind, key) = match level {
        1 => (FileKind::Bundle, crate::keys::bundle(txid(min), txid(max), epoch(2))),
        9 => (FileKind::Snapshot, crate::keys::ltx(9, txid(min), txid(max), epoch(2))),
        _ => (FileKind::Merged, crate::keys::ltx(level, txid(min), txid(max), epoch(2))),
    };
    ManifestFile {
        kind,
        key,
        level,
        min_txid: txid(min),
        max_txid: txid(max),
        min_time: later(min as i64),
        max_time: later(max as i64),
        size: 4096,
        crc64: Crc64Hex(min << 32 | max),
        page_size: PageSize::new(4096).unwrap(),
        commit: PageCount(12),
        pre_apply: (min > 1).then(|| checksum(min - 1)),
        post_apply: checksum(max),
        pages: if level == 1 { 3 * (max - min + 1) } else { 12 },
        entries: if level == 1 { (max - min + 1) as u32 } else { 1 },
    }
}

pub(crate) fn manifest() -> Manifest {
    let mut manifest = Manifest::new(LINEAGE, epoch(2), NONCE, NOON, seq(40));
    manifest.revision = 5;
    manifest.log_epoch = epoch(2);
    manifest.log_start = Some(pos(30));
    manifest.files = vec![file(1, 11, 20), file(1, 21, 30), file(2, 2, 10), file(9, 1, 1), file(9, 1, 15)];
    manifest.retired_files = vec![RetiredFile { key: file(1, 2, 10).key, since: later(40) }];
    manifest.retired_segments = vec![RetiredSegments { first_seq: seq(30), last_seq: seq(39), since: later(41) }];
    manifest.pins = vec![Pin { name: "before the migration".to_owned(), pos: pos(10) }];
    manifest
}

pub(crate) fn parked() -> Parked {
    let file =
        |inode, bytes| FileMark { inode, bytes, modified_ns: NOON.0 * 1_000_000, changed_ns: NOON.0 * 1_000_000 + 7 };
    Parked {
        lineage: LINEAGE,
        pos: pos(8),
        next_seq: seq(41),
        store: 0x5354_4f52_4521,
        boot_id: [0x42; 16],
        mark: DatabaseMark { database: file(71, 49_152), wal: file(72, 4_152) },
        header: HeaderMark { change_counter: 5, salt: Salt(7, 9) },
        history_due: Some(later(300_000)),
    }
}

pub(crate) fn backlog() -> BacklogHeader {
    BacklogHeader { lineage: LINEAGE, boot_id: [0x42; 16], generation: 5, base: pos(8) }
}

/// Writes page `number` and the one after it.
pub(crate) fn backlog_entry(number: u32) -> BacklogEntry<'static> {
    let page = |number| PageNumber::new(number).unwrap();
    BacklogEntry {
        recorded: None,
        timestamp: later(i64::from(number)),
        page_size: PageSize::new(512).unwrap(),
        commit: PageCount(12),
        pages: vec![(page(number), &[0x61; 512]), (page(number + 1), &[0x62; 512])],
    }
}
