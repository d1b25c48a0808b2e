//! What happens to nodes.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::client::Shared;
use super::promise::{check_primary, ended, wait_complete};
use super::report::Fault;
use crate::cluster::{Node, signal_all};
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
    /// Nobody reaches the store, and then all processes of the machine are killed.
    KillUnstored,
    /// Nobody reaches the node, and then all processes of the machine are killed.
    KillUnheard,
    /// One other node stands still, then all processes of the machine are killed while the rest stand still: whoever comes first has not got the last commits.
    KillBehind,
    /// All processes of the machine are killed, and its disk is lost.
    LoseDisk,
}

impl Mishap {
    const ALL: [(u64, Self); 14] = [
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
        (4, Self::KillUnstored),
        (3, Self::KillUnheard),
        (4, Self::KillBehind),
        (2, Self::LoseDisk),
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
            Self::KillUnstored => "store cut off from all, then a kill of node, guard and application",
            Self::KillUnheard => "node cut off, then a kill of node, guard and application",
            Self::KillBehind => "kill of node, guard and application while those that have everything stand still",
            Self::LoseDisk => "loss of the disk",
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
    pub(super) shared: Shared<'a>,
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
        let nodes = &self.shared.cluster.nodes;
        let any = self.rng.range(0..nodes.len() as u64) as usize;
        let primary = if self.rng.percent(70) { self.shared.cluster.primary() } else { None };
        primary.and_then(|primary| nodes.iter().position(|node| node.name == primary.name)).unwrap_or(any)
    }

    /// One mishap, or two of different nodes at a time, and then quiet again.
    pub(super) fn strike(&mut self) -> Outcome {
        let mishap = self.rng.weighted(&Mishap::ALL);
        let position = self.victim();
        let is_double = self.rng.percent(20);
        let harmless = mishap.is_harmless() && !is_double;
        let (unanswered, right) = (self.shared.history.unanswered(), self.shared.cluster.right());
        if !harmless {
            self.shared.history.disturb();
        }
        let cluster = self.shared.cluster;
        let node = &cluster.nodes[position];
        let done = if is_double {
            let other = &cluster.nodes[(position + 1) % cluster.nodes.len()];
            // With two disks all may be gone.
            let mishap = if mishap == Mishap::LoseDisk { Mishap::KillAll } else { mishap };
            let second = self.rng.weighted(&Mishap::ALL);
            let second = if second == Mishap::LoseDisk { Mishap::KillAll } else { second };
            let seed = self.rng.draw();
            let mut elsewhere = Fate { rng: Rng::new(seed), ..*self };
            thread::scope(|scope| {
                let second = scope.spawn(move || elsewhere.befall(second, other));
                let first = self.befall(mishap, node);
                first.and(second.join().expect("no mishap panics"))
            })
        } else {
            self.befall(mishap, node)
        };
        let settled = done.and_then(|()| self.settle()).and_then(|()| check_primary(self.shared));
        if !harmless {
            self.shared.history.disturb();
        } else if mishap == Mishap::Handoff {
            // Requests that were held are answered by then, or never.
            self.pause(2000..2001);
            let refused = self.shared.history.unanswered() - unanswered;
            // On a machine that is too slow whoever has it may lose the right at once: then it was no handoff alone.
            let is_alone = cluster.right().zip(right).is_some_and(|(after, before)| after <= before + 1);
            if refused > 0 && !is_alone {
                self.shared.report.event("handoff after which the right was lost");
            } else if refused > 0 {
                self.shared.report.fault(
                    Fault::Refused,
                    1,
                    &node.name,
                    &format!("{refused} requests failed in a handoff"),
                );
            }
        }
        settled?;
        self.pause(200..2500);
        Ok(())
    }

