//! The application under measurement: a process of its own that writes as fast as it may, and tells how fast that was.
//!
//! `rhyolite-bench app --db PATH` with `--seconds` or `--transactions`; prints one JSON object. With `--times FILE` it also leaves
//! the moment of each commit there (nanoseconds of the shared clock, 8 bytes each, little-endian).

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ffi, params};
use serde_json::json;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::rng::Rng;

use crate::measure::{now_ns, own_cpu_ns, percentile};

/// What the application does.
#[derive(Debug)]
struct Plan {
    db: PathBuf,
    seconds: f64,
    transactions: u64,
    rows: u64,
    body_bytes: u64,
    synchronous: String,
    /// To stay in this mode: others than WAL are not kept in the file.
    journal: Option<String>,
    autocheckpoint: u32,
    pause_us: u64,
    times: Option<PathBuf>,
}

/// Writes until the plan is done.
pub(crate) fn run(mut args: Args) -> Outcome {
    let plan = Plan {
        db: args.option("--db")?.context("--db is needed")?,
        seconds: args.option_or("--seconds", 0.0)?,
        transactions: args.option_or("--transactions", u64::MAX)?,
        rows: args.option_or("--rows", 1)?,
        body_bytes: args.option_or("--body", 100)?,
        journal: args.option("--journal")?,
        synchronous: args.option_or("--synchronous", "NORMAL".to_owned())?,
        autocheckpoint: args.option_or("--autocheckpoint", 1000)?,
        pause_us: args.option_or("--pause-us", 0)?,
        times: args.option("--times")?,
    };
    args.finish()?;
    if plan.seconds == 0.0 && plan.transactions == u64::MAX {
        return fail("--seconds or --transactions is needed");
    }
    write(&plan)
}

fn write(plan: &Plan) -> Outcome {
    let conn = Connection::open(&plan.db).context("open")?;
    conn.busy_timeout(Duration::from_secs(30)).context("busy timeout")?;
    if let Some(mode) = &plan.journal {
        conn.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).context("journal mode")?;
    }
    conn.pragma_update(None, "synchronous", &plan.synchronous).context("synchronous")?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", plan.autocheckpoint, |_| Ok(())).context("checkpoint")?;
    let mut begin = conn.prepare("BEGIN IMMEDIATE").context("prepare")?;
    let mut insert = conn.prepare("INSERT INTO rows(name, number, body) VALUES (?1, ?2, ?3)").context("prepare")?;
    let mut commit = conn.prepare("COMMIT").context("prepare")?;
    let mut rng = Rng::new(now_ns());
    let (mut latencies, mut moments) = (Vec::new(), Vec::new());
    let (began, cpu) = (now_ns(), own_cpu_ns());
    let deadline = began + (plan.seconds * 1e9) as u64;
    while (latencies.len() as u64) < plan.transactions && (plan.seconds == 0.0 || now_ns() < deadline) {
        let start = now_ns();
        begin.execute([]).context("begin")?;
        for _ in 0..plan.rows {
            let (name, body) = (format!("name {}", rng.range(0..100_000)), rng.bytes(plan.body_bytes as usize));
            insert.execute(params![name, rng.range(0..1_000_000) as i64, body]).context("insert")?;
        }
        commit.execute([]).context("commit")?;
        let end = now_ns();
        latencies.push(end - start);
        if plan.times.is_some() {
            moments.push(end);
        }
        if plan.pause_us > 0 {
            std::thread::sleep(Duration::from_micros(plan.pause_us));
        }
    }
    let (seconds, cpu) = ((now_ns() - began) as f64 / 1e9, (own_cpu_ns() - cpu) as f64 / 1e9);
    if let Some(path) = &plan.times {
        let bytes: Vec<u8> = moments.iter().flat_map(|m: &u64| m.to_le_bytes()).collect();
        std::fs::write(path, bytes).context("write the moments")?;
    }
    let mut at = |per_mille| percentile(&mut latencies, per_mille) as f64 / 1000.0;
    let (p50, p99, p999, max) = (at(500), at(990), at(999), at(1000));
    println!(
        "{}",
        json!({
            "commits": latencies.len(), "seconds": seconds, "cpu_seconds": cpu, "per_second": latencies.len() as f64 / seconds,
            "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": max, "wal_pages": wal_pages(&conn),
        })
    );
    Ok(())
}

/// Pages that this connection has written to the WAL.
fn wal_pages(conn: &Connection) -> i32 {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the handle is open; the call writes two ints, to `current` and `highest`.
    unsafe {
        ffi::sqlite3_db_status(conn.handle(), ffi::SQLITE_DBSTATUS_CACHE_WRITE, &raw mut current, &raw mut highest, 0)
    };
    current
}
