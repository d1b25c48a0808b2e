//! The mount, with the real program and real SQLite connections of another process: this one.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, mknodat, open, statfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::program::{Folder, Outcome, Running, threads, wait_for, wait_until};

mod anew;
mod gate;
mod journals;
mod place;
mod restarted;

/// Longest life of a mount. After it every wait in the kernel ends with an error, and the test with it.
const LIFE: Duration = Duration::from_secs(110);

/// A mounted folder: `data` behind, `db` in front, `backup` as store.
pub(crate) struct Mount {
    program: Option<Running>,
    /// Dropped when the mount is not needed any more.
    _alive: Sender<()>,
    pub(crate) folder: Folder,
}

impl Drop for Mount {
    /// Also after a panic nothing of the mount is left, and nothing waits for it.
    fn drop(&mut self) {
        let at = self.folder.path("db");
        take_away(&at);
        drop(self.program.take());
        while unmount(&at, UnmountFlags::DETACH).is_ok() {}
    }
}

/// Ends the connection, which nobody may serve, and then the mount.
pub(crate) fn take_away(at: &Path) {
    let _ = unmount(at, UnmountFlags::FORCE | UnmountFlags::DETACH);
}

/// Takes a mount away that outlives its test. A database that is closed on the way out of a failed test may wait for it.
pub(crate) fn watch_over(at: PathBuf) -> Sender<()> {
    let (alive, is_alive) = mpsc::channel();
    std::thread::spawn(move || {
        if is_alive.recv_timeout(LIFE) == Err(RecvTimeoutError::Timeout) {
            take_away(&at);
        }
    });
    alive
}

/// Mounting failed for want of permission.
pub(crate) fn not_permitted(stderr: &str) -> bool {
    let stderr = stderr.to_lowercase();
    stderr.contains("mount at") && ["not permitted", "permission denied"].iter().any(|text| stderr.contains(text))
}

impl Mount {
    /// `None` where there is no FUSE, or where mounting is not allowed; `RHYOLITE_REQUIRE_FUSE` makes an error of that.
    pub(crate) fn new() -> Option<Self> {
        Self::within(Folder::new(), &[])
    }

    /// The same, with further arguments.
    fn with(more: &[&str]) -> Option<Self> {
        Self::within(Folder::new(), more)
    }

    /// The same in a folder that may be another user's.
    pub(crate) fn within(folder: Folder, more: &[&str]) -> Option<Self> {
        folder.make_folder("data");
        folder.make_folder("db");
        let mut mount = Self { program: None, _alive: watch_over(folder.path("db")), folder };
        let has_fuse = Path::new("/dev/fuse").exists();
        if let Err(text) = mount.start(more) {
            let may_skip = std::env::var_os("RHYOLITE_REQUIRE_FUSE").is_none() && (!has_fuse || not_permitted(&text));
            assert!(may_skip, "{text}");
            eprintln!("not tested, for want of FUSE: {text}");
            return None;
        }
        Some(mount)
    }

    fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let usual =
            ["mount", "data", "--at", "db", "--store", "./backup", "--sync-interval", "0", "--log-level", "warn"];
        [&usual[..], more].concat()
    }

    pub(crate) fn start(&mut self, more: &[&str]) -> Result<(), String> {
        // Dropped after the mount is taken away, whatever happens here.
        let program = self.program.insert(self.folder.start(&Self::arguments(more)));
        let mut has_ended = false;
        wait_for("the mount", || {
            has_ended = program.has_ended();
            has_ended || place::is_mounted(&self.folder)
        });
        if has_ended { Err(self.ended().stderr) } else { Ok(()) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path("db").join(name)
    }

    /// A connection in a journal mode, to a database whose first snapshot is in the store.
    pub(crate) fn open(&self, name: &str, mode: &str) -> Connection {
        let db = Connection::open(self.path(name)).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)").unwrap();
        self.folder.wait_durable(&format!("db/{name}"), 1);
        self.wait_captured(name);
        db
    }

    /// Waits until the end of the backup is the database.
    pub(crate) fn wait_captured(&self, name: &str) {
        wait_until("the backup to catch up", || {
            let restored = self.restore(name, &[])?;
            let logical = self.logical(name);
            let lengths = (restored.len(), logical.len());
            if restored == logical { Ok(()) } else { Err(format!("{name}: bytes restored and there: {lengths:?}")) }
        });
    }

    /// What readers see, as a file.
    fn logical(&self, name: &str) -> Vec<u8> {
        let image = self.folder.path("image.db");
        let _ = fs::remove_file(&image);
        for suffix in ["", "-wal"] {
            let from = self.folder.path("data").join(format!("{name}{suffix}"));
            if from.exists() {
                fs::copy(from, self.folder.path(&format!("image.db{suffix}"))).unwrap();
            }
        }
        // A copy of the WAL is recovered, and checkpointed when it is closed.
        let db = Connection::open(&image).unwrap();
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        db.close().unwrap();
        let bytes = fs::read(&image).unwrap();
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(self.folder.path(&format!("image.db{suffix}")));
        }
        bytes
    }

    pub(crate) fn restored(&self, name: &str, more: &[&str]) -> Option<Vec<u8>> {
        self.restore(name, more).ok()
    }

    fn restore(&self, name: &str, more: &[&str]) -> Result<Vec<u8>, String> {
        let _ = fs::remove_file(self.folder.path("copy.db"));
        let store = format!("./backup/{name}");
        let restored = self.folder.run(&[&["restore", &store, "-o", "copy.db"], more].concat());
        if restored.code == 0 {
            Ok(fs::read(self.folder.path("copy.db")).unwrap())
        } else {
            Err(format!("{restored:?}"))
        }
    }

    /// TXIDs of all restore points.
    pub(crate) fn points(&self, name: &str) -> Vec<u64> {
        let log = self.folder.run(&["log", &format!("./backup/{name}"), "--json"]);
        assert_eq!(log.code, 0, "{log:?}");
        let txid = |line| {
            let point: serde_json::Value = serde_json::from_str(line).unwrap();
            u64::from_str_radix(point["txid"].as_str().unwrap(), 16).unwrap()
        };
        log.stdout.lines().map(txid).collect()
    }

    /// Restores every point after `first` and compares what is in it with `rows`.
    fn check_rows(&self, name: &str, first: u64, rows: &[i64]) {
        for (txid, expected) in (first..).zip(rows) {
            self.restored(name, &["--txid", &txid.to_string()]).unwrap_or_else(|| panic!("{name}: no TXID {txid}"));
            let db = Connection::open(self.folder.path("copy.db")).unwrap();
            let found: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(found, *expected, "{name} at TXID {txid}");
        }
    }

    /// Waits for the end of the daemon. It is dropped after the mount is taken away, should the wait be in vain.
    fn ended(&mut self) -> Outcome {
        let program = self.program.as_mut().unwrap();
        let deadline = Instant::now() + Duration::from_secs(40);
        while !program.has_ended() {
            if Instant::now() > deadline {
                let doing = threads(program.id());
                take_away(&self.folder.path("db"));
                panic!("waited in vain for the daemon to end: {doing}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.program.take().unwrap().wait()
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Outcome {
        self.program.as_ref().unwrap().signal(signal);
        self.ended()
    }

    /// The process id of the daemon.
    pub(crate) fn id(&self) -> u32 {
        self.program.as_ref().unwrap().id()
    }

    pub(crate) fn stop(&mut self) {
        let ended = self.signal(Signal::TERM);
        assert_eq!(ended.code, 0, "{ended:?}");
        let (behind, front) = (self.folder.path("data"), self.folder.path("db"));
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        assert_eq!(device(&behind), device(&front), "unmounted");
    }
}

pub(crate) fn insert(db: &Connection, rows: std::ops::Range<i64>) {
    for row in rows {
        db.execute("INSERT INTO t(b) VALUES (hex(randomblob(?1)))", [40 + row % 7 * 300]).unwrap();
    }
}

#[test]
fn every_commit_in_every_journal_mode_is_a_restore_point() {
    let Some(mut mount) = Mount::new() else { return };
    for (mode, exclusive) in [
        ("wal", false),
        ("delete", false),
        ("truncate", false),
        ("persist", false),
        ("delete", true),
        ("persist", true),
    ] {
        let name = format!("{mode}{exclusive}.db");
        let db = mount.open(&name, mode);
        if exclusive {
            db.pragma_update(None, "locking_mode", "exclusive").unwrap();
        }
        let before = *mount.points(&name).last().unwrap();
        insert(&db, 0..25);
        mount.wait_captured(&name);
        let points = mount.points(&name);
        assert_eq!(points, (points[0]..=before + 25).collect::<Vec<_>>(), "{name}");
        mount.check_rows(&name, before, &(0..=25).collect::<Vec<_>>());
        db.close().unwrap();
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
    }
    mount.stop();
}

#[test]
fn what_a_database_may_go_through_in_rollback_mode() {
    let Some(mut mount) = Mount::new() else { return };
    let db = mount.open("a.db", "delete");
    db.execute_batch("PRAGMA cache_size = 5; PRAGMA auto_vacuum = 1; VACUUM").unwrap();
    insert(&db, 0..400);
    // Spilled, and taken back: free pages may hold other bytes.
    db.execute_batch("BEGIN; DELETE FROM t WHERE a % 3 = 0; UPDATE t SET b = hex(randomblob(900)); ROLLBACK").unwrap();
    db.execute_batch(
        "BEGIN; SAVEPOINT s; DELETE FROM t WHERE a > 300; ROLLBACK TO s; DELETE FROM t WHERE a < 100; COMMIT",
    )
    .unwrap();
    db.execute_batch("DELETE FROM t WHERE a % 2 = 0").unwrap();
    mount.wait_captured("a.db");
    db.execute_batch("VACUUM").unwrap();
    mount.wait_captured("a.db");
    // Into the WAL and back, and with other pages.
    for batch in ["PRAGMA journal_mode = truncate", "PRAGMA page_size = 1024; VACUUM"] {
        db.execute_batch(batch).unwrap();
        insert(&db, 0..10);
        mount.wait_captured("a.db");
    }
    // One transaction of many pages.
    db.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t(b) SELECT hex(randomblob(100)) FROM n",
    )
    .unwrap();
    mount.wait_captured("a.db");
    assert_eq!(mount.folder.run(&["verify", "./backup/a.db", "--every-point"]).code, 0);
    drop(db);
    mount.stop();
    assert_eq!(mount.restored("a.db", &[]).unwrap(), fs::read(mount.folder.path("data/a.db")).unwrap());
}

#[test]
fn how_far_the_log_has_come_is_said_in_files() {
    let Some(mut mount) = Mount::new() else { return };
    assert_eq!(fs::read_to_string(mount.path(".lag")).unwrap(), "+000000000\n");
    assert!(fs::read(mount.path("a.db-pos")).is_err(), "there is no such database");
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let db = mount.open(&name, mode);
        for _ in 0..3 {
            insert(&db, 0..1);
            mount.wait_captured(&name);
            let log = mount.folder.run(&["log", &format!("./backup/{name}"), "--json"]).stdout;
            let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
            let expected = format!("{}/{}\n", last["txid"].as_str().unwrap(), last["checksum"].as_str().unwrap());
            let pos = mount.path(&format!("{name}-pos"));
            assert_eq!(fs::read_to_string(&pos).unwrap(), expected);
            assert_eq!(fs::metadata(&pos).unwrap().len(), 34);
            assert_eq!(fs::write(&pos, "x").unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
        check_lock_file(&mount.path(&format!("{name}-lock")));
    }
    let names: Vec<_> = fs::read_dir(mount.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name != ".lag" && name != "wal.db-pos"), "{names:?}");
    // A file of that name is a file.
    fs::write(mount.path("b-pos"), "mine").unwrap();
    assert_eq!(fs::read_to_string(mount.path("b-pos")).unwrap(), "mine");
    mount.stop();
}

/// Two who lock byte 72, as LiteFS's libraries do, keep each other out.
fn check_lock_file(path: &Path) {
    let open = || fs::File::options().read(true).write(true).open(path).unwrap();
    let lock = |file: &fs::File| {
        // SAFETY: all zeros is a lock.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        (lock.l_type, lock.l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
        (lock.l_start, lock.l_len) = (72, 1);
        // SAFETY: the descriptor is open, and `lock` outlives the call.
        unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), libc::F_OFD_SETLK, &raw const lock) }
    };
    let (one, other) = (open(), open());
    assert_eq!((lock(&one), lock(&other)), (0, -1));
    drop(one);
    wait_for("the lock to be free", || lock(&other) == 0);
    assert_eq!(fs::read(path).unwrap(), b"");
}

