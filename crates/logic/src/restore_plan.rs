//! Which objects make up the database at a TXID, at a time, or at the end.
//!
//! A plan starts with the newest snapshot at or below the target, in the manifest or in the log, and continues with files, each of
//! which starts at most one TXID after the end of what came before and ends later: merged files, bundles, and the transactions
//! of live log segments. Among all such chains it takes the one with the fewest bytes. It ends at the target exactly, or is
//! an error that says what is missing.
//!
//! It is enough to try the newest snapshot: a chain from an older one passes over the newer one's TXID with files that may follow
//! the newer one as well, unless the newer one starts the chain anew, and then no file passes over it.
//!
//! Two files that touch must agree on the checksum between them. Files that overlap are not compared here; the proof of a
//! restore is the checksum at its end.

use std::collections::BTreeMap;
use std::fmt;

use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::{Checksum, PageCount, PageSize, Pos, Seq, Timestamp, Txid};

use crate::log::{LogSegment, MissingSegment, live};

/// What a request costs, in bytes that could be read in its time.
const REQUEST_COST: u64 = 64 << 10;

/// Where to restore to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The last commit.
    Latest,
    /// Right after this commit.
    Txid(Txid),
    /// The last commit at or before this time. An error before the first and after the last restore point.
    Time(Timestamp),
    /// The same, but the first or last restore point when the time lies outside.
    TimeNearest(Timestamp),
}

/// The index of a bundle: which commits it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleIndex {
    /// Key of the bundle as in the manifest.
    pub key: String,
    /// What the bundle holds.
    pub entries: Vec<SegmentEntry>,
}

/// How to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// Page size of the restored database.
    pub page_size: PageSize,
    /// Its size in pages.
    pub commit: PageCount,
    /// Its position: the checksum of the result must be this one.
    pub pos: Pos,
    /// When it was committed.
    pub time: Timestamp,
    /// What to read, oldest first. The first starts with a snapshot; no other holds one.
    pub steps: Vec<PlanStep>,
}

/// One object to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanStep {
    /// A snapshot of the manifest.
    Snapshot(ManifestFile),
    /// A merged file.
    Merged(ManifestFile),
    /// Of a bundle the transactions that end after `after`, up to `through`.
    Bundle {
        /// The bundle.
        file: ManifestFile,
        /// The database is already at this transaction.
        after: Txid,
        /// The last transaction to take.
        through: Txid,
    },
    /// Some transactions of a log segment.
    Segment {
        /// Sequence number.
        seq: Seq,
        /// Key relative to the database's prefix.
        key: String,
        /// Size of the object in bytes.
        size: u64,
        /// What to take, in order. Only the first may be a snapshot, and only in the first step.
        entries: Vec<SegmentEntry>,
    },
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The target lies inside a bundle (or may, by its time): read the bundle's index and plan again with it.
    NeedIndex {
        /// Key of the bundle.
        key: String,
    },
    /// The caller's listing of the log has a hole.
    MissingSegment(MissingSegment),
    /// There is no commit at all.
    Empty,
    /// No restore point has this TXID.
    NotAPoint {
        /// What was asked for.
        txid: Txid,
        /// The nearest restore point before it.
        below: Option<Txid>,
        /// The nearest restore point after it.
        above: Option<Txid>,
    },
    /// The time lies before the first or after the last restore point.
    OutOfRange {
        /// What was asked for.
        time: Timestamp,
        /// Time of the first restore point.
        first: Timestamp,
        /// Time of the last restore point.
        last: Timestamp,
    },
    /// There is no snapshot at or below the target.
    NoSnapshot {
        /// The target.
        txid: Txid,
    },
    /// Transactions are missing between the snapshot and the target.
    Gap {
        /// The first that is missing.
        first: Txid,
        /// The last that is missing.
        last: Txid,
        /// The target.
        txid: Txid,
    },
    /// What follows this position was made from another database.
    Diverged {
        /// The last position that can be reached.
        at: Pos,
        /// The checksum that what follows expects there.
        expected: Checksum,
    },
}

impl From<MissingSegment> for PlanError {
    fn from(e: MissingSegment) -> Self {
        Self::MissingSegment(e)
    }
}

