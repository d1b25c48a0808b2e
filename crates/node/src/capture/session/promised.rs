//! Transactions that are captured before they are committed, because somebody waits for them ([`crate::capture::gate`]).

use std::time::Duration;

use rhyolite_format::sqlite::wal_index::WalIndexHeader;
use rhyolite_logic::tail::{self, Live, Promised, Step};

use super::{SessionEnd, WalSession};
use crate::capture::promise::{self, Pending};
use crate::capture::recorder::RecordError;
use crate::capture::thread::CaptureThread;
use crate::status::DiffReason;

impl WalSession {
    /// Finds out what became of the promised transaction. `false` while nobody knows.
    pub(super) fn settle_promise(&mut self, thread: &mut CaptureThread, live: Live) -> Result<bool, SessionEnd> {
        let Some(pending) = &self.pending else { return Ok(true) };
        match pending.look(&self.pinned, live)? {
            Promised::Open => Ok(false),
            Promised::Kept => {
                self.captured = pending.captured();
                self.pending = None;
                self.has_kept = true;
                self.save_state(thread)?;
                Ok(true)
            }
            Promised::Broken => Err(broken_promise()),
        }
    }

    /// Captures the transaction that is about to be committed, if somebody waits for that.
    pub(super) fn capture_promised(&mut self, thread: &mut CaptureThread) -> Result<bool, SessionEnd> {
        self.ask_for_promised(thread)?;
        let waiting = thread.take_tickets();
        if waiting.is_empty() {
            return Ok(false);
        }
        // Two looks at most: whoever waits in the middle of a commit keeps others from committing.
        self.capture_frames(thread)?;
        let index = self.live_index()?.filter(|index| self.is_captured(&index.header));
        let Some(index) = index else {
            thread.put_back(waiting);
            return Ok(false);
        };
        let found = promise::find(&self.pinned, &index.header, self.captured, self.page_size)?;
        let mut captured = false;
        match (&self.pending, found) {
            // Synced once more.
            (Some(pending), Some((_, again))) if pending.is_same(&again) => {}
            (Some(_), _) => {
                thread.put_back(waiting);
                return Err(broken_promise());
            }
            (None, Some((run, pending))) if self.is_being_written(thread)? => {
                self.record(thread, run)?;
                self.pending = Some(pending);
                thread.save_state(None).map_err(RecordError::Log)?;
                captured = true;
            }
            // Only a checkpoint has synced, and what it has found is left over from a transaction that failed, if it has found anything.
            (None, _) => {}
        }
        thread.hold(waiting.into_iter().map(|sync| sync.ticket));
        Ok(captured)
    }

    /// Whether somebody is within a transaction: nobody else can get the write lock then.
    fn is_being_written(&self, thread: &CaptureThread) -> Result<bool, SessionEnd> {
        self.free.set_busy_timeout(Duration::ZERO)?;
        let locked = self.free.begin_immediate(Duration::ZERO);
        self.free.set_busy_timeout(thread.config.busy_timeout)?;
        if locked.is_ok() {
            self.free.end_read();
        }
        Ok(locked.is_err())
    }

    /// A checkpoint where commits wait for us: only under the write lock, which nobody has who waits. Otherwise the application's own checkpoints get
    /// further, at least. `false` when it has to wait.
    pub(super) fn checkpoint_gated(&mut self, thread: &mut CaptureThread) -> Result<bool, SessionEnd> {
        self.pin_again(thread)?;
        if self.pending.is_some() || thread.is_waited_for() {
            return Ok(false);
        }
        self.checkpoint_locked(thread)?;
        Ok(true)
    }

    /// Whether everything is captured that this header counts.
    fn is_captured(&self, header: &WalIndexHeader) -> bool {
        let live = Live { salt: header.salt, max_frame: header.max_frame };
        tail::next_step(self.captured, live) == Step::Nothing
    }

    /// A promised transaction whose writer has died, or was told that it failed, is none: when the write lock is free, nobody is about to commit it.
    fn ask_for_promised(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        if !self.pending.as_mut().is_some_and(Pending::is_due) {
            return Ok(());
        }
        self.free.set_busy_timeout(Duration::ZERO)?;
        let locked = self.free.begin_immediate(Duration::ZERO);
        self.free.set_busy_timeout(thread.config.busy_timeout)?;
        if locked.is_err() {
            return Ok(());
        }
        let captured = self.capture_frames(thread);
        self.free.end_read();
        captured?;
        if self.pending.is_some() { Err(broken_promise()) } else { Ok(()) }
    }
}

fn broken_promise() -> SessionEnd {
    let text =
        "a transaction that was captured before its end was not committed: its writer died, or was told of an error";
    SessionEnd::Compare(DiffReason::Promise, text.to_owned())
}
