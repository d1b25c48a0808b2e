//! The right to write, as a machine: takes, renews and gives up a lease that lies in a store, or elsewhere (docs/spec/lease.md).
//!
//! ```text
//!            ┌─────────── theirs: look again, take it when it has run out ◄──────────┐
//!   nothing ─┤                                   │ taken                             │ somebody else's
//!            └─ absent, released, or a dead ─────┴─► ours ──renewed──► ours          │
//!               predecessor's: take it                │ not renewed in time          │
//!                                                     └─► run out ──read: still ours─┴─► renewed, same epoch
//! ```
//!
//! Invariants:
//!
//! 1. **Two never hold it at once.** A write gives the right until `ttl` after it was *sent*, by the holder's clock. An observer takes it
//!    only when it has seen one and the same version for longer than `ttl` and a margin since it *received* that version. The write lies
//!    between the two moments; the margin is for clocks that do not run alike.
//! 2. **Every write is a compare-and-swap** on the version that was read last, under a nonce of its own. What becomes of a write whose
//!    answer was lost is learned by reading: a record with one of our nonces is ours, and gives the right since *that* write was sent.
//! 3. **An answer counts only for the request that is open.** An answer to an earlier one would give a right that was never granted.
//! 4. **A record that is not there may have been lost**, with its holder at work. Where that can be, an observer makes a new one only when it
//!    has seen none for [`Terms::vacancy`]. A holder whose time has not run out makes it at once: nobody else can have had it since.
//! 5. **The epoch grows with each holder** and with [`Lease::require_epoch`]; a renewal keeps it. A holder whose lease has run out, and
//!    whose record nobody has touched, renews it under the same epoch: the swap proves that nobody was in between.
//! 6. **Witnesses stay in the record** with whoever takes it, until the holder says what is to be there ([`Lease::set_witnesses`]), for the tenure in which it
//!    says so.
//!
//! The machine decides who may write when; that what a late writer sends has no effect is the fence's work (`writer`).

use std::time::Duration;

use rhyolite_format::lease::{DurablePos, LeaseRecord, LeaseState, Witnesses};
use rhyolite_format::{Epoch, Format1, Nonce, Timestamp};

/// A reading of a clock of one machine that never goes back, in milliseconds. It goes on while the machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// The moment `time` later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `self` to `later`; zero when that is not later.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// What a step may know of the world.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The holder's monotonic clock.
    pub now: Monotonic,
    /// The holder's wall clock, for people.
    pub wall: Timestamp,
    /// A random number that was never used before.
    pub nonce: Nonce,
}

/// How a lease is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a write gives the right. At least a second.
    pub ttl: Duration,
    /// How much longer than the holder's `ttl` an observer waits.
    pub margin: Duration,
    /// For so long no record must have been seen before the first one is made. Zero where a record never gets lost: beside the log, in the
    /// store.
    pub vacancy: Duration,
    /// Time between two looks at a lease that somebody else holds.
    pub look: Duration,
    /// How long an answer is waited for.
    pub answer: Duration,
    /// Name of the holder, for people.
    pub holder: String,
    /// Where the holder can be reached.
    pub address: Option<String>,
    /// Which process the holder is.
    pub process: Option<String>,
}

impl Terms {
    /// Terms with everything else in proportion to `ttl`.
    pub fn new(ttl: Duration, holder: String) -> Self {
        let look = (ttl / 12).clamp(Duration::from_millis(50), Duration::from_secs(2));
        let margin = ttl / 10 + Duration::from_millis(500);
        let vacancy = Duration::ZERO;
        Self { ttl, margin, vacancy, look, answer: ttl / 4, holder, address: None, process: None }
    }

    /// The same for a place that may lose its record, as a service does that is put back from a backup.
    #[must_use]
    pub fn where_records_get_lost(self) -> Self {
        Self { vacancy: self.ttl + self.margin, ..self }
    }

