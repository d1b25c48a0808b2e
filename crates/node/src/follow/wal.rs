//! Changes a database file through SQLite and its WAL: readers see the state before or the one after, and nobody waits for them.
//!
//! Pages are written by SQLite's own virtual table `sqlite_dbpage`, as `sqlite3_rsync` does it: locks, frames, wal-index, checkpoints and the recovery
//! of a WAL that a crash has left are SQLite's. What it changes by itself are bytes of page 1 (docs/spec/follow.md).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhyolite_format::follow::PageOneFields;
use rhyolite_format::{PageCount, PageNumber};
use rusqlite::types::Null;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::ReplicaJournal;
use super::apply::Batch;
use super::lock::Busy;
use super::preview::{self, Preview};
use crate::restore::RestoreError;

/// Pages in the WAL after which they are copied into the database.
const CHECKPOINT_PAGES: usize = 1000;
/// Bytes in the WAL after which they are, while one batch after another has that many pages: each time costs two syncs, and writes a page once that came often.
const CHECKPOINT_BYTES_BEHIND: usize = 64 << 20;
/// Pages in the WAL after which it is made to begin anew.
const RESET_PAGES: usize = 16 * CHECKPOINT_PAGES;
/// For so long those are waited for who read what is older.
const RESET_WAIT: Duration = Duration::from_millis(100);

/// What became of a change of the journal mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switched {
    /// It is so.
    Done,
    /// Somebody else has the database open.
    Busy,
    /// Somebody else has written.
    Foreign,
}

/// A database in WAL mode to which nobody else writes.
#[derive(Debug)]
pub(super) struct WalWriter {
    /// Never waited for: what owns this lets one thread at a time use it.
    connection: Mutex<Connection>,
    path: PathBuf,
    /// Changes when another connection commits.
    data_version: i64,
    /// Pages that were written since a checkpoint was last tried.
    pages: usize,
    /// Pages that the WAL held then.
    wal_pages: usize,
}

