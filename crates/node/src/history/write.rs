//! Writes the objects of a history: read and packed on one thread, sent from another, a few pieces in between.
//!
//! An object is a function of what it is made from and of the epoch in its key. Somebody else, or an earlier try, may have made it
//! already, or be making it right now: what lies under the key is then compared, and used when it is the same. It is never
//! removed while somebody may be about to name it: only when it is another, nobody names it, and it is older than the grace period.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::crc::Crc64;
use rhyolite_format::ltx::{Decoder, Packing, merge};
use rhyolite_format::manifest::{Crc64Hex, FileKind, ManifestFile};
use rhyolite_format::segment::{SegmentEntry, SegmentHeader, SegmentKind, encode_index};
use rhyolite_format::{Epoch, Lineage, Pos, Seq, Timestamp, Txid, keys};
use rhyolite_logic::history_plan::{LogEntry, Piece, Written, merged_file, merged_key};
use rhyolite_logic::restore_plan::RestorePlan;
use rhyolite_store::{Meta, Operation, Store, StoreError, StoreErrorKind, Upload};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::merge::{Inputs, merge_error};
use super::{HistoryError, SegmentSource};
use crate::manifest_swap;
use crate::restore::RestoreError;
use crate::restore::catalog::Catalog;
use crate::restore::pool::finished;
use crate::restore::reader::Reader;
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, io_error, stream_error};

/// Bytes that are sent at once.
const SEND_BYTES: usize = 1 << 20;
/// Pieces that may wait to be sent.
const SEND_QUEUE: usize = 4;
/// Segments that are opened before their turn comes.
const OPEN_AHEAD: usize = 4;
/// Bytes of a local segment that are read at once.
const LOCAL_READ_BYTES: usize = 256 << 10;

/// Where objects are made.
#[derive(Clone, Debug)]
pub(super) struct Workshop {
    pub(super) reader: Arc<Reader>,
    pub(super) lineage: Lineage,
    pub(super) epoch: Epoch,
    /// An object without a name that is older than this was given up by whoever made it.
    pub(super) leftover_before: Timestamp,
}

/// Takes the bytes of an object, on the thread that makes them.
#[derive(Debug)]
pub(crate) struct Out {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    crc: Crc64,
    len: u64,
}

impl Out {
    /// Takes all of `bytes` and leaves it empty.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.crc.update(bytes);
        self.len += bytes.len() as u64;
        if self.buffer.is_empty() {
            std::mem::swap(&mut self.buffer, bytes);
        } else {
            self.buffer.append(bytes);
        }
        if self.buffer.len() >= SEND_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> io::Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender.blocking_send(bytes).map_err(|_| io::Error::other("the upload was given up"))
    }
}

