//! What a node does with its mount when its role changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bar::{Bar, Barred, WAIT_MAX};
use super::lag::Lag;
use super::revoke::{Taken, Which};
use super::writers::Writers;
use crate::capture::commits::CommitLines;

/// Longest wait for the thread of the mount.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How often a name is looked up before it is given up: each time somebody else was faster.
const LOOKUPS_MAX: usize = 1000;

/// What the thread of the mount is asked for.
#[derive(Debug)]
pub(super) enum Ask {
    /// To take files from others. The answer says what is to be looked up by this thread.
    Revoke(Which, u32, Sender<io::Result<Vec<PathBuf>>>),
    /// To let the kernel forget names that were looked up in vain. The answer says which are to be looked up again.
    Again(Sender<io::Result<Vec<PathBuf>>>),
    /// To close the door until databases are captured.
    Door(Sender<io::Result<()>>),
    /// To unmount.
    Stop,
}

/// A way to a mount.
#[derive(Clone, Debug)]
pub struct MountHandle {
    pub(super) at: PathBuf,
    pub(super) asks: Sender<Ask>,
    pub(super) writers: Arc<Writers>,
    pub(super) bar: Bar,
    pub(super) lag: Arc<Lag>,
    pub(super) lines: Arc<CommitLines>,
    pub(super) taken: Arc<Taken>,
    /// One at a time takes files from others.
    pub(super) revoking: Arc<Mutex<()>>,
}

/// Nobody else opens a database for as long as this lives.
#[derive(Debug)]
pub struct Alone(#[expect(dead_code, reason = "it counts that it lives")] Option<Barred>);

impl MountHandle {
    /// Where commits in rollback mode come from.
    pub fn lines(&self) -> Arc<CommitLines> {
        Arc::clone(&self.lines)
    }

    /// Says how far the databases are behind those of the primary; `None` when nobody knows.
    pub fn set_lag(&self, lag: Option<Duration>) {
        self.lag.set(lag);
    }

    /// Everybody may write: databases are captured from here on. Who opens one that was captured before waits until that is so.
    ///
    /// # Errors
    /// The mount does not answer, or can start no thread.
    pub fn admit_all(&self) -> io::Result<()> {
        self.bar.forget();
        self.lines.begin_anew();
        self.ask(Ask::Door)?;
        self.writers.admit_all();
        Ok(())
    }

    /// Only this process may write, apart from what the kernel writes for those who have a WAL or a journal open.
    pub fn leave_to_us(&self) {
        self.writers.leave_to_us();
    }

    /// Only this process may write: of whoever has a WAL, a wal-index or a journal open, all files of that database are taken. Our own process must have
    /// no database open. Who opens one of these databases waits until it is brought back to the history, 5 s at most.
    ///
    /// # Errors
    /// The kernel could not be told: others may still write.
    pub fn shut(&self, databases: &[PathBuf]) -> io::Result<()> {
        self.writers.leave_to_us();
        let until = Instant::now() + WAIT_MAX;
        let below = databases.iter().filter_map(|database| database.strip_prefix(&self.at).ok());
        below.for_each(|below| self.bar.close_until(below.to_owned(), until));
        self.revoke(Which::All)
    }

    /// Takes a database for this process, which has no file of it open: nobody else opens it until the result is dropped. Who has a WAL, a
    /// wal-index or a journal of it open loses all files of that database; with `whole` everybody who has it open does.
    ///
    /// # Errors
    /// The kernel could not be told.
    pub fn alone_with(&self, database: &Path, whole: bool) -> io::Result<Alone> {
        let Ok(below) = database.strip_prefix(&self.at) else { return Ok(Alone(None)) };
        let barred = Some(self.bar.close(below));
        self.revoke(if whole { Which::Of(below.to_owned()) } else { Which::Held(below.to_owned()) })?;
        Ok(Alone(barred))
    }

    fn revoke(&self, which: Which) -> io::Result<()> {
        let _turn = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: takes nothing and gives a plain integer.
        let thread = u32::try_from(unsafe { libc::gettid() }).expect("the number of a thread is positive");
        let mut left = self.ask(|reply| Ask::Revoke(which, thread, reply));
        for _ in 0..LOOKUPS_MAX {
            let Ok(paths) = &left else { break };
            if paths.is_empty() {
                break;
            }
            for path in paths {
                // The question is what counts, whatever the answer.
                let _ = std::fs::symlink_metadata(self.at.join(path));
            }
            left = self.ask(Ask::Again);
        }
        self.taken.done();
        match left?.first() {
            None => Ok(()),
            Some(path) => Err(io::Error::other(format!("the kernel goes on with {}", path.display()))),
        }
    }

    fn ask<T>(&self, ask: impl FnOnce(Sender<io::Result<T>>) -> Ask) -> io::Result<T> {
        let (reply, answer) = mpsc::channel();
        let gone = || io::Error::other("the mount is gone, or does not answer");
        self.asks.send(ask(reply)).map_err(|_| gone())?;
        answer.recv_timeout(ANSWER_MAX).map_err(|_| gone())?
    }
}
