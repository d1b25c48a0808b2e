//! The primary's end: locks that are lent, and what is committed under them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::{Epoch, Lineage, Pos};
use rhyolite_logic::lender::{Asked, ID_BYTES_MAX, Lender, Outcome, Write};
use rhyolite_writer::World;
use rhyolite_writer::lease_keeper::LeaseHandle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Granted;
use super::holder::{Failed, Holder, Untaken};
use super::lent;
use crate::capture::thread::Upload;
use crate::status::{DatabaseStatus, StatusBoard};
use crate::supervise::control::{Command, Synced};
use crate::world::RealWorld;

/// How long other writers are waited for at a time: less than who ends the role waits for it.
const TAKE_MAX: Duration = Duration::from_secs(1);
/// Time between two looks whether they have ended.
const SETTLE_LOOK: Duration = Duration::from_millis(2);
/// How often somebody who waits for a lock looks at least.
const AGAIN: Duration = Duration::from_millis(20);
/// How long capture may take to see what was committed before the lock was taken, or under it.
const CAPTURE_MAX: Duration = Duration::from_secs(10);
/// How long commits that have begun are waited for when the role ends.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Whoever may lend: a primary.
#[derive(Clone, Debug)]
struct Primary {
    lease: LeaseHandle,
    commands: mpsc::Sender<Command>,
}

/// A lock that is held.
#[derive(Debug)]
struct Held {
    holder: Holder,
    primary: Primary,
    status: Arc<DatabaseStatus>,
    lineage: Lineage,
    epoch: Epoch,
    pos: Pos,
}

/// The locks of all databases of this node.
#[derive(Debug, Default)]
pub struct Grants {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    lender: Lender,
    primary: Option<Primary>,
    /// How often nothing was lent any more.
    closings: u64,
    held: HashMap<String, Arc<Held>>,
}

/// Why a request is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Somebody else has the lock, or it is being taken: worth another try.
    Busy(String),
    /// It is over, or cannot be.
    Not(String),
    /// Nobody knows this id.
    Unknown,
}

impl Grants {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node is the primary from here on, under this lease, and captures by these commands.
    pub(crate) fn open(&self, lease: LeaseHandle, commands: mpsc::Sender<Command>) {
        let mut inner = self.lock();
        inner.primary = Some(Primary { lease, commands });
        inner.lender.open();
    }

    /// It is not any more: locks go back at once.
    pub(crate) fn close(&self) {
        {
            let mut inner = self.lock();
            inner.primary = None;
            inner.closings += 1;
            let ended = inner.lender.close(RealWorld.now());
            ended.iter().for_each(|id| drop(inner.held.remove(id)));
        }
        self.changed.send_replace(());
    }

    /// Ends when nothing is lent any more, as it was not for so many times before.
    async fn closed(&self, closings: u64) {
        let mut changed = self.changed.subscribe();
        // The sender lives as long as this.
        while self.lock().closings == closings && changed.changed().await.is_ok() {}
    }

