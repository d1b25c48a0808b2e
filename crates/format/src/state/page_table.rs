//! The page-checksum table on disk, `pages` in the state folder: what the log holds of each page (docs/spec/state.md).
//!
//! ```text
//! header 48 | u64 per page, from page 1 | CRC-64 of everything before it, 8
//! ```
//!
//! An entry is the checksum of the page (bit 63 set), or 0: the page was never captured, or it is the lock page. Written and read
//! as a stream: a table of a 1 TiB database has 2 GiB.

use std::io::{self, Read, Write};

use crate::crc::Crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, page_table_header as at};
use crate::types::{Checksum, Lineage, PageCount, PageSize, Pos, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHPT";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the header in bytes.
pub const HEADER_SIZE: usize = at::SIZE;

const WHAT: &str = "page table";
/// Bytes that are read or written at once.
const CHUNK_SIZE: usize = 64 << 10;

/// What a page table is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageTableHeader {
    /// The history.
    pub lineage: Lineage,
    /// The position at which the table holds.
    pub pos: Pos,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Number of entries: the size of the database.
    pub count: PageCount,
}

/// Why a table could not be read.
#[derive(Debug)]
pub enum ReadTableError {
    /// The file could not be read.
    Io(io::Error),
    /// The bytes are no page table.
    Decode(DecodeError),
}

impl std::fmt::Display for ReadTableError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => write!(f, "read {WHAT}: {e}"),
            Self::Decode(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for ReadTableError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(e),
            Self::Decode(e) => Some(e),
        }
    }
}

impl From<DecodeError> for ReadTableError {
    fn from(e: DecodeError) -> Self {
        Self::Decode(e)
    }
}

/// Size in bytes of the file of a table with `count` entries.
pub fn file_size(count: PageCount) -> u64 {
    HEADER_SIZE as u64 + 8 * u64::from(count.get()) + 8
}

impl PageTableHeader {
    /// The first bytes of the file.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::TXID.put_u64(&mut bytes, self.pos.txid.get());
        at::CHECKSUM.put_u64(&mut bytes, self.pos.checksum.get());
        at::PAGE_SIZE.put_u32(&mut bytes, self.page_size.get());
        at::COUNT.put_u32(&mut bytes, self.count.get());
        bytes
    }

    /// Reads the header at the start of `bytes`. The CRC is at the end of the file: only [`read`] proves what is said here.
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
        if !at::RESERVED.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, at::RESERVED));
        }
        let txid = Txid::new(at::TXID.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, at::TXID))?;
        let checksum =
            Checksum::from_raw(at::CHECKSUM.u64(bytes)).ok_or_else(|| error(ErrorKind::PostChecksum, at::CHECKSUM))?;
        let page_size =
            PageSize::new(at::PAGE_SIZE.u32(bytes)).ok_or_else(|| error(ErrorKind::PageSize, at::PAGE_SIZE))?;
        Ok(Self {
            lineage: Lineage(at::LINEAGE.id(bytes)),
            pos: Pos { txid, checksum },
            page_size,
            count: PageCount(at::COUNT.u32(bytes)),
        })
    }
}

/// Writes a whole table. `entries` are the checksums from page 1 on, `header.count` of them.
pub fn write<W: Write>(header: &PageTableHeader, entries: &[u64], mut out: W) -> io::Result<()> {
    assert_eq!(entries.len(), header.count.get() as usize, "one entry per page");
    let mut crc = Crc64::new();
    let bytes = header.encode();
    crc.update(&bytes);
    out.write_all(&bytes)?;
    let mut chunk = Vec::with_capacity(CHUNK_SIZE);
    for run in entries.chunks(CHUNK_SIZE / 8) {
        chunk.clear();
        chunk.extend(run.iter().flat_map(|e| e.to_be_bytes()));
        crc.update(&chunk);
        out.write_all(&chunk)?;
    }
    out.write_all(&crc.sum().to_be_bytes())
}

/// Reads a whole table to the end of `input`. Memory grows with the bytes that are there, not with the count that is claimed.
pub fn read<R: Read>(mut input: R) -> Result<(PageTableHeader, Vec<u64>), ReadTableError> {
    let mut crc = Crc64::new();
    let mut bytes = [0; HEADER_SIZE];
    read_exact(&mut input, &mut bytes, 0)?;
    let header = PageTableHeader::decode(&bytes)?;
    crc.update(&bytes);
    let mut entries = Vec::new();
    let mut chunk = vec![0; CHUNK_SIZE];
    let mut left = header.count.get() as usize;
    let mut offset = HEADER_SIZE as u64;
    while left > 0 {
        let run = &mut chunk[..8 * left.min(CHUNK_SIZE / 8)];
        read_exact(&mut input, run, offset)?;
        crc.update(run);
        let values = run.chunks_exact(8).map(|b| u64::from_be_bytes(b.try_into().expect("chunks of eight")));
        if entries.is_empty() {
            // All of it at once when it is small; otherwise in steps, so that a lie costs at most twice what is there.
            entries.reserve_exact(left.min(8 * CHUNK_SIZE));
        }
        entries.extend(values);
        offset += run.len() as u64;
        left -= run.len() / 8;
    }
    let mut stored = [0; 8];
    read_exact(&mut input, &mut stored, offset)?;
    if u64::from_be_bytes(stored) != crc.sum() {
        return Err(DecodeError::new(ErrorKind::FileChecksum, WHAT, offset).into());
    }
    if let Some(i) = entries.iter().position(|e| *e != 0 && Checksum::from_raw(*e).is_none()) {
        return Err(DecodeError::new(ErrorKind::Field, WHAT, HEADER_SIZE as u64 + 8 * i as u64).into());
    }
    match read_exact(&mut input, &mut stored[..1], offset + 8) {
        Ok(()) => Err(DecodeError::new(ErrorKind::Trailing, WHAT, offset + 8).into()),
        Err(ReadTableError::Decode(_)) => Ok((header, entries)),
        Err(e) => Err(e),
    }
}

fn read_exact<R: Read>(input: &mut R, bytes: &mut [u8], offset: u64) -> Result<(), ReadTableError> {
    input.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => DecodeError::new(ErrorKind::Short, WHAT, offset).into(),
        _ => ReadTableError::Io(e),
    })
}
