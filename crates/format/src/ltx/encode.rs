//! Writing LTX files, a page at a time (LTX specification, section 7).
//!
//! The encoder does no I/O: every call appends to a buffer, which the caller may empty between calls. What a call refuses
//! has appended nothing.

use std::fmt;

use super::header::LtxHeader;
use super::index::FrameList;
use super::layout::*;
use super::rules::{PageRules, Violation};
use super::{Packing, Trailer};
use crate::crc::{crc64, join_page, resume, update_by_table};
use crate::lz4::{Packer, block_bound, pack_stored, unpack_block};
use crate::{Checksum, ErrorKind, PageNumber};

/// How much of the index is made before it is hashed.
const INDEX_CHUNK: usize = 16 * 1024;

/// A file that must not be written, because it would break a rule of section 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeError {
    /// The rule, named as a decoder would.
    pub kind: ErrorKind,
    /// The values that clash.
    pub detail: String,
}

impl From<Violation> for EncodeError {
    fn from(violation: Violation) -> Self {
        Self { kind: violation.kind, detail: violation.detail }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write LTX file: {} ({})", self.kind, self.detail)
    }
}

impl std::error::Error for EncodeError {}

/// A file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Size of the file in bytes.
    pub len: u64,
    /// Number of pages in it.
    pub pages: u32,
    /// Its last 16 bytes.
    pub trailer: Trailer,
}

/// What one encoder can leave to the next: the compressor's table and the memory of the index.
#[derive(Debug, Default)]
pub struct EncoderBuffers {
    packer: Packer,
    frames: FrameList,
}

/// Writes one LTX file of the current format.
#[derive(Debug)]
pub struct Encoder {
    header: LtxHeader,
    packing: Packing,
    rules: PageRules,
    buffers: EncoderBuffers,
    /// CRC of what the file checksum covers so far.
    crc: u64,
    /// Bytes written so far.
    position: u64,
}

impl Encoder {
    /// Starts a file by appending its header.
    pub fn new(header: LtxHeader, packing: Packing, out: &mut Vec<u8>) -> Result<Self, EncodeError> {
        Self::with_buffers(header, packing, EncoderBuffers::default(), out)
    }

    /// Like [`Encoder::new`], with the buffers of an encoder before.
    pub fn with_buffers(
        header: LtxHeader,
        packing: Packing,
        mut buffers: EncoderBuffers,
        out: &mut Vec<u8>,
    ) -> Result<Self, EncodeError> {
        header.check()?;
        if header.no_checksum && header.commit.get() == 0 {
            // A deletion is told by its post-apply checksum.
            return Err(Violation::new(ErrorKind::PostChecksum, "a deletion without checksums").into());
        }
        let bytes = header.encode();
        out.extend_from_slice(&bytes);
        buffers.frames.clear();
        let rules = PageRules::new(&header);
        Ok(Self { header, packing, rules, buffers, crc: crc64(&bytes), position: HEADER_SIZE as u64 })
    }

    /// The header that was written.
    pub fn header(&self) -> &LtxHeader {
        &self.header
    }

    /// Bytes of the file written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Number of pages written so far.
    pub fn pages(&self) -> u32 {
        self.buffers.frames.pages()
    }

    /// Checksum of the database made of the pages so far: for a snapshot with checksums, the only post-apply checksum
    /// that [`Encoder::finish`] will take. `None` for other files.
    pub fn snapshot_checksum(&self) -> Option<Checksum> {
        self.rules.database_checksum()
    }

    /// Appends a page and returns its checksum. Pages must ascend. `data` is as long as a page.
    pub fn page(&mut self, pgno: PageNumber, data: &[u8], out: &mut Vec<u8>) -> Result<Checksum, EncodeError> {
        assert_eq!(data.len(), self.header.page_size.bytes(), "page {pgno}");
        self.rules.accept(pgno)?;
        let start = out.len();
        out.extend_from_slice(&[0; BLOCK_HEADER_SIZE]);
        let block_len = match self.packing {
            Packing::Lz4 => self.buffers.packer.pack(data, out),
            Packing::Stored => pack_stored(data, out),
        };
        let header = block_header(pgno, block_len);
        out[start..start + BLOCK_HEADER_SIZE].copy_from_slice(&header);
        Ok(self.account(pgno, &header, block_len, crc64(data)))
    }

