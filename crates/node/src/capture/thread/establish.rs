//! How the log comes to show what the database holds: by page diff, or by a snapshot when there is nothing to compare with.
//!
//! What takes as long as the store takes is never done while a transaction on the user's database is open: it would keep the
//! WAL from being reset, and in rollback mode the application from committing. Such a session ends with
//! [`SessionEnd::Prepare`], [`CaptureThread::prepare`] does the waiting, and the next session finds everything at hand. Only the
//! pieces of a snapshot are sent from within a read transaction of WAL mode.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::{Checksum, Pos, Timestamp, Txid};

use super::{CaptureThread, FAILURES_COUNTED, Known, RETRY, SnapshotAnswer, TableError, ToCapture, ToUploader};
use crate::capture::handle::{Handle, HandleError};
use crate::capture::recorder::{RecordError, Recorder};
use crate::capture::restart::SPOOL_FILE;
use crate::capture::session::{Moment, Need, SessionEnd};
use crate::capture::snapshot::{self, PIECE_BYTES, SnapshotError, SnapshotSummary};
use crate::capture::table::PageTable;
use crate::capture::view::View;
use crate::status::{DiffReason, State};
use crate::time;

/// Space in bytes that is left to the application when a snapshot is written beside its database.
const SPOOL_RESERVE: u64 = 64 << 20;
/// How often the uploader is listened to.
const LISTEN: Duration = Duration::from_millis(100);

/// A snapshot that lies in the state folder.
#[derive(Debug)]
pub(super) struct Spooled {
    summary: SnapshotSummary,
    table: PageTable,
    file: SpoolFile,
}

/// Why the database file is not what the log ends with.
enum Unlike {
    Page,
    Unread(HandleError),
}

impl From<HandleError> for Unlike {
    fn from(error: HandleError) -> Self {
        Self::Unread(error)
    }
}

/// The file of a spooled snapshot, which goes when this does.
#[derive(Debug)]
struct SpoolFile(PathBuf);

impl Drop for SpoolFile {
    fn drop(&mut self) {
        // What stays is written over by the next one.
        let _ = fs::remove_file(&self.0);
    }
}

impl CaptureThread {
    /// Brings the log to what `view` shows. A snapshot of a view that blocks the application is only spooled:
    /// [`CaptureThread::send_spooled`] must follow.
    pub(in crate::capture) fn establish(&mut self, view: &View<'_>) -> Result<(), SessionEnd> {
        if let Some(Known::Position { pos, .. }) = &self.known {
            let (pos, table) = (*pos, self.table_of(*pos, view)?);
            self.know_table(pos, Some(table));
        }
        let same_size = matches!(&self.known, Some(Known::Recorded(r)) if r.table().page_size() == view.page_size());
        if !same_size || self.snapshot_wanted {
            return self.take_snapshot(view);
        }
        let reason = self.doubt.unwrap_or(DiffReason::WalReset);
        let recorder = self.recorder();
        let before = recorder.pos();
        let compared = recorder.diff(view, view.page_count(), time::now());
        recorder.flush().map_err(RecordError::Log)?;
        match compared {
            Err(RecordError::TooLarge) => return self.take_snapshot(view),
            other => other?,
        };
        let changed = self.recorder().pos() != before;
        let path = self.config.path.display();
        if reason == DiffReason::RollbackMode {
            // Its way to see commits, and no event.
            tracing::debug!(database = %path, reason = reason.name(), changed, "compared all pages");
        } else {
            tracing::info!(database = %path, reason = reason.name(), changed, "compared all pages");
        }
        self.status.update(|f| f.page_diff(reason));
        self.abort_snapshot();
        self.doubt = None;
        self.failures = 0;
        self.publish();
        Ok(())
    }

