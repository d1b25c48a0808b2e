//! Frames of the live stream between nodes (docs/spec/stream.md).
//!
//! ```text
//! header 16: version, kind, length, CRC | payload
//!
//! database       what is served, and where it is         lineage, epoch, position, name
//! gone           it is served no more                    name
//! heartbeat      the server lives                        its clock, databases that are not ready
//! transactions   one or more consecutive commits         lineage, epoch, position before and after, LTX files
//! end            nothing more comes, and why             reason, the server's position, text
//! leaving        the server is about to give its role up nothing
//! reached        from the follower: what it has          position
//! merged         consecutive commits, newest pages only  as transactions, with pages in place of LTX files
//! ```
//!
//! What holds for every frame that is written or accepted here:
//!
//! 1. The CRC covers header and payload. A length above [`LEN_MAX`] is refused before anything is read.
//! 2. The LTX files of a frame lie back to back and fill it; there is at least one; the position after them is a later one.
//!
//! That the LTX files join each other, and what they say, is for whoever applies them: the checksum of the whole database proves it.

use std::ops::Range;

use crate::crc::Crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{
    Field, stream_database as database, stream_end as end, stream_frame as head, stream_heartbeat as heartbeat,
    stream_reached as reached, stream_transactions as transactions,
};
use crate::types::{Checksum, Epoch, Lineage, PageCount, PageSize, Pos, Timestamp, Txid};

mod merged;

pub use merged::{Merged, encode_merged, merged_size};

/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of a frame's header in bytes.
pub const HEADER_SIZE: usize = head::SIZE;
/// The most bytes that may follow a header.
pub const LEN_MAX: usize = 16 << 20;
/// The longest name of a database in bytes.
pub const NAME_SIZE_MAX: usize = 4096;
/// The longest explanation of an end in bytes.
pub const TEXT_SIZE_MAX: usize = 1024;

/// Size of an LTX file without pages (LTX specification, section 2).
const LTX_SIZE_MIN: usize = 131;
/// Size in bytes of the length of one LTX file.
const LENGTH_SIZE: usize = 4;

const WHAT: &str = "stream frame";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A database that is served.
    Database(Database),
    /// A database that is served no more.
    Gone {
        /// Its name.
        name: String,
    },
    /// The server lives.
    Heartbeat {
        /// Its clock.
        time: Timestamp,
        /// Databases that are to be served as soon as it is known where they are.
        starting: u32,
    },
    /// Commits, each by itself.
    Transactions(Transactions),
    /// Commits that were merged.
    Merged(Merged),
    /// Nothing more comes.
    End(End),
    /// The server, a primary, is about to give its role up: its lease is to be looked at often.
    Leaving,
    /// The follower has the database at this position, on its disk.
    Reached(Pos),
}

/// A database that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// By which it is asked for: 1 to [`NAME_SIZE_MAX`] bytes.
    pub name: String,
    /// Its history.
    pub lineage: Lineage,
    /// The right to write under which it is captured.
    pub epoch: Epoch,
    /// Its last commit.
    pub pos: Pos,
}

/// What a frame of commits says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The history.
    pub lineage: Lineage,
    /// The right to write under which they are sent.
    pub epoch: Epoch,
    /// The database before them.
    pub before: Pos,
    /// The database after them.
    pub after: Pos,
    /// When the last of them was captured.
    pub timestamp: Timestamp,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database after them.
    pub commit: PageCount,
}

/// Commits, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transactions {
    /// From where to where they lead.
    pub span: Span,
    /// Where in the frame each LTX file lies.
    pub files: Vec<Range<usize>>,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// What comes next is not in the server's local log: the store has it, or will.
    Behind,
    /// The follower's position is not one of the server's history.
    Diverged,
    /// The follower's history is another one than the server's.
    WrongLineage,
    /// The database is served no more.
    Gone,
}

/// The last frame of a stream of commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// Where the server is.
    pub pos: Option<Pos>,
    /// One line, at most [`TEXT_SIZE_MAX`] bytes.
    pub text: String,
}

const DATABASE: u8 = 1;
const GONE: u8 = 2;
const HEARTBEAT: u8 = 3;
const TRANSACTIONS: u8 = 4;
const END: u8 = 5;
const LEAVING: u8 = 6;
const REACHED: u8 = 7;
const MERGED: u8 = 8;

