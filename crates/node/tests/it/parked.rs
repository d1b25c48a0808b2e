//! Databases that are parked and woken again and again while real writers commit, against the oracle of [`crate::capture`]: the log
//! read back must end with exactly what the database holds, and where nothing resets the WAL hold every commit by itself.

use std::time::{Duration, Instant};

use rhyolite_logic::park::Policy;
use rusqlite::Connection;

use crate::capture::Rig;

/// Parks as soon as nothing is left to do: the race between the last look and the next commit is run all the time.
fn eager() -> Policy {
    Policy { grain: Duration::from_millis(40), after: Duration::ZERO, after_min: Duration::ZERO, ..Policy::default() }
}

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.parking = eager();
    rig
}

fn wait_parked(rig: &Rig) {
    let began = Instant::now();
    while !rig.figures().parked {
        assert!(began.elapsed() < Duration::from_secs(30), "not parked: {:?}", rig.figures());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pauses around the time that parking takes, so that commits fall into every part of it.
fn pauses() -> impl Iterator<Item = Duration> {
    (0u64..).map(|i| Duration::from_millis(i * 37 % 130))
}

fn insert(app: &Connection, i: i64) {
    app.execute("INSERT INTO t VALUES (?1, hex(randomblob(200)))", [i]).unwrap();
}

#[test]
fn commits_beside_parking_are_captured_one_by_one() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    let began = Instant::now();
    let mut rows = 0;
    for pause in pauses().take_while(|_| began.elapsed() < Duration::from_secs(12)) {
        insert(&app, rows);
        rows += 1;
        std::thread::sleep(pause);
    }
    let parkings = rig.figures().parkings;
    rig.wait_durable();
    let history = rig.check();
    assert!(parkings >= 5, "parked {parkings} times beside {rows} commits");
    assert_eq!(history.positions.len() as i64, 1 + rows, "each commit is a transaction");
}

#[test]
fn an_application_that_closes_after_every_commit_takes_the_wal_along() {
    let mut rig = rig();
    drop(rig.open_wal(4096));
    rig.open().execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    let began = Instant::now();
    for (rows, pause) in (0..).zip(pauses()).take_while(|_| began.elapsed() < Duration::from_secs(10)) {
        let app = rig.open();
        insert(&app, rows);
        drop(app);
        std::thread::sleep(pause);
    }
    let parkings = rig.figures().parkings;
    rig.wait_durable();
    rig.check();
    assert!(parkings >= 5, "parked {parkings} times");
}

#[test]
fn a_database_in_rollback_mode_is_parked_and_woken() {
    let mut rig = rig();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    let began = Instant::now();
    for (rows, pause) in (0..).zip(pauses()).take_while(|_| began.elapsed() < Duration::from_secs(10)) {
        insert(&app, rows);
        std::thread::sleep(pause);
    }
    let parkings = rig.figures().parkings;
    rig.wait_durable();
    rig.check();
    assert!(parkings >= 5, "parked {parkings} times");
}

#[test]
fn what_is_committed_right_before_the_stop_is_captured() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    wait_parked(&rig);
    insert(&app, 1);
    let history = rig.check();
    assert_eq!(history.positions.len(), 2);
}

#[test]
fn a_parked_database_costs_no_request_and_a_false_alarm_none_either() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    wait_parked(&rig);
    let (requests, parkings) = (rig.requests(), rig.figures().parkings);
    // A file that is touched wakes the database, in vain.
    let file = std::fs::File::options().append(true).open(rig.path()).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let began = Instant::now();
    while rig.figures().parkings == parkings {
        assert!(began.elapsed() < Duration::from_secs(30), "neither woken nor parked again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rig.requests(), requests);
    drop(file);
    rig.check();
}

#[test]
fn a_store_that_was_put_back_while_the_database_was_parked_is_noticed_before_the_next_upload() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    let backup = rig.store().with_extension("older");
    copy(&rig.store(), &backup);
    insert(&app, 1);
    rig.wait_durable();
    wait_parked(&rig);
    std::fs::remove_dir_all(rig.store()).unwrap();
    std::fs::rename(&backup, rig.store()).unwrap();
    insert(&app, 2);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.positions.len(), 3, "what the store had lost is uploaded once more, from the local log");
}

#[test]
fn a_database_that_goes_and_comes_while_it_is_parked_is_compared() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    wait_parked(&rig);
    drop(app);
    std::fs::remove_file(rig.path()).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", rig.path().display()));
    }
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (7, 'other')").unwrap();
    rig.wait_durable();
    rig.check();
}

/// A writer that holds the write lock may be between the frames of its commit and the header of the wal-index, which changes no file.
#[test]
fn a_database_is_not_parked_while_somebody_is_within_a_transaction_that_writes() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b); BEGIN IMMEDIATE").unwrap();
    rig.start();
    let began = Instant::now();
    while rig.figures().durable.is_none() {
        assert!(began.elapsed() < Duration::from_secs(30), "no snapshot: {:?}", rig.figures());
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.figures().parkings, 0);
    app.execute_batch("INSERT INTO t VALUES (1, 'x'); COMMIT").unwrap();
    wait_parked(&rig);
    let history = rig.check();
    assert_eq!(history.positions.len(), 2);
}

#[test]
fn a_large_database_stays_awake() {
    let mut rig = rig();
    rig.parking.bytes_max = 8192;
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, randomblob(20000))")
        .unwrap();
    rig.start();
    rig.wait_durable();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.figures().parkings, 0);
    rig.check();
}

#[test]
fn the_history_of_a_parked_database_is_looked_after_without_waking_it() {
    let mut rig = rig();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| {
        c.history.bundle_interval = Duration::from_secs(3);
        c.history.bundle_segments_min = 2;
    });
    rig.wait_durable();
    for i in 0..5 {
        insert(&app, i);
        rig.wait_durable();
    }
    wait_parked(&rig);
    let before = rig.figures();
    let began = Instant::now();
    while rig.figures().uploaded.files == before.uploaded.files {
        assert!(began.elapsed() < Duration::from_secs(30), "no bundle: {:?}", rig.figures());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(rig.figures().parkings, before.parkings, "it was not woken");
    // It goes on where it was, also when its history is being looked after.
    insert(&app, 5);
    rig.wait_durable();
    let errors = rig.stop();
    assert!(errors.is_empty(), "{errors:?}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}
