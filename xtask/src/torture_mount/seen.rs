//! A database in WAL mode as those see it who have its wal-index open.
//!
//! A writer that is killed between the last frame of its commit and the wal-index leaves a commit that nobody sees as long as somebody has
//! the wal-index open, the daemon to its end. Who opens the database after that recovers the WAL, and it is there. Nobody was told of it.

use std::path::Path;

use rhyolite_format::sqlite::wal::{WalHeader, frame_offset};
use rhyolite_format::sqlite::wal_index;

use crate::error::{Context, Outcome};
use crate::oracle::Image;

/// What the files at `database` show by their wal-index, which nobody has recovered yet; taken through copies named `scratch`. `None`
/// without one.
pub(super) fn image(database: &Path, scratch: &Path) -> Outcome<Option<Image>> {
    let beside = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::path::PathBuf::from(name)
    };
    let read = |suffix: &str| std::fs::read(beside(database, suffix));
    let (Ok(mut wal), Ok(index)) = (read("-wal"), read("-shm")) else { return Ok(None) };
    let Ok(Some(index)) = wal_index::decode(&index) else { return Ok(None) };
    let header = &index.header;
    let is_of_wal = WalHeader::decode(&wal).is_ok_and(|wal| wal.salt == header.salt);
    let end = match header.page_size {
        // The frame after the last one begins where that ends.
        Some(page_size) if is_of_wal && header.max_frame > 0 => frame_offset(header.max_frame + 1, page_size),
        _ => 0,
    };
    wal.truncate(usize::try_from(end).context("a WAL that fits into memory")?);
    std::fs::copy(database, scratch).context("copy the database")?;
    std::fs::write(beside(scratch, "-wal"), wal).context("copy the WAL")?;
    let image = Image::of_database(scratch)?;
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(scratch, suffix));
    }
    Ok(Some(image))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::scratch::Scratch;

    /// A commit whose writer dies before it has changed the wal-index: its frames are there, and the header of the wal-index is that from before.
    #[test]
    fn a_commit_that_the_wal_index_does_not_count_is_not_seen() {
        let scratch = Scratch::new("seen").unwrap();
        let (source, dead) = (scratch.path().join("source.db"), scratch.path().join("dead.db"));
        let conn = Connection::open(&source).unwrap();
        conn.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
        let copy = |suffix: &str| {
            let name = |path: &Path| format!("{}{suffix}", path.display());
            std::fs::copy(name(&source), name(&dead)).unwrap();
        };
        let before = Image::of_database(&source).unwrap();
        copy("-shm");
        conn.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        copy("");
        copy("-wal");
        let taken = scratch.path().join("taken.db");
        assert_eq!(image(&dead, &taken).unwrap(), Some(before.clone()));
        let after = Image::of_database(&dead).unwrap();
        assert_ne!(after, before, "it is recovered");
        copy("-shm");
        assert_eq!(image(&source, &taken).unwrap(), Some(after), "once the wal-index counts it, it is seen");
        drop(conn);
        assert_eq!(image(&source, &taken).unwrap(), None, "the wal-index is gone");
    }
}
