//! What somebody writes into a WAL while he has SQLite's write lock: the frames of one transaction, and the write that would commit it ("WAL File Format" of SQLite's file format).
//!
//! SQLite writes the header and the page of each frame one after the other, the frame with a size of the database last. A page that was written before in the
//! same transaction is written in its place, and then checksums are written once more at the very end, after that frame: so no checksum is looked at here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rhyolite_format::sqlite::wal::{FRAME_HEADER_SIZE, WAL_HEADER_SIZE, frame_size};
use rhyolite_format::{PageCount, PageNumber, PageSize};

use crate::forward::transparent::Changes;

/// Bytes of a WAL header before the page size.
const PAGE_SIZE_AT: usize = 8;
/// Bytes of a frame header that say which page it is, and how large the database is after it.
const MEANING: usize = 8;
/// Bytes of a frame header that depend on the frames before it.
const CHECKSUMS: std::ops::Range<usize> = 16..FRAME_HEADER_SIZE;
/// The largest transaction, in bytes of its frames.
const BYTES_MAX: u64 = 256 << 20;

/// The frames of one transaction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    /// So many frames before it count.
    committed: u32,
    page_size: Option<PageSize>,
    /// Where the first of them begins.
    first: Option<u64>,
    /// Where the one begins that has committed it.
    commit: Option<u64>,
}

/// A write that is about to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
}

/// What such a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is to be made.
    Written,
    /// It completes the frame that begins there, and with it the transaction.
    Commits(u64),
    /// It is to be refused: SQLite does not write like this.
    Odd,
}

impl Write<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    /// What the file has there after this write.
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        let (from, to) = (self.offset.clamp(at, end), self.end().clamp(at, end));
        let index = |place: u64| (place - at) as usize;
        self.file.read_exact_at(&mut bytes[..index(from)], at)?;
        if from < to {
            let here = (from - self.offset) as usize;
            bytes[index(from)..index(to)].copy_from_slice(&self.data[here..][..index(to) - index(from)]);
        }
        self.file.read_exact_at(&mut bytes[index(to)..], to)
    }

    /// Page and size of the frame that begins there.
    fn meaning(&self, frame: u64) -> io::Result<(u32, u32)> {
        let mut bytes = [0; MEANING];
        self.read(frame, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
    }
}

impl Frames {
    /// Whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The transaction comes behind so many frames. Those are read by others, and nobody writes over them.
    pub(super) fn begin_after(&mut self, committed: u32) {
        self.committed = committed;
    }

    /// Whether the transaction is committed.
    pub(super) fn is_committed(&self) -> bool {
        self.commit.is_some()
    }

    /// The frame that completes it was written.
    pub(super) fn committed(&mut self, frame: u64) {
        self.commit = Some(frame);
    }

    /// Takes a write in.
    pub(super) fn take(&mut self, write: &Write<'_>) -> io::Result<Step> {
        if write.offset == 0 && write.data.len() >= WAL_HEADER_SIZE && self.committed == 0 {
            // Another WAL begins, of another transaction's.
            self.page_size = None;
        }
        let page_size = match self.page_size {
            Some(page_size) => page_size,
            None => {
                let mut bytes = [0; 4];
                write.read(PAGE_SIZE_AT as u64, &mut bytes)?;
                let Some(found) = PageSize::new(u32::from_be_bytes(bytes)) else { return Ok(Step::Odd) };
                *self.page_size.insert(found)
            }
        };
        let counts_to = u64::from(self.committed) * frame_size(page_size) as u64;
        if self.committed > 0 && write.offset < WAL_HEADER_SIZE as u64 + counts_to {
            return Ok(Step::Odd);
        }
        if self.is_committed() {
            return self.take_after(write, page_size);
        }
        let (header, size) = (WAL_HEADER_SIZE as u64, frame_size(page_size) as u64);
        let mut frame = header + write.offset.saturating_sub(header) / size * size;
        while frame < write.end() {
            let has = |place: u64| (write.offset..write.end()).contains(&place);
            if has(frame + FRAME_HEADER_SIZE as u64 - 1) {
                self.first = Some(self.first.map_or(frame, |first| first.min(frame)));
            }
            if has(frame + size - 1) && write.meaning(frame)?.1 != 0 {
                let is_all = frame + size == write.end() && self.first.is_some_and(|first| first <= frame);
                return Ok(if is_all { Step::Commits(frame) } else { Step::Odd });
            }
            frame += size;
        }
        Ok(Step::Written)
    }

