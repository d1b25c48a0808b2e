//! `run --write-lock`: a command that changes a database on a replica.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::super::ctl::SocketArgs;
use super::super::exit::{Failure, Status};
use super::super::store::block_on;
use crate::config::io_text;
use crate::config::units::format_duration;
use crate::control::borrow::Write;
use crate::control::client::AskError;
use crate::exec::{self, Application, RunningChild};
use crate::forward::borrow::{Borrowed, Committed};
use crate::forward::{Said, TTL};
use crate::signals::{self, StopRequest};

/// Names the database to the command.
pub(super) const VARIABLE: &str = "RHYOLITE_DB";
/// What stands for it in the words of the command.
const PLACE: &[u8] = b"{}";
/// How often the lock is asked for again.
const KEEP: Duration = Duration::from_secs(2);
/// How long a command that is told to stop may take.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How long a lock is waited for, and how long the command may hold it.
pub(super) const WAIT: Duration = Duration::from_secs(30);
pub(super) const HOLD: Duration = Duration::from_secs(60);
/// How long the control socket may take beyond that.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where a large database is compared and sent.
const COMMIT_PATIENCE: Duration = Duration::from_secs(600);

/// The words of a command, with the path of the database in them.
pub(super) fn words(command: &[OsString], database: &Path) -> Vec<OsString> {
    let put = |word: &OsString| {
        let (mut rest, mut out) = (word.as_bytes(), Vec::new());
        while let Some(at) = rest.windows(PLACE.len()).position(|part| part == PLACE) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(database.as_os_str().as_bytes());
            rest = &rest[at + PLACE.len()..];
        }
        out.extend_from_slice(rest);
        OsString::from_vec(out)
    };
    command.iter().map(put).collect()
}

/// Why the command was told to stop.
enum Stopped {
    Signal(Signal),
    Held(Duration),
    Lost(Failure),
}

/// Runs the command on a copy of the replica's file, and has the primary commit what it has changed. Gives the status of the command.
pub(super) fn run(
    socket: &SocketArgs,
    database: &Path,
    command: &[OsString],
    (wait, hold): (Duration, Duration),
) -> Result<u8, Failure> {
    let child = RunningChild::default();
    // Whoever wants it to end twice does not wait for the primary.
    let stop = signals::listen(STOP_MAX + PATIENCE, Status::Failed, child.clone());
    let stop = stop.map_err(|e| Failure::failed(format!("cannot receive signals: {}", io_text(&e))))?;
    let timeout_ms = u64::try_from(wait.as_millis()).ok();
    let ttl_ms = u64::try_from(TTL.as_millis()).ok();
    let wanted = Write { path: Some(database.to_owned()), timeout_ms, ttl_ms, ..Write::default() };
    let borrowed: Borrowed = socket.ask_with("/write-lock", &wanted, wait + PATIENCE)?;
    let id = Write { id: Some(borrowed.id.clone()), ..Write::default() };
    let ended = block_on(async {
        let words = words(command, &borrowed.copy);
        let environment = [(OsStr::new(VARIABLE), borrowed.copy.as_os_str())];
        let started = exec::spawn_words(&words, environment, child).map_err(Failure::failed);
        watched(socket, &id, started?, stop, hold).await
    });
    match ended {
        Ok(0) => {}
        other => {
            // It goes back by itself, when nobody asks for it again.
            let _ = socket.ask_with::<_, ()>("/write-unlock", &id, PATIENCE);
            return other;
        }
    }
    let name = database.display();
    let unknown = |why: &dyn std::fmt::Display| {
        let what = format!("{name}: it is not known whether the changes were committed");
        Failure::new(Status::OutcomeUnknown, format!("{what}: {why}; look at the database before you try again"))
    };
    let committed = socket.send::<_, Committed>("POST", "/write-commit", &id, COMMIT_PATIENCE);
    let Committed { said, visible, .. } = committed.map_err(|error| match error {
        AskError::Refused(text) => Failure::failed(format!("{name}: nothing was committed: {text}")),
        AskError::TimedOut(text) => unknown(&text),
        AskError::Io(error) => unknown(&io_text(&error)),
    })?;
    match said {
        Said::Committed { .. } if visible => Ok(0),
        Said::Committed { txid } => {
            tracing::warn!("{name}: committed as transaction {txid}, which has not come to this node yet");
            Ok(0)
        }
        Said::Ended { why } => Err(Failure::failed(format!("{name}: nothing was committed: {why}"))),
        Said::Unknown { why } => Err(unknown(&why)),
    }
}

/// Waits for the command, as long as the lock is held.
async fn watched(
    socket: &SocketArgs,
    id: &Write,
    mut application: Application,
    mut stop: StopRequest,
    hold: Duration,
) -> Result<u8, Failure> {
    let deadline = tokio::time::Instant::now() + hold;
    let mut kept_at = tokio::time::Instant::now();
    let stopped = loop {
        let keep = async {
            tokio::time::sleep(KEEP).await;
            let (socket, id) = (socket.clone(), id.clone());
            let asked = tokio::task::spawn_blocking(move || socket.ask_with::<_, Borrowed>("/write-lock", &id, KEEP));
            asked.await.expect("asking does not panic")
        };
        tokio::select! {
            biased;
            code = application.wait() => return Ok(code),
            Ok(signal) = stop.wait_for(Option::is_some) => break Stopped::Signal(signal.unwrap_or(Signal::TERM)),
            () = tokio::time::sleep_until(deadline) => break Stopped::Held(hold),
            kept = keep => match kept {
                Ok(_) => kept_at = tokio::time::Instant::now(),
                // One answer that does not come is not the end.
                Err(_) if kept_at.elapsed() + KEEP < TTL => {}
                Err(failure) => break Stopped::Lost(failure),
            },
        }
    };
    let signal = if let Stopped::Signal(signal) = stopped { signal } else { Signal::TERM };
    let code = application.stop(signal, STOP_MAX).await;
    match stopped {
        // Nothing of what it did is committed, whatever it says.
        Stopped::Signal(signal) if code == 0 => Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(1)),
        Stopped::Signal(_) => Ok(code),
        Stopped::Held(hold) => {
            let hold = format_duration(hold);
            Err(Failure::failed(format!(
                "nothing was committed: the command held the write lock for {hold}, and was stopped (--hold)"
            )))
        }
        Stopped::Lost(failure) => {
            Err(Failure::failed(format!("nothing was committed: the write lock is lost: {}", failure.message)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_takes_the_place_of_braces() {
        let words = |text: &str| words(&[OsString::from(text)], Path::new("/d/a.db"))[0].clone().into_string().unwrap();
        assert_eq!(words("{}"), "/d/a.db");
        assert_eq!(words("sqlite:{}?mode=rw&{}"), "sqlite:/d/a.db?mode=rw&/d/a.db");
        assert_eq!(words("{ }{"), "{ }{");
        assert_eq!(words(""), "");
    }
}
