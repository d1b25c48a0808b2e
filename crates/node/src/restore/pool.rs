//! Does the jobs of a restore: reads the bytes, unpacks the pages, hands them to the sink and adds up their checksums.
//!
//! Bounds: bytes being read or unpacked never exceed [`JOB_BYTES_MAX`] in all, threads never exceed the caller's number.
//! Jobs run in any order; no two hold the same page.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::ltx::decode_page_frame;
use rhyolite_format::{Checksum, PageNumber, PageSize};
use rhyolite_logic::drill::Sample;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::RestoreError;
use super::done::{DoneLog, checksum_bits};
use super::reader::Reader;
use super::sink::{PageSink, RunBuffer};
use crate::progress::Progress;

/// Bytes of objects that may be in memory in all jobs together that read for themselves.
const JOB_BYTES_MAX: usize = 16 << 20;
/// Unit of the memory account.
const MEMORY_UNIT: usize = 4096;

/// Where the bytes of a job are.
#[derive(Debug)]
pub(crate) enum Source {
    /// In memory already, together with the right to hold them there.
    Memory(Bytes, Option<OwnedSemaphorePermit>),
    /// Still in the store: this range of the object.
    Range(Range<u64>),
    /// At their place in the draft: they are only checksummed.
    Draft {
        /// The draft.
        file: Arc<File>,
        /// Whether the list of written pages has them.
        is_listed: bool,
    },
}

/// One page to unpack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JobPage {
    /// Which page.
    pub(crate) pgno: PageNumber,
    /// Where its frame starts, from the start of the job's bytes.
    pub(crate) offset: u32,
    /// Length of its frame.
    pub(crate) len: u32,
}

/// Pages of one object that are read together.
#[derive(Debug)]
pub(crate) struct Job {
    /// The object, relative to the database's prefix.
    pub(crate) key: Arc<str>,
    /// Where the bytes are.
    pub(crate) source: Source,
    /// Which frames are wanted, ascending by page number.
    pub(crate) pages: Vec<JobPage>,
}

/// What came of some pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// XOR of the checksums of the pages.
    pub(crate) checksum_bits: u64,
    /// Number of pages.
    pub(crate) pages: u64,
}

impl Totals {
    /// Adds what came of other pages.
    pub(crate) fn add(&mut self, other: Self) {
        self.checksum_bits ^= other.checksum_bits;
        self.pages += other.pages;
    }
}

/// What every job needs.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) reader: Arc<Reader>,
    pub(crate) page_size: PageSize,
    pub(crate) sink: Arc<dyn PageSink>,
    pub(crate) progress: Arc<dyn Progress>,
    /// Where written pages are noted.
    pub(crate) done: Option<DoneLog>,
    /// Which jobs that would have to read are done, when not all.
    pub(crate) sample: Option<Sample>,
}

impl Bench {
    fn note(&self, pages: &[JobPage], totals: Totals) -> Result<(), RestoreError> {
        let Some(done) = &self.done else { return Ok(()) };
        done.note(pages.iter().map(|page| page.pgno), totals.checksum_bits)
    }
}

/// Runs jobs.
#[derive(Debug)]
pub(crate) struct Pool {
    bench: Arc<Bench>,
    memory: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    tasks: JoinSet<Result<Totals, RestoreError>>,
    totals: Totals,
}

impl Pool {
    /// A pool that unpacks on at most `threads` threads.
    pub(crate) fn new(bench: Bench, threads: usize) -> Self {
        Self {
            bench: Arc::new(bench),
            memory: Arc::new(Semaphore::new(JOB_BYTES_MAX / MEMORY_UNIT)),
            threads: Arc::new(Semaphore::new(threads.max(1))),
            tasks: JoinSet::new(),
            totals: Totals::default(),
        }
    }

