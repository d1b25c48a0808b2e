//! Many databases: folders that are searched and watched, starts that ask nothing, the control socket, and restores of all of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Epoch, Format1, Nonce, Timestamp};
use rhyolite_logic::park::Policy;
use rhyolite_node::config::{DatabaseConfig, file};
use rhyolite_node::replicate::ReplicateError;
use rhyolite_node::status::{DatabaseStatus, State, StatusBoard};
use rhyolite_node::supervise::control::Command;
use rhyolite_node::supervise::reload::Reloaded;
use rhyolite_node::supervise::{self, SuperviseOptions};
use rusqlite::Connection;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use crate::program::{Folder, rows, wait_for};

/// A replication of what a configuration says, in this process.
pub(crate) struct Running {
    board: Arc<StatusBoard>,
    stop: watch::Sender<bool>,
    commands: mpsc::Sender<Command>,
    thread: std::thread::JoinHandle<Vec<ReplicateError>>,
}

impl Running {
    /// Parks whatever is idle at once.
    pub(crate) fn start(config: &str) -> Self {
        let grain = Duration::from_millis(40);
        let parking = Policy { grain, after: Duration::ZERO, after_min: Duration::ZERO, ..Policy::default() };
        Self::start_with(config, parking)
    }

    pub(crate) fn start_with(config: &str, parking: Policy) -> Self {
        let config = file::parse(config).unwrap();
        let options = SuperviseOptions {
            databases: config.databases,
            folders: config.folders,
            stop_timeout: Duration::from_secs(20),
            parking,
            commits: None,
            serves: false,
            lease: None,
        };
        let board = StatusBoard::new();
        let shown = Arc::clone(&board);
        let (stop, stopped) = watch::channel(false);
        let (commands, commanded) = mpsc::channel(4);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(supervise::run(options, shown, stopped, Some(commanded)))
        });
        Self { board, stop, commands, thread }
    }

    /// Gives another configuration, and what that changed.
    pub(crate) fn reload(&self, config: &str) -> Reloaded {
        let config = file::parse(config).unwrap();
        let (reply, answer) = oneshot::channel();
        let wanted = Box::new((config.databases, config.folders));
        self.commands.blocking_send(Command::Reload(wanted, reply)).unwrap();
        answer.blocking_recv().unwrap()
    }

    pub(crate) fn add(&self, config: DatabaseConfig) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.commands.blocking_send(Command::Add(Box::new(config), reply)).unwrap();
        answer.blocking_recv().unwrap()
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.commands.blocking_send(Command::Remove(path.to_owned(), reply)).unwrap();
        answer.blocking_recv().unwrap()
    }

    /// Folders of which it does not know what they hold.
    pub(crate) fn unsearched(&self) -> usize {
        self.board.unsearched()
    }

    /// How many databases it answers for.
    pub(crate) fn count(&self) -> usize {
        self.board.databases().len()
    }

    pub(crate) fn find(&self, path: &Path) -> Option<Arc<DatabaseStatus>> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.board.databases().into_iter().find(|d| *d.path == *path)
    }

    pub(crate) fn wait_parked(&self, count: usize) {
        wait_for(&format!("{count} parked databases"), || {
            let databases = self.board.databases();
            databases.iter().filter(|d| d.look(|f| f.parked)).count() == count
        });
    }

    pub(crate) fn stop(self) -> Vec<ReplicateError> {
        self.stop.send(true).unwrap();
        self.thread.join().unwrap()
    }
}

pub(crate) fn make(path: &Path, value: i64) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a)").unwrap();
    db.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
}

pub(crate) fn config(folder: &Folder, keys: &str) -> String {
    let (dir, store) = (folder.path("data"), folder.path("backup"));
    format!(
        "sync-interval: 0\ndbs:\n  - dir: {}\n    pattern: \"*.db\"\n{keys}    replica: {{url: {}}}\n",
        dir.display(),
        store.display()
    )
}

