//! A node that cannot reach the primary of its cluster, but its store: the primary dials it.

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::program::wait_for;
use crate::stream::free_address;

/// What `/info` says of a node.
fn info(cluster: &Cluster, name: &str) -> Value {
    let outcome = cluster.folder.run(&["ctl", "info", "--json", "--socket", &format!("{name}.sock")]);
    serde_json::from_str(&outcome.stdout).unwrap_or_default()
}

fn is_pushing(cluster: &Cluster, name: &str) -> bool {
    info(cluster, name)["pushes"][0]["connected"] == true
}

#[test]
fn only_the_primary_dials_and_the_replica_follows_it() {
    let mut cluster = Cluster::new();
    let accept = free_address();
    // Nobody listens where the lease says that the primaries are.
    let push = |at: &'static str| ["--advertise".to_owned(), at.to_owned(), "--push-to".to_owned(), accept.clone()];
    let start = |cluster: &mut Cluster, name: &'static str, at: &'static str| {
        let push = push(at);
        let arguments: Vec<&str> = push.iter().map(String::as_str).collect();
        cluster.start_application(name, &arguments);
    };
    start(&mut cluster, "a", "127.0.0.1:1");
    cluster.wait_writing("a");
    cluster.start_with("r", &["--candidate=false", "--accept", &accept]);
    cluster.wait_row("r", cluster.last_noted("a"));
    cluster.wait_role("r", "replica");
    assert!(is_pushing(&cluster, "a"));
    let epoch = cluster.node("a")["holder"]["epoch"].clone();
    wait_for("the right of the lease", || info(&cluster, "r")["accepts"]["epoch"] == epoch);
    wait_for("the replica to know how far it is behind", || {
        let replica = cluster.node("r")["replicas"][0].clone();
        replica["lag_ms"].as_u64().is_some_and(|lag| lag < 2_000)
            && replica["behind"].as_u64().is_some_and(|n| n < 1_000)
    });
    start(&mut cluster, "b", "127.0.0.1:2");
    cluster.wait_role("b", "replica");
    assert_eq!(info(&cluster, "b")["pushes"][0]["connected"], false);
    assert_eq!(info(&cluster, "b")["pushes"][0]["error"], Value::Null, "a replica does not try");
    // A frozen primary keeps its connection. The newer right takes its place.
    cluster.wait_durable("a");
    cluster.freeze("a");
    cluster.wait_writing("b");
    // Rows that the frozen one has made by itself have the same numbers.
    let stray = cluster.last_noted("a");
    wait_for("rows that only the new primary has made", || cluster.last_noted("b") > stray + 5);
    cluster.wait_row("r", cluster.last_noted("b"));
    let newer = cluster.node("b")["holder"]["epoch"].clone();
    assert!(newer.as_str() > epoch.as_str(), "{newer} {epoch}");
    cluster.signal("a", Signal::CONT);
    cluster.wait_role("a", "replica");
    wait_for("the former primary to dial no more", || !is_pushing(&cluster, "a"));
    cluster.wait_row("r", cluster.last_noted("b"));
    // It takes the newer right when it has seen it in the lease.
    wait_for("the right of the lease", || info(&cluster, "r")["accepts"]["epoch"] == newer);
    // The last commits arrive before the role ends.
    cluster.stop("a");
    cluster.stop_primary("b");
    cluster.wait_equal_to_store("r");
    assert_eq!(info(&cluster, "r")["accepts"]["from"], Value::Null);
    cluster.stop_well("r");
    cluster.check_store();
}

#[test]
fn replica_and_primary_are_killed_and_go_on() {
    let mut cluster = Cluster::new();
    let accept = free_address();
    let push = ["--advertise", "127.0.0.1:1", "--push-to", &accept];
    let take = ["--candidate=false", "--accept", &accept];
    cluster.start_with("r", &take);
    cluster.start_application("a", &push);
    cluster.wait_writing("a");
    cluster.wait_row("r", cluster.last_noted("a"));
    for _ in 0..3 {
        cluster.kill("r");
        cluster.start_with("r", &take);
        cluster.wait_writing("a");
        cluster.wait_row("r", cluster.last_noted("a"));
        cluster.kill("a");
        cluster.start_application("a", &push);
        cluster.wait_writing("a");
        cluster.wait_row("r", cluster.last_noted("a"));
    }
    cluster.stop_primary("a");
    cluster.wait_equal_to_store("r");
    cluster.stop_well("r");
}