    /// Whether the database file, without the WAL, is what the log ends with. Then the frames of the WAL are the transactions after it, one by one, whoever has begun the
    /// WAL anew while nobody looked, and no page needs to be compared. The caller holds a read transaction.
    pub(in crate::capture) fn is_followed_by_wal(
        &mut self,
        handle: &Handle,
        moment: &Moment,
    ) -> Result<bool, SessionEnd> {
        let Some(Known::Recorded(recorder)) = self.known.as_ref().filter(|_| !self.snapshot_wanted) else {
            return Ok(false);
        };
        let table = recorder.table();
        // Of frames that are in the file already nobody can tell what it was before. What led to no transaction once would do so again.
        let may_be = moment.max_frame > 0
            && moment.backfill == 0
            && table.page_size() == moment.page_size
            && !matches!(self.doubt, Some(DiffReason::Chain | DiffReason::Promise));
        if !may_be {
            return Ok(false);
        }
        let below = Moment { page_count: table.page_count(), max_frame: 0, ..*moment };
        let compared = below.view(handle)?.each_page(|pgno, data| {
            let is_same = table.get(pgno) == Some(Checksum::of_page(pgno, data));
            if is_same { Ok(()) } else { Err(Unlike::Page) }
        });
        match compared {
            Ok(()) => {}
            Err(Unlike::Page) => return Ok(false),
            Err(Unlike::Unread(error)) => {
                // It may be shorter; what is wrong with it otherwise the comparison says.
                tracing::debug!(database = %self.config.path.display(), "{error}");
                return Ok(false);
            }
        }
        tracing::info!(
            database = %self.config.path.display(),
            frames = moment.max_frame,
            "the WAL was begun anew: going on with its first frame"
        );
        self.abort_snapshot();
        self.doubt = None;
        self.failures = 0;
        self.publish();
        Ok(true)
    }

    /// Gets what a session asked for, for as long as that takes; ends earlier when the uploader is gone.
    pub(super) fn prepare(&mut self, need: Need) -> Result<(), SessionEnd> {
        // What is here and not in the store must be there first.
        self.seal_and_send_all()?;
        match need {
            Need::Table => self.fetch_table(),
            Need::Snapshot => self.begin_snapshot(),
        }
    }

    /// The table of `pos`, when the database itself gives it: then its checksum is the same.
    fn table_of(&mut self, pos: Pos, view: &View<'_>) -> Result<PageTable, SessionEnd> {
        let mut table = PageTable::empty(view.page_size());
        view.each_page(|pgno, data| -> Result<(), SessionEnd> {
            table.set(pgno, Checksum::of_page(pgno, data));
            Ok(())
        })?;
        table.set_page_count(view.page_count());
        if table.checksum() == pos.checksum { Ok(table) } else { Err(SessionEnd::Prepare(Need::Table)) }
    }

    /// Reads the table of the log's end from the store. When what the store holds is damaged only a new snapshot helps.
    fn fetch_table(&mut self) -> Result<(), SessionEnd> {
        let Some(Known::Position { pos, .. }) = &self.known else { return Ok(()) };
        let pos = *pos;
        tracing::info!(database = %self.config.path.display(), "the database differs from the store: reading page checksums from there");
        match (self.channels.tables)(pos) {
            Ok(table) if table.checksum() == pos.checksum => self.know_table(pos, Some(table)),
            Ok(_) => return Err(SessionEnd::BeginAgain("the store's log has moved on".to_owned())),
            Err(TableError::Passing(text)) => return Err(SessionEnd::Failed(DiffReason::StateMissing, text)),
            Err(TableError::Damaged(text)) => {
                self.complain(&format!("{text}: a new snapshot is taken, earlier restore points may be lost"));
                self.know_table(pos, None);
            }
        }
        Ok(())
    }

    /// Takes in the table of a position, or that there is none.
    fn know_table(&mut self, pos: Pos, table: Option<PageTable>) {
        let Some(Known::Position { log, .. }) = self.known.take() else {
            unreachable!("only a position lacks its table")
        };
        self.known = Some(match table {
            Some(table) => Known::Recorded(Box::new(Recorder::new(table, pos, log, &self.config))),
            None => Known::Fresh { last: Some(pos.txid), log },
        });
    }

    /// The time, but never one before that of the last transaction.
    fn now(&mut self) -> Timestamp {
        let last = self.log_mut().and_then(|log| log.last_time());
        time::now().max(last.unwrap_or(Timestamp(0)))
    }

    /// The TXID of the next snapshot.
    fn snapshot_txid(&self) -> Txid {
        let last = match self.known.as_ref() {
            Some(Known::Fresh { last, .. }) => *last,
            Some(Known::Recorded(recorder)) => Some(recorder.pos().txid),
            Some(Known::Position { pos, .. }) => Some(pos.txid),
            None => panic!("known is only taken to be replaced"),
        };
        last.map_or(Txid::FIRST, Txid::next)
    }

