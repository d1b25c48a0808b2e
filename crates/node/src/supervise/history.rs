//! Histories of parked databases: bundles, merges, snapshots and deletion go on when they are due, without waking the database and without
//! a timer for each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::state::parked::Parked;
use tokio::task::{AbortHandle, JoinSet};

use super::control::Control;
use super::{DatabaseId, Stage, Supervisor};
use crate::park;
use crate::replicate::{Past, Replication};

/// Histories that are looked after at a time.
const RUNNING_MAX: usize = 4;

/// What is due, and what runs.
#[derive(Debug, Default)]
pub(super) struct Histories {
    due: BTreeSet<(Instant, DatabaseId)>,
    when: HashMap<DatabaseId, Instant>,
    running: JoinSet<(bool, Past)>,
    handles: HashMap<tokio::task::Id, DatabaseId>,
    aborts: HashMap<DatabaseId, AbortHandle>,
    woken: HashSet<DatabaseId>,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Due {
    /// This one's history is to be looked after.
    Begin(DatabaseId),
    /// That of this one was looked after.
    Ended {
        id: DatabaseId,
        /// It was written meanwhile, and waits to be opened.
        was_woken: bool,
        /// Only a snapshot of the database helps.
        snapshot_due: bool,
        /// What was done under its rights; nothing when it was cut off.
        past: Option<Past>,
    },
}

impl Histories {
    pub(super) fn plan(&mut self, id: DatabaseId, after: Duration) {
        self.forget(id);
        let when = Instant::now() + after;
        self.when.insert(id, when);
        self.due.insert((when, id));
    }

    pub(super) fn forget(&mut self, id: DatabaseId) {
        if let Some(when) = self.when.remove(&id) {
            self.due.remove(&(when, id));
        }
    }

    /// The database is needed: nothing more is planned, and what runs is ended. `true` when something runs: the end of it comes as
    /// [`Due::Ended`].
    pub(super) fn interrupt(&mut self, id: DatabaseId) -> bool {
        self.forget(id);
        let Some(abort) = self.aborts.get(&id) else { return false };
        abort.abort();
        self.woken.insert(id);
        true
    }

    pub(super) fn stop(&mut self) {
        self.running.abort_all();
    }

    /// The next thing to do. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Due {
        loop {
            let first = self.due.first().copied().filter(|_| self.aborts.len() < RUNNING_MAX);
            let due = async {
                match first {
                    Some((when, _)) => tokio::time::sleep_until(when.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    let (task, snapshot_due, past) = match ended {
                        Ok((task, (snapshot_due, past))) => (task, snapshot_due, Some(past)),
                        Err(error) => (error.id(), false, None),
                    };
                    let Some(id) = self.handles.remove(&task) else { continue };
                    self.aborts.remove(&id);
                    return Due::Ended { id, was_woken: self.woken.remove(&id), snapshot_due, past };
                }
                () = due => {
                    let (_, id) = self.due.pop_first().expect("it was there");
                    self.when.remove(&id);
                    return Due::Begin(id);
                }
            }
        }
    }

    fn begin(&mut self, id: DatabaseId, work: impl Future<Output = (bool, Past)> + Send + 'static) {
        let abort = self.running.spawn(work);
        self.handles.insert(abort.id(), id);
        self.aborts.insert(id, abort);
    }
}

impl Supervisor {
    /// Plans the next look at the history of a database that is parked, if one is needed.
    pub(super) fn plan_history(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get(&id) else { return };
        let looked = *member.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let uploaded = member.status.figures().uploaded.segments;
        match looked.due_in(&member.source.config().history, uploaded) {
            Some(after) => self.histories.plan(id, after),
            None => self.histories.forget(id),
        }
    }

    pub(super) fn look_after(&mut self, mut due: Due) {
        if let Due::Ended { id, was_woken: false, past, .. } = &mut due
            && let (Some(past), Some(member)) = (past.take(), self.members.get_mut(id))
        {
            member.past = past;
        }
        match due {
            Due::Begin(id) => {
                if !self.members.get(&id).is_some_and(|m| matches!(m.stage, Stage::Parked)) {
                    return;
                }
                let control = Arc::new(Control::new(false, Vec::new()));
                let Ok(replication) = self.replication(id, &control) else { return };
                self.histories.begin(id, Box::pin(look_after(replication)));
            }
            Due::Ended { id, was_woken: true, .. } => self.to_wake.push_back(id),
            Due::Ended { id, snapshot_due: true, .. } => {
                self.watcher.forget(id);
                if let Some(member) = self.members.get_mut(&id) {
                    member.take_snapshot = true;
                }
                self.wake(id);
            }
            Due::Ended { id, .. } => self.plan_history(id),
        }
    }
}

/// Looks after the history of one parked database. `true` when only a snapshot of the database helps.
async fn look_after(mut replication: Replication) -> (bool, Past) {
    let (config, status) = (replication.config.clone(), Arc::clone(&replication.status));
    let before = status.look(|f| f.state.clone());
    let done = Box::pin(replication.look_after()).await;
    replication.leave().await;
    let snapshot_due = done.unwrap_or_else(|error| {
        tracing::warn!(database = %status.path.display(), "history: {error}");
        false
    });
    // It is at rest, whatever was waited for.
    if status.look(|f| f.state != before) {
        status.set_state(before);
    }
    let looked = *replication.looked.lock().unwrap_or_else(PoisonError::into_inner);
    if looked.due_in(&config.history, status.look(|f| f.uploaded.segments)).is_none() {
        // The next start need not look after it any more.
        let meta_path = config.meta_path;
        let settle = move || park::read(&meta_path).map(|p| park::save(&meta_path, &Parked { history_due: None, ..p }));
        // Without it the next start looks once in vain.
        let _ = tokio::task::spawn_blocking(settle).await;
    }
    (snapshot_due, replication.past)
}
