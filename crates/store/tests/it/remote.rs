//! The remote backends against real servers: the suite, lost answers, what a request costs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_store::suite::{self, SuiteSize};
use rhyolite_store::{
    Environment, RetryPolicy, Retrying, Store, StoreError, StoreErrorKind as Kind, StoreOptions, open,
};

use crate::conformance::check;
use crate::proxy::{Act, Proxy};
use crate::servers::{Server, azurite, gcs, make_bucket, make_container, moto};

fn options(variables: &[(&str, &str)]) -> StoreOptions {
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    StoreOptions { environment: Environment::Fixed(variables) }
}

fn s3(bucket: &str, port: u16) -> Arc<dyn Store> {
    let url = format!("s3://{bucket}/some/prefix?endpoint=http://127.0.0.1:{port}&region=us-east-1");
    open(&url, &options(&[("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")])).unwrap()
}

fn new_bucket(server: &Server) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("bucket-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    make_bucket(server.port, &name);
    name
}

/// Smaller than the default where a server of some 60 requests a second makes it slow; races in full.
fn remote_size() -> SuiteSize {
    SuiteSize { listed: 1030, ..SuiteSize::default() }
}

/// A server, a proxy before it, a store behind that: bare, and tried again.
struct Rig {
    _server: Arc<Server>,
    proxy: Proxy,
    bare: Arc<dyn Store>,
    store: Retrying,
    direct: Arc<dyn Store>,
}

