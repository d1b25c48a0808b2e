//! Objects as files on a WebDAV server.
//!
//! Invariants:
//!
//! 1. An object gets its name by a move, when all its bytes are there.
//! 2. Names are given, replaced and deleted under the turn of their folder ([`turn`]), which no two writers have at once and which a
//!    writer cannot lose without its write becoming impossible. The conditions of the protocol are not relied upon.
//! 3. A version is the modification time, in whole seconds as servers tell it, and the size. A swap waits until its draft is in a later
//!    second than the object it replaces, so a version does not come back. An object that is deleted and created again with the same
//!    size within a second has the same version; nothing that is swapped is ever deleted and made again.
//! 4. A server may remove the object that a move replaces before it moves: a reader that finds nothing while a writer has its
//!    turn looks again; and so does one that finds nothing and then no turn, for the turn may have ended in between.
//! 5. A server may look at a file first and open it then: of one that is replaced in between it tells the old time and size, and sends
//!    the new bytes. What is read with a version counts when the object still has that version afterwards.
//! 6. Every request has a time limit, and every answer that is not an object a largest size.
//!
//! Names that begin with `.rhyolite-` are this module's own and never listed.

mod build;
mod list;
mod multistatus;
mod request;
mod turn;
mod upload;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::key::{check_key, check_prefix};
use crate::types::{Entry, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind as Kind, Upload};
use multistatus::Resource;
use request::{Answer, Asked, Dav, Effect, GET_BYTES_ASSUMED, Request, version_of};
use turn::{Turn, folder_of};

pub(crate) use build::webdav;

/// How often a reader looks again that finds nothing while a writer has its turn.
const LOOKS_AGAIN_MAX: usize = 20;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(25);
/// How often of these it may be forbidden to read what is there.
const FORBIDDEN_READS_MAX: usize = 4;

/// How often a read begins again because the object was replaced meanwhile, which happens once a second at most.
const READS_MAX: usize = 4;

/// How often a swap begins again because its draft is not later than what it replaces.
const SWAP_TRIES_MAX: usize = 4;
/// Tries of a create that a server forbids, and the first pause between two.
const FORBIDDEN_TRIES_MAX: u32 = 4;
const FORBIDDEN_PAUSE: Duration = Duration::from_millis(20);

/// Longer than the second in which two files have the same time.
const NEXT_SECOND: Duration = Duration::from_millis(1100);

/// A store on a WebDAV server. Made by [`crate::open`].
#[derive(Clone, Debug)]
pub(crate) struct WebDav {
    dav: Dav,
    /// This process's writers queue here instead of at the server.
    queue: Arc<Semaphore>,
}

impl WebDav {
    fn new(dav: Dav) -> Self {
        Self { dav, queue: Arc::new(Semaphore::new(1)) }
    }

