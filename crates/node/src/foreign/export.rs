//! Writes a replica of Litestream 0.5 from a store of ours: the way out.
//!
//! What a restore of the target would read becomes the replica: the newest snapshot at level 9, merged files at level 3, and each
//! later commit as a file of its own at level 0, with the same TXIDs and times. So every commit since that snapshot can be
//! restored by Litestream too. Litestream's files must say that they carry no checksums of the database, so those are dropped;
//! every file is proved while it is rewritten, and at the end the replica is read back and must add up to the checksum of the
//! target.
//!
//! Two things let Litestream go on from there: a file of level 0 ends at the target, since it takes its position from that
//! level; and as long as the snapshot is missing, which is written after everything that builds on it, nothing can be restored
//! from half a replica. What was written is removed when anything fails.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::litestream::{Layout, SNAPSHOT_LEVEL};
use rhyolite_format::ltx::{Decoder, EncodeError, Encoder, LtxHeader, LtxName, Packing};
use rhyolite_format::sqlite::wal::{WAL_HEADER_SIZE, frame_size};
use rhyolite_format::{Lineage, PageNumber, Pos, Timestamp, Txid};
use rhyolite_logic::Target;
use rhyolite_logic::restore_plan::{PlanStep, RestorePlan};
use rhyolite_store::{MadeAt, Store};

use super::litestream5::{self, Replica5};
use super::{Files, find, is_ours};
use crate::history::HistoryError;
use crate::history::write::{Out, given_up, write_object};
use crate::progress::{Progress, Stage};
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::reader::Reader;
use crate::restore::sink::PageSink;
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, stream_error};
use crate::restore::visit::bundle_entries;
use crate::restore::{RestoreError, blocking, plan_in};
use crate::time;

/// Level of files that hold several transactions.
const MERGED_LEVEL: u8 = 3;
/// Level of single transactions that a merged file comes after: level 0 must have no holes.
const EARLIER_LEVEL: u8 = 1;

/// Bytes that are handed on at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// Where the replica goes. Nothing of Litestream or of ours may be there.
    pub destination: Arc<dyn Store>,
    /// How its levels are named.
    pub layout: Layout,
    /// Which state it ends at.
    pub target: Target,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// What was exported. The replica was read back and adds up to `pos`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// The history that it was exported from.
    pub lineage: Lineage,
    /// The state that it ends at.
    pub pos: Pos,
    /// When that was committed.
    pub time: Timestamp,
    /// The first state that it restores to: that of its snapshot.
    pub first: Txid,
    /// Number of files.
    pub files: u64,
    /// Their size in bytes.
    pub bytes_written: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Why there is no export.
#[derive(Debug)]
pub enum ExportError {
    /// What is to be exported cannot be read, or what was written does not add up.
    Read(RestoreError),
    /// The replica cannot be written.
    Write(HistoryError),
    /// There is something already.
    NotEmpty {
        /// Where.
        destination: String,
    },
    /// Litestream's files cannot say it.
    Unsayable(&'static str),
}

impl std::fmt::Display for ExportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(e) => e.fmt(f),
            Self::Write(e) => e.fmt(f),
            Self::NotEmpty { destination } => {
                write!(f, "{destination} holds a replica already: export to an empty place")
            }
            Self::Unsayable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ExportError {}

impl From<RestoreError> for ExportError {
    fn from(error: RestoreError) -> Self {
        Self::Read(error)
    }
}

impl From<HistoryError> for ExportError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Read(error) => Self::Read(error),
            error => Self::Write(error),
        }
    }
}

/// One file of ours that becomes one of the replica.
#[derive(Clone, Debug)]
struct Piece {
    key: Arc<str>,
    range: Range<u64>,
    level: u8,
    name: LtxName,
    time: Timestamp,
}

/// Exports. Must run in a Tokio runtime with more than one thread.
///
/// # Errors
/// Any. What was written is removed then, as far as the destination lets it.
pub async fn export(options: ExportOptions) -> Result<ExportReport, ExportError> {
    let started = Instant::now();
    options.progress.enter(Stage::Planning);
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    let plan = plan_in(&reader, &catalog, &mut Vec::new(), options.target).await?;
    if plan.commit.get() == 0 {
        return Err(ExportError::Unsayable("the database is empty at that point, which Litestream's files cannot say"));
    }
    refuse_occupied(&options.destination).await?;
    let pieces = pieces(&reader, &plan).await?;
    let mut writer = Writer { reader, options: &options, written: Vec::new(), bytes: 0 };
    let first = pieces.last().expect("a plan starts with a snapshot").name.max_txid;
    let result = writer.write_all(&plan, &pieces).await;
    if let Err(error) = result {
        // The first error counts; whatever stays is no replica without its snapshot.
        let _ = options.destination.delete(&writer.written).await;
        return Err(error);
    }
    options.progress.enter(Stage::Done);
    Ok(ExportReport {
        lineage: catalog.identity.lineage,
        pos: plan.pos,
        time: plan.time,
        first,
        files: writer.written.len() as u64,
        bytes_written: writer.bytes,
        elapsed: started.elapsed(),
    })
}

