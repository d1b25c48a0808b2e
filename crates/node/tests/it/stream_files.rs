//! Replicas in WAL mode and in rollback mode: what readers meet, and what a follower finds when it comes back.

use std::path::Path;

use rhyolite_format::follow::FollowState;
use rusqlite::{Connection, OpenFlags};

use crate::program::wait_for;
use crate::stream::{Node, count};

fn read_only(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

fn journal_mode(path: &Path) -> String {
    read_only(path).query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap()
}

#[test]
fn readers_of_a_replica_in_wal_mode_hold_nothing_up() {
    let mut node = Node::new();
    let db = node.database("app.db", "delete");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    assert_eq!(journal_mode(&replica), "wal");
    let held = read_only(&replica);
    held.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    for rows in 2..30 {
        db.execute_batch("INSERT INTO t(b) VALUES (randomblob(20000))").unwrap();
        wait_for("the commit", || count(&replica) == Some(rows));
        let seen: i64 = held.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(seen, 1, "it sees its moment");
    }
    drop(held);
    // Fewer pages, and then more again.
    db.execute_batch("DELETE FROM t WHERE a > 3; VACUUM").unwrap();
    node.wait_equal("app.db", &replica);
    db.execute_batch("CREATE TABLE u(c); INSERT INTO u VALUES (zeroblob(90000)); DROP TABLE t").unwrap();
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
    // What is left can be read by itself.
    assert_eq!(std::fs::metadata(node.folder.path("replica.db-wal")).unwrap().len(), 0);
}

#[test]
fn the_journal_of_a_replica_is_for_its_owner_to_choose() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    for mode in ["delete", "wal", "delete", "wal"] {
        let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db", "--journal-mode", mode]);
        db.execute_batch("INSERT INTO t(b) VALUES (randomblob(300))").unwrap();
        node.wait_equal("app.db", &replica);
        assert_eq!(journal_mode(&replica), mode);
        follow.stop();
    }
    node.stop();
}

#[test]
fn another_page_size_goes_through_a_rollback_journal() {
    let mut node = Node::new();
    let db = node.database("app.db", "delete");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    let reader = read_only(&replica);
    assert_eq!(reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(1));
    db.execute_batch("PRAGMA page_size = 1024; VACUUM; INSERT INTO t(b) VALUES (2)").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert_eq!(reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(1), "it is not disturbed");
    drop(reader);
    node.wait_equal("app.db", &replica);
    db.execute_batch("INSERT INTO t(b) VALUES (3)").unwrap();
    node.wait_equal("app.db", &replica);
    assert_eq!(journal_mode(&replica), "wal");
    follow.stop();
    node.stop();
}

#[test]
fn a_replica_that_somebody_writes_to_is_given_up() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let arguments = ["app.db", "--into", "replica.db"];
    let follow = node.follow(&node.url(), &arguments);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    Connection::open(&replica).unwrap().execute_batch("INSERT INTO t(b) VALUES (7)").unwrap();
    db.execute_batch("INSERT INTO t(b) VALUES (2)").unwrap();
    let failed = follow.wait_event("failed");
    assert!(failed["reason"].as_str().unwrap().contains("somebody has written to it"), "{failed}");
    drop(follow);
    let again = node.follow(&node.url(), &arguments);
    let failed = again.wait_event("failed");
    assert!(failed["reason"].as_str().unwrap().contains("its pages add up to another checksum"), "{failed}");
    drop(again);
    assert_eq!(count(&replica), Some(2), "it is left as it is");
    node.stop();
}

/// Of what was not synced a power cut leaves some. Whoever wrote to the file while the system ran is told from that.
#[test]
fn after_a_power_cut_a_replica_at_no_position_is_written_anew() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let arguments = ["app.db", "--into", "replica.db"];
    for bytes in [10, 200_000] {
        let follow = node.follow(&node.url(), &arguments);
        db.execute("INSERT INTO t(b) VALUES (zeroblob(?1))", [bytes]).unwrap();
        node.wait_equal("app.db", &replica);
        follow.stop();
        // Stands for the state and the WAL of different moments.
        Connection::open(&replica).unwrap().execute_batch("DELETE FROM t; VACUUM").unwrap();
        let state = node.folder.path("replica.db-rhyolite-follow");
        let mut noted = FollowState::decode(&std::fs::read(&state).unwrap()).unwrap();
        noted.boot_id[0] ^= 1;
        std::fs::write(&state, noted.encode()).unwrap();
    }
    let follow = node.follow(&node.url(), &arguments);
    node.wait_equal("app.db", &replica);
    db.execute_batch("INSERT INTO t(b) VALUES (2)").unwrap();
    node.wait_equal("app.db", &replica);
    follow.stop();
    node.stop();
}

/// Among readers that overlap there is always one: the WAL begins anew all the same.
#[test]
fn the_wal_of_a_replica_does_not_grow_for_ever() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|n| {
            let (path, stop) = (replica.clone(), stop.clone());
            std::thread::spawn(move || {
                let reader = read_only(&path);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(20 + n * 7));
                    reader.execute_batch("COMMIT").unwrap();
                }
            })
        })
        .collect();
    let mut largest = 0;
    // Some 80,000 pages, five times what the WAL may hold.
    for n in 0..80 {
        db.execute_batch("DELETE FROM t; INSERT INTO t(b) VALUES (randomblob(4000000))").unwrap();
        wait_for("the commit", || count(&replica) == Some(1));
        let size = std::fs::metadata(node.folder.path("replica.db-wal")).unwrap().len();
        largest = size.max(largest);
        assert!(size < 200 << 20, "after {n} commits: {size}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    node.wait_equal("app.db", &replica);
    println!("the WAL had {largest} bytes at most");
    follow.stop();
    node.stop();
}
