//! The write locks of a replica's databases in WAL mode: who takes one borrows that of the primary, and commits there ([`crate::forward::transparent`]).
//!
//! ```text
//!   WRITE lock of the wal-index ──► borrow ──► the file is where the primary's is ──► the lock is had
//!   writes to the WAL ──────────────────────────────────────────────────────────────► made
//!   the write that completes the last frame ──► pages ──► primary commits ──► made; or refused, and nothing was committed here
//!   the lock goes ──► what was borrowed goes back
//! ```
//!
//! What asks for the lock by byte 72 of `NAME-lock` is in [`kept`]. Everything else that a writer does is not for replicas: checkpoints are the node's, and so is the file of the database. Their locks are had by nobody else.
//!
//! Invariant: the WAL gets no frame that commits before the primary has committed the same pages, and none from somebody who has lost the lock meanwhile.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Errno, ReplyEmpty, ReplyWrite};
use rhyolite_format::sqlite::lock::{WAL_CHECKPOINT, WAL_WRITE};
use rhyolite_format::sqlite::wal_index::{WAL_INDEX_SNAPSHOT_SIZE, WalIndexHeader};

use super::frames::{Frames, Step, Write};
use super::fs::Open;
use super::locks::{Bytes, Kind, Lock, Locks, Owner};
use super::role::Role;
use super::writers::Writers;
use crate::config::io_text;
use crate::forward::counts::{self, Ended};
use crate::forward::transparent::{Changes, Refusal, Request, Tell, What};

mod kept;

use kept::Keepers;

/// How long somebody waits for a lock that another has, when he is ready to wait: `F_SETLKW`.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long whoever asks for a write lock waits in the kernel until it is borrowed. After that SQLite's busy handler decides, and who asks again while it is being borrowed hears at once
/// that it is not yet.
const BORROW_MAX: Duration = Duration::from_secs(1);
/// How long a lock that was borrowed is kept for whoever asks again.
const LINGER: Duration = Duration::from_secs(1);
/// The same of one that was given back unused.
const LINGER_UNUSED: Duration = Duration::from_millis(100);
/// For so long it is tried to get a lock that was borrowed, if the node itself has it for a moment.
const TRY_MAX: Duration = Duration::from_millis(100);
/// Between two looks who has waited for long enough.
const LOOK: Duration = Duration::from_millis(50);
/// Between two tries.
const TRY: Duration = Duration::from_millis(1);
/// What is said where nobody answers.
const NOBODY: &str = "what asks the primary has ended";

/// What is done with a request for a lock on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permit {
    /// It is had as on every mount.
    Free,
    /// Nobody but the node has it.
    Never,
    /// It is had while that of the primary is borrowed.
    Borrowed,
    /// It is had, and that of the primary borrowed for as long.
    Kept,
}

/// The write locks of a mount's databases.
#[derive(Debug)]
pub(super) struct Lending {
    shared: Arc<Shared>,
    events: Sender<Event>,
}

#[derive(Debug)]
struct Shared {
    locks: Locks,
    /// By the paths of the databases.
    loans: Mutex<HashMap<PathBuf, Arc<Mutex<Loan>>>>,
    keepers: Keepers,
    numbers: AtomicU64,
    /// A loan has begun to wait for whoever asks next.
    is_lingering: AtomicBool,
    /// How many wait for a lock of somebody else.
    waiting: AtomicU64,
    requests: Sender<Request>,
    writers: Arc<Writers>,
}

/// A write lock that somebody has, or waits for.
#[derive(Debug)]
struct Loan {
    number: u64,
    /// The wal-index.
    shm: Arc<Open>,
    owner: Owner,
    phase: Phase,
    frames: Frames,
    /// The lock is gone, and an answer is still awaited.
    is_left: bool,
}

#[derive(Debug)]
enum Phase {
    /// It is being borrowed. Who is told by this waits until then; if there is nobody, whoever asks next gets it.
    Asked(Option<ReplyEmpty>, Instant),
    /// It is borrowed, for whoever asks until then.
    Had(Instant),
    /// Frames may be written.
    Held,
    /// The primary is asked to commit.
    Sending(Withheld),
    /// The transaction was not committed, and cannot be any more.
    Over,
}

