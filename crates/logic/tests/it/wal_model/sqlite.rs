//! SQLite's WAL as a model: the steps that a connection makes on shared memory, locks and files.
//!
//! Every function of a connection follows the one of `wal.c` that its comment names, in the order of its reads, writes and
//! locks. Before each of them the connection lets others run ([`tick`]), and may die there. What is modelled:
//!
//! - **Locks**: WRITE, CHECKPOINT, RECOVER, READ(0) to READ(4), shared and exclusive, never waited for. A dead connection
//!   holds none.
//! - **Wal-index header**: two copies, written one after the other; a reader takes them only when they are equal.
//! - **Readers** take READ(0) when everything is backfilled, otherwise the best read mark, moving one if they can, and start
//!   again when the header has changed under them.
//! - **Writers** need WRITE and a header that is still theirs. One that holds READ(0) restarts the WAL if it gets READ(1) to
//!   READ(4) exclusively and `backfill` is not 0. The new salts are in shared memory at once, in the file only with the
//!   first frame, and a connection that has never restarted a WAL draws both of them anew for it.
//! - **Transactions** spill frames before they commit, overwrite their own frames in place, and roll back.
//! - **Checkpoints** need CHECKPOINT; all but PASSIVE also WRITE, and fall back to PASSIVE. They copy up to the smallest read
//!   mark in use, under READ(0), exclusively. A page whose last frame lies beyond is left out. FULL, RESTART and TRUNCATE
//!   behave as documented; TRUNCATE resets even an empty WAL.
//! - **Recovery** by whoever meets a broken header and gets WRITE, CHECKPOINT and RECOVER: it reads the WAL file up to the last
//!   valid commit frame, sets `backfill` to 0 and the read marks that nobody holds.
//!
//! One gap of SQLite's own is left out: a process that dies right after it has restarted the header, before it sets `backfill`
//! to 0 (two stores, no system call between them), leaves a database that loses commits. Nobody dies there.
//!
//! Not modelled: syncs and power loss, sizes of database and pages, the WAL's deletion by the last connection (the capturer
//! always has one open), waiting for locks.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rhyolite_format::sqlite::wal::Salt;

use super::world::{
    CHECKPOINT, FileHeader, Frame, Header, LOCKS, NO_HEADER, PAGES, READ_MARKS, RECOVER, UNUSED, WRITE, World,
    header_sum, read,
};

/// Something that only another connection can end: try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// Kinds of checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Passive,
    Full,
    Restart,
    Truncate,
}

/// Lets the others run. The scheduler decides who is next.
pub(super) fn tick() -> impl Future<Output = ()> {
    struct Tick(bool);
    impl Future for Tick {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
        }
    }
    Tick(false)
}

/// A connection. When it is dropped its process has died, at the tick where it was.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) world: Rc<RefCell<World>>,
    /// Its bit in the locks.
    who: u64,
    /// Its copy of the header, ahead of the shared one while it writes.
    pub(super) header: Header,
    /// The read mark that it holds.
    pub(super) mark: Option<usize>,
    /// First frame that it need not look for in the database.
    min_frame: u32,
    /// WAL restarts that it has made or read of.
    restarts: u32,
    writing: bool,
    checkpointing: bool,
    /// First frame that was overwritten in place in this transaction.
    overwritten: Option<u32>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        world.unlock(0..LOCKS, self.who);
        world.connections &= !self.who;
    }
}

impl Connection {
    pub(super) fn open(world: &Rc<RefCell<World>>) -> Self {
        let who = {
            let mut world = world.borrow_mut();
            let who = 1 << world.connections.trailing_ones();
            world.connections |= who;
            who
        };
        Self {
            world: Rc::clone(world),
            who,
            header: NO_HEADER,
            mark: None,
            min_frame: 0,
            restarts: 0,
            writing: false,
            checkpointing: false,
            overwritten: None,
        }
    }

    async fn lock_exclusive(&self, locks: std::ops::Range<usize>) -> bool {
        tick().await;
        self.world.borrow_mut().try_lock_exclusive(locks, self.who)
    }

    async fn lock_shared(&self, lock: usize) -> bool {
        tick().await;
        self.world.borrow_mut().try_lock_shared(lock, self.who)
    }

    async fn unlock(&self, locks: std::ops::Range<usize>) {
        tick().await;
        self.world.borrow_mut().unlock(locks, self.who);
    }

    /// The header as anybody can read it, without a lock; `None` while it is broken. walIndexTryHdr.
    pub(super) async fn live_header(&self) -> Option<Header> {
        tick().await;
        let first = self.world.borrow().headers[0];
        tick().await;
        let second = self.world.borrow().headers[1];
        (first == second && first.is_init).then_some(first)
    }

