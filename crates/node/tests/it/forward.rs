//! Writes of a replica, which the primary commits.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Pos, Timestamp};
use rhyolite_node::forward::{Granted, Said};
use rhyolite_node::stream::client::{Access, Link, LinkError};
use rhyolite_node::stream::query::Query;
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, rows};
use crate::program::{Outcome, wait_for};

/// A primary whose application writes, and replicas.
fn cluster(replicas: &[&'static str]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    for name in replicas {
        cluster.start(name);
        cluster.wait_role(name, "replica");
        cluster.wait_row(name, 1);
    }
    cluster
}

/// Runs a Python script on a copy of the database of a node: `db` is a connection, `real` the path of the database itself, `socket` that of the node.
fn run(cluster: &Cluster, name: &str, more: &[&str], script: &str) -> Outcome {
    let (db, socket) = (cluster.database(name), format!("{name}.sock"));
    let script = format!(
        "import os, sqlite3, sys, time\nreal = {db:?}\nassert sys.argv[1] == os.environ['RHYOLITE_DB']\n\
         db = sqlite3.connect(sys.argv[1], isolation_level=None)\n{script}"
    );
    let (db, mut arguments) = (db.display().to_string(), vec!["run", "--socket", &socket]);
    arguments.extend(["--write-lock", &db]);
    arguments.extend(more);
    arguments.extend(["--", "python3", "-c", &script, "{}"]);
    cluster.folder.run(&arguments)
}

fn query(path: &std::path::Path, sql: &str) -> rusqlite::Result<i64> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.query_row(sql, [], |row| row.get(0))
}

