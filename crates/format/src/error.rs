//! What is said about bytes that do not decode.

use std::fmt;

/// Why bytes were refused. The LTX kinds are the error codes of the LTX specification, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The bytes end before the value does (SHORT).
    Short,
    /// Wrong magic number (MAGIC).
    Magic,
    /// A format version that this program does not know. Never guessed at.
    Version,
    /// Unknown header flag bits (FLAGS).
    Flags,
    /// Page size that is no power of two in 512..=65536 (PAGE_SIZE).
    PageSize,
    /// Transaction ids that are zero or reversed (TXID).
    Txid,
    /// WAL offset, size or salts that cannot go together (WAL_RANGE).
    WalRange,
    /// Pre-apply checksum present or absent against the rules (PRE_CHECKSUM).
    PreChecksum,
    /// Page number zero where a page must follow (PGNO).
    PageNumber,
    /// Unknown page flag bits (PAGE_FLAGS).
    PageFlags,
    /// Page data that does not unpack to exactly one page (PAGE_LENGTH).
    PageLength,
    /// Data that is no valid LZ4 (LZ4).
    Lz4,
    /// Page numbers that do not ascend (PAGE_ORDER).
    PageOrder,
    /// The lock page is stored (LOCK_PAGE).
    LockPage,
    /// A page beyond the database size (COMMIT).
    Commit,
    /// A snapshot that does not hold every page (SNAPSHOT_PAGES).
    SnapshotPages,
    /// The index does not match what it indexes (INDEX).
    Index,
    /// Bytes after the end (TRAILING).
    Trailing,
    /// The checksum of the whole object does not match (FILE_CHECKSUM).
    FileChecksum,
    /// The post-apply checksum is wrong, present or absent against the rules (POST_CHECKSUM).
    PostChecksum,
    /// Reserved bytes are not zero (RESERVED). A warning: readers go on.
    Reserved,
    /// Neighbours whose checksums do not join (CHAIN).
    Chain,
    /// Transactions are missing between neighbours (GAP).
    Gap,
    /// A field whose value has no meaning, in a format without a finer kind.
    Field,
    /// Text (JSON, hex) that does not parse.
    Syntax,
}

/// Foreign bytes that were refused: what they should have been, where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was being decoded, for example `"LTX header"`.
    pub what: &'static str,
    /// Offset in bytes from the start of the object, as near to the cause as is known.
    pub offset: u64,
    /// Why it was refused.
    pub kind: ErrorKind,
    /// More for the reader: the values that clash. May be empty.
    pub detail: String,
}

impl DecodeError {
    /// An error without further detail.
    pub fn new(kind: ErrorKind, what: &'static str, offset: u64) -> Self {
        Self { what, offset, kind, detail: String::new() }
    }

    /// The same error with the values that clash.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at byte {}", self.what, self.kind, self.offset)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl std::error::Error for DecodeError {}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "ends early",
            Self::Magic => "wrong magic number",
            Self::Version => "unknown format version",
            Self::Flags => "unknown header flags",
            Self::PageSize => "invalid page size",
            Self::Txid => "invalid transaction ids",
            Self::WalRange => "invalid WAL range",
            Self::PreChecksum => "invalid pre-apply checksum",
            Self::PageNumber => "invalid page number",
            Self::PageFlags => "unknown page flags",
            Self::PageLength => "page of the wrong length",
            Self::Lz4 => "invalid LZ4 data",
            Self::PageOrder => "pages out of order",
            Self::LockPage => "the lock page is stored",
            Self::Commit => "page beyond the database size",
            Self::SnapshotPages => "snapshot without all pages",
            Self::Index => "wrong index",
            Self::Trailing => "bytes after the end",
            Self::FileChecksum => "wrong file checksum",
            Self::PostChecksum => "wrong post-apply checksum",
            Self::Reserved => "reserved bytes not zero",
            Self::Chain => "checksums do not join",
            Self::Gap => "transactions are missing",
            Self::Field => "invalid value",
            Self::Syntax => "invalid syntax",
        })
    }
}
