//! The VFS of connections to the user's database: SQLite's own, but it plays no rollback journal back and deletes nothing.
//!
//! SQLite finds a journal by its name. A connection that still holds a file which was removed or replaced would take the live
//! journal of the new database for a hot one, since nobody has locked the *old* file: it would play it back into the old
//! file and delete it, and the application's commit would fail with an I/O error, or lose its way back. No look before can
//! exclude that; not being able to does.
//!
//! A hot journal is therefore left to the application: its next connection rolls back what a dead writer began. Until then
//! begin of a read transaction fails with `SQLITE_READONLY_ROLLBACK`, as for any connection that may not write.
//!
//! Where nobody else can do it, on a mount right after its start, a second VFS plays journals back, but only that of the file that is open: after it has
//! opened a journal it looks whether that file still has its name. The journal that was found before that belonged to it then. It looks again before it
//! deletes the journal; between that look and the deletion the handler of the mount looks once more ([`is_rolled_back`]), while nothing in the folder can change.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use rusqlite::ffi;

const NAME: &CStr = c"rhyolite-guard";
const ROLLBACK_NAME: &CStr = c"rhyolite-rollback";

/// Inodes of the databases that this process is rolling back.
static ROLLED_BACK: Mutex<Vec<u64>> = Mutex::new(Vec::new());

thread_local! {
    /// The database file of the journal that this thread has opened to play it back.
    static DATABASE: Cell<*mut ffi::sqlite3_file> = const { Cell::new(ptr::null_mut()) };
}

/// A database is being rolled back for as long as this lives.
#[derive(Debug)]
pub(super) struct RollingBack(u64);

impl RollingBack {
    /// The file with this inode.
    pub(super) fn new(inode: u64) -> Self {
        ROLLED_BACK.lock().unwrap_or_else(PoisonError::into_inner).push(inode);
        DATABASE.set(ptr::null_mut());
        Self(inode)
    }
}

impl Drop for RollingBack {
    fn drop(&mut self) {
        DATABASE.set(ptr::null_mut());
        let mut all = ROLLED_BACK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.iter().position(|inode| *inode == self.0) {
            all.swap_remove(place);
        }
    }
}

/// Whether this process rolls back any database.
pub(crate) fn rolls_back_any() -> bool {
    !ROLLED_BACK.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// Whether this process rolls back the database with this inode, and may delete its journal.
pub(crate) fn is_rolled_back(inode: u64) -> bool {
    ROLLED_BACK.lock().unwrap_or_else(PoisonError::into_inner).contains(&inode)
}

/// SQLite's default VFS, and that it was found.
struct Underlying(*mut ffi::sqlite3_vfs);

// SAFETY: the default VFS is a static of SQLite's that is not changed after the library was initialised.
unsafe impl Send for Underlying {}
// SAFETY: as above.
unsafe impl Sync for Underlying {}

static UNDERLYING: OnceLock<Underlying> = OnceLock::new();

/// The name under which the VFS is registered with SQLite.
pub(super) fn name() -> &'static CStr {
    UNDERLYING.get_or_init(register);
    NAME
}

/// The name of the VFS that plays journals back. Used within the life of a [`RollingBack`], on its thread.
pub(super) fn rollback_name() -> &'static CStr {
    UNDERLYING.get_or_init(register);
    ROLLBACK_NAME
}

fn register() -> Underlying {
    // SAFETY: a null name asks for the default VFS, which stays registered for the life of the process.
    let underlying = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
    assert!(!underlying.is_null(), "SQLite has a default VFS");
    // SAFETY: a plain C structure of numbers and pointers; a copy works like the original, as its functions find what they need
    // through `pAppData`.
    let mut guard = unsafe { std::ptr::read(underlying) };
    guard.pNext = std::ptr::null_mut();
    guard.zName = NAME.as_ptr();
    guard.xOpen = Some(open);
    guard.xDelete = Some(refuse_delete);
    let mut rollback = guard;
    rollback.zName = ROLLBACK_NAME.as_ptr();
    rollback.xOpen = Some(open_own);
    rollback.xDelete = Some(delete_own);
    for vfs in [guard, rollback] {
        // SAFETY: the structure lives for ever, as SQLite asks for; it does not become the default.
        let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0) };
        assert_eq!(code, ffi::SQLITE_OK, "a VFS can be registered");
    }
    Underlying(underlying)
}

