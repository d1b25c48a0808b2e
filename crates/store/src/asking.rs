//! A lease by time: conditional writes for stores that have none.
//!
//! Whoever wants to write asks first what is there, writes without a condition, and asks again. Of two who write one after the other the second
//! is refused. Of two who write at the same moment both may be told that they have written; the one whose object does not stay is
//! refused at its next write. So a lease under which everybody waits until it has run out keeps writers apart, but for those who take it
//! within the time of one request, and those find out at the next renewal.
//!
//! A create costs three requests, a swap too.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};

/// A store that asks before it writes, and after.
#[derive(Debug)]
pub struct Asking {
    inner: Arc<dyn Store>,
}

impl Asking {
    /// Decorates a store whose conditional writes are refused, or do not hold.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }

    async fn version(&self, key: &str) -> Result<Option<Version>, StoreError> {
        match self.inner.head(key).await {
            Ok(meta) => Ok(Some(meta.version)),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes, and looks whether it has stayed.
    async fn write(&self, key: &str, bytes: Bytes, refused: StoreError) -> Result<Version, StoreError> {
        let mut upload = self.inner.upload(key).await?;
        upload.write(bytes).await?;
        // From here on nobody knows, whatever the answer is, until it was looked.
        let written = upload.finish().await.map_err(|error| unknown(&error))?;
        match self.version(key).await {
            Ok(Some(version)) if version == written => Ok(written),
            Ok(_) => Err(refused),
            Err(error) => Err(unknown(&error)),
        }
    }

    fn refused(&self, kind: StoreErrorKind, operation: Operation, key: &str, text: &str) -> StoreError {
        StoreError::new(kind, operation, key, self.inner.describe(), text)
    }
}

fn unknown(error: &StoreError) -> StoreError {
    StoreError { kind: StoreErrorKind::Ambiguous, ..error.clone() }
}

#[async_trait]
impl Store for Asking {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::absent("is asked before it is written to, for want of conditional writes")
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
        let taken = self.refused(StoreErrorKind::Exists, Operation::Create, key, "there is one already");
        if self.version(key).await?.is_some() {
            return Err(taken);
        }
        self.write(key, bytes, taken).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let other = self.refused(StoreErrorKind::Conflict, Operation::Swap, key, "it is another object by now");
        if self.version(key).await?.as_ref() != expected {
            return Err(other);
        }
        self.write(key, bytes, other).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload(key).await
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload_dated(key, made).await
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.inner.delete(keys).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner.remove_folder(prefix).await
    }

    async fn verify_created(&self, key: &str, version: &Version, size: u64) -> Result<(), StoreError> {
        self.inner.verify_created(key, version, size).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Fault, Faulty, Memory, Operation, RetryPolicy, Retrying, Rule};

    fn b(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn kind<T>(result: Result<T, StoreError>) -> Option<StoreErrorKind> {
        result.err().map(|e| e.kind)
    }

    #[tokio::test]
    async fn one_after_the_other_conditions_hold() {
        let store = Asking::new(Arc::new(Memory::new()));
        let first = store.create("k", b("1")).await.unwrap();
        assert_eq!(kind(store.create("k", b("2")).await), Some(StoreErrorKind::Exists));
        let second = store.swap_if("k", Some(&first), b("3")).await.unwrap();
        assert_eq!(kind(store.swap_if("k", Some(&first), b("4")).await), Some(StoreErrorKind::Conflict));
        assert_eq!(kind(store.swap_if("k", None, b("5")).await), Some(StoreErrorKind::Conflict));
        assert_eq!(kind(store.swap_if("other", Some(&second), b("6")).await), Some(StoreErrorKind::Conflict));
        assert_eq!(&store.get("k").await.unwrap().bytes[..], b"3");
        store.swap_if("other", None, b("7")).await.unwrap();
    }

    #[tokio::test]
    async fn of_two_at_the_same_moment_one_is_refused_at_its_next_write() {
        let memory: Arc<dyn Store> = Arc::new(Memory::new());
        let slow = || {
            let faulty = Faulty::new(Arc::clone(&memory));
            // Both look before either writes.
            faulty.script(Rule::next(Operation::Head, 1, Fault::Delay(Duration::from_millis(50))));
            Asking::new(Arc::new(faulty))
        };
        let (one, two) = (slow(), slow());
        let (first, second) = tokio::join!(one.swap_if("lease", None, b("one")), two.swap_if("lease", None, b("two")));
        let told: Vec<_> =
            [(&one, first), (&two, second)].into_iter().filter_map(|(s, r)| Some((s, r.ok()?))).collect();
        assert!(!told.is_empty(), "somebody has it");
        let mut left = 0;
        for (store, version) in &told {
            match store.swap_if("lease", Some(version), b("renewed")).await {
                Ok(_) => left += 1,
                Err(error) => assert_eq!(error.kind, StoreErrorKind::Conflict),
            }
        }
        assert_eq!(left, 1);
    }

    #[tokio::test]
    async fn what_was_written_without_an_answer_is_found() {
        let faulty = Faulty::new(Arc::new(Memory::new()));
        // The end of the upload, and later the look after it.
        faulty.script(Rule { skip: 2, ..Rule::next(Operation::Upload, 1, Fault::LoseReply) });
        let store = Asking::new(Arc::new(faulty));
        assert_eq!(kind(store.create("k", b("mine")).await), Some(StoreErrorKind::Ambiguous));
        let faulty = Faulty::new(Arc::new(Memory::new()));
        faulty.script(Rule { skip: 2, ..Rule::next(Operation::Upload, 1, Fault::LoseReply) });
        let policy = RetryPolicy { backoff_first: Duration::from_millis(1), ..RetryPolicy::default() };
        let store = Retrying::new(Arc::new(Asking::new(Arc::new(faulty))), policy);
        store.create("k", b("mine")).await.unwrap();
    }
}
