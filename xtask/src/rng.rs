//! Chance from a seed (SplitMix64), so that a run's choices can be repeated.

use std::ops::Range;

/// A stream of numbers that a seed decides.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `range`, which must not be empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "an empty range has no numbers");
        range.start + self.draw() % (range.end - range.start)
    }

    /// True `percent` times of 100.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.range(0..100) < percent
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.range(0..choices.len() as u64) as usize]
    }

    /// One of `choices`, each as often as its weight says.
    pub fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let mut left = self.range(0..choices.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in choices {
            if left < *weight {
                return *choice;
            }
            left -= weight;
        }
        unreachable!("the weights add up to more than what was drawn")
    }

    /// `len` bytes: text-like half of the time, noise otherwise, so that pages compress both well and badly.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        if self.percent(50) {
            const WORDS: [&[u8]; 8] =
                [b"basalt ", b"obsidian ", b"flow ", b"commit ", b"page ", b"the ", b"glass ", b"pumice "];
            let mut text = Vec::with_capacity(len + 16);
            while text.len() < len {
                text.extend_from_slice(self.pick(&WORDS));
            }
            text.truncate(len);
            return text;
        }
        let mut noise = Vec::with_capacity(len + 8);
        while noise.len() < len {
            noise.extend_from_slice(&self.draw().to_le_bytes());
        }
        noise.truncate(len);
        noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_weights_hold() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..100).map(|_| rng.weighted(&[(1, 'a'), (0, 'b'), (3, 'c')])).collect::<String>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(!draw(7).contains('b') && draw(7).matches('c').count() > draw(7).matches('a').count());
    }
}
