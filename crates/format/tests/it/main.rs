//! Tests of the formats against files that other programs wrote. One binary, so that it links once.

mod checksums;
#[allow(unreachable_pub, reason = "the fuzz targets take it in too")]
mod fuzz_bodies;
mod fuzz_corpus;
mod ltx_compose;
mod ltx_files;
mod ltx_invalid;
mod ltx_properties;
mod sqlite;
mod vectors;
