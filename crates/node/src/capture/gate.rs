//! The durability gate: commits of which the application is not told before they are where it wants them.
//!
//! ```text
//!   application ── fsync ──► mount ── Ticket ──► capture ── segment ──► store
//!        ▲                     │                    ▲                     │
//!        └────── answer ◄──────┴── Ticket::keep ────┴──── acknowledged ◄──┘
//! ```
//!
//! SQLite syncs a commit before anybody can see it: with `synchronous=FULL` the WAL before the wal-index moves, in rollback mode the database
//! before its journal goes. Whoever serves that fsync ([`crate::mount`]) sends a [`Ticket`] to the capture thread and answers when the ticket does.
//! Capture records the transaction as one that is **promised**: it is in the log and on its way to the store, and only what happens next says
//! whether it is a commit. It nearly always is. Where it is not (the writer died, or the fsync failed because the store took too long), all pages are
//! compared and what differs is one more transaction; the promised one stays in the history, although no reader of the database has seen it.

use std::fmt;

/// What became of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The store has everything that was committed or promised by then.
    Kept,
    /// Nobody will say.
    GivenUp,
}

/// Somebody waits until the store has what a database holds now.
pub struct Ticket(Option<Box<dyn FnOnce(Answer) + Send>>);

impl Ticket {
    /// One whose answer goes to `tell`, from any thread, which must not block.
    pub fn new(tell: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// The store has it.
    pub(super) fn keep(mut self) {
        if let Some(tell) = self.0.take() {
            tell(Answer::Kept);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(Answer::GivenUp);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_ticket_is_answered_once() {
        let (sender, answers) = mpsc::channel();
        let ticket = || {
            let sender = sender.clone();
            Ticket::new(move |answer| sender.send(answer).unwrap())
        };
        ticket().keep();
        drop(ticket());
        drop(sender);
        assert_eq!(answers.iter().collect::<Vec<_>>(), [Answer::Kept, Answer::GivenUp]);
    }
}
