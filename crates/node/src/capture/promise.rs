//! A transaction in the WAL that is complete and not committed yet: its frames are there, and the wal-index does not count them.
//!
//! Where a frame's checksum continues that of the last committed one, frames up to the first commit frame are the transaction. Some versions of SQLite
//! (3.40 to 3.46) leave frames without salt and checksum in large transactions; where the checksums end without a commit frame, the first commit
//! frame of this generation behind such frames is taken. What is taken is verified: only when the wal-index counts these very frames it was a commit.

use std::time::{Duration, Instant};

use rhyolite_format::PageSize;
use rhyolite_format::sqlite::wal::{
    FRAME_HEADER_SIZE, Frames, Salt, WAL_HEADER_SIZE, WalHeader, frame_offset, frame_size,
};
use rhyolite_format::sqlite::wal_index::WalIndexHeader;
use rhyolite_logic::tail::{Captured, Live, Promise, Promised, promised};

use super::frames::FrameRun;
use super::handle::{Handle, HandleError};
use super::view::WINDOW_BYTES;

/// How often it is asked whether the writer of a promised transaction is still at it.
const ASK: Duration = Duration::from_millis(50);

/// A transaction that is in the log, and not committed as far as is known.
#[derive(Debug)]
pub(super) struct Pending {
    promise: Promise,
    page_size: PageSize,
    /// Header of its last frame. It carries a checksum over all of them, where it carries one.
    header: [u8; FRAME_HEADER_SIZE],
    /// Checksums lead to its last frame.
    is_summed: bool,
    asked: Instant,
}

impl Pending {
    /// How far the WAL is captured once it is committed.
    pub(super) fn captured(&self) -> Captured {
        Captured { salt: self.promise.salt, frame: self.promise.last }
    }

    /// Whether `again`, found later, is the same transaction: not another one in its place, of which this one's last frames are left over.
    pub(super) fn is_same(&self, again: &Self) -> bool {
        self.promise == again.promise && self.header == again.header
    }

    /// What is known by now, when the wal-index says `live`.
    pub(super) fn look(&self, handle: &Handle, live: Live) -> Result<Promised, HandleError> {
        // Without checksums nothing but a comparison of all pages shows that all its frames are what they were.
        let is_there = self.is_summed && self.is_there(handle)?;
        Ok(promised(&self.promise, live, is_there))
    }

    /// Whether its last frame is what it was.
    fn is_there(&self, handle: &Handle) -> Result<bool, HandleError> {
        let mut header = [0; FRAME_HEADER_SIZE];
        let there = handle.read_wal(&mut header, frame_offset(self.promise.last, self.page_size))?;
        Ok(there && header == self.header)
    }

    /// Whether it is time to ask.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.asked.elapsed() >= ASK;
        if due {
            self.asked = Instant::now();
        }
        due
    }
}

/// The transaction behind the last committed frame, if there is a complete one.
pub(super) fn find(
    handle: &Handle,
    header: &WalIndexHeader,
    captured: Captured,
    page_size: PageSize,
) -> Result<Option<(FrameRun, Pending)>, HandleError> {
    let Some(start) = start(handle, header, captured, page_size)? else { return Ok(None) };
    let mut search = Search { salt: start.salt, big_endian: start.big_endian, checksum: Some(start.checksum) };
    let (first, frame_bytes) = (header.max_frame + 1, frame_size(page_size));
    let window_frames = (WINDOW_BYTES / frame_bytes).max(1) as u32;
    let wal_bytes = handle.wal_bytes()?;
    let frames = wal_bytes.saturating_sub(WAL_HEADER_SIZE as u64) / frame_bytes as u64;
    let end = u32::try_from(frames).unwrap_or(u32::MAX);
    let (mut next, mut buffer) = (first, Vec::new());
    while next <= end {
        let count = window_frames.min(end - next + 1);
        buffer.resize(count as usize * frame_bytes, 0);
        if !handle.read_wal(&mut buffer, frame_offset(next, page_size))? {
            return Ok(None);
        }
        match search.through(Frames::new(&buffer, next, page_size)) {
            Found::Commit(last) => {
                let at = (last - next) as usize * frame_bytes;
                let found = *buffer[at..].first_chunk().expect("a whole frame was read");
                let promise = Promise { before: live(header), salt: start.salt, last };
                let is_summed = search.checksum.is_some();
                let pending = Pending { promise, page_size, header: found, is_summed, asked: Instant::now() };
                return Ok(Some((FrameRun { salt: start.salt, page_size, first, last }, pending)));
            }
            Found::End => return Ok(None),
            Found::More => next += count,
        }
    }
    Ok(None)
}

fn live(header: &WalIndexHeader) -> Live {
    Live { salt: header.salt, max_frame: header.max_frame }
}

/// From where checksums go on.
struct Start {
    salt: Salt,
    big_endian: bool,
    checksum: (u32, u32),
}

/// `None` when the file has no frame that could follow: its header is only written with the first one. Whoever writes that may draw a generation of his own
/// (a connection that has made no checkpoint yet), which is another than the one before.
fn start(
    handle: &Handle,
    header: &WalIndexHeader,
    captured: Captured,
    page_size: PageSize,
) -> Result<Option<Start>, HandleError> {
    if header.max_frame > 0 {
        let (big_endian, checksum) = (header.big_endian_checksums, header.frame_checksum);
        return Ok(Some(Start { salt: header.salt, big_endian, checksum }));
    }
    let mut bytes = [0; WAL_HEADER_SIZE];
    if !handle.read_wal(&mut bytes, 0)? {
        return Ok(None);
    }
    let is_next = |h: &WalHeader| h.page_size == page_size && (h.salt == header.salt || h.salt != captured.salt);
    let found = WalHeader::decode(&bytes).ok().filter(is_next);
    Ok(found.map(|h| Start { salt: h.salt, big_endian: h.big_endian, checksum: h.checksum }))
}

/// What a run of frames has shown.
enum Found {
    /// The transaction ends with this frame.
    Commit(u32),
    /// There is none.
    End,
    /// Nothing yet.
    More,
}

struct Search {
    salt: Salt,
    big_endian: bool,
    /// Of the frame before; `None` once one did not carry any.
    checksum: Option<(u32, u32)>,
}

impl Search {
    fn through(&mut self, frames: Frames<'_>) -> Found {
        for frame in frames {
            let Ok(frame) = frame else { return Found::End };
            let header = &frame.header;
            let is_bare = header.salt == Salt(0, 0) && header.checksum == (0, 0);
            if !is_bare && header.salt != self.salt {
                return Found::End;
            }
            if let Some(before) = self.checksum {
                if !is_bare && !frame.is_intact(before, self.big_endian) {
                    return Found::End;
                }
                self.checksum = (!is_bare).then_some(header.checksum);
            }
            if header.commit != 0 && !is_bare {
                return Found::Commit(frame.number);
            }
        }
        Found::More
    }
}
