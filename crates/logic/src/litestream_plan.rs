//! Which files of a Litestream replica restore it to a point (LTX specification, section 16.1).
//!
//! The rule is Litestream's own, so that both programs restore the same: start from the newest snapshot that is not
//! beyond the target, then again and again take the file that joins on and reaches farthest.

use std::cmp::Reverse;
use std::fmt;

use rhyolite_format::{Timestamp, Txid};

/// The level of snapshots. Levels below it are merged from one another.
pub const SNAPSHOT_LEVEL: u8 = 9;

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

#[cfg(test)]
mod tests;
