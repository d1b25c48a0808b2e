//! The store as a node sees it: over a network that loses, delays and doubles.
//!
//! What arrives is done at one moment, whole, by [`Memory`]: a create never overwrites, a swap is atomic. Everything else may go wrong: a
//! request or an answer is lost, a request is done long after its caller was told that nobody knows, or is done twice.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};
use rhyolite_format::{Seq, keys};
use rhyolite_store::{
    Capabilities, Entry, Memory, Meta, Object, Operation, Store, StoreError, StoreErrorKind, Upload, Version,
};
use tokio::sync::oneshot;

use crate::cluster;
use crate::director;
use crate::executor::NodeId;
use crate::random::Random;
use crate::scenario::{MS, SECOND};
use crate::sim::Sim;

/// The store, from one node.
#[derive(Clone, Debug)]
pub struct SimStore {
    /// The run.
    pub sim: Arc<Sim>,
    /// Who asks.
    pub node: NodeId,
}

/// What happens to a request. Times in microseconds from one to the next.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Done and answered.
    Good { up: u64, down: u64 },
    /// Done, answered, and done again.
    Twice { up: u64, down: u64, again: u64 },
    /// Never done.
    Lost { wait: u64 },
    /// Done; the caller waits in vain.
    AnswerLost { up: u64, wait: u64 },
    /// The caller waits in vain; then it is done.
    Late { wait: u64, more: u64 },
    /// There is no way to the store, and the caller is told so.
    Refused { wait: u64 },
}

/// So often it is looked whether what was sent ahead may arrive.
const AHEAD_LOOKS: usize = 20;

/// What a request does to the store.
type Apply<T> = Box<dyn Fn(&Memory) -> Result<T, StoreError> + Send>;

fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory answers at once")
}

impl SimStore {
    fn fate(&self, operation: Operation) -> Fate {
        let sim = &self.sim;
        let now = sim.timeline.now();
        let cut = sim.node(self.node).cut_until > now;
        let frozen = director::freeze_at_request(sim, self.node);
        let mut chance = sim.chance();
        let (mut up, mut down) = (chance.skewed(MS, 40 * MS), chance.skewed(MS, 40 * MS));
        if !sim.is_stormy() {
            return Fate::Good { up, down };
        }
        let wait = chance.between(300 * MS, 4 * SECOND);
        if cut {
            return if chance.permille(500) { Fate::Refused { wait: up } } else { Fate::Refused { wait } };
        }
        let weather = &sim.scenario.weather;
        if let Some(time) = frozen.filter(|_| chance.permille(500)) {
            // It was frozen before the request had left.
            up += time;
        }
        let slow = |chance: &mut Random| match weather.slow_evenly {
            true => chance.between(100 * MS, 5 * SECOND),
            false => chance.skewed(100 * MS, 5 * SECOND),
        };
        if chance.permille(weather.slow) {
            up += slow(&mut chance);
        }
        if chance.permille(weather.slow) {
            down += slow(&mut chance);
            director::cut_soon(sim, self.node, weather.cuts, up);
        }
        let is_write = matches!(operation, Operation::Create | Operation::Swap | Operation::Delete | Operation::Upload);
        if chance.permille(weather.lost) {
            director::cut_soon(sim, self.node, weather.cuts, 0);
            return Fate::Lost { wait };
        }
        if chance.permille(weather.answer_lost) {
            return Fate::AnswerLost { up, wait };
        }
        if is_write && chance.permille(weather.late) {
            let more =
                if chance.permille(500) { chance.between(SECOND, 12 * SECOND) } else { chance.skewed(MS, 20 * SECOND) };
            return Fate::Late { wait, more };
        }
        if is_write && chance.permille(weather.twice) {
            return Fate::Twice { up, down, again: chance.skewed(MS, 20 * SECOND) };
        }
        Fate::Good { up, down }
    }

    /// Sends a request, and waits for what is heard of it. Dropping the future stops the waiting only.
    async fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        keys: &[String],
        apply: Apply<T>,
    ) -> Result<T, StoreError> {
        let fate = self.fate(operation);
        if matches!(fate, Fate::Late { .. } | Fate::Lost { .. }) {
            director::die_of_request(&self.sim, self.node);
        }
        let (sender, answer) = oneshot::channel();
        let request = Request { store: self.clone(), operation, keys: keys.to_vec(), apply };
        self.sim.timeline.spawn(None, request.run(fate, sender));
        answer.await.expect("every request is answered")
    }

    /// Sends a segment that the store gets some time after somebody has taken the name of the one before it.
    pub fn create_behind(&self, before: Seq, seq: Seq, bytes: Bytes) {
        let key = keys::segment(seq);
        let own = key.clone();
        let apply = Box::new(move |memory: &Memory| at_once(memory.create(&own, bytes.clone())));
        let request = Request { store: self.clone(), operation: Operation::Create, keys: vec![key], apply };
        let wait = self.sim.chance().skewed(MS, 2 * SECOND);
        let timeline = self.sim.timeline.clone();
        self.sim.timeline.spawn(None, async move {
            let before = keys::segment(before);
            for _ in 0..AHEAD_LOOKS {
                timeline.sleep(wait).await;
                if at_once(request.store.sim.store.head(&before)).is_ok() {
                    let _ = request.done(" (ahead)");
                    break;
                }
            }
        });
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &str,
        apply: impl Fn(&Memory, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let own = key.to_owned();
        self.call(operation, &[key.to_owned()], Box::new(move |memory| apply(memory, &own))).await
    }
}

/// A request on its way. It goes on without its caller.
struct Request<T> {
    store: SimStore,
    operation: Operation,
    keys: Vec<String>,
    apply: Apply<T>,
}

