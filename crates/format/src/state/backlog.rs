//! `backlog` in the state folder (docs/spec/state.md): commits that were seen and wait to be recorded in the log.
//!
//! It bridges the moment between a commit and its record when the process is killed in it. Invariant: entries that count follow one another
//! from the header's position without a gap, so whoever knows which of them the log ends with knows all that follow.

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, backlog as at, backlog_entry as entry_at};
use crate::types::{Checksum, Lineage, PageCount, PageNumber, PageSize, Pos, Timestamp, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHBL";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the header in bytes. The first entry follows.
pub const HEADER_SIZE: usize = at::SIZE;
/// Size of an entry's record in bytes. Its pages follow.
pub const ENTRY_SIZE: usize = entry_at::SIZE;
/// Size of an entry's [`encode_mark`], its first bytes.
pub const MARK_SIZE: usize = entry_at::CRC.offset;

/// Entries begin at multiples of this.
const ALIGNMENT: usize = 16;
const NUMBER_SIZE: usize = 4;
const WHAT: &str = "backlog";

/// What the entries belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogHeader {
    /// The history.
    pub lineage: Lineage,
    /// The boot of the machine.
    pub boot_id: [u8; 16],
    /// That of the entries that count, from 1.
    pub generation: u64,
    /// What the first entry leads on from.
    pub base: Pos,
}

impl BacklogHeader {
    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::BOOT_ID.put(&mut bytes, &self.boot_id);
        at::GENERATION.put_u64(&mut bytes, self.generation);
        at::TXID.put_u64(&mut bytes, self.base.txid.get());
        at::CHECKSUM.put_u64(&mut bytes, self.base.checksum.get());
        let crc = crc64(&bytes[..at::CRC.offset]);
        at::CRC.put_u64(&mut bytes, crc);
        bytes
    }

    /// Reads the header from the start of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
        if bytes.len() < HEADER_SIZE {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, bytes.len() as u64));
        }
        if at::MAGIC.of(bytes) != MAGIC {
            return Err(error(ErrorKind::Magic, at::MAGIC));
        }
        let version = at::VERSION.byte(bytes);
        if version != VERSION {
            return Err(error(ErrorKind::Version, at::VERSION).detail(format!("version {version}")));
        }
        if crc64(&bytes[..at::CRC.offset]) != at::CRC.u64(bytes) {
            return Err(error(ErrorKind::FileChecksum, at::CRC));
        }
        if !at::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, at::RESERVED));
        }
        let base = pos(at::TXID.u64(bytes), at::CHECKSUM.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, at::TXID))?;
        Ok(Self {
            lineage: Lineage(at::LINEAGE.id(bytes)),
            boot_id: at::BOOT_ID.id(bytes),
            generation: at::GENERATION.u64(bytes),
            base,
        })
    }
}

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogEntry<'a> {
    /// The position after it, once it was about to be recorded.
    pub recorded: Option<Pos>,
    /// When it ended.
    pub timestamp: Timestamp,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database after it.
    pub commit: PageCount,
    /// Every page that was written, ascending. Each has the size of a page.
    pub pages: Vec<(PageNumber, &'a [u8])>,
}

impl BacklogEntry<'_> {
    /// The bytes of this entry, as one that was not recorded yet. `offset` is where they go, a multiple of 16.
    ///
    /// # Panics
    /// A page has another size, or `offset` is no multiple of 16.
    pub fn encode(&self, generation: u64, offset: u64) -> Vec<u8> {
        assert_eq!(offset % ALIGNMENT as u64, 0, "an entry begins at a multiple of {ALIGNMENT}");
        let body = self.pages.len() * (NUMBER_SIZE + self.page_size.bytes());
        let mut bytes = Vec::with_capacity((ENTRY_SIZE + body).next_multiple_of(ALIGNMENT));
        bytes.resize(ENTRY_SIZE, 0);
        entry_at::GENERATION.put_u64(&mut bytes, generation);
        entry_at::OFFSET.put_u64(&mut bytes, offset);
        entry_at::TIMESTAMP.put_i64(&mut bytes, self.timestamp.0);
        entry_at::PAGE_SIZE.put_u32(&mut bytes, self.page_size.get());
        entry_at::COMMIT.put_u32(&mut bytes, self.commit.get());
        entry_at::PAGES.put_u32(&mut bytes, u32::try_from(self.pages.len()).expect("page numbers are 32 bits"));
        for (number, data) in &self.pages {
            assert_eq!(data.len(), self.page_size.bytes(), "a whole page");
            bytes.extend_from_slice(&number.get().to_be_bytes());
            bytes.extend_from_slice(data);
        }
        let crc = crc64(&bytes[entry_at::GENERATION.offset..]);
        entry_at::CRC.put_u64(&mut bytes, crc);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}

/// What is written over the start of an entry when it is about to be recorded.
pub fn encode_mark(recorded: Pos) -> [u8; MARK_SIZE] {
    let mut bytes = [0; MARK_SIZE];
    entry_at::TXID.put_u64(&mut bytes, recorded.txid.get());
    entry_at::CHECKSUM.put_u64(&mut bytes, recorded.checksum.get());
    bytes
}

/// The entries of a file that count: those from the start that are whole and of the header's generation.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    file: &'a [u8],
    offset: usize,
    generation: u64,
}