    /// walIndexWriteHdr: the second copy first. With the first copy commits become part of the truth.
    async fn write_header(&mut self) {
        self.header.is_init = true;
        tick().await;
        self.world.borrow_mut().headers[1] = self.header;
        tick().await;
        let mut world = self.world.borrow_mut();
        world.headers[0] = self.header;
        world.count_commits(self.header.salt, self.header.max_frame);
        assert_eq!(world.commits.len(), self.header.commits);
    }

    /// walIndexReadHdr.
    async fn read_header(&mut self) -> Result<(), Busy> {
        if let Some(header) = self.live_header().await {
            self.header = header;
            return Ok(());
        }
        let had_lock = self.writing;
        if !had_lock && !self.lock_exclusive(WRITE..WRITE + 1).await {
            return Err(Busy);
        }
        let result = match self.live_header().await {
            Some(header) => {
                self.header = header;
                Ok(())
            }
            None => self.recover().await,
        };
        if !had_lock {
            self.unlock(WRITE..WRITE + 1).await;
        }
        result
    }

    /// walIndexRecover. WRITE is held.
    async fn recover(&mut self) -> Result<(), Busy> {
        let locks = if self.checkpointing { RECOVER..RECOVER + 1 } else { CHECKPOINT..RECOVER + 1 };
        if !self.lock_exclusive(locks.clone()).await {
            return Err(Busy);
        }
        tick().await;
        self.header = self.read_wal_file();
        self.write_header().await;
        tick().await;
        self.world.borrow_mut().backfill = 0;
        for mark in 1..READ_MARKS {
            if self.lock_exclusive(read(mark)..read(mark) + 1).await {
                let max_frame = self.header.max_frame;
                let value = if mark == 1 && max_frame > 0 { max_frame } else { UNUSED };
                self.world.borrow_mut().marks[mark] = value;
                self.unlock(read(mark)..read(mark) + 1).await;
            }
        }
        self.unlock(locks).await;
        Ok(())
    }

    /// What the WAL file holds, up to its last valid commit frame.
    fn read_wal_file(&mut self) -> Header {
        let mut world = self.world.borrow_mut();
        world.counts.recoveries += 1;
        let Some(FileHeader { salt, sequence }) = world.file_header else {
            return Header { is_init: true, commits: world.commits.len(), ..NO_HEADER };
        };
        self.restarts = sequence;
        let mut sum = header_sum(salt);
        let (mut max_frame, mut checksum) = (0, sum);
        for (number, frame) in (1..).zip(&world.frames) {
            sum = frame.sum(sum);
            if frame.salt != salt || frame.checksum != sum {
                break;
            }
            if frame.commit {
                (max_frame, checksum) = (number, sum);
            }
        }
        let counted = world.counted.get(&salt).copied().unwrap_or(0);
        let new = (counted..max_frame).filter(|index| world.frames[*index as usize].commit).count();
        world.counts.recovered_commits += new as u32;
        let commits = world.commits.len() + new;
        Header { is_init: true, change: 0, max_frame, salt, checksum, commits }
    }

    /// Begins a read transaction. sqlite3WalBeginReadTransaction.
    pub(super) async fn begin_read(&mut self) {
        while self.try_begin_read(false).await.is_err() {}
    }

    /// walTryBeginRead.
    async fn try_begin_read(&mut self, use_wal: bool) -> Result<(), Busy> {
        assert!(self.mark.is_none());
        if !use_wal {
            self.read_header().await?;
            tick().await;
            let backfill = self.world.borrow().backfill;
            if backfill == self.header.max_frame && self.lock_shared(read(0)).await {
                tick().await;
                if self.world.borrow().headers[0] != self.header {
                    self.unlock(read(0)..read(0) + 1).await;
                    return Err(Busy);
                }
                self.mark = Some(0);
                return Ok(());
            }
        }
        let (mark, value) = self.choose_mark().await.ok_or(Busy)?;
        if !self.lock_shared(read(mark)).await {
            return Err(Busy);
        }
        tick().await;
        self.min_frame = self.world.borrow().backfill + 1;
        tick().await;
        let unchanged = {
            let world = self.world.borrow();
            world.marks[mark] == value && world.headers[0] == self.header
        };
        if !unchanged {
            self.unlock(read(mark)..read(mark) + 1).await;
            return Err(Busy);
        }
        self.mark = Some(mark);
        Ok(())
    }

    /// The best read mark for this header, moved up if need be and possible.
    async fn choose_mark(&mut self) -> Option<(usize, u32)> {
        let max_frame = self.header.max_frame;
        let mut best: Option<(usize, u32)> = None;
        for mark in 1..READ_MARKS {
            tick().await;
            let value = self.world.borrow().marks[mark];
            if value <= max_frame && best.is_none_or(|(_, best)| best <= value) {
                best = Some((mark, value));
            }
        }
        if best.is_some_and(|(_, value)| value == max_frame) {
            return best;
        }
        for mark in 1..READ_MARKS {
            if self.lock_exclusive(read(mark)..read(mark) + 1).await {
                self.world.borrow_mut().marks[mark] = max_frame;
                self.unlock(read(mark)..read(mark) + 1).await;
                return Some((mark, max_frame));
            }
        }
        best
    }

