//! What applications do to a database besides writing rows: checkpoints of every kind, VACUUM, long readers, journal modes.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::rng::Rng;

/// Upkeep gives up sooner than a commit: an application that checkpoints does not want to stand still for it.
const PATIENCE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug)]
enum Step {
    Checkpoint(&'static str),
    Vacuum,
    IncrementalVacuum,
    Reindex,
    LongReader,
    JournalMode,
    PageSize,
}

/// Takes one step; leaves WAL mode only when `modes` says so. The caller restores its own busy timeout.
pub(crate) fn run(conn: &Connection, db: &Path, modes: bool, rng: &mut Rng) -> rusqlite::Result<()> {
    conn.busy_timeout(PATIENCE)?;
    let step = rng.weighted(&[
        (20, Step::Checkpoint("PASSIVE")),
        (15, Step::Checkpoint("FULL")),
        (15, Step::Checkpoint("RESTART")),
        (20, Step::Checkpoint("TRUNCATE")),
        (4, Step::Vacuum),
        (10, Step::IncrementalVacuum),
        (3, Step::Reindex),
        (6, Step::LongReader),
        (if modes { 60 } else { 0 }, Step::JournalMode),
        (if modes { 20 } else { 0 }, Step::PageSize),
    ]);
    match step {
        Step::Checkpoint(kind) => run_pragma(conn, &format!("wal_checkpoint({kind})")),
        Step::Vacuum => conn.execute_batch("VACUUM"),
        Step::IncrementalVacuum => run_pragma(conn, &format!("incremental_vacuum({})", rng.range(1..50))),
        Step::Reindex => conn.execute_batch("REINDEX"),
        Step::LongReader => read_for_a_while(db, rng),
        Step::JournalMode => leave_wal_mode(conn, rng, None),
        Step::PageSize => {
            let size = rng.pick(&[512, 1024, 4096, 8192, 65536]);
            leave_wal_mode(conn, rng, Some(size))
        }
    }
}

/// Runs a pragma to its last row: some work a step for each.
fn run_pragma(conn: &Connection, pragma: &str) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(&format!("PRAGMA {pragma}"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// A reader that keeps the WAL from being reset while it looks.
fn read_for_a_while(db: &Path, rng: &mut Rng) -> rusqlite::Result<()> {
    let reader = Connection::open(db)?;
    reader.busy_timeout(PATIENCE)?;
    reader.execute_batch("BEGIN")?;
    let _: i64 = reader.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?;
    std::thread::sleep(Duration::from_millis(rng.range(1..80)));
    Ok(())
}

/// Leaves WAL mode, which works only when nobody else has the database open, writes something there, and comes back.
fn leave_wal_mode(conn: &Connection, rng: &mut Rng, page_size: Option<u32>) -> rusqlite::Result<()> {
    let mode = rng.pick(&["delete", "truncate", "persist"]);
    conn.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(()))?;
    if let Some(size) = page_size {
        conn.pragma_update(None, "page_size", size)?;
        conn.execute_batch("VACUUM")?;
    }
    let version = rng.range(0..1000) as i64;
    conn.pragma_update(None, "user_version", version)?;
    if rng.percent(80) {
        conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    }
    Ok(())
}
