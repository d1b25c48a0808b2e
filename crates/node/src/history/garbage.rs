//! Finds objects that no manifest names and has them named as retired (`rhyolite_logic::garbage` has the rules).

use std::sync::Arc;

use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Timestamp, keys};
use rhyolite_logic::garbage::{Listed, find, retire};
use rhyolite_store::Store;

use super::{HistoryError, HistoryOptions, check_epoch};
use crate::manifest_swap;

/// What is done about garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGarbage {
    /// Find it.
    Show,
    /// Name it as retired, so that it is deleted after the grace period.
    Retire,
}

/// An object that nobody names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// Its key, relative to the database's prefix.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Finds garbage.
///
/// To learn how old an object is by the store's own clock, the manifest is written anew when it is older than what may be garbage, unless
/// it is only to be shown: then such objects are not found.
///
/// # Errors
/// The store does not answer, or the manifest is of another epoch.
pub async fn garbage(options: &HistoryOptions, on_garbage: OnGarbage) -> Result<Vec<Garbage>, HistoryError> {
    let store = &options.store;
    // Listed first: what is written from now on is younger than the manifest that is looked at.
    let listed = list(store).await?;
    let mut manifest = read(options).await?;
    let end_of_time = Timestamp(i64::MAX);
    let may_be = !find(&manifest.0, end_of_time, &listed, options.policy.grace).is_empty();
    let is_shown = find(&manifest.0, manifest.1, &listed, options.policy.grace).is_empty();
    if on_garbage == OnGarbage::Retire && may_be && is_shown {
        manifest_swap::update(&**store, |manifest| manifest).await?;
        manifest = read(options).await?;
    }
    let found = find(&manifest.0, manifest.1, &listed, options.policy.grace);
    let garbage: Vec<Garbage> =
        found.into_iter().map(|object| Garbage { key: object.key.clone(), size: object.size }).collect();
    if on_garbage == OnGarbage::Retire && !garbage.is_empty() {
        let keys: Vec<String> = garbage.iter().map(|object| object.key.clone()).collect();
        let change = |manifest: Option<Manifest>| {
            let manifest = manifest.filter(|manifest| manifest.epoch == options.epoch)?;
            Some(retire(&manifest, &keys, options.now))
        };
        if manifest_swap::update(&**store, change).await?.is_none() {
            check_epoch(&read(options).await?.0, options.epoch)?;
        }
    }
    Ok(garbage)
}

async fn list(store: &Arc<dyn Store>) -> Result<Vec<Listed>, HistoryError> {
    let mut listed = Vec::new();
    for prefix in [keys::LOG_PREFIX, keys::LTX_PREFIX] {
        let entries = store.list_all(prefix.trim_end_matches('/')).await?;
        listed.extend(entries.into_iter().map(|e| Listed { key: e.key, size: e.size, written: e.modified }));
    }
    Ok(listed)
}

/// The manifest, and when the store wrote it down; the beginning of time when it does not tell.
async fn read(options: &HistoryOptions) -> Result<(Manifest, Timestamp), HistoryError> {
    // The time is looked up first: it may be older than the manifest that is read, never younger.
    let meta = options.store.head(keys::MANIFEST).await;
    let (manifest, _) = manifest_swap::read(&*options.store).await?.ok_or(HistoryError::NoManifest)?;
    check_epoch(&manifest, options.epoch)?;
    Ok((manifest, meta?.modified.unwrap_or(Timestamp(i64::MIN))))
}
