//! `replicate`: from flags or a file to a running daemon.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_logic::park::Policy;
use tokio::sync::mpsc;

use super::cluster::ClusterArgs;
use super::exit::{Failure, Status};
use crate::capture::commits::CommitLines;
use crate::config::settings::{Settings, validate};
use crate::config::units::parse_duration;
use crate::config::{
    Config, ConfigError, DatabaseConfig, LogFormat, LogLevel, SocketConfig, file, io_text, parse_addr,
};
use crate::control::{Controller, Reload};
use crate::daemon::Daemon;
use crate::exec::{self, RunningChild};
use crate::observe::logging;
use crate::replicate::ReplicateError;
use crate::signals::{self, StopRequest};
use crate::status::StatusBoard;
use crate::supervise::{self, SuperviseOptions};

/// Where the configuration is when neither a flag nor the environment says so.
pub(super) const DEFAULT_CONFIG: &str = "/etc/rhyolite.yml";
/// What replication may take beyond the bound of its last upload, to wind up.
pub(super) const UPLOAD_MARGIN: Duration = Duration::from_secs(2);
/// Time beyond all bounds of a stop after which the process ends by force.
const HARD_STOP_MARGIN: Duration = Duration::from_secs(5);
/// Threads of the runtime. Capture and checksums have threads of their own.
const WORKER_THREADS: usize = 2;
/// Threads for calls that block, such as writing to a folder.
const BLOCKING_THREADS_MAX: usize = 16;
/// Requests of the control socket that wait.
pub(super) const COMMANDS_MAX: usize = 64;
/// The store that only tests have a use for.
const MEMORY: &str = "memory:";
/// Parks after every commit. The grain is that of file systems which keep times by the tick of the system's clock.
const EAGER: Policy =
    Policy { grain: Duration::from_millis(40), after: Duration::ZERO, after_min: Duration::ZERO, bytes_max: 256 << 20 };

/// Replicate databases to their stores until told to stop.
///
/// Either one database and its store are named here, or a configuration file names them. The databases may be in use, and
/// nothing is written into them. Their state is kept in a folder `.NAME-rhyolite` beside each.
///
/// SIGINT or SIGTERM stops: what is left is uploaded within --shutdown-sync-timeout; a second signal ends at once. Nothing
/// is lost either way: the next start goes on where this one stopped.
#[derive(Debug, Args)]
#[command(
    after_help = "Stores:\n  ./folder, /folder, file:///folder\n  s3://bucket/prefix?region=...&endpoint=...\n  \
gs://bucket/prefix\n  abs://container/prefix\n\nA configuration file that is called litestream.yml is read \
as Litestream's: `rhyolite config` shows what becomes of it.\n\nExit statuses: 0 stopped and everything is durable; 6 stopped before \
that; with --exec, that of the application.\n\nExamples:\n  rhyolite replicate app.db ./backup\n  rhyolite replicate \
app.db s3://bucket/app --sync-interval 0 --addr :9090\n  rhyolite replicate --config rhyolite.yml --exec \"./app --port \
80\""
)]
pub(super) struct ReplicateArgs {
    /// Database to replicate
    #[arg(value_name = "DB", requires = "store")]
    db: Option<PathBuf>,
    /// Store, with a prefix for this database alone
    #[arg(value_name = "STORE")]
    store: Option<String>,
    /// Configuration file, when no database is given [default: /etc/rhyolite.yml]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Leave $NAME and ${NAME} in the configuration file as they are
    #[arg(long)]
    no_expand_env: bool,
    /// Run this command beside replication, and stop when it ends; its exit status becomes that of rhyolite
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
    /// State folder (.NAME-rhyolite beside the database)
    #[arg(long, value_name = "PATH", requires = "db")]
    meta_path: Option<PathBuf>,
    /// Keep the lease in this store, and share it with every database whose lease lies there
    #[arg(long, value_name = "STORE", requires = "db")]
    lease_url: Option<String>,
    /// Hold a lease in the store, so that two processes cannot write there at a time (true or false; true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    lease: Option<bool>,
    /// Park a database as soon as nothing is left to do: for tests, on a file system with exact times
    #[arg(long, hide = true)]
    park_eagerly: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &ReplicateArgs) -> Result<u8, Failure> {
    let config = resolve(args)?;
    check_inputs(&config)?;
    logging::start(config.logging);
    for note in &config.notes {
        tracing::warn!(key = %note.key, what = note.kind.name(), "litestream.yml: {}", note.text);
    }
    let parking = if args.park_eagerly { EAGER } else { Policy::default() };
    let signals = Signals::listen(&config)?;
    run_daemon(config, signals, reload(args), parking, None)
}

