//! Locks and writes where an application on a replica may write through the primary ([`crate::mount::lending`]).

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo, LockOwner, ReplyEmpty, ReplyLock, ReplyWrite};
use rhyolite_format::follow::FollowState;
use rustix::fs::{Mode, OFlags, openat};

use super::{Mirror, Open};
use crate::follow::replica::follow_state_name;
use crate::mount::database;
use crate::mount::lending::Asking;
use crate::mount::locks::{Bytes, Kind, Owner};
use crate::mount::nodes::Node;
use crate::mount::reports::database_of_lock;
use crate::mount::role::{Role, database_of, is_wal};

/// More than the state of a followed file has.
const STATE_BYTES_MAX: u64 = 64 << 10;

/// A request for a lock, as the kernel makes it.
pub(super) struct LockRequest {
    pub(super) handle: FileHandle,
    pub(super) owner: LockOwner,
    pub(super) bytes: Bytes,
    /// As in `struct flock`.
    pub(super) kind: i32,
    pub(super) pid: u32,
    pub(super) waits: bool,
}

fn kind_of(kind: i32) -> Option<Kind> {
    match kind {
        libc::F_RDLCK => Some(Kind::Read),
        libc::F_WRLCK => Some(Kind::Write),
        _ => None,
    }
}

impl Mirror {
    /// Says what would be in the way of a lock.
    pub(super) fn look_at_lock(&self, asked: &LockRequest, reply: ReplyLock) {
        let Some(lending) = &self.lending else { return reply.error(Errno::ENOSYS) };
        let open = match self.open_file(asked.handle) {
            Ok(open) => open,
            Err(error) => return reply.error(Errno::from(error)),
        };
        let Some(kind) = kind_of(asked.kind) else { return reply.error(Errno::EINVAL) };
        let found = lending.in_the_way(open.node.inode, asked.owner.0, &asked.bytes, kind);
        let (bytes, kind, pid) = match found {
            Some(lock) => {
                (lock.bytes, if lock.kind == Kind::Read { libc::F_RDLCK } else { libc::F_WRLCK }, lock.owner.pid)
            }
            None => (asked.bytes.clone(), libc::F_UNLCK, 0),
        };
        reply.locked(*bytes.start(), *bytes.end(), kind, pid);
    }

    /// Sets a lock, or takes it away.
    pub(super) fn set_lock(&self, asked: LockRequest, reply: ReplyEmpty) {
        let Some(lending) = &self.lending else { return reply.error(Errno::ENOSYS) };
        let open = match self.open_file(asked.handle) {
            Ok(open) => open,
            Err(error) => return reply.error(Errno::from(error)),
        };
        let LockRequest { handle, owner, bytes, kind, pid, waits } = asked;
        let Some(kind) = kind_of(kind) else {
            lending.unlock(&open, owner.0, &bytes);
            return reply.ok();
        };
        if open.node.is_taken() {
            // Whoever has opened the rest of the database since has other files of it than this one.
            return reply.error(Errno::EIO);
        }
        let owner = Owner { id: owner.0, handle: handle.0, pid };
        let of = Arc::clone(&open);
        lending
            .lock(Asking { open, owner, bytes, kind, waits, reply, database: None }, || self.database_path(&of.node));
    }

    /// The path of the database to which a WAL, a wal-index or `NAME-lock` belongs.
    fn database_path(&self, node: &Node) -> Option<PathBuf> {
        let path = self.nodes.path(node)?;
        let name = path.file_name()?;
        let name = if node.is_lock() { database_of_lock(name) } else { database_of(name) }?;
        Some(self.at.join(path.with_file_name(name)))
    }

    /// Whether somebody who is not the node may have a file open for writing on a replica: what it writes there is looked at then.
    pub(super) fn may_lend(&self, node: &Node, more: OFlags) -> bool {
        if self.lending.is_none() || !more.is_empty() || node.is_ours {
            return false;
        }
        let name = node.place().name;
        match Role::of(&name) {
            Role::Shared => is_wal(&name),
            Role::Journal => false,
            Role::Plain => {
                node.open(OFlags::RDONLY).is_ok_and(|file| database::is_wal(&file)) || self.is_to_be_in_wal_mode(node)
            }
        }
    }

    /// Whether the primary has a database in WAL mode, as a replica that was just restored knows before it goes over to that mode.
    fn is_to_be_in_wal_mode(&self, node: &Node) -> bool {
        let place = node.place();
        let state = || -> io::Result<Vec<u8>> {
            let folder = self.nodes.get(INodeNo(place.parent))?;
            let name = follow_state_name(&place.name);
            let mut bytes = Vec::new();
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(openat(&folder.fd, &name, flags, Mode::empty())?);
            file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        state().is_ok_and(|bytes| FollowState::decode(&bytes).is_ok_and(|state| state.after.page_one.is_wal()))
    }

    /// Takes in a write of somebody who is not the node to the WAL of a replica's database. Gives the reply back where it is no such thing.
    pub(super) fn lend_write(
        &self,
        open: &io::Result<Arc<Open>>,
        (offset, data): (u64, &[u8]),
        reply: ReplyWrite,
    ) -> Option<ReplyWrite> {
        let (Some(lending), Ok(open)) = (&self.lending, open) else { return Some(reply) };
        let is_meant = open.is_lent && !open.is_own && self.writers.is_ours_alone();
        let Some(database) = is_meant.then(|| self.database_path(&open.node)).flatten() else { return Some(reply) };
        lending.write(open, &database, (offset, data), reply);
        None
    }
}
