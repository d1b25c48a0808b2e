//! `parked` in the state folder (docs/spec/state.md): what the files of a database looked like when it was parked, 168 bytes.
//!
//! A start that finds the files as they were, on the same boot of the machine, with a state file at the same position and the same
//! store, knows without a connection and without a request that there is nothing to do.

use crate::crc::crc64;
use crate::error::{DecodeError, ErrorKind};
use crate::layout::{Field, parked as at};
use crate::sqlite::wal::Salt;
use crate::types::{Checksum, Lineage, Pos, Seq, Timestamp, Txid};

/// First bytes of the file.
pub const MAGIC: [u8; 4] = *b"RHPK";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Size of the file in bytes.
pub const SIZE: usize = at::SIZE;

const WHAT: &str = "parked state";

/// What the system says about one file. All zeros for one that is missing or empty: SQLite makes no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileMark {
    /// Number of the inode.
    pub inode: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Last write, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Last change of any kind, which no program can set.
    pub changed_ns: i64,
}

/// What tells that a database was written since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseMark {
    /// The database file.
    pub database: FileMark,
    /// The `-wal` file.
    pub wal: FileMark,
}

impl DatabaseMark {
    /// The last change of either file, in nanoseconds since 1970.
    pub fn changed_ns(&self) -> i64 {
        let times = [self.database, self.wal].map(|f| f.changed_ns.max(f.modified_ns));
        times[0].max(times[1])
    }
}

/// What the first bytes of both files say, which needs them to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderMark {
    /// File change counter of the database.
    pub change_counter: u32,
    /// Generation of the WAL; zeros without one.
    pub salt: Salt,
}

/// The state of a parked database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The history.
    pub lineage: Lineage,
    /// The last transaction: captured and durable.
    pub pos: Pos,
    /// Sequence number of the next segment.
    pub next_seq: Seq,
    /// CRC-64 of the store's address as it was configured: with another store everything is to be asked anew.
    pub store: u64,
    /// The boot of the machine.
    pub boot_id: [u8; 16],
    /// The files.
    pub mark: DatabaseMark,
    /// Their first bytes.
    pub header: HeaderMark,
    /// When the store's history is to be looked after, if there is something to do.
    pub history_due: Option<Timestamp>,
}

impl Parked {
    /// The bytes of the file.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        at::MAGIC.put(&mut bytes, &MAGIC);
        at::VERSION.put(&mut bytes, &[VERSION]);
        at::LINEAGE.put(&mut bytes, &self.lineage.0);
        at::TXID.put_u64(&mut bytes, self.pos.txid.get());
        at::CHECKSUM.put_u64(&mut bytes, self.pos.checksum.get());
        at::NEXT_SEQ.put_u64(&mut bytes, self.next_seq.get());
        at::STORE.put_u64(&mut bytes, self.store);
        at::BOOT_ID.put(&mut bytes, &self.boot_id);
        put_file(&mut bytes, &self.mark.database, at::DATABASE);
        put_file(&mut bytes, &self.mark.wal, at::WAL);
        at::CHANGE_COUNTER.put_u32(&mut bytes, self.header.change_counter);
        at::SALT1.put_u32(&mut bytes, self.header.salt.0);
        at::SALT2.put_u32(&mut bytes, self.header.salt.1);
        at::HISTORY_DUE.put_i64(&mut bytes, self.history_due.map_or(0, |t| t.0));
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
        let txid = Txid::new(at::TXID.u64(bytes)).ok_or_else(|| error(ErrorKind::Txid, at::TXID))?;
        let checksum = Checksum::from_raw(at::CHECKSUM.u64(bytes));
        let checksum = checksum.ok_or_else(|| error(ErrorKind::PostChecksum, at::CHECKSUM))?;
        let due = at::HISTORY_DUE.i64(bytes);
        Ok(Self {
            lineage: Lineage(at::LINEAGE.id(bytes)),
            pos: Pos { txid, checksum },
            next_seq: Seq::new(at::NEXT_SEQ.u64(bytes)).ok_or_else(|| error(ErrorKind::Field, at::NEXT_SEQ))?,
            store: at::STORE.u64(bytes),
            boot_id: at::BOOT_ID.id(bytes),
            mark: DatabaseMark { database: file(bytes, at::DATABASE), wal: file(bytes, at::WAL) },
            header: HeaderMark {
                change_counter: at::CHANGE_COUNTER.u32(bytes),
                salt: Salt(at::SALT1.u32(bytes), at::SALT2.u32(bytes)),
            },
            history_due: (due != 0).then_some(Timestamp(due)),
        })
    }
}

fn put_file(bytes: &mut [u8], mark: &FileMark, fields: [Field; 4]) {
    let [inode, size, modified, changed] = fields;
    inode.put_u64(bytes, mark.inode);
    size.put_u64(bytes, mark.bytes);
    modified.put_i64(bytes, mark.modified_ns);
    changed.put_i64(bytes, mark.changed_ns);
}

fn file(bytes: &[u8], fields: [Field; 4]) -> FileMark {
    let [inode, size, modified, changed] = fields;
    FileMark {
        inode: inode.u64(bytes),
        bytes: size.u64(bytes),
        modified_ns: modified.i64(bytes),
        changed_ns: changed.i64(bytes),
    }
}
