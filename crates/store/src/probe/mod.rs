//! What a store really does, as far as asking shows it.
//!
//! A backend says what its store should promise ([`crate::Capabilities`]); servers that speak the same protocol keep that promise, ignore
//! it, or look as if they kept it until two writers come at the same time. So the checks race: several clients, each with connections of
//! its own, create one key and swap one version at once, again and again. A race that is lost proves that a store cannot fence; races
//! that are won make it likely that it can.
//!
//! The clients are used bare, without [`crate::Retrying`]: what is healed by trying again is not seen. An answer that leaves the outcome
//! open (`Ambiguous`, `Unavailable`) is no failure of a race: what stands there afterwards decides who has won.
//!
//! Everything happens below a fresh folder `rhyolite-probe-<random>`, which is emptied at the end, also after a failure.

mod checks;
mod latency;
mod races;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use rhyolite_format::Timestamp;

use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind};

pub use latency::Latency;

/// How much a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSize {
    /// Rounds of each race.
    pub rounds: usize,
    /// Calls that race in a round, spread over the clients.
    pub racers: usize,
    /// Calls that each latency is taken from.
    pub samples: usize,
    /// Bytes of the object that is uploaded in pieces.
    pub upload_bytes: usize,
}

impl Default for ProbeSize {
    fn default() -> Self {
        Self { rounds: 10, racers: 8, samples: 10, upload_bytes: (8 << 20) + 1 }
    }
}

/// What cannot be done with a store that fails a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Keeping a second writer out.
    Fencing,
    /// Keeping a backup at all.
    Backup,
    /// Nothing depends on it; it is good to know.
    Information,
}

impl Needed {
    /// One lower-case word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fencing => "fencing",
            Self::Backup => "backup",
            Self::Information => "information",
        }
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// A few words in kebab case.
    pub name: &'static str,
    /// What depends on it.
    pub needed: Needed,
    /// What was seen: as it should be, or not.
    pub seen: Result<String, String>,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// The store, without secrets.
    pub store: String,
    /// What it says of itself.
    pub declared: Capabilities,
    /// What was tried.
    pub checks: Vec<Check>,
    /// How long calls took.
    pub latencies: Vec<Latency>,
    /// The store's clock minus ours in milliseconds, if it tells; right to about a second, which is what stores tell.
    pub clock_offset_ms: Option<i64>,
}

impl ProbeReport {
    /// The checks that failed and that this depends on.
    pub fn failed(&self, needed: Needed) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |c| c.needed == needed && c.seen.is_err())
    }

    /// Nothing that keeping a backup needs has failed.
    pub fn can_back_up(&self) -> bool {
        self.failed(Needed::Backup).next().is_none()
    }

    /// Nothing that fencing needs has failed.
    pub fn can_fence(&self) -> bool {
        self.can_back_up() && self.failed(Needed::Fencing).next().is_none()
    }
}

/// What a check saw: words, or what was wrong.
type Seen = Result<String, String>;

/// What the checks share.
#[derive(Clone, Debug)]
struct Lab {
    /// One store, by clients that share nothing.
    clients: Vec<Arc<dyn Store>>,
    size: ProbeSize,
}

impl Lab {
    /// The client whose turn it is.
    fn client(&self, turn: usize) -> &Arc<dyn Store> {
        &self.clients[turn % self.clients.len()]
    }
}

type Code = fn(Lab) -> BoxFuture<'static, Seen>;

/// Names, needs and code of all checks, in the order in which they are shown.
const CHECKS: &[(&str, Needed, Code)] = &[
    ("round-trip", Needed::Backup, |lab| Box::pin(checks::round_trip(lab))),
    ("ranged-reads", Needed::Backup, |lab| Box::pin(checks::ranged_reads(lab))),
    ("upload-in-pieces", Needed::Backup, |lab| Box::pin(checks::upload_in_pieces(lab))),
    ("list-after-write", Needed::Backup, |lab| Box::pin(checks::list_after_write(lab))),
    ("delete", Needed::Backup, |lab| Box::pin(checks::delete(lab))),
    ("create-twice", Needed::Backup, |lab| Box::pin(checks::create_twice(lab))),
    ("swap-stale", Needed::Backup, |lab| Box::pin(checks::swap_stale(lab))),
    ("read-after-write", Needed::Fencing, |lab| Box::pin(checks::read_after_write(lab))),
    ("create-race", Needed::Fencing, |lab| Box::pin(races::creates(lab))),
    ("swap-race", Needed::Fencing, |lab| Box::pin(races::swaps(lab))),
    ("swap-sum", Needed::Fencing, |lab| Box::pin(races::sum(lab))),
    ("equal-bytes-swap", Needed::Information, |lab| Box::pin(checks::equal_bytes_swap(lab))),
];

