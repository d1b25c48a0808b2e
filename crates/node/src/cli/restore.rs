//! `restore`: a database out of a store, proved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rhyolite_format::{Checksum, Lineage, PageCount, PageSize, Pos, Timestamp, Txid};
use rhyolite_store::Store;
use serde::Serialize;
use tokio::sync::watch;

use super::exit::{Failure, Status};
use super::foreign::{self, LitestreamArgs};
use super::output;
use super::store::{self, TargetArgs};
use crate::config::units::{format_size, parse_duration};
use crate::config::{LoggingConfig, io_text};
use crate::exec::RunningChild;
use crate::follow::{FollowOptions, ReplicaJournal, follow};
use crate::foreign::Proof;
use crate::observe::logging;
use crate::restore::{Existing, Output, RestoreError, RestoreOptions, RestoreReport, restore};
use crate::{signals, time};

/// How often a followed store is asked, unless the user says so.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// How long readers of a followed file are waited for before they get another interval.
const FOLLOW_LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a batch that is being applied may take after a signal.
const FOLLOW_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Restore a database from its store, and prove it.
///
/// The output appears under its name only when the checksum of every page adds up to the one that was recorded when the
/// transaction was committed. Until then nothing that exists is touched. An interrupted restore goes on when it is started
/// again.
///
/// A replica that Litestream 0.5 or 0.3 has written is restored as well. It holds no checksum of the database: what could be
/// proved instead is said.
#[derive(Debug, Args)]
#[command(after_help = "Times without a zone are in this machine's zone. `rhyolite log` shows what can be \
restored.\n\nExit statuses: 0 restored and proved, or nothing to do; 3 damage found; 5 no such backup or restore \
point.\n\nExamples:\n  rhyolite restore s3://bucket/app -o copy.db\n  rhyolite restore ./backup -o copy.db --at \"10m \
ago\"\n  rhyolite restore ./backup -o copy.db --txid 42\n  rhyolite restore ./backup -o copy.db --pin release-7\n  rhyolite restore ./backup -o - | ssh host 'cat > \
copy.db'\n  rhyolite restore ./backup -o copy.db --reuse\n  rhyolite restore ./backup -o replica.db --follow\n  rhyolite restore s3://bucket/app -o app.db --if-missing --if-backup-exists\n  rhyolite restore s3://bucket -o ./databases --all\n  rhyolite \
restore --config rhyolite.yml --all --if-missing")]
pub(super) struct RestoreArgs {
    /// Store of one database; with --all, what lies above those of many
    #[arg(value_name = "STORE", required_unless_present = "config")]
    pub(super) store: Option<String>,
    /// Database to write, or - for standard output; with --all a folder
    #[arg(short, long, value_name = "PATH", required_unless_present = "config")]
    pub(super) output: Option<PathBuf>,
    /// Restore every database below STORE to its place in the folder, or with --config every one to its own path
    #[arg(long, conflicts_with_all = ["follow", "txid", "litestream"])]
    all: bool,
    /// Configuration file that names the databases of --all
    #[arg(long, value_name = "PATH", requires = "all")]
    pub(super) config: Option<PathBuf>,
    /// Databases that --all restores at a time (4)
    #[arg(long, value_name = "N", requires = "all")]
    pub(super) jobs: Option<std::num::NonZeroUsize>,
    #[command(flatten)]
    pub(super) target: TargetArgs,
    #[command(flatten)]
    litestream: LitestreamArgs,
    /// Replace the output if it exists
    #[arg(long, conflicts_with_all = ["if_missing", "reuse"])]
    force: bool,
    /// Replace the output if it exists, fetching only the pages that have changed since it was restored
    #[arg(long, conflicts_with = "if_missing")]
    reuse: bool,
    /// Do nothing, successfully, when the output exists
    #[arg(long)]
    pub(super) if_missing: bool,
    /// Do nothing, successfully, when the store holds no backup
    #[arg(long)]
    pub(super) if_backup_exists: bool,
    /// After the restore, keep the output up to date until a signal comes; SQLite may read it meanwhile, but not write
    #[arg(long, conflicts_with_all = ["at", "txid", "pin", "if_missing", "litestream"])]
    follow: bool,
    /// Ask for new commits this often (1s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "follow")]
    follow_interval: Option<Duration>,
    /// Threads that unpack (one per processor)
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<std::num::NonZeroUsize>,
    /// Print one JSON object about what was restored
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Serialize)]
struct RestoreLine<'a> {
    store: &'a str,
    output: &'a Path,
    restored: bool,
    #[serde(flatten)]
    report: Option<ReportLine>,
}

