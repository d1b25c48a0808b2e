//! Log lines on standard error: text for people, or one JSON object per line.
//!
//! The level applies to Rhyolite; libraries are heard from WARN on.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogLevel, LoggingConfig};
use crate::time;

/// Names of Rhyolite's crates as log targets start with this.
const OWN_TARGETS: &str = "rhyolite";

struct UtcTime;

impl FormatTime for UtcTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        w.write_str(&time::format_utc(time::now()))
    }
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// Starts logging for the whole process. A second call changes nothing.
pub fn start(config: LoggingConfig) {
    let own = level(config.level);
    let libraries = own.min(LevelFilter::WARN);
    let filter = Targets::new().with_default(libraries).with_target(OWN_TARGETS, own);
    let layer = fmt::layer().with_writer(std::io::stderr).with_timer(UtcTime).with_target(false);
    let layer = match config.format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    // Fails only when logging was already started, as it is in tests that share a process.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
