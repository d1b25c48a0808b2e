//! Where a lease lies: a place for one record that is changed by compare-and-swap and never otherwise (docs/spec/lease.md).
//!
//! What holds of every place, and what its conformance suite checks:
//!
//! 1. Of any number of racing swaps that expect the same version, or none, exactly one succeeds.
//! 2. A version names one writing of the record for good. A place that loses what it had may count from the beginning again: then a version
//!    that was read before fits nothing that was written since.
//! 3. A read sees the last swap that has succeeded before it began.
//! 4. Every call ends in time, and no swap is sent twice. What became of one whose answer was lost is learned by reading.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rhyolite_format::keys;
use rhyolite_format::lease::LeaseRecord;
use rhyolite_store::{Operation, Store, StoreError, StoreErrorKind, Version};

/// A place for one lease. Errors are those of stores: the kind says what to do next, the text never holds a secret.
#[async_trait]
pub trait LeasePlace: Send + Sync + Debug {
    /// Where this is, for messages: a URL or a path, without secrets.
    fn describe(&self) -> String;

    /// Whether other processes see what lies here. Where they do not, nobody takes this lease away: that somebody else writes is seen in the
    /// log only, and whoever began first has lost then.
    fn is_shared(&self) -> bool {
        true
    }

    /// The record and its version; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when what lies there is no record, otherwise why nothing was read.
    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError>;

    /// Puts `record` there if the place is as `expected`: that version, or (`None`) without a record. Gives the new version.
    ///
    /// # Errors
    /// `Conflict` or `Exists` when the place is otherwise, and nothing was written. After any other error it may have been.
    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError>;
}

/// The object `lease.json` of a store.
#[derive(Clone, Debug)]
pub struct InStore(pub Arc<dyn Store>);

#[async_trait]
impl LeasePlace for InStore {
    fn describe(&self) -> String {
        self.0.describe()
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        match self.0.get(keys::LEASE).await {
            Ok(object) => Ok(Some((decode(&object.bytes, keys::LEASE, &self.describe())?, object.version))),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        self.0.swap_if(keys::LEASE, expected, Bytes::from(record.encode())).await
    }
}

/// The record that `bytes` are, in the words of a place's errors.
///
/// # Errors
/// `Corrupt`, with what is wrong.
pub fn decode(bytes: &[u8], key: &str, place: &str) -> Result<LeaseRecord, StoreError> {
    LeaseRecord::decode(bytes)
        .map_err(|e| StoreError::new(StoreErrorKind::Corrupt, Operation::Get, key, place, e.to_string()))
}
