//! CRC-64, page checksums and database checksums of the vectors.

use rhyolite_format::crc::crc64;
use rhyolite_format::{Checksum, PageNumber, PageSize};

use crate::vectors::{file_or_absent, hex, list, number, unhex};

#[test]
fn crcs() {
    for case in list("crc64") {
        assert_eq!(crc64(&unhex(case["hex"].as_str().unwrap())), hex(&case["crc"]), "{case}");
    }
}

#[test]
fn page_checksums() {
    for case in list("page_checksums") {
        let fill = unhex(case["fill"].as_str().unwrap());
        let data: Vec<u8> = fill.iter().copied().cycle().take(number(&case["page_size"]) as usize).collect();
        let pgno = PageNumber::new(number(&case["pgno"]) as u32).unwrap();
        assert_eq!(Checksum::of_page(pgno, &data).get(), hex(&case["checksum"]), "{case}");
    }
}

#[test]
fn database_checksums() {
    for case in list("databases") {
        let path = case["path"].as_str().unwrap();
        let Some(image) = file_or_absent(path) else { continue };
        let page_size = PageSize::new(number(&case["page_size"]) as u32).unwrap();
        assert_eq!(database_checksum(&image, page_size).get(), hex(&case["checksum"]), "{path}");
    }
}

/// Checksum of a whole database image (LTX specification, section 3.3).
pub(crate) fn database_checksum(image: &[u8], page_size: PageSize) -> Checksum {
    let mut sum = Checksum::EMPTY;
    for (i, page) in image.chunks_exact(page_size.bytes()).enumerate() {
        let pgno = PageNumber::new(i as u32 + 1).unwrap();
        if pgno != page_size.lock_page() {
            sum = sum.toggle(Checksum::of_page(pgno, page));
        }
    }
    sum
}
