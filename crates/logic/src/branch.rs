//! Whether the state of a file is one of a history, or a branch that the history does not have.
//!
//! A state is known by the checksum of the whole database. A node that returns may hold commits that were made under a right that had passed on: they are
//! in no history but its own, and are to be kept. What the history has need not be kept a second time.

use rhyolite_format::{Checksum, Lineage, Pos};

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Of the whole database.
    pub checksum: Checksum,
    /// The history that it was written under, where that was noted.
    pub lineage: Option<Lineage>,
    /// The last position that the store had confirmed to whoever wrote it.
    pub durable: Option<Pos>,
}

/// What the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A state of the history.
    Known(Pos),
    /// Nothing that the history is known to have.
    Lost,
}

/// Judges a file by the points of the history `lineage`, ascending.
pub fn judge(local: &Local, lineage: Lineage, points: impl DoubleEndedIterator<Item = Pos>) -> Verdict {
    if local.lineage.is_some_and(|own| own != lineage) {
        return Verdict::Lost;
    }
    // What was confirmed is part of the history also where commits were merged since.
    let confirmed = local.durable.filter(|pos| local.lineage.is_some() && pos.checksum == local.checksum);
    let known = points.rev().find(|pos| pos.checksum == local.checksum);
    known.or(confirmed).map_or(Verdict::Lost, Verdict::Known)
}

#[cfg(test)]
mod tests {
    use rhyolite_format::Txid;

    use super::*;

    fn pos(txid: u64, checksum: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(checksum) }
    }

    #[test]
    fn only_what_the_history_has_is_known() {
        let (ours, other) = (Lineage([1; 16]), Lineage([2; 16]));
        let history = [pos(1, 10), pos(5, 50), pos(7, 10), pos(8, 80)];
        let check = |checksum, lineage, durable, expected| {
            let local = Local { checksum: Checksum::from_crc(checksum), lineage, durable };
            assert_eq!(judge(&local, ours, history.into_iter()), expected, "{local:?}");
        };
        check(50, Some(ours), None, Verdict::Known(pos(5, 50)));
        check(10, None, None, Verdict::Known(pos(7, 10)));
        check(60, Some(ours), None, Verdict::Lost);
        check(30, Some(ours), Some(pos(3, 30)), Verdict::Known(pos(3, 30)));
        check(30, Some(ours), Some(pos(2, 20)), Verdict::Lost);
        check(30, None, Some(pos(3, 30)), Verdict::Lost);
        check(50, Some(other), Some(pos(5, 50)), Verdict::Lost);
    }
}
