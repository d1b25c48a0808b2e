//! `id.json`: whose history a prefix in the store holds (docs/spec/identity.md). Created once, never changed.

use serde::{Deserialize, Serialize};

use crate::error::DecodeError;
use crate::json::{self, Format1};
use crate::types::{Lineage, PageSize, Timestamp};

/// The most bytes that `id.json` may have.
pub const SIZE_MAX: usize = 64 << 10;

/// The identity of one database in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Always 1.
    pub format: Format1,
    /// The history that the prefix holds.
    pub lineage: Lineage,
    /// When it was created, by the creator's clock.
    pub created: Timestamp,
    /// Page size when it was created. A VACUUM may have changed it since.
    pub page_size: PageSize,
}

impl Identity {
    /// The bytes of `id.json`, the same for the same value.
    pub fn encode(&self) -> Vec<u8> {
        json::encode(self)
    }

    /// Reads `id.json`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        json::decode(bytes, "id.json", SIZE_MAX)
    }
}
