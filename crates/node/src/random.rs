//! Random ids.

/// Bytes from the system's generator.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has a random generator");
    bytes
}

/// An id that was never used before: 32 hex digits.
pub fn hex() -> String {
    format!("{:032x}", u128::from_be_bytes(bytes()))
}
