//! What is already there of a state that is to be restored: some pages of an earlier state, in the draft.
//!
//! Either an interrupted restore has left them, or (`--reuse`) the draft is a copy of an existing file whose checksum is that of
//! a restore point. LTX files do not say the checksum of a page that is not fetched, so a file that is at no restore point
//! (because somebody has written to it) cannot be told apart page by page, and everything is fetched.
//!
//! A page of the base at TXID `b` is the wanted one at the target if no file that leads from `b` to the target holds it. So
//! those files are visited first; what is still wanted then is taken from the base where the base has it, and the rest from what
//! leads to `b`. What was taken is checksummed like everything else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile};
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Pos};
use rhyolite_logic::Target;
use rhyolite_logic::base;
use rhyolite_logic::restore_plan::{BundleIndex, PlanStep, RestorePlan, points};

use super::catalog::Catalog;
use super::done::read_up_to;
use super::reader::Reader;
use super::{RestoreError, plan_steps};

/// Bytes of a file that are read at once to checksum it.
const READ_BYTES: usize = 1 << 20;

/// A set of pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageSet {
    bits: Vec<u64>,
}

impl PageSet {
    /// All pages of a database of this size.
    pub(crate) fn all(commit: PageCount) -> Self {
        Self { bits: vec![u64::MAX; (commit.get() as usize).div_ceil(64)] }
    }

    pub(crate) fn insert(&mut self, pgno: PageNumber) {
        let word = pgno.index() / 64;
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (pgno.index() % 64);
    }

    pub(crate) fn contains(&self, pgno: PageNumber) -> bool {
        self.bits.get(pgno.index() / 64).is_some_and(|word| word & (1 << (pgno.index() % 64)) != 0)
    }
}

/// Pages of a state, in the draft.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) pos: Pos,
    pub(crate) page_size: PageSize,
    pub(crate) commit: PageCount,
    /// The pages that are there. Those beyond the size do not count.
    pub(crate) here: PageSet,
}

/// How to go on from a base.
#[derive(Debug)]
pub(crate) struct Way {
    /// What leads from the base to the target, oldest first.
    pub(crate) newer: Vec<PlanStep>,
    /// What leads to the base.
    pub(crate) older: Vec<PlanStep>,
}

impl Base {
    /// How to get from here to where the plan ends. `None` when that is of no use: another page size, another history, or the
    /// files that lead from here to there are gone.
    pub(crate) async fn way(
        &self,
        reader: &Reader,
        catalog: &Catalog,
        plan: &RestorePlan,
    ) -> Result<Option<Way>, RestoreError> {
        if self.page_size != plan.page_size || self.pos.txid > plan.pos.txid {
            return Ok(None);
        }
        if self.pos == plan.pos {
            return Ok(Some(Way { newer: Vec::new(), older: plan.steps.clone() }));
        }
        let mut indexes = Vec::new();
        let manifest = &catalog.manifest;
        let Ok(older) = plan_steps(reader, catalog, manifest, &mut indexes, Target::Txid(self.pos.txid)).await else {
            return Ok(None);
        };
        if older.pos != self.pos {
            return Ok(None);
        }
        let from_here = self.instead_of_newer_snapshots(&catalog.manifest);
        let target = Target::Txid(plan.pos.txid);
        let Ok(mut newer) = plan_steps(reader, catalog, &from_here, &mut indexes, target).await else {
            return Ok(None);
        };
        if !self.is_first_of(&newer) || newer.pos != plan.pos {
            return Ok(None);
        }
        newer.steps.remove(0);
        Ok(Some(Way { newer: newer.steps, older: older.steps }))
    }

    /// A manifest that makes the planner start from here.
    pub(crate) fn instead_of_newer_snapshots(&self, manifest: &Manifest) -> Manifest {
        self.state().instead_of_newer_snapshots(manifest)
    }

    /// Whether the plan starts from here.
    pub(crate) fn is_first_of(&self, plan: &RestorePlan) -> bool {
        self.state().is_first_of(plan)
    }

    fn state(&self) -> base::Base {
        base::Base { pos: self.pos, page_size: self.page_size, commit: self.commit }
    }
}

/// Page size, size and checksum of a database file. `None` when it is none, or is not whole pages.
pub(crate) fn checksum_of_file(
    file: &File,
    path: &Path,
) -> Result<Option<(PageSize, PageCount, Checksum)>, RestoreError> {
    let failed = |e| RestoreError::io("read", path, e);
    let len = file.metadata().map_err(failed)?.len();
    let mut header = [0; DATABASE_HEADER_SIZE];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Ok(None);
    }
    let Ok(header) = DatabaseHeader::decode(&header) else { return Ok(None) };
    let page_size = header.page_size;
    let pages = u32::try_from(len / u64::from(page_size.get()));
    let Some(pages) = pages.ok().filter(|_| len.is_multiple_of(u64::from(page_size.get()))) else { return Ok(None) };
    let mut checksum = Checksum::EMPTY;
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < len {
        let read = read_up_to(file, &mut buffer, offset).map_err(failed)?;
        for (i, page) in buffer[..read as usize].chunks_exact(page_size.bytes()).enumerate() {
            let number = offset / u64::from(page_size.get()) + i as u64 + 1;
            let pgno = u32::try_from(number).ok().and_then(PageNumber::new).expect("within the number of pages");
            if pgno != page_size.lock_page() {
                checksum = checksum.toggle(Checksum::of_page(pgno, page));
            }
        }
        if read < buffer.len() as u64 && offset + read < len {
            return Ok(None);
        }
        offset += read;
    }
    Ok(Some((page_size, PageCount(pages), checksum)))
}

/// The restore point that a database file is at. `None` when it is at none.
pub(crate) async fn find_base(
    reader: &Reader,
    catalog: &Catalog,
    found: (PageSize, PageCount, Checksum),
) -> Result<Option<Base>, RestoreError> {
    let (page_size, commit, checksum) = found;
    let mut indexes: Vec<BundleIndex> = Vec::new();
    let bundles = catalog.manifest.files.iter().filter(|file| file.kind == FileKind::Bundle);
    let mut bundles: Vec<&ManifestFile> = bundles.collect();
    bundles.sort_by_key(|file| file.max_txid);
    loop {
        let listed = points(&catalog.manifest, &catalog.log, &indexes).expect("the catalog has no holes");
        let is_it = |point: &rhyolite_logic::restore_plan::RestorePoint| {
            (point.page_size, point.commit, point.pos.checksum) == (page_size, commit, checksum)
        };
        if let Some(point) = listed.iter().rev().find(|point| is_it(point)) {
            return Ok(Some(Base { pos: point.pos, page_size, commit, here: PageSet::all(commit) }));
        }
        // Newest first: a file to be reused is rarely an old one.
        let Some(bundle) = bundles.pop() else { return Ok(None) };
        indexes.push(catalog.bundle_index(reader, &bundle.key).await?);
    }
}
