//! What bundles, merges and snapshots cost: processor time, memory, and bytes written for each byte of change.
//!
//! A replicator that leaves its log alone makes the history of an hour; then `rhyolite compact` does one kind of work after the other, each
//! as a process of its own.

use std::path::Path;
use std::process::Command;

use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};

use crate::lab::{LIMIT, Lab, make_database};
use crate::measure::{Cost, run_to_end};
use crate::restore;
use crate::table::Row;

/// Options with which a replicator only uploads.
const UNTOUCHED: [&str; 8] =
    ["--sync-interval", "0", "--bundle-interval", "1d", "--merge-interval", "1d", "--snapshot-interval", "1d"];

/// Options with which everything is due; the last two are for snapshots.
const SHORT: [&str; 8] =
    ["--bundle-interval", "1s", "--keep-every-commit", "1s", "--merge-interval", "1s", "--snapshot-interval", "1s"];

/// Bytes in the log and in each level below `ltx`.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    log: u64,
    levels: [u64; 10],
}

/// Measures with a database of `--mib` at its snapshot and `--commits` of ten rows after it.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let mib: u64 = args.option_or("--base", 512)?;
    let commits: u64 = args.option_or("--commits", 20_000)?;
    let folder = lab.folder("history")?;
    make_database(&folder)?;
    println!("filling {mib} MiB ...");
    restore::fill(&folder.join("app.db"), mib)?;
    let mut replicator = lab.replicate(&folder, &UNTOUCHED)?;
    println!("writing {commits} commits ...");
    lab.app(&folder, &["--transactions", &commits.to_string(), "--rows", "10", "--pause-us", "200"])?;
    replicator.terminate(LIMIT)?;
    let backup = folder.join("backup");
    let start = stored(&backup)?;
    let mut idle = Command::new(&lab.binary);
    idle.arg("version");
    let idle_kib = run_to_end(&idle)?.memory_kib_max;

    let bundled = compact(lab, &backup, &["--bundle-interval", "1s"])?;
    let after_bundles = stored(&backup)?;
    // From here on not every commit of more than a second ago is kept.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let merged = compact(lab, &backup, &SHORT[..6])?;
    let after_merges = stored(&backup)?;
    let snapshot = compact(lab, &backup, &SHORT)?;
    let end = stored(&backup)?;

    let new = |before: &Stored, after: &Stored, levels: std::ops::Range<usize>| -> u64 {
        levels.map(|level| after.levels[level].saturating_sub(before.levels[level])).sum()
    };
    let done = Done {
        log: start.log,
        bundles: new(&start, &after_bundles, 1..9),
        merges: new(&after_bundles, &after_merges, 2..9),
        snapshots: new(&after_merges, &end, 9..10),
    };
    if [done.bundles, done.merges, done.snapshots].contains(&0) {
        return fail(format!("something was not done: {start:?} {after_bundles:?} {after_merges:?} {end:?}"));
    }
    let pages = std::fs::metadata(folder.join("app.db")).context("size of the database")?.len();
    let row = |what: &str, cost: &Cost, input: u64, output: u64| cost_row(what, cost, idle_kib, input, output);
    let mut rows = vec![
        row(&format!("bundle of {commits} commits"), &bundled, done.log, done.bundles),
        row("merge of the bundles by page", &merged, done.bundles, done.merges),
        row(&format!("snapshot of {:.0} MiB, of database bytes", mib_of(pages)), &snapshot, pages, done.snapshots),
    ];
    rows.push(done.amplification());
    Ok(rows)
}

/// Bytes that were written.
struct Done {
    log: u64,
    bundles: u64,
    merges: u64,
    snapshots: u64,
}

impl Done {
    fn amplification(&self) -> Row {
        let written = self.log + self.bundles + self.merges;
        let (changes, snapshots) = (self.log as f64 / 1e6, self.snapshots as f64 / 1e6);
        Row {
            what: "bytes written for each byte of change, log, bundles and merges".to_owned(),
            figure: format!("{:.2}", written as f64 / self.log as f64),
            goal: "",
            met: None,
            detail: format!("{changes:.1} MB of compressed changes; a snapshot adds {snapshots:.1} MB a day"),
        }
    }
}

fn cost_row(what: &str, cost: &Cost, idle_kib: u64, input: u64, output: u64) -> Row {
    let (read, written) = (input as f64 / 1e6, output as f64 / 1e6);
    let rate = read / cost.cpu.as_secs_f64();
    let memory = cost.memory_kib_max.saturating_sub(idle_kib) as f64 / 1024.0;
    Row {
        what: what.to_owned(),
        figure: format!("{rate:.0} MB per CPU second, {memory:.1} MiB"),
        goal: "",
        met: None,
        detail: format!("{read:.1} MB read, {written:.1} MB written; memory above that of `rhyolite version`"),
    }
}

fn mib_of(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn compact(lab: &Lab, backup: &Path, options: &[&str]) -> Outcome<Cost> {
    let mut command = Command::new(&lab.binary);
    command.arg("compact").arg(backup).args(options);
    run_to_end(&command)
}

fn stored(backup: &Path) -> Outcome<Stored> {
    let mut found = Stored { log: bytes_in(&backup.join("log"))?, ..Stored::default() };
    for (level, bytes) in found.levels.iter_mut().enumerate() {
        *bytes = bytes_in(&backup.join(format!("ltx/{level}")))?;
    }
    Ok(found)
}

fn bytes_in(folder: &Path) -> Outcome<u64> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(0) };
    let sizes = entries.map(|entry| entry.and_then(|entry| entry.metadata()).map(|meta| meta.len()));
    sizes.sum::<Result<u64, _>>().context("look at the backup")
}
