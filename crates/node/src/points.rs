//! Lists what can be restored.

use std::sync::Arc;

use rhyolite_format::manifest::FileKind;
use rhyolite_format::{Lineage, Txid};
pub use rhyolite_logic::restore_plan::{PointKind, RestorePoint};
use rhyolite_store::Store;

use crate::restore::RestoreError;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::reader::Reader;

/// Which restore points.
#[derive(Clone, Debug)]
pub struct PointsOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// From this transaction on; `None` for the first one.
    pub from: Option<Txid>,
    /// Up to and with this transaction; `None` for the last one.
    pub to: Option<Txid>,
    /// At most this many.
    pub limit: usize,
    /// Which of them, when there are more than the limit.
    pub end: End,
}

/// An end of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The oldest ones. The next page starts after the last of them.
    Oldest,
    /// The newest ones. The page before ends before the first of them.
    Newest,
}

/// A page of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// The history.
    pub lineage: Lineage,
    /// The restore points, ascending.
    pub points: Vec<RestorePoint>,
    /// Whether there are more within the range that was asked for.
    pub more: bool,
}

/// Lists restore points. Must run in a Tokio runtime. Reads the entries of the live log, and the indexes of those bundles that
/// overlap what is listed.
///
/// # Errors
/// The store does not answer, or what lists the points is damaged. The points themselves are not proved.
pub async fn points(options: PointsOptions) -> Result<Points, RestoreError> {
    let reader = Arc::new(Reader::new(options.store));
    let until = if options.end == End::Oldest { options.to } else { None };
    let catalog = Catalog::load(&reader, until, OnDamage::Refuse).await?;
    let from = options.from.unwrap_or(Txid::FIRST);
    let within = |txid: Txid| txid >= from && options.to.is_none_or(|to| txid <= to);
    let bundles = catalog.manifest.files.iter().filter(|file| file.kind == FileKind::Bundle);
    let bundles = bundles.filter(|file| file.max_txid >= from && options.to.is_none_or(|to| file.min_txid <= to));
    let mut bundles: Vec<_> = bundles.collect();
    if options.end == End::Newest {
        bundles.reverse();
    }
    let in_log: usize = catalog.log.iter().map(|segment| segment.entries.len()).sum();
    let mut known = if options.end == End::Newest { in_log } else { 0 };
    let mut indexes = Vec::new();
    for bundle in bundles {
        if known > options.limit {
            break;
        }
        known += bundle.entries as usize;
        indexes.push(catalog.bundle_index(&reader, &bundle.key).await?);
    }
    let listed = rhyolite_logic::restore_plan::points(&catalog.manifest, &catalog.log, &indexes);
    let mut points = listed.expect("the catalog has no holes");
    points.retain(|point| within(point.pos.txid));
    let more = points.len() > options.limit;
    match options.end {
        End::Oldest => points.truncate(options.limit),
        End::Newest => drop(points.drain(..points.len().saturating_sub(options.limit))),
    }
    Ok(Points { lineage: catalog.identity.lineage, points, more })
}
