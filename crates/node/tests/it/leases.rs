//! Clusters whose lease lies outside of their store: what is promised of them, and what happens when the service forgets.

use rustix::process::Signal;

use crate::cluster::{Cluster, rows};
use crate::lease_servers::{etcd, etcd_at};
use crate::program::wait_for;
use crate::servers::free_port;

/// The epoch of whoever holds the lease, as a node knows it; 0 when it knows of nobody.
fn epoch(cluster: &Cluster, name: &str) -> u64 {
    let epoch = cluster.node(name)["holder"]["epoch"].clone();
    epoch.as_str().map_or(0, |epoch| u64::from_str_radix(epoch, 16).unwrap())
}

#[test]
fn with_a_lease_in_etcd_a_killed_primary_is_replaced_and_nothing_durable_is_lost() {
    let Some(server) = etcd() else { return };
    let url = format!("etcd://127.0.0.1:{}/test/lease", server.port);
    let lease = ["--lease", &url];
    let mut cluster = Cluster::new();
    cluster.start_application("a", &lease);
    cluster.wait_writing("a");
    cluster.start_application("b", &lease);
    cluster.wait_role("b", "replica");
    assert_eq!(cluster.node("b")["lease"], url.as_str());
    assert!(!cluster.folder.path("store/lease.json").exists());
    let shown = cluster.folder.run(&["ctl", "node", "--socket", "b.sock"]);
    assert!(shown.stdout.contains(&format!("the lease is {url}\n")), "{shown:?}");
    let durable = cluster.wait_durable("a");
    cluster.wait_row("b", durable);
    cluster.kill("a");
    let stored = cluster.stored();
    cluster.wait_writing("b");
    let here = rows(&cluster.database("b"));
    assert!((1..=durable).all(|n| here.contains(&n)) && stored.is_subset(&here), "nothing durable is lost");
    cluster.start_application("a", &lease);
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", cluster.wait_durable("b"));
    let handed = cluster.folder.run(&["ctl", "handoff", "--socket", "b.sock"]);
    assert_eq!(handed.code, 0, "{handed:?}");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    let outcome = cluster.stop("b");
    assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
    cluster.check_store();
}

