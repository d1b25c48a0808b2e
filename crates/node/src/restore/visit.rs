//! Visits the LTX files of a plan from the newest to the oldest, reading ahead.
//!
//! Small files that lie side by side in one object come together in one read; of a large file only the end of its page
//! index comes at first, and its pages are read as they are wanted.
//!
//! Bounds: what is read ahead never exceeds [`AHEAD_BYTES_MAX`] in memory, nor [`AHEAD_READS_MAX`] requests. A bundle's
//! entries are read when its turn comes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::manifest::ManifestFile;
use rhyolite_format::segment::{self, SegmentEntry, SegmentHeader};
use rhyolite_format::{PageCount, Txid};
use rhyolite_logic::restore_plan::PlanStep;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::RestoreError;
use super::index::Span;
use super::pool::{acquire, finished};
use super::reader::Reader;

/// Files up to this size are read whole, and neighbours together up to this size.
pub(crate) const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Bytes that may be in memory before their turn comes.
const AHEAD_BYTES_MAX: usize = 8 << 20;
/// Requests that may be under way before their turn comes.
const AHEAD_READS_MAX: usize = 16;
/// Unit of the memory account.
const MEMORY_UNIT: usize = 4096;

/// One LTX file of the plan.
#[derive(Clone, Debug)]
pub(crate) struct LtxFile {
    pub(crate) span: Span,
    pub(crate) min_txid: Txid,
    pub(crate) max_txid: Txid,
    pub(crate) commit: PageCount,
}

/// What is visited at once: neighbours in one object, newest first.
#[derive(Debug)]
pub(crate) struct Visit {
    /// The files. More than one only if all of their bytes are at hand.
    pub(crate) files: Vec<LtxFile>,
    /// What was read of the object.
    pub(crate) bytes: Bytes,
    /// Where in the object `bytes` starts.
    pub(crate) start: u64,
    /// The right to hold `bytes`.
    pub(crate) held: Option<OwnedSemaphorePermit>,
}

impl Visit {
    /// The bytes of a file, if all of them are here.
    pub(crate) fn whole(&self, file: &LtxFile) -> Option<Bytes> {
        let start = file.span.range.start.checked_sub(self.start)?;
        let end = file.span.range.end.checked_sub(self.start)?;
        (end <= self.bytes.len() as u64).then(|| self.bytes.slice(start as usize..end as usize))
    }
}

/// What is to be read for one visit.
#[derive(Debug)]
struct Wish {
    files: Vec<LtxFile>,
    range: Range<u64>,
}

/// The visits of a plan, in order, read ahead by a task of their own.
#[derive(Debug)]
pub(crate) struct Visits {
    queue: mpsc::Receiver<JoinHandle<Result<Visit, RestoreError>>>,
    /// Ends the task when nobody wants its visits any more.
    _producer: JoinSet<()>,
}

impl Visits {
    /// Starts to read. `steps` are oldest first, as in the plan; `cache` has the bytes of segments that are known already.
    pub(crate) fn start(reader: Arc<Reader>, steps: Vec<PlanStep>, cache: HashMap<String, Bytes>) -> Self {
        let (sender, queue) = mpsc::channel(AHEAD_READS_MAX);
        let memory = Arc::new(Semaphore::new(AHEAD_BYTES_MAX / MEMORY_UNIT));
        let mut producer = JoinSet::new();
        let ahead = Ahead { reader, memory, sender, cache };
        producer.spawn(ahead.run(steps));
        Self { queue, _producer: producer }
    }

    /// The next visit, older than all before; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Visit>, RestoreError> {
        match self.queue.recv().await {
            Some(visit) => finished(visit.await).map(Some),
            None => Ok(None),
        }
    }
}

/// Reads ahead.
struct Ahead {
    reader: Arc<Reader>,
    memory: Arc<Semaphore>,
    sender: mpsc::Sender<JoinHandle<Result<Visit, RestoreError>>>,
    cache: HashMap<String, Bytes>,
}

