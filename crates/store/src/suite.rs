//! The conformance suite: what must hold of every backend and of every decorator that is not told to misbehave.
//!
//! Each case works below a fresh random prefix of the store that it is given and removes what it made. A case says what it
//! expected and what it saw, so the suite can also be pointed at a store of unknown quality.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, join_all};

use crate::{Object, Store, StoreError, StoreErrorKind, Version};

/// How much work the cases do.
#[derive(Clone, Copy, Debug)]
pub struct SuiteSize {
    /// Rounds of each race.
    pub rounds: usize,
    /// Tasks that race.
    pub racers: usize,
    /// Objects that are created for the long list.
    pub listed: usize,
    /// Bytes of the large upload.
    pub upload_bytes: usize,
}

impl Default for SuiteSize {
    fn default() -> Self {
        Self { rounds: 25, racers: 16, listed: 1100, upload_bytes: (20 << 20) + 17 }
    }
}

/// A case that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Name of the case.
    pub case: &'static str,
    /// What was expected and what was seen.
    pub what: String,
}

type Outcome = Result<(), String>;
type Case = fn(Arc<dyn Store>, SuiteSize) -> BoxFuture<'static, Outcome>;

/// Names and code of all cases.
const CASES: &[(&str, Case)] = &[
    ("objects come back as they were stored", |s, n| Box::pin(round_trip(s, n))),
    ("what is absent is not found", |s, _| Box::pin(absent(s))),
    ("empty objects are objects", |s, _| Box::pin(empty_objects(s))),
    ("ranges are exact", |s, _| Box::pin(ranges(s))),
    ("create never overwrites", |s, _| Box::pin(create_never_overwrites(s))),
    ("swap replaces only the expected version", |s, _| Box::pin(swap_semantics(s))),
    ("equal bytes are not an equal version", |s, _| Box::pin(no_aba(s))),
    ("delete is idempotent", |s, _| Box::pin(delete_semantics(s))),
    ("odd keys are kept", |s, _| Box::pin(odd_keys(s))),
    ("invalid keys are refused", |s, _| Box::pin(invalid_keys(s))),
    ("lists are sorted and whole", |s, n| Box::pin(long_list(s, n))),
    ("a prefix is a folder", |s, _| Box::pin(prefix_is_a_folder(s))),
    ("large objects are uploaded whole or not at all", |s, n| Box::pin(large_upload(s, n))),
    ("racing creates have one winner", |s, n| Box::pin(racing_creates(s, n))),
    ("racing swaps have one winner", |s, n| Box::pin(racing_swaps(s, n))),
    ("no swap is lost", |s, n| Box::pin(swap_counter(s, n))),
    ("readers never see a part", |s, n| Box::pin(no_partial_reads(s, n))),
    ("a sub-store is a prefix", |s, _| Box::pin(sub_store(s))),
];

/// Runs every case and gives those that do not hold.
pub async fn run(store: &Arc<dyn Store>, size: SuiteSize) -> Vec<Failure> {
    let mut failures = Vec::new();
    for &(case, code) in CASES {
        if let Err(what) = run_case(store, size, code).await {
            failures.push(Failure { case, what });
        }
    }
    failures
}

