//! Reading an LZ4 frame of any length in bounded memory: what Litestream 0.3 packs databases and WALs into.
//!
//! At most one block is unpacked at a time (4 MiB at most), with the 64 KiB before it that a linked block may refer to. Checksums
//! of header, blocks and content are compared as they come; what was read counts only when the end was reached: the last
//! checksum is behind everything.

use std::io::{self, Read};

use lz4_flex::block;
use twox_hash::XxHash32;

use super::{Descriptor, FRAME_START_SIZE, STORED, header_len};
use crate::ErrorKind;

/// How far back a linked block may refer.
const WINDOW: usize = 64 << 10;

/// Unpacks one frame from a reader. Bytes that are no valid frame, or follow it, give an error of kind `InvalidData` with an
/// [`ErrorKind`] inside; a frame that ends early gives `UnexpectedEof`.
pub struct FrameReader<R> {
    input: R,
    descriptor: Descriptor,
    /// What a linked block may refer to, and the block that is being given out.
    content: Vec<u8>,
    /// How much of `content` was given out.
    given: usize,
    packed: Vec<u8>,
    hash: XxHash32,
    len: u64,
    has_ended: bool,
}

impl<R> std::fmt::Debug for FrameReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader")
            .field("len", &self.len)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

impl<R: Read> FrameReader<R> {
    /// Reads the frame's header.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut header = vec![0; FRAME_START_SIZE];
        input.read_exact(&mut header)?;
        // The magic is looked at before the flag byte is believed.
        if header[..4] != super::FRAME_MAGIC.to_le_bytes() {
            return Err(refused(ErrorKind::Lz4));
        }
        header.resize(header_len(header[4]), 0);
        input.read_exact(&mut header[FRAME_START_SIZE..])?;
        let descriptor = Descriptor::decode(&header).map_err(refused)?;
        Ok(Self {
            input,
            descriptor,
            content: Vec::new(),
            given: 0,
            packed: Vec::new(),
            hash: XxHash32::with_seed(0),
            len: 0,
            has_ended: false,
        })
    }

    /// Bytes of content that were unpacked so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was unpacked so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Unpacks the next block behind the window; at the end mark compares what is known of the content.
    fn next_block(&mut self) -> io::Result<()> {
        let window = if self.descriptor.linked { self.content.len().min(WINDOW) } else { 0 };
        self.content.drain(..self.content.len() - window);
        self.given = window;
        let size = self.read_u32()?;
        if size == 0 {
            return self.end();
        }
        let len = (size & !STORED) as usize;
        if len > self.descriptor.block_max {
            return Err(refused(ErrorKind::Lz4));
        }
        self.packed.resize(len, 0);
        self.input.read_exact(&mut self.packed)?;
        if self.descriptor.block_checksums && self.read_u32()? != XxHash32::oneshot(0, &self.packed) {
            return Err(refused(ErrorKind::Lz4));
        }
        if size & STORED != 0 {
            self.content.extend_from_slice(&self.packed);
        } else {
            self.content.resize(window + self.descriptor.block_max, 0);
            let (dictionary, room) = self.content.split_at_mut(window);
            let unpacked = block::decompress_into_with_dict(&self.packed, room, dictionary);
            let unpacked = unpacked.map_err(|_| refused(ErrorKind::Lz4))?;
            self.content.truncate(window + unpacked);
        }
        std::hash::Hasher::write(&mut self.hash, &self.content[window..]);
        self.len += (self.content.len() - window) as u64;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.has_ended = true;
        if self.descriptor.content_size.is_some_and(|size| size != self.len) {
            return Err(refused(ErrorKind::Lz4));
        }
        if self.descriptor.content_checksum && self.read_u32()? != self.hash.finish_32() {
            return Err(refused(ErrorKind::Lz4));
        }
        match self.input.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(refused(ErrorKind::Trailing)),
        }
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.content.len() && !self.has_ended {
            self.next_block()?;
        }
        let len = out.len().min(self.content.len() - self.given);
        out[..len].copy_from_slice(&self.content[self.given..self.given + len]);
        self.given += len;
        Ok(len)
    }
}

fn refused(kind: ErrorKind) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, kind.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lz4::{Packer, unpack_frame_to_vec};

    /// A frame with blocks of at most 64 KiB, a checksum of the content, and some blocks as they are.
    fn frame(content: &[u8], flags: u8) -> Vec<u8> {
        let mut bytes = vec![0x04, 0x22, 0x4D, 0x18, 0x40 | flags, 0x40];
        let check = (XxHash32::oneshot(0, &bytes[4..]) >> 8) as u8;
        bytes.push(check);
        for (i, part) in content.chunks(64 << 10).enumerate() {
            let mut block = Vec::new();
            if i % 3 == 2 {
                block.extend_from_slice(part);
                bytes.extend_from_slice(&(block.len() as u32 | STORED).to_le_bytes());
            } else {
                Packer::new().pack(part, &mut block);
                bytes.extend_from_slice(&(block.len() as u32).to_le_bytes());
            }
            bytes.extend_from_slice(&block);
            if flags & 0x10 != 0 {
                bytes.extend_from_slice(&XxHash32::oneshot(0, &block).to_le_bytes());
            }
        }
        bytes.extend_from_slice(&[0; 4]);
        if flags & 0x04 != 0 {
            bytes.extend_from_slice(&XxHash32::oneshot(0, content).to_le_bytes());
        }
        bytes
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i / 97) % 251) as u8).collect()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        FrameReader::new(bytes)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn a_frame_gives_the_same_as_when_it_is_unpacked_whole() {
        for len in [0, 1, 65_535, 65_536, 65_537, 400_000] {
            let content = content(len);
            for flags in [0x24, 0x34, 0x20, 0x04] {
                let bytes = frame(&content, flags);
                assert_eq!(unpack_frame_to_vec(&bytes).unwrap(), (content.clone(), bytes.len()));
                assert!(read(&bytes).unwrap() == content, "{len} bytes, flags {flags:#x}");
            }
        }
    }

    #[test]
    fn a_linked_block_refers_to_the_one_before() {
        // The second block is one match of 20 bytes from 70,000 bytes back minus what the window holds: from 10 bytes back.
        let mut bytes = vec![0x04, 0x22, 0x4D, 0x18, 0x40, 0x40];
        bytes.push((XxHash32::oneshot(0, &bytes[4..]) >> 8) as u8);
        bytes.extend_from_slice(&(10_u32 | STORED).to_le_bytes());
        bytes.extend_from_slice(b"0123456789");
        let block = [0x01, 10, 0, 0x50, b'a', b'b', b'c', b'd', b'e'];
        bytes.extend_from_slice(&(block.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&[0; 4]);
        assert_eq!(read(&bytes).unwrap(), b"012345678901234abcde");
        assert_eq!(unpack_frame_to_vec(&bytes).unwrap().0, b"012345678901234abcde");
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let content = content(200_000);
        let good = frame(&content, 0x24);
        for at in [0, 4, 6, 100, good.len() - 2] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            assert!(read(&bytes).is_err(), "byte {at} flipped");
        }
        for len in [0, 5, 7, 300, good.len() - 5, good.len() - 1] {
            assert_eq!(read(&good[..len]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "cut to {len}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(read(&longer).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
