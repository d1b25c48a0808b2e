//! WebDAV against three servers, through several clients: what each of them keeps, and writers that die.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_store::suite::{self, SuiteSize};
use rhyolite_store::{
    Environment, RetryPolicy, Retrying, Store, StoreError, StoreErrorKind as Kind, StoreOptions, open, probe,
};

use crate::probe::{SMALL, faults};
use crate::servers::{Server, apache, nginx, wsgidav};
use crate::several::Several;

fn store(server: &Server, folder: &str) -> Arc<dyn Store> {
    let environment = Environment::Fixed(
        [("WEBDAV_USERNAME", "user"), ("WEBDAV_PASSWORD", "pass")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    );
    open(&format!("webdav://127.0.0.1:{}/{folder}", server.port), &StoreOptions { environment }).unwrap()
}

fn clients(server: &Server, folder: &str, count: usize) -> Vec<Arc<dyn Store>> {
    (0..count).map(|_| store(server, folder)).collect()
}

fn kind<T>(result: Result<T, StoreError>) -> Option<Kind> {
    result.err().map(|e| e.kind)
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A swap a second is the most, and a create takes six requests: rounds are few.
const SIZE: SuiteSize = SuiteSize { rounds: 3, racers: 6, listed: 340, upload_bytes: (2 << 20) + 17 };

/// Servers close connections when they like, and answer races with 500: both is healed by trying again. What a server cannot do
/// at all is named, and must fail: the day it does not, the documentation is wrong.
async fn conforms(server: &Server, but_for: &[(&str, &str)]) {
    let several = Several::new(clients(server, "suite/with space", 3));
    let store: Arc<dyn Store> = Arc::new(Retrying::new(Arc::new(several), RetryPolicy::default()));
    let mut failures = suite::run(&store, SIZE).await;
    for (case, what) in but_for {
        let known = failures.iter().position(|f| f.case == *case && f.what.contains(what));
        failures.remove(known.unwrap_or_else(|| panic!("{case:?} does not fail with {what:?}: {failures:#?}")));
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

async fn passes_the_probe(server: &Server) {
    let clients = clients(server, "probe", 4);
    let report = probe::run(&clients, SMALL).await.unwrap();
    assert_eq!(faults(&report), [""; 0]);
    assert!(report.can_fence(), "{report:?}");
    assert!(clients[0].list_all("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wsgidav_conforms() {
    let Some(server) = wsgidav() else { return };
    // It takes the question mark in a destination for the begin of a query, although it is encoded.
    conforms(&server, &[("odd keys are kept", "a?b")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_conforms() {
    let Some(server) = apache() else { return };
    conforms(&server, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_conforms() {
    let Some(server) = nginx() else { return };
    // It stores no empty bodies, and its lists leave out names that begin with a dot.
    let but_for = [("empty objects are objects", "status 500"), ("odd keys are kept", "stored as")];
    conforms(&server, &but_for).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wsgidav_passes_the_probe() {
    let Some(server) = wsgidav() else { return };
    passes_the_probe(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_passes_the_probe() {
    let Some(server) = apache() else { return };
    passes_the_probe(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_passes_the_probe() {
    let Some(server) = nginx() else { return };
    passes_the_probe(&server).await;
}

/// A writer died while it had its turn, and comes back to life when it is too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_writers_turn_is_taken_away_and_its_draft_can_do_nothing_any_more() {
    let Some(server) = nginx() else { return };
    let store = store(&server, "dead");
    let version = store.create("lease.json", b("1 first")).await.unwrap();
    let folder = server.data.path().join("srv/dead");
    let turn = folder.join(".rhyolite-turn");
    std::fs::create_dir(&turn).unwrap();
    std::fs::write(turn.join("deadbeef"), "the dead writer's bytes").unwrap();
    let start = Instant::now();
    store.swap_if("lease.json", Some(&version), b("2 second")).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(9), "a turn is not taken away at once");
    let late = std::fs::rename(turn.join("deadbeef"), folder.join("lease.json"));
    assert_eq!(late.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(store.get("lease.json").await.unwrap().bytes, "2 second");
    assert_eq!(names(&folder), ["lease.json"], "nothing of it is left");
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn what_is_no_webdav_server_says_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = StoreOptions { environment: Environment::Fixed([].into()) };
    let nobody = open(&format!("webdav://127.0.0.1:{port}/x"), &options).unwrap();
    assert_eq!(kind(nobody.create("a", b("1")).await), Some(Kind::Unavailable));
    assert_eq!(kind(nobody.get("a").await), Some(Kind::Unavailable));
    for (url, reason) in [
        ("webdav:///x", "the server is missing"),
        ("webdav://u:secret@h/x", "WEBDAV_PASSWORD"),
        ("webdav://h/x?region=1", "unknown option"),
        ("webdav://h/%zz", "badly encoded"),
        ("sftp://u:secret@h/x", "SFTP_PASSWORD"),
        ("sftp://u@/x", "the server is missing"),
        ("sftp://u@h:0/x", "port"),
        ("sftp://h/x", "user is missing"),
        ("sftp://u@h/x?host-key=abc", "host-key"),
        ("sftp://u@h/x?skip-verify=true&known-hosts=/x", "exclude"),
        ("sftp://u@h/x/../y", "not a valid key"),
    ] {
        let error = open(url, &options).err().unwrap_or_else(|| panic!("{url} was accepted"));
        assert_eq!(error.kind, Kind::Invalid, "{url}: {error}");
        assert!(error.reason.contains(reason) && !error.to_string().contains("secret"), "{url}: {error}");
    }
}

/// What a server tells of its only object, `/a`.
struct Told {
    status: u16,
    /// When it was modified, within a minute.
    second: u8,
    body: &'static str,
}

const ABSENT: Told = Told { status: 404, second: 0, body: "" };

/// A store on a server of one object, in which nobody writes. It answers each look at the object by how many there were with it, and each read.
fn store_of_one(
    look: impl Fn(usize) -> Told + Send + 'static,
    read: impl Fn(usize) -> Told + Send + 'static,
) -> Arc<dyn Store> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("webdav://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut looks, mut reads) = (0, 0);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let answer = match head_of(&mut stream) {
                head if head.contains("/.rhyolite-turn/ ") => answer(&ABSENT, ""),
                head if head.starts_with("GET /a ") => {
                    reads += 1;
                    let told = read(reads);
                    answer(&told, told.body)
                }
                _ => {
                    looks += 1;
                    let told = look(looks);
                    answer(&told, &resource(&told))
                }
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    open(&url, &StoreOptions { environment: Environment::Fixed([].into()) }).unwrap()
}

fn head_of(stream: &mut std::net::TcpStream) -> String {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(n) => request.extend_from_slice(&part[..n]),
        }
    }
    String::from_utf8(request).unwrap()
}

fn modified(told: &Told) -> String {
    format!("Mon, 30 Nov 2026 00:00:{:02} GMT", told.second)
}

fn resource(told: &Told) -> String {
    format!(
        "<d:multistatus xmlns:d=\"DAV:\"><d:response><d:href>/a</d:href><d:propstat><d:prop><d:getcontentlength>{}</d:getcontentlength>\
            <d:getlastmodified>{}</d:getlastmodified></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response></d:multistatus>",
        told.body.len(),
        modified(told)
    )
}

fn answer(told: &Told, body: &str) -> String {
    format!(
        "HTTP/1.1 {} Told\r\nConnection: close\r\nLast-Modified: {}\r\nContent-Length: {}\r\n\r\n{body}",
        told.status,
        modified(told),
        body.len()
    )
}

/// As Apache does now and then while an object is replaced.
#[tokio::test]
async fn a_read_that_is_forbidden_for_a_moment_is_tried_again() {
    let read = async |forbidden: usize| {
        let look = |_| Told { status: 207, second: 0, body: "abc" };
        let read = move |reads: usize| {
            let (status, body) = if reads <= forbidden { (403, "") } else { (200, "abc") };
            Told { status, second: 0, body }
        };
        store_of_one(look, read).get("a").await
    };
    assert_eq!(read(2).await.unwrap().bytes, b("abc"));
    assert_eq!(kind(read(1000).await), Some(Kind::Denied), "and no longer");
}

/// A server may remove what is replaced a moment before what replaces it is there, and the writer's turn may end before it is looked for.
#[tokio::test]
async fn what_is_not_there_for_a_moment_is_looked_for_again() {
    let store = |absent: usize| {
        let there =
            move |tries: usize, status| if tries <= absent { ABSENT } else { Told { status, second: 0, body: "abc" } };
        store_of_one(move |looks| there(looks, 207), move |reads| there(reads, 200))
    };
    assert_eq!(store(1).get("a").await.unwrap().bytes, b("abc"));
    assert_eq!(store(1).head("a").await.unwrap().size, 3);
    assert_eq!(kind(store(1000).get("a").await), Some(Kind::NotFound));
    assert_eq!(kind(store(1000).head("a").await), Some(Kind::NotFound));
}

/// Servers look at a file first and open it then. When it is replaced in between they tell the old size, and send as much of the new bytes.
#[tokio::test]
async fn what_is_read_is_what_has_the_version_that_is_told() {
    let store = |stale: usize| {
        let look = |_| Told { status: 207, second: 7, body: "4321" };
        let read = move |reads: usize| {
            let (second, body) = if reads <= stale { (3, "432") } else { (7, "4321") };
            Told { status: 200, second, body }
        };
        store_of_one(look, read)
    };
    let whole = store(1).get("a").await.unwrap();
    assert_eq!((whole.bytes, whole.size), (b("4321"), 4));
    let end = store(2).get_tail("a", 2).await.unwrap();
    assert_eq!((end.bytes, end.size), (b("21"), 4));
    let settled = store(0);
    assert_eq!(settled.get("a").await.unwrap().version, settled.head("a").await.unwrap().version);
    assert_eq!(kind(store(1000).get("a").await), Some(Kind::Unavailable), "but not for ever");
}
