//! `verify`: proof that what a store holds can be restored.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rhyolite_format::{Checksum, Lineage, PageNumber, Timestamp, Txid};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::foreign::{self, LitestreamArgs};
use super::output::Output;
use super::store::{self, TargetArgs};
use crate::config::units::format_size;
use crate::time;
use crate::verify::{AgainstOptions, AgainstReport, Depth, VerifyOptions, VerifyReport, verify, verify_against};

/// Most damage that is listed in words; the count is always exact.
const DAMAGE_LINES_MAX: usize = 20;

/// Prove that a store can be restored, or that a file is what it holds.
///
/// Every object is read and its checksums compared, every commit must join the one before, and the newest state is put
/// together and must have the checksum that was recorded at its commit. Nothing is written.
///
/// Of a replica that Litestream 0.5 or 0.3 has written every object is read and compared with its own checksums, and SQLite
/// looks at the structure of the newest state: Litestream records no checksum of the database.
#[derive(Debug, Args)]
#[command(after_help = "Exit statuses: 0 all proved; 3 damage found, or the file differs; 5 the store holds no \
backup.\n\nExamples:\n  rhyolite verify s3://bucket/app\n  rhyolite verify ./backup --every-point --json\n  rhyolite \
verify ./backup --against copy.db --txid 42")]
pub(super) struct VerifyArgs {
    /// Store of one database
    #[arg(value_name = "STORE")]
    store: String,
    /// Prove every restore point, not only the newest
    #[arg(long, conflicts_with = "against")]
    every_point: bool,
    /// Compare a database file, to which nobody writes, with the store
    #[arg(long, value_name = "DB")]
    against: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    litestream: LitestreamArgs,
    /// Threads that unpack (one per processor)
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    if args.against.is_none() && !args.target.is_latest() {
        return Err(Failure::usage("--at, --txid and --pin choose what --against is compared with: give --against DB"));
    }
    match &args.against {
        Some(file) => run_against(args, file.clone()),
        None => run_store(args),
    }
}

fn threads(args: &VerifyArgs) -> usize {
    args.threads.map_or_else(store::default_threads, std::num::NonZeroUsize::get)
}

#[derive(Serialize)]
struct DamageLine<'a> {
    object: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct StoreLine<'a> {
    store: &'a str,
    ok: bool,
    lineage: Option<Lineage>,
    txid: Option<Txid>,
    #[serde(with = "time::rfc3339::option")]
    time: Option<Timestamp>,
    checksum: Option<Checksum>,
    objects: u64,
    transactions: u64,
    points: u64,
    points_proved: u64,
    damage: Vec<DamageLine<'a>>,
    bytes_fetched: u64,
    requests: u64,
    elapsed_ms: u128,
}

fn run_store(args: &VerifyArgs) -> Result<(), Failure> {
    let depth = if args.every_point { Depth::EveryPoint } else { Depth::Newest };
    let progress = store::progress("verify");
    let store = store::open(&args.store)?;
    let options = VerifyOptions { store: Arc::clone(&store), depth, threads: threads(args), progress };
    let what = format!("verify {}", args.store);
    let report = store::block_on(async {
        let found = args.litestream.or_replica(&store, &what, verify(options)).await;
        match found.map_err(|e| store::failure(&what, &e))? {
            Ok(report) => Ok(Ok(report)),
            Err(_) if args.every_point => Err(Failure::usage(
                "--every-point proves checksums of the database, which Litestream does not record: leave it out",
            )),
            Err(replica) => foreign::verify(&replica).await.map(Err).map_err(|e| store::failure(&what, &e)),
        }
    })?;
    let report = match report {
        Ok(report) => report,
        Err(report) => return foreign::print_verified(&args.store, args.json, &report),
    };
    let mut out = Output::new();
    if args.json {
        let (pos, time) = report.newest.unzip();
        let damage = report.damage.iter().map(|d| DamageLine { object: &d.key, detail: &d.detail });
        out.json(&StoreLine {
            store: &args.store,
            ok: report.is_sound(),
            lineage: report.lineage,
            txid: pos.map(|p| p.txid),
            time,
            checksum: pos.map(|p| p.checksum),
            objects: report.objects,
            transactions: report.transactions,
            points: report.points,
            points_proved: report.points_proved,
            damage: damage.collect(),
            bytes_fetched: report.bytes_fetched,
            requests: report.requests,
            elapsed_ms: report.elapsed.as_millis(),
        })?;
    } else {
        store_text(&mut out, &args.store, &report)?;
    }
    out.finish()?;
    match report.damage.len() {
        0 => Ok(()),
        count => Err(Failure::new(Status::Damaged, format!("{}: {count} faults found", args.store))),
    }
}

