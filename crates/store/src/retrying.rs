//! Trying again, without lying about what happened.
//!
//! Reads, lists and deletes are repeated while the store is [`StoreErrorKind::Unavailable`]. Conditional writes are not: the
//! second try would meet the first one's object and be told "exists". Instead:
//!
//! | the try ended with | read back shows | then |
//! |---|---|---|
//! | success | - | success |
//! | `Exists`, `Conflict`, `Ambiguous` | our own bytes | success: it was our own try |
//! | | nothing, or still the expected version | try again: it has not happened (a late one shows in the next round) |
//! | | anything else | `Exists` or `Conflict` |
//! | `Unavailable` | (not read) | try again: nothing was written |
//! | any other error | (not read) | that error |
//!
//! "Exists" and "conflict" are read back too, even on the first try: some stores answer 409 when nothing was written, and a
//! caller may repeat a create whose outcome an earlier call could not find out. Our own bytes are told from others' because
//! every object that is created or swapped holds a nonce (invariant 4 of the crate).
//!
//! Every try has a time limit of its own, so a decorated store that hangs is a store that is unavailable. All waiting ends
//! when the future is dropped.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};

/// How often and how long to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries of one call, at least 1.
    pub attempts_max: u32,
    /// Wait after the first failed try; doubles from there. Each wait is shortened by a random part of up to a half.
    pub backoff_first: Duration,
    /// Longest wait between two tries.
    pub backoff_max: Duration,
    /// No try starts later than this after the call.
    pub deadline: Duration,
    /// Time limit of one try, beside the time for its bytes.
    pub attempt_timeout: Duration,
    /// Slowest transfer that is waited for, in bytes per second.
    pub bytes_per_second_min: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 8,
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            attempt_timeout: Duration::from_secs(30),
            bytes_per_second_min: 64 << 10,
        }
    }
}

/// Bytes that a whole object of unknown size is given time for.
const GET_BYTES_ASSUMED: u64 = 8 << 20;

/// Bytes of one part of an upload that may still be on their way when the next call waits for them.
const UPLOAD_BYTES_ASSUMED: u64 = 32 << 20;

/// Tries again. See the module's source for the rules.
#[derive(Debug)]
pub struct Retrying {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
}

