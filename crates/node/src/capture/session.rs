//! One session with one database: from opening it to the moment when it must be opened again, or the end.
//!
//! ```text
//!   open ──► establish ──────────► follow ──► checkpoint, seal, wait ─┐
//!              │ same WAL, nothing lost: go on    ▲                  │
//!              │ doubt: page diff                 └──────────────────┘
//!              └ nothing in the log yet, or another page size: snapshot
//! ```
//!
//! In WAL mode a read transaction is held from `establish` to the end of the session, by one of two connections in turn (see
//! `logic::tail` for why nothing is missed). In rollback mode none is held between looks: it would keep the application from
//! committing.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::sqlite::wal::{FRAME_HEADER_SIZE, Salt, frame_offset, frame_size};
use rhyolite_format::sqlite::wal_index::WalIndex;
use rhyolite_format::state::WalPosition;
use rhyolite_format::state::parked::DatabaseMark;
use rhyolite_format::{PageCount, PageSize};
use rhyolite_logic::tail::{self, Captured, Checkpoint, CheckpointPolicy, Live, Step, WalUse};

use super::frames::{FrameReader, FrameRun};
use super::handle::{CheckpointResult, Handle, HandleError};
use super::promise::Pending;
use super::recorder::RecordError;
use super::rollback;
use super::thread::{CaptureThread, Stop};
use super::view::View;
use super::watch::{FileWatch, NamedFile};
use crate::status::{self, DiffReason, State};
use crate::time;

mod load;
mod nap;
mod promised;

use load::Load;
use nap::NAP;
pub(super) use nap::NAP_UNWATCHED;

/// Longest wait for the write lock before a checkpoint is put off.
const WRITE_LOCK_WAIT: Duration = Duration::from_millis(4);
/// The same where its holder may be waiting for us.
const WRITE_LOCK_WAIT_GATED: Duration = Duration::from_millis(1);
/// Further checkpoints without the lock before one under it, while more frames than these are left to copy.
const PREPARATIONS: usize = 2;
const FRAMES_UNDER_LOCK: u32 = 32;
/// With more frames left than these, and than an eighth of the WAL, the lock is not taken.
const FRAMES_UNDER_LOCK_MAX: u32 = 2000;
/// Longest wait, under the write lock, for the end of a checkpoint of the application's.
const CHECKPOINTER_WAIT: Duration = Duration::from_millis(5);
const CHECKPOINTER_NAP: Duration = Duration::from_micros(100);
/// Longest time for which a wal-index may be unreadable before SQLite is asked to recover it.
const INDEX_WAIT_MAX: Duration = Duration::from_millis(500);
/// Time without a commit after which a database counts as idle.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(2);
/// Shortest and longest time between checkpoints: the longest where readers keep them from completing.
const CHECKPOINT_GAP: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(1));
/// Shortest time between attempts to park the database.
pub(super) const PARK_GAP: Duration = Duration::from_millis(500);
/// Shortest time between attempts to leave the first read mark, which another reader may hold for long.
const FIRST_MARK_GAP: Duration = Duration::from_millis(20);
/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The process is stopping, and everything is captured.
    Stopped,
    /// The database is at rest, with everything captured and durable. Its files look like this.
    Parked(DatabaseMark),
    /// Open again and compare all pages, because of this.
    Compare(DiffReason, String),
    /// Open again; nothing was lost.
    Reopen,
    /// Get this from the store, or bring it there, while no transaction is open; then open again.
    Prepare(Need),
    /// Ask the store again how far its log goes, because of this.
    BeginAgain(String),
    /// There is nothing to open, hence nothing to capture. Try again later.
    Wait(String),
    /// The application is at work in a way that keeps us out. Try again soon.
    Retry(String),
    /// Something failed. Try again later, then compare.
    Failed(DiffReason, String),
}

impl SessionEnd {
    /// SQLite takes the file for damaged, or for no database.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Failed(DiffReason::Replaced, _))
    }
}

