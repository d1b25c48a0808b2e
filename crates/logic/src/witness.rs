//! Which commits other nodes have: on a primary, what it may call safe before it is in the store; on its successor, what it has to ask for.
//!
//! A list ([`Witnesses`]) in the lease says: every commit that was told to be safe is on the disks of `count` of these nodes. Whoever knows of
//! [`Witnesses::answers_needed`] of them what they have knows all such commits, as two such sets of nodes have one in common.
//!
//! 1. A commit is told to be safe only when each list that the lease may hold at that moment is satisfied ([`Ledger::tell`]).
//! 2. A list takes the place of another only when everything that was told is safe by it as well, or in the store ([`next_list`], [`Ledger::is_safe_by`]).
//! 3. What a node has counts only if it is on the way on from the end of the log ([`testimony`]); what cannot be told counts as no answer.

use std::collections::{BTreeMap, BTreeSet};

use rhyolite_format::lease::{WITNESSES_MAX, Witnesses};
use rhyolite_format::{Lineage, Pos, Txid};

use crate::trail::Trail;

/// What other nodes have of one database, as its primary knows.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    reached: BTreeMap<String, Txid>,
    told: Option<Txid>,
}

impl Ledger {
    /// A node has said how far it is. It may have come back with less than it had.
    pub fn note(&mut self, node: &str, txid: Txid) {
        self.reached.insert(node.to_owned(), txid);
    }

    /// The history has begun anew from somewhere: what was reached is not of it.
    pub fn forget_reached(&mut self) {
        self.reached.clear();
    }

    /// Forgets what all other nodes have.
    pub fn keep(&mut self, mut is_kept: impl FnMut(&str) -> bool) {
        self.reached.retain(|node, _| is_kept(node));
    }

    /// How far a node is.
    pub fn reached(&self, node: &str) -> Option<Txid> {
        self.reached.get(node).copied()
    }

    /// The last commit that is on enough nodes of every one of these lists; `None` when there is no list, or nothing is.
    pub fn safe(&self, lists: &[Witnesses]) -> Option<Txid> {
        lists.iter().map(|list| self.held(list)).min().flatten()
    }

    /// The last commit that is on enough nodes of a list.
    fn held(&self, list: &Witnesses) -> Option<Txid> {
        let mut all: Vec<Txid> = list.nodes.iter().filter_map(|node| self.reached(node)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.get((list.count as usize).checked_sub(1)?).copied()
    }

    /// Whether somebody may be told that a commit is safe. That he was is remembered.
    pub fn tell(&mut self, txid: Txid, lists: &[Witnesses]) -> bool {
        let is_safe = self.safe(lists).is_some_and(|safe| txid <= safe);
        if is_safe {
            self.told = self.told.max(Some(txid));
        }
        is_safe
    }

    /// Whether everything that was told to be safe is so by this list alone, or in the store.
    pub fn is_safe_by(&self, list: Option<&Witnesses>, durable: Option<Txid>) -> bool {
        self.told.is_none_or(|told| durable >= Some(told) || list.and_then(|list| self.held(list)) >= Some(told))
    }
}

/// The list that is to be in the lease: the nodes that are here, and those of the present list that have not been away for long; none when these are fewer than `count`. It takes the place of
/// the present one when everything that was told is safe by it ([`Ledger::is_safe_by`]).
pub fn next_list(
    (of, count): (&str, u32),
    present: Option<&Witnesses>,
    here: &BTreeSet<String>,
    mut is_awaited: impl FnMut(&str) -> bool,
) -> Option<Witnesses> {
    // A list of another's is that of a former primary.
    let own = present.filter(|list| list.of == of && list.count == count);
    let awaited = own.into_iter().flat_map(|list| &list.nodes).filter(|node| here.contains(*node) || is_awaited(node));
    let mut nodes: BTreeSet<String> = awaited.cloned().collect();
    for node in here.iter().filter(|node| *node != of) {
        if nodes.len() < WITNESSES_MAX {
            nodes.insert(node.clone());
        }
    }
    if nodes.len() < count as usize {
        return None;
    }
    Some(Witnesses { of: of.to_owned(), count, nodes: nodes.into_iter().collect() })
}

/// What a node has beyond the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Testimony {
    /// Nothing.
    Nothing,
    /// Commits up to here, which go on from the end.
    Beyond(Pos),
    /// Something of which it is not known whether it goes on from the end.
    Unproved(Pos),
}

/// How a file is known to have come to where it is, seen from the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Through that very end.
    End,
    /// It was elsewhere at the end's TXID: it left the log before. Whoever went on with the log in another way had heard of everything that was told.
    Elsewhere,
    /// Nobody knows.
    Unknown,
}

