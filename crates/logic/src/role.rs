//! Which role a node of a cluster has, as a machine: it follows the holder of the lease, or has the lease itself, and never both.
//!
//! ```text
//!            ┌──────────── somebody holds the lease ───────────► following
//!            │                                                      │ the lease is ours, or another's
//!          idle ◄──────────────────── unfollowed ◄──────────────────┘
//!            │ ▲
//!   ours     │ └──────────────── not prepared ──────┐
//!            └─► preparing (catch up with the store)┴─► serving (application, capture, followers)
//!                                                          │ lease about to run out, handoff, stop
//!              idle, or the end ◄── capture stops ◄── application stops ◄┘
//! ```
//!
//! Invariants:
//!
//! 1. **Following, preparing and capturing exclude each other.** The next begins when the driver has said that the one before has ended.
//! 2. **The application runs under a right that has time left.** It is started only when the lease has more than [`RoleTerms::grace`] left, and told to
//!    stop when no more than that is left. That it is gone when the lease ends is the guard's work, which needs nobody's help for that.
//! 3. **Nothing is captured before the databases were caught up** with the end of the store's log, under the same right.
//! 4. **Capture ends after the application**, so that its last commits are captured; the lease is given up after both, and only when everything
//!    captured is durable. Otherwise it runs out. It says whether anything may still be on its way: only who served, and had everything made durable, knows that nothing is.
//! 5. What comes next is decided in one place, in idle, by the lease as it stands then.
//! 6. **A right that was lost stays lost** until idle, whatever is ours again by then: somebody else may have written in between, and what is here is older. Another taking of the lease
//!    ([`View::Ours::tenure`]) counts as a loss.
//! 7. A node that cannot prepare does not keep the others from trying: after [`RoleTerms::prepare`] it gives the lease up for a while.

use std::collections::VecDeque;
use std::time::Duration;

use rhyolite_format::Epoch;
use rhyolite_format::lease::LeaseState;

use crate::lease::{Monotonic, Standing};

/// Pause before databases that could not be prepared are tried again.
const PREPARE_AGAIN: Duration = Duration::from_secs(1);

/// How roles change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleTerms {
    /// The application gets so much time to stop before the lease ends.
    pub grace: Duration,
    /// For so long a lease that was handed on is not taken again, unless another has had it, or it is given up for us.
    pub abstain: Duration,
    /// For so long databases are prepared before the lease is given up.
    pub prepare: Duration,
    /// Whether this node may become the primary.
    pub is_candidate: bool,
    /// Rules in force.
    pub rules: RoleRules,
}

/// Rules that the simulator switches off one by one, to see that it finds what they prevent. Everything else uses [`RoleRules::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleRules {
    /// Databases are prepared when nothing is applied to them any more.
    pub unfollow_first: bool,
    /// Databases are caught up with the store before they are served.
    pub prepare_first: bool,
    /// Capture ends after the application.
    pub application_first: bool,
    /// A right that was lost stays lost until idle.
    pub lost_stays_lost: bool,
    /// The lease is given up only when everything that was captured is durable.
    pub release_when_drained: bool,
    /// Whoever gives the lease up without that says so, and the next one fences the log.
    pub quiet_when_drained: bool,
    /// Whoever goes on after capture that ended without that fences the log.
    pub fence_what_is_owed: bool,
}

impl RoleRules {
    /// Every rule holds.
    pub const ALL: Self = Self {
        unfollow_first: true,
        prepare_first: true,
        application_first: true,
        lost_stays_lost: true,
        release_when_drained: true,
        quiet_when_drained: true,
        fence_what_is_owed: true,
    };
}

impl RoleTerms {
    /// Terms in proportion to the lease's time.
    pub fn new(ttl: Duration, is_candidate: bool) -> Self {
        Self { grace: ttl / 5, abstain: ttl, prepare: ttl * 12, is_candidate, rules: RoleRules::ALL }
    }
}

