//! How bytes get a name: drafts, links, renames, the lock.
//!
//! | method | draft | name given by | left behind by a crash |
//! |---|---|---|---|
//! | anonymous | file without a name (`O_TMPFILE`) | link(2) | nothing |
//! | linked | `.rhyolite-tmp-<random>` in the same folder | link(2), then unlink of the draft | the draft |
//! | renamed | the same | rename that refuses to replace | the draft |
//!
//! The first that the file system can do is used, and remembered. A swap's draft is `.rhyolite-swap`, written under the lock: one
//! that a crash left behind is overwritten by the next swap. Old drafts are removed when a folder is first written to by a
//! method that makes them.

use std::fs::{DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags};

use super::files::{Folder, is_absent, meta_of, modified_ns};
use crate::types::Version;
use crate::{Operation, StoreError, StoreErrorKind};

/// Files are for their owner and group only: a backup holds what the database holds. The umask takes away from this.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// Longest wait for another process that swaps or deletes in the same folder.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_POLL_MAX: Duration = Duration::from_millis(20);

/// A draft that nobody has written to for this long belongs to a process that died.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const LOCK_NAME: &str = ".rhyolite-lock";
const SWAP_NAME: &str = ".rhyolite-swap";
const DRAFT_PREFIX: &str = ".rhyolite-tmp-";

/// How a name is given, see the table above. The numbers are kept in [`Folder::method`]; 0 is "not known yet".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Anonymous = 1,
    Linked = 2,
    Renamed = 3,
}

/// Bytes that have no name yet. Dropped, they are gone.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    /// The draft's own name, if it has one; removed when the draft is dropped.
    path: Option<PathBuf>,
    folder: PathBuf,
    /// The modification time that the file gets; by default the time at which it gets its name.
    made: Option<SystemTime>,
}

impl Draft {
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_in_pieces(&mut self.file, bytes)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // Nothing depends on it: an old draft is ignored by lists and removed later.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The right to swap and delete in one folder, until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Folder {
    /// Stores a new object; `Exists` if the name is taken.
    pub(super) fn create(&self, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        let mut draft = self.start(Operation::Create, key)?;
        draft.append(bytes).map_err(|e| self.io_error(Operation::Create, key, "write", &e))?;
        self.publish(Operation::Create, key, draft)
    }

    /// A draft for an upload.
    pub(super) fn draft(&self, key: &str) -> Result<Draft, StoreError> {
        self.start(Operation::Upload, key)
    }

    /// A draft for an upload whose content was made at `time`.
    pub(super) fn draft_of(&self, key: &str, time: SystemTime) -> Result<Draft, StoreError> {
        let mut draft = self.start(Operation::Upload, key)?;
        draft.made = Some(time);
        Ok(draft)
    }

    /// Gives a draft its name; `Exists` if it is taken.
    pub(super) fn publish(&self, operation: Operation, key: &str, draft: Draft) -> Result<Version, StoreError> {
        let failed = |verb, e: &io::Error| self.io_error(operation, key, verb, e);
        // The clock of file times ticks every few milliseconds only; an object that is deleted and created again within
        // one tick must not have the same version.
        let times = FileTimes::new().set_modified(draft.made.unwrap_or_else(SystemTime::now));
        draft.file.set_times(times).map_err(|e| failed("set the time", &e))?;
        draft.file.sync_all().map_err(|e| failed("sync", &e))?;
        let meta = draft.file.metadata().map_err(|e| failed("stat", &e))?;
        match self.name(&draft, &self.path(key)) {
            Ok(()) => {
                self.sync_folder(operation, key, &draft.folder)?;
                Ok(meta_of(&meta).version)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                // Its writer may not have come to sync the folder yet.
                self.sync_folder(operation, key, &draft.folder)?;
                Err(self.error(StoreErrorKind::Exists, operation, key, "the object exists already"))
            }
            Err(e) => Err(failed("link", &e)),
        }
    }