impl WalWriter {
    /// Opens a database as it is.
    pub(super) fn open(path: &Path, journal: ReplicaJournal) -> Result<Self, RestoreError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = attach(path)?;
            let is_synced = journal == ReplicaJournal::AsLoggedSynced;
            connection.pragma_update(Some(SCHEMA), "synchronous", if is_synced { "full" } else { "normal" })?;
            Ok(connection)
        };
        let connection = open().map_err(|e| failed("open", path, e))?;
        let mut this =
            Self { connection: Mutex::new(connection), path: path.to_owned(), data_version: 0, pages: 0, wal_pages: 0 };
        this.keep_wal()?;
        this.data_version = this.read_data_version()?;
        Ok(this)
    }

    /// `-wal` and `-shm` stay when they are closed: who may read the folder and not write there needs them.
    fn keep_wal(&self) -> Result<(), RestoreError> {
        let mut on: std::ffi::c_int = 1;
        // SAFETY: the connection is open, the name is NUL-terminated, and this operation takes an int that outlives the call.
        let code = unsafe {
            let operation = ffi::SQLITE_FCNTL_PERSIST_WAL;
            ffi::sqlite3_file_control(self.connection().handle(), c"file".as_ptr(), operation, (&raw mut on).cast())
        };
        let error = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(failed("use the WAL of", &self.path, error())) }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> RestoreError + '_ {
        move |e| failed(doing, &self.path, e)
    }

    fn read_data_version(&self) -> Result<i64, RestoreError> {
        self.connection()
            .pragma_query_value(Some(SCHEMA), "data_version", |row| row.get(0))
            .map_err(self.failed("read"))
    }

    /// Whether nobody else has committed to it.
    pub(super) fn is_untouched(&self) -> Result<bool, RestoreError> {
        Ok(self.read_data_version()? == self.data_version)
    }

    /// Goes over to this journal mode.
    pub(super) fn switch(&mut self, mode: &str, timeout: Duration) -> Result<Switched, RestoreError> {
        if self.read_data_version()? != self.data_version {
            return Ok(Switched::Foreign);
        }
        let switch = || -> rusqlite::Result<String> {
            let connection = self.connection();
            connection.busy_timeout(timeout)?;
            connection.pragma_update_and_check(Some(SCHEMA), "journal_mode", mode, |row| row.get(0))
        };
        let is_so = match switch() {
            Ok(now) => now.eq_ignore_ascii_case(mode),
            Err(error) if is_busy(&error) => false,
            Err(error) => return Err(failed("change the journal mode of", &self.path, error)),
        };
        self.data_version = self.read_data_version()?;
        Ok(if is_so { Switched::Done } else { Switched::Busy })
    }

    /// Size of the database.
    pub(super) fn page_count(&self) -> Result<PageCount, RestoreError> {
        let count = self.connection().pragma_query_value(Some(SCHEMA), "page_count", |row| row.get(0));
        count.map(PageCount).map_err(self.failed("read"))
    }

    /// Reads pages, ascending from the first, as the last commit has left them.
    pub(super) fn read_pages(&self, mut take: impl FnMut(PageNumber, &[u8])) -> Result<(), RestoreError> {
        let mut read = || -> rusqlite::Result<()> {
            let connection = self.connection();
            let mut statement = connection.prepare("SELECT pgno, data FROM sqlite_dbpage('file')")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let Some(pgno) = PageNumber::new(row.get(0)?) {
                    take(pgno, row.get_ref(1)?.as_blob()?);
                }
            }
            Ok(())
        };
        read().map_err(self.failed("read"))
    }

    /// Page 1.
    pub(super) fn page_one(&self) -> Result<Vec<u8>, RestoreError> {
        let read = self.connection().query_row(READ_PAGE, [1], |row| row.get(0));
        read.map_err(self.failed("read"))
    }

    /// Commits a batch that leaves the page size as it is. `Busy` when somebody else is writing for longer than `timeout`; `None` when somebody else
    /// has written who is not known of: what is known of has become what it was before at the same time.
    pub(super) fn apply(
        &mut self,
        batch: &Batch,
        page_one: &PageOneFields,
        timeout: Duration,
    ) -> Result<Option<Result<(), Busy>>, RestoreError> {
        self.connection().busy_timeout(timeout).map_err(self.failed("lock"))?;
        match self.connection().execute_batch("BEGIN IMMEDIATE") {
            Err(error) if is_busy(&error) => return Ok(Some(Err(Busy))),
            begun => begun.map_err(self.failed("lock"))?,
        }
        // Whoever writes has the lock, and ended before this.
        let known = preview::of(&self.path);
        let version = self.read_data_version();
        let written = match version {
            Ok(version) if known.is_some() || version == self.data_version => {
                self.data_version = version;
                self.write(batch, page_one, known.as_ref().and_then(|known| known.preview.as_deref())).map(|()| true)
            }
            other => other.map(|_| false),
        };
        if !matches!(written, Ok(true)) {
            // Nothing of it is left, whether this works or the connection is closed.
            let _ = self.connection().execute_batch("ROLLBACK");
            return written.map(|_| None);
        }
        self.connection().execute_batch("COMMIT").map_err(self.failed("commit to"))?;
        if let Some(known) = &known {
            preview::settled(&self.path, known);
        }
        // What SQLite has noted of its b-trees (which it reads for the schema) goes with the pages: they were changed behind its back.
        self.connection().release_memory().map_err(self.failed("commit to"))?;
        self.pages += batch.pages.len();
        let is_behind = batch.pages.len() >= CHECKPOINT_PAGES;
        let pages_behind = (CHECKPOINT_BYTES_BEHIND / batch.page_size.bytes()).max(CHECKPOINT_PAGES);
        if self.pages >= if is_behind { pages_behind } else { CHECKPOINT_PAGES } {
            self.checkpoint()?;
        }
        Ok(Some(Ok(())))
    }

    fn write(&self, batch: &Batch, page_one: &PageOneFields, preview: Option<&Preview>) -> Result<(), RestoreError> {
        let before = self.page_count()?;
        let connection = self.connection();
        let mut statement = connection.prepare_cached(WRITE_PAGE).map_err(self.failed("write"))?;
        let mut page = vec![0; batch.page_size.bytes()];
        let kept = preview.into_iter().flat_map(|preview| &preview.pages);
        let mut kept: Vec<_> = kept
            .filter(|(pgno, _)| batch.commit.contains(**pgno) && batch.pages.binary_search(pgno).is_err())
            .collect();
        let first = kept.first().is_some_and(|(pgno, _)| **pgno == PageNumber::FIRST).then(|| kept.remove(0).1);
        for (pgno, page) in kept {
            statement.execute((pgno.get(), page)).map_err(self.failed("write"))?;
        }
        for (index, pgno) in batch.pages.iter().enumerate().rev() {
            batch.read(index, &mut page).map_err(|e| RestoreError::io("read", Path::new("spool file"), e))?;
            if *pgno == PageNumber::FIRST {
                page_one.put(&mut page);
            }
            statement.execute((pgno.get(), &page)).map_err(self.failed("write"))?;
        }
        if let Some(kept) = first {
            page.copy_from_slice(kept);
            page_one.put(&mut page);
            statement.execute((1, &page)).map_err(self.failed("write"))?;
        }
        if batch.commit < before {
            let first = u64::from(batch.commit.get()) + 1;
            statement.execute((first.cast_signed(), Null)).map_err(self.failed("write"))?;
        }
        Ok(())
    }

    /// Copies what the WAL holds into the database, as far as readers let it.
    fn checkpoint(&mut self) -> Result<(), RestoreError> {
        // Whatever comes of it, it is tried again after as many pages.
        self.pages = 0;
        // It begins anew by itself only when no reader of it is left at the next write. Among readers that overlap there is always one: then all of it is copied, so that new
        // ones read the database alone, and those before are waited for.
        let is_long = self.wal_pages >= RESET_PAGES;
        let (sql, wait) = if is_long {
            ("PRAGMA file.wal_checkpoint(RESTART)", RESET_WAIT)
        } else {
            ("PRAGMA file.wal_checkpoint(PASSIVE)", Duration::ZERO)
        };
        self.connection().busy_timeout(wait).map_err(self.failed("lock"))?;
        let pages = self.connection().query_row(sql, [], |row| {
            let (busy, log): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(if is_long && busy == 0 { 0 } else { log })
        });
        match pages {
            Ok(pages) => self.wal_pages = usize::try_from(pages).unwrap_or(0),
            Err(error) if is_busy(&error) => {}
            Err(error) => return Err(failed("checkpoint", &self.path, error)),
        }
        Ok(())
    }

    /// Whether the path still names the file that is open.
    pub(super) fn has_moved(&self) -> Result<bool, RestoreError> {
        let mut moved: std::ffi::c_int = 0;
        // SAFETY: as in `keep_wal`.
        let code = unsafe {
            let operation = ffi::SQLITE_FCNTL_HAS_MOVED;
            ffi::sqlite3_file_control(self.connection().handle(), c"file".as_ptr(), operation, (&raw mut moved).cast())
        };
        let error = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        if code == ffi::SQLITE_OK { Ok(moved != 0) } else { Err(failed("look at", &self.path, error())) }
    }
}

