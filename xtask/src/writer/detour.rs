//! What a transaction may go through besides its change, and leaves no trace of: savepoints that are rolled back after they have
//! changed so much that pages were spilled into the file or the WAL.

use rusqlite::Connection;

/// Changes every row, and takes it back. Runs inside a transaction.
pub(crate) fn take(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(
        "SAVEPOINT detour;
         UPDATE items SET body = zeroblob(500), h = 0;
         DELETE FROM pairs;
         ROLLBACK TO detour;
         RELEASE detour;",
    )
}

/// Whether the SQLite of this version (`rusqlite::version_number`) keeps all commits when that is done. In WAL mode 3.40 to 3.46 lose
/// some, with nobody else at the files.
pub(crate) fn is_harmless(is_wal: bool, version: i32) -> bool {
    !is_wal || !(3_040_000..3_047_000).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::scratch::Scratch;
    use crate::writer::mix::{self, Change};
    use crate::writer::schema::{self, Delta, Making};

    #[test]
    fn a_detour_leaves_no_trace() {
        let scratch = Scratch::new("detour").unwrap();
        let path = scratch.path().join("app.db");
        schema::create_in_mode(&path, Making { page_size: 1024, auto_vacuum: 0, life: 1 }, "delete").unwrap();
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA cache_size = 5; BEGIN").unwrap();
        let mut delta = Delta::default();
        mix::change(&conn, "main", Change::Batch, &mut Rng::new(3), &mut delta).unwrap();
        schema::append_entry(&conn, "main", 1, delta).unwrap();
        take(&conn).unwrap();
        conn.execute_batch("COMMIT").unwrap();
        drop(conn);
        let judgement = crate::oracle::judge(&path).unwrap();
        assert!(judgement.is_sound() && judgement.last.id == 1 && judgement.last.rows > 0, "{judgement:?}");
    }

    #[test]
    fn savepoints_are_left_alone_where_sqlite_loses_commits() {
        assert!(is_harmless(false, 3_040_001) && is_harmless(true, 3_047_000) && is_harmless(true, 3_039_004));
        assert!(!is_harmless(true, 3_040_001) && !is_harmless(true, 3_046_001));
    }
}
