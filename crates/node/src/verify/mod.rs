//! Proves that what a store holds can be restored.
//!
//! 1. Every object that the manifest and the log name is read whole and decoded: its CRC, every LTX file's checksums, and that
//!    it holds what the manifest, or its own index, says ([`objects`]).
//! 2. Every commit joins the one before; every commit can be reached.
//! 3. Manifest, log, lease and the store's own clock do not contradict each other (`rhyolite_logic::contradiction`, [`evidence`]).
//! 4. The newest state is put together as a restore would do it, and its checksum compared with the log's. With
//!    [`Depth::EveryPoint`] so is every restore point ([`replay`]).
//!
//! Damage is collected, not an error: errors are what keeps this from being judged, such as a store that does not answer. A store
//! that is written meanwhile is not damaged: when the manifest has changed while damage was found, everything is looked at again.

pub(crate) mod against;
mod evidence;
pub(crate) mod objects;
mod replay;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::{Lineage, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_store::Store;

pub use against::{AgainstOptions, AgainstReport, verify_against};

use crate::progress::{Progress, Stage};
use crate::restore::RestoreError;
use crate::restore::reader::Reader;
use evidence::Before;

/// How often a store whose manifest changes is looked at before what is found counts.
const LOOKS_MAX: u32 = 3;

/// How much is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The newest state.
    Newest,
    /// Every restore point. Takes 8 bytes of memory per page, and reads every commit once more.
    EveryPoint,
}

/// What to verify, and how.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// How much is restored.
    pub depth: Depth,
    /// Threads that unpack; at least one.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// Something in the store that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The object, relative to the database's prefix; empty when it is not about one object.
    pub key: String,
    /// What is wrong, in words.
    pub detail: String,
}

/// What was verified, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The history; `None` when what says so is damaged.
    pub lineage: Option<Lineage>,
    /// The newest position, and when it was committed. It is proved if there is no damage.
    pub newest: Option<(Pos, Timestamp)>,
    /// Objects that were read whole.
    pub objects: u64,
    /// Transactions in them. Of merged files and snapshots only the file counts.
    pub transactions: u64,
    /// Positions that can be restored.
    pub points: u64,
    /// Positions that were put together and compared with their checksum.
    pub points_proved: u64,
    /// Everything that is not as it should be.
    pub damage: Vec<Damage>,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
    /// Requests to the store.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Verifies what a store holds of a database. Must run in a Tokio runtime with more than one thread.
///
/// # Errors
/// What keeps it from being judged. Damage is not an error but part of the report.
pub async fn verify(options: VerifyOptions) -> Result<VerifyReport, RestoreError> {
    let started = Instant::now();
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let mut looks = 1;
    let mut report = loop {
        options.progress.enter(Stage::Planning);
        let before = evidence::before(&reader).await?;
        let report = look(&options, &reader, &before).await?;
        if report.is_sound() || looks == LOOKS_MAX || !before.has_changed(&reader).await? {
            break report;
        }
        looks += 1;
    };
    options.progress.enter(Stage::Done);
    (report.bytes_fetched, report.requests, report.elapsed) = (reader.bytes(), reader.requests(), started.elapsed());
    Ok(report)
}

/// Reads and proves everything once.
async fn look(options: &VerifyOptions, reader: &Arc<Reader>, before: &Before) -> Result<VerifyReport, RestoreError> {
    let mut report = VerifyReport {
        lineage: None,
        newest: None,
        objects: 0,
        transactions: 0,
        points: 0,
        points_proved: 0,
        damage: Vec::new(),
        bytes_fetched: 0,
        requests: 0,
        elapsed: Duration::ZERO,
    };
    report.damage.extend(before.incomplete(reader).await?);
    let (found, damage) = match objects::check(reader, options.threads).await {
        // Its absence is damage only beside other objects.
        Err(RestoreError::NoDatabase { .. }) if !report.is_sound() => return Ok(report),
        checked => match as_damage(checked)? {
            Ok(checked) => checked,
            // Without identity or manifest nothing else can be judged.
            Err(wrong) => {
                report.damage.push(wrong);
                return Ok(report);
            }
        },
    };
    report.damage.extend(damage);
    report.damage.extend(evidence::contradictions(reader, before, &found.catalog).await?);
    report.lineage = Some(found.catalog.identity.lineage);
    (report.objects, report.transactions) = (found.objects, found.transactions);
    report.points = found.points.len() as u64;
    match replay::prove(reader, &found, Target::Latest, options.threads, &options.progress).await? {
        Ok(plan) => {
            report.newest = Some((plan.pos, plan.time));
            report.points_proved = 1;
        }
        Err(wrong) => report.damage.push(wrong),
    }
    if options.depth == Depth::EveryPoint {
        let (proved, wrong) = replay::prove_all(reader, &found, options.threads, &options.progress).await?;
        report.points_proved = proved;
        report.damage.extend(wrong);
    }
    Ok(report)
}

/// An error that speaks of what the store holds becomes damage; others are passed on.
pub(crate) fn as_damage<T>(result: Result<T, RestoreError>) -> Result<Result<T, Damage>, RestoreError> {
    let error = match result {
        Ok(value) => return Ok(Ok(value)),
        Err(error) => error,
    };
    let detail = error.to_string();
    let key = match &error {
        RestoreError::Damaged { key, .. } | RestoreError::Missing { key } | RestoreError::Contradiction { key, .. } => {
            key.clone()
        }
        RestoreError::Plan(_)
        | RestoreError::OldPlan(_)
        | RestoreError::PageMissing { .. }
        | RestoreError::WrongChecksum { .. } => String::new(),
        _ => return Err(error),
    };
    Ok(Err(Damage { key, detail }))
}
