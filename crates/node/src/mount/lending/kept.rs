//! Byte 72 of `NAME-lock`, by which LiteFS's libraries ask to be the only one that writes: who has it keeps the primary's lock for more than one transaction.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::Instant;

use fuser::Errno;

use super::super::locks::Kind;
use super::{Asking, Event, Keeper, NOBODY, Shared, lock, refused};
use crate::forward::transparent::{Refusal, Tell, What};

/// The byte.
const HALT: u64 = 72;

/// Who has the byte of which database: the number of its `NAME-lock`, and the owner.
pub(super) type Keepers = Mutex<HashMap<PathBuf, (u64, u64)>>;

/// Whether somebody asks for the byte.
pub(super) fn is_asked_for(asking: &Asking) -> bool {
    asking.open.node.is_lock() && asking.bytes.contains(&HALT)
}

impl Shared {
    /// Somebody has a lock, and is told; he who has byte 72 when the primary's lock is had as well.
    pub(super) fn have(&self, asking: Asking, events: &Sender<Event>, until: Instant) {
        let is_kept = asking.open.node.is_lock() && asking.kind == Kind::Write;
        let Some(database) = asking.database.clone().filter(|_| is_kept) else { return asking.reply.ok() };
        let events = events.clone();
        let answer = move |answer: Option<_>| {
            let answer = answer.unwrap_or_else(|| Err(Refusal::Later(NOBODY.to_owned())));
            let _ = events.send(Event::Kept { asking, until, answer });
        };
        self.ask(database, What::Keep(Tell::new(answer)));
    }

    fn has_kept(&self, file: u64, owner: u64) -> bool {
        self.locks.is_written_by(file, owner, HALT)
    }

    /// Gives back what was borrowed for those who have byte 72 of this file no more.
    pub(super) fn let_go(&self, file: u64) {
        let mut gone = Vec::new();
        lock(&self.keepers).retain(|database, (kept, owner)| {
            let stays = *kept != file || self.has_kept(*kept, *owner);
            if !stays {
                gone.push(database.clone());
            }
            stays
        });
        gone.into_iter().for_each(|database| self.ask(database, What::LetGo));
    }
}

impl Keeper {
    /// The primary was asked for the lock of somebody who has the byte.
    pub(super) fn kept(&mut self, asking: Asking, until: Instant, answer: Result<(), Refusal>) {
        let (file, owner) = (asking.open.node.inode, asking.owner.id);
        let Some(database) = asking.database.clone() else { return asking.reply.error(Errno::EIO) };
        let is_had = self.shared.has_kept(file, owner);
        match answer {
            Ok(()) if is_had => {
                lock(&self.shared.keepers).insert(database, (file, owner));
                // It may have gone just before that was noted.
                self.shared.let_go(file);
                asking.reply.ok();
            }
            Err(Refusal::Later(_)) if is_had && asking.waits && Instant::now() < until => {
                self.later.push(Event::KeepAgain(asking, until));
            }
            Ok(()) => {
                self.shared.ask(database, What::LetGo);
                asking.reply.error(refused());
            }
            Err(Refusal::Later(why) | Refusal::Never(why)) => {
                tracing::warn!(database = %database.display(), "its write lock cannot be borrowed: {why}");
                self.shared.locks.clear(file, owner, &(HALT..=HALT));
                asking.reply.error(refused());
            }
        }
    }
}