    /// Waits until the store is ready to take a snapshot, however often it must be asked. Goes on while the process stops, until
    /// the uploader is gone: without its snapshot a backup is worth nothing.
    fn begin_snapshot(&mut self) -> Result<(), SessionEnd> {
        self.status.set_state(State::Snapshotting);
        let txid = self.snapshot_txid();
        let mut tries = 0;
        while !self.is_state_gone() {
            self.snapshot_attempt += 1;
            if self.channels.out.blocking_send(ToUploader::SnapshotBegin(txid, self.snapshot_attempt)).is_err() {
                return Ok(());
            }
            match self.listen() {
                Some(SnapshotAnswer::Ready) => {
                    self.snapshot_begun = Some(txid);
                    return Ok(());
                }
                Some(SnapshotAnswer::Named(text)) => return Err(SessionEnd::BeginAgain(text)),
                Some(SnapshotAnswer::Failed(text)) => {
                    self.complain(&format!("begin a snapshot: {text}"));
                    std::thread::sleep(LISTEN);
                    self.pause(RETRY * (1 << tries));
                    tries = FAILURES_COUNTED.min(tries + 1);
                }
                Some(SnapshotAnswer::Stored) | None => return Ok(()),
            }
        }
        Ok(())
    }

    fn take_snapshot(&mut self, view: &View<'_>) -> Result<(), SessionEnd> {
        let txid = self.snapshot_txid();
        if self.has_unsent() || self.snapshot_begun != Some(txid) {
            self.abort_snapshot();
            return Err(SessionEnd::Prepare(Need::Snapshot));
        }
        self.status.set_state(State::Snapshotting);
        if view.is_blocking() {
            return self.spool_snapshot(view, txid);
        }
        let out = self.channels.out.clone();
        let (time, attempt) = (self.now(), self.snapshot_attempt);
        let mut heard = Vec::new();
        let sink = |piece| {
            heard.extend(self.channels.messages.try_iter());
            let failed = heard.iter().any(|m| matches!(m, ToCapture::Snapshot(number, _) if *number == attempt));
            !failed && out.blocking_send(ToUploader::SnapshotPiece(piece)).is_ok()
        };
        let written = snapshot::write(view, txid, time, sink);
        self.snapshot_begun = None;
        for message in heard {
            if let Some(SnapshotAnswer::Failed(text)) = self.hear(message) {
                return Err(snapshot_failed(&text));
            }
        }
        match written {
            Ok((summary, table)) => self.end_snapshot(summary, table),
            Err(SnapshotError::Cancelled) => Err(SessionEnd::Reopen),
            Err(SnapshotError::Database(error)) => {
                // The uploader may be gone as well: then nothing is left to abort.
                let _ = out.blocking_send(ToUploader::SnapshotAbort);
                Err(error.into())
            }
        }
    }

    /// Writes a snapshot to the state folder, as fast as the disk takes it.
    fn spool_snapshot(&mut self, view: &View<'_>, txid: Txid) -> Result<(), SessionEnd> {
        let (path, time) = (self.config.meta_path.join(SPOOL_FILE), self.now());
        let bytes = u64::from(view.page_count().get()) * view.page_size().bytes() as u64;
        if self.free_bytes().is_some_and(|free| free < bytes + SPOOL_RESERVE) {
            let text = format!(
                "a snapshot in rollback journal mode is first written to {}, where less than {} MiB are free: move the state \
                 folder (meta-path), or switch the database to WAL mode",
                path.display(),
                (bytes + SPOOL_RESERVE) >> 20
            );
            return Err(SessionEnd::Failed(DiffReason::LogFull, text));
        }
        let mut file = File::create(&path).map_err(RecordError::Log)?;
        let spool_file = SpoolFile(path);
        let mut failed = None;
        let sink = |piece: Bytes| file.write_all(&piece).map_err(|error| failed = Some(error)).is_ok();
        let written = snapshot::write(view, txid, time, sink);
        match (written, failed) {
            (_, Some(error)) => Err(RecordError::Log(error).into()),
            (Ok((summary, table)), None) => {
                self.spooled = Some(Spooled { summary, table, file: spool_file });
                Ok(())
            }
            (Err(SnapshotError::Database(error)), None) => Err(error.into()),
            (Err(SnapshotError::Cancelled), None) => unreachable!("only a failed write cancels"),
        }
    }

