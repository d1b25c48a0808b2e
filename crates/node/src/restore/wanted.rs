//! Which pages of the state that is being restored still lack a copy.
//!
//! Files are visited from the newest to the oldest and the first copy of a page that is met is the newest one, so one
//! bit per page is all the memory that "newest page wins" needs: 3 MiB for 100 GiB of 4 KiB pages.
//!
//! Invariants:
//! 1. A page is claimed at most once, so that no two jobs ever write the same place.
//! 2. A page above the size of any newer file is never claimed: that file cut it off (LTX specification, section 9,
//!    "Shrink"). What grew again afterwards stands in the newer files (growth rule).
//! 3. The lock page is never claimed.

use rhyolite_format::{PageCount, PageNumber, PageSize};

/// The pages that still lack a copy.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Bit `pgno - 1` is set while the page is wanted.
    bits: Vec<u64>,
    /// Pages above this were cut off by a newer file than the one being visited.
    limit: PageCount,
    left: u32,
}

impl Wanted {
    /// Every page of a database of this size but the lock page.
    pub(crate) fn new(commit: PageCount, page_size: PageSize) -> Self {
        let pages = commit.get() as usize;
        let mut bits = vec![u64::MAX; pages.div_ceil(64)];
        if let Some(last) = bits.last_mut().filter(|_| !pages.is_multiple_of(64)) {
            *last = (1 << (pages % 64)) - 1;
        }
        let mut wanted = Self { bits, limit: commit, left: commit.get() };
        wanted.claim(page_size.lock_page());
        wanted
    }

    /// Number of pages that still lack a copy.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// Whether the page still lacks a copy and may be taken from the file being visited.
    pub(crate) fn is_wanted(&self, pgno: PageNumber) -> bool {
        let index = pgno.index();
        self.limit.contains(pgno) && self.bits[index / 64] & (1 << (index % 64)) != 0
    }

    /// The pages that were taken, ascending.
    pub(crate) fn taken(&self, page_size: PageSize, commit: PageCount) -> Vec<PageNumber> {
        let lock_page = page_size.lock_page();
        let numbers = self.bits.iter().enumerate().flat_map(|(word, bits)| {
            let mut taken = !bits;
            std::iter::from_fn(move || {
                let bit = taken.trailing_zeros();
                taken &= taken.wrapping_sub(1);
                (bit < 64).then_some(word as u32 * 64 + bit + 1)
            })
        });
        let numbers = numbers.filter_map(PageNumber::new);
        numbers.filter(|pgno| commit.contains(*pgno) && *pgno != lock_page).collect()
    }

    /// Takes the page if it is wanted.
    pub(crate) fn claim(&mut self, pgno: PageNumber) -> bool {
        let wanted = self.is_wanted(pgno);
        if wanted {
            let index = pgno.index();
            self.bits[index / 64] &= !(1 << (index % 64));
            self.left -= 1;
        }
        wanted
    }

    /// Called after a file was visited, before an older one is: pages above its database size are gone.
    pub(crate) fn cut_off(&mut self, commit: PageCount) {
        self.limit = self.limit.min(commit);
    }

    /// The first page that lacks a copy.
    pub(crate) fn first(&self) -> Option<PageNumber> {
        let word = self.bits.iter().position(|bits| *bits != 0)?;
        PageNumber::new(word as u32 * 64 + self.bits[word].trailing_zeros() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pgno: u32) -> PageNumber {
        PageNumber::new(pgno).unwrap()
    }

    #[test]
    fn each_page_is_claimed_once_and_only_within_the_size() {
        for pages in [0, 1, 63, 64, 65, 128, 1000] {
            let mut wanted = Wanted::new(PageCount(pages), PageSize::MIN);
            assert_eq!(wanted.left(), pages);
            assert!(!wanted.claim(page(pages + 1)));
            for pgno in 1..=pages {
                assert_eq!(wanted.first(), Some(page(pgno)));
                assert!(wanted.claim(page(pgno)));
                assert!(!wanted.claim(page(pgno)));
            }
            assert_eq!((wanted.left(), wanted.first()), (0, None));
            let mut wanted = Wanted::new(PageCount(pages), PageSize::MIN);
            assert_eq!(wanted.taken(PageSize::MIN, PageCount(pages)), []);
            let some: Vec<PageNumber> = (1..=pages).step_by(7).map(page).collect();
            assert!(some.iter().all(|pgno| wanted.claim(*pgno)));
            assert_eq!(wanted.taken(PageSize::MIN, PageCount(pages)), some);
        }
    }

    #[test]
    fn pages_that_a_newer_file_cut_off_are_not_taken_from_older_ones() {
        let mut wanted = Wanted::new(PageCount(10), PageSize::MIN);
        wanted.cut_off(PageCount(4));
        wanted.cut_off(PageCount(7));
        assert!(wanted.claim(page(4)));
        assert!(!wanted.claim(page(5)));
        assert_eq!(wanted.left(), 9);
    }

    #[test]
    fn the_lock_page_is_not_wanted() {
        let lock = PageSize::MAX.lock_page();
        let mut wanted = Wanted::new(PageCount(lock.get() + 1), PageSize::MAX);
        assert_eq!(wanted.left(), lock.get());
        assert!(!wanted.claim(lock));
        assert!(wanted.claim(page(lock.get() + 1)));
    }
}
