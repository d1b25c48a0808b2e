//! The live stream: what is captured here, for followers elsewhere, as soon as it is in the local log (docs/spec/stream.md).
//!
//! ```text
//!   capture ──► local log ──► files ─────────┐ who is behind
//!      │                                     ▼
//!      └──────► feed (a few MiB) ──► server: one HTTP/2 stream per database ──► client ──► follow
//!                                            ▲
//!   store ───────────────────────────────────┘ who is far behind, or begins
//! ```
//!
//! A replica that cannot reach the primary is dialed by it ([`push`], [`accept`]): then the same is spoken with the roles of client and server the other way
//! round.
//!
//! Capture looks at one number, and only when somebody follows the database it copies what it has just logged into the [`feed`]. Nobody
//! waits for a follower: who does not keep up finds that the feed has gone on without it, and reads the files of the local log; who cannot go
//! on from there either reads the store.

pub mod accept;
pub mod client;
pub mod feed;
pub mod frames;
mod greeting;
mod http1;
mod lend;
mod log_files;
pub mod push;
pub mod query;
pub mod remote_store;
mod replicas;
pub mod server;
pub mod tls;
mod waiting;

use std::time::Duration;

/// How often a server says that it lives, and asks whether the other end does.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long nothing may be heard from the other end before it is taken for dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Commits are sent in frames of at most this size, but a larger commit has a frame of its own. A frame that was not whole when its connection was lost
/// is sent again from its start, so that small ones get through a connection that never lasts.
const FRAME_BYTES: usize = 32 << 10;
/// Commits that are taken up at once for one follower, in bytes; a larger one is taken up alone.
const READ_BYTES_MAX: usize = 256 << 10;
/// The same where they are merged: mostly less is sent.
const READ_MERGED_BYTES_MAX: usize = 1 << 20;
/// The largest part of an object that is sent as one.
const PART_BYTES_MAX: u64 = 4 << 20;
/// The largest object that is sent as a whole.
const WHOLE_BYTES_MAX: u64 = rhyolite_format::manifest::SIZE_MAX as u64;
