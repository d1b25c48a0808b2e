//! The application of the demonstration and the torture tests: a process that writes a real SQLite database until told to stop.
//!
//! `xtask writer --db PATH ...` is started by the other commands, never by hand. It ends with status 0 after SIGTERM or when its
//! transactions are written, and with another status when SQLite refuses what an application may expect: a commit that
//! cannot be made within [`BUSY_LIMIT`], or a database that reads as damaged. Being killed is part of its life.

mod detour;
pub(crate) mod mix;
pub(crate) mod schema;
mod upkeep;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::rng::Rng;
use mix::Change;
use schema::{Delta, Entry};

/// How long a commit may wait for a lock before the application counts as stopped. SQLite's waiting is not fair: of three writers in
/// rollback mode, with nobody else at the file, one waited for 12 seconds on a busy disk.
pub(crate) const BUSY_LIMIT: Duration = Duration::from_secs(90);

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_terminate(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// How a writer behaves.
#[derive(Debug)]
struct Settings {
    db: PathBuf,
    attached: Option<PathBuf>,
    seed: u64,
    /// Ends after so many transactions; 0 is never.
    transactions: u64,
    /// Longest pause between two transactions, in microseconds; 0 is full speed.
    pause_us_max: u64,
    /// What it asks for; otherwise NORMAL, or by chance in a storm.
    synchronous: Option<String>,
    /// Everything an application can do to a database, or only rows.
    storm: bool,
    journal: Journal,
    /// Says each commit when it is made, as an [`Acknowledgement`].
    acknowledge: bool,
    /// Transactions of several MB, and savepoints that are rolled back.
    detours: bool,
    /// Keeps its lock between transactions. Nobody else can use the database meanwhile.
    exclusive: bool,
}

/// What a writer does about the journal mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journal {
    /// Asks for WAL when it connects.
    Wal,
    /// Asks for a rollback journal when it connects.
    Delete,
    /// For one that is emptied instead.
    Truncate,
    /// For one whose header is wiped instead.
    Persist,
    /// Changes between modes while it works.
    Any,
}

impl FromStr for Journal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wal" => Ok(Self::Wal),
            "delete" => Ok(Self::Delete),
            "truncate" => Ok(Self::Truncate),
            "persist" => Ok(Self::Persist),
            "any" => Ok(Self::Any),
            _ => Err("not wal, delete, truncate, persist or any".to_owned()),
        }
    }
}

/// Runs until the end or SIGTERM.
pub(crate) fn run(mut args: Args) -> Outcome {
    let settings = Settings {
        db: args.option("--db")?.context("--db is needed")?,
        attached: args.option("--attach")?,
        seed: args.option_or("--seed", 1)?,
        transactions: args.option_or("--transactions", 0)?,
        pause_us_max: args.option_or("--pause-us", 0)?,
        synchronous: args.option("--synchronous")?,
        storm: args.switch("--storm"),
        journal: args.option_or("--journal", Journal::Wal)?,
        acknowledge: args.switch("--acknowledge"),
        detours: args.switch("--detours"),
        exclusive: args.switch("--exclusive"),
    };
    args.finish()?;
    // SAFETY: the handler only stores to an atomic, which is allowed at any moment.
    unsafe { libc::signal(libc::SIGTERM, on_terminate as *const () as libc::sighandler_t) };
    let mut writer = Writer::open(settings).context("open")?;
    while !writer.is_done() {
        writer.step()?;
    }
    println!(
        "{{\"transactions\": {}, \"commit_ms_max\": {:.1}}}",
        writer.written,
        writer.slowest.as_secs_f64() * 1000.0
    );
    Ok(())
}

struct Writer {
    settings: Settings,
    conn: Connection,
    rng: Rng,
    pid: i64,
    written: u64,
    slowest: Duration,
}

impl Writer {
    fn open(settings: Settings) -> rusqlite::Result<Self> {
        let mut rng = Rng::new(settings.seed);
        let conn = connect(&settings, &mut rng)?;
        let pid = i64::from(std::process::id());
        Ok(Self { settings, conn, rng, pid, written: 0, slowest: Duration::ZERO })
    }

