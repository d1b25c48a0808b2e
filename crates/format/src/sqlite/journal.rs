//! Rollback journal (LTX specification, section 23): segments of a header, padded to a sector, and page records.
//!
//! | header offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | `d9d505f920a163d7` |
//! | 8 | 4 | number of records, all ones: until the end of the file |
//! | 12 | 4 | nonce of the record checksums |
//! | 16 | 4 | database size in pages before the transaction |
//! | 20 | 4 | sector size |
//! | 24 | 4 | page size |
//!
//! A record is the page number (4 bytes), the page as it was, and a checksum (4 bytes). The next segment starts at the
//! next multiple of the sector size. Sizes are those of the first header; those of the others are not looked at.
//!
//! A journal that names a super-journal ends, from the end: magic (8), checksum (4) and length (4) of the name, the name,
//! the number of the lock page (4).
//!
//! What is read here is what SQLite plays back: it stops, silently, at the first record or header that is not whole.

#[cfg(test)]
mod tests;

use super::layout::{be32, journal as at};
use crate::error::{DecodeError, ErrorKind};
use crate::types::{PageCount, PageNumber, PageSize};

const WHAT: &str = "rollback journal";
const RECORDS_TO_END: u32 = u32::MAX;
const SECTOR_BYTES_MIN: u32 = 32;
const SECTOR_BYTES_MAX: u32 = 65536;
/// Distance in bytes of the bytes of a page that its checksum looks at.
const CHECKSUM_STEP: usize = 200;

/// A journal whose first header is whole: it undoes a transaction.
///
/// Whether it is *hot* depends on more than its bytes: nobody holds RESERVED on the database, the database is not empty,
/// and its super-journal exists if it names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal<'a> {
    /// Size of every page.
    pub page_size: PageSize,
    /// Size of the unit in which the disk may tear a write.
    pub sector_size: u32,
    /// Size of the database before the transaction.
    pub original: PageCount,
    /// At least one.
    pub segments: Vec<Segment<'a>>,
    /// The super-journal that it belongs to.
    pub super_journal: Option<SuperJournalName<'a>>,
}

/// A header with the records behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Offset in bytes of the header.
    pub offset: u64,
    /// Number of records that the header promises; `None` for all until the end of the file.
    pub promised: Option<u32>,
    /// Nonce of the record checksums.
    pub nonce: u32,
    /// Database size of this header. Only that of the first one counts.
    pub page_count: u32,
    /// The records that SQLite would play back.
    pub records: Vec<Record<'a>>,
}

/// A page before the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which page.
    pub pgno: PageNumber,
    /// What it held.
    pub page: &'a [u8],
}

/// The record by which a journal names its super-journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperJournalName<'a> {
    /// Path of the super-journal, as SQLite was given it.
    pub path: &'a [u8],
    /// The number before the path, which is that of the lock page; `None` when the journal begins with the path.
    pub pgno: Option<u32>,
}

/// What the rollback writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Playback<'a> {
    /// Size of every page.
    pub page_size: PageSize,
    /// Size to which the database is cut, or extended with zeros.
    pub original: PageCount,
    /// The pages to put back, by page number, each once.
    pub pages: Vec<Record<'a>>,
}

/// The first header, whose sizes are those of the journal.
struct Sizes {
    sector: usize,
    page: PageSize,
    original: PageCount,
}

impl<'a> Journal<'a> {
    /// Takes in a whole journal. `None` if there is nothing to roll back: the journal is empty, finalised (truncated or
    /// zeroed), or was never synced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PageSize`] for a journal of a SQLite before 3.5.8, which does not say its page size.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let Some(sizes) = Sizes::decode(bytes)? else { return Ok(None) };
        let mut segments = Vec::new();
        let mut offset = Some(0);
        while let Some((segment, end)) = offset.and_then(|offset| sizes.segment(bytes, offset)) {
            segments.push(segment);
            offset = end.and_then(|end| end.checked_next_multiple_of(sizes.sector));
        }
        let Sizes { sector, page: page_size, original } = sizes;
        assert!(!segments.is_empty(), "a journal with sizes has a first header");
        let sector_size = u32::try_from(sector).expect("decoded from 32 bits");
        Ok(Some(Self { page_size, sector_size, original, segments, super_journal: super_journal_name(bytes) }))
    }

    /// What rolling back would write. Where a page is recorded twice the last record wins, as it is written last.
    pub fn playback(&self) -> Playback<'a> {
        let records = self.segments.iter().flat_map(|segment| &segment.records);
        let mut pages: Vec<_> = records.copied().filter(|record| self.original.contains(record.pgno)).collect();
        pages.reverse();
        pages.sort_by_key(|record| record.pgno);
        pages.dedup_by_key(|record| record.pgno);
        Playback { page_size: self.page_size, original: self.original, pages }
    }
}

