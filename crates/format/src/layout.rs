//! Offsets of the fixed-size records of our own formats: the one place where a field has a place.
//!
//! Each record is a chain of [`Field`]s without holes. The tables in `docs/spec` say the same to people; a test compares the
//! two. Integers are big-endian.

/// A run of bytes with a name in a fixed-size record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

impl Field {
    /// The first field of a record.
    pub(crate) const fn first(name: &'static str, size: usize) -> Self {
        Self { name, offset: 0, size }
    }

    /// The field right after this one.
    pub(crate) const fn then(self, name: &'static str, size: usize) -> Self {
        Self { name, offset: self.offset + self.size, size }
    }

    /// Offset of the first byte after this field.
    pub(crate) const fn end(self) -> usize {
        self.offset + self.size
    }

    /// The bytes of this field. `record` must be whole.
    pub(crate) fn of(self, record: &[u8]) -> &[u8] {
        &record[self.offset..self.end()]
    }

    fn array<const N: usize>(self, record: &[u8]) -> [u8; N] {
        assert_eq!(self.size, N, "field {} read with another size", self.name);
        self.of(record).try_into().expect("the slice has the size of the field")
    }

    pub(crate) fn byte(self, record: &[u8]) -> u8 {
        self.array::<1>(record)[0]
    }

    pub(crate) fn u32(self, record: &[u8]) -> u32 {
        u32::from_be_bytes(self.array(record))
    }

    pub(crate) fn u64(self, record: &[u8]) -> u64 {
        u64::from_be_bytes(self.array(record))
    }

    pub(crate) fn i64(self, record: &[u8]) -> i64 {
        i64::from_be_bytes(self.array(record))
    }

    pub(crate) fn id(self, record: &[u8]) -> [u8; 16] {
        self.array(record)
    }

    pub(crate) fn bytes<const N: usize>(self, record: &[u8]) -> [u8; N] {
        self.array(record)
    }

    /// Puts `value`, which must have the size of the field, in its place.
    pub(crate) fn put(self, record: &mut [u8], value: &[u8]) {
        assert_eq!(self.size, value.len(), "field {} written with another size", self.name);
        record[self.offset..self.end()].copy_from_slice(value);
    }

    pub(crate) fn put_u32(self, record: &mut [u8], value: u32) {
        self.put(record, &value.to_be_bytes());
    }

    pub(crate) fn put_u64(self, record: &mut [u8], value: u64) {
        self.put(record, &value.to_be_bytes());
    }

    pub(crate) fn put_i64(self, record: &mut [u8], value: i64) {
        self.put(record, &value.to_be_bytes());
    }

    pub(crate) fn is_zero(self, record: &[u8]) -> bool {
        self.of(record).iter().all(|b| *b == 0)
    }
}

pub(crate) mod segment_header {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const KIND: Field = VERSION.then("kind", 1);
    pub(crate) const RESERVED: Field = KIND.then("reserved", 2);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const EPOCH: Field = LINEAGE.then("epoch", 8);
    pub(crate) const FIRST_SEQ: Field = EPOCH.then("first_seq", 8);
    pub(crate) const LAST_SEQ: Field = FIRST_SEQ.then("last_seq", 8);
    pub(crate) const NONCE: Field = LAST_SEQ.then("nonce", 16);
    pub(crate) const CREATED: Field = NONCE.then("created", 8);
    pub(crate) const CRC: Field = CREATED.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] =
        &[MAGIC, VERSION, KIND, RESERVED, LINEAGE, EPOCH, FIRST_SEQ, LAST_SEQ, NONCE, CREATED, CRC];
}

pub(crate) mod segment_entry {
    use super::Field;

    pub(crate) const MIN_TXID: Field = Field::first("min_txid", 8);
    pub(crate) const MAX_TXID: Field = MIN_TXID.then("max_txid", 8);
    pub(crate) const OFFSET: Field = MAX_TXID.then("offset", 8);
    pub(crate) const LEN: Field = OFFSET.then("len", 8);
    pub(crate) const TIMESTAMP: Field = LEN.then("timestamp", 8);
    pub(crate) const PAGE_SIZE: Field = TIMESTAMP.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const PAGES: Field = COMMIT.then("pages", 4);
    pub(crate) const RESERVED: Field = PAGES.then("reserved", 4);
    pub(crate) const PRE_APPLY: Field = RESERVED.then("pre_apply", 8);
    pub(crate) const POST_APPLY: Field = PRE_APPLY.then("post_apply", 8);
    pub(crate) const SIZE: usize = POST_APPLY.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] =
        &[MIN_TXID, MAX_TXID, OFFSET, LEN, TIMESTAMP, PAGE_SIZE, COMMIT, PAGES, RESERVED, PRE_APPLY, POST_APPLY];
}

