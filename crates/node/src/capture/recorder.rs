//! From pages to the log: one commit becomes one LTX file, numbered and chained by checksums.
//!
//! Invariants:
//! 1. `table` describes the database at `pos`; its checksum is `pos.checksum`.
//! 2. Either a transaction is recorded whole (log, table and position), or nothing of it stays: every change to the table
//!    since the last [`Recorder::flush`] can be undone, because a log that could not be written must not be believed.
//! 3. Timestamps never go back, whatever the clock does, as far as the local log reaches.

use std::io;

use rhyolite_format::ltx::{EncodeError, Encoder, EncoderBuffers, LtxHeader, Packing};
use rhyolite_format::segment::SegmentEntry;
use rhyolite_format::{Checksum, PageCount, PageNumber, Pos, Timestamp, Txid};

use super::handle::HandleError;
use super::local_log::LocalLog;
use super::table::PageTable;
use super::view::View;
use crate::config::DatabaseConfig;

/// Why a commit could not be recorded.
#[derive(Debug)]
pub(super) enum RecordError {
    /// The user's database could not be read.
    Database(HandleError),
    /// The local log could not be written.
    Log(io::Error),
    /// The transaction is larger than the log may be.
    TooLarge,
}

impl From<HandleError> for RecordError {
    fn from(error: HandleError) -> Self {
        Self::Database(error)
    }
}

impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        Self::Log(error)
    }
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(error) => write!(f, "read the database: {error}"),
            Self::Log(error) => write!(f, "write the local log: {error}"),
            Self::TooLarge => f.write_str("the transaction is larger than the local log may be"),
        }
    }
}

/// Where in the WAL a transaction was found; zeros for one that comes from a page diff.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WalRange {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) salt: (u32, u32),
}

#[derive(Debug)]
enum Undo {
    /// A page had this checksum, or none.
    Page(PageNumber, Option<Checksum>),
    /// The database had these pages more.
    Shrunk(Vec<u64>),
    /// The database had this many pages.
    Grown(PageCount),
}

/// Records commits of one database.
#[derive(Debug)]
pub(super) struct Recorder {
    table: PageTable,
    pos: Pos,
    last_time: Timestamp,
    pub(super) log: LocalLog,
    /// How pages are packed from the next transaction on.
    pub(super) packing: Packing,
    /// A transaction that would make the unsent log larger than this is refused.
    log_bytes_max: u64,
    /// A segment that has reached this size is sealed.
    segment_bytes_max: u64,
    undo: Vec<Undo>,
    buffers: EncoderBuffers,
    /// Position at the last flush, and how to get back to it.
    flushed: Pos,
    /// Transactions, pages and LTX bytes recorded since they were last taken.
    counts: Counts,
}

/// What was recorded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) transactions: u64,
    pub(super) pages: u64,
    pub(super) bytes: u64,
}

/// A transaction that is being recorded.
#[derive(Debug)]
pub(super) struct Transaction {
    encoder: Encoder,
    txid: Txid,
    commit: PageCount,
    time: Timestamp,
    pages: u32,
    /// What the local log has room for, in bytes of LTX file.
    bytes_max: u64,
    /// Undo steps before this transaction.
    undo_start: usize,
}

impl Recorder {
    /// A recorder that goes on from `pos`, which `table` describes.
    pub(super) fn new(table: PageTable, pos: Pos, log: LocalLog, config: &DatabaseConfig) -> Self {
        assert_eq!(table.checksum(), pos.checksum, "the table describes the position");
        let last_time = log.last_time().unwrap_or(Timestamp(0));
        Self {
            table,
            pos,
            last_time,
            log,
            packing: Packing::Lz4,
            log_bytes_max: config.log_bytes_max,
            segment_bytes_max: config.segment_bytes_max,
            undo: Vec::new(),
            buffers: EncoderBuffers::default(),
            flushed: pos,
            counts: Counts::default(),
        }
    }

    /// Lets no timestamp be earlier than `time`.
    pub(super) fn not_before(&mut self, time: Timestamp) {
        self.last_time = self.last_time.max(time);
    }

    /// The last recorded commit.
    pub(super) fn pos(&self) -> Pos {
        self.pos
    }

    /// When it ended.
    pub(super) fn last_time(&self) -> Timestamp {
        self.last_time
    }

    /// What is recorded.
    pub(super) fn table(&self) -> &PageTable {
        &self.table
    }

    /// What was recorded since the last call.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Begins a transaction after which the database has `commit` pages.
    pub(super) fn begin(
        &mut self,
        commit: PageCount,
        wal: WalRange,
        now: Timestamp,
    ) -> Result<Transaction, RecordError> {
        self.last_time = self.last_time.max(now);
        let txid = self.pos.txid.next();
        let header = LtxHeader {
            no_checksum: false,
            page_size: self.table.page_size(),
            commit,
            min_txid: txid,
            max_txid: txid,
            timestamp: self.last_time,
            pre_apply: Some(self.pos.checksum),
            wal_offset: wal.offset,
            wal_size: wal.size,
            wal_salt: wal.salt,
            node_id: 0,
        };
        let bytes_max = self.log_bytes_max.saturating_sub(self.log.unsent_bytes());
        let buffers = std::mem::take(&mut self.buffers);
        let out = self.log.begin(self.last_time)?;
        let encoder = Encoder::with_buffers(header, self.packing, buffers, out).map_err(own_mistake)?;
        Ok(Transaction {
            encoder,
            txid,
            commit,
            time: self.last_time,
            pages: 0,
            bytes_max,
            undo_start: self.undo.len(),
        })
    }