    /// Time from sending a write to sending the next one: two may fail before the right ends.
    fn renewal(&self) -> Duration {
        self.ttl / 3
    }

    /// Time between tries while the store fails.
    fn retry(&self) -> Duration {
        (self.ttl / 30).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Pause after the last of so many writes in a row that came to nothing, while we do not have the right.
    fn pause(&self, vain: u32) -> Duration {
        self.retry().saturating_mul(1 << vain.min(16)).min(self.ttl / 4)
    }
}

/// Rules that the simulator switches off one by one, to see that it finds what they prevent. Everything else uses [`Guards::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// An answer counts only for the request that is open.
    pub request_ids: bool,
    /// The right counts from the moment at which a write was sent, not from that of its answer.
    pub right_since_sent: bool,
    /// A lease is taken only after it was seen unchanged for its time and the margin.
    pub wait_for_expiry: bool,
    /// A name that is taken is ours only when it carries our nonce.
    pub nonces: bool,
    /// Segments of an epoch that was over when they were written are void.
    pub void_rule: bool,
    /// A new writer fences the log before it goes on after its end.
    pub fence: bool,
    /// The manifest is changed only by the epoch that it names.
    pub manifest_epoch: bool,
    /// Objects are deleted only after the manifest was read again under the same epoch.
    pub reread_before_delete: bool,
    /// A segment that was created counts only when the right is there, under the same epoch, at or after its answer.
    pub right_at_answer: bool,
    /// Whoever takes the lease keeps the list of witnesses that it found.
    pub keep_witnesses: bool,
}

impl Guards {
    /// Every rule holds.
    pub const ALL: Self = Self {
        request_ids: true,
        right_since_sent: true,
        wait_for_expiry: true,
        nonces: true,
        void_rule: true,
        fence: true,
        manifest_epoch: true,
        reread_before_delete: true,
        right_at_answer: true,
        keep_witnesses: true,
    };
}

/// Number of a request. Answers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the machine wants done. Versions are the store's.
#[expect(clippy::large_enum_variant, reason = "there is one of it, some times a second")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<V> {
    /// Read the lease, then [`Lease::handle_read`].
    Read(RequestId),
    /// Swap it, then [`Lease::handle_written`]. The nonce is to be remembered first, for a successor ([`Lease::new`]).
    Write {
        /// For the answer.
        id: RequestId,
        /// The version to replace; `None` when there must be no lease.
        expected: Option<V>,
        /// What to write.
        record: LeaseRecord,
    },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written<V> {
    /// The lease has this version.
    Done(V),
    /// The lease was another version.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// How things stand.
#[expect(clippy::large_enum_variant, reason = "there is one of it, some times a second")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The store has not told yet.
    Unknown,
    /// Somebody else has the right.
    Theirs {
        /// What the store holds.
        record: LeaseRecord,
        /// When it may be taken, unless it is renewed.
        free: Monotonic,
    },
    /// We have it, until then.
    Ours {
        /// The number of the right.
        epoch: Epoch,
        /// Nothing may be written from this moment on, unless it is renewed before.
        until: Monotonic,
        /// From whom, and the how manieth time we took it.
        origin: Origin,
    },
    /// It was given up.
    Ended,
}

/// How a right was got. Renewals keep it, and so does a raised epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// It was taken from somebody who had not given it up and is not known to be dead: that one's requests may still come in.
    pub seized: bool,
    /// Whoever had it before had given it up, and nothing of an older right can reach the logs any more.
    pub was_quiet: bool,
    /// Grows with each time that we take it: between two of these somebody else may have had it.
    pub tenure: u64,
}

/// What is known of the lease.
#[derive(Clone, Debug)]
enum Known<V> {
    Nothing,
    /// A record may be made from then on.
    Absent {
        free: Monotonic,
    },
    Theirs {
        record: LeaseRecord,
        version: V,
        since: Monotonic,
    },
    Ours {
        record: LeaseRecord,
        version: V,
        until: Monotonic,
        renew: Monotonic,
        origin: Origin,
    },
}

