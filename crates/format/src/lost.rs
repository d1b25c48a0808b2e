//! What is known of a lost branch (docs/spec/lost.md): the state of a database that was set aside because the history has gone on without it. The record
//! lies beside the copy of the database and is never changed.

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, ErrorKind};
use crate::json::{self, Format1};
use crate::types::{Checksum, Epoch, Lineage, Timestamp, Txid};

/// The most bytes that a record may have.
pub const SIZE_MAX: usize = 64 << 10;
/// The most bytes that `reason` may have.
pub const REASON_SIZE_MAX: usize = 4096;

/// A state that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostBranch {
    /// Always 1.
    pub format: Format1,
    /// When it was set aside, by the clock of the machine.
    pub time: Timestamp,
    /// Why, for people. Not empty.
    pub reason: String,
    /// The history that it was written under; absent when that was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// The last commit in it that was captured; absent when that was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
    /// The right under which that was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Of the whole database in the copy; absent when the file was no database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// Bytes of the copy.
    pub size: u64,
}

impl LostBranch {
    /// The bytes of the record, the same for the same value.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(e) = self.check() {
            panic!("a lost branch that breaks the format: {e}");
        }
        json::encode(self)
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let branch: Self = json::decode(bytes, "lost branch", SIZE_MAX)?;
        branch.check()?;
        Ok(branch)
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.reason.is_empty() || self.reason.len() > REASON_SIZE_MAX {
            return Err(DecodeError::new(ErrorKind::Field, "lost branch", 0).detail("reason is empty or too long"));
        }
        Ok(())
    }
}
