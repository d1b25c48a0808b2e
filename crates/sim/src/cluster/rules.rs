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
        },
    };
}

/// Gives the switch of a rule.
pub type Switch = fn(&mut ClusterRules) -> &mut bool;

/// Name and switch of each rule.
pub const RULES: [(&str, Switch); 22] = [
    ("request_ids", |r| &mut r.lease.request_ids),
    ("right_since_sent", |r| &mut r.lease.right_since_sent),
    ("wait_for_expiry", |r| &mut r.lease.wait_for_expiry),
    ("nonces", |r| &mut r.lease.nonces),
    ("manifest_epoch", |r| &mut r.lease.manifest_epoch),
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
];

/// Every rule but this one. `None` when there is none of this name.
pub fn without(name: &str) -> Option<ClusterRules> {
    let mut rules = ClusterRules::ALL;
    let (_, switch) = RULES.iter().find(|(rule, _)| *rule == name)?;
    *switch(&mut rules) = false;
    Some(rules)
}