/// The write that would commit.
#[derive(Debug)]
struct Withheld {
    wal: Arc<Open>,
    offset: u64,
    data: Vec<u8>,
    /// Where the last frame begins.
    frame: u64,
    reply: ReplyWrite,
}

/// A request for a lock.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) open: Arc<Open>,
    pub(super) owner: Owner,
    pub(super) bytes: Bytes,
    pub(super) kind: Kind,
    /// Whether to wait for a lock that is in the way.
    pub(super) waits: bool,
    pub(super) reply: ReplyEmpty,
    /// The database, where that matters.
    pub(super) database: Option<PathBuf>,
}

#[derive(Debug)]
enum Event {
    Borrowed {
        database: PathBuf,
        number: u64,
        answer: Result<(), Refusal>,
        until: Option<Instant>,
    },
    Committed {
        database: PathBuf,
        number: u64,
        answer: Result<(), NotCommitted>,
    },
    /// A lock is being borrowed.
    Borrowing,
    /// Somebody waits for a lock that another has.
    Wait(Asking),
    /// He who has byte 72 waits for the primary until then.
    Kept {
        asking: Asking,
        until: Instant,
        answer: Result<(), Refusal>,
    },
    /// The primary is to be asked for it once more.
    KeepAgain(Asking, Instant),
    /// Locks of a file went.
    Freed(u64),
    /// The mount is gone.
    Stop,
}

/// Why a transaction is not in the WAL.
#[derive(Debug)]
struct NotCommitted {
    why: String,
    /// What its writer is told.
    error: Errno,
}

impl NotCommitted {
    fn new(why: String) -> Self {
        Self { why, error: Errno::EIO }
    }
}

/// What SQLite takes for a lock that somebody else has: it tries again as long as its busy handler says.
fn refused() -> Errno {
    Errno::EAGAIN
}

impl Loan {
    /// Its files were taken from whoever has them open.
    fn is_taken(&self) -> bool {
        self.shm.node.is_taken()
    }

    /// Makes a write to the WAL, or gives where the frame begins with which it would commit.
    fn take(&mut self, write: &Write<'_>, database: &Path) -> io::Result<Option<u64>> {
        let odd = |why: &str| {
            tracing::error!(database = %database.display(), "refused a write to the WAL {why}");
            Err(io::Error::from_raw_os_error(libc::EIO))
        };
        if self.frames.is_empty() {
            match committed_frames(&self.shm) {
                Some(frames) => self.frames.begin_after(frames),
                None => return odd("of a database whose wal-index says nothing"),
            }
        }
        match self.frames.take(write)? {
            Step::Written => write.file.write_all_at(write.data, write.offset).map(|()| None),
            Step::Commits(frame) => Ok(Some(frame)),
            Step::Odd => odd("that is none of a transaction"),
        }
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        // A thread that has ended needs not be told.
        let _ = self.events.send(Event::Stop);
    }
}

impl Lending {
    /// Begins to lend. What is to be borrowed is asked for by `requests`. The thread that is started answers the kernel: it must have the descriptors of those who serve.
    pub(super) fn new(requests: Sender<Request>, writers: Arc<Writers>) -> io::Result<Self> {
        let (events, come) = mpsc::channel();
        let shared = Arc::new(Shared {
            locks: Locks::default(),
            loans: Mutex::default(),
            keepers: Keepers::default(),
            numbers: AtomicU64::new(0),
            is_lingering: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            requests,
            writers,
        });
        let own = events.clone();
        let keeper =
            Keeper { shared: Arc::clone(&shared), own, later: Vec::new(), waiting: Vec::new(), is_looking: false };
        thread::Builder::new().name("mount-lending".to_owned()).spawn(move || keeper.run(&come))?;
        Ok(Self { shared, events })
    }

    /// The lock that would be in the way.
    pub(super) fn in_the_way(&self, file: u64, owner: u64, bytes: &Bytes, kind: Kind) -> Option<Lock> {
        self.shared.locks.in_the_way(file, owner, bytes, kind)
    }

