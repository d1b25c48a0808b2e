//! Which nodes have what a primary captures, and what it may therefore call safe ([`rhyolite_logic::witness`]).
//!
//! 1. What is safe is said only while the right lasts, and by every list that the lease may hold ([`WitnessBoard::tell`]).
//! 2. That, and a change of the lists ([`WitnessBoard::replace`]), exclude each other: what was told before is known when the lists change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::Txid;
use rhyolite_format::lease::Witnesses;
use rhyolite_logic::lease::Monotonic;
use rhyolite_writer::World;

use crate::status::{DatabaseStatus, StatusBoard};
use crate::world::RealWorld;

/// What a primary knows of its witnesses.
#[derive(Debug, Default)]
pub struct WitnessBoard {
    inner: Mutex<Inner>,
    /// Nothing is served to others yet: what was found is not in the store.
    withheld: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each list that the lease may hold; none when nothing may be called safe.
    lists: Vec<Witnesses>,
    /// Until when the right lasts.
    until: Monotonic,
    nodes: BTreeMap<String, Presence>,
}

/// A node that follows, or has.
#[derive(Debug, Default)]
struct Presence {
    streams: usize,
    gone: Option<Instant>,
}

/// A node follows one database for as long as this lives.
#[derive(Debug)]
pub struct Present {
    status: Arc<DatabaseStatus>,
    board: Arc<StatusBoard>,
    node: String,
    generation: u64,
}

impl Present {
    /// A node follows a database from here on, whose history is of this generation.
    pub fn new(board: Arc<StatusBoard>, status: Arc<DatabaseStatus>, (node, generation): (String, u64)) -> Self {
        board.witnesses.lock().nodes.entry(node.clone()).or_default().streams += 1;
        Self { status, board, node, generation }
    }

    /// It has this commit on its disk.
    pub fn has(&self, txid: Txid) {
        self.status.feed.note_reached(self.generation, &self.node, txid);
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut inner = self.board.witnesses.lock();
        if let Some(presence) = inner.nodes.get_mut(&self.node) {
            presence.streams -= 1;
            presence.gone = Some(Instant::now());
        }
    }
}

impl WitnessBoard {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is served to others yet.
    pub fn withholds(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// Says whether nothing is served to others yet.
    pub fn withhold(&self, withheld: bool) {
        self.withheld.store(withheld, Ordering::Release);
    }

    /// The right lasts until then; it has ended when that is the beginning of time.
    pub fn set_right(&self, until: Monotonic) {
        self.lock().until = until;
    }

    /// The nodes that follow now and have shown that their files of all of these databases are of the history here, and those that were here within `patience`.
    pub fn nodes(&self, databases: &[Arc<DatabaseStatus>], patience: Duration) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut inner = self.lock();
        inner.nodes.retain(|_, presence| {
            presence.streams > 0
                || presence.gone.is_some_and(|gone| gone.elapsed() < patience.max(Duration::from_secs(60)))
        });
        for status in databases {
            status.feed.with_ledger(|ledger| ledger.keep(|node| inner.nodes.contains_key(node)));
        }
        let captured: Vec<_> = databases.iter().filter(|status| status.look(|f| f.local.is_some())).collect();
        let has_all =
            |node: &str| captured.iter().all(|status| status.feed.with_ledger(|ledger| ledger.reached(node).is_some()));
        let here = inner.nodes.iter().filter(|(node, presence)| presence.streams > 0 && has_all(node));
        let here = here.map(|(node, _)| node.clone()).collect();
        let awaited = inner.nodes.iter().filter(|(_, presence)| {
            presence.streams > 0 || presence.gone.is_some_and(|gone| gone.elapsed() < patience)
        });
        (here, awaited.map(|(node, _)| node.clone()).collect())
    }

    /// From here on these are the lists, if `next` may take the place of those before: everything that was told is safe by it too, or in the store. `false` when not.
    pub fn replace(&self, databases: &[Arc<DatabaseStatus>], next: Option<&Witnesses>, lists: Vec<Witnesses>) -> bool {
        let mut inner = self.lock();
        let is_safe = databases.iter().all(|status| {
            let durable = status.look(|f| f.durable).map(|pos| pos.txid);
            status.feed.with_ledger(|ledger| ledger.is_safe_by(next, durable))
        });
        if is_safe {
            inner.lists = lists;
        }
        is_safe
    }

    /// From here on these are the lists.
    pub fn set_lists(&self, databases: &[Arc<DatabaseStatus>], lists: Vec<Witnesses>) {
        let mut inner = self.lock();
        if inner.lists != lists {
            inner.lists = lists;
            drop(inner);
            databases.iter().for_each(|status| status.feed.acknowledged.notify_waiters());
        }
    }

    /// The lists by which commits are called safe.
    pub fn lists(&self) -> Vec<Witnesses> {
        self.lock().lists.clone()
    }

    /// Whether commits may be called safe because nodes have them: somebody may wait for one.
    pub fn is_asked(&self) -> bool {
        !self.lock().lists.is_empty()
    }

    /// Whether somebody may be told that a commit of a database is safe: it is in the store, or on enough nodes of every list. That he was is remembered.
    pub fn tell(&self, status: &DatabaseStatus, txid: Txid) -> bool {
        let inner = self.lock();
        let (local, durable) = status.look(|f| (f.local, f.durable));
        if durable.is_some_and(|durable| txid <= durable.txid) {
            return true;
        }
        let is_here = local.is_some_and(|local| txid <= local.txid) && RealWorld.now() < inner.until;
        is_here && status.feed.with_ledger(|ledger| ledger.tell(txid, &inner.lists))
    }

    /// The last commit of a database that may be called safe by its nodes alone.
    pub fn safe(&self, status: &DatabaseStatus) -> Option<Txid> {
        let inner = self.lock();
        status.feed.with_ledger(|ledger| ledger.safe(&inner.lists))
    }

    /// Waits until somebody may be told that a commit is safe.
    pub async fn until_safe(&self, status: &DatabaseStatus, txid: Txid) {
        loop {
            let acknowledged = status.feed.acknowledged.notified();
            tokio::pin!(acknowledged);
            // From here on a change is noticed, whatever is seen next.
            acknowledged.as_mut().enable();
            if self.tell(status, txid) {
                return;
            }
            // What the store acknowledges is not told.
            let _ = tokio::time::timeout(LOOK, acknowledged).await;
        }
    }
}

/// How often a commit is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(20);
