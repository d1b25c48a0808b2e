//! What the torture test counts, and how it is told.
//!
//! Three counters must be 0 at the end: missing, wrong, mismatched. A fourth, failures, covers what else must not happen: the backup
//! does not catch up, a program ends by itself, the application is stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::report::Sums;

/// The sums of all lanes.
pub(crate) type Report = crate::report::Report<Counts>;

/// What can be counted as a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A transaction, row or restore point that should be there.
    Missing,
    /// A row or structure that is not what was written.
    Wrong,
    /// A restored file whose bytes differ from the source.
    Mismatch,
    /// Anything else that must not happen.
    Failure,
}

/// Sums of one run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Cycles that ended, each with at least one kill.
    pub(crate) cycles: u64,
    /// Databases that were tortured one after another.
    pub(crate) worlds: u64,
    /// Replicators killed with SIGKILL while alive.
    pub(crate) replicator_kills: u64,
    /// Writers killed with SIGKILL while alive.
    pub(crate) writer_kills: u64,
    /// Transactions that were in a database when it was compared.
    pub(crate) transactions: u64,
    /// Restored files compared byte for byte with an image of the source.
    pub(crate) compared: u64,
    /// Restored files judged by their ledger and their checksum.
    pub(crate) judged: u64,
    /// See [`Fault::Missing`].
    pub(crate) missing: u64,
    /// See [`Fault::Wrong`].
    pub(crate) wrong: u64,
    /// See [`Fault::Mismatch`].
    pub(crate) mismatched: u64,
    /// See [`Fault::Failure`].
    pub(crate) failures: u64,
    /// What happened besides kills, by name.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// Time from the last commit to its restore point, one for each cycle.
    pub(crate) settle_ms: Vec<u64>,
}

impl Counts {
    /// Whether the run passes.
    pub(crate) fn is_clean(&self) -> bool {
        self.faults() == 0
    }

    /// All faults together.
    pub(crate) fn faults(&self) -> u64 {
        self.missing + self.wrong + self.mismatched + self.failures
    }

    /// The sums as one JSON object.
    pub(crate) fn json(&mut self, seed: u64, elapsed: Duration) -> serde_json::Value {
        self.settle_ms.sort_unstable();
        let settle = |per_mille: usize| {
            self.settle_ms.get((self.settle_ms.len() * per_mille / 1000).min(self.settle_ms.len().max(1) - 1))
        };
        json!({
            "seed": seed, "seconds": elapsed.as_secs(), "cycles": self.cycles, "worlds": self.worlds,
            "replicator_kills": self.replicator_kills, "writer_kills": self.writer_kills,
            "transactions": self.transactions, "restores_compared": self.compared, "restores_judged": self.judged,
            "missing": self.missing, "wrong": self.wrong, "byte_mismatches": self.mismatched,
            "other_failures": self.failures, "settle_ms_p50": settle(500), "settle_ms_max": self.settle_ms.last(),
            "events": self.events,
        })
    }
}

impl Sums for Counts {
    type Fault = Fault;

    fn counter(&mut self, fault: Fault) -> &mut u64 {
        match fault {
            Fault::Missing => &mut self.missing,
            Fault::Wrong => &mut self.wrong,
            Fault::Mismatch => &mut self.mismatched,
            Fault::Failure => &mut self.failures,
        }
    }

    fn events(&mut self) -> &mut BTreeMap<&'static str, u64> {
        &mut self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_spoils_the_run() {
        for fault in [Fault::Missing, Fault::Wrong, Fault::Mismatch, Fault::Failure] {
            let report = Report::default();
            assert!(report.read(Counts::is_clean));
            report.fault(fault, 1, "a test", "on purpose");
            assert!(!report.into_sums().is_clean(), "{fault:?}");
        }
    }

    #[test]
    fn figures_are_told_without_any_cycle_too() {
        let mut counts = Counts::default();
        assert!(counts.json(1, Duration::ZERO)["settle_ms_p50"].is_null());
        counts.settle_ms = vec![3, 1, 2];
        let json = counts.json(1, Duration::ZERO);
        assert_eq!((json["settle_ms_p50"].as_u64(), json["settle_ms_max"].as_u64()), (Some(2), Some(3)));
    }
}
