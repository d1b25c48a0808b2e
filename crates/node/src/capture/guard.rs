//! The VFS of connections to the user's database: SQLite's own, but it plays no rollback journal back and deletes nothing.
//!
//! SQLite finds a journal by its name. A connection that still holds a file which was removed or replaced would take the live
//! journal of the new database for a hot one, since nobody has locked the *old* file: it would play it back into the old
//! file and delete it, and the application's commit would fail with an I/O error, or lose its way back. No look before can
//! exclude that; not being able to does.
//!
//! A hot journal is therefore left to the application: its next connection rolls back what a dead writer began. Until then
//! begin of a read transaction fails with `SQLITE_READONLY_ROLLBACK`, as for any connection that may not write.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use rusqlite::ffi;

const NAME: &CStr = c"rhyolite-guard";

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
    // SAFETY: the structure lives for ever, as SQLite asks for; it does not become the default.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(guard)), 0) };
    assert_eq!(code, ffi::SQLITE_OK, "a VFS can be registered");
    Underlying(underlying)
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

    #[test]
    fn a_hot_journal_is_left_to_the_application() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let app = Connection::open(folder.path().join("live.db")).unwrap();
        app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, 0)").unwrap();
        begin_large_transaction(&app);
        // What a writer that dies right here leaves behind.
        for suffix in ["", "-journal"] {
            std::fs::copy(folder.path().join(format!("live.db{suffix}")), format!("{}{suffix}", path.display()))
                .unwrap();
        }
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
