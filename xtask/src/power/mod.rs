//! `cargo xtask power-cut`: the machine loses its power under an application and its replicator.
//!
//! Databases and state folders lie on a disk of their own, which loses everything that was not synced, at any moment; the processes are killed
//! with it. The store is another machine's, and stays. Then everything is started again. After each cut:
//! - the databases are what SQLite promises: whole, with every commit that was acknowledged with `synchronous=EXTRA`;
//! - the store can be restored, and with a mount whose commits wait for the store, so can every commit that was acknowledged.
//!
//! At the end the newest restore is the database byte for byte, the rows of the last restore points are whole, no TXID is left out, and `verify`
//! proves every point.
//!
//! What a replicator has uploaded before the cut may be more than the disk has kept, with `synchronous=NORMAL`: then the log goes on from
//! what the database is now.

mod disk;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::limits::Limits;
use crate::oracle::{Image, first_difference, judge};
use crate::process::Process;
use crate::rhyolite::{Rhyolite, holes};
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::torture_mount::mount::Mount;
use crate::writer::schema::{self, Making};
use crate::writer::{Acknowledgement, acknowledged, now_us};
use disk::Disk;

/// Size of the disk.
const DISK_MIB: u64 = 192;
/// How long a replicator may take until it captures a database, and to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Cuts in the life of one disk, at most.
const CUTS_PER_WORLD_MAX: u64 = 6;
/// Restore points of each database that are judged by their rows.
const POINTS_JUDGED: usize = 20;
/// From the start of the writers to the cut, in milliseconds.
const CUT_AFTER_MS: std::ops::Range<u64> = 50..1500;

/// How databases are replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `rhyolite replicate`, beside the application, in WAL mode.
    Beside,
    /// `rhyolite mount`, with a database in each journal mode.
    Mount,
    /// The same, and a commit waits for the store.
    Gate,
}

/// What has happened.
#[derive(Debug, Default)]
struct Counts {
    cuts: u64,
    acknowledged: u64,
    points: u64,
}

/// Cuts the power until the time is used up.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut limits = Limits::take(&mut args)?;
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    if let Some(obstacle) = obstacle(&rhyolite)? {
        if std::env::var_os("RHYOLITE_REQUIRE_FUSE").is_some() {
            return fail(obstacle);
        }
        println!("SKIPPED: {obstacle}");
        return Ok(());
    }
    println!("power cuts: {} s, seed {}", limits.seconds, limits.seed);
    limits.begin();
    let mut rng = limits.lane_rng(0);
    let mut counts = Counts::default();
    let mut ways = [Way::Mount, Way::Beside, Way::Gate].into_iter().cycle();
    while limits.begin_cycle(0) {
        let way = ways.next().expect("a cycle has no end");
        let mut world = World::new(&rhyolite, way, &mut rng)?;
        let result = world.live(&mut rng, &mut counts);
        if result.is_err() {
            world.scratch.keep();
        }
        result.context(format!("{way:?} in {}", world.scratch.path().display()))?;
        let Counts { cuts, acknowledged, points } = counts;
        println!(
            "{} s: {cuts} power cuts, {acknowledged} commits acknowledged as durable, {points} restore points proved",
            limits.elapsed().as_secs()
        );
    }
    println!("nothing was lost that was promised");
    Ok(())
}

/// Why this machine cannot play this.
fn obstacle(rhyolite: &Rhyolite) -> Outcome<Option<String>> {
    if let Some(reason) = crate::torture_mount::find_obstacle(rhyolite)? {
        return Ok(Some(reason));
    }
    let scratch = Scratch::new("power-probe")?;
    let at = scratch.path().join("disk");
    fs::create_dir(&at).context("make a folder")?;
    let disk = Disk::new(&scratch.path().join("image"), &at, 16);
    Ok(disk.err().map(|error| format!("no disk that can lose its power: {error}")))
}

/// One database.
#[derive(Debug)]
struct Database {
    mode: &'static str,
    /// Where the application uses it, and where it lies.
    front: PathBuf,
    behind: PathBuf,
    store: String,
    /// Every commit with `synchronous=EXTRA` that was acknowledged.
    promised: Vec<Acknowledgement>,
}

/// A disk with its databases, and who replicates them.
struct World {
    rhyolite: Rhyolite,
    way: Way,
    databases: Vec<Database>,
    beside: Option<Process>,
    // Dropped in this order.
    mount: Mount,
    disk: Disk,
    scratch: Scratch,
}

