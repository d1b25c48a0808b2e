//! Which databases there are, and which of them are awake.
//!
//! ```text
//!   configuration, folders, control socket
//!                  │
//!                  ▼        a start that must look           written
//!   found ──► waiting in line ──► awake (one task, one thread) ◄──┐
//!     │                             │ idle, captured, durable     │
//!     │ record and files agree      ▼                             │
//!     └────────────────────────► parked (watcher) ────────────────┘
//! ```
//!
//! One task owns all of this; what takes time runs in tasks of its own and comes back as a message.
//!
//! Invariants:
//! 1. A database is in exactly one stage. It is taken out of the watcher before it is opened, and put there after it was closed.
//! 2. At most [`OPENING_MAX`] databases are being opened for the first time, and [`WAKING_MAX`] again; the second do not wait for the first. At
//!    most as many are awake as there are descriptors for.
//! 3. What was parked is never started while its history is looked after: the state folder has one owner.
//! 4. A database uses its lease from the start of its first life, or from the moment in which it is found to be still parked, until it is given
//!    up, replaced or removed.
//! 5. A search of a folder opens no file that is replicated, and nothing is added while it runs.

use std::collections::{HashMap, VecDeque};
use std::future::{self, Future};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::state::LocalState;
use rhyolite_format::state::parked::Parked;
use rhyolite_logic::park;
use rhyolite_writer::lease_keeper::LeaseHandle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{self, JoinSet};

use crate::capture::commits::CommitLines;
use crate::capture::restart;
use crate::capture::thread::{Parking, SyncRequest};
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::drill;
use crate::keep::Looked;
use crate::lease::{self, LeasePool};
use crate::park as rest;
use crate::park::watcher::{DatabaseId, Noticed, Watcher};
use crate::replicate::{Below, Commons, Outcome, ReplicateError, Replication, SharedPast};
use crate::status::{DatabaseStatus, State, StatusBoard};
use crate::stream::feed::Served;
use crate::uploads::UploadTurns;
use chores::{Chores, Due};
use control::{Command, Control};

mod chores;
pub mod control;
mod drills;
mod ends;
mod folders;
mod history;
pub mod reload;
pub(crate) mod search;
mod stop;

/// Databases that are being opened at a time: at a start, and of those that were written to.
const OPENING_MAX: usize = 32;
const WAKING_MAX: usize = 64;
/// Descriptors that a database needs while it is awake, at most, and those that the rest of the process needs.
const DESCRIPTORS_EACH: u64 = 16;
const DESCRIPTORS_REST: u64 = 256;
/// Threads have limits too.
const AWAKE_MAX: usize = 8_000;
/// Memory is given back to the system when so many databases were parked, or all are, but not more often than this.
const PARKED_MAX: usize = 200;
const GIVE_BACK_GAP: Duration = Duration::from_secs(1);

/// What to replicate.
#[derive(Clone, Debug)]
pub struct SuperviseOptions {
    /// Databases that were named one by one.
    pub databases: Vec<DatabaseConfig>,
    /// Folders of databases.
    pub folders: Vec<FolderConfig>,
    /// How long the last uploads may take after `stop`.
    pub stop_timeout: Duration,
    /// When databases are parked.
    pub parking: park::Policy,
    /// Where commits in rollback mode come from, if somebody sees them.
    pub commits: Option<Arc<CommitLines>>,
    /// Databases are served to those who follow them live.
    pub serves: bool,
    /// The lease under which all are written, where somebody else keeps it.
    pub lease: Option<LeaseHandle>,
}

