//! The JSON that `/status`, the status file and `rhyolite status --json` give: the figures, by whom, and when.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rhyolite_format::Timestamp;
use rhyolite_store::Counts;
use serde::{Deserialize, Serialize};

use crate::status::{DatabaseStatus, Figures, StatusBoard};
use crate::time;

/// Version of the JSON. A reader refuses another one.
pub const REPORT_FORMAT: u32 = 1;

/// The process that replicates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Version of Rhyolite.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When the operating system started it, in clock ticks since boot, where that can be read. Tells this process from a
    /// later one with the same id.
    pub pid_started: Option<u64>,
    /// When replication started.
    #[serde(with = "time::rfc3339")]
    pub started: Timestamp,
}

impl ProcessReport {
    /// This process.
    pub fn current(board: &StatusBoard) -> Self {
        let pid = std::process::id();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, pid, pid_started: process_start(pid), started: board.started }
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
        match process_start(self.pid) {
            Some(started) => Some(started) == self.pid_started,
            // EPERM says that it exists and belongs to somebody else.
            None if cfg!(target_os = "linux") => false,
            None => !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH)),
        }
    }
}

/// Start of a process in clock ticks since boot: field 22 of `/proc/PID/stat`, where the name in field 2 may hold anything
/// but ends at the last parenthesis.
fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// What was asked of a store since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestsReport {
    /// Requests, tries that failed included, by operation.
    pub requests: BTreeMap<String, u64>,
    /// Time from question to answer in microseconds, by operation.
    pub busy_us: BTreeMap<String, u64>,
    /// Failed requests by kind. "Not found" and "exists" may be what was hoped for.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of objects that came back.
    pub bytes_read: u64,
    /// Bytes of objects that were sent.
    pub bytes_written: u64,
}

impl RequestsReport {
    fn new(counts: &Counts) -> Self {
        let micros = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let mut errors = BTreeMap::new();
        for error in &counts.errors {
            *errors.entry(error.kind.name().to_owned()).or_default() += error.count;
        }
        Self {
            requests: counts.requests.iter().map(|r| (r.operation.name().to_owned(), r.count)).collect(),
            busy_us: counts.requests.iter().map(|r| (r.operation.name().to_owned(), micros(r.busy))).collect(),
            errors,
            bytes_read: counts.bytes_read,
            bytes_written: counts.bytes_written,
        }
    }
}

/// One database at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseReport {
    /// Absolute path of the database.
    pub path: PathBuf,
    /// The store, without secrets.
    pub store: String,
    /// Age in milliseconds of the oldest commit that is not durable, at the time of the report.
    pub lag_ms: u64,
    /// What was asked of the store.
    pub store_requests: RequestsReport,
    /// Everything else.
    #[serde(flatten)]
    pub figures: Figures,
}

impl DatabaseReport {
    /// The database at `now`.
    pub fn new(status: &DatabaseStatus, now: Timestamp) -> Self {
        let figures = status.figures();
        let lag_ms = figures.lag_ms(now);
        let store_requests = RequestsReport::new(&status.requests.snapshot());
        Self { path: status.path.clone(), store: status.store.clone(), lag_ms, store_requests, figures }
    }
}

/// What `/status` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`REPORT_FORMAT`].
    pub format: u32,
    /// By whom.
    pub process: ProcessReport,
    /// When.
    #[serde(with = "time::rfc3339")]
    pub time: Timestamp,
    /// All databases of the process.
    pub databases: Vec<DatabaseReport>,
}

impl StatusReport {
    /// Everything at `now`.
    pub fn new(board: &StatusBoard, now: Timestamp) -> Self {
        let databases = board.databases().iter().map(|d| DatabaseReport::new(d, now)).collect();
        Self { format: REPORT_FORMAT, process: ProcessReport::current(board), time: now, databases }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_of_it_is_not() {
        let process = ProcessReport::current(&StatusBoard::new());
        assert!(process.is_alive());
        let gone = ProcessReport { pid: i32::MAX as u32, pid_started: Some(1), ..process.clone() };
        assert!(!gone.is_alive());
        if cfg!(target_os = "linux") {
            let reused = ProcessReport { pid_started: process.pid_started.map(|t| t + 1), ..process };
            assert!(!reused.is_alive());
        }
    }

    #[test]
    fn report_survives_json() {
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), "/.a.db-rhyolite".into(), "./backup".into());
        status.update(|f| f.pending_since = Some(Timestamp(1_000)));
        let report = StatusReport::new(&board, Timestamp(3_500));
        assert_eq!(report.databases[0].lag_ms, 2_500);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), report);
    }
}
