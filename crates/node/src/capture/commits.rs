//! Commits of databases in rollback mode, one by one, from whoever sees every write to them.
//!
//! The mount ([`crate::mount`]) knows which pages a transaction has written, and when it ends: SQLite finalises the journal while it
//! still holds the EXCLUSIVE lock. At that moment it copies the pages and puts them here. The capture thread records them in this
//! order.
//!
//! Invariant: a commit that ends while [`Listening`] lives is in the queue before the application goes on, or the queue is cut, or it comes with
//! [`Listening::catch_up`]: the end of the last commit may have to be looked for. Whoever finds the queue cut compares all pages, under a SHARED lock, with which
//! no commit is under way.
//!
//! A commit that waits lies in the backlog of the state folder as well ([`super::backlog`]), so that a process that is killed loses none.
//!
//! Who adds commits may have a table of descriptors of its own, in which the number of a [`Wake`] means another file: a thread
//! of this module rings for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rhyolite_format::{PageCount, PageNumber, PageSize, Pos, Timestamp};

use super::backlog::{Backlog, Keeper, Room};
use super::gate::{Gated, Ticket};
use super::watch::Wake;

/// Bytes of pages that wait at most. A larger transaction, or a longer line, is found by comparing all pages.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// What tells that a file was written: file change counter and size for a commit, and the time of the last write for what no
/// commit tells. A rollback leaves other bytes in free pages, which the journal does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteMark {
    /// The counter of the database header.
    pub change_counter: u32,
    /// Size of the file.
    pub bytes: u64,
    /// When it was last written.
    pub written: Option<SystemTime>,
}

/// What one transaction has left in the file.
#[derive(Debug)]
pub struct Commit {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Its size, by its header.
    pub page_count: PageCount,
    /// What the file looks like after it.
    pub mark: WriteMark,
    /// When it ended.
    pub time: Timestamp,
    /// Every page that was written, ascending; some may hold what they held before.
    pub pages: Vec<(PageNumber, Box<[u8]>)>,
}

impl Commit {
    /// Bytes of its pages.
    pub(super) fn bytes(&self) -> usize {
        self.pages.iter().map(|(_, data)| data.len()).sum()
    }
}

/// The lines of all databases, by the inode of their files.
#[derive(Debug)]
pub struct CommitLines {
    lines: Mutex<HashMap<u64, Arc<CommitLine>>>,
    bell: Sender<Wake>,
    gated: Option<Gated>,
}

impl CommitLines {
    /// None yet. Commits are to wait until they are where `gated` says, if it does.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn new(gated: Option<Gated>) -> io::Result<Self> {
        let (bell, asked) = mpsc::channel::<Wake>();
        // It ends with the last line.
        std::thread::Builder::new()
            .name("commits".to_owned())
            .spawn(move || asked.iter().for_each(|wake| wake.ring()))?;
        Ok(Self { lines: Mutex::default(), bell, gated })
    }

    /// The line of the file with this inode, if there is one by now.
    pub fn get(&self, inode: u64) -> Option<Arc<CommitLine>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).map(Arc::clone)
    }

    /// Nothing is captured, and is about to be: what is known of databases from before is of no use.
    pub fn begin_anew(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|line| line.forget());
    }

    /// The line of the file with this inode.
    pub fn of(&self, inode: u64) -> Arc<CommitLine> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(CommitLine::new(self.bell.clone(), self.gated.clone()));
        Arc::clone(lines.entry(inode).or_insert_with(made))
    }
}

/// A commit that is to be recorded.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) commit: Commit,
    /// Who waits for it; it is not committed yet.
    pub(super) ticket: Option<Ticket>,
    /// It takes back a transaction that waited in vain.
    pub(super) takes_back: bool,
    /// Where it lies in the backlog.
    kept_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    commits: VecDeque<Waiting>,
    /// Where the next commit is kept; `None` until nothing waits, after one that could not be kept.
    room: Option<Room>,
    bytes: usize,
    is_cut: bool,
    /// So many have begun to listen.
    listener: u64,
    wake: Option<Wake>,
    /// It was rung for since the last look, so at most once more waits to be rung.
    is_called: bool,
}

/// Somebody who waits for what is in a WAL.
#[derive(Debug)]
pub(super) struct WalSync {
    /// The inode of the WAL: a database with two names has two.
    wal: u64,
    pub(super) ticket: Ticket,
}

/// Those who wait for what is in the WAL.
#[derive(Debug, Default)]
struct Syncs {
    waiting: Vec<WalSync>,
    /// Ring for those who follow a WAL of the database, by the how manieth of this line they are.
    wakes: Vec<(u64, Wake)>,
    /// So many have begun to follow.
    attendants: u64,
}

