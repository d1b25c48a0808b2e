//! What the name of a file on the mount says about it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What SQLite uses a file of this name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A WAL or wal-index.
    Shared,
    /// A rollback journal.
    Journal,
    /// A database, or any other file.
    Plain,
}

impl Role {
    /// That of a file of this name.
    pub(super) fn of(name: &OsStr) -> Self {
        let name = name.as_bytes();
        match () {
            () if name.ends_with(b"-wal") || name.ends_with(b"-shm") => Self::Shared,
            () if name.ends_with(b"-journal") => Self::Journal,
            () => Self::Plain,
        }
    }
}

/// Whether a file is a WAL, by its name.
pub(super) fn is_wal(name: &OsStr) -> bool {
    name.as_bytes().strip_suffix(b"-wal").is_some_and(|base| !base.is_empty())
}

/// The database of a journal, by its name.
pub(super) fn base_of(journal: &OsStr) -> Option<&OsStr> {
    journal.as_bytes().strip_suffix(b"-journal").filter(|base| !base.is_empty()).map(OsStr::from_bytes)
}

/// The database of a journal, WAL or wal-index, by its name.
pub(super) fn database_of(name: &OsStr) -> Option<&OsStr> {
    let name = name.as_bytes();
    let base = [&b"-journal"[..], b"-wal", b"-shm"].iter().find_map(|suffix| name.strip_suffix(*suffix));
    base.filter(|base| !base.is_empty()).map(OsStr::from_bytes)
}
