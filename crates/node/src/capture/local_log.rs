//! The local log: captured transactions on disk, as the very segments that go to the store.
//!
//! A segment file grows at its end: header, then LTX files back to back. Sealing appends the index and the footer; from
//! then on it never changes, and its bytes are the object in the store. Nothing here is synced: in sidecar mode the WAL is the
//! durable copy, and what a power cut takes from these files is found again by the page diff.
//!
//! Invariants:
//! 1. Sequence numbers are consecutive; only the newest segment can be open.
//! 2. A segment is removed only after the store has it *and* the saved page table has gone beyond it.
//! 3. After an error from [`LocalLog::flush`] the files hold what they held after the flush before, or are cut to that at
//!    the next start.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::ltx::Decoder;
use rhyolite_format::segment::{self, Segment, SegmentEntry, SegmentHeader};
use rhyolite_format::{Epoch, Lineage, Nonce, Pos, Seq, Timestamp, Txid};

/// A segment up to this size is kept in memory until it is uploaded, so that it need not be read again: one that was closed for
/// its size at the default of `max-segment-size` is, unless its last transaction is a large one.
const IMAGE_BYTES_MAX: u64 = 9 << 20;
/// So many of them at a time.
const IMAGES_MAX: usize = 2;
/// So many segments are kept at most after the store has them, for bundling.
const KEEP_SEGMENTS_MAX: usize = 1200;
/// Ends the name of a segment that is on its way to another number.
pub(super) const MOVING_EXTENSION: &str = "moving";
/// A transaction is written out in pieces of this size while it is encoded.
const SPILL_BYTES: usize = 1 << 20;

/// A segment that never changes again.
#[derive(Debug)]
pub struct SealedSegment {
    /// Its place in the log.
    pub seq: Seq,
    /// Who wrote it.
    pub header: SegmentHeader,
    /// Its file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub len: u64,
    /// What it holds.
    pub entries: Vec<SegmentEntry>,
    /// Its bytes, when it is small.
    image: Option<Bytes>,
}

impl SealedSegment {
    /// A segment in a file.
    pub(super) fn new(header: SegmentHeader, path: PathBuf, len: u64, entries: Vec<SegmentEntry>) -> Self {
        Self { seq: header.seq, header, path, len, entries, image: None }
    }

    /// All its bytes, from memory or from the file.
    pub fn bytes(&self) -> io::Result<Bytes> {
        if let Some(image) = &self.image {
            return Ok(image.clone());
        }
        let bytes = fs::read(&self.path)?;
        let whole = Segment::decode(&bytes).is_ok_and(|s| s.header == self.header && s.entries == self.entries);
        if bytes.len() as u64 == self.len && whole {
            Ok(Bytes::from(bytes))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is damaged"))
        }
    }

    /// Header and entries.
    pub fn index(&self) -> Segment {
        Segment { header: self.header.clone(), entries: self.entries.clone() }
    }

    /// The position after its last transaction; `None` when it holds none.
    pub fn end(&self) -> Option<Pos> {
        self.entries.last().map(|e| Pos { txid: e.max_txid, checksum: e.post_apply })
    }

    /// When its first transaction was captured.
    pub fn first_time(&self) -> Option<Timestamp> {
        self.entries.first().map(|e| e.timestamp)
    }
}

/// The segment that still grows.
#[derive(Debug)]
struct OpenSegment {
    header: SegmentHeader,
    path: PathBuf,
    file: File,
    entries: Vec<SegmentEntry>,
    /// Bytes from `buffer_start` to the end of the segment; those before `written` are in the file.
    buffer: Vec<u8>,
    buffer_start: u64,
    written: u64,
    /// Where the transaction begins that is being written; the end of the last whole one.
    committed: u64,
    /// A write failed: the file may go on after `written`.
    is_ragged: bool,
}

impl OpenSegment {
    fn len(&self) -> u64 {
        self.buffer_start + self.buffer.len() as u64
    }

    fn write_out(&mut self) -> io::Result<()> {
        let from = usize::try_from(self.written - self.buffer_start).expect("buffer lies in memory");
        if from < self.buffer.len() {
            self.trim_file()?;
            self.is_ragged = true;
            self.file.write_all_at(&self.buffer[from..], self.written)?;
            self.is_ragged = false;
            self.written = self.len();
        }
        if self.len() > IMAGE_BYTES_MAX {
            self.buffer_start = self.len();
            self.buffer.clear();
        }
        Ok(())
    }
}

