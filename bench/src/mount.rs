//! What the mount costs the application: its rate on the mount, with capture and uploads to a folder, against the plain disk.
//!
//! Each pair is A-B-B-A (disk, mount, mount, disk), each run on a database of its own. The ratio of a pair is mount over disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;
use xtask::rng::Rng;

use crate::lab::{LIMIT, Lab, figure, make_database};
use crate::measure::{now_ns, spread, spread_text};
use crate::table::Row;

/// Journal mode, synchronous, and the least ratio that is wanted.
const LOADS: &[(&str, &str, &str, f64)] = &[
    ("wal", "NORMAL", "≥ 0.75", 0.75),
    ("wal", "FULL", "≥ 0.75", 0.75),
    ("delete", "FULL", "≥ 0.75", 0.75),
    ("truncate", "FULL", "≥ 0.75", 0.75),
    ("persist", "FULL", "≥ 0.5", 0.5),
];
const P99_RATIO_MAX: f64 = 2.0;
const READ_RATIO_MIN: f64 = 0.9;
const BULK_RATIO_MIN: f64 = 0.6;
/// Rows of the one large transaction, and of the table that is read.
const BULK_ROWS: &str = "200000";
const READS: u64 = 100_000;
/// With a large database commits are as fast as with a small one, within what the disk varies.
const SIZE_RATIO_MIN: f64 = 0.9;
/// Longest wait for the snapshot of a large database.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(1800);

/// Measures commits in each journal mode, one large transaction, point reads and a full scan.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let pairs: usize = args.option_or("--mount-pairs", 5)?;
    let seconds: String = args.option_or("--mount-seconds", "2".to_owned())?;
    let mut rows = Vec::new();
    for (mode, synchronous, goal, least) in LOADS {
        let load = ["--synchronous", synchronous, "--rows", "1", "--seconds", &seconds];
        let (rates, slow, plain) = measure(lab, pairs, mode, &load, "per_second", true)?;
        let what = format!("{} {synchronous}, 1-row commits", mode.to_uppercase());
        let detail = format!("{pairs} pairs; disk: {:.0} commits/s", spread(&plain).0);
        rows.push(row(format!("mount / disk, {what}"), &rates, goal, spread(&rates).0 >= *least, detail));
        let met = spread(&slow).0 <= P99_RATIO_MAX;
        rows.push(row(format!("mount / disk, p99 of {what}"), &slow, "≤ 2", met, format!("{pairs} pairs")));
    }
    for mode in ["wal", "delete"] {
        let load = ["--synchronous", "FULL", "--rows", BULK_ROWS, "--transactions", "1"];
        let (rates, _, plain) = measure(lab, pairs.min(3), mode, &load, "per_second", false)?;
        let what = format!("mount / disk, one transaction of {BULK_ROWS} rows, {}", mode.to_uppercase());
        let detail = format!("{} pairs; disk: {:.2} s", rates.len(), 1.0 / spread(&plain).0);
        rows.push(row(what, &rates, "≥ 0.6", spread(&rates).0 >= BULK_RATIO_MIN, detail));
    }
    for mode in ["wal", "delete"] {
        let (points, scans) = reads(lab, pairs, mode)?;
        for (what, ratios) in [("point reads", points), ("full scan", scans)] {
            let what = format!("mount / disk, {what}, {}", mode.to_uppercase());
            let met = spread(&ratios).0 >= READ_RATIO_MIN;
            rows.push(row(what, &ratios, "≥ 0.9", met, format!("{pairs} pairs")));
        }
    }
    rows.extend(by_size(lab, args.option_or("--mount-gib", 10)?, pairs, &seconds)?);
    Ok(rows)
}