/// Replicates until `stop` turns true, then uploads what is left. Ends earlier when there is nothing left to hope for: every
/// database has failed for good, and no folder could bring another. Gives the errors of the databases that did.
pub async fn run(
    options: SuperviseOptions,
    board: Arc<StatusBoard>,
    stop: watch::Receiver<bool>,
    commands: Option<mpsc::Receiver<Command>>,
) -> Vec<ReplicateError> {
    let (noticed_sender, noticed) = mpsc::unbounded_channel();
    let watcher = match Watcher::start(noticed_sender) {
        Ok(watcher) => Arc::new(watcher),
        Err(error) => return vec![ReplicateError::Local(format!("start a thread: {error}"))],
    };
    board.pulse.begin();
    let awake_max = awake_max();
    let (never, no_commands) = mpsc::channel(1);
    let (ender, ending) = watch::channel(false);
    let mut supervisor = Supervisor {
        board,
        asked_to_stop: stop,
        ender,
        stop: ending,
        commits: options.commits,
        serves: options.serves,
        stop_timeout: options.stop_timeout,
        stop_by: None,
        watcher,
        noticed,
        commands: commands.unwrap_or(no_commands),
        members: HashMap::new(),
        by_path: HashMap::new(),
        next_id: 0,
        to_open: VecDeque::new(),
        to_wake: VecDeque::new(),
        opening: Line::new(OPENING_MAX),
        waking: Line::new(WAKING_MAX),
        uploads: Arc::default(),
        leases: Arc::new(LeasePool::new(options.lease)),
        parking: Arc::new(Parking::new(options.parking)),
        awake: 0,
        awake_max,
        parked_since: 0,
        gave_back: Instant::now(),
        tasks: JoinSet::new(),
        lives: HashMap::new(),
        histories: Chores::default(),
        drills: Chores::default(),
        retries: Chores::default(),
        awaiting: Vec::new(),
        has_left: false,
        pasts: HashMap::new(),
        folders: folders::Folders::default(),
        lost: Vec::new(),
    };
    supervisor.begin(options.databases, options.folders).await;
    supervisor.supervise().await;
    drop(never);
    supervisor.wind_up().await
}

/// Where a database comes from.
#[derive(Clone, Debug)]
enum Source {
    /// It was named.
    Named(Arc<DatabaseConfig>),
    /// It was found in this folder, by its path there.
    Found(Arc<FolderConfig>, Arc<str>),
}

/// What a database is doing.
#[derive(Debug)]
enum Stage {
    /// It waits for its turn to be opened.
    InLine,
    /// A task of its own captures and uploads.
    Awake(Arc<Control>),
    /// The watcher has it.
    Parked,
    /// It is given up until its file changes.
    Failed,
}

/// How the task of a database has ended.
type Life = Result<Outcome, ReplicateError>;

/// One database.
#[derive(Debug)]
struct Member {
    source: Source,
    status: Arc<DatabaseStatus>,
    stage: Stage,
    looked: Arc<Mutex<Looked>>,
    /// It is to go as soon as its task has ended.
    is_leaving: bool,
    /// It was added while the process ran, by whoever may ask for that: a new configuration file does not take it away.
    is_added: bool,
    /// What its life was started with, where that has changed since.
    restart: Option<Box<DatabaseConfig>>,
    /// The store cannot restore its end any more: a snapshot is to be taken.
    take_snapshot: bool,
    /// Those who wait for it to be captured.
    syncs: Vec<SyncRequest>,
    /// Its state folder may be believed when it is opened.
    trust: bool,
    /// Why it is given up.
    error: Option<ReplicateError>,
    failures: ends::Failures,
    /// What this process has done under its rights so far.
    past: SharedPast,
}

/// A line in which databases stand until they may be opened. Who stands first keeps the place while other things happen.
struct Line {
    turns: Arc<Semaphore>,
    next: Option<Pin<Box<NextTurn>>>,
}

type NextTurn = dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send;

impl Line {
    fn new(turns: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns)), next: None }
    }

    /// The right for the first to be opened. May be dropped and asked again. Without anybody who waits, the place in the line is given up.
    async fn turn(&mut self, is_wanted: bool) -> OwnedSemaphorePermit {
        if !is_wanted {
            self.next = None;
            return future::pending().await;
        }
        let next = self.next.get_or_insert_with(|| Box::pin(Arc::clone(&self.turns).acquire_owned()));
        let permit = next.await;
        self.next = None;
        permit.expect("the semaphore is never closed")
    }
}

