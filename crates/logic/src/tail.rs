//! The capture of a database in WAL mode: what to read next, and why no frame can be missed.
//!
//! # SQLite's rules
//!
//! They are those of `wal.c`, unchanged since 3.7.0:
//!
//! 1. A reader holds a shared lock READ(i), i = 0..4, from the begin to the end of its transaction. With i > 0 it may use the
//!    WAL up to `read_mark[i]`. With i = 0 it ignores the WAL; it gets READ(0) only when at that moment every frame is
//!    backfilled (copied into the database file).
//! 2. The WAL is reset (new salts, next frame is 1) only by a holder of the exclusive locks READ(1) to READ(4), and only when
//!    every frame is backfilled.
//! 3. A checkpoint copies frames only up to the smallest `read_mark[i]` whose READ(i), i > 0, somebody holds, and only while it
//!    holds READ(0) exclusively.
//! 4. Frames up to `max_frame` of the wal-index header are committed and never rewritten while the salts stay.
//!
//! # Claim
//!
//! Let the capturer hold a read transaction without interruption: it begins the next one, then reads the live header and
//! captures up to its `max_frame`, and only then ends the previous one. Then at each look either the salts are those of the
//! last look, and exactly the frames after the last captured one are new; or they differ, and exactly the frames
//! 1..=`max_frame` of the live WAL are new.
//!
//! # Proof
//!
//! While a transaction with i > 0 is held, rule 2 keeps the salts. So suppose the salts change under a transaction that holds
//! READ(0), begun when the WAL of generation g had `m` frames, all backfilled (rule 1). The capturer read the header after that
//! begin, so it has captured at least `m` frames of g. A frame of g after `m` cannot be backfilled while READ(0) is held (rule 3),
//! so with such a frame g could not have been reset (rule 2). Hence g ended with `m` frames, all captured. By the same rules a
//! generation after g that has a frame cannot be reset while READ(0) is held. So all generations between g and the live one
//! are empty, and the frames of the live one are all there is. ∎
//!
//! Where a rule is broken from outside (power loss, a recovery of the WAL that finds less than was committed, a copied
//! file), the header goes backwards within a generation. That, and every interruption, is [`Step::Doubt`]: the database is then
//! compared page by page with what was captured.

use rhyolite_format::sqlite::wal::Salt;

/// How far a WAL has been captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The generation of the WAL.
    pub salt: Salt,
    /// The last captured frame; 0 when none of this generation is.
    pub frame: u32,
}

/// What the wal-index header says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The generation of the WAL.
    pub salt: Salt,
    /// The last committed frame; 0 when the WAL is empty.
    pub max_frame: u32,
}

/// What to do after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing was committed.
    Nothing,
    /// Capture the frames `first..=last` of the live generation, which are whole transactions.
    Frames {
        /// The first frame to capture, from 1.
        first: u32,
        /// The last frame to capture.
        last: u32,
    },
    /// The live generation is another one; capture all of it.
    Restarted {
        /// The last frame to capture, at least 1.
        last: u32,
    },
    /// Continuity cannot be shown: compare all pages.
    Doubt(Doubt),
}

/// Why continuity is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Fewer frames are committed than were captured: a recovery dropped some.
    WentBackwards,
}

/// Decides after a look at the live header. The caller has held a read transaction without interruption since the look
/// that gave `captured`.
pub fn next_step(captured: Captured, live: Live) -> Step {
    if live.salt != captured.salt {
        // A generation without a frame is in shared memory only. If whoever resets it dies half-way, a recovery brings back
        // the one before from the file, so that one stays what is captured.
        return if live.max_frame == 0 { Step::Nothing } else { Step::Restarted { last: live.max_frame } };
    }
    match live.max_frame.cmp(&captured.frame) {
        std::cmp::Ordering::Equal => Step::Nothing,
        std::cmp::Ordering::Greater => Step::Frames { first: captured.frame + 1, last: live.max_frame },
        std::cmp::Ordering::Less => Step::Doubt(Doubt::WentBackwards),
    }
}

