//! What each replicated database is doing, in figures: one source for metrics, `/status`, `rhyolite status` and the
//! status file.
//!
//! Replication writes ([`DatabaseStatus::update`], one short lock), everybody else takes a copy
//! ([`DatabaseStatus::figures`]).
//!
//! Invariants:
//! 1. Counters never go down while the process lives.
//! 2. `pending_since` is `None` exactly when every captured commit is durable, so the lag of an idle, fully uploaded
//!    database is 0, not the age of its last commit.
//! 3. Lag is not stored but computed by whoever looks ([`Figures::lag_ms`]): it grows while nothing happens.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rhyolite_format::{Epoch, Lineage, PageCount, PageSize, Pos, Timestamp};
use rhyolite_store::Counters;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::cluster::report::NodeReport;
use crate::drill::Drill;
use crate::forward::grants::Grants;
use crate::observe::events::Events;
use crate::pulse::Pulse;
use crate::stream::accept::Accepting;
use crate::stream::feed::Feed;
use crate::stream::push::{AcceptReport, PushReport};
use crate::time;
use crate::witness_board::WitnessBoard;

/// What a database is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum State {
    /// Opening files and comparing with the store.
    #[default]
    Starting,
    /// Writing a full snapshot because the store holds none.
    Snapshotting,
    /// Capturing and uploading.
    Replicating,
    /// Nothing can be done until something outside changes (no file yet, not in WAL mode, store unavailable).
    Waiting {
        /// What is waited for.
        reason: String,
    },
    /// Continuity was lost; the next look compares pages. Commits go on, but are not captured one by one.
    NeedsPageDiff {
        /// Why.
        reason: String,
    },
    /// A person must look; it is tried again.
    Error {
        /// One line: what happened and to what.
        text: String,
    },
    /// Replication of this database has ended.
    Stopped,
}

impl State {
    /// Every name that [`State::name`] gives.
    pub const NAMES: [&'static str; 7] =
        ["starting", "snapshotting", "replicating", "waiting", "needs-page-diff", "error", "stopped"];

    /// The name in metrics and JSON.
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Place of the name in [`State::NAMES`].
    pub fn index(&self) -> usize {
        match self {
            Self::Starting => 0,
            Self::Snapshotting => 1,
            Self::Replicating => 2,
            Self::Waiting { .. } => 3,
            Self::NeedsPageDiff { .. } => NEEDS_PAGE_DIFF,
            Self::Error { .. } => 5,
            Self::Stopped => 6,
        }
    }

    /// Why, where the state has a reason.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Waiting { reason } | Self::NeedsPageDiff { reason } => Some(reason),
            Self::Error { text } => Some(text),
            Self::Starting | Self::Snapshotting | Self::Replicating | Self::Stopped => None,
        }
    }
}

/// Place of the name of [`State::NeedsPageDiff`], which comes and goes with every commit in some modes.
const NEEDS_PAGE_DIFF: usize = 4;

/// Why a database was compared page by page instead of being followed frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiffReason {
    /// The WAL was reset, truncated or checkpointed while nobody looked.
    WalReset,
    /// The state folder is missing, or holds nothing about this database.
    StateMissing,
    /// The state folder does not decode, or contradicts itself or the store.
    StateDamaged,
    /// The machine was restarted, so the database may be behind what was captured.
    Rebooted,
    /// Another file lies at the path, or the file was rewritten as a whole.
    Replaced,
    /// Rollback journal mode: commits can be seen only as differences.
    RollbackMode,
    /// The local log reached its cap and its newest part was dropped.
    LogFull,
    /// A commit that came out of the WAL did not join what was captured before.
    Chain,
    /// A transaction that the durability gate had captured before its end was not committed.
    Promise,
}

