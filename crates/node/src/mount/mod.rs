//! The mount: a folder seen through FUSE, in which every SQLite database is captured.
//!
//! ```text
//!   application ── locks, cached reads, WAL, shared memory ── the kernel alone
//!        │ writes to databases and journals, unlinks, fsyncs
//!        ▼
//!       fs ──► the folder behind          database ──► capture::commits ──► the capture thread
//! ```
//!
//! Capture opens the databases through the mount as any other connection does, so it takes part in SQLite's locks. In WAL mode it follows
//! the WAL as everywhere ([`crate::capture`]); no FUSE operation is needed for a commit. In rollback mode `database` knows which
//! pages a transaction has written, and copies them while SQLite still holds its lock.
//!
//! State folders lie behind the mount, beside the databases, and are hidden in front of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::io::Errno;

use self::anchor::Anchor;
use crate::capture::commits::CommitLines;

mod anchor;
mod below;
mod database;
mod door;
mod fs;
pub mod gate;
mod groups;
mod handover;
mod journal;
mod leftover;
mod nodes;
pub mod operations;
mod reports;
mod role;
mod stale;
mod unsynced;

/// Threads that serve the kernel. None of them ever waits for another.
const THREADS: usize = 4;
/// How the kernel is reached.
const DEVICE: &str = "/dev/fuse";
/// What the mount is called in the system's list.
const NAME: &str = "rhyolite";

/// A folder that is mounted until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    /// Dropped to unmount.
    stop: Option<Sender<()>>,
    server: Option<JoinHandle<()>>,
    at: PathBuf,
}

impl Mounted {
    /// Mounts the folder `behind` at the folder `at`. Commits in rollback mode go to `lines`. With `gate_timeout` a commit waits for the store, and fails with
    /// an I/O error when that takes longer; `lines` know that their commits wait.
    ///
    /// # Errors
    /// One line: a folder is missing or lies within the other, something lies in the folder `at`, FUSE is not there, or we may not mount.
    pub fn mount(
        behind: &Path,
        at: &Path,
        lines: Arc<CommitLines>,
        gate_timeout: Option<Duration>,
    ) -> Result<Self, String> {
        let error = |path: &Path, e: &io::Error| format!("{}: {}", path.display(), crate::config::io_text(e));
        let real = |path: &Path| path.canonicalize().map_err(|e| error(path, &e));
        // First of all: the files that the kernel has passed through a mount are in use as long as it is there.
        stale::clear(at)?;
        let (behind, at) = (real(behind)?, real(at)?);
        if behind.starts_with(&at) || at.starts_with(&behind) {
            return Err(format!("{} and {} must not lie within each other", behind.display(), at.display()));
        }
        if let Some(file) = leftover::in_use(&behind).map_err(|e| error(&behind, &e))? {
            return Err(format!(
                "{} is in use: stop the processes that still have it open from an earlier mount, or that use the folder itself",
                file.display()
            ));
        }
        let (ready, is_ready) = mpsc::channel();
        let (stop, is_stopped) = mpsc::channel();
        let (anchor, anchored) = Anchor::new(&at).map_err(|e| error(&at, &e))?;
        let (place, anchor) = (at.clone(), Arc::new(anchor));
        let serve = move || {
            let Some(session) = serve(&behind, &place, (lines, gate_timeout), &anchor, &ready) else { return };
            // Nothing is ever sent: it ends when the other side goes.
            let _ = is_stopped.recv();
            anchor.let_go();
            anchored.join().expect("a thread that only asks does not panic");
            end(&place, session);
        };
        let server = thread::Builder::new().name("mount".to_owned()).spawn(serve).map_err(|e| error(&at, &e))?;
        is_ready.recv().map_err(|_| format!("mount at {}: the thread has ended", at.display()))??;
        Ok(Self { stop: Some(stop), server: Some(server), at })
    }

    /// The folder that it is mounted at, without symbolic links.
    pub fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            server.join().expect("a thread that serves a mount does not panic");
        }
    }
}