/// Rates with a large database against those with a small one, both on a mount.
fn by_size(lab: &Lab, gib: u64, pairs: usize, seconds: &str) -> Outcome<Vec<Row>> {
    let filled = |name: &str, mib: u64| -> Outcome<Place> {
        let folder = lab.folder(name)?;
        let data = folder.join("data");
        std::fs::create_dir_all(&data).context("make a folder")?;
        make_database(&data)?;
        println!("filling {mib} MiB ...");
        crate::restore::fill(&data.join("app.db"), mib)?;
        // Out of the WAL while nobody captures it.
        Connection::open(data.join("app.db"))
            .and_then(|conn| conn.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(())))
            .context("journal mode")?;
        Place::mount(lab, folder)
    };
    let (small, large) = (filled("mount-small", 10)?, filled("mount-large", gib << 10)?);
    let mut rows = Vec::new();
    for mode in ["delete", "wal"] {
        small.wait_captured(SNAPSHOT_LIMIT)?;
        large.wait_captured(SNAPSHOT_LIMIT)?;
        let load = ["--synchronous", "FULL", "--rows", "1", "--seconds", seconds, "--journal", mode];
        let mut ratios = Vec::new();
        for _ in 0..pairs {
            let runs = [&small, &large, &large, &small].map(|place| lab.app(&place.work, &load));
            let [a1, b1, b2, a2] = runs;
            let rate = |run: Outcome<Value>| run.and_then(|run| figure(&run, "per_second"));
            let (a1, b1, b2, a2) = (rate(a1)?, rate(b1)?, rate(b2)?, rate(a2)?);
            ratios.push((b1 + b2) / (a1 + a2));
            println!("{mode}: large / small {:.3}", ratios[ratios.len() - 1]);
        }
        let what = format!("mount, {gib} GiB / 10 MiB, {} FULL, 1-row commits", mode.to_uppercase());
        rows.push(row(what, &ratios, "1", spread(&ratios).0 >= SIZE_RATIO_MIN, format!("{pairs} pairs")));
    }
    large.end()?;
    small.end()?;
    Ok(rows)
}

fn row(what: String, ratios: &[f64], goal: &'static str, met: bool, detail: String) -> Row {
    Row { what, figure: spread_text(ratios, 2), goal, met: Some(met), detail }
}

/// Ratios of the rates and of the 99th percentiles, and the rates on the disk.
fn measure(
    lab: &Lab,
    pairs: usize,
    mode: &str,
    load: &[&str],
    rate: &str,
    checks: bool,
) -> Outcome<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let (mut rates, mut slow, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let runs = [false, true, true, false].map(|mounted| one(lab, mounted, mode, load, checks));
        let [a1, b1, b2, a2] = runs;
        let (a1, b1, b2, a2) = (a1?, b1?, b2?, a2?);
        let ratio = |name: &str| -> Outcome<f64> {
            Ok((figure(&b1, name)? + figure(&b2, name)?) / (figure(&a1, name)? + figure(&a2, name)?))
        };
        rates.push(ratio(rate)?);
        slow.push(ratio("p99_us")?);
        plain.push(figure(&a1, rate)?);
        println!("{mode} {}: rate {:.3}", load.join(" "), rates[rates.len() - 1]);
    }
    Ok((rates, slow, plain))
}

/// A folder that is mounted until this is dropped, or just a folder.
struct Place {
    folder: PathBuf,
    /// Where the application works.
    work: PathBuf,
    daemon: Option<Process>,
}

impl Place {
    fn new(lab: &Lab, mounted: bool) -> Outcome<Self> {
        let folder = lab.folder("mount")?;
        if !mounted {
            return Ok(Self { work: folder.clone(), folder, daemon: None });
        }
        Self::mount(lab, folder)
    }

    /// Mounts `folder/data`.
    fn mount(lab: &Lab, folder: PathBuf) -> Outcome<Self> {
        let (data, work) = (folder.join("data"), folder.join("db"));
        std::fs::create_dir_all(&data).context("make a folder")?;
        std::fs::create_dir_all(&work).context("make a folder")?;
        let mut command = Command::new(&lab.binary);
        command.arg("mount").arg(&data).arg("--at").arg(&work).arg("--store").arg(folder.join("backup"));
        let mut daemon = Process::start("rhyolite mount", command, &folder.join("mount.log"))?;
        let deadline = Instant::now() + LIMIT;
        let device = |path: &Path| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
        while device(&work).context("look at the mount")? == device(&data).context("look at the folder")? {
            if daemon.ended()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("mount.log")).unwrap_or_default();
                return fail(format!("the mount does not begin: {}", log.trim()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { folder, work, daemon: Some(daemon) })
    }

    /// Makes the database, and waits until it is followed.
    fn make(&self, mode: &str) -> Outcome<Connection> {
        let conn = Connection::open(self.work.join("app.db")).context("make the database")?;
        conn.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).context("journal mode")?;
        conn.execute_batch("CREATE TABLE rows(id INTEGER PRIMARY KEY, name TEXT, number INTEGER, body BLOB)")
            .context("make the table")?;
        if self.daemon.is_some() {
            self.wait_captured(LIMIT)?;
        }
        Ok(conn)
    }

