//! `lease.json`: the right to write (docs/spec/lease.md). Changed only by compare-and-swap, never deleted.
//!
//! An observer judges expiry by its own monotonic clock: "this object has not changed for longer than its time to live and a
//! margin". Wall clocks of two machines are never compared; `renewed` is for people.

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, ErrorKind};
use crate::json::{self, Format1};
use crate::types::{Epoch, Lineage, Nonce, Pos, Timestamp};

/// The most bytes that `lease.json` may have.
pub const SIZE_MAX: usize = 64 << 10;
/// The most bytes that `holder`, `address`, `successor` or a witness may have.
pub const NAME_SIZE_MAX: usize = 1024;
/// The most nodes that may be witnesses.
pub const WITNESSES_MAX: usize = 32;

/// Who may write, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// Always 1.
    pub format: Format1,
    /// Grows by one with every new holder; never shrinks.
    pub epoch: Epoch,
    /// Whether the holder still has it.
    pub state: LeaseState,
    /// Given up, and nothing of the holder or of anybody before it is still on its way to the logs: whoever takes it need not fence them. Absent when `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
    /// Given up for the node with this `address`: the others leave it to that one for half of `ttl_ms`. Absent when it is for anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
    /// Name of the holder, for people. Not empty.
    pub holder: String,
    /// Where the holder can be reached; absent when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Which process the holder is, so that another one of the same machine can tell when it is dead; absent when nobody can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// New with every write, by which a writer recognises its own write.
    pub nonce: Nonce,
    /// How long the holder may write after a renewal, in milliseconds. Not 0.
    pub ttl_ms: u64,
    /// The holder's clock at the last renewal, for people.
    pub renewed: Timestamp,
    /// The last durable position, when the lease covers one database. For a tree of databases the logs tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable: Option<DurablePos>,
    /// Who has what was acknowledged and may not be in the store yet: kept by whoever takes the lease, until that is in the store. Absent when everything
    /// that was acknowledged is in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnesses: Option<Witnesses>,
}

/// Where commits are that a primary acknowledged because other nodes had them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witnesses {
    /// `address` of the node that acknowledged them: it has all of them.
    pub of: String,
    /// Each of them is on the disks of so many of `nodes`. Not 0, and not more than there are.
    pub count: u32,
    /// Addresses of nodes, in the order of their bytes, each once: 1 to [`WITNESSES_MAX`]. `of` is none of them.
    pub nodes: Vec<String>,
}

impl Witnesses {
    /// Of so many of the nodes it must be known what they have, so that at least one of them has each commit that was acknowledged.
    pub fn answers_needed(&self) -> usize {
        (self.nodes.len() + 1).saturating_sub(self.count as usize)
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_name = |name: &String| (1..=NAME_SIZE_MAX).contains(&name.len());
        if !is_name(&self.of) || !self.nodes.iter().all(is_name) {
            return Err("the name of a witness is empty or too long");
        }
        if !(1..=WITNESSES_MAX).contains(&self.nodes.len()) || !self.nodes.is_sorted_by(|a, b| a < b) {
            return Err("witnesses are none, too many, or not in order");
        }
        if self.nodes.contains(&self.of) {
            return Err("a node is its own witness");
        }
        if self.count == 0 || self.count as usize > self.nodes.len() {
            return Err("witnesses are 0 of them, or more than there are");
        }
        Ok(())
    }
}

/// Whether a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Until it expires.
    Held,
    /// Given up: anybody may take it at once.
    Released,
}

/// A position in a lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DurablePos {
    /// The history.
    pub lineage: Lineage,
    /// The position in it.
    pub pos: Pos,
}

impl LeaseRecord {
    /// The bytes of `lease.json`, the same for the same value.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(e) = self.check() {
            panic!("a lease that breaks the format: {e}");
        }
        json::encode(self)
    }

    /// Reads `lease.json`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let lease: Self = json::decode(bytes, "lease.json", SIZE_MAX)?;
        lease.check()?;
        Ok(lease)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let error = |detail: &str| Err(DecodeError::new(ErrorKind::Field, "lease.json", 0).detail(detail));
        if self.ttl_ms == 0 {
            return error("ttl_ms is 0");
        }
        if self.quiet && self.state == LeaseState::Held {
            return error("quiet, and not released");
        }
        if self.successor.is_some() && self.state == LeaseState::Held {
            return error("a successor, and not released");
        }
        if self.successor.as_ref().is_some_and(|s| s.is_empty() || s.len() > NAME_SIZE_MAX) {
            return error("successor is empty or too long");
        }
        if self.holder.is_empty() || self.holder.len() > NAME_SIZE_MAX {
            return error("holder is empty or too long");
        }
        if self.address.as_ref().is_some_and(|a| a.is_empty() || a.len() > NAME_SIZE_MAX) {
            return error("address is empty or too long");
        }
        if self.process.as_ref().is_some_and(|p| p.is_empty() || p.len() > NAME_SIZE_MAX) {
            return error("process is empty or too long");
        }
        self.witnesses.as_ref().map_or(Ok(()), |witnesses| witnesses.check().or_else(error))
    }
}

