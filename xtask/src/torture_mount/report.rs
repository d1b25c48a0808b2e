//! What the torture test of the mount counts, and how it is told.
//!
//! Three counters must be 0 at the end: missing, extra, wrong. A fourth, failures, covers what else must not happen: a program ends by itself,
//! a mount does not come or go, something does not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::report::Sums;

/// The sums of all lanes.
pub(super) type Report = crate::report::Report<Counts>;

/// What can be counted as a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A commit that no restore point shows, or that was acknowledged and is not there.
    Missing,
    /// A restore point of a transaction that was never committed.
    Extra,
    /// A restored database that is not what it should be, or points out of order.
    Wrong,
    /// Anything else that must not happen.
    Failure,
}

/// Sums of one run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Cycles that ended.
    pub(super) cycles: u64,
    /// Mounts with all their databases, one after another.
    pub(super) worlds: u64,
    /// Writers killed with SIGKILL while alive.
    pub(super) writer_kills: u64,
    /// Daemons killed with SIGKILL while alive.
    pub(super) daemon_kills: u64,
    /// Daemons that ended when they were asked to, and were followed by another.
    pub(super) daemon_stops: u64,
    /// Transactions in the databases at the end of their worlds.
    pub(super) commits: u64,
    /// Restore points that were restored and judged.
    pub(super) points: u64,
    /// Those of them with the same last transaction as the one before: VACUUM, REINDEX, and what was rolled back after a spill.
    pub(super) unchanged: u64,
    /// Restored files compared byte for byte.
    pub(super) compared: u64,
    /// Commits without a point that were made while no daemon watched, or were not acknowledged when it was killed.
    pub(super) unwatched: u64,
    /// Commits without a point that had been acknowledged when their daemon was killed. Missing, too, unless that is allowed.
    pub(super) folded: u64,
    /// See [`Fault::Missing`].
    pub(super) missing: u64,
    /// See [`Fault::Extra`].
    pub(super) extra: u64,
    /// See [`Fault::Wrong`].
    pub(super) wrong: u64,
    /// See [`Fault::Failure`].
    pub(super) failures: u64,
    /// What happened besides kills, by name.
    pub(super) events: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Whether the run passes.
    pub(super) fn is_clean(&self) -> bool {
        self.faults() == 0
    }

    /// All faults together.
    pub(super) fn faults(&self) -> u64 {
        self.missing + self.extra + self.wrong + self.failures
    }

    /// How far the run is.
    pub(super) fn line(&self) -> String {
        format!(
            "{} cycles, {} writers and {} daemons killed, {} commits, {} points restored; missing {}, extra {}, wrong {}, failures {}",
            self.cycles,
            self.writer_kills,
            self.daemon_kills,
            self.commits,
            self.points,
            self.missing,
            self.extra,
            self.wrong,
            self.failures
        )
    }

    /// The sums as one JSON object.
    pub(super) fn json(&self, seed: u64, elapsed: Duration) -> serde_json::Value {
        json!({
            "seed": seed, "seconds": elapsed.as_secs(), "cycles": self.cycles, "worlds": self.worlds,
            "writer_kills": self.writer_kills, "daemon_kills": self.daemon_kills, "daemon_stops": self.daemon_stops,
            "commits": self.commits, "points_restored": self.points, "points_without_a_commit": self.unchanged,
            "restores_compared": self.compared, "unwatched": self.unwatched, "folded": self.folded,
            "missing": self.missing, "extra": self.extra, "wrong": self.wrong, "other_failures": self.failures,
            "events": self.events,
        })
    }
}

impl Sums for Counts {
    type Fault = Fault;

    fn counter(&mut self, fault: Fault) -> &mut u64 {
        match fault {
            Fault::Missing => &mut self.missing,
            Fault::Extra => &mut self.extra,
            Fault::Wrong => &mut self.wrong,
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
        for fault in [Fault::Missing, Fault::Extra, Fault::Wrong, Fault::Failure] {
            let report = Report::default();
            assert!(report.read(Counts::is_clean));
            report.fault(fault, 1, "a test", "on purpose");
            assert!(!report.into_sums().is_clean(), "{fault:?}");
        }
    }

    #[test]
    fn what_is_only_told_spoils_nothing() {
        let counts = Counts { unchanged: 1, unwatched: 2, folded: 3, ..Counts::default() };
        assert!(counts.is_clean());
        assert_eq!(counts.json(1, Duration::ZERO)["folded"].as_u64(), Some(3));
    }
}
