//! `follow`: plain files that are kept up to date with the databases of another node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rhyolite_format::{Checksum, Timestamp, Txid};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::cluster::token;
use super::exit::{Failure, Status};
use super::output::Output;
use super::store;
use crate::config::cluster::{AcceptConfig, TlsFiles};
use crate::config::units::parse_duration;
use crate::config::{LogLevel, LoggingConfig, io_text, parse_addr};
use crate::exec::RunningChild;
use crate::follow::ReplicaJournal;
use crate::follow::node::{Event, NodeError, NodeOptions, Reached, follow_node};
use crate::follow::source::Source;
use crate::observe::{http, logging};
use crate::restore::{Existing, RestoreError};
use crate::stream::SILENCE_MAX;
use crate::stream::accept::Accepting;
use crate::stream::client::{Access, Address};
use crate::stream::tls::{self, ClientFiles};
use crate::{signals, time};

/// How long readers of a file are waited for before they get another turn.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a batch that is being applied may take after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Positions are printed at most this often.
const PRINT_GAP: Duration = Duration::from_millis(100);
/// Events that wait to be printed.
const EVENTS_MAX: usize = 1024;

/// Keep plain files up to date with the databases of a node, commit by commit.
///
/// URL is where a `rhyolite replicate` or `mount` with --cluster-listen serves what it captures. Instead of it --accept lets the node dial, with --cluster-push-to. Without DB all its databases are followed into a
/// folder, with DB one into a file. SQLite may read the files at any time, but not write to them. Each step is proved by the checksum of the whole
/// database before it is applied. What the node does not have any more, and the beginning, come from the store, through the node.
#[derive(Debug, Args)]
#[command(
    after_help = "A connection that is lost is made again. SIGINT or SIGTERM stops; the next start goes on from there.\n\nExit \
statuses: 0 stopped; 1 the file is no longer what was followed, or the node refuses; 3 damage found; 4 another history; 5 no such \
database.\n\nExamples:\n  rhyolite follow http://127.0.0.1:20202 app.db --into replica.db\n  rhyolite follow \
https://primary.example:20202 --ca ca.pem --into ./replicas --json\n  rhyolite follow --accept 127.0.0.1:20203 \
app.db --into replica.db"
)]
pub(super) struct FollowArgs {
    /// Where the node listens; not with --accept
    #[arg(value_name = "URL", required_unless_present = "accept")]
    url: Option<String>,
    /// Name of one database: its path below the node's folder, or its file name
    #[arg(value_name = "DB")]
    database: Option<String>,
    /// Do not dial the node, but let it dial this address, IP:PORT; without TLS a loopback address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    accept: Option<SocketAddr>,
    /// File to keep up to date; without DB, or when it is a folder, a folder of files
    #[arg(long, value_name = "PATH")]
    into: PathBuf,
    /// Secret that the node wants to be shown, and must know with --accept
    #[arg(long, value_name = "TOKEN", env = "RHYOLITE_CLUSTER_TOKEN", hide_env_values = true)]
    cluster_token: Option<String>,
    /// With https: who vouches for the node, instead of those whom the system trusts; with --accept: it must show a certificate for which one of these vouches: a PEM file
    #[arg(long, value_name = "PATH")]
    ca: Option<PathBuf>,
    /// Certificate for a node that asks for one, and with --accept for every node: a PEM file
    #[arg(long, value_name = "PATH", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the certificate: a PEM file
    #[arg(long, value_name = "PATH", requires = "cert")]
    key: Option<PathBuf>,
    /// Replace files that exist and are not followed yet
    #[arg(long)]
    force: bool,
    /// Journal of the files: with `wal` readers are never waited for; with `delete` they need nothing but the file (wal)
    #[arg(long, value_name = "MODE", default_value = "wal", hide_default_value = true)]
    journal_mode: JournalMode,
    /// Give a connection up when nothing was heard for this long (10s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Threads that unpack in a restore (one per processor)
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Least severity that is logged (info)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Print one JSON object per line: what happens, and how far each database is
    #[arg(long)]
    json: bool,
}