    /// Adds a page. Pages come in ascending order.
    pub(super) fn page(&mut self, tx: &mut Transaction, pgno: PageNumber, data: &[u8]) -> Result<(), RecordError> {
        let out = self.log.continue_with()?;
        let checksum = tx.encoder.page(pgno, data, out).map_err(own_mistake)?;
        if pgno.get() > self.table.page_count().get() {
            self.undo.push(Undo::Grown(self.table.page_count()));
        } else {
            self.undo.push(Undo::Page(pgno, self.table.get(pgno)));
        }
        self.table.set(pgno, checksum);
        tx.pages += 1;
        if self.log.transaction_bytes() > tx.bytes_max { Err(RecordError::TooLarge) } else { Ok(()) }
    }

    /// Ends a transaction: it is now part of the log.
    pub(super) fn finish(&mut self, tx: Transaction) -> Result<Pos, RecordError> {
        self.finish_after(tx, |_| ())
    }

    /// The same, with something to be done before the end of the transaction can be in the log's file.
    pub(super) fn finish_after(&mut self, tx: Transaction, before: impl FnOnce(Pos)) -> Result<Pos, RecordError> {
        self.resize_table(tx.commit);
        let checksum = self.table.checksum();
        let pre_apply = self.pos.checksum;
        let out = self.log.continue_with()?;
        let (encoded, buffers) = tx.encoder.finish_reusing(Some(checksum), out).map_err(own_mistake)?;
        self.buffers = buffers;
        self.log.commit(SegmentEntry {
            min_txid: tx.txid,
            max_txid: tx.txid,
            offset: 0,
            len: 0,
            timestamp: tx.time,
            page_size: self.table.page_size(),
            commit: tx.commit,
            pages: tx.pages,
            pre_apply: Some(pre_apply),
            post_apply: checksum,
        });
        self.pos = Pos { txid: tx.txid, checksum };
        before(self.pos);
        self.counts.transactions += 1;
        self.counts.pages += u64::from(tx.pages);
        self.counts.bytes += encoded.len;
        if self.log.open_bytes() >= self.segment_bytes_max {
            self.flush()?;
            self.log.seal()?;
        }
        Ok(self.pos)
    }

    /// Takes a transaction back.
    pub(super) fn abandon(&mut self, tx: Transaction) -> io::Result<()> {
        self.undo_to(tx.undo_start);
        self.log.abandon()
    }

    /// Compares the table with `view` and records what differs as one transaction. `None` when nothing does.
    pub(super) fn diff(
        &mut self,
        view: &View<'_>,
        commit: PageCount,
        now: Timestamp,
    ) -> Result<Option<Pos>, RecordError> {
        let mut tx = None;
        let compared = view.each_page(|pgno, data| -> Result<(), RecordError> {
            if self.table.get(pgno) == Some(Checksum::of_page(pgno, data)) {
                return Ok(());
            }
            if tx.is_none() {
                tx = Some(self.begin(commit, WalRange::default(), now)?);
            }
            self.page(tx.as_mut().expect("set above"), pgno, data)
        });
        if compared.is_ok() && tx.is_none() && commit != self.table.page_count() {
            tx = Some(self.begin(commit, WalRange::default(), now)?);
        }
        match (compared, tx) {
            (Ok(()), None) => Ok(None),
            (Ok(()), Some(tx)) => self.finish(tx).map(Some),
            (Err(error), None) => Err(error),
            (Err(error), Some(tx)) => {
                self.abandon(tx)?;
                Err(error)
            }
        }
    }

    /// Writes the log out. On an error everything since the last success is taken back, table and position included.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let flushed = self.log.flush();
        match flushed {
            Ok(()) => {
                self.undo.clear();
                self.flushed = self.pos;
                Ok(())
            }
            Err(error) => {
                self.undo_to(0);
                self.pos = self.flushed;
                assert_eq!(self.table.checksum(), self.pos.checksum, "undo leads back to the flushed position");
                self.log.drop_from(self.pos.txid.next())?;
                Err(error)
            }
        }
    }

    fn resize_table(&mut self, commit: PageCount) {
        let count = self.table.page_count();
        if commit < count {
            let tail = self.table.entries()[commit.get() as usize..].to_vec();
            self.undo.push(Undo::Shrunk(tail));
        } else if commit > count {
            self.undo.push(Undo::Grown(count));
        }
        self.table.set_page_count(commit);
        // Only the lock page may be without a checksum: growth records every new page.
        debug_assert_eq!(self.table.first_hole(), None);
    }

    fn undo_to(&mut self, start: usize) {
        for step in self.undo.drain(start..).rev() {
            match step {
                Undo::Page(pgno, Some(checksum)) => self.table.set(pgno, checksum),
                Undo::Page(pgno, None) => {
                    assert_eq!(pgno, self.table.page_size().lock_page(), "every other page has one")
                }
                Undo::Grown(count) => self.table.set_page_count(count),
                Undo::Shrunk(tail) => {
                    let first = self.table.page_count().get() + 1;
                    for (pgno, entry) in (first..).zip(tail) {
                        let pgno = PageNumber::new(pgno).expect("starts at 1");
                        match Checksum::from_raw(entry) {
                            Some(checksum) => self.table.set(pgno, checksum),
                            None => self.table.set_page_count(PageCount(pgno.get())),
                        }
                    }
                }
            }
        }
    }
}

/// The encoder refuses only what breaks the rules of LTX, which the caller keeps.
fn own_mistake(error: EncodeError) -> RecordError {
    panic!("a transaction breaks the rules of LTX: {error}")
}
