//! Capture: every commit of a live SQLite database becomes a transaction of the log.
//!
//! ```text
//!            wal-index, WAL, database file                 (the application's)
//!                      │ handle: raw reads through SQLite's own descriptors
//!    frames ── one run of committed frames          view ── all pages after a frame
//!                      └──────────────┬────────────────┘
//!                                 recorder ── page table, TXID, checksums
//!                                     │
//!                                 local_log ── segments ──► upload
//! ```
//!
//! `session` is the thread that drives it, one per database; `logic::tail` says what to read next and proves that nothing is
//! missed.

pub mod backlog;
pub mod commits;
pub mod gate;
pub mod handle;
pub mod local_log;
pub mod restamp;
pub mod restart;
pub mod snapshot;
pub mod table;
pub mod thread;

mod frames;
pub(crate) mod guard;
mod promise;
mod recorder;
mod rollback;
mod session;
mod view;
pub mod watch;
