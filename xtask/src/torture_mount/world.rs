//! One world of the torture test of the mount: a mounted folder, a database for each journal mode, and their writers.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use super::mount::Mount;
use super::report::{Fault, Report};
use super::verdict::Watched;
use crate::error::{Context, Outcome, fail};
use crate::process::Process;
use crate::rhyolite::Rhyolite;
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::writer::schema::{self, Making};
use crate::writer::{Acknowledgement, BUSY_LIMIT, acknowledged, now_us};

/// One database for each.
const JOURNAL_MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
/// How long a daemon may take until it captures a database, writers or not: no longer than an application would wait.
const CAPTURE_LIMIT: Duration = BUSY_LIMIT;
/// How long a writer may take to end when asked: longer than it may wait for its turn.
const WRITER_END_LIMIT: Duration = BUSY_LIMIT.saturating_add(Duration::from_secs(10));
/// How long a look into a database may wait for its writers. A transaction of several MB that spills keeps readers out from its first page
/// on, for 15 seconds where pages are small and the machine is busy.
const LOOK_LIMIT: Duration = BUSY_LIMIT;

/// One database on the mount.
#[derive(Debug)]
pub(super) struct Database {
    /// Its journal mode.
    pub(super) mode: &'static str,
    /// The file, as applications know it.
    pub(super) front: PathBuf,
    /// The same behind the mount.
    pub(super) behind: PathBuf,
    /// Its backup.
    pub(super) store: String,
    /// What writers that have ended have acknowledged.
    pub(super) acknowledged: Vec<Acknowledgement>,
    /// What daemons that have ended have watched.
    pub(super) watched: Vec<Watched>,
    /// The last commit that the running daemon may have missed; `None` until it captures the database.
    watched_after: Option<i64>,
}

/// A writer, and what it says.
#[derive(Debug)]
struct Writer {
    database: usize,
    process: Process,
    log: PathBuf,
}

/// A mount, its databases, and chance.
#[derive(Debug)]
pub(super) struct World {
    /// The program under test.
    pub(super) rhyolite: Rhyolite,
    /// Decides what happens.
    pub(super) rng: Rng,
    /// One for each journal mode.
    pub(super) databases: Vec<Database>,
    /// No fault was found here.
    pub(super) clean: bool,
    writers: Vec<Writer>,
    writers_started: u64,
    /// Right before the daemon was killed, as long as its writers are still there.
    daemon_killed_us: Option<u64>,
    // Dropped before the folder in which it is.
    mount: Mount,
    scratch: Scratch,
}

impl World {
    /// Mounts a folder and makes the databases, on the mount or before there is one.
    pub(super) fn new(rhyolite: &Rhyolite, rng: &mut Rng) -> Outcome<Self> {
        let mut rng = Rng::new(rng.draw());
        let scratch = Scratch::new("torture-mount")?;
        let mut mount = Mount::new(rhyolite, scratch.path())?;
        let databases = JOURNAL_MODES.map(|mode| Database::new(mode, &mount)).into();
        let made_before = rng.percent(30);
        let makings = JOURNAL_MODES.map(|mode| (mode, Making::random(&mut rng)));
        let make = |folder: &Path| {
            makings.iter().try_for_each(|(mode, making)| {
                let path = folder.join(format!("{mode}.db"));
                schema::create_in_mode(&path, *making, mode).context(format!("make {}", path.display()))
            })
        };
        if made_before {
            make(&mount.behind())?;
        }
        mount.start()?;
        if !made_before {
            make(&mount.front())?;
        }
        let (rhyolite, writers) = (rhyolite.clone(), Vec::new());
        Ok(Self {
            rhyolite,
            rng,
            databases,
            clean: true,
            writers,
            writers_started: 0,
            daemon_killed_us: None,
            mount,
            scratch,
        })
    }

    /// Where to look when something is wrong.
    pub(super) fn place(&self) -> String {
        self.scratch.path().display().to_string()
    }

    /// A file of the world that nobody else uses.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Leaves all files for a person to look at.
    pub(super) fn keep(&mut self) {
        self.scratch.keep();
    }

