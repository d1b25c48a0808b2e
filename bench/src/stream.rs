//! The live stream on one machine: from a commit to the moment in which a reader of the replica sees it, and how fast a replica that was
//! away takes what it has missed.
//!
//! The reader of the replica is a connection of its own that asks over and over for the newest row, as SQLite would for anybody. The application notes the
//! moment of each commit on the same clock.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;
use xtask::rng::Rng;

use crate::lab::{LIMIT, Lab, make_database};
use crate::measure::{now_ns, percentile};
use crate::table::Row;

const P50_MS_MAX: f64 = 1.0;
const P99_MS_MAX: f64 = 10.0;
const RATE_MIN: f64 = 30_000.0;
/// Rows of the table of which each transaction changes three, each on a page of its own.
const ROWS: u64 = 30_000;
/// Between two looks of the reader.
const LOOK: Duration = Duration::from_micros(50);

/// Measures two loads, and a backlog.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let commits: u64 = args.option_or("--stream-commits", 1000)?;
    let backlog: u64 = args.option_or("--stream-backlog", 100_000)?;
    let mut rows = Vec::new();
    for (load, pause_us) in [("one commit each 10 ms", "10000"), ("one commit each ms", "1000")] {
        let mut ages = ages_ns(lab, commits, pause_us)?;
        let p50 = percentile(&mut ages, 500) as f64 / 1e6;
        let p99 = percentile(&mut ages, 990) as f64 / 1e6;
        let detail = format!("{load}, loopback, same disk, {} commits", ages.len());
        let row = |name: &str, ms: f64, goal, max| Row {
            what: format!("commit to visible on a replica, {name}, {load}"),
            figure: format!("{ms:.2} ms"),
            goal,
            met: Some(ms <= max),
            detail: detail.clone(),
        };
        rows.push(row("p50", p50, "≤ 1 ms", P50_MS_MAX));
        rows.push(row("p99", p99, "≤ 10 ms", P99_MS_MAX));
    }
    let (rate, seconds) = backlog_rate(lab, backlog)?;
    rows.push(Row {
        what: "apply rate from a backlog, 3 pages per transaction".to_owned(),
        figure: format!("{rate:.0} transactions/s"),
        goal: "≥ 30,000/s",
        met: Some(rate >= RATE_MIN),
        detail: format!("{backlog} transactions in {seconds:.2} s, the start of the follower included"),
    });
    Ok(rows)
}

/// An address that nobody listens at.
fn free_address() -> Outcome<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a port")?;
    Ok(listener.local_addr().context("find a port")?.to_string())
}

/// Follows what listens at `address` into `folder/replica.db`.
fn follow(lab: &Lab, folder: &Path, address: &str) -> Outcome<Process> {
    let mut command = Command::new(&lab.binary);
    command.args(["follow", &format!("http://{address}"), "app.db", "--into"]).arg(folder.join("replica.db"));
    Process::start("rhyolite follow", command, &folder.join("follow.log"))
}

fn replica(folder: &Path) -> PathBuf {
    folder.join("replica.db")
}

/// The TXID that a replica is at; 0 before there is one.
fn txid(folder: &Path) -> u64 {
    let pos = std::fs::read_to_string(folder.join("replica.db-pos")).unwrap_or_default();
    pos.split('/').next().and_then(|txid| u64::from_str_radix(txid, 16).ok()).unwrap_or(0)
}

