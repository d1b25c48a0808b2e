//! SIGINT and SIGTERM: the first asks for a graceful stop, the second ends the process at once, and so does the end of the
//! time that a graceful stop may take.
//!
//! They are received by a thread with a runtime of its own, so that neither a blocked call nor a full queue in the main
//! runtime can keep the process from ending.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exec::RunningChild;

/// What the first signal started; `None` before.
pub type StopRequest = watch::Receiver<Option<Signal>>;

/// Starts the thread. `bound` is the time from the first signal to the hard end.
///
/// # Errors
/// The thread or the signal handlers could not be set up.
pub fn listen(bound: Duration, child: RunningChild) -> io::Result<StopRequest> {
    let (sender, receiver) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (interrupts, terminates) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(watch_signals(sender, bound, child, interrupts, terminates));
    })?;
    Ok(receiver)
}

async fn watch_signals(
    sender: watch::Sender<Option<Signal>>,
    bound: Duration,
    child: RunningChild,
    mut interrupts: tokio::signal::unix::Signal,
    mut terminates: tokio::signal::unix::Signal,
) {
    let mut next = async || {
        tokio::select! {
            _ = interrupts.recv() => Signal::INT,
            _ = terminates.recv() => Signal::TERM,
        }
    };
    let first = next().await;
    tracing::info!("stopping: uploading what is left (a second signal ends at once)");
    let _ = sender.send(Some(first));
    let second = tokio::time::timeout(bound, next()).await;
    child.signal(Signal::KILL);
    match second {
        Ok(second) => {
            tracing::warn!("stopped at once by a second signal; the rest is uploaded after the next start");
            std::process::exit(128 + second.as_raw());
        }
        Err(_) => {
            tracing::error!("could not stop within {bound:?}; the rest is uploaded after the next start");
            std::process::exit(i32::from(crate::cli::exit::Status::NotDurable.code()));
        }
    }
}