fn store_text(out: &mut Output, store: &str, report: &VerifyReport) -> Result<(), Failure> {
    for damage in report.damage.iter().take(DAMAGE_LINES_MAX) {
        let object = if damage.key.is_empty() { store } else { &damage.key };
        out.line(format!("damaged: {object}: {}", damage.detail))?;
    }
    if let Some(more) = report.damage.len().checked_sub(DAMAGE_LINES_MAX).filter(|more| *more > 0) {
        out.line(format!("damaged: and {more} more (--json lists all)"))?;
    }
    let (objects, bytes) = (report.objects, format_size(report.bytes_fetched));
    out.line(format!("read      {objects} objects, {} transactions, {bytes}", report.transactions))?;
    out.line(format!("points    {} restorable, {} proved", report.points, report.points_proved))?;
    if let Some((pos, time)) = report.newest {
        let proved = if report.is_sound() { "proved" } else { "not proved" };
        out.line(format!("newest    TXID {} of {}, {proved}", pos.txid, time::format_utc(time)))?;
        out.line(format!("checksum  {}", pos.checksum))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct AgainstLine<'a> {
    store: &'a str,
    file: &'a PathBuf,
    equal: bool,
    txid: Txid,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    checksum: Checksum,
    expected_bytes: u64,
    file_bytes: u64,
    differing_pages: u64,
    first_differing: Vec<u32>,
}

fn run_against(args: &VerifyArgs, file: PathBuf) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let what = format!("compare {} with {}", file.display(), args.store);
    let report = store::block_on(async {
        let options = AgainstOptions {
            target: args.target.target(&*store).await?,
            store,
            file: file.clone(),
            threads: threads(args),
            progress: store::progress("verify"),
        };
        verify_against(options).await.map_err(|e| store::failure(&what, &e))
    })?;
    let mut out = Output::new();
    if args.json {
        out.json(&AgainstLine {
            store: &args.store,
            file: &file,
            equal: report.is_equal(),
            txid: report.pos.txid,
            time: report.time,
            checksum: report.pos.checksum,
            expected_bytes: report.expected_bytes,
            file_bytes: report.file_bytes,
            differing_pages: report.differing,
            first_differing: report.pages.iter().copied().map(PageNumber::get).collect(),
        })?;
    } else if report.is_equal() {
        out.line(format!("{} is TXID {} byte for byte", file.display(), report.pos.txid))?;
    }
    out.finish()?;
    if report.is_equal() {
        return Ok(());
    }
    Err(Failure::new(Status::Damaged, format!("{} {}", file.display(), difference(&report))))
}

fn difference(report: &AgainstReport) -> String {
    let txid = report.pos.txid;
    let first = report.pages.first().map(|pgno| format!(", the first is page {pgno}")).unwrap_or_default();
    let size = if report.file_bytes == report.expected_bytes {
        String::new()
    } else {
        format!("; it has {} bytes instead of {}", report.file_bytes, report.expected_bytes)
    };
    format!("is not TXID {txid}: {} pages differ{first}{size}", report.differing)
}
