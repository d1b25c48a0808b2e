//! Reads a range of an object from start to end in blocking code, one piece ahead.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use rhyolite_format::crc::Crc64;
use rhyolite_format::ltx::ReadError;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::RestoreError;
use super::pool::finished;
use super::reader::Reader;

/// Largest piece that one stream reads at once; it holds two of them.
pub(crate) const PIECE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of an object, in order. Must not be read on a thread that runs the runtime's tasks.
#[derive(Debug)]
pub(crate) struct ObjectStream {
    reader: Arc<Reader>,
    runtime: Handle,
    key: Arc<str>,
    /// What has not been asked for.
    rest: Range<u64>,
    piece_bytes: u64,
    ahead: Option<JoinHandle<Result<Bytes, RestoreError>>>,
    current: Bytes,
    crc: Crc64,
}

impl ObjectStream {
    /// Starts to read. Must be called within the runtime.
    pub(crate) fn new(reader: Arc<Reader>, key: Arc<str>, range: Range<u64>, piece_bytes: u64) -> Self {
        let runtime = Handle::current();
        let piece_bytes = piece_bytes.clamp(4096, PIECE_BYTES_MAX);
        let (ahead, current, crc) = (None, Bytes::new(), Crc64::new());
        let mut stream = Self { reader, runtime, key, rest: range, piece_bytes, ahead, current, crc };
        stream.ask();
        stream
    }

    /// CRC of all bytes that were read so far.
    pub(crate) fn crc(&self) -> u64 {
        self.crc.sum()
    }

    fn ask(&mut self) {
        if self.rest.is_empty() {
            return;
        }
        let piece = self.rest.start..self.rest.end.min(self.rest.start + self.piece_bytes);
        self.rest.start = piece.end;
        let (reader, key) = (Arc::clone(&self.reader), Arc::clone(&self.key));
        self.ahead = Some(self.runtime.spawn(async move { reader.get_range(&key, piece).await }));
    }
}

impl Read for ObjectStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            let Some(ahead) = self.ahead.take() else { return Ok(0) };
            self.current = finished(self.runtime.block_on(ahead)).map_err(io::Error::other)?;
            self.crc.update(&self.current);
            self.ask();
        }
        let len = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..len]);
        Ok(len)
    }
}

/// What a decoder over a stream of this object came to.
pub(crate) fn stream_error(key: &str, error: ReadError) -> RestoreError {
    match error {
        ReadError::Decode(e) => RestoreError::damaged(key, e),
        ReadError::Io(e) => io_error(key, e),
    }
}

/// What reading a stream of this object came to.
pub(crate) fn io_error(key: &str, error: io::Error) -> RestoreError {
    match error.downcast::<RestoreError>() {
        Ok(e) => e,
        Err(e) => RestoreError::contradiction(key, e.to_string()),
    }
}
