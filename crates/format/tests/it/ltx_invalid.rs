//! Every broken file of the vectors is refused for the listed reason.

use rhyolite_format::ltx::{Format, decode_any, decode_as};
use rhyolite_format::{DecodeError, ErrorKind};

use crate::vectors::{file, list, number};

/// The codes of the LTX specification, section 6.
fn kind(code: &str) -> ErrorKind {
    match code {
        "SHORT" => ErrorKind::Short,
        "MAGIC" => ErrorKind::Magic,
        "FLAGS" => ErrorKind::Flags,
        "PAGE_SIZE" => ErrorKind::PageSize,
        "TXID" => ErrorKind::Txid,
        "WAL_RANGE" => ErrorKind::WalRange,
        "PRE_CHECKSUM" => ErrorKind::PreChecksum,
        "PGNO" => ErrorKind::PageNumber,
        "PAGE_FLAGS" => ErrorKind::PageFlags,
        "PAGE_LENGTH" => ErrorKind::PageLength,
        "LZ4" => ErrorKind::Lz4,
        "PAGE_ORDER" => ErrorKind::PageOrder,
        "LOCK_PAGE" => ErrorKind::LockPage,
        "COMMIT" => ErrorKind::Commit,
        "SNAPSHOT_PAGES" => ErrorKind::SnapshotPages,
        "INDEX" => ErrorKind::Index,
        "TRAILING" => ErrorKind::Trailing,
        "FILE_CHECKSUM" => ErrorKind::FileChecksum,
        "POST_CHECKSUM" => ErrorKind::PostChecksum,
        "RESERVED" => ErrorKind::Reserved,
        other => panic!("unknown code {other}"),
    }
}

/// Reserved bytes that are not zero are a warning; here they count as a refusal.
fn refusal(bytes: &[u8]) -> Option<ErrorKind> {
    match decode_as(bytes, Format::Three) {
        Err(error) => Some(error.kind),
        Ok(file) => (!file.is_reserved_clear).then_some(ErrorKind::Reserved),
    }
}

/// Files that break two rules, where the decoder meets the other one first: path, kind.
const OTHER_KIND_FIRST: [(&str, ErrorKind); 1] = [
    // A flipped bit makes the length of the index wrong, and the file checksum too.
    ("invalid/flip-index.ltx", ErrorKind::Index),
];

#[test]
fn invalid_files_are_refused_for_the_listed_reason() {
    let cases = list("invalid");
    assert_eq!(cases.len(), 57);
    let mut wrong = Vec::new();
    for case in cases {
        let path = case["path"].as_str().unwrap();
        assert_eq!(number(&case["format"]), 3, "{path}");
        let listed = kind(case["error"].as_str().unwrap());
        let expected = OTHER_KIND_FIRST.iter().find(|(p, _)| *p == path).map_or(listed, |(_, kind)| *kind);
        let got = refusal(file(path));
        if got != Some(expected) {
            wrong.push(format!("{path}: expected {expected:?}, got {got:?}: {}", case["why"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Trying other formats does not make a broken file good, and the error told is that of the likely format.
#[test]
fn invalid_files_are_of_no_other_format() {
    for case in list("invalid").iter().filter(|case| case["error"] != "RESERVED") {
        let path = case["path"].as_str().unwrap();
        let error: DecodeError = decode_any(file(path)).expect_err(path);
        assert!(!error.to_string().is_empty());
    }
}
