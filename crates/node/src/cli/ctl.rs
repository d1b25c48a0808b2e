//! `ctl`, `sync` and `wait`: a running `replicate`, asked by its control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use rhyolite_format::Txid;
use rhyolite_logic::role::Role;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::exit::{Failure, Status};
use super::output::Output;
use crate::cluster::report::NodeReport;
use crate::cluster::witness::Durability;
use crate::config::units::{format_duration, parse_duration};
use crate::config::{DEFAULT_SOCKET, DatabaseConfig};
use crate::control::client::{self, AskError};
use crate::control::{Info, List, Wanted};
use crate::durability::{Level, Reached};
use crate::stream::push::{AcceptReport, PushReport};
use crate::supervise::reload::Reloaded;
use crate::time;

/// Time beyond that of the request after which the process is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take until a node is the primary.
pub(super) const PROMOTE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum CtlCommand {
    List(ListArgs),
    Add(AddArgs),
    Remove(RemoveArgs),
    Info(InfoArgs),
    Reload(ReloadArgs),
    Node(NodeStateArgs),
    Handoff(HandoffArgs),
    Promote(PromoteArgs),
}

/// Where the process is, and how it answers.
#[derive(Args, Clone, Debug)]
pub(super) struct SocketArgs {
    /// Control socket of the running process [default: /var/run/rhyolite.sock]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// List the databases of the running process.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl list --json")]
pub(super) struct ListArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Replicate one database more, with default settings.
///
/// It is not written into the configuration file: the next start does not know of it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl add new.db s3://bucket/new")]
pub(super) struct AddArgs {
    /// Database
    #[arg(value_name = "DB")]
    db: PathBuf,
    /// Store, with a prefix for this database alone
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Upload what is left of a database, and replicate it no more.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl remove old.db")]
pub(super) struct RemoveArgs {
    /// Database
    #[arg(value_name = "DB")]
    db: PathBuf,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Show what the running process is doing, in numbers.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl info")]
pub(super) struct InfoArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Read the configuration file again, as SIGHUP does. A file with a mistake changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl reload")]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Show the role of a running `rhyolite node`, who holds the lease and until when, and how far its replicas are.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  rhyolite ctl node --socket ./a.sock")]
pub(super) struct NodeStateArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Let the primary hand its role on to another node, which loses nothing.
///
/// Its application is stopped, what is left is uploaded, and the lease is given up; for the time of a lease this node does not take it again.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  rhyolite ctl handoff --socket ./a.sock\n  rhyolite ctl handoff --socket ./a.sock --to 127.0.0.1:20202"
)]
pub(super) struct HandoffArgs {
    /// Address of the node that is to have it, as its `ctl node` says; the others leave it to that one for half of the lease's time
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Let this node become the primary, which loses nothing: the present one hands its role on to it.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit statuses: 0 this node is the primary; 1 it is not, in time or ever.\n\nExample:\n  rhyolite ctl promote --socket ./b.sock"
)]
pub(super) struct PromoteArgs {
    /// How long it may take (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Become the primary also without commits that were acknowledged and that no node can be asked for (`--durability` of `node`): they are lost, unless a node that has them comes
    /// back, which keeps them as a lost branch
    #[arg(long)]
    forget_acknowledged: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Capture and upload now what was committed so far.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit statuses: 0 captured (with --wait: durable); 6 not durable in time.\n\nExample:\n  rhyolite sync \
app.db --wait"
)]
pub(super) struct SyncArgs {
    /// Database
    #[arg(value_name = "DB")]
    db: PathBuf,
    /// Wait until it is durable in the store
    #[arg(long)]
    wait: bool,
    /// Wait at most so long (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Wait until commits are durable in the store, or on other nodes: those that were made before, or up to a TXID.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit statuses: 0 durable; 6 not in time.\n\nExamples:\n  rhyolite wait app.db --timeout 5s\n  rhyolite wait app.db --level replica"
)]
pub(super) struct WaitArgs {
    /// Database
    #[arg(value_name = "DB")]
    db: PathBuf,
    /// Number of the commit, in decimal or 16 hexadecimal digits
    #[arg(long, value_name = "TXID", value_parser = super::when::parse_txid)]
    txid: Option<Txid>,
    /// Wait at most so long (30s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Where they must be: on other nodes only where these have `--durability` (store)
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    #[command(flatten)]
    socket: SocketArgs,
}

impl SocketArgs {
    /// A socket, for who prints nothing.
    pub(super) fn at(socket: Option<PathBuf>) -> Self {
        Self { socket, json: false }
    }

