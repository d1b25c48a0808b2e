//! `import FILE --into DATABASE`: the content of a file, in one transaction of a database that may be in use.
//!
//! SQLite's online backup does it: the pages go through the journal or the WAL of the database, under its locks, so whoever captures it sees an
//! ordinary transaction.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;

use crate::cli::exit::{Failure, Status};
use crate::cli::output::Output;
use crate::config::units::format_size;

/// How long a writer is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between attempts to get the lock.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Serialize)]
struct IntoLine<'a> {
    source: &'a Path,
    database: &'a Path,
    pages: u32,
    bytes: u64,
}

pub(super) fn run(source: &Path, database: &Path, json: bool) -> Result<(), Failure> {
    let failed = |error: &str| {
        let what = format!("import {} into {}", source.display(), database.display());
        Failure::failed(format!("cannot {what}: {error}"))
    };
    let from = open(source, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| failed(&e.to_string()))?;
    let page_size = read_page_size(&from, source)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut to = open(database, flags).map_err(|e| failed(&e.to_string()))?;
    let (is_new, to_mode) = (text(&to, "page_count").map_err(|e| failed(&e))? == "0", text(&to, "journal_mode"));
    if !is_new && text(&from, "journal_mode").as_deref() == Ok("wal") && to_mode.as_deref() != Ok("wal") {
        let source = source.display();
        return Err(failed(&format!(
            "{source} is in WAL mode, which would come with it: PRAGMA journal_mode = DELETE there first"
        )));
    }
    let pages = copy(&from, &mut to).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) if !to.is_readonly("main").unwrap_or(true) => failed(
            "it is in WAL mode and has another page size: bring the file to its page size (PRAGMA page_size = N; VACUUM) first",
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            failed("somebody else has the database locked all the time; try again when no transaction is open")
        }
        _ => failed(&error.to_string()),
    })?;
    let bytes = u64::from(pages) * u64::from(page_size);
    let mut out = Output::new();
    if json {
        out.json(&IntoLine { source, database, pages, bytes })?;
    } else {
        out.line(format!(
            "{}: {} from {}, in one transaction",
            database.display(),
            format_size(bytes),
            source.display()
        ))?;
    }
    out.finish()
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    Ok(conn)
}

/// What a PRAGMA says.
fn text(conn: &Connection, pragma: &str) -> Result<String, String> {
    let said = conn.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, rusqlite::types::Value>(0));
    match said.map_err(|e| e.to_string())? {
        rusqlite::types::Value::Text(text) => Ok(text),
        rusqlite::types::Value::Integer(number) => Ok(number.to_string()),
        other => Err(format!("PRAGMA {pragma} gives {other:?}")),
    }
}

/// An empty file is a database for SQLite, and hardly what was meant.
fn read_page_size(from: &Connection, source: &Path) -> Result<u32, Failure> {
    let count = from.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0));
    let size = from.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0));
    match (count, size) {
        (Ok(0), _) => Err(Failure::new(Status::Damaged, format!("{} is empty, and no database", source.display()))),
        (Ok(_), Ok(size)) => Ok(size),
        (Err(e), _) | (_, Err(e)) => Err(Failure::new(Status::Damaged, format!("{}: {e}", source.display()))),
    }
}

/// All pages in one step: one transaction. Gives their number.
fn copy(from: &Connection, to: &mut Connection) -> rusqlite::Result<u32> {
    let backup = Backup::new(from, to)?;
    let began = std::time::Instant::now();
    loop {
        match backup.step(-1)? {
            StepResult::Done => return Ok(u32::try_from(backup.progress().pagecount).unwrap_or(0)),
            StepResult::Busy | StepResult::Locked if began.elapsed() > BUSY_TIMEOUT => {
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                    None,
                ));
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}