impl std::error::Error for PlanError {}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedIndex { key } => write!(f, "the index of {key} is needed"),
            Self::MissingSegment(e) => e.fmt(f),
            Self::Empty => f.write_str("nothing has been backed up yet"),
            Self::NotAPoint { txid, below, above } => {
                write!(f, "TXID {txid} cannot be restored")?;
                match (below, above) {
                    (Some(below), Some(above)) => write!(f, "; the nearest are {below} and {above}"),
                    (Some(last), None) => write!(f, "; the last is {last}"),
                    (None, Some(first)) => write!(f, "; the first is {first}"),
                    (None, None) => Ok(()),
                }
            }
            Self::OutOfRange { time, first, last } => {
                write!(f, "time {} lies outside of what can be restored, {} to {}", time.0, first.0, last.0)
            }
            Self::NoSnapshot { txid } => write!(f, "there is no snapshot at or before TXID {txid}"),
            Self::Gap { first, last, txid } if first == last => {
                write!(f, "TXID {first} is missing on the way to {txid}")
            }
            Self::Gap { first, last, txid } => write!(f, "TXIDs {first} to {last} are missing on the way to {txid}"),
            Self::Diverged { at, expected } => {
                write!(f, "what follows {} expects the database checksum {expected}, not {}", at.txid, at.checksum)
            }
        }
    }
}

/// Plans a restore. `log` is the listing of the log from the manifest's first segment to the end; `indexes` are those of the
/// bundles that an earlier call asked for.
pub fn plan(
    manifest: &Manifest,
    log: &[LogSegment],
    indexes: &[BundleIndex],
    target: Target,
) -> Result<RestorePlan, PlanError> {
    let history = History::new(manifest, log, indexes)?;
    let txid = history.resolve(target)?;
    history.plan(txid)
}

/// What a restore point was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// One commit of the log, or of a bundle.
    Commit,
    /// The end of a merged file (or of a bundle whose index was not given).
    Merged,
    /// A snapshot.
    Snapshot,
}

/// A position that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// The position.
    pub pos: Pos,
    /// When it was committed.
    pub time: Timestamp,
    /// What it was made by. Where several files end at it, the one that says most about the commit.
    pub kind: PointKind,
    /// Number of pages in the file that ends at it.
    pub pages: u64,
    /// Size in bytes of the file that ends at it.
    pub bytes: u64,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub commit: PageCount,
}

/// Every position that can be restored, ascending. Of a bundle whose index is not among `indexes`, only the end.
pub fn points(
    manifest: &Manifest,
    log: &[LogSegment],
    indexes: &[BundleIndex],
) -> Result<Vec<RestorePoint>, MissingSegment> {
    Ok(History::new(manifest, log, indexes)?.points())
}

/// A file or an entry that leads from one state of the database to another, or (a snapshot) from nothing.
#[derive(Clone, Copy, Debug)]
struct Item<'a> {
    min: Txid,
    end: Pos,
    /// `None` for a snapshot.
    pre: Option<Checksum>,
    time: Timestamp,
    bytes: u64,
    cost: u64,
    pages: u64,
    page_size: PageSize,
    commit: PageCount,
    source: Source<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    File(&'a ManifestFile),
    /// A commit in a bundle whose index is known, with the cost of all commits up to it.
    InBundle(&'a ManifestFile),
    Entry(&'a LogSegment, &'a SegmentEntry),
}

impl<'a> Item<'a> {
    fn of_file(file: &'a ManifestFile) -> Self {
        Self {
            min: file.min_txid,
            end: file.end(),
            pre: file.pre_apply,
            time: file.max_time,
            bytes: file.size,
            cost: file.size.saturating_add(REQUEST_COST),
            pages: file.pages,
            page_size: file.page_size,
            commit: file.commit,
            source: Source::File(file),
        }
    }

    fn of_entry(entry: &'a SegmentEntry, source: Source<'a>) -> Self {
        Self {
            min: entry.min_txid,
            end: entry.end(),
            pre: entry.pre_apply,
            time: entry.timestamp,
            bytes: entry.len,
            cost: entry.len,
            pages: u64::from(entry.pages),
            page_size: entry.page_size,
            commit: entry.commit,
            source,
        }
    }

    /// Whether it may be applied to a database at `at`.
    fn follows(&self, at: Pos) -> bool {
        let starts = self.min <= at.txid.next() && self.end.txid > at.txid;
        let joins = self.min != at.txid.next() || self.pre == Some(at.checksum);
        self.pre.is_some() && starts && joins
    }
}

/// How a position is reached most cheaply.
#[derive(Clone, Copy, Debug)]
struct Reached {
    pos: Pos,
    cost: u64,
    /// The last item, and the TXID before it (`None` when it is a snapshot).
    item: usize,
    from: Option<Txid>,
}

/// All that a manifest and a log hold.
struct History<'a> {
    snapshots: Vec<Item<'a>>,
    /// All but snapshots, by first TXID. A bundle is one item.
    items: Vec<Item<'a>>,
    /// Bundles whose index is known, with their commits.
    bundles: Vec<(&'a ManifestFile, &'a [SegmentEntry])>,
    /// Bundles whose index is not known.
    closed: Vec<&'a ManifestFile>,
}