async fn run_case(store: &Arc<dyn Store>, size: SuiteSize, code: Case) -> Outcome {
    let random = getrandom::u64().map_err(|e| e.to_string())?;
    let sub = said("make a sub-store", store.sub(&format!("suite-{random:016x}")))?;
    let outcome = code(Arc::clone(&sub), size).await;
    // Errors of a case are worth more than those of the cleaning.
    let left = sub.list_all("").await.unwrap_or_default();
    for keys in left.chunks(1000) {
        let keys: Vec<String> = keys.iter().map(|e| e.key.clone()).collect();
        let _ = sub.delete(&keys).await;
    }
    outcome
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

fn said<T>(what: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn refused<T: Debug>(what: &str, result: Result<T, StoreError>, kind: StoreErrorKind) -> Outcome {
    match result {
        Err(e) if e.kind == kind => Ok(()),
        Err(e) => Err(format!("{what}: expected {kind:?}, got {:?}: {e}", e.kind)),
        Ok(value) => Err(format!("{what}: expected {kind:?}, but it succeeded: {value:?}")),
    }
}

/// Bytes that differ everywhere and between seeds.
fn pattern(seed: u64, len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(len + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_be_bytes());
    }
    out.truncate(len);
    out.freeze()
}

fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

async fn expect_object(store: &Arc<dyn Store>, key: &str, bytes: &Bytes, version: &Version) -> Outcome {
    let object = said("get", store.get(key).await)?;
    ensure!(object.bytes == *bytes, "{key}: {} bytes stored, other {} bytes read", bytes.len(), object.bytes.len());
    ensure!(object.size == bytes.len() as u64, "{key}: size {} for {} bytes", object.size, bytes.len());
    ensure!(object.version == *version, "{key}: written as {version}, read as {}", object.version);
    Ok(())
}

async fn round_trip(store: Arc<dyn Store>, _: SuiteSize) -> Outcome {
    for (i, len) in [1, 100, 4096, 65_537, 1 << 20].into_iter().enumerate() {
        let (key, bytes) = (format!("log/{i:016x}.seg"), pattern(len as u64, len));
        let version = said("create", store.create(&key, bytes.clone()).await)?;
        expect_object(&store, &key, &bytes, &version).await?;
        let meta = said("head", store.head(&key).await)?;
        ensure!(meta.size == len as u64, "head says {} for {len} bytes", meta.size);
        ensure!(meta.version == version, "create says {version}, head {}", meta.version);
        let age_ms = meta.modified.map_or(0, |t| (now_ms() - t.0).abs());
        ensure!(age_ms < 3_600_000, "the time of an object just created is {age_ms} ms off");
        said("verify", store.verify_created(&key, &version, len as u64).await)?;
        let wrong = store.verify_created(&key, &version, len as u64 + 1).await;
        refused("verify of a wrong size", wrong, StoreErrorKind::Corrupt)?;
    }
    Ok(())
}

fn now_ms() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    elapsed.as_millis() as i64
}

async fn absent(store: Arc<dyn Store>) -> Outcome {
    let kind = StoreErrorKind::NotFound;
    refused("get", store.get("no/such").await, kind)?;
    refused("get_range", store.get_range("no/such", 0..1).await, kind)?;
    refused("get_tail", store.get_tail("no/such", 1).await, kind)?;
    refused("head", store.head("no/such").await, kind)?;
    refused("verify", store.verify_created("no/such", &Version::new("\"x\""), 1).await, kind)?;
    ensure!(said("list", store.list_after("no", None, 10).await)?.is_empty(), "an absent folder is not empty");
    let version = said("create", store.create("a", text("1")).await)?;
    refused("swap of an absent object", store.swap_if("b", Some(&version), text("2")).await, StoreErrorKind::Conflict)?;
    refused("get after the refused swap", store.get("b").await, kind)?;
    // A folder is no object.
    said("create", store.create("c/d", text("1")).await)?;
    refused("get of a folder", store.get("c").await, kind)?;
    refused("head of a folder", store.head("c").await, kind)
}

async fn empty_objects(store: Arc<dyn Store>) -> Outcome {
    let version = said("create", store.create("empty", Bytes::new()).await)?;
    expect_object(&store, "empty", &Bytes::new(), &version).await?;
    let tail = said("get_tail", store.get_tail("empty", 10).await)?;
    ensure!(tail.bytes.is_empty() && tail.size == 0, "the end of an empty object: {tail:?}");
    refused("range", store.get_range("empty", 0..1).await, StoreErrorKind::Corrupt)?;
    let upload = said("upload", store.upload("uploaded").await)?;
    let version = said("finish", upload.finish().await)?;
    expect_object(&store, "uploaded", &Bytes::new(), &version).await?;
    ensure!(said("list", store.list_all("").await)?.len() == 2, "empty objects are missing in the list");
    Ok(())
}

