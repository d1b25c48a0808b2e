//! What must hold when a world is quiet again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::PEOPLE;
use super::client::Shared;
use super::history::{Reign, Rows, has, minus, overlaps};
use super::promise::{ended, note_durable};
use super::report::{Fault, Report};
use crate::cluster::app::numbers_of;
use crate::cluster::{Cluster, DATABASE};
use crate::error::{Context, Outcome, fail};

/// Longest wait until all is durable, and until every node has it.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Compares everything with what clients were told, and ends all nodes.
pub(super) fn run(shared: Shared<'_>, frozen: &BTreeSet<u32>) -> Outcome {
    let Shared { cluster, report, .. } = shared;
    let starts_ended = || cluster.start_ended(|code| report.event(ended(code)));
    wait("everything to be durable", || starts_ended().map(|()| note_durable(shared)))?;
    let copy = cluster.folder().join("copy.db");
    cluster.restore(&copy)?;
    cluster.verify()?;
    let stored = rows_of(&copy, report, "the store")?;
    report.count(|counts| counts.rows += stored.values().map(|rows| rows.len() as u64).sum::<u64>());
    for node in &cluster.nodes {
        let is_equal = || {
            starts_ended()?;
            Ok(rows_of(&node.database(), report, &node.name).is_ok_and(|rows| rows == stored))
        };
        if wait("a node to have what the store has", is_equal).is_err() {
            report.fault(Fault::Different, 1, &node.name, "its rows are not those of the store");
        }
        check_sound(&node.database(), report, &node.name)?;
    }
    compare(shared, &stored)?;
    for (one, other) in overlaps(&reigns(cluster)?, frozen) {
        report.fault(Fault::Both, 1, "two applications", &format!("{one:?} and {other:?}"));
    }
    end(shared, &stored)
}

/// What was promised is in the history, and what was acknowledged there or in a lost branch.
fn compare(shared: Shared<'_>, stored: &Rows) -> Outcome {
    let Shared { cluster, history, report, .. } = shared;
    let lost = minus(&history.kept(), stored);
    if !lost.is_empty() {
        report.fault(Fault::Lost, lost.len(), "the store", &format!("{lost:?} were safe"));
    }
    let mut kept = kept_rows(cluster, report)?;
    // What a node has not brought back yet is in its file; that this is another than the rest is a fault of its own.
    for node in &cluster.nodes {
        kept.push(rows_of(&node.database(), report, &node.name)?);
    }
    let astray = minus(&history.acknowledged(), stored);
    let nowhere: Vec<_> =
        astray.iter().filter(|(client, number)| !kept.iter().any(|rows| has(rows, *client, *number))).collect();
    report.count(|counts| counts.kept += (astray.len() - nowhere.len()) as u64);
    if !nowhere.is_empty() {
        let what = format!("{nowhere:?} were acknowledged, and are kept nowhere");
        report.fault(Fault::Lost, nowhere.len(), "all nodes", &what);
    }
    Ok(())
}

/// Ends all nodes. Their files are what they were, no process is left, and no mount.
fn end(shared: Shared<'_>, stored: &Rows) -> Outcome {
    let Shared { cluster, report, .. } = shared;
    for node in cluster.nodes.iter().rev() {
        let code = node.stop()?;
        // An application ends by the signal.
        if !matches!(code, Some(0 | 143)) {
            report.fault(Fault::Failure, 1, &node.name, &format!("it ended with status {code:?}"));
        }
        if node.is_mounted() || (node.front != node.folder && node.database().exists()) {
            report.fault(Fault::Failure, 1, &node.name, "it has ended, and its mount is there");
        }
    }
    if wait("processes to end", || Ok(cluster.living().is_empty())).is_err() {
        report.fault(Fault::Failure, 1, "all nodes", &format!("{:?} outlive the nodes", cluster.living()));
    }
    for node in &cluster.nodes {
        let text = fs::read_to_string(cluster.log_of(node)).context("read a log")?;
        // What a person must look at; and a process that has given up.
        if let Some(line) = text.lines().find(|line| line.contains("Z ERROR ") || line.contains(" panicked at ")) {
            report.fault(Fault::Failure, 1, &node.name, line);
        }
        let path = node.folder.join(DATABASE);
        check_sound(&path, report, &node.name)?;
        if rows_of(&path, report, &node.name)? != *stored {
            report.fault(Fault::Different, 1, &node.name, "its rows have changed while the nodes ended");
        }
    }
    Ok(())
}

fn wait(what: &str, is_so: impl Fn() -> Outcome<bool>) -> Outcome {
    let deadline = Instant::now() + QUIET_MAX;
    while !is_so()? {
        if Instant::now() > deadline {
            return fail(format!("waited in vain for {what}"));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn open(path: &Path) -> Outcome<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).context("open a database")?;
    db.busy_timeout(Duration::from_secs(10)).context("open a database")?;
    Ok(db)
}

fn rows_of(path: &Path, report: &Report, place: &str) -> Outcome<Rows> {
    let db = open(path)?;
    let mut rows = Rows::new();
    for client in 0..PEOPLE {
        let numbers = numbers_of(&db, client)?;
        let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
        if distinct.len() < numbers.len() {
            let twice = numbers.len() - distinct.len();
            report.fault(Fault::Doubled, twice, place, &format!("rows of client {client} are there twice"));
        }
        rows.insert(client, distinct);
    }
    Ok(rows)
}

fn check_sound(path: &Path, report: &Report, place: &str) -> Outcome {
    let check = open(path)?.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    let check = check.context("check a database")?;
    if check != "ok" {
        report.fault(Fault::Different, 1, place, &check);
    }
    Ok(())
}

/// The rows of all lost branches.
fn kept_rows(cluster: &Cluster, report: &Report) -> Outcome<Vec<Rows>> {
    let mut kept = Vec::new();
    for node in &cluster.nodes {
        for branch in cluster.branches(node)? {
            let place = branch.display().to_string();
            check_sound(&branch, report, &place)?;
            kept.push(rows_of(&branch, report, &place)?);
        }
    }
    report.count(|counts| counts.branches += kept.len() as u64);
    Ok(kept)
}

/// When each application wrote.
fn reigns(cluster: &Cluster) -> Outcome<Vec<Reign>> {
    let mut reigns = Vec::new();
    for entry in fs::read_dir(cluster.folder().join("notes")).context("read the notes")? {
        let path = entry.context("read the notes")?.path();
        let process = path.file_name().and_then(|name| name.to_str()?.parse().ok()).context("a note of nobody")?;
        let text = fs::read_to_string(&path).context("read the notes")?;
        // The last line of a killed process may be half written.
        let mut times = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok());
        if let Some(first) = times.next() {
            reigns.push(Reign { process, first, last: times.next_back().unwrap_or(first) });
        }
    }
    Ok(reigns)
}
