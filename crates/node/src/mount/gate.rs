//! Answers the fsync of a commit when the commit is where it is to be ([`crate::capture::gate`]), or with an I/O error when it takes too long.
//!
//! Those who serve the kernel never wait: who asks is answered by a thread of this module.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{io, thread};

use fuser::{Errno, ReplyEmpty};
use rustix::fs::OFlags;

use super::database::Promise;
use super::nodes::Node;
use crate::capture::commits::CommitLine;
use crate::capture::gate::{Answer, Ticket};
use crate::durability::Level;

/// Between two sessions with a database nobody takes its commits: for so long it is tried again. A session that compares all pages cannot begin
/// while a commit waits.
const UNHEARD_MAX: Duration = Duration::from_millis(100);
/// Time between these tries.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// What is said of a transaction that cannot be taken before its end.
const TOO_LARGE: &str =
    "with a rollback journal no transaction of more than 64 MiB can wait; use WAL mode, or smaller transactions";

/// What became of those who waited.
const RESULTS: [&str; 3] = ["kept", "late", "given-up"];
const KEPT: usize = 0;
const LATE: usize = 1;
const GIVEN_UP: usize = 2;

/// Of all mounts of the process, of which there is one.
static COUNTS: [AtomicU64; RESULTS.len()] = [const { AtomicU64::new(0) }; RESULTS.len()];

/// How many syncs have waited since the process began, by what became of them. Empty without a mount whose commits wait.
pub fn counts() -> Vec<(&'static str, u64)> {
    let counts: Vec<u64> = COUNTS.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    RESULTS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
}

fn count(result: usize) {
    COUNTS[result].fetch_add(1, Ordering::Relaxed);
}

/// The gate of a mount.
#[derive(Debug)]
pub(super) struct Gate {
    timeout: Duration,
    next: AtomicU64,
    come: Sender<Event>,
}

enum Event {
    Wait(u64, Waiting),
    Answer(u64, Answer),
    /// Nobody has taken the commit yet.
    Offer(u64, Unheard),
    TooLarge(u64),
    /// The mount is gone.
    Stop,
}

/// Somebody whose commit is on its way.
struct Waiting {
    database: OsString,
    until: Instant,
    reply: ReplyEmpty,
    unheard: Option<Unheard>,
}

/// A commit that is to be offered again.
struct Unheard {
    node: Arc<Node>,
    until: Instant,
}

impl Gate {
    /// A gate at which commits wait until they are at `level`, and nobody for longer than `timeout`.
    pub(super) fn new(level: Level, timeout: Duration) -> io::Result<Self> {
        let (come, events) = mpsc::channel();
        let own = come.clone();
        let keeper = move |own| Keeper { own, level, timeout, waiting: HashMap::new() };
        thread::Builder::new().name("mount-gate".to_owned()).spawn(move || keeper(own).run(&events))?;
        Ok(Self { timeout, next: AtomicU64::new(0), come })
    }

    /// The WAL of a database, with this inode, was synced.
    pub(super) fn hold_wal(&self, node: &Node, line: &CommitLine, wal: u64, reply: ReplyEmpty) {
        let id = self.wait(node, reply);
        line.sync(wal, ticket(id, &self.come));
    }

    /// The file of a database was synced by this thread.
    pub(super) fn hold_database(&self, node: &Arc<Node>, file: &File, thread: u32, reply: ReplyEmpty) {
        if !node.database.is_about_to_commit(thread) {
            return reply.ok();
        }
        let id = self.wait(node, reply);
        match node.database.promise(file, &|| ticket(id, &self.come)) {
            Promise::Made => {}
            Promise::Unheard => {
                let until = Instant::now() + UNHEARD_MAX;
                self.tell(Event::Offer(id, Unheard { node: Arc::clone(node), until }));
            }
            Promise::TooLarge => {
                node.database.note_refused();
                self.tell(Event::TooLarge(id));
            }
        }
    }

    fn wait(&self, node: &Node, reply: ReplyEmpty) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.timeout;
        self.tell(Event::Wait(id, Waiting { database: node.place().name, until, reply, unheard: None }));
        id
    }

    fn tell(&self, event: Event) {
        let told = self.come.send(event);
        assert!(told.is_ok(), "the thread that answers lives until it is told to stop");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.tell(Event::Stop);
    }
}

fn ticket(id: u64, come: &Sender<Event>) -> Ticket {
    let come = come.clone();
    Ticket::new(move |answer| {
        // After the mount nobody waits any more.
        let _ = come.send(Event::Answer(id, answer));
    })
}

/// The one who answers.
struct Keeper {
    own: Sender<Event>,
    level: Level,
    timeout: Duration,
    waiting: HashMap<u64, Waiting>,
}

impl Keeper {
    fn run(mut self, events: &Receiver<Event>) {
        loop {
            match events.recv_timeout(self.pause()) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => self.take_in(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.offer_again();
            self.refuse_late();
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Wait(id, waiting) => drop(self.waiting.insert(id, waiting)),
            Event::Offer(id, unheard) => {
                if let Some(waiting) = self.waiting.get_mut(&id) {
                    waiting.unheard = Some(unheard);
                }
            }
            Event::Answer(id, Answer::Kept) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    count(KEPT);
                    waiting.reply.ok();
                }
            }
            Event::Answer(id, Answer::GivenUp) => {
                self.refuse(id, GIVEN_UP, "nobody can say where it is, as capture begins anew");
            }
            Event::TooLarge(id) => self.refuse(id, GIVEN_UP, TOO_LARGE),
            Event::Stop => {}
        }
    }

    /// Until something is to be done unasked.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let next = self.waiting.values().map(|waiting| match waiting.unheard {
            Some(_) => TRY_AGAIN,
            None => waiting.until.saturating_duration_since(now),
        });
        next.min().unwrap_or(Duration::from_secs(3600))
    }

    fn offer_again(&mut self) {
        let offers =
            self.waiting.iter().filter_map(|(id, w)| w.unheard.as_ref().map(|u| (*id, Arc::clone(&u.node), u.until)));
        for (id, node, until) in offers.collect::<Vec<_>>() {
            let file = node.open(OFlags::RDONLY);
            match file.map(|file| node.database.promise(&file, &|| ticket(id, &self.own))) {
                Ok(Promise::Made) => {
                    if let Some(waiting) = self.waiting.get_mut(&id) {
                        waiting.unheard = None;
                    }
                }
                Ok(Promise::Unheard) if Instant::now() < until => {}
                refused => {
                    let is_too_large = matches!(refused, Ok(Promise::TooLarge));
                    self.refuse(
                        id,
                        GIVEN_UP,
                        if is_too_large { TOO_LARGE } else { "nobody captures the database right now" },
                    );
                }
            }
        }
    }

    fn refuse_late(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self.waiting.iter().filter(|(_, w)| w.until <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.refuse(id, LATE, &format!("it was not known to be at this level within {:?}", self.timeout));
        }
    }

    fn refuse(&mut self, id: u64, result: usize, why: &str) {
        let Some(waiting) = self.waiting.remove(&id) else { return };
        if let Some(unheard) = &waiting.unheard {
            unheard.node.database.note_refused();
        }
        count(result);
        tracing::error!(
            database = %Path::new(&waiting.database).display(),
            "a commit failed with an I/O error, and the application takes it back: {why} (--durability {})",
            self.level
        );
        waiting.reply.error(Errno::EIO);
    }
}
