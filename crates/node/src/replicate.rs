//! Replication of any number of databases: for each one a capture thread and an uploader task.
//!
//! ```text
//!   state folder ─┐
//!                 ├─► where the log ends ─► capture thread ──segments, snapshots──► uploader task ─► store
//!   store ────────┘                               ▲────────────acknowledged──────────────┘
//! ```
//!
//! One sick database never stops another: its error is in its status, and it is tried again where that can help.
//!
//! `supervise` decides which databases are awake. One that was parked begins with what its state folder says, at once and whether the
//! store answers or not. As soon as there is something to upload it begins like at a start: with the lease, and with what the store has.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::identity::Identity;
use rhyolite_format::segment::Segment;
use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::state::parked::{DatabaseMark, Parked};
use rhyolite_format::{Epoch, Lineage, Nonce, PageSize, Pos, Seq, Timestamp, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_logic::reconcile::{Start as Decision, StoreEnd, reconcile};
use rhyolite_store::{Counted, Paced, RetryPolicy, Retrying, Store, StoreError, StoreErrorKind, Version};
use rhyolite_writer::lease_keeper::LeaseHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::capture::commits::CommitLines;
use crate::capture::local_log::{SealedSegment, Writer};
use crate::capture::restamp;
use crate::capture::restart::{self, LocalStart};
use crate::capture::thread::{Ended, Parking, Start, ToCapture};
use crate::capture::watch::Wake;
use crate::config::DatabaseConfig;
use crate::fencing;
use crate::forward::lent;
use crate::keep::Looked;
use crate::lease::LeasePool;
use crate::log_end::{self, Hint, LogEnd};
use crate::manifest_swap::ManifestError;
use crate::park;
use crate::random;
use crate::status::{DatabaseStatus, DiffReason, State};
use crate::supervise::control::Control;
use crate::time;
use crate::uploads::UploadTurns;

mod drive;
mod last;
mod turn;

pub(crate) use turn::SharedPast;
use turn::Turn;

/// Messages that may wait for an uploader: a snapshot's pieces at most.
const QUEUE: usize = 4;
/// How long the right to be opened is held while a store is waited for.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Longest time between tries to reach the store at start.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Time before everything is compared again.
const BEGIN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Of so many lives of one process a late request is recognised.
const LIVES_REMEMBERED: usize = 16;
/// How long a lease is waited for that is given up.
pub(crate) const RELEASE_WAIT: Duration = Duration::from_secs(1);
/// Stack of a capture thread in bytes. SQLite needs little, unless symbolic links lead in a circle: it follows 200 of them, with 4 KiB of stack for each.
const STACK_BYTES: usize = 2 << 20;

/// Why a database is not replicated (any more). Final: trying again cannot help.
#[derive(Debug)]
pub enum ReplicateError {
    /// The file is no SQLite database.
    NotADatabase(String),
    /// The state folder belongs to another history than the store.
    WrongLineage(String),
    /// Another process writes to the same prefix, or works on the same database.
    Conflict(String),
    /// Another process has the lease or the state folder, and `lease.if-held` says that the process ends then.
    Held(String),
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
            | Self::Held(text)
            | Self::Store(text)
            | Self::Local(text)
            | Self::NotDurable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ReplicateError {}

impl ReplicateError {
    /// Whether it may work later, although nothing has changed here that could be noticed.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_about_this_machine() || matches!(self, Self::NotDurable(_))
    }

    /// Whether it was found here, before anything was asked of the store: perhaps in the middle of what somebody else does to the files.
    fn is_about_this_machine(&self) -> bool {
        matches!(self, Self::NotADatabase(_) | Self::Local(_))
    }
}

/// A store that several databases share, and the prefix of one of them.
pub(crate) type Below = (Arc<dyn Store>, String);

/// What all databases of the process share.
#[derive(Clone, Debug)]
pub(crate) struct Commons {
    pub(crate) stop: watch::Receiver<bool>,
    /// Where commits in rollback mode come from, if somebody sees them.
    pub(crate) commits: Option<Arc<CommitLines>>,
    /// How long the last uploads may take after `stop`.
    pub(crate) stop_timeout: Duration,
    pub(crate) parking: Arc<Parking>,
    pub(crate) uploads: Arc<UploadTurns>,
    pub(crate) leases: Arc<LeasePool>,
}

/// How the life of a database that is awake has ended well.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The process stops, and everything is durable.
    Stopped,
    /// It is at rest; its files looked like this.
    Parked(DatabaseMark),
    /// There is nothing at its path yet, or an empty file.
    Absent(DatabaseMark),
}

