//! Keeps plain files up to date with the databases of a node.
//!
//! One connection, made again when it is lost, with pauses that grow; one task for each database, so that a file whose readers do not let
//! go holds up no other.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rhyolite_format::stream::Frame;
use rhyolite_store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

pub use super::live::Reached;
use super::live::{Live, Member, age_ms};
use super::source::Source;
use super::trails::Trails;
use super::{FollowOptions, ReplicaJournal};
use crate::config::default_meta_path;
use crate::mount::MountHandle;
use crate::observe::events::Events;
use crate::progress::Silent;
use crate::restore::{Existing, RestoreError};
use crate::stream::client::{Link, LinkError};
use crate::stream::remote_store::RemoteStore;

/// Pauses before a lost connection is made again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Databases of one node that are followed; it gets no further stream for more.
const DATABASES_MAX: usize = 32_000;
/// Names that SQLite or we give to what lies beside a database.
const BESIDE: [&str; 5] = ["-wal", "-shm", "-journal", "-pos", "-pos.new"];
/// Names of databases that are shown to somebody who has asked for another.
const SHOWN_MAX: usize = 20;
/// What is in all our other names.
const OURS: &str = "-rhyolite-";

/// What to follow, and how.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Which node, and how it is reached.
    pub source: Source,
    /// The one database that is followed; all of the node otherwise.
    pub database: Option<String>,
    /// The file, or the folder, to keep up to date.
    pub into: PathBuf,
    /// What to do with files that exist and are not followed yet.
    pub existing: Existing,
    /// How files are changed.
    pub journal: ReplicaJournal,
    /// The mount on which the files lie.
    pub mount: Option<MountHandle>,
    /// Where state folders are, in the same tree as the files; beside each file otherwise.
    pub meta_root: Option<PathBuf>,
    /// How long readers are waited for before they get another turn.
    pub lock_timeout: Duration,
    /// How long nothing may be heard before the connection is given up.
    pub silence_max: Duration,
    /// Threads that unpack in a restore.
    pub threads: usize,
    /// This is a node of a cluster: files that are not what the history has are brought back to it, their state folders lie beside them, and what they
    /// pass is noted here.
    pub trails: Option<Arc<Trails>>,
    /// Where others reach it then; empty where they cannot.
    pub own_address: String,
    /// Who wants to know what files of a node come to.
    pub events: Arc<Events>,
}

/// What is told of the following.
#[derive(Debug)]
pub enum Event {
    /// There is a connection.
    Connected,
    /// There is none, for this reason; it is tried again.
    Lost(String),
    /// The node is about to give its role up.
    Leaving,
    /// A database is followed into this file from here on. The receiver says how far it is.
    Following(String, PathBuf, watch::Receiver<Option<Reached>>),
    /// A database is not followed any more.
    Failed(String, String),
}

/// Why following has ended.
#[derive(Debug)]
pub enum NodeError {
    /// The node refuses everything.
    Refused(String),
    /// The node does not serve this database; it serves these.
    Unknown(String, Vec<String>),
    /// A database cannot be followed, and there is no other.
    Database(String, RestoreError),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) => f.write_str(text),
            Self::Unknown(name, known) if known.is_empty() => write!(f, "no database {name:?} is served: none is"),
            Self::Unknown(name, known) => write!(f, "no database {name:?} is served: there is {}", known.join(", ")),
            Self::Database(name, error) => write!(f, "{name}: {error}"),
        }
    }
}

impl std::error::Error for NodeError {}

/// How a session on one connection has ended.
enum Session {
    Stopped,
    Lost(String),
    Failed(NodeError),
}

/// Follows until `stop` turns true.
///
/// # Errors
/// Nothing can be followed any more. With several databases, one that cannot be is told as an event, and the others are followed.
pub async fn follow_node(
    options: NodeOptions,
    events: mpsc::Sender<Event>,
    stop: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    let (links, _) = watch::channel(None);
    let (halt, _) = watch::channel(false);
    let (names, ids, tasks, failed) = (HashMap::new(), HashMap::new(), JoinSet::new(), None);
    let mut node = Node { options, events, stop, links, halt, names, tasks, ids, failed };
    let ended = node.run().await;
    // Those that are in the middle of a batch finish it; those that wait for an answer do not get it.
    node.halt.send_replace(true);
    let link = node.links.send_replace(None);
    if let Some(link) = link.filter(|_| !node.options.source.is_accepted()) {
        link.close();
    }
    while let Some(task) = node.tasks.join_next_with_id().await {
        node.note_task(task).await;
    }
    match (ended, node.failed) {
        (Err(error), _) | (Ok(()), Some(error)) => Err(error),
        (Ok(()), None) => Ok(()),
    }
}

