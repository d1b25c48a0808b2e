//! Which objects of a Litestream 0.3 replica restore it to a time (LTX specification, section 18).
//!
//! A generation is one uninterrupted run of WALs, numbered from 0. A snapshot is the database file at the start of the WAL with
//! its number; what follows it are the parts of that WAL and of those after it. There are no TXIDs and no checksums of the
//! database: a point is a place in a WAL, and its time is that of the object, which only the store knows.

use std::fmt;

use rhyolite_format::Timestamp;
use rhyolite_format::litestream::{Generation, ReplicaKey};

use crate::Target;

/// One object of a replica, as its listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldObject {
    /// What its key says. LTX files are passed over.
    pub key: ReplicaKey,
    /// When the store took it.
    pub created: Timestamp,
    /// Where the caller has it.
    pub handle: usize,
}

/// A part of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPart {
    /// Number of the WAL in its generation.
    pub index: u32,
    /// Where in the WAL it begins, in bytes.
    pub offset: u64,
    /// When the store took it.
    pub created: Timestamp,
    /// Where the caller has it.
    pub handle: usize,
}

/// What to restore from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldPlan {
    /// The run of WALs.
    pub generation: Generation,
    /// Number of the WAL that follows the snapshot.
    pub index: u32,
    /// Where the caller has the snapshot.
    pub snapshot: usize,
    /// What to replay on it, in order: consecutive WALs, each from its start. That the parts of one WAL join shows only when they
    /// are unpacked.
    pub parts: Vec<WalPart>,
    /// When the last of these objects was stored.
    pub time: Timestamp,
}

/// Why a replica does not restore to a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldPlanError {
    /// There is no snapshot.
    Empty,
    /// There are no TXIDs in such a replica.
    Txid,
    /// The time lies before the first or after the last object.
    OutOfRange {
        /// What was asked for.
        time: Timestamp,
        /// The first point's.
        first: Timestamp,
        /// The last point's.
        last: Timestamp,
    },
    /// A WAL, or the start of one, is missing.
    Gap {
        /// The run of WALs.
        generation: Generation,
        /// The WAL that is missing, or begins too late.
        index: u32,
    },
}

impl fmt::Display for OldPlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the replica holds no snapshot"),
            Self::Txid => f.write_str("a Litestream 0.3 replica has no transaction numbers: choose a time with --at"),
            Self::OutOfRange { time, first, last } => {
                write!(f, "time {} lies outside of what can be restored, {} to {}", time.0, first.0, last.0)
            }
            Self::Gap { generation, index } => {
                write!(f, "generation {generation}: WAL {index:08x} is missing, or its start is")
            }
        }
    }
}

impl std::error::Error for OldPlanError {}

/// A point that can be restored: the end of a snapshot or of a part of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldPoint {
    /// The run of WALs.
    pub generation: Generation,
    /// Number of the WAL.
    pub index: u32,
    /// Where the part begins in the WAL; `None` for a snapshot.
    pub offset: Option<u64>,
    /// When the store took the object.
    pub created: Timestamp,
    /// Where the caller has the object.
    pub handle: usize,
}

/// The objects to restore from. The newest snapshot that is not later than the target leads, as in Litestream.
pub fn plan(objects: &[OldObject], target: Target) -> Result<OldPlan, OldPlanError> {
    let until = match target {
        Target::Txid(_) => return Err(OldPlanError::Txid),
        Target::Latest => Timestamp(i64::MAX),
        Target::Time(time) | Target::TimeNearest(time) => within(objects, time, matches!(target, Target::Time(_)))?,
    };
    let snapshots = objects.iter().filter_map(|object| match object.key {
        ReplicaKey::Snapshot { generation, index } if object.created <= until => {
            Some((object.created, index, generation, object.handle))
        }
        _ => None,
    });
    let (created, index, generation, snapshot) = snapshots.max().ok_or(OldPlanError::Empty)?;
    let mut parts = parts_of(objects, generation);
    parts.retain(|part| part.index >= index);
    let end = parts.iter().position(|part| part.created > until).unwrap_or(parts.len());
    parts.truncate(end);
    check_joined(&parts, generation, index)?;
    let time = parts.last().map_or(created, |part| part.created.max(created));
    Ok(OldPlan { generation, index, snapshot, parts, time })
}

