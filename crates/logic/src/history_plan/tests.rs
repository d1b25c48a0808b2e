//! Plans carried out on a model of a store: whatever the policy keeps stays restorable, after every step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rhyolite_format::manifest::Pin;

use super::*;
use crate::model::{self, Commits, Random, epoch, txid};
use crate::restore_plan::{BundleIndex, PlanStep};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A database and its store.
struct World {
    commits: Commits,
    manifest: Manifest,
    /// What lies in the store under `log/`.
    segments: BTreeMap<Seq, LogSegment>,
    next_seq: Seq,
    /// What lies in the store under `ltx/`, with the entries of bundles.
    objects: BTreeMap<String, Vec<SegmentEntry>>,
    policy: Policy,
    now: i64,
    random: Random,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let policy = Policy {
            bundle_segments_min: random.between(1, 4) as usize,
            bundle_segments_max: random.between(4, 40) as usize,
            bundle_entries_max: random.between(5, 100) as usize,
            bundle_interval: minutes(random.between(1, 20)),
            merge_interval: minutes([20, 60, 90][random.below(3) as usize]),
            snapshot_interval: minutes(60 * random.between(2, 30)),
            keep_every_commit: minutes(60 * random.between(1, 24)),
            keep_hourly: minutes(60 * random.between(1, 72)),
            keep_daily: minutes(60 * random.between(1, 240)),
            grace: minutes(random.between(1, 90)),
            ..Policy::default()
        };
        Self {
            commits: Commits::default(),
            manifest: model::manifest(),
            segments: BTreeMap::new(),
            next_seq: Seq::FIRST,
            objects: BTreeMap::new(),
            policy,
            now: 20 * 24 * HOUR + random.below(1000 * MINUTE as u64) as i64,
            random,
        }
    }

    /// Uploads one segment with some commits.
    fn write(&mut self, commits: u64) {
        let first = self.commits.last() + 1;
        for _ in 0..commits {
            self.now += self.random.below(20_000) as i64;
            let is_reset = self.random.chance(2);
            let time = if self.random.chance(1) { self.now - 2 * HOUR } else { self.now };
            self.commits.push(time, is_reset, &mut self.random);
        }
        let segment = self.commits.segment(self.next_seq.get(), 1, first..self.commits.last() + 1, 200);
        self.segments.insert(self.next_seq, segment);
        self.next_seq = self.next_seq.next();
    }

    fn log(&self) -> Vec<LogSegment> {
        self.segments.range(self.manifest.first_seq..).map(|(_, s)| s.clone()).collect()
    }

    fn plan(&self) -> Vec<Step> {
        plan(&self.manifest, &self.log(), &self.policy, Timestamp(self.now)).unwrap()
    }

    /// Carries out one step. Returns the number of objects written and deleted.
    fn execute(&mut self, step: &Step) -> usize {
        let written = Written { size: 1000, crc64: 1 };
        let mut made = Vec::new();
        let mut deleted = 0;
        match step {
            Step::Bundle { pieces, .. } => {
                for piece in pieces {
                    let file = piece.file(Epoch::FIRST, written);
                    self.objects.insert(file.key.clone(), piece.entries().iter().map(|e| e.entry.clone()).collect());
                    made.push(file);
                }
            }
            Step::Merge { level, inputs } => {
                let keys: Vec<&String> = inputs.iter().map(|f| &f.key).collect();
                assert!(keys.iter().all(|k| self.objects.contains_key(*k)), "inputs lie in the store");
                let file = merged_file(*level, inputs, 10, epoch(1), written);
                self.objects.insert(file.key.clone(), Vec::new());
                made.push(file);
            }
            Step::Snapshot { from, .. } => {
                assert_eq!(from.get(), self.commits.last());
                let file = self.commits.file(FileKind::Snapshot, 9, 1, self.commits.last(), 1000);
                self.objects.insert(file.key.clone(), Vec::new());
                made.push(file);
            }
            Step::Expire { .. } => (),
            Step::Delete { files, segments } => {
                let due = Timestamp(self.now - millis(self.policy.grace));
                let retired = &self.manifest.retired_files;
                assert!(retired.iter().filter(|f| files.contains(&f.key)).all(|f| f.since <= due));
                assert!(segments.iter().all(|s| s.since <= due));
                for key in files {
                    assert!(self.objects.remove(key).is_some(), "{key} is deleted once");
                    deleted += 1;
                }
                for range in segments {
                    let seqs: Vec<Seq> =
                        self.segments.range(range.first_seq..=range.last_seq).map(|(s, _)| *s).collect();
                    assert!(seqs.iter().all(|s| s.next() < self.next_seq), "the newest segment stays");
                    deleted += seqs.len();
                    seqs.iter().for_each(|s| drop(self.segments.remove(s)));
                }
            }
        }
        let count = made.len() + deleted;
        let update = Update { epoch: epoch(1), nonce: Nonce([9; 16]), now: Timestamp(self.now) };
        self.manifest = apply(&self.manifest, step, made, update);
        if let Err(e) = self.manifest.validate() {
            panic!("{e} after {step:?}");
        }
        count
    }

    /// The TXIDs that the policy keeps, told from the commits alone.
    fn kept(&self) -> BTreeSet<u64> {
        let young = |age: Duration| self.now - millis(age);
        let mut kept: BTreeSet<u64> = self.manifest.pins.iter().map(|p| p.pos.txid.get()).collect();
        kept.extend((self.commits.last() > 0).then_some(self.commits.last()));
        let hourly = young(self.policy.keep_hourly);
        let daily = young(self.policy.keep_daily);
        let (mut hours, mut days) = (BTreeMap::new(), BTreeMap::new());
        for n in 1..=self.commits.last() {
            let time = Timestamp(self.commits.get(n).time);
            if time.0 > young(self.policy.keep_every_commit) {
                kept.insert(n);
            }
            hours.insert(interval(time, self.policy.merge_interval), n);
            days.insert(interval(time, DAY), n);
        }
        let times = |n: &u64| self.commits.get(*n).time;
        kept.extend(hours.into_values().filter(|n| times(n) > hourly));
        kept.extend(days.into_values().filter(|n| times(n) > daily));
        kept
    }

    fn check_kept(&self, after: &str) {
        let log = self.log();
        let is_bundle = |f: &&ManifestFile| f.kind == FileKind::Bundle;
        let index = |f: &ManifestFile| BundleIndex { key: f.key.clone(), entries: self.objects[&f.key].clone() };
        let indexes: Vec<BundleIndex> = self.manifest.files.iter().filter(is_bundle).map(index).collect();
        for n in self.kept() {
            let plan = restore_plan::plan(&self.manifest, &log, &indexes, Target::Txid(txid(n)));
            let plan = plan.unwrap_or_else(|e| panic!("{n} after {after}: {e}"));
            assert_eq!(plan.pos, model::pos(n));
            for step in &plan.steps {
                let is_there = match step {
                    PlanStep::Snapshot(f) | PlanStep::Merged(f) | PlanStep::Bundle { file: f, .. } => {
                        self.objects.contains_key(&f.key)
                    }
                    PlanStep::Segment { seq, .. } => self.segments.contains_key(seq),
                };
                assert!(is_there, "{step:?} does not lie in the store");
            }
        }
    }

    /// Plans and executes until nothing is due. Returns how many steps that took.
    fn settle(&mut self) -> usize {
        for rounds in 0.. {
            assert!(rounds < 200, "plans without end");
            let steps = self.plan();
            if steps.is_empty() {
                return rounds;
            }
            for step in &steps {
                self.execute(step);
                self.check_kept(&format!("{step:?}"));
            }
        }
        unreachable!("the loop ends")
    }
}

