//! Pinned positions outlive every retention rule, also when they are pinned while somebody merges.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_format::{Seq, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_node::history::maintain;
use rhyolite_node::pins::{self, PinError};
use rhyolite_node::restore::RestoreError;
use rhyolite_store::{Entry, Memory, Meta, Object, Store, StoreError, Upload, Version};

use crate::history::{check_sound, manifest, options, run};
use crate::history_builder::{History, START, TICK};
use crate::program::Folder;
use crate::restore::{Outputs, check_every_point, write_some};

fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

async fn sample() -> (History, i64) {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    history.manifest(Vec::new(), Seq::FIRST, None).await;
    let end = START + TICK * history.last().get() as i64;
    (history, end)
}

async fn pin(store: &Arc<dyn Store>, name: &str, n: u64) {
    let pinned = pins::add(Arc::clone(store), name, Target::Txid(txid(n))).await.unwrap();
    assert_eq!((pinned.pin.name.as_str(), pinned.pin.pos.txid), (name, txid(n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_stays_and_goes_when_the_pin_goes() {
    let (mut history, end) = sample().await;
    let store = Arc::clone(&history.store);
    pin(&store, "in the log", 3).await;
    run(&store, end + 6000).await;
    pin(&store, "in a bundle", 7).await;
    pin(&store, "in a bundle", 7).await;
    let last = history.last();
    let all = history.states.clone();
    let mut now = end;
    for _ in 0..20 {
        now += 20_000_000;
        run(&store, now).await;
    }
    for n in [txid(3), txid(7), last] {
        let (_, bytes) = Outputs::new().restore(&store, Target::Txid(n)).await.unwrap();
        assert!(bytes == all[&n].image, "{n}");
    }
    let listed = pins::list(Arc::clone(&store)).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|p| (p.pin.name.as_str(), p.pin.pos, p.time)).collect();
    let state = |n: u64| (all[&txid(n)].pos, Some(all[&txid(n)].time));
    let expected = [("in a bundle", 7), ("in the log", 3)].map(|(name, n)| (name, state(n).0, state(n).1));
    assert_eq!(listed, expected);
    check_sound(&store).await;
    for name in ["in a bundle", "in the log"] {
        pins::remove(&*store, name).await.unwrap();
    }
    for _ in 0..20 {
        now += 20_000_000;
        run(&store, now).await;
    }
    for n in [3, 7] {
        let gone = Outputs::new().restore(&store, Target::Txid(txid(n))).await.unwrap_err();
        assert!(matches!(gone, RestoreError::Plan(_)), "{gone}");
    }
    history.states.retain(|n, _| *n == last);
    check_every_point(&history).await;
    check_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_can_be_restored_is_pinned() {
    let (history, _) = sample().await;
    let store = &history.store;
    let before = manifest(store).await;
    let add = async |name: &str, n: u64| pins::add(Arc::clone(store), name, Target::Txid(txid(n))).await.unwrap_err();
    assert!(matches!(add("far", 999).await, PinError::Read(RestoreError::Plan(_))));
    assert!(matches!(add("", 1).await, PinError::Name));
    assert!(matches!(add("two\nlines", 1).await, PinError::Name));
    assert!(matches!(add(&"x".repeat(256), 1).await, PinError::Name));
    assert_eq!(manifest(store).await, before);
    pin(store, "a", 2).await;
    assert!(matches!(add("a", 3).await, PinError::Taken(pin) if pin.pos.txid == txid(2)));
    let unknown = pins::remove(&**store, "b").await.unwrap_err();
    assert_eq!(unknown.to_string(), "there is no pin \"b\"; there are a");
}

/// A store that pins a position right before the first merged file is written.
#[derive(Debug)]
struct PinsMeanwhile {
    inner: Arc<dyn Store>,
    txid: Txid,
    done: AtomicBool,
}

#[async_trait]
impl Store for PinsMeanwhile {
    fn capabilities(&self) -> rhyolite_store::Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }
    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.inner.get_tail(key, len).await
    }
    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.inner.head(key).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.inner.create(key, bytes).await
    }
    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        self.inner.swap_if(key, expected, bytes).await
    }
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let is_merged = keys::parse_file(key).is_some_and(|name| name.level == keys::MERGED_LEVEL_MIN);
        if is_merged && !self.done.swap(true, Ordering::SeqCst) {
            let target = Target::Txid(self.txid);
            pins::add(Arc::clone(&self.inner), "meanwhile", target).await.unwrap();
        }
        self.inner.upload(key).await
    }
    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.inner.delete(keys).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_was_planned_before_the_pin_is_thrown_away() {
    for n in 2..=15 {
        let (history, end) = sample().await;
        run(&history.store, end + 6000).await;
        let inner = Arc::clone(&history.store);
        let pinning: Arc<dyn Store> = Arc::new(PinsMeanwhile { inner, txid: txid(n), done: AtomicBool::new(false) });
        maintain(options(&pinning, end + 100_000)).await.unwrap();
        assert_eq!(manifest(&history.store).await.pins.len(), 1, "pinned meanwhile");
        let (_, bytes) = Outputs::new().restore(&history.store, Target::Txid(txid(n))).await.unwrap();
        assert!(bytes == history.states[&txid(n)].image, "{n}");
        check_sound(&history.store).await;
    }
}

#[test]
fn the_command() {
    let folder = Folder::new();
    crate::cli::replicate_two_commits(&folder);
    let pinned = folder.run(&["pin", "./backup", "first", "--txid", "2", "--json"]).json();
    assert_eq!((pinned["name"].as_str(), pinned["txid"].as_str()), (Some("first"), Some("0000000000000002")));
    let listed = folder.run(&["pin", "./backup", "--list"]);
    assert!(listed.stdout.contains("first  0000000000000002"), "{listed:?}");
    assert_eq!(folder.run(&["restore", "./backup", "-o", "copy.db", "--pin", "first"]).code, 0);
    assert_eq!(folder.run(&["verify", "./backup", "--against", "copy.db", "--pin", "first"]).code, 0);
    for (arguments, code, line) in [
        (&["pin", "./backup"][..], 2, "<NAME>"),
        (&["pin", "./backup", ""], 2, "needs a name"),
        (&["pin", "./backup", "x", "--txid", "99"], 5, "TXID 0000000000000063"),
        (&["pin", "./backup", "first", "--txid", "1"], 1, "holds TXID 0000000000000002 already"),
        (&["pin", "./backup", "second", "--remove"], 5, "there is no pin \"second\"; there are first"),
        (&["pin", "./missing", "x"], 5, "holds no replicated database"),
        (&["restore", "./backup", "-o", "x.db", "--pin", "second"], 5, "there is no pin \"second\""),
        (&["restore", "./backup", "-o", "x.db", "--pin", "first", "--txid", "1"], 2, "cannot be used with"),
    ] {
        crate::cli::check_refused(&folder, arguments, code, line);
    }
    assert_eq!(folder.run(&["pin", "./backup", "first", "--remove"]).code, 0);
    assert_eq!(folder.run(&["pin", "./backup", "--list", "--json"]).stdout, "");
}
