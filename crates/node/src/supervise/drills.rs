//! Restore drills of parked databases: they go on when they are due, and wake nothing. They only read, so one that is woken does not wait for
//! its drill.

use std::sync::Arc;
use std::time::Duration;

use super::chores::Due;
use super::control::Control;
use super::{DatabaseId, Stage, Supervisor};
use crate::drill::{self, Driller};

/// Shortest time from now to the drill of a database that is parked, or an interval if that is shorter.
const DRILL_MIN: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Plans the next drill of a database that is parked.
    pub(super) fn plan_drill(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get(&id) else { return };
        let config = member.source.config().drill;
        match member.status.look(|figures| drill::due_in(&config, figures)) {
            Some(after) => self.drills.plan(id, after.max(DRILL_MIN.min(config.interval))),
            None => self.drills.forget(id),
        }
    }

    pub(super) fn drill(&mut self, due: Due<()>) {
        match due {
            Due::Begin(id) => {
                if !self.members.get(&id).is_some_and(|m| matches!(m.stage, Stage::Parked)) {
                    return;
                }
                if self.drills.is_running(id) {
                    // The one that was cut off has not noticed it yet.
                    self.drills.plan(id, DRILL_MIN);
                    return;
                }
                let control = Arc::new(Control::new(false, Vec::new()));
                let Ok(replication) = self.replication(id, &control) else { return };
                let Ok(store) = replication.open_store() else { return };
                let driller = Driller::new(&replication.config, &replication.status, &store);
                self.drills.begin(id, Box::pin(async move { driller.hold_if_due().await }));
            }
            // It has its own now, or is gone.
            Due::Ended { was_woken: true, .. } => {}
            Due::Ended { id, .. } => {
                if self.members.get(&id).is_some_and(|m| matches!(m.stage, Stage::Parked)) {
                    self.plan_drill(id);
                }
            }
        }
    }
}
