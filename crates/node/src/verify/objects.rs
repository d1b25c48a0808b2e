//! Reads every object that the manifest and the log name, whole, and checks all that can be said of it alone.

use std::io::Read;
use std::sync::Arc;

use rhyolite_format::ltx::{Decoder, LtxHeader, Trailer};
use rhyolite_format::manifest::{FileKind, ManifestFile};
use rhyolite_format::segment::{self, SegmentEntry, SegmentHeader, SegmentKind};
use rhyolite_format::{Checksum, Lineage, PageCount, PageSize, Txid, keys};
use rhyolite_logic::log::{LogSegment, live};
use rhyolite_logic::restore_plan::{BundleIndex, PlanStep, RestorePoint, points};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Damage, as_damage};
use crate::restore::RestoreError;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::pool::{acquire, finished};
use crate::restore::reader::Reader;
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, io_error, stream_error};
use crate::restore::visit::bundle_entries;

/// What a database's part of the store holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) catalog: Catalog,
    /// Of every bundle whose index can be read.
    pub(super) indexes: Vec<BundleIndex>,
    pub(super) points: Vec<RestorePoint>,
    pub(super) objects: u64,
    pub(super) transactions: u64,
}

/// An object with LTX files in it.
#[derive(Clone, Debug)]
enum Object {
    /// A merged file or a snapshot.
    File(ManifestFile),
    /// A bundle, what its index says, and the history it must belong to.
    Bundle(ManifestFile, Vec<SegmentEntry>, Lineage),
    Segment(LogSegment),
}

/// Reads and checks everything.
pub(super) async fn check(reader: &Arc<Reader>, threads: usize) -> Result<(Found, Vec<Damage>), RestoreError> {
    let mut catalog = Catalog::load(reader, None, OnDamage::Collect).await?;
    let mut damage = Vec::new();
    for error in std::mem::take(&mut catalog.damage) {
        damage.extend(as_damage::<()>(Err(error))?.err());
    }
    let mut objects = Vec::new();
    let mut indexes = Vec::new();
    for file in &catalog.manifest.files {
        if file.kind != FileKind::Bundle {
            objects.push(Object::File(file.clone()));
            continue;
        }
        match as_damage(catalog.bundle_index(reader, &file.key).await)? {
            Ok(index) => {
                objects.push(Object::Bundle(file.clone(), index.entries.clone(), catalog.identity.lineage));
                indexes.push(index);
            }
            Err(wrong) => damage.push(wrong),
        }
    }
    objects.extend(catalog.log.iter().filter(|segment| segment.size > 0).cloned().map(Object::Segment));
    let count = objects.len() as u64;
    let transactions = objects.iter().map(Object::transactions).sum();
    damage.extend(check_objects(reader, objects, threads).await?);
    let points = points(&catalog.manifest, &catalog.log, &indexes).expect("the catalog has no holes");
    damage.extend(unreachable_commits(&catalog, &points));
    Ok((Found { catalog, indexes, points, objects: count, transactions }, damage))
}

/// Commits that are there but cannot be restored, because what leads to them is missing or of another history.
fn unreachable_commits(catalog: &Catalog, points: &[RestorePoint]) -> Option<Damage> {
    let segments = live(&catalog.manifest, &catalog.log).expect("the catalog has no holes");
    let is_point = |txid: Txid| points.binary_search_by_key(&txid, |point| point.pos.txid).is_ok();
    let mut lost = segments
        .iter()
        .flat_map(|segment| segment.entries.iter().map(|entry| (&segment.key, entry.max_txid)))
        .filter(|(_, txid)| !is_point(*txid));
    let (key, first) = lost.next()?;
    let detail = match lost.count() {
        0 => format!("transaction {first} cannot be restored"),
        more => format!("transaction {first} and {more} after it cannot be restored"),
    };
    Some(Damage { key: key.clone(), detail })
}

