//! Restore drills: what they prove, what they find, and that replication goes on whatever they find.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::state::page_table::{self, PageTableHeader};
use rhyolite_format::{Checksum, PageCount, PageNumber, Seq, Txid, keys};
use rhyolite_node::drill::drill;
use rhyolite_node::restore::RestoreError;
use rhyolite_store::{Memory, Store};
use rustix::process::Signal;
use serde_json::Value;

use crate::history::run;
use crate::history_builder::{History, START, State, TICK};
use crate::program::{Folder, wait_for};
use crate::restore::put;

const WHOLE: u64 = u64::MAX;

/// A few megabytes in a snapshot, and a few commits after it.
async fn sample() -> History {
    let mut history = History::new(Arc::new(Memory::new()), 4096).await;
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
    history.run("INSERT INTO t (v) SELECT randomblob(6000000)");
    history.upload().await;
    let files = vec![history.snapshot(history.last()).await];
    history.manifest(files, Seq::FIRST, None).await;
    history.run("INSERT INTO t (v) SELECT randomblob(20000)");
    history.upload().await;
    history
}

/// Writes the page table of a state, as the state folder holds it.
fn write_table(path: &Path, history: &History, state: &State) {
    let size = state.page_size;
    let pages = (1..).filter_map(PageNumber::new).zip(state.image.chunks(size.bytes()));
    let entries: Vec<u64> = pages.map(|(pgno, page)| Checksum::of_page(pgno, page).get()).collect();
    let count = PageCount(entries.len() as u32);
    let header = PageTableHeader { lineage: history.lineage, pos: state.pos, page_size: size, count };
    page_table::write(&header, &entries, BufWriter::new(std::fs::File::create(path).unwrap())).unwrap();
}

fn nowhere() -> PathBuf {
    PathBuf::from("/nonexistent/pages")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_database_is_proved_whole() {
    let history = sample().await;
    let last = &history.states[&history.last()];
    let proof = drill(Arc::clone(&history.store), WHOLE, nowhere()).await.unwrap();
    assert_eq!((proof.pos, proof.committed), (last.pos, last.time));
    assert!(proof.is_whole());
    assert_eq!(proof.pages, last.image.len() as u64 / 4096);
    assert!(proof.bytes_fetched > 6_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_database_a_sample_is_compared_with_what_was_committed() {
    let history = sample().await;
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("pages");
    let last = history.states[&history.last()].clone();
    write_table(&table, &history, &last);
    // Each block of pages is in the sample by chance: now and then nearly all of them are, and not three times.
    let mut fetched = Vec::new();
    for _ in 0..3 {
        let proof = drill(Arc::clone(&history.store), 1 << 20, table.clone()).await.unwrap();
        assert_eq!(proof.pos, last.pos);
        fetched.push(proof.bytes_fetched);
    }
    assert!(fetched.iter().any(|bytes| *bytes < 5_000_000), "{fetched:?}");
    // Every page is in some sample: a table that differs in one page is found sooner or later.
    let mut other = last.clone();
    other.image[4096 * 700] ^= 1;
    other.pos.checksum = crate::history_builder::checksum_of(&other.image, other.page_size);
    write_table(&table, &history, &other);
    match drill(Arc::clone(&history.store), 1 << 20, table.clone()).await {
        Err(RestoreError::WrongChecksum { .. }) => {}
        other => panic!("{other:?}"),
    }
    // Without a table to compare with, or with one of a state that is not in the store, nothing is proved and nothing is damaged.
    for path in [nowhere(), table] {
        other.pos.txid = other.pos.txid.next();
        if path.exists() {
            write_table(&path, &history, &other);
        }
        match drill(Arc::clone(&history.store), 1 << 20, path).await {
            Err(RestoreError::Io { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Rot that no checksum of a segment or an index shows: one bit of a page in the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found() {
    let history = sample().await;
    let store: &Arc<dyn Store> = &history.store;
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("pages");
    write_table(&table, &history, &history.states[&history.last()]);
    let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, Txid::new(2).unwrap(), history.epoch);
    let mut bytes = store.get(&key).await.unwrap().bytes.to_vec();
    bytes[3_000_000] ^= 4;
    put(store, &key, Some(Bytes::from(bytes))).await;
    let whole = drill(Arc::clone(store), WHOLE, nowhere()).await.unwrap_err();
    assert!(!matches!(whole, RestoreError::Store(_) | RestoreError::Io { .. }), "{whole}");
    let mut found = None;
    for _ in 0..200 {
        match drill(Arc::clone(store), 1 << 20, table.clone()).await {
            Ok(_) => {}
            Err(e) => {
                found = Some(e);
                break;
            }
        }
    }
    match found {
        Some(RestoreError::WrongPage { .. } | RestoreError::Damaged { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_and_merged_files_are_drilled_too() {
    let history = sample().await;
    let end = START + TICK * history.last().get() as i64;
    run(&history.store, end + 6_000).await;
    run(&history.store, end + 100_000).await;
    assert!(drill(Arc::clone(&history.store), WHOLE, nowhere()).await.unwrap().is_whole());
}

fn status(folder: &Folder) -> Value {
    let outcome = folder.run(&["status", "a.db", "--json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    report["databases"][0]["status"].clone()
}

#[test]
fn the_daemon_drills_remembers_and_goes_on() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let start = |interval| {
        folder.start(&["replicate", "a.db", "./backup", "--sync-interval", "0", "--drill-interval", interval])
    };
    let daemon = start("1s");
    wait_for("a first drill", || status(&folder)["drill"]["proved"].is_object());
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    folder.wait_durable("a.db", 2);
    wait_for("a drill of the newer state", || {
        let status = status(&folder);
        status["drill"]["proved"]["pos"] == status["durable"] && status["durable"] == status["local"]
    });
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    let proved = status(&folder)["drill"]["proved"].clone();
    let text = folder.run(&["status", "a.db"]).stdout;
    assert!(text.contains("restorable   to ") && text.contains("every page proved"), "{text}");
    // The next process knows, and does not drill again before it is time.
    let daemon = start("24h");
    wait_for("the remembered proof", || {
        status(&folder)["state"]["name"] == "replicating" && status(&folder)["drill"]["proved"] == proved
    });
    assert_eq!(status(&folder)["drill"]["runs"], 0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    // A store that has rotted is found, told, and written to all the same.
    let snapshot = std::fs::read_dir(folder.path("backup/ltx/9")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    bytes[126] ^= 0xff;
    std::fs::write(&snapshot, bytes).unwrap();
    let daemon = start("1s");
    db.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    wait_for("the damage", || status(&folder)["drill"]["is_damage"] == true);
    assert!(status(&folder)["drill"]["failures"].as_u64().unwrap() >= 1);
    db.execute_batch("INSERT INTO t VALUES (4)").unwrap();
    folder.wait_durable("a.db", 4);
    assert!(folder.run(&["status", "a.db"]).stdout.contains("drill        FAILED"));
    std::thread::sleep(Duration::from_millis(10));
    daemon.signal(Signal::TERM);
    daemon.wait();
}
