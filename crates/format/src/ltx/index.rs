//! The page index: which page lies where (LTX specification, sections 2.3 and 8).
//!
//! Stored form: per page frame, ascending, three varints (page number, offset of the frame in the file, size of the
//! frame), then a varint 0, then a u64: the length of all that. Frames follow one another from byte 100 without a gap, so
//! in memory the list is two small numbers per page ([`FrameList`]): some three bytes, whatever the database's size.

use std::ops::Range;

use super::index_cursor::PageIndexCursor;
use super::layout::*;
use crate::{DecodeError, ErrorKind, PageNumber};

const WHAT: &str = "LTX page index";
/// The longest varint of 64 bits.
const VARINT_SIZE_MAX: usize = 10;

/// Where one page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageIndexEntry {
    /// The page.
    pub pgno: PageNumber,
    /// Offset in bytes of its frame from the start of the file.
    pub offset: u64,
    /// Size in bytes of the whole frame, page header included.
    pub size: u64,
}

/// The index of a file, ascending by page number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageIndex(pub Vec<PageIndexEntry>);

impl PageIndex {
    /// Where the index of a file of `file_size` bytes lies, its u64 included, from the last bytes of the file (24 at
    /// least). It may begin before `tail` does.
    pub fn locate(tail: &[u8], file_size: u64) -> Result<Range<u64>, DecodeError> {
        let end = file_size.saturating_sub(TRAILER_SIZE as u64);
        let Some(at) = tail.len().checked_sub(TRAILER_SIZE + INDEX_LENGTH_SIZE) else {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, end));
        };
        if file_size < FILE_SIZE_MIN as u64 {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, end));
        }
        let len = u64_at(tail, at);
        // A file with an index of one byte has no pages.
        let len_max = file_size - FILE_SIZE_MIN as u64 + 1;
        if !(1..=len_max).contains(&len) {
            let detail = format!("{len} bytes in a file of {file_size}");
            return Err(DecodeError::new(ErrorKind::Index, WHAT, end - INDEX_LENGTH_SIZE as u64).detail(detail));
        }
        Ok(end - INDEX_LENGTH_SIZE as u64 - len..end)
    }

    /// Reads an index from its bytes, the u64 included, which lie at `index_start` in the file.
    pub fn decode(bytes: &[u8], index_start: u64) -> Result<Self, DecodeError> {
        let Some(len) = bytes.len().checked_sub(INDEX_LENGTH_SIZE) else {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, index_start));
        };
        if u64_at(bytes, len) != len as u64 {
            let error = DecodeError::new(ErrorKind::Index, WHAT, index_start.saturating_add(len as u64));
            return Err(error.detail("its length differs from the stored one"));
        }
        let mut entries = Vec::new();
        let mut cursor = PageIndexCursor::new(index_start);
        cursor.feed(&bytes[..len], &mut entries)?;
        cursor.finish()?;
        Ok(Self(entries))
    }

    /// Where page `pgno` lies, if the file has it.
    pub fn find(&self, pgno: PageNumber) -> Option<&PageIndexEntry> {
        self.0.binary_search_by_key(&pgno, |e| e.pgno).ok().map(|i| &self.0[i])
    }
}

/// The frames of a page block, as they pass: per page the step from the page before, and the frame's size.
#[derive(Clone, Debug, Default)]
pub(super) struct FrameList {
    steps: Vec<u8>,
    last: u32,
    pages: u32,
}

impl FrameList {
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        (self.last, self.pages) = (0, 0);
    }

    pub(super) fn push(&mut self, pgno: PageNumber, size: u64) {
        assert!(pgno.get() > self.last, "page {pgno} after page {}", self.last);
        put_varint(u64::from(pgno.get() - self.last), &mut self.steps);
        put_varint(size, &mut self.steps);
        self.last = pgno.get();
        self.pages += 1;
    }

    /// Number of frames.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The stored form, end mark included, piece by piece.
    pub(super) fn stored(&self) -> StoredIndex<'_> {
        StoredIndex { steps: &self.steps, at: 0, pgno: 0, offset: HEADER_SIZE as u64, ended: false }
    }
}

