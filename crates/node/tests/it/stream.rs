//! The live stream: real processes, real writers, real trouble. A replica is compared with its database byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rhyolite_format::follow::PageOneFields;
use rhyolite_node::stream::client::{Access, Link, LinkError};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Folder, Running, wait_for};

/// An address that nobody listens at.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The committed content of a database, taken from a copy; `None` when that was taken in the middle of something.
fn image(from: &Path) -> Option<Vec<u8>> {
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("copy.db");
    std::fs::copy(from, &to).ok()?;
    let wal = PathBuf::from(format!("{}-wal", from.display()));
    if wal.exists() {
        std::fs::copy(wal, copy.path().join("copy.db-wal")).ok()?;
        let db = Connection::open(&to).unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).ok()?;
    }
    std::fs::read(&to).ok()
}

/// A node that replicates the databases in `data` and serves them.
pub(crate) struct Node {
    pub(crate) folder: Folder,
    address: String,
    running: Option<Running>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let address = free_address();
        Self::with_cluster(address.clone(), &format!("{{listen: {address}}}"))
    }

    /// One whose key `cluster` has this value.
    pub(crate) fn with_cluster(address: String, cluster: &str) -> Self {
        let folder = Folder::new();
        std::fs::create_dir(folder.path("data")).unwrap();
        let config = format!(
            "cluster: {cluster}\nsocket: {{enabled: true, path: node.sock}}\nsync-interval: 200ms\ndbs:\n  - dir: {data}\n    pattern: \"*.db\"\n    watch: true\n    \
             replica: {{url: {store}}}\n",
            data = folder.path("data").display(),
            store = folder.path("store").display()
        );
        folder.write("rhyolite.yml", config);
        Self { folder, address, running: None }
    }

    pub(crate) fn start(&mut self) {
        self.running = Some(self.folder.start(&["replicate", "--config", "rhyolite.yml"]));
    }

    fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        drop(self.running.take());
    }

    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let outcome = self.running.take().unwrap().wait();
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn database(&self, name: &str, mode: &str) -> Connection {
        let db = Connection::open(self.folder.path("data").join(name)).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).unwrap();
        db.pragma_update(None, "synchronous", "off").unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)").unwrap();
        db
    }

    pub(crate) fn follow(&self, url: &str, arguments: &[&str]) -> Follow {
        Follow::start(self.folder.start(&[&["follow", url], arguments, &["--json"]].concat()))
    }

    /// A process that lets the node dial it.
    pub(crate) fn accept(&self, address: &str, arguments: &[&str]) -> Follow {
        Follow::start(self.folder.start(&[&["follow", "--accept", address], arguments, &["--json"]].concat()))
    }

    fn image(&self, name: &str) -> Option<Vec<u8>> {
        image(&self.folder.path("data").join(name))
    }

    /// Whether a replica is the database, but for what its readers need otherwise.
    fn is_equal(&self, name: &str, replica: &Path) -> bool {
        let (Some(image), Some(mut bytes)) = (self.image(name), image(replica)) else { return false };
        if bytes.len() != image.len() || image.is_empty() {
            return false;
        }
        PageOneFields::of(&image).put(&mut bytes);
        bytes == image
    }

    pub(crate) fn wait_equal(&self, name: &str, replica: &Path) {
        wait_for(&format!("{} to be {name}", replica.display()), || self.is_equal(name, replica));
        let db = Connection::open_with_flags(replica, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

/// A process that follows, and what it has said.
pub(crate) struct Follow {
    running: Option<Running>,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Follow {
    fn start(mut running: Running) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, said) = (BufReader::new(running.stdout()), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                said.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { running: Some(running), lines }
    }

    pub(crate) fn find(&self, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        self.lines.lock().unwrap().iter().rev().find(|line| is_it(line)).cloned()
    }

    pub(crate) fn wait_event(&self, event: &str) -> Value {
        wait_for(event, || self.find(|line| line["event"] == event).is_some());
        self.find(|line| line["event"] == event).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn kill(mut self) {
        self.running.as_ref().unwrap().signal(Signal::KILL);
        drop(self.running.take());
    }

    pub(crate) fn stop(mut self) {
        self.running.as_ref().unwrap().signal(Signal::TERM);
        let outcome = self.running.take().unwrap().wait();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
    }
}

/// Writes until it is told to stop, or so many commits.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Writer {
    pub(crate) fn start(db: Connection, commits: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut done = 0;
            while done < commits && !told.load(Ordering::Relaxed) {
                let sql = match done % 50 {
                    49 => "DELETE FROM t WHERE a % 3 = 0 AND a < (SELECT max(a) FROM t) - 40",
                    n if n % 7 == 0 => "UPDATE t SET b = randomblob(700) WHERE a = (SELECT max(a) FROM t)",
                    _ => "INSERT INTO t(b) VALUES (randomblob(300))",
                };
                db.execute_batch(sql).unwrap();
                done += 1;
                std::thread::sleep(pause);
            }
            done
        });
        Self { stop, thread }
    }

    fn wait(self) -> u64 {
        self.thread.join().unwrap()
    }

    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }
}

