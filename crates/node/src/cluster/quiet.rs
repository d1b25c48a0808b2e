//! Keeps everybody from committing to the databases of a mount while the last commits are being captured.
//!
//! The application of the node has ended by then. Others may write on the mount as well; what they committed after the last look at a database would be
//! told to be made, and be in no history. So the locks of a writer are held on each database until the files are taken from them.
//!
//! A writer that was killed in the middle of a transaction leaves a journal. SQLite takes it for that of somebody who lives as long as anybody holds a writer's lock, and
//! would read, and capture record, what is half written. So such a journal is played back first.
//!
//! Capture closes its descriptors of these files meanwhile, with which POSIX locks of this process would go: these are locks of open files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::follow::{keep_writers_out, let_writers_in};
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
                    if let Err(error) = lock(path, &files, deadline) {
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

fn lock(path: &Path, (database, wal_index): &Held, deadline: Instant) -> io::Result<()> {
    let mut why = "somebody is in the middle of a transaction";
    loop {
        if keep_writers_out(database, wal_index.as_ref())? {
            if !is_left_behind(path)? {
                return Ok(());
            }
            // Nobody is writing. Who plays it back must find it so.
            let_writers_in(database, wal_index.as_ref())?;
            why = "a transaction that nobody has ended cannot be taken back";
            play_back(path, deadline).map_err(io::Error::other)?;
        }
        if Instant::now() >= deadline {
            let_writers_in(database, wal_index.as_ref())?;
            return Err(io::Error::other(why));
        }
        thread::sleep(LOOK);
    }
}

/// Whether a journal lies beside a database that would be played back, if nobody writes.
fn is_left_behind(path: &Path) -> io::Result<bool> {
    let mut first = [0];
    match File::open(beside(path, "-journal")).and_then(|file| file.read_at(&mut first, 0)) {
        Ok(read) => Ok(read > 0 && first != [0]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has SQLite take back what a writer has left unfinished.
fn play_back(path: &Path, deadline: Instant) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(deadline.saturating_duration_since(Instant::now()))?;
    connection.query_row("PRAGMA schema_version", [], |_| Ok(()))
}
