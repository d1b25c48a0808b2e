//! Restoring from a replica of Litestream 0.5: LTX files of several levels, without checksums of the database.
//!
//! The planned files are read whole, from the newest to the oldest, and the first copy of a page that is met is taken: what
//! merging them would give. Reading all of every file is what makes its checksum count. Memory: one bit per page, and two
//! pieces of a file.

use std::sync::Arc;

use rhyolite_format::litestream::ReplicaKey;
use rhyolite_format::ltx::{Decoder, LtxHeader, Trailer, layout::HEADER_SIZE};
use rhyolite_format::{Checksum, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_logic::litestream_plan::{self, ReplicaFile, SNAPSHOT_LEVEL};
use rhyolite_store::Entry;
use tokio::task::JoinSet;

use super::{Image, Proof, ReplicaPoint, is_about_time};
use crate::progress::{Progress, Stage};
use crate::restore::RestoreError;
use crate::restore::draft::{Draft, FileSink};
use crate::restore::pool::finished;
use crate::restore::reader::Reader;
use crate::restore::sink::{PageSink, RunBuffer};
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, stream_error};
use crate::restore::wanted::Wanted;

/// Headers that are asked for at the same time.
const REQUESTS_MAX: usize = 16;
/// Pages after which the progress is told.
const PROGRESS_PAGES: u64 = 256;

/// One file of a replica.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) file: ReplicaFile,
    pub(super) key: String,
    pub(super) size: u64,
}

/// The files of a replica.
#[derive(Clone, Debug)]
pub(super) struct Replica5 {
    files: Vec<Listed>,
}

impl Replica5 {
    pub(super) fn new(listed: Vec<(ReplicaKey, Entry)>) -> Self {
        let files = listed.into_iter().filter_map(|(key, entry)| {
            let ReplicaKey::Ltx { level, name, .. } = key else { return None };
            let created = entry.modified.unwrap_or(Timestamp(0));
            let file = ReplicaFile { level, min_txid: name.min_txid, max_txid: name.max_txid, created };
            Some(Listed { file, key: entry.key, size: entry.size })
        });
        Self { files: files.collect() }
    }

    pub(super) fn files(&self) -> &[Listed] {
        &self.files
    }

    fn facts(&self) -> Vec<ReplicaFile> {
        self.files.iter().map(|listed| listed.file).collect()
    }

    /// The listed file that a plan names.
    fn listed(&self, file: &ReplicaFile) -> &Listed {
        let same = |listed: &&Listed| {
            (listed.file.level, listed.file.min_txid, listed.file.max_txid)
                == (file.level, file.min_txid, file.max_txid)
        };
        self.files.iter().find(same).expect("a plan names only what it was given")
    }

    /// The files to merge, oldest first.
    pub(super) async fn plan(&self, reader: &Arc<Reader>, target: Target) -> Result<Vec<Listed>, RestoreError> {
        let dated;
        let replica = if is_about_time(target) {
            dated = self.dated(reader).await?;
            &dated
        } else {
            self
        };
        let plan = litestream_plan::resolve(&replica.facts(), target)?;
        Ok(plan.iter().map(|file| replica.listed(file).clone()).collect())
    }

    /// The same files, with the times that their headers say: those of the store are often those of a copy.
    async fn dated(&self, reader: &Arc<Reader>) -> Result<Self, RestoreError> {
        let headers = headers(reader, &self.files).await?;
        let mut dated = self.clone();
        for (listed, header) in dated.files.iter_mut().zip(headers) {
            listed.file.created = header.timestamp;
        }
        Ok(dated)
    }

    pub(super) async fn points(&self, reader: &Arc<Reader>, limit: usize) -> Result<Vec<ReplicaPoint>, RestoreError> {
        let mut points = litestream_plan::points(&self.facts());
        points.drain(..points.len().saturating_sub(limit));
        // Every file that ends at a listed point: the first that was made says when.
        let ends: std::collections::HashSet<_> = points.iter().map(|point| point.max_txid).collect();
        let files: Vec<Listed> = self.files.iter().filter(|f| ends.contains(&f.file.max_txid)).cloned().collect();
        let headers = headers(reader, &files).await?;
        let mut listed: Vec<(Listed, LtxHeader)> = files.into_iter().zip(headers).collect();
        listed.sort_by_key(|(file, header)| (file.file.max_txid, header.timestamp, file.file.level));
        let points = listed.chunk_by(|(a, _), (b, _)| a.file.max_txid == b.file.max_txid).map(|same_end| {
            let (file, header) = &same_end[0];
            ReplicaPoint {
                txid: Some(file.file.max_txid),
                place: None,
                time: header.timestamp,
                is_snapshot: file.file.level == SNAPSHOT_LEVEL || header.is_snapshot(),
                bytes: file.size,
                size: Some((header.page_size, header.commit)),
            }
        });
        Ok(points.collect())
    }
}

/// The headers of files, in the same order.
async fn headers(reader: &Arc<Reader>, files: &[Listed]) -> Result<Vec<LtxHeader>, RestoreError> {
    let mut headers: Vec<Option<LtxHeader>> = vec![None; files.len()];
    let mut asked = JoinSet::new();
    let mut rest = files.iter().enumerate();
    loop {
        while asked.len() < REQUESTS_MAX {
            let Some((place, listed)) = rest.next() else { break };
            let (reader, listed) = (Arc::clone(reader), listed.clone());
            asked.spawn(async move {
                let end = (HEADER_SIZE as u64).min(listed.size);
                let bytes = reader.get_range(&listed.key, 0..end).await?;
                let header = LtxHeader::decode(&bytes).map_err(|e| RestoreError::damaged(&listed.key, e))?;
                check_name(&listed, &header)?;
                Ok((place, header))
            });
        }
        let Some(answer) = asked.join_next().await else { break };
        let (place, header) = finished(answer)?;
        headers[place] = Some(header);
    }
    Ok(headers.into_iter().map(|header| header.expect("every one was asked for")).collect())
}

