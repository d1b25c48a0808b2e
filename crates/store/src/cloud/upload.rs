//! Big objects in parts.
//!
//! At most one part is being filled and [`PARTS_IN_FLIGHT_MAX`] are on their way, so an upload holds three parts in memory. An
//! object that is smaller than a part is stored by one request. All parts but the last have the same size, as R2 wants it.
//! The parts of an upload that is dropped are removed in the background, as far as the process lives to do it; a bucket
//! should have a rule that removes old incomplete uploads.

use std::future::Future;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{Attributes, MultipartUpload, PutMultipartOptions, PutOptions};
use tokio::task::JoinSet;

use super::errors::{Doing, classify};
use super::{Cloud, READ_TIMEOUT, WRITE_TIMEOUT, part_time};
use crate::{Operation, StoreError, StoreErrorKind as Kind, Upload, Version};

const PARTS_IN_FLIGHT_MAX: usize = 2;

/// What S3 allows.
const PARTS_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct CloudUpload {
    cloud: Cloud,
    key: String,
    path: Path,
    /// The part that is being filled.
    filling: BytesMut,
    /// What the object says of itself.
    attributes: Attributes,
    /// Begun with the first full part.
    multipart: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
    parts: usize,
    failed: bool,
}

impl CloudUpload {
    pub(super) fn new(cloud: Cloud, key: String, path: Path, attributes: Attributes) -> Self {
        Self {
            cloud,
            key,
            path,
            filling: BytesMut::new(),
            attributes,
            multipart: None,
            in_flight: JoinSet::new(),
            parts: 0,
            failed: false,
        }
    }

    fn error(&self, kind: Kind, reason: impl Into<String>) -> StoreError {
        self.cloud.error(kind, Operation::Upload, &self.key, reason)
    }

    fn classified(&self, doing: Doing, error: &object_store::Error) -> StoreError {
        let (kind, reason) = classify(doing, None, error);
        self.error(kind, reason)
    }

    /// Starts sending what is in `filling`.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        if self.parts == PARTS_MAX {
            let reason = format!("more than {PARTS_MAX} parts: give a larger part-size in the URL of the store");
            return Err(self.error(Kind::Invalid, reason));
        }
        while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
            self.wait_for_part().await?;
        }
        if self.multipart.is_none() {
            let options = PutMultipartOptions { attributes: self.attributes.clone(), ..PutMultipartOptions::default() };
            let begin = self.cloud.handles.part.put_multipart_opts(&self.path, options);
            let begun = tokio::time::timeout(READ_TIMEOUT, begin).await;
            let begun = begun.map_err(|_| self.error(Kind::Unavailable, "no answer to the start of the upload"))?;
            self.multipart = Some(begun.map_err(|e| self.classified(Doing::Reading, &e))?);
        }
        let multipart = self.multipart.as_mut().expect("begun above");
        let part = multipart.put_part(self.filling.split().freeze().into());
        self.parts += 1;
        self.in_flight.spawn(part);
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<(), StoreError> {
        // The client repeats a part several times; this limit only guards against its never ending.
        let limit = part_time(self.cloud.part_bytes) * 5;
        let done = match tokio::time::timeout(limit, self.in_flight.join_next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(done))) => done,
            Ok(Some(Err(stopped))) => return Err(self.error(Kind::Unavailable, stopped.to_string())),
            Err(_) => return Err(self.error(Kind::Unavailable, "a part of the upload got no answer")),
        };
        done.map_err(|e| self.classified(Doing::Reading, &e))
    }

    /// Stores an object that fits into one part. Overwriting is harmless: the key is the writer's own.
    async fn put_whole(&mut self) -> Result<Version, StoreError> {
        let bytes = self.filling.split().freeze();
        let limit = part_time(bytes.len() as u64) * 5;
        let options = PutOptions { attributes: self.attributes.clone(), ..PutOptions::default() };
        let put = self.cloud.handles.part.put_opts(&self.path, bytes.into(), options);
        let stored = tokio::time::timeout(limit, put).await;
        let stored = stored.map_err(|_| self.error(Kind::Ambiguous, "no answer to the upload"))?;
        let stored = stored.map_err(|e| self.classified(Doing::Writing, &e))?;
        self.cloud.version_stored(Operation::Upload, &self.key, stored).await
    }

    async fn complete(&mut self) -> Result<Version, StoreError> {
        if !self.filling.is_empty() {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.wait_for_part().await?;
        }
        let multipart = self.multipart.as_mut().expect("complete follows a part");
        let limit = READ_TIMEOUT + WRITE_TIMEOUT;
        let completed = tokio::time::timeout(limit, multipart.complete()).await;
        let stored = match completed {
            Ok(Ok(stored)) => stored,
            Ok(Err(e)) => {
                let e = self.classified(Doing::Writing, &e);
                // The answer to an earlier try of the client may have been lost: then the upload is "not found".
                let kind = if e.kind == Kind::NotFound { Kind::Ambiguous } else { e.kind };
                return Err(StoreError { kind, ..e });
            }
            Err(_) => return Err(self.error(Kind::Ambiguous, "no answer to the end of the upload")),
        };
        self.multipart = None;
        self.cloud.version_stored(Operation::Upload, &self.key, stored).await
    }

    /// The work of giving up, if there is any.
    fn giving_up(&mut self) -> Option<impl Future<Output = object_store::Result<()>> + Send + 'static> {
        self.in_flight.abort_all();
        let mut multipart = self.multipart.take()?;
        Some(async move { multipart.abort().await })
    }
}

#[async_trait]
impl Upload for CloudUpload {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        if self.failed {
            return Err(self.error(Kind::Invalid, "an earlier write of this upload failed: start it again"));
        }
        let part_bytes = self.cloud.part_bytes as usize;
        while self.filling.len() + bytes.len() >= part_bytes {
            let take = part_bytes - self.filling.len();
            self.filling.extend_from_slice(&bytes.split_to(take));
            // A part that was not sent is lost: without this a later finish would leave a hole. Also when we are cancelled.
            self.failed = true;
            self.send_part().await?;
            self.failed = false;
        }
        self.filling.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Version, StoreError> {
        if self.failed {
            return Err(self.error(Kind::Invalid, "an earlier write of this upload failed: start it again"));
        }
        if self.multipart.is_none() { self.put_whole().await } else { self.complete().await }
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        let Some(giving_up) = self.giving_up() else { return Ok(()) };
        match tokio::time::timeout(READ_TIMEOUT, giving_up).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.classified(Doing::Reading, &e)),
            Err(_) => Err(self.error(Kind::Unavailable, "no answer to the end of the upload")),
        }
    }
}

impl Drop for CloudUpload {
    fn drop(&mut self) {
        if let (Some(giving_up), Ok(runtime)) = (self.giving_up(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(READ_TIMEOUT, giving_up));
        }
    }
}
