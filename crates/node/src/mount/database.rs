//! What the mount knows of one database: which pages the transaction under way has written, and when it ends.
//!
//! A transaction in rollback mode writes the journal's header, then pages of the database, then finalises the journal: it is unlinked,
//! truncated, or its header is zeroed. That is the commit, or the end of a rollback; SQLite still holds the EXCLUSIVE lock. Pages that are
//! reused from the freelist stand in no journal, so what counts are the writes to the database file.
//!
//! The kernel may write the journal unseen ([`super::journal`]). Its first bytes are looked at before anything that depends on them, so that what is
//! known of it is what a reader of the file would find.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::{PageNumber, PageSize, Timestamp};

use crate::capture::backlog::Keeper;
use crate::capture::commits::{Commit, CommitLine, QUEUE_BYTES_MAX, WriteMark};
use crate::capture::gate::Ticket;
use crate::time;

use super::journal::{self, Start};

/// Writes are noted by pieces of this size: the smallest page.
const PIECE: u64 = 512;
/// So many pieces of one transaction are noted; a larger one is found by comparing all pages.
const PIECES_MAX: usize = 1 << 20;

/// A database, or a file that may become one.
#[derive(Debug, Default)]
pub(super) struct Database {
    state: Mutex<State>,
    line: OnceLock<Arc<CommitLine>>,
}

/// A journal that has a header by which it would be played back.
#[derive(Clone, Copy, Debug)]
struct Journal {
    /// Its random number, where it was read from the file.
    nonce: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    /// The journal that would be played back.
    journal: Option<Journal>,
    /// The journal, by the handles of those who write it through the kernel.
    passed: Vec<(u64, Arc<File>)>,
    /// The journal is never synced, and a thread looks at it.
    is_unsynced: bool,
    /// Pieces that were written since the last journal was finalised.
    written: BTreeSet<u64>,
    /// There were too many.
    is_cut: bool,
    /// They are recorded already: somebody waits, or has waited, for the store to have them.
    is_promised: bool,
    /// A sync since the last journal was finalised was one that waited, or was refused. SQLite syncs the database once before a commit, so another sync is that of a
    /// rollback.
    was_answered: bool,
    /// The thread that made the last write, by the kernel's number.
    writer: u32,
    /// Keeps its commits for the case that the process is killed.
    keeper: Keeper,
}

/// What is done with a write to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is done.
    Allowed,
    /// It is done. Nobody may tell that its transaction has ended: from now on the journal is to be looked at.
    Unsynced,
    /// It is refused: it could not be taken back, and its end would not be seen.
    Unjournaled,
}

/// What became of a transaction that is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// It is recorded, and on its way to the store.
    Made,
    /// Nobody takes it, for the moment.
    Unheard,
    /// It is too large to be taken before its end.
    TooLarge,
}

impl Database {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its commits go here.
    pub(super) fn attach(&self, line: impl FnOnce() -> Arc<CommitLine>) {
        self.line.get_or_init(line);
    }

    fn line(&self) -> Option<&Arc<CommitLine>> {
        self.line.get().filter(|line| line.is_listening())
    }

    /// The journal begins with these bytes, and was not written just now.
    pub(super) fn note_journal(&self, start: &[u8], open: impl FnOnce() -> io::Result<File>) {
        let mut state = self.lock();
        self.look(&mut state, open);
        if state.passed.is_empty() {
            state.journal = journal::is_played(start).then_some(Journal { nonce: None });
        }
    }

    /// The journal's header was written. Before its first sync it has no magic number, and neither after it was zeroed: only that is an end.
    pub(super) fn note_journal_header(&self, start: &[u8], open: impl Fn() -> io::Result<File>) {
        let mut state = self.lock();
        self.look(&mut state, &open);
        if journal::is_played(start) {
            state.journal.get_or_insert(Journal { nonce: None });
        } else if state.journal.is_some() {
            // The journal of a group is cut, not zeroed.
            self.end(&mut state, None, open);
        }
    }

    /// Somebody has opened the journal, and writes it through the kernel.
    pub(super) fn note_passed(&self, handle: u64, journal: Arc<File>) {
        let mut state = self.lock();
        // One that was removed since it was opened is no journal any more.
        if journal.metadata().is_ok_and(|meta| meta.nlink() > 0) {
            state.passed.push((handle, journal));
        }
    }

    /// One of them has closed it.
    pub(super) fn note_closed(&self, handle: u64, open: impl FnOnce() -> io::Result<File>) {
        let mut state = self.lock();
        self.look(&mut state, open);
        state.passed.retain(|(passed, _)| *passed != handle);
    }

