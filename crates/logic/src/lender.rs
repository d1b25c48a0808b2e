//! What a primary knows of the write locks that it lends to its replicas (docs/spec/stream.md, `/v1/write-lock` and `/v1/write`).
//!
//! A replica borrows the write lock of one database under an id of its own, changes a copy of its file, and sends what has changed: then the primary commits it, and gives the lock back.
//!
//! 1. Each id is granted once, has one database, and ends with at most one commit. What became of it is remembered: whoever did not get the answer asks again with the
//!    same id, and hears the same ([`Lender::ask`], [`Lender::begin_write`]).
//! 2. A lock has one holder at a time, and goes back when its time is over, unless its commit has begun ([`Lender::expire`]).
//! 3. From [`Lender::close`] on nothing is granted and no commit begins. What has begun may end.
//!
//! No I/O, no clock: the driver says what time it is and what has happened.

use std::collections::BTreeMap;
use std::time::Duration;

use rhyolite_format::{Pos, Txid};

use crate::lease::Monotonic;

/// Longest time for which a lock is lent, and lent again.
pub const TTL_MAX: Duration = Duration::from_secs(60);
/// How long an outcome is remembered at least, unless there are more than [`OUTCOMES_MAX`].
pub const REMEMBERED: Duration = Duration::from_secs(600);
/// Outcomes that are remembered; the oldest go first.
pub const OUTCOMES_MAX: usize = 4096;
/// After a loan its database is left to others for twice the time of the loan, and for this long at most: SQLite's busy handler asks ten times a second.
pub const REST_MAX: Duration = Duration::from_millis(120);
/// Bytes of an id.
pub const ID_BYTES_MAX: usize = 64;

/// How a loan has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was sent was committed: everything is in the log by this transaction.
    Committed(Txid),
    /// Nothing was committed, for this reason.
    Ended(String),
    /// It may have been committed, or may yet be: whoever is the primary next knows.
    Unknown(String),
}

/// What becomes of a request for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The driver takes the lock, and says so by [`Lender::held`] or [`Lender::ended`].
    Take,
    /// It is being taken: ask again.
    Wait,
    /// It is held until then, from this position on.
    Held {
        /// Where the database is, and stays.
        pos: Pos,
        /// When the lock goes back.
        until: Monotonic,
    },
    /// Somebody else has it, or has just had it: ask again.
    Taken,
    /// This id has had its loan.
    Over(Outcome),
    /// Nothing is lent.
    Closed,
}

/// What becomes of a request to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The driver commits, and says by [`Lender::ended`] what has become of it.
    Begin,
    /// That is being done: ask again.
    Wait,
    /// It was done before, or cannot be.
    Over(Outcome),
    /// Nobody knows this id.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Taking,
    Held { pos: Pos, until: Monotonic },
    Writing,
    Over { outcome: Outcome, at: Monotonic },
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over { .. })
    }
}

#[derive(Clone, Debug)]
struct Loan {
    database: String,
    ttl: Duration,
    state: State,
    /// Since when it is held, once it is.
    since: Option<Monotonic>,
    /// Nobody wants it any more, and it is being taken.
    is_given_up: bool,
}

impl Loan {
    /// Whether the database may be lent to somebody else: it has been left to its writers for a while.
    fn leaves(&self, now: Monotonic) -> bool {
        let State::Over { at, .. } = self.state else { return false };
        let rest = self.since.map_or(Duration::ZERO, |since| (since.until(at) * 2).min(REST_MAX));
        at.until(now) >= rest
    }
}

/// The locks that are lent, and those that were.
#[derive(Clone, Debug, Default)]
pub struct Lender {
    loans: BTreeMap<String, Loan>,
    is_open: bool,
}

impl Lender {
    /// From here on locks are lent. What became of earlier loans is still known.
    pub fn open(&mut self) {
        self.is_open = true;
    }

    /// From here on nothing is lent, and no commit begins. Gives the ids whose locks the driver lets go of now.
    pub fn close(&mut self, now: Monotonic) -> Vec<String> {
        self.is_open = false;
        // What is being taken is of the time before, also when locks are lent again by then.
        self.loans.values_mut().for_each(|loan| loan.is_given_up |= loan.state == State::Taking);
        self.end_all(now, "this node is not the primary any more", |_| true)
    }

