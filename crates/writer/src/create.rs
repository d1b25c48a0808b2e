//! Creating a log segment: a name is taken once and for ever, and who finds it taken reads what took it.

use bytes::Bytes;
use rhyolite_format::segment::{self, SegmentHeader};
use rhyolite_format::{Epoch, Lineage, Nonce, Seq, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_store::{Store, StoreError, StoreErrorKind, Version};

use crate::World;

/// Why a segment was not created.
#[derive(Debug)]
pub enum CreateError {
    /// A later epoch writes to this log.
    Fenced {
        /// Its epoch.
        theirs: Epoch,
    },
    /// A segment of an earlier epoch took the name before the fence. Take it in, then go on after it.
    Older {
        /// Its epoch.
        theirs: Epoch,
    },
    /// One of our own from before we began again has it.
    OwnLate,
    /// Somebody else's of the same epoch has it, or something that is no segment.
    Conflict,
    /// The store did not do it, or nobody knows; worth another try.
    Store(StoreError),
}

/// Creates `bytes`, a segment with `header`. The version is `None` when an earlier try of ours had worked. `earlier` are nonces of this
/// process's earlier lives.
pub async fn segment(
    store: &dyn Store,
    guards: Guards,
    header: &SegmentHeader,
    bytes: Bytes,
    earlier: &[Nonce],
) -> Result<Option<Version>, CreateError> {
    let key = keys::segment(header.seq);
    let error = match store.create(&key, bytes.clone()).await {
        Ok(version) => return Ok(Some(version)),
        Err(error) => error,
    };
    if !matches!(error.kind, StoreErrorKind::Exists | StoreErrorKind::Ambiguous) {
        return Err(CreateError::Store(error));
    }
    if !guards.nonces && error.kind == StoreErrorKind::Exists {
        return Ok(None);
    }
    let Ok(object) = store.get(&key).await else { return Err(CreateError::Store(error)) };
    if object.bytes == bytes {
        return Ok(None);
    }
    Err(match SegmentHeader::decode(&object.bytes) {
        Ok(found) if earlier.contains(&found.nonce) => CreateError::OwnLate,
        Ok(found) if found.epoch > header.epoch => CreateError::Fenced { theirs: found.epoch },
        Ok(found) if found.epoch < header.epoch => CreateError::Older { theirs: found.epoch },
        _ => CreateError::Conflict,
    })
}

/// The bytes of a segment without a transaction, which holds a place for its epoch.
pub fn fence(world: &dyn World, lineage: Lineage, epoch: Epoch, seq: Seq) -> (SegmentHeader, Bytes) {
    let header = SegmentHeader::log(lineage, epoch, seq, world.nonce(), world.wall());
    let mut bytes = header.encode().to_vec();
    let index_offset = bytes.len() as u64;
    segment::encode_index(&[], &header, index_offset, &mut bytes);
    (header, Bytes::from(bytes))
}
