//! WAL (LTX specification, section 21): a header of 32 bytes, then frames of a header of 24 bytes and one page.
//!
//! | header offset | size | field | | frame offset | size | field |
//! | ---: | ---: | --- | --- | ---: | ---: | --- |
//! | 0 | 4 | magic, its last bit: checksums over big-endian words | | 0 | 4 | page number |
//! | 4 | 4 | version 3007000 | | 4 | 4 | commit frame: database size in pages, else 0 |
//! | 8 | 4 | page size | | 8 | 8 | salt, as in the header |
//! | 12 | 4 | checkpoint sequence number | | 16 | 8 | checksum |
//! | 16 | 8 | salt | | 24 | .. | page |
//! | 24 | 8 | checksum of bytes 0..24 | | | | |
//!
//! A frame is valid if it is complete, carries the salt of the header, has a page number, and its checksum continues that
//! of the frame before. The first invalid frame ends the log ([`ValidFrames`]); what counts are whole transactions, up
//! to the last valid commit frame ([`WalScan`]).
//!
//! While a wal-index is live none of this decides: the committed frames are those up to its `max_frame`, even where a
//! checksum is wrong, and what lies behind them is not committed however valid it looks. [`Frames`] takes such a range
//! apart without judging it.

mod checksum;

#[cfg(test)]
mod tests;

use super::layout::{self, be32, wal as at};
use crate::error::{DecodeError, ErrorKind};
use crate::types::{PageCount, PageNumber, PageSize};

pub use checksum::checksum;

/// Size of the WAL header in bytes.
pub const WAL_HEADER_SIZE: usize = at::HEADER_SIZE;
/// Size of a frame header in bytes.
pub const FRAME_HEADER_SIZE: usize = at::FRAME_HEADER_SIZE;
/// The only version of the WAL and of the wal-index that there has been.
pub const WAL_VERSION: u32 = 3_007_000;

const MAGIC: u32 = 0x377f_0682;
const WHAT: &str = "WAL header";
const WHAT_FRAME: &str = "WAL frame";

/// What tells the generations of a WAL apart: SQLite draws another one whenever it starts again at the first frame.
///
/// Only inequality means something: neither number has to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Salt(pub u32, pub u32);

/// Size in bytes of a frame.
pub const fn frame_size(page_size: PageSize) -> usize {
    FRAME_HEADER_SIZE + page_size.bytes()
}

/// Offset in bytes of frame `frame` in the WAL. Frames are counted from 1.
pub const fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    assert!(frame > 0);
    WAL_HEADER_SIZE as u64 + (frame as u64 - 1) * frame_size(page_size) as u64
}

/// Header of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Whether the checksums of this WAL sum big-endian words.
    pub big_endian: bool,
    /// Size of every page.
    pub page_size: PageSize,
    /// Checkpoint sequence number. It may repeat or fall.
    pub sequence: u32,
    /// Generation of the WAL.
    pub salt: Salt,
    /// Checksum of the header, from which that of the first frame continues.
    pub checksum: (u32, u32),
}

impl WalHeader {
    /// Takes in the start of a WAL.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Short`], [`Magic`](ErrorKind::Magic), [`PageSize`](ErrorKind::PageSize) and
    /// [`FileChecksum`](ErrorKind::FileChecksum) are what SQLite treats as an empty WAL.
    /// [`Version`](ErrorKind::Version) is a valid header of a later format, which SQLite refuses to open.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes: &[u8; at::HEADER_SIZE] = layout::head(bytes, WHAT)?;
        let magic = be32(bytes, at::MAGIC);
        if magic & !1 != MAGIC {
            return Err(DecodeError::new(ErrorKind::Magic, WHAT, at::MAGIC as u64));
        }
        let header = Self {
            big_endian: magic & 1 == 1,
            page_size: layout::page_size(be32(bytes, at::PAGE_SIZE), WHAT, at::PAGE_SIZE)?,
            sequence: be32(bytes, at::SEQUENCE),
            salt: Salt(be32(bytes, at::SALT), be32(bytes, at::SALT + 4)),
            checksum: (be32(bytes, at::CHECKSUM), be32(bytes, at::CHECKSUM + 4)),
        };
        if checksum((0, 0), &bytes[..at::CHECKSUM], header.big_endian) != header.checksum {
            return Err(DecodeError::new(ErrorKind::FileChecksum, WHAT, at::CHECKSUM as u64));
        }
        let version = be32(bytes, at::VERSION);
        if version != WAL_VERSION {
            return Err(DecodeError::new(ErrorKind::Version, WHAT, at::VERSION as u64).detail(version.to_string()));
        }
        Ok(header)
    }
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Page of the database that the frame holds.
    pub pgno: PageNumber,
    /// Size of the database in pages after the transaction that this frame ends; 0 if it does not end one.
    pub commit: u32,
    /// Generation of the WAL that the frame was written in.
    pub salt: Salt,
    /// Checksum of everything from the WAL header to the end of this frame.
    pub checksum: (u32, u32),
}

