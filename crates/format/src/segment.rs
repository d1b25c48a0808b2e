//! Segments: the objects of the log (docs/spec/segment.md).
//!
//! ```text
//! header 80 | LTX files back to back | entries 72 each | footer 24
//! ```
//!
//! A *log segment* holds the transactions of one upload and is named by one sequence number. A *bundle* has the same form and
//! holds the transactions of several consecutive log segments. Invariants, checked by every decoder here:
//!
//! 1. LTX files lie back to back, from the end of the header to the start of the entries, one entry each, in order.
//! 2. Each entry continues the one before: next TXID, same page size, and its pre-apply checksum is the other's post-apply
//!    checksum. Or it is a snapshot (it starts at TXID 1 and has no pre-apply checksum): that starts the chain anew, at a
//!    higher TXID.
//! 3. A log segment may be empty: then it is a fence. A bundle is never empty and holds no snapshot.
//! 4. The CRC in the footer covers header, entries and footer; the LTX files carry their own.
//!
//! Header and tail are enough to list what a segment holds. A local segment that is still being written has no entries and no
//! footer; its LTX files say what it holds.

use std::ops::Range;

use crate::crc::Crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{segment_entry as entry, segment_footer as footer, segment_header as head};
use crate::types::{Checksum, Epoch, Lineage, Nonce, PageCount, PageSize, Pos, Seq, Timestamp, Txid};

/// First bytes of every segment.
pub const MAGIC: [u8; 4] = *b"RHSG";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the header in bytes.
pub const HEADER_SIZE: usize = head::SIZE;
/// Size of an entry in bytes.
pub const ENTRY_SIZE: usize = entry::SIZE;
/// Size of the footer in bytes.
pub const FOOTER_SIZE: usize = footer::SIZE;
/// The most transactions that one segment or bundle may hold.
pub const ENTRIES_MAX: u32 = 1 << 20;

const FOOTER_MAGIC: [u8; 4] = *b"RHSE";
/// Size of an LTX file without pages (LTX specification, section 2).
const LTX_SIZE_MIN: u64 = 131;

/// What a segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// One upload: level 0.
    Log,
    /// Several log segments in one: level 1.
    Bundle {
        /// The last of the log segments, not before the first.
        last_seq: Seq,
    },
}

/// Who wrote a segment, when, and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Log segment or bundle.
    pub kind: SegmentKind,
    /// The history that this belongs to.
    pub lineage: Lineage,
    /// The right to write under which it was written.
    pub epoch: Epoch,
    /// Its sequence number; of a bundle, the first one it covers.
    pub seq: Seq,
    /// By which the writer recognises its own object.
    pub nonce: Nonce,
    /// The writer's clock when it was begun.
    pub created: Timestamp,
}

/// One LTX file in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// First transaction; 1 makes it a snapshot.
    pub min_txid: Txid,
    /// Last transaction, not before the first.
    pub max_txid: Txid,
    /// Offset in bytes of the LTX file from the start of the segment.
    pub offset: u64,
    /// Size in bytes of the LTX file.
    pub len: u64,
    /// Time of the last transaction.
    pub timestamp: Timestamp,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database after it.
    pub commit: PageCount,
    /// Number of pages in the LTX file.
    pub pages: u32,
    /// The database before it; `None` for a snapshot.
    pub pre_apply: Option<Checksum>,
    /// The database after it.
    pub post_apply: Checksum,
}

/// A whole segment but for the bodies of its LTX files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who, when, where.
    pub header: SegmentHeader,
    /// What it holds, in order.
    pub entries: Vec<SegmentEntry>,
}

impl SegmentHeader {
    /// Header of a log segment.
    pub fn log(lineage: Lineage, epoch: Epoch, seq: Seq, nonce: Nonce, created: Timestamp) -> Self {
        Self { kind: SegmentKind::Log, lineage, epoch, seq, nonce, created }
    }

    /// The last sequence number that it covers.
    pub fn last_seq(&self) -> Seq {
        match self.kind {
            SegmentKind::Log => self.seq,
            SegmentKind::Bundle { last_seq } => last_seq,
        }
    }

