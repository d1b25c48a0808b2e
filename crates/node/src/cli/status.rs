//! `status`: what the daemon is doing, or where it stopped.
//!
//! A running daemon is read through its status file. When none runs, the local state and the end of the store's log say what
//! is safe and what will be uploaded next time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rhyolite_format::probe::ProbeRecord;
use rhyolite_format::state::LocalState;
use rhyolite_format::{Checksum, Epoch, Lineage, Pos, Seq, Timestamp, Txid};
use rhyolite_logic::lease::Guards;
use rhyolite_store::StoreOptions;
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::Output;
use super::replicate::DEFAULT_CONFIG;
use super::store;
use crate::config::units::{format_duration, format_size};
use crate::config::{DatabaseConfig, default_meta_path, file, io_text};
use crate::drill::{Drill, in_words};
use crate::log_end::{self, Hint};
use crate::observe::report::{DatabaseReport, ProcessReport};
use crate::observe::status_file;
use crate::status::{DiffReason, Figures};
use crate::supervise::search::databases_in;
use crate::{fencing, time};

/// Name of the state in a state folder.
const STATE_FILE: &str = "state";

/// Show what replication is doing, with the figures of the metrics.
///
/// Either one database is named, or all of a configuration file are shown. When the daemon does not run, its last figures,
/// the local state and, if the store is known, the end of the store's log are shown.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit statuses: 0 shown; 1 a database has never been replicated from here; 4 local state and store \
are of different histories.\n\nExamples:\n  rhyolite status app.db\n  rhyolite status app.db s3://bucket/app\n  rhyolite \
status --config rhyolite.yml --json"
)]
pub(super) struct StatusArgs {
    /// Database
    #[arg(value_name = "DB")]
    db: Option<PathBuf>,
    /// Its store, to be asked when the daemon does not run
    #[arg(value_name = "STORE")]
    store: Option<String>,
    /// Configuration file, when no database is given [default: /etc/rhyolite.yml]
    #[arg(long, value_name = "PATH", env = "RHYOLITE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Leave $NAME and ${NAME} in the configuration file as they are
    #[arg(long)]
    no_expand_env: bool,
    /// State folder (.NAME-rhyolite beside the database)
    #[arg(long, value_name = "PATH", requires = "db")]
    meta_path: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct StatusLine {
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    databases: Vec<DatabaseLine>,
}

/// One database. `status` is the daemon's word, the other two are looked up when it does not run.
#[derive(Serialize)]
struct DatabaseLine {
    path: PathBuf,
    running: bool,
    process: Option<ProcessReport>,
    #[serde(with = "time::rfc3339::option")]
    status_time: Option<Timestamp>,
    status: Option<DatabaseReport>,
    local: Option<LocalLine>,
    store: Option<StoreLine>,
    probe: Option<ProbeRecord>,
}

#[derive(Serialize)]
struct LocalLine {
    lineage: Lineage,
    txid: Option<Txid>,
    checksum: Option<Checksum>,
    durable_txid: Option<Txid>,
    epoch: Epoch,
    next_seq: Seq,
}

#[derive(Serialize)]
struct StoreLine {
    url: String,
    lineage: Option<Lineage>,
    txid: Option<Txid>,
    checksum: Option<Checksum>,
    error: Option<String>,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let now = time::now();
    let wanted = wanted(args)?;
    let databases = wanted.iter().map(|w| look(w, now)).collect::<Result<Vec<_>, _>>()?;
    let unknown = databases.iter().find(|d| d.status.is_none() && d.local.is_none()).map(|d| d.path.clone());
    let foreign = databases.iter().find(|d| is_foreign(d)).map(|d| d.path.clone());
    let mut out = Output::new();
    if args.json {
        out.json(&StatusLine { time: now, databases })?;
    } else {
        for (index, line) in databases.iter().enumerate() {
            if index > 0 {
                out.line("")?;
            }
            text(&mut out, line)?;
        }
    }
    out.finish()?;
    if let Some(path) = foreign {
        let message = format!("{}: the local state and the store are of different histories", path.display());
        return Err(Failure::new(Status::WrongLineage, message));
    }
    match unknown {
        Some(path) => Err(Failure::failed(format!("{} has never been replicated from here", path.display()))),
        None => Ok(()),
    }
}

/// A database to look at.
struct Wanted {
    path: PathBuf,
    meta_path: PathBuf,
    store: Option<(String, StoreOptions)>,
}

fn wanted(args: &StatusArgs) -> Result<Vec<Wanted>, Failure> {
    if let Some(db) = &args.db {
        let path = std::path::absolute(db).map_err(|e| Failure::io("use", db, &e))?;
        let meta_path = args.meta_path.clone().unwrap_or_else(|| default_meta_path(&path));
        let store = args.store.clone().map(|url| (url, StoreOptions::default()));
        return Ok(vec![Wanted { path, meta_path, store }]);
    }
    let config = args.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    if args.config.is_none() && !config.exists() {
        let message = format!("name DB, or a configuration file ({DEFAULT_CONFIG} does not exist)");
        return Err(Failure::usage(message));
    }
    let config = file::load(config, !args.no_expand_env)?;
    let wanted = |d: DatabaseConfig| {
        let options = d.store_options();
        Wanted { path: d.path, meta_path: d.meta_path, store: Some((d.store, options)) }
    };
    let mut all: Vec<Wanted> = config.databases.into_iter().map(wanted).collect();
    for folder in &config.folders {
        let (found, problems) = databases_in(folder);
        problems.iter().for_each(|problem| eprintln!("rhyolite: {problem}"));
        all.extend(found.iter().map(|name| wanted(folder.database(name))));
    }
    Ok(all)
}

fn look(wanted: &Wanted, now: Timestamp) -> Result<DatabaseLine, Failure> {
    let file = status_file::read(&wanted.meta_path).map_err(Failure::failed)?;
    let running = file.as_ref().is_some_and(|f| f.process.is_alive());
    let mut line = DatabaseLine {
        path: wanted.path.clone(),
        running,
        process: file.as_ref().map(|f| f.process.clone()),
        status_time: file.as_ref().map(|f| f.time),
        status: file.map(|f| f.database),
        local: None,
        store: None,
        probe: fencing::read(&wanted.meta_path),
    };
    if running {
        if let Some(report) = &mut line.status {
            report.lag_ms = report.figures.lag_ms(now);
        }
        return Ok(line);
    }
    let state = local_state(&wanted.meta_path)?;
    if let Some((url, options)) = &wanted.store {
        line.store = Some(store_position(url, options, state.as_ref())?);
    }
    line.local = state.map(|state| LocalLine {
        lineage: state.lineage,
        txid: state.pos.map(|p| p.txid),
        checksum: state.pos.map(|p| p.checksum),
        durable_txid: state.durable.map(|p| p.txid),
        epoch: state.epoch,
        next_seq: state.next_seq,
    });
    Ok(line)
}

fn local_state(meta_path: &Path) -> Result<Option<LocalState>, Failure> {
    let path = meta_path.join(STATE_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => match LocalState::decode(&bytes) {
            Ok(state) => Ok(Some(state)),
            // Replication mends it by comparing pages; here it only means that nothing is known.
            Err(_) => Ok(None),
        },
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Failure::failed(format!("cannot read {}: {}", path.display(), io_text(&e)))),
    }
}

