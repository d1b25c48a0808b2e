//! Whole LTX files in memory, in every encoding that released programs wrote (LTX specification, section 12).
//!
//! | format | page header | page | index |
//! | --- | --- | --- | --- |
//! | 1 raw | 4 bytes: number | as it is | none |
//! | 1 packed | 4 bytes: number | as it is; one LZ4 frame is around all of them and the zero page header | none |
//! | 2 | 4 bytes: number | LZ4 frame | yes |
//! | 3 | 6 bytes: number, flags | LZ4 frame or LZ4 block | yes |
//!
//! No file says which it is. The bytes after the first page number make it likely, the file checksum makes it sure. This is
//! for taking in what others left: it holds the whole file in memory.

use super::decode::decode_post_apply;
use super::header::LtxHeader;
use super::index::FrameList;
use super::layout::*;
use super::rules::{PageRules, Violation};
use super::{Decoder, ReadError, Trailer};
use crate::crc::resume;
use crate::lz4::{FRAME_MAGIC, unpack_frame, unpack_frame_to_vec};
use crate::{Checksum, DecodeError, ErrorKind, PageNumber};

const WHAT: &str = "LTX file of an older format";

/// The encodings of LTX files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Format 1, raw or packed as the header flag says.
    One,
    /// Format 2.
    Two,
    /// Format 3, the current one.
    Three,
}

/// How a page was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageEncoding {
    /// As it is. In a packed file of format 1, after the whole page block was unpacked.
    Raw,
    /// An LZ4 frame.
    Frame,
    /// An LZ4 block.
    Block,
}

/// One page of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LtxPage {
    /// The page.
    pub pgno: PageNumber,
    /// How it was stored.
    pub encoding: PageEncoding,
    /// Offset in bytes of its frame in the file; in a packed file of format 1, in the unpacked page block.
    pub offset: u64,
    /// Size in bytes of its frame, page header included.
    pub size: u64,
    /// Its image.
    pub data: Vec<u8>,
}

/// A whole file, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LtxFile {
    /// How it was stored.
    pub format: Format,
    /// What the header says.
    pub header: LtxHeader,
    /// Whether the header's reserved bytes are zero, as they should be.
    pub is_reserved_clear: bool,
    /// The pages, ascending.
    pub pages: Vec<LtxPage>,
    /// Offset in bytes of what follows the page block: the index, in format 1 the trailer.
    pub pages_end: u64,
    /// The last 16 bytes.
    pub trailer: Trailer,
}

/// Decodes a file of whatever format. The likeliest is tried first; if none fits, its error is the answer.
pub fn decode_any(bytes: &[u8]) -> Result<LtxFile, DecodeError> {
    let likely = likely_format(bytes);
    let first = decode_as(bytes, likely);
    let Err(error) = first else { return first };
    let others = [Format::Three, Format::Two, Format::One].into_iter().filter(|format| *format != likely);
    others.map(|format| decode_as(bytes, format)).find(Result::is_ok).unwrap_or(Err(error))
}

/// Decodes a file whose format is known.
pub fn decode_as(bytes: &[u8], format: Format) -> Result<LtxFile, DecodeError> {
    match format {
        Format::Three => decode_current(bytes),
        Format::One | Format::Two => OldDecoder::new(bytes, format)?.decode(),
    }
}

fn likely_format(bytes: &[u8]) -> Format {
    let has = |at: usize, value: &[u8]| bytes.get(at..at + value.len()) == Some(value);
    let frame = FRAME_MAGIC.to_le_bytes();
    let after_pgno = HEADER_SIZE + OLD_PAGE_HEADER_SIZE;
    let is_packed = bytes.len() >= HEADER_SIZE && u32_at(bytes, FLAGS_AT) & FLAG_COMPRESSED != 0;
    if is_packed {
        Format::One
    } else if has(HEADER_SIZE, &[0; 4]) {
        // No pages: only the size tells.
        match bytes.len() {
            120 => Format::One,
            129 => Format::Two,
            _ => Format::Three,
        }
    } else if has(after_pgno, &frame) {
        Format::Two
    } else if has(after_pgno, &[0, 0]) && has(after_pgno + 2, &frame) || has(after_pgno, &[0, 1, 0]) {
        // A block's size is far below 2^24.
        Format::Three
    } else {
        Format::One
    }
}

fn decode_current(bytes: &[u8]) -> Result<LtxFile, DecodeError> {
    let never_io = |error| match error {
        ReadError::Decode(error) => error,
        ReadError::Io(error) => unreachable!("a slice failed to be read: {error}"),
    };
    let mut decoder = Decoder::new(bytes).map_err(never_io)?;
    let mut data = vec![0; decoder.header().page_size.bytes()];
    let mut pages = Vec::new();
    let mut offset = decoder.position();
    while let Some(pgno) = decoder.next_page(&mut data).map_err(never_io)? {
        let encoding = if decoder.page_block().is_some() { PageEncoding::Block } else { PageEncoding::Frame };
        let size = decoder.position() - offset;
        pages.push(LtxPage { pgno, encoding, offset, size, data: data.clone() });
        offset += size;
    }
    let (header, is_reserved_clear) = (*decoder.header(), decoder.warning().is_none());
    let pages_end = decoder.position();
    let trailer = decoder.finish_at_end().map_err(never_io)?;
    Ok(LtxFile { format: Format::Three, header, is_reserved_clear, pages, pages_end, trailer })
}