    /// Somebody asks for a lock; `database` is where his wal-index belongs.
    pub(super) fn lock(&self, mut asking: Asking, database: impl FnOnce() -> Option<PathBuf>) {
        let is_free = asking.open.is_own || !self.shared.writers.is_ours_alone();
        let permit = if is_free { Permit::Free } else { permit(&asking) };
        if matches!(permit, Permit::Borrowed | Permit::Kept) {
            asking.database = database();
        }
        match (permit, asking.database.clone()) {
            (Permit::Free, _) => self.lock_freely(asking),
            (Permit::Borrowed, Some(database)) => self.borrow(asking, database),
            (Permit::Kept, Some(_)) => self.lock_freely(asking),
            (Permit::Never, _) => {
                tracing::debug!(bytes = ?asking.bytes, kind = ?asking.kind, "a lock that only the node takes is refused");
                asking.reply.error(refused());
            }
            (Permit::Borrowed | Permit::Kept, None) => asking.reply.error(Errno::EIO),
        }
    }

    fn lock_freely(&self, asking: Asking) {
        match self.shared.set(&asking) {
            Ok(()) => self.shared.have(asking, &self.events, Instant::now() + WAIT_MAX),
            Err(_) if asking.waits => {
                self.shared.waiting.fetch_add(1, Ordering::SeqCst);
                let _ = self.events.send(Event::Wait(asking));
            }
            Err(_) => asking.reply.error(refused()),
        }
    }

    fn borrow(&self, asking: Asking, database: PathBuf) {
        let Asking { open, owner, bytes, kind, reply, .. } = asking;
        if let Some(other) = self.shared.locks.in_the_way(open.node.inode, owner.id, &bytes, kind) {
            tracing::debug!(database = %database.display(), "its write lock is another's on this mount: {other:?}");
            return reply.error(refused());
        }
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        {
            let mut loans = self.shared.loans();
            if let Some(there) = loans.get(&database).cloned() {
                let mut there = lock(&there);
                if !there.is_taken() {
                    drop(loans);
                    return self.shared.lock_again(&mut there, (open, owner), reply);
                }
                // Its files are dead: whoever had it has nothing any more.
                self.shared.end(&mut there, &database);
                loans.remove(&database);
            }
            let phase = Phase::Asked(Some(reply), Instant::now() + BORROW_MAX);
            let loan = Loan { number, shm: open, owner, phase, frames: Frames::default(), is_left: false };
            loans.insert(database.clone(), Arc::new(Mutex::new(loan)));
        }
        let events = self.events.clone();
        let _ = events.send(Event::Borrowing);
        let of = database.clone();
        let answer = move |answer: Option<_>| {
            let answer = answer.unwrap_or_else(|| Err(Refusal::Later(NOBODY.to_owned())));
            let _ = events.send(Event::Borrowed { database: of, number, answer, until: None });
        };
        self.shared.ask(database, What::Borrow(Tell::new(answer)));
    }

    /// Somebody gives a lock back.
    pub(super) fn unlock(&self, open: &Open, owner: u64, bytes: &Bytes) {
        let file = open.node.inode;
        let clear = |locks: &Locks| locks.clear(file, owner, bytes);
        let is_held = |loan: &Loan| loan.owner.id == owner && !matches!(loan.phase, Phase::Asked(..) | Phase::Had(_));
        match bytes.contains(&WAL_WRITE) && open.is_for_readers() {
            true if !self.shared.linger(file, owner, bytes) => self.shared.leave(file, is_held, clear),
            true => {}
            false => clear(&self.shared.locks),
        }
        self.went(file);
    }

    /// Somebody has closed a descriptor of a file: all that he has of it goes.
    pub(super) fn flushed(&self, open: &Open, owner: u64) {
        let file = open.node.inode;
        let clear = |locks: &Locks| locks.clear(file, owner, &(0..=u64::MAX));
        self.shared.leave(file, |loan| loan.owner.id == owner, clear);
        self.went(file);
    }

    /// An open file is closed.
    pub(super) fn closed(&self, open: &Open, handle: u64) {
        let file = open.node.inode;
        self.shared.leave(file, |loan| loan.owner.handle == handle, |locks| locks.clear_handle(file, handle));
        self.went(file);
    }

