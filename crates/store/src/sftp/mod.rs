//! Objects as files on a server that is reached by SFTP.
//!
//! Invariants:
//!
//! 1. A file has its name only when all its bytes are there and, where the server offers it, on its disk (`fsync@openssh.com`). Files
//!    are never written to after that. Folders cannot be synced by SFTP: what a power cut at the server leaves of a name that was
//!    given just before is up to its file system.
//! 2. Create gives the name by a hard link, which fails if it is taken; where the server has none, under the turn of the folder.
//! 3. Swap and delete happen under that turn ([`turn`]), which no two writers have at once and which a writer cannot lose without its
//!    rename becoming impossible.
//! 4. A version is the modification time in seconds (SFTP tells no more) and the size. Every swap sets a time later than that of
//!    the object it replaces. An object that is deleted and created again with the same size within a second has the same
//!    version; nothing that is swapped is ever deleted and made again.
//! 5. Every request has a time limit. A session that fails is replaced by the next call.
//!
//! Names that begin with `.rhyolite-` are this module's own and never listed. A folder can be read and written by the directory backend
//! at other times, but not at the same time: the two know other locks.

mod build;
mod connect;
mod files;
mod list;
mod turn;
mod upload;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_format::Timestamp;
use russh_sftp::client::error::Error;
use russh_sftp::protocol::StatusCode;
use tokio::sync::Semaphore;

use crate::key::{check_key, check_prefix};
use crate::types::{Entry, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind as Kind, Upload};
use connect::{Refused, Session, Target, connect};
use files::{Files, Open, Stat, is_absent, is_refusal};
use turn::{Draft, NoTurn, Turn, random_hex};

pub(crate) use build::sftp;

/// Longest wait for the answer to one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls that use a session at once. Each has one file open; servers allow a hundred and more.
const CALLS_MAX: usize = 16;

/// A store on an SFTP server. Made by [`crate::open`].
#[derive(Clone, Debug)]
pub(crate) struct Sftp {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    /// Empty, or with a slash at its end.
    root: String,
    description: String,
    session: Mutex<Option<Arc<Session>>>,
    /// One connects at a time.
    connecting: Semaphore,
    slots: Arc<Semaphore>,
    /// This process's writers queue here instead of at the server.
    queue: Semaphore,
}

/// What is asked, of which object, for messages.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    operation: Operation,
    key: &'a str,
}

/// What a request that got no answer may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    Named,
}

impl Sftp {
    fn new(target: Target, root: String, description: String) -> Self {
        Self {
            inner: Arc::new(Inner {
                target,
                root,
                description,
                session: Mutex::new(None),
                connecting: Semaphore::new(1),
                slots: Arc::new(Semaphore::new(CALLS_MAX)),
                queue: Semaphore::new(1),
            }),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.inner.root)
    }

    /// The folder of a key: empty, or with a slash at its end.
    fn folder_of(&self, key: &str) -> String {
        let path = self.path(key);
        path.rfind('/').map_or(String::new(), |at| path[..=at].to_owned())
    }

