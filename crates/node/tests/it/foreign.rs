//! Replicas that Litestream 0.5 has written, from the test vectors: restored, listed, verified; and what must be refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::litestream::Layout;
use rhyolite_format::ltx::LtxName;
use rhyolite_logic::Target;
use rhyolite_node::foreign::{self, Proof};
use rhyolite_node::progress::Silent;
use rhyolite_node::restore::{Existing, Output, RestoreOptions};
use rhyolite_store::{Memory, Store};
use sha2::{Digest, Sha256};

use crate::program::Folder;

#[path = "../../../format/tests/it/vectors.rs"]
pub(crate) mod vectors;

/// Level and name of a file of the vectors.
fn place(path: &str) -> (u8, LtxName) {
    let parts: Vec<&str> = path.rsplit('/').collect();
    let name: LtxName = parts[0].parse().unwrap();
    let level = if parts.get(2) == Some(&"ltx") { parts[1].parse().unwrap() } else { 0 };
    (level, name)
}

/// A replica with these files of the vectors.
async fn replica(files: &[&str], layout: Layout) -> Arc<dyn Store> {
    let store = Memory::new();
    for path in files {
        let (level, name) = place(path);
        store.create(&layout.key(level, name), Bytes::from_static(vectors::file(path))).await.unwrap();
    }
    Arc::new(store)
}

async fn restored(store: &Arc<dyn Store>, target: Target, output: &Path) -> (foreign::ReplicaReport, Vec<u8>) {
    let replica = foreign::find(store, None).await.unwrap().expect("a replica");
    let options = RestoreOptions {
        store: Arc::clone(store),
        output: Output::File(output.to_owned()),
        target,
        existing: Existing::Replace,
        threads: 2,
        spool: None,
        progress: Arc::new(Silent),
    };
    let report = foreign::restore(&replica, options).await.unwrap();
    (report, std::fs::read(output).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_of_the_vectors_restores_to_what_litestream_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.db");
    let (mut checked, mut with_frames) = (0, 0);
    for restore in vectors::list("restores") {
        let files: Vec<&str> = restore["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
        // The current format, with LZ4 blocks and with LZ4 frames. Older ones never were in a released 0.5 replica.
        let current = ["litestream/", "vfs/", "chain/", "old/f3-frame/"];
        if files.is_empty() || !files.iter().all(|f| current.iter().any(|c| f.starts_with(c))) {
            continue;
        }
        let layout = if checked % 2 == 0 { Layout::Decimal } else { Layout::Hex };
        let store = replica(&files, layout).await;
        let (report, bytes) = restored(&store, Target::Latest, &output).await;
        assert_eq!(bytes.len() as u64, vectors::number(&restore["size"]), "{}", restore["name"]);
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, restore["sha256"].as_str().unwrap(), "{}", restore["name"]);
        let is_checksummed = files[0].starts_with("chain/") || files[0].starts_with("old/");
        assert_eq!(report.proof, if is_checksummed { Proof::Database } else { Proof::Files }, "{}", restore["name"]);
        checked += 1;
        with_frames += usize::from(files[0].starts_with("old/f3-frame/"));
    }
    assert!(checked > 80 && with_frames > 5, "{checked} restores, {with_frames} of them with LZ4 frames");
}

/// The whole replica of pages of 4,096 bytes in a folder: levels 0 to 3 and 9.
pub(crate) fn replica_folder(folder: &Folder, name: &str, layout: Layout) -> PathBuf {
    let root = folder.path(name);
    for (path, bytes) in vectors::files() {
        if path.starts_with("litestream/p4096/") && path.ends_with(".ltx") {
            let (level, file) = place(path);
            let to = root.join(layout.key(level, file));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, bytes).unwrap();
        }
    }
    root
}

#[test]
fn the_commands_take_a_replica_as_a_store() {
    for layout in [Layout::Decimal, Layout::Hex] {
        let folder = Folder::new();
        replica_folder(&folder, "replica", layout);
        let outcome = folder.run(&["restore", "./replica", "-o", "a.db", "--json"]).json();
        assert_eq!(std::fs::read(folder.path("a.db")).unwrap(), vectors::file("litestream/p4096/final.db"));
        assert_eq!((&outcome["source"], &outcome["proof"]), (&"litestream-0.5".into(), &"file-checksums".into()));
        let text = folder.run(&["restore", "./replica", "-o", "b.db"]).stdout;
        assert!(text.contains("Litestream keeps no checksum of the database"), "{text}");

        let log = folder.run(&["log", "./replica", "--json"]);
        let points: Vec<serde_json::Value> = log.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(points.len() > 5, "{log:?}");
        assert_eq!(points.last().unwrap()["txid"], outcome["txid"]);
        for point in &points {
            assert!(point["checksum"].is_null(), "nothing is made up: {point}");
            let txid = point["txid"].as_str().unwrap();
            let outcome = folder.run(&["restore", "./replica", "-o", "c.db", "--force", "--txid", txid, "--json"]);
            assert_eq!(outcome.json()["txid"], point["txid"]);
            let time = point["time"].as_str().unwrap();
            let at = folder.run(&["restore", "./replica", "-o", "c.db", "--force", "--at", time, "--json"]).json();
            assert!(at["txid"].as_str() >= point["txid"].as_str(), "{at} at {time}");
        }
        let verified = folder.run(&["verify", "./replica", "--json"]).json();
        assert_eq!((&verified["ok"], &verified["integrity"]), (&true.into(), &"ok".into()), "{verified}");
        assert_eq!(verified["points"], points.len());
        assert_eq!(verified["proof"], "file-checksums");
    }
}