impl Passed {
    /// What a trail says.
    pub fn by(trail: &Trail, end: Pos) -> Self {
        match () {
            () if trail.has(end) => Self::End,
            () if trail.has_instead_of(end) => Self::Elsewhere,
            () => Self::Unknown,
        }
    }
}

impl Passed {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Elsewhere => "elsewhere",
            Self::Unknown => "unknown",
        }
    }

    /// That of a name; what is not known says nothing.
    pub fn of_name(name: &str) -> Self {
        [Self::End, Self::Elsewhere].into_iter().find(|known| known.name() == name).unwrap_or(Self::Unknown)
    }
}

impl From<bool> for Passed {
    /// Whether it has come through that very end; nothing else is known.
    fn from(has_passed: bool) -> Self {
        if has_passed { Self::End } else { Self::Unknown }
    }
}

/// Judges where the file of a node is against the end of the log of `lineage`.
///
/// What a winner had found is one commit in the log, where it were several: the end may have a lower TXID than a file whose content it is, or has.
pub fn testimony((lineage, end): (Lineage, Pos), file: Option<(Lineage, Pos)>, passed: impl Into<Passed>) -> Testimony {
    match file {
        // A primary streams no other history than that of the log.
        Some((theirs, pos)) if theirs == lineage && pos.txid > end.txid => match passed.into() {
            Passed::End => Testimony::Beyond(pos),
            Passed::Elsewhere => Testimony::Nothing,
            Passed::Unknown if pos.checksum == end.checksum => Testimony::Nothing,
            Passed::Unknown => Testimony::Unproved(pos),
        },
        Some(_) | None => Testimony::Nothing,
    }
}

/// Whether so many were heard that every commit which was told to be safe is known.
pub fn is_enough<'a>(list: &Witnesses, heard: impl IntoIterator<Item = &'a str>) -> bool {
    let heard: BTreeSet<&str> = heard.into_iter().collect();
    list.nodes.iter().filter(|node| heard.contains(node.as_str())).count() >= list.answers_needed()
}

#[cfg(test)]
mod tests {
    use rhyolite_format::Checksum;

    use super::*;

