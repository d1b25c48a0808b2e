//! Objects in a bucket of S3 (or what speaks like it), Google Cloud Storage or Azure Blob Storage.
//!
//! Invariants:
//!
//! 1. A conditional write is sent once, by a client that never retries. The library's own retry would meet our object and
//!    report "exists already" to its writer.
//! 2. 412 means what it says. 409 does not (S3 also sends it when two writes race and none has won, Azure when a blob
//!    exists): the object is looked at before "exists" is reported, and an answer that stays unclear is `Ambiguous`.
//! 3. Every request has a time limit that follows its size; every body that is read has a limit on silence.
//! 4. What is read is as long as the store says the object is, or it is an error.
//!
//! Versions are ETags on S3 and Azure and generations on Google Cloud Storage. An ETag can be a hash of the content: writing
//! the same bytes again gives the same version, so bodies need nonces (invariant 4 of the crate).

mod build;
mod errors;
mod profile;
mod provider;
mod upload;
mod watch;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutResult,
    UpdateVersion,
};
use rhyolite_format::Timestamp;

use crate::key::{check_key, check_prefix};
use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind as Kind, Upload};
use errors::{Doing, classify};
use watch::StatusCell;

pub(crate) use build::cloud;

/// Size of a part of an upload in bytes, if the URL does not say otherwise. 10,000 parts are the most: 78 GiB.
const PART_BYTES: u64 = 8 << 20;

/// The least that S3 takes.
const PART_BYTES_MIN: u64 = 5 << 20;

/// Longest wait for an answer, the client's own retries included.
const READ_TIMEOUT: Duration = Duration::from_secs(70);

/// Longest wait for the answer to a write, beside the time for its bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// Slowest line that is waited for, in bytes per second.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// How often the end of an object that keeps being replaced is asked for.
const TAIL_TRIES_MAX: usize = 5;

/// Largest buffer that is set aside before its bytes have come.
const READ_AHEAD_MAX: u64 = 64 << 20;

/// How long one try of a part may take.
fn part_time(bytes: u64) -> Duration {
    WRITE_TIMEOUT + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Where the stores differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    /// Old Ceph gateways compare ETags only without their quotes.
    S3 {
        unquoted_etags: bool,
    },
    Gcs,
    Azure,
}

/// Three clients of one bucket, by patience; see `build`.
#[derive(Clone, Debug)]
struct Handles {
    read: Arc<dyn ObjectStore>,
    conditional: Arc<dyn ObjectStore>,
    part: Arc<dyn ObjectStore>,
}

/// A bucket or container. Made by [`crate::open`].
#[derive(Clone, Debug)]
pub(crate) struct Cloud {
    description: String,
    flavour: Flavour,
    handles: Handles,
    part_bytes: u64,
    capabilities: Capabilities,
}

impl Cloud {
    fn error(&self, kind: Kind, operation: Operation, key: &str, reason: impl Into<String>) -> StoreError {
        StoreError::new(kind, operation, key, &self.description, reason)
    }

    fn path(&self, operation: Operation, key: &str) -> Result<Path, StoreError> {
        check_key(operation, key, &|| self.describe())?;
        Path::parse(key).map_err(|e| self.error(Kind::Invalid, operation, key, e.to_string()))
    }

    /// Waits for an answer, within the limit for reads.
    async fn read<T>(
        &self,
        operation: Operation,
        key: &str,
        status: &StatusCell,
        call: impl Future<Output = object_store::Result<T>> + Send,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(READ_TIMEOUT, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => {
                let (kind, reason) = classify(Doing::Reading, status.get(), &e);
                Err(self.error(kind, operation, key, reason))
            }
            Err(_) => {
                let reason = format!("no answer within {} s", READ_TIMEOUT.as_secs());
                Err(self.error(Kind::Unavailable, operation, key, reason))
            }
        }
    }

    async fn fetch(&self, operation: Operation, key: &str, options: GetOptions) -> Result<GetResult, Refusal> {
        let path = self.path(operation, key)?;
        let status = StatusCell::default();
        let options = GetOptions { extensions: status.extensions(), ..options };
        let result = self.read(operation, key, &status, self.handles.read.get_opts(&path, options)).await;
        result.map_err(|error| Refusal { status: status.get(), error })
    }

