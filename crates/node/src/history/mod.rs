//! Carries out what `rhyolite_logic::history_plan` decides: bundles, merges, snapshots, expiry, deletion.
//!
//! Order, for every step: write the new objects and look that they are there; swap the manifest; delete nothing that the
//! manifest does not list as retired. What a lost swap leaves behind is an object that nobody names.
//!
//! Several may look after one history at the same time, as long as they are of one epoch: a daemon and the commands `compact` and
//! `prune`. The manifest lets one of them win a step, and an object that two of them make under one key is made of the same bytes, so it
//! is never taken away from the one that names it ([`write`]).
//!
//! Everything that is rewritten is decoded and checked on the way: a history never goes from good objects into damaged ones.
//! Memory is bounded by [`merge`]'s limits whatever the size of the files.

mod garbage;
mod merge;
pub(crate) mod write;

use std::sync::Arc;

use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile, RetiredSegments};
use rhyolite_format::{Epoch, Nonce, Timestamp, Txid};
use rhyolite_logic::Target;
use rhyolite_logic::history_plan::{Duty, Piece, Policy, SnapshotReason, Step, Update, apply, plan};
use rhyolite_logic::lease::Guards;
use rhyolite_logic::log::{LogSegment, live};
use rhyolite_store::{Store, StoreError, StoreErrorKind};
use rhyolite_writer::delete::{self, Deletion};
use rhyolite_writer::manifest_swap::update_as;

use crate::manifest_swap::{self, ManifestError};
use crate::random;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, plan_in};
pub use crate::segment_source::SegmentSource;
use crate::world::RealWorld;
pub use garbage::{Garbage, OnGarbage, garbage};
use merge::Inputs;
use write::Workshop;

/// Plans that are made in one call, each from the manifest that the one before left.
const ROUNDS_MAX: usize = 16;

/// What to look after, and how.
#[derive(Clone, Debug)]
pub struct HistoryOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// When to do what, and what to keep.
    pub policy: Policy,
    /// Which part of it is done here.
    pub duty: Duty,
    /// The right to write under which this happens.
    pub epoch: Epoch,
    /// The time.
    pub now: Timestamp,
    /// Where to look for segments first.
    pub segments: Option<Arc<dyn SegmentSource>>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryReport {
    /// Bundles that were written, and snapshots that were moved out of the log.
    pub bundled: u64,
    /// Merged files that were written.
    pub merged: u64,
    /// Snapshots that were written.
    pub snapshots: u64,
    /// Files that were retired because nothing that is kept needs them.
    pub expired: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// The end of the log, at this transaction, cannot be restored any more: only a snapshot of the database itself helps.
    pub snapshot_due: Option<Txid>,
    /// Why objects that are due to be deleted are still there. All else was done.
    pub not_deleted: Option<String>,
    /// An object that is damaged or missing. What needs it was not done, and nothing was deleted as long as no newer snapshot stands for
    /// it; until then one is due.
    pub damaged: Option<String>,
}

/// Why the history could not be looked after.
#[derive(Debug)]
pub enum HistoryError {
    /// What is to be rewritten cannot be read, or is damaged. Nothing was retired or deleted for it.
    Read(RestoreError),
    /// An object could not be written.
    Write(StoreError),
    /// The manifest could not be changed.
    Manifest(ManifestError),
    /// The manifest is of a later epoch: this process may not write any more.
    Fenced {
        /// The epoch of this process.
        ours: Epoch,
        /// The epoch of the manifest.
        theirs: Epoch,
    },
    /// There is no manifest yet.
    NoManifest,
}

impl std::fmt::Display for HistoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(e) => e.fmt(f),
            Self::Write(e) => e.fmt(f),
            Self::Manifest(e) => e.fmt(f),
            Self::Fenced { ours, theirs } => {
                write!(f, "another process writes under epoch {theirs}, this one had {ours}")
            }
            Self::NoManifest => f.write_str("there is no manifest yet"),
        }
    }
}

impl std::error::Error for HistoryError {}

impl HistoryError {
    /// Whether somebody else's work may be why: an object is there, or gone, that the plan did not know of.
    fn may_be_outdated(&self) -> bool {
        match self {
            Self::Read(error) => error.is_about_an_object(),
            Self::Write(error) => error.kind == StoreErrorKind::Exists,
            Self::Manifest(_) | Self::Fenced { .. } | Self::NoManifest => false,
        }
    }
}