    /// The first bytes of the segment.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        assert!(self.seq <= self.last_seq(), "a bundle covers its first log segment");
        let mut bytes = [0; HEADER_SIZE];
        head::MAGIC.put(&mut bytes, &MAGIC);
        head::VERSION.put(&mut bytes, &[VERSION]);
        head::KIND.put(&mut bytes, &[if self.kind == SegmentKind::Log { 1 } else { 2 }]);
        head::LINEAGE.put(&mut bytes, &self.lineage.0);
        head::EPOCH.put_u64(&mut bytes, self.epoch.get());
        head::FIRST_SEQ.put_u64(&mut bytes, self.seq.get());
        head::LAST_SEQ.put_u64(&mut bytes, self.last_seq().get());
        head::NONCE.put(&mut bytes, &self.nonce.0);
        head::CREATED.put_i64(&mut bytes, self.created.0);
        let crc = crate::crc::crc64(&bytes[..head::CRC.offset]);
        head::CRC.put_u64(&mut bytes, crc);
        bytes
    }

    /// Reads the header at the start of `bytes`; what follows it is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let error = |kind, field: crate::layout::Field| DecodeError::new(kind, "segment header", field.offset as u64);
        if bytes.len() < HEADER_SIZE {
            return Err(DecodeError::new(ErrorKind::Short, "segment header", bytes.len() as u64));
        }
        if head::MAGIC.of(bytes) != MAGIC {
            return Err(error(ErrorKind::Magic, head::MAGIC));
        }
        let version = head::VERSION.byte(bytes);
        if version != VERSION {
            return Err(error(ErrorKind::Version, head::VERSION).detail(format!("version {version}")));
        }
        if crate::crc::crc64(&bytes[..head::CRC.offset]) != head::CRC.u64(bytes) {
            return Err(error(ErrorKind::FileChecksum, head::CRC));
        }
        if !head::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, head::RESERVED));
        }
        let epoch = Epoch::new(head::EPOCH.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, head::EPOCH))?;
        let seq = Seq::new(head::FIRST_SEQ.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, head::FIRST_SEQ))?;
        let last_seq = Seq::new(head::LAST_SEQ.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, head::LAST_SEQ))?;
        let kind = match head::KIND.byte(bytes) {
            1 if seq == last_seq => SegmentKind::Log,
            2 if seq <= last_seq => SegmentKind::Bundle { last_seq },
            1 | 2 => return Err(error(ErrorKind::Field, head::LAST_SEQ)),
            _ => return Err(error(ErrorKind::Field, head::KIND)),
        };
        let lineage = Lineage(head::LINEAGE.id(bytes));
        let nonce = Nonce(head::NONCE.id(bytes));
        Ok(Self { kind, lineage, epoch, seq, nonce, created: Timestamp(head::CREATED.i64(bytes)) })
    }
}

impl SegmentEntry {
    /// Whether it starts the chain anew.
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// The position after it.
    pub fn end(&self) -> Pos {
        Pos { txid: self.max_txid, checksum: self.post_apply }
    }

