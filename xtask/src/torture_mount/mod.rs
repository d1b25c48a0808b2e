//! `cargo xtask torture-mount`: `rhyolite mount` with real writers in every journal mode, kill -9, and every restore point looked at.
//!
//! Lanes run side by side. A lane makes a world ([`world`]: a mount with one database for each journal mode), torments it for some
//! cycles ([`cycle`]: writers are killed, and often the daemon), and compares everything at its end ([`verify`], [`verdict`]): on a mount
//! each commit is a restore point of its own, in every mode. A seed decides all choices but not the timing of the processes.
//!
//! A killed daemon ends its connection to the kernel, and with it whatever waits for it. One that is alive and does not answer is found by
//! a watch ([`mount`]), which ends the connection, so no run waits for ever.

mod cycle;
pub(crate) mod mount;
mod report;
mod seen;
mod verdict;
mod verify;
mod world;

use std::time::Duration;

pub(crate) use mount::find_obstacle;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::limits::{FAULTS_MAX, Limits};
use crate::rhyolite::Rhyolite;
use crate::rng::Rng;
use report::{Counts, Fault, Report};
use world::World;

/// Most cycles before a lane starts over: what a world has become is compared only at its end.
const CYCLES_PER_WORLD_MAX: u64 = 6;
/// Commits after which no other cycle begins in a world: each is a restore point that is restored.
const COMMITS_PER_WORLD: usize = 400;

/// What a run takes for a fault.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Commits that were acknowledged before their daemon was killed may be folded into one restore point.
    allow_folded: bool,
}

/// Runs until the time or the cycles are used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut limits = Limits::take(&mut args)?;
    let rules = Rules { allow_folded: args.switch("--allow-folded") };
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    if let Some(reason) = find_obstacle(&rhyolite)? {
        if std::env::var_os("RHYOLITE_REQUIRE_FUSE").is_some() {
            return fail(format!("nothing can be mounted here: {reason}"));
        }
        println!("SKIPPED: nothing can be mounted here: {reason}");
        return Ok(());
    }
    println!("torture of the mount: {} s, {} lanes, seed {}", limits.seconds, limits.lanes, limits.seed);
    limits.begin();
    let report = Report::default();
    std::thread::scope(|scope| {
        for lane in 0..limits.lanes {
            let (rhyolite, limits, report) = (&rhyolite, &limits, &report);
            scope.spawn(move || run_lane(lane, rules, rhyolite, limits, report));
        }
    });
    tell(&report.into_sums(), limits.seed, limits.elapsed())
}

fn run_lane(lane: u64, rules: Rules, rhyolite: &Rhyolite, limits: &Limits, report: &Report) {
    let mut rng = limits.lane_rng(lane);
    while limits.begin_cycle(report.read(Counts::faults)) {
        let place = format!("lane {lane}");
        if let Err(error) = run_world(rules, rhyolite, &mut rng, limits, report) {
            report.fault(Fault::Failure, 1, &place, &error.to_string());
        }
        report.read(|counts| println!("{} s: {}", limits.elapsed().as_secs(), counts.line()));
        if report.read(|counts| counts.failures >= FAULTS_MAX) {
            return;
        }
    }
}

/// One world, from its making to its comparison. Its first cycle has been counted.
fn run_world(rules: Rules, rhyolite: &Rhyolite, rng: &mut Rng, limits: &Limits, report: &Report) -> Outcome {
    let cycles = rng.range(2..CYCLES_PER_WORLD_MAX + 1);
    let mut world = World::new(rhyolite, rng)?;
    report.count(|counts| counts.worlds += 1);
    let mut torment = || -> Outcome {
        for number in 0..cycles {
            let is_full = world.commits() > COMMITS_PER_WORLD;
            if number > 0 && (is_full || !limits.begin_cycle(report.read(Counts::faults))) {
                break;
            }
            cycle::run(&mut world, report)?;
            report.count(|counts| counts.cycles += 1);
        }
        world.end(report)?;
        verify::run(&mut world, report, rules)
    };
    let result = torment();
    if result.is_err() || !world.clean {
        world.keep();
    }
    result.context(world.place())
}

fn tell(counts: &Counts, seed: u64, elapsed: Duration) -> Outcome {
    println!(
        "{} cycles in {} worlds in {} s: {} writers and {} daemons killed, {} daemons stopped",
        counts.cycles,
        counts.worlds,
        elapsed.as_secs(),
        counts.writer_kills,
        counts.daemon_kills,
        counts.daemon_stops
    );
    println!(
        "{} commits; {} restore points restored and judged by their rows, {} of them without a commit of the application; {} restores compared byte for byte",
        counts.commits, counts.points, counts.unchanged, counts.compared
    );
    println!(
        "of commits that no point shows, {} were made while no daemon watched, and {} were acknowledged before their daemon was killed",
        counts.unwatched, counts.folded
    );
    println!(
        "missing {}, extra {}, wrong {}, other failures {}",
        counts.missing, counts.extra, counts.wrong, counts.failures
    );
    println!("{}", counts.json(seed, elapsed));
    if counts.is_clean() { Ok(()) } else { fail("the torture test of the mount found faults") }
}
