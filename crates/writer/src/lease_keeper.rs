//! Drives [`rhyolite_logic::lease`] over a place: sends its requests, hands it the answers, and tells others how things stand.
//!
//! Requests run beside each other: one that has not been answered in time stays open, and its answer is handed over whenever it comes.
//! Which answers count is the machine's decision.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use rhyolite_format::lease::{DurablePos, LeaseRecord, Witnesses};
use rhyolite_format::{Epoch, Nonce};
use rhyolite_logic::lease::{Guards, LastWill, Lease, Monotonic, Origin, Request, RequestId, Standing, Terms, Written};
use rhyolite_store::{StoreError, StoreErrorKind, Version};
use tokio::sync::watch;

use crate::World;
use crate::lease_place::LeasePlace;

/// Requests that may be open at a time. A place that answers none gets no more.
const OPEN_MAX: usize = 8;
/// Time between two looks while so many are open.
const FULL_LOOK: Duration = Duration::from_millis(100);

/// Where nonces are noted before they are written, so that a successor knows the lease of a dead process by them.
pub trait Memory: Send + Sync {
    /// Notes one more. A failure only costs the successor a wait.
    fn remember(&self, nonce: Nonce);
}

/// Remembers nothing: a successor waits until the lease has run out.
#[derive(Clone, Copy, Debug)]
pub struct Forgetful;

impl Memory for Forgetful {
    fn remember(&self, _: Nonce) {}
}

/// What others want of the lease.
#[derive(Clone, Debug, Default)]
struct Wanted {
    epoch_min: Option<Epoch>,
    release: Option<LastWill>,
    /// The lease is not taken.
    only_looks: bool,
    close_until: Option<Monotonic>,
    durable: Option<DurablePos>,
    /// What the record is to say, in which tenure.
    witnesses: Option<(u64, Option<Witnesses>)>,
}

/// How things stand, and what stands in the way.
#[derive(Clone, Debug)]
struct Published {
    standing: Standing,
    /// What the record says of them.
    witnesses: Option<Witnesses>,
    problem: Option<String>,
}

impl Published {
    /// Nothing is known yet.
    fn nothing() -> Self {
        Self { standing: Standing::Unknown, witnesses: None, problem: None }
    }

    /// Whether this says something else.
    fn differs(&self, other: &Self) -> bool {
        self.standing != other.standing || self.witnesses != other.witnesses || self.problem != other.problem
    }
}

/// The lease as the rest of the process sees it. Clones are the same lease.
#[derive(Clone)]
pub struct LeaseHandle {
    kind: Kind,
    world: Arc<dyn World>,
}

#[derive(Clone)]
enum Kind {
    Kept {
        published: watch::Receiver<Published>,
        wanted: Arc<watch::Sender<Wanted>>,
        /// Others see it where it lies.
        is_shared: bool,
    },
    /// Nobody else is expected, and nothing is kept anywhere.
    Alone(Arc<Mutex<Epoch>>),
}

impl fmt::Debug for LeaseHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseHandle").field("standing", &self.standing()).finish_non_exhaustive()
    }
}

impl LeaseHandle {
    /// A right that nobody contests and no store holds. Fences still work: who starts last wins, and the other one stops.
    pub fn alone(world: Arc<dyn World>) -> Self {
        Self { kind: Kind::Alone(Arc::new(Mutex::new(Epoch::FIRST))), world }
    }

    /// Whether nobody else can see this right, or take it.
    pub fn is_alone(&self) -> bool {
        matches!(self.kind, Kind::Alone(_) | Kind::Kept { is_shared: false, .. })
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        match &self.kind {
            Kind::Kept { published, .. } => published.borrow().standing.clone(),
            Kind::Alone(epoch) => {
                let epoch = *epoch.lock().unwrap_or_else(PoisonError::into_inner);
                Standing::Ours { epoch, until: Monotonic(u64::MAX), origin: Origin::default() }
            }
        }
    }

