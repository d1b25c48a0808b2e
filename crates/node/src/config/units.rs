//! Durations and sizes as people write them: `500ms`, `1h30m`, `7d`; `4096`, `64MiB`, `1GB`.
//!
//! A duration needs a unit, because `sync-interval: 5` has meant seconds, milliseconds and minutes in various programs;
//! only `0` stands alone.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

const DURATION_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// The number that `text` starts with and what follows it; `None` when it does not start with a digit or is too large.
fn leading_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

/// Reads `1s`, `500ms`, `1h30m`, `0`.
///
/// # Errors
/// One line that shows the text and what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error =
        || format!("{text:?} is no duration: write a number with a unit (ms, s, m, h, d, w), such as 500ms or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(error)?;
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (name, after) = after.split_at(letters);
        let (_, unit) = DURATION_UNITS.iter().find(|(n, _)| *n == name).ok_or_else(error)?;
        total_ms = number.checked_mul(*unit).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(error)?;
        rest = after;
    }
    if text.is_empty() { Err(error()) } else { Ok(Duration::from_millis(total_ms)) }
}

/// Reads `4096`, `64MiB`, `1GB`.
///
/// # Errors
/// One line that shows the text and what is expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let error = || {
        format!("{text:?} is no size: write bytes or a number with a unit (KB, MB, GB, KiB, MiB, GiB), such as 64MiB")
    };
    let (number, name) = leading_number(text).ok_or_else(error)?;
    let name = name.trim_start();
    let (_, unit) = SIZE_UNITS.iter().find(|(n, _)| *n == name).ok_or_else(error)?;
    number.checked_mul(*unit).ok_or_else(error)
}

/// `1h30m`, read back exactly by [`parse_duration`]; parts of a millisecond are dropped.
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, unit) in DURATION_UNITS.iter().rev().skip(1) {
        if rest_ms >= *unit {
            text.push_str(&format!("{}{name}", rest_ms / unit));
            rest_ms %= unit;
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

/// `1.5 MiB`, for people.
pub fn format_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for name in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A duration in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationText(pub Duration);

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        parse_duration(&String::deserialize(d)?).map(Self).map_err(de::Error::custom)
    }
}

/// A size in bytes in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeText(pub u64);

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        parse_size(&String::deserialize(d)?).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text: &str| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("7d"), Ok(604_800_000));
        for bad in ["", "5", "s", "-1s", "1.5h", "1 s", "1y", "1s2", "99999999999999999999s", "18446744073709551615w"] {
            assert!(ms(bad).is_err(), "{bad:?}");
        }
        for text in ["0", "1ms", "1s500ms", "1d1h1m1s1ms", "30d"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1 GB"), Ok(1_000_000_000));
        for bad in ["", "MiB", "1mib", "1.5GB", "-1", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(5 << 40), "5.0 TiB");
    }
}
