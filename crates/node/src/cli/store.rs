//! What the commands that read a store share: opening it, a runtime, and how its errors end a command.

use std::future::Future;
use std::sync::Arc;

use clap::Args;
use rhyolite_format::{Timestamp, Txid};
use rhyolite_logic::Target;
use rhyolite_logic::litestream3_plan::OldPlanError;
use rhyolite_logic::restore_plan::PlanError;
use rhyolite_store::{RetryPolicy, Retrying, Store, StoreErrorKind, StoreOptions};

use super::exit::{Failure, Status, chain};
use super::when::{parse_time, parse_txid};
use crate::config::io_text;
use crate::pins;
use crate::progress::{Progress, Silent, TerminalBar};
use crate::restore::RestoreError;
use crate::time::format_utc;

/// Threads of the runtime: they move bytes; unpacking has threads of its own.
const WORKER_THREADS: usize = 2;
/// Threads for calls that block, such as reading a folder.
const BLOCKING_THREADS_MAX: usize = 16;

/// Opens a store for reading, with the usual retries. No request is made yet.
pub(super) fn open(url: &str) -> Result<Arc<dyn Store>, Failure> {
    open_with(url, &StoreOptions::default())
}

/// The same, with keys that a configuration file gives.
pub(super) fn open_with(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, Failure> {
    let store = rhyolite_store::open(url, options).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(Arc::new(Retrying::new(store, RetryPolicy::default())))
}

/// Runs a command's future on a runtime that ends with it, whatever still hangs.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start threads: {}", io_text(&e))))?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

/// A bar on a terminal; nothing elsewhere.
pub(super) fn progress(name: &'static str) -> Arc<dyn Progress> {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() { Arc::new(TerminalBar::new(name)) } else { Arc::new(Silent) }
}

/// Threads that unpack, unless the user says so.
pub(super) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Which state of the database: the latest unless one of these is given.
#[derive(Args, Clone, Debug)]
pub(super) struct TargetArgs {
    /// As it was at this time: 2026-01-02T15:04:05Z, "2026-01-02 15:04:05" (local time) or "10m ago"
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "txid")]
    at: Option<Timestamp>,
    /// After this commit: a decimal number, or 16 hex digits as `rhyolite log` shows
    #[arg(long, value_name = "TXID", value_parser = parse_txid)]
    txid: Option<Txid>,
    /// Take the first or last restore point when --at lies before or after all of them
    #[arg(long, requires = "at")]
    nearest: bool,
    /// As it was pinned under this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["at", "txid"])]
    pin: Option<String>,
}

impl TargetArgs {
    /// The target; a pin is looked up in the store.
    pub(super) async fn target(&self, store: &dyn Store) -> Result<Target, Failure> {
        if let Some(name) = &self.pin {
            let pin = pins::find(store, name).await;
            let pin = pin.map_err(|e| super::pin::failure(&format!("use pin {name:?} of {}", store.describe()), &e))?;
            return Ok(Target::Txid(pin.pos.txid));
        }
        Ok(match (self.txid, self.at) {
            (Some(txid), _) => Target::Txid(txid),
            (None, Some(time)) if self.nearest => Target::TimeNearest(time),
            (None, Some(time)) => Target::Time(time),
            (None, None) => Target::Latest,
        })
    }

    pub(super) fn is_latest(&self) -> bool {
        self.txid.is_none() && self.at.is_none() && self.pin.is_none()
    }
}

/// How an error of restore, verify or log ends the command. `what` is verb and object: `"restore ./backup"`.
pub(super) fn failure(what: &str, error: &RestoreError) -> Failure {
    let status = match error {
        RestoreError::NoDatabase { .. } => Status::NoRestorePoint,
        RestoreError::Plan(error) => plan_status(error),
        RestoreError::Damaged { .. }
        | RestoreError::Missing { .. }
        | RestoreError::Hole { .. }
        | RestoreError::Contradiction { .. }
        | RestoreError::PageMissing { .. }
        | RestoreError::WrongPage { .. }
        | RestoreError::WrongChecksum { .. } => Status::Damaged,
        RestoreError::OldPlan(error) => old_plan_status(error),
        RestoreError::Ambiguous { .. } => Status::Usage,
        RestoreError::WrongLineage { .. } => Status::WrongLineage,
        RestoreError::Store(error) if error.kind == StoreErrorKind::Invalid => Status::Usage,
        RestoreError::Store(error) if error.kind == StoreErrorKind::Corrupt => Status::Damaged,
        _ => Status::Failed,
    };
    Failure::new(status, format!("cannot {what}: {}{}", text(error), advice(error)))
}

fn plan_status(error: &PlanError) -> Status {
    match error {
        PlanError::Empty
        | PlanError::NotAPoint { .. }
        | PlanError::OutOfRange { .. }
        | PlanError::NoSnapshot { .. } => Status::NoRestorePoint,
        PlanError::NeedIndex { .. }
        | PlanError::MissingSegment(_)
        | PlanError::Gap { .. }
        | PlanError::Diverged { .. } => Status::Damaged,
    }
}

fn old_plan_status(error: &OldPlanError) -> Status {
    match error {
        OldPlanError::Empty | OldPlanError::OutOfRange { .. } => Status::NoRestorePoint,
        OldPlanError::Txid => Status::Usage,
        OldPlanError::Gap { .. } => Status::Damaged,
    }
}

/// Times are shown as people write them; everything else says itself.
fn text(error: &RestoreError) -> String {
    match error {
        RestoreError::Plan(PlanError::OutOfRange { time, first, last })
        | RestoreError::OldPlan(OldPlanError::OutOfRange { time, first, last }) => format!(
            "{} lies outside of what can be restored, {} to {}",
            format_utc(*time),
            format_utc(*first),
            format_utc(*last)
        ),
        RestoreError::Hole { damage, last: Some((last, time)) } => format!(
            "{}; what was committed before can be restored, up to TXID {last} of {} (--txid {last})",
            chain(damage),
            format_utc(*time)
        ),
        RestoreError::Io { action, path, source } => format!("{action} {}: {}", path.display(), io_text(source)),
        error => chain(error),
    }
}

fn advice(error: &RestoreError) -> &'static str {
    match error {
        RestoreError::Exists { .. } => ": --force replaces it, --if-missing leaves it",
        RestoreError::Ambiguous { .. } => ": --litestream VERSION chooses one",
        RestoreError::Plan(PlanError::OutOfRange { .. }) | RestoreError::OldPlan(OldPlanError::OutOfRange { .. }) => {
            ": --nearest takes the nearest of them"
        }
        RestoreError::Plan(PlanError::NotAPoint { .. }) => ": `rhyolite log` shows all",
        RestoreError::WrongChecksum { .. }
        | RestoreError::Damaged { .. }
        | RestoreError::Missing { .. }
        | RestoreError::Hole { .. } => ": `rhyolite verify` shows what can still be restored",
        _ => "",
    }
}
