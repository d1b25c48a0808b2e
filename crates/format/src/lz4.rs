//! LZ4 blocks and frames: how pages are packed in LTX files (LTX specification, section 4).
//!
//! A **block** is a run of sequences without magic, length or checksum; whoever stores it stores its length. It is what
//! is written. A **frame** is what older files hold; all its fields are little-endian:
//!
//! ```text
//! offset  size  field
//!      0     4  magic 0x184D2204
//!      4     1  FLG: version 01 (bits 7, 6), independent blocks (5), block checksums (4), content size present (3),
//!               content checksum (2), reserved (1), dictionary id present (0)
//!      5     1  BD: maximum block size, 4 to 7 (bits 6 to 4), all others reserved
//!      6     8  content size, if present
//!      .     1  second byte of xxHash32 of FLG to here
//!               blocks: u32 length (bit 31: stored as it is), that many bytes, u32 xxHash32 of them if announced
//!      .     4  end mark, 0
//!      .     4  xxHash32 of the content, if announced
//! ```
//!
//! Foreign bytes give an [`ErrorKind`]: `Lz4` when they are no valid LZ4 or unpack to more than there is room for,
//! `PageLength` when they unpack to less. Nothing here allocates per page.

mod stream;

use std::fmt;
use std::io::{self, Read};

use lz4_flex::block::{self, CompressTable};
use twox_hash::XxHash32;

use crate::ErrorKind;

pub use stream::FrameReader;

/// The first four bytes of every frame, as a little-endian number.
pub const FRAME_MAGIC: u32 = 0x184D_2204;

/// Magic, FLG and BD.
const FRAME_START_SIZE: usize = 6;
const FLG_VERSION: u8 = 0b1100_0000;
const FLG_VERSION_1: u8 = 0b0100_0000;
const FLG_INDEPENDENT: u8 = 0b0010_0000;
const FLG_BLOCK_CHECKSUMS: u8 = 0b0001_0000;
const FLG_CONTENT_SIZE: u8 = 0b0000_1000;
const FLG_CONTENT_CHECKSUM: u8 = 0b0000_0100;
const FLG_REFUSED: u8 = 0b0000_0011;
const BD_RESERVED: u8 = 0b1000_1111;
const STORED: u32 = 1 << 31;

/// The most bytes that a block of `len` bytes of content can need. A longer one is refused before anything is allocated.
pub const fn block_bound(len: usize) -> usize {
    len + len / 255 + 16
}

/// Packs blocks, keeping the compressor's table from one to the next.
pub struct Packer(CompressTable);

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packer")
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self::new()
    }
}

impl Packer {
    /// A packer with a table of its own (8 KiB; 16 KiB once it has seen 64 KiB of content).
    pub fn new() -> Self {
        Self(CompressTable::small())
    }

    /// Appends `content` to `out` as one block and returns its length. Content that does not shrink is stored.
    pub fn pack(&mut self, content: &[u8], out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.resize(start + block::get_maximum_output_size(content.len()), 0);
        let packed = block::compress_into_with_table(content, &mut out[start..], &mut self.0);
        let len = packed.expect("there is as much room as the compressor says it needs");
        if len >= stored_len(content.len()) {
            out.truncate(start);
            return pack_stored(content, out);
        }
        out.truncate(start + len);
        len
    }
}

/// Length of a block that stores `len` bytes as they are.
pub const fn stored_len(len: usize) -> usize {
    if len < 15 { 1 + len } else { 1 + (len - 15) / 255 + 1 + len }
}

/// Appends `content` to `out` as one block that is a single run of literals, and returns its length.
pub fn pack_stored(content: &[u8], out: &mut Vec<u8>) -> usize {
    let start = out.len();
    match content.len().checked_sub(15) {
        None => out.push((content.len() as u8) << 4),
        Some(more) => {
            out.push(0xF0);
            out.resize(out.len() + more / 255, 255);
            out.push((more % 255) as u8);
        }
    }
    out.extend_from_slice(content);
    debug_assert_eq!(out.len() - start, stored_len(content.len()));
    out.len() - start
}

