//! Deleting what the manifest lists as retired, and nothing else.

use std::time::Duration;

use rhyolite_format::manifest::RetiredSegments;
use rhyolite_format::{Epoch, Seq, Timestamp, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_store::Store;

use crate::manifest_swap::{self, ManifestError};

/// Keys in one request.
const KEYS_MAX: usize = 1000;

/// What is to be deleted, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Deletion<'a> {
    /// Retired files, by key.
    pub files: &'a [String],
    /// Retired log segments.
    pub segments: &'a [RetiredSegments],
    /// The right to write.
    pub epoch: Epoch,
    /// How long something must have been retired.
    pub grace: Duration,
    /// The time.
    pub now: Timestamp,
    /// [`Guards::ALL`].
    pub guards: Guards,
}

/// Deletes what the manifest, read again, still lists as retired since before the grace period. Gives the number of objects.
///
/// # Errors
/// [`ManifestError::Fenced`] when another epoch has the manifest; then nothing was deleted.
pub async fn retired(store: &dyn Store, deletion: Deletion<'_>) -> Result<u64, ManifestError> {
    let keys = if deletion.guards.reread_before_delete {
        confirmed(store, deletion).await?
    } else {
        deletion.files.iter().cloned().chain(deletion.segments.iter().flat_map(segment_keys)).collect()
    };
    for some in keys.chunks(KEYS_MAX) {
        store.delete(some).await?;
    }
    Ok(keys.len() as u64)
}

async fn confirmed(store: &dyn Store, deletion: Deletion<'_>) -> Result<Vec<String>, ManifestError> {
    let Some((manifest, _)) = manifest_swap::read(store).await? else { return Err(ManifestError::Changed) };
    if manifest.epoch != deletion.epoch {
        return Err(ManifestError::Fenced { ours: deletion.epoch, theirs: manifest.epoch });
    }
    let grace = i64::try_from(deletion.grace.as_millis()).unwrap_or(i64::MAX);
    let is_due = |since: Timestamp| since.0 <= deletion.now.0.saturating_sub(grace);
    let mut keys: Vec<String> = Vec::new();
    for retired in manifest.retired_files.iter().filter(|retired| deletion.files.contains(&retired.key)) {
        let is_live = manifest.files.iter().any(|file| file.key == retired.key);
        assert!(!is_live, "nothing is both live and retired");
        if is_due(retired.since) {
            keys.push(retired.key.clone());
        }
    }
    for range in manifest.retired_segments.iter().filter(|range| deletion.segments.contains(range)) {
        assert!(range.last_seq < manifest.first_seq, "a live segment is not retired");
        if is_due(range.since) {
            keys.extend(segment_keys(range));
        }
    }
    Ok(keys)
}

fn segment_keys(range: &RetiredSegments) -> impl Iterator<Item = String> + use<> {
    let seqs = range.first_seq.get()..=range.last_seq.get();
    seqs.map(|seq| keys::segment(Seq::new(seq).expect("not below the first")))
}