/// Whether capture can go on after `captured` in a read transaction that was just begun, with none held since the look that
/// gave `captured`. The caller has read `live`, then `backfill` (the frames that are in the database file), then `live` again,
/// unchanged, and found the header of the last captured frame as it was.
///
/// With every frame backfilled the transaction may hold READ(0), and the WAL may be reset before its frames are read. So then
/// there must be none left to capture. With a frame that is not, nothing is reset: under READ(0) it cannot be backfilled.
pub fn continues(captured: Captured, live: Live, backfill: u32) -> bool {
    live.salt == captured.salt
        && captured.frame <= live.max_frame
        && (captured.frame == live.max_frame || backfill < live.max_frame)
}

/// A transaction that was captured before anybody could know whether it is a commit: complete frames behind the last committed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// What the wal-index said when it was captured.
    pub before: Live,
    /// Its generation. For the first frames of a WAL a writer may draw one that the wal-index only gets with the commit.
    pub salt: Salt,
    /// Its last frame.
    pub last: u32,
}

/// What became of a [`Promise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promised {
    /// Nothing that shows: its writer may be about to commit it, or gone.
    Open,
    /// It is committed, and capture goes on after it.
    Kept,
    /// Something else was committed in its place: what was captured is not what the database holds.
    Broken,
}

/// Decides after a look at the live header. `is_there` tells whether the last frame is the one that was captured, looked at after `live`: committed
/// frames are not rewritten (rule 4), so one that is there with `max_frame` beyond it is committed.
pub fn promised(promise: &Promise, live: Live, is_there: bool) -> Promised {
    if live == promise.before {
        Promised::Open
    } else if live.salt == promise.salt && live.max_frame >= promise.last && is_there {
        Promised::Kept
    } else {
        Promised::Broken
    }
}

/// When to checkpoint the user's database. Sizes are in bytes of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// A checkpoint begins early enough to be complete before the WAL is this large: from there on the application's own automatic
    /// checkpoints begin, which cost it time with every commit and do not reset the WAL.
    pub due_bytes: u64,
    /// A WAL file larger than this is cut to nothing once the database is idle.
    pub truncate_bytes: u64,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { due_bytes: 4 << 20, truncate_bytes: 64 << 20 }
    }
}

/// What a checkpoint decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalUse {
    /// Bytes of committed frames.
    pub committed_bytes: u64,
    /// Bytes that were committed between the last two looks.
    pub recent_bytes: u64,
    /// Size of the WAL file.
    pub file_bytes: u64,
    /// Whether every committed frame is in the database file.
    pub backfilled: bool,
    /// Whether nothing has been committed for a while.
    pub idle: bool,
}

/// Which checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// None.
    No,
    /// One that takes no lock that a writer needs.
    Passive,
    /// The same, and where commits in between keep it from being complete another under the write lock, so that the next writer
    /// resets the WAL.
    Locked,
    /// One that cuts the file.
    Truncate,
}

/// A checkpoint takes about as long as so many looks at a busy database, which are a millisecond apart.
const CHECKPOINT_LOOKS: u64 = 10;

