//! `cargo xtask torture-cluster`: nodes that are killed, frozen, and cut off, while clients write and read through their proxies.
//!
//! A lane makes a world ([`crate::cluster`]: three nodes over a folder as store, each with the application and a reader beside it), lets clients ([`client`])
//! write and read at any node, and has things happen to the nodes ([`mishap`]). What clients see is compared with what they were told while it goes
//! on, and everything at the end of a world ([`verify`]):
//!
//! - a row that was safe ([`promise`]: in the store, or on the disks of other nodes where `--durability` is given) is never lost, and none is there twice;
//! - whoever is the primary after something has happened has all of them;
//! - what was acknowledged and is not in the history is in a lost branch;
//! - a client sees on every node what it has written, unless a node was lost meanwhile;
//! - no application writes after another has begun, unless it was frozen together with its guard;
//! - no request fails in a handoff;
//! - within a minute there is a primary again, and in the end every node has what the store has;
//! - when all nodes have ended no process of theirs is left, and no mount.
//!
//! Worlds take turns ([`kind`]): folders and mounts, with other nodes as witnesses and without, with a node that is pushed to.
//!
//! A seed decides all choices but not the timing of the processes.

mod client;
mod history;
mod kind;
mod mishap;
mod promise;
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
use kind::{Kind, Wanted};
use mishap::Fate;
use report::{Counts, Fault, Report};

/// Clients of a world.
const CLIENTS: u64 = 4;
/// Them, and who asks what is safe.
const PEOPLE: u64 = CLIENTS + 1;
/// Most mishaps before a lane starts over: what a world has become is compared at its end.
const CYCLES_PER_WORLD_MAX: u64 = 25;

/// Runs until the time or the cycles are used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut limits = Limits::take(&mut args)?;
    let wanted = Wanted::take(&mut args)?;
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    let Some(kinds) = wanted.kinds(&rhyolite)? else { return Ok(()) };
    println!("torture of the cluster: {} s, {} lanes, seed {}", limits.seconds, limits.lanes, limits.seed);
    limits.begin();
    let report = Report::default();
    std::thread::scope(|scope| {
        for lane in 0..limits.lanes {
            let (kinds, rhyolite, limits, report) = (&kinds, &rhyolite, &limits, &report);
            scope.spawn(move || run_lane(lane, kinds, rhyolite, limits, report));
        }
    });
    tell(&report.into_sums(), limits.seed, limits.elapsed())
}

fn run_lane(lane: u64, kinds: &[Kind], rhyolite: &Rhyolite, limits: &Limits, report: &Report) {
    let mut rng = limits.lane_rng(lane);
    // Side by side, and one after the other, worlds are of different kinds.
    let turns = (0..).map(|world| limits.seed.wrapping_add(lane).wrapping_add(world * limits.lanes));
    for turn in turns {
        if !limits.begin_cycle(report.read(Counts::faults)) {
            return;
        }
        let kind = kinds[(turn % kinds.len() as u64) as usize];
        if let Err(error) = run_world(kind, rhyolite, &mut rng, limits, report) {
            report.fault(Fault::Failure, 1, &format!("lane {lane}"), &error.to_string());
        }
        report.read(|counts| println!("{} s: {}", limits.elapsed().as_secs(), counts.line()));
        if report.read(|counts| counts.failures >= FAULTS_MAX) {
            return;
        }
    }
}

/// One world, from its making to its comparison. Its first cycle has been counted.
fn run_world(kind: Kind, rhyolite: &Rhyolite, rng: &mut Rng, limits: &Limits, report: &Report) -> Outcome {
    let cluster = Cluster::start(rhyolite, kind.setting(rng))?;
    let before = report.read(Counts::faults);
    report.count(|counts| counts.worlds += 1);
    report.event(kind.name());
    let result = torment(&cluster, rng, limits, report);
    if result.is_err() || report.read(Counts::faults) > before {
        cluster.keep();
    }
    result.context(cluster.folder().display())
}

fn torment(cluster: &Cluster, rng: &mut Rng, limits: &Limits, report: &Report) -> Outcome {
    let (history, ends, frozen) = (History::default(), AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let shared = Shared { cluster, history: &history, report, ends: &ends };
    let mut fate = Fate { shared, frozen: &frozen, rng: Rng::new(rng.draw()) };
    let cycles = rng.range(5..CYCLES_PER_WORLD_MAX + 1);
    fate.settle()?;
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let rng = Rng::new(rng.draw());
            scope.spawn(move || client::run(shared, number, rng));
        }
        scope.spawn(move || promise::watch_durable(shared));
        if let Some(level) = cluster.setting.safety.level() {
            scope.spawn(move || promise::watch_safe(shared, level, CLIENTS));
        }
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
    verify::run(shared, &frozen.lock().expect("nobody panics with it"))
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
