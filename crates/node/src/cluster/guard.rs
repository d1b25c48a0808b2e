//! A small process between a node and its application, which ends the application when the node's right is over, whatever has become of the node.
//!
//! The node may be frozen, or killed, while the application goes on to write. So the application is a child of this process, in a process group of
//! its own; the node tells the guard over a socket until when it has the right, and the guard kills the group when that time comes, by a clock that goes
//! on while the machine sleeps, and when the socket is closed, which is how the end of the node shows.
//!
//! Lines from the node:
//!
//! | line | meaning |
//! | --- | --- |
//! | `run MS` | start the application; the right lasts until the clock shows MS milliseconds |
//! | `until MS` | it lasts until then |
//! | `signal N` | pass this signal on to the application and its group |
//! | `kill` | kill the group |
//!
//! Lines to the node:
//!
//! | line | meaning |
//! | --- | --- |
//! | `running GROUP` | it was started, in this process group |
//! | `ended CODE` | it has ended with this status, and its group with it |
//! | `expired CODE` | the same, killed because the right was over |
//! | `failed TEXT` | it could not be started |
//!
//! No database is ever opened in this process, so that a child may be forked. It ends when the node has, after the group.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use rhyolite_logic::deadline::Deadline;
use rhyolite_logic::lease::Monotonic;
use rhyolite_writer::World;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::config::io_text;
use crate::exec::exit_code;
use crate::world::RealWorld;

/// The first argument by which this program is a guard.
pub const ARGUMENT: &str = "guard";
/// Longest time between two looks: whether the application has ended, and at the clock.
const LOOK: Duration = Duration::from_millis(50);
/// The longest line that is taken.
const LINE_MAX: usize = 256;

/// The application while it runs.
struct Running {
    child: Child,
    group: Pid,
    deadline: Deadline,
}

struct Guard {
    node: UnixStream,
    command: Vec<OsString>,
    running: Option<Running>,
    heard: Vec<u8>,
}

/// `guard FD KEPT-FD... -- COMMAND...`: the socket, and descriptors that are only to stay open as long as this process lives.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let numbers = arguments.by_ref().take_while(|argument| argument != "--");
    let descriptors: Option<Vec<RawFd>> = numbers.map(|n| n.to_str()?.parse().ok()).collect();
    let command: Vec<OsString> = arguments.collect();
    let Some((socket, kept)) = descriptors.as_deref().and_then(|all| all.split_first()) else {
        return ExitCode::from(2);
    };
    if command.is_empty() || [socket].into_iter().chain(kept).any(|fd| close_on_exec(*fd).is_err()) {
        return ExitCode::from(2);
    }
    // What ends or stops the node by the terminal, or by its service manager, is for the node to pass on.
    set_signals(libc::SIG_IGN);
    adopt_orphans();
    // SAFETY: whoever started this process gave it the descriptor, and nothing else here owns it.
    let node = unsafe { UnixStream::from_raw_fd(*socket) };
    let mut guard = Guard { node, command, running: None, heard: Vec::new() };
    guard.watch();
    guard.kill();
    ExitCode::SUCCESS
}

/// What becomes of the signals that are for the node to pass on.
fn set_signals(to: libc::sighandler_t) {
    let all = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    for signal in all {
        // SAFETY: neither ignoring a signal nor its default touches memory of ours.
        unsafe { libc::signal(signal, to) };
    }
}

/// What the application leaves behind becomes a child of this process, which can wait for it.
fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // SAFETY: sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    };
}

