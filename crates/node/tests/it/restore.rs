//! Restores at every restore point, compared byte for byte with the source; and what must be refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::{PageSize, Seq, Timestamp, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::restore_plan::PlanError;
use rhyolite_node::progress::Silent;
use rhyolite_node::restore::{Existing, Output, RestoreError, RestoreOptions, RestoreReport, restore};
use rhyolite_store::{Directory, Memory, Store, StoreErrorKind};

use crate::history_builder::{History, START, TICK};

pub(crate) fn options(store: &Arc<dyn Store>, output: &Path, target: Target) -> RestoreOptions {
    RestoreOptions {
        store: Arc::clone(store),
        output: Output::File(output.to_owned()),
        target,
        existing: Existing::Refuse,
        threads: 2,
        spool: None,
        progress: Arc::new(Silent),
    }
}

pub(crate) struct Outputs(tempfile::TempDir);

impl Outputs {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("copy.db")
    }

    /// Restores to a fresh file, and gives what it holds.
    pub(crate) async fn restore(
        &self,
        store: &Arc<dyn Store>,
        target: Target,
    ) -> Result<(RestoreReport, Vec<u8>), RestoreError> {
        let path = self.path();
        let report = restore(options(store, &path, target)).await;
        if report.is_err() {
            assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 0, "nothing is left of a failed restore");
        }
        let report = report?;
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 0);
        Ok((report, bytes))
    }
}

/// Every state comes out as it went in.
pub(crate) async fn check_every_point(history: &History) {
    let outputs = Outputs::new();
    for (txid, state) in &history.states {
        let (report, bytes) = outputs.restore(&history.store, Target::Txid(*txid)).await.unwrap();
        assert_eq!((report.pos, report.time, report.page_size), (state.pos, state.time, state.page_size), "{txid}");
        assert!(bytes == state.image, "the state after {txid} came out differently");
    }
    let (report, bytes) = outputs.restore(&history.store, Target::Latest).await.unwrap();
    assert_eq!(report.pos.txid, history.last());
    assert!(bytes == history.states[&history.last()].image);
}

fn memory() -> Arc<dyn Store> {
    Arc::new(Memory::new())
}

