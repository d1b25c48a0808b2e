//! Merges any number of LTX files of a store in bounded memory.
//!
//! Small files that lie side by side are read together and merged in memory; what comes out is spooled to a file without a
//! name. Large files are streamed. When there are still too many for one pass, neighbours among the spooled ones are merged
//! again. Order is kept throughout, so the newest copy of a page wins.
//!
//! Bounds: 4 MiB per read of small files, 16 MiB for streams, 16 MiB for the pages that one pass looks at.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::PageSize;
use rhyolite_format::ltx::{Decoder, MergeError, MergeSummary, Packing, merge};
use rhyolite_format::manifest::{FileKind, ManifestFile};
use rhyolite_logic::restore_plan::PlanStep;
use tokio::runtime::Handle;

use super::write::given_up;
use crate::restore::RestoreError;
use crate::restore::draft::{Draft, spool_folder};
use crate::restore::pool::finished;
use crate::restore::reader::Reader;
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, stream_error};
use crate::restore::visit::bundle_entries;

/// Files up to this size are read whole, and neighbours together up to this size.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// Memory for the pages of one pass: each input has one, packed and unpacked.
const PAGES_BYTES_MAX: usize = 16 << 20;
/// Memory for the streams of one pass, each of which holds two pieces.
const STREAMS_BYTES_MAX: u64 = 16 << 20;
/// Most inputs of one pass.
const INPUTS_MAX: usize = 512;
/// Bytes of the spool that are read at once for one input.
const SPOOL_READ_BYTES: usize = 32 << 10;

/// Takes what a merge makes, piece by piece.
pub(super) type Sink<'a> = dyn FnMut(&mut Vec<u8>) -> io::Result<()> + 'a;

/// An LTX file: the object, and where in it.
type Span = (Arc<str>, Range<u64>);

/// LTX files to merge, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Inputs {
    spans: Vec<Span>,
    page_size: Option<PageSize>,
}

impl Inputs {
    /// Adds all of a file of the manifest.
    pub(super) async fn add_file(&mut self, reader: &Reader, file: &ManifestFile) -> Result<(), RestoreError> {
        self.page_size = Some(file.page_size);
        let key: Arc<str> = Arc::from(file.key.as_str());
        if file.kind == FileKind::Bundle {
            let entries = bundle_entries(reader, file).await?;
            self.spans.extend(entries.iter().map(|entry| (Arc::clone(&key), entry.range())));
        } else {
            self.spans.push((key, 0..file.size));
        }
        Ok(())
    }

    /// Adds what a step of a plan takes.
    pub(super) async fn add_step(&mut self, reader: &Reader, step: &PlanStep) -> Result<(), RestoreError> {
        match step {
            PlanStep::Snapshot(file) | PlanStep::Merged(file) => self.add_file(reader, file).await?,
            PlanStep::Bundle { file, after, through } => {
                self.page_size = Some(file.page_size);
                let key: Arc<str> = Arc::from(file.key.as_str());
                let entries = bundle_entries(reader, file).await?;
                let wanted = entries.iter().filter(|entry| *after < entry.max_txid && entry.max_txid <= *through);
                self.spans.extend(wanted.map(|entry| (Arc::clone(&key), entry.range())));
            }
            PlanStep::Segment { key, entries, .. } => {
                self.page_size = entries.last().map(|entry| entry.page_size);
                let key: Arc<str> = Arc::from(key.as_str());
                self.spans.extend(entries.iter().map(|entry| (Arc::clone(&key), entry.range())));
            }
        }
        Ok(())
    }

    /// Merges them all into `sink`. Blocks.
    pub(super) fn merge(self, reader: &Arc<Reader>, sink: &mut Sink<'_>) -> Result<MergeSummary, RestoreError> {
        let page_size = self.page_size.expect("there is at least one input");
        let inputs_max = (PAGES_BYTES_MAX / (2 * page_size.bytes())).clamp(2, INPUTS_MAX);
        let mut pass = Pass { reader, inputs_max, spool: None };
        let mut inputs = pass.gather(&self.spans)?;
        while inputs.len() > inputs_max {
            inputs = pass.reduce(inputs)?;
        }
        merge_inputs(reader, inputs, sink)
    }
}

/// One input of a pass.
#[derive(Debug)]
enum Input {
    /// Streamed from the store.
    Object(Arc<str>, Range<u64>),
    /// In memory.
    Memory(Arc<str>, Bytes),
    /// Merged before.
    Spool(Arc<File>, Range<u64>),
}

impl Input {
    fn key(&self) -> &str {
        match self {
            Self::Object(key, _) | Self::Memory(key, _) => key,
            Self::Spool(..) => "spool file",
        }
    }
}

/// Brings the number of inputs down.
struct Pass<'a> {
    reader: &'a Arc<Reader>,
    inputs_max: usize,
    spool: Option<(Arc<File>, u64)>,
}

