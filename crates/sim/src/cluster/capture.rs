//! Capture on a primary: sessions under a lent lease, until it is told to stop and everything is durable, or the loan is taken back.

use std::sync::Arc;

use futures_util::future::{Either, select};
use rhyolite_format::{Epoch, Txid};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rhyolite_writer::names::Names;
use tokio::sync::{mpsc, watch};

use super::driver::Event;
use crate::executor::NodeId;
use crate::node::Life;
use crate::session::{self, Again, Outcome, Session};
use crate::sim::Sim;
use crate::upkeep;

/// How long the last uploads may take, in milliseconds.
const DRAIN_MS: u64 = 3000;

/// What capture is told, and tells.
#[derive(Clone, Debug)]
pub struct Lines {
    /// It is to end.
    pub stop: watch::Receiver<bool>,
    /// Those who follow are served.
    pub serves: watch::Receiver<bool>,
    /// Its number, and who is told that all that it had found is durable.
    pub durable: (u64, mpsc::UnboundedSender<Event>),
}

/// Captures until it is told to end. Gives whether everything is durable.
pub async fn run(sim: Arc<Sim>, node: NodeId, handle: LeaseHandle, names: Arc<Names>, lines: Lines) -> bool {
    let life = Life::new(&sim, node, handle, names);
    let (mut told, mut stop) = (lines.stop.clone(), lines.stop.clone());
    let captured = Box::pin(sessions(&life, &lines));
    let patience = Box::pin(async {
        let _ = told.wait_for(|stop| *stop).await;
        life.pause(DRAIN_MS).await;
    });
    match select(captured, patience).await {
        Either::Left(_) | Either::Right(_) => {}
    }
    ended(&life);
    // What has nothing to write under waits until it is told.
    let _ = stop.wait_for(|stop| *stop).await;
    is_drained(&life)
}

fn ended(life: &Life) {
    life.sim.node(life.node).session = None;
    life.sim.cluster().machine(life.node).captures = None;
}

/// One after the other, until one is drained or there is no right any more.
async fn sessions(life: &Life, lines: &Lines) {
    while let Some(epoch) = life.handle.acquired().await {
        life.say(|| format!("captures under epoch {}", epoch.get()));
        let session = Box::pin(one(life, epoch, lines));
        let over = Box::pin(life.handle.over(epoch));
        match select(over, session).await {
            Either::Left(_) => life.say(|| format!("epoch {} is over", epoch.get())),
            Either::Right((again, _)) => life.say(|| format!("begins again: {again}")),
        }
        ended(life);
        if *lines.stop.borrow() && is_drained(life) {
            return;
        }
        let wait = life.sim.chance().between(20, 200);
        life.pause(wait).await;
    }
}

async fn one(life: &Life, epoch: Epoch, lines: &Lines) -> Again {
    let before = life.sim.node(life.node).disk.pos();
    let begun = match session::begin(life, epoch).await {
        Ok(Some(session)) => session,
        Ok(None) => return Again("the store does not answer".to_owned()),
        Err(again) => return again,
    };
    if life.sim.node(life.node).disk.pos() != before {
        // The history has begun anew from somewhere.
        life.sim.cluster().machine(life.node).account.ledger.forget_reached();
    }
    let work = Box::pin(async { write(&begun, lines).await.expect_err("writing ends with a reason") });
    if !life.sim.scenario.cluster.expect("a cluster").has_upkeep {
        return work.await;
    }
    let keep = Box::pin(upkeep::run(&begun));
    match select(work, keep).await {
        Either::Left((again, _)) | Either::Right((again, _)) => again,
    }
}

/// Writes until there is a reason to begin again, or nothing is left to write and it is to stop.
async fn write(session: &Session, lines: &Lines) -> Outcome<()> {
    let (life, node) = (&session.life, session.life.node);
    let (sim, stop) = (&life.sim, &lines.stop);
    let has_witnesses = sim.scenario.cluster.expect("a cluster").has_witnesses();
    // Elsewhere nobody waits for that.
    let mut is_told = !has_witnesses;
    while !sim.node(node).disk.database().exists {
        // The application makes it.
        say_durable(&mut is_told, lines);
        if *stop.borrow() {
            return Err(Again("there is nothing".to_owned()));
        }
        life.pause(100).await;
    }
    while sim.node(node).disk.pos().is_none() {
        if session.snapshot(Some(Txid::FIRST)).await?.is_none() {
            life.pause(100).await;
        }
    }
    loop {
        session.capture_commits();
        if is_drained(life) {
            say_durable(&mut is_told, lines);
        }
        if *lines.serves.borrow() {
            sim.cluster().machine(node).captures = Some((session.lineage, session.epoch));
        }
        let is_last = *stop.borrow();
        let is_closed = sim.chance().permille(seals(sim));
        if is_last || !is_told || is_closed {
            sim.node(node).disk.seal();
        }
        if !is_last && sim.chance().permille(20) {
            if has_witnesses {
                // Only the end of a segment is one at which a local log joins the store.
                sim.node(node).disk.seal();
            }
            session.snapshot(None).await?;
        }
        while let Some(segment) = session.unsent() {
            session.upload(&segment).await?;
        }
        if is_last && is_drained(life) {
            return Err(Again("everything is durable".to_owned()));
        }
        let tick = sim.chance().between(30, 500);
        let mut told = stop.clone();
        let pause = Box::pin(life.pause(tick));
        if !is_last {
            select(pause, Box::pin(told.wait_for(|stop| *stop))).await;
        }
    }
}

/// How often a segment is closed, of a thousand looks.
fn seals(sim: &Sim) -> u64 {
    let often = 600;
    if sim.is_stormy() { sim.scenario.cluster.expect("a cluster").seals } else { often }
}

fn say_durable(is_told: &mut bool, lines: &Lines) {
    if !std::mem::replace(is_told, true) {
        let (number, events) = &lines.durable;
        // A driver that is gone hears nothing.
        let _ = events.send(Event::Durable(*number));
    }
}

/// Whether the store has all that the file has.
fn is_drained(life: &Life) -> bool {
    let node = life.sim.node(life.node);
    let (content, is_captured) = {
        let database = node.disk.database();
        if !database.exists {
            return true;
        }
        (database.content, database.uncaptured.is_empty())
    };
    let state = node.disk.state.as_ref();
    is_captured && state.is_some_and(|s| s.pos.is_some_and(|pos| pos.checksum == content) && s.durable == s.pos)
}
