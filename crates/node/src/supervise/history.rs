//! Histories of parked databases: bundles, merges, snapshots and deletion go on when they are due, without waking the database and without
//! a timer for each.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rhyolite_format::state::parked::Parked;

use super::chores::Due;
use super::control::Control;
use super::{DatabaseId, Stage, Supervisor};
use crate::park;
use crate::replicate::Replication;

/// Longest time that a look waits for the right to write and for news of the log: a store or a lease that is not to be had holds up no
/// other database's history.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// Time to the next look when this one came to nothing.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Done,
    /// Only a snapshot of the database helps.
    SnapshotDue,
    /// The right to write was not to be had, or the store.
    InVain,
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

    pub(super) fn look_after(&mut self, due: Due<Look>) {
        match due {
            Due::Begin(id) => {
                if !self.members.get(&id).is_some_and(|m| matches!(m.stage, Stage::Parked)) {
                    return;
                }
                let control = Arc::new(Control::new(false, Vec::new()));
                let Ok(replication) = self.replication(id, &control) else { return };
                self.histories.begin(id, Box::pin(look_after(replication)));
            }
            // It was written meanwhile, and waits to be opened.
            Due::Ended { id, was_woken: true, .. } => self.to_wake.push_back(id),
            Due::Ended { id, done: Some(Look::SnapshotDue), .. } => {
                let Some(member) = self.members.get_mut(&id) else { return };
                member.take_snapshot = true;
                self.wake(id);
            }
            Due::Ended { id, done: Some(Look::InVain), .. } => {
                if self.members.contains_key(&id) {
                    self.histories.plan(id, AGAIN_AFTER);
                }
            }
            Due::Ended { id, done: Some(Look::Done) | None, .. } => self.plan_history(id),
        }
    }
}

/// Looks after the history of one parked database.
async fn look_after(mut replication: Replication) -> Look {
    let (config, status) = (replication.config.clone(), Arc::clone(&replication.status));
    let before = status.look(|f| f.state.clone());
    let done = Box::pin(replication.look_after(BEGIN_MAX)).await;
    let look = match done {
        Ok(Some(true)) => Look::SnapshotDue,
        Ok(Some(false)) => Look::Done,
        Ok(None) => Look::InVain,
        Err(error) => {
            tracing::warn!(database = %status.path.display(), "history: {error}");
            Look::InVain
        }
    };
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
    look
}