struct Supervisor {
    board: Arc<StatusBoard>,
    /// The process is asked to end.
    asked_to_stop: watch::Receiver<bool>,
    /// Turns `stop` true: because of that, or because another process has a lease without which this one is not to run.
    ender: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
    commits: Option<Arc<CommitLines>>,
    serves: bool,
    stop_timeout: Duration,
    /// The end of the time for stopping, once it has begun.
    stop_by: Option<Instant>,
    watcher: Arc<Watcher>,
    noticed: mpsc::UnboundedReceiver<Noticed>,
    commands: mpsc::Receiver<Command>,
    /// Each in a place of its own: a table of them would be half empty.
    members: HashMap<DatabaseId, Box<Member>>,
    by_path: HashMap<Arc<Path>, DatabaseId>,
    next_id: DatabaseId,
    to_open: VecDeque<DatabaseId>,
    to_wake: VecDeque<DatabaseId>,
    opening: Line,
    waking: Line,
    uploads: Arc<UploadTurns>,
    leases: Arc<LeasePool>,
    parking: Arc<Parking>,
    awake: usize,
    awake_max: usize,
    /// Databases that were parked since memory was given back to the system, and when that was.
    parked_since: usize,
    gave_back: Instant,
    tasks: JoinSet<Life>,
    /// Whose life each task is.
    lives: HashMap<task::Id, DatabaseId>,
    /// Looks at histories.
    histories: Chores<history::Look>,
    drills: Chores<()>,
    /// Failed databases that are to be tried again.
    retries: Chores<()>,
    /// Databases that are wanted as soon as those at their place have left.
    awaiting: Vec<DatabaseConfig>,
    /// One has left since those were looked at.
    has_left: bool,
    /// What was done under a shared lease for databases that are gone, by their stores.
    pasts: HashMap<String, (lease::Place, SharedPast)>,
    folders: folders::Folders,
    /// Mistakes of ours that belong to no database, and what was not uploaded of those that have left.
    lost: Vec<ReplicateError>,
}

impl Supervisor {
    async fn begin(&mut self, databases: Vec<DatabaseConfig>, folders: Vec<FolderConfig>) {
        let ids: Vec<_> = databases.into_iter().map(|d| self.add(Source::Named(Arc::new(d)))).collect();
        folders.into_iter().for_each(|folder| self.folders.push(folder));
        self.note_unsearched();
        self.place(ids).await;
    }

    /// Puts new databases where they belong: those that are as they were when they were parked to the watcher, others in line.
    async fn place(&mut self, ids: Vec<DatabaseId>) {
        let trust = self.members.len() > park::FEW;
        let wanted = |id: &DatabaseId| self.members.get(id).map(|m| (*id, m.source.config(), Arc::clone(&m.status)));
        let wanted: Vec<_> = ids.iter().filter_map(wanted).collect();
        let watcher = Arc::clone(&self.watcher);
        let boot_id = restart::boot_id();
        let look = move || -> Vec<(DatabaseId, Option<(Parked, LocalState)>)> {
            let find = |(id, config, status): (DatabaseId, DatabaseConfig, Arc<DatabaseStatus>)| {
                let found = trust.then(|| rest::find(&config, boot_id)).flatten();
                if let Some((parked, _)) = &found {
                    watcher.park(id, &config.path, parked.mark);
                    drill::remember(&status);
                }
                (id, found)
            };
            wanted.into_iter().map(find).collect()
        };
        let looked = tokio::task::spawn_blocking(look).await.expect("looking does not panic");
        for (id, found) in looked {
            match found {
                Some((parked, state)) => self.note_still_parked(id, &parked, &state),
                None => self.to_open.push_back(id),
            }
            self.use_lease(id);
        }
    }

    /// Lets a database that is still parked use its lease. The first one is opened, and asks everything: it waits for another process that
    /// has the lease, and tells it, or what is wrong.
    fn use_lease(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get_mut(&id).filter(|m| matches!(m.stage, Stage::Parked)) else { return };
        let got = self.leases.get(&member.source.config(), &member.status);
        if got.is_ok_and(|got| !got.is_first || got.handle.is_alone()) {
            return;
        }
        member.trust = false;
        self.watcher.forget(id);
        self.wake(id);
    }

