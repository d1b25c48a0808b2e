//! What a machine keeps: the database, the state folder beside it, and the nonces of its lease.
//!
//! A database is its checksum here: two contents are the same when their checksums are. In a cluster a file may follow, and lost branches lie beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhyolite_format::segment::{Segment, SegmentEntry, SegmentHeader};
use rhyolite_format::state::LocalState;
use rhyolite_format::{Checksum, Epoch, Lineage, Nonce, PageCount, PageSize, Pos, Seq, Timestamp, Txid};
use rhyolite_logic::trail::Trail;

use crate::random::Random;
use crate::scenario::Scenario;

/// Page size of every database.
pub const PAGE_SIZE: PageSize = PageSize::MIN;
/// Size of every database in pages.
pub const PAGES: u32 = 4;
/// Nonces that are remembered.
const NONCES_MAX: usize = 24;
/// States of a database that a loss of power may bring back.
const EARLIER_MAX: usize = 6;

/// A database of an application.
#[derive(Debug)]
pub struct Database {
    /// What it holds.
    pub content: Checksum,
    /// What it held before, oldest first: after a loss of power it may hold that again.
    pub earlier: Vec<Checksum>,
    /// Commits that were not captured yet: what it held before each, and after. Only in a cluster, where the application is one of its own.
    pub uncaptured: Vec<(Checksum, Checksum)>,
    /// Whether there is a file.
    pub exists: bool,
}

/// The state beside a file that follows: where it was before the last batch, and where it is after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The history.
    pub lineage: Lineage,
    /// Before the last batch.
    pub before: Pos,
    /// After it.
    pub after: Pos,
}

impl Database {
    /// The application commits.
    pub fn commit(&mut self, content: Checksum) {
        self.earlier.push(std::mem::replace(&mut self.content, content));
        if self.earlier.len() > EARLIER_MAX {
            self.earlier.remove(0);
        }
    }
}

/// A segment of the local log.
#[derive(Clone, Debug)]
pub struct LocalSegment {
    /// Header and entries.
    pub segment: Segment,
    /// Nothing is added to it any more.
    pub sealed: bool,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    database: Arc<Mutex<Database>>,
    /// The state file.
    pub state: Option<LocalState>,
    /// The local log.
    pub log: Vec<LocalSegment>,
    /// Nonces under which the lease was written from here.
    pub nonces: Vec<Nonce>,
    /// There is a file that follows.
    pub follow: Option<Follow>,
    /// The contents of the lost branches that are kept.
    pub lost: Vec<Checksum>,
    /// Where the file was when it was made one that is written to.
    pub released: Option<Follow>,
    /// Where a file that follows has been. It is not synced.
    pub trail: Trail,
    /// Which boot of the machine this is; zeros where that does not matter.
    pub boot: [u8; 16],
}

impl Disk {
    /// The disks of a scenario, new.
    pub fn all(scenario: &Scenario) -> Vec<Self> {
        let mut random = Random::fork(scenario.seed, 4);
        let mut database = || {
            let content = Checksum::from_crc(random.draw());
            Arc::new(Mutex::new(Database { content, earlier: Vec::new(), uncaptured: Vec::new(), exists: true }))
        };
        let shared = database();
        let disk = |_| {
            let database = if scenario.shared_database { Arc::clone(&shared) } else { database() };
            Self {
                database,
                state: None,
                log: Vec::new(),
                nonces: Vec::new(),
                follow: None,
                released: None,
                trail: Trail::default(),
                lost: Vec::new(),
                boot: [0; 16],
            }
        };
        (0..scenario.nodes).map(disk).collect()
    }

    /// The database.
    pub fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a nonce of the lease.
    pub fn remember(&mut self, nonce: Nonce) {
        self.nonces.push(nonce);
        if self.nonces.len() > NONCES_MAX {
            self.nonces.remove(0);
        }
    }

    /// The position of the local log.
    pub fn pos(&self) -> Option<Pos> {
        self.state.as_ref().and_then(|state| state.pos)
    }