/// The file `lease` of a state folder (docs/spec/state.md): nonces under which a process wrote the lease, newest last, one to a line.
pub fn encode_nonces(nonces: &[Nonce]) -> String {
    nonces.iter().map(|nonce| format!("{nonce}\n")).collect()
}

/// Reads them. What is no nonce is left out: it only costs a wait.
pub fn decode_nonces(text: &str) -> Vec<Nonce> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_may_name_its_process() {
        let process = Some("5f8e2f6a-0000-4000-8000-000000000001 pid:[4026531836] 77 4242".to_owned());
        let lease = LeaseRecord { process, ..crate::samples::lease() };
        assert_eq!(LeaseRecord::decode(&lease.encode()), Ok(lease.clone()));
        for process in [String::new(), "x".repeat(NAME_SIZE_MAX + 1)] {
            let text = json::encode(&LeaseRecord { process: Some(process), ..lease.clone() });
            assert!(LeaseRecord::decode(&text).is_err());
        }
    }

    #[test]
    fn only_what_was_given_up_is_quiet() {
        let held = LeaseRecord { quiet: true, ..crate::samples::lease() };
        assert!(LeaseRecord::decode(&json::encode(&held)).is_err());
        for successor in ["b", ""] {
            let named = LeaseRecord { successor: Some(successor.to_owned()), ..crate::samples::lease() };
            assert!(LeaseRecord::decode(&json::encode(&named)).is_err(), "{successor:?}");
            let state = LeaseState::Released;
            let named = LeaseRecord { state, ..named };
            assert_eq!(LeaseRecord::decode(&json::encode(&named)).is_ok(), !successor.is_empty());
        }
        let released = LeaseRecord { state: LeaseState::Released, ..held };
        assert_eq!(LeaseRecord::decode(&released.encode()), Ok(released.clone()));
        // One that does not say so is not.
        let other = LeaseRecord { quiet: false, ..released };
        let text = String::from_utf8(other.encode()).unwrap();
        assert!(!text.contains("quiet"));
        assert_eq!(LeaseRecord::decode(text.as_bytes()), Ok(other));
    }

    #[test]
    fn witnesses_are_in_order_and_enough() {
        let of = |count, nodes: &[&str]| Witnesses {
            of: "a".to_owned(),
            count,
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        };
        let check = |witnesses: Witnesses, answers: Option<usize>| {
            let needed = witnesses.answers_needed();
            let lease = LeaseRecord { witnesses: Some(witnesses), ..crate::samples::lease() };
            let read = LeaseRecord::decode(&json::encode(&lease));
            assert_eq!(read.is_ok().then_some(needed), answers, "{lease:?}");
            assert!(read.is_err() || read == Ok(lease));
        };
        check(of(1, &["b"]), Some(1));
        check(of(1, &["b", "c"]), Some(2));
        check(of(2, &["b", "c"]), Some(1));
        check(of(2, &["b", "c", "d", "e"]), Some(3));
        check(of(0, &["b"]), None);
        check(of(2, &["b"]), None);
        check(of(1, &[]), None);
        check(of(1, &["c", "b"]), None);
        check(of(1, &["b", "b"]), None);
        check(of(1, &["a"]), None);
        check(of(1, &["b", ""]), None);
        check(of(1, &["b", &"x".repeat(NAME_SIZE_MAX + 1)]), None);
        let many: Vec<String> = (0..=WITNESSES_MAX).map(|n| format!("node{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(of(1, &many), None);
        check(of(1, &many[1..]), Some(WITNESSES_MAX));
    }

    #[test]
    fn nonces_are_read_back() {
        let nonces = [Nonce([1; 16]), Nonce([0xab; 16])];
        assert_eq!(decode_nonces(&encode_nonces(&nonces)), nonces);
        assert_eq!(decode_nonces("what\n\n0101"), []);
        assert_eq!(decode_nonces(&format!("torn\n{}", nonces[1])), nonces[1..]);
    }
}