/// `time`, or the nearest time at which there is something.
fn within(objects: &[OldObject], time: Timestamp, exactly: bool) -> Result<Timestamp, OldPlanError> {
    let points = points(objects);
    let times = || points.iter().map(|point| point.created);
    let (first, last) = times().min().zip(times().max()).ok_or(OldPlanError::Empty)?;
    if exactly && !(first..=last).contains(&time) {
        return Err(OldPlanError::OutOfRange { time, first, last });
    }
    Ok(time.clamp(first, last))
}

/// The parts of a generation's WALs, in order.
fn parts_of(objects: &[OldObject], of: Generation) -> Vec<WalPart> {
    let parts = objects.iter().filter_map(|object| match object.key {
        ReplicaKey::Wal { generation, index, offset } if generation == of => {
            Some(WalPart { index, offset, created: object.created, handle: object.handle })
        }
        _ => None,
    });
    let mut parts: Vec<WalPart> = parts.collect();
    parts.sort_unstable_by_key(|part| (part.index, part.offset));
    parts
}

/// Whether the WALs are consecutive from `index` on, and each is there from its start.
fn check_joined(parts: &[WalPart], generation: Generation, index: u32) -> Result<(), OldPlanError> {
    for (expected, wal) in (index..).zip(parts.chunk_by(|a, b| a.index == b.index)) {
        if wal[0].index != expected || wal[0].offset != 0 {
            return Err(OldPlanError::Gap { generation, index: expected });
        }
    }
    Ok(())
}

