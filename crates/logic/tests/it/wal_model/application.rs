//! Those who use the database without knowing of the capturer.

use std::cell::RefCell;
use std::rc::Rc;

use super::sqlite::{Connection, Mode, tick};
use super::world::{PAGES, World};

type Shared = Rc<RefCell<World>>;

/// Does nothing for up to `ticks` steps.
pub(super) async fn idle(world: &Shared, ticks: u64) {
    let ticks = world.borrow_mut().below(ticks + 1);
    for _ in 0..ticks {
        tick().await;
    }
}

/// Commits, rolls back, and sometimes checkpoints.
pub(super) async fn writer(world: Shared) {
    let mut connection = Connection::open(&world);
    loop {
        let patience = if world.borrow_mut().one_in(20) { 60 } else { 5 };
        idle(&world, patience).await;
        connection.begin_read().await;
        if connection.begin_write().await.is_ok() {
            transaction(&world, &mut connection).await;
        }
        connection.end_read().await;
        if world.borrow_mut().one_in(8) {
            let _ = connection.checkpoint(Mode::Passive).await;
        }
    }
}

async fn transaction(world: &Shared, connection: &mut Connection) {
    let (spills, commits) = {
        let mut world = world.borrow_mut();
        (world.below(3) * world.below(2), !world.one_in(6))
    };
    for _ in 0..spills {
        let pages = some_pages(world);
        connection.write(&pages, false).await;
        idle(world, 4).await;
    }
    if commits {
        let pages = some_pages(world);
        connection.write(&pages, true).await;
    } else {
        connection.roll_back().await;
    }
}

/// Different pages, at least one, each with a value that was never written before.
fn some_pages(world: &Shared) -> Vec<(usize, u64)> {
    let mut world = world.borrow_mut();
    let chosen = world.random() | 1 << world.below(PAGES as u64);
    (0..PAGES).filter(|page| chosen & 1 << page != 0).map(|page| (page, world.random())).collect()
}

/// Reads, some snapshots for long.
pub(super) async fn reader(world: Shared) {
    let mut connection = Connection::open(&world);
    loop {
        idle(&world, 30).await;
        connection.begin_read().await;
        let looks = world.borrow_mut().below(4);
        for _ in 0..=looks {
            idle(&world, 40).await;
            if let Err(text) = connection.check_snapshot() {
                world.borrow_mut().failure = Some(text);
            }
        }
        connection.end_read().await;
    }
}

/// A checkpointer of the application's own, in every mode.
pub(super) async fn checkpointer(world: Shared) {
    let mut connection = Connection::open(&world);
    loop {
        idle(&world, 60).await;
        let modes = [Mode::Passive, Mode::Full, Mode::Restart, Mode::Truncate, Mode::Truncate];
        let mode = modes[world.borrow_mut().below(5) as usize];
        let _ = connection.checkpoint(mode).await;
    }
}
