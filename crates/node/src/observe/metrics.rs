//! Metrics in Prometheus' text format (version 0.0.4), rendered from the figures at the moment of the request.
//!
//! One table, [`METRICS`], says everything: a metric that is not in it is not rendered, and `docs/user/metrics.md` is
//! compared with it. Units are seconds and bytes, as Prometheus' naming rules ask.
//!
//! The number of series is bounded: with very many databases only those that are awake or in trouble have their own
//! ([`StatusReport`]); the process's own figures count all.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use rhyolite_format::{Pos, Timestamp};
use rhyolite_logic::role::Role;

use super::report::{DatabaseReport, StatusReport};
use crate::forward::counts;
use crate::status::{DiffReason, State, StatusBoard};

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// May do anything.
    Gauge,
}

impl Kind {
    /// The word in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// Where a metric's values come from.
enum Source {
    /// One value for the process.
    Process(fn(&StatusReport) -> Option<f64>),
    /// Several values for the process, told apart by a label.
    Parts(&'static str, fn() -> Vec<(&'static str, u64)>),
    /// One value for each of several things of the process, by their names in a label.
    Named(&'static str, fn(&StatusReport) -> Vec<(String, f64)>),
    /// One value per database, without further labels.
    Database(fn(&DatabaseReport) -> Option<f64>),
    /// Several values per database, told apart by a label.
    Labelled(&'static str, fn(&DatabaseReport) -> Vec<(String, f64)>),
}

/// A metric.
pub struct Metric {
    /// Name, with unit and `_total` where it belongs.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    source: Source,
}

impl std::fmt::Debug for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Metric {
    /// Names of the labels.
    pub fn labels(&self) -> Vec<&'static str> {
        match self.source {
            Source::Process(_) => vec![],
            Source::Parts(label, _) | Source::Named(label, _) => vec![label],
            Source::Database(_) => vec!["db"],
            Source::Labelled(label, _) => vec!["db", label],
        }
    }
}

use Kind::{Counter, Gauge};

const fn process(name: &'static str, help: &'static str, value: fn(&StatusReport) -> Option<f64>) -> Metric {
    Metric { name, kind: Gauge, help, source: Source::Process(value) }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&DatabaseReport) -> Option<f64>) -> Metric {
    Metric { name, kind: Gauge, help, source: Source::Database(value) }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&DatabaseReport) -> Option<f64>) -> Metric {
    Metric { name, kind: Counter, help, source: Source::Database(value) }
}

fn seconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1e3
}

fn labelled(counts: &BTreeMap<String, u64>, divisor: f64) -> Vec<(String, f64)> {
    counts.iter().map(|(name, count)| (name.clone(), *count as f64 / divisor)).collect()
}

fn txid(pos: Option<Pos>) -> Option<f64> {
    Some(pos.map_or(0.0, |pos| pos.txid.get() as f64))
}

