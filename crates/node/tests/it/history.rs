//! Bundles, merges, snapshots, expiry and deletion, on real objects: what is kept comes out as it went in.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::manifest::{FileKind, Manifest};
use rhyolite_format::{Epoch, Seq, Timestamp, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::history_plan::{Duty, Policy};
use rhyolite_node::history::{HistoryError, HistoryOptions, HistoryReport, SegmentSource, maintain, snapshot};
use rhyolite_node::progress::Silent;
use rhyolite_node::restore::RestoreError;
use rhyolite_node::verify::{Depth, VerifyOptions, verify};
use rhyolite_store::{Fault, Faulty, Memory, Operation, Rule, Store};

use crate::history_builder::{History, START, TICK};
use crate::restore::{Outputs, check_every_point, damaged_copies, put, write_some};

/// Seconds stand for what are hours by default.
pub(crate) fn policy() -> Policy {
    let seconds = Duration::from_secs;
    Policy {
        bundle_interval: seconds(5),
        bundle_segments_min: 2,
        bundle_segments_max: 100,
        merge_interval: seconds(10),
        snapshot_interval: seconds(40),
        keep_every_commit: seconds(60),
        keep_hourly: seconds(600),
        keep_daily: seconds(100_000),
        grace: seconds(5),
        ..Policy::default()
    }
}

pub(crate) fn options(store: &Arc<dyn Store>, now: i64) -> HistoryOptions {
    HistoryOptions {
        store: Arc::clone(store),
        policy: policy(),
        duty: Duty::All,
        epoch: Epoch::FIRST,
        now: Timestamp(now),
        segments: None,
    }
}

pub(crate) async fn run(store: &Arc<dyn Store>, now: i64) -> HistoryReport {
    maintain(options(store, now)).await.unwrap()
}

pub(crate) async fn manifest(store: &Arc<dyn Store>) -> Manifest {
    Manifest::decode(&store.get(keys::MANIFEST).await.unwrap().bytes).unwrap()
}

pub(crate) async fn keys_below(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    store.list_all(prefix).await.unwrap().into_iter().map(|entry| entry.key).collect()
}

pub(crate) async fn check_sound(store: &Arc<dyn Store>) {
    let depth = Depth::EveryPoint;
    let options = VerifyOptions { store: Arc::clone(store), depth, threads: 2, progress: Arc::new(Silent) };
    assert_eq!(verify(options).await.unwrap().damage, []);
}

async fn sample(page_size: u32) -> (History, i64) {
    let mut history = History::new(Arc::new(Memory::new()), page_size).await;
    write_some(&mut history).await;
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let end = START + TICK * history.last().get() as i64;
    (history, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_keep_every_commit_and_segments_go_after_the_grace() {
    for page_size in [512, 65536] {
        let (history, end) = sample(page_size).await;
        let store = &history.store;
        let report = run(store, end + 6000).await;
        assert!(report.bundled >= 2 && report.deleted == 0, "{report:?}");
        let bundled = manifest(store).await;
        assert!(bundled.files.iter().any(|file| file.kind == FileKind::Bundle));
        assert_eq!(bundled.first_seq, history.seq.previous().unwrap(), "the newest segment stays");
        assert_eq!(keys_below(store, "log").await.len() as u64, history.seq.get() - 1);
        check_every_point(&history).await;
        assert_eq!(run(store, end + 10_000).await, HistoryReport::default(), "nothing is due");
        let report = run(store, end + 12_000).await;
        assert_eq!(report.deleted, history.seq.get() - 2, "{report:?}");
        assert_eq!(keys_below(store, "log").await, [keys::segment(bundled.first_seq)]);
        check_every_point(&history).await;
        check_sound(store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn merges_keep_the_last_commit_of_each_interval() {
    let (mut history, end) = sample(1024).await;
    let store = Arc::clone(&history.store);
    run(&store, end + 6000).await;
    let report = run(&store, end + 45_000).await;
    assert_eq!(report.snapshots, 1, "{report:?}");
    let report = run(&store, end + 100_000).await;
    assert!(report.merged >= 1, "{report:?}");
    run(&store, end + 110_000).await;
    let files = manifest(&store).await.files;
    let ends: Vec<Txid> = files.iter().map(|file| file.max_txid).chain([history.last()]).collect();
    let live = keys_below(&store, "ltx").await;
    assert_eq!(live.len(), files.len(), "what was retired is deleted");
    let last_of_interval = |txid: &Txid| {
        let interval = |txid: Txid| (START + TICK * txid.get() as i64).div_euclid(10_000);
        *txid == history.last() || interval(*txid) != interval(txid.next())
    };
    assert!(history.states.keys().filter(|txid| last_of_interval(txid)).all(|txid| ends.contains(txid)));
    let mut kept = history.states.clone();
    kept.retain(|txid, _| ends.contains(txid));
    history.states = kept;
    check_every_point(&history).await;
    check_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_points_expire_but_for_what_the_log_continues_from() {
    let (mut history, end) = sample(512).await;
    let store = Arc::clone(&history.store);
    let mut now = end;
    for _ in 0..20 {
        now += 20_000_000;
        run(&store, now).await;
    }
    let files = manifest(&store).await.files;
    assert!(files.len() <= 3, "{files:?}");
    assert_eq!(keys_below(&store, "ltx").await.len(), files.len());
    let last = history.last();
    history.states.retain(|txid, _| *txid == last);
    check_every_point(&history).await;
    check_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_of_what_the_store_holds() {
    let (history, end) = sample(4096).await;
    let store = &history.store;
    let report = snapshot(options(store, end)).await.unwrap();
    assert_eq!(report.snapshots, 1);
    let file = manifest(store).await.files.pop().unwrap();
    let last = &history.states[&history.last()];
    assert_eq!((file.kind, file.end(), file.max_time), (FileKind::Snapshot, last.pos, last.time));
    assert_eq!(file.min_time, Timestamp(START + TICK));
    assert_eq!(run(store, end + 1_000_000).await.snapshot_due, None);
    // A restore reads the snapshot alone now.
    for key in keys_below(store, "log").await.into_iter().rev().skip(1) {
        let bytes = store.get(&key).await.unwrap().bytes;
        put(store, &key, Some(spoil(&bytes))).await;
    }
    let (report, bytes) = Outputs::new().restore(store, Target::Latest).await.unwrap();
    assert_eq!(report.pos, last.pos);
    assert!(bytes == last.image);
}

/// Changes the LTX files of a segment, but neither header nor index.
fn spoil(segment: &Bytes) -> Bytes {
    let mut bytes = segment.to_vec();
    let end = bytes.len() - 200;
    for byte in &mut bytes[80..end.max(80)] {
        *byte ^= 0xff;
    }
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_damage() {
    let (history, end) = sample(512).await;
    let store = &history.store;
    let before = keys_below(store, "").await;
    let manifest_before = manifest(store).await;
    let key = keys::segment(Seq::new(3).unwrap());
    let good = store.get(&key).await.unwrap().bytes;
    for bad in damaged_copies(&good) {
        put(store, &key, bad.clone()).await;
        match maintain(options(store, end + 6000)).await {
            Ok(report) if report.damaged.is_some() => assert_eq!(report.bytes_written, 0),
            other => panic!("{other:?}"),
        }
        assert_eq!(manifest(store).await, manifest_before);
        let mut after = keys_below(store, "").await;
        after.retain(|name| *name != key);
        assert!(after.iter().all(|name| before.contains(name) || name.starts_with("ltx/9")), "{after:?}");
    }
    put(store, &key, Some(good)).await;
    run(store, end + 6000).await;
    check_every_point(&history).await;
}

/// Credentials of backups often may not delete.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_deletion_holds_nothing_else_up() {
    let (history, end) = sample(512).await;
    run(&history.store, end + 6000).await;
    let faulty = Faulty::new(Arc::clone(&history.store));
    faulty.script(Rule::next(Operation::Delete, u64::MAX, Fault::Deny));
    let denying: Arc<dyn Store> = Arc::new(faulty);
    let report = run(&denying, end + 45_000).await;
    assert_eq!((report.snapshots, report.deleted), (1, 0), "{report:?}");
    assert!(report.not_deleted.is_some_and(|text| text.contains("log/")));
    let report = run(&history.store, end + 46_000).await;
    assert!(report.deleted > 0 && report.not_deleted.is_none(), "{report:?}");
    check_sound(&history.store).await;
}

/// A segment of the local log that has rotted is not what the bundle is made of.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_local_segment_is_read_from_the_store() {
    #[derive(Debug)]
    struct Rotten(tempfile::TempDir);
    impl SegmentSource for Rotten {
        fn open(&self, seq: Seq) -> Option<File> {
            File::open(self.0.path().join(seq.to_string())).ok()
        }
    }
    let (history, end) = sample(512).await;
    let folder = tempfile::tempdir().unwrap();
    for key in keys_below(&history.store, "log").await {
        let bytes = history.store.get(&key).await.unwrap().bytes;
        let seq = keys::parse_segment(&key).unwrap();
        std::fs::write(folder.path().join(seq.to_string()), spoil(&bytes)).unwrap();
    }
    let local = HistoryOptions { segments: Some(Arc::new(Rotten(folder))), ..options(&history.store, end + 6000) };
    let report = maintain(local).await.unwrap();
    assert!(report.bundled >= 2, "{report:?}");
    check_every_point(&history).await;
    check_sound(&history.store).await;
}

/// Another writer swaps the manifest between plan and swap.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_epoch_ends_the_work() {
    let (mut history, end) = sample(512).await;
    history.epoch = history.epoch.next();
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let refused = maintain(options(&history.store, end + 6000)).await.unwrap_err();
    assert!(matches!(refused, HistoryError::Fenced { .. }), "{refused}");
    let refused = snapshot(options(&history.store, end + 6000)).await.unwrap_err();
    assert!(matches!(refused, HistoryError::Fenced { .. }), "{refused}");
    assert_eq!(keys_below(&history.store, "ltx").await, [""; 0]);
}

/// A long history: enough small files that merging takes several passes.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_transactions_merge_in_bounded_passes() {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)");
    history.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 800) INSERT INTO t SELECT i, 0 FROM n");
    for i in 0..1500u64 {
        let mut image = history.states[&history.last()].image.clone();
        let page = 1 + (i * 7919) as usize % (image.len() / 512 - 1);
        image[page * 512 + (i % 500) as usize] ^= 0x55;
        let page_size = history.states[&history.last()].page_size;
        history.log_image(image, page_size);
        if i % 50 == 0 {
            history.upload().await;
        }
    }
    history.upload().await;
    history.upload().await;
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let end = START + TICK * history.last().get() as i64;
    let mut policy = policy();
    policy.merge_interval = Duration::from_secs(100_000);
    policy.bundle_entries_max = 200;
    policy.keep_daily = Duration::from_secs(1_000_000_000);
    policy.snapshot_interval = policy.keep_daily;
    let step = |now| HistoryOptions { policy: policy.clone(), ..options(&history.store, now) };
    maintain(step(end + 6000)).await.unwrap();
    let report = maintain(step(end + 1_000_000_000)).await.unwrap();
    assert!(report.merged >= 1, "{report:?}");
    let last = history.last();
    history.states.retain(|txid, _| *txid == last);
    check_every_point(&history).await;
    let refused = Outputs::new().restore(&history.store, Target::Txid(Txid::new(900).unwrap())).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Plan(_)), "{refused}");
    check_sound(&history.store).await;
}
