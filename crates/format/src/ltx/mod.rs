//! LTX files: the final images of the pages that a run of transactions changed (LTX specification, sections 2 to 12).
//!
//! ```text
//! header        100 bytes: page size, database size after it, TXIDs, time, checksum of the database before it
//! page block    one frame per page, ascending: number, flags, size, LZ4 block; then a frame header of zeros
//! page index    per page three varints: number, offset, size; then 0; then the length of that as u64
//! trailer       16 bytes: checksum of the database after it, checksum of the file
//! ```
//!
//! What holds for every file that is written or accepted here:
//!
//! 1. Page numbers ascend, none is above the database size, none is the lock page.
//! 2. A file whose first transaction is 1 is a **snapshot**: it holds every page, and its post-apply checksum is theirs.
//! 3. The index says exactly what the page block holds.
//! 4. Database checksums are there, or the header says that there are none.
//! 5. The file checksum covers the header, the unpacked pages, the index and the post-apply checksum. It does not cover
//!    packed bytes as such: two encoders may pack differently.
//!
//! [`Encoder`] and [`Decoder`] both enforce them, one page at a time, without allocating per page. Pages that a decoder
//! gives out are not proved until [`Decoder::finish`] has returned: whoever takes them must be able to undo that.
//!
//! [`decode_any`] also reads the encodings that earlier programs wrote. Only the current one is written.

mod decode;
mod encode;
mod header;
mod index;
mod index_cursor;
pub mod layout;
mod merge;
mod name;
mod old;
mod rules;

use crate::Checksum;

pub use decode::{Decoder, ReadError, decode_page_frame};
pub use encode::{EncodeError, Encoded, Encoder, EncoderBuffers};
pub use header::LtxHeader;
pub use index::{PageIndex, PageIndexEntry};
pub use index_cursor::PageIndexCursor;
pub use merge::{MergeError, MergeSummary, merge};
pub use name::LtxName;
pub use old::{Format, LtxFile, LtxPage, PageEncoding, decode_any, decode_as};

/// The last 16 bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Checksum of the whole database after this file. `None` when the header says that there are no checksums.
    pub post_apply: Option<Checksum>,
    /// Checksum of the file.
    pub file_checksum: Checksum,
}

/// How an encoder packs pages. Both are valid LZ4 blocks that every reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Compressed. Some ten times the cost of everything else.
    Lz4,
    /// As they are: one run of literals. For where time counts more than space.
    Stored,
}