/// Whether the file has lost its name; also when it cannot say so.
///
/// # Safety
/// The file is open.
unsafe fn has_moved(file: *mut ffi::sqlite3_file) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: the file is open, and this operation takes an int.
    let code = unsafe {
        let control = (*(*file).pMethods).xFileControl.expect("every VFS file has controls");
        control(file, ffi::SQLITE_FCNTL_HAS_MOVED, (&raw mut moved).cast())
    };
    code != ffi::SQLITE_OK || moved != 0
}

/// Opens a file; a rollback journal only when it is that of the database that is open.
unsafe extern "C" fn open_own(
    vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this only for the VFS that `register` has made, which was a copy of this one; it has `xOpen`.
    let open = unsafe { (*UNDERLYING.get().expect("registered").0).xOpen.expect("every VFS opens files") };
    // SAFETY: the arguments are SQLite's own.
    let code = unsafe { open(vfs, path, file, flags, out_flags) };
    if code != ffi::SQLITE_OK || flags & ffi::SQLITE_OPEN_MAIN_JOURNAL == 0 {
        return code;
    }
    // SAFETY: `path` is the name of a rollback journal as SQLite has passed it to `xOpen`, for which this function is made.
    let database = unsafe { ffi::sqlite3_database_file_object(path) };
    // SAFETY: SQLite has opened the database before its journal, and has it open for as long.
    if !unsafe { has_moved(database) } {
        DATABASE.set(database);
        return ffi::SQLITE_OK;
    }
    // SAFETY: the file is open; SQLite does not close a file whose opening failed.
    unsafe {
        let close = (*(*file).pMethods).xClose.expect("every VFS file closes");
        close(file);
        (*file).pMethods = ptr::null();
    }
    ffi::SQLITE_READONLY_ROLLBACK
}

/// Deletes what belongs to the database that is being rolled back, as long as that has its name.
unsafe extern "C" fn delete_own(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, sync: c_int) -> c_int {
    let database = DATABASE.get();
    // SAFETY: the connection that has opened this file is the one that deletes, on this thread; it is closed before the pointer is used by another.
    if database.is_null() || unsafe { has_moved(database) } {
        return ffi::SQLITE_IOERR_DELETE;
    }
    // SAFETY: the arguments are SQLite's own; the VFS was a copy of this one, and has `xDelete`.
    unsafe {
        let delete = (*UNDERLYING.get().expect("registered").0).xDelete.expect("every VFS deletes files");
        delete(vfs, path, sync)
    }
}

/// Opens a file, unless it is a rollback journal with something to play back.
unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this only for the VFS that `register` has made, which was a copy of this one; it has `xOpen`.
    let open = unsafe { (*UNDERLYING.get().expect("registered").0).xOpen.expect("every VFS opens files") };
    if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL == 0 {
        // SAFETY: the arguments are SQLite's own.
        return unsafe { open(vfs, path, file, flags, out_flags) };
    }
    // SAFETY: SQLite reserves `szOsFile` bytes at `file`; without methods it counts as not open.
    unsafe { (*file).pMethods = std::ptr::null() };
    if flags & ffi::SQLITE_OPEN_READONLY == 0 {
        return ffi::SQLITE_READONLY_ROLLBACK;
    }
    // Opened to look whether it is hot: its first byte is zero, or missing, when it is not.
    // SAFETY: the arguments are SQLite's own.
    let code = unsafe { open(vfs, path, file, flags, out_flags) };
    if code != ffi::SQLITE_OK {
        // Gone, most likely, since SQLite has seen its name. Told so, SQLite would lock the whole database to make sure.
        return if code & 0xff == ffi::SQLITE_CANTOPEN { ffi::SQLITE_READONLY_ROLLBACK } else { code };
    }
    let mut first = 0u8;
    // SAFETY: the file was opened just now; the buffer has the one byte that is asked for.
    let code = unsafe {
        let methods = (*file).pMethods;
        let read = (*methods).xRead.expect("every VFS file reads");
        read(file, (&raw mut first).cast(), 1, 0)
    };
    if matches!(code, ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ) && first == 0 {
        return ffi::SQLITE_OK;
    }
    // SAFETY: the file is open; SQLite does not close a file whose opening failed.
    unsafe {
        let close = (*(*file).pMethods).xClose.expect("every VFS file closes");
        close(file);
        (*file).pMethods = std::ptr::null();
    }
    ffi::SQLITE_READONLY_ROLLBACK
}

