//! What the connections share: shared memory, locks and files, and beside them the truth: every commit with the database
//! after it, as of the write of the header's first copy.

use std::collections::HashMap;

use rhyolite_format::sqlite::wal::Salt;

/// Pages of the database, all written from the start.
pub(super) const PAGES: usize = 5;
pub(super) const READ_MARKS: usize = 5;
pub(super) const UNUSED: u32 = u32::MAX;

pub(super) const WRITE: usize = 0;
pub(super) const CHECKPOINT: usize = 1;
pub(super) const RECOVER: usize = 2;
pub(super) const LOCKS: usize = 3 + READ_MARKS;

/// The lock of a read mark.
pub(super) const fn read(mark: usize) -> usize {
    3 + mark
}

/// Pages of a database: which transaction's write each holds.
pub(super) type State = [u64; PAGES];

/// One copy of the wal-index header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) is_init: bool,
    pub(super) change: u32,
    pub(super) max_frame: u32,
    pub(super) salt: Salt,
    pub(super) checksum: u64,
    /// Commits so far, which only the model knows.
    pub(super) commits: usize,
}

pub(super) const NO_HEADER: Header =
    Header { is_init: false, change: 0, max_frame: 0, salt: Salt(0, 0), checksum: 0, commits: 0 };

/// A frame in the WAL file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) page: usize,
    pub(super) value: u64,
    pub(super) commit: bool,
    pub(super) salt: Salt,
    pub(super) checksum: u64,
}

impl Frame {
    pub(super) fn sum(&self, before: u64) -> u64 {
        mix(mix(before ^ self.value) ^ (self.page as u64) << 1 ^ u64::from(self.commit))
    }
}

/// The header of the WAL file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileHeader {
    pub(super) salt: Salt,
    pub(super) sequence: u32,
}

pub(super) fn header_sum(salt: Salt) -> u64 {
    mix(u64::from(salt.0) << 32 | u64::from(salt.1))
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A committed transaction.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    /// Pages that it wrote, with their last values, sorted.
    pub(super) pages: Vec<(usize, u64)>,
    /// The database after it.
    pub(super) after: State,
}

/// How often the interesting things happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) restarts: u32,
    pub(super) truncations: u32,
    pub(super) recoveries: u32,
    pub(super) recovered_commits: u32,
    pub(super) rollbacks: u32,
    pub(super) in_place: u32,
    pub(super) backfills: u32,
    pub(super) deaths: u32,
    pub(super) reads_checked: u32,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.restarts += other.restarts;
        self.truncations += other.truncations;
        self.recoveries += other.recoveries;
        self.recovered_commits += other.recovered_commits;
        self.rollbacks += other.rollbacks;
        self.in_place += other.in_place;
        self.backfills += other.backfills;
        self.deaths += other.deaths;
        self.reads_checked += other.reads_checked;
    }
}

/// Everything that the connections share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) headers: [Header; 2],
    pub(super) backfill: u32,
    pub(super) marks: [u32; READ_MARKS],
    pub(super) shared: [u64; LOCKS],
    pub(super) exclusive: [u64; LOCKS],
    pub(super) connections: u64,
    pub(super) file_header: Option<FileHeader>,
    pub(super) frames: Vec<Frame>,
    pub(super) database: State,
    pub(super) commits: Vec<Commit>,
    /// Frames of each generation whose commits are among `commits`.
    pub(super) counted: HashMap<Salt, u32>,
    random: u64,
    pub(super) counts: Counts,
    /// Processes that are where SQLite itself does not survive a death.
    pub(super) fragile: u32,
    /// What an actor found that must not be.
    pub(super) failure: Option<String>,
    /// SQLite before 3.51.3: a checkpoint does not notice that the WAL was restarted under it.
    pub(super) reset_bug: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            headers: [NO_HEADER; 2],
            backfill: 0,
            marks: [0, UNUSED, UNUSED, UNUSED, UNUSED],
            shared: [0; LOCKS],
            exclusive: [0; LOCKS],
            connections: 0,
            file_header: None,
            frames: Vec::new(),
            database: [0; PAGES],
            commits: Vec::new(),
            counted: HashMap::new(),
            random: seed,
            counts: Counts::default(),
            fragile: 0,
            failure: None,
            reset_bug: false,
        }
    }

    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.random() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// The database after the first `commits` commits.
    pub(super) fn state_after(&self, commits: usize) -> State {
        commits.checked_sub(1).map_or([0; PAGES], |last| self.commits[last].after)
    }

    pub(super) fn try_lock_shared(&mut self, lock: usize, who: u64) -> bool {
        let free = self.exclusive[lock] & !who == 0;
        if free {
            self.shared[lock] |= who;
        }
        free
    }

    /// All of the locks, or none.
    pub(super) fn try_lock_exclusive(&mut self, locks: std::ops::Range<usize>, who: u64) -> bool {
        let free = locks.clone().all(|lock| (self.exclusive[lock] | self.shared[lock]) & !who == 0);
        if free {
            locks.for_each(|lock| self.exclusive[lock] |= who);
        }
        free
    }

    pub(super) fn unlock(&mut self, locks: std::ops::Range<usize>, who: u64) {
        for lock in locks {
            self.shared[lock] &= !who;
            self.exclusive[lock] &= !who;
        }
    }

    pub(super) fn put_frame(&mut self, number: u32, frame: Frame) {
        let index = number as usize - 1;
        if index < self.frames.len() {
            self.frames[index] = frame;
        } else {
            assert_eq!(index, self.frames.len(), "frames are written one after the other");
            self.frames.push(frame);
        }
    }

    /// Takes the commits of the frames up to `last` that are not counted yet into the truth.
    pub(super) fn count_commits(&mut self, salt: Salt, last: u32) {
        let first = self.counted.get(&salt).copied().unwrap_or(0);
        let mut pages = HashMap::new();
        for index in first..last {
            let frame = self.frames[index as usize];
            pages.insert(frame.page, frame.value);
            if frame.commit {
                let mut after = self.state_after(self.commits.len());
                let mut pages: Vec<_> = pages.drain().collect();
                pages.sort_unstable();
                pages.iter().for_each(|(page, value)| after[*page] = *value);
                self.commits.push(Commit { pages, after });
            }
        }
        assert!(pages.is_empty(), "a commit frame comes last");
        self.counted.insert(salt, first.max(last));
    }

    /// The newest of the frames `first..=last` that holds `page`.
    pub(super) fn find(&self, page: usize, first: u32, last: u32) -> Option<u32> {
        (first..=last).rev().find(|number| self.frames[*number as usize - 1].page == page)
    }

    /// The pages as a reader of the frames `first..=last` sees them.
    pub(super) fn view(&self, first: u32, last: u32) -> State {
        std::array::from_fn(|page| match self.find(page, first, last) {
            Some(number) => self.frames[number as usize - 1].value,
            None => self.database[page],
        })
    }
}
