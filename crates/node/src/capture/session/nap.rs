//! How long a session rests between two looks at the database.

use std::time::Duration;

use rhyolite_format::sqlite::wal::frame_size;

use super::{IDLE_AFTER, WalSession};
use crate::capture::thread::CaptureThread;
use crate::capture::watch::FileWatch;

/// Shortest and longest time between looks at a database that is not idle.
pub(super) const NAP: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// Shortest time between looks where somebody follows and few frames came with the last one: what comes then is to be seen elsewhere soon.
const NAP_FOLLOWED: Duration = Duration::from_micros(250);
/// A session rests for such a part of the time that it was quiet: where nobody follows, and where somebody does.
const PART_OF_QUIET: (u32, u32) = (16, 32);
const FEW_FRAMES: u64 = 8;
/// Time between looks at an idle database that cannot be watched.
pub(in crate::capture) const NAP_UNWATCHED: Duration = Duration::from_millis(50);

impl WalSession {
    pub(super) fn nap(&mut self, thread: &CaptureThread) {
        let quiet = self.active.elapsed();
        if quiet < IDLE_AFTER || thread.has_unsent() || self.pending.is_some() {
            let is_few = self.recent_bytes <= FEW_FRAMES * frame_size(self.page_size) as u64;
            let is_followed = thread.status.feed.followers() > 0;
            let (part, shortest) =
                if is_few && is_followed { (PART_OF_QUIET.1, NAP_FOLLOWED) } else { (PART_OF_QUIET.0, NAP.0) };
            thread.wait((quiet / part).clamp(shortest, NAP.1));
            return;
        }
        if self.watch.is_none() {
            // Made first, looked after: a commit in between is seen by the look.
            self.watch = FileWatch::new(&thread.config.path).ok();
            if self.watch.is_none() {
                thread.wait(NAP_UNWATCHED);
            }
            return;
        }
        thread.wait_for_files(self.watch.as_ref(), thread.config.monitor_interval);
        // A write is a sign of life, committed or not.
        let index = self.pinned.wal_index().ok().flatten();
        if index.is_none_or(|i| i.header.max_frame != self.captured.frame || i.header.salt != self.captured.salt) {
            self.watch = None;
        }
    }
}