impl Sizes {
    fn decode(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        if bytes.len() < at::SIZE_MIN || !bytes.starts_with(&at::MAGIC) {
            return Ok(None);
        }
        let page_bytes = be32(bytes, at::PAGE_SIZE);
        if page_bytes == 0 {
            let error = DecodeError::new(ErrorKind::PageSize, WHAT, at::PAGE_SIZE as u64);
            return Err(error.detail("0, as SQLite wrote it before 3.5.8"));
        }
        let sector_bytes = be32(bytes, at::SECTOR_SIZE);
        let sector_ok = (SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&sector_bytes) && sector_bytes.is_power_of_two();
        let sizes = PageSize::new(page_bytes).filter(|_| sector_ok).map(|page| Self {
            sector: sector_bytes as usize,
            page,
            original: PageCount(be32(bytes, at::PAGE_COUNT)),
        });
        Ok(sizes)
    }

    /// The segment at `offset`, and where it ends; no end if it is broken off. `None` if there is no segment.
    fn segment<'a>(&self, bytes: &'a [u8], offset: usize) -> Option<(Segment<'a>, Option<usize>)> {
        let header = bytes.get(offset..)?;
        // The first header is read before its sector size is known, and counts even if its sector is cut short.
        let whole = if offset == 0 { at::SIZE_MIN } else { self.sector };
        if header.len() < whole.max(at::HEADER_SIZE) || !header.starts_with(&at::MAGIC) {
            return None;
        }
        let promised = Some(be32(header, at::RECORDS)).filter(|records| *records != RECORDS_TO_END);
        let nonce = be32(header, at::NONCE);
        let body = header.get(self.sector..).unwrap_or(&[]);
        let record_bytes = self.page.bytes() + at::RECORD_OVERHEAD;
        let promised_count = promised.map_or(body.len() / record_bytes, |records| records as usize);
        let records: Vec<_> = body
            .chunks_exact(record_bytes)
            .take(promised_count)
            .map_while(|record| self.record(record, nonce))
            .collect();
        let end = (records.len() == promised_count).then(|| offset + self.sector + records.len() * record_bytes);
        let page_count = be32(header, at::PAGE_COUNT);
        Some((Segment { offset: offset as u64, promised, nonce, page_count, records }, end))
    }

    /// The record, unless playback ends at it.
    fn record<'a>(&self, bytes: &'a [u8], nonce: u32) -> Option<Record<'a>> {
        let (number, rest) = bytes.split_at(4);
        let (page, stored) = rest.split_at(self.page.bytes());
        let pgno = PageNumber::new(be32(number, 0)).filter(|pgno| *pgno != self.page.lock_page())?;
        // SQLite skips pages that the database did not have before it looks at their checksum.
        let whole = !self.original.contains(pgno) || record_checksum(nonce, page) == be32(stored, 0);
        whole.then_some(Record { pgno, page })
    }
}

/// Checksum of a record: a sum of every 200th byte, the first of which is 200 bytes before the end.
pub(super) fn record_checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut place = page.len() - CHECKSUM_STEP;
    while place > 0 {
        sum = sum.wrapping_add(u32::from(page[place]));
        place = place.saturating_sub(CHECKSUM_STEP);
    }
    sum
}

/// The super-journal that the journal names at its end. It may be there even where the first header is finalised.
pub fn super_journal_name(journal: &[u8]) -> Option<SuperJournalName<'_>> {
    if !journal.ends_with(&at::MAGIC) {
        return None;
    }
    let tail = journal.len().checked_sub(at::SUPER_TAIL)?;
    let length = be32(journal, journal.len() - at::SUPER_LENGTH_FROM_END) as usize;
    let stored = be32(journal, journal.len() - at::SUPER_CHECKSUM_FROM_END);
    let start = tail.checked_sub(length).filter(|_| length > 0)?;
    let path = &journal[start..tail];
    // SQLite sums `char`s, which are signed or not depending on the processor.
    let signed = path.iter().fold(0u32, |sum, byte| sum.wrapping_add_signed(i32::from(*byte as i8)));
    let unsigned = path.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    if stored != signed && stored != unsigned {
        return None;
    }
    Some(SuperJournalName { path, pgno: start.checked_sub(4).map(|place| be32(journal, place)) })
}

/// The paths of the journals in a super-journal: each ends with a zero byte. One that is cut short is left out.
pub fn super_journal_members(super_journal: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = super_journal.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
    super_journal[..whole].split_inclusive(|byte| *byte == 0).map(|path| &path[..path.len() - 1])
}
