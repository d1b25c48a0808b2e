//! What has become of transactions that applications on a replica's mount have written, since the process began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The primary has committed it.
    Committed,
    /// It changed nothing, and the primary was not asked.
    Unchanged,
    /// The primary has refused it, or it could not be sent: nothing was committed.
    Refused,
    /// Nobody knows whether it was committed.
    Unknown,
    /// The lock was lost before.
    Lost,
    /// It is too large to be forwarded.
    TooLarge,
}

/// What became of a request for the primary's write lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was lent.
    Lent,
    /// It is not to be had just now.
    Busy,
    /// It is not to be had.
    Refused,
    /// It was lent, and lost before it was given back: it was held for too long, the primary is another one, or cannot be asked.
    Lost,
}

const ENDED: [&str; 6] = ["committed", "unchanged", "refused", "unknown", "lost", "too-large"];
const ASKED: [&str; 4] = ["lent", "busy", "refused", "lost"];

static TRANSACTIONS: [AtomicU64; ENDED.len()] = [const { AtomicU64::new(0) }; ENDED.len()];
static LOCKS: [AtomicU64; ASKED.len()] = [const { AtomicU64::new(0) }; ASKED.len()];
static MICROSECONDS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn ended(how: Ended) {
    TRANSACTIONS[how as usize].fetch_add(1, Ordering::Relaxed);
}

/// A transaction was committed, which took this time from the writer's last write until it was told.
pub(crate) fn committed(took: Duration) {
    ended(Ended::Committed);
    MICROSECONDS.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(crate) fn asked(how: Asked) {
    LOCKS[how as usize].fetch_add(1, Ordering::Relaxed);
}

fn counted(names: &[&'static str], counts: &[AtomicU64]) -> Vec<(&'static str, u64)> {
    let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    names.iter().copied().zip(counts).filter(|(_, count)| *count > 0).collect()
}

/// Transactions, by what became of them. Empty where none was forwarded.
pub fn transactions() -> Vec<(&'static str, u64)> {
    counted(&ENDED, &TRANSACTIONS)
}

/// Requests for the primary's write lock, by what became of them. Empty where there was none.
pub fn locks() -> Vec<(&'static str, u64)> {
    counted(&ASKED, &LOCKS)
}

/// Seconds that commits have taken; `None` where there was none.
pub fn seconds() -> Option<f64> {
    let microseconds = MICROSECONDS.load(Ordering::Relaxed);
    (microseconds > 0).then(|| microseconds as f64 / 1e6)
}