impl FrameHeader {
    /// Takes in the first 24 bytes of a frame.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PageNumber`] for page 0, at byte 0 of the frame.
    pub fn decode(bytes: &[u8; FRAME_HEADER_SIZE]) -> Result<Self, DecodeError> {
        let pgno = PageNumber::new(be32(bytes, at::FRAME_PGNO))
            .ok_or_else(|| DecodeError::new(ErrorKind::PageNumber, WHAT_FRAME, at::FRAME_PGNO as u64))?;
        Ok(Self {
            pgno,
            commit: be32(bytes, at::FRAME_COMMIT),
            salt: Salt(be32(bytes, at::FRAME_SALT), be32(bytes, at::FRAME_SALT + 4)),
            checksum: (be32(bytes, at::FRAME_CHECKSUM), be32(bytes, at::FRAME_CHECKSUM + 4)),
        })
    }

    /// The 24 bytes of the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_SIZE] {
        let Self { pgno, commit, salt, checksum } = *self;
        let mut bytes = [0; FRAME_HEADER_SIZE];
        let words = [pgno.get(), commit, salt.0, salt.1, checksum.0, checksum.1];
        for (slot, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *slot = word.to_be_bytes();
        }
        bytes
    }

    /// Size of the database after the transaction that this frame ends; `None` if it does not end one.
    pub fn commit_size(&self) -> Option<PageCount> {
        (self.commit != 0).then_some(PageCount(self.commit))
    }

    /// The checksum that this frame must carry with this page when the frame before carries `previous` (the WAL header,
    /// before the first frame).
    pub fn expected_checksum(&self, previous: (u32, u32), page: &[u8], big_endian: bool) -> (u32, u32) {
        let head = self.encode();
        checksum(checksum(previous, &head[..at::FRAME_SUMMED], big_endian), page, big_endian)
    }
}

/// A frame: borrowed from the bytes of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the frame in the WAL, from 1.
    pub number: u32,
    /// Its header.
    pub header: FrameHeader,
    /// Its page, of the page size of the WAL.
    pub page: &'a [u8],
}

impl Frame<'_> {
    /// Whether the checksum continues `previous`, that of the frame before (of the WAL header, before the first
    /// frame). Since it is stored in every frame, frames can be verified in any order.
    pub fn is_intact(&self, previous: (u32, u32), big_endian: bool) -> bool {
        self.header.expected_checksum(previous, self.page, big_endian) == self.header.checksum
    }

    /// Whether this frame only fills up the sector behind the commit frame `commit`, right before it: SQLite repeats
    /// the last frame of a transaction where a torn write could harm the rest of the sector.
    ///
    /// A transaction of one page that changes nothing at all looks the same, and folding it changes nothing either.
    pub fn repeats(&self, commit: &Frame<'_>) -> bool {
        let (mine, its) = (&self.header, &commit.header);
        its.commit != 0 && (mine.pgno, mine.commit) == (its.pgno, its.commit) && self.page == commit.page
    }
}

/// The complete frames in a run of bytes of a WAL, without a look at salts or checksums.
///
/// Nothing is allocated or copied. After an error there is no next frame.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    next: u32,
    page_size: PageSize,
}