/// Every point that can be restored, by time: the snapshots, and the parts that follow one without a gap.
pub fn points(objects: &[OldObject]) -> Vec<OldPoint> {
    let mut points = Vec::new();
    let snapshots = objects.iter().filter_map(|object| match object.key {
        ReplicaKey::Snapshot { generation, index } => {
            Some(OldPoint { generation, index, offset: None, created: object.created, handle: object.handle })
        }
        _ => None,
    });
    let mut snapshots: Vec<OldPoint> = snapshots.collect();
    snapshots.sort_unstable_by_key(|snapshot| (snapshot.generation, snapshot.index));
    for in_generation in snapshots.chunk_by(|a, b| a.generation == b.generation) {
        let generation = in_generation[0].generation;
        points.extend_from_slice(in_generation);
        let parts = parts_of(objects, generation);
        // The WAL that is joined on to, and whether all of it is there so far.
        let mut joined: Option<u32> = None;
        for wal in parts.chunk_by(|a, b| a.index == b.index) {
            let index = wal[0].index;
            let begins = in_generation.iter().any(|snapshot| snapshot.index == index);
            let follows = joined.is_some_and(|before| before + 1 == index);
            joined = ((begins || follows) && wal[0].offset == 0).then_some(index);
            if joined.is_some() {
                points.extend(wal.iter().map(|part| OldPoint {
                    generation,
                    index,
                    offset: Some(part.offset),
                    created: part.created,
                    handle: part.handle,
                }));
            }
        }
    }
    points.sort_by_key(|point| (point.created, point.generation, point.index, point.offset));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects as `generation index[_offset] time`; a key without an offset is a snapshot.
    fn objects(lines: &[&str]) -> Vec<OldObject> {
        let object = |(handle, line): (usize, &&str)| {
            let words: Vec<&str> = line.split(' ').collect();
            let generation = Generation(words[0].parse().unwrap());
            let key = match words[1].split_once('_') {
                None => ReplicaKey::Snapshot { generation, index: words[1].parse().unwrap() },
                Some((index, offset)) => {
                    ReplicaKey::Wal { generation, index: index.parse().unwrap(), offset: offset.parse().unwrap() }
                }
            };
            OldObject { key, created: Timestamp(words[2].parse().unwrap()), handle }
        };
        lines.iter().enumerate().map(object).collect()
    }

    /// The planned objects by their place in the list, or the error.
    fn check(lines: &[&str], target: Target, expected: Result<&[usize], OldPlanError>) {
        let found = plan(&objects(lines), target);
        let found = found.map(|plan| {
            let parts = plan.parts.iter().map(|part| part.handle);
            std::iter::once(plan.snapshot).chain(parts).collect::<Vec<_>>()
        });
        assert_eq!(found, expected.map(<[usize]>::to_vec), "{lines:?} {target:?}");
    }

    const RUN: [&str; 7] = ["1 0 10", "1 0_0 11", "1 0_4152 12", "1 1_0 13", "1 2_0 14", "1 2 15", "1 2_4152 16"];

    #[test]
    fn the_newest_snapshot_leads_and_the_parts_after_it_follow_in_order() {
        check(&RUN, Target::Latest, Ok(&[5, 4, 6]));
        check(&RUN, Target::Time(Timestamp(14)), Ok(&[0, 1, 2, 3, 4]));
        check(&RUN, Target::Time(Timestamp(12)), Ok(&[0, 1, 2]));
        check(&RUN, Target::Time(Timestamp(10)), Ok(&[0]));
        let shuffled = [RUN[6], RUN[2], RUN[0], RUN[3], RUN[5], RUN[1], RUN[4]];
        check(&shuffled, Target::Latest, Ok(&[4, 6, 0]));
    }

    #[test]
    fn times_outside_are_errors_unless_the_nearest_is_asked_for() {
        let outside = |time| OldPlanError::OutOfRange { time, first: Timestamp(10), last: Timestamp(16) };
        for time in [Timestamp(9), Timestamp(17)] {
            check(&RUN, Target::Time(time), Err(outside(time)));
        }
        check(&RUN, Target::TimeNearest(Timestamp(0)), Ok(&[0]));
        check(&RUN, Target::TimeNearest(Timestamp(99)), Ok(&[5, 4, 6]));
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let gap = |index| OldPlanError::Gap { generation: Generation(1), index };
        check(&["1 0 10", "1 0_0 11", "1 2_0 12"], Target::Latest, Err(gap(1)));
        check(&["1 0 10", "1 0_4152 11"], Target::Latest, Err(gap(0)));
        check(&["1 0 10", "1 0_0 11", "1 1_4152 12"], Target::Latest, Err(gap(1)));
        check(&["1 0 10", "1 0_0 11", "1 2_0 12"], Target::Time(Timestamp(11)), Ok(&[0, 1]));
        check(&["1 0_0 10"], Target::Latest, Err(OldPlanError::Empty));
        check(&RUN, Target::Txid(rhyolite_format::Txid::FIRST), Err(OldPlanError::Txid));
    }

    #[test]
    fn the_generation_of_the_newest_snapshot_is_taken() {
        let lines = ["1 0 10", "1 0_0 11", "2 0 20", "2 0_0 21", "1 0_4152 30"];
        check(&lines, Target::Latest, Ok(&[2, 3]));
        check(&lines, Target::Time(Timestamp(15)), Ok(&[0, 1]));
    }

    #[test]
    fn points_are_what_follows_a_snapshot_without_a_gap() {
        let times = |lines: &[&str]| points(&objects(lines)).iter().map(|p| p.created.0).collect::<Vec<_>>();
        assert_eq!(times(&RUN), [10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(times(&["1 0 10", "1 0_0 11", "1 2_0 12", "1 3 13", "1 3_0 14"]), [10, 11, 13, 14]);
        assert_eq!(times(&["1 0_0 11"]), [0_i64; 0]);
    }
}
