//! How long work tells whoever waits for it how far it is.
//!
//! The work calls [`Progress`]; what is shown is decided by the implementation: nothing, or a bar on a terminal.

use std::fmt;

use indicatif::{ProgressBar, ProgressStyle};

/// What long work is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the manifest and the log; how much there is to do is not known.
    Planning,
    /// Reading pages, this many of them in all.
    Pages(u64),
    /// Waiting for the disk.
    Syncing,
    /// Everything is done.
    Done,
}

/// Receives the state of long work, from any thread.
pub trait Progress: Send + Sync + fmt::Debug {
    /// The work enters a stage.
    fn enter(&self, stage: Stage);
    /// Within [`Stage::Pages`]: so many more pages are done, and so many more bytes came from the store.
    fn advance(&self, pages: u64, bytes: u64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn enter(&self, _stage: Stage) {}

    fn advance(&self, _pages: u64, _bytes: u64) {}
}

/// A bar on standard error. Shows nothing when standard error is no terminal.
#[derive(Clone, Debug)]
pub struct TerminalBar {
    bar: ProgressBar,
    bytes: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl TerminalBar {
    /// A bar that is named after the work, for example `"restore"`.
    pub fn new(name: &'static str) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_prefix(name);
        Self { bar, bytes: std::sync::Arc::default() }
    }
}

impl Progress for TerminalBar {
    fn enter(&self, stage: Stage) {
        match stage {
            Stage::Planning => {
                self.bar.set_style(style("{prefix}: {spinner} {msg}"));
                self.bar.set_message("reading the log");
            }
            Stage::Pages(pages) => {
                self.bar.set_style(style("{prefix}: {bar:40} {percent}% of {len} pages, {msg}, {eta} left"));
                self.bar.set_message("0 MiB fetched");
                self.bar.set_length(pages);
            }
            Stage::Syncing => self.bar.set_message("waiting for the disk"),
            Stage::Done => self.bar.finish_and_clear(),
        }
    }

    fn advance(&self, pages: u64, bytes: u64) {
        let bytes = bytes + self.bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        self.bar.set_message(format!("{} MiB fetched", bytes >> 20));
        self.bar.inc(pages);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are valid")
}
