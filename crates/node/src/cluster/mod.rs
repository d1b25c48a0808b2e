//! A node of a cluster: one folder of databases that is captured while this node has the shared lease of the store, and follows whoever has it
//! otherwise.
//!
//! What is done when is said by [`RoleMachine`]; here it is done. One task knows everything, and waits for nothing but for what may happen next: what takes
//! time runs in tasks of its own.
//!
//! ```text
//!   lease keeper ──┐                    ┌─► following   (follow::node)
//!   guard ─────────┤                    ├─► preparing   (prepare)
//!   stop, handoff ─┼─► role machine ────┼─► capture     (supervise, under a lent lease)
//!   what has ended ┘                    └─► application (guard)
//! ```

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhyolite_format::lease::NAME_SIZE_MAX;
use rhyolite_logic::lease::{LastWill, Monotonic, Standing, Terms};
use rhyolite_logic::park;
use rhyolite_logic::role::{Action, Role, RoleMachine, RoleTerms, View, Why};
use rhyolite_store::Environment;
use rhyolite_writer::World;
use rhyolite_writer::lease_keeper::{LeaseHandle, Loan};
use rhyolite_writer::lease_place::LeasePlace;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::cli::exit::{Failure, Status};
use crate::config::folder::FolderConfig;
use crate::follow::replica;
use crate::follow::source::Source;
use crate::follow::trails::Trails;
use crate::lease;
use crate::lease_place::LeaseUrl;
use crate::mount::MountHandle;
use crate::process;
use crate::proxy::Flight;
use crate::replicate::ReplicateError;
use crate::signals::StopRequest;
use crate::status::StatusBoard;
use crate::stream::accept::Accepting;
use crate::stream::client::{Access, Address};
use crate::supervise::control::Command;
use crate::supervise::{self, SuperviseOptions};
use crate::world::RealWorld;
use application::{Application, Told};
use following::Following;
use hearing::Hearing;
use prepare::Prepare;
use quiet::Quiet;
use report::ReplicaReport;
use witness::{Durability, Lists};

mod application;
mod commands;
mod following;
pub mod guard;
mod hearing;
mod prepare;
pub mod promote;
mod quiet;
pub mod report;
pub mod witness;

pub use application::Guard;

/// Names the primary to whoever reads the folder of a replica.
const PRIMARY_FILE: &str = ".primary";
/// Time of a lease that never runs out: it is renewed all the same.
const STATIC_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest time between two looks at how things stand.
const LOOK: Duration = Duration::from_millis(500);
/// How long a lease that is expected to change hands is looked at often.
const CHANGE: Duration = Duration::from_secs(2);
/// Requests to capture that wait.
const COMMANDS_MAX: usize = 64;

/// What a node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its databases, whose lease is shared.
    pub folder: FolderConfig,
    /// Where others reach it.
    pub address: String,
    /// Where the lease lies, if not in the store.
    pub lease: Option<LeaseUrl>,
    /// What nodes show each other.
    pub access: Access,
    /// Whether it may become the primary.
    pub is_candidate: bool,
    /// The primary is not dialed, but dials and has this place.
    pub accepting: Option<Arc<Accepting>>,
    /// How long the application, and then the last uploads, may take at an end.
    pub stop_timeout: Duration,
    /// When databases are parked.
    pub parking: park::Policy,
    /// Requests of a proxy that the application has.
    pub flight: Flight,
    /// Where the files of a replica have been.
    pub trails: Arc<Trails>,
    /// Whose commits are called safe before they are in the store.
    pub durability: Durability,
    /// Turns true when commits that were acknowledged and cannot be found are given up.
    pub forgets: watch::Sender<bool>,
    /// Where the databases are mounted, if they are.
    pub mount: Option<MountHandle>,
}

/// A request to hand the role on.
#[derive(Debug)]
pub struct Handoff {
    /// The address of the node that is to have it; anybody when there is none.
    pub to: Option<String>,
    /// Answered with what is wrong with that, if anything.
    pub reply: HandoffReply,
}

/// Takes what is wrong with a request to hand the role on, if anything.
pub type HandoffReply = oneshot::Sender<Result<(), String>>;

/// What is captured.
struct Capture {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<ReplicateError>>,
    commands: mpsc::Sender<Command>,
    /// Dropped, it takes the right away.
    loan: Option<Loan>,
}

/// Databases are being prepared.
struct Preparing {
    cancel: watch::Sender<bool>,
    task: JoinHandle<Option<Vec<String>>>,
    /// The lease says that there is something which may be nowhere but on other nodes.
    owes: bool,
}