    /// Replaces the object if it still is `expected`.
    pub(super) fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<Version, StoreError> {
        let failed = |verb, e: &io::Error| self.io_error(Operation::Swap, key, verb, e);
        let conflict = |reason: String| self.error(StoreErrorKind::Conflict, Operation::Swap, key, reason);
        let (folder, path) = (self.parent(key), self.path(key));
        let Some(_lock) = self.lock(Operation::Swap, key, &folder)? else {
            return Err(conflict("the object to replace does not exist".to_owned()));
        };
        let old = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Err(conflict("the object to replace does not exist".to_owned())),
            Err(e) if is_absent(&e) => return Err(conflict("the object to replace does not exist".to_owned())),
            Err(e) => return Err(failed("stat", &e)),
        };
        let found = meta_of(&old).version;
        if found != *expected {
            return Err(conflict(format!("the object is version {found}, not {expected}")));
        }
        let draft = folder.join(SWAP_NAME);
        let replaced = replace(&draft, &path, modified_ns(&old), bytes);
        let version = replaced.map_err(|(verb, e)| {
            // It may be what fills the disk. If this fails too, the next swap overwrites it.
            let _ = std::fs::remove_file(&draft);
            failed(verb, &e)
        })?;
        assert_ne!(version, found, "a swap makes a new version");
        self.sync_folder(Operation::Swap, key, &folder)?;
        Ok(version)
    }

    /// Takes the folder's lock; `None` if the folder does not exist.
    pub(super) fn lock(&self, operation: Operation, key: &str, folder: &Path) -> Result<Option<Lock>, StoreError> {
        let path = folder.join(LOCK_NAME);
        let file = match new_file().truncate(false).create(true).open(&path) {
            Ok(file) => file,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(self.io_error(operation, key, "open the lock", &e)),
        };
        let start = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Lock { _file: file })),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.io_error(operation, key, "lock", &e.into())),
            }
            if start.elapsed() > LOCK_WAIT_MAX {
                let reason = format!("{} was held by others for {} s", path.display(), LOCK_WAIT_MAX.as_secs());
                return Err(self.error(StoreErrorKind::Unavailable, operation, key, reason));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOCK_POLL_MAX);
        }
    }

    /// A new draft in the key's folder, which is made if need be.
    fn start(&self, operation: Operation, key: &str) -> Result<Draft, StoreError> {
        let folder = self.parent(key);
        let draft = match self.new_draft(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.make_folder(&folder)
                    .map_err(|e| self.io_error(operation, key, &format!("make the folder {}", folder.display()), &e))?;
                self.new_draft(&folder)
            }
            other => other,
        };
        draft.map_err(|e| match e.kind() {
            ErrorKind::NotADirectory => {
                let reason = format!("{} is not a folder, or lies below a file", folder.display());
                self.error(StoreErrorKind::Invalid, operation, key, reason)
            }
            _ => self.io_error(operation, key, "open a draft", &e),
        })
    }

    fn new_draft(&self, folder: &Path) -> io::Result<Draft> {
        loop {
            match self.method(folder)? {
                Method::Anonymous => match open_anonymous(folder) {
                    Err(e) if anonymous_is_refused(&e) => self.learn(Method::Linked),
                    file => return Ok(Draft { file: file?, path: None, folder: folder.to_owned(), made: None }),
                },
                Method::Linked | Method::Renamed => {
                    let path = folder.join(format!("{DRAFT_PREFIX}{}", random_hex()?));
                    let file = new_file().create_new(true).open(&path)?;
                    return Ok(Draft { file, path: Some(path), folder: folder.to_owned(), made: None });
                }
            }
        }
    }

    /// Gives the draft its name, or fails with `AlreadyExists`.
    fn name(&self, draft: &Draft, name: &Path) -> io::Result<()> {
        let Some(path) = &draft.path else { return link_anonymous(&draft.file, name) };
        if self.method(&draft.folder)? == Method::Linked {
            match rustix::fs::linkat(CWD, path, CWD, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::EXIST) => return Err(ErrorKind::AlreadyExists.into()),
                // File systems without hard links (FAT, some network ones) say one of these.
                Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    self.learn(Method::Renamed);
                }
                Err(e) => return Err(e.into()),
            }
        }
        rename_new(path, name)
    }

    fn method(&self, folder: &Path) -> io::Result<Method> {
        match self.method.load(Ordering::Relaxed) {
            0 => {
                let works = link_probe(folder)?;
                self.learn(if works { Method::Anonymous } else { Method::Linked });
                remove_old_drafts(folder);
                self.method(folder)
            }
            1 => Ok(Method::Anonymous),
            2 => Ok(Method::Linked),
            _ => Ok(Method::Renamed),
        }
    }

    fn learn(&self, method: Method) {
        self.method.store(method as u8, Ordering::Relaxed);
    }

    /// Makes the folder and its missing parents, each durable in its own parent before the next.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut existing = folder;
        while !existing.as_os_str().is_empty() && !existing.exists() {
            missing.push(existing);
            existing = existing.parent().unwrap_or(Path::new(""));
        }
        for path in missing.into_iter().rev() {
            match DirBuilder::new().mode(FOLDER_MODE).create(path) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

/// Writes and syncs the draft, then gives it the name of the file that was modified at `old_ns`. What failed is said with the error.
fn replace(draft: &Path, path: &Path, old_ns: i128, bytes: &[u8]) -> Result<Version, (&'static str, io::Error)> {
    let mut file = new_file().truncate(true).create(true).open(draft).map_err(|e| ("open the draft", e))?;
    write_in_pieces(&mut file, bytes).map_err(|e| ("write", e))?;
    set_later_time(&file, old_ns).map_err(|e| ("set the time", e))?;
    file.sync_all().map_err(|e| ("sync", e))?;
    let version = meta_of(&file.metadata().map_err(|e| ("stat", e))?).version;
    std::fs::rename(draft, path).map_err(|e| ("rename", e))?;
    Ok(version)
}

fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    options
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// Can files without a name be made and linked here? `NotFound` if the folder does not exist.
fn link_probe(folder: &Path) -> io::Result<bool> {
    let file = match open_anonymous(folder) {
        Err(e) if anonymous_is_refused(&e) => return Ok(false),
        file => file?,
    };
    let name = folder.join(format!("{DRAFT_PREFIX}{}", random_hex()?));
    // Without /proc there is no way to name the file.
    let linked = link_anonymous(&file, &name).is_ok();
    if linked {
        std::fs::remove_file(&name)?;
    }
    Ok(linked)
}

#[cfg(target_os = "linux")]
fn open_anonymous(folder: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(FILE_MODE))?))
}

