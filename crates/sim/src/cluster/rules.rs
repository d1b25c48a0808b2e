//! The rules of a cluster by name, to switch one off: those of the lease and of roles, and what the driver keeps to.

use rhyolite_logic::lease::Guards;
use rhyolite_logic::role::RoleRules;

/// Rules in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRules {
    /// Those of the lease and of the log.
    pub lease: Guards,
    /// Those of the role machine.
    pub role: RoleRules,
    /// Those of what a node does.
    pub node: NodeRules,
}

/// What a node keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRules {
    /// The guard kills the application when the right is over.
    pub guard_deadline: bool,
    /// The guard ends the application when the node is gone.
    pub guard_outlives: bool,
    /// A new primary fences the log before it takes its end for the end.
    pub prepare_fence: bool,
    /// A file that is ahead of the end is left so only when it has passed it.
    pub passed: bool,
    /// A file that was captured here is compared with its log after a power cut.
    pub measure_after_boot: bool,
    /// A file that was captured here is left to capture only when its log joins the end.
    pub joins_end: bool,
    /// What the history lacks is kept before it is rewritten.
    pub keep_branch: bool,
    /// A file to which nothing leads on is judged before all of it is rewritten.
    pub judge_before_rewrite: bool,
    /// Commits of the stream are taken only from just where they begin, and are proved.
    pub stream_position: bool,
    /// Capture ends for good when the right was lost: the loan is taken back.
    pub loan_ends: bool,
    /// What goes for witnesses.
    pub witness: WitnessRules,
    /// What goes for locks that are lent.
    pub forward: ForwardRules,
}

/// What a node keeps to that commits what replicas have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardRules {
    /// What was committed under an id is not committed again.
    pub ids: bool,
    /// It is committed only with the right under which the lock was lent.
    pub right: bool,
    /// Nobody else writes while the lock is lent.
    pub lock: bool,
    /// At the end of the role locks go back.
    pub close: bool,
}

/// What a node keeps to that tells its clients that commits are safe because others have them, and whoever comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessRules {
    /// A commit is told to be safe only by what the lease says, and is to say; not by what it is to say alone.
    pub lists: bool,
    /// It is told only with the right to write.
    pub right_at_tell: bool,
    /// A list is replaced only when everything that was told is safe by the next one as well, or durable.
    pub safe_by: bool,
    /// Only positions of the own log count as reached.
    pub reached_position: bool,
    /// Whoever takes the lease with witnesses asks them.
    pub ask: bool,
    /// It hears as many as it takes.
    pub enough: bool,
    /// What cannot be proved is no answer.
    pub unproved: bool,
    /// The node that told asks as well when its machine has started anew.
    pub kept: bool,
    /// The node that told has nothing to ask for when the log has gone on without it.
    pub overtaken: bool,
    /// A new primary goes on from what it has found, however far its own file is on a way of its own.
    pub found_first: bool,
    /// A file that may have what was told is made what was found in one step, not by way of the end of the log.
    pub straight: bool,
    /// What was found is durable before anybody is served, and before the list is replaced.
    pub durable_first: bool,
    /// The application starts only when the lease has no list of before any more.
    pub replaced_first: bool,
    /// A file that left the log before its end has nothing beyond it.
    pub left: bool,
    /// A file that was made one that is written to, and was not, is still where it was.
    pub take_back: bool,
    /// Whoever cannot hear enough gives the lease up for the node that told.
    pub successor: bool,
}

impl ClusterRules {
    /// Every rule holds.
    pub const ALL: Self = Self {
        lease: Guards::ALL,
        role: RoleRules::ALL,
        node: NodeRules {
            guard_deadline: true,
            guard_outlives: true,
            prepare_fence: true,
            passed: true,
            measure_after_boot: true,
            joins_end: true,
            keep_branch: true,
            judge_before_rewrite: true,
            stream_position: true,
            loan_ends: true,
            witness: WitnessRules {
                lists: true,
                right_at_tell: true,
                safe_by: true,
                reached_position: true,
                ask: true,
                enough: true,
                unproved: true,
                kept: true,
                overtaken: true,
                found_first: true,
                straight: true,
                durable_first: true,
                replaced_first: true,
                left: true,
                take_back: true,
                successor: true,
            },
            forward: ForwardRules { ids: true, right: true, lock: true, close: true },
        },
    };
}