/// How the lease stands, as far as roles depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Nobody knows, or nobody has it.
    Vacant,
    /// Nobody has it, and it was given up for us.
    Offered,
    /// Somebody else has it, and may say where it can be reached.
    Held {
        /// Where the holder serves followers.
        address: Option<String>,
    },
    /// It is ours.
    Ours {
        /// The number of the right.
        epoch: Epoch,
        /// When it ends, unless it is renewed.
        until: Monotonic,
        /// The how manieth time it was taken.
        tenure: u64,
    },
    /// It was given up, and is not asked for any more.
    Ended,
}

impl View {
    /// The lease as a node sees it that serves at `address`. A lease of its own address that is not its own is that of an earlier life: nobody is there
    /// to be followed.
    pub fn of(standing: Standing, address: &str) -> Self {
        match standing {
            Standing::Unknown => Self::Vacant,
            Standing::Theirs { record, .. } => {
                let is_own = record.address.as_deref() == Some(address);
                match record.state {
                    LeaseState::Released if record.successor.as_deref() == Some(address) => Self::Offered,
                    LeaseState::Released => Self::Vacant,
                    LeaseState::Held if is_own => Self::Vacant,
                    LeaseState::Held => Self::Held { address: record.address },
                }
            }
            Standing::Ours { epoch, until, origin } => Self::Ours { epoch, until, tenure: origin.tenure },
            Standing::Ended => Self::Ended,
        }
    }
}

/// What the driver has to do. Each is answered by the event that is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Follow the node at this address.
    Follow(String),
    /// Stop following; then [`RoleMachine::handle_unfollowed`].
    Unfollow,
    /// Catch the databases up with the store; then [`RoleMachine::handle_prepared`].
    Prepare {
        /// What was captured here under the same right may still be on its way to the store.
        owes: bool,
    },
    /// Give that up; then [`RoleMachine::handle_prepared`] all the same.
    CancelPrepare,
    /// Capture, serve followers, run the application.
    Serve,
    /// End the application; then [`RoleMachine::handle_application_stopped`].
    StopApplication(Why),
    /// End capture; with `drain`, when everything is durable, otherwise at once. Then [`RoleMachine::handle_capture_stopped`].
    StopCapture {
        /// There is a right under which to upload what is left.
        drain: bool,
    },
    /// Give the lease up; then [`View::Ended`].
    Release {
        /// Nothing that was captured here, or by anybody before, can reach the store any more.
        is_quiet: bool,
    },
    /// Look at the lease again, without taking it.
    Watch,
    /// Take the lease when it is free.
    Compete,
    /// The process may end.
    End,
}

/// Why a primary stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its lease is about to run out, or is another's.
    Lapsing,
    /// It hands its role on.
    Handoff,
    /// The process ends.
    Stop,
}

/// The role, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nobody is known to follow, and the lease is not ours.
    Waiting,
    /// It follows the holder of the lease.
    Replica,
    /// It has the lease, and catches up.
    Promoting,
    /// It has the lease, and serves.
    Primary,
    /// It was the primary, and stops.
    Demoting,
    /// It has ended.
    Stopped,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Replica, Self::Promoting, Self::Primary, Self::Demoting, Self::Stopped];

    /// The name in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Replica => "replica",
            Self::Promoting => "promoting",
            Self::Primary => "primary",
            Self::Demoting => "demoting",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Following { address: String },
    Unfollowing,
    Preparing { is_cancelled: bool },
    Serving,
    StoppingApplication,
    StoppingCapture { drains: bool },
    Releasing,
    Ended,
}

/// The machine. After each event and at [`RoleMachine::poll_timeout`] drain [`RoleMachine::poll_action`].
#[derive(Clone, Debug)]
pub struct RoleMachine {
    terms: RoleTerms,
    stage: Stage,
    view: View,
    actions: VecDeque<Action>,
    /// The process is to end.
    stops: bool,
    /// The role is to be handed on.
    hands_on: bool,
    /// Nothing is prepared before this.
    not_before: Monotonic,
    /// The lease is not taken before this.
    abstains: Option<Monotonic>,
    /// The taking of the lease under which databases were prepared.
    tenure: Option<u64>,
    /// That right was lost.
    is_lost: bool,
    /// Preparing is given up then.
    prepared_by: Monotonic,
    /// Something that was captured may still be on its way.
    owes: bool,
    /// Something that was captured is not durable yet.
    is_undrained: bool,
    /// The taking of the lease under which databases were served last.
    served: Option<u64>,
    /// When it was asked last what is to be done: what was due then is done.
    polled: Option<Monotonic>,
}

