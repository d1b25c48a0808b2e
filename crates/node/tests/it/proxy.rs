//! The proxy in front of an application: real nodes, a web application in Python, and clients that speak HTTP by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Folder, Running, wait_for};
use crate::stream::free_address;

/// What a proxy or an application has answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn cookie(&self) -> Option<String> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with("set-cookie: __txid="))?;
        Some(line.split_once(": ")?.1.split(';').next()?.to_owned())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.to_lowercase().starts_with(&format!("{}:", name.to_lowercase()));
        Some(self.head.lines().find(named)?.split_once(':')?.1.trim())
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(address: &str, method: &str, path: &str, headers: &[&str]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let body = if method == "POST" { "hello" } else { "" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_owned(), body: body.trim().to_owned() })
}

/// An application that nobody but the test starts.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/proxy_app.py")
}

/// A node with its proxy and the address of its application.
struct Node {
    name: &'static str,
    proxy: String,
    /// Where an application for readers may listen.
    reads: String,
    running: Running,
}

struct Cluster {
    folder: Folder,
    nodes: Vec<Node>,
}

impl Cluster {
    /// The first becomes the primary.
    fn start(more: &[&str]) -> Self {
        let mut this = Self { folder: Folder::new(), nodes: Vec::new() };
        this.add("a", more);
        wait_for("a to be the primary", || this.role("a") == "primary");
        this.add("b", more);
        wait_for("b to be a replica", || this.role("b") == "replica");
        wait_for("the replica to be healthy", || this.ask(1, "GET", "/rhyolite/health", &[]).status == 200);
        this
    }

    fn add(&mut self, name: &'static str, more: &[&str]) {
        let (listen, proxy, target, reads) = (free_address(), free_address(), free_address(), free_address());
        let database = self.folder.path(name).join("app.db");
        let port = target.rsplit_once(':').unwrap().1;
        let exec = format!("'{}' {port} '{}' {name}", program().display(), database.display());
        let socket = format!("{name}.sock");
        let arguments = [
            &["node", name, "--store", "store", "--listen", &listen, "--socket", &socket, "--exec", &exec][..],
            &["--lease-ttl", "2s", "--sync-interval", "100ms", "--drill-interval", "0s"],
            &["--proxy-listen", &proxy, "--proxy-target", &target, "--proxy-read-target", &reads],
            more,
        ];
        let running = self.folder.start(&arguments.concat());
        self.nodes.push(Node { name, proxy, reads, running });
    }

    fn role(&self, name: &str) -> String {
        let outcome = self.folder.run(&["ctl", "node", "--json", "--socket", &format!("{name}.sock")]);
        let node: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
        node["role"].as_str().unwrap_or_default().to_owned()
    }

