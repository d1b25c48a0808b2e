//! What the restore points of one database must show, decided from what was written and what was restored.
//!
//! The ledger of the database at the end of its world says which transactions were ever committed, in which order. Then:
//! - each restore point holds exactly the first k of them, whole, and k does not shrink from one point to the next;
//! - each transaction is the last one of some point, if a daemon watched when it was made. None watches between a kill and the moment when
//!   the next daemon captures the database, nor for a commit that nobody had acknowledged when the daemon was killed;
//! - what a writer has acknowledged is in the ledger.

use std::collections::BTreeSet;

use crate::writer::Acknowledgement;
use crate::writer::schema::Entry;

/// Transactions that were made while a daemon watched: those after one up to and with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// The last one that was there before.
    pub(super) after: i64,
    /// The last one that was acknowledged.
    pub(super) through: i64,
    /// The daemon was killed then.
    pub(super) was_killed: bool,
}

/// What a restore point holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// The point.
    pub(super) txid: String,
    /// The last transaction in it; zeros before the first.
    pub(super) last: Entry,
    /// What is wrong in it by itself.
    pub(super) faults: Vec<String>,
}

/// What happened to one database.
#[derive(Clone, Debug)]
pub(super) struct History<'a> {
    /// All transactions, consecutive from 1.
    pub(super) ledger: &'a [Entry],
    /// What writers have acknowledged.
    pub(super) acknowledged: &'a [Acknowledgement],
    /// When somebody watched.
    pub(super) watched: &'a [Watched],
}

/// What is to be said about the restore points of one database.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Commits that should be shown, or be there at all.
    pub(super) missing: Vec<String>,
    /// Commits without a point that were acknowledged before their daemon was killed.
    pub(super) folded: Vec<i64>,
    /// Points with a transaction that was never committed.
    pub(super) extra: Vec<String>,
    /// Points that are damaged or out of order.
    pub(super) wrong: Vec<String>,
    /// Commits without a point that nobody watched.
    pub(super) unwatched: u64,
    /// Points that show the same last transaction as the one before.
    pub(super) unchanged: u64,
}

/// Judges all `points`, oldest first.
pub(super) fn judge(history: &History<'_>, points: &[Shown]) -> Verdict {
    let mut verdict = Verdict::default();
    judge_points(history, points, &mut verdict);
    let shown: BTreeSet<i64> = points.iter().map(|point| point.last.id).collect();
    for entry in history.ledger.iter().filter(|entry| !shown.contains(&entry.id)) {
        let is_in = |watched: &&Watched| watched.after < entry.id && entry.id <= watched.through;
        match history.watched.iter().find(is_in) {
            Some(watched) if watched.was_killed => verdict.folded.push(entry.id),
            Some(_) => verdict.missing.push(format!("no restore point shows commit {}", entry.id)),
            None => verdict.unwatched += 1,
        }
    }
    for Acknowledgement { id, digest, .. } in history.acknowledged {
        if history.find(*id).is_none_or(|entry| entry.digest != *digest) {
            verdict.missing.push(format!("commit {id} was acknowledged, and is not in the database"));
        }
    }
    verdict
}

fn judge_points(history: &History<'_>, points: &[Shown], verdict: &mut Verdict) {
    let mut before: Option<&Shown> = None;
    for point in points {
        let (txid, id) = (&point.txid, point.last.id);
        verdict.wrong.extend(point.faults.iter().map(|fault| format!("TXID {txid}: {fault}")));
        if point.faults.is_empty() && history.find(id) != Some(&point.last) {
            verdict.extra.push(format!("TXID {txid} shows transaction {id}, which was never committed"));
        }
        if let Some(before) = before {
            if id < before.last.id {
                verdict.wrong.push(format!("TXID {txid} holds {id} transactions, after {}", before.last.id));
            }
            verdict.unchanged += u64::from(id == before.last.id);
        }
        before = Some(point);
    }
}

