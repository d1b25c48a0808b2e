//! The store of a database as the node that serves it sees it: for a follower that has no keys of its own for it.

use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
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
use super::{PART_BYTES_MAX, WHOLE_BYTES_MAX};

/// The longest listing that is taken.
const LIST_BYTES_MAX: u64 = 16 << 20;

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

    async fn read(
        &self,
        operation: Operation,
        key: &str,
        path: &str,
        bytes_max: u64,
    ) -> Result<(HeaderMap, Bytes), StoreError> {
        let link = self.links.borrow().clone();
        let link = link.ok_or_else(|| self.error(StoreErrorKind::Unavailable, operation, key, "not connected"))?;
        link.read(path, bytes_max).await.map_err(|error| {
            let kind = match &error {
                LinkError::Refused { status, kind, .. } => StoreErrorKind::ALL
                    .into_iter()
                    .find(|known| kind.as_deref() == Some(known.name()))
                    .unwrap_or(if status.is_client_error() && *status != StatusCode::NOT_FOUND {
                        StoreErrorKind::Invalid
                    } else {
                        StoreErrorKind::Unavailable
                    }),
                LinkError::Malformed(_) | LinkError::Unexpected(_) => StoreErrorKind::Corrupt,
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

    async fn object(
        &self,
        operation: Operation,
        key: &str,
        query: Query,
        bytes_max: u64,
    ) -> Result<Object, StoreError> {
        let (headers, bytes) = self.read(operation, key, &query.of("/v1/object"), bytes_max).await?;
        let (size, version) = self.meta(operation, key, &headers)?;
        Ok(Object { bytes, version, size })
    }

    /// A part that is sent as one.
    async fn part(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end - range.start;
        let query = self.query().with("key", key).with("range", format!("{}-{}", range.start, range.end));
        let (_, bytes) = self.read(Operation::GetRange, key, &query.of("/v1/object"), len).await?;
        let is_whole = bytes.len() as u64 == len;
        if is_whole { Ok(bytes) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::GetRange, key, "cut off")) }
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
        let object = self.object(Operation::Get, key, self.query().with("key", key), WHOLE_BYTES_MAX).await?;
        let is_whole = object.bytes.len() as u64 == object.size;
        if is_whole { Ok(object) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::Get, key, "cut off")) }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let first = self.part(key, range.start..range.end.min(range.start.saturating_add(PART_BYTES_MAX))).await?;
        let mut at = range.start + first.len() as u64;
        if at == range.end {
            return Ok(first);
        }
        let mut whole = BytesMut::from(first);
        while at < range.end {
            let part = self.part(key, at..range.end.min(at.saturating_add(PART_BYTES_MAX))).await?;
            at += part.len() as u64;
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let query = self.query().with("key", key).with("tail", len);
        let object = self.object(Operation::GetTail, key, query, len).await?;
        let is_whole = object.bytes.len() as u64 == object.size.min(len);
        if is_whole { Ok(object) } else { Err(self.error(StoreErrorKind::Corrupt, Operation::GetTail, key, "cut off")) }
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let query = self.query().with("key", key).with("head", 1);
        let (headers, _) = self.read(Operation::Head, key, &query.of("/v1/object"), 0).await?;
        let (size, version) = self.meta(Operation::Head, key, &headers)?;
        Ok(Meta { size, version, modified: None })
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let mut query = self.query().with("prefix", prefix).with("limit", limit);
        if let Some(after) = after {
            query = query.with("after", after);
        }
        let (_, json) = self.read(Operation::List, prefix, &query.of("/v1/list"), LIST_BYTES_MAX).await?;
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
