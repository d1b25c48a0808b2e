//! One suite for every place in which a lease may lie; and what each service does beside that.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Epoch, Format1, Nonce, Timestamp};
use rhyolite_node::lease_place::LeaseUrl;
use rhyolite_store::{Directory, Environment, Memory, Store, StoreError, StoreErrorKind as Kind, Version};
use rhyolite_writer::lease_place::{InStore, LeasePlace};

use crate::kubernetes_server::KubernetesServer;
use crate::lease_servers::{consul, consul_at, consul_environment, consul_with, etcd, etcd_at};
use crate::servers::free_port;

/// Longest time for a call.
const LIMIT: Duration = Duration::from_millis(1500);
const RACERS: u8 = 8;

type Place = Arc<dyn LeasePlace>;

/// A record that nobody else writes.
fn record(nonce: u8, epoch: u64) -> LeaseRecord {
    LeaseRecord {
        format: Format1,
        epoch: Epoch::new(epoch).unwrap(),
        state: LeaseState::Held,
        quiet: false,
        successor: None,
        holder: format!("host-{nonce} (process 77)"),
        address: Some("https://10.0.0.1:20201".to_owned()),
        process: None,
        nonce: Nonce([nonce; 16]),
        ttl_ms: 10_500,
        renewed: Timestamp(1_790_000_000_123),
        durable: None,
        witnesses: None,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.expect_err("it was not refused");
    assert!(matches!(error.kind, Kind::Conflict | Kind::Exists), "{error:?}");
}

/// What every place must do. `open` gives a way to the place of a name, another one each time, as several nodes have.
async fn conforms(open: impl Fn(&str) -> Place) {
    created_once(&open).await;
    swapped_on_the_version_that_was_read(&open).await;
    what_is_written_is_read(&open).await;
    one_of_many_wins(&open).await;
}

async fn created_once(open: &impl Fn(&str) -> Place) {
    let (a, b) = (open("created"), open("created"));
    assert_eq!(a.read().await.unwrap(), None);
    let version = a.swap(None, &record(1, 1)).await.unwrap();
    refused(b.swap(None, &record(2, 1)).await);
    refused(a.swap(None, &record(3, 1)).await);
    assert_eq!(b.read().await.unwrap(), Some((record(1, 1), version)));
}

async fn swapped_on_the_version_that_was_read(open: &impl Fn(&str) -> Place) {
    let (a, b) = (open("swapped"), open("swapped"));
    let first = a.swap(None, &record(1, 1)).await.unwrap();
    let second = a.swap(Some(&first), &record(2, 1)).await.unwrap();
    assert_ne!(first, second);
    refused(b.swap(Some(&first), &record(3, 2)).await);
    assert_eq!(b.read().await.unwrap(), Some((record(2, 1), second.clone())));
    // The very same record again is another writing.
    let third = b.swap(Some(&second), &record(2, 1)).await.unwrap();
    assert_eq!(a.read().await.unwrap(), Some((record(2, 1), third)));
}

async fn what_is_written_is_read(open: &impl Fn(&str) -> Place) {
    let place = open("written");
    let odd = LeaseRecord { holder: "Ω \"host\" \\ <&> 🙂".to_owned(), address: None, ..record(1, 1 << 50) };
    let released = LeaseRecord {
        state: LeaseState::Released,
        quiet: true,
        successor: Some("b:1".to_owned()),
        ttl_ms: u64::from(u32::MAX),
        ..record(2, 3)
    };
    let long = LeaseRecord { holder: "x".repeat(1024), process: Some("boot pid 1 2".to_owned()), ..record(3, 4) };
    let mut version = None;
    for record in [odd, released, long] {
        version = Some(place.swap(version.as_ref(), &record).await.unwrap());
        assert_eq!(place.read().await.unwrap(), Some((record, version.clone().unwrap())));
    }
}

async fn one_of_many_wins(open: &impl Fn(&str) -> Place) {
    let mut version = None;
    for round in 0..4 {
        let race = (0..RACERS).map(|racer| {
            let (place, version) = (open("raced"), version.clone());
            tokio::spawn(async move {
                let record = record(round * RACERS + racer, 1);
                place.swap(version.as_ref(), &record).await.map(|version| (record, version))
            })
        });
        let race: Vec<_> = race.collect();
        let mut winners = Vec::new();
        for racer in race {
            match racer.await.unwrap() {
                Ok(won) => winners.push(won),
                Err(error) => refused(Err::<(), _>(error)),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let won = winners.pop().unwrap();
        assert_eq!(open("raced").read().await.unwrap().as_ref(), Some(&won));
        version = Some(won.1);
    }
}

/// A service that loses everything: what was read before fits nothing that comes after, also when it counts to the same number again.
async fn forgets(open: impl Fn(&str) -> Place, wipe: impl FnOnce()) {
    let (a, b) = (open("lost"), open("lost"));
    let first = a.swap(None, &record(1, 5)).await.unwrap();
    let old = a.swap(Some(&first), &record(2, 5)).await.unwrap();
    tokio::task::block_in_place(wipe);
    assert_eq!(b.read().await.unwrap(), None);
    refused(a.swap(Some(&old), &record(3, 5)).await);
    let count = |version: &Version| version.as_str().split_once(' ').unwrap().0.to_owned();
    let mut version = b.swap(None, &record(4, 6)).await.unwrap();
    for nonce in 5..60 {
        refused(a.swap(Some(&old), &record(3, 5)).await);
        // The old writing, had it got the number that the new one has.
        let rest = old.as_str().split_once(' ').unwrap().1;
        refused(a.swap(Some(&Version::new(format!("{} {rest}", count(&version)))), &record(3, 5)).await);
        version = b.swap(Some(&version), &record(nonce, 6)).await.unwrap();
    }
    assert_eq!(a.read().await.unwrap(), Some((record(59, 6), version)));
}

/// A service that is gone, or does not answer: an error that says so, in time.
async fn is_away(open: impl Fn(&str) -> Place, what: &str) {
    let place = open("away");
    let began = Instant::now();
    let error = place.read().await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error:?}");
    let text = error.to_string();
    assert!(text.contains(what) && text.contains(&place.describe()), "{text}");
    let error = place.swap(None, &record(1, 1)).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Unavailable | Kind::Ambiguous), "{error:?}");
    assert!(error.to_string().contains(what), "{error}");
    assert!(began.elapsed() < 2 * LIMIT + Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Passes requests on and swallows the answers to those that write. Gives its port, and counts writes.
fn swallowing(port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, writes) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&writes);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
            let writes = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut bytes = [0; 64 << 10];
                while let Ok(count @ 1..) = client.read(&mut bytes) {
                    let is_write = !bytes.starts_with(b"GET");
                    server.write_all(&bytes[..count]).unwrap();
                    let Ok(count @ 1..) = server.read(&mut bytes) else { return };
                    if is_write {
                        writes.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    client.write_all(&bytes[..count]).unwrap();
                }
            });
        }
    });
    (own, writes)
}

