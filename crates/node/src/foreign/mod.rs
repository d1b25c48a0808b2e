//! Stores that other programs have written: reading them as they are, adopting them, and writing them.
//!
//! 1. [`find`] lists what lies in a store without an `id.json`; `rhyolite_logic::store_kind` says what it is.
//! 2. [`restore`], [`points`] and [`verify`] do for it what the modules of the same names do for our own stores.
//! 3. `adopt` begins a history of ours with what such a store holds, [`export`](mod@export) writes one from ours.
//!
//! Litestream keeps no checksum of the database, so a restore cannot be proved equal to what was committed. What can be proved
//! is said with every result ([`Proof`]).

pub mod adopt;
pub mod export;
mod integrity;
pub mod litefs;
mod litestream3;
mod litestream5;
mod produce;
mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::litestream::{GENERATIONS_FOLDER, Generation, LEVELS, LTX_FOLDER, Layout, ReplicaKey};
use rhyolite_format::{Checksum, PageCount, PageSize, Timestamp, Txid, keys};
use rhyolite_logic::Target;
use rhyolite_logic::store_kind::{ReplicaKind, recognise};
use rhyolite_store::{Store, StoreErrorKind};

use crate::progress::Stage;
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, RestoreOptions};

use litestream3::Replica3;
use litestream5::Replica5;

pub use integrity::Integrity;
pub use verify::{ReplicaVerifyReport, VerifyReplicaOptions, verify};

/// Which version of a replica is meant, where a store holds several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Litestream 0.3.
    Old,
    /// Litestream 0.5.
    Current,
}

/// A replica of another program, listed.
#[derive(Debug)]
pub struct Replica {
    kind: ReplicaKind,
    reader: Arc<Reader>,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Five(Replica5),
    Three(Replica3),
}

/// What proves a restored database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The checksum of the whole database, as it was recorded when the transaction was committed.
    Database,
    /// The checksum of every file that was read, that they join, and that together they hold every page.
    Files,
    /// The checksums of the packed snapshot and of every frame of the WALs that were replayed, and that they join.
    Frames,
}

impl Proof {
    /// How it is named in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database-checksum",
            Self::Files => "file-checksums",
            Self::Frames => "frame-checksums",
        }
    }

    /// What was proved, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Database => "proved by the checksum of the whole database",
            Self::Files => {
                "proved: the checksum of every file, and that all pages are there; Litestream keeps no checksum of the database"
            }
            Self::Frames => {
                "proved: the checksums of snapshot and WAL frames, and that they join; Litestream keeps no checksum of the database"
            }
        }
    }
}

/// A place in the WALs of a Litestream 0.3 replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPlace {
    /// The run of WALs.
    pub generation: Generation,
    /// Number of the WAL.
    pub index: u32,
    /// Offset in bytes in the WAL: after it in a report, where the part begins in a list of points.
    pub offset: u64,
}

/// What was restored from a replica, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// What it was restored from.
    pub kind: ReplicaKind,
    /// The transaction; Litestream 0.3 does not number them.
    pub txid: Option<Txid>,
    /// The place in the WALs of Litestream 0.3.
    pub place: Option<WalPlace>,
    /// When that state was recorded.
    pub time: Timestamp,
    /// Page size.
    pub page_size: PageSize,
    /// Size in pages.
    pub pages: PageCount,
    /// Checksum of the restored database, computed from its pages.
    pub checksum: Checksum,
    /// What proves it.
    pub proof: Proof,
    /// Files of the replica that were read.
    pub files: u64,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
    /// Requests to the store.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A state that a replica restores to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaPoint {
    /// The transaction; Litestream 0.3 does not number them.
    pub txid: Option<Txid>,
    /// The place in the WALs of Litestream 0.3.
    pub place: Option<WalPlace>,
    /// When it was recorded.
    pub time: Timestamp,
    /// Whether a full snapshot ends there.
    pub is_snapshot: bool,
    /// Size in bytes of the object that ends there.
    pub bytes: u64,
    /// Page size and size of the database, where the replica says so without being restored.
    pub size: Option<(PageSize, PageCount)>,
}

/// A database that was put together.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) txid: Option<Txid>,
    pub(crate) place: Option<WalPlace>,
    pub(crate) time: Timestamp,
    pub(crate) page_size: PageSize,
    pub(crate) commit: PageCount,
    pub(crate) checksum: Checksum,
    pub(crate) proof: Proof,
    pub(crate) files: u64,
}

