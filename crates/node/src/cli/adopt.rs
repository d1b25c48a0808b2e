//! `adopt`: a history of ours that begins where that of a Litestream replica ends.

use std::path::PathBuf;

use clap::Args;
use rhyolite_format::{Checksum, Lineage, Timestamp, Txid};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::foreign::LitestreamArgs;
use super::output::Output;
use super::store;
use crate::config::units::format_size;
use crate::foreign::adopt::{AdoptError, AdoptOptions, AdoptReport, adopt};
use crate::foreign::{self};
use crate::restore::RestoreError;
use crate::time;

/// Go on from a Litestream replica.
///
/// The newest state of the replica becomes the first restore point of a new store, under the same TXID, proved equal to what
/// Litestream restores. Whatever the database has become since is compared with it when replication starts, and what differs is
/// the next commit: no change is missing. The replica is only read; states before that stay restorable from it.
#[derive(Debug, Args)]
#[command(
    after_help = "Stop Litestream first, adopt, then start `rhyolite replicate DB STORE`. Commits that the application makes \
between the two become one. A Litestream 0.3 replica has no TXIDs: its state becomes TXID 1.\n\nExit statuses: 0 adopted \
and proved; 3 the replica is damaged; 5 there is no replica.\n\nExamples:\n  rhyolite adopt s3://bucket/app app.db \
s3://bucket/app/rhyolite\n  rhyolite adopt /srv/replica app.db ./backup && rhyolite replicate app.db ./backup"
)]
pub(super) struct AdoptArgs {
    /// Replica that Litestream has written
    #[arg(value_name = "LITESTREAM_STORE")]
    replica: String,
    /// Database that it is a replica of
    #[arg(value_name = "DB")]
    database: PathBuf,
    /// Store for the new history; nothing may be there
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    litestream: LitestreamArgs,
    /// Threads that unpack (one per processor)
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct AdoptLine<'a> {
    replica: &'a str,
    source: &'a str,
    database: &'a PathBuf,
    store: &'a str,
    lineage: Lineage,
    txid: Txid,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    checksum: Checksum,
    proof: &'a str,
    page_count: u32,
    pages_in_database: u64,
    bytes_written: u64,
    elapsed_ms: u128,
}

pub(super) fn run(args: &AdoptArgs) -> Result<(), Failure> {
    let replica = store::open(&args.replica)?;
    let options = AdoptOptions {
        database: args.database.clone(),
        store: store::open(&args.store)?,
        now: time::now(),
        spool: None,
        threads: args.threads.map_or_else(store::default_threads, std::num::NonZeroUsize::get),
        progress: store::progress("adopt"),
    };
    let what = format!("adopt {}", args.replica);
    let report = store::block_on(async {
        let failed = |e: RestoreError| store::failure(&what, &e);
        if foreign::is_ours(&replica).await.map_err(failed)? && !args.litestream.is_given() {
            return Err(Failure::failed(format!("cannot {what}: it is a store of ours already: replicate to it")));
        }
        let found = foreign::find(&replica, args.litestream.version()).await.map_err(failed)?;
        let nothing = || Failure::new(Status::NoRestorePoint, format!("cannot {what}: there is no Litestream replica"));
        adopt(&found.ok_or_else(nothing)?, options).await.map_err(|e| failure(&what, &e))
    })?;
    print(args, &report)
}

fn failure(what: &str, error: &AdoptError) -> Failure {
    match error {
        AdoptError::Read(error) => store::failure(what, error),
        AdoptError::OtherDatabase { .. } => Failure::new(Status::WrongLineage, format!("cannot {what}: {error}")),
        AdoptError::Write(_) | AdoptError::NotEmpty { .. } | AdoptError::Empty => {
            Failure::failed(format!("cannot {what}: {error}"))
        }
    }
}

fn print(args: &AdoptArgs, report: &AdoptReport) -> Result<(), Failure> {
    let mut out = Output::new();
    if args.json {
        out.json(&AdoptLine {
            replica: &args.replica,
            source: report.kind.name(),
            database: &args.database,
            store: &args.store,
            lineage: report.lineage,
            txid: report.pos.txid,
            time: report.time,
            checksum: report.pos.checksum,
            proof: report.proof.name(),
            page_count: report.pages.get(),
            pages_in_database: report.pages_in_database,
            bytes_written: report.bytes_written,
            elapsed_ms: report.elapsed.as_millis(),
        })?;
        return out.finish();
    }
    let (txid, time, pages) = (report.pos.txid, time::format_utc(report.time), report.pages.get());
    out.line(format!("{}: begins at TXID {txid} of {time}, from {}", args.store, report.kind.name()))?;
    out.line(report.proof.text())?;
    let written = format_size(report.bytes_written);
    out.line(format!(
        "{pages} pages, {written}; {} of them lie so in {}",
        report.pages_in_database,
        args.database.display()
    ))?;
    out.line(format!("next: rhyolite replicate {} {}", args.database.display(), args.store))?;
    out.line(format!("earlier states: rhyolite log {}", args.replica))?;
    out.finish()
}
