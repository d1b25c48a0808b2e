//! What speaks for or against a store beside its objects: the lease, the store's own times, and whether somebody writes meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhyolite_format::lease::LeaseRecord;
use rhyolite_format::{Timestamp, keys};
use rhyolite_logic::contradiction::{Reading, find};
use rhyolite_logic::restore_plan::PlanError;
use rhyolite_store::{Meta, StoreErrorKind};

use super::Damage;
use crate::restore::RestoreError;
use crate::restore::catalog::Catalog;
use crate::restore::reader::Reader;

/// What is known before anything else is read.
#[derive(Debug)]
pub(super) struct Before {
    manifest: Option<Meta>,
    lease: Result<Option<LeaseRecord>, Damage>,
}

/// Looks before anything else is read: what is durable now must be found afterwards.
pub(super) async fn before(reader: &Reader) -> Result<Before, RestoreError> {
    Ok(Before { manifest: head(reader, keys::MANIFEST).await?, lease: lease(reader).await? })
}

impl Before {
    /// Whether another manifest is there by now.
    pub(super) async fn has_changed(&self, reader: &Reader) -> Result<bool, RestoreError> {
        let version = |meta: &Option<Meta>| meta.as_ref().map(|meta| meta.version.clone());
        Ok(version(&head(reader, keys::MANIFEST).await?) != version(&self.manifest))
    }

    /// The objects that every database in a store has, where others show that there is one.
    pub(super) async fn incomplete(&self, reader: &Reader) -> Result<Option<Damage>, RestoreError> {
        let missing = |key: &str| Damage { key: key.to_owned(), detail: format!("{key} is missing from the store") };
        let has_identity = head(reader, keys::ID).await?.is_some();
        let has_log = !reader.list(keys::LOG_PREFIX, None, 1).await?.is_empty();
        match (has_identity, self.manifest.is_some(), has_log) {
            (false, has_manifest, has_log) if has_manifest || has_log => Ok(Some(missing(keys::ID))),
            // The first manifest is written before the log begins.
            (true, false, true) => Ok(Some(missing(keys::MANIFEST))),
            (true, false, false) => Err(RestoreError::Plan(PlanError::Empty)),
            _ => Ok(None),
        }
    }
}

/// What the objects say of each other that cannot be true.
pub(super) async fn contradictions(
    reader: &Arc<Reader>,
    before: &Before,
    catalog: &Catalog,
) -> Result<Vec<Damage>, RestoreError> {
    let mut damage: Vec<Damage> = before.lease.as_ref().err().cloned().into_iter().collect();
    let after = lease(reader).await?;
    let mut written = BTreeMap::new();
    for prefix in [keys::LOG_PREFIX, keys::LTX_PREFIX] {
        let listed = reader.store().list_all(prefix.trim_end_matches('/')).await?;
        written.extend(listed.into_iter().filter_map(|entry| Some((entry.key, entry.modified?))));
    }
    written.extend(before.manifest.as_ref().and_then(written_at));
    let reading = Reading {
        manifest: &catalog.manifest,
        log: &catalog.log,
        lease_before: before.lease.as_ref().ok().and_then(Option::as_ref),
        lease_after: after.as_ref().ok().and_then(Option::as_ref),
        written: &written,
    };
    let found = find(&reading).expect("the catalog has no holes");
    damage.extend(found.into_iter().map(|one| Damage { key: one.key, detail: one.detail }));
    Ok(damage)
}

fn written_at(manifest: &Meta) -> Option<(String, Timestamp)> {
    Some((keys::MANIFEST.to_owned(), manifest.modified?))
}

async fn head(reader: &Reader, key: &str) -> Result<Option<Meta>, RestoreError> {
    match reader.store().head(key).await {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The lease of this database, if it has one of its own.
async fn lease(reader: &Reader) -> Result<Result<Option<LeaseRecord>, Damage>, RestoreError> {
    let Some(object) = reader.find(keys::LEASE).await? else { return Ok(Ok(None)) };
    let decoded = LeaseRecord::decode(&object.bytes);
    Ok(decoded
        .map(Some)
        .map_err(|e| Damage { key: keys::LEASE.to_owned(), detail: format!("lease.json is damaged: {e}") }))
}
