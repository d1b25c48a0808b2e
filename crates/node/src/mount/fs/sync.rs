//! A file was synced: who is to wait for that, waits.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{INodeNo, ReplyEmpty, Request};

use super::{Mirror, Open};
use crate::capture::commits::GateState;
use crate::mount::door;
use crate::mount::role::Role;

impl Mirror {
    /// A file was synced, which may be the last thing before a commit.
    pub(super) fn gate_sync(&self, request: &Request, open: &Open, reply: ReplyEmpty) {
        // On a replica the primary has committed it already.
        let waits = !self.writers.is_ours_alone() && !door::is_own(request.pid());
        let Some(gate) = self.gate.as_ref().filter(|_| waits) else { return reply.ok() };
        let place = open.node.place();
        let database = match place.name.as_bytes().strip_suffix(b"-wal").filter(|_| open.role == Role::Shared) {
            Some(base) => self
                .nodes
                .get(INodeNo(place.parent))
                .ok()
                .and_then(|folder| self.nodes.sibling(&folder, OsStr::from_bytes(base))),
            None => (open.role == Role::Plain && !open.node.is_ours).then(|| Arc::clone(&open.node)),
        };
        let Some(database) = database else { return reply.ok() };
        let line = self.lines.of(database.inode);
        let waits = match line.gate() {
            GateState::Open => false,
            GateState::Closed => true,
            // What was never captured begins with what it holds then.
            GateState::Unknown => {
                let place = database.place();
                door::was_captured(&self.nodes, &place) || door::was_followed(&self.nodes, &place)
            }
        };
        match open.role {
            _ if !waits => reply.ok(),
            Role::Shared => gate.hold_wal(&database, &line, open.node.inode, reply),
            Role::Journal | Role::Plain => gate.hold_database(&database, &open.file, request.pid(), reply),
        }
    }
}
