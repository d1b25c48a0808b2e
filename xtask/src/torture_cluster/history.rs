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
    /// In the store.
    durable: Rows,
    /// On the disks of enough other nodes, or in the store.
    safe: Rows,
}

impl Told {
    /// What can never be lost, of a client.
    fn kept(&self, client: u64) -> BTreeSet<u64> {
        let of = |rows: &Rows| rows.get(&client).cloned().unwrap_or_default();
        &of(&self.durable) | &of(&self.safe)
    }

    fn sure(&self, client: u64) -> BTreeSet<u64> {
        self.acknowledged.get(&client).map(|rows| rows & &self.kept(client)).unwrap_or_default()
    }
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

    /// A node said that these rows of a client are safe. Gives of how many nobody has said that they are in the store.
    pub(super) fn note_safe(&self, client: u64, numbers: BTreeSet<u64>) -> usize {
        let mut told = self.told();
        let new = numbers.difference(&told.kept(client)).count();
        told.safe.entry(client).or_default().extend(numbers);
        new
    }

    /// A disk was lost: what was acknowledged and never safe may be nowhere.
    pub(super) fn forgive(&self) {
        let mut told = self.told();
        let clients: Vec<u64> = told.acknowledged.keys().copied().collect();
        for client in clients {
            let sure = told.sure(client);
            told.acknowledged.insert(client, sure);
        }
    }

    /// Rows that a client must see on every node: it was told of them, and nothing can take them away.
    pub(super) fn sure(&self, client: u64) -> BTreeSet<u64> {
        self.told().sure(client)
    }

    /// All that can never be lost, whether or not a client was told.
    pub(super) fn kept(&self) -> Rows {
        let told = self.told();
        let clients: BTreeSet<u64> = told.durable.keys().chain(told.safe.keys()).copied().collect();
        clients.into_iter().map(|client| (client, told.kept(client))).collect()
    }

    /// All that was acknowledged.
    pub(super) fn acknowledged(&self) -> Rows {
        self.told().acknowledged.clone()
    }
}

/// What is in `rows` and not in `others`.
pub(super) fn minus(rows: &Rows, others: &Rows) -> Vec<(u64, u64)> {
    let all = rows.iter().flat_map(|(client, numbers)| numbers.iter().map(move |number| (*client, *number)));
    all.filter(|(client, number)| !has(others, *client, *number)).collect()
}

/// Whether a row is among these.
pub(super) fn has(rows: &Rows, client: u64, number: u64) -> bool {
    rows.get(&client).is_some_and(|rows| rows.contains(&number))
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
        assert_eq!(history.note_safe(7, BTreeSet::from([1, 2, 5])), 2, "2 is in the store");
        assert_eq!(history.sure(7), BTreeSet::from([1, 2, 3]));
        assert_eq!(history.kept(), Rows::from([(7, BTreeSet::from([1, 2, 3, 4, 5]))]));
        history.acknowledge(7, 9);
        history.forgive();
        assert_eq!(history.acknowledged(), Rows::from([(7, BTreeSet::from([1, 2, 3]))]), "9 was not safe");
        assert_eq!(history.calm(), Some(0));
        history.disturb();
        assert_eq!(history.calm(), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let rows = |numbers: &[u64]| Rows::from([(1, numbers.iter().copied().collect())]);
        assert_eq!(minus(&rows(&[1, 2, 3]), &rows(&[1, 3, 4])), [(1, 2)]);
        assert!(minus(&rows(&[]), &rows(&[1])).is_empty());
        assert_eq!(minus(&rows(&[1]), &Rows::new()), [(1, 1)]);
    }
}
