//! The files of SQLite: database header, WAL, wal-index, rollback journal, and the bytes on which it locks.
//!
//! Everything here only reads: what SQLite wrote is taken apart, byte ranges and slices come out, nothing is copied. All
//! integers are big-endian but those of the wal-index, which are in the order of the host (LTX specification, sections 19
//! to 23).

pub mod header;
pub mod journal;
pub mod journal_writer;
mod layout;
pub mod lock;
pub mod wal;
pub mod wal_index;
