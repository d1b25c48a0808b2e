//! One life of a database that is awake: its capture thread, and what is done in the store beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use rhyolite_format::{Epoch, Nonce};
use rhyolite_store::Store;
use tokio::sync::{mpsc, oneshot, watch};

use super::turn::Turn;
use super::{LIVES_REMEMBERED, Opening, QUEUE, ReplicateError, Replication, STACK_BYTES};
use crate::capture::thread::{CaptureThread, Channels, Ended, TableError, TableSource, ToCapture, ToUploader};
use crate::capture::watch::Wake;
use crate::drill::Driller;
use crate::keep::{Keeper, LocalSegments};
use crate::restore::{self, RestoreError};
use crate::upload::{Right, UploadEnd, Uploader};

impl Replication {
    /// Runs capture thread and uploader until both have ended.
    ///
    /// Without a turn nothing is uploaded: as soon as there is something to upload, the life ends, and the next begins with what the store
    /// has.
    pub(super) async fn drive(
        &mut self,
        store: Arc<dyn Store>,
        turn: Option<Turn>,
        opening: Opening,
    ) -> Result<Ended, ReplicateError> {
        let Opening { writer, next_seq, start, manifest } = opening;
        let (epoch, unnamed) = (turn.as_ref().map(|turn| turn.epoch), Arc::new(AtomicBool::new(false)));
        let wake = Wake::new().map_err(|e| self.local_error("watch", &e))?;
        let (out, from_capture) = mpsc::channel(QUEUE);
        let (answers, messages) = std::sync::mpsc::channel();
        let (uploader_gone, is_uploader_gone) = watch::channel(false);
        let tables = table_source(Arc::clone(&store), is_uploader_gone);
        let parking = (!self.is_last).then(|| Arc::clone(&self.commons.parking));
        let commits = self.commons.commits.clone();
        let channels =
            Channels { out, messages, wake: wake.clone(), tables, parking, commits, opening: self.opening.take() };
        let (config, status) = (self.config.clone(), Arc::clone(&self.status));
        let thread = CaptureThread::new(config, status, writer, next_seq, start, channels);
        let thread = thread.map_err(|e| self.local_error("write", &e))?;
        let (spawned, mut ended) = self.spawn(thread)?;
        let work = turn.map(|turn| {
            let right = self.right(&store, &turn, manifest);
            let keeper = self.keeper(&store, &right, &answers, &wake);
            let driller = Driller::new(&self.config, &self.status, &store);
            let uploader = Uploader {
                store,
                writer,
                right,
                earlier: self.add_life(writer.nonce),
                is_fenced: self.past().is_fenced(turn.epoch),
                unnamed: Arc::clone(&unnamed),
                first_seq: next_seq,
                status: Arc::clone(&self.status),
                answers: answers.clone(),
                wake: wake.clone(),
            };
            Work { uploader, keeper, driller, turn }
        });
        if std::mem::take(&mut self.take_snapshot) {
            // The receiver lives as long as the thread.
            let _ = answers.send(ToCapture::TakeSnapshot);
        }
        self.control.attach(answers.clone(), wake.clone());
        let mut outcome = None;
        let uploaded = tokio::select! {
            end = upload(work, from_capture) => Some(end),
            end = &mut ended => {
                // Without an answer it panicked, which joining tells.
                outcome = Some(end.unwrap_or(Ended::Incomplete));
                Some(UploadEnd::Done)
            }
            () = self.stop_within(&answers, &wake) => None,
        };
        self.control.detach();
        let spoilt = epoch.filter(|_| unnamed.load(Ordering::Acquire));
        // The uploader is gone: the thread sees its closed channel and ends by itself.
        uploader_gone.send_replace(true);
        wake.ring();
        if outcome.is_none() {
            outcome = ended.await.ok();
        }
        if let Err(panic) = spawned.join() {
            std::panic::resume_unwind(panic);
        }
        self.end((epoch.is_some(), spoilt), uploaded, outcome)
    }