impl RoleMachine {
    /// A node that knows nothing yet.
    pub fn new(terms: RoleTerms) -> Self {
        Self {
            terms,
            stage: Stage::Idle,
            view: View::Vacant,
            actions: VecDeque::new(),
            stops: false,
            hands_on: false,
            not_before: Monotonic(0),
            abstains: None,
            tenure: None,
            is_lost: false,
            prepared_by: Monotonic(0),
            owes: false,
            is_undrained: false,
            served: None,
            polled: None,
        }
    }

    /// The role.
    pub fn role(&self) -> Role {
        match self.stage {
            Stage::Idle | Stage::Unfollowing => Role::Waiting,
            Stage::Following { .. } => Role::Replica,
            Stage::Preparing { .. } => Role::Promoting,
            Stage::Serving => Role::Primary,
            Stage::StoppingApplication | Stage::StoppingCapture { .. } | Stage::Releasing => Role::Demoting,
            Stage::Ended => Role::Stopped,
        }
    }

    /// Whether databases are captured: from [`Action::Serve`] to the end of capture.
    pub fn is_capturing(&self) -> bool {
        matches!(self.stage, Stage::Serving | Stage::StoppingApplication | Stage::StoppingCapture { .. })
    }

    /// Whether following is to end.
    pub fn is_unfollowing(&self) -> bool {
        self.stage == Stage::Unfollowing
    }

    /// Whether capture is to end.
    pub fn is_stopping_capture(&self) -> bool {
        matches!(self.stage, Stage::StoppingCapture { .. })
    }

    /// How the lease stands.
    pub fn handle_lease(&mut self, view: View) {
        if let Some(noted) = self.tenure
            && self.terms.rules.lost_stays_lost
            && !matches!(view, View::Ours { tenure, .. } if tenure == noted)
        {
            self.is_lost = true;
        }
        self.view = view;
    }

    /// The right does not count any more, whatever the lease says.
    pub fn lose(&mut self) {
        self.is_lost |= self.tenure.is_some();
    }

    /// Whether the right under which databases were prepared was lost.
    pub fn has_lost(&self) -> bool {
        self.is_lost
    }

    /// Nothing is done any more, and nothing of the right is left.
    fn rest(&mut self) {
        self.stage = Stage::Idle;
        (self.tenure, self.is_lost) = (None, false);
    }

    /// The process is to end.
    pub fn stop(&mut self) {
        self.stops = true;
    }

    /// The role is to be handed on. `false` when this node has none to hand on.
    pub fn hand_on(&mut self) -> bool {
        let has_one = matches!(self.stage, Stage::Serving | Stage::Preparing { .. });
        self.hands_on |= has_one;
        has_one
    }

    /// Nothing is applied any more.
    pub fn handle_unfollowed(&mut self) {
        assert_eq!(self.stage, Stage::Unfollowing, "told to stop following");
        self.stage = Stage::Idle;
    }

    /// Following has ended by itself.
    pub fn handle_following_ended(&mut self, now: Monotonic) {
        if matches!(self.stage, Stage::Following { .. } | Stage::Unfollowing) {
            self.stage = Stage::Idle;
            self.not_before = now.after(PREPARE_AGAIN);
        }
    }