/// Every metric, in the order in which they are rendered.
pub const METRICS: &[Metric] = &[
    process("rhyolite_start_time_seconds", "When the process started, in seconds since 1970.", |r| {
        Some(seconds(r.process.started))
    }),
    process("rhyolite_databases", "Databases that this process replicates.", |r| Some(r.totals.databases as f64)),
    process("rhyolite_databases_parked", "Those of them that are at rest: idle, durable, nothing open.", |r| {
        Some(r.totals.parked as f64)
    }),
    process("rhyolite_databases_behind", "Those with commits that are not yet durable in the store.", |r| {
        Some(r.totals.behind as f64)
    }),
    process("rhyolite_databases_failing", "Those in state error or needs-page-diff.", |r| {
        let count = |name: &str| r.totals.states.get(name).copied().unwrap_or(0);
        Some((count("error") + count("needs-page-diff")) as f64)
    }),
    process("rhyolite_lag_seconds_max", "The longest lag of any database.", |r| Some(r.totals.lag_ms_max as f64 / 1e3)),
    process("rhyolite_node_primary", "1 on the primary of a cluster, 0 on its other nodes; absent elsewhere.", |r| {
        r.node.as_ref().map(|node| f64::from(u8::from(node.is(Role::Primary))))
    }),
    process(
        "rhyolite_node_epoch",
        "Number of the right that the holder of a cluster's lease has; absent without one.",
        |r| r.node.as_ref()?.holder.as_ref()?.epoch.map(|epoch| epoch.get() as f64),
    ),
    process(
        "rhyolite_node_replica_lag_seconds_max",
        "Time since the replica that is furthest behind was last known to have every commit of the primary.",
        |r| r.node.as_ref().map(|node| node.lag().1 as f64 / 1e3),
    ),
    process(
        "rhyolite_node_replica_lag_transactions_max",
        "Commits of the primary that the replica which is furthest behind lacks.",
        |r| r.node.as_ref().map(|node| node.lag().0 as f64),
    ),
    Metric {
        name: "rhyolite_push_connected",
        kind: Gauge,
        help: "1 for a replica that this process dials and that follows it, 0 for one that is not reached or has not to be.",
        source: Source::Named("to", |r| {
            r.pushes.iter().map(|push| (push.to.clone(), f64::from(u8::from(push.connected)))).collect()
        }),
    },
    process(
        "rhyolite_accept_connected",
        "1 on a replica with --accept while a primary is connected, 0 while none is; absent elsewhere.",
        |r| r.accepts.as_ref().map(|accepts| f64::from(u8::from(accepts.from.is_some()))),
    ),
    process("process_resident_memory_bytes", "Memory of the process that is in RAM (Linux).", |_| resident_bytes()),
    Metric {
        name: "rhyolite_mount_operations_total",
        kind: Counter,
        help: "Operations on the mount that the kernel passed to this process.",
        source: Source::Parts("operation", crate::mount::operations::counts),
    },
    Metric {
        name: "rhyolite_mount_gated_syncs_total",
        kind: Counter,
        help: "Syncs of commits that waited for the store or for other nodes, by what became of them.",
        source: Source::Parts("result", crate::mount::gate::counts),
    },
    Metric {
        name: "rhyolite_forwarded_transactions_total",
        kind: Counter,
        help: "Transactions that applications on a replica's mount have written, by what became of them at the primary.",
        source: Source::Parts("result", counts::transactions),
    },
    Metric {
        name: "rhyolite_forwarded_commit_seconds_total",
        kind: Counter,
        help: "Time that applications have waited at their commits for the primary to commit.",
        source: Source::Process(|_| counts::seconds()),
    },
    Metric {
        name: "rhyolite_forwarding_locks_total",
        kind: Counter,
        help: "Requests of applications on a replica's mount for the primary's write lock, by what became of them.",
        source: Source::Parts("result", counts::locks),
    },
    Metric {
        name: "rhyolite_state",
        kind: Gauge,
        help: "1 for the state that the database is in, 0 for the others.",
        source: Source::Labelled("state", |d| {
            State::NAMES.map(|name| (name.to_owned(), f64::from(u8::from(name == d.figures.state.name())))).to_vec()
        }),
    },
    gauge(
        "rhyolite_lag_seconds",
        "Age of the oldest commit that is not yet durable in the store; 0 when all are.",
        |d| Some(d.lag_ms as f64 / 1e3),
    ),
    gauge("rhyolite_txid", "Number of the last captured commit.", |d| txid(d.figures.local)),
    gauge("rhyolite_durable_txid", "Number of the last commit that is durable in the store.", |d| {
        txid(d.figures.durable)
    }),
    gauge("rhyolite_database_bytes", "Size of the database after the last captured commit.", |d| {
        d.figures.page_size.map(|size| d.figures.page_count.bytes(size) as f64)
    }),
    gauge("rhyolite_wal_bytes", "Size of the -wal file.", |d| Some(d.figures.wal_bytes as f64)),
    gauge("rhyolite_local_log_bytes", "Size of the log segments that wait in the state folder.", |d| {
        Some(d.figures.log_bytes as f64)
    }),
    counter("rhyolite_captured_transactions_total", "Transactions captured.", |d| {
        Some(d.figures.captured.transactions as f64)
    }),
    counter(
        "rhyolite_ungated_transactions_total",
        "Transactions that were committed without waiting for the store or for other nodes, although they were to.",
        |d| Some(d.figures.ungated as f64),
    ),
    counter("rhyolite_captured_pages_total", "Page images in the captured transactions.", |d| {
        Some(d.figures.captured.pages as f64)
    }),
    counter("rhyolite_captured_bytes_total", "Bytes of the captured transactions' LTX files.", |d| {
        Some(d.figures.captured.bytes as f64)
    }),
    counter("rhyolite_uploaded_segments_total", "Log segments that the store acknowledged.", |d| {
        Some(d.figures.uploaded.segments as f64)
    }),
    counter("rhyolite_uploaded_segment_bytes_total", "Bytes of these segments.", |d| {
        Some(d.figures.uploaded.segment_bytes as f64)
    }),
    counter("rhyolite_uploaded_files_total", "Snapshots, bundles and merged files that the store acknowledged.", |d| {
        Some(d.figures.uploaded.files as f64)
    }),
    counter("rhyolite_uploaded_file_bytes_total", "Bytes of these files.", |d| {
        Some(d.figures.uploaded.file_bytes as f64)
    }),
    gauge(
        "rhyolite_last_upload_timestamp_seconds",
        "When the store last acknowledged something; absent before.",
        |d| d.figures.uploaded.last.map(seconds),
    ),
    Metric {
        name: "rhyolite_checkpoints_total",
        kind: Counter,
        help: "Checkpoints that Rhyolite tried, by result.",
        source: Source::Labelled("result", |d| {
            let counts = &d.figures.checkpoints;
            let values = [counts.complete, counts.partial, counts.busy, counts.failed].map(|n| n as f64);
            ["complete", "partial", "busy", "failed"].map(str::to_owned).into_iter().zip(values).collect()
        }),
    },
    counter(
        "rhyolite_checkpoint_stall_seconds_total",
        "Time for which Rhyolite's checkpoints held the database's write lock.",
        |d| Some(d.figures.checkpoints.stall_us_total as f64 / 1e6),
    ),
    counter(
        "rhyolite_checkpoint_cpu_seconds_total",
        "Processor time of Rhyolite's checkpoints, which the application's own are spared.",
        |d| Some(d.figures.checkpoints.cpu_us_total as f64 / 1e6),
    ),
    gauge("rhyolite_checkpoint_stall_seconds_max", "The longest of these times.", |d| {
        Some(d.figures.checkpoints.stall_us_max as f64 / 1e6)
    }),
    Metric {
        name: "rhyolite_page_diffs_total",
        kind: Counter,
        help: "Times that the database was compared page by page, by reason.",
        source: Source::Labelled("reason", |d| {
            DiffReason::ALL.map(|reason| (reason.name().to_owned(), d.figures.page_diffs.get(reason) as f64)).to_vec()
        }),
    },
    Metric {
        name: "rhyolite_store_requests_total",
        kind: Counter,
        help: "Requests to the store, failed tries included, by operation.",
        source: Source::Labelled("operation", |d| labelled(&d.store_requests.requests, 1.0)),
    },
    Metric {
        name: "rhyolite_store_request_seconds_total",
        kind: Counter,
        help: "Time that answered requests took, by operation.",
        source: Source::Labelled("operation", |d| labelled(&d.store_requests.busy_us, 1e6)),
    },
    Metric {
        name: "rhyolite_store_errors_total",
        kind: Counter,
        help: "Failed requests to the store by kind; not_found and exists may be expected answers.",
        source: Source::Labelled("kind", |d| labelled(&d.store_requests.errors, 1.0)),
    },
    counter("rhyolite_store_read_bytes_total", "Bytes of objects read from the store.", |d| {
        Some(d.store_requests.bytes_read as f64)
    }),
    counter("rhyolite_store_written_bytes_total", "Bytes of objects sent to the store.", |d| {
        Some(d.store_requests.bytes_written as f64)
    }),
    gauge(
        "rhyolite_drill_restorable_timestamp_seconds",
        "Time of the newest commit that a restore drill has proved restorable; absent before.",
        |d| d.figures.drill.proved.as_ref().map(|proof| seconds(proof.committed)),
    ),
    gauge("rhyolite_drill_proved_timestamp_seconds", "When that was proved; absent before.", |d| {
        d.figures.drill.proved.as_ref().map(|proof| seconds(proof.at))
    }),
    gauge(
        "rhyolite_drill_proved_ratio",
        "Part of the pages that this drill compared: 1 unless it took a sample.",
        |d| d.figures.drill.proved.as_ref().map(|proof| proof.pages_proved as f64 / proof.pages.max(1) as f64),
    ),
    counter("rhyolite_drills_total", "Restore drills.", |d| Some(d.figures.drill.runs as f64)),
    counter("rhyolite_drill_failures_total", "Restore drills that found the store damaged.", |d| {
        Some(d.figures.drill.failures as f64)
    }),
    counter("rhyolite_errors_total", "Errors of any kind, those that a retry mended included.", |d| {
        Some(d.figures.errors as f64)
    }),
];