/// A swap whose answer is lost: nothing is said of it but that nobody knows, it is sent once, and reading finds it.
async fn lost_answers_are_found_by_reading(port: u16, open: impl Fn(u16, &str) -> Place) {
    let (through, writes) = swallowing(port);
    let (deaf, hearing) = (open(through, "unheard"), open(port, "unheard"));
    let error = deaf.swap(None, &record(1, 1)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Ambiguous, "{error:?}");
    let (found, version) = hearing.read().await.unwrap().expect("it was written");
    assert_eq!(found, record(1, 1));
    let error = deaf.swap(Some(&version), &record(2, 1)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Ambiguous, "{error:?}");
    let (found, version) = hearing.read().await.unwrap().unwrap();
    assert_eq!(found, record(2, 1));
    hearing.swap(Some(&version), &record(3, 1)).await.unwrap();
    assert_eq!(writes.load(Ordering::SeqCst), 2, "a swap is sent once");
}

/// A port at which somebody listens who never says anything.
fn silent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    port
}

fn nothing() -> Environment {
    Environment::Fixed([].into())
}

fn open(url: &str, environment: &Environment) -> Place {
    LeaseUrl::parse(url).unwrap().open(environment, LIMIT, "").unwrap()
}

fn at_etcd(port: u16, name: &str) -> Place {
    open(&format!("etcd://127.0.0.1:{port}/suite/{name}"), &nothing())
}