#[test]
fn databases_of_a_watched_folder_come_and_go() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    make(&dir.join("a.db"), 1);
    make(&dir.join("sub/b.db"), 2);
    make(&dir.join("left-out.db"), 3);
    make(&dir.join("other.sqlite"), 4);
    std::fs::write(dir.join("sick.db"), "this is no database, whatever its name says").unwrap();
    let keys = "    recursive: true\n    watch: true\n    exclude: [\"left-*\"]\n";
    let running = Running::start(&config(&folder, keys));
    running.wait_parked(2);
    make(&dir.join("sub/c.db"), 5);
    running.wait_parked(3);
    std::fs::create_dir_all(dir.join("new/deep")).unwrap();
    make(&dir.join("new/deep/d.db"), 6);
    running.wait_parked(4);
    make(&dir.join("a.db"), 7);
    wait_for("the second commit of a.db", || {
        let status = running.find(&dir.join("a.db")).expect("it is there");
        status.look(|f| f.parked && f.durable.is_some_and(|pos| pos.txid.get() >= 2))
    });
    std::fs::remove_file(dir.join("sub/b.db")).unwrap();
    wait_for("b.db to be let go", || running.board.databases().len() == 3);
    assert!(running.stop().is_empty());

    let (store, out) = (folder.path("backup"), folder.path("out"));
    let (store, out) = (store.to_str().unwrap(), out.to_str().unwrap());
    let restored = folder.run(&["restore", store, "-o", out, "--all", "--json"]).json();
    assert_eq!((&restored["restored"], &restored["failed"]), (&4.into(), &0.into()), "{restored}");
    // One time for all: each has had its last commit before it.
    let at = ["--all", "--json", "--at", "0s ago"];
    let later = folder.run(&[&["restore", store, "-o", "later"], &at[..]].concat()).json();
    assert_eq!((&later["restored"], &later["failed"]), (&4.into(), &0.into()), "{later}");
    for (name, expected) in
        [("a.db", vec![1, 7]), ("sub/b.db", vec![2]), ("sub/c.db", vec![5]), ("new/deep/d.db", vec![6])]
    {
        assert_eq!(rows(&Path::new(out).join(name)), expected, "{name}");
    }
    assert!(!Path::new(out).join("left-out.db").exists());
    let again = folder.run(&["restore", store, "-o", out, "--all"]);
    assert!(again.code == 1 && again.stderr.contains("4 of 4 databases were not restored"), "{again:?}");
    let skipped = folder.run(&["restore", store, "-o", out, "--all", "--if-missing", "--json"]).json();
    assert_eq!(skipped["skipped"], 4);
    std::fs::write(Path::new(store).join("sub/c.db/manifest.json"), "{}").unwrap();
    let damaged = folder.run(&["restore", store, "-o", out, "--all", "--force"]);
    assert_eq!(damaged.code, 3, "{damaged:?}");
    assert!(damaged.stdout.contains("3 restored, 0 left as they were, 1 failed"), "{damaged:?}");
}