pub(crate) fn count(path: &Path) -> Option<i64> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    db.busy_timeout(Duration::from_secs(5)).ok()?;
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).ok()
}

#[test]
fn a_folder_of_replicas_is_equal_after_thousands_of_commits_in_both_modes() {
    let mut node = Node::new();
    let wal = node.database("wal.db", "wal");
    let rollback = node.database("rollback.db", "delete");
    node.start();
    let follow = node.follow(&node.url(), &["--into", "replicas"]);
    let writers = [Writer::start(wal, 3000, Duration::ZERO), Writer::start(rollback, 1000, Duration::ZERO)];
    let replica = |name: &str| node.folder.path("replicas").join(name);
    wait_for("a replica", || count(&replica("wal.db")).is_some());
    for writer in writers {
        writer.wait();
    }
    for name in ["wal.db", "rollback.db"] {
        node.wait_equal(name, &replica(name));
        let is_said = |line: &Value| line["event"] == "reached" && line["database"] == name;
        wait_for("a position to be said", || follow.find(is_said).is_some());
        let said = follow.find(is_said).unwrap();
        let pos = std::fs::read_to_string(format!("{}-pos", replica(name).display())).unwrap();
        wait_for("the last position to be said", || {
            let last = follow.find(|line| line["database"] == name).unwrap();
            pos == format!("{}/{}\n", last["txid"].as_str().unwrap(), last["checksum"].as_str().unwrap())
        });
        assert_eq!(said["output"], format!("replicas/{name}"));
    }
    // A database that comes later is followed as well.
    let late = node.database("late.db", "wal");
    late.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("late.db", &replica("late.db"));
    // A follower that got little of the processor has read all of that from the store. Once it is up to date, commits come as they are made.
    let wal = node.database("wal.db", "wal");
    wait_for("a commit to come by the stream", || {
        wal.execute_batch("INSERT INTO t(b) VALUES (2)").unwrap();
        follow.find(|line| line["database"] == "wal.db" && line["source"] == "stream").is_some()
    });
    node.wait_equal("wal.db", &replica("wal.db"));
    follow.stop();
    node.stop();
}

/// SQLite reads the schema anew after a step that has changed it, by way of pages that were changed behind its back.
#[test]
fn a_replica_goes_on_after_tables_are_dropped_and_pages_are_gone() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    for table in ["x", "y", "z", "u", "v"] {
        db.execute_batch(&format!("CREATE TABLE {table}(a); INSERT INTO {table} VALUES (randomblob(50000))")).unwrap();
    }
    node.start();
    let follow = node.follow(&node.url(), &["--into", "replicas"]);
    let replica = node.folder.path("replicas/app.db");
    node.wait_equal("app.db", &replica);
    for sql in [
        "DROP TABLE y",
        "INSERT INTO t(b) VALUES (1)",
        "DROP TABLE x",
        "CREATE TABLE w(a)",
        "INSERT INTO t(b) VALUES (2)",
    ] {
        db.execute_batch(sql).unwrap();
        node.wait_equal("app.db", &replica);
    }
    // All of it in one step.
    follow.running.as_ref().unwrap().signal(Signal::STOP);
    db.execute_batch("DROP TABLE z; DROP TABLE u; VACUUM; INSERT INTO t(b) VALUES (3)").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    follow.running.as_ref().unwrap().signal(Signal::CONT);
    node.wait_equal("app.db", &replica);
    db.execute_batch("INSERT INTO t(b) VALUES (4)").unwrap();
    node.wait_equal("app.db", &replica);
    assert_eq!(follow.find(|line| line["event"] == "failed"), None);
    follow.stop();
    node.stop();
}