struct Node {
    options: NodeOptions,
    events: mpsc::Sender<Event>,
    stop: watch::Receiver<bool>,
    links: watch::Sender<Option<Link>>,
    /// Ends the tasks.
    halt: watch::Sender<bool>,
    /// Databases that are followed, or were until they failed.
    names: HashMap<String, PathBuf>,
    tasks: JoinSet<Result<(), RestoreError>>,
    ids: HashMap<Id, String>,
    /// The first that failed.
    failed: Option<NodeError>,
}

impl Node {
    async fn run(&mut self) -> Result<(), NodeError> {
        let mut pause = RECONNECT.0;
        let mut told = None;
        loop {
            let mut stop = self.stop.clone();
            let NodeOptions { source, silence_max, .. } = &self.options;
            let connected = tokio::select! {
                biased;
                () = is_told(&mut stop) => return Ok(()),
                connected = source.connect(*silence_max) => connected,
            };
            let lost = match connected {
                Ok(link) => match self.session(&link, &mut pause).await {
                    Session::Stopped => return Ok(()),
                    Session::Failed(error) => return Err(error),
                    Session::Lost(text) => {
                        link.close();
                        told = None;
                        text
                    }
                },
                Err(error @ LinkError::NotLoopback(_)) => return Err(NodeError::Refused(error.to_string())),
                Err(error) => error.to_string(),
            };
            self.links.send_replace(None);
            if told.as_ref() != Some(&lost) {
                let again =
                    if self.options.source.is_accepted() { "waiting for another connection" } else { "trying again" };
                tracing::warn!("{}: {lost}; {again}", self.options.source);
                self.tell(Event::Lost(lost.clone())).await;
                told = Some(lost);
            }
            if tokio::time::timeout(pause, is_told(&mut stop)).await.is_ok() {
                return Ok(());
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Listens to what the node serves for as long as it says anything.
    async fn session(&mut self, link: &Link, pause: &mut Duration) -> Session {
        let silence = self.options.silence_max;
        let silent = || Session::Lost(format!("nothing was heard for {silence:?}"));
        let mut stop = self.stop.clone();
        // A node that is frozen takes the connection, and does not answer.
        let asked = tokio::select! {
            biased;
            () = is_told(&mut stop) => return Session::Stopped,
            asked = tokio::time::timeout(silence, link.frames("/v1/databases")) => asked,
        };
        let mut frames = match asked {
            Ok(Ok(frames)) => frames,
            Ok(Err(LinkError::Refused { status: StatusCode::UNAUTHORIZED, text, .. })) => {
                return Session::Failed(NodeError::Refused(text));
            }
            Ok(Err(error)) => return Session::Lost(error.to_string()),
            Err(_) => return silent(),
        };
        self.links.send_replace(Some(link.clone()));
        let (mut served, mut is_connected) = (Vec::<String>::new(), false);
        let mut heard = tokio::time::Instant::now();
        loop {
            let frame = tokio::select! {
                biased;
                () = is_told(&mut stop) => return Session::Stopped,
                Some(task) = self.tasks.join_next_with_id() => {
                    self.note_task(task).await;
                    match self.take_failure() {
                        Some(error) => return Session::Failed(error),
                        None => continue,
                    }
                }
                frame = tokio::time::timeout_at(heard + silence, frames.next()) => match frame {
                    Ok(Ok(Some((frame, _)))) => frame,
                    Ok(Ok(None)) => return Session::Lost("the node has closed the connection".to_owned()),
                    Ok(Err(error)) => return Session::Lost(error.to_string()),
                    Err(_) => return silent(),
                },
            };
            heard = tokio::time::Instant::now();
            match frame {
                Frame::Database(database) => {
                    if served.len() < SHOWN_MAX && !served.contains(&database.name) {
                        served.push(database.name.clone());
                    }
                    self.follow(database.name).await;
                }
                Frame::Heartbeat { starting, .. } => {
                    *pause = RECONNECT.0;
                    if let Some(error) = self.unknown(&served).filter(|_| starting == 0) {
                        return Session::Failed(error);
                    }
                    if !std::mem::replace(&mut is_connected, true) {
                        self.tell(Event::Connected).await;
                    }
                }
                Frame::Leaving => self.tell(Event::Leaving).await,
                Frame::Gone { name } => tracing::debug!(database = %name, "is not served any more"),
                Frame::Transactions(_) | Frame::Merged(_) | Frame::End(_) | Frame::Reached(_) => {
                    return Session::Lost("frames of another stream".to_owned());
                }
            }
        }
    }

    /// The error when the one database that is wanted is not served, and never was.
    fn unknown(&self, served: &[String]) -> Option<NodeError> {
        let wanted = self.options.database.clone()?;
        self.names.is_empty().then(|| NodeError::Unknown(wanted, served.to_vec()))
    }

    /// Nothing is left to follow.
    fn take_failure(&mut self) -> Option<NodeError> {
        let is_over = self.options.database.is_some() || self.tasks.is_empty();
        if is_over { self.failed.take() } else { None }
    }

    async fn tell(&self, event: Event) {
        // Whoever listens does so until the end.
        let _ = self.events.send(event).await;
    }

    async fn note_task(&mut self, task: Result<(Id, Result<(), RestoreError>), JoinError>) {
        let (id, result) = task.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        let name = self.ids.remove(&id).expect("every task is noted when it begins");
        if let Err(error) = result {
            tracing::error!(database = %name, "not followed any more: {error}");
            self.tell(Event::Failed(name.clone(), error.to_string())).await;
            self.failed.get_or_insert(NodeError::Database(name, error));
        }
    }

    /// Begins to follow a database, if it is wanted and not followed yet.
    async fn follow(&mut self, name: String) {
        let is_wanted = self.options.database.as_ref().is_none_or(|wanted| *wanted == name);
        if !is_wanted || self.names.contains_key(&name) {
            return;
        }
        if self.names.len() >= DATABASES_MAX {
            return tracing::error!("not followed: {name:?}, for there are more than {DATABASES_MAX} databases");
        }
        let output = match self.place(&name) {
            Ok(output) => output,
            Err(text) => {
                self.names.insert(name.clone(), PathBuf::new());
                tracing::error!(database = %name, "not followed: {text}");
                return self.tell(Event::Failed(name, text)).await;
            }
        };
        self.names.insert(name.clone(), output.clone());
        let node = self.options.source.to_string();
        let store = RemoteStore { links: self.links.subscribe(), database: name.clone(), node };
        let (reached, receiver) = watch::channel(None);
        let member = self.options.trails.as_ref().map(|trails| {
            let root = self.options.meta_root.as_ref();
            let meta_path = default_meta_path(&root.map_or_else(|| output.clone(), |root| root.join(&name)));
            let (trails, events) = (Arc::clone(trails), Arc::clone(&self.options.events));
            Member { meta_path, trails, events, address: self.options.own_address.clone() }
        });
        let live = Live {
            member,
            options: FollowOptions {
                store: Arc::new(store) as Arc<dyn Store>,
                output: output.clone(),
                existing: self.options.existing,
                journal: self.options.journal,
                mount: self.options.mount.clone(),
                interval: Duration::ZERO,
                lock_timeout: self.options.lock_timeout,
                may_be_ahead: true,
                is_judged: self.options.trails.is_some(),
                threads: self.options.threads,
                progress: Arc::new(Silent),
            },
            database: name.clone(),
            links: self.links.subscribe(),
            reached,
            stop: self.halt.subscribe(),
        };
        let task = self.tasks.spawn(Box::pin(live.run()));
        self.ids.insert(task.id(), name.clone());
        self.tell(Event::Following(name, output, receiver)).await;
    }

    /// Where a database goes, with the folders above it made.
    fn place(&self, name: &str) -> Result<PathBuf, String> {
        let into = &self.options.into;
        let output = if self.options.database.is_some() && !into.is_dir() {
            into.clone()
        } else if is_plain(name) {
            into.join(if self.options.database.is_some() { last_part(name) } else { Path::new(name) })
        } else {
            return Err("its name is no path within a folder, or may be a file of another database".to_owned());
        };
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let made = folder.map_or(Ok(()), std::fs::create_dir_all);
        made.map_err(|e| format!("make the folder of {}: {}", output.display(), crate::config::io_text(&e)))?;
        Ok(output)
    }
}

/// Ends when it is to stop, or nobody is left who could say so.
async fn is_told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn last_part(name: &str) -> &Path {
    Path::new(name.rsplit('/').next().unwrap_or(name))
}

/// Whether a name stays within the folder that it is put into, and cannot be taken for what lies beside another database.
fn is_plain(name: &str) -> bool {
    let is_beside = |part: &str| part.contains(OURS) || BESIDE.iter().any(|suffix| part.ends_with(suffix));
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control) && !is_beside(part);
    name.split('/').all(is_part)
}

impl Reached {
    /// Age of the last commit in milliseconds, by this machine's clock; `None` when its time did not come along.
    pub fn age_ms(&self) -> Option<i64> {
        age_ms(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["app.db", "a/b.db", "a b.db"] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../x.db",
            "a/../../x.db",
            "./x.db",
            "x.db-wal",
            "x.db-pos",
            "..",
            "/",
            "a//b",
            "a\nb",
            "a\0",
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
        for name in ["x.db-pos.new", "x.db-rhyolite-follow.new", "x.db-rhyolite-restoring", "x.db-wal/y.db"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert_eq!(last_part("a/b.db"), Path::new("b.db"));
    }
}