impl From<HandleError> for SessionEnd {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Missing => Self::Wait("the database file does not exist".to_owned()),
            HandleError::Busy => {
                Self::Retry("the database is locked by another connection (locking_mode=EXCLUSIVE?)".to_owned())
            }
            HandleError::Changed => Self::Retry("the database is being written".to_owned()),
            HandleError::HotJournal => Self::Retry(
                "a writer died within a transaction, which the application's next connection rolls back".to_owned(),
            ),
            HandleError::NotADatabase(text) => Self::Failed(DiffReason::Replaced, text),
            HandleError::Sqlite(text) => Self::Failed(DiffReason::Chain, text),
        }
    }
}

impl From<RecordError> for SessionEnd {
    fn from(error: RecordError) -> Self {
        let text = error.to_string();
        match error {
            RecordError::Database(HandleError::Sqlite(_)) => Self::Compare(DiffReason::Chain, text),
            RecordError::Database(error) => error.into(),
            RecordError::Log(_) | RecordError::TooLarge => Self::Failed(DiffReason::LogFull, text),
        }
    }
}

/// What the database looks like at one moment, with a read transaction open since before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) page_size: PageSize,
    pub(super) page_count: PageCount,
    pub(super) salt: Salt,
    pub(super) max_frame: u32,
    /// Frames in the database file, as of a time when this was the header.
    pub(super) backfill: u32,
}

impl Moment {
    pub(super) fn view<'h>(&self, handle: &'h Handle) -> Result<View<'h>, HandleError> {
        View::after_frame(handle, self.page_size, self.page_count, self.salt, self.max_frame, self.backfill)
    }
}

/// What a session cannot go on without, and takes as long as the store takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// The page table of the log's end, which the database itself does not give.
    Table,
    /// The store has everything before a snapshot, and is ready to take it.
    Snapshot,
}

/// Runs one session.
pub(super) fn run(thread: &mut CaptureThread) -> SessionEnd {
    match open(thread) {
        Ok(end) | Err(end) => end,
    }
}

fn open(thread: &mut CaptureThread) -> Result<SessionEnd, SessionEnd> {
    let path = thread.config.path.clone();
    let file = match std::fs::metadata(&path) {
        Ok(file) => file,
        // Links in a circle lead to no file either.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            return Err(HandleError::Missing.into());
        }
        // Nobody knows what is there.
        Err(error) => return Err(SessionEnd::Retry(format!("the database file cannot be looked at: {error}"))),
    };
    thread.look_for_line();
    if file.len() == 0 {
        // SQLite takes a WAL beside an empty file for one that was left over.
        return Err(SessionEnd::Wait("the database is empty: nothing was ever committed".to_owned()));
    }
    if thread.holds_door() && super::watch::beside(&path, "-journal").exists() {
        Handle::roll_back(&path, file.ino(), thread.config.busy_timeout)?;
    }
    let handle = Handle::open(&path, thread.config.busy_timeout)?;
    if !handle.is_wal()? && thread.config.enable_wal && Handle::switch_to_wal(&path, thread.config.busy_timeout)? {
        return Ok(SessionEnd::Reopen);
    }
    if handle.is_wal()? {
        let other = Handle::open(&path, thread.config.busy_timeout)?;
        WalSession::begin(thread, handle, other)?.follow(thread)
    } else {
        rollback::follow(thread, &handle)
    }
}

