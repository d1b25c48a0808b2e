//! SQLite's locks on a database file in rollback mode, taken without SQLite.
//!
//! Open-file-description locks where the system has them: unlike POSIX locks they are not lost when some other code in this
//! process closes the same file. Both kinds exclude each other, so other processes' SQLite sees them.
//!
//! ```text
//! none -> shared -> reserved -> exclusive -> none
//!         others     others       nobody
//!         read and   read         else does anything
//!         write
//! ```

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rhyolite_format::sqlite::lock::{PENDING, RESERVED, SHARED, WAL_WRITE};

/// Readers must still be waited for, or somebody else writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// What a lock call came to: an error of the system, or somebody else's lock.
pub(super) type Locked = io::Result<Result<(), Busy>>;

/// The locks on one open database file. Dropped, they are gone.
#[derive(Debug)]
pub(super) struct Locks<'a> {
    file: &'a File,
}

impl<'a> Locks<'a> {
    /// Reads: SHARED.
    pub(super) fn share(file: &'a File) -> io::Result<Result<Self, Busy>> {
        let locks = Self { file };
        let pending = one(PENDING);
        if set(file, libc::F_RDLCK, &pending)?.is_err() {
            return Ok(Err(Busy));
        }
        let shared = set(file, libc::F_RDLCK, &SHARED)?;
        unlock(file, &pending)?;
        Ok(shared.map(|()| locks))
    }

    /// Becomes the one writer, beside readers: SHARED and RESERVED.
    pub(super) fn reserve(file: &'a File) -> io::Result<Result<Self, Busy>> {
        let locks = Self { file };
        let pending = one(PENDING);
        if set(file, libc::F_RDLCK, &pending)?.is_err() {
            return Ok(Err(Busy));
        }
        let shared = set(file, libc::F_RDLCK, &SHARED)?;
        unlock(file, &pending)?;
        if shared.is_err() || set(file, libc::F_WRLCK, &one(RESERVED))?.is_err() {
            return Ok(Err(Busy));
        }
        Ok(Ok(locks))
    }

    /// Shuts readers out. While they are still there, no new ones come in: ask again until it works, or drop the locks.
    pub(super) fn exclude_readers(&self) -> Locked {
        if set(self.file, libc::F_WRLCK, &one(PENDING))?.is_err() {
            return Ok(Err(Busy));
        }
        set(self.file, libc::F_WRLCK, &SHARED)
    }
}

impl Drop for Locks<'_> {
    fn drop(&mut self) {
        // Fails only for a descriptor that is not open, and this one is borrowed.
        let _ = unlock(self.file, &(PENDING..SHARED.end));
    }
}

/// Keeps everybody from writing to a database, and to its WAL where the wal-index is given, until both files are closed. `false` when somebody is writing;
/// what is locked by then stays so.
pub(crate) fn keep_writers_out(database: &File, wal_index: Option<&File>) -> io::Result<bool> {
    let Ok(locks) = Locks::reserve(database)? else { return Ok(false) };
    // They go with the file.
    std::mem::forget(locks);
    match wal_index {
        Some(wal_index) => Ok(set(wal_index, libc::F_WRLCK, &one(WAL_WRITE))?.is_ok()),
        None => Ok(true),
    }
}

/// Gives up what [`keep_writers_out`] has locked.
pub(crate) fn let_writers_in(database: &File, wal_index: Option<&File>) -> io::Result<()> {
    unlock(database, &(PENDING..SHARED.end))?;
    wal_index.map_or(Ok(()), |wal_index| unlock(wal_index, &one(WAL_WRITE)))
}

fn one(byte: u64) -> Range<u64> {
    byte..byte + 1
}

fn unlock(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    set(file, libc::F_UNLCK, bytes).map(|_| ())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const SET_LOCK: libc::c_int = libc::F_OFD_SETLK;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const SET_LOCK: libc::c_int = libc::F_SETLK;

fn set(file: &File, kind: libc::c_int, bytes: &Range<u64>) -> Locked {
    let offset = |value: u64| libc::off_t::try_from(value).expect("lock bytes lie near 1 GiB");
    // SAFETY: `flock` is plain data and every field that matters is set below.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = offset(bytes.start);
    lock.l_len = offset(bytes.end - bytes.start);
    loop {
        // SAFETY: the descriptor is open for as long as `file` lives, and the kernel only reads `lock`.
        if unsafe { libc::fcntl(file.as_raw_fd(), SET_LOCK, &lock) } == 0 {
            return Ok(Ok(()));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => return Ok(Err(Busy)),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}
