//! Begins a history of ours where that of a Litestream replica ends.
//!
//! 1. The newest state of the replica is restored to a file without a name, with all that can be proved of it, and its checksum
//!    computed.
//! 2. That state becomes the first snapshot, under the TXID that Litestream gave it (1 for Litestream 0.3, which has none), and the
//!    manifest names it as the position right before the log.
//! 3. The store is read back and must add up to the same checksum.
//!
//! From there on nothing is special: the next `replicate` finds the position, compares the database with it, and what differs
//! becomes the next transaction. So every change after Litestream's last file is in our history, wherever the database has
//! got to meanwhile. States before that stay where they are, in the replica, which is only read.
//!
//! The identity is written first and the manifest last: what an interrupted adoption has left is taken up by the next one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::identity::Identity;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile};
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::{
    Epoch, Format1, Lineage, Nonce, PageCount, PageNumber, PageSize, Pos, Seq, Timestamp, Txid, keys,
};
use rhyolite_logic::Target;
use rhyolite_logic::store_kind::ReplicaKind;
use rhyolite_store::{Store, StoreErrorKind};

use super::produce::check_first_page;
use super::{Files, Image, Proof, Replica, find, litestream3, litestream5};
use crate::history::HistoryError;
use crate::history::write::{Out, given_up, write_object};
use crate::manifest_swap::{self, ManifestError};
use crate::progress::{Progress, Stage};
use crate::random;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::draft::{Draft, spool_folder};
use crate::restore::reader::Reader;
use crate::restore::sink::NoSink;
use crate::restore::{RestoreError, blocking, fetch, plan_in};

/// Bytes that are handed on at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A database with fewer pages may have changed altogether.
const PAGES_TOLD_APART: u64 = 16;

/// What to adopt, and where to.
#[derive(Clone, Debug)]
pub struct AdoptOptions {
    /// The database, to see that the replica is one of it.
    pub database: PathBuf,
    /// The prefix of our store.
    pub store: Arc<dyn Store>,
    /// The time.
    pub now: Timestamp,
    /// Where the replica's newest state is put together. By default `TMPDIR`, then `/var/tmp`.
    pub spool: Option<PathBuf>,
    /// Threads that unpack; at least one.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// What was adopted. The store was read back and adds up to `pos`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptReport {
    /// What the replica is.
    pub kind: ReplicaKind,
    /// Our new history.
    pub lineage: Lineage,
    /// Its first position.
    pub pos: Pos,
    /// When Litestream recorded that state.
    pub time: Timestamp,
    /// What proves that it is what Litestream recorded.
    pub proof: Proof,
    /// Size of that state in pages.
    pub pages: PageCount,
    /// How many of them the database file has just so. The WAL is not looked at: it is compared when replication starts.
    pub pages_in_database: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Why nothing was adopted.
#[derive(Debug)]
pub enum AdoptError {
    /// The replica cannot be restored, or what was written does not add up.
    Read(RestoreError),
    /// The store cannot be written.
    Write(HistoryError),
    /// There is a history of ours already, or a replica.
    NotEmpty {
        /// Where.
        store: String,
    },
    /// The database is not the one that was replicated.
    OtherDatabase {
        /// Which.
        path: PathBuf,
        /// How that shows.
        detail: String,
    },
    /// The replica's newest state is an empty database.
    Empty,
}

impl std::fmt::Display for AdoptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(e) => e.fmt(f),
            Self::Write(e) => e.fmt(f),
            Self::NotEmpty { store } => {
                write!(f, "{store} holds a history already: give the new one a prefix of its own")
            }
            Self::OtherDatabase { path, detail } => {
                write!(f, "{} is not the database that was replicated: {detail}", path.display())
            }
            Self::Empty => {
                f.write_str("the newest state of the replica is an empty database: there is nothing to adopt")
            }
        }
    }
}

impl std::error::Error for AdoptError {}

impl From<RestoreError> for AdoptError {
    fn from(error: RestoreError) -> Self {
        Self::Read(error)
    }
}

impl From<HistoryError> for AdoptError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Read(error) => Self::Read(error),
            error => Self::Write(error),
        }
    }
}

impl From<rhyolite_store::StoreError> for AdoptError {
    fn from(error: rhyolite_store::StoreError) -> Self {
        Self::Write(error.into())
    }
}

