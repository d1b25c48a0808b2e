//! What was captured last of one database, in memory, for those who follow it.
//!
//! Invariants:
//! 1. While nobody follows, nothing is kept, and capture does nothing but look at a counter.
//! 2. The frames that are kept join each other: each begins where the one before it ends.
//! 3. What is here is in the file of the local log as well, so that a frame may be forgotten at any time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use rhyolite_format::stream::{NAME_SIZE_MAX, Span};
use rhyolite_format::{Epoch, Lineage, Pos, Txid};
use rhyolite_logic::witness::Ledger;
use rhyolite_store::{RetryPolicy, Retrying, Store, StoreError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::READ_BYTES_MAX;
use super::frames::{Form, Logged, frames, is_next};
use crate::capture::local_log::LocalLog;
use crate::config::DatabaseConfig;
use crate::status::DatabaseStatus;

/// Bytes of frames that are kept of one database.
const RING_BYTES_MAX: usize = 1 << 20;
/// Bytes of frames that are kept of all databases.
const RINGS_BYTES_MAX: usize = 256 << 20;

/// Bytes of frames that are kept.
static RINGS_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Whose commits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The history.
    pub lineage: Lineage,
    /// The right to write under which they are captured.
    pub epoch: Epoch,
}

/// Under which name a database is served, and where its store is.
#[derive(Debug)]
pub struct Served {
    /// Its path relative to its folder, or its file name.
    pub name: String,
    config: DatabaseConfig,
    store: OnceLock<Arc<dyn Store>>,
}

impl Served {
    /// A database that has this configuration. `None` for a name that cannot be asked for.
    pub fn new(name: &str, config: DatabaseConfig) -> Option<Self> {
        let is_name = (1..=NAME_SIZE_MAX).contains(&name.len());
        is_name.then(|| Self { name: name.to_owned(), config, store: OnceLock::new() })
    }

    /// Its store, for reading.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub fn store(&self) -> Result<Arc<dyn Store>, StoreError> {
        if let Some(store) = self.store.get() {
            return Ok(Arc::clone(store));
        }
        let store = rhyolite_store::open(&self.config.store, &self.config.store_options())?;
        let store: Arc<dyn Store> = Arc::new(Retrying::new(store, RetryPolicy::default()));
        Ok(Arc::clone(self.store.get_or_init(|| store)))
    }
}

/// What those who follow one database are given.
#[derive(Debug, Default)]
pub struct Feed {
    each: Line,
    merged: Line,
    moved: Notify,
    served: Mutex<Option<Arc<Served>>>,
    reached: Mutex<Reached>,
    /// A node has reached something, or what is safe is told by other lists.
    pub acknowledged: Notify,
}

/// What those are given who want commits in one form.
#[derive(Debug, Default)]
struct Line {
    followers: AtomicUsize,
    ring: Mutex<Ring>,
}

/// What nodes have reached.
#[derive(Debug, Default)]
struct Reached {
    ledger: Ledger,
    /// Grows when the history begins anew from somewhere: what is said of another one does not count.
    generation: u64,
    /// Where it was last.
    local: Option<(Lineage, Pos)>,
}

#[derive(Debug, Default)]
struct Ring {
    frames: VecDeque<Fed>,
    bytes: usize,
}

/// One frame.
#[derive(Clone, Debug)]
struct Fed {
    lineage: Lineage,
    before: Pos,
    after: Pos,
    frame: Bytes,
}

/// Somebody follows for as long as this lives.
#[derive(Debug)]
pub struct Follower(Arc<DatabaseStatus>, Form);

impl Follower {
    /// One more, who wants commits in this form.
    pub fn new(status: Arc<DatabaseStatus>, form: Form) -> Self {
        status.feed.line(form).followers.fetch_add(1, Ordering::AcqRel);
        Self(status, form)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let line = self.0.feed.line(self.1);
        if line.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            *line.ring() = Ring::default();
        }
    }
}