/// A database that is awake.
pub(crate) struct Replication {
    pub(crate) config: DatabaseConfig,
    pub(crate) status: Arc<DatabaseStatus>,
    pub(crate) commons: Commons,
    /// The store of the folder that the database was found in, and the prefix within it.
    pub(crate) base: Option<Below>,
    /// What was looked after of its history.
    pub(crate) looked: Arc<Mutex<Looked>>,
    /// By which the lives so far knew their segments.
    pub(crate) nonces: Vec<Nonce>,
    /// What this process has done under its rights so far.
    pub(crate) past: SharedPast,
    /// This life begins although the process stops.
    pub(crate) is_last: bool,
    /// How the supervisor reaches it.
    pub(crate) control: Arc<Control>,
    /// A snapshot is to be taken at once.
    pub(crate) take_snapshot: bool,
    /// It was parked, and what its state folder says of that counts.
    pub(crate) trust: bool,
    /// The life that has just ended had no right to write.
    pub(crate) is_light: bool,
    /// The right to be opened, until it is.
    pub(crate) opening: Option<OwnedSemaphorePermit>,
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
    pub(crate) async fn run(&mut self) -> Result<Outcome, ReplicateError> {
        if self.is_last {
            return self.run_last().await;
        }
        loop {
            let ended = match self.run_once().await {
                Err(error) if self.is_tried_again(&error) => return self.run_last().await,
                ended => ended?,
            };
            let outcome = match ended {
                // Stopped before it had begun: nobody knows what there is to capture and to upload.
                Ended::Incomplete if self.has_more_to_do() => return self.run_last().await,
                Ended::Stopped | Ended::Incomplete => Outcome::Stopped,
                Ended::Parked(mark) if self.status.figures().local.is_none() => Outcome::Absent(mark),
                Ended::Parked(mark) => Outcome::Parked(mark),
                // It was woken, and there is something to upload: the store is asked, and the right to write got.
                Ended::BeginAgain if std::mem::take(&mut self.is_light) && !*self.commons.stop.borrow() => continue,
                // It has no right to begin again.
                Ended::BeginAgain if self.commons.leases.is_over() => Outcome::Stopped,
                Ended::BeginAgain => {
                    tracing::warn!(database = %self.config.path.display(), "beginning again with what the store has");
                    // Requests of the life before this may still be on their way.
                    if !self.sleep(BEGIN_AGAIN_AFTER).await {
                        return self.run_last().await;
                    }
                    continue;
                }
            };
            return Ok(outcome);
        }
    }

    async fn run_once(&mut self) -> Result<Ended, ReplicateError> {
        let page_size = match self.look_at_database().await? {
            Ok(page_size) => page_size,
            Err(mark) => return Ok(Ended::Parked(mark)),
        };
        // Until the store has been asked nobody knows what it has of the database.
        self.status.update(|f| {
            if f.local.is_none() {
                f.pending_since.get_or_insert_with(time::now);
            }
        });
        let store = self.open_store()?;
        if std::mem::take(&mut self.trust)
            && !self.is_last
            && !self.take_snapshot
            && let Some(ended) = self.run_light(&store).await?
        {
            return Ok(ended);
        }
        let known = restart::lineage(&self.config.meta_path);
        let permit = self.opening.take();
        let checked = async {
            tokio::select! {
                checked = self.check_history(&store, known) => Some(checked),
                () = self.stopped() => None,
            }
        };
        let (checked, permit) = hold_for_a_while(permit, checked).await;
        let Some(checked) = checked else { return Ok(Ended::Incomplete) };
        checked?;
        if !self.take_back(permit).await {
            return Ok(Ended::Incomplete);
        }
        let lease = self.lease()?;
        let Some(turn) = self.wait_for_turn(&lease).await? else { return Ok(Ended::Incomplete) };
        let Some(meta_lock) = self.lock_state_folder().await? else { return Ok(Ended::Incomplete) };
        let ended = match self.begin(&store, &turn, page_size).await {
            Ok(Ok(opening)) => self.drive(store, Some(turn), opening).await,
            Ok(Err(ended)) => Ok(ended),
            Err(error) => Err(error),
        };
        let ended = self.forgive_removal(ended);
        self.keep_record_of(&ended).await;
        drop(meta_lock);
        ended
    }

    /// That the state folder cannot be read or written because somebody has removed it ends only this life: the next makes a new one.
    fn forgive_removal(&self, ended: Result<Ended, ReplicateError>) -> Result<Ended, ReplicateError> {
        match ended {
            Err(error) if !self.config.meta_path.join(restart::LOCK_FILE).exists() => {
                tracing::warn!(database = %self.config.path.display(), "the state folder was removed: {error}");
                Ok(Ended::BeginAgain)
            }
            ended => ended,
        }
    }