impl<'a> Entries<'a> {
    /// Those of a file with this header.
    pub fn new(header: &BacklogHeader, file: &'a [u8]) -> Self {
        Self { file, offset: HEADER_SIZE, generation: header.generation }
    }

    /// `None` where no entry of this generation is whole: the rest of the file is from before, or was never finished.
    fn read(&self) -> Option<(BacklogEntry<'a>, usize)> {
        let record = self.file.get(self.offset..)?;
        if record.len() < ENTRY_SIZE
            || entry_at::GENERATION.u64(record) != self.generation
            || entry_at::OFFSET.u64(record) != self.offset as u64
        {
            return None;
        }
        let page_size = PageSize::new(entry_at::PAGE_SIZE.u32(record))?;
        let count = usize::try_from(entry_at::PAGES.u32(record)).ok()?;
        let step = NUMBER_SIZE + page_size.bytes();
        let len = count.checked_mul(step)?.checked_add(ENTRY_SIZE)?;
        let record = record.get(..len)?;
        if crc64(&record[entry_at::GENERATION.offset..]) != entry_at::CRC.u64(record) {
            return None;
        }
        let page = |bytes: &'a [u8]| {
            let (number, data) = bytes.split_at(NUMBER_SIZE);
            let number = u32::from_be_bytes(number.try_into().expect("split there"));
            Some((PageNumber::new(number)?, data))
        };
        let pages: Vec<_> = record[ENTRY_SIZE..].chunks_exact(step).map(page).collect::<Option<_>>()?;
        pages.is_sorted_by(|a, b| a.0 < b.0).then_some(())?;
        let entry = BacklogEntry {
            recorded: pos(entry_at::TXID.u64(record), entry_at::CHECKSUM.u64(record)),
            timestamp: Timestamp(entry_at::TIMESTAMP.i64(record)),
            page_size,
            commit: PageCount(entry_at::COMMIT.u32(record)),
            pages,
        };
        Some((entry, self.offset + len.next_multiple_of(ALIGNMENT)))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = BacklogEntry<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, next) = self.read()?;
        self.offset = next;
        Some(entry)
    }
}

/// The entries that lead on from `end`, the end of the log. `None` when the file does not tell.
pub fn after<'a>(header: &BacklogHeader, file: &'a [u8], end: Pos) -> Option<Vec<BacklogEntry<'a>>> {
    let entries: Vec<_> = Entries::new(header, file).collect();
    let last = entries.iter().rposition(|entry| entry.recorded == Some(end));
    match last {
        Some(last) => Some(entries.into_iter().skip(last + 1).collect()),
        None => (header.base == end).then_some(entries),
    }
}

fn pos(txid: u64, checksum: u64) -> Option<Pos> {
    Some(Pos { txid: Txid::new(txid)?, checksum: Checksum::from_raw(checksum)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    /// A file with three commits, of which the first was recorded.
    fn file() -> (BacklogHeader, Vec<u8>) {
        let header = samples::backlog();
        let mut bytes = header.encode().to_vec();
        for number in 1..=3 {
            let entry = samples::backlog_entry(number);
            let entry = entry.encode(header.generation, bytes.len() as u64);
            bytes.extend_from_slice(&entry);
        }
        bytes[HEADER_SIZE..HEADER_SIZE + MARK_SIZE].copy_from_slice(&encode_mark(samples::pos(9)));
        (header, bytes)
    }

    fn numbers(entries: Option<Vec<BacklogEntry<'_>>>) -> Option<Vec<u32>> {
        entries.map(|entries| entries.iter().map(|entry| entry.pages[0].0.get()).collect())
    }

    #[test]
    fn what_follows_the_end_of_the_log_is_found() {
        let (header, bytes) = file();
        assert_eq!(BacklogHeader::decode(&bytes), Ok(header.clone()));
        assert_eq!(numbers(after(&header, &bytes, samples::pos(9))), Some(vec![2, 3]));
        assert_eq!(numbers(after(&header, &bytes, header.base)), Some(vec![1, 2, 3]));
        assert_eq!(numbers(after(&header, &bytes, samples::pos(10))), None, "the log ends somewhere else");
        let other = Pos { checksum: samples::checksum(77), ..samples::pos(9) };
        assert_eq!(numbers(after(&header, &bytes, other)), None, "another history with the same number");
    }

    #[test]
    fn what_is_cut_damaged_or_of_another_generation_ends_it() {
        let (header, bytes) = file();
        let whole = Entries::new(&header, &bytes).count();
        assert_eq!(whole, 3);
        for len in 0..bytes.len() {
            let entries: Vec<_> = Entries::new(&header, &bytes[..len]).collect();
            assert!(entries.len() < 3 || bytes[len..].iter().all(|byte| *byte == 0), "cut to {len}");
        }
        let second = HEADER_SIZE + samples::backlog_entry(1).encode(1, 0).len();
        for at in second + MARK_SIZE..second + ENTRY_SIZE + 4 + 512 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Entries::new(&header, &damaged).count(), 1, "byte {at}");
        }
        let newer = BacklogHeader { generation: header.generation + 1, ..header };
        assert_eq!(Entries::new(&newer, &bytes).count(), 0);
    }
}