impl<'a> History<'a> {
    fn new(manifest: &'a Manifest, log: &'a [LogSegment], indexes: &'a [BundleIndex]) -> Result<Self, MissingSegment> {
        let index_of: BTreeMap<&str, &BundleIndex> = indexes.iter().map(|i| (i.key.as_str(), i)).collect();
        let mut history = Self { snapshots: Vec::new(), items: Vec::new(), bundles: Vec::new(), closed: Vec::new() };
        for file in &manifest.files {
            match file.kind {
                FileKind::Snapshot => history.snapshots.push(Item::of_file(file)),
                FileKind::Merged => history.items.push(Item::of_file(file)),
                FileKind::Bundle => {
                    history.items.push(Item::of_file(file));
                    match index_of.get(file.key.as_str()) {
                        Some(index) => history.bundles.push((file, &index.entries)),
                        None => history.closed.push(file),
                    }
                }
            }
        }
        for segment in live(manifest, log)? {
            for entry in &segment.entries {
                let list = if entry.is_snapshot() { &mut history.snapshots } else { &mut history.items };
                list.push(Item::of_entry(entry, Source::Entry(segment, entry)));
            }
        }
        history.items.sort_by_key(|i| (i.min, i.end.txid));
        history.snapshots.sort_by_key(|i| (i.end.txid, i.cost));
        Ok(history)
    }

    /// Everything that can be reached from the snapshots numbered in `starts`, without passing `limit`.
    fn reach(&self, starts: std::ops::Range<usize>, items: &[Item<'a>], limit: Txid) -> BTreeMap<Txid, Reached> {
        let mut reached = BTreeMap::new();
        for (i, snapshot) in self.snapshots[starts.clone()].iter().enumerate() {
            let start = Reached { pos: snapshot.end, cost: snapshot.cost, item: starts.start + i, from: None };
            reached.entry(snapshot.end.txid).or_insert(start);
        }
        let mut next_item = 0;
        let mut open: Vec<usize> = Vec::new();
        let mut at = reached.keys().next().copied();
        while let Some(txid) = at {
            let here = reached[&txid];
            while items.get(next_item).is_some_and(|i| i.min <= txid.next()) {
                open.push(next_item);
                next_item += 1;
            }
            open.retain(|i| items[*i].end.txid > txid);
            for i in open.iter().copied().filter(|i| items[*i].end.txid <= limit && items[*i].follows(here.pos)) {
                let end = items[i].end;
                let cost = here.cost.saturating_add(items[i].cost);
                let there = Reached { pos: end, cost, item: i, from: Some(txid) };
                let best = reached.entry(end.txid).or_insert(there);
                if best.from.is_some() && cost < best.cost {
                    *best = there;
                }
            }
            at = reached.range(txid.next()..).next().map(|(txid, _)| *txid);
        }
        reached
    }

    /// The cheapest chain from the newest snapshot to `target`.
    fn plan(&self, target: Txid) -> Result<RestorePlan, PlanError> {
        let base = self.snapshots.iter().rposition(|s| s.end.txid <= target);
        let base = base.ok_or(PlanError::NoSnapshot { txid: target })?;
        let newest = self.snapshots[base].end.txid;
        // Several snapshots may end there; they are sorted by cost.
        let base = self.snapshots.iter().position(|s| s.end.txid == newest).expect("this one at least");
        let mut items: Vec<Item<'a>> = self.items.iter().copied().filter(|i| i.end.txid > newest).collect();
        items.extend(self.part_of_bundle(target));
        items.sort_by_key(|i| (i.min, i.end.txid));
        let reached = self.reach(base..base + 1, &items, target);
        let Some(mut at) = reached.get(&target).copied() else {
            if let Some(file) = self.closed_around(target) {
                return Err(PlanError::NeedIndex { key: file.key.clone() });
            }
            let last = reached.values().next_back().expect("the snapshot at least");
            return Err(self.what_is_missing(last.pos, target));
        };
        let mut path = Vec::new();
        while let Some(from) = at.from {
            path.push((from, items[at.item]));
            at = reached[&from];
        }
        path.reverse();
        let start = self.snapshots[base];
        let last = path.last().map_or(start, |(_, item)| *item);
        Ok(RestorePlan {
            page_size: last.page_size,
            commit: last.commit,
            pos: last.end,
            time: last.time,
            steps: steps(start, &path),
        })
    }

    /// The way to a target inside a bundle: one item that ends there.
    fn part_of_bundle(&self, target: Txid) -> Option<Item<'a>> {
        let inside = |f: &ManifestFile| f.min_txid <= target && target < f.max_txid;
        let (file, entries) = self.bundles.iter().find(|(file, _)| inside(file))?;
        let at = entries.iter().position(|e| e.max_txid == target)?;
        let item = Item::of_entry(&entries[at], Source::InBundle(file));
        let bytes: u64 = entries[..=at].iter().map(|e| e.len).fold(0, u64::saturating_add);
        Some(Item { min: file.min_txid, pre: file.pre_apply, cost: bytes.saturating_add(REQUEST_COST), ..item })
    }