/// What is being done.
#[expect(clippy::large_enum_variant, reason = "there is one of it, some times a second")]
#[derive(Clone, Debug)]
enum Doing {
    Resting {
        until: Monotonic,
    },
    /// As resting, but whatever is known, the lease is to be read first.
    ReadingNext {
        at: Monotonic,
    },
    Reading {
        id: RequestId,
        sent: Monotonic,
    },
    Writing {
        id: RequestId,
        sent: Monotonic,
        record: LeaseRecord,
    },
    Ended,
}

/// One of our writes, or of a predecessor's that is known to be dead.
#[derive(Clone, Copy, Debug)]
struct OwnWrite {
    nonce: Nonce,
    /// `None` for a predecessor's.
    sent: Option<Monotonic>,
    origin: Origin,
}

/// Of so many writes of ours a late effect is recognised.
const WRITES_REMEMBERED: usize = 16;
/// Tries to give the lease up before it is left to run out.
const RELEASE_TRIES_MAX: u32 = 3;

/// Time between two looks while the lease is expected to change hands.
const CLOSE_LOOK: Duration = Duration::from_millis(20);

/// What is said with a lease that is given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWill {
    /// Nothing that was written under it, or under a right before it, can reach the logs any more.
    pub is_quiet: bool,
    /// The address of the node for which it is given up; the others leave it to that one for a while.
    pub successor: Option<String>,
}

/// The machine. After each `handle_*` and at [`Lease::poll_timeout`] drain [`Lease::poll_request`].
#[derive(Clone, Debug)]
pub struct Lease<V> {
    terms: Terms,
    guards: Guards,
    known: Known<V>,
    doing: Doing,
    writes: Vec<OwnWrite>,
    requests: u64,
    /// So often we have tried to take it.
    takings: u64,
    epoch_min: Option<Epoch>,
    durable: Option<DurablePos>,
    /// What the record is to say of witnesses, in this tenure.
    witnesses: Option<(u64, Option<Witnesses>)>,
    /// What the last record that was seen said of them.
    witnesses_seen: Option<Witnesses>,
    /// When the last write was sent of which the store said that it had worked.
    acknowledged: Option<Monotonic>,
    /// Writes in a row that came to nothing.
    vain: u32,
    /// Tries that are left, when it is to be given up.
    releasing: Option<u32>,
    /// What is said when it is given up.
    last_will: LastWill,
    /// A write that gives it up was sent: from then on somebody else may have it at any time.
    given_up: bool,
    /// It is taken when it is free.
    competes: bool,
    /// Until then it is looked at often.
    close_until: Monotonic,
}

impl<V: Clone + Eq> Lease<V> {
    /// Begins without knowledge. `dead` are nonces of writes by processes that are known to have ended: their lease need not run out.
    pub fn new(terms: Terms, guards: Guards, dead: &[Nonce], now: Monotonic) -> Self {
        let writes =
            dead.iter().map(|nonce| OwnWrite { nonce: *nonce, sent: None, origin: Origin::default() }).collect();
        let doing = Doing::Resting { until: now };
        Self {
            terms,
            guards,
            known: Known::Nothing,
            doing,
            writes,
            requests: 0,
            takings: 0,
            epoch_min: None,
            durable: None,
            witnesses: None,
            witnesses_seen: None,
            acknowledged: None,
            vain: 0,
            releasing: None,
            last_will: LastWill::default(),
            given_up: false,
            competes: true,
            close_until: Monotonic(0),
        }
    }

    /// How things stand. Whether the right has run out is for the caller to compare: `until` may lie in the past.
    pub fn standing(&self) -> Standing {
        match (&self.doing, &self.known) {
            (Doing::Ended, _) => Standing::Ended,
            (_, Known::Nothing | Known::Absent { .. }) => Standing::Unknown,
            (_, Known::Theirs { record, since, .. }) => {
                Standing::Theirs { record: record.clone(), free: self.free_at(record, *since) }
            }
            (_, Known::Ours { record, until, origin, .. }) => {
                let until = if self.given_up { Monotonic(0) } else { *until };
                Standing::Ours { epoch: record.epoch, until, origin: *origin }
            }
        }
    }

