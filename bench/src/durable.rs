//! How long after a commit its transaction is durable in a folder, when every commit is uploaded at once.
//!
//! The application notes the moment of each commit on the clock that all processes share. A watch on the backup's `log` folder
//! notes the moment when each segment appears under its final name, which the store gives it after the bytes are synced;
//! the segment's own index says which transactions it holds.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rhyolite_format::segment::Segment;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};

use crate::lab::{LIMIT, Lab, make_database};
use crate::measure::{now_ns, percentile};
use crate::table::Row;

const P50_MS_MAX: f64 = 5.0;
const P99_MS_MAX: f64 = 25.0;

/// Measures a light and a heavier load.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let commits: u64 = args.option_or("--commits", 1000)?;
    let mut rows = Vec::new();
    for (load, pause_us) in [("one commit each 10 ms", "10000"), ("one commit each ms", "1000")] {
        let mut ages = ages_ns(lab, commits, pause_us)?;
        let p50 = percentile(&mut ages, 500) as f64 / 1e6;
        let p99 = percentile(&mut ages, 990) as f64 / 1e6;
        let detail = format!("{load}, --sync-interval 0, folder on the same disk, {} commits", ages.len());
        let what = |name| format!("commit to durable in a local store, {name}, {load}");
        let row = |what, ms: f64, goal, max| Row {
            what,
            figure: format!("{ms:.2} ms"),
            goal,
            met: Some(ms <= max),
            detail: detail.clone(),
        };
        rows.push(row(what("p50"), p50, "≤ 5 ms", P50_MS_MAX));
        rows.push(row(what("p99"), p99, "≤ 25 ms", P99_MS_MAX));
    }
    Ok(rows)
}

/// Nanoseconds from each commit to its segment.
fn ages_ns(lab: &Lab, commits: u64, pause_us: &str) -> Outcome<Vec<u64>> {
    let folder = lab.folder("durable")?;
    make_database(&folder)?;
    let mut replicator = lab.replicate(&folder, &["--sync-interval", "0"])?;
    let log = folder.join("backup/log");
    // The folder comes with the first segment.
    lab.app(&folder, &["--transactions", "1"])?;
    while last_txid(&log).unwrap_or(0) < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = last_txid(&log)?;
    let times = folder.join("times");
    let options = ["--transactions", &commits.to_string(), "--pause-us", pause_us];
    let done = AtomicBool::new(false);
    let watch = Watch::new(&log)?;
    let arrivals = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch.arrivals(&done));
        let times = times.display().to_string();
        let figures = lab.app(&folder, &[&options[..], &["--times", &times]].concat());
        let ended = replicator.terminate(LIMIT);
        done.store(true, Ordering::Relaxed);
        let arrivals = watcher.join().ok().context("the watcher panicked")?;
        figures.and(ended).and(arrivals)
    })?;
    let bytes = std::fs::read(&times).context("read the moments")?;
    let moments = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut ages = Vec::new();
    for (txid, moment) in (before + 1..).zip(moments) {
        let mut held = arrivals.iter().filter(|(_, last)| *last >= txid);
        let Some((arrived, _)) = held.next() else { return fail(format!("transaction {txid} never became durable")) };
        ages.push(arrived.saturating_sub(moment));
    }
    Ok(ages)
}

/// The last transaction in the segments of `log`; 0 for none.
fn last_txid(log: &Path) -> Outcome<u64> {
    let mut last = 0;
    for entry in std::fs::read_dir(log).context("list the log")? {
        last = last.max(last_txid_in(&entry.context("list the log")?.path()));
    }
    Ok(last)
}

/// The last transaction in a segment; 0 for what is no segment.
fn last_txid_in(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap_or_default();
    Segment::decode(&bytes).ok().and_then(|segment| segment.end()).map_or(0, |pos| pos.txid.get())
}

/// A watch on a folder.
struct Watch {
    descriptor: libc::c_int,
    folder: std::path::PathBuf,
}

impl Watch {
    fn new(folder: &Path) -> Outcome<Self> {
        // SAFETY: no memory is involved.
        let descriptor = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        let path = std::ffi::CString::new(folder.display().to_string()).context("a path without zero bytes")?;
        let events = libc::IN_CREATE | libc::IN_MOVED_TO;
        // SAFETY: the descriptor is open and the path ends with a zero byte.
        if descriptor < 0 || unsafe { libc::inotify_add_watch(descriptor, path.as_ptr(), events) } < 0 {
            return fail("the folder cannot be watched");
        }
        Ok(Self { descriptor, folder: folder.to_owned() })
    }

    /// Until `done`: when each segment appeared, and its last transaction.
    fn arrivals(&self, done: &AtomicBool) -> Outcome<Vec<(u64, u64)>> {
        let mut arrivals = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            let is_last_look = done.load(Ordering::Relaxed);
            // SAFETY: the buffer is as long as stated.
            let read = unsafe { libc::read(self.descriptor, buffer.as_mut_ptr().cast(), buffer.len()) };
            let now = now_ns();
            if read <= 0 && is_last_look {
                return Ok(arrivals);
            }
            if read <= 0 {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            for name in names(&buffer[..read as usize]) {
                if name.ends_with(".seg") {
                    arrivals.push((now, last_txid_in(&self.folder.join(name))));
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and is closed once.
        unsafe { libc::close(self.descriptor) };
    }
}

/// The names in a run of inotify events: 16 bytes, of which the last four are the name's length, then the name with zero bytes.
fn names(mut events: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((head, rest)) = events.split_at_checked(16) {
        let len = u32::from_ne_bytes(head[12..].try_into().expect("four bytes")) as usize;
        let (name, rest) = rest.split_at(len.min(rest.len()));
        names.push(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        events = rest;
    }
    names
}
