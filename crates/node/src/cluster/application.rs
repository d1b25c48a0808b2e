//! The application of a node, behind its guard ([`super::guard`]).
//!
//! The guard is started before any database is opened, once, and runs the application whenever this node is the primary.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use rhyolite_logic::lease::Monotonic;
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::guard;
use crate::config::io_text;
use crate::exec::split_words;
use crate::process;

/// Time between two looks whether all of the application has ended.
const END_LOOK: Duration = Duration::from_millis(5);
/// For so long at most.
const END_MAX: Duration = Duration::from_secs(10);

/// A guard that was started, and is not talked to yet.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    socket: StdStream,
}

/// What the guard tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The application has ended, with this status.
    Ended(u8),
    /// It was killed, because the right was over.
    Expired,
    /// It could not be started.
    Failed(String),
    /// The guard is gone, and the application with it.
    Gone,
}

impl Guard {
    /// Starts a guard for a command line, which is split into words. `kept` stays open in it: whoever holds a lock by it holds it as long as the
    /// application may run.
    ///
    /// # Errors
    /// One line.
    pub fn start(command: &str, kept: &File) -> Result<Self, String> {
        let words = split_words(command)?;
        if words.is_empty() {
            return Err("the command of --exec is empty".to_owned());
        }
        let start = || -> io::Result<Self> {
            let (socket, theirs) = StdStream::pair()?;
            // No other process is started meanwhile that would inherit them.
            let inherited = [theirs.as_fd(), kept.as_fd()];
            inherited.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, FdFlags::empty()))?;
            let numbers = inherited.iter().map(|fd: &BorrowedFd<'_>| fd.as_raw_fd().to_string());
            let mut guard = Command::new(std::env::current_exe()?);
            // What the terminal stops or ends with the node must not take the guard from the application.
            guard.process_group(0);
            let child = guard.arg(guard::ARGUMENT).args(numbers).arg("--").args(&words).spawn();
            rustix::io::fcntl_setfd(kept, FdFlags::CLOEXEC)?;
            socket.set_nonblocking(true)?;
            Ok(Self { child: child?, socket })
        };
        start().map_err(|e| format!("cannot start the guard of the application: {}", io_text(&e)))
    }

    /// The guard as others can tell whether it lives: as long as it does, so may the application.
    pub fn process(&self) -> Option<String> {
        process::of(self.child.id())
    }
}

/// The line to the guard.
#[derive(Debug)]
pub(super) struct Application {
    lines: Lines<BufReader<OwnedReadHalf>>,
    to: OwnedWriteHalf,
    /// Until it is told to have ended.
    runs: bool,
    /// Its process group, once it was started.
    group: Option<Pid>,
    _child: Child,
}

impl Application {
    /// Must be called in a runtime.
    pub(super) fn new(guard: Guard) -> io::Result<Self> {
        let (from, to) = UnixStream::from_std(guard.socket)?.into_split();
        Ok(Self { lines: BufReader::new(from).lines(), to, runs: false, group: None, _child: guard.child })
    }

    pub(super) fn runs(&self) -> bool {
        self.runs
    }

    pub(super) async fn run(&mut self, until: Monotonic) {
        self.runs = true;
        self.send(format!("run {}", until.0)).await;
    }

    pub(super) async fn renew(&mut self, until: Monotonic) {
        self.send(format!("until {}", until.0)).await;
    }

    pub(super) async fn signal(&mut self, signal: Signal) {
        self.send(format!("signal {}", signal.as_raw())).await;
    }

    pub(super) async fn kill(&mut self) {
        self.send("kill".to_owned()).await;
    }

    async fn send(&mut self, line: String) {
        // A guard that is gone shows when it is listened to.
        let _ = self.to.write_all(format!("{line}\n").as_bytes()).await;
    }

    /// What it tells next. May be dropped and called again.
    pub(super) async fn told(&mut self) -> Told {
        let line = loop {
            let Ok(Some(line)) = self.lines.next_line().await else {
                self.end_group().await;
                self.runs = false;
                return Told::Gone;
            };
            match line.strip_prefix("running ") {
                Some(group) => self.group = group.parse().ok().and_then(Pid::from_raw),
                None => break line,
            }
        };
        (self.runs, self.group) = (false, None);
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "ended" => Told::Ended(rest.parse().unwrap_or(1)),
            "expired" => Told::Expired,
            _ => Told::Failed(rest.to_owned()),
        }
    }

    /// The guard is gone without a word: what it would have ended is ended here.
    async fn end_group(&mut self) {
        let Some(group) = self.group else { return };
        // Nobody may write when this has returned. What is dead and waited for by nobody counts as there.
        let began = tokio::time::Instant::now();
        while rustix::process::kill_process_group(group, Signal::KILL) != Err(rustix::io::Errno::SRCH) {
            let _ = rustix::process::waitpgid(group, rustix::process::WaitOptions::NOHANG);
            if began.elapsed() > END_MAX {
                tracing::error!(
                    "the application's process group {group:?} is still there, {END_MAX:?} after it was killed"
                );
                break;
            }
            tokio::time::sleep(END_LOOK).await;
        }
        self.group = None;
    }
}