    /// Counts faults of this world.
    pub(super) fn fault(&mut self, report: &Report, fault: Fault, number: usize, what: &str) {
        self.clean = false;
        report.fault(fault, number, &self.place(), what);
    }

    /// How many commits writers that have ended have acknowledged.
    pub(super) fn commits(&self) -> usize {
        self.databases.iter().map(|database| database.acknowledged.len()).sum()
    }

    /// Whether the running daemon captures every database.
    pub(super) fn is_watched(&self) -> bool {
        self.databases.iter().all(|database| database.watched_after.is_some())
    }

    /// Waits until the running daemon captures every database. It waits itself where a killed writer has left a hot journal, which an
    /// application plays back: so each database is read.
    pub(super) fn wait_until_watched(&mut self) -> Outcome {
        for database in self.databases.iter_mut().filter(|database| database.watched_after.is_none()) {
            database.last_commit()?;
            if !self.rhyolite.is_replicating(&database.front, CAPTURE_LIMIT) {
                return fail(format!("{} was not captured within {CAPTURE_LIMIT:?}", database.front.display()));
            }
            database.watched_after = Some(database.last_commit()?);
        }
        self.mount.check()
    }

    /// One or two writers for each database, which pause for up to `pause_us` between transactions. Once the daemon has had its turn, one now and
    /// then keeps everybody else out.
    pub(super) fn start_writers(&mut self, report: &Report, pause_us: u64) -> Outcome {
        let (is_watched, pause_us) = (self.is_watched(), pause_us.to_string());
        for index in 0..self.databases.len() {
            // In WAL mode the daemon is a connection like any other, and keeps such a writer out.
            let can_be = is_watched && self.databases[index].mode != "wal";
            if can_be && self.rng.percent(15) {
                report.event("exclusive writer");
                self.start_writer(index, &["--pause-us", &pause_us, "--exclusive"])?;
                continue;
            }
            for _ in 0..self.rng.pick(&[1, 1, 2]) {
                self.start_writer(index, &["--pause-us", &pause_us])?;
            }
        }
        Ok(())
    }

    fn start_writer(&mut self, index: usize, more: &[&str]) -> Outcome {
        let database = &self.databases[index];
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.args(["writer", "--storm", "--acknowledge", "--detours"]).args(more);
        command.args(["--journal", database.mode, "--db"]).arg(&database.front);
        command.args(["--seed", &self.rng.draw().to_string()]);
        self.writers_started += 1;
        let log = self.path(&format!("writer-{}-{}.log", database.mode, self.writers_started));
        let process = Process::start_tied("writer", command, &log, libc::SIGKILL)?;
        self.writers.push(Writer { database: index, process, log });
        Ok(())
    }

    /// Kills all writers. When the daemon is dead, they may have ended because nothing answers.
    pub(super) fn kill_writers(&mut self, report: &Report) -> Outcome {
        let killed_us = self.daemon_killed_us.take();
        for mut writer in std::mem::take(&mut self.writers) {
            if writer.process.kill()? {
                report.count(|counts| counts.writer_kills += 1);
            } else if killed_us.is_some() {
                report.event("writer ended with its daemon");
            } else if let Err(error) = writer.process.wait(Duration::ZERO) {
                self.fault_of_writer(report, &writer, &error.to_string());
            }
            self.databases[writer.database].acknowledge(&writer.log);
        }
        // What writers had acknowledged before was watched.
        if let Some(killed_us) = killed_us {
            for database in &mut self.databases {
                let before = database.acknowledged.iter().filter(|said| said.time_us < killed_us);
                let through = before.map(|said| said.id).max().unwrap_or(0);
                database.end_watch(through, true);
            }
        }
        Ok(())
    }

    /// Asks all writers to end after their transaction. The last connection to a database closes in order.
    pub(super) fn end_writers(&mut self, report: &Report) {
        for mut writer in std::mem::take(&mut self.writers) {
            let ended = writer.process.terminate(WRITER_END_LIMIT);
            // A writer that had no time to set its handler up ends by the signal itself: a kill like any other.
            let by_signal =
                matches!(writer.process.ended(), Ok(Some(status)) if status.signal() == Some(libc::SIGTERM));
            if let (Err(error), false) = (ended, by_signal) {
                self.fault_of_writer(report, &writer, &error.to_string());
            }
            self.databases[writer.database].acknowledge(&writer.log);
        }
    }