/// Mounts, and says so. It runs on a thread of its own.
///
/// When a process is killed, the kernel ends its mounts' connections when their descriptors are closed, which is when the last
/// thread that shares them has ended. Our capture threads use files on the mount: one that waits for an answer cannot end before
/// the connection does. So those who answer have a table of descriptors of their own, which goes with them.
fn serve(
    behind: &Path,
    at: &Path,
    commits: (Arc<CommitLines>, Option<Duration>),
    anchor: &Arc<Anchor>,
    ready: &Sender<Result<(), String>>,
) -> Option<BackgroundSession> {
    if let Err(error) = own_descriptors() {
        tracing::warn!("a process that is killed may leave a mount that answers nobody: {error}");
    }
    let session = match start_session(behind, at, commits, Arc::clone(anchor)) {
        Ok(session) => session,
        Err(error) => {
            let _ = ready.send(Err(error));
            return None;
        }
    };
    tracing::info!("{} is mounted at {}", behind.display(), at.display());
    let _ = ready.send(Ok(()));
    Some(session)
}

/// Unmounts.
fn end(at: &Path, session: BackgroundSession) {
    if let Err(error) = stale::unmount_idle(at) {
        if error == Errno::BUSY {
            tracing::warn!("{} is still in use: files that are open there can no longer be used", at.display());
        }
        if let Err(error) = stale::detach(at) {
            tracing::warn!("unmount {}: {}", at.display(), crate::config::io_text(&error));
        }
    }
    // It would unmount once more, and take away what lies under this mount.
    std::mem::forget(session);
}

/// Gives this thread, and those that it starts, a table of descriptors of their own, and no umask: the kernel has applied that of whoever
/// makes a file.
fn own_descriptors() -> io::Result<()> {
    // SAFETY: this thread holds no descriptor yet. What it opens from here on is used and closed by it and the threads that it
    // starts, and never handed to others; what others hold is never handed to it (`capture::commits` rings for it).
    match unsafe { libc::unshare(libc::CLONE_FILES | libc::CLONE_FS) } {
        0 => {
            rustix::process::umask(rustix::fs::Mode::empty());
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn start_session(
    behind: &Path,
    at: &Path,
    (lines, gate_timeout): (Arc<CommitLines>, Option<Duration>),
    anchor: Arc<Anchor>,
) -> Result<BackgroundSession, String> {
    let error = |path: &Path, e: &io::Error| format!("{}: {}", path.display(), crate::config::io_text(e));
    let root = File::open(behind).map_err(|e| error(behind, &e))?;
    let place = below::Place::open(at).map_err(|e| error(at, &e))?;
    let hidden = place.hidden();
    let mirror = fs::Mirror::new(root, place, (lines, anchor), gate_timeout).map_err(|e| error(behind, &e))?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![
        MountOption::FSName(NAME.to_owned()),
        MountOption::Subtype(NAME.to_owned()),
        MountOption::DefaultPermissions,
    ];
    if rustix::process::geteuid().is_root() {
        config.acl = SessionACL::All;
    }
    fuser::spawn_mount(mirror, at, &config).map_err(|e| match e.kind() {
        io::ErrorKind::DirectoryNotEmpty => format!(
            "mount at {}: the folder is not empty, and what lies in it would be hidden: {}. An application may have made it while nothing was mounted. Move it away, and look whether it is needed",
            at.display(),
            hidden.get().map_or("a file", String::as_str)
        ),
        _ if !Path::new(DEVICE).exists() => format!("mount at {}: there is no {DEVICE}", at.display()),
        io::ErrorKind::PermissionDenied if File::open(DEVICE).is_err() => {
            format!(
                "mount at {}: {DEVICE}: permission denied (its mode must be 0666 where others than root mount)",
                at.display()
            )
        }
        // Both folders are there.
        io::ErrorKind::NotFound => {
            format!("mount at {}: not permitted without fusermount3, which is not there", at.display())
        }
        _ => format!("mount at {}", error(at, &e)),
    })
}
