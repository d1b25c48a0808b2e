//! Looks after what one database's store keeps while it is replicated: bundles, merges, snapshots and deletion, when they
//! are due.
//!
//! An idle database costs no request: nothing is looked at before something new was uploaded, or something that was retired has
//! to be deleted. An error is told and tried again at the next interval; capture and upload never wait for this.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::{Seq, Txid};
use rhyolite_logic::history_plan::{Duty, Policy};
use rhyolite_store::Store;

use crate::capture::restart::LOG_FOLDER;
use crate::capture::thread::ToCapture;
use crate::capture::watch::Wake;
use crate::drill::Driller;
use crate::history::{self, HistoryOptions, SegmentSource};
use crate::status::DatabaseStatus;
use crate::time;
use crate::upload::{NoRight, Right};

/// Shortest time between two looks, whatever the intervals say.
const LOOK_MIN: Duration = Duration::from_secs(1);

/// The segments of the local log.
#[derive(Debug)]
pub struct LocalSegments {
    /// The folder of the local log.
    pub folder: PathBuf,
    /// Says what the store has acknowledged.
    pub status: Arc<DatabaseStatus>,
}

impl LocalSegments {
    /// Of a database that is being replicated.
    pub fn new(status: &Arc<DatabaseStatus>) -> Self {
        Self { folder: status.meta_path.join(LOG_FOLDER), status: Arc::clone(status) }
    }
}

impl SegmentSource for LocalSegments {
    fn open(&self, seq: Seq) -> Option<File> {
        File::open(self.folder.join(format!("{seq}.seg"))).ok()
    }

    fn acknowledged(&self) -> Option<Txid> {
        self.status.figures().durable.map(|pos| pos.txid)
    }
}

/// What was looked after so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Segments that were uploaded before the last look.
    seen: u64,
    /// When a look last did something.
    last_done: Option<Instant>,
}

impl Looked {
    /// What is to be looked after once more, though nobody knows why: a start found that something was left to do.
    pub fn unfinished() -> Self {
        Self { seen: u64::MAX, last_done: None }
    }

    /// The time until the next look, for a database with so many segments uploaded; `None` when there is nothing to look after.
    pub fn due_in(&self, policy: &Policy, uploaded: u64) -> Option<Duration> {
        let interval = policy.bundle_interval.max(LOOK_MIN);
        // What was retired is deleted after the grace period: look until then.
        let aftermath = policy.grace + 2 * interval;
        let is_new = uploaded != self.seen && (uploaded > 0 || self.seen > 0);
        (is_new || self.last_done.is_some_and(|done| done.elapsed() <= aftermath)).then_some(interval)
    }
}

/// Looks after one database's history.
#[derive(Debug)]
pub struct Keeper {
    /// The database's prefix.
    pub store: Arc<dyn Store>,
    /// The right to write.
    pub right: Right,
    /// What to keep, and when to do what.
    pub policy: Policy,
    /// Which part of it is done here; the rest is left to others.
    pub duty: Duty,
    /// Where segments need not be fetched from.
    pub segments: Arc<LocalSegments>,
    /// Figures.
    pub status: Arc<DatabaseStatus>,
    /// The capture thread, which can take a snapshot of the database.
    pub capture: Sender<ToCapture>,
    /// Rung after every message to it.
    pub wake: Wake,
    /// What was looked after so far, also by those before this one.
    pub looked: Arc<Mutex<Looked>>,
}

impl Keeper {
    /// Looks after the history and holds drills, neither of which waits for the other.
    pub async fn run_with(self, driller: Driller) -> std::convert::Infallible {
        tokio::select! {
            never = self.run() => never,
            never = driller.run() => never,
        }
    }

    /// Runs without end; drop the future to stop it. Whatever it was doing is done again, or found done, the next time.
    pub async fn run(self) -> std::convert::Infallible {
        let interval = self.policy.bundle_interval.max(LOOK_MIN);
        loop {
            tokio::time::sleep(interval).await;
            self.look_if_due().await;
        }
    }

    /// Looks after the history, if there is anything to look after.
    pub async fn look_if_due(&self) {
        let (uploaded, last) = self.status.look(|f| (f.uploaded.segments, f.uploaded.last));
        if self.looked().due_in(&self.policy, uploaded).is_none() {
            return;
        }
        // What was uploaded a moment ago is perhaps too young for what is to be done with it: then it is looked at once more.
        let age = last.map_or(i64::MAX, |last| time::now().0.saturating_sub(last.0));
        let is_ripe = u128::try_from(age).is_ok_and(|age| age > (2 * self.policy.bundle_interval).as_millis());
        match self.look_after().await {
            Ok(did_something) => {
                let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
                if is_ripe {
                    looked.seen = uploaded;
                }
                looked.last_done = if did_something { Some(Instant::now()) } else { looked.last_done };
            }
            Err(text) => self.complain(&text),
        }
    }

    fn looked(&self) -> Looked {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, text: &str) {
        tracing::warn!(database = %self.status.path.display(), "history: {text}");
        self.status.error(format!("history: {text}"));
    }

    async fn look_after(&self) -> Result<bool, String> {
        match self.right.exercise(&self.status).await {
            Ok(()) => {}
            Err(NoRight::Lost(text) | NoRight::Passing(text)) => return Err(text),
        }
        let options = HistoryOptions {
            store: Arc::clone(&self.store),
            policy: self.policy.clone(),
            duty: self.duty,
            epoch: self.right.claim.epoch(),
            now: time::now(),
            segments: Some(Arc::clone(&self.segments) as Arc<dyn SegmentSource>),
        };
        let report = history::maintain(options).await.map_err(|e| e.to_string())?;
        self.status.update(|f| {
            f.uploaded.files += report.bundled + report.merged + report.snapshots;
            f.uploaded.file_bytes += report.bytes_written;
        });
        if let Some(text) = &report.not_deleted {
            self.complain(&format!("delete what is no longer needed: {text}"));
        }
        if let Some(text) = &report.damaged {
            self.complain(text);
        }
        if let Some(txid) = report.snapshot_due {
            let why = if report.damaged.is_some() {
                "is reached by another way only"
            } else {
                "cannot be restored from the store any more"
            };
            self.complain(&format!("TXID {txid} {why}: taking a new snapshot"));
            // Without a receiver the capture thread has ended, and this ends with it.
            let _ = self.capture.send(ToCapture::TakeSnapshot);
            self.wake.ring();
        }
        let done = report.bundled + report.merged + report.snapshots + report.expired + report.deleted;
        // Until a snapshot that is due is there, it may have to be asked for again.
        Ok(done > 0 || report.snapshot_due.is_some())
    }
}
