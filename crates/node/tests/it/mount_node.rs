//! Nodes of a cluster whose folders are mounted: readers and writers use the mounts, in every role.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rhyolite_format::follow::PageOneFields;
use rusqlite::{Connection, ErrorCode};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::cluster::{Cluster, rows};
use crate::mount::{not_permitted, take_away, watch_over};
use crate::program::wait_for;

/// Databases in each journal mode that matters.
const MODES: [&str; 2] = ["wal", "delete"];

/// A cluster of which each node has a mount.
pub(crate) struct Mounts {
    pub(crate) cluster: Cluster,
    /// Dropped when the mounts are not needed any more.
    alive: Vec<(PathBuf, Sender<()>)>,
}

impl Drop for Mounts {
    /// Also after a panic nothing of the mounts is left, and nothing waits for them.
    fn drop(&mut self) {
        self.alive.iter().for_each(|(at, _)| take_away(at));
        self.cluster.running.clear();
        for (at, _) in &self.alive {
            while unmount(at, UnmountFlags::DETACH).is_ok() {}
        }
    }
}

impl Mounts {
    pub(crate) fn new() -> Self {
        let mut cluster = Cluster::new();
        cluster.is_mounted = true;
        Self { cluster, alive: Vec::new() }
    }

    /// Starts a node, with the application or without. `false` where there is no FUSE, or where mounting is not allowed; `RHYOLITE_REQUIRE_FUSE`
    /// makes an error of that.
    fn start(&mut self, name: &'static str, has_application: bool) -> bool {
        self.start_with(name, has_application, &[])
    }

    /// The same, with more flags.
    pub(crate) fn start_with(&mut self, name: &'static str, has_application: bool, more: &[&str]) -> bool {
        let at = self.cluster.folder.path(&self.cluster.front(name));
        if !self.alive.iter().any(|(there, _)| *there == at) {
            fs::create_dir(&at).unwrap();
            self.alive.push((at.clone(), watch_over(at)));
        }
        match has_application {
            true => self.cluster.start_application(name, more),
            false => self.cluster.start_with(name, more),
        }
        let program = self.cluster.running.get_mut(name).unwrap();
        let mut has_ended = false;
        let socket = self.cluster.folder.path(&format!("{name}.sock"));
        wait_for("the node to be there", || {
            has_ended = program.has_ended();
            has_ended || std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        if !has_ended {
            return true;
        }
        let text = self.cluster.running.remove(name).unwrap().wait().stderr;
        let may_skip = !Path::new("/dev/fuse").exists() || not_permitted(&text);
        assert!(may_skip && std::env::var_os("RHYOLITE_REQUIRE_FUSE").is_none(), "{text}");
        eprintln!("not tested, for want of FUSE: {text}");
        false
    }

    pub(crate) fn path(&self, name: &str, database: &str) -> PathBuf {
        self.cluster.folder.path(&self.cluster.front(name)).join(database)
    }

    fn handoff(&self, from: &str, to: &str) {
        let address = self.cluster.addresses[to].clone();
        let handed =
            self.cluster.folder.run(&["ctl", "handoff", "--socket", &format!("{from}.sock"), "--to", &address]);
        assert_eq!(handed.code, 0, "{handed:?}");
        self.cluster.wait_role(to, "primary");
        self.cluster.wait_role(from, "replica");
    }

    /// Stops a node without an application, or a replica.
    pub(crate) fn stop(&mut self, name: &'static str) {
        self.cluster.stop_well(name);
        assert!(!self.path(name, "app.db").exists(), "unmounted");
    }

    /// Stops a primary with its application, and has what that may have left in the WAL, committed and never told, taken into the history.
    fn settle(&mut self, name: &'static str) {
        self.cluster.stop_primary(name);
        assert!(self.start(name, false));
        self.cluster.wait_role(name, "primary");
        self.cluster.wait_durable(name);
        self.stop(name);
    }

    /// What lies behind a mount when nobody uses it: the file with what its WAL holds.
    fn behind(&self, name: &str, database: &str) -> Vec<u8> {
        let image = self.cluster.folder.path("image.db");
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(self.cluster.folder.path(&format!("image.db{suffix}")));
        }
        // An application that was ended in the middle of a transaction leaves a journal.
        for suffix in ["", "-wal", "-journal"] {
            let from = self.cluster.folder.path(name).join(format!("{database}{suffix}"));
            if from.exists() {
                fs::copy(from, self.cluster.folder.path(&format!("image.db{suffix}"))).unwrap();
            }
        }
        let db = Connection::open(&image).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "{database} of {name}");
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        db.close().unwrap();
        fs::read(&image).unwrap()
    }