fn store_position(url: &str, options: &StoreOptions, state: Option<&LocalState>) -> Result<StoreLine, Failure> {
    let opened = store::open_with(url, options)?;
    let hint = state.and_then(|s| Some(Hint { next_seq: s.next_seq, pos: s.durable?, epoch: s.epoch }));
    let end = store::block_on(async { Ok(log_end::find(&opened, Guards::ALL, hint).await) })?;
    let (end, error) = match end {
        Ok(end) => (end, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let pos: Option<Pos> = end.as_ref().and_then(|end| end.pos);
    Ok(StoreLine {
        url: opened.describe(),
        lineage: end.map(|end| end.identity.lineage),
        txid: pos.map(|p| p.txid),
        checksum: pos.map(|p| p.checksum),
        error,
    })
}

fn is_foreign(line: &DatabaseLine) -> bool {
    let local = line.local.as_ref().map(|l| l.lineage);
    let store = line.store.as_ref().and_then(|s| s.lineage);
    local.zip(store).is_some_and(|(local, store)| local != store)
}

fn text(out: &mut Output, line: &DatabaseLine) -> Result<(), Failure> {
    let path = line.path.display();
    match (&line.status, &line.process) {
        (Some(report), Some(process)) if line.running => {
            let figures = &report.figures;
            let reason = figures.state.reason().map(|r| format!(" ({r})")).unwrap_or_default();
            out.line(format!("{path}: {}{reason}", figures.state.name()))?;
            out.line(format!("  process      {}, since {}", process.pid, time::format_utc(process.started)))?;
            out.line(format!("  behind       {}", lag(report.lag_ms)))?;
        }
        (Some(_), Some(_)) => {
            let when = line.status_time.map(time::format_utc).unwrap_or_default();
            out.line(format!("{path}: not running; last seen {when}"))?;
        }
        _ if line.local.is_some() => out.line(format!("{path}: not running"))?,
        _ => out.line(format!("{path}: nothing is known"))?,
    }
    if let Some(report) = &line.status {
        figures_text(out, report)?;
    }
    if let Some(local) = &line.local {
        out.line(format!("  local state  {}, lineage {}", txid(local.txid), local.lineage))?;
    }
    if let Some(probe) = &line.probe {
        out.line(format!("  probe        {} ({})", probe_text(probe), probe.store))?;
    }
    if let Some(store) = &line.store {
        let position = store.error.clone().unwrap_or_else(|| txid(store.txid));
        out.line(format!("  store holds  {position} ({})", store.url))?;
    }
    Ok(())
}

fn probe_text(probe: &ProbeRecord) -> String {
    let when = time::format_utc(probe.time);
    let failed = probe.failed.join(", ");
    match (probe.backup, probe.fencing) {
        (_, true) => format!("passed on {when}"),
        (true, false) => format!("on {when}: cannot keep a second writer out (failed {failed})"),
        (false, _) => format!("on {when}: cannot hold a backup (failed {failed})"),
    }
}

fn txid(txid: Option<Txid>) -> String {
    txid.map_or("nothing".to_owned(), |t| format!("TXID {t} ({})", t.get()))
}

fn lag(ms: u64) -> String {
    if ms == 0 { "nothing: every commit is durable".to_owned() } else { format_duration(Duration::from_millis(ms)) }
}

fn figures_text(out: &mut Output, report: &DatabaseReport) -> Result<(), Failure> {
    let figures = &report.figures;
    out.line(format!("  store        {}", report.store))?;
    out.line(format!("  captured     {}", txid(figures.local.map(|p| p.txid))))?;
    out.line(format!("  durable      {}", txid(figures.durable.map(|p| p.txid))))?;
    if let Some(page_size) = figures.page_size {
        let size = format_size(figures.page_count.bytes(page_size));
        out.line(format!("  database     {size}, {} pages of {page_size} bytes", figures.page_count))?;
    }
    let (wal, log) = (format_size(figures.wal_bytes), format_size(figures.log_bytes));
    out.line(format!("  WAL          {wal}; local log {log}"))?;
    for line in drill(figures) {
        out.line(line)?;
    }
    if let Some(warning) = &figures.store_warning {
        out.line(format!("  WARNING      {warning}"))?;
    }
    for line in activity(report, figures) {
        out.line(line)?;
    }
    if let Some(error) = &figures.last_error {
        let when = time::format_utc(error.time);
        out.line(format!("  errors       {}, the last at {when}: {}", figures.errors, error.text))?;
    }
    Ok(())
}

/// What restore drills say.
fn drill(figures: &Figures) -> Vec<String> {
    let Drill { proved, failed, is_damage, .. } = &figures.drill;
    let mut lines = Vec::new();
    if let Some(proof) = proved {
        let (to, at) = (time::format_utc(proof.committed), time::format_utc(proof.at));
        let words = in_words(proof);
        lines.push(format!("  restorable   to {to} (TXID {}), proved at {at}: {words}", proof.pos.txid));
    }
    if let Some(error) = failed {
        let what = if *is_damage { "FAILED" } else { "could not be held" };
        lines.push(format!("  drill        {what} at {}: {}", time::format_utc(error.time), error.text));
    }
    lines
}

/// What was done since the process started.
fn activity(report: &DatabaseReport, figures: &Figures) -> Vec<String> {
    let (captured, uploaded) = (&figures.captured, &figures.uploaded);
    let mut lines = vec![
        format!(
            "  seen         {} transactions, {} pages, {}",
            captured.transactions,
            captured.pages,
            format_size(captured.bytes)
        ),
        format!(
            "  uploaded     {} segments ({}), {} files ({}){}",
            uploaded.segments,
            format_size(uploaded.segment_bytes),
            uploaded.files,
            format_size(uploaded.file_bytes),
            uploaded.last.map(|t| format!(", last {}", time::format_utc(t))).unwrap_or_default()
        ),
    ];
    let checkpoints = &figures.checkpoints;
    lines.push(format!(
        "  checkpoints  {} complete, {} partial, {} busy, {} failed; write lock held {:.1} ms at most",
        checkpoints.complete,
        checkpoints.partial,
        checkpoints.busy,
        checkpoints.failed,
        checkpoints.stall_us_max as f64 / 1e3
    ));
    let diffs = DiffReason::ALL.map(|reason| (reason.name(), figures.page_diffs.get(reason)));
    let diffs: Vec<_> = diffs.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
    if !diffs.is_empty() {
        lines.push(format!("  page diffs   {}", diffs.join(", ")));
    }
    let requests: u64 = report.store_requests.requests.values().sum();
    let errors = report.store_requests.errors.iter().map(|(kind, count)| format!(", {count} {kind}"));
    lines.push(format!("  requests     {requests}{}", errors.collect::<String>()));
    lines
}
