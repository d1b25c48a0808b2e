//! The commands through the real binary: what works, and what bad input gets.

use std::net::TcpListener;

use rhyolite_format::segment::Segment;
use rustix::process::Signal;

use crate::program::{Folder, rows, wait_for};

/// A folder with a replicated database: `a.db` with two commits of rows, its store `backup`, nothing running.
fn replicated() -> Folder {
    let folder = Folder::new();
    replicate_two_commits(&folder);
    folder
}

pub(crate) fn replicate_two_commits(folder: &Folder) {
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let daemon = folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    folder.wait_durable("a.db", 1);
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    folder.wait_durable("a.db", 2);
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// The application begins the WAL anew while nobody looks: each commit in the new one is a restore point all the same.
#[test]
fn commits_after_a_reset_of_the_wal_behind_a_killed_daemon_are_not_folded() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let start = || folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    let daemon = start();
    folder.wait_durable("a.db", 1);
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    folder.wait_durable("a.db", 2);
    daemon.signal(Signal::KILL);
    daemon.wait();
    for (round, mode) in ["RESTART", "TRUNCATE"].into_iter().enumerate() {
        db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
        for row in 0..3 {
            db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        }
        let daemon = start();
        folder.wait_durable("a.db", 5 + 3 * round as u64);
        daemon.signal(Signal::KILL);
        daemon.wait();
    }
    let points = folder.run(&["log", "./backup", "--json"]).stdout.lines().count();
    assert_eq!(points, 8, "a restore point for each commit");
    assert_eq!(folder.run(&["verify", "./backup", "--every-point"]).code, 0);
    // Frames that are in the database file already cannot be told apart from what it was before.
    db.execute_batch("INSERT INTO t VALUES (10); INSERT INTO t VALUES (11); PRAGMA wal_checkpoint(PASSIVE);").unwrap();
    db.execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES (12); PRAGMA wal_checkpoint(PASSIVE)")
        .unwrap();
    let daemon = start();
    folder.wait_durable("a.db", 9);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    assert_eq!(folder.run(&["verify", "./backup", "--every-point"]).code, 0);
    assert_eq!(folder.run(&["restore", "./backup", "-o", "copy.db"]).code, 0);
    assert_eq!(rows(&folder.path("copy.db")), rows(&folder.path("a.db")));
}

/// Exactly one line on standard error, the given status, nothing on standard output, and nothing touched.
#[track_caller]
pub(crate) fn check_refused(folder: &Folder, arguments: &[&str], code: i32, line: &str) {
    let before = folder.content();
    let outcome = folder.run(arguments);
    assert_eq!(outcome.code, code, "{arguments:?}: {outcome:?}");
    assert_eq!(outcome.stdout, "", "{arguments:?}");
    let text = outcome.stderr.strip_prefix("rhyolite: ").unwrap_or_else(|| panic!("{arguments:?}: {outcome:?}"));
    assert_eq!(text.matches('\n').count(), 1, "{arguments:?}: {outcome:?}");
    assert!(text.contains(line), "{arguments:?}: {outcome:?}");
    assert!(!text.contains("panick") && !text.contains("os error"), "{arguments:?}: {outcome:?}");
    let after = folder.content();
    let changed = after.iter().find(|(path, bytes)| before.get(*path) != Some(bytes)).map(|(path, _)| path);
    assert_eq!((changed, after.len()), (None, before.len()), "{arguments:?} touched something");
}

