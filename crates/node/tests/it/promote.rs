//! A role that goes to the node that was asked for, and commands that run with it.

use std::time::Instant;

use rusqlite::Connection;

use crate::cluster::{Cluster, rows};
use crate::program::wait_for;

/// Three nodes, of which `a` is the primary.
fn three() -> Cluster {
    let mut cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        cluster.start(name);
        if name == "a" {
            cluster.wait_writing("a");
        } else {
            cluster.wait_role(name, "replica");
        }
    }
    cluster
}

#[test]
fn the_role_goes_to_whom_it_is_handed() {
    let mut cluster = three();
    let mut primary = "a";
    // By chance each of them would win half of the time.
    for next in ["c", "a", "b", "c", "b"] {
        let (socket, to) = (format!("{primary}.sock"), cluster.addresses[next].clone());
        let own = cluster.addresses[primary].clone();
        let refused = cluster.folder.run(&["ctl", "handoff", "--socket", &socket, "--to", &own]);
        assert_eq!((refused.code, refused.stderr.contains("and is primary")), (1, true), "{refused:?}");
        let noted = cluster.last_noted(primary);
        let handed = cluster.folder.run(&["ctl", "handoff", "--socket", &socket, "--to", &to]);
        assert_eq!(handed.code, 0, "{handed:?}");
        cluster.wait_role(next, "primary");
        cluster.wait_writing(next);
        assert!((1..=noted).all(|n| rows(&cluster.database(next)).contains(&n)), "a commit from before is missing");
        cluster.wait_role(primary, "replica");
        primary = next;
    }
    // One that is not there is waited for, and not for ever.
    let began = Instant::now();
    let nobody = "127.0.0.1:9";
    let handed = cluster.folder.run(&["ctl", "handoff", "--socket", "b.sock", "--to", nobody]);
    assert_eq!(handed.code, 0, "{handed:?}");
    wait_for("somebody else to take it", || ["a", "c"].iter().any(|name| cluster.node(name)["role"] == "primary"));
    assert!(began.elapsed() > std::time::Duration::from_secs(1), "half of the lease's time is left to it");
    for name in ["a", "b", "c"] {
        cluster.stop(name);
    }
    cluster.check_store();
}

