//! Replication of any number of databases: for each one a capture thread and an uploader task.
//!
//! ```text
//!   state folder ─┐
//!                 ├─► where the log ends ─► capture thread ──segments, snapshots──► uploader task ─► store
//!   store ────────┘                               ▲────────────acknowledged──────────────┘
//! ```
//!
//! One sick database never stops another: its error is in its status, and it is tried again where that can help.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::identity::Identity;
use rhyolite_format::segment::Segment;
use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::{Epoch, Lineage, Nonce, PageSize, Pos, Seq, keys};
use rhyolite_logic::reconcile::{Start as Decision, StoreEnd, reconcile};
use rhyolite_store::{Counted, RetryPolicy, Retrying, Store, StoreError, StoreErrorKind, Version};
use tokio::sync::{mpsc, watch};

use crate::capture::local_log::{SealedSegment, Writer};
use crate::capture::restamp;
use crate::capture::restart::{self, LocalStart};
use crate::capture::thread::{CaptureThread, Channels, Ended, Start, TableError, TableSource, ToCapture};
use crate::capture::watch::Wake;
use crate::config::DatabaseConfig;
use crate::drill::Driller;
use crate::fencing;
use crate::keep::{Keeper, LocalSegments};
use crate::lease::LeasePool;
use crate::log_end::{self, Hint, LogEnd};
use crate::manifest_swap::ManifestError;
use crate::random;
use crate::restore::{self, RestoreError};

use crate::status::{DatabaseStatus, DiffReason, State, StatusBoard};
use crate::time;
use crate::upload::{Right, UploadEnd, Uploader};

mod turn;

use turn::{Past, Turn};

/// Messages that may wait for an uploader: a snapshot's pieces at most.
const QUEUE: usize = 4;
/// Longest time between tries to reach the store at start.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Time before everything is compared again.
const BEGIN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Of so many lives of one process a late request is recognised.
const LIVES_REMEMBERED: usize = 16;
/// How long giving up the leases may take at the end.
const RELEASE_WAIT: Duration = Duration::from_secs(1);
/// Stack of a capture thread in bytes: SQLite needs little.
const STACK_BYTES: usize = 512 << 10;

/// What to replicate.
#[derive(Debug)]
pub struct ReplicateOptions {
    /// The databases.
    pub databases: Vec<DatabaseConfig>,
    /// How long the last uploads may take after `stop`.
    pub stop_timeout: Duration,
}

/// Why a database is not replicated (any more). Final: trying again cannot help.
#[derive(Debug)]
pub enum ReplicateError {
    /// The file is no SQLite database.
    NotADatabase(String),
    /// The state folder belongs to another history than the store.
    WrongLineage(String),
    /// Another process writes to the same prefix, or works on the same database.
    Conflict(String),
    /// The store is set up wrong: no access, unknown scheme.
    Store(String),
    /// The state folder cannot be used.
    Local(String),
    /// Not everything was uploaded in time.
    NotDurable(String),
}

impl std::fmt::Display for ReplicateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotADatabase(text)
            | Self::WrongLineage(text)
            | Self::Conflict(text)
            | Self::Store(text)
            | Self::Local(text)
            | Self::NotDurable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ReplicateError {}

/// Replicates until `stop` turns true, then uploads what is left. Ends earlier when every database has failed for good.
/// Gives the errors of the databases that did.
pub async fn run(
    options: ReplicateOptions,
    board: Arc<StatusBoard>,
    stop: watch::Receiver<bool>,
) -> Vec<ReplicateError> {
    let options = Arc::new(options);
    let leases = Arc::new(LeasePool::default());
    let mut tasks = tokio::task::JoinSet::new();
    for config in options.databases.clone() {
        let status = board.add(config.path.clone(), config.meta_path.clone(), config.store.clone());
        let (options, leases, stop) = (Arc::clone(&options), Arc::clone(&leases), stop.clone());
        tasks.spawn(async move {
            let replication = Replication {
                config,
                status: Arc::clone(&status),
                options: Arc::clone(&options),
                leases: Arc::clone(&leases),
                stop,
                nonces: Vec::new(),
                past: Past::default(),
                is_last: false,
            };
            let config = replication.config.clone();
            let ended = replication.run().await;
            leases.leave(&config, RELEASE_WAIT).await;
            match &ended {
                Ok(()) => status.set_state(State::Stopped),
                Err(error) => {
                    // A single database's error ends the process, which says it then.
                    if options.databases.len() > 1 {
                        tracing::error!(database = %status.path.display(), "{error}");
                    }
                    status.error(error.to_string());
                    status.set_state(State::Error { text: error.to_string() });
                }
            }
            ended
        });
    }
    let mut errors = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(error),
            // A mistake of ours; the other databases are none the worse for it.
            Err(panic) => errors.push(ReplicateError::Local(format!("internal error, please report it: {panic}"))),
        }
    }
    errors
}

