//! What writers do inside transactions: content that comes, changes and goes, in every shape that pages can take.
//!
//! Each function runs inside a transaction of its caller and keeps the caller's [`Delta`] true.

use rusqlite::{Connection, OptionalExtension, params};

use super::schema::{Delta, has_fts5, item_hash, pair_hash};
use crate::rng::Rng;

/// Highest key of table `items`.
const KEYS: u64 = 200_000;
/// The longest body: enough overflow pages at every page size.
const BODY_BYTES_MAX: u64 = 80_000;

/// A change of content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// One small row.
    Row,
    /// A hundred small rows.
    Batch,
    /// New bodies for up to twenty rows that are there.
    Update,
    /// Up to fifty neighbouring rows less.
    Delete,
    /// One body of many overflow pages.
    Blob,
    /// Rows of the table without row ids.
    Pairs,
    /// Text for the full-text index.
    Words,
    /// Half of all rows less.
    Shrink,
    /// Bodies of several MB.
    Flood,
}

/// Makes one change in `schema`.
pub(crate) fn change(
    conn: &Connection,
    schema: &str,
    what: Change,
    rng: &mut Rng,
    delta: &mut Delta,
) -> rusqlite::Result<()> {
    match what {
        Change::Row => put_item(conn, schema, rng, 8..120, delta),
        Change::Batch => (0..100).try_for_each(|_| put_item(conn, schema, rng, 8..120, delta)),
        Change::Update => update_items(conn, schema, rng, delta),
        Change::Delete => {
            let count = rng.range(1..50);
            delete_items(conn, schema, rng.range(0..KEYS), count, delta)
        }
        Change::Blob => put_item(conn, schema, rng, 1_000..BODY_BYTES_MAX, delta),
        Change::Pairs => change_pairs(conn, schema, rng, delta),
        Change::Words => change_words(conn, schema, rng),
        Change::Shrink => {
            let rows: i64 = conn.query_row(&format!("SELECT count(*) FROM {schema}.items"), [], |row| row.get(0))?;
            delete_items(conn, schema, 0, rows as u64 / 2, delta)
        }
        Change::Flood => {
            let bodies = rng.range(40..100);
            (0..bodies).try_for_each(|_| put_item(conn, schema, rng, BODY_BYTES_MAX / 2..BODY_BYTES_MAX, delta))
        }
    }
}

fn put_item(
    conn: &Connection,
    schema: &str,
    rng: &mut Rng,
    len: std::ops::Range<u64>,
    delta: &mut Delta,
) -> rusqlite::Result<()> {
    let k = rng.range(1..KEYS) as i64;
    let len = rng.range(len) as usize;
    replace_item(conn, schema, k, &rng.bytes(len), delta)
}

fn replace_item(conn: &Connection, schema: &str, k: i64, body: &[u8], delta: &mut Delta) -> rusqlite::Result<()> {
    let old = format!("SELECT h FROM {schema}.items WHERE k = ?1");
    let old: Option<i64> = conn.prepare(&old)?.query_row([k], |row| row.get(0)).optional()?;
    if let Some(hash) = old {
        delta.remove(hash);
    }
    let hash = item_hash(k, body);
    delta.add(hash);
    let sql = format!("INSERT OR REPLACE INTO {schema}.items(k, body, h) VALUES (?1, ?2, ?3)");
    conn.prepare(&sql)?.execute(params![k, body, hash])?;
    Ok(())
}

fn update_items(conn: &Connection, schema: &str, rng: &mut Rng, delta: &mut Delta) -> rusqlite::Result<()> {
    let sql = format!("SELECT k FROM {schema}.items WHERE k >= ?1 LIMIT ?2");
    let (from, count) = (rng.range(0..KEYS) as i64, rng.range(1..20) as i64);
    let keys: Vec<i64> = conn.prepare(&sql)?.query_map([from, count], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for k in keys {
        let len = rng.range(8..2_000) as usize;
        replace_item(conn, schema, k, &rng.bytes(len), delta)?;
    }
    Ok(())
}

fn delete_items(conn: &Connection, schema: &str, from: u64, count: u64, delta: &mut Delta) -> rusqlite::Result<()> {
    let sql = format!("SELECT k, h FROM {schema}.items WHERE k >= ?1 LIMIT ?2");
    let rows: Vec<(i64, i64)> = conn
        .prepare(&sql)?
        .query_map([from as i64, count as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut delete = conn.prepare(&format!("DELETE FROM {schema}.items WHERE k = ?1"))?;
    for (k, hash) in rows {
        delete.execute([k])?;
        delta.remove(hash);
    }
    Ok(())
}

fn change_pairs(conn: &Connection, schema: &str, rng: &mut Rng, delta: &mut Delta) -> rusqlite::Result<()> {
    for _ in 0..rng.range(1..10) {
        let (a, b) = (format!("key-{}", rng.range(0..40)), rng.range(0..100) as i64);
        let find = format!("SELECT h FROM {schema}.pairs WHERE a = ?1 AND b = ?2");
        let old: Option<i64> = conn.prepare(&find)?.query_row(params![a, b], |row| row.get(0)).optional()?;
        if let Some(hash) = old {
            delta.remove(hash);
        }
        if old.is_some() && rng.percent(30) {
            let sql = format!("DELETE FROM {schema}.pairs WHERE a = ?1 AND b = ?2");
            conn.prepare(&sql)?.execute(params![a, b])?;
            continue;
        }
        let len = rng.range(4..400) as usize;
        let body = rng.bytes(len);
        let hash = pair_hash(&a, b, &body);
        delta.add(hash);
        let sql = format!("INSERT OR REPLACE INTO {schema}.pairs(a, b, body, h) VALUES (?1, ?2, ?3, ?4)");
        conn.prepare(&sql)?.execute(params![a, b, body, hash])?;
    }
    Ok(())
}

/// The full-text index checks itself (its own integrity check), so it takes no part in the sums.
fn change_words(conn: &Connection, schema: &str, rng: &mut Rng) -> rusqlite::Result<()> {
    if !has_fts5(conn)? {
        return Ok(());
    }
    if rng.percent(20) {
        let sql = format!("DELETE FROM {schema}.words WHERE rowid = (SELECT min(rowid) FROM {schema}.words)");
        conn.prepare(&sql)?.execute([])?;
        return Ok(());
    }
    let text: Vec<String> = (0..rng.range(3..30)).map(|_| format!("word{}", rng.range(0..500))).collect();
    let sql = format!("INSERT INTO {schema}.words(body) VALUES (?1)");
    conn.prepare(&sql)?.execute([text.join(" ")])?;
    Ok(())
}
