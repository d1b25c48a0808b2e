//! Plans against a brute-force oracle on random histories, and the errors in words.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rhyolite_format::manifest::{FileKind, Manifest};

use super::*;
use crate::model::{self, Commits, Random, checksum, txid};

/// A random history with everything that may lie in a store, holes included.
struct World {
    commits: Commits,
    manifest: Manifest,
    log: Vec<LogSegment>,
    indexes: Vec<BundleIndex>,
}

impl World {
    fn random(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut commits = Commits::default();
        let mut time = 1000;
        for _ in 0..random.between(1, 40) {
            time += if random.chance(5) { -20 } else { random.below(30) as i64 };
            let is_reset = random.chance(6);
            commits.push(time, is_reset, &mut random);
        }
        let mut world = Self { commits, manifest: model::manifest(), log: Vec::new(), indexes: Vec::new() };
        let log_start = random.below(world.commits.last() + 1);
        world.manifest.log_start = (log_start > 0).then(|| model::pos(log_start));
        world.add_bundles(log_start, &mut random);
        world.add_merged(log_start, &mut random);
        for n in 1..=world.commits.last() {
            let by_reset = n <= log_start && world.commits.get(n).is_reset && random.chance(90);
            if by_reset || random.chance(4) {
                let size = random.between(500, 5000);
                world.manifest.files.push(world.commits.file(FileKind::Snapshot, 9, 1, n, size));
            }
        }
        world.add_log(log_start, &mut random);
        world
    }

    fn add_bundles(&mut self, log_start: u64, random: &mut Random) {
        let mut at = 2;
        while at <= log_start {
            let max = (at + random.below(6)).min(log_start);
            if self.commits.is_one_chain(at, max) && random.chance(85) {
                let len = random.between(131, 2000);
                let entries: Vec<_> = (at..=max).map(|n| self.commits.entry(n, len)).collect();
                let file = self.commits.file(FileKind::Bundle, 1, at, max, len * entries.len() as u64 + 200);
                self.indexes.push(BundleIndex { key: file.key.clone(), entries });
                self.manifest.files.push(file);
                at = max;
            }
            at += 1;
        }
    }

    fn add_merged(&mut self, log_start: u64, random: &mut Random) {
        for level in 2..=3 {
            let mut at = 2;
            while at <= log_start {
                let max = (at + random.below(12)).min(log_start);
                if self.commits.is_one_chain(at, max) && random.chance(40) {
                    let file = self.commits.file(FileKind::Merged, level, at, max, random.between(131, 9000));
                    self.manifest.files.push(file);
                    at = max;
                }
                at += 1;
            }
        }
    }

    fn add_log(&mut self, log_start: u64, random: &mut Random) {
        let (mut at, mut number, mut writer) = (log_start + 1, random.between(1, 5), 1);
        self.manifest.first_seq = model::seq(number);
        while at <= self.commits.last() {
            let end = (at + random.below(5)).min(self.commits.last() + 1);
            if random.chance(10) {
                writer += 1;
            }
            if writer > 1 && random.chance(10) {
                // What an old writer had in flight: void.
                self.log.push(self.commits.segment(number, writer - 1, at..end, 131));
            } else {
                self.log.push(self.commits.segment(number, writer, at..end, random.between(131, 900)));
                at = end;
                if random.chance(2) {
                    at += 1;
                }
            }
            number += 1;
        }
    }

    fn items(&self) -> Vec<OracleItem> {
        let of_file = |f: &ManifestFile| OracleItem {
            min: f.min_txid.get(),
            max: f.max_txid.get(),
            is_snapshot: f.kind == FileKind::Snapshot,
            cost: f.size + REQUEST_COST,
        };
        let of_entry = |e: &SegmentEntry| OracleItem {
            min: e.min_txid.get(),
            max: e.max_txid.get(),
            is_snapshot: e.is_snapshot(),
            cost: e.len,
        };
        let live = self.live();
        self.manifest.files.iter().map(of_file).chain(live.iter().flat_map(|s| &s.entries).map(of_entry)).collect()
    }