async fn ranges(store: Arc<dyn Store>) -> Outcome {
    let bytes = pattern(7, 10_000);
    let version = said("create", store.create("a", bytes.clone()).await)?;
    for range in [0..1, 0..10_000, 9_999..10_000, 1..2, 4096..8192, 500..500] {
        let got = said("get_range", store.get_range("a", range.clone()).await)?;
        let wanted = bytes.slice(range.start as usize..range.end as usize);
        ensure!(got == wanted, "range {range:?}: other bytes, {} of them", got.len());
    }
    for range in [0..10_001, 9_999..10_001, 10_000..10_001, 20_000..20_001] {
        refused(&format!("range {range:?}"), store.get_range("a", range).await, StoreErrorKind::Corrupt)?;
    }
    for len in [0, 1, 32, 9_999, 10_000, 10_001, 1 << 40] {
        let Object { bytes: got, version: of, size } = said("get_tail", store.get_tail("a", len).await)?;
        let start = 10_000u64.saturating_sub(len) as usize;
        ensure!(got == bytes.slice(start..), "tail {len}: other bytes, {} of them", got.len());
        ensure!(size == 10_000 && of == version, "tail {len}: size {size}, version {of}");
    }
    Ok(())
}

async fn create_never_overwrites(store: Arc<dyn Store>) -> Outcome {
    let version = said("create", store.create("a", text("first")).await)?;
    refused("create again", store.create("a", text("second")).await, StoreErrorKind::Exists)?;
    expect_object(&store, "a", &text("first"), &version).await?;
    let second = store.swap_if("a", None, text("third")).await;
    refused("swap that expects nothing", second, StoreErrorKind::Conflict)?;
    expect_object(&store, "a", &text("first"), &version).await?;
    let version = said("swap that expects nothing", store.swap_if("b", None, text("x")).await)?;
    expect_object(&store, "b", &text("x"), &version).await
}

async fn swap_semantics(store: Arc<dyn Store>) -> Outcome {
    let first = said("create", store.create("a", text("1")).await)?;
    let second = said("swap", store.swap_if("a", Some(&first), text("22")).await)?;
    expect_object(&store, "a", &text("22"), &second).await?;
    refused("stale swap", store.swap_if("a", Some(&first), text("x")).await, StoreErrorKind::Conflict)?;
    let read = said("head", store.head("a").await)?.version;
    let third = said("swap of the version read", store.swap_if("a", Some(&read), text("333")).await)?;
    refused("stale swap", store.swap_if("a", Some(&second), text("x")).await, StoreErrorKind::Conflict)?;
    expect_object(&store, "a", &text("333"), &third).await?;
    said("delete", store.delete(&["a".to_owned()]).await)?;
    refused("swap of a deleted object", store.swap_if("a", Some(&third), text("x")).await, StoreErrorKind::Conflict)?;
    refused("get", store.get("a").await, StoreErrorKind::NotFound)
}

/// Versions may be content hashes: so bodies hold nonces. But different bytes must never be the same version, also
/// when they have the same length and are written at once.
async fn no_aba(store: Arc<dyn Store>) -> Outcome {
    let mut versions = vec![said("create", store.create("a", text("000")).await)?];
    for i in 1..20 {
        let last = versions.last().expect("at least the first");
        let version = said("swap", store.swap_if("a", Some(last), text(format!("{i:03}"))).await)?;
        ensure!(!versions.contains(&version), "version {version} came back");
        versions.push(version);
    }
    for stale in &versions[..versions.len() - 1] {
        refused("stale swap", store.swap_if("a", Some(stale), text("999")).await, StoreErrorKind::Conflict)?;
    }
    Ok(())
}

async fn delete_semantics(store: Arc<dyn Store>) -> Outcome {
    said("delete of nothing", store.delete(&[]).await)?;
    said("delete of absent objects", store.delete(&["x".to_owned(), "y/z".to_owned()]).await)?;
    for key in ["a", "b/c", "b/d", "e"] {
        said("create", store.create(key, text(key)).await)?;
    }
    let keys = ["a", "b/c", "absent", "b/absent"].map(str::to_owned);
    said("delete", store.delete(&keys).await)?;
    refused("get", store.get("a").await, StoreErrorKind::NotFound)?;
    said("delete again", store.delete(&keys).await)?;
    let left: Vec<_> = said("list", store.list_all("").await)?.into_iter().map(|e| e.key).collect();
    ensure!(left == ["b/d", "e"], "left after delete: {left:?}");
    let version = said("create after delete", store.create("a", text("new")).await)?;
    expect_object(&store, "a", &text("new"), &version).await
}

