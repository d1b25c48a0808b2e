//! Primaries that dial their replicas: nobody here is given an address of a primary, so that what arrives was pushed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhyolite_format::Epoch;
use rhyolite_format::push::{Answer, Challenge, Greeting, Hello, Verdict};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Folder, Running, wait_for};
use crate::stream::{Follow, Node, Writer, count, free_address, put_certificate};

/// A node that dials this address.
fn pusher(to: &str) -> Node {
    Node::with_cluster(String::new(), &format!("{{push-to: [\"{to}\"]}}"))
}

fn insert(db: &Connection, value: i64) {
    db.execute("INSERT INTO t(b) VALUES (?1)", [value]).unwrap();
}

fn info(folder: &Folder) -> Value {
    let outcome = folder.run(&["ctl", "info", "--json", "--socket", "node.sock"]);
    serde_json::from_str(&outcome.stdout).unwrap_or_default()
}

fn is_pushing(node: &Node) -> bool {
    info(&node.folder)["pushes"][0]["connected"] == true
}

/// Both have nothing to say that a person must look at.
fn stop_well(follow: Follow, mut node: Node) {
    follow.stop();
    node.stop();
}

#[test]
fn a_replica_that_can_only_be_dialed_gets_what_is_there_and_what_comes() {
    let accept = free_address();
    let mut node = pusher(&accept);
    let (wal, rollback) = (node.database("wal.db", "wal"), node.database("rollback.db", "delete"));
    for n in 0..50 {
        insert(&wal, n);
        insert(&rollback, n);
    }
    node.start();
    // It dials in vain for a while, and says so.
    wait_for("the error", || info(&node.folder)["pushes"][0]["error"] == "connection refused");
    let replica = |name: &str| node.folder.path("replicas").join(name);
    let follow = node.accept(&accept, &["--into", "replicas"]);
    for name in ["wal.db", "rollback.db"] {
        node.wait_equal(name, &replica(name));
    }
    wait_for("the node to know", || is_pushing(&node));
    wait_for("a commit to come by the stream", || {
        insert(&wal, 0);
        follow.find(|line| line["database"] == "wal.db" && line["source"] == "stream").is_some()
    });
    let late = node.database("late.db", "wal");
    insert(&late, 1);
    for name in ["wal.db", "rollback.db", "late.db"] {
        node.wait_equal(name, &replica(name));
    }
    let said = node.folder.run(&["ctl", "info", "--socket", "node.sock"]);
    assert!(said.stdout.contains(&format!("pushes to http://{accept} since ")), "{said:?}");
    stop_well(follow, node);
}

