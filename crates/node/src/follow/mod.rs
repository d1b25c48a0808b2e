//! Keeps a plain file up to date with a log: `restore --follow`.
//!
//! After a restore it asks for the next segment at an interval (one request that finds nothing; no listing), and applies what has
//! come as one batch, atomically for every reader and every crash ([`apply`]). Only when nothing comes for a while does it look at the
//! manifest: the segments that it waits for may have been bundled and deleted meanwhile.
//!
//! Other processes may read the file with SQLite at any time. They must not write to it: that is noticed, and ends the following.
//! Page 1 differs from the log's in the fields that docs/spec/follow.md lists.
//!
//! Memory: that of a restore, and 8 bytes per page for the checksums by which every batch is proved before it is applied.

mod apply;
mod arrived;
pub(crate) mod aside;
mod live;
mod lock;
pub mod lost;
pub mod node;
pub(crate) mod peer;
pub(crate) mod preview;
pub(crate) mod promote;
mod rejoin;
pub(crate) mod replica;
pub mod source;
mod state_file;
mod sums;
pub mod trails;
pub(crate) mod wal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::{Pos, Seq, keys};
use rhyolite_logic::Target;
use rhyolite_logic::restore_plan::{PlanStep, RestorePlan};
use rhyolite_store::Store;
use tokio::sync::watch;

use crate::mount::MountHandle;
use crate::progress::{Progress, Silent, Stage};
use crate::restore::assemble::assemble;
use crate::restore::base::{Base, PageSet};
use crate::restore::catalog::{Catalog, OnDamage, read_segment};
use crate::restore::draft::{Draft, FileSink};
use crate::restore::pool::{Bench, Pool};
use crate::restore::reader::Reader;
use crate::restore::visit::Visits;
use crate::restore::wanted::Wanted;
use crate::restore::{
    Existing, Output, RestoreError, RestoreOptions, RestoreReport, blocking, plan_steps, restore_prepared,
};
use apply::{Batch, Content, Follower};
use lock::Busy;
pub(crate) use lock::{keep_writers_out, let_writers_in};

/// How long nothing may come before the manifest is looked at.
const MANIFEST_INTERVAL: Duration = Duration::from_secs(30);
/// Segments that are taken into one batch.
const BATCH_SEGMENTS_MAX: usize = 256;
/// Longest wait after a failed request.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// By what journal a file is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaJournal {
    /// A rollback journal, in which SQLite's `journal_mode=DELETE` has it: readers need nothing but the file, and are waited for.
    Rollback,
    /// A WAL: readers are not waited for, and need `-wal` and `-shm`.
    Wal,
    /// The one that the log has: a WAL where that is in WAL mode.
    AsLogged,
    /// The same, and what was applied is on the disk, as it is with a rollback journal.
    AsLoggedSynced,
}

impl ReplicaJournal {
    /// Whether the journal is the one that the log has.
    fn is_as_logged(self) -> bool {
        matches!(self, Self::AsLogged | Self::AsLoggedSynced)
    }
}

/// What to follow, and how.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// The file to keep up to date.
    pub output: PathBuf,
    /// What to do with an output that exists and is not followed yet. One that was followed before goes on.
    pub existing: Existing,
    /// Between two requests for the next segment.
    pub interval: Duration,
    /// How the file is changed.
    pub journal: ReplicaJournal,
    /// How long to wait for readers before they get another interval.
    pub lock_timeout: Duration,
    /// The file also gets commits that are not in the store yet.
    pub may_be_ahead: bool,
    /// What the history lacks is kept elsewhere before the file is rewritten: a file from which nothing leads on is judged first.
    pub is_judged: bool,
    /// The mount on which the file lies: of others who have it open it can be taken.
    pub mount: Option<MountHandle>,
    /// Threads that unpack; at least one.
    pub threads: usize,
    /// Who wants to know how far the first restore is.
    pub progress: Arc<dyn Progress>,
}

