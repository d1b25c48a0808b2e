//! `cargo xtask large`: databases that grow past the page which SQLite keeps for its locks.
//!
//! The page that contains byte 2^30 is never written, has no checksum and is in no log, and every reader and writer of pages must
//! step over it. So a database of a little less than 1 GiB is made (most of it zeros, which cost little), grows past
//! that page while it is replicated, and is repaired by page diff after the state folder was deleted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::process::Process;
use crate::rhyolite::Rhyolite;
use crate::scratch::Scratch;

/// How long any single step may take.
const STEP_LIMIT: Duration = Duration::from_secs(300);
const LOCK_BYTE: u64 = 1 << 30;

/// Runs with large and with usual pages.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    for page_size in [65536, 4096] {
        let scratch = Scratch::new("large")?;
        let db = scratch.path().join("app.db");
        let store = scratch.path().join("backup").display().to_string();
        let began = Instant::now();
        Large { rhyolite: &rhyolite, folder: scratch.path().to_owned(), db, store }.play(page_size)?;
        println!("pages of {page_size} bytes: equal, in {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

struct Large<'a> {
    rhyolite: &'a Rhyolite,
    folder: PathBuf,
    db: PathBuf,
    store: String,
}

impl Large<'_> {
    fn play(&self, page_size: u32) -> Outcome {
        let conn = self.make(page_size)?;
        let mut replicator = self.start()?;
        let first = self.wait_for_points(1, &mut replicator)?;
        grow(&conn, 20)?;
        let size = std::fs::metadata(&self.db).context("size of the database")?.len();
        let middle = self.wait_for_points(first + 20, &mut replicator)?;
        replicator.kill()?;
        std::fs::remove_dir_all(self.folder.join(".app.db-rhyolite")).context("delete the state folder")?;
        grow(&conn, 3)?;
        let mut replicator = self.start()?;
        self.wait_for_points(middle + 1, &mut replicator)?;
        grow(&conn, 2)?;
        // The last connection to close copies the WAL into the database; the replicator's may be the last.
        drop(conn);
        replicator.terminate(STEP_LIMIT)?;
        let grown = checkpoint(&self.db)?;
        if grown <= LOCK_BYTE || size > grown {
            return fail(format!("the database has {grown} bytes: it was to grow past the lock page"));
        }
        let copy = self.folder.join("copy.db");
        self.rhyolite.restore(&self.store, &copy, None)?;
        if let Some(at) = first_difference(&self.db, &copy)? {
            return fail(format!("the copy differs at byte {at}"));
        }
        std::fs::remove_file(&copy).context("remove the copy")?;
        self.rhyolite.restore(&self.store, &copy, Some(&format!("{middle:016x}")))?;
        let conn = Connection::open(&copy).context("open the copy")?;
        let rows: i64 = conn.query_row("SELECT count(*) FROM grown", [], |row| row.get(0)).context("count")?;
        let sound: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).context("check")?;
        if rows == 20 && sound == "ok" { Ok(()) } else { fail(format!("TXID {middle}: {rows} rows, {sound}")) }
    }

    /// A database of zeros that ends 4 MiB before the lock page.
    fn make(&self, page_size: u32) -> Outcome<Connection> {
        let conn = Connection::open(&self.db).context("make the database")?;
        conn.pragma_update(None, "page_size", page_size).context("page size")?;
        conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).context("WAL mode")?;
        conn.pragma_update(None, "synchronous", "OFF").context("synchronous")?;
        conn.execute_batch(
            "CREATE TABLE zeros(body BLOB); CREATE TABLE grown(body BLOB);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 255)
             INSERT INTO zeros SELECT zeroblob(4 << 20) FROM n;",
        )
        .context("fill the database")?;
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).context("checkpoint")?;
        Ok(conn)
    }

    fn start(&self) -> Outcome<Process> {
        let options = ["--sync-interval", "50ms"];
        self.rhyolite.replicate(&self.db, &self.store, &options, &self.folder.join("replicate.log"))
    }

    /// Waits for at least `count` restore points; gives how many there are.
    fn wait_for_points(&self, count: usize, replicator: &mut Process) -> Outcome<usize> {
        let deadline = Instant::now() + STEP_LIMIT;
        loop {
            let points = self.rhyolite.log(&self.store).map_or(0, |points| points.len());
            if points >= count {
                return Ok(points);
            }
            if replicator.ended()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.folder.join("replicate.log")).unwrap_or_default();
                return fail(format!("{points} of {count} restore points: {}", log.trim()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Commits of 400 kB that do not compress.
fn grow(conn: &Connection, commits: u32) -> Outcome {
    (0..commits).try_for_each(|_| conn.execute_batch("INSERT INTO grown VALUES (randomblob(400000))").context("grow"))
}

/// Empties the WAL into the database; gives its size.
fn checkpoint(db: &Path) -> Outcome<u64> {
    let conn = Connection::open(db).context("open the database")?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).context("checkpoint")?;
    drop(conn);
    Ok(std::fs::metadata(db).context("size of the database")?.len())
}

/// The first byte at which two files differ, their ends included.
fn first_difference(a: &Path, b: &Path) -> Outcome<Option<u64>> {
    const PIECE: usize = 1 << 20;
    let open = |path: &Path| File::open(path).map(BufReader::new).context(format!("open {}", path.display()));
    let (mut a, mut b, mut at) = (open(a)?, open(b)?, 0);
    loop {
        let (mut left, mut right) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
        a.by_ref().take(PIECE as u64).read_to_end(&mut left).context("read the database")?;
        b.by_ref().take(PIECE as u64).read_to_end(&mut right).context("read the copy")?;
        if left != right {
            let equal = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + equal as u64));
        }
        if left.is_empty() {
            return Ok(None);
        }
        at += left.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        let scratch = Scratch::new("large-test").unwrap();
        let path = |name| scratch.path().join(name);
        let mut bytes = vec![7; (1 << 20) + 10];
        std::fs::write(path("a"), &bytes).unwrap();
        std::fs::write(path("b"), &bytes).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), None);
        bytes[(1 << 20) + 5] = 8;
        std::fs::write(path("b"), &bytes).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), Some((1 << 20) + 5));
        bytes.truncate(20);
        std::fs::write(path("b"), &bytes).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), Some(20));
    }
}