    /// The databases are caught up, or cannot be.
    pub fn handle_prepared(&mut self, is_done: bool, now: Monotonic) {
        let Stage::Preparing { is_cancelled } = self.stage else { panic!("told to prepare") };
        if is_done && !is_cancelled && !self.stops && self.has_time(now) {
            self.stage = Stage::Serving;
            (self.owes, self.is_undrained) = (false, false);
            self.served = self.tenure;
            self.actions.push_back(Action::Serve);
            return;
        }
        if self.hands_on && !self.stops && self.has_right(now) {
            // Nothing was captured under it. What others sent before may still come: the log may not be fenced yet.
            self.release(false);
            return;
        }
        self.hands_on = false;
        self.rest();
        self.not_before = now.after(PREPARE_AGAIN);
    }

    /// The application has ended, as it was told to.
    pub fn handle_application_stopped(&mut self, now: Monotonic) {
        if self.stage == Stage::StoppingApplication {
            self.stop_capture(now);
        }
    }

    /// The application has ended by itself: the node goes with it.
    pub fn handle_application_ended(&mut self, now: Monotonic) {
        if matches!(self.stage, Stage::Serving | Stage::StoppingApplication) {
            self.stops = true;
            self.stop_capture(now);
        }
    }

    /// The guard has ended the application, for the right was over.
    pub fn handle_application_expired(&mut self, now: Monotonic) {
        if matches!(self.stage, Stage::Serving | Stage::StoppingApplication) {
            self.stop_capture(now);
        }
    }

    /// Capture has ended; `is_drained` when everything that it had is durable, `is_settled` when nothing that was sent can reach the store any more.
    pub fn handle_capture_stopped(&mut self, is_drained: bool, is_settled: bool, now: Monotonic) {
        assert!(matches!(self.stage, Stage::StoppingCapture { .. }), "told to end capture");
        (self.owes, self.is_undrained) = (!is_settled, !is_drained);
        let leaves = self.stops || self.hands_on;
        let may_leave = is_drained || !self.terms.rules.release_when_drained;
        if leaves && may_leave && self.has_right(now) {
            self.release(is_settled);
        } else if self.stops {
            // What is not durable is on this node only, and its lease is left to run out.
            self.end();
        } else {
            self.hands_on = false;
            self.rest();
        }
    }

