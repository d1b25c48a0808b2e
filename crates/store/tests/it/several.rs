//! One store through several clients in turn, so that what one client keeps to itself (a queue, a connection) hides nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_store::{Capabilities, Entry, Meta, Object, Store, StoreError, Upload, Version};

#[derive(Debug)]
pub(crate) struct Several {
    clients: Vec<Arc<dyn Store>>,
    next: AtomicUsize,
}

impl Several {
    pub(crate) fn new(clients: Vec<Arc<dyn Store>>) -> Self {
        Self { clients, next: AtomicUsize::new(0) }
    }

    fn client(&self) -> &Arc<dyn Store> {
        &self.clients[self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len()]
    }
}

#[async_trait]
impl Store for Several {
    fn describe(&self) -> String {
        self.clients[0].describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.clients[0].capabilities()
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.client().get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.client().get_range(key, range).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.client().get_tail(key, len).await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.client().head(key).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.client().create(key, bytes).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        self.client().swap_if(key, expected, bytes).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.client().upload(key).await
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.client().list_after(prefix, after, limit).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.client().remove_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.client().delete(keys).await
    }
}