fn close_on_exec(fd: RawFd) -> std::io::Result<()> {
    // SAFETY: takes and returns plain integers; a descriptor that is not open gives an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

impl Guard {
    /// Until the node is gone.
    fn watch(&mut self) {
        loop {
            self.look();
            let timeout =
                self.running.as_ref().map(|running| RealWorld.now().until(running.deadline.until()).min(LOOK));
            // Zero would mean for ever.
            let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
            if self.node.set_read_timeout(timeout).is_err() {
                return;
            }
            let mut bytes = [0; 1024];
            match self.node.read(&mut bytes) {
                Ok(0) => return,
                Ok(len) => self.heard.extend_from_slice(&bytes[..len]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(_) => return,
            }
            while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                self.obey(String::from_utf8_lossy(&line).trim());
            }
            if self.heard.len() > LINE_MAX {
                return;
            }
        }
    }

    /// Kills what has no right any more, and tells what has ended.
    fn look(&mut self) {
        let Some(running) = &mut self.running else { return };
        running.end_if_over();
        if has_ended(running.group) {
            self.tell_end();
        }
    }

    fn obey(&mut self, line: &str) {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        let number: Option<u64> = number.parse().ok();
        match (word, number, &mut self.running) {
            ("run", Some(until), None) => self.start(Monotonic(until)),
            ("until", Some(until), Some(running)) => {
                running.deadline.extend(Monotonic(until), RealWorld.now());
                running.end_if_over();
            }
            ("signal", Some(number), Some(running)) => {
                let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
                if let Some(signal) = signal {
                    // Fails only when it has just ended.
                    let _ = rustix::process::kill_process_group(running.group, signal);
                }
            }
            ("kill", _, Some(running)) => kill_group(running.group),
            // What comes too late: the application has ended meanwhile.
            _ => {}
        }
    }

    fn start(&mut self, until: Monotonic) {
        let Some(deadline) = Deadline::new(until, RealWorld.now()) else { return self.tell("expired 1") };
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).process_group(0);
        let guard = std::process::id();
        // SAFETY: between fork and exec only system calls are made that take plain integers.
        unsafe { command.pre_exec(move || prepare_application(guard)) };
        match command.spawn() {
            Ok(child) => {
                let group = Pid::from_child(&child);
                self.tell(&format!("running {}", group.as_raw_nonzero()));
                self.running = Some(Running { child, group, deadline });
            }
            Err(error) => {
                let program = self.command[0].to_string_lossy();
                let text = format!("failed cannot start {program:?}: {}", io_text(&error));
                self.tell(&text.replace('\n', " "));
            }
        }
    }

    /// The application has ended: whatever it has left in its group ends, too.
    fn tell_end(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // Until it is waited for its number is nobody else's.
        kill_group(running.group);
        let code = running.child.wait().map_or(1, exit_code);
        wait_for_group(running.group);
        let word = if running.deadline.is_over() { "expired" } else { "ended" };
        self.tell(&format!("{word} {code}"));
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            kill_group(running.group);
            // Nothing is left to be told to anybody.
            let _ = running.child.wait();
            wait_for_group(running.group);
        }
    }

    fn tell(&mut self, line: &str) {
        // A node that is gone shows when it is listened to.
        let _ = self.node.write_all(format!("{line}\n").as_bytes());
    }
}

impl Running {
    /// Kills the group when the right is over, again and again for as long as anything of it lives.
    fn end_if_over(&mut self) {
        if self.deadline.look(RealWorld.now()) {
            kill_group(self.group);
        }
    }
}

/// What the application needs before it is executed.
fn prepare_application(guard: u32) -> std::io::Result<()> {
    // What is ignored here would be ignored there.
    set_signals(libc::SIG_DFL);
    #[cfg(target_os = "linux")]
    // SAFETY: these set flags of the process that is about to execute the application.
    unsafe {
        // If the guard is killed, the node ends the group; this ends its first process even without a node.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Whoever gets more rights than we have could not be killed by us.
        if libc::geteuid() != 0 {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
    }
    // SAFETY: takes and returns a plain integer.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(guard) {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Until nobody is left in a group that was killed. A process that is in the middle of a system call ends it first.
fn wait_for_group(group: Pid) {
    let options = rustix::process::WaitOptions::NOHANG;
    // Who has left the group is waited for by nobody here.
    while rustix::process::waitpgid(group, options).is_ok() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill_group(group: Pid) {
    // Fails only when nobody is left in it.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
}

/// Whether a child has ended; it stays to be waited for.
fn has_ended(child: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(WaitId::Pid(child), options), Ok(None))
}
