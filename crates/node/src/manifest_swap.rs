//! Changing `manifest.json` by compare-and-swap: [`rhyolite_writer::manifest_swap`] with the time and chance of this machine.

use rhyolite_format::manifest::Manifest;
use rhyolite_store::Store;
pub use rhyolite_writer::manifest_swap::{ManifestError, clear_unnamed, read, refuse_named};

use crate::world::RealWorld;

/// See [`rhyolite_writer::manifest_swap::update`].
pub async fn update(
    store: &dyn Store,
    change: impl Fn(Option<Manifest>) -> Option<Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    rhyolite_writer::manifest_swap::update(store, &RealWorld, change).await
}
