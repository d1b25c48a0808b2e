//! WebDAV against three servers, through several clients: what each of them keeps, and writers that die.

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

/// A server that forbids the first `forbidden` reads of an object that is there, as Apache does now and then while it is replaced. Gives its port.
fn forbidding_server(forbidden: usize) -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut reads = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut part = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.extend_from_slice(&part[..n]),
                }
            }
            let resource = "<d:multistatus xmlns:d=\"DAV:\"><d:response><d:href>/a</d:href><d:propstat><d:prop><d:getcontentlength>3</d:getcontentlength>\
                <d:getetag>\"e\"</d:getetag><d:getlastmodified>Mon, 30 Nov 2026 00:00:00 GMT</d:getlastmodified></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response></d:multistatus>";
            let is_read = request.starts_with(b"GET");
            reads += usize::from(is_read);
            let (status, body) = if !is_read {
                ("207 Multi-Status", resource)
            } else if reads <= forbidden {
                ("403 Forbidden", "")
            } else {
                ("200 OK", "abc")
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"e\"\r\nLast-Modified: Mon, 30 Nov 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[tokio::test]
async fn a_read_that_is_forbidden_for_a_moment_is_tried_again() {
    let read = async |forbidden| {
        let url = format!("webdav://127.0.0.1:{}/", forbidding_server(forbidden));
        open(&url, &StoreOptions { environment: Environment::Fixed([].into()) }).unwrap().get("a").await
    };
    assert_eq!(read(2).await.unwrap().bytes, b("abc"));
    assert_eq!(kind(read(1000).await), Some(Kind::Denied), "and no longer");
}
