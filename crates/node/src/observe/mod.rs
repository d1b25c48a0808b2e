//! How the process shows what it is doing: log lines, metrics, HTTP, and a status file per database.
//!
//! All but the log lines are renderings of one [`Figures`](crate::status::Figures) per database.

pub mod events;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod report;
pub mod status_file;
