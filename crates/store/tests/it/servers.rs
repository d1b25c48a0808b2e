//! Real servers for the tests: moto for S3, Azurite for Azure.
//!
//! They are looked for where the environment says (`RHYOLITE_MOTO`, `RHYOLITE_AZURITE`: paths of the programs) and where
//! `crates/store/tests/servers.sh` installs them (`target/servers`). Without them the tests say so and pass, unless
//! `RHYOLITE_REQUIRE_S3` or `RHYOLITE_REQUIRE_AZURE` is set.
//!
//! A server lives as long as a test that uses it. It is the child of a shell that ends it when its standard input closes, so
//! it also ends when the test process is killed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The program, or `None` if it is not installed and need not be.
fn program(variable: &str, installed: &str, required: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path =
        path.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers").join(installed));
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os(required).is_none(), "{} is missing: run crates/store/tests/servers.sh", path.display());
    eprintln!("skipped: {} is missing (crates/store/tests/servers.sh installs it)", path.display());
    None
}

fn start(program: &PathBuf, arguments: impl Fn(u16, &str) -> Vec<String>) -> Server {
    let data = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("sh");
    command.args(["-c", r#""$0" "$@" </dev/null & server=$!; read -r _; kill $server; wait $server"#]).arg(program);
    command.args(arguments(port, data.path().to_str().unwrap()));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Server { child, port, _data: data };
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} does not answer", program.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

/// Gives the server that a test uses right now, or starts one.
fn shared(slot: &Mutex<Weak<Server>>, make: impl FnOnce() -> Server) -> Arc<Server> {
    let mut slot = slot.lock().unwrap();
    if let Some(server) = slot.upgrade() {
        return server;
    }
    let server = Arc::new(make());
    *slot = Arc::downgrade(&server);
    server
}

/// A running S3 server.
pub(crate) fn moto() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_MOTO", "moto/bin/moto_one_at_a_time", "RHYOLITE_REQUIRE_S3")?;
    Some(shared(&SLOT, || {
        start(&program, |port, _| ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).into())
    }))
}

/// A running Azure Blob server.
pub(crate) fn azurite() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_AZURITE", "azurite/node_modules/.bin/azurite-blob", "RHYOLITE_REQUIRE_AZURE")?;
    Some(shared(&SLOT, || {
        start(&program, |port, data| {
            let port = port.to_string();
            ["--silent", "--location", data, "--blobHost", "127.0.0.1", "--blobPort", &port, "--skipApiVersionCheck"]
                .map(str::to_owned)
                .into()
        })
    }))
}

/// Makes a bucket by a plain request: moto asks for no signature.
pub(crate) fn make_bucket(port: u16, name: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request =
        format!("PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Makes a container. Azurite wants the request signed; Node, which it runs on, has what that needs.
pub(crate) fn make_container(port: u16, account: &str, container: &str, key: &str) {
    let script = r#"
        const [port, account, container, key] = process.argv.slice(1);
        const date = new Date().toUTCString(), version = "2021-08-06";
        const text = ["PUT", ...Array(11).fill(""), `x-ms-date:${date}`, `x-ms-version:${version}`,
            `/${account}/${account}/${container}`, "restype:container"].join("\n");
        const mac = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(text).digest("base64");
        const headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": 0,
            "Authorization": `SharedKey ${account}:${mac}`};
        const path = `/${account}/${container}?restype=container`;
        require("http").request({port, host: "127.0.0.1", method: "PUT", path, headers},
            r => { r.pipe(process.stderr); process.exitCode = r.statusCode === 201 ? 0 : 1; }).end();
    "#;
    let output =
        Command::new("node").args(["-e", script, &port.to_string(), account, container, key]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