    /// Somebody asks for the lock of a database, or to have it for longer.
    pub fn ask(&mut self, id: &str, database: &str, ttl: Duration, now: Monotonic) -> Asked {
        self.forget(now);
        let ttl = ttl.min(TTL_MAX);
        if let Some(loan) = self.loans.get_mut(id) {
            if loan.database != database {
                return Asked::Over(Outcome::Ended(format!("this id is for the database {:?}", loan.database)));
            }
            loan.ttl = ttl;
            return match &mut loan.state {
                State::Taking | State::Writing => Asked::Wait,
                State::Held { pos, until } if now < *until => {
                    // A request that comes late makes it no shorter.
                    *until = now.after(ttl).max(*until);
                    Asked::Held { pos: *pos, until: *until }
                }
                // It is about to be let go of.
                State::Held { .. } => Asked::Over(Outcome::Ended(OVER.to_owned())),
                State::Over { outcome, .. } => Asked::Over(outcome.clone()),
            };
        }
        if !self.is_open {
            return Asked::Closed;
        }
        if self.loans.values().any(|loan| loan.database == database && !loan.leaves(now)) {
            return Asked::Taken;
        }
        let loan = Loan { database: database.to_owned(), ttl, state: State::Taking, since: None, is_given_up: false };
        self.loans.insert(id.to_owned(), loan);
        Asked::Take
    }

    /// The driver has the lock, with the database at `pos`. `false`: nobody wants it any more, and the driver lets go of it.
    pub fn held(&mut self, id: &str, pos: Pos, now: Monotonic) -> bool {
        let is_open = self.is_open;
        let Some(loan) = self.loans.get_mut(id).filter(|loan| loan.state == State::Taking) else { return false };
        if loan.is_given_up || !is_open {
            let outcome = Outcome::Ended("it was given back".to_owned());
            loan.state = State::Over { outcome, at: now };
            return false;
        }
        loan.state = State::Held { pos, until: now.after(loan.ttl) };
        loan.since = Some(now);
        true
    }

    /// What is to be committed has come. What follows [`Write::Begin`] is between the driver and the database.
    pub fn begin_write(&mut self, id: &str, now: Monotonic) -> Write {
        let is_open = self.is_open;
        let Some(loan) = self.loans.get_mut(id) else { return Write::Unknown };
        match &loan.state {
            State::Held { until, .. } if is_open && now < *until => {
                loan.state = State::Writing;
                Write::Begin
            }
            State::Held { .. } => Write::Over(Outcome::Ended(OVER.to_owned())),
            State::Taking => Write::Over(Outcome::Ended("the lock is not held yet".to_owned())),
            State::Writing => Write::Wait,
            State::Over { outcome, .. } => Write::Over(outcome.clone()),
        }
    }

    /// The driver has let go of a lock, or could not take it. The first outcome stays.
    pub fn ended(&mut self, id: &str, outcome: Outcome, now: Monotonic) {
        if let Some(loan) = self.loans.get_mut(id)
            && !loan.state.is_over()
        {
            loan.state = State::Over { outcome, at: now };
        }
    }

    /// Whoever has borrowed does not want it any more. `true`: the driver lets go of the lock now.
    pub fn give_back(&mut self, id: &str, now: Monotonic) -> bool {
        match self.loans.get_mut(id) {
            Some(loan) if matches!(loan.state, State::Held { .. }) => {
                let outcome = Outcome::Ended("it was given back".to_owned());
                loan.state = State::Over { outcome, at: now };
                true
            }
            Some(loan) => {
                loan.is_given_up = true;
                false
            }
            None => false,
        }
    }

    /// Gives the ids whose time is over and whose locks the driver lets go of now.
    pub fn expire(&mut self, now: Monotonic) -> Vec<String> {
        self.end_all(now, OVER, |until| until <= now)
    }

