//! What the first bytes of a rollback journal say ("The Rollback Journal" of SQLite's file format).
//!
//! Where the kernel passes files through, it writes journals without us. That a transaction has ended is then known from what the daemon is asked for: the journal is unlinked, cut,
//! or synced when its header was zeroed. Who does not sync may zero it unseen: each journal has a random number, so the next one is
//! told from it before the next write to the database, and a thread looks meanwhile (`unsynced`).

use std::fs::File;
use std::os::unix::fs::FileExt;

/// First bytes of a journal that is to be played back.
const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Bytes that are looked at: the magic number, the count of pages, and the initial value of the checksums.
const START_BYTES: usize = 16;
/// The count of pages of a journal that is never synced.
const PAGES_NOT_COUNTED: u32 = u32::MAX;

/// The first bytes of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It would be played back.
    Played {
        /// The initial value of its checksums, which is random.
        nonce: u32,
        /// It is never synced.
        is_unsynced: bool,
    },
    /// It would not: it was not synced yet, or its header was zeroed.
    Void,
    /// It is empty, which somebody else tells, or could not be read.
    Unknown,
}

/// Reads the first bytes of a journal.
pub(super) fn start(journal: &File) -> Start {
    let mut bytes = [0; START_BYTES];
    if journal.read_exact_at(&mut bytes, 0).is_err() {
        return Start::Unknown;
    }
    if !is_played(&bytes) {
        return Start::Void;
    }
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    Start::Played { nonce: word(12), is_unsynced: word(8) == PAGES_NOT_COUNTED }
}

/// Whether a journal that begins so would be played back.
pub(super) fn is_played(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_say_whether_and_as_what_it_would_be_played_back() {
        let file = tempfile::tempfile().unwrap();
        let found = |bytes: &[u8]| {
            file.set_len(0).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            start(&file)
        };
        let header = |pages: u32| [&MAGIC[..], &pages.to_be_bytes(), &7_u32.to_be_bytes(), &[0; 12]].concat();
        assert_eq!(found(b""), Start::Unknown);
        assert_eq!(found(&MAGIC), Start::Unknown);
        assert_eq!(found(&header(3)), Start::Played { nonce: 7, is_unsynced: false });
        assert_eq!(found(&header(PAGES_NOT_COUNTED)), Start::Played { nonce: 7, is_unsynced: true });
        assert_eq!(found(&[0; 28]), Start::Void);
        let mut half = header(3);
        half[..4].fill(0);
        assert_eq!(found(&half), Start::Void, "half zeroed");
    }
}
