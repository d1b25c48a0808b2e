//! How to go on after a start: local state and local log against the end of the log in the store.
//!
//! The store decides. What the local log holds beyond the store's end is uploaded when it joins there exactly; otherwise the
//! store's end becomes the position, and comparing the database with it (page diff) makes the next transaction out of whatever
//! differs. So no case loses what the database holds; what may be lost is the separateness of commits that were not uploaded.
//!
//! | store | local state | local log | decision |
//! | --- | --- | --- | --- |
//! | empty | none | any | [`Start::Fresh`]: new lineage, snapshot |
//! | empty | there | whole history, from the first segment | `Fresh`: same lineage, upload it |
//! | empty | there | anything else | `Fresh`: same lineage, snapshot; loud when the store once held something |
//! | another lineage | there | any | [`Start::WrongLineage`]: refuse |
//! | there | none or damaged | any | [`Start::Adopt`]: no state |
//! | there | same lineage | the store's end is a position in it | [`Start::Continue`]: upload the rest, under new sequence numbers |
//! | at the local position | same lineage | nothing beyond | `Continue`, nothing to upload |
//! | at the confirmed position | same lineage | what was beyond is unreadable | `Adopt`: local log lost |
//! | behind the confirmed position | same lineage | does not join | `Adopt`: the store is behind, loud |
//! | elsewhere | same lineage | nothing unsent | `Adopt`: the store is ahead |
//! | elsewhere | same lineage | unsent segments | [`Start::Conflict`]: another writer, loud |
//!
//! A torn or unreadable segment ends the part of the local log that can be used. The state may be older or newer than that part:
//! [`LocalTail`] says which, because the page table belongs to the state.

use std::fmt;

use rhyolite_format::segment::{Segment, SegmentEntry};
use rhyolite_format::state::LocalState;
use rhyolite_format::{Lineage, Pos, Seq};

/// The end of the log in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEnd {
    /// The history in the store.
    pub lineage: Lineage,
    /// The last transaction; `None` when there is an identity and no transaction yet.
    pub pos: Option<Pos>,
    /// The first sequence number without an object.
    pub next_seq: Seq,
}

/// What to do first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The store holds nothing: write its identity, then the history from its first segment.
    Fresh {
        /// The lineage to go on with; `None`: draw a new one.
        lineage: Option<Lineage>,
        /// What to upload first.
        first: FirstUpload,
        /// The position that the store had confirmed before it lost everything. To be said loudly.
        lost: Option<Pos>,
    },
    /// The local log joins the end of the log in the store.
    Continue {
        /// Local segments before the store's end: they can be forgotten, as can all that `upload` does not name.
        confirmed: Vec<Seq>,
        /// Local segments to upload, in order. The last may have to be finished first.
        upload: Vec<Seq>,
        /// Sequence number of the first upload; the others follow, whatever they were called here.
        next_seq: Seq,
        /// The position after all of them.
        end: Option<Pos>,
        /// How the local state relates to `end`.
        tail: LocalTail,
    },
    /// The store's end becomes the position; the database is compared with it. The local log is dropped.
    Adopt {
        /// The history in the store.
        lineage: Lineage,
        /// Its last transaction; `None`: begin with a snapshot.
        at: Option<Pos>,
        /// Where the log goes on.
        next_seq: Seq,
        /// Why.
        reason: AdoptReason,
    },
    /// Somebody else added to the log while we hold unsent segments. As [`Start::Adopt`]; to be said loudly.
    Conflict {
        /// The last transaction in the store.
        at: Option<Pos>,
        /// Where the log goes on.
        next_seq: Seq,
        /// The last transaction of the local log. Those that the store does not hold stop being commits of their own: the page
        /// diff takes in what they changed.
        local: Option<Pos>,
        /// First and last unsent local segment.
        unsent: (Seq, Seq),
    },
    /// The store holds another history than the one this database belongs to. Nothing may be written.
    WrongLineage {
        /// Of the local state.
        local: Lineage,
        /// In the store.
        store: Lineage,
    },
}

/// How the position of the local state, to which the page table belongs, relates to the end of the usable local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalTail {
    /// They are the same.
    Matches,
    /// The local log holds transactions after the state: the page table can be brought forward by reading them.
    Newer,
    /// The local log had come further than what can be read of it, or elsewhere: the page table is of no use, and the database
    /// must be compared with the end.
    Lost,
}

/// What an empty store gets first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstUpload {
    /// A snapshot of the database.
    Snapshot,
    /// These local segments: they hold the history from its beginning.
    Segments(Vec<Seq>),
}

/// Why the store's end is taken as the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptReason {
    /// There is no usable local state.
    NoState,
    /// The store stands where the local log was last confirmed, but what came after cannot be read.
    LocalLogLost,
    /// The store does not hold what it had confirmed.
    StoreBehind {
        /// The confirmed position.
        durable: Pos,
    },
    /// The store holds transactions that did not come from here, and nothing is unsent. An old state folder, or another writer.
    StoreAhead,
}

