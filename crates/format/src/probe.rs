//! `probe.json`: what a probe of the store found, as far as it is remembered (docs/spec/probe.md). It lies in a database's state folder
//! and is replaced as a whole.

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, ErrorKind};
use crate::json::{self, Format1};
use crate::types::Timestamp;

/// The most bytes that `probe.json` may have.
pub const SIZE_MAX: usize = 64 << 10;
/// The most bytes that `store` may have.
pub const STORE_SIZE_MAX: usize = 4096;
/// The most bytes that the name of a check may have.
pub const NAME_SIZE_MAX: usize = 64;
/// The most checks that may have failed.
pub const FAILED_MAX: usize = 100;

/// What was found, when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecord {
    /// Always 1.
    pub format: Format1,
    /// When, by the clock of the machine that probed.
    pub time: Timestamp,
    /// Which store, without secrets. Not empty.
    pub store: String,
    /// Whether the store can keep a backup.
    pub backup: bool,
    /// Whether it can also keep a second writer out.
    pub fencing: bool,
    /// Names of the checks that failed, those of no consequence included.
    pub failed: Vec<String>,
    /// The store's clock minus that of the machine in milliseconds; absent when the store does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
}

impl ProbeRecord {
    /// The bytes of `probe.json`, the same for the same value.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(e) = self.check() {
            panic!("a probe that breaks the format: {e}");
        }
        json::encode(self)
    }

    /// Reads `probe.json`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let probe: Self = json::decode(bytes, "probe.json", SIZE_MAX)?;
        probe.check()?;
        Ok(probe)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let error = |detail: &str| Err(DecodeError::new(ErrorKind::Field, "probe.json", 0).detail(detail));
        if self.store.is_empty() || self.store.len() > STORE_SIZE_MAX {
            return error("store is empty or too long");
        }
        if self.failed.len() > FAILED_MAX || self.failed.iter().any(|n| n.is_empty() || n.len() > NAME_SIZE_MAX) {
            return error("failed has too many names, or one that is empty or too long");
        }
        if self.fencing && !self.backup {
            return error("a store that keeps no backup fences nothing");
        }
        if !self.backup && self.failed.is_empty() {
            return error("a store that keeps no backup has failed something");
        }
        Ok(())
    }
}
