//! One world of the torture test: databases with random settings, their backups, and the processes that live off them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rhyolite_format::Checksum;

use super::report::{Fault, Report};
use crate::error::{Context, Outcome};
use crate::oracle::Image;
use crate::process::Process;
use crate::rhyolite::{Point, Rhyolite};
use crate::rng::Rng;
use crate::s3_server::Server;
use crate::scratch::Scratch;
use crate::writer::BUSY_LIMIT;
use crate::writer::schema::{self, Making};

/// How long a writer may take to end when asked: longer than it may wait for its turn.
const WRITER_END_LIMIT: Duration = BUSY_LIMIT.saturating_add(Duration::from_secs(10));
/// How long a replicator may take to upload what is left.
pub(crate) const REPLICATOR_END_LIMIT: Duration = Duration::from_secs(30);

/// Databases are parked whenever nothing is left to do.
const PARK_EAGERLY: &str = "--park-eagerly";

/// How long after it is in order again a replicator may take to say so.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// Where backups lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backing<'a> {
    /// In a folder of the world.
    Folder,
    /// On an S3 server.
    Server(&'a Server),
}

/// What becomes of the history while the world lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// The log is left as it is.
    Untouched,
    /// Bundles, merges, snapshots; what they replace is deleted. Every commit stays restorable.
    Compacted,
    /// Restore points go after seconds, too.
    Expiring,
}

/// One replicated database.
#[derive(Debug)]
pub(crate) struct Database {
    /// The file that the application writes.
    pub(crate) path: PathBuf,
    /// Its backup, as the command line takes it.
    pub(crate) store: String,
    /// The process that replicates it.
    pub(crate) replicator: Option<Process>,
    /// Restore points at the end of the last cycle.
    pub(crate) points: Vec<Point>,
    /// Transactions in the ledger at the end of the last cycle.
    pub(crate) transactions: i64,
    /// By TXID: which life and how many transactions a restore held.
    pub(crate) judged: BTreeMap<String, (Option<i64>, i64)>,
    /// The file went back in time, so that a later TXID may hold fewer transactions.
    pub(crate) went_back: bool,
    /// Images taken in this cycle, and whether each must be a restore point.
    pub(crate) samples: Vec<(Image, bool)>,
}

/// Databases, processes and chance.
#[derive(Debug)]
pub(crate) struct World<'a> {
    /// The program under test.
    pub(crate) rhyolite: Rhyolite,
    /// Where backups lie.
    pub(crate) backing: Backing<'a>,
    /// Decides what happens.
    pub(crate) rng: Rng,
    /// One, or two that one application writes together.
    pub(crate) databases: Vec<Database>,
    /// The running writers.
    pub(crate) writers: Vec<Process>,
    /// No fault was found here.
    pub(crate) clean: bool,
    /// What becomes of the history.
    pub(crate) keeping: Keeping,
    writers_max: u64,
    pause_us: u64,
    options: Vec<&'static str>,
    /// How writers treat the journal mode, as their command line says it.
    journal: &'static str,
    scratch: Scratch,
}

impl<'a> World<'a> {
    /// Makes the databases; starts nothing. Without `journal` chance decides the journal mode.
    pub(crate) fn new(
        rhyolite: &Rhyolite,
        backing: Backing<'a>,
        journal: Option<&'static str>,
        rng: &mut Rng,
    ) -> Outcome<Self> {
        let mut rng = Rng::new(rng.draw());
        let scratch = Scratch::new("torture")?;
        let mut rhyolite = rhyolite.clone();
        if let Backing::Server(_) = backing {
            rhyolite.environment = Server::environment();
        }
        let mut databases = Vec::new();
        for name in if rng.percent(25) { &["app", "other"][..] } else { &["app"] } {
            let path = scratch.path().join(format!("{name}.db"));
            schema::create(&path, Making::random(&mut rng)).context("make a database")?;
            let store = match backing {
                Backing::Folder => scratch.path().join(format!("{name}.backup")).display().to_string(),
                Backing::Server(server) => server.url(&format!("{:016x}/{name}", rng.draw())),
            };
            databases.push(Database::new(path, store));
        }
        let writers_max = rng.pick(&[1, 1, 2, 3]);
        let pause_us = rng.pick(&[0, 500, 2_000, 2_000, 10_000]);
        let keeping = rng.weighted(&[(40, Keeping::Untouched), (30, Keeping::Compacted), (30, Keeping::Expiring)]);
        let options = random_options(&mut rng, keeping);
        let by_chance = rng.weighted(&[(9, "wal"), (1, "delete")]);
        let journal = journal.unwrap_or(by_chance);
        let writers = Vec::new();
        let clean = true;
        Ok(Self {
            rhyolite,
            backing,
            rng,
            databases,
            writers,
            clean,
            keeping,
            writers_max,
            pause_us,
            options,
            journal,
            scratch,
        })
    }