impl Ahead {
    async fn run(mut self, steps: Vec<PlanStep>) {
        for step in steps.into_iter().rev() {
            let wishes = match step {
                PlanStep::Snapshot(file) | PlanStep::Merged(file) => Ok(vec![whole_object(&file)]),
                PlanStep::Segment { key, entries, .. } => {
                    let known = self.cache.remove(&key);
                    let wishes = wishes_for(&Arc::from(key), &entries);
                    if let Some(bytes) = known {
                        if self.send_known(&wishes, &bytes).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Ok(wishes)
                }
                PlanStep::Bundle { file, after, through } => bundle_entries(&self.reader, &file).await.map(|entries| {
                    let wanted = |entry: &&SegmentEntry| after < entry.max_txid && entry.max_txid <= through;
                    let entries: Vec<_> = entries.iter().filter(wanted).cloned().collect();
                    wishes_for(&Arc::from(file.key.as_str()), &entries)
                }),
            };
            let sent = match wishes {
                Ok(wishes) => self.send(wishes).await,
                Err(e) => self.sender.send(tokio::spawn(async { Err(e) })).await.map_err(|_| ()),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Fails when nobody wants the visits any more.
    async fn send(&self, wishes: Vec<Wish>) -> Result<(), ()> {
        for wish in wishes {
            let units = ((wish.range.end - wish.range.start) as usize).div_ceil(MEMORY_UNIT);
            let held = acquire(&self.memory, units).await;
            let reader = Arc::clone(&self.reader);
            let visit = tokio::spawn(async move {
                let bytes = reader.get_range(&wish.files[0].span.key, wish.range.clone()).await?;
                Ok(Visit { files: wish.files, bytes, start: wish.range.start, held: Some(held) })
            });
            self.sender.send(visit).await.map_err(|_| ())?;
        }
        Ok(())
    }

    async fn send_known(&self, wishes: &[Wish], object: &Bytes) -> Result<(), ()> {
        for Wish { files, range } in wishes {
            let bytes = object.slice(range.start as usize..range.end as usize);
            let visit = Visit { files: files.clone(), bytes, start: range.start, held: None };
            self.sender.send(tokio::spawn(async { Ok(visit) })).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

fn whole_object(file: &ManifestFile) -> Wish {
    let span = Span { key: Arc::from(file.key.as_str()), range: 0..file.size };
    let range = if span.len() <= BATCH_BYTES_MAX { span.range.clone() } else { span.tail() };
    let file = LtxFile { span, min_txid: file.min_txid, max_txid: file.max_txid, commit: file.commit };
    Wish { files: vec![file], range }
}

/// Groups neighbouring files, newest first. `entries` ascend.
fn wishes_for(key: &Arc<str>, entries: &[SegmentEntry]) -> Vec<Wish> {
    let mut wishes: Vec<Wish> = Vec::new();
    for entry in entries.iter().rev() {
        let span = Span { key: Arc::clone(key), range: entry.range() };
        let range = if span.len() <= BATCH_BYTES_MAX { span.range.clone() } else { span.tail() };
        let is_whole = range == span.range;
        let file = LtxFile { span, min_txid: entry.min_txid, max_txid: entry.max_txid, commit: entry.commit };
        match wishes.last_mut() {
            // Older files lie before newer ones, so a group grows towards the start of the object.
            Some(wish)
                if is_whole && wish.range.start == range.end && wish.range.end - range.start <= BATCH_BYTES_MAX =>
            {
                wish.range.start = range.start;
                wish.files.push(file);
            }
            _ => wishes.push(Wish { files: vec![file], range }),
        }
    }
    wishes
}

/// The entries of a bundle.
pub(crate) async fn bundle_entries(reader: &Reader, file: &ManifestFile) -> Result<Vec<SegmentEntry>, RestoreError> {
    let damaged = |e| RestoreError::damaged(&file.key, e);
    let tail = u64::from(file.entries) * segment::ENTRY_SIZE as u64 + segment::FOOTER_SIZE as u64;
    let start = file.size.checked_sub(tail).ok_or_else(|| {
        RestoreError::contradiction(&file.key, format!("{} entries in {} bytes", file.entries, file.size))
    })?;
    let header = reader.get_range(&file.key, 0..segment::HEADER_SIZE as u64).await?;
    let header = SegmentHeader::decode(&header).map_err(damaged)?;
    let tail = reader.get_range(&file.key, start..file.size).await?;
    let entries = segment::decode_index(&header, &tail, file.size).map_err(damaged)?;
    let ends = entries.first().zip(entries.last()).map(|(first, last)| (first.min_txid, first.pre_apply, last.end()));
    if ends != Some((file.min_txid, file.pre_apply, file.end())) {
        return Err(RestoreError::contradiction(&file.key, "it holds other transactions than the manifest says"));
    }
    Ok(entries)
}
