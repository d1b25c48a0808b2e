//! What must hold of a cluster, whatever happens. The store is looked at by [`crate::model`] besides.
//!
//! Every content of a database is made by a commit, on another content: a tree. One content is a prefix of another when it lies on the way from the root
//! to it.
//!
//! 1. The application commits only on a machine that the lease in the store names, from before its write was done until another's was. After a machine
//!    stood still as a whole it may commit for a moment; that is in no history.
//! 2. It commits only on contents that have the durable end that there was when it began. So nobody serves that is stale or empty.
//! 3. What becomes durable has everything that was durable. (2 and 3 but for a first snapshot, as long as nothing was acknowledged.)
//! 4. A file is rewritten only to a content that has its own, or when its content is durable, or kept as a lost branch; and never under an application.
//! 5. A content that somebody was told to be safe is in every content that is committed on after that, by whomever, or begun with; what becomes durable
//!    has it, or is on the way to it. At the end it is durable.
//! 6. At the end, a while after the last fault, somebody has committed, and every file is at the durable end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::FutureExt;
use rhyolite_format::lease::{LeaseRecord, LeaseState};
use rhyolite_format::{Checksum, Pos, Txid, keys};
use rhyolite_logic::lender::Outcome;
use rhyolite_store::Store;

use crate::executor::NodeId;
use crate::scenario::MS;
use crate::sim::Sim;

/// How long an application may live on after its machine stood still: until its guard has had a turn.
const AFTERLIFE: u64 = 100 * MS;

/// The truth.
#[derive(Debug, Default)]
pub struct Truth {
    /// From what each content was made.
    made: HashMap<u64, Option<Checksum>>,
    /// With what each content was compared when it was captured: the pages that differ lead from there to it, whatever it was made from.
    compared: HashMap<u64, Vec<Checksum>>,
    /// Whom the lease in the store names.
    granted: Option<NodeId>,
    /// The end of what is durable.
    durable: Option<Pos>,
    /// A first snapshot that was durable, and that what became durable after it need not have.
    replaced: Option<Pos>,
    /// The last content that somebody was told to be safe, and with it all that it was made from.
    promised: Option<Checksum>,
    /// What was durable when each node began to serve.
    served_from: HashMap<NodeId, Option<Pos>>,
    /// Commits so far.
    pub commits: u64,
    /// When the last one was, in microseconds.
    pub commit_last: u64,
    /// Commits of machines that had stood still.
    pub strays: u64,
    /// Lost branches that were kept.
    pub branches: u64,
    /// How often somebody began to serve.
    pub terms: u64,
    /// How often somebody was told that a commit is safe that was not durable yet.
    pub promises: u64,
    /// What became of what was sent by replicas, by its id: whether it was committed, and whether somebody heard that it was not.
    sent: HashMap<String, (bool, bool)>,
    /// How often somebody heard that it was committed.
    pub forwards: u64,
}

impl Truth {
    /// A content that was made from nothing.
    pub fn root(&mut self, content: Checksum) {
        self.made.insert(content.get(), None);
    }

    /// Whether `content` is `prefix`, or was made from it.
    pub fn has(&self, content: Checksum, prefix: Checksum) -> bool {
        let mut at = Some(content);
        while let Some(content) = at {
            if content == prefix {
                return true;
            }
            at = self.made.get(&content.get()).copied().flatten();
        }
        false
    }

    /// A content was captured by comparing it with `before`.
    pub fn compared(&mut self, before: Checksum, content: Checksum) {
        let all = self.compared.entry(content.get()).or_default();
        if !all.contains(&before) {
            all.push(before);
        }
    }

    /// Whether what was captured leads from `from` to `content`: commit by commit, or by pages that were compared. What was compared need not have what it was compared with.
    pub fn leads(&self, from: Checksum, content: Checksum) -> bool {
        let (mut open, mut seen) = (vec![content], HashSet::new());
        while let Some(at) = open.pop() {
            if at == from {
                return true;
            }
            if seen.insert(at.get()) {
                open.extend(self.made.get(&at.get()).copied().flatten());
                open.extend(self.compared.get(&at.get()).into_iter().flatten());
            }
        }
        false
    }

    /// What goes on from `before` is a whole other database: as if its first content had been made from that. `false` when it is the same.
    fn graft(&mut self, content: Checksum, before: Checksum) -> bool {
        let root = self.root_of(content);
        let is_other = root != self.root_of(before);
        if is_other {
            self.made.insert(root.get(), Some(before));
        }
        is_other
    }

    fn root_of(&self, content: Checksum) -> Checksum {
        let mut root = content;
        while let Some(from) = self.made.get(&root.get()).copied().flatten() {
            root = from;
        }
        root
    }

    fn is_known(&self, content: Checksum) -> bool {
        self.made.contains_key(&content.get())
    }

