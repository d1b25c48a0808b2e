//! The pages of a database in WAL mode as they are after a given frame.
//!
//! A page is the last of its frames up to the given one, or, without a frame, what the database file holds. That is stable
//! as long as a read transaction is held that began before the frame was read from the wal-index: checkpoints then copy
//! only frames that this view reads from the WAL anyway, or nothing at all (`logic::tail`, rules 2 and 3). With everything
//! backfilled the database file alone is the view: then the WAL may be reset, but not checkpointed, under it.

use std::collections::HashMap;

use rhyolite_format::sqlite::wal::{FRAME_HEADER_SIZE, FrameHeader, Frames, Salt, frame_offset, frame_size};
use rhyolite_format::{PageCount, PageNumber, PageSize};

use super::handle::{Handle, HandleError};
use super::rollback::Turns;

/// Bytes read at a time: they stay in the processor's second-level cache.
pub(super) const WINDOW_BYTES: usize = 256 << 10;

/// The pages of a database after one frame of its WAL.
#[derive(Debug)]
pub(super) struct View<'h> {
    handle: &'h Handle,
    page_size: PageSize,
    page_count: PageCount,
    /// The last frame of each page that has one.
    frames: HashMap<u32, u32>,
    /// How the application gets its turn while all pages are read, where reading keeps it from committing.
    turns: Option<Turns<'h>>,
}

impl<'h> View<'h> {
    /// The view after frame `last` of the generation `salt`, where the database has `page_count` pages. Frames up to
    /// `backfilled` are in the database file; when that is all of them, the WAL is not read.
    pub(super) fn after_frame(
        handle: &'h Handle,
        page_size: PageSize,
        page_count: PageCount,
        salt: Salt,
        last: u32,
        backfilled: u32,
    ) -> Result<Self, HandleError> {
        let frames = if backfilled >= last { HashMap::new() } else { last_frames(handle, page_size, salt, last)? };
        Ok(Self { handle, page_size, page_count, frames, turns: None })
    }

    /// The pages of a database file without a WAL, under a lock that is held as `turns` says.
    pub(super) fn of_file(handle: &'h Handle, page_size: PageSize, page_count: PageCount, turns: Turns<'h>) -> Self {
        Self { handle, page_size, page_count, frames: HashMap::new(), turns: Some(turns) }
    }

    /// Page size of the database.
    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size of the database.
    pub(super) fn page_count(&self) -> PageCount {
        self.page_count
    }

    /// Whether nobody can commit while this is read.
    pub(super) fn is_blocking(&self) -> bool {
        self.turns.is_some()
    }

    /// Reads one page.
    pub(super) fn page(&self, pgno: PageNumber, data: &mut [u8]) -> Result<(), HandleError> {
        assert_eq!(data.len(), self.page_size.bytes());
        match self.frames.get(&pgno.get()) {
            Some(frame) => read_frame_page(self.handle, self.page_size, *frame, data),
            None => self.handle.read_database(data, pgno.offset(self.page_size)),
        }
    }

    /// Hands every page but the lock page to `visit`, in ascending order.
    ///
    /// # Errors
    /// Those of `visit`; [`HandleError::Changed`] when the application had its turn and wrote: then what was visited is no
    /// state of the database.
    pub(super) fn each_page<E: From<HandleError>>(
        &self,
        mut visit: impl FnMut(PageNumber, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let page_bytes = self.page_size.bytes();
        let window_pages = (WINDOW_BYTES / page_bytes).max(1) as u32;
        let mut window = vec![0; window_pages as usize * page_bytes];
        let mut first = 1;
        while first <= self.page_count.get() {
            let count = window_pages.min(self.page_count.get() - first + 1);
            let pages = &mut window[..count as usize * page_bytes];
            let first_pgno = PageNumber::new(first).expect("starts at 1");
            self.handle.read_database(pages, first_pgno.offset(self.page_size))?;
            for (pgno, data) in (first..).zip(pages.chunks_exact_mut(page_bytes)) {
                let pgno = PageNumber::new(pgno).expect("starts at 1");
                if pgno == self.page_size.lock_page() {
                    continue;
                }
                if let Some(frame) = self.frames.get(&pgno.get()) {
                    read_frame_page(self.handle, self.page_size, *frame, data)?;
                }
                visit(pgno, data)?;
            }
            first += count;
            if let Some(turns) = &self.turns {
                turns.give_way()?;
            }
        }
        Ok(())
    }
}

/// Reads the page image of one frame.
pub(super) fn read_frame_page(
    handle: &Handle,
    page_size: PageSize,
    frame: u32,
    data: &mut [u8],
) -> Result<(), HandleError> {
    let complete = handle.read_wal(data, frame_offset(frame, page_size) + FRAME_HEADER_SIZE as u64)?;
    if complete { Ok(()) } else { Err(HandleError::Sqlite(format!("the WAL ends within committed frame {frame}"))) }
}

fn last_frames(handle: &Handle, page_size: PageSize, salt: Salt, last: u32) -> Result<HashMap<u32, u32>, HandleError> {
    let mut frames = HashMap::new();
    let mut wrong = None;
    each_frame_header(handle, page_size, 1, last, |frame, header| {
        if !belongs_to(&header, salt) {
            wrong.get_or_insert(frame);
        }
        frames.insert(header.pgno.get(), frame);
    })?;
    match wrong {
        None => Ok(frames),
        Some(frame) => Err(HandleError::Sqlite(format!("frame {frame} of the WAL belongs to another generation"))),
    }
}

/// Whether a committed frame may stand in the generation `salt`. SQLite 3.40 to 3.46 leave committed frames with zeros for
/// salts and checksum, so those count as its own.
pub(super) fn belongs_to(header: &FrameHeader, salt: Salt) -> bool {
    header.salt == salt || header.salt == Salt(0, 0)
}

fn each_frame_header(
    handle: &Handle,
    page_size: PageSize,
    first: u32,
    last: u32,
    mut visit: impl FnMut(u32, FrameHeader),
) -> Result<(), HandleError> {
    let frame_bytes = frame_size(page_size);
    let window_frames = (WINDOW_BYTES / frame_bytes).max(1) as u32;
    let mut window = vec![0; window_frames as usize * frame_bytes];
    let mut next = first;
    while next <= last {
        let count = window_frames.min(last - next + 1);
        let bytes = &mut window[..count as usize * frame_bytes];
        if !handle.read_wal(bytes, frame_offset(next, page_size))? {
            return Err(HandleError::Sqlite(format!("the WAL ends before committed frame {}", next + count - 1)));
        }
        for frame in Frames::new(bytes, next, page_size) {
            let frame = frame.map_err(|e| HandleError::Sqlite(e.to_string()))?;
            visit(frame.number, frame.header);
        }
        next += count;
    }
    Ok(())
}
