//! One connection to the user's database, and the view behind it that SQL does not give.
//!
//! # The POSIX lock trap
//!
//! SQLite locks with POSIX advisory locks, which a process loses on *every* descriptor of a file as soon as it closes *any*
//! descriptor of that file. A descriptor of our own on the database, `-wal` or `-shm` file would therefore be a trap. So
//! there is none: all raw reads go through the descriptors that SQLite itself holds, by `SQLITE_FCNTL_FILE_POINTER`,
//! `SQLITE_FCNTL_JOURNAL_POINTER` (the WAL file, in WAL mode) and `xShmMap` (the wal-index as SQLite has mapped it). They
//! live exactly as long as the connection. Whoever else opens a database that is being captured does it by SQLite alone (`forward/holder.rs`).
//!
//! # What is guaranteed
//!
//! - A handle never writes: it opens no write statement, leaves the WAL in place when it closes, and cannot play a journal back
//!   (`guard`). What it does on request is said by its name: checkpoints, and the switch to WAL mode.
//! - Raw reads need an open read transaction ([`Handle::begin_read`]): it keeps the WAL from being reset, and `-shm` from
//!   being truncated, under them.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rhyolite_format::sqlite::wal_index::{self, WalIndex};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::guard;

/// Bytes at the start of the wal-index that hold both header copies and the checkpoint information.
const WAL_INDEX_HEAD_BYTES: usize = 136;
/// Size in bytes of one block of the wal-index.
const WAL_INDEX_BLOCK_BYTES: c_int = 32768;
/// The first SQLite version whose checkpoints are free of the WAL-reset bug.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// What went wrong with the user's database.
#[derive(Debug)]
pub enum HandleError {
    /// Another connection holds a lock that is needed; worth another try.
    Busy,
    /// The file is not an SQLite database, or is damaged so that SQLite refuses it.
    NotADatabase(String),
    /// The file is not there.
    Missing,
    /// A writer has died within a transaction in rollback mode; the application's next connection rolls it back.
    HotJournal,
    /// Somebody wrote to the database between two parts of a reading that must see one state of it; worth another try.
    Changed,
    /// Everything else, in SQLite's words.
    Sqlite(String),
}

impl std::fmt::Display for HandleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("locked by another connection"),
            Self::NotADatabase(text) => write!(f, "not a usable SQLite database: {text}"),
            Self::Missing => f.write_str("no such file"),
            Self::HotJournal => f.write_str("an unfinished transaction is to be rolled back by its application"),
            Self::Changed => f.write_str("written while it was read"),
            Self::Sqlite(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for HandleError {}

impl From<rusqlite::Error> for HandleError {
    fn from(error: rusqlite::Error) -> Self {
        if error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_READONLY_ROLLBACK) {
            return Self::HotJournal;
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::NotADatabase(error.to_string()),
            _ => Self::Sqlite(error.to_string()),
        }
    }
}

/// How a checkpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointResult {
    /// It ran as far as readers allowed.
    Done,
    /// Another connection was checkpointing.
    Busy,
}

/// A connection to the user's database.
#[derive(Debug)]
pub struct Handle {
    connection: Connection,
    path: PathBuf,
    /// SQLite's own open file of the database; valid while `connection` lives.
    database: *mut ffi::sqlite3_file,
    /// Processor time that checkpoints took since it was last asked for.
    checkpoint_cpu: Cell<Duration>,
}