    /// When a lock goes back next, unless somebody asks for longer.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let until = |loan: &Loan| match loan.state {
            State::Held { until, .. } => Some(until),
            State::Taking | State::Writing | State::Over { .. } => None,
        };
        self.loans.values().filter_map(until).min()
    }

    fn end_all(&mut self, now: Monotonic, why: &str, mut ends: impl FnMut(Monotonic) -> bool) -> Vec<String> {
        let mut ended = Vec::new();
        for (id, loan) in &mut self.loans {
            if let State::Held { until, .. } = loan.state
                && ends(until)
            {
                loan.state = State::Over { outcome: Outcome::Ended(why.to_owned()), at: now };
                ended.push(id.clone());
            }
        }
        ended
    }

    /// Outcomes that nobody has asked for in a long time go.
    fn forget(&mut self, now: Monotonic) {
        self.loans.retain(|_, loan| match loan.state {
            State::Over { at, .. } => at.until(now) < REMEMBERED,
            State::Taking | State::Held { .. } | State::Writing => true,
        });
        let over = |loan: &Loan| match loan.state {
            State::Over { at, .. } => Some(at),
            State::Taking | State::Held { .. } | State::Writing => None,
        };
        while self.loans.len() > OUTCOMES_MAX {
            let oldest = self.loans.iter().filter_map(|(id, loan)| Some((over(loan)?, id.clone()))).min();
            let Some((_, id)) = oldest else { return };
            self.loans.remove(&id);
        }
    }
}

const OVER: &str = "its time was over, and the write lock went back";

#[cfg(test)]
mod tests {
    use super::*;
    use rhyolite_format::Checksum;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Monotonic {
        Monotonic(0).after(Duration::from_secs(seconds))
    }

