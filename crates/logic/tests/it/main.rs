//! Tests of decisions against models of the world around them. One binary, so that it links once.

mod wal_model;