/// Unpacks a block that must fill `content` exactly.
pub fn unpack_block(block: &[u8], content: &mut [u8]) -> Result<(), ErrorKind> {
    match block::decompress_into(block, content) {
        Ok(len) if len == content.len() => Ok(()),
        Ok(_) => Err(ErrorKind::PageLength),
        Err(_) => Err(ErrorKind::Lz4),
    }
}

/// Unpacks the frame at the start of `input`, which must fill `content` exactly, and returns the frame's length.
pub fn unpack_frame(input: &[u8], content: &mut [u8]) -> Result<usize, ErrorKind> {
    let mut frame = Frame::new(input)?;
    let mut filled = 0;
    while let Some(block) = frame.next_block()? {
        filled += frame.unpack(&block, content, filled)?;
    }
    if filled < content.len() {
        return Err(ErrorKind::PageLength);
    }
    frame.finish(content)
}

/// Unpacks the frame at the start of `input`, whatever its content's length, and returns the frame's length too. Memory
/// is bounded by what can be packed into `input` (255 times its length).
pub fn unpack_frame_to_vec(input: &[u8]) -> Result<(Vec<u8>, usize), ErrorKind> {
    let mut frame = Frame::new(input)?;
    let mut content = Vec::new();
    while let Some(block) = frame.next_block()? {
        let filled = content.len();
        content.resize(filled + frame.descriptor.block_max.min(block.content_bound()), 0);
        let len = frame.unpack(&block, &mut content, filled)?;
        content.truncate(filled + len);
    }
    let len = frame.finish(&content)?;
    Ok((content, len))
}

/// What the start of a frame says about the rest.
struct Descriptor {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    content_size: Option<u64>,
    block_max: usize,
    /// Bytes from the magic to the header checksum.
    len: usize,
}

/// Bytes of a frame's header, from its FLG byte.
const fn header_len(flg: u8) -> usize {
    FRAME_START_SIZE + if flg & FLG_CONTENT_SIZE != 0 { 8 } else { 0 } + 1
}

impl Descriptor {
    fn decode(input: &[u8]) -> Result<Self, ErrorKind> {
        let start = input.get(..FRAME_START_SIZE).ok_or(ErrorKind::Short)?;
        let (flg, bd) = (start[4], start[5]);
        let known = start[..4] == FRAME_MAGIC.to_le_bytes()
            && flg & FLG_VERSION == FLG_VERSION_1
            && flg & FLG_REFUSED == 0
            && bd & BD_RESERVED == 0
            && bd >> 4 >= 4;
        if !known {
            return Err(ErrorKind::Lz4);
        }
        let len = header_len(flg);
        let header = input.get(..len).ok_or(ErrorKind::Short)?;
        if header[len - 1] != (XxHash32::oneshot(0, &header[4..len - 1]) >> 8) as u8 {
            return Err(ErrorKind::Lz4);
        }
        let content_size = header.get(FRAME_START_SIZE..FRAME_START_SIZE + 8).filter(|_| flg & FLG_CONTENT_SIZE != 0);
        Ok(Self {
            linked: flg & FLG_INDEPENDENT == 0,
            block_checksums: flg & FLG_BLOCK_CHECKSUMS != 0,
            content_checksum: flg & FLG_CONTENT_CHECKSUM != 0,
            content_size: content_size.map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))),
            block_max: 1 << (8 + 2 * (bd >> 4)),
            len,
        })
    }
}

struct Block<'a> {
    bytes: &'a [u8],
    stored: bool,
}

impl Block<'_> {
    /// The most that this block can unpack to: a byte of match length adds 255 bytes.
    fn content_bound(&self) -> usize {
        self.bytes.len().saturating_mul(255).saturating_add(64)
    }
}

/// A frame that is being unpacked from a slice.
struct Frame<'a> {
    input: &'a [u8],
    position: usize,
    descriptor: Descriptor,
}

