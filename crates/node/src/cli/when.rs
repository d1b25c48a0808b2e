//! Points in time and TXIDs as people write them.
//!
//! | written | meaning |
//! |---|---|
//! | `2026-01-02T15:04:05.123Z`, `2026-01-02T15:04:05+02:00` | RFC 3339: exactly that |
//! | `2026-01-02 15:04:05`, `2026-01-02T15:04` | in the time zone of this machine; an hour that occurs twice is refused |
//! | `10m ago`, `2 days ago`, `1h30m ago` | before now |
//!
//! A TXID is decimal, or exactly 16 hexadecimal digits as it is printed.

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Span, Zoned};
use rhyolite_format::{Timestamp, Txid};

/// Reads a time relative to `now`, whose zone counts for times without one.
///
/// # Errors
/// One line that shows the text and what is expected.
pub fn parse_time_at(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Some(span) = text.strip_suffix("ago") {
        let span: Span = span.trim().parse().map_err(|_| expected(text))?;
        if span.is_negative() {
            return Err(expected(text));
        }
        let time = now.checked_sub(span).map_err(|_| format!("{text:?} is before any time that can be written"))?;
        return Ok(Timestamp(time.timestamp().as_millisecond()));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp(time.as_millisecond()));
    }
    // A date alone would silently mean midnight; a zone in brackets is jiff's own notation.
    if !text.contains(':') || text.contains('[') {
        return Err(expected(text));
    }
    let local: civil::DateTime = text.parse().map_err(|_| expected(text))?;
    local_time(text, local, now.time_zone())
}

fn local_time(text: &str, local: civil::DateTime, zone: &TimeZone) -> Result<Timestamp, String> {
    let time = zone.to_ambiguous_zoned(local).unambiguous().map_err(|_| {
        format!("{text:?} occurs twice or never in this machine's time zone: add the offset, such as {local}+01:00")
    })?;
    Ok(Timestamp(time.timestamp().as_millisecond()))
}

fn expected(text: &str) -> String {
    format!("{text:?} is no time: write 2026-01-02T15:04:05Z, \"2026-01-02 15:04:05\" (local time) or \"10m ago\"")
}

/// Reads a time relative to the machine's clock and zone.
///
/// # Errors
/// As [`parse_time_at`].
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    parse_time_at(text, &Zoned::now())
}

/// Reads a TXID: decimal, or 16 hex digits.
///
/// # Errors
/// One line that shows the text and what is expected.
pub fn parse_txid(text: &str) -> Result<Txid, String> {
    let error = || {
        format!("{text:?} is no TXID: write a decimal number from 1, or the 16 hex digits that `rhyolite log` shows")
    };
    if text.len() == 16 {
        return text.parse().map_err(|_| error());
    }
    let is_decimal = text.bytes().all(|b| b.is_ascii_digit());
    let number = if is_decimal { text.parse().ok() } else { None };
    number.and_then(Txid::new).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<i64, String> {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let now = "2026-01-02T15:04:05.5Z".parse::<jiff::Timestamp>().unwrap().to_zoned(zone);
        parse_time_at(text, &now).map(|t| t.0)
    }

    #[test]
    fn times() {
        let t = 1_767_366_245_000;
        for (text, expected) in [
            ("2026-01-02T15:04:05Z", t),
            ("2026-01-02T15:04:05.123Z", t + 123),
            ("2026-01-02T17:04:05+02:00", t),
            ("2026-01-02 16:04:05", t),
            ("2026-01-02T16:04", t - 5_000),
            ("10m ago", t + 500 - 600_000),
            ("1h30m ago", t + 500 - 5_400_000),
            ("2 days ago", t + 500 - 172_800_000),
            ("500ms ago", t),
        ] {
            assert_eq!(at(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        for text in
            ["", "ago", "yesterday", "2026-01-02", "15:04", "-10m ago", "10", "1767366245", "2026-13-01 00:00:00"]
        {
            assert!(at(text).unwrap_err().contains("is no time"), "{text:?}");
        }
        assert!(at("2026-10-25 02:30:00").unwrap_err().contains("occurs twice or never"));
        assert!(at("2026-03-29 02:30:00").unwrap_err().contains("occurs twice or never"));
        assert!(at("99999 years ago").is_err());
    }

    #[test]
    fn txids() {
        assert_eq!(parse_txid("42").unwrap().get(), 42);
        assert_eq!(parse_txid("000000000000002a").unwrap().get(), 42);
        assert_eq!(parse_txid("0000000000000010").unwrap().get(), 16, "16 digits are hexadecimal");
        for bad in ["", "0", "-1", "2a", "0x2a", "0000000000000000", "99999999999999999999", "1 "] {
            assert!(parse_txid(bad).is_err(), "{bad:?}");
        }
    }
}
