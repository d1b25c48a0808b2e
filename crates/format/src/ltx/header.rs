//! The header of an LTX file (LTX specification, section 2.1; rules 1 to 5 of section 5).

use super::layout::*;
use super::rules::Violation;
use crate::{Checksum, DecodeError, ErrorKind, PageCount, PageSize, Timestamp, Txid};

/// What the first 100 bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LtxHeader {
    /// Database checksums are not kept: neither before nor after the file.
    pub no_checksum: bool,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database after this file.
    pub commit: PageCount,
    /// First transaction in the file.
    pub min_txid: Txid,
    /// Last transaction in the file.
    pub max_txid: Txid,
    /// When the last transaction was committed.
    pub timestamp: Timestamp,
    /// Checksum of the database before this file. `None` for a snapshot and without checksums.
    pub pre_apply: Option<Checksum>,
    /// Offset in bytes of the first copied frame in the source WAL; 0 if there is none.
    pub wal_offset: u64,
    /// Number of WAL bytes copied; 0 if there is no WAL, and legal if there is.
    pub wal_size: u64,
    /// Salts of the source WAL; 0 if there is none.
    pub wal_salt: (u32, u32),
    /// Node that made the file; 0 if unset.
    pub node_id: u64,
}

impl LtxHeader {
    /// Whether the file stands alone: it starts at the first transaction and holds every page.
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// Reads a header of the current format. Reserved bytes are not looked at (see [`LtxHeader::is_reserved_clear`]).
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_with_flags(bytes, FLAG_NO_CHECKSUM)
    }

    /// Like [`LtxHeader::decode`], with other header flags allowed.
    pub(super) fn decode_with_flags(bytes: &[u8], allowed: u32) -> Result<Self, DecodeError> {
        let error = |kind, at: usize| DecodeError::new(kind, "LTX header", at as u64);
        if bytes.len() < HEADER_SIZE {
            return Err(error(ErrorKind::Short, bytes.len()));
        }
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(error(ErrorKind::Magic, MAGIC_AT));
        }
        let flags = u32_at(bytes, FLAGS_AT);
        if flags & !allowed != 0 {
            return Err(error(ErrorKind::Flags, FLAGS_AT).detail(format!("{flags:#010x}")));
        }
        let page_size = u32_at(bytes, PAGE_SIZE_AT);
        let page_size = PageSize::new(page_size)
            .ok_or_else(|| error(ErrorKind::PageSize, PAGE_SIZE_AT).detail(page_size.to_string()))?;
        let txid = |at| Txid::new(u64_at(bytes, at)).ok_or_else(|| error(ErrorKind::Txid, at));
        let header = Self {
            no_checksum: flags & FLAG_NO_CHECKSUM != 0,
            page_size,
            commit: PageCount(u32_at(bytes, COMMIT_AT)),
            min_txid: txid(MIN_TXID_AT)?,
            max_txid: txid(MAX_TXID_AT)?,
            timestamp: Timestamp(u64_at(bytes, TIMESTAMP_AT) as i64),
            pre_apply: match u64_at(bytes, PRE_APPLY_AT) {
                0 => None,
                raw => Some(Checksum::from_raw(raw).ok_or_else(|| error(ErrorKind::PreChecksum, PRE_APPLY_AT))?),
            },
            wal_offset: u64_at(bytes, WAL_OFFSET_AT),
            wal_size: u64_at(bytes, WAL_SIZE_AT),
            wal_salt: (u32_at(bytes, WAL_SALT_1_AT), u32_at(bytes, WAL_SALT_2_AT)),
            node_id: u64_at(bytes, NODE_ID_AT),
        };
        header.check().map_err(|v| v.decode_error("LTX header", 0))?;
        Ok(header)
    }

    /// Whether the reserved bytes of an encoded header are zero, as they should be. A reader goes on if they are not.
    pub fn is_reserved_clear(bytes: &[u8; HEADER_SIZE]) -> bool {
        bytes[RESERVED_AT..].iter().all(|b| *b == 0)
    }

    /// The bytes of the header. What it says is checked by [`super::Encoder::new`], not here.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(MAGIC_AT, &MAGIC);
        put(FLAGS_AT, &(if self.no_checksum { FLAG_NO_CHECKSUM } else { 0 }).to_be_bytes());
        put(PAGE_SIZE_AT, &self.page_size.get().to_be_bytes());
        put(COMMIT_AT, &self.commit.get().to_be_bytes());
        put(MIN_TXID_AT, &self.min_txid.get().to_be_bytes());
        put(MAX_TXID_AT, &self.max_txid.get().to_be_bytes());
        put(TIMESTAMP_AT, &self.timestamp.0.to_be_bytes());
        put(PRE_APPLY_AT, &self.pre_apply.map_or(0, Checksum::get).to_be_bytes());
        put(WAL_OFFSET_AT, &self.wal_offset.to_be_bytes());
        put(WAL_SIZE_AT, &self.wal_size.to_be_bytes());
        put(WAL_SALT_1_AT, &self.wal_salt.0.to_be_bytes());
        put(WAL_SALT_2_AT, &self.wal_salt.1.to_be_bytes());
        put(NODE_ID_AT, &self.node_id.to_be_bytes());
        bytes
    }

    /// The rules among fields.
    pub(super) fn check(&self) -> Result<(), Violation> {
        if self.min_txid > self.max_txid {
            return Err(Violation::new(ErrorKind::Txid, format!("{} to {}", self.min_txid, self.max_txid)));
        }
        let (offset, size) = (self.wal_offset, self.wal_size);
        let beyond = i64::try_from(offset).is_err() || i64::try_from(size).is_err();
        if beyond || offset == 0 && (size, self.wal_salt) != (0, (0, 0)) {
            let detail = format!("offset {offset}, size {size}, salts {:08x} {:08x}", self.wal_salt.0, self.wal_salt.1);
            return Err(Violation::new(ErrorKind::WalRange, detail));
        }
        let expects_pre = !self.no_checksum && !self.is_snapshot();
        if self.pre_apply.is_some() != expects_pre {
            let detail = if expects_pre { "missing" } else { "present" };
            return Err(Violation::new(ErrorKind::PreChecksum, detail));
        }
        Ok(())
    }
}
