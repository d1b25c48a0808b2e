//! What a copy of a database must be, judged without any code of the replicator but the checksum's definition.
//!
//! Three judges, each with a test in which it finds the fault:
//! - [`Image`]: every byte of what SQLite says is committed, taken through a read transaction, compared with a restored file;
//! - [`judge`]: the ledger of [`crate::writer::schema`]: consecutive transactions, true digests, sums and row hashes;
//! - SQLite's own integrity check, and that of the full-text index.

mod image;
#[cfg(test)]
mod tests;

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::error::{Context, Outcome};
use crate::writer::schema::{Entry, item_hash, pair_hash, read_entry};

pub(crate) use image::{Image, first_difference};

/// What a database's own ledger says about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judgement {
    /// Which database this is; `None` before its first commit.
    pub(crate) life: Option<i64>,
    /// The last transaction in it.
    pub(crate) last: Entry,
    /// Transactions that are not where they should be.
    pub(crate) missing: Vec<String>,
    /// Rows, digests or structures that are not what they should be.
    pub(crate) wrong: Vec<String>,
}

impl Judgement {
    /// Whether nothing is missing or wrong.
    pub(crate) fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty()
    }
}

/// Judges the database file at `path`, which nobody else may have open, and which is not changed.
pub(crate) fn judge(path: &Path) -> Outcome<Judgement> {
    let uri = format!("file:{}?immutable=1", path.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri, flags).context("open the copy")?;
    let mut judgement = Judgement::default();
    if let Err(error) = judge_all(&conn, &mut judgement) {
        judgement.wrong.push(format!("cannot be read: {error}"));
    }
    Ok(judgement)
}

fn judge_all(conn: &Connection, judgement: &mut Judgement) -> rusqlite::Result<()> {
    let structure: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if structure != "ok" {
        judgement.wrong.push(format!("integrity check: {structure}"));
    }
    let has = |name: &str| conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1")?.exists([name]);
    if !has("life")? {
        return Ok(());
    }
    judgement.life = conn.query_row("SELECT tag FROM life", [], |row| row.get(0)).ok();
    judge_ledger(conn, judgement)?;
    judge_rows(conn, judgement)?;
    if has("words")? {
        // A read-only database cannot run the index's own check command; a full scan reads every part of it.
        let _: i64 =
            conn.query_row("SELECT count(*) FROM words WHERE words MATCH 'word1 OR word2'", [], |r| r.get(0))?;
    }
    Ok(())
}

fn judge_ledger(conn: &Connection, judgement: &mut Judgement) -> rusqlite::Result<()> {
    let mut statement = conn.prepare("SELECT id, writer, rows, total, digest FROM ledger ORDER BY id")?;
    let mut entries = statement.query_map([], read_entry)?;
    let mut last = Entry::default();
    while let Some(entry) = entries.next().transpose()? {
        if entry.id != last.id + 1 {
            judgement.missing.push(format!("transaction {} follows {}", entry.id, last.id));
        } else if entry.digest != entry.digest_after(last.digest) {
            judgement.wrong.push(format!("transaction {} does not follow the one before it", entry.id));
        }
        last = entry;
    }
    judgement.last = last;
    Ok(())
}

fn judge_rows(conn: &Connection, judgement: &mut Judgement) -> rusqlite::Result<()> {
    let (mut rows, mut total) = (0, 0i64);
    let mut count = |stored: i64, actual: i64, what: String, wrong: &mut Vec<String>| {
        if stored != actual {
            wrong.push(format!("row {what} is not what was written"));
        }
        rows += 1;
        total = total.wrapping_add(actual);
    };
    let mut statement = conn.prepare("SELECT k, body, h FROM items")?;
    let mut items = statement.query([])?;
    while let Some(row) = items.next()? {
        let k: i64 = row.get(0)?;
        let hash = item_hash(k, row.get_ref(1)?.as_blob().unwrap_or_default());
        count(row.get(2)?, hash, format!("item {k}"), &mut judgement.wrong);
    }
    let mut statement = conn.prepare("SELECT a, b, body, h FROM pairs")?;
    let mut pairs = statement.query([])?;
    while let Some(row) = pairs.next()? {
        let (a, b): (String, i64) = (row.get(0)?, row.get(1)?);
        let hash = pair_hash(&a, b, row.get_ref(2)?.as_blob().unwrap_or_default());
        count(row.get(3)?, hash, format!("pair {a} {b}"), &mut judgement.wrong);
    }
    let last = judgement.last;
    if rows != last.rows {
        judgement.missing.push(format!("{rows} rows, {} after transaction {}", last.rows, last.id));
    } else if total != last.total {
        judgement.wrong.push(format!("the rows are not those after transaction {}", last.id));
    }
    Ok(())
}
