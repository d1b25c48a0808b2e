//! Changing `manifest.json` by compare-and-swap.

use bytes::Bytes;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Nonce, Timestamp, keys};
use rhyolite_store::{Operation, Store, StoreError, StoreErrorKind, Version};

use crate::random;

/// Why the manifest was not changed.
#[derive(Debug)]
pub enum ManifestError {
    /// The store did not do it.
    Store(StoreError),
    /// What is there does not decode.
    Damaged(String),
    /// Somebody else changed it all the time.
    Contended,
}

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Damaged(text) => f.write_str(text),
            Self::Contended => f.write_str("the manifest is changed by another writer all the time"),
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
    now: Timestamp,
    change: impl Fn(Option<Manifest>) -> Option<Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    for _ in 0..TRIES_MAX {
        let (manifest, version) = read(store).await?.unzip();
        let revision = manifest.as_ref().map_or(0, |m| m.revision);
        let Some(mut next) = change(manifest) else { return Ok(None) };
        next.revision = revision + 1;
        next.nonce = Nonce(random::bytes());
        next.updated = now;
        let bytes = Bytes::from(next.encode());
        match store.swap_if(keys::MANIFEST, version.as_ref(), bytes.clone()).await {
            Ok(_) => return Ok(Some(next)),
            Err(error)
                if matches!(
                    error.kind,
                    StoreErrorKind::Conflict | StoreErrorKind::Exists | StoreErrorKind::Ambiguous
                ) =>
            {
                // The answer to an earlier try may have been lost: our nonce tells.
                if read(store).await?.is_some_and(|(m, _)| m.nonce == next.nonce) {
                    return Ok(Some(next));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ManifestError::Contended)
}

/// Removes what an earlier try left under `key` before the manifest named it. A key that the manifest names, also as one that may
/// be deleted, is refused: `Exists`.
pub async fn clear_unnamed(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    match store.head(key).await {
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let exists = |text: String| StoreError::new(StoreErrorKind::Exists, Operation::Upload, key, store.describe(), text);
    match read(store).await {
        Err(ManifestError::Store(error)) => Err(error),
        Err(error) => Err(exists(error.to_string())),
        Ok(Some((manifest, _))) if names(&manifest, key) => {
            Err(exists("the manifest names this object already".to_owned()))
        }
        Ok(_) => store.delete(&[key.to_owned()]).await,
    }
}

fn names(manifest: &Manifest, key: &str) -> bool {
    manifest.files.iter().any(|f| f.key == key) || manifest.retired_files.iter().any(|f| f.key == key)
}