impl OpenSegment {
    /// Cuts off what a failed write left behind.
    fn trim_file(&mut self) -> io::Result<()> {
        if self.is_ragged {
            self.file.set_len(self.written)?;
            self.is_ragged = false;
        }
        Ok(())
    }
}

/// Who writes the segments: what every header carries.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// The history.
    pub lineage: Lineage,
    /// The right to write.
    pub epoch: Epoch,
    /// This process's own mark, fresh at every start.
    pub nonce: Nonce,
}

/// The local log of one database.
#[derive(Debug)]
pub struct LocalLog {
    dir: PathBuf,
    writer: Writer,
    next_seq: Seq,
    open: Option<OpenSegment>,
    sealed: VecDeque<Arc<SealedSegment>>,
    /// The last segment that the store has acknowledged.
    uploaded: Option<Seq>,
    /// Size of all sealed segments, and of those that the store has.
    sealed_bytes: u64,
    sent_bytes: u64,
}

impl LocalLog {
    /// A log that goes on with `next_seq` after the `sealed` segments, which [`recover`] found.
    pub fn new(dir: PathBuf, writer: Writer, next_seq: Seq, sealed: Vec<SealedSegment>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let sealed: VecDeque<_> = sealed.into_iter().map(Arc::new).collect();
        let sealed_bytes = sealed.iter().map(|s| s.len).sum();
        Ok(Self { dir, writer, next_seq, open: None, sealed, uploaded: None, sealed_bytes, sent_bytes: 0 })
    }

