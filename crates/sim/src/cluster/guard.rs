//! The guard of an application, and the application. Both run on, whatever becomes of the node.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use rhyolite_format::Checksum;
use rhyolite_logic::deadline::Deadline;
use rhyolite_logic::lease::Monotonic;
use rhyolite_writer::World;
use tokio::sync::{mpsc, watch};

use super::driver::Event;
use super::forward;
use super::machine::application_of;
use super::truth;
use crate::executor::NodeId;
use crate::scenario::MS;
use crate::sim::{NodeWorld, Sim};

/// Longest time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long it takes at most until the guard, which is due, has killed.
const KILLED_WITHIN: u64 = 20 * MS;

/// What a node tells the guard.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Start the application; the right lasts until then.
    Run(Monotonic),
    /// It lasts until then.
    Until(Monotonic),
    /// Tell the application to stop.
    Signal,
    /// End it.
    Kill,
}

/// What a guard tells the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The application has ended.
    Ended,
    /// It was killed, because the right was over.
    Expired,
    /// The guard is gone, and the application with it.
    Gone,
}

/// A guard.
#[derive(Debug)]
pub struct Guard {
    sim: Arc<Sim>,
    node: NodeId,
    world: NodeWorld,
    told: mpsc::UnboundedSender<Event>,
    running: Option<Deadline>,
}

impl Guard {
    /// The guard of a node.
    pub fn new(sim: &Arc<Sim>, node: NodeId, told: mpsc::UnboundedSender<Event>) -> Self {
        let world = NodeWorld { sim: Arc::clone(sim), node };
        Self { sim: Arc::clone(sim), node, world, told, running: None }
    }

    /// Until the node is gone.
    pub async fn run(mut self, mut lines: mpsc::UnboundedReceiver<Line>) {
        let rules = self.sim.scenario.cluster.expect("a cluster").rules.node;
        loop {
            self.look(rules.guard_deadline).await;
            let timeout = self.running.map_or(LOOK, |deadline| self.world.now().until(deadline.until()).min(LOOK));
            let timeout = timeout.max(Duration::from_millis(1));
            let heard = match select(Box::pin(lines.recv()), self.world.sleep(timeout)).await {
                Either::Left((line, _)) => line,
                Either::Right(_) => continue,
            };
            match heard {
                Some(line) => self.obey(line).await,
                None => break,
            }
        }
        if rules.guard_outlives {
            self.kill().await;
        }
        self.sim.cluster().machine(self.node).has_guard = false;
    }

    async fn look(&mut self, kills: bool) {
        let Some(deadline) = &mut self.running else { return };
        let is_over = kills && deadline.look(self.world.now());
        if is_over {
            self.kill().await;
        }
        if !self.sim.cluster().machine(self.node).has_application {
            self.running = None;
            let told = if is_over { Told::Expired } else { Told::Ended };
            // A node that is gone shows when it is listened to.
            let _ = self.told.send(Event::Told(told));
        }
    }

    async fn obey(&mut self, line: Line) {
        match (line, &mut self.running) {
            (Line::Run(until), None) => match Deadline::new(until, self.world.now()) {
                Some(deadline) => {
                    self.running = Some(deadline);
                    start(&self.sim, self.node);
                }
                None => drop(self.told.send(Event::Told(Told::Expired))),
            },
            (Line::Until(until), Some(deadline)) => deadline.extend(until, self.world.now()),
            (Line::Signal, Some(_)) => {
                if let Some(signal) = &self.sim.cluster().machine(self.node).signal {
                    signal.send_replace(true);
                }
            }
            (Line::Kill, Some(_)) => self.kill().await,
            (Line::Run(_), Some(_)) | (_, None) => {}
        }
    }

    async fn kill(&self) {
        let wait = self.sim.chance().below(KILLED_WITHIN);
        self.sim.timeline.sleep(wait).await;
        kill(&self.sim, self.node);
    }
}

/// The application of a machine is gone.
pub fn kill(sim: &Sim, node: NodeId) {
    let mut machine = sim.cluster().machine(node);
    if machine.has_application {
        (machine.has_application, machine.signal) = (false, None);
        drop(machine);
        sim.timeline.kill(application_of(sim.scenario.nodes, node));
        sim.trace(|| format!("application {node} is killed"));
    }
}

fn start(sim: &Arc<Sim>, node: NodeId) {
    let (signal, signalled) = watch::channel(false);
    {
        let mut machine = sim.cluster().machine(node);
        assert!(!machine.has_application, "one application at a time");
        (machine.has_application, machine.signal) = (true, Some(signal));
    }
    truth::serves(sim, node);
    sim.trace(|| format!("application {node} starts"));
    sim.timeline.spawn(Some(application_of(sim.scenario.nodes, node)), application(Arc::clone(sim), node, signalled));
}

/// Commits until it is told to stop, and a little longer.
async fn application(sim: Arc<Sim>, node: NodeId, mut signalled: watch::Receiver<bool>) {
    let terms = sim.scenario.cluster.expect("a cluster");
    loop {
        let wait = sim.chance().between(terms.commits / 10, 2 * terms.commits);
        let sleep = sim.timeline.sleep(wait);
        let told = Box::pin(signalled.wait_for(|told| *told));
        let is_told = matches!(select(told, sleep).await, Either::Left(_));
        if is_told {
            break;
        }
        commit(&sim, node);
    }
    // Some do not stop in time.
    let wait = sim.chance().skewed(0, terms.stop_timeout * 5 / 4);
    sim.timeline.sleep(wait).await;
    if sim.chance().permille(500) {
        commit(&sim, node);
    }
    let mut machine = sim.cluster().machine(node);
    (machine.has_application, machine.signal) = (false, None);
    drop(machine);
    sim.trace(|| format!("application {node} ends"));
}

fn commit(sim: &Arc<Sim>, node: NodeId) {
    if sim.timeline.now() >= sim.scenario.cluster.expect("a cluster").quiet {
        return;
    }
    if forward::keeps_out(sim, node) {
        // Its transaction ends in vain, and the next comes later.
        return;
    }
    let content = Checksum::from_crc(sim.chance().draw());
    let before = {
        let node_of = sim.node(node);
        let mut database = node_of.disk.database();
        if !database.exists {
            // An empty database.
            let root = Checksum::from_crc(content.get().rotate_left(17));
            sim.cluster().truth().root(root);
            (database.exists, database.content) = (true, root);
        }
        let before = database.content;
        database.commit(content);
        database.uncaptured.push((before, content));
        before
    };
    truth::commit(sim, node, before, content);
}
