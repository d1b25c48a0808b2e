//! What goes over the wire to a service with a lease, to whom, and what a node says of it. The nodes here never get an answer that they can use.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection};

use crate::program::{Folder, Outcome};
use crate::servers::free_port;

/// Longest wait for a node to ask.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a node, waits until it has asked somebody, and stops it. Gives what that one has to say, and the node.
fn asks<T>(lease: &str, variables: &[(&str, &str)], asked: &Receiver<T>) -> (T, Outcome) {
    let folder = Folder::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let node = ["node", "a", "--store", "s", "--listen", &listen, "--lease", lease];
    let running = folder.start_with(&node, variables);
    let said = asked.recv_timeout(PATIENCE).expect("a node that asks");
    running.signal(Signal::TERM);
    (said, running.wait())
}

/// Somebody who takes connections and closes them. Gives the port; each connection is told.
fn closing() -> (u16, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, asked) = channel();
    std::thread::spawn(move || listener.incoming().map_while(|_| sender.send(()).ok()).for_each(drop));
    (port, asked)
}

#[test]
fn no_proxy_is_between_a_node_and_its_lease() {
    let ((proxy, through), (port, direct)) = (closing(), closing());
    let proxy = format!("http://127.0.0.1:{proxy}");
    let variables = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, proxy.as_str()));
    let variables = [&variables[..], &[("no_proxy", ""), ("NO_PROXY", "")]].concat();
    let (sender, asked) = channel();
    for (name, connections) in [("the proxy", through), ("the service", direct)] {
        let sender = sender.clone();
        std::thread::spawn(move || connections.iter().map_while(|()| sender.send(name).ok()).for_each(drop));
    }
    let (first, outcome) = asks(&format!("etcd://127.0.0.1:{port}/x"), &variables, &asked);
    assert_eq!(first, "the service", "{outcome:?}");
    assert!(asked.try_iter().all(|name| name == "the service"), "{outcome:?}");
}

fn tls_file(name: &str) -> String {
    format!("{}/../../testdata/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server with a certificate of `ca.pem`. Gives its port; each handshake is told, and whether the other side has agreed.
fn handshaking() -> (u16, Receiver<Result<(), String>>) {
    let certificate = CertificateDer::from_pem_file(tls_file("node.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls_file("node.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut server = ServerConnection::new(Arc::clone(&config)).unwrap();
            let done = server.complete_io(&mut stream.unwrap()).map(|_| ()).map_err(|e| e.to_string());
            if sender.send(done).is_err() {
                return;
            }
        }
    });
    (port, asked)
}

#[test]
fn only_the_ca_that_is_named_vouches_for_a_service() {
    let account = Folder::new();
    account.write("token", "s3cret");
    account.write("ca.crt", std::fs::read(tls_file("other-ca.pem")).unwrap());
    let (account_path, system) = (account.path(""), tls_file("ca.pem"));
    let agreed = |lease: &str| {
        let (port, asked) = handshaking();
        let variables = [
            // What the system trusts.
            ("SSL_CERT_FILE", system.as_str()),
            ("RHYOLITE_KUBERNETES_ACCOUNT", account_path.to_str().unwrap()),
            ("RHYOLITE_KUBERNETES_URL", &format!("https://127.0.0.1:{port}")),
        ];
        let (agreed, outcome) = asks(&lease.replace("PORT", &port.to_string()), &variables, &asked);
        eprintln!("{lease}: {agreed:?} {outcome:?}");
        agreed.is_ok()
    };
    let other = tls_file("other-ca.pem");
    assert!(agreed("etcd+https://127.0.0.1:PORT/x"), "the system's are trusted where none is named");
    assert!(!agreed(&format!("etcd+https://127.0.0.1:PORT/x?ca-file={other}")));
    assert!(!agreed("kubernetes://prod/app"));
}

#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let folder = Folder::new();
    folder.write("ca.pem", "");
    let node = ["node", "a", "--store", "s", "--listen", "127.0.0.1:1", "--lease", "etcd+https://h/x?ca-file=ca.pem"];
    let outcome = folder.run(&node);
    assert!(outcome.code == 2 && outcome.stderr.contains("has no certificate"), "{outcome:?}");
}

#[test]
fn a_secret_that_others_can_read_on_its_way_is_warned_of_once() {
    // An address of this machine that is no loopback address as it is written.
    let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let account = Folder::new();
    account.write("token", "s3cret");
    let account_path = account.path("").to_str().unwrap().to_owned();
    for (host, service, variable, warnings) in [
        (anywhere.to_string(), "etcd", "ETCDCTL_USER", 1),
        (anywhere.to_string(), "etcd", "UNUSED", 0),
        ("127.0.0.1".to_owned(), "etcd", "ETCDCTL_USER", 0),
        (anywhere.to_string(), "consul", "CONSUL_HTTP_TOKEN", 1),
        (anywhere.to_string(), "consul", "UNUSED", 0),
        ("localhost".to_owned(), "consul", "CONSUL_HTTP_TOKEN", 0),
        (anywhere.to_string(), "kubernetes", "UNUSED", 1),
        ("127.0.0.1".to_owned(), "kubernetes", "UNUSED", 0),
    ] {
        let (port, asked) = closing();
        let api = format!("http://{host}:{port}");
        let variables = [
            (variable, "root:s3cret"),
            ("RHYOLITE_KUBERNETES_ACCOUNT", &account_path),
            ("RHYOLITE_KUBERNETES_URL", &api),
        ];
        let url = match service {
            "kubernetes" => "kubernetes://prod/app".to_owned(),
            _ => format!("{service}://{host}:{port}/x"),
        };
        let ((), outcome) = asks(&url, &variables, &asked);
        assert_eq!(outcome.stderr.matches("plain HTTP").count(), warnings, "{service} at {host}: {outcome:?}");
        assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");
    }
}

/// Whatever is wrong with a URL, what may be a password in it is not repeated.
#[test]
fn a_password_in_the_url_of_a_lease_is_not_repeated() {
    let folder = Folder::new();
    let node = ["node", "a", "--store", "s", "--listen", "127.0.0.1:1"];
    for url in [
        "etcd://u:s3cret@127.0.0.1/x",
        "etcd://u:s3cret@127.0.0.1:port/x",
        "etcd://u:12/s3cret@127.0.0.1/x",
        "etcd://u:12#s3cret@127.0.0.1/x",
        "consul://127.0.0.1/k?token=s3cret",
        "consul://127.0.0.1/k?ca-file=/x&token=s3cret",
    ] {
        let said = folder.run(&[&node[..], &["--lease", url]].concat());
        let by_variable = folder.start_with(&node, &[("RHYOLITE_LEASE", url)]).wait();
        for outcome in [&said, &by_variable] {
            assert!(outcome.code == 2 && outcome.stderr.contains("--lease: "), "{url}: {outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
            assert!(!format!("{outcome:?}").contains("s3cret"), "{url}: {outcome:?}");
        }
    }
    let shown = folder.start_with(&["node", "--help"], &[("RHYOLITE_LEASE", "consul://h/k?token=s3cret")]).wait();
    assert!(shown.stdout.contains("RHYOLITE_LEASE") && !shown.stdout.contains("s3cret"), "{shown:?}");
    assert!(!folder.path("a").exists(), "nothing is begun");
}