fn check(seed: u64) {
    let mut world = World::new(seed);
    for round in 0..40 {
        for _ in 0..world.random.between(1, 8) {
            let commits = world.random.below(6);
            world.write(commits);
        }
        if world.random.chance(10) && world.commits.last() > 0 {
            let n = *world.kept().last().unwrap();
            world.manifest.pins.push(Pin { name: format!("{round:03}"), pos: model::pos(n) });
        }
        world.now += match world.random.below(6) {
            0 => 12 * HOUR,
            1 => HOUR,
            _ => world.random.below(30 * MINUTE as u64) as i64,
        };
        world.settle();
    }
    check_idle(world);
}

/// After the last commit there is ever less to do, and in the end nothing is left that nothing needs.
fn check_idle(mut world: World) {
    let mut busy = 0;
    for _ in 0..24 * 40 {
        world.now += HOUR;
        busy += usize::from(world.settle() > 0);
    }
    assert!(busy < 24 * 12, "an idle database had work in {busy} hours");
    assert_eq!(world.manifest.retired_files, []);
    assert_eq!(world.manifest.retired_segments, []);
    let live: BTreeSet<&str> = world.manifest.files.iter().map(|f| f.key.as_str()).collect();
    let there: BTreeSet<&str> = world.objects.keys().map(String::as_str).collect();
    assert_eq!(there, live, "the store holds what the manifest names");
    assert!(world.segments.keys().all(|s| *s >= world.manifest.first_seq));
    let before = world.manifest.clone();
    world.now += 1000 * 24 * HOUR;
    world.settle();
    world.now += 1000 * 24 * HOUR;
    assert_eq!(world.plan(), [], "nothing is ever due again, {before:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn kept_points_stay_restorable(seed in any::<u64>()) {
        check(seed);
    }
}