#[test]
fn a_start_with_many_unchanged_databases_opens_one_and_takes_the_lease() {
    const COUNT: usize = 70;
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    for i in 0..COUNT {
        make(&dir.join(format!("{i}.db")), i as i64);
    }
    let config = config(&folder, "");
    let running = Running::start(&config);
    running.wait_parked(COUNT);
    assert!(running.stop().is_empty());

    let lease = || LeaseRecord::decode(&std::fs::read(folder.path("backup/lease.json")).unwrap()).unwrap();
    let asked = |running: &Running| {
        let databases = running.board.databases();
        let parkings = databases.iter().filter(|d| d.look(|f| f.parkings > 0)).count();
        (databases.iter().filter(|d| d.requests.snapshot().total() > 0).count(), parkings)
    };
    assert_eq!(lease().state, LeaseState::Released);
    let running = Running::start(&config);
    running.wait_parked(COUNT);
    wait_for("the lease", || lease().state == LeaseState::Held && asked(&running) == (1, 1));
    assert!(running.board.databases().iter().all(|d| d.look(|f| f.durable.is_some())));
    assert!(running.stop().is_empty());
    assert_eq!(lease().state, LeaseState::Released);

    // One was written while nobody looked, one's state folder does not say anything, one has another store behind it.
    make(&dir.join("7.db"), 700);
    std::fs::remove_file(dir.join(".8.db-rhyolite/parked")).unwrap();
    std::fs::remove_dir_all(folder.path("backup/9.db")).unwrap();
    let running = Running::start(&config);
    running.wait_parked(COUNT);
    wait_for("the lease", || lease().state == LeaseState::Held && asked(&running).1 == 3);
    let nine = dir.join("9.db");
    make(&nine, 900);
    wait_for("9.db to be in the store again", || {
        folder.path("backup/9.db/manifest.json").exists()
            && running.find(&nine).expect("it is there").look(|f| f.parked)
    });
    assert!(running.stop().is_empty());
    let (store, out) = (folder.path("backup"), folder.path("out"));
    let restored =
        folder.run(&["restore", store.to_str().unwrap(), "-o", out.to_str().unwrap(), "--all", "--json"]).json();
    assert_eq!(restored["restored"], COUNT);
    assert_eq!((rows(&out.join("7.db")), rows(&out.join("9.db"))), (vec![7, 700], vec![9, 900]));
}

