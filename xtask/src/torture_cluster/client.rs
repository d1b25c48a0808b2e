//! Clients: each writes rows of its own through any node's proxy, and reads them back through any other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::history::History;
use super::report::{Fault, Report};
use crate::cluster::app;
use crate::cluster::http::{ask, read_numbers};
use crate::cluster::{Cluster, Node};
use crate::error::{Outcome, fail};
use crate::rng::Rng;

/// Longest wait for an answer. What comes later is not known.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(15);

/// What clients share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) history: &'a History,
    pub(super) report: &'a Report,
    pub(super) ends: &'a AtomicBool,
}

struct Client<'a> {
    shared: Shared<'a>,
    number: u64,
    rng: Rng,
    cookie: Option<String>,
    /// Rows that it was told of at the moment since which nothing could be lost.
    told: BTreeSet<u64>,
    at: Option<u64>,
    next: u64,
}

/// Writes and reads until the world ends.
pub(super) fn run(shared: Shared<'_>, number: u64, rng: Rng) {
    let mut client = Client { shared, number, rng, cookie: None, told: BTreeSet::new(), at: None, next: 1 };
    while !shared.ends.load(Ordering::SeqCst) {
        let any = client.rng.range(0..shared.cluster.nodes.len() as u64) as usize;
        let node = &shared.cluster.nodes[any];
        if client.rng.percent(60) && node.takes_writes() {
            if shared.cluster.setting.is_forwarded && client.rng.percent(50) {
                client.write_on_the_mount(node);
            } else {
                client.write(node);
            }
        } else if let Err(error) = client.read(node) {
            // A node that is not there is no fault.
            client.note_unanswered(&format!("read: {error}"));
        }
        thread::sleep(PAUSE);
    }
}

impl Client<'_> {
    /// Forgets what it was told before something happened by which it may be lost.
    fn note_moment(&mut self) {
        let now = self.shared.history.calm();
        if self.at != now || now.is_none() {
            self.told.clear();
        }
        self.at = now;
    }

    fn note_unanswered(&self, what: &str) {
        self.shared.history.note_unanswered();
        self.note_failed(what);
    }

    fn note_failed(&self, what: &str) {
        let Shared { cluster, report, .. } = self.shared;
        report.count(|counts| counts.unanswered += 1);
        cluster.note(&format!("client {}: {what}", self.number));
    }

    fn write(&mut self, node: &Node) {
        self.note_moment();
        let (number, cookie) = (self.next, self.cookie.clone());
        // Asked once: whether it was done is not known when there is no answer.
        self.next += 1;
        let path = format!("/add/{}/{number}", self.number);
        let Shared { history, report, .. } = self.shared;
        match ask(node.proxy, "POST", &path, cookie.as_deref(), ANSWER_MAX) {
            Ok(answer) if answer.status == 200 => {
                history.acknowledge(self.number, number);
                report.count(|counts| counts.writes += 1);
                if answer.cookie.is_some() {
                    self.cookie = answer.cookie;
                }
                if self.at.is_some() && history.calm() == self.at {
                    self.told.insert(number);
                }
            }
            Ok(answer) => self.note_unanswered(&format!("write: {} {}", answer.status, answer.body.trim())),
            Err(error) => self.note_unanswered(&format!("write: {error}")),
        }
    }

    /// Writes as an application of that node, whatever its role is.
    fn write_on_the_mount(&mut self, node: &Node) {
        self.note_moment();
        let number = self.next;
        self.next += 1;
        let Shared { history, report, .. } = self.shared;
        match app::add_on_the_mount(&node.front.join("app.db"), self.number, number) {
            Ok(()) => {
                history.acknowledge(self.number, number);
                report.count(|counts| {
                    (counts.writes, counts.writes_on_mounts) = (counts.writes + 1, counts.writes_on_mounts + 1)
                });
            }
            // Nobody holds a write on a mount while the role is handed on.
            Err(error) => self.note_failed(&format!("write on the mount: {error}")),
        }
    }

    fn read(&mut self, node: &Node) -> Outcome {
        self.note_moment();
        let Shared { history, report, .. } = self.shared;
        let sure = history.sure(self.number);
        let (path, cookie) = (format!("/rows/{}", self.number), self.cookie.clone());
        let name = &node.name;
        let answer = ask(node.proxy, "GET", &path, cookie.as_deref(), ANSWER_MAX)?;
        if answer.status != 200 {
            return fail(format!("status {}", answer.status));
        }
        let (seen, twice) = read_numbers(&answer.body)?;
        report.count(|counts| counts.reads += 1);
        let place = format!("client {} at {name}, with {cookie:?}", self.number);
        if !twice.is_empty() {
            report.fault(Fault::Doubled, twice.len(), &place, &format!("{twice:?} are there twice"));
        }
        let missing: Vec<_> = sure.difference(&seen).collect();
        if !missing.is_empty() {
            report.fault(Fault::Lost, missing.len(), &place, &format!("{missing:?} were safe"));
        }
        let unseen: Vec<_> = self.told.difference(&seen).collect();
        if history.calm() == self.at && !unseen.is_empty() {
            report.fault(
                Fault::Unseen,
                unseen.len(),
                &place,
                &format!("{unseen:?} were acknowledged, and nothing was lost"),
            );
        }
        Ok(())
    }
}
