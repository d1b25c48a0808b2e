//! The page-checksum table: one checksum for each page that the log has captured.
//!
//! It says what the log holds. The checksum of the whole database is the XOR of its entries, kept with every change, so a
//! transaction costs as much as it has pages. Comparing a database with its table gives exactly the pages that the log lacks.
//!
//! Invariants: an entry is 0 for the lock page only; the table has as many entries as the captured database has pages;
//! [`PageTable::checksum`] is the XOR of all entries.

use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize};

/// Checksums of all captured pages of one database.
#[derive(Clone, Debug)]
pub struct PageTable {
    page_size: PageSize,
    entries: Vec<u64>,
    checksum: Checksum,
}

impl PageTable {
    /// The table of an empty database.
    pub fn empty(page_size: PageSize) -> Self {
        Self { page_size, entries: Vec::new(), checksum: Checksum::EMPTY }
    }

    /// A table read from somewhere else. Entry i is for page i + 1; 0 is for the lock page.
    pub fn from_entries(page_size: PageSize, entries: Vec<u64>) -> Self {
        let sum = entries.iter().fold(0, |sum, entry| sum ^ entry);
        Self { page_size, entries, checksum: Checksum::from_crc(sum) }
    }

    /// The page size of the database.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The captured size of the database.
    pub fn page_count(&self) -> PageCount {
        PageCount(u32::try_from(self.entries.len()).expect("SQLite has at most 2^32 - 2 pages"))
    }

    /// The checksum of the whole captured database.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// All entries, page 1 first.
    pub fn entries(&self) -> &[u64] {
        &self.entries
    }

    /// The checksum of one page; `None` beyond the captured size and for the lock page.
    pub fn get(&self, pgno: PageNumber) -> Option<Checksum> {
        self.entries.get(pgno.index()).copied().and_then(Checksum::from_raw)
    }

    /// Takes in a page's new checksum. The table grows to hold it; pages in between count as never captured.
    pub fn set(&mut self, pgno: PageNumber, page: Checksum) {
        assert!(pgno != self.page_size.lock_page(), "the lock page has no checksum");
        if pgno.index() >= self.entries.len() {
            self.entries.resize(pgno.index() + 1, 0);
        }
        let entry = &mut self.entries[pgno.index()];
        if let Some(old) = Checksum::from_raw(*entry) {
            self.checksum = self.checksum.toggle(old);
        }
        *entry = page.get();
        self.checksum = self.checksum.toggle(page);
    }

    /// Sets the size of the database: entries beyond it are dropped.
    pub fn set_page_count(&mut self, commit: PageCount) {
        let count = commit.get() as usize;
        for entry in self.entries.drain(count.min(self.entries.len())..) {
            if let Some(old) = Checksum::from_raw(entry) {
                self.checksum = self.checksum.toggle(old);
            }
        }
        self.entries.resize(count, 0);
    }

    /// The first page without a checksum, the lock page aside. `None` in a whole table.
    pub fn first_hole(&self) -> Option<PageNumber> {
        let lock_page = self.page_size.lock_page();
        let mut pages = (1..=self.page_count().get()).filter_map(PageNumber::new);
        pages.find(|pgno| *pgno != lock_page && self.entries[pgno.index()] == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pgno: u32, fill: u8) -> (PageNumber, Checksum) {
        let pgno = PageNumber::new(pgno).unwrap();
        (pgno, Checksum::of_page(pgno, &[fill; 512]))
    }

    #[test]
    fn checksum_follows_changes_growth_and_shrink() {
        let mut table = PageTable::empty(PageSize::MIN);
        for (pgno, sum) in [page(1, 1), page(2, 2), page(3, 3), page(2, 9)] {
            table.set(pgno, sum);
        }
        let expected = [page(1, 1), page(2, 9), page(3, 3)].iter().fold(Checksum::EMPTY, |sum, (_, p)| sum.toggle(*p));
        assert_eq!(table.checksum(), expected);
        table.set_page_count(PageCount(1));
        assert_eq!((table.checksum(), table.page_count()), (page(1, 1).1, PageCount(1)));
        table.set_page_count(PageCount(3));
        assert_eq!(table.first_hole(), PageNumber::new(2));
        let copy = PageTable::from_entries(PageSize::MIN, table.entries().to_vec());
        assert_eq!(copy.checksum(), table.checksum());
        table.set_page_count(PageCount(0));
        assert_eq!(table.checksum(), Checksum::EMPTY);
    }
}
