//! The file under construction: written beside the output under another name, moved into place when it is proved.
//!
//! Invariants:
//! 1. Nothing ever appears under the output's name but a complete, verified, synced database.
//! 2. One restore at a time works on a draft: it holds a lock on it.
//! 3. An existing output is not touched before the move, and not at all while a `-wal` or `-journal` lies beside it:
//!    SQLite would roll the new database back, or forward, with the old one's journal.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rhyolite_format::PageNumber;

use super::RestoreError;
use super::done::done_path;
use super::sink::PageSink;
use crate::random;

/// Appended to the output's name while the file is under construction.
const DRAFT_SUFFIX: &str = "-rhyolite-restoring";
/// Names beside a database that SQLite would take as belonging to it.
const COMPANIONS: [&str; 2] = ["-wal", "-journal"];

/// `path` with `suffix` appended to its last part.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Where spool files go: what is spooled may be far larger than memory, and `/tmp` often is memory.
pub(crate) fn spool_folder(wanted: Option<PathBuf>) -> PathBuf {
    let from_environment = || std::env::var_os("TMPDIR").map(PathBuf::from);
    let folder = wanted.or_else(from_environment).unwrap_or_else(|| PathBuf::from("/var/tmp"));
    if folder.is_dir() { folder } else { std::env::temp_dir() }
}

/// A file under construction, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    /// Where it lies, and where it goes. `None` for a file without a name.
    paths: Option<(PathBuf, PathBuf)>,
}

impl Draft {
    /// Opens the draft of `output`, which may hold what an earlier, interrupted restore left.
    pub(crate) fn open(output: &Path) -> Result<Self, RestoreError> {
        let path = beside(output, DRAFT_SUFFIX);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(&path).map_err(|e| RestoreError::io("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, paths: Some((path, output.to_owned())) }),
            Err(TryLockError::WouldBlock) => Err(RestoreError::Busy { draft: path }),
            Err(TryLockError::Error(e)) => Err(RestoreError::io("lock", &path, e)),
        }
    }

    /// A draft without a name in `folder`, which vanishes with this value.
    pub(crate) fn unnamed(folder: &Path) -> Result<Self, RestoreError> {
        let path = folder.join(format!("rhyolite-spool-{:032x}", u128::from_be_bytes(random::bytes())));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| RestoreError::io("create", &path, e))?;
        std::fs::remove_file(&path).map_err(|e| RestoreError::io("unlink", &path, e))?;
        Ok(Self { file, paths: None })
    }

    /// The file. It stays locked while it is open.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Where it lies, for messages.
    pub(crate) fn path(&self) -> &Path {
        self.paths.as_ref().map_or(Path::new("spool file"), |(draft, _)| draft)
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether nothing was written to it.
    pub(crate) fn is_empty(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() == 0)
    }

    /// Sets its length and keeps what it holds.
    pub(crate) fn resize(&self, bytes: u64) -> Result<(), RestoreError> {
        self.file.set_len(bytes).map_err(|e| RestoreError::io("resize", self.path(), e))
    }

    /// Empties it and sets its length: what is not written reads as zeros.
    pub(crate) fn clear(&self, bytes: u64) -> Result<(), RestoreError> {
        let resized = self.file.set_len(0).and_then(|()| self.file.set_len(bytes));
        resized.map_err(|e| RestoreError::io("resize", self.path(), e))
    }

    /// Copies it to standard output.
    pub(crate) fn copy_to_stdout(mut self) -> Result<(), RestoreError> {
        use std::io::{Seek, Write};
        let mut copy = || {
            self.file.rewind()?;
            let mut out = io::stdout().lock();
            io::copy(&mut self.file, &mut out)?;
            out.flush()
        };
        copy().map_err(|e| RestoreError::io("write to", Path::new("standard output"), e))
    }

    /// Makes the draft durable under the output's name.
    pub(crate) fn publish(self) -> Result<(), RestoreError> {
        let (draft, output) = self.paths.as_ref().expect("only a named draft is published");
        self.file.sync_all().map_err(|e| RestoreError::io("sync", draft, e))?;
        refuse_companions(output)?;
        std::fs::rename(draft, output).map_err(|e| RestoreError::io("move into place", output, e))?;
        remove_if_there(&done_path(output))?;
        sync_folder_of(output)
    }

    /// Removes what was written.
    pub(crate) fn discard(self) -> Result<(), RestoreError> {
        match &self.paths {
            Some((draft, output)) => {
                remove_if_there(&done_path(output))?;
                remove_if_there(draft)
            }
            None => Ok(()),
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RestoreError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Refuses an output with a companion that is not empty (invariant 3).
pub(crate) fn refuse_companions(output: &Path) -> Result<(), RestoreError> {
    for suffix in COMPANIONS {
        let path = beside(output, suffix);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.len() > 0 => return Err(RestoreError::Companion { path }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(RestoreError::io("look at", &path, e)),
        }
    }
    Ok(())
}

/// Makes a rename or an unlink of `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), RestoreError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|e| RestoreError::io("sync folder", folder, e))
}

/// Writes pages at their place in a file.
#[derive(Debug)]
pub(crate) struct FileSink {
    file: File,
    path: PathBuf,
}

impl FileSink {
    /// A sink that writes into the draft.
    pub(crate) fn new(draft: &Draft) -> Result<Self, RestoreError> {
        let file = draft.file.try_clone().map_err(|e| RestoreError::io("open again", draft.path(), e))?;
        Ok(Self { file, path: draft.path().to_owned() })
    }
}

impl PageSink for FileSink {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        let offset = first.index() as u64 * page_bytes as u64;
        self.file.write_all_at(pages, offset).map_err(|e| RestoreError::io("write", &self.path, e))
    }
}