impl DiffReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::WalReset,
        Self::StateMissing,
        Self::StateDamaged,
        Self::Rebooted,
        Self::Replaced,
        Self::RollbackMode,
        Self::LogFull,
        Self::Chain,
        Self::Promise,
    ];

    /// The name in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::WalReset => "wal-reset",
            Self::StateMissing => "state-missing",
            Self::StateDamaged => "state-damaged",
            Self::Rebooted => "rebooted",
            Self::Replaced => "replaced",
            Self::RollbackMode => "rollback-mode",
            Self::LogFull => "log-full",
            Self::Chain => "chain",
            Self::Promise => "promise",
        }
    }
}

/// How an attempt of ours to checkpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointResult {
    /// The whole WAL was copied into the database.
    Complete,
    /// A reader held some of it back.
    Partial,
    /// Somebody else held the write lock; skipped.
    Busy,
    /// SQLite gave an error.
    Failed,
}

/// Checkpoints of ours, by result, and what they cost the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// See [`CheckpointResult::Complete`].
    pub complete: u64,
    /// See [`CheckpointResult::Partial`].
    pub partial: u64,
    /// See [`CheckpointResult::Busy`].
    pub busy: u64,
    /// See [`CheckpointResult::Failed`].
    pub failed: u64,
    /// Time for which the write lock was held, in microseconds, all attempts together.
    pub stall_us_total: u64,
    /// The longest of them.
    pub stall_us_max: u64,
    /// Processor time that they took, in microseconds: work that the application's own checkpoints are spared.
    #[serde(default)]
    pub cpu_us_total: u64,
}

/// What was captured since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Transactions of the log.
    pub transactions: u64,
    /// Page images in them.
    pub pages: u64,
    /// Bytes of their LTX files.
    pub bytes: u64,
}

/// What was uploaded since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// Log segments that the store acknowledged.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Snapshots, bundles and merged files that the store acknowledged.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// When the store last acknowledged something.
    #[serde(with = "time::rfc3339::option")]
    pub last: Option<Timestamp>,
}

/// Page diffs since the process started, in the order of [`DiffReason::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageDiffs([u64; DiffReason::ALL.len()]);

impl PageDiffs {
    /// How many had this reason.
    pub fn get(&self, reason: DiffReason) -> u64 {
        self.0[reason as usize]
    }

    /// Counts one.
    pub fn add(&mut self, reason: DiffReason) {
        self.0[reason as usize] += 1;
    }
}

impl Serialize for PageDiffs {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(DiffReason::ALL.map(|reason| (reason, self.get(reason))))
    }
}

impl<'de> Deserialize<'de> for PageDiffs {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let counts = std::collections::BTreeMap::<DiffReason, u64>::deserialize(d)?;
        let mut diffs = Self::default();
        for (reason, count) in counts {
            diffs.0[reason as usize] = count;
        }
        Ok(diffs)
    }
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// One line.
    pub text: String,
    /// When.
    #[serde(with = "time::rfc3339")]
    pub time: Timestamp,
}

/// Everything that is said about one database. Counters count from the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// What it is doing.
    pub state: State,
    /// Since when.
    #[serde(with = "time::rfc3339::option")]
    pub state_since: Option<Timestamp>,
    /// It is at rest: idle, everything durable, nothing open, and watched.
    #[serde(default)]
    pub parked: bool,
    /// How often it was parked since the process started.
    #[serde(default)]
    pub parkings: u64,
    /// The history that is written.
    pub lineage: Option<Lineage>,
    /// The right under which it is written.
    pub epoch: Option<Epoch>,
    /// Another process has the right, and this one waits for its turn.
    #[serde(default)]
    pub standby: bool,
    /// The last commit that was captured.
    pub local: Option<Pos>,
    /// The last commit that the store acknowledged.
    pub durable: Option<Pos>,
    /// Time of the oldest captured commit that is not durable; `None` when all are.
    #[serde(with = "time::rfc3339::option")]
    pub pending_since: Option<Timestamp>,
    /// Size of a page in bytes.
    pub page_size: Option<PageSize>,
    /// Size of the database in pages after the last captured commit.
    pub page_count: PageCount,
    /// Size of the `-wal` file in bytes.
    pub wal_bytes: u64,
    /// Size of the local log in bytes.
    pub log_bytes: u64,
    /// What was captured.
    pub captured: Captured,
    /// Transactions that were committed without waiting for the store, although `durability` asks for it: `synchronous` is not FULL.
    #[serde(default)]
    pub ungated: u64,
    /// What was uploaded.
    pub uploaded: Uploaded,
    /// Checkpoints of ours.
    pub checkpoints: Checkpoints,
    /// Page diffs by reason.
    pub page_diffs: PageDiffs,
    /// Restore drills.
    #[serde(default)]
    pub drill: Drill,
    /// What the store cannot promise; `None` when it keeps a second writer out.
    #[serde(default)]
    pub store_warning: Option<String>,
    /// Errors of any kind, those that a retry mended included.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<LastError>,
}