/// A file of format 1 or 2 that is being decoded.
struct OldDecoder<'a> {
    bytes: &'a [u8],
    format: Format,
    header: LtxHeader,
    rules: PageRules,
    pages: Vec<LtxPage>,
    crc: u64,
}

impl<'a> OldDecoder<'a> {
    fn new(bytes: &'a [u8], format: Format) -> Result<Self, DecodeError> {
        let allowed = FLAG_NO_CHECKSUM | if format == Format::One { FLAG_COMPRESSED } else { 0 };
        let header = LtxHeader::decode_with_flags(bytes, allowed)?;
        let crc = resume(0, &bytes[..HEADER_SIZE]);
        Ok(Self { bytes, format, header, rules: PageRules::new(&header), pages: Vec::new(), crc })
    }

    fn decode(mut self) -> Result<LtxFile, DecodeError> {
        let pages_end = if u32_at(self.bytes, FLAGS_AT) & FLAG_COMPRESSED != 0 {
            let error = |kind| DecodeError::new(kind, WHAT, HEADER_SIZE as u64);
            let (block, len) = unpack_frame_to_vec(&self.bytes[HEADER_SIZE..]).map_err(error)?;
            let end = self.pages(&block, 0)?;
            if end < block.len() {
                return Err(error(ErrorKind::Trailing));
            }
            HEADER_SIZE + len
        } else {
            self.pages(self.bytes, HEADER_SIZE)?
        };
        let at = if self.format == Format::Two { self.index(pages_end)? } else { pages_end };
        let trailer = self.trailer(at)?;
        let header = self.bytes[..HEADER_SIZE].try_into().expect("as long as the header");
        Ok(LtxFile {
            format: self.format,
            header: self.header,
            is_reserved_clear: LtxHeader::is_reserved_clear(header),
            pages: self.pages,
            pages_end: pages_end as u64,
            trailer,
        })
    }

    /// Takes the page block at `at` of `source` and returns where it ends.
    fn pages(&mut self, source: &[u8], mut at: usize) -> Result<usize, DecodeError> {
        let page_bytes = self.header.page_size.bytes();
        loop {
            let start = at;
            let error = |kind| DecodeError::new(kind, WHAT, start as u64);
            let broken = |v: Violation| v.decode_error(WHAT, start as u64);
            let head = take(source, &mut at, OLD_PAGE_HEADER_SIZE).ok_or_else(|| error(ErrorKind::Short))?;
            self.crc = resume(self.crc, head);
            let Some(pgno) = PageNumber::new(u32_at(head, 0)) else {
                self.rules.check_complete().map_err(broken)?;
                return Ok(at);
            };
            self.rules.accept(pgno).map_err(broken)?;
            let (encoding, data) = if self.format == Format::One {
                let data = take(source, &mut at, page_bytes).ok_or_else(|| error(ErrorKind::Short))?;
                (PageEncoding::Raw, data.to_vec())
            } else {
                let mut data = vec![0; page_bytes];
                at += unpack_frame(&source[at..], &mut data).map_err(error)?;
                (PageEncoding::Frame, data)
            };
            self.crc = resume(self.crc, &data);
            if self.rules.wants_checksums() {
                self.rules.add_checksum(Checksum::of_page(pgno, &data));
            }
            self.pages.push(LtxPage { pgno, encoding, offset: start as u64, size: (at - start) as u64, data });
        }
    }

    /// Checks the index at `at` and returns where it ends.
    fn index(&mut self, at: usize) -> Result<usize, DecodeError> {
        let mut frames = FrameList::default();
        for page in &self.pages {
            frames.push(page.pgno, page.size);
        }
        let (mut expected, mut index) = (Vec::new(), frames.stored());
        while index.append(usize::MAX / 2, &mut expected) {}
        expected.extend_from_slice(&(expected.len() as u64).to_be_bytes());
        let end = at + expected.len();
        if self.bytes.get(at..end) != Some(&expected[..]) {
            return Err(DecodeError::new(ErrorKind::Index, WHAT, at as u64));
        }
        self.crc = resume(self.crc, &expected);
        Ok(end)
    }

    fn trailer(&mut self, at: usize) -> Result<Trailer, DecodeError> {
        let error = |kind| DecodeError::new(kind, WHAT, at as u64);
        let rest: &[u8; TRAILER_SIZE] = match self.bytes[at..].split_first_chunk() {
            None => return Err(error(ErrorKind::Short)),
            Some((trailer, [])) => trailer,
            Some(_) => return Err(error(ErrorKind::Trailing)),
        };
        let file_checksum = Checksum::from_crc(resume(self.crc, &rest[..FILE_CHECKSUM_AT]));
        if u64_at(rest, FILE_CHECKSUM_AT) != file_checksum.get() {
            return Err(error(ErrorKind::FileChecksum));
        }
        let broken = |v: Violation| v.decode_error(WHAT, at as u64);
        let post_apply = decode_post_apply(rest).map_err(broken)?;
        self.rules.check_post_apply(post_apply).map_err(broken)?;
        Ok(Trailer { post_apply, file_checksum })
    }
}

fn take<'b>(source: &'b [u8], at: &mut usize, len: usize) -> Option<&'b [u8]> {
    let bytes = source.get(*at..)?.get(..len)?;
    *at += len;
    Some(bytes)
}
