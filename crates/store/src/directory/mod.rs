//! Objects as plain files below a folder.
//!
//! The folder can be copied, looked at and served by other tools: key `log/1` is the file `log/1`, nothing is added to it.
//!
//! Invariants:
//!
//! 1. A file has its name only when all of its bytes are on disk (written, synced, then linked or renamed). So nobody, also
//!    after a power cut, sees part of an object. Files are never written to after that.
//! 2. Create gives the name with link(2) (or a rename that refuses to replace), which fails if the name is taken.
//! 3. Swap and delete hold `flock` on `.rhyolite-lock` of the object's folder: compare, then rename, are one step among
//!    all processes. Create needs no lock: it can only fill a gap, and a swap needs an object.
//! 4. A version is the modification time (nanoseconds) and the size. Every swap sets a time later than that of the object
//!    that it replaces, as the file system stores it, so a version never comes back, however coarse the file system's
//!    clock is, and no content needs to be read or hashed.
//! 5. A name is reported as stored after its folder was synced. If that failed, the folder is synced before anything in it is
//!    read again: an object that was read will still be there after a power cut.
//! 6. Nothing is created on behalf of a reader. Folders are made by the first write into them.
//!
//! Names that begin with `.rhyolite-` are this module's own and never listed. File work runs on the blocking pool, so
//! that a hanging disk holds up neither the caller (see `OPERATION_TIMEOUT`) nor the other tasks.

mod files;
mod listing;
mod publish;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;

use crate::key::{check_key, check_prefix};
use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};
use files::Folder;
use publish::Draft;

/// How long file work may take, beside the time for its bytes, before the caller is told that the disk hangs.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Slowest disk that is waited for, in bytes per second.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// Largest object that [`Store::get`] leaves time for on the slowest disk, in bytes.
const GET_BYTES_ASSUMED: u64 = 256 << 20;

/// A store in a local folder. See the module's source for what holds.
#[derive(Clone, Debug)]
pub struct Directory {
    folder: Arc<Folder>,
}

impl Directory {
    /// A store in the folder `root`, which need not exist: the first write makes it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { folder: Arc::new(Folder::new(root.into())) }
    }

    /// Runs file work on the blocking pool, with a time limit that leaves room for `bytes` bytes.
    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &str,
        bytes: u64,
        work: impl FnOnce(&Folder, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if operation != Operation::List {
            check_key(operation, key, &|| self.describe())?;
        }
        let (folder, owned) = (Arc::clone(&self.folder), key.to_owned());
        let task = tokio::task::spawn_blocking(move || work(&folder, &owned));
        finish(task, operation, key, bytes, || self.describe()).await
    }
}

/// Waits for file work within its time limit. What hangs in the kernel cannot be stopped; only the waiting ends.
async fn finish<T>(
    task: tokio::task::JoinHandle<Result<T, StoreError>>,
    operation: Operation,
    key: &str,
    bytes: u64,
    describe: impl Fn() -> String,
) -> Result<T, StoreError> {
    let limit = OPERATION_TIMEOUT + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(stopped)) if stopped.is_panic() => std::panic::resume_unwind(stopped.into_panic()),
        Ok(Err(_)) => {
            let reason = "the program is shutting down";
            Err(StoreError::new(unanswered(operation), operation, key, describe(), reason))
        }
        Err(_) => {
            let reason = format!("the file system did not answer within {} s", limit.as_secs());
            Err(StoreError::new(unanswered(operation), operation, key, describe(), reason))
        }
    }
}

/// What a call without an answer is: a read can be repeated, a write must be looked up.
fn unanswered(operation: Operation) -> StoreErrorKind {
    match operation {
        Operation::Create | Operation::Swap | Operation::Upload => StoreErrorKind::Ambiguous,
        _ => StoreErrorKind::Unavailable,
    }
}