#[derive(Serialize)]
struct ReportLine {
    source: &'static str,
    lineage: Lineage,
    txid: Txid,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    checksum: Checksum,
    proof: &'static str,
    page_size: PageSize,
    page_count: PageCount,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    avoided: Vec<String>,
    pages_reused: u64,
    bytes_fetched: u64,
    requests: u64,
    elapsed_ms: u128,
}

pub(super) fn run(args: &RestoreArgs) -> Result<(), Failure> {
    if args.all {
        return super::restore_all::run(args);
    }
    let to_stdout = args.output() == Path::new("-");
    let needs_a_file = args.json || args.if_missing || args.force || args.reuse || args.follow;
    if to_stdout && needs_a_file {
        return Err(Failure::usage(
            "-o - writes the database to standard output: --json, --if-missing, --force, --reuse and --follow do not go with it",
        ));
    }
    let store = store::open(args.store())?;
    if args.if_missing && args.output().symlink_metadata().is_ok() {
        return nothing_done(args, &format!("{} exists: nothing to restore", args.output().display()));
    }
    if args.follow {
        return run_follow(args, store);
    }
    let what = format!("restore {}", args.store());
    let result = store::block_on(async {
        let options = RestoreOptions {
            target: args.target.target(&*store).await?,
            store: Arc::clone(&store),
            output: if to_stdout { Output::Stdout } else { Output::File(args.output().to_owned()) },
            existing: existing(args),
            threads: threads(args),
            spool: None,
            progress: store::progress("restore"),
        };
        match args.litestream.or_replica(&store, &what, restore(options.clone())).await {
            Ok(Ok(report)) => Ok(Ok(Ok(report))),
            Ok(Err(_)) if args.reuse => Err(Failure::usage(
                "--reuse needs checksums of the database, which Litestream does not record: --force replaces the output",
            )),
            Ok(Err(replica)) => Ok(foreign::restore(&replica, options).await.map(Err)),
            Err(error) => Ok(Err(error)),
        }
    })?;
    match result {
        Ok(_) if to_stdout => Ok(()),
        Ok(Ok(report)) => print(args, &report),
        Ok(Err(report)) => foreign::print_restored(args.store(), args.output(), args.json, &report),
        Err(RestoreError::NoDatabase { store }) if args.if_backup_exists => {
            nothing_done(args, &format!("{store} holds no backup: nothing to restore"))
        }
        Err(error) => Err(store::failure(&what, &error)),
    }
}

pub(super) fn existing(args: &RestoreArgs) -> Existing {
    match (args.reuse, args.force) {
        (true, _) => Existing::Reuse,
        (false, true) => Existing::Replace,
        (false, false) => Existing::Refuse,
    }
}

impl RestoreArgs {
    fn store(&self) -> &str {
        self.store.as_deref().expect("required without --all")
    }

    fn output(&self) -> &Path {
        self.output.as_deref().expect("required without --all")
    }
}

fn threads(args: &RestoreArgs) -> usize {
    args.threads.map_or_else(store::default_threads, std::num::NonZeroUsize::get)
}

#[derive(Serialize)]
struct FollowLine<'a> {
    output: &'a Path,
    txid: Txid,
    checksum: Checksum,
}

