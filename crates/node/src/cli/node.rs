//! `node`: a folder of databases that is the primary's or a replica's, whichever this node is.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rhyolite_logic::park::Policy;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;

use super::cluster::token;
use super::exit::Failure;
use super::proxy::ProxyArgs;
use super::replicate::{COMMANDS_MAX, Signals, UPLOAD_MARGIN, block_on, check_inputs};
#[cfg(target_os = "linux")]
use crate::capture::commits::CommitLines;
#[cfg(target_os = "linux")]
use crate::capture::gate::{Gated, Teller};
use crate::capture::gate::{Held, tell_held};
use crate::cluster::promote::NodeControl;
use crate::cluster::witness::Durability;
use crate::cluster::{self, Guard, NodeConfig};
#[cfg(target_os = "linux")]
use crate::config::DatabaseConfig;
use crate::config::cluster::{AcceptConfig, ClusterConfig, TlsFiles};
use crate::config::folder::FolderConfig;
use crate::config::node::{DurabilityLevel, NODES, WriteForwarding};
use crate::config::settings::Settings;
use crate::config::units::parse_duration;
use crate::config::{self, Config, LogFormat, LogLevel, parse_addr};
use crate::control::{Controller, Reload};
use crate::daemon::Daemon;
use crate::durability::{Level, Waits};
use crate::follow::trails::Trails;
use crate::forward::transparent;
use crate::lease_place::LeaseUrl;
#[cfg(target_os = "linux")]
use crate::mount::MountOptions;
use crate::mount::{MountHandle, Mounted};
use crate::observe::{http, logging};
use crate::proxy::{Flight, Proxy, ProxyConfig};
use crate::status::StatusBoard;
use crate::stream::accept::Accepting;
use crate::stream::client::Access;
use crate::stream::tls::{self, ClientFiles};
use file::Resolved;

mod file;

