//! Catches a new primary up with the store: every database that the store holds, also those that are not here yet.
//!
//! For each database, in this order:
//! 1. The log is fenced under the new right, unless whoever had the right before gave it up quietly: what the former primary still sends comes too late, and the
//!    end that is found after that is the end.
//! 2. A database that this node captured itself, and whose local log goes on from just that end, is left to capture, unless the system has started anew and
//!    the file is not at the end of that log: a power cut takes from a file what is durable in the store.
//! 3. Any other file is brought to the end, or stays further when it has passed it ([`crate::follow::promote`]).
//! 4. Where it is at the end, the state folder gets the checksums of its pages, so that capture goes on without reading the store.
//!
//! A database for which that cannot be done keeps the node from serving: whatever lies there could be older than what the store has, and capture would
//! take it for newer.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rhyolite_format::segment::Segment;
use rhyolite_format::state::LocalState;
use rhyolite_format::{Checksum, Epoch};
use rhyolite_logic::lease::Guards;
use rhyolite_logic::prepare::{self, Content, FoundEnd, TakeEnd};
use rhyolite_logic::reconcile::{StoreEnd, is_overtaken, reconcile};
use rhyolite_store::{RetryPolicy, Retrying, Store};
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create;
use rhyolite_writer::lease_keeper::LeaseHandle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::following::replica_journal;
use super::hearing::{Best, Hearing};
use super::witness::Durability;
use crate::capture::local_log::SealedSegment;
use crate::capture::restart;
use crate::capture::table::PageTable;
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::follow::FollowOptions;
use crate::follow::promote::{Goal, Released, is_follower, measured, promote};
use crate::follow::replica;
use crate::follow::trails::Trails;
use crate::log_end::{self, LogEnd};
use crate::mount::MountHandle;
use crate::park;
use crate::progress::Silent;
use crate::restore::below::prefixes;
use crate::restore::draft::beside;
use crate::restore::{Existing, RestoreError};
use crate::world::RealWorld;

/// Databases that are prepared at a time.
const AT_ONCE: usize = 16;
/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long readers of a file are waited for at a time.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// What a new primary prepares, and under which right.
pub(super) struct Prepare {
    pub(super) folder: FolderConfig,
    pub(super) lease: LeaseHandle,
    /// What was sent under an older right may still come in.
    pub(super) must_fence: bool,
    pub(super) trails: Arc<Trails>,
    /// Whom to ask what was acknowledged, if the lease says so.
    pub(super) hearing: Option<Hearing>,
    /// Databases of which the store has something.
    pub(super) known: Mutex<Vec<String>>,
    /// Where the databases are mounted.
    pub(super) mount: Option<MountHandle>,
    /// What this node keeps of what it has.
    pub(super) durability: Durability,
    /// Turns true when it is to be given up.
    pub(super) cancelled: watch::Receiver<bool>,
}