    /// Where its LTX file lies in the segment.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; ENTRY_SIZE];
        entry::MIN_TXID.put_u64(&mut bytes, self.min_txid.get());
        entry::MAX_TXID.put_u64(&mut bytes, self.max_txid.get());
        entry::OFFSET.put_u64(&mut bytes, self.offset);
        entry::LEN.put_u64(&mut bytes, self.len);
        entry::TIMESTAMP.put_i64(&mut bytes, self.timestamp.0);
        entry::PAGE_SIZE.put_u32(&mut bytes, self.page_size.get());
        entry::COMMIT.put_u32(&mut bytes, self.commit.get());
        entry::PAGES.put_u32(&mut bytes, self.pages);
        entry::PRE_APPLY.put_u64(&mut bytes, self.pre_apply.map_or(0, Checksum::get));
        entry::POST_APPLY.put_u64(&mut bytes, self.post_apply.get());
        out.extend_from_slice(&bytes);
    }

    /// Reads one entry; `at` is its offset in the segment. Checks the entry alone, not its neighbours.
    fn decode(bytes: &[u8], at: u64) -> Result<Self, DecodeError> {
        let error = |kind, f: crate::layout::Field| DecodeError::new(kind, "segment entry", at + f.offset as u64);
        let txid = |field: crate::layout::Field| {
            Txid::new(field.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, field).detail("TXID 0"))
        };
        let pre_apply = match entry::PRE_APPLY.u64(bytes) {
            0 => None,
            raw => Some(Checksum::from_raw(raw).ok_or_else(|| error(ErrorKind::PreChecksum, entry::PRE_APPLY))?),
        };
        let post_apply = Checksum::from_raw(entry::POST_APPLY.u64(bytes))
            .ok_or_else(|| error(ErrorKind::PostChecksum, entry::POST_APPLY))?;
        if !entry::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, entry::RESERVED));
        }
        let value = Self {
            min_txid: txid(entry::MIN_TXID)?,
            max_txid: txid(entry::MAX_TXID)?,
            offset: entry::OFFSET.u64(bytes),
            len: entry::LEN.u64(bytes),
            timestamp: Timestamp(entry::TIMESTAMP.i64(bytes)),
            page_size: PageSize::new(entry::PAGE_SIZE.u32(bytes))
                .ok_or_else(|| error(ErrorKind::PageSize, entry::PAGE_SIZE))?,
            commit: PageCount(entry::COMMIT.u32(bytes)),
            pages: entry::PAGES.u32(bytes),
            pre_apply,
            post_apply,
        };
        value.check().map_err(|(kind, field)| error(kind, field))?;
        Ok(value)
    }

    /// The rules that concern one entry alone.
    fn check(&self) -> Result<(), (ErrorKind, crate::layout::Field)> {
        if self.min_txid > self.max_txid {
            return Err((ErrorKind::Txid, entry::MAX_TXID));
        }
        if self.len < LTX_SIZE_MIN || self.offset.checked_add(self.len).is_none() {
            return Err((ErrorKind::Index, entry::LEN));
        }
        if self.pre_apply.is_none() != self.is_snapshot() {
            return Err((ErrorKind::PreChecksum, entry::PRE_APPLY));
        }
        if self.commit.get() == 0 && self.post_apply != Checksum::EMPTY {
            return Err((ErrorKind::PostChecksum, entry::POST_APPLY));
        }
        let lock_page = u32::from(self.commit.contains(self.page_size.lock_page()));
        let pages_max = self.commit.get() - lock_page;
        if self.pages > pages_max {
            return Err((ErrorKind::Commit, entry::PAGES));
        }
        if self.is_snapshot() && self.pages != pages_max {
            return Err((ErrorKind::SnapshotPages, entry::PAGES));
        }
        Ok(())
    }
}

impl Segment {
    /// Reads a whole segment. Checks everything but the bodies of the LTX files.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let header = SegmentHeader::decode(bytes)?;
        let size = bytes.len() as u64;
        let index = decode_footer(bytes, size)?;
        let start = usize::try_from(index.start).expect("lies within a slice");
        let entries = decode_index(&header, &bytes[start..], size)?;
        Ok(Self { header, entries })
    }

    /// The position after its last transaction; `None` when it is empty.
    pub fn end(&self) -> Option<Pos> {
        self.entries.last().map(SegmentEntry::end)
    }
}

/// Where the entries lie, told by the last bytes of a segment of `size` bytes (at least [`FOOTER_SIZE`] of them). The footer
/// follows right after. Only the bounds are checked: [`decode_index`] checks the rest.
pub fn decode_footer(tail: &[u8], size: u64) -> Result<Range<u64>, DecodeError> {
    let error = |kind| DecodeError::new(kind, "segment footer", size.saturating_sub(FOOTER_SIZE as u64));
    let at = tail.len().checked_sub(FOOTER_SIZE).ok_or_else(|| error(ErrorKind::Short))?;
    let bytes = &tail[at..];
    if footer::MAGIC.of(bytes) != FOOTER_MAGIC {
        return Err(error(ErrorKind::Magic).detail("unfinished or cut off"));
    }
    let count = footer::COUNT.u32(bytes);
    if count > ENTRIES_MAX {
        return Err(error(ErrorKind::Index).detail(format!("{count} entries, at most {ENTRIES_MAX}")));
    }
    let index_offset = footer::INDEX_OFFSET.u64(bytes);
    let index_size = u64::from(count) * ENTRY_SIZE as u64;
    let end = index_offset.checked_add(index_size);
    let bounds_hold = index_offset >= HEADER_SIZE as u64 && end == size.checked_sub(FOOTER_SIZE as u64);
    if !bounds_hold {
        return Err(error(ErrorKind::Index).detail("the entries do not fill the space before the footer"));
    }
    Ok(index_offset..index_offset + index_size)
}

