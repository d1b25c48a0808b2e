//! A snapshot of a database: an LTX file from TXID 1 that holds every page, streamed in pieces.
//!
//! Memory is bounded by one piece, whatever the size of the database; the page table is built on the way.

use bytes::Bytes;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::{Checksum, PageCount, PageSize, Pos, Timestamp, Txid};

use super::handle::HandleError;
use super::table::PageTable;
use super::view::View;

/// Size in bytes from which a piece is handed on.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// What a finished snapshot is.
#[derive(Clone, Debug)]
pub struct SnapshotSummary {
    /// The position that it shows.
    pub pos: Pos,
    /// When it was read.
    pub time: Timestamp,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database.
    pub commit: PageCount,
    /// Number of pages in the file.
    pub pages: u32,
    /// Size of the file in bytes.
    pub len: u64,
    /// The LTX file checksum.
    pub file_checksum: Checksum,
}

/// Why a snapshot was not finished.
#[derive(Debug)]
pub(super) enum SnapshotError {
    /// The database could not be read.
    Database(HandleError),
    /// Nobody takes the pieces any more.
    Cancelled,
}

impl From<HandleError> for SnapshotError {
    fn from(error: HandleError) -> Self {
        Self::Database(error)
    }
}

/// Encodes all pages of `view` as the snapshot at `txid`. `sink` takes the pieces in order; `false` from it cancels.
pub(super) fn write(
    view: &View<'_>,
    txid: Txid,
    time: Timestamp,
    mut sink: impl FnMut(Bytes) -> bool,
) -> Result<(SnapshotSummary, PageTable), SnapshotError> {
    let (page_size, commit) = (view.page_size(), view.page_count());
    let header = LtxHeader {
        no_checksum: false,
        page_size,
        commit,
        min_txid: Txid::FIRST,
        max_txid: txid,
        timestamp: time,
        pre_apply: None,
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    let mut out = Vec::with_capacity(PIECE_BYTES + 2 * page_size.bytes());
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut out).expect("the header keeps the rules of LTX");
    let mut table = PageTable::empty(page_size);
    let mut len = 0;
    view.each_page(|pgno, data| -> Result<(), SnapshotError> {
        let checksum = encoder.page(pgno, data, &mut out).expect("every page comes once, in order");
        table.set(pgno, checksum);
        if out.len() < PIECE_BYTES {
            return Ok(());
        }
        len += out.len() as u64;
        let piece = std::mem::replace(&mut out, Vec::with_capacity(PIECE_BYTES + 2 * page_size.bytes()));
        if sink(Bytes::from(piece)) { Ok(()) } else { Err(SnapshotError::Cancelled) }
    })?;
    table.set_page_count(commit);
    let encoded = encoder.finish(Some(table.checksum()), &mut out).expect("every page came");
    len += out.len() as u64;
    assert_eq!(len, encoded.len, "what was handed on is what was encoded");
    if !sink(Bytes::from(out)) {
        return Err(SnapshotError::Cancelled);
    }
    let pos = Pos { txid, checksum: table.checksum() };
    let file_checksum = encoded.trailer.file_checksum;
    Ok((SnapshotSummary { pos, time, page_size, commit, pages: encoded.pages, len, file_checksum }, table))
}
