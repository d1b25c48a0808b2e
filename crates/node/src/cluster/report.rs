//! What is said of a node of a cluster: its role, the lease, and how far its replicas are.

use std::path::PathBuf;

use rhyolite_format::{Epoch, Timestamp, Txid};
use rhyolite_logic::role::Role;
use serde::{Deserialize, Serialize};

use crate::observe::events::Primary;
use crate::time;

/// A node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its role: `waiting`, `replica`, `promoting`, `primary`, `demoting` or `stopped`.
    pub role: String,
    /// Whether it may become the primary.
    pub candidate: bool,
    /// Where others reach it.
    pub address: String,
    /// Where the lease lies: an object of the store, or what `--lease` names.
    pub lease: String,
    /// Who holds the lease; `None` when nobody does, or it is not known.
    pub holder: Option<Holder>,
    /// The databases that are followed; none on the primary.
    pub replicas: Vec<ReplicaReport>,
    /// When a commit is called safe before it is in the store: `local` (never), `replica` or `quorum`.
    #[serde(default)]
    pub durability: String,
    /// On the primary: the nodes that count for that, by their addresses; none while it calls nothing safe.
    #[serde(default)]
    pub witnesses: Vec<String>,
}

impl NodeReport {
    /// Who the primary is.
    pub fn primary(&self) -> Primary {
        let is_primary = self.role == Role::Primary.name();
        let holder = self.holder.as_ref().filter(|holder| !holder.is_self).and_then(|holder| holder.address.clone());
        Primary { is_primary, hostname: if is_primary { self.address.clone() } else { holder.unwrap_or_default() } }
    }
}

/// Who holds the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Whether that is this node.
    pub is_self: bool,
    /// For people.
    pub name: String,
    /// Where followers are served.
    pub address: Option<String>,
    /// The number of the right; `None` where a person has named the primary, and it is not known.
    pub epoch: Option<Epoch>,
    /// When the right ends, or may be taken, unless it is renewed; by this machine's clock. `None` where it never ends.
    #[serde(with = "time::rfc3339::option")]
    pub until: Option<Timestamp>,
}

impl Holder {
    /// The name of its machine.
    pub fn machine(&self) -> String {
        self.name.split(' ').next().unwrap_or_default().to_owned()
    }
}

/// A database that is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The file.
    pub path: PathBuf,
    /// The last commit that is in it; `None` before there is a file.
    pub txid: Option<Txid>,
    /// Commits of the primary, as far as it was heard of, that are not.
    pub behind: u64,
    /// Milliseconds since the file was last known to have every commit of the primary.
    pub lag_ms: u64,
    /// Why it is not followed.
    pub error: Option<String>,
}

impl NodeReport {
    /// Whether this node has the role.
    pub fn is(&self, role: rhyolite_logic::role::Role) -> bool {
        self.role == role.name()
    }

    /// The largest lag of its replicas, in commits and milliseconds.
    pub fn lag(&self) -> (u64, u64) {
        let behind = self.replicas.iter().map(|replica| replica.behind).max().unwrap_or(0);
        (behind, self.replicas.iter().map(|replica| replica.lag_ms).max().unwrap_or(0))
    }
}

impl Node {
    /// Where the lease lies, for people.
    fn lease_shown(&self) -> String {
        let place = self.place.describe();
        if self.config.lease.is_some() { place } else { format!("{}/{}", place.trim_end_matches('/'), keys::LEASE) }
    }

    pub(super) fn report(&mut self) {
        let at = |moment: Monotonic| {
            let left = RealWorld.now().until(moment).as_millis();
            Timestamp(time::now().0.saturating_add(i64::try_from(left).unwrap_or(0)))
        };
        let (ends, is_named) = self.config.lease.as_ref().map_or((true, false), |lease| {
            // What a person has decided says no more than who it is.
            (!lease.is_static(), lease.named_primary().is_some())
        });
        let holder = match self.lease.standing() {
            Standing::Ours { epoch, until, .. } => Some(Holder {
                is_self: true,
                name: self.terms.holder.clone(),
                address: self.terms.address.clone(),
                epoch: Some(epoch),
                until: ends.then(|| at(until)),
            }),
            Standing::Theirs { record, free } if record.state == LeaseState::Held => Some(Holder {
                is_self: false,
                name: record.holder,
                address: record.address,
                epoch: (!is_named).then_some(record.epoch),
                until: ends.then(|| at(free)),
            }),
            Standing::Theirs { .. } | Standing::Unknown | Standing::Ended => None,
        };
        let replicas = self.following.as_mut().map(Following::report).unwrap_or_default();
        self.tell_lag(&replicas);
        if let Some(accepting) = &self.config.accepting {
            accepting.expect(holder.as_ref().and_then(|holder| holder.epoch));
        }
        self.board.set_node(NodeReport {
            // Who serves nobody yet has not got there.
            role: match self.machine.role() {
                Role::Primary if self.lists.withholds() => Role::Promoting.name().to_owned(),
                role => role.name().to_owned(),
            },
            candidate: self.config.is_candidate,
            address: self.config.address.clone(),
            lease: self.lease_shown(),
            holder,
            replicas,
            durability: self.config.durability.name().to_owned(),
            witnesses: self.board.witnesses.lists().into_iter().next().map(|list| list.nodes).unwrap_or_default(),
        });
    }
}
