//! The rules about pages and checksums (LTX specification, section 5, rules 7, 8, 11 and 14), which encoder, decoder and
//! merge share.

use super::header::LtxHeader;
use crate::{Checksum, DecodeError, ErrorKind, PageNumber};

/// A rule that a file breaks.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) kind: ErrorKind,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub(super) fn decode_error(self, what: &'static str, offset: u64) -> DecodeError {
        DecodeError { what, offset, kind: self.kind, detail: self.detail }
    }
}

/// The pages of a file, as they pass.
#[derive(Debug)]
pub(super) struct PageRules {
    commit: u32,
    lock_page: u32,
    is_snapshot: bool,
    keeps_checksums: bool,
    last: u32,
    /// Checksum of the pages so far, kept for a snapshot with checksums.
    database: Checksum,
}

impl PageRules {
    pub(super) fn new(header: &LtxHeader) -> Self {
        Self {
            commit: header.commit.get(),
            lock_page: header.page_size.lock_page().get(),
            is_snapshot: header.is_snapshot(),
            keeps_checksums: !header.no_checksum,
            last: 0,
            database: Checksum::EMPTY,
        }
    }

    /// Whether the caller must give the checksum of each page to [`PageRules::add_checksum`].
    pub(super) fn wants_checksums(&self) -> bool {
        self.is_snapshot && self.keeps_checksums
    }

    /// Takes the next page, or refuses it and stays as it was.
    pub(super) fn accept(&mut self, pgno: PageNumber) -> Result<(), Violation> {
        let page = pgno.get();
        if page <= self.last {
            return Err(Violation::new(ErrorKind::PageOrder, format!("page {page} after page {}", self.last)));
        }
        if page == self.lock_page {
            return Err(Violation::new(ErrorKind::LockPage, format!("page {page}")));
        }
        if page > self.commit {
            return Err(Violation::new(ErrorKind::Commit, format!("page {page} of {}", self.commit)));
        }
        if self.is_snapshot && page != self.following() {
            return Err(Violation::new(ErrorKind::SnapshotPages, format!("page {page} after page {}", self.last)));
        }
        self.last = page;
        Ok(())
    }

    pub(super) fn add_checksum(&mut self, page: Checksum) {
        debug_assert!(self.wants_checksums());
        self.database = self.database.toggle(page);
    }

    /// The page after the last one, jumping over the lock page.
    fn following(&self) -> u32 {
        let next = self.last.saturating_add(1);
        if next == self.lock_page { next + 1 } else { next }
    }

    /// Checksum of the pages so far, for a snapshot with checksums.
    pub(super) fn database_checksum(&self) -> Option<Checksum> {
        self.wants_checksums().then_some(self.database)
    }

    /// After the last page: whether a snapshot is complete.
    pub(super) fn check_complete(&self) -> Result<(), Violation> {
        if self.is_snapshot && self.following() <= self.commit {
            let detail = format!("ends at page {} of {}", self.last, self.commit);
            return Err(Violation::new(ErrorKind::SnapshotPages, detail));
        }
        Ok(())
    }

    /// After the last page: whether `post` may be the post-apply checksum.
    pub(super) fn check_post_apply(&self, post: Option<Checksum>) -> Result<(), Violation> {
        let Some(post) = post else {
            let allowed = !self.keeps_checksums;
            return if allowed { Ok(()) } else { Err(Violation::new(ErrorKind::PostChecksum, "missing")) };
        };
        if !self.keeps_checksums {
            return Err(Violation::new(ErrorKind::PostChecksum, "present"));
        }
        let expected = if self.commit == 0 { Some(Checksum::EMPTY) } else { self.database_checksum() };
        match expected {
            Some(expected) if expected != post => {
                Err(Violation::new(ErrorKind::PostChecksum, format!("{post}, expected {expected}")))
            }
            _ => Ok(()),
        }
    }
}
