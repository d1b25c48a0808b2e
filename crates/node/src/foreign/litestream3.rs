//! Restoring from a replica of Litestream 0.3: a packed database file, and packed parts of the WALs that followed it.
//!
//! What SQLite would do with the WALs is done to the draft directly: of each WAL the frames up to the last commit are written at
//! the place of their pages, in order, and at its end the file is given the size that the last commit says. Unlike SQLite, a
//! frame whose checksum does not continue the one before is an error and not the end: Litestream has only copied frames that
//! were valid.
//!
//! Memory: one block of a packed object (4 MiB at most), two pieces of it, and the pages of one transaction.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rhyolite_format::litestream::{Generation, ReplicaKey};
use rhyolite_format::lz4::FrameReader;
use rhyolite_format::sqlite::wal::{FRAME_HEADER_SIZE, Frame, FrameHeader, WAL_HEADER_SIZE, WalHeader};
use rhyolite_format::{ErrorKind, Timestamp};
use rhyolite_logic::Target;
use rhyolite_logic::litestream3_plan::{self, OldObject, OldPlan, OldPoint, WalPart};
use rhyolite_store::Entry;

use super::{Image, Proof, ReplicaPoint, WalPlace};
use crate::progress::{Progress, Stage};
use crate::restore::RestoreError;
use crate::restore::base::checksum_of_file;
use crate::restore::draft::Draft;
use crate::restore::reader::Reader;
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// The objects of a replica.
#[derive(Clone, Debug)]
pub(super) struct Replica3 {
    objects: Vec<OldObject>,
    entries: Vec<Entry>,
}

/// An object to read.
#[derive(Clone, Debug)]
pub(super) struct Source {
    key: String,
    size: u64,
}

/// What to read, in order.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    generation: Generation,
    index: u32,
    snapshot: Source,
    parts: Vec<(WalPart, Source)>,
    time: Timestamp,
}

impl Replica3 {
    /// The objects must have times: nothing else tells their order.
    pub(super) fn new(listed: Vec<(ReplicaKey, Entry)>) -> Result<Self, RestoreError> {
        let (mut objects, mut entries) = (Vec::new(), Vec::new());
        for (key, entry) in listed {
            let created = entry
                .modified
                .ok_or_else(|| RestoreError::contradiction(&entry.key, "the store does not say when it was written"))?;
            objects.push(OldObject { key, created, handle: entries.len() });
            entries.push(entry);
        }
        Ok(Self { objects, entries })
    }

    fn source(&self, handle: usize) -> Source {
        let entry = &self.entries[handle];
        Source { key: entry.key.clone(), size: entry.size }
    }

    pub(super) fn plan(&self, target: Target) -> Result<Plan, RestoreError> {
        let OldPlan { generation, index, snapshot, parts, time } =
            litestream3_plan::plan(&self.objects, target).map_err(RestoreError::OldPlan)?;
        let parts = parts.into_iter().map(|part| (part, self.source(part.handle))).collect();
        Ok(Plan { generation, index, snapshot: self.source(snapshot), parts, time })
    }

    pub(super) fn points(&self, limit: usize) -> Vec<ReplicaPoint> {
        let points = litestream3_plan::points(&self.objects);
        let newest = points.len().saturating_sub(limit);
        points[newest..].iter().map(|point| self.point(point)).collect()
    }

    fn point(&self, point: &OldPoint) -> ReplicaPoint {
        ReplicaPoint {
            txid: None,
            place: Some(WalPlace {
                generation: point.generation,
                index: point.index,
                offset: point.offset.unwrap_or(0),
            }),
            time: point.created,
            is_snapshot: point.offset.is_none(),
            bytes: self.entries[point.handle].size,
            size: None,
        }
    }

    /// Every object, to be read whole.
    pub(super) fn sources(&self) -> Vec<Source> {
        (0..self.entries.len()).map(|handle| self.source(handle)).collect()
    }
}

impl Source {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Starts to unpack it.
    fn open(&self, reader: &Arc<Reader>) -> Result<FrameReader<ObjectStream>, RestoreError> {
        let stream = ObjectStream::new(Arc::clone(reader), Arc::from(self.key.as_str()), 0..self.size, PIECE_BYTES_MAX);
        FrameReader::new(stream).map_err(|e| self.error(e))
    }

    /// What unpacking it came to.
    fn error(&self, error: io::Error) -> RestoreError {
        match error.downcast::<RestoreError>() {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                RestoreError::contradiction(&self.key, "it ends early")
            }
            Err(e) => RestoreError::contradiction(&self.key, format!("it is no valid LZ4 frame: {e}")),
        }
    }

    /// Unpacks all of it. Blocks.
    pub(super) fn check(&self, reader: &Arc<Reader>) -> Result<u64, RestoreError> {
        let mut frame = self.open(reader)?;
        io::copy(&mut frame, &mut io::sink()).map_err(|e| self.error(e))
    }
}

