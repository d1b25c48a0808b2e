//! The process: drivers that do what `rhyolite-logic` decides, and the one binary `rhyolite`.

pub mod cli;
pub mod config;
pub mod exec;
pub mod observe;
pub mod points;
pub mod progress;
pub mod restore;
pub mod signals;
pub mod status;
pub mod time;
pub mod verify;
