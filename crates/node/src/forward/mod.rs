//! Write forwarding: a replica borrows the write lock of a database from the primary, a command changes a copy of its file, and what has changed becomes one transaction of
//! the primary's (docs/spec/stream.md, `/v1/write-lock` and `/v1/write`).
//!
//! ```text
//!   rhyolite run ──► borrow ── write-lock ──► grants ──► holder: BEGIN IMMEDIATE
//!        │             │ copy of the replica's file at that position
//!   command ──► copy   │
//!        │             │ pages that differ, as an LTX file
//!        └───────────► borrow ───── write ──► grants ──► holder: pages, COMMIT ──► capture ──► replicas
//! ```
//!
//! Nobody reads what is not committed: the replica's file changes by the stream alone, as ever. Who may commit, and how often, is said by [`rhyolite_logic::lender`].

pub mod borrow;
mod copy;
pub mod counts;
pub mod grants;
mod holder;
pub(crate) mod lent;
pub mod transparent;

use std::time::Duration;

use rhyolite_format::{Lineage, Pos, Txid};
use rhyolite_logic::lender::Outcome;
use serde::{Deserialize, Serialize};

/// The largest LTX file that is sent, in bytes.
pub const WRITE_BYTES_MAX: u64 = 64 << 20;
/// Time for which a lock is borrowed, unless it is asked for again.
pub const TTL: Duration = Duration::from_secs(10);

/// A lock that a primary has lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The history of the database.
    pub lineage: Lineage,
    /// Where it is, and stays as long as the lock is lent.
    pub pos: Pos,
    /// How long that is, in milliseconds, unless it is asked for again.
    pub ttl_ms: u64,
}

/// What has become of what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Said {
    /// It is committed: the log has it up to this transaction.
    Committed {
        /// See there.
        txid: Txid,
    },
    /// Nothing was committed.
    Ended {
        /// Why.
        why: String,
    },
    /// It may have been committed, or not.
    Unknown {
        /// Why nobody knows.
        why: String,
    },
}

impl From<Outcome> for Said {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Committed(txid) => Self::Committed { txid },
            Outcome::Ended(why) => Self::Ended { why },
            Outcome::Unknown(why) => Self::Unknown { why },
        }
    }
}
