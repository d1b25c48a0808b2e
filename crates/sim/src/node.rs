//! A process on a node: it keeps the lease, and writes while it has the right to.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{Either, select};
use rhyolite_format::{Epoch, Nonce};
use rhyolite_logic::lease::{Standing, Terms};
use rhyolite_store::Store;
use rhyolite_writer::World;
use rhyolite_writer::lease_keeper::{LeaseHandle, Memory, lease};
use rhyolite_writer::lease_place::InStore;
use rhyolite_writer::names::Names;

use crate::executor::NodeId;
use crate::scenario::MS;
use crate::session;
use crate::sim::{NodeWorld, Sim};
use crate::store::SimStore;

/// The disk as the lease's memory.
pub(crate) struct Remembering {
    pub(crate) sim: Arc<Sim>,
    pub(crate) node: NodeId,
}

impl Memory for Remembering {
    fn remember(&self, nonce: Nonce) {
        self.sim.node(self.node).disk.remember(nonce);
    }
}

/// A process, from its start to its end.
#[derive(Clone, Debug)]
pub struct Life {
    /// The run.
    pub sim: Arc<Sim>,
    /// Where it runs.
    pub node: NodeId,
    /// Its clock and chance.
    pub world: Arc<NodeWorld>,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Its lease.
    pub handle: LeaseHandle,
    /// Names of objects that it has used.
    pub names: Arc<Names>,
    /// What it remembers from session to session.
    notes: Arc<Mutex<Notes>>,
}

#[derive(Debug, Default)]
struct Notes {
    earlier: Vec<Nonce>,
    epoch_used: Option<Epoch>,
}

impl Life {
    /// A life that begins.
    pub fn new(sim: &Arc<Sim>, node: NodeId, handle: LeaseHandle, names: Arc<Names>) -> Self {
        let world = Arc::new(NodeWorld { sim: Arc::clone(sim), node });
        let store: Arc<dyn Store> = Arc::new(SimStore { sim: Arc::clone(sim), node });
        Self { sim: Arc::clone(sim), node, world, store, handle, names, notes: Arc::default() }
    }

    /// Nonces of segments that this process has tried to create.
    pub fn earlier(&self) -> Vec<Nonce> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).earlier.clone()
    }

    /// Notes one more.
    pub fn tried(&self, nonce: Nonce) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).earlier.push(nonce);
    }

    /// The epoch under which this process has tried to write.
    pub fn epoch_used(&self) -> Option<Epoch> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).epoch_used
    }

    /// Notes it.
    pub fn uses(&self, epoch: Epoch) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).epoch_used = Some(epoch);
    }

    /// A line of the trace.
    pub fn say(&self, line: impl FnOnce() -> String) {
        self.sim.trace(|| format!("node {} {}", self.node, line()));
    }

    /// Waits so many milliseconds of this node.
    pub async fn pause(&self, millis: u64) {
        self.world.sleep(std::time::Duration::from_millis(millis)).await;
    }

    async fn run(&self) {
        while let Some(epoch) = self.handle.acquired().await {
            let seized = matches!(self.handle.standing(), Standing::Ours { origin, .. } if origin.seized);
            self.say(|| format!("has the right under epoch {}", epoch.get()));
            let session = Box::pin(session::run(self, epoch, seized));
            let over = Box::pin(self.handle.over(epoch));
            match select(over, session).await {
                Either::Left(_) => self.say(|| format!("epoch {} is over", epoch.get())),
                Either::Right((again, _)) => self.say(|| format!("begins again: {again}")),
            }
            self.sim.node(self.node).session = None;
            let wait = self.sim.chance().between(20, 200);
            self.pause(wait).await;
        }
    }
}

/// Starts a process, unless one runs. `knows`: it knows that its predecessor is dead, and by which nonces to tell.
pub fn start(sim: &Arc<Sim>, node: NodeId, knows: bool) {
    if sim.node(node).handle.is_some() {
        return;
    }
    let world = Arc::new(NodeWorld { sim: Arc::clone(sim), node });
    let store: Arc<dyn Store> = Arc::new(SimStore { sim: Arc::clone(sim), node });
    let dead = if knows { sim.node(node).disk.nonces.clone() } else { Vec::new() };
    let terms = Terms::new(sim.scenario.ttl, format!("node {node}"));
    let memory = Box::new(Remembering { sim: Arc::clone(sim), node });
    let any_world = Arc::clone(&world) as Arc<dyn World>;
    let place = Arc::new(InStore(Arc::clone(&store)));
    let (keeper, handle) = lease(place, any_world, memory, terms, sim.scenario.guards, &dead);
    sim.node(node).handle = Some(handle.clone());
    sim.trace(|| format!("node {node} starts, knowing {} dead nonces", dead.len()));
    let names = Arc::new(Names::new(Epoch::FIRST));
    let life = Life::new(sim, node, handle, names);
    sim.timeline.spawn(Some(node), keeper.run());
    sim.timeline.spawn(Some(node), async move {
        life.run().await;
        life.say(|| "ends".to_owned());
        let sim = &life.sim;
        sim.node(node).handle = None;
        start_later(sim, node);
    });
}

/// Starts the next process after a while.
pub fn start_later(sim: &Arc<Sim>, node: NodeId) {
    let (wait, knows) = {
        let mut chance = sim.chance();
        (chance.skewed(50 * MS, 15_000 * MS), chance.permille(700))
    };
    let own = Arc::clone(sim);
    let timeline = sim.timeline.clone();
    sim.timeline.spawn(None, async move {
        timeline.sleep(wait).await;
        start(&own, node, knows);
    });
}