/// A replica that is there, or a store of ours, would be mixed with what is written.
async fn refuse_occupied(destination: &Arc<dyn Store>) -> Result<(), ExportError> {
    let is_free = match find(destination, None).await {
        Ok(found) => found.is_none() && !is_ours(destination).await?,
        Err(RestoreError::Ambiguous { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    if is_free { Ok(()) } else { Err(ExportError::NotEmpty { destination: destination.describe() }) }
}

/// What to write, in order: the snapshot comes last.
async fn pieces(reader: &Reader, plan: &RestorePlan) -> Result<Vec<Piece>, RestoreError> {
    let is_merged = |step: &PlanStep| matches!(step, PlanStep::Merged(_));
    let last_merged = plan.steps.iter().rposition(is_merged);
    let mut pieces = Vec::new();
    for (place, step) in plan.steps.iter().enumerate() {
        let single = if last_merged.is_some_and(|last| place < last) { EARLIER_LEVEL } else { 0 };
        match step {
            PlanStep::Snapshot(file) | PlanStep::Merged(file) => pieces.push(Piece {
                key: Arc::from(file.key.as_str()),
                range: 0..file.size,
                level: if place == 0 { SNAPSHOT_LEVEL } else { MERGED_LEVEL },
                name: LtxName { min_txid: file.min_txid, max_txid: file.max_txid },
                time: file.max_time,
            }),
            PlanStep::Bundle { .. } | PlanStep::Segment { .. } => {
                let (key, entries) = entries_of(reader, step).await?;
                pieces.extend(entries.into_iter().map(|entry| Piece {
                    key: Arc::clone(&key),
                    range: entry.range(),
                    level: if entry.pre_apply.is_none() { SNAPSHOT_LEVEL } else { single },
                    name: LtxName { min_txid: entry.min_txid, max_txid: entry.max_txid },
                    time: entry.timestamp,
                }));
            }
        }
    }
    pieces.rotate_left(1);
    Ok(pieces)
}

/// The transactions that a step takes.
async fn entries_of(
    reader: &Reader,
    step: &PlanStep,
) -> Result<(Arc<str>, Vec<rhyolite_format::segment::SegmentEntry>), RestoreError> {
    match step {
        PlanStep::Bundle { file, after, through } => {
            let mut entries = bundle_entries(reader, file).await?;
            entries.retain(|entry| *after < entry.max_txid && entry.max_txid <= *through);
            Ok((Arc::from(file.key.as_str()), entries))
        }
        PlanStep::Segment { key, entries, .. } => Ok((Arc::from(key.as_str()), entries.clone())),
        PlanStep::Snapshot(_) | PlanStep::Merged(_) => unreachable!("a file is one transaction to whoever reads it"),
    }
}

/// Writes the files of a replica.
struct Writer<'a> {
    reader: Arc<Reader>,
    options: &'a ExportOptions,
    /// Keys that may be there.
    written: Vec<String>,
    bytes: u64,
}

impl Writer<'_> {
    async fn write_all(&mut self, plan: &RestorePlan, pieces: &[Piece]) -> Result<(), ExportError> {
        for piece in pieces {
            self.rewrite(piece).await?;
        }
        let first_page = self.prove(plan).await?;
        let target = plan.pos.txid;
        let ends_at_target = |piece: &Piece| piece.level == 0 && piece.name.max_txid == target;
        if !pieces.iter().any(ends_at_target) {
            self.write_position(plan, &first_page).await?;
        }
        Ok(())
    }

    /// Rewrites one file without checksums of the database.
    async fn rewrite(&mut self, piece: &Piece) -> Result<(), ExportError> {
        let (reader, from) = (Arc::clone(&self.reader), piece.clone());
        let make = move |out: &mut Out| {
            let stream = ObjectStream::new(reader, Arc::clone(&from.key), from.range.clone(), PIECE_BYTES_MAX);
            let decoder = Decoder::new(stream).map_err(|e| stream_error(&from.key, e))?;
            let name = LtxName { min_txid: decoder.header().min_txid, max_txid: decoder.header().max_txid };
            if name != from.name {
                return Err(RestoreError::contradiction(&from.key, format!("it holds {name}, not {}", from.name)));
            }
            rewrite(&from, decoder, out)
        };
        self.write(piece.level, piece.name, piece.time, make).await
    }

    async fn write(
        &mut self,
        level: u8,
        name: LtxName,
        time: Timestamp,
        make: impl FnOnce(&mut Out) -> Result<(), RestoreError> + Send + 'static,
    ) -> Result<(), ExportError> {
        let destination = &*self.options.destination;
        let key = self.options.layout.key(level, name);
        let made = MadeAt { time, text: time::format_utc(time) };
        let upload = destination.upload_dated(&key, &made).await.map_err(HistoryError::from)?;
        self.written.push(key.clone());
        let ((), written) = write_object(destination, &key, upload, make).await?;
        self.bytes += written.size;
        Ok(())
    }

    /// Reads the replica back: it must be the target. Gives page 1.
    async fn prove(&self, plan: &RestorePlan) -> Result<Vec<u8>, ExportError> {
        let replica = find(&self.options.destination, None).await?;
        let Some(Files::Five(files)) = replica.map(|replica| replica.files) else {
            let detail = "what was written is not listed by the destination";
            return Err(RestoreError::contradiction(&self.options.destination.describe(), detail).into());
        };
        let found = read_back(&self.options.destination, &files, Arc::clone(&self.options.progress)).await?;
        let (image, first_page) = found;
        if (image.txid, image.checksum) != (Some(plan.pos.txid), plan.pos.checksum) {
            return Err(RestoreError::WrongChecksum { pos: plan.pos, found: image.checksum }.into());
        }
        Ok(first_page)
    }

    /// A file of level 0 that ends at the target and changes nothing, for Litestream to take its position from.
    async fn write_position(&mut self, plan: &RestorePlan, first_page: &[u8]) -> Result<(), ExportError> {
        let txid = plan.pos.txid;
        if txid == Txid::FIRST {
            // A file that starts at TXID 1 is a snapshot, and holds every page.
            let snapshot = pieces(&self.reader, plan).await?.pop().expect("a plan starts with a snapshot");
            return self.rewrite(&Piece { level: 0, ..snapshot }).await;
        }
        let header = litestreams_header(&LtxHeader {
            no_checksum: true,
            page_size: plan.page_size,
            commit: plan.commit,
            min_txid: txid,
            max_txid: txid,
            timestamp: plan.time,
            pre_apply: None,
            wal_offset: 0,
            wal_size: 0,
            wal_salt: (0, 0),
            node_id: 0,
        });
        let page = Bytes::copy_from_slice(first_page);
        let make = move |out: &mut Out| {
            let mut bytes = Vec::new();
            let mut encoder =
                Encoder::new(header, Packing::Lz4, &mut bytes).expect("the header keeps the rules of LTX");
            let first = PageNumber::new(1).expect("1 is a page");
            encoder.page(first, &page, &mut bytes).expect("the database is not empty");
            encoder.finish(None, &mut bytes).expect("the file keeps the rules of LTX");
            out.take(&mut bytes).map_err(given_up)
        };
        self.write(0, LtxName { min_txid: txid, max_txid: txid }, plan.time, make).await
    }
}

/// Copies a file without checksums of the database, proves what is read, and packs what is not packed.
fn rewrite(from: &Piece, mut decoder: Decoder<ObjectStream>, out: &mut Out) -> Result<(), RestoreError> {
    let failed = |e| stream_error(&from.key, e);
    let refused = |e: EncodeError| RestoreError::contradiction(&from.key, e.to_string());
    let header = litestreams_header(decoder.header());
    let mut data = vec![0; header.page_size.bytes()];
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut bytes).map_err(refused)?;
    while let Some(pgno) = decoder.next_page(&mut data).map_err(failed)? {
        match decoder.page_block().filter(|block| block.len() < data.len()) {
            Some(block) => encoder.packed_page(pgno, block, &data, &mut bytes),
            None => encoder.page(pgno, &data, &mut bytes),
        }
        .map_err(refused)?;
        if bytes.len() >= CHUNK_BYTES {
            out.take(&mut bytes).map_err(given_up)?;
        }
    }
    decoder.finish_at_end().map_err(failed)?;
    encoder.finish(None, &mut bytes).map_err(refused)?;
    out.take(&mut bytes).map_err(given_up)
}

