//! What a start costs with a large database: with nothing changed, and with its state folder lost and a few rows changed meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use serde_json::Value;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;
use xtask::rng::Rng;

use crate::lab::{Lab, make_database};
use crate::restore;
use crate::table::Row;

/// Longest wait for a snapshot or a comparison.
const LIMIT: Duration = Duration::from_secs(1800);
/// Bytes besides pages that an upload of changes may take: headers of segments, the manifest, the lease.
const REST_BYTES: f64 = 65536.0;

/// A frame of the WAL with a page of 4096 bytes. Its header is smaller than that.
const FRAME_BYTES: u64 = 4096 + 24;

/// What one start did.
struct Start {
    seconds: f64,
    written: f64,
    /// What it sent to the log and below `ltx`: the manifest and the lease are written anew now and then.
    stored: f64,
}

/// Measures with a database of `--gib`, of which `--changed` rows change while nothing runs.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let gib: u64 = args.option_or("--gib", 10)?;
    let changed: u64 = args.option_or("--changed", 1000)?;
    let folder = lab.folder("restart")?;
    make_database(&folder)?;
    println!("filling {gib} GiB ...");
    restore::fill(&folder.join("app.db"), gib << 10)?;
    println!("the first snapshot ...");
    let mut process = lab.replicate_within(&folder, &[], LIMIT)?;
    wait_durable(lab, &folder, &mut process)?;
    process.terminate(LIMIT)?;
    println!("starting with nothing changed ...");
    let same = start(lab, &folder)?;
    std::fs::remove_dir_all(folder.join(".app.db-rhyolite")).context("lose the state folder")?;
    let pages = change(&folder.join("app.db"), changed)?;
    println!("starting without the state folder, {pages} pages changed ...");
    let lost = start(lab, &folder)?;
    verify(lab, &folder)?;
    let what = format!("start with a database of {gib} GiB");
    let bytes = |start: &Start| format!("{:.0} bytes in {:.1} s", start.stored, start.seconds);
    let most = pages as f64 * 4096.0 + REST_BYTES;
    Ok(vec![
        Row {
            what: format!("{what}, nothing changed: uploaded"),
            figure: bytes(&same),
            goal: "0",
            met: Some(same.stored == 0.0),
            detail: format!("log and snapshots; {:.0} bytes with the lease and its renewals", same.written),
        },
        Row {
            what: format!("{what}, state folder lost, {changed} rows changed: uploaded"),
            figure: bytes(&lost),
            goal: "only pages that differ",
            met: Some(lost.stored > 0.0 && lost.stored <= most),
            detail: format!("{pages} pages were written ({} bytes); then restored and proved", pages * 4096),
        },
    ])
}

/// Starts, waits until everything is captured and durable, and ends.
fn start(lab: &Lab, folder: &Path) -> Outcome<Start> {
    let before = stored_bytes(&folder.join("backup"))?;
    let began = Instant::now();
    let mut process = lab.replicate_within(folder, &[], LIMIT)?;
    wait_durable(lab, folder, &mut process)?;
    let seconds = began.elapsed().as_secs_f64();
    let written = lab.figure_of_status(folder, "/databases/0/status/store_requests/bytes_written")?;
    process.terminate(LIMIT)?;
    Ok(Start { seconds, written, stored: stored_bytes(&folder.join("backup"))? - before })
}

/// Waits until the replicator says that nothing is left to do.
fn wait_durable(lab: &Lab, folder: &Path, process: &mut Process) -> Outcome {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = Command::new(&lab.binary)
            .args(["status", "--json"])
            .arg(folder.join("app.db"))
            .output()
            .context("status")?;
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let status = &status["databases"][0]["status"];
        let is_running = status["process"]["id"].as_u64().is_none_or(|id| id == u64::from(process.id()));
        let is_durable =
            status["pending_since"].is_null() && status["local"].is_object() && status["local"] == status["durable"];
        if is_running && is_durable && status["state"]["name"] == "replicating" {
            return Ok(());
        }
        if process.ended()?.is_some() || Instant::now() > deadline {
            return fail(format!("not everything becomes durable: {status}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Changes rows all over the table; gives the number of pages that it wrote.
fn change(path: &Path, rows: u64) -> Outcome<u64> {
    let conn = Connection::open(path).context("open")?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).context("checkpoint")?;
    let most: i64 = conn.query_row("SELECT max(id) FROM rows", [], |row| row.get(0)).context("count rows")?;
    let mut rng = Rng::new(29);
    let transaction = conn.unchecked_transaction().context("begin")?;
    for _ in 0..rows {
        let id = rng.range(1..most as u64);
        conn.execute("UPDATE rows SET number = number + 1 WHERE id = ?1", params![id as i64]).context("update")?;
    }
    transaction.commit().context("commit")?;
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let frames = std::fs::metadata(wal).context("size of the WAL")?.len() / FRAME_BYTES;
    // The close writes them into the database, and removes the WAL.
    conn.close().map_err(|(_, error)| error).context("close")?;
    Ok(frames)
}

/// A real restore, which proves the checksum.
fn verify(lab: &Lab, folder: &Path) -> Outcome {
    let mut restore = Command::new(&lab.binary);
    restore.arg("restore").arg(folder.join("backup")).arg("-o").arg(folder.join("copy.db"));
    crate::measure::run_to_end(&restore)?;
    let sum = |name: &str| -> Outcome<(i64, i64)> {
        let conn = Connection::open(folder.join(name)).context("open")?;
        conn.query_row("SELECT count(*), sum(number % 1000003) FROM rows", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .context("add up")
    };
    if sum("app.db")? != sum("copy.db")? {
        return fail("the copy is not the source");
    }
    Ok(())
}

/// Bytes of everything in the log and below `ltx`.
fn stored_bytes(backup: &Path) -> Outcome<f64> {
    let mut bytes = 0;
    let mut folders = vec![backup.join("log"), backup.join("ltx")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.context("list the backup")?;
            if entry.file_type().context("list the backup")?.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += entry.metadata().context("size of a file")?.len();
            }
        }
    }
    Ok(bytes as f64)
}