/// A file that holds other transactions than its name says does not belong there.
fn check_name(listed: &Listed, header: &LtxHeader) -> Result<(), RestoreError> {
    if (header.min_txid, header.max_txid) == (listed.file.min_txid, listed.file.max_txid) {
        return Ok(());
    }
    let detail = format!("it holds transactions {} to {}, not those of its name", header.min_txid, header.max_txid);
    Err(RestoreError::contradiction(&listed.key, detail))
}

/// Writes the database that the planned files make up to a draft. Blocks; must be called within the runtime.
pub(super) fn fill(
    reader: &Arc<Reader>,
    plan: &[Listed],
    draft: &Draft,
    progress: &dyn Progress,
) -> Result<Image, RestoreError> {
    let sink = FileSink::new(draft)?;
    let start = |header: &LtxHeader| draft.clear(header.commit.bytes(header.page_size));
    merge(reader, plan, &sink, start, progress)
}

/// Puts the database together only to see that it can be. Blocks; must be called within the runtime.
pub(super) fn prove(
    reader: &Arc<Reader>,
    plan: &[Listed],
    sink: &dyn PageSink,
    progress: &dyn Progress,
) -> Result<Image, RestoreError> {
    merge(reader, plan, sink, |_| Ok(()), progress)
}

/// Gives every page of the state that the planned files make up to `sink`, after `start` has seen the newest header.
fn merge(
    reader: &Arc<Reader>,
    plan: &[Listed],
    sink: &dyn PageSink,
    start: impl FnOnce(&LtxHeader) -> Result<(), RestoreError>,
    progress: &dyn Progress,
) -> Result<Image, RestoreError> {
    let newest = plan.last().expect("a plan is never empty");
    let opened = open(reader, newest)?;
    let header = *opened.header();
    start(&header)?;
    let mut state = Merge { wanted: Wanted::new(header.commit, header.page_size), bits: 0 };
    progress.enter(Stage::Pages(u64::from(state.wanted.left())));
    let trailer = state.take(newest, opened, sink, progress)?;
    for listed in plan.iter().rev().skip(1) {
        let opened = open(reader, listed)?;
        if opened.header().page_size != header.page_size {
            let detail = format!("its pages have {} bytes, not {}", opened.header().page_size, header.page_size);
            return Err(RestoreError::contradiction(&listed.key, detail));
        }
        state.take(listed, opened, sink, progress)?;
    }
    let checksum = Checksum::from_crc(state.bits);
    let pos = Pos { txid: header.max_txid, checksum: trailer.post_apply.unwrap_or(checksum) };
    if let Some(pgno) = state.wanted.first() {
        return Err(RestoreError::PageMissing { pgno, pages: state.wanted.left(), pos });
    }
    if pos.checksum != checksum {
        return Err(RestoreError::WrongChecksum { pos, found: checksum });
    }
    Ok(Image {
        txid: Some(header.max_txid),
        place: None,
        time: header.timestamp,
        page_size: header.page_size,
        commit: header.commit,
        checksum,
        proof: if trailer.post_apply.is_some() { Proof::Database } else { Proof::Files },
        files: plan.len() as u64,
    })
}

/// Starts to read a file.
fn open(reader: &Arc<Reader>, listed: &Listed) -> Result<Decoder<ObjectStream>, RestoreError> {
    let key: Arc<str> = Arc::from(listed.key.as_str());
    let stream = ObjectStream::new(Arc::clone(reader), key, 0..listed.size, PIECE_BYTES_MAX);
    let decoder = Decoder::new(stream).map_err(|e| stream_error(&listed.key, e))?;
    check_name(listed, decoder.header())?;
    Ok(decoder)
}

/// Reads all of a file and compares its checksums. Blocks; must be called within the runtime.
pub(super) fn check(reader: &Arc<Reader>, listed: &Listed) -> Result<(), RestoreError> {
    let mut decoder = open(reader, listed)?;
    let failed = |e| stream_error(&listed.key, e);
    let mut data = vec![0; decoder.header().page_size.bytes()];
    while decoder.next_page(&mut data).map_err(failed)?.is_some() {}
    decoder.finish_at_end().map(|_| ()).map_err(failed)
}

/// A database that is being put together.
struct Merge {
    wanted: Wanted,
    /// XOR of the checksums of the pages that were taken.
    bits: u64,
}

impl Merge {
    /// Reads a file to its end and takes the pages that no newer file had.
    fn take(
        &mut self,
        listed: &Listed,
        mut decoder: Decoder<ObjectStream>,
        sink: &dyn PageSink,
        progress: &dyn Progress,
    ) -> Result<Trailer, RestoreError> {
        let failed = |e| stream_error(&listed.key, e);
        let page_size = decoder.header().page_size;
        let mut data = vec![0; page_size.bytes()];
        let mut run = RunBuffer::new(sink, page_size);
        let mut taken = 0;
        while let Some(pgno) = decoder.next_page(&mut data).map_err(failed)? {
            if !self.wanted.claim(pgno) {
                continue;
            }
            run.page(pgno)?.copy_from_slice(&data);
            self.bits ^= decoder.page_checksum().expect("a page was read").get();
            taken += 1;
            if taken == PROGRESS_PAGES {
                progress.advance(std::mem::take(&mut taken), PROGRESS_PAGES * data.len() as u64);
            }
        }
        run.flush()?;
        progress.advance(taken, taken * data.len() as u64);
        decoder.finish_at_end().map_err(failed)
    }
}
