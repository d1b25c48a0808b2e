//! `cargo xtask bench` runs this: whole-process measurements beside tight loops over the same bytes.

fn main() {}