async fn check_objects(
    reader: &Arc<Reader>,
    objects: Vec<Object>,
    threads: usize,
) -> Result<Vec<Damage>, RestoreError> {
    let limit = Arc::new(Semaphore::new(threads.max(1)));
    let mut tasks = JoinSet::new();
    let mut damage = Vec::new();
    for object in objects {
        let permit = acquire(&limit, 1).await;
        while let Some(result) = tasks.try_join_next() {
            damage.extend(as_damage(finished(result))?.err());
        }
        let range = 0..object.size();
        let stream = ObjectStream::new(Arc::clone(reader), object.key(), range, PIECE_BYTES_MAX);
        tasks.spawn_blocking(move || {
            let result = object.check(stream);
            drop(permit);
            result
        });
    }
    while let Some(result) = tasks.join_next().await {
        damage.extend(as_damage(finished(result))?.err());
    }
    damage.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(damage)
}

impl Object {
    fn key(&self) -> Arc<str> {
        match self {
            Self::File(file) | Self::Bundle(file, ..) => Arc::from(file.key.as_str()),
            Self::Segment(segment) => Arc::from(segment.key.as_str()),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::File(file) | Self::Bundle(file, ..) => file.size,
            Self::Segment(segment) => segment.size,
        }
    }

    fn transactions(&self) -> u64 {
        match self {
            Self::File(_) => 1,
            Self::Bundle(_, entries, _) => entries.len() as u64,
            Self::Segment(segment) => segment.entries.len() as u64,
        }
    }

    /// Reads all of it. Blocks.
    fn check(&self, mut stream: ObjectStream) -> Result<(), RestoreError> {
        let key = self.key();
        match self {
            Self::File(file) => {
                let (_, pages) = check_ltx(&key, &mut stream, &Expected::of_file(file))?;
                if u64::from(pages) != file.pages {
                    return Err(RestoreError::contradiction(&key, format!("{pages} pages, not {}", file.pages)));
                }
            }
            Self::Bundle(file, entries, lineage) => {
                let header = check_segment(&key, &mut stream, entries, self.size())?;
                check_bundle(file, &header, *lineage)?;
            }
            Self::Segment(segment) => {
                check_segment(&key, &mut stream, &segment.entries, self.size())?;
            }
        }
        if stream.read(&mut [0]).map_err(|e| io_error(&key, e))? != 0 {
            return Err(RestoreError::contradiction(&key, "bytes follow its end"));
        }
        match self {
            Self::File(file) | Self::Bundle(file, ..) if stream.crc() != file.crc64.0 => {
                let detail = format!("its CRC is {:016x}, the manifest says {:016x}", stream.crc(), file.crc64.0);
                Err(RestoreError::contradiction(&key, detail))
            }
            _ => Ok(()),
        }
    }
}

/// The first object among what a plan reads that is not what it should be. Reads all of it.
pub(crate) async fn first_damage(reader: &Arc<Reader>, steps: &[PlanStep]) -> Result<(), RestoreError> {
    for step in steps {
        let (key, spans) = match step {
            PlanStep::Snapshot(file) | PlanStep::Merged(file) => {
                (&file.key, vec![(0..file.size, Expected::of_file(file))])
            }
            PlanStep::Bundle { file, after, through } => {
                let entries = bundle_entries(reader, file).await?;
                let read = entries.iter().filter(|entry| *after < entry.max_txid && entry.max_txid <= *through);
                (&file.key, read.map(|entry| (entry.range(), Expected::of_entry(entry))).collect())
            }
            PlanStep::Segment { key, entries, .. } => {
                (key, entries.iter().map(|entry| (entry.range(), Expected::of_entry(entry))).collect())
            }
        };
        let Some(range) = spans.first().zip(spans.last()).map(|(first, last)| first.0.start..last.0.end) else {
            continue;
        };
        let key: Arc<str> = Arc::from(key.as_str());
        let mut stream = ObjectStream::new(Arc::clone(reader), Arc::clone(&key), range, PIECE_BYTES_MAX);
        let work = tokio::task::spawn_blocking(move || {
            spans.iter().try_for_each(|(_, expected)| check_ltx(&key, &mut stream, expected).map(|_| ()))
        });
        finished(work.await)?;
    }
    Ok(())
}

