//! Takes from other processes what they have open of a database.
//!
//! The kernel passes `-wal`, `-shm` and `-journal` through, so no handler can refuse a write to them: whoever has them open from the time when everybody
//! might write could go on, and so could whoever holds locks. The kernel itself can end that: where a lookup gives an inode number that it knows with another
//! *generation*, it takes it for another file which has got the number, and everything that is open of the file before answers EIO from then on, passed through or not.
//!
//! ```text
//!   another number for the file ──► entry invalidated ──► one lookup of ours: the old number, another generation
//!            │                                                      │
//!            ▼                                                      ▼
//!   everybody's lookups from here on                  the inode before is bad: reads, writes and syncs fail
//! ```
//!
//! Locks belong to the kernel's inode, so those of the one before hold up nobody. The new number is for SQLite, which keeps its own account of locks and shared
//! memory by it: what a process still has open of the old file must have nothing to do with what it opens anew. What is mapped stays mapped, so the `-shm` file
//! is removed: who has it mapped writes into a file that nobody else finds. SQLite makes it anew from the WAL.
//!
//! The kernel is told by a thread of the mount, which has the descriptor for it. The lookups are made by whoever asks, who has another
//! table of descriptors: a thread of the mount must not wait for the mount.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{INodeNo, Notifier};
use rustix::fs::{AtFlags, unlinkat};

use super::fs::Open;
use super::nodes::{Node, Nodes};
use super::role::{Role, database_of};

/// What SQLite puts beside a database, and the database itself.
const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];
const SHM: &str = "-shm";

/// Open files, by their handles.
pub(super) type Files = Mutex<HashMap<u64, Arc<Open>>>;

/// Whose files are taken.
#[derive(Clone, Debug)]
pub(super) enum Which {
    /// Those of every database of which another process has a WAL, a wal-index or a journal open.
    All,
    /// The same of this database only, by its path below the mount.
    Held(PathBuf),
    /// Those of this database, whatever is open of it.
    Of(PathBuf),
}

/// Takes files from others.
#[derive(Debug)]
pub(super) struct Revoker {
    nodes: Arc<Nodes>,
    files: Arc<Files>,
    taken: Arc<Taken>,
}

/// Files that are being taken, for the one who looks them up.
#[derive(Debug, Default)]
pub(super) struct Taken(Mutex<Taking>);

#[derive(Debug, Default)]
struct Taking {
    /// The thread that looks them up; 0 when there is none.
    thread: u32,
    /// By the numbers of their folders, and their names.
    nodes: HashMap<Found, Awaited>,
}

/// A node that was taken.
#[derive(Debug)]
struct Awaited {
    node: Arc<Node>,
    /// The thread has asked for it. It may ask twice for one lookup, and only the second time counts: the first is the kernel's question whether what it remembers
    /// is still so.
    is_told: bool,
}

impl Taken {
    fn lock(&self) -> MutexGuard<'_, Taking> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was to be looked up was.
    pub(super) fn done(&self) {
        *self.lock() = Taking::default();
    }

    /// The node that this thread is to be told of.
    pub(super) fn tell(&self, thread: u32, parent: INodeNo, name: &OsStr) -> Option<Arc<Node>> {
        let mut taking = self.lock();
        // 0 is also what the kernel says of those whom our namespace does not know.
        if thread == 0 || taking.thread != thread {
            return None;
        }
        let awaited = taking.nodes.get_mut(&(parent.0, name.to_owned()))?;
        awaited.is_told = true;
        Some(Arc::clone(&awaited.node))
    }

    /// Whether that is still to be done for this name: what others are told of it must not be remembered by the kernel, which would not ask again.
    pub(super) fn is_awaited(&self, parent: INodeNo, name: &OsStr) -> bool {
        let taking = self.lock();
        !taking.nodes.is_empty() && taking.nodes.contains_key(&(parent.0, name.to_owned()))
    }
}

/// A database: the number of its folder, and its name there.
type Found = (u64, OsString);

