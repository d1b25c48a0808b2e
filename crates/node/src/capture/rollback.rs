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
//!
//! On a mount nothing of this is needed once the log shows what the database holds: each commit comes as it ends ([`super::commits`]), and
//! all pages are compared only when something else has changed the file.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use rhyolite_format::ltx::Packing;
use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::state::parked::DatabaseMark;
use rhyolite_format::{Checksum, PageNumber, Pos};

use super::commits::{Commit, Listening, Taken, WriteMark as Mark};
use super::handle::{Handle, HandleError};
use super::recorder::{RecordError, WalRange};
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
/// Longest wait for a lock that the holder may give up only when we have taken its commit.
const LOCK_WAIT_GATED: Duration = Duration::from_millis(5);
/// Kept out for longer than this, the status says why.
const KEPT_OUT_SILENTLY: Duration = Duration::from_secs(1);

fn read_mark(handle: &Handle, path: &Path) -> Result<(Mark, DatabaseHeader), SessionEnd> {
    let header = read_header(handle)?;
    let bytes = handle.database_bytes()?;
    let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    Ok((Mark { change_counter: header.change_counter, bytes, written }, header))
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
        match read_mark(self.handle, self.path) {
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
    /// Something has changed the file that nobody can tell: until all pages were compared no commit leads on from what is recorded.
    must_compare: bool,
    /// Comparisons in a row that came to nothing.
    given_way: u32,
    /// No look before this.
    rest_until: Instant,
    /// Commits that come one by one.
    commits: Commits,
}

/// Whether commits come one by one.
enum Commits {
    /// That is asked with the first lock. Whoever listens has writes without a journal refused, and under the lock no such transaction has
    /// written anything yet: it could not be taken back.
    NotYet,
    Listening(Listening),
    None,
}

/// Follows a database in rollback mode until something makes a new session necessary.
pub(super) fn follow(thread: &mut CaptureThread, handle: &Handle) -> Result<SessionEnd, SessionEnd> {
    let mut follower = Follower {
        handle,
        seen: None,
        must_compare: false,
        given_way: 0,
        rest_until: Instant::now(),
        commits: Commits::NotYet,
    };
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
                thread.pass_on_recorded()?;
                thread.wait(NAP);
                continue;
            }
            Ok(Looked::Captured) => {
                captures += 1;
                active = Instant::now();
                watch = None;
                thread.status.set_state(State::Replicating);
                thread.note_opened();
                thread.close_gate();
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
        nap(thread, &mut watch, active.elapsed() < IDLE_AFTER);
    }
}

/// Waits for the next look. The file of an idle database is watched.
fn nap(thread: &CaptureThread, watch: &mut Option<FileWatch>, is_active: bool) {
    if is_active || thread.has_unsent() {
        thread.wait(NAP);
    } else if watch.is_none() {
        *watch = FileWatch::new(&thread.config.path).ok();
        if watch.is_none() {
            thread.wait(NAP_UNWATCHED);
        }
    } else {
        thread.wait_for_files(watch.as_ref(), thread.config.monitor_interval);
    }
}

fn moved() -> SessionEnd {
    SessionEnd::Compare(DiffReason::Replaced, "another file lies at the path, or none".to_owned())
}

