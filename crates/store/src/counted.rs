//! Counting what is asked of a store. Innermost of the decorators, it counts every try; outermost, every call.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};

const OPERATIONS: usize = Operation::ALL.len();

/// Counters since the start; they only grow.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; OPERATIONS],
    busy_us: [AtomicU64; OPERATIONS],
    /// Few kinds of error ever happen to one store, and there are thousands of stores: a list instead of a table.
    errors: Mutex<Vec<ErrorCount>>,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// What the counters said at one moment. They are read one by one: sums may be off by what happens meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What was asked, by operation; only those that were.
    pub requests: Vec<OperationCount>,
    /// What failed, by operation and kind; only those that did. "Not found" and "exists" are counted too.
    pub errors: Vec<ErrorCount>,
    /// Bytes of objects that came back.
    pub bytes_read: u64,
    /// Bytes of objects that were sent, whether the store took them or not.
    pub bytes_written: u64,
}

/// One operation's part of [`Counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationCount {
    /// What was asked.
    pub operation: Operation,
    /// How often, answered or not.
    pub count: u64,
    /// Time from question to answer, of all that were answered.
    pub busy: Duration,
}

/// One kind of error's part of [`Counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCount {
    /// What was asked.
    pub operation: Operation,
    /// How it failed.
    pub kind: StoreErrorKind,
    /// How often.
    pub count: u64,
}

impl Counts {
    /// How often the operation was asked for.
    pub fn of(&self, operation: Operation) -> u64 {
        self.requests.iter().find(|r| r.operation == operation).map_or(0, |r| r.count)
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|r| r.count).sum()
    }
}

impl Counters {
    /// What they say.
    pub fn snapshot(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = Operation::ALL.into_iter().map(|operation| OperationCount {
            operation,
            count: load(&self.requests[operation as usize]),
            busy: Duration::from_micros(load(&self.busy_us[operation as usize])),
        });
        let mut errors = self.lock_errors().clone();
        errors.sort_by_key(|e| (e.operation as usize, e.kind as usize));
        Counts {
            requests: requests.filter(|r| r.count > 0).collect(),
            errors,
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
        }
    }

    /// All requests so far.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    fn lock_errors(&self) -> std::sync::MutexGuard<'_, Vec<ErrorCount>> {
        // Numbers: after a panic elsewhere they are as right as before.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn count<T>(
        &self,
        operation: Operation,
        sent: usize,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.requests[operation as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(sent as u64, Ordering::Relaxed);
        let start = Instant::now();
        let result = call.await;
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.busy_us[operation as usize].fetch_add(us, Ordering::Relaxed);
        if let Err(e) = &result {
            let mut errors = self.lock_errors();
            match errors.iter_mut().find(|known| known.operation == operation && known.kind == e.kind) {
                Some(known) => known.count += 1,
                None => errors.push(ErrorCount { operation, kind: e.kind, count: 1 }),
            }
        }
        result
    }

    fn read(&self, bytes: &Bytes) {
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Counts the requests to a store.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Store>,
    counters: Arc<Counters>,
}

impl Counted {
    /// Decorates a store. Several stores may share counters.
    pub fn new(inner: Arc<dyn Store>, counters: Arc<Counters>) -> Self {
        Self { inner, counters }
    }
}

#[async_trait]
impl Store for Counted {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let object = self.counters.count(Operation::Get, 0, self.inner.get(key)).await?;
        self.counters.read(&object.bytes);
        Ok(object)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.counters.count(Operation::GetRange, 0, self.inner.get_range(key, range)).await?;
        self.counters.read(&bytes);
        Ok(bytes)
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let object = self.counters.count(Operation::GetTail, 0, self.inner.get_tail(key, len)).await?;
        self.counters.read(&object.bytes);
        Ok(object)
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.counters.count(Operation::Head, 0, self.inner.head(key)).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.counters.count(Operation::Create, bytes.len(), self.inner.create(key, bytes)).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        self.counters.count(Operation::Swap, bytes.len(), self.inner.swap_if(key, expected, bytes)).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.counters.count(Operation::Upload, 0, self.inner.upload(key)).await?;
        Ok(Box::new(CountedUpload { inner, counters: Arc::clone(&self.counters) }))
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.counters.count(Operation::Upload, 0, self.inner.upload_dated(key, made)).await?;
        Ok(Box::new(CountedUpload { inner, counters: Arc::clone(&self.counters) }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.counters.count(Operation::List, 0, self.inner.list_after(prefix, after, limit)).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner.remove_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.counters.count(Operation::Delete, 0, self.inner.delete(keys)).await
    }

    async fn verify_created(&self, key: &str, version: &Version, size: u64) -> Result<(), StoreError> {
        self.counters.count(Operation::Verify, 0, self.inner.verify_created(key, version, size)).await
    }
}

/// Start, each write and the end count as one upload request each.
#[derive(Debug)]
struct CountedUpload {
    inner: Box<dyn Upload>,
    counters: Arc<Counters>,
}

#[async_trait]
impl Upload for CountedUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.counters.count(Operation::Upload, bytes.len(), self.inner.write(bytes)).await
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        self.counters.count(Operation::Upload, 0, self.inner.finish()).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.counters.count(Operation::Upload, 0, self.inner.abort()).await
    }
}