/// The stored form of a [`FrameList`], made on the way so that it is never whole in memory.
pub(super) struct StoredIndex<'a> {
    steps: &'a [u8],
    at: usize,
    pgno: u64,
    offset: u64,
    ended: bool,
}

impl StoredIndex<'_> {
    /// Appends entries to `out` until it has grown by about `len` bytes. `false` when there is nothing more.
    pub(super) fn append(&mut self, len: usize, out: &mut Vec<u8>) -> bool {
        if self.ended {
            return false;
        }
        let full = out.len() + len;
        while out.len() < full && self.at < self.steps.len() {
            let mut number = || take_varint(self.steps, &mut self.at).expect("written by push");
            let (step, size) = (number(), number());
            self.pgno += step;
            put_varint(self.pgno, out);
            put_varint(self.offset, out);
            put_varint(size, out);
            self.offset += size;
        }
        if self.at == self.steps.len() {
            out.push(0);
            self.ended = true;
        }
        true
    }
}

/// Appends `value` in its shortest form: seven bits to a byte, least significant first, all but the last marked.
fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a varint at `at` and moves on. `None` when the bytes end within it or it exceeds 64 bits.
fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for i in 0..VARINT_SIZE_MAX {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if i == VARINT_SIZE_MAX - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(frames: &[(u32, u64)]) -> Vec<u8> {
        let mut list = FrameList::default();
        for (pgno, size) in frames {
            list.push(PageNumber::new(*pgno).unwrap(), *size);
        }
        let (mut out, mut index) = (Vec::new(), list.stored());
        while index.append(1, &mut out) {}
        out.extend((out.len() as u64).to_be_bytes());
        out
    }

    fn start(frames: &[(u32, u64)]) -> u64 {
        106 + frames.iter().map(|f| f.1).sum::<u64>()
    }

    #[test]
    fn varints_at_the_edges() {
        for value in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            let mut at = 0;
            assert_eq!((take_varint(&bytes, &mut at), at), (Some(value), bytes.len()));
            assert_eq!(take_varint(&bytes[..bytes.len() - 1], &mut 0), None);
        }
        let beyond = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(take_varint(&beyond, &mut 0), None);
    }

    #[test]
    fn indexes_round_trip() {
        for frames in [&[][..], &[(3, 43)], &[(1, 20), (2, 4114), (16384, 65803), (u32::MAX, 11)]] {
            let (bytes, start) = (stored(frames), start(frames));
            let index = PageIndex::decode(&bytes, start).unwrap();
            assert_eq!(index.0.iter().map(|e| (e.pgno.get(), e.size)).collect::<Vec<_>>(), frames);
            for entry in &index.0 {
                assert_eq!(index.find(entry.pgno), Some(entry));
            }
            let mut tail = bytes.clone();
            tail.extend([0; 16]);
            let size = start + tail.len() as u64;
            assert_eq!(PageIndex::locate(&tail, size), Ok(start..size - 16));
        }
        assert_eq!(stored(&[]), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn no_changed_byte_of_an_index_goes_unnoticed() {
        let frames = [(1, 20), (2, 4114), (16384, 65803)];
        let (bytes, start) = (stored(&frames), start(&frames));
        let good = PageIndex::decode(&bytes, start).unwrap();
        for i in 0..bytes.len() {
            assert!(PageIndex::decode(&bytes[..i], start).is_err(), "cut at {i}");
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[i] ^= 1 << bit;
                // A page number has no other witness than its neighbours.
                let numbers_only = PageIndex::decode(&changed, start).is_ok_and(|index| {
                    index.0.iter().zip(&good.0).any(|(a, b)| (a.offset, a.size) != (b.offset, b.size))
                });
                assert!(!numbers_only, "bit {bit} of byte {i}");
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for len in [0, 2, 1000, u64::MAX, u64::MAX - 23] {
            let mut tail = len.to_be_bytes().to_vec();
            tail.extend([0; 16]);
            assert_eq!(PageIndex::locate(&tail, 131).unwrap_err().kind, ErrorKind::Index, "{len}");
        }
        assert_eq!(PageIndex::locate(&[0; 24], 130).unwrap_err().kind, ErrorKind::Short);
        assert_eq!(PageIndex::locate(&[0; 23], 500).unwrap_err().kind, ErrorKind::Short);
    }
}
