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
///
/// A life that goes on under the epoch of the life before it claims again: what that one may have sent last, and was not told of, then
/// comes too late as well.
#[derive(Debug)]
pub struct Claim {
    store: Arc<dyn Store>,
    world: Arc<dyn World>,
    guards: Guards,
    epoch: Epoch,
    /// The version that belonged to the end of the log that this writer has found; `None` when there was no manifest.
    seen: Option<Version>,
    state: Mutex<State>,
    /// The version that the claim has made.
    made: Mutex<Option<Version>>,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// There is no manifest: the first snapshot makes it.
    Fresh,
    Made,
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
        Self { store, world, guards, epoch, seen, state: Mutex::new(State::Open), made: Mutex::new(None) }
    }

    /// The epoch that claims.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether there was no manifest when this writer looked.
    pub fn is_first(&self) -> bool {
        self.seen.is_none()
    }

    /// Makes the claim, once. To be called before anything that this writer puts into the log or the manifest.
    ///
    /// # Errors
    /// [`ManifestError::Fenced`] and [`ManifestError::Changed`]; nothing was claimed then.
    pub async fn ensure(&self) -> Result<(), ManifestError> {
        let mut state = self.state.lock().await;
        if *state != State::Open || !self.guards.manifest_epoch {
            return Ok(());
        }
        *state = match manifest_swap::read(&*self.store).await? {
            None if self.seen.is_none() => State::Fresh,
            None => return Err(ManifestError::Changed),
            Some((manifest, _)) if manifest.epoch > self.epoch => {
                return Err(ManifestError::Fenced { ours: self.epoch, theirs: manifest.epoch });
            }
            Some((manifest, version)) if Some(&version) == self.seen.as_ref() => {
                self.swap(manifest, &version).await?;
                State::Made
            }
            Some(_) => return Err(ManifestError::Changed),
        };
        Ok(())
    }

    /// The version of the manifest that the claim has made; `None` before, and where the first snapshot makes it.
    pub async fn version(&self) -> Option<Version> {
        self.made.lock().await.clone()
    }

    /// Whether the next snapshot makes the manifest. To be told once it has.
    pub async fn is_fresh(&self) -> bool {
        *self.state.lock().await == State::Fresh
    }

    /// The first snapshot has made the manifest.
    pub async fn made(&self) {
        *self.state.lock().await = State::Made;
    }

    async fn swap(&self, manifest: Manifest, version: &Version) -> Result<(), ManifestError> {
        let mut next = manifest;
        next.epoch = self.epoch;
        let swapped = manifest_swap::swap(&*self.store, &*self.world, next, Some(version)).await?;
        let (_, version) = swapped.ok_or(ManifestError::Changed)?;
        *self.made.lock().await = Some(version);
        Ok(())
    }
}
