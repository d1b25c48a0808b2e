//! Data directories as LiteFS leaves them, made from real databases: the state of the last transaction comes out, or nothing does.

use std::fs;
use std::path::Path;

use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::sqlite::wal::{WalScan, frame_offset};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Timestamp, Txid};
use rusqlite::Connection;

use crate::foreign::vectors;
use crate::history_builder::checksum_of;
use crate::program::Folder;

const PAGE_SIZE: u32 = 4096;

fn page_size() -> PageSize {
    PageSize::new(PAGE_SIZE).unwrap()
}

/// Where in the WAL the transaction lies: offset, size, salts.
type WalRange = (u64, u64, (u32, u32));

/// Writes the LTX file of transaction `txid`, which leads to `image` and holds `pages` of it.
fn write_ltx(folder: &Path, txid: u64, image: &[u8], pages: &[u32], wal: WalRange) {
    let txid = Txid::new(txid).unwrap();
    let header = LtxHeader {
        no_checksum: false,
        page_size: page_size(),
        commit: PageCount((image.len() / page_size().bytes()) as u32),
        min_txid: txid,
        max_txid: txid,
        timestamp: Timestamp(1_700_000_000_000),
        pre_apply: Some(Checksum::EMPTY),
        wal_offset: wal.0,
        wal_size: wal.1,
        wal_salt: wal.2,
        node_id: 7,
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut bytes).unwrap();
    for pgno in pages.iter().filter_map(|pgno| PageNumber::new(*pgno)) {
        let start = pgno.offset(page_size()) as usize;
        encoder.page(pgno, &image[start..start + page_size().bytes()], &mut bytes).unwrap();
    }
    encoder.finish(Some(checksum_of(image, page_size())), &mut bytes).unwrap();
    fs::create_dir_all(folder.join("ltx")).unwrap();
    fs::write(folder.join(format!("ltx/{txid}-{txid}.ltx")), bytes).unwrap();
}

const NO_WAL: WalRange = (0, 0, (0, 0));

/// A database in rollback mode with some hundred pages.
fn database(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch("PRAGMA page_size=4096; PRAGMA cache_size=5; PRAGMA cache_spill=5; CREATE TABLE t(a, b)").unwrap();
    for i in 0..300 {
        db.execute("INSERT INTO t VALUES (?1, randomblob(2000))", [i]).unwrap();
    }
    db
}

/// `dbs/NAME` with a database that nobody had open.
fn quiet(folder: &Folder, name: &str) -> Vec<u8> {
    let source = folder.path(&format!("{name}.source"));
    drop(database(&source));
    let (image, to) = (fs::read(&source).unwrap(), folder.path(&format!("data/dbs/{name}")));
    fs::create_dir_all(&to).unwrap();
    fs::write(to.join("database"), &image).unwrap();
    write_ltx(&to, 9, &image, &[1, 2], NO_WAL);
    image
}

/// `dbs/NAME` with a transaction that was being written when the machine stopped; gives the state before it.
fn with_hot_journal(folder: &Folder, name: &str) -> Vec<u8> {
    let source = folder.path(&format!("{name}.source"));
    let db = database(&source);
    let before = fs::read(&source).unwrap();
    // The pages spill out of the cache into the file, so the journal was synced.
    db.execute_batch("BEGIN; UPDATE t SET b = randomblob(2000); INSERT INTO t SELECT a, b FROM t").unwrap();
    let to = folder.path(&format!("data/dbs/{name}"));
    fs::create_dir_all(&to).unwrap();
    fs::copy(&source, to.join("database")).unwrap();
    fs::copy(folder.path(&format!("{name}.source-journal")), to.join("journal")).unwrap();
    assert!(fs::read(to.join("database")).unwrap() != before, "the transaction has reached the file");
    db.execute_batch("ROLLBACK").unwrap();
    write_ltx(&to, 4, &before, &[1], NO_WAL);
    before
}

/// `dbs/NAME` in WAL mode, with a commit in the WAL after the last one that LiteFS knows; gives the state that it knows.
fn with_wal(folder: &Folder, name: &str) -> Vec<u8> {
    let source = folder.path(&format!("{name}.source"));
    let db = database(&source);
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=1000").unwrap();
    for _ in 0..5 {
        db.execute("UPDATE t SET b = randomblob(1500) WHERE a % 50 = 0", []).unwrap();
    }
    let (wal, to) = (folder.path(&format!("{name}.source-wal")), folder.path(&format!("data/dbs/{name}")));
    let known = fs::read(&wal).unwrap();
    let last = WalScan::new(&known).unwrap().last().unwrap();
    // The known state, made by SQLite.
    let copy = folder.path(&format!("{name}.copy"));
    fs::copy(&source, &copy).unwrap();
    fs::copy(&wal, folder.path(&format!("{name}.copy-wal"))).unwrap();
    Connection::open(&copy).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let image = fs::read(&copy).unwrap();
    db.execute("UPDATE t SET b = 'this LiteFS does not know' WHERE a < 30", []).unwrap();
    fs::create_dir_all(&to).unwrap();
    fs::copy(&source, to.join("database")).unwrap();
    fs::copy(&wal, to.join("wal")).unwrap();
    let salt = WalScan::new(&known).unwrap().header().unwrap().salt;
    let (start, end) = (frame_offset(last.first_frame, page_size()), frame_offset(last.last_frame + 1, page_size()));
    let pages: Vec<u32> = last.pages.iter().map(|frame| frame.header.pgno.get()).collect();
    write_ltx(&to, 12, &image, &pages, (start, end - start, (salt.0, salt.1)));
    image
}