    /// Waits until no commit is under way any more, and no connection is left, for a moment.
    pub(crate) async fn settled(&self) {
        let settled = async {
            while !self.lock().held.is_empty() || lent::is_any() {
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        if tokio::time::timeout(CLOSE_MAX, settled).await.is_err() {
            tracing::warn!("a forwarded write is still being committed at the end of the role");
        }
    }

    /// Lends the lock of a database that is captured here to `id`, or lends it for longer. Waits for `wait` at most.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn ask(
        board: &Arc<StatusBoard>,
        (status, name): (Arc<DatabaseStatus>, &str),
        id: &str,
        ttl: Duration,
        wait: Duration,
    ) -> Result<Granted, Refused> {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(Refused::Not(format!("an id has 1 to {ID_BYTES_MAX} bytes")));
        }
        let deadline = Instant::now() + wait;
        loop {
            let mut changed = board.grants.changed.subscribe();
            let asked = board.grants.lock().lender.ask(id, name, ttl, RealWorld.now());
            let why = match &asked {
                Asked::Held { pos, until } => {
                    let (pos, until) = (*pos, *until);
                    let lineage = board.grants.lock().held.get(id).map(|held| held.lineage);
                    let lineage = lineage.ok_or_else(|| Refused::Not("it was given back".to_owned()))?;
                    let ttl_ms = u64::try_from(RealWorld.now().until(until).as_millis()).unwrap_or(u64::MAX);
                    return Ok(Granted { lineage, pos, ttl_ms });
                }
                Asked::Take => {
                    tokio::spawn(take(Arc::clone(board), Arc::clone(&status), id.to_owned(), wait));
                    continue;
                }
                Asked::Wait => "its write lock is being taken",
                Asked::Taken => "another node has borrowed its write lock",
                Asked::Over(outcome) => return Err(Refused::Not(text(outcome.clone()))),
                Asked::Closed => return Err(Refused::Not("this node is not the primary".to_owned())),
            };
            if Instant::now() >= deadline {
                if asked == Asked::Wait {
                    // Nobody would hear that it is held.
                    board.grants.give_back(id);
                }
                return Err(Refused::Busy(format!("{name}: {why}")));
            }
            // That a database was left to others for long enough is no change.
            let _ = tokio::time::timeout_at(deadline.min(Instant::now() + AGAIN), changed.changed()).await;
        }
    }

    /// Gives a lock back without a commit.
    pub fn give_back(&self, id: &str) {
        {
            let mut inner = self.lock();
            if inner.lender.give_back(id, RealWorld.now()) {
                inner.held.remove(id);
            }
        }
        self.changed.send_replace(());
    }

    /// Commits an LTX file under the lock that `id` has, or says what has become of it before.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub async fn write(board: &Arc<StatusBoard>, id: &str, body: Bytes) -> Result<Outcome, Refused> {
        let mut body = Some(body);
        loop {
            let mut changed = board.grants.changed.subscribe();
            let write = {
                let mut inner = board.grants.lock();
                let write = inner.lender.begin_write(id, RealWorld.now());
                if write == Write::Begin {
                    let held = Arc::clone(inner.held.get(id).expect("a lock that is held"));
                    let (board, id) = (Arc::clone(board), id.to_owned());
                    let body = body.take().expect("a commit begins once");
                    // Whoever has asked may go away: it is ended all the same.
                    tokio::spawn(async move {
                        let committing = tokio::spawn(async move { commit(&held, body).await });
                        let outcome = committing.await.unwrap_or_else(|e| Outcome::Unknown(e.to_string()));
                        board.grants.end(&id, outcome);
                    });
                }
                write
            };
            match write {
                Write::Over(outcome) => return Ok(outcome),
                Write::Unknown => return Err(Refused::Unknown),
                // The sender lives as long as the board.
                Write::Begin | Write::Wait => drop(changed.changed().await),
            }
        }
    }

    fn end(&self, id: &str, outcome: Outcome) {
        {
            let mut inner = self.lock();
            inner.lender.ended(id, outcome, RealWorld.now());
            inner.held.remove(id);
        }
        self.changed.send_replace(());
    }

    /// Lets go of what was lent for long enough. Gives when to look again, as long as `id` has its lock.
    fn expire(&self, id: &str) -> Option<Duration> {
        let (ended, due) = {
            let mut inner = self.lock();
            let ended = inner.lender.expire(RealWorld.now());
            for id in &ended {
                tracing::warn!("a replica has not come back in time: the write lock that it had borrowed goes back");
                inner.held.remove(id);
            }
            let due = inner.lender.poll_timeout().map(|due| RealWorld.now().until(due));
            (ended, due.filter(|_| inner.held.contains_key(id)))
        };
        if !ended.is_empty() {
            self.changed.send_replace(());
        }
        due
    }
}

fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Committed(txid) => format!("it was committed as transaction {txid}"),
        Outcome::Ended(why) | Outcome::Unknown(why) => why,
    }
}

