//! Fills the draft: with what an earlier try has left, with what an existing file holds, and from the store.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::resume::ResumeHeader;
use rhyolite_format::{Checksum, Lineage, PageCount, PageNumber, PageSize, keys};
use rhyolite_logic::restore_plan::RestorePlan;

use super::assemble::assemble;
use super::base::{Base, Way, checksum_of_file, find_base};
use super::catalog::Catalog;
use super::done::{self, DoneLog};
use super::draft::{Draft, FileSink};
use super::pool::{Bench, Job, JobPage, Pool, Source, Totals};
use super::reader::Reader;
use super::visit::Visits;
use super::wanted::Wanted;
use super::{Existing, Output, RestoreError, RestoreOptions, blocking, find_plan};
use crate::progress::Stage;
use crate::verify::objects::first_damage;

/// So many damaged objects are avoided.
const AVOIDED_MAX: usize = 16;
/// Pages of the draft that are looked at together.
const LOCAL_JOB_BYTES: usize = 1 << 20;

/// What the draft was filled with.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) lineage: Lineage,
    pub(super) plan: RestorePlan,
    pub(super) pages_reused: u64,
    /// Damaged objects that another way led around.
    pub(super) avoided: Vec<String>,
}

/// Damaged objects, and what was wrong with the first.
#[derive(Debug, Default)]
struct Avoided {
    keys: Vec<String>,
    first: Option<RestoreError>,
}

impl Avoided {
    /// Takes in what was found wrong. An error when no way can lead around that: the first that was found, as it is what everything else
    /// follows from.
    fn take(&mut self, error: RestoreError) -> Result<(), RestoreError> {
        let key = error.key().filter(|key| may_be_avoided(key) && !self.keys.iter().any(|known| known == key));
        match key.map(ToOwned::to_owned) {
            Some(key) if self.keys.len() < AVOIDED_MAX => {
                tracing::warn!("{error}: looking for a way without it");
                self.keys.push(key);
                self.first.get_or_insert(error);
                Ok(())
            }
            _ => Err(self.first.take().unwrap_or(error)),
        }
    }
}

/// The log leads from one segment to the next; the files of the manifest may stand for each other.
fn may_be_avoided(key: &str) -> bool {
    keys::parse_segment(key).is_none() && key != keys::ID && key != keys::MANIFEST
}

/// Pages that need not be fetched, and how to go on from them.
#[derive(Debug)]
pub(super) struct Start {
    base: Base,
    way: Way,
    draft: Arc<File>,
    /// Whether the list of written pages that is there goes on.
    is_listed: bool,
}

/// Plans and fills the draft. An object that has just been compacted away makes it plan once more; pages from elsewhere that
/// do not add up make it start anew without them; a damaged snapshot, merged file or bundle makes it look for a way around that.
pub(super) async fn fill(
    reader: &Arc<Reader>,
    draft: &Draft,
    options: &RestoreOptions,
) -> Result<Filled, RestoreError> {
    let (mut may_plan_again, mut may_reuse) = (true, true);
    let mut avoided = Avoided::default();
    loop {
        let (catalog, plan) = match find_plan(reader, options.target, &avoided.keys).await {
            Ok(found) => found,
            Err(error) => {
                avoided.take(error)?;
                continue;
            }
        };
        let lineage = catalog.identity.lineage;
        let start = if may_reuse { find_start(reader, draft, options, &catalog, &plan).await? } else { None };
        let reuses = start.is_some();
        let header = ResumeHeader { lineage, pos: plan.pos, page_size: plan.page_size, commit: plan.commit };
        let goes_on = start.as_ref().is_some_and(|start| start.is_listed);
        let done = match &options.output {
            Output::File(path) => Some(DoneLog::open(path, &header, goes_on)?),
            Output::Stdout => None,
        };
        let bytes = plan.commit.bytes(plan.page_size);
        if reuses {
            draft.resize(bytes)?
        } else {
            draft.clear(bytes)?
        }
        let bench = Bench {
            reader: Arc::clone(reader),
            page_size: plan.page_size,
            sink: Arc::new(FileSink::new(draft)?),
            progress: Arc::clone(&options.progress),
            done,
            sample: None,
        };
        match fetch_pages(bench, catalog.cache, &plan, start, options.threads).await {
            Err(RestoreError::Missing { .. }) if may_plan_again => may_plan_again = false,
            Err(RestoreError::WrongChecksum { .. }) if reuses => may_reuse = false,
            Err(wrong @ RestoreError::WrongChecksum { .. }) => {
                // Something is damaged, and whoever has to mend it wants to know what. Its pages are to be fetched anew.
                may_reuse = false;
                avoided.take(first_damage(reader, &plan.steps).await.err().unwrap_or(wrong))?;
            }
            Err(error) => avoided.take(error)?,
            Ok(pages_reused) => return Ok(Filled { lineage, plan, pages_reused, avoided: avoided.keys }),
        }
    }
}