/// SQLite's `journal_mode` of a replica.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum JournalMode {
    Wal,
    Delete,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    Connected {
        node: &'a str,
    },
    Lost {
        node: &'a str,
        reason: &'a str,
    },
    Reached {
        database: &'a str,
        output: &'a Path,
        txid: Txid,
        checksum: Checksum,
        #[serde(with = "time::rfc3339::option")]
        time: Option<Timestamp>,
        lag_ms: Option<i64>,
        transactions: u64,
        source: &'static str,
    },
    Failed {
        database: &'a str,
        reason: &'a str,
    },
}

/// A database that is followed, and what was last said of it.
struct Followed {
    output: PathBuf,
    reached: watch::Receiver<Option<Reached>>,
    said: Option<Reached>,
}

pub(super) fn run(args: &FollowArgs) -> Result<(), Failure> {
    let (source, database) = source(args)?;
    let accepting = match &source {
        Source::Accepted(accepting) => Some(Arc::clone(accepting)),
        Source::Dialed { .. } => None,
    };
    let node = source.to_string();
    let options = NodeOptions {
        source,
        database,
        into: args.into.clone(),
        existing: if args.force { Existing::Replace } else { Existing::Refuse },
        journal: match args.journal_mode {
            JournalMode::Wal => ReplicaJournal::Wal,
            JournalMode::Delete => ReplicaJournal::Rollback,
        },
        mount: None,
        meta_root: None,
        lock_timeout: LOCK_TIMEOUT,
        silence_max: args.timeout.unwrap_or(SILENCE_MAX),
        threads: args.threads.map_or_else(store::default_threads, std::num::NonZeroUsize::get),
        trails: None,
        own_address: String::new(),
        events: Arc::default(),
    };
    let minimum = 2 * crate::stream::HEARTBEAT;
    if options.silence_max < minimum {
        return Err(Failure::usage(format!(
            "--timeout must be at least {minimum:?}: a node is heard of once a second"
        )));
    }
    let logging = LoggingConfig { level: args.log_level.unwrap_or_default(), ..LoggingConfig::default() };
    logging::start(logging);
    let signals = signals::listen(STOP_TIMEOUT, Status::Failed, RunningChild::default());
    let mut signals = signals.map_err(|e| Failure::failed(format!("cannot receive signals: {}", io_text(&e))))?;
    let (tell_stop, stop) = watch::channel(false);
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    store::block_on(async {
        if let Some(accepting) = accepting {
            let listener = http::bind(accepting.listen()).await.map_err(Failure::failed)?;
            tracing::info!("waiting for a primary at {}", accepting.listen());
            tokio::spawn(accepting.serve(listener));
        }
        let mut following = std::pin::pin!(follow_node(options, sender, stop));
        let mut said = Said { node: node.clone(), json: args.json, databases: BTreeMap::new() };
        let mut print = tokio::time::interval(PRINT_GAP);
        loop {
            tokio::select! {
                ended = &mut following => {
                    while let Ok(event) = events.try_recv() {
                        said.note(event)?;
                    }
                    said.positions()?;
                    return ended.map_err(|error| failure(&node, &error));
                }
                Some(event) = events.recv() => said.note(event)?,
                _ = print.tick() => said.positions()?,
                Ok(_) = signals.wait_for(Option::is_some), if !*tell_stop.borrow() => {
                    // Nobody listens only when it has ended already.
                    let _ = tell_stop.send(true);
                }
            }
        }
    })
}

