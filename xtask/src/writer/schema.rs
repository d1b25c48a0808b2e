//! The database that the writers write: what is in it, and the ledger by which any copy of it can be judged.
//!
//! Every transaction appends one row to `ledger`: consecutive `id` from 1, how many rows of content there are, the wrapping sum
//! of their hashes, and a digest that chains to the row before. So a copy of the database proves by itself that it holds
//! exactly the first k transactions, whole: a missing, doubled, torn or foreign transaction breaks the ids, the digests or the sums.
//! `life` tells databases apart that followed one another under one name.

use std::path::Path;

use rhyolite_format::crc::crc64;
use rusqlite::{Connection, OptionalExtension, params};

use crate::rng::Rng;

/// How a database is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making {
    /// Bytes per page.
    pub(crate) page_size: u32,
    /// 0 none, 1 full, 2 incremental.
    pub(crate) auto_vacuum: u32,
    /// Random number of this database's life.
    pub(crate) life: i64,
}

impl Making {
    /// Any page size and vacuum mode, the usual ones more often.
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let page_size = rng.pick(&[512, 1024, 4096, 4096, 4096, 8192, 65536]);
        let auto_vacuum = rng.pick(&[0, 0, 1, 2]);
        Self { page_size, auto_vacuum, life: (rng.draw() >> 1) as i64 }
    }
}

/// What content changed in a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delta {
    /// Rows more, or fewer.
    pub(crate) rows: i64,
    /// Wrapping sum of the hashes that came minus those that went.
    pub(crate) total: i64,
}

impl Delta {
    /// A row came.
    pub(crate) fn add(&mut self, hash: i64) {
        self.rows += 1;
        self.total = self.total.wrapping_add(hash);
    }

    /// A row went.
    pub(crate) fn remove(&mut self, hash: i64) {
        self.rows -= 1;
        self.total = self.total.wrapping_sub(hash);
    }
}

/// A row of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number of the transaction, from 1.
    pub(crate) id: i64,
    /// Process that wrote it.
    pub(crate) writer: i64,
    /// Rows of content after it.
    pub(crate) rows: i64,
    /// Wrapping sum of the hashes of all rows of content after it.
    pub(crate) total: i64,
    /// Chains to the entry before.
    pub(crate) digest: i64,
}

impl Entry {
    /// The digest that this entry must have after `previous`.
    pub(crate) fn digest_after(&self, previous: i64) -> i64 {
        let fields = [previous, self.id, self.writer, self.rows, self.total];
        let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        crc64(&bytes) as i64
    }
}

/// Hash of a row of table `items`.
pub(crate) fn item_hash(k: i64, body: &[u8]) -> i64 {
    let mut bytes = Vec::with_capacity(body.len() + 9);
    bytes.push(1);
    bytes.extend_from_slice(&k.to_be_bytes());
    bytes.extend_from_slice(body);
    crc64(&bytes) as i64
}

/// Hash of a row of table `pairs`.
pub(crate) fn pair_hash(a: &str, b: i64, body: &[u8]) -> i64 {
    let mut bytes = Vec::with_capacity(a.len() + body.len() + 9);
    bytes.push(2);
    bytes.extend_from_slice(&b.to_be_bytes());
    bytes.extend_from_slice(a.as_bytes());
    bytes.extend_from_slice(body);
    crc64(&bytes) as i64
}

/// Makes the database at `path`, in WAL mode, with empty tables.
pub(crate) fn create(path: &Path, making: Making) -> rusqlite::Result<()> {
    create_in_mode(path, making, "wal")
}

/// The same in another journal mode, which it has from its first page on.
pub(crate) fn create_in_mode(path: &Path, making: Making, journal_mode: &str) -> rusqlite::Result<()> {
    let conn = Connection::open(path)?;
    conn.pragma_update(None, "page_size", making.page_size)?;
    conn.pragma_update(None, "auto_vacuum", making.auto_vacuum)?;
    conn.pragma_update_and_check(None, "journal_mode", journal_mode, |_| Ok(()))?;
    conn.execute_batch(
        "BEGIN;
         CREATE TABLE life(tag INTEGER);
         CREATE TABLE ledger(id INTEGER PRIMARY KEY, writer INTEGER, rows INTEGER, total INTEGER, digest INTEGER);
         CREATE TABLE items(k INTEGER PRIMARY KEY, body BLOB, h INTEGER);
         CREATE INDEX items_h ON items(h);
         CREATE TABLE pairs(a TEXT, b INTEGER, body BLOB, h INTEGER, PRIMARY KEY(a, b)) WITHOUT ROWID;",
    )?;
    if has_fts5(&conn)? {
        conn.execute_batch("CREATE VIRTUAL TABLE words USING fts5(body);")?;
    }
    conn.execute("INSERT INTO life VALUES (?1)", [making.life])?;
    conn.execute_batch("COMMIT")
}

/// Whether this SQLite has full-text search.
pub(crate) fn has_fts5(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT sqlite_compileoption_used('ENABLE_FTS5')", [], |row| row.get(0))
}

/// The last entry of the ledger in `schema`; all zeros when it is empty.
pub(crate) fn last_entry(conn: &Connection, schema: &str) -> rusqlite::Result<Entry> {
    let sql = format!("SELECT id, writer, rows, total, digest FROM {schema}.ledger ORDER BY id DESC LIMIT 1");
    Ok(conn.prepare(&sql)?.query_row([], read_entry).optional()?.unwrap_or_default())
}

/// The whole ledger.
pub(crate) fn entries(conn: &Connection) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = conn.prepare("SELECT id, writer, rows, total, digest FROM ledger ORDER BY id")?;
    statement.query_map([], read_entry)?.collect()
}

/// An entry from a row of `id, writer, rows, total, digest`.
pub(crate) fn read_entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { id: row.get(0)?, writer: row.get(1)?, rows: row.get(2)?, total: row.get(3)?, digest: row.get(4)? })
}

/// Writes the ledger's row for a transaction that changed `delta`, and gives it back.
pub(crate) fn append_entry(conn: &Connection, schema: &str, writer: i64, delta: Delta) -> rusqlite::Result<Entry> {
    let last = last_entry(conn, schema)?;
    let (rows, total) = (last.rows + delta.rows, last.total.wrapping_add(delta.total));
    let mut entry = Entry { id: last.id + 1, writer, rows, total, digest: 0 };
    entry.digest = entry.digest_after(last.digest);
    let sql = format!("INSERT INTO {schema}.ledger(id, writer, rows, total, digest) VALUES (?1, ?2, ?3, ?4, ?5)");
    let values = params![entry.id, entry.writer, entry.rows, entry.total, entry.digest];
    conn.prepare(&sql)?.execute(values)?;
    Ok(entry)
}