/// Looks for pages that need not be fetched.
async fn find_start(
    reader: &Reader,
    draft: &Draft,
    options: &RestoreOptions,
    catalog: &Catalog,
    plan: &RestorePlan,
) -> Result<Option<Start>, RestoreError> {
    let Output::File(output) = &options.output else { return Ok(None) };
    let file = || draft.file().try_clone().map_err(|e| RestoreError::io("open again", draft.path(), e));
    let (left, lineage, output) = (file()?, catalog.identity.lineage, output.clone());
    let loaded = blocking({
        let output = output.clone();
        move || done::load(&output, &left, lineage)
    });
    if let Some(base) = loaded.await?
        && let Some(way) = base.way(reader, catalog, plan).await?
    {
        let is_listed = base.pos == plan.pos;
        return Ok(Some(Start { base, way, draft: Arc::new(file()?), is_listed }));
    }
    if options.existing != Existing::Reuse || !output.exists() {
        return Ok(None);
    }
    let copy = file()?;
    let found = blocking(move || copy_existing(&output, &copy)).await?;
    let Some(found) = found else { return Ok(None) };
    let Some(base) = find_base(reader, catalog, found).await? else { return Ok(None) };
    let way = base.way(reader, catalog, plan).await?;
    let draft = Arc::new(file()?);
    Ok(way.map(|way| Start { base, way, draft, is_listed: false }))
}

/// Makes the draft a copy of an existing database; gives its page size, size and checksum. The kernel copies, and where the file
/// system can, shares the blocks.
fn copy_existing(output: &Path, draft: &File) -> Result<Option<(PageSize, PageCount, Checksum)>, RestoreError> {
    let copy = || {
        let mut existing = File::open(output)?;
        draft.set_len(0)?;
        let mut draft = draft;
        draft.rewind()?;
        std::io::copy(&mut existing, &mut draft)
    };
    copy().map_err(|e| RestoreError::io("copy", output, e))?;
    checksum_of_file(draft, output)
}

/// Gives every page of the planned state to the sink and proves that together they are that state. Gives the number of pages
/// that were there already.
pub(super) async fn fetch_pages(
    bench: Bench,
    cache: HashMap<String, Bytes>,
    plan: &RestorePlan,
    start: Option<Start>,
    threads: usize,
) -> Result<u64, RestoreError> {
    let (pages_reused, totals) = fetch_unproved(bench, cache, plan, start, threads).await?;
    let found = Checksum::from_crc(totals.checksum_bits);
    if found != plan.pos.checksum {
        return Err(RestoreError::WrongChecksum { pos: plan.pos, found });
    }
    Ok(pages_reused)
}

/// The same without the proof. That each page is in some object is looked at.
pub(super) async fn fetch_unproved(
    bench: Bench,
    cache: HashMap<String, Bytes>,
    plan: &RestorePlan,
    start: Option<Start>,
    threads: usize,
) -> Result<(u64, Totals), RestoreError> {
    let mut wanted = Wanted::new(plan.commit, plan.page_size);
    bench.progress.enter(Stage::Pages(u64::from(wanted.left())));
    let reader = Arc::clone(&bench.reader);
    let mut pool = Pool::new(bench, threads);
    let submitted = submit(&reader, cache, plan, start, &mut wanted, &mut pool).await;
    // Also after an error: nobody may write to the draft any more when this returns.
    let finished = pool.finish().await;
    let pages_reused = submitted?;
    let totals = finished?;
    if let Some(pgno) = wanted.first() {
        return Err(RestoreError::PageMissing { pgno, pages: wanted.left(), pos: plan.pos });
    }
    Ok((pages_reused, totals))
}

/// Gives every wanted page to the pool.
async fn submit(
    reader: &Arc<Reader>,
    cache: HashMap<String, Bytes>,
    plan: &RestorePlan,
    start: Option<Start>,
    wanted: &mut Wanted,
    pool: &mut Pool,
) -> Result<u64, RestoreError> {
    let Some(start) = start else {
        let visits = Visits::start(Arc::clone(reader), plan.steps.clone(), cache);
        return assemble(reader, visits, plan.page_size, wanted, pool).await.map(|()| 0);
    };
    let visits = Visits::start(Arc::clone(reader), start.way.newer.clone(), cache);
    assemble(reader, visits, plan.page_size, wanted, pool).await?;
    let pages_reused = submit_local(&start, plan, wanted, pool).await?;
    let visits = Visits::start(Arc::clone(reader), start.way.older, HashMap::new());
    assemble(reader, visits, plan.page_size, wanted, pool).await?;
    Ok(pages_reused)
}

/// Takes what is still wanted from the base, as far as it has it.
async fn submit_local(
    start: &Start,
    plan: &RestorePlan,
    wanted: &mut Wanted,
    pool: &mut Pool,
) -> Result<u64, RestoreError> {
    let base = &start.base;
    let job_pages = LOCAL_JOB_BYTES / plan.page_size.bytes();
    let job = |pages| Job {
        key: Arc::from("the draft"),
        source: Source::Draft { file: Arc::clone(&start.draft), is_listed: start.is_listed },
        pages,
    };
    let mut pages: Vec<JobPage> = Vec::new();
    let mut count = 0;
    for pgno in (1..=base.commit.get()).filter_map(PageNumber::new).filter(|pgno| base.here.contains(*pgno)) {
        if !wanted.claim(pgno) {
            continue;
        }
        count += 1;
        pages.push(JobPage { pgno, offset: 0, len: 0 });
        if pages.len() == job_pages {
            pool.submit(job(std::mem::take(&mut pages))).await?;
        }
    }
    if !pages.is_empty() {
        pool.submit(job(pages)).await?;
    }
    Ok(count)
}
