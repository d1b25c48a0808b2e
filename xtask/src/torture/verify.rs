//! The end of a cycle: the backup must catch up by itself, and restores must be what the source was.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::report::{Fault, Report};
use super::world::{Keeping, World};
use crate::error::{Context, Outcome};
use crate::oracle::{Image, Judgement, first_difference, judge};
use crate::rhyolite::{Point, holes};

/// How long a backup may take to catch up with a database that nobody writes.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// Random restore points that are judged in each cycle, beside the latest and the sampled ones.
const POINTS_JUDGED: u64 = 2;

/// Compares all databases of `world` with their backups.
pub(super) fn run(world: &mut World<'_>, report: &Report, undisturbed: bool) -> Outcome {
    for index in 0..world.databases.len() {
        while !check_database(world, report, undisturbed, index)? {
            // At most once for each killed writer.
            report.event("recovered meanwhile");
        }
    }
    Ok(())
}

/// Compares one database. `false` when it has changed meanwhile, although nobody writes: a writer was killed between the last frame of its commit and the
/// wal-index, and the replicator, which was the last to close the database when it parked it, has recovered the WAL when it opened it again.
fn check_database(world: &mut World<'_>, report: &Report, undisturbed: bool, index: usize) -> Outcome<bool> {
    let source = Image::of_database(&world.databases[index].path)?;
    let began = Instant::now();
    let store = world.databases[index].store.clone();
    let points = match world.wait_for(index, source.checksum()?, SETTLE_LIMIT) {
        Ok(points) => points,
        Err(_) if source != Image::of_database(&world.databases[index].path)? => return Ok(false),
        Err(error) => {
            let log = world.databases[index].path.with_extension("replicate.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().next_back().unwrap_or_default();
            let what = format!("{store} does not catch up: {error}; the replicator's last words: {last}");
            world.fault(report, Fault::Failure, 1, &what);
            return Ok(true);
        }
    };
    report.count(|counts| counts.settle_ms.push(began.elapsed().as_millis() as u64));
    let expires = world.keeping == Keeping::Expiring;
    if expires {
        check_left_points(world, report, index, &points);
    } else {
        check_points(world, report, index, &points);
    }
    let before = world.databases[index].transactions;
    let life = world.databases[index].judged.values().last().and_then(|(life, _)| *life);
    let Some(judgement) = compare(world, report, index, &source, None)? else { return Ok(false) };
    if undisturbed && !expires && judgement.life == life {
        check_every_commit(world, report, index, judgement.last.id - before, points.len());
    }
    for (image, must_be_there) in std::mem::take(&mut world.databases[index].samples) {
        compare_sample(world, report, index, &image, must_be_there && !expires, &points)?;
    }
    for _ in 0..POINTS_JUDGED {
        let point = points[world.rng.range(0..points.len() as u64) as usize].clone();
        let judged = judge_point(world, report, index, &point);
        unless_expired(world, report, index, &point.txid, judged)?;
    }
    let database = &mut world.databases[index];
    report.count(|counts| counts.transactions += (judgement.last.id - before).max(0) as u64);
    database.transactions = judgement.last.id;
    let last = points.last().context("caught up, so there is a point")?.txid.clone();
    database.judged.insert(last, (judgement.life, judgement.last.id));
    database.points = points;
    Ok(true)
}

/// No TXID is left out, and what could be restored before can be restored still.
fn check_points(world: &mut World<'_>, report: &Report, index: usize, points: &[Point]) {
    let holes = holes(points);
    if holes > 0 {
        world.fault(report, Fault::Missing, holes, "TXIDs are left out between restore points");
    }
    let before = &world.databases[index].points;
    let gone = before.iter().zip(points).filter(|(a, b)| a != b).count() + before.len().saturating_sub(points.len());
    if gone > 0 {
        world.fault(report, Fault::Missing, gone, "restore points of before are gone or changed");
    }
}

/// Where restore points expire, those that are left are as they were, in order, and they end later than before.
fn check_left_points(world: &mut World<'_>, report: &Report, index: usize, points: &[Point]) {
    let before: BTreeMap<&str, &Point> =
        world.databases[index].points.iter().map(|point| (point.txid.as_str(), point)).collect();
    let changed = points.iter().filter(|point| before.get(point.txid.as_str()).is_some_and(|known| known != point));
    let changed = changed.count();
    let is_in_order = points.windows(2).all(|pair| pair[0].txid < pair[1].txid);
    let goes_back = before.last_key_value().map(|(last, _)| *last) > points.last().map(|point| point.txid.as_str());
    if changed > 0 {
        world.fault(report, Fault::Wrong, changed, "restore points of before are others now");
    }
    if !is_in_order || goes_back {
        world.fault(report, Fault::Missing, 1, "the restore points are out of order, or end earlier than before");
    }
}

/// A restore point that was listed may expire before it is restored; then the list must say so.
fn unless_expired(world: &mut World<'_>, report: &Report, index: usize, txid: &str, result: Outcome) -> Outcome {
    match result {
        Err(_) if world.has_expired(index, txid)? => {
            report.event("expired meanwhile");
            Ok(())
        }
        other => other,
    }
}

/// Each commit that happened while the replicator followed undisturbed is a restore point of its own.
fn check_every_commit(world: &mut World<'_>, report: &Report, index: usize, commits: i64, points: usize) {
    let new_points = points.saturating_sub(world.databases[index].points.len()) as i64;
    if commits > new_points {
        let what = format!("{commits} commits became {new_points} restore points");
        world.fault(report, Fault::Missing, (commits - new_points) as usize, &what);
    }
}

/// An image that was taken in the middle: when its state is a restore point, the restored bytes are the image's.
fn compare_sample(
    world: &mut World<'_>,
    report: &Report,
    index: usize,
    image: &Image,
    must_be_there: bool,
    points: &[Point],
) -> Outcome {
    let checksum = image.checksum()?;
    match points.iter().find(|point| point.checksum == checksum) {
        Some(point) => {
            let compared = compare(world, report, index, image, Some(&point.txid)).map(|_| ());
            unless_expired(world, report, index, &point.txid, compared)
        }
        None if must_be_there => {
            world.fault(report, Fault::Missing, 1, &format!("the state {checksum} is no restore point"));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Restores and compares byte for byte, then judges the rows.
fn compare(
    world: &mut World<'_>,
    report: &Report,
    index: usize,
    source: &Image,
    txid: Option<&str>,
) -> Outcome<Option<Judgement>> {
    let copy = world.databases[index].path.with_extension("copy");
    restore(world, index, &copy, txid)?;
    report.count(|counts| counts.compared += 1);
    if let Some(difference) = first_difference(source, &Image::of_file(&copy)?) {
        if txid.is_none() && *source != Image::of_database(&world.databases[index].path)? {
            return Ok(None);
        }
        world.fault(report, Fault::Mismatch, 1, &format!("TXID {}: {difference}", txid.unwrap_or("latest")));
    }
    judged(world, report, &copy, txid.unwrap_or("latest")).map(Some)
}

/// Restores `point`: its checksum must be that of the log, its rows those of the first k transactions, and k must grow with the TXID.
fn judge_point(world: &mut World<'_>, report: &Report, index: usize, point: &Point) -> Outcome {
    let copy = world.databases[index].path.with_extension("copy");
    restore(world, index, &copy, Some(&point.txid))?;
    report.count(|counts| counts.judged += 1);
    let checksum = Image::of_file(&copy)?.checksum()?;
    if checksum != point.checksum {
        let what = format!("TXID {} restores to {checksum}, the log says {}", point.txid, point.checksum);
        world.fault(report, Fault::Mismatch, 1, &what);
    }
    let judgement = judged(world, report, &copy, &point.txid)?;
    let database = &mut world.databases[index];
    let (life, k) = (judgement.life, judgement.last.id);
    database.judged.insert(point.txid.clone(), (life, k));
    let earlier = database.judged.range(..point.txid.clone()).next_back();
    let later = database.judged.range(point.txid.clone()..).nth(1);
    let shrinks = earlier.is_some_and(|(_, (l, before))| *l == life && *before > k)
        || later.is_some_and(|(_, (l, after))| *l == life && *after < k);
    if shrinks && !database.went_back {
        world.fault(report, Fault::Wrong, 1, &format!("TXID {} holds {k} transactions, out of order", point.txid));
    }
    Ok(())
}

fn judged(world: &mut World<'_>, report: &Report, copy: &Path, what: &str) -> Outcome<Judgement> {
    let judgement = judge(copy)?;
    if let Some(first) = judgement.missing.first() {
        world.fault(report, Fault::Missing, judgement.missing.len(), &format!("TXID {what}: {first}"));
    }
    if let Some(first) = judgement.wrong.first() {
        world.fault(report, Fault::Wrong, judgement.wrong.len(), &format!("TXID {what}: {first}"));
    }
    Ok(judgement)
}

fn restore(world: &World<'_>, index: usize, copy: &Path, txid: Option<&str>) -> Outcome {
    world.rhyolite.restore_over(&world.databases[index].store, copy, txid)
}
