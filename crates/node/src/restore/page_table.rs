//! The page table of a state that only the store holds: a restore that keeps nothing but the checksums.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rhyolite_format::{Checksum, PageNumber, Pos};
use rhyolite_logic::Target;
use rhyolite_store::Store;

use super::reader::Reader;
use super::sink::PageSink;
use super::{RestoreError, fetch, find_plan};
use crate::capture::table::PageTable;
use crate::progress::{Progress, Silent};

/// Threads that unpack.
const THREADS: usize = 2;

/// Keeps the checksum of every page.
#[derive(Debug)]
struct ChecksumSink(Vec<AtomicU64>);

impl PageSink for ChecksumSink {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        for (pgno, data) in (first.get()..).filter_map(PageNumber::new).zip(pages.chunks_exact(page_bytes)) {
            self.0[pgno.index()].store(Checksum::of_page(pgno, data).get(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Reads the table of the state at `pos`, which is proved by its checksum.
///
/// # Errors
/// Those of a restore to that TXID; also when the store has another checksum for it.
pub async fn page_table(store: Arc<dyn Store>, pos: Pos) -> Result<PageTable, RestoreError> {
    let reader = Arc::new(Reader::new(store));
    let (catalog, plan) = find_plan(&reader, Target::Txid(pos.txid), &[]).await?;
    if plan.pos != pos {
        return Err(RestoreError::WrongChecksum { pos, found: plan.pos.checksum });
    }
    let entries = (0..plan.commit.get()).map(|_| AtomicU64::new(0)).collect();
    let sink = Arc::new(ChecksumSink(entries));
    let progress: Arc<dyn Progress> = Arc::new(Silent);
    fetch(&reader, catalog.cache, &plan, Arc::clone(&sink) as Arc<dyn PageSink>, THREADS, &progress).await?;
    let entries = sink.0.iter().map(|entry| entry.load(Ordering::Relaxed)).collect();
    Ok(PageTable::from_entries(plan.page_size, entries))
}
