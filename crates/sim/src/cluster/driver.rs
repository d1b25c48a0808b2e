//! A node: does what the role machine says, in the order in which the node of `crates/node` does it, and tells it what has happened.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use rhyolite_format::Epoch;
use rhyolite_format::lease::Witnesses;
use rhyolite_logic::lease::{LastWill, Monotonic, Standing, Terms};
use rhyolite_logic::role::{Action, Role, RoleMachine, RoleTerms, View, Why};
use rhyolite_logic::witness::next_list;
use rhyolite_store::Store;
use rhyolite_writer::World;
use rhyolite_writer::lease_keeper::{LeaseHandle, Loan, lease};
use rhyolite_writer::lease_place::InStore;
use rhyolite_writer::names::Names;
use tokio::sync::{mpsc, watch};

use super::account;
use super::capture::{self, Lines};
use super::director;
use super::files::Files;
use super::follow::Live;
use super::forward;
use super::guard::{Guard, Line, Told};
use super::machine::{Machine, guard_of};
use super::prepare::Prepare;
use super::rules::ClusterRules;
use crate::executor::NodeId;
use crate::node::Remembering;
use crate::scenario::MS;
use crate::sim::{NodeWorld, Sim};
use crate::store::SimStore;

/// Longest time between two looks at how things stand.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two tries to lock a folder.
const LOCK_LOOK: u64 = 50 * MS;
/// For so long a task that should have stopped goes on where nobody waits for it.
const LINGER: Duration = Duration::from_secs(2);

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process is to end.
    Stop,
    /// The role is to be handed on.
    Handoff,
    /// The guard tells something.
    Told(Told),
    /// Nothing is followed any more.
    Unfollowed,
    /// The databases are prepared, or not.
    Prepared(bool),
    /// All that the capture of this number had found is durable.
    Durable(u64),
    /// Capture has ended; whether everything is durable.
    Captured(bool),
}

struct Capture {
    stop: watch::Sender<bool>,
    serves: watch::Sender<bool>,
    number: u64,
    /// All that was there when it began is durable.
    is_durable: bool,
    /// Dropped, it takes the right away.
    loan: Option<Loan>,
}

struct Driver {
    sim: Arc<Sim>,
    node: NodeId,
    world: Arc<NodeWorld>,
    store: Arc<dyn Store>,
    rules: ClusterRules,
    terms: Terms,
    machine: RoleMachine,
    lease: LeaseHandle,
    events: mpsc::UnboundedReceiver<Event>,
    to_self: mpsc::UnboundedSender<Event>,
    guard: mpsc::UnboundedSender<Line>,
    files: Files,
    names: Arc<Names>,
    /// Until when the guard knows that we have the right.
    told_until: Monotonic,
    application: bool,
    kill_at: Option<Monotonic>,
    following: Option<watch::Sender<bool>>,
    preparing: Option<watch::Sender<bool>>,
    capture: Option<Capture>,
    /// So many have begun.
    captures: u64,
    role: Role,
}

/// Starts a node, unless one runs; as soon as its folder is free.
pub fn start(sim: &Arc<Sim>, node: NodeId) {
    let life = {
        let mut machine = sim.cluster().machine(node);
        if machine.runs {
            return;
        }
        machine.runs = true;
        machine.life += 1;
        machine.life
    };
    let own = Arc::clone(sim);
    sim.timeline.spawn(Some(node), async move {
        while own.cluster().machine(node).has_guard {
            own.timeline.sleep(LOCK_LOOK).await;
        }
        run(&own, node, life).await;
    });
}

