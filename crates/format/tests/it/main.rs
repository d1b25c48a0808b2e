//! Tests of the formats against files that other programs wrote. One binary, so that it links once.

mod checksums;
mod sqlite;
mod vectors;
