//! Real etcd and Consul for the tests, each test with its own; looked for and required as the servers of stores are
//! (`RHYOLITE_ETCD`, `RHYOLITE_CONSUL`; `RHYOLITE_REQUIRE_ETCD`, `_CONSUL`).

use std::time::Duration;

use rhyolite_node::lease_place::LeaseUrl;
use rhyolite_store::Environment;

use crate::servers::{Server, free_port, program, start_at};

/// Consul's management token, where it asks for one.
pub(crate) const CONSUL_TOKEN: &str = "b1gs33cr-3t00-4000-8000-000000000001";

/// An etcd with nothing in it, at this port.
pub(crate) fn etcd_at(port: u16, more: &[&str]) -> Option<Server> {
    let program = program("RHYOLITE_ETCD", "/usr/bin/etcd", "RHYOLITE_REQUIRE_ETCD")?;
    let scheme = if more.is_empty() { "http" } else { "https" };
    let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    let server = start_at(port, &program, |_, data| {
        let data = format!("{data}/etcd");
        let mut arguments: Vec<String> = ["--name", "one", "--data-dir", &data, "--listen-client-urls", &client]
            .into_iter()
            .chain(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .chain(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("one={peer}")])
            .map(str::to_owned)
            .collect();
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    });
    if scheme == "http" {
        wait_ready(&format!("etcd://127.0.0.1:{port}/ready"), &Environment::Fixed([].into()));
    }
    Some(server)
}

pub(crate) fn etcd() -> Option<Server> {
    etcd_at(free_port(), &[])
}

/// A Consul with nothing in it, at this port, which keeps everything in memory and asks for [`CONSUL_TOKEN`].
pub(crate) fn consul_at(port: u16) -> Option<Server> {
    consul_with(port, "")
}

/// The same, with more of a configuration.
pub(crate) fn consul_with(port: u16, more: &str) -> Option<Server> {
    let program = program("RHYOLITE_CONSUL", "consul/usr/bin/consul", "RHYOLITE_REQUIRE_CONSUL")?;
    let acl = format!(
        r#"acl {{ enabled = true default_policy = "deny" tokens {{ master = "{CONSUL_TOKEN}" agent = "{CONSUL_TOKEN}" }} }}"#
    );
    let ports = format!(
        "ports {{ server = {} serf_lan = {} serf_wan = {} dns = -1 grpc = -1 }}",
        free_port(),
        free_port(),
        free_port()
    );
    let server = start_at(port, &program, |port, _| {
        ["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-http-port", &port.to_string()]
            .into_iter()
            .chain(["-hcl", &acl, "-hcl", &ports, "-hcl", more])
            .map(str::to_owned)
            .collect()
    });
    wait_ready(&format!("consul://127.0.0.1:{port}/ready"), &consul_environment());
    Some(server)
}

pub(crate) fn consul() -> Option<Server> {
    consul_at(free_port())
}

pub(crate) fn consul_environment() -> Environment {
    Environment::Fixed([("CONSUL_HTTP_TOKEN".to_owned(), CONSUL_TOKEN.to_owned())].into())
}

/// Waits until the server has a leader. It accepts connections before that.
fn wait_ready(url: &str, environment: &Environment) {
    let place = LeaseUrl::parse(url).unwrap().open(environment, Duration::from_secs(2), "").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = std::thread::spawn(move || {
        crate::program::wait_for("the server to have a leader", || runtime.block_on(place.read()).is_ok());
    });
    ready.join().unwrap();
}
