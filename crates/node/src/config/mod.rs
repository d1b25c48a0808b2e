//! What the process is told to do, after `rhyolite.yml` and the flags were read and checked.
//!
//! Everything here is resolved: paths absolute, defaults filled in, ranges checked. Code that replicates reads
//! [`DatabaseConfig`] and nothing else; every field of it has an effect.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhyolite_logic::history_plan::{Duty, Policy};
use rhyolite_store::{Environment, StoreOptions};
use serde::Deserialize;

pub mod cluster;
mod expand;
pub mod file;
pub mod folder;
pub mod litestream;
pub mod node;
pub mod settings;
mod suggest;
#[cfg(test)]
mod tests;
pub mod units;

pub use suggest::nearest;

use cluster::ClusterConfig;
use folder::FolderConfig;

/// Everything the daemon is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of the HTTP server with metrics and status; none by default (`addr`).
    pub addr: Option<SocketAddr>,
    /// Command to run beside replication (`exec`).
    pub exec: Option<String>,
    /// How long the application of `exec` may take to stop, and then the last upload (`shutdown-sync-timeout`).
    pub shutdown_sync_timeout: Duration,
    /// What is logged, and how.
    pub logging: LoggingConfig,
    /// The control socket; none by default (`socket`).
    pub socket: Option<SocketConfig>,
    /// Where followers are served; nowhere by default (`cluster`).
    pub cluster: Option<ClusterConfig>,
    /// A node of a cluster, for `rhyolite node`; its databases are then the one folder (`node`).
    pub node: Option<node::NodeSection>,
    /// The databases that are named one by one (`dbs`).
    pub databases: Vec<DatabaseConfig>,
    /// Folders of databases (`dbs` with `dir`, or with a pattern).
    pub folders: Vec<FolderConfig>,
    /// What is to be said of a configuration that was Litestream's.
    pub notes: Vec<litestream::Note>,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// Where it is (`socket.path`).
    pub path: PathBuf,
    /// Who may use it, as the bits of a file mode (`socket.permissions`).
    pub permissions: u32,
}

impl SocketConfig {
    /// One that was asked for by a flag: only for who runs the process.
    pub fn private(path: PathBuf) -> Self {
        Self { path, permissions: 0o600 }
    }
}

/// Where the control socket is unless the configuration says so.
pub const DEFAULT_SOCKET: &str = "/var/run/rhyolite.sock";

impl Default for Config {
    fn default() -> Self {
        Self {
            addr: None,
            exec: None,
            shutdown_sync_timeout: 30 * SECOND,
            logging: LoggingConfig::default(),
            socket: None,
            cluster: None,
            node: None,
            databases: Vec::new(),
            folders: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggingConfig {
    /// Least severity that is logged (`logging.level`).
    pub level: LogLevel,
    /// Text or JSON (`logging.type`).
    pub format: LogFormat,
}

/// Least severity that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Every step.
    Trace,
    /// Every decision.
    Debug,
    /// What an operator wants to know.
    #[default]
    Info,
    /// Trouble that mends itself.
    Warn,
    /// Trouble that a person must look at.
    Error,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is wrong with a configuration, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, when there is one.
    pub file: Option<PathBuf>,
    /// The line in it, from 1, when it is known.
    pub line: Option<u64>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl ConfigError {
    /// An error that belongs to no line.
    pub fn new(message: impl Into<String>) -> Self {
        Self { file: None, line: None, message: message.into() }
    }

    /// An error on a line.
    pub fn at(line: u64, message: impl Into<String>) -> Self {
        Self { file: None, line: (line > 0).then_some(line), message: message.into() }
    }

    fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{} line {line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// An I/O error without the number that the standard library adds.
pub fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.get(..1).map(str::to_lowercase).unwrap_or_default() + text.get(1..).unwrap_or_default()
}

/// Reads `127.0.0.1:9090`, `[::1]:9090`, `localhost:9090` or `:9090` (every interface).
///
/// # Errors
/// One line that shows the text and what is expected.
pub fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.replacen("localhost:", "127.0.0.1:", 1),
    };
    full.parse().map_err(|_| format!("{text:?} is no address: write IP:PORT, such as 127.0.0.1:9090, or :9090"))
}

/// How one database is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// Absolute path of the database (`dbs[].path`).
    pub path: PathBuf,
    /// URL or path of the store, with the database's prefix (`replica.url`).
    pub store: String,
    /// Keys of the store that stand in the configuration file. Open the store with [`Self::store_options`].
    pub credentials: Credentials,
    /// State folder (`meta-path`).
    pub meta_path: PathBuf,
    /// Neither the database nor its state folder may be reached through a symbolic link: others than who runs the process may put one there.
    pub refuses_links: bool,
    /// How long commits are collected before they are uploaded; zero uploads each at once (`sync-interval`).
    pub sync_interval: Duration,
    /// Longest time between two looks at a database that seems idle (`monitor-interval`).
    pub monitor_interval: Duration,
    /// How long SQLite's locks are waited for (`busy-timeout`).
    pub busy_timeout: Duration,
    /// Whether a database in rollback mode is switched to WAL mode; otherwise it is captured by page diff
    /// (`enable-wal`).
    pub enable_wal: bool,
    /// When to checkpoint.
    pub checkpoint: CheckpointConfig,
    /// Cap of the local log in bytes (`max-log-size`).
    pub log_bytes_max: u64,
    /// A segment is closed and uploaded when it holds this many bytes, before its interval ends (`max-segment-size`).
    pub segment_bytes_max: u64,
    /// What the store keeps and for how long (`bundle`, `merge`, `snapshot`, `keep`, `retention.grace`).
    pub history: Policy,
    /// How other writers are kept away (`lease`).
    pub lease: LeaseConfig,
    /// Which part of that is done by whoever replicates (`retention.enabled`).
    pub duty: Duty,
    /// When to prove that the store can be restored.
    pub drill: DrillConfig,
}

/// The right to write to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Whether one is taken. Without it, of two writers the one that started last wins, and the other one stops.
    pub enabled: bool,
    /// How long a holder that cannot be heard of keeps it (`lease.ttl`).
    pub ttl: Duration,
    /// What to do while another process has it (`lease.if-held`).
    pub if_held: IfHeld,
    /// Where it lies, when several databases share one; otherwise in the database's own store (`lease.url`).
    pub store: Option<String>,
    /// Folder in which the process remembers a lease of several databases; otherwise the database's own state folder.
    pub meta_path: Option<PathBuf>,
}

