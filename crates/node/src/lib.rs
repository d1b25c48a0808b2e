//! The process: drivers that do what `rhyolite-logic` decides, and the one binary `rhyolite`.

pub mod cli;
pub mod config;
pub mod exec;
pub mod observe;
pub mod signals;
pub mod status;
pub mod time;