/// Whether commits wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// They need not.
    Open,
    /// They do if the database was ever captured.
    Unknown,
    /// They do.
    Closed,
}

const GATE_OPEN: u8 = 0;
const GATE_UNKNOWN: u8 = 1;
const GATE_CLOSED: u8 = 2;

/// Looks for the end of the last commit, and adds it to its line.
struct Looker(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Looker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Looker")
    }
}

/// Commits of one database that are still to be recorded.
#[derive(Debug)]
pub struct CommitLine {
    gated: Option<Gated>,
    looker: Mutex<Option<Arc<Looker>>>,
    /// Commits may end without anybody's being told.
    is_unsynced: AtomicBool,
    gate: AtomicU8,
    syncs: Mutex<Syncs>,
    is_listening: AtomicBool,
    /// The database was captured as it is, or nobody knows when it will be.
    is_opened: AtomicBool,
    /// The last commit in the log, and its time.
    captured: Mutex<Option<(Pos, Timestamp)>>,
    queue: Mutex<Queue>,
    bell: Sender<Wake>,
}

impl CommitLine {
    fn new(bell: Sender<Wake>, gated: Option<Gated>) -> Self {
        let begins_as = if gated.is_some() { GATE_UNKNOWN } else { GATE_OPEN };
        Self {
            gated,
            looker: Mutex::default(),
            is_unsynced: AtomicBool::new(false),
            gate: AtomicU8::new(begins_as),
            syncs: Mutex::default(),
            is_listening: AtomicBool::new(false),
            is_opened: AtomicBool::new(false),
            captured: Mutex::default(),
            queue: Mutex::default(),
            bell,
        }
    }

