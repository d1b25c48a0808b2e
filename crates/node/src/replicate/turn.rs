//! Whose turn it is: the lease keeps other processes away, then the state folder's lock those of this machine that have another lease.
//!
//! In this order: who has the lease may wait for the lock, but nobody waits for the lease with the lock in his hands. Both are waited
//! for, unless the configuration says to exit, and the status says for whom.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Epoch, Lineage, Nonce, Timestamp};
use rhyolite_logic::lease::{Guards, Monotonic, Standing};
use rhyolite_logic::reconcile::Start as Decision;
use rhyolite_store::{Store, Version};
use rhyolite_writer::World;
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create::{self, CreateError};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rustix::fs::{FlockOperation, flock};

use super::{BEGIN_AGAIN_AFTER, ReplicateError, Replication};
use crate::capture::restart;
use crate::config::IfHeld;
use crate::log_end::{Hint, LogEnd};
use crate::status::State;
use crate::upload::{NoRight, Right};
use crate::world::RealWorld;
use crate::{lease, process, time};

/// How long the lock of the state folder is waited for before its holder counts as another replicator.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time between looks at a lock that another replicator holds.
const LOCK_LOOK: Duration = Duration::from_millis(100);
/// Time between looks at how things stand with a lease.
const STANDING_LOOK: Duration = Duration::from_millis(500);
/// So often within this time somebody may write under a higher epoch than ours, although we have the lease, before that counts as
/// another lease over the same log.
const OUTDONE_MAX: usize = 2;
const OUTDONE_WITHIN: Duration = Duration::from_secs(600);

/// The right to write, as it was got.
pub(super) struct Turn {
    pub(super) lease: LeaseHandle,
    pub(super) epoch: Epoch,
    /// Another process had it, and did not give it up: its requests may still come in.
    is_seized: bool,
}

/// What this process has done under its rights so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    /// The epoch under which it has last gone to work on the store.
    written: Option<Epoch>,
    /// The epoch under which it has last fenced the log.
    fenced: Option<Epoch>,
    /// The least epoch for the next life: what the one before has begun under its own may still come in.
    least: Option<Epoch>,
    /// The next life must fence before it writes anything.
    must_fence: bool,
    /// When somebody wrote under a higher epoch while we had the lease.
    outdone: Vec<Instant>,
}

/// The same, for all lives of one database: one that is cut off leaves what it has done.
pub(crate) type SharedPast = Arc<Mutex<Past>>;

impl Past {
    /// Objects were begun under `epoch` by another, or one of ours may or may not get its name: nothing else may be called the same.
    pub(super) fn spoil(&mut self, epoch: Epoch) {
        self.least = self.least.max(Some(epoch.next()));
    }

    /// Whether this process has fenced the log under `epoch`.
    pub(super) fn is_fenced(&self, epoch: Epoch) -> bool {
        self.fenced == Some(epoch)
    }

    fn must_fence_under(&self, turn: &Turn) -> bool {
        (turn.is_seized && self.fenced != Some(turn.epoch)) || self.must_fence
    }