    /// A node begins to serve.
    fn serves(&mut self, node: NodeId) {
        self.terms += 1;
        let durable = self.durable;
        self.served_from.insert(node, durable);
    }

    /// Whether a content has everything that somebody was told to be safe.
    fn keeps_promises(&self, content: Checksum) -> bool {
        self.promised.is_none_or(|promised| self.has(content, promised))
    }
}

/// A node begins to serve what it has.
pub fn serves(sim: &Arc<Sim>, node: NodeId) {
    let content = {
        let node = sim.node(node);
        let database = node.disk.database();
        database.exists.then_some(database.content)
    };
    let mut truth = sim.cluster().truth();
    truth.serves(node);
    // Whoever begins without the right commits nothing.
    let is_right = truth.granted != Some(node) || content.map_or(truth.promised.is_none(), |c| truth.keeps_promises(c));
    let promised = truth.promised;
    drop(truth);
    if !is_right {
        let text = format!("application {node} starts on {content:?}, which lacks what was promised: {promised:?}");
        sim.model().violated(text);
    }
}

/// Somebody is told that a content is safe.
pub fn promise(sim: &Arc<Sim>, node: NodeId, content: Checksum) {
    let mut truth = sim.cluster().truth();
    let is_news = truth.promised != Some(content);
    let is_contradicted = match truth.promised {
        Some(promised) if truth.has(content, promised) => false,
        Some(promised) => !truth.has(promised, content),
        None => false,
    };
    if truth.keeps_promises(content) {
        truth.promised = Some(content);
    }
    if is_news && !truth.durable.is_some_and(|end| truth.has(end.checksum, content)) {
        truth.promises += 1;
    }
    let promised = truth.promised;
    drop(truth);
    if is_news {
        sim.trace(|| format!("node {node} promises {content}"));
    }
    if is_contradicted {
        sim.model().violated(format!("node {node} promises {content}, which lacks what was promised: {promised:?}"));
    }
}

/// The application of a node commits.
pub fn commit(sim: &Arc<Sim>, node: NodeId, before: Checksum, after: Checksum) {
    let now = sim.timeline.now();
    let stood = sim.cluster().machine(node).stood;
    let is_promised = sim.model().acknowledged > 0;
    let mut truth = sim.cluster().truth();
    truth.made.insert(after.get(), Some(before));
    let mut wrong = None;
    if truth.granted != Some(node) {
        if stood.is_some_and(|(_, until)| now <= until + AFTERLIFE) {
            truth.strays += 1;
            drop(truth);
            return sim
                .trace(|| format!("application {node} commits {after} on {before}, after its machine stood still"));
        }
        wrong = Some(format!("application {node} commits, and the lease is {:?}'s", truth.granted));
    }
    // Where there is no manifest there is nothing to be fenced: a first snapshot may come in while somebody begins who has not seen it. Nobody was told that it is durable.
    let floor = truth.served_from.get(&node).copied().flatten().filter(|f| is_promised || f.txid > Txid::FIRST);
    // What is acknowledged since may have been made without it.
    let floor = floor.filter(|floor| truth.replaced != Some(*floor));
    if let Some(floor) = floor.filter(|floor| !truth.has(before, floor.checksum)) {
        wrong =
            wrong.or(Some(format!("application {node} commits on {before}, which lacks what was durable: {floor}")));
    }
    if !truth.keeps_promises(before) {
        let promised = truth.promised;
        wrong = wrong
            .or(Some(format!("application {node} commits on {before}, which lacks what was promised: {promised:?}")));
    }
    truth.commits += 1;
    truth.commit_last = now;
    drop(truth);
    sim.trace(|| format!("application {node} commits {after} on {before}"));
    if let Some(text) = wrong {
        sim.model().violated(text);
    }
}

/// What a replica has sent is committed, on `before`; the lock was lent on `lent`.
pub fn forwarded(sim: &Arc<Sim>, node: NodeId, id: &str, (lent, before): (Checksum, Checksum)) {
    sim.trace(|| format!("node {node} has committed {id} for a replica"));
    let mut truth = sim.cluster().truth();
    let (was_committed, was_denied) = std::mem::replace(truth.sent.entry(id.to_owned()).or_default(), (true, false));
    drop(truth);
    let wrong = match (was_committed, was_denied, lent == before) {
        (true, ..) => "a second time",
        (_, true, _) => "after it was said that it is not",
        (.., false) => "and somebody has written under the lent lock",
        _ => return,
    };
    sim.model().violated(format!("{id} is committed by node {node}, {wrong}"));
}

/// Whoever has sent something hears what has become of it.
pub fn heard(sim: &Arc<Sim>, id: &str, outcome: &Outcome) {
    let mut truth = sim.cluster().truth();
    let (is_committed, is_denied) = truth.sent.entry(id.to_owned()).or_default();
    let is_wrong = match outcome {
        Outcome::Committed(_) => !*is_committed,
        Outcome::Ended(_) => {
            *is_denied = true;
            *is_committed
        }
        Outcome::Unknown(_) => false,
    };
    let is_done = *is_committed;
    truth.forwards += u64::from(matches!(outcome, Outcome::Committed(_)));
    drop(truth);
    if is_wrong {
        sim.model().violated(format!("{id} is said to be {outcome:?}, and that it was committed is {is_done}"));
    }
}

