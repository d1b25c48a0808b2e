//! What the decorators promise beyond being transparent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_store::{
    Counted, Counters, Fault, Faulty, Memory, Operation, RetryPolicy, Retrying, Rule, Store, StoreError,
    StoreErrorKind as Kind,
};

struct Rig {
    memory: Memory,
    faulty: Arc<Faulty>,
    counters: Arc<Counters>,
    store: Retrying,
}

/// Memory that misbehaves, counted per try, tried again.
fn rig() -> Rig {
    let memory = Memory::new();
    let faulty = Arc::new(Faulty::new(Arc::new(memory.clone())));
    let counters = Arc::new(Counters::default());
    let counted = Counted::new(faulty.clone(), Arc::clone(&counters));
    let store = Retrying::new(Arc::new(counted), RetryPolicy::default());
    Rig { memory, faulty, counters, store }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn kind<T>(result: Result<T, StoreError>) -> Option<Kind> {
    result.err().map(|e| e.kind)
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_create_is_a_success_not_exists() {
    for fault in [Fault::LoseReply, Fault::HangAfter] {
        let r = rig();
        r.faulty.script(Rule::next(Operation::Create, 1, fault));
        let version = r.store.create("lease.json", b("mine")).await.unwrap();
        assert_eq!(r.memory.head("lease.json").await.unwrap().version, version);
        assert_eq!(r.counters.snapshot().of(Operation::Create), 1, "settled by reading, not by writing again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_swap_is_a_success_not_a_conflict() {
    let r = rig();
    let first = r.store.create("lease.json", b("0")).await.unwrap();
    r.faulty.script(Rule::next(Operation::Swap, 1, Fault::LoseReply));
    let second = r.store.swap_if("lease.json", Some(&first), b("1")).await.unwrap();
    assert_eq!(r.memory.head("lease.json").await.unwrap().version, second);
    assert_eq!(kind(r.store.swap_if("lease.json", Some(&first), b("2")).await), Some(Kind::Conflict));
}

#[tokio::test(start_paused = true)]
async fn exists_is_not_believed_when_nothing_is_there() {
    let r = rig();
    r.faulty.script(Rule::next(Operation::Create, 2, Fault::PretendRefused));
    r.store.create("a", b("1")).await.unwrap();
    let v = r.memory.head("a").await.unwrap().version;
    r.faulty.script(Rule::next(Operation::Swap, 2, Fault::PretendRefused));
    r.store.swap_if("a", Some(&v), b("2")).await.unwrap();
    r.faulty.script(Rule::next(Operation::Create, u64::MAX, Fault::PretendRefused));
    let error = r.store.create("b", b("1")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert!(error.reason.contains("find no such thing"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn another_writers_object_is_exists() {
    let r = rig();
    r.memory.create("a", b("theirs")).await.unwrap();
    assert_eq!(kind(r.store.create("a", b("mine")).await), Some(Kind::Exists));
    r.faulty.script(Rule::next(Operation::Create, 1, Fault::LoseReply));
    assert_eq!(kind(r.store.create("a", b("mine")).await), Some(Kind::Exists));
    // A repeated create of an object that an earlier call stored is a success.
    r.store.create("a", b("theirs")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_back_stays_ambiguous() {
    let r = rig();
    r.faulty.script(Rule::next(Operation::Create, 1, Fault::LoseReply));
    r.faulty.script(Rule::next(Operation::Get, u64::MAX, Fault::Refuse));
    let error = r.store.create("a", b("1")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Ambiguous, "{error}");
    // Unavailable afterwards does not make it certain again.
    let r = rig();
    r.faulty.script(Rule::next(Operation::Create, 1, Fault::LoseReply));
    r.faulty.script(Rule::next(Operation::Get, 1, Fault::Deny));
    assert_eq!(kind(r.store.create("a", b("1")).await), Some(Kind::Ambiguous));
}

#[tokio::test(start_paused = true)]
async fn refusals_that_will_not_change_are_passed_on_at_once() {
    let r = rig();
    for (fault, expected) in [(Fault::Deny, Kind::Denied), (Fault::Full, Kind::Full)] {
        r.faulty.script(Rule::next(Operation::Create, 1, fault));
        assert_eq!(kind(r.store.create("a", b("1")).await), Some(expected));
    }
    assert_eq!(r.counters.snapshot().of(Operation::Create), 2);
}

#[tokio::test(start_paused = true)]
async fn reads_are_repeated_and_given_up_within_the_limits() {
    let r = rig();
    r.memory.create("a", b("0123456789")).await.unwrap();
    r.faulty.script(Rule::next(Operation::Get, 3, Fault::Refuse));
    r.faulty.script(Rule::next(Operation::Get, 1, Fault::CutBody(4)));
    assert_eq!(r.store.get("a").await.unwrap().bytes, "0123456789");
    r.faulty.script(Rule::next(Operation::GetRange, 1, Fault::CutBody(1)));
    assert_eq!(r.store.get_range("a", 2..5).await.unwrap(), "234");
    r.faulty.script(Rule::next(Operation::GetTail, 1, Fault::CutBody(1)));
    assert_eq!(r.store.get_tail("a", 3).await.unwrap().bytes, "789");

    r.faulty.script(Rule::next(Operation::List, u64::MAX, Fault::Refuse));
    let start = tokio::time::Instant::now();
    let error = r.store.list_after("", None, 1).await.unwrap_err();
    assert!(error.kind == Kind::Unavailable && error.reason.contains("tried 8 times"), "{error}");
    assert!(start.elapsed() < RetryPolicy::default().deadline);

    r.faulty.script(Rule::next(Operation::Head, u64::MAX, Fault::Hang));
    let start = tokio::time::Instant::now();
    assert_eq!(kind(r.store.head("a").await), Some(Kind::Unavailable));
    let policy = RetryPolicy::default();
    assert!(start.elapsed() < policy.deadline + policy.attempt_timeout, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_when_the_store_hangs() {
    let r = rig();
    r.faulty.script(Rule::always(Fault::Hang));
    let start = tokio::time::Instant::now();
    let keys = ["a".to_owned()];
    assert_eq!(kind(r.store.create("a", b("1")).await), Some(Kind::Ambiguous));
    assert_eq!(kind(r.store.swap_if("a", None, b("1")).await), Some(Kind::Ambiguous));
    assert_eq!(kind(r.store.upload("a").await), Some(Kind::Ambiguous));
    assert_eq!(kind(r.store.get("a").await), Some(Kind::Unavailable));
    assert_eq!(kind(r.store.delete(&keys).await), Some(Kind::Unavailable));
    assert!(start.elapsed() < Duration::from_secs(5 * 300), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_lost_end_of_an_upload_is_looked_up() {
    let r = rig();
    let mut upload = r.store.upload("big").await.unwrap();
    upload.write(b("abc")).await.unwrap();
    r.faulty.script(Rule::next(Operation::Upload, 1, Fault::LoseReply));
    let version = upload.finish().await.unwrap();
    assert_eq!(r.memory.head("big").await.unwrap().version, version);
    let upload = r.store.upload("big2").await.unwrap();
    r.faulty.script(Rule::next(Operation::Upload, 1, Fault::Refuse));
    assert_eq!(kind(upload.finish().await), Some(Kind::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lies_is_found_out_by_verify() {
    let r = rig();
    r.faulty.script(Rule::next(Operation::Create, 1, Fault::PretendStored));
    let version = r.store.create("a", b("1")).await.unwrap();
    let error = r.store.verify_created("a", &version, 1).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.reason.contains("said that it had stored"), "{error}");
    let version = r.store.create("a", b("1")).await.unwrap();
    r.store.verify_created("a", &version, 1).await.unwrap();
}

#[tokio::test]
async fn counters_count() {
    let r = rig();
    r.store.create("a", b("12345")).await.unwrap();
    r.store.get("a").await.unwrap();
    r.store.get_range("a", 1..3).await.unwrap();
    r.store.get("b").await.unwrap_err();
    let counts = r.counters.snapshot();
    assert_eq!((counts.bytes_written, counts.bytes_read), (5, 7));
    assert_eq!((counts.total(), counts.of(Operation::Get)), (4, 2));
    assert_eq!(counts.errors.len(), 1);
    assert_eq!((counts.errors[0].operation, counts.errors[0].kind), (Operation::Get, Kind::NotFound));
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_faults() {
    use rhyolite_store::Rate;
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let rates = vec![Rate { fault: Fault::Refuse, per_10_000: 3000 }];
        let faulty = Faulty::seeded(Arc::new(Memory::new()), seed, rates);
        let mut run = Vec::new();
        for i in 0..64 {
            run.push(kind(faulty.create(&i.to_string(), b("x")).await));
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}