/// The text that a scrape gets.
pub fn render(board: &StatusBoard, now: Timestamp) -> String {
    let report = StatusReport::new(board, now);
    let mut out = String::with_capacity(4096 * (1 + report.databases.len()));
    let version = &report.process.version;
    push(&mut out, format_args!("# HELP {BUILD_INFO} Version of Rhyolite, as a label.\n# TYPE {BUILD_INFO} gauge\n"));
    push(&mut out, format_args!("{BUILD_INFO}{{version=\"{version}\"}} 1\n"));
    for metric in METRICS {
        let (name, kind) = (metric.name, metric.kind.name());
        push(&mut out, format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help));
        render_samples(&mut out, metric, &report);
    }
    out
}

/// The one metric whose value lies in its label.
pub const BUILD_INFO: &str = "rhyolite_build_info";

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String does not fail");
}

fn render_samples(out: &mut String, metric: &Metric, report: &StatusReport) {
    let name = metric.name;
    match metric.source {
        Source::Process(value) => {
            if let Some(value) = value(report) {
                push(out, format_args!("{name} {value}\n"));
            }
            return;
        }
        Source::Parts(label, values) => {
            for (text, value) in values() {
                push(out, format_args!("{name}{{{label}=\"{text}\"}} {value}\n"));
            }
            return;
        }
        Source::Named(label, values) => {
            for (text, value) in values(report) {
                push(out, format_args!("{name}{{{label}=\"{}\"}} {value}\n", escape(Path::new(&text))));
            }
            return;
        }
        Source::Database(_) | Source::Labelled(..) => {}
    }
    for database in &report.databases {
        let db = escape(&database.path);
        match metric.source {
            Source::Process(_) | Source::Parts(..) | Source::Named(..) => unreachable!("returned above"),
            Source::Database(value) => {
                if let Some(value) = value(database) {
                    push(out, format_args!("{name}{{db=\"{db}\"}} {value}\n"));
                }
            }
            Source::Labelled(label, values) => {
                for (text, value) in values(database) {
                    push(out, format_args!("{name}{{db=\"{db}\",{label}=\"{text}\"}} {value}\n"));
                }
            }
        }
    }
}