impl EndReason {
    const ALL: [Self; 4] = [Self::Behind, Self::Diverged, Self::WrongLineage, Self::Gone];

    fn code(self) -> u8 {
        self as u8 + 1
    }
}

impl Frame {
    /// How long the whole frame is that begins with `bytes`; `None` while that is not known. Only what bounds the length is checked.
    pub fn len(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(error(ErrorKind::Version, head::VERSION).detail(format!("version {}", bytes[0])));
        }
        if bytes.len() < HEADER_SIZE {
            return Ok(None);
        }
        let len = head::LEN.u32(bytes) as usize;
        if len > LEN_MAX {
            return Err(error(ErrorKind::Field, head::LEN).detail(format!("{len} bytes, at most {LEN_MAX}")));
        }
        Ok(Some(HEADER_SIZE + len))
    }

    /// Reads exactly one frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
        let payload = payload(bytes, Self::len(bytes)?)?;
        match head::KIND.byte(bytes) {
            DATABASE => Database::decode(payload).map(Self::Database),
            GONE => text(payload, 0, NAME_SIZE_MAX).and_then(named).map(|name| Self::Gone { name }),
            HEARTBEAT if payload.len() == heartbeat::SIZE => Ok(Self::Heartbeat {
                time: Timestamp(heartbeat::TIME.i64(payload)),
                starting: heartbeat::STARTING.u32(payload),
            }),
            HEARTBEAT => Err(error(ErrorKind::Field, head::LEN)),
            TRANSACTIONS => Transactions::decode(payload).map(Self::Transactions),
            MERGED => Merged::decode(payload).map(Self::Merged),
            END => End::decode(payload).map(Self::End),
            LEAVING if payload.is_empty() => Ok(Self::Leaving),
            LEAVING => Err(error(ErrorKind::Field, head::LEN)),
            REACHED if payload.len() == reached::SIZE => {
                pos(payload, reached::TXID, reached::CHECKSUM).map(Self::Reached)
            }
            REACHED => Err(error(ErrorKind::Field, head::LEN)),
            kind => Err(error(ErrorKind::Field, head::KIND).detail(format!("kind {kind}"))),
        }
    }

    /// The bytes of a frame that holds no commits.
    ///
    /// Panics for one that does: its LTX files or pages are not in the value ([`encode_transactions`], [`encode_merged`]).
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Database(database) => finish(DATABASE, database.encode()),
            Self::Gone { name } => finish(GONE, begin(name.as_bytes())),
            Self::Heartbeat { time, starting } => {
                let mut record = [0; heartbeat::SIZE];
                heartbeat::TIME.put_i64(&mut record, time.0);
                heartbeat::STARTING.put_u32(&mut record, *starting);
                finish(HEARTBEAT, begin(&record))
            }
            Self::End(end) => finish(END, end.encode()),
            Self::Leaving => finish(LEAVING, begin(&[])),
            Self::Reached(pos) => {
                let mut record = [0; reached::SIZE];
                reached::TXID.put_u64(&mut record, pos.txid.get());
                reached::CHECKSUM.put_u64(&mut record, pos.checksum.get());
                finish(REACHED, begin(&record))
            }
            Self::Transactions(_) => panic!("commits are encoded with their files"),
            Self::Merged(_) => panic!("commits that were merged are encoded with their pages"),
        }
    }
}

/// Whether a frame has room for these LTX files.
pub fn has_room(files: usize, bytes: usize) -> bool {
    let size = files.checked_mul(LENGTH_SIZE).and_then(|size| size.checked_add(bytes));
    size.is_some_and(|size| size <= LEN_MAX - transactions::SIZE)
}

/// The bytes of a frame with these commits.
///
/// Panics when they do not make a frame: they are our own.
pub fn encode_transactions<'a>(span: &Span, files: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let (count, size) = files.clone().fold((0, 0), |(count, size), file| (count + 1, size + file.len()));
    assert!(count > 0 && has_room(count, size), "{count} files of {size} bytes in one frame");
    assert!(span.before.txid < span.after.txid, "commits lead on");
    let record = span.record(u32::try_from(count).expect("bounded by LEN_MAX"));
    let mut bytes = Vec::with_capacity(HEADER_SIZE + record.len() + count * LENGTH_SIZE + size);
    bytes.extend_from_slice(&[0; HEADER_SIZE]);
    bytes.extend_from_slice(&record);
    for file in files.clone() {
        assert!(file.len() >= LTX_SIZE_MIN, "an LTX file of {} bytes", file.len());
        bytes.extend_from_slice(&u32::try_from(file.len()).expect("bounded by LEN_MAX").to_be_bytes());
    }
    files.for_each(|file| bytes.extend_from_slice(file));
    finish(TRANSACTIONS, bytes)
}

