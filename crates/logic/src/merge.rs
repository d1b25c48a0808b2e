//! Backlogs: which commits are sent to a replica as one, and how long more are waited for.
//!
//! A replica that has got several commits is where the last of them leads to, so that only the newest copy of each page is of use to it. How it came there is told
//! beside the pages. Whoever wants each commit by itself does not ask for them merged.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use rhyolite_format::stream::merged_size;
use rhyolite_format::{PageCount, PageNumber};

/// So many commits or more at once are a burst: the next ones follow at once.
const BURST_COMMITS: u64 = 8;
/// For so long a burst is gathered.
const BURST: Duration = Duration::from_millis(4);

/// A commit of a backlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit<'a> {
    /// Size of the database after it.
    pub size: PageCount,
    /// The packed form of each page that it changes.
    pub pages: Vec<(PageNumber, &'a [u8])>,
}

/// Commits that are sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// Which of the backlog: one at least.
    pub commits: Range<usize>,
    /// The newest copy of each page that is still there after the last of them, ascending.
    pub pages: Vec<(PageNumber, &'a [u8])>,
}

/// Merges consecutive commits, as many at a time as have room in a frame of `bytes_max`; a larger one is left alone.
pub fn runs<'a>(backlog: &[Commit<'a>], bytes_max: usize) -> Vec<Run<'a>> {
    let mut runs = Vec::new();
    let mut open = Open::default();
    for (index, commit) in backlog.iter().enumerate() {
        if open.commits > 0 && open.size_with(commit) > bytes_max {
            runs.push(std::mem::take(&mut open).end(index));
        }
        open.take(commit);
    }
    if open.commits > 0 {
        runs.push(open.end(backlog.len()));
    }
    runs
}

/// How long more commits are waited for after so many were sent at once: where one comes after another each costs a replica, and the primary, less in larger
/// company. `is_pressing`: more are there already, or somebody may wait until a replica has a commit.
pub fn pause_after(commits: u64, is_pressing: bool) -> Duration {
    if commits >= BURST_COMMITS && !is_pressing { BURST } else { Duration::ZERO }
}

/// A run to which commits are added.
#[derive(Debug, Default)]
struct Open<'a> {
    commits: usize,
    newest: BTreeMap<PageNumber, &'a [u8]>,
    /// Bytes of `newest`.
    bytes: usize,
}

impl<'a> Open<'a> {
    /// The size of the frame if this commit were in it, or more: what it cuts off is not looked for.
    fn size_with(&self, commit: &Commit<'a>) -> usize {
        let (mut pages, mut bytes) = (self.newest.len(), self.bytes);
        for (pgno, page) in &commit.pages {
            match self.newest.get(pgno) {
                Some(before) => bytes -= before.len(),
                None => pages += 1,
            }
            bytes += page.len();
        }
        merged_size(self.commits + 1, pages, bytes)
    }

    fn take(&mut self, commit: &Commit<'a>) {
        self.commits += 1;
        for (pgno, page) in &commit.pages {
            self.bytes += page.len();
            self.bytes -= self.newest.insert(*pgno, page).map_or(0, <[u8]>::len);
        }
        // What is cut off is not what comes in its place later.
        while let Some(last) = self.newest.last_entry().filter(|last| !commit.size.contains(*last.key())) {
            self.bytes -= last.remove().len();
        }
    }

    /// The run, whose last commit is the one before `end`.
    fn end(self, end: usize) -> Run<'a> {
        Run { commits: end - self.commits..end, pages: self.newest.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const BYTES: [u8; 1000] = [0; 1000];

    /// Each commit: the size of the database after it, then its pages with the sizes of their packed forms.
    #[track_caller]
    fn check(backlog: &[(u32, &[(u32, usize)])], bytes_max: usize, expected: &str) {
        let page = |(pgno, len): &(u32, usize)| (PageNumber::new(*pgno).unwrap(), &BYTES[..*len]);
        let commits = backlog
            .iter()
            .map(|(size, pages)| Commit { size: PageCount(*size), pages: pages.iter().map(page).collect() });
        let mut text = String::new();
        for run in runs(&commits.collect::<Vec<_>>(), bytes_max) {
            write!(text, "{}..{}:", run.commits.start, run.commits.end).unwrap();
            run.pages.iter().for_each(|(pgno, page)| write!(text, " {pgno}={}", page.len()).unwrap());
            text.push_str("; ");
        }
        assert_eq!(text.trim_end_matches("; "), expected);
    }

    #[test]
    fn of_each_page_the_newest_copy_is_sent() {
        check(&[], 1000, "");
        check(&[(3, &[(1, 10)])], 1000, "0..1: 1=10");
        check(&[(3, &[(1, 10), (3, 30)]), (3, &[(2, 20), (3, 33)]), (3, &[(1, 11)])], 1000, "0..3: 1=11 2=20 3=33");
    }

    #[test]
    fn what_was_cut_off_is_not_sent_unless_it_came_back() {
        check(&[(4, &[(1, 10), (4, 40)]), (3, &[(1, 11)])], 1000, "0..2: 1=11");
        check(&[(4, &[(4, 40)]), (2, &[(1, 11)]), (4, &[(3, 30), (4, 44)])], 1000, "0..3: 1=11 3=30 4=44");
        check(&[(2, &[(1, 10)]), (0, &[])], 1000, "0..2:");
    }

    #[test]
    fn a_frame_holds_as_many_as_have_room() {
        let limit = merged_size(2, 2, 150);
        check(&[(9, &[(1, 100)]), (9, &[(2, 50)]), (9, &[(3, 10)])], limit, "0..2: 1=100 2=50; 2..3: 3=10");
        check(&[(9, &[(1, 100)]), (9, &[(2, 51)])], limit, "0..1: 1=100; 1..2: 2=51");
        check(&[(9, &[(1, 100)]), (9, &[(1, 158)])], limit, "0..2: 1=158");
        check(&[(9, &[(1, 900)]), (9, &[(1, 900)]), (9, &[(1, 1)])], limit, "0..1: 1=900; 1..3: 1=1");
        // A commit costs something even where all of its pages were there.
        let many: Vec<(u32, &[(u32, usize)])> = vec![(9, &[(1, 100)]); 50];
        check(&many, merged_size(30, 1, 100), "0..30: 1=100; 30..50: 1=100");
    }

    #[test]
    fn more_are_waited_for_only_in_a_burst_that_nobody_waits_for() {
        let waits = |commits, is_pressing| !pause_after(commits, is_pressing).is_zero();
        assert!(!waits(1, false) && !waits(BURST_COMMITS - 1, false) && waits(BURST_COMMITS, false));
        assert!(!waits(1000, true));
    }
}