    /// Has the node become the primary.
    pub(super) fn promote(&self, limit: Duration, forget_acknowledged: bool) -> Result<(), Failure> {
        let timeout_ms = timeout_ms(Some(limit));
        self.ask("POST", "/promote", &Wanted { timeout_ms, forget_acknowledged, ..Wanted::default() })
    }

    pub(super) fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, wanted: &Wanted) -> Result<T, Failure> {
        let patience = PATIENCE + wanted.timeout_ms.map_or(PATIENCE, Duration::from_millis);
        self.send(method, path, wanted, patience).map_err(|error| self.failure(error))
    }

    /// Asks for something, with words of its own.
    pub(super) fn ask_with<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        wanted: &B,
        patience: Duration,
    ) -> Result<T, Failure> {
        self.send("POST", path, wanted, patience).map_err(|error| self.failure(error))
    }

    /// The same, for who has to know why there is no answer.
    pub(super) fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        wanted: &B,
        patience: Duration,
    ) -> Result<T, AskError> {
        client::ask(self.place(), method, path, wanted, patience)
    }

    fn place(&self) -> &Path {
        self.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET))
    }

    fn failure(&self, error: AskError) -> Failure {
        let socket = self.place();
        match error {
            AskError::Io(error) => Failure::failed(format!(
                "control socket {}: {} (is `socket.enabled` set, and `rhyolite replicate` running?)",
                socket.display(),
                crate::config::io_text(&error)
            )),
            AskError::Refused(text) => Failure::failed(text),
            AskError::TimedOut(text) => Failure::new(Status::NotDurable, text),
        }
    }

    /// Prints the answer: as JSON, or as `text` says.
    fn print<T: Serialize>(&self, answer: &T, text: impl FnOnce(&T) -> Vec<String>) -> Result<(), Failure> {
        let mut out = Output::new();
        if self.json {
            out.json(answer)?;
        } else {
            text(answer).into_iter().try_for_each(|line| out.line(line))?;
        }
        out.finish()
    }
}

/// The path as the process knows it.
pub(super) fn known_path(db: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(db).map_err(|e| Failure::io("use", db, &e))?;
    Ok(DatabaseConfig::new(path, String::new()).path)
}

/// A store that is a folder, as an absolute path: the process may have another working directory.
fn known_store(store: &str) -> Result<String, Failure> {
    if store.contains("://") {
        return Ok(store.to_owned());
    }
    let path = std::path::absolute(store).map_err(|e| Failure::io("use", Path::new(store), &e))?;
    path.into_os_string().into_string().map_err(|_| Failure::usage("the path of the store must be UTF-8"))
}

