//! One suite for all; and proof that the suite notices stores that are broken.

use std::sync::Arc;
use std::time::Duration;

use rhyolite_store::suite::{self, SuiteSize};
use rhyolite_store::{
    Counted, Counters, Directory, Fault, Faulty, Memory, Operation, RetryPolicy, Retrying, Rule, Store,
};

/// Fails with what did not hold.
pub(crate) async fn check(store: Arc<dyn Store>, size: SuiteSize) {
    let failures = suite::run(&store, size).await;
    assert!(failures.is_empty(), "{}: {failures:#?}", store.describe());
}

fn small() -> SuiteSize {
    SuiteSize { rounds: 4, racers: 8, listed: 1010, upload_bytes: 1 << 20 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    check(Arc::new(Memory::new()), SuiteSize::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory() {
    let dir = tempfile::tempdir().unwrap();
    check(Arc::new(Directory::new(dir.path().join("store"))), SuiteSize::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retrying() {
    check(Arc::new(Retrying::new(Arc::new(Memory::new()), RetryPolicy::default())), SuiteSize::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counted() {
    check(Arc::new(Counted::new(Arc::new(Memory::new()), Arc::new(Counters::default()))), small()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_without_faults() {
    check(Arc::new(Faulty::new(Arc::new(Memory::new()))), small()).await;
}

/// A store that fails now and then in every way that can be healed must look like a good one through `Retrying`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retrying_heals_what_can_be_healed() {
    use rhyolite_store::Rate;
    let rates = [
        (Fault::Refuse, 300),
        (Fault::LoseReply, 300),
        (Fault::PretendRefused, 300),
        (Fault::CutBody(3), 300),
        (Fault::Delay(Duration::from_millis(3)), 100),
    ];
    let rates = rates.map(|(fault, per_10_000)| Rate { fault, per_10_000 });
    let policy = RetryPolicy {
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        attempts_max: 12,
        ..RetryPolicy::default()
    };
    for seed in 0..3 {
        let faulty = Arc::new(Faulty::seeded(Arc::new(Memory::new()), seed, rates.to_vec()));
        let failures =
            suite::run(&(Arc::new(Retrying::new(faulty.clone(), policy.clone())) as Arc<dyn Store>), small()).await;
        // Parts of an upload are the backend's to try again, so its faults come through.
        let failures: Vec<_> = failures.into_iter().filter(|f| !f.what.contains("upload")).collect();
        assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
        assert!(faulty.injected() > 100, "only {} faults", faulty.injected());
    }
}

/// The verifier verified: each kind of broken store fails the suite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_stores_fail_the_suite() {
    let tiny = SuiteSize { rounds: 2, racers: 4, listed: 20, upload_bytes: 100_000 };
    let broken = [
        Rule::always(Fault::Refuse),
        Rule::always(Fault::Full),
        Rule::always(Fault::LoseReply),
        Rule::always(Fault::PretendStored),
        Rule { operation: Some(Operation::Create), ..Rule::always(Fault::PretendStored) },
        Rule { operation: Some(Operation::Swap), ..Rule::always(Fault::PretendStored) },
        Rule { operation: Some(Operation::Delete), ..Rule::always(Fault::PretendStored) },
        Rule { operation: Some(Operation::Upload), ..Rule::always(Fault::PretendStored) },
        Rule::always(Fault::PretendRefused),
        Rule::always(Fault::CutBody(3)),
        Rule::always(Fault::FlipByte(2)),
        Rule::always(Fault::StaleList(1)),
        Rule { skip: 30, ..Rule::next(Operation::Get, 1, Fault::FlipByte(0)) },
    ];
    for rule in broken {
        let faulty = Faulty::new(Arc::new(Memory::new()));
        faulty.script(rule.clone());
        let store: Arc<dyn Store> = Arc::new(faulty);
        assert!(!suite::run(&store, tiny).await.is_empty(), "not noticed: {rule:?}");
    }
}