/// A session with a database in WAL mode.
#[derive(Debug)]
struct WalSession {
    /// The connection that holds the read transaction.
    pinned: Handle,
    /// The connection that is free.
    free: Handle,
    page_size: PageSize,
    captured: Captured,
    /// The log ends with a transaction that is not committed yet, as far as is known.
    pending: Option<Pending>,
    /// Such a one was committed since the last look.
    has_kept: bool,
    reader: FrameReader,
    policy: CheckpointPolicy,
    /// The last look found a commit at this time.
    active: Instant,
    has_captured: bool,
    /// The last time that it was tried to park the database.
    tried_to_park: Option<Instant>,
    looked_safely: Instant,
    named: NamedFile,
    checkpointed: Instant,
    /// The wal-index has been unreadable since.
    unreadable: Option<Instant>,
    /// The pinned transaction may hold read mark 0, which keeps every checkpoint from working once there are new frames.
    maybe_on_mark_zero: bool,
    /// Bytes of WAL that the last look captured.
    recent_bytes: u64,
    /// Since the last commit no checkpoint was due any more.
    rested: bool,
    /// The first read mark at the last look, and when the read transaction last passed on because of it.
    first_mark: u32,
    gave_way: Instant,
    /// Least time until the next checkpoint; grows while readers keep checkpoints from completing.
    checkpoint_gap: Duration,
    watch: Option<FileWatch>,
    load: Load,
}

/// What a look at the wal-index found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing that can be believed: a writer is changing the header, or died while it did.
    Unreadable,
    /// Nothing was committed since the last look.
    Nothing,
    /// Commits, which are captured.
    Frames,
}

/// How much of the WAL is in the database file.
#[derive(Clone, Copy, Debug, Default)]
struct Backfill {
    frames: u32,
    done: u32,
}

impl Backfill {
    /// Committed frames that are not in the database file.
    fn left(&self) -> u32 {
        self.frames.saturating_sub(self.done)
    }
}

impl WalSession {
    fn begin(thread: &mut CaptureThread, pinned: Handle, free: Handle) -> Result<Self, SessionEnd> {
        pinned.begin_read()?;
        let moment = first_moment(&pinned)?;
        let captured = Captured { salt: moment.salt, frame: moment.max_frame };
        let captured = match thread.continues(&pinned, &moment) {
            Some(frame) => Captured { frame, ..captured },
            None if thread.is_followed_by_wal(&pinned, &moment)? => Captured { frame: 0, ..captured },
            None => {
                thread.establish(&moment.view(&pinned)?)?;
                captured
            }
        };
        let config = &thread.config.checkpoint;
        let frame_bytes = frame_size(moment.page_size) as u64;
        let policy = CheckpointPolicy {
            due_bytes: u64::from(config.pages_min) * frame_bytes,
            truncate_bytes: u64::from(config.truncate_pages) * frame_bytes,
        };
        let now = Instant::now();
        let session = Self {
            pinned,
            free,
            page_size: moment.page_size,
            captured,
            pending: None,
            has_kept: false,
            reader: FrameReader::default(),
            policy,
            active: now,
            has_captured: false,
            tried_to_park: None,
            looked_safely: now,
            named: NamedFile::at(&thread.config.path),
            checkpointed: now,
            unreadable: None,
            maybe_on_mark_zero: true,
            recent_bytes: 0,
            rested: false,
            first_mark: 0,
            gave_way: now,
            checkpoint_gap: CHECKPOINT_GAP.0,
            watch: None,
            load: Load::new(),
        };
        session.save_state(thread)?;
        thread.status.set_state(State::Replicating);
        // Where the log's end is that of the WAL nothing is recorded now, and nobody would be told until the next commit.
        thread.tell_position();
        thread.note_opened();
        thread.close_gate();
        Ok(session)
    }

    fn follow(mut self, thread: &mut CaptureThread) -> Result<SessionEnd, SessionEnd> {
        let ended = self.follow_to_the_end(thread);
        if self.pending.is_some() {
            // The log ends with what the database may not hold.
            thread.doubt(DiffReason::Promise);
            // The next session may take it back before they are told.
            thread.give_up_held();
        }
        ended
    }