impl Database {
    fn encode(&self) -> Vec<u8> {
        assert!((1..=NAME_SIZE_MAX).contains(&self.name.len()), "a name of {} bytes", self.name.len());
        let mut record = [0; database::SIZE];
        database::LINEAGE.put(&mut record, &self.lineage.0);
        database::EPOCH.put_u64(&mut record, self.epoch.get());
        database::TXID.put_u64(&mut record, self.pos.txid.get());
        database::CHECKSUM.put_u64(&mut record, self.pos.checksum.get());
        let mut bytes = begin(&record);
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }

    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = whole(payload, database::SIZE)?;
        Ok(Self {
            lineage: Lineage(database::LINEAGE.id(record)),
            epoch: epoch(record, database::EPOCH)?,
            pos: pos(record, database::TXID, database::CHECKSUM)?,
            name: text(payload, database::SIZE, NAME_SIZE_MAX).and_then(named)?,
        })
    }
}

impl Span {
    /// The record that begins a frame of commits; what `count` counts depends on its kind.
    fn record(&self, count: u32) -> [u8; transactions::SIZE] {
        let mut record = [0; transactions::SIZE];
        transactions::LINEAGE.put(&mut record, &self.lineage.0);
        transactions::EPOCH.put_u64(&mut record, self.epoch.get());
        transactions::BEFORE_TXID.put_u64(&mut record, self.before.txid.get());
        transactions::BEFORE_CHECKSUM.put_u64(&mut record, self.before.checksum.get());
        transactions::AFTER_TXID.put_u64(&mut record, self.after.txid.get());
        transactions::AFTER_CHECKSUM.put_u64(&mut record, self.after.checksum.get());
        transactions::TIMESTAMP.put_i64(&mut record, self.timestamp.0);
        transactions::PAGE_SIZE.put_u32(&mut record, self.page_size.get());
        transactions::COMMIT.put_u32(&mut record, self.commit.get());
        transactions::COUNT.put_u32(&mut record, count);
        record
    }

    /// Reads that record, and what it counts.
    fn read(record: &[u8]) -> Result<(Self, u32), DecodeError> {
        let error = |kind, field: Field| refused(kind, field.offset);
        let page_size = PageSize::new(transactions::PAGE_SIZE.u32(record));
        let span = Self {
            lineage: Lineage(transactions::LINEAGE.id(record)),
            epoch: epoch(record, transactions::EPOCH)?,
            before: pos(record, transactions::BEFORE_TXID, transactions::BEFORE_CHECKSUM)?,
            after: pos(record, transactions::AFTER_TXID, transactions::AFTER_CHECKSUM)?,
            timestamp: Timestamp(transactions::TIMESTAMP.i64(record)),
            page_size: page_size.ok_or_else(|| error(ErrorKind::PageSize, transactions::PAGE_SIZE))?,
            commit: PageCount(transactions::COMMIT.u32(record)),
        };
        if span.before.txid >= span.after.txid {
            return Err(error(ErrorKind::Txid, transactions::AFTER_TXID));
        }
        if !transactions::RESERVED.is_zero(record) {
            return Err(error(ErrorKind::Reserved, transactions::RESERVED));
        }
        Ok((span, transactions::COUNT.u32(record)))
    }
}

impl Transactions {
    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = whole(payload, transactions::SIZE)?;
        let (span, count) = Span::read(record)?;
        let count = count as usize;
        let wrong = || refused(ErrorKind::Index, transactions::COUNT.offset);
        let lengths = count.checked_mul(LENGTH_SIZE).and_then(|size| payload[transactions::SIZE..].get(..size));
        let lengths = lengths.filter(|_| count > 0).ok_or_else(wrong)?;
        let mut at = HEADER_SIZE + transactions::SIZE + lengths.len();
        let mut files = Vec::with_capacity(count);
        for length in lengths.as_chunks::<LENGTH_SIZE>().0 {
            let length = u32::from_be_bytes(*length) as usize;
            if length < LTX_SIZE_MIN || length > HEADER_SIZE + payload.len() - at {
                return Err(wrong());
            }
            files.push(at..at + length);
            at += length;
        }
        if at != HEADER_SIZE + payload.len() {
            return Err(DecodeError::new(ErrorKind::Trailing, WHAT, at as u64));
        }
        Ok(Self { span, files })
    }
}

