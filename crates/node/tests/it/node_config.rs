//! `rhyolite node --config`: the same node from a file, flags over it, and what SIGHUP takes over.

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::assert_sound;
use crate::program::{Folder, Running, wait_for};
use crate::stream::free_address;

/// A node whose file has these lines, and what is always needed.
struct Node {
    folder: Folder,
    listen: String,
    running: Option<Running>,
}

impl Node {
    fn new() -> Self {
        Self { folder: Folder::new(), listen: free_address(), running: None }
    }

    fn write(&self, node: &str, more: &str) {
        let text = format!(
            "node: {{dir: data, replica: {{url: ./store, sync-interval: 100ms}}{node}}}\ncluster: {{listen: {}}}\n\
             socket: {{enabled: true, path: n.sock, permissions: \"0640\"}}\ndrill: {{interval: 0}}\n{more}",
            self.listen
        );
        self.folder.write("rhyolite.yml", text);
    }

    fn start(&mut self, more: &[&str]) {
        self.running = Some(self.folder.start(&[&["node", "--config", "rhyolite.yml"], more].concat()));
    }

    fn ctl(&self, what: &str) -> Value {
        let outcome = self.folder.run(&["ctl", what, "--json", "--socket", "n.sock"]);
        serde_json::from_str(&outcome.stdout).unwrap_or_default()
    }

    fn wait_role(&self, role: &str) {
        wait_for(role, || self.ctl("node")["role"] == role);
    }

    /// Stops it; gives what it has said.
    fn stop(&mut self) -> String {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        let outcome = running.wait();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stderr
    }
}

