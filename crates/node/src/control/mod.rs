//! The control socket: HTTP with JSON over a Unix socket, for whoever may open its file.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /list` | | every database: path, store, state, positions |
//! | `GET /info` | | the process, and how many databases are in which state |
//! | `POST /add` | `path`, `store` | |
//! | `POST /remove` | `path` | |
//! | `POST /sync` | `path`, `wait`, `timeout_ms` | the position that was captured, and whether it is durable |
//! | `POST /wait` | `path`, `txid`, `timeout_ms`, `level` | the same; only for the store is anything uploaded sooner than it is due |
//! | `POST /reload` | | what has changed |
//! | `GET /node` | | a node of a cluster: its role, the lease, its replicas |
//! | `POST /handoff` | `to` | the primary hands its role on, to the node of this address; answered when it has begun to |
//! | `POST /promote` | `timeout_ms` | this node becomes the primary; answered when it is |
//! | `POST /write-lock` | `path` or `id`, `ttl_ms`, `timeout_ms` | a replica has borrowed the primary's write lock, or keeps it: a copy that may be changed |
//! | `POST /write-commit` | `id` | what has become of the changes |
//! | `POST /write-unlock` | `id` | nothing is committed |
//! | `GET /metrics`, `/status`, `/healthz`, `/readyz` | | as over TCP |
//!
//! A request that cannot be obeyed is answered by 400 (404 for a database that is not here, 504 for one that took too long) and
//! `{"error": "one line"}`; beside a 504 stands what is known, as in the answer that did not come.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use rhyolite_format::Txid;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::capture::thread::Upload;
use crate::cluster::Handoff;
use crate::cluster::promote::{NodeControl, promote as promoted};
use crate::cluster::report::NodeReport;
use crate::cluster::witness::Durability;
use crate::config::{Config, ConfigError, DatabaseConfig, SocketConfig, settings};
use crate::durability::{Level, NotSafe, Reached, Waits};
use crate::observe::http;
use crate::observe::report::{ProcessReport, Totals};
use crate::status::{DatabaseStatus, StatusBoard};
use crate::stream::push::{AcceptReport, PushReport};
use crate::supervise::control::Command;
use crate::supervise::reload::Reloaded;
use crate::time;

pub mod borrow;
pub mod client;

/// Longest wait, unless the request says so.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the configuration anew.
pub type Reload = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What requests are answered with.
#[derive(Clone)]
pub struct Controller {
    /// Figures.
    pub board: Arc<StatusBoard>,
    /// The supervisor.
    pub commands: mpsc::Sender<Command>,
    /// Where the configuration comes from; `None` when it was written on the command line.
    pub reload: Option<Reload>,
    /// A node of a cluster, whose role can be changed.
    pub node: Option<NodeControl>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

/// One database in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Absolute path.
    pub path: PathBuf,
    /// The store, without secrets.
    pub store: String,
    /// Name of its state.
    pub state: String,
    /// Why, where the state has a reason.
    pub reason: Option<String>,
    /// Whether it is at rest.
    pub parked: bool,
    /// The last captured commit.
    pub txid: Option<Txid>,
    /// The last durable one.
    pub durable_txid: Option<Txid>,
    /// Age of the oldest commit that is not durable.
    pub lag_ms: u64,
}

/// What `/list` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// All databases, in the order of their paths.
    pub databases: Vec<Listed>,
}

/// What `/info` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The process.
    pub process: ProcessReport,
    /// How many databases are in which state.
    pub totals: Totals,
    /// The replicas that the process dials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pushes: Vec<PushReport>,
    /// Its place for a primary that dials, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<AcceptReport>,
}

/// What a request may say. Each takes what it needs; what it does not know is refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// Path of the database.
    pub path: PathBuf,
    /// Its store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Answer when it is durable.
    pub wait: bool,
    /// A commit that is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
    /// For how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The address of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Where commits must be that are waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Commits that were acknowledged and cannot be found are given up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forget_acknowledged: bool,
}

/// Why a request was not obeyed.
type Refused = (StatusCode, Json<serde_json::Value>);

fn refuse(status: StatusCode, text: impl Into<String>) -> Refused {
    (status, Json(serde_json::json!({ "error": text.into() })))
}

/// How often, and how far apart, somebody is asked whether he listens at the socket.
const LISTENER_TRIES: u32 = 10;
const LISTENER_GAP: Duration = Duration::from_millis(20);

/// Whether a process listens at the socket. One answer is no proof: of a process that has just closed it, a child between `fork` and `exec` may
/// still have it open for a moment.
fn is_listened_at(path: &Path) -> bool {
    (0..LISTENER_TRIES).all(|attempt| {
        if attempt > 0 {
            std::thread::sleep(LISTENER_GAP);
        }
        std::os::unix::net::UnixStream::connect(path).is_ok()
    })
}