impl End {
    fn encode(&self) -> Vec<u8> {
        let mut record = [0; end::SIZE];
        end::REASON.put(&mut record, &[self.reason.code()]);
        end::TXID.put_u64(&mut record, self.pos.map_or(0, |pos| pos.txid.get()));
        end::CHECKSUM.put_u64(&mut record, self.pos.map_or(0, |pos| pos.checksum.get()));
        let mut bytes = begin(&record);
        let cut = self.text.floor_char_boundary(TEXT_SIZE_MAX);
        bytes.extend_from_slice(&self.text.as_bytes()[..cut]);
        bytes
    }

    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = whole(payload, end::SIZE)?;
        let code = end::REASON.byte(record);
        let reason = EndReason::ALL.into_iter().find(|reason| reason.code() == code);
        if !end::RESERVED.is_zero(record) {
            return Err(refused(ErrorKind::Reserved, end::RESERVED.offset));
        }
        let is_nowhere = end::TXID.is_zero(record) && end::CHECKSUM.is_zero(record);
        Ok(Self {
            reason: reason.ok_or_else(|| refused(ErrorKind::Field, end::REASON.offset))?,
            pos: if is_nowhere { None } else { Some(pos(record, end::TXID, end::CHECKSUM)?) },
            text: text(payload, end::SIZE, TEXT_SIZE_MAX)?,
        })
    }
}

/// What follows the header of a frame that has this length, once the header holds.
pub(crate) fn payload(bytes: &[u8], len: Option<usize>) -> Result<&[u8], DecodeError> {
    let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
    let short = || DecodeError::new(ErrorKind::Short, WHAT, bytes.len() as u64);
    let len = len.ok_or_else(short)?;
    if bytes.len() < len {
        return Err(short());
    }
    if bytes.len() > len {
        return Err(DecodeError::new(ErrorKind::Trailing, WHAT, len as u64));
    }
    if crc(bytes) != head::CRC.u64(bytes) {
        return Err(error(ErrorKind::FileChecksum, head::CRC));
    }
    if !head::RESERVED.is_zero(bytes) {
        return Err(error(ErrorKind::Reserved, head::RESERVED));
    }
    Ok(&bytes[HEADER_SIZE..])
}

