//! Child processes that do not outlive us, and the signals that they get.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Outcome, fail};

/// A running child. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Outcome<Self> {
        let file = File::options().create(true).append(true).open(log).context(format!("open {}", log.display()))?;
        let errors = file.try_clone().context("share the log file")?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().context(format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// [`Self::start`] for a process that gets `signal` when the thread that starts it ends, however that comes about: nothing goes on
    /// after a killed test. On Linux only.
    pub fn start_tied(name: &str, mut command: Command, log: &Path, signal: libc::c_int) -> Outcome<Self> {
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::process::CommandExt;
            let tie = move || {
                // SAFETY: no memory is involved.
                match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: between fork and exec only a system call is made.
            unsafe { command.pre_exec(tie) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (&mut command, signal);
        Self::start(name, command, log)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has ended.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        self.child.try_wait().context(format!("look after {}", self.name))
    }

    /// Kill -9: the process gets no chance to do anything. Gives whether it was alive.
    pub fn kill(&mut self) -> Outcome<bool> {
        if self.ended()?.is_some() {
            return Ok(false);
        }
        self.child.kill().context(format!("kill {}", self.name))?;
        let status = self.child.wait().context(format!("wait for {}", self.name))?;
        Ok(status.signal() == Some(libc::SIGKILL))
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory is involved; the id is that of a child that we have not waited for, so it is still ours.
        unsafe { libc::kill(self.id() as libc::pid_t, signal) };
    }

    /// SIGTERM, then waits up to `limit` for an end with status 0.
    pub fn terminate(&mut self, limit: Duration) -> Outcome {
        if self.ended()?.is_none() {
            self.signal(libc::SIGTERM);
        }
        self.wait(limit)
    }

    /// Waits up to `limit` for an end with status 0.
    pub fn wait(&mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return fail(format!("{} ended with {status}", self.name)),
                None if Instant::now() > deadline => {
                    return fail(format!("{} did not end within {limit:?}", self.name));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended or not: either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that a test of a lane started share one thing: none may be left when the test is over.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn shell(script: &str) -> (Scratch, Process) {
        let scratch = Scratch::new("process").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start("shell", command, &scratch.path().join("log")).unwrap();
        (scratch, process)
    }

    #[test]
    fn an_end_with_another_status_is_an_error() {
        assert!(shell("exit 0").1.wait(Duration::from_secs(5)).is_ok());
        assert!(shell("exit 3").1.wait(Duration::from_secs(5)).is_err());
        assert!(shell("sleep 20").1.wait(Duration::from_millis(10)).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_tied_process_ends_with_its_thread() {
        let scratch = Scratch::new("process").unwrap();
        let log = scratch.path().join("log");
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("20");
            Process::start_tied("sleep", command, &log, libc::SIGTERM).unwrap()
        };
        let mut process = std::thread::scope(|scope| scope.spawn(start).join().unwrap());
        assert!(process.wait(Duration::from_secs(10)).unwrap_err().to_string().contains("signal: 15"));
    }

    #[test]
    fn a_kill_says_whether_somebody_was_alive() {
        let (_scratch, mut process) = shell("sleep 20");
        assert!(process.kill().unwrap());
        assert!(!process.kill().unwrap());
    }
}
