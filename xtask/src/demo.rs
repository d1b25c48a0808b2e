//! `cargo xtask demo`: the main job, end to end, with nothing but the two programs and a folder.
//!
//! A writer process fills a database while `rhyolite replicate` copies every commit to a folder. Half way the replicator is
//! killed and the writer goes on; a new replicator takes over. At the end the backup is restored, to the latest state
//! and to states in between, and each copy is compared with what SQLite said the database was. One difference and the
//! demonstration fails.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::oracle::{Image, first_difference, judge};
use crate::process::Process;
use crate::rhyolite::{Point, Rhyolite};
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::writer::schema::{self, Making};

/// How long any single step may take before the demonstration fails.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// States in between that are restored, besides those of which an image was taken.
const POINTS_CHECKED: usize = 8;

struct Demo {
    rhyolite: Rhyolite,
    scratch: Scratch,
    db: PathBuf,
    store: String,
}

/// Runs the demonstration.
pub(crate) fn run(mut args: Args) -> Outcome {
    let transactions: u64 = args.option_or("--transactions", 4000)?;
    let keep = args.switch("--keep");
    args.finish()?;
    println!("building rhyolite ...");
    let rhyolite = Rhyolite::find()?;
    let mut scratch = Scratch::new("demo")?;
    if keep {
        scratch.keep();
    }
    let db = scratch.path().join("app.db");
    let store = scratch.path().join("backup").display().to_string();
    println!("working in {}", scratch.path().display());
    let demo = Demo { rhyolite, scratch, db, store };
    let samples = demo.write_and_replicate(transactions)?;
    demo.restore_and_compare(transactions, &samples)
}

impl Demo {
    /// Runs writer and replicators until both are done; gives images taken while the writer was writing.
    fn write_and_replicate(&self, transactions: u64) -> Outcome<Vec<Image>> {
        let making = Making { page_size: 4096, auto_vacuum: 0, life: 1 };
        schema::create(&self.db, making).context("make the database")?;
        let mut replicator = self.start_replicator()?;
        let mut writer = self.start_writer(transactions)?;
        println!("a writer makes {transactions} transactions in app.db while `rhyolite replicate app.db backup` runs");
        let mut samples = Vec::new();
        self.wait_for_commits(transactions / 4, &mut writer)?;
        samples.push(Image::of_database(&self.db)?);
        self.wait_for_commits(transactions / 2, &mut writer)?;
        if !replicator.kill()? {
            return fail("the replicator had ended by itself before it was killed");
        }
        println!("replicator killed with SIGKILL half way; the writer goes on");
        self.wait_for_commits(transactions * 5 / 8, &mut writer)?;
        let mut replicator = self.start_replicator()?;
        println!("replicator started again");
        self.wait_for_commits(transactions * 7 / 8, &mut writer)?;
        samples.push(Image::of_database(&self.db)?);
        writer.wait(STEP_LIMIT)?;
        println!("the writer is done; the replicator is asked to end (SIGTERM) and uploads what is left");
        replicator.terminate(STEP_LIMIT)?;
        Ok(samples)
    }

    fn restore_and_compare(&self, transactions: u64, samples: &[Image]) -> Outcome {
        let source = Image::of_database(&self.db)?;
        let points = self.rhyolite.log(&self.store)?;
        println!("the backup holds {} restore points", points.len());
        let last = self.compare(&source, None)?;
        if last != transactions as i64 {
            return fail(format!("the newest state holds {last} of {transactions} transactions"));
        }
        println!(
            "latest: {} bytes equal, {last} of {transactions} transactions, every row as written",
            source.bytes.len()
        );
        for sample in samples {
            let checksum = sample.checksum()?;
            match points.iter().find(|point| point.checksum == checksum) {
                Some(point) => {
                    let k = self.compare(sample, Some(&point.txid))?;
                    println!("TXID {}: {} bytes equal, {k} transactions", point.txid, sample.bytes.len());
                }
                None => return fail(format!("the state {checksum}, seen while replicating, is no restore point")),
            }
        }
        self.judge_points(&points)?;
        println!("demonstration passed: nothing missing, nothing wrong");
        Ok(())
    }

    /// Restores points all over the log; each must hold the first k transactions for a k that only grows.
    fn judge_points(&self, points: &[Point]) -> Outcome {
        let mut rng = Rng::new(points.len() as u64);
        let mut chosen: Vec<usize> = (0..POINTS_CHECKED).map(|_| rng.range(0..points.len() as u64) as usize).collect();
        chosen.sort_unstable();
        let mut k_before = 0;
        for point in chosen.into_iter().map(|index| &points[index]) {
            let copy = self.scratch.path().join(format!("at-{}.db", point.txid));
            let k = self.restore(&copy, Some(&point.txid))?;
            let checksum = Image::of_file(&copy)?.checksum()?;
            if checksum != point.checksum || k < k_before {
                return fail(format!("TXID {}: {k} transactions after {k_before}, checksum {checksum}", point.txid));
            }
            println!("TXID {}: transactions 1 to {k}, every row as written", point.txid);
            k_before = k;
        }
        Ok(())
    }

    /// Restores and compares with `expected` byte for byte; gives how many transactions are in it.
    fn compare(&self, expected: &Image, txid: Option<&str>) -> Outcome<i64> {
        let copy = self.scratch.path().join(format!("copy-{}.db", txid.unwrap_or("latest")));
        let k = self.restore(&copy, txid)?;
        match first_difference(expected, &Image::of_file(&copy)?) {
            None => Ok(k),
            Some(difference) => fail(format!("{}: {difference}", copy.display())),
        }
    }

    /// Restores and judges; gives how many transactions are in the copy.
    fn restore(&self, copy: &std::path::Path, txid: Option<&str>) -> Outcome<i64> {
        if copy.exists() {
            std::fs::remove_file(copy).context("remove the copy of before")?;
        }
        self.rhyolite.restore(&self.store, copy, txid)?;
        let judgement = judge(copy)?;
        if !judgement.is_sound() {
            return fail(format!("{}: {judgement:?}", copy.display()));
        }
        Ok(judgement.last.id)
    }

    fn start_replicator(&self) -> Outcome<Process> {
        self.rhyolite.replicate(&self.db, &self.store, &[], &self.scratch.path().join("replicate.log"))
    }

    fn start_writer(&self, transactions: u64) -> Outcome<Process> {
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.arg("writer").arg("--db").arg(&self.db).args(["--pause-us", "2000", "--seed", "11"]);
        command.args(["--transactions", &transactions.to_string()]);
        Process::start("writer", command, &self.scratch.path().join("writer.log"))
    }

    /// Looks at the database until it holds `count` transactions.
    fn wait_for_commits(&self, count: u64, writer: &mut Process) -> Outcome {
        let deadline = std::time::Instant::now() + STEP_LIMIT;
        loop {
            let conn = rusqlite::Connection::open(&self.db).context("open the database")?;
            conn.busy_timeout(STEP_LIMIT).context("busy timeout")?;
            let last = schema::last_entry(&conn, "main").context("read the ledger")?;
            if last.id >= count as i64 {
                return Ok(());
            }
            if writer.ended()?.is_some() || std::time::Instant::now() > deadline {
                return fail(format!("the writer stopped at {} of {count} transactions", last.id));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
