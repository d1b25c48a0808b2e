//! Several look after one history at once, some of whom may not delete; and what nobody names is found and goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::{Seq, Timestamp, Txid, keys};
use rhyolite_logic::history_plan::Duty;
use rhyolite_node::history::{
    Garbage, HistoryError, HistoryOptions, OnGarbage, SegmentSource, garbage, maintain, preview,
};
use rhyolite_store::{Counted, Counters, Directory, Memory, Operation, Store, StoreErrorKind};
use rustix::process::Signal;

use crate::history::{check_sound, keys_below, manifest, options, run};
use crate::history_builder::{History, START, TICK};
use crate::program::{Folder, wait_for};
use crate::restore::{check_every_point, put, write_some};

async fn sample(store: Arc<dyn Store>) -> (History, i64) {
    let mut history = History::new(store, 512).await;
    write_some(&mut history).await;
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let end = START + TICK * history.last().get() as i64;
    (history, end)
}

fn with_duty(store: &Arc<dyn Store>, now: i64, duty: Duty) -> HistoryOptions {
    HistoryOptions { duty, ..options(store, now) }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_compacts_and_another_prunes() {
    let (mut history, end) = sample(Arc::new(Memory::new())).await;
    let store = Arc::clone(&history.store);
    let mut now = end + 6000;
    for _ in 0..5 {
        let due = preview(&with_duty(&store, now, Duty::Compact)).await.unwrap();
        let report = maintain(with_duty(&store, now, Duty::Compact)).await.unwrap();
        assert_eq!((report.expired, report.deleted), (0, 0));
        assert_eq!(due.is_empty(), report.bundled + report.merged + report.snapshots == 0, "{due:?}");
        now += 20_000_000;
    }
    assert_eq!(keys_below(&store, "log").await.len() as u64, history.seq.get() - 1, "nothing was deleted");
    let mut deleted = 0;
    for _ in 0..5 {
        let report = maintain(with_duty(&store, now, Duty::Prune)).await.unwrap();
        assert_eq!((report.bundled, report.merged, report.snapshots, report.bytes_written), (0, 0, 0, 0));
        deleted += report.deleted;
        now += 20_000_000;
    }
    assert!(deleted > 0);
    let files = manifest(&store).await.files;
    assert_eq!(keys_below(&store, "ltx").await.len(), files.len(), "what nothing needs is gone");
    let last = history.last();
    history.states.retain(|txid, _| *txid == last);
    check_every_point(&history).await;
    check_sound(&store).await;
}

/// A daemon, and commands beside it, all at once and again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_at_once_do_no_harm() {
    for round in 0..8u64 {
        let folder = tempfile::tempdir().unwrap();
        let (history, end) = sample(Arc::new(Directory::new(folder.path()))).await;
        let store = Arc::clone(&history.store);
        for (step, age) in [6_000, 12_000, 45_000, 60_000, 100_000, 110_000, 200_000].into_iter().enumerate() {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..4u64 {
                // A few milliseconds apart, differently each time.
                let pause = Duration::from_millis((round * 7 + n * 3 + step as u64) % 5);
                let options = options(&store, end + age + n as i64);
                tasks.spawn(async move {
                    tokio::time::sleep(pause).await;
                    maintain(options).await
                });
            }
            while let Some(ended) = tasks.join_next().await {
                match ended.unwrap() {
                    Ok(_) | Err(HistoryError::Read(_)) => {}
                    Err(HistoryError::Write(error)) if error.kind == StoreErrorKind::Exists => {}
                    Err(error) => panic!("{error}"),
                }
            }
            check_sound(&store).await;
        }
        run(&store, end + 300_000).await;
        let files = manifest(&store).await.files;
        assert_eq!(keys_below(&store, "ltx").await.len(), files.len(), "round {round}: nothing is left");
    }
}

