//! Objects in the memory of this process: for tests, and the model that the other backends are compared with.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rhyolite_format::Timestamp;

use crate::key::{check_key, check_prefix};
use crate::types::{Entry, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};

/// Objects in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    objects: Arc<Mutex<Objects>>,
}

#[derive(Debug, Default)]
struct Objects {
    by_key: BTreeMap<String, Stored>,
    /// Writes so far: the next version. Never reused, so a deleted and re-created object is another version.
    writes: u64,
}

#[derive(Clone, Debug)]
struct Stored {
    bytes: Bytes,
    version: Version,
    modified: Timestamp,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().expect("nothing panics while it holds this lock")
    }

    fn error(&self, kind: StoreErrorKind, operation: Operation, key: &str, reason: impl Into<String>) -> StoreError {
        StoreError::new(kind, operation, key, self.describe(), reason)
    }

    fn find(&self, operation: Operation, key: &str) -> Result<Stored, StoreError> {
        check_key(operation, key, &|| self.describe())?;
        let found = self.lock().by_key.get(key).cloned();
        found.ok_or_else(|| self.error(StoreErrorKind::NotFound, operation, key, "there is no such object"))
    }

    /// Stores the bytes if `may` agrees to what is there.
    fn put_if(&self, key: &str, bytes: Bytes, may: impl FnOnce(Option<&Stored>) -> bool) -> Option<Version> {
        let mut objects = self.lock();
        if !may(objects.by_key.get(key)) {
            return None;
        }
        objects.writes += 1;
        let version = Version::new(objects.writes.to_string());
        objects.by_key.insert(key.to_owned(), Stored { bytes, version: version.clone(), modified: wall_clock() });
        Some(version)
    }
}

/// Milliseconds since 1970 by this machine's clock.
fn wall_clock() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

#[async_trait]
impl Store for Memory {
    fn describe(&self) -> String {
        "memory:".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::given("holds every object under one lock")
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let Stored { bytes, version, .. } = self.find(Operation::Get, key)?;
        let size = bytes.len() as u64;
        Ok(Object { bytes, version, size })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let found = self.find(Operation::GetRange, key)?;
        assert!(range.start <= range.end, "ranges do not run backwards");
        let size = found.bytes.len() as u64;
        if range.end > size {
            let reason = format!("bytes {}..{} were asked for, the object has {size}", range.start, range.end);
            return Err(self.error(StoreErrorKind::Corrupt, Operation::GetRange, key, reason));
        }
        Ok(found.bytes.slice(range.start as usize..range.end as usize))
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let Stored { bytes, version, .. } = self.find(Operation::GetTail, key)?;
        let size = bytes.len() as u64;
        let start = size.saturating_sub(len) as usize;
        Ok(Object { bytes: bytes.slice(start..), version, size })
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let Stored { bytes, version, modified } = self.find(Operation::Head, key)?;
        Ok(Meta { size: bytes.len() as u64, version, modified: Some(modified) })
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        check_key(Operation::Create, key, &|| self.describe())?;
        let stored = self.put_if(key, bytes, |there| there.is_none());
        stored.ok_or_else(|| self.error(StoreErrorKind::Exists, Operation::Create, key, "the object exists already"))
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        check_key(Operation::Swap, key, &|| self.describe())?;
        let stored = self.put_if(key, bytes, |there| there.map(|s| &s.version) == expected);
        stored.ok_or_else(|| {
            self.error(StoreErrorKind::Conflict, Operation::Swap, key, "the object is not the expected version")
        })
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        check_key(Operation::Upload, key, &|| self.describe())?;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_owned(), bytes: BytesMut::new() }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let folder = check_prefix(prefix, &|| self.describe())?;
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let start = after.unwrap_or("").max(below.as_str());
        let objects = self.lock();
        let entries = objects.by_key.range(start.to_owned()..).take_while(|(key, _)| key.starts_with(&below));
        let entries = entries.filter(|(key, _)| after.is_none_or(|a| key.as_str() > a)).take(limit);
        Ok(entries
            .map(|(key, s)| Entry { key: key.clone(), size: s.bytes.len() as u64, modified: Some(s.modified) })
            .collect())
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            check_key(Operation::Delete, key, &|| self.describe())?;
        }
        let mut objects = self.lock();
        for key in keys {
            objects.by_key.remove(key);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryUpload {
    store: Memory,
    key: String,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        let stored = self.store.put_if(&self.key, self.bytes.freeze(), |_| true);
        Ok(stored.expect("an upload asks for no condition"))
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