    /// The bundle inside which `txid` lies, when its index is not known.
    fn closed_around(&self, txid: Txid) -> Option<&'a ManifestFile> {
        self.closed.iter().copied().find(|f| f.min_txid <= txid && txid < f.max_txid)
    }

    fn what_is_missing(&self, last: Pos, target: Txid) -> PlanError {
        let next = last.txid.next();
        let other = self.items.iter().find(|i| i.min == next && i.pre.is_some_and(|pre| pre != last.checksum));
        if let Some(expected) = other.and_then(|i| i.pre) {
            return PlanError::Diverged { at: last, expected };
        }
        let resumes = self.items.iter().map(|i| i.min).filter(|min| *min > next).min();
        let end = resumes.and_then(Txid::previous).unwrap_or(target).min(target);
        PlanError::Gap { first: next, last: end, txid: target }
    }

    /// The TXID that is asked for.
    fn resolve(&self, target: Target) -> Result<Txid, PlanError> {
        let ends = || self.items.iter().chain(&self.snapshots);
        let latest = ends().map(|i| i.end.txid).max().ok_or(PlanError::Empty)?;
        match target {
            Target::Latest => Ok(latest),
            Target::Txid(txid) => self.resolve_txid(txid),
            Target::Time(time) => {
                let points = self.points();
                let first = points.iter().map(|p| p.time).min().ok_or(PlanError::NoSnapshot { txid: latest })?;
                let first = self.closed.iter().map(|f| f.min_time).fold(first, Timestamp::min);
                // What cannot be reached may be newer: then the plan will say what is missing. Of bundles only the ends count,
                // so that the answer does not depend on which indexes are known.
                let last = ends().map(|i| i.time).max().expect("not empty");
                match self.at_or_before(time, &points)? {
                    Some(txid) if time <= last => Ok(txid),
                    _ => Err(PlanError::OutOfRange { time, first, last }),
                }
            }
            Target::TimeNearest(time) => {
                let points = self.points();
                let first = points.first().ok_or(PlanError::NoSnapshot { txid: latest })?.pos.txid;
                Ok(self.at_or_before(time, &points)?.unwrap_or(first))
            }
        }
    }

    fn resolve_txid(&self, txid: Txid) -> Result<Txid, PlanError> {
        let ends = self.items.iter().chain(&self.snapshots).map(|i| i.end.txid);
        let commits = self.bundles.iter().flat_map(|(_, entries)| entries.iter().map(|e| e.max_txid));
        // The first commit of a closed bundle is taken to be its first TXID.
        let starts = self.closed.iter().map(|f| f.min_txid);
        let (mut below, mut above) = (None, None);
        for known in ends.chain(commits) {
            match known.cmp(&txid) {
                std::cmp::Ordering::Equal => return Ok(txid),
                std::cmp::Ordering::Less => below = below.max(Some(known)),
                std::cmp::Ordering::Greater => above = Some(above.map_or(known, |a: Txid| a.min(known))),
            }
        }
        if let Some(file) = self.closed_around(txid) {
            return Err(PlanError::NeedIndex { key: file.key.clone() });
        }
        let above = starts.filter(|start| *start > txid).chain(above).min();
        Err(PlanError::NotAPoint { txid, below, above })
    }

    /// The greatest TXID committed at or before `time`, whether it can be reached or not: a hole must not be hidden by an older
    /// state. `None` when there is none.
    fn at_or_before(&self, time: Timestamp, points: &[RestorePoint]) -> Result<Option<Txid>, PlanError> {
        let first = points.first().map(|p| p.pos.txid);
        let ends = self.items.iter().chain(&self.snapshots).map(|i| (i.time, i.end.txid));
        let commits = self.bundles.iter().flat_map(|(_, entries)| entries.iter().map(|e| (e.timestamp, e.max_txid)));
        let known =
            ends.chain(commits).filter(|(t, txid)| *t <= time && Some(*txid) >= first).map(|(_, txid)| txid).max();
        let may_hide = |f: &&&ManifestFile| f.min_time <= time && f.max_time > time && Some(f.max_txid) > known;
        match self.closed.iter().filter(may_hide).max_by_key(|f| f.max_txid) {
            Some(file) => Err(PlanError::NeedIndex { key: file.key.clone() }),
            None => Ok(known),
        }
    }

    fn points(&self) -> Vec<RestorePoint> {
        let Some(latest) = self.items.iter().chain(&self.snapshots).map(|i| i.end.txid).max() else {
            return Vec::new();
        };
        let reached = self.reach(0..self.snapshots.len(), &self.items, latest);
        let mut points: BTreeMap<Txid, RestorePoint> = BTreeMap::new();
        let mut add = |item: &Item<'_>, kind: PointKind| {
            let point = RestorePoint {
                pos: item.end,
                time: item.time,
                kind,
                pages: item.pages,
                bytes: item.bytes,
                page_size: item.page_size,
                commit: item.commit,
            };
            let best = points.entry(item.end.txid).or_insert_with(|| point.clone());
            if (kind as u8) < (best.kind as u8) {
                *best = point;
            }
        };
        for snapshot in &self.snapshots {
            add(snapshot, PointKind::Snapshot);
        }
        for item in &self.items {
            let is_commit = matches!(item.source, Source::Entry(..));
            if is_reached(&reached, item) {
                add(item, if is_commit { PointKind::Commit } else { PointKind::Merged });
            }
        }
        for (file, entries) in &self.bundles {
            let Some(start) = start_of(&reached, &Item::of_file(file)) else { continue };
            for entry in entries.iter().filter(|e| e.max_txid > start) {
                add(&Item::of_entry(entry, Source::InBundle(file)), PointKind::Commit);
            }
        }
        points.into_values().collect()
    }
}

