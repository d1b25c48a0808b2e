//! Bytes: SQLite and LTX files, our own objects, and their keys.
//!
//! Everything here turns bytes into values and values into bytes. Nothing here does I/O, reads a clock or draws a random
//! number, so that every rule can be tested with a slice. Foreign bytes never panic: they give a [`DecodeError`].

pub mod crc;
mod error;
pub mod follow;
pub mod identity;
mod json;
pub mod keys;
mod layout;
pub mod lease;
pub mod litestream;
pub mod lost;
pub mod ltx;
pub mod lz4;
pub mod manifest;
#[cfg(test)]
mod own_formats_tests;
pub mod probe;
pub mod push;
pub mod resume;
#[cfg(test)]
mod samples;
pub mod segment;
#[cfg(test)]
mod spec_tests;
pub mod sqlite;
pub mod state;
pub mod stream;
pub mod trail;
mod types;

pub use error::{DecodeError, ErrorKind};
pub use json::Format1;
pub use types::{
    Checksum, Epoch, Lineage, Nonce, PageCount, PageNumber, PageSize, ParseError, Pos, Seq, Timestamp, Txid,
};