    /// When [`RoleMachine::poll_action`] must be called next, if nothing happens before. Always after the last call: what is due and cannot be done, because
    /// the lease has run out and nobody tells more, waits for an event.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let due = match (&self.stage, &self.view) {
            (Stage::Serving, View::Ours { until, .. }) => Some(self.last_moment(*until)),
            (Stage::Preparing { is_cancelled: false }, View::Ours { until, .. }) => {
                Some(self.last_moment(*until).min(self.prepared_by))
            }
            (Stage::StoppingCapture { drains: true }, View::Ours { until, .. }) => Some(*until),
            (Stage::Idle, View::Ours { .. } | View::Held { .. }) => Some(self.not_before),
            _ => None,
        };
        due.into_iter().chain(self.abstains).filter(|due| self.polled.is_none_or(|polled| *due > polled)).min()
    }

    /// What is to be done now, if anything.
    pub fn poll_action(&mut self, now: Monotonic) -> Option<Action> {
        if self.actions.is_empty() {
            self.step(now);
        }
        let action = self.actions.pop_front();
        if action.is_none() {
            self.polled = Some(now);
        }
        action
    }

    fn step(&mut self, now: Monotonic) {
        // Once another has had it, whoever has handed it on is a candidate like any other.
        let is_taken = matches!(self.view, View::Held { .. });
        if self.abstains.is_some_and(|until| until <= now || is_taken || self.view == View::Offered) {
            self.abstains = None;
            self.actions.push_back(Action::Compete);
            return;
        }
        match self.stage.clone() {
            Stage::Idle => self.decide(now),
            Stage::Following { address } => {
                let is_elsewhere = matches!(&self.view, View::Held { address: Some(other) } if *other != address);
                if self.stops || is_elsewhere || self.has_time(now) {
                    let waits = self.terms.rules.unfollow_first;
                    self.stage = if waits { Stage::Unfollowing } else { Stage::Idle };
                    self.actions.push_back(Action::Unfollow);
                }
            }
            Stage::Preparing { is_cancelled: false }
                if self.stops || self.hands_on || !self.has_time(now) || now >= self.prepared_by =>
            {
                // Others may be able to.
                self.hands_on |= now >= self.prepared_by;
                self.stage = Stage::Preparing { is_cancelled: true };
                self.actions.push_back(Action::CancelPrepare);
            }
            Stage::Serving => {
                let why = match () {
                    () if !self.has_time(now) => Why::Lapsing,
                    () if self.stops => Why::Stop,
                    () if self.hands_on => Why::Handoff,
                    () => return,
                };
                self.stage = Stage::StoppingApplication;
                self.actions.push_back(Action::StopApplication(why));
                if !self.terms.rules.application_first {
                    self.stop_capture(now);
                }
            }
            Stage::StoppingCapture { drains: true } if !self.has_right(now) => {
                self.stage = Stage::StoppingCapture { drains: false };
                self.actions.push_back(Action::StopCapture { drain: false });
            }
            Stage::Releasing if self.view == View::Ended => self.released(now),
            Stage::Unfollowing
            | Stage::Preparing { .. }
            | Stage::StoppingApplication
            | Stage::StoppingCapture { .. }
            | Stage::Releasing
            | Stage::Ended => {}
        }
    }

    /// What a node does that does nothing.
    fn decide(&mut self, now: Monotonic) {
        if self.stops && self.is_undrained {
            // What is not durable is on this node only, and may still be on its way: the lease is left to run out.
            return self.end();
        }
        if self.stops {
            return self.release(false);
        }
        if now < self.not_before {
            return;
        }
        match &self.view {
            View::Ours { tenure, .. } if self.has_time(now) => {
                (self.tenure, self.is_lost) = (Some(*tenure), false);
                self.prepared_by = now.after(self.terms.prepare);
                self.stage = Stage::Preparing { is_cancelled: false };
                if self.terms.rules.prepare_first {
                    let was_served = self.served == self.tenure;
                    let owes = (self.owes || was_served) && self.terms.rules.fence_what_is_owed;
                    self.actions.push_back(Action::Prepare { owes });
                } else {
                    self.handle_prepared(true, now);
                }
            }
            View::Held { address: Some(address) } => {
                // Another has the right, and what is not in its history is kept when it is followed.
                (self.owes, self.is_undrained) = (false, false);
                self.actions.push_back(Action::Follow(address.clone()));
                self.stage = Stage::Following { address: address.clone() };
            }
            View::Vacant | View::Offered | View::Held { address: None } | View::Ours { .. } | View::Ended => {}
        }
    }

    fn release(&mut self, is_quiet: bool) {
        self.stage = Stage::Releasing;
        let is_quiet = is_quiet || !self.terms.rules.quiet_when_drained;
        self.actions.push_back(Action::Release { is_quiet });
    }

    fn stop_capture(&mut self, now: Monotonic) {
        let drains = self.has_right(now);
        self.stage = Stage::StoppingCapture { drains };
        self.actions.push_back(Action::StopCapture { drain: drains });
    }

    fn released(&mut self, now: Monotonic) {
        if self.stops {
            return self.end();
        }
        self.hands_on = false;
        // The numbers of takings begin anew with the next look at the lease.
        self.served = None;
        self.rest();
        self.view = View::Vacant;
        self.actions.push_back(Action::Watch);
        self.abstains = self.terms.is_candidate.then(|| now.after(self.terms.abstain));
    }

    fn end(&mut self) {
        self.stage = Stage::Ended;
        self.actions.push_back(Action::End);
    }

    fn has_right(&self, now: Monotonic) -> bool {
        !self.is_lost && matches!(self.view, View::Ours { until, .. } if now < until)
    }

    /// Whether the right lasts long enough to begin something, or to go on with it.
    fn has_time(&self, now: Monotonic) -> bool {
        !self.is_lost && matches!(self.view, View::Ours { until, .. } if now < self.last_moment(until))
    }

    fn last_moment(&self, until: Monotonic) -> Monotonic {
        Monotonic(until.0.saturating_sub(u64::try_from(self.terms.grace.as_millis()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests;