/// The service loses everything, and whoever takes the lease then begins to count anew, just as far as the frozen primary had come.
#[test]
fn a_service_that_forgets_takes_no_epoch_back_and_lets_no_two_write() {
    let port = free_port();
    let Some(server) = etcd_at(port, &[]) else { return };
    let url = format!("etcd://127.0.0.1:{port}/lease");
    let lease = ["--lease", &url];
    let mut cluster = Cluster::new();
    cluster.start_application("a", &lease);
    cluster.wait_writing("a");
    let durable = cluster.wait_durable("a");
    let before = epoch(&cluster, "a");
    assert!(before > 0);
    cluster.freeze("a");
    drop(server);
    let _server = etcd_at(port, &[]).expect("it was there");
    cluster.start_application("b", &lease);
    cluster.wait_writing("b");
    let (last, first) = (cluster.noted("a").last().unwrap().0, cluster.noted("b")[0].0);
    assert!(last < first, "both applications wrote at a time: until {last} and since {first}");
    assert!(epoch(&cluster, "b") > before, "{} after {before}", epoch(&cluster, "b"));
    let here = rows(&cluster.database("b"));
    assert!((1..=durable).all(|n| here.contains(&n)), "nothing durable is lost");
    // What the former primary still sends is void, and it follows.
    cluster.signal("a", Signal::CONT);
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", cluster.wait_durable("b"));
    cluster.stop_well("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

/// The same while everybody is well: the holder makes the record again before anybody else may.
#[test]
fn a_holder_whose_record_is_lost_keeps_the_lease_under_a_higher_epoch() {
    let port = free_port();
    let Some(server) = etcd_at(port, &[]) else { return };
    let url = format!("etcd://127.0.0.1:{port}/lease");
    let mut cluster = Cluster::new();
    cluster.start_application("a", &["--lease", &url]);
    cluster.wait_writing("a");
    cluster.start_application("b", &["--lease", &url]);
    cluster.wait_role("b", "replica");
    let before = epoch(&cluster, "a");
    drop(server);
    let _server = etcd_at(port, &[]).expect("it was there");
    // Whose application is to be restarted is the primary for a moment still.
    let mut primary = "";
    wait_for("a primary that writes under a higher epoch", || {
        let writes = |name: &str| {
            let before = cluster.last_noted(name);
            std::thread::sleep(std::time::Duration::from_millis(300));
            cluster.last_noted(name) > before
        };
        let is_primary = |name: &&str| cluster.node(name)["role"] == "primary" && epoch(&cluster, name) > before;
        primary = ["a", "b"].into_iter().find(|name| is_primary(name) && writes(name)).unwrap_or("");
        !primary.is_empty()
    });
    let replica = if primary == "a" { "b" } else { "a" };
    cluster.wait_role(replica, "replica");
    cluster.wait_row(replica, cluster.wait_durable(primary));
    cluster.stop_well(replica);
    cluster.stop_primary(primary);
    cluster.check_store();
}

#[test]
fn a_static_primary_goes_on_without_its_store_and_is_followed() {
    let mut cluster = Cluster::new();
    cluster.lease_ttl = None;
    cluster.start_application("a", &["--lease", "static://primary"]);
    cluster.wait_writing("a");
    let at_a = format!("static://{}", cluster.addresses["a"]);
    cluster.start_application("b", &["--lease", &at_a]);
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.wait_durable("a"));
    assert!(!cluster.folder.path("store/lease.json").exists());
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_eq!((&a["lease"], &a["holder"]["until"]), (&"static://primary".into(), &serde_json::Value::Null));
    assert_eq!((&b["lease"], &b["candidate"]), (&at_a.as_str().into(), &false.into()));
    assert_eq!((&b["holder"]["epoch"], &b["holder"]["until"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let shown = cluster.folder.run(&["ctl", "node", "--socket", "a.sock"]);
    assert!(shown.stdout.contains("this node holds it with epoch") && shown.stdout.contains("for good"), "{shown:?}");
    for socket in ["a.sock", "b.sock"] {
        let handed = cluster.folder.run(&["ctl", "handoff", "--socket", socket]);
        assert!(handed.code == 1 && handed.stderr.contains("nobody else can take it over"), "{handed:?}");
    }
    // Longer than any lease would last.
    cluster.lead("a", "store-of-a");
    std::thread::sleep(std::time::Duration::from_secs(3));
    cluster.wait_writing("a");
    cluster.lead("a", "store");
    cluster.wait_row("b", cluster.wait_durable("a"));
    // Nobody takes its place, and it goes on where it was.
    cluster.kill("a");
    wait_for("the replica to have nobody to follow", || cluster.node("b")["role"] != "primary");
    cluster.start_application("a", &["--lease", "static://primary"]);
    cluster.wait_writing("a");
    cluster.wait_row("b", cluster.wait_durable("a"));
    cluster.stop_well("b");
    cluster.stop_primary("a");
    cluster.check_store();
}

/// Nothing keeps two of them from starting. The store does: whoever begins last has the log, and the other one ends with its next upload.
#[test]
fn of_two_static_primaries_the_last_one_has_the_log_and_the_other_ends() {
    let mut cluster = Cluster::new();
    cluster.lease_ttl = None;
    cluster.start_application("a", &["--lease", "static://primary"]);
    cluster.wait_writing("a");
    let durable = cluster.wait_durable("a");
    cluster.start_application("b", &["--lease", "static://primary"]);
    cluster.wait_writing("b");
    wait_for("the first one to end", || cluster.running.get_mut("a").unwrap().has_ended());
    let outcome = cluster.running.remove("a").unwrap().wait();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("another process writes to"), "{outcome:?}");
    let noted = cluster.noted("a").len();
    let here = rows(&cluster.database("b"));
    assert!((1..=durable).all(|n| here.contains(&n)), "nothing durable is lost");
    cluster.wait_writing("b");
    assert_eq!(cluster.noted("a").len(), noted, "its application is gone");
    let last = cluster.wait_durable("b");
    assert!(cluster.stored().contains(&last));
    // It comes back as a replica, and what only it had is kept.
    let at_b = format!("static://{}", cluster.addresses["b"]);
    cluster.start_application("a", &["--lease", &at_b]);
    cluster.wait_row("a", cluster.wait_durable("b"));
    cluster.stop_well("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

#[test]
fn flags_that_contradict_a_lease_are_refused() {
    let folder = crate::program::Folder::new();
    let node = ["node", "a", "--store", "s", "--listen", "127.0.0.1:1"];
    for (more, text) in [
        (&["--lease", "static://primary", "--candidate=false"][..], "contradicts"),
        (&["--lease", "static://127.0.0.1:2", "--candidate=true"], "contradicts"),
        (&["--lease", "static://127.0.0.1:1"], "this node itself"),
        (&["--lease", "static://primary", "--lease-ttl", "5s"], "no effect"),
        (&["--lease", "false"], "a lease is consul://"),
        (&["--lease", "etcd://u:s3cret@127.0.0.1/x"], "into the environment"),
        (&["--lease", "kubernetes://a/b"], "KUBERNETES_SERVICE_HOST"),
        (&["--lease", "etcd+https://h/x?ca-file=missing"], "read the ca-file missing"),
    ] {
        let outcome = folder.run(&[&node[..], more].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{more:?}: {outcome:?}");
    }
}