fn wait_for_txid(folder: &Path, wanted: u64) -> Outcome {
    let deadline = Instant::now() + LIMIT;
    while txid(folder) < wanted {
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(folder.join("follow.log")).unwrap_or_default();
            return fail(format!("the replica does not get to {wanted}: {}", log.trim()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Nanoseconds from each commit to the moment in which it is seen.
fn ages_ns(lab: &Lab, commits: u64, pause_us: &str) -> Outcome<Vec<u64>> {
    let folder = lab.folder("stream")?;
    make_database(&folder)?;
    let address = free_address()?;
    let mut node = lab.replicate(&folder, &["--cluster-listen", &address])?;
    let mut follower = follow(lab, &folder, &address)?;
    // The first row warms everything up.
    lab.app(&folder, &["--transactions", "1"])?;
    wait_for_txid(&folder, 2)?;
    let times = folder.join("times");
    let done = AtomicBool::new(false);
    let (replica, shown) = (replica(&folder), times.display().to_string());
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| watch(&replica, commits + 1, &done));
        let options = ["--transactions", &commits.to_string(), "--pause-us", pause_us, "--times", &shown];
        let figures = lab.app(&folder, &options);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        let seen = reader.join().ok().context("the reader panicked")?;
        figures.and(seen)
    })?;
    follower.terminate(LIMIT)?;
    node.terminate(LIMIT)?;
    let bytes = std::fs::read(&times).context("read the moments")?;
    let moments = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut ages = Vec::new();
    for (row, moment) in (2..).zip(moments) {
        let mut held = seen.iter().filter(|(_, newest)| *newest >= row);
        let Some((at, _)) = held.next() else { return fail(format!("row {row} was never seen")) };
        ages.push(at.saturating_sub(moment));
    }
    Ok(ages)
}

/// Until row `last` is there, or `done`: when which row was the newest.
fn watch(replica: &Path, last: u64, done: &AtomicBool) -> Outcome<Vec<(u64, u64)>> {
    let conn = Connection::open_with_flags(replica, OpenFlags::SQLITE_OPEN_READ_ONLY).context("open the replica")?;
    conn.busy_timeout(Duration::ZERO).context("open the replica")?;
    let mut statement = conn.prepare("SELECT max(id) FROM rows").context("read the replica")?;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    while !done.load(Ordering::Relaxed) {
        match statement.query_row([], |row| row.get::<_, Option<i64>>(0)) {
            Ok(newest) => {
                let newest = newest.unwrap_or(0).cast_unsigned();
                if seen.last().is_none_or(|(_, before)| *before != newest) {
                    seen.push((now_ns(), newest));
                }
                if newest >= last {
                    break;
                }
            }
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {}
            Err(error) => return fail(format!("read the replica: {error}")),
        }
        std::thread::sleep(LOOK);
    }
    Ok(seen)
}

/// Transactions per second that a follower takes that was away, and how long it took.
fn backlog_rate(lab: &Lab, transactions: u64) -> Outcome<(f64, f64)> {
    let folder = lab.folder("stream-backlog")?;
    make_database(&folder)?;
    let mut conn = Connection::open(folder.join("app.db")).context("open the database")?;
    conn.pragma_update(None, "synchronous", "off").context("synchronous")?;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO rows(id, body) SELECT i, randomblob(1200) FROM n";
    conn.execute(fill, [ROWS.cast_signed()]).context("fill the table")?;
    let address = free_address()?;
    // Nothing is bundled away meanwhile, and nothing folded: the application writes faster than the store takes it.
    let options = ["--bundle-interval", "1h", "--merge-interval", "1h", "--max-log-size", "4GiB"];
    let mut node = lab.replicate(&folder, &[&["--cluster-listen", &address][..], &options].concat())?;
    let mut follower = follow(lab, &folder, &address)?;
    wait_for_txid(&folder, 1)?;
    follower.terminate(LIMIT)?;
    let before = txid(&folder);
    let mut rng = Rng::new(1);
    let third = ROWS / 3;
    for _ in 0..transactions {
        let transaction = conn.transaction().context("begin")?;
        for part in 0..3 {
            let id = 1 + part * third + rng.range(0..third);
            transaction
                .prepare_cached("UPDATE rows SET number = ifnull(number, 0) + 1 WHERE id = ?1")
                .and_then(|mut statement| statement.execute([id.cast_signed()]))
                .context("update a row")?;
        }
        transaction.commit().context("commit")?;
    }
    let deadline = Instant::now() + LIMIT;
    let status = || Command::new(&lab.binary).args(["status", "--json"]).arg(folder.join("app.db")).output();
    let captured = || -> Outcome<u64> {
        let json: serde_json::Value = serde_json::from_slice(&status().context("status")?.stdout).context("status")?;
        let txid = json["databases"][0]["status"]["local"]["txid"].as_str().unwrap_or("0").to_owned();
        u64::from_str_radix(&txid, 16).context("status")
    };
    while captured()? < before + transactions {
        if Instant::now() > deadline {
            return fail(format!("{} of {transactions} transactions were captured one by one", captured()? - before));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let began = Instant::now();
    let mut follower = follow(lab, &folder, &address)?;
    wait_for_txid(&folder, before + transactions)?;
    let seconds = began.elapsed().as_secs_f64();
    follower.terminate(LIMIT)?;
    node.terminate(LIMIT)?;
    Ok((transactions as f64 / seconds, seconds))
}
