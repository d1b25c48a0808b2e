//! Object storage and directories behind one trait, [`Store`].
//!
//! A store maps keys to immutable-looking objects. What makes it safe for a log with several would-be writers is small:
//!
//! 1. [`Store::create`] never overwrites. Of any number of racing creates of one key exactly one succeeds.
//! 2. [`Store::swap_if`] replaces an object only if it is still the version that the caller has read. Of racing swaps that
//!    expect the same version exactly one succeeds.
//! 3. A reader sees a whole object or none: never a part, never a mixture of two.
//! 4. An answer that was lost is not an answer. A write whose outcome is not known fails with
//!    [`StoreErrorKind::Ambiguous`]; the [`Retrying`] decorator settles it by reading the object back and comparing bytes.
//!    Therefore **every object that is created or swapped must hold bytes that no other writer writes** (a random nonce):
//!    equal bytes then mean "this was I".
//! 5. No call waits for ever: every backend has named time limits.
//!
//! [`open`] turns a URL or a path into a backend: a directory ([`Directory`]), memory ([`Memory`]), S3, Google Cloud
//! Storage or Azure Blob Storage (`Cloud`), an SFTP server (`Sftp`), a WebDAV server (`WebDav`). Decorators take an
//! `Arc<dyn Store>` and are one: [`Retrying`], [`Counted`], [`Paced`], [`Asking`], [`Faulty`]. One conformance suite (feature `suite`) holds
//! for every backend and every decorator. [`Capabilities`] say what a store promises about racing writers, [`probe`] finds out.
//!
//! What each backend is tested against: directories on a real file system; S3 on moto's server; Azure on Azurite; SFTP on
//! OpenSSH; WebDAV on wsgidav, Apache and nginx. There is no Google Cloud Storage server in the package registries that honours
//! conditional writes: that backend is tested on a stand-in, written from Google's reference (`tests/gcs_server.py`).

mod asking;
mod capabilities;
mod cloud;
mod counted;
mod directory;
mod error;
mod faulty;
mod key;
mod memory;
mod open;
mod paced;
mod prefixed;
pub mod probe;
mod retrying;
#[cfg(feature = "sftp")]
mod sftp;
#[cfg(feature = "suite")]
pub mod suite;
mod types;
mod url;
#[cfg(feature = "webdav")]
mod webdav;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use asking::Asking;
pub use capabilities::{Capabilities, Guarantee};
pub use counted::{Counted, Counters, Counts, ErrorCount, OperationCount};
pub use directory::Directory;
pub use error::{Operation, StoreError, StoreErrorKind};
pub use faulty::{Fault, Faulty, Rate, Rule};
pub use key::{KEY_BYTES_MAX, RESERVED_PREFIX, check_key};
pub use memory::Memory;
pub use open::{Environment, StoreOptions, open};
pub use paced::Paced;
pub use prefixed::Prefixed;
pub use retrying::{RetryPolicy, Retrying};
pub use types::{Entry, MadeAt, Meta, Object, Version};

/// How many entries [`Store::list_all`] asks for at a time.
pub const LIST_PAGE: usize = 1000;

/// A place for objects. See the crate's documentation for what holds of every implementation.
///
/// Keys are `/`-separated, relative, at most [`KEY_BYTES_MAX`] bytes ([`check_key`] has the rules). All errors are
/// [`StoreError`]s whose kind says what to do next.
///
/// Dropping a future stops the waiting, not the write: a create, swap or delete whose future was dropped may still happen.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// Where this is, for messages: a URL or a path, without secrets.
    fn describe(&self) -> String;

    /// What it promises about racing writers. No request is made for the answer.
    fn capabilities(&self) -> Capabilities;

    /// The whole object. `NotFound` if there is none.
    async fn get(&self, key: &str) -> Result<Object, StoreError>;

    /// Exactly the bytes of `range`, or an error: `Corrupt` if the object ends before the range does.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// The last `len` bytes of the object (all of it when it is shorter), with the size of the whole.
    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError>;

    /// Size, version and time, without the bytes.
    async fn head(&self, key: &str) -> Result<Meta, StoreError>;

    /// Stores a new object. Never overwrites: `Exists` if the key is taken, `Ambiguous` if the outcome is not known.
    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError>;

    /// Replaces the object if it still is `expected`; `None` expects that there is none. `Conflict` if the object is another
    /// or absent, `Ambiguous` if the outcome is not known.
    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError>;

    /// Starts a big object, in parts, with bounded memory. The key must be the writer's own: what happens to an object
    /// that exists under it is not defined. Nothing is visible before [`Upload::finish`].
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError>;

    /// Like [`Store::upload`], for an object that Litestream will read: where the store can, it says when its content was made in
    /// the way in which Litestream looks for it (modification time of a file, `litestream-timestamp` among the metadata of a
    /// bucket's object). Where it cannot, this is [`Store::upload`].
    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let _ = made;
        self.upload(key).await
    }

    /// At most `limit` objects below the folder `prefix` (empty: all), sorted by the bytes of their keys, strictly after the
    /// key `after`. Fewer than `limit` means that there are no more. A folder that does not exist is empty.
    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Deletes the objects. Absent ones are fine.
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError>;

    /// Removes the folder `prefix` where folders are things of their own, with the backend's own files in it, if it holds no object.
    /// Nobody may be writing into it. Where keys are only names there is nothing to do.
    async fn remove_folder(&self, _prefix: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// All objects below the folder `prefix`, sorted, in pages of [`LIST_PAGE`].
    async fn list_all(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(|e: &Entry| e.key.clone());
            let page = self.list_after(prefix, after.as_deref(), LIST_PAGE).await?;
            let last = page.len() < LIST_PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// Checks that an object that was said to be stored is there: one `head`, size and version compared. Some stores have
    /// answered 200 without storing. `NotFound` or `Corrupt` if the answer was not true.
    async fn verify_created(&self, key: &str, version: &Version, size: u64) -> Result<(), StoreError> {
        let refuse = |kind, text: String| Err(StoreError::new(kind, Operation::Verify, key, self.describe(), text));
        match self.head(key).await {
            Ok(meta) if meta.size == size && meta.version == *version => Ok(()),
            Ok(meta) if meta.size != size => {
                refuse(StoreErrorKind::Corrupt, format!("{size} bytes were stored, but the object has {}", meta.size))
            }
            Ok(meta) => refuse(
                StoreErrorKind::Corrupt,
                format!("version {version} was stored, but the object has version {}", meta.version),
            ),
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                refuse(e.kind, "the store said that it had stored this object, but it is not there".to_owned())
            }
            Err(e) => Err(e),
        }
    }
}

impl dyn Store {
    /// A view of everything below `prefix`: the key `a` of the view is the key `prefix/a` of this store.
    ///
    /// `Invalid` if the prefix is not a valid key. An empty prefix gives the store itself.
    pub fn sub(self: &Arc<Self>, prefix: &str) -> Result<Arc<dyn Store>, StoreError> {
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty() { Ok(Arc::clone(self)) } else { Ok(Arc::new(Prefixed::new(Arc::clone(self), prefix)?)) }
    }
}

/// A big object on its way into a store. Dropped without [`finish`](Self::finish), it leaves nothing that can be read.
#[async_trait]
pub trait Upload: Send + Debug {
    /// Appends bytes. Returns when they are taken over, not when they are stored.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Stores the rest and makes the object visible under its key.
    async fn finish(self: Box<Self>) -> Result<Version, StoreError>;

    /// Gives up and removes what was stored of it.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}
