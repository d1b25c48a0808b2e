//! `NAME-rhyolite-trail`: the positions that a file which follows has come through (docs/spec/follow.md).
//!
//! A header, then positions of [`POS_SIZE`] bytes. What lies behind the last whole one, and everything behind one that makes no sense, is not read: it was being written
//! when the process ended. Unless it says that it was synced, it counts only as long as the system has run on.

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, trail_header as at};
use crate::types::{Checksum, Pos, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHTR";
/// The only version that is read.
pub const VERSION: u8 = 1;
/// Size of the header in bytes.
pub const HEADER_SIZE: usize = at::SIZE;
/// Size of a position in bytes: TXID and checksum.
pub const POS_SIZE: usize = 16;

const WHAT: &str = "trail";

/// The header of a trail of this start of the system; zeros say that it is synced.
pub fn encode_header(boot_id: [u8; 16]) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    at::MAGIC.put(&mut bytes, &MAGIC);
    at::VERSION.put(&mut bytes, &[VERSION]);
    at::BOOT_ID.put(&mut bytes, &boot_id);
    let crc = crc64(&bytes[..at::CRC.offset]);
    at::CRC.put_u64(&mut bytes, crc);
    bytes
}

/// One position.
pub fn encode_pos(pos: Pos) -> [u8; POS_SIZE] {
    let mut bytes = [0; POS_SIZE];
    bytes[..8].copy_from_slice(&pos.txid.get().to_be_bytes());
    bytes[8..].copy_from_slice(&pos.checksum.get().to_be_bytes());
    bytes
}

/// Reads a trail: in which start of the system it was written, and the positions in their order.
pub fn decode(bytes: &[u8]) -> Result<([u8; 16], Vec<Pos>), DecodeError> {
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
    let pos = |record: &[u8; POS_SIZE]| {
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
        Some(Pos { txid: Txid::new(number(&record[..8]))?, checksum: Checksum::from_raw(number(&record[8..]))? })
    };
    let all = bytes[HEADER_SIZE..].as_chunks::<POS_SIZE>().0.iter().map_while(pos).collect();
    Ok((at::BOOT_ID.id(bytes), all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_read_as_far_as_it_is_whole() {
        let pos = |n| Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n * 7) };
        let mut bytes = encode_header([5; 16]).to_vec();
        assert_eq!(decode(&bytes), Ok(([5; 16], Vec::new())));
        (1..4).for_each(|n| bytes.extend(encode_pos(pos(n))));
        assert_eq!(decode(&bytes), Ok(([5; 16], vec![pos(1), pos(2), pos(3)])));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), Ok(([5; 16], vec![pos(1), pos(2)])));
        let torn = [&bytes[..HEADER_SIZE + POS_SIZE], &[0; POS_SIZE], &bytes[HEADER_SIZE..]].concat();
        assert_eq!(decode(&torn), Ok(([5; 16], vec![pos(1)])));
        for index in 0..HEADER_SIZE {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(decode(&changed).is_err(), "byte {index}");
            assert!(decode(&bytes[..index]).is_err(), "cut at {index}");
        }
    }
}