impl Retrying {
    /// Decorates a store.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        assert!(policy.attempts_max > 0, "a call that is never tried cannot succeed");
        assert!(policy.bytes_per_second_min > 0, "a transfer at no speed never ends");
        Self { inner, policy }
    }

    /// One try, within its time limit.
    async fn within<T>(
        &self,
        operation: Operation,
        key: &str,
        bytes: u64,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let limit = self.policy.attempt_timeout + Duration::from_secs(bytes / self.policy.bytes_per_second_min);
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => {
                let kind = match operation {
                    Operation::Create | Operation::Swap | Operation::Upload => StoreErrorKind::Ambiguous,
                    _ => StoreErrorKind::Unavailable,
                };
                let reason = format!("no answer within {:.1} s", limit.as_secs_f64());
                Err(StoreError::new(kind, operation, key, self.describe(), reason))
            }
        }
    }

    /// Repeats a call that does no harm when it is repeated.
    async fn repeat<T, F>(
        &self,
        tries: &mut Tries,
        operation: Operation,
        key: &str,
        bytes: u64,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        loop {
            match self.within(operation, key, bytes, call()).await {
                Err(e) if e.is_unavailable() => tries.again(&self.policy, e).await?,
                result => return result,
            }
        }
    }

    /// One try to get an object, all of it.
    async fn get_whole(&self, key: &str) -> Result<Object, StoreError> {
        let object = self.inner.get(key).await?;
        if object.bytes.len() as u64 == object.size {
            return Ok(object);
        }
        Err(cut(self, Operation::Get, key, object.bytes.len(), object.size))
    }

    /// What stands under the key, compared with what we tried to write.
    async fn read_back(&self, tries: &mut Tries, key: &str, ours: &Bytes) -> Result<Found, StoreError> {
        let read = self.repeat(tries, Operation::Get, key, ours.len() as u64, || self.get_whole(key)).await;
        match read {
            Ok(object) if object.bytes == *ours => Ok(Found::Ours(object.version)),
            Ok(object) => Ok(Found::Other(object.version)),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(Found::Nothing),
            Err(e) => Err(e),
        }
    }

    /// The loop of create and swap, by the table above. `expected` is what may stand there before our write.
    async fn write_once<F>(
        &self,
        operation: Operation,
        key: &str,
        expected: Option<&Version>,
        bytes: &Bytes,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<Version, StoreError>
    where
        F: Future<Output = Result<Version, StoreError>> + Send,
    {
        let refusal = if operation == Operation::Create { StoreErrorKind::Exists } else { StoreErrorKind::Conflict };
        let mut tries = Tries::start();
        // Once one try may have happened, the whole call may have.
        let mut in_doubt = false;
        loop {
            let error = match self.within(operation, key, bytes.len() as u64, call()).await {
                Ok(version) => return Ok(version),
                Err(e) => e,
            };
            match error.kind {
                StoreErrorKind::Unavailable => {}
                StoreErrorKind::Ambiguous => in_doubt = true,
                kind if kind == refusal => {}
                _ => return Err(doubtful(error, in_doubt)),
            }
            if error.kind != StoreErrorKind::Unavailable {
                match self.read_back(&mut tries, key, bytes).await {
                    Ok(Found::Ours(version)) => return Ok(version),
                    Ok(Found::Nothing) if expected.is_none() => {}
                    Ok(Found::Other(version)) if Some(&version) == expected => {}
                    Ok(_) if error.kind == refusal => return Err(error),
                    Ok(_) => {
                        let reason = format!("another writer's object stands there (after: {})", error.reason);
                        return Err(StoreError { kind: refusal, reason, ..error });
                    }
                    Err(e) => {
                        let reason = format!("{}; and reading it back failed: {}", error.reason, e.reason);
                        return Err(doubtful(StoreError { reason, ..error }, in_doubt || error.kind == refusal));
                    }
                }
            }
            let unsettled = match error.kind {
                kind if kind == refusal => StoreError {
                    kind: StoreErrorKind::Unavailable,
                    reason: format!("{}, says the store, but reads find no such thing", error.reason),
                    ..error
                },
                _ => error,
            };
            tries.again(&self.policy, unsettled).await.map_err(|e| doubtful(e, in_doubt))?;
        }
    }
}

/// What a read-back finds.
#[derive(Debug)]
enum Found {
    Ours(Version),
    Other(Version),
    Nothing,
}

/// An error after a try that may have happened says so.
fn doubtful(error: StoreError, in_doubt: bool) -> StoreError {
    if in_doubt { StoreError { kind: StoreErrorKind::Ambiguous, ..error } } else { error }
}

/// The tries of one call so far.
#[derive(Debug)]
struct Tries {
    count: u32,
    start: Instant,
}

impl Tries {
    fn start() -> Self {
        Self { count: 1, start: Instant::now() }
    }