    fn pos(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid) }
    }

    fn open() -> Lender {
        let mut lender = Lender::default();
        lender.open();
        lender
    }

    #[test]
    fn a_lock_is_lent_to_one_and_the_same_id_hears_the_same() {
        let mut lender = open();
        assert_eq!(lender.ask("a", "app.db", TTL, at(0)), Asked::Take);
        assert_eq!(lender.ask("a", "app.db", TTL, at(0)), Asked::Wait);
        assert_eq!(lender.ask("b", "app.db", TTL, at(0)), Asked::Taken);
        assert_eq!(lender.ask("c", "other.db", TTL, at(0)), Asked::Take);
        assert!(lender.held("a", pos(7), at(1)));
        assert_eq!(lender.ask("a", "app.db", TTL, at(2)), Asked::Held { pos: pos(7), until: at(12) });
        let shorter = lender.ask("a", "app.db", Duration::from_secs(1), at(2));
        assert_eq!(shorter, Asked::Held { pos: pos(7), until: at(12) }, "never shorter");
        assert_eq!(lender.begin_write("a", at(3)), Write::Begin);
        assert_eq!(lender.begin_write("a", at(3)), Write::Wait, "a retry while it is being done");
        assert_eq!(lender.ask("b", "app.db", TTL, at(3)), Asked::Taken);
        let committed = Outcome::Committed(Txid::new(8).unwrap());
        lender.ended("a", committed.clone(), at(4));
        for _ in 0..2 {
            assert_eq!(lender.begin_write("a", at(5)), Write::Over(committed.clone()), "and not done again");
        }
        assert_eq!(lender.ask("b", "app.db", TTL, at(5)), Asked::Take, "a second later");
        assert_eq!(lender.ask("a", "other.db", TTL, at(5)), lender.ask("a", "other.db", TTL, at(5)));
        assert!(matches!(lender.ask("a", "other.db", TTL, at(5)), Asked::Over(Outcome::Ended(_))));
    }

    #[test]
    fn between_two_loans_there_is_time_for_the_primarys_own_writers() {
        let at = |ms: u64| Monotonic(ms);
        let mut lender = open();
        for (id, next, held, rest) in [("a", "b", 15, 30), ("c", "d", 5000, 120)] {
            let began = if id == "a" { 0 } else { 100_000 };
            assert_eq!(lender.ask(id, "app.db", TTL, at(began)), Asked::Take);
            lender.held(id, pos(1), at(began));
            assert!(lender.give_back(id, at(began + held)));
            assert_eq!(lender.ask(next, "app.db", TTL, at(began + held + rest - 1)), Asked::Taken);
            assert_eq!(
                lender.ask("other", "other.db", TTL, at(began)),
                if id == "a" { Asked::Take } else { Asked::Wait }
            );
            assert_eq!(lender.ask(next, "app.db", TTL, at(began + held + rest)), Asked::Take);
            lender.ended(next, Outcome::Ended("busy".to_owned()), at(began + held + rest));
        }
    }

    #[test]
    fn what_is_over_is_not_written() {
        let mut lender = open();
        lender.ask("a", "app.db", TTL, at(0));
        assert!(matches!(lender.begin_write("a", at(0)), Write::Over(Outcome::Ended(_))), "it is not held yet");
        assert!(lender.held("a", pos(1), at(0)));
        assert_eq!(lender.poll_timeout(), Some(at(10)));
        assert!(matches!(lender.begin_write("a", at(10)), Write::Over(Outcome::Ended(_))), "nobody has noticed yet");
        assert!(matches!(lender.ask("a", "app.db", TTL, at(10)), Asked::Over(Outcome::Ended(_))), "too late for more");
        assert_eq!(lender.expire(at(10)), ["a"]);
        assert_eq!(lender.expire(at(10)), Vec::<String>::new(), "it is let go of once");
        assert!(matches!(lender.begin_write("a", at(11)), Write::Over(Outcome::Ended(_))));
        assert_eq!(lender.begin_write("b", at(11)), Write::Unknown);
    }

    #[test]
    fn a_commit_that_has_begun_is_not_cut_off() {
        let mut lender = open();
        lender.ask("a", "app.db", TTL, at(0));
        lender.held("a", pos(1), at(0));
        assert_eq!(lender.begin_write("a", at(9)), Write::Begin);
        assert!(lender.expire(at(20)).is_empty());
        assert!(lender.close(at(20)).is_empty());
        assert!(!lender.give_back("a", at(20)));
        assert_eq!(lender.poll_timeout(), None);
        lender.ended("a", Outcome::Unknown("the role has ended".to_owned()), at(21));
        lender.ended("a", Outcome::Committed(Txid::FIRST), at(22));
        assert!(matches!(lender.begin_write("a", at(22)), Write::Over(Outcome::Unknown(_))), "what was said stays");
    }

    #[test]
    fn nothing_is_lent_by_who_is_not_the_primary() {
        let mut lender = Lender::default();
        assert_eq!(lender.ask("a", "app.db", TTL, at(0)), Asked::Closed);
        lender.open();
        lender.ask("a", "app.db", TTL, at(0));
        lender.ask("b", "b.db", TTL, at(0));
        lender.held("b", pos(1), at(0));
        assert_eq!(lender.close(at(1)), ["b"]);
        assert!(!lender.held("a", pos(1), at(1)), "it was being taken");
        assert!(matches!(lender.begin_write("a", at(1)), Write::Over(Outcome::Ended(_))));
        assert!(matches!(lender.begin_write("b", at(1)), Write::Over(Outcome::Ended(_))));
        assert_eq!(lender.ask("c", "app.db", TTL, at(1)), Asked::Closed);
        lender.open();
        lender.ask("d", "app.db", TTL, at(2));
        lender.close(at(2));
        lender.open();
        assert!(!lender.held("d", pos(1), at(3)), "it was taken under another right");
    }

    #[test]
    fn who_gives_up_while_the_lock_is_taken_does_not_get_it() {
        let mut lender = open();
        lender.ask("a", "app.db", TTL, at(0));
        assert!(!lender.give_back("a", at(0)));
        assert!(!lender.held("a", pos(1), at(1)));
        assert_eq!(lender.ask("b", "app.db", TTL, at(1)), Asked::Take);
        assert!(lender.held("b", pos(1), at(1)));
        assert!(lender.give_back("b", at(2)));
        assert!(!lender.give_back("unknown", at(2)));
    }

    #[test]
    fn outcomes_are_remembered_for_a_time() {
        let mut lender = open();
        for index in 0..OUTCOMES_MAX + 10 {
            let id = format!("{index:06}");
            assert_eq!(lender.ask(&id, "app.db", TTL, at(index as u64 / 100)), Asked::Take);
            lender.ended(&id, Outcome::Ended("busy".to_owned()), at(index as u64 / 100));
        }
        assert!(lender.loans.len() <= OUTCOMES_MAX + 1);
        assert_eq!(lender.begin_write("000000", at(41)), Write::Unknown);
        assert!(matches!(lender.begin_write("004000", at(41)), Write::Over(_)));
        lender.ask("z", "app.db", TTL, at(41 + REMEMBERED.as_secs()));
        assert_eq!(lender.begin_write("004000", at(42 + REMEMBERED.as_secs())), Write::Unknown);
    }
}
