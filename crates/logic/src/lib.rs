//! Decisions: what to restore from, what to bundle, merge and delete, how to go on after a start.
//!
//! Nothing here does I/O, reads a clock or draws a random number: listings and times are arguments, plans are values. So every
//! rule can be tested with a list.

pub mod base;
pub mod branch;
pub mod contradiction;
pub mod cost_plan;
pub mod deadline;
pub mod doctor;
pub mod drill;
pub mod garbage;
pub mod history_plan;
pub mod lease;
pub mod lender;
pub mod litestream3_plan;
pub mod litestream_plan;
pub mod log;
pub mod merge;
#[cfg(test)]
mod model;
pub mod park;
pub mod pick;
pub mod prepare;
pub mod proxy;
pub mod push;
pub mod reconcile;
pub mod restore_plan;
pub mod role;
pub mod store_kind;
pub mod stream;
pub mod tail;
pub mod trail;
pub mod witness;

pub use restore_plan::Target;
