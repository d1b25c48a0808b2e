//! The folder behind the mount as a file system: everything is passed on, and what concerns databases is noted on the way.
//!
//! | file | how it is opened | what is seen |
//! | --- | --- | --- |
//! | `-wal`, `-shm` | kernel passthrough, where the kernel has it and we may; otherwise as any other | open, truncate, unlink, fsync |
//! | `-journal` | kernel passthrough in the same way; otherwise direct I/O | truncate, unlink, fsync, close; with direct I/O every write as well |
//! | any other | cached by the kernel | every write and truncate |
//!
//! POSIX locks are not negotiated: the kernel keeps them. Where writes are forwarded they are, and the WAL is read and written by us, without a cache. No handler waits for anything but the file system behind it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType as Kind, Gid, Mode, OFlags, Timestamps, Uid};

use super::anchor::Anchor;
use super::bar::Bar;
use super::below::Place;
use super::database::Verdict;
use super::door::{Door, is_own};
use super::gate::Gate;
use super::groups::Groups;
use super::handover::{Handover, let_in};
use super::lag::Lag;
use super::lending::Lending;
use super::nodes::{Node, Nodes, is_hidden, mode, timestamp};
use super::operations::{Operation, count};
use super::reports::{self, Report};
use super::revoke::{Files, Revoker, Taken};
use super::role::{Role, base_of};
use super::unsynced::Unsynced;
use super::writers::{self, Writers};
use crate::capture::commits::CommitLines;
use crate::durability::Level;
use crate::forward::transparent;

mod enter;
mod folder;
mod lent;
mod make;
mod remove;
mod sync;

pub(super) use enter::Open;
use enter::{Asker, Entered};
use folder::OpenFolder;
use lent::LockRequest;
use make::Made;

/// How long the kernel may believe what it was told: every change comes through it.
const TTL: Duration = Duration::from_secs(3600);
/// Bytes of one write at most.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// What a file that is given to another user or group loses.
const LOST_TO_CHOWN: Mode = Mode::SUID.union(Mode::SGID);
/// Bytes of a journal's start that are looked at.
const JOURNAL_START: usize = 8;

/// What the kernel is told of a name that nothing has: the inode number 0.
const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// The file system.
#[derive(Debug)]
pub(super) struct Mirror {
    nodes: Arc<Nodes>,
    below: Place,
    lines: Arc<CommitLines>,
    anchor: Arc<Anchor>,
    pub(super) door: Arc<Mutex<Arc<Door>>>,
    /// Who may write.
    pub(super) writers: Arc<Writers>,
    pub(super) bar: Bar,
    pub(super) lag: Arc<Lag>,
    pub(super) taken: Arc<Taken>,
    handover: Handover,
    /// Where commits wait for the store, if they are to.
    gate: Option<Gate>,
    /// Where applications write on a replica, if they may.
    lending: Option<Lending>,
    /// Where it is mounted.
    at: PathBuf,
    groups: Groups,
    unsynced: Unsynced,
    files: Arc<Files>,
    folders: Mutex<HashMap<u64, Arc<OpenFolder>>>,
    backings: Mutex<HashMap<u64, std::sync::Weak<BackingId>>>,
    next_handle: AtomicU64,
    can_pass_through: AtomicBool,
    is_root: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn proc_path(node: &Node) -> String {
    format!("/proc/thread-self/fd/{}", node.fd.as_raw_fd())
}

impl Mirror {
    /// Mirrors `root`, where it is mounted over the folder `below`.
    pub(super) fn new(
        root: File,
        below: Place,
        (lines, anchor): (Arc<CommitLines>, Arc<Anchor>),
        (gate, writers): (Option<(Level, Duration)>, Writers),
        (at, requests): (&Path, Option<Sender<transparent::Request>>),
    ) -> io::Result<Self> {
        let writers = Arc::new(writers);
        let lending = requests.map(|requests| Lending::new(requests, Arc::clone(&writers))).transpose()?;
        Ok(Self {
            nodes: Arc::new(Nodes::new(root)?),
            below,
            lines,
            anchor,
            door: Arc::new(Mutex::new(Arc::new(Door::new()?))),
            writers,
            bar: Bar::default(),
            lag: Arc::default(),
            taken: Arc::default(),
            handover: Handover::default(),
            gate: gate.map(|(level, timeout)| Gate::new(level, timeout)).transpose()?,
            lending,
            at: at.to_owned(),
            groups: Groups::default(),
            unsynced: Unsynced::new()?,
            files: Arc::default(),
            folders: Mutex::default(),
            backings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            can_pass_through: AtomicBool::new(false),
            is_root: rustix::process::geteuid().is_root(),
        })
    }

