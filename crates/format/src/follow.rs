//! `NAME-rhyolite-follow`: what a plain file that follows a log was left as (docs/spec/follow.md).
//!
//! The file differs from the log's state in some bytes of page 1 that readers, or SQLite as the writer, need otherwise; the log's values of them stand
//! here, so that the file can be compared with the log. Written before each batch with both ends of it: a file that is
//! whole is at one of the two, unless the machine has lost its power since.
//!
//! ```text
//! 0     a record
//! 4096  a record, or the end of the file
//! ```
//!
//! Each record is written in the place of the older one, so that there is always one that is whole. The one with the later turn counts.

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, follow_end as end, follow_state as at};
use crate::types::{Checksum, Lineage, PageCount, PageSize, Pos, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHFO";
/// The version that is written.
pub const VERSION: u8 = 3;
/// Size of a record in bytes.
pub const SIZE: usize = at::SIZE;
/// Where the two records begin: no sector holds bytes of both.
pub const PLACES: [u64; 2] = [0, 4096];

/// The version before: one record without a turn, which was replaced as a whole.
const VERSION_2: u8 = 2;

const WHAT: &str = "follow state";

/// How far a file has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowState {
    /// The history.
    pub lineage: Lineage,
    /// Between which two starts of the system this was written; zeros when that is not known.
    pub boot_id: [u8; 16],
    /// The file before the batch that was last begun.
    pub before: FollowEnd,
    /// The file after it. The same when no batch was begun.
    pub after: FollowEnd,
    /// Grows with each record that is written to a file.
    pub turn: u64,
}

/// A state that the file may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowEnd {
    /// The log's position.
    pub pos: Pos,
    /// Page size at that position.
    pub page_size: PageSize,
    /// Size of the database at that position.
    pub commit: PageCount,
    /// The log's values of the bytes that differ; zeros for an empty database.
    pub page_one: PageOneFields,
}

/// Bytes of page 1 that a followed file has otherwise than the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOneFields {
    /// Bytes 18 and 19: write and read version.
    pub versions: [u8; 2],
    /// Bytes 24 to 27: the change counter.
    pub change_counter: u32,
    /// Bytes 92 to 95: the change counter for which the page count is valid.
    pub version_valid_for: u32,
    /// Bytes 96 to 99: the version of SQLite that has written last.
    pub written_by: u32,
}

impl PageOneFields {
    const VERSIONS: std::ops::Range<usize> = 18..20;
    const CHANGE_COUNTER: std::ops::Range<usize> = 24..28;
    const VERSION_VALID_FOR: std::ops::Range<usize> = 92..96;
    const WRITTEN_BY: std::ops::Range<usize> = 96..100;

    /// The fields of page 1.
    pub fn of(page: &[u8]) -> Self {
        let number = |range: std::ops::Range<usize>| {
            u32::from_be_bytes(page[range].try_into().expect("a page has at least 512 bytes"))
        };
        let versions = page[Self::VERSIONS].try_into().expect("a page has at least 512 bytes");
        Self {
            versions,
            change_counter: number(Self::CHANGE_COUNTER),
            version_valid_for: number(Self::VERSION_VALID_FOR),
            written_by: number(Self::WRITTEN_BY),
        }
    }

    /// Puts them into page 1.
    pub fn put(&self, page: &mut [u8]) {
        page[Self::VERSIONS].copy_from_slice(&self.versions);
        page[Self::CHANGE_COUNTER].copy_from_slice(&self.change_counter.to_be_bytes());
        page[Self::VERSION_VALID_FOR].copy_from_slice(&self.version_valid_for.to_be_bytes());
        page[Self::WRITTEN_BY].copy_from_slice(&self.written_by.to_be_bytes());
    }

    /// Whether they are those of a database in WAL mode.
    pub fn is_wal(&self) -> bool {
        self.versions == [2, 2]
    }

    /// What a followed file in rollback mode has in their place: that mode, so that a reader needs no WAL, and a change counter of the
    /// file's own, so that readers drop what they cached. Whether the page count is valid stays as the log has it.
    #[must_use]
    pub fn for_readers(&self, change_counter: u32) -> Self {
        let valid = self.version_valid_for == self.change_counter;
        let version_valid_for = if valid { change_counter } else { change_counter.wrapping_sub(1) };
        Self { versions: [1, 1], change_counter, version_valid_for, ..*self }
    }

    /// What is written into a followed file in WAL mode. SQLite puts its own version and a change counter there.
    #[must_use]
    pub fn for_wal(&self) -> Self {
        Self { versions: [2, 2], ..*self }
    }
}

