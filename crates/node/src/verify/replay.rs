//! Puts states together as a restore would and compares their checksums with the log's.
//!
//! Every restore point is proved without restoring each: the commits are replayed one after the other on a table of page
//! checksums, whose XOR must be the log's checksum after each of them. What no commit leads to (the ends of merged files, and
//! snapshots, where the commits are gone) is put together from its own plan.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rhyolite_format::ltx::Decoder;
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::{Checksum, PageNumber, PageSize, Pos, Txid};
use rhyolite_logic::Target;
use rhyolite_logic::log::live;
use rhyolite_logic::restore_plan::RestorePlan;

use super::objects::{Expected, Found};
use super::{Damage, as_damage};
use crate::progress::Progress;
use crate::restore::pool::finished;
use crate::restore::reader::Reader;
use crate::restore::sink::{NoSink, PageSink};
use crate::restore::stream::{ObjectStream, PIECE_BYTES_MAX, stream_error};
use crate::restore::{RestoreError, fetch, plan_in};

/// Puts one state together, without keeping it.
pub(super) async fn prove(
    reader: &Arc<Reader>,
    found: &Found,
    target: Target,
    threads: usize,
    progress: &Arc<dyn Progress>,
) -> Result<Result<RestorePlan, Damage>, RestoreError> {
    let mut indexes = found.indexes.clone();
    let plan = match as_damage(plan_in(reader, &found.catalog, &mut indexes, target).await)? {
        Ok(plan) => plan,
        Err(damage) => return Ok(Err(damage)),
    };
    let fetched = fetch(reader, HashMap::new(), &plan, Arc::new(NoSink), threads, progress).await;
    Ok(as_damage(fetched)?.map(|()| plan))
}

/// Proves every restore point; gives how many were right, and what was not.
pub(super) async fn prove_all(
    reader: &Arc<Reader>,
    found: &Found,
    threads: usize,
    progress: &Arc<dyn Progress>,
) -> Result<(u64, Vec<Damage>), RestoreError> {
    let mut damage = Vec::new();
    let mut proved = BTreeSet::new();
    let mut state: Option<Replayed> = None;
    for (key, entries) in commits(found) {
        let start = entries.first().filter(|first| !first.is_snapshot());
        let at = state.as_ref().map(|state| state.pos.txid);
        if let Some(base) = start.and_then(|first| first.min_txid.previous()).filter(|base| Some(*base) != at) {
            let is_point = found.points.binary_search_by_key(&base, |point| point.pos.txid).is_ok();
            state = if is_point { load(reader, found, base, threads, progress).await? } else { None };
        }
        let (next, replayed, result) = replay(reader, key, entries, state).await?;
        state = next;
        proved.extend(replayed);
        damage.extend(result.err());
    }
    for point in found.points.iter().filter(|point| !proved.contains(&point.pos.txid)) {
        let txid = point.pos.txid;
        match prove(reader, found, Target::Txid(txid), threads, progress).await? {
            Ok(_) => continue,
            Err(wrong) => damage.push(Damage { detail: format!("transaction {txid}: {}", wrong.detail), ..wrong }),
        }
    }
    let wrong = damage.len() as u64;
    Ok(((found.points.len() as u64).saturating_sub(wrong), damage))
}

/// The objects that hold commits, in the order of their transactions.
fn commits(found: &Found) -> Vec<(Arc<str>, Vec<SegmentEntry>)> {
    let bundles = found.indexes.iter().map(|index| (Arc::from(index.key.as_str()), index.entries.clone()));
    let segments = live(&found.catalog.manifest, &found.catalog.log).expect("the catalog has no holes");
    let segments = segments.into_iter().map(|segment| (Arc::from(segment.key.as_str()), segment.entries.clone()));
    let mut all: Vec<(Arc<str>, Vec<SegmentEntry>)> = bundles.chain(segments).filter(|(_, e)| !e.is_empty()).collect();
    all.sort_by_key(|(_, entries)| entries.last().map(|entry| entry.max_txid));
    all
}

/// A state as the checksums of its pages.
#[derive(Debug)]
struct Replayed {
    pos: Pos,
    page_size: PageSize,
    /// By page, from page 1; 0 for the lock page.
    pages: Vec<u64>,
}

impl Replayed {
    fn set(&mut self, pgno: PageNumber, checksum: u64) {
        let place = &mut self.pages[pgno.index()];
        self.pos.checksum = toggle(self.pos.checksum, *place ^ checksum);
        *place = checksum;
    }