#[test]
fn a_node_is_what_its_file_says_and_flags_win() {
    let mut node = Node::new();
    let advertised = free_address();
    node.write(&format!(", advertise: \"{advertised}\""), "lease: {ttl: 3s}\n");
    node.start(&[]);
    node.wait_role("primary");
    assert_eq!(node.ctl("node")["address"], advertised);
    let socket = std::fs::metadata(node.folder.path("n.sock")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&socket.permissions()) & 0o777, 0o640);
    node.folder.database("data/app.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    node.folder.wait_durable("data/app.db", 1);
    assert!(node.folder.path("store/app.db").is_dir());
    // The file says which databases there are, also to others.
    let status = node.folder.run(&["status", "--config", "rhyolite.yml", "--json"]).json();
    assert_eq!(status["databases"].as_array().unwrap().len(), 1, "{status}");
    node.stop();
    let outcome = node.folder.run(&["restore", "--all", "--config", "rhyolite.yml", "--force"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_sound(&node.folder.path("data/app.db"));
    // Flags over the file.
    let other = free_address();
    node.start(&["--advertise", &other, "--socket", "m.sock"]);
    wait_for("the other socket", || node.folder.path("m.sock").exists());
    let shown = || node.folder.run(&["ctl", "node", "--json", "--socket", "m.sock"]).stdout;
    wait_for("the other address", || shown().contains(&other));
    node.stop();
}

#[test]
fn what_a_file_may_not_say_is_refused_with_its_key() {
    let folder = Folder::new();
    let base = "cluster: {listen: 127.0.0.1:1}\n";
    for (text, code, expected) in [
        ("dbs: []\n", 2, "no `node`"),
        ("node: {dir: d}\n", 2, "--store is missing: give it, or node.replica.url"),
        ("node: {replica: {url: ./s}}\n", 2, "DIR is missing: give it, or node.dir"),
        ("node: {dirr: d}\n", 2, "unknown key `dirr`; did you mean `dir`?"),
        ("node: {proxy: {listn: \":1\"}}\n", 2, "unknown key `listn`; did you mean `listen`?"),
        (
            "node: {dir: d, replica: {url: ./s}}\ndbs: [{path: a.db, replica: {url: ./a}}]\n",
            2,
            "line 3: `dbs` has no effect beside `node`",
        ),
        (
            "node: {dir: d, replica: {url: ./s}}\nlease: {enabled: false}\n",
            2,
            "lease.enabled has no effect beside `node`",
        ),
        ("node: {dir: d, replica: {url: ./s}}\nlease: {url: ./l}\n", 2, "lease.url has no effect beside `node`"),
        ("node: {dir: d, replica: {url: ./s}, lease: \"redis://x/y\"}\n", 2, "line 2: node.lease: unknown scheme"),
        ("node: {dir: d, replica: {url: ./s}, accept: here}\n", 2, "is no address"),
        ("node: {dir: d, replica: {url: ./s}, accept: 127.0.0.1:2}\n", 2, "--candidate=false"),
        (
            "node: {dir: d, replica: {url: ./s}, proxy: {listen: 127.0.0.1:2}}\n",
            2,
            "--proxy-listen needs --proxy-target",
        ),
        ("node: {dir: d, replica: {url: ./s}, proxy: {hold: 1s}}\n", 2, "--proxy-hold has no effect"),
        ("node: {dir: d, replica: {url: ./s}, proxy: {hold: 1}}\n", 2, "1"),
        ("node: {dir: d, replica: {url: ./s}, nodes: 1}\n", 2, "node.nodes is 1, not 2 to 33"),
        ("node: {dir: d, replica: {url: ./s}, durability: quorum}\n", 2, "--durability quorum needs --nodes"),
        ("node: {dir: d, replica: {url: ./s, bucket: b}}\n", 2, "excludes replica.bucket"),
        ("node: {dir: d, replica: {url: ./s}}\nlease: {ttl: 1ms}\n", 2, "lease"),
    ] {
        folder.write("rhyolite.yml", format!("{base}{text}"));
        let outcome = folder.run(&["node", "--config", "rhyolite.yml"]);
        assert_eq!(outcome.code, code, "{text}: {outcome:?}");
        assert!(outcome.stderr.contains(expected), "{text}: {outcome:?}");
    }
    folder.write("rhyolite.yml", format!("{base}node: {{dir: d, replica: {{url: ./s}}}}\n"));
    let outcome = folder.run(&["replicate", "--config", "rhyolite.yml"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("rhyolite node --config"), "{outcome:?}");
    let outcome = folder.run(&["node", "a", "--store", "s"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("--listen is missing"), "{outcome:?}");
    assert!(!folder.path("d").exists(), "nothing was begun");
}

#[test]
fn a_new_file_is_taken_over_or_refused_by_the_names_of_its_keys() {
    let mut node = Node::new();
    node.write("", "sync-interval: 1h\n");
    node.start(&[]);
    node.wait_role("primary");
    let db = node.folder.database("data/app.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    node.folder.wait_durable("data/app.db", 1);
    let reload = || node.folder.run(&["ctl", "reload", "--socket", "n.sock"]);
    let outcome = reload();
    assert_eq!((outcome.code, outcome.stdout.trim()), (0, "0 added, 0 removed, 0 changed"), "{outcome:?}");
    // The interval of `replica` wins over that of the top, as in `dbs`.
    let text = std::fs::read_to_string(node.folder.path("rhyolite.yml")).unwrap();
    node.folder.write("rhyolite.yml", text.replace("sync-interval: 100ms", "sync-interval: 1h"));
    let outcome = reload();
    assert_eq!((outcome.code, outcome.stdout.trim()), (0, "0 added, 0 removed, 1 changed"), "{outcome:?}");
    let status = || node.folder.run(&["status", "data/app.db", "--json"]).json()["databases"][0]["status"].clone();
    wait_for("the database to begin again", || status()["state"]["name"] == "replicating");
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!status()["pending_since"].is_null(), "it waits for an hour: {}", status());
    assert_eq!(node.ctl("node")["role"], "primary");
    // Back again, by a signal.
    node.folder.write("rhyolite.yml", text.clone());
    node.running.as_ref().unwrap().signal(Signal::HUP);
    wait_for("the commit to be durable", || status()["pending_since"].is_null());
    let other = text.replace("dir: data", "dir: data, candidate: false").replace("100ms", "1h");
    node.folder.write("rhyolite.yml", format!("{other}addr: 127.0.0.1:9\n"));
    let outcome = reload();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("node.candidate, addr cannot change while the node runs"), "{outcome:?}");
    node.folder.write("rhyolite.yml", "node: {");
    assert_eq!(reload().code, 1);
    db.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    wait_for("nothing to have been taken over", || status()["pending_since"].is_null());
    node.folder.write("rhyolite.yml", &text);
    drop(db);
    let said = node.stop();
    assert!(said.contains("configuration read again"), "{said}");
    assert!(node.folder.run(&["verify", "store/app.db"]).code == 0);
}

/// A replica keeps the new settings for when it is the primary.
#[test]
fn a_replica_takes_settings_for_later() {
    let mut first = Node::new();
    first.write("", "lease: {ttl: 2s}\n");
    first.start(&[]);
    first.wait_role("primary");
    let db = first.folder.database("data/app.db");
    let running = first.running.take().unwrap();
    let second = format!(
        "node: {{dir: other, replica: {{url: ./store, sync-interval: 1h}}}}\ncluster: {{listen: {}}}\nlease: {{ttl: 2s}}\n\
         socket: {{enabled: true, path: o.sock}}\n",
        free_address()
    );
    first.folder.write("other.yml", &second);
    let other = first.folder.start(&["node", "--config", "other.yml"]);
    let role = || first.folder.run(&["ctl", "node", "--json", "--socket", "o.sock"]).stdout;
    wait_for("the replica", || role().contains("\"replica\""));
    first.folder.write("other.yml", second.replace("1h", "100ms"));
    let outcome = first.folder.run(&["ctl", "reload", "--socket", "o.sock"]);
    assert_eq!((outcome.code, outcome.stdout.trim()), (0, "0 added, 0 removed, 1 changed"), "{outcome:?}");
    drop(db);
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code, 0);
    wait_for("the other to be the primary", || role().contains("\"primary\""));
    first.folder.database("other/app.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let status = || first.folder.run(&["status", "other/app.db", "--json"]).json()["databases"][0]["status"].clone();
    wait_for("the commit to be durable", || {
        !status()["durable"].is_null()
            && status()["pending_since"].is_null()
            && status()["durable"] == status()["local"]
    });
    other.signal(Signal::TERM);
    assert_eq!(other.wait().code, 0);
}
