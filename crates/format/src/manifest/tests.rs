//! The rules of the manifest, each broken once, and the time that a large one takes.

use std::time::{Duration, Instant};

use super::*;
use crate::samples::{self, checksum, file, pos, seq, txid};

/// The kind of error after `change`; `None` when it is still valid.
fn after(change: impl FnOnce(&mut Manifest)) -> Option<ErrorKind> {
    let mut manifest = samples::manifest();
    change(&mut manifest);
    let error = manifest.validate().err();
    let read = Manifest::decode(&json::encode(&manifest));
    assert_eq!(read.err().map(|e| e.kind), error.as_ref().map(|e| e.kind), "reading checks the same");
    error.map(|e| e.kind)
}

#[test]
fn samples_are_valid() {
    assert_eq!(after(|_| ()), None);
    assert_eq!(after(|m| m.files.retain(|f| f.level != 9 || f.max_txid.get() == 15)), None, "one snapshot is enough");
    assert_eq!(after(|m| m.files.retain(|f| f.level != 9 || f.max_txid.get() == 1)), None);
    assert_eq!(after(|m| m.files.insert(2, file(2, 2, 10))), Some(ErrorKind::Field), "twice the same");
    assert_eq!(after(|m| m.files.insert(3, file(3, 2, 20))), None, "levels may overlap");
    assert_eq!(after(|m| m.files.push(file(9, 1, 90))), None, "a snapshot may lie in the live log");
    let fresh = Manifest::new(samples::LINEAGE, Epoch::FIRST, Nonce([0; 16]), Timestamp(0), Seq::FIRST);
    assert_eq!(fresh.validate(), Ok(()));
}

#[test]
fn files_must_make_sense() {
    assert_eq!(after(|m| m.files.swap(0, 1)), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].level = 2), Some(ErrorKind::Field), "the key says 1");
    assert_eq!(after(|m| m.files[0].kind = FileKind::Merged), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].key = "id.json".to_owned()), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].key = file(1, 11, 19).key), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].pre_apply = None), Some(ErrorKind::PreChecksum));
    assert_eq!(after(|m| m.files[3].pre_apply = Some(checksum(1))), Some(ErrorKind::PreChecksum));
    assert_eq!(after(|m| m.files[0].entries = 0), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[2].entries = 2), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].size = 130), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].min_time = Timestamp(i64::MAX)), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.files[0].commit = PageCount(0)), Some(ErrorKind::PostChecksum));
    assert_eq!(after(|m| m.files[1].page_size = PageSize::MIN), Some(ErrorKind::PageSize));
    assert_eq!(after(|m| m.files[1] = file(1, 20, 30)), Some(ErrorKind::Txid), "bundles overlap");
    assert_eq!(after(|m| m.files[2] = file(2, 1, 10)), Some(ErrorKind::Txid), "a merged file from TXID 1");
    assert_eq!(after(|m| m.revision = 0), Some(ErrorKind::Field));
}

#[test]
fn a_txid_has_one_checksum() {
    assert_eq!(after(|m| m.files[0].post_apply = checksum(99)), Some(ErrorKind::Chain));
    assert_eq!(after(|m| m.files[1].pre_apply = Some(checksum(99))), Some(ErrorKind::Chain));
    assert_eq!(after(|m| m.log_start = Some(Pos { checksum: checksum(99), ..pos(30) })), Some(ErrorKind::Chain));
    assert_eq!(after(|m| m.pins[0].pos.checksum = checksum(99)), Some(ErrorKind::Chain));
}

#[test]
fn the_start_of_the_log_can_be_restored() {
    assert_eq!(after(|m| drop(m.files.remove(1))), Some(ErrorKind::Gap));
    assert_eq!(after(|m| m.files.retain(|f| f.level != 9)), Some(ErrorKind::Gap), "no snapshot");
    assert_eq!(after(|m| drop(m.files.remove(0))), Some(ErrorKind::Gap), "16 to 20 are missing");
    assert_eq!(after(|m| drop(m.files.remove(2))), None, "the newest snapshot makes 2 to 10 dispensable");
    assert_eq!(after(|m| m.log_start = Some(pos(31))), Some(ErrorKind::Gap));
    assert_eq!(after(|m| m.log_start = Some(pos(29))), Some(ErrorKind::Txid), "a bundle reaches into the log");
    assert_eq!(after(|m| m.log_start = None), Some(ErrorKind::Txid));
    // A chain of files that overlap: 15, then 11 to 20 and 14 to 24, then 22 to 30.
    let overlapping = |m: &mut Manifest| {
        m.files = vec![file(1, 11, 20), file(1, 22, 30), file(2, 14, 24), file(9, 1, 15)];
        m.retired_files.clear();
    };
    assert_eq!(after(overlapping), None);
}

#[test]
fn nothing_is_both_live_and_retired() {
    assert_eq!(after(|m| m.retired_files[0].key = file(1, 21, 30).key), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.retired_files[0].key = "manifest.json".to_owned()), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.retired_files.extend(m.retired_files.clone())), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.retired_segments[0].last_seq = seq(40)), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.retired_segments[0].first_seq = seq(41)), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.retired_segments.extend(m.retired_segments.clone())), Some(ErrorKind::Field));
}

#[test]
fn pins_have_one_name_each() {
    assert_eq!(after(|m| m.pins[0].name.clear()), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.pins[0].name = "x".repeat(256)), Some(ErrorKind::Field));
    assert_eq!(after(|m| m.pins.extend(m.pins.clone())), Some(ErrorKind::Field));
}

#[test]
#[should_panic(expected = "a manifest that breaks the format")]
fn an_invalid_manifest_is_not_written() {
    let mut manifest = samples::manifest();
    manifest.log_start = None;
    manifest.encode();
}

fn large(files: u64) -> Manifest {
    let mut manifest = samples::manifest();
    manifest.files = (0..files).map(|i| file(1, 10 * i + 2, 10 * i + 11)).collect();
    manifest.files.push(file(9, 1, 1));
    manifest.log_start = Some(pos(10 * files + 1));
    manifest.retired_files.clear();
    manifest.pins = vec![Pin { name: "p".to_owned(), pos: Pos { txid: txid(11), checksum: checksum(11) } }];
    manifest
}

#[test]
fn ten_thousand_files_are_read_quickly() {
    let bytes = large(10_000).encode();
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(Manifest::decode(&bytes).unwrap().files.len(), 10_001);
        best = best.min(begun.elapsed());
    }
    println!("{} bytes in {best:?}", bytes.len());
    assert!(best < Duration::from_millis(300), "{best:?}");
}

#[test]
fn too_many_files_are_refused() {
    let mut manifest = large(10);
    manifest.files = vec![file(9, 1, 1); FILES_MAX + 1];
    assert_eq!(manifest.validate().unwrap_err().kind, ErrorKind::Field);
}