    /// Whether a snapshot waits to be sent: what the log leads on from is not known before.
    pub(in crate::capture) fn has_spooled(&self) -> bool {
        self.spooled.is_some()
    }

    /// Space that is free where the state folder lies, in bytes, where the system tells.
    fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.config.meta_path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Sends the snapshot that [`CaptureThread::establish`] has spooled, if it has.
    pub(in crate::capture) fn send_spooled(&mut self) -> Result<(), SessionEnd> {
        let Some(Spooled { summary, table, file }) = self.spooled.take() else { return Ok(()) };
        self.snapshot_begun = None;
        let mut source = File::open(&file.0).map_err(RecordError::Log)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = io::copy(&mut (&mut source).take(PIECE_BYTES as u64), &mut piece).map_err(RecordError::Log)?;
            if read == 0 {
                break;
            }
            while let Ok(message) = self.channels.messages.try_recv() {
                if let Some(SnapshotAnswer::Failed(text)) = self.hear(message) {
                    return Err(snapshot_failed(&text));
                }
            }
            if self.channels.out.blocking_send(ToUploader::SnapshotPiece(Bytes::from(piece))).is_err() {
                return Err(SessionEnd::Reopen);
            }
        }
        self.end_snapshot(summary, table)
    }

    /// After the last piece: waits until the store has the snapshot, which the log then goes on from.
    fn end_snapshot(&mut self, summary: SnapshotSummary, table: PageTable) -> Result<(), SessionEnd> {
        // From here on it may have got there, whatever is said: only the store knows.
        let sent = self.channels.out.blocking_send(ToUploader::SnapshotEnd(summary.clone())).is_ok();
        match sent.then(|| self.listen()).flatten() {
            Some(SnapshotAnswer::Stored) => {}
            Some(SnapshotAnswer::Failed(text) | SnapshotAnswer::Named(text)) => return Err(snapshot_failed(&text)),
            Some(SnapshotAnswer::Ready) => return Err(snapshot_failed("it was answered out of order")),
            None => return Err(snapshot_failed("nobody uploads any more")),
        }
        let log = match self.known.take() {
            Some(Known::Fresh { log, .. } | Known::Position { log, .. }) => log,
            Some(Known::Recorded(recorder)) => recorder.log,
            None => panic!("known is only taken to be replaced"),
        };
        let mut recorder = Recorder::new(table, summary.pos, log, &self.config);
        recorder.not_before(summary.time);
        self.known = Some(Known::Recorded(Box::new(recorder)));
        self.durable = Some(summary.pos);
        self.snapshot_wanted = false;
        self.doubt = None;
        self.failures = 0;
        self.save_table().map_err(RecordError::Log)?;
        self.publish();
        Ok(())
    }

    /// Gives up a snapshot that the store waits for.
    fn abort_snapshot(&mut self) {
        if self.snapshot_begun.take().is_some() {
            // The uploader may be gone: then nothing is left to abort.
            let _ = self.channels.out.blocking_send(ToUploader::SnapshotAbort);
        }
    }

    /// Waits for the uploader's answer about a snapshot. `None` when the uploader is gone.
    ///
    /// A stop does not end the wait: the snapshot is what makes the backup usable, and may still get there within the time for
    /// stopping.
    fn listen(&mut self) -> Option<SnapshotAnswer> {
        loop {
            match self.channels.messages.recv_timeout(LISTEN) {
                Ok(message) => {
                    if let Some(answer) = self.hear(message) {
                        return Some(answer);
                    }
                }
                Err(RecvTimeoutError::Timeout) if !self.channels.out.is_closed() => {}
                Err(_) => return None,
            }
        }
    }

    /// Takes a message in while a snapshot is under way. Answers to earlier attempts say nothing.
    fn hear(&mut self, message: ToCapture) -> Option<SnapshotAnswer> {
        match message {
            ToCapture::Snapshot(attempt, answer) if attempt == self.snapshot_attempt => return Some(answer),
            ToCapture::Snapshot(..) => {}
            ToCapture::Uploaded(seq) => self.note_uploaded(seq),
            ToCapture::Stop => self.stopping = true,
            ToCapture::TakeSnapshot => self.snapshot_wanted = true,
            ToCapture::Sync(sync) => self.syncs.push(sync),
        }
        None
    }
}

fn snapshot_failed(text: &str) -> SessionEnd {
    SessionEnd::BeginAgain(format!("upload the snapshot: {text}"))
}
