//! Writes a rollback journal of one segment (LTX specification, section 23), by which any SQLite undoes a half-written change.
//!
//! Order of use, all of it before the first byte of the database changes: a header that promises no record; the records;
//! sync; the header that promises them; sync; sync of the folder. Then the database is written and synced, and unlinking
//! the journal is the commit.

use super::journal::record_checksum;
use super::layout::journal as at;
use crate::types::{PageCount, PageNumber, PageSize};

/// Size in bytes of the header with its padding, and offset of the first record.
pub const JOURNAL_HEADER_BYTES: usize = at::SIZE_MIN;

/// Makes header and records of one journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalWriter {
    nonce: u32,
    original: PageCount,
    page_size: PageSize,
}

impl JournalWriter {
    /// A journal of a database that has `original` pages. `nonce` is random: it tells records from what lay there before.
    pub fn new(nonce: u32, original: PageCount, page_size: PageSize) -> Self {
        Self { nonce, original, page_size }
    }

    /// The header, which promises `records` records.
    pub fn header(&self, records: u32) -> [u8; JOURNAL_HEADER_BYTES] {
        assert!(records < u32::MAX, "this number means: until the end of the file");
        let mut bytes = [0; JOURNAL_HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &at::MAGIC);
        put(at::RECORDS, &records.to_be_bytes());
        put(at::NONCE, &self.nonce.to_be_bytes());
        put(at::PAGE_COUNT, &self.original.get().to_be_bytes());
        put(at::SECTOR_SIZE, &(JOURNAL_HEADER_BYTES as u32).to_be_bytes());
        put(at::PAGE_SIZE, &self.page_size.get().to_be_bytes());
        bytes
    }

    /// Appends the record of a page as it is before the change.
    pub fn record(&self, pgno: PageNumber, page: &[u8], out: &mut Vec<u8>) {
        assert_eq!(page.len(), self.page_size.bytes(), "one page");
        assert!(self.original.contains(pgno), "page {pgno} was not there before");
        assert!(pgno != self.page_size.lock_page(), "the lock page is never journaled");
        out.extend_from_slice(&pgno.get().to_be_bytes());
        out.extend_from_slice(page);
        out.extend_from_slice(&record_checksum(self.nonce, page).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::journal::Journal;

    #[test]
    fn what_is_written_is_read_back() {
        for size in [512, 4096, 65536] {
            let page_size = PageSize::new(size).unwrap();
            let writer = JournalWriter::new(0x1234_5678, PageCount(9), page_size);
            let pages: Vec<Vec<u8>> = (0..3u8).map(|i| vec![i.wrapping_mul(77); page_size.bytes()]).collect();
            let mut bytes = writer.header(3).to_vec();
            for (i, page) in pages.iter().enumerate() {
                writer.record(PageNumber::new(3 * i as u32 + 1).unwrap(), page, &mut bytes);
            }
            let journal = Journal::decode(&bytes).unwrap().unwrap();
            assert_eq!((journal.original, journal.page_size), (PageCount(9), page_size));
            let playback = journal.playback();
            assert_eq!(playback.pages.iter().map(|r| r.pgno.get()).collect::<Vec<_>>(), [1, 4, 7]);
            assert!(playback.pages.iter().zip(&pages).all(|(record, page)| record.page == page));
            bytes[..JOURNAL_HEADER_BYTES].copy_from_slice(&writer.header(0));
            assert_eq!(Journal::decode(&bytes).unwrap().unwrap().playback().pages, []);
        }
    }
}
