//! Where commits are, and waiting until they are where somebody wants them: for the control socket, for HTTP ([`crate::stream`]) and for the
//! [`crate::proxy`].
//!
//! 1. Whoever waits is told that a commit is at a level only when it is, and otherwise, after the time, where it is known to be.
//! 2. A level that nobody keeps here is refused at once.
//! 3. Nothing is uploaded sooner than it is due, unless somebody waits for the store.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rhyolite_format::Txid;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::capture::thread::Upload;
use crate::cluster::witness::Durability;
use crate::status::{DatabaseStatus, StatusBoard};
use crate::supervise::control::{Command, Synced};

/// How often a database is looked at whose commits are waited for.
const LOOK: Duration = Duration::from_millis(5);
/// How often it is asked for a sync that its capture did not answer, and the time in between.
const SYNC_TRIES: u32 = 5;
const SYNC_PAUSE: Duration = Duration::from_millis(50);

/// Where a commit must be that is waited for. A later one is never less than one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Captured, on this disk
    Local,
    /// On the disk of one other node, or in the store
    Replica,
    /// On the disks of a majority of the nodes, or in the store
    Quorum,
    /// In the store
    #[default]
    Store,
}

impl Level {
    /// All of them, from the least.
    pub const ALL: [Self; 4] = [Self::Local, Self::Replica, Self::Quorum, Self::Store];

    /// The name in options, headers and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replica => "replica",
            Self::Quorum => "quorum",
            Self::Store => "store",
        }
    }

    /// Reads what [`Level::name`] writes.
    ///
    /// # Errors
    /// One line: it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| format!("{text:?} is no level: write local, replica, quorum or store"))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a database is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The commit that was asked for, or the last one that was there.
    pub txid: Txid,
    /// Where it was waited for.
    #[serde(default)]
    pub level: Level,
    /// Whether it is there.
    #[serde(default)]
    pub safe: bool,
    /// The highest level at which it is known to be; `None` before it is captured.
    #[serde(default)]
    pub holds: Option<Level>,
    /// The last commit that was captured.
    #[serde(default)]
    pub local_txid: Option<Txid>,
    /// The last one that is on as many other nodes as `--durability` asks for; `None` where it asks for none, and before there are so many.
    #[serde(default)]
    pub replicated_txid: Option<Txid>,
    /// The last durable one.
    pub durable_txid: Option<Txid>,
    /// Whether the commit is durable: in the store.
    pub durable: bool,
}

/// Why nobody can say that a commit is where it was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotSafe {
    /// Nobody keeps this level here.
    Level(String),
    /// The database is not captured here.
    Unknown(String),
    /// The process is about to end.
    Ending,
    /// It took too long: what is known. There is nothing where not even capture has answered.
    Late(String, Option<Reached>),
}

impl NotSafe {
    /// For HTTP.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Level(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late(..) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// For HTTP: the error, and what is known.
    pub fn json(&self) -> serde_json::Value {
        let known = match self {
            Self::Late(_, Some(reached)) => serde_json::to_value(reached).expect("numbers become JSON"),
            _ => serde_json::json!({}),
        };
        let mut json = known;
        json["error"] = self.to_string().into();
        json
    }
}

impl fmt::Display for NotSafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(text) | Self::Unknown(text) | Self::Late(text, _) => f.write_str(text),
            Self::Ending => f.write_str("the process is about to end"),
        }
    }
}

/// Waits for commits of the databases of a process.
#[derive(Clone)]
pub struct Waits {
    board: Arc<StatusBoard>,
    commands: mpsc::Sender<Command>,
    durability: Durability,
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("durability", &self.durability).finish_non_exhaustive()
    }
}

impl Waits {
    /// For the databases on `board`, whose capture takes `commands`, on a node that counts its witnesses by `durability`.
    pub fn new(board: Arc<StatusBoard>, commands: mpsc::Sender<Command>, durability: Durability) -> Self {
        Self { board, commands, durability }
    }

