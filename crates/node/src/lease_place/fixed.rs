//! Leases that a person has given: this node is the primary, or that one is. Nothing lies anywhere.
//!
//! What keeps two such primaries apart is the fence in the store alone: whoever begins last takes the log, and the one before finds that with its
//! next upload, and ends (`LeasePlace::is_shared`).

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Epoch, Format1, Nonce, Timestamp};
use rhyolite_store::{Operation, StoreError, StoreErrorKind, Version};
use rhyolite_writer::lease_place::LeasePlace;

/// The record of this process.
#[derive(Debug, Default)]
pub(super) struct Own(Mutex<Option<(LeaseRecord, u64)>>);

#[async_trait]
impl LeasePlace for Own {
    fn describe(&self) -> String {
        "static://primary".to_owned()
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(held.as_ref().map(|(record, count)| (record.clone(), version(*count))))
    }

    async fn swap(&self, expected: Option<&Version>, record: &LeaseRecord) -> Result<Version, StoreError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.as_ref().map(|(_, count)| *count);
        if count.map(version).as_ref() != expected {
            return Err(refused(&self.describe()));
        }
        let next = count.unwrap_or(0) + 1;
        *held = Some((record.clone(), next));
        Ok(version(next))
    }
}

fn version(count: u64) -> Version {
    Version::new(count.to_string())
}

fn refused(place: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Conflict, Operation::Swap, "", place, "it is another version")
}

/// The record of a primary that a person has named, for good. What its epoch is, nobody here knows.
#[derive(Debug)]
pub(super) struct Named {
    address: String,
}

impl Named {
    pub(super) fn new(address: String) -> Self {
        Self { address }
    }
}

#[async_trait]
impl LeasePlace for Named {
    fn describe(&self) -> String {
        format!("static://{}", self.address.rsplit("//").next().unwrap_or_default())
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn read(&self) -> Result<Option<(LeaseRecord, Version)>, StoreError> {
        let record = LeaseRecord {
            format: Format1,
            epoch: Epoch::FIRST,
            state: LeaseState::Held,
            quiet: false,
            successor: None,
            holder: self.address.clone(),
            address: Some(self.address.clone()),
            process: None,
            nonce: Nonce([0; 16]),
            ttl_ms: u64::MAX,
            renewed: Timestamp(0),
            durable: None,
            witnesses: None,
        };
        Ok(Some((record, version(1))))
    }

    async fn swap(&self, _: Option<&Version>, _: &LeaseRecord) -> Result<Version, StoreError> {
        Err(refused(&self.describe()))
    }
}