async fn odd_keys(store: Arc<dyn Store>) -> Outcome {
    let long = format!("{}/{}", "p".repeat(200), "q".repeat(255));
    let mut keys: Vec<&str> = vec![
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "a&b=c",
        "a?b",
        "a#b",
        "a'b",
        "a\"b",
        "(a)",
        "a,b;c",
        "a:b",
        "a@b",
        "a=b",
        "a$b",
        "a!b",
        "a*b",
        "~a",
        "_a",
        "-a",
        ".a",
        "a..b",
        "ä/ö/ü",
        "日本",
        "🦀",
        "a<b>",
        "[a]",
        "{a}",
        "a|b",
        "a^b",
        "a`b",
        "manifest.json",
        "db.sqlite-wal",
        &long,
    ];
    for key in &keys {
        said(key, store.create(key, text(key)).await)?;
    }
    for key in &keys {
        let object = said(key, store.get(key).await)?;
        ensure!(object.bytes == *key.as_bytes(), "{key} holds another object");
    }
    keys.sort_unstable();
    let listed: Vec<String> = said("list", store.list_all("").await)?.into_iter().map(|e| e.key).collect();
    ensure!(listed == keys, "stored as {keys:?}, listed as {listed:?}");
    for pair in keys.windows(2) {
        let next = said("list", store.list_after("", Some(pair[0]), 1).await)?;
        ensure!(next.len() == 1 && next[0].key == pair[1], "after {} comes {}, not {next:?}", pair[0], pair[1]);
    }
    let owned: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
    said("delete", store.delete(&owned).await)?;
    ensure!(said("list", store.list_all("").await)?.is_empty(), "odd keys were not deleted");
    Ok(())
}

async fn invalid_keys(store: Arc<dyn Store>) -> Outcome {
    let kind = StoreErrorKind::Invalid;
    for key in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "a\\b", ".rhyolite-x", "a/.rhyolite-x"] {
        refused(&format!("create {key:?}"), store.create(key, text("x")).await, kind)?;
        refused(&format!("get {key:?}"), store.get(key).await, kind)?;
        refused(&format!("swap {key:?}"), store.swap_if(key, None, text("x")).await, kind)?;
        refused(&format!("upload {key:?}"), store.upload(key).await, kind)?;
        refused(&format!("delete {key:?}"), store.delete(&[key.to_owned()]).await, kind)?;
    }
    refused("list ..", store.list_after("..", None, 1).await, kind)
}

async fn long_list(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    let keys: Vec<String> = (0..size.listed).map(|i| format!("log/{:016x}.seg", i * 7)).collect();
    for some in keys.chunks(16) {
        let created = join_all(some.iter().map(|key| store.create(key, text(key)))).await;
        created.into_iter().try_for_each(|r| said("create", r).map(|_| ()))?;
    }
    said("create", store.create("logs", text("not in the folder")).await)?;
    let all = said("list_all", store.list_all("log").await)?;
    ensure!(
        all.iter().map(|e| &e.key).eq(keys.iter()),
        "{} keys created, {} listed or out of order",
        keys.len(),
        all.len()
    );
    ensure!(all.iter().all(|e| e.size == e.key.len() as u64), "a size in the list is wrong");
    let (mut paged, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = said("list_after", store.list_after("log/", after.as_deref(), 333).await)?;
        ensure!(page.len() <= 333, "333 entries were asked for, {} came", page.len());
        let last = page.len() < 333;
        paged.extend(page.into_iter().map(|e| e.key));
        after = paged.last().cloned();
        if last {
            break;
        }
    }
    ensure!(paged == keys, "{} keys created, {} in pages", keys.len(), paged.len());
    // Between two keys, before the first, after the last.
    let middle = keys.len() / 2;
    let between = format!("{}0", keys[middle]);
    for (after, first) in
        [(between.as_str(), middle + 1), (keys[middle].as_str(), middle + 1), ("a", 0), ("z", keys.len())]
    {
        let page = said("list_after", store.list_after("log", Some(after), 5).await)?;
        let wanted = &keys[first..keys.len().min(first + 5)];
        ensure!(page.iter().map(|e| &e.key).eq(wanted.iter()), "after {after}: {page:?}, not {wanted:?}");
    }
    ensure!(said("list_after", store.list_after("log", None, 0).await)?.is_empty(), "a limit of 0 gave entries");
    Ok(())
}

