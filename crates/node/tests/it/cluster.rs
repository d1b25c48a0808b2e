//! A cluster without FUSE: real nodes, a real application that writes, and every way in which a primary is lost.
//!
//! The application is this test program itself ([`application`]): it appends numbered rows, and notes each one that is committed.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rhyolite_format::follow::PageOneFields;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Folder, Outcome, Running, wait_for};

/// Database that the application writes to, and the file in which it notes what is committed.
const DATABASE: &str = "CLUSTER_TEST_DATABASE";
const NOTES: &str = "CLUSTER_TEST_NOTES";
/// Journal mode of the database; WAL without it.
const MODE: &str = "CLUSTER_TEST_MODE";
/// Time of the lease, and after it what an observer waits more.
const TTL: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_millis(700);

/// The application: not a test, unless it is told what to write to.
#[test]
fn application() {
    let (Some(database), Some(notes)) = (std::env::var_os(DATABASE), std::env::var_os(NOTES)) else { return };
    let db = Connection::open(database).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    let mode = std::env::var(MODE).unwrap_or_else(|_| "wal".to_owned());
    db.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).unwrap();
    db.pragma_update(None, "synchronous", "off").unwrap();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, n INTEGER UNIQUE, b BLOB)").unwrap();
    let mut number: i64 = db.query_row("SELECT coalesce(max(n), 0) FROM t", [], |row| row.get(0)).unwrap();
    let mut notes = std::fs::File::options().create(true).append(true).open(notes).unwrap();
    loop {
        number += 1;
        db.execute("INSERT INTO t(n, b) VALUES (?1, randomblob(100))", [number]).unwrap();
        notes.write_all(format!("{} {number}\n", now_ms()).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

/// Some nodes in a folder, with one store, to which each has a way of its own.
pub(crate) struct Cluster {
    pub(crate) folder: Folder,
    pub(crate) addresses: BTreeMap<&'static str, String>,
    pub(crate) running: BTreeMap<&'static str, Running>,
    pub(crate) sync_interval: &'static str,
    /// `None` where no lease runs out.
    pub(crate) lease_ttl: Option<&'static str>,
    /// Each node has its folder mounted, where the application and readers use it.
    pub(crate) is_mounted: bool,
    /// Journal mode of the application's database.
    pub(crate) mode: &'static str,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        std::fs::create_dir(folder.path("store")).unwrap();
        let (addresses, running) = (BTreeMap::new(), BTreeMap::new());
        Self {
            folder,
            addresses,
            running,
            sync_interval: "--sync-interval=100ms",
            lease_ttl: Some("--lease-ttl=2s"),
            is_mounted: false,
            mode: "wal",
        }
    }

    /// Starts a node with the application.
    pub(crate) fn start(&mut self, name: &'static str) {
        self.start_application(name, &[]);
    }

    /// The same, with more flags.
    pub(crate) fn start_application(&mut self, name: &'static str, more: &[&str]) {
        let program = std::env::current_exe().unwrap();
        let exec = format!("'{}' --exact cluster::application --nocapture", program.display());
        let mut arguments = vec!["--exec", &exec];
        arguments.extend(more);
        self.start_with(name, &arguments);
    }

    pub(crate) fn start_with(&mut self, name: &'static str, more: &[&str]) {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let address = self.addresses.entry(name).or_insert_with(free).clone();
        let socket = format!("{name}.sock");
        let store = format!("store-of-{name}");
        if !self.folder.path(&store).is_symlink() {
            self.lead(name, "store");
        }
        let mut arguments = vec!["node", name, "--store", &store, "--listen", &address, "--socket", &socket];
        arguments.extend([self.sync_interval, "--drill-interval", "0s"]);
        arguments.extend(self.lease_ttl);
        arguments.extend(more);
        let front = self.front(name);
        if self.is_mounted {
            arguments.extend(["--at", &front]);
        }
        let (database, notes) = (self.database(name), self.notes(name));
        let variables = [(DATABASE, database.to_str().unwrap()), (NOTES, notes.to_str().unwrap()), (MODE, self.mode)];
        self.running.insert(name, self.folder.start_with(&arguments, &variables));
    }

    /// Makes a node's way to the store lead elsewhere: to itself, and nothing is reached.
    pub(crate) fn lead(&self, name: &str, to: &str) {
        let (link, new) = (self.folder.path(&format!("store-of-{name}")), self.folder.path("new-link"));
        std::os::unix::fs::symlink(to, &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }

    /// The folder in which a node's databases are used.
    pub(crate) fn front(&self, name: &str) -> String {
        if self.is_mounted { format!("at-{name}") } else { name.to_owned() }
    }

    pub(crate) fn database(&self, name: &str) -> PathBuf {
        self.folder.path(&self.front(name)).join("app.db")
    }

    pub(crate) fn notes(&self, name: &str) -> PathBuf {
        self.folder.path(&format!("{name}.notes"))
    }

    /// What the application has noted on a node: when, and which row.
    pub(crate) fn noted(&self, name: &str) -> Vec<(u128, i64)> {
        let text = std::fs::read_to_string(self.notes(name)).unwrap_or_default();
        let parse = |line: &str| {
            let (time, number) = line.split_once(' ')?;
            Some((time.parse().ok()?, number.parse().ok()?))
        };
        text.lines().filter_map(parse).collect()
    }

    pub(crate) fn last_noted(&self, name: &str) -> i64 {
        self.noted(name).last().map_or(0, |(_, number)| *number)
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        self.running[name].signal(signal);
    }

    /// Stops a process in the middle of whatever it does, but not while it holds a lock of the store: that is a folder here, and everybody would wait for it.
    pub(crate) fn freeze(&self, name: &str) {
        let is_locked = |lock: &str| {
            let file = std::fs::File::open(self.folder.path("store").join(lock));
            file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
        };
        loop {
            self.signal(name, Signal::STOP);
            // It has stopped when the kernel says so.
            std::thread::sleep(Duration::from_millis(20));
            if ![".rhyolite-lock", "app.db/.rhyolite-lock"].into_iter().any(is_locked) {
                return;
            }
            self.signal(name, Signal::CONT);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self, name: &'static str) {
        self.signal(name, Signal::KILL);
        drop(self.running.remove(name));
    }

    pub(crate) fn stop(&mut self, name: &'static str) -> Outcome {
        self.signal(name, Signal::TERM);
        self.running.remove(name).unwrap().wait()
    }

    /// Stops a node that must be a replica, or have no application.
    pub(crate) fn stop_well(&mut self, name: &'static str) {
        let outcome = self.stop(name);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
    }

    /// Stops a primary, whose application ends by the signal.
    pub(crate) fn stop_primary(&mut self, name: &'static str) {
        let outcome = self.stop(name);
        assert_eq!(outcome.code, 128 + 15, "{outcome:?}");
        assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
    }

    pub(crate) fn node(&self, name: &str) -> Value {
        let outcome = self.folder.run(&["ctl", "node", "--json", "--socket", &format!("{name}.sock")]);
        serde_json::from_str(&outcome.stdout).unwrap_or_default()
    }

    pub(crate) fn wait_role(&self, name: &str, role: &str) {
        wait_for(&format!("{name} to be {role}"), || self.node(name)["role"] == role);
    }

    /// Waits until the application writes on a node.
    pub(crate) fn wait_writing(&self, name: &str) {
        let before = self.last_noted(name);
        wait_for(&format!("the application to write on {name}"), || self.last_noted(name) > before + 20);
    }

    /// Waits until a replica has a row.
    pub(crate) fn wait_row(&self, name: &str, number: i64) {
        wait_for(&format!("row {number} on {name}"), || rows(&self.database(name)).contains(&number));
    }

    /// Waits until what has been committed on the primary is in the store, and gives the last row of it.
    pub(crate) fn wait_durable(&self, name: &str) -> i64 {
        let last = self.last_noted(name);
        let (db, socket) = (format!("{}/app.db", self.front(name)), format!("{name}.sock"));
        wait_for("the rows to be durable", || {
            self.folder.run(&["sync", &db, "--wait", "--timeout", "5s", "--socket", &socket]).code == 0
        });
        last
    }

    /// The rows that the store has.
    pub(crate) fn stored(&self) -> HashSet<i64> {
        let copy = self.folder.path("stored.db");
        let outcome = self.folder.run(&["restore", "store/app.db", "-o", "stored.db", "--force"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let rows = rows(&copy);
        assert!(!rows.is_empty(), "nothing is stored, or it cannot be read");
        rows
    }

    pub(crate) fn branches(&self, name: &str) -> Vec<Value> {
        let outcome = self.folder.run(&["branch", "list", name, "--json"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until a replica is byte for byte what the store has, but for what its readers need otherwise. Nobody writes.
    pub(crate) fn wait_equal_to_store(&self, name: &str) {
        wait_for(&format!("{name} to be what the store has"), || {
            self.stored();
            let image = std::fs::read(self.folder.path("stored.db")).unwrap();
            let Ok(mut bytes) = std::fs::read(self.database(name)) else { return false };
            if bytes.len() != image.len() {
                return false;
            }
            PageOneFields::of(&image).put(&mut bytes);
            bytes == image
        });
        assert_sound(&self.database(name));
    }

    /// The store is whole, and has one history that began with one snapshot.
    pub(crate) fn check_store(&self) {
        let outcome = self.folder.run(&["verify", "store/app.db"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let snapshots = std::fs::read_dir(self.folder.path("store/app.db/ltx/9")).unwrap().count();
        assert_eq!(snapshots, 1, "a failover needs no new snapshot");
    }
}

/// The rows of a database; none where it cannot be read.
pub(crate) fn rows(path: &Path) -> HashSet<i64> {
    let read = || -> rusqlite::Result<Vec<i64>> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(Duration::from_secs(10))?;
        let mut statement = db.prepare("SELECT n FROM t")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let all = read().unwrap_or_default();
    let distinct: HashSet<i64> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len(), "a row is there twice");
    distinct
}

pub(crate) fn assert_sound(path: &Path) {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    let durable = cluster.wait_durable("a");
    cluster.wait_row("b", durable);
    assert_eq!(
        std::fs::read_to_string(cluster.folder.path("b/.primary")).unwrap(),
        format!("{}\n", cluster.addresses["a"])
    );
    assert!(!cluster.folder.path("a/.primary").exists());
    let epoch = cluster.node("b")["holder"]["epoch"].clone();
    cluster.kill("a");
    let stored = cluster.stored();
    cluster.wait_role("b", "primary");
    cluster.wait_writing("b");
    assert!(!cluster.folder.path("b/.primary").exists());
    assert_ne!(cluster.node("b")["holder"]["epoch"], epoch);
    let here = rows(&cluster.database("b"));
    assert!((1..=durable).all(|n| here.contains(&n)) && stored.is_subset(&here), "nothing durable is lost");
    // What a process that is gone has left is no hindrance, and its folder follows.
    cluster.start("a");
    cluster.wait_role("a", "replica");
    let durable = cluster.wait_durable("b");
    cluster.wait_row("a", durable);
    cluster.kill("b");
    cluster.wait_role("a", "primary");
    cluster.wait_writing("a");
    let here = rows(&cluster.database("a"));
    assert!((1..=durable).all(|n| here.contains(&n)), "nothing durable is lost");
    cluster.stop_primary("a");
    cluster.check_store();
}

#[test]
fn a_frozen_primary_has_no_application_when_another_begins_and_follows_when_it_wakes() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    let durable = cluster.wait_durable("a");
    cluster.wait_row("b", durable);
    let frozen = now_ms();
    cluster.freeze("a");
    cluster.wait_writing("b");
    let (last, first) = (cluster.noted("a").last().unwrap().0, cluster.noted("b")[0].0);
    assert!(last < first, "both applications wrote at a time: until {last} and since {first}");
    let took = Duration::from_millis(u64::try_from(first - frozen).unwrap());
    assert!(took < TTL + MARGIN + Duration::from_secs(2), "it took {took:?}");
    let noted = cluster.noted("a").len();
    cluster.signal("a", Signal::CONT);
    cluster.wait_role("a", "replica");
    let durable = cluster.wait_durable("b");
    cluster.wait_row("a", durable);
    assert_eq!(cluster.noted("a").len(), noted, "its application is gone");
    // Commits that the frozen node had made and nobody got are kept. Who reads in the middle of a step of the follower may be refused.
    wait_for("what was committed to be in the history or kept", || {
        let branches = cluster.branches("a");
        let path = |branch: &Value| cluster.folder.path(branch["path"].as_str().unwrap());
        let kept: HashSet<i64> = branches.iter().flat_map(|branch| rows(&path(branch))).collect();
        let here = rows(&cluster.database("a"));
        let lost = cluster.noted("a").into_iter().filter(|(_, n)| !kept.contains(n) && !here.contains(n)).count();
        if lost > 0 {
            println!("{lost} of {}: {} kept in {branches:?}, {} here", noted, kept.len(), here.len());
        }
        lost == 0
    });
    cluster.stop_primary("b");
    cluster.wait_role("a", "primary");
    cluster.stop_primary("a");
    cluster.check_store();
}

#[test]
fn a_primary_that_loses_the_store_stops_its_application_before_another_begins() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.wait_durable("a"));
    cluster.lead("a", "store-of-a");
    cluster.wait_writing("b");
    let (last, first) = (cluster.noted("a").last().unwrap().0, cluster.noted("b")[0].0);
    assert!(last < first, "both applications wrote at a time: until {last} and since {first}");
    wait_for("the former primary to have stopped", || cluster.node("a")["role"] == "waiting");
    cluster.lead("a", "store");
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", cluster.last_noted("b"));
    cluster.stop_well("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

#[test]
fn a_primary_that_stops_or_hands_on_loses_nothing() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.last_noted("a"));
    let handed = cluster.folder.run(&["ctl", "handoff", "--socket", "b.sock"]);
    assert_eq!(handed.code, 1, "a replica has nothing to hand on: {handed:?}");
    let handed = cluster.folder.run(&["ctl", "handoff", "--socket", "a.sock"]);
    assert_eq!(handed.code, 0, "{handed:?}");
    cluster.wait_writing("b");
    let noted: Vec<i64> = cluster.noted("a").iter().map(|(_, n)| *n).collect();
    let here = rows(&cluster.database("b"));
    assert!(noted.iter().all(|n| here.contains(n)), "a row that was committed before the handoff is missing");
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", cluster.last_noted("b"));
    cluster.stop_primary("b");
    cluster.wait_writing("a");
    let noted: Vec<i64> = cluster.noted("b").iter().map(|(_, n)| *n).collect();
    let here = rows(&cluster.database("a"));
    assert!(noted.iter().all(|n| here.contains(n)), "a row that was committed before the stop is missing");
    cluster.stop_primary("a");
    assert!(cluster.branches("a").is_empty() && cluster.branches("b").is_empty(), "nothing went astray");
    cluster.check_store();
}

#[test]
fn neither_a_stale_node_nor_an_empty_one_wins_with_what_it_has() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.last_noted("a"));
    cluster.stop_well("b");
    let stale = rows(&cluster.database("b"));
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    let all: HashSet<i64> = cluster.noted("a").iter().map(|(_, n)| *n).collect();
    assert!(stale.len() < all.len());
    // Nobody else is there: it takes the lease at once, and has the rows all the same.
    cluster.start("b");
    cluster.wait_writing("b");
    assert!(all.is_subset(&rows(&cluster.database("b"))), "the stale node");
    cluster.stop_primary("b");
    let all: HashSet<i64> = all.into_iter().chain(cluster.noted("b").iter().map(|(_, n)| *n)).collect();
    cluster.start("c");
    cluster.wait_writing("c");
    assert!(all.is_subset(&rows(&cluster.database("c"))), "the empty node");
    cluster.stop_primary("c");
    // One that was the primary itself, with a state folder of that time.
    let all: HashSet<i64> = all.into_iter().chain(cluster.noted("c").iter().map(|(_, n)| *n)).collect();
    cluster.start("a");
    cluster.wait_writing("a");
    assert!(all.is_subset(&rows(&cluster.database("a"))), "the former primary");
    cluster.stop_primary("a");
    assert!(["a", "b", "c"].iter().all(|name| cluster.branches(name).is_empty()), "nothing went astray");
    cluster.check_store();
}

#[test]
fn what_only_a_lost_primary_had_is_kept_as_a_branch() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    let durable = cluster.last_noted("a");
    // From here on nothing is uploaded.
    cluster.sync_interval = "--sync-interval=1h";
    cluster.start("a");
    cluster.wait_writing("a");
    let before = cluster.last_noted("a");
    wait_for("commits to be captured", || {
        let status = cluster.folder.run(&["ctl", "list", "--json", "--socket", "a.sock"]).json();
        status["databases"][0]["lag_ms"].as_u64().is_some_and(|lag| lag > 300)
    });
    cluster.kill("a");
    cluster.sync_interval = "--sync-interval=100ms";
    cluster.start("b");
    cluster.wait_writing("b");
    assert!((1..=durable).all(|n| rows(&cluster.database("b")).contains(&n)));
    cluster.start("a");
    cluster.wait_role("a", "replica");
    wait_for("the branch", || !cluster.branches("a").is_empty());
    let branch = cluster.branches("a").remove(0);
    assert_eq!(branch["epoch"], "0000000000000002", "{branch}");
    let lost = cluster.folder.path(branch["path"].as_str().unwrap());
    assert_sound(&lost);
    assert!((1..=before).all(|n| rows(&lost).contains(&n)), "everything is in the copy");
    let last = cluster.last_noted("b");
    cluster.wait_row("a", last);
    // Both again, and once only.
    cluster.stop_well("a");
    cluster.start("a");
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", cluster.last_noted("b"));
    assert_eq!(cluster.branches("a").len(), 1);
    cluster.stop_well("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

/// The others have gone on without it for so long that nobody can tell where they parted.
#[test]
fn a_replica_that_was_ahead_and_away_for_long_is_not_rewritten_before_its_content_is_kept() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    cluster.sync_interval = "--sync-interval=1h";
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_writing("a");
    let seen = cluster.last_noted("a");
    cluster.wait_row("b", seen);
    // Both are lost, the replica with commits that the store does not have.
    cluster.kill("b");
    cluster.kill("a");
    assert!(!cluster.stored().contains(&seen));
    cluster.sync_interval = "--sync-interval=100ms";
    cluster.start("c");
    wait_for("more than the replica had", || cluster.last_noted("c") > seen + 50);
    cluster.stop_primary("c");
    // Its log begins anew, behind where they parted.
    std::fs::remove_dir_all(cluster.folder.path("c")).unwrap();
    cluster.start("c");
    cluster.wait_writing("c");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.wait_durable("c"));
    let kept = cluster.branches("b");
    let path = |branch: &Value| cluster.folder.path(branch["path"].as_str().unwrap());
    assert!(kept.iter().any(|branch| rows(&path(branch)).contains(&seen)), "{kept:?}");
    cluster.stop_well("b");
    cluster.stop_primary("c");
}

#[test]
fn what_lies_within_a_bundle_is_no_lost_branch() {
    let mut cluster = Cluster::new();
    let write = |cluster: &Cluster, name: &str, numbers: std::ops::Range<i64>| {
        let db = Connection::open(cluster.database(name)).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, n INTEGER UNIQUE)").unwrap();
        for number in numbers {
            db.execute("INSERT INTO t(n) VALUES (?1)", [number]).unwrap();
        }
        let (db, socket) = (format!("{name}/app.db"), format!("{name}.sock"));
        let sync = ["sync", &db, "--wait", "--timeout", "20s", "--socket", &socket];
        wait_for("the rows to be durable", || cluster.folder.run(&sync).code == 0);
    };
    cluster.start_with("a", &[]);
    cluster.wait_role("a", "primary");
    (0..5).for_each(|round| write(&cluster, "a", round * 4..round * 4 + 4));
    cluster.kill("a");
    // All that it had is in the store, and it has not noted that.
    std::fs::remove_dir_all(cluster.folder.path("a/.app.db-rhyolite")).unwrap();
    cluster.start_with("b", &[]);
    cluster.wait_role("b", "primary");
    (5..15).for_each(|round| write(&cluster, "b", round * 4..round * 4 + 4));
    let compact = ["compact", "store/app.db", "--bundle-interval", "1s", "--json"];
    wait_for("a bundle", || cluster.folder.run(&compact).stdout.contains(r#""bundles":1"#));
    cluster.start_with("a", &[]);
    cluster.wait_role("a", "replica");
    cluster.wait_row("a", 59);
    assert_eq!(cluster.branches("a"), Vec::<Value>::new());
    cluster.stop_well("a");
    cluster.stop_well("b");
}

#[test]
fn a_replica_keeps_commits_that_were_never_uploaded() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    cluster.sync_interval = "--sync-interval=1h";
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    cluster.wait_writing("a");
    let seen = cluster.last_noted("a");
    cluster.wait_row("b", seen);
    cluster.kill("a");
    let stored = cluster.stored();
    assert!(!stored.contains(&seen), "the store does not have it");
    cluster.wait_writing("b");
    assert!((1..=seen).all(|n| rows(&cluster.database("b")).contains(&n)), "what the replica had goes on");
    cluster.stop_primary("b");
    assert!((1..=seen).all(|n| cluster.stored().contains(&n)), "and is in the store");
    cluster.check_store();
}

#[test]
fn a_replica_that_somebody_wrote_to_is_brought_back() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start_with("b", &["--candidate=false"]);
    cluster.wait_role("b", "replica");
    cluster.wait_row("b", cluster.last_noted("a"));
    let foreign = Connection::open(cluster.database("b")).unwrap();
    foreign.busy_timeout(Duration::from_secs(20)).unwrap();
    foreign.execute("INSERT INTO t(n) VALUES (-1)", []).unwrap();
    drop(foreign);
    wait_for("the branch", || !cluster.branches("b").is_empty());
    let branch = cluster.branches("b").remove(0);
    assert!(rows(&cluster.folder.path(branch["path"].as_str().unwrap())).contains(&-1));
    cluster.wait_row("b", cluster.last_noted("a") + 1);
    assert!(!rows(&cluster.database("b")).contains(&-1));
    // It is no candidate.
    cluster.stop_primary("a");
    let waited = Instant::now();
    while waited.elapsed() < TTL + MARGIN {
        assert_ne!(cluster.node("b")["role"], "primary");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.wait_equal_to_store("b");
    cluster.stop_well("b");
}

#[test]
fn through_many_failovers_no_durable_row_is_lost_and_none_is_there_twice() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    // Something is stored from here on.
    cluster.wait_durable("a");
    let mut durable = HashSet::new();
    let (mut primary, mut other) = ("a", "b");
    let rounds = std::env::var("CLUSTER_TEST_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        cluster.wait_writing(primary);
        match round % 3 {
            0 => {
                cluster.kill(primary);
                durable.extend(cluster.stored());
                cluster.wait_writing(other);
                cluster.start(primary);
            }
            1 => {
                cluster.freeze(primary);
                durable.extend(cluster.stored());
                cluster.wait_writing(other);
                cluster.signal(primary, Signal::CONT);
            }
            _ => {
                cluster.stop_primary(primary);
                durable.extend(cluster.stored());
                cluster.wait_writing(other);
                cluster.start(primary);
            }
        }
        cluster.wait_role(primary, "replica");
        cluster.wait_row(primary, cluster.last_noted(other));
        let missing: Vec<_> = durable.difference(&rows(&cluster.database(other))).copied().collect();
        assert_eq!(missing, [0_i64; 0], "round {round}: durable rows are missing");
        std::mem::swap(&mut primary, &mut other);
    }
    cluster.stop_well(other);
    cluster.stop_primary(primary);
    assert!(durable.is_subset(&cluster.stored()));
    cluster.check_store();
}

/// An application of several processes: each writes, and notes that it has.
fn several(cluster: &mut Cluster, name: &'static str) {
    let notes = cluster.notes(name);
    let writes = format!("while :; do echo $(date +%s%3N) 1 >> {}; sleep 0.01; done", notes.display());
    // The first process only waits for its children, which are no shells that end with it.
    let exec = format!("sh -c \"({writes}) & ({writes}) & wait\"");
    cluster.start_with(name, &["--exec", &exec]);
}

/// The guard of a node's application.
fn guard_of(cluster: &Cluster, name: &str) -> rustix::process::Pid {
    let notes = cluster.notes(name).display().to_string();
    let is_guard = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words.get(1).is_some_and(|word| word == "guard") && words.iter().any(|word| word.contains(&notes))
    };
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    rustix::process::Pid::from_raw(all.into_iter().find(is_guard).expect("there is a guard")).unwrap()
}

fn wait_quiet(cluster: &Cluster, name: &str, what: &str) {
    let mut seen = (0, Instant::now());
    wait_for(what, || {
        let now = cluster.noted(name).len();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        seen.1.elapsed() > Duration::from_millis(500)
    });
}

/// Whoever ends the guard, all of the application ends, before another node runs its own.
#[test]
fn without_its_guard_no_process_of_the_application_writes() {
    let mut cluster = Cluster::new();
    several(&mut cluster, "a");
    wait_for("the application", || cluster.noted("a").len() > 10);
    cluster.start("b");
    cluster.wait_role("b", "replica");
    rustix::process::kill_process(guard_of(&cluster, "a"), Signal::KILL).unwrap();
    let outcome = cluster.running.remove("a").unwrap().wait();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("the guard of the application has ended"), "{outcome:?}");
    let last = cluster.noted("a").len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cluster.noted("a").len(), last, "something of it still writes");
    cluster.wait_writing("b");
    cluster.stop_primary("b");
}

/// Ctrl-Z at the terminal stops the node, and not the guard.
#[test]
fn who_stops_the_node_by_the_terminal_ends_the_application_in_time() {
    let mut cluster = Cluster::new();
    several(&mut cluster, "a");
    wait_for("the application", || cluster.noted("a").len() > 10);
    // The terminal stops every process of the group; the guard is in another, and ignores the signal.
    rustix::process::kill_process(guard_of(&cluster, "a"), Signal::TSTP).unwrap();
    cluster.signal("a", Signal::STOP);
    wait_quiet(&cluster, "a", "the application to end");
    cluster.signal("a", Signal::CONT);
    cluster.wait_role("a", "primary");
    let before = cluster.noted("a").len();
    wait_for("the application again", || cluster.noted("a").len() > before + 10);
    cluster.stop("a");
    let last = cluster.noted("a").len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cluster.noted("a").len(), last, "all of it ends with the node");
}