/// Held by the process whose folder it is, and by the guard of its application.
const LOCK_FILE: &str = "node.lock";
/// How long the process before this one is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long a commit on a mount waits for other nodes.
const DURABILITY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests that were passed on are waited for at the end.
const FLIGHT_MAX: Duration = Duration::from_secs(2);
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// Keep a folder of databases alive on several machines: one node is the primary, the others follow it, and one of them takes over.
///
/// All nodes name the same STORE, and each a folder and an address of its own. Whoever holds the lease that lies in the store is the primary: it runs the
/// application of --exec, replicates every database of its folder to the store, as `replicate` does, and serves the other nodes at its address.
/// They keep their folders up to date commit by commit, for readers. When the primary stops, is killed, freezes or loses the store, another node catches up
/// with the store and becomes the primary.
///
/// The application must write only on the primary: with --exec it runs there alone, and a guard ends it before the lease can be another's. What a former
/// primary had and the others did not get is kept: `rhyolite branch list DIR`.
///
/// With --at the folder is mounted, as `mount` does it, and the application and readers use the mount: every journal mode is captured, nobody but the node writes on
/// a replica, and whoever has a database open for writing when the role ends can change nothing any more. It needs FUSE.
///
/// Everything can be said by flags, by a configuration file, or by both: a flag wins over its key.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "SIGINT or SIGTERM stops the application, uploads what is left and gives the lease up, so that another node takes \
over at once.\n\nExit statuses: 0 stopped and everything is durable; 6 stopped before that; with --exec, that of the \
application.\n\nExamples:\n  rhyolite node ./a --store ./backup --listen 127.0.0.1:20201\n  rhyolite node ./b --store \
./backup --listen 127.0.0.1:20202\n  rhyolite node ./a --store s3://bucket/prod --listen 127.0.0.1:20201 --exec \"./app --db ./a/app.db\"\n  rhyolite node ./a --store \
./backup --listen 127.0.0.1:20201 --lease etcd://127.0.0.1:2379/app/lease\n  rhyolite node ./a --at ./db --store \
./backup --listen 127.0.0.1:20201 --exec \"./app --db ./db/app.db\"\n  rhyolite node --config rhyolite.yml"
)]
pub(super) struct NodeArgs {
    /// Folder of the databases, and of nothing that is not replicated
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Mount DIR there, in an empty folder: the application and readers use it in every role, in every journal mode
    #[arg(long, value_name = "FOLDER")]
    at: Option<PathBuf>,
    /// Store of the cluster: below it every database gets a prefix, its path
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Serve the databases to the other nodes at IP:PORT, while this one is the primary; without TLS a loopback address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    listen: Option<SocketAddr>,
    /// Configuration file with what no flag says [default, without DIR: /etc/rhyolite.yml]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Leave $NAME and ${NAME} in the configuration file as they are
    #[arg(long)]
    no_expand_env: bool,
    /// Where the other nodes reach this one, if not at the address of --listen: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// While this node is the primary, dial this replica, which cannot reach it and has --accept: HOST:PORT; may be given again
    #[arg(long, value_name = "HOST:PORT")]
    push_to: Vec<String>,
    /// Do not dial the primary, but let it dial this address, IP:PORT; only with --candidate=false; without TLS a loopback address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    accept: Option<SocketAddr>,
    /// Secret that the nodes show each other
    #[arg(long, value_name = "TOKEN", env = "RHYOLITE_CLUSTER_TOKEN", hide_env_values = true)]
    cluster_token: Option<String>,
    /// Certificate of this node, with those that lead to its root: a PEM file, read again when it changes
    #[arg(long, value_name = "PATH")]
    cluster_cert: Option<PathBuf>,
    /// Private key of the certificate: a PEM file
    #[arg(long, value_name = "PATH")]
    cluster_key: Option<PathBuf>,
    /// Each node must show a certificate for which one of these vouches: a PEM file
    #[arg(long, value_name = "PATH")]
    cluster_ca: Option<PathBuf>,
    /// Where the lease lies, if not in the store: consul://HOST:PORT/KEY, etcd://HOST:PORT/KEY, kubernetes://NAMESPACE/NAME; or who is the primary, for good: static://primary (this node) or static://HOST:PORT
    // As text: clap repeats what it cannot parse, and a password may be in it.
    #[arg(long, value_name = "URL", env = "RHYOLITE_LEASE", hide_env_values = true)]
    lease: Option<String>,
    /// Whether this node may become the primary (true or false; true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    candidate: Option<bool>,
    /// On how many disks a commit is before it counts as safe, and survives the loss of the primary: `local`, this one, and the store when it gets there; `replica`, that of one other node; `quorum`, those
    /// of a majority of --nodes. With --at COMMIT waits for that, otherwise whoever asks (`rhyolite wait --level`) (local)
    #[arg(long, value_name = "LEVEL")]
    durability: Option<DurabilityLevel>,
    /// How many nodes the cluster has, for `--durability quorum`
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(NODES))]
    nodes: Option<u32>,
    /// How long a commit on the mount of --at waits for --durability before it fails with an I/O error (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    durability_timeout: Option<Duration>,
    /// How applications on a replica write: `explicit`, by `rhyolite run --write-lock`; `transparent`, with --at also by themselves, to databases in WAL mode: each transaction is committed on the
    /// primary, and only then here (explicit)
    #[arg(long, value_name = "HOW")]
    write_forwarding: Option<WriteForwarding>,
    /// Run this command while this node is the primary; when it ends by itself, the node stops with its exit status
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Serve /metrics, /status, /events, /healthz and /readyz at IP:PORT; :PORT listens everywhere
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    addr: Option<SocketAddr>,
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
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(given: &NodeArgs) -> Result<u8, Failure> {
    let resolved = file::resolve(given)?;
    let args = &resolved.args;
    let lease = args.lease.as_deref().map(LeaseUrl::parse).transpose();
    let lease = lease.map_err(|m| Failure::usage(format!("--lease: {m}")))?;
    let mut server = server(args)?;
    let is_candidate = is_candidate(args, lease.as_ref())?;
    let is_static = lease.as_ref().is_some_and(LeaseUrl::is_static);
    let accepting = accepting(args, &server, (is_candidate, is_static))?;
    let durability = durability(args)?;
    let gate = gate(args, durability)?;
    let (forwarding, forwarded) = forwarding(args)?.unzip();
    let proxy = args.proxy.config(needed(args.dir.as_ref(), "DIR", "node.dir")?, durability)?;
    let mut folder = folder(&resolved)?;
    server.proxy = proxy.as_ref().map(|proxy| proxy.advertise.clone());
    let (flight, trails) = (Flight::default(), Arc::new(Trails::new(durability != Durability::Local)));
    let config = config(&resolved, folder.clone());
    check_inputs(&config)?;
    logging::start(config.logging);
    let lock = lock(&folder)?;
    // Before any other thread or process is there, and before any database is opened.
    let guard =
        args.exec.as_deref().map(|command| Guard::start(command, &lock)).transpose().map_err(Failure::failed)?;
    // And a signal must not end the process between the mount and its end.
    let signals = Signals::listen(&config)?;
    let (mounted, held) = mount(args, &mut folder, gate, forwarding)?;
    let proxy = proxy.map(|proxy| ProxyConfig { dir: folder.dir.clone(), ..proxy });
    let node = NodeConfig {
        mount: mounted.as_ref().map(Mounted::handle),
        folder,
        address: address(args)?,
        access: access(args, &server)?,
        is_candidate,
        accepting,
        lease,
        stop_timeout: config.shutdown_sync_timeout,
        // As for `mount`: a parked database would see its next commit too late to tell it from the one after.
        parking: if args.at.is_some() { Policy::never() } else { Policy::default() },
        flight: flight.clone(),
        trails,
        durability,
        forgets: watch::Sender::new(false),
    };
    let config = Config { cluster: Some(server), ..config };
    let (proxy, reload) = (proxy.map(|proxy| (proxy, flight)), file::reload(given, &resolved));
    let forwarded = forwarded.zip(mounted.as_ref().map(Mounted::handle));
    let parts = Parts { guard, signals, proxy, reload, held, forwarded };
    let ended = run_daemon(config, node, parts);
    drop(mounted);
    drop(lock);
    ended
}

