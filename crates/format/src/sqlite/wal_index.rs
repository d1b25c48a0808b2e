//! Wal-index, the file `NAME-shm` in shared memory (LTX specification, section 22). In the order of the host.
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 48 | header |
//! | 48 | 48 | the header again; equal when nobody is writing it |
//! | 96 | 4 | backfill: frames that are copied to the database |
//! | 100 | 20 | five read marks; the first is 0, an unused one is all ones |
//! | 120 | 8 | bytes that are only locked |
//! | 128 | 4 | backfill attempted |
//! | 136 | 16248 | page numbers of frames 1..=4062 |
//! | 16384 | 16384 | hash table of 8192 slots of 2 bytes |
//!
//! Blocks after the first have 4096 page numbers and a hash table. Header:
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | version 3007000 |
//! | 8 | 4 | change counter, grows with each commit |
//! | 12 | 1 | initialised |
//! | 13 | 1 | checksums of the WAL sum big-endian words |
//! | 14 | 2 | page size, 1 = 65536 |
//! | 16 | 4 | last committed frame |
//! | 20 | 4 | database size in pages |
//! | 24 | 8 | checksum of the last committed frame |
//! | 32 | 8 | salt, the bytes as they are in the WAL header |
//! | 40 | 8 | checksum of bytes 0..40 |
//!
//! A writer changes the second copy, then, after a barrier, the first; a reader copies the first, then, after a barrier,
//! the second. Copying out of shared memory is the caller's part.

#[cfg(test)]
mod tests;

use super::layout::{self, be32, ne32, wal_index as at};
use super::lock::READ_MARKS;
use super::wal::{Salt, WAL_VERSION, checksum};
use crate::error::{DecodeError, ErrorKind};
use crate::types::{PageCount, PageNumber, PageSize};

/// Bytes of one copy of the header.
pub const WAL_INDEX_HEADER_SIZE: usize = at::HEADER_SIZE;
/// Bytes before the page numbers of the first block: both headers, checkpoint information and lock bytes.
pub const WAL_INDEX_SNAPSHOT_SIZE: usize = at::SNAPSHOT_SIZE;
/// Bytes of a block.
pub const WAL_INDEX_BLOCK_SIZE: usize = at::BLOCK_SIZE;
/// Value of a read mark that nobody uses.
pub const READ_MARK_UNUSED: u32 = u32::MAX;

const WHAT: &str = "wal-index header";
const WHAT_BLOCK: &str = "wal-index block";

/// What is committed, as every connection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalIndexHeader {
    /// Grows with each commit, modulo 2^32.
    pub change: u32,
    /// Size of every page; `None` while no WAL has been written, which is how SQLite leaves it after the recovery of an
    /// empty one.
    pub page_size: Option<PageSize>,
    /// Last committed frame; 0 for an empty WAL.
    pub max_frame: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// Checksum of the last committed frame, the same numbers as in its header.
    pub frame_checksum: (u32, u32),
    /// Generation of the WAL.
    ///
    /// After a restart of the WAL it is that of the coming WAL header, which is only written with the first frame.
    pub salt: Salt,
    /// Whether the checksums of the WAL sum big-endian words.
    pub big_endian_checksums: bool,
}

impl WalIndexHeader {
    /// Takes in the first 136 bytes of the wal-index.
    ///
    /// `None` while there is nothing to believe: not initialised, or being written (the copies differ, or the checksum
    /// is wrong). Look again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Version`] and [`PageSize`](ErrorKind::PageSize) in a header whose checksum is right.
    pub fn decode(bytes: &[u8; WAL_INDEX_SNAPSHOT_SIZE]) -> Result<Option<Self>, DecodeError> {
        let (first, second) = (&bytes[..at::HEADER_SIZE], &bytes[at::COPY..at::COPY + at::HEADER_SIZE]);
        if first != second || first[at::IS_INIT] == 0 {
            return Ok(None);
        }
        let stored = (ne32(first, at::CHECKSUM), ne32(first, at::CHECKSUM + 4));
        if checksum((0, 0), &first[..at::CHECKSUM], cfg!(target_endian = "big")) != stored {
            return Ok(None);
        }
        let version = ne32(first, at::VERSION);
        if version != WAL_VERSION {
            return Err(DecodeError::new(ErrorKind::Version, WHAT, at::VERSION as u64).detail(version.to_string()));
        }
        let page_size = u16::from_ne_bytes([first[at::PAGE_SIZE], first[at::PAGE_SIZE + 1]]);
        let max_frame = ne32(first, at::MAX_FRAME);
        let page_size = match page_size {
            0 if max_frame == 0 => None,
            1 => Some(PageSize::MAX),
            bytes => Some(layout::page_size(u32::from(bytes), WHAT, at::PAGE_SIZE)?),
        };
        Ok(Some(Self {
            change: ne32(first, at::CHANGE),
            page_size,
            max_frame,
            page_count: ne32(first, at::PAGE_COUNT),
            frame_checksum: (ne32(first, at::FRAME_CHECKSUM), ne32(first, at::FRAME_CHECKSUM + 4)),
            salt: Salt(be32(first, at::SALT), be32(first, at::SALT + 4)),
            big_endian_checksums: first[at::BIG_ENDIAN] != 0,
        }))
    }

    /// Size of the database.
    pub fn size(&self) -> PageCount {
        PageCount(self.page_count)
    }
}