    /// Segments that count, said in another way than in the code.
    fn live(&self) -> Vec<&LogSegment> {
        let is_void = |s: &&LogSegment| self.log.iter().any(|o| o.seq < s.seq && o.header.epoch > s.header.epoch);
        self.log.iter().filter(|s| !is_void(s)).collect()
    }

    /// Every TXID that some file or commit ends at, with its time.
    fn known(&self) -> BTreeMap<u64, i64> {
        let ends = self.items().into_iter().map(|i| i.max);
        let commits = self.indexes.iter().flat_map(|i| i.entries.iter().map(|e| e.max_txid.get()));
        ends.chain(commits).map(|n| (n, self.commits.get(n).time)).collect()
    }

    /// The cost of the cheapest way to `target` from any of the snapshots `starts`, by trying everything until nothing changes.
    fn oracle(&self, target: u64, starts: impl Fn(u64) -> bool) -> Option<u64> {
        let mut items = self.items();
        for index in &self.indexes {
            let position = index.entries.iter().position(|e| e.max_txid.get() == target);
            if let Some(at) = position.filter(|at| at + 1 < index.entries.len()) {
                let cost = index.entries[..=at].iter().map(|e| e.len).sum::<u64>() + REQUEST_COST;
                items.push(OracleItem { min: index.entries[0].min_txid.get(), max: target, is_snapshot: false, cost });
            }
        }
        let mut best: BTreeMap<u64, u64> = BTreeMap::new();
        for item in items.iter().filter(|i| i.is_snapshot && starts(i.max)) {
            let cost = best.entry(item.max).or_insert(item.cost);
            *cost = item.cost.min(*cost);
        }
        loop {
            let before = best.clone();
            for item in items.iter().filter(|i| !i.is_snapshot && i.max <= target) {
                let from = before.iter().filter(|(at, _)| item.min <= **at + 1 && item.max > **at).map(|(_, c)| c);
                if let Some(cost) = from.min().map(|c| c + item.cost)
                    && best.get(&item.max).is_none_or(|c| cost < *c)
                {
                    best.insert(item.max, cost);
                }
            }
            if best == before {
                return best.get(&target).copied();
            }
        }
    }

    fn newest_snapshot(&self, target: u64) -> Option<u64> {
        self.items().iter().filter(|i| i.is_snapshot && i.max <= target).map(|i| i.max).max()
    }

    /// Plans, giving indexes one by one as they are asked for.
    fn plan(&self, target: Target) -> Result<RestorePlan, PlanError> {
        let mut given: Vec<BundleIndex> = Vec::new();
        loop {
            match plan(&self.manifest, &self.log, &given, target) {
                Err(PlanError::NeedIndex { key }) => {
                    assert!(given.iter().all(|i| i.key != key), "asked twice for {key}");
                    given.push(self.indexes.iter().find(|i| i.key == key).unwrap().clone());
                }
                other => {
                    // Knowing more may find a cheaper way, never another end.
                    let best = plan(&self.manifest, &self.log, &self.indexes, target);
                    match (&other, &best) {
                        (Ok(one), Ok(best)) => assert_eq!((one.pos, one.time), (best.pos, best.time)),
                        (Err(PlanError::OutOfRange { .. }), Err(PlanError::OutOfRange { .. })) => (),
                        _ => assert_eq!(other, best),
                    }
                    return best;
                }
            }
        }
    }
}

struct OracleItem {
    min: u64,
    max: u64,
    is_snapshot: bool,
    cost: u64,
}

/// Walks the steps as a restore would. Returns where they lead and what they cost.
fn walk(plan: &RestorePlan) -> (u64, u64) {
    let (mut at, mut cost) = (0, 0);
    for (i, step) in plan.steps.iter().enumerate() {
        match step {
            PlanStep::Snapshot(file) => {
                assert_eq!((i, file.kind), (0, FileKind::Snapshot));
                (at, cost) = (file.max_txid.get(), cost + file.size + REQUEST_COST);
            }
            PlanStep::Merged(file) => {
                assert_eq!(file.kind, FileKind::Merged);
                assert!(file.min_txid.get() <= at + 1 && file.max_txid.get() > at);
                (at, cost) = (file.max_txid.get(), cost + file.size + REQUEST_COST);
            }
            PlanStep::Bundle { file, after, through } => {
                assert_eq!((file.kind, after.get()), (FileKind::Bundle, at));
                assert!(file.min_txid.get() <= at + 1 && after < through && *through <= file.max_txid);
                at = through.get();
                let part = (at - file.min_txid.get() + 1) * (file.size - 200) / u64::from(file.entries);
                cost += REQUEST_COST + if *through == file.max_txid { file.size } else { part };
            }
            PlanStep::Segment { entries, .. } => {
                for (k, entry) in entries.iter().enumerate() {
                    let starts = if entry.is_snapshot() { i + k == 0 } else { entry.min_txid.get() == at + 1 };
                    assert!(starts, "{entry:?} after {at}");
                    (at, cost) = (entry.max_txid.get(), cost + entry.len);
                }
            }
        }
    }
    (at, cost)
}