    /// The sequence number of the next segment.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Size in bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.sealed_bytes + self.open.as_ref().map_or(0, OpenSegment::len)
    }

    /// Size in bytes of what the store does not have.
    pub fn unsent_bytes(&self) -> u64 {
        self.sealed_bytes - self.sent_bytes + self.open_bytes()
    }

    /// How many of the sealed segments the store has: they come first.
    fn sent(&self) -> usize {
        self.sealed.partition_point(|s| Some(s.seq) <= self.uploaded)
    }

    /// Size in bytes of the open segment; 0 when it holds no transaction.
    pub fn open_bytes(&self) -> u64 {
        self.open.as_ref().filter(|o| !o.entries.is_empty()).map_or(0, OpenSegment::len)
    }

    /// Size in bytes of the transaction that is being written.
    pub fn transaction_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |o| o.len() - o.committed)
    }

    /// When the last transaction was captured, of those that are here.
    pub fn last_time(&self) -> Option<Timestamp> {
        let sealed = self.sealed.iter().rev().flat_map(|s| s.entries.last());
        self.open.iter().flat_map(|o| o.entries.last()).chain(sealed).next().map(|e| e.timestamp)
    }

    /// When the first transaction of the open segment was captured; `None` when there is none.
    pub fn open_since(&self) -> Option<Timestamp> {
        self.open.as_ref().and_then(|o| o.entries.first()).map(|e| e.timestamp)
    }

    /// The buffer to which the next transaction's LTX file is appended. Ends with [`LocalLog::commit`] or
    /// [`LocalLog::abandon`].
    pub fn begin(&mut self, now: Timestamp) -> io::Result<&mut Vec<u8>> {
        if self.open.is_none() {
            self.open = Some(self.create_segment(now)?);
        }
        let open = self.open.as_mut().expect("set above");
        assert_eq!(open.committed, open.len(), "the transaction before this has ended");
        Ok(&mut open.buffer)
    }

    /// The buffer of the transaction that was begun, written out first when it has grown large.
    pub fn continue_with(&mut self) -> io::Result<&mut Vec<u8>> {
        let open = self.open.as_mut().expect("a transaction was begun");
        if open.buffer.len() > SPILL_BYTES && open.len() > IMAGE_BYTES_MAX {
            open.write_out()?;
        }
        Ok(&mut open.buffer)
    }

    /// Ends a transaction whose LTX file was appended. `entry.offset` and `entry.len` are filled in here.
    pub fn commit(&mut self, mut entry: SegmentEntry) {
        let open = self.open.as_mut().expect("a transaction was begun");
        entry.offset = open.committed;
        entry.len = open.len() - open.committed;
        assert!(entry.len > 0, "every transaction has an LTX file");
        open.committed = open.len();
        open.entries.push(entry);
    }

    /// Takes back the transaction that was begun.
    pub fn abandon(&mut self) -> io::Result<()> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        if open.committed < open.buffer_start {
            open.buffer.clear();
            open.buffer_start = open.committed;
        } else {
            let keep = usize::try_from(open.committed - open.buffer_start).expect("buffer lies in memory");
            open.buffer.truncate(keep);
        }
        if open.written > open.committed {
            open.written = open.committed;
            open.is_ragged = true;
        }
        open.trim_file()
    }

    /// Takes back every transaction of the open segment from the one with `first` on. Used when they could not be written.
    pub fn drop_from(&mut self, first: Txid) -> io::Result<()> {
        if let Some(open) = self.open.as_mut() {
            let keep = open.entries.partition_point(|e| e.max_txid < first);
            if let Some(entry) = open.entries.get(keep) {
                open.committed = entry.offset;
                open.entries.truncate(keep);
            }
        }
        self.abandon()
    }

    /// The transactions after `after` that are in memory and in the file, oldest first, with their LTX files.
    pub fn recent(&self, after: Option<Txid>) -> impl Iterator<Item = (&SegmentEntry, &[u8])> {
        let sealed = self.sealed.back().and_then(|s| Some((&s.entries[..], s.image.as_deref()?)));
        let sealed = sealed.into_iter().flat_map(move |(entries, image)| {
            newer_than(entries, after).iter().filter_map(move |e| Some((e, slice(image, 0, e.range())?)))
        });
        let open = self.open.iter().flat_map(move |o| {
            let written = newer_than(&o.entries, after).iter().filter(|e| e.range().end <= o.written);
            written.filter_map(move |e| Some((e, slice(&o.buffer, o.buffer_start, e.range())?)))
        });
        sealed.chain(open)
    }

    /// Writes out what was committed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), OpenSegment::write_out)
    }

    /// Seals the open segment. `None` when it holds no transaction. A small segment stays in memory until it is uploaded, where
    /// not too many do.
    pub fn seal(&mut self) -> io::Result<Option<Arc<SealedSegment>>> {
        let keep_image = self.unsent().filter(|s| s.image.is_some()).count() < IMAGES_MAX;
        let Some(open) = self.open.as_mut().filter(|o| !o.entries.is_empty()) else { return Ok(None) };
        assert_eq!(open.committed, open.len(), "no transaction is half written");
        let index_offset = open.len();
        let body = open.buffer.len();
        segment::encode_index(&open.entries, &open.header, index_offset, &mut open.buffer);
        let whole_in_memory = open.buffer_start == 0;
        let len = open.len();
        let from = usize::try_from(open.written - open.buffer_start).expect("buffer lies in memory");
        let written = open.trim_file().and_then(|()| {
            open.is_ragged = true;
            open.file.write_all_at(&open.buffer[from..], open.written)
        });
        if let Err(error) = written {
            open.buffer.truncate(body);
            return Err(error);
        }
        let open = self.open.take().expect("checked above");
        let image = (whole_in_memory && keep_image).then(|| Bytes::from(open.buffer));
        let sealed = Arc::new(SealedSegment {
            seq: open.header.seq,
            header: open.header,
            path: open.path,
            len,
            entries: open.entries,
            image,
        });
        self.next_seq = sealed.seq.next();
        self.sealed_bytes += sealed.len;
        self.sealed.push_back(Arc::clone(&sealed));
        Ok(Some(sealed))
    }

    /// Notes that the store has everything up to `seq`; its memory is given back.
    pub fn mark_uploaded(&mut self, seq: Seq) {
        let before = self.sent();
        self.uploaded = self.uploaded.max(Some(seq));
        let after = self.sent();
        for segment in self.sealed.range_mut(before..after) {
            self.sent_bytes += segment.len;
            let SealedSegment { header, path, len, entries, .. } = &**segment;
            let (header, path, entries) = (header.clone(), path.clone(), entries.clone());
            *segment = Arc::new(SealedSegment::new(header, path, *len, entries));
        }
    }

    /// Sealed segments that the store does not have, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = &Arc<SealedSegment>> {
        self.sealed.range(self.sent()..)
    }

    /// The last transaction that the store has and that is still here.
    pub fn uploaded_end(&self) -> Option<Pos> {
        self.sealed.range(..self.sent()).rev().find_map(|s| s.end())
    }

    /// Whether so much is kept of what the store has that it is time to [trim](LocalLog::trim).
    pub fn is_overfull(&self, keep_bytes: u64) -> bool {
        self.sent_bytes > keep_bytes || self.sent() > KEEP_SEGMENTS_MAX
    }

    /// Removes uploaded segments, oldest first, that end at or before `table_txid`, until at most `keep_bytes` of uploaded
    /// ones remain.
    pub fn trim(&mut self, table_txid: Txid, keep_bytes: u64) -> io::Result<()> {
        while self.sent_bytes > keep_bytes || self.sent() > KEEP_SEGMENTS_MAX / 2 {
            let oldest = self.sealed.front().expect("a sent segment is a sealed one");
            let covered = oldest.end().is_none_or(|end| end.txid <= table_txid);
            if Some(oldest.seq) > self.uploaded || !covered {
                return Ok(());
            }
            fs::remove_file(&oldest.path)?;
            self.sealed_bytes -= oldest.len;
            self.sent_bytes -= oldest.len;
            self.sealed.pop_front();
        }
        Ok(())
    }

    fn create_segment(&self, now: Timestamp) -> io::Result<OpenSegment> {
        let Writer { lineage, epoch, nonce } = self.writer;
        let header = SegmentHeader::log(lineage, epoch, self.next_seq, nonce, now);
        let path = segment_path(&self.dir, self.next_seq);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let buffer = header.encode().to_vec();
        let committed = buffer.len() as u64;
        Ok(OpenSegment {
            header,
            path,
            file,
            entries: Vec::new(),
            buffer,
            buffer_start: 0,
            written: 0,
            committed,
            is_ragged: false,
        })
    }
}