impl Line {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the log has got since `told`.
    fn take_in(&self, form: Form, origin: Origin, told: Option<Pos>, log: &LocalLog) {
        let mut ring = self.ring();
        let end = ring.frames.back().map(|fed| fed.after).or(told);
        let mut group: Vec<Logged<'_>> = Vec::new();
        for (entry, ltx) in log.recent(end.map(|end| end.txid)) {
            if !group.last().is_none_or(|(last, _)| is_next(last, entry)) {
                ring.push_all(frames(form, origin, &std::mem::take(&mut group)));
            }
            // A snapshot, and what would take the place of everything else, is read from where it lies.
            if ltx.len() <= RING_BYTES_MAX && !entry.is_snapshot() {
                group.push((entry, ltx));
            }
        }
        ring.push_all(frames(form, origin, &group));
    }
}

impl Feed {
    /// The database is served from here on.
    pub fn serve(&self, served: Served) {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));
    }

    /// As what it is served; `None` when it is not.
    pub fn served(&self) -> Option<Arc<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        [&self.each, &self.merged].iter().map(|line| line.followers.load(Ordering::Acquire)).sum()
    }

    fn line(&self, form: Form) -> &Line {
        match form {
            Form::Each => &self.each,
            Form::Merged => &self.merged,
        }
    }

    /// Looks at what nodes have reached, or changes it.
    pub fn with_ledger<T>(&self, with: impl FnOnce(&mut Ledger) -> T) -> T {
        with(&mut self.reached().ledger)
    }

    /// The history goes on from here as it did, until this number is another one.
    pub fn generation(&self) -> u64 {
        self.reached().generation
    }

    /// A node has reached this commit of the history of that generation.
    pub fn note_reached(&self, generation: u64, node: &str, txid: Txid) {
        let mut reached = self.reached();
        if reached.generation == generation {
            reached.ledger.note(node, txid);
            drop(reached);
            self.acknowledged.notify_waiters();
        }
    }

    /// The database is there now. Where that does not go on from where it was, nobody is known to have any of it.
    pub fn note_local(&self, lineage: Lineage, pos: Pos) {
        let mut reached = self.reached();
        let goes_on =
            reached.local.is_none_or(|(known, before)| known == lineage && (pos == before || pos.txid > before.txid));
        reached.local = Some((lineage, pos));
        if !goes_on {
            reached.generation += 1;
            reached.ledger.forget_reached();
        }
    }

    fn reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the log has got since `told`. To be called when that is in the log's file, and only while somebody follows.
    pub fn take_in(&self, origin: Origin, told: Option<Pos>, log: &LocalLog) {
        for form in [Form::Each, Form::Merged] {
            let line = self.line(form);
            if line.followers.load(Ordering::Acquire) > 0 {
                line.take_in(form, origin, told, log);
            }
        }
    }

    /// Wakes those who wait: the position has changed.
    pub fn tell(&self) {
        if self.followers() > 0 {
            self.moved.notify_waiters();
        }
    }

    /// Ends at the next change of the position from the moment on in which it is first polled or enabled.
    pub fn moved(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// The frames that lead on from a position, as many as are taken up at once and none beyond `until`, and where they lead to. What was taken in and not
    /// told yet is not to be sent: who is beyond the position that was told has another history.
    pub fn after(&self, form: Form, lineage: Lineage, pos: Pos, until: Txid) -> Option<(Vec<Bytes>, Pos)> {
        let ring = self.line(form).ring();
        let first = ring.frames.iter().position(|fed| fed.lineage == lineage && fed.before == pos)?;
        let (mut frames, mut end, mut bytes) = (Vec::new(), pos, 0);
        for fed in ring.frames.range(first..) {
            bytes += fed.frame.len();
            if fed.after.txid > until || (bytes > READ_BYTES_MAX && !frames.is_empty()) {
                break;
            }
            frames.push(fed.frame.clone());
            end = fed.after;
        }
        (!frames.is_empty()).then_some((frames, end))
    }
}

impl Ring {
    fn push_all(&mut self, frames: Vec<(Span, Vec<u8>)>) {
        frames.into_iter().for_each(|(span, frame)| self.push(&span, Bytes::from(frame)));
    }