/// No point in time lies between the members of one transaction over two databases.
#[test]
fn a_transaction_over_attached_databases_has_one_time() {
    let Some(mut mount) = Mount::new() else { return };
    for mode in ["delete", "truncate", "persist"] {
        let (one, two) = (format!("{mode}1.db"), format!("{mode}2.db"));
        let db = mount.open(&one, mode);
        drop(mount.open(&two, mode));
        db.execute("ATTACH ?1 AS other", [mount.path(&two).to_str().unwrap()]).unwrap();
        db.pragma_update(Some("other"), "journal_mode", mode).unwrap();
        for _ in 0..10 {
            db.execute_batch("BEGIN; INSERT INTO main.t(b) VALUES (1); INSERT INTO other.t(b) VALUES (1); COMMIT")
                .unwrap();
        }
        let times = |name: &str| {
            mount.wait_captured(name);
            let log = mount.folder.run(&["log", &format!("./backup/{name}"), "--json"]).stdout;
            let time = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["time"].to_string();
            let times: Vec<String> = log.lines().map(time).collect();
            times[times.len() - 10..].to_vec()
        };
        assert_eq!(times(&one), times(&two), "{mode}");
    }
    mount.stop();
}

/// A transaction that is too large to be told of is found by comparing all pages, and no commit that comes before that is done leads on from
/// what was recorded.
#[test]
fn small_commits_after_a_large_one_hide_nothing_of_it() {
    let Some(mut mount) = Mount::new() else { return };
    let db = mount.open("a.db", "delete");
    db.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t(b) SELECT zeroblob(3800) FROM n",
    )
    .unwrap();
    mount.wait_captured("a.db");
    for round in 0..2 {
        db.execute("UPDATE t SET b = CAST(?1 AS BLOB) || substr(b, 2)", [round]).unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            insert(&db, 0..1);
        }
    }
    drop(db);
    mount.stop();
    assert!(mount.restored("a.db", &[]).unwrap() == fs::read(mount.folder.path("data/a.db")).unwrap());
}