    /// Starts a job as soon as there is memory for it. Fails with the error of any job that has failed.
    pub(crate) async fn submit(&mut self, job: Job) -> Result<(), RestoreError> {
        while let Some(result) = self.tasks.try_join_next() {
            self.totals.add(finished(result)?);
        }
        let is_left_out = |sample: &Sample| job.pages.first().is_some_and(|page| !sample.takes(page.pgno));
        if matches!(job.source, Source::Range(_)) && self.bench.sample.as_ref().is_some_and(is_left_out) {
            return Ok(());
        }
        let permit = match &job.source {
            Source::Memory(..) | Source::Draft { .. } => None,
            Source::Range(range) => {
                let units = ((range.end - range.start) as usize).div_ceil(MEMORY_UNIT).min(JOB_BYTES_MAX / MEMORY_UNIT);
                Some(acquire(&self.memory, units).await)
            }
        };
        self.tasks.spawn(run(Arc::clone(&self.bench), Arc::clone(&self.threads), job, permit));
        Ok(())
    }

    /// Waits for every job, also when one fails: the first error is given then.
    pub(crate) async fn finish(mut self) -> Result<Totals, RestoreError> {
        let mut failed = Ok(());
        while let Some(result) = self.tasks.join_next().await {
            match finished(result) {
                Ok(totals) => self.totals.add(totals),
                Err(e) => failed = failed.and(Err(e)),
            }
        }
        failed.map(|()| self.totals)
    }
}

/// The right to hold so many units; waits for it.
pub(crate) async fn acquire(semaphore: &Arc<Semaphore>, units: usize) -> OwnedSemaphorePermit {
    let units = u32::try_from(units).expect("bounded by the semaphore's size");
    Arc::clone(semaphore).acquire_many_owned(units).await.expect("the semaphore is never closed")
}

/// What a task gave; its panic goes on here.
pub(crate) fn finished<T>(result: Result<Result<T, RestoreError>, JoinError>) -> Result<T, RestoreError> {
    match result {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(RestoreError::Cancelled),
    }
}

async fn run(
    bench: Arc<Bench>,
    threads: Arc<Semaphore>,
    job: Job,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<Totals, RestoreError> {
    let (bytes, held) = match job.source {
        Source::Memory(bytes, held) => (bytes, held),
        Source::Range(range) => (bench.reader.get_range(&job.key, range).await?, permit),
        Source::Draft { file, is_listed } => return look_at(bench, threads, file, is_listed, job.pages).await,
    };
    let thread = acquire(&threads, 1).await;
    let work = tokio::task::spawn_blocking(move || {
        let totals = unpack(&bench, &job.key, &bytes, &job.pages);
        let len = bytes.len() as u64;
        drop((bytes, held, thread));
        let totals = totals?;
        bench.note(&job.pages, totals)?;
        bench.progress.advance(totals.pages, len);
        Ok(totals)
    });
    finished(work.await)
}

/// Checksums pages that are in the draft already.
async fn look_at(
    bench: Arc<Bench>,
    threads: Arc<Semaphore>,
    file: Arc<File>,
    is_listed: bool,
    pages: Vec<JobPage>,
) -> Result<Totals, RestoreError> {
    let thread = acquire(&threads, 1).await;
    let work = tokio::task::spawn_blocking(move || {
        let bits = checksum_bits(&file, bench.page_size, pages.iter().map(|page| page.pgno));
        drop(thread);
        let bits = bits.map_err(|e| RestoreError::io("read", Path::new("the draft"), e))?;
        // A draft that has become shorter gives a wrong checksum in the end.
        let totals = Totals { checksum_bits: bits.unwrap_or(0), pages: pages.len() as u64 };
        if !is_listed {
            bench.note(&pages, totals)?;
        }
        bench.progress.advance(totals.pages, 0);
        Ok(totals)
    });
    finished(work.await)
}

/// Unpacks pages into the sink.
fn unpack(bench: &Bench, key: &str, bytes: &[u8], pages: &[JobPage]) -> Result<Totals, RestoreError> {
    let mut run = RunBuffer::new(&*bench.sink, bench.page_size);
    let mut totals = Totals::default();
    for page in pages {
        let start = page.offset as usize;
        let frame = bytes.get(start..start + page.len as usize);
        let frame = frame.ok_or_else(|| RestoreError::contradiction(key, "its page index points outside of it"))?;
        let data = run.page(page.pgno)?;
        decode_page_frame(frame, page.pgno, data).map_err(|e| RestoreError::damaged(key, e))?;
        let checksum_bits = Checksum::of_page(page.pgno, data).get();
        totals.add(Totals { checksum_bits, pages: 1 });
    }
    run.flush()?;
    Ok(totals)
}