/// A path as the value of a label: backslash, quote and line feed are escaped, bytes that are no UTF-8 replaced.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `VmRSS` of `/proc/self/status`, which is in units of 1024 bytes.
fn resident_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib as f64 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        let board = StatusBoard::new();
        let status = board.add("/a \"b\"\\.db".into(), "/m".into(), "./backup".into());
        status.update(|f| {
            f.state = State::Replicating;
            f.pending_since = Some(Timestamp(1_000));
            f.checkpoints.stall_us_total = 1_500;
            f.page_diffs.add(DiffReason::WalReset);
        });
        let text = render(&board, Timestamp(3_500));
        let db = r#"db="/a \"b\"\\.db""#;
        for line in [
            "# TYPE rhyolite_lag_seconds gauge".to_owned(),
            format!("rhyolite_lag_seconds{{{db}}} 2.5"),
            format!("rhyolite_state{{{db},state=\"replicating\"}} 1"),
            format!("rhyolite_state{{{db},state=\"error\"}} 0"),
            format!("rhyolite_txid{{{db}}} 0"),
            format!("rhyolite_checkpoint_stall_seconds_total{{{db}}} 0.0015"),
            format!("rhyolite_page_diffs_total{{{db},reason=\"wal-reset\"}} 1"),
            "rhyolite_databases 1".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
        assert!(!text.contains("rhyolite_last_upload_timestamp_seconds{"), "nothing was uploaded");
    }

    #[test]
    fn names_follow_the_rules() {
        for metric in METRICS {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
        let mut names: Vec<_> = METRICS.iter().map(|m| m.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }
}
