//! Commits of databases in rollback mode, one by one, from whoever sees every write to them.
//!
//! The mount ([`crate::mount`]) knows which pages a transaction has written, and when it ends: SQLite finalises the journal while it
//! still holds the EXCLUSIVE lock. At that moment it copies the pages and puts them here. The capture thread records them in this
//! order.
//!
//! Invariant: a commit that ends while [`Listening`] lives is in the queue before the application goes on, or the queue is cut. Whoever
//! finds it cut compares all pages, under a SHARED lock, with which no commit is under way.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rhyolite_format::{PageCount, PageNumber, PageSize, Timestamp};

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
    fn bytes(&self) -> usize {
        self.pages.iter().map(|(_, data)| data.len()).sum()
    }
}

/// The lines of all databases, by the inode of their files.
#[derive(Debug, Default)]
pub struct CommitLines(Mutex<HashMap<u64, Arc<CommitLine>>>);

impl CommitLines {
    /// The line of the file with this inode.
    pub fn of(&self, inode: u64) -> Arc<CommitLine> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lines.entry(inode).or_default())
    }
}

#[derive(Debug, Default)]
struct Queue {
    commits: VecDeque<Commit>,
    bytes: usize,
    is_cut: bool,
    wake: Option<Wake>,
}

/// Commits of one database that are still to be recorded.
#[derive(Debug, Default)]
pub struct CommitLine {
    is_listening: AtomicBool,
    queue: Mutex<Queue>,
}

impl CommitLine {
    /// Whether somebody records them.
    pub fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::SeqCst)
    }

    /// Adds a commit.
    pub fn push(&self, commit: Commit) {
        self.change(|queue| {
            queue.bytes += commit.bytes();
            if queue.bytes > QUEUE_BYTES_MAX {
                queue.cut();
            } else if !queue.is_cut {
                queue.commits.push_back(commit);
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
        if let Some(wake) = &queue.wake {
            wake.ring();
        }
    }

    /// Listens until the result is dropped. Only one may at a time.
    pub(super) fn listen(self: Arc<Self>, wake: Wake) -> Listening {
        let mut queue = self.lock();
        *queue = Queue { wake: Some(wake), ..Queue::default() };
        self.is_listening.store(true, Ordering::SeqCst);
        drop(queue);
        Listening(self)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn cut(&mut self) {
        self.commits.clear();
        self.bytes = 0;
        self.is_cut = true;
    }
}

/// What was taken from a line.
#[derive(Debug)]
pub(super) enum Taken {
    /// All there is, in order.
    Commits(VecDeque<Commit>),
    /// There were more than could be kept.
    Cut,
}

/// The one who records the commits of a line.
#[derive(Debug)]
pub(super) struct Listening(Arc<CommitLine>);

impl Listening {
    /// Takes what there is.
    pub(super) fn take(&self) -> Taken {
        let mut queue = self.0.lock();
        queue.bytes = 0;
        let commits = std::mem::take(&mut queue.commits);
        if std::mem::take(&mut queue.is_cut) { Taken::Cut } else { Taken::Commits(commits) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        self.0.is_listening.store(false, Ordering::SeqCst);
        *queue = Queue::default();
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
        }
    }

    #[test]
    fn only_while_somebody_listens_and_never_more_than_fits() {
        let lines = CommitLines::default();
        let line = lines.of(7);
        line.push(commit(10));
        let listening = lines.of(7).listen(Wake::new().unwrap());
        assert_eq!(taken(&listening), Some(0), "from before");
        line.push(commit(10));
        line.push(commit(10));
        assert_eq!(taken(&listening), Some(2));
        line.push(commit(QUEUE_BYTES_MAX));
        line.push(commit(1));
        assert_eq!(taken(&listening), None);
        line.push(commit(1));
        line.cut();
        line.push(commit(1));
        assert_eq!(taken(&listening), None, "what comes after a cut is of no use either");
        assert_eq!(taken(&listening), Some(0));
        drop(listening);
        line.push(commit(1));
        assert!(!line.is_listening());
    }
}
