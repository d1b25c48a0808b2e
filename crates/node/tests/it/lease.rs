//! Two processes on one store, for real: waiting, taking over, and what a paused one can do.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;

use crate::program::{Folder, Running, rows, wait_for};

/// A replicator with a state folder of its own, as one on another machine has.
fn start(folder: &Folder, meta: &str, more: &[&str]) -> Running {
    let arguments = ["replicate", "a.db", "./backup", "--sync-interval", "0", "--meta-path", meta];
    folder.start(&[&arguments[..], more].concat())
}

fn status(folder: &Folder, meta: &str) -> serde_json::Value {
    let outcome = folder.run(&["status", "a.db", "--meta-path", meta, "--json"]);
    serde_json::from_str::<serde_json::Value>(&outcome.stdout).unwrap_or_default()["databases"][0]["status"].take()
}

fn is_waiting(folder: &Folder, meta: &str) -> bool {
    let status = status(folder, meta);
    let reason = status["state"]["reason"].as_str().unwrap_or_default();
    status["state"]["name"] == "waiting" && (reason.contains("holds the lease") || reason.contains("another rhyolite"))
}

fn insert(db: &Connection, rows: std::ops::Range<i64>) {
    for row in rows {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
    }
}

/// Waits until `meta` has captured and uploaded everything that is in the database.
fn wait_durable(folder: &Folder, meta: &str, row: i64) {
    wait_for(&format!("row {row} to be durable by {meta}"), || {
        let status = status(folder, meta);
        if status["state"]["name"] != "replicating" || !status["pending_since"].is_null() {
            return false;
        }
        let restored = folder.path("check.db");
        let restore = folder.run(&["restore", "./backup", "-o", "check.db", "--force"]);
        restore.code == 0 && rows(&restored).last() == Some(&row)
    });
}

/// Every commit is a restore point, without a hole, and every one of them can be proved.
fn check_history(folder: &Folder, rows_expected: std::ops::Range<i64>, points_min: usize) {
    let log = folder.run(&["log", "./backup", "--json"]);
    let txids: Vec<u64> = log
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|point| u64::from_str_radix(point["txid"].as_str().unwrap(), 16).unwrap())
        .collect();
    assert!(txids.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{txids:?}");
    assert!(txids.len() >= points_min, "{} restore points", txids.len());
    let verified = folder.run(&["verify", "./backup", "--every-point"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    assert_eq!(folder.run(&["restore", "./backup", "-o", "end.db"]).code, 0);
    assert!(rows(&folder.path("end.db")).into_iter().eq(rows_expected));
}

#[test]
fn a_deploy_with_overlap_loses_no_row_and_no_commit() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let blue = start(&folder, "state", &[]);
    wait_durable(&folder, "state", 0);
    // The new one finds the state folder taken; the application writes on all the time.
    let green = start(&folder, "state", &[]);
    let writer = std::thread::spawn(move || {
        for row in 1..400 {
            insert(&db, row..row + 1);
            std::thread::sleep(Duration::from_millis(5));
        }
        db
    });
    std::thread::sleep(Duration::from_millis(1500));
    blue.signal(Signal::TERM);
    assert_eq!(blue.wait().code, 0);
    let db = writer.join().unwrap();
    wait_durable(&folder, "state", 399);
    drop(db);
    green.signal(Signal::TERM);
    assert_eq!(green.wait().code, 0);
    check_history(&folder, 0..400, 100);
}

#[test]
fn the_second_waits_and_takes_over_at_once_when_the_first_ends() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let first = start(&folder, "one", &["--lease-ttl", "1h"]);
    wait_durable(&folder, "one", 0);
    let second = start(&folder, "two", &["--lease-ttl", "1h"]);
    wait_for("the second to say that it waits", || is_waiting(&folder, "two"));
    insert(&db, 1..20);
    wait_durable(&folder, "one", 19);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
    insert(&db, 20..40);
    wait_durable(&folder, "two", 39);
    // One that never had its turn has nothing to be sorry for.
    let third = start(&folder, "three", &["--lease-ttl", "1h"]);
    wait_for("the third to say that it waits", || is_waiting(&folder, "three"));
    third.signal(Signal::TERM);
    assert_eq!(third.wait().code, 0);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    check_history(&folder, 0..40, 20);
}

