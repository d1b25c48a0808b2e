//! Offsets and sizes of SQLite's formats, in bytes. No other file names an offset.

use crate::error::{DecodeError, ErrorKind};
use crate::types::PageSize;

/// Database header (LTX specification, section 19.1).
pub(super) mod database {
    pub(crate) const SIZE: usize = 100;
    pub(crate) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    pub(crate) const PAGE_SIZE: usize = 16;
    pub(crate) const WRITE_VERSION: usize = 18;
    pub(crate) const READ_VERSION: usize = 19;
    pub(crate) const RESERVED: usize = 20;
    /// Three bytes that are the same in every database.
    pub(crate) const PAYLOAD_FRACTIONS: usize = 21;
    pub(crate) const CHANGE_COUNTER: usize = 24;
    pub(crate) const PAGE_COUNT: usize = 28;
    pub(crate) const FREELIST_TRUNK: usize = 32;
    pub(crate) const FREELIST_COUNT: usize = 36;
    pub(crate) const SCHEMA_COOKIE: usize = 40;
    pub(crate) const LARGEST_ROOT: usize = 52;
    pub(crate) const VERSION_VALID_FOR: usize = 92;
    pub(crate) const SQLITE_VERSION: usize = 96;
}

/// WAL header and frame header (LTX specification, section 21).
pub(super) mod wal {
    pub(crate) const HEADER_SIZE: usize = 32;
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 4;
    pub(crate) const PAGE_SIZE: usize = 8;
    pub(crate) const SEQUENCE: usize = 12;
    pub(crate) const SALT: usize = 16;
    /// Also the number of bytes that the checksum covers.
    pub(crate) const CHECKSUM: usize = 24;

    pub(crate) const FRAME_HEADER_SIZE: usize = 24;
    pub(crate) const FRAME_PGNO: usize = 0;
    pub(crate) const FRAME_COMMIT: usize = 4;
    pub(crate) const FRAME_SALT: usize = 8;
    pub(crate) const FRAME_CHECKSUM: usize = 16;
    /// Bytes of the frame header that the checksum covers.
    pub(crate) const FRAME_SUMMED: usize = 8;
}

/// Wal-index (LTX specification, section 22).
pub(super) mod wal_index {
    pub(crate) const HEADER_SIZE: usize = 48;
    pub(crate) const VERSION: usize = 0;
    pub(crate) const CHANGE: usize = 8;
    pub(crate) const IS_INIT: usize = 12;
    pub(crate) const BIG_ENDIAN: usize = 13;
    pub(crate) const PAGE_SIZE: usize = 14;
    pub(crate) const MAX_FRAME: usize = 16;
    pub(crate) const PAGE_COUNT: usize = 20;
    pub(crate) const FRAME_CHECKSUM: usize = 24;
    pub(crate) const SALT: usize = 32;
    /// Also the number of bytes that the checksum covers.
    pub(crate) const CHECKSUM: usize = 40;

    pub(crate) const COPY: usize = 48;
    pub(crate) const BACKFILL: usize = 96;
    pub(crate) const READ_MARKS: usize = 100;
    pub(crate) const BACKFILL_ATTEMPTED: usize = 128;
    pub(crate) const SNAPSHOT_SIZE: usize = 136;

    pub(crate) const BLOCK_SIZE: usize = 32768;
    pub(crate) const HASH: usize = 16384;
    pub(crate) const HASH_SLOTS: usize = 8192;
    pub(crate) const HASH_PRIME: u32 = 383;
    /// Frames of the first block, which starts with the headers, and of every other one.
    pub(crate) const FRAMES_FIRST: u32 = 4062;
    pub(crate) const FRAMES: u32 = 4096;
}

/// Rollback journal (LTX specification, section 23).
pub(super) mod journal {
    pub(crate) const HEADER_SIZE: usize = 28;
    pub(crate) const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    pub(crate) const RECORDS: usize = 8;
    pub(crate) const NONCE: usize = 12;
    pub(crate) const PAGE_COUNT: usize = 16;
    pub(crate) const SECTOR_SIZE: usize = 20;
    pub(crate) const PAGE_SIZE: usize = 24;
    /// Page number before the page and checksum after it.
    pub(crate) const RECORD_OVERHEAD: usize = 8;
    /// A journal that does not hold this much holds nothing: SQLite reads a header by the sector.
    pub(crate) const SIZE_MIN: usize = 512;

    /// Length, checksum and magic, which end the record of a super-journal.
    pub(crate) const SUPER_TAIL: usize = 16;
    pub(crate) const SUPER_LENGTH_FROM_END: usize = 16;
    pub(crate) const SUPER_CHECKSUM_FROM_END: usize = 12;
}

/// The big-endian u32 at `at`. The caller has checked the length.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("length is checked by the caller"))
}

/// The u32 in host order at `at`. The caller has checked the length.
pub(super) fn ne32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().expect("length is checked by the caller"))
}

/// The page size stored as `bytes` at `offset`.
pub(super) fn page_size(bytes: u32, what: &'static str, offset: usize) -> Result<PageSize, DecodeError> {
    PageSize::new(bytes)
        .ok_or_else(|| DecodeError::new(ErrorKind::PageSize, what, offset as u64).detail(bytes.to_string()))
}

/// The first `N` bytes.
pub(super) fn head<'a, const N: usize>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8; N], DecodeError> {
    bytes.first_chunk().ok_or_else(|| {
        DecodeError::new(ErrorKind::Short, what, bytes.len() as u64).detail(format!("{N} bytes are needed"))
    })
}
