//! `mount`: a folder in which every database is captured, in every journal mode.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use rhyolite_logic::park::Policy;

use super::cluster::ClusterArgs;
use super::exit::Failure;
use super::replicate::{Signals, check_inputs, run_daemon};
use crate::capture::commits::CommitLines;
use crate::capture::gate::Gated;
use crate::config::folder::FolderConfig;
use crate::config::settings::{self, Settings};
use crate::config::units::parse_duration;
use crate::config::{Config, LogFormat, LogLevel, SocketConfig, parse_addr};
use crate::durability::Level;
use crate::mount::{MountOptions, Mounted};
use crate::observe::logging;

/// Mount a folder, and replicate every database that is used there, in every journal mode.
///
/// The application opens its databases below the mount as it would in any folder, with stock SQLite. In WAL mode a commit costs little
/// more than without the mount; in the modes with a rollback journal each commit becomes a restore point of its own, which it cannot be without
/// one. Databases may be created, removed and replaced, in folders below too. Each is written to STORE with its path relative to the
/// mount, as an entry with `dir` of a configuration file does it: `rhyolite restore STORE/app.db -o copy.db`, or `restore STORE --all`.
///
/// It needs FUSE (/dev/fuse), as root or with fusermount3. Databases must be used through the mount only, never in the folder behind it.
#[derive(Debug, Args)]
#[command(
    after_help = "SIGINT or SIGTERM uploads what is left and unmounts.\n\njournal_mode MEMORY and OFF cannot be captured: their writes are \
refused once a database is replicated.\n\nExit statuses: 0 stopped and everything is durable; 6 stopped before that; with --exec, that of the \
application.\n\nExamples:\n  rhyolite mount ./data --at ./db --store s3://bucket/prod\n  rhyolite mount ./data --at ./db \
--store ./backup --exec \"./app --database ./db/app.db\""
)]
pub(super) struct MountArgs {
    /// Folder that holds the files
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where it is mounted: an empty folder
    #[arg(long, value_name = "FOLDER")]
    at: PathBuf,
    /// Store below which every database gets a prefix: its path
    #[arg(long, value_name = "STORE")]
    store: String,
    /// Run this command once the folder is mounted, and stop when it ends; its exit status becomes that of rhyolite
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Serve /metrics, /status, /events, /healthz and /readyz at IP:PORT; :PORT listens everywhere
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    addr: Option<std::net::SocketAddr>,
    /// Make a control socket at this path, for `rhyolite ctl`, `sync` and `wait`
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Least severity that is logged (info)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Form of the log (text)
    #[arg(long, value_name = "FORM")]
    log_format: Option<LogFormat>,
    /// How long the application of --exec, and then the last upload, may take at the end (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    shutdown_sync_timeout: Option<Duration>,
    /// When COMMIT returns: `local`, the commit is on this disk; `store`, it is in the store (local)
    #[arg(long, value_name = "LEVEL", default_value = "local", hide_default_value = true, value_parser = level())]
    durability: Level,
    /// How long a commit waits for `--durability store` before it fails with an I/O error (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    durability_timeout: Option<Duration>,
    /// Hold a lease in the store, so that two processes cannot write there at a time (true or false; true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    lease: Option<bool>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    settings: Settings,
}

/// How long a commit waits for the store.
const DURABILITY_TIMEOUT: Duration = Duration::from_secs(5);

/// The levels at which nobody else is asked.
fn level() -> impl TypedValueParser<Value = Level> {
    let names = [Level::Local, Level::Store].map(Level::name);
    PossibleValuesParser::new(names).try_map(|name| Level::parse(&name))
}

/// How long commits wait for the store, if they do.
fn gate(args: &MountArgs) -> Result<Option<(Level, Duration)>, Failure> {
    match (args.durability, args.durability_timeout) {
        (Level::Local, None) => Ok(None),
        (Level::Local, Some(_)) => {
            Err(Failure::usage("--durability-timeout says how long `--durability store` waits: give that, too"))
        }
        (_, Some(Duration::ZERO)) => {
            Err(Failure::usage("--durability-timeout must not be 0: no commit could wait for the store"))
        }
        (level, timeout) => Ok(Some((level, timeout.unwrap_or(DURABILITY_TIMEOUT)))),
    }
}

pub(super) fn run(args: &MountArgs) -> Result<u8, Failure> {
    let mut config = Config { exec: args.exec.clone(), addr: args.addr, ..Config::default() };
    config.socket = args.socket.clone().map(SocketConfig::private);
    args.cluster.apply(&mut config)?;
    config.logging.level = args.log_level.unwrap_or(config.logging.level);
    config.logging.format = args.log_format.unwrap_or(config.logging.format);
    config.shutdown_sync_timeout = args.shutdown_sync_timeout.unwrap_or(config.shutdown_sync_timeout);
    // Whatever is wrong with the settings is said before anything is mounted.
    let gate = gate(args)?;
    config.folders = vec![folder(args, args.at.clone())?];
    if gate.is_some() && config.cluster.is_some() {
        // What waits for the store is in the log already, and may yet be rolled back.
        return Err(Failure::usage(
            "--cluster-listen and --cluster-push-to with `--durability store` are not possible yet: followers would see commits that may still fail",
        ));
    }
    check_inputs(&config)?;
    logging::start(config.logging);
    let lines = CommitLines::new(gate.map(|_| Gated::Store));
    let lines = Arc::new(lines.map_err(|e| Failure::failed(format!("start a thread: {e}")))?);
    // A signal must not end the process between the mount and its end.
    let signals = Signals::listen(&config)?;
    let options = MountOptions { lines: Arc::clone(&lines), gate, forwarding: None, is_ours_alone: false };
    let mounted = Mounted::mount(&args.dir, &args.at, options).map_err(Failure::failed)?;
    config.folders = vec![folder(args, mounted.at().to_owned())?];
    // A parked database would see its next commit too late to tell it from the one after.
    let ended = run_daemon(config, signals, None, Policy::never(), Some(lines));
    drop(mounted);
    ended
}

/// The databases below the mount; their state folders lie behind it.
fn folder(args: &MountArgs, at: PathBuf) -> Result<FolderConfig, Failure> {
    let behind = args.dir.canonicalize().or_else(|_| std::path::absolute(&args.dir));
    let behind = behind.map_err(|e| Failure::io("use", &args.dir, &e))?;
    let mut folder = FolderConfig::everything(at, behind, args.store.clone());
    Settings { lease: args.lease, ..args.settings.clone() }.apply(&mut folder.template);
    settings::validate(&folder.template).map_err(Failure::usage)?;
    folder.share_lease();
    Ok(folder)
}