/// Where copies of a node are.
fn copies(cluster: &Cluster, name: &str) -> Vec<PathBuf> {
    let folder = cluster.folder.path(name).join(".app.db-rhyolite/borrowed");
    std::fs::read_dir(folder).map(|all| all.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn a_replica_writes_and_all_of_it_is_one_commit_of_the_primary() {
    let mut cluster = cluster(&["b", "c"]);
    let script = "
before = sqlite3.connect(real).execute('SELECT max(n) FROM t').fetchone()[0]
db.execute('CREATE TABLE of_b(x)')
db.execute('INSERT INTO of_b VALUES (1)')
db.execute('INSERT INTO t(n) VALUES (-1)')
time.sleep(0.5)
# Nobody sees it yet, and nobody else writes.
there = sqlite3.connect(real)
assert there.execute('SELECT max(n), min(n) FROM t').fetchone() == (before, 1), 'somebody has written'
assert not there.execute(\"SELECT 1 FROM sqlite_master WHERE name = 'of_b'\").fetchall()
print('done')";
    let ran = run(&cluster, "b", &[], script);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "done\n", ""), "{ran:?}");
    // Here at once, and everywhere soon.
    assert!(rows(&cluster.database("b")).contains(&-1), "it has come back when the command has ended");
    for name in ["a", "c"] {
        cluster.wait_row(name, -1);
        assert_eq!(query(&cluster.database(name), "SELECT count(*) FROM of_b"), Ok(1));
    }
    cluster.wait_writing("a");
    assert_eq!(copies(&cluster, "b"), Vec::<PathBuf>::new());
    // Statuses of the command are passed on, and nothing is committed then.
    let ran = run(&cluster, "c", &[], "db.execute('INSERT INTO t(n) VALUES (-2)'); sys.exit(5)");
    assert_eq!((ran.code, ran.stderr.as_str()), (5, ""), "{ran:?}");
    let began = Instant::now();
    cluster.wait_writing("a");
    assert!(began.elapsed() < Duration::from_secs(5), "the lock goes back at once");
    // Nothing is changed: nothing is committed.
    let ran = run(&cluster, "c", &[], "print(db.execute('SELECT count(*) FROM of_b').fetchone()[0])");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1\n"), "{ran:?}");
    // Pages that go away, and many that come.
    let ran = run(
        &cluster,
        "c",
        &[],
        "db.execute('CREATE TABLE big(b)'); db.execute('INSERT INTO big VALUES (randomblob(3000000))')",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(query(&cluster.database("c"), "SELECT length(b) FROM big"), Ok(3_000_000));
    let ran = run(&cluster, "b", &[], "db.execute('DROP TABLE big'); db.execute('VACUUM')");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(query(&cluster.database("b"), "PRAGMA page_count").unwrap() < 700);
    // On the primary it is the database itself.
    let ran = run(&cluster, "a", &[], "assert sys.argv[1] == real; db.execute('INSERT INTO of_b VALUES (2)')");
    assert_eq!(ran.code, 0, "{ran:?}");
    cluster.wait_writing("a");
    cluster.stop_primary("a");
    for name in ["b", "c"] {
        cluster.stop(name);
    }
    let stored = cluster.stored();
    assert!(stored.contains(&-1) && !stored.contains(&-2));
    assert_eq!(query(&cluster.folder.path("stored.db"), "SELECT count(*) FROM of_b"), Ok(2));
    for name in ["a", "b", "c"] {
        assert_eq!(cluster.branches(name), Vec::<Value>::new(), "nothing went astray");
    }
    cluster.check_store();
}

#[test]
fn a_command_that_does_not_end_or_loses_the_lock_commits_nothing() {
    let mut cluster = cluster(&["b"]);
    let ran = run(&cluster, "b", &["--hold", "1s"], "db.execute('INSERT INTO t(n) VALUES (-1)'); time.sleep(60)");
    assert_eq!((ran.code, ran.stderr.contains("held the write lock for 1s")), (1, true), "{ran:?}");
    // The primary is killed while the command runs.
    let pid = cluster.running["a"].id();
    let script = format!("db.execute('INSERT INTO t(n) VALUES (-2)'); os.kill({pid}, 9)");
    let ran = run(&cluster, "b", &[], &script);
    assert_eq!((ran.code, ran.stderr.contains("nothing was committed")), (1, true), "{ran:?}");
    cluster.kill("a");
    cluster.wait_writing("b");
    let here = rows(&cluster.database("b"));
    assert!(!here.contains(&-1) && !here.contains(&-2), "{here:?}");
    assert_eq!(copies(&cluster, "b"), Vec::<PathBuf>::new());
    for (more, says) in [
        (&["--write-lock", "b/other.db"][..], "no database of this node"),
        (&["--write-lock", "b/app.db", "--promote"], "cannot be used with"),
        (&["--timeout", "1s"], "--timeout is for"),
    ] {
        // As a replica once more.
        let arguments = [&["run", "--socket", "a.sock"][..], more, &["--", "echo", "no"]].concat();
        if !cluster.running.contains_key("a") {
            cluster.start("a");
            cluster.wait_role("a", "replica");
        }
        let ran = cluster.folder.run(&arguments);
        assert!(ran.code != 0 && ran.stdout.is_empty() && ran.stderr.contains(says), "{ran:?}");
    }
    cluster.stop("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

#[test]
fn replicas_that_write_at_once_take_turns() {
    let cluster = cluster(&["b", "c"]);
    let add = "
n = db.execute('SELECT coalesce(min(n), 0) FROM t').fetchone()[0]
db.execute('INSERT INTO t(n) VALUES (?)', [min(n, 0) - 1])";
    let (each, cluster) = (6, &cluster);
    std::thread::scope(|scope| {
        for name in ["b", "c"] {
            scope.spawn(move || {
                for _ in 0..each {
                    let ran = run(cluster, name, &[], add);
                    assert_eq!(ran.code, 0, "{ran:?}");
                }
            });
        }
    });
    let here = rows(&cluster.database("a"));
    assert_eq!(here.iter().filter(|n| **n < 0).count(), 2 * each, "each saw what was there before it");
    assert!(here.contains(&-(2 * each as i64)));
}

/// Asks a node by its control socket.
fn ask(cluster: &Cluster, name: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = UnixStream::connect(cluster.folder.path(&format!("{name}.sock"))).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn a_program_borrows_the_lock_by_http_and_it_goes_back_when_nobody_asks_again() {
    let mut cluster = cluster(&["b"]);
    let path = cluster.database("b");
    let (status, lock) = ask(&cluster, "b", "/write-lock", &json!({ "path": path, "ttl_ms": 1000 }));
    assert_eq!(status, 200, "{lock}");
    let copy = PathBuf::from(lock["copy"].as_str().unwrap());
    let insert = |copy: &std::path::Path, n: i64| {
        Connection::open(copy).unwrap().execute("INSERT INTO t(n) VALUES (?1)", [n]).unwrap();
    };
    insert(&copy, -1);
    let before = cluster.last_noted("a");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        let (status, kept) = ask(&cluster, "b", "/write-lock", &json!({ "id": lock["id"], "ttl_ms": 1000 }));
        assert_eq!(status, 200, "{kept}");
    }
    assert!(cluster.last_noted("a") <= before + 1, "the primary's application waits");
    let (status, done) = ask(&cluster, "b", "/write-commit", &json!({ "id": lock["id"] }));
    assert_eq!((status, &done["outcome"], &done["visible"]), (200, &json!("committed"), &json!(true)), "{done}");
    assert!(rows(&path).contains(&-1) && !copy.exists());
    let again = ask(&cluster, "b", "/write-commit", &json!({ "id": lock["id"] }));
    assert_eq!(again, (200, done), "whoever did not get the answer hears the same");
    // Given back.
    let (status, lock) = ask(&cluster, "b", "/write-lock", &json!({ "path": path }));
    assert_eq!(status, 200, "{lock}");
    insert(&PathBuf::from(lock["copy"].as_str().unwrap()), -2);
    assert_eq!(ask(&cluster, "b", "/write-unlock", &json!({ "id": lock["id"] })).0, 200);
    cluster.wait_writing("a");
    // Forgotten.
    let (status, lock) = ask(&cluster, "b", "/write-lock", &json!({ "path": path, "ttl_ms": 700 }));
    assert_eq!(status, 200, "{lock}");
    insert(&PathBuf::from(lock["copy"].as_str().unwrap()), -3);
    cluster.wait_writing("a");
    wait_for("the copy to go", || copies(&cluster, "b").is_empty());
    assert_eq!(ask(&cluster, "b", "/write-commit", &json!({ "id": lock["id"] })).0, 404);
    let here = rows(&path);
    assert!(!here.contains(&-2) && !here.contains(&-3), "{here:?}");
    for body in [json!({}), json!({ "path": path, "id": "x" }), json!({ "id": "x" }), json!({ "path": path, "ttl": 1 })]
    {
        let (status, answer) = ask(&cluster, "b", "/write-lock", &body);
        assert!((400..500).contains(&status), "{body}: {status} {answer}");
    }
    // The role goes on while the lock is lent: it is given back, and the handoff is not held up.
    let (status, lock) = ask(&cluster, "b", "/write-lock", &json!({ "path": path, "ttl_ms": 30000 }));
    assert_eq!(status, 200, "{lock}");
    insert(&PathBuf::from(lock["copy"].as_str().unwrap()), -4);
    assert_eq!(cluster.folder.run(&["ctl", "handoff", "--socket", "a.sock"]).code, 0);
    cluster.wait_writing("b");
    let (status, done) = ask(&cluster, "b", "/write-commit", &json!({ "id": lock["id"] }));
    assert!(status == 409 || (status, &done["outcome"]) == (200, &json!("ended")), "{status} {done}");
    assert!(!rows(&path).contains(&-4));
    cluster.stop("a");
    cluster.stop_primary("b");
    cluster.check_store();
}

/// What leads from one page 1 to another.
fn transaction(
    pos: Pos,
    size: u32,
    change: impl FnOnce(&mut LtxHeader),
    pages: &[(u32, &[u8])],
    post: Checksum,
) -> Bytes {
    let next = pos.txid.next();
    let mut header = LtxHeader {
        no_checksum: false,
        page_size: PageSize::new(4096).unwrap(),
        commit: PageCount(size),
        min_txid: next,
        max_txid: next,
        timestamp: Timestamp(1),
        pre_apply: Some(pos.checksum),
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    change(&mut header);
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Stored, &mut out).unwrap();
    for (number, page) in pages {
        encoder.page(PageNumber::new(*number).unwrap(), page, &mut out).unwrap();
    }
    encoder.finish(Some(post), &mut out).unwrap();
    Bytes::from(out)
}

#[tokio::test]
async fn what_does_not_lead_on_is_refused_and_what_is_sent_twice_is_committed_once() {
    let mut cluster = cluster(&[]);
    // An application may write before its database is captured.
    cluster.wait_durable("a");
    let address = format!("http://{}", cluster.addresses["a"]).parse().unwrap();
    let link = Link::connect(&address, &Access::default(), Duration::from_secs(5)).await.unwrap();
    let lock = async |id: &str, db: &str, wait: u64| {
        let query = Query::default().with("db", db).with("id", id).with("ttl", 20_000).with("wait", wait);
        let answer = link.send(&query.of("/v1/write-lock"), Bytes::new(), 1 << 20).await?;
        Ok::<Granted, LinkError>(serde_json::from_slice(&answer).unwrap())
    };
    let write = async |id: &str, body: Bytes| {
        let answer = link.send(&Query::default().with("id", id).of("/v1/write"), body, 1 << 20).await?;
        Ok::<Said, LinkError>(serde_json::from_slice(&answer).unwrap())
    };
    let page_one = |cluster: &Cluster| -> (Vec<u8>, u32) {
        let db = Connection::open(cluster.database("a")).unwrap();
        let page = db.query_row("SELECT data FROM sqlite_dbpage WHERE pgno = 1", [], |row| row.get(0)).unwrap();
        (page, db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap())
    };
    let is_ended = |said: &Result<Said, LinkError>, text: &str| {
        let Ok(Said::Ended { why }) = said else { panic!("{said:?}") };
        assert!(why.contains(text), "{why}");
    };
    let status = |error: LinkError| match error {
        LinkError::Refused { status, .. } => status.as_u16(),
        error => panic!("{error}"),
    };
    assert_eq!(status(lock("x", "none.db", 0).await.unwrap_err()), 404);
    assert_eq!(status(lock("", "app.db", 0).await.unwrap_err()), 409);
    assert_eq!(status(write("never", Bytes::new()).await.unwrap_err()), 404);
    // Each of these ends its loan.
    type Change = fn(&mut LtxHeader);
    let bad: [(&str, Change, &str); 4] = [
        ("size", |h| h.page_size = PageSize::new(8192).unwrap(), "page size"),
        ("before", |h| h.pre_apply = Some(Checksum::from_crc(1)), "does not lead on"),
        ("after", |h| (h.min_txid, h.max_txid) = (h.min_txid.next(), h.max_txid.next()), "does not lead on"),
        ("sum", |_| {}, "do not add up"),
    ];
    for (id, change, says) in bad {
        let granted = lock(id, "app.db", 5000).await.unwrap();
        let page = vec![7; if id == "size" { 8192 } else { 4096 }];
        let body = transaction(granted.pos, 3, change, &[(2, &page)], Checksum::from_crc(2));
        is_ended(&write(id, body).await, says);
    }
    lock("garbage", "app.db", 5000).await.unwrap();
    is_ended(&write("garbage", Bytes::from_static(b"no LTX file")).await, "cannot be used");
    // The real one: another application id.
    let granted = lock("good", "app.db", 5000).await.unwrap();
    assert_eq!(status(lock("second", "app.db", 200).await.unwrap_err()), 503, "it is taken");
    let (before, count) = page_one(&cluster);
    let mut page = before.clone();
    page[68..72].copy_from_slice(&77_u32.to_be_bytes());
    let sum = |page: &[u8]| Checksum::of_page(PageNumber::FIRST, page);
    let post = granted.pos.checksum.toggle(sum(&before)).toggle(sum(&page));
    let body = transaction(granted.pos, count, |_| {}, &[(1, &page)], post);
    let mut cut = body.to_vec();
    *cut.last_mut().unwrap() ^= 1;
    let (first, second) = tokio::join!(write("good", body.clone()), write("good", body.clone()));
    let Ok(Said::Committed { txid }) = first else { panic!("{first:?}") };
    assert!(txid > granted.pos.txid);
    assert_eq!(second, Ok(Said::Committed { txid }));
    assert_eq!(write("good", body).await, Ok(Said::Committed { txid }), "however often it is asked");
    assert_eq!(query(&cluster.database("a"), "PRAGMA application_id"), Ok(77));
    lock("cut", "app.db", 5000).await.unwrap();
    is_ended(&write("cut", Bytes::from(cut)).await, "");
    link.close();
    cluster.wait_writing("a");
    cluster.signal("a", Signal::TERM);
    drop(cluster.running.remove("a").unwrap().wait());
    cluster.check_store();
}
