//! A session with a database in rollback mode.
//!
//! There is no WAL to follow: whenever the file was written, all pages are compared. Reading them needs SQLite's SHARED lock,
//! and while that is held nobody can commit. The application must not wait for us longer than it can bear, so:
//!
//! - Nothing is locked while the file's header, size and time say that nothing was written.
//! - A comparison gives its lock up every [`SLICE`], and goes on only if nothing was written meanwhile ([`Turns`]). When
//!   [`GIVE_WAY_MAX`] comparisons in a row came to nothing, one keeps its lock to the end; after it the application has
//!   [`REST_FACTOR`] times as long for itself.
//! - Nothing is exchanged with the store under the lock. A snapshot is written to a file of the state folder first.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::state::parked::DatabaseMark;

use super::handle::{Handle, HandleError};
use super::recorder::RecordError;
use super::session::{IDLE_AFTER, NAP_UNWATCHED, Need, PARK_GAP, SessionEnd, read_header};
use super::thread::{CaptureThread, Stop};
use super::view::View;
use super::watch::FileWatch;
use crate::status::{DiffReason, State};

/// Longest time for which the lock is held where it is given up at all.
const SLICE: Duration = Duration::from_millis(20);
/// Time that the application has between two slices.
const TURN: Duration = Duration::from_millis(2);
/// Comparisons that came to nothing before one keeps its lock.
const GIVE_WAY_MAX: u32 = 3;
/// How many times as long as a lock was held the application then has for itself.
const REST_FACTOR: u32 = 4;
/// Time between looks at a database that is not idle.
const NAP: Duration = Duration::from_millis(20);
/// Kept out for longer than this, the status says why.
const KEPT_OUT_SILENTLY: Duration = Duration::from_secs(1);

/// What tells that the file was written: file change counter and size for a commit, and the time of the last write for what no
/// commit tells. A rollback leaves other bytes in free pages, which the journal does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    change_counter: u32,
    bytes: u64,
    written: Option<SystemTime>,
}

impl Mark {
    fn read(handle: &Handle, path: &Path) -> Result<(Self, DatabaseHeader), SessionEnd> {
        let header = read_header(handle)?;
        let bytes = handle.database_bytes()?;
        let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
        Ok((Self { change_counter: header.change_counter, bytes, written }, header))
    }
}

/// Gives the application its turns while a comparison holds the lock.
#[derive(Debug)]
pub(super) struct Turns<'h> {
    handle: &'h Handle,
    path: &'h Path,
    mark: Mark,
    /// The lock is held since.
    since: Cell<Instant>,
    /// Keep the lock to the end.
    hold: bool,
}

impl Turns<'_> {
    /// Lets others commit, when it is time.
    ///
    /// # Errors
    /// [`HandleError::Changed`] when they did; [`HandleError::Busy`] when they still are at it.
    pub(super) fn give_way(&self) -> Result<(), HandleError> {
        if self.hold || self.since.get().elapsed() < SLICE {
            return Ok(());
        }
        self.handle.end_read();
        std::thread::sleep(TURN);
        self.handle.begin_read()?;
        self.since.set(Instant::now());
        if self.handle.has_moved()? {
            return Err(HandleError::Changed);
        }
        match Mark::read(self.handle, self.path) {
            Ok((mark, _)) if mark == self.mark => Ok(()),
            _ => Err(HandleError::Changed),
        }
    }
}

/// What follows one database.
struct Follower<'a> {
    handle: &'a Handle,
    /// The file as it was captured.
    seen: Option<Mark>,
    /// Comparisons in a row that came to nothing.
    given_way: u32,
    /// No look before this.
    rest_until: Instant,
}