impl Figures {
    /// Age in milliseconds of the oldest commit that is not durable in the store; 0 when all are.
    pub fn lag_ms(&self, now: Timestamp) -> u64 {
        self.pending_since.map_or(0, |since| u64::try_from(now.0.saturating_sub(since.0)).unwrap_or(0))
    }

    /// Counts one page diff.
    pub fn page_diff(&mut self, reason: DiffReason) {
        self.page_diffs.add(reason);
    }

    /// Counts one checkpoint that held the write lock for `stall` (zero when it was not got).
    pub fn checkpoint(&mut self, result: CheckpointResult, stall: std::time::Duration) {
        let counts = &mut self.checkpoints;
        match result {
            CheckpointResult::Complete => counts.complete += 1,
            CheckpointResult::Partial => counts.partial += 1,
            CheckpointResult::Busy => counts.busy += 1,
            CheckpointResult::Failed => counts.failed += 1,
        }
        let us = u64::try_from(stall.as_micros()).unwrap_or(u64::MAX);
        counts.stall_us_total = counts.stall_us_total.saturating_add(us);
        counts.stall_us_max = counts.stall_us_max.max(us);
    }
}

/// One database's figures, shared between the task that replicates it and those who look.
#[derive(Debug)]
pub struct DatabaseStatus {
    /// Absolute path of the database.
    pub path: Arc<Path>,
    /// Its state folder, where the status file lies too.
    pub meta_path: PathBuf,
    /// The store as messages name it, without secrets.
    pub store: String,
    /// Requests to the store: wrap the database's store in `rhyolite_store::Counted` with these.
    pub requests: Arc<Counters>,
    /// What those who follow it live are given.
    pub feed: Feed,
    /// Who wants to know of its transactions.
    pub events: Arc<Events>,
    /// That of the board.
    pub unsettled: Arc<AtomicBool>,
    figures: Mutex<Figures>,
    /// Set by every change, cleared by whoever writes the status file.
    dirty: AtomicBool,
    changed: Weak<Changes>,
    /// Itself, for the list of those that changed.
    own: Weak<DatabaseStatus>,
}

/// What changed since somebody last took it.
#[derive(Debug, Default)]
struct Changes {
    databases: Mutex<Vec<Arc<DatabaseStatus>>>,
    notify: Notify,
}

impl DatabaseStatus {
    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Figures are plain values: after a panic elsewhere they are still worth showing.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the figures under the lock. Keep it short: no I/O inside.
    pub fn update(&self, change: impl FnOnce(&mut Figures)) {
        {
            let mut figures = self.lock();
            change(&mut figures);
            if let (Some(lineage), Some(pos)) = (figures.lineage, figures.local) {
                self.feed.note_local(lineage, pos);
            }
        }
        if !self.dirty.swap(true, Ordering::AcqRel)
            && let (Some(changes), Some(own)) = (self.changed.upgrade(), self.own.upgrade())
        {
            changes.databases.lock().unwrap_or_else(PoisonError::into_inner).push(own);
            changes.notify.notify_one();
        }
    }

