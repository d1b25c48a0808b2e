//! SFTP against OpenSSH: the suite and the probe through several clients, host keys, writers that die, servers that stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_store::suite::SuiteSize;
use rhyolite_store::{
    Environment, RetryPolicy, Retrying, Store, StoreError, StoreErrorKind as Kind, StoreOptions, open, probe,
};

use crate::conformance::check;
use crate::probe::{SMALL, faults};
use crate::servers::{Server, own_sshd, sshd};
use crate::several::Several;

fn text(server: &Server, file: &str) -> String {
    std::fs::read_to_string(server.data.path().join(file)).unwrap().trim().to_owned()
}

fn encoded(text: &str) -> String {
    text.replace('%', "%25").replace('+', "%2B").replace(' ', "%20")
}

/// Opens `folder` below the server's, as the user of this process, with the variables on top of a bare environment.
fn opened(
    server: &Server,
    folder: &str,
    options: &str,
    variables: &[(&str, String)],
) -> Result<Arc<dyn Store>, StoreError> {
    let user = std::env::var("USER").ok().filter(|u| !u.is_empty()).unwrap_or_else(|| "root".to_owned());
    let (port, data) = (server.port, server.data.path().display());
    let url = format!("sftp://{user}@127.0.0.1:{port}{data}/srv/{folder}?{options}");
    let mut all = vec![("HOME", data.to_string())];
    all.extend(variables.iter().cloned());
    let all = all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    open(&url, &StoreOptions { environment: Environment::Fixed(all) })
}

fn store(server: &Server, folder: &str) -> Arc<dyn Store> {
    let key = server.data.path().join("user").display().to_string();
    let host_key = encoded(&text(server, "host.pub"));
    opened(server, folder, &format!("host-key={host_key}"), &[("SFTP_KEY_PATH", key)]).unwrap()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_conforms() {
    let Some(server) = sshd() else { return };
    let size = SuiteSize { rounds: 10, racers: 12, listed: 1030, upload_bytes: (5 << 20) + 17 };
    check(Arc::new(Several::new(clients(&server, "suite", 4))), size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_conforms_when_tried_again() {
    let Some(server) = sshd() else { return };
    let size = SuiteSize { rounds: 4, racers: 6, listed: 340, upload_bytes: 1 << 20 };
    check(Arc::new(Retrying::new(store(&server, "retried"), RetryPolicy::default())), size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_passes_the_probe_and_is_left_as_it_was() {
    let Some(server) = sshd() else { return };
    let clients = clients(&server, "probe", 4);
    let report = probe::run(&clients, SMALL).await.unwrap();
    assert_eq!(faults(&report), [""; 0]);
    assert!(report.can_fence(), "{report:?}");
    let left: Vec<_> = std::fs::read_dir(server.data.path().join("srv/probe")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_not_known_is_refused() {
    let Some(server) = sshd() else { return };
    let key = ("SFTP_KEY_PATH", server.data.path().join("user").display().to_string());
    let reason = async |options: &str, variables: &[(&str, String)]| {
        let store = opened(&server, "keys", options, variables).unwrap();
        let error = store.create("never", b("x")).await.unwrap_err();
        assert_eq!(error.kind, Kind::Denied, "{error}");
        error.reason
    };
    let missing = reason("", std::slice::from_ref(&key)).await;
    assert!(missing.contains("known_hosts") && missing.contains("SHA256:"), "{missing}");
    let stranger = format!("host-key={}", encoded(&text(&server, "stranger.pub")));
    assert!(reason(&stranger, std::slice::from_ref(&key)).await.contains("not the one that host-key gives"));
    let hosts = server.data.path().join("hosts");
    let line = |key: &str| format!("[127.0.0.1]:{} {}\n", server.port, text(&server, key));
    std::fs::write(&hosts, line("stranger.pub")).unwrap();
    let option = format!("known-hosts={}", hosts.display());
    assert!(reason(&option, std::slice::from_ref(&key)).await.contains("knows another"));
    std::fs::write(&hosts, line("host.pub")).unwrap();
    let good = opened(&server, "keys", &option, std::slice::from_ref(&key)).unwrap();
    good.create("by-known-hosts", b("x")).await.unwrap();
    let trusting = opened(&server, "keys", "skip-verify=true", std::slice::from_ref(&key)).unwrap();
    trusting.create("by-trust", b("x")).await.unwrap();
    // And a user that the server does not know.
    let other = server.data.path().join("stranger").display().to_string();
    assert!(reason("skip-verify=true", &[("SFTP_KEY_PATH", other)]).await.contains("does not accept the user"));
    assert!(reason("skip-verify=true", &[]).await.contains("no key and no password"));
    let listed: Vec<_> = good.list_all("").await.unwrap().into_iter().map(|e| e.key).collect();
    assert_eq!(listed, ["by-known-hosts", "by-trust"], "nothing was written by those that were refused");
}

/// A writer died while it had its turn, and comes back to life when it is too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_writers_turn_is_taken_away_and_its_draft_can_do_nothing_any_more() {
    let Some(server) = sshd() else { return };
    let store = store(&server, "dead");
    let version = store.create("lease.json", b("1 first")).await.unwrap();
    let folder: PathBuf = server.data.path().join("srv/dead");
    let turn = folder.join(".rhyolite-turn");
    std::fs::create_dir(&turn).unwrap();
    std::fs::write(turn.join("deadbeef"), "the dead writer's bytes").unwrap();
    let start = Instant::now();
    store.swap_if("lease.json", Some(&version), b("2 second")).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(9), "a turn is not taken away at once");
    let late = std::fs::rename(turn.join("deadbeef"), folder.join("lease.json"));
    assert_eq!(late.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(store.get("lease.json").await.unwrap().bytes, "2 second");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lease.json"], "nothing of it is left");
}

/// Kills the processes that serve connections: children of the server, which would outlive it.
fn end_sessions(server: &Server) {
    let pid = text(server, "sshd.pid");
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        assert!(std::process::Command::new("kill").args(["-9", child]).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_is_unavailable_and_is_found_again() {
    let Some(server) = own_sshd() else { return };
    let store = store(&server, "stops");
    store.create("a", b("1")).await.unwrap();
    end_sessions(&server);
    let broken = store.get("a").await.err().map(|e| e.kind);
    assert!(matches!(broken, None | Some(Kind::Unavailable)), "{broken:?}");
    assert_eq!(store.get("a").await.unwrap().bytes, "1", "the next call connects anew");
    end_sessions(&server);
    drop(server);
    assert_eq!(kind(store.get("a").await), Some(Kind::Unavailable));
    assert_eq!(kind(store.create("b", b("2")).await), Some(Kind::Unavailable), "nothing was written for certain");
}
