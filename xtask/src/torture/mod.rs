//! `cargo xtask torture`: real processes, real SQLite, kill -9, and an oracle.
//!
//! Lanes run side by side. A lane makes a world (one or two databases with random settings, their backups, writers and
//! replicators), torments it for some cycles ([`cycle`]) and starts over. In each cycle something is killed with SIGKILL, and
//! often more happens while the replicator is down ([`mishap`]). At the end of each cycle the replicator must catch up by itself, and
//! restores are compared with the source ([`verify`]). A seed decides all choices but not the timing of the processes.

mod cycle;
mod mishap;
mod report;
mod trouble;
mod verify;
mod world;

use std::time::Duration;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::limits::{FAULTS_MAX, Limits};
use crate::rhyolite::Rhyolite;
use crate::s3_server::Server;
use report::{Counts, Fault, Report};
use world::{Backing, World};

/// Cycles before a lane starts over with new databases.
const CYCLES_PER_WORLD: u64 = 10;

/// Runs until the time or the cycles are used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut limits = Limits::take(&mut args)?;
    let store: String = args.option_or("--store", "dir".to_owned())?;
    let journal = match args.option::<String>("--journal")?.as_deref() {
        None => None,
        Some("wal") => Some("wal"),
        Some("delete") => Some("delete"),
        Some(other) => return fail(format!("--journal is wal or delete, not {other:?}")),
    };
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    // A server for each lane, so that one lane's trouble is not the other's.
    let servers: Vec<Server> = match store.as_str() {
        "dir" => Vec::new(),
        "s3" => (0..limits.lanes).map(|_| Server::start()).collect::<Outcome<_>>()?,
        other => return fail(format!("--store is dir or s3, not {other:?}")),
    };
    println!("torture: {} s, {} lanes, store {store}, seed {}", limits.seconds, limits.lanes, limits.seed);
    limits.begin();
    let report = Report::default();
    std::thread::scope(|scope| {
        for lane in 0..limits.lanes {
            let backing = servers.get(lane as usize).map_or(Backing::Folder, Backing::Server);
            let (rhyolite, limits, report) = (&rhyolite, &limits, &report);
            let lane = Lane { number: lane, backing, journal };
            scope.spawn(move || run_lane(&lane, rhyolite, limits, report));
        }
    });
    tell(report.into_sums(), limits.seed, limits.elapsed())
}

/// What the worlds of a lane have in common.
struct Lane<'a> {
    number: u64,
    backing: Backing<'a>,
    /// The journal mode of every world, where it is not left to chance.
    journal: Option<&'static str>,
}

fn run_lane(lane: &Lane<'_>, rhyolite: &Rhyolite, limits: &Limits, report: &Report) {
    let mut rng = limits.lane_rng(lane.number);
    loop {
        let mut done = false;
        let result = World::new(rhyolite, lane.backing, lane.journal, &mut rng).and_then(|mut world| {
            report.count(|counts| counts.worlds += 1);
            let result = run_world(&mut world, limits, report, &mut done);
            if result.is_err() || !world.clean {
                world.keep();
            }
            result.context(world.place())
        });
        if let Err(error) = result {
            report.fault(Fault::Failure, 1, &format!("lane {}", lane.number), &error.to_string());
        }
        if done || report.read(|counts| counts.failures >= FAULTS_MAX) {
            return;
        }
    }
}

fn run_world(world: &mut World<'_>, limits: &Limits, report: &Report, done: &mut bool) -> Outcome {
    for _ in 0..CYCLES_PER_WORLD {
        if !limits.begin_cycle(report.read(Counts::faults)) {
            *done = true;
            break;
        }
        cycle::run(world, report)?;
        report.count(|counts| counts.cycles += 1);
        if !world.clean {
            return Ok(());
        }
    }
    world.end(report)
}

fn tell(mut counts: Counts, seed: u64, elapsed: Duration) -> Outcome {
    let json = counts.json(seed, elapsed);
    println!(
        "{} cycles in {} s: {} replicators and {} writers killed, {} restores compared byte for byte, {} judged by their rows",
        counts.cycles,
        elapsed.as_secs(),
        counts.replicator_kills,
        counts.writer_kills,
        counts.compared,
        counts.judged
    );
    println!(
        "missing {}, wrong {}, byte mismatches {}, other failures {}",
        counts.missing, counts.wrong, counts.mismatched, counts.failures
    );
    println!("{json}");
    if counts.is_clean() { Ok(()) } else { fail("the torture test found faults") }
}