    fn follow_to_the_end(&mut self, thread: &mut CaptureThread) -> Result<SessionEnd, SessionEnd> {
        loop {
            let stop = thread.take_messages();
            let mut captured = self.capture(thread)?;
            if thread.is_gated() {
                // Right after a commit nobody has the write lock, and nobody waits for us.
                self.checkpoint_if_due(thread)?;
                captured |= self.capture_promised(thread)?;
            }
            if captured {
                self.active = Instant::now();
                self.has_captured = true;
                self.watch = None;
                self.rested = false;
            }
            match stop {
                // What was committed before the one that is under way is captured as soon as the header can be read.
                Some(Stop::Shutdown)
                    if (self.unreadable.is_some() || self.pending.is_some()) && !thread.is_uploader_gone() =>
                {
                    thread.pass_on()?;
                    thread.wait(NAP.0);
                    continue;
                }
                Some(Stop::Shutdown) => {
                    self.save_state(thread)?;
                    // What was committed to other files at the path is captured by another session.
                    self.look_at_names(thread)?;
                    return Ok(SessionEnd::Stopped);
                }
                Some(Stop::LogFull) => {
                    let text = "the local log has reached its cap (max-log-size)".to_owned();
                    return Ok(SessionEnd::Failed(DiffReason::LogFull, text));
                }
                Some(Stop::Snapshot) => return Ok(SessionEnd::Prepare(Need::Snapshot)),
                None => {}
            }
            thread.pass_on()?;
            self.checkpoint_if_due(thread)?;
            self.look_safely(thread)?;
            if let Some(mark) = self.mark_at_rest(thread)? {
                return Ok(SessionEnd::Parked(mark));
            }
            self.nap(thread);
        }
    }

    /// Captures what was committed since the last look. `false` when nothing was.
    fn capture(&mut self, thread: &mut CaptureThread) -> Result<bool, SessionEnd> {
        self.recent_bytes = 0;
        let captured = (self.capture_frames(thread)? == Look::Frames) | std::mem::take(&mut self.has_kept);
        if captured && (self.maybe_on_mark_zero || self.is_on_first_mark()?) {
            self.pin_again(thread)?;
        }
        Ok(captured)
    }

    /// Whether we seem to hold the first read mark, which every transaction of a writer then tries to move in vain: a twelfth of
    /// its time. A writer that can, moves it with every commit. While we hold it, the next read transaction gets another.
    fn is_on_first_mark(&mut self) -> Result<bool, SessionEnd> {
        let Some(index) = self.pinned.wal_index()? else { return Ok(false) };
        let before = std::mem::replace(&mut self.first_mark, index.checkpoint.read_marks[1]);
        let stands_still = before == self.first_mark && self.first_mark < index.header.max_frame;
        if !stands_still || self.gave_way.elapsed() < FIRST_MARK_GAP {
            return Ok(false);
        }
        self.gave_way = Instant::now();
        Ok(true)
    }

    fn capture_frames(&mut self, thread: &mut CaptureThread) -> Result<Look, SessionEnd> {
        let Some(index) = self.live_index()? else { return Ok(Look::Unreadable) };
        let live = Live { salt: index.header.salt, max_frame: index.header.max_frame };
        if !self.settle_promise(thread, live)? {
            return Ok(Look::Nothing);
        }
        let step = tail::next_step(self.captured, live);
        if matches!(step, Step::Frames { .. }) && !self.is_captured_frame_there(thread)? {
            let text = "the WAL has other frames than were captured".to_owned();
            return Err(SessionEnd::Compare(DiffReason::WalReset, text));
        }
        let (first, last) = match step {
            Step::Nothing => return Ok(Look::Nothing),
            Step::Frames { first, last } => (first, last),
            Step::Restarted { last } => (1, last),
            Step::Doubt(doubt) => {
                return Err(SessionEnd::Compare(
                    DiffReason::WalReset,
                    format!("the WAL lost committed frames ({doubt:?})"),
                ));
            }
        };
        let before = thread.recorder().pos().txid;
        self.record(thread, FrameRun { salt: live.salt, page_size: self.page_size, first, last })?;
        thread.note_ungated(before);
        self.captured = Captured { salt: live.salt, frame: last };
        self.save_state(thread)?;
        Ok(Look::Frames)
    }

