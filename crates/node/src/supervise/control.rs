//! What others may ask of the supervisor, and how it reaches a database that is awake.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::Pos;
use tokio::sync::{oneshot, watch};

use super::reload::Reloaded;
use super::{DatabaseId, Source, Stage, Supervisor};
use crate::capture::thread::{SyncRequest, ToCapture, Upload};
use crate::capture::watch::Wake;
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::replicate::{Outcome, ReplicateError};
use crate::status::{DatabaseStatus, State};

/// A request to the supervisor, with the way back.
#[derive(Debug)]
pub enum Command {
    /// Replicate one database more.
    Add(Box<DatabaseConfig>, oneshot::Sender<Result<(), String>>),
    /// Upload what is left of a database, and replicate it no more.
    Remove(PathBuf, oneshot::Sender<Result<(), String>>),
    /// Capture what was committed so far, and upload it then.
    Sync(PathBuf, Upload, oneshot::Sender<Result<Synced, String>>),
    /// Replicate these from now on.
    Reload(Box<(Vec<DatabaseConfig>, Vec<FolderConfig>)>, oneshot::Sender<Reloaded>),
}

/// A sync that was asked for.
#[derive(Debug)]
pub struct Synced {
    /// The database.
    pub status: Arc<DatabaseStatus>,
    /// Gets the position after everything that was committed before the request, once that is captured.
    pub captured: oneshot::Receiver<Pos>,
}

/// How a database that is awake is reached.
#[derive(Debug)]
pub(crate) struct Control {
    stop: watch::Sender<bool>,
    /// When that turned true.
    stopped_at: OnceLock<Instant>,
    /// Not only this database is to end.
    is_process_ending: AtomicBool,
    /// It goes on under the same lease after its end.
    keeps_lease: AtomicBool,
    line: Mutex<Line>,
}

/// The way to the capture thread, or what waits for one.
#[derive(Debug)]
enum Line {
    Waiting(Vec<SyncRequest>),
    Open(Sender<ToCapture>, Wake),
}

impl Control {
    pub(crate) fn new(is_stopped: bool, syncs: Vec<SyncRequest>) -> Self {
        let control = Self {
            stop: watch::Sender::new(false),
            stopped_at: OnceLock::new(),
            is_process_ending: AtomicBool::new(false),
            keeps_lease: AtomicBool::new(false),
            line: Mutex::new(Line::Waiting(syncs)),
        };
        if is_stopped {
            control.stop();
        }
        control
    }

