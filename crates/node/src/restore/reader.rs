//! Reads objects of one database and counts what it costs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rhyolite_store::{Object, Store, StoreErrorKind};

use super::RestoreError;

/// A store that counts its reads.
#[derive(Debug)]
pub(crate) struct Reader {
    store: Arc<dyn Store>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Reader {
    /// Counts from zero.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// The store itself.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Requests so far, failed ones included.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of objects so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A whole object, or `None` if there is no such object.
    pub(crate) async fn find(&self, key: &str) -> Result<Option<Object>, RestoreError> {
        let result = self.store.get(key).await;
        self.count(result.as_ref().map_or(0, |object| object.bytes.len()));
        match result {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
            Err(e) => Err(RestoreError::read(key, e)),
        }
    }

    /// A range of an object that must exist.
    pub(crate) async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RestoreError> {
        let result = self.store.get_range(key, range).await;
        self.count(result.as_ref().map_or(0, Bytes::len));
        result.map_err(|e| RestoreError::read(key, e))
    }

    /// The end of an object, or `None` if there is no such object.
    pub(crate) async fn find_tail(&self, key: &str, len: u64) -> Result<Option<Object>, RestoreError> {
        let result = self.store.get_tail(key, len).await;
        self.count(result.as_ref().map_or(0, |object| object.bytes.len()));
        match result {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
            Err(e) => Err(RestoreError::read(key, e)),
        }
    }

    /// One page of a listing: keys below `prefix` after `after`, with their sizes.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<rhyolite_store::Entry>, RestoreError> {
        let result = self.store.list_after(prefix, after, limit).await;
        self.count(0);
        Ok(result?)
    }
}