impl<'a> Frame<'a> {
    fn new(input: &'a [u8]) -> Result<Self, ErrorKind> {
        let descriptor = Descriptor::decode(input)?;
        Ok(Self { input, position: descriptor.len, descriptor })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ErrorKind> {
        let bytes = self.input[self.position..].get(..len).ok_or(ErrorKind::Short)?;
        self.position += len;
        Ok(bytes)
    }

    fn take_u32(&mut self) -> Result<u32, ErrorKind> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// `None` after the end mark.
    fn next_block(&mut self) -> Result<Option<Block<'a>>, ErrorKind> {
        let size = self.take_u32()?;
        if size == 0 {
            return Ok(None);
        }
        let len = (size & !STORED) as usize;
        if len > self.descriptor.block_max {
            return Err(ErrorKind::Lz4);
        }
        let bytes = self.take(len)?;
        if self.descriptor.block_checksums && self.take_u32()? != XxHash32::oneshot(0, bytes) {
            return Err(ErrorKind::Lz4);
        }
        Ok(Some(Block { bytes, stored: size & STORED != 0 }))
    }

    /// Unpacks `block` to `content[filled..]` and returns how much it filled.
    fn unpack(&self, block: &Block<'_>, content: &mut [u8], filled: usize) -> Result<usize, ErrorKind> {
        let (before, room) = content.split_at_mut(filled);
        let room_len = room.len().min(self.descriptor.block_max);
        let room = &mut room[..room_len];
        if block.stored {
            let room = room.get_mut(..block.bytes.len()).ok_or(ErrorKind::Lz4)?;
            room.copy_from_slice(block.bytes);
            return Ok(block.bytes.len());
        }
        let dictionary: &[u8] = if self.descriptor.linked { before } else { &[] };
        block::decompress_into_with_dict(block.bytes, room, dictionary).map_err(|_| ErrorKind::Lz4)
    }

    /// Checks what follows the end mark and returns the frame's length.
    fn finish(mut self, content: &[u8]) -> Result<usize, ErrorKind> {
        if self.descriptor.content_size.is_some_and(|size| size != content.len() as u64) {
            return Err(ErrorKind::Lz4);
        }
        if self.descriptor.content_checksum && self.take_u32()? != XxHash32::oneshot(0, content) {
            return Err(ErrorKind::Lz4);
        }
        Ok(self.position)
    }
}

/// Appends to `frame` the bytes of one frame from `input`, and takes no byte more from there. `content_len` is what the
/// frame is expected to unpack to; what could only be longer is refused. The frame is not unpacked.
pub fn read_frame<R: Read>(input: &mut R, content_len: usize, frame: &mut Vec<u8>) -> Result<(), ReadFrameError> {
    let start = frame.len();
    take(input, FRAME_START_SIZE, frame)?;
    let flg = frame[start + 4];
    if frame[start..start + 4] != FRAME_MAGIC.to_le_bytes() {
        return Err(ReadFrameError::Refused(ErrorKind::Lz4));
    }
    take(input, header_len(flg) - FRAME_START_SIZE, frame)?;
    // A block cannot usefully be empty, and one of at least a byte that unpacks to nothing is not written by anybody.
    let limit = start + 2 * block_bound(content_len) + 64;
    loop {
        take(input, 4, frame)?;
        let size = u32::from_le_bytes(frame[frame.len() - 4..].try_into().expect("four bytes"));
        if size == 0 {
            break;
        }
        let checksum = if flg & FLG_BLOCK_CHECKSUMS != 0 { 4 } else { 0 };
        let len = (size & !STORED) as usize + checksum;
        if frame.len() + len > limit {
            return Err(ReadFrameError::Refused(ErrorKind::Lz4));
        }
        take(input, len, frame)?;
    }
    if flg & FLG_CONTENT_CHECKSUM != 0 {
        take(input, 4, frame)?;
    }
    Ok(())
}

/// Why a frame could not be read from a stream.
#[derive(Debug)]
pub enum ReadFrameError {
    /// Reading failed. `UnexpectedEof` means that the frame ends early.
    Io(io::Error),
    /// What was read is no frame, or one that unpacks to more than expected.
    Refused(ErrorKind),
}