    /// Whether commits can ever be said to be at a level here.
    ///
    /// # Errors
    /// One line: what is missing.
    pub fn check(&self, level: Level) -> Result<(), String> {
        self.durability.keeps(level)
    }

    /// The database at `path`, and the number of its last commit, once everything is captured that was committed before the call. Without bound.
    ///
    /// # Errors
    /// Nobody captures it.
    pub async fn captured(&self, path: &Path, upload: Upload) -> Result<(Arc<DatabaseStatus>, Txid), NotSafe> {
        for _ in 0..SYNC_TRIES {
            let (reply, answer) = oneshot::channel();
            let command = Command::Sync(path.to_path_buf(), upload, reply);
            self.commands.send(command).await.map_err(|_| NotSafe::Ending)?;
            let synced = answer.await.map_err(|_| NotSafe::Ending)?;
            let Synced { status, captured } = synced.map_err(NotSafe::Unknown)?;
            // Its capture may be ending: then whoever comes after it is asked.
            if let Ok(pos) = captured.await {
                return Ok((status, pos.txid));
            }
            tokio::time::sleep(SYNC_PAUSE).await;
        }
        Err(NotSafe::Unknown(format!("{} was not captured", path.display())))
    }

    /// Waits until a commit of the database at `path` is at a level, for `limit` at most. Without `txid` it is the last one that was made before the call.
    ///
    /// # Errors
    /// See [`NotSafe`].
    pub async fn wait(
        &self,
        path: &Path,
        txid: Option<Txid>,
        level: Level,
        limit: Duration,
    ) -> Result<Reached, NotSafe> {
        self.check(level).map_err(NotSafe::Level)?;
        let until = Instant::now() + limit;
        let (status, txid) = match txid {
            Some(txid) => (self.find(path)?, txid),
            None => self.captured_until(path, level, (until, limit)).await?,
        };
        self.wait_until(&status, (txid, level), (until, limit)).await
    }

    /// The same for a database that is known, until a moment which is `limit` after the wait began.
    ///
    /// # Errors
    /// See [`NotSafe`].
    pub async fn wait_until(
        &self,
        status: &DatabaseStatus,
        (txid, level): (Txid, Level),
        (until, limit): (Instant, Duration),
    ) -> Result<Reached, NotSafe> {
        let waited = tokio::time::timeout_at(until, self.until(status, txid, level)).await;
        let reached = self.reached(status, txid, level);
        // What was durable by then is so, whoever captures it next.
        let is_durable = status.look(|f| f.durable).is_some_and(|durable| durable.txid >= txid);
        let is_here = is_durable || self.board.databases().iter().any(|known| std::ptr::eq(&**known, status));
        match waited {
            Ok(()) if !is_here => {
                let path = status.path.display();
                Err(NotSafe::Unknown(format!(
                    "{path}: the role has changed since, and nobody knows whether it has this commit"
                )))
            }
            Ok(()) => Ok(Reached { safe: true, holds: reached.holds.max(Some(level)), ..reached }),
            Err(_) => Err(NotSafe::Late(late(status, level, limit), Some(Reached { safe: false, ..reached }))),
        }
    }

    async fn captured_until(
        &self,
        path: &Path,
        level: Level,
        (until, limit): (Instant, Duration),
    ) -> Result<(Arc<DatabaseStatus>, Txid), NotSafe> {
        let upload = if level == Level::Store { Upload::Now } else { Upload::InTurn };
        let captured = tokio::time::timeout_at(until, self.captured(path, upload)).await;
        captured.unwrap_or_else(|_| {
            let text = match self.find(path) {
                Ok(status) => late(&status, Level::Local, limit),
                Err(_) => format!("{} was not captured after {limit:?}", path.display()),
            };
            Err(NotSafe::Late(text, None))
        })
    }

