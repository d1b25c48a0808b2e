//! A state that is there already, as the planner sees it: a snapshot that costs nothing, so that a plan begins with it and holds only what leads on.

use rhyolite_format::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile};
use rhyolite_format::{PageCount, PageSize, Pos, Timestamp, Txid, keys};

use crate::restore_plan::{PlanStep, RestorePlan};

/// A state of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its position.
    pub pos: Pos,
    /// Its page size.
    pub page_size: PageSize,
    /// Its size in pages.
    pub commit: PageCount,
}

impl Base {
    /// A manifest that makes the planner start from here.
    pub fn instead_of_newer_snapshots(&self, manifest: &Manifest) -> Manifest {
        let mut from_here = manifest.clone();
        from_here.files.retain(|file| file.kind != FileKind::Snapshot || file.max_txid < self.pos.txid);
        from_here.files.push(self.as_snapshot());
        from_here
    }

    /// Whether the plan starts from here.
    pub fn is_first_of(&self, plan: &RestorePlan) -> bool {
        matches!(plan.steps.first(), Some(PlanStep::Snapshot(file)) if *file == self.as_snapshot())
    }

    fn as_snapshot(&self) -> ManifestFile {
        ManifestFile {
            kind: FileKind::Snapshot,
            key: String::new(),
            level: keys::SNAPSHOT_LEVEL,
            min_txid: Txid::FIRST,
            max_txid: self.pos.txid,
            min_time: Timestamp(0),
            max_time: Timestamp(0),
            size: 0,
            crc64: Crc64Hex(0),
            page_size: self.page_size,
            commit: self.commit,
            pre_apply: None,
            post_apply: self.pos.checksum,
            pages: 0,
            entries: 1,
        }
    }
}