impl Handle {
    /// Opens the database at `path`, which must exist. `busy_timeout` bounds every wait for a lock.
    pub fn open(path: &Path, busy_timeout: Duration) -> Result<Self, HandleError> {
        assert!(rusqlite::version_number() >= SQLITE_VERSION_MIN, "linked SQLite has the WAL-reset bug");
        if !path.exists() {
            return Err(HandleError::Missing);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(path, flags, guard::name())?;
        connection.busy_timeout(busy_timeout)?;
        // Closing must neither checkpoint nor delete the WAL: the next start goes on from where it stands.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "cache_size", 8)?;
        let mut handle =
            Self { connection, path: path.to_owned(), database: ptr::null_mut(), checkpoint_cpu: Cell::default() };
        handle.database = handle.file_pointer(ffi::SQLITE_FCNTL_FILE_POINTER)?;
        handle.keep_wal()?;
        Ok(handle)
    }

    /// Bounds every wait for a lock from here on.
    pub fn set_busy_timeout(&self, timeout: Duration) -> Result<(), HandleError> {
        Ok(self.connection.busy_timeout(timeout)?)
    }

    fn keep_wal(&self) -> Result<(), HandleError> {
        let mut on: c_int = 1;
        self.file_control(ffi::SQLITE_FCNTL_PERSIST_WAL, (&raw mut on).cast())
    }

    fn file_control(&self, operation: c_int, argument: *mut c_void) -> Result<(), HandleError> {
        // SAFETY: the connection is open; "main" is NUL-terminated; `argument` has the type that the operation asks for,
        // as every caller in this file shows.
        let code =
            unsafe { ffi::sqlite3_file_control(self.connection.handle(), c"main".as_ptr(), operation, argument) };
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(HandleError::Sqlite(format!("file control {operation}: code {code}")))
        }
    }

    fn file_pointer(&self, operation: c_int) -> Result<*mut ffi::sqlite3_file, HandleError> {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        self.file_control(operation, (&raw mut file).cast())?;
        assert!(!file.is_null(), "SQLite gives its file");
        Ok(file)
    }

    /// Begins a read transaction: from here to [`Handle::end_read`] the WAL cannot be reset over frames that this
    /// transaction may read.
    pub fn begin_read(&self) -> Result<(), HandleError> {
        self.begin("BEGIN")
    }

    /// Begins a transaction that holds SQLite's write lock: nobody can commit until it ends. Nothing is ever written in it.
    ///
    /// Tries without pause for `wait` at most: between two commits of a busy application the lock is free for some microseconds,
    /// which SQLite's own busy timeout, sleeping milliseconds, mostly misses.
    pub fn begin_immediate(&self, wait: Duration) -> Result<(), HandleError> {
        let began = Instant::now();
        loop {
            match self.begin("BEGIN IMMEDIATE") {
                Err(HandleError::Busy) if began.elapsed() < wait => std::thread::yield_now(),
                begun => return begun,
            }
        }
    }

    fn begin(&self, sql: &str) -> Result<(), HandleError> {
        assert!(self.connection.is_autocommit(), "one transaction at a time");
        self.connection.prepare_cached(sql)?.execute([])?;
        // BEGIN alone takes no lock: the first read does. This one reads the file header and parses no schema.
        let read = || -> Result<i64, rusqlite::Error> {
            self.connection.prepare_cached("PRAGMA schema_version")?.query_row([], |r| r.get(0))
        };
        match read() {
            Ok(_) => Ok(()),
            Err(error) => {
                self.end_read();
                Err(error.into())
            }
        }
    }

    /// Ends the transaction, if there is one.
    pub fn end_read(&self) {
        if self.connection.is_autocommit() {
            return;
        }
        let ended = self.connection.prepare_cached("ROLLBACK").and_then(|mut s| s.execute([]));
        assert!(
            ended.is_ok() || self.connection.is_autocommit(),
            "ROLLBACK of a read transaction cannot fail: {ended:?}"
        );
    }

    /// Whether a transaction is open.
    pub fn is_in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// Whether the database is in WAL mode. Needs no transaction.
    pub fn is_wal(&self) -> Result<bool, HandleError> {
        let mode: String = self.connection.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        Ok(mode.eq_ignore_ascii_case("wal"))
    }

