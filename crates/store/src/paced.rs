//! Bounds what the whole process writes to stores at a time.
//!
//! The right to write is given in the order in which it was asked for, and a database asks for one write at a time: so each gets its
//! turn, and one that writes without pause keeps no other waiting for more than one write.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Store, StoreError, Upload};

/// A store that waits for its turn before it writes. Reads do not wait.
#[derive(Debug)]
pub struct Paced {
    inner: Arc<dyn Store>,
    turns: Arc<Semaphore>,
}

impl Paced {
    /// Decorates a store. Those that share `turns` share the bound.
    pub fn new(inner: Arc<dyn Store>, turns: Arc<Semaphore>) -> Self {
        Self { inner, turns }
    }
}

async fn turn(turns: &Semaphore) -> SemaphorePermit<'_> {
    turns.acquire().await.expect("the semaphore is never closed")
}

#[async_trait]
impl Store for Paced {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
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
        let _turn = turn(&self.turns).await;
        self.inner.create(key, bytes).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let _turn = turn(&self.turns).await;
        self.inner.swap_if(key, expected, bytes).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.inner.upload(key).await?;
        Ok(Box::new(PacedUpload { inner, turns: Arc::clone(&self.turns) }))
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.inner.upload_dated(key, made).await?;
        Ok(Box::new(PacedUpload { inner, turns: Arc::clone(&self.turns) }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let _turn = turn(&self.turns).await;
        self.inner.delete(keys).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner.remove_folder(prefix).await
    }

    async fn verify_created(&self, key: &str, version: &Version, size: u64) -> Result<(), StoreError> {
        self.inner.verify_created(key, version, size).await
    }
}

/// Asks for a turn for every piece: a large object lets others through.
#[derive(Debug)]
struct PacedUpload {
    inner: Box<dyn Upload>,
    turns: Arc<Semaphore>,
}

#[async_trait]
impl Upload for PacedUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let _turn = turn(&self.turns).await;
        self.inner.write(bytes).await
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        let Self { inner, turns } = *self;
        let _turn = turn(&turns).await;
        inner.finish().await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Memory;

    #[tokio::test]
    async fn the_last_turn_must_be_given_back_before_another_write_and_reads_do_not_wait() {
        let turns = Arc::new(Semaphore::new(1));
        let store = Paced::new(Arc::new(Memory::new()), Arc::clone(&turns));
        store.create("a", Bytes::from_static(b"1")).await.unwrap();
        let held = turns.acquire().await.unwrap();
        let write = store.create("b", Bytes::from_static(b"2"));
        assert!(tokio::time::timeout(Duration::from_millis(20), write).await.is_err(), "waits for its turn");
        assert_eq!(store.get("a").await.unwrap().bytes, "1");
        drop(held);
        store.create("b", Bytes::from_static(b"2")).await.unwrap();
    }
}
