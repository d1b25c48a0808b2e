//! Tight loops over the same bytes: the least that any program must do, written as well as we can.
//!
//! They share the product's primitives (checksums, LZ4) but nothing of its structure: no log, no index, no store.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rhyolite_format::ltx::{PageIndex, PageIndexEntry, decode_page_frame};
use rhyolite_format::lz4::Packer;
use rhyolite_format::sqlite::wal;
use rhyolite_format::{Checksum, PageNumber, PageSize};
use xtask::error::{Context, Outcome};

use crate::measure::own_cpu_ns;

/// Frames that are read at once: 64 of 4 KiB stay in the second-level cache.
const WINDOW_FRAMES: usize = 64;
/// Bytes of packed pages that a thread of the restore loop reads at once.
const READ_BYTES: u64 = 256 * 1024;
/// Bytes that it writes at once: larger writes leave the file in large folios, which later small writes pay for.
const WRITE_PAGES: usize = 16;

/// Reads, verifies, sums and packs the WAL at `path`; gives CPU seconds for each GB.
pub(crate) fn capture(path: &Path) -> Outcome<f64> {
    let mut file = File::open(path).context("open the WAL")?;
    let mut header = [0; wal::WAL_HEADER_SIZE];
    file.read_exact(&mut header).context("read the WAL header")?;
    let header = wal::WalHeader::decode(&header).context("WAL header")?;
    let frame_bytes = wal::FRAME_HEADER_SIZE + header.page_size.bytes();
    let mut window = vec![0; WINDOW_FRAMES * frame_bytes];
    let (mut packer, mut packed) = (Packer::new(), Vec::with_capacity(window.len() * 2));
    let mut state = header.checksum;
    let (mut bytes, mut sum) = (0, Checksum::EMPTY);
    let began = own_cpu_ns();
    loop {
        let filled = read_full(&mut file, &mut window).context("read the WAL")?;
        let frames = filled / frame_bytes;
        if frames == 0 {
            break;
        }
        packed.clear();
        for frame in window[..frames * frame_bytes].chunks_exact(frame_bytes) {
            let (head, page) = frame.split_at(wal::FRAME_HEADER_SIZE);
            state = wal::checksum(state, &head[..8], header.big_endian);
            state = wal::checksum(state, page, header.big_endian);
            let pgno = u32::from_be_bytes(head[..4].try_into().expect("four bytes"));
            sum = sum.toggle(Checksum::of_page(PageNumber::new(pgno).unwrap_or(PageNumber::FIRST), page));
            packer.pack(page, &mut packed);
        }
        std::hint::black_box((&packed, state, sum));
        bytes += frames * frame_bytes;
    }
    Ok((own_cpu_ns() - began) as f64 / bytes as f64)
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Reads the snapshot `ltx`, unpacks its pages and writes them to `out`, with `threads` threads, then syncs.
pub(crate) fn restore(ltx: &Path, out: &Path, page_size: PageSize, threads: usize) -> Outcome<Duration> {
    let began = Instant::now();
    let source = File::open(ltx).context("open the snapshot")?;
    let size = source.metadata().context("size of the snapshot")?.len();
    let index = read_index(&source, size)?;
    let target = File::options().write(true).create(true).truncate(true).open(out).context("make the copy")?;
    let share = index.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            index.chunks(share).map(|entries| scope.spawn(|| unpack(&source, &target, entries, page_size))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().ok().context("a thread panicked")?)
    })?;
    target.sync_all().context("sync the copy")?;
    Ok(began.elapsed())
}

fn read_index(source: &File, size: u64) -> Outcome<Vec<PageIndexEntry>> {
    let mut tail = vec![0; size.min(64) as usize];
    let start = size - tail.len() as u64;
    source.read_exact_at(&mut tail, start).context("read the tail")?;
    let range = PageIndex::locate(&tail, size).context("page index")?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    source.read_exact_at(&mut bytes, range.start).context("read the index")?;
    Ok(PageIndex::decode(&bytes, range.start).context("page index")?.0)
}

fn unpack(source: &File, target: &File, entries: &[PageIndexEntry], page_size: PageSize) -> Outcome {
    let mut packed = Vec::new();
    let mut pages = vec![0; WRITE_PAGES * page_size.bytes()];
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|entry| entry.offset + entry.size - first.offset <= READ_BYTES).count();
        let (batch, later) = rest.split_at(count.max(1));
        let end = batch.last().map_or(0, |entry| entry.offset + entry.size);
        packed.resize((end - first.offset) as usize, 0);
        source.read_exact_at(&mut packed, first.offset).context("read pages")?;
        for run in batch.chunks(WRITE_PAGES) {
            for (entry, page) in run.iter().zip(pages.chunks_exact_mut(page_size.bytes())) {
                let start = (entry.offset - first.offset) as usize;
                let frame = &packed[start..start + entry.size as usize];
                decode_page_frame(frame, entry.pgno, page).context("unpack a page")?;
            }
            write_run(target, run, &pages, page_size)?;
        }
        rest = later;
    }
    Ok(())
}

/// Pages of a snapshot follow one another, but for the lock page, which no snapshot holds.
fn write_run(target: &File, run: &[PageIndexEntry], pages: &[u8], page_size: PageSize) -> Outcome {
    let is_whole = run.windows(2).all(|pair| pair[0].pgno.get() + 1 == pair[1].pgno.get());
    if is_whole {
        let bytes = &pages[..run.len() * page_size.bytes()];
        return target.write_all_at(bytes, run[0].pgno.offset(page_size)).context("write pages");
    }
    run.iter()
        .zip(pages.chunks_exact(page_size.bytes()))
        .try_for_each(|(entry, page)| target.write_all_at(page, entry.pgno.offset(page_size)).context("write a page"))
}
