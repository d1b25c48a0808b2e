//! The directory backend between processes, one of which is killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_store::{Directory, Store, StoreErrorKind as Kind};

const FOLDER: &str = "RHYOLITE_TEST_FOLDER";

/// Runs in a child process: adds one to a counter for ever, creates an object per addition, and prints what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test below"]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Directory::new(folder);
    let me = std::process::id();
    for i in 0.. {
        loop {
            let object = store.get("counter").await.unwrap();
            let text = std::str::from_utf8(&object.bytes).unwrap();
            let value: u64 = text.split(' ').next().unwrap().parse().unwrap();
            match store.swap_if("counter", Some(&object.version), Bytes::from(format!("{} {me}", value + 1))).await {
                Ok(_) => break,
                Err(e) => assert_eq!(e.kind, Kind::Conflict, "{e}"),
            }
        }
        println!("added");
        store.create(&format!("log/{me}-{i}"), Bytes::from(vec![b'x'; 10_000])).await.unwrap();
        println!("created log/{me}-{i}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_lose_nothing_and_leave_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Directory::new(dir.path()));
    store.create("counter", Bytes::from_static(b"0 start")).await.unwrap();
    let mut added = 0;
    let mut created = Vec::new();
    const PROCESSES: u64 = 3;
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "processes::child", "--ignored", "--nocapture"]).env(FOLDER, dir.path());
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for child in &mut children {
        child.kill().unwrap();
    }
    for mut child in children {
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            added += u64::from(line == "added");
            created.extend(line.strip_prefix("created ").map(str::to_owned));
        }
        child.wait().unwrap();
    }
    let counter = store.get("counter").await.unwrap().bytes;
    let value: u64 = std::str::from_utf8(&counter).unwrap().split(' ').next().unwrap().parse().unwrap();
    // A process that was killed may have added once more than it could say.
    assert!(added > 0 && (added..=added + PROCESSES).contains(&value), "{added} additions said, {value} counted");
    let listed = store.list_all("log").await.unwrap();
    assert!(listed.iter().all(|e| e.size == 10_000), "half an object can be seen");
    for key in created {
        assert!(listed.iter().any(|e| e.key == key), "{key} was acknowledged and is gone");
    }
    // The killed ones hold no lock.
    let version = store.head("counter").await.unwrap().version;
    store.swap_if("counter", Some(&version), Bytes::from_static(b"end")).await.unwrap();
}
