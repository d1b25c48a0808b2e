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
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::Pos;
use rhyolite_format::state::LocalState;
use rhyolite_format::state::parked::{DatabaseMark, Parked};
use rhyolite_logic::park;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::capture::commits::CommitLines;
use crate::capture::restart;
use crate::capture::thread::Parking;
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::drill;
use crate::keep::Looked;
use crate::lease::{self, LeasePool};
use crate::memory;
use crate::park as rest;
use crate::park::watcher::{DatabaseId, Noticed, Watcher};
use crate::replicate::{Below, Commons, Outcome, Past, RELEASE_WAIT, ReplicateError, Replication};
use crate::status::{DatabaseStatus, State, StatusBoard};
use chores::Chores;
use control::{Command, Control};

mod chores;
pub mod control;
mod drills;
mod folders;
mod history;
pub mod reload;
mod search;

/// Databases that are being opened at a time: at a start, and of those that were written to.
const OPENING_MAX: usize = 32;
const WAKING_MAX: usize = 64;
/// Writes to stores that are on their way at a time.
const UPLOADS_MAX: usize = 32;
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
    let awake_max = awake_max();
    let (never, no_commands) = mpsc::channel(1);
    let (ender, ending) = watch::channel(false);
    let mut supervisor = Supervisor {
        board,
        asked_to_stop: stop,
        ender,
        stop: ending,
        commits: options.commits,
        stop_timeout: options.stop_timeout,
        watcher,
        noticed,
        commands: commands.unwrap_or(no_commands),
        members: HashMap::new(),
        by_path: HashMap::new(),
        next_id: 0,
        to_open: VecDeque::new(),
        to_wake: VecDeque::new(),
        opening: Arc::new(Semaphore::new(OPENING_MAX)),
        waking: Arc::new(Semaphore::new(WAKING_MAX)),
        uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
        leases: Arc::default(),
        parking: Arc::new(Parking::new(options.parking)),
        awake: 0,
        awake_max,
        parked_since: 0,
        gave_back: Instant::now(),
        tasks: JoinSet::new(),
        histories: Chores::default(),
        drills: Chores::default(),
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

/// The end of a task: which database, what it has become, and what was done under its rights.
type Life = (DatabaseId, Result<Outcome, ReplicateError>, Option<Past>);

/// One database.
#[derive(Debug)]
struct Member {
    source: Source,
    status: Arc<DatabaseStatus>,
    stage: Stage,
    looked: Arc<Mutex<Looked>>,
    /// It is to go as soon as its task has ended, and those who wait are then told.
    is_leaving: bool,
    /// What its life was started with, where that has changed since.
    restart: Option<Box<DatabaseConfig>>,
    /// The store cannot restore its end any more: a snapshot is to be taken.
    take_snapshot: bool,
    /// Those who wait for it to be captured.
    syncs: Vec<oneshot::Sender<Pos>>,
    /// Its state folder may be believed when it is opened.
    trust: bool,
    /// Why it is given up.
    error: Option<ReplicateError>,
    /// What this process has done under its rights so far.
    past: Past,
}

struct Supervisor {
    board: Arc<StatusBoard>,
    /// The process is asked to end.
    asked_to_stop: watch::Receiver<bool>,
    /// Turns `stop` true: because of that, or because another process has a lease without which this one is not to run.
    ender: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
    commits: Option<Arc<CommitLines>>,
    stop_timeout: Duration,
    watcher: Arc<Watcher>,
    noticed: mpsc::UnboundedReceiver<Noticed>,
    commands: mpsc::Receiver<Command>,
    members: HashMap<DatabaseId, Member>,
    by_path: HashMap<Arc<Path>, DatabaseId>,
    next_id: DatabaseId,
    to_open: VecDeque<DatabaseId>,
    to_wake: VecDeque<DatabaseId>,
    opening: Arc<Semaphore>,
    waking: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    leases: Arc<LeasePool>,
    parking: Arc<Parking>,
    awake: usize,
    awake_max: usize,
    /// Databases that were parked since memory was given back to the system, and when that was.
    parked_since: usize,
    gave_back: Instant,
    tasks: JoinSet<Life>,
    /// Looks at histories: whether only a snapshot helps, and what was done under rights.
    histories: Chores<(bool, Past)>,
    drills: Chores<()>,
    folders: folders::Folders,
    /// Mistakes of ours that belong to no database.
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
        let member = Member {
            source,
            status,
            stage: Stage::InLine,
            looked: Arc::default(),
            is_leaving: false,
            restart: None,
            take_snapshot: false,
            syncs: Vec::new(),
            trust: false,
            error: None,
            past: Past::default(),
        };
        self.members.insert(id, member);
        id
    }

    /// Until it is time to stop, or until there is nothing left to hope for.
    async fn supervise(&mut self) {
        let mut stop = self.asked_to_stop.clone();
        while !self.is_hopeless() && !*self.stop.borrow() {
            let (opening, waking) = (Arc::clone(&self.opening), Arc::clone(&self.waking));
            let has_room = self.awake < self.awake_max;
            let memory_due = (self.gave_back + GIVE_BACK_GAP).into();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {
                    let _ = self.ender.send(true);
                }
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.note_ended(ended),
                Some(noticed) = self.noticed.recv() => self.note(noticed),
                Ok(permit) = waking.acquire_owned(), if has_room && !self.to_wake.is_empty() => self.open_next(true, permit),
                Ok(permit) = opening.acquire_owned(), if has_room && !self.to_open.is_empty() => self.open_next(false, permit),
                Some(command) = self.commands.recv(), if !self.folders.is_searching() => self.obey(command).await,
                found = self.folders.next() => self.take_found(found).await,
                due = self.histories.next() => self.look_after(due),
                due = self.drills.next() => self.drill(due),
                () = tokio::time::sleep_until(memory_due), if self.has_memory_to_give() => self.give_memory_back(),
            }
        }
    }

    fn is_hopeless(&self) -> bool {
        let given_up = |m: &Member| matches!(m.stage, Stage::Failed);
        !self.members.is_empty() && self.folders.is_empty() && self.members.values().all(given_up)
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
        self.open(id, Some(permit), self.stop.clone());
    }

    fn open(&mut self, id: DatabaseId, opening: Option<OwnedSemaphorePermit>, process_stop: watch::Receiver<bool>) {
        let Some(member) = self.members.get_mut(&id).filter(|m| matches!(m.stage, Stage::InLine)) else { return };
        let is_last = *process_stop.borrow();
        let control = Arc::new(Control::new(is_last, std::mem::take(&mut member.syncs)));
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
        self.tasks.spawn(async move {
            match replication {
                Ok(mut replication) => {
                    // Boxed: a future is as large as the largest that it may hold.
                    let ended = Box::pin(replication.run()).await;
                    if !control.keeps_lease(&ended) {
                        replication.leave().await;
                    }
                    (id, ended, Some(replication.past))
                }
                Err(text) => (id, Err(ReplicateError::Store(text)), None),
            }
        });
        self.note_awake();
    }

    /// What works on a database, at rest as it is.
    fn replication(&mut self, id: DatabaseId, control: &Arc<Control>) -> Result<Replication, String> {
        let source = self.members.get(&id).ok_or("it is gone")?.source.clone();
        let base = self.base_of(&source)?;
        let member = self.members.get(&id).ok_or("it is gone")?;
        let commons = Commons {
            stop: control.stopped(),
            commits: self.commits.clone(),
            stop_timeout: self.stop_timeout,
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
            past: member.past.clone(),
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

    fn note_ended(&mut self, ended: Result<Life, tokio::task::JoinError>) {
        self.awake -= 1;
        self.note_awake();
        let (id, ended, past) = match ended {
            Ok(ended) => ended,
            Err(panic) => {
                // A mistake of ours; the other databases are none the worse for it.
                self.note_panic(&panic);
                return;
            }
        };
        let Some(member) = self.members.get_mut(&id) else { return };
        let restart = member.restart.take();
        if member.is_leaving {
            // Parked in the moment in which it was to end, it has not left its lease.
            let config = restart.map_or_else(|| member.source.config(), |before| *before);
            drop(tokio::spawn(self.leases.leave(&config, &member.status, RELEASE_WAIT)));
            self.remove_now(id, ended.err());
            return;
        }
        // With other settings it is perhaps another store, of which the past says nothing.
        if let Some(past) = past.filter(|_| restart.is_none()) {
            member.past = past;
        }
        if let Some(before) = restart.filter(|_| !*self.stop.borrow()) {
            if !lease::is_same(&before, &member.source.config()) {
                drop(tokio::spawn(self.leases.leave(&before, &member.status, RELEASE_WAIT)));
            }
            member.stage = Stage::InLine;
            self.to_wake.push_back(id);
            return;
        }
        match ended {
            Ok(Outcome::Stopped) => {
                member.status.set_state(State::Stopped);
                member.stage = Stage::Parked;
            }
            Ok(Outcome::Absent(mark)) => self.put_to_rest(id, mark),
            Ok(Outcome::Parked(mark)) => {
                member.status.update(|f| {
                    f.parked = true;
                    f.parkings += 1;
                });
                member.trust = true;
                self.plan_history(id);
                self.plan_drill(id);
                self.put_to_rest(id, mark);
                self.parked_since += 1;
            }
            Err(error) => self.note_failed(id, error),
        }
    }

    /// Whether what parked databases have used should go back to the system: it is of no use to those that stay awake.
    fn has_memory_to_give(&self) -> bool {
        self.parked_since >= PARKED_MAX || (self.parked_since > 0 && self.awake == 0)
    }

    fn give_memory_back(&mut self) {
        self.parked_since = 0;
        self.gave_back = Instant::now();
        // Nobody waits for it.
        drop(tokio::task::spawn_blocking(memory::give_back));
    }

    fn put_to_rest(&mut self, id: DatabaseId, mark: DatabaseMark) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.stage = Stage::Parked;
        self.watcher.park(id, &member.status.path, mark);
    }

    fn note_failed(&mut self, id: DatabaseId, error: ReplicateError) {
        let is_alone = self.members.len() == 1 && self.folders.is_empty();
        let stopping = *self.stop.borrow();
        let Some(member) = self.members.get_mut(&id) else { return };
        // A single database's error ends the process, which says it then.
        if !is_alone {
            tracing::error!(database = %member.status.path.display(), "{error}");
        }
        if matches!(error, ReplicateError::Held(_)) && !is_alone {
            tracing::error!("ending: `lease.if-held` is `exit`");
            let _ = self.ender.send(true);
        }
        member.status.error(error.to_string());
        member.status.set_state(State::Error { text: error.to_string() });
        member.stage = Stage::Failed;
        if !stopping && !is_alone {
            // Another file at its place may do better.
            let path = Arc::clone(&member.status.path);
            self.watcher.park(id, &path, rest::mark(&path).unwrap_or_default());
        }
        member.error = Some(error);
    }

    fn note_panic(&mut self, panic: &tokio::task::JoinError) {
        let error = ReplicateError::Local(format!("internal error, please report it: {panic}"));
        tracing::error!("{error}");
        let lost = self.members.iter().find(|(_, m)| {
            let Stage::Awake(control) = &m.stage else { return false };
            // The task held the only other reference.
            Arc::strong_count(control) == 1
        });
        if let Some(id) = lost.map(|(id, _)| *id) {
            self.note_failed(id, error);
        } else {
            self.lost.push(error);
        }
    }

    /// Takes a database out of replication. What was asked for before it was awake ends at once.
    fn remove(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.is_leaving = true;
        match &member.stage {
            Stage::Awake(control) => control.stop(),
            Stage::InLine | Stage::Parked | Stage::Failed => {
                // What looked after its history is cut off, and leaves nothing by itself.
                drop(tokio::spawn(self.leases.leave(&member.source.config(), &member.status, RELEASE_WAIT)));
                self.watcher.forget(id);
                self.histories.interrupt(id);
                self.drills.interrupt(id);
                self.remove_now(id, None);
            }
        }
    }

    fn remove_now(&mut self, id: DatabaseId, error: Option<ReplicateError>) {
        let Some(member) = self.members.remove(&id) else { return };
        if let Some(error) = error {
            tracing::warn!(database = %member.status.path.display(), "removed: {error}");
        }
        member.status.set_state(State::Stopped);
        self.by_path.remove(&member.status.path);
        self.board.remove(&member.status);
        self.histories.forget(id);
        self.drills.forget(id);
    }

    /// Stops everything that is awake, and wakes once more what was written at the last moment.
    async fn wind_up(mut self) -> Vec<ReplicateError> {
        let stopping = *self.stop.borrow();
        if stopping {
            self.histories.stop();
            self.drills.stop();
            let watcher = Arc::clone(&self.watcher);
            let changed = tokio::task::spawn_blocking(move || watcher.look_at_all()).await;
            changed.expect("looking does not panic").into_iter().for_each(|id| self.wake(id));
            self.members.values().for_each(|m| {
                if let Stage::Awake(control) = &m.stage {
                    control.stop()
                }
            });
        }
        loop {
            // What was never opened is none of a stop's business; what was is.
            while let Ok(noticed) = self.noticed.try_recv() {
                self.note(noticed);
            }
            for id in std::mem::take(&mut self.to_wake).into_iter().filter(|_| stopping) {
                self.open(id, None, self.stop.clone());
            }
            match self.tasks.join_next().await {
                Some(ended) => self.note_ended(ended),
                None if self.to_wake.is_empty() && self.noticed.is_empty() => break,
                None => {}
            }
        }
        self.leases.release_all(RELEASE_WAIT).await;
        let mut errors = self.lost;
        let count = self.members.len();
        for member in self.members.into_values() {
            match member.error {
                Some(error) => errors.push(error),
                None if stopping => member.status.set_state(State::Stopped),
                None => {}
            }
        }
        if stopping && errors.is_empty() {
            let what = if count == 1 { "1 database".to_owned() } else { format!("{count} databases") };
            tracing::info!("stopped: what was captured of {what} is durable");
        }
        errors
    }
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