/// Reads the entries from `tail`, the bytes from the start of the entries (see [`decode_footer`]) to the end of a segment of
/// `size` bytes, and checks all invariants.
pub fn decode_index(header: &SegmentHeader, tail: &[u8], size: u64) -> Result<Vec<SegmentEntry>, DecodeError> {
    let index = decode_footer(tail, size)?;
    if size - index.start != tail.len() as u64 {
        return Err(DecodeError::new(ErrorKind::Short, "segment entries", index.start).detail("not the whole tail"));
    }
    let crc_at = tail.len() - footer::CRC.size;
    let mut crc = Crc64::new();
    crc.update(&header.encode());
    crc.update(&tail[..crc_at]);
    if crc.sum().to_be_bytes() != tail[crc_at..] {
        return Err(DecodeError::new(ErrorKind::FileChecksum, "segment footer", size - footer::CRC.size as u64));
    }
    let records = tail[..tail.len() - FOOTER_SIZE].chunks_exact(ENTRY_SIZE);
    let mut entries = Vec::with_capacity(records.len());
    for (i, record) in records.enumerate() {
        entries.push(SegmentEntry::decode(record, index.start + (i * ENTRY_SIZE) as u64)?);
    }
    check_entries(header, &entries, index.start)?;
    Ok(entries)
}

/// Appends entries and footer to a segment whose LTX files end at `index_offset`. After this the segment is finished.
///
/// Panics when the entries break an invariant of the format: they are our own.
pub fn encode_index(entries: &[SegmentEntry], header: &SegmentHeader, index_offset: u64, out: &mut Vec<u8>) {
    assert!(entries.len() <= ENTRIES_MAX as usize, "{} entries in one segment", entries.len());
    if let Err(e) = check_entries(header, entries, index_offset) {
        panic!("segment entries that break the format: {e}");
    }
    encode_unchecked(entries, header, index_offset, out);
}

/// [`encode_index`] of entries that may break the rules.
pub(crate) fn encode_unchecked(entries: &[SegmentEntry], header: &SegmentHeader, index_offset: u64, out: &mut Vec<u8>) {
    let count = u32::try_from(entries.len()).expect("bounded by ENTRIES_MAX");
    let start = out.len();
    for one in entries {
        one.encode(out);
    }
    let mut foot = [0; FOOTER_SIZE];
    footer::INDEX_OFFSET.put_u64(&mut foot, index_offset);
    footer::COUNT.put_u32(&mut foot, count);
    footer::MAGIC.put(&mut foot, &FOOTER_MAGIC);
    out.extend_from_slice(&foot[..footer::CRC.offset]);
    let mut crc = Crc64::new();
    crc.update(&header.encode());
    crc.update(&out[start..]);
    out.extend_from_slice(&crc.sum().to_be_bytes());
}

/// Invariants 1 to 3.
fn check_entries(header: &SegmentHeader, entries: &[SegmentEntry], index_offset: u64) -> Result<(), DecodeError> {
    let is_bundle = header.kind != SegmentKind::Log;
    if is_bundle && entries.is_empty() {
        return Err(DecodeError::new(ErrorKind::Index, "segment entries", index_offset).detail("an empty bundle"));
    }
    let mut offset = HEADER_SIZE as u64;
    let mut previous: Option<&SegmentEntry> = None;
    for (i, one) in entries.iter().enumerate() {
        let at = index_offset + (i * ENTRY_SIZE) as u64;
        let error = |kind, f: crate::layout::Field| DecodeError::new(kind, "segment entry", at + f.offset as u64);
        one.check().map_err(|(kind, field)| error(kind, field))?;
        if one.offset != offset {
            return Err(error(ErrorKind::Index, entry::OFFSET));
        }
        if is_bundle && one.is_snapshot() {
            return Err(error(ErrorKind::Txid, entry::MIN_TXID).detail("a snapshot in a bundle"));
        }
        if let Some(previous) = previous {
            check_successor(previous, one).map_err(|(kind, field)| error(kind, field))?;
        }
        offset = one.range().end;
        previous = Some(one);
    }
    if offset != index_offset {
        return Err(DecodeError::new(ErrorKind::Index, "segment entries", index_offset)
            .detail("the LTX files do not fill the space before the entries"));
    }
    Ok(())
}

/// Invariant 2.
fn check_successor(previous: &SegmentEntry, next: &SegmentEntry) -> Result<(), (ErrorKind, crate::layout::Field)> {
    if next.is_snapshot() {
        return if next.max_txid > previous.max_txid { Ok(()) } else { Err((ErrorKind::Txid, entry::MAX_TXID)) };
    }
    if Some(previous.max_txid) != next.min_txid.previous() {
        return Err((ErrorKind::Gap, entry::MIN_TXID));
    }
    if next.page_size != previous.page_size {
        return Err((ErrorKind::PageSize, entry::PAGE_SIZE));
    }
    if next.pre_apply != Some(previous.post_apply) {
        return Err((ErrorKind::Chain, entry::PRE_APPLY));
    }
    Ok(())
}