    fn checked<'a>(&self, operation: Operation, key: &'a str) -> Result<Asked<'a>, StoreError> {
        check_key(operation, key, &|| self.describe())?;
        Ok(Asked { operation, key })
    }

    fn error(&self, asked: Asked<'_>, kind: Kind, reason: impl Into<String>) -> StoreError {
        StoreError::new(kind, asked.operation, asked.key, &self.inner.description, reason)
    }

    fn not_found(&self, asked: Asked<'_>) -> StoreError {
        self.error(asked, Kind::NotFound, "there is no such object")
    }

    fn current(&self) -> Option<Arc<Session>> {
        self.inner.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session, made if there is none, and a place in it.
    async fn files(&self, asked: Asked<'_>) -> Result<Files, StoreError> {
        let slot = Arc::clone(&self.inner.slots).acquire_owned().await.expect("never closed");
        if let Some(session) = self.current() {
            return Ok(Files { session, _slot: slot });
        }
        let _connecting = self.inner.connecting.acquire().await.expect("never closed");
        // Somebody else may have done it meanwhile.
        if let Some(session) = self.current() {
            return Ok(Files { session, _slot: slot });
        }
        let session = connect(&self.inner.target, REQUEST_TIMEOUT).await.map_err(|refused| match refused {
            Refused::Denied(reason) => self.error(asked, Kind::Denied, reason),
            Refused::Unavailable(reason) => self.error(asked, Kind::Unavailable, reason),
        })?;
        let session = Arc::new(session);
        *self.inner.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&session));
        Ok(Files { session, _slot: slot })
    }

    /// An error of a request in words; a session that does not answer is given up.
    fn failed(&self, asked: Asked<'_>, files: &Files, effect: Effect, verb: &str, error: &Error) -> StoreError {
        if let Error::Status(status) = error {
            let kind = match status.status_code {
                StatusCode::NoSuchFile => Kind::NotFound,
                StatusCode::PermissionDenied => Kind::Denied,
                StatusCode::OpUnsupported | StatusCode::BadMessage => Kind::Invalid,
                _ => Kind::Unavailable,
            };
            return self.error(asked, kind, format!("{verb}: the server says {:?}", status.error_message));
        }
        let mut session = self.inner.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.as_ref().is_some_and(|s| Arc::ptr_eq(s, &files.session)) {
            *session = None;
        }
        let kind = if effect == Effect::Named { Kind::Ambiguous } else { Kind::Unavailable };
        self.error(asked, kind, format!("{verb}: {error}"))
    }

    /// Opens the object for reading; the file stays the same one when the name is given to another.
    async fn open(&self, asked: Asked<'_>, files: &Files) -> Result<(Open, Meta), StoreError> {
        let failed = |verb: &str, e: &Error| self.failed(asked, files, Effect::None, verb, e);
        let opened = match files.open(&self.path(asked.key)).await {
            Ok(opened) => opened,
            Err(e) if is_absent(&e) => return Err(self.not_found(asked)),
            // Below a file, or a folder that the server does not open.
            Err(e) if is_refusal(&e) && self.stat(asked, files).await?.is_none() => return Err(self.not_found(asked)),
            Err(e) => return Err(failed("open", &e)),
        };
        let stat = opened.stat().await.map_err(|e| failed("stat", &e))?;
        if stat.is_folder {
            return Err(self.not_found(asked));
        }
        Ok((opened, meta_of(stat)))
    }

    /// The object's file; `None` if there is none, or a folder.
    async fn stat(&self, asked: Asked<'_>, files: &Files) -> Result<Option<Stat>, StoreError> {
        let stat = match files.stat(&self.path(asked.key)).await {
            Ok(stat) => stat,
            // OpenSSH's word for "a part of the path is no folder".
            Err(Error::Status(s)) if s.status_code == StatusCode::Failure => None,
            Err(e) => return Err(self.failed(asked, files, Effect::None, "stat", &e)),
        };
        Ok(stat.filter(|s| !s.is_folder))
    }

    async fn read(&self, asked: Asked<'_>, files: &Files, file: Open, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = file.read(range.start, range.end).await;
        let bytes = bytes.map_err(|e| self.failed(asked, files, Effect::None, "read", &e))?;
        if bytes.len() as u64 != range.end - range.start {
            let reason = "the file became shorter while it was read: something else writes to this folder";
            return Err(self.error(asked, Kind::Corrupt, reason));
        }
        file.close().await.map_err(|e| self.failed(asked, files, Effect::None, "close", &e))?;
        Ok(bytes)
    }

    /// Writes a new file, whole and synced, which nobody knows yet.
    async fn write_draft(
        &self,
        asked: Asked<'_>,
        files: &Files,
        path: &str,
        bytes: &Bytes,
    ) -> Result<Stat, StoreError> {
        let failed = |verb: &str, e: &Error| self.failed(asked, files, Effect::None, verb, e);
        let file = match files.create(path).await {
            Err(e) if is_absent(&e) => {
                files.make_folders(&self.folder_of(asked.key)).await.map_err(|e| failed("make the folder", &e))?;
                files.create(path).await
            }
            opened => opened,
        };
        let file = file.map_err(|e| failed("open a draft", &e))?;
        file.write(0, bytes).await.map_err(|e| failed("write", &e))?;
        file.sync().await.map_err(|e| failed("sync", &e))?;
        let stat = file.stat().await.map_err(|e| failed("stat", &e))?;
        file.close().await.map_err(|e| failed("close", &e))?;
        Ok(stat)
    }

    /// Creates, or as a swap that expects nothing: the errors differ.
    async fn create_as(&self, asked: Asked<'_>, bytes: Bytes) -> Result<Version, StoreError> {
        let files = self.files(asked).await?;
        if !files.session.has_hardlink {
            return self.create_in_turn(asked, &files, &bytes).await;
        }
        let draft = format!("{}.rhyolite-tmp-{}", self.folder_of(asked.key), random_hex());
        let written = self.write_draft(asked, &files, &draft, &bytes).await;
        let linked = match &written {
            Ok(_) => Some(files.link(&draft, &self.path(asked.key)).await),
            Err(_) => None,
        };
        let _ = files.remove(&draft).await;
        let written = written?;
        match linked.expect("written, so linked") {
            Ok(()) => Ok(meta_of(written).version),
            Err(e) if is_refusal(&e) => match files.stat(&self.path(asked.key)).await {
                Ok(Some(_)) => Err(self.taken(asked)),
                // The file system has no hard links.
                Ok(None) => self.create_in_turn(asked, &files, &bytes).await,
                Err(e) => Err(self.failed(asked, &files, Effect::None, "stat", &e)),
            },
            Err(e) => Err(self.failed(asked, &files, Effect::Named, "link", &e)),
        }
    }

    fn taken(&self, asked: Asked<'_>) -> StoreError {
        let kind = if asked.operation == Operation::Create { Kind::Exists } else { Kind::Conflict };
        self.error(asked, kind, "the object exists already")
    }

    async fn create_in_turn(&self, asked: Asked<'_>, files: &Files, bytes: &Bytes) -> Result<Version, StoreError> {
        let _queued = self.inner.queue.acquire().await.expect("never closed");
        let (turn, draft) = self.take_turn(asked, files, bytes).await?;
        let named = async {
            match files.stat(&self.path(asked.key)).await {
                Ok(None) => self.rename_draft(asked, files, &turn).await.map(|()| meta_of(draft).version),
                Ok(Some(_)) => Err(self.taken(asked)),
                Err(e) => Err(self.failed(asked, files, Effect::None, "stat", &e)),
            }
        };
        let named = named.await;
        turn.end(files).await;
        named
    }

    /// Writes a draft and waits for the turn in the key's folder.
    async fn take_turn(&self, asked: Asked<'_>, files: &Files, bytes: &Bytes) -> Result<(Turn, Stat), StoreError> {
        if !files.session.has_posix_rename {
            let reason = "the server does not offer posix-rename@openssh.com, without which objects cannot be replaced";
            return Err(self.error(asked, Kind::Invalid, reason));
        }
        let failed = |verb: &str, e: &Error| self.failed(asked, files, Effect::None, verb, e);
        let draft = Draft::begin(files, &self.folder_of(asked.key)).await;
        let draft = draft.map_err(|e| failed("make a folder for the draft", &e))?;
        let stat = match self.write_draft(asked, files, &draft.path(), bytes).await {
            Ok(stat) => stat,
            Err(e) => {
                draft.discard(files).await;
                return Err(e);
            }
        };
        match draft.take_turn(files).await {
            Ok(turn) => Ok((turn, stat)),
            Err(NoTurn::Waited) => Err(self.error(asked, Kind::Unavailable, "others had their turn all the time")),
            Err(NoTurn::Failed(e)) => Err(failed("take the turn", &e)),
        }
    }

    /// Gives the draft its name, replacing what has it.
    async fn rename_draft(&self, asked: Asked<'_>, files: &Files, turn: &Turn) -> Result<(), StoreError> {
        match files.rename(&turn.draft(), &self.path(asked.key)).await {
            Ok(()) => Ok(()),
            Err(e) if is_absent(&e) => {
                let reason = "another writer took the turn away, because this one had lasted too long";
                Err(self.error(asked, Kind::Unavailable, reason))
            }
            Err(e) => Err(self.failed(asked, files, Effect::Named, "rename", &e)),
        }
    }

    async fn swap(&self, asked: Asked<'_>, expected: &Version, bytes: &Bytes) -> Result<Version, StoreError> {
        let files = self.files(asked).await?;
        let conflict = |reason: String| self.error(asked, Kind::Conflict, reason);
        let compare = |old: Option<Stat>| match old {
            None => Err(conflict("the object to replace does not exist".to_owned())),
            Some(old) if meta_of(old).version != *expected => {
                Err(conflict(format!("the object is version {}, not {expected}", meta_of(old).version)))
            }
            Some(old) => Ok(old),
        };
        // Most refusals need no turn.
        compare(self.stat(asked, &files).await?)?;
        let _queued = self.inner.queue.acquire().await.expect("never closed");
        let (turn, mut draft) = self.take_turn(asked, &files, bytes).await?;
        let swapped = async {
            let old = compare(self.stat(asked, &files).await?)?;
            if draft.modified <= old.modified {
                draft.modified = old.modified.saturating_add(1);
                let set = files.set_modified(&turn.draft(), draft.modified).await;
                set.map_err(|e| self.failed(asked, &files, Effect::None, "set the time", &e))?;
            }
            self.rename_draft(asked, &files, &turn).await?;
            Ok(meta_of(draft).version)
        };
        let swapped = swapped.await;
        turn.end(&files).await;
        swapped
    }

    /// Deletes keys that are all in one folder.
    async fn delete_inside(&self, asked: Asked<'_>, keys: &[&String]) -> Result<(), StoreError> {
        let files = self.files(asked).await?;
        let mut there = Vec::new();
        for key in keys {
            if self.stat(Asked { key, ..asked }, &files).await?.is_some() {
                there.push(self.path(key));
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        let _queued = self.inner.queue.acquire().await.expect("never closed");
        let (turn, _) = self.take_turn(asked, &files, &Bytes::new()).await?;
        let mut outcome = Ok(());
        for path in there {
            if let Err(e) = files.remove(&path).await
                && !is_absent(&e)
            {
                outcome = Err(self.failed(asked, &files, Effect::None, "remove", &e));
                break;
            }
        }
        turn.end(&files).await;
        outcome
    }
}

fn meta_of(stat: Stat) -> Meta {
    Meta {
        size: stat.size,
        version: Version::new(format!("{:x}-{:x}", stat.modified, stat.size)),
        modified: Some(Timestamp(i64::from(stat.modified) * 1000)),
    }
}

#[async_trait]
impl Store for Sftp {
    fn describe(&self) -> String {
        self.inner.description.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::unproven(
            "is an SFTP server: OpenSSH's renames in one step, and which server it is shows only by asking",
        )
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let asked = self.checked(Operation::Get, key)?;
        let files = self.files(asked).await?;
        let (file, meta) = self.open(asked, &files).await?;
        let bytes = self.read(asked, &files, file, 0..meta.size).await?;
        Ok(Object { bytes, version: meta.version, size: meta.size })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        assert!(range.start <= range.end, "ranges do not run backwards");
        let asked = self.checked(Operation::GetRange, key)?;
        let files = self.files(asked).await?;
        let (file, meta) = self.open(asked, &files).await?;
        if range.end > meta.size {
            let reason = format!("bytes {}..{} were asked for, the object has {}", range.start, range.end, meta.size);
            return Err(self.error(asked, Kind::Corrupt, reason));
        }
        self.read(asked, &files, file, range).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let asked = self.checked(Operation::GetTail, key)?;
        let files = self.files(asked).await?;
        let (file, meta) = self.open(asked, &files).await?;
        let bytes = self.read(asked, &files, file, meta.size.saturating_sub(len)..meta.size).await?;
        Ok(Object { bytes, version: meta.version, size: meta.size })
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let asked = self.checked(Operation::Head, key)?;
        let files = self.files(asked).await?;
        self.stat(asked, &files).await?.map(meta_of).ok_or_else(|| self.not_found(asked))
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.create_as(self.checked(Operation::Create, key)?, bytes).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let asked = self.checked(Operation::Swap, key)?;
        match expected {
            Some(expected) => self.swap(asked, expected, &bytes).await,
            None => self.create_as(asked, bytes).await,
        }
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let asked = self.checked(Operation::Upload, key)?;
        Ok(Box::new(upload::SftpUpload::begin(self.clone(), asked).await?))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let prefix = check_prefix(prefix, &|| self.describe())?;
        self.list(prefix, after, limit).await
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        let prefix = check_prefix(prefix, &|| self.describe())?;
        self.remove_empty(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            self.checked(Operation::Delete, key)?;
        }
        let folders: std::collections::BTreeSet<String> = keys.iter().map(|k| self.folder_of(k)).collect();
        for folder in folders {
            let inside: Vec<&String> = keys.iter().filter(|k| self.folder_of(k) == folder).collect();
            let first = inside.first().expect("a folder is visited because of a key");
            self.delete_inside(Asked { operation: Operation::Delete, key: first }, &inside).await?;
        }
        Ok(())
    }
}
