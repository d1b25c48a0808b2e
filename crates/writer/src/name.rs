//! Entering a snapshot of the live database in the manifest, which makes the first one as well.

use rhyolite_format::manifest::{Manifest, ManifestFile};
use rhyolite_format::{Epoch, Lineage, Seq};
use rhyolite_logic::history_plan;
use rhyolite_logic::lease::Guards;
use rhyolite_store::Store;

use crate::World;
use crate::claim::Claim;
use crate::manifest_swap::{self, ManifestError};

/// Who enters it.
#[derive(Clone, Copy, Debug)]
pub struct Author {
    /// The history.
    pub lineage: Lineage,
    /// The right to write.
    pub epoch: Epoch,
    /// The first sequence number of its log, for a manifest that does not exist yet.
    pub first_seq: Seq,
}

/// Names `file`, which the store has, after the claim.
///
/// # Errors
/// The manifest belongs to another epoch, or the store did not do it: then the snapshot counts for nothing.
pub async fn snapshot(
    store: &dyn Store,
    world: &dyn World,
    guards: Guards,
    claim: &Claim,
    author: Author,
    file: &ManifestFile,
) -> Result<(), ManifestError> {
    claim.ensure().await?;
    let fresh = claim.is_fresh().await;
    // Where none was, one of an earlier life has come in late: what it names is not what this one goes on from.
    let change = |manifest: Option<Manifest>| {
        let expected = manifest.is_none() == fresh || !guards.manifest_epoch;
        expected.then(|| with_snapshot(manifest, file, world, author))
    };
    let named = manifest_swap::update_as(store, world, guards, author.epoch, change).await?;
    if named.is_none() {
        return Err(ManifestError::Changed);
    }
    claim.made().await;
    Ok(())
}

/// The manifest with one more snapshot. The first one starts the log.
fn with_snapshot(manifest: Option<Manifest>, file: &ManifestFile, world: &dyn World, author: Author) -> Manifest {
    let first = manifest.is_none();
    let fresh = || Manifest::new(author.lineage, author.epoch, world.nonce(), world.wall(), author.first_seq);
    let mut next = manifest.unwrap_or_else(fresh);
    if first {
        next.log_start = Some(file.end());
    }
    history_plan::enter(&mut next, file.clone(), world.wall());
    next
}
