//! From committed frames to recorded transactions.
//!
//! Every commit frame ends a transaction. Within it the last frame of a page counts; pages beyond the size that the commit
//! frame tells are dropped. When the database grew, pages that the transaction did not write are taken from where SQLite
//! would read them (LTX specification, section 9, growth rule).

use rhyolite_format::sqlite::wal::{Frame, Frames, Salt, frame_offset, frame_size};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Timestamp};

use super::handle::{Handle, HandleError};
use super::recorder::{RecordError, Recorder, WalRange};
use super::view::{View, WINDOW_BYTES, belongs_to, read_frame_page};

/// The page is in no frame of the transaction: read it from below.
const BELOW: u32 = 0;

/// A run of frames of one generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameRun {
    pub(super) salt: Salt,
    pub(super) page_size: PageSize,
    /// The first frame, which starts a transaction.
    pub(super) first: u32,
    /// The last frame, which ends one.
    pub(super) last: u32,
}

/// Reads frames and records their transactions. Keeps its buffers between calls.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    window: Vec<u8>,
    page: Vec<u8>,
    /// Page and frame of the transaction that is being collected.
    pending: Vec<(u32, u32)>,
    /// Page and database size of the commit frame before.
    last_commit: Option<(PageNumber, u32)>,
}

/// The frames in the window.
#[derive(Clone, Copy)]
struct Window<'w> {
    bytes: &'w [u8],
    first: u32,
    count: u32,
}

impl<'w> Window<'w> {
    fn page(&self, frame: u32, page_size: PageSize) -> Option<&'w [u8]> {
        let index = frame.checked_sub(self.first).filter(|i| *i < self.count)? as usize;
        let end = (index + 1) * frame_size(page_size);
        Some(&self.bytes[end - page_size.bytes()..end])
    }
}

impl FrameReader {
    /// Records every transaction of `run`. After an error the last transactions may be missing; those before are recorded.
    pub(super) fn record(
        &mut self,
        handle: &Handle,
        recorder: &mut Recorder,
        run: FrameRun,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let frame_bytes = frame_size(run.page_size);
        let window_frames = (WINDOW_BYTES / frame_bytes).max(1) as u32;
        let mut buffer = std::mem::take(&mut self.window);
        self.pending.clear();
        let mut next = run.first;
        let mut result = Ok(());
        while next <= run.last && result.is_ok() {
            let count = window_frames.min(run.last - next + 1);
            let bytes = count as usize * frame_bytes;
            if buffer.len() < bytes {
                buffer.resize(bytes, 0);
            }
            result = match handle.read_wal(&mut buffer[..bytes], frame_offset(next, run.page_size)) {
                Ok(true) => {
                    let window = Window { bytes: &buffer[..bytes], first: next, count };
                    self.record_window(handle, recorder, run, window, now)
                }
                Ok(false) => Err(damaged(format!("the WAL ends before committed frame {}", next + count - 1))),
                Err(error) => Err(error.into()),
            };
            next += count;
        }
        self.window = buffer;
        result?;
        if self.pending.is_empty() { Ok(()) } else { Err(damaged(format!("frame {} ends no transaction", run.last))) }
    }

    fn record_window(
        &mut self,
        handle: &Handle,
        recorder: &mut Recorder,
        run: FrameRun,
        window: Window<'_>,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        for frame in Frames::new(window.bytes, window.first, run.page_size) {
            let frame = frame.map_err(|e| damaged(e.to_string()))?;
            if !belongs_to(&frame.header, run.salt) {
                return Err(damaged(format!("frame {} belongs to another generation", frame.number)));
            }
            self.pending.push((frame.header.pgno.get(), frame.number));
            if frame.header.commit == 0 {
                continue;
            }
            if !self.is_padding(recorder, &frame) {
                self.record_transaction(handle, recorder, run, window, PageCount(frame.header.commit), now)?;
            }
            self.last_commit = Some((frame.header.pgno, frame.header.commit));
            self.pending.clear();
        }
        Ok(())
    }

    /// Whether the frame only repeats the commit frame before it, to fill a disk sector.
    fn is_padding(&self, recorder: &Recorder, frame: &Frame<'_>) -> bool {
        self.pending.len() == 1
            && self.last_commit == Some((frame.header.pgno, frame.header.commit))
            && recorder.table().get(frame.header.pgno) == Some(Checksum::of_page(frame.header.pgno, frame.page))
    }

    fn record_transaction(
        &mut self,
        handle: &Handle,
        recorder: &mut Recorder,
        run: FrameRun,
        window: Window<'_>,
        commit: PageCount,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let first_frame = self.pending[0].1;
        let frames = self.pending.len() as u64;
        self.choose_pages(recorder.table().page_count(), commit, run.page_size);
        let wal = WalRange {
            offset: frame_offset(first_frame, run.page_size),
            size: frames * frame_size(run.page_size) as u64,
            salt: (run.salt.0, run.salt.1),
        };
        self.page.resize(run.page_size.bytes(), 0);
        let mut below = None;
        let mut tx = recorder.begin(commit, wal, now)?;
        for &(pgno, frame) in &self.pending {
            let pgno = PageNumber::new(pgno).expect("frames hold no page 0");
            let read = match window.page(frame, run.page_size) {
                Some(data) => recorder.page(&mut tx, pgno, data),
                None => read_elsewhere(handle, run, first_frame, commit, (pgno, frame), &mut below, &mut self.page)
                    .map_err(RecordError::from)
                    .and_then(|()| recorder.page(&mut tx, pgno, &self.page)),
            };
            if let Err(error) = read {
                recorder.abandon(tx)?;
                return Err(error);
            }
        }
        recorder.finish(tx)?;
        Ok(())
    }

    /// Makes `pending` what the transaction stores: each page once, ascending, with its last frame.
    fn choose_pages(&mut self, count_before: PageCount, commit: PageCount, page_size: PageSize) {
        let lock_page = page_size.lock_page().get();
        let pending = &mut self.pending;
        pending.sort_unstable();
        // Ascending frames: of equal pages keep the last.
        pending.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                *kept = *later;
            }
            same
        });
        pending.retain(|(pgno, _)| *pgno <= commit.get() && *pgno != lock_page);
        if commit <= count_before {
            return;
        }
        let new_pages = (count_before.get() + 1..=commit.get()).filter(|pgno| *pgno != lock_page);
        let start = pending.partition_point(|(pgno, _)| *pgno <= count_before.get());
        let written = pending.split_off(start);
        let mut written = written.into_iter().peekable();
        for pgno in new_pages {
            pending.push(written.next_if(|(p, _)| *p == pgno).unwrap_or((pgno, BELOW)));
        }
    }
}

/// Reads a page that is not in the window: from its frame, or from below the transaction.
fn read_elsewhere<'h>(
    handle: &'h Handle,
    run: FrameRun,
    first_frame: u32,
    commit: PageCount,
    (pgno, frame): (PageNumber, u32),
    below: &mut Option<View<'h>>,
    data: &mut [u8],
) -> Result<(), HandleError> {
    if frame != BELOW {
        return read_frame_page(handle, run.page_size, frame, data);
    }
    if below.is_none() {
        *below = Some(View::after_frame(handle, run.page_size, commit, run.salt, first_frame - 1, 0)?);
    }
    below.as_ref().expect("set above").page(pgno, data)
}

fn damaged(text: String) -> RecordError {
    RecordError::Database(HandleError::Sqlite(text))
}
