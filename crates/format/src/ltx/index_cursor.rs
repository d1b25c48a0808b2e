//! Reads a page index that arrives in pieces (LTX specification, section 2.3).
//!
//! Frames lie back to back from the end of the header to the end of the page block, so every offset follows from the
//! sizes before it. The cursor demands exactly that, which leaves no room for an index that points elsewhere.

use super::PageIndexEntry;
use super::layout::{HEADER_SIZE, PAGE_HEADER_SIZE};
use crate::error::{DecodeError, ErrorKind};
use crate::types::PageNumber;

const WHAT: &str = "page index";
/// Where the first page frame starts.
const PAGE_BLOCK_START: u64 = HEADER_SIZE as u64;
/// Length of the zero page header that ends the page block.
const PAGE_BLOCK_END_LEN: u64 = PAGE_HEADER_SIZE as u64;
/// Longest form of a varint.
const VARINT_LEN_MAX: usize = 10;

/// Where in the index the next bytes belong.
#[derive(Clone, Debug)]
pub struct PageIndexCursor {
    index_start: u64,
    /// Bytes of an entry whose rest has not arrived. Never more than one entry.
    pending: Vec<u8>,
    /// Bytes taken in so far.
    taken: u64,
    previous: u32,
    next_offset: u64,
    ended: bool,
}

impl PageIndexCursor {
    /// A cursor for an index that starts at this offset of its LTX file.
    pub fn new(index_start: u64) -> Self {
        Self { index_start, pending: Vec::new(), taken: 0, previous: 0, next_offset: PAGE_BLOCK_START, ended: false }
    }