/// Something that has happened.
enum Event {
    /// It is time to look.
    Look,
    Stop(Signal),
    Told(Told),
    Unfollowed(Result<(), String>),
    /// With the databases of which the store has something.
    Prepared(Option<Vec<String>>),
    Captured(Vec<ReplicateError>),
    Command(Command),
    Handoff(Handoff),
    KillDue,
}

struct Node {
    config: NodeConfig,
    board: Arc<StatusBoard>,
    commands: mpsc::Receiver<Command>,
    handoffs: mpsc::Receiver<Handoff>,
    stop: StopRequest,
    signal: Option<Signal>,
    machine: RoleMachine,
    terms: Terms,
    place: Arc<dyn LeasePlace>,
    lease: LeaseHandle,
    /// What was last said to keep the lease from being read or written.
    told_problem: Option<String>,
    /// What was captured and is not durable, for people.
    undrained: Option<String>,
    /// Until when the guard knows that we have the right.
    told_until: Monotonic,
    application: Option<Application>,
    /// Who is to have the lease after us.
    successor: Option<String>,
    /// Who asked for a handoff, and the answer: given when everybody can see what has become of it.
    reply: Option<(HandoffReply, Result<(), String>)>,
    /// When the application is killed that was told to stop.
    kill_at: Option<tokio::time::Instant>,
    following: Option<Following>,
    preparing: Option<Preparing>,
    capture: Option<Capture>,
    lists: Lists,
    /// Keeps others from committing on the mount.
    quiet: Option<Quiet>,
    trails: Arc<Trails>,
    /// With what the process ends.
    code: u8,
    failure: Option<Failure>,
}

/// Runs a node until it is told to stop, or its application ends. Gives the application's status.
///
/// # Errors
/// The store cannot be used, or what was captured is not durable.
pub async fn run(
    config: NodeConfig,
    guard: Option<Guard>,
    board: Arc<StatusBoard>,
    commands: mpsc::Receiver<Command>,
    handoffs: mpsc::Receiver<Handoff>,
    stop: StopRequest,
) -> Result<u8, Failure> {
    // As long as the guard lives the application may write: the lease of a dead process is taken at once.
    let process = guard.as_ref().map_or_else(process::own, Guard::process);
    let terms = Terms { address: Some(config.address.clone()), process, ..terms(&config) };
    let application = guard.map(Application::new).transpose();
    let application = application.map_err(|e| Failure::failed(format!("cannot talk to the guard: {e}")))?;
    let place = place(&config, &terms)?;
    let folder = config.folder.dir.clone();
    let recovered = tokio::task::spawn_blocking(move || replica::recover(&folder, 0)).await;
    recovered.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    let lease = lease::keep(Arc::clone(&place), &config.folder.template, terms.clone(), config.is_candidate);
    let trails = Arc::clone(&config.trails);
    let node = Node {
        machine: RoleMachine::new(RoleTerms::new(terms.ttl, config.is_candidate)),
        config,
        board,
        commands,
        handoffs,
        stop,
        signal: None,
        terms,
        place,
        lease,
        told_problem: None,
        undrained: None,
        told_until: Monotonic(0),
        application,
        successor: None,
        reply: None,
        kill_at: None,
        following: None,
        preparing: None,
        capture: None,
        lists: Lists::default(),
        quiet: None,
        trails,
        code: Status::Ok.code(),
        failure: None,
    };
    node.name_primary(None);
    node.run().await
}

/// How the lease is held, where it lies.
fn terms(config: &NodeConfig) -> Terms {
    let ttl = config.folder.template.lease.ttl;
    match &config.lease {
        None => Terms::new(ttl, lease::holder()),
        Some(lease) if lease.is_static() => Terms::new(STATIC_TTL, lease::holder()),
        Some(_) => Terms::new(ttl, lease::holder()).where_records_get_lost(),
    }
}

fn place(config: &NodeConfig, terms: &Terms) -> Result<Arc<dyn LeasePlace>, Failure> {
    let template = &config.folder.template;
    let Some(url) = &config.lease else {
        let (_, store) = lease::place(template);
        let place = lease::in_store(&store, template, &Arc::default());
        return place.map_err(|e| Failure::usage(format!("cannot use the store: {e}")));
    };
    // A primary with TLS has a certificate for its name, as this node has.
    let scheme = config.address.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    url.open(&Environment::Process, terms.answer, &scheme)
        .map_err(|e| Failure::usage(format!("cannot use the lease: {e}")))
}

