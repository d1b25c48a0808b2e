//! Whose turn it is: the state folder's lock keeps other processes of this machine away, the lease those of others.
//!
//! Both are waited for, unless the configuration says to exit, and the status says for whom.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Epoch, Timestamp};
use rhyolite_logic::lease::{Guards, Monotonic, Standing};
use rhyolite_store::{Store, Version};
use rhyolite_writer::World;
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create::{self, CreateError};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rustix::fs::{FlockOperation, flock};

use super::{BEGIN_AGAIN_AFTER, ReplicateError, Replication};
use crate::capture::restart;
use crate::config::IfHeld;
use crate::lease;
use crate::log_end::{Hint, LogEnd};
use crate::status::State;
use crate::time;
use crate::upload::{NoRight, Right};
use crate::world::RealWorld;

/// How long the lock of the state folder is waited for before its holder counts as another replicator.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time between looks at a lock that another replicator holds.
const LOCK_LOOK: Duration = Duration::from_millis(100);
/// Time between looks at how things stand with a lease.
const STANDING_LOOK: Duration = Duration::from_millis(500);

/// The right to write, as it was got.
pub(super) struct Turn {
    pub(super) lease: LeaseHandle,
    pub(super) epoch: Epoch,
    /// Another process had it, and did not give it up: its requests may still come in.
    is_seized: bool,
}

