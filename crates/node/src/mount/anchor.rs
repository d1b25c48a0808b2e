//! The anchor: a thread that ends last when the process is killed, so that nothing of the mount is left waiting.
//!
//! The kernel ends a mount's connection when the descriptors of those who serve it are closed. A dying thread gives up its memory before
//! its descriptors, and the last one unmaps what all have mapped. Where the kernel passes no files through, that includes wal-indexes that
//! lie on our own mount: what is dirty there is written to the mount first, and if the last thread is one of those who serve, it waits
//! for itself. Nothing ends this, and whoever uses the mount waits as well.
//!
//! The anchor asks the mount something and gets no answer. No signal takes a thread from that, SIGKILL neither, but the end of the connection
//! does: so its memory is there until those who serve have closed their descriptors. A question that has not come to those who serve holds
//! nothing: where it is known from the beginning that nothing is passed through, nobody is told of the mount before the anchor holds.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, mem, ptr};

use fuser::{Errno, ReplyStatfs};
use rustix::fs::statvfs;

/// Longest wait until it holds.
const HOLD_WAIT: Duration = Duration::from_secs(5);

/// The anchor of a mount.
#[derive(Debug)]
pub(super) struct Anchor(Arc<Shared>);

/// What its thread knows, too.
#[derive(Debug)]
struct Shared {
    /// The number of the thread; 0 until it asks.
    thread: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    /// Nothing needs it so far. This sends it off.
    Ready(Sender<()>),
    /// It is about to ask.
    Sent,
    /// It waits for this answer.
    Holds(ReplyStatfs),
    /// The mount is to be taken away, or it was in vain.
    LetGo,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: &mut State, next: State) -> State {
        self.changed.notify_all();
        mem::replace(state, next)
    }
}

impl Anchor {
    /// One for the mount at `at`. Its thread must not be one of those who serve the mount, nor be started by one: it would have their
    /// descriptors.
    pub(super) fn new(at: &Path) -> io::Result<(Self, JoinHandle<()>)> {
        let (send, sent) = mpsc::channel();
        let state = Mutex::new(State::Ready(send));
        let shared = Arc::new(Shared { thread: AtomicU32::new(0), state, changed: Condvar::new() });
        let (at, own) = (at.to_owned(), Arc::downgrade(&shared));
        let ask = move || {
            if sent.recv().is_err() {
                return;
            }
            let number = prepare();
            if let Some(shared) = own.upgrade() {
                shared.thread.store(number, Ordering::Release);
            }
            let answer = statvfs(&at);
            let Some(shared) = own.upgrade() else { return };
            let mut state = shared.lock();
            if matches!(*state, State::Sent) {
                shared.set(&mut state, State::LetGo);
                let reason = answer.map_or_else(|error| error.to_string(), |_| "it got an answer".to_owned());
                tracing::warn!("a process that is killed may leave a mount that answers nobody: {reason}");
            }
        };
        let thread = thread::Builder::new().name("mount-anchor".to_owned()).spawn(ask)?;
        Ok((Self(shared), thread))
    }

    /// A file may be mapped that is not passed through.
    pub(super) fn cast(&self) {
        let mut state = self.0.lock();
        if let State::Ready(send) = &*state {
            let _ = send.send(());
            *state = State::Sent;
        }
    }

    /// Waits until it holds, if it was cast. Not to be called by those who serve the mount.
    pub(super) fn wait(&self) {
        let state = self.0.lock();
        let waited = self.0.changed.wait_timeout_while(state, HOLD_WAIT, |state| matches!(state, State::Sent));
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::warn!("a process that is killed now may leave a mount that answers nobody: its anchor is slow");
        }
    }

    /// Keeps the anchor's question. Gives back any other.
    pub(super) fn hold(&self, pid: u32, reply: ReplyStatfs) -> Option<ReplyStatfs> {
        // 0 is also what the kernel says of those whom our namespace does not know.
        if pid == 0 || pid != self.0.thread.load(Ordering::Acquire) {
            return Some(reply);
        }
        let mut state = self.0.lock();
        match *state {
            State::Sent => drop(self.0.set(&mut state, State::Holds(reply))),
            State::LetGo => reply.error(Errno::EINTR),
            State::Ready(_) | State::Holds(_) => unreachable!("it asks once, after it was sent"),
        }
        None
    }

    /// Ends the wait. To be called by one of those who serve the mount: the answer goes through their descriptor.
    pub(super) fn let_go(&self) {
        let before = self.0.set(&mut self.0.lock(), State::LetGo);
        if let State::Holds(reply) = before {
            reply.error(Errno::EINTR);
        }
    }
}

/// Keeps signals from this thread, which would wait less quietly after one, and gives its number.
fn prepare() -> u32 {
    // SAFETY: the set is initialised by sigfillset before it is used, and nothing else is touched.
    let number = unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        libc::gettid()
    };
    u32::try_from(number).expect("the number of a thread is positive")
}