    /// Whether the last captured frame is still what it was: a recovery may drop committed frames whose checksums are wrong
    /// (SQLite 3.40 to 3.46 write some), and others then take their place in the same generation.
    fn is_captured_frame_there(&self, thread: &CaptureThread) -> Result<bool, SessionEnd> {
        let Some(position) = thread.position().filter(|p| p.frame == self.captured.frame) else { return Ok(true) };
        let mut header = [0; FRAME_HEADER_SIZE];
        let there = self.pinned.read_wal(&mut header, frame_offset(position.frame, self.page_size))?;
        Ok(there && header == position.frame_header)
    }

    fn record(&mut self, thread: &mut CaptureThread, run: FrameRun) -> Result<(), SessionEnd> {
        let bytes = u64::from(run.last - run.first + 1) * frame_size(self.page_size) as u64;
        let recorder = thread.recorder();
        recorder.packing = self.load.packing(bytes);
        self.recent_bytes += bytes;
        let recorded = self.reader.record(&self.pinned, recorder, run, time::now());
        // What was recorded before an error is whole and stays.
        recorder.flush().map_err(RecordError::Log)?;
        thread.publish();
        Ok(recorded?)
    }

    fn live_index(&mut self) -> Result<Option<WalIndex>, SessionEnd> {
        let index = self.pinned.wal_index()?;
        match (&index, self.unreadable) {
            (Some(_), _) => self.unreadable = None,
            (None, None) => self.unreadable = Some(Instant::now()),
            (None, Some(since)) if since.elapsed() < INDEX_WAIT_MAX => {}
            (None, Some(_)) if self.free.is_in_transaction() => {}
            (None, Some(_)) => {
                // A writer died while it changed the header: a new reader recovers it.
                self.free.begin_read()?;
                self.free.end_read();
                self.unreadable = None;
            }
        }
        Ok(index)
    }

    /// Lets the read transaction pass to the free connection, so that checkpoints can go on.
    fn pin_again(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        self.free.begin_read()?;
        if self.capture_frames(thread)? == Look::Unreadable {
            // A writer is changing the header. Only with everything captured up to the new transaction may the old one end.
            self.free.end_read();
            return Ok(());
        }
        self.pinned.end_read();
        std::mem::swap(&mut self.pinned, &mut self.free);
        self.maybe_on_mark_zero = self.is_backfilled()?;
        Ok(())
    }

    fn is_backfilled(&self) -> Result<bool, HandleError> {
        Ok(self.pinned.wal_index()?.is_some_and(|i| i.checkpoint.backfill >= i.header.max_frame))
    }

    fn backfill(&self) -> Result<Backfill, HandleError> {
        let index = self.pinned.wal_index()?;
        Ok(index.map_or(Backfill::default(), |i| Backfill { frames: i.header.max_frame, done: i.checkpoint.backfill }))
    }

    fn wal_use(&self, thread: &CaptureThread) -> Result<Option<WalUse>, SessionEnd> {
        let Some(index) = self.pinned.wal_index()? else { return Ok(None) };
        let frame_bytes = frame_size(self.page_size) as u64;
        let idle = self.active.elapsed() >= IDLE_AFTER;
        let file_bytes = if idle { self.pinned.wal_bytes()? } else { 0 };
        // The first commit after a parking resets a WAL that is all in the database, and then all pages must be compared. One that
        // is not goes on.
        let idle = idle && (!thread.is_parkable() || file_bytes > self.policy.truncate_bytes);
        let interval = thread.config.checkpoint.interval;
        let overdue = !interval.is_zero() && self.checkpointed.elapsed() >= interval;
        Ok(Some(WalUse {
            committed_bytes: u64::from(index.header.max_frame) * frame_bytes,
            recent_bytes: self.recent_bytes,
            file_bytes,
            backfilled: index.checkpoint.backfill >= index.header.max_frame,
            idle: idle || overdue,
        }))
    }