    /// Switches the database at `path` to WAL mode. `false` when SQLite did not agree (another connection is in the way).
    ///
    /// This is a write like any of an application's, and done as such.
    pub fn switch_to_wal(path: &Path, busy_timeout: Duration) -> Result<bool, HandleError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy_timeout)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0))?;
        Ok(mode.eq_ignore_ascii_case("wal"))
    }

    /// Rolls back the transaction of a writer that has died, as the application's next connection would. Nothing happens where there is none, and when the
    /// file with this inode does not have the name any more.
    pub fn roll_back(path: &Path, inode: u64, busy_timeout: Duration) -> Result<(), HandleError> {
        let _rolling = guard::RollingBack::new(inode);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(path, flags, guard::rollback_name())?;
        connection.busy_timeout(busy_timeout)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Whoever begins to read plays a hot journal back first.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(())
    }

    /// Whether the path names another file than the one that is open, or none.
    pub fn has_moved(&self) -> Result<bool, HandleError> {
        let mut moved: c_int = 0;
        self.file_control(ffi::SQLITE_FCNTL_HAS_MOVED, (&raw mut moved).cast())?;
        Ok(moved != 0 || !self.path.exists())
    }

    /// Runs a passive checkpoint: it never waits, and copies what no reader still needs. This connection must not be in a
    /// transaction.
    pub fn checkpoint_passive(&self) -> Result<CheckpointResult, HandleError> {
        self.checkpoint(ffi::SQLITE_CHECKPOINT_PASSIVE)
    }

    /// Runs a truncating checkpoint: it waits for readers and writers up to the busy timeout, then cuts the WAL to nothing.
    pub fn checkpoint_truncate(&self) -> Result<CheckpointResult, HandleError> {
        self.checkpoint(ffi::SQLITE_CHECKPOINT_TRUNCATE)
    }

    fn checkpoint(&self, mode: c_int) -> Result<CheckpointResult, HandleError> {
        assert!(self.connection.is_autocommit(), "a checkpoint within a transaction is refused by SQLite");
        let (mut log_frames, mut done_frames): (c_int, c_int) = (0, 0);
        let began = thread_cpu();
        // SAFETY: the connection is open; "main" is NUL-terminated; both counters outlive the call.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(
                self.connection.handle(),
                c"main".as_ptr(),
                mode,
                &raw mut log_frames,
                &raw mut done_frames,
            )
        };
        self.checkpoint_cpu.update(|spent| spent + (thread_cpu() - began));
        match code & 0xff {
            ffi::SQLITE_OK => Ok(CheckpointResult::Done),
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => Ok(CheckpointResult::Busy),
            _ => Err(HandleError::Sqlite(format!("checkpoint: code {code}"))),
        }
    }

    /// Processor time that checkpoints of this connection took since the last call.
    pub fn take_checkpoint_cpu(&self) -> Duration {
        self.checkpoint_cpu.take()
    }

    /// What the wal-index says now, consistently, and without a system call. `None` while a writer is changing it, and
    /// when it needs recovery.
    pub fn wal_index(&self) -> Result<Option<WalIndex>, HandleError> {
        let head = self.wal_index_block(0)?;
        let mut words = [0u32; WAL_INDEX_HEAD_BYTES / 4];
        fence(Ordering::Acquire);
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: `head` points to 32 KiB that SQLite keeps mapped while this connection is open in WAL mode, aligned
            // to a page. Other processes change it: hence volatile, word by word; torn reads are caught by comparing the
            // two copies and the checksum.
            *word = unsafe { head.cast::<u32>().add(i).read_volatile() };
        }
        fence(Ordering::Acquire);
        let mut bytes = [0u8; WAL_INDEX_HEAD_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        wal_index::decode(&bytes).map_err(|e| HandleError::Sqlite(e.to_string()))
    }

    fn wal_index_block(&self, block: c_int) -> Result<*const u8, HandleError> {
        let mut mapped: *mut c_void = ptr::null_mut();
        // SAFETY: `database` is SQLite's open file; its methods live as long. The call only looks up (and if need be maps)
        // a block that exists; `extend` is 0, so it creates nothing.
        let code = unsafe {
            let methods = (*self.database).pMethods;
            assert!(!methods.is_null(), "the file is open");
            let shm_map = (*methods).xShmMap.expect("the unix VFS has shared memory");
            shm_map(self.database, block, WAL_INDEX_BLOCK_BYTES, 0, (&raw mut mapped).cast())
        };
        if code == ffi::SQLITE_OK && !mapped.is_null() {
            Ok(mapped.cast())
        } else {
            Err(HandleError::Sqlite(format!("map wal-index: code {code}")))
        }
    }

    /// Reads bytes of the database file; what lies beyond its end reads as zeros, as SQLite itself sees it.
    pub fn read_database(&self, buffer: &mut [u8], offset: u64) -> Result<(), HandleError> {
        read_file(self.database, buffer, offset).map(|_| ())
    }

    /// Brings what was written to the database file to the disk. A checkpoint that is not complete leaves that to the next one.
    pub fn sync_database(&self) -> Result<(), HandleError> {
        let began = thread_cpu();
        // SAFETY: as in `read_file`.
        let code = unsafe {
            let methods = (*self.database).pMethods;
            assert!(!methods.is_null(), "the file is open");
            let sync = (*methods).xSync.expect("every VFS file syncs");
            sync(self.database, ffi::SQLITE_SYNC_NORMAL)
        };
        self.checkpoint_cpu.update(|spent| spent + (thread_cpu() - began));
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(HandleError::Sqlite(format!("sync the database: code {code}")))
        }
    }

    /// Size in bytes of the database file.
    pub fn database_bytes(&self) -> Result<u64, HandleError> {
        file_bytes(self.database)
    }

    /// Reads bytes of the WAL file. `false` when it ends within them (the rest is zeros).
    pub fn read_wal(&self, buffer: &mut [u8], offset: u64) -> Result<bool, HandleError> {
        read_file(self.file_pointer(ffi::SQLITE_FCNTL_JOURNAL_POINTER)?, buffer, offset)
    }

    /// Size in bytes of the WAL file.
    pub fn wal_bytes(&self) -> Result<u64, HandleError> {
        file_bytes(self.file_pointer(ffi::SQLITE_FCNTL_JOURNAL_POINTER)?)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end_read();
        self.connection.flush_prepared_statement_cache();
    }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("the clock starts at 0")
}