/// Where there is no FUSE nothing is mounted.
#[cfg(not(target_os = "linux"))]
fn mount(
    args: &NodeArgs,
    _: &mut FolderConfig,
    _: Option<(Level, Duration)>,
    _: Option<std::sync::mpsc::Sender<transparent::Request>>,
) -> Result<(Option<Mounted>, Option<UnboundedReceiver<Held>>), Failure> {
    match &args.at {
        None => Ok((None, None)),
        Some(_) => Err(Failure::usage("--at needs FUSE, which rhyolite uses on Linux only")),
    }
}

/// Mounts the folder, if that is wanted. From then on its databases are those in front, and their state folders lie behind. Who waits at the gate of the mount comes to the
/// other end of what is given.
#[cfg(target_os = "linux")]
fn mount(
    args: &NodeArgs,
    folder: &mut FolderConfig,
    gate: Option<(Level, Duration)>,
    forwarding: Option<std::sync::mpsc::Sender<transparent::Request>>,
) -> Result<(Option<Mounted>, Option<UnboundedReceiver<Held>>), Failure> {
    let Some(at) = &args.at else { return Ok((None, None)) };
    let (teller, held) = gate.map(|(_, timeout)| Teller::new(timeout)).unzip();
    let lines = CommitLines::new(teller.map(Gated::Nodes));
    let lines = lines.map_err(|e| Failure::failed(format!("start a thread: {e}")))?;
    // Nobody writes before this node is the primary.
    let options = MountOptions { lines: Arc::new(lines), gate, forwarding, is_ours_alone: true };
    let mounted = Mounted::mount(&folder.dir, at, options).map_err(Failure::failed)?;
    let template = folder.template.clone();
    let (behind, store) = (folder.dir.clone(), template.store.clone());
    *folder =
        FolderConfig { pick: folder.pick.clone(), ..FolderConfig::everything(mounted.at().to_owned(), behind, store) };
    folder.template = DatabaseConfig { path: folder.dir.clone(), ..template };
    Ok((Some(mounted), held))
}