async fn run(sim: &Arc<Sim>, node: NodeId, life: u64) {
    let (to_self, events) = mpsc::unbounded_channel();
    let (guard, lines) = mpsc::unbounded_channel();
    {
        let mut machine = sim.cluster().machine(node);
        (machine.has_guard, machine.events) = (true, Some(to_self.clone()));
    }
    sim.trace(|| format!("node {node} starts, for the {life}. time"));
    let guarded = Guard::new(sim, node, to_self.clone()).run(lines);
    sim.timeline.spawn(Some(guard_of(sim.scenario.nodes, node)), guarded);
    let scenario = &sim.scenario;
    let rules = scenario.cluster.expect("a cluster").rules;
    let holder = format!("node {node}");
    let process = Some(Machine::process(node, life));
    let terms = Terms { address: Some(holder.clone()), process, ..Terms::new(scenario.ttl, holder) };
    let world = Arc::new(NodeWorld { sim: Arc::clone(sim), node });
    let store: Arc<dyn Store> = Arc::new(SimStore { sim: Arc::clone(sim), node });
    let lease = keep_lease(sim, node, (&world, &store), &terms, true);
    let driver = Driver {
        machine: RoleMachine::new(role_terms(sim, rules)),
        sim: Arc::clone(sim),
        node,
        world,
        store,
        rules,
        terms,
        lease,
        events,
        to_self,
        guard,
        files: Files::new(sim, node),
        names: Arc::new(Names::new(Epoch::FIRST)),
        told_until: Monotonic(0),
        application: false,
        kill_at: None,
        following: None,
        preparing: None,
        capture: None,
        captures: 0,
        role: Role::Waiting,
    };
    driver.run().await;
    sim.trace(|| format!("node {node} ends"));
    director::ended(sim, node);
}

/// Whoever waits for witnesses that cannot be heard gives the lease up for the node that can do without them: here soon enough to see that.
fn role_terms(sim: &Sim, rules: ClusterRules) -> RoleTerms {
    let (scenario, terms) = (&sim.scenario, RoleTerms::new(sim.scenario.ttl, true));
    let has_witnesses = scenario.cluster.is_some_and(|cluster| cluster.has_witnesses());
    let prepare = if has_witnesses { scenario.ttl * 2 } else { terms.prepare };
    RoleTerms { rules: rules.role, prepare, ..terms }
}

fn keep_lease(
    sim: &Arc<Sim>,
    node: NodeId,
    (world, store): (&Arc<NodeWorld>, &Arc<dyn Store>),
    terms: &Terms,
    competes: bool,
) -> LeaseHandle {
    let memory = Box::new(Remembering { sim: Arc::clone(sim), node });
    let world = Arc::clone(world) as Arc<dyn World>;
    let guards = sim.scenario.guards;
    let (keeper, handle) = lease(Arc::new(InStore(Arc::clone(store))), world, memory, terms.clone(), guards, &[]);
    handle.set_competes(competes);
    sim.timeline.spawn(Some(node), keeper.run());
    sim.node(node).handle = Some(handle.clone());
    handle
}

impl Driver {
    fn now(&self) -> Monotonic {
        self.world.now()
    }