async fn prefix_is_a_folder(store: Arc<dyn Store>) -> Outcome {
    // Sorted by bytes: '-' and '.' come before '/', '0' after it.
    let keys = ["a", "a-b", "a.b", "a/b", "a/b/c", "a/c", "a0", "b"];
    for key in keys.into_iter().filter(|k| *k != "a" && *k != "a/b") {
        said("create", store.create(key, text("x")).await)?;
    }
    for (prefix, wanted) in [
        ("", vec!["a-b", "a.b", "a/b/c", "a/c", "a0", "b"]),
        ("a", vec!["a/b/c", "a/c"]),
        ("a/", vec!["a/b/c", "a/c"]),
        ("a/b", vec!["a/b/c"]),
        ("b", vec![]),
    ] {
        let found: Vec<_> = said("list", store.list_all(prefix).await)?.into_iter().map(|e| e.key).collect();
        ensure!(found == wanted, "below {prefix:?}: {found:?}, not {wanted:?}");
    }
    Ok(())
}

async fn large_upload(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    let bytes = pattern(3, size.upload_bytes);
    let mut upload = said("upload", store.upload("big").await)?;
    for part in bytes.chunks(300_000) {
        said("write", upload.write(bytes.slice_ref(part)).await)?;
    }
    refused("get before the end", store.get("big").await, StoreErrorKind::NotFound)?;
    let version = said("finish", upload.finish().await)?;
    expect_object(&store, "big", &bytes, &version).await?;
    let meta = said("head", store.head("big").await)?;
    ensure!(meta.version == version, "finished as {version}, head says {}", meta.version);
    let middle = bytes.len() as u64 / 2;
    let part = said("get_range", store.get_range("big", middle - 100..middle + 100).await)?;
    ensure!(part == bytes.slice(middle as usize - 100..middle as usize + 100), "the middle differs");
    let mut upload = said("upload", store.upload("given-up").await)?;
    said("write", upload.write(bytes.clone()).await)?;
    said("abort", upload.abort().await)?;
    drop(said("upload", store.upload("dropped").await)?);
    let keys: Vec<_> = said("list", store.list_all("").await)?.into_iter().map(|e| e.key).collect();
    ensure!(keys == ["big"], "an upload that was given up left {keys:?}");
    Ok(())
}

/// Runs the calls at the same time, on tasks of their own; `None` for each that was refused with `kind`.
async fn race<F>(calls: Vec<F>, kind: StoreErrorKind) -> Result<Vec<Option<Version>>, String>
where
    F: Future<Output = Result<Version, StoreError>> + Send + 'static,
{
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(match task.await.map_err(|e| e.to_string())? {
            Ok(version) => Some(version),
            Err(e) if e.kind == kind => None,
            Err(e) => return Err(format!("a racer failed otherwise: {e}")),
        });
    }
    Ok(results)
}

async fn racing_creates(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    for round in 0..size.rounds {
        let key = format!("race/{round}");
        let calls = (0..size.racers).map(|i| {
            let (store, key) = (Arc::clone(&store), key.clone());
            async move { store.create(&key, text(format!("racer {i}"))).await }
        });
        let results = race(calls.collect(), StoreErrorKind::Exists).await?;
        let winners: Vec<usize> = (0..size.racers).filter(|&i| results[i].is_some()).collect();
        ensure!(winners.len() == 1, "round {round}: winners {winners:?}");
        let (winner, version) = (winners[0], results[winners[0]].clone().expect("the winner has a version"));
        expect_object(&store, &key, &text(format!("racer {winner}")), &version).await?;
    }
    Ok(())
}

async fn racing_swaps(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    let mut version = said("create", store.create("race", text("start")).await)?;
    for round in 0..size.rounds {
        let calls = (0..size.racers).map(|i| {
            let (store, expected) = (Arc::clone(&store), version.clone());
            async move { store.swap_if("race", Some(&expected), text(format!("round {round} racer {i}"))).await }
        });
        let results = race(calls.collect(), StoreErrorKind::Conflict).await?;
        let winners: Vec<usize> = (0..size.racers).filter(|&i| results[i].is_some()).collect();
        ensure!(winners.len() == 1, "round {round}: winners {winners:?}");
        version = results[winners[0]].clone().expect("the winner has a version");
        let bytes = text(format!("round {round} racer {}", winners[0]));
        expect_object(&store, "race", &bytes, &version).await?;
    }
    Ok(())
}