/// Largest single read: SQLite's VFS takes an `int`.
const READ_BYTES_MAX: usize = 1 << 20;

fn read_file(file: *mut ffi::sqlite3_file, buffer: &mut [u8], offset: u64) -> Result<bool, HandleError> {
    let mut complete = true;
    for (i, part) in buffer.chunks_mut(READ_BYTES_MAX).enumerate() {
        let at = offset + (i * READ_BYTES_MAX) as u64;
        let at = i64::try_from(at).map_err(|_| HandleError::Sqlite("offset beyond 2^63".to_owned()))?;
        let len = c_int::try_from(part.len()).expect("bounded by READ_BYTES_MAX");
        // SAFETY: `file` is an open file of SQLite's, used on the one thread that owns the connection; `part` has `len` bytes.
        let code = unsafe {
            let methods = (*file).pMethods;
            if methods.is_null() {
                return Err(HandleError::Sqlite("the file is not open".to_owned()));
            }
            let read = (*methods).xRead.expect("every VFS file reads");
            read(file, part.as_mut_ptr().cast(), len, at)
        };
        match code {
            ffi::SQLITE_OK => {}
            ffi::SQLITE_IOERR_SHORT_READ => complete = false,
            _ => return Err(HandleError::Sqlite(format!("read: code {code}"))),
        }
    }
    Ok(complete)
}

fn file_bytes(file: *mut ffi::sqlite3_file) -> Result<u64, HandleError> {
    let mut bytes: ffi::sqlite3_int64 = 0;
    // SAFETY: as in `read_file`.
    let code = unsafe {
        let methods = (*file).pMethods;
        if methods.is_null() {
            return Err(HandleError::Sqlite("the file is not open".to_owned()));
        }
        let size = (*methods).xFileSize.expect("every VFS file has a size");
        size(file, &raw mut bytes)
    };
    if code == ffi::SQLITE_OK {
        Ok(bytes.unsigned_abs())
    } else {
        Err(HandleError::Sqlite(format!("file size: code {code}")))
    }
}