#[test]
fn every_state_in_which_litefs_may_have_stopped_is_taken_out() {
    let folder = Folder::new();
    let expected = [
        ("a.db", 9, quiet(&folder, "a.db")),
        ("hot.db", 4, with_hot_journal(&folder, "hot.db")),
        ("wal.db", 12, with_wal(&folder, "wal.db")),
    ];
    // A WAL of another generation holds nothing that counts.
    let other = quiet(&folder, "other.db");
    fs::copy(folder.path("data/dbs/wal.db/wal"), folder.path("data/dbs/other.db/wal")).unwrap();
    let before = folder.content();
    let outcome = folder.run(&["import", "./data", "-o", "out", "--json"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let lines: Vec<serde_json::Value> = outcome.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for (name, txid, image) in &expected {
        assert!(fs::read(folder.path(&format!("out/{name}"))).unwrap() == *image, "{name}");
        let line = lines.iter().find(|line| line["name"] == *name).unwrap();
        assert_eq!(line["txid"], format!("{txid:016x}"));
        assert_eq!(line["checksum"], checksum_of(image, page_size()).to_string());
    }
    assert!(fs::read(folder.path("out/other.db")).unwrap() == other);
    let after = folder.content();
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "the directory is only read");
    assert_eq!(folder.run(&["import", "./data", "-o", "out"]).code, 1, "files that exist are left alone");
    assert_eq!(folder.run(&["import", "./data", "-o", "out", "--force"]).code, 0);
}

#[test]
fn what_does_not_add_up_gets_no_name_and_holds_nothing_else_up() {
    let folder = Folder::new();
    for name in ["flipped.db", "ltx.db", "stale.db", "without.db"] {
        quiet(&folder, name);
    }
    let sound = quiet(&folder, "sound.db");
    let flip = |path: &str| {
        let path = folder.path(path);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    flip("data/dbs/flipped.db/database");
    flip("data/dbs/ltx.db/ltx/0000000000000009-0000000000000009.ltx");
    // A file that was left from a later transaction than the database has seen.
    write_ltx(&folder.path("data/dbs/stale.db"), 10, &vec![7; sound.len()], &[1], NO_WAL);
    fs::remove_dir_all(folder.path("data/dbs/without.db/ltx")).unwrap();
    // Dropped: a transaction that leads to nothing.
    fs::create_dir_all(folder.path("data/dbs/dropped.db")).unwrap();
    write_ltx(&folder.path("data/dbs/dropped.db"), 3, &[], &[], NO_WAL);
    let outcome = folder.run(&["import", "./data", "-o", "out", "--json"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    let lines: Vec<serde_json::Value> = outcome.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let failed = lines.iter().filter(|line| line["ok"] == false).count();
    assert_eq!((lines.len(), failed), (6, 4), "{outcome:?}");
    assert!(outcome.stderr.contains("4 of 6 databases failed"), "{outcome:?}");
    let written: Vec<_> = fs::read_dir(folder.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(written, ["sound.db"], "nothing is left of what failed");
    assert!(fs::read(folder.path("out/sound.db")).unwrap() == sound);
    for (arguments, code, line) in [
        (&["import", "./nothing", "-o", "out"][..], 3, "no data directory of LiteFS"),
        (&["import", "./data", "-o", "out", "--name", "x.db"], 5, "no database x.db"),
        (&["import", "./data", "-o", "out", "--name", "flipped.db"], 3, "add up to"),
    ] {
        let outcome = folder.run(arguments);
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(outcome.stderr.contains(line), "{outcome:?}");
    }
}

#[test]
fn the_sample_of_a_real_cluster_is_taken_out_where_it_is_there() {
    let name = "000000000000000d-000000000000000d.ltx";
    let Some(ltx) = vectors::file_or_absent(&format!("litefs/{name}")) else {
        eprintln!("skipped: the sample of a LiteFS cluster is not part of this repository");
        return;
    };
    let database = vectors::file_or_absent("litefs/database.db").unwrap();
    let folder = Folder::new();
    fs::create_dir_all(folder.path("data/dbs/db/ltx")).unwrap();
    fs::write(folder.path(&format!("data/dbs/db/ltx/{name}")), ltx).unwrap();
    fs::write(folder.path("data/dbs/db/database"), &database).unwrap();
    let outcome = folder.run(&["import", "./data", "-o", "out", "--json"]).json();
    assert_eq!(outcome["txid"], "000000000000000d");
    assert!(fs::read(folder.path("out/db")).unwrap() == database);
}