    /// Takes in the next bytes of the index, which may end anywhere, and appends the entries that are complete.
    ///
    /// # Errors
    /// Any entry that is not the right one at its place.
    pub fn feed(&mut self, bytes: &[u8], entries: &mut Vec<PageIndexEntry>) -> Result<(), DecodeError> {
        let mut bytes = bytes;
        while !self.pending.is_empty() && !self.ended {
            // The rest of one entry is at most three varints away.
            let add = bytes.len().min(3 * VARINT_LEN_MAX);
            let had = self.pending.len();
            self.pending.extend_from_slice(&bytes[..add]);
            let joined = std::mem::take(&mut self.pending);
            let Some(used) = self.entry(&joined, entries)? else {
                self.pending = joined;
                return if add == bytes.len() { Ok(()) } else { Err(self.error("an entry that does not end")) };
            };
            bytes = &bytes[used - had..];
        }
        while !self.ended {
            let Some(used) = self.entry(bytes, entries)? else { break };
            bytes = &bytes[used..];
        }
        if self.ended && !bytes.is_empty() {
            return Err(self.error("entries after the end"));
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > 3 * VARINT_LEN_MAX { Err(self.error("an entry that does not end")) } else { Ok(()) }
    }

    /// Checks that the whole index has been taken in and that it accounts for the whole page block.
    ///
    /// # Errors
    /// The index ends early or does not reach the end of the page block.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if !self.ended {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, self.index_start + self.taken));
        }
        if self.next_offset + PAGE_BLOCK_END_LEN != self.index_start {
            return Err(self.error("the frames do not fill the page block"));
        }
        Ok(())
    }

    /// Takes one entry from the start of `bytes`; gives the bytes used, or `None` when they end before the entry does.
    fn entry(&mut self, bytes: &[u8], entries: &mut Vec<PageIndexEntry>) -> Result<Option<usize>, DecodeError> {
        let Some((pgno, a)) = self.varint(bytes)? else { return Ok(None) };
        if pgno == 0 {
            self.ended = true;
            self.taken += a as u64;
            return Ok(Some(a));
        }
        let Some((offset, b)) = self.varint(&bytes[a..])? else { return Ok(None) };
        let Some((size, c)) = self.varint(&bytes[a + b..])? else { return Ok(None) };
        let pgno = u32::try_from(pgno).ok().filter(|pgno| *pgno > self.previous).and_then(PageNumber::new);
        let pgno = pgno.ok_or_else(|| self.error("page numbers that do not ascend"))?;
        let end = offset.checked_add(size).filter(|end| end.saturating_add(PAGE_BLOCK_END_LEN) <= self.index_start);
        match end {
            Some(end) if offset == self.next_offset && size > 0 => {
                self.previous = pgno.get();
                self.next_offset = end;
                self.taken += (a + b + c) as u64;
                entries.push(PageIndexEntry { pgno, offset, size });
                Ok(Some(a + b + c))
            }
            _ => Err(self.error("a frame that does not follow the one before")),
        }
    }

    fn varint(&self, bytes: &[u8]) -> Result<Option<(u64, usize)>, DecodeError> {
        let mut value = 0u64;
        for (i, byte) in bytes.iter().take(VARINT_LEN_MAX).enumerate() {
            let bits = u64::from(byte & 0x7f);
            if i == VARINT_LEN_MAX - 1 && *byte > 1 {
                return Err(self.error("a number above 64 bits"));
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(Some((value, i + 1)));
            }
        }
        if bytes.len() >= VARINT_LEN_MAX { Err(self.error("a number above 64 bits")) } else { Ok(None) }
    }

    fn error(&self, detail: &'static str) -> DecodeError {
        DecodeError::new(ErrorKind::Index, WHAT, self.index_start + self.taken).detail(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn index_of(entries: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (pgno, offset, size) in entries {
            put(&mut out, *pgno);
            put(&mut out, *offset);
            put(&mut out, *size);
        }
        out.push(0);
        out
    }

    fn read(bytes: &[u8], piece: usize, index_start: u64) -> Result<Vec<(u32, u64, u64)>, DecodeError> {
        let mut cursor = PageIndexCursor::new(index_start);
        let mut entries = Vec::new();
        for piece in bytes.chunks(piece) {
            cursor.feed(piece, &mut entries)?;
        }
        cursor.finish()?;
        Ok(entries.iter().map(|e| (e.pgno.get(), e.offset, e.size)).collect())
    }

    #[test]
    fn an_index_reads_the_same_however_it_is_cut() {
        let wanted: Vec<(u64, u64, u64)> = (0..500).map(|i| (1 + i * 300, 100 + i * 1000, 1000)).collect();
        let bytes = index_of(&wanted);
        let start = 100 + 500 * 1000 + 6;
        for piece in [1, 2, 3, 7, 11, 64, 1000, bytes.len()] {
            let found = read(&bytes, piece, start).unwrap();
            assert!(found.iter().map(|e| (u64::from(e.0), e.1, e.2)).eq(wanted.iter().copied()), "piece {piece}");
        }
        assert_eq!(read(&index_of(&[]), 1, 106).unwrap(), []);
    }

    #[test]
    fn an_index_that_does_not_describe_the_page_block_is_refused() {
        let good = [(1, 100, 50), (3, 150, 60)];
        assert!(read(&index_of(&good), 9, 216).is_ok());
        assert!(read(&index_of(&good), 9, 217).is_err(), "frames end before the page block does");
        for bad in [
            vec![(1, 100, 50), (1, 150, 60)],
            vec![(3, 100, 50), (2, 150, 60)],
            vec![(1, 101, 49), (3, 150, 60)],
            vec![(1, 100, 50), (3, 151, 59)],
            vec![(1, 100, 0), (3, 100, 110)],
            vec![(1, 100, 111)],
            vec![(1, 100, u64::MAX)],
            vec![(u64::from(u32::MAX) + 1, 100, 110)],
        ] {
            for piece in [1, 100] {
                assert!(read(&index_of(&bad), piece, 216).is_err(), "{bad:?}");
            }
        }
        let bytes = index_of(&good);
        assert!(read(&bytes[..bytes.len() - 1], 100, 216).is_err(), "no end mark");
        assert!(read(&[&bytes[..], &[0]].concat(), 100, 216).is_err(), "bytes after the end mark");
        assert!(read(&[0xff; 40], 1, 216).is_err());
        assert!(read(&[0xff; 40], 40, 216).is_err());
    }
}