    /// The end of a database's history in the store.
    fn last_txid(&self, database: &str) -> u64 {
        let log = self.cluster.folder.run(&["log", &format!("store/{database}"), "--json"]);
        assert_eq!(log.code, 0, "{log:?}");
        let point: serde_json::Value = serde_json::from_str(log.stdout.lines().last().unwrap()).unwrap();
        u64::from_str_radix(point["txid"].as_str().unwrap(), 16).unwrap()
    }

    /// The files of these nodes, which have ended, are what the store has, but for bytes of the first page that a follower has otherwise.
    pub(crate) fn check_equal(&self, names: &[&str], database: &str) {
        let outcome = self.cluster.folder.run(&["restore", &format!("store/{database}"), "-o", "stored.db", "--force"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let stored = fs::read(self.cluster.folder.path("stored.db")).unwrap();
        for name in names {
            let mut bytes = self.behind(name, database);
            assert_eq!(bytes.len(), stored.len(), "{database} of {name}");
            PageOneFields::of(&stored).put(&mut bytes);
            let pages = bytes.chunks(4096).zip(stored.chunks(4096)).enumerate();
            let differ: Vec<usize> = pages.filter(|(_, (a, b))| a != b).map(|(index, _)| index + 1).collect();
            assert!(differ.is_empty(), "pages {differ:?} of {database} of {name}");
        }
        let outcome = self.cluster.folder.run(&["verify", &format!("store/{database}")]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
}

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    db
}

fn make(path: &Path, mode: &str) -> Connection {
    let db = open(path);
    db.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).unwrap();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, n INTEGER UNIQUE, b BLOB)").unwrap();
    db
}

fn insert(db: &Connection, number: i64) -> rusqlite::Result<()> {
    db.execute("INSERT INTO t(n, b) VALUES (?1, randomblob(?2))", [number, 40 + number % 9 * 500]).map(drop)
}

fn last(db: &Connection) -> i64 {
    db.query_row("SELECT coalesce(max(n), 0) FROM t", [], |row| row.get(0)).unwrap_or(-1)
}

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn readers_on_a_replica_see_each_commit_and_nobody_writes_there() {
    let mut mounts = Mounts::new();
    if !mounts.start("a", false) {
        return;
    }
    mounts.cluster.wait_role("a", "primary");
    let writers = MODES.map(|mode| make(&mounts.path("a", &format!("{mode}.db")), mode));
    writers.iter().for_each(|db| insert(db, 1).unwrap());
    assert!(mounts.start("b", false));
    mounts.cluster.wait_role("b", "replica");
    let path = |mode: &str| mounts.path("b", &format!("{mode}.db"));
    wait_for("the databases", || MODES.iter().all(|mode| path(mode).exists()));
    // They stay open for the whole of it.
    let readers = MODES.map(|mode| open(&path(mode)));
    for number in 2..60 {
        writers.iter().for_each(|db| insert(db, number).unwrap());
        if number % 20 == 0 {
            for reader in &readers {
                wait_for("the last commit", || last(reader) == number);
            }
        }
    }
    for (reader, mode) in readers.iter().zip(MODES) {
        wait_for("the last commit", || last(reader) == 59);
        let found: String = reader.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(found, mode, "as on the primary");
    }
    check_nobody_writes(&mounts, &readers);
    let primary = fs::read_to_string(mounts.path("b", ".primary")).unwrap();
    assert_eq!(primary, format!("{}\n", mounts.cluster.addresses["a"]));
    assert!(!mounts.path("a", ".primary").exists());
    let lag = |name| fs::read_to_string(mounts.path(name, ".lag")).unwrap();
    assert_eq!(lag("a"), "+000000000\n");
    wait_for("the lag", || lag("b").trim().parse::<i32>().is_ok_and(|lag| lag < 10_000));
    // Readers of a WAL stand in nobody's way, however long they read.
    readers[0].execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    insert(&writers[0], 60).unwrap();
    let other = open(&path("wal"));
    wait_for("what was committed beside a reader", || last(&other) == 60);
    assert_eq!(last(&readers[0]), 59, "its snapshot");
    readers[0].execute_batch("COMMIT").unwrap();
    drop((writers, readers, other));
    mounts.stop("b");
    mounts.stop("a");
    MODES.iter().for_each(|mode| mounts.check_equal(&["a", "b"], &format!("{mode}.db")));
}

fn check_nobody_writes(mounts: &Mounts, readers: &[Connection]) {
    for reader in readers {
        let before = last(reader);
        let error = insert(reader, 1000).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{error}");
        assert_eq!(error.to_string(), "attempt to write a readonly database");
        assert_eq!(last(reader), before);
    }
    let path = |name: &str| mounts.path("b", name);
    for name in ["wal.db", "wal.db-wal", "delete.db"] {
        assert_eq!(errno(File::options().write(true).open(path(name))), Some(libc::EROFS), "{name}");
        assert_eq!(errno(fs::remove_file(path(name))), Some(libc::EROFS), "{name}");
        assert_eq!(errno(fs::rename(path(name), path("other"))), Some(libc::EROFS), "{name}");
        assert_eq!(errno(fs::hard_link(path(name), path("other"))), Some(libc::EROFS), "{name}");
        let cut = std::process::Command::new("truncate").arg("-s0").arg(path(name)).output().unwrap();
        assert!(!cut.status.success(), "{name}");
    }
    for name in ["new.db", "delete.db-journal"] {
        assert_eq!(errno(File::create(path(name))), Some(libc::EROFS), "{name}");
    }
    assert_eq!(errno(fs::create_dir(path("folder"))), Some(libc::EROFS));
    assert_eq!(errno(std::os::unix::fs::symlink("wal.db", path("link"))), Some(libc::EROFS));
    let refused = Connection::open(path("new.db")).and_then(|db| db.execute_batch("CREATE TABLE t(a)")).unwrap_err();
    assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::CannotOpen), "{refused}");
}