fn at_consul(port: u16, name: &str) -> Place {
    open(&format!("consul://127.0.0.1:{port}/suite/{name}"), &consul_environment())
}

fn at_kubernetes(port: u16, account: &std::path::Path, name: &str) -> Place {
    let environment = [
        ("RHYOLITE_KUBERNETES_URL".to_owned(), format!("http://127.0.0.1:{port}")),
        ("RHYOLITE_KUBERNETES_ACCOUNT".to_owned(), account.to_str().unwrap().to_owned()),
    ];
    open(&format!("kubernetes://prod/{name}"), &Environment::Fixed(environment.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_a_store_conforms() {
    let stores = Mutex::new(HashMap::<String, Arc<dyn Store>>::new());
    conforms(|name| {
        let mut stores = stores.lock().unwrap();
        Arc::new(InStore(Arc::clone(stores.entry(name.to_owned()).or_insert_with(|| Arc::new(Memory::new())))))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    conforms(|name| Arc::new(InStore(Arc::new(Directory::new(folder.path().join(name)))))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_static_primary_keeps_for_itself_conforms() {
    let places = Mutex::new(HashMap::new());
    conforms(|name| {
        let mut places = places.lock().unwrap();
        Arc::clone(places.entry(name.to_owned()).or_insert_with(|| open("static://primary", &nothing())))
    })
    .await;
    let named = LeaseUrl::parse("static://a.example:20201").unwrap().open(&nothing(), LIMIT, "https://").unwrap();
    let (said, version) = named.read().await.unwrap().unwrap();
    assert_eq!(said.address.as_deref(), Some("https://a.example:20201"));
    refused(named.swap(Some(&version), &record(1, 1)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms() {
    let Some(server) = tokio::task::block_in_place(etcd) else { return };
    conforms(|name| at_etcd(server.port, name)).await;
    lost_answers_are_found_by_reading(server.port, at_etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_is_wiped_or_away() {
    let port = free_port();
    let Some(server) = tokio::task::block_in_place(|| etcd_at(port, &[])) else { return };
    let (mut server, open) = (Some(server), |name: &str| at_etcd(port, name));
    forgets(open, || {
        drop(server.take());
        server = etcd_at(port, &[]);
    })
    .await;
    drop(server);
    is_away(open, "connect").await;
    let port = silent();
    is_away(|name| at_etcd(port, name), "no answer within 1500 ms").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_asks_who_it_is() {
    let Some(server) = tokio::task::block_in_place(etcd) else { return };
    let etcdctl = |path: &str, body: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /v3/auth/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    };
    etcdctl("user/add", r#"{"name":"root","password":"s3cret-word"}"#);
    etcdctl("role/add", r#"{"name":"root"}"#);
    etcdctl("user/grant", r#"{"user":"root","role":"root"}"#);
    etcdctl("enable", "{}");
    let url = format!("etcd://127.0.0.1:{}/x", server.port);
    let with = |user: &str, password: &str| {
        let variables = [("ETCDCTL_USER", user), ("ETCDCTL_PASSWORD", password)];
        open(&url, &Environment::Fixed(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()))
    };
    for place in [open(&url, &nothing()), with("root", "wr0ng-word"), with("nobody:wr0ng-word", "")] {
        let error = place.read().await.unwrap_err();
        assert_eq!(error.kind, Kind::Denied, "{error:?}");
        assert!(!format!("{error:?} {place:?}").contains("-word"), "{error:?} {place:?}");
    }
    let (a, b) = (with("root", "s3cret-word"), with("root:s3cret-word", ""));
    let version = a.swap(None, &record(1, 1)).await.unwrap();
    assert_eq!(b.read().await.unwrap(), Some((record(1, 1), version)));
    assert!(!format!("{a:?} {b:?}").contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_over_tls() {
    let (port, cert, key) = (free_port(), tls_file("node.pem"), tls_file("node.key"));
    let arguments = ["--cert-file", &cert, "--key-file", &key];
    let Some(_server) = tokio::task::block_in_place(|| etcd_at(port, &arguments)) else { return };
    let url = format!("etcd+https://127.0.0.1:{port}/x");
    over_tls(&url, &format!("?ca-file={}", tls_file("ca.pem")), &nothing()).await;
    over_tls(&url.replace("/x", "/y"), "?skip-verify=true", &nothing()).await;
    for options in ["", &format!("?ca-file={}", tls_file("other-ca.pem"))] {
        let error = open(&format!("{url}{options}"), &nothing()).read().await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_over_tls_with_certificates_on_both_sides() {
    let (cert, key, ca) = (tls_file("node.pem"), tls_file("node.key"), tls_file("ca.pem"));
    let (plain, port) = (free_port(), free_port());
    let tls = format!(
        r#"ports {{ https = {port} }} cert_file = "{cert}" key_file = "{key}" ca_file = "{ca}" verify_incoming_https = true"#
    );
    let Some(_server) = tokio::task::block_in_place(|| consul_with(plain, &tls)) else { return };
    let url = format!("consul+https://localhost:{port}/x");
    let known = format!("?ca-file={ca}&cert-file={}&key-file={}", tls_file("follower.pem"), tls_file("follower.key"));
    over_tls(&url, &known, &consul_environment()).await;
    let unknown = open(&format!("{url}?ca-file={ca}"), &consul_environment());
    assert_eq!(unknown.read().await.unwrap_err().kind, Kind::Unavailable, "a certificate is asked for");
}

fn tls_file(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tls");
    folder.join(name).canonicalize().unwrap().to_str().unwrap().to_owned()
}

async fn over_tls(url: &str, options: &str, environment: &Environment) {
    let place = open(&format!("{url}{options}"), environment);
    assert_eq!(place.describe(), url);
    let began = Instant::now();
    // It may have no leader yet.
    while let Err(error) = place.read().await {
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let version = place.swap(None, &record(1, 1)).await.unwrap();
    assert_eq!(place.read().await.unwrap(), Some((record(1, 1), version)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_conforms() {
    let Some(server) = tokio::task::block_in_place(consul) else { return };
    conforms(|name| at_consul(server.port, name)).await;
    lost_answers_are_found_by_reading(server.port, at_consul).await;
    let url = format!("consul://127.0.0.1:{}/x", server.port);
    let wrong = Environment::Fixed([("CONSUL_HTTP_TOKEN".to_owned(), "wr0ng-word".to_owned())].into());
    for place in [open(&url, &nothing()), open(&url, &wrong)] {
        for error in [place.read().await.unwrap_err(), place.swap(None, &record(1, 1)).await.unwrap_err()] {
            assert_eq!(error.kind, Kind::Denied, "{error:?}");
            assert!(!format!("{error:?} {place:?}").contains("wr0ng-word"), "{error:?} {place:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_that_is_wiped_or_away() {
    let port = free_port();
    let Some(server) = tokio::task::block_in_place(|| consul_at(port)) else { return };
    let (mut server, open) = (Some(server), |name: &str| at_consul(port, name));
    forgets(open, || {
        drop(server.take());
        server = consul_at(port);
    })
    .await;
    drop(server);
    is_away(open, "connect").await;
    let port = silent();
    is_away(|name| at_consul(port, name), "no answer within 1500 ms").await;
}

/// Answers every request with these words. Gives its port.
fn answering(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 64 << 10]);
            let _ = client.write_all(answer.as_bytes());
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_consul_itself_says_that_there_is_no_record() {
    for answer in [
        "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 9\r\n\r\nnot found",
        "HTTP/1.1 404 Not Found\r\nConnection: close\r\nX-Consul-Index: 7\r\nContent-Length: 9\r\n\r\nnot found",
    ] {
        let place = at_consul(answering(answer), "x");
        let error = place.read().await.expect_err(answer);
        assert!(error.kind == Kind::Unavailable && error.to_string().contains("not Consul that answers"), "{error:?}");
        // That it is another version nobody has said either.
        let error = place.swap(Some(&Version::new("7 x")), &record(1, 1)).await.expect_err(answer);
        assert_eq!(error.kind, Kind::Unavailable, "{error:?}");
    }
    let answer = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nX-Consul-Index: 7\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(at_consul(answering(answer), "x").read().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_conforms_as_far_as_a_stand_in_can_tell() {
    let server = KubernetesServer::start();
    let account = server.account.path();
    conforms(|name| at_kubernetes(server.port, account, name)).await;
    lost_answers_are_found_by_reading(server.port, |port, name| at_kubernetes(port, account, name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_that_is_wiped_or_away() {
    let mut server = KubernetesServer::start();
    let account = server.account.path().to_owned();
    let port = server.port;
    forgets(|name| at_kubernetes(port, &account, name), || server.wipe()).await;
    tokio::task::block_in_place(|| server.stop());
    is_away(|name| at_kubernetes(port, &account, name), "connect").await;
    let port = silent();
    is_away(|name| at_kubernetes(port, &account, name), "no answer within 1500 ms").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_shows_what_is_so() {
    let server = KubernetesServer::start();
    let place = at_kubernetes(server.port, server.account.path(), "app");
    let shown = || {
        let spec = server.lease("app")["spec"].clone();
        let text = |field: &str| spec[field].as_str().unwrap_or("-").to_owned();
        let (holder, renewed, taken) = (text("holderIdentity"), text("renewTime"), text("acquireTime"));
        format!("{holder} {}s {renewed} {taken} {}", spec["leaseDurationSeconds"], spec["leaseTransitions"])
    };
    let at = |seconds: i64, nonce: u8, holder: &str| LeaseRecord {
        holder: holder.to_owned(),
        renewed: Timestamp(seconds * 1000 + 5),
        ..record(nonce, 1)
    };
    // Made by somebody to give rights on it.
    server.put("app", serde_json::Value::Null);
    assert_eq!(place.read().await.unwrap(), None);
    let first = place.swap(None, &at(0, 1, "a")).await.unwrap();
    assert_eq!(shown(), "a 11s 1970-01-01T00:00:00.005000Z 1970-01-01T00:00:00.005000Z 0");
    assert_eq!(server.lease("app")["metadata"]["labels"]["app"], "x", "what others have put there stays");
    let renewed = place.swap(Some(&first), &at(3, 2, "a")).await.unwrap();
    assert_eq!(shown(), "a 11s 1970-01-01T00:00:03.005000Z 1970-01-01T00:00:00.005000Z 0");
    let taken = place.swap(Some(&renewed), &at(6, 3, "b")).await.unwrap();
    assert_eq!(shown(), "b 11s 1970-01-01T00:00:06.005000Z 1970-01-01T00:00:06.005000Z 1");
    let released = LeaseRecord { state: LeaseState::Released, ..at(7, 4, "b") };
    let released = place.swap(Some(&taken), &released).await.unwrap();
    assert_eq!(shown(), "- 11s 1970-01-01T00:00:07.005000Z 1970-01-01T00:00:06.005000Z 1");
    // A token that is replaced is read again.
    server.give_token("another");
    place.swap(Some(&released), &at(9, 5, "a")).await.unwrap();
    assert_eq!(shown(), "a 11s 1970-01-01T00:00:09.005000Z 1970-01-01T00:00:09.005000Z 2");
    std::fs::write(server.account.path().join("token"), "wr0ng-word").unwrap();
    let error = place.read().await.unwrap_err();
    assert!(error.kind == Kind::Denied && !error.to_string().contains("wr0ng"), "{error:?}");
    server.give_token("one");
    server.put("app", serde_json::json!({"holderIdentity": "another-program"}));
    let error = place.read().await.unwrap_err();
    assert!(error.kind == Kind::Corrupt && error.to_string().contains("another program"), "{error:?}");
    assert_eq!(place.swap(None, &record(9, 1)).await.unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn where_there_is_no_kubernetes_that_is_said() {
    let error = LeaseUrl::parse("kubernetes://a/b").unwrap().open(&nothing(), LIMIT, "").unwrap_err();
    assert!(error.to_string().contains("KUBERNETES_SERVICE_HOST"), "{error}");
    let pod = [("KUBERNETES_SERVICE_HOST", "fd00::1"), ("KUBERNETES_SERVICE_PORT", "443")];
    let pod = Environment::Fixed(pod.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let error = LeaseUrl::parse("kubernetes://a/b").unwrap().open(&pod, LIMIT, "").unwrap_err();
    assert!(error.to_string().contains("serviceaccount/ca.crt"), "{error}");
}