fn newer_than(entries: &[SegmentEntry], after: Option<Txid>) -> &[SegmentEntry] {
    &entries[entries.partition_point(|e| after.is_some_and(|after| e.max_txid <= after))..]
}

/// The bytes of `range`, of which `bytes` begin at `start`.
fn slice(bytes: &[u8], start: u64, range: Range<u64>) -> Option<&[u8]> {
    let place = |offset: u64| usize::try_from(offset.checked_sub(start)?).ok();
    bytes.get(place(range.start)?..place(range.end)?)
}

/// Name of a segment's file.
pub(crate) fn segment_path(dir: &Path, seq: Seq) -> PathBuf {
    dir.join(format!("{seq}.seg"))
}

/// What [`recover`] found in a log folder.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Whole segments, each of which follows the one before, oldest first. A segment that was still open was sealed.
    pub segments: Vec<SealedSegment>,
    /// What was thrown away, for the log.
    pub damage: Vec<String>,
}

/// Reads the log folder after a stop of any kind: keeps the longest run of whole segments that ends with the newest, cuts a
/// torn tail, and removes what cannot be read.
pub fn recover(dir: &Path, lineage: Lineage) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    let mut names: Vec<(Seq, PathBuf)> = Vec::new();
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(recovered),
        Err(error) => return Err(error),
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == MOVING_EXTENSION) {
                    // What it held is found by comparing pages.
                    fs::remove_file(&path)?;
                    continue;
                }
                let seq = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".seg"));
                names.extend(seq.and_then(|s| s.parse().ok()).map(|seq: Seq| (seq, path.clone())));
            }
        }
    }
    names.sort();
    let mut is_broken = false;
    for (seq, path) in names {
        if is_broken {
            // What comes after a damaged segment joins nothing.
            fs::remove_file(&path)?;
            continue;
        }
        match recover_segment(seq, &path, lineage)? {
            Ok(Some(segment)) => {
                let joins = recovered.segments.last().is_none_or(|before| follows(before, &segment));
                if !joins {
                    recovered.damage.push(format!("segment {seq} does not follow the one before it"));
                    remove_all(&mut recovered.segments)?;
                }
                recovered.segments.push(segment);
            }
            Ok(None) => fs::remove_file(&path)?,
            Err(reason) => {
                recovered.damage.push(format!("segment {seq}: {reason}"));
                is_broken = true;
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(recovered)
}

fn remove_all(segments: &mut Vec<SealedSegment>) -> io::Result<()> {
    segments.drain(..).try_for_each(|s| fs::remove_file(s.path))
}

fn follows(before: &SealedSegment, segment: &SealedSegment) -> bool {
    let (Some(end), Some(first)) = (before.end(), segment.entries.first()) else { return true };
    match first.pre_apply {
        Some(pre) => first.min_txid == end.txid.next() && pre == end.checksum,
        None => first.max_txid > end.txid,
    }
}

/// `None` for a segment without a transaction. The outer error is that of the disk, the inner one what is wrong with the bytes.
fn recover_segment(seq: Seq, path: &Path, lineage: Lineage) -> io::Result<Result<Option<SealedSegment>, String>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(Ok(None));
    }
    let header = match SegmentHeader::decode(&bytes) {
        // The name decides: a restart may have been interrupted between giving a segment its new number and moving it.
        Ok(header) if header.lineage == lineage => SegmentHeader { seq, ..header },
        Ok(_) => return Ok(Err("belongs to another log".to_owned())),
        Err(error) => return Ok(Err(error.to_string())),
    };
    // A valid index says nothing about the transactions: nothing was synced, so any block may be missing.
    let sealed = Segment::decode(&bytes).ok();
    let body = sealed.as_ref().and_then(|s| s.entries.last()).and_then(|e| usize::try_from(e.range().end).ok());
    let (entries, end) = whole_transactions(&bytes[..body.unwrap_or(bytes.len())]);
    match sealed {
        Some(sealed) if sealed.entries != entries => return Ok(Err("transactions are damaged".to_owned())),
        Some(_) => {}
        None if entries.is_empty() => return Ok(Ok(None)),
        None => {
            bytes.truncate(end);
            bytes[..segment::HEADER_SIZE].copy_from_slice(&header.encode());
            segment::encode_index(&entries, &header, end as u64, &mut bytes);
            rewrite(path, &bytes)?;
        }
    }
    Ok(Ok(Some(SealedSegment::new(header, path.to_owned(), bytes.len() as u64, entries))))
}

