//! The files and folders that the kernel knows, each as an `O_PATH` descriptor of the folder behind the mount.
//!
//! A descriptor leads to its file whatever its name is by now, and keeps its inode number from being given to another. The number
//! of a file on the mount is that of the file behind it, until it is taken from those who have it open ([`super::revoke`]): from then on it is another, and SQLite
//! in a process that has the one before open does not take the two for one file.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rhyolite_logic::pick::is_state_folder;
use rustix::fs::{AtFlags, FileType as Kind, Mode, OFlags, Stat, Timespec, fstat, open, openat, statat};

use super::database::Database;
use super::reports::Report;

/// One file or folder.
#[derive(Debug)]
pub(super) struct Node {
    /// Opened with `O_PATH`.
    pub(super) fd: OwnedFd,
    /// Its number on the mount.
    pub(super) inode: u64,
    /// It is a state folder of ours, or lies in one: it changes behind the kernel's back.
    pub(super) is_ours: bool,
    /// What is known of it as a database.
    pub(super) database: Arc<Database>,
    /// It lies nowhere, and says this. The descriptor is of no use then.
    report: Option<Report>,
    /// It was taken from those who had it open, and has another number now.
    is_taken: AtomicBool,
    place: Mutex<Place>,
}

/// Where the kernel has found it last.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The folder.
    pub(super) parent: u64,
    /// The name.
    pub(super) name: OsString,
}

