//! Applications that write on the mount of a replica: the primary commits, and only then do they hear of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use rustix::process::Signal;

use crate::mount_node::Mounts;
use crate::program::wait_for;

const FLAGS: [&str; 2] = ["--write-forwarding", "transparent"];
const DATABASE: &str = "app.db";

/// A primary, and replicas whose files are there. `None` where nothing can be mounted.
fn mounts(replicas: &[&'static str]) -> Option<Mounts> {
    mounts_with(replicas, &[])
}

/// The same, with more flags for the replicas.
fn mounts_with(replicas: &[&'static str], more: &[&str]) -> Option<Mounts> {
    let mut mounts = Mounts::new();
    if !mounts.start_with("a", false, &FLAGS) {
        return None;
    }
    mounts.cluster.wait_role("a", "primary");
    let db = open(&mounts.path("a", DATABASE));
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    db.execute_batch(
        "CREATE TABLE t(n INTEGER PRIMARY KEY, b); CREATE TABLE counter(n); INSERT INTO counter VALUES (0)",
    )
    .unwrap();
    for name in replicas {
        assert!(mounts.start_with(name, false, &[&FLAGS, more].concat()));
        mounts.cluster.wait_role(name, "replica");
        let path = mounts.path(name, DATABASE);
        wait_for("the file", || path.exists() && rows(&path, "SELECT count(*) FROM counter") == Ok(1));
        wait_for_wal(&path);
    }
    Some(mounts)
}

/// A replica's file gets its journal mode when it is there already; until then nobody writes to it.
fn wait_for_wal(path: &Path) {
    let is_wal = |mode: String| mode == "wal";
    wait_for("the journal mode", || {
        Connection::open(path).unwrap().pragma_query_value(None, "journal_mode", |row| row.get(0)).is_ok_and(is_wal)
    });
}

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    db
}

fn rows(path: &Path, sql: &str) -> rusqlite::Result<i64> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.query_row(sql, [], |row| row.get(0))
}

#[test]
fn an_application_on_a_replica_writes_as_on_the_primary() {
    let Some(mut mounts) = mounts(&["b", "c"]) else { return };
    let dbs = ["a", "b", "c"].map(|name| open(&mounts.path(name, DATABASE)));
    for number in 0..60 {
        let db = &dbs[number as usize % 3];
        db.execute("INSERT INTO t VALUES (?1, hex(randomblob(300)))", [number]).unwrap();
        let seen: i64 = db.query_row("SELECT max(n) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(seen, number, "whoever writes sees it at once");
    }
    for name in ["a", "b", "c"] {
        wait_for("all of it", || rows(&mounts.path(name, DATABASE), "SELECT count(*) FROM t") == Ok(60));
    }
    // Larger ones, what is taken back, and what changes the schema and the size.
    let b = &dbs[1];
    b.execute_batch("BEGIN; INSERT INTO t SELECT n + 1000, b FROM t; ROLLBACK").unwrap();
    b.execute_batch(
        "BEGIN; SAVEPOINT one; INSERT INTO t SELECT n + 2000, b FROM t; ROLLBACK TO one; INSERT INTO t VALUES (5000, 1); COMMIT",
    )
    .unwrap();
    b.execute_batch("CREATE TABLE of_b(x); CREATE INDEX i ON t(b); INSERT INTO of_b SELECT hex(zeroblob(2000)) FROM t")
        .unwrap();
    b.execute_batch("DELETE FROM of_b; VACUUM; PRAGMA wal_checkpoint").unwrap();
    wait_for("all of it", || rows(&mounts.path("a", DATABASE), "SELECT count(*) FROM of_b") == Ok(0));
    assert_eq!(rows(&mounts.path("a", DATABASE), "SELECT count(*) FROM t"), Ok(61));
    drop(dbs);
    mounts.cluster.wait_durable("a");
    for name in ["b", "c", "a"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["a", "b", "c"], DATABASE);
}

#[test]
fn several_that_write_at_once_lose_nothing() {
    let Some(mut mounts) = mounts(&["b", "c"]) else { return };
    let writers: Vec<_> = ["a", "b", "b", "c"]
        .into_iter()
        .map(|name| {
            let path = mounts.path(name, DATABASE);
            thread::spawn(move || {
                let db = open(&path);
                let mut done = 0;
                let until = Instant::now() + Duration::from_secs(4);
                while Instant::now() < until {
                    match db.execute("UPDATE counter SET n = n + 1", []) {
                        Ok(_) => done += 1,
                        Err(error) => assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}"),
                    }
                }
                done
            })
        })
        .collect();
    let done: Vec<i64> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert!(done.iter().all(|done| *done > 0), "{done:?}");
    for name in ["a", "b", "c"] {
        let path = mounts.path(name, DATABASE);
        wait_for("all of it", || rows(&path, "SELECT n FROM counter") == Ok(done.iter().sum()));
    }
    mounts.cluster.wait_durable("a");
    for name in ["b", "c", "a"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["a", "b", "c"], DATABASE);
}