#[test]
fn a_snapshot_that_comes_first_under_a_new_right_is_fenced() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..5);
    let first = start(&folder, "one", &[]);
    wait_durable(&folder, "one", 4);
    insert(&db, 5..6);
    wait_durable(&folder, "one", 5);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
    db.execute_batch("PRAGMA journal_mode = delete; PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = wal")
        .unwrap();
    insert(&db, 6..7);
    let log = || std::fs::read_dir(folder.path("backup/log")).unwrap().count();
    let before = log();
    let second = start(&folder, "one", &[]);
    wait_durable(&folder, "one", 6);
    assert_eq!(log(), before + 1, "an empty segment, and the commits are in the snapshot");
    insert(&db, 7..9);
    wait_durable(&folder, "one", 8);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    check_history(&folder, 0..9, 3);
}

#[test]
fn a_holder_that_was_killed_is_followed_when_its_lease_has_run_out() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let first = start(&folder, "one", &["--lease-ttl", "3s"]);
    wait_durable(&folder, "one", 0);
    let second = start(&folder, "two", &["--lease-ttl", "3s"]);
    wait_for("the second to say that it waits", || is_waiting(&folder, "two"));
    first.signal(Signal::KILL);
    first.wait();
    insert(&db, 1..10);
    wait_durable(&folder, "two", 9);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    check_history(&folder, 0..10, 2);
}

#[test]
fn a_restart_after_a_kill_does_not_wait_for_its_own_lease() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    for round in 1..4 {
        let began = Instant::now();
        if round == 3 {
            // Without what it had written down, the process in the lease is found to be dead.
            std::fs::remove_dir_all(folder.path("one")).unwrap();
        }
        let daemon = start(&folder, "one", &["--lease-ttl", "1h"]);
        insert(&db, round..round + 1);
        wait_durable(&folder, "one", round);
        assert!(began.elapsed() < Duration::from_secs(60), "an hour was not waited for");
        daemon.signal(Signal::KILL);
        daemon.wait();
    }
    drop(db);
    check_history(&folder, 0..4, 3);
}

#[test]
fn a_paused_holder_wakes_up_behind_a_fence() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let first = start(&folder, "one", &["--lease-ttl", "2s"]);
    wait_durable(&folder, "one", 0);
    let second = start(&folder, "two", &["--lease-ttl", "2s"]);
    wait_for("the second to say that it waits", || is_waiting(&folder, "two"));
    first.signal(Signal::STOP);
    insert(&db, 1..10);
    wait_durable(&folder, "two", 9);
    first.signal(Signal::CONT);
    wait_for("the first to say that it waits", || is_waiting(&folder, "one"));
    insert(&db, 10..20);
    wait_durable(&folder, "two", 19);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    insert(&db, 20..30);
    wait_durable(&folder, "one", 29);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
    check_history(&folder, 0..30, 10);
}

#[test]
fn who_is_not_to_wait_says_who_has_the_lease() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let first = start(&folder, "one", &[]);
    wait_durable(&folder, "one", 0);
    let started = Instant::now();
    for (meta, more, text) in [
        ("two", &[][..], "holds the lease of ./backup until"),
        ("one", &[], "holds the lease of ./backup until"),
        ("one", &["--lease=false"], "another rhyolite on this machine"),
    ] {
        let refused = start(&folder, meta, &[&["--if-held", "exit", "--log-level", "error"], more].concat()).wait();
        assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{refused:?}");
        assert!(refused.stderr.contains(text), "{refused:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "a holder on this machine is seen to live");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
}

#[test]
fn without_a_lease_the_one_that_started_last_wins() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    insert(&db, 0..1);
    let mut first = start(&folder, "one", &["--lease=false"]);
    wait_durable(&folder, "one", 0);
    assert!(!folder.path("backup/lease.json").exists());
    let second = start(&folder, "two", &["--lease=false"]);
    wait_for("the second to replicate", || status(&folder, "two")["state"]["name"] == "replicating");
    wait_for("the first to notice", || {
        let rows = db.query_row("SELECT coalesce(max(a), 0) FROM t", [], |r| r.get::<_, i64>(0)).unwrap();
        insert(&db, rows + 1..rows + 2);
        first.has_ended()
    });
    assert_eq!(status(&folder, "one")["state"]["name"], "error");
    let first = first.wait();
    assert_eq!(first.code, 1, "{first:?}");
    assert!(first.stderr.contains("another process writes to ./backup without the lease"), "{first:?}");
    let rows = db.query_row("SELECT max(a) FROM t", [], |r| r.get::<_, i64>(0)).unwrap();
    wait_durable(&folder, "two", rows);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    check_history(&folder, 0..rows + 1, 2);
}
