//! Reads the page index of one large LTX file in the store, a piece at a time.
//!
//! The index of a snapshot of 100 GiB takes some 300 MB; what is held of it is one piece.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::ltx::{PageIndex, PageIndexCursor, PageIndexEntry};

use super::RestoreError;
use super::reader::Reader;

/// Bytes at the end of a file that are asked for first. They hold the index of a file of some 6,000 pages.
const TAIL_BYTES: u64 = 64 * 1024;
/// Bytes of index that are read at once after that.
const PIECE_BYTES: u64 = 512 * 1024;
/// Length of the size field behind the entries of an index.
const SIZE_FIELD_LEN: u64 = 8;

/// An LTX file within an object.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The object.
    pub(crate) key: Arc<str>,
    /// Where the file lies in it.
    pub(crate) range: Range<u64>,
}

impl Span {
    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where the tail that is read first lies in the object.
    pub(crate) fn tail(&self) -> Range<u64> {
        self.range.end.saturating_sub(TAIL_BYTES).max(self.range.start)..self.range.end
    }
}

/// The entries of a page index, in pieces.
#[derive(Debug)]
pub(crate) struct IndexReader {
    reader: Arc<Reader>,
    span: Span,
    cursor: PageIndexCursor,
    /// The end of the file, and the offset in the file where it starts.
    tail: Bytes,
    tail_start: u64,
    /// The varints of the index that are still to be read, as offsets in the file.
    rest: Range<u64>,
}

impl IndexReader {
    /// A reader of the index of `span`, of which `tail` are the bytes of [`Span::tail`].
    pub(crate) fn new(reader: Arc<Reader>, span: Span, tail: Bytes) -> Result<Self, RestoreError> {
        let index = PageIndex::locate(&tail, span.len()).map_err(|e| RestoreError::damaged(&span.key, e))?;
        let tail_start = span.len() - tail.len() as u64;
        let rest = index.start..index.end - SIZE_FIELD_LEN;
        Ok(Self { reader, cursor: PageIndexCursor::new(index.start), span, tail, tail_start, rest })
    }

    /// The next entries; `None` after the last, when the whole index has proved to be sound.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<PageIndexEntry>>, RestoreError> {
        let damaged = |e| RestoreError::damaged(&self.span.key, e);
        if self.rest.is_empty() {
            return self.cursor.finish().map(|()| None).map_err(damaged);
        }
        let piece = if self.rest.start >= self.tail_start {
            let within = |offset: u64| (offset - self.tail_start) as usize;
            self.tail.slice(within(self.rest.start)..within(self.rest.end))
        } else {
            let end = self.rest.end.min(self.rest.start + PIECE_BYTES);
            let start = self.span.range.start;
            self.reader.get_range(&self.span.key, start + self.rest.start..start + end).await?
        };
        self.rest.start += piece.len() as u64;
        let mut entries = Vec::with_capacity(piece.len() / 8);
        self.cursor.feed(&piece, &mut entries).map_err(damaged)?;
        Ok(Some(entries))
    }
}