impl World {
    fn new(rhyolite: &Rhyolite, way: Way, rng: &mut Rng) -> Outcome<Self> {
        let scratch = Scratch::new("power")?;
        let options: &[&str] = if way == Way::Gate { &["--durability", "store"] } else { &[] };
        let mount = Mount::with_options(rhyolite, scratch.path(), options)?;
        let disk = Disk::new(&scratch.path().join("image"), &mount.behind(), DISK_MIB)?;
        let modes: &[&str] = if way == Way::Beside { &["wal"] } else { &["delete", "truncate", "persist", "wal"] };
        let front = if way == Way::Beside { mount.behind() } else { mount.front() };
        let make = |mode: &&'static str| -> Outcome<Database> {
            let name = format!("{mode}.db");
            let behind = mount.behind().join(&name);
            schema::create_in_mode(&behind, Making::random(rng), mode).context("make a database")?;
            let store = mount.store().join(&name).display().to_string();
            Ok(Database { mode, front: front.join(&name), behind, store, promised: Vec::new() })
        };
        let databases = modes.iter().map(make).collect::<Outcome<_>>()?;
        // SQLite does not sync a folder for the sake of a new database.
        let status = Command::new("sync").arg("-f").arg(mount.behind()).status().context("sync")?;
        assert!(status.success(), "sync -f");
        Ok(Self { rhyolite: rhyolite.clone(), way, databases, beside: None, mount, disk, scratch })
    }

    /// Cut after cut, and then the reckoning.
    fn live(&mut self, rng: &mut Rng, counts: &mut Counts) -> Outcome {
        for _ in 0..rng.range(1..CUTS_PER_WORLD_MAX + 1) {
            self.start()?;
            let keeps_all = self.way == Way::Gate || rng.percent(60);
            let mut writers = self.start_writers(if keeps_all { "EXTRA" } else { "NORMAL" }, rng)?;
            std::thread::sleep(Duration::from_millis(rng.range(CUT_AFTER_MS)));
            // Who hears of a commit after this hears it on a machine that is off: a sync that is under way may still end well.
            let cut_us = now_us();
            self.disk.cut()?;
            for (_, writer) in &mut writers {
                writer.kill()?;
            }
            self.kill()?;
            self.disk.power_up().context("after the cut")?;
            counts.cuts += 1;
            for (database, (log, _)) in self.databases.iter_mut().zip(&writers) {
                let said = fs::read_to_string(log).unwrap_or_default();
                let promised = acknowledged(&said).filter(|said| keeps_all && said.time_us < cut_us);
                let before = database.promised.len();
                database.promised.extend(promised);
                counts.acknowledged += (database.promised.len() - before) as u64;
            }
            self.check_after_cut()?;
        }
        self.start()?;
        for (_, mut writer) in self.start_writers("NORMAL", rng)? {
            std::thread::sleep(Duration::from_millis(300));
            writer.terminate(LIMIT)?;
        }
        self.stop()?;
        self.reckon(counts)
    }

    /// Starts whoever replicates, and waits until every database is captured.
    fn start(&mut self) -> Outcome {
        if self.way == Way::Beside {
            let database = &self.databases[0];
            let log = self.scratch.path().join("replicate.log");
            let options = ["--sync-interval", "100ms", "--log-level", "warn"];
            self.beside = Some(self.rhyolite.replicate(&database.behind, &database.store, &options, &log)?);
        } else {
            self.mount.start()?;
        }
        for database in &self.databases {
            // A hot journal is played back by whoever reads.
            last_commit(&database.front)?;
            if !self.rhyolite.is_replicating(&database.front, LIMIT) {
                return fail(format!("{} is not captured within {LIMIT:?}", database.front.display()));
            }
        }
        Ok(())
    }

    /// One writer for each database, with the file that it writes its commits to.
    fn start_writers(&self, synchronous: &str, rng: &mut Rng) -> Outcome<Vec<(PathBuf, Process)>> {
        let start = |database: &Database| {
            let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
            command.args(["writer", "--acknowledge", "--pause-us", "3000", "--synchronous", synchronous]);
            command.args(["--seed", &rng.draw().to_string(), "--journal", database.mode]);
            command.arg("--db").arg(&database.front);
            let log = self.scratch.path().join(format!("writer-{}-{}.log", database.mode, rng.draw()));
            let process = Process::start_tied("writer", command, &log, libc::SIGKILL)?;
            Ok((log, process))
        };
        self.databases.iter().map(start).collect()
    }

    fn kill(&mut self) -> Outcome {
        match self.beside.take() {
            Some(mut process) => process.kill().map(|_| ()),
            None => {
                self.mount.kill()?;
                self.mount.take_away();
                Ok(())
            }
        }
    }

    fn stop(&mut self) -> Outcome {
        match self.beside.take() {
            Some(mut process) => process.terminate(LIMIT),
            None => self.mount.stop(),
        }
    }

    /// What the disk has kept, seen through copies: nothing is recovered before the replicator comes. And what the store has.
    fn check_after_cut(&self) -> Outcome {
        let copy = self.scratch.path().join("kept.db");
        for database in &self.databases {
            let beside = |path: &PathBuf, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
            for suffix in ["-wal", "-journal", "-shm", ""] {
                let _ = fs::remove_file(beside(&copy, suffix));
                if suffix != "-shm" && beside(&database.behind, suffix).exists() {
                    fs::copy(beside(&database.behind, suffix), beside(&copy, suffix)).context("copy what was kept")?;
                }
            }
            let what = database.behind.display();
            // Recovers the WAL, or plays back the journal, for who judges the file alone.
            Image::of_database(&copy).context("recover what was kept")?;
            let judgement = judge(&copy)?;
            if !judgement.is_sound() {
                return fail(format!("{what} after the cut: {judgement:?}"));
            }
            database.check_promises(&copy, "on the disk")?;
            if self.way == Way::Gate {
                let restored = self.scratch.path().join("copy.db");
                self.rhyolite.restore_over(&database.store, &restored, None)?;
                database.check_promises(&restored, "in the store")?;
            }
        }
        Ok(())
    }

    fn reckon(&self, counts: &mut Counts) -> Outcome {
        let copy = self.scratch.path().join("copy.db");
        for database in &self.databases {
            let source = Image::of_database(&database.behind)?;
            self.rhyolite.restore_over(&database.store, &copy, None)?;
            if let Some(difference) = first_difference(&source, &Image::of_file(&copy)?) {
                return fail(format!("{}, newest: {difference}", database.store));
            }
            database.check_promises(&database.behind, "at the end")?;
            let points = self.rhyolite.log(&database.store)?;
            if holes(&points) > 0 {
                return fail(format!("{}: TXIDs are left out", database.store));
            }
            // `verify` proves them all; the rows of some are looked at.
            for point in points.iter().rev().take(POINTS_JUDGED) {
                self.rhyolite.restore_over(&database.store, &copy, Some(&point.txid))?;
                let judgement = judge(&copy)?;
                if !judgement.is_sound() {
                    return fail(format!("{}, TXID {}: {judgement:?}", database.store, point.txid));
                }
            }
            counts.points += points.len() as u64;
            self.rhyolite.verify(&database.store)?;
        }
        Ok(())
    }
}