#[test]
fn one_database_is_followed_into_a_file_and_an_unknown_one_is_an_error() {
    let accept = free_address();
    let mut node = pusher(&accept);
    let (db, _other) = (node.database("app.db", "wal"), node.database("other.db", "wal"));
    node.start();
    let follow = node.accept(&accept, &["app.db", "--into", "replica.db"]);
    insert(&db, 1);
    node.wait_equal("app.db", &node.folder.path("replica.db"));
    follow.stop();
    let outcome = node.folder.run(&["follow", "--accept", &accept, "missing.db", "--into", "x.db"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.stderr.contains("no database \"missing.db\" is served: there is"), "{outcome:?}");
    assert!(!node.folder.path("x.db").exists());
    node.stop();
}

#[test]
fn killed_at_any_time_both_ends_go_on() {
    let accept = free_address();
    let mut node = pusher(&accept);
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let arguments = ["app.db", "--into", "replica.db"];
    let writer = Writer::start(db, u64::MAX, Duration::from_millis(1));
    let follow = node.accept(&accept, &arguments);
    wait_for("the replica", || count(&replica).is_some());
    follow.kill();
    for round in 0..5u64 {
        let follow = node.accept(&accept, &arguments);
        std::thread::sleep(Duration::from_millis(150 + 137 * (round * 7 % 10)));
        follow.kill();
        let db = Connection::open(&replica).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
    }
    let follow = node.accept(&accept, &arguments);
    for round in 0..4 {
        follow.wait_event("connected");
        std::thread::sleep(Duration::from_millis(200 + 150 * round));
        node.kill();
        node.start();
    }
    assert!(writer.stop() > 500);
    node.wait_equal("app.db", &replica);
    follow.wait_event("lost");
    stop_well(follow, node);
}

/// Passes bytes on in both directions. Connections can be cut, or made to pass nothing any more without an end.
struct Wire {
    address: String,
    pairs: Arc<Mutex<Vec<(TcpStream, TcpStream)>>>,
    /// Bytes that connections pass, and then no more; they stay open.
    passes: Arc<AtomicU64>,
    made: Arc<AtomicU64>,
}

impl Wire {
    fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (pairs, made) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicU64>::default());
        let passes = Arc::new(AtomicU64::new(u64::MAX));
        let (known, number, bound) = (Arc::clone(&pairs), Arc::clone(&made), Arc::clone(&passes));
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(onto) = TcpStream::connect(&to) else { continue };
                for (mut a, mut b) in
                    [(&from, &onto), (&onto, &from)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
                {
                    let bound = Arc::clone(&bound);
                    std::thread::spawn(move || {
                        let (mut buffer, mut passed) = ([0; 1000], 0u64);
                        while let Ok(read @ 1..) = a.read(&mut buffer) {
                            passed += read as u64;
                            if passed <= bound.load(Ordering::Relaxed) && b.write_all(&buffer[..read]).is_err() {
                                break;
                            }
                        }
                        let _ = b.shutdown(Shutdown::Both);
                    });
                }
                known.lock().unwrap().push((from, onto));
                number.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { address, pairs, passes, made }
    }

    fn cut(&self) {
        for (a, b) in self.pairs.lock().unwrap().drain(..) {
            let _ = (a.shutdown(Shutdown::Both), b.shutdown(Shutdown::Both));
        }
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

#[test]
fn a_connection_that_is_cut_or_goes_silent_is_made_again() {
    let accept = free_address();
    let wire = Wire::start(accept.clone());
    let mut node = pusher(&wire.address);
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.accept(&accept, &["app.db", "--into", "replica.db", "--timeout", "3s"]);
    let writer = Writer::start(db, u64::MAX, Duration::from_millis(1));
    wait_for("the replica", || count(&replica).is_some());
    for round in 0..8u64 {
        let before = wire.made();
        wire.cut();
        wait_for("another connection", || wire.made() > before);
        std::thread::sleep(Duration::from_millis(31 * (1 + round * 5 % 8)));
    }
    // What is sent arrives nowhere, and neither end is told. The replica notices, and the primary dials again: it takes its own place, which the replica may
    // think of as taken still.
    let cut_off = wire.made();
    wire.passes.store(0, Ordering::Relaxed);
    follow.wait_event("lost");
    wait_for("the silence to be noticed", || {
        follow.find(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("nothing was heard"))).is_some()
    });
    wire.passes.store(u64::MAX, Ordering::Relaxed);
    wait_for("another connection", || wire.made() > cut_off);
    writer.stop();
    node.wait_equal("app.db", &replica);
    stop_well(follow, node);
}

/// A node that pushes one database with this token, or none.
fn push_with(folder: &Folder, to: &str, token: &str) -> Running {
    let mut arguments = vec!["replicate", "app.db", "store", "--cluster-push-to", to, "--socket", "node.sock"];
    if !token.is_empty() {
        arguments.extend(["--cluster-token", token]);
    }
    folder.start(&arguments)
}

#[test]
fn who_does_not_know_the_token_is_neither_followed_nor_sent_anything() {
    for (primary, replica, text) in [
        ("s3cret", "s3creT", "the token is wrong"),
        ("", "s3cret", "a token is wanted, and the primary has none"),
        ("s3cret", "", "the primary wants a token to be known, and there is none here"),
    ] {
        let folder = Folder::new();
        folder.database("app.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let accept = free_address();
        let mut arguments = vec!["follow", "--accept", &accept, "app.db", "--into", "replica.db"];
        if !replica.is_empty() {
            arguments.extend(["--cluster-token", replica]);
        }
        let follow = folder.start(&arguments);
        wait_for("the replica", || TcpStream::connect(&accept).is_ok());
        let node = push_with(&folder, &accept, primary);
        wait_for("the refusal", || {
            info(&folder)["pushes"][0]["error"].as_str().is_some_and(|error| error.contains(text))
        });
        // Some more tries.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!folder.path("replica.db").exists());
        let names = std::fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.filter(|name| name.to_string_lossy().contains("replica")).collect();
        assert!(names.is_empty(), "{names:?}");
        node.signal(Signal::TERM);
        follow.signal(Signal::TERM);
        for (who, outcome) in [("primary", node.wait()), ("replica", follow.wait())] {
            assert_eq!(outcome.code, 0, "{outcome:?}");
            let said = outcome.stderr.matches(text).count();
            assert_eq!(said, 1, "the {who} says it once, not for each try: {outcome:?}");
        }
    }
}

/// Reads one message of a primary.
fn greeting(stream: &mut TcpStream) -> Greeting {
    let mut bytes = vec![0; 16];
    stream.read_exact(&mut bytes).unwrap();
    let len = Greeting::len(&bytes).unwrap().unwrap();
    bytes.resize(len, 0);
    stream.read_exact(&mut bytes[16..]).unwrap();
    Greeting::decode(&bytes).unwrap()
}

#[test]
fn a_replica_that_only_claims_to_know_the_token_is_sent_nothing() {
    let folder = Folder::new();
    folder.database("app.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = push_with(&folder, &listener.local_addr().unwrap().to_string(), "s3cret");
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let Greeting::Hello(hello) = greeting(&mut stream) else { panic!("no hello") };
        assert!(hello.has_token);
        let challenge = Challenge { nonce: hello.nonce, has_token: true };
        stream.write_all(&Greeting::Challenge(challenge).encode()).unwrap();
        let Greeting::Proof(proof) = greeting(&mut stream) else { panic!("no proof") };
        let verdict = Verdict { answer: Answer::Taken, proof, text: String::new() };
        stream.write_all(&Greeting::Verdict(verdict).encode()).unwrap();
        // What an HTTP/2 client would say.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    node.signal(Signal::TERM);
    let outcome = node.wait();
    assert!(outcome.stderr.contains("does not know the token: nothing is sent to it"), "{outcome:?}");
    assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");
}

#[test]
fn noise_is_no_primary() {
    let accept = free_address();
    let mut node = pusher(&accept);
    let db = node.database("app.db", "wal");
    let follow = node.accept(&accept, &["app.db", "--into", "replica.db"]);
    wait_for("the replica", || TcpStream::connect(&accept).is_ok());
    let hello = Hello { id: [1; 16], epoch: Epoch::FIRST, nonce: [2; 32], has_token: false };
    let hello = Greeting::Hello(hello).encode();
    let mut changed = hello.clone();
    changed[20] ^= 1;
    let proof = Greeting::Proof([0; 32]).encode();
    let too_long = [&[1, 32, 0, 0, 0xff, 0xff, 0xff, 0xff][..], &[0; 4096]].concat();
    let mut silent = TcpStream::connect(&accept).unwrap();
    for (noise, answer_max) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], 0),
        (&[0; 4096], 0),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0),
        (&changed, 0),
        (&proof, 0),
        (&too_long, 0),
        // A challenge, and no verdict.
        (&[&hello[..], &hello].concat(), 56),
    ] {
        let mut stream = TcpStream::connect(&accept).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // It may be closed before everything is written.
        let _ = stream.write_all(noise);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= answer_max, "{answer:?}");
    }
    // Another one that says nothing keeps nobody out.
    node.start();
    insert(&db, 1);
    node.wait_equal("app.db", &node.folder.path("replica.db"));
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(silent.read(&mut [0; 10]).unwrap_or(0), 0, "who says nothing is dropped");
    insert(&db, 2);
    node.wait_equal("app.db", &node.folder.path("replica.db"));
    stop_well(follow, node);
}