pub(super) fn run(command: CtlCommand) -> Result<(), Failure> {
    match command {
        CtlCommand::List(args) => list(&args),
        CtlCommand::Add(args) => {
            let wanted =
                Wanted { path: known_path(&args.db)?, store: Some(known_store(&args.store)?), ..Wanted::default() };
            args.socket.ask::<()>("POST", "/add", &wanted)?;
            args.socket.print(&wanted, |w| vec![format!("{} is replicated", w.path.display())])
        }
        CtlCommand::Remove(args) => {
            let wanted = Wanted { path: known_path(&args.db)?, ..Wanted::default() };
            args.socket.ask::<()>("POST", "/remove", &wanted)?;
            args.socket.print(&wanted, |w| vec![format!("{} is not replicated any more", w.path.display())])
        }
        CtlCommand::Info(args) => info(&args),
        CtlCommand::Reload(args) => {
            let done: Reloaded = args.socket.ask("POST", "/reload", &Wanted::default())?;
            args.socket
                .print(&done, |d| vec![format!("{} added, {} removed, {} changed", d.added, d.removed, d.changed)])
        }
        CtlCommand::Node(args) => {
            let report: NodeReport = args.socket.ask("GET", "/node", &Wanted::default())?;
            args.socket.print(&report, node)
        }
        CtlCommand::Handoff(args) => {
            args.socket.ask::<()>("POST", "/handoff", &Wanted { to: args.to, ..Wanted::default() })?;
            args.socket.print(&(), |()| vec!["the role is handed on".to_owned()])
        }
        CtlCommand::Promote(args) => {
            args.socket.promote(args.timeout.unwrap_or(PROMOTE_TIMEOUT), args.forget_acknowledged)?;
            args.socket.print(&(), |()| vec!["this node is the primary".to_owned()])
        }
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let list: List = args.socket.ask("GET", "/list", &Wanted::default())?;
    args.socket.print(&list, |list| {
        let line = |d: &crate::control::Listed| {
            let state = if d.parked { "parked".to_owned() } else { d.state.clone() };
            let reason = d.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            let txid = d.txid.map_or_else(|| "-".to_owned(), |t| t.to_string());
            let lag = match d.lag_ms {
                0 => String::new(),
                lag => format!(", {} behind", format_duration(Duration::from_millis(lag))),
            };
            format!("{} -> {}  TXID {txid}  {state}{reason}{lag}", d.path.display(), d.store)
        };
        list.databases.iter().map(line).collect()
    })
}

fn info(args: &InfoArgs) -> Result<(), Failure> {
    let info: Info = args.socket.ask("GET", "/info", &Wanted::default())?;
    args.socket.print(&info, |info| {
        let (process, totals) = (&info.process, &info.totals);
        let states = totals.states.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>();
        let mut lines = vec![
            format!("rhyolite {} with process id {}", process.version, process.pid),
            format!("{} databases ({}), {} of them parked", totals.databases, states.join(", "), totals.parked),
            format!("{} not durable, longest lag {} ms", totals.behind, totals.lag_ms_max),
            format!("{} requests to stores", totals.store_requests),
        ];
        lines.extend(info.pushes.iter().map(pushed));
        lines.extend(info.accepts.iter().map(accepted));
        lines
    })
}

/// A replica that is dialed.
fn pushed(push: &PushReport) -> String {
    let since = time::format_utc(push.since);
    match &push.error {
        _ if push.connected => format!("pushes to {} since {since}", push.to),
        Some(error) => format!("cannot push to {} since {since}: {error}", push.to),
        None => format!("does not push to {}: this process is not the primary", push.to),
    }
}

/// The place for a primary that dials.
fn accepted(accept: &AcceptReport) -> String {
    match accept.from.zip(accept.since) {
        Some((from, since)) => {
            let epoch = accept.epoch.map(|epoch| format!(" with epoch {epoch}")).unwrap_or_default();
            format!("a primary{epoch} has dialed {} from {from}, at {}", accept.listen, time::format_utc(since))
        }
        None => format!("no primary has dialed {}", accept.listen),
    }
}

fn node(report: &NodeReport) -> Vec<String> {
    let standby = if report.candidate { "" } else { ", never to be the primary" };
    let mut lines = vec![format!("{} at {}{standby}", report.role, report.address)];
    lines.push(format!("the lease is {}", report.lease));
    lines.push(match &report.holder {
        Some(holder) => {
            let until = holder.until.map(|until| format!(" until {}", time::format_utc(until)));
            let until = until.unwrap_or_else(|| " for good".to_owned());
            let epoch = holder.epoch.map(|epoch| format!(" with epoch {epoch}")).unwrap_or_default();
            let place = holder.address.as_deref().filter(|address| *address != holder.name);
            let place = place.map(|address| format!(" at {address}")).unwrap_or_default();
            let who = if holder.is_self {
                "this node holds it".to_owned()
            } else {
                format!("{}{place} holds it", holder.name)
            };
            format!("{who}{epoch}{until}")
        }
        None => "nobody is known to hold it".to_owned(),
    });
    if report.durability != Durability::Local.name() && report.is(Role::Primary) {
        let nodes = if report.witnesses.is_empty() { "none".to_owned() } else { report.witnesses.join(", ") };
        lines.push(format!("nodes that count for `{}`: {nodes}", report.durability));
    }
    for replica in &report.replicas {
        let txid = replica.txid.map_or_else(|| "-".to_owned(), |txid| txid.to_string());
        let lag = format_duration(Duration::from_millis(replica.lag_ms));
        let error = replica.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let path = replica.path.display();
        lines.push(format!("{path}  TXID {txid}  {} transactions, {lag} behind{error}", replica.behind));
    }
    lines
}

fn reached(reached: &Reached) -> Vec<String> {
    let place = match reached.level {
        _ if reached.durable => "durable",
        Level::Replica | Level::Quorum if reached.safe => "on other nodes",
        _ => "captured",
    };
    vec![format!("TXID {} is {place}", reached.txid)]
}

fn timeout_ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX / 2))
}

pub(super) fn sync(args: &SyncArgs) -> Result<(), Failure> {
    let timeout_ms = timeout_ms(args.timeout);
    let wanted = Wanted { path: known_path(&args.db)?, wait: args.wait, timeout_ms, ..Wanted::default() };
    let answer: Reached = args.socket.ask("POST", "/sync", &wanted)?;
    args.socket.print(&answer, reached)
}

pub(super) fn wait(args: &WaitArgs) -> Result<(), Failure> {
    let timeout_ms = timeout_ms(args.timeout);
    let (path, txid, level) = (known_path(&args.db)?, args.txid, args.level);
    let wanted = Wanted { path, txid, timeout_ms, level, ..Wanted::default() };
    let answer: Reached = args.socket.ask("POST", "/wait", &wanted)?;
    args.socket.print(&answer, reached)
}
