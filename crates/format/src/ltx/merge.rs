//! Merging consecutive LTX files into one (LTX specification, section 10).
//!
//! One pass over all inputs with one page of each in memory: the smallest page number among them comes next, in the copy
//! of the latest input that has it. The result is what applying the inputs in order gives, provided that each input which
//! grows the database holds all the pages that are new (section 9, the growth rule).
//!
//! Inputs are proved as they end, the output is finished only after all of them: a sink that has been given bytes must
//! not make them visible unless [`merge`] succeeds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io::{self, Read};

use super::decode::{Decoder, ReadError};
use super::encode::{EncodeError, Encoded, Encoder};
use super::header::LtxHeader;
use super::{Packing, Trailer};
use crate::{Checksum, DecodeError, ErrorKind, PageNumber};

const WHAT: &str = "LTX files to merge";
/// The output is handed to the sink in pieces of about this size.
const OUTPUT_CHUNK: usize = 256 * 1024;

/// A file that was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeSummary {
    /// Its header.
    pub header: LtxHeader,
    /// Its size, pages and trailer.
    pub encoded: Encoded,
}

/// Why files could not be merged.
#[derive(Debug)]
pub enum MergeError {
    /// An input could not be read.
    Input {
        /// Which, from 0.
        input: usize,
        /// Why.
        error: ReadError,
    },
    /// The inputs do not belong together: other page size, transactions missing, checksums that do not join. The
    /// offset is the number of the input, from 0.
    Chain(DecodeError),
    /// What they make up breaks a rule, for example a snapshot that lacks pages.
    Encode(EncodeError),
    /// The sink failed.
    Sink(io::Error),
}

impl From<EncodeError> for MergeError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input { input, .. } => write!(f, "merge input {input}"),
            Self::Chain(error) => write!(f, "{}: {} at input {} ({})", WHAT, error.kind, error.offset, error.detail),
            Self::Encode(error) => error.fmt(f),
            Self::Sink(_) => f.write_str("write merged LTX file"),
        }
    }
}

impl std::error::Error for MergeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Input { error, .. } => Some(error),
            Self::Sink(error) => Some(error),
            Self::Chain(_) | Self::Encode(_) => None,
        }
    }
}

/// Merges `inputs`, oldest first and at least one, into one file that is handed to `sink` in pieces; the sink empties
/// the buffer.
///
/// Each input must end where its reader does. With [`Packing::Lz4`] a page that is compressed is passed on as it is, one
/// that is stored is compressed. With `no_checksum` database checksums are left out; without it every input needs them.
pub fn merge<R: Read>(
    inputs: Vec<Decoder<R>>,
    packing: Packing,
    no_checksum: bool,
    sink: &mut dyn FnMut(&mut Vec<u8>) -> io::Result<()>,
) -> Result<MergeSummary, MergeError> {
    let headers: Vec<LtxHeader> = inputs.iter().map(|input| *input.header()).collect();
    let header = merged_header(&headers, no_checksum)?;
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, packing, &mut out)?;
    let mut cursors = Cursors::new(inputs)?;
    while let Some((pgno, cursor)) = cursors.newest_of_smallest()? {
        if header.commit.contains(pgno) {
            cursor.write_page(pgno, packing, &mut encoder, &mut out)?;
        }
        hand_over(&mut out, OUTPUT_CHUNK, sink)?;
        cursors.pass(pgno)?;
    }
    let trailers = cursors.trailers();
    check_joints(&headers, &trailers)?;
    let post_apply = trailers.last().and_then(|trailer| trailer.post_apply).filter(|_| !no_checksum);
    let piece = |out: &mut Vec<u8>| hand_over(out, OUTPUT_CHUNK, sink);
    let (encoded, _) = encoder.finish_in_pieces(post_apply, &mut out, piece)?;
    hand_over(&mut out, 0, sink)?;
    Ok(MergeSummary { header, encoded })
}

/// Gives `out` to the sink if at least `len` bytes are in it.
fn hand_over(
    out: &mut Vec<u8>,
    len: usize,
    sink: &mut dyn FnMut(&mut Vec<u8>) -> io::Result<()>,
) -> Result<(), MergeError> {
    if out.len() >= len { sink(out).map_err(MergeError::Sink) } else { Ok(()) }
}

