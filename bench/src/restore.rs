//! How fast a large database comes back, beside a loop that only reads, unpacks and writes the same bytes.
//!
//! The backup holds a snapshot of about 1 GiB and ten thousand small transactions after it. `rhyolite restore` plans, fetches,
//! verifies every checksum and syncs; the loop unpacks the snapshot with as many threads and syncs too. Both read from the page
//! cache; they alternate, and the database that comes back is compared with the source's size.

use std::path::{Path, PathBuf};
use std::process::Command;

use rhyolite_format::PageSize;
use rusqlite::{Connection, params};
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::rng::Rng;

use crate::lab::{LIMIT, Lab, make_database};
use crate::measure::{run_to_end, spread, spread_text};
use crate::table::Row;
use crate::tight;

const RATE_RATIO_MIN: f64 = 0.8;
const MEMORY_MIB_MAX: f64 = 64.0;

/// Measures alternating restores and loops.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let mib: u64 = args.option_or("--mib", 1024)?;
    let transactions: u64 = args.option_or("--small", 10_000)?;
    let rounds: usize = args.option_or("--restores", 5)?;
    let folder = lab.folder("restore")?;
    make_database(&folder)?;
    println!("filling {mib} MiB ...");
    fill(&folder.join("app.db"), mib)?;
    let mut replicator = lab.replicate(&folder, &[])?;
    println!("writing {transactions} small transactions ...");
    lab.app(&folder, &["--transactions", &transactions.to_string(), "--pause-us", "100"])?;
    replicator.terminate(LIMIT)?;
    let snapshot = largest_file(&folder.join("backup"))?;
    let bytes = std::fs::metadata(folder.join("app.db")).context("size of the database")?.len() as f64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut idle = Command::new(&lab.binary);
    idle.arg("version");
    let idle_kib = run_to_end(&idle)?.memory_kib_max;
    let (mut ratios, mut rates, mut memory, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let page_size = PageSize::new(4096).context("a page size")?;
        let floor = tight::restore(&snapshot, &folder.join("loop.db"), page_size, threads)?;
        let cost = restore(lab, &folder)?;
        let (floor, wall) = (floor.as_secs_f64(), cost.wall.as_secs_f64());
        println!("restore {wall:.2} s, loop {floor:.2} s, {:.2} CPU-s", cost.cpu.as_secs_f64());
        ratios.push(floor / wall);
        rates.push(bytes / wall / 1e6);
        cpu.push(cost.cpu.as_secs_f64() / (bytes / 1e9));
        memory.push((cost.memory_kib_max.saturating_sub(idle_kib)) as f64 / 1024.0);
    }
    let what = format!("restore of {mib} MiB and {transactions} small transactions");
    let detail = format!("{:.0} MB/s, {:.2} CPU-s/GB, {threads} threads", spread(&rates).0, spread(&cpu).0);
    Ok(vec![
        Row {
            what: format!("rate of a {what} / tight loop"),
            figure: spread_text(&ratios, 2),
            goal: "≥ 0.8",
            met: Some(spread(&ratios).0 >= RATE_RATIO_MIN),
            detail: format!("{detail}; {rounds} rounds; both sync the copy"),
        },
        Row {
            what: format!("memory of a {what}, above an idle process"),
            figure: format!("{} MiB", spread_text(&memory, 1)),
            goal: "≤ 64 MiB",
            met: Some(spread(&memory).0 <= MEMORY_MIB_MAX),
            detail: format!("most that was resident, less the {idle_kib} KiB of `rhyolite version`"),
        },
    ])
}

fn restore(lab: &Lab, folder: &Path) -> Outcome<crate::measure::Cost> {
    let copy = folder.join("copy.db");
    if copy.exists() {
        std::fs::remove_file(&copy).context("remove the copy of before")?;
    }
    let mut command = Command::new(&lab.binary);
    command.arg("restore").arg(folder.join("backup")).arg("-o").arg(&copy);
    let cost = run_to_end(&command)?;
    let rows = |path: &Path| -> Outcome<i64> {
        let conn = Connection::open(path).context("open")?;
        conn.query_row("SELECT max(id) FROM rows", [], |row| row.get(0)).context("count rows")
    };
    if rows(&copy)? != rows(&folder.join("app.db"))? {
        return fail("the copy is not the source");
    }
    Ok(cost)
}

/// Rows of mixed text and numbers until the file has `mib` MiB.
pub(crate) fn fill(path: &Path, mib: u64) -> Outcome {
    const WORDS: [&str; 12] = [
        "order",
        "customer",
        "invoice",
        "basalt",
        "delivered",
        "pending",
        "street",
        "north",
        "quantity",
        "refund",
        "note",
        "total",
    ];
    let mut conn = Connection::open(path).context("open")?;
    let mut rng = Rng::new(17);
    loop {
        let transaction = conn.transaction().context("begin")?;
        let mut insert =
            transaction.prepare("INSERT INTO rows(name, number, body) VALUES (?1, ?2, ?3)").context("prepare")?;
        for _ in 0..20_000 {
            let words: Vec<&str> = (0..30).map(|_| rng.pick(&WORDS)).collect();
            let body = format!("{} {:016x} {:016x}", words.join(" "), rng.draw(), rng.draw());
            insert
                .execute(params![format!("name {}", rng.draw() % 100_000), rng.draw() as i64, body])
                .context("insert")?;
        }
        drop(insert);
        transaction.commit().context("commit")?;
        let pages: u64 = conn.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0)).context("size")? as u64;
        if pages * 4096 >= mib << 20 {
            return Ok(());
        }
    }
}

/// The largest file below `folder`: the snapshot.
fn largest_file(folder: &Path) -> Outcome<PathBuf> {
    let mut largest = (0, PathBuf::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).context("list the backup")? {
            let path = entry.context("list the backup")?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let len = std::fs::metadata(&path).context("size of a file")?.len();
            if len > largest.0 {
                largest = (len, path);
            }
        }
    }
    Ok(largest.1)
}