    /// Waits for the next try, or gives the error back when there is none.
    async fn again(&mut self, policy: &RetryPolicy, error: StoreError) -> Result<(), StoreError> {
        let pause = jittered(backoff(policy, self.count));
        if self.count >= policy.attempts_max || self.start.elapsed() + pause >= policy.deadline {
            let (count, elapsed) = (self.count, self.start.elapsed().as_secs_f64());
            let reason = format!("{} (tried {count} times in {elapsed:.1} s)", error.reason);
            return Err(if count == 1 { error } else { StoreError { reason, ..error } });
        }
        tracing::debug!(error = %error, attempt = self.count, pause_ms = pause.as_millis() as u64, "store: trying again");
        self.count += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn backoff(policy: &RetryPolicy, tries: u32) -> Duration {
    let doublings = tries.saturating_sub(1).min(20);
    policy.backoff_first.saturating_mul(1 << doublings).min(policy.backoff_max)
}

/// Between a half and the whole of the pause, so that many clients that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // Without randomness there is just no jitter.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

impl Retrying {
    async fn begin_upload<F>(
        &self,
        key: &str,
        begin: impl Fn() -> F + Send + Sync,
    ) -> Result<Box<dyn Upload>, StoreError>
    where
        F: Future<Output = Result<Box<dyn Upload>, StoreError>> + Send,
    {
        let mut tries = Tries::start();
        let inner = loop {
            // To have started an upload twice does no harm: nothing shows before it is finished.
            match self.within(Operation::Upload, key, 0, begin()).await {
                Ok(upload) => break upload,
                Err(e) if e.is_unavailable() || e.is_ambiguous() => tries.again(&self.policy, e).await?,
                Err(e) => return Err(e),
            }
        };
        let store = Self { inner: Arc::clone(&self.inner), policy: self.policy.clone() };
        Ok(Box::new(RetryingUpload { store, key: key.to_owned(), inner, written: 0 }))
    }
}

/// An answer that is shorter than what it says, from a connection that was cut.
fn cut(store: &dyn Store, operation: Operation, key: &str, got: usize, wanted: u64) -> StoreError {
    let reason = format!("the answer was cut short: {got} of {wanted} bytes");
    StoreError::new(StoreErrorKind::Unavailable, operation, key, store.describe(), reason)
}

#[async_trait]
impl Store for Retrying {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.repeat(&mut Tries::start(), Operation::Get, key, GET_BYTES_ASSUMED, || self.get_whole(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        assert!(range.start <= range.end, "ranges do not run backwards");
        let len = range.end - range.start;
        self.repeat(&mut Tries::start(), Operation::GetRange, key, len, || async {
            let bytes = self.inner.get_range(key, range.clone()).await?;
            if bytes.len() as u64 == len {
                Ok(bytes)
            } else {
                Err(cut(self, Operation::GetRange, key, bytes.len(), len))
            }
        })
        .await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.repeat(&mut Tries::start(), Operation::GetTail, key, len.min(GET_BYTES_ASSUMED), || async {
            let object = self.inner.get_tail(key, len).await?;
            let wanted = len.min(object.size);
            if object.bytes.len() as u64 == wanted {
                return Ok(object);
            }
            Err(cut(self, Operation::GetTail, key, object.bytes.len(), wanted))
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.repeat(&mut Tries::start(), Operation::Head, key, 0, || self.inner.head(key)).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.write_once(Operation::Create, key, None, &bytes, || self.inner.create(key, bytes.clone())).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let call = || self.inner.swap_if(key, expected, bytes.clone());
        self.write_once(Operation::Swap, key, expected, &bytes, call).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.begin_upload(key, || self.inner.upload(key)).await
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        self.begin_upload(key, || self.inner.upload_dated(key, made)).await
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let call = || self.inner.list_after(prefix, after, limit);
        self.repeat(&mut Tries::start(), Operation::List, prefix, 0, call).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner.remove_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first = keys.first().map_or("", String::as_str);
        self.repeat(&mut Tries::start(), Operation::Delete, first, 0, || self.inner.delete(keys)).await
    }
}

/// Parts are tried again by the backend, which still has them; here only the time is limited and the end settled.
#[derive(Debug)]
struct RetryingUpload {
    store: Retrying,
    key: String,
    inner: Box<dyn Upload>,
    written: u64,
}

#[async_trait]
impl Upload for RetryingUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        let limit = UPLOAD_BYTES_ASSUMED + len;
        self.store.within(Operation::Upload, &self.key, limit, self.inner.write(bytes)).await?;
        self.written += len;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        let Self { store, key, inner, written } = *self;
        let error = match store.within(Operation::Upload, &key, UPLOAD_BYTES_ASSUMED, inner.finish()).await {
            Err(e) if e.is_ambiguous() => e,
            result => return result,
        };
        // The key is ours alone, so an object of our size is ours.
        match store.head(&key).await {
            Ok(meta) if meta.size == written => Ok(meta.version),
            _ => Err(error),
        }
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.store.within(Operation::Upload, &self.key, 0, self.inner.abort()).await
    }
}
