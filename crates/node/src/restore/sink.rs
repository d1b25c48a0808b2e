//! Where decoded pages go, in runs of consecutive pages.
//!
//! Runs end at 64 KiB. Larger writes make the kernel keep the file in large pieces, and every later small overwrite by
//! the application then costs up to ten times as much.

use std::fmt;

use rhyolite_format::{PageNumber, PageSize};

use super::RestoreError;

/// Longest run in bytes.
const RUN_BYTES_MAX: usize = 64 * 1024;

/// Takes runs of pages, from any thread, each page at most once.
pub(crate) trait PageSink: Send + Sync + fmt::Debug {
    /// Takes `pages`, a whole number of pages of `page_bytes` each, of which the first is `first`.
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError>;
}

/// Takes pages only to have them checksummed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoSink;

impl PageSink for NoSink {
    fn write_run(&self, _first: PageNumber, _page_bytes: usize, _pages: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// Collects consecutive pages and hands them on in runs.
#[derive(Debug)]
pub(crate) struct RunBuffer<'a> {
    sink: &'a dyn PageSink,
    page_size: PageSize,
    bytes: Vec<u8>,
    /// The first page in `bytes`, when there is one.
    first: Option<PageNumber>,
    pages: usize,
}

impl<'a> RunBuffer<'a> {
    /// An empty run.
    pub(crate) fn new(sink: &'a dyn PageSink, page_size: PageSize) -> Self {
        Self { sink, page_size, bytes: vec![0; RUN_BYTES_MAX], first: None, pages: 0 }
    }

    /// The place for the content of `pgno`; all of it must be filled in before the next call.
    pub(crate) fn page(&mut self, pgno: PageNumber) -> Result<&mut [u8], RestoreError> {
        let size = self.page_size.bytes();
        let follows = self.first.is_some_and(|first| first.index() + self.pages == pgno.index());
        if !follows || (self.pages + 1) * size > self.bytes.len() {
            self.flush()?;
            self.first = Some(pgno);
        }
        let start = self.pages * size;
        self.pages += 1;
        Ok(&mut self.bytes[start..start + size])
    }

    /// Hands on what was collected.
    pub(crate) fn flush(&mut self) -> Result<(), RestoreError> {
        if let Some(first) = self.first.take() {
            let size = self.page_size.bytes();
            self.sink.write_run(first, size, &self.bytes[..self.pages * size])?;
        }
        self.pages = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Runs(Mutex<Vec<(u32, usize)>>);

    impl PageSink for Runs {
        fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
            for (i, page) in pages.chunks(page_bytes).enumerate() {
                assert!(page.iter().all(|b| usize::from(*b) == (first.index() + i) % 251));
            }
            self.0.lock().unwrap().push((first.get(), pages.len() / page_bytes));
            Ok(())
        }
    }

    fn runs_of(page_size: u32, pages: impl IntoIterator<Item = u32>) -> Vec<(u32, usize)> {
        let runs = Runs::default();
        let mut buffer = RunBuffer::new(&runs, PageSize::new(page_size).unwrap());
        for pgno in pages {
            let pgno = PageNumber::new(pgno).unwrap();
            buffer.page(pgno).unwrap().fill((pgno.index() % 251) as u8);
        }
        buffer.flush().unwrap();

        runs.0.into_inner().unwrap()
    }

    #[test]
    fn consecutive_pages_are_handed_on_together_up_to_the_limit() {
        assert_eq!(runs_of(4096, []), []);
        assert_eq!(runs_of(4096, [1, 2, 3, 7, 8, 6]), [(1, 3), (7, 2), (6, 1)]);
        assert_eq!(runs_of(4096, 1..=33), [(1, 16), (17, 16), (33, 1)]);
        assert_eq!(runs_of(65536, [1, 2, 4]), [(1, 1), (2, 1), (4, 1)]);
    }
}