    /// Looks whether the journal has begun or ended unseen.
    pub(super) fn look_at_journal(&self, open: impl FnOnce() -> io::Result<File>) {
        self.look(&mut self.lock(), open);
    }

    /// The same, for who is to look again as long as this is true.
    pub(super) fn look_at_unsynced(&self, open: impl FnOnce() -> io::Result<File>) -> bool {
        let mut state = self.lock();
        self.look(&mut state, open);
        state.is_unsynced = !state.passed.is_empty();
        if let Some(line) = self.line.get() {
            line.set_unsynced(state.is_unsynced);
        }
        state.is_unsynced
    }

    /// Brings what is known of a journal that the kernel writes to what it says now. True when it is never synced.
    fn look(&self, state: &mut State, open: impl FnOnce() -> io::Result<File>) -> bool {
        let Some((_, file)) = state.passed.last() else { return false };
        let (found, is_unsynced) = match journal::start(file) {
            Start::Played { nonce, is_unsynced } => (Some(nonce), is_unsynced),
            Start::Void => (None, false),
            Start::Unknown => return false,
        };
        if let Some(journal) = state.journal
            && found.is_none_or(|found| journal.nonce.is_some_and(|nonce| nonce != found))
        {
            self.end(state, None, open);
        }
        state.journal = found.map(|nonce| Journal { nonce: Some(nonce) });
        is_unsynced
    }

    /// Notes a write that is about to be made by this thread, to a file that is `file`.
    pub(super) fn note_write(&self, file: &File, offset: u64, len: u64, thread: u32) -> Verdict {
        let mut state = self.lock();
        let is_unsynced = self.look(&mut state, || file.try_clone());
        state.writer = thread;
        if state.journal.is_none() {
            // Where nobody records commits the next look finds everything.
            let Some(line) = self.line() else { return Verdict::Allowed };
            if !is_wal(file) {
                return Verdict::Unjournaled;
            }
            // A checkpoint: who still follows it as in rollback mode was told nothing of the commits that it writes.
            line.cut();
            return Verdict::Allowed;
        }
        state.is_promised = false;
        if len > 0 && !state.is_cut {
            state.written.extend(offset / PIECE..=(offset + len - 1) / PIECE);
            if state.written.len() > PIECES_MAX {
                state.written = BTreeSet::new();
                state.is_cut = true;
            }
        }
        if !is_unsynced || std::mem::replace(&mut state.is_unsynced, true) {
            return Verdict::Allowed;
        }
        if let Some(line) = self.line.get() {
            line.set_unsynced(true);
        }
        Verdict::Unsynced
    }

    /// Asks whether the file, which is `file`, may be cut to this length. What SQLite cuts off after a commit, its header counts no more.
    pub(super) fn may_cut(&self, file: &File, bytes: u64) -> io::Result<Verdict> {
        let mut state = self.lock();
        self.look(&mut state, || file.try_clone());
        if state.journal.is_some() || self.line().is_none() {
            return Ok(Verdict::Allowed);
        }
        let Some(header) = read_header(file)? else { return Ok(Verdict::Allowed) };
        let there = file.metadata()?.len();
        let counted = u64::from(header.page_count(there).get()) * u64::from(header.page_size.get());
        Ok(if bytes < counted.min(there) { Verdict::Unjournaled } else { Verdict::Allowed })
    }

    /// The file has got another length: after a commit that left fewer pages, this is no change of the database.
    pub(super) fn note_truncated(&self, open: impl Fn() -> io::Result<File>) {
        let mut state = self.lock();
        self.look(&mut state, &open);
        if state.journal.is_none()
            && let Some(line) = self.line()
        {
            match open() {
                Ok(file) => put(line, &file, &BTreeSet::new(), time::now(), &mut state.keeper),
                Err(_) => line.cut(),
            }
        }
    }

    /// A transaction has written pages, its journal can still take them back, and who has written them syncs them. Others may sync in the middle of it.
    pub(super) fn is_about_to_commit(&self, thread: u32) -> bool {
        let state = self.lock();
        let has_written = state.is_cut || !state.written.is_empty();
        state.journal.is_some() && !state.was_answered && has_written && state.writer == thread
    }

    /// Its sync is refused: what comes next is the rollback, which waits for nobody.
    pub(super) fn note_refused(&self) {
        self.lock().was_answered = true;
    }

