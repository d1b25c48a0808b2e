//! The bytes of objects: real headers, entries and footers around bodies that stand for LTX files.

use bytes::Bytes;
use rhyolite_format::crc::crc64;
use rhyolite_format::manifest::{Crc64Hex, FileKind, ManifestFile};
use rhyolite_format::segment::{Segment, SegmentEntry, SegmentHeader, encode_index};
use rhyolite_format::{Nonce, PageCount, Pos, Timestamp, Txid, keys};
use rhyolite_logic::history_plan::Written;

use crate::disk::{PAGE_SIZE, PAGES};

/// Size of a file with every page, or with the pages of several transactions.
const FILE_BYTES: usize = 256;

/// The bytes of a log segment, or of a bundle.
pub fn segment(header: &SegmentHeader, entries: &[SegmentEntry]) -> Bytes {
    let mut bytes = header.encode().to_vec();
    let mut placed = Vec::with_capacity(entries.len());
    for entry in entries {
        let offset = bytes.len() as u64;
        let fill = entry.post_apply.get().to_be_bytes();
        bytes.extend(fill.iter().cycle().take(usize::try_from(entry.len).expect("small")));
        placed.push(SegmentEntry { offset, ..entry.clone() });
    }
    let index_offset = bytes.len() as u64;
    encode_index(&placed, header, index_offset, &mut bytes);
    Bytes::from(bytes)
}

/// The bytes of a merged file or a snapshot. No two are the same.
pub fn file(end: Pos, nonce: Nonce) -> Bytes {
    let mut bytes = nonce.0.to_vec();
    bytes.extend(end.checksum.get().to_be_bytes());
    bytes.resize(FILE_BYTES, 0);
    Bytes::from(bytes)
}

/// What is known of an object that was written.
pub fn written(bytes: &Bytes) -> Written {
    Written { size: bytes.len() as u64, crc64: crc64(bytes) }
}

/// The place in the manifest of a snapshot.
pub fn snapshot_file(key: String, end: Pos, times: (Timestamp, Timestamp), object: Written) -> ManifestFile {
    ManifestFile {
        kind: FileKind::Snapshot,
        key,
        level: keys::SNAPSHOT_LEVEL,
        min_txid: Txid::FIRST,
        max_txid: end.txid,
        min_time: times.0,
        max_time: times.1,
        size: object.size,
        crc64: Crc64Hex(object.crc64),
        page_size: PAGE_SIZE,
        commit: PageCount(PAGES),
        pre_apply: None,
        post_apply: end.checksum,
        pages: u64::from(PAGES),
        entries: 1,
    }
}

/// Header and entries of a segment or bundle.
pub fn decode(bytes: &Bytes) -> Result<Segment, String> {
    Segment::decode(bytes).map_err(|e| e.to_string())
}