/// The header of a file as Litestream takes it. When Litestream goes on, it looks in the WAL for the last frame that its newest file
/// of level 0 has copied. There is none, and a place with salts that no WAL has makes it see that: its next file then holds
/// every page.
fn litestreams_header(header: &LtxHeader) -> LtxHeader {
    let frame_bytes = frame_size(header.page_size) as u64;
    LtxHeader {
        no_checksum: true,
        pre_apply: None,
        wal_offset: WAL_HEADER_SIZE as u64,
        wal_size: 2 * frame_bytes,
        wal_salt: (0, 0),
        node_id: 0,
        ..*header
    }
}

/// Puts the newest state of a replica together, and keeps its first page.
async fn read_back(
    store: &Arc<dyn Store>,
    files: &Replica5,
    progress: Arc<dyn Progress>,
) -> Result<(super::Image, Vec<u8>), RestoreError> {
    let reader = Arc::new(Reader::new(Arc::clone(store)));
    let plan = files.plan(&reader, Target::Latest).await?;
    blocking(move || {
        let sink = FirstPage::default();
        let image = litestream5::prove(&reader, &plan, &sink, &*progress)?;
        Ok((image, sink.0.into_inner().expect("nothing panics while it holds this lock")))
    })
    .await
}

/// Keeps page 1 and nothing else.
#[derive(Debug, Default)]
struct FirstPage(Mutex<Vec<u8>>);

impl PageSink for FirstPage {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        if first.index() == 0 {
            *self.0.lock().expect("nothing panics while it holds this lock") = pages[..page_bytes].to_vec();
        }
        Ok(())
    }
}
