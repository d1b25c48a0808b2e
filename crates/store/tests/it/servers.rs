//! Real servers for the tests: moto for S3, Azurite for Azure, OpenSSH for SFTP; wsgidav, Apache and nginx for WebDAV. For
//! Google Cloud Storage there is none to be had: a stand-in after its documentation, `tests/gcs_server.py`.
//!
//! They are looked for where the environment says (`RHYOLITE_MOTO`, `RHYOLITE_AZURITE`, `RHYOLITE_SSHD`, `RHYOLITE_WSGIDAV`,
//! `RHYOLITE_APACHE`, `RHYOLITE_NGINX`: paths of the programs), where Debian's packages put them, and where
//! `crates/store/tests/servers.sh` installs them (`target/servers`). Without them the tests say so and pass, unless
//! `RHYOLITE_REQUIRE_S3`, `_AZURE`, `_SFTP` or `_WEBDAV` is set.
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
    /// The folder that it was given.
    pub(crate) data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The program, or `None` if it is not installed and need not be.
pub(crate) fn program(variable: &str, installed: &str, required: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path =
        path.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers").join(installed));
    if path.exists() {
        return Some(path.canonicalize().unwrap());
    }
    assert!(std::env::var_os(required).is_none(), "{} is missing: run crates/store/tests/servers.sh", path.display());
    eprintln!("skipped: {} is missing (crates/store/tests/servers.sh installs it)", path.display());
    None
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(program: &PathBuf, arguments: impl FnOnce(u16, &str) -> Vec<String>) -> Server {
    start_at(free_port(), program, arguments)
}

/// Starts a server at a port that a server before it may have had, in a folder of its own.
pub(crate) fn start_at(port: u16, program: &PathBuf, arguments: impl FnOnce(u16, &str) -> Vec<String>) -> Server {
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    // In a group of its own: Apache ends by a signal to its whole group.
    let script = r#"setsid "$0" "$@" </dev/null & server=$!; read -r _; kill $server; wait $server"#;
    command.args(["-c", script]).arg(program);
    command.args(arguments(port, data.path().to_str().unwrap()));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Server { child, port, data };
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

/// A running stand-in for Google Cloud Storage, with options of `tests/gcs_server.py` and a bucket `bucket`. It needs Python 3.
pub(crate) fn gcs(options: &[&str]) -> Option<Server> {
    let python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !python.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("RHYOLITE_REQUIRE_GCS").is_none(), "python3 is missing");
        eprintln!("skipped: python3 is missing");
        return None;
    }
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/gcs_server.py");
    let server = start(&program, |port, _| {
        let port = ["--port".to_owned(), port.to_string()];
        port.into_iter().chain(options.iter().map(|option| (*option).to_owned())).collect()
    });
    make_bucket(server.port, "bucket");
    Some(server)
}

/// A running OpenSSH server. The folder holds its key `host.pub`, a user's key `user`, and `srv` for the objects.
pub(crate) fn sshd() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_SSHD", "/usr/sbin/sshd", "RHYOLITE_REQUIRE_SFTP")?;
    Some(shared(&SLOT, || start(&program, ssh_config)))
}

/// A second life of a server in the same folder is not needed: each test stops and starts its own.
pub(crate) fn own_sshd() -> Option<Server> {
    let program = program("RHYOLITE_SSHD", "/usr/sbin/sshd", "RHYOLITE_REQUIRE_SFTP")?;
    Some(start(&program, ssh_config))
}

fn ssh_config(port: u16, data: &str) -> Vec<String> {
    for key in ["host", "user", "stranger"] {
        let file = format!("{data}/{key}");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file]).status().unwrap();
        assert!(made.success());
    }
    std::fs::copy(format!("{data}/user.pub"), format!("{data}/authorized_keys")).unwrap();
    std::fs::create_dir(format!("{data}/srv")).unwrap();
    // Where it separates privileges; only made by the service that is not started here.
    let _ = std::fs::create_dir_all("/run/sshd");
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {data}/host\nPidFile {data}/sshd.pid\nAuthorizedKeysFile \
         {data}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups \
         100\nSubsystem sftp internal-sftp\n"
    );
    std::fs::write(format!("{data}/sshd_config"), config).unwrap();
    ["-D", "-f", &format!("{data}/sshd_config"), "-E", &format!("{data}/log")].map(str::to_owned).into()
}