    /// Reads a body to its end: exactly `len` bytes.
    async fn body(&self, operation: Operation, key: &str, len: u64, result: GetResult) -> Result<Bytes, StoreError> {
        let mut bytes = BytesMut::with_capacity(len.min(READ_AHEAD_MAX) as usize);
        let mut body = result.into_stream();
        let status = StatusCell::default();
        while let Some(chunk) = self.read(operation, key, &status, body.next().map_swap()).await? {
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() as u64 != len {
            let reason = format!("the answer was cut short: {} of {len} bytes", bytes.len());
            return Err(self.error(Kind::Unavailable, operation, key, reason));
        }
        Ok(bytes.freeze())
    }

    fn version(&self, e_tag: Option<String>, generation: Option<String>) -> Option<Version> {
        let text = if self.flavour == Flavour::Gcs { generation } else { e_tag };
        text.map(Version::new)
    }

    fn version_of(&self, operation: Operation, key: &str, meta: &ObjectMeta) -> Result<Version, StoreError> {
        self.version(meta.e_tag.clone(), meta.version.clone()).ok_or_else(|| {
            let reason = "the store gives no version (ETag or generation) for the object: it cannot be replaced safely";
            self.error(Kind::Invalid, operation, key, reason)
        })
    }

    /// The version of what was just stored; asked for if the answer does not hold it.
    async fn version_stored(&self, operation: Operation, key: &str, stored: PutResult) -> Result<Version, StoreError> {
        match self.version(stored.e_tag, stored.version) {
            Some(version) => Ok(version),
            None => Ok(self.meta(operation, key).await?.version),
        }
    }

    async fn meta(&self, operation: Operation, key: &str) -> Result<Meta, StoreError> {
        let result = self.fetch(operation, key, GetOptions { head: true, ..GetOptions::default() }).await?;
        let version = self.version_of(operation, key, &result.meta)?;
        Ok(Meta { size: result.meta.size, version, modified: Some(modified(&result.meta)) })
    }

    /// The end of an object in two steps, for Azure, which knows no ranges that count from the end: look at the size, then read
    /// that version's bytes. Begins again if the object is replaced in between.
    async fn tail_by_size(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let operation = Operation::GetTail;
        for _ in 0..TAIL_TRIES_MAX {
            let Meta { size, version, .. } = self.meta(operation, key).await?;
            let range = size.saturating_sub(len)..size;
            if range.is_empty() {
                return Ok(Object { bytes: Bytes::new(), version, size });
            }
            let if_match = Some(version.as_str().to_owned());
            let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
            match self.fetch(operation, key, options).await {
                Ok(result) => {
                    let bytes = self.body(operation, key, len.min(size), result).await?;
                    return Ok(Object { bytes, version, size });
                }
                Err(refused) if refused.status == Some(412) => {}
                Err(refused) => return Err(refused.error),
            }
        }
        Err(self.error(Kind::Unavailable, operation, key, "the object is replaced faster than it can be read"))
    }

    /// One conditional write, sent once. 412 and 409 come back as errors with their status.
    async fn put(&self, operation: Operation, key: &str, mode: PutMode, bytes: Bytes) -> Result<Version, Refusal> {
        let path = self.path(operation, key)?;
        let status = StatusCell::default();
        let options = PutOptions { mode, extensions: status.extensions(), ..PutOptions::default() };
        let limit = WRITE_TIMEOUT + Duration::from_secs(bytes.len() as u64 / BYTES_PER_SECOND_MIN);
        let call = self.handles.conditional.put_opts(&path, bytes.into(), options);
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(stored)) => Ok(self.version_stored(operation, key, stored).await?),
            Ok(Err(e)) => {
                let (kind, reason) = classify(Doing::Writing, status.get(), &e);
                Err(Refusal { status: status.get(), error: self.error(kind, operation, key, reason) })
            }
            Err(_) => {
                let reason = format!("no answer within {} s", limit.as_secs());
                Err(self.error(Kind::Ambiguous, operation, key, reason).into())
            }
        }
    }

    fn update_mode(&self, expected: &Version) -> PutMode {
        let text = expected.as_str().to_owned();
        PutMode::Update(match self.flavour {
            Flavour::Gcs => UpdateVersion { e_tag: None, version: Some(text) },
            Flavour::S3 { unquoted_etags: true } => {
                UpdateVersion { e_tag: Some(text.trim_matches('"').to_owned()), version: None }
            }
            Flavour::S3 { .. } | Flavour::Azure => UpdateVersion { e_tag: Some(text), version: None },
        })
    }

    /// A create that was refused: is the object really there?
    async fn settle_create(&self, operation: Operation, key: &str, refused: Refusal) -> StoreError {
        let kind = if operation == Operation::Create { Kind::Exists } else { Kind::Conflict };
        match refused.status {
            Some(412) => StoreError { kind, reason: "the object exists already".to_owned(), ..refused.error },
            Some(409) => match self.meta(operation, key).await {
                Ok(_) => StoreError { kind, reason: "the object exists already".to_owned(), ..refused.error },
                Err(_) => refused.error,
            },
            _ => refused.error,
        }
    }
}

