//! Restores a database from a store, and proves that it is the one that was committed.
//!
//! 1. [`catalog`] reads identity, manifest and log; `rhyolite_logic::restore_plan` says which objects make up the target.
//! 2. [`visit`] visits their LTX files from the newest to the oldest, reading ahead; [`assemble`] takes from each the pages
//!    that no newer file has ([`wanted`]), and makes jobs of them.
//! 3. [`pool`] reads, unpacks and checksums the pages in parallel and writes each once, at its place in the draft ([`draft`]).
//! 4. The XOR of all page checksums must be the checksum that the log has for the target. Then the draft is synced and moved to
//!    the output's name. Nothing else ever appears there.
//!
//! Cost follows the size of the database, not the length of its history. Memory does not depend on the size of the database but
//! for one bit per page and the entries of the live log (72 bytes per transaction that is not bundled yet): 32 MiB of reads
//! under way, 12 MiB read ahead, 8 MiB of small segments kept from planning, 64 KiB per job under way.

mod assemble;
pub(crate) mod catalog;
pub(crate) mod draft;
mod error;
mod index;
mod page_table;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod sink;
pub(crate) mod stream;
pub(crate) mod visit;
mod wanted;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::{Checksum, Lineage, PageCount, PageSize, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_logic::restore_plan::{BundleIndex, PlanError, RestorePlan, plan};
use rhyolite_store::Store;

pub use error::RestoreError;
pub use page_table::page_table;

use crate::progress::{Progress, Stage};
use assemble::assemble;
use catalog::{Catalog, OnDamage};
use draft::{Draft, FileSink, refuse_companions, spool_folder};
use pool::{Bench, Pool};
use reader::Reader;
use sink::PageSink;
use visit::Visits;
use wanted::Wanted;

/// Where the database goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A file, written under another name beside it and moved there when it is proved.
    File(PathBuf),
    /// Standard output: the proved database is spooled to a file without a name and then copied.
    Stdout,
}

/// What to do with an output that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// An error, before anything is read.
    Refuse,
    /// It is replaced when the restored database is proved.
    Replace,
}

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// Where the database goes.
    pub output: Output,
    /// Which state.
    pub target: Target,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// Threads that unpack; at least one.
    pub threads: usize,
    /// Where to spool for standard output. By default `TMPDIR`, then `/var/tmp`.
    pub spool: Option<PathBuf>,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// What was restored, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The history that it belongs to.
    pub lineage: Lineage,
    /// The position of the restored database: its checksum is proved.
    pub pos: Pos,
    /// When that transaction was committed.
    pub time: Timestamp,
    /// Page size.
    pub page_size: PageSize,
    /// Size in pages.
    pub pages: PageCount,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
    /// Requests to the store.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Restores a database. Must run in a Tokio runtime.
///
/// # Errors
/// Any. Nothing has appeared under the output's name then.
pub async fn restore(options: RestoreOptions) -> Result<RestoreReport, RestoreError> {
    let started = Instant::now();
    options.progress.enter(Stage::Planning);
    if let Output::File(path) = &options.output {
        refuse_existing(path, options.existing)?;
    }
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let draft = match &options.output {
        Output::File(path) => Draft::open(path)?,
        Output::Stdout => Draft::unnamed(&spool_folder(options.spool.clone()))?,
    };
    let result = fill(&reader, &draft, &options).await;
    let (lineage, plan) = match result {
        Ok(plan) => plan,
        Err(e) => {
            // What made it fail is said; that the draft is still there is the lesser evil.
            let _ = draft.discard();
            return Err(e);
        }
    };
    options.progress.enter(Stage::Syncing);
    match &options.output {
        Output::File(_) => blocking(move || draft.publish()).await?,
        Output::Stdout => blocking(move || draft.copy_to_stdout()).await?,
    }
    options.progress.enter(Stage::Done);
    Ok(RestoreReport {
        lineage,
        pos: plan.pos,
        time: plan.time,
        page_size: plan.page_size,
        pages: plan.commit,
        bytes_fetched: reader.bytes(),
        requests: reader.requests(),
        elapsed: started.elapsed(),
    })
}

fn refuse_existing(path: &Path, existing: Existing) -> Result<(), RestoreError> {
    refuse_companions(path)?;
    let exists = path.symlink_metadata().is_ok();
    match existing {
        Existing::Refuse if exists => Err(RestoreError::Exists { path: path.to_owned() }),
        Existing::Refuse | Existing::Replace => Ok(()),
    }
}

/// Plans and fills the draft. An object that has just been compacted away makes it plan once more.
async fn fill(
    reader: &Arc<Reader>,
    draft: &Draft,
    options: &RestoreOptions,
) -> Result<(Lineage, RestorePlan), RestoreError> {
    let mut retried = false;
    loop {
        let (catalog, plan) = find_plan(reader, options.target).await?;
        let lineage = catalog.identity.lineage;
        draft.clear(plan.commit.bytes(plan.page_size))?;
        let sink = Arc::new(FileSink::new(draft)?);
        match fetch(reader, catalog.cache, &plan, sink, options.threads, &options.progress).await {
            Err(RestoreError::Missing { .. }) if !retried => retried = true,
            result => return result.map(|()| (lineage, plan)),
        }
    }
}

/// Reads the catalog and plans.
async fn find_plan(reader: &Arc<Reader>, target: Target) -> Result<(Catalog, RestorePlan), RestoreError> {
    let until = match target {
        Target::Txid(txid) => Some(txid),
        Target::Latest | Target::Time(_) | Target::TimeNearest(_) => None,
    };
    let catalog = Catalog::load(reader, until, OnDamage::Refuse).await?;
    let plan = plan_in(reader, &catalog, &mut Vec::new(), target).await?;
    Ok((catalog, plan))
}

/// Plans, reading the indexes of bundles as the plan asks for them.
pub(crate) async fn plan_in(
    reader: &Reader,
    catalog: &Catalog,
    indexes: &mut Vec<BundleIndex>,
    target: Target,
) -> Result<RestorePlan, RestoreError> {
    loop {
        match plan(&catalog.manifest, &catalog.log, indexes, target) {
            Ok(plan) => return Ok(plan),
            Err(PlanError::NeedIndex { key }) => indexes.push(catalog.bundle_index(reader, &key).await?),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Gives every page of the planned state to the sink and proves that together they are that state.
pub(crate) async fn fetch(
    reader: &Arc<Reader>,
    cache: HashMap<String, Bytes>,
    plan: &RestorePlan,
    sink: Arc<dyn PageSink>,
    threads: usize,
    progress: &Arc<dyn Progress>,
) -> Result<(), RestoreError> {
    let mut wanted = Wanted::new(plan.commit, plan.page_size);
    progress.enter(Stage::Pages(u64::from(wanted.left())));
    let bench = Bench { reader: Arc::clone(reader), page_size: plan.page_size, sink, progress: Arc::clone(progress) };
    let mut pool = Pool::new(bench, threads);
    let visits = Visits::start(Arc::clone(reader), plan.steps.clone(), cache);
    assemble(reader, visits, plan.page_size, &mut wanted, &mut pool).await?;
    let totals = pool.finish().await?;
    if let Some(pgno) = wanted.first() {
        return Err(RestoreError::PageMissing { pgno, pages: wanted.left(), pos: plan.pos });
    }
    let found = Checksum::from_crc(totals.checksum_bits);
    if found == plan.pos.checksum { Ok(()) } else { Err(RestoreError::WrongChecksum { pos: plan.pos, found }) }
}

/// Runs work that waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    pool::finished(tokio::task::spawn_blocking(work).await)
}
