//! Runs futures on one thread under a time that only this knows.
//!
//! Nothing here depends on anything but the order in which tasks were started: among the tasks that may run, the oldest runs first, however they
//! were woken; time stands still while one of them may run, and then jumps to the next timer. So one seed gives one run, always.
//!
//! A task belongs to a node or to nobody. The tasks of a node can be ended (a crash), or held (a process that is frozen): what wakes a
//! held task is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;

/// Turns at one moment of time before it is a loop without end.
const TURNS_MAX: u64 = 100_000;

/// Number of a node.
pub type NodeId = usize;

/// A task to run.
pub type Task = BoxFuture<'static, ()>;

/// What a task wants of the executor. Done when its turn is over.
enum Command {
    Spawn(Option<NodeId>, Task),
    Kill(NodeId),
    Hold(NodeId),
    Go(NodeId),
}

#[derive(Default)]
struct Inner {
    now: u64,
    timers: BTreeMap<(u64, u64), Waker>,
    timers_made: u64,
    commands: Vec<Command>,
}

/// Time, and the way to the executor for those that it runs. Clones are the same.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Inner>>);

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Timeline {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Real time in microseconds since the start. No node can read it.
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// Ends at this time.
    pub fn sleep_until(&self, at: u64) -> Sleep {
        Sleep { timeline: self.clone(), at, timer: None }
    }

    /// Ends so many microseconds later.
    pub fn sleep(&self, micros: u64) -> Sleep {
        self.sleep_until(self.now().saturating_add(micros))
    }

    /// Starts a task.
    pub fn spawn(&self, node: Option<NodeId>, task: impl Future<Output = ()> + Send + 'static) {
        self.lock().commands.push(Command::Spawn(node, Box::pin(task)));
    }

    /// Ends all tasks of a node, wherever they are.
    pub fn kill(&self, node: NodeId) {
        self.lock().commands.push(Command::Kill(node));
    }

    /// Holds all tasks of a node until [`Timeline::go`].
    pub fn hold(&self, node: NodeId) {
        self.lock().commands.push(Command::Hold(node));
    }

    /// Nothing runs any more: drops what waits to be started.
    pub fn end(&self) {
        let commands = std::mem::take(&mut self.lock().commands);
        drop(commands);
    }

    /// The opposite of [`Timeline::hold`].
    pub fn go(&self, node: NodeId) {
        self.lock().commands.push(Command::Go(node));
    }
}

/// Waits for a time.
#[derive(Debug)]
pub struct Sleep {
    timeline: Timeline,
    at: u64,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let timeline = self.timeline.clone();
        let mut inner = timeline.lock();
        if inner.now >= self.at {
            return Poll::Ready(());
        }
        let number = *self.timer.get_or_insert_with(|| {
            inner.timers_made += 1;
            inner.timers_made
        });
        inner.timers.insert((self.at, number), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            self.timeline.lock().timers.remove(&(self.at, number));
        }
    }
}

type Ready = Arc<Mutex<BTreeSet<u64>>>;

struct TaskWaker {
    id: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id);
    }
}

struct Running {
    node: Option<NodeId>,
    task: Task,
    waker: Waker,
}

/// Runs the tasks of one timeline.
pub struct Executor {
    timeline: Timeline,
    ready: Ready,
    tasks: BTreeMap<u64, Running>,
    held: BTreeMap<NodeId, BTreeSet<u64>>,
    started: u64,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Executor {
    /// Runs what is started on `timeline`.
    pub fn new(timeline: Timeline) -> Self {
        Self { timeline, ready: Ready::default(), tasks: BTreeMap::new(), held: BTreeMap::new(), started: 0 }
    }

    /// Turns in all before something is wrong with the run.
    const ALL_TURNS_MAX: u64 = 5_000_000;

    /// Runs until `end`, or until `check`, which is called after each turn with the node whose turn it was, is false.
    pub fn run(&mut self, end: u64, mut check: impl FnMut(Option<NodeId>) -> bool) {
        let (mut turns, mut all) = (0, 0);
        loop {
            self.obey();
            let next = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            if let Some(id) = next {
                turns += 1;
                all += 1;
                assert!(all < Self::ALL_TURNS_MAX, "no end at {}", self.timeline.now());
                assert!(turns < TURNS_MAX, "tasks wake each other for ever at {}", self.timeline.now());
                let node = self.turn(id);
                if !check(node) {
                    return;
                }
                continue;
            }
            turns = 0;
            if !self.advance(end) {
                return;
            }
        }
    }

    fn obey(&mut self) {
        let commands = std::mem::take(&mut self.timeline.lock().commands);
        for command in commands {
            match command {
                Command::Spawn(node, task) => {
                    self.started += 1;
                    let id = self.started;
                    let waker = Waker::from(Arc::new(TaskWaker { id, ready: Arc::clone(&self.ready) }));
                    waker.wake_by_ref();
                    self.tasks.insert(id, Running { node, task, waker });
                }
                Command::Kill(node) => {
                    self.held.remove(&node);
                    let ended: Vec<u64> =
                        self.tasks.iter().filter(|(_, t)| t.node == Some(node)).map(|(id, _)| *id).collect();
                    for id in ended {
                        self.tasks.remove(&id);
                    }
                }
                Command::Hold(node) => {
                    self.held.entry(node).or_default();
                }
                Command::Go(node) => {
                    let woken = self.held.remove(&node).unwrap_or_default();
                    self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend(woken);
                }
            }
        }
    }

    fn turn(&mut self, id: u64) -> Option<NodeId> {
        let running = self.tasks.get_mut(&id)?;
        let node = running.node;
        if let Some(held) = running.node.and_then(|node| self.held.get_mut(&node)) {
            held.insert(id);
            return None;
        }
        let waker = running.waker.clone();
        if running.task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.remove(&id);
        }
        node
    }

    /// Goes to the next timer, if there is one before `end`.
    fn advance(&mut self, end: u64) -> bool {
        let mut inner = self.timeline.lock();
        let Some((&(at, _), _)) = inner.timers.first_key_value().filter(|((at, _), _)| *at <= end) else {
            inner.now = end;
            return false;
        };
        inner.now = inner.now.max(at);
        let mut due = Vec::new();
        while let Some(timer) = inner.timers.first_entry().filter(|timer| timer.key().0 <= at) {
            due.push(timer.remove());
        }
        drop(inner);
        for waker in due {
            waker.wake();
        }
        true
    }
}
