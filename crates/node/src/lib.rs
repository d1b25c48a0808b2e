//! The process: drivers that do what `rhyolite-logic` decides, and the one binary `rhyolite`.

pub mod config;
pub mod observe;
pub mod status;
pub mod time;
