//! Keeps everybody from committing to the databases of a mount while the last commits are being captured.
//!
//! The application of the node has ended by then. Others may write on the mount as well; what they committed after the last look at a database would be
//! told to be made, and be in no history. So the locks of a writer are held on each database until the files are taken from them.
//!
//! Capture closes its descriptors of these files meanwhile, with which POSIX locks of this process would go: these are locks of open files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::follow::keep_writers_out;
use crate::restore::draft::beside;

/// How long those are waited for who are in the middle of a transaction, of all databases together.
const WAIT_MAX: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Nobody else begins a write transaction in these databases while this lives.
#[derive(Debug)]
pub(super) struct Quiet(
    // Also those without a lock: closing one would take those from capture which it holds on the same file.
    #[expect(dead_code, reason = "what counts is that they are open")] Vec<Held>,
);

/// A database and its wal-index, if there is one.
type Held = (File, Option<File>);

impl Quiet {
    /// Takes the locks that can be had. Where one cannot, what others commit at the last moment is kept as a lost branch.
    pub(super) fn over(databases: &[PathBuf]) -> Self {
        let deadline = Instant::now() + WAIT_MAX;
        let mut held = Vec::with_capacity(databases.len());
        for path in databases {
            match open(path) {
                Ok(files) => {
                    if let Err(error) = lock(&files, deadline) {
                        tell(path, &error);
                    }
                    held.push(files);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tell(path, &error),
            }
        }
        Self(held)
    }
}

fn tell(path: &Path, error: &io::Error) {
    tracing::warn!(database = %path.display(), "others may still commit to it before the role ends: {error}");
}

fn open(path: &Path) -> io::Result<Held> {
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    let database = open(path)?;
    match open(&beside(path, "-shm")) {
        Ok(wal_index) => Ok((database, Some(wal_index))),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tell(path, &error);
            }
            // Closed, it would take the locks of this process on the file with it.
            Ok((database, None))
        }
    }
}

fn lock((database, wal_index): &Held, deadline: Instant) -> io::Result<()> {
    while !keep_writers_out(database, wal_index.as_ref())? {
        if Instant::now() >= deadline {
            return Err(io::Error::other("somebody is in the middle of a transaction"));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