/// Makes the socket. A file that a process left there when it ended is replaced; one that somebody listens at is not.
///
/// # Errors
/// One line.
pub fn bind(config: &SocketConfig) -> Result<UnixListener, String> {
    let path = &config.path;
    let error = |e: &io::Error| format!("control socket {}: {}", path.display(), crate::config::io_text(e));
    if is_listened_at(path) {
        return Err(format!("control socket {}: another process listens there", path.display()));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(|e| error(&e))?;
    }
    // Made under another name, so that nobody finds it before it has its permissions.
    let mut early = path.as_os_str().to_owned();
    early.push(format!(".{}", std::process::id()));
    let early = PathBuf::from(early);
    let listener = UnixListener::bind(&early).map_err(|e| error(&e))?;
    let placed = std::fs::set_permissions(&early, Permissions::from_mode(config.permissions))
        .and_then(|()| std::fs::hard_link(&early, path));
    // Only the early name goes, whatever became of the other.
    let _ = std::fs::remove_file(&early);
    placed.map_err(|e| error(&e))?;
    Ok(listener)
}

/// Answers requests until the task is dropped; the socket's file then stays, and the next process replaces it.
pub async fn serve(listener: UnixListener, controller: Controller) {
    let app = axum::Router::new()
        .route("/list", get(list))
        .route("/info", get(info))
        .route("/add", post(add))
        .route("/remove", post(remove))
        .route("/sync", post(sync))
        .route("/wait", post(wait))
        .route("/reload", post(reload))
        .route("/node", get(node))
        .route("/handoff", post(handoff))
        .route("/promote", post(promote))
        .route("/write-lock", post(borrow::lock))
        .route("/write-commit", post(borrow::commit))
        .route("/write-unlock", post(borrow::unlock))
        .with_state(controller.clone())
        .merge(http::routes(controller.board));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!("the control socket ended: {error}");
    }
}

async fn list(Shared(controller): Shared<Controller>) -> Json<List> {
    let now = time::now();
    let mut databases: Vec<_> = controller.board.databases().iter().map(|d| listed(d, now)).collect();
    databases.sort_by(|a, b| a.path.cmp(&b.path));
    Json(List { databases })
}

fn listed(status: &DatabaseStatus, now: rhyolite_format::Timestamp) -> Listed {
    status.look(|f| Listed {
        path: status.path.to_path_buf(),
        store: status.store.clone(),
        state: f.state.name().to_owned(),
        reason: f.state.reason().map(str::to_owned),
        parked: f.parked,
        txid: f.local.map(|p| p.txid),
        durable_txid: f.durable.map(|p| p.txid),
        lag_ms: f.lag_ms(now),
    })
}

async fn info(Shared(controller): Shared<Controller>) -> Json<Info> {
    let board = &controller.board;
    Json(Info {
        process: ProcessReport::current(board),
        totals: Totals::new(&board.databases(), time::now()),
        pushes: board.pushes(),
        accepts: board.accepts(),
    })
}