    fn checkpoint_if_due(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        if self.checkpointed.elapsed() < self.checkpoint_gap || (self.watch.is_some() && self.rested) {
            return Ok(());
        }
        let Some(wal) = self.wal_use(thread)? else { return Ok(()) };
        match tail::checkpoint_due(&self.policy, &wal) {
            Checkpoint::No => {
                self.rested = true;
                return Ok(());
            }
            _ if thread.is_gated() => {
                if !self.checkpoint_gated(thread)? {
                    return Ok(());
                }
            }
            Checkpoint::Passive => self.checkpoint_passive(thread)?,
            Checkpoint::Locked => {
                let before = self.backfill()?;
                self.checkpoint_passive(thread)?;
                for _ in 0..PREPARATIONS {
                    if self.backfill()?.left() <= FRAMES_UNDER_LOCK {
                        break;
                    }
                    // Otherwise the checkpoint under the lock would wait for the disk to take all that this one has written.
                    self.free.sync_database()?;
                    self.checkpoint_passive(thread)?;
                }
                let now = self.backfill()?;
                // Without progress a reader is in the way, and with much to copy the application would wait for long.
                let helps = now.done > before.done || now.left() <= FRAMES_UNDER_LOCK;
                let bearable = now.left() <= FRAMES_UNDER_LOCK_MAX.max(now.frames / 8);
                if now.left() > 0 && helps && bearable {
                    self.checkpoint_locked(thread)?;
                }
            }
            Checkpoint::Truncate => {
                self.checkpoint_passive(thread)?;
                self.truncate(thread)?;
            }
        }
        self.rested = self.is_backfilled()?;
        self.checkpoint_gap =
            if self.rested { CHECKPOINT_GAP.0 } else { (self.checkpoint_gap * 2).min(CHECKPOINT_GAP.1) };
        self.checkpointed = Instant::now();
        Ok(())
    }

    /// Cuts the WAL file to nothing, if everything in it is in the database and no reader of it is left: then the lock that a
    /// writer needs is held for a moment only.
    fn truncate(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        if !(self.maybe_on_mark_zero && self.is_backfilled()?) {
            return Ok(());
        }
        self.free.set_busy_timeout(WRITE_LOCK_WAIT)?;
        let began = Instant::now();
        let result = self.free.checkpoint_truncate();
        self.free.set_busy_timeout(thread.config.busy_timeout)?;
        self.count_checkpoint(thread, result, began.elapsed())?;
        self.capture_frames(thread)?;
        Ok(())
    }

    /// A checkpoint that takes nothing a writer waits for. If no commit came in between, the pinned transaction then holds
    /// read mark 0, and the next writer resets the WAL.
    fn checkpoint_passive(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        self.pin_again(thread)?;
        self.count_checkpoint(thread, self.free.checkpoint_passive(), Duration::ZERO)?;
        if self.is_backfilled()? {
            self.pin_again(thread)?;
        }
        Ok(())
    }

    /// A checkpoint under the write lock: nobody commits between the capture of the last frame, its checkpoint, and the read
    /// transaction on mark 0. Nothing is synced or uploaded in between but what the checkpoint itself syncs.
    fn checkpoint_locked(&mut self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        let began = Instant::now();
        self.free.set_busy_timeout(Duration::ZERO)?;
        let locked = self.free.begin_immediate(if thread.is_gated() { WRITE_LOCK_WAIT_GATED } else { WRITE_LOCK_WAIT });
        self.free.set_busy_timeout(thread.config.busy_timeout)?;
        match locked {
            Ok(()) => {}
            Err(HandleError::Busy) => {
                thread.status.update(|f| f.checkpoint(status::CheckpointResult::Busy, Duration::ZERO));
                return Ok(());
            }
            Err(error) => {
                // No reason to stop capturing: the WAL only grows longer.
                thread.status.update(|f| f.checkpoint(status::CheckpointResult::Failed, Duration::ZERO));
                thread.status.error(format!("checkpoint of {}: {error}", thread.config.path.display()));
                return Ok(());
            }
        }
        let locked_at = Instant::now();
        let result = self.checkpoint_under_lock(thread);
        self.free.end_read();
        tracing::trace!(
            waited_us = (locked_at - began).as_micros(),
            held_us = locked_at.elapsed().as_micros(),
            "checkpoint"
        );
        self.count_checkpoint(thread, result?, locked_at.elapsed())
    }

