//! What `restore`, `log` and `verify` do with a store that Litestream has written.
//!
//! A store of ours is never taken for another's: these are asked only where there is no `id.json`, or when the user says so.

use std::path::Path;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use rhyolite_format::{Checksum, PageCount, PageSize, Timestamp, Txid};
use rhyolite_store::Store;
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::{Output, columns};
use super::store;
use crate::config::units::format_size;
use crate::foreign::{
    self, Integrity, Replica, ReplicaPoint, ReplicaReport, ReplicaVerifyReport, VerifyReplicaOptions, Version, WalPlace,
};
use crate::restore::{RestoreError, RestoreOptions};
use crate::time;

/// Most damage that is listed in words; the count is always exact.
const DAMAGE_LINES_MAX: usize = 20;

/// Whose store it is, when that is not to be found out.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct LitestreamArgs {
    /// Read the store as a replica of this version of Litestream; needed only where several lie in one place
    #[arg(long, value_name = "VERSION")]
    litestream: Option<LitestreamVersion>,
}

/// A version of Litestream whose replicas are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LitestreamVersion {
    #[value(name = "0.3")]
    Old,
    #[value(name = "0.5")]
    Current,
}

impl LitestreamArgs {
    /// Whether the user says that the store is Litestream's.
    pub(super) fn is_given(self) -> bool {
        self.litestream.is_some()
    }

    pub(super) fn version(self) -> Option<Version> {
        self.litestream.map(|version| match version {
            LitestreamVersion::Old => Version::Old,
            LitestreamVersion::Current => Version::Current,
        })
    }

    /// What `ours` gives for a store of ours, or the replica that lies there instead. `what` is verb and object.
    pub(super) async fn or_replica<T>(
        self,
        store: &Arc<dyn Store>,
        what: &str,
        ours: impl Future<Output = Result<T, RestoreError>>,
    ) -> Result<Result<T, Replica>, RestoreError> {
        let missing = if self.is_given() {
            RestoreError::NoDatabase { store: format!("{} (asked for by --litestream)", store.describe()) }
        } else {
            match ours.await {
                Err(error @ RestoreError::NoDatabase { .. }) => error,
                result => return result.map(Ok),
            }
        };
        match foreign::find(store, self.version()).await? {
            Some(replica) => {
                tracing::debug!(what, kind = %replica.kind(), "read a store of another program");
                Ok(Err(replica))
            }
            None => Err(missing),
        }
    }
}

/// A place in the WALs of Litestream 0.3, as JSON.
#[derive(Serialize)]
struct PlaceLine {
    generation: String,
    wal_index: u32,
    wal_offset: u64,
}

impl PlaceLine {
    fn new(place: WalPlace) -> Self {
        Self { generation: place.generation.to_string(), wal_index: place.index, wal_offset: place.offset }
    }
}

#[derive(Serialize)]
struct RestoredLine<'a> {
    store: &'a str,
    output: &'a Path,
    restored: bool,
    source: &'a str,
    txid: Option<Txid>,
    #[serde(flatten)]
    place: Option<PlaceLine>,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    checksum: Checksum,
    proof: &'a str,
    page_size: PageSize,
    page_count: PageCount,
    files: u64,
    bytes_fetched: u64,
    requests: u64,
    elapsed_ms: u128,
}

/// Restores from a replica.
pub(super) async fn restore(replica: &Replica, options: RestoreOptions) -> Result<ReplicaReport, RestoreError> {
    foreign::restore(replica, options).await
}

/// Says what was restored, and what was proved of it.
pub(super) fn print_restored(store: &str, output: &Path, json: bool, report: &ReplicaReport) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&RestoredLine {
            store,
            output,
            restored: true,
            source: report.kind.name(),
            txid: report.txid,
            place: report.place.map(PlaceLine::new),
            time: report.time,
            checksum: report.checksum,
            proof: report.proof.name(),
            page_size: report.page_size,
            page_count: report.pages,
            files: report.files,
            bytes_fetched: report.bytes_fetched,
            requests: report.requests,
            elapsed_ms: report.elapsed.as_millis(),
        })?;
    } else {
        let (path, at) = (output.display(), position(report.txid, report.place));
        let (time, size) = (time::format_utc(report.time), format_size(report.pages.bytes(report.page_size)));
        let (seconds, proof) = (report.elapsed.as_secs_f64(), report.proof.text());
        out.line(format!("{path}: {at} of {time}, {size}, from {}, in {seconds:.1} s", report.kind.name()))?;
        out.line(proof)?;
    }
    out.finish()
}

/// The transaction or the place, for people.
fn position(txid: Option<Txid>, place: Option<WalPlace>) -> String {
    match (txid, place) {
        (Some(txid), _) => format!("TXID {txid}"),
        (None, Some(place)) => {
            format!("generation {} WAL {:08x} at {:#x}", place.generation, place.index, place.offset)
        }
        (None, None) => "a state".to_owned(),
    }
}

#[derive(Serialize)]
struct PointLine {
    txid: Option<Txid>,
    #[serde(flatten)]
    place: Option<PlaceLine>,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    kind: &'static str,
    bytes: u64,
    page_size: Option<PageSize>,
    page_count: Option<PageCount>,
    /// Never there: Litestream does not record it.
    checksum: Option<Checksum>,
}