impl Pass<'_> {
    /// Reads small files, merges as many as fit in memory at once, and spools what they make.
    fn gather(&mut self, spans: &[Span]) -> Result<Vec<Input>, RestoreError> {
        let mut inputs = Vec::new();
        let mut rest = spans;
        while let Some((key, first)) = rest.first() {
            let mut bytes = 0;
            let small = rest.iter().take(self.inputs_max).take_while(|(_, range)| {
                bytes += range.end - range.start;
                bytes <= BATCH_BYTES_MAX
            });
            let taken = small.count();
            if taken == 0 {
                inputs.push(Input::Object(Arc::clone(key), first.clone()));
                rest = &rest[1..];
                continue;
            }
            let group = self.read(&rest[..taken])?;
            if taken == spans.len() {
                return Ok(group);
            }
            inputs.push(self.spool(group)?);
            rest = &rest[taken..];
        }
        Ok(inputs)
    }

    /// Reads small files, neighbours with one request.
    fn read(&self, spans: &[Span]) -> Result<Vec<Input>, RestoreError> {
        let runtime = Handle::current();
        let neighbours = |a: &Span, b: &Span| a.0 == b.0 && a.1.end == b.1.start;
        let mut fetches = Vec::new();
        for run in spans.chunk_by(neighbours) {
            let (reader, key) = (Arc::clone(self.reader), Arc::clone(&run[0].0));
            let range = run[0].1.start..run[run.len() - 1].1.end;
            fetches.push((run, runtime.spawn(async move { reader.get_range(&key, range).await })));
        }
        let mut inputs = Vec::with_capacity(spans.len());
        for (run, fetch) in fetches {
            let bytes = finished(runtime.block_on(fetch))?;
            let start = run[0].1.start;
            for (key, range) in run {
                let within = (range.start - start) as usize..(range.end - start) as usize;
                inputs.push(Input::Memory(Arc::clone(key), bytes.slice(within)));
            }
        }
        Ok(inputs)
    }

    /// Merges each run of spooled inputs, or if there is none, the newest inputs.
    fn reduce(&mut self, inputs: Vec<Input>) -> Result<Vec<Input>, RestoreError> {
        let mut reduced = Vec::new();
        let mut run = Vec::new();
        for input in inputs {
            let is_spooled = matches!(input, Input::Spool(..));
            if run.len() == self.inputs_max || (!is_spooled && !run.is_empty()) {
                reduced.push(self.spool(std::mem::take(&mut run))?);
            }
            if is_spooled { run.push(input) } else { reduced.push(input) }
        }
        if !run.is_empty() {
            reduced.push(self.spool(run)?);
        }
        if reduced.len() > self.inputs_max {
            let newest = reduced.split_off(reduced.len() - self.inputs_max);
            reduced.push(self.spool(newest)?);
        }
        Ok(reduced)
    }

    /// Merges inputs into the spool.
    fn spool(&mut self, mut inputs: Vec<Input>) -> Result<Input, RestoreError> {
        if matches!(inputs[..], [Input::Spool(..)]) {
            return Ok(inputs.remove(0));
        }
        let (file, start) = match self.spool.take() {
            Some(spool) => spool,
            None => (Arc::new(Draft::unnamed(&spool_folder(None))?.into_file()), 0),
        };
        let mut end = start;
        let result = merge_inputs(self.reader, inputs, &mut |bytes| {
            file.write_all_at(bytes, end)?;
            end += bytes.len() as u64;
            bytes.clear();
            Ok(())
        });
        self.spool = Some((Arc::clone(&file), end));
        result.map(|_| Input::Spool(file, start..end))
    }
}

/// Merges in one pass.
fn merge_inputs(reader: &Arc<Reader>, inputs: Vec<Input>, sink: &mut Sink<'_>) -> Result<MergeSummary, RestoreError> {
    let names: Vec<String> = inputs.iter().map(|input| input.key().to_owned()).collect();
    let objects = inputs.iter().filter(|input| matches!(input, Input::Object(..))).count() as u64;
    let piece_bytes = (STREAMS_BYTES_MAX / 2 / objects.max(1)).min(PIECE_BYTES_MAX);
    let mut decoders = Vec::with_capacity(inputs.len());
    for (input, name) in inputs.into_iter().zip(&names) {
        let stream: Box<dyn Read> = match input {
            Input::Object(key, range) => Box::new(ObjectStream::new(Arc::clone(reader), key, range, piece_bytes)),
            Input::Memory(_, bytes) => Box::new(Cursor::new(bytes)),
            Input::Spool(file, range) => {
                Box::new(BufReader::with_capacity(SPOOL_READ_BYTES, FileRange { file, range }))
            }
        };
        decoders.push(Decoder::new(stream).map_err(|e| stream_error(name, e))?);
    }
    merge(decoders, Packing::Lz4, false, sink).map_err(|e| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        merge_error(&names, e)
    })
}

/// A part of a file, from start to end.
#[derive(Debug)]
struct FileRange {
    file: Arc<File>,
    range: Range<u64>,
}

impl Read for FileRange {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX).min(out.len());
        let len = self.file.read_at(&mut out[..len], self.range.start)?;
        self.range.start += len as u64;
        Ok(len)
    }
}

/// What a merge of these objects came to.
pub(super) fn merge_error(keys: &[&str], error: MergeError) -> RestoreError {
    let last = keys.last().copied().unwrap_or_default();
    match error {
        MergeError::Input { input, error } => stream_error(keys.get(input).copied().unwrap_or(last), error),
        MergeError::Chain(e) => {
            let input = usize::try_from(e.offset).ok().and_then(|input| keys.get(input));
            RestoreError::damaged(input.copied().unwrap_or(last), e)
        }
        MergeError::Encode(e) => RestoreError::contradiction(last, e.to_string()),
        MergeError::Sink(e) => given_up(e),
    }
}
