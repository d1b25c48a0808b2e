//! Reading LTX files, a page at a time (LTX specification, section 6).
//!
//! The decoder takes exactly the file's bytes from its reader, never one more, so that files may lie back to back. It
//! reads in small pieces: give it a slice or a buffered reader.

use std::fmt;
use std::io::{self, Read};

use super::Trailer;
use super::header::LtxHeader;
use super::index::FrameList;
use super::layout::*;
use super::rules::{PageRules, Violation};
use crate::crc::{crc64, join_page, resume, update_by_table};
use crate::lz4::{self, ReadFrameError, block_bound, unpack_block, unpack_frame};
use crate::{Checksum, DecodeError, ErrorKind, PageNumber};

/// How much of the index is read at a time.
const INDEX_CHUNK: usize = 16 * 1024;

/// Why a file could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The reader failed. Trying again may help.
    Io(io::Error),
    /// The bytes are no valid LTX file. Trying again will not help.
    Decode(DecodeError),
}

impl From<DecodeError> for ReadError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("read LTX file"),
            Self::Decode(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Decode(_) => None,
        }
    }
}

/// Reads one LTX file of the current format, whose pages may be blocks or frames.
///
/// Pages that were given out are proved only when [`Decoder::finish`] has succeeded. After an error the decoder is of no
/// further use.
#[derive(Debug)]
pub struct Decoder<R> {
    input: Input<R>,
    header: LtxHeader,
    is_reserved_clear: bool,
    rules: PageRules,
    frames: FrameList,
    /// CRC of what the file checksum covers so far.
    crc: u64,
    /// Packed bytes of the last page.
    packed: Vec<u8>,
    last: Option<LastPage>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pages,
    AfterPages,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct LastPage {
    pgno: PageNumber,
    data_crc: u64,
    is_block: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads and checks the header.
    pub fn new(input: R) -> Result<Self, ReadError> {
        let mut input = Input { reader: input, offset: 0 };
        let mut bytes = [0; HEADER_SIZE];
        input.read(&mut bytes, "LTX header")?;
        let header = LtxHeader::decode(&bytes)?;
        Ok(Self {
            input,
            is_reserved_clear: LtxHeader::is_reserved_clear(&bytes),
            rules: PageRules::new(&header),
            frames: FrameList::default(),
            crc: crc64(&bytes),
            packed: Vec::new(),
            last: None,
            state: State::Pages,
            header,
        })
    }

    /// What the header says.
    pub fn header(&self) -> &LtxHeader {
        &self.header
    }

    /// Something that is wrong but does not make the file unreadable: reserved header bytes that are not zero.
    pub fn warning(&self) -> Option<DecodeError> {
        (!self.is_reserved_clear).then(|| DecodeError::new(ErrorKind::Reserved, "LTX header", RESERVED_AT as u64))
    }

    /// Bytes of the file taken so far.
    pub fn position(&self) -> u64 {
        self.input.offset
    }

    /// Unpacks the next page into `data`, which is as long as a page. `None` after the last one.
    pub fn next_page(&mut self, data: &mut [u8]) -> Result<Option<PageNumber>, ReadError> {
        assert_eq!(data.len(), self.header.page_size.bytes(), "a buffer of one page");
        assert_ne!(self.state, State::Failed, "a decoder that has failed is of no further use");
        if self.state == State::AfterPages {
            return Ok(None);
        }
        let result = self.read_page(data);
        self.state = match result {
            Ok(Some(_)) => State::Pages,
            Ok(None) => State::AfterPages,
            Err(_) => State::Failed,
        };
        result
    }

    /// Checksum of the last page that was given out.
    pub fn page_checksum(&self) -> Option<Checksum> {
        let page_bytes = self.header.page_size.bytes();
        self.last.map(|page| Checksum::from_page_crc(page.pgno, page.data_crc, page_bytes))
    }

    /// LZ4 block of the last page that was given out, if it was packed as a block.
    pub fn page_block(&self) -> Option<&[u8]> {
        self.last.filter(|page| page.is_block).map(|_| &self.packed[..])
    }

    /// CRC of the data of the last page that was given out.
    pub(super) fn page_data_crc(&self) -> Option<u64> {
        self.last.map(|page| page.data_crc)
    }

    fn read_page(&mut self, data: &mut [u8]) -> Result<Option<PageNumber>, ReadError> {
        let start = self.input.offset;
        self.last = None;
        let mut head = [0; BLOCK_HEADER_SIZE];
        self.input.read(&mut head[..PAGE_HEADER_SIZE], "LTX page header")?;
        let Some((pgno, is_block)) = decode_page_header(&head, start)? else {
            self.crc = update_by_table(self.crc, &head[..PAGE_HEADER_SIZE]);
            self.rules.check_complete().map_err(|v| v.decode_error("LTX page block", start))?;
            return Ok(None);
        };
        self.rules.accept(pgno).map_err(|v| v.decode_error("LTX page block", start))?;
        let refused = |kind| page_error(kind, start, pgno);
        if is_block {
            self.input.read(&mut head[PAGE_HEADER_SIZE..], "LTX page header")?;
            let len = u32_at(&head, PAGE_HEADER_SIZE) as usize;
            check_block_len(len, data.len()).map_err(refused)?;
            self.packed.resize(len, 0);
            self.input.read(&mut self.packed, "LTX page")?;
            unpack_block(&self.packed, data).map_err(refused)?;
            self.crc = update_by_table(self.crc, &head);
        } else {
            self.packed.clear();
            self.input.read_frame(data.len(), &mut self.packed, refused)?;
            unpack_frame(&self.packed, data).map_err(refused)?;
            self.crc = update_by_table(self.crc, &head[..PAGE_HEADER_SIZE]);
        }
        let data_crc = crc64(data);
        self.crc = join_page(self.crc, data_crc, data.len());
        if self.rules.wants_checksums() {
            self.rules.add_checksum(Checksum::from_page_crc(pgno, data_crc, data.len()));
        }
        self.frames.push(pgno, self.input.offset - start);
        self.last = Some(LastPage { pgno, data_crc, is_block });
        Ok(Some(pgno))
    }

    /// After [`Decoder::next_page`] has returned `None`: reads and checks the index, the checksums and the completeness
    /// of a snapshot. Gives back the reader, which stands at the byte after the file.
    pub fn finish(mut self) -> Result<(Trailer, R), ReadError> {
        assert_eq!(self.state, State::AfterPages, "not all pages were taken");
        self.check_index()?;
        let start = self.input.offset;
        let error = |v: Violation, at: usize| v.decode_error("LTX trailer", start + at as u64);
        let mut bytes = [0; TRAILER_SIZE];
        self.input.read(&mut bytes, "LTX trailer")?;
        let computed = Checksum::from_crc(update_by_table(self.crc, &bytes[..FILE_CHECKSUM_AT]));
        let stored = u64_at(&bytes, FILE_CHECKSUM_AT);
        if stored != computed.get() {
            let violation = Violation::new(ErrorKind::FileChecksum, format!("{stored:016x}, computed {computed}"));
            return Err(error(violation, FILE_CHECKSUM_AT).into());
        }
        let post_apply = decode_post_apply(&bytes).map_err(|v| error(v, POST_APPLY_AT))?;
        self.rules.check_post_apply(post_apply).map_err(|v| error(v, POST_APPLY_AT))?;
        Ok((Trailer { post_apply, file_checksum: computed }, self.input.reader))
    }

    /// Like [`Decoder::finish`], and nothing may follow the file.
    pub fn finish_at_end(self) -> Result<Trailer, ReadError> {
        let (trailer, mut input) = self.finish()?;
        match read_up_to(&mut input, &mut [0]).map_err(ReadError::Io)? {
            0 => Ok(trailer),
            _ => Err(DecodeError::new(ErrorKind::Trailing, "LTX file", 0).into()),
        }
    }

    /// Reads the index and compares it with what the page block held.
    fn check_index(&mut self) -> Result<(), ReadError> {
        let frames = std::mem::take(&mut self.frames);
        let (index_start, mut index) = (self.input.offset, frames.stored());
        let error = |at: u64, detail| DecodeError::new(ErrorKind::Index, "LTX page index", at).detail(detail);
        let (mut expected, mut stored) = (Vec::new(), Vec::new());
        while index.append(INDEX_CHUNK, &mut expected) {
            stored.resize(expected.len(), 0);
            let chunk_start = self.input.offset;
            let got = self.input.read_up_to(&mut stored)?;
            let equal = stored[..got].iter().zip(&expected).take_while(|(a, b)| a == b).count();
            if equal < expected.len() {
                return Err(error(chunk_start + equal as u64, "differs from the page block").into());
            }
            self.crc = resume(self.crc, &stored);
            expected.clear();
        }
        let index_len = self.input.offset - index_start;
        let mut bytes = [0; INDEX_LENGTH_SIZE];
        let at = self.input.offset;
        self.input.read(&mut bytes, "LTX page index")?;
        if u64::from_be_bytes(bytes) != index_len {
            return Err(error(at, "its length differs from the stored one").into());
        }
        self.crc = update_by_table(self.crc, &bytes);
        Ok(())
    }
}

/// Post-apply checksum of a trailer; 0 is none.
pub(super) fn decode_post_apply(trailer: &[u8; TRAILER_SIZE]) -> Result<Option<Checksum>, Violation> {
    match u64_at(trailer, POST_APPLY_AT) {
        0 => Ok(None),
        raw => match Checksum::from_raw(raw) {
            Some(post) => Ok(Some(post)),
            None => Err(Violation::new(ErrorKind::PostChecksum, format!("{raw:016x}"))),
        },
    }
}

/// Page number, and whether a block follows rather than a frame. `None` ends the page block.
fn decode_page_header(head: &[u8], offset: u64) -> Result<Option<(PageNumber, bool)>, DecodeError> {
    let flags = u16_at(head, PAGE_FLAGS_AT);
    match (PageNumber::new(u32_at(head, 0)), flags) {
        (None, 0) => Ok(None),
        (None, _) => Err(DecodeError::new(ErrorKind::PageNumber, "LTX page header", offset)),
        (Some(pgno), PAGE_FLAG_SIZE) => Ok(Some((pgno, true))),
        (Some(pgno), 0) => Ok(Some((pgno, false))),
        (Some(pgno), _) => Err(page_error(ErrorKind::PageFlags, offset, pgno)),
    }
}

fn page_error(kind: ErrorKind, offset: u64, pgno: PageNumber) -> DecodeError {
    DecodeError::new(kind, "LTX page", offset).detail(format!("page {pgno}"))
}

fn check_block_len(len: usize, page_bytes: usize) -> Result<(), ErrorKind> {
    if (1..=block_bound(page_bytes)).contains(&len) { Ok(()) } else { Err(ErrorKind::PageLength) }
}

/// Unpacks one page frame, block or LZ4 frame, that was fetched by itself. `data` is as long as a page. Proves only that
/// the frame is of page `expected` and well formed: single frames carry no checksum of their page.
pub fn decode_page_frame(frame: &[u8], expected: PageNumber, data: &mut [u8]) -> Result<(), DecodeError> {
    let short = || DecodeError::new(ErrorKind::Short, "LTX page", frame.len() as u64);
    let head = frame.get(..PAGE_HEADER_SIZE).ok_or_else(short)?;
    let wrong = |detail: String| DecodeError::new(ErrorKind::Index, "LTX page", 0).detail(detail);
    let (pgno, is_block) =
        decode_page_header(head, 0)?.ok_or_else(|| wrong(format!("no page where page {expected} is expected")))?;
    if pgno != expected {
        return Err(wrong(format!("page {pgno} where page {expected} is expected")));
    }
    let refused = |kind| page_error(kind, 0, pgno);
    let end = if is_block {
        let head = frame.get(..BLOCK_HEADER_SIZE).ok_or_else(short)?;
        let len = u32_at(head, PAGE_HEADER_SIZE) as usize;
        check_block_len(len, data.len()).map_err(refused)?;
        let block = frame[BLOCK_HEADER_SIZE..].get(..len).ok_or_else(short)?;
        unpack_block(block, data).map_err(refused)?;
        BLOCK_HEADER_SIZE + len
    } else {
        PAGE_HEADER_SIZE + unpack_frame(&frame[PAGE_HEADER_SIZE..], data).map_err(refused)?
    };
    if end < frame.len() {
        return Err(DecodeError::new(ErrorKind::Trailing, "LTX page", end as u64));
    }
    Ok(())
}

/// A reader that knows how far it is.
#[derive(Debug)]
struct Input<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    fn read(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), ReadError> {
        let got = self.read_up_to(bytes)?;
        if got < bytes.len() {
            return Err(DecodeError::new(ErrorKind::Short, what, self.offset).into());
        }
        Ok(())
    }

    /// Fills `bytes` unless the input ends before, and returns how much it got.
    fn read_up_to(&mut self, bytes: &mut [u8]) -> Result<usize, ReadError> {
        let got = read_up_to(&mut self.reader, bytes).map_err(ReadError::Io)?;
        self.offset += got as u64;
        Ok(got)
    }

    fn read_frame(
        &mut self,
        page_bytes: usize,
        frame: &mut Vec<u8>,
        refused: impl Fn(ErrorKind) -> DecodeError,
    ) -> Result<(), ReadError> {
        match lz4::read_frame(&mut self.reader, page_bytes, frame) {
            Ok(()) => {}
            Err(ReadFrameError::Refused(kind)) => return Err(refused(kind).into()),
            Err(ReadFrameError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(refused(ErrorKind::Short).into());
            }
            Err(ReadFrameError::Io(error)) => return Err(ReadError::Io(error)),
        }
        self.offset += frame.len() as u64;
        Ok(())
    }
}

fn read_up_to<R: Read>(reader: &mut R, bytes: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match reader.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
