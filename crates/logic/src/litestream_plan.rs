//! Which files of a Litestream replica restore it to a point (LTX specification, section 16.1).
//!
//! The rule is Litestream's own, so that both programs restore the same: start from the newest snapshot that is not
//! beyond the target, then again and again take the file that joins on and reaches farthest.

use std::cmp::Reverse;
use std::fmt;

use rhyolite_format::{Timestamp, Txid};

use crate::Target;
use crate::restore_plan::PlanError;

pub use rhyolite_format::litestream::SNAPSHOT_LEVEL;

/// One file of a replica, as its listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaFile {
    /// Level, 0 to 9. Files of higher levels are ignored.
    pub level: u8,
    /// First transaction.
    pub min_txid: Txid,
    /// Last transaction.
    pub max_txid: Txid,
    /// When its last transaction was committed.
    pub created: Timestamp,
}

/// The point to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaTarget {
    /// The newest transaction.
    Latest,
    /// Exactly after this transaction.
    Txid(Txid),
    /// As far as files reach that were created before this time.
    Before(Timestamp),
}

/// Why a replica does not restore to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaPlanError {
    /// Newer transactions are there but cannot be reached.
    Gap {
        /// The last transaction that can be reached.
        reached: Txid,
        /// The first transaction after the gap.
        next: Txid,
    },
    /// The point is not in the replica, or not restorable on its own any more.
    Unavailable {
        /// The last transaction that can be reached without going beyond the point.
        reached: Option<Txid>,
    },
}

impl fmt::Display for ReplicaPlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { reached, next } => {
                write!(f, "transactions are missing: the replica reaches {reached} and goes on at {next}")
            }
            Self::Unavailable { reached: Some(reached) } => {
                write!(f, "not available: the replica reaches {reached} without going beyond")
            }
            Self::Unavailable { reached: None } => f.write_str("not available: no file to begin with"),
        }
    }
}

impl std::error::Error for ReplicaPlanError {}

/// The files to merge, oldest first; never empty.
pub fn plan(files: &[ReplicaFile], target: ReplicaTarget) -> Result<Vec<ReplicaFile>, ReplicaPlanError> {
    let usable = files.iter().copied().filter(|file| match target {
        ReplicaTarget::Latest => true,
        ReplicaTarget::Txid(txid) => file.max_txid <= txid,
        ReplicaTarget::Before(time) => file.created < time,
    });
    let (snapshots, mut deltas): (Vec<_>, Vec<_>) =
        usable.filter(|file| file.level <= SNAPSHOT_LEVEL).partition(|file| file.level == SNAPSHOT_LEVEL);
    deltas.sort_by_key(|file| file.min_txid);
    let snapshot = snapshots.into_iter().max_by_key(|file| (file.min_txid, file.max_txid));

    let mut plan: Vec<ReplicaFile> = snapshot.into_iter().collect();
    let mut joining = deltas.iter().peekable();
    let mut farthest: Option<ReplicaFile> = None;
    loop {
        let reached = plan.last().map(|file| file.max_txid);
        if reached.is_some_and(|txid| target == ReplicaTarget::Txid(txid)) {
            return Ok(plan);
        }
        let reached = reached.map_or(0, Txid::get);
        // What joins on only grows, so the best of all that ever joined is the best of those that join here.
        while let Some(file) = joining.next_if(|file| file.min_txid.get() - 1 <= reached) {
            farthest = farthest.into_iter().chain([*file]).max_by_key(preference);
        }
        match farthest {
            Some(file) if file.max_txid.get() > reached => plan.push(file),
            _ => break,
        }
    }
    let Some(last) = plan.last() else { return Err(ReplicaPlanError::Unavailable { reached: None }) };
    let reached = last.max_txid;
    match (target, joining.next()) {
        (ReplicaTarget::Txid(_), _) => Err(ReplicaPlanError::Unavailable { reached: Some(reached) }),
        (ReplicaTarget::Latest, Some(beyond)) => Err(ReplicaPlanError::Gap { reached, next: beyond.min_txid }),
        _ => Ok(plan),
    }
}

/// Of the files that join on, the largest of these comes next.
fn preference(file: &ReplicaFile) -> (Txid, Reverse<Txid>, u8, Reverse<Timestamp>) {
    (file.max_txid, Reverse(file.min_txid), file.level, Reverse(file.created))
}

/// Every transaction that can be restored to, ascending: of the files that end at it, the one that was created first, which
/// says best when it was committed.
///
/// A file leads to its end if anything that can be reached below its end joins on to it. What is reached highest there joins if
/// any does, so one pass over the files by their ends is enough; [`plan`] finds a way to the same transactions and no other.
pub fn points(files: &[ReplicaFile]) -> Vec<ReplicaFile> {
    let mut files: Vec<ReplicaFile> = files.iter().copied().filter(|file| file.level <= SNAPSHOT_LEVEL).collect();
    files.sort_by_key(|file| (file.max_txid, file.created, Reverse(file.level)));
    let mut points: Vec<ReplicaFile> = Vec::new();
    for same_end in files.chunk_by(|a, b| a.max_txid == b.max_txid) {
        let reached = points.last().map_or(0, |point| point.max_txid.get());
        if same_end.iter().any(|file| file.min_txid.get() - 1 <= reached) {
            points.push(same_end[0]);
        }
    }
    points
}

/// The files to merge for a target of the command line, oldest first. What their `created` says must be right for times.
pub fn resolve(files: &[ReplicaFile], target: Target) -> Result<Vec<ReplicaFile>, PlanError> {
    let points = points(files);
    let Some((first, last)) = points.first().zip(points.last()) else { return Err(PlanError::Empty) };
    let txid = match target {
        Target::Latest => return plan(files, ReplicaTarget::Latest).map_err(|e| latest_error(e, last.max_txid)),
        Target::Txid(txid) => txid,
        Target::Time(time) | Target::TimeNearest(time) => {
            let earliest = points.iter().map(|point| point.created).min().expect("there is a point");
            let latest = points.iter().map(|point| point.created).max().expect("there is a point");
            if matches!(target, Target::Time(_)) && !(earliest..=latest).contains(&time) {
                return Err(PlanError::OutOfRange { time, first: earliest, last: latest });
            }
            points.iter().rfind(|point| point.created <= time).unwrap_or(first).max_txid
        }
    };
    plan(files, ReplicaTarget::Txid(txid)).map_err(|_| PlanError::NotAPoint {
        txid,
        below: points.iter().map(|point| point.max_txid).rfind(|point| *point < txid),
        above: points.iter().map(|point| point.max_txid).find(|point| *point > txid),
    })
}

fn latest_error(error: ReplicaPlanError, last: Txid) -> PlanError {
    match error {
        ReplicaPlanError::Gap { reached, next } => PlanError::Gap {
            first: reached.next(),
            last: next.previous().expect("there is something before it"),
            txid: next,
        },
        ReplicaPlanError::Unavailable { .. } => PlanError::NoSnapshot { txid: last },
    }
}

#[cfg(test)]
mod tests;
