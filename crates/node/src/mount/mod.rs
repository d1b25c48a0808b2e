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

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::capture::commits::CommitLines;

mod database;
mod fs;
mod leftover;
mod nodes;
mod stale;

/// Threads that serve the kernel. None of them ever waits for another.
const THREADS: usize = 4;
/// What the mount is called in the system's list.
const NAME: &str = "rhyolite";

/// A folder that is mounted until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    session: Option<BackgroundSession>,
    at: PathBuf,
}

impl Mounted {
    /// Mounts the folder `behind` at the folder `at`. Commits in rollback mode go to `lines`.
    ///
    /// # Errors
    /// One line: a folder is missing or lies within the other, FUSE is not there, or we may not mount.
    pub fn mount(behind: &Path, at: &Path, lines: Arc<CommitLines>) -> Result<Self, String> {
        stale::clear(at)?;
        let error = |path: &Path, e: &io::Error| format!("{}: {}", path.display(), crate::config::io_text(e));
        let real = |path: &Path| path.canonicalize().map_err(|e| error(path, &e));
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
        let root = File::open(&behind).map_err(|e| error(&behind, &e))?;
        let mirror = fs::Mirror::new(root, lines).map_err(|e| error(&behind, &e))?;
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
        let session = fuser::spawn_mount(mirror, &at, &config).map_err(|e| format!("mount at {}", error(&at, &e)))?;
        tracing::info!("{} is mounted at {}", behind.display(), at.display());
        Ok(Self { session: Some(session), at })
    }

    /// The folder that it is mounted at, without symbolic links.
    pub fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = unmount(&self.at, UnmountFlags::empty()) {
            if error == Errno::BUSY {
                tracing::warn!(
                    "{} is still in use: files that are open there can no longer be used",
                    self.at.display()
                );
            }
            if let Err(error) = stale::detach(&self.at) {
                tracing::warn!("unmount {}: {}", self.at.display(), crate::config::io_text(&error));
            }
        }
        drop(session);
    }
}