#[test]
fn a_stop_does_not_wait_for_a_node_that_takes_connections_and_does_not_answer() {
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    let follower = folder.start(&["follow", &format!("http://{}", frozen.local_addr().unwrap()), "--into", "replicas"]);
    let (mut connection, _) = frozen.accept().unwrap();
    connection.read_exact(&mut [0; 24]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    follower.signal(Signal::TERM);
    assert_eq!(follower.wait().code, 0);
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
}

#[test]
fn killed_at_any_time_both_ends_go_on() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let writer = Writer::start(db, u64::MAX, Duration::from_millis(1));
    let arguments = ["app.db", "--into", "replica.db"];
    let follow = node.follow(&node.url(), &arguments);
    wait_for("the replica", || count(&replica).is_some());
    follow.kill();
    for round in 0..10u64 {
        let follow = node.follow(&node.url(), &arguments);
        std::thread::sleep(Duration::from_millis(40 + 37 * (round * 7 % 10)));
        follow.kill();
        // A writable connection rolls back what was half written.
        let db = Connection::open(&replica).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
    }
    let follow = node.follow(&node.url(), &arguments);
    for round in 0..4 {
        follow.wait_event("connected");
        std::thread::sleep(Duration::from_millis(200 + 150 * round));
        node.kill();
        node.start();
    }
    assert!(writer.stop() > 500);
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
}

/// Passes bytes on, and cuts every connection after some of them.
struct Proxy {
    address: String,
    cuts: Arc<AtomicU64>,
    is_kind: Arc<AtomicBool>,
}

impl Proxy {
    fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cuts, is_kind) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (cut, kind) = (Arc::clone(&cuts), Arc::clone(&is_kind));
        std::thread::spawn(move || {
            for (number, from) in listener.incoming().map_while(Result::ok).enumerate() {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                let (mut up, mut down) = (from.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut down));
                let (cut, kind) = (Arc::clone(&cut), Arc::clone(&kind));
                std::thread::spawn(move || {
                    let bytes_max = 3_000 + (number as u64 * 7_919) % 60_000;
                    pass(&server, &from, if kind.load(Ordering::Relaxed) { u64::MAX } else { bytes_max }, &cut);
                });
            }
        });
        Self { address, cuts, is_kind }
    }
}

fn pass(mut server: &TcpStream, mut client: &TcpStream, bytes_max: u64, cuts: &AtomicU64) {
    let mut buffer = [0; 1000];
    let mut passed = 0;
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        let part = read.min(usize::try_from(bytes_max - passed).unwrap_or(usize::MAX));
        if client.write_all(&buffer[..part]).is_err() {
            break;
        }
        passed += part as u64;
        if passed >= bytes_max {
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn a_connection_that_is_cut_anywhere_is_made_again() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let proxy = Proxy::start(node.address.clone());
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&format!("http://{}", proxy.address), &["app.db", "--into", "replica.db"]);
    let writer = Writer::start(db, u64::MAX, Duration::from_millis(1));
    wait_for("cuts", || proxy.cuts.load(Ordering::Relaxed) >= 15);
    proxy.is_kind.store(true, Ordering::Relaxed);
    writer.stop();
    node.wait_equal("app.db", &replica);
    follow.wait_event("lost");
    follow.stop();
}