struct Replication {
    config: DatabaseConfig,
    status: Arc<DatabaseStatus>,
    options: Arc<ReplicateOptions>,
    leases: Arc<LeasePool>,
    stop: watch::Receiver<bool>,
    /// By which the lives so far knew their segments.
    nonces: Vec<Nonce>,
    /// What this process has done under its rights so far.
    past: Past,
    /// This life begins although the process stops.
    is_last: bool,
}

/// What a start is made of.
struct Opening {
    writer: Writer,
    next_seq: Seq,
    start: Start,
    /// The version of the manifest that belongs to the end of the log.
    manifest: Option<Version>,
}

impl Replication {
    async fn run(mut self) -> Result<(), ReplicateError> {
        while self.run_once().await? == Ended::BeginAgain {
            tracing::warn!(database = %self.config.path.display(), "beginning again with what the store has");
            // Requests of the life before this may still be on their way.
            if !self.sleep(BEGIN_AGAIN_AFTER).await {
                return self.run_last().await;
            }
        }
        Ok(())
    }

    /// One more life, although the process stops: nobody knows what the life before this has left undone.
    async fn run_last(mut self) -> Result<(), ReplicateError> {
        self.is_last = true;
        let limit = self.options.stop_timeout;
        match tokio::time::timeout(limit, self.run_once()).await {
            Ok(Ok(Ended::Stopped)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(self.not_durable()),
        }
    }

    async fn run_once(&mut self) -> Result<Ended, ReplicateError> {
        let Some(page_size) = self.wait_for_database().await? else { return Ok(Ended::Stopped) };
        // Until the store has been asked nobody knows what it has of the database.
        self.status.update(|f| {
            if f.local.is_none() {
                f.pending_since.get_or_insert_with(time::now);
            }
        });
        let store = self.open_store()?;
        let known = restart::lineage(&self.config.meta_path);
        tokio::select! {
            checked = self.check_history(&store, known) => checked?,
            () = self.stopped() => return Ok(Ended::Stopped),
        }
        let lease = self.leases.get(&self.config, &self.status.requests);
        let lease = lease.map_err(|e| ReplicateError::Store(e.to_string()))?;
        let Some(turn) = self.wait_for_turn(&lease).await? else { return Ok(Ended::Stopped) };
        let Some(meta_lock) = self.lock_state_folder().await? else { return Ok(Ended::Stopped) };
        let local = self.load_local().await?;
        let known = local.state.as_ref().map(|s| s.lineage);
        let hint = local.state.as_ref();
        let hint = hint.and_then(|s| Some(Hint { next_seq: s.next_seq, pos: s.durable?, epoch: s.epoch }));
        let Some(end) = self.take_turn(&store, &turn, hint, known).await? else {
            let is_stopped = *self.stop.borrow() && !self.is_last;
            return Ok(if is_stopped { Ended::Stopped } else { Ended::BeginAgain });
        };
        let opening = self.decide(local, end, turn.epoch).await?;
        match self.ensure_identity(&store, opening.writer.lineage, page_size).await {
            Ok(true) => {}
            Ok(false) => return Ok(Ended::Stopped),
            // Another first writer was faster: ours was only drawn just now.
            Err(ReplicateError::Conflict(_)) if known.is_none() => return Ok(Ended::BeginAgain),
            Err(error) => return Err(error),
        }
        let ended = self.drive(store, turn, opening).await;
        drop(meta_lock);
        ended
    }

    async fn load_local(&self) -> Result<LocalStart, ReplicateError> {
        let meta_path = self.config.meta_path.clone();
        let local =
            tokio::task::spawn_blocking(move || restart::load(&meta_path)).await.expect("loading does not panic");
        let mut local = local.map_err(|e| self.local_error("read", &e))?;
        for problem in local.problems.drain(..) {
            tracing::warn!(database = %self.config.path.display(), "state folder: {problem}");
        }
        Ok(local)
    }

    /// Refuses a store that holds another history, before so much as the lease is touched. A store that does not answer is asked again
    /// later.
    async fn check_history(&self, store: &Arc<dyn Store>, known: Option<Lineage>) -> Result<(), ReplicateError> {
        let Ok(object) = store.get(keys::ID).await else { return Ok(()) };
        let found = Identity::decode(&object.bytes)
            .map_err(|error| ReplicateError::Store(format!("{} in {}: {error}", keys::ID, self.config.store)))?;
        match known.filter(|known| *known != found.lineage) {
            Some(local) => Err(self.wrong_lineage(&Decision::WrongLineage { local, store: found.lineage })),
            None => Ok(()),
        }
    }

    fn wrong_lineage(&self, decided: &Decision) -> ReplicateError {
        ReplicateError::WrongLineage(format!("{} and {}: {decided}", self.config.path.display(), self.config.store))
    }

    /// Waits for a database to replicate. `None` when stopped before. A file that is something else is refused, and
    /// nothing is touched.
    async fn wait_for_database(&mut self) -> Result<Option<PageSize>, ReplicateError> {
        let path = self.config.path.display().to_string();
        let mut told = false;
        loop {
            let reason = match read_header(&self.config.path) {
                Ok(Some(header)) => return Ok(Some(header)),
                Ok(None) => "the database is empty: nothing was ever committed",
                Err(HeaderError::Missing) => "the database file does not exist",
                Err(HeaderError::Refused(text)) => return Err(ReplicateError::NotADatabase(format!("{path}: {text}"))),
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(database = path, "waiting: {reason}");
                self.status.set_state(State::Waiting { reason: reason.to_owned() });
            }
            if !self.sleep(Duration::from_millis(250)).await {
                return Ok(None);
            }
        }
    }

    fn open_store(&self) -> Result<Arc<dyn Store>, ReplicateError> {
        let opened = rhyolite_store::open(&self.config.store, &self.config.store_options());
        let store = opened.map_err(|e| ReplicateError::Store(e.to_string()))?;
        let warning = fencing::warning(store.as_ref(), fencing::read(&self.config.meta_path).as_ref());
        if let Some(text) = warning.as_ref().filter(|_| self.status.figures().store_warning != warning) {
            tracing::warn!(database = %self.config.path.display(), "{text}");
        }
        self.status.update(|f| f.store_warning = warning);
        let counted = Arc::new(Counted::new(store, Arc::clone(&self.status.requests)));
        let policy = RetryPolicy { attempts_max: 3, deadline: Duration::from_secs(30), ..RetryPolicy::default() };
        Ok(Arc::new(Retrying::new(counted, policy)))
    }

    /// Returns when this life is to end before it has begun.
    async fn stopped(&self) {
        if self.is_last {
            std::future::pending::<()>().await;
        }
        // The sender lives as long as the process.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    /// `false` when stopped meanwhile.
    async fn sleep(&mut self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.stopped() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Where the store's log ends; tries until the store answers. `None` when stopped before.
    async fn find_end(
        &mut self,
        store: &Arc<dyn Store>,
        hint: Option<Hint>,
    ) -> Result<Option<Option<LogEnd>>, ReplicateError> {
        let mut delay = Duration::from_millis(100);
        loop {
            let found = tokio::select! {
                found = log_end::find(store, hint) => found,
                () = self.stopped() => return Ok(None),
            };
            let error = match found {
                Ok(end) => return Ok(Some(end)),
                Err(error) => error,
            };
            match &error {
                ManifestError::Store(e) if is_passing(e) => {}
                ManifestError::Contended | ManifestError::Changed => {}
                _ => return Err(ReplicateError::Store(error.to_string())),
            }
            self.complain(&error.to_string(), "the store cannot be reached");
            if !self.sleep(delay).await {
                return Ok(None);
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    fn complain(&self, text: &str, reason: &str) {
        tracing::warn!(database = %self.config.path.display(), "{text}");
        self.status.error(text);
        self.status.set_state(State::Waiting { reason: format!("{reason}: {text}") });
    }

    fn local_error(&self, verb: &str, error: &io::Error) -> ReplicateError {
        ReplicateError::Local(format!("{verb} the state folder {}: {error}", self.config.meta_path.display()))
    }

    /// How to go on: `logic::reconcile` has the table of cases.
    async fn decide(&self, local: LocalStart, end: Option<LogEnd>, epoch: Epoch) -> Result<Opening, ReplicateError> {
        let local_log: Vec<Segment> = local.segments.iter().map(SealedSegment::index).collect();
        let store_end =
            end.as_ref().map(|e| StoreEnd { lineage: e.identity.lineage, pos: e.pos, next_seq: e.next_seq });
        let decided = reconcile(local.state.as_ref(), &local_log, store_end.as_ref());
        let path = self.config.path.display().to_string();
        if decided.is_loud() {
            tracing::warn!(database = path, "{decided}");
        } else {
            tracing::info!(database = path, "{decided}");
        }
        let known_lineage = local.state.as_ref().map(|s| s.lineage);
        let last_local = local.table.as_ref().map(|(_, pos)| pos.txid);
        let reason = self.doubt_of(&local);
        let nonce = Nonce(random::bytes());
        let writer = |lineage: Option<Lineage>| Writer {
            lineage: lineage.unwrap_or_else(|| Lineage(random::bytes())),
            epoch,
            nonce,
        };
        let (writer, next_seq, start) = match decided {
            Decision::WrongLineage { .. } => {
                return Err(self.wrong_lineage(&decided));
            }
            // The log of a fresh store begins with a snapshot in the manifest, so there is nothing else to upload first.
            Decision::Fresh { .. } => (writer(known_lineage), Seq::FIRST, Start::Fresh { last: last_local }),
            Decision::Continue { next_seq, end: Some(end), upload, .. } => {
                let writer = writer(known_lineage);
                let durable = store_end.as_ref().and_then(|e| e.pos).unwrap_or(end);
                let local = self.restamp(local, upload, writer, next_seq).await?;
                (writer, next_seq, continue_local(local, end, durable, next_seq, reason))
            }
            Decision::Adopt { lineage, at, next_seq, .. } => {
                (writer(Some(lineage)), next_seq, adopt(at, next_seq, reason))
            }
            Decision::Conflict { at, next_seq, .. } => (writer(known_lineage), next_seq, adopt(at, next_seq, reason)),
            Decision::Continue { next_seq, end: None, .. } => {
                (writer(known_lineage), next_seq, Start::Fresh { last: None })
            }
        };
        let manifest = end.and_then(|end| end.manifest_version);
        Ok(Opening { writer, next_seq, start, manifest })
    }

    /// What the store does not have is uploaded under this life's right.
    async fn restamp(
        &self,
        mut local: LocalStart,
        upload: Vec<Seq>,
        writer: Writer,
        next_seq: Seq,
    ) -> Result<LocalStart, ReplicateError> {
        let segments = std::mem::take(&mut local.segments);
        let stamped = tokio::task::spawn_blocking(move || restamp::restamp(segments, &upload, writer, next_seq));
        let stamped = stamped.await.expect("stamping does not panic");
        local.segments = stamped.map_err(|e| self.local_error("write", &e))?;
        Ok(local)
    }

    fn doubt_of(&self, local: &LocalStart) -> DiffReason {
        match &local.state {
            None => DiffReason::StateMissing,
            Some(state) if state.boot_id != restart::boot_id() => DiffReason::Rebooted,
            Some(_) if local.table.is_none() => DiffReason::StateDamaged,
            Some(_) => DiffReason::WalReset,
        }
    }

    /// Writes `id.json` into an empty store. `false` when stopped before.
    async fn ensure_identity(
        &mut self,
        store: &Arc<dyn Store>,
        lineage: Lineage,
        page_size: PageSize,
    ) -> Result<bool, ReplicateError> {
        let identity = Identity { format: rhyolite_format::Format1, lineage, created: time::now(), page_size };
        let mut delay = Duration::from_millis(100);
        loop {
            let error = match store.get(keys::ID).await {
                Ok(object) => match Identity::decode(&object.bytes) {
                    Ok(found) if found.lineage == lineage => return Ok(true),
                    Ok(found) => {
                        let text = format!(
                            "{} now holds history {}: another writer was faster",
                            self.config.store, found.lineage
                        );
                        return Err(ReplicateError::Conflict(text));
                    }
                    Err(error) => {
                        return Err(ReplicateError::Store(format!("{} in {}: {error}", keys::ID, self.config.store)));
                    }
                },
                Err(error) if error.kind == StoreErrorKind::NotFound => {
                    match store.create(keys::ID, Bytes::from(identity.encode())).await {
                        Ok(_) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if !is_passing(&error) && error.kind != StoreErrorKind::Exists {
                return Err(ReplicateError::Store(error.to_string()));
            }
            self.complain(&error.to_string(), "the store cannot be written");
            if !self.sleep(delay).await {
                return Ok(false);
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Runs capture thread and uploader until both have ended.
    async fn drive(&mut self, store: Arc<dyn Store>, turn: Turn, opening: Opening) -> Result<Ended, ReplicateError> {
        let Opening { writer, next_seq, start, manifest } = opening;
        let right = self.right(&store, &turn, manifest);
        let (is_fenced, unnamed) = (self.past.is_fenced(turn.epoch), Arc::new(AtomicBool::new(false)));
        let wake = Wake::new().map_err(|e| self.local_error("watch", &e))?;
        let (out, from_capture) = mpsc::channel(QUEUE);
        let (answers, messages) = std::sync::mpsc::channel();
        let (uploader_gone, is_uploader_gone) = watch::channel(false);
        let tables = table_source(Arc::clone(&store), is_uploader_gone);
        let channels = Channels { out, messages, wake: wake.clone(), tables };
        let (config, status) = (self.config.clone(), Arc::clone(&self.status));
        let thread = CaptureThread::new(config, status, writer, next_seq, start, channels);
        let thread = thread.map_err(|e| self.local_error("write", &e))?;
        let name = self.config.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let (ended_sender, mut ended) = tokio::sync::oneshot::channel();
        let spawned = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // Without a receiver nobody waits for the answer.
            let _ = ended_sender.send(thread.run());
        });
        let spawned = spawned.map_err(|e| self.local_error("start a thread for", &e))?;
        let keeper = self.keeper(&store, &right, &answers, &wake);
        let driller = Driller::new(&self.config, &self.status, &store);
        let uploader = Uploader {
            store,
            writer,
            right,
            earlier: self.add_life(writer.nonce),
            is_fenced,
            unnamed: Arc::clone(&unnamed),
            first_seq: next_seq,
            status: Arc::clone(&self.status),
            answers: answers.clone(),
            wake: wake.clone(),
        };
        let mut outcome = None;
        let uploaded = tokio::select! {
            end = uploader.run(from_capture) => Some(end),
            end = &mut ended => {
                // Without an answer it panicked, which joining tells.
                outcome = Some(end.unwrap_or(Ended::Incomplete));
                Some(UploadEnd::Done)
            }
            () = self.stop_within(&answers, &wake) => None,
            () = turn.lease.over(turn.epoch) => Some(UploadEnd::BeginAgain("the lease was lost".to_owned())),
            never = keeper.run_with(driller) => match never {},
        };
        if unnamed.load(Ordering::Acquire) {
            self.past.spoil(turn.epoch);
        }
        // The uploader is gone: the thread sees its closed channel and ends by itself.
        uploader_gone.send_replace(true);
        wake.ring();
        if outcome.is_none() {
            outcome = ended.await.ok();
        }
        if let Err(panic) = spawned.join() {
            std::panic::resume_unwind(panic);
        }
        match uploaded {
            Some(UploadEnd::Conflict(text)) => Err(ReplicateError::Conflict(text)),
            Some(UploadEnd::BeginAgain(_)) => Ok(Ended::BeginAgain),
            Some(UploadEnd::FenceFirst) => {
                self.past.require_fence();
                Ok(Ended::BeginAgain)
            }
            _ if outcome == Some(Ended::BeginAgain) => Ok(Ended::BeginAgain),
            Some(UploadEnd::Done) if outcome == Some(Ended::Stopped) && self.is_all_durable() => Ok(Ended::Stopped),
            Some(UploadEnd::Done) | None => Err(self.not_durable()),
        }
    }

    /// What looks after the history beside the uploads.
    fn keeper(
        &self,
        store: &Arc<dyn Store>,
        right: &Right,
        answers: &std::sync::mpsc::Sender<ToCapture>,
        wake: &Wake,
    ) -> Keeper {
        Keeper {
            store: Arc::clone(store),
            right: right.clone(),
            policy: self.config.history.clone(),
            duty: self.config.duty,
            segments: Arc::new(LocalSegments::new(&self.status)),
            status: Arc::clone(&self.status),
            capture: answers.clone(),
            wake: wake.clone(),
        }
    }

    /// Notes by which this life knows its segments, and gives what the lives before it did.
    fn add_life(&mut self, nonce: Nonce) -> Vec<Nonce> {
        let earlier = self.nonces.clone();
        self.nonces.push(nonce);
        // A request that is older than that many lives has long been answered.
        let forgotten = self.nonces.len().saturating_sub(LIVES_REMEMBERED);
        self.nonces.drain(..forgotten);
        earlier
    }

    fn not_durable(&self) -> ReplicateError {
        ReplicateError::NotDurable(format!(
            "{}: the last commits are not in {} yet; they are uploaded after the next start",
            self.config.path.display(),
            self.config.store
        ))
    }

    fn is_all_durable(&self) -> bool {
        let figures = self.status.figures();
        figures.pending_since.is_none()
    }

    /// Tells the capture thread to end once `stop` is there, and returns when its time is over.
    async fn stop_within(&self, answers: &std::sync::mpsc::Sender<ToCapture>, wake: &Wake) {
        let mut stop = self.stop.clone();
        // The sender lives as long as the process.
        let _ = stop.wait_for(|stop| *stop).await;
        let _ = answers.send(ToCapture::Stop);
        wake.ring();
        tokio::time::sleep(self.options.stop_timeout).await;
    }
}

/// The local log goes on to `end`; the store has everything before `next_seq`.
fn continue_local(local: LocalStart, end: Pos, durable: Pos, next_seq: Seq, reason: DiffReason) -> Start {
    let wal = local.wal_position(restart::boot_id());
    let table = local.table.filter(|(_, pos)| *pos == end).map(|(table, _)| table);
    let wal = wal.filter(|_| table.is_some());
    Start::At { pos: end, durable, table, wal, segments: local.segments, uploaded: next_seq.previous(), reason }
}

/// The store's end is believed, whatever is here.
fn adopt(at: Option<Pos>, next_seq: Seq, reason: DiffReason) -> Start {
    match at {
        None => Start::Fresh { last: None },
        Some(pos) => Start::At {
            pos,
            durable: pos,
            table: None,
            wal: None,
            segments: Vec::new(),
            uploaded: next_seq.previous(),
            reason,
        },
    }
}

/// Page tables come from the store by the machinery of restores, on the caller's (capture) thread, until `cancelled`: a store that
/// hangs must not keep the process from ending.
fn table_source(store: Arc<dyn Store>, cancelled: watch::Receiver<bool>) -> TableSource {
    let runtime = tokio::runtime::Handle::current();
    Box::new(move |pos| {
        let mut cancelled = cancelled.clone();
        let read = runtime.block_on(async {
            tokio::select! {
                read = restore::page_table(Arc::clone(&store), pos) => Some(read),
                _ = cancelled.wait_for(|cancelled| *cancelled) => None,
            }
        });
        let stopped = || TableError::Passing("stopped while page checksums were read from the store".to_owned());
        read.ok_or_else(stopped)?.map_err(|error| match error {
            RestoreError::Store(_) | RestoreError::Io { .. } | RestoreError::Busy { .. } => {
                TableError::Passing(error.to_string())
            }
            _ => TableError::Damaged(error.to_string()),
        })
    })
}

/// Whether it may work later. A store that refuses is among them: permissions and credentials get mended while this runs.
fn is_passing(error: &StoreError) -> bool {
    use StoreErrorKind::{Ambiguous, Denied, Full, Unavailable};
    matches!(error.kind, Unavailable | Ambiguous | Full | Denied)
}

enum HeaderError {
    Missing,
    Refused(String),
}

/// The page size of the database at `path`; `None` when it is empty. Only called while this process has no connection to it:
/// closing the file drops the process's locks on it.
fn read_header(path: &Path) -> Result<Option<PageSize>, HeaderError> {
    let refuse = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => HeaderError::Missing,
        _ => HeaderError::Refused(e.to_string()),
    };
    let metadata = std::fs::metadata(path).map_err(refuse)?;
    if !metadata.is_file() {
        return Err(HeaderError::Refused("is not a file".to_owned()));
    }
    let mut bytes = Vec::with_capacity(100);
    File::open(path).and_then(|f| f.take(100).read_to_end(&mut bytes)).map_err(refuse)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    match DatabaseHeader::decode(&bytes) {
        Ok(header) => Ok(Some(header.page_size)),
        Err(error) => Err(HeaderError::Refused(format!("is not an SQLite database ({error})"))),
    }
}