fn check_txid(world: &World, n: u64) {
    let known = world.known();
    let result = world.plan(Target::Txid(txid(n)));
    if known.is_empty() {
        assert_eq!(result, Err(PlanError::Empty));
        return;
    }
    if !known.contains_key(&n) {
        let below = known.keys().copied().filter(|k| *k < n).max().and_then(Txid::new);
        let above = known.keys().copied().filter(|k| *k > n).min().and_then(Txid::new);
        assert_eq!(result, Err(PlanError::NotAPoint { txid: txid(n), below, above }));
        return;
    }
    let newest = world.newest_snapshot(n);
    let cost = world.oracle(n, |s| Some(s) == newest);
    assert_eq!(cost.is_some(), world.oracle(n, |_| true).is_some(), "the newest snapshot is enough");
    match result {
        Ok(plan) => {
            let (end, walked) = walk(&plan);
            assert_eq!((end, Some(walked)), (n, cost));
            let commit = world.commits.get(n);
            assert_eq!((plan.pos, plan.time.0), (model::pos(n), commit.time));
            assert_eq!(plan.page_size, commit.page_size);
        }
        Err(PlanError::NoSnapshot { .. }) => assert_eq!(newest, None),
        Err(PlanError::Gap { first, last, txid }) => {
            assert!(cost.is_none() && first <= last && last <= txid);
            assert!(Some(first.get()) > newest);
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn check_times(world: &World, time: i64) {
    let points = points(&world.manifest, &world.log, &world.indexes).unwrap();
    let Some(first_point) = points.first().map(|p| p.pos.txid.get()) else { return };
    let known: BTreeMap<u64, i64> = world.known().into_iter().filter(|(n, _)| *n >= first_point).collect();
    let expected = known.iter().filter(|(_, t)| **t <= time).map(|(n, _)| *n).max();
    // A clock that went back inside a bundle may have shown more: only the ends of files count.
    let ends = world.items().into_iter().map(|i| world.commits.get(i.max).time);
    let outside = time > ends.max().unwrap();
    let at = world.plan(Target::Time(Timestamp(time)));
    match expected.filter(|_| !outside) {
        Some(n) => assert_eq!(at, world.plan(Target::Txid(txid(n)))),
        None => assert!(matches!(at, Err(PlanError::OutOfRange { .. })), "{at:?}"),
    }
    let nearest = world.plan(Target::TimeNearest(Timestamp(time)));
    assert_eq!(nearest, world.plan(Target::Txid(txid(expected.unwrap_or(first_point)))));
}

fn check_points(world: &World) {
    let listed = points(&world.manifest, &world.log, &world.indexes).unwrap();
    let expected: Vec<u64> = world.known().into_keys().filter(|n| world.oracle(*n, |_| true).is_some()).collect();
    assert_eq!(listed.iter().map(|p| p.pos.txid.get()).collect::<Vec<_>>(), expected);
    for point in listed {
        let n = point.pos.txid.get();
        assert_eq!((point.pos, point.time.0), (model::pos(n), world.commits.get(n).time));
    }
}

fn check(seed: u64) {
    let world = World::random(seed);
    let last = world.commits.last();
    for n in 1..=last + 1 {
        check_txid(&world, n);
    }
    match (world.plan(Target::Latest), world.known().into_keys().max()) {
        (result, Some(n)) => assert_eq!(result, world.plan(Target::Txid(txid(n)))),
        (result, None) => assert_eq!(result, Err(PlanError::Empty)),
    }
    let times = || world.commits.0.iter().map(|c| c.time);
    for time in times().flat_map(|t| [t - 1, t, t + 1]).chain([0, i64::MAX, i64::MIN]) {
        check_times(&world, time);
    }
    check_points(&world);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn plans_agree_with_the_oracle(seed in any::<u64>()) {
        check(seed);
    }
}

/// 1 is a snapshot in the manifest; 2 to 5 a bundle, 6 to 9 merged, 10 to 12 in the log.
fn small_world() -> World {
    let mut random = Random(1);
    let mut commits = Commits::default();
    for n in 1..=12 {
        commits.push(n * 100, false, &mut random);
    }
    let mut manifest = model::manifest();
    manifest.log_start = Some(model::pos(9));
    manifest.files = vec![
        commits.file(FileKind::Bundle, 1, 2, 5, 2200),
        commits.file(FileKind::Merged, 2, 6, 9, 900),
        commits.file(FileKind::Snapshot, 9, 1, 1, 5000),
    ];
    let entries = (2..=5).map(|n| commits.entry(n, 500)).collect();
    let indexes = vec![BundleIndex { key: manifest.files[0].key.clone(), entries }];
    let log = vec![commits.segment(1, 1, 10..12, 300), commits.segment(2, 1, 12..13, 300)];
    World { commits, manifest, log, indexes }
}

fn message(world: &World, target: Target) -> String {
    world.plan(target).unwrap_err().to_string()
}

#[test]
fn errors_say_what_can_be_done() {
    let mut world = small_world();
    assert_eq!(
        message(&world, Target::Txid(txid(7))),
        "TXID 0000000000000007 cannot be restored; the nearest are 0000000000000005 and 0000000000000009"
    );
    assert_eq!(
        message(&world, Target::Txid(txid(99))),
        "TXID 0000000000000063 cannot be restored; the last is 000000000000000c"
    );
    assert_eq!(
        message(&world, Target::Time(Timestamp(99))),
        "time 99 lies outside of what can be restored, 100 to 1200"
    );
    assert_eq!(
        message(&world, Target::Time(Timestamp(1201))),
        "time 1201 lies outside of what can be restored, 100 to 1200"
    );
    world.manifest.files.remove(1);
    assert_eq!(
        message(&world, Target::Latest),
        "TXIDs 0000000000000006 to 0000000000000009 are missing on the way to 000000000000000c"
    );
    world.manifest.files.pop();
    assert_eq!(message(&world, Target::Latest), "there is no snapshot at or before TXID 000000000000000c");
    world.log.remove(0);
    assert_eq!(message(&world, Target::Latest), "log segment 0000000000000001 is missing");
    world.log.clear();
    world.manifest.files.clear();
    assert_eq!(message(&world, Target::Latest), "nothing has been backed up yet");
}

#[test]
fn another_database_in_the_chain_is_noticed() {
    let mut world = small_world();
    world.log[0].entries[0].pre_apply = Some(checksum(77));
    assert_eq!(world.plan(Target::Latest), Err(PlanError::Diverged { at: model::pos(9), expected: checksum(77) }));
    assert!(world.plan(Target::Txid(txid(9))).is_ok());
}

#[test]
fn ten_thousand_files_and_a_long_log_are_planned_quickly() {
    let mut random = Random(1);
    let mut commits = Commits::default();
    for n in 1..=110_000 {
        commits.push(n, false, &mut random);
    }
    let mut manifest = model::manifest();
    manifest.log_start = Some(model::pos(100_001));
    manifest.files.push(commits.file(FileKind::Snapshot, 9, 1, 1, 5000));
    for i in 0..10_000 {
        manifest.files.push(commits.file(FileKind::Bundle, 1, 10 * i + 2, 10 * i + 11, 5000));
    }
    let log: Vec<LogSegment> =
        (0..999).map(|i| commits.segment(i + 1, 1, 100_002 + 10 * i..100_012 + 10 * i, 200)).collect();
    let begun = std::time::Instant::now();
    let plan = plan(&manifest, &log, &[], Target::Latest).unwrap();
    let took = begun.elapsed();
    assert_eq!(plan.steps.len(), 1 + 10_000 + 999);
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}
