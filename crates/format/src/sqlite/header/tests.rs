//! Database headers made by hand: every field, every refusal.

use super::*;
use proptest::prelude::*;

fn sample() -> [u8; at::SIZE] {
    let mut bytes = [0; at::SIZE];
    bytes[..16].copy_from_slice(at::MAGIC);
    bytes[at::PAGE_SIZE..at::PAGE_SIZE + 2].copy_from_slice(&[0x10, 0]);
    bytes[at::WRITE_VERSION..=at::READ_VERSION].fill(2);
    bytes[at::RESERVED] = 12;
    bytes[at::PAYLOAD_FRACTIONS..at::PAYLOAD_FRACTIONS + 3].copy_from_slice(&PAYLOAD_FRACTIONS);
    for (place, value) in [
        (at::CHANGE_COUNTER, 5u32),
        (at::PAGE_COUNT, 70),
        (at::FREELIST_TRUNK, 9),
        (at::FREELIST_COUNT, 3),
        (at::SCHEMA_COOKIE, 8),
        (at::VERSION_VALID_FOR, 5),
        (at::SQLITE_VERSION, 3_051_003),
    ] {
        bytes[place..place + 4].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

#[test]
fn every_field_is_read() {
    let header = DatabaseHeader::decode(&sample()).unwrap();
    assert_eq!(
        header,
        DatabaseHeader {
            page_size: PageSize::new(4096).unwrap(),
            write_version: 2,
            read_version: 2,
            reserved: 12,
            change_counter: 5,
            page_count: 70,
            freelist_trunk: 9,
            freelist_count: 3,
            schema_cookie: 8,
            auto_vacuum: false,
            version_valid_for: 5,
            sqlite_version: 3_051_003,
        }
    );
    assert!(header.is_wal() && header.page_count_is_valid());
    assert_eq!(header.page_count(4096), PageCount(70));
}

#[test]
fn the_stored_size_counts_only_for_its_change_counter() {
    let header = DatabaseHeader::decode(&sample()).unwrap();
    for stale in [DatabaseHeader { version_valid_for: 4, ..header }, DatabaseHeader { page_count: 0, ..header }] {
        assert!(!stale.page_count_is_valid());
        assert_eq!(stale.page_count(4096 * 3), PageCount(3));
        assert_eq!(stale.page_count(4096 * 3 + 1), PageCount(4));
        assert_eq!(stale.page_count(u64::MAX), PageCount(u32::MAX));
    }
}

#[test]
fn what_is_not_a_database_is_refused() {
    let check = |place: usize, value: &[u8]| {
        let mut bytes = sample();
        bytes[place..place + value.len()].copy_from_slice(value);
        DatabaseHeader::decode(&bytes).map_err(|error| (error.kind, error.offset))
    };
    assert_eq!(check(15, &[1]), Err((ErrorKind::Magic, 0)));
    assert_eq!(check(at::PAGE_SIZE, &[1, 0]), Err((ErrorKind::PageSize, 16)));
    assert_eq!(check(at::PAGE_SIZE, &[0x10, 1]), Err((ErrorKind::PageSize, 16)));
    assert_eq!(check(at::PAGE_SIZE, &[0, 1]).unwrap().page_size, PageSize::MAX);
    assert_eq!(check(at::READ_VERSION, &[3]), Err((ErrorKind::Version, 19)));
    assert_eq!(check(at::WRITE_VERSION, &[3]).unwrap().write_version, 3, "readable all the same");
    assert!(!check(at::READ_VERSION, &[1]).unwrap().is_wal());
    assert_eq!(check(at::PAYLOAD_FRACTIONS + 1, &[33]), Err((ErrorKind::Field, 21)));
    assert_eq!(check(at::PAGE_SIZE, &[2, 0, 1, 1, 33]), Err((ErrorKind::Field, 20)), "479 of 512 bytes left");
    assert!(check(at::PAGE_SIZE, &[2, 0, 1, 1, 32]).is_ok());
    assert!(check(at::LARGEST_ROOT, &[0, 0, 0, 1]).unwrap().auto_vacuum);
    for len in 0..at::SIZE {
        assert_eq!(DatabaseHeader::decode(&sample()[..len]).unwrap_err().kind, ErrorKind::Short, "{len} bytes");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_apart_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), file_bytes: u64) {
        let mut page = at::MAGIC.to_vec();
        page.extend(&bytes);
        let _ = DatabaseHeader::decode(&bytes);
        let _ = DatabaseHeader::decode(&page).map(|header| header.page_count(file_bytes));
    }
}