/// How far checkpoints have come, and what holds them.
///
/// Not covered by any checksum: each number is read and written by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Frames that are in the database file, synced.
    pub backfill: u32,
    /// Last frame that the readers on each mark may use.
    pub read_marks: [u32; READ_MARKS],
    /// Frames that may be in the database file, synced or not.
    pub backfill_attempted: u32,
}

impl CheckpointInfo {
    /// Takes in the first 136 bytes of the wal-index.
    pub fn decode(bytes: &[u8; WAL_INDEX_SNAPSHOT_SIZE]) -> Self {
        Self {
            backfill: ne32(bytes, at::BACKFILL),
            read_marks: std::array::from_fn(|mark| ne32(bytes, at::READ_MARKS + 4 * mark)),
            backfill_attempted: ne32(bytes, at::BACKFILL_ATTEMPTED),
        }
    }
}

/// The first 136 bytes of a wal-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalIndex {
    /// What is committed.
    pub header: WalIndexHeader,
    /// How far checkpoints have come.
    pub checkpoint: CheckpointInfo,
}

/// Takes in the start of a wal-index; `None` while there is nothing to believe.
///
/// # Errors
///
/// [`ErrorKind::Short`] for less than 136 bytes, and those of [`WalIndexHeader::decode`].
pub fn decode(first_block: &[u8]) -> Result<Option<WalIndex>, DecodeError> {
    let bytes = layout::head(first_block, WHAT)?;
    let header = WalIndexHeader::decode(bytes)?;
    Ok(header.map(|header| WalIndex { header, checkpoint: CheckpointInfo::decode(bytes) }))
}

/// Number of the block, from 0, that indexes frame `frame`, counted from 1.
pub const fn block_of(frame: u32) -> u32 {
    assert!(frame > 0);
    if frame <= at::FRAMES_FIRST { 0 } else { (frame - at::FRAMES_FIRST - 1) / at::FRAMES + 1 }
}

/// One block of 32 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    bytes: &'a [u8; WAL_INDEX_BLOCK_SIZE],
    number: u32,
}

impl<'a> Block<'a> {
    /// `bytes` start with block `number`, counted from 0.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Short`] for less than a block; [`Field`](ErrorKind::Field) for a number that no frame has.
    pub fn new(bytes: &'a [u8], number: u32) -> Result<Self, DecodeError> {
        if number > block_of(u32::MAX) {
            return Err(DecodeError::new(ErrorKind::Field, WHAT_BLOCK, 0).detail(format!("block {number}")));
        }
        Ok(Self { bytes: layout::head(bytes, WHAT_BLOCK)?, number })
    }

    /// The last frame before this block.
    fn frames_before(&self) -> u32 {
        if self.number == 0 { 0 } else { at::FRAMES_FIRST + (self.number - 1) * at::FRAMES }
    }

    /// Page number of entry `entry`, counted from 1; 0 if unset or out of range.
    fn entry(&self, entry: u32) -> u32 {
        let (start, entries) = if self.number == 0 { (at::SNAPSHOT_SIZE, at::FRAMES_FIRST) } else { (0, at::FRAMES) };
        if entry == 0 || entry > entries { 0 } else { ne32(self.bytes, start + 4 * (entry as usize - 1)) }
    }

    /// The page that frame `frame` holds; `None` if the block does not know it.
    pub fn page_of(&self, frame: u32) -> Option<PageNumber> {
        PageNumber::new(self.entry(frame.checked_sub(self.frames_before())?))
    }

    /// The last frame of this block up to `max_frame` that holds `pgno`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Index`] for a hash table without a free slot, which SQLite never writes.
    pub fn find(&self, pgno: PageNumber, max_frame: u32) -> Result<Option<u32>, DecodeError> {
        let mut slot = pgno.get().wrapping_mul(at::HASH_PRIME) as usize % at::HASH_SLOTS;
        let mut newest = None;
        for _ in 0..at::HASH_SLOTS {
            let place = at::HASH + 2 * slot;
            let entry = u16::from_ne_bytes([self.bytes[place], self.bytes[place + 1]]);
            if entry == 0 {
                return Ok(newest);
            }
            let frame = self.frames_before().checked_add(u32::from(entry));
            if let Some(frame) = frame.filter(|frame| *frame <= max_frame)
                && self.entry(u32::from(entry)) == pgno.get()
            {
                newest = newest.max(Some(frame));
            }
            slot = (slot + 1) % at::HASH_SLOTS;
        }
        Err(DecodeError::new(ErrorKind::Index, WHAT_BLOCK, at::HASH as u64).detail("no free slot"))
    }
}

/// The last frame in `frames` that holds `pgno`, so the one that a reader of them sees; `None` when the page is as in
/// the database file. `block` gives the bytes of a block by number.
///
/// # Errors
///
/// Those of `block`, [`Block::new`] and [`Block::find`].
pub fn find_frame<'a>(
    pgno: PageNumber,
    frames: std::ops::RangeInclusive<u32>,
    mut block: impl FnMut(u32) -> Result<&'a [u8], DecodeError>,
) -> Result<Option<u32>, DecodeError> {
    let (first, last) = (*frames.start().max(&1), *frames.end());
    if first > last {
        return Ok(None);
    }
    for number in (block_of(first)..=block_of(last)).rev() {
        if let Some(frame) = Block::new(block(number)?, number)?.find(pgno, last)? {
            return Ok(Some(frame).filter(|frame| *frame >= first));
        }
    }
    Ok(None)
}