    /// Takes files of this mount from others.
    pub(super) fn revoker(&self) -> Revoker {
        Revoker::new(Arc::clone(&self.nodes), Arc::clone(&self.files), Arc::clone(&self.taken))
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn open_file(&self, handle: FileHandle) -> io::Result<Arc<Open>> {
        let found = lock(&self.files).get(&handle.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn open_folder(&self, handle: FileHandle) -> io::Result<Arc<OpenFolder>> {
        let found = lock(&self.folders).get(&handle.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<(Arc<Node>, FileAttr)> {
        let found = self.nodes.look_up(parent, name);
        if found.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
            && let Some((of, report)) =
                Report::of_name(parent, name, &self.nodes, (&self.lines, &self.lag), self.lending.is_some())
        {
            return self.nodes.report(of, parent, name, report);
        }
        let (node, attributes) = found?;
        if attributes.kind == FileType::RegularFile && Role::of(name) == Role::Journal {
            self.look_at_journal(parent, name, &node);
        }
        Ok((node, attributes))
    }

    /// State folders, and what lies in them, are changed by us alone, behind the mount: whoever could put something else in their place
    /// would have us write there.
    fn refuse_ours(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        if self.is_ours(parent, name) { Err(no_access()) } else { Ok(()) }
    }

    fn is_ours(&self, parent: INodeNo, name: &OsStr) -> bool {
        is_hidden(name) || self.nodes.get(parent).is_ok_and(|folder| folder.is_ours)
    }

    /// A journal may be there from before the mount.
    fn look_at_journal(&self, parent: INodeNo, name: &OsStr, node: &Node) {
        let mut start = [0; JOURNAL_START];
        let Some(base) = self.base(parent, name) else { return };
        if node.open(OFlags::RDONLY).and_then(|file| file.read_exact_at(&mut start, 0)).is_ok() {
            base.database.note_journal(&start, || base.open(OFlags::RDONLY));
        }
    }

    /// The database of a journal, if the kernel knows it.
    fn base(&self, parent: INodeNo, journal: &OsStr) -> Option<Arc<Node>> {
        let folder = self.nodes.get(parent).ok()?;
        self.nodes.sibling(&folder, base_of(journal)?)
    }

    /// The path of a database that who opens it has to wait for.
    fn barred(&self, node: &Node) -> Option<PathBuf> {
        let path = if self.bar.is_idle() { None } else { self.nodes.path(node) };
        path.filter(|path| self.bar.is_closed(path))
    }

    /// Notes a write to a database, or refuses it.
    fn check_write(&self, open: &Open, offset: u64, len: u64, thread: u32) -> io::Result<()> {
        match open.node.database.note_write(&open.file, offset, len, thread) {
            Verdict::Allowed => Ok(()),
            Verdict::Unsynced => {
                self.unsynced.watch(Arc::clone(&open.node));
                Ok(())
            }
            Verdict::Unjournaled => Err(refuse_unjournaled(&open.node)),
        }
    }

    fn write_file(&self, open: &Open, offset: u64, data: &[u8], (thread, flags): (u32, WriteFlags)) -> io::Result<()> {
        // What the kernel writes back may come by any handle, and is of somebody who has mapped the file.
        let is_own = open.is_own && !flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let _admitted = self.writers.admit_if(|| is_own || open.is_for_readers())?;
        if open.role == Role::Plain {
            self.check_write(open, offset, data.len() as u64, thread)?;
        }
        open.file.write_all_at(data, offset)?;
        if offset == 0
            && data.len() >= JOURNAL_START
            && let Some(base) = &open.base
        {
            base.database.note_journal_header(data, || base.open(OFlags::RDONLY));
        }
        Ok(())
    }

    /// Sets a length. What it means for a database is noted after it was done.
    fn truncate(&self, node: &Node, size: u64, handle: Option<FileHandle>) -> io::Result<()> {
        let place = node.place();
        let cut = |file: &File| -> io::Result<()> {
            let is_plain = Role::of(&place.name) == Role::Plain;
            if is_plain && node.database.may_cut(file, size)? == Verdict::Unjournaled {
                return Err(refuse_unjournaled(node));
            }
            file.set_len(size)
        };
        let is_journal = Role::of(&place.name) == Role::Journal;
        let ends = is_journal && size == 0;
        let base = is_journal.then(|| self.base(INodeNo(place.parent), &place.name)).flatten();
        if let Some(base) = &base {
            base.database.look_at_journal(|| base.open(OFlags::RDONLY));
        }
        let group = if ends { self.groups.of_journal(|| node.open(OFlags::RDONLY | OFlags::NONBLOCK)) } else { None };
        match handle.and_then(|handle| self.open_file(handle).ok()) {
            Some(open) => cut(&open.file)?,
            None => cut(&node.open(OFlags::RDWR)?)?,
        }
        match Role::of(&place.name) {
            Role::Journal if ends => {
                if let Some(base) = base {
                    base.database.note_cut(group, || base.open(OFlags::RDONLY));
                }
            }
            Role::Plain => node.database.note_truncated(|| node.open(OFlags::RDONLY)),
            Role::Journal | Role::Shared => {}
        }
        Ok(())
    }
}

/// It could not be taken back, and its end would not be seen.
fn refuse_unjournaled(node: &Node) -> io::Error {
    tracing::error!(
        database = %Path::new(&node.place().name).display(),
        "refused a write without a journal: journal_mode MEMORY and OFF are not supported, nor is a copy over a database"
    );
    io::Error::from_raw_os_error(libc::EIO)
}

fn no_access() -> io::Error {
    io::Error::from_raw_os_error(libc::EACCES)
}

/// How long the kernel may believe what it is told of a file.
fn ttl(node: &Node) -> &'static Duration {
    if node.is_ours { &Duration::ZERO } else { &TTL }
}

/// Answers with what came of it.
macro_rules! answer {
    ($reply:ident, $done:expr, $value:pat => $good:expr) => {
        match $done {
            Ok($value) => $good,
            Err(error) => $reply.error(Errno::from(io::Error::from(error))),
        }
    };
}

impl Filesystem for Mirror {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Nobody gets an answer from this mount before this one.
        self.below.check()?;
        let can = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(2).is_ok();
        self.can_pass_through.store(can, Ordering::Relaxed);
        if !can {
            tracing::warn!("the kernel does not pass WAL files through: commits in WAL mode are slower");
        }
        if self.lending.is_some() && config.add_capabilities(InitFlags::FUSE_POSIX_LOCKS).is_err() {
            return Err(io::Error::other("the kernel does not ask for locks"));
        }
        // It does so for root alone.
        if !(can && self.is_root) {
            self.anchor.cast();
        }
        // The kernel takes less where it must.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        count(Operation::Lookup);
        if let Some(node) = self.taken.tell(request.pid(), parent, name) {
            // To the kernel it is another file with the number of the one before, which is dead by that.
            return answer!(reply, self.nodes.tell(&node), attributes => {
                reply.entry(&Duration::ZERO, &attributes, Generation(1));
            });
        }
        match self.look_up(parent, name) {
            Ok((_, attributes)) if self.taken.is_awaited(parent, name) => {
                reply.entry(&Duration::ZERO, &attributes, Generation(0));
            }
            Ok((node, attributes)) => reply.entry(ttl(&node), &attributes, Generation(0)),
            // The kernel remembers that too: SQLite asks for a journal at every transaction.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOENT)
                    && !self.is_ours(parent, name)
                    && !reports::may_mean_one(name) =>
            {
                reply.entry(&TTL, &ABSENT, Generation(0))
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        count(Operation::Forget);
        self.nodes.forget(inode, lookups);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        count(Operation::GetAttributes);
        let found = self.nodes.get(inode).and_then(|node| Ok((self.nodes.attributes(&node)?, node)));
        answer!(reply, found, (attributes, node) => reply.attr(ttl(&node), &attributes));
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        count(Operation::SetAttributes);
        let set = || -> io::Result<FileAttr> {
            let node = self.nodes.get(inode)?;
            if node.is_ours {
                return Err(no_access());
            }
            let is_for_readers = writers::is_for_readers(&node.place().name);
            let is_size_alone = [uid, gid, mode].iter().all(Option::is_none) && atime.is_none();
            let _admitted = self.writers.admit_if(|| is_own(request.pid()) || (is_for_readers && is_size_alone))?;
            if uid.is_some() || gid.is_some() {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&node.fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            if let Some(mode) = mode {
                rustix::fs::chmod(proc_path(&node), Mode::from_bits_truncate(mode & 0o7777))?;
            }
            if let Some(size) = size {
                self.truncate(&node, size, handle)?;
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: timestamp(atime), last_modification: timestamp(mtime) };
                rustix::fs::utimensat(CWD, proc_path(&node), &times, AtFlags::empty())?;
            }
            self.nodes.attributes(&node)
        };
        answer!(reply, set(), attributes => reply.attr(&TTL, &attributes));
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        count(Operation::ReadLink);
        let read = || -> io::Result<_> { Ok(rustix::fs::readlinkat(&self.nodes.get(inode)?.fd, "", Vec::new())?) };
        answer!(reply, read(), target => reply.data(target.to_bytes()));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        bits: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        count(Operation::MakeNode);
        let make = || -> io::Result<FileAttr> {
            self.refuse_ours(parent, name)?;
            let _admitted = self.writers.admit(request.pid())?;
            let folder = self.nodes.get(parent)?;
            let kind = Kind::from_raw_mode(bits);
            let mode = mode(bits, umask);
            rustix::fs::mknodat(&folder.fd, name, kind, mode, u64::from(rdev))?;
            self.made_file(request, parent, name, mode)
        };
        answer!(reply, make(), attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, bits: u32, umask: u32, reply: ReplyEntry) {
        count(Operation::MakeFolder);
        let make = || -> io::Result<FileAttr> {
            self.refuse_ours(parent, name)?;
            let _admitted = self.writers.admit(request.pid())?;
            rustix::fs::mkdirat(&self.nodes.get(parent)?.fd, name, mode(bits, umask))?;
            self.made(request, parent, name)
        };
        answer!(reply, make(), attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        count(Operation::Unlink);
        answer!(reply, self.remove(request.pid(), parent, name, AtFlags::empty()), () => reply.ok());
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        count(Operation::RemoveFolder);
        answer!(reply, self.remove(request.pid(), parent, name, AtFlags::REMOVEDIR), () => reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        count(Operation::SymbolicLink);
        let make = || -> io::Result<FileAttr> {
            self.refuse_ours(parent, name)?;
            let _admitted = self.writers.admit(request.pid())?;
            rustix::fs::symlinkat(target, &self.nodes.get(parent)?.fd, name)?;
            self.made(request, parent, name)
        };
        answer!(reply, make(), attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        count(Operation::Rename);
        let rename = || -> io::Result<()> {
            self.refuse_ours(parent, name)?;
            self.refuse_ours(new_parent, new_name)?;
            let _admitted = self.writers.admit(request.pid())?;
            let (from, to) = (self.nodes.get(parent)?, self.nodes.get(new_parent)?);
            let flags = rustix::fs::RenameFlags::from_bits_truncate(flags.bits());
            rustix::fs::renameat_with(&from.fd, name, &to.fd, new_name, flags)?;
            self.note_moved(parent, name)?;
            self.note_moved(new_parent, new_name)
        };
        answer!(reply, rename(), () => reply.ok());
    }

    fn link(&self, request: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        count(Operation::Link);
        let link = || -> io::Result<FileAttr> {
            self.refuse_ours(new_parent, new_name)?;
            let _admitted = self.writers.admit(request.pid())?;
            let (node, folder) = (self.nodes.get(inode)?, self.nodes.get(new_parent)?);
            if node.is_ours {
                return Err(no_access());
            }
            rustix::fs::linkat(CWD, proc_path(&node), &folder.fd, new_name, AtFlags::SYMLINK_FOLLOW)?;
            self.nodes.look_up(new_parent, new_name).map(|(_, attributes)| attributes)
        };
        answer!(reply, link(), attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        count(Operation::Open);
        let asker = Asker { is_own: is_own(request.pid()) };
        let opened = self.nodes.get(inode).and_then(|node| Ok((self.open_node(&node, flags, asker)?, node)));
        answer!(reply, opened, ((file, admitted), node) => {
            let is_database = Role::of(&node.place().name) == Role::Plain && !node.is_ours;
            let waits_for = if is_database && !self.writers.is_ours_alone() {
                lock(&self.door).closed_for(request.pid(), &node, &self.nodes, &self.lines)
            } else {
                None
            };
            let barred = if is_database && !asker.is_own { self.barred(&node) } else { None };
            let entered = self.enter(file, Arc::clone(&node), asker, |file| reply.open_backing(file));
            drop(admitted);
            let Entered { handle, flags, backing } = entered;
            let after = self.handover.opened(request.pid(), &node, &self.nodes, handle);
            match (barred, waits_for, after) {
                (Some(path), _, _) => self.bar.wait(path, handle, flags, backing, reply),
                (_, Some(line), _) if backing.is_none() => lock(&self.door).wait(line, handle, flags, reply),
                (_, _, Some(opened)) => self.handover.wait(opened, handle, flags, backing, reply),
                (_, _, None) => let_in(handle, flags, backing.as_deref(), reply),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        bits: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        count(Operation::Create);
        let made = self.create_file(request, (parent, name), mode(bits, umask), flags);
        let asker = Asker { is_own: is_own(request.pid()) };
        answer!(reply, made, Made { admitted, file, node, attributes } => {
            let entered = self.enter(file, Arc::clone(&node), asker, |file| reply.open_backing(file));
            drop(admitted);
            // Nobody holds a file that was just made.
            let _ = self.handover.opened(request.pid(), &node, &self.nodes, entered.handle);
            let generation = Generation(0);
            match &entered.backing {
                Some(backing) => {
                    reply.created_passthrough(&TTL, &attributes, generation, entered.handle, entered.flags, backing);
                }
                None => reply.created(&TTL, &attributes, generation, entered.handle, entered.flags),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        count(Operation::Read);
        let read = || -> io::Result<Vec<u8>> {
            let open = self.open_file(handle)?;
            let mut data = vec![0; size as usize];
            let mut filled = 0;
            while filled < data.len() {
                match open.file.read_at(&mut data[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            data.truncate(filled);
            Ok(data)
        };
        answer!(reply, read(), data => reply.data(&data));
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        count(Operation::Write);
        let (thread, open) = (request.pid(), self.open_file(handle));
        let Some(reply) = self.lend_write(&open, (offset, data), reply) else { return };
        let written = open.and_then(|open| self.write_file(&open, offset, data, (thread, flags)));
        answer!(reply, written, () => reply.written(u32::try_from(data.len()).expect("bounded by the session")));
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        count(Operation::Flush);
        if let Some(lending) = &self.lending {
            if let Ok(open) = self.open_file(handle) {
                lending.flushed(&open, owner.0);
            }
            return reply.ok();
        }
        // A kernel that does not know `FOPEN_NOFLUSH` asks no more after this.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        count(Operation::Release);
        let closed = lock(&self.files).remove(&handle.0);
        if let (Some(lending), Some(open)) = (&self.lending, &closed) {
            lending.closed(open, handle.0);
        }
        if let Some(open) = &closed
            && let Some(base) = open.base.as_ref().filter(|_| open.is_passed)
        {
            base.database.note_closed(handle.0, || base.open(OFlags::RDONLY));
        }
        drop(closed);
        self.handover.closed(handle);
        reply.ok();
    }

    fn fsync(&self, request: &Request, _: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        count(Operation::Sync);
        let synced = self.open_file(handle).and_then(|open| {
            if let Some(base) = open.base.as_ref().filter(|_| open.is_passed) {
                base.database.look_at_journal(|| base.open(OFlags::RDONLY));
            }
            match datasync {
                true => open.file.sync_data().map(|()| open),
                false => open.file.sync_all().map(|()| open),
            }
        });
        answer!(reply, synced, open => self.gate_sync(request, &open, reply));
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        count(Operation::GetLock);
        self.look_at_lock(&LockRequest { handle, owner, bytes: start..=end, kind, pid, waits: false }, reply);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        count(Operation::SetLock);
        self.set_lock(LockRequest { handle, owner, bytes: start..=end, kind, pid, waits }, reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        count(Operation::SyncFolder);
        answer!(reply, self.open_folder(handle).and_then(|folder| folder.sync()), () => reply.ok());
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        count(Operation::OpenFolder);
        let opened = self.nodes.get(inode).and_then(|node| node.open(OFlags::RDONLY | OFlags::DIRECTORY));
        answer!(reply, opened, folder => {
            let handle = self.handle();
            lock(&self.folders).insert(handle, Arc::new(OpenFolder::new(folder)));
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        count(Operation::ReadFolder);
        answer!(reply, self.open_folder(handle).and_then(|folder| folder.read(offset)), listed => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            for (index, (inode, kind, name)) in listed.iter().enumerate().skip(start) {
                if reply.add(INodeNo(*inode), index as u64 + 1, *kind, OsStr::from_bytes(name)) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        count(Operation::ReleaseFolder);
        lock(&self.folders).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, request: &Request, inode: INodeNo, reply: ReplyStatfs) {
        count(Operation::StatFileSystem);
        let Some(reply) = self.anchor.hold(request.pid(), reply) else { return };
        let found = || -> io::Result<_> { Ok(rustix::fs::fstatvfs(self.nodes.get(inode)?.fd.as_fd())?) };
        answer!(reply, found(), s => {
            let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            let (size, fragment, name) = (short(s.f_bsize), short(s.f_frsize), short(s.f_namemax));
            reply.statfs(s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, size, name, fragment);
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        count(Operation::Allocate);
        let allocate = || -> io::Result<()> {
            let open = self.open_file(handle)?;
            let _admitted = self.writers.admit_if(|| open.is_own || open.is_for_readers())?;
            let flags = FallocateFlags::from_bits_retain(mode as u32);
            // Holes and zeros are writes; more room alone is none.
            let writes = !FallocateFlags::KEEP_SIZE.contains(flags);
            if writes && open.role == Role::Plain {
                self.check_write(&open, offset, length, request.pid())?;
            }
            rustix::fs::fallocate(&open.file, flags, offset, length)?;
            if !writes && open.role == Role::Plain {
                open.node.database.note_truncated(|| open.node.open(OFlags::RDONLY));
            }
            Ok(())
        };
        answer!(reply, allocate(), () => reply.ok());
    }
}