/// A replica that was told to dial, and a server of followers, are not taken for what they are not.
#[test]
fn a_primary_that_dials_something_else_says_what_it_is_not() {
    let listen = free_address();
    let mut other = Node::with_cluster(listen.clone(), &format!("{{listen: {listen}}}"));
    other.start();
    wait_for("the other node", || TcpStream::connect(&listen).is_ok());
    let mut node = pusher(&listen);
    drop(node.database("app.db", "wal"));
    node.start();
    wait_for("the error", || {
        let info = info(&node.folder);
        let error = info["pushes"][0]["error"].as_str().unwrap_or_default();
        error.contains("is it a replica that was told to --accept")
            || error.contains("connection reset")
            || error.contains("version 0")
    });
    node.stop();
    other.stop();
}

/// Copies what a node has, so that there are two with one history.
fn copy(node: &Node, to: &Node) {
    for name in ["data", "store"] {
        let _ = std::fs::remove_dir_all(to.folder.path(name));
        let copied =
            std::process::Command::new("cp").arg("-a").args([node.folder.path(name), to.folder.path(name)]).status();
        assert!(copied.unwrap().success());
    }
}

#[test]
fn a_second_primary_has_to_wait_until_the_first_is_gone() {
    let accept = free_address();
    let (mut first, mut second) = (pusher(&accept), pusher(&accept));
    let db = first.database("app.db", "wal");
    insert(&db, 1);
    first.start();
    first.folder.wait_durable("data/app.db", 1);
    first.stop();
    drop(db);
    // Both have the next right then, and the third one a later one.
    copy(&first, &second);
    let mut third = pusher(&accept);
    copy(&first, &third);
    for _ in 0..2 {
        third.start();
        third.folder.wait_durable("data/app.db", 1);
        third.stop();
    }
    first.start();
    let replica = first.folder.path("replica.db");
    let follow = first.accept(&accept, &["app.db", "--into", "replica.db"]);
    first.wait_equal("app.db", &replica);
    wait_for("the first", || is_pushing(&first));
    second.start();
    let busy = |node: &Node| {
        let info = info(&node.folder);
        info["pushes"][0]["error"].as_str().is_some_and(|error| error.contains("another primary is connected"))
    };
    wait_for("the second to be refused", || busy(&second));
    std::thread::sleep(Duration::from_secs(1));
    assert!(is_pushing(&first) && busy(&second));
    first.kill();
    wait_for("the second", || is_pushing(&second));
    third.start();
    wait_for("the third", || is_pushing(&third));
    wait_for("the second to be refused again", || busy(&second));
    insert(&third.database("app.db", "wal"), 3);
    third.wait_equal("app.db", &replica);
    follow.stop();
    third.stop();
    second.stop();
}

