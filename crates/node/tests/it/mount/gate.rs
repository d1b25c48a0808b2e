//! Commits that wait for the store.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use rustix::process::Signal;

use super::{Mount, insert, writer};
use crate::program::wait_for;

const MODES: [&str; 4] = ["wal", "delete", "truncate", "persist"];
const STRICT: [&str; 4] = ["--durability", "store", "--durability-timeout", "700ms"];

fn count(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

impl Mount {
    /// Nothing gets to the store, and everything comes from it as before.
    fn cut_off(&self) {
        std::fs::rename(self.folder.path("backup"), self.folder.path("away")).unwrap();
        std::fs::write(self.folder.path("backup"), "not a folder").unwrap();
    }

    fn connect_again(&self) {
        std::fs::remove_file(self.folder.path("backup")).unwrap();
        std::fs::rename(self.folder.path("away"), self.folder.path("backup")).unwrap();
    }

    fn strict(name: &str, mode: &str) -> Option<(Self, Connection)> {
        let mount = Self::with(&STRICT)?;
        let db = mount.open(name, mode);
        db.execute_batch("PRAGMA synchronous=FULL").unwrap();
        Some((mount, db))
    }

    fn ungated(&self, name: &str) -> u64 {
        let status = self.folder.run(&["status", &format!("db/{name}"), "--json"]).json();
        status["databases"][0]["status"]["ungated"].as_u64().unwrap()
    }

    fn rows_of_restore(&self, name: &str) -> i64 {
        assert!(self.restored(name, &[]).is_some(), "{name} is not restored");
        count(&Connection::open(self.folder.path("copy.db")).unwrap())
    }
}

/// The store, and whoever may write it, fails a commit: it is one of the error codes of a sync.
fn is_io_error(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

#[test]
fn what_the_application_was_told_is_in_the_store() {
    for mode in MODES {
        let name = format!("{mode}.db");
        let Some((mut mount, db)) = Mount::strict(&name, mode) else { return };
        for row in 1..=5 {
            insert(&db, 0..1);
            assert_eq!(mount.rows_of_restore(&name), row, "{mode}");
        }
        insert(&db, 0..20);
        // Nothing can be uploaded after this.
        mount.signal(Signal::KILL);
        assert_eq!(mount.rows_of_restore(&name), 25, "{mode}");
        drop(db);
    }
}

#[test]
fn a_commit_that_the_store_does_not_get_fails_and_is_taken_back() {
    for mode in MODES {
        let name = format!("{mode}.db");
        let Some((mut mount, db)) = Mount::strict(&name, mode) else { return };
        insert(&db, 0..3);
        mount.cut_off();
        let began = Instant::now();
        let failed = db.execute("INSERT INTO t(b) VALUES (1)", []).unwrap_err();
        assert!(is_io_error(&failed), "{mode}: {failed}");
        assert!(began.elapsed() >= Duration::from_millis(700), "{mode}: not before its time");
        assert_eq!(count(&db), 3, "{mode}: taken back");
        mount.connect_again();
        wait_for("commits to succeed again", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
        assert_eq!(count(&db), 4, "{mode}");
        mount.wait_captured(&name);
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
        drop(db);
        mount.stop();
        assert_eq!(mount.rows_of_restore(&name), 4, "{mode}");
    }
}

/// Whoever waits is killed: the commit may be in the log, and is none.
#[test]
fn a_writer_that_is_killed_while_it_waits_leaves_what_the_database_holds() {
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let Some((mut mount, db)) = Mount::strict(&name, mode) else { return };
        insert(&db, 0..3);
        for round in 0..4 {
            mount.cut_off();
            let mut child = writer(&mount.path(&name), mode);
            std::thread::sleep(Duration::from_millis(200 + 90 * round));
            child.kill().unwrap();
            mount.connect_again();
            child.wait().unwrap();
            wait_for("a commit", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
            mount.wait_captured(&name);
        }
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
        drop(db);
        mount.stop();
    }
}

#[test]
fn what_does_not_wait_is_counted_and_said() {
    let Some((mut mount, db)) = Mount::strict("a.db", "wal") else { return };
    insert(&db, 0..2);
    assert_eq!(mount.ungated("a.db"), 0);
    db.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
    insert(&db, 0..2);
    wait_for("the count", || mount.ungated("a.db") == 2);
    drop(db);
    let ended = mount.signal(Signal::TERM);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stderr.matches("did not wait for the store").count(), 1, "{ended:?}");
}

/// There is nothing to wait for until it is captured, and that cannot be before it is there.
#[test]
fn a_database_that_was_never_captured_is_made_at_once() {
    let Some(mut mount) = Mount::with(&STRICT) else { return };
    for mode in MODES {
        let db = Connection::open(mount.path(&format!("new-{mode}.db"))).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 2)").unwrap();
    }
    mount.stop();
    for mode in MODES {
        assert_eq!(mount.rows_of_restore(&format!("new-{mode}.db")), 1);
    }
}

#[test]
fn several_writers_large_transactions_and_checkpoints_wait_as_well() {
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let Some(mut mount) = Mount::with(&["--durability", "store", "--durability-timeout", "20s"]) else { return };
        let db = mount.open(&name, mode);
        let mut children: Vec<_> =
            (0..if mode == "wal" { 2 } else { 1 }).map(|_| writer(&mount.path(&name), mode)).collect();
        db.execute_batch("PRAGMA synchronous=FULL").unwrap();
        for rows in [1, 30_000, 1] {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) INSERT INTO t(b) SELECT hex(randomblob(200)) FROM n";
            db.execute(sql, [rows]).unwrap();
            if mode == "wal" {
                db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
            }
        }
        for child in &mut children {
            // SQLite is not fair: one that got no turn for 20 s has ended.
            let _ = child.kill();
            child.wait().unwrap();
        }
        wait_for("a commit", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
        mount.wait_captured(&name);
        drop(db);
        let ended = mount.signal(Signal::TERM);
        assert!(ended.code == 0 && !ended.stderr.contains("a commit failed"), "{ended:?}");
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
    }
}

