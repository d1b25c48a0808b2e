//! POSIX locks of files on a mount whose kernel leaves them to us (`FUSE_POSIX_LOCKS`): who has which bytes of which file.
//!
//! An owner is whoever the kernel says: a process for `F_SETLK`, an open file for `F_OFD_SETLK`. A process loses all that it has of a file when it closes any
//! descriptor of it, of which the kernel tells by a flush; what was set by an open file goes with that.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a file, the last one included.
pub(super) type Bytes = RangeInclusive<u64>;

/// What others may have beside a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Others may read.
    Read,
    /// Nobody else has anything.
    Write,
}

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// As the kernel calls it.
    pub(super) id: u64,
    /// The open file by which it was set.
    pub(super) handle: u64,
    /// The process, for whoever wants to know.
    pub(super) pid: u32,
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) owner: Owner,
    pub(super) bytes: Bytes,
    pub(super) kind: Kind,
}

/// The locks of all files, by their numbers on the mount. Nobody has two of the same byte.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<u64, Vec<Lock>>>);

impl Locks {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Vec<Lock>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lock of somebody else that is in the way.
    pub(super) fn in_the_way(&self, file: u64, owner: u64, bytes: &Bytes, kind: Kind) -> Option<Lock> {
        in_the_way(self.lock().get(&file)?, owner, bytes, kind).cloned()
    }

    /// Sets a lock, in the place of what this owner has of these bytes.
    ///
    /// # Errors
    /// The lock that is in the way.
    pub(super) fn set(&self, file: u64, lock: Lock) -> Result<(), Lock> {
        let mut all = self.lock();
        let of_file = all.entry(file).or_default();
        if let Some(other) = in_the_way(of_file, lock.owner.id, &lock.bytes, lock.kind) {
            return Err(other.clone());
        }
        cut(of_file, lock.owner.id, &lock.bytes);
        of_file.push(lock);
        Ok(())
    }

    /// Takes away what an owner has of these bytes.
    pub(super) fn clear(&self, file: u64, owner: u64, bytes: &Bytes) {
        self.change(file, |locks| cut(locks, owner, bytes));
    }

    /// Takes away what was set by an open file, which is closed.
    pub(super) fn clear_handle(&self, file: u64, handle: u64) {
        self.change(file, |locks| locks.retain(|lock| lock.owner.handle != handle));
    }

    fn change(&self, file: u64, change: impl FnOnce(&mut Vec<Lock>)) {
        let mut all = self.lock();
        let Some(locks) = all.get_mut(&file) else { return };
        change(locks);
        if locks.is_empty() {
            all.remove(&file);
        }
    }

    /// Whether an owner alone has a byte.
    pub(super) fn is_written_by(&self, file: u64, owner: u64, byte: u64) -> bool {
        let has = |lock: &Lock| lock.owner.id == owner && lock.kind == Kind::Write && lock.bytes.contains(&byte);
        self.lock().get(&file).is_some_and(|locks| locks.iter().any(has))
    }
}

fn overlap(a: &Bytes, b: &Bytes) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

fn in_the_way<'l>(locks: &'l [Lock], owner: u64, bytes: &Bytes, kind: Kind) -> Option<&'l Lock> {
    let excludes = |lock: &&Lock| kind == Kind::Write || lock.kind == Kind::Write;
    locks.iter().filter(excludes).find(|lock| lock.owner.id != owner && overlap(&lock.bytes, bytes))
}

/// Takes bytes out of what an owner has.
fn cut(locks: &mut Vec<Lock>, owner: u64, bytes: &Bytes) {
    let (hit, mut rest): (Vec<_>, Vec<_>) =
        std::mem::take(locks).into_iter().partition(|lock| lock.owner.id == owner && overlap(&lock.bytes, bytes));
    for lock in hit {
        let (start, end) = (*lock.bytes.start(), *lock.bytes.end());
        if start < *bytes.start() {
            rest.push(Lock { bytes: start..=bytes.start() - 1, ..lock.clone() });
        }
        if end > *bytes.end() {
            rest.push(Lock { bytes: bytes.end() + 1..=end, ..lock });
        }
    }
    *locks = rest;
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 7;

    fn lock(owner: u64, bytes: Bytes, kind: Kind) -> Lock {
        Lock { owner: Owner { id: owner, handle: owner + 100, pid: 1 }, bytes, kind }
    }

    fn holders(locks: &Locks, bytes: Bytes) -> Vec<bool> {
        // What nobody has can be written by a stranger.
        bytes.map(|byte| locks.in_the_way(FILE, 99, &(byte..=byte), Kind::Write).is_some()).collect()
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let locks = Locks::default();
        locks.set(FILE, lock(1, 10..=20, Kind::Read)).unwrap();
        locks.set(FILE, lock(2, 15..=25, Kind::Read)).unwrap();
        let other = locks.set(FILE, lock(3, 20..=20, Kind::Write)).unwrap_err();
        assert!([1, 2].contains(&other.owner.id));
        assert_eq!(locks.set(FILE, lock(3, 26..=30, Kind::Write)), Ok(()));
        assert!(locks.set(FILE, lock(1, 0..=u64::MAX, Kind::Read)).is_err());
        assert_eq!(locks.set(FILE + 1, lock(1, 0..=u64::MAX, Kind::Write)), Ok(()), "another file");
        assert!(locks.is_written_by(FILE, 3, 30) && !locks.is_written_by(FILE, 3, 31));
        assert!(!locks.is_written_by(FILE, 1, 15), "it only reads there");
    }

    #[test]
    fn a_lock_is_replaced_and_cut_byte_by_byte() {
        let locks = Locks::default();
        locks.set(FILE, lock(1, 0..=9, Kind::Write)).unwrap();
        locks.set(FILE, lock(1, 4..=5, Kind::Read)).unwrap();
        assert!(locks.set(FILE, lock(2, 4..=5, Kind::Read)).is_ok(), "it was made weaker there");
        assert!(locks.set(FILE, lock(2, 3..=3, Kind::Read)).is_err());
        locks.clear(FILE, 2, &(0..=u64::MAX));
        locks.clear(FILE, 1, &(2..=7));
        let mut expected = vec![true; 2];
        expected.extend([false; 6]);
        expected.extend([true; 2]);
        assert_eq!(holders(&locks, 0..=9), expected);
        locks.clear(FILE, 1, &(0..=u64::MAX));
        assert!(locks.lock().is_empty(), "nothing is kept of files without locks");
    }

    #[test]
    fn what_was_set_by_an_open_file_goes_with_it() {
        let locks = Locks::default();
        locks.set(FILE, lock(1, 0..=0, Kind::Write)).unwrap();
        locks.set(FILE, lock(2, 1..=1, Kind::Write)).unwrap();
        locks.clear_handle(FILE, 101);
        assert_eq!(holders(&locks, 0..=1), [false, true]);
    }
}