/// The commit that switches to WAL mode is captured like any other. What comes after it is in other files, and back in this one by a checkpoint.
#[test]
fn commits_after_a_switch_to_wal_mode_are_captured() {
    let Some(mut mount) = Mount::new() else { return };
    let modes =
        [("shared.db", "normal", "wal"), ("exclusive.db", "exclusive", "wal"), ("back.db", "exclusive", "delete")];
    for (name, locking, last) in modes {
        let db = mount.open(name, "delete");
        db.pragma_update(None, "locking_mode", locking).unwrap();
        for mode in ["wal", last] {
            let now: String = db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0)).unwrap();
            assert_eq!(now, mode, "{name}");
            insert(&db, 0..5);
        }
        if locking == "normal" {
            // Nothing writes to the database file meanwhile.
            mount.wait_captured(name);
        }
        db.close().unwrap();
    }
    mount.stop();
    for (name, ..) in modes {
        assert!(mount.restored(name, &[]).unwrap() == mount.logical(name), "{name}");
    }
}

/// Nobody else can read what is committed under a lock that is never given up. The daemon does not end as if it had.
#[test]
fn what_an_exclusive_lock_hides_is_not_taken_for_captured() {
    let Some(mut mount) = Mount::new() else { return };
    mount.stop();
    mount.start(&["--shutdown-sync-timeout", "1s"]).unwrap();
    let db = mount.open("a.db", "delete");
    db.pragma_update(None, "locking_mode", "exclusive").unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    insert(&db, 0..5);
    let ended = mount.signal(Signal::TERM);
    assert!(ended.code == 6 && ended.stderr.contains("a.db"), "{ended:?}");
}