#[test]
fn without_a_primary_nothing_is_committed() {
    let Some(mounts) = mounts_with(&["b"], &["--candidate=false"]) else { return };
    let db = open(&mounts.path("b", DATABASE));
    db.busy_timeout(Duration::from_secs(1)).unwrap();
    db.execute("INSERT INTO t VALUES (1, 1)", []).unwrap();
    mounts.cluster.signal("a", Signal::STOP);
    let began = Instant::now();
    let error = db.execute("INSERT INTO t VALUES (2, 1)", []).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
    assert_eq!(db.query_row("SELECT max(n) FROM t", [], |row| row.get::<_, i64>(0)), Ok(1), "readers go on");
    mounts.cluster.signal("a", Signal::CONT);
    let a = open(&mounts.path("a", DATABASE));
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    db.execute("INSERT INTO t VALUES (3, 1)", []).unwrap();
    assert_eq!((numbers(&a), numbers(&db)), (vec![1, 3], vec![1, 3]));
}

#[test]
fn a_transaction_that_was_left_open_ends_with_the_primary() {
    let Some(mut mounts) = mounts(&["b", "c"]) else { return };
    let b = open(&mounts.path("b", DATABASE));
    b.execute_batch("PRAGMA cache_size = 5; BEGIN IMMEDIATE; INSERT INTO t VALUES (1, hex(randomblob(50000)))")
        .unwrap();
    mounts.cluster.kill("a");
    wait_for("another primary", || ["b", "c"].iter().any(|name| mounts.cluster.node(name)["role"] == "primary"));
    let next = if mounts.cluster.node("b")["role"] == "primary" { "b" } else { "c" };
    let db = open(&mounts.path(next, DATABASE));
    db.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    for name in ["b", "c"] {
        let path = mounts.path(name, DATABASE);
        wait_for("the commit", || rows(&path, "SELECT count(*) FROM t WHERE n = 2") == Ok(1));
        assert_eq!(rows(&path, "SELECT count(*) FROM t WHERE n = 1"), Ok(0), "{name}");
    }
    assert!(b.execute_batch("COMMIT").is_err());
}

/// Writes, and is killed in the middle of it.
const WRITER: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
while True: db.execute('UPDATE counter SET n = n + 1')
";

#[test]
fn writers_that_are_killed_leave_nothing_behind() {
    let Some(mut mounts) = mounts(&["b"]) else { return };
    let (a, b) = (mounts.path("a", DATABASE), mounts.path("b", DATABASE));
    for round in 0..15 {
        let mut child = Command::new("python3").args(["-c", WRITER]).arg(&b).spawn().unwrap();
        let before = rows(&b, "SELECT n FROM counter").unwrap();
        wait_for("its commits", || rows(&a, "SELECT n FROM counter").unwrap() > before + 3);
        thread::sleep(Duration::from_millis(round % 5));
        child.kill().unwrap();
        child.wait().unwrap();
        let db = open(&a);
        db.execute("INSERT INTO t VALUES (?1, 1)", [round.cast_signed()]).unwrap();
        wait_for("the same", || {
            let sql = "SELECT n + 1000000 * (SELECT count(*) FROM t) FROM counter";
            rows(&a, sql).is_ok_and(|there| Ok(there) == rows(&b, sql))
        });
    }
    mounts.cluster.wait_durable("a");
    for name in ["b", "a"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["a", "b"], DATABASE);
}

