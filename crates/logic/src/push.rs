//! Which of the primaries that dial a replica is followed.
//!
//! One at a time. The right to write decides, as everywhere; a process takes the place of its own former connection, which the replica may not know to be
//! lost. What an older right has sent is refused commit by commit as well ([`crate::stream::joins`]): this only keeps two from taking each other's place by turns.

use rhyolite_format::Epoch;
use rhyolite_format::push::{Answer, Hello};

/// A primary that dials, or is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comer {
    /// Its process.
    pub id: [u8; 16],
    /// Its right.
    pub epoch: Epoch,
}

impl From<&Hello> for Comer {
    fn from(hello: &Hello) -> Self {
        Self { id: hello.id, epoch: hello.epoch }
    }
}

/// What becomes of a `comer`, while `connected` has the place, and the lease says that the right is `known` where there is one to look at.
pub fn judge(comer: Comer, connected: Option<Comer>, known: Option<Epoch>) -> Answer {
    match connected {
        _ if known.is_some_and(|known| comer.epoch < known) => Answer::Stale,
        Some(other) if other.id != comer.id && other.epoch >= comer.epoch => Answer::Busy,
        Some(_) | None => Answer::Taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comer(id: u8, epoch: u64) -> Comer {
        Comer { id: [id; 16], epoch: Epoch::new(epoch).unwrap() }
    }

    #[test]
    fn the_newer_right_takes_the_place() {
        let check = |connected, known: Option<u64>, expected| {
            assert_eq!(judge(comer(1, 5), connected, known.and_then(Epoch::new)), expected, "{connected:?} {known:?}");
        };
        check(None, None, Answer::Taken);
        check(Some(comer(2, 4)), None, Answer::Taken);
        check(Some(comer(2, 5)), None, Answer::Busy);
        check(Some(comer(2, 6)), None, Answer::Busy);
        check(Some(comer(1, 5)), None, Answer::Taken);
        check(Some(comer(1, 6)), None, Answer::Taken);
        check(None, Some(5), Answer::Taken);
        check(None, Some(6), Answer::Stale);
        check(Some(comer(1, 5)), Some(6), Answer::Stale);
        check(Some(comer(2, 5)), Some(4), Answer::Busy);
    }
}
