//! Commits that are on the disks of other nodes before they are in the store.

use std::time::{Duration, Instant};

use rhyolite_format::lease::LeaseRecord;
use rustix::process::Signal;

use crate::cluster::{Cluster, rows};
use crate::program::wait_for;

const REPLICA: &str = "--durability=replica";

/// A primary `a` whose commits are not uploaded, and replicas that have all of them.
pub(crate) fn cluster(replicas: &[&'static str]) -> Cluster {
    cluster_with(&[REPLICA], replicas)
}

fn cluster_with(flags: &[&str], replicas: &[&'static str]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    cluster.sync_interval = "--sync-interval=1h";
    cluster.start_application("a", flags);
    cluster.wait_writing("a");
    for name in replicas {
        cluster.start_application(name, flags);
        cluster.wait_role(name, "replica");
    }
    wait_named(&cluster, replicas);
    cluster
}

/// Waits until the lease names these nodes as witnesses.
fn wait_named(cluster: &Cluster, names: &[&str]) {
    wait_for("the lease to name the witnesses", || {
        let nodes = lease(cluster)["witnesses"]["nodes"].to_string();
        names.iter().all(|name| nodes.contains(&cluster.addresses[name]))
    });
}

fn lease(cluster: &Cluster) -> serde_json::Value {
    let bytes = std::fs::read(cluster.folder.path("store/lease.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Waits until a commit that was made now is said to be on another node, and gives its row.
fn acknowledged(cluster: &Cluster) -> i64 {
    acknowledged_by(cluster, "a", "replica")
}

fn acknowledged_by(cluster: &Cluster, name: &str, level: &str) -> i64 {
    cluster.wait_writing(name);
    let row = cluster.last_noted(name);
    let began = Instant::now();
    let (database, socket) = (format!("{name}/app.db"), format!("{name}.sock"));
    let waited = cluster.folder.run(&["wait", &database, "--level", level, "--socket", &socket]);
    assert_eq!((waited.code, waited.stdout.contains("is on other nodes")), (0, true), "{waited:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    row
}

fn has_all(cluster: &Cluster, name: &str, last: i64) -> bool {
    let rows = rows(&cluster.database(name));
    (1..=last).all(|n| rows.contains(&n))
}

/// Whether a node does not become the primary for a while.
fn stays_behind(cluster: &Cluster, name: &str) {
    cluster.wait_role(name, "promoting");
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(cluster.node(name)["role"], "promoting");
        assert_eq!(cluster.last_noted(name), 0, "its application writes");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_one_node_has_acknowledged_is_found_by_another_that_lacks_it() {
    let mut cluster = cluster(&["b", "c"]);
    cluster.freeze("c");
    let row = acknowledged(&cluster);
    // From here on `b` has it, which cannot be asked, and not `c`, which wins.
    cluster.freeze("b");
    cluster.kill("a");
    assert!(!cluster.stored().contains(&row) && !rows(&cluster.database("c")).contains(&row));
    cluster.signal("c", Signal::CONT);
    stays_behind(&cluster, "c");
    cluster.signal("b", Signal::CONT);
    cluster.wait_writing("c");
    assert!(has_all(&cluster, "c", row), "what was acknowledged is missing");
    assert!(cluster.stored().contains(&row), "nobody is served before it is in the store");
    let seen = cluster.last_noted("c");
    cluster.wait_row("b", seen);
    cluster.start_application("a", &[REPLICA]);
    cluster.wait_row("a", seen);
    cluster.stop_primary("c");
    assert!(lease(&cluster)["witnesses"].is_null() || lease(&cluster)["holder"] != lease(&cluster)["witnesses"]["of"]);
    wait_for("another to be the primary", || ["a", "b"].iter().any(|name| cluster.node(name)["role"] == "primary"));
    cluster.stop("a");
    cluster.stop("b");
    assert!(lease(&cluster)["witnesses"].is_null(), "everything is in the store");
    assert!((1..=seen).all(|n| cluster.stored().contains(&n)));
    cluster.check_store();
}

#[test]
fn a_witness_that_was_restarted_still_has_what_it_acknowledged() {
    let mut cluster = cluster(&["b"]);
    let row = acknowledged(&cluster);
    cluster.kill("b");
    cluster.kill("a");
    assert!(!cluster.stored().contains(&row));
    cluster.start_application("b", &[REPLICA]);
    cluster.wait_writing("b");
    assert!(has_all(&cluster, "b", row), "what was acknowledged is missing");
    assert_eq!(cluster.branches("b"), Vec::<serde_json::Value>::new(), "and nowhere else");
    cluster.stop_primary("b");
    assert!((1..=row).all(|n| cluster.stored().contains(&n)));
    cluster.check_store();
}
#[test]
fn a_witness_that_cannot_prove_what_it_has_gives_nothing_up_when_another_shows_the_same() {
    let quorum = ["--durability=quorum", "--nodes=5"];
    let mut cluster = cluster_with(&quorum, &["b", "c", "d"]);
    let row = acknowledged_by(&cluster, "a", "quorum");
    cluster.freeze("a");
    let at = |cluster: &Cluster, name: &str| {
        std::fs::read_to_string(cluster.folder.path(&format!("{name}/app.db-pos"))).unwrap_or_default()
    };
    wait_for("all replicas to be at one position", || {
        let [b, c, d] = ["b", "c", "d"].map(|name| at(&cluster, name));
        !b.is_empty() && b == c && c == d
    });
    cluster.freeze("b");
    cluster.freeze("d");
    cluster.kill("c");
    cluster.kill("a");
    assert!(!cluster.stored().contains(&row));
    std::fs::remove_file(cluster.folder.path("c/app.db-rhyolite-trail")).unwrap();
    cluster.start_application("c", &quorum);
    stays_behind(&cluster, "c");
    cluster.signal("b", Signal::CONT);
    cluster.signal("d", Signal::CONT);
    cluster.wait_writing("c");
    assert!(has_all(&cluster, "c", row), "what was acknowledged is missing");
    assert_eq!(cluster.branches("c"), Vec::<serde_json::Value>::new(), "its file was made another");
    assert!(cluster.stored().contains(&row), "nobody is served before it is in the store");
    for name in ["b", "d"] {
        cluster.stop(name);
    }
    cluster.stop_primary("c");
    cluster.check_store();
}

#[test]
fn what_a_new_primary_has_on_a_way_of_its_own_is_kept_when_what_was_found_takes_its_place() {
    let mut cluster = cluster(&["b", "c"]);
    cluster.freeze("b");
    let lost = acknowledged(&cluster);
    cluster.freeze("c");
    cluster.kill("a");
    cluster.signal("b", Signal::CONT);
    stays_behind(&cluster, "b");
    let promoted = cluster.folder.run(&["ctl", "promote", "--forget-acknowledged", "--socket", "b.sock"]);
    assert_eq!(promoted.code, 0, "{promoted:?}");
    // What `c` has beyond the store is on another way from here on, and what `d` has is what counts.
    cluster.wait_writing("b");
    cluster.start_application("d", &[REPLICA]);
    wait_named(&cluster, &["d"]);
    let row = acknowledged_by(&cluster, "b", "replica");
    cluster.freeze("d");
    cluster.kill("b");
    assert!(!cluster.stored().contains(&row));
    // Nothing, where it stands still in the middle of a batch.
    let found = rows(&cluster.database("d"));
    cluster.signal("c", Signal::CONT);
    stays_behind(&cluster, "c");
    cluster.signal("d", Signal::CONT);
    cluster.wait_writing("c");
    let there = rows(&cluster.database("c"));
    let missing: Vec<_> = found.difference(&there).collect();
    assert!(there.contains(&row) && missing.is_empty(), "{row} was acknowledged; of {found:?} it lacks {missing:?}");
    assert!(cluster.stored().contains(&row), "nobody is served before it is in the store");
    let branches = cluster.branches("c");
    assert_eq!(branches.len(), 1, "{branches:?}");
    let kept = cluster.folder.path(branches[0]["path"].as_str().unwrap_or_default());
    assert!(rows(&kept).contains(&lost), "{branches:?}");
    cluster.stop("d");
    cluster.stop_primary("c");
    cluster.check_store();
}

#[test]
fn who_cannot_find_what_was_acknowledged_waits_until_it_is_told_to_go_on_without() {
    let mut cluster = cluster(&["b", "c"]);
    cluster.freeze("c");
    let row = acknowledged(&cluster);
    cluster.kill("b");
    cluster.kill("a");
    cluster.signal("c", Signal::CONT);
    stays_behind(&cluster, "c");
    let promoted = cluster.folder.run(&["ctl", "promote", "--forget-acknowledged", "--socket", "c.sock"]);
    assert_eq!(promoted.code, 0, "{promoted:?}");
    cluster.wait_writing("c");
    // The one that has it comes back, and keeps it.
    cluster.start_application("b", &[REPLICA]);
    // Until then it may have rows with the same numbers of its own.
    wait_for("b to keep what only it had", || !cluster.branches("b").is_empty());
    let seen = cluster.last_noted("c");
    cluster.wait_row("b", seen);
    let branches = cluster.branches("b");
    assert_eq!(branches.len(), 1, "{branches:?}");
    let kept = cluster.folder.path(branches[0]["path"].as_str().unwrap_or_default());
    assert!(rows(&kept).contains(&row), "{branches:?}");
    let outcome = cluster.stop("c");
    let said = format!("{} acknowledged commits that 1 of", cluster.addresses["a"]);
    assert!(outcome.stderr.contains(&said), "{outcome:?}");
    cluster.stop("b");
}

#[test]
fn the_node_that_told_asks_nobody_when_the_log_has_gone_on_without_it() {
    let mut cluster = cluster(&["b"]);
    let row = acknowledged(&cluster);
    let path = cluster.folder.path("store/lease.json");
    let record = || LeaseRecord::decode(&std::fs::read(&path).unwrap()).unwrap();
    let told = record().witnesses;
    assert_eq!(told.as_ref().map(|told| &told.of), Some(&cluster.addresses["a"]));
    cluster.kill("a");
    cluster.wait_writing("b");
    assert!(cluster.stored().contains(&row), "nobody is served before it is in the store");
    cluster.kill("b");
    // As if that one had ended when what it had found was in the store, and the list still in the lease.
    std::fs::write(&path, LeaseRecord { witnesses: told, ..record() }.encode()).unwrap();
    cluster.start_application("a", &[REPLICA]);
    cluster.wait_writing("a");
    assert!(has_all(&cluster, "a", row), "what was acknowledged is missing");
    cluster.stop_primary("a");
    assert!(lease(&cluster)["witnesses"].is_null(), "everything is in the store");
    assert!((1..=row).all(|n| cluster.stored().contains(&n)));
    cluster.check_store();
}

#[test]
fn a_level_that_nobody_keeps_is_refused_and_one_that_is_not_reached_is_said() {
    let mut cluster = Cluster::new();
    let wait = |cluster: &Cluster, level: &str| {
        let timeout = ["--timeout", "700ms", "--socket", "a.sock"];
        cluster.folder.run(&[&["wait", "a/app.db", "--level", level][..], &timeout].concat())
    };
    for (flags, text) in [
        (&["--durability=quorum"][..], "needs --nodes"),
        (&["--durability=replica", "--nodes=3"], "give --durability quorum"),
        (&["--nodes=3"], "give --durability quorum"),
        (&["--durability=replica", "--lease=static://primary"], "there is no lease in which the nodes could be named"),
    ] {
        cluster.start_with("a", flags);
        let outcome = cluster.running.remove("a").unwrap().wait();
        assert_eq!((outcome.code, outcome.stderr.contains(text)), (2, true), "{outcome:?}");
    }
    cluster.start("a");
    cluster.wait_writing("a");
    let refused = wait(&cluster, "replica");
    assert_eq!((refused.code, refused.stderr.contains("--durability replica")), (1, true), "{refused:?}");
    wait_for("what was committed to be in the store", || wait(&cluster, "store").code == 0);
    cluster.stop_primary("a");
    cluster.start_application("a", &[REPLICA]);
    cluster.wait_writing("a");
    let refused = wait(&cluster, "quorum");
    assert_eq!((refused.code, refused.stderr.contains("--nodes")), (1, true), "{refused:?}");
    let stored = wait(&cluster, "replica");
    assert_eq!((stored.code, stored.stdout.contains("is durable")), (0, true), "the store is as good: {stored:?}");
    cluster.stop_primary("a");
    cluster.sync_interval = "--sync-interval=1h";
    cluster.start_application("a", &["--durability=quorum", "--nodes=5"]);
    cluster.wait_writing("a");
    cluster.start_application("b", &["--durability=quorum", "--nodes=5"]);
    cluster.wait_role("b", "replica");
    cluster.wait_writing("a");
    let seen = cluster.last_noted("a");
    cluster.wait_row("b", seen);
    let late = |cluster: &Cluster| {
        let flags = ["--level", "quorum", "--timeout", "700ms", "--socket", "a.sock"];
        cluster.folder.run(&[&["wait", "a/app.db"][..], &flags].concat())
    };
    let one = late(&cluster);
    assert_eq!((one.code, one.stderr.contains("neither on enough other nodes")), (6, true), "one of two: {one:?}");
    cluster.start_application("c", &["--durability=quorum", "--nodes=5"]);
    cluster.wait_role("c", "replica");
    wait_for("two others to have it", || late(&cluster).stdout.contains("is on other nodes"));
    for name in ["c", "b", "a"] {
        cluster.stop(name);
    }
}
