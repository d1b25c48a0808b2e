//! A node in the role of a replica: it follows the primary, and knows how far behind it is.
//!
//! How far the primary is, is asked for at an interval, on a connection of its own: a replica that hears nothing has no lag by its own account.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::Txid;
use rhyolite_format::stream::Frame;
use rhyolite_writer::lease_keeper::LeaseHandle;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::CHANGE;
use super::report::ReplicaReport;
use super::witness::Durability;
use crate::config::folder::FolderConfig;
use crate::follow::ReplicaJournal;
use crate::follow::node::{Event, NodeError, NodeOptions, Reached, follow_node};
use crate::follow::source::Source;
use crate::follow::trails::Trails;
use crate::mount::MountHandle;
use crate::observe::events::Events;
use crate::restore::Existing;
use crate::stream::SILENCE_MAX;
use crate::stream::client::LinkError;

/// How long readers of a file are waited for before they get another turn.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the primary is asked how far it is, and longer for so many databases that a thousand take a second.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long its answer may take.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// Events that wait.
const EVENTS_MAX: usize = 256;

/// How far the primary is, by the names of its databases.
type Asked = Arc<Mutex<HashMap<String, Txid>>>;

/// By what journal the files of a replica are changed. On a plain folder what is promoted and brought back has no WAL: readers would hold that up. On a mount
/// readers see a database in the journal mode that it has on the primary, and can be made to let go. A replica that says what it has must still have it after a power cut.
pub(super) fn replica_journal(mount: Option<&MountHandle>, durability: Durability) -> ReplicaJournal {
    match mount {
        None => ReplicaJournal::Rollback,
        Some(_) if durability == Durability::Local => ReplicaJournal::AsLogged,
        Some(_) => ReplicaJournal::AsLoggedSynced,
    }
}

/// What is followed.
pub(super) struct Following {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), NodeError>>,
    events: mpsc::Receiver<Event>,
    asking: AbortHandle,
    asked: Asked,
    /// Whose lease the primary has.
    lease: LeaseHandle,
    /// When it was last begun to look at it often.
    looked: Option<Instant>,
    replicas: BTreeMap<String, Replica>,
}

struct Replica {
    path: PathBuf,
    reached: Option<watch::Receiver<Option<Reached>>>,
    error: Option<String>,
    /// When the file had everything that the primary had said.
    whole_at: Instant,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Following {
    /// Begins to follow. Must be called in a runtime.
    pub(super) fn begin(
        source: Source,
        own_address: String,
        (folder, mount, durability): (&FolderConfig, Option<MountHandle>, Durability),
        (trails, events, lease): (Arc<Trails>, Arc<Events>, LeaseHandle),
    ) -> Self {
        let options = NodeOptions {
            source: source.clone(),
            database: None,
            into: folder.dir.clone(),
            existing: Existing::Refuse,
            journal: replica_journal(mount.as_ref(), durability),
            mount,
            meta_root: folder.meta_path.clone(),
            lock_timeout: LOCK_TIMEOUT,
            silence_max: SILENCE_MAX,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            trails: Some(trails),
            own_address,
            events,
        };
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(follow_node(options, sender, stopped));
        let asked = Asked::default();
        let asking = tokio::spawn(keep_asking(source, Arc::clone(&asked))).abort_handle();
        Self { stop, task, events, asking, asked, lease, looked: None, replicas: BTreeMap::new() }
    }

    /// Tells it to stop; the task ends when nothing is applied any more.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Takes in what happens until it has ended. May be dropped and called again, before it has.
    pub(super) async fn ended(&mut self) -> Result<(), String> {
        loop {
            let event = tokio::select! {
                ended = &mut self.task => {
                    let ended = ended.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                    return ended.map_err(|error| error.to_string());
                }
                Some(event) = self.events.recv() => event,
            };
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Connected => tracing::info!("connected to the primary"),
            // The follower logs it.
            Event::Lost(_) => {}
            Event::Leaving if self.looked.is_none_or(|looked| looked.elapsed() > CHANGE) => {
                self.looked = Some(Instant::now());
                self.lease.look_closely(CHANGE);
            }
            Event::Leaving => {}
            Event::Following(name, path, reached) => {
                let replica = Replica { path, reached: Some(reached), error: None, whole_at: Instant::now() };
                self.replicas.insert(name, replica);
            }
            Event::Failed(name, error) => {
                let nowhere = Replica { path: PathBuf::new(), reached: None, error: None, whole_at: Instant::now() };
                self.replicas.entry(name).or_insert(nowhere).error = Some(error);
            }
        }
    }

    /// How far each database is.
    pub(super) fn report(&mut self) -> Vec<ReplicaReport> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(name, replica): (&String, &mut Replica)| {
            let reached = replica.reached.as_ref().and_then(|reached| *reached.borrow());
            let txid = reached.map(|reached| reached.pos.txid);
            let wanted = asked.get(name).map_or(0, |txid| txid.get());
            let behind = wanted.saturating_sub(txid.map_or(0, |txid| txid.get()));
            if behind == 0 && wanted > 0 {
                replica.whole_at = Instant::now();
            }
            let lag_ms = u64::try_from(replica.whole_at.elapsed().as_millis()).unwrap_or(u64::MAX);
            ReplicaReport { path: replica.path.clone(), txid, behind, lag_ms, error: replica.error.clone() }
        };
        self.replicas.iter_mut().map(report).collect()
    }
}

/// Asks the primary again and again. What it said goes when it says nothing any more: then nobody knows.
async fn keep_asking(source: Source, asked: Asked) {
    loop {
        let answer = tokio::time::timeout(ASK_PATIENCE, ask(&source)).await;
        let answer = answer.ok().and_then(Result::ok).unwrap_or_default();
        let pause = ASK_INTERVAL.max(Duration::from_millis(answer.len() as u64));
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        tokio::time::sleep(pause).await;
    }
}

async fn ask(source: &Source) -> Result<HashMap<String, Txid>, LinkError> {
    let link = source.ask(ASK_PATIENCE).await?;
    let mut frames = link.frames("/v1/databases").await?;
    let mut positions = HashMap::new();
    while let Some((frame, _)) = frames.next().await? {
        match frame {
            Frame::Database(database) => drop(positions.insert(database.name, database.pos.txid)),
            Frame::Heartbeat { .. } => break,
            Frame::Gone { .. }
            | Frame::Transactions(_)
            | Frame::Merged(_)
            | Frame::End(_)
            | Frame::Leaving
            | Frame::Reached(_) => {}
        }
    }
    source.asked(&link);
    Ok(positions)
}