    /// The transaction of `free` holds the write lock and the newest read mark, so that of `pinned` can end and begin again.
    fn checkpoint_under_lock(
        &mut self,
        thread: &mut CaptureThread,
    ) -> Result<Result<CheckpointResult, HandleError>, SessionEnd> {
        if self.capture_frames(thread)? == Look::Unreadable {
            // A writer died within the header, and only a holder of the write lock, which we have, could repair it.
            return Ok(Ok(CheckpointResult::Busy));
        }
        self.pinned.end_read();
        let began = Instant::now();
        let result = loop {
            match self.pinned.checkpoint_passive() {
                // The application's own automatic checkpoint: it leaves little to do, and will be asked for again and again.
                Ok(CheckpointResult::Busy) if began.elapsed() < CHECKPOINTER_WAIT => {
                    std::thread::sleep(CHECKPOINTER_NAP)
                }
                result => break result,
            }
        };
        self.pinned.begin_read()?;
        self.maybe_on_mark_zero = true;
        Ok(result)
    }

    fn count_checkpoint(
        &self,
        thread: &CaptureThread,
        result: Result<CheckpointResult, HandleError>,
        stall: Duration,
    ) -> Result<(), SessionEnd> {
        let complete = self.is_backfilled()?;
        let counted = match &result {
            Ok(CheckpointResult::Busy) => status::CheckpointResult::Busy,
            Ok(CheckpointResult::Done) if complete => status::CheckpointResult::Complete,
            Ok(CheckpointResult::Done) => status::CheckpointResult::Partial,
            Err(_) => status::CheckpointResult::Failed,
        };
        let cpu = self.pinned.take_checkpoint_cpu() + self.free.take_checkpoint_cpu();
        thread.status.update(|f| {
            f.checkpoint(counted, stall);
            f.checkpoints.cpu_us_total += cpu.as_micros() as u64;
        });
        if let Err(error) = result {
            thread.status.error(format!("checkpoint of {}: {error}", thread.config.path.display()));
        }
        Ok(())
    }

    /// The slow look on another path than the wal-index: is this still the file at the path?
    fn look_safely(&mut self, thread: &CaptureThread) -> Result<(), SessionEnd> {
        if !self.named.is_other() && self.looked_safely.elapsed() < thread.config.monitor_interval {
            return Ok(());
        }
        self.looked_safely = Instant::now();
        if thread.is_state_gone() {
            return Err(SessionEnd::BeginAgain("the state folder was removed".to_owned()));
        }
        self.look_at_names(thread)?;
        let bytes = self.pinned.wal_bytes()?;
        if bytes > self.policy.truncate_bytes {
            // Readers were in the way when the database became idle: try again.
            self.rested = false;
        }
        thread.status.update(|f| f.wal_bytes = bytes);
        Ok(())
    }

    /// Whether what we hold open still has its names. Where it has not, others work with new files.
    fn look_at_names(&self, thread: &CaptureThread) -> Result<(), SessionEnd> {
        if self.pinned.has_moved()? {
            return Err(SessionEnd::Compare(DiffReason::Replaced, "another file lies at the path, or none".to_owned()));
        }
        for suffix in ["-wal", "-shm"] {
            if !super::watch::beside(&thread.config.path, suffix).exists() {
                let text = format!("the {suffix} file was removed");
                return Err(SessionEnd::Compare(DiffReason::Replaced, text));
            }
        }
        Ok(())
    }

