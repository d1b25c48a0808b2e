//! `doctor` on real databases, processes and stores: what it finds, and that it leaves no trace.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use serde_json::Value;

use crate::cli::replicate_two_commits;
use crate::program::{Folder, wait_for};

/// Severity and text of one finding; nothing may have changed in the folder.
#[track_caller]
fn found(folder: &Folder, arguments: &[&str], check: &str) -> (String, String) {
    let before = folder.content();
    let found = look(folder, arguments, check);
    assert_eq!(before, folder.content(), "doctor left something behind");
    found
}

/// The same, without reading the folder: closing a file would drop the locks that this process has on it.
#[track_caller]
fn look(folder: &Folder, arguments: &[&str], check: &str) -> (String, String) {
    let mut all = vec!["doctor"];
    all.extend(arguments);
    all.push("--json");
    let outcome = folder.run(&all);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    assert_eq!(outcome.code, if report["ok"] == true { 0 } else { 1 }, "{outcome:?}");
    let findings = report["findings"].as_array().unwrap();
    let one = findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check}: {outcome:?}"));
    let text = |key: &str| one[key].as_str().unwrap().to_owned();
    assert_eq!(text("severity") == "ok", text("advice").is_empty(), "{one}");
    (text("severity"), text("text"))
}

#[track_caller]
fn check(folder: &Folder, arguments: &[&str], check: &str, severity: &str, part: &str) {
    let (found_severity, text) = found(folder, arguments, check);
    assert_eq!(found_severity, severity, "{check}: {text}");
    assert!(text.contains(part), "{check}: {text}");
}

#[test]
fn a_healthy_database_and_its_store() {
    let folder = Folder::new();
    replicate_two_commits(&folder);
    let arguments = ["a.db", "./backup"];
    for (name, part) in [
        ("database", "is an SQLite database"),
        ("journal-mode", "WAL"),
        ("sqlite-version", "page 1 was last written by SQLite 3."),
        ("linked-sqlite", "SQLite 3."),
        ("permissions", "can be read and written"),
        ("state-folder", "sound"),
        ("store", "holds this database's history"),
        ("clock", "0 s apart"),
    ] {
        check(&folder, &arguments, name, "ok", part);
    }
    check(&folder, &arguments, "synchronous", "note", "cannot be seen from outside");
    let text = folder.run(&["doctor", "a.db"]);
    assert!(text.stdout.contains("ok       database") || text.stdout.contains("ok"), "{text:?}");
}

#[test]
fn what_is_no_database() {
    let folder = Folder::new();
    folder.write("text.db", "this is a text file, long enough to hold a header, but it is not a database\n".repeat(5));
    folder.write("empty.db", "");
    check(&folder, &["missing.db"], "database", "problem", "no such file");
    check(&folder, &["text.db"], "database", "problem", "is no SQLite database");
    check(&folder, &["empty.db"], "database", "note", "is empty");
    check(&folder, &["."], "database", "problem", "not a file");
}