    /// Asks for at least this epoch: a log that was written without this lease may have come further.
    pub fn require_epoch(&mut self, least: Epoch) {
        self.epoch_min = self.epoch_min.max(Some(least));
        if let Doing::Resting { until } = &mut self.doing {
            *until = Monotonic(0);
        }
    }

    /// Whether the lease is taken when it is free. What is held is kept either way.
    pub fn set_competes(&mut self, competes: bool) {
        let is_new = competes && !self.competes;
        self.competes = competes;
        if let (true, Doing::Resting { until }) = (is_new, &mut self.doing) {
            *until = Monotonic(0);
        }
    }

    /// Looks often until then, as the lease is expected to change hands: for one that others hold, or nobody.
    pub fn look_closely(&mut self, until: Monotonic) {
        let is_new = until > self.close_until;
        self.close_until = self.close_until.max(until);
        if let (true, Doing::Resting { until }) = (is_new && !matches!(self.known, Known::Ours { .. }), &mut self.doing)
        {
            *until = Monotonic(0);
        }
    }

    /// When to look again.
    fn next_look(&self, now: Monotonic) -> Monotonic {
        now.after(if now < self.close_until { CLOSE_LOOK.min(self.terms.look) } else { self.terms.look })
    }

    /// Who wrote under this nonce is known to have ended: its lease need not run out.
    pub fn note_dead(&mut self, nonce: Nonce) {
        if !self.writes.iter().any(|write| write.nonce == nonce) {
            self.writes.push(OwnWrite { nonce, sent: None, origin: Origin::default() });
        }
    }

    /// The position that the next write names.
    pub fn set_durable(&mut self, durable: Option<DurablePos>) {
        self.durable = durable;
    }

    /// What the record says of witnesses from the next write on, which is due at once; `tenure` is that of the right under which this was decided.
    pub fn set_witnesses(&mut self, tenure: u64, witnesses: Option<Witnesses>) {
        let wish = Some((tenure, witnesses));
        if self.witnesses == wish {
            return;
        }
        self.witnesses = wish;
        if let (Known::Ours { .. }, Doing::Resting { until }) = (&self.known, &mut self.doing) {
            *until = Monotonic(0);
        }
    }

    /// What the record says of witnesses, as far as that is known: with a right, what the holder of it is bound to.
    pub fn witnesses(&self) -> Option<&Witnesses> {
        match &self.known {
            Known::Ours { record, .. } | Known::Theirs { record, .. } => record.witnesses.as_ref(),
            Known::Nothing | Known::Absent { .. } => None,
        }
    }

    /// What the next record is to say of them.
    fn witnesses_due(&self) -> Option<Witnesses> {
        match (&self.known, &self.witnesses) {
            (Known::Ours { origin, .. }, Some((tenure, wish))) if origin.tenure == *tenure => wish.clone(),
            _ if self.guards.keep_witnesses => self.witnesses_seen.clone(),
            _ => None,
        }
    }

    /// Gives the lease up as soon as no request is open; the right is gone when that request is sent, not when it is answered.
    /// [`Standing::Ended`] follows, whatever the store does.
    pub fn release(&mut self, last_will: LastWill) {
        if self.releasing.is_none() {
            (self.releasing, self.last_will) = (Some(RELEASE_TRIES_MAX), last_will);
        }
        if let Doing::Resting { until } = &mut self.doing {
            *until = Monotonic(0);
        }
    }

