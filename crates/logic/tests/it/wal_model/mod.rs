//! The capturer misses no commit and invents none, whatever the others do: `logic::tail` against a model of SQLite's WAL.
//!
//! Several writers, readers and checkpointers, and the capturer, run on one model of the shared memory and the files
//! ([`sqlite`], which says what is modelled). A seeded scheduler chooses who makes the next step; a step is one read or write
//! of shared memory, one lock, or one page. Processes may sleep, and die, at any step.
//!
//! Checked at every look of the capturer: the commits that it captured are exactly those that the wal-index header tells,
//! each with its pages; and the pages that it would read after each of them are those of the database after that commit.
//! Checked at every read of a reader, to show that the model keeps SQLite's own promise: it sees the database as of one commit.
//!
//! What the capturer relies on is shown by breaking it ([`Flaw`]): the model then finds commits that are lost, doubled or read
//! wrong.

mod application;
mod capturer;
mod sqlite;
mod world;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use capturer::{Done, Flaw, Notes};
use world::{Counts, World};

type Actor = Pin<Box<dyn Future<Output = ()>>>;

const STEPS: u32 = 50_000;
/// Steps of the capturer, alone, in which it must have captured the rest.
const LAST_STEPS: u32 = 5_000;

/// Who takes part in a run, and how unevenly their processes are scheduled.
#[derive(Clone, Copy, Debug)]
struct Cast {
    writers: usize,
    checkpointers: usize,
    readers: usize,
    /// A process sleeps once in so many of its steps; 0 for never.
    sleeps: u64,
    /// For up to so many steps of all.
    sleep_steps_max: u64,
}

impl Cast {
    fn draw(world: &mut World) -> Self {
        Self {
            writers: 1 + world.below(3) as usize,
            checkpointers: world.below(2) as usize,
            readers: world.below(3) as usize,
            sleeps: [0, 30, 300, 3000][world.below(4) as usize],
            sleep_steps_max: [30, 300, 3000][world.below(3) as usize],
        }
    }

    fn len(&self) -> usize {
        self.writers + self.checkpointers + self.readers
    }

    fn spawn(&self, which: usize, world: &Rc<RefCell<World>>) -> Actor {
        let world = Rc::clone(world);
        if which < self.writers {
            Box::pin(application::writer(world))
        } else if which < self.writers + self.checkpointers {
            Box::pin(application::checkpointer(world))
        } else {
            Box::pin(application::reader(world))
        }
    }
}

/// A run of the model.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Drawn from the seed if it is not given.
    cast: Option<Cast>,
    flaw: Flaw,
    /// An application process dies once in so many of its steps; 0 for never.
    deaths: u64,
    /// The capturer's process dies once in so many of its steps; 0 for never.
    capturer_deaths: u64,
    /// SQLite before 3.51.3.
    reset_bug: bool,
}

const PLAN: Plan = Plan { cast: None, flaw: Flaw::None, deaths: 0, capturer_deaths: 0, reset_bug: false };

/// What happened in a run, or in several.
#[derive(Debug, Default)]
struct Report {
    commits: usize,
    counts: Counts,
    done: Done,
}