    /// sqlite3WalEndReadTransaction.
    pub(super) async fn end_read(&mut self) {
        assert!(!self.writing);
        if let Some(mark) = self.mark {
            self.unlock(read(mark)..read(mark) + 1).await;
            self.mark = None;
        }
    }

    /// Reads the whole database and checks that it is what was committed when the transaction began. sqlite3WalFindFrame.
    pub(super) fn check_snapshot(&self) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        world.counts.reads_checked += 1;
        let seen = match self.mark.expect("a read transaction") {
            0 => world.database,
            _ => world.view(self.min_frame, self.header.max_frame),
        };
        let expected = world.state_after(self.header.commits);
        if seen == expected { Ok(()) } else { Err(format!("a reader saw {seen:?}, not {expected:?}: {self:?}")) }
    }

    /// sqlite3WalBeginWriteTransaction. The read transaction goes on in any case.
    pub(super) async fn begin_write(&mut self) -> Result<(), Busy> {
        assert!(self.mark.is_some() && !self.writing);
        if !self.lock_exclusive(WRITE..WRITE + 1).await {
            return Err(Busy);
        }
        tick().await;
        if self.world.borrow().headers[0] != self.header {
            self.unlock(WRITE..WRITE + 1).await;
            return Err(Busy);
        }
        self.writing = true;
        Ok(())
    }

    /// sqlite3WalEndWriteTransaction.
    async fn end_write(&mut self) {
        self.unlock(WRITE..WRITE + 1).await;
        self.writing = false;
        self.overwritten = None;
    }

    /// Ends a write transaction without a commit. sqlite3WalUndo.
    pub(super) async fn roll_back(&mut self) {
        assert!(self.writing);
        tick().await;
        let world = Rc::clone(&self.world);
        self.header = world.borrow().headers[0];
        world.borrow_mut().counts.rollbacks += 1;
        self.end_write().await;
    }

    /// Writes pages, and commits with the last of them if so asked. sqlite3WalFrames.
    pub(super) async fn write(&mut self, pages: &[(usize, u64)], commit: bool) {
        assert!(self.writing && !pages.is_empty());
        let own = {
            let live = self.world.borrow().headers[0];
            (live != self.header).then_some(live.max_frame + 1)
        };
        self.restart_log().await;
        if self.header.max_frame == 0 {
            self.write_file_header().await;
        }
        for (i, &(page, value)) in pages.iter().enumerate() {
            let last = commit && i + 1 == pages.len();
            tick().await;
            let mut world = self.world.borrow_mut();
            let earlier = own.and_then(|first| world.find(page, first, self.header.max_frame));
            if let Some(number) = earlier.filter(|_| !last) {
                world.frames[number as usize - 1].value = value;
                world.counts.in_place += 1;
                self.overwritten = Some(self.overwritten.map_or(number, |first| first.min(number)));
                continue;
            }
            let mut frame = Frame { page, value, commit: last, salt: self.header.salt, checksum: 0 };
            frame.checksum = frame.sum(self.header.checksum);
            self.header.max_frame += 1;
            self.header.checksum = frame.checksum;
            world.put_frame(self.header.max_frame, frame);
        }
        if commit {
            self.commit().await;
        }
    }

    async fn commit(&mut self) {
        if let Some(first) = self.overwritten.take() {
            self.rewrite_checksums(first).await;
        }
        self.header.change += 1;
        self.header.commits += 1;
        self.write_header().await;
        self.end_write().await;
    }

    /// walRewriteChecksums.
    async fn rewrite_checksums(&mut self, first: u32) {
        let mut sum = match first {
            1 => header_sum(self.header.salt),
            _ => self.world.borrow().frames[first as usize - 2].checksum,
        };
        for number in first..=self.header.max_frame {
            tick().await;
            let frame = &mut self.world.borrow_mut().frames[number as usize - 1];
            sum = frame.sum(sum);
            frame.checksum = sum;
        }
        self.header.checksum = sum;
    }

    /// walRestartLog.
    async fn restart_log(&mut self) {
        if self.mark != Some(0) {
            return;
        }
        tick().await;
        let backfill = self.world.borrow().backfill;
        if backfill > 0 && self.lock_exclusive(read(1)..read(READ_MARKS)).await {
            self.restart_header().await;
            self.world.borrow_mut().counts.restarts += 1;
            self.unlock(read(1)..read(READ_MARKS)).await;
        }
        self.unlock(read(0)..read(0) + 1).await;
        self.mark = None;
        while self.try_begin_read(true).await.is_err() {}
    }

    /// walRestartHdr. READ(1) to READ(4) are held.
    async fn restart_header(&mut self) {
        self.restarts += 1;
        self.header.max_frame = 0;
        let random = self.world.borrow_mut().random() as u32;
        self.header.salt = Salt(self.header.salt.0.wrapping_add(1), random);
        self.write_header().await;
        self.world.borrow_mut().fragile += 1;
        tick().await;
        self.world.borrow_mut().backfill = 0;
        self.world.borrow_mut().fragile -= 1;
        tick().await;
        self.world.borrow_mut().marks = [0, 0, UNUSED, UNUSED, UNUSED];
    }

    async fn write_file_header(&mut self) {
        if self.restarts == 0 {
            let random = self.world.borrow_mut().random();
            self.header.salt = Salt((random >> 32) as u32, random as u32);
        }
        self.header.checksum = header_sum(self.header.salt);
        tick().await;
        let header = FileHeader { salt: self.header.salt, sequence: self.restarts };
        self.world.borrow_mut().file_header = Some(header);
    }

    /// sqlite3WalCheckpoint.
    pub(super) async fn checkpoint(&mut self, mode: Mode) -> Result<(), Busy> {
        assert!(self.mark.is_none() && !self.writing, "SQLite refuses a checkpoint within a transaction");
        if !self.lock_exclusive(CHECKPOINT..CHECKPOINT + 1).await {
            return Err(Busy);
        }
        self.checkpointing = true;
        if mode != Mode::Passive && self.lock_exclusive(WRITE..WRITE + 1).await {
            self.writing = true;
        }
        let mode = if self.writing { mode } else { Mode::Passive };
        let result = match self.read_header().await {
            Ok(()) => self.checkpoint_locked(mode).await,
            Err(Busy) => Err(Busy),
        };
        if self.writing {
            self.end_write().await;
        }
        self.unlock(CHECKPOINT..CHECKPOINT + 1).await;
        self.checkpointing = false;
        result
    }

    /// walCheckpoint.
    async fn checkpoint_locked(&mut self, mode: Mode) -> Result<(), Busy> {
        tick().await;
        let backfill = self.world.borrow().backfill;
        if backfill < self.header.max_frame {
            self.backfill().await;
        }
        if mode == Mode::Passive {
            return Ok(());
        }
        tick().await;
        if self.world.borrow().backfill < self.header.max_frame {
            return Err(Busy);
        }
        if mode == Mode::Full {
            return Ok(());
        }
        if !self.lock_exclusive(read(1)..read(READ_MARKS)).await {
            return Err(Busy);
        }
        if mode == Mode::Truncate {
            self.restart_header().await;
            tick().await;
            let mut world = self.world.borrow_mut();
            world.frames.clear();
            world.file_header = None;
            world.counts.truncations += 1;
        }
        self.unlock(read(1)..read(READ_MARKS)).await;
        Ok(())
    }

    /// The last frame that may be copied: readers must not see pages of later frames in the database.
    async fn safe_frame(&mut self) -> u32 {
        let mut safe = self.header.max_frame;
        for mark in 1..READ_MARKS {
            tick().await;
            let value = self.world.borrow().marks[mark];
            if safe <= value {
                continue;
            }
            if self.lock_exclusive(read(mark)..read(mark) + 1).await {
                self.world.borrow_mut().marks[mark] = if mark == 1 { safe } else { UNUSED };
                self.unlock(read(mark)..read(mark) + 1).await;
            } else {
                safe = value;
            }
        }
        safe
    }

    async fn backfill(&mut self) {
        let safe = self.safe_frame().await;
        tick().await;
        let backfill = self.world.borrow().backfill;
        if backfill >= safe {
            return;
        }
        // The newest frame of each page, wherever it is: beyond `safe` it keeps its page from being copied.
        let newest: Vec<_> = {
            let world = self.world.borrow();
            let last = self.header.max_frame.min(world.frames.len() as u32);
            (0..PAGES).filter_map(|page| Some((page, world.find(page, backfill + 1, last)?))).collect()
        };
        if !self.lock_exclusive(read(0)..read(0) + 1).await {
            return;
        }
        tick().await;
        let (backfill, restarted) = {
            let world = self.world.borrow();
            (world.backfill, world.headers[0].salt != self.header.salt && !world.reset_bug)
        };
        if !restarted {
            for (page, number) in newest {
                if number <= backfill || number > safe {
                    continue;
                }
                tick().await;
                let mut world = self.world.borrow_mut();
                world.database[page] = world.frames[number as usize - 1].value;
            }
            tick().await;
            let mut world = self.world.borrow_mut();
            world.backfill = safe;
            world.counts.backfills += 1;
        }
        self.unlock(read(0)..read(0) + 1).await;
    }
}