    /// Locks of a file went.
    fn went(&self, file: u64) {
        self.freed(file);
        self.shared.let_go(file);
        if self.shared.is_lingering.swap(false, Ordering::SeqCst) {
            let _ = self.events.send(Event::Borrowing);
        }
    }

    fn freed(&self, file: u64) {
        if self.shared.waiting.load(Ordering::SeqCst) > 0 {
            let _ = self.events.send(Event::Freed(file));
        }
    }

    /// Somebody who is not the node writes to the WAL of a replica's database.
    pub(super) fn write(&self, wal: &Arc<Open>, database: &PathBuf, (offset, data): (u64, &[u8]), reply: ReplyWrite) {
        let Some(loan) = self.shared.loans().get(database).cloned() else {
            return reply.error(Errno::EROFS);
        };
        let mut held = lock(&loan);
        let write = Write { file: &wal.file, offset, data };
        let is_dead = held.is_taken() || wal.node.is_taken();
        if is_dead || !matches!(held.phase, Phase::Held) || !self.shared.has_lock(&held) {
            return reply.error(Errno::EIO);
        }
        match held.take(&write, database) {
            Ok(None) => reply.written(u32::try_from(data.len()).expect("bounded by the session")),
            Ok(Some(frame)) => {
                let withheld = Withheld { wal: Arc::clone(wal), offset, data: data.to_vec(), frame, reply };
                held.phase = Phase::Sending(withheld);
                let (number, frames) = (held.number, held.frames);
                drop(held);
                // What lies in the WAL is read while everybody else goes on.
                let changes = frames.changes(&write, frame);
                let changes = changes.map_err(|error| NotCommitted {
                    why: format!("read the WAL: {}", io_text(&error)),
                    error: Errno::from(error),
                });
                // Whoever borrows next comes after this: what is sent belongs to the loan that it was made under, or is not sent. Who lost the lock meanwhile may have read what others wrote.
                let held = lock(&loan);
                let is_lost = held.is_left || held.is_taken() || wal.node.is_taken();
                let lost = || Err(NotCommitted::new("the lock was lost before anything was sent".to_owned()));
                self.send(database, number, if is_lost { lost() } else { changes });
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    /// Has the primary commit what a loan has withheld. The loan is locked.
    fn send(&self, database: &Path, number: u64, changes: Result<Option<Changes>, NotCommitted>) {
        let (events, of) = (self.events.clone(), database.to_owned());
        let answer = move |answer| {
            let _ = events.send(Event::Committed { database: of, number, answer });
        };
        match changes {
            Ok(Some(changes)) => {
                let unknown = || NotCommitted::new(format!("{NOBODY}: nobody knows whether it was committed"));
                let told = move |told: Option<Result<(), String>>| {
                    answer(told.map_or_else(|| Err(unknown()), |told| told.map_err(NotCommitted::new)));
                };
                self.shared.ask(database.to_owned(), What::Commit(changes, Tell::new(told)));
            }
            Ok(None) => {
                counts::ended(Ended::TooLarge);
                let why = "it has more than 256 MiB: run it on the primary".to_owned();
                answer(Err(NotCommitted { why, error: Errno::EFBIG }));
            }
            Err(error) => answer(Err(error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of a lock that is not the node's, on a replica ("WAL-Mode File Format", "File Locking" of SQLite's documentation).
fn permit(asking: &Asking) -> Permit {
    let is_shm = asking.open.is_for_readers();
    let only = |byte: u64| asking.bytes == (byte..=byte);
    match asking.kind {
        Kind::Write if kept::is_asked_for(asking) => Permit::Kept,
        Kind::Write if asking.open.role == Role::Plain && !asking.open.node.is_ours => Permit::Never,
        // A wal-index that is no use has to be made anew by whoever reads. The WAL cannot be written without a loan.
        Kind::Write if is_shm && only(WAL_WRITE) && is_void(&asking.open) => Permit::Free,
        Kind::Write if is_shm && only(WAL_WRITE) => Permit::Borrowed,
        Kind::Write if is_shm && (only(WAL_CHECKPOINT) || asking.bytes.contains(&WAL_WRITE)) => Permit::Never,
        Kind::Read if is_shm && asking.bytes.contains(&WAL_WRITE) => Permit::Never,
        Kind::Read | Kind::Write => Permit::Free,
    }
}

/// What a wal-index says.
#[derive(Clone, Copy, Debug)]
enum Says {
    Header(WalIndexHeader),
    Nothing,
    /// The kernel does not write it by itself: what it says lies in a cache of the kernel's.
    Unseen,
}

impl Says {
    fn of(shm: &Open) -> io::Result<Self> {
        if !shm.is_passed {
            return Ok(Self::Unseen);
        }
        let mut start = [0; WAL_INDEX_SNAPSHOT_SIZE];
        match shm.file.read_exact_at(&mut start, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Self::Nothing),
            Err(error) => return Err(error),
        }
        WalIndexHeader::decode(&start)
            .map(|header| header.map_or(Self::Nothing, Self::Header))
            .map_err(io::Error::other)
    }
}

/// Whether a wal-index says nothing.
fn is_void(shm: &Open) -> bool {
    matches!(Says::of(shm), Ok(Says::Nothing))
}

/// How many frames of the WAL count for whoever reads: those of a transaction come behind them. Before SQLite begins the WAL anew it says so in the wal-index. `None`: nobody can say.
fn committed_frames(shm: &Open) -> Option<u32> {
    match Says::of(shm) {
        Ok(Says::Header(header)) => Some(header.max_frame),
        Ok(Says::Unseen) => Some(0),
        Ok(Says::Nothing) | Err(_) => None,
    }
}

impl Shared {
    fn loans(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Mutex<Loan>>>> {
        lock(&self.loans)
    }

    fn set(&self, asking: &Asking) -> Result<(), Lock> {
        let lock = Lock { owner: asking.owner, bytes: asking.bytes.clone(), kind: asking.kind };
        self.locks.set(asking.open.node.inode, lock)
    }

    fn has_lock(&self, loan: &Loan) -> bool {
        self.locks.is_written_by(loan.shm.node.inode, loan.owner.id, WAL_WRITE)
    }

    fn ask(&self, database: PathBuf, what: What) {
        // Who serves these ends with the process.
        let _ = self.requests.send(Request { database, what });
    }

    /// Somebody gives a lock back under which he has written nothing: he may have found that what he had read before is not the newest any more, and comes again at once.
    fn linger(&self, shm: u64, owner: u64, bytes: &Bytes) -> bool {
        let loans = self.loans();
        for loan in loans.values() {
            let mut loan = lock(loan);
            let is_his = loan.shm.node.inode == shm && loan.owner.id == owner && !loan.is_taken();
            if is_his && matches!(loan.phase, Phase::Held) && loan.frames.is_empty() {
                self.locks.clear(shm, owner, bytes);
                loan.phase = Phase::Had(Instant::now() + LINGER_UNUSED);
                self.is_lingering.store(true, Ordering::SeqCst);
                return true;
            }
        }
        false
    }

    /// Somebody asks for a lock of which there is a loan.
    fn lock_again(&self, loan: &mut Loan, (shm, owner): (Arc<Open>, Owner), reply: ReplyEmpty) {
        let is_his = loan.owner.id == owner.id && loan.shm.node.inode == shm.node.inode && self.has_lock(loan);
        if is_his {
            return reply.ok();
        }
        let bytes = WAL_WRITE..=WAL_WRITE;
        if !matches!(loan.phase, Phase::Had(_))
            || self.locks.set(shm.node.inode, Lock { owner, bytes, kind: Kind::Write }).is_err()
        {
            tracing::debug!(inode = shm.node.inode, ?owner, "the loan of its write lock is not for this one: {loan:?}");
            return reply.error(refused());
        }
        (loan.shm, loan.owner, loan.phase) = (shm, owner, Phase::Held);
        reply.ok();
    }

    /// Looks at the loans for which nobody waits any more. Gives whether there are others.
    fn look(&self, now: Instant) -> bool {
        let mut late = Vec::new();
        let mut is_left = false;
        let mut loans = self.loans();
        loans.retain(|database, loan| {
            // Who holds it is writing.
            let Ok(mut loan) = loan.try_lock() else {
                is_left = true;
                return true;
            };
            if loan.is_taken() {
                return !self.end(&mut loan, database);
            }
            let is_kept = match &mut loan.phase {
                Phase::Asked(reply, until) => {
                    let is_late = *until <= now;
                    late.extend(reply.take_if(|_| is_late));
                    is_left |= reply.is_some();
                    true
                }
                Phase::Had(until) => *until > now,
                Phase::Held | Phase::Sending(_) | Phase::Over => true,
            };
            is_left |= matches!(loan.phase, Phase::Had(_)) && is_kept;
            if !is_kept {
                self.ask(database.clone(), What::GiveBack);
            }
            is_kept
        });
        drop(loans);
        late.into_iter().for_each(|reply| reply.error(refused()));
        is_left
    }

    /// Takes locks of a wal-index away, and ends the loan that went with them. Nothing is written under it meanwhile.
    fn leave(&self, shm: u64, is_gone: impl Fn(&Loan) -> bool, clear: impl FnOnce(&Locks)) {
        let mut loans = self.loans();
        let gone = loans.iter().find(|(_, loan)| {
            let loan = lock(loan);
            loan.shm.node.inode == shm && is_gone(&loan)
        });
        let Some((database, loan)) = gone.map(|(database, loan)| (database.clone(), Arc::clone(loan))) else {
            drop(loans);
            return clear(&self.locks);
        };
        let mut loan = lock(&loan);
        clear(&self.locks);
        if self.end(&mut loan, &database) {
            loans.remove(&database);
        }
    }

    /// Ends a loan. Gives whether nothing of it is left.
    fn end(&self, loan: &mut Loan, database: &Path) -> bool {
        match std::mem::replace(&mut loan.phase, Phase::Over) {
            // Whoever commits says what has become of it, to nobody.
            sending @ Phase::Sending(_) => {
                (loan.phase, loan.is_left) = (sending, true);
                return false;
            }
            Phase::Asked(Some(reply), _) => reply.error(refused()),
            Phase::Asked(None, _) | Phase::Had(_) | Phase::Held | Phase::Over => {}
        }
        self.ask(database.to_owned(), What::GiveBack);
        true
    }

    /// Removes the loan of this number, and gives it back before anybody asks for another.
    fn remove(&self, database: &Path, number: u64) {
        let mut loans = self.loans();
        if loans.get(database).is_some_and(|loan| lock(loan).number == number) {
            loans.remove(database);
            self.ask(database.to_owned(), What::GiveBack);
        }
    }

    /// The loan of this number.
    fn loan(&self, database: &PathBuf, number: u64) -> Option<Arc<Mutex<Loan>>> {
        self.loans().get(database).filter(|loan| lock(loan).number == number).cloned()
    }
}

/// Answers those who wait.
struct Keeper {
    shared: Arc<Shared>,
    own: Sender<Event>,
    /// What is to be tried again.
    later: Vec<Event>,
    waiting: Vec<(Asking, Instant)>,
    /// There are loans whose time is looked at.
    is_looking: bool,
}

impl Keeper {
    fn run(mut self, come: &Receiver<Event>) {
        let (mut looked, mut tried) = (Instant::now(), Instant::now());
        loop {
            let wait = if self.later.is_empty() { LOOK } else { TRY };
            let event = match self.later.is_empty() && self.waiting.is_empty() && !self.is_looking {
                true => come.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => come.recv_timeout(wait),
            };
            // Whatever comes in between.
            if tried.elapsed() >= TRY {
                tried = Instant::now();
                std::mem::take(&mut self.later).into_iter().for_each(|event| self.take(event));
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.is_looking = self.shared.look(looked);
                self.give_up(looked);
            }
            match event {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Borrowed { database, number, answer, until } => self.borrowed(database, number, answer, until),
            Event::Committed { database, number, answer } => self.committed(&database, number, answer),
            Event::Borrowing => self.is_looking = true,
            Event::Wait(asking) => {
                self.waiting.push((asking, Instant::now() + WAIT_MAX));
                self.try_all(None);
            }
            Event::Freed(file) => self.try_all(Some(file)),
            Event::Kept { asking, until, answer } => self.kept(asking, until, answer),
            Event::KeepAgain(asking, until) => self.shared.have(asking, &self.own, until),
            Event::Stop => {}
        }
    }

    fn borrowed(&mut self, database: PathBuf, number: u64, answer: Result<(), Refusal>, until: Option<Instant>) {
        let Some(loan) = self.shared.loan(&database, number) else { return };
        let mut held = lock(&loan);
        let Phase::Asked(reply, asked_until) = std::mem::replace(&mut held.phase, Phase::Over) else { return };
        let answer = match answer {
            // Meanwhile this node has become the primary: everybody writes.
            Err(_) if !self.shared.writers.is_ours_alone() => Ok(()),
            answer => answer,
        };
        let error = match (answer, reply) {
            (Ok(()), None) => {
                held.phase = Phase::Had(Instant::now() + LINGER);
                self.is_looking = true;
                return;
            }
            (Ok(()), Some(reply)) => {
                let (owner, bytes) = (held.owner, WAL_WRITE..=WAL_WRITE);
                match self.shared.locks.set(held.shm.node.inode, Lock { owner, bytes, kind: Kind::Write }) {
                    Ok(()) => {
                        held.phase = Phase::Held;
                        return reply.ok();
                    }
                    Err(_) if until.is_none_or(|until| Instant::now() < until) => {
                        held.phase = Phase::Asked(Some(reply), asked_until);
                        let until = until.or_else(|| Some(Instant::now() + TRY_MAX));
                        self.later.push(Event::Borrowed { database, number, answer: Ok(()), until });
                        return;
                    }
                    Err(_) => Some((reply, refused())),
                }
            }
            (Err(Refusal::Later(why)), reply) => {
                tracing::debug!(database = %database.display(), "its write lock is not to be had: {why}");
                reply.map(|reply| (reply, refused()))
            }
            (Err(Refusal::Never(why)), reply) => {
                tracing::warn!(database = %database.display(), "its write lock cannot be borrowed: {why}");
                reply.map(|reply| (reply, Errno::EIO))
            }
        };
        drop(held);
        self.shared.remove(&database, number);
        if let Some((reply, error)) = error {
            reply.error(error);
        }
    }

    fn committed(&self, database: &PathBuf, number: u64, answer: Result<(), NotCommitted>) {
        let Some(loan) = self.shared.loan(database, number) else { return };
        let mut held = lock(&loan);
        let Phase::Sending(withheld) = std::mem::replace(&mut held.phase, Phase::Over) else { return };
        let Withheld { wal, offset, data, frame, reply } = withheld;
        let may_write = self.shared.has_lock(&held) && !held.is_left && !held.is_taken() && !wal.node.is_taken();
        let name = database.display();
        match answer {
            Ok(()) if may_write => match wal.file.write_all_at(&data, offset) {
                Ok(()) => {
                    held.frames.committed(frame);
                    held.phase = Phase::Held;
                    reply.written(u32::try_from(data.len()).expect("bounded by the session"));
                }
                Err(error) => {
                    tracing::warn!(database = %name, "the primary has committed what cannot be written here: {error}");
                    reply.error(Errno::from(error));
                }
            },
            Ok(()) => {
                tracing::warn!(database = %name, "the primary has committed what its writer did not wait for");
                reply.error(Errno::EIO);
            }
            Err(NotCommitted { why, error }) => {
                tracing::warn!(database = %name, "a transaction was not forwarded: {why}");
                reply.error(error);
            }
        }
        let is_left = held.is_left;
        drop(held);
        if is_left {
            self.shared.remove(database, number);
        }
    }

    /// Tries again to get the locks that somebody waits for.
    fn try_all(&mut self, file: Option<u64>) {
        for (asking, until) in std::mem::take(&mut self.waiting) {
            let is_meant = file.is_none_or(|file| asking.open.node.inode == file);
            if !is_meant || self.shared.set(&asking).is_err() {
                self.waiting.push((asking, until));
                continue;
            }
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
            self.shared.have(asking, &self.own, until);
        }
    }

    fn give_up(&mut self, now: Instant) {
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, until)| *until <= now);
        self.waiting = waiting;
        let late: Vec<(Asking, Instant)> = late;
        for (asking, _) in late {
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
            asking.reply.error(refused());
        }
    }
}
