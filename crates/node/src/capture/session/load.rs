//! How much is captured, and how pages are packed therefore.

use std::time::{Duration, Instant};

use rhyolite_format::ltx::Packing;

/// Above this many captured bytes per second pages are stored instead of compressed: LZ4 is four fifths of the cost. Below, what is
/// not written to the disk does not keep the application waiting for it.
const PACK_BYTES_PER_SECOND: u64 = 64 << 20;

/// Captured bytes per second, to choose how pages are packed.
#[derive(Debug)]
pub(super) struct Load {
    since: Instant,
    bytes: u64,
}

impl Load {
    /// Nothing was captured yet.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    /// How to pack, when so many more bytes are captured.
    pub(super) fn packing(&mut self, bytes: u64) -> Packing {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self { since: Instant::now(), bytes: self.bytes / 2 };
        }
        self.bytes += bytes;
        if self.bytes > PACK_BYTES_PER_SECOND { Packing::Stored } else { Packing::Lz4 }
    }
}