/// Follows until `stop` turns true. Tells every position that the file has reached to `positions`.
///
/// # Errors
/// Whatever cannot be repaired by trying again: damage, another history, a file that somebody else has written to. What the store
/// does not answer is logged and tried again.
pub async fn follow(
    options: FollowOptions,
    positions: watch::Sender<Option<Pos>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RestoreError> {
    if !(options.output.exists() && apply::state_path(&options.output).exists()) {
        start(&options).await?;
    }
    let (path, journal) = (options.output.clone(), options.journal);
    let follower = blocking(move || Follower::open(&path, journal)).await?;
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let mut following = Following { options, reader, follower: Some(follower), log: None };
    positions.send_replace(Some(following.pos()));
    let mut wait = Duration::ZERO;
    while !*stop.borrow() {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = stop.changed() => if changed.is_err() { break } else { continue },
        }
        let interval = following.options.interval;
        wait = match following.look().await {
            Ok(true) => {
                positions.send_replace(Some(following.pos()));
                Duration::ZERO
            }
            Ok(false) => interval,
            Err(RestoreError::Store(e)) => {
                tracing::warn!(error = %e, "the store did not answer, trying again");
                following.log = None;
                (wait * 2).clamp(interval, RETRY_MAX.max(interval))
            }
            Err(e) => return Err(e),
        };
    }
    Ok(())
}