    /// Whether somebody records them.
    pub fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::SeqCst)
    }

    /// Whether the database was captured since this process began, or nobody knows when it will be.
    pub fn is_opened(&self) -> bool {
        self.is_opened.load(Ordering::SeqCst)
    }

    pub(super) fn note_opened(&self) {
        self.is_opened.store(true, Ordering::SeqCst);
    }

    /// The last commit in the log, and its time.
    pub fn captured(&self) -> Option<(Pos, Timestamp)> {
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was captured once is not by now; whoever listens goes on.
    fn forget(&self) {
        if !self.is_listening() {
            *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.is_opened.store(false, Ordering::SeqCst);
            self.set_gate(GATE_UNKNOWN);
        }
    }

    /// The file is empty: what is known of one that had its number before is of no use.
    pub fn note_emptied(&self) {
        if !self.is_listening() {
            *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.is_opened.store(false, Ordering::SeqCst);
            // Whatever had its name before, this one was never captured.
            self.set_gate(GATE_OPEN);
        }
    }

    fn set_gate(&self, state: u8) {
        self.gate.store(if self.is_gated() { state } else { GATE_OPEN }, Ordering::SeqCst);
    }

    /// Whether commits are to wait.
    pub(super) fn is_gated(&self) -> bool {
        self.gated.is_some()
    }

    /// For what.
    pub(super) fn gated(&self) -> Option<&Gated> {
        self.gated.as_ref()
    }

    /// Whether commits wait now.
    pub fn gate(&self) -> GateState {
        match self.gate.load(Ordering::SeqCst) {
            GATE_OPEN => GateState::Open,
            GATE_UNKNOWN => GateState::Unknown,
            _ => GateState::Closed,
        }
    }

    /// The database is captured: from here on its commits wait, and `wake` is rung for them until the result is dropped.
    pub(super) fn close_gate(self: Arc<Self>, wake: Wake) -> Attending {
        let mut syncs = self.syncs();
        syncs.attendants += 1;
        let attendant = syncs.attendants;
        syncs.wakes.push((attendant, wake));
        drop(syncs);
        self.set_gate(GATE_CLOSED);
        Attending { line: self, attendant }
    }

    /// The database is not replicated any more: nobody would answer.
    pub fn release(&self) {
        self.set_gate(GATE_OPEN);
    }

    /// Waits for what is now in the WAL with this inode.
    pub fn sync(&self, wal: u64, ticket: Ticket) {
        let mut syncs = self.syncs();
        syncs.waiting.push(WalSync { wal, ticket });
        for (_, wake) in &syncs.wakes {
            let wake = wake.clone();
            let sent = self.bell.send(wake);
            assert!(sent.is_ok(), "the thread that rings lives as long as a line");
        }
    }

    /// Those who wait for what is in the WAL with this inode.
    pub(super) fn take_syncs(&self, wal: u64) -> Vec<WalSync> {
        self.syncs().waiting.extract_if(.., |sync| sync.wal == wal).collect()
    }

    /// Whether somebody waits for what is in the WAL.
    pub(super) fn has_syncs(&self) -> bool {
        !self.syncs().waiting.is_empty()
    }

    /// They wait on.
    pub(super) fn put_syncs_back(&self, mut waiting: Vec<WalSync>) {
        let mut syncs = self.syncs();
        waiting.append(&mut syncs.waiting);
        syncs.waiting = waiting;
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_captured(&self, pos: Pos, time: Timestamp) {
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = Some((pos, time));
    }

    /// Says whether commits may end from here on without anybody's being told.
    pub fn set_unsynced(&self, is_unsynced: bool) {
        self.is_unsynced.store(is_unsynced, Ordering::SeqCst);
    }

    /// Whoever wants to have all commits calls `look` first, which adds those whose end was not told. It is called by any thread.
    pub fn set_looker(&self, look: impl Fn() + Send + Sync + 'static) {
        *self.looker.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Looker(Box::new(look))));
    }

    /// Adds a commit, and keeps it in the backlog.
    pub fn push(&self, commit: Commit, keeper: &mut Keeper) {
        self.put(commit, None, false, keeper);
    }

    /// The same of what a transaction that waited in vain has left.
    pub fn take_back(&self, commit: Commit, keeper: &mut Keeper) {
        self.put(commit, None, true, keeper);
    }

    /// Adds a commit that is about to end, and waits for its being told.
    pub fn promise(&self, commit: Commit, ticket: Ticket, keeper: &mut Keeper) {
        self.put(commit, Some(ticket), false, keeper);
    }

    fn put(&self, commit: Commit, ticket: Option<Ticket>, takes_back: bool, keeper: &mut Keeper) {
        self.change(|queue| {
            queue.bytes += commit.bytes();
            if queue.bytes > QUEUE_BYTES_MAX {
                queue.cut();
            } else if !queue.is_cut {
                let kept_at = queue.keep(&commit, keeper);
                queue.commits.push_back(Waiting { commit, ticket, takes_back, kept_at });
            }
        });
    }

    /// Something was written that cannot be told.
    pub fn cut(&self) {
        self.change(Queue::cut);
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        // Asked under the lock: whoever stops listening empties the queue after that.
        if !self.is_listening() {
            return;
        }
        change(&mut queue);
        if !queue.is_called
            && let Some(wake) = queue.wake.clone()
        {
            queue.is_called = true;
            let sent = self.bell.send(wake);
            assert!(sent.is_ok(), "the thread that rings lives as long as a line");
        }
    }

    /// Listens until the result is dropped, or until somebody else does: of two names of one file each may be followed, and only one has its
    /// commits.
    pub(super) fn listen(self: Arc<Self>, wake: Wake, backlog: Option<Backlog>) -> Listening {
        let mut queue = self.lock();
        let listener = queue.listener + 1;
        *queue = Queue { wake: Some(wake), listener, ..Queue::default() };
        self.is_listening.store(true, Ordering::SeqCst);
        drop(queue);
        Listening { line: self, listener, backlog }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one who is rung for.
#[derive(Debug)]
pub(super) struct Attending {
    line: Arc<CommitLine>,
    /// The how manieth of this line it is.
    attendant: u64,
}

impl Drop for Attending {
    fn drop(&mut self) {
        // Its descriptor is ours, and whoever holds the line last may have other ones.
        self.line.syncs().wakes.retain(|(attendant, _)| *attendant != self.attendant);
    }
}

impl Queue {
    fn cut(&mut self) {
        self.commits.clear();
        self.bytes = 0;
        self.is_cut = true;
        // What follows would follow a gap.
        self.room = None;
    }

    fn keep(&mut self, commit: &Commit, keeper: &mut Keeper) -> Option<u64> {
        match keeper.keep(self.listener, self.room.as_mut()?, commit) {
            Ok(offset) => Some(offset),
            Err(error) => {
                tracing::warn!("a commit is not kept for the case that this process is killed: {error}");
                self.room = None;
                None
            }
        }
    }
}

/// What was taken from a line.
#[derive(Debug)]
pub(super) enum Taken {
    /// All there is, in order.
    Commits(VecDeque<Waiting>),
    /// There were more than could be kept.
    Cut,
    /// Somebody else gets them now.
    Lost,
}

/// The one who records the commits of a line.
#[derive(Debug)]
pub(super) struct Listening {
    line: Arc<CommitLine>,
    /// The how manieth of this line it is.
    listener: u64,
    backlog: Option<Backlog>,
}

impl Listening {
    /// The log is about to be written with this commit, after which the database is at `pos`.
    pub(super) fn mark(&self, waiting: &Waiting, pos: Pos) {
        let (Some(backlog), Some(offset)) = (&self.backlog, waiting.kept_at) else { return };
        // Without its mark the backlog says nothing after a kill, which is no reason to stop.
        if let Err(error) = backlog.mark(offset, pos) {
            tracing::warn!("a commit is not kept for the case that this process is killed: {error}");
        }
    }

    /// What comes leads on from something that is not in the log: it is not kept until that is settled.
    pub(super) fn keep_no_more(&self) {
        let mut queue = self.line.lock();
        if queue.listener == self.listener {
            queue.room = None;
        }
    }

    /// Everything taken is in the log, which ends at `pos`. When nothing waits the backlog begins anew from there.
    pub(super) fn settle(&mut self, pos: Pos) {
        let mut queue = self.line.lock();
        if queue.listener != self.listener || queue.is_cut || !queue.commits.is_empty() {
            return;
        }
        let Some(backlog) = self.backlog.as_mut() else { return };
        if queue.room.as_ref().is_some_and(|room| room.is_empty_at(pos)) {
            return;
        }
        match backlog.begin(pos) {
            Ok(room) => queue.room = Some(room),
            Err(error) => {
                tracing::warn!("commits are not kept for the case that this process is killed: {error}");
                queue.room = None;
                drop(queue);
                self.backlog = None;
            }
        }
    }

    /// Has every commit added that has ended.
    pub(super) fn catch_up(&self) {
        if !self.line.is_unsynced.load(Ordering::SeqCst) {
            return;
        }
        let looker = self.line.looker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Looker(look)) = looker.as_deref() {
            look();
        }
    }

    /// Takes what there is.
    pub(super) fn take(&self) -> Taken {
        let mut queue = self.line.lock();
        if queue.listener != self.listener {
            return Taken::Lost;
        }
        queue.bytes = 0;
        queue.is_called = false;
        let commits = std::mem::take(&mut queue.commits);
        if std::mem::take(&mut queue.is_cut) { Taken::Cut } else { Taken::Commits(commits) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut queue = self.line.lock();
        if queue.listener == self.listener {
            self.line.is_listening.store(false, Ordering::SeqCst);
            *queue = Queue { listener: self.listener, ..Queue::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(bytes: usize) -> Commit {
        let page = PageNumber::new(1).unwrap();
        Commit {
            page_size: PageSize::new(4096).unwrap(),
            page_count: PageCount(1),
            mark: WriteMark { change_counter: 1, bytes: 4096, written: None },
            time: Timestamp(0),
            pages: vec![(page, vec![0; bytes].into())],
        }
    }

    #[track_caller]
    fn taken(listening: &Listening) -> Option<usize> {
        match listening.take() {
            Taken::Commits(commits) => Some(commits.len()),
            Taken::Cut => None,
            Taken::Lost => panic!("nobody else listens"),
        }
    }

    #[test]
    fn only_while_somebody_listens_and_never_more_than_fits() {
        let lines = CommitLines::new(None).unwrap();
        let line = lines.of(7);
        let mut keeper = Keeper::default();
        line.push(commit(10), &mut keeper);
        let listening = lines.of(7).listen(Wake::new().unwrap(), None);
        assert_eq!(taken(&listening), Some(0), "from before");
        line.push(commit(10), &mut keeper);
        line.push(commit(10), &mut keeper);
        assert_eq!(taken(&listening), Some(2));
        line.push(commit(QUEUE_BYTES_MAX), &mut keeper);
        line.push(commit(1), &mut keeper);
        assert_eq!(taken(&listening), None);
        line.push(commit(1), &mut keeper);
        line.cut();
        line.push(commit(1), &mut keeper);
        assert_eq!(taken(&listening), None, "what comes after a cut is of no use either");
        assert_eq!(taken(&listening), Some(0));
        let other = lines.of(7).listen(Wake::new().unwrap(), None);
        line.push(commit(1), &mut keeper);
        assert!(matches!(listening.take(), Taken::Lost));
        drop(listening);
        assert!(line.is_listening(), "the one that came later still does");
        assert_eq!(taken(&other), Some(1));
        drop(other);
        line.push(commit(1), &mut keeper);
        assert!(!line.is_listening());
    }
}
