//! What the end of a session means for the next one, and when a thread that is told to stop may end.
//!
//! Invariants, once it is told to stop:
//! 1. It ends as [`Ended::Stopped`] only after a session that knew of the stop has captured everything, or has found that there is nothing to
//!    capture. What a session found that began before says nothing of what was committed until the stop.
//! 2. Whatever else a session ends with is tried again as long as there is somebody to upload what that finds. Who gives the time for stopping
//!    takes the uploader away when it is over. Only a database that is damaged is given up before, after [`DAMAGE_PATIENCE`].

use std::time::{Duration, Instant};

use super::{CaptureThread, Ended, FAILURES_COUNTED, RETRY};
use crate::capture::session::{self, SessionEnd};
use crate::status::{DiffReason, State};

/// For so long a database is read again, when the process stops, that SQLite takes for damaged: it may just be copied or replaced. What is
/// damaged stays so.
const DAMAGE_PATIENCE: Duration = Duration::from_secs(5);
/// For so long a database that was replaced is left alone: who puts a database in its place may put a WAL there next, and whoever had opened the database by then
/// would have made another WAL, and an index of that.
const SETTLE: Duration = Duration::from_secs(1);
/// Time between tries to get a moment in which the application lets us read.
const KEPT_OUT_RETRY: Duration = Duration::from_millis(25);

impl CaptureThread {
    pub(super) fn run_sessions(&mut self) -> Ended {
        let mut damaged_since: Option<Instant> = None;
        loop {
            let knew = self.stopping;
            let end = session::run(self);
            let parked = if let SessionEnd::Parked(mark) = end { Some(mark) } else { None };
            let is_stopped = matches!(end, SessionEnd::Stopped);
            let has_nothing = knew && matches!(end, SessionEnd::Wait(_));
            let is_damaged = knew && end.is_damage();
            if !(is_stopped || has_nothing) {
                self.handle_end(end);
            }
            if self.begin_again || self.is_state_gone() {
                return Ended::BeginAgain;
            }
            match parked {
                Some(mark) if !self.stopping => return Ended::Parked(mark),
                // It is to end: one more session captures what was committed since.
                Some(_) => continue,
                None => {}
            }
            if has_nothing {
                self.note_nothing();
            }
            if is_stopped || has_nothing {
                return Ended::Stopped;
            }
            damaged_since = is_damaged.then(|| damaged_since.unwrap_or_else(Instant::now));
            let is_hopeless = damaged_since.is_some_and(|since| since.elapsed() > DAMAGE_PATIENCE);
            if self.channels.out.is_closed() || is_hopeless {
                return Ended::Incomplete;
            }
        }
    }

    /// There is no database at the path. Where none was ever captured, nothing waits to be.
    fn note_nothing(&self) {
        self.status.update(|f| {
            if f.local.is_none() {
                f.pending_since = None;
            }
        });
    }

    /// Does what comes before the next session.
    fn handle_end(&mut self, end: SessionEnd) {
        // Sets `stopping` also where no session got as far as to look.
        self.take_messages();
        match end {
            SessionEnd::Stopped | SessionEnd::Parked(_) => {}
            SessionEnd::Reopen => self.pause(RETRY / 10),
            SessionEnd::Prepare(need) => {
                // A process that stops still takes its first snapshot, as long as there is somebody to take it.
                if let Err(end) = self.prepare(need) {
                    self.handle_end(end);
                }
            }
            SessionEnd::BeginAgain(text) => {
                self.begin_again = true;
                self.complain(&text);
                self.pause(RETRY * 4);
            }
            SessionEnd::Compare(reason, text) => {
                tracing::warn!(database = %self.config.path.display(), reason = reason.name(), "{text}: comparing all pages");
                self.doubt(reason);
                self.failures += 1;
                match reason {
                    DiffReason::Replaced => self.pause(SETTLE),
                    _ if self.failures > 1 => self.pause(RETRY),
                    _ => {}
                }
            }
            SessionEnd::Retry(reason) => {
                self.set_waiting(reason);
                self.pause(if self.stopping { KEPT_OUT_RETRY } else { RETRY });
            }
            SessionEnd::Wait(reason) => {
                self.set_waiting(reason);
                self.pause(RETRY);
            }
            SessionEnd::Failed(reason, text) => {
                self.doubt(reason);
                self.complain(&text);
                self.status.set_state(match reason {
                    DiffReason::LogFull => State::NeedsPageDiff { reason: text },
                    _ => State::Error { text },
                });
                self.pause(RETRY * 4 * (1 << self.failures.min(FAILURES_COUNTED)));
                self.failures += 1;
                self.wait_for_room();
            }
        }
    }

    /// Says in the status, and once in the log, what keeps us from capturing.
    pub(in crate::capture) fn set_waiting(&mut self, reason: String) {
        self.note_opened();
        let state = State::Waiting { reason };
        if self.status.figures().state != state
            && let State::Waiting { reason } = &state
        {
            tracing::warn!(database = %self.config.path.display(), "waiting: {reason}");
        }
        self.status.set_state(state);
    }

    /// Waits, taking in messages. A stop that comes meanwhile ends the wait, and once it is known no wait is long: not much time is left.
    pub(super) fn pause(&mut self, time: Duration) {
        let knew = self.stopping;
        let until = Instant::now() + if knew { time.min(RETRY) } else { time };
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| self.stopping == knew) {
            self.wait(left.min(RETRY));
            self.take_messages();
            if self.is_state_gone() {
                return;
            }
            if let Err(error) = self.pass_on() {
                tracing::debug!("pass on: {error:?}");
            }
        }
    }

    /// While the local log is full nothing can be recorded: waits until the store has taken half of it.
    fn wait_for_room(&mut self) {
        while !self.channels.out.is_closed()
            && !self.is_state_gone()
            && self.log_mut().is_some_and(|log| log.unsent_bytes() > 0)
            && self.is_log_full(2)
        {
            self.pause(RETRY);
        }
    }
}
