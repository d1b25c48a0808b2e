//! Logs of a few segments as text, and what is found in them.

use std::collections::BTreeMap;
use std::fmt::Write;

use rhyolite_format::lease::{DurablePos, LeaseRecord, LeaseState};
use rhyolite_format::manifest::FileKind;
use rhyolite_format::{Lineage, Nonce};

use super::*;
use crate::model::{self, Commits, Random};

fn lease(epoch: u64, durable: Option<u64>) -> LeaseRecord {
    LeaseRecord {
        format: rhyolite_format::Format1,
        epoch: model::epoch(epoch),
        state: LeaseState::Held,
        quiet: false,
        successor: None,
        holder: "a".to_owned(),
        address: None,
        process: None,
        nonce: Nonce([1; 16]),
        ttl_ms: 1,
        renewed: Timestamp(0),
        durable: durable.map(|n| DurablePos { lineage: model::LINEAGE, pos: model::pos(n) }),
        witnesses: None,
    }
}

/// Commits 1 to 9, a second apart, the first a snapshot.
fn commits() -> Commits {
    let mut commits = Commits::default();
    for n in 1..=9 {
        commits.push(n * 1000, n == 1, &mut Random(1));
    }
    commits
}

/// What is found in a log of segments `SEQ/EPOCH/FIRST-LAST`, written at `written` each.
fn check(segments: &str, lease: Option<&LeaseRecord>, written: i64, expected: &str) {
    let commits = commits();
    let log: Vec<LogSegment> = segments
        .split_whitespace()
        .map(|text| {
            let numbers: Vec<u64> = text.split(['/', '-']).map(|n| n.parse().unwrap()).collect();
            let [seq, epoch, first, last] = numbers[..] else { panic!("{text}") };
            commits.segment(seq, epoch, first..last + 1, 500)
        })
        .collect();
    let mut manifest = model::manifest();
    manifest.files.push(commits.file(FileKind::Snapshot, 9, 1, 1, 1000));
    let mut stamps: BTreeMap<String, Timestamp> =
        log.iter().map(|segment| (segment.key.clone(), Timestamp(written))).collect();
    stamps.insert(keys::MANIFEST.to_owned(), Timestamp(written));
    let reading = Reading { manifest: &manifest, log: &log, lease_before: lease, lease_after: lease, written: &stamps };
    let mut said = String::new();
    for one in find(&reading).unwrap() {
        writeln!(said, "{}: {}", one.key.trim_start_matches("log/0000000000000"), one.detail).unwrap();
    }
    assert_eq!(said.trim_end(), expected, "{segments}");
}

#[test]
fn healthy_but_odd() {
    check("", None, 0, "");
    check("1/1/1-3 2/1/4-5 3/1/6-9", None, 100_000, "");
    check("1/1/1-3 2/1/4-5 3/1/6-9", Some(&lease(1, Some(9))), 9_000, "");
    // A lease that is behind what was uploaded since.
    check("1/1/1-3 2/1/4-5", Some(&lease(3, Some(4))), 9_000, "");
    // A void segment repeats what the new writer has written, fences hold nothing.
    check("1/1/1-3 2/2/4-3 3/1/4-5 4/2/4-6", Some(&lease(2, None)), 9_000, "");
    // Written long after the commits, or a little before them.
    check("1/1/1-3", None, i64::MAX, "");
    check("1/1/1-9", None, -290_000, "");
}

#[test]
fn wrong_epochs() {
    check(
        "1/1/1-3 2/7/4-5",
        Some(&lease(2, None)),
        9_000,
        "002.seg: it is of epoch 0000000000000007, but the latest is 0000000000000002",
    );
    check("1/1/1-3 2/7/4-5", None, 9_000, "");
}

#[test]
fn the_epoch_of_the_log_is_never_beyond_all_others() {
    let mut manifest = model::manifest();
    manifest.log_epoch = model::epoch(9);
    let (log, written) = ([commits().segment(1, 1, 1..3, 500)], BTreeMap::new());
    let reading = Reading { manifest: &manifest, log: &log, lease_before: None, lease_after: None, written: &written };
    let found = find(&reading).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].key, keys::MANIFEST);
}

#[test]
fn transactions_that_lie_in_the_log_twice() {
    let twice = "transaction 0000000000000005 lies before it in the log already";
    check("1/1/1-3 2/1/4-5 3/1/5-6", None, 9_000, &format!("003.seg: {twice}"));
    check(
        "1/1/1-3 2/1/4-5 3/1/4-5 4/1/6-9",
        None,
        9_000,
        "003.seg: transaction 0000000000000004 lies before it in the log already",
    );
}

#[test]
fn a_log_that_has_lost_its_end() {
    let lost = lease(1, Some(8));
    check(
        "1/1/1-3 2/1/4-5",
        Some(&lost),
        9_000,
        "lease.json: transaction 0000000000000008 was durable, but the last is 0000000000000005",
    );
    let mut other = lease(1, Some(5));
    other.durable = other.durable.map(|durable| DurablePos { lineage: Lineage([9; 16]), ..durable });
    let expected = format!("lease.json: it is of history {}, the manifest of {}", Lineage([9; 16]), model::LINEAGE);
    check("1/1/1-5", Some(&other), 9_000, &expected);
    let mut other = lease(1, Some(5));
    other.durable =
        other.durable.map(|durable| DurablePos { pos: Pos { txid: model::txid(5), ..model::pos(6) }, ..durable });
    let (theirs, ours) = (model::checksum(6), model::checksum(5));
    let expected = format!("lease.json: transaction 0000000000000005 was durable with checksum {theirs}, not {ours}");
    check("1/1/1-5", Some(&other), 9_000, &expected);
}

#[test]
fn a_clock_that_is_ahead_of_the_store() {
    check("1/1/1-9", None, -292_000, "001.seg: clock skew: a commit in it lies 301 s after it was written");
}