/// The first reached position that `item` may follow.
fn start_of(reached: &BTreeMap<Txid, Reached>, item: &Item<'_>) -> Option<Txid> {
    let from = item.min.previous()?;
    let mut before = reached.range(from..item.end.txid).map(|(_, r)| r.pos);
    before.find(|pos| item.follows(*pos)).map(|pos| pos.txid)
}

fn is_reached(reached: &BTreeMap<Txid, Reached>, item: &Item<'_>) -> bool {
    start_of(reached, item).is_some()
}

/// The chain as objects to read: neighbours of one log segment become one step.
fn steps(start: Item<'_>, path: &[(Txid, Item<'_>)]) -> Vec<PlanStep> {
    let mut steps: Vec<PlanStep> = Vec::new();
    let first = (Txid::FIRST, start);
    for (after, item) in std::iter::once(&first).chain(path) {
        match item.source {
            Source::File(file) | Source::InBundle(file) => steps.push(match file.kind {
                FileKind::Snapshot => PlanStep::Snapshot(file.clone()),
                FileKind::Merged => PlanStep::Merged(file.clone()),
                FileKind::Bundle => PlanStep::Bundle { file: file.clone(), after: *after, through: item.end.txid },
            }),
            Source::Entry(segment, entry) => match steps.last_mut() {
                Some(PlanStep::Segment { seq, entries, .. }) if *seq == segment.seq => entries.push(entry.clone()),
                _ => steps.push(PlanStep::Segment {
                    seq: segment.seq,
                    key: segment.key.clone(),
                    size: segment.size,
                    entries: vec![entry.clone()],
                }),
            },
        }
    }
    steps
}

#[cfg(test)]
mod tests;
