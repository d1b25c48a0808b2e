//! What a node does as a primary so that a commit is safe before it is in the store: it keeps the list of its witnesses in the lease
//! ([`rhyolite_logic::witness`]), and serves nobody before what it has found with the list of the one before it is in the store.
//!
//! ```text
//!   serve ─► withheld: capture only ─► everything is in the store ─► list replaced in the lease ─► application, followers ─► own lists
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::lease::Witnesses;
use rhyolite_logic::lease::{Monotonic, Standing};
use rhyolite_logic::role::Role;
use rhyolite_logic::witness::next_list;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::Node;
use crate::capture::thread::Upload;
use crate::durability::Level;
use crate::status::{DatabaseStatus, StatusBoard};
use crate::supervise::control::{Command, Synced};

/// How often it is looked whether everything is in the store, and who is there.
pub(super) const LOOK: Duration = Duration::from_millis(25);

/// Databases that are put into the store at a time.
const AT_ONCE: usize = 64;
/// Pause before one is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long one try may take; then it is said what is waited for.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How many other nodes must have a commit before it is called safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// No other has to.
    #[default]
    Local,
    /// One.
    Replica,
    /// So many that they are the majority of the cluster together with the primary.
    Quorum {
        /// Nodes of the cluster.
        nodes: u32,
    },
}

impl Durability {
    /// So many others; 0 when nobody is asked.
    pub fn count(self) -> u32 {
        match self {
            Self::Local => 0,
            Self::Replica => 1,
            Self::Quorum { nodes } => nodes / 2,
        }
    }

    /// Whether commits can ever be said to be at a level on a node that counts so.
    ///
    /// # Errors
    /// One line: what is missing.
    pub fn keeps(self, level: Level) -> Result<(), String> {
        let is_kept = match level {
            Level::Local | Level::Store => true,
            Level::Replica => self != Self::Local,
            Level::Quorum => matches!(self, Self::Quorum { .. }),
        };
        let name = if level == Level::Quorum { "quorum` and `--nodes" } else { "replica" };
        let text =
            || format!("nobody here knows which other nodes have a commit: start the nodes with `--durability {name}`");
        is_kept.then_some(()).ok_or_else(text)
    }

    /// The name in options and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replica => "replica",
            Self::Quorum { .. } => "quorum",
        }
    }
}

/// The lists of a primary.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The databases that must be in the store before anybody is served.
    owed: Option<Vec<String>>,
    /// Puts them there; not looked at any more once it has, and the lease says so.
    settling: Option<Settling>,
    /// What the lease is to say, since this was decided under the present right.
    wished: Option<Option<Witnesses>>,
}

/// A task that ends with this.
#[derive(Debug)]
struct Settling(JoinHandle<()>);

impl Settling {
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lists {
    /// Whether nobody is served yet.
    pub(super) fn withholds(&self) -> bool {
        self.owed.is_some() || self.settling.is_some()
    }

    /// Before these databases are in the store nobody is served.
    pub(super) fn owing(owed: Option<Vec<String>>) -> Self {
        Self { owed, ..Self::default() }
    }
}

impl Node {
    /// Everything that is to be done about witnesses at this moment.
    pub(super) async fn keep_witnesses(&mut self) {
        let databases = self.board.databases();
        let Standing::Ours { until, origin, .. } = self.lease.standing() else { return self.rest_witnesses() };
        if self.capture.is_none() || self.machine.has_lost() {
            return self.rest_witnesses();
        }
        let confirmed = self.lease.witnesses();
        let is_serving = self.machine.role() == Role::Primary;
        if let Some(settling) = &self.lists.settling {
            if !is_serving || !settling.is_finished() {
                return;
            }
            if self.lists.wished.is_none() {
                tracing::info!("what other nodes had is in the store");
                self.wish(origin.tenure, None);
            }
            // Until the lease says so, whoever takes it asks for what was owed.
            if confirmed.is_none() {
                self.lists.settling = None;
                self.begin_to_serve(&databases).await;
            }
            return;
        }
        self.board.witnesses.set_right(if is_serving { until } else { Monotonic(0) });
        let count = self.config.durability.count();
        if count == 0 || !is_serving {
            return;
        }
        if self.lists.wished.as_ref().is_some_and(|wished| *wished != confirmed) {
            // What is written is not known yet: both count.
            return;
        }
        let (here, awaited) = self.board.witnesses.nodes(&databases, self.config.folder.template.lease.ttl / 2);
        let next = next_list((&self.config.address, count), confirmed.as_ref(), &here, |node| awaited.contains(node));
        let lists = |extra: Option<&Witnesses>| confirmed.iter().chain(extra).cloned().collect::<Vec<_>>();
        if next == confirmed {
            return self.board.witnesses.set_lists(&databases, lists(None));
        }
        // Nothing is told by a list alone that the lease does not have yet.
        let during = if confirmed.is_some() { lists(next.as_ref()) } else { Vec::new() };
        if self.board.witnesses.replace(&databases, next.as_ref(), during) {
            let names = next.as_ref().map_or("none".to_owned(), |list| list.nodes.join(", "));
            tracing::info!("nodes that count for `{}`: {names}", self.config.durability.name());
            self.wish(origin.tenure, next);
        }
    }

