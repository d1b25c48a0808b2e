//! Databases that are removed and made anew on the mount.

use std::fs;
use std::time::Duration;

use rusqlite::Connection;

use super::{Mount, insert};

/// Capture holds the wal-index of a database that its application has closed. Who removes the database alone, and makes another at once, does not take
/// that index for its own.
#[test]
fn a_database_that_is_removed_alone_can_be_made_anew_at_once() {
    let Some(mut mount) = Mount::new() else { return };
    drop(mount.open("app.db", "wal"));
    for round in 0..6 {
        let db = Connection::open(mount.path("app.db")).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)").unwrap();
        insert(&db, 0..40);
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
        mount.wait_captured("app.db");
        // Idle ones are watched, others looked at.
        std::thread::sleep(Duration::from_millis(if round % 3 == 2 { 2500 } else { 0 }));
        db.close().unwrap();
        fs::remove_file(mount.path("app.db")).unwrap();
    }
    mount.stop();
}