/// Signals are received from here on: what the process has begun by then is ended in order.
pub(super) struct Signals {
    pub(super) stop: StopRequest,
    child: RunningChild,
}

impl Signals {
    pub(super) fn listen(config: &Config) -> Result<Self, Failure> {
        let child = RunningChild::default();
        let steps = if config.exec.is_some() { 2 } else { 1 };
        let bound = config.shutdown_sync_timeout * steps + UPLOAD_MARGIN + HARD_STOP_MARGIN;
        let stop = signals::listen(bound, Status::NotDurable, child.clone());
        let stop = stop.map_err(|e| Failure::failed(format!("cannot receive signals: {}", io_text(&e))))?;
        Ok(Self { stop, child })
    }
}

/// Replicates what `config` says until it is time to stop.
pub(super) fn run_daemon(
    config: Config,
    signals: Signals,
    reload: Option<Reload>,
    parking: Policy,
    commits: Option<Arc<CommitLines>>,
) -> Result<u8, Failure> {
    let Signals { stop, child } = signals;
    block_on(async {
        // Before any database is opened: see `exec`.
        let application = config.exec.as_deref().map(|command| exec::spawn(command, child));
        let application = application.transpose().map_err(Failure::failed)?;
        let board = StatusBoard::new();
        let stop_timeout = config.shutdown_sync_timeout;
        let upload_timeout = stop_timeout + UPLOAD_MARGIN;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let controller = Controller { board: board.clone(), commands: sender, reload, node: None };
        let socket = config.socket;
        let serves = config.cluster.is_some();
        let daemon = Daemon {
            board: board.clone(),
            addr: config.addr,
            socket,
            cluster: config.cluster,
            controller,
            stop_timeout,
            upload_timeout,
            application,
            stop,
        };
        let Config { databases, folders, .. } = config;
        // Before anybody can ask whether all are ready.
        board.set_unsearched(folders.len());
        let options = SuperviseOptions { databases, folders, stop_timeout, parking, commits, serves, lease: None };
        daemon
            .run(async |stop| {
                // A task of its own: what hangs there does not keep the daemon from ending in time.
                let supervised = tokio::spawn(supervise::run(options, board, stop, Some(commands))).await;
                ended(supervised.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
            })
            .await
    })
}

/// Runs a daemon on the threads that it has.
pub(super) fn block_on(daemon: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("rhyolite")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start threads: {}", io_text(&e))))?;
    let result = runtime.block_on(daemon);
    // A store or a disk that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Reads the configuration file again, when there is one.
fn reload(args: &ReplicateArgs) -> Option<Reload> {
    if args.db.is_some() {
        return None;
    }
    let path = args.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
    let expand = !args.no_expand_env;
    Some(Arc::new(move || {
        let config = file::load(&path, expand)?;
        if config.node.is_some() {
            let text = "`node` is for `rhyolite node`: this process replicates the databases of `dbs`";
            return Err(ConfigError { file: Some(path.clone()), ..ConfigError::new(text) });
        }
        let all = config.databases.iter().chain(config.folders.iter().map(|folder| &folder.template));
        for database in all {
            let opened = rhyolite_store::open(&database.store, &database.store_options());
            opened.map_err(|e| ConfigError::new(format!("{}: {e}", database.path.display())))?;
        }
        Ok(config)
    }))
}

/// How errors of databases that cannot be replicated end the command: the first of them, and how many others.
fn ended(errors: Vec<ReplicateError>) -> Result<u8, Failure> {
    let Some(first) = errors.first() else { return Ok(Status::Ok.code()) };
    let status = match first {
        ReplicateError::WrongLineage(_) => Status::WrongLineage,
        ReplicateError::NotDurable(_) => Status::NotDurable,
        ReplicateError::NotADatabase(_)
        | ReplicateError::Conflict(_)
        | ReplicateError::Held(_)
        | ReplicateError::Store(_)
        | ReplicateError::Local(_) => Status::Failed,
    };
    let others = if errors.len() > 1 { format!(" (and {} other databases)", errors.len() - 1) } else { String::new() };
    Err(Failure::new(status, format!("{first}{others}")))
}

/// The configuration that flags and file make together.
fn resolve(args: &ReplicateArgs) -> Result<Config, Failure> {
    let named = args.config.as_ref().filter(|path| std::env::var_os("RHYOLITE_CONFIG").is_none_or(|of| of != **path));
    if args.db.is_some() && named.is_some() {
        return Err(Failure::usage("give either DB and STORE, or --config: the file would have no effect"));
    }
    let mut config = match (&args.db, &args.store) {
        (Some(db), Some(store)) => one_database(args, db, store)?,
        _ => from_file(args)?,
    };
    config.exec = args.exec.clone().or(config.exec);
    config.addr = args.addr.or(config.addr);
    if let Some(path) = &args.socket {
        config.socket = Some(SocketConfig::private(path.clone()));
    }
    args.cluster.apply(&mut config)?;
    config.logging.level = args.log_level.unwrap_or(config.logging.level);
    config.logging.format = args.log_format.unwrap_or(config.logging.format);
    config.shutdown_sync_timeout = args.shutdown_sync_timeout.unwrap_or(config.shutdown_sync_timeout);
    Ok(config)
}

fn one_database(args: &ReplicateArgs, db: &Path, store: &str) -> Result<Config, Failure> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Failure::io("use", path, &e));
    let mut database = DatabaseConfig::new(absolute(db)?, store.to_owned());
    if let Some(meta_path) = &args.meta_path {
        database.meta_path = absolute(meta_path)?;
    }
    settings(args).apply(&mut database);
    database.lease.store.clone_from(&args.lease_url);
    validate(&database).map_err(Failure::usage)?;
    Ok(Config { databases: vec![database], ..Config::default() })
}

