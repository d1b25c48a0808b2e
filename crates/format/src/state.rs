//! Files of the state folder beside a database (docs/spec/state.md): `state`, 144 bytes, `pages` (see [`page_table`]),
//! `parked` (see [`parked`]) and `backlog` (see [`backlog`]).
//!
//! All belong to one machine. Whatever does not decode is thrown away and the database compared with what the store holds:
//! state is a shortcut, never the truth.

pub mod backlog;
pub mod page_table;
pub mod parked;

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, local_state as at};
use crate::sqlite::wal::Salt;
use crate::types::{Checksum, Epoch, Lineage, PageCount, PageSize, Pos, Seq, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHST";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the file in bytes.
pub const SIZE: usize = at::SIZE;

const FLAG_WAL: u8 = 1;
const WHAT: &str = "local state";

/// How far the log of a database has come on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalState {
    /// The history.
    pub lineage: Lineage,
    /// The last transaction in the local log; `None` before the first.
    pub pos: Option<Pos>,
    /// The last transaction that the store has confirmed; `None` before the first. Not after `pos`.
    pub durable: Option<Pos>,
    /// Page size of the database at `pos`.
    pub page_size: Option<PageSize>,
    /// Size of the database at `pos`.
    pub commit: PageCount,
    /// The last frame of the WAL that `pos` includes; `None` when `pos` is known not to end at a frame.
    pub wal: Option<WalPosition>,
    /// The right to write under which the local log is written.
    pub epoch: Epoch,
    /// Sequence number of the next segment that the store has not confirmed.
    pub next_seq: Seq,
    /// The boot of the machine that wrote this. Files written without a sync are worth nothing after another boot.
    pub boot_id: [u8; 16],
}

/// A place in a generation of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// Generation of the WAL.
    pub salt: Salt,
    /// The last frame that was taken in, from 1; 0 is the start of this generation.
    pub frame: u32,
    /// The header of that frame as it lies in the WAL; zeros at the start.
    pub frame_header: [u8; 24],
}

