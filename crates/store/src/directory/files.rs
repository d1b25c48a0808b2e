//! The folder itself: reading, comparing, deleting. Everything here blocks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use bytes::Bytes;
use rhyolite_format::Timestamp;

use crate::types::{Meta, Object, Version};
use crate::{Operation, StoreError, StoreErrorKind};

/// Largest buffer that is set aside before its bytes have been seen to exist.
const READ_AHEAD_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// How new names are made here; learnt by the first write ([`super::publish`]).
    pub(super) method: AtomicU8,
    /// Folders whose last sync failed, by invariant 5 synced before they are read.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    any_unsynced: AtomicBool,
}

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, method: AtomicU8::new(0), unsynced: Mutex::default(), any_unsynced: AtomicBool::new(false) }
    }

    pub(super) fn describe(&self) -> String {
        self.root.display().to_string()
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    pub(super) fn parent(&self, key: &str) -> PathBuf {
        self.path(key).parent().map_or_else(|| self.root.clone(), Path::to_path_buf)
    }

    pub(super) fn get(&self, key: &str) -> Result<Object, StoreError> {
        let (file, meta) = self.open(Operation::Get, key)?;
        let bytes = self.read(Operation::Get, key, &file, 0..meta.size)?;
        Ok(Object { bytes, version: meta.version, size: meta.size })
    }

    pub(super) fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (file, meta) = self.open(Operation::GetRange, key)?;
        if range.end > meta.size {
            let reason = format!("bytes {}..{} were asked for, the object has {}", range.start, range.end, meta.size);
            return Err(self.error(StoreErrorKind::Corrupt, Operation::GetRange, key, reason));
        }
        self.read(Operation::GetRange, key, &file, range)
    }

    pub(super) fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let (file, meta) = self.open(Operation::GetTail, key)?;
        let bytes = self.read(Operation::GetTail, key, &file, meta.size.saturating_sub(len)..meta.size)?;
        Ok(Object { bytes, version: meta.version, size: meta.size })
    }

    pub(super) fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.settle(Operation::Head, key)?;
        match std::fs::metadata(self.path(key)) {
            Ok(meta) if meta.is_file() => Ok(meta_of(&meta)),
            Ok(_) => Err(self.not_found(Operation::Head, key)),
            Err(e) => Err(self.io_error(Operation::Head, key, "stat", &e)),
        }
    }

    pub(super) fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let folders: BTreeSet<PathBuf> = keys.iter().map(|k| self.parent(k)).collect();
        for folder in folders {
            let inside: Vec<&String> = keys.iter().filter(|k| self.parent(k) == folder).collect();
            self.delete_inside(&folder, &inside)?;
        }
        Ok(())
    }

    /// Deletes keys of one folder under its lock: a swap that is between its comparison and its rename must not bring a
    /// deleted object back.
    fn delete_inside(&self, folder: &Path, keys: &[&String]) -> Result<(), StoreError> {
        let first = keys.first().expect("a folder is visited because of a key");
        let Some(_lock) = self.lock(Operation::Delete, first, folder)? else { return Ok(()) };
        for key in keys {
            match std::fs::remove_file(self.path(key)) {
                Ok(()) => {}
                Err(e) if is_absent(&e) => {}
                // A folder of objects is no object.
                Err(_) if self.path(key).is_dir() => {}
                Err(e) => return Err(self.io_error(Operation::Delete, key, "unlink", &e)),
            }
        }
        self.sync_folder(Operation::Delete, first, folder)
    }

    fn open(&self, operation: Operation, key: &str) -> Result<(File, Meta), StoreError> {
        self.settle(operation, key)?;
        let file = File::open(self.path(key)).map_err(|e| self.io_error(operation, key, "open", &e))?;
        let meta = file.metadata().map_err(|e| self.io_error(operation, key, "stat", &e))?;
        if !meta.is_file() {
            return Err(self.not_found(operation, key));
        }
        Ok((file, meta_of(&meta)))
    }

    fn read(&self, operation: Operation, key: &str, file: &File, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end - range.start;
        let mut bytes = vec![0; len.min(READ_AHEAD_MAX) as usize];
        let mut done = 0u64;
        while done < len {
            if done == bytes.len() as u64 {
                bytes.resize((done * 2).min(len) as usize, 0);
            }
            file.read_exact_at(&mut bytes[done as usize..], range.start + done).map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => self.error(
                    StoreErrorKind::Corrupt,
                    operation,
                    key,
                    "the file became shorter while it was read: something else writes to this folder",
                ),
                _ => self.io_error(operation, key, "read", &e),
            })?;
            done = bytes.len() as u64;
        }
        Ok(Bytes::from(bytes))
    }

    /// Syncs a folder so that the names in it survive a power cut; remembers it when that fails.
    pub(super) fn sync_folder(&self, operation: Operation, key: &str, folder: &Path) -> Result<(), StoreError> {
        let synced = File::open(folder).and_then(|f| f.sync_all());
        self.note_synced(operation, key, folder, synced)
    }

    pub(super) fn note_synced(
        &self,
        operation: Operation,
        key: &str,
        folder: &Path,
        synced: io::Result<()>,
    ) -> Result<(), StoreError> {
        let Err(e) = synced else { return Ok(()) };
        self.unsynced.lock().expect("nothing panics under this lock").insert(folder.to_owned());
        self.any_unsynced.store(true, Ordering::Release);
        let kind = if operation == Operation::Delete { StoreErrorKind::Unavailable } else { StoreErrorKind::Ambiguous };
        Err(self.error(kind, operation, key, format!("sync of the folder {}: {e}", folder.display())))
    }

    /// Syncs the key's folder if its last sync failed (invariant 5).
    fn settle(&self, operation: Operation, key: &str) -> Result<(), StoreError> {
        if !self.any_unsynced.load(Ordering::Acquire) {
            return Ok(());
        }
        let folder = self.parent(key);
        let mut unsynced = self.unsynced.lock().expect("nothing panics under this lock");
        if !unsynced.contains(&folder) {
            return Ok(());
        }
        File::open(&folder).and_then(|f| f.sync_all()).map_err(|e| {
            let reason = format!("the folder {} could not be synced since an earlier failure: {e}", folder.display());
            self.error(StoreErrorKind::Unavailable, operation, key, reason)
        })?;
        unsynced.remove(&folder);
        self.any_unsynced.store(!unsynced.is_empty(), Ordering::Release);
        Ok(())
    }

    pub(super) fn error(
        &self,
        kind: StoreErrorKind,
        operation: Operation,
        key: &str,
        reason: impl Into<String>,
    ) -> StoreError {
        StoreError::new(kind, operation, key, self.describe(), reason)
    }

    fn not_found(&self, operation: Operation, key: &str) -> StoreError {
        let root = self.root.display();
        let (kind, reason) = match self.root.metadata() {
            Ok(m) if m.is_dir() => (StoreErrorKind::NotFound, "there is no such object".to_owned()),
            // Nothing was ever stored there, and nothing can be: whoever takes that for an empty store would begin without a backup.
            Ok(_) => (StoreErrorKind::Invalid, format!("{root} is not a folder")),
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                (StoreErrorKind::Invalid, format!("{root} lies below a file"))
            }
            Err(_) => (StoreErrorKind::NotFound, format!("the folder {root} does not exist")),
        };
        self.error(kind, operation, key, reason)
    }

    /// Puts an error of the operating system into the caller's terms. For what fails before a name was given.
    pub(super) fn io_error(&self, operation: Operation, key: &str, verb: &str, e: &io::Error) -> StoreError {
        let kind = match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => return self.not_found(operation, key),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreErrorKind::Denied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreErrorKind::Full,
            ErrorKind::InvalidFilename | ErrorKind::IsADirectory => StoreErrorKind::Invalid,
            _ => StoreErrorKind::Unavailable,
        };
        self.error(kind, operation, key, format!("{verb}: {e}"))
    }
}

/// No such file, also because a part of its path is no folder.
pub(super) fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Nanoseconds since 1970 of a file's modification time.
pub(super) fn modified_ns(meta: &std::fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

pub(super) fn meta_of(meta: &std::fs::Metadata) -> Meta {
    let ns = modified_ns(meta);
    Meta {
        size: meta.len(),
        version: Version::new(format!("{ns:x}-{:x}", meta.len())),
        modified: i64::try_from(ns / 1_000_000).ok().map(Timestamp),
    }
}