impl Workshop {
    /// Writes one object whose bytes `make` gives out, and looks that it is there.
    async fn write<T: Send + 'static>(
        &self,
        key: &str,
        make: impl FnOnce(&mut Out) -> Result<T, RestoreError> + Clone + Send + 'static,
    ) -> Result<(T, Written), HistoryError> {
        let store = self.reader.store();
        manifest_swap::refuse_named(&**store, key).await?;
        match store.head(key).await {
            Ok(meta) => {
                if let Some(same) = self.compare(key, meta.size, make.clone()).await? {
                    return Ok(same);
                }
                self.remove_leftover(key, &meta).await?;
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        match self.send(key, make.clone()).await {
            // Somebody else was faster.
            Err(HistoryError::Write(error)) if error.kind == StoreErrorKind::Exists => {
                let size = store.head(key).await?.size;
                self.compare(key, size, make).await?.ok_or(HistoryError::Write(error))
            }
            sent => sent,
        }
    }

    /// Removes an object that is not what it should be and that nobody will name any more.
    async fn remove_leftover(&self, key: &str, meta: &Meta) -> Result<(), HistoryError> {
        if meta.modified.is_some_and(|written| written > self.leftover_before) {
            let text = "another object lies here, and somebody may be about to name it: tried again later";
            let store = self.reader.store().describe();
            return Err(StoreError::new(StoreErrorKind::Exists, Operation::Upload, key, store, text.to_owned()).into());
        }
        Ok(manifest_swap::clear_unnamed(&**self.reader.store(), key).await?)
    }

    async fn send<T: Send + 'static>(
        &self,
        key: &str,
        make: impl FnOnce(&mut Out) -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<(T, Written), HistoryError> {
        let store = self.reader.store();
        let upload = store.upload(key).await?;
        write_object(&**store, key, upload, make).await
    }

    /// Compares what `make` gives out with the object that is there, byte for byte. `None` when it is another.
    async fn compare<T: Send + 'static>(
        &self,
        key: &str,
        size: u64,
        make: impl FnOnce(&mut Out) -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<Option<(T, Written)>, HistoryError> {
        let (mut pieces, maker) = start(make);
        let mut at = 0;
        while let Some(piece) = pieces.recv().await {
            let end = at + piece.len() as u64;
            let is_same = piece.is_empty() || (end <= size && self.reader.get_range(key, at..end).await? == piece);
            if !is_same {
                return Ok(None);
            }
            at = end;
        }
        let made = finished(maker.await)?;
        Ok((at == size).then_some(made))
    }

    /// Writes a piece of the log as an object of its own. Pages that are stored as they are get packed.
    pub(super) async fn bundle(
        &self,
        piece: &Piece,
        catalog: &Catalog,
        local: Option<&Arc<dyn SegmentSource>>,
    ) -> Result<ManifestFile, HistoryError> {
        let (entries, is_bundle) = match piece {
            Piece::Bundle(entries) => (entries.as_slice(), true),
            Piece::Snapshot(entry) => (std::slice::from_ref(entry), false),
        };
        let last_seq = entries[entries.len() - 1].seq;
        let last = catalog.log.iter().find(|segment| segment.seq == last_seq).expect("planned from this listing");
        let header = SegmentHeader {
            kind: SegmentKind::Bundle { last_seq },
            lineage: self.lineage,
            epoch: self.epoch,
            seq: entries[0].seq,
            nonce: last.header.nonce,
            created: last.header.created,
        };
        let header = is_bundle.then_some(header);
        let runs = runs(entries, &catalog.cache, local);
        let reader = Arc::clone(&self.reader);
        let make = move |out: &mut Out| write_log(header.as_ref(), runs, &reader, out);
        let ((), written) = self.write(&piece.key(self.epoch), make).await?;
        Ok(piece.file(self.epoch, written))
    }

    /// Writes what `inputs` merge to.
    pub(super) async fn merge(
        &self,
        level: u8,
        inputs: &[ManifestFile],
        sources: Inputs,
    ) -> Result<ManifestFile, HistoryError> {
        let key = merged_key(level, inputs, self.epoch);
        let (first, last) = inputs.first().zip(inputs.last()).expect("a merge has inputs");
        let expected = (first.min_txid, first.pre_apply, last.end());
        let reader = Arc::clone(&self.reader);
        let make = move |out: &mut Out| sources.merge(&reader, &mut |bytes| out.take(bytes));
        let (summary, written) = self.write(&key, make).await?;
        let post_apply = summary.encoded.trailer.post_apply;
        let end = post_apply.map(|checksum| Pos { txid: summary.header.max_txid, checksum });
        if (summary.header.min_txid, summary.header.pre_apply, end) != (expected.0, expected.1, Some(expected.2)) {
            return Err(RestoreError::contradiction(&key, "the merged files are not what the manifest says").into());
        }
        Ok(merged_file(level, inputs, u64::from(summary.encoded.pages), self.epoch, written))
    }

    /// Writes the state of a plan as a snapshot. Its pages are proved by its checksum on the way.
    pub(super) async fn snapshot(
        &self,
        plan: &RestorePlan,
        min_time: Timestamp,
        sources: Inputs,
    ) -> Result<ManifestFile, HistoryError> {
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, plan.pos.txid, self.epoch);
        let reader = Arc::clone(&self.reader);
        let make = move |out: &mut Out| sources.merge(&reader, &mut |bytes| out.take(bytes));
        let (summary, written) = self.write(&key, make).await?;
        let found = (summary.header.max_txid, summary.encoded.trailer.post_apply, summary.header.commit);
        if !summary.header.is_snapshot() || found != (plan.pos.txid, Some(plan.pos.checksum), plan.commit) {
            return Err(RestoreError::contradiction(&key, "the merged files are not what the manifest says").into());
        }
        Ok(ManifestFile {
            kind: FileKind::Snapshot,
            key,
            level: keys::SNAPSHOT_LEVEL,
            min_txid: Txid::FIRST,
            max_txid: plan.pos.txid,
            min_time: min_time.min(plan.time),
            max_time: plan.time,
            size: written.size,
            crc64: Crc64Hex(written.crc64),
            page_size: plan.page_size,
            commit: plan.commit,
            pre_apply: None,
            post_apply: plan.pos.checksum,
            pages: u64::from(summary.encoded.pages),
            entries: 1,
        })
    }
}

/// Sends the bytes that `make` gives out through an upload, and looks that the object is there.
pub(crate) async fn write_object<T: Send + 'static>(
    store: &dyn Store,
    key: &str,
    mut upload: Box<dyn Upload>,
    make: impl FnOnce(&mut Out) -> Result<T, RestoreError> + Send + 'static,
) -> Result<(T, Written), HistoryError> {
    let (mut pieces, maker) = start(make);
    while let Some(piece) = pieces.recv().await {
        if let Err(e) = upload.write(piece).await {
            drop(pieces);
            // Nothing can be done about a part of an object that stays.
            let _ = upload.abort().await;
            return Err(e.into());
        }
    }
    let (value, written) = match finished(maker.await) {
        Ok(made) => made,
        Err(e) => {
            let _ = upload.abort().await;
            return Err(e.into());
        }
    };
    let version = upload.finish().await?;
    store.verify_created(key, &version, written.size).await?;
    Ok((value, written))
}