/// Follows until a signal comes, and says every position that the file has reached.
fn run_follow(args: &RestoreArgs, store: Arc<dyn Store>) -> Result<(), Failure> {
    let options = FollowOptions {
        store,
        output: args.output().to_owned(),
        existing: existing(args),
        journal: ReplicaJournal::Rollback,
        mount: None,
        interval: args.follow_interval.unwrap_or(FOLLOW_INTERVAL),
        lock_timeout: FOLLOW_LOCK_TIMEOUT,
        may_be_ahead: false,
        is_judged: false,
        threads: threads(args),
        progress: store::progress("restore"),
    };
    logging::start(LoggingConfig::default());
    let signals = signals::listen(FOLLOW_STOP_TIMEOUT, Status::Failed, RunningChild::default());
    let mut signals = signals.map_err(|e| Failure::failed(format!("cannot receive signals: {}", io_text(&e))))?;
    let (positions, mut reached) = watch::channel(None);
    let (tell_stop, stop) = watch::channel(false);
    store::block_on(async {
        let mut following = std::pin::pin!(follow(options, positions, stop));
        let mut said = None;
        loop {
            tokio::select! {
                ended = &mut following => {
                    say_new(args, *reached.borrow(), &mut said)?;
                    return ended.map_err(|e| store::failure(&format!("follow {}", args.store()), &e));
                }
                Ok(()) = reached.changed() => {
                    say_new(args, *reached.borrow_and_update(), &mut said)?;
                }
                Ok(_) = signals.wait_for(Option::is_some), if !*tell_stop.borrow() => {
                    if reached.borrow().is_none() {
                        let message = format!("interrupted: the restore of {} goes on when it is started again", args.store());
                        return Err(Failure::failed(message));
                    }
                    // Nobody listens only when it has ended already.
                    let _ = tell_stop.send(true);
                }
            }
        }
    })
}

/// Says a position once.
fn say_new(args: &RestoreArgs, pos: Option<Pos>, said: &mut Option<Pos>) -> Result<(), Failure> {
    let Some(pos) = pos.filter(|_| pos != *said) else { return Ok(()) };
    *said = Some(pos);
    let mut out = output::Output::new();
    if args.json {
        out.json(&FollowLine { output: args.output(), txid: pos.txid, checksum: pos.checksum })?;
    } else {
        out.line(format!("{}: TXID {}", args.output().display(), pos.txid))?;
    }
    out.finish()
}

fn nothing_done(args: &RestoreArgs, text: &str) -> Result<(), Failure> {
    let mut out = output::Output::new();
    if args.json {
        out.json(&RestoreLine { store: args.store(), output: args.output(), restored: false, report: None })?;
    } else {
        out.line(text)?;
    }
    out.finish()
}

fn print(args: &RestoreArgs, report: &RestoreReport) -> Result<(), Failure> {
    for key in &report.avoided {
        eprintln!("rhyolite: {key} is damaged: restored without it (`rhyolite verify {}` shows more)", args.store());
    }
    let mut out = output::Output::new();
    if args.json {
        let report = ReportLine {
            source: "rhyolite",
            lineage: report.lineage,
            txid: report.pos.txid,
            time: report.time,
            checksum: report.pos.checksum,
            proof: Proof::Database.name(),
            page_size: report.page_size,
            page_count: report.pages,
            avoided: report.avoided.clone(),
            pages_reused: report.pages_reused,
            bytes_fetched: report.bytes_fetched,
            requests: report.requests,
            elapsed_ms: report.elapsed.as_millis(),
        };
        out.json(&RestoreLine { store: args.store(), output: args.output(), restored: true, report: Some(report) })?;
    } else {
        let (path, txid, time) = (args.output().display(), report.pos.txid, time::format_utc(report.time));
        let size = format_size(report.pages.bytes(report.page_size));
        let seconds = report.elapsed.as_secs_f64();
        out.line(format!("{path}: TXID {txid} of {time}, {size}, proved, in {seconds:.1} s"))?;
    }
    out.finish()
}
