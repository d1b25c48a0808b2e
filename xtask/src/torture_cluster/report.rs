//! What a run of the torture test of the cluster counts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::report::Sums;

/// The sums of all lanes.
pub(super) type Report = crate::report::Report<Counts>;

/// What can be counted as a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A row that was safe, or acknowledged and kept nowhere, and is not there.
    Lost,
    /// A row that is there twice.
    Doubled,
    /// A row that its client does not see, though nothing happened by which it may be lost.
    Unseen,
    /// Two applications that wrote at a time.
    Both,
    /// Nodes that do not have the same in the end, or not what the store has; files that are damaged.
    Different,
    /// A request that failed while the role was handed on and nothing else happened.
    Refused,
    /// Anything else that must not happen.
    Failure,
}

/// Sums of one run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) worlds: u64,
    /// What was done to nodes.
    pub(super) mishaps: u64,
    pub(super) writes: u64,
    /// Of these, by other applications on mounts.
    pub(super) writes_on_mounts: u64,
    pub(super) reads: u64,
    /// Requests without an answer, or with one that says no.
    pub(super) unanswered: u64,
    /// How often everything was durable, and the longest wait for that.
    pub(super) syncs: u64,
    pub(super) sync_ms_max: u128,
    /// How often nodes said that a commit was safe, and rows that were so before anybody said that they are in the store.
    pub(super) promises: u64,
    pub(super) safe: u64,
    /// How often all that was safe was looked for on the primary.
    pub(super) checks: u64,
    /// Rows at the end of their worlds, and those of them that had been acknowledged.
    pub(super) rows: u64,
    /// Rows that were acknowledged, never durable, and are in a lost branch.
    pub(super) kept: u64,
    pub(super) branches: u64,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) unseen: u64,
    pub(super) both: u64,
    pub(super) different: u64,
    pub(super) refused: u64,
    pub(super) failures: u64,
    /// What happened, by name.
    pub(super) events: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Whether the run passes.
    pub(super) fn is_clean(&self) -> bool {
        self.faults() == 0
    }

    /// All faults together.
    pub(super) fn faults(&self) -> u64 {
        self.lost + self.doubled + self.unseen + self.both + self.different + self.refused + self.failures
    }

    /// How far the run is.
    pub(super) fn line(&self) -> String {
        format!(
            "{} mishaps, {} writes ({} on mounts) and {} reads, {} unanswered, {} safe by {} promises, {} rows, {} kept in {} branches; lost {}, doubled {}, unseen {}, both {}, different {}, refused {}, failures {}",
            self.mishaps,
            self.writes,
            self.writes_on_mounts,
            self.reads,
            self.unanswered,
            self.safe,
            self.promises,
            self.rows,
            self.kept,
            self.branches,
            self.lost,
            self.doubled,
            self.unseen,
            self.both,
            self.different,
            self.refused,
            self.failures
        )
    }

    /// The sums as one JSON object.
    pub(super) fn json(&self, seed: u64, elapsed: Duration) -> serde_json::Value {
        json!({
            "seed": seed, "seconds": elapsed.as_secs(), "worlds": self.worlds, "mishaps": self.mishaps, "writes": self.writes, "writes_on_mounts": self.writes_on_mounts,
            "reads": self.reads, "unanswered": self.unanswered, "syncs": self.syncs, "sync_ms_max": self.sync_ms_max,
            "promises": self.promises, "safe": self.safe, "checks": self.checks,
            "rows": self.rows, "kept": self.kept, "branches": self.branches, "lost": self.lost, "doubled": self.doubled,
            "unseen": self.unseen, "both": self.both, "different": self.different, "refused": self.refused,
            "other_failures": self.failures, "events": self.events,
        })
    }
}

impl Sums for Counts {
    type Fault = Fault;

    fn counter(&mut self, fault: Fault) -> &mut u64 {
        match fault {
            Fault::Lost => &mut self.lost,
            Fault::Doubled => &mut self.doubled,
            Fault::Unseen => &mut self.unseen,
            Fault::Both => &mut self.both,
            Fault::Different => &mut self.different,
            Fault::Refused => &mut self.refused,
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
        let faults =
            [Fault::Lost, Fault::Doubled, Fault::Unseen, Fault::Both, Fault::Different, Fault::Refused, Fault::Failure];
        for fault in faults {
            let report = Report::default();
            assert!(report.read(Counts::is_clean));
            report.fault(fault, 1, "a test", "on purpose");
            assert!(!report.into_sums().is_clean(), "{fault:?}");
        }
    }
}
