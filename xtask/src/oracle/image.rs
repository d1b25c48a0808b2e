//! All bytes of a database as SQLite sees them in one read transaction, and where two of them differ.

use std::path::Path;
use std::time::Duration;

use rhyolite_format::{Checksum, PageNumber, PageSize};
use rusqlite::{Connection, ErrorCode, ffi};

use crate::error::{Context, Outcome, fail};

/// The committed state of a database at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// What a plain copy of the database file would hold after a complete checkpoint.
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes)", self.bytes.len())
    }
}

impl Image {
    /// Takes the image of the database at `path` through a connection of its own, whoever else is writing.
    ///
    /// Two processes that at once undo a transaction which a killed writer left over several databases race for its
    /// super-journal; the one that comes second is told that it cannot open it, and may try again.
    pub(crate) fn of_database(path: &Path) -> Outcome<Self> {
        let is_settled = |conn: &Connection| {
            let read = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
            !read.is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::CannotOpen))
        };
        for _ in 0..50 {
            if Connection::open(path).is_ok_and(|conn| is_settled(&conn)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self::of_settled_database(path)
    }

    fn of_settled_database(path: &Path) -> Outcome<Self> {
        let conn = Connection::open(path).context("open the source")?;
        conn.busy_timeout(Duration::from_secs(10)).context("busy timeout")?;
        conn.execute_batch("BEGIN").context("begin")?;
        let _: i64 =
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).context("read the source")?;
        let mut size: ffi::sqlite3_int64 = 0;
        // SAFETY: the handle is open for as long as `conn`; "main" ends with a zero byte; `size` outlives the call.
        let data = unsafe { ffi::sqlite3_serialize(conn.handle(), c"main".as_ptr(), &raw mut size, 0) };
        if data.is_null() {
            return fail("SQLite gave no image of the source");
        }
        // SAFETY: SQLite says that `data` has `size` bytes, and nobody else knows them.
        let bytes = unsafe { std::slice::from_raw_parts(data, size as usize) }.to_vec();
        // SAFETY: `data` came from sqlite3_serialize without the no-copy flag, so it is ours to free, once.
        unsafe { ffi::sqlite3_free(data.cast()) };
        Ok(Self { bytes })
    }

    /// Reads a file that nobody writes.
    pub(crate) fn of_file(path: &Path) -> Outcome<Self> {
        Ok(Self { bytes: std::fs::read(path).context(format!("read {}", path.display()))? })
    }

    /// Without what lies behind the last page that the header counts, and whether something did. A writer that is killed between its commit and the cut
    /// that goes with it leaves such pages, and SQLite does not read them ("In-header database size").
    pub(crate) fn committed(mut self) -> (Self, bool) {
        let word = |at: usize| self.bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let is_valid = word(24) == word(92) && word(28) != Some(0);
        let counted = word(28).filter(|_| is_valid).map(|pages| pages as usize * self.page_size());
        match counted.filter(|counted| *counted < self.bytes.len()) {
            Some(counted) => {
                self.bytes.truncate(counted);
                (self, true)
            }
            None => (self, false),
        }
    }

    /// The page size in the header; 0 for an empty database.
    pub(crate) fn page_size(&self) -> usize {
        match self.bytes.get(16..18) {
            Some([0, 1]) => 65536,
            Some([a, b]) => usize::from(*a) << 8 | usize::from(*b),
            _ => 0,
        }
    }

    /// The checksum of the whole database, as a log states it after a transaction.
    pub(crate) fn checksum(&self) -> Outcome<Checksum> {
        if self.bytes.is_empty() {
            return Ok(Checksum::EMPTY);
        }
        let size = PageSize::new(self.page_size() as u32).context("the image has no page size")?;
        let pages = (1..).filter_map(PageNumber::new).zip(self.bytes.chunks(size.bytes()));
        let sum = pages.filter(|(pgno, _)| *pgno != size.lock_page());
        Ok(sum.fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(Checksum::of_page(pgno, page))))
    }
}

/// Where `copy` first differs from `source`, in words; `None` when they are equal.
pub(crate) fn first_difference(source: &Image, copy: &Image) -> Option<String> {
    if source == copy {
        return None;
    }
    let page_size = source.page_size().max(512);
    let at = source.bytes.iter().zip(&copy.bytes).position(|(a, b)| a != b);
    let sizes = format!("{} bytes against {}", source.bytes.len(), copy.bytes.len());
    Some(match at {
        None => sizes,
        Some(at) => {
            let differing = source.bytes.chunks(page_size).zip(copy.bytes.chunks(page_size)).filter(|(a, b)| a != b);
            format!("{} pages differ, first at byte {at} (page {}); {sizes}", differing.count(), at / page_size + 1)
        }
    })
}