    /// Goes on where the database was parked, with the lock of the state folder and without the right to write. `None` when the folder is
    /// not as it was then.
    async fn run_light(&mut self, store: &Arc<dyn Store>) -> Result<Option<Ended>, ReplicateError> {
        let Some(meta_lock) = self.lock_state_folder().await? else { return Ok(Some(Ended::Incomplete)) };
        let Ok((parked, local)) = self.load_local().await else {
            // What is wrong with it is said by the life that asks the store.
            return Ok(None);
        };
        let number = park::store_number(&self.config.store);
        if !parked.is_some_and(|parked| parked.store == number && goes_on(&local, &parked)) {
            return Ok(None);
        }
        self.is_light = true;
        let opening = self.go_on(local);
        let ended = self.drive(Arc::clone(store), None, opening).await;
        let ended = self.forgive_removal(ended);
        self.keep_record_of(&ended).await;
        // Before anything else: what comes next is the lease, which nobody waits for with this in his hands.
        drop(meta_lock);
        ended.map(Some)
    }

    /// Asks the store how to go on, under the right to write; or says how this life ends instead.
    async fn begin(
        &mut self,
        store: &Arc<dyn Store>,
        turn: &Turn,
        page_size: PageSize,
    ) -> Result<Result<Opening, Ended>, ReplicateError> {
        let (_, local) = self.load_local().await?;
        let known = local.state.as_ref().map(|s| s.lineage);
        let hint = local.state.as_ref();
        let hint = hint.and_then(|s| Some(Hint { next_seq: s.next_seq, pos: s.durable?, epoch: s.epoch }));
        let Some(end) = self.take_turn(store, turn, hint, known).await? else {
            let is_stopped = *self.commons.stop.borrow() && !self.is_last;
            return Ok(Err(if is_stopped { Ended::Incomplete } else { Ended::BeginAgain }));
        };
        let opening = self.decide(local, end, turn.epoch).await?;
        match self.ensure_identity(store, opening.writer.lineage, page_size).await {
            Ok(true) => Ok(Ok(opening)),
            Ok(false) => Ok(Err(Ended::Incomplete)),
            // Another first writer was faster: ours was only drawn just now.
            Err(ReplicateError::Conflict(_)) if known.is_none() => Ok(Err(Ended::BeginAgain)),
            Err(error) => Err(error),
        }
    }

    /// What the state folder says, and what it said of a database that was parked: that is true once only. The caller has the folder's
    /// lock.
    async fn load_local(&self) -> Result<(Option<Parked>, LocalStart), ReplicateError> {
        let meta_path = self.config.meta_path.clone();
        let loading = move || {
            let parked = park::read(&meta_path);
            park::forget(&meta_path)?;
            Ok((parked, restart::load_whole(&meta_path)?))
        };
        let loaded = tokio::task::spawn_blocking(loading).await.expect("loading does not panic");
        let (parked, mut local) = loaded.map_err(|e| self.local_error("read", &e))?;
        for problem in local.problems.drain(..) {
            tracing::warn!(database = %self.config.path.display(), "state folder: {problem}");
        }
        Ok((parked, local))
    }

    /// Looks after what the store keeps of a database that is parked. `true` when only a snapshot of the database helps, `None` when the
    /// right to write, or an answer of the store, was not to be had `within` this time.
    pub(crate) async fn look_after(&mut self, within: Duration) -> Result<Option<bool>, ReplicateError> {
        let store = self.open_store()?;
        let lease = self.lease()?;
        let begin = async {
            let Some(turn) = self.wait_for_turn(&lease).await? else { return Ok(None) };
            let Some(meta_lock) = self.lock_state_folder().await? else { return Ok(None) };
            let known = restart::lineage(&self.config.meta_path);
            let end = self.take_turn(&store, &turn, None, known).await?;
            Ok(end.map(|end| (turn, meta_lock, end)))
        };
        let begun = tokio::time::timeout(within, begin).await.unwrap_or(Ok(None))?;
        let Some((turn, meta_lock, end)) = begun else { return Ok(None) };
        let right = self.right(&store, &turn, end.and_then(|end| end.manifest_version));
        let wake = Wake::new().map_err(|e| self.local_error("watch", &e))?;
        let (capture, messages) = std::sync::mpsc::channel();
        self.keeper(&store, &right, &capture, &wake).look_if_due().await;
        drop(meta_lock);
        Ok(Some(messages.try_iter().any(|message| matches!(message, ToCapture::TakeSnapshot))))
    }