    /// When [`Lease::poll_request`] must be called next, if nothing happens before. `None` after the end.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        match &self.doing {
            Doing::Resting { until } | Doing::ReadingNext { at: until } => Some(*until),
            Doing::Reading { sent, .. } | Doing::Writing { sent, .. } => Some(sent.after(self.terms.answer)),
            Doing::Ended => None,
        }
    }

    /// What is to be done now, if anything.
    pub fn poll_request(&mut self, at: Moment) -> Option<Request<V>> {
        match &self.doing {
            Doing::Ended => None,
            Doing::Resting { until } | Doing::ReadingNext { at: until } if at.now < *until => None,
            Doing::Reading { sent, .. } | Doing::Writing { sent, .. } if at.now < sent.after(self.terms.answer) => None,
            Doing::Resting { .. } => self.next(at),
            // Or an answer did not come. What a write did is learned by reading.
            Doing::ReadingNext { .. } | Doing::Reading { .. } | Doing::Writing { .. } => self.read_again(at.now),
        }
    }

    fn read_again(&mut self, now: Monotonic) -> Option<Request<V>> {
        match self.releasing.as_mut() {
            Some(0) => {
                self.doing = Doing::Ended;
                return None;
            }
            Some(tries) => *tries -= 1,
            None => {}
        }
        Some(self.read(now))
    }

    fn next(&mut self, at: Moment) -> Option<Request<V>> {
        if let Some(tries) = self.releasing {
            return self.next_release(at, tries);
        }
        match self.known.clone() {
            Known::Nothing => Some(self.read(at.now)),
            Known::Absent { free } if !self.competes || at.now < free => Some(self.read(at.now)),
            Known::Absent { .. } => Some(self.take(None, None, at)),
            Known::Theirs { record, version, since } => {
                if !self.competes || at.now < self.free_at(&record, since) {
                    return Some(self.read(at.now));
                }
                Some(self.take(Some(version), Some(record.epoch), at))
            }
            Known::Ours { record, version, renew, .. } => {
                let epoch = self.epoch_min.map_or(record.epoch, |least| least.max(record.epoch));
                if epoch == record.epoch && at.now < renew && record.witnesses == self.witnesses_due() {
                    self.doing = Doing::Resting { until: renew };
                    return None;
                }
                Some(self.write(Some(version), epoch, LeaseState::Held, at))
            }
        }
    }

    fn next_release(&mut self, at: Moment, tries: u32) -> Option<Request<V>> {
        match self.known.clone() {
            Known::Ours { record, version, .. } if tries > 0 => {
                self.releasing = Some(tries - 1);
                self.given_up = true;
                Some(self.write(Some(version), record.epoch, LeaseState::Released, at))
            }
            _ => {
                self.doing = Doing::Ended;
                None
            }
        }
    }

    /// When a lease of somebody else may be taken.
    fn free_at(&self, record: &LeaseRecord, since: Monotonic) -> Monotonic {
        if record.state == LeaseState::Released {
            let is_for_another = record.successor.is_some() && record.successor != self.terms.address;
            let pause = if is_for_another { Duration::from_millis(record.ttl_ms) / 2 } else { Duration::ZERO };
            return since.after(pause);
        }
        if self.is_dead(record.nonce) || !self.guards.wait_for_expiry {
            return since;
        }
        since.after(Duration::from_millis(record.ttl_ms)).after(self.terms.margin)
    }

    /// Whether who wrote under this nonce is known to have ended.
    fn is_dead(&self, nonce: Nonce) -> bool {
        self.writes.iter().any(|write| write.nonce == nonce && write.sent.is_none())
    }

    fn request_id(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn read(&mut self, now: Monotonic) -> Request<V> {
        let id = self.request_id();
        self.doing = Doing::Reading { id, sent: now };
        Request::Read(id)
    }

    fn take(&mut self, expected: Option<V>, theirs: Option<Epoch>, at: Moment) -> Request<V> {
        let next = theirs.map_or(Epoch::FIRST, Epoch::next);
        let epoch = self.epoch_min.map_or(next, |least| least.max(next));
        self.write(expected, epoch, LeaseState::Held, at)
    }

    fn write(&mut self, expected: Option<V>, epoch: Epoch, state: LeaseState, at: Moment) -> Request<V> {
        let record = LeaseRecord {
            format: Format1,
            epoch,
            state,
            quiet: state == LeaseState::Released && self.last_will.is_quiet,
            successor: self.last_will.successor.clone().filter(|_| state == LeaseState::Released),
            holder: self.terms.holder.clone(),
            address: self.terms.address.clone(),
            process: self.terms.process.clone(),
            nonce: at.nonce,
            ttl_ms: u64::try_from(self.terms.ttl.as_millis()).unwrap_or(u64::MAX),
            renewed: at.wall,
            durable: self.durable,
            witnesses: self.witnesses_due(),
        };
        let id = self.request_id();
        let origin = self.origin();
        self.writes.push(OwnWrite { nonce: at.nonce, sent: Some(at.now), origin });
        self.forget_old_writes();
        self.doing = Doing::Writing { id, sent: at.now, record: record.clone() };
        Request::Write { id, expected, record }
    }

    /// That of the right which a write gives.
    fn origin(&mut self) -> Origin {
        let (seized, was_quiet) = match &self.known {
            Known::Ours { origin, .. } => return *origin,
            Known::Nothing | Known::Absent { .. } => (false, false),
            Known::Theirs { record, .. } => {
                let was_released = record.state == LeaseState::Released;
                (!was_released && !self.is_dead(record.nonce), was_released && record.quiet)
            }
        };
        self.takings += 1;
        Origin { seized, was_quiet, tenure: self.takings }
    }

    /// What holds now is never forgotten, however many renewals fail after it: our own lease would pass for another's.
    fn forget_old_writes(&mut self) {
        let held = if let Known::Ours { record, .. } = &self.known { Some(record.nonce) } else { None };
        let mut surplus = self.writes.len().saturating_sub(WRITES_REMEMBERED);
        self.writes.retain(|write| {
            let goes = surplus > 0 && Some(write.nonce) != held;
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// What a read found: the lease and its version, that there is none, or (`Err`) nothing.
    pub fn handle_read(&mut self, id: RequestId, found: Result<Option<(LeaseRecord, V)>, ()>, now: Monotonic) {
        let is_open = match &self.doing {
            Doing::Reading { id: open, .. } => *open == id || !self.guards.request_ids,
            _ => false,
        };
        if !is_open {
            return;
        }
        let Ok(found) = found else {
            if matches!(self.known, Known::Absent { .. }) && !self.terms.vacancy.is_zero() {
                // A record may be made while nobody can look, and be lost again.
                self.known = Known::Nothing;
            }
            self.doing = Doing::ReadingNext { at: now.after(self.terms.retry()) };
            return;
        };
        match found {
            None => self.known_absent(now),
            Some((record, version)) => self.known_record(record, version, now),
        }
    }

    fn known_absent(&mut self, now: Monotonic) {
        if let Known::Ours { record, .. } | Known::Theirs { record, .. } = &self.known {
            // It is never deleted by us. Whoever did must not make epochs go back.
            self.epoch_min = self.epoch_min.max(Some(record.epoch.next()));
        }
        let free = match &self.known {
            Known::Absent { free } => *free,
            Known::Ours { until, .. } if now < *until => now,
            Known::Nothing => now.after(self.terms.vacancy),
            // Whoever held it may go on for as long as its own terms say.
            Known::Theirs { record, .. } | Known::Ours { record, .. } => {
                let held = Duration::from_millis(record.ttl_ms) + self.terms.margin;
                now.after(if self.terms.vacancy.is_zero() { Duration::ZERO } else { self.terms.vacancy.max(held) })
            }
        };
        self.known = Known::Absent { free };
        let look = self.next_look(now);
        self.doing = Doing::Resting { until: if self.competes { free.min(look).max(now) } else { look } };
    }

    fn known_record(&mut self, record: LeaseRecord, version: V, now: Monotonic) {
        let own = self.writes.iter().find(|w| w.nonce == record.nonce).and_then(|w| Some((w.sent?, w.origin)));
        let (last, was_theirs) = match &self.known {
            Known::Theirs { record, .. } => (Some(record.epoch), true),
            Known::Ours { record, .. } => (Some(record.epoch), false),
            Known::Nothing | Known::Absent { .. } => (None, false),
        };
        self.witnesses_seen = record.witnesses.clone();
        if let Some(later) = last.filter(|last| *last > record.epoch) {
            // Whatever keeps it was put back. Epochs do not go back with it.
            self.epoch_min = self.epoch_min.max(Some(later.next()));
        }
        // One of our own that comes back after another's gives no right: the other may have its own still.
        let is_of_before = was_theirs && self.epoch_min.is_some_and(|least| record.epoch < least);
        match own.filter(|_| !is_of_before) {
            Some((sent, origin)) if record.state == LeaseState::Held => {
                if self.acknowledged.is_some_and(|last| sent < last) {
                    // The store has lost a write that it had acknowledged: it was put back, and the log with it.
                    self.epoch_min = self.epoch_min.max(Some(record.epoch.next()));
                }
                self.known_ours(record, version, sent, origin);
            }
            Some(_) => self.doing = Doing::Ended,
            None => {
                let since = match &self.known {
                    Known::Theirs { version: seen, since, .. } if *seen == version => *since,
                    _ => now,
                };
                let free = self.free_at(&record, since);
                self.vain = 0;
                self.known = Known::Theirs { record, version, since };
                let look = self.next_look(now);
                self.doing = Doing::Resting { until: if self.competes { free.min(look).max(now) } else { look } };
            }
        }
    }

    fn known_ours(&mut self, record: LeaseRecord, version: V, sent: Monotonic, origin: Origin) {
        let (until, renew) = (sent.after(self.terms.ttl), sent.after(self.terms.renewal()));
        self.witnesses_seen = record.witnesses.clone();
        let is_raised = self.epoch_min.is_some_and(|least| record.epoch < least);
        let witnesses = record.witnesses.clone();
        self.known = Known::Ours { record, version, until, renew, origin };
        let at_once = self.releasing.is_some() || is_raised || witnesses != self.witnesses_due();
        self.doing = Doing::Resting { until: if at_once { sent } else { renew } };
    }

    /// What became of a write.
    pub fn handle_written(&mut self, id: RequestId, written: Written<V>, now: Monotonic) {
        let Doing::Writing { id: open, sent, record } = self.doing.clone() else { return };
        if open != id && self.guards.request_ids {
            return;
        }
        match written {
            Written::Done(_) if record.state == LeaseState::Released => self.doing = Doing::Ended,
            Written::Done(version) => {
                let since = if self.guards.right_since_sent { sent } else { now };
                let origin = self.writes.iter().find(|write| write.nonce == record.nonce).map(|write| write.origin);
                let origin = origin.expect("an open write is remembered");
                self.acknowledged = self.acknowledged.max(Some(sent));
                self.vain = 0;
                self.known_ours(record, version, since, origin);
            }
            // Also when refused: an earlier write of ours may have come in late. What is held stays held until its time is over, or until
            // the reading says otherwise.
            Written::Refused | Written::Unknown => {
                let free = if written == Written::Refused { 2 } else { 1 };
                self.doing = Doing::ReadingNext { at: now.after(self.pause(free, now)) };
                self.vain += 1;
            }
        }
    }

    /// How long to wait after a write that came to nothing. The first times not at all: it may have worked, or an earlier one. A store
    /// that answers reads and takes no write must not be asked without a pause.
    fn pause(&self, free: u32, now: Monotonic) -> Duration {
        let is_ours = matches!(&self.known, Known::Ours { until, .. } if now < *until);
        match self.vain.checked_sub(free) {
            None => Duration::ZERO,
            Some(_) if is_ours => self.terms.retry(),
            Some(vain) => self.terms.pause(vain),
        }
    }
}

#[cfg(test)]
mod tests;
