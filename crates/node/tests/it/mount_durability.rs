//! Commits on the mount of a node that return when another node has them.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use rustix::process::Signal;

use crate::cluster::rows;
use crate::mount_node::Mounts;
use crate::program::wait_for;

/// How long a commit waits.
const TIMEOUT: Duration = Duration::from_millis(800);
const FLAGS: [&str; 2] = ["--durability=replica", "--durability-timeout=800ms"];

/// A primary `a`, whose commits nobody uploads, and a replica. `None` where there is no FUSE.
fn mounts() -> Option<Mounts> {
    let mut mounts = Mounts::new();
    mounts.cluster.sync_interval = "--sync-interval=1h";
    for (name, role) in [("a", "primary"), ("b", "replica")] {
        if !mounts.start_with(name, false, &FLAGS) {
            return None;
        }
        mounts.cluster.wait_role(name, role);
    }
    Some(mounts)
}

/// A connection on the primary to a database that both have, with the row 0.
fn writer(mounts: &Mounts, mode: &str) -> Connection {
    let db = Connection::open(mounts.path("a", "app.db")).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    db.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).unwrap();
    db.pragma_update(None, "synchronous", "full").unwrap();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY); INSERT INTO t VALUES (0)").unwrap();
    mounts.cluster.wait_durable("a");
    mounts.cluster.wait_row("b", 0);
    wait_for("the lease to name the witness", || {
        let lease = std::fs::read_to_string(mounts.cluster.folder.path("store/lease.json")).unwrap_or_default();
        let lease: serde_json::Value = serde_json::from_str(&lease).unwrap_or_default();
        lease["witnesses"]["nodes"].to_string().contains(&mounts.cluster.addresses["b"])
    });
    db
}

fn insert(db: &Connection, n: i64) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO t VALUES (?1)", [n])
}

/// Whether a commit has failed as one does that was not synced.
fn has_failed(done: rusqlite::Result<usize>) -> bool {
    match done {
        Err(rusqlite::Error::SqliteFailure(error, _)) => {
            assert_eq!(error.code, ErrorCode::SystemIoFailure, "{error}");
            true
        }
        Err(other) => panic!("{other}"),
        Ok(_) => false,
    }
}

fn check(mode: &str) {
    let Some(mut mounts) = mounts() else { return };
    let db = writer(&mounts, mode);
    for n in 1..=30 {
        insert(&db, n).unwrap();
        assert!(rows(&mounts.path("b", "app.db")).contains(&n), "COMMIT returned, and the other node lacks {n}");
    }
    let listed = mounts.cluster.folder.run(&["ctl", "list", "--json", "--socket", "a.sock"]).json();
    let txid = |key: &str| listed["databases"][0][key].as_str().unwrap().to_owned();
    assert!(txid("durable_txid") < txid("txid"), "nothing is uploaded for that: {listed}");
    // Nobody has it: COMMIT says so, in time, and takes it back.
    mounts.cluster.freeze("b");
    let began = Instant::now();
    assert!(has_failed(insert(&db, 100)), "{mode}: COMMIT returned, and nobody else has it");
    assert!((TIMEOUT..TIMEOUT * 10).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(!rows(&mounts.path("a", "app.db")).contains(&100));
    mounts.cluster.signal("b", Signal::CONT);
    wait_for("a commit to be waited for with success", || {
        !has_failed(insert(&db, 200)) || rows(&mounts.path("a", "app.db")).contains(&200)
    });
    insert(&db, 201).unwrap();
    let expected: std::collections::HashSet<i64> = (0..=30).chain([200, 201]).collect();
    assert_eq!(rows(&mounts.path("b", "app.db")), expected, "what was taken back is so there, too");
    assert_eq!(rows(&mounts.path("a", "app.db")), expected);
    // The primary loses the store, commits, and is lost itself.
    mounts.cluster.lead("a", "store-of-a");
    insert(&db, 300).unwrap();
    mounts.cluster.kill("a");
    drop(db);
    mounts.cluster.wait_role("b", "primary");
    assert!(rows(&mounts.path("b", "app.db")).contains(&300), "{mode}: what COMMIT said is missing");
    mounts.cluster.wait_durable("b");
    assert!(mounts.cluster.stored().contains(&300));
    mounts.stop("b");
}

#[test]
fn in_wal_mode_commit_returns_when_another_node_has_it() {
    check("wal");
}

#[test]
fn with_a_rollback_journal_commit_returns_when_another_node_has_it() {
    check("delete");
}

#[test]
fn a_connection_that_syncs_nothing_does_not_wait_and_is_counted() {
    let Some(mut mounts) = mounts() else { return };
    let db = writer(&mounts, "wal");
    mounts.cluster.freeze("b");
    db.pragma_update(None, "synchronous", "normal").unwrap();
    let began = Instant::now();
    insert(&db, 1).unwrap();
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    drop(db);
    mounts.cluster.signal("b", Signal::CONT);
    mounts.cluster.wait_row("b", 1);
    let outcome = mounts.cluster.stop("a");
    assert!(
        outcome.stderr.contains("a commit did not wait for other nodes, although `--durability` asks for it"),
        "{outcome:?}"
    );
    mounts.stop("b");
}

#[test]
fn flags_that_say_nothing_are_refused() {
    let mut mounts = Mounts::new();
    for (flags, text) in [
        (&["--durability-timeout=1s"][..], "--durability-timeout says how long a commit waits on the mount"),
        (&["--durability=replica", "--durability-timeout=0s"], "--durability-timeout must not be 0"),
    ] {
        mounts.cluster.start_with("a", flags);
        let outcome = mounts.cluster.running.remove("a").unwrap().wait();
        assert_eq!((outcome.code, outcome.stderr.contains(text)), (2, true), "{outcome:?}");
    }
}