    /// The next life fences first.
    pub(super) fn require_fence(&mut self) {
        self.must_fence = true;
    }
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
                    return Err(ReplicateError::Held(reason));
                }
                tracing::warn!(database = %self.config.path.display(), "waiting: {reason}");
                self.status.set_state(State::Waiting { reason });
            }
            if !self.sleep(LOCK_LOOK).await {
                return Ok(None);
            }
        }
    }

    /// What was done so far. Never held while something is waited for.
    pub(super) fn past(&self) -> MutexGuard<'_, Past> {
        // Every change leaves it whole.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until we have the lease. `None` when stopped before; a last life does not wait where another process answers for the database.
    pub(super) async fn wait_for_turn(&mut self, lease: &LeaseHandle) -> Result<Option<Turn>, ReplicateError> {
        let mut holders = Holders::default();
        let least = self.past().least;
        if let Some(least) = least {
            lease.require_epoch(least);
        }
        let mut line = None;
        loop {
            let changes = lease.changes();
            let standing = lease.standing();
            match &standing {
                Standing::Theirs { record, free } => {
                    self.tell_holder(record, *free, &mut holders)?;
                    if self.is_last && self.is_theirs() {
                        return Ok(None);
                    }
                }
                Standing::Ended if self.commons.leases.is_over() => return Ok(None),
                _ if lease.right().is_none() => self.tell_problem(lease, &mut holders),
                _ => {}
            }
            let enough = lease.right().filter(|epoch| least.is_none_or(|least| *epoch >= least));
            if let Some(epoch) = enough {
                if line.is_some() {
                    // It may have been lost meanwhile.
                    if !self.stand_in(line.take()).await {
                        return Ok(None);
                    }
                    continue;
                }
                self.status.update(|f| {
                    f.epoch = Some(epoch);
                    f.standby = false;
                });
                let is_seized = matches!(standing, Standing::Ours { origin, .. } if origin.seized);
                return Ok(Some(Turn { lease: lease.clone(), epoch, is_seized }));
            }
            // It may take long, and others have other leases.
            line = self.give_way().or(line);
            let changes = async {
                match changes {
                    Some(changes) => changes.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changes => {}
                // Standing is a matter of time, too.
                () = tokio::time::sleep(STANDING_LOOK) => {}
                () = self.stopped() => return Ok(None),
            }
        }
    }

    fn tell_problem(&self, lease: &LeaseHandle, holders: &mut Holders) {
        if let Some(problem) = lease.problem().filter(|problem| holders.problem.as_ref() != Some(problem)) {
            self.complain(&problem, "the lease cannot be read or written");
            holders.problem = Some(problem);
        }
    }

    /// Says who has the lease, once for each holder; or ends, where that is wanted and the holder is seen to live.
    fn tell_holder(&self, record: &LeaseRecord, free: Monotonic, holders: &mut Holders) -> Result<(), ReplicateError> {
        let left = RealWorld.now().until(free);
        if left.is_zero() {
            // About to be taken.
            return Ok(());
        }
        let until = time::format_utc(Timestamp(time::now().0.saturating_add(left.as_millis() as i64)));
        let holder = lease::describe(record);
        let mut text = format!("{holder} holds the lease of {} until {until} at least", self.config.store);
        let is_own = record.process.is_some() && record.process == process::own();
        if is_own {
            text.push_str(
                ": that is this process, under another spelling of `lease.url`, unless it is about to give it up",
            );
        }
        let is_renewed = holders.nonce.replace(record.nonce).is_some_and(|before| before != record.nonce);
        let lives = is_renewed || record.process.as_deref().is_some_and(process::is_alive);
        if self.config.lease.if_held == IfHeld::Exit && record.state == LeaseState::Held && lives {
            return Err(ReplicateError::Held(text));
        }
        self.status.update(|f| {
            f.standby = !is_own;
            // What is not captured here is for the other one to answer for.
            f.pending_since = f.pending_since.filter(|_| is_own || f.local.is_some());
        });
        self.status.set_state(State::Waiting { reason: text.clone() });
        if holders.told.as_ref() != Some(&holder) {
            tracing::warn!(database = %self.config.path.display(), "waiting: {text}");
            holders.told = Some(holder);
        }
        Ok(())
    }

    /// Finds the end of the log, and makes sure that nobody has written there under our epoch or a later one. `None` when that is not so, or
    /// when stopped.
    pub(super) async fn take_turn(
        &mut self,
        store: &Arc<dyn Store>,
        turn: &Turn,
        hint: Option<Hint>,
        known: Option<Lineage>,
    ) -> Result<Option<Option<LogEnd>>, ReplicateError> {
        let Some(mut end) = self.find_end(store, hint).await? else { return Ok(None) };
        if let (Some(local), Some(end)) = (known, &end)
            && local != end.identity.lineage
        {
            let (local, store) = (local, end.identity.lineage);
            return Err(self.wrong_lineage(&Decision::WrongLineage { local, store }));
        }
        let theirs = end.as_ref().and_then(|end| end.epoch).filter(|theirs| *theirs >= turn.epoch);
        let written = self.past().written;
        if let Some(theirs) = theirs.filter(|theirs| !(*theirs == turn.epoch && written == Some(*theirs))) {
            self.note_outdone(turn, theirs)?;
            // Written under another lease, or under none; or the lease has passed on while we were not looking. The next writing of the
            // lease tells, and goes on from there.
            self.past().spoil(theirs);
            return Ok(None);
        }
        let must_fence = self.past().must_fence_under(turn);
        if let Some(end) = end.as_mut().filter(|end| must_fence && end.manifest.is_some()) {
            if !self.fence(store, turn, end).await? {
                return Ok(None);
            }
            self.past().must_fence = false;
        }
        self.past().written = Some(turn.epoch);
        Ok(Some(end))
    }

    /// Somebody wrote under `theirs`. While we have the lease that may not happen again and again.
    fn note_outdone(&mut self, turn: &Turn, theirs: Epoch) -> Result<(), ReplicateError> {
        let mut past = self.past();
        if past.written != Some(turn.epoch) {
            return Ok(());
        }
        past.outdone.retain(|at| at.elapsed() < OUTDONE_WITHIN);
        past.outdone.push(Instant::now());
        let is_too_often = past.outdone.len() > OUTDONE_MAX;
        drop(past);
        if turn.lease.is_alone() || is_too_often {
            return Err(self.other_lease(theirs));
        }
        Ok(())
    }

    fn other_lease(&self, theirs: Epoch) -> ReplicateError {
        ReplicateError::Conflict(format!(
            "another process writes to {} without the lease that this one holds (it has epoch {}): stop it, or give both the same \
             lease",
            self.config.store,
            theirs.get()
        ))
    }

    /// Takes the end of the log for our epoch, so that nothing which an earlier holder still sends counts. `false` when somebody was
    /// faster, or when stopped.
    async fn fence(&mut self, store: &Arc<dyn Store>, turn: &Turn, end: &mut LogEnd) -> Result<bool, ReplicateError> {
        let right = self.right(store, turn, end.manifest_version.clone());
        let (header, bytes) = create::fence(&RealWorld, end.identity.lineage, turn.epoch, end.next_seq);
        let fenced = tokio::select! {
            fenced = async {
                right.exercise(&self.status).await?;
                Ok::<_, NoRight>(create::segment(&**store, Guards::ALL, &header, bytes, &[]).await)
            } => fenced,
            () = self.stopped() => return Ok(false),
        };
        let text = match fenced {
            Ok(Ok(_)) => {
                end.next_seq = end.next_seq.next();
                // The claim has made a new one.
                end.manifest_version = right.claim.version().await;
                self.past().fenced = Some(turn.epoch);
                return Ok(true);
            }
            Ok(Err(CreateError::Store(error))) => error.to_string(),
            Ok(Err(CreateError::Conflict)) => return Err(self.other_lease(turn.epoch)),
            Err(NoRight::Passing(text)) => text,
            Ok(Err(_)) | Err(NoRight::Lost(_)) => return Ok(false),
        };
        self.complain(&text, "the log cannot be fenced");
        self.sleep(BEGIN_AGAIN_AFTER).await;
        Ok(false)
    }

    pub(super) fn right(&self, store: &Arc<dyn Store>, turn: &Turn, manifest: Option<Version>) -> Right {
        let claim = Claim::new(Arc::clone(store), Arc::new(RealWorld), Guards::ALL, turn.epoch, manifest);
        Right { lease: turn.lease.clone(), is_own: self.config.lease.store.is_none(), claim: Arc::new(claim) }
    }
}

/// What was seen and said while the lease was waited for.
#[derive(Debug, Default)]
struct Holders {
    nonce: Option<Nonce>,
    told: Option<String>,
    problem: Option<String>,
}