impl Start {
    /// Whether a person should hear of it (a warning, not only a note).
    pub fn is_loud(&self) -> bool {
        match self {
            Self::Fresh { lost, .. } => lost.is_some(),
            Self::Continue { .. } => false,
            Self::Adopt { reason, .. } => matches!(reason, AdoptReason::StoreBehind { .. } | AdoptReason::StoreAhead),
            Self::Conflict { .. } | Self::WrongLineage { .. } => true,
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |pos: &Option<Pos>| pos.map_or("nothing".to_owned(), |p| format!("TXID {}", p.txid));
        match self {
            Self::Fresh { lost: Some(lost), .. } => {
                write!(f, "the store is empty, although it had confirmed TXID {}: beginning again", lost.txid)
            }
            Self::Fresh { lineage: None, .. } => f.write_str("the store is empty: beginning a new history"),
            Self::Fresh { lineage: Some(lineage), .. } => {
                write!(f, "the store is empty: beginning with the local history {lineage}")
            }
            Self::Continue { upload, end, tail, .. } => {
                write!(f, "going on after {} with {} segments to upload", at(end), upload.len())?;
                if *tail == LocalTail::Lost { f.write_str("; the end of the local log is unreadable") } else { Ok(()) }
            }
            Self::Adopt { at: pos, reason, .. } => {
                match reason {
                    AdoptReason::NoState => f.write_str("no usable local state")?,
                    AdoptReason::LocalLogLost => f.write_str("the local log is unreadable")?,
                    AdoptReason::StoreBehind { durable } => {
                        write!(f, "the store lost what it had confirmed, up to TXID {}", durable.txid)?;
                    }
                    AdoptReason::StoreAhead => {
                        f.write_str("the store holds transactions that were not uploaded from here")?
                    }
                }
                write!(f, ": comparing the database with the store's end, {}", at(pos))
            }
            Self::Conflict { at: pos, local, unsent, .. } => write!(
                f,
                "another writer added to the log: the store ends at {}, the local log at {}; local segments {} to {} were not \
                 uploaded and are replaced by a comparison of the database with the store's end",
                at(pos),
                at(local),
                unsent.0,
                unsent.1
            ),
            Self::WrongLineage { local, store } => write!(
                f,
                "this database belongs to history {local}, but the store holds history {store}, that of another database or of \
                 another copy of this one. Give this database a prefix of its own. If the store's history is the one to go on \
                 with, move the state folder away: the database is then compared with the store"
            ),
        }
    }
}

/// Decides. `local_log` is what can be read of the local segments, ascending; a segment that cannot be read is left out, and a
/// torn one holds what comes before the tear. `store` is `None` when the store holds no identity.
pub fn reconcile(state: Option<&LocalState>, local_log: &[Segment], store: Option<&StoreEnd>) -> Start {
    match (state, store) {
        (None, None) => Start::Fresh { lineage: None, first: FirstUpload::Snapshot, lost: None },
        (Some(state), None) => fresh(state, local_log),
        (None, Some(store)) => adopt(store, AdoptReason::NoState),
        (Some(state), Some(store)) if state.lineage != store.lineage => {
            Start::WrongLineage { local: state.lineage, store: store.lineage }
        }
        (Some(state), Some(store)) => same_lineage(state, local_log, store),
    }
}

/// Whether somebody else has added to the log since the store confirmed something here last: it ends beyond that, at a position to which nothing of the local log leads. With a
/// local log that is not whole nobody can tell: the end may be what it lacks.
pub fn is_overtaken(state: &LocalState, local_log: &[Segment], store: &StoreEnd) -> bool {
    let (Some(end), Some(durable)) = (store.pos, state.durable) else { return false };
    let is_own = |segment: &Segment| segment.entries.iter().any(|entry| entry.end() == end);
    state.lineage == store.lineage
        && end.txid > durable.txid
        && is_whole(state, durable, local_log)
        && state.pos != Some(end)
        && !local_log.iter().any(is_own)
}

/// Whether the local log leads from the confirmed position to that of the state.
fn is_whole(state: &LocalState, durable: Pos, local_log: &[Segment]) -> bool {
    let leads = |run: &Vec<&Segment>| {
        let joins = start_of(run) == Some(durable) || run.iter().any(|s| s.end() == Some(durable));
        joins && run.iter().flat_map(|s| &s.entries).any(|entry| Some(entry.end()) == state.pos)
    };
    state.pos == Some(durable) || runs(state.lineage, local_log).iter().any(leads)
}

fn adopt(store: &StoreEnd, reason: AdoptReason) -> Start {
    Start::Adopt { lineage: store.lineage, at: store.pos, next_seq: store.next_seq, reason }
}

/// The local segments that form chains, each as long as it goes. Segments without a transaction at an end are left out: they say
/// nothing.
fn runs(lineage: Lineage, local_log: &[Segment]) -> Vec<Vec<&Segment>> {
    let mut runs: Vec<Vec<&Segment>> = Vec::new();
    for segment in local_log.iter().filter(|s| s.header.lineage == lineage) {
        match runs.last_mut() {
            Some(run) if end_of(run).is_none() || follows(segment, end_of(run)) => run.push(segment),
            _ => runs.push(vec![segment]),
        }
    }
    for run in &mut runs {
        while run.last().is_some_and(|s| s.entries.is_empty()) {
            run.pop();
        }
    }
    runs
}

/// How many segments of `run` the store has, if the run joins its end there. Positions decide, not sequence numbers: a segment
/// that did not get there may get another one. Only a run that begins with a snapshot, which follows anything, must come next.
fn held_by(run: &[&Segment], store: &StoreEnd) -> Option<usize> {
    let first = run.first()?;
    let starts_there = start_of(run).is_some_and(|start| Some(start) == store.pos);
    if starts_there || (first.header.seq == store.next_seq && follows(first, store.pos)) {
        return Some(0);
    }
    let end = store.pos?;
    run.iter().position(|s| s.end() == Some(end)).map(|index| index + 1)
}

/// Whether the first transaction of `segment` may come right after `pos`. Without a transaction it may come anywhere.
fn follows(segment: &Segment, pos: Option<Pos>) -> bool {
    segment.entries.first().is_none_or(|first| match (first.pre_apply, pos) {
        (None, None) => true,
        (None, Some(pos)) => first.max_txid > pos.txid,
        (Some(_), None) => false,
        (Some(pre), Some(pos)) => first.min_txid == pos.txid.next() && pre == pos.checksum,
    })
}

fn end_of(segments: &[&Segment]) -> Option<Pos> {
    segments.iter().rev().find_map(|s| s.end())
}

/// The position before the first transaction; `None` when that is a snapshot.
fn start_of(segments: &[&Segment]) -> Option<Pos> {
    let first = segments.iter().find_map(|s| s.entries.first())?;
    Some(Pos { txid: first.min_txid.previous()?, checksum: first.pre_apply? })
}

fn seqs(segments: &[&Segment]) -> Vec<Seq> {
    segments.iter().map(|s| s.header.seq).collect()
}

/// How `state` relates to the chain that starts at `start` and holds `segments`.
fn tail_of(state: &LocalState, start: Option<Pos>, segments: &[&Segment]) -> LocalTail {
    let ends = segments.iter().flat_map(|s| s.entries.iter().map(SegmentEntry::end));
    if end_of(segments).or(start) == state.pos {
        LocalTail::Matches
    } else if state.pos == start || ends.map(Some).any(|end| end == state.pos) {
        LocalTail::Newer
    } else {
        LocalTail::Lost
    }
}

fn fresh(state: &LocalState, local_log: &[Segment]) -> Start {
    let local = runs(state.lineage, local_log).into_iter().next().unwrap_or_default();
    let from_the_start = local.first().is_some_and(|s| s.header.seq == Seq::FIRST && follows(s, None));
    let whole = from_the_start && tail_of(state, None, &local) != LocalTail::Lost;
    let first = if whole { FirstUpload::Segments(seqs(&local)) } else { FirstUpload::Snapshot };
    Start::Fresh { lineage: Some(state.lineage), first, lost: state.durable }
}

fn same_lineage(state: &LocalState, local_log: &[Segment], store: &StoreEnd) -> Start {
    let runs = runs(state.lineage, local_log);
    let joined = runs.iter().find_map(|run| Some((run.as_slice(), held_by(run, store)?)));
    let nothing: &[&Segment] = &[];
    let at_the_end = store.pos == state.pos;
    let Some((local, held)) = joined.or_else(|| at_the_end.then_some((nothing, 0))) else {
        return not_joined(state, local_log, store);
    };
    let start = if held > 0 { start_of(local) } else { store.pos };
    let end = end_of(local).or(start);
    let tail = tail_of(state, start, local);
    let (confirmed, upload) = (seqs(&local[..held]), seqs(&local[held..]));
    Start::Continue { confirmed, upload, next_seq: store.next_seq, end, tail }
}

/// The local log does not join the store's end.
fn not_joined(state: &LocalState, local_log: &[Segment], store: &StoreEnd) -> Start {
    let txid = |pos: Option<Pos>| pos.map(|p| p.txid);
    if store.pos == state.durable && store.next_seq == state.next_seq {
        return adopt(store, AdoptReason::LocalLogLost);
    }
    if let Some(durable) = state.durable.filter(|d| Some(d.txid) > txid(store.pos)) {
        return adopt(store, AdoptReason::StoreBehind { durable });
    }
    let mut unsent = local_log.iter().filter(|s| is_unsent(s, state)).map(|s| s.header.seq);
    match unsent.next() {
        Some(first) => {
            let last = unsent.next_back().unwrap_or(first);
            Start::Conflict { at: store.pos, next_seq: store.next_seq, local: state.pos, unsent: (first, last) }
        }
        None => adopt(store, AdoptReason::StoreAhead),
    }
}

/// Whether `segment` holds transactions after the last confirmed one.
fn is_unsent(segment: &Segment, state: &LocalState) -> bool {
    let is_later = segment.end().is_some_and(|end| Some(end.txid) > state.durable.map(|d| d.txid));
    segment.header.lineage == state.lineage && is_later
}

#[cfg(test)]
mod tests;
