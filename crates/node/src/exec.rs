//! The application as a child of `replicate --exec`.
//!
//! Invariants:
//! 1. The child is started before any database is opened, so no SQLite connection is ever inherited or forked, and without
//!    a `pre_exec` hook, so the standard library starts it by `posix_spawn` and every descriptor of ours is closed in it.
//! 2. Its exit status becomes ours: its code, or 128 + the signal that ended it.
//! 3. It stays in our process group. A Ctrl-C at the terminal therefore reaches it directly and is not sent again; any
//!    other signal is forwarded.
//! 4. Nothing outlives us knowingly: a child that does not stop in time is killed.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// The process id of the child while it runs, for whoever must end it in a hurry.
#[derive(Clone, Debug, Default)]
pub struct RunningChild(Arc<Mutex<Option<Pid>>>);

impl RunningChild {
    fn set(&self, pid: Option<Pid>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }

    /// Sends a signal if the child still runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails only when the child has just ended.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// A running application.
#[derive(Debug)]
pub struct Application {
    child: Child,
    running: RunningChild,
}

/// Starts a command line (split into words, no shell).
///
/// # Errors
/// One line: the words do not parse, or the program cannot be started.
pub fn spawn(command: &str, running: RunningChild) -> Result<Application, String> {
    let words = split_words(command)?;
    let (program, arguments) = words.split_first().ok_or("the command of --exec is empty")?;
    start(Command::new(program).args(arguments), running)
}

/// Starts a command that is given as words, with these variables more in its environment.
///
/// # Errors
/// One line: there are no words, or the program cannot be started.
pub fn spawn_words<'a>(
    words: &[OsString],
    environment: impl IntoIterator<Item = (&'a OsStr, &'a OsStr)>,
    running: RunningChild,
) -> Result<Application, String> {
    let (program, arguments) = words.split_first().ok_or("there is no command")?;
    start(Command::new(program).args(arguments).envs(environment), running)
}

fn start(command: &mut Command, running: RunningChild) -> Result<Application, String> {
    let program = command.as_std().get_program().to_owned();
    let child = command.spawn();
    let child = child.map_err(|e| format!("cannot start {program:?}: {}", crate::config::io_text(&e)))?;
    running.set(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    Ok(Application { child, running })
}

impl Application {
    /// Waits until the application ends by itself; gives the exit status that we shall end with.
    pub async fn wait(&mut self) -> u8 {
        let status = self.child.wait().await;
        self.running.set(None);
        status.map_or(1, exit_code)
    }

    /// Passes on a signal, then waits at most `bound`, then kills.
    pub async fn stop(&mut self, signal: Signal, bound: Duration) -> u8 {
        if !(signal == Signal::INT && terminal_has_sent_it()) {
            self.running.signal(signal);
        }
        if let Ok(code) = tokio::time::timeout(bound, self.wait()).await {
            return code;
        }
        tracing::warn!("the application did not stop within {bound:?}: killing it");
        self.running.signal(Signal::KILL);
        self.wait().await
    }
}

/// Code of a status: the exit code, or 128 + the signal.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Whether an interrupt came from the terminal, which sends it to the whole process group.
fn terminal_has_sent_it() -> bool {
    let stdin = std::io::stdin();
    // SAFETY: both calls take and return plain integers and touch no memory.
    stdin.is_terminal() && unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// Splits a command line into words: blanks separate, `'...'` and `"..."` hold together, a backslash takes the next
/// character as it is (within double quotes only before `"` and `\`).
pub(crate) fn split_words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => quoted(&mut chars, c, word.get_or_insert_default(), text)?,
            '\\' => {
                let next = chars.next().ok_or_else(|| format!("{text:?} ends with a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, quote: char, word: &mut String, text: &str) -> Result<(), String> {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some(next @ ('"' | '\\')) => word.push(next),
                Some(next) => word.extend(['\\', next]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(format!("{text:?} has a {quote} without its pair"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let split = |text| split_words(text).unwrap();
        assert_eq!(split("./app --port 80"), ["./app", "--port", "80"]);
        assert_eq!(
            split(r#"  sh -c 'echo "a b"; x' "c \"d\" \n" e\ f '' "#),
            ["sh", "-c", "echo \"a b\"; x", "c \"d\" \\n", "e f", ""]
        );
        assert_eq!(split(""), [""; 0]);
        for bad in ["'a", "\"a\\\"", "a\\"] {
            assert!(split_words(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_exit_status_is_the_childs() {
        for (command, code) in [("sh -c 'exit 7'", 7), ("true", 0), ("sh -c 'kill -9 $$'", 137)] {
            let mut child = spawn(command, RunningChild::default()).unwrap();
            assert_eq!(child.wait().await, code, "{command}");
        }
        let error = spawn("/nonexistent/app", RunningChild::default()).unwrap_err();
        assert_eq!(error, "cannot start \"/nonexistent/app\": no such file or directory");
        assert!(spawn(" ", RunningChild::default()).is_err());
    }

    #[tokio::test]
    async fn a_child_is_stopped_by_the_signal_or_killed() {
        let mut child = spawn("sleep 1000", RunningChild::default()).unwrap();
        assert_eq!(child.stop(Signal::TERM, Duration::from_secs(60)).await, 128 + 15);
        // SIGCONT stands for a signal that the application does not obey.
        let mut deaf = spawn("sleep 1000", RunningChild::default()).unwrap();
        assert_eq!(deaf.stop(Signal::CONT, Duration::from_millis(50)).await, 128 + 9);
    }
}