impl Node {
    async fn run(mut self) -> Result<u8, Failure> {
        loop {
            let mut changes = self.lease.changes();
            self.take_standing().await;
            while let Some(action) = self.machine.poll_action(RealWorld.now()) {
                if action == Action::End {
                    self.report();
                    let not_durable = self.undrained.take().map(|text| Failure::new(Status::NotDurable, text));
                    return self.failure.or(not_durable).map_or(Ok(self.code), Err);
                }
                self.act(action).await?;
                // It may be another lease by now.
                changes = self.lease.changes();
                self.take_standing().await;
            }
            self.keep_witnesses().await;
            self.report();
            if let Some((reply, answer)) = self.reply.take() {
                // Whoever has asked may be gone.
                let _ = reply.send(answer);
            }
            let event = self.next(async {
                match changes {
                    Some(changes) => changes.await,
                    None => std::future::pending().await,
                }
            });
            let event = event.await;
            self.note(event).await?;
        }
    }

    /// Says what is wrong with the lease, once for each time that we have held it: reads may work while writes fail, by turns.
    fn tell_problem(&mut self) {
        if self.lease.right().is_some() {
            self.told_problem = None;
        } else if let Some(text) = self.lease.problem().filter(|text| self.told_problem.as_ref() != Some(text)) {
            tracing::warn!("the lease cannot be read or written: {text}");
            self.told_problem = Some(text);
        }
    }

    /// Lets everybody know how the lease stands.
    async fn take_standing(&mut self) {
        self.tell_problem();
        let view = View::of(self.lease.standing(), &self.config.address);
        self.machine.handle_lease(view.clone());
        if self.machine.has_lost() {
            // Whatever is ours again by now: nothing more is captured under it, and the application gets no more time.
            if let Some(capture) = &mut self.capture {
                capture.loan = None;
            }
            self.end_witnesses();
            self.board.grants.close();
            return;
        }
        if let View::Ours { until, .. } = view {
            if let Some(application) = self.application.as_mut().filter(|_| until > self.told_until) {
                application.renew(until).await;
            }
            self.told_until = until.max(self.told_until);
        }
        if let Some(loan) = self.capture.as_ref().and_then(|capture| capture.loan.as_ref()) {
            loan.pass_on();
        }
    }