    /// Begins to put into the store what other nodes may have had. `false` when there is nothing.
    pub(super) fn begin_to_settle(&mut self, commands: mpsc::Sender<Command>) -> bool {
        let Some(owed) = self.lists.owed.take() else { return false };
        let settling = tokio::spawn(settle(Arc::clone(&self.board), commands, owed));
        self.lists.settling = Some(Settling(settling));
        true
    }

    /// Whether something about witnesses may be due soon.
    pub(super) fn is_watching_witnesses(&self) -> bool {
        self.capture.is_some() && (self.lists.withholds() || self.config.durability.count() > 0)
    }

    fn wish(&mut self, tenure: u64, witnesses: Option<Witnesses>) {
        self.lists.wished = Some(witnesses.clone());
        self.lease.set_witnesses(tenure, witnesses);
    }

    /// Nothing is captured: nothing is called safe.
    fn rest_witnesses(&mut self) {
        self.board.witnesses.set_right(Monotonic(0));
        self.board.witnesses.set_lists(&[], Vec::new());
    }

    /// Capture ends: nothing more is called safe. What is withheld stays so until there is nothing that could be served.
    pub(super) fn end_witnesses(&mut self) {
        self.rest_witnesses();
        self.lists = Lists::default();
    }

    /// Capture has ended. With everything in the store nobody need ask for anything.
    pub(super) fn settle_witnesses(&self, is_drained: bool) {
        self.board.witnesses.withhold(false);
        if let (Standing::Ours { origin, .. }, true) = (self.lease.standing(), is_drained && !self.machine.has_lost()) {
            self.lease.set_witnesses(origin.tenure, None);
        }
    }

    /// Followers are served, and the application runs.
    pub(super) async fn begin_to_serve(&mut self, databases: &[Arc<DatabaseStatus>]) {
        self.board.witnesses.withhold(false);
        databases.iter().for_each(|status| status.feed.tell());
        self.config.forgets.send_replace(false);
        if let Some(capture) = &self.capture {
            self.board.grants.open(self.lease.clone(), capture.commands.clone());
        }
        if let Some(application) = &mut self.application {
            application.run(self.told_until).await;
        }
    }
}

/// Ends when all that these databases have now is captured and in the store.
async fn settle(board: Arc<StatusBoard>, commands: mpsc::Sender<Command>, owed: Vec<String>) {
    let (turns, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for name in owed {
        let (board, commands, turns) = (Arc::clone(&board), commands.clone(), Arc::clone(&turns));
        tasks.spawn(async move {
            let began = Instant::now();
            let mut is_told = false;
            loop {
                let turn = turns.acquire().await.expect("the semaphore is never closed");
                let done = tokio::time::timeout(SETTLE_MAX, settle_once(&board, &commands, &name)).await;
                drop(turn);
                if done == Ok(Some(())) {
                    return;
                }
                if began.elapsed() > SETTLE_MAX && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(database = %name, "not served yet: what other nodes had is not in the store");
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    }
}

/// `None` when it is to be tried again: its capture has not begun, or has ended.
async fn settle_once(board: &StatusBoard, commands: &mpsc::Sender<Command>, name: &str) -> Option<()> {
    let status = board.databases().into_iter().find(|status| status.name() == name)?;
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Sync(status.path.to_path_buf(), Upload::Now, reply)).await.ok()?;
    let Synced { status, captured } = answer.await.ok()?.ok()?;
    let pos = captured.await.ok()?;
    while status.look(|f| f.durable.is_none_or(|durable| durable.txid < pos.txid)) {
        tokio::time::sleep(LOOK).await;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_majority_with_the_primary() {
        for (nodes, others) in [(2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
            assert_eq!(Durability::Quorum { nodes }.count(), others, "{nodes}");
        }
        assert_eq!((Durability::Local.count(), Durability::Replica.count()), (0, 1));
    }
}
