//! WALs, wal-indexes and rollback journals that SQLite wrote, against what a second implementation read in them.

use rhyolite_format::sqlite::journal::{self, Journal};
use rhyolite_format::sqlite::wal::{Salt, ValidFrames, WAL_HEADER_SIZE, WalHeader, WalScan, frame_size};
use rhyolite_format::sqlite::wal_index::{self, Block, WAL_INDEX_BLOCK_SIZE, WalIndex, block_of, find_frame};
use rhyolite_format::{ErrorKind, PageNumber, PageSize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::vectors::{self, file};

/// The cases of one kind. Fails when there are none.
fn cases(kind: &str) -> Vec<Value> {
    let manifest = vectors::json("sqlite/manifest.json");
    let cases: Vec<_> = manifest["cases"].as_array().unwrap().iter().filter(|case| case["kind"] == kind).collect();
    assert!(!cases.is_empty(), "no {kind} cases");
    cases.into_iter().cloned().collect()
}

/// The file that the case names under `key`.
fn part(case: &Value, key: &str) -> &'static [u8] {
    file(&format!("sqlite/{}", case[key].as_str().unwrap()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put(image: &mut Vec<u8>, pgno: PageNumber, page: &[u8], page_size: PageSize) {
    let start = pgno.offset(page_size) as usize;
    let end = start + page_size.bytes();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(page);
}

/// The database as a reader of the WAL sees it.
fn replay(database: &[u8], wal: &[u8]) -> Vec<u8> {
    let mut image = database.to_vec();
    let mut scan = WalScan::new(wal).unwrap();
    let Some(header) = scan.header().copied() else { return image };
    for transaction in &mut scan {
        for frame in &transaction.pages {
            put(&mut image, frame.header.pgno, frame.page, header.page_size);
        }
        image.resize(transaction.commit.bytes(header.page_size) as usize, 0);
    }
    image
}

/// What a WAL holds, with the keys of the manifest.
fn describe_wal(wal: &[u8]) -> Value {
    let Ok(header) = WalHeader::decode(wal) else {
        return json!({ "valid": false, "committed": 0, "stale_frames": 0, "frames": [] });
    };
    let body = &wal[WAL_HEADER_SIZE..];
    let frames: Vec<_> = ValidFrames::new(header, body).collect();
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(frame.number as usize, i + 1);
    }
    let committed = WalScan::new(wal).unwrap().map(|transaction| transaction.last_frame).last().unwrap_or(0);
    json!({
        "valid": true,
        "committed": committed,
        "stale_frames": body.len() / frame_size(header.page_size) - frames.len(),
        "frames": frames.iter().map(|frame| json!([frame.header.pgno.get(), frame.header.commit])).collect::<Vec<_>>(),
        "page_size": header.page_size.get(),
        "salt1": header.salt.0,
        "salt2": header.salt.1,
        "sequence": header.sequence,
        "big_endian_sums": header.big_endian,
    })
}

#[test]
fn wals() {
    for case in cases("wal") {
        let wal = part(&case, "wal");
        assert_eq!(describe_wal(wal), case["expect"], "{}", case["name"]);
        assert_eq!(
            sha256(&replay(part(&case, "db"), wal)),
            case["result_sha256"].as_str().unwrap(),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn transactions_of_a_wal_are_separate() {
    let ranges = |name: &str| -> Vec<(u32, u32, u32, Vec<u32>)> {
        let scan = WalScan::new(file(name)).unwrap();
        scan.map(|t| {
            let pages = t.pages.iter().map(|frame| frame.header.pgno.get()).collect();
            (t.first_frame, t.last_frame, t.commit.get(), pages)
        })
        .collect()
    };
    let three = [(1, 2, 2, vec![1, 2]), (3, 3, 2, vec![2]), (4, 4, 2, vec![2])];
    assert_eq!(ranges("sqlite/wal-4096.wal"), three);
    assert_eq!(ranges("sqlite/wal-65536.wal"), three);
    let shrink = [(1, 12, 12, (1..=12).collect()), (13, 14, 2, vec![1, 2])];
    assert_eq!(ranges("sqlite/wal-shrink.wal"), shrink);
    assert_eq!(ranges("sqlite/wal-uncommitted-tail.wal"), [(1, 1, 2, vec![2])]);
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "the vectors come from a little-endian host")]
fn wal_indexes() {
    let mut seen = 0;
    for case in cases("wal").into_iter().filter(|case| case.get("shm").is_some()) {
        check_wal_index(&case);
        seen += 1;
    }
    assert_eq!(seen, 5);
}

/// The wal-index of a case agrees with the committed frames of its WAL.
fn check_wal_index(case: &Value) {
    let (name, wal, shm) = (&case["name"], part(case, "wal"), part(case, "shm"));
    let header = WalHeader::decode(wal).unwrap();
    let WalIndex { header: index, checkpoint } = wal_index::decode(shm).unwrap().unwrap();
    let frames: Vec<_> = ValidFrames::new(header, &wal[WAL_HEADER_SIZE..]).take(index.max_frame as usize).collect();
    let last = frames.last().unwrap();
    assert_eq!(frames.len(), index.max_frame as usize, "{name}");
    assert_eq!(index.page_count, last.header.commit, "{name}");
    assert_eq!(index.frame_checksum, last.header.checksum, "{name}");
    assert_eq!((index.salt, index.page_size), (header.salt, Some(header.page_size)), "{name}");
    assert_eq!(index.big_endian_checksums, header.big_endian, "{name}");
    assert!(checkpoint.backfill <= index.max_frame && checkpoint.read_marks[0] == 0, "{name}: {checkpoint:?}");

    let block = Block::new(shm, 0).unwrap();
    for frame in &frames {
        let pgno = frame.header.pgno;
        assert_eq!(block.page_of(frame.number), Some(pgno), "{name} frame {}", frame.number);
        // Every reader sees the newest frame up to its mark.
        for mark in 0..=index.max_frame {
            let newest = frames.iter().filter(|f| f.number <= mark && f.header.pgno == pgno).map(|f| f.number).max();
            assert_eq!(find_frame(pgno, 1..=mark, |_| Ok(shm)).unwrap(), newest, "{name} page {pgno} mark {mark}");
        }
    }
    assert_eq!(block_of(index.max_frame), 0);
    let absent = PageNumber::new(1_000_000).unwrap();
    assert_eq!(find_frame(absent, 1..=index.max_frame, |_| Ok(shm)).unwrap(), None, "{name}");
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "the vectors come from a little-endian host")]
fn a_wal_index_in_change_is_not_believed() {
    let mut shm = file("sqlite/wal-4096.shm").to_vec();
    let salt = wal_index::decode(&shm).unwrap().unwrap().header.salt;
    assert_eq!(salt, Salt(4_040_464_832, 3_035_885_997));
    for byte in 0..96 {
        shm[byte] ^= 0x10;
        assert_eq!(wal_index::decode(&shm).unwrap(), None, "byte {byte}");
        shm[byte] ^= 0x10;
    }
    shm.truncate(135);
    assert_eq!(wal_index::decode(&shm).unwrap_err().kind, ErrorKind::Short);
    assert_eq!(Block::new(&shm, 0).unwrap_err().kind, ErrorKind::Short);
    assert_eq!(wal_index::decode(&[0; WAL_INDEX_BLOCK_SIZE]).unwrap(), None, "not initialised");
}

/// What a journal holds, with the keys of the manifest.
fn describe_journal(bytes: &[u8]) -> Value {
    let journal = Journal::decode(bytes).unwrap();
    let segments: Vec<_> =
        journal.iter().flat_map(|journal| journal.segments.iter().map(move |s| (journal, s))).collect();
    let segments: Vec<_> = segments
        .into_iter()
        .map(|(journal, s)| {
            let pages: Vec<_> = s.records.iter().map(|record| record.pgno.get()).collect();
            let promised = s.promised.unwrap_or(u32::MAX);
            json!([s.offset, promised, s.nonce, s.page_count, journal.sector_size, journal.page_size.get(), pages])
        })
        .collect();
    let named = journal::super_journal_name(bytes);
    if let Some(journal) = &journal {
        assert_eq!(journal.super_journal, named);
    }
    let named = named.map(|s| json!({ "name": String::from_utf8_lossy(s.path), "pgno": s.pgno }));
    json!({ "segments": segments, "super": named })
}

/// The database after the rollback.
fn roll_back(database: &[u8], journal: &[u8]) -> Vec<u8> {
    let mut image = database.to_vec();
    let Some(journal) = Journal::decode(journal).unwrap() else { return image };
    let playback = journal.playback();
    assert!(playback.pages.is_sorted_by(|a, b| a.pgno < b.pgno));
    for record in &playback.pages {
        put(&mut image, record.pgno, record.page, playback.page_size);
    }
    image.resize(playback.original.bytes(playback.page_size) as usize, 0);
    image
}

#[test]
fn journals() {
    for case in cases("journal") {
        let bytes = part(&case, "journal");
        assert_eq!(describe_journal(bytes), case["expect"], "{}", case["name"]);
        let rolled_back = roll_back(part(&case, "db"), bytes);
        if let Some(expected) = case.get("result_sha256") {
            assert_eq!(sha256(&rolled_back), expected.as_str().unwrap(), "{}", case["name"]);
        }
    }
}

#[test]
fn the_super_journal_names_both_journals() {
    let members: Vec<_> = journal::super_journal_members(file("sqlite/super.mj")).collect();
    assert_eq!(members, [b"/db/a.db-journal", b"/db/b.db-journal"]);
}

#[test]
fn database_headers() {
    use rhyolite_format::sqlite::header::DatabaseHeader;
    for (path, wal, page_size) in [
        ("sqlite/wal-512.db", true, 512),
        ("sqlite/wal-65536.db", true, 65536),
        ("sqlite/journal-hot-512.db", false, 512),
        ("sqlite/journal-sector-4096.db", false, 1024),
        ("sqlite/journal-hot-65536.db", false, 65536),
    ] {
        let bytes = file(path);
        let header = DatabaseHeader::decode(bytes).unwrap();
        assert_eq!((header.is_wal(), header.page_size.get()), (wal, page_size), "{path}");
        assert!(header.sqlite_version >= 3_040_000 && header.reserved == 0, "{path}: {header:?}");
        assert!(header.page_count_is_valid(), "{path}: {header:?}");
    }
    let header = DatabaseHeader::decode(file("litestream/autovac/final.db")).unwrap();
    assert!(header.auto_vacuum && header.page_count > 0);
    let size = file("litestream/autovac/final.db").len() as u64;
    assert_eq!(header.page_count(size).bytes(header.page_size), size);
}