    /// The lease under which the database is written.
    fn lease(&self) -> Result<LeaseHandle, ReplicateError> {
        let got = self.commons.leases.get(&self.config, &self.status);
        got.map(|got| got.handle).map_err(|e| ReplicateError::Store(e.to_string()))
    }

    /// Leaves the lease: whoever is next, in this process under another address too, need not wait for it.
    pub(crate) async fn leave(&self) {
        self.commons.leases.leave(&self.config, &self.status, RELEASE_WAIT).await;
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

    /// Leaves in the state folder what a start needs to know of a database that is parked. Without it a start looks, which is all that
    /// is lost.
    async fn keep_record_of(&self, ended: &Result<Ended, ReplicateError>) {
        let Ok(Ended::Parked(mark)) = *ended else { return };
        let uploaded = self.status.figures().uploaded.segments;
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.due_in(&self.config.history, uploaded).and_then(|left| i64::try_from(left.as_millis()).ok());
        let history_due = due.map(|left| Timestamp(time::now().0.saturating_add(left)));
        let config = self.config.clone();
        let write = move || park::note_parked(&config, mark, history_due);
        if let Err(error) = tokio::task::spawn_blocking(write).await.expect("writing does not panic") {
            tracing::debug!(database = %self.config.path.display(), "note that it is parked: {error}");
        }
    }

    /// The page size of the database; what its files look like, where there is none yet. A file that is something else is refused,
    /// and nothing is touched.
    async fn look_at_database(&mut self) -> Result<Result<PageSize, DatabaseMark>, ReplicateError> {
        let path = self.config.path.display().to_string();
        if self.config.refuses_links {
            let state_folder = self.config.meta_path.parent().unwrap_or(&self.config.meta_path);
            for path in [&self.config.path, state_folder] {
                // What cannot be found is told below.
                if path.canonicalize().is_ok_and(|real| real != path) {
                    let text = format!("{} is reached through a symbolic link, which is not followed", path.display());
                    return Err(ReplicateError::NotADatabase(text));
                }
            }
        }
        let mark = park::mark(&self.config.path).unwrap_or_default();
        let header = loop {
            match lent::unless(&self.config.path, || read_header(&self.config.path)) {
                Some(header) => break header,
                // Whoever writes for a replica has it open.
                None => tokio::time::sleep(LENT_LOOK).await,
            }
        };
        let reason = match header {
            Ok(Some(page_size)) => return Ok(Ok(page_size)),
            Ok(None) => "the database is empty: nothing was ever committed",
            Err(HeaderError::Missing) => "the database file does not exist",
            Err(HeaderError::Refused(text)) => return Err(ReplicateError::NotADatabase(format!("{path}: {text}"))),
        };
        self.opening = None;
        self.status.update(|f| {
            if f.local.take().is_none() {
                // Where nothing was ever seen, nothing waits.
                f.pending_since = None;
            }
        });
        let state = State::Waiting { reason: reason.to_owned() };
        if self.status.figures().state != state {
            tracing::warn!(database = path, "waiting: {reason}");
            self.status.set_state(state);
        }
        Ok(Err(mark))
    }

    /// Goes on where the database was parked.
    fn go_on(&self, local: LocalStart) -> Opening {
        let state = local.state.as_ref().expect("checked by goes_on");
        let (lineage, epoch, next_seq) = (state.lineage, state.epoch, state.next_seq);
        let pos = state.pos.expect("checked by goes_on");
        let start = continue_local(local, pos, pos, next_seq, DiffReason::WalReset);
        let writer = Writer { lineage, epoch, nonce: Nonce(random::bytes()) };
        Opening { writer, next_seq, start, manifest: None }
    }

    pub(crate) fn open_store(&self) -> Result<Arc<dyn Store>, ReplicateError> {
        open_store(&self.config, self.base.as_ref(), &self.status, &self.commons.uploads)
    }

    /// Returns when this life is to end before it has begun.
    async fn stopped(&self) {
        if self.is_last {
            std::future::pending::<()>().await;
        }
        // The sender lives as long as the process.
        let _ = self.commons.stop.clone().wait_for(|stop| *stop).await;
    }

    /// `false` when stopped meanwhile. The right to be opened goes to another database for that time: whose store or lease is not to be
    /// had keeps none from its own.
    async fn sleep(&mut self, time: Duration) -> bool {
        let line = self.give_way();
        let woken = tokio::select! {
            biased;
            () = self.stopped() => false,
            () = tokio::time::sleep(time) => true,
        };
        woken && self.stand_in(line).await
    }

    /// Gives up the right to be opened. The line in which to stand for it again.
    fn give_way(&mut self) -> Option<Arc<Semaphore>> {
        self.opening.take().map(|permit| Arc::clone(permit.semaphore()))
    }

    /// Gets the right to be opened again, if it was given up. `false` when stopped before.
    async fn stand_in(&mut self, line: Option<Arc<Semaphore>>) -> bool {
        let Some(line) = line else { return true };
        let permit = tokio::select! {
            biased;
            () = self.stopped() => return false,
            permit = line.acquire_owned() => permit,
        };
        self.opening = permit.ok();
        true
    }

    /// Takes the right to be opened back, or stands in line for it again. `false` when stopped before.
    async fn take_back(&mut self, held: Held) -> bool {
        match held {
            Held::Never => true,
            Held::Still(permit) => {
                self.opening = Some(permit);
                true
            }
            Held::GaveWay(line) => self.stand_in(Some(line)).await,
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
            let permit = self.opening.take();
            let find = async {
                tokio::select! {
                    found = log_end::find(store, Guards::ALL, hint) => Some(found),
                    () = self.stopped() => None,
                }
            };
            let (found, permit) = hold_for_a_while(permit, find).await;
            let Some(found) = found else { return Ok(None) };
            if !self.take_back(permit).await {
                return Ok(None);
            }
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
}

/// The right to be opened, after something that may have taken long.
enum Held {
    Never,
    Still(OwnedSemaphorePermit),
    /// It went to another database; here one stands in line for it.
    GaveWay(Arc<Semaphore>),
}

/// Does something with the right to be opened in hand, but no longer than for [`HOLD_MAX`]: a store that hangs keeps no other database from
/// its own.
async fn hold_for_a_while<T>(permit: Option<OwnedSemaphorePermit>, work: impl Future<Output = T>) -> (T, Held) {
    let Some(permit) = permit else { return (work.await, Held::Never) };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return (done, Held::Still(permit)),
        () = tokio::time::sleep(HOLD_MAX) => {}
    }
    let line = Arc::clone(permit.semaphore());
    drop(permit);
    (work.await, Held::GaveWay(line))
}

/// Whether the state folder is as it was when the database was parked with everything durable.
fn goes_on(local: &LocalStart, parked: &Parked) -> bool {
    let Some(state) = &local.state else { return false };
    let same = state.lineage == parked.lineage
        && state.pos == Some(parked.pos)
        && state.durable == Some(parked.pos)
        && state.next_seq == parked.next_seq
        && state.boot_id == restart::boot_id();
    let has_table = local.table.as_ref().is_some_and(|(_, pos)| *pos == parked.pos);
    same && has_table && local.segments.last().is_none_or(|last| last.seq < parked.next_seq)
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

/// Whether it may work later. A store that refuses is among them: permissions and credentials get mended while this runs.
fn is_passing(error: &StoreError) -> bool {
    use StoreErrorKind::{Ambiguous, Denied, Full, Unavailable};
    matches!(error.kind, Unavailable | Ambiguous | Full | Denied)
}

/// Opens a database's store, or its prefix in that of its folder.
pub(crate) fn open_store(
    config: &DatabaseConfig,
    base: Option<&Below>,
    status: &DatabaseStatus,
    uploads: &UploadTurns,
) -> Result<Arc<dyn Store>, ReplicateError> {
    let opened = match base {
        Some((base, prefix)) => base.sub(prefix),
        None => rhyolite_store::open(&config.store, &config.store_options()),
    };
    let store = opened.map_err(|e| ReplicateError::Store(e.to_string()))?;
    let warning = fencing::warning(store.as_ref(), fencing::read(&config.meta_path).as_ref());
    if let Some(text) = warning.as_ref().filter(|_| status.look(|f| f.store_warning != warning)) {
        tracing::warn!(database = %config.path.display(), "{text}");
    }
    status.update(|f| f.store_warning = warning);
    let counted = Arc::new(Counted::new(store, Arc::clone(&status.requests)));
    let policy = RetryPolicy { attempts_max: 3, deadline: Duration::from_secs(30), ..RetryPolicy::default() };
    let retrying = Arc::new(Retrying::new(fencing::guarded(counted, &config.meta_path), policy));
    // Outside: the time in which a write waits for its turn is none of the time in which the store has to answer.
    Ok(Arc::new(Paced::new(retrying, uploads.of(&config.store))))
}

/// Time between two looks whether a write lock is still lent.
const LENT_LOOK: Duration = Duration::from_millis(10);

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
