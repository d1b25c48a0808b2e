//! The durability gate: commits of which the application is not told before they are where it wants them: in the store, or on other nodes.
//!
//! ```text
//!   application ── fsync ──► mount ── Ticket ──► capture ── segment ──► store
//!        ▲                     │                    ▲                     │
//!        └────── answer ◄──────┴── Ticket::keep ────┴──── acknowledged ◄──┘
//! ```
//!
//! On a node the answer comes from a task beside ([`tell_held`]), which asks what other nodes have.
//!
//! SQLite syncs a commit before anybody can see it: with `synchronous=FULL` the WAL before the wal-index moves, in rollback mode the database
//! before its journal goes. Whoever serves that fsync ([`crate::mount`]) sends a [`Ticket`] to the capture thread and answers when the ticket does.
//! Capture records the transaction as one that is **promised**: it is in the log and on its way to the store, and only what happens next says
//! whether it is a commit. It nearly always is. Where it is not (the writer died, or the fsync failed because the store took too long), all pages are
//! compared and what differs is one more transaction; the promised one stays in the history, although no reader of the database has seen it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rhyolite_format::Txid;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::status::{DatabaseStatus, StatusBoard};

/// How often it is looked whether somebody still has to be told.
const LOOK: Duration = Duration::from_millis(20);

/// What became of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everything that was committed or promised by then is where it was to be.
    Kept,
    /// Nobody will say.
    GivenUp,
}

/// Somebody waits until what a database holds now is where he wants it.
pub struct Ticket(Option<Box<dyn FnOnce(Answer) + Send>>);

impl Ticket {
    /// One whose answer goes to `tell`, from any thread, which must not block.
    pub fn new(tell: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// It is there.
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

/// Where commits are to be before the application is told of them.
#[derive(Clone, Debug)]
pub enum Gated {
    /// In the store.
    Store,
    /// On as many other nodes as count, or in the store: somebody is asked who knows.
    Nodes(Teller),
}

/// The way to the task that knows what other nodes have.
#[derive(Clone, Debug)]
pub struct Teller {
    held: UnboundedSender<Held>,
    timeout: Duration,
}

/// Somebody who waits until other nodes have a commit. There is one at most for each database, or as many as sync it at the same time.
#[derive(Debug)]
pub struct Held {
    status: Arc<DatabaseStatus>,
    txid: Txid,
    ticket: Ticket,
    until: Instant,
    /// What is said of the commit's number is said of this history for as long as this lives.
    life: Weak<()>,
}

impl Teller {
    /// Nobody is waited for longer than `timeout`. The other end is for [`tell_held`].
    pub fn new(timeout: Duration) -> (Self, UnboundedReceiver<Held>) {
        let (held, come) = unbounded_channel();
        (Self { held, timeout }, come)
    }

    /// Has somebody told when other nodes have a commit of a history that goes on while `life` does.
    pub(super) fn hold(&self, status: &Arc<DatabaseStatus>, txid: Txid, ticket: Ticket, life: &Arc<()>) {
        let (status, until) = (Arc::clone(status), Instant::now() + self.timeout);
        // Where nobody tells any more the ticket goes, which is an answer.
        let _ = self.held.send(Held { status, txid, ticket, until, life: Arc::downgrade(life) });
    }
}

impl Held {
    async fn told(self, board: Arc<StatusBoard>) {
        while Instant::now() < self.until {
            let safe = board.witnesses.until_safe(&self.status, self.txid);
            let safe = tokio::time::timeout(LOOK, safe).await;
            // Looked at after it was found safe: of a history that has begun anew since then that says nothing.
            if self.life.strong_count() == 0 {
                return;
            }
            if safe.is_ok() {
                return self.ticket.keep();
            }
        }
    }
}

/// Tells those who wait for other nodes, until nobody can come any more.
pub async fn tell_held(mut come: UnboundedReceiver<Held>, board: Arc<StatusBoard>) {
    while let Some(held) = come.recv().await {
        tokio::spawn(held.told(Arc::clone(&board)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rhyolite_format::{Checksum, Pos};

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

    /// What becomes of somebody who waits for commit 5 of a database of which the store has all up to this one, when the history begins anew or goes on.
    async fn told(durable: u64, goes_on: bool) -> Answer {
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), "/m".into(), "./backup".into());
        let pos = |txid| Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid) };
        status.update(|f| f.durable = Some(pos(durable)));
        let (teller, come) = Teller::new(Duration::from_millis(100));
        let (sender, answers) = mpsc::channel();
        let life = Arc::default();
        let ticket = Ticket::new(move |answer| sender.send(answer).unwrap());
        teller.hold(&status, pos(5).txid, ticket, &life);
        let life = goes_on.then_some(life);
        drop(teller);
        tell_held(come, board).await;
        let answer = tokio::task::spawn_blocking(move || answers.recv().unwrap()).await.unwrap();
        drop(life);
        answer
    }

    #[tokio::test]
    async fn only_a_history_that_goes_on_says_something_of_a_commit() {
        assert_eq!(told(5, true).await, Answer::Kept);
        assert_eq!(told(4, true).await, Answer::GivenUp);
        assert_eq!(told(9, false).await, Answer::GivenUp);
    }
}