    /// Where to look when something is wrong.
    pub(crate) fn place(&self) -> String {
        self.scratch.path().display().to_string()
    }

    /// Leaves all files for a person to look at.
    pub(crate) fn keep(&mut self) {
        self.scratch.keep();
    }

    /// Counts faults of this world.
    pub(crate) fn fault(&mut self, report: &Report, fault: Fault, number: usize, what: &str) {
        self.clean = false;
        report.fault(fault, number, &self.place(), what);
    }

    /// Starts the replicators that are not running.
    pub(crate) fn start_replicators(&mut self) -> Outcome {
        for database in self.databases.iter_mut().filter(|database| database.replicator.is_none()) {
            let log = database.path.with_extension("replicate.log");
            let process = self.rhyolite.replicate(&database.path, &database.store, &self.options, &log)?;
            database.replicator = Some(process);
        }
        Ok(())
    }

    /// Starts one to three writers beside those that run.
    pub(crate) fn start_writers(&mut self) -> Outcome {
        let count = self.rng.range(1..self.writers_max + 1);
        while (self.writers.len() as u64) < count {
            self.start_writer(self.journal)?;
        }
        Ok(())
    }

    fn start_writer(&mut self, journal: &str) -> Outcome {
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.args(["writer", "--storm", "--journal", journal, "--db"]).arg(&self.databases[0].path);
        if let Some(other) = self.databases.get(1) {
            command.arg("--attach").arg(&other.path);
        }
        command.args(["--seed", &self.rng.draw().to_string(), "--pause-us", &self.pause_us.to_string()]);
        let log = self.scratch.path().join("writers.log");
        self.writers.push(Process::start("writer", command, &log)?);
        Ok(())
    }

    /// One writer that changes between journal modes, and page sizes, for a while. Nobody else may run.
    pub(crate) fn write_in_other_modes(&mut self, report: &Report) -> Outcome {
        self.start_writer("any")?;
        std::thread::sleep(Duration::from_millis(self.rng.range(50..300)));
        self.end_writers(report);
        Ok(())
    }

    /// Puts an older state of database `which` from its own backup in its place.
    /// Nothing happens where that state has expired meanwhile.
    pub(crate) fn restore_older(&mut self, which: usize) -> Outcome {
        let database = &mut self.databases[which];
        if database.points.is_empty() {
            return Ok(());
        }
        let txid = database.points[self.rng.range(0..database.points.len() as u64) as usize].txid.clone();
        let older = database.path.with_extension("older");
        if let Err(error) = self.rhyolite.restore(&database.store, &older, Some(&txid)) {
            return if self.has_expired(which, &txid)? { Ok(()) } else { Err(error) };
        }
        let database = &mut self.databases[which];
        database.remove_files()?;
        database.went_back = true;
        fs::rename(&older, &database.path).context("put the older state in place")
    }

    /// Waits until a database's backup has caught up with a state that stays; gives all restore points.
    pub(crate) fn wait_for(&self, which: usize, wanted: Checksum, limit: Duration) -> Outcome<Vec<Point>> {
        let database = &self.databases[which];
        self.rhyolite.wait_for(&database.store, wanted, Some(&database.path), limit)
    }

    /// Whether a restore point has gone because nothing keeps it any more.
    pub(crate) fn has_expired(&self, which: usize, txid: &str) -> Outcome<bool> {
        if self.keeping != Keeping::Expiring {
            return Ok(false);
        }
        let points = self.rhyolite.log(&self.databases[which].store)?;
        Ok(!points.iter().any(|point| point.txid == txid))
    }

    /// Whether replicators run and follow the WAL of every database, so that they see each commit. One whose state folder was
    /// removed runs, and first has to ask the store.
    ///
    /// One that is parked may be woken too late for commits whose frames a checkpoint lets others overwrite: they become one.
    pub(crate) fn is_following(&self) -> bool {
        let parks = self.options.contains(&PARK_EAGERLY);
        !parks
            && self.databases.iter().all(|database| {
                let follows = |path| self.rhyolite.is_replicating(path, STATUS_LIMIT);
                database.replicator.is_some() && is_wal(&database.path) && follows(&database.path)
            })
    }