#[test]
fn bad_input_to_replicate() {
    let folder = Folder::new();
    drop(folder.database("a.db"));
    std::fs::create_dir(folder.path("folder")).unwrap();
    folder.write("text.db", "this is a text file, long enough to hold a header, but it is not a database\n".repeat(5));
    folder.write("short.db", "SQLite format 3");
    folder.write("key.yml", "dbs:\n  - path: a.db\n    replcia: {url: ./b}\n");
    folder.write("env.yml", "dbs:\n  - path: a.db\n    replica: {url: './$RHYOLITE_UNSET'}\n");
    folder.write("none.yml", "addr: ':9'\n");
    folder.write("syntax.yml", "dbs: [\n");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let long = "x".repeat(300);
    for (arguments, code, line) in [
        (&["replicate", "text.db", "./b"][..], 1, "text.db: not a SQLite database"),
        (&["replicate", "short.db", "./b"], 1, "short.db: not a SQLite database"),
        (&["replicate", "folder", "./b"], 1, "it is a folder, not a database"),
        (&["replicate", "missing/a.db", "./b"], 1, "there is no folder"),
        (&["replicate", &long, "./b"], 1, "file name too long"),
        (&["replicate", "a.db"], 2, "<STORE>"),
        (&["replicate", "a.db", "ftp://host/b"], 2, "unknown scheme \"ftp\""),
        (&["replicate", "a.db", "s3://b?regoin=eu"], 2, "regoin"),
        (&["replicate", "a.db", "./b", "--sync-interval", "5"], 2, "is no duration"),
        (&["replicate", "a.db", "./b", "--max-log-size", "1"], 2, "must be at least"),
        (&["replicate", "a.db", "./b", "--addr", "here"], 2, "is no address"),
        (&["replicate", "a.db", "./b", "--addr", &taken], 1, "address already in use"),
        (&["replicate", "a.db", "./b", "--exec", "/missing/app"], 1, "cannot start \"/missing/app\""),
        (&["replicate", "a.db", "./b", "--exec", "'a"], 1, "without its pair"),
        (&["replicate", "--config", "missing.yml"], 2, "missing.yml: no such file"),
        (&["replicate", "--config", "key.yml"], 2, "key.yml line 3: unknown key `replcia`; did you mean `replica`?"),
        (&["replicate", "--config", "env.yml"], 2, "env.yml line 3: environment variable RHYOLITE_UNSET is not set"),
        (&["replicate", "--config", "none.yml"], 2, "none.yml: no databases"),
        (&["replicate", "--config", "syntax.yml"], 2, "syntax.yml line "),
        (&["replicate", "--config", "key.yml", "--sync-interval", "1s"], 2, "belong into the configuration file"),
        (&["status", "a.db"], 1, "a.db has never been replicated"),
        (&["frobnicate"], 2, "unrecognized subcommand"),
    ] {
        // `status` shows what it knows, which is nothing, before it fails.
        if arguments[0] != "status" {
            check_refused(&folder, arguments, code, line);
        } else {
            assert_eq!(folder.run(arguments).code, code);
        }
    }
}

#[test]
fn bad_input_to_commands_that_read_a_store() {
    let folder = replicated();
    std::fs::create_dir(folder.path("empty")).unwrap();
    for (arguments, code, line) in [
        (&["restore", "./missing", "-o", "x.db"][..], 5, "./missing holds no replicated database"),
        (&["restore", "./empty", "-o", "x.db"], 5, "./empty holds no replicated database"),
        (&["restore", "ftp://host/b", "-o", "x.db"], 2, "unknown scheme"),
        (&["restore", "./backup"], 2, "--output <PATH>"),
        (&["restore", "./backup", "-o", "a.db"], 1, "a.db"),
        (&["restore", "./backup", "-o", "missing/x.db"], 1, "missing"),
        (&["restore", "./backup", "-o", "x.db", "--txid", "0"], 2, "is no TXID"),
        (&["restore", "./backup", "-o", "x.db", "--txid", "99"], 5, "TXID 0000000000000063"),
        (&["restore", "./backup", "-o", "x.db", "--at", "yesterday"], 2, "is no time"),
        (&["restore", "./backup", "-o", "x.db", "--at", "2020-01-01T00:00:00Z"], 5, "outside of what can be restored"),
        (&["restore", "./backup", "-o", "x.db", "--at", "2999-01-01T00:00:00Z"], 5, "--nearest"),
        (&["restore", "./backup", "-o", "x.db", "--at", "1m ago", "--txid", "1"], 2, "cannot be used with"),
        (&["restore", "./backup", "-o", "x.db", "--nearest"], 2, "--at"),
        (&["restore", "./backup", "-o", "-", "--json"], 2, "-o -"),
        (&["log", "./missing"], 5, "holds no replicated database"),
        (&["verify", "./missing"], 5, "holds no replicated database"),
        (&["verify", "./backup", "--txid", "1"], 2, "--against"),
        (&["verify", "./backup", "--against", "missing.db"], 1, "missing.db"),
    ] {
        check_refused(&folder, arguments, code, line);
    }
}