fn rewrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    File::create(&temporary)?.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// The whole transactions at the start of an unsealed segment, and where they end.
fn whole_transactions(bytes: &[u8]) -> (Vec<SegmentEntry>, usize) {
    let mut entries: Vec<SegmentEntry> = Vec::new();
    let mut end = segment::HEADER_SIZE;
    let mut page = Vec::new();
    while let Some((entry, len)) = whole_transaction(&bytes[end..], end as u64, &mut page) {
        let joins = entries.last().is_none_or(|before: &SegmentEntry| {
            entry.pre_apply.is_none()
                || (entry.pre_apply == Some(before.post_apply) && entry.min_txid == before.max_txid.next())
        });
        if !joins {
            break;
        }
        entries.push(entry);
        end += len;
    }
    (entries, end)
}

fn whole_transaction(bytes: &[u8], offset: u64, page: &mut Vec<u8>) -> Option<(SegmentEntry, usize)> {
    let mut rest = bytes;
    let mut decoder = Decoder::new(&mut rest).ok()?;
    let header = *decoder.header();
    page.resize(header.page_size.bytes(), 0);
    let mut pages = 0;
    while decoder.next_page(page).ok()?.is_some() {
        pages += 1;
    }
    let (trailer, _) = decoder.finish().ok()?;
    let len = bytes.len() - rest.len();
    let entry = SegmentEntry {
        min_txid: header.min_txid,
        max_txid: header.max_txid,
        offset,
        len: len as u64,
        timestamp: header.timestamp,
        page_size: header.page_size,
        commit: header.commit,
        pages,
        pre_apply: header.pre_apply,
        post_apply: trailer.post_apply?,
    };
    Some((entry, len))
}

/// Real logs for tests.
#[cfg(test)]
pub(crate) mod samples {
    use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
    use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize};

    use super::*;

    /// One sealed segment for each of the consecutive sequence numbers, with one transaction of the same number.
    pub(crate) fn log_with(dir: &Path, seqs: &[u64]) {
        let writer = Writer { lineage: Lineage([1; 16]), epoch: Epoch::FIRST, nonce: Nonce([1; 16]) };
        let mut log = LocalLog::new(dir.to_owned(), writer, Seq::new(seqs[0]).unwrap(), Vec::new()).unwrap();
        let page = |n: u64| vec![u8::try_from(n).unwrap(); 512];
        let sum = |n: u64| Checksum::of_page(PageNumber::FIRST, &page(n));
        for n in seqs {
            let txid = Txid::new(*n).unwrap();
            let header = LtxHeader {
                no_checksum: false,
                page_size: PageSize::MIN,
                commit: PageCount(1),
                min_txid: txid,
                max_txid: txid,
                timestamp: Timestamp(0),
                pre_apply: Some(sum(n - 1)),
                wal_offset: 0,
                wal_size: 0,
                wal_salt: (0, 0),
                node_id: 0,
            };
            let out = log.begin(Timestamp(0)).unwrap();
            let mut encoder = Encoder::new(header, Packing::Lz4, out).unwrap();
            encoder.page(PageNumber::FIRST, &page(*n), out).unwrap();
            encoder.finish(Some(sum(*n)), out).unwrap();
            log.commit(SegmentEntry {
                min_txid: txid,
                max_txid: txid,
                offset: 0,
                len: 0,
                timestamp: Timestamp(0),
                page_size: PageSize::MIN,
                commit: PageCount(1),
                pages: 1,
                pre_apply: Some(sum(n - 1)),
                post_apply: sum(*n),
            });
            log.seal().unwrap().unwrap();
        }
    }
}