pub(crate) mod segment_footer {
    use super::Field;

    pub(crate) const INDEX_OFFSET: Field = Field::first("index_offset", 8);
    pub(crate) const COUNT: Field = INDEX_OFFSET.then("count", 4);
    pub(crate) const MAGIC: Field = COUNT.then("magic", 4);
    pub(crate) const CRC: Field = MAGIC.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[INDEX_OFFSET, COUNT, MAGIC, CRC];
}

pub(crate) mod local_state {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const FLAGS: Field = VERSION.then("flags", 1);
    pub(crate) const RESERVED: Field = FLAGS.then("reserved", 2);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const TXID: Field = LINEAGE.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const DURABLE_TXID: Field = CHECKSUM.then("durable_txid", 8);
    pub(crate) const DURABLE_CHECKSUM: Field = DURABLE_TXID.then("durable_checksum", 8);
    pub(crate) const PAGE_SIZE: Field = DURABLE_CHECKSUM.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const WAL_SALT1: Field = COMMIT.then("wal_salt1", 4);
    pub(crate) const WAL_SALT2: Field = WAL_SALT1.then("wal_salt2", 4);
    pub(crate) const WAL_FRAME: Field = WAL_SALT2.then("wal_frame", 4);
    pub(crate) const WAL_FRAME_HEADER: Field = WAL_FRAME.then("wal_frame_header", 24);
    pub(crate) const RESERVED_2: Field = WAL_FRAME_HEADER.then("reserved_2", 4);
    pub(crate) const EPOCH: Field = RESERVED_2.then("epoch", 8);
    pub(crate) const NEXT_SEQ: Field = EPOCH.then("next_seq", 8);
    pub(crate) const BOOT_ID: Field = NEXT_SEQ.then("boot_id", 16);
    pub(crate) const CRC: Field = BOOT_ID.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[
        MAGIC,
        VERSION,
        FLAGS,
        RESERVED,
        LINEAGE,
        TXID,
        CHECKSUM,
        DURABLE_TXID,
        DURABLE_CHECKSUM,
        PAGE_SIZE,
        COMMIT,
        WAL_SALT1,
        WAL_SALT2,
        WAL_FRAME,
        WAL_FRAME_HEADER,
        RESERVED_2,
        EPOCH,
        NEXT_SEQ,
        BOOT_ID,
        CRC,
    ];
}

pub(crate) mod page_table_header {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 3);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const TXID: Field = LINEAGE.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const PAGE_SIZE: Field = CHECKSUM.then("page_size", 4);
    pub(crate) const COUNT: Field = PAGE_SIZE.then("count", 4);
    pub(crate) const SIZE: usize = COUNT.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[MAGIC, VERSION, RESERVED, LINEAGE, TXID, CHECKSUM, PAGE_SIZE, COUNT];
}

pub(crate) mod parked {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 3);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const TXID: Field = LINEAGE.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const NEXT_SEQ: Field = CHECKSUM.then("next_seq", 8);
    pub(crate) const STORE: Field = NEXT_SEQ.then("store", 8);
    pub(crate) const BOOT_ID: Field = STORE.then("boot_id", 16);
    const DB_INODE: Field = BOOT_ID.then("db_inode", 8);
    const DB_BYTES: Field = DB_INODE.then("db_bytes", 8);
    const DB_MODIFIED: Field = DB_BYTES.then("db_modified", 8);
    const DB_CHANGED: Field = DB_MODIFIED.then("db_changed", 8);
    pub(crate) const DATABASE: [Field; 4] = [DB_INODE, DB_BYTES, DB_MODIFIED, DB_CHANGED];
    const WAL_INODE: Field = DB_CHANGED.then("wal_inode", 8);
    const WAL_BYTES: Field = WAL_INODE.then("wal_bytes", 8);
    const WAL_MODIFIED: Field = WAL_BYTES.then("wal_modified", 8);
    const WAL_CHANGED: Field = WAL_MODIFIED.then("wal_changed", 8);
    pub(crate) const WAL: [Field; 4] = [WAL_INODE, WAL_BYTES, WAL_MODIFIED, WAL_CHANGED];
    pub(crate) const CHANGE_COUNTER: Field = WAL_CHANGED.then("change_counter", 4);
    pub(crate) const SALT1: Field = CHANGE_COUNTER.then("wal_salt1", 4);
    pub(crate) const SALT2: Field = SALT1.then("wal_salt2", 4);
    pub(crate) const RESERVED_2: Field = SALT2.then("reserved_2", 4);
    pub(crate) const HISTORY_DUE: Field = RESERVED_2.then("history_due", 8);
    pub(crate) const CRC: Field = HISTORY_DUE.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[
        MAGIC,
        VERSION,
        RESERVED,
        LINEAGE,
        TXID,
        CHECKSUM,
        NEXT_SEQ,
        STORE,
        BOOT_ID,
        DB_INODE,
        DB_BYTES,
        DB_MODIFIED,
        DB_CHANGED,
        WAL_INODE,
        WAL_BYTES,
        WAL_MODIFIED,
        WAL_CHANGED,
        CHANGE_COUNTER,
        SALT1,
        SALT2,
        RESERVED_2,
        HISTORY_DUE,
        CRC,
    ];
}