#[cfg(not(target_os = "linux"))]
fn open_anonymous(_folder: &Path) -> io::Result<File> {
    Err(ErrorKind::Unsupported.into())
}

/// Is this how a kernel or file system says that it knows no files without a name?
fn anonymous_is_refused(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::IsADirectory | ErrorKind::InvalidInput)
}

#[cfg(target_os = "linux")]
fn link_anonymous(file: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, path.as_str(), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn link_anonymous(_file: &File, _name: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Renames, or fails with `AlreadyExists`. Where the system knows no such rename there is no way to create safely.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn rename_new(_from: &Path, _to: &Path) -> io::Result<()> {
    Err(io::Error::new(ErrorKind::Unsupported, "this file system has no hard links"))
}

/// Sets a modification time that the file system stores as later than `old_ns`: the wall clock's if it is, otherwise as
/// little later as the file system can tell apart. FAT's step is two seconds.
fn set_later_time(file: &File, old_ns: i128) -> io::Result<()> {
    let now_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
    for step_ns in [1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000] {
        let wanted = u64::try_from(now_ns.max(old_ns + step_ns)).unwrap_or(0);
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(wanted);
        file.set_times(FileTimes::new().set_modified(time))?;
        if modified_ns(&file.metadata()?) > old_ns {
            return Ok(());
        }
    }
    Err(io::Error::other("the file system does not keep modification times, which versions are made of"))
}

/// Removes drafts of processes that died. Best effort: what stays is ignored by lists.
fn remove_old_drafts(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_draft = entry.file_name().to_str().is_some_and(|name| name.starts_with(DRAFT_PREFIX));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_draft && age().is_some_and(|age| age > DRAFT_AGE_MAX) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Bytes of one write. One huge write makes the kernel take huge pieces of memory for the file, which costs it up to six times
/// the processor time of the same bytes in small writes.
const WRITE_BYTES: usize = 256 << 10;

/// Bytes after which a file that is being written is synced.
const SYNC_BYTES: usize = 1 << 20;

/// Writes, and waits for the disk from time to time: a sync that finds many megabytes to write holds up everybody else's for as long,
/// that of the application's commits among them.
fn write_in_pieces(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut unsynced = 0;
    for piece in bytes.chunks(WRITE_BYTES) {
        if unsynced >= SYNC_BYTES {
            file.sync_data()?;
            unsynced = 0;
        }
        file.write_all(piece)?;
        unsynced += piece.len();
    }
    Ok(())
}
