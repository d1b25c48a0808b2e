//! The store of a database as the node that serves it sees it: for a follower that has no keys of its own for it.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use rhyolite_format::Timestamp;
use rhyolite_store::{
    Capabilities, Entry, Meta, Object, Operation, Store, StoreError, StoreErrorKind, Upload, Version,
};
use serde::Deserialize;
use tokio::sync::watch;

use super::client::{Link, LinkError};
use super::query::Query;
use super::server::{SIZE_HEADER, VERSION_HEADER};

/// The largest object or part of one that is taken.
const OBJECT_BYTES_MAX: usize = 1 << 30;

/// The store of one database, read through whatever connection there is.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    /// The connection, while there is one.
    pub links: watch::Receiver<Option<Link>>,
    /// The database's name there.
    pub database: String,
    /// Where that is, for messages.
    pub node: String,
}

/// An entry of a listing.
#[derive(Deserialize)]
struct Listed {
    key: String,
    size: u64,
    modified: Option<i64>,
}

impl RemoteStore {
    fn query(&self) -> Query {
        Query::default().with("db", &self.database)
    }

    fn error(&self, kind: StoreErrorKind, operation: Operation, key: &str, text: impl Into<String>) -> StoreError {
        StoreError::new(kind, operation, key, self.describe(), text)
    }

    async fn read(&self, operation: Operation, key: &str, path: &str) -> Result<(HeaderMap, Bytes), StoreError> {
        let link = self.links.borrow().clone();
        let link = link.ok_or_else(|| self.error(StoreErrorKind::Unavailable, operation, key, "not connected"))?;
        link.read(path, OBJECT_BYTES_MAX).await.map_err(|error| {
            let kind = match &error {
                LinkError::Refused { status, kind, .. } => StoreErrorKind::ALL
                    .into_iter()
                    .find(|known| kind.as_deref() == Some(known.name()))
                    .unwrap_or(if status.is_client_error() && *status != StatusCode::NOT_FOUND {
                        StoreErrorKind::Invalid
                    } else {
                        StoreErrorKind::Unavailable
                    }),
                LinkError::Malformed(_) => StoreErrorKind::Corrupt,
                LinkError::Lost(_) | LinkError::NotLoopback(_) => StoreErrorKind::Unavailable,
            };
            self.error(kind, operation, key, error.to_string())
        })
    }

    fn meta(&self, operation: Operation, key: &str, headers: &HeaderMap) -> Result<(u64, Version), StoreError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let size = text(SIZE_HEADER).and_then(|size| size.parse().ok());
        let version = text(VERSION_HEADER).map(Version::new);
        size.zip(version).ok_or_else(|| self.error(StoreErrorKind::Corrupt, operation, key, "an answer without a size"))
    }

    async fn object(&self, operation: Operation, key: &str, query: Query) -> Result<Object, StoreError> {
        let (headers, bytes) = self.read(operation, key, &query.of("/v1/object")).await?;
        let (size, version) = self.meta(operation, key, &headers)?;
        Ok(Object { bytes, version, size })
    }

    fn refuse<T>(&self, operation: Operation, key: &str) -> Result<T, StoreError> {
        Err(self.error(StoreErrorKind::Invalid, operation, key, "a follower only reads"))
    }
}

#[async_trait]
impl Store for RemoteStore {
    fn describe(&self) -> String {
        format!("the store of {} at {}", self.database, self.node)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::absent("is only read")
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let object = self.object(Operation::Get, key, self.query().with("key", key)).await?;
        let is_whole = object.bytes.len() as u64 == object.size;
        if is_whole { Ok(object) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::Get, key, "cut off")) }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let query = self.query().with("key", key).with("range", format!("{}-{}", range.start, range.end));
        let (_, bytes) = self.read(Operation::GetRange, key, &query.of("/v1/object")).await?;
        let is_whole = bytes.len() as u64 == range.end - range.start;
        if is_whole { Ok(bytes) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::GetRange, key, "cut off")) }
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let object = self.object(Operation::GetTail, key, self.query().with("key", key).with("tail", len)).await?;
        let is_whole = object.bytes.len() as u64 == object.size.min(len);
        if is_whole { Ok(object) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::GetTail, key, "cut off")) }
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let query = self.query().with("key", key).with("head", 1);
        let (headers, _) = self.read(Operation::Head, key, &query.of("/v1/object")).await?;
        let (size, version) = self.meta(Operation::Head, key, &headers)?;
        Ok(Meta { size, version, modified: None })
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let mut query = self.query().with("prefix", prefix).with("limit", limit);
        if let Some(after) = after {
            query = query.with("after", after);
        }
        let (_, json) = self.read(Operation::List, prefix, &query.of("/v1/list")).await?;
        let listed: Vec<Listed> = serde_json::from_slice(&json)
            .map_err(|e| self.error(StoreErrorKind::Corrupt, Operation::List, prefix, e.to_string()))?;
        let entry = |e: Listed| Entry { key: e.key, size: e.size, modified: e.modified.map(Timestamp) };
        Ok(listed.into_iter().map(entry).collect())
    }

    async fn create(&self, key: &str, _: Bytes) -> Result<Version, StoreError> {
        self.refuse(Operation::Create, key)
    }

    async fn swap_if(&self, key: &str, _: Option<&Version>, _: Bytes) -> Result<Version, StoreError> {
        self.refuse(Operation::Swap, key)
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.refuse(Operation::Upload, key)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.refuse(Operation::Delete, keys.first().map_or("", String::as_str))
    }
}