#[test]
fn bad_input_to_ltx() {
    let folder = replicated();
    folder.write(
        "text.ltx",
        "this is a text file, which is longer than the header of an LTX file, but is none\n".repeat(3),
    );
    folder.write("text.db", "text");
    let snapshot = std::fs::read_dir(folder.path("backup/ltx/9")).unwrap().next().unwrap().unwrap().path();
    let segment = std::fs::read(folder.path("backup/log/0000000000000001.seg")).unwrap();
    let entry = Segment::decode(&segment).unwrap().entries.remove(0);
    let (start, len) = (usize::try_from(entry.offset).unwrap(), usize::try_from(entry.len).unwrap());
    folder.write("next.ltx", &segment[start..start + len]);
    let snapshot = snapshot.to_str().unwrap();
    for (arguments, code, line) in [
        (&["ltx", "dump", "missing.ltx"][..], 1, "cannot open missing.ltx"),
        (&["ltx", "dump", "text.ltx"], 3, "text.ltx is no valid LTX file"),
        (&["ltx", "apply", "-o", "x.db", "text.ltx"], 3, "text.ltx is no valid LTX file"),
        (&["ltx", "apply", "-o", "x.db", "next.ltx"], 1, "is no snapshot"),
        (&["ltx", "apply", "-o", "x.db", snapshot, snapshot, "text.ltx"], 3, "text.ltx"),
        (&["ltx", "apply", "-o", "text.db", snapshot], 1, "--force replaces it"),
        (&["ltx", "apply", "-o", "x.db", "--base", "text.db", "next.ltx"], 1, "not a SQLite database"),
        (&["ltx", "checksum", "text.db"], 1, "not a SQLite database"),
    ] {
        check_refused(&folder, arguments, code, line);
    }
    let applied = folder.run(&["ltx", "apply", "-o", "x.db", snapshot, "next.ltx", "--json"]).json();
    assert_eq!(folder.run(&["restore", "./backup", "-o", "y.db"]).code, 0);
    assert!(folder.content()[&folder.path("x.db")] == folder.content()[&folder.path("y.db")]);
    let checksum = folder.run(&["ltx", "checksum", "y.db", "--json"]).json();
    assert_eq!(applied["checksum"], checksum["checksum"]);
    assert_eq!(folder.run(&["ltx", "verify", snapshot, "next.ltx"]).code, 0);
    let reversed = folder.run(&["ltx", "verify", "next.ltx", "text.ltx", snapshot]);
    assert_eq!((reversed.code, reversed.stdout.lines().count()), (3, 3), "{reversed:?}");
}

#[test]
fn damage_in_the_store_is_found_and_nothing_is_restored() {
    let folder = replicated();
    let segment = folder.path("backup/log/0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&segment, bytes).unwrap();
    check_refused(&folder, &["restore", "./backup", "-o", "x.db"], 3, "cannot restore ./backup");
    let verified = folder.run(&["verify", "./backup"]);
    assert_eq!((verified.code, verified.stderr.lines().count()), (3, 1), "{verified:?}");
    assert!(verified.stdout.contains("damaged: log/0000000000000001.seg"), "{verified:?}");
    let verified = folder.run(&["verify", "./backup", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&verified.stdout).unwrap()["ok"], false);

    std::fs::write(folder.path("backup/id.json"), "{\"format\": 2}").unwrap();
    check_refused(&folder, &["restore", "./backup", "-o", "x.db"], 3, "id.json");
}

#[test]
fn what_was_replicated_is_listed_verified_and_restored() {
    let folder = replicated();
    let log = folder.run(&["log", "./backup", "--json"]);
    let points: Vec<serde_json::Value> = log.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        points.iter().map(|p| p["txid"].as_str().unwrap()).collect::<Vec<_>>(),
        ["0000000000000001", "0000000000000002"]
    );
    assert_eq!(folder.run(&["log", "./backup", "--limit", "1"]).stdout.lines().count(), 2, "a heading and a point");
    let verified = folder.run(&["verify", "./backup", "--every-point", "--json"]).json();
    assert_eq!((&verified["ok"], &verified["points_proved"]), (&true.into(), &2.into()));

    let restored = folder.run(&["restore", "./backup", "-o", "x.db", "--json"]).json();
    assert_eq!(restored["checksum"], points[1]["checksum"]);
    assert_eq!(rows(&folder.path("x.db")), [1, 2]);
    assert_eq!(folder.run(&["restore", "./backup", "-o", "y.db", "--txid", "1"]).code, 0);
    assert_eq!(rows(&folder.path("y.db")), [1]);
    let time = points[0]["time"].as_str().unwrap();
    assert_eq!(folder.run(&["restore", "./backup", "-o", "z.db", "--at", time]).code, 0);
    assert_eq!(rows(&folder.path("z.db")), [1]);

    assert_eq!(folder.run(&["restore", "./backup", "-o", "x.db", "--if-missing"]).code, 0);
    assert_eq!(folder.run(&["restore", "./none", "-o", "w.db", "--if-backup-exists"]).code, 0);
    assert!(!folder.path("w.db").exists());
    let different = folder.run(&["verify", "./backup", "--against", "y.db"]);
    assert_eq!((different.code, different.stdout.as_str()), (3, ""), "{different:?}");
}

