//! Transactions over several attached databases.
//!
//! SQLite commits such a group by removing its super-journal; after that it finalises the journals of its members one by one, each of which
//! names the super-journal at its end ("Atomic Commit In SQLite", section 5). All members get the time of the removal, so no point in
//! time lies between them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::Timestamp;
use rustix::fs::{Mode, OFlags, openat};

use crate::time;

/// Groups whose members may still have to be finalised. More at a time are not known.
const GROUPS_MAX: usize = 64;
/// Members are finalised right after the group: it is forgotten after this.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Last bytes of a journal that names a super-journal, as of one that is to be played back.
const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Length of the name, its checksum, and the magic number.
const TAIL_SIZE: u64 = 16;
/// Longest path that is read.
const NAME_BYTES_MAX: u64 = 4096;

/// Groups that were committed a moment ago, by the names of their super-journals, oldest first.
#[derive(Debug, Default)]
pub(super) struct Groups(Mutex<VecDeque<Group>>);

#[derive(Debug)]
struct Group {
    name: OsString,
    time: Timestamp,
    since: Instant,
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of this name was removed.
    pub(super) fn note_removed(&self, name: &OsStr) {
        if is_super_journal(name.as_bytes()) {
            let mut groups = self.lock();
            groups.push_back(Group { name: name.to_owned(), time: time::now(), since: Instant::now() });
            if groups.len() > GROUPS_MAX {
                groups.pop_front();
            }
        }
    }

    /// When the group was committed whose member this journal is; `None` for a transaction of its own.
    pub(super) fn of_journal(&self, open: impl FnOnce() -> io::Result<File>) -> Option<Timestamp> {
        {
            let mut groups = self.lock();
            groups.retain(|group| group.since.elapsed() < KNOWN_FOR);
            if groups.is_empty() {
                return None;
            }
        }
        let name = super_journal(&open().ok()?).ok()??;
        let name = name.as_bytes().rsplit(|byte| *byte == b'/').next()?;
        let groups = self.lock();
        groups.iter().find(|group| group.name.as_bytes() == name).map(|group| group.time)
    }
}

/// Opens a journal. A link is not followed, which may lead back into the mount, nor is a pipe waited for.
pub(super) fn open(folder: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// `NAME-mjXXXXXX9XX`, with hexadecimal digits: SQLite keeps the 9 for it.
fn is_super_journal(name: &[u8]) -> bool {
    let Some((_, end)) = name.split_last_chunk::<12>() else { return false };
    end.starts_with(b"-mj") && end[9] == b'9' && end[3..].iter().all(u8::is_ascii_hexdigit)
}

/// The super-journal that a journal names at its end.
fn super_journal(journal: &File) -> io::Result<Option<OsString>> {
    let bytes = journal.metadata()?.len();
    let mut tail = [0; TAIL_SIZE as usize];
    let Some(end) = bytes.checked_sub(TAIL_SIZE) else { return Ok(None) };
    journal.read_exact_at(&mut tail, end)?;
    let word = |at: usize| u32::from_be_bytes(tail[at..at + 4].try_into().expect("4 bytes"));
    let (len, checksum) = (u64::from(word(0)), word(4));
    let Some(start) = end.checked_sub(len) else { return Ok(None) };
    if tail[8..] != MAGIC || len == 0 || len > NAME_BYTES_MAX {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(len).expect("bounded above")];
    journal.read_exact_at(&mut name, start)?;
    // SQLite adds up C's `char`s, which have a sign on some machines.
    let signed = name.iter().fold(0u32, |sum, byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())));
    let unsigned = name.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    Ok((signed == checksum || unsigned == checksum).then(|| OsString::from_vec(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_sqlite_gives() {
        for (name, is_one) in [
            (&b"a.db-mj0A1B2C9FF"[..], true),
            (b"a.db-mj0A1B2C8FF", false),
            (b"a.db-journal", false),
            (b"-mj0A1B2C9FF", true),
            (b"mj0A1B2C9FF", false),
        ] {
            assert_eq!(is_super_journal(name), is_one, "{name:?}");
        }
    }

    #[test]
    fn a_journal_without_a_whole_name_has_none() {
        let journal = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            super_journal(&file).unwrap()
        };
        let name = "/mnt/\u{e9}.db-mj0A1B2C9FF".as_bytes();
        let sum = name.iter().fold(0i64, |sum, byte| sum + i64::from(*byte as i8)) as u32;
        let whole = [b"pages", name, &(name.len() as u32).to_be_bytes(), &sum.to_be_bytes(), &MAGIC].concat();
        assert_eq!(journal(&whole).unwrap().as_bytes(), name);
        for at in 5..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(journal(&damaged), None, "byte {at}");
            assert_eq!(journal(&whole[at..]).as_ref().map(|name| name.as_bytes()), (at <= 5).then_some(name));
        }
        assert_eq!(journal(b""), None);
    }
}
