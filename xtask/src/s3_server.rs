//! A real S3 server for torture and faults: moto, from PyPI, whose path is in `RHYOLITE_MOTO`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Context, Outcome, fail};
use crate::process::Process;
use crate::scratch::Scratch;

const BUCKET: &str = "torture";
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running server with one bucket. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    port: u16,
    _scratch: Scratch,
}

impl Server {
    /// Starts it on a free port of this machine.
    pub(crate) fn start() -> Outcome<Self> {
        let binary = std::env::var_os("RHYOLITE_MOTO").context("RHYOLITE_MOTO must name moto_server")?;
        let port = TcpListener::bind("127.0.0.1:0").context("find a port")?.local_addr().context("find a port")?.port();
        let scratch = Scratch::new("moto")?;
        let mut command = Command::new(binary);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = Process::start("moto_server", command, &scratch.path().join("log"))?;
        let server = Self { process, port, _scratch: scratch };
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = server.make_bucket() {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    fn make_bucket(&self) -> Outcome {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("connect to moto")?;
        let request =
            format!("PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context("ask moto for a bucket")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read moto's answer")?;
        match answer.split_whitespace().nth(1) {
            Some("200") => Ok(()),
            _ => fail(format!("moto answered {:?}", answer.lines().next())),
        }
    }

    /// The address of a store under `prefix`.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}&region=us-east-1", self.port)
    }

    /// What commands need in their environment to use it.
    pub(crate) fn environment() -> Vec<(String, String)> {
        let pairs = [("AWS_ACCESS_KEY_ID", "torture"), ("AWS_SECRET_ACCESS_KEY", "torture")];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// From here on every request hangs.
    pub(crate) fn freeze(&self) {
        self.process.signal(libc::SIGSTOP);
    }

    /// Requests are answered again.
    pub(crate) fn thaw(&self) {
        self.process.signal(libc::SIGCONT);
    }

    /// Every request hangs for `time`. The server must live until the thread that is given back has ended.
    pub(crate) fn freeze_for(&self, time: Duration) -> JoinHandle<()> {
        self.freeze();
        let id = self.process.id() as libc::pid_t;
        std::thread::spawn(move || {
            std::thread::sleep(time);
            // SAFETY: no memory is involved; the server, whose id this is, still lives.
            unsafe { libc::kill(id, libc::SIGCONT) };
        })
    }
}