/// Nothing beside the user's database is ours to delete.
unsafe extern "C" fn refuse_delete(_: *mut ffi::sqlite3_vfs, _: *const c_char, _: c_int) -> c_int {
    ffi::SQLITE_IOERR_DELETE
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::Connection;

    use crate::capture::handle::{Handle, HandleError};

    /// A transaction that has spilled pages into the file, so that its journal is needed.
    fn begin_large_transaction(app: &Connection) {
        app.execute_batch(
            "PRAGMA cache_size = 5; BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             INSERT INTO t SELECT i, randomblob(900) FROM n",
        )
        .unwrap();
    }

    #[test]
    fn a_handle_on_a_removed_file_leaves_the_journal_of_the_new_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let create = "CREATE TABLE t (a INTEGER PRIMARY KEY, b)";
        Connection::open(&path).unwrap().execute_batch(create).unwrap();
        let handle = Handle::open(&path, Duration::from_millis(50)).unwrap();
        let kept = folder.path().join("kept");
        std::fs::hard_link(&path, &kept).unwrap();
        let before = std::fs::read(&kept).unwrap();

        std::fs::remove_file(&path).unwrap();
        let app = Connection::open(&path).unwrap();
        app.execute_batch(create).unwrap();
        begin_large_transaction(&app);
        let begun = handle.begin_read();
        assert!(matches!(begun, Err(HandleError::HotJournal)), "{begun:?}");
        app.execute_batch("ROLLBACK").expect("the journal is still there");
        assert_eq!(std::fs::read(&kept).unwrap(), before, "nothing was played back into the old file");
        let rows: i64 = app.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 0);
    }

    /// What a writer that dies in the middle of a transaction leaves at `path`.
    fn leave_hot(folder: &std::path::Path, path: &std::path::Path) {
        let app = Connection::open(folder.join("live.db")).unwrap();
        app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, 0)").unwrap();
        begin_large_transaction(&app);
        for suffix in ["", "-journal"] {
            std::fs::copy(folder.join(format!("live.db{suffix}")), format!("{}{suffix}", path.display())).unwrap();
        }
        app.execute_batch("ROLLBACK").unwrap();
    }

    #[test]
    fn what_is_rolled_back_is_the_file_that_has_the_name() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        leave_hot(folder.path(), &path);
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert!(!super::is_rolled_back(inode));
        Handle::roll_back(&path, inode, Duration::from_millis(50)).unwrap();
        assert!(!folder.path().join("app.db-journal").exists());
        let rows: i64 = Connection::open(&path).unwrap().query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    /// The journal of the new database is not that of the old one, which some connection of ours still holds.
    #[test]
    fn the_live_journal_of_another_database_is_not_played_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let create = "CREATE TABLE t (a INTEGER PRIMARY KEY, b)";
        Connection::open(&path).unwrap().execute_batch(create).unwrap();
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        let old = Connection::open_with_flags_and_vfs(&path, flags, super::rollback_name()).unwrap();
        let kept = folder.path().join("kept");
        std::fs::rename(&path, &kept).unwrap();
        let before = std::fs::read(&kept).unwrap();
        let app = Connection::open(&path).unwrap();
        app.execute_batch(create).unwrap();
        begin_large_transaction(&app);
        let _rolling = super::RollingBack::new(0);
        let read = old.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0));
        assert!(read.is_err(), "{read:?}");
        app.execute_batch("ROLLBACK").expect("the journal is still there");
        assert_eq!(std::fs::read(&kept).unwrap(), before, "nothing was played back into the old file");
    }

    #[test]
    fn a_hot_journal_is_left_to_the_application() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        leave_hot(folder.path(), &path);
        let bytes = || (std::fs::read(&path).unwrap(), std::fs::read(folder.path().join("app.db-journal")).unwrap());
        let before = bytes();
        let open = || Handle::open(&path, Duration::from_millis(50));
        assert!(matches!(open(), Err(HandleError::HotJournal)));
        assert!(bytes() == before, "neither file was touched");
        let next = Connection::open(&path).unwrap();
        let rows: i64 = next.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 1, "the application's next connection has rolled back");
        open().and_then(|handle| handle.begin_read()).expect("nothing is hot any more");
    }
}