impl Revoker {
    pub(super) fn new(nodes: Arc<Nodes>, files: Arc<Files>, taken: Arc<Taken>) -> Self {
        Self { nodes, files, taken }
    }

    /// Takes files from others. Gives the paths below the mount that this thread is to look up before it is so, and then say that it is done. Our
    /// own process must have none of them open that it still needs.
    pub(super) fn revoke(&self, which: &Which, thread: u32, notifier: &Notifier) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        *self.taken.lock() = Taking { thread, nodes: HashMap::new() };
        for (parent, name) in self.found(which) {
            self.one(parent, &name, notifier, &mut paths)?;
        }
        Ok(paths)
    }

    /// Gives the paths that were looked up in vain, because the kernel had learned of them from somebody else's lookup meanwhile. They are to be looked up once
    /// more.
    pub(super) fn again(&self, notifier: &Notifier) -> io::Result<Vec<PathBuf>> {
        let left: Vec<Found> = {
            let mut taking = self.taken.lock();
            taking.nodes.retain(|_, awaited| !awaited.is_told);
            taking.nodes.keys().cloned().collect()
        };
        for (parent, name) in &left {
            notifier.inval_entry(INodeNo(*parent), name)?;
        }
        Ok(left.iter().filter_map(|(parent, name)| self.path_of(*parent, name)).collect())
    }

    fn found(&self, which: &Which) -> BTreeSet<Found> {
        let (path, must) = match which {
            Which::All => (None, false),
            Which::Held(path) => (Some(path), false),
            Which::Of(path) => (Some(path), true),
        };
        let files: Vec<Arc<Open>> =
            self.files.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
        let mut found = BTreeSet::new();
        // What was taken once is dead, whoever still has it.
        for open in files.iter().filter(|open| !open.is_own && !open.node.is_ours && !open.node.is_taken()) {
            let place = open.node.place();
            let base = match open.role {
                Role::Plain if must => Some(place.name.as_os_str()),
                Role::Plain => None,
                Role::Shared | Role::Journal => database_of(&place.name),
            };
            let Some(base) = base else { continue };
            if path.is_none_or(|path| self.path_of(place.parent, base).as_ref() == Some(path)) {
                found.insert((place.parent, base.to_owned()));
            }
        }
        found
    }

    /// The path of a name in a folder, below the mount.
    fn path_of(&self, parent: u64, name: &OsStr) -> Option<PathBuf> {
        if parent == INodeNo::ROOT.0 {
            return Some(PathBuf::from(name));
        }
        let folder = self.nodes.get(INodeNo(parent)).ok()?;
        Some(self.nodes.path(&folder)?.join(name))
    }

    fn one(&self, parent: u64, name: &OsStr, notifier: &Notifier, paths: &mut Vec<PathBuf>) -> io::Result<()> {
        let Ok(folder) = self.nodes.get(INodeNo(parent)) else { return Ok(()) };
        let with = |suffix: &str| {
            let mut with = name.to_owned();
            with.push(suffix);
            with
        };
        let names = SUFFIXES.map(with);
        // All of them first: who finds one that is new finds that the others are.
        let nodes = names.iter().filter_map(|name| Some(((parent, name.clone()), self.nodes.take(&folder, name)?)));
        let nodes: Vec<_> = nodes.collect();
        let awaited = |node: &Arc<Node>| Awaited { node: Arc::clone(node), is_told: false };
        self.taken.lock().nodes.extend(nodes.iter().map(|(found, node)| (found.clone(), awaited(node))));
        match unlinkat(&folder.fd, with(SHM), AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => {}
            done => done?,
        }
        for name in &names {
            notifier.inval_entry(INodeNo(parent), name)?;
        }
        paths.extend(nodes.iter().filter_map(|((parent, name), _)| self.path_of(*parent, name)));
        let path = Path::new(name);
        tracing::info!(database = %path.display(), "its files are taken from the processes that had them open: they get EIO, and are to open it anew");
        Ok(())
    }
}
