//! Claiming the manifest for an epoch: the second step of a new writer (see the crate's documentation).

use std::sync::Arc;

use rhyolite_format::Epoch;
use rhyolite_format::manifest::Manifest;
use rhyolite_logic::lease::Guards;
use rhyolite_store::{Store, Version};
use tokio::sync::Mutex;

use crate::World;
use crate::manifest_swap::{self, ManifestError};

/// The claim of one writer in one life.
#[derive(Debug)]
pub struct Claim {
    store: Arc<dyn Store>,
    world: Arc<dyn World>,
    guards: Guards,
    epoch: Epoch,
    /// The version that belonged to the end of the log that this writer has found; `None` when there was no manifest.
    seen: Option<Version>,
    done: Mutex<bool>,
}

impl Claim {
    /// A claim that is not made yet.
    pub fn new(
        store: Arc<dyn Store>,
        world: Arc<dyn World>,
        guards: Guards,
        epoch: Epoch,
        seen: Option<Version>,
    ) -> Self {
        Self { store, world, guards, epoch, seen, done: Mutex::new(false) }
    }

    /// The epoch that claims.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Makes the claim, once. To be called before anything that this writer puts into the log or the manifest.
    ///
    /// # Errors
    /// [`ManifestError::Fenced`] and [`ManifestError::Changed`]; nothing was claimed then.
    pub async fn ensure(&self) -> Result<(), ManifestError> {
        let mut done = self.done.lock().await;
        if *done || !self.guards.manifest_epoch {
            return Ok(());
        }
        match manifest_swap::read(&*self.store).await? {
            // The first snapshot makes the manifest.
            None if self.seen.is_none() => return Ok(()),
            None => return Err(ManifestError::Changed),
            Some((manifest, _)) if manifest.epoch > self.epoch => {
                return Err(ManifestError::Fenced { ours: self.epoch, theirs: manifest.epoch });
            }
            // This life has made it with its first snapshot, or has claimed it and was told otherwise.
            Some((manifest, _)) if manifest.epoch == self.epoch => {}
            Some((manifest, version)) if Some(&version) == self.seen.as_ref() => self.swap(manifest, &version).await?,
            Some(_) => return Err(ManifestError::Changed),
        }
        *done = true;
        Ok(())
    }

    async fn swap(&self, manifest: Manifest, version: &Version) -> Result<(), ManifestError> {
        let mut next = manifest;
        next.epoch = self.epoch;
        match manifest_swap::swap(&*self.store, &*self.world, next, Some(version)).await? {
            Some(_) => Ok(()),
            None => Err(ManifestError::Changed),
        }
    }
}