/// Largest difference between the clocks that is not called a failure.
const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(60);

/// Probes the store that all the clients are of. More clients race better: each should have connections of its own.
///
/// # Errors
/// Nothing could be written at all: then there is nothing to report on.
pub async fn run(clients: &[Arc<dyn Store>], size: ProbeSize) -> Result<ProbeReport, StoreError> {
    assert!(
        !clients.is_empty() && size.rounds > 0 && size.racers > 1 && size.samples > 0,
        "a probe that tries nothing"
    );
    let (store, declared) = (clients[0].describe(), clients[0].capabilities());
    let random = getrandom::u64().map_err(|e| {
        StoreError::new(StoreErrorKind::Unavailable, Operation::Open, "", &store, format!("no random numbers: {e}"))
    })?;
    let folder = format!("rhyolite-probe-{random:016x}");
    let clients = clients.iter().map(|c| c.sub(&folder)).collect::<Result<Vec<_>, _>>()?;
    let lab = Lab { clients, size };
    let result = examine(&lab, store, declared).await;
    clean(&lab).await;
    result
}

async fn examine(lab: &Lab, store: String, declared: Capabilities) -> Result<ProbeReport, StoreError> {
    let clock_offset_ms = clock_offset(lab).await?;
    let mut checks = Vec::new();
    for &(name, needed, code) in CHECKS {
        checks.push(Check { name, needed, seen: code(lab.clone()).await });
    }
    let latencies = latency::measure(lab).await;
    checks.push(latency_check(&latencies));
    checks.push(Check { name: "clock", needed: Needed::Information, seen: clock_seen(clock_offset_ms) });
    Ok(ProbeReport { store, declared, checks, latencies, clock_offset_ms })
}

/// The first write and the first look, whose failure ends the probe.
async fn clock_offset(lab: &Lab) -> Result<Option<i64>, StoreError> {
    let before = now();
    lab.client(0).create("clock", bytes::Bytes::from_static(b"what time is it?")).await?;
    let after = now();
    let middle = before.0 + (after.0 - before.0) / 2;
    let modified = lab.client(0).head("clock").await?.modified;
    Ok(modified.map(|time| time.0 - middle))
}

fn clock_seen(offset_ms: Option<i64>) -> Seen {
    let Some(offset) = offset_ms else { return Ok("the store does not tell its time".to_owned()) };
    let text = match offset {
        // Stores cut their times to whole seconds.
        -1_100..=1_100 => return Ok("within a second of ours".to_owned()),
        _ => format!("{:.1} s {} ours", offset.abs() as f64 / 1e3, if offset > 0 { "ahead of" } else { "behind" }),
    };
    if offset.unsigned_abs() > CLOCK_OFFSET_MAX.as_millis() as u64 { Err(text) } else { Ok(text) }
}

fn latency_check(latencies: &[Latency]) -> Check {
    let failed = latencies.iter().find_map(|l| l.error.as_ref().map(|e| format!("{}: {e}", l.operation.name())));
    let calls: usize = latencies.iter().map(|l| l.samples).sum();
    let seen = failed.map_or_else(|| Ok(format!("{calls} calls were answered")), Err);
    Check { name: "steady", needed: Needed::Backup, seen }
}

/// Removes what was made. What cannot be removed shows in the check of deletion.
async fn clean(lab: &Lab) {
    let left = lab.client(0).list_all("").await.unwrap_or_default();
    for entries in left.chunks(1000) {
        let keys: Vec<String> = entries.iter().map(|e| e.key.clone()).collect();
        let _ = lab.client(0).delete(&keys).await;
    }
    let _ = lab.client(0).remove_folder("").await;
}

fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// An error of a call that should have worked.
fn said<T>(what: impl fmt::Display, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {}", e.reason))
}

/// A call that should have been refused.
fn refused<T>(what: &str, result: Result<T, StoreError>, kind: StoreErrorKind) -> Result<(), String> {
    match result {
        Err(e) if e.kind == kind => Ok(()),
        Err(e) => Err(format!("{what} failed otherwise than it should: {}", e.reason)),
        Ok(_) => Err(format!("{what} was not refused")),
    }
}