#[test]
fn a_frozen_node_is_noticed() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db", "--timeout", "2s"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    node.signal(Signal::STOP);
    let frozen = Instant::now();
    // Another connection may have been lost before: the first one, when the node did not listen yet.
    wait_for("the loss", || follow.find(|line| line["reason"] == "nothing was heard for 2s").is_some());
    assert!(frozen.elapsed() < Duration::from_secs(5), "{:?}", frozen.elapsed());
    db.execute_batch("INSERT INTO t(b) VALUES (2)").unwrap();
    node.signal(Signal::CONT);
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
}

/// A reader that does not let go of one replica holds up only that one, however much there is to send.
#[test]
fn a_follower_that_is_slow_in_one_database_delays_no_other() {
    let mut node = Node::new();
    let (slow, quick) = (node.database("slow.db", "wal"), node.database("quick.db", "wal"));
    node.start();
    let follow = node.follow(&node.url(), &["--into", "replicas"]);
    let replica = |name: &str| node.folder.path("replicas").join(name);
    for name in ["slow.db", "quick.db"] {
        node.wait_equal(name, &replica(name));
    }
    let reader = Connection::open_with_flags(replica("slow.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let seen = count(&replica("slow.db"));
    // More than every buffer on the way holds.
    for _ in 0..60 {
        slow.execute_batch("INSERT INTO t(b) VALUES (randomblob(500000))").unwrap();
    }
    let began = Instant::now();
    for n in 0..20 {
        quick.execute("INSERT INTO t(b) VALUES (?1)", [n]).unwrap();
        wait_for("the other replica", || count(&replica("quick.db")) == Some(n + 1));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let held: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(Some(held), seen, "its reader is not disturbed");
    drop(reader);
    node.wait_equal("slow.db", &replica("slow.db"));
    follow.stop();
    node.stop();
}

#[test]
fn who_does_not_know_the_token_gets_nothing() {
    let folder = Folder::new();
    drop(folder.database("app.db"));
    let address = free_address();
    let listen = ["replicate", "app.db", "store", "--cluster-listen", &address];
    let node = folder.start_with(&listen, &[("RHYOLITE_CLUSTER_TOKEN", "s3cret")]);
    let url = format!("http://{address}");
    wait_for("the node", || TcpStream::connect(&address).is_ok());
    for wrong in [&[][..], &["--cluster-token", "s3creT"], &["--cluster-token", "s3cre"]] {
        let outcome = folder.run(&[&["follow", &url, "app.db", "--into", "replica.db"][..], wrong].concat());
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let line = outcome.stderr.lines().last().unwrap();
        assert!(line.ends_with("the token is missing or wrong"), "{outcome:?}");
    }
    assert!(!folder.path("replica.db").exists());
    let arguments = ["follow", &url, "app.db", "--into", "replica.db", "--cluster-token", "s3cret"];
    let mut right = folder.start(&arguments);
    wait_for("the replica", || folder.path("replica.db").exists());
    assert!(!right.has_ended());
    drop(right);
    let outcome = folder.run(&["follow", &url, "other.db", "--into", "x.db", "--cluster-token", "s3cret"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.stderr.contains("no database \"other.db\" is served: there is app.db"), "{outcome:?}");
    drop(node);
}

#[test]
fn nobody_listens_where_others_could_hear() {
    let folder = Folder::new();
    drop(folder.database("app.db"));
    let outcome = folder.run(&["replicate", "app.db", "store", "--cluster-listen", ":20202"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("that needs TLS"), "{outcome:?}");
    for no_effect in [["--cluster-token", "x"], ["--cluster-cert", "x"], ["--cluster-client-ca", "x"]] {
        let outcome = folder.run(&[&["replicate", "app.db", "store"][..], &no_effect].concat());
        assert_eq!(outcome.code, 2, "{outcome:?}");
    }
    let outcome = folder.run(&["follow", "http://127.0.0.1:1", "app.db", "--into", "x.db", "--ca", "x"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    let outcome = folder.run(&["follow", "https://127.0.0.1:1", "app.db", "--into", "x.db", "--ca", "missing.pem"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("read missing.pem: no such file"), "{outcome:?}");
}

/// Certificates for tests: testdata/tls/make.sh.
pub(crate) fn put_certificate(folder: &Folder, from: &str, to: &str) {
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tls");
    for suffix in [".pem", ".key"] {
        let from = certificates.join(format!("{from}{suffix}"));
        if from.exists() {
            std::fs::copy(from, folder.path(&format!("{to}{suffix}"))).unwrap();
        }
    }
}

#[test]
fn over_tls_each_end_proves_who_it_is() {
    let folder = Folder::new();
    drop(folder.database("app.db"));
    for name in ["ca", "other-ca", "node", "follower", "stranger"] {
        put_certificate(&folder, name, name);
    }
    let port = free_address().rsplit_once(':').unwrap().1.to_owned();
    let config = format!(
        "cluster: {{listen: \"0.0.0.0:{port}\", tls: {{cert: node.pem, key: node.key, client-ca: ca.pem}}}}\n\
         dbs: [{{path: app.db, replica: {{url: ./store}}}}]\n"
    );
    folder.write("rhyolite.yml", config);
    let node = folder.start(&["replicate", "--config", "rhyolite.yml"]);
    wait_for("the node", || TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
    let follow = |url: &str, more: &[&str], into: &str| {
        let url = url.replace("PORT", &port);
        Follow::start(folder.start(&[&["follow", &url, "app.db", "--into", into, "--json"][..], more].concat()))
    };
    let known = ["--cert", "follower.pem", "--key", "follower.key"];
    for (url, more, reason) in [
        ("https://127.0.0.1:PORT", &["--ca", "ca.pem"][..], "CertificateRequired"),
        ("https://127.0.0.1:PORT", &["--ca", "ca.pem", "--cert", "stranger.pem", "--key", "stranger.key"], "alert"),
        ("https://127.0.0.1:PORT", &[&["--ca", "other-ca.pem"][..], &known].concat(), "UnknownIssuer"),
        ("https://127.0.0.2:PORT", &[&["--ca", "ca.pem"][..], &known].concat(), "not valid for name"),
        ("http://127.0.0.1:PORT", &[], ""),
    ] {
        let follow = follow(url, more, "nothing.db");
        // Whoever is refused may first see no more than that the connection is gone.
        let says_why = |line: &Value| line["event"] == "lost" && line["reason"].as_str().unwrap().contains(reason);
        wait_for(&format!("{reason:?} with {more:?}"), || follow.find(says_why).is_some());
        assert!(follow.find(|line| line["event"] == "connected").is_none(), "{more:?}");
        drop(follow);
    }
    assert!(!folder.path("nothing.db").exists());
    let right = follow("https://localhost:PORT", &[&["--ca", "ca.pem"][..], &known].concat(), "replica.db");
    right.wait_event("reached");
    let db = folder.database("app.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    wait_for("the commit", || count(&folder.path("replica.db")) == Some(1));
    // Another certificate: who is connected stays so, and who comes sees it.
    put_certificate(&folder, "node2", "node");
    let renewed = follow("https://127.0.0.1:PORT", &[&["--ca", "other-ca.pem"][..], &known].concat(), "other.db");
    renewed.wait_event("reached");
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    for name in ["replica.db", "other.db"] {
        wait_for(name, || count(&folder.path(name)) == Some(2));
    }
    right.stop();
    renewed.stop();
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn what_may_still_fail_is_not_served() {
    let folder = Folder::new();
    for name in ["data", "db"] {
        std::fs::create_dir(folder.path(name)).unwrap();
    }
    let mount = ["mount", "data", "--at", "db", "--store", "store", "--cluster-listen", "127.0.0.1:1"];
    let outcome = folder.run(&[&mount[..], &["--durability", "store"]].concat());
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("followers would see commits that may still fail"), "{outcome:?}");
}

#[test]
fn a_follower_gets_objects_of_its_database_and_nothing_else() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    std::fs::write(node.folder.path("secret"), "x").unwrap();
    node.start();
    node.folder.wait_durable("data/app.db", 1);
    let ask = async |path: &str| {
        let link =
            Link::connect(&node.url().parse().unwrap(), &Access::default(), Duration::from_secs(10)).await.unwrap();
        match link.read(path, 1 << 20).await {
            Ok((_, bytes)) => (200, bytes.len()),
            Err(LinkError::Refused { status, .. }) => (status.as_u16(), 0),
            Err(error) => panic!("{path}: {error}"),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(ask("/v1/object?db=app.db&key=id.json").await.0, 200);
        for (path, status) in [
            ("/v1/object?db=app.db&key=../secret", 400),
            ("/v1/object?db=app.db&key=..%2F..%2Fsecret", 400),
            ("/v1/object?db=app.db&key=/etc/passwd", 400),
            ("/v1/object?db=../data/app.db&key=id.json", 404),
            ("/v1/object?db=app.db&key=id.json&range=0-4194305", 400),
            ("/v1/object?db=app.db&key=id.json&range=5-5", 400),
            ("/v1/object?db=app.db&key=id.json&tail=18446744073709551615", 400),
            ("/v1/object?db=app.db", 400),
            ("/v1/list?db=app.db&prefix=..&limit=1", 400),
            ("/v1/list?db=app.db&prefix=&limit=-1", 400),
            ("/v1/log?db=app.db&lineage=0&pos=1", 400),
            ("/v1/log", 400),
            ("/", 404),
        ] {
            assert_eq!(ask(path).await.0, status, "{path}");
        }
    });
    node.stop();
}

/// Whoever speaks something else is dropped, and harms nobody.
#[test]
fn noise_is_no_follower() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    wait_for("the node", || TcpStream::connect(&node.address).is_ok());
    for noise in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // It may be closed before everything is written.
        let _ = stream.write_all(noise);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1000, "{answer:?}");
    }
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &node.folder.path("replica.db"));
    follow.stop();
    node.stop();
}

/// Another database under the same name, and the same one after it has lost commits that were followed.
#[test]
fn another_history_changes_nothing() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let arguments = ["app.db", "--into", "replica.db"];
    let follow = node.follow(&node.url(), &arguments);
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
    drop(db);
    let earlier = Folder::new();
    let copy = |from: PathBuf, to: PathBuf| {
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    };
    for name in ["data", "store"] {
        copy(node.folder.path(name), earlier.path(name));
    }
    node.start();
    let follow = node.follow(&node.url(), &arguments);
    let db = node.database("app.db", "wal");
    db.execute_batch("INSERT INTO t(b) VALUES ('lost'); INSERT INTO t(b) VALUES ('too')").unwrap();
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
    drop(db);
    let content = std::fs::read(&replica).unwrap();
    for name in ["data", "store"] {
        std::fs::remove_dir_all(node.folder.path(name)).unwrap();
        copy(earlier.path(name), node.folder.path(name));
    }
    let db = node.database("app.db", "wal");
    node.start();
    for round in 0..4 {
        let mut url = vec!["follow".to_owned(), node.url()];
        url.extend(arguments.map(str::to_owned));
        let url: Vec<&str> = url.iter().map(String::as_str).collect();
        let outcome = node.folder.run(&url);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let line = outcome.stderr.lines().last().unwrap();
        assert!(line.contains("is no longer the database at transaction"), "{round}: {outcome:?}");
        assert!(std::fs::read(&replica).unwrap() == content, "it was touched");
        db.execute_batch("INSERT INTO t(b) VALUES ('another')").unwrap();
        node.folder.wait_durable("data/app.db", round + 2);
    }
    node.stop();
    let mut other = Node::new();
    let db = other.database("app.db", "wal");
    db.execute_batch("INSERT INTO t(b) VALUES (5)").unwrap();
    other.start();
    let into = replica.to_str().unwrap();
    wait_for("the other node", || TcpStream::connect(&other.address).is_ok());
    let outcome = other.folder.run(&["follow", &other.url(), "app.db", "--into", into]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(std::fs::read(&replica).unwrap() == content, "it was touched");
}
