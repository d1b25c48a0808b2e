//! The bytes on which SQLite takes POSIX advisory locks (LTX specification, section 20).
//!
//! Database file: a reader holds a read lock on the SHARED range; a writer adds RESERVED, then PENDING, then turns the
//! range into a write lock. In WAL mode every connection holds SHARED for as long as it is open, and the locks that
//! matter are those on single bytes of the wal-index.
//!
//! Closing any descriptor of a file drops all locks that the process holds on it.

use std::ops::Range;

/// Byte of the database file: nobody may begin to read.
pub const PENDING: u64 = 0x4000_0000;
/// Byte of the database file: somebody prepares to write.
pub const RESERVED: u64 = PENDING + 1;
/// Bytes of the database file that readers hold.
pub const SHARED: Range<u64> = PENDING + 2..PENDING + 512;

/// Byte of the wal-index: the one writer.
pub const WAL_WRITE: u64 = 120;
/// Byte of the wal-index: the one checkpointer.
pub const WAL_CHECKPOINT: u64 = 121;
/// Byte of the wal-index: somebody rebuilds it.
pub const WAL_RECOVER: u64 = 122;
/// Byte of the wal-index, read-locked by every connection. Who gets it exclusively is alone and truncates the file.
pub const WAL_DMS: u64 = 128;

/// Number of read marks.
pub const READ_MARKS: usize = 5;

/// Byte of the wal-index that a reader on read mark `mark` holds.
pub const fn wal_read(mark: usize) -> u64 {
    assert!(mark < READ_MARKS);
    123 + mark as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_bytes_of_the_specification() {
        assert_eq!((RESERVED, SHARED.start, SHARED.end - 1), (0x4000_0001, 0x4000_0002, 0x4000_01ff));
        assert_eq!(SHARED.end - SHARED.start, 510);
        assert_eq!([0, 1, 2, 3, 4].map(wal_read), [123, 124, 125, 126, 127]);
    }
}