impl FollowState {
    /// The bytes of a record.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::BOOT_ID.put(&mut bytes, &self.boot_id);
        at::BEFORE.put(&mut bytes, &self.before.encode());
        at::AFTER.put(&mut bytes, &self.after.encode());
        at::TURN.put_u64(&mut bytes, self.turn);
        let crc = crc64(&bytes[..at::CRC.offset]);
        at::CRC.put_u64(&mut bytes, crc);
        bytes
    }

    /// Reads a file: the newer of its records that are whole.
    ///
    /// # Errors
    /// Neither is whole, or one is of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let first = Self::decode_record(bytes, 0);
        let place = PLACES[1] as usize;
        if bytes.len() > place + SIZE {
            return Err(DecodeError::new(ErrorKind::Trailing, WHAT, (place + SIZE) as u64));
        }
        // It was begun when the process ended, if it is not whole.
        let second = bytes.get(place..).filter(|record| record.len() == SIZE);
        let is_later = |record: &[u8]| at::MAGIC.of(record) == MAGIC && at::VERSION.byte(record) > VERSION;
        match (first, second.map(|record| (is_later(record), Self::decode_record(record, place)))) {
            // Whoever has written that knows what to make of both.
            (_, Some((true, Err(error)))) => Err(error),
            (Err(error), _) if bytes.len() >= SIZE && is_later(bytes) => Err(error),
            (Ok(first), Some((_, Ok(second)))) if second.turn > first.turn => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), Some((_, Ok(second)))) => Ok(second),
            (Err(error), _) => Err(error),
        }
    }

    /// Reads the record with which `bytes` begin, and which lies at `start` in the file.
    fn decode_record(bytes: &[u8], start: usize) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, (start + field.offset) as u64);
        if bytes.len() < at::SIZE_2 {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, (start + bytes.len()) as u64));
        }
        if at::MAGIC.of(bytes) != MAGIC {
            return Err(error(ErrorKind::Magic, at::MAGIC));
        }
        let crc = match at::VERSION.byte(bytes) {
            VERSION if bytes.len() >= SIZE => at::CRC,
            VERSION => return Err(DecodeError::new(ErrorKind::Short, WHAT, (start + bytes.len()) as u64)),
            VERSION_2 if bytes.len() == at::SIZE_2 && start == 0 => at::CRC_2,
            VERSION_2 => return Err(DecodeError::new(ErrorKind::Trailing, WHAT, (start + at::SIZE_2) as u64)),
            version => return Err(error(ErrorKind::Version, at::VERSION).detail(format!("version {version}"))),
        };
        if crc64(&bytes[..crc.offset]) != crc.u64(bytes) {
            return Err(error(ErrorKind::FileChecksum, crc));
        }
        if !at::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, at::RESERVED));
        }
        let before = FollowEnd::decode(at::BEFORE.of(bytes), start + at::BEFORE.offset)?;
        let after = FollowEnd::decode(at::AFTER.of(bytes), start + at::AFTER.offset)?;
        let turn = if crc.offset == at::CRC.offset { at::TURN.u64(bytes) } else { 0 };
        Ok(Self { lineage: Lineage(at::LINEAGE.id(bytes)), boot_id: at::BOOT_ID.id(bytes), before, after, turn })
    }
}

impl FollowEnd {
    fn encode(&self) -> [u8; end::SIZE] {
        let mut bytes = [0; end::SIZE];
        end::TXID.put_u64(&mut bytes, self.pos.txid.get());
        end::CHECKSUM.put_u64(&mut bytes, self.pos.checksum.get());
        end::PAGE_SIZE.put_u32(&mut bytes, self.page_size.get());
        end::COMMIT.put_u32(&mut bytes, self.commit.get());
        end::CHANGE_COUNTER.put_u32(&mut bytes, self.page_one.change_counter);
        end::VERSION_VALID_FOR.put_u32(&mut bytes, self.page_one.version_valid_for);
        end::WRITTEN_BY.put_u32(&mut bytes, self.page_one.written_by);
        end::VERSIONS.put(&mut bytes, &self.page_one.versions);
        bytes
    }