/// What was committed before the daemon is told to end is in the store after it, also in files that are a moment old.
#[test]
fn what_is_made_or_made_anew_right_before_the_end_is_captured() {
    let Some(mut mount) = Mount::new() else { return };
    let make = |path: &Path, mode: &str| {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
        insert(&db, 0..3);
    };
    for (round, pause) in [0, 0, 40, 200].into_iter().enumerate() {
        let new = format!("new{round}.db");
        for (name, mode) in [("old.db", "delete"), ("oldwal.db", "wal"), (&new, "delete")] {
            let path = mount.path(name);
            if path.exists() {
                mount.wait_captured(name);
                for suffix in ["", "-wal", "-shm"] {
                    let _ = fs::remove_file(mount.path(&format!("{name}{suffix}")));
                }
                std::thread::sleep(Duration::from_millis(30));
            }
            make(&path, mode);
        }
        std::thread::sleep(Duration::from_millis(pause));
        mount.stop();
        for name in ["old.db", "oldwal.db", &new] {
            let restored = mount.restored(name, &[]);
            assert!(restored.is_some_and(|copy| copy == mount.logical(name)), "{name} after {pause} ms");
        }
        mount.start(&[]).unwrap();
    }
    mount.stop();
}

/// Two names of one file are two databases to whoever looks at names. Neither loses anything.
#[test]
fn a_file_with_two_names_is_captured_whole_under_both() {
    let Some(mut mount) = Mount::new() else { return };
    let db = mount.open("a.db", "persist");
    fs::hard_link(mount.path("a.db"), mount.path("b.db")).unwrap();
    wait_for("the other name", || mount.folder.path("backup/b.db/manifest.json").exists());
    insert(&db, 0..3000);
    mount.wait_captured("a.db");
    mount.wait_captured("b.db");
    drop(db);
    mount.stop();
    let image = fs::read(mount.folder.path("data/a.db")).unwrap();
    assert!(mount.restored("a.db", &[]).unwrap() == image && mount.restored("b.db", &[]).unwrap() == image);
}

/// What is made has the mode that its maker asked for, whatever the daemon's umask, and the group that its folder gives; holes are writes.
#[test]
fn modes_groups_and_holes() {
    let Some(mut mount) = Mount::new() else { return };
    let made = |name: &str| {
        let made = fs::metadata(mount.path(name)).unwrap();
        (made.mode() & 0o7777, made.gid())
    };
    let shell = |script: &str| {
        let status = std::process::Command::new("sh").args(["-c", script]).current_dir(mount.path("")).status();
        assert!(status.unwrap().success(), "{script}");
    };
    shell("umask 002; touch file; mkdir folder");
    assert_eq!((made("file").0, made("folder").0), (0o664, 0o775));
    if rustix::process::geteuid().is_root() {
        shell("mkdir shared; chgrp 1234 shared; chmod 2777 shared; touch shared/file; mkdir shared/folder");
        assert_eq!((made("shared/file").1, made("shared/folder").1), (1234, 1234));
        assert_eq!(made("shared/folder").0 & 0o2000, 0o2000);
        let set_ids = Mode::from_raw_mode(0o6755);
        drop(open(mount.path("opened"), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, set_ids).unwrap());
        mknodat(CWD, mount.path("made"), FileType::RegularFile, set_ids, 0).unwrap();
        assert_eq!((made("opened").0, made("made").0), (0o6755, 0o6755));
    }
    let db = mount.open("a.db", "delete");
    insert(&db, 0..50);
    mount.wait_captured("a.db");
    let file = fs::File::options().write(true).open(mount.path("a.db")).unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&file, hole, 4096, 4096).err(), Some(Errno::IO));
    drop(file);
    insert(&db, 0..1);
    mount.wait_captured("a.db");
    drop(db);
    mount.stop();
}

