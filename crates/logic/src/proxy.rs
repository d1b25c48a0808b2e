//! Where a proxy sends a request: to the application beside it, to the primary, or nowhere yet.
//!
//! Invariants:
//! 1. A write goes to the primary's application and to no other.
//! 2. A client that has written is shown no state without that: its read waits until it is here, and goes to the primary when that takes too long.
//! 3. A request is passed on [`HOPS_MAX`] times at most. When the role is handed on, it may reach the node that has just given it up, and goes to the new one from there; two nodes that take
//!    each other for the primary must not do so for ever.
//!
//! The primary's own state is the newest there is, so nothing waits there: a client may name a commit that was lost with a former primary.

use rhyolite_format::Txid;

/// So often a request is passed on from proxy to proxy.
pub const HOPS_MAX: u8 = 3;

/// A client has seen something, and nobody could say what: only the primary certainly has it.
pub const UNKNOWN: Txid = Txid::new(u64::MAX - 1).expect("the largest there is");

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// It may change something.
    pub is_write: bool,
    /// It has nothing to do with the database.
    pub is_untracked: bool,
    /// So many proxies have passed it on.
    pub hops: u8,
    /// The last commit that was there when its client had last written; [`UNKNOWN`] when nobody could say.
    pub seen: Option<Txid>,
}

/// The role of the node, as far as requests depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its application may write.
    Primary,
    /// Another node is the primary.
    Replica,
    /// Neither: nobody is known to be the primary, or this node is about to become it.
    Changing,
    /// It ceases to be the primary: its application ends.
    Leaving,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The application beside the proxy answers it.
    Here,
    /// The primary's proxy answers it.
    Primary,
    /// It is looked at again after a moment.
    Wait,
}

/// What to do with a request that a node with this role has, where the database is at `txid`. `has_waited` when a read has waited for as long as it may.
pub fn next_step(asked: Asked, side: Side, txid: Option<Txid>, has_waited: bool) -> Step {
    if asked.is_untracked {
        return Step::Here;
    }
    match side {
        Side::Primary => Step::Here,
        Side::Leaving => Step::Wait,
        Side::Changing if asked.is_write => Step::Wait,
        Side::Replica if asked.is_write => to_primary(asked),
        Side::Replica | Side::Changing => match asked.seen {
            None => Step::Here,
            Some(UNKNOWN) if side == Side::Replica => to_primary(asked),
            Some(seen) if txid.is_some_and(|txid| txid >= seen) => Step::Here,
            Some(_) if has_waited && side == Side::Replica => to_primary(asked),
            Some(_) => Step::Wait,
        },
    }
}

fn to_primary(asked: Asked) -> Step {
    if asked.hops < HOPS_MAX { Step::Primary } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDES: [Side; 4] = [Side::Primary, Side::Replica, Side::Changing, Side::Leaving];

    fn asked(bits: u8, seen: Option<u64>) -> Asked {
        Asked {
            is_write: bits & 1 != 0,
            is_untracked: false,
            hops: if bits & 2 != 0 { HOPS_MAX } else { 0 },
            seen: seen.and_then(Txid::new),
        }
    }

    #[test]
    fn whatever_is_asked_the_invariants_hold() {
        for bits in 0..4 {
            for (seen, here) in [(None, None), (None, Some(5)), (Some(6), None), (Some(6), Some(5)), (Some(5), Some(6))]
            {
                for side in SIDES {
                    for has_waited in [false, true] {
                        let request = asked(bits, seen);
                        let txid = here.and_then(Txid::new);
                        let step = next_step(request, side, txid, has_waited);
                        let is_old = request.seen.is_some() && txid < request.seen;
                        let context = format!("{request:?} {side:?} {txid:?} {has_waited}: {step:?}");
                        if side != Side::Primary {
                            assert!(!(request.is_write && step == Step::Here), "{context}");
                            assert!(!(is_old && step == Step::Here), "{context}");
                        }
                        assert!(side != Side::Leaving || step == Step::Wait, "{context}");
                        assert!(!(request.hops >= HOPS_MAX && step == Step::Primary), "{context}");
                        assert!(side != Side::Primary || step == Step::Here, "{context}");
                        if has_waited && side == Side::Replica && request.hops < HOPS_MAX {
                            assert_ne!(step, Step::Wait, "{context}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_nothing_to_do_with_the_database_is_answered_beside_it() {
        for side in SIDES {
            let request = Asked { is_untracked: true, ..asked(3, Some(9)) };
            assert_eq!(next_step(request, side, None, false), Step::Here);
        }
    }
}