    fn fault_of_writer(&mut self, report: &Report, writer: &Writer, error: &str) {
        let said = fs::read_to_string(&writer.log).unwrap_or_default();
        let last = said.lines().rfind(|line| !line.starts_with("committed")).unwrap_or_default();
        self.fault(report, Fault::Failure, 1, &format!("{}: {error}: {last}", writer.log.display()));
    }

    /// Kills the daemon under its writers, which are to be killed next.
    pub(super) fn kill_daemon(&mut self, report: &Report) -> Outcome {
        self.daemon_killed_us = Some(now_us());
        if self.mount.kill()? {
            report.count(|counts| counts.daemon_kills += 1);
        } else {
            self.fault(report, Fault::Failure, 1, "the daemon had ended by itself");
        }
        Ok(())
    }

    /// Starts a daemon after one that has ended.
    pub(super) fn start_daemon(&mut self, report: &Report) -> Outcome {
        let refusals = self.mount.start()?;
        if refusals > 0 {
            report.event("start refused while a WAL was being closed");
        }
        Ok(())
    }

    /// Starts a daemon and kills it at once or a little later, whatever it is doing.
    pub(super) fn kill_starting_daemon(&mut self, after: Duration, report: &Report) -> Outcome {
        self.mount.launch()?;
        std::thread::sleep(after);
        // It may have refused to start while a WAL was being closed.
        if self.mount.kill()? {
            report.count(|counts| counts.daemon_kills += 1);
            report.event("daemon killed while it started");
        }
        Ok(())
    }

    /// Ends the daemon in order, when all writers have gone and every hot journal was played back. All that was committed was watched.
    pub(super) fn stop_daemon(&mut self, report: &Report) -> Outcome {
        self.wait_until_watched()?;
        for database in &mut self.databases {
            let through = database.last_commit()?;
            database.end_watch(through, false);
        }
        if let Err(error) = self.mount.stop() {
            self.fault(report, Fault::Failure, 1, &error.to_string());
        }
        Ok(())
    }

    /// The end of the world: everything is uploaded and unmounted.
    pub(super) fn end(&mut self, report: &Report) -> Outcome {
        self.end_writers(report);
        self.stop_daemon(report)?;
        let alarming =
            |line: &&str| ["panicked at", "internal error", " ERROR "].iter().any(|text| line.contains(text));
        if let Some(line) = self.mount.log().lines().find(alarming) {
            self.fault(report, Fault::Failure, 1, line);
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Writers may wait for the mount where no signal reaches them, and they are waited for when they are dropped.
        self.mount.take_away();
    }
}

impl Database {
    fn new(mode: &'static str, mount: &Mount) -> Self {
        let name = format!("{mode}.db");
        Self {
            mode,
            front: mount.front().join(&name),
            behind: mount.behind().join(&name),
            store: mount.store().join(&name).display().to_string(),
            acknowledged: Vec::new(),
            watched: Vec::new(),
            watched_after: None,
        }
    }

    /// The number of the last commit, as an application sees it.
    fn last_commit(&self) -> Outcome<i64> {
        let conn = Connection::open(&self.front).context("open on the mount")?;
        conn.busy_timeout(LOOK_LIMIT).context("busy timeout")?;
        let last = schema::last_entry(&conn, "main").context(format!("read {}", self.front.display()))?;
        Ok(last.id)
    }

    fn acknowledge(&mut self, log: &Path) {
        let said = fs::read_to_string(log).unwrap_or_default();
        self.acknowledged.extend(acknowledged(&said));
    }

    /// The daemon has ended. Nobody has watched if it had not come to this database.
    fn end_watch(&mut self, through: i64, was_killed: bool) {
        if let Some(after) = self.watched_after.take() {
            self.watched.push(Watched { after, through, was_killed });
        }
    }
}
