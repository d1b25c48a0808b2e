//! The end of a world: every restore point is restored, and what they show is compared with what was written.

use rusqlite::Connection;

use super::Rules;
use super::report::{Fault, Report};
use super::seen;
use super::verdict::{self, History, Shown};
use super::world::World;
use crate::error::{Context, Outcome};
use crate::oracle::{Image, first_difference, judge};
use crate::rhyolite::holes;
use crate::writer::schema::{self, Entry};

/// Compares all databases of `world`, which nobody uses and nothing is mounted over any more, with their backups.
pub(super) fn run(world: &mut World, report: &Report, rules: Rules) -> Outcome {
    for index in 0..world.databases.len() {
        let mode = world.databases[index].mode;
        let ledger = compare_newest(world, report, index)?;
        let points = restore_points(world, report, index)?;
        report.count(|counts| {
            counts.commits += ledger.len() as u64;
            counts.points += points.len() as u64;
        });
        let database = &world.databases[index];
        let history = History { ledger: &ledger, acknowledged: &database.acknowledged, watched: &database.watched };
        let mut verdict = verdict::judge(&history, &points);
        report.count(|counts| {
            counts.unchanged += verdict.unchanged;
            counts.unwatched += verdict.unwatched;
            counts.folded += verdict.folded.len() as u64;
        });
        if !rules.allow_folded {
            let words =
                |id: &i64| format!("no restore point shows commit {id}, acknowledged before the daemon was killed");
            verdict.missing.extend(verdict.folded.iter().map(words));
        }
        let found = [(Fault::Missing, verdict.missing), (Fault::Extra, verdict.extra), (Fault::Wrong, verdict.wrong)];
        for (fault, what) in found.iter().filter(|(_, what)| !what.is_empty()) {
            let more = if what.len() > 1 { format!(" (and {} more)", what.len() - 1) } else { String::new() };
            let kept = format!("{mode}.db: {}{more}; watched {:?}", what[0], world.databases[index].watched);
            world.fault(report, *fault, what.len(), &kept);
        }
    }
    Ok(())
}

/// The newest restore is the database, byte for byte, and the database is whole; but for a commit that only its end has brought to light. Gives
/// its ledger.
fn compare_newest(world: &mut World, report: &Report, index: usize) -> Outcome<Vec<Entry>> {
    let database = &world.databases[index];
    let (behind, store, copy) = (database.behind.clone(), database.store.clone(), world.path("copy.db"));
    let seen = if database.mode == "wal" { seen::image(&behind, &world.path("seen.db"))? } else { None };
    // In WAL mode the last commits may not be in the file: what SQLite reads is compared, and the WAL goes with the last connection.
    let source = if database.mode == "wal" { Image::of_database(&behind)? } else { Image::of_file(&behind)? };
    let (source, was_longer) = source.committed();
    if was_longer {
        report.event("file with more pages than its header counts");
    }
    let judgement = judge(&behind)?;
    if !judgement.is_sound() {
        world.fault(report, Fault::Wrong, 1, &format!("{}: {judgement:?}", behind.display()));
    }
    world.rhyolite.restore_over(&store, &copy, None)?;
    report.count(|counts| counts.compared += 1);
    let restored = Image::of_file(&copy)?;
    if let Some(difference) = first_difference(&source, &restored) {
        if seen == Some(restored) {
            report.event("recovered after the end");
        } else {
            world.fault(report, Fault::Wrong, 1, &format!("{store}, newest: {difference}"));
        }
    }
    let conn = Connection::open(&behind).context("open behind the mount")?;
    schema::entries(&conn).context("read the ledger")
}

/// Restores every point and judges it by itself.
fn restore_points(world: &mut World, report: &Report, index: usize) -> Outcome<Vec<Shown>> {
    let (store, copy) = (world.databases[index].store.clone(), world.path("copy.db"));
    let points = world.rhyolite.log(&store)?;
    let left_out = holes(&points);
    if left_out > 0 {
        world.fault(report, Fault::Missing, left_out, &format!("{store}: TXIDs are left out between restore points"));
    }
    let mut shown = Vec::with_capacity(points.len());
    for point in points {
        if let Err(error) = world.rhyolite.restore_over(&store, &copy, Some(&point.txid)) {
            let faults = vec![error.to_string()];
            shown.push(Shown { txid: point.txid, faults, last: Entry::default() });
            continue;
        }
        let judgement = judge(&copy)?;
        let faults = [judgement.missing, judgement.wrong].concat();
        shown.push(Shown { txid: point.txid, last: judgement.last, faults });
    }
    Ok(shown)
}