/// A database with `segments` segments of three commits each, a second apart, the first of them a snapshot.
fn steady(segments: u64) -> World {
    let mut world = World::new(1);
    world.policy = Policy::default();
    world.now = 20 * 24 * HOUR;
    for _ in 0..segments {
        let first = world.commits.last() + 1;
        for _ in 0..3 {
            world.now += 333;
            world.commits.push(world.now, false, &mut world.random);
        }
        let segment = world.commits.segment(world.next_seq.get(), 1, first..first + 3, 200);
        world.segments.insert(world.next_seq, segment);
        world.next_seq = world.next_seq.next();
    }
    world
}

#[test]
fn segments_are_bundled_after_the_interval_but_for_the_newest() {
    let mut world = steady(100);
    assert_eq!(world.plan(), []);
    world.now = 20 * 24 * HOUR + 6 * MINUTE;
    let steps = world.plan();
    let [Step::Bundle { first_seq, last_seq, end, pieces, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!((first_seq.get(), last_seq.get(), *end), (1, 99, Some(model::pos(297))));
    let [Piece::Snapshot(first), Piece::Bundle(rest)] = pieces.as_slice() else { panic!("{pieces:?}") };
    assert_eq!((first.seq.get(), first.entry.max_txid.get(), rest.len()), (1, 1, 296));
    world.execute(&steps[0]);
    assert_eq!(world.plan(), [], "the newest segment waits for a neighbour");
    world.now += 61 * MINUTE;
    let steps = world.plan();
    assert!(matches!(steps.as_slice(), [Step::Delete { segments, .. }] if segments.len() == 1), "{steps:?}");
}

#[test]
fn a_few_segments_are_not_worth_a_bundle() {
    let mut world = steady(8);
    world.now += HOUR;
    assert_eq!(world.plan(), []);
    let mut world = steady(9);
    world.now += HOUR;
    assert_eq!(world.plan().len(), 1);
}

#[test]
fn a_burst_is_bundled_at_once() {
    let mut world = steady(20);
    world.policy.bundle_entries_max = 30;
    let steps = world.plan();
    let [Step::Bundle { last_seq, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(last_seq.get(), 10, "ten segments of three");
}

#[test]
fn a_hole_in_the_log_asks_for_a_snapshot_and_is_not_bundled() {
    let mut world = steady(20);
    world.now += HOUR;
    let broken = world.segments.get_mut(&model::seq(5)).unwrap();
    broken.entries.clear();
    let steps = world.plan();
    let expected = Step::Snapshot { from: txid(60), reason: SnapshotReason::Unreachable };
    assert_eq!(steps, [expected]);
    world.execute(&steps[0]);
    assert_eq!(world.plan(), [], "bundling would make the log start where nothing leads to");
}

#[test]
fn segments_of_an_older_epoch_are_left_out_and_retired() {
    let mut world = steady(10);
    let commits = world.commits.clone();
    let at = model::seq(4);
    for number in (4..=10).rev() {
        let mut moved = world.segments.remove(&model::seq(number)).unwrap();
        moved.header.epoch = epoch(2);
        moved.header.seq = model::seq(number + 1);
        world.segments.insert(model::seq(number + 1), LogSegment::new(moved.header, moved.entries, moved.size));
    }
    world.segments.insert(at, commits.segment(4, 2, 10..10, 200));
    let mut void = commits.segment(6, 1, 10..12, 200);
    for number in (6..=11).rev() {
        let moved = world.segments.remove(&model::seq(number)).unwrap();
        let header = SegmentHeaderAt(moved.header, number + 1).moved();
        world.segments.insert(model::seq(number + 1), LogSegment::new(header, moved.entries, moved.size));
    }
    void.header.epoch = epoch(1);
    world.segments.insert(model::seq(6), void);
    world.next_seq = model::seq(13);
    world.now += HOUR;
    let steps = world.plan();
    let [Step::Bundle { last_seq, end, log_epoch, pieces, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!((last_seq.get(), log_epoch.get(), *end), (11, 2, Some(model::pos(27))));
    assert!(pieces.iter().flat_map(|p| p.entries()).all(|e| e.seq != model::seq(6)));
    world.execute(&steps[0]);
    world.check_kept("bundling");
}

/// A segment header under another sequence number.
struct SegmentHeaderAt(rhyolite_format::segment::SegmentHeader, u64);

impl SegmentHeaderAt {
    fn moved(self) -> rhyolite_format::segment::SegmentHeader {
        rhyolite_format::segment::SegmentHeader { seq: model::seq(self.1), ..self.0 }
    }
}

#[test]
#[should_panic(expected = "does not hold what was to be merged")]
fn a_merge_of_something_else_is_refused() {
    let mut world = steady(30);
    world.now += HOUR;
    world.settle();
    world.now += 48 * HOUR;
    let steps = world.plan();
    let merge = steps.iter().find(|s| matches!(s, Step::Merge { .. })).unwrap();
    let other = world.commits.file(FileKind::Merged, 2, 2, 7, 100);
    let update = Update { epoch: epoch(1), nonce: Nonce([9; 16]), now: Timestamp(world.now) };
    apply(&world.manifest, merge, vec![other], update);
}

/// Commits 1 to 3, at these times, with a snapshot at 1 and at 3.
fn two_snapshots(times: [i64; 3]) -> Manifest {
    let mut commits = Commits::default();
    for (i, time) in times.into_iter().enumerate() {
        commits.push(time, i == 0, &mut Random(1));
    }
    let mut manifest = model::manifest();
    for end in [1, 3] {
        let file = commits.file(FileKind::Snapshot, keys::SNAPSHOT_LEVEL, 1, end, 500);
        enter(&mut manifest, ManifestFile { max_time: Timestamp(times[end as usize - 1]), ..file }, Timestamp(0));
    }
    manifest
}

#[test]
fn a_young_snapshot_stays_whatever_an_older_clock_says_of_a_later_one() {
    let policy = Policy::default();
    let now = 100 * 24 * HOUR;
    let expires = |times| expired(&two_snapshots(times), &policy, Timestamp(now)).len();
    assert_eq!(expires([HOUR, HOUR, 2 * HOUR]), 1, "the older of two old ones goes");
    assert_eq!(expires([now - HOUR, HOUR, 2 * HOUR]), 0, "the clock was put back after the first");
}

#[test]
fn a_file_of_the_same_transactions_replaces_that_of_an_earlier_epoch() {
    let mut manifest = two_snapshots([1, 2, 3]);
    let old = manifest.files[1].clone();
    let new =
        ManifestFile { key: keys::ltx(keys::SNAPSHOT_LEVEL, old.min_txid, old.max_txid, epoch(2)), ..old.clone() };
    enter(&mut manifest, new.clone(), Timestamp(7));
    assert_eq!(manifest.files[1..], [new]);
    assert_eq!(manifest.retired_files, [RetiredFile { key: old.key, since: Timestamp(7) }]);
    assert_eq!(manifest.validate(), Ok(()));
}