impl<T: Send + 'static> Request<T> {
    fn run(self, fate: Fate, sender: oneshot::Sender<Result<T, StoreError>>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let timeline = self.store.sim.timeline.clone();
            let open = DeletionOpen::new(&self.store.sim, self.operation == Operation::Delete);
            // Without a caller an answer is nobody's.
            match fate {
                Fate::Good { up, down } => {
                    timeline.sleep(up).await;
                    let done = self.done("");
                    timeline.sleep(down).await;
                    let _ = sender.send(done);
                }
                Fate::Twice { up, down, again } => {
                    timeline.sleep(up).await;
                    let done = self.done(" (will come again)");
                    timeline.sleep(down).await;
                    let _ = sender.send(done);
                    timeline.sleep(again).await;
                    let _ = self.done(" (again)");
                }
                Fate::Lost { wait } => {
                    timeline.sleep(wait).await;
                    let _ = sender.send(Err(self.unknown("lost")));
                }
                Fate::AnswerLost { up, wait } => {
                    timeline.sleep(up).await;
                    let _ = self.done(" (answer lost)");
                    timeline.sleep(wait).await;
                    let _ = sender.send(Err(self.unknown("answer lost")));
                }
                Fate::Late { wait, more } => {
                    timeline.sleep(wait).await;
                    let _ = sender.send(Err(self.unknown("late")));
                    timeline.sleep(more).await;
                    let _ = self.done(" (late)");
                }
                Fate::Refused { wait } => {
                    timeline.sleep(wait).await;
                    let _ = sender.send(Err(self.error(StoreErrorKind::Unavailable, "no way to the store")));
                }
            }
            drop(open);
        })
    }

    /// Does it, at this moment.
    fn done(&self, note: &str) -> Result<T, StoreError> {
        let sim = &self.store.sim;
        let result = (self.apply)(&sim.store);
        sim.trace(|| {
            let said = result.as_ref().map_or_else(|e| e.kind.name(), |_| "ok");
            format!("store {} {} of {}: {said}{note}", self.operation.name(), self.keys.join(" "), self.store.node)
        });
        let is_write =
            matches!(self.operation, Operation::Create | Operation::Swap | Operation::Delete | Operation::Upload);
        if is_write && result.is_ok() {
            for key in &self.keys {
                sim.model().changed(&sim.store, key);
                if sim.is_cluster() {
                    cluster::truth::store_changed(sim, key);
                }
            }
        }
        result
    }

    fn error(&self, kind: StoreErrorKind, reason: &str) -> StoreError {
        let key = self.keys.first().map_or("", String::as_str);
        let sim = &self.store.sim;
        sim.trace(|| format!("node {} hears {} of {} {key}", self.store.node, kind.name(), self.operation.name()));
        StoreError::new(kind, self.operation, key, "sim:", reason)
    }

    fn unknown(&self, reason: &str) -> StoreError {
        let is_write =
            matches!(self.operation, Operation::Create | Operation::Swap | Operation::Delete | Operation::Upload);
        let kind = if is_write { StoreErrorKind::Ambiguous } else { StoreErrorKind::Unavailable };
        self.error(kind, reason)
    }
}

/// Counts deletions that may still happen. An operator who puts something back waits until there is none.
#[derive(Debug)]
pub struct DeletionOpen(Option<Arc<Sim>>);

impl DeletionOpen {
    /// Counts one, if it is one.
    pub fn new(sim: &Arc<Sim>, is_one: bool) -> Self {
        if is_one {
            sim.model().deletions_open += 1;
        }
        Self(is_one.then(|| Arc::clone(sim)))
    }
}

impl Drop for DeletionOpen {
    fn drop(&mut self) {
        if let Some(sim) = &self.0 {
            sim.model().deletions_open -= 1;
        }
    }
}

#[async_trait]
impl Store for SimStore {
    fn describe(&self) -> String {
        "sim:".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::given("keeps what a real store guarantees")
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.read(Operation::Get, key, |memory, key| at_once(memory.get(key))).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.read(Operation::GetRange, key, move |memory, key| at_once(memory.get_range(key, range.clone()))).await
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        self.read(Operation::GetTail, key, move |memory, key| at_once(memory.get_tail(key, len))).await
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        let head = |memory: &Memory, key: &str| at_once(memory.head(key)).map(|meta| Meta { modified: None, ..meta });
        self.read(Operation::Head, key, head).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.read(Operation::Create, key, move |memory, key| at_once(memory.create(key, bytes.clone()))).await
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let expected = expected.cloned();
        let swap = move |memory: &Memory, key: &str| at_once(memory.swap_if(key, expected.as_ref(), bytes.clone()));
        self.read(Operation::Swap, key, swap).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(SimUpload { store: self.clone(), key: key.to_owned(), bytes: BytesMut::new() }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let after = after.map(str::to_owned);
        let list = move |memory: &Memory, prefix: &str| {
            let listed = at_once(memory.list_after(prefix, after.as_deref(), limit));
            listed.map(|entries| entries.into_iter().map(|entry| Entry { modified: None, ..entry }).collect())
        };
        self.read(Operation::List, prefix, list).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let own = keys.to_vec();
        self.call(Operation::Delete, keys, Box::new(move |memory| at_once(memory.delete(&own)))).await
    }
}

#[derive(Debug)]
struct SimUpload {
    store: SimStore,
    key: String,
    bytes: BytesMut,
}

/// Puts an object in place, whatever is there.
pub fn put(memory: &Memory, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
    at_once(async {
        let mut upload = memory.upload(key).await?;
        upload.write(bytes).await?;
        upload.finish().await
    })
}

#[async_trait]
impl Upload for SimUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        let bytes = self.bytes.freeze();
        let finish = move |memory: &Memory, key: &str| put(memory, key, bytes.clone());
        self.store.read(Operation::Upload, &self.key, finish).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
