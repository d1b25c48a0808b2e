//! Turns visits into jobs: the first copy of a page that is met is the newest one; only those bytes are unpacked, and of
//! large files only those are read.

use std::sync::Arc;

use rhyolite_format::ltx::{LtxHeader, PageIndex, PageIndexEntry};
use rhyolite_format::{PageSize, Txid};

use super::RestoreError;
use super::index::{IndexReader, Span};
use super::pool::{Job, JobPage, Pool, Source};
use super::reader::Reader;
use super::visit::{LtxFile, Visit, Visits};
use super::wanted::Wanted;

/// Longest read of a part of a large file.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes nobody wants that are read rather than asking twice.
const GAP_BYTES_MAX: u64 = 128 << 10;

/// Gives every wanted page that the visits hold to the pool. Ends early when no page is wanted any more.
pub(crate) async fn assemble(
    reader: &Arc<Reader>,
    mut visits: Visits,
    page_size: PageSize,
    wanted: &mut Wanted,
    pool: &mut Pool,
) -> Result<(), RestoreError> {
    // Everything from this transaction on has been visited.
    let mut visited_from: Option<Txid> = None;
    while wanted.left() > 0 {
        let Some(mut visit) = visits.next().await? else { break };
        visit.files.retain(|file| visited_from.is_none_or(|from| file.min_txid < from));
        let Some(oldest) = visit.files.last() else { continue };
        visited_from = Some(oldest.min_txid);
        if visit.whole(oldest).is_some() {
            let pages = wanted_in_memory(&visit, page_size, wanted)?;
            if !pages.is_empty() {
                let key = Arc::clone(&visit.files[0].span.key);
                pool.submit(Job { key, source: Source::Memory(visit.bytes, visit.held), pages }).await?;
            }
        } else {
            let [file] = &visit.files[..] else { unreachable!("a group is read whole") };
            let index = IndexReader::new(Arc::clone(reader), file.span.clone(), visit.bytes)?;
            drop(visit.held);
            submit_wanted(index, &file.span, wanted, pool).await?;
            wanted.cut_off(file.commit);
        }
        if visited_from == Some(Txid::FIRST) {
            break;
        }
    }
    Ok(())
}

/// The wanted pages of a group of files that are in memory.
fn wanted_in_memory(visit: &Visit, page_size: PageSize, wanted: &mut Wanted) -> Result<Vec<JobPage>, RestoreError> {
    let mut pages = Vec::new();
    for file in &visit.files {
        let damaged = |e| RestoreError::damaged(&file.span.key, e);
        let bytes = visit.whole(file).expect("a group is read whole");
        let header = LtxHeader::decode(&bytes).map_err(damaged)?;
        check_header(file, &header, page_size)?;
        let index = PageIndex::locate(&bytes, bytes.len() as u64).map_err(damaged)?;
        let entries = PageIndex::decode(&bytes[index.start as usize..index.end as usize], index.start);
        let start = file.span.range.start - visit.start;
        for entry in entries.map_err(damaged)?.0.iter().filter(|entry| wanted.claim(entry.pgno)) {
            pages.push(job_page(entry, start));
        }
        wanted.cut_off(file.commit);
    }
    pages.sort_unstable_by_key(|page| page.pgno);
    Ok(pages)
}

/// An object may have been swapped for another: the header must be that of the file that the plan names.
fn check_header(file: &LtxFile, header: &LtxHeader, page_size: PageSize) -> Result<(), RestoreError> {
    let found = (header.min_txid, header.max_txid, header.commit, header.page_size);
    if found == (file.min_txid, file.max_txid, file.commit, page_size) {
        return Ok(());
    }
    let detail = format!(
        "it holds transactions {} to {} of {} pages of {} bytes, where {} to {} of {} pages of {page_size} bytes belong",
        header.min_txid, header.max_txid, header.commit, header.page_size, file.min_txid, file.max_txid, file.commit
    );
    Err(RestoreError::contradiction(&file.span.key, detail))
}

/// `start` is where the file starts in the bytes of the job; the entry lies within them.
fn job_page(entry: &PageIndexEntry, start: u64) -> JobPage {
    let narrow = |value: u64| u32::try_from(value).expect("a job's bytes are far fewer than 4 GiB");
    JobPage { pgno: entry.pgno, offset: narrow(start + entry.offset), len: narrow(entry.size) }
}

/// Reads the wanted pages of a large file in as few requests as [`GAP_BYTES_MAX`] and [`READ_BYTES_MAX`] allow.
async fn submit_wanted(
    mut index: IndexReader,
    span: &Span,
    wanted: &mut Wanted,
    pool: &mut Pool,
) -> Result<(), RestoreError> {
    let mut group: Vec<PageIndexEntry> = Vec::new();
    while let Some(entries) = index.next().await? {
        for entry in entries {
            if !wanted.claim(entry.pgno) {
                continue;
            }
            if entry.size > READ_BYTES_MAX {
                let detail = format!("page {} is said to take {} bytes", entry.pgno, entry.size);
                return Err(RestoreError::contradiction(&span.key, detail));
            }
            if let Some((first, last)) = group.first().zip(group.last()) {
                let gap = entry.offset - (last.offset + last.size);
                if gap > GAP_BYTES_MAX || entry.offset + entry.size - first.offset > READ_BYTES_MAX {
                    pool.submit(range_job(span, &group)).await?;
                    group.clear();
                }
            }
            group.push(entry);
        }
    }
    if !group.is_empty() {
        pool.submit(range_job(span, &group)).await?;
    }
    Ok(())
}

fn range_job(span: &Span, group: &[PageIndexEntry]) -> Job {
    let (first, last) = group.first().zip(group.last()).expect("a group is not empty");
    let range = span.range.start + first.offset..span.range.start + last.offset + last.size;
    let pages = group.iter().map(|entry| {
        let within = PageIndexEntry { offset: entry.offset - first.offset, ..*entry };
        job_page(&within, 0)
    });
    Job { key: Arc::clone(&span.key), source: Source::Range(range), pages: pages.collect() }
}
