//! What the pages of a file add up to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rhyolite_format::follow::PageOneFields;
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize};

use crate::restore::RestoreError;

/// The checksums of a file's pages.
#[derive(Debug)]
pub(super) struct PageSums {
    pub(super) table: Vec<u64>,
    pub(super) checksum: Checksum,
    /// The change counter that the file has.
    pub(super) change_counter: u32,
}

/// Pages of a file, one after the other, and what they add up to.
pub(super) struct Summing<'a> {
    size: PageSize,
    commit: PageCount,
    /// Page 1 is taken with these fields, where they are given.
    page_one: Option<&'a PageOneFields>,
    table: Vec<u64>,
    change_counter: u32,
}

impl<'a> Summing<'a> {
    pub(super) fn new((size, commit): (PageSize, PageCount), page_one: Option<&'a PageOneFields>) -> Self {
        Self { size, commit, page_one, table: vec![0; commit.get() as usize], change_counter: 0 }
    }

    pub(super) fn take(&mut self, pgno: PageNumber, page: &mut [u8]) {
        if pgno == self.size.lock_page() || !self.commit.contains(pgno) {
            return;
        }
        if pgno == PageNumber::FIRST {
            self.change_counter = PageOneFields::of(page).change_counter;
            if let Some(fields) = self.page_one {
                fields.put(page);
            }
        }
        self.table[pgno.index()] = Checksum::of_page(pgno, page).get();
    }

    pub(super) fn finish(self) -> PageSums {
        let checksum = Checksum::from_crc(self.table.iter().fold(0, |bits, page| bits ^ page));
        PageSums { table: self.table, checksum, change_counter: self.change_counter }
    }
}

/// Reads a whole file that no WAL belongs to; page 1 with other fields than it has, where they are given.
pub(super) fn page_sums(
    file: &File,
    path: &Path,
    (size, commit): (PageSize, PageCount),
    page_one: Option<&PageOneFields>,
) -> Result<PageSums, RestoreError> {
    let mut summing = Summing::new((size, commit), page_one);
    let mut page = vec![0; size.bytes()];
    for pgno in (1..=commit.get()).filter_map(PageNumber::new) {
        if pgno != size.lock_page() {
            file.read_exact_at(&mut page, pgno.offset(size)).map_err(|e| RestoreError::io("read", path, e))?;
            summing.take(pgno, &mut page);
        }
    }
    Ok(summing.finish())
}