    /// The transaction that is about to end is recorded now; who waits for the store to have it is told by `ticket`. The file is `file`.
    pub(super) fn promise(&self, file: &File, ticket: &dyn Fn() -> Ticket) -> Promise {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(line) = self.line() else { return Promise::Unheard };
        if state.is_cut {
            return Promise::TooLarge;
        }
        match read_commit(file, &state.written, time::now()) {
            Ok(Some(commit)) => line.promise(commit, ticket(), &mut state.keeper),
            Ok(None) | Err(_) => return Promise::TooLarge,
        }
        (state.is_promised, state.was_answered) = (true, true);
        Promise::Made
    }

    /// Another file has the journal's name, or none: who has it open writes none any more.
    pub(super) fn note_moved(&self) {
        self.lock().passed.clear();
    }

    /// The journal was cut.
    pub(super) fn note_cut(&self, group: Option<Timestamp>, open: impl FnOnce() -> io::Result<File>) {
        self.end(&mut self.lock(), group, open);
    }

    /// The journal was removed. Who has it open writes none any more.
    pub(super) fn note_removed(&self, group: Option<Timestamp>, open: impl FnOnce() -> io::Result<File>) {
        let mut state = self.lock();
        state.passed.clear();
        self.end(&mut state, group, open);
    }

    /// The journal was finalised: what was written is a transaction, or was taken back. One of a group ended when the group did.
    fn end(&self, state: &mut State, group: Option<Timestamp>, open: impl FnOnce() -> io::Result<File>) {
        state.journal = None;
        let (written, is_cut) = (std::mem::take(&mut state.written), std::mem::take(&mut state.is_cut));
        let is_promised = std::mem::take(&mut state.is_promised);
        let was_answered = std::mem::take(&mut state.was_answered);
        let Some(line) = self.line().filter(|_| !is_promised) else { return };
        if is_cut {
            line.cut();
        } else if !written.is_empty() {
            match open() {
                Ok(file) => {
                    let commit = read_commit(&file, &written, group.unwrap_or_else(time::now));
                    match commit {
                        Ok(Some(commit)) if was_answered => line.take_back(commit, &mut state.keeper),
                        Ok(Some(commit)) => line.push(commit, &mut state.keeper),
                        Ok(None) | Err(_) => line.cut(),
                    }
                }
                Err(_) => line.cut(),
            }
        }
    }
}

/// Puts what lies in the file into the line. What cannot be read is found by comparing.
fn put(line: &CommitLine, file: &File, written: &BTreeSet<u64>, time: Timestamp, keeper: &mut Keeper) {
    match read_commit(file, written, time) {
        Ok(Some(commit)) => line.push(commit, keeper),
        Ok(None) | Err(_) => line.cut(),
    }
}

/// `None` when it is too large, or no database.
fn read_commit(file: &File, written: &BTreeSet<u64>, time: Timestamp) -> io::Result<Option<Commit>> {
    let Some(header) = read_header(file)? else { return Ok(None) };
    let meta = file.metadata()?;
    let page_size = header.page_size;
    let page_count = header.page_count(meta.len());
    let per_page = u64::from(page_size.get()) / PIECE;
    let numbers: BTreeSet<u64> = written.iter().map(|piece| piece / per_page + 1).collect();
    if numbers.len().saturating_mul(page_size.bytes()) > QUEUE_BYTES_MAX {
        return Ok(None);
    }
    let mut pages = Vec::with_capacity(numbers.len());
    for number in numbers.into_iter().filter(|number| *number <= u64::from(page_count.get())) {
        let page = u32::try_from(number).ok().and_then(PageNumber::new).expect("not above the page count");
        pages.push((page, read_page(file, page, page_size)?));
    }
    let written = meta.modified().ok();
    let mark = WriteMark { change_counter: header.change_counter, bytes: meta.len(), written };
    Ok(Some(Commit { page_size, page_count, mark, time, pages }))
}

fn read_page(file: &File, page: PageNumber, page_size: PageSize) -> io::Result<Box<[u8]>> {
    let mut data = vec![0; page_size.bytes()].into_boxed_slice();
    file.read_exact_at(&mut data, u64::from(page.get() - 1) * u64::from(page_size.get()))?;
    Ok(data)
}

fn read_header(file: &File) -> io::Result<Option<DatabaseHeader>> {
    let mut bytes = [0; DATABASE_HEADER_SIZE];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(DatabaseHeader::decode(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file is a database in WAL mode.
pub(super) fn is_wal(file: &File) -> bool {
    matches!(read_header(file), Ok(Some(header)) if header.is_wal())
}
