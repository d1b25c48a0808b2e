//! Histories of parked databases: bundles, merges, snapshots and deletion go on when they are due, without waking the database and without
//! a timer for each.

use std::sync::{Arc, PoisonError};

use rhyolite_format::state::parked::Parked;

use super::chores::Due;
use super::control::Control;
use super::{DatabaseId, Stage, Supervisor};
use crate::park;
use crate::replicate::{Past, Replication};

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

    pub(super) fn look_after(&mut self, due: Due<(bool, Past)>) {
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
            Due::Ended { id, done: Some((snapshot_due, past)), .. } => {
                let Some(member) = self.members.get_mut(&id) else { return };
                member.past = past;
                if snapshot_due {
                    member.take_snapshot = true;
                    self.watcher.forget(id);
                    self.wake(id);
                } else {
                    self.plan_history(id);
                }
            }
            Due::Ended { id, done: None, .. } => self.plan_history(id),
        }
    }
}

/// Looks after the history of one parked database. `true` when only a snapshot of the database helps.
async fn look_after(mut replication: Replication) -> (bool, Past) {
    let (config, status) = (replication.config.clone(), Arc::clone(&replication.status));
    let before = status.look(|f| f.state.clone());
    let done = Box::pin(replication.look_after()).await;
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