/// SQLite follows two hundred links before it gives up, and needs much stack for that.
#[test]
fn a_circle_of_links_in_the_place_of_a_database_ends_nothing() {
    let Some(mut mount) = Mount::new() else { return };
    drop(mount.open("a.db", "delete"));
    fs::remove_file(mount.path("a.db")).unwrap();
    symlink("b.db", mount.path("a.db")).unwrap();
    symlink("a.db", mount.path("b.db")).unwrap();
    let other = mount.open("c.db", "delete");
    insert(&other, 0..5);
    mount.wait_captured("c.db");
    drop(other);
    mount.stop();
}

/// The daemon is perhaps root, and others may write in the folder: they cannot make it write, or read, elsewhere.
#[test]
fn nobody_puts_something_else_in_the_place_of_what_the_daemon_uses() {
    let Some(mut mount) = Mount::new() else { return };
    fs::create_dir(mount.path("sub")).unwrap();
    drop(mount.open("a.db", "delete"));
    let elsewhere = mount.folder.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, mount.path("link")).unwrap();
    let state = mount.path(".a.db-rhyolite");
    assert!(state.is_dir(), "it may be looked at, as `status` does");
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    let swapped = rustix::fs::renameat_with(CWD, &state, CWD, mount.path("link"), exchange);
    assert_eq!(swapped.err(), Some(Errno::ACCESS));
    let denied = |done: std::io::Result<()>| assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::EACCES));
    denied(fs::rename(&state, mount.path("x")));
    denied(fs::remove_file(state.join("lock")));
    denied(fs::write(state.join("lock"), "x"));
    denied(fs::write(state.join("new"), "x"));
    denied(fs::remove_dir(&state));
    denied(fs::hard_link(state.join("lock"), mount.path("x")));
    denied(fs::set_permissions(state.join("lock"), std::os::unix::fs::PermissionsExt::from_mode(0o777)));
    // A folder that becomes a link to one outside.
    let outside = elsewhere.join("b.db");
    Connection::open(&outside).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
    Connection::open(mount.path("sub/b.db")).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
    wait_for("sub/b.db", || mount.folder.path("backup/sub/b.db/manifest.json").exists());
    fs::rename(mount.path("sub"), mount.path("away")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, mount.path("sub")).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    mount.stop();
    let names: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b.db"], "nothing was put beside it");
}

