//! What a new primary does about one database before it serves it: take the end of the store's log, and bring the file there.
//!
//! ```text
//!   end of the log ──take_end──► ours: fence it, or it needs none ──goes_on──► left to capture, as it is
//!        ▲                │                                           │
//!        └── look again ◄─┘ no right, or a later epoch          approach ──► there, catch up, straight on, or astray
//! ```
//!
//! A file that may hold what was acknowledged says so as long as it is where it is. Brought back to the end of the log it says that it has nothing, to this node and to whoever takes the lease
//! after it: it is made another only together with what the witnesses were found to have ([`Approach::Straight`]).

use rhyolite_format::{Checksum, Epoch, Pos};

use crate::reconcile::Start;

/// The end of a log, as far as it matters who may add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundEnd {
    /// The highest epoch that wrote to the log or the manifest.
    pub epoch: Option<Epoch>,
    /// There is a manifest: somebody has written there.
    pub has_manifest: bool,
    /// The right under which it was fenced here, by a try before.
    pub fenced: Option<Epoch>,
}

/// What makes the end of a log the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeEnd {
    /// There is no right under which it could be taken: look again later.
    Wait,
    /// It was written without the lease, or under one that was lost with whatever kept it, and that one had come as far as ours, or further: ask for
    /// this one, then look again. Whoever has fenced the log goes on under the next epoch, and may not have shown that yet: this is beyond it.
    Raise(Epoch),
    /// Our own fence, of a try before: nothing of an older right comes after it.
    Ours,
    /// Nobody adds to it: whoever could have gave its right up, quietly, or nothing was ever written.
    Quiet,
    /// What an older right still sends must come too late: fence it under this epoch. Where the name is taken, look again.
    Fence(Epoch),
}

/// How to take the end of a log under `right`. `must_fence`: what was sent under an older right may still come in.
pub fn take_end(found: FoundEnd, right: Option<Epoch>, must_fence: bool) -> TakeEnd {
    match (right, found.epoch) {
        (None, _) => TakeEnd::Wait,
        (Some(epoch), Some(theirs)) if theirs >= epoch && found.fenced == Some(theirs) => TakeEnd::Ours,
        (Some(epoch), Some(theirs)) if theirs >= epoch => TakeEnd::Raise(theirs.next().next()),
        (Some(epoch), _) if must_fence && found.has_manifest => TakeEnd::Fence(epoch),
        (Some(_), _) => TakeEnd::Quiet,
    }
}

/// What is known of the content of a file that this node captured itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The system has run since it was captured last: it holds all that was captured.
    Kept,
    /// The system has started anew, and the file adds up to this; `None`: it is no database.
    Measured(Option<Checksum>),
}

/// Whether a file that this node captured itself may be left to capture: its local log joins the end of the store's log, and the file is at the end of
/// that log. After a power cut it may have fallen behind: SQLite does not sync each commit (`synchronous=NORMAL`), and what was lost may be durable in the
/// store; capture would take the older state for the newest. It may be ahead as well, as the local log is not synced at each commit either. A checksum does
/// not tell the two apart, so either is kept beside the database before it is brought to the end.
pub fn goes_on(start: &Start, content: Content) -> bool {
    let Start::Continue { end, .. } = start else { return false };
    match content {
        Content::Kept => true,
        Content::Measured(checksum) => checksum.is_some() && checksum == end.map(|end| end.checksum),
    }
}

/// What to do with a file that is proved to be at a position of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approach {
    /// It is where it may be written to: at the end, or further on the same way.
    There,
    /// It is before the end.
    CatchUp,
    /// Nobody knows how it has come to where it is, and a witness has something beyond the end: it becomes that in one step. By way of the end it would have lost what it may
    /// have, should the witness not be heard again.
    Straight,
    /// It is beyond the end, or at it with another content, and nothing proves that the end lies behind it.
    Astray,
}

