//! Adoption: our history goes on where Litestream's ends, also with the real Litestream and a live database; and a `litestream.yml`.

use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::foreign::{replica_folder, vectors};
use crate::litestream::{Daemon, current, old, read, run, url};
use crate::program::{Folder, rows};
use rhyolite_format::litestream::Layout;

fn number(txid: &Value) -> u64 {
    u64::from_str_radix(txid.as_str().unwrap(), 16).unwrap()
}

/// Restores a state of our store; gives its bytes.
fn restored(folder: &Folder, txid: u64, name: &str) -> Vec<u8> {
    let outcome = folder.run(&["restore", "./backup", "--txid", &txid.to_string(), "-o", name]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    read(folder, name)
}

/// Replicates to `./backup` while `commits` rows are written, one by one, and checks that each is a restore point of its own.
fn goes_on(folder: &Folder, adopted: u64, present: usize, commits: u64) {
    let daemon = folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    // What was committed between the two programs is one transaction, if anything was.
    let db = Connection::open(folder.path("a.db")).unwrap();
    db.execute("INSERT INTO t VALUES (1000)", []).unwrap();
    folder.wait_durable("a.db", adopted + 1);
    let log = || -> u64 {
        let log = folder.run(&["log", "./backup", "--json", "--limit", "1"]);
        number(&serde_json::from_str::<Value>(log.stdout.trim()).unwrap()["txid"])
    };
    crate::program::wait_for("the first row to be durable", || {
        let _ = std::fs::remove_file(folder.path("look.db"));
        restored(folder, log(), "look.db");
        rows(&folder.path("look.db")).len() == present + 1
    });
    let first = log();
    for commit in 1..=commits {
        db.execute("INSERT INTO t VALUES (?1)", [1000 + commit as i64]).unwrap();
        folder.wait_durable("a.db", first + commit);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    for commit in 1..=commits {
        let name = format!("commit-{commit}.db");
        restored(folder, first + commit, &name);
        assert_eq!(rows(&folder.path(&name)).len(), present + 1 + commit as usize, "after commit {commit}");
    }
    assert_eq!(log(), first + commits, "every commit is one restore point");
    assert_eq!(rows(&folder.path("a.db")).len(), present + 1 + commits as usize);
    let verified = folder.run(&["verify", "./backup", "--every-point", "--json"]).json();
    assert_eq!(verified["ok"], true, "{verified}");
}

#[test]
fn a_live_database_goes_from_litestream_5_to_us_without_a_gap() {
    let Some(litestream) = current() else { return };
    let folder = Folder::new();
    let db = folder.database("a.db");
    let (path, replica) = (folder.path("a.db"), folder.path("replica"));
    folder.write(
        "theirs.yml",
        format!(
            "dbs: [{{path: {}, monitor-interval: 50ms, replica: {{path: {}, sync-interval: 100ms}}}}]\n",
            path.display(),
            replica.display(),
        ),
    );
    let daemon = Daemon::start(&litestream, &folder, &["replicate", "-config", "theirs.yml"]);
    for row in 0..20 {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        std::thread::sleep(Duration::from_millis(40));
    }
    daemon.stop();
    // Nobody replicates now.
    for row in 20..25 {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
    }
    run(&litestream, &folder, &["restore", "-o", "theirs.db", &url(&folder, "replica")]);
    let adopted = folder.run(&["adopt", "./replica", "a.db", "./backup", "--json"]).json();
    assert_eq!((&adopted["source"], &adopted["proof"]), (&"litestream-0.5".into(), &"file-checksums".into()));
    let txid = number(&adopted["txid"]);
    let log = folder.run(&["log", "./replica", "--json", "--limit", "1"]);
    assert_eq!(serde_json::from_str::<Value>(log.stdout.trim()).unwrap()["txid"], adopted["txid"]);
    assert!(restored(&folder, txid, "first.db") == read(&folder, "theirs.db"), "the state at adoption is Litestream's");
    assert_eq!(rows(&folder.path("first.db")).len(), 20);
    goes_on(&folder, txid, 25, 8);
    // The past is where it was.
    let log = folder.run(&["log", "./replica", "--json"]);
    let oldest: Value = serde_json::from_str(log.stdout.lines().next().unwrap()).unwrap();
    let oldest = oldest["txid"].as_str().unwrap();
    assert_eq!(folder.run(&["restore", "./replica", "--txid", oldest, "-o", "oldest.db"]).code, 0);
    assert!(restored(&folder, txid, "again.db") == read(&folder, "theirs.db"));
}

#[test]
fn a_live_database_goes_from_litestream_3_to_us() {
    let Some(litestream) = old() else { return };
    let folder = Folder::new();
    let db = folder.database("a.db");
    let (path, replica) = (folder.path("a.db"), folder.path("replica"));
    folder.write(
        "theirs.yml",
        format!(
            "dbs: [{{path: {}, monitor-interval: 50ms, replicas: [{{path: {}, sync-interval: 50ms}}]}}]\n",
            path.display(),
            replica.display(),
        ),
    );
    let daemon = Daemon::start(&litestream, &folder, &["replicate", "-config", "theirs.yml"]);
    for row in 0..20 {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        std::thread::sleep(Duration::from_millis(40));
    }
    std::thread::sleep(Duration::from_millis(500));
    daemon.stop();
    run(&litestream, &folder, &["restore", "-o", "theirs.db", &url(&folder, "replica")]);
    let adopted = folder.run(&["adopt", "./replica", "a.db", "./backup", "--json"]).json();
    assert_eq!((&adopted["source"], number(&adopted["txid"])), (&"litestream-0.3".into(), 1));
    assert!(restored(&folder, 1, "first.db") == read(&folder, "theirs.db"), "the state at adoption is Litestream's");
    goes_on(&folder, 1, 20, 3);
}

/// A replica from the vectors and the database that it is of, with the table of these tests.
fn from_vectors() -> Folder {
    let folder = Folder::new();
    replica_folder(&folder, "replica", Layout::Hex);
    folder.write("a.db", vectors::file("litestream/p4096/final.db"));
    folder
}

#[test]
fn adoption_without_the_real_one_and_what_it_refuses() {
    let folder = from_vectors();
    folder.write("other.db", vectors::file("litestream/p512/final.db"));
    folder.write("text.db", "no database".repeat(20));
    let strangers = Connection::open(folder.path("stranger.db")).unwrap();
    strangers
        .execute_batch("PRAGMA page_size=4096; CREATE TABLE x(y); INSERT INTO x VALUES (zeroblob(90000))")
        .unwrap();
    std::fs::create_dir(folder.path("empty")).unwrap();
    for (arguments, code, line) in [
        (["adopt", "./replica", "other.db", "./backup"], 4, "its pages have 512 bytes"),
        (["adopt", "./replica", "stranger.db", "./backup"], 4, "no page of it is as in the replica"),
        (["adopt", "./replica", "text.db", "./backup"], 3, "text.db"),
        (["adopt", "./replica", "missing.db", "./backup"], 1, "missing.db"),
        (["adopt", "./empty", "a.db", "./backup"], 5, "there is no Litestream replica"),
        (["adopt", "./replica", "a.db", "./replica"], 1, "a prefix of its own"),
    ] {
        let outcome = folder.run(&arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {outcome:?}");
        assert_eq!(outcome.stderr.matches('\n').count(), 1, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(line), "{arguments:?}: {outcome:?}");
        assert!(!folder.path("backup").exists(), "{arguments:?}");
    }
    let adopted = folder.run(&["adopt", "./replica", "a.db", "./backup", "--json"]).json();
    assert_eq!(adopted["pages_in_database"], adopted["page_count"], "{adopted}");
    let first = folder.run(&["restore", "./backup", "-o", "first.db", "--json"]).json();
    assert_eq!((&first["txid"], &first["checksum"]), (&adopted["txid"], &adopted["checksum"]));
    assert!(read(&folder, "first.db") == vectors::file("litestream/p4096/final.db"));
    let again = folder.run(&["adopt", "./replica", "a.db", "./backup"]);
    assert_eq!(again.code, 1, "{again:?}");
    let ours = folder.run(&["adopt", "./backup", "a.db", "./third"]);
    assert!(ours.stderr.contains("a store of ours already"), "{ours:?}");

    // What an interrupted adoption has left is taken up.
    std::fs::remove_file(folder.path("backup/manifest.json")).unwrap();
    let outcome = folder.run(&["adopt", "./replica", "a.db", "./backup", "--json"]).json();
    assert_eq!(outcome["lineage"], adopted["lineage"]);
    // An unchanged database is not uploaded again, and goes on.
    let log = || folder.run(&["log", "./backup", "--json"]).stdout.lines().count();
    let daemon = folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    folder.wait_durable("a.db", number(&adopted["txid"]));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    assert_eq!(log(), 1, "nothing was uploaded: nothing had changed");
    // A damaged replica is not adopted.
    let files = folder.content().into_iter().filter(|(path, _)| path.to_string_lossy().ends_with(".ltx"));
    for (path, mut bytes) in files.filter(|(path, _)| path.to_string_lossy().contains("replica/0009/")) {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let outcome = folder.run(&["adopt", "./replica", "a.db", "./fourth"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(!folder.path("fourth").exists());
}

#[test]
fn a_litestream_yml_is_taken_as_it_is() {
    let folder = Folder::new();
    replica_folder(&folder, "replica", Layout::Decimal);
    let before = folder.content().len();
    let db = folder.database("a.db");
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    folder.write("litestream.yml", format!(
        "levels: [{{interval: 30s}}]\ndbs:\n  - path: {}\n    checkpoint-interval: 30s\n    replica: {{path: {}, sync-interval: 100ms, part-size: 5MB}}\n",
        folder.path("a.db").display(), folder.path("replica").display(),
    ));
    let daemon = folder.start(&["replicate", "--config", "litestream.yml"]);
    folder.wait_durable("a.db", 1);
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    for key in ["levels", "dbs[0].replica.part-size", "dbs[0].replica"] {
        assert!(ended.stderr.contains(key), "{key}: {ended:?}");
    }
    assert_eq!(folder.run(&["restore", "./replica/rhyolite", "-o", "b.db"]).code, 0);
    assert_eq!(rows(&folder.path("b.db")), [1]);
    // Litestream's replica is what it was.
    let outcome = folder.run(&["restore", "./replica", "-o", "c.db"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(read(&folder, "c.db") == vectors::file("litestream/p4096/final.db"));
    assert!(folder.content().len() > before);

    // What is printed is what is done.
    let printed = folder.run(&["config", "litestream.yml"]);
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.contains("# levels: different"), "{printed:?}");
    folder.write("ours.yml", printed.stdout);
    let status = |config: &str| folder.run(&["status", "--config", config, "--json"]).stdout;
    let databases = |text: &str| serde_json::from_str::<Value>(text).unwrap()["databases"][0]["store"].clone();
    assert_eq!(databases(&status("ours.yml")), databases(&status("litestream.yml")));
    let notes = folder.run(&["config", "litestream.yml", "--json"]).json();
    assert!(notes["notes"].as_array().unwrap().len() >= 3, "{notes}");
    folder.write("litestream.yml", "dbs: [{path: a.db, replica: {path: /r, age: {recipients: [x]}}}]\n");
    for arguments in [&["config", "litestream.yml"][..], &["replicate", "--config", "litestream.yml"]] {
        let outcome = folder.run(arguments);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.stderr.contains("dbs[0].replica.age: there is no encryption"), "{outcome:?}");
    }
}
