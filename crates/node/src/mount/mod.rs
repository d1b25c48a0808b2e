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
//! Where an application on a replica may write through the primary, the locks are kept here as well, and `lending` withholds the write that commits.
//!
//! State folders lie behind the mount, beside the databases, and are hidden in front of it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::io::Errno;

use self::anchor::Anchor;
use self::door::Door;
use self::handle::Ask;
use self::revoke::Revoker;
use self::writers::Writers;
use crate::capture::commits::CommitLines;
use crate::durability::Level;
use crate::forward::transparent::Request;

mod anchor;
mod bar;
mod below;
mod database;
mod door;
mod frames;
mod fs;
pub mod gate;
mod groups;
mod handle;
mod handover;
mod journal;
mod lag;
mod leftover;
mod lending;
mod locks;
mod nodes;
pub mod operations;
mod reports;
mod revoke;
mod role;
mod stale;
mod unsynced;
mod writers;

pub use handle::{Alone, MountHandle};

/// Threads that serve the kernel. None of them ever waits for another.
const THREADS: usize = 4;
/// How the kernel is reached.
const DEVICE: &str = "/dev/fuse";
/// What the mount is called in the system's list.
const NAME: &str = "rhyolite";

/// How a folder is mounted.
#[derive(Debug)]
pub struct MountOptions {
    /// Commits in rollback mode go here.
    pub lines: Arc<CommitLines>,
    /// A commit waits until it is at this level, and fails with an I/O error when that takes longer; `lines` know that their commits wait.
    pub gate: Option<(Level, Duration)>,
    /// Applications write on a replica through the primary: what that needs is asked for here.
    pub forwarding: Option<Sender<Request>>,
    /// Nobody but this process writes, until [`MountHandle::admit_all`].
    pub is_ours_alone: bool,
}

/// A folder that is mounted until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    handle: MountHandle,
    server: Option<JoinHandle<()>>,
}

/// What those who ask need of a mount, and what its thread needs to answer them.
struct Started {
    session: BackgroundSession,
    revoker: Revoker,
    door: Arc<Mutex<Arc<Door>>>,
}

impl Mounted {
    /// Mounts the folder `behind` at the folder `at`.
    ///
    /// # Errors
    /// One line: a folder is missing or lies within the other, something lies in the folder `at`, FUSE is not there, or we may not mount.
    pub fn mount(behind: &Path, at: &Path, options: MountOptions) -> Result<Self, String> {
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
        let (asks, asked) = mpsc::channel();
        let (anchor, anchored) = Anchor::new(&at).map_err(|e| error(&at, &e))?;
        let (place, anchor) = (at.clone(), Arc::new(anchor));
        let serve = move || {
            let Some(started) = serve((&behind, &place), (options, asks), &anchor, &ready) else { return };
            answer(&started, &asked);
            anchor.let_go();
            anchored.join().expect("a thread that only asks does not panic");
            end(&place, started.session);
        };
        let server = thread::Builder::new().name("mount".to_owned()).spawn(serve).map_err(|e| error(&at, &e))?;
        let handle = is_ready.recv().map_err(|_| format!("mount at {}: the thread has ended", at.display()))??;
        Ok(Self { handle, server: Some(server) })
    }

    /// A way to it, for whoever changes who may write.
    pub fn handle(&self) -> MountHandle {
        self.handle.clone()
    }

    /// The folder that it is mounted at, without symbolic links.
    pub fn at(&self) -> &Path {
        &self.handle.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A thread that has ended needs not be told.
        let _ = self.handle.asks.send(Ask::Stop);
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
    (behind, at): (&Path, &Path),
    (options, asks): (MountOptions, Sender<Ask>),
    anchor: &Arc<Anchor>,
    ready: &Sender<Result<MountHandle, String>>,
) -> Option<Started> {
    if let Err(error) = own_descriptors() {
        tracing::warn!("a process that is killed may leave a mount that answers nobody: {error}");
    }
    let (started, handle) = match start_session((behind, at), options, asks, Arc::clone(anchor)) {
        Ok(started) => started,
        Err(error) => {
            let _ = ready.send(Err(error));
            return None;
        }
    };
    anchor.wait();
    tracing::info!("{} is mounted at {}", behind.display(), at.display());
    let _ = ready.send(Ok(handle));
    Some(started)
}

/// Does what is asked for until the mount is to end.
fn answer(started: &Started, asked: &Receiver<Ask>) {
    let notifier = started.session.notifier();
    while let Ok(ask) = asked.recv() {
        // Who has asked may have given up waiting.
        match ask {
            Ask::Revoke(which, thread, reply) => {
                drop(reply.send(started.revoker.revoke(&which, thread, &notifier)));
            }
            Ask::Again(reply) => drop(reply.send(started.revoker.again(&notifier))),
            Ask::Door(reply) => {
                let closed = Door::new().map(|door| {
                    *started.door.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(door);
                });
                drop(reply.send(closed));
            }
            Ask::Stop => return,
        }
    }
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
    (behind, at): (&Path, &Path),
    options: MountOptions,
    asks: Sender<Ask>,
    anchor: Arc<Anchor>,
) -> Result<(Started, MountHandle), String> {
    let MountOptions { lines, gate, forwarding, is_ours_alone } = options;
    let error = |path: &Path, e: &io::Error| format!("{}: {}", path.display(), crate::config::io_text(e));
    let root = File::open(behind).map_err(|e| error(behind, &e))?;
    let place = below::Place::open(at).map_err(|e| error(at, &e))?;
    let hidden = place.hidden();
    let writers = Writers::new(is_ours_alone);
    let mirror = fs::Mirror::new(root, place, (Arc::clone(&lines), anchor), (gate, writers), (at, forwarding));
    let mirror = mirror.map_err(|e| error(behind, &e))?;
    let taken = Arc::clone(&mirror.taken);
    let (revoker, door) = (mirror.revoker(), Arc::clone(&mirror.door));
    let (writers, bar, lag) = (Arc::clone(&mirror.writers), mirror.bar.clone(), Arc::clone(&mirror.lag));
    let handle = MountHandle { at: at.to_owned(), asks, writers, bar, lag, lines, taken, revoking: Arc::default() };
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
    let session = fuser::spawn_mount(mirror, at, &config).map_err(|e| not_mounted(at, &e, &hidden))?;
    Ok((Started { session, revoker, door }, handle))
}

/// Why a folder is not mounted, for people.
fn not_mounted(at: &Path, e: &io::Error, hidden: &OnceLock<String>) -> String {
    match e.kind() {
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
        _ => format!("mount at {}: {}", at.display(), crate::config::io_text(e)),
    }
}
