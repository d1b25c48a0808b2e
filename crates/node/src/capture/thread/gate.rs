//! Those who wait for the store, or other nodes, before their commit is told ([`crate::capture::gate`]).

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rhyolite_format::Txid;

use super::{CaptureThread, Known};
use crate::capture::commits::WalSync;
use crate::capture::gate::{Gated, Ticket};
use crate::capture::watch::beside;

impl CaptureThread {
    /// From here on commits wait, where they are to.
    pub(in crate::capture) fn close_gate(&mut self) {
        let line = self.line.as_ref().filter(|line| line.is_gated());
        self.attending = line.map(|line| Arc::clone(line).close_gate(self.channels.wake.clone()));
    }

    /// Whether commits are to wait. Then a lock that a writer holds while it does is not waited for.
    pub(in crate::capture) fn is_gated(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_gated())
    }

    /// Those who wait for what is in our WAL.
    pub(in crate::capture) fn take_tickets(&self) -> Vec<WalSync> {
        let Some(line) = self.line.as_ref().filter(|line| line.is_gated() && line.has_syncs()) else {
            return Vec::new();
        };
        let wal = std::fs::metadata(beside(&self.config.path, "-wal"));
        wal.map_or_else(|_| Vec::new(), |wal| line.take_syncs(wal.ino()))
    }

    /// They wait on, for the next look or the next session.
    pub(in crate::capture) fn put_back(&self, tickets: Vec<WalSync>) {
        // Without a line nothing was taken.
        if let Some(line) = &self.line {
            line.put_syncs_back(tickets);
        }
    }

    /// Nobody can say any more what becomes of that for which they wait.
    pub(in crate::capture) fn give_up_held(&mut self) {
        self.held.clear();
        self.held_beside = Arc::default();
    }

    /// Everything that they wait for is in the log: they are told when it is where it is to be, and where that is the store it is uploaded at once.
    pub(in crate::capture) fn hold(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        let Some(Known::Recorded(recorder)) = &self.known else { return };
        let pos = recorder.pos();
        if let Some(Gated::Nodes(teller)) = self.line.as_ref().and_then(|line| line.gated()) {
            let hold = |ticket| teller.hold(&self.status, pos.txid, ticket, &self.held_beside);
            return tickets.into_iter().for_each(hold);
        }
        self.held.extend(tickets.into_iter().map(|ticket| (pos, ticket)));
        self.sync_now |= !self.held.is_empty();
        self.answer_held();
    }

    /// Whether somebody waits. He holds the write lock then, and the kernel holds back every other sync of the WAL, so a checkpoint of ours would
    /// wait for him and he for us. All our checkpoints are made under the write lock therefore.
    pub(in crate::capture) fn is_waited_for(&self) -> bool {
        !self.held.is_empty()
            || Arc::weak_count(&self.held_beside) > 0
            || self.line.as_ref().is_some_and(|line| line.has_syncs())
    }

    /// Tells those whose commits the store has.
    pub(super) fn answer_held(&mut self) {
        let durable = self.durable.map(|pos| pos.txid);
        for (_, ticket) in self.held.extract_if(.., |(pos, _)| Some(pos.txid) <= durable) {
            ticket.keep();
        }
    }

    /// Counts commits after `before` that did not wait although they should have.
    pub(in crate::capture) fn note_ungated(&mut self, before: Txid) {
        let Some(Known::Recorded(recorder)) = self.known.as_ref().filter(|_| self.is_gated()) else { return };
        let count = recorder.pos().txid.get().saturating_sub(before.get());
        if count > 0 && self.status.look(|f| f.ungated) == 0 {
            let (place, flag) = match self.line.as_ref().and_then(|line| line.gated()) {
                Some(Gated::Nodes(_)) => ("other nodes", "--durability"),
                Some(Gated::Store) | None => ("the store", "--durability store"),
            };
            tracing::warn!(
                database = %self.config.path.display(),
                "a commit did not wait for {place}, although `{flag}` asks for it: its connection has a `synchronous` below FULL"
            );
        }
        self.status.update(|f| f.ungated += count);
    }
}
