//! Sums that the lanes of a run add to, and the faults among them, each told when it is found.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a run counts.
pub(crate) trait Sums: Default {
    /// What can be counted as a fault.
    type Fault: Debug + Copy;

    /// The counter of `fault`.
    fn counter(&mut self, fault: Self::Fault) -> &mut u64;

    /// What happened besides, by name.
    fn events(&mut self) -> &mut BTreeMap<&'static str, u64>;
}

/// The sums of all lanes.
#[derive(Debug, Default)]
pub(crate) struct Report<S>(Mutex<S>);

impl<S: Sums> Report<S> {
    /// Changes the sums.
    pub(crate) fn count(&self, change: impl FnOnce(&mut S)) {
        change(&mut self.0.lock().expect("no lane panics while it counts"));
    }

    /// Counts `number` faults and says what was found where.
    pub(crate) fn fault(&self, fault: S::Fault, number: usize, place: &str, what: &str) {
        // As logs have it.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        eprintln!("FAULT {fault:?} in {place}, {}.{:03}: {what}", now / 1000, now % 1000);
        self.count(|sums| *sums.counter(fault) += number as u64);
    }

    /// Counts something that happened.
    pub(crate) fn event(&self, name: &'static str) {
        self.count(|sums| *sums.events().entry(name).or_default() += 1);
    }

    /// Reads the sums.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&self.0.lock().expect("no lane panics while it counts"))
    }

    /// The sums, when all lanes are done.
    pub(crate) fn into_sums(self) -> S {
        self.0.into_inner().expect("no lane panics while it counts")
    }
}