/// The name under which a connection of [`attach`] has the database.
pub(crate) const SCHEMA: &str = "file";
/// Reads one page, by its number.
pub(crate) const READ_PAGE: &str = "SELECT data FROM sqlite_dbpage('file') WHERE pgno = ?1";
/// Writes one page, by its number and content; without content it and those behind it go. Page 1 comes last, for what SQLite looks up in it while it
/// writes the others is that of the state before; and after it only what cuts the file, for any page that is written later undoes that.
pub(crate) const WRITE_PAGE: &str = "INSERT INTO sqlite_dbpage(pgno, data, schema) VALUES (?1, ?2, 'file')";

/// A connection that has a database which exists by the name [`SCHEMA`], beside an empty one in memory.
///
/// Before a statement SQLite compares the cookie in page 1 of the database to which that belongs, and reads the schema again where it has changed: by way of what it has noted of
/// b-trees that were changed behind its back. `sqlite_dbpage` belongs to the database that is `main`: so pages are written into another.
pub(crate) fn attach(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(":memory:", flags)?;
    let name = path.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(path.to_owned()))?;
    connection.execute("ATTACH ?1 AS file", [name])?;
    // Nothing of its schema matters: what cannot be parsed is no error.
    connection.pragma_update(None, "writable_schema", "on")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

impl Drop for WalWriter {
    /// Leaves an empty WAL where readers let it: then the file alone is the database.
    fn drop(&mut self) {
        let _ = self.connection().busy_timeout(Duration::ZERO);
        let _ = self.connection().query_row("PRAGMA file.wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn failed(doing: &'static str, path: &Path, error: rusqlite::Error) -> RestoreError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => std::io::ErrorKind::StorageFull,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => std::io::ErrorKind::PermissionDenied,
        _ => std::io::ErrorKind::Other,
    };
    RestoreError::io(doing, path, std::io::Error::new(kind, error))
}