impl From<RestoreError> for HistoryError {
    fn from(error: RestoreError) -> Self {
        Self::Read(error)
    }
}

impl From<StoreError> for HistoryError {
    fn from(error: StoreError) -> Self {
        Self::Write(error)
    }
}

impl From<ManifestError> for HistoryError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Fenced { ours, theirs } => Self::Fenced { ours, theirs },
            error => Self::Manifest(error),
        }
    }
}

/// Does everything that is due. Must run in a Tokio runtime with more than one thread.
///
/// # Errors
/// The first step that fails, but for deletions, of which the report tells. Steps before it are done.
pub async fn maintain(options: HistoryOptions) -> Result<HistoryReport, HistoryError> {
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let mut report = HistoryReport::default();
    let mut has_looked_again = false;
    let mut damage = Damage::default();
    for _ in 0..ROUNDS_MAX {
        let local = options.segments.as_ref();
        let catalog = match Catalog::load_with(&reader, local, None, OnDamage::Refuse).await {
            // Somebody else may have bundled and deleted it after the manifest was read.
            Err(RestoreError::Missing { .. }) if !has_looked_again => {
                has_looked_again = true;
                continue;
            }
            Err(error) if error.is_about_an_object() => {
                return damaged_log(&reader, error, report).await;
            }
            loaded => loaded?,
        };
        check_epoch(&catalog.manifest, options.epoch)?;
        let mut steps = due(&options, &catalog, &mut report);
        damage.leave_out(&mut steps, &catalog, &mut report);
        if steps.is_empty() {
            break;
        }
        let carried_out = Round::new(&options, &reader, &catalog).carry_out_all(&steps, &mut report).await;
        let Err((step, error)) = carried_out else { continue };
        if error.may_be_outdated() && has_moved_on(&options, &catalog).await? {
            continue;
        }
        match error {
            HistoryError::Read(error) if error.is_about_an_object() => damage.note(step, &error),
            error => return Err(error),
        }
    }
    report.damaged = damage.first;
    Ok(report)
}

/// Nothing can be bundled from a log with a hole. A snapshot makes what comes after it restorable again.
async fn damaged_log(
    reader: &Arc<Reader>,
    error: RestoreError,
    mut report: HistoryReport,
) -> Result<HistoryReport, HistoryError> {
    let catalog = Catalog::load(reader, None, OnDamage::Collect).await?;
    if catalog.is_led_over_damage() == Some(false) {
        report.snapshot_due = catalog.log.iter().rev().find_map(|s| s.entries.last()).map(|entry| entry.max_txid);
    }
    report.damaged = Some(format!(
        "{error}: the log is not bundled any more, and restore points behind that are lost until the next snapshot"
    ));
    Ok(report)
}

/// Steps that cannot be done because of what is damaged.
#[derive(Debug, Default)]
struct Damage {
    steps: Vec<Step>,
    keys: Vec<String>,
    first: Option<String>,
}

impl Damage {
    fn note(&mut self, step: Step, error: &RestoreError) {
        self.steps.push(step);
        self.keys.extend(error.key().map(ToOwned::to_owned));
        self.first.get_or_insert_with(|| error.to_string());
    }

    /// Leaves out what was tried in vain. What else there is of the history is needed to lead around the damage, until a newer snapshot
    /// does.
    fn leave_out(&self, steps: &mut Vec<Step>, catalog: &Catalog, report: &mut HistoryReport) {
        steps.retain(|step| !self.steps.contains(step));
        let files = || catalog.manifest.files.iter();
        let end_of = |key: &String| files().find(|file| file.key == *key).map(|file| file.end().txid);
        let Some(end) = self.keys.iter().filter_map(end_of).max() else { return };
        let is_newer = |file: &ManifestFile| {
            file.kind == FileKind::Snapshot && file.end().txid > end && !self.keys.contains(&file.key)
        };
        if !files().any(is_newer) {
            report.snapshot_due = Some(end);
            steps.retain(|step| !matches!(step, Step::Expire { .. } | Step::Delete { .. }));
        }
    }
}

