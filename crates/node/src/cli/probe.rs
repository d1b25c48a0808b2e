//! `probe`: what a store really does, by asking it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rhyolite_format::Format1;
use rhyolite_format::probe::ProbeRecord;
use rhyolite_store::probe::{self, Check, Needed, ProbeReport, ProbeSize};
use rhyolite_store::{Store, StoreErrorKind, StoreOptions};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::{Output, columns};
use super::store;
use crate::config::default_meta_path;
use crate::{fencing, time};

/// Test what a store really does: races, freshness, ranges, lists, speed, clock.
///
/// Several clients create one key and swap one version at the same time, again and again; exactly one may win. What is written must be
/// seen at once, ranges must be exact, lists whole. Everything happens in a folder of its own, which is removed at the end.
#[derive(Debug, Args)]
#[command(after_help = "Exit statuses: 0 the store can hold backups and keep a second writer out; 1 it cannot, or it \
does not answer.\n\nExamples:\n  rhyolite probe s3://bucket/app\n  rhyolite probe sftp://backup@host/srv/app --save \
app.db\n  rhyolite probe 's3://bucket/app?endpoint=https://s3.example.com' --rounds 100 --json")]
pub(super) struct ProbeArgs {
    /// Store, or any place in it
    #[arg(value_name = "STORE")]
    store: String,
    /// Remember the result for this database: `rhyolite status` shows it
    #[arg(long, value_name = "DB")]
    save: Option<PathBuf>,
    /// State folder of that database (.NAME-rhyolite beside it)
    #[arg(long, value_name = "PATH", requires = "save")]
    meta_path: Option<PathBuf>,
    /// Rounds of each race
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Clients that race, each with connections of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=64))]
    clients: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ProbeLine {
    store: String,
    declared: DeclaredLine,
    backup: bool,
    fencing: bool,
    checks: Vec<CheckLine>,
    latency: Vec<LatencyLine>,
    clock_offset_ms: Option<i64>,
}

#[derive(Serialize)]
struct DeclaredLine {
    create: &'static str,
    swap: &'static str,
    why: &'static str,
}

#[derive(Serialize)]
struct CheckLine {
    name: &'static str,
    needed_for: &'static str,
    passed: bool,
    seen: String,
}

#[derive(Serialize)]
struct LatencyLine {
    operation: &'static str,
    samples: usize,
    min_us: u128,
    median_us: u128,
    max_us: u128,
}

pub(super) fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let clients = (0..args.clients).map(|_| client(&args.store)).collect::<Result<Vec<_>, _>>()?;
    let (rounds, racers) = (usize::from(args.rounds), usize::from(args.clients));
    let size = ProbeSize { rounds, racers, ..ProbeSize::default() };
    let report = store::block_on(async {
        probe::run(&clients, size).await.map_err(|e| {
            let status = if e.kind == StoreErrorKind::Invalid { Status::Usage } else { Status::Failed };
            Failure::new(status, format!("cannot probe {}: {e}", clients[0].describe()))
        })
    })?;
    if let Some(db) = &args.save {
        save(args, db, &report)?;
    }
    let mut out = Output::new();
    if args.json {
        out.json(&line(&report))?
    } else {
        text(&mut out, &report)?
    }
    out.finish()?;
    if report.can_fence() {
        return Ok(());
    }
    let what = if report.can_back_up() { "cannot keep a second writer out" } else { "cannot hold a backup" };
    Err(Failure::failed(format!("{} {what}: failed {}", report.store, failed(&report).join(", "))))
}

/// A client that shares nothing with the others. `memory:` would be another store each time, but then nobody can race in it.
fn client(url: &str) -> Result<Arc<dyn Store>, Failure> {
    if url == "memory:" {
        return Err(Failure::usage("memory: is another store for every client: there is nothing to probe"));
    }
    rhyolite_store::open(url, &StoreOptions::default()).map_err(|e| Failure::usage(e.to_string()))
}

/// Names of the checks that anything depends on and that failed.
fn failed(report: &ProbeReport) -> Vec<String> {
    let depended = [Needed::Backup, Needed::Fencing];
    depended.into_iter().flat_map(|needed| report.failed(needed)).map(|c| c.name.to_owned()).collect()
}

fn save(args: &ProbeArgs, db: &std::path::Path, report: &ProbeReport) -> Result<(), Failure> {
    let path = std::path::absolute(db).map_err(|e| Failure::io("use", db, &e))?;
    let meta_path = args.meta_path.clone().unwrap_or_else(|| default_meta_path(&path));
    let all = report.checks.iter().filter(|c| c.seen.is_err());
    let record = ProbeRecord {
        format: Format1,
        time: time::now(),
        store: report.store.clone(),
        backup: report.can_back_up(),
        fencing: report.can_fence(),
        failed: all.map(|c| c.name.to_owned()).collect(),
        clock_offset_ms: report.clock_offset_ms,
    };
    fencing::write(&meta_path, &record).map_err(|e| Failure::io("save the probe in", &meta_path, &e))
}

fn seen(check: &Check) -> String {
    check.seen.as_ref().map_or_else(Clone::clone, Clone::clone)
}

fn line(report: &ProbeReport) -> ProbeLine {
    let declared = &report.declared;
    let check =
        |c: &Check| CheckLine { name: c.name, needed_for: c.needed.name(), passed: c.seen.is_ok(), seen: seen(c) };
    let latency = report.latencies.iter().map(|l| LatencyLine {
        operation: l.operation.name(),
        samples: l.samples,
        min_us: l.min.as_micros(),
        median_us: l.median.as_micros(),
        max_us: l.max.as_micros(),
    });
    ProbeLine {
        store: report.store.clone(),
        declared: DeclaredLine { create: declared.create.name(), swap: declared.swap.name(), why: declared.why },
        backup: report.can_back_up(),
        fencing: report.can_fence(),
        checks: report.checks.iter().map(check).collect(),
        latency: latency.collect(),
        clock_offset_ms: report.clock_offset_ms,
    }
}

fn text(out: &mut Output, report: &ProbeReport) -> Result<(), Failure> {
    out.line(&report.store)?;
    out.line(format!("says of itself: fencing is {}; it {}", report.declared.fencing(), report.declared.why))?;
    out.line("")?;
    let mut rows = vec![["check", "needed for", "", "seen"].map(str::to_owned)];
    for check in &report.checks {
        let verdict = if check.seen.is_ok() { "ok" } else { "FAILED" };
        rows.push([check.name.to_owned(), check.needed.name().to_owned(), verdict.to_owned(), seen(check)]);
    }
    for row in columns(&rows, [false; 4]) {
        out.line(row)?;
    }
    out.line("")?;
    let mut rows = vec![["milliseconds", "min", "median", "max"].map(str::to_owned)];
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    rows.extend(report.latencies.iter().map(|l| [l.operation.name().to_owned(), ms(l.min), ms(l.median), ms(l.max)]));
    for row in columns(&rows, [false, true, true, true]) {
        out.line(row)?;
    }
    out.line("")?;
    let yes = |can: bool| if can { "yes" } else { "NO" };
    out.line(format!("can hold a backup:            {}", yes(report.can_back_up())))?;
    out.line(format!("can keep a second writer out: {}", yes(report.can_fence())))
}
