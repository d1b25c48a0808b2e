//! Every command in the README is run as it stands there, or is at least known: a command that this test does not know fails it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rusqlite::Connection;

const BINARY: &str = env!("CARGO_BIN_EXE_rhyolite");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The lines of all `sh` blocks, in order.
fn commands(readme: &str) -> Vec<String> {
    let blocks = readme.split("```sh\n").skip(1);
    blocks.flat_map(|block| block.split("```").next().unwrap().lines().map(str::to_owned)).collect()
}

/// Runs `line` in a shell that finds our binary first.
fn shell(line: &str, folder: &Path) -> Child {
    let programs = Path::new(BINARY).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec {line}")).current_dir(folder).env("PATH", path).spawn().unwrap()
}

/// Replication until the backup can be restored, then SIGTERM.
fn replicate(line: &str, folder: &Path) {
    let mut replicator = shell(line, folder);
    let deadline = Instant::now() + Duration::from_secs(30);
    let conn = Connection::open(folder.join("app.db")).unwrap();
    let mut rows = 0;
    while !folder.join("backup/log").exists() || rows < 3 {
        assert!(Instant::now() < deadline, "{line}: no backup after 30 s");
        assert_eq!(replicator.try_wait().unwrap(), None, "{line} ended");
        conn.execute("INSERT INTO notes(text) VALUES ('written while replicated')", []).unwrap();
        rows += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(conn);
    let id = rustix::process::Pid::from_child(&replicator);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(replicator.wait().unwrap().success(), "{line} after SIGTERM");
}

/// A follower of what `replicator` serves, until the replica has every row, then SIGTERM for both.
fn follow(replicator: &str, line: &str, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut node = shell(replicator, folder);
    let mut follower = shell(line, folder);
    let rows = |name: &str| -> Option<i64> {
        let conn = Connection::open_with_flags(folder.join(name), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        conn.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).ok()
    };
    while rows("replica.db").is_none_or(|found| Some(found) != rows("app.db")) {
        assert!(Instant::now() < deadline, "{line}: no replica after 30 s");
        assert_eq!(follower.try_wait().unwrap(), None, "{line} ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (child, line) in [(&mut follower, line), (&mut node, replicator)] {
        let id = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{line} after SIGTERM");
    }
}

/// Two nodes: what is written on the first is on the second, which takes over when the first is killed, and is written to.
fn cluster(first: &str, second: &str, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(Instant::now() < deadline, "{second}: {what}: not after 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let mut primary = shell(first, folder);
    wait("a primary", &|| folder.join("cluster/lease.json").exists());
    let conn = Connection::open(folder.join("a/app.db")).unwrap();
    conn.execute_batch("CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT); INSERT INTO notes VALUES (1, 'on a')")
        .unwrap();
    wait("a backup", &|| folder.join("cluster/app.db/manifest.json").exists());
    let mut replica = shell(second, folder);
    let rows = |name: &str| -> Option<i64> {
        let conn = Connection::open_with_flags(folder.join(name), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        conn.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).ok()
    };
    wait("a replica", &|| rows("b/app.db") == Some(1));
    assert!(folder.join("b/.primary").exists());
    drop(conn);
    primary.kill().unwrap();
    primary.wait().unwrap();
    wait("another primary", &|| !folder.join("b/.primary").exists() && !folder.join("b/app.db-pos").exists());
    let conn = Connection::open(folder.join("b/app.db")).unwrap();
    conn.execute("INSERT INTO notes VALUES (2, 'on b')", []).unwrap();
    drop(conn);
    let mut former = shell(first, folder);
    wait("the former primary to follow", &|| rows("a/app.db") == Some(2));
    for (child, line) in [(&mut former, first), (&mut replica, second)] {
        let id = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{line} after SIGTERM");
    }
}

#[cfg(not(target_os = "linux"))]
fn mount(_: &str, _: &Path) -> bool {
    false
}

/// Mounts, writes to a database in rollback mode there, and ends. `false` where mounting is not possible.
#[cfg(target_os = "linux")]
fn mount(line: &str, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    if crate::mount::Mount::new().is_none() {
        return false;
    }
    let mut daemon = shell(line, folder);
    let deadline = Instant::now() + Duration::from_secs(30);
    let device = |name: &str| fs::metadata(folder.join(name)).unwrap().dev();
    while device("db") == device("data") {
        assert!(Instant::now() < deadline && daemon.try_wait().unwrap().is_none(), "{line}: nothing is mounted");
        std::thread::sleep(Duration::from_millis(50));
    }
    let conn = Connection::open(folder.join("db/app.db")).unwrap();
    conn.execute_batch(
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT); INSERT INTO notes VALUES (1, 'on the mount')",
    )
    .unwrap();
    while !folder.join("mounted/app.db/manifest.json").exists() {
        assert!(Instant::now() < deadline, "{line}: no backup after 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(conn);
    let id = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success(), "{line} after SIGTERM");
    true
}

#[test]
fn every_command_in_the_readme_works() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let conn = Connection::open(folder.join("app.db")).unwrap();
    conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    conn.execute_batch("CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    drop(conn);
    let commands = commands(&fs::read_to_string(root().join("README.md")).unwrap());
    assert!(commands.len() > 8, "the README has lost its commands: {commands:?}");
    let mut has_mount = false;
    let ports = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [first, second] = ports.map(|listener| listener.local_addr().unwrap().port());
    let (mut serving, mut node) = (None, None);
    for line in commands {
        let line = line.replace(":20201", &format!(":{first}")).replace(":20202", &format!(":{second}"));
        println!("{line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // These run this test, or take minutes: that they exist is enough here, and `cargo xtask ci` runs them.
            ["cargo", "xtask", name, ..] => {
                let known = fs::read_to_string(root().join("xtask/src/lib.rs")).unwrap();
                assert!(known.contains(&format!("\"{name}\" =>")), "{line}");
            }
            // Takes an hour; the tests of that crate run some of its seeds.
            ["cargo", "run", "--release", "-p", "rhyolite-sim", "--", ..] => {
                assert!(root().join("crates/sim/src/main.rs").exists(), "{line}");
            }
            ["cargo", "build", "--release", "--package", name] => assert_eq!(name, env!("CARGO_PKG_NAME")),
            // Run together with its follower.
            ["rhyolite", "replicate", .., "--cluster-listen", _] => serving = Some(line),
            ["rhyolite", "replicate", ..] => replicate(&line, folder),
            ["rhyolite", "follow", ..] => follow(&serving.take().expect("somebody serves"), &line, folder),
            // Run together.
            ["rhyolite", "node", ..] => match node.take() {
                None => node = Some(line),
                Some(first) => cluster(&first, &line, folder),
            },
            ["mkdir", ..] => assert!(shell(&line, folder).wait().unwrap().success(), "{line}"),
            ["rhyolite", "mount", ..] => has_mount = mount(&line, folder),
            ["rhyolite", _, store, ..] if store.starts_with("./mounted") && !has_mount => {
                println!("not run, for want of FUSE")
            }
            ["rhyolite", ..] => assert!(shell(&line, folder).wait().unwrap().success(), "{line}"),
            _ => panic!("nobody checks {line:?}"),
        }
    }
    let rows = |name: &str| -> i64 {
        let conn = Connection::open(folder.join(name)).unwrap();
        conn.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows("copy.db"), rows("app.db"));
    assert!(!has_mount || rows("restored/app.db") == 1);
}
