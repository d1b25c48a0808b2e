//! The network between nodes: it delays, loses and cuts. What is sent to a machine that stands still waits there.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_store::{
    Capabilities, Entry, Meta, Object, Operation, Store, StoreError, StoreErrorKind, Upload, Version,
};

use crate::executor::NodeId;
use crate::scenario::{MS, SECOND};
use crate::sim::Sim;
use crate::store::SimStore;

/// How long an answer is waited for.
const PATIENCE: u64 = 3 * SECOND;
/// Time between two looks at a machine that stands still.
const FROZEN_LOOK: u64 = 50 * MS;

/// Whether two nodes reach each other.
pub fn is_cut(sim: &Sim, a: NodeId, b: NodeId) -> bool {
    let now = sim.timeline.now();
    [a, b].iter().any(|node| sim.cluster().machine(*node).alone_until > now)
}

/// How long a message is on its way; `None` when it does not arrive. Those that are not slowed down come in the order in which they were sent.
pub fn delay(sim: &Sim, from: NodeId, to: NodeId) -> Option<u64> {
    let mut chance = sim.chance();
    if !sim.is_stormy() {
        return Some(MS);
    }
    let weather = &sim.scenario.weather;
    let (is_lost, is_slow) = (chance.permille(weather.lost), chance.permille(weather.slow));
    let more = if is_slow { chance.skewed(10 * MS, SECOND) } else { 0 };
    drop(chance);
    (!is_lost && !is_cut(sim, from, to)).then_some(MS + more)
}

/// Whether a second copy of a message arrives, and how much later.
pub fn doubled(sim: &Sim) -> Option<u64> {
    if !sim.is_stormy() {
        return None;
    }
    let mut chance = sim.chance();
    chance.permille(sim.scenario.weather.twice).then(|| chance.skewed(MS, SECOND))
}

/// Brings a question to a node, and waits until it has a turn. `false` when there is no answer.
pub async fn carry(sim: &Arc<Sim>, from: NodeId, to: NodeId) -> bool {
    let Some(delay) = delay(sim, from, to) else {
        sim.timeline.sleep(PATIENCE).await;
        return false;
    };
    sim.timeline.sleep(delay).await;
    let deadline = sim.timeline.now() + PATIENCE;
    while sim.cluster().machine(to).frozen.is_some() {
        if sim.timeline.now() >= deadline {
            return false;
        }
        sim.timeline.sleep(FROZEN_LOOK).await;
    }
    sim.cluster().machine(to).runs
}

/// Brings an answer back. `false` when it does not arrive in time.
pub async fn answer(sim: &Arc<Sim>, from: NodeId, to: NodeId) -> bool {
    let delay = delay(sim, from, to);
    sim.timeline.sleep(delay.unwrap_or(PATIENCE)).await;
    delay.is_some()
}

/// The store as the primary passes it on to those who follow. It is only read.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The run.
    pub sim: Arc<Sim>,
    /// Who asks.
    pub node: NodeId,
    /// Who passes it on.
    pub primary: NodeId,
}

impl Passed {
    async fn inner(&self, operation: Operation, key: &str) -> Result<SimStore, StoreError> {
        let there = carry(&self.sim, self.node, self.primary).await;
        if there && self.sim.cluster().machine(self.primary).captures.is_some() {
            return Ok(SimStore { sim: Arc::clone(&self.sim), node: self.primary });
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, operation, key, "sim:", "no primary"))
    }

    async fn back<T>(&self, operation: Operation, key: &str, answer: T) -> Result<T, StoreError> {
        if self::answer(&self.sim, self.primary, self.node).await {
            return Ok(answer);
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, operation, key, "sim:", "no answer"))
    }

    fn refused<T>(operation: Operation, key: &str) -> Result<T, StoreError> {
        Err(StoreError::new(StoreErrorKind::Unavailable, operation, key, "sim:", "it is only read"))
    }
}

#[async_trait]
impl Store for Passed {
    fn describe(&self) -> String {
        format!("sim: through node {}", self.primary)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::given("keeps what a real store guarantees")
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let object = self.inner(Operation::Get, key).await?.get(key).await?;
        self.back(Operation::Get, key, object).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.inner(Operation::GetRange, key).await?.get_range(key, range).await?;
        self.back(Operation::GetRange, key, bytes).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let object = self.inner(Operation::GetTail, key).await?.get_tail(key, len).await?;
        self.back(Operation::GetTail, key, object).await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let meta = self.inner(Operation::Head, key).await?.head(key).await?;
        self.back(Operation::Head, key, meta).await
    }

    async fn create(&self, key: &str, _: Bytes) -> Result<Version, StoreError> {
        Self::refused(Operation::Create, key)
    }

    async fn swap_if(&self, key: &str, _: Option<&Version>, _: Bytes) -> Result<Version, StoreError> {
        Self::refused(Operation::Swap, key)
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        Self::refused(Operation::Upload, key)
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let entries = self.inner(Operation::List, prefix).await?.list_after(prefix, after, limit).await?;
        self.back(Operation::List, prefix, entries).await
    }

    async fn delete(&self, _: &[String]) -> Result<(), StoreError> {
        Self::refused(Operation::Delete, "")
    }
}
