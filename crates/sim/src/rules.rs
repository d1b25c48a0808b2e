//! The rules by name, to switch one off.

use rhyolite_logic::lease::Guards;

/// Gives the switch of a rule.
pub type Switch = fn(&mut Guards) -> &mut bool;

/// Name and switch of each rule.
pub const RULES: [(&str, Switch); 9] = [
    ("request_ids", |g| &mut g.request_ids),
    ("right_since_sent", |g| &mut g.right_since_sent),
    ("wait_for_expiry", |g| &mut g.wait_for_expiry),
    ("nonces", |g| &mut g.nonces),
    ("void_rule", |g| &mut g.void_rule),
    ("fence", |g| &mut g.fence),
    ("manifest_epoch", |g| &mut g.manifest_epoch),
    ("reread_before_delete", |g| &mut g.reread_before_delete),
    ("right_at_answer", |g| &mut g.right_at_answer),
];

/// Every rule but this one. `None` when there is none of this name.
pub fn without(name: &str) -> Option<Guards> {
    let mut guards = Guards::ALL;
    let (_, switch) = RULES.iter().find(|(rule, _)| *rule == name)?;
    *switch(&mut guards) = false;
    Some(guards)
}
