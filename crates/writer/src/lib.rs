//! What a writer does to a store: takes and keeps the right to write, finds the end of the log, claims the manifest, creates
//! segments, names files, deletes. The order of its requests is what makes a log safe from other writers; it stands here alone, so
//! that the process and the simulator run the same code.
//!
//! # How two writers are kept apart
//!
//! The lease ([`lease_keeper`]) says who may write, and with which epoch. It cannot stop a writer that was paused: that one's requests may
//! come in at any time. What stops them is the order of a new writer's own requests:
//!
//! 1. **It finds the end** of the log ([`log_end`]), and with it the manifest in the version that belongs to that end.
//! 2. **It claims the manifest** ([`claim`]): swaps exactly that version for one with its epoch. From here on no older epoch can change the
//!    manifest, because each change is a swap that checks the epoch; and nobody has since step 1.
//! 3. **It creates the segment at the end**, under its epoch: the *fence*. If that name is taken, somebody was faster: back to 1. If it is
//!    not, the end was the end, and every segment of an older epoch that comes in later is void.
//!
//! Until step 3 has succeeded nothing is promised to anybody; what an older writer got in before it is history, which the new writer
//! has taken in. A segment of the new writer counts for ever: all before it are of its own epoch or older.
//!
//! The first segment with transactions is a fence like any other, so a writer that has something to say needs no empty one, and one that
//! has nothing to say costs nothing. Only who takes a lease that *ran out* fences at once.
//!
//! Nothing here knows a runtime, a clock or chance: those come through [`World`].

pub mod claim;
pub mod create;
pub mod delete;
pub mod lease_keeper;
pub mod lease_place;
pub mod log_end;
pub mod manifest_swap;
pub mod name;
pub mod names;

use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rhyolite_format::{Nonce, Timestamp};
use rhyolite_logic::lease::{Moment, Monotonic};

/// What a writer cannot do without: time and chance. The process has real ones, the simulator plays them.
pub trait World: Send + Sync + Debug {
    /// A clock that never goes back, and goes on while the machine sleeps.
    fn now(&self) -> Monotonic;

    /// The wall clock. It may jump.
    fn wall(&self) -> Timestamp;

    /// A random number that was never given before.
    fn nonce(&self) -> Nonce;

    /// Ends after `time`, by the clock of [`World::now`].
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// Whether a process, as its lease names it, is known not to exist any more.
    fn is_dead(&self, process: &str) -> bool;

    /// All that a machine needs to know.
    fn moment(&self) -> Moment {
        Moment { now: self.now(), wall: self.wall(), nonce: self.nonce() }
    }
}
