//! The process: drivers that do what `rhyolite-logic` decides, and the one binary `rhyolite`.

pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod exec;
pub mod follow;
pub mod history;
pub mod keep;
pub mod lease;
pub use rhyolite_writer::log_end;
pub mod manifest_swap;
mod memory;
pub mod observe;
pub mod park;
pub mod points;
pub mod progress;
pub mod random;
pub mod replicate;
pub mod restore;
pub mod signals;
pub mod status;
pub mod supervise;
pub mod time;
pub mod upload;
pub mod verify;
pub mod world;
