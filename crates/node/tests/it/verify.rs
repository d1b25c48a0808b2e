//! What verifies must notice what is wrong.

use std::sync::Arc;

use rhyolite_format::{PageSize, Seq, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_node::points::{End, PointKind, PointsOptions, points};
use rhyolite_node::progress::Silent;
use rhyolite_node::verify::{AgainstOptions, Depth, VerifyOptions, VerifyReport, verify, verify_against};
use rhyolite_store::{Memory, Store};

use crate::history_builder::History;
use crate::restore::{damaged_copies, put, write_some};

async fn check(store: &Arc<dyn Store>, depth: Depth) -> VerifyReport {
    let options = VerifyOptions { store: Arc::clone(store), depth, threads: 2, progress: Arc::new(Silent) };
    verify(options).await.unwrap()
}

async fn sample() -> History {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    let files = vec![history.snapshot(Txid::new(9).unwrap()).await];
    history.manifest(files, Seq::FIRST, None).await;
    history
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_history_is_found_sound() {
    let mut history = sample().await;
    let pages = history.states[&history.last()].image.len() as u32 / 512;
    history.log_image(vec![0; 512 * pages as usize / 2], PageSize::new(512).unwrap());
    history.log_snapshot(vec![7; 4096], 1024);
    history.log_image(vec![8; 8192], PageSize::new(1024).unwrap());
    history.upload().await;
    for (depth, proved) in [(Depth::Newest, 1), (Depth::EveryPoint, history.states.len() as u64)] {
        let report = check(&history.store, depth).await;
        assert_eq!(report.damage, []);
        let last = &history.states[&history.last()];
        assert_eq!(report.newest, Some((last.pos, last.time)));
        assert_eq!((report.points, report.points_proved), (history.states.len() as u64, proved));
        assert_eq!(report.objects, history.seq.get());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_damage_to_any_object_is_found_and_named() {
    let history = sample().await;
    for entry in history.store.list_all("").await.unwrap() {
        if entry.key == keys::ID || entry.key == keys::MANIFEST {
            continue;
        }
        let good = history.store.get(&entry.key).await.unwrap().bytes;
        for (i, bad) in damaged_copies(&good).into_iter().enumerate() {
            let is_removed = bad.is_none();
            put(&history.store, &entry.key, bad).await;
            let report = check(&history.store, Depth::Newest).await;
            // The last segment may be gone without a trace: nothing says that it was there.
            let is_last = entry.key == keys::segment(history.seq.previous().unwrap());
            let named = report.damage.iter().any(|damage| damage.key == entry.key);
            assert!(named || (is_removed && is_last), "copy {i} of {}: {:?}", entry.key, report.damage);
        }
        put(&history.store, &entry.key, Some(good)).await;
    }
    assert!(check(&history.store, Depth::EveryPoint).await.is_sound());
}

/// Every object is sound alone, but a commit is of another history than its neighbours say.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_another_database_is_found() {
    let mut history = sample().await;
    let page_size = PageSize::new(512).unwrap();
    let mut image = history.states[&history.last()].image.clone();
    image[600] ^= 1;
    // The log believes that nothing but the last page changes, but the state it starts from is not the one before.
    history.states.get_mut(&history.last()).unwrap().image = image.clone();
    let last = image.len() - 1;
    image[last] ^= 1;
    history.log_image(image, page_size);
    history.upload().await;
    for depth in [Depth::Newest, Depth::EveryPoint] {
        let report = check(&history.store, depth).await;
        assert!(!report.is_sound());
        assert!(report.damage.iter().any(|damage| damage.detail.contains("add up")), "{:?}", report.damage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_compared_page_by_page() {
    let history = sample().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("copy.db");
    let options = |target| AgainstOptions {
        store: Arc::clone(&history.store),
        target,
        file: file.clone(),
        threads: 2,
        progress: Arc::new(Silent),
    };
    let last = &history.states[&history.last()];
    std::fs::write(&file, &last.image).unwrap();
    let report = verify_against(options(Target::Latest)).await.unwrap();
    assert!(report.is_equal());
    assert_eq!(report.pos, last.pos);
    let before = Target::Txid(history.last().previous().unwrap());
    assert!(!verify_against(options(before)).await.unwrap().is_equal());
    let mut changed = last.image.clone();
    changed[512 * 4] ^= 1;
    changed.truncate(last.image.len() - 512);
    std::fs::write(&file, &changed).unwrap();
    let report = verify_against(options(Target::Latest)).await.unwrap();
    let pages: Vec<u32> = report.pages.iter().map(|pgno| pgno.get()).collect();
    assert_eq!((report.differing, pages), (2, vec![5, last.image.len() as u32 / 512]));
    std::fs::write(folder.path().join("copy.db-wal"), "x").unwrap();
    assert!(verify_against(options(Target::Latest)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn points_are_listed_from_either_end() {
    let history = sample().await;
    let list = async |from: Option<u64>, to: Option<u64>, limit, end| {
        let txid = |n: Option<u64>| n.and_then(Txid::new);
        let store = Arc::clone(&history.store);
        let listed = points(PointsOptions { store, from: txid(from), to: txid(to), limit, end }).await.unwrap();
        (listed.points.iter().map(|point| point.pos.txid.get()).collect::<Vec<_>>(), listed.more)
    };
    let last = history.last().get();
    assert_eq!(list(None, None, 1000, End::Oldest).await, ((1..=last).collect(), false));
    assert_eq!(list(None, None, 3, End::Oldest).await, (vec![1, 2, 3], true));
    assert_eq!(list(Some(4), None, 2, End::Oldest).await, (vec![4, 5], true));
    assert_eq!(list(None, None, 2, End::Newest).await, (vec![last - 1, last], true));
    assert_eq!(list(Some(5), Some(6), 9, End::Newest).await, (vec![5, 6], false));
    let store = Arc::clone(&history.store);
    let all = points(PointsOptions { store, from: None, to: None, limit: 1000, end: End::Newest }).await.unwrap();
    for point in all.points {
        let state = &history.states[&point.pos.txid];
        let kind = if point.pos.txid == Txid::FIRST { PointKind::Snapshot } else { PointKind::Commit };
        assert_eq!((point.pos, point.time, point.kind), (state.pos, state.time, kind));
    }
}
