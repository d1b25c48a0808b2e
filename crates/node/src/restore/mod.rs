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
//! for one bit per page and the entries of the live log (some 100 bytes per transaction that is not bundled yet): 16 MiB of reads
//! under way, 8 MiB read ahead, 8 MiB of small segments kept from planning, 64 KiB per job under way.
//!
//! What an interrupted restore has left is taken up by the next one ([`done`], [`base`]), as is a file that is at an earlier
//! state ([`Existing::Reuse`]).

pub(crate) mod assemble;
pub(crate) mod base;
pub(crate) mod below;
pub(crate) mod catalog;
mod done;
pub(crate) mod draft;
mod error;
mod fill;
mod index;
mod page_table;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod sink;
pub(crate) mod stream;
pub(crate) mod visit;
pub(crate) mod wanted;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Lineage, PageCount, PageSize, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_logic::drill::Sample;
use rhyolite_logic::restore_plan::{BundleIndex, PlanError, RestorePlan, plan};
use rhyolite_store::Store;

pub use error::RestoreError;
pub use page_table::page_table;

use crate::progress::{Progress, Silent, Stage};
use crate::time;
use catalog::{Catalog, OnDamage};
use draft::{Draft, refuse_companions, spool_folder};
use pool::Bench;
use reader::Reader;
use sink::PageSink;

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
    /// The same, and if it is at a restore point that leads to the target, only the pages that have changed since are fetched.
    /// The file is copied first, and the copy changed.
    Reuse,
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
    /// Damaged objects of the store that another way led around: the result is proved all the same.
    pub avoided: Vec<String>,
    /// Pages that were taken from an interrupted restore or from the existing file.
    pub pages_reused: u64,
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
/// Any. Nothing has appeared under the output's name then. What was written is kept for the next try when it may be of use: after
/// an error of the store or of the disk, not after damage.
pub async fn restore(options: RestoreOptions) -> Result<RestoreReport, RestoreError> {
    restore_prepared(options, |_, _, _| Ok(())).await
}

/// The same, with something to do to the proved draft before it gets the output's name.
pub(crate) async fn restore_prepared(
    options: RestoreOptions,
    prepare: impl FnOnce(&File, Lineage, &RestorePlan) -> Result<(), RestoreError> + Send + 'static,
) -> Result<RestoreReport, RestoreError> {
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
    let filled = match fill::fill(&reader, &draft, &options).await {
        Ok(filled) => filled,
        Err(e) => {
            if !e.may_pass() || draft.is_empty() {
                // What made it fail is said; that something is still there is the lesser evil.
                let _ = draft.discard();
            }
            return Err(e);
        }
    };
    options.progress.enter(Stage::Syncing);
    let to_stdout = options.output == Output::Stdout;
    let filled = blocking(move || {
        prepare(draft.file(), filled.lineage, &filled.plan)?;
        if to_stdout { draft.copy_to_stdout() } else { draft.publish() }.map(|()| filled)
    });
    let filled = filled.await?;
    options.progress.enter(Stage::Done);
    Ok(RestoreReport {
        lineage: filled.lineage,
        pos: filled.plan.pos,
        time: filled.plan.time,
        page_size: filled.plan.page_size,
        pages: filled.plan.commit,
        avoided: filled.avoided,
        pages_reused: filled.pages_reused,
        bytes_fetched: reader.bytes(),
        requests: reader.requests(),
        elapsed: started.elapsed(),
    })
}

pub(crate) fn refuse_existing(path: &Path, existing: Existing) -> Result<(), RestoreError> {
    refuse_companions(path)?;
    let exists = path.symlink_metadata().is_ok();
    match existing {
        Existing::Refuse if exists => Err(RestoreError::Exists { path: path.to_owned() }),
        Existing::Refuse | Existing::Replace | Existing::Reuse => Ok(()),
    }
}

/// Reads the catalog and plans, without the files in `avoid`. Damage to the log after the target is no hindrance.
async fn find_plan(
    reader: &Arc<Reader>,
    target: Target,
    avoid: &[String],
) -> Result<(Catalog, RestorePlan), RestoreError> {
    let until = match target {
        Target::Txid(txid) => Some(txid),
        Target::Latest | Target::Time(_) | Target::TimeNearest(_) => None,
    };
    let mut catalog = Catalog::load(reader, until, OnDamage::Collect).await?;
    catalog.refuse_beyond_damage(target)?;
    catalog.manifest.files.retain(|file| !avoid.contains(&file.key));
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
    plan_steps(reader, catalog, &catalog.manifest, indexes, target).await
}

/// The same with another manifest than that of the catalog. At a time that has passed, a database is what its last commit before that has
/// left, also when nothing came after.
pub(crate) async fn plan_steps(
    reader: &Reader,
    catalog: &Catalog,
    manifest: &Manifest,
    indexes: &mut Vec<BundleIndex>,
    mut target: Target,
) -> Result<RestorePlan, RestoreError> {
    loop {
        match plan(manifest, &catalog.log, indexes, target) {
            Ok(plan) => return Ok(plan),
            Err(PlanError::OutOfRange { time, last, .. }) if time > last && time <= time::now() => {
                target = Target::Latest;
            }
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
    let (page_size, progress) = (plan.page_size, Arc::clone(progress));
    let bench = Bench { reader: Arc::clone(reader), page_size, sink, progress, done: None, sample: None };
    fill::fetch_pages(bench, cache, plan, None, threads).await.map(|_| ())
}

/// Gives a sample of the pages of the planned state to the sink, and their number. That each page is in some object is looked at; that the
/// pages are right is for the sink to say.
pub(crate) async fn fetch_sample(
    reader: &Arc<Reader>,
    cache: HashMap<String, Bytes>,
    plan: &RestorePlan,
    sink: Arc<dyn PageSink>,
    threads: usize,
    sample: Sample,
) -> Result<u64, RestoreError> {
    let (page_size, progress) = (plan.page_size, Arc::new(Silent));
    let bench = Bench { reader: Arc::clone(reader), page_size, sink, progress, done: None, sample: Some(sample) };
    fill::fetch_unproved(bench, cache, plan, None, threads).await.map(|(_, totals)| totals.pages)
}

/// Runs work that waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    pool::finished(tokio::task::spawn_blocking(work).await)
}