/// Follows a database in rollback mode until something makes a new session necessary.
pub(super) fn follow(thread: &mut CaptureThread, handle: &Handle) -> Result<SessionEnd, SessionEnd> {
    let name = thread.config.path.display().to_string();
    tracing::warn!(
        database = name,
        "in rollback mode: commits between two looks are folded into one; WAL mode captures each"
    );
    let mut follower = Follower { handle, seen: None, given_way: 0, rest_until: Instant::now() };
    let mut watch = None;
    let mut active = Instant::now();
    let mut kept_out = None;
    let mut captures = 0u64;
    let mut tried_to_park = Instant::now();
    loop {
        let stop = thread.take_messages();
        if thread.is_state_gone() {
            return Err(SessionEnd::BeginAgain("the state folder was removed".to_owned()));
        }
        if handle.has_moved()? {
            return Ok(moved());
        }
        match follower.look(thread, stop.is_some()) {
            // Also the last look before a stop waits for its moment, as long as there is somebody to upload what it finds.
            Err(SessionEnd::Retry(reason)) if !thread.is_uploader_gone() => {
                if kept_out.get_or_insert_with(Instant::now).elapsed() > KEPT_OUT_SILENTLY {
                    thread.set_waiting(reason);
                }
                thread.wait(NAP);
                continue;
            }
            Ok(Looked::Captured) => {
                captures += 1;
                active = Instant::now();
                watch = None;
                thread.status.set_state(State::Replicating);
                thread.note_opened();
            }
            Ok(Looked::Nothing) if kept_out.is_some() => thread.status.set_state(State::Replicating),
            Ok(Looked::Nothing) => {}
            Ok(Looked::OtherMode) => return Ok(SessionEnd::Reopen),
            Ok(Looked::Moved) => return Ok(moved()),
            Err(end) => return Err(end),
        }
        kept_out = None;
        match stop {
            Some(Stop::Shutdown) => return Ok(SessionEnd::Stopped),
            Some(Stop::LogFull) => {
                return Ok(SessionEnd::Failed(DiffReason::LogFull, "the local log is full".to_owned()));
            }
            Some(Stop::Snapshot) => return Ok(SessionEnd::Prepare(Need::Snapshot)),
            None => {}
        }
        thread.pass_on()?;
        if tried_to_park.elapsed() >= PARK_GAP && thread.may_park(active.elapsed(), captures > 1) {
            tried_to_park = Instant::now();
            if let Some(mark) = follower.mark_at_rest(thread) {
                return Ok(SessionEnd::Parked(mark));
            }
        }
        if active.elapsed() < IDLE_AFTER || thread.has_unsent() {
            thread.wait(NAP);
        } else if watch.is_none() {
            watch = FileWatch::new(&thread.config.path).ok();
            if watch.is_none() {
                thread.wait(NAP_UNWATCHED);
            }
        } else {
            thread.wait_for_files(watch.as_ref(), thread.config.monitor_interval);
        }
    }
}

fn moved() -> SessionEnd {
    SessionEnd::Compare(DiffReason::Replaced, "another file lies at the path, or none".to_owned())
}

/// What one look found.
enum Looked {
    /// Nothing was written since the last capture.
    Nothing,
    /// Something was, and it is captured.
    Captured,
    /// The database is in WAL mode by now.
    OtherMode,
    /// Another file lies at the path, or none.
    Moved,
}

impl Follower<'_> {
    /// One look; the last one does not rest before.
    fn look(&mut self, thread: &mut CaptureThread, is_last: bool) -> Result<Looked, SessionEnd> {
        if self.seen.is_some() && !is_last && Instant::now() < self.rest_until {
            return Ok(Looked::Nothing);
        }
        // Without a lock this may be torn, and then differs. The writer of a commit changes the counter last, so it may also
        // be the one before: a later look sees the other.
        if self.seen.is_some() && Mark::read(self.handle, &thread.config.path).ok().map(|(mark, _)| mark) == self.seen {
            return Ok(Looked::Nothing);
        }
        self.handle.begin_read()?;
        let hold = self.given_way >= GIVE_WAY_MAX;
        let began = Instant::now();
        let looked = self.look_locked(thread, hold);
        self.handle.end_read();
        if matches!(looked, Err(SessionEnd::Retry(_))) {
            self.given_way += 1;
        } else {
            self.given_way = 0;
        }
        if hold {
            self.rest_until = Instant::now() + REST_FACTOR * began.elapsed();
        }
        let looked = looked?;
        thread.send_spooled()?;
        thread.save_state(None).map_err(RecordError::Log)?;
        Ok(looked)
    }

    /// What the files look like, if nothing was written since the last capture. Under the lock nobody is within a commit.
    fn mark_at_rest(&self, thread: &CaptureThread) -> Option<DatabaseMark> {
        thread.settled_mark()?;
        self.handle.begin_read().ok()?;
        let same = !self.handle.has_moved().unwrap_or(true)
            && Mark::read(self.handle, &thread.config.path).ok().map(|(mark, _)| mark) == self.seen;
        let mark = thread.settled_mark().filter(|_| same);
        self.handle.end_read();
        mark
    }

    fn look_locked(&mut self, thread: &mut CaptureThread, hold: bool) -> Result<Looked, SessionEnd> {
        let path = thread.config.path.clone();
        // Asked with the lock: SQLite has looked for a hot journal by its name. Where the database's name was gone by then, or is gone now,
        // there may have been one, and this file holds a transaction that never ended.
        if self.handle.has_moved()? {
            return Ok(Looked::Moved);
        }
        let (mark, header) = Mark::read(self.handle, &path)?;
        if header.is_wal() {
            return Ok(Looked::OtherMode);
        }
        if self.seen == Some(mark) {
            return Ok(Looked::Nothing);
        }
        if self.seen.is_some() {
            thread.doubt(DiffReason::RollbackMode);
        }
        let turns = Turns { handle: self.handle, path: &path, mark, since: Cell::new(Instant::now()), hold };
        let view = View::of_file(self.handle, header.page_size, header.page_count(mark.bytes), turns);
        thread.establish(&view)?;
        self.seen = Some(mark);
        Ok(Looked::Captured)
    }
}