/// The steps that are to be carried out here.
fn due(options: &HistoryOptions, catalog: &Catalog, report: &mut HistoryReport) -> Vec<Step> {
    let steps = plan(&catalog.manifest, &catalog.log, &options.policy, options.now);
    let mut steps = steps.expect("the catalog has no holes");
    report.snapshot_due = None;
    steps.retain(|step| match step {
        // There is nothing that it could be merged from.
        Step::Snapshot { from, reason: SnapshotReason::Unreachable } => {
            report.snapshot_due = Some(*from);
            false
        }
        Step::Delete { .. } if report.not_deleted.is_some() => false,
        step => options.duty.includes(step),
    });
    steps
}

/// Whether somebody else has changed the manifest since it was read.
async fn has_moved_on(options: &HistoryOptions, catalog: &Catalog) -> Result<bool, HistoryError> {
    let now = manifest_swap::read(&*options.store).await?;
    Ok(now.is_some_and(|(manifest, _)| manifest.revision != catalog.manifest.revision))
}

/// What is due, without doing it. When these steps are done others may follow from them.
///
/// # Errors
/// The store does not answer, what it holds is damaged, or the manifest is of a later epoch.
pub async fn preview(options: &HistoryOptions) -> Result<Vec<Step>, HistoryError> {
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    check_epoch(&catalog.manifest, options.epoch)?;
    let mut steps =
        plan(&catalog.manifest, &catalog.log, &options.policy, options.now).expect("the catalog has no holes");
    steps.retain(|step| options.duty.includes(step));
    Ok(steps)
}

/// The manifest, and the listing of its live log.
///
/// # Errors
/// The store does not answer, or what it holds is damaged.
pub async fn catalog_of(store: &Arc<dyn Store>) -> Result<(Manifest, Vec<LogSegment>), RestoreError> {
    let reader = Arc::new(Reader::new(Arc::clone(store)));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    Ok((catalog.manifest, catalog.log))
}

/// Writes a snapshot of the newest state by merging what is in the store, and enters it in the manifest.
///
/// # Errors
/// Any; the manifest is as it was then.
pub async fn snapshot(options: HistoryOptions) -> Result<HistoryReport, HistoryError> {
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    check_epoch(&catalog.manifest, options.epoch)?;
    let mut report = HistoryReport::default();
    let round = Round::new(&options, &reader, &catalog);
    round.carry_out(&Step::Snapshot { from: Txid::FIRST, reason: SnapshotReason::Interval }, &mut report).await?;
    Ok(report)
}

fn check_epoch(manifest: &Manifest, ours: Epoch) -> Result<(), HistoryError> {
    if manifest.epoch > ours { Err(HistoryError::Fenced { ours, theirs: manifest.epoch }) } else { Ok(()) }
}

/// One plan being carried out.
struct Round<'a> {
    options: &'a HistoryOptions,
    workshop: Workshop,
    catalog: &'a Catalog,
}

impl<'a> Round<'a> {
    fn new(options: &'a HistoryOptions, reader: &Arc<Reader>, catalog: &'a Catalog) -> Self {
        let (lineage, epoch) = (catalog.identity.lineage, options.epoch);
        let leftover_before = Timestamp(options.now.0.saturating_sub(millis(options.policy.grace)));
        let workshop = Workshop { reader: Arc::clone(reader), lineage, epoch, leftover_before };
        Self { options, workshop, catalog }
    }

    /// Does one step after the other, until somebody else has changed what they were planned from.
    async fn carry_out_all(&self, steps: &[Step], report: &mut HistoryReport) -> Result<(), (Step, HistoryError)> {
        for step in steps {
            match (self.carry_out(step, report).await, step) {
                (Ok(true), _) => {}
                (Ok(false), _) => break,
                // Credentials that may not delete are no reason to let the log grow without end.
                (Err(HistoryError::Write(error)), Step::Delete { .. }) => report.not_deleted = Some(error.to_string()),
                (Err(error), step) => return Err((step.clone(), error)),
            }
        }
        Ok(())
    }