/// What flags say of the database.
fn settings(args: &ReplicateArgs) -> Settings {
    Settings { lease: args.lease, ..args.settings.clone() }
}

fn from_file(args: &ReplicateArgs) -> Result<Config, Failure> {
    if settings(args) != Settings::default() {
        let message = "settings of a database belong into the configuration file, or name DB and STORE here";
        return Err(Failure::usage(message));
    }
    let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    if args.config.is_none() && !path.exists() {
        let message = format!(
            "nothing to replicate: name DB and STORE, or a configuration file ({DEFAULT_CONFIG} does not exist)"
        );
        return Err(Failure::usage(message));
    }
    let config = file::load(path, !args.no_expand_env)?;
    if config.node.is_some() {
        let text = "`node` describes a node of a cluster: start it with `rhyolite node --config`";
        return Err(Failure::usage(format!("{}: {text}", path.display())));
    }
    if config.databases.is_empty() && config.folders.is_empty() {
        return Err(Failure::usage(format!("{}: no databases: list them under `dbs`", path.display())));
    }
    Ok(config)
}

/// Refuses what cannot become right while the daemon runs, before anything is touched. Nothing is open yet, so reading and
/// closing a database file here drops no locks.
///
/// Among several databases a sick one must not keep the others from being replicated: it is left to their status.
pub(super) fn check_inputs(config: &Config) -> Result<(), Failure> {
    if let ([database], []) = (&config.databases[..], &config.folders[..]) {
        check_database(&database.path)?;
    }
    let folders = config.folders.iter().map(|folder| &folder.template);
    for database in config.databases.iter().chain(folders) {
        let opened = rhyolite_store::open(&database.store, &database.store_options());
        let store = opened.map_err(|e| Failure::usage(format!("cannot replicate {}: {e}", database.path.display())))?;
        if store.describe() == MEMORY {
            let path = database.path.display();
            return Err(Failure::usage(format!(
                "cannot replicate {path}: {MEMORY} ends with the process, and the backup with it"
            )));
        }
    }
    Ok(())
}

fn check_database(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().unwrap_or(path);
    if !parent.is_dir() {
        return Err(Failure::failed(format!(
            "cannot replicate {}: there is no folder {}",
            path.display(),
            parent.display()
        )));
    }
    if path.is_dir() {
        return Err(Failure::failed(format!("cannot replicate {}: it is a folder, not a database", path.display())));
    }
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        // It may be created later.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Failure::io("open", path, &e)),
    };
    let mut start = [0; DATABASE_HEADER_SIZE];
    match file.read_exact(&mut start) {
        Ok(()) => {}
        // SQLite takes an empty file as an empty database.
        Err(_) if file.metadata().is_ok_and(|meta| meta.len() == 0) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(e) => return Err(Failure::io("read", path, &e)),
    }
    let decoded = DatabaseHeader::decode(&start).map(|_| ());
    decoded.map_err(|e| Failure::failed(format!("cannot replicate {}: not a SQLite database ({e})", path.display())))
}
