//! Commits on their way from a primary to a replica: what the primary answers to a position, and what the replica takes.
//!
//! A position names the content of the whole database, so that whoever is at the position before a commit gets the content after it, whatever became
//! of the messages in between. The epoch keeps out what a former primary still sends.

use rhyolite_format::{Epoch, Lineage, Pos};

/// Whether a replica is on the way of the log that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is where the log ends.
    AtEnd,
    /// It is before that, as far as its TXID says: what leads on is to be looked for.
    Before,
    /// It is beyond the end.
    Beyond,
    /// It is at the last TXID with another content.
    Other,
    /// It belongs to another history.
    OtherLineage,
}

/// Judges a replica of `lineage` at `pos` by the log, which has its lineage and end.
pub fn judge(log: (Lineage, Pos), lineage: Lineage, pos: Pos) -> Standing {
    let (ours, end) = log;
    match () {
        () if ours != lineage => Standing::OtherLineage,
        () if end == pos => Standing::AtEnd,
        () if end.txid < pos.txid => Standing::Beyond,
        () if end.txid == pos.txid => Standing::Other,
        () => Standing::Before,
    }
}

/// Where commits lead, and under which right they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The history.
    pub lineage: Lineage,
    /// The right.
    pub epoch: Epoch,
    /// The position before them.
    pub before: Pos,
    /// The position after them.
    pub after: Pos,
}

/// Whether a replica takes commits: they go on from just where it is, and not under an older right than what it `has_seen` on this way.
pub fn joins(step: &Step, lineage: Lineage, pos: Pos, has_seen: Option<Epoch>) -> bool {
    step.lineage == lineage && step.before == pos && has_seen.is_none_or(|seen| step.epoch >= seen)
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;

    const OURS: Lineage = Lineage([1; 16]);
    const OTHER: Lineage = Lineage([2; 16]);

    fn pos(txid: u64, checksum: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(checksum) }
    }

    #[test]
    fn where_a_replica_stands() {
        let check = |lineage, at, expected| assert_eq!(judge((OURS, pos(5, 50)), lineage, at), expected, "{at}");
        check(OURS, pos(5, 50), Standing::AtEnd);
        check(OURS, pos(4, 40), Standing::Before);
        check(OURS, pos(6, 60), Standing::Beyond);
        check(OURS, pos(5, 51), Standing::Other);
        check(OTHER, pos(5, 50), Standing::OtherLineage);
    }

    #[test]
    fn only_what_goes_on_from_here_is_taken() {
        let epoch = |n| Epoch::new(n).unwrap();
        let step = Step { lineage: OURS, epoch: epoch(3), before: pos(4, 40), after: pos(6, 60) };
        assert!(joins(&step, OURS, pos(4, 40), None));
        assert!(joins(&step, OURS, pos(4, 40), Some(epoch(3))));
        assert!(!joins(&step, OURS, pos(4, 40), Some(epoch(4))), "a former primary's");
        assert!(!joins(&step, OURS, pos(4, 41), None));
        assert!(!joins(&step, OURS, pos(5, 50), None));
        assert!(!joins(&step, OTHER, pos(4, 40), None));
    }
}