    /// Does one step; `false` when the manifest has changed so that it does not fit any more.
    async fn carry_out(&self, step: &Step, report: &mut HistoryReport) -> Result<bool, HistoryError> {
        let made = self.make(step).await?;
        if let Step::Delete { files, segments } = step {
            report.deleted += self.delete(files, segments).await?;
        }
        let written: u64 = made.iter().map(|file| file.size).sum();
        let count = made.len() as u64;
        let update = Update { epoch: self.options.epoch, nonce: Nonce(random::bytes()), now: self.options.now };
        let change = |manifest: Option<Manifest>| {
            let planned = &self.catalog.manifest;
            let manifest = manifest.filter(|manifest| fits(manifest, planned, step, self.options.epoch))?;
            Some(apply(&manifest, step, made.clone(), update))
        };
        let store = &*self.options.store;
        let swapped = update_as(store, &RealWorld, Guards::ALL, self.options.epoch, change).await?;
        if swapped.is_none() {
            return Ok(false);
        }
        report.bytes_written += written;
        match step {
            Step::Bundle { .. } => report.bundled += count,
            Step::Merge { .. } => report.merged += count,
            Step::Snapshot { .. } => report.snapshots += count,
            Step::Expire { keys } => report.expired += keys.len() as u64,
            Step::Delete { .. } => {}
        }
        Ok(true)
    }

    /// Writes the objects of a step.
    async fn make(&self, step: &Step) -> Result<Vec<ManifestFile>, HistoryError> {
        match step {
            Step::Bundle { pieces, .. } => {
                let mut made = Vec::new();
                for piece in pieces {
                    made.push(self.bundle(piece).await?);
                }
                Ok(made)
            }
            Step::Merge { level, inputs } => {
                let mut sources = Inputs::default();
                for file in inputs {
                    sources.add_file(&self.workshop.reader, file).await?;
                }
                Ok(vec![self.workshop.merge(*level, inputs, sources).await?])
            }
            Step::Snapshot { .. } => {
                let reader = &self.workshop.reader;
                let plan = plan_in(reader, self.catalog, &mut Vec::new(), Target::Latest).await?;
                let mut sources = Inputs::default();
                for step in &plan.steps {
                    sources.add_step(reader, step).await?;
                }
                Ok(vec![self.workshop.snapshot(&plan, self.oldest_time(), sources).await?])
            }
            Step::Expire { .. } | Step::Delete { .. } => Ok(Vec::new()),
        }
    }

    /// What the local log gives is used as long as it is good; the store has the same.
    async fn bundle(&self, piece: &Piece) -> Result<ManifestFile, HistoryError> {
        let catalog = self.catalog;
        let Some(local) = self.options.segments.as_ref() else {
            return self.workshop.bundle(piece, catalog, None).await;
        };
        match self.workshop.bundle(piece, catalog, Some(local)).await {
            Err(HistoryError::Read(error)) => {
                tracing::warn!("a segment of the local log is not usable, reading the store's: {error}");
                self.workshop.bundle(piece, catalog, None).await
            }
            other => other,
        }
    }

    /// The smallest time that the history knows.
    fn oldest_time(&self) -> Timestamp {
        let files = self.catalog.manifest.files.iter().map(|file| file.min_time);
        let segments = live(&self.catalog.manifest, &self.catalog.log).expect("the catalog has no holes");
        let commits = segments.iter().flat_map(|segment| segment.entries.iter().map(|entry| entry.timestamp));
        files.chain(commits).min().unwrap_or(self.options.now)
    }

    async fn delete(&self, files: &[String], segments: &[RetiredSegments]) -> Result<u64, HistoryError> {
        let HistoryOptions { store, policy, epoch, now, .. } = self.options;
        let deletion = Deletion { files, segments, epoch: *epoch, grace: policy.grace, now: *now, guards: Guards::ALL };
        delete::retired(&**store, deletion).await.map_err(|error| match error {
            // Of a deletion that the store refuses the report tells.
            ManifestError::Store(error) => HistoryError::Write(error),
            error => error.into(),
        })
    }
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whether a step that was planned from an earlier manifest may be applied to this one. What takes points away must know every pin.
fn fits(manifest: &Manifest, planned: &Manifest, step: &Step, epoch: Epoch) -> bool {
    let is_live = |key: &String| manifest.files.iter().any(|file| file.key == *key);
    let fits = match step {
        Step::Bundle { first_seq, .. } => manifest.first_seq == *first_seq,
        Step::Merge { inputs, .. } => {
            manifest.pins == planned.pins && inputs.iter().all(|input| manifest.files.contains(input))
        }
        Step::Snapshot { .. } => true,
        Step::Expire { keys } => manifest.pins == planned.pins && keys.iter().all(is_live),
        Step::Delete { files, .. } => !files.iter().any(is_live),
    };
    fits && manifest.epoch <= epoch
}
