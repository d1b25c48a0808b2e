//! Restore drills: when the next one is due, and what a sampled one looks at.
//!
//! A drill proves that the store can be restored by doing so, without keeping what comes out. Rules:
//!
//! 1. Nothing is due before something is durable. Then the first one is due at once.
//! 2. After a drill the next one is due an interval later; when the database has not changed since, [`IDLE_FACTOR`] intervals later: what
//!    rots in an idle database's store is still found, but not at the price of a busy one's.
//! 3. A drill that could not be held, because the store did not answer, is tried again after [`RETRY`], or the interval if that is shorter.
//! 4. A last drill that lies in the future (the clock was set back) counts as none.

use std::time::Duration;

use rhyolite_format::{PageNumber, Pos, Timestamp};

/// How many intervals the store of a database that does not change goes without a drill.
pub const IDLE_FACTOR: u32 = 7;
/// Time after which a drill that could not be held is tried again.
pub const RETRY: Duration = Duration::from_secs(600);

/// The last drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it ended.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state at this position came out as it was committed.
    Proved(Pos),
    /// It did not.
    Damaged,
    /// It could not be held.
    Unanswered,
}

/// When the next drill is due; `None` for never, as things stand.
pub fn due(interval: Duration, durable: Option<Pos>, last: Option<Last>, now: Timestamp) -> Option<Timestamp> {
    let durable = durable?;
    if interval.is_zero() {
        return None;
    }
    let Some(last) = last.filter(|last| last.at <= now) else { return Some(now) };
    let wait = match last.outcome {
        Outcome::Proved(pos) if pos == durable => interval.saturating_mul(IDLE_FACTOR),
        Outcome::Proved(_) | Outcome::Damaged => interval,
        Outcome::Unanswered => interval.min(RETRY),
    };
    Some(Timestamp(last.at.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))))
}

/// A choice of runs of pages, another one for each seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    seed: u64,
    /// A run is taken when its number, which is as good as random, is at most this.
    threshold: u64,
}

impl Sample {
    /// Takes about `wanted` of `total` bytes.
    pub fn new(seed: u64, wanted: u64, total: u64) -> Self {
        let share = u128::from(wanted.min(total)) * u128::from(u64::MAX) / u128::from(total.max(1));
        Self { seed, threshold: u64::try_from(share).expect("a share of it") }
    }

    /// Whether the run of pages that starts with `first` is looked at.
    pub fn takes(&self, first: PageNumber) -> bool {
        let mut z = (self.seed ^ u64::from(first.get())).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) <= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    const HOUR: i64 = 3_600_000;

    /// The hour at which the next drill is due, at hour 100, with an interval of 24 hours.
    fn check(durable: Option<u64>, last: Option<(i64, Outcome)>, expected: Option<i64>) {
        let last = last.map(|(hour, outcome)| Last { at: Timestamp(hour * HOUR), outcome });
        let found = due(Duration::from_secs(24 * 3600), durable.map(model::pos), last, Timestamp(100 * HOUR));
        assert_eq!(found, expected.map(|hour| Timestamp(hour * HOUR)), "{durable:?} {last:?}");
    }

    #[test]
    fn when() {
        let proved = |n| Outcome::Proved(model::pos(n));
        check(None, None, None);
        check(Some(1), None, Some(100));
        check(Some(5), Some((90, proved(4))), Some(114));
        check(Some(5), Some((10, proved(4))), Some(34));
        check(Some(4), Some((90, proved(4))), Some(90 + 7 * 24));
        check(Some(4), Some((90, Outcome::Damaged)), Some(114));
        check(Some(4), Some((101, proved(3))), Some(100));
        let last = Some(Last { at: Timestamp(0), outcome: Outcome::Unanswered });
        let at = |interval| due(Duration::from_secs(interval), Some(model::pos(1)), last, Timestamp(1)).map(|t| t.0);
        assert_eq!((at(24 * 3600), at(60), at(0)), (Some(600_000), Some(60_000), None));
    }

    #[test]
    fn a_sample_is_about_as_large_as_was_asked_for_and_another_each_time() {
        let taken = |seed, wanted, total| {
            let sample = Sample::new(seed, wanted, total);
            (1..=10_000).filter_map(PageNumber::new).filter(|pgno| sample.takes(*pgno)).collect::<Vec<_>>()
        };
        assert_eq!(taken(1, 10, 10).len(), 10_000);
        assert_eq!(taken(1, 99, 10).len(), 10_000);
        let (a, b) = (taken(1, 100, 1000), taken(2, 100, 1000));
        assert!((800..1200).contains(&a.len()) && (800..1200).contains(&b.len()), "{} {}", a.len(), b.len());
        assert_ne!(a, b);
    }
}