/// Adopts a replica. Must run in a Tokio runtime with more than one thread.
///
/// # Errors
/// Any. The store holds no manifest then, unless its last proof failed; the replica was only read.
pub async fn adopt(replica: &Replica, options: AdoptOptions) -> Result<AdoptReport, AdoptError> {
    let started = Instant::now();
    options.progress.enter(Stage::Planning);
    refuse_occupied(&options.store).await?;
    let (image, draft) = restore_newest(replica, &options).await?;
    if image.commit.get() == 0 {
        return Err(AdoptError::Empty);
    }
    let draft = Arc::new(draft);
    let pages_in_database = compare(&options.database, &draft, &image).await?;
    let identity = claim(&options.store, &image, options.now).await?;
    let file = write_snapshot(&options.store, &draft, &image).await?;
    let pos = file.end();
    let bytes_written = file.size;
    name_snapshot(&options.store, &identity, file, options.now).await?;
    prove(&options, pos).await?;
    options.progress.enter(Stage::Done);
    Ok(AdoptReport {
        kind: replica.kind,
        lineage: identity.lineage,
        pos,
        time: image.time,
        proof: image.proof,
        pages: image.commit,
        pages_in_database,
        bytes_written,
        elapsed: started.elapsed(),
    })
}

/// A history of ours that has begun, or a replica in the very same place, is left alone.
async fn refuse_occupied(store: &Arc<dyn Store>) -> Result<(), AdoptError> {
    let not_empty = || AdoptError::NotEmpty { store: store.describe() };
    let log = store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), None, 1).await?;
    let manifest = manifest_swap::read(&**store).await.map_err(HistoryError::Manifest)?;
    if manifest.is_some() || !log.is_empty() {
        return Err(not_empty());
    }
    match find(store, None).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(RestoreError::Ambiguous { .. }) => Err(not_empty()),
        Err(error) => Err(error.into()),
    }
}

/// The newest state of the replica in a file without a name.
async fn restore_newest(replica: &Replica, options: &AdoptOptions) -> Result<(Image, Draft), RestoreError> {
    let draft = Draft::unnamed(&spool_folder(options.spool.clone()))?;
    let (reader, progress) = (Arc::clone(&replica.reader), Arc::clone(&options.progress));
    let checked = |image: Image, draft: Draft| check_first_page(&draft, &image).map(|()| (image, draft));
    match &replica.files {
        Files::Five(files) => {
            let plan = files.plan(&reader, Target::Latest).await?;
            let fill = move || {
                let image = litestream5::fill(&reader, &plan, &draft, &*progress)?;
                checked(image, draft)
            };
            blocking(fill).await
        }
        Files::Three(files) => {
            let plan = files.plan(Target::Latest)?;
            let fill = move || {
                let image = litestream3::fill(&reader, &plan, &draft, &*progress)?;
                checked(image, draft)
            };
            blocking(fill).await
        }
    }
}

/// How many pages of the state the database file has just so. No SQLite connection of this process has it open, so closing it
/// drops no locks.
async fn compare(database: &Path, draft: &Arc<Draft>, image: &Image) -> Result<u64, AdoptError> {
    let (path, draft, page_size, commit) = (database.to_owned(), Arc::clone(draft), image.page_size, image.commit);
    let compared = blocking(move || {
        let failed = |e| RestoreError::io("read", &path, e);
        let mut file = File::open(&path).map_err(failed)?;
        let mut start = [0; DATABASE_HEADER_SIZE];
        let header = file.read_exact(&mut start).map_err(failed).and_then(|()| {
            let what = path.display().to_string();
            DatabaseHeader::decode(&start).map_err(|e| RestoreError::damaged(&what, e))
        })?;
        let equal = if header.page_size == page_size { equal_pages(&file, &draft, page_size, commit) } else { Ok(0) };
        Ok((header.page_size, equal.map_err(failed)?))
    });
    let (found, equal) = compared.await?;
    let other = |detail: String| Err(AdoptError::OtherDatabase { path: database.to_owned(), detail });
    if found != image.page_size {
        return other(format!("its pages have {found} bytes, those of the replica {}", image.page_size));
    }
    if equal == 0 && u64::from(image.commit.get()) >= PAGES_TOLD_APART {
        return other("no page of it is as in the replica".to_owned());
    }
    Ok(equal)
}