#[test]
fn over_tls_each_end_proves_who_it_is() {
    let folder = Folder::new();
    drop(folder.database("app.db"));
    for name in ["ca", "other-ca", "node", "node2", "follower", "stranger"] {
        put_certificate(&folder, name, name);
    }
    let port = free_address().rsplit_once(':').unwrap().1.to_owned();
    let (accept, to) = (format!("0.0.0.0:{port}"), format!("localhost:{port}"));
    let follow = |own: &str| {
        let (cert, key) = (format!("{own}.pem"), format!("{own}.key"));
        let more = ["--cert", &cert, "--key", &key, "--ca", "ca.pem", "--timeout", "5s"];
        folder.start(&[&["follow", "--accept", &accept, "app.db", "--into", "replica.db"][..], &more].concat())
    };
    let push = |to: &str, own: &str| {
        let (cert, key) = (format!("{own}.pem"), format!("{own}.key"));
        let push = ["replicate", "app.db", "store", "--cluster-push-to", to, "--socket", "node.sock"];
        let more = ["--cluster-cert", &cert, "--cluster-key", &key, "--cluster-client-ca", "ca.pem"];
        folder.start(&if own.is_empty() { push.to_vec() } else { [&push[..], &more].concat() })
    };
    let plain = format!("http://127.0.0.1:{port}");
    for (replica, to, primary, text) in [
        ("node", to.as_str(), "stranger", "alert"),
        ("node2", &to, "follower", "UnknownIssuer"),
        ("node", &plain, "", ""),
    ] {
        let follow = follow(replica);
        let node = push(to, primary);
        wait_for("the refusal", || {
            info(&folder)["pushes"][0]["error"]
                .as_str()
                .is_some_and(|error| error.contains(text) && error != "connection refused")
        });
        assert!(!folder.path("replica.db").exists());
        node.signal(Signal::TERM);
        assert_eq!(node.wait().code, 0);
        follow.signal(Signal::TERM);
        assert_eq!(follow.wait().code, 0);
    }
    let (follow, node) = (follow("node"), push(&to, "follower"));
    folder.database("app.db").execute_batch("INSERT INTO t VALUES (1)").unwrap();
    wait_for("the commit", || count(&folder.path("replica.db")) == Some(1));
    node.signal(Signal::TERM);
    follow.signal(Signal::TERM);
    assert_eq!((node.wait().code, follow.wait().code), (0, 0));
}

#[test]
fn nobody_dials_or_is_dialed_where_others_could_hear() {
    let folder = Folder::new();
    drop(folder.database("app.db"));
    let replicate = ["replicate", "app.db", "store"];
    let node = ["node", "a", "--store", "store", "--listen", "127.0.0.1:1"];
    let follow = ["follow", "--accept", ":20203", "--into", "x"];
    for (command, more, text) in [
        (&replicate[..], &["--cluster-push-to", "10.0.0.1:1"][..], "needs TLS"),
        (&replicate, &["--cluster-push-to", "https://10.0.0.1:1"], "needs a token"),
        (&replicate, &["--cluster-push-to", "nowhere"], "no address of a replica"),
        (&node, &["--push-to", "10.0.0.1:1"], "needs TLS"),
        (&node, &["--accept", "127.0.0.1:2"], "--candidate=false"),
        (&node, &["--accept", ":2", "--candidate=false"], "needs TLS"),
        (&follow, &[], "needs TLS"),
        (&follow, &["--cert", "x.pem", "--key", "x.key"], "needs a token"),
        (&["follow", "--accept", "127.0.0.1:1", "--into", "x"], &["--ca", "x"], "without TLS"),
        (&["follow", "--accept", "127.0.0.1:1", "http://127.0.0.1:2", "--into", "x"], &[], "give no URL"),
        (&["follow", "--accept", "127.0.0.1:1", "a.db", "b.db", "--into", "x"], &[], "give no URL"),
        (&["follow", "--into", "x"], &[], "URL"),
    ] {
        let outcome = folder.run(&[command, more].concat());
        assert_eq!(outcome.code, 2, "{command:?} {more:?}: {outcome:?}");
        assert!(outcome.stderr.contains(text), "{command:?} {more:?}: {outcome:?}");
    }
}
