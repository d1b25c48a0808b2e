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

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::rhyolite::Rhyolite;
use crate::rng::Rng;
use crate::s3_server::Server;
use report::{Counts, Fault, Report};
use world::{Backing, World};

/// Cycles before a lane starts over with new databases.
const CYCLES_PER_WORLD: u64 = 10;
/// A run that finds this many faults has proved its point.
const FAULTS_MAX: u64 = 10;

/// When to stop.
struct Limits {
    deadline: Instant,
    cycles: u64,
    begun: AtomicU64,
}

impl Limits {
    /// Whether another cycle may begin; counts it when so.
    fn begin_cycle(&self, report: &Report) -> bool {
        let faults = report.read(|c| c.missing + c.wrong + c.mismatched + c.failures);
        Instant::now() < self.deadline
            && faults < FAULTS_MAX
            && self.begun.fetch_add(1, Ordering::Relaxed) < self.cycles
    }
}

/// Runs until the time or the cycles are used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let seconds = match args.option::<u64>("--seconds")? {
        Some(seconds) => seconds,
        None => 60 * args.option_or::<u64>("--minutes", 1)?,
    };
    let cycles = args.option_or("--cycles", u64::MAX)?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("read the clock")?;
    let seed = args.option_or("--seed", clock.as_millis() as u64)?;
    let lanes: u64 = args.option_or("--lanes", 2)?;
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
        "s3" => (0..lanes).map(|_| Server::start()).collect::<Outcome<_>>()?,
        other => return fail(format!("--store is dir or s3, not {other:?}")),
    };
    println!("torture: {seconds} s, {lanes} lanes, store {store}, seed {seed}");
    let began = Instant::now();
    let limits = Limits { deadline: began + Duration::from_secs(seconds), cycles, begun: AtomicU64::new(0) };
    let report = Report::default();
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let backing = servers.get(lane as usize).map_or(Backing::Folder, Backing::Server);
            let (rhyolite, limits, report) = (&rhyolite, &limits, &report);
            let lane = Lane { number: lane, seed, backing, journal };
            scope.spawn(move || run_lane(&lane, rhyolite, limits, report));
        }
    });
    tell(report.into_counts(), seed, began.elapsed())
}

/// What the worlds of a lane have in common.
struct Lane<'a> {
    number: u64,
    seed: u64,
    backing: Backing<'a>,
    /// The journal mode of every world, where it is not left to chance.
    journal: Option<&'static str>,
}

fn run_lane(lane: &Lane<'_>, rhyolite: &Rhyolite, limits: &Limits, report: &Report) {
    let mut rng = Rng::new(lane.seed ^ (lane.number + 1).wrapping_mul(0x51_7C_C1_B7_27_22_0A_95));
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
        if !limits.begin_cycle(report) {
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