    fn checked<'a>(&self, operation: Operation, key: &'a str) -> Result<Asked<'a>, StoreError> {
        check_key(operation, key, &|| self.dav.description.clone())?;
        Ok(Asked { operation, key })
    }

    /// Reads the object, all of it or a range. `None` if there is none.
    async fn fetch(&self, asked: Asked<'_>, range: Option<String>, bytes: u64) -> Result<Option<Answer>, StoreError> {
        let (mut forbidden, mut was_absent) = (0, false);
        for _ in 0..LOOKS_AGAIN_MAX {
            let headers = range.iter().map(|r| ("range", r.clone())).collect();
            let request = Request { method: "GET", url: self.dav.url(asked.key), headers, body: Bytes::new().into() };
            let answer = self.dav.send(asked, Effect::None, bytes, request).await?;
            match answer.status {
                200..=299 | 416 => return Ok(Some(answer)),
                // A folder is no object; a server redirects to it, or refuses to show it.
                301 | 302 | 307 | 308 => return Ok(None),
                404 | 410 if self.is_being_written(asked).await? => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
                404 | 410 if was_absent => return Ok(None),
                404 | 410 => was_absent = true,
                403 if self.look_at(asked).await?.is_none() => return Ok(None),
                // Apache says so, too, when the object was replaced between its own look at it and the opening.
                403 if forbidden < FORBIDDEN_READS_MAX => {
                    forbidden += 1;
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
                _ => return Err(self.dav.refusal(asked, Effect::None, &answer)),
            }
        }
        Ok(None)
    }

    /// Reads the object, all of it or its end, with the version that belongs to what was read. `None` if there is none.
    async fn fetch_settled(
        &self,
        asked: Asked<'_>,
        range: Option<String>,
        bytes: u64,
    ) -> Result<Option<Answer>, StoreError> {
        for _ in 0..READS_MAX {
            let Some(answer) = self.fetch(asked, range.clone(), bytes).await? else { return Ok(None) };
            let Some(version) = answer.version_told() else { return Ok(Some(answer)) };
            match self.meta(asked).await? {
                Some(meta) if meta.version == version => return Ok(Some(answer)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
        Err(self.dav.error(asked, Kind::Unavailable, "the object was replaced each time it was read"))
    }

    async fn is_being_written(&self, asked: Asked<'_>) -> Result<bool, StoreError> {
        turn::is_taken(&self.dav, asked, folder_of(asked.key)).await
    }

    /// What is known of the object right now; `None` if there is none, or a folder.
    async fn look_at(&self, asked: Asked<'_>) -> Result<Option<Resource>, StoreError> {
        let found = self.dav.look(asked, asked.key, 0).await?.unwrap_or_default();
        Ok(found.into_iter().next().filter(|r| !r.is_folder))
    }

    async fn meta(&self, asked: Asked<'_>) -> Result<Option<Meta>, StoreError> {
        let mut was_absent = false;
        for _ in 0..LOOKS_AGAIN_MAX {
            if let Some(resource) = self.look_at(asked).await? {
                return self.meta_of(asked, resource).map(Some);
            }
            if self.is_being_written(asked).await? {
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            } else if was_absent {
                return Ok(None);
            } else {
                was_absent = true;
            }
        }
        Ok(None)
    }

    fn meta_of(&self, asked: Asked<'_>, resource: Resource) -> Result<Meta, StoreError> {
        let size = resource.size.ok_or_else(|| self.dav.error(asked, Kind::Corrupt, "the server tells no size"))?;
        let version = version_of(resource.etag, resource.modified, size).ok_or_else(|| self.no_version(asked))?;
        Ok(Meta { size, version, modified: resource.modified })
    }

    fn no_version(&self, asked: Asked<'_>) -> StoreError {
        self.dav.error(asked, Kind::Invalid, "the server gives neither an ETag nor a time for the object")
    }

    fn not_found(&self, asked: Asked<'_>) -> StoreError {
        self.dav.error(asked, Kind::NotFound, "there is no such object")
    }

    /// An object from an answer that holds all of it.
    fn whole(&self, asked: Asked<'_>, answer: &Answer) -> Result<Object, StoreError> {
        let size = answer.body.len() as u64;
        let version = answer.version(size).ok_or_else(|| self.no_version(asked))?;
        Ok(Object { bytes: answer.body.clone(), version, size })
    }

    /// Creates, or as a swap that expects nothing: the errors differ. Apache forbids what it meets in the middle of a race; one that forbids it for good does so again.
    async fn create_as(&self, asked: Asked<'_>, bytes: Bytes) -> Result<Version, StoreError> {
        let mut pause = FORBIDDEN_PAUSE;
        for _ in 0..FORBIDDEN_TRIES_MAX {
            match self.create_once(asked, bytes.clone()).await {
                Err(error) if error.kind == Kind::Denied => tokio::time::sleep(pause).await,
                created => return created,
            }
            pause *= 2;
        }
        self.create_once(asked, bytes).await
    }

    async fn create_once(&self, asked: Asked<'_>, bytes: Bytes) -> Result<Version, StoreError> {
        let taken = if asked.operation == Operation::Create { Kind::Exists } else { Kind::Conflict };
        let _queued = self.queue.acquire().await.expect("never closed");
        let turn = Turn::take(&self.dav, asked, folder_of(asked.key), bytes).await?;
        let moved = async {
            let answer = self.dav.rename(asked, &turn.draft(), asked.key, false).await?;
            match answer.status {
                200..=299 => self.version_written(asked).await,
                412 => Err(self.dav.error(asked, taken, "the object exists already")),
                // Apache's answer when the name was taken while it looked.
                403 if self.look_at(asked).await?.is_some() => {
                    Err(self.dav.error(asked, taken, "the object exists already"))
                }
                // Gone is what was to be moved; or a folder above it, which the turn was in.
                404 | 409 => Err(Turn::lost(&self.dav, asked)),
                _ => Err(self.dav.refusal(asked, Effect::Change, &answer)),
            }
        };
        let moved = moved.await;
        turn.end(&self.dav, asked).await;
        moved
    }

    /// The version of what was moved to its name a moment ago, still under the turn.
    async fn version_written(&self, asked: Asked<'_>) -> Result<Version, StoreError> {
        let open = |e: StoreError| StoreError { kind: Kind::Ambiguous, ..e };
        match self.look_at(asked).await.map_err(open)? {
            Some(resource) => Ok(self.meta_of(asked, resource)?.version),
            None => Err(open(self.dav.error(asked, Kind::Ambiguous, "what was just stored cannot be seen"))),
        }
    }

    /// One try of a swap; `None` if the draft is as old as what it would replace.
    async fn try_swap(
        &self,
        asked: Asked<'_>,
        expected: &Version,
        bytes: Bytes,
    ) -> Result<Option<Version>, StoreError> {
        let turn = Turn::take(&self.dav, asked, folder_of(asked.key), bytes).await?;
        let swapped = self.swap_in_turn(asked, &turn, expected).await;
        turn.end(&self.dav, asked).await;
        swapped
    }

    async fn swap_in_turn(
        &self,
        asked: Asked<'_>,
        turn: &Turn,
        expected: &Version,
    ) -> Result<Option<Version>, StoreError> {
        let conflict = |reason: String| self.dav.error(asked, Kind::Conflict, reason);
        let Some(old) = self.look_at(asked).await? else {
            return Err(conflict("the object to replace does not exist".to_owned()));
        };
        let old = self.meta_of(asked, old)?;
        if old.version != *expected {
            return Err(conflict(format!("the object is version {}, not {expected}", old.version)));
        }
        let draft = self.dav.look(asked, &turn.draft(), 0).await?.unwrap_or_default();
        let Some(draft) = draft.into_iter().next() else { return Err(Turn::lost(&self.dav, asked)) };
        if old.modified.is_some() && draft.modified <= old.modified {
            return Ok(None);
        }
        let answer = self.dav.rename(asked, &turn.draft(), asked.key, true).await?;
        match answer.status {
            200..=299 => self.version_written(asked).await.map(Some),
            404 | 409 => Err(Turn::lost(&self.dav, asked)),
            _ => Err(self.dav.refusal(asked, Effect::Change, &answer)),
        }
    }

    /// Deletes those of the keys, all in one folder, that are objects.
    async fn delete_inside(&self, asked: Asked<'_>, folder: &str, keys: &[&String]) -> Result<(), StoreError> {
        let asked = Asked { operation: Operation::Delete, ..asked };
        let there = self.files_in(asked, folder).await?;
        let doomed: Vec<_> = keys.iter().filter(|key| there.contains(key.as_str())).collect();
        if doomed.is_empty() {
            return Ok(());
        }
        let _queued = self.queue.acquire().await.expect("never closed");
        // Not empty: nginx stores no empty bodies.
        let turn = Turn::take(&self.dav, asked, folder, Bytes::from_static(b"-")).await?;
        let mut outcome = Ok(());
        for key in doomed {
            let asked = Asked { key, ..asked };
            outcome = match self.dav.change(asked, "DELETE", key, Vec::new()).await {
                Ok(answer) if matches!(answer.status, 200..=299 | 404 | 410) => continue,
                Ok(answer) => Err(self.dav.refusal(asked, Effect::None, &answer)),
                // Deleting twice does no harm.
                Err(e) => Err(StoreError { kind: Kind::Unavailable, ..e }),
            };
            break;
        }
        turn.end(&self.dav, asked).await;
        outcome
    }
}

#[async_trait]
impl Store for WebDav {
    fn describe(&self) -> String {
        self.dav.description.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::unproven(
            "is a WebDAV server, and it depends on the server whether it renames a folder in one step",
        )
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let asked = self.checked(Operation::Get, key)?;
        match self.fetch_settled(asked, None, GET_BYTES_ASSUMED).await? {
            Some(answer) if answer.status == 200 && answer.version(0).is_some() => self.whole(asked, &answer),
            // A page about a folder.
            Some(answer) if answer.status == 200 => match self.look_at(asked).await? {
                Some(_) => Err(self.no_version(asked)),
                None => Err(self.not_found(asked)),
            },
            Some(answer) => Err(self.dav.refusal(asked, Effect::None, &answer)),
            None => Err(self.not_found(asked)),
        }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        assert!(range.start <= range.end, "ranges do not run backwards");
        let asked = self.checked(Operation::GetRange, key)?;
        let too_long = |size: u64| {
            let reason = format!("bytes {}..{} were asked for, the object has {size}", range.start, range.end);
            self.dav.error(asked, Kind::Corrupt, reason)
        };
        let size = async || Ok::<u64, StoreError>(self.meta(asked).await?.ok_or_else(|| self.not_found(asked))?.size);
        if range.is_empty() {
            let size = size().await?;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(too_long(size)) };
        }
        let len = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = self.fetch(asked, Some(header), len).await?.ok_or_else(|| self.not_found(asked))?;
        match (answer.status, answer.content_range()) {
            (206, Some((start, end, _))) if (start..end) == range && answer.body.len() as u64 == len => Ok(answer.body),
            (206, Some((_, _, size))) if range.end > size => Err(too_long(size)),
            // A server that knows no ranges.
            (200, _) if range.end <= answer.body.len() as u64 => {
                Ok(answer.body.slice(range.start as usize..range.end as usize))
            }
            (200, _) => Err(too_long(answer.body.len() as u64)),
            (416, _) => Err(too_long(size().await?)),
            _ => Err(self.dav.error(asked, Kind::Corrupt, "the server sent another range than was asked for")),
        }
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let asked = self.checked(Operation::GetTail, key)?;
        if len == 0 {
            let meta = self.meta(asked).await?.ok_or_else(|| self.not_found(asked))?;
            return Ok(Object { bytes: Bytes::new(), version: meta.version, size: meta.size });
        }
        let header = format!("bytes=-{len}");
        let answer = self.fetch_settled(asked, Some(header), len.min(GET_BYTES_ASSUMED)).await?;
        let answer = answer.ok_or_else(|| self.not_found(asked))?;
        match (answer.status, answer.content_range()) {
            (206, Some((start, end, size))) if end == size && start == size.saturating_sub(len) => {
                let version = answer.version(size).ok_or_else(|| self.no_version(asked))?;
                if answer.body.len() as u64 != end - start {
                    return Err(self.dav.error(asked, Kind::Unavailable, "the answer was cut short"));
                }
                Ok(Object { bytes: answer.body, version, size })
            }
            (200, _) => {
                let whole = self.whole(asked, &answer)?;
                let start = whole.size.saturating_sub(len) as usize;
                Ok(Object { bytes: whole.bytes.slice(start..), ..whole })
            }
            // No range of an empty object can be satisfied, and not every server cuts a range that is too long.
            (416, _) => {
                let whole = self.get(key).await.map_err(|e| StoreError { operation: Operation::GetTail, ..e })?;
                let start = whole.size.saturating_sub(len) as usize;
                Ok(Object { bytes: whole.bytes.slice(start..), ..whole })
            }
            _ => Err(self.dav.error(asked, Kind::Corrupt, "the server sent another part than the end")),
        }
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let asked = self.checked(Operation::Head, key)?;
        self.meta(asked).await?.ok_or_else(|| self.not_found(asked))
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.create_as(self.checked(Operation::Create, key)?, bytes).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let asked = self.checked(Operation::Swap, key)?;
        let Some(expected) = expected else { return self.create_as(asked, bytes).await };
        let _queued = self.queue.acquire().await.expect("never closed");
        // Most refusals need no turn.
        if self.meta(asked).await?.is_none_or(|meta| meta.version != *expected) {
            return Err(self.dav.error(asked, Kind::Conflict, "the object is not the expected version"));
        }
        for _ in 0..SWAP_TRIES_MAX {
            if let Some(version) = self.try_swap(asked, expected, bytes.clone()).await? {
                return Ok(version);
            }
            tokio::time::sleep(NEXT_SECOND).await;
        }
        Err(self.dav.error(asked, Kind::Unavailable, "the server's clock does not go on"))
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let asked = self.checked(Operation::Upload, key)?;
        Ok(Box::new(upload::DavUpload::begin(self.clone(), asked).await?))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let prefix = check_prefix(prefix, &|| self.dav.description.clone())?;
        self.list(prefix, after, limit).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        let prefix = check_prefix(prefix, &|| self.dav.description.clone())?;
        if prefix.is_empty() || !self.list(prefix, None, 1).await?.is_empty() {
            return Ok(());
        }
        let asked = Asked { operation: Operation::Delete, key: prefix };
        let answer = self.dav.change(asked, "DELETE", &format!("{prefix}/"), Vec::new()).await?;
        match answer.status {
            200..=299 | 404 => Ok(()),
            _ => Err(self.dav.refusal(asked, Effect::None, &answer)),
        }
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            self.checked(Operation::Delete, key)?;
        }
        let folders: std::collections::BTreeSet<&str> = keys.iter().map(|k| folder_of(k)).collect();
        for folder in folders {
            let inside: Vec<&String> = keys.iter().filter(|k| folder_of(k) == folder).collect();
            let first = inside.first().expect("a folder is visited because of a key");
            self.delete_inside(Asked { operation: Operation::Delete, key: first }, folder, &inside).await?;
        }
        Ok(())
    }
}