    fn ask(&self, node: usize, method: &str, path: &str, headers: &[&str]) -> Answer {
        let proxy = &self.nodes[node].proxy;
        let mut answer = None;
        wait_for("the proxy", || {
            answer = ask(proxy, method, path, headers).ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    /// An application beside a replica, for readers.
    fn reader(&self, node: usize) -> Reader {
        let Node { name, reads, .. } = &self.nodes[node];
        let (port, database) = (reads.rsplit_once(':').unwrap().1, self.folder.path(name).join("app.db"));
        let mut command = Command::new(program());
        command.args([port, database.to_str().unwrap(), name, "read-only"]).stdin(Stdio::null());
        let reader = Reader(command.spawn().unwrap());
        wait_for("the reader", || TcpStream::connect(reads).is_ok());
        reader
    }

    /// What they have logged.
    fn stop(self) -> String {
        let mut logs = String::new();
        for node in self.nodes.into_iter().rev() {
            node.running.signal(rustix::process::Signal::TERM);
            let outcome = node.running.wait();
            assert!(!outcome.stderr.contains("ERROR"), "{}: {outcome:?}", node.name);
            logs += &outcome.stderr;
        }
        logs
    }
}

#[test]
fn writes_go_to_the_primary_and_a_client_sees_what_it_has_written() {
    let cluster = Cluster::start(&[]);
    // No application on the replica: the primary answers everything.
    let added = cluster.ask(1, "POST", "/add", &[]);
    assert_eq!((added.status, added.body.as_str(), added.header("x-application")), (200, "1", Some("a")), "{added:?}");
    assert_eq!(cluster.ask(1, "GET", "/count", &[]).header("x-application"), Some("a"));
    let reader = cluster.reader(1);
    for count in 2..40 {
        let added = cluster.ask(count % 2, "POST", "/add", &[]);
        let cookie = added.cookie();
        assert_eq!((added.status, added.body), (200, count.to_string()));
        let cookie = format!("Cookie: __x=1; {}", cookie.unwrap());
        let seen = cluster.ask(1, "GET", "/count", &[&cookie]);
        assert_eq!((seen.status, &seen.body, seen.header("x-application")), (200, &count.to_string(), Some("b")));
        assert!(seen.cookie().is_none(), "a read says nothing of commits");
    }
    // Who has seen what no replica has yet is answered by the primary.
    let ahead = cluster.ask(1, "GET", "/count", &["Cookie: __txid=00000000000fffff"]);
    assert_eq!((ahead.status, ahead.header("x-application")), (200, Some("a")), "{ahead:?}");
    drop(reader);
    cluster.stop();
}

#[test]
fn paths_upgrades_and_headers() {
    let cluster = Cluster::start(&[
        "--proxy-passthrough",
        "/who*",
        "--proxy-always-forward",
        "/touch",
        "--proxy-read-wait",
        "200ms",
    ]);
    assert_eq!(cluster.ask(0, "POST", "/add", &[]).status, 200);
    let reader = cluster.reader(1);
    let who = cluster.ask(1, "GET", "/who", &["X-Forwarded-For: 10.1.1.1", "Cookie: __txid=00000000000fffff"]);
    assert_eq!((who.status, who.body.as_str()), (200, "b 10.1.1.1, 127.0.0.1"), "always answered here");
    let touched = cluster.ask(1, "GET", "/touch", &[]);
    assert_eq!((touched.body.as_str(), touched.header("x-application")), ("2", Some("a")));
    assert!(touched.cookie().is_some());
    // What a connection becomes is passed through, here and to the primary.
    for (node, path) in [(0, "/"), (1, "/"), (1, "/touch")] {
        let mut stream = TcpStream::connect(&cluster.nodes[node].proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        for text in ["hello", "again"] {
            stream.write_all(text.as_bytes()).unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, text.as_bytes());
        }
    }
    drop(reader);
    cluster.stop();
}

#[test]
fn what_is_passed_on_too_often_is_not_passed_on_again() {
    let cluster = Cluster::start(&["--proxy-hold", "300ms"]);
    let began = Instant::now();
    let held = cluster.ask(1, "POST", "/add", &["rhyolite-proxied: 3"]);
    assert_eq!((held.status, held.header("retry-after")), (503, Some("1")), "{held:?}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(cluster.ask(0, "GET", "/count", &[]).body, "0", "nobody has got it");
    cluster.stop();
}

#[test]
fn fly_is_told_where_to_send_a_write() {
    let cluster = Cluster::start(&["--proxy-fly-replay"]);
    let answer = cluster.ask(1, "POST", "/add", &[]);
    assert_eq!(answer.status, 409, "whoever does not know the header must not take it for success");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(answer.header("fly-replay"), Some(format!("instance={host}").as_str()), "{answer:?}");
    assert_eq!(cluster.ask(0, "GET", "/count", &[]).body, "0");
    cluster.stop();
}

/// An application beside a replica is not in the way of the one that begins there when the replica becomes the primary, and who has written
/// reads it wherever that is.
#[test]
fn a_replica_with_readers_becomes_the_primary() {
    let cluster = Cluster::start(&[]);
    let reader = cluster.reader(1);
    for count in 1..=3 {
        let added = cluster.ask(1, "POST", "/add", &[]);
        assert_eq!(added.body, count.to_string());
        let cookie = format!("Cookie: {}", added.cookie().unwrap());
        assert_eq!(cluster.ask(1, "GET", "/count", &[&cookie]).body, count.to_string());
        let (from, to) = if count % 2 == 1 { ("a", "b") } else { ("b", "a") };
        let outcome = cluster.folder.run(&["ctl", "handoff", "--socket", &format!("{from}.sock")]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        wait_for("the other to be the primary", || cluster.role(to) == "primary");
        let there = cluster.ask(1, "GET", "/count", &[&cookie]);
        assert_eq!((there.status, there.body), (200, count.to_string()));
        std::thread::sleep(Duration::from_millis(2500));
    }
    drop(reader);
    cluster.stop();
}

/// What a request has for a body, and sends in pieces, the application gets, whatever the method.
#[test]
fn a_body_in_pieces_is_passed_on() {
    let folder = Folder::new();
    let application = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (listen, proxy, target) = (free_address(), free_address(), application.local_addr().unwrap().to_string());
    let arguments = ["node", "a", "--store", "store", "--listen", &listen, "--proxy-listen", &proxy, "--proxy-target"];
    let node = folder.start(&[&arguments[..], &[&target]].concat());
    wait_for("the proxy", || TcpStream::connect(&proxy).is_ok());
    for method in ["POST", "GET", "DELETE"] {
        let mut client = TcpStream::connect(&proxy).unwrap();
        let pieces = "5\r\nhello\r\n0\r\n\r\n";
        let head =
            format!("{method} /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.write_all(format!("{head}{pieces}").as_bytes()).unwrap();
        let (mut stream, _) = application.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"0\r\n\r\n") {
            let mut buffer = [0; 1000];
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{method}: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..read]);
        }
        let got = String::from_utf8(got).unwrap().to_lowercase();
        assert!(got.contains("transfer-encoding: chunked") && got.contains("5\r\nhello\r\n"), "{method}: {got}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // Nothing is captured here, so nobody can say which commit it was: only the primary certainly has it.
        assert_eq!(
            answer.to_lowercase().contains("set-cookie: __txid=fffffffffffffffe; path=/; max-age=10"),
            method != "GET"
        );
    }
    node.signal(rustix::process::Signal::TERM);
    node.wait();
}

/// Clients write and read through both proxies while the role goes to and fro: no request fails, and no write is lost or made twice.
#[test]
fn no_request_fails_while_the_role_is_handed_on() {
    let cluster = Cluster::start(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let slowest = Arc::new(Mutex::new(Duration::ZERO));
    let clients: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            let (proxy, stop, slowest) = (node.proxy.clone(), Arc::clone(&stop), Arc::clone(&slowest));
            std::thread::spawn(move || {
                let mut added = 0;
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = ask(&proxy, "POST", "/add", &[]).unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let cookie = format!("Cookie: {}", answer.cookie().unwrap());
                    let read = ask(&proxy, "GET", "/count", &[&cookie]).unwrap();
                    assert_eq!(read.status, 200, "{read:?}");
                    let count = |answer: &Answer| answer.body.parse::<i64>().unwrap();
                    assert!(count(&read) >= count(&answer), "it has written what it reads: {answer:?} {read:?}");
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = began.elapsed().max(*slowest);
                    added += 1;
                }
                added
            })
        })
        .collect();
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        std::thread::sleep(Duration::from_millis(500));
        let outcome = cluster.folder.run(&["ctl", "handoff", "--socket", &format!("{from}.sock")]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        wait_for("the other to be the primary", || cluster.role(to) == "primary");
        // Whoever has handed it on does not take it at once.
        std::thread::sleep(Duration::from_millis(2500));
    }
    stop.store(true, Ordering::Relaxed);
    let added: i64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let count = cluster.ask(1, "GET", "/count", &[]);
    assert_eq!(count.body, added.to_string());
    println!("{added} writes, the slowest took {:?}", slowest.lock().unwrap());
    cluster.stop();
}

/// There are always requests whose commits wait to be captured when the role is handed on. They are answered before the application is told to stop, and nobody waits for nothing.
#[test]
fn requests_in_flight_do_not_hold_up_a_handoff() {
    let cluster = Cluster::start(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (proxy, stop) = (cluster.nodes[0].proxy.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(ask(&proxy, "POST", "/add", &[]).unwrap().status, 200);
                }
            })
        })
        .collect();
    let handoffs = [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a"), ("a", "b")];
    for (from, to) in handoffs {
        std::thread::sleep(Duration::from_millis(500));
        let outcome = cluster.folder.run(&["ctl", "handoff", "--socket", &format!("{from}.sock")]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        wait_for("the other to be the primary", || cluster.role(to) == "primary");
        std::thread::sleep(Duration::from_millis(2500));
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let logs = cluster.stop();
    // One may be slow on a busy machine.
    let cut = logs.matches("requests unanswered after").count();
    assert!(cut <= 1, "{cut} of {} handoffs have waited for requests that waited for them: {logs}", handoffs.len());
}