    /// Kills all replicators.
    pub(crate) fn kill_replicators(&mut self, report: &Report) -> Outcome {
        for index in 0..self.databases.len() {
            let Some(mut process) = self.databases[index].replicator.take() else { continue };
            if process.kill()? {
                report.count(|counts| counts.replicator_kills += 1);
            } else {
                self.fault(report, Fault::Failure, 1, "a replicator had ended by itself");
            }
        }
        Ok(())
    }

    /// Kills all writers.
    pub(crate) fn kill_writers(&mut self, report: &Report) -> Outcome {
        for mut process in std::mem::take(&mut self.writers) {
            if process.kill()? {
                report.count(|counts| counts.writer_kills += 1);
            } else if let Err(error) = process.wait(Duration::ZERO) {
                self.fault(report, Fault::Failure, 1, &format!("{error} (writers.log)"));
            }
        }
        Ok(())
    }

    /// Asks all writers to end after their transaction.
    pub(crate) fn end_writers(&mut self, report: &Report) {
        for mut process in std::mem::take(&mut self.writers) {
            let ended = process.terminate(WRITER_END_LIMIT);
            // A writer that had no time to set its handler up ends by the signal itself: a kill like any other.
            let by_signal = matches!(process.ended(), Ok(Some(status)) if status.signal() == Some(libc::SIGTERM));
            if let (Err(error), false) = (ended, by_signal) {
                self.fault(report, Fault::Failure, 1, &format!("{error} (writers.log)"));
            }
        }
    }

    /// Takes an image of each database while the writers write.
    pub(crate) fn sample(&mut self, must_be_restorable: bool) -> Outcome {
        for database in &mut self.databases {
            database.samples.push((Image::of_database(&database.path)?, must_be_restorable));
        }
        Ok(())
    }

    /// The end of the world: replicators end by SIGTERM, with everything uploaded, and every restore point is proved.
    pub(crate) fn end(&mut self, report: &Report) -> Outcome {
        self.end_writers(report);
        for index in 0..self.databases.len() {
            let Some(mut process) = self.databases[index].replicator.take() else { continue };
            if let Err(error) = process.terminate(REPLICATOR_END_LIMIT) {
                self.fault(report, Fault::Failure, 1, &error.to_string());
            }
        }
        for index in 0..self.databases.len() {
            let log = self.databases[index].path.with_extension("replicate.log");
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(line) =
                text.lines().find(|line| line.contains("panicked at") || line.contains("internal error"))
            {
                self.fault(report, Fault::Failure, 1, line);
            }
            // A world that ended before its first cycle has nothing to prove.
            if self.databases[index].points.is_empty() {
                continue;
            }
            if let Err(error) = self.rhyolite.verify(&self.databases[index].store) {
                self.fault(report, Fault::Wrong, 1, &error.to_string());
            }
        }
        Ok(())
    }
}

impl Database {
    fn new(path: PathBuf, store: String) -> Self {
        let (replicator, points, samples) = (None, Vec::new(), Vec::new());
        Self { path, store, replicator, points, transactions: 0, judged: BTreeMap::new(), went_back: false, samples }
    }

    /// A file beside the database: `suffix` is `-wal`, `-shm` or `-journal`.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// The replicator's own folder beside the database.
    pub(crate) fn state_folder(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.path.with_file_name(format!(".{name}-rhyolite"))
    }

    /// Removes the database with everything that SQLite keeps beside it.
    pub(crate) fn remove_files(&self) -> Outcome {
        for path in [self.path.clone(), self.beside("-wal"), self.beside("-shm"), self.beside("-journal")] {
            remove_if_there(&path)?;
        }
        Ok(())
    }
}

fn remove_if_there(path: &Path) -> Outcome {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn is_wal(path: &Path) -> bool {
    let mode = rusqlite::Connection::open(path)
        .and_then(|conn| conn.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)));
    mode.is_ok_and(|mode| mode == "wal")
}

/// Settings of the replicators of a world.
fn random_options(rng: &mut Rng, keeping: Keeping) -> Vec<&'static str> {
    let mut options = vec!["--sync-interval", rng.pick(&["0", "20ms", "200ms"])];
    if keeping != Keeping::Untouched {
        // All within the life of the world.
        options.extend(["--bundle-interval", "1s", "--merge-interval", "2s", "--snapshot-interval", "3s"]);
        options.extend(["--retention-grace", "2s"]);
    }
    if keeping == Keeping::Expiring {
        options.extend(["--keep-every-commit", "2s", "--keep-hourly", "6s", "--keep-daily", "12s"]);
    }
    if rng.percent(40) {
        options.push(PARK_EAGERLY);
    }
    if rng.percent(30) {
        options.extend(["--min-checkpoint-page-count", rng.pick(&["1", "20", "200"])]);
    }
    options
}
