//! Offsets and sizes of LTX files (LTX specification, section 2). All numbers are big-endian.

/// The magic number of every released encoding.
pub const MAGIC: [u8; 4] = *b"LTX1";
/// Size of the header.
pub const HEADER_SIZE: usize = 100;
/// Size of the trailer.
pub const TRAILER_SIZE: usize = 16;
/// Size of the u64 that ends the index.
pub const INDEX_LENGTH_SIZE: usize = 8;
/// The smallest file: no pages.
pub const FILE_SIZE_MIN: usize = HEADER_SIZE + PAGE_HEADER_SIZE + 1 + INDEX_LENGTH_SIZE + TRAILER_SIZE;

/// u32: magic.
pub const MAGIC_AT: usize = 0;
/// u32: flags.
pub const FLAGS_AT: usize = 4;
/// u32: page size in bytes.
pub const PAGE_SIZE_AT: usize = 8;
/// u32: database size in pages after this file.
pub const COMMIT_AT: usize = 12;
/// u64: first transaction.
pub const MIN_TXID_AT: usize = 16;
/// u64: last transaction.
pub const MAX_TXID_AT: usize = 24;
/// i64: milliseconds since the Unix epoch.
pub const TIMESTAMP_AT: usize = 32;
/// u64: checksum of the database before this file, or 0.
pub const PRE_APPLY_AT: usize = 40;
/// i64: offset of the first frame in the WAL.
pub const WAL_OFFSET_AT: usize = 48;
/// i64: bytes taken from the WAL.
pub const WAL_SIZE_AT: usize = 56;
/// u32: first salt of the WAL.
pub const WAL_SALT_1_AT: usize = 64;
/// u32: second salt of the WAL.
pub const WAL_SALT_2_AT: usize = 68;
/// u64: node that made the file.
pub const NODE_ID_AT: usize = 72;
/// 20 bytes of zeros.
pub const RESERVED_AT: usize = 80;

/// Header flag: the page block is one LZ4 frame. Format 1 only.
pub const FLAG_COMPRESSED: u32 = 1;
/// Header flag: there are no database checksums.
pub const FLAG_NO_CHECKSUM: u32 = 2;

/// Size of a page header: u32 page number, u16 flags.
pub const PAGE_HEADER_SIZE: usize = 6;
/// Size of a page header in formats 1 and 2: u32 page number.
pub const OLD_PAGE_HEADER_SIZE: usize = 4;
/// u16 within a page header: flags.
pub const PAGE_FLAGS_AT: usize = 4;
/// Page flag: a u32 size and an LZ4 block follow. Otherwise an LZ4 frame does.
pub const PAGE_FLAG_SIZE: u16 = 1;
/// Size of a page header and the block size after it.
pub const BLOCK_HEADER_SIZE: usize = PAGE_HEADER_SIZE + 4;

/// u64 within the trailer: checksum of the database after this file, or 0.
pub const POST_APPLY_AT: usize = 0;
/// u64 within the trailer: checksum of the file.
pub const FILE_CHECKSUM_AT: usize = 8;

/// The big-endian u16 at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// The big-endian u32 at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The big-endian u64 at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec_tests::rows;

    const DOCUMENT: &str = include_str!("../../../../docs/spec/ltx.md");

    /// Compares the offsets here with the table, and its sizes with the distance to the next offset.
    fn check(table: &str, offsets: &[(usize, &str)], end: usize) {
        let next = offsets.iter().skip(1).map(|o| o.0).chain([end]);
        let is: Vec<_> = offsets.iter().zip(next).map(|((at, name), next)| (*at, next - at, *name)).collect();
        let rows = rows(DOCUMENT, &format!("table: {table}"));
        let said: Vec<_> = rows.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2])).collect();
        assert_eq!(said, is, "{table}");
    }

    #[test]
    fn the_specification_says_the_same() {
        let header = [
            (MAGIC_AT, "magic"),
            (FLAGS_AT, "flags"),
            (PAGE_SIZE_AT, "page_size"),
            (COMMIT_AT, "commit"),
            (MIN_TXID_AT, "min_txid"),
            (MAX_TXID_AT, "max_txid"),
            (TIMESTAMP_AT, "timestamp"),
            (PRE_APPLY_AT, "pre_apply"),
            (WAL_OFFSET_AT, "wal_offset"),
            (WAL_SIZE_AT, "wal_size"),
            (WAL_SALT_1_AT, "wal_salt_1"),
            (WAL_SALT_2_AT, "wal_salt_2"),
            (NODE_ID_AT, "node_id"),
            (RESERVED_AT, "reserved"),
        ];
        check("ltx_header", &header, HEADER_SIZE);
        let page = [(0, "pgno"), (PAGE_FLAGS_AT, "flags"), (PAGE_HEADER_SIZE, "block_size")];
        check("ltx_page", &page, BLOCK_HEADER_SIZE);
        let trailer = [(POST_APPLY_AT, "post_apply"), (FILE_CHECKSUM_AT, "file_checksum")];
        check("ltx_trailer", &trailer, TRAILER_SIZE);
    }
}