impl Image {
    fn report(self, replica: &Replica, elapsed: Duration) -> ReplicaReport {
        ReplicaReport {
            kind: replica.kind,
            txid: self.txid,
            place: self.place,
            time: self.time,
            page_size: self.page_size,
            pages: self.commit,
            checksum: self.checksum,
            proof: self.proof,
            files: self.files,
            bytes_fetched: replica.reader.bytes(),
            requests: replica.reader.requests(),
            elapsed,
        }
    }
}

impl Replica {
    /// What it is.
    pub fn kind(&self) -> ReplicaKind {
        self.kind
    }
}

/// Looks for a replica in a store that is not ours; `None` if there is none. `version` decides where two versions lie together.
///
/// # Errors
/// The store does not answer, or holds several replicas of which one must be chosen.
pub async fn find(store: &Arc<dyn Store>, version: Option<Version>) -> Result<Option<Replica>, RestoreError> {
    let reader = Arc::new(Reader::new(Arc::clone(store)));
    let mut folders = vec![LTX_FOLDER.to_owned(), GENERATIONS_FOLDER.to_owned()];
    folders.extend((0..LEVELS).map(|level| Layout::Hex.folder(level)));
    let mut listed = Vec::new();
    for folder in folders {
        let entries = list(&reader, &folder).await?;
        listed.extend(entries.into_iter().filter_map(|entry| Some((ReplicaKey::parse(&entry.key)?, entry))));
    }
    let is_wanted = |kind: ReplicaKind| match version {
        None => true,
        Some(Version::Old) => kind == ReplicaKind::Litestream3,
        Some(Version::Current) => kind != ReplicaKind::Litestream3,
    };
    let kind = recognise(listed.iter().map(|(key, _)| key), is_wanted)
        .map_err(|found| RestoreError::Ambiguous { store: store.describe(), found })?;
    let Some(kind) = kind else { return Ok(None) };
    listed.retain(|(key, _)| ReplicaKind::of(key) == kind);
    let files = match kind {
        ReplicaKind::Litestream3 => Files::Three(Replica3::new(listed)?),
        ReplicaKind::Litestream5Decimal | ReplicaKind::Litestream5Hex => Files::Five(Replica5::new(listed)),
    };
    Ok(Some(Replica { kind, reader, files }))
}

/// Whether a store is one of ours.
///
/// # Errors
/// The store does not answer.
pub async fn is_ours(store: &Arc<dyn Store>) -> Result<bool, RestoreError> {
    match store.head(keys::ID).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Everything below a folder.
async fn list(reader: &Reader, folder: &str) -> Result<Vec<rhyolite_store::Entry>, RestoreError> {
    let mut all: Vec<rhyolite_store::Entry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.key.clone());
        let page = reader.list(folder, after.as_deref(), rhyolite_store::LIST_PAGE).await?;
        let is_last = page.len() < rhyolite_store::LIST_PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Restores a database from a replica. `options.store` is not looked at again; an existing file cannot be reused. Must run in a
/// Tokio runtime.
///
/// # Errors
/// Any. Nothing has appeared under the output's name then.
pub async fn restore(replica: &Replica, options: RestoreOptions) -> Result<ReplicaReport, RestoreError> {
    let started = Instant::now();
    options.progress.enter(Stage::Planning);
    let (reader, progress) = (Arc::clone(&replica.reader), Arc::clone(&options.progress));
    let image = match &replica.files {
        Files::Five(files) => {
            let plan = files.plan(&reader, options.target).await?;
            produce::produce(&options, move |draft| litestream5::fill(&reader, &plan, draft, &*progress)).await?
        }
        Files::Three(files) => {
            let plan = files.plan(options.target)?;
            produce::produce(&options, move |draft| litestream3::fill(&reader, &plan, draft, &*progress)).await?
        }
    };
    options.progress.enter(Stage::Done);
    Ok(image.report(replica, started.elapsed()))
}

/// Every state that a replica restores to, oldest first; at most the newest `limit` of them.
///
/// # Errors
/// The store does not answer, or a file has no valid header.
pub async fn points(replica: &Replica, limit: usize) -> Result<Vec<ReplicaPoint>, RestoreError> {
    match &replica.files {
        Files::Five(files) => files.points(&replica.reader, limit).await,
        Files::Three(files) => Ok(files.points(limit)),
    }
}

/// Whether a target needs the times of all files.
fn is_about_time(target: Target) -> bool {
    matches!(target, Target::Time(_) | Target::TimeNearest(_))
}