    /// Enters a state; `state_since` stays when it is the same one. That all is well from now on is logged: what is not is said where it
    /// happens.
    pub fn set_state(&self, state: State) {
        let before = self.look(|figures| figures.state.index());
        if state == State::Replicating && ![State::Replicating.index(), NEEDS_PAGE_DIFF].contains(&before) {
            let (local, store) = (self.look(|figures| figures.local), &self.store);
            let txid = local.map_or_else(|| "none".to_owned(), |pos| pos.txid.to_string());
            tracing::info!(database = %self.path.display(), txid, "replicating to {store}");
        }
        self.update(|figures| {
            if figures.state != state || figures.state_since.is_none() {
                figures.state = state;
                figures.state_since = Some(time::now());
            }
        });
    }

    /// Counts an error and keeps its text (one line).
    pub fn error(&self, text: impl Into<String>) {
        let error = LastError { text: text.into(), time: time::now() };
        self.update(|figures| {
            figures.errors += 1;
            figures.last_error = Some(error);
        });
    }

    /// Its name for those who know its folder: as it is served, or that of its file.
    pub fn name(&self) -> String {
        let file_name = || self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.feed.served().map_or_else(file_name, |served| served.name.clone())
    }

    /// A copy of the figures.
    pub fn figures(&self) -> Figures {
        self.lock().clone()
    }

    /// What is read here without a copy of everything.
    pub fn look<T>(&self, look: impl FnOnce(&Figures) -> T) -> T {
        look(&self.lock())
    }
}

/// All databases of the process.
#[derive(Debug)]
pub struct StatusBoard {
    /// When the process started.
    pub started: Timestamp,
    databases: Mutex<Vec<Arc<DatabaseStatus>>>,
    changes: Arc<Changes>,
    /// Folders of which nobody knows yet what databases they hold.
    unsearched: AtomicUsize,
    /// Whether the supervisor answers.
    pub pulse: Pulse,
    /// Who wants to know what happens.
    pub events: Arc<Events>,
    /// Something that was sent to a store since it was last set to false may still arrive there, whatever is durable by now.
    pub unsettled: Arc<AtomicBool>,
    /// Turns true when this node, a primary, is about to give its role up.
    pub leaving: watch::Sender<bool>,
    /// What is said of the node, where this is one of a cluster.
    node: Mutex<Option<NodeReport>>,
    /// Replicas that are dialed.
    pushes: Mutex<Vec<PushReport>>,
    /// The place for a primary that dials, where there is one.
    accepting: OnceLock<Arc<Accepting>>,
    /// Who has what is captured here, where this is a primary.
    pub witnesses: WitnessBoard,
    /// Write locks that are lent, where this is a primary.
    pub grants: Grants,
}