pub(crate) mod backlog {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 11);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const BOOT_ID: Field = LINEAGE.then("boot_id", 16);
    pub(crate) const GENERATION: Field = BOOT_ID.then("generation", 8);
    pub(crate) const TXID: Field = GENERATION.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const CRC: Field = CHECKSUM.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[MAGIC, VERSION, RESERVED, LINEAGE, BOOT_ID, GENERATION, TXID, CHECKSUM, CRC];
}

pub(crate) mod backlog_entry {
    use super::Field;

    pub(crate) const TXID: Field = Field::first("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const CRC: Field = CHECKSUM.then("crc", 8);
    pub(crate) const GENERATION: Field = CRC.then("generation", 8);
    pub(crate) const OFFSET: Field = GENERATION.then("offset", 8);
    pub(crate) const TIMESTAMP: Field = OFFSET.then("timestamp", 8);
    pub(crate) const PAGE_SIZE: Field = TIMESTAMP.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const PAGES: Field = COMMIT.then("pages", 4);
    pub(crate) const RESERVED: Field = PAGES.then("reserved", 4);
    pub(crate) const SIZE: usize = RESERVED.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] =
        &[TXID, CHECKSUM, CRC, GENERATION, OFFSET, TIMESTAMP, PAGE_SIZE, COMMIT, PAGES, RESERVED];
}

pub(crate) mod follow_state {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 3);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const BOOT_ID: Field = LINEAGE.then("boot_id", 16);
    pub(crate) const BEFORE: Field = BOOT_ID.then("before", super::follow_end::SIZE);
    pub(crate) const AFTER: Field = BEFORE.then("after", super::follow_end::SIZE);
    pub(crate) const TURN: Field = AFTER.then("turn", 8);
    pub(crate) const CRC: Field = TURN.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    /// In a record of version 2, which had no turn.
    pub(crate) const CRC_2: Field = AFTER.then("crc", 8);
    pub(crate) const SIZE_2: usize = CRC_2.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[MAGIC, VERSION, RESERVED, LINEAGE, BOOT_ID, BEFORE, AFTER, TURN, CRC];
}

pub(crate) mod trail_header {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 3);
    pub(crate) const BOOT_ID: Field = RESERVED.then("boot_id", 16);
    pub(crate) const CRC: Field = BOOT_ID.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[MAGIC, VERSION, RESERVED, BOOT_ID, CRC];
}

pub(crate) mod follow_end {
    use super::Field;

    pub(crate) const TXID: Field = Field::first("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const PAGE_SIZE: Field = CHECKSUM.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const CHANGE_COUNTER: Field = COMMIT.then("change_counter", 4);
    pub(crate) const VERSION_VALID_FOR: Field = CHANGE_COUNTER.then("version_valid_for", 4);
    pub(crate) const WRITTEN_BY: Field = VERSION_VALID_FOR.then("written_by", 4);
    pub(crate) const VERSIONS: Field = WRITTEN_BY.then("versions", 2);
    pub(crate) const RESERVED: Field = VERSIONS.then("reserved", 2);
    pub(crate) const SIZE: usize = RESERVED.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] =
        &[TXID, CHECKSUM, PAGE_SIZE, COMMIT, CHANGE_COUNTER, VERSION_VALID_FOR, WRITTEN_BY, VERSIONS, RESERVED];
}

pub(crate) mod resume_header {
    use super::Field;

    pub(crate) const MAGIC: Field = Field::first("magic", 4);
    pub(crate) const VERSION: Field = MAGIC.then("version", 1);
    pub(crate) const RESERVED: Field = VERSION.then("reserved", 3);
    pub(crate) const LINEAGE: Field = RESERVED.then("lineage", 16);
    pub(crate) const TXID: Field = LINEAGE.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const PAGE_SIZE: Field = CHECKSUM.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const CRC: Field = COMMIT.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[MAGIC, VERSION, RESERVED, LINEAGE, TXID, CHECKSUM, PAGE_SIZE, COMMIT, CRC];
}

pub(crate) mod stream_frame {
    use super::Field;

    pub(crate) const VERSION: Field = Field::first("version", 1);
    pub(crate) const KIND: Field = VERSION.then("kind", 1);
    pub(crate) const RESERVED: Field = KIND.then("reserved", 2);
    pub(crate) const LEN: Field = RESERVED.then("len", 4);
    pub(crate) const CRC: Field = LEN.then("crc", 8);
    pub(crate) const SIZE: usize = CRC.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[VERSION, KIND, RESERVED, LEN, CRC];
}