    fn push(&mut self, span: &Span, frame: Bytes) {
        let joins = |fed: &Fed| fed.lineage == span.lineage && fed.after == span.before;
        if !self.frames.back().is_none_or(joins) {
            *self = Self::default();
        }
        self.bytes += frame.len();
        RINGS_BYTES.fetch_add(frame.len(), Ordering::Relaxed);
        self.frames.push_back(Fed { lineage: span.lineage, before: span.before, after: span.after, frame });
        while self.bytes > RING_BYTES_MAX || RINGS_BYTES.load(Ordering::Relaxed) > RINGS_BYTES_MAX {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.frame.len();
            RINGS_BYTES.fetch_sub(oldest.frame.len(), Ordering::Relaxed);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        RINGS_BYTES.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::segment::SegmentEntry;
    use rhyolite_format::{Checksum, PageCount, PageSize, Timestamp};

    use super::*;

    fn at(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid) }
    }

    fn push(feed: &Feed, txid: u64, bytes: usize) {
        let entry = SegmentEntry {
            min_txid: at(txid).txid,
            max_txid: at(txid).txid,
            offset: 0,
            len: bytes as u64,
            timestamp: Timestamp(0),
            page_size: PageSize::MIN,
            commit: PageCount(1),
            pages: 1,
            pre_apply: Some(at(txid - 1).checksum),
            post_apply: at(txid).checksum,
        };
        let origin = Origin { lineage: Lineage([1; 16]), epoch: Epoch::FIRST };
        feed.each.ring().push_all(frames(Form::Each, origin, &[(&entry, &vec![0; bytes])]));
    }

    fn after(feed: &Feed, pos: Pos, until: u64) -> Option<(usize, Pos)> {
        feed.after(Form::Each, Lineage([1; 16]), pos, at(until).txid).map(|(frames, end)| (frames.len(), end))
    }

    #[test]
    fn it_leads_on_to_what_was_told_and_no_further() {
        let feed = Feed::default();
        (3..7).for_each(|txid| push(&feed, txid, 200));
        assert_eq!(after(&feed, at(2), 6), Some((4, at(6))));
        assert_eq!(after(&feed, at(4), 5), Some((1, at(5))));
        assert_eq!(after(&feed, at(4), 4), None);
        assert_eq!(after(&feed, at(1), 6), None);
        assert_eq!(after(&feed, Pos { checksum: at(9).checksum, ..at(4) }, 6), None);
        assert!(feed.after(Form::Each, Lineage([2; 16]), at(4), at(6).txid).is_none());
        push(&feed, 9, 200);
        assert_eq!(after(&feed, at(4), 9), None, "what does not join takes the place of all");
        assert_eq!(after(&feed, at(8), 9), Some((1, at(9))));
    }

    #[test]
    fn what_nodes_have_of_a_history_is_nothing_of_another() {
        let (feed, lineage) = (Feed::default(), Lineage([1; 16]));
        let reached = |feed: &Feed| feed.with_ledger(|ledger| ledger.reached("b")).map(Txid::get);
        feed.note_local(lineage, at(5));
        let generation = feed.generation();
        feed.note_reached(generation, "b", at(5).txid);
        [at(5), at(7)].into_iter().for_each(|pos| feed.note_local(lineage, pos));
        assert_eq!((reached(&feed), feed.generation()), (Some(5), generation));
        let other = Pos { checksum: at(9).checksum, ..at(7) };
        for (lineage, pos) in [(lineage, at(6)), (Lineage([2; 16]), at(8)), (Lineage([2; 16]), other)] {
            let before = feed.generation();
            feed.note_reached(before, "b", at(1).txid);
            feed.note_local(lineage, pos);
            assert_eq!((reached(&feed), feed.generation()), (None, before + 1));
            feed.note_reached(before, "b", at(1).txid);
            assert_eq!(reached(&feed), None, "that was said of the one before");
        }
    }

    #[test]
    fn the_oldest_is_forgotten_and_not_all_is_taken_at_once() {
        let feed = Feed::default();
        (3..23).for_each(|txid| push(&feed, txid, 100 << 10));
        assert!(feed.each.ring().bytes <= RING_BYTES_MAX);
        assert_eq!(after(&feed, at(2), 22), None);
        assert_eq!(after(&feed, at(15), 22), Some((2, at(17))));
        push(&feed, 23, RING_BYTES_MAX);
        assert_eq!(after(&feed, at(22), 23), None);
        assert_eq!(feed.each.ring().bytes, 0);
    }
}