    /// Appends a page whose LZ4 block is at hand: `block` must unpack to `data`. Returns the page's checksum.
    pub fn packed_page(
        &mut self,
        pgno: PageNumber,
        block: &[u8],
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Checksum, EncodeError> {
        assert_eq!(data.len(), self.header.page_size.bytes(), "page {pgno}");
        assert!((1..=block_bound(data.len())).contains(&block.len()), "page {pgno}: block of {} bytes", block.len());
        debug_assert!(unpacks_to(block, data), "page {pgno}: the block is of other data");
        self.packed_page_hashed(pgno, block, crc64(data), out)
    }

    /// Like [`Encoder::packed_page`], where the CRC of the page's data is known too.
    pub(super) fn packed_page_hashed(
        &mut self,
        pgno: PageNumber,
        block: &[u8],
        data_crc: u64,
        out: &mut Vec<u8>,
    ) -> Result<Checksum, EncodeError> {
        self.rules.accept(pgno)?;
        let header = block_header(pgno, block.len());
        out.extend_from_slice(&header);
        out.extend_from_slice(block);
        Ok(self.account(pgno, &header, block.len(), data_crc))
    }

    fn account(
        &mut self,
        pgno: PageNumber,
        header: &[u8; BLOCK_HEADER_SIZE],
        block_len: usize,
        data_crc: u64,
    ) -> Checksum {
        let page_bytes = self.header.page_size.bytes();
        let frame_len = (BLOCK_HEADER_SIZE + block_len) as u64;
        self.crc = join_page(update_by_table(self.crc, header), data_crc, page_bytes);
        self.buffers.frames.push(pgno, frame_len);
        self.position += frame_len;
        let checksum = Checksum::from_page_crc(pgno, data_crc, page_bytes);
        if self.rules.wants_checksums() {
            self.rules.add_checksum(checksum);
        }
        checksum
    }

    /// Appends what follows the last page. `post_apply` is the checksum of the database after this file: `None` without
    /// checksums, and for a snapshot that of its pages.
    pub fn finish(self, post_apply: Option<Checksum>, out: &mut Vec<u8>) -> Result<Encoded, EncodeError> {
        self.finish_reusing(post_apply, out).map(|(encoded, _)| encoded)
    }

    /// Like [`Encoder::finish`], and gives back the buffers for the next file.
    pub fn finish_reusing(
        self,
        post_apply: Option<Checksum>,
        out: &mut Vec<u8>,
    ) -> Result<(Encoded, EncoderBuffers), EncodeError> {
        self.finish_in_pieces(post_apply, out, |_| Ok(()))
    }

    /// Like [`Encoder::finish_reusing`], for files so large that the index should not be in memory at once: `piece`
    /// may empty the buffer each time that some 16 KiB have been appended. What it has not taken stays in `out`.
    pub fn finish_in_pieces<E: From<EncodeError>>(
        mut self,
        post_apply: Option<Checksum>,
        out: &mut Vec<u8>,
        mut piece: impl FnMut(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(Encoded, EncoderBuffers), E> {
        self.rules.check_complete().map_err(EncodeError::from)?;
        self.rules.check_post_apply(post_apply).map_err(EncodeError::from)?;
        self.put(&[0; PAGE_HEADER_SIZE], out);
        let index_start = self.position;
        let (mut index, mut start) = (self.buffers.frames.stored(), out.len());
        while index.append(INDEX_CHUNK, out) {
            self.crc = resume(self.crc, &out[start..]);
            self.position += (out.len() - start) as u64;
            piece(out)?;
            start = out.len();
        }
        let index_len = self.position - index_start;
        self.put(&index_len.to_be_bytes(), out);
        self.put(&post_apply.map_or(0, Checksum::get).to_be_bytes(), out);
        let trailer = Trailer { post_apply, file_checksum: Checksum::from_crc(self.crc) };
        out.extend_from_slice(&trailer.file_checksum.get().to_be_bytes());
        self.position += 8;
        piece(out)?;
        Ok((Encoded { len: self.position, pages: self.buffers.frames.pages(), trailer }, self.buffers))
    }

    /// Appends bytes that the file checksum covers as they are.
    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes);
        self.crc = resume(self.crc, bytes);
        self.position += bytes.len() as u64;
    }
}

fn block_header(pgno: PageNumber, block_len: usize) -> [u8; BLOCK_HEADER_SIZE] {
    let mut header = [0; BLOCK_HEADER_SIZE];
    header[..PAGE_FLAGS_AT].copy_from_slice(&pgno.get().to_be_bytes());
    header[PAGE_FLAGS_AT..PAGE_HEADER_SIZE].copy_from_slice(&PAGE_FLAG_SIZE.to_be_bytes());
    let block_len = u32::try_from(block_len).expect("a block is little longer than a page");
    header[PAGE_HEADER_SIZE..].copy_from_slice(&block_len.to_be_bytes());
    header
}

fn unpacks_to(block: &[u8], data: &[u8]) -> bool {
    let mut unpacked = vec![0; data.len()];
    unpack_block(block, &mut unpacked).is_ok() && unpacked == data
}
