//! What the mount costs, in operations that the kernel passes to the daemon.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::mount::{Mount, insert};

/// Operations that the kernel passed to the daemon since it was started, by name.
fn operations(address: &str) -> BTreeMap<String, u64> {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let operation = |line: &str| {
        let (name, count) = line.strip_prefix("rhyolite_mount_operations_total{operation=\"")?.split_once("\"} ")?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(operation).collect()
}

/// What a transaction costs in operations: each is a switch to the daemon and back. The application writes one row; nothing else is going on. Of
/// those in rollback mode three or four are the kernel's question whether the folder may be written in, and one is SQLite's, as root, for the
/// owner of its journal.
#[test]
fn a_transaction_stays_within_its_budget_of_operations() {
    const TRANSACTIONS: u64 = 200;
    let Some(mut mount) = Mount::new() else { return };
    mount.stop();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    mount.start(&["--addr", &address]).unwrap();
    // SQLite looks into a persistent journal at each read.
    for (mode, synchronous, write_budget, read_budget) in [
        ("wal", "normal", 0, 0),
        ("wal", "full", 1, 0),
        ("delete", "full", 18, 0),
        ("truncate", "full", 15, 0),
        ("persist", "full", 20, 5),
    ] {
        let name = format!("{mode}{synchronous}.db");
        let db = mount.open(&name, mode);
        db.pragma_update(None, "synchronous", synchronous).unwrap();
        insert(&db, 0..20);
        mount.wait_captured(&name);
        let before = operations(&address);
        for _ in 0..TRANSACTIONS {
            db.execute("INSERT INTO t(b) VALUES (1)", []).unwrap();
        }
        let writes = operations(&address);
        for _ in 0..TRANSACTIONS {
            db.query_row("SELECT b FROM t WHERE a = ?1", [7], |_| Ok(())).unwrap();
        }
        let reads = operations(&address);
        let since = |after: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>| {
            let count = |name: &String, count: &u64| count - before.get(name).copied().unwrap_or(0);
            after.iter().map(|(name, n)| count(name, n)).sum::<u64>() as f64 / TRANSACTIONS as f64
        };
        let (write, read) = (since(&writes, &before), since(&reads, &writes));
        println!(
            "{mode} {synchronous}: {write} operations per transaction, {read} per read; {before:?} {writes:?} {reads:?}"
        );
        // Some are the daemon's own, which looks at the file and after its folders: the more, the slower the disk.
        assert!(
            write <= f64::from(write_budget) + 1.5,
            "{mode} {synchronous}: {write} operations, {before:?} to {writes:?}"
        );
        assert!(
            read <= f64::from(read_budget) + 0.5,
            "{mode} {synchronous}: {read} operations for a read, {writes:?} to {reads:?}"
        );
        mount.wait_captured(&name);
    }
    mount.stop();
}
