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

/// CRC of what `crc` already covers followed by `bytes`.
pub fn resume(crc: u64, bytes: &[u8]) -> u64 {
    if bytes.len() < SHORT_BYTES {
        return update_by_table(crc, bytes);
    }
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64GoIso, !crc);
    digest.update(bytes);
    digest.finalize()
}

/// Multiplies a CRC by x^(8 * length), which is what `length` more bytes do to it: four bits of the CRC to a row.
type Shift = [[u64; 16]; 16];

/// Shifts by the page sizes 2^9, 2^10, … 2^16. Constant, because they cost more to make than to use.
static PAGE_SHIFTS: [Shift; 8] = page_shifts();

const fn page_shifts() -> [Shift; 8] {
    let mut shifts = [[[0; 16]; 16]; 8];
    // Column i is what a CRC of only bit i becomes. First for one zero bit more, then squared up to 2^19 bits.
    let mut columns = [0; 64];
    let mut i = 0;
    while i < 64 {
        columns[i] = if i == 0 { POLYNOMIAL_REVERSED } else { 1 << (i - 1) };
        i += 1;
    }
    let mut log2_bits = 0;
    while log2_bits < 19 {
        columns = squared(&columns);
        log2_bits += 1;
        if log2_bits >= 12 {
            shifts[log2_bits - 12] = rows(&columns);
        }
    }
    shifts
}

const fn squared(columns: &[u64; 64]) -> [u64; 64] {
    let mut square = [0; 64];
    let mut i = 0;
    while i < 64 {
        let mut bit = 0;
        while bit < 64 {
            if columns[i] >> bit & 1 == 1 {
                square[i] ^= columns[bit];
            }
            bit += 1;
        }
        i += 1;
    }
    square
}

const fn rows(columns: &[u64; 64]) -> Shift {
    let mut shift = [[0; 16]; 16];
    let mut entry = 0;
    while entry < 256 {
        let (row, nibble) = (entry / 16, entry % 16);
        let mut bit = 0;
        while bit < 4 {
            if nibble >> bit & 1 == 1 {
                shift[row][nibble] ^= columns[4 * row + bit];
            }
            bit += 1;
        }
        entry += 1;
    }
    shift
}

/// CRC of what `before` covers followed by a page, from the CRC of that page alone. `page_bytes` is a power of two in
/// 512..=65536. So a page that counts in two checksums is read once.
pub fn join_page(before: u64, page: u64, page_bytes: usize) -> u64 {
    assert!(page_bytes.is_power_of_two() && (512..=65536).contains(&page_bytes), "a page of {page_bytes} bytes");
    let shift = &PAGE_SHIFTS[page_bytes.trailing_zeros() as usize - 9];
    let mut shifted = 0;
    for (row, entries) in shift.iter().enumerate() {
        shifted ^= entries[(before >> (4 * row) & 15) as usize];
    }
    shifted ^ page
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
    fn joined_pages_agree_with_hashing_on() {
        for log2 in 9..=16 {
            let page: Vec<u8> = (0..1u32 << log2).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            for before in [&b""[..], b"\0\0\0\x01", b"LTX1", &[0xff; 100]] {
                let expected = update_by_table(crc64(before), &page);
                assert_eq!(join_page(crc64(before), crc64(&page), page.len()), expected, "{before:?} and 2^{log2}");
            }
        }
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
            for cut in [0, len / 3, len] {
                assert_eq!(resume(crc64(&whole[..cut]), &whole[cut..]), expected, "length {len} resumed at {cut}");
            }
        }
    }
}
