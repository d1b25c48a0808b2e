//! Seeds that must hold, and rules without which they do not.

mod cluster;
mod rules;
mod seeds;