/// Judges a file that follows, at `pos` (`None`: nobody knows at which), against the end of the store's log. `is_passed`: it has come through that
/// very end; `is_found`: a witness has something beyond it.
pub fn approach(pos: Option<Pos>, end: Pos, is_passed: bool, is_found: bool) -> Approach {
    match pos {
        None if is_found => Approach::Straight,
        None => Approach::CatchUp,
        Some(pos) if pos == end || (pos.txid > end.txid && is_passed) => Approach::There,
        Some(pos) if pos.txid > end.txid && is_found => Approach::Straight,
        Some(pos) if pos.txid < end.txid => Approach::CatchUp,
        Some(_) => Approach::Astray,
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Lineage, Seq, Txid};

    use super::*;
    use crate::reconcile::{AdoptReason, LocalTail};

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn pos(txid: u64, checksum: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(checksum) }
    }

    #[test]
    fn who_may_take_an_end() {
        let check = |theirs: Option<u64>, has_manifest, right: Option<u64>, must_fence, expected| {
            let found = FoundEnd { epoch: theirs.map(epoch), has_manifest, fenced: Some(epoch(3)) };
            assert_eq!(take_end(found, right.map(epoch), must_fence), expected, "{found:?} {right:?} {must_fence}");
        };
        check(Some(3), true, None, true, TakeEnd::Wait);
        check(Some(4), true, Some(2), true, TakeEnd::Raise(epoch(6)));
        check(Some(3), true, Some(3), true, TakeEnd::Ours);
        check(Some(3), true, Some(4), true, TakeEnd::Fence(epoch(4)));
        check(Some(3), true, Some(4), false, TakeEnd::Quiet);
        check(None, false, Some(4), true, TakeEnd::Quiet);
        // Just the epoch that is ours now, and another's all the same.
        check(Some(4), true, Some(4), true, TakeEnd::Raise(epoch(6)));
    }

    #[test]
    fn a_file_goes_on_only_where_it_cannot_have_fallen_behind() {
        let end = Some(pos(4, 40));
        let go_on = Start::Continue {
            confirmed: Vec::new(),
            upload: Vec::new(),
            next_seq: Seq::FIRST,
            end,
            tail: LocalTail::Matches,
        };
        let reason = AdoptReason::StoreAhead;
        let adopt = Start::Adopt { lineage: Lineage([1; 16]), at: end, next_seq: Seq::FIRST, reason };
        let measured = |checksum: Option<u64>| Content::Measured(checksum.map(Checksum::from_crc));
        assert!(goes_on(&go_on, Content::Kept));
        assert!(goes_on(&go_on, measured(Some(40))));
        assert!(!goes_on(&go_on, measured(Some(30))), "the power went, and a commit with it");
        assert!(!goes_on(&go_on, measured(None)));
        assert!(!goes_on(&adopt, Content::Kept));
    }

    #[test]
    fn how_a_file_comes_to_the_end() {
        let end = pos(5, 50);
        let check = |pos, is_passed, is_found, expected| {
            assert_eq!(approach(pos, end, is_passed, is_found), expected, "{pos:?} {is_passed} {is_found}");
        };
        check(Some(end), false, false, Approach::There);
        check(Some(pos(4, 40)), false, false, Approach::CatchUp);
        check(Some(pos(4, 40)), true, false, Approach::CatchUp);
        check(Some(pos(7, 70)), true, false, Approach::There);
        check(Some(pos(7, 70)), false, false, Approach::Astray);
        check(Some(pos(5, 51)), true, false, Approach::Astray);
        check(None, true, false, Approach::CatchUp);
        // What may be all that is left of what was acknowledged is not given up before something is there in its place.
        check(Some(pos(7, 70)), false, true, Approach::Straight);
        check(None, false, true, Approach::Straight);
        check(Some(pos(7, 70)), true, true, Approach::There);
        // These had nothing beyond the end to give up.
        check(Some(end), false, true, Approach::There);
        check(Some(pos(4, 40)), false, true, Approach::CatchUp);
        check(Some(pos(5, 51)), false, true, Approach::Astray);
    }
}