/// Writes the database that a plan leads to to a draft. Blocks; must be called within the runtime.
pub(super) fn fill(
    reader: &Arc<Reader>,
    plan: &Plan,
    draft: &Draft,
    progress: &dyn Progress,
) -> Result<Image, RestoreError> {
    progress.enter(Stage::Planning);
    draft.clear(0)?;
    copy_snapshot(reader, &plan.snapshot, draft)?;
    let mut place = WalPlace { generation: plan.generation, index: plan.index, offset: 0 };
    for parts in plan.parts.chunk_by(|(a, _), (b, _)| a.index == b.index) {
        let applied = Wal::new(reader, parts).and_then(|wal| wal.apply(draft))?;
        place = WalPlace { generation: plan.generation, index: parts[0].0.index, offset: applied };
    }
    let found = checksum_of_file(draft.file(), draft.path())?;
    let what = "the restored database";
    let (page_size, commit, checksum) =
        found.ok_or_else(|| RestoreError::contradiction(what, "it is no SQLite database of whole pages"))?;
    Ok(Image {
        txid: None,
        place: Some(place),
        time: plan.time,
        page_size,
        commit,
        checksum,
        proof: Proof::Frames,
        files: 1 + plan.parts.len() as u64,
    })
}

fn copy_snapshot(reader: &Arc<Reader>, source: &Source, draft: &Draft) -> Result<(), RestoreError> {
    let mut frame = source.open(reader)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let len = frame.read(&mut buffer).map_err(|e| source.error(e))?;
        if len == 0 {
            return Ok(());
        }
        let written = draft.file().write_all_at(&buffer[..len], offset);
        written.map_err(|e| RestoreError::io("write", draft.path(), e))?;
        offset += len as u64;
    }
}

/// A WAL whose parts are unpacked one after the other.
struct Wal<'a> {
    reader: &'a Arc<Reader>,
    parts: &'a [(WalPart, Source)],
    /// The part that is being read, and its place among the parts.
    current: FrameReader<ObjectStream>,
    place: usize,
    /// Bytes of the WAL that were read.
    offset: u64,
}

impl<'a> Wal<'a> {
    fn new(reader: &'a Arc<Reader>, parts: &'a [(WalPart, Source)]) -> Result<Self, RestoreError> {
        let current = parts[0].1.open(reader)?;
        Ok(Self { reader, parts, current, place: 0, offset: 0 })
    }

    fn source(&self) -> &'a Source {
        &self.parts[self.place].1
    }

    /// Fills `bytes` with what comes next. `false` when the WAL ends right here; ending within is damage.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, RestoreError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let len = self.current.read(&mut bytes[filled..]).map_err(|e| self.source().error(e))?;
            filled += len;
            self.offset += len as u64;
            if len > 0 {
                continue;
            }
            let Some((next, source)) = self.parts.get(self.place + 1) else {
                let torn = || RestoreError::contradiction(&self.source().key, "it ends within a frame");
                return if filled == 0 { Ok(false) } else { Err(torn()) };
            };
            if next.offset != self.offset {
                let detail =
                    format!("it begins at {:#x} of its WAL, what is before ends at {:#x}", next.offset, self.offset);
                return Err(RestoreError::contradiction(&source.key, detail));
            }
            self.current = source.open(self.reader)?;
            self.place += 1;
        }
        Ok(true)
    }

    /// Writes the committed frames to the draft and gives where in the WAL they end.
    fn apply(mut self, draft: &Draft) -> Result<u64, RestoreError> {
        let mut head = [0; WAL_HEADER_SIZE];
        if !self.fill(&mut head)? {
            return Ok(0);
        }
        let header = WalHeader::decode(&head).map_err(|e| RestoreError::damaged(self.source().key(), e))?;
        let mut frame = vec![0; FRAME_HEADER_SIZE + header.page_size.bytes()];
        let (mut checksum, mut number, mut committed) = (header.checksum, 1, WAL_HEADER_SIZE as u64);
        // Frames of a transaction whose end has not come yet.
        let mut pending: Vec<Pending> = Vec::new();
        let mut size = None;
        while self.fill(&mut frame)? {
            let key = self.source().key();
            let (head, page) = frame.split_first_chunk::<FRAME_HEADER_SIZE>().expect("as long as a frame");
            let head = FrameHeader::decode(head).map_err(|e| RestoreError::damaged(key, e))?;
            let found = Frame { number, header: head, page };
            if head.salt != header.salt || !found.is_intact(checksum, header.big_endian) {
                let detail = format!("frame {number} is not what its WAL went on with ({})", ErrorKind::FileChecksum);
                return Err(RestoreError::contradiction(key, detail));
            }
            (checksum, number) = (head.checksum, number + 1);
            pending.push(Pending { offset: head.pgno.offset(header.page_size), bytes: page.to_vec() });
            if let Some(commit) = head.commit_size() {
                write_pending(&mut pending, draft)?;
                (size, committed) = (Some(commit), self.offset);
            }
        }
        // As a checkpoint does it: what was cut off and grew again within one WAL keeps what the file held.
        size.map_or(Ok(()), |commit| draft.resize(commit.bytes(header.page_size)))?;
        Ok(committed)
    }
}

/// A page of a transaction that has not ended.
struct Pending {
    offset: u64,
    bytes: Vec<u8>,
}

fn write_pending(pending: &mut Vec<Pending>, draft: &Draft) -> Result<(), RestoreError> {
    pending.drain(..).try_for_each(|page| {
        let written = draft.file().write_all_at(&page.bytes, page.offset);
        written.map_err(|e| RestoreError::io("write", draft.path(), e))
    })
}