/// An object of the store has changed.
pub fn store_changed(sim: &Arc<Sim>, key: &str) {
    if key == keys::LEASE {
        let object = sim.store.get(keys::LEASE).now_or_never().expect("memory answers at once");
        let record = object.ok().and_then(|object| LeaseRecord::decode(&object.bytes).ok());
        let held = record.filter(|record| record.state == LeaseState::Held);
        let node = held.and_then(|record| record.holder.strip_prefix("node ").and_then(|n| n.parse().ok()));
        sim.cluster().truth().granted = node;
        return;
    }
    let (end, is_first_promise) = {
        let model = sim.model();
        (model.end(), model.acknowledged == 0)
    };
    let mut truth = sim.cluster().truth();
    let before = std::mem::replace(&mut truth.durable, end);
    if let (Some(end), Some(promised)) = (end, truth.promised)
        && before != Some(end)
        && !truth.keeps_promises(end.checksum)
        && !truth.has(promised, end.checksum)
    {
        drop(truth);
        return sim.model().violated(format!("{end} became durable, beside what was promised: {promised}"));
    }
    let (Some(before), Some(end)) = (before, end) else { return };
    if before == end || truth.has(end.checksum, before.checksum) {
        return;
    }
    // The snapshot of a first primary came in when nobody waited for it any more, and another has begun with a database of its own, or with the same that has lost power since: where there is no
    // manifest there is nothing to be fenced.
    if before.txid == Txid::FIRST && truth.graft(end.checksum, before.checksum) {
        return;
    }
    if before.txid == Txid::FIRST && is_first_promise {
        truth.replaced = Some(before);
        return;
    }
    drop(truth);
    sim.model().violated(format!("{end} became durable, which lacks what was durable: {before}"));
}

/// The file of a node becomes another content, by whatever but its application.
pub fn replace(sim: &Arc<Sim>, node: NodeId, content: Checksum) {
    let (before, is_kept, is_served) = {
        let node_of = sim.node(node);
        let mut database = node_of.disk.database();
        let before = database.exists.then_some(database.content);
        (database.content, database.exists) = (content, true);
        database.earlier.clear();
        database.uncaptured.clear();
        drop(database);
        let is_kept = before.is_some_and(|before| node_of.disk.lost.contains(&before));
        drop(node_of);
        (before, is_kept, sim.cluster().machine(node).has_application)
    };
    let is_lent = sim.cluster().machine(node).lending.is_idle();
    let truth = sim.cluster().truth();
    let is_prefix =
        |before| truth.leads(before, content) || truth.durable.is_some_and(|end| truth.leads(before, end.checksum));
    let wrong = if is_served {
        Some(format!("the file of node {node} is rewritten under its application"))
    } else if is_lent {
        Some(format!("the file of node {node} is rewritten under a lent lock"))
    } else if !truth.is_known(content) {
        Some(format!("the file of node {node} becomes {content}, which nobody has made"))
    } else {
        let lost = before.filter(|before| !is_kept && !is_prefix(*before));
        lost.map(|before| format!("the file of node {node} was {before}, which is in no history and kept nowhere"))
    };
    drop(truth);
    if let Some(text) = wrong {
        sim.model().violated(text);
    }
}

/// A while after the last fault.
pub fn check_end(sim: &Arc<Sim>) {
    let calm = sim.scenario.calm;
    let truth = sim.cluster().truth();
    let mut wrong = None;
    if truth.commit_last < calm {
        wrong = Some("nobody committed any more after everything was well again".to_owned());
    }
    if let Some(promised) = truth.promised
        && !truth.durable.is_some_and(|end| truth.keeps_promises(end.checksum))
    {
        wrong = wrong.or(Some(format!("what was promised is not durable: {promised}")));
    }
    for node in 0..sim.scenario.nodes {
        let node_of = sim.node(node);
        let database = node_of.disk.database();
        let is_there = database.exists && truth.durable.is_some_and(|end| end.checksum == database.content);
        if !is_there {
            let durable = truth.durable.map_or("nothing".to_owned(), |end| end.to_string());
            wrong = wrong.or(Some(format!("node {node} ends at {}, and the store at {durable}", database.content)));
        }
        if let Some(branch) = node_of.disk.lost.iter().find(|branch| !truth.is_known(**branch)) {
            wrong = wrong.or(Some(format!("node {node} keeps a lost branch that nobody has made: {branch}")));
        }
    }
    drop(truth);
    if let Some(text) = wrong {
        sim.model().violated(text);
    }
}