/// Refuses a bundle of another history, or under another name than its own.
fn check_bundle(file: &ManifestFile, header: &SegmentHeader, lineage: Lineage) -> Result<(), RestoreError> {
    let name = keys::parse_file(&file.key).expect("checked when the manifest was decoded");
    let is_bundle = matches!(header.kind, SegmentKind::Bundle { .. });
    if is_bundle && header.lineage == lineage && header.epoch == name.epoch {
        return Ok(());
    }
    let (lineage, epoch) = (header.lineage, header.epoch);
    Err(RestoreError::contradiction(&file.key, format!("it says it is of history {lineage} and epoch {epoch}")))
}

/// Header, LTX files, entries and footer.
fn check_segment(
    key: &str,
    stream: &mut ObjectStream,
    entries: &[SegmentEntry],
    size: u64,
) -> Result<SegmentHeader, RestoreError> {
    let mut header = [0; segment::HEADER_SIZE];
    stream.read_exact(&mut header).map_err(|e| io_error(key, e))?;
    let header = SegmentHeader::decode(&header).map_err(|e| RestoreError::damaged(key, e))?;
    for entry in entries {
        let (len, pages) = check_ltx(key, stream, &Expected::of_entry(entry))?;
        if (len, pages) != (entry.len, entry.pages) {
            let detail =
                format!("transaction {} has {pages} pages in {len} bytes, not as its index says", entry.max_txid);
            return Err(RestoreError::contradiction(key, detail));
        }
    }
    let mut tail = Vec::new();
    stream.read_to_end(&mut tail).map_err(|e| io_error(key, e))?;
    let found = segment::decode_index(&header, &tail, size).map_err(|e| RestoreError::damaged(key, e))?;
    if found == entries { Ok(header) } else { Err(RestoreError::contradiction(key, "it changed while it was read")) }
}

/// What an LTX file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    min_txid: Txid,
    max_txid: Txid,
    page_size: PageSize,
    commit: PageCount,
    pre_apply: Option<Checksum>,
    post_apply: Checksum,
}

impl Expected {
    fn of_file(file: &ManifestFile) -> Self {
        Self {
            min_txid: file.min_txid,
            max_txid: file.max_txid,
            page_size: file.page_size,
            commit: file.commit,
            pre_apply: file.pre_apply,
            post_apply: file.post_apply,
        }
    }

    pub(super) fn of_entry(entry: &SegmentEntry) -> Self {
        Self {
            min_txid: entry.min_txid,
            max_txid: entry.max_txid,
            page_size: entry.page_size,
            commit: entry.commit,
            pre_apply: entry.pre_apply,
            post_apply: entry.post_apply,
        }
    }

    /// Refuses a file that is another than the one that its place is for.
    pub(super) fn check(&self, key: &str, header: &LtxHeader, trailer: &Trailer) -> Result<(), RestoreError> {
        let found = Self {
            min_txid: header.min_txid,
            max_txid: header.max_txid,
            page_size: header.page_size,
            commit: header.commit,
            pre_apply: header.pre_apply,
            post_apply: trailer.post_apply.unwrap_or(Checksum::EMPTY),
        };
        if found == *self {
            return Ok(());
        }
        let detail = format!(
            "transactions {} to {} with checksum {} lie where {} to {} with {} belong",
            found.min_txid, found.max_txid, found.post_apply, self.min_txid, self.max_txid, self.post_apply
        );
        Err(RestoreError::contradiction(key, detail))
    }
}

/// Decodes one LTX file; gives its length and the number of its pages.
fn check_ltx(key: &str, stream: &mut ObjectStream, expected: &Expected) -> Result<(u64, u32), RestoreError> {
    let mut counted = Counting { inner: stream, len: 0 };
    let broken = |e| stream_error(key, e);
    let mut decoder = Decoder::new(&mut counted).map_err(broken)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.bytes()];
    let mut pages = 0;
    while decoder.next_page(&mut page).map_err(broken)?.is_some() {
        pages += 1;
    }
    let (trailer, _) = decoder.finish().map_err(broken)?;
    expected.check(key, &header, &trailer)?;
    Ok((counted.len, pages))
}

/// Counts what is read.
struct Counting<'a> {
    inner: &'a mut ObjectStream,
    len: u64,
}

impl Read for Counting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(out)?;
        self.len += len as u64;
        Ok(len)
    }
}
