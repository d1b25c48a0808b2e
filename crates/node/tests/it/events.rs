//! The event stream of two nodes, read as any program would.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Folder, Running, wait_for};
use crate::stream::free_address;

/// Somebody who listens.
struct Listener {
    lines: std::io::Lines<BufReader<TcpStream>>,
}

impl Listener {
    fn new(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        Self { lines: BufReader::new(stream).lines() }
    }

    /// The next event. Between them are the head, and the sizes of chunks.
    fn next(&mut self) -> Value {
        let line = self.lines.by_ref().map(Result::unwrap).find(|line| line.starts_with('{')).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next one of this type.
    fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next();
            if event["type"] == kind {
                return event;
            }
        }
    }
}

fn start(folder: &Folder, name: &str, listen: &str, addr: &str) -> Running {
    let socket = format!("{name}.sock");
    folder.start(
        &[
            &["node", name, "--store", "store", "--listen", listen, "--addr", addr, "--socket", &socket][..],
            &["--lease-ttl", "2s", "--sync-interval", "50ms", "--drill-interval", "0s"],
        ]
        .concat(),
    )
}

fn role(folder: &Folder, name: &str) -> Value {
    let outcome = folder.run(&["ctl", "node", "--json", "--socket", &format!("{name}.sock")]);
    serde_json::from_str::<Value>(&outcome.stdout).unwrap_or_default()["role"].clone()
}

#[test]
fn transactions_and_changes_of_the_primary_are_told_on_every_node() {
    let folder = Folder::new();
    folder.make_folder("a");
    let db = Connection::open(folder.path("a/app.db")).unwrap();
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    db.execute_batch("CREATE TABLE t(n)").unwrap();
    let [listen_a, addr_a, listen_b, addr_b] = std::array::from_fn(|_| free_address());
    let a = start(&folder, "a", &listen_a, &addr_a);
    wait_for("a to be the primary", || role(&folder, "a") == "primary");
    let b = start(&folder, "b", &listen_b, &addr_b);
    wait_for("b to be a replica", || role(&folder, "b") == "replica");
    wait_for("b to have the database", || folder.path("b/app.db-pos").exists());
    let (mut on_a, mut on_b) = (Listener::new(&addr_a), Listener::new(&addr_b));
    let init = on_a.next();
    assert_eq!(
        (&init["type"], &init["data"]["isPrimary"], &init["data"]["hostname"]),
        (&"init".into(), &true.into(), &listen_a.clone().into())
    );
    let init = on_b.next();
    assert_eq!(
        (&init["type"], &init["data"]["isPrimary"], &init["data"]["hostname"]),
        (&"init".into(), &false.into(), &listen_a.into())
    );
    for _ in 0..3 {
        db.execute("INSERT INTO t VALUES (1)", []).unwrap();
        let (here, there) = (on_a.next_of("tx"), on_b.next_of("tx"));
        assert_eq!(here["db"], "app.db");
        assert_eq!(here, there, "the same transaction, with the same time");
        let pos = format!(
            "{}/{}\n",
            here["data"]["txID"].as_str().unwrap(),
            here["data"]["postApplyChecksum"].as_str().unwrap()
        );
        wait_for("the position of the replica", || {
            std::fs::read_to_string(folder.path("b/app.db-pos")).unwrap() == pos
        });
        assert_eq!((&here["data"]["pageSize"], &here["data"]["commit"]), (&4096.into(), &2.into()));
    }
    drop(db);
    assert_eq!(folder.run(&["ctl", "handoff", "--socket", "a.sock"]).code, 0);
    let lost = on_a.next_of("primaryChange");
    assert_eq!(lost["data"]["isPrimary"], false);
    loop {
        let change = on_b.next_of("primaryChange");
        if change["data"]["isPrimary"] == true {
            assert_eq!(change["data"]["hostname"].as_str(), Some(listen_b.as_str()));
            break;
        }
    }
    for node in [a, b] {
        node.signal(Signal::TERM);
        node.wait();
    }
}
