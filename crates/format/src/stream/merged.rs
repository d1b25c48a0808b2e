//! Commits that were merged: of each page the newest copy only.
//!
//! ```text
//! record (as of transactions, count: pages) | checksum of each state between | page number, size of each | pages
//! ```
//!
//! What holds for every one that is written or accepted here:
//!
//! 1. The commits have consecutive TXIDs, two at least: each state between has the checksum that stands at its place.
//! 2. Pages ascend, none lies behind the end of the database, and their packed forms lie back to back and fill the frame.

use std::ops::Range;

use super::{HEADER_SIZE, LEN_MAX, MERGED, Span, WHAT, finish, refused, transactions, whole};
use crate::error::{DecodeError, ErrorKind};
use crate::types::{Checksum, PageNumber, Pos, Txid};

/// Size in bytes of a checksum.
const CHECKSUM_SIZE: usize = 8;
/// Size in bytes of what is said of a page: number, and size of its packed form.
const PAGE_SIZE: usize = 8;

/// Commits, of which only what they lead to is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// From where to where they lead.
    pub span: Span,
    /// The positions between, in order: one less than there are commits.
    pub between: Vec<Pos>,
    /// Each changed page, ascending, and where in the frame its packed form lies, as in an LTX file.
    pub pages: Vec<(PageNumber, Range<usize>)>,
}

/// How many states lie between the ends of consecutive commits.
fn states_between(span: &Span) -> u64 {
    span.after.txid.get() - span.before.txid.get() - 1
}

/// Bytes of a frame for so many commits and pages, whose packed forms have so many bytes, without the header of the frame.
pub fn merged_size(commits: usize, pages: usize, bytes: usize) -> usize {
    transactions::SIZE + commits.saturating_sub(1) * CHECKSUM_SIZE + pages * PAGE_SIZE + bytes
}

/// The bytes of a frame with commits that were merged: the checksums of the states between, and the pages with their packed forms.
///
/// Panics when they do not make a frame: they are our own.
pub fn encode_merged(span: &Span, between: &[Checksum], pages: &[(PageNumber, &[u8])]) -> Vec<u8> {
    let packed = pages.iter().map(|(_, page)| page.len()).sum();
    let size = merged_size(between.len() + 1, pages.len(), packed);
    assert!(size <= LEN_MAX, "a frame of {size} bytes");
    assert!(span.before.txid < span.after.txid, "commits lead on");
    assert!(!between.is_empty() && between.len() as u64 == states_between(span), "each state between has a checksum");
    assert!(pages.is_sorted_by(|a, b| a.0 < b.0), "pages ascend");
    assert!(pages.iter().all(|(pgno, page)| span.commit.contains(*pgno) && !page.is_empty()), "each page is there");
    let mut bytes = Vec::with_capacity(HEADER_SIZE + size);
    bytes.extend_from_slice(&[0; HEADER_SIZE]);
    bytes.extend_from_slice(&span.record(u32::try_from(pages.len()).expect("bounded by LEN_MAX")));
    between.iter().for_each(|checksum| bytes.extend_from_slice(&checksum.get().to_be_bytes()));
    for (pgno, page) in pages {
        bytes.extend_from_slice(&pgno.get().to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(page.len()).expect("bounded by LEN_MAX").to_be_bytes());
    }
    pages.iter().for_each(|(_, page)| bytes.extend_from_slice(page));
    finish(MERGED, bytes)
}

impl Merged {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = whole(payload, transactions::SIZE)?;
        let (span, count) = Span::read(record)?;
        let (between, rest) = states(&span, &payload[transactions::SIZE..])?;
        let wrong = || refused(ErrorKind::Index, transactions::COUNT.offset);
        let table = (count as usize).checked_mul(PAGE_SIZE).and_then(|size| rest.get(..size)).ok_or_else(wrong)?;
        let mut at = HEADER_SIZE + payload.len() - rest.len() + table.len();
        let mut pages: Vec<(PageNumber, Range<usize>)> = Vec::with_capacity(count as usize);
        for entry in table.as_chunks::<PAGE_SIZE>().0 {
            let (pgno, size) = entry.split_at(PAGE_SIZE / 2);
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("half of an entry"));
            let pgno = PageNumber::new(number(pgno)).filter(|pgno| span.commit.contains(*pgno)).ok_or_else(wrong)?;
            let size = number(size) as usize;
            let ascends = pages.last().is_none_or(|(before, _)| *before < pgno);
            if !ascends || size == 0 || size > HEADER_SIZE + payload.len() - at {
                return Err(wrong());
            }
            pages.push((pgno, at..at + size));
            at += size;
        }
        if at != HEADER_SIZE + payload.len() {
            return Err(DecodeError::new(ErrorKind::Trailing, WHAT, at as u64));
        }
        Ok(Self { span, between, pages })
    }
}

/// The positions between the ends, and what follows them.
fn states<'a>(span: &Span, bytes: &'a [u8]) -> Result<(Vec<Pos>, &'a [u8]), DecodeError> {
    let count = usize::try_from(states_between(span)).ok().filter(|count| *count > 0);
    let size = count.and_then(|count| count.checked_mul(CHECKSUM_SIZE));
    let wrong = || refused(ErrorKind::Txid, transactions::AFTER_TXID.offset);
    let (sums, rest) = size.and_then(|size| bytes.split_at_checked(size)).ok_or_else(wrong)?;
    let mut txid: Txid = span.before.txid;
    let mut between = Vec::with_capacity(sums.len() / CHECKSUM_SIZE);
    for (index, sum) in sums.as_chunks::<CHECKSUM_SIZE>().0.iter().enumerate() {
        let offset = transactions::SIZE + index * CHECKSUM_SIZE;
        let checksum = Checksum::from_raw(u64::from_be_bytes(*sum));
        txid = txid.next();
        between.push(Pos { txid, checksum: checksum.ok_or_else(|| refused(ErrorKind::PostChecksum, offset))? });
    }
    Ok((between, rest))
}
