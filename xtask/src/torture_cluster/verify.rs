//! What must hold when a world is quiet again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::client::{Shared, note_durable};
use super::history::{Reign, Rows, overlaps};
use super::report::{Fault, Report};
use crate::cluster::app::numbers_of;
use crate::cluster::{Cluster, DATABASE};
use crate::error::{Context, Outcome, fail};

/// Longest wait until all is durable, and until every node has it.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Compares everything with what clients were told.
pub(super) fn run(shared: Shared<'_>, clients: u64, frozen: &BTreeSet<u32>) -> Outcome {
    let Shared { cluster, history, report, .. } = shared;
    wait("everything to be durable", || Ok(note_durable(shared, clients)))?;
    let copy = cluster.folder().join("copy.db");
    cluster.restore(&copy)?;
    cluster.verify()?;
    let stored = rows_of(&copy, clients, report, "the store")?;
    report.count(|counts| counts.rows += stored.values().map(|rows| rows.len() as u64).sum::<u64>());
    for node in &cluster.nodes {
        let database = node.folder.join(DATABASE);
        let is_equal = || Ok(rows_of(&database, clients, report, &node.name).is_ok_and(|rows| rows == stored));
        if wait("a node to have what the store has", is_equal).is_err() {
            report.fault(Fault::Different, 1, &node.name, "its rows are not those of the store");
        }
        check_sound(&database, report, &node.name)?;
    }
    let (acknowledged, durable) = history.all();
    let lost = minus(&durable, &stored);
    if !lost.is_empty() {
        report.fault(Fault::Lost, lost.len(), "the store", &format!("{lost:?} were durable"));
    }
    let kept = kept_rows(cluster, clients, report)?;
    let astray = minus(&acknowledged, &stored);
    let nowhere: Vec<_> =
        astray.iter().filter(|(client, number)| !kept.iter().any(|rows| has(rows, *client, *number))).collect();
    report.count(|counts| counts.kept += (astray.len() - nowhere.len()) as u64);
    if !nowhere.is_empty() {
        report.fault(
            Fault::Lost,
            nowhere.len(),
            "all nodes",
            &format!("{nowhere:?} were acknowledged, and are kept nowhere"),
        );
    }
    for (one, other) in overlaps(&reigns(cluster)?, frozen) {
        report.fault(Fault::Both, 1, "two applications", &format!("{one:?} and {other:?}"));
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

fn rows_of(path: &Path, clients: u64, report: &Report, place: &str) -> Outcome<Rows> {
    let db = open(path)?;
    let mut rows = Rows::new();
    for client in 0..clients {
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
fn kept_rows(cluster: &Cluster, clients: u64, report: &Report) -> Outcome<Vec<Rows>> {
    let mut kept = Vec::new();
    for node in &cluster.nodes {
        for branch in cluster.branches(node)? {
            let place = branch.display().to_string();
            check_sound(&branch, report, &place)?;
            kept.push(rows_of(&branch, clients, report, &place)?);
        }
    }
    report.count(|counts| counts.branches += kept.len() as u64);
    Ok(kept)
}

fn has(rows: &Rows, client: u64, number: u64) -> bool {
    rows.get(&client).is_some_and(|rows| rows.contains(&number))
}

fn minus(rows: &Rows, others: &Rows) -> Vec<(u64, u64)> {
    let all = rows.iter().flat_map(|(client, numbers)| numbers.iter().map(move |number| (*client, *number)));
    all.filter(|(client, number)| !has(others, *client, *number)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let rows = |numbers: &[u64]| Rows::from([(1, numbers.iter().copied().collect())]);
        assert_eq!(minus(&rows(&[1, 2, 3]), &rows(&[1, 3, 4])), [(1, 2)]);
        assert!(minus(&rows(&[]), &rows(&[1])).is_empty());
        assert_eq!(minus(&rows(&[1]), &Rows::new()), [(1, 1)]);
    }
}