    fn find(&self, path: &Path) -> Result<Arc<DatabaseStatus>, NotSafe> {
        let found = self.board.databases().into_iter().find(|status| *status.path == *path);
        found.ok_or_else(|| NotSafe::Unknown(format!("{} is not replicated here", path.display())))
    }

    async fn until(&self, status: &DatabaseStatus, txid: Txid, level: Level) {
        let is_there = || match level {
            Level::Local => status.look(|f| f.local).is_some_and(|local| local.txid >= txid),
            _ => status.look(|f| f.durable).is_some_and(|durable| durable.txid >= txid),
        };
        if matches!(level, Level::Replica | Level::Quorum) {
            return self.board.witnesses.until_safe(status, txid).await;
        }
        while !is_there() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is known of a commit, whether it is where it was waited for or not.
    pub fn reached(&self, status: &DatabaseStatus, txid: Txid, level: Level) -> Reached {
        let (local, durable) = status.look(|f| (f.local, f.durable));
        let (local_txid, durable_txid) = (local.map(|pos| pos.txid), durable.map(|pos| pos.txid));
        let replicated_txid = self.board.witnesses.safe(status);
        let holds = match self.durability {
            _ if durable_txid >= Some(txid) => Some(Level::Store),
            Durability::Quorum { .. } if self.board.witnesses.tell(status, txid) => Some(Level::Quorum),
            Durability::Replica if self.board.witnesses.tell(status, txid) => Some(Level::Replica),
            _ => (local_txid >= Some(txid)).then_some(Level::Local),
        };
        let (safe, durable) = (holds >= Some(level), holds == Some(Level::Store));
        Reached { txid, level, safe, holds, local_txid, replicated_txid, durable_txid, durable }
    }
}

/// What is said of a database whose commits did not get to a level in time.
fn late(status: &DatabaseStatus, level: Level, limit: Duration) -> String {
    let (state, error) = status.look(|f| (f.state.name(), f.last_error.as_ref().map(|e| e.text.clone())));
    let error = error.map(|text| format!("; last error: {text}")).unwrap_or_default();
    let what = match level {
        Level::Local => "not captured",
        Level::Replica | Level::Quorum => "neither on enough other nodes nor in the store",
        Level::Store => "not durable",
    };
    format!("{} is {what} so far after {limit:?} ({state}){error}", status.path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_named_and_ordered() {
        for level in Level::ALL {
            assert_eq!(Level::parse(level.name()), Ok(level));
            assert_eq!(serde_json::to_value(level).unwrap(), level.name());
        }
        assert!(Level::ALL.is_sorted());
        assert!(Level::parse("Store").unwrap_err().contains("local, replica, quorum or store"));
    }

    fn waits(durability: Durability) -> Waits {
        let (commands, _) = mpsc::channel(1);
        Waits::new(StatusBoard::new(), commands, durability)
    }

    #[test]
    fn only_what_is_kept_can_be_waited_for() {
        let kept = |durability| {
            let waits = waits(durability);
            Level::ALL.into_iter().filter(|level| waits.check(*level).is_ok()).map(Level::name).collect::<Vec<_>>()
        };
        assert_eq!(kept(Durability::Local), ["local", "store"]);
        assert_eq!(kept(Durability::Replica), ["local", "replica", "store"]);
        assert_eq!(kept(Durability::Quorum { nodes: 3 }), ["local", "replica", "quorum", "store"]);
        assert!(waits(Durability::Replica).check(Level::Quorum).unwrap_err().contains("--nodes"));
    }

    #[tokio::test]
    async fn whoever_asks_of_what_is_not_here_is_told_so() {
        let waits = waits(Durability::Local);
        let wait = |txid, level| waits.wait(Path::new("/a.db"), txid, level, Duration::ZERO);
        assert!(matches!(wait(Txid::new(1), Level::Store).await, Err(NotSafe::Unknown(_))));
        assert_eq!(wait(None, Level::Store).await, Err(NotSafe::Ending));
        assert!(matches!(wait(None, Level::Replica).await, Err(NotSafe::Level(_))));
    }
}