impl Replication {
    /// Holds the state folder for this process: the lock goes with the returned file. `None` when stopped before.
    pub(super) async fn lock_state_folder(&mut self) -> Result<Option<File>, ReplicateError> {
        let meta_path = self.config.meta_path.clone();
        let opened = std::fs::create_dir_all(&meta_path).and_then(|()| {
            let path = meta_path.join(restart::LOCK_FILE);
            File::options().create(true).truncate(false).write(true).open(path)
        });
        let file = opened.map_err(|e| self.local_error("open", &e))?;
        let began = Instant::now();
        let mut told = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(self.local_error("lock", &e.into())),
            }
            // The process before this one may be about to end.
            if began.elapsed() > LOCK_WAIT && !std::mem::replace(&mut told, true) {
                let folder = meta_path.display();
                let reason =
                    format!("another rhyolite on this machine replicates this database (state folder {folder})");
                if self.config.lease.if_held == IfHeld::Exit {
                    return Err(ReplicateError::Conflict(reason));
                }
                tracing::warn!(database = %self.config.path.display(), "waiting: {reason}");
                self.status.set_state(State::Waiting { reason });
            }
            if !self.sleep(LOCK_LOOK).await {
                return Ok(None);
            }
        }
    }

    /// Gets the right to write, under an epoch that nobody else has written with, and finds the end of the log. `None` when stopped
    /// before.
    pub(super) async fn take_turn(
        &mut self,
        store: &Arc<dyn Store>,
        lease: &LeaseHandle,
        hint: Option<Hint>,
    ) -> Result<Option<(Turn, Option<LogEnd>)>, ReplicateError> {
        loop {
            let Some(turn) = self.wait_for_turn(lease).await? else { return Ok(None) };
            let Some(mut end) = self.find_end(store, hint).await? else { return Ok(None) };
            let theirs = end.as_ref().and_then(|end| end.epoch).filter(|theirs| *theirs >= turn.epoch);
            match (theirs, self.written) {
                (None, _) => {}
                (Some(theirs), Some(ours)) if theirs == ours && ours == turn.epoch => {}
                (Some(theirs), Some(ours)) if ours == turn.epoch => return Err(self.other_lease(theirs)),
                (Some(theirs), _) => {
                    // Written under another lease, or under none, before: ours goes on from there.
                    lease.require_epoch(theirs.next());
                    continue;
                }
            }
            if let Some(end) = end.as_mut().filter(|end| turn.is_seized && end.manifest.is_some())
                && !self.fence(store, &turn, end).await?
            {
                continue;
            }
            self.written = Some(turn.epoch);
            return Ok(Some((turn, end)));
        }
    }

    fn other_lease(&self, theirs: Epoch) -> ReplicateError {
        ReplicateError::Conflict(format!(
            "another process writes to {} without the lease that this one holds (it has epoch {}): stop it, or give both the same \
             lease",
            self.config.store,
            theirs.get()
        ))
    }

    /// Waits until we have the lease. `None` when stopped before.
    async fn wait_for_turn(&mut self, lease: &LeaseHandle) -> Result<Option<Turn>, ReplicateError> {
        let mut is_seized = false;
        let mut told = None;
        loop {
            match lease.standing() {
                Standing::Theirs { record, free } => {
                    is_seized = record.state == LeaseState::Held;
                    self.tell_holder(&record, free, &mut told)?;
                }
                _ if told.is_none() && lease.right().is_none() => {
                    if let Some(problem) = lease.problem() {
                        self.complain(&problem, "the lease cannot be read");
                        told = Some(problem);
                    }
                }
                _ => {}
            }
            if let Some(epoch) = lease.right() {
                self.status.update(|f| f.epoch = Some(epoch));
                return Ok(Some(Turn { lease: lease.clone(), epoch, is_seized }));
            }
            let Some(changes) = lease.changes() else { continue };
            tokio::select! {
                () = changes => {}
                // Standing is a matter of time, too.
                () = tokio::time::sleep(STANDING_LOOK) => {}
                () = self.stopped() => return Ok(None),
            }
        }
    }

    /// Says who has the lease, once for each holder; or ends, where that is wanted.
    fn tell_holder(
        &self,
        record: &LeaseRecord,
        free: Monotonic,
        told: &mut Option<String>,
    ) -> Result<(), ReplicateError> {
        let left = RealWorld.now().until(free);
        let until = time::format_utc(Timestamp(time::now().0.saturating_add(left.as_millis() as i64)));
        let holder = lease::describe(record);
        let text = format!("{holder} holds the lease of {} until {until} at least", self.config.store);
        if self.config.lease.if_held == IfHeld::Exit && record.state == LeaseState::Held && !left.is_zero() {
            return Err(ReplicateError::Conflict(text));
        }
        self.status.set_state(State::Waiting { reason: text.clone() });
        if told.as_ref() != Some(&holder) {
            tracing::warn!(database = %self.config.path.display(), "waiting: {text}");
            *told = Some(holder);
        }
        Ok(())
    }

    /// Takes the end of the log for our epoch, so that nothing which an earlier holder still sends counts. `false` when somebody was
    /// faster.
    async fn fence(&self, store: &Arc<dyn Store>, turn: &Turn, end: &mut LogEnd) -> Result<bool, ReplicateError> {
        let right = self.right(store, turn, end.manifest_version.clone());
        let (header, bytes) = create::fence(&RealWorld, end.identity.lineage, turn.epoch, end.next_seq);
        let text = match right.exercise().await {
            Ok(()) => match create::segment(&**store, Guards::ALL, &header, bytes, &[]).await {
                Ok(_) => {
                    end.next_seq = end.next_seq.next();
                    // The claim has made a new version.
                    end.manifest_version = None;
                    return Ok(true);
                }
                Err(CreateError::Store(error)) => error.to_string(),
                Err(CreateError::Conflict) => return Err(self.other_lease(turn.epoch)),
                Err(_) => return Ok(false),
            },
            Err(NoRight::Passing(text)) => text,
            Err(NoRight::Lost(_)) => return Ok(false),
        };
        self.complain(&text, "the log cannot be fenced");
        tokio::time::sleep(BEGIN_AGAIN_AFTER).await;
        Ok(false)
    }

    pub(super) fn right(&self, store: &Arc<dyn Store>, turn: &Turn, manifest: Option<Version>) -> Right {
        let claim = Claim::new(Arc::clone(store), Arc::new(RealWorld), Guards::ALL, turn.epoch, manifest);
        Right { lease: turn.lease.clone(), is_own: self.config.lease.store.is_none(), claim: Arc::new(claim) }
    }
}