impl<'a> Frames<'a> {
    /// `bytes` start with the header of frame `first`, at [`frame_offset`] of the WAL. A torn last frame is left out.
    pub fn new(bytes: &'a [u8], first: u32, page_size: PageSize) -> Self {
        assert!(first > 0, "frames are counted from 1");
        Self { rest: bytes, next: first, page_size }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.rest.split_first_chunk::<FRAME_HEADER_SIZE>()?;
        let (page, rest) = rest.split_at_checked(self.page_size.bytes())?;
        let number = self.next;
        match (FrameHeader::decode(head), number.checked_add(1)) {
            (Ok(header), Some(next)) => {
                (self.rest, self.next) = (rest, next);
                Some(Ok(Frame { number, header, page }))
            }
            (decoded, _) => {
                self.rest = &[];
                let error = decoded.err().unwrap_or_else(|| DecodeError::new(ErrorKind::Field, WHAT_FRAME, 0));
                let offset = frame_offset(number, self.page_size) + error.offset;
                Some(Err(DecodeError { offset, ..error }.detail(format!("frame {number}"))))
            }
        }
    }
}

/// The valid frames of a WAL, in order. The first invalid one ends them, without a word: it is where the log ends.
#[derive(Clone, Debug)]
pub struct ValidFrames<'a> {
    header: WalHeader,
    frames: Frames<'a>,
    checksum: (u32, u32),
}

impl<'a> ValidFrames<'a> {
    /// `frames` are the bytes of the WAL behind its header.
    pub fn new(header: WalHeader, frames: &'a [u8]) -> Self {
        Self { header, frames: Frames::new(frames, 1, header.page_size), checksum: header.checksum }
    }

    /// The next frame if it repeats the commit frame `commit`, which was the last one.
    fn next_repeating(&mut self, commit: &Frame<'_>) -> Option<Frame<'a>> {
        let next = self.frames.clone().next()?.ok()?;
        if next.repeats(commit) { self.next() } else { None }
    }
}

impl<'a> Iterator for ValidFrames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let frame = self.frames.next()?.ok();
        let valid = frame.filter(|frame| {
            frame.header.salt == self.header.salt && frame.is_intact(self.checksum, self.header.big_endian)
        });
        match valid {
            Some(frame) => self.checksum = frame.header.checksum,
            None => self.frames.rest = &[],
        }
        valid
    }
}

/// A committed transaction of a WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalTransaction<'a> {
    /// Number of its first frame.
    pub first_frame: u32,
    /// Number of its last frame: the commit frame or the last one that repeats it.
    pub last_frame: u32,
    /// Size of the database after it.
    pub commit: PageCount,
    /// The last frame of every page that the transaction left within that size, by page number.
    pub pages: Vec<Frame<'a>>,
}

/// The committed transactions of a whole WAL that no process has open, one after the other.
///
/// Valid frames behind the last commit frame belong to a transaction that was never finished, and are left out.
#[derive(Clone, Debug)]
pub struct WalScan<'a> {
    frames: Option<ValidFrames<'a>>,
}

impl<'a> WalScan<'a> {
    /// `bytes` is the WAL from its first byte. One without a valid header is an empty one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Version`] for a valid header of an unknown version.
    pub fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match WalHeader::decode(bytes) {
            Ok(header) => Ok(Self { frames: Some(ValidFrames::new(header, &bytes[WAL_HEADER_SIZE..])) }),
            Err(error) if error.kind == ErrorKind::Version => Err(error),
            Err(_) => Ok(Self { frames: None }),
        }
    }

    /// Header of the WAL, if it has a valid one.
    pub fn header(&self) -> Option<&WalHeader> {
        self.frames.as_ref().map(|frames| &frames.header)
    }
}

impl<'a> Iterator for WalScan<'a> {
    type Item = WalTransaction<'a>;

    fn next(&mut self) -> Option<WalTransaction<'a>> {
        let frames = self.frames.as_mut()?;
        let mut pages = Vec::new();
        let (last, commit) = loop {
            let frame = frames.next()?;
            pages.push(frame);
            if let Some(commit) = frame.header.commit_size() {
                break (frame, commit);
            }
        };
        let first_frame = pages[0].number;
        let mut last_frame = last.number;
        while let Some(repeated) = frames.next_repeating(&last) {
            last_frame = repeated.number;
        }
        keep_newest(&mut pages, commit);
        Some(WalTransaction { first_frame, last_frame, commit, pages })
    }
}

/// Keeps the last frame of every page within `commit`, sorted by page number.
fn keep_newest(frames: &mut Vec<Frame<'_>>, commit: PageCount) {
    frames.retain(|frame| commit.contains(frame.header.pgno));
    frames.sort_unstable_by_key(|frame| (frame.header.pgno, std::cmp::Reverse(frame.number)));
    frames.dedup_by_key(|frame| frame.header.pgno);
}
