//! Stores with a past of so many commits, and what is said about their future, as text.

use std::fmt::Write;

use rhyolite_format::manifest::{RetiredFile, RetiredSegments};

use super::*;
use crate::model::{self, Commits, Random};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const KB: u64 = 1000;
const MB: u64 = 1_000_000;

/// A store: a commit of `bytes` each `every`, from time 0 to `until`, with a snapshot of `snapshot` bytes each day; bundled but for the last
/// ten commits, one segment for each of those.
struct Scenario {
    every: i64,
    until: i64,
    bytes: u64,
    snapshot: u64,
}

impl Scenario {
    fn build(&self) -> (Manifest, Vec<LogSegment>) {
        let mut commits = Commits::default();
        let mut snapshots = Vec::new();
        for time in (0..self.until).step_by(self.every as usize) {
            if snapshots.is_empty() || time / DAY > (time - self.every) / DAY {
                snapshots.push(commits.last() + 1);
            }
            commits.push(time, time == 0, &mut Random(1));
        }
        let in_log = commits.last().saturating_sub(10).max(1);
        let mut manifest = model::manifest();
        if in_log > 1 {
            manifest.files.push(commits.file(FileKind::Bundle, 1, 2, in_log, (in_log - 1) * self.bytes));
        }
        let files = snapshots.iter().map(|n| commits.file(FileKind::Snapshot, 9, 1, *n, self.snapshot));
        manifest.files.extend(files);
        manifest.log_start = Some(model::pos(in_log));
        manifest.validate().unwrap();
        let segments = (in_log + 1..=commits.last()).zip(1..);
        let log = segments.map(|(n, seq)| commits.segment(seq, 1, n..n + 1, self.bytes)).collect();
        (manifest, log)
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

fn text(explained: &Explained) -> String {
    let mut out = String::new();
    let Explained { commits, merged, snapshots, retired, deletions, pattern, month } = explained;
    for (name, kept) in [("commits", commits), ("merged", merged), ("snapshots", snapshots), ("retired", retired)] {
        if kept.objects > 0 {
            writeln!(out, "{name}: {} objects, {}", kept.objects, size(kept.bytes as f64)).unwrap();
        }
    }
    for Deletion { at, objects, bytes } in deletions {
        writeln!(out, "hour {}: {objects} objects, {} go", at.0 / HOUR, size(*bytes as f64)).unwrap();
    }
    let (commits, uploads) = (pattern.commits_hour, pattern.uploads_hour);
    writeln!(out, "an hour: {commits:.1} commits, {}, {uploads:.1} uploads", size(pattern.bytes_hour)).unwrap();
    writeln!(out, "a month: {} stored, {:.0} puts, {:.0} gets", size(month.bytes), month.puts, month.gets).unwrap();
    let (storage, requests, egress) = (month.storage_cost, month.request_cost, month.egress_cost);
    writeln!(out, "dollars: {storage:.2} + {requests:.2} + {egress:.2}").unwrap();
    out
}

fn check(scenario: &Scenario, change: impl FnOnce(&mut Manifest), expected: &str) {
    let (mut manifest, log) = scenario.build();
    change(&mut manifest);
    let sizes = (1..=4).map(|n| (keys::segment(model::seq(n)), 10 * KB)).chain([("old".to_owned(), 3 * MB)]).collect();
    let input = Input {
        manifest: &manifest,
        log: &log,
        sizes: &sizes,
        policy: &Policy::default(),
        sync_interval: Duration::from_secs(1),
        drill_interval: Duration::from_secs(86_400),
        drill_bytes_max: 1 << 30,
        prices: Prices::default(),
        now: Timestamp(scenario.until),
    };
    assert_eq!(text(&explain(&input).unwrap()).trim_end(), expected.trim());
}

/// Ten commits of 100 kB an hour for two days.
const STEADY: Scenario = Scenario { every: HOUR / 10, until: 2 * DAY, bytes: 100 * KB, snapshot: 50 * MB };

#[test]
fn a_steady_writer() {
    check(
        &STEADY,
        |_| {},
        "
commits: 11 objects, 47.9 MB
snapshots: 2 objects, 100.0 MB
hour 769: 1 objects, 50.0 MB go
an hour: 10.0 commits, 1.0 MB, 10.0 uploads
a month: 2.3 GB stored, 21505 puts, 32911 gets
dollars: 0.05 + 0.12 + 0.41
",
    );
}

#[test]
fn an_idle_database_costs_its_snapshot() {
    let idle = Scenario { every: 2 * DAY, until: 2 * DAY, bytes: 0, snapshot: 50 * MB };
    check(
        &idle,
        |_| {},
        "
snapshots: 1 objects, 50.0 MB
an hour: 0.0 commits, 0.0 kB, 0.0 uploads
a month: 50.0 MB stored, 0 puts, 70 gets
dollars: 0.00 + 0.00 + 0.02
",
    );
}

#[test]
fn what_waits_to_be_deleted() {
    check(
        &STEADY,
        |manifest| {
            manifest.first_seq = model::seq(9);
            let since = Timestamp(2 * DAY - HOUR / 2);
            manifest.retired_segments =
                vec![RetiredSegments { first_seq: model::seq(2), last_seq: model::seq(3), since }];
            manifest.retired_files = vec![RetiredFile { key: "old".to_owned(), since: Timestamp(0) }];
        },
        "
commits: 11 objects, 47.9 MB
snapshots: 2 objects, 100.0 MB
retired: 3 objects, 3.0 MB
hour 48: 1 objects, 3.0 MB go
hour 48: 2 objects, 20.0 kB go
hour 769: 1 objects, 50.0 MB go
an hour: 9.8 commits, 983.3 kB, 9.8 uploads
a month: 2.3 GB stored, 21200 puts, 32454 gets
dollars: 0.05 + 0.12 + 0.41
",
    );
}

#[test]
fn a_shorter_memory_costs_less_and_a_dearer_store_more() {
    let (manifest, log) = STEADY.build();
    let sizes = BTreeMap::new();
    let cost = |policy: &Policy, prices: Prices| {
        let input = Input {
            manifest: &manifest,
            log: &log,
            sizes: &sizes,
            policy,
            sync_interval: Duration::from_secs(1),
            drill_interval: Duration::ZERO,
            drill_bytes_max: 0,
            prices,
            now: Timestamp(2 * DAY),
        };
        explain(&input).unwrap().month
    };
    let usual = cost(&Policy::default(), Prices::default());
    let short = Policy { keep_daily: Duration::from_secs(7 * 86_400), ..Policy::default() };
    assert!(cost(&short, Prices::default()).storage_cost < usual.storage_cost / 2.0);
    let dear = Prices { storage_gb_month: 0.23, put_thousand: 0.05, get_thousand: 0.004, egress_gb: 0.0 };
    let dear = cost(&Policy::default(), dear);
    assert!((dear.storage_cost / usual.storage_cost - 10.0).abs() < 1e-9);
    assert!((dear.request_cost / usual.request_cost - 10.0).abs() < 1e-9);
    assert!(dear.egress_cost.abs() < 1e-9 && usual.egress_cost > 0.0);
    assert!((dear.puts - usual.puts).abs() < 1e-9);
}

#[test]
fn uploads_are_bounded_by_the_interval() {
    let busy = Scenario { every: 10, until: 20_000, bytes: KB, snapshot: MB };
    let (manifest, log) = busy.build();
    let sizes = BTreeMap::new();
    let input = Input {
        manifest: &manifest,
        log: &log,
        sizes: &sizes,
        policy: &Policy::default(),
        sync_interval: Duration::from_secs(60),
        drill_interval: Duration::ZERO,
        drill_bytes_max: 0,
        prices: Prices::default(),
        now: Timestamp(20_000),
    };
    assert!((explain(&input).unwrap().pattern.uploads_hour - 60.0).abs() < 1e-9);
}
