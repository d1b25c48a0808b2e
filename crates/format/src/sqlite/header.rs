//! Header of a database file: the first 100 bytes of page 1 (LTX specification, section 19.1).
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 16 | `SQLite format 3\0` |
//! | 16 | 2 | page size, 1 = 65536 |
//! | 18 | 1 | write version: 1 rollback journal, 2 WAL |
//! | 19 | 1 | read version, same values |
//! | 20 | 1 | reserved bytes at the end of each page |
//! | 21 | 3 | 64, 32, 32 |
//! | 24 | 4 | file change counter |
//! | 28 | 4 | size in pages |
//! | 32 | 4 | first free-list trunk page |
//! | 36 | 4 | number of free pages |
//! | 40 | 4 | schema cookie |
//! | 52 | 4 | largest root page, not 0 = auto-vacuum |
//! | 92 | 4 | change counter for which the size and the version are right |
//! | 96 | 4 | version of the SQLite that last wrote the file |
//!
//! A file of 0 bytes is a valid empty database without a header.

#[cfg(test)]
mod tests;

use super::layout::{self, be32, database as at};
use crate::error::{DecodeError, ErrorKind};
use crate::types::{PageCount, PageSize};

/// Size of the header in bytes.
pub const DATABASE_HEADER_SIZE: usize = at::SIZE;

const WHAT: &str = "database header";
/// The only values SQLite has ever allowed for the payload fractions.
const PAYLOAD_FRACTIONS: [u8; 3] = [64, 32, 32];
/// Bytes of a page that must be left after the reserved ones.
const USABLE_BYTES_MIN: u32 = 480;
const VERSION_WAL: u8 = 2;

/// Fields of a database header that matter for replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Size of every page.
    pub page_size: PageSize,
    /// 1 rollback journal, 2 WAL. SQLite opens a file with a higher one read-only.
    pub write_version: u8,
    /// 0 or 1 rollback journal, 2 WAL.
    pub read_version: u8,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Grows with every transaction in rollback mode. In WAL mode it does not.
    pub change_counter: u32,
    /// Size in pages as stored, right only if [`page_count_is_valid`](Self::page_count_is_valid).
    pub page_count: u32,
    /// First trunk page of the free list, 0 for none.
    pub freelist_trunk: u32,
    /// Number of pages on the free list.
    pub freelist_count: u32,
    /// Grows with every change of the schema.
    pub schema_cookie: u32,
    /// Whether pages move to keep the file short.
    pub auto_vacuum: bool,
    /// Change counter for which `page_count` and `sqlite_version` are right.
    pub version_valid_for: u32,
    /// Version that last wrote the file: 3051003 is 3.51.3.
    pub sqlite_version: u32,
}

impl DatabaseHeader {
    /// Takes in the start of page 1.
    ///
    /// # Errors
    ///
    /// For what SQLite itself calls "not a database".
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes: &[u8; at::SIZE] = layout::head(bytes, WHAT)?;
        if !bytes.starts_with(at::MAGIC) {
            return Err(DecodeError::new(ErrorKind::Magic, WHAT, 0));
        }
        let stored = u16::from_be_bytes([bytes[at::PAGE_SIZE], bytes[at::PAGE_SIZE + 1]]);
        let page_bytes = if stored == 1 { PageSize::MAX.get() } else { u32::from(stored) };
        let header = Self {
            page_size: layout::page_size(page_bytes, WHAT, at::PAGE_SIZE)?,
            write_version: bytes[at::WRITE_VERSION],
            read_version: bytes[at::READ_VERSION],
            reserved: bytes[at::RESERVED],
            change_counter: be32(bytes, at::CHANGE_COUNTER),
            page_count: be32(bytes, at::PAGE_COUNT),
            freelist_trunk: be32(bytes, at::FREELIST_TRUNK),
            freelist_count: be32(bytes, at::FREELIST_COUNT),
            schema_cookie: be32(bytes, at::SCHEMA_COOKIE),
            auto_vacuum: be32(bytes, at::LARGEST_ROOT) != 0,
            version_valid_for: be32(bytes, at::VERSION_VALID_FOR),
            sqlite_version: be32(bytes, at::SQLITE_VERSION),
        };
        if header.read_version > VERSION_WAL {
            let detail = format!("read version {}", header.read_version);
            return Err(DecodeError::new(ErrorKind::Version, WHAT, at::READ_VERSION as u64).detail(detail));
        }
        if header.page_size.get() - u32::from(header.reserved) < USABLE_BYTES_MIN {
            let detail = format!("{} reserved bytes in a page of {}", header.reserved, header.page_size);
            return Err(DecodeError::new(ErrorKind::Field, WHAT, at::RESERVED as u64).detail(detail));
        }
        if !bytes[at::PAYLOAD_FRACTIONS..].starts_with(&PAYLOAD_FRACTIONS) {
            return Err(DecodeError::new(ErrorKind::Field, WHAT, at::PAYLOAD_FRACTIONS as u64));
        }
        Ok(header)
    }

    /// Whether SQLite opens the database in WAL mode.
    pub fn is_wal(&self) -> bool {
        self.read_version == VERSION_WAL
    }

    /// Whether the stored size in pages can be believed: versions before 3.7.0 did not keep it.
    pub fn page_count_is_valid(&self) -> bool {
        self.page_count != 0 && self.change_counter == self.version_valid_for
    }

    /// Size in pages of a database file of `file_bytes` bytes with this header: the stored size when it can be
    /// believed, otherwise that of the file with a torn last page counted, as SQLite does.
    pub fn page_count(&self, file_bytes: u64) -> PageCount {
        if self.page_count_is_valid() {
            return PageCount(self.page_count);
        }
        let pages = file_bytes.div_ceil(u64::from(self.page_size.get()));
        PageCount(u32::try_from(pages).unwrap_or(u32::MAX))
    }
}