    fn note_still_parked(&mut self, id: DatabaseId, parked: &Parked, state: &LocalState) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.stage = Stage::Parked;
        member.trust = true;
        member.status.update(|f| {
            f.lineage = Some(state.lineage);
            f.epoch = Some(state.epoch);
            f.local = state.pos;
            f.durable = state.durable;
            f.page_size = state.page_size;
            f.page_count = state.commit;
            f.parked = true;
        });
        member.status.set_state(State::Replicating);
        if parked.history_due.is_some() {
            *member.looked.lock().unwrap_or_else(PoisonError::into_inner) = Looked::unfinished();
            self.plan_history(id);
        }
        self.plan_drill(id);
    }

    fn add(&mut self, source: Source) -> DatabaseId {
        let config = source.config();
        let id = self.next_id;
        self.next_id += 1;
        let status = self.board.add(config.path, config.meta_path, config.store);
        self.by_path.insert(Arc::clone(&status.path), id);
        self.serve(&source, &status);
        self.folders.note_added(&status.path);
        let past = self.past_of(&source.config());
        let member = Box::new(Member {
            source,
            status,
            stage: Stage::InLine,
            looked: Arc::default(),
            is_leaving: false,
            is_added: false,
            restart: None,
            take_snapshot: false,
            syncs: Vec::new(),
            trust: false,
            error: None,
            failures: ends::Failures::default(),
            past,
        });
        self.members.insert(id, member);
        id
    }

    /// Until it is time to stop, or until there is nothing left to hope for.
    async fn supervise(&mut self) {
        let mut stop = self.asked_to_stop.clone();
        while !self.is_hopeless() && !*self.stop.borrow() {
            self.add_awaited().await;
            let has_room = self.awake < self.awake_max;
            let (to_wake, to_open) = (has_room && !self.to_wake.is_empty(), has_room && !self.to_open.is_empty());
            let memory_due = (self.gave_back + GIVE_BACK_GAP).into();
            tokio::select! {
                biased;
                () = is_set(&mut stop) => {
                    let _ = self.ender.send(true);
                }
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.note_ended(ended),
                Some(noticed) = self.noticed.recv() => self.note(noticed),
                () = self.board.pulse.asked() => self.board.pulse.answer(),
                permit = self.waking.turn(to_wake) => self.open_next(true, permit),
                permit = self.opening.turn(to_open) => self.open_next(false, permit),
                Some(command) = self.commands.recv(), if !self.folders.is_searching() => self.obey(command).await,
                found = self.folders.next() => self.take_found(found).await,
                due = self.histories.next() => self.look_after(due),
                due = self.drills.next() => self.drill(due),
                due = self.retries.next() => if let Due::Begin(id) = due { self.wake(id) },
                () = tokio::time::sleep_until(memory_due), if self.has_memory_to_give() => self.give_memory_back(),
            }
        }
    }

    fn is_hopeless(&self) -> bool {
        let mut members = self.members.values();
        self.folders.is_empty() && members.len() > 0 && members.all(|m| matches!(m.stage, Stage::Failed))
    }

    fn note(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Changed(id) => self.wake(id),
            Noticed::Name(path) => self.folders.note_name(&path),
            Noticed::Lost => self.folders.note_lost(),
        }
    }

    /// Puts a database that the watcher has let go in line.
    fn wake(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !matches!(member.stage, Stage::Parked | Stage::Failed) {
            return;
        }
        if let (Stage::Failed, Some(pause)) = (&member.stage, member.failures.pause_left()) {
            self.retries.plan(id, pause);
            return;
        }
        // Who tells of a change has let go of it; who comes from elsewhere has not, or it was taken in again meanwhile.
        self.watcher.forget(id);
        self.retries.forget(id);
        member.status.update(|f| f.parked = false);
        member.stage = Stage::InLine;
        self.drills.interrupt(id);
        if self.histories.interrupt(id) {
            // It comes back when its history is left alone.
            return;
        }
        self.to_wake.push_back(id);
    }

    fn open_next(&mut self, is_waking: bool, permit: OwnedSemaphorePermit) {
        let line = if is_waking { &mut self.to_wake } else { &mut self.to_open };
        let Some(id) = line.pop_front() else { return };
        self.open(id, Some(permit));
    }

    fn open(&mut self, id: DatabaseId, opening: Option<OwnedSemaphorePermit>) {
        let Some(member) = self.members.get_mut(&id).filter(|m| matches!(m.stage, Stage::InLine)) else { return };
        let is_ending = *self.stop.borrow();
        let is_last = is_ending || member.is_leaving;
        let control = Arc::new(Control::new(is_last, std::mem::take(&mut member.syncs)));
        if is_ending {
            control.stop_with_process();
        }
        let (take_snapshot, trust) = (std::mem::take(&mut member.take_snapshot), std::mem::take(&mut member.trust));
        let replication = self.replication(id, &control).map(|replication| Replication {
            is_last,
            take_snapshot,
            trust,
            opening,
            ..replication
        });
        let Some(member) = self.members.get_mut(&id) else { return };
        member.stage = Stage::Awake(Arc::clone(&control));
        member.error = None;
        self.awake += 1;
        if self.awake == self.awake_max {
            tracing::warn!("{} databases are awake, all that the limits of the system allow: others wait", self.awake);
        }
        let life = self.tasks.spawn(async move {
            let mut replication = replication.map_err(ReplicateError::Store)?;
            // Boxed: a future is as large as the largest that it may hold.
            let ended = Box::pin(replication.run()).await;
            // At the end others may still need a lease that is shared: it is given up after the last of them.
            let is_needed = control.is_process_ending() && replication.config.lease.store.is_some();
            if !control.keeps_lease(&ended) && !is_needed {
                replication.leave().await;
            }
            ended
        });
        self.lives.insert(life.id(), id);
        self.note_awake();
    }

    /// Lets others follow the database, if that is wanted.
    fn serve(&self, source: &Source, status: &DatabaseStatus) {
        if self.serves {
            let name = match source {
                Source::Named(config) => config.path.file_name().and_then(|name| name.to_str()),
                Source::Found(_, name) => Some(&**name),
            };
            match name.and_then(|name| Served::new(name, source.config())) {
                Some(served) => status.feed.serve(served),
                None => {
                    tracing::warn!(database = %status.path.display(), "not served: its name is too long, or no text")
                }
            }
        }
    }

    /// What works on a database, at rest as it is.
    fn replication(&mut self, id: DatabaseId, control: &Arc<Control>) -> Result<Replication, String> {
        let source = self.members.get(&id).ok_or("it is gone")?.source.clone();
        let base = self.base_of(&source)?;
        let member = self.members.get(&id).ok_or("it is gone")?;
        self.serve(&source, &member.status);
        let commons = Commons {
            stop: control.stopped(),
            commits: self.commits.clone(),
            stop_timeout: self.time_to_stop(),
            parking: Arc::clone(&self.parking),
            uploads: Arc::clone(&self.uploads),
            leases: Arc::clone(&self.leases),
        };
        Ok(Replication {
            config: source.config(),
            status: Arc::clone(&member.status),
            commons,
            base,
            looked: Arc::clone(&member.looked),
            nonces: Vec::new(),
            past: Arc::clone(&member.past),
            is_last: false,
            control: Arc::clone(control),
            take_snapshot: false,
            trust: false,
            is_light: false,
            opening: None,
        })
    }

    /// The store in which the database of this source has a prefix, where it shares one.
    fn base_of(&mut self, source: &Source) -> Result<Option<Below>, String> {
        match source {
            Source::Named(_) => Ok(None),
            Source::Found(folder, path) => Ok(Some((self.folders.base(folder)?, path.to_string()))),
        }
    }

    fn note_awake(&self) {
        let patience = park::patience(&self.parking.policy, self.members.len(), self.awake);
        self.parking.set(patience);
    }
}

/// Returns when it is true.
async fn is_set(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Source {
    fn config(&self) -> DatabaseConfig {
        match self {
            Self::Named(config) => DatabaseConfig::clone(config),
            Self::Found(folder, path) => folder.database(path),
        }
    }
}

/// How many databases may be awake: as many as there are descriptors for, after asking for all that we may have.
fn awake_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = if raised.is_ok() { limit.maximum } else { limit.current };
    let limit = limit.map_or(AWAKE_MAX, |n| {
        usize::try_from(n.saturating_sub(DESCRIPTORS_REST) / DESCRIPTORS_EACH).unwrap_or(AWAKE_MAX)
    });
    limit.clamp(1, AWAKE_MAX)
}