impl StatusBoard {
    /// A board without databases.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            started: time::now(),
            databases: Mutex::default(),
            changes: Arc::default(),
            unsearched: AtomicUsize::new(0),
            pulse: Pulse::default(),
            events: Arc::default(),
            unsettled: Arc::default(),
            leaving: watch::Sender::default(),
            node: Mutex::default(),
            pushes: Mutex::default(),
            accepting: OnceLock::new(),
            witnesses: WitnessBoard::default(),
            grants: Grants::default(),
        })
    }

    /// Adds a database, in state [`State::Starting`].
    ///
    /// `store` is shown to everybody; what follows the `?` of a URL is not.
    pub fn add(&self, path: PathBuf, mut meta_path: PathBuf, mut store: String) -> Arc<DatabaseStatus> {
        meta_path.shrink_to_fit();
        if store.contains("://") {
            store.truncate(store.find('?').unwrap_or(store.len()));
        }
        store.shrink_to_fit();
        let status = Arc::new_cyclic(|own| DatabaseStatus {
            path: Arc::from(path),
            meta_path,
            store,
            requests: Arc::default(),
            feed: Feed::default(),
            events: Arc::clone(&self.events),
            unsettled: Arc::clone(&self.unsettled),
            figures: Mutex::default(),
            dirty: AtomicBool::new(false),
            changed: Arc::downgrade(&self.changes),
            own: Weak::clone(own),
        });
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&status));
        status.set_state(State::Starting);
        status
    }

    /// The databases in the order in which they were added.
    pub fn databases(&self) -> Vec<Arc<DatabaseStatus>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that so many folders are still to be searched for databases.
    pub fn set_unsearched(&self, folders: usize) {
        self.unsearched.store(folders, Ordering::Release);
    }

    /// How many folders are still to be searched for databases.
    pub fn unsearched(&self) -> usize {
        self.unsearched.load(Ordering::Acquire)
    }

    /// Takes all databases off the board.
    pub fn clear(&self) {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.set_unsearched(0);
    }

    /// Says how things stand with this node of a cluster.
    pub fn set_node(&self, node: NodeReport) {
        self.events.set_primary(node.primary());
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    /// How things stand with this node; `None` where it is none of a cluster.
    pub fn node(&self) -> Option<NodeReport> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, without a copy of everything.
    pub fn look_at_node<T>(&self, look: impl FnOnce(&NodeReport) -> T) -> Option<T> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    /// Says how things stand with a replica that is dialed. Gives it back when that is something new.
    pub fn set_push(&self, report: PushReport) -> Option<PushReport> {
        let mut pushes = self.pushes.lock().unwrap_or_else(PoisonError::into_inner);
        match pushes.iter_mut().find(|known| known.to == report.to) {
            Some(known) if (known.connected, &known.error) == (report.connected, &report.error) => return None,
            Some(known) => *known = report.clone(),
            None => pushes.push(report.clone()),
        }
        Some(report)
    }

    /// The replicas that are dialed.
    pub fn pushes(&self) -> Vec<PushReport> {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows the place for a primary that dials.
    pub fn set_accepting(&self, accepting: Arc<Accepting>) {
        // There is one for the process.
        let _ = self.accepting.set(accepting);
    }

    /// How things stand with the place for a primary that dials; `None` where there is none.
    pub fn accepts(&self) -> Option<AcceptReport> {
        self.accepting.get().map(|accepting| accepting.report())
    }

    /// Takes a database off the board.
    pub fn remove(&self, status: &Arc<DatabaseStatus>) {
        let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        databases.retain(|known| !Arc::ptr_eq(known, status));
    }

    /// The databases that have changed since the last call.
    pub fn take_changed(&self) -> Vec<Arc<DatabaseStatus>> {
        let changed = std::mem::take(&mut *self.changes.databases.lock().unwrap_or_else(PoisonError::into_inner));
        // What changes from here on is in the list again.
        changed.iter().for_each(|status| status.dirty.store(false, Ordering::Release));
        changed
    }

    /// Waits until a database has changed. A change while nobody waits is remembered.
    pub async fn changed(&self) {
        self.changes.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_oldest_pending_commit_and_never_negative() {
        let mut figures = Figures::default();
        assert_eq!(figures.lag_ms(Timestamp(5_000)), 0);
        figures.pending_since = Some(Timestamp(3_000));
        assert_eq!(figures.lag_ms(Timestamp(5_000)), 2_000);
        assert_eq!(figures.lag_ms(Timestamp(1_000)), 0, "a clock that was set back");
    }

    #[test]
    fn names_are_the_json_names() {
        for reason in DiffReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
            assert_eq!(DiffReason::ALL[reason as usize], reason);
        }
        let reason = String::from("r");
        let states = [
            State::Starting,
            State::Snapshotting,
            State::Replicating,
            State::Waiting { reason: reason.clone() },
            State::NeedsPageDiff { reason: reason.clone() },
            State::Error { text: reason },
            State::Stopped,
        ];
        assert_eq!(states.each_ref().map(State::name), State::NAMES);
        for state in states {
            assert_eq!(serde_json::to_value(&state).unwrap()["name"], state.name());
        }
    }

    #[test]
    fn figures_survive_json() {
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), "/.a.db-rhyolite".into(), "./backup".into());
        status.error("store refused");
        status.update(|f| {
            f.page_diff(DiffReason::Chain);
            f.checkpoint(CheckpointResult::Partial, std::time::Duration::from_micros(7));
        });
        let figures = status.figures();
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
        assert_eq!(board.take_changed().len(), 1);
        assert!(board.take_changed().is_empty());
        status.error("again");
        assert_eq!(board.take_changed().len(), 1);
    }
}