    /// Turns true when the database is to end.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub(super) fn stop(&self) {
        self.stopped_at.get_or_init(Instant::now);
        self.stop.send_replace(true);
    }

    /// Ends this life because the process ends: what there is to capture is captured by it, or never.
    pub(super) fn stop_with_process(&self) {
        self.is_process_ending.store(true, Ordering::Release);
        self.stop();
    }

    /// Whether it ends because the process does.
    pub(crate) fn is_process_ending(&self) -> bool {
        self.is_process_ending.load(Ordering::Acquire)
    }

    /// How long it has been told to end.
    pub(crate) fn stopped_for(&self) -> Duration {
        self.stopped_at.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Ends this life, as the next has other settings, perhaps those for another lease.
    pub(super) fn restart(&self, keeps_lease: bool) {
        self.keeps_lease.store(keeps_lease, Ordering::Release);
        self.stop();
    }

    /// Whether the database is still written under its lease after this end.
    pub(super) fn keeps_lease(&self, ended: &Result<Outcome, ReplicateError>) -> bool {
        matches!(ended, Ok(Outcome::Parked(_))) || self.keeps_lease.load(Ordering::Acquire)
    }

    /// From here on requests go to this capture thread; those that waited go first.
    pub(crate) fn attach(&self, line: Sender<ToCapture>, wake: Wake) {
        let before = std::mem::replace(&mut *self.lock(), Line::Open(line, wake));
        if let Line::Waiting(syncs) = before {
            syncs.into_iter().for_each(|sync| self.sync(sync));
        }
    }

    /// The capture thread has ended.
    pub(crate) fn detach(&self) {
        *self.lock() = Line::Waiting(Vec::new());
    }

    pub(super) fn sync(&self, sync: SyncRequest) {
        match &mut *self.lock() {
            Line::Waiting(syncs) => {
                // Those who asked may have lost patience.
                syncs.retain(|sync| !sync.captured.is_closed());
                syncs.push(sync);
            }
            Line::Open(line, wake) => {
                // A thread that has ended drops the message, which tells the one who waits.
                let _ = line.send(ToCapture::Sync(sync));
                wake.ring();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor {
    pub(super) async fn obey(&mut self, command: Command) {
        // Whoever has asked may be gone: then nobody reads the answer.
        match command {
            Command::Add(config, reply) => drop(reply.send(self.add_named(*config).await)),
            Command::Remove(path, reply) => drop(reply.send(self.remove_path(&path))),
            Command::Sync(path, upload, reply) => drop(reply.send(self.sync(&path, upload))),
            Command::Reload(wanted, reply) => drop(reply.send(self.reload(wanted.0, wanted.1).await)),
        }
    }

    async fn add_named(&mut self, config: DatabaseConfig) -> Result<(), String> {
        self.check_distinct(&config)?;
        let id = self.add(Source::Named(Arc::new(config)));
        if let Some(member) = self.members.get_mut(&id) {
            member.is_added = true;
        }
        self.place(vec![id]).await;
        Ok(())
    }

    /// Two databases with one path or one store would destroy each other's history.
    pub(super) fn check_distinct(&self, config: &DatabaseConfig) -> Result<(), String> {
        if let Some(id) = self.by_path.get(&*config.path) {
            let is_leaving = self.members.get(id).is_some_and(|m| m.is_leaving);
            let why = if is_leaving { "still being removed: try again in a moment" } else { "replicated already" };
            return Err(format!("{} is {why}", config.path.display()));
        }
        let mut others = self.members.values().map(|m| m.source.config());
        match others.find(|other| other.store == config.store || other.meta_path == config.meta_path) {
            Some(other) => Err(format!("store or state folder is that of {} already", other.path.display())),
            None => Ok(()),
        }
    }

    fn id_of(&self, path: &Path) -> Result<DatabaseId, String> {
        let id = self.by_path.get(path).copied();
        id.ok_or_else(|| format!("{} is not replicated here", path.display()))
    }

    fn remove_path(&mut self, path: &Path) -> Result<(), String> {
        let id = self.id_of(path)?;
        if let Some(Source::Found(folder, _)) = self.members.get(&id).map(|m| &m.source) {
            let dir = folder.dir.display();
            return Err(format!("{} was found in {dir}: exclude it in the configuration", path.display()));
        }
        self.remove(id);
        Ok(())
    }

    fn sync(&mut self, path: &Path, upload: Upload) -> Result<Synced, String> {
        let id = self.id_of(path)?;
        let member = self.members.get_mut(&id).expect("the path leads to a member");
        let (captured_sender, captured) = oneshot::channel();
        let sync = SyncRequest { captured: captured_sender, upload };
        let status = Arc::clone(&member.status);
        match &member.stage {
            Stage::Awake(control) => control.sync(sync),
            Stage::InLine => {
                member.syncs.retain(|sync| !sync.captured.is_closed());
                member.syncs.push(sync);
            }
            Stage::Failed => {
                let figures = member.status.figures();
                let reason = figures.state.reason().unwrap_or("it failed").to_owned();
                return Err(format!("{} is not replicated: {reason}", path.display()));
            }
            Stage::Parked => match member.status.figures() {
                figures if matches!(figures.state, State::Waiting { .. }) => {
                    let reason = figures.state.reason().unwrap_or_default().to_owned();
                    return Err(format!("{} is not replicated yet: {reason}", path.display()));
                }
                figures if self.watcher.look_now(id) => match figures.local {
                    // Everything that was captured is durable, and nothing was written since.
                    Some(pos) => drop(sync.captured.send(pos)),
                    None => return Err(format!("{} is not replicated yet", path.display())),
                },
                _ => {
                    member.syncs.push(sync);
                    self.wake(id);
                }
            },
        }
        Ok(Synced { status, captured })
    }
}