/// Whence what is followed comes, and which database of it.
fn source(args: &FollowArgs) -> Result<(Source, Option<String>), Failure> {
    let token = token(args.cluster_token.as_deref())?;
    let (Some(listen), first) = (args.accept, &args.url) else {
        let url = args.url.as_deref().unwrap_or_default();
        let address: Address = url.parse().map_err(|m| Failure::usage(format!("invalid value for URL: {m}")))?;
        let access = Access { token, tls: client_files(args, &address)? };
        return Ok((Source::Dialed { address, access }, args.database.clone()));
    };
    if args.database.is_some() || first.as_ref().is_some_and(|first| first.contains("://")) {
        return Err(Failure::usage("with --accept the node dials: give no URL, but DB at most"));
    }
    let tls = TlsFiles::new(args.cert.clone(), args.key.clone(), args.ca.clone());
    let tls = tls.map_err(|_| Failure::usage("with --accept --ca has no effect without TLS: give --cert and --key"))?;
    let config = AcceptConfig::new(listen, token, tls).map_err(|m| Failure::usage(format!("--{m}")))?;
    Ok((Source::Accepted(Accepting::new(config, false).map_err(Failure::failed)?), first.clone()))
}

/// By what the node is known, and what it is shown. That the files can be read is seen before anything is begun.
fn client_files(args: &FollowArgs, address: &Address) -> Result<ClientFiles, Failure> {
    let identity = args.cert.clone().zip(args.key.clone());
    let tls = ClientFiles { ca: args.ca.clone(), identity };
    if address.is_secret() {
        tls::client_config(&tls).map_err(Failure::failed)?;
    } else if tls != ClientFiles::default() {
        return Err(Failure::usage("--ca, --cert and --key have no effect without TLS: write https://"));
    }
    Ok(tls)
}

struct Said {
    node: String,
    json: bool,
    databases: BTreeMap<String, Followed>,
}

impl Said {
    fn note(&mut self, event: Event) -> Result<(), Failure> {
        let node = self.node.clone();
        match event {
            Event::Following(name, output, reached) => {
                self.databases.insert(name, Followed { output, reached, said: None });
                Ok(())
            }
            Event::Connected => self.say(&Line::Connected { node: &node }, || format!("connected to {node}")),
            Event::Leaving => Ok(()),
            Event::Lost(reason) => {
                let line = Line::Lost { node: &node, reason: &reason };
                self.say(&line, || format!("connection to {node} lost: {reason}"))
            }
            Event::Failed(name, reason) => {
                self.positions()?;
                let line = Line::Failed { database: &name, reason: &reason };
                self.say(&line, || format!("{name}: not followed any more: {reason}"))
            }
        }
    }

    /// What each database has reached since the last call.
    fn positions(&mut self) -> Result<(), Failure> {
        let changed = |(name, followed): (&String, &mut Followed)| {
            let reached = *followed.reached.borrow_and_update();
            let is_new = std::mem::replace(&mut followed.said, reached) != reached;
            reached.filter(|_| is_new).map(|reached| (name.clone(), followed.output.clone(), reached))
        };
        let changed: Vec<_> = self.databases.iter_mut().filter_map(changed).collect();
        // Of those whose task has ended the last position was said.
        self.databases.retain(|_, followed| followed.reached.has_changed().is_ok());
        for (database, output, reached) in changed {
            let line = Line::Reached {
                database: &database,
                output: &output,
                txid: reached.pos.txid,
                checksum: reached.pos.checksum,
                time: reached.time,
                lag_ms: reached.age_ms(),
                transactions: reached.transactions,
                source: if reached.is_live { "stream" } else { "store" },
            };
            self.say(&line, || format!("{}: TXID {}", output.display(), reached.pos.txid))?;
        }
        Ok(())
    }

    fn say(&self, line: &Line<'_>, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut out = Output::new();
        if self.json { out.json(line) } else { out.line(text()) }?;
        out.finish()
    }
}

fn failure(node: &str, error: &NodeError) -> Failure {
    match error {
        NodeError::Database(name, error @ RestoreError::Exists { .. }) => {
            let text = format!("cannot follow {name} of {node}: {error}, and is not followed yet: --force replaces it");
            Failure::failed(text)
        }
        NodeError::Database(name, error) => store::failure(&format!("follow {name} of {node}"), error),
        NodeError::Unknown(..) => Failure::new(Status::NoRestorePoint, format!("cannot follow {node}: {error}")),
        NodeError::Refused(_) => Failure::failed(format!("cannot follow {node}: {error}")),
    }
}