    async fn next(&mut self, changes: impl Future<Output = ()>) -> Event {
        let look = if self.is_watching_witnesses() { witness::LOOK } else { LOOK };
        let due = self.machine.poll_timeout().map_or(look, |due| RealWorld.now().until(due).min(look));
        let is_captured_elsewhere = self.capture.is_none();
        let (kill_at, is_told) = (self.kill_at, self.signal.is_some());
        let (stop, following, preparing) = (&mut self.stop, &mut self.following, &mut self.preparing);
        tokio::select! {
            Ok(signal) = stop.wait_for(Option::is_some), if !is_told => Event::Stop(signal.unwrap_or(Signal::TERM)),
            told = told(&mut self.application) => Event::Told(told),
            ended = unfollowed(following) => Event::Unfollowed(ended),
            done = prepared(preparing) => Event::Prepared(done),
            errors = captured(&mut self.capture) => Event::Captured(errors),
            Some(command) = self.commands.recv() => Event::Command(command),
            Some(handoff) = self.handoffs.recv() => Event::Handoff(handoff),
            () = self.board.pulse.asked(), if is_captured_elsewhere => {
                self.board.pulse.answer();
                Event::Look
            }
            () = tokio::time::sleep_until(kill_at.unwrap_or_else(tokio::time::Instant::now)), if kill_at.is_some() => Event::KillDue,
            () = changes => Event::Look,
            () = tokio::time::sleep(due) => Event::Look,
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), Failure> {
        match action {
            Action::Follow(address) => self.follow(&address),
            Action::Unfollow => {
                if let Some(following) = &self.following {
                    following.stop();
                }
            }
            Action::Prepare { owes } => self.prepare(owes),
            Action::CancelPrepare => {
                if let Some(preparing) = &self.preparing {
                    preparing.cancel.send_replace(true);
                }
            }
            Action::Serve => self.serve().await?,
            Action::StopApplication(why) => self.stop_application(why).await,
            Action::StopCapture { drain } => {
                self.end_witnesses();
                self.board.grants.close();
                self.board.grants.settled().await;
                self.quiet_mount(drain).await;
                self.board.leaving.send_replace(drain);
                if let Some(capture) = &mut self.capture {
                    if !drain {
                        capture.loan = None;
                    }
                    capture.stop.send_replace(true);
                }
            }
            Action::Release { is_quiet } => {
                // Who has acknowledged what nobody here can be asked for may be back.
                let asked = self.lease.witnesses().filter(|_| !is_quiet).map(|witnesses| witnesses.of);
                let asked = asked.filter(|of| *of != self.config.address);
                let successor = self.successor.take().or(asked);
                let (lease, last_will) = (self.lease.clone(), LastWill { is_quiet, successor });
                // The end of the lease is seen as its standing.
                tokio::spawn(async move { lease.release(last_will).await });
            }
            Action::Watch => {
                let (place, terms) = (Arc::clone(&self.place), self.terms.clone());
                self.lease = lease::keep(place, &self.config.folder.template, terms, false);
                self.lease.look_closely(CHANGE);
            }
            Action::Compete => self.lease.set_competes(true),
            Action::End => unreachable!("taken by the caller"),
        }
        Ok(())
    }

    fn follow(&mut self, address: &str) {
        match node_address(address) {
            Ok(parsed) => {
                tracing::info!("role: replica of {address}");
                self.board.leaving.send_replace(false);
                self.trails.doubt_all();
                self.undrained = None;
                self.name_primary(Some(address));
                let source = match &self.config.accepting {
                    Some(accepting) => Source::Accepted(Arc::clone(accepting)),
                    None => Source::Dialed { address: parsed, access: self.config.access.clone() },
                };
                let place = (&self.config.folder, self.config.mount.clone(), self.config.durability);
                let parts = (Arc::clone(&self.trails), Arc::clone(&self.board.events), self.lease.clone());
                // Who accepts may not be reached where the lease would name it: it is no witness of what it has.
                let is_reached = self.config.accepting.is_none();
                // Who does not sync what it applies is no witness.
                let counts = is_reached && self.config.durability.count() > 0;
                let own = if counts { self.config.address.clone() } else { String::new() };
                self.following = Some(Following::begin(source, own, place, parts));
            }
            Err(text) => {
                tracing::error!("the holder of the lease cannot be followed: {text}");
                self.machine.handle_following_ended(RealWorld.now());
            }
        }
    }

    fn prepare(&mut self, owes: bool) {
        tracing::info!("role: promoting, the lease is ours");
        self.successor = None;
        self.board.leaving.send_replace(false);
        let (cancel, cancelled) = watch::channel(false);
        let prepare = Prepare {
            folder: self.config.folder.clone(),
            lease: self.lease.clone(),
            // That nothing is on its way any more is certain only where the log lies: another place may be older than it says.
            must_fence: owes
                || self.config.lease.is_some()
                || !matches!(self.lease.standing(), Standing::Ours { origin, .. } if origin.was_quiet),
            trails: Arc::clone(&self.trails),
            known: Mutex::default(),
            hearing: self.lease.witnesses().map(|witnesses| {
                let (own, access) = (self.config.address.clone(), self.config.access.clone());
                Hearing::new(witnesses, own, access, self.config.forgets.subscribe())
            }),
            mount: self.config.mount.clone(),
            durability: self.config.durability,
            cancelled,
        };
        let owes = prepare.hearing.is_some();
        self.preparing = Some(Preparing { cancel, task: tokio::spawn(prepare::run(prepare)), owes });
    }

    async fn serve(&mut self) -> Result<(), Failure> {
        tracing::info!("role: primary");
        if let Some(mount) = &self.config.mount {
            mount.admit_all().map_err(|e| Failure::failed(format!("cannot let others write on the mount: {e}")))?;
        }
        self.undrained = None;
        self.board.leaving.send_replace(false);
        self.board.unsettled.store(false, Ordering::Release);
        self.board.set_unsearched(1);
        let (loan, lent) = self.lease.lend();
        let (stop, stopped) = watch::channel(false);
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let options = SuperviseOptions {
            databases: Vec::new(),
            folders: vec![self.config.folder.clone()],
            stop_timeout: self.config.stop_timeout,
            parking: self.config.parking,
            commits: self.config.mount.as_ref().map(MountHandle::lines),
            serves: true,
            lease: Some(lent),
        };
        let task = tokio::spawn(supervise::run(options, Arc::clone(&self.board), stopped, Some(receiver)));
        let is_settling = self.begin_to_settle(commands.clone());
        self.capture = Some(Capture { stop, task, commands, loan: Some(loan) });
        if !is_settling {
            self.begin_to_serve(&[]).await;
        }
        Ok(())
    }

    async fn stop_application(&mut self, why: Why) {
        tracing::info!(
            "role: demoting, {}",
            match why {
                Why::Lapsing => "the lease runs out or is another's",
                Why::Handoff => "it is handed on",
                Why::Stop => "the process ends",
            }
        );
        // The application may be waiting for a lock that is lent.
        self.board.grants.close();
        if self.application.as_ref().is_none_or(|application| !application.runs()) {
            return self.machine.handle_application_stopped(RealWorld.now());
        }
        if why != Why::Lapsing {
            // The role is another from here on, so that no more come.
            self.report();
            self.finish_flight().await;
        }
        let Some(application) = self.application.as_mut() else { return };
        application.signal(self.signal.unwrap_or(Signal::TERM)).await;
        self.kill_at = Some(tokio::time::Instant::now() + self.config.stop_timeout);
    }

    async fn note(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Look => {}
            Event::Stop(signal) => {
                self.signal = Some(signal);
                self.machine.stop();
            }
            Event::Told(told) => self.note_told(told),
            Event::Unfollowed(ended) => self.note_unfollowed(ended),
            Event::Prepared(done) => {
                let owes = self.preparing.take().is_some_and(|preparing| preparing.owes);
                let is_done = done.is_some();
                if !is_done {
                    replica::close(false);
                }
                self.lists = Lists::owing(done.filter(|_| owes));
                // Before anything is captured, or a follower of before asks again.
                self.board.witnesses.withhold(self.lists.withholds());
                self.machine.handle_prepared(is_done, RealWorld.now());
            }
            Event::Captured(errors) => return self.note_captured(&errors).await,
            Event::Command(command) => self.take_command(command),
            Event::Handoff(Handoff { to, reply }) => self.reply = Some((reply, self.hand_on(to))),
            Event::KillDue => {
                self.kill_at = None;
                if let Some(application) = &mut self.application {
                    tracing::warn!("the application did not stop in time: killing it");
                    application.kill().await;
                }
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, to: Option<String>) -> Result<(), String> {
        if let Some(lease) = self.config.lease.as_ref().filter(|lease| lease.is_static()) {
            return Err(format!("who is the primary was decided by --lease {lease}: nobody else can take it over"));
        }
        let own = &self.config.address;
        let to = to.map(|to| match own.strip_prefix("https://") {
            Some(_) if !to.contains("://") => format!("https://{to}"),
            _ => to,
        });
        let to = to.as_deref().map(known_address).transpose()?;
        let role = self.machine.role();
        if to.as_ref() == Some(&self.config.address) {
            return Err(format!("this node itself is to have it, and is {}", role.name()));
        }
        // Two that ask for it by turns would keep each other from ever having it.
        let is_early = to.is_some() && role != Role::Primary;
        if is_early || !self.machine.hand_on() {
            return Err(format!("this node is {}, and not primary", role.name()));
        }
        self.successor = to;
        Ok(())
    }

    fn note_told(&mut self, told: Told) {
        self.kill_at = None;
        let now = RealWorld.now();
        let was_asked = self.machine.role() != Role::Primary;
        match told {
            Told::Expired => {
                tracing::warn!("the application was ended by its guard: the lease had run out");
                self.machine.handle_application_expired(now);
            }
            Told::Ended(code) if was_asked => {
                if self.signal.is_some() {
                    self.code = code;
                }
                self.machine.handle_application_stopped(now);
            }
            Told::Ended(code) => {
                tracing::info!("the application has ended with status {code}");
                self.code = code;
                self.machine.handle_application_ended(now);
            }
            Told::Failed(text) => {
                self.failure = Some(Failure::failed(text));
                self.machine.handle_application_ended(now);
            }
            Told::Gone => {
                self.application = None;
                self.failure =
                    Some(Failure::failed("the guard of the application has ended, and the application with it"));
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

    fn note_unfollowed(&mut self, ended: Result<(), String>) {
        self.following = None;
        self.name_primary(None);
        if let Err(text) = ended {
            tracing::warn!("not followed any more: {text}");
        }
        if self.machine.is_unfollowing() {
            self.machine.handle_unfollowed();
        } else {
            self.machine.handle_following_ended(RealWorld.now());
        }
    }

    async fn note_captured(&mut self, errors: &[ReplicateError]) -> Result<(), Failure> {
        self.capture = None;
        self.shut_mount().await?;
        let behind = self.board.databases().iter().any(|d| d.look(|f| f.pending_since.is_some()));
        self.board.clear();
        let is_drained = errors.is_empty() && !behind;
        let text = errors.first().map_or_else(|| "the last commits are not durable".to_owned(), ToString::to_string);
        if !self.machine.is_stopping_capture() {
            return Err(Failure::failed(format!("nothing is captured any more: {text}")));
        }
        if !is_drained {
            tracing::warn!("stopped before everything was durable: {text}");
        }
        self.settle_witnesses(is_drained);
        replica::close(false);
        self.undrained = (!is_drained).then_some(text);
        let is_settled = is_drained && !self.board.unsettled.load(Ordering::Acquire);
        self.machine.handle_capture_stopped(is_drained, is_settled, RealWorld.now());
        Ok(())
    }

    /// Nothing is captured any more: nobody but this process changes anything on the mount.
    async fn shut_mount(&mut self) -> Result<(), Failure> {
        let Some(mount) = self.config.mount.clone() else { return Ok(()) };
        let quiet = self.quiet.take();
        let paths = self.paths();
        let shut = move || {
            let shut = mount.shut(&paths);
            // Whoever waited for these locks has lost the files that they are on.
            drop(quiet);
            shut
        };
        let shut = tokio::task::spawn_blocking(shut).await.expect("it does not panic");
        shut.map_err(|e| Failure::failed(format!("cannot keep others from writing on the mount: {e}")))
    }

    /// The databases that are captured.
    fn paths(&self) -> Vec<PathBuf> {
        self.board.databases().iter().map(|status| status.path.to_path_buf()).collect()
    }

    /// Capture is about to end. Where it is to take in the last commits, nobody makes any more of them.
    async fn quiet_mount(&mut self, drain: bool) {
        let Some(mount) = &self.config.mount else { return };
        if !drain {
            return mount.leave_to_us();
        }
        let paths = self.paths();
        let quiet = tokio::task::spawn_blocking(move || Quiet::over(&paths)).await.expect("it does not panic");
        self.quiet = Some(quiet);
    }

    /// Names the primary to readers of the folder, as LiteFS does; nobody while this node is it.
    fn name_primary(&self, address: Option<&str>) {
        let path: PathBuf = self.config.folder.dir.join(PRIMARY_FILE);
        let done = match address {
            Some(address) => std::fs::write(&path, format!("{address}\n")),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        };
        if let Err(error) = done {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    /// Lets readers of the mount know how far it is behind.
    fn tell_lag(&self, replicas: &[ReplicaReport]) {
        let Some(mount) = &self.config.mount else { return };
        let is_primary = self.machine.role() == Role::Primary;
        let largest = replicas.iter().map(|replica| replica.lag_ms).max().map(Duration::from_millis);
        mount.set_lag(if is_primary { Some(Duration::ZERO) } else { largest });
    }
}

/// How a node is reached whose address the lease has.
///
/// # Errors
/// It makes no sense: one line.
pub(crate) fn node_address(address: &str) -> Result<Address, String> {
    if address.contains("://") { address.parse() } else { format!("http://{address}").parse() }
}

/// The address of a node as that one writes it in the lease: HOST:PORT, or with TLS `https://HOST:PORT`.
///
/// # Errors
/// It makes no sense: one line.
pub fn known_address(text: &str) -> Result<String, String> {
    let address = node_address(text)?.to_string();
    if address.len() > NAME_SIZE_MAX {
        return Err(format!("an address of {} bytes", address.len()));
    }
    Ok(address.strip_prefix("http://").map_or(address.clone(), str::to_owned))
}

async fn told(application: &mut Option<Application>) -> Told {
    match application {
        Some(application) => application.told().await,
        None => std::future::pending().await,
    }
}

/// With what following has ended.
async fn unfollowed(following: &mut Option<Following>) -> Result<(), String> {
    match following {
        Some(following) => following.ended().await,
        None => std::future::pending().await,
    }
}

async fn prepared(preparing: &mut Option<Preparing>) -> Option<Vec<String>> {
    match preparing {
        Some(preparing) => (&mut preparing.task).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())),
        None => std::future::pending().await,
    }
}

async fn captured(capture: &mut Option<Capture>) -> Vec<ReplicateError> {
    match capture {
        Some(capture) => (&mut capture.task).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())),
        None => std::future::pending().await,
    }
}