/// Takes the lock of a database for `id`, and lets go of it when its time is over.
async fn take(board: Arc<StatusBoard>, status: Arc<DatabaseStatus>, id: String, wait: Duration) {
    let (primary, closings) = {
        let inner = board.grants.lock();
        (inner.primary.clone(), inner.closings)
    };
    let none = || Err("this node is not the primary".to_owned());
    let held = match primary {
        // Whoever takes the file next does not wait for a lock that nobody gets.
        Some(primary) => tokio::select! {
            held = take_of(primary, status, wait) => held,
            () = board.grants.closed(closings) => none(),
        },
        None => none(),
    };
    let held = match held {
        Ok(held) => held,
        Err(why) => return board.grants.end(&id, Outcome::Ended(why)),
    };
    let is_wanted = {
        let mut inner = board.grants.lock();
        let is_wanted = inner.lender.held(&id, held.pos, RealWorld.now());
        if is_wanted {
            inner.held.insert(id.clone(), Arc::new(held));
        }
        is_wanted
    };
    board.grants.changed.send_replace(());
    if is_wanted {
        while let Some(due) = board.grants.expire(&id) {
            tokio::time::sleep(due.max(Duration::from_millis(1))).await;
        }
    }
}

async fn take_of(primary: Primary, status: Arc<DatabaseStatus>, wait: Duration) -> Result<Held, String> {
    let path = status.path.to_path_buf();
    let name = path.display().to_string();
    let deadline = Instant::now() + wait;
    let holder = loop {
        let path = path.clone();
        let wait = deadline.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(10), TAKE_MAX);
        let taken = tokio::task::spawn_blocking(move || Holder::take(&path, wait)).await;
        match taken.map_err(|e| e.to_string())? {
            Ok(holder) => break holder,
            Err(Untaken::Busy) if Instant::now() < deadline => {}
            Err(Untaken::Busy) => return Err(format!("{name}: somebody is writing to it")),
            Err(Untaken::Failed(why)) => return Err(format!("{name}: {why}")),
        }
    };
    let pos = captured(&primary, &status).await?;
    let lineage = status.look(|f| f.lineage).ok_or_else(|| format!("{name} has no history yet"))?;
    let epoch = primary.lease.right().ok_or("this node is not the primary any more")?;
    Ok(Held { holder, primary, status, lineage, epoch, pos })
}

/// The position after everything that was committed so far.
async fn captured(primary: &Primary, status: &DatabaseStatus) -> Result<Pos, String> {
    let name = status.path.display();
    let ask = async {
        let gone = || format!("{name} is not captured any more");
        let (reply, answer) = oneshot::channel();
        primary
            .commands
            .send(Command::Sync(status.path.to_path_buf(), Upload::InTurn, reply))
            .await
            .map_err(|_| gone())?;
        let Synced { captured, .. } = answer.await.map_err(|_| gone())??;
        captured.await.map_err(|_| gone())
    };
    let late = |_| format!("{name} was not captured within {CAPTURE_MAX:?}");
    tokio::time::timeout(CAPTURE_MAX, ask).await.map_err(late)?
}

/// Commits what was sent. Only what is captured, under the same right, counts as committed.
async fn commit(held: &Held, body: Bytes) -> Outcome {
    let Held { holder, primary, status, epoch, pos, .. } = held;
    match captured(primary, status).await {
        Ok(now) if now == *pos => {}
        Ok(_) => return Outcome::Ended("somebody has written in spite of the lock".to_owned()),
        Err(why) => return Outcome::Ended(why),
    }
    match holder.commit(body, *pos, primary.lease.clone(), *epoch).await {
        Err(Failed::Not(why)) => return Outcome::Ended(why),
        Err(Failed::Unknown(why)) => return Outcome::Unknown(why),
        Ok(()) => {}
    }
    match captured(primary, status).await {
        Ok(after) if after.txid <= pos.txid => Outcome::Unknown("it was not found in what was captured".to_owned()),
        Ok(_) if primary.lease.right() != Some(*epoch) => {
            Outcome::Unknown("the primary lost its role meanwhile".to_owned())
        }
        Ok(after) => Outcome::Committed(after.txid),
        Err(why) => Outcome::Unknown(why),
    }
}