/// Decides which checkpoint is due.
pub fn checkpoint_due(policy: &CheckpointPolicy, wal: &WalUse) -> Checkpoint {
    if wal.idle && wal.file_bytes > policy.truncate_bytes {
        Checkpoint::Truncate
    } else if wal.backfilled {
        Checkpoint::No
    } else if wal.idle {
        Checkpoint::Passive
    } else if wal.committed_bytes >= policy.due_bytes / 2
        && wal.committed_bytes + CHECKPOINT_LOOKS * wal.recent_bytes >= policy.due_bytes
    {
        Checkpoint::Locked
    } else {
        Checkpoint::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salt(n: u32) -> Salt {
        Salt(n, n)
    }

    #[test]
    fn same_generation_continues_after_the_last_captured_frame() {
        let captured = Captured { salt: salt(1), frame: 10 };
        let step = |max_frame| next_step(captured, Live { salt: salt(1), max_frame });
        assert_eq!(step(10), Step::Nothing);
        assert_eq!(step(13), Step::Frames { first: 11, last: 13 });
        assert_eq!(step(9), Step::Doubt(Doubt::WentBackwards));
    }

    #[test]
    fn another_generation_is_new_from_its_first_frame() {
        let captured = Captured { salt: salt(1), frame: 10 };
        for max_frame in [1, 3, 10, 40] {
            assert_eq!(next_step(captured, Live { salt: salt(2), max_frame }), Step::Restarted { last: max_frame });
        }
        assert_eq!(next_step(captured, Live { salt: salt(2), max_frame: 0 }), Step::Nothing, "nothing to capture");
    }

    #[test]
    fn after_a_start_capture_goes_on_only_where_no_frame_can_be_gone() {
        let captured = Captured { salt: salt(1), frame: 10 };
        let continues =
            |n, max_frame, backfill| super::continues(captured, Live { salt: salt(n), max_frame }, backfill);
        assert!(continues(1, 10, 10) && continues(1, 10, 3), "nothing is left to capture");
        assert!(continues(1, 12, 11) && continues(1, 12, 0), "a frame is left that keeps the WAL from being reset");
        assert!(!continues(1, 12, 12), "everything is backfilled");
        assert!(!continues(1, 9, 0) && !continues(2, 10, 0));
    }

    #[test]
    fn a_promise_is_kept_by_the_very_frames_that_were_captured() {
        let promise = Promise { before: Live { salt: salt(1), max_frame: 10 }, salt: salt(1), last: 13 };
        let became = |n, max_frame, is_there| promised(&promise, Live { salt: salt(n), max_frame }, is_there);
        assert_eq!(became(1, 10, true), Promised::Open);
        assert_eq!(became(1, 10, false), Promised::Open, "overwritten, and nothing is committed yet");
        assert_eq!(became(1, 13, true), Promised::Kept);
        assert_eq!(became(1, 20, true), Promised::Kept, "others came after it");
        assert_eq!(became(1, 13, false), Promised::Broken, "as long, and another");
        assert_eq!(became(1, 12, true), Promised::Broken, "a shorter one before frames that are left over");
        assert_eq!(became(1, 9, true), Promised::Broken);
        assert_eq!(became(2, 13, true), Promised::Broken);
        let first = Promise { before: Live { salt: salt(1), max_frame: 0 }, salt: salt(7), last: 3 };
        let became = |n, max_frame| promised(&first, Live { salt: salt(n), max_frame }, true);
        assert_eq!(became(1, 0), Promised::Open);
        assert_eq!(became(7, 3), Promised::Kept, "the writer has drawn the generation");
        assert_eq!(became(2, 3), Promised::Broken);
    }

    #[test]
    fn checkpoints_follow_the_size_of_the_wal() {
        let policy = CheckpointPolicy { due_bytes: 100, truncate_bytes: 1000 };
        let due = |committed_bytes, file_bytes, backfilled, idle| {
            checkpoint_due(&policy, &WalUse { committed_bytes, recent_bytes: 1, file_bytes, backfilled, idle })
        };
        assert_eq!(due(5, 5, false, false), Checkpoint::No);
        assert_eq!(due(5, 5, false, true), Checkpoint::Passive, "an idle database is brought to rest");
        assert_eq!(due(5, 5, true, true), Checkpoint::No);
        assert_eq!(due(89, 89, false, false), Checkpoint::No);
        assert_eq!(due(90, 90, false, false), Checkpoint::Locked, "early enough");
        let rush = WalUse { committed_bytes: 50, recent_bytes: 70, file_bytes: 0, backfilled: false, idle: false };
        assert_eq!(checkpoint_due(&policy, &rush), Checkpoint::Locked);
        assert_eq!(checkpoint_due(&policy, &WalUse { committed_bytes: 49, ..rush }), Checkpoint::No);
        assert_eq!(due(100, 100, true, false), Checkpoint::No);
        assert_eq!(due(10, 1001, false, true), Checkpoint::Truncate);
        assert_eq!(due(10, 1001, false, false), Checkpoint::No);
    }
}