fn equal_pages(file: &File, draft: &Draft, page_size: PageSize, commit: PageCount) -> std::io::Result<u64> {
    let (mut ours, mut theirs) = (vec![0; page_size.bytes()], vec![0; page_size.bytes()]);
    let mut equal = 0;
    for pgno in (1..=commit.get()).filter_map(PageNumber::new) {
        draft.file().read_exact_at(&mut theirs, pgno.offset(page_size))?;
        match file.read_exact_at(&mut ours, pgno.offset(page_size)) {
            Ok(()) => equal += u64::from(ours == theirs),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
    }
    Ok(equal)
}

/// Makes the prefix ours, or takes up what an interrupted adoption has begun.
async fn claim(store: &Arc<dyn Store>, image: &Image, now: Timestamp) -> Result<Identity, AdoptError> {
    let lineage = Lineage(random::bytes());
    let identity = Identity { format: Format1, lineage, created: now, page_size: image.page_size };
    match store.create(keys::ID, Bytes::from(identity.encode())).await {
        Ok(_) => Ok(identity),
        Err(e) if e.kind == StoreErrorKind::Exists => {
            let object = store.get(keys::ID).await?;
            let found = Identity::decode(&object.bytes).map_err(|e| RestoreError::damaged(keys::ID, e))?;
            Ok(found)
        }
        Err(e) => Err(e.into()),
    }
}

/// Writes the state as the first snapshot.
async fn write_snapshot(store: &Arc<dyn Store>, draft: &Arc<Draft>, image: &Image) -> Result<ManifestFile, AdoptError> {
    let txid = image.txid.unwrap_or(Txid::FIRST);
    let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, txid, Epoch::FIRST);
    manifest_swap::clear_unnamed(&**store, &key).await?;
    let upload = store.upload(&key).await?;
    let (from, state) = (Arc::clone(draft), image.clone());
    let make = move |out: &mut Out| encode(&from, &state, txid, out);
    let (pages, written) = write_object(&**store, &key, upload, make).await?;
    Ok(ManifestFile {
        kind: FileKind::Snapshot,
        key,
        level: keys::SNAPSHOT_LEVEL,
        min_txid: Txid::FIRST,
        max_txid: txid,
        min_time: image.time,
        max_time: image.time,
        size: written.size,
        crc64: Crc64Hex(written.crc64),
        page_size: image.page_size,
        commit: image.commit,
        pre_apply: None,
        post_apply: image.checksum,
        pages: u64::from(pages),
        entries: 1,
    })
}

/// The draft as one LTX file; gives the number of its pages.
fn encode(draft: &Draft, image: &Image, txid: Txid, out: &mut Out) -> Result<u32, RestoreError> {
    let header = LtxHeader {
        no_checksum: false,
        page_size: image.page_size,
        commit: image.commit,
        min_txid: Txid::FIRST,
        max_txid: txid,
        timestamp: image.time,
        pre_apply: None,
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut bytes).expect("the header keeps the rules of LTX");
    let mut page = vec![0; image.page_size.bytes()];
    for pgno in (1..=image.commit.get()).filter_map(PageNumber::new) {
        if pgno == image.page_size.lock_page() {
            continue;
        }
        let read = draft.file().read_exact_at(&mut page, pgno.offset(image.page_size));
        read.map_err(|e| RestoreError::io("read", draft.path(), e))?;
        encoder.page(pgno, &page, &mut bytes).expect("every page comes once, in order");
        if bytes.len() >= CHUNK_BYTES {
            out.take(&mut bytes).map_err(given_up)?;
        }
    }
    let encoded = encoder.finish(Some(image.checksum), &mut bytes);
    let encoded = encoded.map_err(|e| RestoreError::contradiction("the restored state", e.to_string()))?;
    out.take(&mut bytes).map_err(given_up)?;
    Ok(encoded.pages)
}

/// Makes the snapshot the position before the log, which is empty.
async fn name_snapshot(
    store: &Arc<dyn Store>,
    identity: &Identity,
    file: ManifestFile,
    now: Timestamp,
) -> Result<(), AdoptError> {
    let first = |manifest: Option<Manifest>| {
        if manifest.is_some() {
            return None;
        }
        let mut manifest = Manifest::new(identity.lineage, Epoch::FIRST, Nonce(random::bytes()), now, Seq::FIRST);
        manifest.log_start = Some(file.end());
        manifest.files = vec![file.clone()];
        Some(manifest)
    };
    match manifest_swap::update(&**store, first).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(AdoptError::NotEmpty { store: store.describe() }),
        Err(ManifestError::Store(error)) => Err(error.into()),
        Err(error) => Err(HistoryError::Manifest(error).into()),
    }
}

/// Reads back what was written.
async fn prove(options: &AdoptOptions, pos: Pos) -> Result<(), AdoptError> {
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    let plan = plan_in(&reader, &catalog, &mut Vec::new(), Target::Latest).await?;
    if plan.pos != pos {
        return Err(RestoreError::WrongChecksum { pos, found: plan.pos.checksum }.into());
    }
    fetch(&reader, HashMap::new(), &plan, Arc::new(NoSink), options.threads, &options.progress).await?;
    Ok(())
}
