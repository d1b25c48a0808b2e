//! CRC-64/GO-ISO, the checksum of every LTX field (LTX specification, section 3.1).
//!
//! Long inputs go through carry-less multiplication where the processor has it; short ones through a table, which is
//! faster below some 64 bytes and serves the tests as an independent oracle.

use crc_fast::{CrcAlgorithm, Digest};

const POLYNOMIAL_REVERSED: u64 = 0xD800_0000_0000_0000;
/// Below this many bytes the table wins over setting up carry-less multiplication.
const SHORT_BYTES: usize = 64;

const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL_REVERSED } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

/// CRC of `bytes`.
pub fn crc64(bytes: &[u8]) -> u64 {
    if bytes.len() < SHORT_BYTES {
        update_by_table(0, bytes)
    } else {
        crc_fast::checksum(CrcAlgorithm::Crc64GoIso, bytes)
    }
}

/// CRC of what `crc` already covers followed by `bytes`, a byte at a time.
pub fn update_by_table(crc: u64, bytes: &[u8]) -> u64 {
    let mut c = !crc;
    for b in bytes {
        c = TABLE[((c ^ u64::from(*b)) & 0xff) as usize] ^ (c >> 8);
    }
    !c
}

/// A running CRC.
#[derive(Clone, Debug)]
pub struct Crc64(Digest);

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc64 {
    /// The CRC of nothing.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all bytes so far.
    pub fn sum(&self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_specification() {
        for crc in [
            crc64(b"123456789"),
            update_by_table(0, b"123456789"),
            crc_fast::checksum(CrcAlgorithm::Crc64GoIso, b"123456789"),
        ] {
            assert_eq!(crc, 0xB909_56C7_75A4_1001);
        }
        assert_eq!(
            (TABLE[1], TABLE[128], TABLE[255]),
            (0x01B0_0000_0000_0000, 0xD800_0000_0000_0000, 0x9090_0000_0000_0000)
        );
    }

    #[test]
    fn every_length_agrees_with_the_table_however_it_is_cut() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in (0..300).chain([511, 512, 1024, 2999, 3000]) {
            let whole = &bytes[..len];
            let expected = update_by_table(0, whole);
            assert_eq!(crc64(whole), expected, "length {len}");
            let mut running = Crc64::new();
            for piece in whole.chunks(37) {
                running.update(piece);
            }
            assert_eq!(running.sum(), expected, "length {len} in pieces");
        }
    }
}