#[test]
fn it_is_for_mounts_and_promises_nothing_of_other_nodes() {
    let folder = crate::program::Folder::new();
    let node = ["node", "x", "--store", "./store", "--listen", "127.0.0.1:1"];
    for (more, said) in [
        (&FLAGS[..], "--write-forwarding transparent needs --at"),
        (&["--write-forwarding=transparent", "--at", "y", "--durability=replica"], "contradicts --durability"),
    ] {
        let refused = folder.run(&[&node, more].concat());
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}

/// Stands between a primary and those who dial it.
struct Tap {
    address: String,
    /// Connections with smaller numbers give nothing any more to who has dialed.
    stalled: Arc<AtomicUsize>,
    count: Arc<AtomicUsize>,
}

impl Tap {
    fn new(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let this = Self { address, stalled: Arc::default(), count: Arc::default() };
        let (stalled, count) = (Arc::clone(&this.stalled), Arc::clone(&this.count));
        thread::spawn(move || {
            for dialed in listener.incoming() {
                let (dialed, Ok(primary)) = (dialed.unwrap(), TcpStream::connect(&target)) else { continue };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (mut from, mut to) = (dialed.try_clone().unwrap(), primary.try_clone().unwrap());
                thread::spawn(move || drop((std::io::copy(&mut from, &mut to), to.shutdown(Shutdown::Write))));
                let stalled = Arc::clone(&stalled);
                thread::spawn(move || pass(primary, dialed, || stalled.load(Ordering::SeqCst) > number));
            }
        });
        this
    }

    fn stall_all(&self) {
        self.stalled.store(self.count.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_stalled: impl Fn() -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if is_stalled() {
            // What comes is taken, and nobody gets it.
            continue;
        }
        if to.write_all(&bytes[..len]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A primary whose commits do not get to the store, behind a tap, and replicas. The replicas are told nothing any more over the connections that they have.
fn mounts_stalled(replicas: &[(&'static str, &[&str])]) -> Option<(Mounts, Tap)> {
    let mut mounts = Mounts::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let tap = Tap::new(free.clone());
    mounts.cluster.addresses.insert("a", free);
    if !mounts.start_with("a", false, &[&FLAGS[..], &["--advertise", &tap.address]].concat()) {
        return None;
    }
    mounts.cluster.wait_role("a", "primary");
    let db = open(&mounts.path("a", DATABASE));
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    db.execute_batch("CREATE TABLE t(n INTEGER PRIMARY KEY, b); CREATE TABLE u(n)").unwrap();
    mounts.cluster.wait_durable("a");
    for (name, more) in replicas {
        assert!(mounts.start_with(name, false, &[&FLAGS, *more].concat()));
        mounts.cluster.wait_role(name, "replica");
        let path = mounts.path(name, DATABASE);
        wait_for("the file", || path.exists() && rows(&path, "SELECT count(*) FROM t") == Ok(0));
        wait_for_wal(&path);
    }
    tap.stall_all();
    // Nothing gets to the store, and so neither to whoever reads that.
    mounts.cluster.lead("a", "store-of-a");
    Some((mounts, tap))
}

fn numbers(db: &Connection) -> Vec<i64> {
    let mut statement = db.prepare("SELECT n FROM t ORDER BY n").unwrap();
    let numbers = statement.query_map([], |row| row.get(0)).unwrap();
    numbers.map(Result::unwrap).collect()
}

#[test]
fn what_the_primary_was_lost_with_is_taken_back() {
    let Some((mut mounts, _tap)) = mounts_stalled(&[("b", &["--candidate=false"]), ("c", &[])]) else { return };
    let b = open(&mounts.path("b", DATABASE));
    // A page of it is written by nobody afterwards.
    b.execute_batch("BEGIN; INSERT INTO t VALUES (1, hex(randomblob(9000))); INSERT INTO u VALUES (1); COMMIT")
        .unwrap();
    assert_eq!(numbers(&b), [1]);
    // The primary has it, and nobody else has heard of it.
    mounts.cluster.kill("a");
    mounts.cluster.wait_role("c", "primary");
    b.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    assert_eq!(numbers(&b), [2]);
    assert_eq!(b.query_row("SELECT count(*) FROM u", [], |row| row.get::<_, i64>(0)), Ok(0));
    let c = open(&mounts.path("c", DATABASE));
    wait_for("the commit", || numbers(&c) == [2]);
    drop((b, c));
    mounts.cluster.wait_durable("c");
    for name in ["b", "c"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["b", "c"], DATABASE);
}

#[test]
fn whoever_becomes_the_primary_begins_with_what_the_history_has() {
    let Some((mut mounts, _tap)) = mounts_stalled(&[("b", &[])]) else { return };
    let b = open(&mounts.path("b", DATABASE));
    b.execute("INSERT INTO t VALUES (1, hex(randomblob(9000)))", []).unwrap();
    mounts.cluster.kill("a");
    mounts.cluster.wait_role("b", "primary");
    b.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    assert_eq!(numbers(&b), [2]);
    drop(b);
    mounts.cluster.wait_durable("b");
    mounts.stop("b");
    mounts.check_equal(&["b"], DATABASE);
}

#[test]
fn a_node_that_is_killed_ahead_of_the_stream_is_brought_back() {
    let Some((mut mounts, _tap)) = mounts_stalled(&[("b", &["--candidate=false"])]) else { return };
    let b = open(&mounts.path("b", DATABASE));
    b.execute("INSERT INTO t VALUES (1, hex(randomblob(9000)))", []).unwrap();
    mounts.cluster.lead("a", "store");
    mounts.cluster.kill("b");
    drop(b);
    assert!(mounts.start_with("b", false, &[&FLAGS[..], &["--candidate=false"]].concat()));
    mounts.cluster.wait_role("b", "replica");
    let b = open(&mounts.path("b", DATABASE));
    wait_for("the commit", || numbers(&b) == [1]);
    b.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    drop(b);
    mounts.cluster.wait_durable("a");
    for name in ["b", "a"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["a", "b"], DATABASE);
    assert_eq!(mounts.cluster.branches("b"), Vec::<serde_json::Value>::new());
}

/// What LiteFS's libraries do to be the only ones that write.
const HALTER: &str = "
import fcntl, sqlite3, sys, time
lock = open(sys.argv[1] + '-lock', 'r+b')
fcntl.lockf(lock, fcntl.LOCK_EX, 1, 72)
print('locked', flush=True)
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
for number in range(5):
    db.execute('INSERT INTO t VALUES (?, 1)', (number,))
time.sleep(1)
print('done', flush=True)
if len(sys.argv) < 3: fcntl.lockf(lock, fcntl.LOCK_UN, 1, 72)
time.sleep(60)
";

#[test]
fn a_library_of_litefs_keeps_the_lock_for_several_transactions() {
    let Some(mut mounts) = mounts(&["b"]) else { return };
    for more in [&[][..], &["until its end"]] {
        let path = mounts.path("b", DATABASE);
        let mut child =
            Command::new("python3").args(["-c", HALTER]).arg(&path).args(more).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "locked");
        let a = open(&mounts.path("a", DATABASE));
        wait_for("its commits", || numbers(&a).len() == 5);
        // It writes no more, and has the lock still.
        thread::sleep(Duration::from_millis(300));
        a.busy_timeout(Duration::from_millis(200)).unwrap();
        let error = a.execute("INSERT INTO t VALUES (100, 1)", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
        assert_eq!(lines.next().unwrap().unwrap(), "done");
        if !more.is_empty() {
            child.kill().unwrap();
        }
        a.busy_timeout(Duration::from_secs(5)).unwrap();
        a.execute("DELETE FROM t", []).unwrap();
        let _ = child.kill();
        child.wait().unwrap();
    }
    for name in ["b", "a"] {
        mounts.stop(name);
    }
}

/// Looks again and again where a replica is, and what whoever opens it anew finds there, until told to end.
fn watch_position(mounts: &Mounts, name: &str) -> (Arc<AtomicBool>, thread::JoinHandle<usize>) {
    let (path, pos) = (mounts.path(name, DATABASE), mounts.cluster.folder.path(name).join("app.db-pos"));
    let is_over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&is_over);
    let watch = move || {
        let (mut at, mut seen, mut looks) = (0, 0, 0);
        while !ended.load(Ordering::SeqCst) {
            // It is replaced by a rename, and so always there.
            let text = std::fs::read_to_string(&pos).unwrap();
            let txid = u64::from_str_radix(text.split('/').next().unwrap(), 16).unwrap();
            assert!(txid >= at, "the position went from {at} to {txid}");
            at = txid;
            if let Ok(count) = rows(&path, "SELECT count(*) FROM t") {
                assert!(count >= seen, "{seen} rows were there, and {count} are");
                (seen, looks) = (count, looks + 1);
            }
            thread::sleep(Duration::from_millis(1));
        }
        looks
    };
    (is_over, thread::spawn(watch))
}

#[test]
fn who_loses_his_lock_with_the_primary_takes_nothing_from_the_node() {
    let Some(mut mounts) = mounts_with(&["b"], &["--candidate=false"]) else { return };
    assert!(mounts.start_with("c", false, &FLAGS));
    mounts.cluster.wait_role("c", "replica");
    let path = mounts.path("b", DATABASE);
    let a = open(&mounts.path("a", DATABASE));
    for number in 100..120 {
        a.execute("INSERT INTO t VALUES (?1, hex(randomblob(3000)))", [number]).unwrap();
    }
    wait_for("them", || {
        ["b", "c"].iter().all(|name| rows(&mounts.path(name, DATABASE), "SELECT count(*) FROM t") == Ok(20))
    });
    // Otherwise the next primary's history is another than that of which the replica has more.
    mounts.cluster.wait_durable("a");
    let (is_over, watch) = watch_position(&mounts, "b");
    let b = open(&path);
    b.execute_batch("PRAGMA cache_size = 5; BEGIN IMMEDIATE; INSERT INTO t VALUES (1, hex(randomblob(50000)))")
        .unwrap();
    mounts.cluster.kill("a");
    mounts.cluster.wait_role("c", "primary");
    let c = open(&mounts.path("c", DATABASE));
    c.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    wait_for("the commit", || rows(&path, "SELECT count(*) FROM t WHERE n = 2") == Ok(1));
    let anew = open(&path);
    anew.execute("INSERT INTO t VALUES (3, 3)", []).unwrap();
    assert!(b.execute_batch("COMMIT").is_err());
    assert_eq!(numbers(&anew)[..2], [2, 3]);
    is_over.store(true, Ordering::SeqCst);
    let watched = watch.join();
    drop((b, anew, c));
    let branches = mounts.cluster.branches("b");
    mounts.cluster.wait_durable("c");
    let stopped = mounts.cluster.stop("b");
    assert!(watched.is_ok_and(|looks| looks > 10), "{}", stopped.stderr);
    assert_eq!(branches, Vec::<serde_json::Value>::new(), "{}", stopped.stderr);
    mounts.stop("c");
    mounts.check_equal(&["b", "c"], DATABASE);
}

/// Has the lock for longer than it is lent, and writes then.
const DAWDLER: &str = "
import fcntl, sqlite3, sys
lock = open(sys.argv[1] + '-lock', 'r+b')
fcntl.lockf(lock, fcntl.LOCK_EX, 1, 72)
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=1)
def insert(number):
    try:
        db.execute('INSERT INTO u VALUES (?)', (number,))
        print('written', flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
insert(1)
sys.stdin.readline()
insert(2)
insert(3)
fcntl.lockf(lock, fcntl.LOCK_UN, 1, 72)
insert(4)
fcntl.lockf(lock, fcntl.LOCK_EX, 1, 72)
insert(5)
";

/// A transaction that stays open, and a lock that is kept without one.
#[test]
fn what_is_held_for_more_than_a_minute_is_lost_and_its_holder_told() {
    let Some(mut mounts) = mounts(&["b"]) else { return };
    let other = |name| mounts.path(name, "other.db");
    let a = open(&other("a"));
    a.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    a.execute_batch("CREATE TABLE u(n INTEGER PRIMARY KEY)").unwrap();
    wait_for("the file", || rows(&other("b"), "SELECT count(*) FROM u") == Ok(0));
    wait_for_wal(&other("b"));
    let mut child = Command::new("python3")
        .args(["-c", DAWDLER])
        .arg(other("b"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || said.next().unwrap().unwrap();
    assert_eq!(next(), "written");
    let (is_over, watch) = watch_position(&mounts, "b");
    let b = open(&mounts.path("b", DATABASE));
    b.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1, 1)").unwrap();
    // After its transaction the lock is borrowed again, and another may be faster.
    thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let holds =
        [(&a, "INSERT INTO u VALUES (100)"), (&open(&mounts.path("a", DATABASE)), "INSERT INTO t VALUES (2, 2)")];
    for (db, sql) in holds {
        db.busy_timeout(Duration::from_secs(90)).unwrap();
        db.execute(sql, []).unwrap();
    }
    assert!(began.elapsed() > Duration::from_secs(45), "{:?}", began.elapsed());
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let locked = "database is locked";
    assert_eq!([next(), next(), next(), next()], [locked, locked, "written", "written"]);
    assert!(child.wait().unwrap().success());
    wait_for("the commit", || rows(&mounts.path("b", DATABASE), "SELECT count(*) FROM t WHERE n = 2") == Ok(1));
    open(&mounts.path("b", DATABASE)).execute("INSERT INTO t VALUES (3, 3)", []).unwrap();
    assert!(b.execute_batch("COMMIT").is_err());
    is_over.store(true, Ordering::SeqCst);
    assert!(watch.join().unwrap() > 10);
    assert_eq!(rows(&other("a"), "SELECT group_concat(n, '') = '145100' FROM u"), Ok(1));
    drop((a, b));
    assert_eq!(mounts.cluster.branches("b"), Vec::<serde_json::Value>::new());
    mounts.cluster.wait_durable("a");
    for name in ["b", "a"] {
        mounts.stop(name);
    }
    mounts.check_equal(&["a", "b"], DATABASE);
}

#[test]
fn what_is_committed_in_the_wal_is_written_over_by_nobody() {
    let Some(mut mounts) = mounts(&["b"]) else { return };
    let b = open(&mounts.path("b", DATABASE));
    // SQLite begins the WAL anew in between, and that is let through.
    for number in 0..60 {
        b.execute("INSERT INTO t VALUES (?1, randomblob(200000))", [number]).unwrap();
    }
    b.execute_batch("BEGIN IMMEDIATE").unwrap();
    let wal = std::fs::File::options().read(true).write(true).open(mounts.path("b", "app.db-wal")).unwrap();
    let mut there = [0; 200];
    wal.read_exact_at(&mut there, 0).unwrap();
    for (offset, len) in [(0, 32), (0, 4), (24, 8), (24, 20), (32, 24), (56, 100)] {
        let odd: Vec<u8> = there[offset..offset + len].iter().map(|byte| !byte).collect();
        let written = wal.write_at(&odd, offset as u64);
        assert_eq!(written.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)), "{len} bytes at {offset}");
    }
    let mut after = [0; 200];
    wal.read_exact_at(&mut after, 0).unwrap();
    assert_eq!(there, after);
    b.execute_batch("INSERT INTO t VALUES (1000, 1); COMMIT").unwrap();
    drop((wal, b));
    wait_for("all of it", || rows(&mounts.path("a", DATABASE), "SELECT count(*) FROM t") == Ok(61));
    mounts.cluster.wait_durable("a");
    let stopped = mounts.cluster.stop("b");
    assert_eq!((stopped.code, stopped.stderr.matches("refused a write to the WAL").count()), (0, 6), "{stopped:?}");
    mounts.stop("a");
    mounts.check_equal(&["a", "b"], DATABASE);
}
