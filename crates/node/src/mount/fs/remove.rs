//! Removes names, and notes what has another one.

use std::ffi::OsStr;
use std::io;

use fuser::INodeNo;
use rustix::fs::{AtFlags, OFlags};

use super::{Mirror, no_access};
use crate::capture::guard;
use crate::mount::role::Role;
use crate::mount::{door, groups};

impl Mirror {
    pub(super) fn remove(&self, pid: u32, parent: INodeNo, name: &OsStr, flags: AtFlags) -> io::Result<()> {
        self.refuse_ours(parent, name)?;
        let _admitted = self.writers.admit(pid)?;
        let folder = self.nodes.get(parent)?;
        let is_journal = Role::of(name) == Role::Journal;
        let base = is_journal.then(|| self.base(parent, name)).flatten();
        // Nothing in the folder changes while this is answered.
        let may_be_ours = is_journal && guard::rolls_back_any() && door::is_own(pid);
        if may_be_ours && !base.as_ref().is_some_and(|base| guard::is_rolled_back(base.inode)) {
            return Err(no_access());
        }
        if let Some(base) = &base {
            base.database.look_at_journal(|| base.open(OFlags::RDONLY));
        }
        let group = base.as_ref().and_then(|_| self.groups.of_journal(|| groups::open(&folder.fd, name)));
        rustix::fs::unlinkat(&folder.fd, name, flags)?;
        self.groups.note_removed(name);
        if let Some(base) = base {
            base.database.note_removed(group, || base.open(OFlags::RDONLY));
        }
        Ok(())
    }

    /// What has this name now came by a rename, or nothing has it any more.
    pub(super) fn note_moved(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        let folder = self.nodes.get(parent)?;
        self.nodes.note_moved(&folder, parent, name);
        if Role::of(name) == Role::Journal
            && let Some(base) = self.base(parent, name)
        {
            base.database.note_moved();
            if let Some(journal) = self.nodes.sibling(&folder, name) {
                self.look_at_journal(parent, name, &journal);
            }
        }
        Ok(())
    }
}