/// What a killed process has written is not written again, nor taken away from whoever is about to name it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_is_used() {
    let (history, end) = sample(Arc::new(Memory::new())).await;
    let store = &history.store;
    let before = store.get(keys::MANIFEST).await.unwrap().bytes;
    run(store, end + 6000).await;
    let made = keys_below(store, "ltx").await;
    put(store, keys::MANIFEST, Some(before)).await;
    let counters = Arc::new(Counters::default());
    let counted: Arc<dyn Store> = Arc::new(Counted::new(Arc::clone(store), Arc::clone(&counters)));
    // Another clock, another process: the same objects.
    run(&counted, end + 7000).await;
    let counts = counters.snapshot();
    let of = |operation| counts.requests.iter().find(|r| r.operation == operation).map_or(0, |r| r.count);
    assert_eq!((of(Operation::Upload), of(Operation::Delete)), (0, 0), "{counts:?}");
    assert_eq!(keys_below(store, "ltx").await, made);
    check_every_point(&history).await;
    check_sound(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_object_in_the_way_stays_until_nobody_can_want_it() {
    let (history, end) = sample(Arc::new(Memory::new())).await;
    let store = &history.store;
    let before = store.get(keys::MANIFEST).await.unwrap().bytes;
    run(store, end + 6000).await;
    put(store, keys::MANIFEST, Some(before)).await;
    let key = keys_below(store, "ltx/1").await.remove(0);
    put(store, &key, Some(Bytes::from_static(b"half of it"))).await;
    // The test's clock is years behind the store's: the object is young.
    match maintain(options(store, end + 6000)).await {
        Err(HistoryError::Write(error)) => assert_eq!(error.kind, StoreErrorKind::Exists, "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get(&key).await.unwrap().bytes, "half of it");
    let mut later = options(store, end + 6000);
    later.now = Timestamp(real_now() + 60_000);
    maintain(later).await.unwrap();
    check_sound(store).await;
}

fn real_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// Options of a process whose clock is right, and that waits a moment before it deletes.
fn patient(store: &Arc<dyn Store>, now: i64) -> HistoryOptions {
    let mut options = options(store, now);
    options.policy.grace = Duration::from_millis(300);
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_names_goes_and_nothing_else() {
    let (mut history, end) = sample(Arc::new(Memory::new())).await;
    let store = Arc::clone(&history.store);
    run(&store, end + 6000).await;
    history.run("INSERT INTO t (v) VALUES (1)");
    history.upload().await;
    // Leftovers: a merge that lost, an aborted snapshot, a segment that came too late; and what only looks like them.
    let bundle = manifest(&store).await.files.last().unwrap().clone();
    let lost = keys::ltx(2, bundle.min_txid, bundle.max_txid, history.epoch);
    let aborted = keys::ltx(9, Txid::FIRST, Txid::new(3).unwrap(), history.epoch);
    let beyond = keys::ltx(9, Txid::FIRST, history.last(), history.epoch);
    let later_epoch = keys::ltx(2, bundle.min_txid, bundle.max_txid, history.epoch.next());
    for key in [&lost, &aborted, &beyond, &later_epoch] {
        put(&store, key, Some(Bytes::from_static(b"left"))).await;
    }
    put(&store, "log/readme.txt", Some(Bytes::from_static(b"not ours"))).await;
    let all = keys_below(&store, "").await;
    let found = async |options: &HistoryOptions, on| {
        let found: Vec<Garbage> = garbage(options, on).await.unwrap();
        found.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    let now = end + 20_000;
    assert_eq!(found(&patient(&store, now), OnGarbage::Retire).await, [""; 0], "too young to be given up");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(found(&patient(&store, now), OnGarbage::Show).await, [""; 0], "the manifest is as old as they are");
    assert_eq!(found(&patient(&store, now), OnGarbage::Retire).await, [lost.clone(), aborted.clone()]);
    assert_eq!(keys_below(&store, "").await, all, "nothing is deleted yet");
    assert_eq!(found(&patient(&store, now), OnGarbage::Retire).await, [""; 0], "they are named now");
    let mut prune = patient(&store, now + 301);
    prune.duty = Duty::Prune;
    maintain(prune).await.unwrap();
    let left = keys_below(&store, "").await;
    for key in [&lost, &aborted] {
        assert!(!left.contains(key), "{key}");
    }
    for key in [&beyond, &later_epoch, &"log/readme.txt".to_owned()] {
        assert!(left.contains(key), "{key}");
    }
    check_every_point(&history).await;
    check_sound(&store).await;
}

/// A daemon that leaves deletion to others, and the commands beside it.
#[test]
fn the_commands_beside_a_daemon() {
    let folder = Folder::new();
    let db = folder.database("a.db");
    db.execute_batch("INSERT INTO t VALUES (0)").unwrap();
    let quick = ["--bundle-interval", "1s", "--merge-interval", "1s", "--snapshot-interval", "1s"];
    let keep = ["--keep-every-commit", "2s", "--keep-hourly", "4s", "--keep-daily", "6s", "--retention-grace", "1s"];
    let mut arguments = vec!["replicate", "a.db", "./backup", "--sync-interval", "0", "--retention-enabled=false"];
    arguments.extend(quick.iter().chain(&keep));
    let daemon = folder.start(&arguments);
    let count = |kind: &str| std::fs::read_dir(folder.path("backup").join(kind)).map_or(0, Iterator::count);
    let compact: Vec<&str> =
        ["compact", "./backup", "--json"].iter().chain(&quick).chain(&keep[..6]).copied().collect();
    let prune: Vec<&str> = ["prune", "./backup", "--garbage", "--json"].iter().chain(&keep).copied().collect();
    let mut value = 0;
    let mut write = || {
        value += 1;
        db.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    };
    folder.wait_durable("a.db", 1);
    (0..100).for_each(|_| write());
    folder.wait_durable("a.db", 100);
    assert!(count("log") >= 90, "the daemon deletes nothing: {}", count("log"));
    let mut deleted = 0;
    wait_for("deletions", || {
        (0..20).for_each(|_| write());
        let compacted = folder.run(&compact);
        assert!(compacted.code == 0 || compacted.stderr.contains("tried again later"), "{compacted:?}");
        let pruned = folder.run(&prune).json();
        deleted += pruned["deleted_objects"].as_u64().unwrap();
        deleted > 150
    });
    let verified = folder.run(&["verify", "./backup", "--every-point", "--json"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, 0);
    assert_eq!(folder.run(&["restore", "./backup", "-o", "copy.db"]).code, 0);
    let rows = |name: &str| {
        let db = rusqlite::Connection::open(folder.path(name)).unwrap();
        db.query_row("SELECT count(*), sum(a) FROM t", [], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))).unwrap()
    };
    assert_eq!(rows("copy.db"), rows("a.db"));
    let dry = folder.run(&["prune", "./backup", "--dry-run", "--garbage"]);
    assert!(dry.code == 0 && dry.stdout.contains("would be deleted"), "{dry:?}");
    crate::cli::check_refused(&folder, &["prune", "./missing"], 5, "holds no replicated database");
    crate::cli::check_refused(&folder, &["compact"], 2, "<STORE>");
    crate::cli::check_refused(&folder, &["compact", "./backup", "--keep-hourly", "5"], 2, "is no duration");
}

/// What this machine still has of the log is neither looked up in the store nor fetched, once the store has acknowledged it.
#[tokio::test(flavor = "multi_thread")]
async fn segments_that_are_here_are_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    for acknowledged in [None, Some(3), Some(9999)] {
        let (history, end) = sample(Arc::new(Memory::new())).await;
        let store = &history.store;
        let keys = keys_below(store, "log").await;
        for key in &keys {
            let seq = keys::parse_segment(key).unwrap();
            let bytes = store.get(key).await.unwrap().bytes;
            std::fs::write(folder.path().join(seq.to_string()), &bytes).unwrap();
        }
        let counters = Arc::new(Counters::default());
        let counted: Arc<dyn Store> = Arc::new(Counted::new(Arc::clone(store), Arc::clone(&counters)));
        let source = Here { folder: folder.path().to_owned(), acknowledged: acknowledged.and_then(Txid::new) };
        let options = HistoryOptions { segments: Some(Arc::new(source)), ..options(&counted, end + 6000) };
        assert!(maintain(options).await.unwrap().bundled >= 2);
        let counts = counters.snapshot();
        let of = |operation| counts.requests.iter().find(|r| r.operation == operation).map_or(0, |r| r.count);
        // In each round the end of the log is asked for once: there is nothing.
        let tails = of(Operation::GetTail);
        match acknowledged {
            Some(9999) => assert!(tails <= 4, "{counts:?}"),
            Some(_) => assert!(tails > 4, "{counts:?}"),
            None => assert!(tails >= keys.len() as u64, "{counts:?}"),
        }
        check_every_point(&history).await;
        check_sound(store).await;
    }
}

/// Another writer's segment under the number of one that is here is not mistaken for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_not_acknowledged_is_not_taken_for_the_store_s() {
    let folder = tempfile::tempdir().unwrap();
    let (history, end) = sample(Arc::new(Memory::new())).await;
    let store = &history.store;
    // The same size, the same place, another content.
    for key in keys_below(store, "log").await {
        let mut bytes = store.get(&key).await.unwrap().bytes.to_vec();
        let half = bytes.len() / 2;
        bytes[half..].reverse();
        std::fs::write(folder.path().join(keys::parse_segment(&key).unwrap().to_string()), bytes).unwrap();
    }
    for acknowledged in [Some(1), Some(9999)] {
        let source = Here { folder: folder.path().to_owned(), acknowledged: acknowledged.and_then(Txid::new) };
        let options = HistoryOptions { segments: Some(Arc::new(source)), ..options(store, end + 6000) };
        maintain(options).await.unwrap();
        check_every_point(&history).await;
        check_sound(store).await;
    }
}

#[derive(Debug)]
struct Here {
    folder: std::path::PathBuf,
    acknowledged: Option<Txid>,
}

impl SegmentSource for Here {
    fn open(&self, seq: Seq) -> Option<std::fs::File> {
        std::fs::File::open(self.folder.join(seq.to_string())).ok()
    }

    fn acknowledged(&self) -> Option<Txid> {
        self.acknowledged
    }
}

/// Bundling, merging and a snapshot of far more bytes than the process ever holds in memory.
#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn compaction_takes_little_memory() {
    const MIB: u64 = 1 << 20;
    let folder = Folder::new();
    let mut history = History::new(Arc::new(Directory::new(folder.path("store"))), 4096).await;
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
    history.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 24) INSERT INTO t SELECT i, randomblob(1000000) FROM n");
    history.upload().await;
    for _ in 0..7 {
        history.run("UPDATE t SET v = randomblob(1000000)");
        history.upload().await;
    }
    history.run("DELETE FROM t WHERE id = 1");
    history.upload().await;
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let arguments =
        ["compact", "./store", "--keep-every-commit", "1d", "--keep-hourly", "2d", "--keep-daily", "9999d", "--json"];
    let running = folder.start(&arguments);
    let mut peak = 0;
    while let Some(bytes) = running.peak_bytes() {
        peak = peak.max(bytes);
        std::thread::sleep(Duration::from_millis(2));
    }
    let report = running.wait().json();
    assert!(report["merged_files"].as_u64().unwrap() >= 1 && report["snapshots"] == 1, "{report}");
    assert!(report["bytes_written"].as_u64().unwrap() > 190 * MIB, "{report}");
    println!("peak memory {} MiB, {report}", peak / MIB);
    assert!(peak > 4 * MIB && peak < 80 * MIB, "{} MiB", peak / MIB);
    check_sound(&history.store).await;
}