/// Prepares everything. Gives the databases of which the store has something; `None` when that was cancelled.
pub(super) async fn run(prepare: Prepare) -> Option<Vec<String>> {
    let prepare = Arc::new(prepare);
    // From here on SQLite may have the files open in this process.
    replica::close(true);
    let waited = tokio::task::spawn_blocking(replica::wait_for_looks).await;
    waited.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    let names = prepare.names().await?;
    let (turns, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    // Fences carry the right under which they were made; capture goes on under a later one, by which it tells them from its own.
    let fenced = Arc::new(Mutex::new(None));
    for name in names {
        let turn = Arc::clone(&turns).acquire_owned().await.expect("the semaphore is never closed");
        let (prepare, fenced) = (Arc::clone(&prepare), Arc::clone(&fenced));
        tasks.spawn(async move {
            let done = prepare.one(&name, &fenced).await;
            drop(turn);
            done
        });
    }
    let mut is_done = true;
    while let Some(done) = tasks.join_next().await {
        is_done &= done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    }
    let fenced: Option<Epoch> = *fenced.lock().unwrap_or_else(PoisonError::into_inner);
    let is_done = match fenced.filter(|_| is_done) {
        Some(epoch) => prepare.raise(epoch.next()).await,
        None => is_done,
    };
    is_done.then(|| std::mem::take(&mut *prepare.known.lock().unwrap_or_else(PoisonError::into_inner)))
}

impl Prepare {
    fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    async fn again(&self) {
        // Without a sender nobody waits for this any more.
        let _ = tokio::time::timeout(AGAIN, self.cancelled.clone().wait_for(|cancelled| *cancelled)).await;
    }

    /// Waits until the right has at least this number.
    async fn raise(&self, least: Epoch) -> bool {
        self.lease.require_epoch(least);
        while !self.is_cancelled() {
            if self.lease.right().is_some_and(|epoch| epoch >= least) {
                return true;
            }
            let changes = self.lease.changes();
            if self.lease.right().is_none_or(|epoch| epoch < least)
                && let Some(changes) = changes
            {
                let _ = tokio::time::timeout(AGAIN, changes).await;
            }
        }
        false
    }

    /// The names of the databases that the store holds; `None` when cancelled.
    async fn names(&self) -> Option<Vec<String>> {
        let template = &self.folder.template;
        let mut told = None;
        while !self.is_cancelled() {
            let listed = match rhyolite_store::open(&template.store, &template.store_options()) {
                Ok(store) => {
                    prefixes(&(Arc::new(Retrying::new(store, RetryPolicy::default())) as Arc<dyn Store>)).await
                }
                Err(error) => Err(error),
            };
            match listed {
                Ok(names) => return Some(names.into_iter().filter(|name| self.is_ours(name)).collect()),
                Err(error) => tell(&mut told, &template.store, &error.to_string()),
            }
            self.again().await;
        }
        None
    }

    /// Whether a database of the store belongs into the folder.
    fn is_ours(&self, name: &str) -> bool {
        let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        is_plain && self.folder.takes(name)
    }

    /// Prepares one database; `false` when cancelled.
    async fn one(&self, name: &str, fenced: &Mutex<Option<Epoch>>) -> bool {
        let config = self.folder.database(name);
        let mut told = None;
        // The right under which this log was fenced here.
        let mut own = None;
        while !self.is_cancelled() {
            match self.try_one(name, &config, fenced, &mut own).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(text) => {
                    tell(&mut told, &config.path.display().to_string(), &text);
                    self.again().await;
                }
            }
        }
        false
    }

    /// `false` when it is to be tried again, unless cancelled.
    async fn try_one(
        &self,
        name: &str,
        config: &DatabaseConfig,
        fenced: &Mutex<Option<Epoch>>,
        own: &mut Option<Epoch>,
    ) -> Result<bool, String> {
        let store = rhyolite_store::open(&config.store, &config.store_options()).map_err(|e| e.to_string())?;
        let store: Arc<dyn Store> = Arc::new(Retrying::new(store, RetryPolicy::default()));
        let found = log_end::find(&store, Guards::ALL, None).await.map_err(|e| e.to_string())?;
        let Some(mut end) = found else { return Ok(true) };
        if !self.take_end(&store, &mut end, fenced, own).await? {
            return Ok(false);
        }
        let Some(pos) = end.pos else { return Ok(true) };
        self.note_known(name);
        let is_written = !is_follower(&config.path) && config.path.exists();
        let written =
            if is_written { written(config, &end, self.cancelled.clone()).await? } else { Written::default() };
        let goes_on = written.goes_on;
        let better = match (&self.hearing, goes_on) {
            (None, None) => None,
            // It has all that it told of: nothing is lost since.
            (Some(hearing), Some(Content::Kept)) if hearing.is_own() => return Ok(true),
            (None, Some(_)) => return Ok(true),
            // Whoever has gone on with the log has put there first what was told here.
            (Some(hearing), None) if written.is_overtaken && hearing.is_own() => None,
            (Some(hearing), _) => match hearing.hear(name, &config.path, (end.identity.lineage, pos)).await? {
                Best::Other(better) => Some(better),
                Best::Nobody | Best::Own if goes_on.is_some() => return Ok(true),
                Best::Nobody | Best::Own => None,
            },
        };
        let options = FollowOptions {
            store,
            output: config.path.clone(),
            existing: Existing::Refuse,
            journal: replica_journal(self.mount.as_ref(), self.durability),
            mount: self.mount.clone(),
            interval: Duration::ZERO,
            lock_timeout: LOCK_TIMEOUT,
            may_be_ahead: true,
            is_judged: true,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            progress: Arc::new(Silent),
        };
        if let Some(parent) = config.path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| format!("make {}: {e}", parent.display()))?;
        }
        let goal = Goal { lineage: end.identity.lineage, pos };
        let trail = (&*self.trails, name);
        let promoted = promote(&options, &config.meta_path, goal, better.as_deref(), trail, &self.cancelled).await;
        let promoted = promoted.map_err(|e| e.to_string())?;
        let Some(released) = promoted else { return Ok(false) };
        if released.pos != pos {
            tracing::info!(database = name, at = %released.pos.txid, "ahead of the store, which ends at {}", pos.txid);
        }
        let meta_path = config.meta_path.clone();
        let left = tokio::task::spawn_blocking(move || leave(&meta_path, released, &end)).await;
        left.expect("writing does not panic").map_err(|e| format!("write the state folder: {e}"))?;
        Ok(true)
    }

    fn note_known(&self, name: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|known| known == name) {
            known.push(name.to_owned());
        }
    }

    /// Makes sure that the end of the log is the end: nobody adds to it but under our right. `false` when it has gone on meanwhile, or we have no right
    /// any more.
    async fn take_end(
        &self,
        store: &Arc<dyn Store>,
        end: &mut LogEnd,
        fenced: &Mutex<Option<Epoch>>,
        own: &mut Option<Epoch>,
    ) -> Result<bool, String> {
        let found = FoundEnd { epoch: end.epoch, has_manifest: end.manifest.is_some(), fenced: *own };
        let epoch = match prepare::take_end(found, self.lease.right(), self.must_fence) {
            TakeEnd::Wait => {
                self.again().await;
                return Ok(false);
            }
            TakeEnd::Raise(least) => {
                self.raise(least).await;
                return Ok(false);
            }
            TakeEnd::Ours | TakeEnd::Quiet => return Ok(true),
            TakeEnd::Fence(epoch) => epoch,
        };
        let claim =
            Claim::new(Arc::clone(store), Arc::new(RealWorld), Guards::ALL, epoch, end.manifest_version.clone());
        claim.ensure().await.map_err(|e| e.to_string())?;
        let (header, bytes) = create::fence(&RealWorld, end.identity.lineage, epoch, end.next_seq);
        match create::segment(&**store, Guards::ALL, &header, bytes, &[]).await {
            Ok(_) => {
                end.next_seq = end.next_seq.next();
                end.epoch = Some(epoch);
                *own = Some(epoch);
                let mut fenced = fenced.lock().unwrap_or_else(PoisonError::into_inner);
                *fenced = (*fenced).max(Some(epoch));
                Ok(true)
            }
            Err(create::CreateError::Store(error)) => Err(error.to_string()),
            // What came in before the fence is history.
            Err(_) => Ok(false),
        }
    }
}