/// Nothing of a WAL is in shared memory then: its writer draws the salts.
#[test]
fn the_first_commit_of_an_empty_wal_waits() {
    let Some((mut mount, db)) = Mount::strict("a.db", "wal") else { return };
    insert(&db, 0..2);
    drop(db);
    mount.stop();
    // Closed by the last who had it open, it has no WAL any more.
    let behind = mount.folder.path("data/a.db");
    drop(Connection::open(&behind).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    assert!(!behind.with_extension("db-wal").exists());
    mount.start(&STRICT).unwrap();
    let db = Connection::open(mount.path("a.db")).unwrap();
    wait_for("the database to be captured", || mount.path("a.db-pos").exists());
    mount.cut_off();
    let failed = db.execute("INSERT INTO t(b) VALUES (1)", []).unwrap_err();
    assert!(is_io_error(&failed), "{failed}");
    mount.connect_again();
    wait_for("a commit", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
    for mode in ["RESTART", "TRUNCATE"] {
        // By another connection: the writer has made no checkpoint of its own.
        let other = Connection::open(mount.path("a.db")).unwrap();
        other.busy_timeout(Duration::from_secs(5)).unwrap();
        other.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
        insert(&db, 0..1);
        insert(&db, 0..1);
    }
    assert_eq!(mount.ungated("a.db"), 0);
    let rows = count(&db);
    assert_eq!(mount.rows_of_restore("a.db"), rows);
    drop(db);
    mount.stop();
}

#[test]
fn a_transaction_that_is_too_large_to_wait_fails_and_leaves_the_database_usable() {
    let Some((mut mount, db)) = Mount::strict("a.db", "delete") else { return };
    insert(&db, 0..2);
    let large = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70) INSERT INTO t(b) SELECT randomblob(1 << 20) FROM n";
    let failed = db.execute(large, []).unwrap_err();
    assert!(is_io_error(&failed), "{failed}");
    assert_eq!(count(&db), 2);
    wait_for("a commit", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
    assert_eq!(mount.rows_of_restore("a.db"), 3);
    drop(db);
    let ended = mount.signal(Signal::TERM);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("more than 64 MiB"), "{ended:?}");
}

#[test]
fn a_database_that_is_removed_can_be_made_again() {
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let Some((mut mount, db)) = Mount::strict(&name, mode) else { return };
        drop(db);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(mount.path(&format!("{name}{suffix}")));
        }
        std::thread::sleep(Duration::from_millis(300));
        let db = Connection::open(mount.path(&name)).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (7, 2)").unwrap();
        mount.wait_captured(&name);
        insert(&db, 0..1);
        assert_eq!(mount.rows_of_restore(&name), 2);
        drop(db);
        mount.stop();
    }
}

/// Each name has a WAL of its own.
#[test]
fn who_waits_under_one_of_two_names_is_not_answered_by_the_other() {
    let Some((mut mount, db)) = Mount::strict("a.db", "wal") else { return };
    std::fs::hard_link(mount.path("a.db"), mount.path("b.db")).unwrap();
    wait_for("the other name", || mount.restored("b.db", &[]).is_some());
    insert(&db, 0..3);
    assert_eq!(mount.rows_of_restore("a.db"), 3);
    mount.cut_off();
    let failed = db.execute("INSERT INTO t(b) VALUES (1)", []).unwrap_err();
    assert!(is_io_error(&failed), "{failed}");
    mount.connect_again();
    wait_for("a commit", || db.execute("INSERT INTO t(b) VALUES (2)", []).is_ok());
    drop(db);
    mount.signal(Signal::TERM);
}

/// Somebody else's sync in the middle of a transaction is no commit.
#[test]
fn a_sync_by_others_in_the_middle_of_a_transaction_opens_nothing() {
    let Some((mut mount, db)) = Mount::strict("a.db", "delete") else { return };
    insert(&db, 0..3);
    let before = mount.points("a.db").len();
    db.execute_batch("PRAGMA cache_size=5; BEGIN").unwrap();
    insert(&db, 0..300);
    let path = mount.path("a.db");
    std::thread::spawn(move || std::fs::File::open(path).unwrap().sync_all().unwrap()).join().unwrap();
    insert(&db, 0..10);
    db.execute_batch("COMMIT").unwrap();
    assert_eq!(mount.points("a.db").len(), before + 1);
    assert_eq!(mount.rows_of_restore("a.db"), 313);
    drop(db);
    mount.stop();
}