/// What runs beside the node.
struct Parts {
    guard: Option<Guard>,
    signals: Signals,
    proxy: Option<(ProxyConfig, Flight)>,
    reload: Option<Reload>,
    /// Who waits at the gate of the mount.
    held: Option<UnboundedReceiver<Held>>,
    /// What the mount asks for, for those who write on a replica, and that mount.
    forwarded: Option<(UnboundedReceiver<transparent::Request>, MountHandle)>,
}

/// What the node has in common with every daemon.
fn config(resolved: &Resolved, folder: FolderConfig) -> Config {
    let args = &resolved.args;
    let mut config = Config { addr: args.addr, exec: args.exec.clone(), folders: vec![folder], ..Config::default() };
    config.socket.clone_from(&resolved.socket);
    config.logging.level = args.log_level.unwrap_or(config.logging.level);
    config.logging.format = args.log_format.unwrap_or(config.logging.format);
    config.shutdown_sync_timeout = args.shutdown_sync_timeout.unwrap_or(config.shutdown_sync_timeout);
    config
}

/// What must be said somewhere.
fn needed<'a, T>(value: Option<&'a T>, flag: &str, key: &str) -> Result<&'a T, Failure> {
    value.ok_or_else(|| Failure::usage(format!("{flag} is missing: give it, or {key} in a configuration file")))
}

fn listen(args: &NodeArgs) -> Result<SocketAddr, Failure> {
    needed(args.listen.as_ref(), "--listen", "cluster.listen").copied()
}

/// Where the others are served.
fn server(args: &NodeArgs) -> Result<ClusterConfig, Failure> {
    let tls = TlsFiles::new(args.cluster_cert.clone(), args.cluster_key.clone(), args.cluster_ca.clone());
    let tls = tls.map_err(|m| Failure::usage(format!("--cluster-cert and --cluster-key: {m}")))?;
    let token = token(args.cluster_token.as_deref())?;
    ClusterConfig::new(Some(listen(args)?), &args.push_to, token, tls).map_err(Failure::usage)
}

/// The place for a primary that dials this node. Only a node that never dials anybody has one: whoever may become the primary is reached by the others.
fn accepting(
    args: &NodeArgs,
    server: &ClusterConfig,
    (is_candidate, is_static): (bool, bool),
) -> Result<Option<Arc<Accepting>>, Failure> {
    if !is_candidate && !args.push_to.is_empty() {
        return Err(Failure::usage("--push-to has no effect on a node that never becomes the primary"));
    }
    let Some(listen) = args.accept else { return Ok(None) };
    if is_candidate {
        return Err(Failure::usage("--accept is for nodes that never become the primary: give --candidate=false"));
    }
    let config = AcceptConfig::new(listen, server.token.clone(), server.tls.clone());
    let config = config.map_err(|m| Failure::usage(format!("--{m}")))?;
    // Where a person has named the primary, its right is not known.
    Accepting::new(config, !is_static).map(Some).map_err(Failure::failed)
}

/// What this node shows the others, as a replica: the same as a primary.
fn access(args: &NodeArgs, server: &ClusterConfig) -> Result<Access, Failure> {
    let Some(files) = &server.tls else { return Ok(Access { token: server.token.clone(), ..Access::default() }) };
    let identity = files.client_ca.as_ref().map(|_| (files.cert.clone(), files.key.clone()));
    let tls = ClientFiles { ca: args.cluster_ca.clone(), identity };
    // That the files can be read is seen before anything is begun.
    tls::client_config(&tls).map_err(Failure::failed)?;
    Ok(Access { token: server.token.clone(), tls })
}

/// When a commit counts as safe. What belongs together is said together.
fn durability(args: &NodeArgs) -> Result<Durability, Failure> {
    match (args.durability.unwrap_or(DurabilityLevel::Local), args.nodes) {
        (DurabilityLevel::Local, None) => Ok(Durability::Local),
        (DurabilityLevel::Replica, None) => Ok(Durability::Replica),
        (DurabilityLevel::Quorum, Some(nodes)) => Ok(Durability::Quorum { nodes }),
        (DurabilityLevel::Quorum, None) => {
            Err(Failure::usage("--durability quorum needs --nodes: how many nodes the cluster has"))
        }
        (_, Some(_)) => {
            Err(Failure::usage("--nodes says how many nodes a quorum is of: give --durability quorum, too"))
        }
    }
}