#[test]
fn a_killed_primary_is_replaced_and_what_only_it_had_is_kept() {
    for mode in MODES {
        let mut mounts = Mounts::new();
        mounts.cluster.mode = mode;
        if !mounts.start("a", true) {
            return;
        }
        mounts.cluster.wait_writing("a");
        assert!(mounts.start("b", true));
        mounts.cluster.wait_role("b", "replica");
        let durable = mounts.cluster.wait_durable("a");
        mounts.cluster.wait_row("b", durable);
        // What is committed from here on reaches neither the store nor the other node.
        mounts.cluster.freeze("b");
        mounts.cluster.lead("a", "store-of-a");
        mounts.cluster.wait_writing("a");
        mounts.cluster.kill("a");
        let only_here = mounts.cluster.last_noted("a");
        mounts.cluster.signal("b", Signal::CONT);
        mounts.cluster.wait_role("b", "primary");
        mounts.cluster.wait_writing("b");
        let here = rows(&mounts.cluster.database("b"));
        assert!((1..=durable).all(|n| here.contains(&n)), "nothing durable is lost");
        mounts.cluster.lead("a", "store");
        assert!(mounts.start("a", true));
        mounts.cluster.wait_role("a", "replica");
        // A row that the former primary did not have.
        wait_for("more rows", || mounts.cluster.last_noted("b") > only_here);
        let durable = mounts.cluster.wait_durable("b");
        wait_for("the lost branch", || !mounts.cluster.branches("a").is_empty());
        mounts.cluster.wait_row("a", durable);
        let branches = mounts.cluster.branches("a");
        assert_eq!(branches.len(), 1, "{branches:?}");
        let branch = mounts.cluster.folder.path(branches[0]["path"].as_str().unwrap());
        assert!(branch.starts_with(mounts.cluster.folder.path("a")), "behind the mount");
        let kept: HashSet<i64> = rows(&branch);
        assert!((1..=only_here).all(|n| kept.contains(&n)), "up to {only_here}");
        let listed = fs::read_dir(mounts.path("a", "")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!listed.into_iter().any(|name| name.to_string_lossy().starts_with(".app.db")), "hidden");
        mounts.cluster.stop_primary("b");
        mounts.cluster.wait_role("a", "primary");
        mounts.settle("a");
        mounts.check_equal(&["a"], "app.db");
        mounts.cluster.check_store();
    }
}