    fn befall(&mut self, mishap: Mishap, node: &Node) -> Outcome {
        self.shared.report.count(|counts| counts.mishaps += 1);
        self.shared.report.event(mishap.name());
        let cluster = self.shared.cluster;
        cluster.note(&format!("{}: {}", node.name, mishap.name()));
        match mishap {
            Mishap::Kill | Mishap::KillAll => {
                if mishap == Mishap::Kill { node.kill().map(|_| ()) } else { kill_all(node) }?;
                self.pause(0..3000);
                cluster.start_node(node)
            }
            Mishap::KillUnstored | Mishap::KillUnheard => self.kill_out_of_reach(mishap, node),
            Mishap::KillBehind => self.kill_behind(node),
            Mishap::LoseDisk => self.lose_disk(node),
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
                self.set_stores(false)?;
                self.pause(300..4000);
                self.set_stores(true)
            }
            Mishap::CutNode => {
                node.cut(true);
                self.pause(300..6000);
                node.cut(false);
                Ok(())
            }
            Mishap::Handoff => {
                if !cluster.hand_on(node) {
                    self.shared.report.event("handoff of a replica");
                }
                Ok(())
            }
            Mishap::Stop => self.stop(node),
        }
    }

    fn stop(&mut self, node: &Node) -> Outcome {
        let code = node.stop()?;
        if !matches!(code, None | Some(0 | 143)) {
            self.shared.report.event("stop that was not durable");
            self.shared.history.disturb();
            self.shared.history.disturb();
        }
        self.pause(0..1500);
        self.shared.cluster.start_node(node)
    }

    fn set_stores(&self, is_there: bool) -> Outcome {
        let cluster = self.shared.cluster;
        cluster.nodes.iter().try_for_each(|node| cluster.set_store(node, is_there))
    }

    /// What it commits in its last moments reaches no store, or no node.
    fn kill_out_of_reach(&mut self, mishap: Mishap, node: &Node) -> Outcome {
        let cut = |this: &Self, is_cut: bool| match mishap {
            Mishap::KillUnstored => this.set_stores(!is_cut),
            _ => {
                node.cut(is_cut);
                Ok(())
            }
        };
        cut(self, true)?;
        self.pause(200..1800);
        kill_all(node)?;
        self.pause(0..2500);
        cut(self, false)?;
        self.shared.cluster.start_node(node)
    }

    fn kill_behind(&mut self, node: &Node) -> Outcome {
        let cluster = self.shared.cluster;
        let others: Vec<_> = cluster.nodes.iter().filter(|other| other.name != node.name).collect();
        let behind = self.rng.range(0..others.len() as u64) as usize;
        let ids = |is_behind: bool| -> BTreeSet<u32> {
            let chosen = others.iter().enumerate().filter(|(at, _)| (*at == behind) == is_behind);
            chosen.filter_map(|(_, other)| other.id()).collect()
        };
        let (late, rest) = (ids(true), ids(false));
        cluster.freeze(&late);
        self.pause(300..1500);
        cluster.freeze(&rest);
        let killed = kill_all(node);
        signal_all(&late, libc::SIGCONT);
        self.pause(500..3500);
        signal_all(&rest, libc::SIGCONT);
        killed?;
        cluster.start_node(node)
    }

    fn lose_disk(&mut self, node: &Node) -> Outcome {
        kill_all(node)?;
        // Nobody else is the primary for the time of the lease: until then all that was acknowledged was so by this one, or those before it.
        self.pause(300..301);
        self.shared.history.forgive();
        node.lose_disk()?;
        self.pause(0..3000);
        self.shared.cluster.start_node(node)?;
        // Until then it is one more that may not be lost.
        wait_complete(self.shared, node)
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
        self.shared.cluster.start_node(node)
    }

    fn freeze(&mut self, processes: &BTreeSet<u32>) {
        self.shared.cluster.freeze(processes);
        self.pause(100..6000);
        signal_all(processes, libc::SIGCONT);
    }

    /// Waits until there is a primary, and all nodes answer. Nodes that have ended by themselves are started again.
    pub(super) fn settle(&self) -> Outcome {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            self.shared.cluster.start_ended(|code| self.shared.report.event(ended(code)))?;
            let primary = self.shared.cluster.primary();
            if primary.is_some() && self.shared.cluster.is_complete() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what = if primary.is_some() { "a node does not answer" } else { "nobody is the primary" };
                return fail(format!("{what} after {SETTLE_MAX:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn kill_all(node: &Node) -> Outcome {
    signal_all(&node.processes(), libc::SIGKILL);
    node.kill().map(|_| ())
}

/// Whether a process is the guard of an application.
fn is_guard(process: u32) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"guard")
}