    async fn run(mut self) {
        loop {
            let changes: BoxFuture<'static, ()> = match self.lease.changes() {
                Some(changes) => Box::pin(changes),
                None => Box::pin(std::future::pending()),
            };
            self.take_standing();
            while let Some(action) = self.machine.poll_action(self.now()) {
                if action == Action::End {
                    return;
                }
                self.act(action);
                self.take_standing();
            }
            self.sim.cluster().machine(self.node).is_capturing = self.machine.is_capturing();
            self.tend_witnesses();
            self.say_role();
            if !self.next(changes).await {
                return;
            }
        }
    }

    fn say_role(&mut self) {
        let role = self.machine.role();
        if std::mem::replace(&mut self.role, role) != role {
            self.files.say(|| format!("is {}", role.name()));
        }
    }

    /// Lets everybody know how the lease stands.
    fn take_standing(&mut self) {
        let address = self.terms.address.as_deref().expect("every node has one");
        let view = View::of(self.lease.standing(), address);
        self.machine.handle_lease(view.clone());
        if self.machine.has_lost() && self.rules.node.loan_ends {
            if let Some(capture) = &mut self.capture {
                capture.loan = None;
            }
            forward::close(&self.sim, self.node);
            return;
        }
        if let View::Ours { until, .. } = view {
            if self.application && until > self.told_until {
                self.tell_guard(Line::Until(until));
            }
            self.told_until = until.max(self.told_until);
        }
        if let Some(loan) = self.capture.as_ref().and_then(|capture| capture.loan.as_ref()) {
            loan.pass_on();
        }
    }

    fn tell_guard(&self, line: Line) {
        // A guard that is gone shows by an event.
        let _ = self.guard.send(line);
    }

    /// Waits for what happens next. `false` when the process ends by it.
    async fn next(&mut self, changes: BoxFuture<'static, ()>) -> bool {
        let now = self.now();
        let dues = [self.machine.poll_timeout(), self.kill_at];
        let due = dues.into_iter().flatten().map(|due| now.until(due)).min().unwrap_or(LOOK).min(LOOK);
        let sleep = self.world.sleep(due);
        let quiet = select(changes, sleep);
        let event = match select(Box::pin(self.events.recv()), quiet).await {
            Either::Left((event, _)) => event,
            Either::Right(_) => None,
        };
        let goes_on = event.is_none_or(|event| self.note(event));
        if self.kill_at.is_some_and(|at| at <= self.now()) {
            self.kill_at = None;
            self.tell_guard(Line::Kill);
        }
        goes_on
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Follow(address) => self.follow(&address),
            Action::Unfollow => drop(self.following.as_ref().map(|stop| stop.send_replace(true))),
            Action::Prepare { owes } => self.prepare(owes),
            Action::CancelPrepare => drop(self.preparing.as_ref().map(|cancel| cancel.send_replace(true))),
            Action::Serve => self.serve(),
            Action::StopApplication(why) => self.stop_application(why),
            Action::StopCapture { drain } => {
                forward::close(&self.sim, self.node);
                if let Some(capture) = &mut self.capture {
                    if !drain {
                        capture.loan = None;
                    }
                    capture.stop.send_replace(true);
                }
            }
            Action::Release { is_quiet } => {
                let successor = self.successor().filter(|_| !is_quiet);
                let (lease, last_will) = (self.lease.clone(), LastWill { is_quiet, successor });
                self.sim.timeline.spawn(Some(self.node), async move { lease.release(last_will).await });
            }
            Action::Watch => {
                self.sim.cluster().machine(self.node).account.end();
                self.lease = keep_lease(&self.sim, self.node, (&self.world, &self.store), &self.terms, false);
            }
            Action::Compete => self.lease.set_competes(true),
            Action::End => unreachable!("taken by the caller"),
        }
    }

    fn follow(&mut self, address: &str) {
        let primary = address.strip_prefix("node ").and_then(|n| n.parse().ok()).expect("nodes have such addresses");
        let (stop, mut stopped) = watch::channel(false);
        let live = Live { files: self.files.clone(), world: Arc::clone(&self.world), primary };
        let (events, waits, world) = (self.to_self.clone(), self.rules.role.unfollow_first, Arc::clone(&self.world));
        self.files.say(|| format!("follows {address}"));
        self.sim.timeline.spawn(Some(self.node), async move {
            let told = Box::pin(async {
                let _ = stopped.wait_for(|stop| *stop).await;
                if !waits {
                    world.sleep(LINGER).await;
                }
            });
            select(told, Box::pin(live.run())).await;
            // A driver that is gone hears nothing.
            let _ = events.send(Event::Unfollowed);
        });
        self.following = Some(stop);
    }

    fn prepare(&mut self, owes: bool) {
        let (cancel, mut cancelled) = watch::channel(false);
        let prepare = Prepare {
            files: self.files.clone(),
            world: Arc::clone(&self.world),
            store: Arc::clone(&self.store),
            lease: self.lease.clone(),
            must_fence: owes || !matches!(self.lease.standing(), Standing::Ours { origin, .. } if origin.was_quiet),
        };
        let events = self.to_self.clone();
        self.sim.timeline.spawn(Some(self.node), async move {
            let told = Box::pin(cancelled.wait_for(|cancel| *cancel));
            let is_done = matches!(select(told, Box::pin(prepare.run())).await, Either::Right(_));
            let _ = events.send(Event::Prepared(is_done));
        });
        self.preparing = Some(cancel);
    }

    /// Captures. Whoever has found a list of witnesses serves nobody before what it has found is durable.
    fn serve(&mut self) {
        let (loan, lent) = self.lease.lend();
        let ((stop, stopped), (serves, may_serve)) = (watch::channel(false), watch::channel(false));
        self.captures += 1;
        let number = self.captures;
        let lines = Lines { stop: stopped, serves: may_serve, durable: (number, self.to_self.clone()) };
        let captured = capture::run(Arc::clone(&self.sim), self.node, lent, Arc::clone(&self.names), lines);
        let events = self.to_self.clone();
        self.sim.timeline.spawn(Some(self.node), async move {
            let is_drained = captured.await;
            let _ = events.send(Event::Captured(is_drained));
        });
        let waits = self.lease.witnesses().is_some() && self.rules.node.witness.durable_first;
        self.capture = Some(Capture { stop, serves, number, is_durable: !waits, loan: Some(loan) });
        let tenure = self.tenure();
        self.sim.cluster().machine(self.node).account.begin(tenure);
    }

    fn tenure(&self) -> Option<u64> {
        match self.lease.standing() {
            Standing::Ours { origin, .. } => Some(origin.tenure),
            Standing::Unknown | Standing::Theirs { .. } | Standing::Ended => None,
        }
    }

    /// The node that has told what this one does not know of: it can go on without asking anybody.
    fn successor(&self) -> Option<String> {
        if !self.rules.node.witness.successor {
            return None;
        }
        self.lease.witnesses().map(|list| list.of).filter(|of| Some(of) != self.terms.address.as_ref())
    }

    /// Keeps the list of witnesses in the lease as it should be, and lets everybody be served when there is none of before.
    fn tend_witnesses(&mut self) {
        let Some(capture) = self.capture.as_ref().filter(|capture| capture.is_durable) else { return };
        let (Some(tenure), Some(_)) = (self.tenure(), self.lease.right()) else { return };
        if self.machine.has_lost() || !self.machine.is_capturing() {
            return;
        }
        let (said, rules, is_open) = (self.lease.witnesses(), self.rules.node.witness, *capture.serves.borrow());
        let wish = {
            let account = &self.sim.cluster().machine(self.node).account;
            if account.tenure != Some(tenure) {
                return;
            }
            account.wish.clone()
        };
        let mut is_settled = wish.as_ref() == Some(&said);
        if wish.is_none() || is_settled {
            is_settled = self.list(tenure, said);
        }
        let is_replaced = is_settled || !rules.replaced_first;
        if !is_open && is_replaced && self.machine.role() == Role::Primary {
            self.open();
        }
    }

    /// Decides what the lease is to say. Whether it says that already.
    fn list(&mut self, tenure: u64, said: Option<Witnesses>) -> bool {
        let own = self.terms.address.clone().expect("every node has one");
        let durable = self.sim.node(self.node).disk.state.as_ref().and_then(|state| state.durable);
        let now = self.sim.timeline.now();
        let account = &mut self.sim.cluster().machine(self.node).account;
        let (here, awaited) = account.present(now);
        let next = match self.sim.scenario.cluster.expect("a cluster").witnesses {
            0 => None,
            count => next_list((&own, count), said.as_ref(), &here, |name| awaited.contains(name)),
        };
        let is_safe = account.ledger.is_safe_by(next.as_ref(), durable.map(|pos| pos.txid));
        if is_safe || !self.rules.node.witness.safe_by {
            account.wish = Some(next.clone());
            if next != said {
                self.files
                    .say(|| format!("wants for witnesses: {:?}", next.as_ref().map(|list| list.nodes.join(", "))));
            }
            self.lease.set_witnesses(tenure, next.clone());
        }
        account.wish == Some(said)
    }

    /// Everything is durable, and nobody is served any more.
    fn needs_no_witnesses(&mut self) {
        let tenure = self.tenure();
        let account = &mut self.sim.cluster().machine(self.node).account;
        if let Some(tenure) = tenure.filter(|_| account.tenure == tenure) {
            account.wish = Some(None);
            self.lease.set_witnesses(tenure, None);
        }
    }

    /// Followers and the application are served.
    fn open(&mut self) {
        if let Some(capture) = &self.capture {
            capture.serves.send_replace(true);
        }
        {
            let account = &mut self.sim.cluster().machine(self.node).account;
            (account.is_open, account.openings) = (true, account.openings + 1);
        }
        if self.sim.scenario.cluster.expect("a cluster").has_witnesses() {
            let telling = account::tell(Arc::clone(&self.sim), self.node, self.lease.clone());
            self.sim.timeline.spawn(Some(self.node), telling);
        }
        self.application = true;
        forward::open(&self.sim, self.node);
        self.tell_guard(Line::Run(self.told_until));
    }

    fn stop_application(&mut self, why: Why) {
        self.files.say(|| format!("stops its application: {why:?}"));
        forward::close(&self.sim, self.node);
        if !self.application {
            return self.machine.handle_application_stopped(self.now());
        }
        self.tell_guard(Line::Signal);
        let timeout = self.sim.scenario.cluster.expect("a cluster").stop_timeout;
        self.kill_at = Some(self.now().after(Duration::from_micros(timeout)));
    }

    /// `false` when the process ends by it.
    fn note(&mut self, event: Event) -> bool {
        let now = self.now();
        match event {
            Event::Stop => self.machine.stop(),
            Event::Handoff => {
                if self.machine.hand_on() {
                    self.files.say(|| "hands its role on".to_owned());
                }
            }
            Event::Told(told) => self.note_told(told),
            Event::Unfollowed => {
                self.following = None;
                match self.machine.is_unfollowing() {
                    true => self.machine.handle_unfollowed(),
                    false => self.machine.handle_following_ended(now),
                }
            }
            Event::Prepared(is_done) => {
                self.preparing = None;
                self.machine.handle_prepared(is_done, now);
            }
            Event::Durable(number) => {
                let one = self.capture.as_mut().filter(|capture| capture.number == number);
                if let Some(capture) = one {
                    capture.is_durable = true;
                }
            }
            Event::Captured(is_drained) => {
                self.capture = None;
                self.sim.cluster().machine(self.node).account.is_open = false;
                if is_drained {
                    self.needs_no_witnesses();
                }
                if !self.machine.is_stopping_capture() {
                    // Nothing is captured any more.
                    return false;
                }
                self.files.say(|| format!("captures no more, {}", if is_drained { "drained" } else { "undrained" }));
                self.machine.handle_capture_stopped(is_drained, is_drained, now);
            }
        }
        true
    }

    fn note_told(&mut self, told: Told) {
        self.kill_at = None;
        let now = self.now();
        let was_asked = self.machine.role() != Role::Primary;
        self.application = false;
        match told {
            Told::Expired => self.machine.handle_application_expired(now),
            Told::Ended if was_asked => self.machine.handle_application_stopped(now),
            Told::Ended => self.machine.handle_application_ended(now),
            Told::Gone => {
                // The lease named the guard: others may take it for free by now.
                self.machine.lose();
                if let Some(capture) = &mut self.capture {
                    capture.loan = None;
                }
                self.machine.stop();
                self.machine.handle_application_ended(now);
            }
        }
    }
}