    /// What may come after the commit: checksums, and the last frame once more, by which SQLite fills a sector where a write may spoil what lies beside it. That comes in pieces,
    /// because what fills the sector is synced before what follows.
    fn take_after(&self, write: &Write<'_>, page_size: PageSize) -> io::Result<Step> {
        let (Some(first), Some(commit)) = (self.first, self.commit) else { return Ok(Step::Odd) };
        let (size, start) = (frame_size(page_size) as u64, WAL_HEADER_SIZE as u64);
        if write.offset <= commit {
            let is_header = write.offset >= first
                && (write.offset - start).is_multiple_of(size)
                && write.data.len() == FRAME_HEADER_SIZE;
            let mut there = [0; MEANING];
            write.file.read_exact_at(&mut there, write.offset)?;
            return Ok(if is_header && write.data[..MEANING] == there { Step::Written } else { Step::Odd });
        }
        if write.offset < commit + size {
            return Ok(Step::Odd);
        }
        let mut there = vec![0; frame_size(page_size)];
        write.file.read_exact_at(&mut there, commit)?;
        let is_same = write.data.iter().zip(write.offset - start..).all(|(byte, place)| {
            let place = (place % size) as usize;
            CHECKSUMS.contains(&place) || there[place] == *byte
        });
        Ok(if is_same { Step::Written } else { Step::Odd })
    }