/// Where commits on the mount must be before the application is told of them, and for how long it waits. On a plain folder nobody can keep it waiting.
fn gate(args: &NodeArgs, durability: Durability) -> Result<Option<(Level, Duration)>, Failure> {
    let level = match durability {
        Durability::Local => None,
        Durability::Replica => Some(Level::Replica),
        Durability::Quorum { .. } => Some(Level::Quorum),
    };
    let level = level.filter(|_| args.at.is_some());
    match (level, args.durability_timeout) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Failure::usage(
            "--durability-timeout says how long a commit waits on the mount of --at for `--durability replica` or `quorum`: give both, too",
        )),
        (Some(_), Some(Duration::ZERO)) => {
            Err(Failure::usage("--durability-timeout must not be 0: no commit could wait for other nodes"))
        }
        (Some(level), timeout) => Ok(Some((level, timeout.unwrap_or(DURABILITY_TIMEOUT)))),
    }
}

/// Both ends of what the mount asks for, where applications on a replica write by themselves. On a plain folder nobody stands between them and the file.
#[expect(clippy::type_complexity, reason = "two ends of one line")]
fn forwarding(
    args: &NodeArgs,
) -> Result<Option<(std::sync::mpsc::Sender<transparent::Request>, UnboundedReceiver<transparent::Request>)>, Failure> {
    if args.write_forwarding != Some(WriteForwarding::Transparent) {
        return Ok(None);
    }
    if args.durability.is_some_and(|level| level != DurabilityLevel::Local) {
        return Err(Failure::usage(
            "--write-forwarding transparent contradicts --durability: a commit that is forwarded would not wait for other nodes",
        ));
    }
    if args.at.is_none() {
        return Err(Failure::usage(
            "--write-forwarding transparent needs --at: only on a mount can a commit wait for the primary",
        ));
    }
    let line = transparent::line();
    line.map(Some).map_err(|e| Failure::failed(format!("start a thread: {e}")))
}

/// Whether this node may become the primary. Where a person has said who it is, that decides.
fn is_candidate(args: &NodeArgs, lease: Option<&LeaseUrl>) -> Result<bool, Failure> {
    let Some(lease) = lease.filter(|lease| lease.is_static()) else {
        return Ok(args.candidate.unwrap_or(true));
    };
    let named = lease.named_primary();
    let is_primary = named.is_none();
    if args.candidate.is_some_and(|candidate| candidate != is_primary) {
        return Err(Failure::usage(format!("--candidate contradicts --lease {lease}")));
    }
    if args.durability.is_some_and(|level| level != DurabilityLevel::Local) {
        return Err(Failure::usage(format!(
            "--durability cannot be kept with --lease {lease}: there is no lease in which the nodes could be named that have a commit, so whoever is made the primary next would ask nobody"
        )));
    }
    if args.settings.lease_ttl.is_some() {
        return Err(Failure::usage(format!("--lease-ttl has no effect with --lease {lease}: it never runs out")));
    }
    let own = address(args)?;
    if named.is_some_and(|named| own.rsplit("//").next() == Some(&named)) {
        return Err(Failure::usage(format!("--lease {lease} is this node itself: --lease static://primary")));
    }
    Ok(is_primary)
}

/// What the others are told: with TLS the name that the certificate has.
fn address(args: &NodeArgs) -> Result<String, Failure> {
    let listen = listen(args)?;
    let place = args.advertise.clone().unwrap_or_else(|| listen.to_string());
    let is_everywhere = args.advertise.is_none() && listen.ip().is_unspecified();
    if is_everywhere {
        return Err(Failure::usage(format!(
            "{place} is no address for others: say by --advertise where they reach this node"
        )));
    }
    let address = if args.cluster_cert.is_some() { format!("https://{place}") } else { place };
    // One form only: others compare it.
    cluster::known_address(&address).map_err(|m| Failure::usage(format!("--advertise: {m}")))
}