async fn rig() -> Option<Rig> {
    let server = moto()?;
    let bucket = new_bucket(&server);
    let proxy = Proxy::start(server.port).await;
    let bare = s3(&bucket, proxy.port);
    let policy = RetryPolicy {
        attempts_max: 4,
        backoff_first: Duration::from_millis(5),
        attempt_timeout: Duration::from_secs(2),
        bytes_per_second_min: 1 << 20,
        ..RetryPolicy::default()
    };
    let store = Retrying::new(Arc::clone(&bare), policy);
    let direct = s3(&bucket, server.port);
    Some(Rig { _server: server, proxy, bare, store, direct })
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn kind<T>(result: Result<T, StoreError>) -> Option<Kind> {
    result.err().map(|e| e.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let Some(server) = moto() else { return };
    check(s3(&new_bucket(&server), server.port), remote_size()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms_when_tried_again() {
    let Some(server) = moto() else { return };
    let store = Retrying::new(s3(&new_bucket(&server), server.port), RetryPolicy::default());
    let size = SuiteSize { rounds: 5, racers: 16, listed: 40, upload_bytes: 9 << 20 };
    check(Arc::new(store), size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_conforms() {
    let Some(server) = azurite() else { return };
    // The account and key that every Azurite has; they are public.
    let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let endpoint = format!("http://127.0.0.1:{}/devstoreaccount1", server.port);
    let container = format!("c{}", std::process::id());
    make_container(server.port, "devstoreaccount1", &container, key);
    let url = format!("abs://devstoreaccount1@{container}/p?endpoint={endpoint}");
    let store = open(&url, &options(&[("AZURE_STORAGE_KEY", key)])).unwrap();
    check(store, remote_size()).await;
}

fn google(server: &Server) -> Arc<dyn Store> {
    let url = format!("gs://bucket/some/prefix?endpoint=http://127.0.0.1:{}&anonymous=true", server.port);
    open(&url, &options(&[])).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_conforms() {
    let Some(server) = gcs(&[]) else { return };
    check(google(&server), remote_size()).await;
}

/// The service takes one write of a name a second and refuses others with 429: the same holds, later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_conforms_within_its_limit_of_writes() {
    let Some(server) = gcs(&["--once-a-second"]) else { return };
    let policy = RetryPolicy { attempts_max: 20, ..RetryPolicy::default() };
    let store = Retrying::new(google(&server), policy);
    check(Arc::new(store), SuiteSize { rounds: 1, racers: 2, listed: 20, upload_bytes: 9 << 20 }).await;
}

/// The suite would notice if our conditions did not reach the service, or if it did not heed them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_without_conditions_fails_the_suite() {
    let Some(server) = gcs(&["--ignore-conditions"]) else { return };
    let size = SuiteSize { rounds: 2, racers: 4, listed: 20, upload_bytes: 100_000 };
    let failures = suite::run(&google(&server), size).await;
    // What needs no conditions works: it fails for the right reason.
    assert!(failures.len() < 8, "{failures:#?}");
    let noticed = |case: &str| failures.iter().any(|failure| failure.case == case);
    for case in ["create never overwrites", "swap replaces only the expected version", "no swap is lost"] {
        assert!(noticed(case), "{case}: {failures:#?}");
    }
}

#[tokio::test]
async fn a_lost_reply_is_settled_by_reading_back() {
    let Some(r) = rig().await else { return };
    for (i, act) in
        [Act::DropReply, Act::AnswerAfter(500), Act::AnswerAfter(503), Act::AnswerAfter(409)].into_iter().enumerate()
    {
        let key = format!("create-{i}");
        // Bare: never "exists", for nobody but us has written.
        r.proxy.script("PUT", &key, 1, act);
        let bare = kind(r.bare.create(&format!("{key}-bare"), b("mine")).await);
        let expected = if act == Act::AnswerAfter(409) { Kind::Exists } else { Kind::Ambiguous };
        assert_eq!(bare, Some(expected), "{act:?}");
        // Tried again: it is known that it was we.
        r.proxy.script("PUT", &key, 1, act);
        let version = r.store.create(&key, b("mine")).await.unwrap_or_else(|e| panic!("{act:?}: {e}"));
        assert_eq!(r.direct.head(&key).await.unwrap().version, version);
        assert_eq!(kind(r.store.create(&key, b("another's")).await), Some(Kind::Exists));

        r.proxy.script("PUT", &key, 1, act);
        let next = r.store.swap_if(&key, Some(&version), b("mine 2")).await.unwrap_or_else(|e| panic!("{act:?}: {e}"));
        let read = r.direct.get(&key).await.unwrap();
        assert_eq!((read.version, read.bytes), (next, b("mine 2")), "{act:?}");
        assert_eq!(kind(r.store.swap_if(&key, Some(&version), b("stale")).await), Some(Kind::Conflict));
    }
}

#[tokio::test]
async fn conflict_without_a_conflict_is_not_believed() {
    let Some(r) = rig().await else { return };
    r.proxy.script("PUT", "a", 1, Act::AnswerBefore(409));
    assert_eq!(kind(r.bare.create("a", b("1")).await), Some(Kind::Ambiguous), "nothing is there");
    r.proxy.script("PUT", "a", 2, Act::AnswerBefore(409));
    let version = r.store.create("a", b("1")).await.unwrap();
    r.proxy.script("PUT", "a", 1, Act::AnswerBefore(409));
    assert_eq!(kind(r.bare.swap_if("a", Some(&version), b("2")).await), Some(Kind::Ambiguous));
    r.proxy.script("PUT", "a", 2, Act::AnswerBefore(409));
    r.store.swap_if("a", Some(&version), b("2")).await.unwrap();
    assert_eq!(r.direct.get("a").await.unwrap().bytes, "2");
}

#[tokio::test]
async fn refusals_keep_their_meaning() {
    let Some(r) = rig().await else { return };
    for (status, expected) in [(403, Kind::Denied), (400, Kind::Invalid), (507, Kind::Full), (501, Kind::Invalid)] {
        r.proxy.script("PUT", "a", 1, Act::AnswerBefore(status));
        let error = r.store.create("a", b("1")).await.unwrap_err();
        assert_eq!(error.kind, expected, "{error}");
        assert!(error.reason.contains(&format!("{status} Injected")), "{error}");
    }
    assert_eq!(kind(r.direct.head("a").await), Some(Kind::NotFound));
    let server = moto().unwrap();
    let absent = s3("no-such-bucket", server.port);
    for result in [kind(absent.create("a", b("1")).await), kind(absent.get("a").await), kind(absent.list_all("").await)]
    {
        assert_eq!(result, Some(Kind::NotFound));
    }
}

#[tokio::test]
async fn cut_and_hanging_answers_are_read_again() {
    let Some(r) = rig().await else { return };
    let bytes = Bytes::from(vec![7; 300_000]);
    r.direct.create("a", bytes.clone()).await.unwrap();
    for act in [Act::Truncate(1000), Act::HangInBody(1000), Act::Hang, Act::AnswerBefore(503), Act::DropReply] {
        r.proxy.script("GET", "/a", 1, act);
        assert_eq!(r.store.get("a").await.unwrap().bytes, bytes, "{act:?}");
        r.proxy.script("GET", "/a", 1, act);
        assert_eq!(r.store.get_range("a", 5..200_000).await.unwrap(), bytes.slice(5..200_000), "{act:?}");
        r.proxy.script("GET", "/a", 1, act);
        assert_eq!(r.store.get_tail("a", 100_000).await.unwrap().bytes, bytes.slice(200_000..), "{act:?}");
    }
    r.proxy.script("GET", "list-type", 1, Act::Truncate(30));
    assert_eq!(r.store.list_all("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_that_hangs_holds_nobody_up() {
    let Some(r) = rig().await else { return };
    r.proxy.script("PUT", "", usize::MAX, Act::Hang);
    r.proxy.script("GET", "", usize::MAX, Act::Hang);
    let start = Instant::now();
    let error = r.bare.create("a", b("1")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Ambiguous, "{error}");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(kind(r.store.create("a", b("1")).await), Some(Kind::Ambiguous));
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_listening_is_unavailable_not_ambiguous() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = s3("bucket", port);
    assert_eq!(kind(store.create("a", b("1")).await), Some(Kind::Unavailable));
    assert_eq!(kind(store.get("a").await), Some(Kind::Unavailable));
}

#[tokio::test]
async fn a_create_that_was_not_stored_is_found_out() {
    let Some(r) = rig().await else { return };
    r.proxy.script("PUT", "a", 1, Act::Pretend);
    let version = r.store.create("a", b("1")).await.unwrap();
    assert_eq!(kind(r.store.verify_created("a", &version, 1).await), Some(Kind::NotFound));
    let version = r.store.create("a", b("1")).await.unwrap();
    r.store.verify_created("a", &version, 1).await.unwrap();
}

#[tokio::test]
async fn uploads_survive_faults_in_their_middle() {
    let Some(r) = rig().await else { return };
    let bytes = Bytes::from((0..20_000_000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    r.proxy.script("PUT", "partNumber=2", 1, Act::DropReply);
    r.proxy.script("PUT", "partNumber=1", 1, Act::AnswerBefore(503));
    r.proxy.script("POST", "uploadId", 1, Act::DropReply);
    let mut upload = r.store.upload("big").await.unwrap();
    for part in bytes.chunks(1 << 20) {
        upload.write(bytes.slice_ref(part)).await.unwrap();
    }
    let version = upload.finish().await.unwrap();
    let object = r.direct.get("big").await.unwrap();
    assert!(object.bytes == bytes && object.version == version);
}

/// What each call costs: these figures are in the documentation of the crate's users' bills.
#[tokio::test]
async fn requests_per_call() {
    let Some(r) = rig().await else { return };
    let counts = |wanted: &[(&str, usize)]| {
        let wanted: BTreeMap<String, usize> = wanted.iter().map(|(m, n)| ((*m).to_owned(), *n)).collect();
        assert_eq!(r.proxy.take_counts(), wanted);
    };
    let version = r.store.create("a", b("12345")).await.unwrap();
    counts(&[("PUT", 1)]);
    r.store.verify_created("a", &version, 5).await.unwrap();
    counts(&[("HEAD", 1)]);
    r.store.swap_if("a", Some(&version), b("67890")).await.unwrap();
    counts(&[("PUT", 1)]);
    r.store.get("a").await.unwrap();
    r.store.get_range("a", 1..3).await.unwrap();
    r.store.get_tail("a", 3).await.unwrap();
    counts(&[("GET", 3)]);
    r.store.list_after("", None, 1000).await.unwrap();
    counts(&[("GET", 1)]);
    r.store.create("a", b("again")).await.unwrap_err();
    counts(&[("GET", 1), ("PUT", 1)]);
    r.store.delete(&["a".to_owned(), "b".to_owned(), "c".to_owned()]).await.unwrap();
    counts(&[("POST", 1)]);
    let mut upload = r.store.upload("small").await.unwrap();
    upload.write(b("small")).await.unwrap();
    upload.finish().await.unwrap();
    counts(&[("PUT", 1)]);
    let mut upload = r.store.upload("big").await.unwrap();
    upload.write(Bytes::from(vec![1; 17 << 20])).await.unwrap();
    upload.finish().await.unwrap();
    counts(&[("POST", 2), ("PUT", 3)]);
}