    fn list(count: u32, nodes: &[&str]) -> Witnesses {
        Witnesses { of: "a".to_owned(), count, nodes: nodes.iter().map(|&node| node.to_owned()).collect() }
    }

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    fn ledger(reached: &[(&str, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        reached.iter().for_each(|(node, n)| ledger.note(node, txid(*n)));
        ledger
    }

    #[test]
    fn a_commit_is_safe_when_enough_nodes_of_every_list_have_it() {
        let here = ledger(&[("b", 5), ("c", 3), ("x", 9)]);
        let safe = |lists: &[Witnesses]| here.safe(lists).map(Txid::get);
        assert_eq!(safe(&[]), None);
        assert_eq!(safe(&[list(1, &["b", "c"])]), Some(5));
        assert_eq!(safe(&[list(2, &["b", "c"])]), Some(3));
        assert_eq!(safe(&[list(1, &["c", "d"])]), Some(3));
        assert_eq!(safe(&[list(2, &["c", "d"])]), None);
        assert_eq!(safe(&[list(1, &["b", "c"]), list(1, &["c"])]), Some(3));
        assert_eq!(safe(&[list(1, &["b", "c"]), list(1, &["d"])]), None);
    }

    #[test]
    fn what_was_told_keeps_a_list_until_it_is_safe_by_another_or_in_the_store() {
        let mut here = ledger(&[("b", 5), ("c", 3)]);
        let both = [list(1, &["b", "c"])];
        assert!(here.is_safe_by(None, None), "nothing was told");
        assert!(!here.tell(txid(6), &both) && here.is_safe_by(None, None));
        assert!(here.tell(txid(5), &both) && here.tell(txid(2), &both));
        assert!(!here.is_safe_by(Some(&list(1, &["c"])), None));
        assert!(!here.is_safe_by(Some(&list(1, &["c"])), Some(txid(4))));
        assert!(here.is_safe_by(Some(&list(1, &["b"])), None));
        assert!(here.is_safe_by(None, Some(txid(5))));
        here.note("c", txid(7));
        assert!(here.is_safe_by(Some(&list(1, &["c"])), None));
        here.forget_reached();
        assert!(!here.is_safe_by(Some(&list(1, &["b", "c"])), None) && here.safe(&both).is_none());
    }

    #[test]
    fn a_list_has_who_is_here_and_who_may_come_back() {
        let here = |nodes: &[&str]| nodes.iter().map(|&node| node.to_owned()).collect::<BTreeSet<_>>();
        let next = |count, present: Option<&Witnesses>, nodes: &[&str], awaited: &[&str]| {
            next_list(("a", count), present, &here(nodes), |node| awaited.contains(&node))
                .map(|list| list.nodes.join(" "))
        };
        assert_eq!(next(1, None, &[], &[]), None);
        assert_eq!(next(1, None, &["a", "c", "b"], &[]).as_deref(), Some("b c"));
        assert_eq!(next(2, None, &["b"], &[]), None, "not enough");
        let present = list(1, &["b", "c"]);
        assert_eq!(next(1, Some(&present), &["b"], &["c"]).as_deref(), Some("b c"));
        assert_eq!(next(1, Some(&present), &["b"], &[]).as_deref(), Some("b"));
        assert_eq!(next(1, Some(&present), &[], &[]), None, "nobody is left");
        assert_eq!(next(2, Some(&present), &["d"], &[]), None, "it is for another count");
        let theirs = Witnesses { of: "z".to_owned(), ..present };
        assert_eq!(next(1, Some(&theirs), &["d"], &["b"]).as_deref(), Some("d"));
        let many: Vec<String> = (0..WITNESSES_MAX + 2).map(|n| format!("node{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let listed = next_list(("a", 1), Some(&list(1, &["z"])), &here(&many), |_| true).unwrap();
        assert!(listed.nodes.len() == WITNESSES_MAX && listed.nodes.contains(&"z".to_owned()));
    }

    /// Whatever was told on `count` of the nodes is known to whoever has heard enough of them, and not to fewer.
    #[test]
    fn every_commit_is_known_by_those_who_were_heard() {
        let names = ["b", "c", "d", "e", "f"];
        for nodes in 1..=names.len() {
            for count in 1..=nodes {
                let list = list(count as u32, &names[..nodes]);
                let sets = |size: usize| (0u32..1 << nodes).filter(move |set| set.count_ones() as usize == size);
                for heard in sets(list.answers_needed()) {
                    let told = |set: u32| names.iter().enumerate().filter(move |(i, _)| set & (1 << i) != 0);
                    assert!(is_enough(&list, told(heard).map(|(_, name)| *name)));
                    assert!(sets(count).all(|held| held & heard != 0), "{nodes} {count}");
                    let one_less = heard & (heard - 1);
                    assert!(!is_enough(&list, told(one_less).map(|(_, name)| *name).chain(["x"])));
                    assert!(sets(count).any(|held| held & one_less == 0));
                }
            }
        }
    }

    #[test]
    fn only_what_goes_on_from_the_end_counts() {
        let pos = |n: u64, sum: u64| Pos { txid: txid(n), checksum: Checksum::from_crc(sum) };
        let (ours, other) = (Lineage([1; 16]), Lineage([2; 16]));
        let said = |file, has_passed| testimony((ours, pos(5, 50)), file, has_passed);
        assert_eq!(said(None, false), Testimony::Nothing);
        assert_eq!(said(Some((ours, pos(5, 50))), false), Testimony::Nothing);
        assert_eq!(said(Some((ours, pos(5, 51))), true), Testimony::Nothing);
        assert_eq!(said(Some((ours, pos(4, 40))), true), Testimony::Nothing);
        assert_eq!(said(Some((other, pos(7, 70))), true), Testimony::Nothing);
        assert_eq!(said(Some((ours, pos(7, 70))), true), Testimony::Beyond(pos(7, 70)));
        assert_eq!(said(Some((ours, pos(7, 70))), false), Testimony::Unproved(pos(7, 70)));
        assert_eq!(said(Some((ours, pos(7, 50))), false), Testimony::Nothing, "it is the end under another number");
    }

    #[test]
    fn a_file_that_left_the_log_before_its_end_has_nothing() {
        let pos = |n: u64, sum: u64| Pos { txid: txid(n), checksum: Checksum::from_crc(sum) };
        let mut trail = Trail::default();
        trail.note([pos(5, 50), pos(6, 60), pos(7, 70)]);
        let said = |end| {
            let lineage = Lineage([1; 16]);
            testimony((lineage, end), Some((lineage, pos(7, 70))), Passed::by(&trail, end))
        };
        assert_eq!(said(pos(5, 50)), Testimony::Beyond(pos(7, 70)));
        // What was found was put into the log as one commit.
        assert_eq!(said(pos(6, 69)), Testimony::Nothing);
        assert_eq!(said(pos(4, 40)), Testimony::Unproved(pos(7, 70)));
    }
}
