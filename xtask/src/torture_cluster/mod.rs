//! `cargo xtask torture-cluster`: nodes that are killed, frozen, and cut off, while clients write and read through their proxies.
//!
//! A lane makes a world ([`crate::cluster`]: three nodes over a folder as store, each with the application and a reader beside it), lets clients ([`client`])
//! write and read at any node, and has things happen to the nodes ([`mishap`]). What clients see is compared with what they were told while it goes
//! on, and everything at the end of a world ([`verify`]):
//!
//! - a row that was durable is never lost, and none is there twice;
//! - what was acknowledged and is not in the history is in a lost branch;
//! - a client sees on every node what it has written, unless a node was lost meanwhile;
//! - no application writes after another has begun, unless it was frozen together with its guard;
//! - no request fails in a handoff;
//! - within a minute there is a primary again, and in the end every node has what the store has.
//!
//! A seed decides all choices but not the timing of the processes.

mod client;
mod history;
mod mishap;
mod report;
mod verify;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::{Context, Outcome, fail};
use crate::limits::{FAULTS_MAX, Limits};
use crate::rhyolite::Rhyolite;
use crate::rng::Rng;
use client::Shared;
use history::History;
use mishap::Fate;
use report::{Counts, Fault, Report};

/// Nodes of a world.
const NODES: usize = 3;
/// Clients of a world.
const CLIENTS: u64 = 4;
/// Most mishaps before a lane starts over: what a world has become is compared at its end.
const CYCLES_PER_WORLD_MAX: u64 = 25;

/// Runs until the time or the cycles are used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut limits = Limits::take(&mut args)?;
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    println!("torture of the cluster: {} s, {} lanes, seed {}", limits.seconds, limits.lanes, limits.seed);
    limits.begin();
    let report = Report::default();
    std::thread::scope(|scope| {
        for lane in 0..limits.lanes {
            let (rhyolite, limits, report) = (&rhyolite, &limits, &report);
            scope.spawn(move || run_lane(lane, rhyolite, limits, report));
        }
    });
    tell(&report.into_sums(), limits.seed, limits.elapsed())
}

fn run_lane(lane: u64, rhyolite: &Rhyolite, limits: &Limits, report: &Report) {
    let mut rng = limits.lane_rng(lane);
    while limits.begin_cycle(report.read(Counts::faults)) {
        if let Err(error) = run_world(rhyolite, &mut rng, limits, report) {
            report.fault(Fault::Failure, 1, &format!("lane {lane}"), &error.to_string());
        }
        report.read(|counts| println!("{} s: {}", limits.elapsed().as_secs(), counts.line()));
        if report.read(|counts| counts.failures >= FAULTS_MAX) {
            return;
        }
    }
}

/// One world, from its making to its comparison. Its first cycle has been counted.
fn run_world(rhyolite: &Rhyolite, rng: &mut Rng, limits: &Limits, report: &Report) -> Outcome {
    let cluster = Cluster::start(rhyolite, NODES)?;
    let before = report.read(Counts::faults);
    report.count(|counts| counts.worlds += 1);
    let result = torment(&cluster, rng, limits, report);
    if result.is_err() || report.read(Counts::faults) > before {
        cluster.keep();
    }
    result.context(cluster.folder().display())
}

fn torment(cluster: &Cluster, rng: &mut Rng, limits: &Limits, report: &Report) -> Outcome {
    let (history, ends, frozen) = (History::default(), AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let shared = Shared { cluster, history: &history, report, ends: &ends };
    let mut fate = Fate { cluster, history: &history, report, frozen: &frozen, rng: Rng::new(rng.draw()) };
    let cycles = rng.range(5..CYCLES_PER_WORLD_MAX + 1);
    fate.settle()?;
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let rng = Rng::new(rng.draw());
            scope.spawn(move || client::run(shared, number, rng));
        }
        scope.spawn(move || client::watch_durable(shared, CLIENTS));
        let mut strike = || -> Outcome {
            std::thread::sleep(Duration::from_secs(2));
            for number in 0..cycles {
                if number > 0 && !limits.begin_cycle(report.read(Counts::faults)) {
                    break;
                }
                fate.strike()?;
            }
            Ok(())
        };
        let struck = strike();
        ends.store(true, Ordering::SeqCst);
        struck
    })?;
    fate.settle()?;
    verify::run(shared, CLIENTS, &frozen.lock().expect("nobody panics with it"))?;
    cluster.nodes.iter().rev().try_for_each(|node| node.stop().map(|_| ()))
}

fn tell(counts: &Counts, seed: u64, elapsed: Duration) -> Outcome {
    println!("{} worlds in {} s", counts.worlds, elapsed.as_secs());
    println!("{}", counts.line());
    for (name, number) in &counts.events {
        println!("  {number:5} {name}");
    }
    println!("{}", counts.json(seed, elapsed));
    if counts.is_clean() { Ok(()) } else { fail("the torture test of the cluster found faults") }
}
