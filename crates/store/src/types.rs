//! The values that go in and out of a store.

use std::fmt;

use bytes::Bytes;
use rhyolite_format::Timestamp;

/// Which writing of an object this is: an ETag, a generation, a time stamp. Opaque; only equality means something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// Only backends and tests make versions.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that the backend gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes of an object: all of them, or its end ([`crate::Store::get_tail`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What was asked for.
    pub bytes: Bytes,
    /// The version that the bytes belong to.
    pub version: Version,
    /// Size of the whole object in bytes.
    pub size: u64,
}

/// What is known of an object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes.
    pub size: u64,
    /// Which writing this is.
    pub version: Version,
    /// When it was written, by the store's clock, if the store says so.
    pub modified: Option<Timestamp>,
}

/// One object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, relative to the store.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock, if the store says so.
    pub modified: Option<Timestamp>,
}

/// When the content of an object was made, for stores whose readers are other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeAt {
    /// The time.
    pub time: Timestamp,
    /// The same in RFC 3339.
    pub text: String,
}
