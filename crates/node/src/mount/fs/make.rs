//! Makes files and folders, for whoever asked for them.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::{FileAttr, INodeNo, Request};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use super::{LOST_TO_CHOWN, Mirror, proc_path};
use crate::mount::door::is_own;
use crate::mount::nodes::Node;
use crate::mount::role::{Role, database_of, is_wal};
use crate::mount::writers::{Admitted, is_for_readers};

/// A file that was just made, by somebody who is admitted as long as this lives.
pub(super) struct Made<'a> {
    pub(super) admitted: Admitted<'a>,
    pub(super) file: File,
    pub(super) node: Arc<Node>,
    pub(super) attributes: FileAttr,
}

impl Mirror {
    pub(super) fn create_file(
        &self,
        request: &Request,
        place: (INodeNo, &OsStr),
        mode: Mode,
        flags: i32,
    ) -> io::Result<Made<'_>> {
        let (parent, name) = place;
        self.refuse_ours(parent, name)?;
        let is_lent = self.lending.is_some() && is_wal(name);
        let admitted = self.writers.admit_if(|| is_own(request.pid()) || is_for_readers(name) || is_lent)?;
        let folder = self.nodes.get(parent)?;
        let mut more = OFlags::from_bits_truncate(flags as u32) & (OFlags::EXCL | OFlags::TRUNC);
        if is_lent && self.writers.is_ours_alone() && !is_own(request.pid()) {
            // What is there is the database's.
            more.remove(OFlags::TRUNC);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        let file = File::from(rustix::fs::openat(&folder.fd, name, flags, mode)?);
        if self.is_root {
            let (uid, gid) = owner(request, &folder, name)?;
            rustix::fs::fchown(&file, Some(uid), gid)?;
            if mode.intersects(LOST_TO_CHOWN) {
                rustix::fs::fchmod(&file, mode)?;
            }
        }
        let (node, attributes) = self.nodes.look_up(parent, name)?;
        if attributes.size == 0 && Role::of(name) == Role::Plain {
            // Its number may have been that of a file that is gone.
            self.lines.of(node.inode).note_emptied();
        }
        Ok(Made { admitted, file, node, attributes })
    }

    /// Gives what was made to who asked for it, and tells the kernel of it.
    pub(super) fn made(&self, request: &Request, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let folder = self.nodes.get(parent)?;
        if self.is_root {
            let (uid, gid) = (Uid::from_raw(request.uid()), group(request, &folder)?);
            rustix::fs::chownat(&folder.fd, name, Some(uid), gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.nodes.look_up(parent, name).map(|(_, attributes)| attributes)
    }

    /// The same for a file, pipe or device of this mode.
    pub(super) fn made_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: Mode,
    ) -> io::Result<FileAttr> {
        let attributes = self.made(request, parent, name)?;
        if !self.is_root || !mode.intersects(LOST_TO_CHOWN) {
            return Ok(attributes);
        }
        let node = self.nodes.get(attributes.ino)?;
        rustix::fs::chmod(proc_path(&node), mode)?;
        self.nodes.attributes(&node)
    }
}

/// Who has a file that is made.
fn owner(request: &Request, folder: &Node, name: &OsStr) -> io::Result<(Uid, Option<Gid>)> {
    if let Some(database) = database_of(name)
        && is_own(request.pid())
        && let Ok(stat) = rustix::fs::statat(&folder.fd, database, AtFlags::SYMLINK_NOFOLLOW)
    {
        // Our SQLite gives it to the owner of the database, a moment later. Who opens a wal-index before that may only read it, and the
        // connection would write nothing any more.
        return Ok((Uid::from_raw(stat.st_uid), Some(Gid::from_raw(stat.st_gid))));
    }
    Ok((Uid::from_raw(request.uid()), group(request, folder)?))
}

/// The group of what is made in a folder: the one that made it has, unless the folder gives its own.
fn group(request: &Request, folder: &Node) -> io::Result<Option<Gid>> {
    let gives_its_own = Mode::from_raw_mode(rustix::fs::fstat(&folder.fd)?.st_mode).contains(Mode::SGID);
    Ok((!gives_its_own).then(|| Gid::from_raw(request.gid())))
}
