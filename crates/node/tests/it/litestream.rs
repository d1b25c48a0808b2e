//! With the real Litestream, 0.5 and 0.3: it restores what we export, and we restore what it has written.
//!
//! The programs are looked for in the folder that `RHYOLITE_LITESTREAM` names, or in `target/litestream`, where
//! `crates/node/tests/litestream.sh` installs them. Without them the tests say so and pass, unless
//! `RHYOLITE_REQUIRE_LITESTREAM` is set.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;

use crate::program::{Folder, rows, wait_for};
use crate::servers;

/// A file of the installation, or `None` if it is not installed and need not be.
fn installed(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RHYOLITE_LITESTREAM").filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/litestream"));
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("{} is missing (crates/node/tests/litestream.sh installs it)", path.display());
    assert!(std::env::var_os("RHYOLITE_REQUIRE_LITESTREAM").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// Litestream 0.5.
pub(crate) fn current() -> Option<PathBuf> {
    installed("venv/bin/litestream")
}

/// Litestream 0.3.
pub(crate) fn old() -> Option<PathBuf> {
    installed("old/node_modules/@flydotio/litestream-linux-x64/litestream")
}

fn command(program: &Path, folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder.path("")).stdin(Stdio::null());
    command
}

/// Runs a foreign program to its end, which must be a good one; gives what it printed.
#[track_caller]
pub(crate) fn run(program: &Path, folder: &Folder, arguments: &[&str]) -> String {
    let output = command(program, folder, arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {} {}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A foreign daemon; killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(program: &Path, folder: &Folder, arguments: &[&str]) -> Self {
        let mut command = command(program, folder, arguments);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Asks it to stop, as a service manager does, and waits.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        wait_for("Litestream to stop", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn read(folder: &Folder, name: &str) -> Vec<u8> {
    std::fs::read(folder.path(name)).unwrap()
}

/// The URL of a folder for Litestream.
pub(crate) fn url(folder: &Folder, name: &str) -> String {
    format!("file://{}", folder.path(name).display())
}

/// A store of ours with commits 1 to `commits`, each of one row, and nothing running.
fn replicated(commits: i64) -> Folder {
    let folder = Folder::new();
    let db = folder.database("a.db");
    let daemon = folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0"]);
    folder.wait_durable("a.db", 1);
    for row in 1..=commits {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        folder.wait_durable("a.db", 1 + row as u64);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    folder
}

#[test]
fn litestream_restores_every_commit_of_an_export_and_goes_on_from_it() {
    let Some(litestream) = current() else { return };
    let folder = replicated(6);
    let exported = folder.run(&["export", "./backup", "./replica", "--json"]).json();
    let number = |value: &serde_json::Value| u64::from_str_radix(value.as_str().unwrap(), 16).unwrap();
    let (first, last) = (number(&exported["first_txid"]), number(&exported["txid"]));
    assert!(first < last, "{exported}");
    let url = url(&folder, "replica");
    for txid in first..=last {
        let txid = format!("{txid:016x}");
        let (theirs, ours) = (format!("theirs-{txid}.db"), format!("ours-{txid}.db"));
        run(&litestream, &folder, &["restore", "-txid", &txid, "-o", &theirs, &url]);
        assert_eq!(folder.run(&["restore", "./backup", "--txid", &txid, "-o", &ours]).code, 0);
        assert!(read(&folder, &theirs) == read(&folder, &ours), "TXID {txid}");
    }
    // By time too: the files have those of the commits, and Litestream's bound is exclusive.
    let log = folder.run(&["log", "./backup", "--json", "--limit", "1"]);
    let point: serde_json::Value = serde_json::from_str(log.stdout.trim()).unwrap();
    run(&litestream, &folder, &["restore", "-timestamp", point["time"].as_str().unwrap(), "-o", "then.db", &url]);
    assert!(read(&folder, "then.db") == read(&folder, &format!("ours-{:016x}.db", last - 1)));
    let log = folder.run(&["log", "./replica", "--json"]);
    let point: serde_json::Value = serde_json::from_str(log.stdout.lines().nth(1).unwrap()).unwrap();
    let time = point["time"].as_str().unwrap();
    assert_eq!(folder.run(&["restore", "./replica", "--at", time, "-o", "at.db"]).code, 0);
    let beside = folder.run(&["restore", "./backup", "--at", time, "-o", "beside.db"]);
    assert_eq!(beside.code, 0, "{beside:?}");
    assert!(read(&folder, "at.db") == read(&folder, "beside.db"));

    // Litestream goes on where the export ends.
    run(&litestream, &folder, &["restore", "-o", "b.db", &url]);
    Connection::open(folder.path("b.db")).unwrap().execute("INSERT INTO t VALUES (100)", []).unwrap();
    run(&litestream, &folder, &["replicate", "-once", "b.db", &url]);
    run(&litestream, &folder, &["restore", "-o", "c.db", &url]);
    assert_eq!(rows(&folder.path("c.db")), [1, 2, 3, 4, 5, 6, 100]);
    assert_eq!(folder.run(&["restore", "./replica", "-o", "d.db"]).code, 0);
    assert!(read(&folder, "c.db") == read(&folder, "d.db"));
}

#[test]
fn an_export_of_one_point_and_of_the_first_one_is_taken_too() {
    let Some(litestream) = current() else { return };
    let folder = replicated(3);
    for (txid, name) in [("1", "first"), ("3", "third")] {
        let exported = folder.run(&["export", "./backup", &format!("./{name}"), "--txid", txid, "--json"]).json();
        assert_eq!(exported["txid"], format!("{:016x}", txid.parse::<u64>().unwrap()));
        let (theirs, ours) = (format!("{name}-theirs.db"), format!("{name}-ours.db"));
        run(&litestream, &folder, &["restore", "-o", &theirs, &url(&folder, name)]);
        assert_eq!(folder.run(&["restore", "./backup", "--txid", txid, "-o", &ours]).code, 0);
        assert!(read(&folder, &theirs) == read(&folder, &ours), "{name}");
        // It goes on from there.
        let db = Connection::open(folder.path(&theirs)).unwrap();
        db.execute("INSERT INTO t VALUES (77)", []).unwrap();
        drop(db);
        run(&litestream, &folder, &["replicate", "-once", &theirs, &url(&folder, name)]);
        let after = format!("{name}-after.db");
        run(&litestream, &folder, &["restore", "-o", &after, &url(&folder, name)]);
        assert_eq!(rows(&folder.path(&after)).last(), Some(&77), "{name}");
    }
    // A place that is taken is not written to.
    for taken in ["./first", "./backup"] {
        let outcome = folder.run(&["export", "./backup", taken]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("holds a replica already"), "{outcome:?}");
    }
}

#[test]
fn litestreams_extension_reads_an_export() {
    let Some(extension) = installed("litestream-vfs.so") else { return };
    let folder = replicated(5);
    assert_eq!(folder.run(&["export", "./backup", "./replica"]).code, 0);
    let load = format!(".load {}", extension.display());
    let mut command = command(Path::new("sqlite3"), &folder, &["-cmd", &load, "-cmd"]);
    command.args([".open file:replica.db?vfs=litestream", ":memory:", "SELECT count(*), sum(a) FROM t"]);
    let output = command.env("LITESTREAM_REPLICA_URL", url(&folder, "replica")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.trim(), "5|15", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_replica_of_litestream_5_is_restored_as_litestream_does_it() {
    let Some(litestream) = current() else { return };
    let folder = Folder::new();
    let db = folder.database("a.db");
    folder.write("litestream.yml", format!("levels: [{{interval: 1s}}]\nsnapshot: {{interval: 2s}}\ndbs: [{{path: {}, monitor-interval: 50ms, checkpoint-interval: 500ms, min-checkpoint-page-count: 5, replica: {{path: {}, sync-interval: 100ms}}}}]\n",
        folder.path("a.db").display(), folder.path("replica").display()));
    let daemon = Daemon::start(&litestream, &folder, &["replicate", "-config", "litestream.yml"]);
    for row in 0..60 {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.stop();
    run(&litestream, &folder, &["restore", "-o", "theirs.db", &url(&folder, "replica")]);
    assert_eq!(rows(&folder.path("theirs.db")).len(), 60);
    let report = folder.run(&["restore", "./replica", "-o", "ours.db", "--json"]).json();
    assert!(read(&folder, "theirs.db") == read(&folder, "ours.db"), "{report}");
    let verified = folder.run(&["verify", "./replica", "--json"]).json();
    assert_eq!((&verified["ok"], &verified["integrity"]), (&true.into(), &"ok".into()), "{verified}");
    // Points in between, as both see them.
    let log = folder.run(&["log", "./replica", "--json"]);
    let points: Vec<&str> = log.stdout.lines().collect();
    for line in [points[points.len() / 3], points[points.len() / 2]] {
        let point: serde_json::Value = serde_json::from_str(line).unwrap();
        let txid = point["txid"].as_str().unwrap();
        let (theirs, ours) = (format!("theirs-{txid}.db"), format!("ours-{txid}.db"));
        run(&litestream, &folder, &["restore", "-txid", txid, "-o", &theirs, &url(&folder, "replica")]);
        assert_eq!(folder.run(&["restore", "./replica", "--txid", txid, "-o", &ours]).code, 0);
        assert!(read(&folder, &theirs) == read(&folder, &ours), "TXID {txid}");
    }
}

/// What moto, which looks at no signature, says of an object, in lower case.
fn head(port: u16, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let key = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00";
    let request =
        format!("HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {key}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    answer.to_lowercase()
}

#[test]
fn on_s3_litestream_finds_an_export_in_its_own_layout_and_with_its_times() {
    let (Some(litestream), Some(server)) = (current(), servers::moto()) else { return };
    servers::make_bucket(server.port, "bucket");
    let folder = replicated(4);
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    let theirs =
        format!("s3://bucket/replica?endpoint=http://127.0.0.1:{}&region=us-east-1&forcePathStyle=true", server.port);
    let ours = format!("s3://bucket/replica?endpoint=http://127.0.0.1:{}&region=us-east-1", server.port);
    let exported = folder.start_with(&["export", "./backup", &ours, "--json"], &keys).wait().json();
    let restore = |arguments: &[&str]| {
        // With a bundle of certificates Litestream does not start.
        let mut command = command(&litestream, &folder, arguments);
        let output = command.envs(keys).env_remove("AWS_CA_BUNDLE").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    restore(&["restore", "-o", "theirs.db", &theirs]);
    assert_eq!(folder.run(&["restore", "./backup", "-o", "ours.db"]).code, 0);
    assert!(read(&folder, "theirs.db") == read(&folder, "ours.db"), "{exported}");
    // The time of a commit goes with its object, where Litestream looks for it.
    let log = folder.run(&["log", "./backup", "--json", "--limit", "1"]);
    let last: serde_json::Value = serde_json::from_str(log.stdout.trim()).unwrap();
    let (txid, time) = (last["txid"].as_str().unwrap(), last["time"].as_str().unwrap());
    let answer = head(server.port, &format!("/bucket/replica/0000/{txid}-{txid}.ltx"));
    assert!(answer.contains(&format!("x-amz-meta-litestream-timestamp: {}", time.to_lowercase())), "{time}: {answer}");
    let ours = folder.start_with(&["verify", &ours, "--json"], &keys).wait().json();
    assert_eq!((&ours["ok"], &ours["txid"]), (&true.into(), &exported["txid"]), "{ours}");
}

/// A real 0.3 replica with several WALs and snapshots; gives a time in the middle, when there were `rows` rows.
fn old_replica(litestream: &Path, folder: &Folder) -> (rhyolite_format::Timestamp, usize) {
    let db = folder.database("a.db");
    folder.write("old.yml", format!("dbs: [{{path: {}, monitor-interval: 50ms, checkpoint-interval: 300ms, min-checkpoint-page-count: 5, replicas: [{{path: {}, sync-interval: 50ms, snapshot-interval: 2s}}]}}]\n",
        folder.path("a.db").display(), folder.path("replica").display()));
    let daemon = Daemon::start(litestream, folder, &["replicate", "-config", "old.yml"]);
    wait_for("a generation", || folder.path("replica/generations").exists());
    let mut middle = None;
    for row in 0..60 {
        db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS big(b); INSERT INTO big VALUES (randomblob(5000))").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        if row == 30 {
            std::thread::sleep(Duration::from_millis(600));
            middle = Some((rhyolite_node::time::now(), 31));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    daemon.stop();
    middle.unwrap()
}

#[test]
fn a_replica_of_litestream_3_is_restored_as_litestream_does_it() {
    let Some(litestream) = old() else { return };
    let folder = Folder::new();
    let (time, rows_then) = old_replica(&litestream, &folder);
    run(&litestream, &folder, &["restore", "-o", "theirs.db", &url(&folder, "replica")]);
    assert_eq!(rows(&folder.path("theirs.db")).len(), 60);
    let report = folder.run(&["restore", "./replica", "-o", "ours.db", "--json"]).json();
    assert_eq!((&report["source"], &report["proof"]), (&"litestream-0.3".into(), &"frame-checksums".into()));
    assert!(report["files"].as_u64().unwrap() >= 2 && report["txid"].is_null(), "{report}");
    assert!(read(&folder, "theirs.db") == read(&folder, "ours.db"), "{report}");

    let at = rhyolite_node::time::format_utc(time);
    assert_eq!(folder.run(&["restore", "./replica", "--at", &at, "-o", "then.db"]).code, 0);
    assert_eq!(rows(&folder.path("then.db")).len(), rows_then);
    let outcome = folder.run(&["restore", "./replica", "--txid", "3", "-o", "x.db"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("choose a time with --at"), "{outcome:?}");

    let verified = folder.run(&["verify", "./replica", "--json"]).json();
    assert_eq!((&verified["ok"], &verified["integrity"]), (&true.into(), &"ok".into()), "{verified}");
    let log = folder.run(&["log", "./replica", "--json"]);
    assert_eq!(verified["points"], log.stdout.lines().count());
    assert!(log.stdout.lines().last().unwrap().contains("\"wal_index\""), "{log:?}");

    damage_is_found(&folder);

    // Litestream 0.5 has gone on in the same place: only the user knows which is meant.
    crate::foreign::replica_folder(&folder, "replica", rhyolite_format::litestream::Layout::Decimal);
    let outcome = folder.run(&["restore", "./replica", "-o", "x.db"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--litestream VERSION chooses one"), "{outcome:?}");
    for version in ["0.3", "0.5"] {
        let name = format!("{version}.db");
        let outcome = folder.run(&["restore", "./replica", "-o", &name, "--litestream", version, "--json"]).json();
        assert_eq!(outcome["source"], format!("litestream-{version}"));
    }
    assert!(read(&folder, "0.3.db") == read(&folder, "ours.db"));
}

/// Flips, cuts and removes what is there; each must be found by `verify`, and none may be restored.
fn damage_is_found(folder: &Folder) {
    let wals: Vec<PathBuf> =
        folder.content().into_keys().filter(|p| p.to_string_lossy().ends_with(".wal.lz4")).collect();
    let log = folder.run(&["log", "./replica", "--json"]);
    let last: serde_json::Value = serde_json::from_str(log.stdout.lines().last().unwrap()).unwrap();
    let name =
        format!("{:08x}_{:08x}.wal.lz4", last["wal_index"].as_u64().unwrap(), last["wal_offset"].as_u64().unwrap());
    let last = wals.iter().find(|p| p.ends_with(&name)).unwrap_or_else(|| panic!("{name} in {wals:?}"));
    let good = std::fs::read(last).unwrap();
    let modified = std::fs::metadata(last).unwrap().modified().unwrap();
    let put = |bytes: &[u8]| {
        std::fs::write(last, bytes).unwrap();
        std::fs::File::options().append(true).open(last).unwrap().set_modified(modified).unwrap();
    };
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() - 9], b""] {
        put(bad);
        let outcome = folder.run(&["restore", "./replica", "-o", "x.db"]);
        assert_eq!(outcome.code, 3, "{outcome:?}");
        assert!(!folder.path("x.db").exists());
        let outcome = folder.run(&["verify", "./replica"]);
        assert_eq!(outcome.code, 3, "{outcome:?}");
        assert!(outcome.stdout.contains(&name), "{outcome:?}");
    }
    put(&good);
    assert_eq!(folder.run(&["verify", "./replica"]).code, 0);
}