    /// When it is time to park: what the files look like, with nothing left to capture. `logic::park` says why the write lock is
    /// needed, which is held for a few looks, and not waited for.
    fn mark_at_rest(&mut self, thread: &mut CaptureThread) -> Result<Option<DatabaseMark>, SessionEnd> {
        let too_soon = self.tried_to_park.is_some_and(|tried| tried.elapsed() < PARK_GAP);
        let is_open = self.pending.is_some();
        if too_soon || is_open || !thread.may_park(self.active.elapsed(), self.has_captured) {
            return Ok(None);
        }
        self.tried_to_park = Some(Instant::now());
        if thread.settled_mark().is_none() {
            return Ok(None);
        }
        self.free.set_busy_timeout(Duration::ZERO)?;
        let locked = self.free.begin_immediate(Duration::ZERO);
        self.free.set_busy_timeout(thread.config.busy_timeout)?;
        if locked.is_err() {
            // A writer is at work, or we may not write to this database: then it stays open.
            return Ok(None);
        }
        let mark = self.mark_under_lock(thread);
        self.free.end_read();
        let mark = mark?;
        if mark.is_some() {
            self.save_state(thread)?;
        }
        Ok(mark.filter(|_| thread.may_park(self.active.elapsed(), self.has_captured)))
    }

    fn mark_under_lock(&mut self, thread: &mut CaptureThread) -> Result<Option<DatabaseMark>, SessionEnd> {
        let Some(mark) = thread.settled_mark() else { return Ok(None) };
        let all_captured = self.capture_frames(thread)? == Look::Nothing;
        // The mark is of the files at the path: they must be the ones that are open.
        let same_files = !self.pinned.has_moved()?
            && mark.database.bytes == self.pinned.database_bytes()?
            && mark.wal.bytes == self.pinned.wal_bytes()?;
        Ok((all_captured && same_files).then_some(mark))
    }

    fn save_state(&self, thread: &mut CaptureThread) -> Result<(), SessionEnd> {
        let position = if self.captured.frame == 0 || self.pending.is_some() {
            None
        } else {
            let mut frame_header = [0; FRAME_HEADER_SIZE];
            let offset = frame_offset(self.captured.frame, self.page_size);
            let there = self.pinned.read_wal(&mut frame_header, offset)?;
            there.then_some(WalPosition { salt: self.captured.salt, frame: self.captured.frame, frame_header })
        };
        thread.save_state(position).map_err(|e| RecordError::Log(e).into())
    }
}

/// The database as it is after a read transaction was begun.
fn first_moment(handle: &Handle) -> Result<Moment, SessionEnd> {
    let began = Instant::now();
    let index = loop {
        let index = handle.wal_index()?;
        // Read again: `backfill` tells what the database file holds only together with the header that it was counted for.
        let again = handle.wal_index()?;
        match index {
            Some(index) if again.is_some_and(|again| again.header == index.header) => break index,
            _ if began.elapsed() < INDEX_WAIT_MAX => std::thread::sleep(NAP.0),
            _ => return Err(SessionEnd::Failed(DiffReason::Chain, "the wal-index cannot be read".to_owned())),
        }
    };
    let header = &index.header;
    let (page_size, page_count) = match header.page_size {
        Some(page_size) if header.page_count > 0 => (page_size, header.size()),
        // An empty WAL says nothing about the database: its file does.
        _ => file_size(handle)?,
    };
    Ok(Moment {
        page_size,
        page_count,
        salt: header.salt,
        max_frame: header.max_frame,
        backfill: index.checkpoint.backfill,
    })
}

/// Page size and size in pages of a database file without a WAL, as SQLite takes them.
fn file_size(handle: &Handle) -> Result<(PageSize, PageCount), SessionEnd> {
    let header = read_header(handle)?;
    Ok((header.page_size, header.page_count(handle.database_bytes()?)))
}

pub(super) fn read_header(handle: &Handle) -> Result<DatabaseHeader, SessionEnd> {
    let mut bytes = [0; 100];
    handle.read_database(&mut bytes, 0)?;
    DatabaseHeader::decode(&bytes).map_err(|e| HandleError::NotADatabase(e.to_string()).into())
}