    /// Waits until the first snapshot is in the store.
    fn wait_captured(&self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        while !self.folder.join("backup/app.db/manifest.json").exists() {
            if Instant::now() > deadline {
                return fail("the database on the mount is not replicated");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn end(mut self) -> Outcome<PathBuf> {
        if let Some(daemon) = &mut self.daemon {
            daemon.terminate(LIMIT)?;
        }
        Ok(self.folder)
    }
}

/// One run of the application.
fn one(lab: &Lab, mounted: bool, mode: &str, load: &[&str], checks: bool) -> Outcome<Value> {
    let place = Place::new(lab, mounted)?;
    let conn = place.make(mode)?;
    let figures = lab.app(&place.work, &[load, &["--journal", mode]].concat())?;
    drop(conn);
    let folder = place.end()?;
    if mounted && checks {
        // A rate counts only when each commit has become a restore point.
        let (points, commits) = (points(lab, &folder)? as f64, figure(&figures, "commits")?);
        if points < commits {
            println!("note: {mode}: {commits} commits became {points} restore points");
        }
    }
    Ok(figures)
}

fn points(lab: &Lab, folder: &Path) -> Outcome<usize> {
    let store = folder.join("backup/app.db");
    let output = Command::new(&lab.binary).args(["log", "--json"]).arg(store).output().context("rhyolite log")?;
    Ok(String::from_utf8_lossy(&output.stdout).matches("\"txid\"").count())
}

/// Ratios of point reads and of full scans.
fn reads(lab: &Lab, pairs: usize, mode: &str) -> Outcome<(Vec<f64>, Vec<f64>)> {
    let (mut points, mut scans) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let [a1, b1, b2, a2] = [false, true, true, false].map(|mounted| read(lab, mounted, mode));
        let (a1, b1, b2, a2) = (a1?, b1?, b2?, a2?);
        // Times: the disk's over the mount's is the ratio of the rates.
        points.push((a1.0 + a2.0) / (b1.0 + b2.0));
        scans.push((a1.1 + a2.1) / (b1.1 + b2.1));
        println!("{mode}: point reads {:.3}, scan {:.3}", points[points.len() - 1], scans[scans.len() - 1]);
    }
    Ok((points, scans))
}

/// Seconds for point reads and for a full scan, with a cache of SQLite's that is too small to hold anything.
fn read(lab: &Lab, mounted: bool, mode: &str) -> Outcome<(f64, f64)> {
    let place = Place::new(lab, mounted)?;
    let conn = place.make(mode)?;
    lab.app(&place.work, &["--synchronous", "OFF", "--rows", BULK_ROWS, "--transactions", "1", "--journal", mode])?;
    conn.pragma_update(None, "cache_size", -400).context("cache size")?;
    let count: i64 = conn.query_row("SELECT count(body) FROM rows", [], |row| row.get(0)).context("warm up")?;
    let mut statement = conn.prepare("SELECT body FROM rows WHERE id = ?1").context("prepare")?;
    let (mut rng, began) = (Rng::new(1), now_ns());
    for _ in 0..READS {
        let id = 1 + rng.range(0..count.unsigned_abs()) as i64;
        let _: Vec<u8> = statement.query_row([id], |row| row.get(0)).context("read")?;
    }
    let points = (now_ns() - began) as f64 / 1e9;
    let began = now_ns();
    let sum: i64 = conn.query_row("SELECT sum(length(body)) FROM rows", [], |row| row.get(0)).context("scan")?;
    let scan = (now_ns() - began) as f64 / 1e9;
    if sum <= 0 {
        return fail("the table is empty");
    }
    drop(statement);
    drop(conn);
    place.end()?;
    Ok((points, scan))
}