impl LocalState {
    /// The bytes of the file.
    pub fn encode(&self) -> [u8; SIZE] {
        let txid = |pos: Option<Pos>| pos.map_or(0, |p| p.txid.get());
        let checksum = |pos: Option<Pos>| pos.map_or(0, |p| p.checksum.get());
        assert!(txid(self.durable) <= txid(self.pos), "the store holds what the local log does not");
        let mut bytes = [0; SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::TXID.put_u64(&mut bytes, txid(self.pos));
        at::CHECKSUM.put_u64(&mut bytes, checksum(self.pos));
        at::DURABLE_TXID.put_u64(&mut bytes, txid(self.durable));
        at::DURABLE_CHECKSUM.put_u64(&mut bytes, checksum(self.durable));
        at::PAGE_SIZE.put_u32(&mut bytes, self.page_size.map_or(0, PageSize::get));
        at::COMMIT.put_u32(&mut bytes, self.commit.get());
        if let Some(wal) = &self.wal {
            assert!(wal.frame > 0 || wal.frame_header == [0; 24], "no frame, no header");
            at::FLAGS.put(&mut bytes, &[FLAG_WAL]);
            at::WAL_SALT1.put_u32(&mut bytes, wal.salt.0);
            at::WAL_SALT2.put_u32(&mut bytes, wal.salt.1);
            at::WAL_FRAME.put_u32(&mut bytes, wal.frame);
            at::WAL_FRAME_HEADER.put(&mut bytes, &wal.frame_header);
        }
        at::EPOCH.put_u64(&mut bytes, self.epoch.get());
        at::NEXT_SEQ.put_u64(&mut bytes, self.next_seq.get());
        at::BOOT_ID.put(&mut bytes, &self.boot_id);
        let crc = crc64(&bytes[..at::CRC.offset]);
        at::CRC.put_u64(&mut bytes, crc);
        bytes
    }

    /// Reads the file, which must have exactly [`SIZE`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
        if bytes.len() < SIZE {
            return Err(DecodeError::new(ErrorKind::Short, WHAT, bytes.len() as u64));
        }
        if at::MAGIC.of(bytes) != MAGIC {
            return Err(error(ErrorKind::Magic, at::MAGIC));
        }
        let version = at::VERSION.byte(bytes);
        if version != VERSION {
            return Err(error(ErrorKind::Version, at::VERSION).detail(format!("version {version}")));
        }
        if bytes.len() > SIZE {
            return Err(DecodeError::new(ErrorKind::Trailing, WHAT, SIZE as u64));
        }
        if crc64(&bytes[..at::CRC.offset]) != at::CRC.u64(bytes) {
            return Err(error(ErrorKind::FileChecksum, at::CRC));
        }
        if !at::RESERVED.is_zero(bytes) || !at::RESERVED_2.is_zero(bytes) {
            return Err(error(ErrorKind::Reserved, at::RESERVED));
        }
        let pos = decode_pos(bytes, at::TXID, at::CHECKSUM)?;
        let durable = decode_pos(bytes, at::DURABLE_TXID, at::DURABLE_CHECKSUM)?;
        if durable.map(|p| p.txid) > pos.map(|p| p.txid) {
            return Err(error(ErrorKind::Txid, at::DURABLE_TXID));
        }
        let page_size = match at::PAGE_SIZE.u32(bytes) {
            0 => None,
            raw => Some(PageSize::new(raw).ok_or_else(|| error(ErrorKind::PageSize, at::PAGE_SIZE))?),
        };
        Ok(Self {
            lineage: Lineage(at::LINEAGE.id(bytes)),
            pos,
            durable,
            page_size,
            commit: PageCount(at::COMMIT.u32(bytes)),
            wal: decode_wal(bytes)?,
            epoch: Epoch::new(at::EPOCH.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, at::EPOCH))?,
            next_seq: Seq::new(at::NEXT_SEQ.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, at::NEXT_SEQ))?,
            boot_id: at::BOOT_ID.id(bytes),
        })
    }
}

/// A position stored as two numbers, both 0 for none.
fn decode_pos(bytes: &[u8], txid: Field, checksum: Field) -> Result<Option<Pos>, DecodeError> {
    match (Txid::new(txid.u64(bytes)), checksum.u64(bytes)) {
        (None, 0) => Ok(None),
        (Some(txid), raw) => match Checksum::from_raw(raw) {
            Some(checksum) => Ok(Some(Pos { txid, checksum })),
            None => Err(DecodeError::new(ErrorKind::PostChecksum, WHAT, checksum.offset as u64)),
        },
        (None, _) => Err(DecodeError::new(ErrorKind::Txid, WHAT, txid.offset as u64)),
    }
}

fn decode_wal(bytes: &[u8]) -> Result<Option<WalPosition>, DecodeError> {
    let error = |kind, field: Field| DecodeError::new(kind, WHAT, field.offset as u64);
    let fields = [at::WAL_SALT1, at::WAL_SALT2, at::WAL_FRAME, at::WAL_FRAME_HEADER];
    match at::FLAGS.byte(bytes) {
        0 if fields.iter().all(|f| f.is_zero(bytes)) => Ok(None),
        0 => Err(error(ErrorKind::WalRange, at::WAL_SALT1)),
        FLAG_WAL if at::WAL_FRAME.is_zero(bytes) && !at::WAL_FRAME_HEADER.is_zero(bytes) => {
            Err(error(ErrorKind::WalRange, at::WAL_FRAME_HEADER))
        }
        FLAG_WAL => Ok(Some(WalPosition {
            salt: Salt(at::WAL_SALT1.u32(bytes), at::WAL_SALT2.u32(bytes)),
            frame: at::WAL_FRAME.u32(bytes),
            frame_header: at::WAL_FRAME_HEADER.bytes(bytes),
        })),
        _ => Err(error(ErrorKind::Flags, at::FLAGS)),
    }
}
