//! One run, from a scenario to what came of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::cluster;
use crate::director;
use crate::executor::Executor;
use crate::scenario::Scenario;
use crate::sim::Sim;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What did not hold, if something did not.
    pub violation: Option<String>,
    /// Acknowledgements.
    pub acknowledged: u64,
    /// How often somebody was told that a commit is safe that was not durable yet. Only in a cluster.
    pub promised: u64,
    /// How often somebody heard that what a replica had sent was committed.
    pub forwarded: u64,
    /// Lines, when they were asked for.
    pub trace: Vec<String>,
}

/// Runs a scenario to its end, or to the first thing that does not hold.
pub fn run(scenario: Scenario, traced: bool) -> Report {
    let sim = Sim::new(scenario, traced);
    let ended = catch_unwind(AssertUnwindSafe(|| go(&sim)));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        sim.model().violated(format!("panic: {}", text.unwrap_or_default()));
    }
    let (violation, acknowledged) = {
        let model = sim.model();
        (model.violation.clone(), model.acknowledged)
    };
    if let Some(violation) = &violation {
        sim.trace(|| format!("VIOLATED: {violation}"));
    }
    let (promised, forwarded) = if sim.is_cluster() {
        let truth = sim.cluster().truth();
        (truth.promises, truth.forwards)
    } else {
        (0, 0)
    };
    let report = Report { violation, acknowledged, promised, forwarded, trace: sim.take_trace() };
    sim.end();
    report
}

fn go(sim: &Arc<Sim>) {
    let mut executor = Executor::new(sim.timeline.clone());
    if sim.is_cluster() {
        cluster::director::begin(sim);
    } else {
        sim.timeline.spawn(None, director::direct(Arc::clone(sim)));
    }
    executor.run(sim.scenario.end, |node| {
        // A right begins only when a node does something.
        let holders = if node.is_some() { sim.holders() } else { Vec::new() };
        if holders.len() > 1 {
            sim.model().violated(format!("nodes {holders:?} have the right at the same time"));
        }
        sim.model().violation.is_none()
    });
    let mut model = sim.model();
    if model.violation.is_none() && model.acknowledged_last < sim.scenario.calm {
        model.violated("nobody wrote any more after everything was well again".to_owned());
    }
    if model.violation.is_none() {
        model.check_all(&sim.store);
    }
    drop(model);
    if sim.is_cluster() {
        cluster::truth::check_end(sim);
    }
}