#[test]
fn a_file_follows_its_store() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let daemon = folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    folder.wait_durable("a.db", 1);
    let following = ["restore", "./backup", "-o", "f.db", "--follow", "--follow-interval", "10ms", "--json"];
    let follower = folder.start(&following);
    wait_for("the first restore", || folder.path("f.db").exists());
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    wait_for("the second row", || rows(&folder.path("f.db")) == [1, 2]);
    follower.signal(Signal::TERM);
    let ended = follower.wait();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let last: serde_json::Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["txid"], "0000000000000002");

    db.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    let follower = folder.start(&following);
    wait_for("the third row", || rows(&folder.path("f.db")) == [1, 2, 3]);
    follower.signal(Signal::INT);
    assert_eq!(follower.wait().code, 0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
}

#[test]
fn a_store_of_another_history_is_refused() {
    let folder = replicated();
    drop(folder.database("b.db"));
    let daemon = folder.start(&["replicate", "b.db", "./other"]);
    folder.wait_durable("b.db", 1);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code, 0);
    let store = |folder: &Folder| folder.content().into_iter().filter(|(p, _)| p.to_string_lossy().contains("/other"));
    let before: Vec<_> = store(&folder).collect();
    let refused = folder.run(&["replicate", "a.db", "./other", "--log-level", "error"]);
    assert_eq!((refused.code, refused.stderr.lines().count()), (4, 1), "{refused:?}");
    assert!(before.into_iter().eq(store(&folder)), "nothing in the store was touched");
    assert_eq!(folder.run(&["status", "a.db", "./other"]).code, 4);
    assert_eq!(folder.run(&["status", "a.db", "./backup"]).code, 0);
}

#[test]
fn the_exit_status_is_the_applications_after_a_last_upload() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let application = "sh -c 'while ! test -e go; do sleep 0.02; done; exit 9'";
    let daemon = folder.start(&["replicate", "a.db", "./backup", "-exec", application, "--sync-interval", "1h"]);
    folder.wait_durable("a.db", 1);
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    folder.write("go", "");
    let ended = daemon.wait();
    assert_eq!(ended.code, 9, "{ended:?}");
    assert_eq!(folder.run(&["restore", "./backup", "-o", "x.db"]).code, 0);
    assert_eq!(rows(&folder.path("x.db")), [1, 2]);
}

#[test]
fn a_store_that_hangs_does_not_hold_up_the_end() {
    let folder = Folder::new();
    drop(folder.database("a.db"));
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = format!("s3://bucket/app?endpoint=http://{}", silent.local_addr().unwrap());
    let keys = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];
    let daemon = folder.start_with(&["replicate", "a.db", &store, "--shutdown-sync-timeout", "100ms"], &keys);
    // A connection says that it is waiting for the store.
    let _connection = silent.accept().unwrap();
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert_eq!(ended.code, 6, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.contains("a.db: the last commits are not in s3://bucket/app"), "{ended:?}");
}

#[test]
fn a_second_signal_ends_at_once_and_takes_the_application_along() {
    let folder = Folder::new();
    drop(folder.database("a.db"));
    let deaf = "sh -c 'trap \"\" TERM; echo $$ > pid.new; mv pid.new pid; while :; do sleep 1; done'";
    let daemon =
        folder.start(&["replicate", "a.db", "./b", "--exec", deaf, "--shutdown-sync-timeout", "1h", "--addr", ":0"]);
    wait_for("the application", || folder.path("pid").exists());
    let pid = std::fs::read_to_string(folder.path("pid")).unwrap();
    let application = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    folder.wait_durable("a.db", 1);
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::INT);
    let ended = daemon.wait();
    assert!([130, 143].contains(&ended.code), "{ended:?}");
    wait_for("the application to be gone", || rustix::process::test_kill_process(application).is_err());
}

#[test]
fn broken_pipes_and_help_are_quiet() {
    let folder = Folder::new();
    let ended = folder.run_into_closed_pipe(&["completions", "bash"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
    for arguments in [&["--help"][..], &["replicate", "--help"], &["--version"], &["version", "--json"]] {
        let shown = folder.run(arguments);
        assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(!shown.stdout.is_empty());
    }
}
