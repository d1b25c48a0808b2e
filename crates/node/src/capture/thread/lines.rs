//! Dealings with those who see commits in rollback mode, of this process and of one that was killed.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{CaptureThread, Known};
use crate::capture::backlog::{self, Backlog};
use crate::capture::commits::Listening;
use crate::capture::recorder::RecordError;
use crate::capture::rollback;
use crate::status::DiffReason;

impl CaptureThread {
    /// The line of the file at the path: where its commits come from, and where others ask for it. Who records from it makes sure that this
    /// is the file that is open.
    pub(in crate::capture) fn look_for_line(&mut self) {
        let Some(lines) = &self.channels.commits else { return };
        self.line = std::fs::metadata(&self.config.path).ok().map(|file| lines.of(file.ino()));
        if let (true, Some(line)) = (self.is_door_open, &self.line) {
            line.note_opened();
        }
    }

    /// Listens to the commits, where somebody sees them.
    pub(in crate::capture) fn listen_to_commits(&self) -> Option<Listening> {
        let line = Arc::clone(self.line.as_ref()?);
        let backlog = Backlog::open(&self.config.meta_path, self.writer.lineage, self.boot_id);
        let backlog = backlog.inspect_err(|error| {
            tracing::warn!(
                database = %self.config.path.display(),
                "commits are not kept for the case that this process is killed: {error}"
            );
        });
        Some(line.listen(self.channels.wake.clone(), backlog.ok()))
    }

    /// Whoever asks how far the log has come is to get an answer.
    pub(in crate::capture) fn tell_position(&self) {
        let Some(Known::Recorded(recorder)) = &self.known else { return };
        if let Some(line) = &self.line {
            line.note_captured(recorder.pos(), recorder.last_time());
        }
    }

    /// Whether those who want to open the database wait for us. Then nobody else rolls back what a dead writer has left.
    pub(in crate::capture) fn holds_door(&self) -> bool {
        self.channels.commits.is_some() && !self.is_door_open
    }

    /// Whoever waits for the database to be captured need not wait any more.
    pub(super) fn open_door(&mut self) {
        // Before the first session nobody knows which file it is.
        if let (false, Some(line)) = (self.is_door_open, &self.line) {
            line.note_opened();
            self.is_door_open = true;
        }
    }

    /// Records the commits of the backlog. What cannot be recorded is found by comparing all pages, as one restore point.
    pub(super) fn record_left_behind(&mut self) {
        let Some(Known::Recorded(recorder)) = &self.known else { return };
        let end = recorder.pos();
        let commits = match backlog::left_behind(&self.config.meta_path, self.writer.lineage, self.boot_id, end) {
            Ok(commits) if commits.is_empty() => return,
            Ok(commits) => commits,
            Err(error) => return self.complain(&format!("read the backlog: {error}")),
        };
        let mut recorded = Ok(true);
        for commit in &commits {
            recorded = rollback::record(self, commit, |_| ());
            if !matches!(recorded, Ok(true)) {
                break;
            }
        }
        // Where the log ends now is no place in a WAL.
        self.doubt(DiffReason::RollbackMode);
        let flushed = self.recorder().flush().and_then(|()| self.save_state(None));
        let (path, end) = (self.config.path.clone(), self.recorder().pos());
        match recorded.and_then(|_| flushed.map_err(RecordError::Log)) {
            Ok(()) => tracing::info!(
                database = %path.display(),
                commits = commits.len(),
                to = %end.txid,
                "recorded what was committed before the process was killed"
            ),
            Err(error) => self.complain(&format!("record the backlog: {error}")),
        }
        self.publish();
    }
}
