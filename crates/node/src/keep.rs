//! Looks after what one database's store keeps while it is replicated: bundles, merges, snapshots and deletion, when they
//! are due.
//!
//! An idle database costs no request: nothing is looked at before something new was uploaded, or something that was retired has
//! to be deleted. An error is told and tried again at the next interval; capture and upload never wait for this.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
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
        // What was retired is deleted after the grace period: look until then.
        let aftermath = self.policy.grace + 2 * interval;
        let mut seen = 0;
        let mut last_done: Option<Instant> = None;
        loop {
            tokio::time::sleep(interval).await;
            let uploaded = self.status.figures().uploaded.segments;
            if uploaded == seen && last_done.is_none_or(|done| done.elapsed() > aftermath) {
                continue;
            }
            match self.look_after().await {
                Ok(did_something) => {
                    seen = uploaded;
                    last_done = if did_something { Some(Instant::now()) } else { last_done };
                }
                Err(text) => self.complain(&text),
            }
        }
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
        if let Some(txid) = report.snapshot_due {
            self.complain(&format!("TXID {txid} cannot be restored from the store any more: taking a new snapshot"));
            // Without a receiver the capture thread has ended, and this ends with it.
            let _ = self.capture.send(ToCapture::TakeSnapshot);
            self.wake.ring();
        }
        Ok(report.bundled + report.merged + report.snapshots + report.expired + report.deleted > 0)
    }
}