impl Node {
    /// Opens the file itself.
    pub(super) fn open(&self, flags: OFlags) -> io::Result<File> {
        if let Some(report) = &self.report {
            return report.open();
        }
        // A name that leads to a descriptor's file, whatever it is called and whether it still has a name. The descriptor is in this
        // thread's table, not in that of the process.
        let path = format!("/proc/thread-self/fd/{}", self.fd.as_raw_fd());
        Ok(File::from(open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Whether nobody in front of the mount may open it for writing.
    pub(super) fn is_read_only(&self) -> bool {
        self.is_ours && !self.report.as_ref().is_some_and(Report::may_be_written)
    }

    /// Whether it is a report that is there to be locked.
    pub(super) fn is_lock(&self) -> bool {
        self.report.as_ref().is_some_and(Report::is_lock)
    }

    /// Whether it has another number now: nobody opens it by this one any more.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::SeqCst)
    }

    /// Where it was found last.
    pub(super) fn place(&self) -> Place {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// How often the kernel was told of it.
    lookups: u64,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    root: Arc<Node>,
    device: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<u64, Known>,
    /// The numbers of files that were taken from somebody, by those behind the mount.
    numbers: HashMap<u64, u64>,
    /// How many numbers were given out for them.
    given: u64,
}

impl State {
    /// The number of a file on the mount, by that behind it.
    fn number(&self, behind: u64) -> u64 {
        self.numbers.get(&behind).copied().unwrap_or(behind)
    }
}

/// Set in the numbers of files that were taken from somebody, and in no other.
const TAKEN: u64 = 1 << 61;

impl Nodes {
    /// Those of a folder; only itself at first.
    pub(super) fn new(root: File) -> io::Result<Self> {
        let stat = fstat(&root)?;
        let place = Mutex::new(Place { parent: INodeNo::ROOT.0, name: OsString::new() });
        let database = Arc::default();
        let root = Node {
            fd: root.into(),
            inode: INodeNo::ROOT.0,
            is_ours: false,
            database,
            report: None,
            is_taken: AtomicBool::new(false),
            place,
        };
        let root = Arc::new(root);
        Ok(Self { root, device: stat.st_dev, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of this number.
    pub(super) fn get(&self, inode: INodeNo) -> io::Result<Arc<Node>> {
        if inode == INodeNo::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let known = self.lock().known.get(&inode.0).map(|known| Arc::clone(&known.node));
        known.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Finds a name in a folder, and counts that the kernel is told.
    pub(super) fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<(Arc<Node>, FileAttr)> {
        let folder = self.get(parent)?;
        let fd = openat(&folder.fd, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&fd)?;
        if stat.st_dev != self.device {
            // Its inode numbers would mean other files.
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let place = Place { parent: parent.0, name: name.to_owned() };
        let is_ours = folder.is_ours || is_hidden(name);
        let mut state = self.lock();
        let inode = state.number(stat.st_ino);
        let entry = state.known.entry(inode).or_insert_with(|| {
            let (database, place, is_taken) = (Arc::default(), Mutex::new(place.clone()), AtomicBool::new(false));
            let node = Node { fd, inode, is_ours, database, report: None, is_taken, place };
            Known { node: Arc::new(node), lookups: 0 }
        });
        entry.lookups += 1;
        *entry.node.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        Ok((Arc::clone(&entry.node), FileAttr { ino: INodeNo(inode), ..attributes(&stat) }))
    }

    /// The node of a report about the file or folder with the number `of`, and counts that the kernel is told.
    pub(super) fn report(
        &self,
        of: u64,
        parent: INodeNo,
        name: &OsStr,
        report: Report,
    ) -> io::Result<(Arc<Node>, FileAttr)> {
        let (inode, fd) = (Report::inode(of), self.root.fd.try_clone()?);
        let attributes = report.attributes(inode);
        let mut state = self.lock();
        let entry = state.known.entry(inode).or_insert_with(|| {
            let place = Mutex::new(Place { parent: parent.0, name: name.to_owned() });
            let (database, is_taken) = (Arc::default(), AtomicBool::new(false));
            let node = Node { fd, inode, is_ours: true, database, report: Some(report), is_taken, place };
            Known { node: Arc::new(node), lookups: 0 }
        });
        entry.lookups += 1;
        Ok((Arc::clone(&entry.node), attributes))
    }

    /// The kernel has forgotten so many lookups.
    pub(super) fn forget(&self, inode: INodeNo, lookups: u64) {
        let mut state = self.lock();
        if let Some(entry) = state.known.get_mut(&inode.0) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 {
                state.known.remove(&inode.0);
            }
        }
    }

    /// The node of a name that the kernel knows; nothing is counted.
    pub(super) fn sibling(&self, folder: &Node, name: &OsStr) -> Option<Arc<Node>> {
        let stat = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let state = self.lock();
        state.known.get(&state.number(stat.st_ino)).map(|known| Arc::clone(&known.node))
    }

    /// The number on the mount of what has a name in a folder.
    pub(super) fn number_of(&self, folder: &Node, name: &OsStr) -> Option<u64> {
        let behind = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?.st_ino;
        Some(self.lock().number(behind))
    }

    /// Gives another number to a file that the kernel knows. The node of the number before is taken from whoever has it.
    pub(super) fn take(&self, folder: &Node, name: &OsStr) -> Option<Arc<Node>> {
        let behind = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?.st_ino;
        let mut state = self.lock();
        let node = state.known.get(&state.number(behind)).map(|known| Arc::clone(&known.node))?;
        state.given += 1;
        let number = TAKEN | state.given;
        state.numbers.insert(behind, number);
        node.is_taken.store(true, Ordering::SeqCst);
        Some(node)
    }

    /// Counts that the kernel is told of a node once more, and says what it looks like.
    pub(super) fn tell(&self, node: &Arc<Node>) -> io::Result<FileAttr> {
        let attributes = self.attributes(node)?;
        let mut state = self.lock();
        let known = Known { node: Arc::clone(node), lookups: 0 };
        state.known.entry(node.inode).or_insert(known).lookups += 1;
        Ok(attributes)
    }

    /// Where a node lies below the root, by the names under which it and its folders were found last. `None` when a folder is not known any more.
    pub(super) fn path(&self, node: &Node) -> Option<PathBuf> {
        let mut place = node.place();
        let mut names = vec![place.name.clone()];
        while place.parent != INodeNo::ROOT.0 {
            place = self.get(INodeNo(place.parent)).ok()?.place();
            names.push(place.name.clone());
        }
        Some(names.iter().rev().collect())
    }

    /// What lies under a name now got it by a rename.
    pub(super) fn note_moved(&self, folder: &Node, parent: INodeNo, name: &OsStr) {
        if let Some(node) = self.sibling(folder, name) {
            let place = Place { parent: parent.0, name: name.to_owned() };
            *node.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        }
    }

    /// What a node looks like now.
    pub(super) fn attributes(&self, node: &Node) -> io::Result<FileAttr> {
        if let Some(report) = &node.report {
            return Ok(report.attributes(node.inode));
        }
        let mut attributes = attributes(&fstat(node.fd.as_fd())?);
        attributes.ino = INodeNo(node.inode);
        Ok(attributes)
    }
}

/// State folders lie behind the mount, and are not listed in front of it.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.to_str().is_some_and(is_state_folder)
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
        Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanoseconds,
    }
}

/// A time that is to be set.
pub(super) fn timestamp(time: Option<TimeOrNow>) -> Timespec {
    let nanoseconds = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    match time {
        None => nanoseconds(rustix::fs::UTIME_OMIT),
        Some(TimeOrNow::Now) => nanoseconds(rustix::fs::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timespec {
                tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(since.subsec_nanos()),
            },
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX - 1);
                match i64::from(before.subsec_nanos()) {
                    0 => Timespec { tv_sec: -whole, tv_nsec: 0 },
                    rest => Timespec { tv_sec: -whole - 1, tv_nsec: 1_000_000_000 - rest },
                }
            }
        },
    }
}

/// The mode of what is made.
pub(super) fn mode(bits: u32, umask: u32) -> Mode {
    Mode::from_bits_truncate(bits & !umask & 0o7777)
}

/// What FUSE calls the type of a file.
pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

#[expect(clippy::unnecessary_cast, reason = "the widths of these fields differ between architectures")]
fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(Kind::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}
