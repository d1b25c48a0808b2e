//! The JSON that `/status`, the status file and `rhyolite status --json` give: the figures, by whom, and when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhyolite_format::Timestamp;
use rhyolite_store::Counts;
use serde::{Deserialize, Serialize};

use crate::cluster::report::NodeReport;
use crate::status::{DatabaseStatus, Figures, State, StatusBoard};
use crate::stream::push::{AcceptReport, PushReport};
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
        Self { path: status.path.to_path_buf(), store: status.store.clone(), lag_ms, store_requests, figures }
    }
}

/// So many databases are shown one by one at most.
pub const DETAIL_MAX: usize = 1000;

/// All databases of the process in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// All.
    pub databases: u64,
    /// Those at rest.
    pub parked: u64,
    /// Those with commits that are not durable.
    pub behind: u64,
    /// The longest lag in milliseconds.
    pub lag_ms_max: u64,
    /// Requests to all stores since the process started, by the databases that it replicates now.
    pub store_requests: u64,
    /// How many are in which state, by its name; only states that occur.
    pub states: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds up.
    pub fn new(databases: &[Arc<DatabaseStatus>], now: Timestamp) -> Self {
        let mut totals = Self::default();
        let mut states = [0; State::NAMES.len()];
        for database in databases {
            let (state, parked, lag, behind) =
                database.look(|f| (f.state.index(), f.parked, f.lag_ms(now), f.pending_since.is_some()));
            states[state] += 1;
            totals.databases += 1;
            totals.parked += u64::from(parked);
            totals.behind += u64::from(behind);
            totals.lag_ms_max = totals.lag_ms_max.max(lag);
            totals.store_requests += database.requests.total();
        }
        let occurring = State::NAMES.into_iter().zip(states).filter(|(_, count)| *count > 0);
        totals.states = occurring.map(|(name, count)| (name.to_owned(), count)).collect();
        totals
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
    /// All databases in a few numbers.
    pub totals: Totals,
    /// The node, where it is one of a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeReport>,
    /// The replicas that this process dials, to be followed by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pushes: Vec<PushReport>,
    /// The place for a primary that dials, where this is a replica that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<AcceptReport>,
    /// The databases one by one: all, where there are no more than [`DETAIL_MAX`]; otherwise so many of those that are awake or in
    /// trouble.
    pub databases: Vec<DatabaseReport>,
}

impl StatusReport {
    /// Everything at `now`.
    pub fn new(board: &StatusBoard, now: Timestamp) -> Self {
        let mut databases = board.databases();
        let totals = Totals::new(&databases, now);
        if databases.len() > DETAIL_MAX {
            databases.retain(|d| d.look(|f| !f.parked || f.state != State::Replicating));
            // Of too many, those that are furthest behind.
            databases.sort_by_key(|d| std::cmp::Reverse(d.look(|f| f.lag_ms(now))));
            databases.truncate(DETAIL_MAX);
        }
        Self::of(board, totals, &databases, now)
    }

    /// One database at `now`; `None` when it is not here.
    pub fn of_one(board: &StatusBoard, path: &Path, now: Timestamp) -> Option<Self> {
        let databases = board.databases();
        let totals = Totals::new(&databases, now);
        let found = databases.into_iter().find(|d| *d.path == *path)?;
        Some(Self::of(board, totals, &[found], now))
    }

    fn of(board: &StatusBoard, totals: Totals, databases: &[Arc<DatabaseStatus>], now: Timestamp) -> Self {
        let databases = databases.iter().map(|d| DatabaseReport::new(d, now)).collect();
        let (process, node) = (ProcessReport::current(board), board.node());
        let (pushes, accepts) = (board.pushes(), board.accepts());
        Self { format: REPORT_FORMAT, process, time: now, totals, node, pushes, accepts, databases }
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
    fn of_very_many_databases_only_those_that_matter_are_shown_one_by_one() {
        let board = StatusBoard::new();
        for i in 0..=DETAIL_MAX {
            let status = board.add(format!("/{i}.db").into(), "/m".into(), "./backup".into());
            status.update(|f| (f.state, f.parked) = (State::Replicating, i > 2));
        }
        let report = StatusReport::new(&board, Timestamp(0));
        assert_eq!((report.databases.len(), report.totals.parked), (3, DETAIL_MAX as u64 - 2));
        assert_eq!(report.totals.states["replicating"], DETAIL_MAX as u64 + 1);
        let one = StatusReport::of_one(&board, Path::new("/77.db"), Timestamp(0)).expect("it is on the board");
        assert_eq!(one.databases.len(), 1);
        assert_eq!(StatusReport::of_one(&board, Path::new("/no.db"), Timestamp(0)), None);
    }

    #[test]
    fn report_survives_json() {
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), "/.a.db-rhyolite".into(), "./backup".into());
        status.update(|f| f.pending_since = Some(Timestamp(1_000)));
        let report = StatusReport::new(&board, Timestamp(3_500));
        assert_eq!((report.databases[0].lag_ms, report.totals.lag_ms_max, report.totals.behind), (2_500, 2_500, 1));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), report);
    }
}