    fn is_done(&self) -> bool {
        let limit = self.settings.transactions;
        STOP.load(Ordering::Relaxed) || limit > 0 && self.written >= limit
    }

    fn step(&mut self) -> Outcome {
        if self.settings.storm && self.rng.percent(12) {
            return self.upkeep();
        }
        let began = Instant::now();
        match self.transaction() {
            Ok(Some(entry)) => {
                self.written += 1;
                if self.settings.acknowledge {
                    println!("{}", Acknowledgement { id: entry.id, digest: entry.digest, time_us: now_us() });
                }
            }
            Ok(None) => {}
            Err(error) if is_super_journal_race(&error) && self.settings.attached.is_some() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) if is_interruption(&error) => return fail(format!("the application was stopped: {error}")),
            Err(error) => return fail(format!("transaction: {}", describe(&error))),
        }
        self.slowest = self.slowest.max(began.elapsed());
        if self.settings.pause_us_max > 0 {
            let pause = self.rng.range(0..self.settings.pause_us_max);
            std::thread::sleep(Duration::from_micros(pause));
        }
        Ok(())
    }

    /// One transaction over one or both databases; some are rolled back on purpose. The entry in the last of them, when committed.
    fn transaction(&mut self) -> rusqlite::Result<Option<Entry>> {
        let rng = &mut self.rng;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let schemas: &[&str] = match self.settings.attached {
            Some(_) => rng.pick(&[&["main"], &["other"], &["main", "other"]]),
            None => &["main"],
        };
        let is_wal = self.settings.journal == Journal::Wal;
        let detour = self.settings.detours && detour::is_harmless(is_wal, rusqlite::version_number()) && rng.percent(8);
        let detour_first = detour && rng.percent(50);
        if detour_first {
            detour::take(&self.conn)?;
        }
        let mut entry = Entry::default();
        for schema in schemas {
            let mut delta = Delta::default();
            let kind = choose(&self.conn, schema, &self.settings, rng)?;
            mix::change(&self.conn, schema, kind, rng, &mut delta)?;
            entry = schema::append_entry(&self.conn, schema, self.pid, delta)?;
        }
        if detour && !detour_first {
            detour::take(&self.conn)?;
        }
        let rolled_back = self.settings.storm && rng.percent(4);
        self.conn.execute_batch(if rolled_back { "ROLLBACK" } else { "COMMIT" })?;
        Ok((!rolled_back).then_some(entry))
    }

    /// Something that applications do besides writing rows. A busy database is no failure here.
    fn upkeep(&mut self) -> Outcome {
        if self.rng.percent(8) {
            if self.settings.exclusive {
                // The new connection would wait for the lock of the old one.
                return Ok(());
            }
            // The last connection to close deletes the WAL.
            self.conn = connect(&self.settings, &mut self.rng).context("connect again")?;
            return Ok(());
        }
        let modes = self.settings.journal == Journal::Any;
        match upkeep::run(&self.conn, &self.settings.db, modes, &mut self.rng) {
            Err(error) if !is_interruption(&error) => fail(format!("upkeep: {}", describe(&error))),
            _ => {
                // A step that was interrupted may have left its transaction open.
                if !self.conn.is_autocommit() {
                    self.conn.execute_batch("ROLLBACK").context("roll back")?;
                }
                self.conn.busy_timeout(BUSY_LIMIT).context("busy timeout")
            }
        }
    }
}

