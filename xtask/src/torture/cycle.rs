//! One cycle: everything runs, something is killed, worse happens, everything comes back, and the backup is compared.

use std::time::Duration;

use super::report::Report;
use super::trouble::Trouble;
use super::world::World;
use super::{mishap, verify};
use crate::error::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Replicators,
    Writers,
    Both,
}

/// Runs one cycle. Faults are counted; an error is something that keeps the cycle from going on.
pub(super) fn run(world: &mut World<'_>, report: &Report) -> Outcome {
    let victim = world.rng.pick(&[Victim::Replicators, Victim::Replicators, Victim::Writers, Victim::Both]);
    let troubled = world.rng.percent(15);
    // Undisturbed, the replicator sees every commit, and each must become a restore point of its own.
    let undisturbed = victim == Victim::Writers && !troubled && world.is_following();
    if undisturbed {
        report.event("followed undisturbed");
    }
    world.start_replicators()?;
    world.start_writers()?;
    pause(world, 20, 300);
    if world.rng.percent(60) {
        world.sample(undisturbed)?;
    }
    let trouble = if troubled { Trouble::begin(world, report)? } else { Trouble::none() };
    pause(world, 0, 200);
    match victim {
        Victim::Writers => {
            world.kill_writers(report)?;
            if !undisturbed && world.rng.percent(30) {
                mishap::while_up(world, report)?;
            }
        }
        Victim::Replicators => {
            world.kill_replicators(report)?;
            mishap::while_down(world, report)?;
        }
        Victim::Both => {
            world.kill_writers(report)?;
            world.kill_replicators(report)?;
            mishap::while_down(world, report)?;
        }
    }
    come_back(world, report, undisturbed)?;
    trouble.end();
    if world.rng.percent(40) {
        world.kill_writers(report)?;
    } else {
        world.end_writers(report);
    }
    verify::run(world, report, undisturbed)
}

/// Replicators start again, sometimes to be killed at once, and writers go on or not.
fn come_back(world: &mut World<'_>, report: &Report, undisturbed: bool) -> Outcome {
    world.start_replicators()?;
    let mut was_down = false;
    while !undisturbed && world.rng.percent(12) {
        pause(world, 0, 80);
        world.kill_replicators(report)?;
        world.start_replicators()?;
        was_down = true;
    }
    if was_down {
        report.event("killed while starting");
    }
    if world.rng.percent(60) {
        world.start_writers()?;
        pause(world, 0, 250);
    }
    Ok(())
}

fn pause(world: &mut World<'_>, ms_min: u64, ms_max: u64) {
    let ms = world.rng.range(ms_min..ms_max);
    std::thread::sleep(Duration::from_millis(ms));
}