#[test]
fn versions_and_journal_modes() {
    let folder = Folder::new();
    folder.database("a.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let mut bytes = std::fs::read(folder.path("a.db")).unwrap();
    for (version, severity) in [(3_040_001u32, "warning"), (3_050_007, "ok"), (3_051_003, "ok")] {
        bytes[96..100].copy_from_slice(&version.to_be_bytes());
        folder.write("old.db", &bytes);
        check(&folder, &["old.db"], "sqlite-version", severity, "last written by SQLite 3.");
    }
    let rollback = Connection::open(folder.path("rollback.db")).unwrap();
    rollback.execute_batch("CREATE TABLE t(a)").unwrap();
    check(&folder, &["rollback.db"], "journal-mode", "note", "rollback journal");
    // A transaction that its process did not live to finish.
    drop(rollback);
    let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    journal.resize(512, 0);
    folder.write("rollback.db-journal", &journal);
    check(&folder, &["rollback.db"], "journal", "warning", "a transaction was not finished");
    std::fs::hard_link(folder.path("rollback.db"), folder.path("second-name.db")).unwrap();
    check(&folder, &["second-name.db"], "hard-links", "problem", "2 names");
}

#[test]
#[cfg(target_os = "linux")]
fn other_processes() {
    let folder = Folder::new();
    // This very process holds it, and a lock on -shm, through SQLite.
    let db = folder.database("a.db");
    db.execute_batch("PRAGMA mmap_size=1000000; INSERT INTO t VALUES (1); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    db.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    let pid = std::process::id();
    for (name, severity, part) in [
        ("holders", "ok", format!("({pid})")),
        ("locks", "ok", format!("held by process {pid}")),
        ("mmap", "note", "maps the database into memory".to_owned()),
    ] {
        let (found, text) = look(&folder, &["a.db"], name);
        assert!(found == severity && text.contains(&part), "{name}: {found} {text}");
    }
    drop(db);
    // A process goes on with a file that is not there any more.
    folder.database("b.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let mut shell = Command::new("sh")
        .args(["-c", "exec 9<b.db; echo ready; read x"])
        .current_dir(folder.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    check(&folder, &["b.db"], "holders", "ok", &format!("sh ({})", shell.id()));
    std::fs::rename(folder.path("b.db"), folder.path("c.db")).unwrap();
    std::fs::copy(folder.path("c.db"), folder.path("b.db")).unwrap();
    std::fs::remove_file(folder.path("c.db")).unwrap();
    // It was renamed before it was deleted: then it is not of this name any more.
    let outcome = folder.run(&["doctor", "b.db"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    drop(shell.stdin.take());
    shell.wait().unwrap();
    let mut shell = Command::new("sh")
        .args(["-c", "exec 9<b.db; echo ready; read x"])
        .current_dir(folder.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    std::fs::remove_file(folder.path("b.db")).unwrap();
    folder.database("b.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    check(&folder, &["b.db"], "deleted-file", "problem", "still writes to a deleted file");
    drop(shell.stdin.take());
    shell.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_system_in_memory() {
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("a.db");
    Connection::open(&path).unwrap().execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a)").unwrap();
    check(&Folder::new(), &[path.to_str().unwrap()], "file-system", "warning", "tmpfs");
}

#[test]
fn state_folder_store_and_clock() {
    let folder = Folder::new();
    drop(folder.database("fresh.db"));
    check(&folder, &["fresh.db"], "state-folder", "note", "never replicated");
    check(&folder, &["fresh.db", "./nothing"], "store", "note", "holds no backup");
    replicate_two_commits(&folder);
    check(&folder, &["fresh.db", "./backup"], "store", "ok", "holds a backup");
    check(
        &folder,
        &["a.db", "s3://bucket/a?endpoint=http://127.0.0.1:9&region=x"],
        "store",
        "problem",
        "does not answer",
    );
    // A store whose clock is an hour behind, and one that is ahead.
    for (shift, seconds) in [(-3600i64, "3600 s apart"), (7200, "7200 s apart")] {
        let manifest = std::fs::File::options().write(true).open(folder.path("backup/manifest.json")).unwrap();
        let shifted = SystemTime::now()
            .checked_add(Duration::from_secs(shift.max(0).unsigned_abs()))
            .and_then(|time| time.checked_sub(Duration::from_secs((-shift).max(0).unsigned_abs())))
            .unwrap();
        manifest.set_modified(shifted).unwrap();
        let (severity, text) = found(&folder, &["a.db", "./backup"], "clock");
        let about: i64 = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(severity, "warning", "{seconds}: {text}");
        assert!((shift.abs() - about).abs() < 60, "{seconds}: {text}");
    }
    let second = folder.database("second.db");
    second.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let daemon = folder.start(&["replicate", "second.db", "./other", "--sync-interval", "0"]);
    wait_for("a second store", || folder.path("other/manifest.json").exists());
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    check(&folder, &["second.db", "./backup"], "store", "problem", "history of another database");
    folder.write(".a.db-rhyolite/state", [7; 512]);
    check(&folder, &["a.db"], "state-folder", "warning", "state file");
}

#[test]
fn rights() {
    if rustix::process::getuid().is_root() {
        // Root may do everything; but it can give a file away.
        let folder = Folder::new();
        let db = folder.database("a.db");
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        std::os::unix::fs::chown(folder.path("a.db-wal"), Some(12345), None).unwrap();
        check(&folder, &["a.db"], "permissions", "warning", "a.db-wal belongs to another user");
        return;
    }
    let folder = Folder::new();
    drop(folder.database("a.db"));
    std::fs::set_permissions(folder.path("a.db"), std::fs::Permissions::from_mode(0o400)).unwrap();
    check(&folder, &["a.db"], "permissions", "problem", "cannot be written");
}