async fn ask<T>(controller: &Controller, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refused> {
    let (reply, answer) = oneshot::channel();
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the process is about to end");
    controller.commands.send(command(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

async fn add(Shared(controller): Shared<Controller>, Json(wanted): Json<Wanted>) -> Result<Json<()>, Refused> {
    let bad = |text: String| refuse(StatusCode::BAD_REQUEST, text);
    let store = wanted.store.ok_or_else(|| bad("`store` is missing".to_owned()))?;
    if !wanted.path.is_absolute() {
        return Err(bad("`path` must be absolute".to_owned()));
    }
    let config = DatabaseConfig::new(wanted.path, store);
    settings::validate(&config).map_err(bad)?;
    rhyolite_store::open(&config.store, &config.store_options()).map_err(|e| bad(e.to_string()))?;
    ask(&controller, |reply| Command::Add(Box::new(config), reply)).await?.map_err(bad)?;
    Ok(Json(()))
}

async fn remove(Shared(controller): Shared<Controller>, Json(wanted): Json<Wanted>) -> Result<Json<()>, Refused> {
    let removed = ask(&controller, |reply| Command::Remove(wanted.path, reply)).await?;
    removed.map_err(|text| refuse(StatusCode::NOT_FOUND, text))?;
    Ok(Json(()))
}

async fn sync(Shared(controller): Shared<Controller>, Json(wanted): Json<Wanted>) -> Result<Json<Reached>, Refused> {
    let limit = wanted.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
    let (waits, level, began) = (controller.waits(), wanted.level.unwrap_or_default(), Instant::now());
    waits.check(level).map_err(|text| not_safe(NotSafe::Level(text)))?;
    let captured = waits.captured(&wanted.path, Upload::Now);
    let late = |_| Err(NotSafe::Late(format!("{} was not captured after {limit:?}", wanted.path.display()), None));
    let (status, txid) = tokio::time::timeout(limit, captured).await.unwrap_or_else(late).map_err(not_safe)?;
    if !wanted.wait {
        return Ok(Json(waits.reached(&status, txid, level)));
    }
    let left = limit.saturating_sub(began.elapsed());
    waits.wait(&wanted.path, Some(txid), level, left).await.map(Json).map_err(not_safe)
}

async fn wait(Shared(controller): Shared<Controller>, Json(wanted): Json<Wanted>) -> Result<Json<Reached>, Refused> {
    let limit = wanted.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
    let level = wanted.level.unwrap_or_default();
    let waited = controller.waits().wait(&wanted.path, wanted.txid, level, limit).await;
    waited.map(Json).map_err(not_safe)
}

fn not_safe(error: NotSafe) -> Refused {
    (error.status(), Json(error.json()))
}

async fn reload(Shared(controller): Shared<Controller>) -> Result<Json<Reloaded>, Refused> {
    match controller.reload().await {
        Ok(done) => Ok(Json(done)),
        Err(text) => Err(refuse(StatusCode::BAD_REQUEST, text)),
    }
}

fn no_node() -> Refused {
    refuse(StatusCode::NOT_FOUND, "this process is no node of a cluster")
}

async fn node(Shared(controller): Shared<Controller>) -> Result<Json<NodeReport>, Refused> {
    controller.board.node().map(Json).ok_or_else(no_node)
}

async fn handoff(Shared(controller): Shared<Controller>, body: bytes::Bytes) -> Result<Json<()>, Refused> {
    let bad = |e: serde_json::Error| refuse(StatusCode::BAD_REQUEST, e.to_string());
    // Nothing is as good as an empty object here.
    let wanted = if body.is_empty() { Wanted::default() } else { serde_json::from_slice(&body).map_err(bad)? };
    let to = wanted.to;
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the process is about to end");
    let node = controller.node.ok_or_else(no_node)?;
    let (reply, answer) = oneshot::channel();
    node.handoffs.send(Handoff { to, reply }).await.map_err(|_| gone())?;
    let taken = answer.await.map_err(|_| gone())?;
    taken.map_err(|text| refuse(StatusCode::BAD_REQUEST, text))?;
    Ok(Json(()))
}

/// Commits that were acknowledged and cannot be found are given up for as long as this lives.
struct Forgetting(watch::Sender<bool>);

impl Forgetting {
    fn new(forgets: &watch::Sender<bool>) -> Self {
        forgets.send_replace(true);
        Self(forgets.clone())
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

async fn promote(Shared(controller): Shared<Controller>, Json(wanted): Json<Wanted>) -> Result<Json<()>, Refused> {
    let node = controller.node.ok_or_else(no_node)?;
    let limit = wanted.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
    // For this time only, whatever becomes of it, and of whoever asks.
    let _forgetting = wanted.forget_acknowledged.then(|| Forgetting::new(&node.forgets));
    let done = promoted(&node, &controller.board, limit).await;
    done.map_err(|text| refuse(StatusCode::CONFLICT, text))?;
    Ok(Json(()))
}

impl Controller {
    /// Says where commits are.
    pub fn waits(&self) -> Waits {
        let durability = self.node.as_ref().map_or(Durability::Local, |node| node.durability);
        Waits::new(Arc::clone(&self.board), self.commands.clone(), durability)
    }

    /// Reads the configuration anew and replicates what it says. A configuration that is wrong changes nothing.
    ///
    /// # Errors
    /// One line.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let load =
            self.reload.clone().ok_or("the databases were named on the command line: there is nothing to reload")?;
        let loaded = tokio::task::spawn_blocking(move || load()).await.map_err(|e| e.to_string())?;
        let config = loaded.map_err(|e| e.to_string())?;
        let wanted = Box::new((config.databases, config.folders));
        let done = ask(self, |reply| Command::Reload(wanted, reply)).await;
        let done = done.map_err(|_| "the process is about to end".to_owned())?;
        let Reloaded { added, removed, changed } = done;
        tracing::info!(added, removed, changed, "configuration read again");
        Ok(done)
    }

    /// Reads the configuration anew whenever the process gets SIGHUP.
    pub async fn reload_on_hangup(self) {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        let mut hangups = match signal {
            Ok(hangups) => hangups,
            Err(error) => return tracing::error!("cannot receive SIGHUP: {error}"),
        };
        while hangups.recv().await.is_some() {
            if let Err(text) = self.reload().await {
                tracing::error!("the configuration stays as it was: {text}");
            }
        }
    }
}

/// Removes the socket's file.
pub fn remove_file(path: &Path) {
    // The next process replaces it otherwise.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_only_a_child_before_exec_holds_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let config = SocketConfig { path: folder.path().join("s"), permissions: 0o600 };
        let held = bind(&config).unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(LISTENER_GAP * 3);
            drop(held);
        });
        drop(bind(&config).unwrap());
        child.join().unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let config = SocketConfig { path: folder.path().join("s"), permissions: 0o640 };
        let first = bind(&config).unwrap();
        let mode = std::fs::metadata(&config.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let taken = bind(&config).unwrap_err();
        assert!(taken.contains("another process listens there"), "{taken}");
        drop(first);
        drop(bind(&config).unwrap());
        std::fs::remove_file(&config.path).unwrap();
        std::fs::write(&config.path, "mine").unwrap();
        assert!(bind(&config).is_err());
        assert_eq!(std::fs::read(&config.path).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
