//! Reading an LTX file of any format from the disk: whole, in order, every rule checked.
//!
//! The current format is streamed. When the bytes are not of the current format they are read as one of the older ones,
//! which needs the whole file in memory.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use rhyolite_format::ltx::{self, Decoder, Format, LtxHeader, ReadError, Trailer};
use rhyolite_format::{Checksum, DecodeError, PageCount, PageNumber, PageSize, Timestamp, Txid};
use serde::Serialize;

use crate::cli::exit::{Failure, Status};
use crate::time;

/// Read-ahead of a streamed file.
const BUFFER_BYTES: usize = 256 << 10;
/// Largest file of an older format that is taken into memory.
const OLD_FORMAT_BYTES_MAX: u64 = 2 << 30;

/// What a whole, checked file says about itself.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LtxSummary {
    pub(super) format: u8,
    pub(super) snapshot: bool,
    pub(super) min_txid: Txid,
    pub(super) max_txid: Txid,
    #[serde(with = "time::rfc3339")]
    pub(super) timestamp: Timestamp,
    pub(super) page_size: PageSize,
    pub(super) commit: PageCount,
    pub(super) page_count: u64,
    pub(super) pre_apply: Option<Checksum>,
    pub(super) post_apply: Option<Checksum>,
    pub(super) file_checksum: Checksum,
    pub(super) node_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) warning: Option<String>,
}

impl LtxSummary {
    fn new(format: u8, header: &LtxHeader, page_count: u64, trailer: Trailer, warning: Option<String>) -> Self {
        Self {
            format,
            snapshot: header.is_snapshot(),
            min_txid: header.min_txid,
            max_txid: header.max_txid,
            timestamp: header.timestamp,
            page_size: header.page_size,
            commit: header.commit,
            page_count,
            pre_apply: header.pre_apply,
            post_apply: trailer.post_apply,
            file_checksum: trailer.file_checksum,
            node_id: header.node_id,
            warning,
        }
    }

    /// Whether this file goes on where `previous` ended. A snapshot starts anew.
    pub(super) fn check_follows(&self, previous: Option<&Self>) -> Result<(), String> {
        let Some(previous) = previous.filter(|_| !self.snapshot) else { return Ok(()) };
        if self.min_txid != previous.max_txid.next() {
            let (found, expected) = (self.min_txid, previous.max_txid.next());
            return Err(format!("transactions are missing: it starts at {found}, but {expected} must follow"));
        }
        if self.page_size != previous.page_size {
            return Err(format!("its page size is {}, but that before it was {}", self.page_size, previous.page_size));
        }
        match (self.pre_apply, previous.post_apply) {
            (Some(found), Some(expected)) if found != expected => {
                Err(format!("checksums do not join: it starts from {found}, but {expected} was reached"))
            }
            _ => Ok(()),
        }
    }
}

/// What is called with each page, before the file is proved.
pub(super) type OnPage<'a> = &'a mut dyn FnMut(PageNumber, &[u8]) -> Result<(), Failure>;

/// Reads and checks a whole file. Pages are given out only after the file was found to be whole.
pub(super) fn visit(path: &Path, on_page: OnPage<'_>) -> Result<LtxSummary, Failure> {
    match stream(path, &mut |_, _| Ok(()))? {
        Ok(_) => stream(path, on_page)?.map_err(|e| damaged(path, &e)),
        Err(error) => visit_old(path, &error, on_page),
    }
}

/// One pass over a file of the current format. The inner error says that it is none, or damaged.
fn stream(path: &Path, on_page: OnPage<'_>) -> Result<Result<LtxSummary, DecodeError>, Failure> {
    let file = File::open(path).map_err(|e| Failure::io("open", path, &e))?;
    match stream_pages(BufReader::with_capacity(BUFFER_BYTES, file), on_page)? {
        Ok(summary) => Ok(Ok(summary)),
        Err(ReadError::Decode(error)) => Ok(Err(error)),
        Err(ReadError::Io(error)) => Err(Failure::io("read", path, &error)),
    }
}

fn stream_pages(input: impl Read, on_page: OnPage<'_>) -> Result<Result<LtxSummary, ReadError>, Failure> {
    let mut decoder = match Decoder::new(input) {
        Ok(decoder) => decoder,
        Err(error) => return Ok(Err(error)),
    };
    let header = *decoder.header();
    let warning = decoder.warning().map(|w| w.to_string());
    let mut data = vec![0; header.page_size.bytes()];
    let mut page_count = 0;
    loop {
        match decoder.next_page(&mut data) {
            Ok(Some(pgno)) => on_page(pgno, &data)?,
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        }
        page_count += 1;
    }
    Ok(decoder.finish_at_end().map(|trailer| LtxSummary::new(3, &header, page_count, trailer, warning)))
}

fn visit_old(path: &Path, error: &DecodeError, on_page: OnPage<'_>) -> Result<LtxSummary, Failure> {
    let size = std::fs::metadata(path).map_err(|e| Failure::io("open", path, &e))?.len();
    if size > OLD_FORMAT_BYTES_MAX {
        return Err(damaged(path, error));
    }
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let file = ltx::decode_any(&bytes).map_err(|e| damaged(path, &e))?;
    for page in &file.pages {
        on_page(page.pgno, &page.data)?;
    }
    let format = match file.format {
        Format::One => 1,
        Format::Two => 2,
        Format::Three => 3,
    };
    let warning = (!file.is_reserved_clear).then(|| "reserved header bytes are not zero".to_owned());
    Ok(LtxSummary::new(format, &file.header, file.pages.len() as u64, file.trailer, warning))
}

fn damaged(path: &Path, error: &DecodeError) -> Failure {
    Failure::new(Status::Damaged, format!("{} is no valid LTX file: {error}", path.display()))
}