    /// What keeps the lease from being read or written, if anything does.
    pub fn problem(&self) -> Option<String> {
        match &self.kind {
            Kind::Kept { published, .. } => published.borrow().problem.clone(),
            Kind::Alone(_) => None,
        }
    }

    /// The epoch under which may be written at this moment.
    pub fn right(&self) -> Option<Epoch> {
        match &self.kind {
            Kind::Kept { published, .. } => match published.borrow().standing {
                Standing::Ours { epoch, until, .. } if self.world.now() < until => Some(epoch),
                _ => None,
            },
            Kind::Alone(epoch) => Some(*epoch.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Waits until we have the right. `None` when the lease was given up.
    pub async fn acquired(&self) -> Option<Epoch> {
        let Kind::Kept { published, .. } = &self.kind else { return self.right() };
        let mut published = published.clone();
        loop {
            published.borrow_and_update();
            if let Some(epoch) = self.right() {
                return Some(epoch);
            }
            if published.borrow().standing == Standing::Ended || published.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Waits until `epoch` is over for good: somebody else has the lease, it was given up, or the epoch was raised. A right that has
    /// only run out may come back.
    pub async fn over(&self, epoch: Epoch) {
        let Kind::Kept { published, .. } = &self.kind else { return std::future::pending().await };
        let mut published = published.clone();
        let is_over = |published: &Published| match &published.standing {
            Standing::Ours { epoch: ours, .. } => *ours != epoch,
            Standing::Unknown => false,
            Standing::Theirs { .. } | Standing::Ended => true,
        };
        // Without a sender nobody keeps the lease any more.
        let _ = published.wait_for(is_over).await;
    }

    /// Waits until it is certain whether nobody else had the right since we had it under `epoch`: `true` once we have it, under the same
    /// epoch, `false` when that is over for good.
    pub async fn holds(&self, epoch: Epoch) -> bool {
        let Kind::Kept { published, .. } = &self.kind else { return self.right() == Some(epoch) };
        let mut published = published.clone();
        loop {
            published.borrow_and_update();
            match self.standing() {
                _ if self.right() == Some(epoch) => return true,
                Standing::Ours { epoch: ours, .. } if ours == epoch => {}
                Standing::Unknown => {}
                _ => return false,
            }
            if published.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Ends when something changes after this call: to be called before [`LeaseHandle::standing`] is looked at. `None` where nothing
    /// changes by itself.
    pub fn changes(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let Kind::Kept { published, .. } = &self.kind else { return None };
        let mut published = published.clone();
        published.mark_unchanged();
        Some(async move {
            // Without a sender nobody keeps the lease any more: nothing changes.
            if published.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    /// Asks for at least this epoch: a log may have been written without this lease.
    pub fn require_epoch(&self, least: Epoch) {
        match &self.kind {
            Kind::Kept { wanted, .. } => wanted.send_modify(|w| w.epoch_min = w.epoch_min.max(Some(least))),
            Kind::Alone(epoch) => {
                let mut epoch = epoch.lock().unwrap_or_else(PoisonError::into_inner);
                *epoch = least.max(*epoch);
            }
        }
    }

    /// The position that the next renewal names.
    pub fn set_durable(&self, durable: Option<DurablePos>) {
        if let Kind::Kept { wanted, .. } = &self.kind {
            wanted.send_if_modified(|w| std::mem::replace(&mut w.durable, durable) != durable);
        }
    }

    /// What the record is to say of witnesses, if the right is that of this tenure.
    pub fn set_witnesses(&self, tenure: u64, witnesses: Option<Witnesses>) {
        if let Kind::Kept { wanted, .. } = &self.kind {
            let wish = Some((tenure, witnesses));
            wanted.send_if_modified(|w| std::mem::replace(&mut w.witnesses, wish.clone()) != wish);
        }
    }

    /// What the record says of witnesses. With a right that is what its holder is bound to.
    pub fn witnesses(&self) -> Option<Witnesses> {
        match &self.kind {
            Kind::Kept { published, .. } => published.borrow().witnesses.clone(),
            Kind::Alone(_) => None,
        }
    }

    /// Whether the lease is taken when it is free; it is, unless this says otherwise.
    pub fn set_competes(&self, competes: bool) {
        if let Kind::Kept { wanted, .. } = &self.kind {
            wanted.send_if_modified(|w| std::mem::replace(&mut w.only_looks, !competes) == competes);
        }
    }

    /// Looks often for so long, as the lease is expected to change hands.
    pub fn look_closely(&self, time: Duration) {
        if let Kind::Kept { wanted, .. } = &self.kind {
            let until = self.world.now().after(time);
            wanted.send_modify(|w| w.close_until = w.close_until.max(Some(until)));
        }
    }

    /// Lends the lease: who has the handle sees it as long as the loan passes on how things stand, and cannot give it up.
    ///
    /// # Panics
    /// A right that nobody keeps cannot be lent.
    pub fn lend(&self) -> (Loan, Self) {
        let Kind::Kept { published, wanted, is_shared } = &self.kind else { panic!("only what is kept is lent") };
        let (to, lent) = watch::channel(Published::nothing());
        let loan = Loan { from: published.clone(), to };
        loan.pass_on();
        let kind = Kind::Kept { published: lent, wanted: Arc::clone(wanted), is_shared: *is_shared };
        (loan, Self { kind, world: Arc::clone(&self.world) })
    }

    /// Gives the lease up, and waits until that is done, or cannot be done in time.
    pub async fn release(&self, last_will: LastWill) {
        let Kind::Kept { published, wanted, .. } = &self.kind else { return };
        wanted.send_modify(|w| w.release = w.release.take().or(Some(last_will)));
        let _ = published.clone().wait_for(|p| p.standing == Standing::Ended).await;
    }
}

/// A lease that is lent, until this is dropped: then it is over for whoever has the handle.
#[derive(Debug)]
pub struct Loan {
    from: watch::Receiver<Published>,
    to: watch::Sender<Published>,
}

impl Loan {
    /// Lets those who have the handle know how things stand. Whoever lends has fenced the logs: to them the lease is not a seized one.
    pub fn pass_on(&self) {
        let mut now = self.from.borrow().clone();
        if let Standing::Ours { origin, .. } = &mut now.standing {
            origin.seized = false;
        }
        self.to.send_if_modified(|before| {
            let changed = before.differs(&now);
            *before = now;
            changed
        });
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.to.send_modify(|published| published.standing = Standing::Ended);
    }
}

/// Keeps one lease, until it is given up.
pub struct LeaseKeeper {
    place: Arc<dyn LeasePlace>,
    world: Arc<dyn World>,
    memory: Box<dyn Memory>,
    lease: Lease<Version>,
    published: watch::Sender<Published>,
    wanted: watch::Receiver<Wanted>,
    open: FuturesUnordered<BoxFuture<'static, Answer>>,
    problem: Option<String>,
    /// The last epoch that was asked for: the machine remembers it.
    asked: Option<Epoch>,
}

impl fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseKeeper").field("lease", &self.lease).finish_non_exhaustive()
    }
}

/// An answer of the place.
enum Answer {
    Read(RequestId, Result<Option<(LeaseRecord, Version)>, StoreError>),
    Written(RequestId, Result<Version, StoreError>),
}

/// A keeper of the lease at `place`, and the handle for everybody else. `dead` are nonces of processes that are known to have ended.
pub fn lease(
    place: Arc<dyn LeasePlace>,
    world: Arc<dyn World>,
    memory: Box<dyn Memory>,
    terms: Terms,
    guards: Guards,
    dead: &[Nonce],
) -> (LeaseKeeper, LeaseHandle) {
    let lease = Lease::new(terms, guards, dead, world.now());
    let (publish, published) = watch::channel(Published::nothing());
    let (want, wanted) = watch::channel(Wanted::default());
    let kind = Kind::Kept { published, wanted: Arc::new(want), is_shared: place.is_shared() };
    let handle = LeaseHandle { kind, world: Arc::clone(&world) };
    let open = FuturesUnordered::new();
    (LeaseKeeper { place, world, memory, lease, published: publish, wanted, open, problem: None, asked: None }, handle)
}

impl LeaseKeeper {
    /// Runs until the lease was given up. Dropped before, it leaves the lease to run out.
    pub async fn run(mut self) {
        loop {
            self.take_wishes();
            if self.open.len() < OPEN_MAX
                && let Some(request) = self.lease.poll_request(self.world.moment())
            {
                self.send(request);
                continue;
            }
            self.publish();
            let Some(next) = self.lease.poll_timeout() else { return };
            self.wait(next).await;
        }
    }

    fn take_wishes(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.lease.set_durable(wanted.durable);
        self.lease.set_competes(!wanted.only_looks);
        if let Some(until) = wanted.close_until {
            self.lease.look_closely(until);
        }
        if let Some(least) = wanted.epoch_min.filter(|least| Some(*least) > self.asked) {
            self.asked = Some(least);
            self.lease.require_epoch(least);
        }
        if let Some((tenure, witnesses)) = wanted.witnesses {
            self.lease.set_witnesses(tenure, witnesses);
        }
        if let Some(last_will) = wanted.release {
            self.lease.release(last_will);
        }
    }

    fn publish(&self) {
        let witnesses = self.lease.witnesses().cloned();
        let now = Published { standing: self.lease.standing(), witnesses, problem: self.problem.clone() };
        self.published.send_if_modified(|published| {
            let changed = published.differs(&now);
            *published = now;
            changed
        });
    }

    fn send(&mut self, request: Request<Version>) {
        let place = Arc::clone(&self.place);
        self.open.push(match request {
            Request::Read(id) => Box::pin(async move { Answer::Read(id, place.read().await) }),
            Request::Write { id, expected, record } => {
                self.memory.remember(record.nonce);
                Box::pin(async move { Answer::Written(id, place.swap(expected.as_ref(), &record).await) })
            }
        });
    }

    /// Until `next`, an answer, or a wish.
    async fn wait(&mut self, next: Monotonic) {
        let mut time = self.world.now().until(next);
        if self.open.len() >= OPEN_MAX {
            // What is due has to wait for an answer.
            time = time.max(FULL_LOOK);
        }
        let sleep = self.world.sleep(time);
        let wish = Box::pin(self.wanted.changed());
        let quiet = select(sleep, wish);
        if self.open.is_empty() {
            quiet.await;
            return;
        }
        let answer = match select(self.open.next(), quiet).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => None,
        };
        if let Some(answer) = answer {
            self.hear(answer);
        }
    }

    fn hear(&mut self, answer: Answer) {
        let now = self.world.now();
        match answer {
            Answer::Read(id, Ok(found)) => {
                self.problem = None;
                if let Some((record, _)) = &found
                    && record.process.as_ref().is_some_and(|process| self.world.is_dead(process))
                {
                    self.lease.note_dead(record.nonce);
                }
                self.lease.handle_read(id, Ok(found), now);
            }
            // Anything that cannot be read is no answer.
            Answer::Read(id, Err(error)) => {
                self.problem = Some(error.to_string());
                self.lease.handle_read(id, Err(()), now);
            }
            Answer::Written(id, Ok(version)) => {
                self.problem = None;
                self.lease.handle_written(id, Written::Done(version), now);
            }
            Answer::Written(id, Err(error)) => {
                let refused = matches!(error.kind, StoreErrorKind::Conflict | StoreErrorKind::Exists);
                if !refused {
                    self.problem = Some(error.to_string());
                }
                self.lease.handle_written(id, if refused { Written::Refused } else { Written::Unknown }, now);
            }
        }
    }
}