#[test]
fn the_role_goes_to_and_fro_and_no_commit_is_lost() {
    for mode in MODES {
        let mut mounts = Mounts::new();
        mounts.cluster.mode = mode;
        if !mounts.start("a", true) {
            return;
        }
        mounts.cluster.wait_writing("a");
        assert!(mounts.start("b", true));
        mounts.cluster.wait_role("b", "replica");
        wait_for("the replica to begin", || !rows(&mounts.cluster.database("b")).is_empty());
        mounts.cluster.wait_durable("a");
        let (first_point, first_row) = (mounts.last_txid("app.db"), mounts.cluster.last_noted("a"));
        let (mut from, mut to) = ("a", "b");
        for _ in 0..4 {
            mounts.handoff(from, to);
            let noted = mounts.cluster.last_noted(from);
            mounts.cluster.wait_writing(to);
            let here = rows(&mounts.cluster.database(to));
            assert!((1..=noted).all(|n| here.contains(&n)), "{mode}: a commit from before is missing");
            (from, to) = (to, from);
            let all = mounts.cluster.last_noted(from);
            mounts.cluster.wait_row(to, all);
        }
        // Both are to have the same: nobody writes any more, and both are stopped.
        let outcome = mounts.cluster.stop("b");
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
        mounts.settle("a");
        mounts.check_equal(&["a"], "app.db");
        // Also those that the application made at once when its node became the primary.
        let (points, commits) = (mounts.last_txid("app.db") - first_point, mounts.cluster.last_noted("a") - first_row);
        assert!(points >= u64::try_from(commits).unwrap(), "{mode}: {points} restore points of {commits} commits");
        assert!(mounts.cluster.branches("a").is_empty() && mounts.cluster.branches("b").is_empty());
        mounts.cluster.check_store();
    }
}

/// Somebody whom no guard ends, and who writes on a mount as long as that is possible.
struct Stray {
    stop: Arc<AtomicBool>,
    /// The last row that was said to be committed.
    committed: Arc<AtomicI64>,
    thread: Option<JoinHandle<Connection>>,
}