impl Database {
    /// Every promised commit is in the database at `path`.
    fn check_promises(&self, path: &std::path::Path, place: &str) -> Outcome {
        let conn = Connection::open(path).context("open the database")?;
        let ledger = schema::entries(&conn).context("read the ledger")?;
        let has = |said: &&Acknowledgement| ledger.iter().any(|e| e.id == said.id && e.digest == said.digest);
        match self.promised.iter().find(|said| !has(said)) {
            None => Ok(()),
            Some(lost) => fail(format!(
                "{}: commit {} was acknowledged, and is not {place}, where {} is the last",
                self.front.display(),
                lost.id,
                ledger.last().map_or(0, |entry| entry.id)
            )),
        }
    }
}

fn last_commit(path: &std::path::Path) -> Outcome<i64> {
    let conn = Connection::open(path).context("open a database")?;
    conn.busy_timeout(LIMIT).context("busy timeout")?;
    Ok(schema::last_entry(&conn, "main").context(format!("read {}", path.display()))?.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promised_commit_that_is_gone_or_another_is_found() {
        let scratch = Scratch::new("power").unwrap();
        let path = scratch.path().join("app.db");
        schema::create(&path, Making { page_size: 4096, auto_vacuum: 0, life: 1 }).unwrap();
        let conn = Connection::open(&path).unwrap();
        let entry = schema::append_entry(&conn, "main", 1, schema::Delta::default()).unwrap();
        let check = |id, digest| {
            let (front, behind, store) = (path.clone(), path.clone(), String::new());
            let promised = vec![Acknowledgement { id, digest, time_us: 0 }];
            Database { mode: "wal", front, behind, store, promised }.check_promises(&path, "there")
        };
        assert!(check(entry.id, entry.digest).is_ok());
        assert!(check(entry.id, entry.digest ^ 1).is_err());
        assert!(check(entry.id + 1, entry.digest).is_err());
    }

    /// Where a disk may be mounted.
    #[test]
    fn what_was_not_synced_is_gone_after_a_cut() {
        let scratch = Scratch::new("power").unwrap();
        let at = scratch.path().join("disk");
        fs::create_dir(&at).unwrap();
        let Ok(disk) = Disk::new(&scratch.path().join("image"), &at, 16) else { return };
        fs::write(at.join("synced"), b"synced").unwrap();
        fs::File::open(at.join("synced")).unwrap().sync_all().unwrap();
        fs::File::open(&at).unwrap().sync_all().unwrap();
        fs::write(at.join("written"), b"written").unwrap();
        disk.cut().unwrap();
        assert!(fs::write(at.join("late"), b"late").is_err());
        disk.power_up().unwrap();
        assert_eq!(fs::read(at.join("synced")).unwrap(), b"synced");
        assert!(!at.join("written").exists());
    }
}
