//! A view of the objects below a prefix of another store.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::key::check_key;
use crate::{Capabilities, Entry, MadeAt, Meta, Object, Operation, Store, StoreError, Upload, Version};

/// The objects of `inner` below `prefix/`, under shorter keys. Errors keep the long ones.
#[derive(Debug)]
pub struct Prefixed {
    inner: Arc<dyn Store>,
    /// Without a slash at either end; never empty.
    prefix: String,
}

impl Prefixed {
    /// `Invalid` if the prefix is not a valid key.
    pub fn new(inner: Arc<dyn Store>, prefix: &str) -> Result<Self, StoreError> {
        check_key(Operation::Open, prefix, &|| inner.describe())?;
        Ok(Self { inner, prefix: prefix.to_owned() })
    }

    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    /// An empty key must stay an error, not become the folder.
    fn checked(&self, operation: Operation, key: &str) -> Result<String, StoreError> {
        check_key(operation, key, &|| self.describe())?;
        Ok(self.full(key))
    }
}

#[async_trait]
impl Store for Prefixed {
    fn describe(&self) -> String {
        format!("{}/{}", self.inner.describe().trim_end_matches('/'), self.prefix)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.inner.get(&self.checked(Operation::Get, key)?).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(&self.checked(Operation::GetRange, key)?, range).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.inner.get_tail(&self.checked(Operation::GetTail, key)?, len).await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.inner.head(&self.checked(Operation::Head, key)?).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.inner.create(&self.checked(Operation::Create, key)?, bytes).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        self.inner.swap_if(&self.checked(Operation::Swap, key)?, expected, bytes).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload(&self.checked(Operation::Upload, key)?).await
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload_dated(&self.checked(Operation::Upload, key)?, made).await
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let folder = if prefix.is_empty() { self.prefix.clone() } else { self.full(prefix) };
        let after = after.map(|a| self.full(a));
        let mut entries = self.inner.list_after(&folder, after.as_deref(), limit).await?;
        for entry in &mut entries {
            assert!(entry.key.starts_with(&self.prefix), "a list gives only what lies below its folder");
            entry.key.drain(..=self.prefix.len());
        }
        Ok(entries)
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        let folder = if prefix.is_empty() { self.prefix.clone() } else { self.full(prefix) };
        self.inner.remove_folder(&folder).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let keys: Result<Vec<_>, _> = keys.iter().map(|k| self.checked(Operation::Delete, k)).collect();
        self.inner.delete(&keys?).await
    }
}
