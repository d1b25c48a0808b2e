//! The end: what was committed before it is captured and uploaded, within the time for stopping, or the process says of which database that is
//! not so.
//!
//! ```text
//!   told to stop ─┬─► who is awake looks once more, uploads, and ends
//!                 ├─► whose files changed while it was parked, or who failed: one last life
//!                 └─► each folder is searched once more: who is new, or still waits in line: one last life
//! ```
//!
//! All of that goes on side by side. Invariants:
//! 1. Each look begins after the stop was told, so it sees what was committed before that: at the files of who is parked, in the sessions of who
//!    is awake (`capture::thread::ends`), and for new files in the folders.
//! 2. A database that is parked and has not changed is not opened, and neither is one whose file is gone.
//! 3. When the time is over nothing more is opened. Who has not got its turn by then, and holds something, is an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DatabaseId, Member, Stage, Supervisor};
use crate::park::watcher::Noticed;
use crate::replicate::{RELEASE_WAIT, ReplicateError};
use crate::status::State;

/// What is left to do at the end beside what runs.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Databases wait in line, and may be opened.
    to_open: bool,
    /// A folder is being searched, or is to be.
    to_search: bool,
}

impl Supervisor {
    /// Stops everything that is awake, and opens once more what may hold commits that were not captured.
    pub(super) async fn wind_up(mut self) -> Vec<ReplicateError> {
        let is_ending = *self.stop.borrow();
        // Another process has a lease without which this one is not to run: it answers for what is new.
        let is_asked = *self.asked_to_stop.borrow();
        self.board.pulse.end();
        if is_ending {
            self.begin_to_end(is_asked).await;
        }
        let ends_at = Instant::now() + self.time_to_stop();
        loop {
            while let Ok(noticed) = self.noticed.try_recv() {
                self.note_at_end(noticed);
            }
            let is_over = Instant::now() >= ends_at;
            while let Some(id) = self.to_wake.pop_front_if(|_| is_ending && !is_over && self.awake < self.awake_max) {
                self.open(id, None);
            }
            let left = self.left_to_do(is_asked && !is_over);
            if self.tasks.is_empty() && !left.to_open && !left.to_search {
                break;
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.note_ended(ended),
                Some(noticed) = self.noticed.recv() => self.note_at_end(noticed),
                permit = self.opening.turn(left.to_open) => self.open_next(false, permit),
                found = self.folders.next(), if left.to_search => self.take_found(found).await,
                () = tokio::time::sleep_until(ends_at.into()), if !is_over => {}
            }
        }
        self.leases.release_all(RELEASE_WAIT).await;
        self.account(is_ending, is_asked)
    }

    /// Tells those that are awake, and finds those that must be opened once more.
    async fn begin_to_end(&mut self, is_asked: bool) {
        self.stop_by = Some(Instant::now() + self.stop_timeout);
        for member in self.members.values() {
            if let Stage::Awake(control) = &member.stage {
                control.stop_with_process();
            }
        }
        // Those that were written while their history was looked after were waiting for that.
        let interrupted = self.histories.end_all().await;
        self.to_wake.extend(interrupted);
        self.drills.stop();
        let watcher = Arc::clone(&self.watcher);
        let changed = tokio::task::spawn_blocking(move || watcher.look_at_all()).await;
        changed.expect("looking does not panic").into_iter().for_each(|id| self.wake(id));
        self.try_failed_again();
        if is_asked {
            self.folders.search_at_end();
        }
    }

    /// What was wrong may be gone, and there is no time for pauses.
    fn try_failed_again(&mut self) {
        let may_pass = |m: &Member| m.error.as_ref().is_some_and(ReplicateError::may_pass);
        let failed = self.members.iter_mut().filter(|(_, m)| matches!(m.stage, Stage::Failed) && may_pass(m));
        let failed: Vec<DatabaseId> = failed
            .map(|(id, member)| {
                member.failures.hurry();
                *id
            })
            .collect();
        failed.into_iter().for_each(|id| self.wake(id));
    }

    /// Names that come by now are of files that were made after the stop.
    fn note_at_end(&mut self, noticed: Noticed) {
        if let Noticed::Changed(id) = noticed {
            self.wake(id);
        }
    }

    fn left_to_do(&self, has_time: bool) -> Left {
        let has_room = self.awake < self.awake_max;
        Left {
            to_open: has_time && has_room && !self.to_open.is_empty(),
            to_search: has_time && self.folders.is_to_search(),
        }
    }

    /// What is left of the time for stopping, all of it before the stop.
    pub(super) fn time_to_stop(&self) -> Duration {
        self.stop_by.map_or(self.stop_timeout, |by| by.saturating_duration_since(Instant::now()))
    }

    /// What has become of the databases, after the last of them has ended.
    fn account(self, is_ending: bool, is_asked: bool) -> Vec<ReplicateError> {
        let mut errors = self.lost;
        let count = self.members.len();
        let is_behind = self.members.values().any(|m| m.status.look(|f| f.pending_since.is_some()));
        for dir in self.folders.to_search().into_iter().filter(|_| is_asked) {
            let text = format!("{} was not searched in time: what is new in it was not captured", dir.display());
            errors.push(ReplicateError::NotDurable(text));
        }
        for member in self.members.into_values() {
            if let Some(error) = member.error {
                errors.push(error);
            } else if is_asked && matches!(member.stage, Stage::InLine) && holds_something(&member) {
                let path = member.status.path.display();
                let text = format!("{path} was not looked at in time: it is after the next start");
                errors.push(ReplicateError::NotDurable(text));
            } else if is_ending {
                member.status.set_state(State::Stopped);
            }
        }
        if is_ending && errors.is_empty() && !is_behind {
            let what = if count == 1 { "1 database".to_owned() } else { format!("{count} databases") };
            tracing::info!("stopped: what was captured of {what} is durable");
        }
        errors
    }
}

/// Whether there may be commits in the file.
fn holds_something(member: &Member) -> bool {
    std::fs::metadata(&member.status.path).is_ok_and(|meta| meta.len() > 0)
}
