//! Opens files, and says how the kernel is to use them.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, INodeNo, OpenFlags};
use rustix::fs::OFlags;

use super::{Mirror, lock, no_access};
use crate::mount::nodes::Node;
use crate::mount::role::{Role, is_wal};
use crate::mount::writers::{Admitted, is_for_readers};

/// An open file.
#[derive(Debug)]
pub(in crate::mount) struct Open {
    pub(in crate::mount) file: Arc<File>,
    pub(in crate::mount) node: Arc<Node>,
    pub(in crate::mount) role: Role,
    /// The database whose journal this is.
    pub(super) base: Option<Arc<Node>>,
    /// It was opened by this process.
    pub(in crate::mount) is_own: bool,
    /// It is a WAL whose writes are looked at.
    pub(super) is_lent: bool,
    /// The kernel writes it without us.
    pub(in crate::mount) is_passed: bool,
    /// Keeps the kernel's way to the file.
    _backing: Option<Arc<BackingId>>,
}

impl Open {
    /// Whether it is one that readers write.
    pub(in crate::mount) fn is_for_readers(&self) -> bool {
        self.role == Role::Shared && is_for_readers(&self.node.place().name)
    }
}

/// Who asks for a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// It is this process.
    pub(super) is_own: bool,
}

/// How the kernel is to use an open file.
pub(super) struct Entered {
    pub(super) handle: FileHandle,
    pub(super) flags: FopenFlags,
    pub(super) backing: Option<Arc<BackingId>>,
}

impl Mirror {
    /// Takes in an open file, and says how the kernel is to use it.
    pub(super) fn enter(
        &self,
        file: File,
        node: Arc<Node>,
        Asker { is_own }: Asker,
        backing: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Entered {
        let place = node.place();
        let role = Role::of(&place.name);
        let base = (role == Role::Journal).then(|| self.base(INodeNo(place.parent), &place.name)).flatten();
        if role == Role::Plain && !node.is_ours {
            node.database.attach(|| {
                let line = self.lines.of(node.inode);
                line.set_looker(self.unsynced.looker(&node));
                line
            });
        }
        let is_lent = self.lending.is_some() && !node.is_ours && is_wal(&place.name);
        let passes = (role == Role::Shared && !is_lent) || (base.is_some() && !node.is_ours);
        // Whatever its name is now: the kernel wants the same from all who have the file open.
        let shared = self.backing_of(&node).or_else(|| passes.then(|| self.backing(&node, &file, backing)).flatten());
        if role == Role::Shared && shared.is_none() {
            self.anchor.cast();
        }
        let is_passed = shared.is_some() && passes;
        let flags = match role {
            _ if node.is_ours => FopenFlags::FOPEN_DIRECT_IO,
            _ if is_passed => FopenFlags::empty(),
            // Direct I/O goes before passthrough: a file that was renamed into a database is seen.
            _ if shared.is_some() => FopenFlags::FOPEN_DIRECT_IO,
            Role::Journal => FopenFlags::FOPEN_DIRECT_IO,
            // While the kernel waits for the end of a write that is cached, nobody reads what lies beside it.
            Role::Shared if is_lent => FopenFlags::FOPEN_DIRECT_IO,
            Role::Shared | Role::Plain => FopenFlags::FOPEN_KEEP_CACHE,
        };
        // Nothing is to be said of a close, where no locks go with it.
        let flags = if self.lending.is_some() { flags } else { flags | FopenFlags::FOPEN_NOFLUSH };
        let handle = self.handle();
        let file = Arc::new(file);
        if let Some(base) = base.as_ref().filter(|_| is_passed) {
            base.database.note_passed(handle, Arc::clone(&file));
        }
        let open = Open { file, node, role, base, is_own, is_lent, is_passed, _backing: shared.clone() };
        lock(&self.files).insert(handle, Arc::new(open));
        Entered { handle: FileHandle(handle), flags, backing: shared }
    }

    /// The kernel's way to a file that somebody has open.
    fn backing_of(&self, node: &Node) -> Option<Arc<BackingId>> {
        lock(&self.backings).get(&node.inode).and_then(Weak::upgrade)
    }

    /// The kernel's way to a file: one for all who have it open.
    fn backing(
        &self,
        node: &Node,
        file: &File,
        make: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.can_pass_through.load(Ordering::Relaxed) {
            return None;
        }
        let mut backings = lock(&self.backings);
        if let Some(there) = backings.get(&node.inode).and_then(Weak::upgrade) {
            return Some(there);
        }
        match make(file) {
            Ok(made) => {
                let made = Arc::new(made);
                backings.retain(|_, backing| backing.strong_count() > 0);
                backings.insert(node.inode, Arc::downgrade(&made));
                Some(made)
            }
            // For the moment.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE)) => None,
            Err(error) => {
                self.can_pass_through.store(false, Ordering::Relaxed);
                tracing::warn!("the kernel does not pass WAL files and journals through ({error}): commits are slower");
                None
            }
        }
    }

    /// Opened for reading and writing where that is possible: others may share it.
    /// Whoever writes is admitted until what is given beside the file is dropped: when everybody can see that the file is open.
    pub(super) fn open_node(
        &self,
        node: &Node,
        flags: OpenFlags,
        asker: Asker,
    ) -> io::Result<(File, Option<Admitted<'_>>)> {
        if node.is_taken() {
            // It is looked up anew by that.
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let wanted = OFlags::from_bits_truncate(flags.0 as u32);
        let more = wanted & OFlags::TRUNC;
        let is_to_write = wanted & OFlags::ACCMODE != OFlags::RDONLY || !more.is_empty();
        if node.is_read_only() && is_to_write {
            return Err(no_access());
        }
        let may_write =
            || asker.is_own || node.is_lock() || is_for_readers(&node.place().name) || self.may_lend(node, more);
        let admitted = if is_to_write { Some(self.writers.admit_if(may_write)?) } else { None };
        let opened = match node.open(OFlags::RDWR | more) {
            Err(error) if wanted & OFlags::ACCMODE == OFlags::RDONLY && error.raw_os_error() != Some(libc::ENOENT) => {
                node.open(OFlags::RDONLY | more)
            }
            opened => opened,
        };
        Ok((opened?, admitted))
    }
}