#[async_trait]
impl Store for Directory {
    fn describe(&self) -> String {
        self.folder.describe()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::given("makes names by link(2) and swaps under flock(2)")
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.run(Operation::Get, key, GET_BYTES_ASSUMED, |folder, key| folder.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        assert!(range.start <= range.end, "ranges do not run backwards");
        let len = range.end - range.start;
        self.run(Operation::GetRange, key, len, |folder, key| folder.get_range(key, range)).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.run(Operation::GetTail, key, len.min(GET_BYTES_ASSUMED), move |folder, key| folder.get_tail(key, len))
            .await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.run(Operation::Head, key, 0, |folder, key| folder.head(key)).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        let len = bytes.len() as u64;
        self.run(Operation::Create, key, len, move |folder, key| folder.create(key, &bytes)).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let (len, expected) = (bytes.len() as u64, expected.cloned());
        self.run(Operation::Swap, key, len, move |folder, key| match expected {
            Some(expected) => folder.swap(key, &expected, &bytes),
            None => folder.create(key, &bytes).map_err(|e| e.of_swap()),
        })
        .await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let draft = self.run(Operation::Upload, key, 0, |folder, key| folder.draft(key)).await?;
        Ok(Box::new(DirectoryUpload { store: self.clone(), key: key.to_owned(), draft: Some(draft), written: 0 }))
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let time = UNIX_EPOCH + Duration::from_millis(made.time.0.try_into().unwrap_or(0));
        let draft = self.run(Operation::Upload, key, 0, move |folder, key| folder.draft_of(key, time)).await?;
        Ok(Box::new(DirectoryUpload { store: self.clone(), key: key.to_owned(), draft: Some(draft), written: 0 }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let prefix = check_prefix(prefix, &|| self.describe())?;
        let after = after.map(str::to_owned);
        self.run(Operation::List, prefix, 0, move |folder, prefix| folder.list(prefix, after.as_deref(), limit)).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        let prefix = check_prefix(prefix, &|| self.describe())?;
        // Shown like a list, because the folder may be the root, whose key would be empty.
        self.run(Operation::List, prefix, 0, |folder, prefix| folder.remove_empty(prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            check_key(Operation::Delete, key, &|| self.describe())?;
        }
        let Some(first) = keys.first() else { return Ok(()) };
        let keys = keys.to_owned();
        self.run(Operation::Delete, first, 0, move |folder, _| folder.delete(&keys)).await
    }
}

impl StoreError {
    /// A create that stood in for a swap that expects nothing: "exists" is that swap's conflict.
    fn of_swap(mut self) -> Self {
        self.operation = Operation::Swap;
        if self.kind == StoreErrorKind::Exists {
            self.kind = StoreErrorKind::Conflict;
        }
        self
    }
}

#[derive(Debug)]
struct DirectoryUpload {
    store: Directory,
    key: String,
    /// `None` while a write is on its way, and for ever after one that failed: its bytes may be there in part.
    draft: Option<Draft>,
    written: u64,
}

impl DirectoryUpload {
    fn take_draft(&mut self) -> Result<Draft, StoreError> {
        self.draft.take().ok_or_else(|| {
            let reason = "an earlier write of this upload failed: start it again";
            StoreError::new(StoreErrorKind::Invalid, Operation::Upload, &self.key, self.store.describe(), reason)
        })
    }
}

#[async_trait]
impl Upload for DirectoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut draft = self.take_draft()?;
        let len = bytes.len() as u64;
        let work = move |folder: &Folder, key: &str| match draft.append(&bytes) {
            Ok(()) => Ok(draft),
            Err(e) => Err(folder.io_error(Operation::Upload, key, "write", &e)),
        };
        self.draft = Some(self.store.run(Operation::Upload, &self.key, len, work).await?);
        self.written += len;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Version, StoreError> {
        let draft = self.take_draft()?;
        let work = |folder: &Folder, key: &str| folder.publish(Operation::Upload, key, draft);
        self.store.run(Operation::Upload, &self.key, self.written, work).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        drop(self.draft.take());
        Ok(())
    }
}