impl From<io::Error> for ReadFrameError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn take<R: Read>(input: &mut R, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    out.resize(start + len, 0);
    input.read_exact(&mut out[start..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// FLG 0x64, BD 0x40 and their checksum: what every known file has.
    const USUAL_HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x64, 0x40, 0xA7];

    fn frame(blocks: &[(&[u8], bool)], content: &[u8]) -> Vec<u8> {
        let mut out = USUAL_HEADER.to_vec();
        for (bytes, stored) in blocks {
            out.extend((bytes.len() as u32 | if *stored { STORED } else { 0 }).to_le_bytes());
            out.extend(*bytes);
        }
        out.extend([0; 4]);
        out.extend(XxHash32::oneshot(0, content).to_le_bytes());
        out
    }

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Packer::new().pack(content, &mut out);
        out
    }

    #[test]
    fn frames_unpack_and_their_end_is_found() {
        let content = [b"abcd".repeat(100), vec![7; 624]].concat();
        let block = packed(&content[..600]);
        let bytes = frame(&[(&block, false), (&content[600..], true)], &content);
        let mut followed = bytes.clone();
        followed.extend(b"next page");
        let mut out = vec![0; content.len()];
        assert_eq!(unpack_frame(&followed, &mut out), Ok(bytes.len()));
        assert_eq!(out, content);
        assert_eq!(unpack_frame_to_vec(&followed), Ok((content.clone(), bytes.len())));

        let (mut input, mut taken) = (&followed[..], Vec::new());
        read_frame(&mut input, content.len(), &mut taken).unwrap();
        assert_eq!((taken, input), (bytes.clone(), &b"next page"[..]));

        assert_eq!(unpack_frame(&bytes, &mut vec![0; content.len() + 1]), Err(ErrorKind::PageLength));
        assert_eq!(unpack_frame(&bytes, &mut vec![0; content.len() - 1]), Err(ErrorKind::Lz4));
    }

    #[test]
    fn no_changed_or_missing_byte_of_a_frame_goes_unnoticed() {
        let content = [b"abcd".repeat(100), vec![7; 112]].concat();
        let block = packed(&content);
        let bytes = frame(&[(&block, false)], &content);
        let mut out = vec![0; content.len()];
        for i in 0..bytes.len() {
            assert_eq!(unpack_frame(&bytes[..i], &mut out), Err(ErrorKind::Short), "cut at {i}");
            let mut changed = bytes.clone();
            changed[i] ^= 0x10;
            let kept = unpack_frame(&changed, &mut out).is_ok() && out != content;
            assert!(!kept, "byte {i}");
        }
    }

    #[test]
    fn linked_blocks_see_what_is_before_them_and_independent_ones_do_not() {
        // No literals, offset 4, length 4 + 4; then one literal.
        let second = [0x04, 4, 0, 0x10, b'!'];
        let content = b"abcdabcdabcd!";
        let mut bytes = frame(&[(b"abcd", true), (&second, false)], content);
        let mut out = [0; 13];
        assert_eq!(unpack_frame(&bytes, &mut out), Err(ErrorKind::Lz4));
        bytes[4] &= !FLG_INDEPENDENT;
        bytes[6] = (XxHash32::oneshot(0, &bytes[4..6]) >> 8) as u8;
        assert_eq!(unpack_frame(&bytes, &mut out), Ok(bytes.len()));
        assert_eq!(&out, content);
    }

    #[test]
    fn incompressible_content_is_stored() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let content: Vec<u8> = (0..4096).map(|_| random()).collect();
        let block = packed(&content);
        assert_eq!(block.len(), stored_len(4096));
        assert!(block.len() <= block_bound(4096));
    }

    proptest! {
        #[test]
        fn blocks_round_trip(content in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..2000)) {
            let mut stored = Vec::new();
            prop_assert_eq!(pack_stored(&content, &mut stored), stored.len());
            for block in [packed(&content), stored] {
                let mut out = vec![0; content.len()];
                prop_assert_eq!(unpack_block(&block, &mut out), Ok(()));
                prop_assert_eq!(&out, &content);
                if !content.is_empty() {
                    prop_assert_eq!(unpack_block(&block, &mut out[1..]), Err(ErrorKind::Lz4));
                }
                prop_assert_eq!(unpack_block(&block, &mut vec![0; content.len() + 1]), Err(ErrorKind::PageLength));
            }
        }
    }
}