/// A writer of its own, which can be killed in the middle of a transaction.
fn writer(path: &Path, mode: &str) -> std::process::Child {
    let script = "
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
c.execute('pragma journal_mode=' + sys.argv[2])
c.execute('pragma cache_size=5')
n = 0
while True:
    c.execute('begin')
    for _ in range(n % 40):
        c.execute('insert into t(b) values(hex(randomblob(300)))')
    if n % 5 == 0: c.execute('delete from t where a % 7 = 0')
    c.execute('rollback' if n % 11 == 3 else 'commit')
    n += 1
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).arg(mode).stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn killed_writers_leave_hot_journals_that_are_played_back_and_captured() {
    let Some(mut mount) = Mount::new() else { return };
    for mode in ["delete", "truncate", "persist", "wal"] {
        let name = format!("{mode}.db");
        drop(mount.open(&name, mode));
        for round in 0..6 {
            let mut child = writer(&mount.path(&name), mode);
            std::thread::sleep(Duration::from_millis(150 + 37 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            let db = Connection::open(mount.path(&name)).unwrap();
            db.busy_timeout(Duration::from_secs(20)).unwrap();
            let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
            insert(&db, 0..1);
            mount.wait_captured(&name);
        }
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
    }
    mount.stop();
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_takes_its_mount_away_and_goes_on() {
    let Some(mut mount) = Mount::new() else { return };
    let modes = ["wal", "delete"];
    modes.iter().for_each(|mode| drop(mount.open(&format!("{mode}.db"), mode)));
    for round in 0..4 {
        let mut writers: Vec<_> = modes.iter().map(|mode| writer(&mount.path(&format!("{mode}.db")), mode)).collect();
        let survivor = Connection::open(mount.path("wal.db")).unwrap();
        survivor.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        std::thread::sleep(Duration::from_millis(300 + 100 * round));
        let killed = mount.signal(Signal::KILL);
        // Attributes may still be known to the kernel; this is asked each time.
        assert_eq!(statfs(mount.folder.path("db")).err(), Some(Errno::NOTCONN), "a dead mount");
        for writer in &mut writers {
            let _ = writer.kill();
            writer.wait().unwrap();
        }
        if !killed.stderr.contains("the kernel does not pass") {
            let refused = mount.start(&[]).unwrap_err();
            assert!(refused.contains("is in use: stop the processes"), "{refused}");
        }
        drop(survivor);
        mount.start(&[]).unwrap();
        for mode in modes {
            let name = format!("{mode}.db");
            let db = Connection::open(mount.path(&name)).unwrap();
            db.busy_timeout(Duration::from_secs(20)).unwrap();
            let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
            insert(&db, 0..1);
            mount.wait_captured(&name);
        }
    }
    mount.stop();
}

#[test]
fn a_file_is_imported_into_a_database_in_use() {
    let Some(mut mount) = Mount::new() else { return };
    let source = mount.folder.database("new.db");
    source.execute_batch("CREATE TABLE u(a); INSERT INTO u VALUES (7), (8)").unwrap();
    drop(source);
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let db = mount.open(&name, mode);
        insert(&db, 0..50);
        mount.wait_captured(&name);
        if mode == "delete" {
            let refused = mount.folder.run(&["import", "new.db", "--into", &format!("db/{name}")]);
            assert!(refused.code == 1 && refused.stderr.contains("journal_mode = DELETE there first"), "{refused:?}");
            let source = Connection::open(mount.folder.path("new.db")).unwrap();
            source.pragma_update(None, "journal_mode", "delete").unwrap();
        }
        let points = mount.points(&name).len();
        let done = mount.folder.run(&["import", "new.db", "--into", &format!("db/{name}"), "--json"]);
        assert_eq!((done.code, done.json()["database"].as_str()), (0, Some(&*format!("db/{name}"))), "{done:?}");
        let sum: i64 = db.query_row("SELECT sum(a) FROM u", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 15);
        let kept: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, mode);
        mount.wait_captured(&name);
        assert_eq!(mount.points(&name).len(), points + 1, "one transaction");
    }
    mount.folder.write("text", "this is no database, whatever it is called, and not even long");
    for (source, code) in [("text", 3), ("missing.db", 1)] {
        assert_eq!(mount.folder.run(&["import", source, "--into", "db/wal.db"]).code, code, "{source}");
    }
    let db = Connection::open(mount.path("wal.db")).unwrap();
    assert_eq!(db.query_row("SELECT sum(a) FROM u", [], |row| row.get::<_, i64>(0)).unwrap(), 15, "as it was");
    drop(db);
    mount.stop();
}

/// What is called like a journal need not be one: nothing is waited for, and no link is followed, least of all back into the mount.
#[test]
fn whatever_is_called_like_a_journal_is_removed_at_once() {
    let Some(mut mount) = Mount::new() else { return };
    drop(mount.open("a.db", "delete"));
    // As if a transaction over several databases had just ended.
    fs::write(mount.path("x-mj0A1B2C9FF"), "").unwrap();
    fs::remove_file(mount.path("x-mj0A1B2C9FF")).unwrap();
    for command in ["mkfifo a.db-journal", "ln -s ./uncached a.db-journal", "ln -s a.db-journal a.db-journal"] {
        let script = format!("{command} && rm a.db-journal");
        let mut child = Command::new("sh").args(["-c", &script]).current_dir(mount.path("")).spawn().unwrap();
        wait_for(command, || child.try_wait().unwrap().is_some_and(|status| status.success()));
    }
    mount.stop();
}

/// Commits that nobody had recorded when the daemon was killed are restore points, and so are those made right after it is back.
#[test]
fn a_kill_of_the_daemon_folds_no_commits() {
    let Some(mut mount) = Mount::new() else { return };
    for mode in ["delete", "persist"] {
        let name = format!("{mode}.db");
        let mut db = mount.open(&name, mode);
        let first = *mount.points(&name).last().unwrap();
        for _ in 0..3 {
            let daemon = mount.program.as_ref().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(60));
                    daemon.signal(Signal::KILL);
                });
                while db.execute("INSERT INTO t(b) VALUES (1)", []).is_ok() {}
            });
            drop(db);
            mount.ended();
            mount.start(&[]).unwrap();
            db = Connection::open(mount.path(&name)).unwrap();
            db.busy_timeout(Duration::from_secs(20)).unwrap();
            db.pragma_update(None, "journal_mode", mode).unwrap();
            for _ in 0..5 {
                db.execute("INSERT INTO t(b) VALUES (2)", []).unwrap();
            }
        }
        mount.wait_captured(&name);
        let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        mount.check_rows(&name, first, &(0..=rows).collect::<Vec<_>>());
    }
    mount.stop();
}

