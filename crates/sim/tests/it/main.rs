//! Seeds that must hold, and rules without which they do not.

mod rules;
mod seeds;
