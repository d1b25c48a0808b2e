//! `log`: what can be restored.

use std::sync::Arc;

use clap::Args;
use rhyolite_format::{Checksum, PageCount, PageSize, Timestamp, Txid};
use serde::Serialize;

use super::exit::Failure;
use super::foreign::{self, LitestreamArgs};
use super::output::{Output, columns};
use super::store;
use crate::config::units::format_size;
use crate::points::{End, PointKind, PointsOptions, RestorePoint, points};
use crate::time;

/// Show the restore points in a store, oldest first.
///
/// One line per commit that can be restored: TXID, time, pages and bytes of the transaction, size of the database, and its
/// LTX checksum after the commit. What older than the retention rules keep apart is one line per merged file or snapshot.
///
/// A replica that Litestream 0.5 or 0.3 has written is listed as well: one line per state that it restores to.
#[derive(Debug, Args)]
#[command(
    after_help = "With --json: one object per line with txid, time, kind (commit, merged, snapshot), pages, bytes, \
page_size, page_count, checksum.\n\nExamples:\n  rhyolite log s3://bucket/app\n  rhyolite log ./backup --limit 10\n  \
rhyolite log ./backup --json | tail -1 | jq -r .txid"
)]
pub(super) struct LogArgs {
    /// Store of one database
    #[arg(value_name = "STORE")]
    store: String,
    /// Show only the newest N
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    litestream: LitestreamArgs,
    /// Print one JSON object per restore point
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PointLine {
    txid: Txid,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    kind: &'static str,
    pages: u64,
    bytes: u64,
    page_size: PageSize,
    page_count: PageCount,
    checksum: Checksum,
}

impl PointLine {
    fn new(point: &RestorePoint) -> Self {
        Self {
            txid: point.pos.txid,
            time: point.time,
            kind: match point.kind {
                PointKind::Commit => "commit",
                PointKind::Merged => "merged",
                PointKind::Snapshot => "snapshot",
            },
            pages: point.pages,
            bytes: point.bytes,
            page_size: point.page_size,
            page_count: point.commit,
            checksum: point.pos.checksum,
        }
    }
}

pub(super) fn run(args: &LogArgs) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let options = PointsOptions { store: Arc::clone(&store), from: None, to: None, limit, end: End::Newest };
    let what = format!("read {}", args.store);
    let listed = store::block_on(async {
        let found = args.litestream.or_replica(&store, &what, points(options)).await;
        match found.map_err(|e| store::failure(&what, &e))? {
            Ok(listed) => Ok(Ok(listed)),
            Err(replica) => foreign::points(&replica, limit).await.map(Err).map_err(|e| store::failure(&what, &e)),
        }
    })?;
    let listed = match listed {
        Ok(listed) => listed,
        Err(points) => return foreign::print_points(&points, args.json),
    };
    let lines = listed.points.iter().map(PointLine::new);
    let mut out = Output::new();
    if args.json {
        for line in lines {
            out.json(&line)?;
        }
        return out.finish();
    }
    let heading = ["TXID", "TIME", "KIND", "PAGES", "BYTES", "DATABASE", "CHECKSUM"].map(str::to_owned);
    let mut rows = vec![heading];
    for line in lines {
        rows.push([
            line.txid.to_string(),
            time::format_utc(line.time),
            line.kind.to_owned(),
            line.pages.to_string(),
            line.bytes.to_string(),
            format_size(line.page_count.bytes(line.page_size)),
            line.checksum.to_string(),
        ]);
    }
    for line in columns(&rows, [false, false, false, true, true, true, false]) {
        out.line(line)?;
    }
    out.finish()
}