/// A running wsgidav: Python, one process, writes by renaming.
pub(crate) fn wsgidav() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_WSGIDAV", "wsgidav/bin/wsgidav", "RHYOLITE_REQUIRE_WEBDAV")?;
    Some(shared(&SLOT, || {
        start(&program, |port, data| {
            let port = port.to_string();
            ["--host", "127.0.0.1", "--port", &port, "--root", data, "--auth", "anonymous", "--quiet"]
                .map(str::to_owned)
                .into()
        })
    }))
}

/// A running Apache with mod_dav: several processes.
pub(crate) fn apache() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_APACHE", "/usr/sbin/apache2", "RHYOLITE_REQUIRE_WEBDAV")?;
    Some(shared(&SLOT, || start(&program, apache_config)))
}

fn apache_config(port: u16, data: &str) -> Vec<String> {
    let modules = ["mpm_prefork", "authz_core", "dav", "dav_fs", "dav_lock"];
    let modules = modules.map(|m| format!("LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n")).concat();
    std::fs::create_dir(format!("{data}/srv")).unwrap();
    // Debian's Apache gives up root for this user, who must reach the folder.
    let owned = Command::new("chown").args(["-R", "www-data:www-data", data]).output().unwrap().status.success();
    let user = if owned { "User www-data\nGroup www-data\n" } else { "" };
    let config = format!(
        "ServerRoot {data}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {data}/pid\nErrorLog {data}/log\n\
         DefaultRuntimeDir {data}\n{modules}{user}DavLockDB {data}/locks\nDocumentRoot {data}/srv\nStartServers 8\n\
         MaxKeepAliveRequests 0\nKeepAliveTimeout 5\n<Directory {data}/srv>\nDav On\nRequire all granted\n</Directory>\n"
    );
    std::fs::write(format!("{data}/apache.conf"), config).unwrap();
    ["-DFOREGROUND", "-f", &format!("{data}/apache.conf")].map(str::to_owned).into()
}

/// A running nginx with its WebDAV modules: several processes, no conditions, no locks.
pub(crate) fn nginx() -> Option<Arc<Server>> {
    static SLOT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let program = program("RHYOLITE_NGINX", "/usr/sbin/nginx", "RHYOLITE_REQUIRE_WEBDAV")?;
    Some(shared(&SLOT, || start(&program, nginx_config)))
}

fn nginx_config(port: u16, data: &str) -> Vec<String> {
    std::fs::create_dir(format!("{data}/srv")).unwrap();
    let user = if is_root() { "user root;\n" } else { "" };
    let config = format!(
        "daemon off;\n{user}worker_processes 4;\npid {data}/pid;\nerror_log {data}/log;\n\
         load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;\nevents {{}}\nhttp {{\naccess_log off;\n\
         client_body_temp_path {data}/tmp;\nproxy_temp_path {data}/p;\nfastcgi_temp_path {data}/f;\nuwsgi_temp_path {data}/u;\n\
         scgi_temp_path {data}/s;\nclient_max_body_size 0;\nserver {{\nlisten 127.0.0.1:{port};\nroot {data}/srv;\n\
         location / {{\ndav_methods PUT DELETE MKCOL COPY MOVE;\ndav_ext_methods PROPFIND OPTIONS;\ndav_access user:rw;\n}}\n}}\n}}\n"
    );
    std::fs::write(format!("{data}/nginx.conf"), config).unwrap();
    ["-p", data, "-e", &format!("{data}/log"), "-c", &format!("{data}/nginx.conf")].map(str::to_owned).into()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n")
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
