//! What nodes say of commits: that they are in the store, or on the disks of other nodes. And whether whoever is the primary has them.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::PEOPLE;
use super::client::Shared;
use super::history::{Rows, minus};
use super::report::Fault;
use crate::cluster::Node;
use crate::cluster::http::{ask, read_numbers};
use crate::cluster::setting::Safety;
use crate::error::{Context, Outcome, fail};

/// Pause between two looks at what is in the store: where other nodes count, rarely, so that there is more which only they have.
const DURABLE_EVERY: Duration = Duration::from_millis(700);
const DURABLE_RARELY: Duration = Duration::from_secs(9);
/// Longest wait for that.
const DURABLE_MAX: Duration = Duration::from_secs(3);
/// Pause between two commits that are asked about.
const SAFE_EVERY: Duration = Duration::from_millis(60);
/// Longest wait for each.
const SAFE_MAX: Duration = Duration::from_millis(1500);
/// Longest wait until the application of a primary answers.
const PRIMARY_MAX: Duration = Duration::from_secs(60);

/// Asks the primary again and again what is in the store.
pub(super) fn watch_durable(shared: Shared<'_>) {
    let pause = if shared.cluster.setting.safety == Safety::Store { DURABLE_EVERY } else { DURABLE_RARELY };
    let mut next = Instant::now();
    while !shared.ends.load(Ordering::SeqCst) {
        if Instant::now() >= next {
            note_durable(shared);
            next = Instant::now() + pause;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Notes what is in the store: rows that were there on the primary before it said that everything is.
pub(super) fn note_durable(shared: Shared<'_>) -> bool {
    let began = Instant::now();
    let done = under_one_right(shared, |primary| {
        let rows = rows_at(primary, DURABLE_MAX)?;
        if shared.cluster.sync(primary, DURABLE_MAX) { Ok(rows) } else { fail("not in time") }
    });
    let Ok(rows) = done else { return false };
    for (client, numbers) in rows {
        shared.history.note_durable(client, numbers);
    }
    shared.report.count(|counts| {
        counts.syncs += 1;
        counts.sync_ms_max = counts.sync_ms_max.max(began.elapsed().as_millis());
    });
    true
}

/// Commits rows of its own, as the client `number`, and asks again and again whether they are so safe: then everything is that was there before.
pub(super) fn watch_safe(shared: Shared<'_>, level: &str, number: u64) {
    for row in 1.. {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        // A primary that is lost meanwhile is no fault.
        let _ = note_safe(shared, level, (number, row));
        thread::sleep(SAFE_EVERY);
    }
}

fn note_safe(shared: Shared<'_>, level: &str, (client, row): (u64, u64)) -> Outcome {
    let Shared { cluster, history, report, .. } = shared;
    let mut rows = under_one_right(shared, |primary| {
        let rows = rows_at(primary, SAFE_MAX)?;
        let answer = ask(primary.proxy, "POST", &format!("/add/{client}/{row}"), None, SAFE_MAX)?;
        if answer.status != 200 {
            return fail(format!("status {}", answer.status));
        }
        history.acknowledge(client, row);
        let cookie = answer.cookie.context("nobody says which commit it was")?;
        let txid = cookie.strip_prefix("__txid=").context("a cookie without a transaction")?;
        if cluster.wait_safe(primary, txid, level, SAFE_MAX) { Ok(rows) } else { fail("not in time") }
    })?;
    rows.entry(client).or_default().insert(row);
    let new: usize = rows.into_iter().map(|(client, numbers)| history.note_safe(client, numbers)).sum();
    report.count(|counts| {
        counts.promises += 1;
        counts.safe += new as u64;
    });
    Ok(())
}

/// What is found out about the primary, if its right is the same before and after: what two rights say of a commit does not go together.
fn under_one_right<T>(shared: Shared<'_>, find_out: impl Fn(&Node) -> Outcome<T>) -> Outcome<T> {
    let (primary, right) = shared.cluster.holder().context("nobody is the primary")?;
    let found = find_out(primary)?;
    match shared.cluster.holder() {
        Some((holder, after)) if (&holder.name, &after) == (&primary.name, &right) => Ok(found),
        _ => fail("the right has changed meanwhile"),
    }
}

/// The rows of all clients that the application of a node tells.
fn rows_at(node: &Node, limit: Duration) -> Outcome<Rows> {
    let rows = |client| {
        let answer = ask(node.application, "GET", &format!("/rows/{client}"), None, limit)?;
        if answer.status == 200 { Ok((client, read_numbers(&answer.body)?.0)) } else { fail("no rows") }
    };
    (0..PEOPLE).map(rows).collect()
}

/// Whoever is the primary has all that was ever called safe.
pub(super) fn check_primary(shared: Shared<'_>) -> Outcome {
    let Shared { cluster, history, report, .. } = shared;
    let deadline = Instant::now() + PRIMARY_MAX;
    loop {
        let kept = history.kept();
        let found = under_one_right(shared, |primary| Ok((primary.name.clone(), rows_at(primary, DURABLE_MAX)?)));
        match found {
            Ok((name, rows)) => {
                report.count(|counts| counts.checks += 1);
                let missing = minus(&kept, &rows);
                if !missing.is_empty() {
                    let place = format!("the primary {name}");
                    report.fault(Fault::Lost, missing.len(), &place, &format!("{missing:?} were safe"));
                }
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => {
                return fail(format!("no application of a primary answers after {PRIMARY_MAX:?}: {error}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
        // Who has ended by itself is started again.
        cluster.start_ended(|code| report.event(ended(code)))?;
    }
}

/// Waits until a node shows its readers all that is safe now.
pub(super) fn wait_complete(shared: Shared<'_>, node: &Node) -> Outcome {
    let (kept, deadline) = (shared.history.kept(), Instant::now() + PRIMARY_MAX);
    loop {
        let rows = (0..PEOPLE).map(|client| {
            let answer = ask(node.reader(), "GET", &format!("/rows/{client}"), None, DURABLE_MAX)?;
            if answer.status == 200 { Ok((client, read_numbers(&answer.body)?.0)) } else { fail("no rows") }
        });
        let rows: Outcome<Rows> = rows.collect();
        match rows {
            Ok(rows) if minus(&kept, &rows).is_empty() => return Ok(()),
            _ if Instant::now() > deadline => {
                return fail(format!("{} has not everything {PRIMARY_MAX:?} after it began anew", node.name));
            }
            _ => thread::sleep(Duration::from_millis(100)),
        }
        shared.cluster.start_ended(|code| shared.report.event(ended(code)))?;
    }
}

/// How the end of a process is counted.
pub(super) fn ended(code: i32) -> &'static str {
    if code == 0 { "end with status 0" } else { "end with another status" }
}