impl Stray {
    fn new(db: Connection, first: i64) -> Self {
        let (stop, committed) = (Arc::<AtomicBool>::default(), Arc::new(AtomicI64::new(first - 1)));
        let (told, noted) = (Arc::clone(&stop), Arc::clone(&committed));
        let thread = thread::spawn(move || {
            let mut number = first;
            while !told.load(Ordering::SeqCst) {
                match insert(&db, number) {
                    Ok(()) => {
                        noted.store(number, Ordering::SeqCst);
                        number += 1;
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
            db
        });
        Self { stop, committed, thread: Some(thread) }
    }

    fn committed(&self) -> i64 {
        self.committed.load(Ordering::SeqCst)
    }

    /// Ends it, and gives its connection.
    fn end(&mut self) -> Connection {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn whoever_has_a_database_open_for_writing_can_change_nothing_after_the_role_has_ended() {
    let mut mounts = Mounts::new();
    if !mounts.start("a", false) {
        return;
    }
    mounts.cluster.wait_role("a", "primary");
    let modes = ["wal", "delete", "persist"];
    let name = |mode: &str| format!("{mode}.db");
    let mut strays = modes.map(|mode| {
        let db = make(&mounts.path("a", &name(mode)), mode);
        db.busy_timeout(Duration::from_millis(200)).unwrap();
        db.pragma_update(None, "synchronous", "normal").unwrap();
        Stray::new(db, 1)
    });
    assert!(mounts.start("b", false));
    mounts.cluster.wait_role("b", "replica");
    wait_for("the databases", || modes.iter().all(|mode| !rows(&mounts.path("b", &name(mode))).is_empty()));
    // Files as SQLite has them open: the kernel writes the last two without asking anybody.
    let files = ["wal.db", "delete.db", "wal.db-wal", "persist.db-journal"];
    let held = files.map(|file| File::options().read(true).write(true).open(mounts.path("a", file)).unwrap());
    wait_for("the strays to write", || strays.iter().all(|stray| stray.committed() > 20));
    mounts.handoff("a", "b");
    let committed: Vec<i64> = strays.iter().map(Stray::committed).collect();
    for (mode, committed) in modes.iter().zip(&committed) {
        wait_for("the files to follow", || rows(&mounts.path("a", &name(mode))).contains(committed));
    }
    let writers = modes.map(|mode| open(&mounts.path("b", &name(mode))));
    for (writer, committed) in writers.iter().zip(&committed) {
        assert_eq!(last(writer), *committed, "what was said to be committed is there, and nothing else");
        insert(writer, committed + 1000).unwrap();
    }
    // They go on trying, and so does whoever writes into the files themselves.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        for (file, name) in held.iter().zip(files) {
            let written = errno(file.write_all_at(&[0xee; 4096], 0));
            assert!(matches!(written, Some(libc::EIO | libc::EROFS)), "{name}: {written:?}");
            assert!(file.set_len(0).is_err(), "{name}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let after: Vec<i64> = strays.iter().map(Stray::committed).collect();
    assert_eq!(after, committed, "nothing was committed after the role had ended");
    // Who closes what is dead and opens it anew is a reader as any other; also while others of the same process have the dead files open.
    let readers = modes.map(|mode| open(&mounts.path("a", &name(mode))));
    for (reader, committed) in readers.iter().zip(&committed) {
        wait_for("the new primary's commit", || last(reader) == committed + 1000);
    }
    let dead: Vec<Connection> = strays.iter_mut().map(Stray::end).collect();
    drop((dead, held));
    for (reader, committed) in readers.iter().zip(&committed) {
        assert_eq!(last(reader), committed + 1000);
    }
    // And back: nothing of the former role is left in the way.
    mounts.handoff("b", "a");
    let writers_again = modes.map(|mode| open(&mounts.path("a", &name(mode))));
    for (writer, committed) in writers_again.iter().zip(&committed) {
        insert(writer, committed + 2000).unwrap();
    }
    for (mode, committed) in modes.iter().zip(&committed) {
        wait_for("the row", || rows(&mounts.path("b", &name(mode))).contains(&(committed + 2000)));
    }
    drop((writers, readers, writers_again));
    mounts.stop("b");
    mounts.stop("a");
    modes.iter().for_each(|mode| mounts.check_equal(&["a", "b"], &name(mode)));
    assert!(mounts.cluster.branches("a").is_empty(), "no commit of a stray was taken back");
}

/// The node cannot hand on what it cannot upload: its role is over with the lease, and what a stray had committed by then is in the history or kept.
#[test]
fn a_primary_that_has_lost_the_store_lets_nobody_write_any_more() {
    let mut mounts = Mounts::new();
    if !mounts.start("a", false) {
        return;
    }
    mounts.cluster.wait_role("a", "primary");
    let mut strays = MODES.map(|mode| {
        let db = make(&mounts.path("a", &format!("{mode}.db")), mode);
        db.busy_timeout(Duration::from_millis(200)).unwrap();
        db.pragma_update(None, "synchronous", "normal").unwrap();
        Stray::new(db, 1)
    });
    assert!(mounts.start("b", false));
    mounts.cluster.wait_role("b", "replica");
    let path = |name: &str, mode: &str| mounts.path(name, &format!("{mode}.db"));
    wait_for("the databases", || MODES.iter().all(|mode| !rows(&path("b", mode)).is_empty()));
    mounts.cluster.lead("a", "store-of-a");
    mounts.cluster.wait_role("b", "primary");
    let role = mounts.cluster.node("a")["role"].clone();
    assert_ne!(role, "primary");
    let committed: Vec<i64> = strays.iter().map(Stray::committed).collect();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(strays.iter().map(Stray::committed).collect::<Vec<_>>(), committed, "written by two at a time");
    mounts.cluster.lead("a", "store");
    mounts.cluster.wait_role("a", "replica");
    let writers = MODES.map(|mode| open(&path("b", mode)));
    writers.iter().for_each(|db| insert(db, 1_000_000).unwrap());
    for (mode, committed) in MODES.iter().zip(&committed) {
        wait_for("the files to follow", || rows(&path("a", mode)).contains(&1_000_000));
        let mut there = rows(&path("a", mode));
        for branch in mounts.cluster.branches("a") {
            let kept = branch["path"].as_str().unwrap();
            if kept.contains(&format!(".{mode}.db-rhyolite")) {
                there.extend(rows(&mounts.cluster.folder.path(kept)));
            }
        }
        let missing: Vec<i64> = (1..=*committed).filter(|n| !there.contains(n)).collect();
        assert!(missing.is_empty(), "{mode}: neither in the history nor kept: {missing:?} of {committed}");
    }
    strays.iter_mut().for_each(|stray| drop(stray.end()));
    drop(writers);
    mounts.stop("a");
    mounts.stop("b");
    MODES.iter().for_each(|mode| mounts.check_equal(&["a", "b"], &format!("{mode}.db")));
}

/// Rewrites all rows in each transaction, and says which was committed. It is killed in the middle of one, nearly always.
const REWRITER: &str = "
import sqlite3, sys
d = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
d.execute('pragma journal_mode=delete')
d.execute('pragma synchronous=off')
d.execute('create table if not exists t(n integer primary key, g, b)')
if not d.execute('select count(*) from t').fetchone()[0]:
    d.execute('with recursive c(x) as (select 1 union all select x + 1 from c where x < 400) insert into t select x, 0, 0 from c')
g = d.execute('select max(g) from t').fetchone()[0]
while True:
    g += 1
    d.execute('update t set g = ?, b = hex(randomblob(450))', (g,))
    print(g, flush=True)
";

/// What a killed writer has half written is in no history, and neither is anybody told that it is committed: its journal is played back before the role ends.
#[test]
fn a_transaction_that_was_left_unfinished_is_in_no_history() {
    let mut mounts = Mounts::new();
    let mut before = 0;
    for round in 0..6_u64 {
        if !mounts.start("a", false) {
            return;
        }
        mounts.cluster.wait_role("a", "primary");
        let path = mounts.path("a", "app.db");
        let mut python = std::process::Command::new("python3");
        let mut writer = python.args(["-c", REWRITER]).arg(&path).stdout(std::process::Stdio::piped()).spawn().unwrap();
        wait_for("capture", || path.with_file_name("app.db-pos").exists());
        thread::sleep(Duration::from_millis(400 + 13 * round));
        writer.kill().unwrap();
        let said = String::from_utf8(writer.wait_with_output().unwrap().stdout).unwrap();
        let said: i64 = said.lines().last().and_then(|line| line.parse().ok()).unwrap_or(before);
        mounts.stop("a");
        mounts.check_equal(&["a"], "app.db");
        let stored = Connection::open(mounts.cluster.folder.path("stored.db")).unwrap();
        let states = stored.query_row("SELECT min(g), max(g), count(*) FROM t", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        let (first, last, count) = states.unwrap();
        assert_eq!((first, count), (last, 400), "half of a transaction, in round {round}");
        assert!((said..=said + 1).contains(&last), "said {said}, stored {last}");
        before = last;
    }
}
