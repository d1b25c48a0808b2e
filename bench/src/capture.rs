//! What capture and upload cost in processor time, for each GB of WAL, beside a loop that does the least that must be done.
//!
//! Checkpoints are counted apart: the application that is replicated does as many fewer of its own.
//!
//! The application writes at full speed and says how many pages it put into the WAL; the replicator's processor time over the same
//! span, until everything is durable, is divided by those bytes. The loop reads a WAL of the same application in windows that
//! stay in the cache, verifies SQLite's checksum, takes the CRC-64 and packs each page with LZ4 ([`crate::tight`]).

use rusqlite::Connection;
use xtask::args::Args;
use xtask::error::{Context, Outcome};

use crate::lab::{LIMIT, Lab, figure, make_database};
use crate::measure::{cpu_seconds, spread, spread_text};
use crate::table::Row;
use crate::tight;

const RATIO_MAX: f64 = 2.0;
const FRAME_BYTES: f64 = 4096.0 + 24.0;

/// Measures transactions of a hundred rows and of one row.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let rounds: usize = args.option_or("--rounds", 5)?;
    let mut rows = Vec::new();
    for (batch, transactions) in [("100", "30000"), ("1", "100000")] {
        let load = ["--rows", batch, "--transactions", transactions];
        let (mut ours, mut checkpoints, mut floor, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let least = tight_loop(lab, batch)?;
            let (spent, checkpointing) = replicator(lab, &load)?;
            println!("{batch}-row: {spent:.2} CPU-s/GB and {checkpointing:.2} for checkpoints, loop {least:.2}");
            ours.push(spent);
            checkpoints.push(checkpointing);
            floor.push(least);
            ratios.push(spent / least);
        }
        rows.push(Row {
            what: format!("CPU for capture and upload / tight loop, {batch}-row transactions"),
            figure: spread_text(&ratios, 2),
            goal: "≤ 2",
            met: Some(spread(&ratios).0 <= RATIO_MAX),
            detail: format!(
                "{:.2} against {:.2} CPU-s per GB of WAL, and {:.2} for checkpoints; {rounds} rounds, application at full speed",
                spread(&ours).0,
                spread(&floor).0,
                spread(&checkpoints).0
            ),
        });
    }
    Ok(rows)
}

/// CPU seconds of the replicator for each GB of WAL: without checkpoints, and of checkpoints.
fn replicator(lab: &Lab, load: &[&str]) -> Outcome<(f64, f64)> {
    let folder = lab.folder("capture")?;
    make_database(&folder)?;
    let mut replicator = lab.replicate(&folder, &[])?;
    let before = cpu_seconds(replicator.id())?;
    let figures = lab.app(&folder, load)?;
    let bytes = figure(&figures, "wal_pages")? * FRAME_BYTES;
    // The status of a process that has ended is gone, so its time is read when it is idle again, before it is ended.
    let commits = figure(&figures, "commits")?;
    let deadline = std::time::Instant::now() + LIMIT;
    while (lab.points(&folder)? as f64) < commits && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let spent = cpu_seconds(replicator.id())? - before;
    replicator.terminate(LIMIT)?;
    let checkpoints = lab.figure_of_status(&folder, "/databases/0/status/checkpoints/cpu_us_total")? / 1e6;
    Ok(((spent - checkpoints) / (bytes / 1e9), checkpoints / (bytes / 1e9)))
}

/// CPU seconds of the loop for each GB of WAL.
fn tight_loop(lab: &Lab, batch: &str) -> Outcome<f64> {
    let folder = lab.folder("tight")?;
    make_database(&folder)?;
    // A connection that stays keeps the WAL from being deleted when the application ends.
    let keeper = Connection::open(folder.join("app.db")).context("open")?;
    let _: i64 = keeper.query_row("SELECT count(*) FROM rows", [], |row| row.get(0)).context("read")?;
    let transactions = if batch == "1" { "60000" } else { "6000" };
    lab.app(&folder, &["--rows", batch, "--transactions", transactions, "--autocheckpoint", "0"])?;
    tight::capture(&folder.join("app.db-wal"))
}
