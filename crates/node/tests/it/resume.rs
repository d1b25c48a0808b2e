//! Restores that are interrupted, and restores over a file that is nearly right.

use std::path::Path;
use std::sync::Arc;

use rhyolite_format::{Seq, Txid};
use rhyolite_logic::Target;
use rhyolite_node::restore::{Existing, RestoreError, RestoreOptions, RestoreReport, restore};
use rhyolite_store::{Fault, Faulty, Memory, Operation, Rule, Store};

use crate::history_builder::History;
use crate::restore::options;

/// A snapshot of some 25 MB, read in many pieces, and a few small transactions after it.
async fn sample() -> History {
    let mut history = History::new(Arc::new(Memory::new()), 4096).await;
    history.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
    history.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO t (v) SELECT randomblob(3500) FROM n",
    );
    history.upload().await;
    change(&mut history, 5).await;
    let files = vec![history.snapshot(history.last()).await];
    history.manifest(files, Seq::FIRST, None).await;
    history
}

async fn change(history: &mut History, times: u64) {
    for i in 0..times {
        history.run(&format!("UPDATE t SET v = randomblob(3500) WHERE id % 1000 = {i}"));
    }
    history.upload().await;
}

async fn again(store: &Arc<dyn Store>, path: &Path, existing: Existing, target: Target) -> RestoreReport {
    restore(RestoreOptions { existing, ..options(store, path, target) }).await.unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Lets some reads through, then none; gives the folder with what is left.
async fn interrupt(history: &History, reads: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(Arc::clone(&history.store));
    faulty.script(Rule { skip: reads, ..Rule::next(Operation::GetRange, u64::MAX, Fault::Refuse) });
    let store: Arc<dyn Store> = Arc::new(faulty);
    let failed = restore(options(&store, &folder.path().join("copy.db"), Target::Latest)).await.unwrap_err();
    assert!(matches!(failed, RestoreError::Store(_)), "{failed}");
    let left = names(folder.path());
    assert!(left.is_empty() || left == ["copy.db-rhyolite-restored", "copy.db-rhyolite-restoring"], "{left:?}");
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_goes_on() {
    let history = sample().await;
    let last = &history.states[&history.last()];
    let whole = tempfile::tempdir().unwrap();
    let path = whole.path().join("copy.db");
    let full = again(&history.store, &path, Existing::Refuse, Target::Latest).await;
    assert_eq!(full.pages_reused, 0);
    for reads in [0, 1, 3, 5, 6] {
        let folder = interrupt(&history, reads).await;
        let path = folder.path().join("copy.db");
        let report = again(&history.store, &path, Existing::Refuse, Target::Latest).await;
        assert_eq!(report.pos, last.pos);
        assert!(std::fs::read(&path).unwrap() == last.image);
        assert_eq!(names(folder.path()), ["copy.db"]);
        if reads >= 5 {
            assert!(report.pages_reused > 0 && report.bytes_fetched < full.bytes_fetched, "{report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_not_trusted() {
    let history = sample().await;
    let last = &history.states[&history.last()];
    type Spoil = fn(&mut Vec<u8>, &mut Vec<u8>);
    let spoil: [Spoil; 5] = [
        |draft, _| draft.iter_mut().step_by(50_000).for_each(|b| *b ^= 1),
        |draft, _| draft.truncate(100_000),
        |_, list| list.truncate(list.len() - 3),
        |_, list| list[60] ^= 1,
        |_, list| list[30] ^= 1,
    ];
    for spoil in spoil {
        let folder = interrupt(&history, 6).await;
        let (draft, list) = ("copy.db-rhyolite-restoring", "copy.db-rhyolite-restored");
        let read = |name| std::fs::read(folder.path().join(name)).unwrap();
        let (mut draft_bytes, mut list_bytes) = (read(draft), read(list));
        spoil(&mut draft_bytes, &mut list_bytes);
        std::fs::write(folder.path().join(draft), draft_bytes).unwrap();
        std::fs::write(folder.path().join(list), list_bytes).unwrap();
        let path = folder.path().join("copy.db");
        again(&history.store, &path, Existing::Refuse, Target::Latest).await;
        assert!(std::fs::read(&path).unwrap() == last.image);
        assert_eq!(names(folder.path()), ["copy.db"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_goes_on_to_a_later_state() {
    let mut history = sample().await;
    let folder = interrupt(&history, 6).await;
    change(&mut history, 3).await;
    let path = folder.path().join("copy.db");
    let report = again(&history.store, &path, Existing::Refuse, Target::Latest).await;
    assert!(report.pages_reused > 0, "{report:?}");
    assert!(std::fs::read(&path).unwrap() == history.states[&history.last()].image);
    // And to an earlier one, of which nothing is known.
    let folder = interrupt(&history, 6).await;
    let path = folder.path().join("copy.db");
    let early = Txid::new(3).unwrap();
    let report = again(&history.store, &path, Existing::Refuse, Target::Txid(early)).await;
    assert_eq!(report.pages_reused, 0);
    assert!(std::fs::read(&path).unwrap() == history.states[&early].image);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_fetched_when_a_file_is_reused() {
    let mut history = sample().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.db");
    let first = again(&history.store, &path, Existing::Refuse, Target::Latest).await;
    change(&mut history, 4).await;
    let files = vec![history.snapshot(history.last()).await];
    history.manifest(files, Seq::FIRST, None).await;
    let report = again(&history.store, &path, Existing::Reuse, Target::Latest).await;
    assert!(std::fs::read(&path).unwrap() == history.states[&history.last()].image);
    assert!(report.pages_reused > 5900 && report.bytes_fetched * 10 < first.bytes_fetched, "{report:?}");
    // Nothing has changed since.
    let report = again(&history.store, &path, Existing::Reuse, Target::Latest).await;
    assert_eq!(u64::from(report.pages.get()), report.pages_reused);
    assert!(std::fs::read(&path).unwrap() == history.states[&history.last()].image);
    // Back in time there is nothing to reuse.
    let early = Txid::new(3).unwrap();
    let report = again(&history.store, &path, Existing::Reuse, Target::Txid(early)).await;
    assert_eq!(report.pages_reused, 0);
    assert!(std::fs::read(&path).unwrap() == history.states[&early].image);
    for other in [&b"no database"[..], &history.states[&early].image[..4096 * 3], &[]] {
        std::fs::write(&path, other).unwrap();
        let report = again(&history.store, &path, Existing::Reuse, Target::Latest).await;
        assert_eq!(report.pages_reused, 0);
        assert!(std::fs::read(&path).unwrap() == history.states[&history.last()].image);
    }
    assert_eq!(names(folder.path()), ["copy.db"]);
}