/// A request that failed, with the status if there was an answer.
#[derive(Debug)]
struct Refusal {
    status: Option<u16>,
    error: StoreError,
}

impl Refusal {
    /// Did the store refuse the range, or answer with another one?
    fn is_about_the_range(&self) -> bool {
        matches!(self.status, Some(200 | 206 | 416))
    }
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self { status: None, error }
    }
}

fn modified(meta: &ObjectMeta) -> Timestamp {
    Timestamp(meta.last_modified.timestamp_millis())
}

/// `None` at the end is a success, an error is one.
trait MapSwap<T> {
    fn map_swap(self) -> impl Future<Output = object_store::Result<Option<T>>> + Send;
}

impl<T, F: Future<Output = Option<object_store::Result<T>>> + Send> MapSwap<T> for F {
    async fn map_swap(self) -> object_store::Result<Option<T>> {
        self.await.transpose()
    }
}

#[async_trait]
impl Store for Cloud {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let result = self.fetch(Operation::Get, key, GetOptions::default()).await?;
        let version = self.version_of(Operation::Get, key, &result.meta)?;
        let size = result.meta.size;
        let bytes = self.body(Operation::Get, key, size, result).await?;
        Ok(Object { bytes, version, size })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        assert!(range.start <= range.end, "ranges do not run backwards");
        let operation = Operation::GetRange;
        let too_long = |size: u64| {
            let reason = format!("bytes {}..{} were asked for, the object has {size}", range.start, range.end);
            self.error(Kind::Corrupt, operation, key, reason)
        };
        if range.is_empty() {
            let size = self.meta(operation, key).await?.size;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(too_long(size)) };
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let result = match self.fetch(operation, key, options).await {
            Ok(result) => result,
            // Stores and the client library differ in how they refuse a range that the object does not have.
            Err(refused) if refused.is_about_the_range() => {
                let size = self.meta(operation, key).await?.size;
                return Err(if range.end > size { too_long(size) } else { refused.error });
            }
            Err(refused) => return Err(refused.error),
        };
        if result.range != range {
            return Err(too_long(result.meta.size));
        }
        self.body(operation, key, range.end - range.start, result).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        if len == 0 || self.flavour == Flavour::Azure {
            return self.tail_by_size(key, len).await;
        }
        let operation = Operation::GetTail;
        let options = GetOptions { range: Some(GetRange::Suffix(len)), ..GetOptions::default() };
        let result = match self.fetch(operation, key, options).await {
            Ok(result) => result,
            // No range of an empty object can be satisfied.
            Err(refused) if refused.is_about_the_range() => {
                let Meta { size, version, .. } = self.meta(operation, key).await?;
                let empty = Object { bytes: Bytes::new(), version, size };
                return if size == 0 { Ok(empty) } else { Err(refused.error) };
            }
            Err(refused) => return Err(refused.error),
        };
        let version = self.version_of(operation, key, &result.meta)?;
        let size = result.meta.size;
        if result.range != (size.saturating_sub(len)..size) {
            return Err(self.error(Kind::Corrupt, operation, key, "the store sent another part than the end"));
        }
        let bytes = self.body(operation, key, len.min(size), result).await?;
        Ok(Object { bytes, version, size })
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.meta(Operation::Head, key).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        match self.put(Operation::Create, key, PutMode::Create, bytes).await {
            Ok(version) => Ok(version),
            Err(refused) => Err(self.settle_create(Operation::Create, key, refused).await),
        }
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let Some(expected) = expected else {
            return match self.put(Operation::Swap, key, PutMode::Create, bytes).await {
                Ok(version) => Ok(version),
                Err(refused) => Err(self.settle_create(Operation::Swap, key, refused).await),
            };
        };
        let refused = match self.put(Operation::Swap, key, self.update_mode(expected), bytes).await {
            Ok(version) => return Ok(version),
            Err(refused) => refused,
        };
        let absent = refused.status == Some(404) && !refused.error.reason.contains("NoSuchBucket");
        let reason = match refused.status {
            Some(412) => "the object is not the expected version",
            _ if absent => "the object to replace does not exist",
            _ => return Err(refused.error),
        };
        Err(StoreError { kind: Kind::Conflict, reason: reason.to_owned(), ..refused.error })
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let path = self.path(Operation::Upload, key)?;
        Ok(Box::new(upload::CloudUpload::new(self.clone(), key.to_owned(), path, Attributes::new())))
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let path = self.path(Operation::Upload, key)?;
        // Azure allows no hyphens in names.
        let name = if self.flavour == Flavour::Azure { "litestreamtimestamp" } else { "litestream-timestamp" };
        let attributes = Attributes::from_iter([(Attribute::Metadata(name.into()), made.text.clone())]);
        Ok(Box::new(upload::CloudUpload::new(self.clone(), key.to_owned(), path, attributes)))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let operation = Operation::List;
        let folder = check_prefix(prefix, &|| self.describe())?;
        let invalid = |e: object_store::path::Error| self.error(Kind::Invalid, operation, prefix, e.to_string());
        let path = Path::parse(folder).map_err(invalid)?;
        let after_path = after.map(Path::parse).transpose().map_err(invalid)?;
        let mut entries: Vec<Entry> = Vec::new();
        if limit == 0 {
            return Ok(entries);
        }
        let mut objects = match &after_path {
            Some(after) => self.handles.read.list_with_offset(Some(&path), after),
            None => self.handles.read.list(Some(&path)),
        };
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let status = StatusCell::default();
        while let Some(meta) = self.read(operation, prefix, &status, objects.next().map_swap()).await? {
            let key = meta.location.as_ref();
            // Consoles make empty objects that stand for folders, and other programs may have made what is no key here.
            let is_ours = key.starts_with(&below) && check_key(operation, key, &|| self.describe()).is_ok();
            if !is_ours || after.is_some_and(|after| key <= after) {
                continue;
            }
            if entries.last().is_some_and(|last| last.key.as_str() >= key) {
                let reason = format!("the list is not in order at {key}: this kind of store is not supported");
                return Err(self.error(Kind::Invalid, operation, prefix, reason));
            }
            entries.push(Entry { key: key.to_owned(), size: meta.size, modified: Some(modified(&meta)) });
            if entries.len() == limit {
                break;
            }
        }
        Ok(entries)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let paths: Result<Vec<Path>, _> = keys.iter().map(|k| self.path(Operation::Delete, k)).collect();
        let paths = paths?;
        let Some(first) = keys.first() else { return Ok(()) };
        let mut deleted = self.handles.read.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        let status = StatusCell::default();
        loop {
            match self.read(Operation::Delete, first, &status, deleted.next().map_swap()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(e) if e.kind == Kind::NotFound && !e.reason.contains("NoSuchBucket") => {}
                Err(e) => return Err(e),
            }
        }
    }
}
