//! Frames of what a log holds: each commit by itself, or as few as possible ([`rhyolite_logic::merge`]).

use rhyolite_format::ltx::PageIndex;
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::stream::{Span, encode_merged, encode_transactions};
use rhyolite_format::{Checksum, PageNumber};
use rhyolite_logic::merge::{Commit, Run, runs};

use super::FRAME_BYTES;
use super::feed::Origin;

/// In which form somebody wants commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each by itself, as it lies in the log.
    Each,
    /// Those of a backlog as one.
    Merged,
}

/// A commit as it lies in the log.
pub(super) type Logged<'a> = (&'a SegmentEntry, &'a [u8]);

/// Frames that lead through these consecutive commits, none of which is a snapshot, and what each says of itself.
pub(super) fn frames(form: Form, origin: Origin, commits: &[Logged<'_>]) -> Vec<(Span, Vec<u8>)> {
    match form {
        Form::Each => {
            groups(commits, |group: &Logged<'_>| group.1.len() as u64).filter_map(|group| each(origin, group)).collect()
        }
        Form::Merged => merged(origin, commits),
    }
}

/// Commits by the frames in which they are sent.
pub(super) fn groups<T>(mut commits: &[T], size: impl Fn(&T) -> u64) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = commits.iter().take_while(|commit| {
            bytes += size(commit);
            bytes <= FRAME_BYTES as u64
        });
        let (group, rest) = commits.split_at_checked(fits.count().max(1))?;
        commits = rest;
        Some(group)
    })
}

fn each(origin: Origin, group: &[Logged<'_>]) -> Option<(Span, Vec<u8>)> {
    let span = span_of(origin, group.first()?.0, group.last()?.0)?;
    Some((span, encode_transactions(&span, group.iter().map(|(_, ltx)| *ltx))))
}

/// What cannot be merged is sent as it is: it is for whoever applies it to say what is wrong with it.
fn merged(origin: Origin, commits: &[Logged<'_>]) -> Vec<(Span, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut rest = commits;
    while !rest.is_empty() {
        let mut backlog = Vec::new();
        for (index, (entry, ltx)) in rest.iter().enumerate() {
            let goes_on = index == 0 || is_next(rest[index - 1].0, entry) && entry.page_size == rest[0].0.page_size;
            let is_one = entry.min_txid == entry.max_txid;
            match pages(ltx).filter(|_| goes_on && is_one) {
                Some(pages) => backlog.push(Commit { size: entry.commit, pages }),
                None => break,
            }
        }
        for run in runs(&backlog, FRAME_BYTES) {
            frames.extend(frame_of(origin, &run, &rest[run.commits.clone()]));
        }
        if backlog.is_empty() {
            frames.extend(each(origin, &rest[..1]));
        }
        rest = &rest[backlog.len().max(1)..];
    }
    frames
}

fn frame_of(origin: Origin, run: &Run<'_>, commits: &[Logged<'_>]) -> Option<(Span, Vec<u8>)> {
    let [(first, _), .., (last, _)] = commits else { return each(origin, commits) };
    let span = span_of(origin, first, last)?;
    let between: Vec<Checksum> = commits[..commits.len() - 1].iter().map(|(entry, _)| entry.post_apply).collect();
    Some((span, encode_merged(&span, &between, &run.pages)))
}

/// The packed form of each page of an LTX file; `None` when that is not to be read.
fn pages(ltx: &[u8]) -> Option<Vec<(PageNumber, &[u8])>> {
    let range = PageIndex::locate(ltx, ltx.len() as u64).ok()?;
    let place = |offset: u64| usize::try_from(offset).ok();
    let index = PageIndex::decode(ltx.get(place(range.start)?..place(range.end)?)?, range.start).ok()?;
    let entries = index.0.into_iter().map(|entry| {
        let page = ltx.get(place(entry.offset)?..place(entry.offset.checked_add(entry.size)?)?)?;
        (!page.is_empty()).then_some((entry.pgno, page))
    });
    entries.collect()
}

/// Whether `entry` goes on where `before` ends.
pub(super) fn is_next(before: &SegmentEntry, entry: &SegmentEntry) -> bool {
    entry.min_txid == before.max_txid.next() && entry.pre_apply == Some(before.post_apply)
}

/// Where consecutive entries lead from and to. `None` for a snapshot, before which there is nothing.
pub(super) fn span_of(origin: Origin, first: &SegmentEntry, last: &SegmentEntry) -> Option<Span> {
    let before = rhyolite_format::Pos { txid: first.min_txid.previous()?, checksum: first.pre_apply? };
    Some(Span {
        lineage: origin.lineage,
        epoch: origin.epoch,
        before,
        after: last.end(),
        timestamp: last.timestamp,
        page_size: last.page_size,
        commit: last.commit,
    })
}
