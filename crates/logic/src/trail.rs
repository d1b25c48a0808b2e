//! The positions that a followed file has passed.
//!
//! A file that is ahead of the store goes on from there only if the store's end lies behind it: if it has passed just that position. Every position of
//! a trail is one of the history that led to where the file is. What is not remembered is not proved.

use std::collections::VecDeque;

use rhyolite_format::Pos;

/// Positions that are remembered of one file. A primary without its store stops when its lease ends, so that nobody gets further ahead than what is
/// committed in that time.
const POSITIONS_MAX: usize = 1 << 17;

/// The trail of one file.
#[derive(Clone, Debug, Default)]
pub struct Trail(VecDeque<Pos>);

impl Trail {
    /// The file has come through these positions, in this order, to the last of them.
    pub fn note(&mut self, passed: impl IntoIterator<Item = Pos>) {
        for pos in passed {
            if self.0.back() != Some(&pos) {
                self.0.push_back(pos);
            }
        }
        let surplus = self.0.len().saturating_sub(POSITIONS_MAX);
        self.0.drain(..surplus);
    }

    /// Another file shows that the way from `end` leads to `known`, where this one has been: it has come through `end`, too.
    pub fn come_through(&mut self, end: Pos, known: Pos) {
        assert!(end.txid < known.txid && self.has(known), "{known} is beyond {end}, and was passed");
        if !self.has(end) {
            let after = self.0.iter().rposition(|pos| pos.txid <= end.txid).map_or(0, |index| index + 1);
            self.0.insert(after, end);
        }
    }

    /// Where the file is.
    pub fn last(&self) -> Option<Pos> {
        self.0.back().copied()
    }

    /// The trail up to where it was there last; nothing when it never was.
    pub fn until(&self, pos: Pos) -> Vec<Pos> {
        let end = self.0.iter().rposition(|known| *known == pos).map_or(0, |index| index + 1);
        self.0.iter().take(end).copied().collect()
    }

    /// Whether the file has been there.
    pub fn has(&self, pos: Pos) -> bool {
        self.0.contains(&pos)
    }

    /// Whether it was elsewhere at that TXID: where the file is does not go on from there.
    pub fn has_instead_of(&self, pos: Pos) -> bool {
        self.0.iter().any(|passed| passed.txid == pos.txid) && !self.has(pos)
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;

    #[test]
    fn the_latest_positions_are_remembered() {
        let pos = |n| Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n) };
        let mut trail = Trail::default();
        trail.note([pos(1), pos(1), pos(2)]);
        trail.note((3..=POSITIONS_MAX as u64 + 1).map(pos));
        assert!(!trail.has(pos(1)) && trail.has(pos(2)) && trail.has(pos(POSITIONS_MAX as u64 + 1)));
        assert_eq!(trail.last(), Some(pos(POSITIONS_MAX as u64 + 1)));
        assert_eq!((trail.until(pos(4)), trail.until(pos(1))), (vec![pos(2), pos(3), pos(4)], vec![]));
        let other = Pos { checksum: Checksum::from_crc(9), ..pos(2) };
        assert!(!trail.has(other) && trail.has_instead_of(other));
        assert!(!trail.has_instead_of(pos(1)) && !trail.has_instead_of(pos(2)));
    }

    #[test]
    fn what_another_file_shows_is_part_of_the_way() {
        let pos = |n| Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n) };
        let come_through = |passed: &[u64], end, known| {
            let mut trail = Trail::default();
            trail.note(passed.iter().copied().map(pos));
            trail.come_through(pos(end), pos(known));
            trail.until(trail.last().unwrap()).iter().map(|pos| pos.txid.get()).collect::<Vec<_>>()
        };
        assert_eq!(come_through(&[8, 9], 3, 9), [3, 8, 9]);
        assert_eq!(come_through(&[2, 8, 9], 3, 8), [2, 3, 8, 9]);
        assert_eq!(come_through(&[3, 8], 3, 8), [3, 8]);
    }
}
