//! SIGINT and SIGTERM: the first asks for a graceful stop, the second ends the process at once, and so does the end of the
//! time that a graceful stop may take.
//!
//! They are received by a thread with a runtime of its own, so that neither a blocked call nor a full queue in the main
//! runtime can keep the process from ending.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::exit::Status;
use crate::exec::RunningChild;

/// The same signal that comes again this soon is the first one once more.
const ECHO: Duration = Duration::from_millis(200);

/// What the first signal started; `None` before.
pub type StopRequest = watch::Receiver<Option<Signal>>;

/// Starts the thread. `bound` is the time from the first signal to the hard end, which gives the status `overdue`.
///
/// # Errors
/// The thread or the signal handlers could not be set up.
pub fn listen(bound: Duration, overdue: Status, child: RunningChild) -> io::Result<StopRequest> {
    let (sender, receiver) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupts, mut terminates) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut next = async || {
                tokio::select! {
                    _ = interrupts.recv() => Signal::INT,
                    _ = terminates.recv() => Signal::TERM,
                }
            };
            let first = next().await;
            let _ = sender.send(Some(first));
            let began = Instant::now();
            // Some send one signal to the process and to its group, which is not impatience.
            let second = async {
                loop {
                    let signal = next().await;
                    if signal != first || began.elapsed() > ECHO {
                        return signal;
                    }
                }
            };
            let second = tokio::time::timeout(bound, second).await;
            child.signal(Signal::KILL);
            match second {
                Ok(second) => {
                    tracing::warn!("ended at once by a second signal");
                    end_now(128 + second.as_raw());
                }
                Err(_) => {
                    tracing::error!("could not stop within {bound:?}");
                    end_now(i32::from(overdue.code()));
                }
            }
        });
    })?;
    Ok(receiver)
}

/// Ends the process without running anything that may wait for a thread that hangs.
fn end_now(code: i32) -> ! {
    // SAFETY: takes a plain integer and does not return. Nothing that others rely on is left undone: log lines are written
    // unbuffered, and every file format here survives the end of the process at any moment.
    unsafe { libc::_exit(code) }
}