fn run_daemon(config: Config, node: NodeConfig, parts: Parts) -> Result<u8, Failure> {
    let Parts { guard, signals, proxy, reload, held, forwarded } = parts;
    let stop = signals.stop;
    block_on(async {
        let board = StatusBoard::new();
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (handoff_sender, handoffs) = mpsc::channel(1);
        if let Some(held) = held {
            tokio::spawn(tell_held(held, Arc::clone(&board)));
        }
        if let Some((config, flight)) = proxy {
            let listener = http::bind(config.listen).await.map_err(Failure::failed)?;
            let parts = (flight.clone(), Arc::clone(&node.trails));
            let waits = Waits::new(Arc::clone(&board), sender.clone(), node.durability);
            let proxy = Proxy::new(config, Arc::clone(&board), waits, node.access.clone(), parts);
            tokio::spawn(proxy.serve(listener));
        }
        if let Some(accepting) = &node.accepting {
            let listener = http::bind(accepting.listen()).await.map_err(Failure::failed)?;
            board.set_accepting(Arc::clone(accepting));
            tokio::spawn(Arc::clone(accepting).serve(listener));
        }
        let flight = node.flight.clone();
        let patience = node.folder.template.lease.ttl / 2;
        let (folder, access) = (node.folder.clone(), node.access.clone());
        let (durability, forgets) = (node.durability, node.forgets.clone());
        let (accepting, borrows) = (node.accepting.clone(), Arc::default());
        let control =
            NodeControl { handoffs: handoff_sender, folder, access, patience, durability, forgets, accepting, borrows };
        if let Some((forwarded, mount)) = forwarded {
            tokio::spawn(transparent::serve(control.clone(), Arc::clone(&board), mount, forwarded));
        }
        let controller = Controller { board: board.clone(), commands: sender, reload, node: Some(control) };
        let stop_timeout = config.shutdown_sync_timeout;
        let daemon = Daemon {
            board: board.clone(),
            addr: config.addr,
            socket: config.socket,
            cluster: config.cluster,
            controller,
            stop_timeout,
            // The application ends within it as well, and the lease is given up.
            upload_timeout: 2 * stop_timeout + 2 * UPLOAD_MARGIN,
            application: None,
            stop: stop.clone(),
        };
        // The node is told to stop by the signal itself, which it passes on to its application.
        let ended = daemon.run(async |_| cluster::run(node, guard, board, commands, handoffs, stop).await).await;
        // What was passed on to the primary is answered.
        flight.finished(FLIGHT_MAX).await;
        ended
    })
}

fn folder(resolved: &Resolved) -> Result<FolderConfig, Failure> {
    let args = &resolved.args;
    let dir = needed(args.dir.as_ref(), "DIR", "node.dir")?;
    let store = needed(args.store.as_ref(), "--store", "node.replica.url")?;
    std::fs::create_dir_all(dir).map_err(|e| Failure::io("make", dir, &e))?;
    let dir = dir.canonicalize().map_err(|e| Failure::io("use", dir, &e))?;
    config::node::folder(dir, store.clone(), resolved.credentials.clone(), &args.settings).map_err(Failure::usage)
}

/// Takes the folder for this process. That of a process before this one is waited for, and so is the guard of its application.
fn lock(folder: &FolderConfig) -> Result<File, Failure> {
    let meta_path = folder.template.lease.meta_path.as_deref().unwrap_or(Path::new("."));
    let path = meta_path.join(LOCK_FILE);
    std::fs::create_dir_all(meta_path).map_err(|e| Failure::io("make", meta_path, &e))?;
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Failure::io("open", &path, &e))?;
    let began = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_LOOK),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let dir = folder.dir.display();
                return Err(Failure::failed(format!(
                    "another node has the folder {dir}, or its application still runs"
                )));
            }
            Err(e) => return Err(Failure::io("lock", &path, &e.into())),
        }
    }
}