/// A few dozen transactions: growth, small changes, shrinking by VACUUM, growth again.
pub(crate) async fn write_some(history: &mut History) {
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
    history.upload().await;
    for i in 0..12 {
        let n = 1 + i % 4 * 10;
        history.run(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n})
             INSERT INTO t (v) SELECT randomblob(500) FROM n"
        ));
        if i % 3 == 0 {
            history.upload().await;
        }
    }
    history.run("UPDATE t SET v = zeroblob(300) WHERE id % 3 = 0");
    history.run("DELETE FROM t WHERE id > 20");
    history.run("VACUUM");
    history.upload().await;
    history.run("INSERT INTO t (v) VALUES (randomblob(30000)), (randomblob(30000))");
    history.run("CREATE INDEX i ON t (v)");
    history.upload().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transaction_of_a_log_is_restored() {
    for page_size in [512, 4096, 65536] {
        let mut history = History::new(memory(), page_size).await;
        write_some(&mut history).await;
        check_every_point(&history).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Directory::new(folder.path()));
    let mut history = History::new(store, 1024).await;
    write_some(&mut history).await;
    check_every_point(&history).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_the_manifest_shorten_the_way() {
    let mut history = History::new(memory(), 4096).await;
    write_some(&mut history).await;
    let middle = Txid::new(9).unwrap();
    let files = vec![history.snapshot(middle).await];
    history.manifest(files, Seq::FIRST, None).await;
    check_every_point(&history).await;
    let outputs = Outputs::new();
    let all = outputs.restore(&history.store, Target::Txid(middle)).await.unwrap().0;
    assert_eq!(all.pos.txid, middle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_in_the_log_starts_anew_with_another_page_size() {
    let mut history = History::new(memory(), 1024).await;
    write_some(&mut history).await;
    history.open().execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap();
    let image = std::fs::read(history.path()).unwrap();
    history.log_snapshot(image, 8192);
    history.run("INSERT INTO t (v) VALUES ('after')");
    history.upload().await;
    history.run("INSERT INTO t (v) VALUES ('and later')");
    history.upload().await;
    check_every_point(&history).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_emptied_and_made_again() {
    let mut history = History::new(memory(), 512).await;
    write_some(&mut history).await;
    let page_size = PageSize::new(512).unwrap();
    let image = history.states[&history.last()].image.clone();
    history.log_image(Vec::new(), page_size);
    history.upload().await;
    history.log_image(image[..1024].to_vec(), page_size);
    history.log_image(image, page_size);
    history.upload().await;
    check_every_point(&history).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_read_by_their_index() {
    let mut history = History::new(memory(), 4096).await;
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
    history.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO t (v) SELECT randomblob(3000) FROM n",
    );
    history.upload().await;
    for i in 0..20 {
        history.run(&format!("UPDATE t SET v = randomblob(3000) WHERE id = {}", 1 + 190 * i));
    }
    history.run("DELETE FROM t WHERE id > 3000");
    history.upload().await;
    let all = history.states.clone();
    history.states.retain(|txid, _| [2, 12, 23].contains(&txid.get()));
    check_every_point(&history).await;
    history.states = all;
    let files = vec![history.snapshot(Txid::new(22).unwrap()).await];
    history.manifest(files, Seq::FIRST, None).await;
    history.states.retain(|txid, _| [22, 23].contains(&txid.get()));
    check_every_point(&history).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_page_stays_zero() {
    let page_size = PageSize::MAX;
    let lock_page = page_size.lock_page();
    let pages = lock_page.index() + 3;
    let mut image = vec![0; pages * page_size.bytes()];
    image[0] = 1;
    image[(lock_page.index() + 1) * page_size.bytes()] = 2;
    let mut history = History::new(memory(), 65536).await;
    history.log_image(image.clone(), page_size);
    let last = image.len() - 1;
    image[last] = 3;
    history.log_image(image, page_size);
    history.upload().await;
    let (report, bytes) = Outputs::new().restore(&history.store, Target::Latest).await.unwrap();
    assert_eq!(report.pages.get() as usize, pages);
    assert!(bytes == history.states[&history.last()].image);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_select_restore_points() {
    let mut history = History::new(memory(), 512).await;
    write_some(&mut history).await;
    let outputs = Outputs::new();
    let at = |txid: u64, offset: i64| Timestamp(START + TICK * txid as i64 + offset);
    let last = history.last().get();
    let now = rhyolite_node::time::now();
    let known =
        [(at(1, 0), 1), (at(5, 0), 5), (at(5, TICK - 1), 5), (at(last, 0), last), (at(last, 1), last), (now, last)];
    for (time, wanted) in known {
        let (report, _) = outputs.restore(&history.store, Target::Time(time)).await.unwrap();
        assert_eq!(report.pos.txid.get(), wanted);
    }
    let future = Timestamp(now.0 + 3_600_000);
    for (time, nearest) in [(at(1, -1), 1), (future, last)] {
        let refused = outputs.restore(&history.store, Target::Time(time)).await.unwrap_err();
        assert!(matches!(refused, RestoreError::Plan(PlanError::OutOfRange { .. })), "{refused}");
        let (report, _) = outputs.restore(&history.store, Target::TimeNearest(time)).await.unwrap();
        assert_eq!(report.pos.txid.get(), nearest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_refused() {
    let outputs = Outputs::new();
    let refused = outputs.restore(&memory(), Target::Latest).await.unwrap_err();
    assert!(matches!(refused, RestoreError::NoDatabase { .. }), "{refused}");
    let mut history = History::new(memory(), 512).await;
    let refused = outputs.restore(&history.store, Target::Latest).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Plan(PlanError::Empty)), "{refused}");
    write_some(&mut history).await;
    let beyond = history.last().next();
    let refused = outputs.restore(&history.store, Target::Txid(beyond)).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Plan(PlanError::NotAPoint { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_file_is_touched_only_when_told_and_only_by_success() {
    let mut history = History::new(memory(), 512).await;
    write_some(&mut history).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.db");
    std::fs::write(&path, "precious").unwrap();
    let refused = restore(options(&history.store, &path, Target::Latest)).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Exists { .. }), "{refused}");
    let replace = |target| RestoreOptions { existing: Existing::Replace, ..options(&history.store, &path, target) };
    let beyond = Target::Txid(history.last().next());
    assert!(restore(replace(beyond)).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    for suffix in ["-wal", "-journal"] {
        let companion = folder.path().join(format!("copy.db{suffix}"));
        std::fs::write(&companion, "x").unwrap();
        let refused = restore(replace(Target::Latest)).await.unwrap_err();
        assert!(matches!(refused, RestoreError::Companion { .. }), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(companion).unwrap();
    }
    restore(replace(Target::Latest)).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == history.states[&history.last()].image);
}

/// Every object, damaged in many places, cut short, removed, or swapped for another: an error that names an object, or the
/// right database.
#[tokio::test(flavor = "multi_thread")]
async fn damage_never_goes_unnoticed() {
    let mut history = History::new(memory(), 512).await;
    write_some(&mut history).await;
    let middle = Txid::new(9).unwrap();
    let files = vec![history.snapshot(middle).await];
    history.manifest(files, Seq::FIRST, None).await;
    let image = history.states[&history.last()].image.clone();
    let objects = history.store.list_all("").await.unwrap();
    let mut refused = 0;
    for entry in &objects {
        let good = history.store.get(&entry.key).await.unwrap().bytes;
        for bad in damaged_copies(&good) {
            put(&history.store, &entry.key, bad).await;
            refused += usize::from(check_damaged(&history.store, &image, &entry.key).await);
        }
        for other in objects.iter().filter(|other| other.key != entry.key) {
            let swapped = history.store.get(&other.key).await.unwrap().bytes;
            put(&history.store, &entry.key, Some(swapped)).await;
            refused += usize::from(check_damaged(&history.store, &image, &entry.key).await);
        }
        put(&history.store, &entry.key, Some(good)).await;
    }
    assert!(refused > 100, "{refused} cases were refused");
    assert!(!check_damaged(&history.store, &image, "nothing").await);
}

/// Cut short, removed, one byte changed here and there.
pub(crate) fn damaged_copies(good: &Bytes) -> Vec<Option<Bytes>> {
    let mut copies =
        vec![None, Some(good.slice(..good.len() / 2)), Some(good.slice(..good.len() - 1)), Some(Bytes::new())];
    for i in (0..good.len()).step_by(good.len() / 16 + 1) {
        let mut bytes = good.to_vec();
        bytes[i] ^= 0x20;
        copies.push(Some(bytes.into()));
    }
    copies
}

pub(crate) async fn put(store: &Arc<dyn Store>, key: &str, bytes: Option<Bytes>) {
    store.delete(&[key.to_owned()]).await.unwrap();
    if let Some(bytes) = bytes {
        store.create(key, bytes).await.unwrap();
    }
}

/// Whether the restore was refused; if it was not, the result must be right.
async fn check_damaged(store: &Arc<dyn Store>, image: &[u8], key: &str) -> bool {
    match Outputs::new().restore(store, Target::Latest).await {
        // Damage in what is not needed goes unnoticed here; `verify` is for that.
        Ok((report, bytes)) => {
            let shorter = key.starts_with("log/") && report.pages.get() as usize * 512 == bytes.len();
            assert!(bytes == image || shorter, "damage in {key} gave a wrong database");
            false
        }
        Err(e) => {
            let text = e.to_string();
            assert!(!text.contains('\n') && !text.is_empty());
            assert!(!matches!(e, RestoreError::WrongChecksum { .. }), "nothing is named for damage in {key}: {text}");
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_missing_in_the_middle_is_named() {
    let mut history = History::new(memory(), 512).await;
    write_some(&mut history).await;
    let key = keys::segment(Seq::new(3).unwrap());
    put(&history.store, &key, None).await;
    let refused = Outputs::new().restore(&history.store, Target::Latest).await.unwrap_err();
    assert!(refused.to_string().contains(&key), "{refused}");
    assert_eq!(history.store.get(&key).await.unwrap_err().kind, StoreErrorKind::NotFound);
}
