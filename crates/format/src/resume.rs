//! `NAME-rhyolite-restored`: which pages an interrupted restore has written (docs/spec/resume.md).
//!
//! ```text
//! header 56 | records: count 4 | runs of pages 8 each | checksum 8 | crc 8
//! ```
//!
//! Appended to without a sync. A record says what the pages of its runs add up to; whoever resumes reads them and compares,
//! so that what was lost with a power cut is only fetched again. The first record that is not whole ends the list.

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, resume_header as at};
use crate::types::{Checksum, Lineage, PageCount, PageNumber, PageSize, Pos, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHRE";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the header in bytes.
pub const HEADER_SIZE: usize = at::SIZE;

const WHAT: &str = "restore progress";
const COUNT_SIZE: usize = 4;
const RUN_SIZE: usize = 8;
/// Checksum and CRC of a record.
const RECORD_END_SIZE: usize = 16;

/// What is being restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeHeader {
    /// The history.
    pub lineage: Lineage,
    /// The wanted position.
    pub pos: Pos,
    /// Page size at that position.
    pub page_size: PageSize,
    /// Size of the database at that position.
    pub commit: PageCount,
}

/// Pages that were written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeRecord {
    /// First page and number of pages of each run.
    pub runs: Vec<(PageNumber, u32)>,
    /// XOR of the checksums of these pages.
    pub checksum_bits: u64,
}

impl ResumeHeader {
    /// The first bytes of the file.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::TXID.put_u64(&mut bytes, self.pos.txid.get());
        at::CHECKSUM.put_u64(&mut bytes, self.pos.checksum.get());
        at::PAGE_SIZE.put_u32(&mut bytes, self.page_size.get());
        at::COMMIT.put_u32(&mut bytes, self.commit.get());
        let crc = crc64(&bytes[..at::CRC.offset]);
        at::CRC.put_u64(&mut bytes, crc);
        bytes
    }

    /// Reads the header at the start of `bytes`; what follows it is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
        if bytes.len() < HEADER_SIZE {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, bytes.len() as u64));
        }
        if at::MAGIC.of(bytes) != MAGIC {
            return Err(error(ErrorKind::Magic, at::MAGIC));
        }
        if at::VERSION.byte(bytes) != VERSION {
            return Err(error(ErrorKind::Version, at::VERSION));
        }
        if crc64(&bytes[..at::CRC.offset]) != at::CRC.u64(bytes) {
            return Err(error(ErrorKind::FileChecksum, at::CRC));
        }
        if !at::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, at::RESERVED));
        }
        let txid = Txid::new(at::TXID.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, at::TXID))?;
        let checksum = Checksum::from_raw(at::CHECKSUM.u64(bytes));
        let checksum = checksum.ok_or_else(|| error(ErrorKind::PostChecksum, at::CHECKSUM))?;
        let page_size = PageSize::new(at::PAGE_SIZE.u32(bytes));
        let page_size = page_size.ok_or_else(|| error(ErrorKind::PageSize, at::PAGE_SIZE))?;
        let commit = PageCount(at::COMMIT.u32(bytes));
        Ok(Self { lineage: Lineage(at::LINEAGE.id(bytes)), pos: Pos { txid, checksum }, page_size, commit })
    }
}

impl ResumeRecord {
    /// The bytes to append.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let count = u32::try_from(self.runs.len()).expect("a job has fewer runs");
        out.extend_from_slice(&count.to_be_bytes());
        for (first, pages) in &self.runs {
            out.extend_from_slice(&first.get().to_be_bytes());
            out.extend_from_slice(&pages.to_be_bytes());
        }
        out.extend_from_slice(&self.checksum_bits.to_be_bytes());
        let crc = crc64(&out[start..]);
        out.extend_from_slice(&crc.to_be_bytes());
    }

    /// Takes the next record from `bytes`. `None` at the end, and at a record that is not whole.
    pub fn take(bytes: &mut &[u8]) -> Option<Self> {
        let count = u32::from_be_bytes(*bytes.first_chunk()?);
        let body = usize::try_from(count).ok()?.checked_mul(RUN_SIZE)?;
        let len = COUNT_SIZE.checked_add(body)?.checked_add(RECORD_END_SIZE)?;
        let (record, rest) = bytes.split_at_checked(len)?;
        let (summed, crc) = record.split_last_chunk().expect("its length is checked");
        if crc64(summed).to_be_bytes() != *crc {
            return None;
        }
        let (runs, checksum_bits) = summed[COUNT_SIZE..].split_last_chunk().expect("its length is checked");
        let (runs, _) = runs.as_chunks::<RUN_SIZE>();
        let run = |run: &[u8; RUN_SIZE]| {
            let number = u64::from_be_bytes(*run);
            Some((PageNumber::new((number >> 32) as u32)?, number as u32))
        };
        let runs = runs.iter().map(run).collect::<Option<Vec<_>>>()?;
        *bytes = rest;
        Some(Self { runs, checksum_bits: u64::from_be_bytes(*checksum_bits) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ResumeHeader {
        let pos = Pos { txid: Txid::new(9).unwrap(), checksum: Checksum::EMPTY };
        ResumeHeader { lineage: Lineage([3; 16]), pos, page_size: PageSize::MIN, commit: PageCount(77) }
    }

    #[test]
    fn headers_are_read_back_and_no_changed_bit_goes_unnoticed() {
        let bytes = header().encode();
        assert_eq!(ResumeHeader::decode(&bytes), Ok(header()));
        for i in 0..HEADER_SIZE {
            assert!(ResumeHeader::decode(&bytes[..i]).is_err());
            for bit in 0..8 {
                let mut changed = bytes;
                changed[i] ^= 1 << bit;
                assert!(ResumeHeader::decode(&changed).is_err(), "bit {bit} of byte {i}");
            }
        }
    }

    #[test]
    fn records_are_taken_up_to_the_first_that_is_not_whole() {
        let record = |n: u32| ResumeRecord {
            runs: (1..n).map(|i| (PageNumber::new(i * 10).unwrap(), i)).collect(),
            checksum_bits: u64::from(n) << 40,
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for n in 1..5 {
            record(n).encode(&mut bytes);
            ends.push(bytes.len());
        }
        for len in 0..=bytes.len() {
            let mut rest = &bytes[..len];
            let taken = std::iter::from_fn(|| ResumeRecord::take(&mut rest)).count();
            assert_eq!(taken, ends.iter().filter(|end| **end <= len).count());
        }
        let mut rest = &bytes[..];
        assert!((1..5).all(|n| ResumeRecord::take(&mut rest) == Some(record(n))));
        for i in ends[1]..ends[2] {
            let mut changed = bytes.clone();
            changed[i] ^= 4;
            let mut rest = &changed[..];
            assert_eq!(std::iter::from_fn(|| ResumeRecord::take(&mut rest)).count(), 2);
        }
        assert_eq!(ResumeRecord::take(&mut &[0xff; 100][..]), None);
    }
}
