//! Checksum of WAL and wal-index (LTX specification, section 21.3).
//!
//! For each pair of words (x, y): `s0 += x + s1; s1 += y + s0`, modulo 2^32. Each step waits for the one before, which
//! bounds the plain loop to 4 bytes a cycle. But a step is linear: n pairs take the state (s0, s1) to
//!
//! ```text
//!   | F(2n-1)  F(2n)   | | s0 |
//!   | F(2n)    F(2n+1) | | s1 |  +  what the same pairs make of (0, 0)        F: Fibonacci numbers
//! ```
//!
//! so that four runs of equal length are summed side by side, without waiting for each other, and put together. The runs
//! are short enough for the processor to see one stream of memory.

const LANES: usize = 4;
const PAIR_BYTES: usize = 8;
/// Pairs of a run.
const LANE_PAIRS: usize = 32;
const ADVANCE: Advance = Advance::by(LANE_PAIRS);

/// Sum of `bytes`, continued from `start`; (0, 0) to begin with. The length is a multiple of 8.
pub fn checksum(start: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let (pairs, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "the checksum takes pairs of words, not {} bytes", bytes.len());
    if big_endian { sum::<true>(start, pairs) } else { sum::<false>(start, pairs) }
}

fn sum<const BIG_ENDIAN: bool>(start: (u32, u32), pairs: &[[u8; PAIR_BYTES]]) -> (u32, u32) {
    let (blocks, rest) = pairs.as_chunks();
    let joined = blocks.iter().fold(start, sum_block::<BIG_ENDIAN>);
    sum_serially::<BIG_ENDIAN>(joined, rest)
}

#[inline(always)]
fn sum_block<const BIG_ENDIAN: bool>(start: (u32, u32), block: &[[u8; PAIR_BYTES]; LANES * LANE_PAIRS]) -> (u32, u32) {
    let mut sums = [(0, 0); LANES];
    for i in 0..LANE_PAIRS {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = step::<BIG_ENDIAN>(*sum, &block[lane * LANE_PAIRS + i]);
        }
    }
    sums.iter().fold(start, |before, lane| ADVANCE.apply(before, *lane))
}

fn sum_serially<const BIG_ENDIAN: bool>(start: (u32, u32), pairs: &[[u8; PAIR_BYTES]]) -> (u32, u32) {
    pairs.iter().fold(start, step::<BIG_ENDIAN>)
}

#[inline(always)]
fn step<const BIG_ENDIAN: bool>((s0, s1): (u32, u32), pair: &[u8; PAIR_BYTES]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = *pair;
    let word = if BIG_ENDIAN { u32::from_be_bytes } else { u32::from_le_bytes };
    let s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
    let s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
    (s0, s1)
}

/// What a number of pairs does to the state before them: F(2n-1), F(2n) and F(2n+1).
#[derive(Clone, Copy)]
struct Advance {
    low: u32,
    middle: u32,
    high: u32,
}

impl Advance {
    const fn by(pairs: usize) -> Self {
        let mut advance = Self { low: 1, middle: 0, high: 1 };
        let mut done = 0;
        while done < pairs {
            // One more pair takes the state to (s0 + s1, s0 + 2 s1).
            let Self { low, middle, high } = advance;
            advance = Self {
                low: low.wrapping_add(middle),
                middle: middle.wrapping_add(high),
                high: middle.wrapping_add(high.wrapping_mul(2)),
            };
            done += 1;
        }
        advance
    }

    /// State after a run that comes after `before` and makes `run` of (0, 0).
    fn apply(self, (s0, s1): (u32, u32), run: (u32, u32)) -> (u32, u32) {
        let dot = |a: u32, b: u32| a.wrapping_mul(s0).wrapping_add(b.wrapping_mul(s1));
        (dot(self.low, self.middle).wrapping_add(run.0), dot(self.middle, self.high).wrapping_add(run.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// The specification, word by word.
    fn plain((mut s0, mut s1): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
        let word = |w: &[u8]| {
            let w = w.try_into().unwrap();
            if big_endian { u32::from_be_bytes(w) } else { u32::from_le_bytes(w) }
        };
        for pair in bytes.chunks(8) {
            s0 = s0.wrapping_add(word(&pair[..4])).wrapping_add(s1);
            s1 = s1.wrapping_add(word(&pair[4..])).wrapping_add(s0);
        }
        (s0, s1)
    }

    #[test]
    fn every_length_agrees_with_the_plain_loop() {
        let bytes = bytes(65536);
        let start = (0x9e37_79b9, 0xdead_beef);
        for len in (0..3000).step_by(8).chain([4096, 8192, 16384, 32768, 65528, 65536]) {
            for big_endian in [false, true] {
                let expected = plain(start, &bytes[..len], big_endian);
                assert_eq!(checksum(start, &bytes[..len], big_endian), expected, "{len} bytes");
            }
        }
    }

    #[test]
    fn sums_continue_wherever_they_are_cut() {
        let bytes = bytes(4104);
        let whole = checksum((1, 2), &bytes, false);
        for cut in (0..=4104).step_by(8) {
            assert_eq!(checksum(checksum((1, 2), &bytes[..cut], false), &bytes[cut..], false), whole, "cut at {cut}");
        }
    }

    #[test]
    fn flipping_any_bit_changes_the_sum() {
        let mut bytes = bytes(512);
        let sum = checksum((0, 0), &bytes, false);
        for bit in 0..512 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum((0, 0), &bytes, false), sum, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
