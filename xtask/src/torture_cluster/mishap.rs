//! What happens to nodes.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::history::History;
use super::report::{Fault, Report};
use crate::cluster::{Cluster, Node, signal_all};
use crate::error::{Outcome, fail};
use crate::rng::Rng;

/// Longest wait until somebody is the primary again.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    /// The process is killed, and started again after a while.
    Kill,
    /// All processes of the machine are killed at once.
    KillAll,
    /// The guard of the application is killed.
    KillGuard,
    /// The process stands still, its application does not.
    Freeze,
    /// Everything on the machine stands still.
    FreezeAll,
    /// The node does not reach the store.
    CutStore,
    /// Nobody reaches the store.
    CutStores,
    /// Nobody reaches the node.
    CutNode,
    /// The role is handed on.
    Handoff,
    /// The process is told to end, and started again.
    Stop,
}

impl Mishap {
    const ALL: [(u64, Self); 10] = [
        (5, Self::Kill),
        (3, Self::KillAll),
        (2, Self::KillGuard),
        (5, Self::Freeze),
        (3, Self::FreezeAll),
        (4, Self::CutStore),
        (1, Self::CutStores),
        (4, Self::CutNode),
        (4, Self::Handoff),
        (3, Self::Stop),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill of node, guard and application",
            Self::KillGuard => "kill of the guard",
            Self::Freeze => "freeze",
            Self::FreezeAll => "freeze of node, guard and application",
            Self::CutStore => "store cut off",
            Self::CutStores => "store cut off from all",
            Self::CutNode => "node cut off",
            Self::Handoff => "handoff",
            Self::Stop => "stop",
        }
    }

    /// Nothing that was acknowledged may be lost by it.
    fn is_harmless(self) -> bool {
        matches!(self, Self::Handoff | Self::Stop)
    }
}

/// Does things to nodes.
#[derive(Debug)]
pub(super) struct Fate<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) history: &'a History,
    pub(super) report: &'a Report,
    /// Applications that were frozen together with their guards.
    pub(super) frozen: &'a Mutex<BTreeSet<u32>>,
    pub(super) rng: Rng,
}

impl Fate<'_> {
    fn pause(&mut self, ms: std::ops::Range<u64>) {
        thread::sleep(Duration::from_millis(self.rng.range(ms)));
    }

    /// The primary mostly, or any other.
    fn victim(&mut self) -> usize {
        let nodes = &self.cluster.nodes;
        let any = self.rng.range(0..nodes.len() as u64) as usize;
        let primary = if self.rng.percent(70) { self.cluster.primary() } else { None };
        primary.and_then(|primary| nodes.iter().position(|node| node.name == primary.name)).unwrap_or(any)
    }

    /// One mishap, or two of different nodes at a time, and then quiet again.
    pub(super) fn strike(&mut self) -> Outcome {
        let mishap = self.rng.weighted(&Mishap::ALL);
        let position = self.victim();
        let is_double = self.rng.percent(20);
        let harmless = mishap.is_harmless() && !is_double;
        let unanswered = self.history.unanswered();
        if !harmless {
            self.history.disturb();
        }
        let cluster = self.cluster;
        let node = &cluster.nodes[position];
        let done = if is_double {
            let other = &cluster.nodes[(position + 1) % cluster.nodes.len()];
            let (second, seed) = (self.rng.weighted(&Mishap::ALL), self.rng.draw());
            let mut elsewhere = Fate { rng: Rng::new(seed), ..*self };
            thread::scope(|scope| {
                let second = scope.spawn(move || elsewhere.befall(second, other));
                let first = self.befall(mishap, node);
                first.and(second.join().expect("no mishap panics"))
            })
        } else {
            self.befall(mishap, node)
        };
        let settled = done.and_then(|()| self.settle());
        if !harmless {
            self.history.disturb();
        } else if mishap == Mishap::Handoff {
            // Requests that were held are answered by then, or never.
            self.pause(2000..2001);
            let refused = self.history.unanswered() - unanswered;
            if refused > 0 {
                self.report.fault(Fault::Refused, 1, &node.name, &format!("{refused} requests failed in a handoff"));
            }
        }
        settled?;
        self.pause(200..2500);
        Ok(())
    }

    fn befall(&mut self, mishap: Mishap, node: &Node) -> Outcome {
        self.report.count(|counts| counts.mishaps += 1);
        self.report.event(mishap.name());
        let cluster = self.cluster;
        cluster.note(&format!("{}: {}", node.name, mishap.name()));
        match mishap {
            Mishap::Kill => {
                node.kill()?;
                self.pause(0..3000);
                cluster.start_node(node)
            }
            Mishap::KillAll => {
                signal_all(&node.processes(), libc::SIGKILL);
                node.kill()?;
                self.pause(0..3000);
                cluster.start_node(node)
            }
            Mishap::KillGuard => self.kill_guard(node),
            Mishap::Freeze => {
                let Some(id) = node.id() else { return Ok(()) };
                self.freeze(&BTreeSet::from([id]));
                Ok(())
            }
            Mishap::FreezeAll => {
                let all = node.processes();
                self.frozen.lock().expect("nobody panics with it").extend(&all);
                self.freeze(&all);
                Ok(())
            }
            Mishap::CutStore => {
                cluster.set_store(node, false)?;
                self.pause(300..6000);
                cluster.set_store(node, true)
            }
            Mishap::CutStores => {
                cluster.nodes.iter().try_for_each(|node| cluster.set_store(node, false))?;
                self.pause(300..4000);
                cluster.nodes.iter().try_for_each(|node| cluster.set_store(node, true))
            }
            Mishap::CutNode => {
                node.cut(true);
                self.pause(300..6000);
                node.cut(false);
                Ok(())
            }
            Mishap::Handoff => {
                if !cluster.hand_on(node) {
                    self.report.event("handoff of a replica");
                }
                Ok(())
            }
            Mishap::Stop => {
                let code = node.stop()?;
                if !matches!(code, None | Some(0 | 143)) {
                    self.report.event("stop that was not durable");
                    self.history.disturb();
                    self.history.disturb();
                }
                self.pause(0..1500);
                cluster.start_node(node)
            }
        }
    }

    /// The guard is the child of the node. With it the application ends, and the node.
    fn kill_guard(&mut self, node: &Node) -> Outcome {
        let Some(id) = node.id() else { return Ok(()) };
        let guards: BTreeSet<u32> = node.processes().into_iter().filter(|process| is_guard(*process)).collect();
        signal_all(&guards, libc::SIGKILL);
        let deadline = Instant::now() + SETTLE_MAX;
        while node.has_ended()?.is_none() {
            if guards.is_empty() || Instant::now() > deadline {
                return fail(format!("{} goes on without its guard ({guards:?}, {id})", node.name));
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.cluster.start_node(node)
    }

    fn freeze(&mut self, processes: &BTreeSet<u32>) {
        self.cluster.freeze(processes);
        self.pause(100..6000);
        signal_all(processes, libc::SIGCONT);
    }

    /// Waits until there is a primary. Nodes that have ended by themselves are started again.
    pub(super) fn settle(&self) -> Outcome {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            for node in &self.cluster.nodes {
                if let Some(code) = node.has_ended()? {
                    self.report.event(if code == 0 { "end with status 0" } else { "end with another status" });
                    self.cluster.start_node(node)?;
                }
            }
            if self.cluster.primary().is_some() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return fail(format!("nobody is the primary after {SETTLE_MAX:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a process is the guard of an application.
fn is_guard(process: u32) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"guard")
}