    /// Cuts pages off, or makes room for more.
    fn resize(&mut self, pages: usize) {
        let cut = self.pages.iter().skip(pages).fold(0, |bits, page| bits ^ page);
        self.pos.checksum = toggle(self.pos.checksum, cut);
        self.pages.resize(pages, 0);
    }
}

fn toggle(checksum: Checksum, bits: u64) -> Checksum {
    checksum.toggle(Checksum::from_crc(bits))
}

/// Replays the commits of one object on a state; gives the state after them and the transactions that came out right.
async fn replay(
    reader: &Arc<Reader>,
    key: Arc<str>,
    entries: Vec<SegmentEntry>,
    mut state: Option<Replayed>,
) -> Result<(Option<Replayed>, Vec<Txid>, Result<(), Damage>), RestoreError> {
    let range = entries[0].offset..entries[entries.len() - 1].range().end;
    let mut stream = ObjectStream::new(Arc::clone(reader), Arc::clone(&key), range, PIECE_BYTES_MAX);
    let work = tokio::task::spawn_blocking(move || {
        let mut right = Vec::new();
        let mut result = Ok(());
        for entry in &entries {
            match replay_one(&key, &mut stream, entry, &mut state) {
                Ok(true) => right.push(entry.max_txid),
                Ok(false) => state = None,
                Err(e) => {
                    (state, result) = (None, Err(e));
                    break;
                }
            }
        }
        Ok((state, right, as_damage(result)?))
    });
    finished(work.await)
}

/// Replays one commit; `false` when there is no state that it continues.
fn replay_one(
    key: &str,
    stream: &mut ObjectStream,
    entry: &SegmentEntry,
    state: &mut Option<Replayed>,
) -> Result<bool, RestoreError> {
    let broken = |e| stream_error(key, e);
    let mut decoder = Decoder::new(stream).map_err(broken)?;
    let header = *decoder.header();
    if entry.is_snapshot() {
        let pos = Pos { txid: entry.max_txid, checksum: Checksum::EMPTY };
        *state = Some(Replayed { pos, page_size: header.page_size, pages: Vec::new() });
    }
    let continues = |state: &Replayed| entry.is_snapshot() || entry.pre_apply == Some(state.pos.checksum);
    let mut target = state.as_mut().filter(|state| continues(state) && state.page_size == header.page_size);
    if let Some(state) = &mut target {
        state.pos.txid = entry.max_txid;
        state.resize(entry.commit.get() as usize);
    }
    let mut page = vec![0; header.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).map_err(broken)? {
        let checksum = decoder.page_checksum().expect("a page was given out");
        match &mut target {
            Some(state) if pgno.index() < state.pages.len() => state.set(pgno, checksum.get()),
            Some(_) => return Err(RestoreError::contradiction(key, format!("page {pgno} lies beyond the database"))),
            None => {}
        }
    }
    let (trailer, _) = decoder.finish().map_err(broken)?;
    Expected::of_entry(entry).check(key, &header, &trailer)?;
    match target {
        Some(state) if state.pos.checksum == entry.post_apply => Ok(true),
        Some(state) => Err(RestoreError::WrongChecksum { pos: entry.end(), found: state.pos.checksum }),
        None => Ok(false),
    }
}

/// Collects the checksums of pages.
#[derive(Debug)]
struct TableSink(Vec<AtomicU64>);

impl PageSink for TableSink {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        for (index, page) in (first.index()..).zip(pages.chunks(page_bytes)) {
            let pgno = PageNumber::new(index as u32 + 1).expect("one more than an index");
            self.0[index].store(Checksum::of_page(pgno, page).get(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Puts a state together as the checksums of its pages. `None` when that fails: the restore point itself will say why.
async fn load(
    reader: &Arc<Reader>,
    found: &Found,
    txid: Txid,
    threads: usize,
    progress: &Arc<dyn Progress>,
) -> Result<Option<Replayed>, RestoreError> {
    let mut indexes = found.indexes.clone();
    let plan = as_damage(plan_in(reader, &found.catalog, &mut indexes, Target::Txid(txid)).await)?;
    let Ok(plan) = plan else { return Ok(None) };
    let table = Arc::new(TableSink((0..plan.commit.get()).map(|_| AtomicU64::new(0)).collect()));
    let sink: Arc<dyn PageSink> = Arc::clone(&table) as _;
    let fetched = as_damage(fetch(reader, HashMap::new(), &plan, sink, threads, progress).await)?;
    let pages = table.0.iter().map(|page| page.load(Ordering::Relaxed)).collect();
    Ok(fetched.ok().map(|()| Replayed { pos: plan.pos, page_size: plan.page_size, pages }))
}