/// Records one commit. `false` when it does not lead on from what is recorded.
///
/// `before` is told the position after it before that can be in the log's file.
pub(super) fn record(
    thread: &mut CaptureThread,
    commit: &Commit,
    before: impl FnOnce(Pos),
) -> Result<bool, RecordError> {
    let recorder = thread.recorder();
    let table = recorder.table();
    if table.page_size() != commit.page_size {
        return Ok(false);
    }
    let (lock_page, count) = (commit.page_size.lock_page(), commit.page_count);
    let counts = |page: PageNumber| page.get() <= count.get() && page != lock_page;
    let is_new = |(page, data): &&(PageNumber, Box<[u8]>)| {
        counts(*page) && table.get(*page) != Some(Checksum::of_page(*page, data))
    };
    let changed: Vec<_> = commit.pages.iter().filter(is_new).collect();
    // Pages that the file has grown by without a write.
    let grown = (table.page_count().get() + 1..=count.get()).filter(|page| *page != lock_page.get()).count();
    let written = changed.iter().filter(|(page, _)| page.get() > table.page_count().get()).count();
    if written < grown {
        return Ok(false);
    }
    if changed.is_empty() && count == table.page_count() {
        before(recorder.pos());
        return Ok(true);
    }
    recorder.packing = Packing::Lz4;
    let mut tx = recorder.begin(count, WalRange::default(), commit.time)?;
    for (page, data) in changed {
        if let Err(error) = recorder.page(&mut tx, *page, data) {
            recorder.abandon(tx)?;
            return Err(error);
        }
    }
    recorder.finish_after(tx, before)?;
    Ok(true)
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
        let taken = self.take_commits(thread)?;
        let nothing = if taken { Looked::Captured } else { Looked::Nothing };
        if self.seen.is_some() && !is_last && Instant::now() < self.rest_until {
            return Ok(nothing);
        }
        // Without a lock this may be torn, and then differs. The writer of a commit changes the counter last, so it may also
        // be the one before: a later look sees the other.
        // The commit that switches to WAL mode is seen as any other, and what comes after it is not in this file.
        let is_known = |this: &Self, thread: &CaptureThread| {
            let mark = || read_mark(this.handle, &thread.config.path);
            this.seen.is_some()
                && !this.must_compare
                && mark().is_ok_and(|found| this.seen == Some(found.0) && !found.1.is_wal())
        };
        if is_known(self, thread) {
            return Ok(nothing);
        }
        // Who has the lock for good does not let us compare, and need not.
        if self.catch_up(thread)? && is_known(self, thread) {
            return Ok(Looked::Captured);
        }
        self.begin_read(thread)?;
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

    /// Gets the lock. A writer that waits for us has it: then there is a commit to take first.
    fn begin_read(&self, thread: &CaptureThread) -> Result<(), HandleError> {
        if !thread.is_gated() {
            return self.handle.begin_read();
        }
        self.handle.set_busy_timeout(LOCK_WAIT_GATED)?;
        let begun = self.handle.begin_read();
        self.handle.set_busy_timeout(thread.config.busy_timeout)?;
        begun
    }

    /// What the files look like, if nothing was written since the last capture. Under the lock nobody is within a commit.
    fn mark_at_rest(&self, thread: &CaptureThread) -> Option<DatabaseMark> {
        thread.settled_mark()?;
        self.handle.begin_read().ok()?;
        let same = !self.handle.has_moved().unwrap_or(true)
            && read_mark(self.handle, &thread.config.path).ok().map(|(mark, _)| mark) == self.seen;
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
        // A commit after this is in the line, and one before it is in what this look sees.
        self.listen(thread);
        // The line is that of the file at the path, which must be the one that is open.
        if self.seen.is_none() && self.handle.has_moved()? {
            return Ok(Looked::Moved);
        }
        // Under the lock no commit is under way: what is not in the line after this was there when the lock was got.
        let taken = self.catch_up(thread)?;
        let (mark, header) = read_mark(self.handle, &path)?;
        if header.is_wal() {
            return Ok(Looked::OtherMode);
        }
        if self.seen == Some(mark) && !self.must_compare {
            return Ok(if taken { Looked::Captured } else { Looked::Nothing });
        }
        if self.seen.is_some() {
            thread.doubt(DiffReason::RollbackMode);
        }
        // A comparison that comes to nothing is to be made again, whatever is committed meanwhile.
        self.must_compare = true;
        if let Commits::Listening(commits) = &self.commits {
            commits.keep_no_more();
        }
        let turns = Turns { handle: self.handle, path: &path, mark, since: Cell::new(Instant::now()), hold };
        let view = View::of_file(self.handle, header.page_size, header.page_count(mark.bytes), turns);
        thread.establish(&view)?;
        self.seen = Some(mark);
        self.must_compare = false;
        if let Commits::Listening(commits) = &mut self.commits {
            // They ended before this look, which has seen what they did.
            let _ = commits.take();
            if !thread.has_spooled() {
                commits.settle(thread.recorder().pos());
            }
        }
        Ok(Looked::Captured)
    }

    fn listen(&mut self, thread: &mut CaptureThread) {
        if !matches!(self.commits, Commits::NotYet) {
            return;
        }
        thread.look_for_line();
        self.commits = thread.listen_to_commits().map_or(Commits::None, Commits::Listening);
        if matches!(self.commits, Commits::None) {
            tracing::warn!(
                database = %thread.config.path.display(),
                "in rollback mode: commits between two looks are folded into one; WAL mode captures each"
            );
        }
    }

    /// Records the commits that have ended since, also those of which nobody was told. `true` when there were some.
    fn catch_up(&mut self, thread: &mut CaptureThread) -> Result<bool, SessionEnd> {
        if let Commits::Listening(listening) = &self.commits {
            listening.catch_up();
        }
        self.take_commits(thread)
    }

    /// Records the commits that have ended since. `true` when there were some.
    fn take_commits(&mut self, thread: &mut CaptureThread) -> Result<bool, SessionEnd> {
        let Commits::Listening(listening) = &mut self.commits else { return Ok(false) };
        if self.seen.is_none() {
            return Ok(false);
        }
        let commits = match listening.take() {
            Taken::Commits(commits) if commits.is_empty() => {
                if !self.must_compare && !thread.has_spooled() {
                    listening.settle(thread.recorder().pos());
                }
                return Ok(false);
            }
            Taken::Commits(_) if self.must_compare => return Ok(false),
            Taken::Commits(commits) => commits,
            Taken::Cut => {
                self.must_compare = true;
                return Ok(false);
            }
            Taken::Lost => {
                tracing::warn!(
                    database = %thread.config.path.display(),
                    "the file has another name, under which its commits are captured: here those between two looks are folded into one"
                );
                self.commits = Commits::None;
                self.must_compare = true;
                return Ok(false);
            }
        };
        let mut recorded = Ok(true);
        let mut tickets = Vec::new();
        for mut waiting in commits {
            let before = thread.recorder().pos().txid;
            recorded = record(thread, &waiting.commit, |pos| listening.mark(&waiting, pos));
            match &recorded {
                Ok(true) => self.seen = Some(waiting.commit.mark),
                _ => break,
            }
            match waiting.ticket.take() {
                Some(ticket) => tickets.push(ticket),
                None if waiting.takes_back => {}
                None => thread.note_ungated(before),
            }
        }
        // What was recorded before an error is whole and stays.
        thread.recorder().flush().map_err(RecordError::Log)?;
        thread.publish();
        self.must_compare = !recorded?;
        thread.hold(tickets);
        if !self.must_compare {
            listening.settle(thread.recorder().pos());
        }
        thread.save_state(None).map_err(RecordError::Log)?;
        Ok(true)
    }
}