/// Gives the switch of a rule.
pub type Switch = fn(&mut ClusterRules) -> &mut bool;

/// Name and switch of each rule.
pub const RULES: [(&str, Switch); 44] = [
    ("request_ids", |r| &mut r.lease.request_ids),
    ("right_since_sent", |r| &mut r.lease.right_since_sent),
    ("wait_for_expiry", |r| &mut r.lease.wait_for_expiry),
    ("nonces", |r| &mut r.lease.nonces),
    ("manifest_epoch", |r| &mut r.lease.manifest_epoch),
    ("right_at_answer", |r| &mut r.lease.right_at_answer),
    ("keep_witnesses", |r| &mut r.lease.keep_witnesses),
    ("unfollow_first", |r| &mut r.role.unfollow_first),
    ("prepare_first", |r| &mut r.role.prepare_first),
    ("application_first", |r| &mut r.role.application_first),
    ("lost_stays_lost", |r| &mut r.role.lost_stays_lost),
    ("release_when_drained", |r| &mut r.role.release_when_drained),
    ("quiet_when_drained", |r| &mut r.role.quiet_when_drained),
    ("fence_what_is_owed", |r| &mut r.role.fence_what_is_owed),
    ("guard_deadline", |r| &mut r.node.guard_deadline),
    ("guard_outlives", |r| &mut r.node.guard_outlives),
    ("prepare_fence", |r| &mut r.node.prepare_fence),
    ("passed", |r| &mut r.node.passed),
    ("measure_after_boot", |r| &mut r.node.measure_after_boot),
    ("joins_end", |r| &mut r.node.joins_end),
    ("keep_branch", |r| &mut r.node.keep_branch),
    ("judge_before_rewrite", |r| &mut r.node.judge_before_rewrite),
    ("stream_position", |r| &mut r.node.stream_position),
    ("loan_ends", |r| &mut r.node.loan_ends),
    ("witness_lists", |r| &mut r.node.witness.lists),
    ("right_at_tell", |r| &mut r.node.witness.right_at_tell),
    ("safe_by", |r| &mut r.node.witness.safe_by),
    ("reached_position", |r| &mut r.node.witness.reached_position),
    ("witness_ask", |r| &mut r.node.witness.ask),
    ("witness_enough", |r| &mut r.node.witness.enough),
    ("witness_unproved", |r| &mut r.node.witness.unproved),
    ("witness_kept", |r| &mut r.node.witness.kept),
    ("witness_overtaken", |r| &mut r.node.witness.overtaken),
    ("found_first", |r| &mut r.node.witness.found_first),
    ("witness_straight", |r| &mut r.node.witness.straight),
    ("durable_first", |r| &mut r.node.witness.durable_first),
    ("replaced_first", |r| &mut r.node.witness.replaced_first),
    ("witness_left", |r| &mut r.node.witness.left),
    ("take_back", |r| &mut r.node.witness.take_back),
    ("witness_successor", |r| &mut r.node.witness.successor),
    ("forward_ids", |r| &mut r.node.forward.ids),
    ("forward_right", |r| &mut r.node.forward.right),
    ("forward_lock", |r| &mut r.node.forward.lock),
    ("forward_close", |r| &mut r.node.forward.close),
];

/// Every rule but this one. `None` when there is none of this name.
pub fn without(name: &str) -> Option<ClusterRules> {
    let mut rules = ClusterRules::ALL;
    let (_, switch) = RULES.iter().find(|(rule, _)| *rule == name)?;
    *switch(&mut rules) = false;
    Some(rules)
}
