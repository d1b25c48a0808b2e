//! The probe: good stores pass, and every kind of broken store is found.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_store::probe::{self, Needed, ProbeReport, ProbeSize};
use rhyolite_store::{
    Capabilities, Directory, Entry, Fault, Faulty, Memory, Meta, Object, Operation, Rule, Store, StoreError,
    StoreErrorKind as Kind, Upload, Version,
};

pub(crate) const SMALL: ProbeSize = ProbeSize { rounds: 5, racers: 6, samples: 3, upload_bytes: 300_000 };

/// What is wrong with the store, in words; empty if nothing is.
pub(crate) fn faults(report: &ProbeReport) -> Vec<String> {
    let failed = report.checks.iter().filter_map(|c| c.seen.as_ref().err().map(|e| format!("{}: {e}", c.name)));
    failed.collect()
}

async fn probed(clients: &[Arc<dyn Store>]) -> Result<Vec<String>, StoreError> {
    Ok(faults(&probe::run(clients, SMALL).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_stores_pass_and_are_left_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let memory: Arc<dyn Store> = Arc::new(Memory::new());
    let directories: Vec<Arc<dyn Store>> = (0..4).map(|_| Arc::new(Directory::new(dir.path())) as _).collect();
    for clients in [vec![memory], directories] {
        clients[0].create("users/own", Bytes::from_static(b"x")).await.unwrap();
        let report = probe::run(&clients, SMALL).await.unwrap();
        assert_eq!(faults(&report), [""; 0], "{}", report.store);
        assert!(report.can_fence() && report.can_back_up());
        assert!(report.clock_offset_ms.unwrap().abs() < 5_000);
        assert!(report.latencies.iter().all(|l| l.samples == 3 && l.min <= l.median && l.median <= l.max));
        let left: Vec<_> = clients[0].list_all("").await.unwrap().into_iter().map(|e| e.key).collect();
        assert_eq!(left, ["users/own"]);
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["users"], "no folder of the probe is left");
}

/// The faults by which the conformance suite is verified, each found here too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_stores_are_found() {
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
        // Two, for one of them may meet a read of what is absent, which has no byte to flip.
        Rule { skip: 30, ..Rule::next(Operation::Get, 2, Fault::FlipByte(0)) },
    ];
    for rule in broken {
        let faulty = Faulty::new(Arc::new(Memory::new()));
        faulty.script(rule.clone());
        if let Ok(faults) = probed(&[Arc::new(faulty)]).await {
            assert!(!faults.is_empty(), "not noticed: {rule:?}");
        }
    }
}

/// A server that looks, then writes, as several that speak S3 do.
#[derive(Debug)]
struct LooksThenWrites {
    inner: Memory,
    create: bool,
    swap: bool,
}

impl LooksThenWrites {
    async fn overwrite(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let mut upload = self.inner.upload(key).await?;
        upload.write(bytes).await?;
        upload.finish().await
    }
}

#[async_trait]
impl Store for LooksThenWrites {
    fn describe(&self) -> String {
        "racy".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::unproven("is a test")
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
        match self.inner.head(key).await {
            Err(e) if self.create && e.kind == Kind::NotFound => self.overwrite(key, bytes).await,
            _ => self.inner.create(key, bytes).await,
        }
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        match self.inner.head(key).await {
            Ok(meta) if self.swap && Some(&meta.version) == expected => self.overwrite(key, bytes).await,
            _ => self.inner.swap_if(key, expected, bytes).await,
        }
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload(key).await
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.inner.delete(keys).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_only_races_show_to_be_broken_is_found() {
    for (create, swap, wanted) in [(true, false, "create-race"), (false, true, "swap-race"), (false, true, "swap-sum")]
    {
        let store: Arc<dyn Store> = Arc::new(LooksThenWrites { inner: Memory::new(), create, swap });
        let report = probe::run(&[store], SMALL).await.unwrap();
        let failed: Vec<_> = report.failed(Needed::Fencing).map(|c| c.name).collect();
        assert!(failed.contains(&wanted), "{failed:?}");
        assert!(report.can_back_up() && !report.can_fence(), "it is good for a backup without a lease: {report:?}");
    }
}
