//! When an idle database is parked, what proves that a parked one has not changed, and when a start may believe it.
//!
//! A parked database has no connection and no thread. What is known of it is a [`DatabaseMark`]: what the system says about the
//! database file and its `-wal`.
//!
//! # What a parked database relies on
//!
//! 1. A commit in WAL mode first writes its frames to the `-wal` file, then, as the last step, moves the header of the wal-index,
//!    which is memory and changes no file. A commit in rollback mode writes the database file. All of a writer's steps happen
//!    under the write lock (WAL) or the EXCLUSIVE lock (rollback).
//! 2. A write to a file sets its change time to the system's clock, which no program can set otherwise. The clock has a grain: two
//!    writes within [`Policy::grain`] may leave the same time.
//!
//! # Claim
//!
//! Let the mark be taken under the write lock (SHARED lock in rollback mode), let it be [settled](is_settled), and let a look at
//! the wal-index (change counter and size) under the same lock find everything captured. Then a commit that was not captured
//! leaves another mark.
//!
//! # Proof
//!
//! Under the lock no writer is between the first and the last step of a commit (1), so such a commit writes its frames, or its pages,
//! after the lock was given up. Then the file's change time is not before that moment (2). The mark was settled: both change
//! times in it are older than that by more than a grain, hence other ones. ∎
//!
//! A clock that was set back could bring the same time once more, to the nanosecond and with the same size. What opens the files,
//! the slow safety look, then still sees the salts of the WAL and the change counter.

use std::time::Duration;

use rhyolite_format::state::LocalState;
use rhyolite_format::state::parked::{DatabaseMark, Parked};

/// When databases are parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Two changes closer than this may have the same time: file systems keep times by the clock tick, some by the second.
    pub grain: Duration,
    /// A database that was written, and then had no commit for so long, is parked, as long as few are awake; with more sooner, but never
    /// before the shorter time.
    pub after: Duration,
    /// See there.
    pub after_min: Duration,
    /// A larger database is not parked. Where the application's last connection has closed meanwhile, or has reset the WAL, waking it
    /// means reading all of it.
    pub bytes_max: u64,
}

impl Policy {
    /// No database is ever parked.
    pub fn never() -> Self {
        Self { bytes_max: 0, ..Self::default() }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { grain: seconds(2), after: seconds(60), after_min: seconds(2), bytes_max: 256 << 20 }
    }
}

/// So many databases or fewer are a few.
pub const FEW: usize = 64;
/// With more awake than this they are parked sooner, in proportion.
const AWAKE_EASY: usize = 16;
/// Processor time that one look at a file takes, about, and the part of a processor that all looks together may take.
const LOOK_COST: Duration = Duration::from_micros(8);
const LOOK_SHARE: u32 = 2000;

/// How much an idle database has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Time since its last commit, or since it was opened.
    pub quiet: Duration,
    /// Whether it has had a commit since it was opened.
    pub has_written: bool,
    /// Size in bytes of the database.
    pub bytes: u64,
    /// Everything captured is durable, and nothing else was asked for.
    pub all_done: bool,
}

/// How long a database must have been quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// One that has had a commit since it was opened.
    pub written: Duration,
    /// One that was opened to be compared, or because a file was touched.
    pub in_vain: Duration,
}

/// The patience with `databases` in the process, so many of which are awake.
pub fn patience(policy: &Policy, databases: usize, awake: usize) -> Patience {
    let shortened = policy.after * u32::try_from(AWAKE_EASY).expect("a small number")
        / u32::try_from(awake.max(AWAKE_EASY)).unwrap_or(u32::MAX);
    let written = shortened.max(policy.after_min);
    // Whoever starts a few is about to use them, and each commit is to be a restore point.
    let in_vain = if databases <= FEW { policy.after } else { Duration::ZERO };
    Patience { written, in_vain }
}

/// Whether it is time to park a database.
pub fn may_park(policy: &Policy, rest: &Rest, patience: Patience) -> bool {
    let patience = if rest.has_written { patience.written } else { patience.in_vain };
    rest.all_done && rest.bytes <= policy.bytes_max && rest.quiet >= patience
}

/// Whether both files were last changed so long ago that a later change gets another time.
pub fn is_settled(policy: &Policy, mark: &DatabaseMark, now_ns: i64) -> bool {
    i128::from(now_ns) - i128::from(mark.changed_ns()) > policy.grain.as_nanos() as i128
}

/// Time between two looks at each of `count` databases: `wished`, or longer where that would cost too much.
pub fn look_interval(count: usize, wished: Duration) -> Duration {
    let cost = LOOK_COST * u32::try_from(count).unwrap_or(u32::MAX);
    wished.max(cost * LOOK_SHARE)
}

/// Whether a start may take a database for parked: the record belongs to exactly this state, this store, this boot of the machine,
/// and the files are as they were.
pub fn is_still_parked(
    parked: &Parked,
    state: &LocalState,
    store: u64,
    boot_id: [u8; 16],
    mark: &DatabaseMark,
) -> bool {
    let same_state = state.lineage == parked.lineage
        && state.pos == Some(parked.pos)
        && state.durable == Some(parked.pos)
        && state.next_seq == parked.next_seq;
    // A machine without an id of its boots has zeros, which never count.
    let same_boot = boot_id != [0; 16] && parked.boot_id == boot_id && state.boot_id == boot_id;
    same_state && same_boot && parked.store == store && parked.mark == *mark
}

#[cfg(test)]
mod tests {
    use rhyolite_format::state::parked::FileMark;

    use super::*;

    fn rest(quiet: u64, has_written: bool) -> Rest {
        Rest { quiet: Duration::from_secs(quiet), has_written, bytes: 1 << 20, all_done: true }
    }

    #[test]
    fn only_what_has_nothing_left_to_do_is_parked() {
        let policy = Policy::default();
        let may_park = |rest: &Rest| super::may_park(&policy, rest, patience(&policy, 1000, 1));
        assert!(may_park(&rest(60, true)) && !may_park(&rest(59, true)));
        assert!(may_park(&rest(0, false)), "opened in vain");
        let few = patience(&policy, FEW, 1);
        assert!(!super::may_park(&policy, &rest(59, false), few) && super::may_park(&policy, &rest(60, false), few));
        assert!(!may_park(&Rest { all_done: false, ..rest(100, false) }));
        assert!(!may_park(&Rest { bytes: policy.bytes_max + 1, ..rest(100, true) }));
    }

    #[test]
    fn many_awake_are_parked_sooner_and_looks_are_bounded() {
        let policy = Policy::default();
        let written = |awake| patience(&policy, 1_000_000, awake).written;
        assert_eq!([0, 16, 32].map(written), [policy.after, policy.after, policy.after / 2]);
        assert_eq!(written(1_000_000), policy.after_min);
        assert_eq!(look_interval(1, Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(look_interval(10_000, Duration::from_secs(1)), Duration::from_secs(160));
    }

    #[test]
    fn a_mark_settles_after_a_grain() {
        let file = FileMark { inode: 1, bytes: 2, modified_ns: 5, changed_ns: 1_000_000_000 };
        let mark = DatabaseMark { database: file, wal: FileMark::default() };
        let is_settled = |mark: &DatabaseMark, now| super::is_settled(&Policy::default(), mark, now);
        assert!(!is_settled(&mark, 3_000_000_000), "exactly a grain");
        assert!(is_settled(&mark, 3_000_000_001));
        assert!(!is_settled(&mark, 0), "a clock that was set back");
        let mark = DatabaseMark { database: FileMark::default(), wal: file };
        assert!(!is_settled(&mark, 2_000_000_000), "either file");
    }
}
