//! Integration tests of the process.

mod capture;