/// The header of the output.
fn merged_header(inputs: &[LtxHeader], no_checksum: bool) -> Result<LtxHeader, MergeError> {
    let error =
        |kind, input: usize, detail| MergeError::Chain(DecodeError::new(kind, WHAT, input as u64).detail(detail));
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(error(ErrorKind::Gap, 0, "nothing to merge".to_owned()));
    };
    for (i, pair) in inputs.windows(2).enumerate() {
        let (before, after) = (&pair[0], &pair[1]);
        if before.page_size != after.page_size {
            return Err(error(ErrorKind::PageSize, i + 1, format!("{} after {}", after.page_size, before.page_size)));
        }
        let joins = after.min_txid.get() - 1 <= before.max_txid.get();
        if !joins || after.max_txid <= before.max_txid {
            let detail = format!("{} to {} after {}", after.min_txid, after.max_txid, before.max_txid);
            return Err(error(ErrorKind::Gap, i + 1, detail));
        }
    }
    if let (false, Some(i)) = (no_checksum, inputs.iter().position(|input| input.no_checksum)) {
        return Err(error(ErrorKind::PostChecksum, i, "it has no checksums and the output needs them".to_owned()));
    }
    Ok(LtxHeader {
        no_checksum,
        page_size: first.page_size,
        commit: last.commit,
        min_txid: first.min_txid,
        max_txid: last.max_txid,
        timestamp: last.timestamp,
        pre_apply: first.pre_apply.filter(|_| !no_checksum),
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    })
}

/// Where an input begins right after another, the checksums must be the same, or the two are of different histories.
fn check_joints(headers: &[LtxHeader], trailers: &[Trailer]) -> Result<(), MergeError> {
    for (i, before) in headers.iter().enumerate() {
        let Some(after) = headers.get(i + 1) else { break };
        let adjacent = after.min_txid.get() - 1 == before.max_txid.get();
        let sums: (Option<Checksum>, Option<Checksum>) = (trailers[i].post_apply, after.pre_apply);
        if let (true, (Some(post), Some(pre))) = (adjacent, sums)
            && post != pre
        {
            let detail = format!("{pre} after {post}");
            return Err(MergeError::Chain(DecodeError::new(ErrorKind::Chain, WHAT, i as u64 + 1).detail(detail)));
        }
    }
    Ok(())
}

/// One input, standing on a page.
struct Cursor<R> {
    decoder: Decoder<R>,
    data: Vec<u8>,
}

impl<R: Read> Cursor<R> {
    fn write_page(
        &self,
        pgno: PageNumber,
        packing: Packing,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let block = self.decoder.page_block().filter(|block| match packing {
            Packing::Lz4 => block.len() < self.data.len(),
            Packing::Stored => true,
        });
        match (block, self.decoder.page_data_crc()) {
            (Some(block), Some(crc)) => encoder.packed_page_hashed(pgno, block, crc, out)?,
            _ => encoder.page(pgno, &self.data, out)?,
        };
        Ok(())
    }
}

/// All inputs. Those that have pages left are in the heap, by page and then newest first.
struct Cursors<R> {
    cursors: Vec<Option<Cursor<R>>>,
    trailers: Vec<Option<Trailer>>,
    heap: BinaryHeap<Reverse<(PageNumber, Reverse<usize>)>>,
}

impl<R: Read> Cursors<R> {
    fn new(inputs: Vec<Decoder<R>>) -> Result<Self, MergeError> {
        let count = inputs.len();
        let cursor = |decoder: Decoder<R>| {
            let data = vec![0; decoder.header().page_size.bytes()];
            Some(Cursor { decoder, data })
        };
        let cursors = inputs.into_iter().map(cursor).collect();
        let mut all = Self { cursors, trailers: vec![None; count], heap: BinaryHeap::with_capacity(count) };
        for input in 0..count {
            all.advance(input)?;
        }
        Ok(all)
    }

    /// Moves an input to its next page, or proves it and lets it go after its last.
    fn advance(&mut self, input: usize) -> Result<(), MergeError> {
        let failed = |error| MergeError::Input { input, error };
        let cursor = self.cursors[input].as_mut().expect("an input in the heap has not ended");
        if let Some(pgno) = cursor.decoder.next_page(&mut cursor.data).map_err(failed)? {
            self.heap.push(Reverse((pgno, Reverse(input))));
            return Ok(());
        }
        let cursor = self.cursors[input].take().expect("looked at above");
        self.trailers[input] = Some(cursor.decoder.finish_at_end().map_err(failed)?);
        Ok(())
    }

    /// The smallest page and the newest input that has it.
    fn newest_of_smallest(&self) -> Result<Option<(PageNumber, &Cursor<R>)>, MergeError> {
        let Some(Reverse((pgno, Reverse(input)))) = self.heap.peek() else { return Ok(None) };
        Ok(Some((*pgno, self.cursors[*input].as_ref().expect("an input in the heap has not ended"))))
    }

    /// Moves all inputs that stand on `pgno`.
    fn pass(&mut self, pgno: PageNumber) -> Result<(), MergeError> {
        while let Some(Reverse((smallest, Reverse(input)))) = self.heap.peek().copied() {
            assert!(smallest >= pgno, "page {smallest} after page {pgno}");
            if smallest != pgno {
                break;
            }
            self.heap.pop();
            self.advance(input)?;
        }
        Ok(())
    }

    /// The trailers, after the last page of all.
    fn trailers(self) -> Vec<Trailer> {
        self.trailers.into_iter().map(|trailer| trailer.expect("all inputs have ended")).collect()
    }
}