    /// The pages of the transaction, which `write` completes with the frame that begins at `commit`. `None` when it is too large.
    pub(super) fn changes(&self, write: &Write<'_>, commit: u64) -> io::Result<Option<Changes>> {
        let (Some(page_size), Some(first)) = (self.page_size, self.first) else {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        };
        if write.end() - first > BYTES_MAX {
            return Ok(None);
        }
        let count = PageCount(write.meaning(commit)?.1);
        let mut pages = BTreeMap::new();
        for frame in (first..=commit).step_by(frame_size(page_size)) {
            let Some(pgno) = PageNumber::new(write.meaning(frame)?.0).filter(|pgno| count.contains(*pgno)) else {
                continue;
            };
            let mut page = vec![0; page_size.bytes()];
            write.read(frame + FRAME_HEADER_SIZE as u64, &mut page)?;
            pages.insert(pgno, page);
        }
        Ok(Some(Changes { page_size, commit: count, pages }))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    const PAGE: usize = 512;
    const SIZE: u64 = (FRAME_HEADER_SIZE + PAGE) as u64;

    /// Writes a file piece by piece, each as SQLite would.
    struct Wal {
        file: File,
        frames: Frames,
    }

    impl Wal {
        fn new() -> Self {
            let mut this = Self { file: tempfile::tempfile().unwrap(), frames: Frames::default() };
            let mut header = vec![0; WAL_HEADER_SIZE];
            header[PAGE_SIZE_AT..][..4].copy_from_slice(&(PAGE as u32).to_be_bytes());
            assert_eq!(this.write(0, &header), Step::Written);
            this
        }

        fn look(&mut self, offset: u64, data: &[u8]) -> Step {
            self.frames.take(&Write { file: &self.file, offset, data }).unwrap()
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Step {
            let step = self.look(offset, data);
            if step == Step::Written {
                self.file.write_all_at(data, offset).unwrap();
            }
            step
        }

        fn head(&mut self, frame: u64, pgno: u32, commit: u32) -> Step {
            self.write(at(frame), &header(pgno, commit))
        }

        fn page(&mut self, frame: u64, byte: u8) -> Step {
            self.write(at(frame) + FRAME_HEADER_SIZE as u64, &[byte; PAGE])
        }
    }

    fn at(frame: u64) -> u64 {
        WAL_HEADER_SIZE as u64 + frame * SIZE
    }

    fn header(pgno: u32, commit: u32) -> Vec<u8> {
        let mut header = vec![9; FRAME_HEADER_SIZE];
        header[..4].copy_from_slice(&pgno.to_be_bytes());
        header[4..8].copy_from_slice(&commit.to_be_bytes());
        header
    }

    fn pages(changes: &Changes) -> Vec<(u32, u8)> {
        changes.pages.iter().map(|(pgno, page)| (pgno.get(), page[0])).collect()
    }

    #[test]
    fn the_write_that_completes_the_last_frame_commits() {
        let mut wal = Wal::new();
        assert_eq!((wal.head(3, 2, 0), wal.page(3, 1)), (Step::Written, Step::Written));
        assert_eq!((wal.head(4, 5, 0), wal.page(4, 2)), (Step::Written, Step::Written));
        assert_eq!((wal.head(5, 9, 0), wal.page(5, 3)), (Step::Written, Step::Written));
        assert_eq!(wal.page(3, 7), Step::Written, "a page in its place once more");
        assert_eq!(wal.head(6, 1, 6), Step::Written);
        assert_eq!(wal.page(6, 4), Step::Commits(at(6)));
        let data = [4; PAGE];
        let write = Write { file: &wal.file, offset: at(6) + FRAME_HEADER_SIZE as u64, data: &data };
        let changes = wal.frames.changes(&write, at(6)).unwrap().unwrap();
        assert_eq!((pages(&changes), changes.commit), (vec![(1, 4), (2, 7), (5, 2)], PageCount(6)));
        wal.file.write_all_at(&data, write.offset).unwrap();
        wal.frames.committed(at(6));
        assert_eq!(wal.head(4, 5, 0), Step::Written, "its checksum");
        assert_eq!((wal.head(7, 1, 6), wal.page(7, 4)), (Step::Written, Step::Written), "the same once more");
        let piece = at(8) + FRAME_HEADER_SIZE as u64;
        assert_eq!(
            (wal.head(8, 1, 6), wal.write(piece, &[4; 100])),
            (Step::Written, Step::Written),
            "to the end of a sector"
        );
        assert_eq!(wal.write(piece + 100, &[4; PAGE - 100]), Step::Written, "and the rest of it");
        assert_eq!(wal.write(piece + 100, &[3; PAGE - 100]), Step::Odd);
        for odd in [wal.head(4, 6, 0), wal.head(8, 2, 6), wal.page(7, 5), wal.page(4, 2), wal.head(2, 2, 0)] {
            assert_eq!(odd, Step::Odd);
        }
    }

    #[test]
    fn a_frame_may_come_in_one_piece_or_in_many() {
        for piece in [1, 7, 24, 100, 536] {
            let mut wal = Wal::new();
            let frame = [header(4, 4), vec![5; PAGE]].concat();
            let mut steps = Vec::new();
            for (index, bytes) in frame.chunks(piece).enumerate() {
                let offset = at(0) + (index * piece) as u64;
                steps.push(wal.write(offset, bytes));
            }
            let last = steps.pop();
            assert!(steps.iter().all(|step| *step == Step::Written), "{piece}");
            assert_eq!(last, Some(Step::Commits(at(0))), "{piece}");
        }
    }

    #[test]
    fn frames_that_count_are_written_over_by_nobody() {
        let mut wal = Wal::new();
        wal.frames.begin_after(3);
        for offset in [0, 1, 31, 32, at(1), at(2) + 24, at(3) - 1] {
            assert_eq!(wal.look(offset, &[0; WAL_HEADER_SIZE]), Step::Odd, "{offset}");
        }
        assert_eq!((wal.head(3, 2, 4), wal.page(3, 1)), (Step::Written, Step::Commits(at(3))));
        assert_eq!(wal.look(at(2), &header(2, 4)), Step::Odd);
        wal.frames = Frames::default();
        assert_eq!(wal.look(at(1), &header(2, 4)), Step::Written, "the WAL begins anew");
    }

    #[test]
    fn what_goes_on_behind_a_commit_is_odd() {
        let mut wal = Wal::new();
        let two = [header(4, 4), vec![5; PAGE], header(3, 0)].concat();
        assert_eq!(wal.look(at(0), &two), Step::Odd);
        let mut empty = Wal { file: tempfile::tempfile().unwrap(), frames: Frames::default() };
        assert_eq!(empty.write(0, &[0; WAL_HEADER_SIZE]), Step::Odd, "no page size");
    }

    /// Every write of a real SQLite: the pages found are those that a reader finds.
    #[test]
    fn transactions_of_sqlite_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("PRAGMA page_size=512; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0").unwrap();
        db.execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, hex(randomblob(3000)))").unwrap();
        let bytes = std::fs::read(folder.path().join("x.db-wal")).unwrap();
        let copy = tempfile::tempfile().unwrap();
        let (mut frames, mut commits, mut offset) = (Frames::default(), 0, 0);
        for piece in std::iter::once(WAL_HEADER_SIZE).chain(std::iter::repeat([FRAME_HEADER_SIZE, PAGE]).flatten()) {
            let Some(data) = bytes.get(offset..offset + piece) else { break };
            let write = Write { file: &copy, offset: offset as u64, data };
            if let Step::Commits(frame) = frames.take(&write).unwrap() {
                let changes = frames.changes(&write, frame).unwrap().unwrap();
                assert!(!changes.pages.is_empty());
                (frames, commits) = (Frames::default(), commits + 1);
            }
            copy.write_all_at(data, offset as u64).unwrap();
            offset += piece;
        }
        assert_eq!((commits, offset), (2, bytes.len()));
    }
}