    /// How a life has ended, by how uploader and capture thread have. Under an epoch that is `spoilt` an object may yet get its name.
    fn end(
        &mut self,
        (has_right, spoilt): (bool, Option<Epoch>),
        uploaded: Option<UploadEnd>,
        outcome: Option<Ended>,
    ) -> Result<Ended, ReplicateError> {
        if let Some(epoch) = spoilt {
            self.past().spoil(epoch);
        }
        if uploaded == Some(UploadEnd::FenceFirst) {
            self.past().require_fence();
        }
        let ended = match uploaded {
            _ if matches!(outcome, Some(Ended::Parked(_))) => Ok(outcome.expect("just matched")),
            Some(UploadEnd::Conflict(text)) => Err(ReplicateError::Conflict(text)),
            Some(UploadEnd::BeginAgain(_) | UploadEnd::FenceFirst) => Ok(Ended::BeginAgain),
            _ if outcome == Some(Ended::BeginAgain) => Ok(Ended::BeginAgain),
            Some(UploadEnd::Done) if outcome == Some(Ended::Stopped) && self.is_all_durable() => Ok(Ended::Stopped),
            Some(UploadEnd::Done) | None => Err(self.not_durable()),
        };
        // Whoever was cut off, or begins anew, may have a segment on its way.
        let is_clean = matches!(ended, Ok(Ended::Stopped | Ended::Parked(_)));
        if spoilt.is_some() || (has_right && !is_clean) {
            self.status.unsettled.store(true, Ordering::Release);
        }
        ended
    }

    /// Runs capture on a thread of its own.
    fn spawn(&self, thread: CaptureThread) -> Result<(JoinHandle<()>, oneshot::Receiver<Ended>), ReplicateError> {
        let name = self.config.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let (ended_sender, ended) = oneshot::channel();
        let builder = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let spawned = builder.spawn(move || {
            // Without a receiver nobody waits for the answer.
            let _ = ended_sender.send(thread.run());
        });
        Ok((spawned.map_err(|e| self.local_error("start a thread for", &e))?, ended))
    }

    /// What looks after the history beside the uploads.
    pub(super) fn keeper(
        &self,
        store: &Arc<dyn Store>,
        right: &Right,
        capture: &Sender<ToCapture>,
        wake: &Wake,
    ) -> Keeper {
        Keeper {
            store: Arc::clone(store),
            right: right.clone(),
            policy: self.config.history.clone(),
            duty: self.config.duty,
            segments: Arc::new(LocalSegments::new(&self.status)),
            status: Arc::clone(&self.status),
            capture: capture.clone(),
            wake: wake.clone(),
            looked: Arc::clone(&self.looked),
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

    fn is_all_durable(&self) -> bool {
        let figures = self.status.figures();
        figures.pending_since.is_none()
    }

    /// Tells the capture thread to end once `stop` is there, and returns when its time is over.
    async fn stop_within(&self, answers: &std::sync::mpsc::Sender<ToCapture>, wake: &Wake) {
        let mut stop = self.commons.stop.clone();
        // The sender lives as long as the process.
        let _ = stop.wait_for(|stop| *stop).await;
        let _ = answers.send(ToCapture::Stop);
        wake.ring();
        tokio::time::sleep(self.time_left()).await;
    }
}

/// What is done in the store while a database is awake.
struct Work {
    uploader: Uploader,
    keeper: Keeper,
    driller: Driller,
    turn: Turn,
}

/// Uploads, looks after the history and holds drills as long as we have the right to write. Without one only waits for something to
/// upload.
async fn upload(work: Option<Work>, mut from_capture: mpsc::Receiver<ToUploader>) -> UploadEnd {
    let Some(Work { uploader, keeper, driller, turn }) = work else {
        return match from_capture.recv().await {
            Some(_) => UploadEnd::BeginAgain("there is something to upload".to_owned()),
            None => UploadEnd::Done,
        };
    };
    tokio::select! {
        end = uploader.run(from_capture) => end,
        () = turn.lease.over(turn.epoch) => UploadEnd::BeginAgain("the lease was lost".to_owned()),
        never = keeper.run_with(driller) => match never {},
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