/// Removes a file, if there is one.
fn remove(path: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RestoreError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The first restore.
async fn start(options: &FollowOptions) -> Result<RestoreReport, RestoreError> {
    let restore = RestoreOptions {
        store: Arc::clone(&options.store),
        output: Output::File(options.output.clone()),
        target: Target::Latest,
        existing: options.existing,
        threads: options.threads,
        spool: None,
        progress: Arc::clone(&options.progress),
    };
    let output = options.output.clone();
    restore_prepared(restore, move |draft, lineage, plan| {
        apply::prepare(draft, &output, lineage, (plan.pos, plan.page_size, plan.commit))
    })
    .await
}

/// A file and where it is in its log.
#[derive(Debug)]
struct Following {
    options: FollowOptions,
    reader: Arc<Reader>,
    /// Not here while a batch is being applied.
    follower: Option<Follower>,
    /// What is known of the log; `None` before it was read.
    log: Option<Known>,
}

/// The log from where the file is.
#[derive(Debug)]
struct Known {
    catalog: Catalog,
    next_seq: Seq,
    manifest_seen: Instant,
}

impl Following {
    fn follower(&self) -> &Follower {
        self.follower.as_ref().expect("put back after every batch")
    }

    fn pos(&self) -> Pos {
        self.follower().end.pos
    }

    fn base(&self) -> Base {
        let end = self.follower().end;
        Base { pos: end.pos, page_size: end.page_size, commit: end.commit, here: PageSet::all(end.commit) }
    }

    /// Looks for something new and applies it; `false` if there was nothing, or readers did not let it.
    async fn look(&mut self) -> Result<bool, RestoreError> {
        if self.log.is_none() {
            self.log = Some(self.load().await?);
        } else if !self.ask().await? && !self.is_behind().await? {
            return Ok(false);
        }
        self.go_on().await
    }

    /// Applies what leads on in the log as it is known; `false` if there was nothing, or readers did not let it.
    async fn go_on(&mut self) -> Result<bool, RestoreError> {
        let Some((plan, steps)) = self.plan().await? else { return Ok(false) };
        let is_lost = self.follower().is_lost();
        if plan.pos.txid < self.pos().txid && !is_lost {
            if self.options.may_be_ahead {
                return Ok(false);
            }
            return Err(self.diverged(format!("the store has only got to transaction {}", plan.pos.txid)));
        }
        if plan.pos == self.pos() && !is_lost {
            self.forget();
            return Ok(false);
        }
        let applied = self.apply(plan, steps).await?;
        if applied {
            self.forget();
        }
        Ok(applied)
    }

    async fn load(&self) -> Result<Known, RestoreError> {
        let catalog = Catalog::load(&self.reader, None, OnDamage::Refuse).await?;
        let (store, file) = (catalog.identity.lineage, self.follower().lineage());
        if store != file {
            return Err(RestoreError::WrongLineage { store, file });
        }
        let next_seq = catalog.log.last().map_or(catalog.manifest.first_seq, |segment| segment.seq.next());
        Ok(Known { catalog, next_seq, manifest_seen: Instant::now() })
    }

    /// Asks for the next segments; whether there was one.
    async fn ask(&mut self) -> Result<bool, RestoreError> {
        let known = self.log.as_mut().expect("the log was read");
        let had = known.catalog.log.len();
        while known.catalog.log.len() < had + BATCH_SEGMENTS_MAX {
            let lineage = known.catalog.identity.lineage;
            let read = read_segment(Arc::clone(&self.reader), lineage, known.next_seq).await?;
            let Some(read) = read else { break };
            known.catalog.take_in(read);
            known.next_seq = known.next_seq.next();
        }
        // What readers did not let in last time waits as well.
        Ok(!known.catalog.log.is_empty())
    }

    /// Whether the segments that are waited for have been bundled and deleted. Looks at most once in an interval.
    async fn is_behind(&mut self) -> Result<bool, RestoreError> {
        let known = self.log.as_mut().expect("the log was read");
        if known.manifest_seen.elapsed() < MANIFEST_INTERVAL {
            return Ok(false);
        }
        known.manifest_seen = Instant::now();
        let Some(object) = self.reader.find(keys::MANIFEST).await? else { return Ok(false) };
        let manifest = rhyolite_format::manifest::Manifest::decode(&object.bytes);
        let manifest = manifest.map_err(|e| RestoreError::damaged(keys::MANIFEST, e))?;
        if manifest.first_seq <= known.next_seq {
            return Ok(false);
        }
        self.log = Some(self.load().await?);
        Ok(true)
    }

    /// Whether the file may be rewritten where nothing leads on from it: it is a state of the history, or nobody asks.
    async fn judge(&self) -> Result<(), RestoreError> {
        if !self.options.is_judged {
            return Ok(());
        }
        let catalog = &self.log.as_ref().expect("the log was read").catalog;
        if catalog.positions(&self.reader).await?.contains(&self.pos()) {
            return Ok(());
        }
        Err(self.diverged("the history does not have it, and nothing leads on from it".to_owned()))
    }

    /// The way to the end of the log from nothing.
    async fn plan_whole(&self) -> Result<(RestorePlan, Vec<PlanStep>), RestoreError> {
        let catalog = &self.log.as_ref().expect("the log was read").catalog;
        let plan = plan_steps(&self.reader, catalog, &catalog.manifest, &mut Vec::new(), Target::Latest).await?;
        let steps = plan.steps.clone();
        Ok((plan, steps))
    }

    /// The way from where the file is to the end of the log; `None` when there is nothing yet.
    async fn plan(&mut self) -> Result<Option<(RestorePlan, Vec<PlanStep>)>, RestoreError> {
        if self.follower().is_lost() {
            return self.plan_whole().await.map(Some);
        }
        let base = self.base();
        let known = self.log.as_ref().expect("the log was read");
        let catalog = &known.catalog;
        let mut indexes = Vec::new();
        let from_here = base.instead_of_newer_snapshots(&catalog.manifest);
        match plan_steps(&self.reader, catalog, &from_here, &mut indexes, Target::Latest).await {
            Ok(plan) if plan.pos == base.pos => {
                // Nothing leads on from here, but a snapshot may be ahead.
                let manifest = &catalog.manifest;
                let whole = plan_steps(&self.reader, catalog, manifest, &mut indexes, Target::Latest).await;
                let whole = whole.ok().filter(|whole| whole.pos.txid > base.pos.txid);
                if whole.is_some() {
                    self.judge().await?;
                }
                let steps = whole.as_ref().map(|whole| whole.steps.clone()).unwrap_or_default();
                Ok(Some((whole.unwrap_or(plan), steps)))
            }
            Ok(mut plan) => {
                match base.is_first_of(&plan) {
                    true => drop(plan.steps.remove(0)),
                    // It begins with a snapshot of the log.
                    false => self.judge().await?,
                }
                let steps = plan.steps.clone();
                Ok(Some((plan, steps)))
            }
            Err(RestoreError::Plan(_)) => {
                // The files that lead from here to there may be gone. Then everything is rewritten.
                self.log = Some(self.load().await?);
                self.judge().await?;
                self.plan_whole().await.map(Some)
            }
            Err(e) => Err(e),
        }
    }

    /// Fetches what has changed into a spool file, proves it and applies it. `false` when readers did not let it.
    async fn apply(&mut self, plan: RestorePlan, steps: Vec<PlanStep>) -> Result<bool, RestoreError> {
        let folder = self.options.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let spool = Draft::unnamed(folder.unwrap_or(Path::new(".")))?;
        spool.clear(plan.commit.bytes(plan.page_size))?;
        let mut wanted = Wanted::new(plan.commit, plan.page_size);
        let progress: Arc<dyn Progress> = Arc::new(Silent);
        progress.enter(Stage::Pages(u64::from(wanted.left())));
        let sink = Arc::new(FileSink::new(&spool)?);
        let reader = Arc::clone(&self.reader);
        let bench =
            Bench { reader: Arc::clone(&reader), page_size: plan.page_size, sink, progress, done: None, sample: None };
        let mut pool = Pool::new(bench, self.options.threads);
        let cache = self.log.as_mut().map(|known| std::mem::take(&mut known.catalog.cache)).unwrap_or_default();
        let visits = Visits::start(Arc::clone(&reader), steps, cache);
        let submitted = assemble(&reader, visits, plan.page_size, &mut wanted, &mut pool).await;
        let finished = pool.finish().await;
        submitted?;
        finished?;
        let pages = wanted.taken(plan.page_size, plan.commit);
        let content = Content::Spool(spool.into_file());
        let batch = Batch { content, pages, pos: plan.pos, page_size: plan.page_size, commit: plan.commit };
        Ok(self.apply_batch(batch).await?.is_ok())
    }

    /// Proves a batch and applies it, or gives it back when readers did not let it.
    async fn apply_batch(&mut self, batch: Batch) -> Result<Result<(), Batch>, RestoreError> {
        self.apply_made(move || Ok(batch)).await
    }

    /// The same of one that is made on the thread that applies it: to go from one to another takes longer than to apply little.
    async fn apply_made(
        &mut self,
        make: impl FnOnce() -> Result<Batch, RestoreError> + Send + 'static,
    ) -> Result<Result<(), Batch>, RestoreError> {
        let timeout = self.options.lock_timeout;
        let mut follower = self.follower.take().expect("put back after every batch");
        let work = tokio::task::spawn_blocking(move || {
            let applied = make().and_then(|batch| Ok(follower.apply(&batch, timeout)?.map_err(|Busy| batch)));
            (follower, applied)
        });
        let (follower, applied) = work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        self.follower = Some(follower);
        applied
    }

    /// Takes back what somebody has written that the history does not have. `false` when others did not let it.
    async fn take_back(&mut self) -> Result<bool, RestoreError> {
        let timeout = self.options.lock_timeout;
        let mut follower = self.follower.take().expect("put back after every batch");
        let work = tokio::task::spawn_blocking(move || {
            let taken = follower.take_back(timeout);
            (follower, taken)
        });
        let (follower, taken) = work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        self.follower = Some(follower);
        Ok(taken?.is_ok())
    }

    /// Makes the file the end of the log whatever it is now, page by page and in place. `false` when readers did not let it.
    async fn rewrite(&mut self) -> Result<bool, RestoreError> {
        self.log = Some(self.load().await?);
        let catalog = &self.log.as_ref().expect("just read").catalog;
        let plan = plan_steps(&self.reader, catalog, &catalog.manifest, &mut Vec::new(), Target::Latest).await?;
        let steps = plan.steps.clone();
        let applied = self.apply(plan, steps).await;
        self.log = None;
        applied
    }

    /// The log before where the file is need not be known any more.
    fn forget(&mut self) {
        let base = self.base();
        let Some(known) = &mut self.log else { return };
        known.catalog.continue_from(known.next_seq, &base);
    }

    fn diverged(&self, detail: String) -> RestoreError {
        RestoreError::Diverged { path: self.options.output.clone(), txid: self.pos().txid, detail }
    }
}
