//! What our JSON objects have in common: the first member is `format`, a number that says how to read the rest. An unknown
//! number is refused before anything else is looked at; unknown members are refused; the same value always gives the same
//! bytes (members in the order of the specification, no spaces, one line feed at the end).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{DecodeError, ErrorKind};

/// The format number 1, the only one there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format1;

impl Serialize for Format1 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(1)
    }
}

impl<'de> Deserialize<'de> for Format1 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match u32::deserialize(d)? {
            1 => Ok(Self),
            other => Err(serde::de::Error::custom(format!("format {other}"))),
        }
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("plain structures with string keys always serialize");
    bytes.push(b'\n');
    bytes
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str, size_max: usize) -> Result<T, DecodeError> {
    let size = bytes.len();
    if size > size_max {
        return Err(DecodeError::new(ErrorKind::Field, what, size as u64)
            .detail(format!("{size} bytes, at most {size_max} are allowed")));
    }
    check_format(bytes, what)?;
    serde_json::from_slice(bytes).map_err(|e| {
        let kind = match e.classify() {
            serde_json::error::Category::Data => ErrorKind::Field,
            serde_json::error::Category::Eof => ErrorKind::Short,
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => ErrorKind::Syntax,
        };
        DecodeError::new(kind, what, offset(bytes, e.line(), e.column())).detail(e.to_string())
    })
}

/// Looks only at the first member. It must be `format`, and the number must be known.
fn check_format(bytes: &[u8], what: &'static str) -> Result<(), DecodeError> {
    let mut at = 0;
    for token in ["{", "\"format\"", ":"] {
        at += spaces(&bytes[at..]);
        let rest = &bytes[at..];
        if !rest.starts_with(token.as_bytes()) {
            let kind = if token.as_bytes().starts_with(rest) { ErrorKind::Short } else { ErrorKind::Syntax };
            return Err(DecodeError::new(kind, what, at as u64).detail("the first member must be \"format\""));
        }
        at += token.len();
    }
    at += spaces(&bytes[at..]);
    let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    match &bytes[at..at + digits] {
        b"1" => Ok(()),
        b"" => Err(DecodeError::new(ErrorKind::Syntax, what, at as u64).detail("\"format\" must be a number")),
        other => {
            let version = String::from_utf8_lossy(&other[..other.len().min(20)]);
            Err(DecodeError::new(ErrorKind::Version, what, at as u64).detail(format!("format {version}, known is 1")))
        }
    }
}

fn spaces(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

/// Offset in bytes of a line and column, both from 1 (column 0: the end of the line before).
fn offset(bytes: &[u8], line: usize, column: usize) -> u64 {
    let before: usize = bytes.split_inclusive(|b| *b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(bytes.len()) as u64
}