impl History<'_> {
    fn find(&self, id: i64) -> Option<&Entry> {
        const NONE: Entry = Entry { id: 0, writer: 0, rows: 0, total: 0, digest: 0 };
        match id {
            0 => Some(&NONE),
            _ => self.ledger.get(usize::try_from(id - 1).ok()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i64) -> Entry {
        Entry { id, writer: 1, rows: id, total: 7 * id, digest: 100 + id }
    }

    fn point(txid: u64, id: i64) -> Shown {
        let last = if id == 0 { Entry::default() } else { entry(id) };
        Shown { txid: txid.to_string(), last, faults: Vec::new() }
    }

    /// The verdict on a database with five commits, the first of which was made while nobody watched, and the fourth of which was
    /// acknowledged.
    fn judged(was_killed: bool, points: &[Shown]) -> Verdict {
        let ledger: Vec<_> = (1..=5).map(entry).collect();
        let watched =
            [Watched { after: 1, through: 3, was_killed }, Watched { after: 3, through: 5, was_killed: false }];
        let acknowledged = [Acknowledgement { id: 4, digest: 104, time_us: 0 }];
        judge(&History { ledger: &ledger, acknowledged: &acknowledged, watched: &watched }, points)
    }

    fn points(ids: &[i64]) -> Vec<Shown> {
        (1..).zip(ids).map(|(txid, id)| point(txid, *id)).collect()
    }

    #[test]
    fn a_point_for_each_commit_is_as_it_should_be() {
        assert_eq!(judged(false, &points(&[0, 1, 2, 3, 4, 5])), Verdict::default());
        assert_eq!(judged(true, &points(&[2, 3, 4, 5])), Verdict { unwatched: 1, ..Verdict::default() });
        assert_eq!(judged(false, &points(&[1, 2, 3, 3, 4, 5, 5])), Verdict { unchanged: 2, ..Verdict::default() });
    }

    #[test]
    fn a_commit_without_a_point_is_missing_unless_its_daemon_was_killed() {
        let missing = judged(false, &points(&[1, 3, 4, 5]));
        assert_eq!((missing.missing.len(), missing.folded.len()), (1, 0), "{missing:?}");
        let folded = judged(true, &points(&[1, 3, 4, 5]));
        assert_eq!((folded.missing.len(), &folded.folded[..]), (0, &[2][..]), "{folded:?}");
        let at_the_end = judged(true, &points(&[1, 2, 3, 4]));
        assert_eq!((at_the_end.missing.len(), at_the_end.folded.len()), (1, 0), "{at_the_end:?}");
        assert_eq!(judged(false, &[]).missing.len(), 4);
    }

    #[test]
    fn an_acknowledged_commit_that_is_gone_or_another_is_missing() {
        let ledger = [entry(1), entry(2)];
        for (id, digest) in [(3, 103), (2, 7), (-1, 0)] {
            let acknowledged = [Acknowledgement { id, digest, time_us: 0 }];
            let history = History { ledger: &ledger, acknowledged: &acknowledged, watched: &[] };
            assert_eq!(judge(&history, &points(&[1, 2])).missing.len(), 1, "{id}");
        }
    }

    #[test]
    fn a_transaction_that_was_never_committed_is_extra() {
        let mut other = points(&[1, 2, 3, 4, 5]);
        other[2].last.digest += 1;
        assert_eq!(judged(false, &other).extra.len(), 1);
        assert_eq!(judged(false, &points(&[1, 2, 3, 4, 5, 6])).extra.len(), 1);
    }

    #[test]
    fn damage_and_points_that_go_backward_are_wrong() {
        let mut damaged = points(&[1, 2, 3, 4, 5]);
        damaged[1].faults.push("integrity check: page 7 is never used".to_owned());
        assert_eq!(judged(false, &damaged).wrong.len(), 1);
        assert_eq!(judged(false, &points(&[1, 2, 3, 2, 4, 5])).wrong.len(), 1);
    }
}
