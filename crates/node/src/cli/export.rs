//! `export`: a replica for Litestream out of a store of ours.

use clap::{Args, ValueEnum};
use rhyolite_format::litestream::Layout;
use rhyolite_format::{Checksum, Lineage, Timestamp, Txid};
use serde::Serialize;

use super::exit::Failure;
use super::output::Output;
use super::store::{self, TargetArgs};
use crate::config::units::format_size;
use crate::foreign::export::{ExportError, ExportOptions, ExportReport, export};
use crate::time;

/// Write a replica that Litestream 0.5 restores, and goes on from.
///
/// The replica holds the newest snapshot at or before the wanted state and every later commit, with the TXIDs and times that
/// `rhyolite log` shows. It is read back and must add up to the checksum of that state. The destination must hold no replica yet;
/// when anything fails, what was written is removed.
#[derive(Debug, Args)]
#[command(
    after_help = "Levels are named as Litestream does: ltx/9/ in folders, Google Cloud Storage and Azure, 0009/ on \
S3. A replica that was copied from the one to the other is not found there: --layout chooses.\n\nExit statuses: 0 \
written and proved; 3 damage found; 5 no such backup or restore point.\n\nExamples:\n  rhyolite export ./backup \
./replica\n  rhyolite export s3://bucket/app s3://bucket/litestream/app --at \"1h ago\"\n  rhyolite export ./backup \
./replica && litestream restore -o copy.db file:///srv/replica"
)]
pub(super) struct ExportArgs {
    /// Store of one database
    #[arg(value_name = "STORE")]
    store: String,
    /// Where the replica goes
    #[arg(value_name = "LITESTREAM_STORE")]
    destination: String,
    #[command(flatten)]
    target: TargetArgs,
    /// How levels are named (s3 on S3, file elsewhere)
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<LayoutName>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutName {
    /// ltx/9/
    File,
    /// 0009/
    S3,
}

impl ExportArgs {
    fn layout(&self) -> Layout {
        match self.layout {
            Some(LayoutName::File) => Layout::Decimal,
            Some(LayoutName::S3) => Layout::Hex,
            None if self.destination.starts_with("s3://") => Layout::Hex,
            None => Layout::Decimal,
        }
    }
}

#[derive(Serialize)]
struct ExportLine<'a> {
    store: &'a str,
    destination: &'a str,
    lineage: Lineage,
    txid: Txid,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    checksum: Checksum,
    first_txid: Txid,
    files: u64,
    bytes_written: u64,
    elapsed_ms: u128,
}

pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let destination = store::open(&args.destination)?;
    let report = store::block_on(async {
        let target = args.target.target(&*store).await?;
        let (layout, progress) = (args.layout(), store::progress("export"));
        let options = ExportOptions { store, destination, layout, target, progress };
        export(options).await.map_err(|e| failure(args, &e))
    })?;
    print(args, &report)
}

fn failure(args: &ExportArgs, error: &ExportError) -> Failure {
    match error {
        ExportError::Read(error) => store::failure(&format!("export {}", args.store), error),
        ExportError::Write(_) | ExportError::NotEmpty { .. } | ExportError::Unsayable(_) => {
            Failure::failed(format!("cannot export {}: {error}", args.store))
        }
    }
}

fn print(args: &ExportArgs, report: &ExportReport) -> Result<(), Failure> {
    let mut out = Output::new();
    if args.json {
        out.json(&ExportLine {
            store: &args.store,
            destination: &args.destination,
            lineage: report.lineage,
            txid: report.pos.txid,
            time: report.time,
            checksum: report.pos.checksum,
            first_txid: report.first,
            files: report.files,
            bytes_written: report.bytes_written,
            elapsed_ms: report.elapsed.as_millis(),
        })?;
    } else {
        let (first, last, time) = (report.first, report.pos.txid, time::format_utc(report.time));
        let (files, size, seconds) = (report.files, format_size(report.bytes_written), report.elapsed.as_secs_f64());
        let to = &args.destination;
        out.line(format!("{to}: TXID {first} to {last} of {time}, {files} files, {size}, proved, in {seconds:.1} s"))?;
    }
    out.finish()
}
