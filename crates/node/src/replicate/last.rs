//! The last life of a database: what it does once it is to end, and for how long.
//!
//! A life that was stopped before it had begun has looked at nothing. When the process ends, another one must, or commits would be missing
//! without a word. Where only this database is given up, or gets other settings, its store may be the reason: then nothing is tried but to
//! upload what is captured.

use std::time::{Duration, Instant};

use super::{BEGIN_AGAIN_AFTER, Outcome, ReplicateError, Replication};
use crate::capture::thread::Ended;

/// For so long a last life tries again what is wrong on this machine: a file that is just written or copied, a state folder that is just put
/// in its place.
const MACHINE_PATIENCE: Duration = Duration::from_secs(5);
/// Time between these tries.
const MACHINE_RETRY: Duration = Duration::from_millis(250);

impl Replication {
    /// Whether there may be something to capture or to upload, although the life that has just ended had not begun. What another process
    /// captures is not for this one to answer for.
    pub(super) fn has_more_to_do(&self) -> bool {
        let process_ends = self.control.is_process_ending();
        self.status.look(|f| !f.standby && (process_ends || (f.local.is_some() && f.pending_since.is_some())))
    }

    /// Whether an error may be gone soon, and there is no other time to find out.
    pub(super) fn is_tried_again(&self, error: &ReplicateError) -> bool {
        self.control.is_process_ending() && error.is_about_this_machine()
    }

    /// One more life, although the process stops: nobody knows what the life before this has left undone.
    pub(super) async fn run_last(&mut self) -> Result<Outcome, ReplicateError> {
        self.is_last = true;
        if self.commons.leases.is_over() {
            // Whoever has the right now answers for the database.
            return Ok(Outcome::Stopped);
        }
        let left = self.time_left();
        tokio::time::timeout(left, self.try_to_end()).await.unwrap_or_else(|_| Err(self.not_durable()))
    }

    async fn try_to_end(&mut self) -> Result<Outcome, ReplicateError> {
        let began = Instant::now();
        loop {
            let pause = match self.run_once().await {
                Ok(Ended::Stopped | Ended::Parked(_)) => return Ok(Outcome::Stopped),
                Ok(Ended::Incomplete) if self.is_theirs() || self.commons.leases.is_over() => {
                    return Ok(Outcome::Stopped);
                }
                // Requests of the life before this may still be on their way.
                Ok(Ended::Incomplete | Ended::BeginAgain) => BEGIN_AGAIN_AFTER,
                Err(error) if self.is_tried_again(&error) && began.elapsed() < MACHINE_PATIENCE => MACHINE_RETRY,
                Err(error) => return Err(error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Another process has the lease, and nothing was captured here: that process answers for the database.
    pub(super) fn is_theirs(&self) -> bool {
        self.status.look(|f| f.standby && f.local.is_none())
    }

    /// What is left of the time that a life has once it is to end.
    pub(super) fn time_left(&self) -> Duration {
        self.commons.stop_timeout.saturating_sub(self.control.stopped_for())
    }

    pub(super) fn not_durable(&self) -> ReplicateError {
        let why = self.status.look(|f| f.state.reason().map(|reason| format!(" ({reason})"))).unwrap_or_default();
        ReplicateError::NotDurable(format!(
            "{}: the last commits are not in {} yet{why}; they are uploaded after the next start",
            self.config.path.display(),
            self.config.store
        ))
    }
}
