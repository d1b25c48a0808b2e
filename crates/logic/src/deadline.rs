//! Until when an application may run, as its guard sees it: a right that is over is over, whatever comes after it.

use crate::lease::Monotonic;

/// The end of a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    until: Monotonic,
    is_over: bool,
}

impl Deadline {
    /// A right that lasts until then. `None` when it is over already.
    pub fn new(until: Monotonic, now: Monotonic) -> Option<Self> {
        (now < until).then_some(Self { until, is_over: false })
    }

    /// Until when it lasts, as far as is known.
    pub fn until(&self) -> Monotonic {
        self.until
    }

    /// Whether it is over. Once it was, it stays over.
    pub fn look(&mut self, now: Monotonic) -> bool {
        self.is_over |= now >= self.until;
        self.is_over
    }

    /// Whether it was seen to be over.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// It lasts until `until`, unless it is over: what comes then is another right.
    pub fn extend(&mut self, until: Monotonic, now: Monotonic) {
        self.look(now);
        self.until = self.until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_stays_over() {
        let at = Monotonic;
        assert_eq!(Deadline::new(at(5), at(5)), None);
        let mut deadline = Deadline::new(at(5), at(1)).unwrap();
        deadline.extend(at(9), at(4));
        deadline.extend(at(7), at(5));
        assert!(!deadline.look(at(8)) && deadline.until() == at(9));
        deadline.extend(at(20), at(9));
        assert!(deadline.is_over() && deadline.look(at(10)));
    }
}