    /// Begins the state anew at a position of the store; the local log is dropped.
    pub fn begin(&mut self, lineage: Lineage, at: Option<Pos>, epoch: Epoch, next_seq: Seq) {
        self.log.clear();
        self.state = Some(LocalState {
            lineage,
            pos: at,
            durable: at,
            page_size: Some(PAGE_SIZE),
            commit: PageCount(PAGES),
            wal: None,
            epoch,
            next_seq,
            boot_id: self.boot,
        });
    }

    /// Adds a transaction that leads to `content` to the open segment, which `header` begins if there is none.
    pub fn record(&mut self, content: Checksum, time: Timestamp, len: u64, header: impl FnOnce(Seq) -> SegmentHeader) {
        let state = self.state.as_mut().expect("a session has begun");
        let pos = state.pos.expect("the first snapshot is there");
        let txid = pos.txid.next();
        let last = self.log.last().filter(|s| s.segment.header.seq >= state.next_seq);
        if last.is_none_or(|s| s.sealed) {
            let seq = last.map_or(state.next_seq, |s| s.segment.header.seq.next());
            let segment = Segment { header: header(seq), entries: Vec::new() };
            self.log.push(LocalSegment { segment, sealed: false });
        }
        let open = self.log.last_mut().expect("one was opened");
        let start = rhyolite_format::segment::HEADER_SIZE as u64;
        let offset = open.segment.entries.last().map_or(start, |entry| entry.range().end);
        open.segment.entries.push(entry(txid, pos.checksum, content, time, offset, len));
        state.pos = Some(Pos { txid, checksum: content });
    }

    /// Nothing is added to the open segment any more.
    pub fn seal(&mut self) {
        if let Some(last) = self.log.last_mut() {
            last.sealed = true;
        }
    }

    /// The next segment to upload.
    pub fn unsent(&self) -> Option<Segment> {
        let next = self.state.as_ref()?.next_seq;
        self.sealed(next)
    }

    /// The segment of this sequence number, once nothing is added to it any more.
    pub fn sealed(&self, seq: Seq) -> Option<Segment> {
        self.log.iter().find(|s| s.sealed && s.segment.header.seq == seq).map(|s| s.segment.clone())
    }

    /// The store has it.
    pub fn confirmed(&mut self, segment: &Segment) {
        let state = self.state.as_mut().expect("a session has begun");
        state.durable = segment.end().or(state.durable);
        state.next_seq = segment.header.seq.next();
        state.epoch = segment.header.epoch;
        // The last one stays: its answer may not have been noted everywhere.
        self.log.retain(|s| s.segment.header.seq >= segment.header.seq);
    }

    /// What a loss of power leaves: nothing here was synced.
    pub fn lose_power(&mut self, random: &mut Random) {
        let keep = random.below(self.log.len() as u64 + 1) as usize;
        self.log.truncate(keep);
        if let Some(open) = self.log.last_mut().filter(|s| !s.segment.entries.is_empty()) {
            let entries = random.below(open.segment.entries.len() as u64 + 1) as usize;
            open.segment.entries.truncate(entries);
        }
        self.trail = Trail::default();
        if random.permille(200) {
            self.state = None;
        }
        if random.permille(100) {
            self.nonces.clear();
        }
        let mut database = self.database();
        let back = random.below(3).min(database.earlier.len() as u64) as usize;
        for _ in 0..back {
            database.content = database.earlier.pop().expect("counted");
        }
    }
}

/// A transaction from one content to the next.
fn entry(txid: Txid, pre: Checksum, post: Checksum, timestamp: Timestamp, offset: u64, len: u64) -> SegmentEntry {
    SegmentEntry {
        min_txid: txid,
        max_txid: txid,
        offset,
        len,
        timestamp,
        page_size: PAGE_SIZE,
        commit: PageCount(PAGES),
        pages: 1,
        pre_apply: Some(pre),
        post_apply: post,
    }
}
