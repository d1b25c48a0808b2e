//! What a store holds of a history, as whoever reads it sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use rhyolite_format::identity::Identity;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::{Lineage, Pos, Seq, keys};
use rhyolite_logic::Target;
use rhyolite_logic::log::LogSegment;
use rhyolite_logic::restore_plan::{self, BundleIndex, PlanError, RestorePlan};
use rhyolite_store::{LIST_PAGE, Store};
use rhyolite_writer::manifest_swap;

use crate::objects;

/// Segments that a process has read.
pub type Cache = Arc<Mutex<BTreeMap<Seq, LogSegment>>>;

/// Manifest and log.
#[derive(Debug)]
pub struct Catalog {
    /// The history.
    pub lineage: Lineage,
    /// What it names.
    pub manifest: Manifest,
    /// The log from where the manifest ends.
    pub log: Vec<LogSegment>,
}

/// The store does not answer, holds nothing yet, or has changed while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away;

impl Catalog {
    /// Reads it.
    ///
    /// # Errors
    /// [`Away`]: it may be had later.
    pub async fn load(store: &dyn Store, cache: &Cache) -> Result<Self, Away> {
        let identity = store.get(keys::ID).await.map_err(|_| Away)?;
        let lineage = Identity::decode(&identity.bytes).map_err(|_| Away)?.lineage;
        let (manifest, _) = manifest_swap::read(store).await.map_err(|_| Away)?.ok_or(Away)?;
        let after = manifest.first_seq.previous().map(keys::segment);
        let folder = keys::LOG_PREFIX.trim_end_matches('/');
        let listed = store.list_after(folder, after.as_deref(), LIST_PAGE).await.map_err(|_| Away)?;
        let wanted = listed.iter().filter_map(|entry| keys::parse_segment(&entry.key));
        let read = join_all(wanted.map(|seq| segment(store, cache, seq))).await;
        let log = read.into_iter().collect::<Result<Vec<_>, Away>>()?;
        Ok(Self { lineage, manifest, log })
    }

    /// The positions that are known without looking into bundles.
    ///
    /// # Errors
    /// The log has a hole: it has changed while it was read.
    pub fn points(&self) -> Result<Vec<Pos>, Away> {
        let points = restore_plan::points(&self.manifest, &self.log, &[]).map_err(|_| Away)?;
        Ok(points.into_iter().map(|point| point.pos).collect())
    }

    /// Plans the way to the end, from `manifest`, which may begin with a base.
    ///
    /// # Errors
    /// There is no way; the inner one is [`Away`].
    pub async fn plan(&self, store: &dyn Store, manifest: &Manifest) -> Result<Result<RestorePlan, PlanError>, Away> {
        let mut indexes = Vec::new();
        loop {
            match restore_plan::plan(manifest, &self.log, &indexes, Target::Latest) {
                Err(PlanError::NeedIndex { key }) => {
                    let object = store.get(&key).await.map_err(|_| Away)?;
                    let bundle = objects::decode(&object.bytes).map_err(|_| Away)?;
                    indexes.push(BundleIndex { key, entries: bundle.entries });
                }
                planned => return Ok(planned),
            }
        }
    }
}

async fn segment(store: &dyn Store, cache: &Cache, seq: Seq) -> Result<LogSegment, Away> {
    let known = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&seq).cloned();
    if let Some(known) = known {
        return Ok(known);
    }
    let object = store.get(&keys::segment(seq)).await.map_err(|_| Away)?;
    let read = objects::decode(&object.bytes).map_err(|_| Away)?;
    let segment = LogSegment::new(read.header, read.entries, object.size);
    cache.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, segment.clone());
    Ok(segment)
}
