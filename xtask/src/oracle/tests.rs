//! Every judge finds the fault that it is there for.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::*;
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::writer::mix::{self, Change};
use crate::writer::schema::{self, Delta, Making};

const CHANGES: [Change; 8] = [
    Change::Row,
    Change::Batch,
    Change::Update,
    Change::Delete,
    Change::Blob,
    Change::Pairs,
    Change::Words,
    Change::Shrink,
];

/// A database with 40 transactions of every kind, checkpointed and closed.
fn database(folder: &Path) -> PathBuf {
    let path = folder.join("app.db");
    schema::create(&path, Making { page_size: 1024, auto_vacuum: 2, life: 77 }).unwrap();
    let conn = Connection::open(&path).unwrap();
    let mut rng = Rng::new(5);
    for n in 0..40 {
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut delta = Delta::default();
        mix::change(&conn, "main", CHANGES[n % CHANGES.len()], &mut rng, &mut delta).unwrap();
        schema::append_entry(&conn, "main", 1, delta).unwrap();
        conn.execute_batch("COMMIT").unwrap();
    }
    path
}

/// The judgement after `sql` was run behind the ledger's back.
fn judged_after(sql: &str) -> Judgement {
    let scratch = Scratch::new("oracle").unwrap();
    let path = database(scratch.path());
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    judge(&path).unwrap()
}

#[test]
fn a_whole_database_is_sound() {
    let judgement = judged_after("");
    assert!(judgement.is_sound(), "{judgement:?}");
    assert_eq!((judgement.life, judgement.last.id), (Some(77), 40));
}

#[test]
fn a_missing_transaction_is_missing() {
    assert_eq!(judged_after("DELETE FROM ledger WHERE id = 20").missing, ["transaction 21 follows 19"]);
    assert_eq!(judged_after("DELETE FROM ledger WHERE id = 1").missing, ["transaction 2 follows 0"]);
}

#[test]
fn a_missing_row_is_missing() {
    let judgement = judged_after("DELETE FROM items WHERE k = (SELECT max(k) FROM items)");
    assert_eq!((judgement.missing.len(), judgement.wrong.len()), (1, 0), "{judgement:?}");
}

#[test]
fn a_changed_row_is_wrong() {
    let judgement = judged_after("UPDATE items SET body = x'00' WHERE k = (SELECT max(k) FROM items)");
    assert_eq!(judgement.wrong.len(), 2, "the row and the sum: {judgement:?}");
    let judgement = judged_after("UPDATE pairs SET body = x'00', h = h + 1 WHERE a = (SELECT min(a) FROM pairs)");
    assert!(!judgement.wrong.is_empty());
}

#[test]
fn a_transaction_of_another_history_is_wrong() {
    let judgement = judged_after("UPDATE ledger SET writer = 2 WHERE id = 30");
    assert_eq!(judgement.wrong, ["transaction 30 does not follow the one before it"]);
}

#[test]
fn a_damaged_page_is_wrong() {
    let scratch = Scratch::new("oracle").unwrap();
    let path = database(scratch.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 1024 * 1024;
    bytes[middle..middle + 1024].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    assert!(!judge(&path).unwrap().is_sound());
}

#[test]
fn an_image_is_what_a_checkpointed_file_holds() {
    let scratch = Scratch::new("oracle").unwrap();
    let path = database(scratch.path());
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("INSERT INTO ledger SELECT id + 40, 3, 0, 0, 0 FROM ledger").unwrap();
    let image = Image::of_database(&path).unwrap();
    assert_ne!(image, Image::of_file(&path).unwrap(), "the last transaction is only in the WAL");
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(conn);
    let file = Image::of_file(&path).unwrap();
    assert_eq!(first_difference(&image, &file), None);
    assert_eq!(image.checksum().unwrap(), file.checksum().unwrap());
}

#[test]
fn a_single_bit_is_a_difference_and_changes_the_checksum() {
    let scratch = Scratch::new("oracle").unwrap();
    let source = Image::of_file(&database(scratch.path())).unwrap();
    let mut copy = source.clone();
    copy.bytes[5000] ^= 1;
    assert!(first_difference(&source, &copy).unwrap().starts_with("1 pages differ, first at byte 5000 (page 5)"));
    assert_ne!(source.checksum().unwrap(), copy.checksum().unwrap());
    copy = source.clone();
    copy.bytes.truncate(source.bytes.len() - 1024);
    assert!(first_difference(&source, &copy).is_some());
}

#[test]
fn pages_that_the_header_does_not_count_are_no_part_of_a_database() {
    let scratch = Scratch::new("image").unwrap();
    let path = scratch.path().join("a.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    let image = Image::of_file(&path).unwrap();
    let (same, was_longer) = image.clone().committed();
    assert!(same == image && !was_longer);
    let mut longer = image.clone();
    longer.bytes.extend([7; 4096]);
    let (cut, was_longer) = longer.committed();
    assert!(cut == image && was_longer);
    let (empty, was_longer) = Image { bytes: Vec::new() }.committed();
    assert!(empty.bytes.is_empty() && !was_longer);
}