/// Lists the points of a replica.
pub(super) fn print_points(points: &[ReplicaPoint], json: bool) -> Result<(), Failure> {
    let kind = |point: &ReplicaPoint| if point.is_snapshot { "snapshot" } else { "merged" };
    let mut out = Output::new();
    if json {
        for point in points {
            out.json(&PointLine {
                txid: point.txid,
                place: point.place.map(PlaceLine::new),
                time: point.time,
                kind: kind(point),
                bytes: point.bytes,
                page_size: point.size.map(|(page_size, _)| page_size),
                page_count: point.size.map(|(_, pages)| pages),
                checksum: None,
            })?;
        }
        return out.finish();
    }
    let mut rows = vec![["POSITION", "TIME", "KIND", "BYTES", "DATABASE"].map(str::to_owned)];
    rows.extend(points.iter().map(|point| {
        let place = |place: WalPlace| format!("{}/{:08x}_{:08x}", place.generation, place.index, place.offset);
        let txid = point.txid.map(|txid| txid.to_string());
        let size = point.size.map(|(page_size, pages)| format_size(pages.bytes(page_size)));
        [
            txid.or_else(|| point.place.map(place)).unwrap_or_default(),
            time::format_utc(point.time),
            kind(point).to_owned(),
            point.bytes.to_string(),
            size.unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    for line in columns(&rows, [false, false, false, true, true]) {
        out.line(line)?;
    }
    out.finish()
}

/// The points of a replica.
pub(super) async fn points(replica: &Replica, limit: usize) -> Result<Vec<ReplicaPoint>, RestoreError> {
    foreign::points(replica, limit).await
}

#[derive(Serialize)]
struct DamageLine<'a> {
    object: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct VerifiedLine<'a> {
    store: &'a str,
    ok: bool,
    source: &'a str,
    txid: Option<Txid>,
    #[serde(flatten)]
    place: Option<PlaceLine>,
    #[serde(with = "time::rfc3339::option")]
    time: Option<Timestamp>,
    checksum: Option<Checksum>,
    proof: Option<&'a str>,
    integrity: Option<&'a str>,
    objects: u64,
    points: u64,
    damage: Vec<DamageLine<'a>>,
    bytes_fetched: u64,
    requests: u64,
    elapsed_ms: u128,
}

/// Verifies a replica.
pub(super) async fn verify(replica: &Replica) -> Result<ReplicaVerifyReport, RestoreError> {
    let options = VerifyReplicaOptions { spool: None, progress: store::progress("verify") };
    foreign::verify(replica, options).await
}

/// Says what was found, and ends with the status that goes with it.
pub(super) fn print_verified(store: &str, json: bool, report: &ReplicaVerifyReport) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        let newest = report.newest.as_ref();
        let damage = report.damage.iter().map(|d| DamageLine { object: &d.key, detail: &d.detail });
        out.json(&VerifiedLine {
            store,
            ok: report.is_sound(),
            source: report.kind.name(),
            txid: newest.and_then(|n| n.txid),
            place: newest.and_then(|n| n.place).map(PlaceLine::new),
            time: newest.map(|n| n.time),
            checksum: newest.map(|n| n.checksum),
            proof: newest.map(|n| n.proof.name()),
            integrity: report.integrity.as_ref().map(Integrity::name),
            objects: report.objects,
            points: report.points,
            damage: damage.collect(),
            bytes_fetched: report.bytes_fetched,
            requests: report.requests,
            elapsed_ms: report.elapsed.as_millis(),
        })?;
    } else {
        verified_text(&mut out, store, report)?;
    }
    out.finish()?;
    match report.damage.len() {
        0 => Ok(()),
        count => Err(Failure::new(Status::Damaged, format!("{store}: {count} faults found"))),
    }
}

fn verified_text(out: &mut Output, store: &str, report: &ReplicaVerifyReport) -> Result<(), Failure> {
    for damage in report.damage.iter().take(DAMAGE_LINES_MAX) {
        let object = if damage.key.is_empty() { store } else { &damage.key };
        out.line(format!("damaged: {object}: {}", damage.detail))?;
    }
    if let Some(more) = report.damage.len().checked_sub(DAMAGE_LINES_MAX).filter(|more| *more > 0) {
        out.line(format!("damaged: and {more} more (--json lists all)"))?;
    }
    let bytes = format_size(report.bytes_fetched);
    out.line(format!("store     {}", report.kind))?;
    out.line(format!("read      {} objects, {bytes}", report.objects))?;
    out.line(format!("points    {} restorable", report.points))?;
    let Some(newest) = &report.newest else { return Ok(()) };
    out.line(format!("newest    {} of {}", position(newest.txid, newest.place), time::format_utc(newest.time)))?;
    out.line(format!("checksum  {} (computed from the pages)", newest.checksum))?;
    out.line(newest.proof.text())?;
    match &report.integrity {
        Some(Integrity::Sound) => out.line("SQLite finds the structure of the newest state sound"),
        Some(Integrity::NotChecked(why)) => out.line(format!("SQLite could not look at the newest state: {why}")),
        Some(Integrity::Broken(_)) | None => Ok(()),
    }
}