/// Starts to make an object on a thread of its own. Dropping the receiver gives it up.
#[expect(clippy::type_complexity, reason = "used twice, right above")]
fn start<T: Send + 'static>(
    make: impl FnOnce(&mut Out) -> Result<T, RestoreError> + Send + 'static,
) -> (mpsc::Receiver<Bytes>, JoinHandle<Result<(T, Written), RestoreError>>) {
    let (sender, pieces) = mpsc::channel(SEND_QUEUE);
    let maker = tokio::task::spawn_blocking(move || {
        let mut out = Out { sender, buffer: Vec::new(), crc: Crc64::new(), len: 0 };
        let value = make(&mut out)?;
        // Fails only if the receiver was dropped, and then nobody wants it.
        let _ = out.send();
        Ok((value, Written { size: out.len, crc64: out.crc.sum() }))
    });
    (pieces, maker)
}

/// Neighbouring transactions of one segment, and where to read them.
#[derive(Clone, Debug)]
struct Run {
    key: Arc<str>,
    entries: Vec<SegmentEntry>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// All bytes of the segment.
    Memory(Bytes),
    /// Perhaps this machine still has it; otherwise the store.
    Elsewhere(Seq, Option<Arc<dyn SegmentSource>>),
}

/// Groups transactions by segment.
fn runs(entries: &[LogEntry], cache: &HashMap<String, Bytes>, local: Option<&Arc<dyn SegmentSource>>) -> Vec<Run> {
    let chunks = entries.chunk_by(|a, b| a.seq == b.seq);
    let runs = chunks.map(|chunk| {
        let seq = chunk[0].seq;
        let key = keys::segment(seq);
        let place = match cache.get(&key) {
            Some(bytes) => Place::Memory(bytes.clone()),
            None => Place::Elsewhere(seq, local.cloned()),
        };
        Run { key: Arc::from(key), entries: chunk.iter().map(|one| one.entry.clone()).collect(), place }
    });
    runs.collect()
}

impl Run {
    fn range(&self) -> Range<u64> {
        let (first, last) = self.entries.first().zip(self.entries.last()).expect("a chunk is not empty");
        first.offset..last.range().end
    }

    /// Starts to read.
    fn open(&self, reader: &Arc<Reader>) -> Result<Box<dyn Read>, RestoreError> {
        let range = self.range();
        let (seq, local) = match &self.place {
            Place::Memory(bytes) => {
                return Ok(Box::new(io::Cursor::new(bytes.slice(range.start as usize..range.end as usize))));
            }
            Place::Elsewhere(seq, local) => (*seq, local),
        };
        if let Some(mut file) = local.as_ref().and_then(|local| local.open(seq)) {
            file.seek(SeekFrom::Start(range.start)).map_err(|e| io_error(&self.key, e))?;
            return Ok(Box::new(BufReader::with_capacity(LOCAL_READ_BYTES, file.take(range.end - range.start))));
        }
        Ok(Box::new(ObjectStream::new(Arc::clone(reader), Arc::clone(&self.key), range, PIECE_BYTES_MAX)))
    }
}

/// Writes transactions one after the other, with header and index around them if it is a bundle. Blocks.
fn write_log(
    header: Option<&SegmentHeader>,
    runs: Vec<Run>,
    reader: &Arc<Reader>,
    out: &mut Out,
) -> Result<(), RestoreError> {
    let mut bytes = header.map(|header| header.encode().to_vec()).unwrap_or_default();
    out.take(&mut bytes).map_err(given_up)?;
    let mut index = Vec::new();
    let mut runs = runs.into_iter();
    let mut ahead = VecDeque::new();
    loop {
        while ahead.len() < OPEN_AHEAD {
            let Some(run) = runs.next() else { break };
            let stream = run.open(reader)?;
            ahead.push_back((run, stream));
        }
        let Some((run, mut stream)) = ahead.pop_front() else { break };
        for entry in run.entries {
            let offset = out.len;
            repack(&run.key, &mut stream, &entry, out)?;
            index.push(SegmentEntry { offset, len: out.len - offset, ..entry });
        }
    }
    if let Some(header) = header {
        encode_index(&index, header, out.len, &mut bytes);
        out.take(&mut bytes).map_err(given_up)?;
    }
    Ok(())
}

/// Copies one LTX file, checks it, and packs what is not packed.
fn repack(key: &str, stream: &mut dyn Read, entry: &SegmentEntry, out: &mut Out) -> Result<(), RestoreError> {
    let decoder = Decoder::new(stream.take(entry.len)).map_err(|e| stream_error(key, e))?;
    let summary = merge(vec![decoder], Packing::Lz4, false, &mut |bytes| out.take(bytes));
    let summary = summary.map_err(|e| merge_error(&[key], e))?;
    let (header, encoded) = (summary.header, summary.encoded);
    let found = (header.min_txid, header.max_txid, header.pre_apply, encoded.trailer.post_apply, encoded.pages);
    if found == (entry.min_txid, entry.max_txid, entry.pre_apply, Some(entry.post_apply), entry.pages) {
        return Ok(());
    }
    let detail = format!("transactions {} to {} are not what its index says", header.min_txid, header.max_txid);
    Err(RestoreError::contradiction(key, detail))
}

/// The upload failed, and its error is what counts.
pub(crate) fn given_up(_: io::Error) -> RestoreError {
    RestoreError::Cancelled
}
