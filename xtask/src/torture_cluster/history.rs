//! What clients were told, and what follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of rows, by client.
pub(super) type Rows = BTreeMap<u64, BTreeSet<u64>>;

/// What all clients of a world were told.
#[derive(Debug, Default)]
pub(super) struct History {
    rows: Mutex<Told>,
    /// Odd while something happens by which what is not durable may be lost.
    disturbances: AtomicU64,
    /// Requests that had no answer, or one that says no.
    unanswered: AtomicU64,
}

#[derive(Debug, Default)]
struct Told {
    acknowledged: Rows,
    durable: Rows,
}

impl History {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.rows.lock().expect("nobody panics with it")
    }

    /// From here on commits may be lost that are not durable.
    pub(super) fn disturb(&self) {
        self.disturbances.fetch_add(1, Ordering::SeqCst);
    }

    /// The moment, if nothing is lost now: what was told at it holds as long as it is the same.
    pub(super) fn calm(&self) -> Option<u64> {
        Some(self.disturbances.load(Ordering::SeqCst)).filter(|number| number.is_multiple_of(2))
    }

    /// A request had no answer, or one that says no.
    pub(super) fn note_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::SeqCst);
    }

    /// How many there were.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::SeqCst)
    }

    /// A client was told that its row is committed.
    pub(super) fn acknowledge(&self, client: u64, number: u64) {
        self.told().acknowledged.entry(client).or_default().insert(number);
    }

    /// A node said that these rows of a client are durable.
    pub(super) fn note_durable(&self, client: u64, numbers: BTreeSet<u64>) {
        self.told().durable.entry(client).or_default().extend(numbers);
    }

    /// Rows that a client must see on every node: it was told of them, and nothing can take them away.
    pub(super) fn sure(&self, client: u64) -> BTreeSet<u64> {
        let told = self.told();
        match (told.acknowledged.get(&client), told.durable.get(&client)) {
            (Some(acknowledged), Some(durable)) => acknowledged & durable,
            _ => BTreeSet::new(),
        }
    }

    /// All that was acknowledged, and all that was said to be durable.
    pub(super) fn all(&self) -> (Rows, Rows) {
        let told = self.told();
        (told.acknowledged.clone(), told.durable.clone())
    }
}

/// An application that wrote, and when it did first and last, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reign {
    pub(super) process: u32,
    pub(super) first: u128,
    pub(super) last: u128,
}

/// Pairs of applications of which one still wrote when another had begun, without those that may: they were frozen together with their guards.
pub(super) fn overlaps(reigns: &[Reign], may: &BTreeSet<u32>) -> Vec<(Reign, Reign)> {
    let mut reigns: Vec<Reign> = reigns.iter().copied().filter(|reign| !may.contains(&reign.process)).collect();
    reigns.sort_by_key(|reign| reign.first);
    let pairs =
        reigns.iter().enumerate().flat_map(|(at, one)| reigns[at + 1..].iter().map(move |other| (*one, *other)));
    pairs.filter(|(one, other)| other.first <= one.last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_on_when_another_has_begun_is_found() {
        let reign = |process, first, last| Reign { process, first, last };
        let none = BTreeSet::new();
        assert!(overlaps(&[reign(2, 20, 30), reign(1, 1, 19), reign(3, 31, 31)], &none).is_empty());
        let reigns = [reign(1, 1, 100), reign(2, 20, 30), reign(3, 40, 50)];
        assert_eq!(overlaps(&reigns, &none).len(), 2, "not only neighbours");
        assert!(overlaps(&reigns, &BTreeSet::from([1])).is_empty());
    }

    #[test]
    fn only_what_was_acknowledged_and_is_durable_is_sure() {
        let history = History::default();
        for number in 1..=3 {
            history.acknowledge(7, number);
        }
        history.note_durable(7, BTreeSet::from([2, 3, 4]));
        assert_eq!(history.sure(7), BTreeSet::from([2, 3]));
        assert!(history.sure(8).is_empty());
        assert_eq!(history.calm(), Some(0));
        history.disturb();
        assert_eq!(history.calm(), None);
    }
}