fn poll(actor: &mut Actor) {
    // Actors act for ever; the capturer stops when it has found something, and is not polled again.
    let _ = actor.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// Runs the model from one seed. An error is what the capturer or a reader found.
fn run(seed: u64, plan: Plan) -> Result<Report, String> {
    let world = Rc::new(RefCell::new(World::new(seed)));
    world.borrow_mut().reset_bug = plan.reset_bug;
    let cast = plan.cast.unwrap_or_else(|| Cast::draw(&mut world.borrow_mut()));
    let notes = Rc::new(RefCell::new(Notes::default()));
    let capture = || Box::pin(capturer::capture(Rc::clone(&world), Rc::clone(&notes), plan.flaw)) as Actor;
    let spawn = |which: usize| if which < cast.len() { cast.spawn(which, &world) } else { capture() };
    let mut actors: Vec<_> = (0..=cast.len()).map(spawn).collect();
    let mut asleep_until = vec![0; actors.len()];
    let check = |step: u32| match world.borrow_mut().failure.take() {
        Some(text) => Err(format!("seed {seed}, step {step}, {cast:?}: {text}")),
        None => Ok(()),
    };
    for step in 0..STEPS {
        let which = world.borrow_mut().below(actors.len() as u64) as usize;
        if step < asleep_until[which] {
            continue;
        }
        if cast.sleeps > 0 && world.borrow_mut().one_in(cast.sleeps) {
            asleep_until[which] = step + world.borrow_mut().below(cast.sleep_steps_max) as u32;
        }
        let odds = if which < cast.len() { plan.deaths } else { plan.capturer_deaths };
        let dies = odds > 0 && world.borrow().fragile == 0 && world.borrow_mut().one_in(odds);
        if dies {
            world.borrow_mut().counts.deaths += 1;
            // The old one goes first: it must not hold locks beside the new one.
            actors[which] = Box::pin(std::future::pending());
            actors[which] = spawn(which);
        }
        poll(&mut actors[which]);
        check(step)?;
    }
    // All but the capturer die where they are.
    let mut capturer = actors.pop().expect("the capturer comes last");
    drop(actors);
    for step in 0..LAST_STEPS {
        poll(&mut capturer);
        check(STEPS + step)?;
    }
    drop(capturer);
    let (world, notes) = (world.borrow(), notes.borrow());
    let captured = notes.saved.map_or(0, |saved| saved.taken);
    if captured != world.commits.len() {
        return Err(format!("seed {seed}, {cast:?}: {captured} commits captured of {}", world.commits.len()));
    }
    Ok(Report { commits: world.commits.len(), counts: world.counts, done: notes.done })
}

/// Runs many seeds, all of which must hold, and adds up what happened.
fn check(seeds: std::ops::Range<u64>, plan: Plan) -> Report {
    let mut total = Report::default();
    for seed in seeds {
        let report = run(seed, plan).unwrap_or_else(|text| panic!("{text}"));
        total.commits += report.commits;
        total.counts.add(&report.counts);
        total.done.add(&report.done);
    }
    println!("{total:?}");
    total
}

/// Runs seeds until one finds something, which one must.
fn check_found(seeds: std::ops::Range<u64>, plan: Plan) -> String {
    let found = seeds.clone().find_map(|seed| run(seed, plan).err());
    let found = found.unwrap_or_else(|| panic!("nothing is wrong in {seeds:?}: {plan:?}"));
    println!("{found}");
    found
}

#[test]
fn every_commit_is_captured_once_and_in_order() {
    let Report { commits, counts, done } = check(0..100, PLAN);
    assert!(commits > 20_000 && done.looks_with_frames > 15_000, "{commits} {done:?}");
    assert!(counts.restarts > 500 && counts.truncations > 500 && counts.backfills > 5000, "{counts:?}");
    assert!(counts.rollbacks > 5000 && counts.in_place > 10_000 && counts.reads_checked > 10_000, "{counts:?}");
    assert!(done.pins > 20_000 && done.pins_on_mark_zero > 10_000 && done.locked_checkpoints > 5000, "{done:?}");
}

#[test]
fn processes_may_die_anywhere() {
    let Report { commits, counts, done } = check(1000..1100, Plan { deaths: 150, ..PLAN });
    assert!(commits > 15_000 && counts.deaths > 10_000, "{commits} {counts:?}");
    assert!(counts.recoveries > 150 && counts.recovered_commits > 50, "{counts:?}");
    assert_eq!((done.starts, done.comparisons), (100, 100), "the capturer lives, and compares once");
}

#[test]
fn the_capturer_may_die_anywhere() {
    let Report { commits, done, .. } = check(2000..2100, Plan { deaths: 400, capturer_deaths: 400, ..PLAN });
    assert!(commits > 15_000 && done.starts > 2000, "{commits} {done:?}");
    assert!(done.comparisons * 2 < done.starts, "most starts go on where the last one ended: {done:?}");
}

const RESTLESS: Cast = Cast { writers: 1, checkpointers: 3, readers: 1, sleeps: 30, sleep_steps_max: 300 };

#[test]
fn without_the_overlap_commits_are_lost() {
    check_found(0..100, Plan { flaw: Flaw::NoOverlap, ..PLAN });
}

/// Once, and a checkpoint copies pages of frames that are not captured yet; twice in a row, and they can be gone.
#[test]
fn a_handover_without_a_look_reads_pages_of_later_commits() {
    let cast = Some(Cast { writers: 2, checkpointers: 0, readers: 0, sleeps: 300, sleep_steps_max: 300 });
    check_found(0..200, Plan { flaw: Flaw::BlindHandover, cast, ..PLAN });
}

#[test]
fn an_empty_generation_does_not_end_the_one_before() {
    let cast = Some(Cast { readers: 0, sleeps: 0, ..RESTLESS });
    let found = check_found(0..100, Plan { flaw: Flaw::EmptyGenerationTaken, deaths: 30, cast, ..PLAN });
    assert!(found.contains("captured ["), "commits are captured twice: {found}");
}

#[test]
fn a_start_on_a_wal_that_may_be_reset_loses_commits() {
    let cast = Some(Cast { readers: 0, ..RESTLESS });
    check_found(0..100, Plan { flaw: Flaw::ResumedAnywhere, capturer_deaths: 50, cast, ..PLAN });
}

#[test]
fn backfill_means_nothing_without_its_header() {
    let cast = Some(Cast { writers: 2, checkpointers: 1, readers: 0, ..RESTLESS });
    let found = check_found(0..200, Plan { flaw: Flaw::TornMoment, capturer_deaths: 50, cast, ..PLAN });
    assert!(found.contains("compared with"), "{found}");
}

/// The model is close enough to SQLite to have the bug that was published for versions before 3.51.3.
#[test]
fn the_wal_reset_bug_shows_readers_a_damaged_database() {
    let found = check_found(0..1000, Plan { reset_bug: true, cast: Some(RESTLESS), ..PLAN });
    assert!(found.contains("a reader saw") || found.contains("the view"), "{found}");
}