#[test]
fn a_process_keeps_the_one_lease_of_a_folder_while_all_its_databases_are_parked() {
    let folder = Folder::new();
    let data = folder.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let names = ["a.db", "b.db", "c.db"];
    names.iter().for_each(|name| make(&data.join(name), 1));
    // Each has state folders of its own, as on another machine.
    let start = |name: &str, if_held: &str| {
        let keys = format!("    meta-dir: {name}\n    lease: {{ttl: 1h, if-held: {if_held}}}\n");
        let socket = format!("socket: {{enabled: true, path: {name}.sock}}\n");
        folder.write(&format!("{name}.yml"), socket + &config(&folder, &keys));
        folder.start(&["replicate", "--config", &format!("{name}.yml"), "--park-eagerly"])
    };
    let total = |name: &str, of: &str| {
        let info = folder.run(&["ctl", "info", "--socket", &format!("{name}.sock"), "--json"]);
        let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap_or_default();
        info["totals"].pointer(of).and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    let lease = || LeaseRecord::decode(&std::fs::read(folder.path("backup/lease.json")).unwrap()).unwrap();
    let first = start("one", "wait");
    wait_for("the first to park all", || total("one", "/parked") == 3);
    let held = lease();
    let second = start("two", "wait");
    wait_for("the second to wait", || total("two", "/states/waiting") == 3);
    let third = start("three", "exit").wait();
    assert_eq!(third.code, 1, "{third:?}");
    assert!(third.stderr.contains("holds the lease of") && third.stderr.contains("if-held"), "{third:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((lease().epoch, lease().holder), (held.epoch, held.holder), "nothing was given up");
    make(&data.join("a.db"), 2);
    wait_for("the first to capture and to park again", || {
        folder.path("backup/a.db/log").read_dir().is_ok_and(|log| log.count() > 0) && total("one", "/parked") == 3
    });
    assert_eq!((lease().epoch, total("two", "/states/waiting")), (held.epoch, 3));
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
    wait_for("the second to take over at once", || total("two", "/parked") == 3);
    make(&data.join("b.db"), 2);
    wait_for("the second to capture", || total("two", "/parked") == 3 && total("two", "/behind") == 0);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, 0);
    assert_eq!(lease().state, LeaseState::Released);
    assert!(names.iter().all(|name| !folder.path(&format!("backup/{name}/lease.json")).exists()));
    let restored = folder.run(&["restore", "./backup", "-o", "out", "--all", "--json"]).json();
    assert_eq!(restored["restored"], 3);
    let expected = [vec![1, 2], vec![1, 2], vec![1]];
    assert!(names.iter().zip(expected).all(|(name, expected)| rows(&folder.path("out").join(name)) == expected));
}

#[test]
fn databases_that_wait_for_their_lease_keep_no_other_from_being_opened() {
    let folder = Folder::new();
    let foreign = folder.path("foreign");
    std::fs::create_dir_all(&foreign).unwrap();
    // More than are opened at a time, under a lease that is another's for an hour.
    (0..40).for_each(|i| make(&foreign.join(format!("{i}.db")), i));
    make(&folder.path("own.db"), 1);
    std::fs::create_dir_all(folder.path("theirs")).unwrap();
    let theirs = LeaseRecord {
        format: Format1,
        epoch: Epoch::FIRST,
        state: LeaseState::Held,
        quiet: false,
        successor: None,
        holder: "another".to_owned(),
        address: None,
        process: None,
        nonce: Nonce([7; 16]),
        ttl_ms: 3_600_000,
        renewed: Timestamp(0),
        durable: None,
        witnesses: None,
    };
    folder.write("theirs/lease.json", theirs.encode());
    let (theirs, ours) = (folder.path("theirs"), folder.path("ours"));
    let running = Running::start(&format!(
        "dbs:\n  - {{dir: {}, pattern: \"*.db\", replica: {{url: {}}}}}\n",
        foreign.display(),
        theirs.display()
    ));
    wait_for("all to wait", || running.board.databases().iter().filter(|d| d.look(|f| f.standby)).count() == 40);
    assert!(running.stop().is_empty());
    let running = Running::start(&format!(
        "dbs:\n  - {{dir: {}, pattern: \"*.db\", replica: {{url: {}}}}}\n  - {{dir: {}, pattern: own.db, replica: {{url: {}}}}}\n",
        foreign.display(),
        theirs.display(),
        folder.path("").display(),
        ours.display()
    ));
    running.wait_parked(1);
    assert!(running.stop().is_empty());
}

#[test]
fn a_parked_database_is_drilled_and_stays_parked() {
    let folder = Folder::new();
    let db = folder.path("a.db");
    make(&db, 1);
    let config = |interval: &str| {
        let store = folder.path("backup");
        format!(
            "drill: {{interval: {interval}}}\ndbs:\n  - {{path: {}, replica: {{url: {}}}}}\n",
            db.display(),
            store.display()
        )
    };
    let running = Running::start(&config("1s"));
    running.wait_parked(1);
    let status = running.find(&db).expect("it is there");
    wait_for("a drill", || status.look(|f| f.drill.proved.as_ref().is_some_and(|proof| Some(proof.pos) == f.durable)));
    let (runs, parkings) = status.look(|f| (f.drill.runs, f.parkings));
    // Nothing changes, so the next one comes after seven intervals, and finds what has become of the store meanwhile.
    let snapshot = std::fs::read_dir(folder.path("backup/ltx/9")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    bytes[126] ^= 0xff;
    std::fs::write(&snapshot, bytes).unwrap();
    wait_for("the damage", || status.look(|f| f.drill.is_damage && f.drill.runs > runs));
    assert!(status.look(|f| f.parked && f.parkings == parkings));
    assert!(running.stop().is_empty());
}

#[test]
fn one_sick_database_stops_no_other_and_is_taken_up_when_it_is_well() {
    let folder = Folder::new();
    let good = folder.path("good.db");
    make(&good, 1);
    folder.write("sick.db", "no database");
    let (sick, store) = (folder.path("sick.db"), folder.path("backup"));
    let running = Running::start(&format!(
        "dbs:\n  - {{path: {}, replica: {{url: {}/good}}}}\n  - {{path: {}, replica: {{url: {}/sick}}}}\n",
        good.display(),
        store.display(),
        sick.display(),
        store.display()
    ));
    wait_for("the error", || running.find(&sick).is_some_and(|d| d.look(|f| matches!(f.state, State::Error { .. }))));
    running.wait_parked(1);
    std::fs::remove_file(&sick).unwrap();
    make(&sick, 2);
    running.wait_parked(2);
    running.stop();
}

#[test]
fn the_control_socket_lists_adds_syncs_waits_removes_and_reloads() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    let other = folder.database("b.db");
    let dbs = |names: &[&str]| {
        let entries =
            names.iter().map(|n| format!("  - {{path: {n}, replica: {{url: ./backup-{n}, sync-interval: 1h}}}}\n"));
        format!(
            "socket: {{enabled: true, path: ctl.sock, permissions: \"0600\"}}\ndbs:\n{}",
            entries.collect::<String>()
        )
    };
    folder.write("rhyolite.yml", dbs(&["a.db"]));
    let daemon = folder.start(&["replicate", "--config", "rhyolite.yml"]);
    let socket = ["--socket", "ctl.sock", "--json"];
    let ctl = |words: &[&str]| folder.run(&[words, &socket[..]].concat());
    wait_for("the socket", || ctl(&["ctl", "list"]).code == 0);
    let early = std::fs::metadata(folder.path("ctl.sock")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&early.permissions()) & 0o777, 0o600);

    wait_for("the snapshot", || !ctl(&["ctl", "list"]).json()["databases"][0]["durable_txid"].is_null());
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let synced = ctl(&["sync", "a.db", "--wait"]).json();
    assert!(synced["durable"] == true && synced["txid"] == "0000000000000002", "{synced}");
    let late = ctl(&["wait", "a.db", "--txid", "99", "--timeout", "50ms"]);
    assert!(late.code == 6 && late.stderr.contains("is not durable so far"), "{late:?}");

    assert_eq!(ctl(&["ctl", "add", "b.db", "./backup-b.db"]).code, 0);
    let twice = ctl(&["ctl", "add", "b.db", "./elsewhere"]);
    assert!(twice.code == 1 && twice.stderr.contains("is replicated already"), "{twice:?}");
    other.execute("INSERT INTO t VALUES (2)", []).unwrap();
    assert_eq!(ctl(&["wait", "b.db"]).json()["durable"], true);
    assert_eq!(ctl(&["ctl", "info"]).json()["totals"]["databases"], 2);
    assert_eq!(ctl(&["ctl", "remove", "b.db"]).code, 0);
    wait_for("b.db to go", || ctl(&["ctl", "list"]).json()["databases"].as_array().unwrap().len() == 1);
    assert_eq!(ctl(&["sync", "b.db"]).code, 1);

    // The configuration never knew of one that was added, and takes it not away.
    assert_eq!(ctl(&["ctl", "add", "b.db", "./backup-b.db"]).code, 0);
    assert_eq!(ctl(&["ctl", "reload"]).json()["removed"], 0);
    assert_eq!(ctl(&["ctl", "info"]).json()["totals"]["databases"], 2);
    assert_eq!(ctl(&["ctl", "remove", "b.db"]).code, 0);
    wait_for("b.db to go again", || ctl(&["ctl", "list"]).json()["databases"].as_array().unwrap().len() == 1);

    folder.write("rhyolite.yml", dbs(&["a.db", "b.db"]));
    daemon.signal(Signal::HUP);
    wait_for("the reload", || ctl(&["ctl", "list"]).json()["databases"].as_array().unwrap().len() == 2);
    folder.write("rhyolite.yml", "dbs: [{path: a.db, replcia: x}]");
    let broken = ctl(&["ctl", "reload"]);
    assert!(broken.code == 1 && broken.stderr.contains("did you mean `replica`?"), "{broken:?}");
    assert_eq!(ctl(&["ctl", "list"]).json()["databases"].as_array().unwrap().len(), 2);
    folder.write("rhyolite.yml", dbs(&["b.db"]));
    assert_eq!(ctl(&["ctl", "reload"]).json()["removed"], 1);

    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!folder.path("ctl.sock").exists());
    let began = Instant::now();
    assert_eq!(ctl(&["ctl", "list"]).code, 1);
    assert!(began.elapsed() < Duration::from_secs(20));
}