/// The restore, and `verify`, must fail with this status and this in their line.
#[track_caller]
fn check_damaged(folder: &Folder, restore: (i32, &str), verify: &str) {
    let outcome = folder.run(&["restore", "./replica", "-o", "x.db"]);
    assert_eq!(outcome.code, restore.0, "{outcome:?}");
    assert!(outcome.stderr.contains(restore.1), "{outcome:?}");
    assert!(!folder.path("x.db").exists());
    let outcome = folder.run(&["verify", "./replica"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stdout.contains(verify), "{outcome:?}");
}

#[test]
fn damage_is_found() {
    let first = "ltx/0/0000000000000001-0000000000000001.ltx";
    let second = "ltx/0/0000000000000002-0000000000000002.ltx";
    let chain = |name: &str| {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.path("replica/ltx/0")).unwrap();
        for (path, bytes) in vectors::files() {
            if path.starts_with("litestream/p4096/ltx/0/") {
                std::fs::write(folder.path(&format!("replica/ltx/0/{}", path.rsplit('/').next().unwrap())), bytes)
                    .unwrap();
            }
        }
        assert!(folder.path(&format!("replica/{name}")).exists());
        folder
    };
    let flipped = chain(first);
    let path = flipped.path(&format!("replica/{second}"));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    check_damaged(&flipped, (3, second), second);

    let cut = chain(first);
    bytes.truncate(at);
    std::fs::write(cut.path(&format!("replica/{second}")), &bytes).unwrap();
    check_damaged(&cut, (3, second), second);

    let swapped = chain(first);
    std::fs::copy(swapped.path(&format!("replica/{first}")), swapped.path(&format!("replica/{second}"))).unwrap();
    check_damaged(&swapped, (3, "not those of its name"), "not those of its name");

    let gap = chain(first);
    std::fs::remove_file(gap.path(&format!("replica/{second}"))).unwrap();
    check_damaged(&gap, (3, "0000000000000002 is missing"), "0000000000000002 is missing");

    let headless = chain(first);
    std::fs::remove_file(headless.path(&format!("replica/{first}"))).unwrap();
    check_damaged(&headless, (5, "nothing has been backed up yet"), "nothing has been backed up yet");
}

#[test]
fn what_is_ambiguous_or_unknown_is_said() {
    let folder = Folder::new();
    replica_folder(&folder, "both", Layout::Decimal);
    replica_folder(&folder, "both", Layout::Hex);
    std::fs::create_dir_all(folder.path("other/photos")).unwrap();
    folder.write("other/photos/ltx.jpg", "a picture");
    for (arguments, code, line) in [
        (&["restore", "./both", "-o", "x.db"][..], 2, "a Litestream 0.5 replica in the layout of S3"),
        (&["log", "./both"], 2, "./both holds a Litestream 0.5 replica (ltx/) and"),
        (&["verify", "./both"], 2, "--litestream VERSION chooses one"),
        (&["restore", "./other", "-o", "x.db"], 5, "./other holds no replicated database"),
        (&["restore", "./both", "-o", "x.db", "--litestream", "0.3"], 5, "holds no replicated database"),
        (&["restore", "./both", "-o", "x.db", "--litestream", "0.4"], 2, "0.4"),
        (&["restore", "./both", "-o", "x.db", "--litestream", "0.5", "--follow"], 2, "cannot be used with"),
    ] {
        let outcome = folder.run(arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {outcome:?}");
        assert_eq!(outcome.stderr.matches('\n').count(), 1, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(line), "{arguments:?}: {outcome:?}");
        assert!(!folder.path("x.db").exists());
    }
    replica_folder(&folder, "replica", Layout::Decimal);
    for arguments in [
        &["restore", "./replica", "-o", "x.db", "--reuse"][..],
        &["verify", "./replica", "--every-point"],
        &["restore", "./replica", "-o", "x.db", "--txid", "fffffffffffffffe"],
        &["restore", "./replica", "-o", "x.db", "--at", "2001-01-01T00:00:00Z"],
    ] {
        let outcome = folder.run(arguments);
        assert!([2, 5].contains(&outcome.code), "{arguments:?}: {outcome:?}");
        assert!(!folder.path("x.db").exists());
    }
}

#[test]
fn a_store_of_ours_stays_ours() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let daemon = folder.start(&["replicate", "a.db", "./replica", "--sync-interval", "0"]);
    folder.wait_durable("a.db", 1);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    replica_folder(&folder, "replica", Layout::Decimal);
    let outcome = folder.run(&["restore", "./replica", "-o", "b.db", "--json"]).json();
    assert_eq!((&outcome["source"], &outcome["proof"]), (&"rhyolite".into(), &"database-checksum".into()));
    assert_eq!(crate::program::rows(&folder.path("b.db")), [1]);
    // Only when the user says so is the other one read.
    let outcome = folder.run(&["restore", "./replica", "-o", "c.db", "--litestream", "0.5", "--json"]).json();
    assert_eq!(outcome["source"], "litestream-0.5");
}