#[test]
fn a_command_runs_on_the_node_that_becomes_the_primary_for_it() {
    let mut cluster = three();
    cluster.start_with("d", &["--candidate=false"]);
    cluster.wait_role("d", "replica");
    for name in ["c", "b", "b"] {
        let (socket, db) = (format!("{name}.sock"), cluster.database(name));
        let began = Instant::now();
        let script = format!(
            "import sqlite3, sys; c = sqlite3.connect({db:?}, timeout=20); c.execute('CREATE TABLE IF NOT EXISTS of_{name}(x)'); c.commit(); print('done'); sys.exit(7)"
        );
        let ran = cluster.folder.run(&["run", "--promote", "--socket", &socket, "--", "python3", "-c", &script]);
        assert_eq!((ran.code, ran.stdout.as_str()), (7, "done\n"), "{ran:?}");
        assert_eq!(cluster.node(name)["role"], "primary", "after {:?}", began.elapsed());
        cluster.wait_writing(name);
    }
    let promoted = cluster.folder.run(&["ctl", "promote", "--socket", "a.sock", "--timeout", "20s"]);
    assert_eq!((promoted.code, promoted.stdout.as_str()), (0, "this node is the primary\n"), "{promoted:?}");
    // What the commands have made is in the history.
    cluster.wait_writing("a");
    let db = Connection::open(cluster.database("a")).unwrap();
    let made = "SELECT count(*) FROM sqlite_master WHERE name IN ('of_b', 'of_c')";
    assert_eq!(db.query_row(made, [], |row| row.get(0)), Ok(2));
    drop(db);
    // Never on one that is no candidate.
    let refused = cluster.folder.run(&["run", "--promote", "--socket", "d.sock", "--", "echo", "no"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{refused:?}");
    assert!(refused.stderr.contains("no candidate"), "{refused:?}");
    let skipped = cluster.folder.run(&["run", "--promote", "--if-candidate", "--socket", "d.sock", "--", "echo", "no"]);
    assert_eq!((skipped.code, skipped.stdout.as_str()), (0, ""), "{skipped:?}");
    assert!(skipped.stderr.contains("not run"), "{skipped:?}");
    assert_eq!(cluster.node("a")["role"], "primary", "nothing has changed");
    let missing = cluster.folder.run(&["run", "--socket", "a.sock", "--", "./no-such-command"]);
    assert_eq!((missing.code, missing.stderr.contains("cannot run ./no-such-command")), (1, true), "{missing:?}");
    let nowhere = cluster.folder.run(&["run", "--socket", "none.sock", "--", "echo", "no"]);
    assert_eq!((nowhere.code, nowhere.stdout.as_str()), (1, ""), "{nowhere:?}");
    for name in ["d", "c", "b", "a"] {
        cluster.stop(name);
    }
    cluster.check_store();
}

#[test]
fn an_address_that_makes_no_sense_is_refused() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    let own = format!("http://{}/", cluster.addresses["a"]);
    for to in ["", "b", "b:x", "ftp://b:1", "https://", &"b".repeat(2000), &format!("{}:1", "b".repeat(2000)), &own] {
        let refused = cluster.folder.run(&["ctl", "handoff", "--socket", "a.sock", "--to", to]);
        assert_eq!(refused.code, 1, "{to}: {refused:?}");
    }
    cluster.wait_writing("a");
    assert_eq!(cluster.node("a")["role"], "primary");
    cluster.stop_primary("a");
}

/// What a removed database had is on its way for as long as nobody knows what became of it.
#[test]
fn a_lease_is_given_up_quietly_only_when_everything_was_answered() {
    for (is_lost, with_state) in [(false, false), (true, false), (true, true)] {
        let mut cluster = Cluster::new();
        cluster.lease_ttl = Some("--lease-ttl=60s");
        cluster.start_with("a", &["--shutdown-sync-timeout", "1s"]);
        cluster.wait_role("a", "primary");
        for name in ["app.db", "other.db"] {
            let db = Connection::open(cluster.folder.path("a").join(name)).unwrap();
            db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x)").unwrap();
        }
        let sync = |name: &str| {
            let path = format!("a/{name}");
            cluster.folder.run(&["sync", &path, "--wait", "--timeout", "5s", "--socket", "a.sock"]).code == 0
        };
        wait_for("both to be durable", || sync("app.db") && sync("other.db"));
        if is_lost {
            cluster.lead("a", "nowhere");
        }
        let path = cluster.folder.path("a/other.db");
        let db = Connection::open(&path).unwrap();
        db.execute("INSERT INTO t VALUES (1)", []).unwrap();
        drop(db);
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::fs::remove_file(&path).unwrap();
        if with_state {
            // Then it begins anew instead, and finds no database.
            std::fs::remove_dir_all(cluster.folder.path("a/.other.db-rhyolite")).unwrap();
        }
        let list = || cluster.folder.run(&["ctl", "list", "--socket", "a.sock"]).stdout;
        wait_for("it to be gone", || !list().contains("other.db"));
        cluster.lead("a", "store");
        wait_for("the other to be durable", || sync("app.db"));
        let handed = cluster.folder.run(&["ctl", "handoff", "--socket", "a.sock"]);
        assert_eq!(handed.code, 0, "{handed:?}");
        let lease = || std::fs::read_to_string(cluster.folder.path("store/lease.json")).unwrap();
        wait_for("the lease to be given up", || lease().contains("released"));
        assert_eq!(lease().contains("quiet"), !is_lost, "{}", lease());
        cluster.stop("a");
    }
}

#[test]
fn two_that_want_the_role_have_it_one_after_the_other() {
    let mut cluster = three();
    std::thread::scope(|scope| {
        let folder = &cluster.folder;
        let ask = |socket: &'static str| {
            scope.spawn(move || folder.run(&["run", "--promote", "--socket", socket, "--", "echo", "done"]))
        };
        for asked in [ask("b.sock"), ask("c.sock")].map(|asked| asked.join().unwrap()) {
            assert_eq!((asked.code, asked.stdout.as_str()), (0, "done\n"), "{asked:?}");
        }
    });
    let primary = ["a", "b", "c"].into_iter().find(|name| cluster.node(name)["role"] == "primary");
    cluster.wait_writing(primary.expect("somebody has it"));
    for name in ["a", "b", "c"] {
        cluster.stop(name);
    }
    cluster.check_store();
}

#[test]
fn who_does_not_become_the_primary_in_time_says_why() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.freeze("a");
    let late = cluster.folder.run(&["ctl", "promote", "--socket", "b.sock", "--timeout", "300ms"]);
    assert_eq!(late.code, 1, "{late:?}");
    assert!(late.stderr.contains("this node is replica after 300ms"), "{late:?}");
    cluster.signal("a", rustix::process::Signal::CONT);
    cluster.stop("b");
    cluster.stop("a");
}