fn connect(settings: &Settings, rng: &mut Rng) -> rusqlite::Result<Connection> {
    let conn = Connection::open(&settings.db)?;
    conn.busy_timeout(BUSY_LIMIT)?;
    if let Some(other) = &settings.attached {
        conn.execute("ATTACH ?1 AS other", [other.display().to_string()])?;
    }
    let mode = match settings.journal {
        Journal::Wal => Some("wal"),
        Journal::Delete => Some("delete"),
        Journal::Truncate => Some("truncate"),
        Journal::Persist => Some("persist"),
        Journal::Any => None,
    };
    if let Some(mode) = mode {
        // Refused while somebody else reads: then the mode stays as it is, as in any application.
        let _ = conn.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(()));
    }
    if settings.exclusive {
        conn.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
    }
    if settings.storm {
        let synchronous = rng.pick(&["OFF", "NORMAL", "NORMAL", "FULL"]);
        let autocheckpoint = rng.pick(&[1, 10, 100, 1000, 1000, 0]);
        // A small cache spills pages of transactions that are not committed into the WAL.
        let cache = rng.pick(&[-2000, -2000, 5]);
        conn.pragma_update(None, "synchronous", synchronous)?;
        conn.pragma_update_and_check(None, "wal_autocheckpoint", autocheckpoint, |_| Ok(()))?;
        conn.pragma_update(None, "cache_size", cache)?;
    } else {
        conn.pragma_update(None, "synchronous", "NORMAL")?;
    }
    if let Some(synchronous) = &settings.synchronous {
        conn.pragma_update(None, "synchronous", synchronous)?;
    }
    Ok(conn)
}

/// What to do next: growth until the database is large enough, then less.
fn choose(conn: &Connection, schema: &str, settings: &Settings, rng: &mut Rng) -> rusqlite::Result<Change> {
    const DATABASE_BYTES_MAX: i64 = 1_500_000;
    let pragma = |name| conn.query_row(&format!("PRAGMA {schema}.{name}"), [], |row| row.get::<_, i64>(0));
    let used = (pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?;
    if used > DATABASE_BYTES_MAX {
        return Ok(Change::Shrink);
    }
    let blobs = if settings.storm { 4 } else { 1 };
    let floods = u64::from(settings.detours);
    Ok(rng.weighted(&[
        (40, Change::Row),
        (6, Change::Batch),
        (15, Change::Update),
        (10, Change::Delete),
        (blobs, Change::Blob),
        (10, Change::Pairs),
        (5, Change::Words),
        (floods, Change::Flood),
    ]))
}

/// What a writer says of a commit that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// Number in the ledger.
    pub(crate) id: i64,
    /// Digest in the ledger.
    pub(crate) digest: i64,
    /// When it was known to be made, by [`now_us`].
    pub(crate) time_us: u64,
}

/// The clock by which processes on one machine agree on what came first: microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("no machine believes that it is before 1970").as_micros() as u64
}

impl std::fmt::Display for Acknowledgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "committed {} {:016x} {}", self.id, self.digest, self.time_us)
    }
}

/// All that a writer has acknowledged in `log`. A kill may have cut the last line short.
pub(crate) fn acknowledged(log: &str) -> impl Iterator<Item = Acknowledgement> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().filter_map(|line| {
        let mut words = line.strip_prefix("committed ")?.split(' ');
        let id = words.next()?.parse().ok()?;
        let digest = u64::from_str_radix(words.next()?, 16).ok()? as i64;
        let time_us = words.next()?.parse().ok()?;
        Some(Acknowledgement { id, digest, time_us })
    })
}

/// The error with SQLite's extended code, which says what `disk I/O error` does not.
fn describe(error: &rusqlite::Error) -> String {
    let code = error.sqlite_error().map(|e| format!(" (extended code {})", e.extended_code));
    format!("{error}{}", code.unwrap_or_default())
}

/// Whether somebody else undid, at the same moment, the transaction that a killed writer left over two databases in rollback
/// mode. SQLite then says that it cannot open the super-journal, which is gone.
fn is_super_journal_race(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen)
}

/// Whether somebody else held the database.
fn is_interruption(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_read_back() {
        let said = |id, digest| Acknowledgement { id, digest, time_us: 9 };
        let log = format!("{}\ndisk I/O error\n{}\n{}", said(7, -3), said(8, 5), said(9, 6));
        assert_eq!(acknowledged(&log).collect::<Vec<_>>(), [said(7, -3), said(8, 5)]);
        assert_eq!(acknowledged("committed 7 00 9").count(), 0, "the line was not finished");
    }
}
