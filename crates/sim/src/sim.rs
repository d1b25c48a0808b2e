//! What all parts of one run share: time, chance, the store, the nodes' clocks, the model, the trace.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rhyolite_format::{Epoch, Nonce, Timestamp};
use rhyolite_logic::lease::Monotonic;
use rhyolite_store::Memory;
use rhyolite_writer::World;
use rhyolite_writer::lease_keeper::LeaseHandle;

use crate::cluster::Shared;
use crate::disk::Disk;
use crate::executor::{NodeId, Timeline};
use crate::model::Model;
use crate::random::Random;
use crate::scenario::{MS, Scenario};

/// Noon of some day, so that no run passes midnight by accident.
const WALL_START_MS: i64 = 1_790_000_000_000 / 86_400_000 * 86_400_000 + 43_200_000;

/// A machine as the outside sees it.
#[derive(Debug)]
pub struct Node {
    /// Its clock in millionths of the real one.
    pub rate: u64,
    /// What its clock showed at the start, in microseconds.
    pub base: u64,
    /// How far its wall clock is off, in milliseconds.
    pub wall_offset: i64,
    /// Nonces that it has given out.
    pub nonces: u64,
    /// Its requests do not get through before this time.
    pub cut_until: u64,
    /// The lease of the process that runs, if one does.
    pub handle: Option<LeaseHandle>,
    /// Under which epoch it is writing, as far as it knows.
    pub session: Option<Epoch>,
    /// Whether its process is frozen.
    pub frozen: bool,
    /// Its disk.
    pub disk: Disk,
}

/// One run.
pub struct Sim {
    /// Time and tasks.
    pub timeline: Timeline,
    /// What the seed stands for.
    pub scenario: Scenario,
    /// The store itself. Nodes reach it through [`crate::store::SimStore`].
    pub store: Memory,
    nodes: Vec<Mutex<Node>>,
    chance: Mutex<Random>,
    model: Mutex<Model>,
    trace: Option<Mutex<Vec<String>>>,
    /// What the nodes of a cluster have besides.
    cluster: Option<Shared>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("seed", &self.scenario.seed).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    /// A run of `scenario` that has not begun; `traced`: with a line for everything that happens.
    pub fn new(scenario: Scenario, traced: bool) -> Arc<Self> {
        let mut random = Random::fork(scenario.seed, 2);
        let disks = Disk::all(&scenario);
        let node = |disk| Node {
            rate: random.between(990_000, 1_010_000),
            base: random.below(1_000_000_000),
            wall_offset: random.below(200) as i64 - 100,
            nonces: 0,
            cut_until: 0,
            handle: None,
            session: None,
            frozen: false,
            disk,
        };
        let nodes = disks.into_iter().map(node).map(Mutex::new).collect();
        let model = Mutex::new(Model::new(scenario.policy.clone(), scenario.operator));
        let chance = Mutex::new(Random::fork(scenario.seed, 3));
        let trace = traced.then(Mutex::default);
        let store = Memory::new();
        let cluster = scenario.cluster.map(|_| Shared::new(scenario.nodes));
        Arc::new(Self { timeline: Timeline::default(), scenario, store, nodes, chance, model, trace, cluster })
    }

    /// What the nodes of a cluster share.
    ///
    /// # Panics
    /// This is no world of a cluster.
    pub fn cluster(&self) -> &Shared {
        self.cluster.as_ref().expect("a world of a cluster")
    }

    /// Whether this is a world of a cluster.
    pub fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Lets everything go that holds this run: nodes hold their lease, which holds them.
    pub fn end(&self) {
        for node in &self.nodes {
            let handle = lock(node).handle.take();
            drop(handle);
        }
        self.timeline.end();
    }

    /// A machine.
    pub fn node(&self, node: NodeId) -> MutexGuard<'_, Node> {
        lock(&self.nodes[node])
    }

    /// Chance.
    pub fn chance(&self) -> MutexGuard<'_, Random> {
        lock(&self.chance)
    }

    /// What must hold.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    /// Whether things may still go wrong.
    pub fn is_stormy(&self) -> bool {
        self.timeline.now() < self.scenario.calm
    }

    /// Adds a line to the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let now = self.timeline.now();
            lock(trace).push(format!("{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, line()));
        }
    }

    /// The lines so far.
    pub fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }

    /// Nodes that may write by their own word. There must never be two.
    pub fn holders(&self) -> Vec<NodeId> {
        let has_right = |node: &NodeId| {
            let handle = self.node(*node).handle.clone();
            handle.is_some_and(|handle| handle.right().is_some())
        };
        (0..self.scenario.nodes).filter(has_right).collect()
    }
}

/// Time and chance of one node.
#[derive(Debug)]
pub struct NodeWorld {
    /// The run.
    pub sim: Arc<Sim>,
    /// Whose.
    pub node: NodeId,
}

impl NodeWorld {
    fn local_micros(&self) -> u64 {
        let now = self.sim.timeline.now();
        let node = self.sim.node(self.node);
        node.base + now * node.rate / 1_000_000
    }
}

impl World for NodeWorld {
    fn now(&self) -> Monotonic {
        Monotonic(self.local_micros() / MS)
    }

    fn wall(&self) -> Timestamp {
        let now = self.sim.timeline.now();
        let node = self.sim.node(self.node);
        Timestamp(WALL_START_MS + (now * node.rate / 1_000_000 / MS) as i64 + node.wall_offset)
    }

    fn nonce(&self) -> Nonce {
        let mut node = self.sim.node(self.node);
        node.nonces += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sim.scenario.seed.to_be_bytes());
        bytes[8..].copy_from_slice(&((self.node as u64 + 1) << 56 | node.nonces).to_be_bytes());
        Nonce(bytes)
    }

    /// In a cluster a process is known by the guard that its lease names, on its own machine. Elsewhere processes learn of each other's end by nonces.
    fn is_dead(&self, process: &str) -> bool {
        self.sim.is_cluster() && self.sim.cluster().machine(self.node).is_dead(self.node, process)
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let end = self.local_micros() + u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        let node = self.sim.node(self.node);
        // The first moment at which the node's clock shows `end`.
        let real = u128::from(end - node.base) * 1_000_000;
        let at = u64::try_from(real.div_ceil(u128::from(node.rate))).unwrap_or(u64::MAX);
        Box::pin(self.sim.timeline.sleep_until(at))
    }
}