/// Several tasks add one, each again and again: the sum must be right.
async fn swap_counter(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    const WRITERS: usize = 4;
    said("create", store.create("counter", text("0 start")).await)?;
    let adds = size.rounds;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < adds {
                    let object = store.get("counter").await?;
                    let value: usize = std::str::from_utf8(&object.bytes)
                        .ok()
                        .and_then(|t| t.split(' ').next())
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(usize::MAX / 2);
                    let next = text(format!("{} writer {writer} add {done}", value + 1));
                    match store.swap_if("counter", Some(&object.version), next).await {
                        Ok(_) => done += 1,
                        Err(e) if e.kind == StoreErrorKind::Conflict => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        said("count", task.await.map_err(|e| e.to_string())?)?;
    }
    let object = said("get", store.get("counter").await)?;
    let total = WRITERS * adds;
    ensure!(object.bytes.starts_with(format!("{total} ").as_bytes()), "counted to {:?}, not {total}", object.bytes);
    Ok(())
}

/// An object of which every byte is the same; a mixture of two would show.
fn uniform(round: usize) -> Bytes {
    Bytes::from(vec![b'a' + (round % 26) as u8; 100_000 + round])
}

async fn no_partial_reads(store: Arc<dyn Store>, size: SuiteSize) -> Outcome {
    let mut version = said("create", store.create("swapped", uniform(0)).await)?;
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = size.rounds;
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            tokio::spawn(async move { watch(&store, &stop, rounds).await })
        })
        .collect();
    let mut written = Ok(());
    for round in 1..rounds {
        let created = said("create", store.create(&format!("created/{round}"), uniform(round)).await);
        let swapped = said("swap", store.swap_if("swapped", Some(&version), uniform(round)).await);
        match (created, swapped) {
            (Ok(_), Ok(next)) => version = next,
            (Err(e), _) | (_, Err(e)) => {
                written = Err(e);
                break;
            }
        }
    }
    stop.store(true, Ordering::Release);
    for reader in readers {
        reader.await.map_err(|e| e.to_string())??;
    }
    written
}

async fn watch(store: &Arc<dyn Store>, stop: &AtomicBool, rounds: usize) -> Outcome {
    let mut next = 1;
    while !stop.load(Ordering::Acquire) {
        let swapped = said("get", store.get("swapped").await)?;
        whole("swapped", &swapped)?;
        let tail = said("get_tail", store.get_tail("swapped", 1 << 20).await)?;
        whole("tail of swapped", &tail)?;
        if next < rounds {
            match store.get(&format!("created/{next}")).await {
                Ok(object) => {
                    whole("created", &object)?;
                    next += 1;
                }
                Err(e) if e.kind == StoreErrorKind::NotFound => {}
                Err(e) => return Err(format!("get: {e}")),
            }
        }
    }
    Ok(())
}

fn whole(what: &str, object: &Object) -> Outcome {
    let round = object.bytes.len().wrapping_sub(100_000);
    ensure!(round < 10_000, "{what}: {} bytes, a length that was never written", object.bytes.len());
    ensure!(object.bytes == uniform(round), "{what}: a mixture of two objects");
    ensure!(object.size == object.bytes.len() as u64, "{what}: size {}, {} bytes", object.size, object.bytes.len());
    Ok(())
}

async fn sub_store(store: Arc<dyn Store>) -> Outcome {
    let sub = said("sub", store.sub("x/y/"))?;
    let version = said("create", sub.create("log/1", text("1")).await)?;
    expect_object(&store, "x/y/log/1", &text("1"), &version).await?;
    said("create", store.create("x/z", text("2")).await)?;
    said("create", sub.create("id.json", text("3")).await)?;
    let keys: Vec<_> = said("list", sub.list_all("").await)?.into_iter().map(|e| e.key).collect();
    ensure!(keys == ["id.json", "log/1"], "in the sub-store: {keys:?}");
    let after = said("list", sub.list_after("", Some("id.json"), 10).await)?;
    ensure!(after.len() == 1 && after[0].key == "log/1", "after id.json: {after:?}");
    said("delete", sub.delete(&["log/1".to_owned()]).await)?;
    refused("get", store.get("x/y/log/1").await, StoreErrorKind::NotFound)?;
    refused("sub ..", store.sub("..").map(|_| ()), StoreErrorKind::Invalid)
}
