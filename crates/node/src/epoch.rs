//! Under which right to write a command changes the manifest of a database.

use rhyolite_format::Epoch;
use rhyolite_store::Store;

use crate::manifest_swap::{self, ManifestError};

/// The epoch under which a command works that does not take the right to write for itself: that of whoever holds it. When that one loses
/// it while the command runs, the manifest is of a later epoch, and the command ends.
///
/// # Errors
/// The store does not answer. `None` where there is no manifest.
pub async fn of_holder(store: &dyn Store) -> Result<Option<Epoch>, ManifestError> {
    Ok(manifest_swap::read(store).await?.map(|(manifest, _)| manifest.epoch))
}
