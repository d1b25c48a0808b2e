//! Journals that the kernel writes without the daemon.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;

use super::{Mount, insert};
use crate::program::wait_for;

/// With an exclusive lock the journal stays open, its header is zeroed, and nothing is synced: nobody tells of an end.
#[test]
fn every_commit_that_is_never_synced_is_a_restore_point() {
    let Some(mut mount) = Mount::new() else { return };
    for (mode, locking) in [
        ("delete", "exclusive"),
        ("persist", "exclusive"),
        ("persist", "normal"),
        ("truncate", "normal"),
        ("delete", "normal"),
    ] {
        let name = format!("{mode}{locking}.db");
        let db = mount.open(&name, mode);
        db.pragma_update(None, "locking_mode", locking).unwrap();
        db.pragma_update(None, "synchronous", "off").unwrap();
        db.pragma_update(None, "cache_size", 5).unwrap();
        let before = *mount.points(&name).last().unwrap();
        insert(&db, 0..20);
        // Nothing comes after the last of these.
        mount.wait_captured(&name);
        // What was taken back leaves other bytes in free pages at most, and is no end of what comes after it.
        db.execute_batch("BEGIN; INSERT INTO t(b) VALUES (1); ROLLBACK").unwrap();
        // Capture looks at the file between the end of a commit and the next one, and is kept out by an exclusive lock.
        for row in 20..30 {
            insert(&db, row..row + 1);
            std::thread::sleep(Duration::from_millis(25));
        }
        mount.wait_captured(&name);
        mount.check_rows(&name, before, &(0..=30).collect::<Vec<_>>());
        assert_eq!(*mount.points(&name).last().unwrap(), before + 30, "{name}");
        db.close().unwrap();
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
    }
    mount.stop();
}

/// Its journal is hot, and the daemon was never asked for a page: whoever opens the database next plays it back.
#[test]
fn a_writer_may_be_killed_before_its_first_page() {
    let Some(mut mount) = Mount::new() else { return };
    let script = "
import sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
c.execute('pragma journal_mode=' + sys.argv[2])
c.execute('pragma synchronous=off')
c.execute('begin immediate')
c.execute('update t set b = 7')
print('written', flush=True)
time.sleep(60)
";
    for mode in ["delete", "truncate", "persist"] {
        let name = format!("{mode}.db");
        let db = mount.open(&name, mode);
        insert(&db, 0..10);
        mount.wait_captured(&name);
        db.close().unwrap();
        for _ in 0..3 {
            let mut command = Command::new("python3");
            command.args(["-c", script]).arg(mount.path(&name)).arg(mode).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut said = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
            assert_eq!(said, "written\n");
            child.kill().unwrap();
            child.wait().unwrap();
            let db = Connection::open(mount.path(&name)).unwrap();
            let changed: i64 = db.query_row("SELECT count(*) FROM t WHERE b = 7", [], |row| row.get(0)).unwrap();
            assert_eq!(changed, 0, "{name}");
            insert(&db, 0..1);
            mount.wait_captured(&name);
            db.close().unwrap();
        }
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
    }
    mount.stop();
}

/// Whoever holds an exclusive lock asks for none any more, and writes its journal beside those who come by the next mount.
#[test]
fn a_journal_that_is_open_from_before_keeps_the_next_mount_away() {
    let Some(mut mount) = Mount::new() else { return };
    let db = mount.open("a.db", "persist");
    db.pragma_update(None, "locking_mode", "exclusive").unwrap();
    insert(&db, 0..5);
    mount.wait_captured("a.db");
    let killed = mount.signal(Signal::KILL);
    if !killed.stderr.contains("the kernel does not pass") {
        let refused = mount.start(&[]).unwrap_err();
        assert!(refused.contains("a.db-journal is in use: stop the processes"), "{refused}");
    }
    drop(db);
    // The kernel lets go of what it passes through a moment after it was closed.
    wait_for("the next mount", || mount.start(&[]).is_ok());
    let db = Connection::open(mount.path("a.db")).unwrap();
    insert(&db, 0..1);
    mount.wait_captured("a.db");
    db.close().unwrap();
    mount.stop();
}

#[test]
fn a_write_without_a_journal_is_refused_and_the_database_stays_whole() {
    let Some(mut mount) = Mount::new() else { return };
    let db = mount.open("a.db", "delete");
    insert(&db, 0..5);
    mount.wait_captured("a.db");
    for mode in ["memory", "off"] {
        let other = Connection::open(mount.path("a.db")).unwrap();
        other.pragma_update(None, "journal_mode", mode).unwrap();
        let error = other.execute("INSERT INTO t(b) VALUES (1)", []).unwrap_err();
        assert!(error.to_string().contains("disk I/O error"), "{error}");
    }
    // As `cp` over the database does it: it is not even emptied.
    assert_eq!(fs::File::create(mount.path("a.db")).unwrap_err().raw_os_error(), Some(5));
    let count: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 5);
    insert(&db, 0..1);
    mount.wait_captured("a.db");
    drop(db);
    let ended = mount.signal(Signal::TERM);
    assert!(ended.code == 0 && ended.stderr.contains("journal_mode MEMORY and OFF are not supported"), "{ended:?}");
}