pub(crate) mod stream_database {
    use super::Field;

    pub(crate) const LINEAGE: Field = Field::first("lineage", 16);
    pub(crate) const EPOCH: Field = LINEAGE.then("epoch", 8);
    pub(crate) const TXID: Field = EPOCH.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const SIZE: usize = CHECKSUM.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[LINEAGE, EPOCH, TXID, CHECKSUM];
}

pub(crate) mod stream_heartbeat {
    use super::Field;

    pub(crate) const TIME: Field = Field::first("time", 8);
    pub(crate) const STARTING: Field = TIME.then("starting", 4);
    pub(crate) const SIZE: usize = STARTING.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[TIME, STARTING];
}

pub(crate) mod stream_reached {
    use super::Field;

    pub(crate) const TXID: Field = Field::first("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const SIZE: usize = CHECKSUM.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[TXID, CHECKSUM];
}

pub(crate) mod stream_transactions {
    use super::Field;

    pub(crate) const LINEAGE: Field = Field::first("lineage", 16);
    pub(crate) const EPOCH: Field = LINEAGE.then("epoch", 8);
    pub(crate) const BEFORE_TXID: Field = EPOCH.then("before_txid", 8);
    pub(crate) const BEFORE_CHECKSUM: Field = BEFORE_TXID.then("before_checksum", 8);
    pub(crate) const AFTER_TXID: Field = BEFORE_CHECKSUM.then("after_txid", 8);
    pub(crate) const AFTER_CHECKSUM: Field = AFTER_TXID.then("after_checksum", 8);
    pub(crate) const TIMESTAMP: Field = AFTER_CHECKSUM.then("timestamp", 8);
    pub(crate) const PAGE_SIZE: Field = TIMESTAMP.then("page_size", 4);
    pub(crate) const COMMIT: Field = PAGE_SIZE.then("commit", 4);
    pub(crate) const COUNT: Field = COMMIT.then("count", 4);
    pub(crate) const RESERVED: Field = COUNT.then("reserved", 4);
    pub(crate) const SIZE: usize = RESERVED.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[
        LINEAGE,
        EPOCH,
        BEFORE_TXID,
        BEFORE_CHECKSUM,
        AFTER_TXID,
        AFTER_CHECKSUM,
        TIMESTAMP,
        PAGE_SIZE,
        COMMIT,
        COUNT,
        RESERVED,
    ];
}

pub(crate) mod stream_end {
    use super::Field;

    pub(crate) const REASON: Field = Field::first("reason", 1);
    pub(crate) const RESERVED: Field = REASON.then("reserved", 7);
    pub(crate) const TXID: Field = RESERVED.then("txid", 8);
    pub(crate) const CHECKSUM: Field = TXID.then("checksum", 8);
    pub(crate) const SIZE: usize = CHECKSUM.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[REASON, RESERVED, TXID, CHECKSUM];
}

pub(crate) mod push_hello {
    use super::Field;

    pub(crate) const ID: Field = Field::first("id", 16);
    pub(crate) const EPOCH: Field = ID.then("epoch", 8);
    pub(crate) const NONCE: Field = EPOCH.then("nonce", 32);
    pub(crate) const HAS_TOKEN: Field = NONCE.then("has_token", 1);
    pub(crate) const RESERVED: Field = HAS_TOKEN.then("reserved", 7);
    pub(crate) const SIZE: usize = RESERVED.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[ID, EPOCH, NONCE, HAS_TOKEN, RESERVED];
}

pub(crate) mod push_challenge {
    use super::Field;

    pub(crate) const NONCE: Field = Field::first("nonce", 32);
    pub(crate) const HAS_TOKEN: Field = NONCE.then("has_token", 1);
    pub(crate) const RESERVED: Field = HAS_TOKEN.then("reserved", 7);
    pub(crate) const SIZE: usize = RESERVED.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[NONCE, HAS_TOKEN, RESERVED];
}

pub(crate) mod push_proof {
    use super::Field;

    pub(crate) const PROOF: Field = Field::first("proof", 32);
    pub(crate) const SIZE: usize = PROOF.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[PROOF];
}

pub(crate) mod push_verdict {
    use super::Field;

    pub(crate) const VERDICT: Field = Field::first("verdict", 1);
    pub(crate) const RESERVED: Field = VERDICT.then("reserved", 7);
    pub(crate) const PROOF: Field = RESERVED.then("proof", 32);
    pub(crate) const SIZE: usize = PROOF.end();
    #[cfg(test)]
    pub(crate) const FIELDS: &[Field] = &[VERDICT, RESERVED, PROOF];
}