/// Room for the header, and the start of the payload.
pub(crate) fn begin(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn finish(kind: u8, mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len() - HEADER_SIZE;
    assert!(len <= LEN_MAX, "a frame of {len} bytes");
    head::VERSION.put(&mut bytes, &[VERSION]);
    head::KIND.put(&mut bytes, &[kind]);
    head::LEN.put_u32(&mut bytes, u32::try_from(len).expect("bounded by LEN_MAX"));
    let crc = crc(&bytes);
    head::CRC.put_u64(&mut bytes, crc);
    bytes
}

/// Of everything but itself.
fn crc(bytes: &[u8]) -> u64 {
    let mut crc = Crc64::new();
    crc.update(&bytes[..head::CRC.offset]);
    crc.update(&bytes[HEADER_SIZE..]);
    crc.sum()
}

/// An error at this offset in the payload.
pub(crate) fn refused(kind: ErrorKind, offset: usize) -> DecodeError {
    DecodeError::new(kind, WHAT, (HEADER_SIZE + offset) as u64)
}

pub(crate) fn whole(payload: &[u8], size: usize) -> Result<&[u8], DecodeError> {
    payload.get(..size).ok_or_else(|| refused(ErrorKind::Field, payload.len()).detail("the length of another kind"))
}

pub(crate) fn epoch(record: &[u8], field: Field) -> Result<Epoch, DecodeError> {
    Epoch::new(field.u64(record)).ok_or_else(|| refused(ErrorKind::Field, field.offset))
}

fn pos(record: &[u8], txid: Field, checksum: Field) -> Result<Pos, DecodeError> {
    let value = Checksum::from_raw(checksum.u64(record));
    Ok(Pos {
        txid: Txid::new(txid.u64(record)).ok_or_else(|| refused(ErrorKind::Txid, txid.offset))?,
        checksum: value.ok_or_else(|| refused(ErrorKind::PostChecksum, checksum.offset))?,
    })
}

/// The text from `start` to the end of the payload.
pub(crate) fn text(payload: &[u8], start: usize, size_max: usize) -> Result<String, DecodeError> {
    let text = std::str::from_utf8(&payload[start..]).map_err(|_| refused(ErrorKind::Syntax, start))?;
    if text.len() > size_max {
        return Err(refused(ErrorKind::Field, start).detail(format!("{} bytes of text", text.len())));
    }
    Ok(text.to_owned())
}

fn named(name: String) -> Result<String, DecodeError> {
    if name.is_empty() { Err(refused(ErrorKind::Field, 0).detail("a name without a letter")) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PageNumber;

    fn at(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid * 77) }
    }

    fn commits() -> (Span, Vec<Vec<u8>>) {
        let span = Span {
            lineage: Lineage([7; 16]),
            epoch: Epoch::new(3).unwrap(),
            before: at(4),
            after: at(6),
            timestamp: Timestamp(1_700_000_000_000),
            page_size: PageSize::new(4096).unwrap(),
            commit: PageCount(9),
        };
        (span, vec![vec![1; 131], vec![2; 300]])
    }

    fn encoded(span: &Span, files: &[Vec<u8>]) -> Vec<u8> {
        encode_transactions(span, files.iter().map(Vec::as_slice))
    }

    /// Three commits that were merged.
    fn merged() -> (Span, Vec<u8>) {
        let span = Span { after: at(7), ..commits().0 };
        let page = |pgno| PageNumber::new(pgno).unwrap();
        let pages = [(page(2), &[8; 9][..]), (page(9), &[7; 3])];
        (span, encode_merged(&span, &[at(5), at(6)].map(|pos| pos.checksum), &pages))
    }

    fn samples() -> Vec<Vec<u8>> {
        let (span, files) = commits();
        let database = Database { name: "ä/b.db".to_owned(), lineage: span.lineage, epoch: span.epoch, pos: at(2) };
        let end = |reason, pos| Frame::End(End { reason, pos, text: "why".to_owned() }).encode();
        let mut all = vec![
            Frame::Database(database).encode(),
            Frame::Gone { name: "x".to_owned() }.encode(),
            Frame::Heartbeat { time: Timestamp(-1), starting: 7 }.encode(),
            Frame::Leaving.encode(),
            Frame::Reached(at(3)).encode(),
            encoded(&span, &files),
            merged().1,
        ];
        all.extend(EndReason::ALL.map(|reason| end(reason, None)));
        all.push(end(EndReason::Diverged, Some(at(9))));
        all
    }

    #[test]
    fn frames_are_read_back() {
        for bytes in samples() {
            let frame = Frame::decode(&bytes).unwrap();
            if let Frame::Transactions(read) = &frame {
                let (span, files) = commits();
                assert_eq!(read.span, span);
                let again: Vec<_> = read.files.iter().map(|range| bytes[range.clone()].to_vec()).collect();
                assert_eq!(again, files);
            } else if let Frame::Merged(read) = &frame {
                let pages: Vec<_> = read.pages.iter().map(|(pgno, at)| (pgno.get(), &bytes[at.clone()])).collect();
                assert_eq!((read.span, &read.between[..]), (merged().0, &[at(5), at(6)][..]));
                assert_eq!(pages, [(2, &[8; 9][..]), (9, &[7; 3])]);
            } else {
                assert_eq!(frame.encode(), bytes, "a frame has one form only");
            }
            assert_eq!(Frame::len(&bytes), Ok(Some(bytes.len())));
            assert_eq!(Frame::len(&bytes[..HEADER_SIZE - 1]), Ok(None));
        }
    }

    #[test]
    fn nothing_that_is_cut_or_changed_is_taken() {
        for bytes in samples() {
            for i in 0..bytes.len() {
                assert!(Frame::decode(&bytes[..i]).is_err(), "cut at {i}");
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[i] ^= 1 << bit;
                    assert!(Frame::decode(&changed).is_err(), "bit {bit} of byte {i}");
                }
            }
            assert_eq!(Frame::decode(&[&bytes[..], &[0]].concat()).unwrap_err().kind, ErrorKind::Trailing);
        }
    }

    /// What only the CRC keeps out when it is made right again.
    #[test]
    fn fields_that_make_no_sense_are_refused() {
        let (span, files) = commits();
        let good = encoded(&span, &files);
        let check = |field: Field, value: &[u8], kind| {
            let mut bytes = good.clone();
            field.put(&mut bytes[HEADER_SIZE..], value);
            let crc = crc(&bytes);
            head::CRC.put_u64(&mut bytes, crc);
            assert_eq!(Frame::decode(&bytes).unwrap_err().kind, kind, "{}", field.name);
        };
        check(transactions::EPOCH, &[0; 8], ErrorKind::Field);
        check(transactions::BEFORE_TXID, &6u64.to_be_bytes(), ErrorKind::Txid);
        check(transactions::BEFORE_CHECKSUM, &[0; 8], ErrorKind::PostChecksum);
        check(transactions::PAGE_SIZE, &[0, 0, 0, 7], ErrorKind::PageSize);
        check(transactions::COUNT, &[0; 4], ErrorKind::Index);
        check(transactions::COUNT, &[0xff; 4], ErrorKind::Index);
        check(transactions::COUNT, &3u32.to_be_bytes(), ErrorKind::Index);
        check(transactions::COUNT, &1u32.to_be_bytes(), ErrorKind::Trailing);
        check(transactions::RESERVED, &[1; 4], ErrorKind::Reserved);
    }

    #[test]
    fn merged_commits_that_make_no_sense_are_refused() {
        let (span, good) = merged();
        let check = |at: usize, value: &[u8], kind| {
            let mut bytes = good.clone();
            bytes[HEADER_SIZE + at..][..value.len()].copy_from_slice(value);
            let crc = crc(&bytes);
            head::CRC.put_u64(&mut bytes, crc);
            assert_eq!(Frame::decode(&bytes).unwrap_err().kind, kind, "{at}");
        };
        let (between, table) = (transactions::SIZE, transactions::SIZE + 16);
        check(transactions::BEFORE_TXID.offset, &6u64.to_be_bytes(), ErrorKind::Txid);
        check(transactions::AFTER_TXID.offset, &u64::MAX.to_be_bytes(), ErrorKind::Txid);
        check(transactions::COUNT.offset, &[0xff; 4], ErrorKind::Index);
        check(transactions::COUNT.offset, &[0; 4], ErrorKind::Trailing);
        check(between, &[0; 8], ErrorKind::PostChecksum);
        check(table, &[0; 4], ErrorKind::Index);
        check(table, &9u32.to_be_bytes(), ErrorKind::Index);
        check(table + 8, &10u32.to_be_bytes(), ErrorKind::Index);
        check(table + 12, &[0; 4], ErrorKind::Index);
        check(table + 12, &4u32.to_be_bytes(), ErrorKind::Index);
        check(table + 12, &2u32.to_be_bytes(), ErrorKind::Trailing);
        assert_eq!(good.len() - HEADER_SIZE, merged_size(3, 2, 12));
        // One commit is none that was merged.
        let one = Span { after: at(5), ..span };
        assert!(Merged::decode(&one.record(0)).is_err());
    }

    #[test]
    fn lengths_and_versions_are_looked_at_first() {
        let mut bytes = Frame::Heartbeat { time: Timestamp(0), starting: 0 }.encode();
        head::LEN.put_u32(&mut bytes, LEN_MAX as u32 + 1);
        assert_eq!(Frame::len(&bytes).unwrap_err().kind, ErrorKind::Field);
        assert_eq!(Frame::len(&[2]).unwrap_err().kind, ErrorKind::Version);
        assert!(has_room(1, LEN_MAX - transactions::SIZE - LENGTH_SIZE));
        assert!(!has_room(1, LEN_MAX - transactions::SIZE - LENGTH_SIZE + 1));
        let long = Frame::End(End { reason: EndReason::Gone, pos: None, text: "ä".repeat(TEXT_SIZE_MAX) }).encode();
        let Frame::End(end) = Frame::decode(&long).unwrap() else { panic!("another kind") };
        assert_eq!(end.text.len(), TEXT_SIZE_MAX);
    }
}