/// What a file that this node captured itself has to do with the end of the store's log.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// It may be left to capture, and why: the local log goes on from there, and the file is not behind it.
    goes_on: Option<Content>,
    /// The log has gone on without this node, whose machine has run since.
    is_overtaken: bool,
}

/// Judges a file that this node captured itself.
async fn written(
    config: &DatabaseConfig,
    end: &LogEnd,
    mut cancelled: watch::Receiver<bool>,
) -> Result<Written, String> {
    let meta_path = config.meta_path.clone();
    let loaded = tokio::task::spawn_blocking(move || restart::load_whole(&meta_path)).await;
    let local = loaded.expect("loading does not panic").map_err(|e| format!("read the state folder: {e}"))?;
    let log: Vec<Segment> = local.segments.iter().map(SealedSegment::index).collect();
    let store = StoreEnd { lineage: end.identity.lineage, pos: end.pos, next_seq: end.next_seq };
    let start = reconcile(local.state.as_ref(), &log, Some(&store));
    let boot = restart::boot_id();
    let since = local.state.filter(|state| boot != [0; 16] && state.boot_id == boot);
    if since.is_some() || !prepare::goes_on(&start, Content::Kept) {
        let goes_on = Some(Content::Kept).filter(|content| prepare::goes_on(&start, *content));
        return Ok(Written { goes_on, is_overtaken: since.is_some_and(|state| is_overtaken(&state, &log, &store)) });
    }
    let path = config.path.clone();
    let measuring = tokio::task::spawn_blocking(move || measured_once(&path));
    let measured = tokio::select! {
        measured = measuring => measured.expect("reading does not panic").map_err(|e| e.to_string())?,
        // It is measured to its end all the same, for the next try.
        _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(Written::default()),
    };
    let goes_on = Some(Content::Measured(measured)).filter(|content| prepare::goes_on(&start, *content));
    Ok(Written { goes_on, is_overtaken: false })
}

/// Size and time of the last write of a file.
type Looks = (u64, Option<SystemTime>);

/// Files that were measured by this process: a large one takes longer than the lease waits for it.
static MEASURED: Mutex<BTreeMap<PathBuf, (Looks, Option<Checksum>)>> = Mutex::new(BTreeMap::new());

/// What a file adds up to, read once as long as it is not written to.
fn measured_once(path: &Path) -> Result<Option<Checksum>, RestoreError> {
    let looks =
        || -> Looks { std::fs::metadata(path).map(|meta| (meta.len(), meta.modified().ok())).unwrap_or_default() };
    let lock = || MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    let has_wal = std::fs::metadata(beside(path, "-wal")).is_ok_and(|meta| meta.len() > 0);
    if let Some((_, checksum)) = lock().get(path).filter(|(then, _)| !has_wal && *then == looks()) {
        return Ok(*checksum);
    }
    let checksum = measured(path)?;
    lock().insert(path.to_owned(), (looks(), checksum));
    Ok(checksum)
}

/// Leaves a state folder from which capture goes on.
fn leave(meta_path: &Path, released: Released, end: &LogEnd) -> std::io::Result<()> {
    restart::clear(meta_path)?;
    park::forget(meta_path)?;
    if end.pos != Some(released.pos) {
        // The file is further: what it has is compared with what the store has.
        return Ok(());
    }
    let state = LocalState {
        lineage: released.lineage,
        pos: end.pos,
        durable: end.pos,
        page_size: Some(released.page_size),
        commit: released.commit,
        wal: None,
        epoch: end.epoch.unwrap_or(Epoch::FIRST),
        next_seq: end.next_seq,
        boot_id: restart::boot_id(),
    };
    restart::begin_at(meta_path, &state, &PageTable::from_entries(released.page_size, released.table))
}

/// Says what keeps a database from being prepared, once.
fn tell(told: &mut Option<String>, what: &str, text: &str) {
    if told.as_deref() != Some(text) {
        tracing::warn!("not the primary yet: {what}: {text}");
        *told = Some(text.to_owned());
    }
}
