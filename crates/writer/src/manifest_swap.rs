//! Changing `manifest.json` by compare-and-swap.

use bytes::Bytes;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Epoch, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_store::{Operation, Store, StoreError, StoreErrorKind, Version};

use crate::World;

/// Why the manifest was not changed.
#[derive(Debug)]
pub enum ManifestError {
    /// The store did not do it.
    Store(StoreError),
    /// What is there does not decode.
    Damaged(String),
    /// Somebody else changed it all the time.
    Contended,
    /// It is another epoch's: who has this one may not write any more.
    Fenced {
        /// The epoch that wanted to write.
        ours: Epoch,
        /// The epoch of the manifest.
        theirs: Epoch,
    },
    /// It is not what this writer has taken in. Begin again with what the store has.
    Changed,
}

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Damaged(text) => f.write_str(text),
            Self::Contended => f.write_str("the manifest is changed by another writer all the time"),
            Self::Fenced { ours, theirs } => write!(
                f,
                "another process writes to this store under epoch {}, this one had {}",
                theirs.get(),
                ours.get()
            ),
            Self::Changed => f.write_str("the manifest was changed by another writer"),
        }
    }
}

impl std::error::Error for ManifestError {}

impl From<StoreError> for ManifestError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Tries before a contended manifest is given up.
const TRIES_MAX: u32 = 8;

/// Reads the manifest. `None` when there is none.
pub async fn read(store: &dyn Store) -> Result<Option<(Manifest, Version)>, ManifestError> {
    match store.get(keys::MANIFEST).await {
        Ok(object) => {
            let manifest = Manifest::decode(&object.bytes)
                .map_err(|e| ManifestError::Damaged(format!("{} in {}: {e}", keys::MANIFEST, store.describe())))?;
            Ok(Some((manifest, object.version)))
        }
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Applies `change` to the manifest that is there, or to `None`, and swaps the result in. A swap that lost is tried again on
/// what won. `None` from `change` leaves things as they are.
pub async fn update(
    store: &dyn Store,
    world: &dyn World,
    change: impl Fn(Option<Manifest>) -> Option<Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    update_checked(store, world, |_| Ok(()), change).await
}

/// [`update`] under an epoch that has claimed the manifest, or makes it.
///
/// # Errors
/// Also [`ManifestError::Fenced`] when a later epoch has the manifest, and [`ManifestError::Changed`] when an earlier one still has it,
/// so that it was not claimed.
pub async fn update_as(
    store: &dyn Store,
    world: &dyn World,
    guards: Guards,
    epoch: Epoch,
    change: impl Fn(Option<Manifest>) -> Option<Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    let admit = |theirs: Epoch| match theirs.cmp(&epoch) {
        _ if !guards.manifest_epoch => Ok(()),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ManifestError::Fenced { ours: epoch, theirs }),
        std::cmp::Ordering::Less => Err(ManifestError::Changed),
    };
    update_checked(store, world, admit, change).await
}

async fn update_checked(
    store: &dyn Store,
    world: &dyn World,
    admit: impl Fn(Epoch) -> Result<(), ManifestError>,
    change: impl Fn(Option<Manifest>) -> Option<Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    for _ in 0..TRIES_MAX {
        let (manifest, version) = read(store).await?.unzip();
        manifest.as_ref().map_or(Ok(()), |m| admit(m.epoch))?;
        let revision = manifest.as_ref().map_or(0, |m| m.revision);
        let Some(mut next) = change(manifest) else { return Ok(None) };
        next.revision = revision;
        if let Some((done, _)) = swap(store, world, next, version.as_ref()).await? {
            return Ok(Some(done));
        }
    }
    Err(ManifestError::Contended)
}

/// Swaps in the version after `next.revision`, if the manifest still is `expected`. `None` when it is not.
pub(crate) async fn swap(
    store: &dyn Store,
    world: &dyn World,
    mut next: Manifest,
    expected: Option<&Version>,
) -> Result<Option<(Manifest, Version)>, ManifestError> {
    next.revision += 1;
    next.nonce = world.nonce();
    next.updated = world.wall();
    // What was derived from foreign objects may contradict them.
    next.validate().map_err(|e| {
        ManifestError::Damaged(format!("the next manifest of {} would be wrong: {e}", store.describe()))
    })?;
    let bytes = Bytes::from(next.encode());
    match store.swap_if(keys::MANIFEST, expected, bytes).await {
        Ok(version) => Ok(Some((next, version))),
        Err(error)
            if matches!(error.kind, StoreErrorKind::Conflict | StoreErrorKind::Exists | StoreErrorKind::Ambiguous) =>
        {
            // The answer to an earlier try may have been lost: our nonce tells.
            Ok(read(store).await?.filter(|(found, _)| found.nonce == next.nonce))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a key that the manifest names, also as one that may be deleted: `Exists`. Whoever deletes what is retired may be doing it
/// right now.
pub async fn refuse_named(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    let exists = |text: String| StoreError::new(StoreErrorKind::Exists, Operation::Upload, key, store.describe(), text);
    match read(store).await {
        Err(ManifestError::Store(error)) => Err(error),
        Err(error) => Err(exists(error.to_string())),
        Ok(Some((manifest, _))) if names(&manifest, key) => {
            Err(exists("the manifest names this object already".to_owned()))
        }
        Ok(_) => Ok(()),
    }
}

/// Removes what an earlier try left under `key` before the manifest named it. A key that the manifest names, also as one that may
/// be deleted, is refused: `Exists`.
pub async fn clear_unnamed(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    match store.head(key).await {
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    refuse_named(store, key).await?;
    store.delete(&[key.to_owned()]).await
}

fn names(manifest: &Manifest, key: &str) -> bool {
    manifest.files.iter().any(|f| f.key == key) || manifest.retired_files.iter().any(|f| f.key == key)
}
