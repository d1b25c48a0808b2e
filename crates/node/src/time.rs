//! Wall-clock time as people and programs see it: RFC 3339 in UTC with milliseconds.

use jiff::tz::TimeZone;
use rhyolite_format::Timestamp;

/// The clock of this machine. It may jump; what must not run backwards uses `std::time::Instant`.
pub fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// The same clock in nanoseconds since 1970.
pub fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// `2026-01-02T15:04:05.123Z`, the form in which every command and every JSON document shows a time. Times that no
/// calendar holds (foreign bytes may say anything) are shown as their number of milliseconds.
pub fn format_utc(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Err(_) => format!("{} ms since 1970", time.0),
    }
}

/// JSON form of a [`Timestamp`]: a text as [`format_utc`] gives it.
pub mod rfc3339 {
    use rhyolite_format::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::format_utc(*time))
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Text that is no RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(d)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(Timestamp(time.as_millisecond()))
    }

    /// The same for an `Option`.
    pub mod option {
        use super::{Deserialize, Deserializer, Serializer, Timestamp};

        /// For `#[serde(with)]`.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, s),
                None => s.serialize_none(),
            }
        }

        /// For `#[serde(with)]`.
        ///
        /// # Errors
        /// Text that is no RFC 3339 time.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
            #[derive(Deserialize)]
            struct Time(#[serde(with = "super")] Timestamp);
            Ok(Option::<Time>::deserialize(d)?.map(|t| t.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_in_utc_with_milliseconds() {
        assert_eq!(format_utc(Timestamp(1_767_366_245_123)), "2026-01-02T15:04:05.123Z");
        assert_eq!(format_utc(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_utc(Timestamp(i64::MAX)), "9223372036854775807 ms since 1970");
    }
}