#[test]
fn everything_else_works_as_in_a_folder() {
    let Some(mut mount) = Mount::new() else { return };
    let drop_in = mount.open("a.db", "wal");
    fs::create_dir_all(mount.path("x/y")).unwrap();
    fs::write(mount.path("x/y/file"), b"hello").unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(mount.path("x/y/file")).unwrap();
    file.write_all(b" world").unwrap();
    file.set_len(7).unwrap();
    drop(file);
    assert_eq!(fs::read(mount.folder.path("data/x/y/file")).unwrap(), b"hello w");
    fs::set_permissions(mount.path("x/y/file"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(mount.folder.path("data/x/y/file")).unwrap().mode() & 0o777, 0o640);
    symlink("y/file", mount.path("x/link")).unwrap();
    assert_eq!(fs::read_link(mount.path("x/link")).unwrap(), Path::new("y/file"));
    assert_eq!(fs::read(mount.path("x/link")).unwrap(), b"hello w");
    fs::hard_link(mount.path("x/y/file"), mount.path("x/hard")).unwrap();
    assert_eq!(fs::metadata(mount.path("x/hard")).unwrap().nlink(), 2);
    let inode = fs::metadata(mount.path("x/hard")).unwrap().ino();
    fs::rename(mount.path("x/hard"), mount.path("x/y/moved")).unwrap();
    assert_eq!(fs::metadata(mount.path("x/y/moved")).unwrap().ino(), inode);
    // An open file outlives its name.
    let mut open = fs::File::open(mount.path("x/y/moved")).unwrap();
    fs::remove_file(mount.path("x/y/moved")).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello w");
    assert_eq!(fs::remove_dir(mount.path("x")).unwrap_err().raw_os_error(), Some(39), "not empty");
    let mut names: Vec<_> =
        fs::read_dir(mount.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a.db", "a.db-shm", "a.db-wal", "x"], "state folders are not listed");
    assert!(mount.folder.path("data/.a.db-rhyolite").is_dir());
    assert_eq!(fs::create_dir(mount.path(".b.db-rhyolite")).unwrap_err().raw_os_error(), Some(13));
    // A database in a folder, one that moves, and one that goes.
    let inner = mount.open("x/inner.db", "delete");
    insert(&inner, 0..3);
    mount.wait_captured("x/inner.db");
    drop((inner, drop_in));
    mount.stop();
}

#[test]
fn the_application_is_started_in_the_mount_and_its_status_passed_on() {
    let Some(mut mount) = Mount::new() else { return };
    mount.stop();
    let script = "import sqlite3; c = sqlite3.connect('db/app.db'); c.execute('create table t(a)'); c.execute('insert into t values (7)'); c.commit()";
    mount.folder.write("app.py", format!("{script}\nimport sys; sys.exit(7)"));
    let ended = mount.folder.run(&Mount::arguments(&["--exec", "python3 app.py"]));
    assert_eq!(ended.code, 7, "{ended:?}");
    mount.restored("app.db", &[]).unwrap();
    let db = Connection::open(mount.folder.path("copy.db")).unwrap();
    assert_eq!(db.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    for (arguments, text) in [
        (["mount", "data", "--at", "data", "--store", "./backup"], "must not lie within each other"),
        (["mount", "no", "--at", "db", "--store", "./backup"], "no:"),
        (["mount", "data", "--at", "no", "--store", "./backup"], "no:"),
    ] {
        let refused = mount.folder.run(&arguments);
        assert_eq!((refused.code, refused.stderr.contains(text)), (1, true), "{refused:?}");
    }
}