/// What to do while another process has the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IfHeld {
    /// Take over when it is given up or runs out.
    #[default]
    Wait,
    /// End.
    Exit,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { enabled: true, ttl: 60 * SECOND, if_held: IfHeld::Wait, store: None, meta_path: None }
    }
}

/// Restore drills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillConfig {
    /// How often; zero never (`drill.interval`).
    pub interval: Duration,
    /// Of a database that is larger, about so many bytes are proved at a time (`drill.sample`).
    pub sample_bytes: u64,
}

impl Default for DrillConfig {
    fn default() -> Self {
        Self { interval: 24 * 3600 * SECOND, sample_bytes: 1024 * MIB }
    }
}

/// When the WAL is checkpointed by us. The application's own automatic checkpoints stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// Checkpoints are to reset the WAL before it holds more pages than this (`min-checkpoint-page-count`).
    pub pages_min: u32,
    /// A WAL that is not empty is checkpointed after this time even when it is small; zero never (`checkpoint-interval`).
    pub interval: Duration,
    /// WAL size in pages from which the file is truncated as well (`truncate-page-n`).
    pub truncate_pages: u32,
}

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;

impl DatabaseConfig {
    /// The defaults for a database at `path` (made absolute by the caller) and a store. Symbolic links are followed, as SQLite
    /// does: the WAL, the journal and the state folder lie beside the file itself.
    pub fn new(path: PathBuf, store: String) -> Self {
        let path = follow_links(path);
        let meta_path = default_meta_path(&path);
        Self {
            path,
            store,
            meta_path,
            refuses_links: false,
            credentials: Credentials::default(),
            sync_interval: SECOND,
            monitor_interval: SECOND,
            busy_timeout: SECOND,
            enable_wal: false,
            checkpoint: CheckpointConfig::default(),
            log_bytes_max: 1024 * MIB,
            segment_bytes_max: 8 * MIB,
            history: Policy::default(),
            lease: LeaseConfig::default(),
            duty: Duty::default(),
            drill: DrillConfig::default(),
        }
    }
}

impl DatabaseConfig {
    /// How to open the store: with the environment of the process, over which the keys of the file win.
    pub fn store_options(&self) -> StoreOptions {
        if self.credentials.0.is_empty() {
            return StoreOptions::default();
        }
        let mut variables: BTreeMap<String, String> = std::env::vars().collect();
        variables.extend(self.credentials.0.clone());
        StoreOptions { environment: Environment::Fixed(variables) }
    }
}

/// Environment variables of a store that the configuration file sets for one database.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(pub BTreeMap<String, String>);

impl fmt::Debug for Credentials {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Default for CheckpointConfig {
    /// As many pages as SQLite's own automatic checkpoint asks for, which is then hardly needed.
    fn default() -> Self {
        Self { pages_min: 1_000, interval: 60 * SECOND, truncate_pages: 121_359 }
    }
}

/// Symbolic links that are followed at most, as on Linux.
const LINKS_MAX: usize = 40;

/// The file that SQLite opens for `path`, also where there is none yet.
fn follow_links(path: PathBuf) -> PathBuf {
    let mut target = path.clone();
    for _ in 0..LINKS_MAX {
        match std::fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("/")).join(next),
            Err(_) => break,
        }
    }
    let beside = || Some(target.parent()?.canonicalize().ok()?.join(target.file_name()?));
    beside().unwrap_or(path)
}

/// `.NAME-rhyolite` beside the database.
pub fn default_meta_path(database: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push("-rhyolite");
    database.with_file_name(name)
}
