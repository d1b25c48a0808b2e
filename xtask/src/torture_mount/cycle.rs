//! One cycle: everything runs, writers are killed, and often their daemon, and what was killed starts again.

use std::time::Duration;

use super::report::Report;
use super::world::World;
use crate::error::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// Writers are killed, in the middle of their transactions.
    Writers,
    /// They end by themselves.
    Nothing,
    /// The daemon is killed under its writers, which are killed then or a little later.
    Daemon,
    /// The daemon ends in order, when its writers were killed.
    Stop,
}

/// Runs one cycle. A daemon runs before and after it, which perhaps does not capture all databases yet.
pub(super) fn run(world: &mut World, report: &Report) -> Outcome {
    // Sometimes writers come before the daemon has opened their databases. They leave it a gap then: it waits for its turn like any reader.
    let pause_us = if world.is_watched() || world.rng.percent(50) {
        world.wait_until_watched()?;
        // At full speed, a kill finds the daemon with much to do.
        let pause_us = world.rng.pick(&[0, 2_000, 20_000]);
        world.start_writers(report, pause_us)?;
        pause_us
    } else {
        report.event("writers before the daemon is ready");
        world.start_writers(report, 50_000)?;
        world.wait_until_watched()?;
        50_000
    };
    // Each commit becomes a restore point that is restored.
    pause(world, 50, if pause_us == 0 { 250 } else { 600 });
    let blow = world.rng.weighted(&[(35, Blow::Writers), (8, Blow::Nothing), (42, Blow::Daemon), (15, Blow::Stop)]);
    match blow {
        Blow::Writers => world.kill_writers(report),
        Blow::Nothing => {
            world.end_writers(report);
            Ok(())
        }
        Blow::Daemon => {
            world.kill_daemon(report)?;
            if world.rng.percent(50) {
                // In WAL mode writers go on for a while without a daemon.
                report.event("writers outlive their daemon");
                pause(world, 0, 300);
            }
            world.kill_writers(report)?;
            while world.rng.percent(15) {
                let after = Duration::from_millis(world.rng.range(0..200));
                world.kill_starting_daemon(after, report)?;
            }
            world.start_daemon(report)
        }
        Blow::Stop => {
            world.kill_writers(report)?;
            world.stop_daemon(report)?;
            report.count(|counts| counts.daemon_stops += 1);
            world.start_daemon(report)
        }
    }
}

fn pause(world: &mut World, ms_min: u64, ms_max: u64) {
    let ms = world.rng.range(ms_min..ms_max);
    std::thread::sleep(Duration::from_millis(ms));
}
