//! What a store promises about writers that race, so that a caller which needs more than that can refuse it.
//!
//! Fencing (a lease that nobody can hold twice, a log that an old writer cannot touch) stands on two promises: of racing
//! creates of one key one succeeds, and of racing swaps of one version one succeeds. Whether they hold is known of some
//! stores, known not to hold of others, and depends on the server's software for the rest: only a race shows it
//! ([`crate::probe`]). A caller that needs fencing takes [`Guarantee::Given`], asks for a passed probe where it is
//! [`Guarantee::Unproven`], and refuses [`Guarantee::Absent`]; what needs none works with all three, under a lease by time.

use std::fmt;

/// How sure it is that a promise holds. Ordered from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guarantee {
    /// It holds: by the provider's word, or by how the backend does it.
    Given,
    /// It depends on what software serves there, and which version.
    Unproven,
    /// It does not hold.
    Absent,
}

impl Guarantee {
    /// One lower-case word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Unproven => "unproven",
            Self::Absent => "absent",
        }
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a store says of itself, before anybody has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Of racing creates of one key exactly one succeeds, and none replaces anything.
    pub create: Guarantee,
    /// Of racing swaps that expect the same version exactly one succeeds.
    pub swap: Guarantee,
    /// Why it is so, in words that follow "this store".
    pub why: &'static str,
}

impl Capabilities {
    /// Everything that fencing needs.
    pub const fn given(why: &'static str) -> Self {
        Self { create: Guarantee::Given, swap: Guarantee::Given, why }
    }

    /// Nobody knows before a race.
    pub const fn unproven(why: &'static str) -> Self {
        Self { create: Guarantee::Unproven, swap: Guarantee::Unproven, why }
    }

    /// Known not to.
    pub const fn absent(why: &'static str) -> Self {
        Self { create: Guarantee::Absent, swap: Guarantee::Absent, why }
    }

    /// Can a writer be kept out? Only as surely as the weaker of the two promises.
    pub fn fencing(&self) -> Guarantee {
        self.create.max(self.swap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fencing_is_as_sure_as_the_weaker_promise() {
        let of = |create, swap| Capabilities { create, swap, why: "" }.fencing();
        assert_eq!(of(Guarantee::Given, Guarantee::Given), Guarantee::Given);
        assert_eq!(of(Guarantee::Given, Guarantee::Unproven), Guarantee::Unproven);
        assert_eq!(of(Guarantee::Absent, Guarantee::Unproven), Guarantee::Absent);
    }
}