    fn decode(bytes: &[u8], start: usize) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, (start + field.offset) as u64);
        let txid = Txid::new(end::TXID.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, end::TXID))?;
        let checksum = Checksum::from_raw(end::CHECKSUM.u64(bytes));
        let checksum = checksum.ok_or_else(|| error(ErrorKind::PostChecksum, end::CHECKSUM))?;
        let page_size = PageSize::new(end::PAGE_SIZE.u32(bytes));
        if !end::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, end::RESERVED));
        }
        Ok(Self {
            pos: Pos { txid, checksum },
            page_size: page_size.ok_or_else(|| error(ErrorKind::PageSize, end::PAGE_SIZE))?,
            commit: PageCount(end::COMMIT.u32(bytes)),
            page_one: PageOneFields {
                versions: end::VERSIONS.bytes(bytes),
                change_counter: end::CHANGE_COUNTER.u32(bytes),
                version_valid_for: end::VERSION_VALID_FOR.u32(bytes),
                written_by: end::WRITTEN_BY.u32(bytes),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FollowState {
        let end = |txid, versions| FollowEnd {
            pos: Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_raw(Checksum::FLAG | txid).unwrap() },
            page_size: PageSize::new(4096).unwrap(),
            commit: PageCount(70),
            page_one: PageOneFields { versions, change_counter: 9, version_valid_for: 8, written_by: 7 },
        };
        let (before, after) = (end(41, [2, 2]), end(44, [1, 1]));
        FollowState { lineage: Lineage([7; 16]), boot_id: [3; 16], before, after, turn: 6 }
    }

    /// A file with these records.
    fn file(first: &[u8], second: &[u8]) -> Vec<u8> {
        let mut bytes = first.to_vec();
        bytes.resize(PLACES[1] as usize, 0);
        bytes.extend_from_slice(second);
        bytes
    }

    #[test]
    fn it_is_read_back_and_no_changed_bit_goes_unnoticed() {
        let state = sample();
        let bytes = state.encode();
        assert_eq!(FollowState::decode(&bytes), Ok(state));
        for i in 0..SIZE {
            assert!(FollowState::decode(&bytes[..i]).is_err(), "cut at {i}");
            for bit in 0..8 {
                let mut changed = bytes;
                changed[i] ^= 1 << bit;
                assert!(FollowState::decode(&changed).is_err(), "bit {bit} of byte {i}");
            }
        }
    }

    #[test]
    fn of_two_records_the_newer_one_counts_that_is_whole() {
        let (six, seven) = (sample(), FollowState { turn: 7, before: sample().after, ..sample() });
        let (old, new) = (six.encode(), seven.encode());
        assert_eq!(FollowState::decode(&file(&old, &new)), Ok(seven));
        assert_eq!(FollowState::decode(&file(&new, &old)), Ok(seven));
        for cut in 0..SIZE {
            let torn = [&new[..cut], &old[cut..]].concat();
            let read = FollowState::decode(&file(&old, &torn));
            assert!(read == Ok(six) || read == Ok(seven), "the second is torn at {cut}: {read:?}");
            assert_eq!(FollowState::decode(&file(&old, &new[..cut])), Ok(six), "it is cut off at {cut}");
            let torn = [&new[..cut], &[0; SIZE][cut..]].concat();
            assert_eq!(FollowState::decode(&file(&torn, &old)), Ok(six), "the first is torn at {cut}");
        }
        assert!(FollowState::decode(&file(&[0; SIZE], &[0; SIZE])).is_err());
        assert_eq!(FollowState::decode(&file(&old, &[&new[..], &[0]].concat())).unwrap_err().kind, ErrorKind::Trailing);
        let mut later = new;
        at::VERSION.put(&mut later, &[VERSION + 1]);
        assert_eq!(FollowState::decode(&file(&old, &later)).unwrap_err().kind, ErrorKind::Version);
    }

    #[test]
    fn the_version_before_is_read() {
        let mut bytes = sample().encode()[..at::SIZE_2].to_vec();
        at::VERSION.put(&mut bytes, &[VERSION_2]);
        let crc = crc64(&bytes[..at::CRC_2.offset]);
        at::CRC_2.put_u64(&mut bytes, crc);
        assert_eq!(FollowState::decode(&bytes), Ok(FollowState { turn: 0, ..sample() }));
        assert_eq!(FollowState::decode(&file(&bytes, &[])).unwrap_err().kind, ErrorKind::Trailing);
        bytes[100] ^= 1;
        assert!(FollowState::decode(&bytes).is_err());
    }

    #[test]
    fn page_one_goes_back_to_what_the_log_has() {
        let page: Vec<u8> = (0..512u32).map(|i| (i % 251) as u8).collect();
        let fields = PageOneFields::of(&page);
        let mut changed = page.clone();
        fields.for_readers(77).put(&mut changed);
        let differ: Vec<usize> = (0..512).filter(|i| page[*i] != changed[*i]).collect();
        assert_eq!(differ, [18, 19, 24, 25, 26, 27, 92, 93, 94, 95]);
        fields.put(&mut changed);
        assert_eq!(page, changed);
        let valid = PageOneFields { versions: [2, 2], change_counter: 5, version_valid_for: 5, written_by: 3 };
        assert_eq!(valid.for_wal(), valid);
        assert_eq!(valid.for_readers(0).version_valid_for, 0);
        assert_ne!(fields.for_readers(0).version_valid_for, 0);
    }
}
