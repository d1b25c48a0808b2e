//! Twelve kinds of damage to a store in a real folder, each found and named, and beside each something healthy that looks like it
//! and raises no alarm.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rhyolite_format::lease::{DurablePos, LeaseRecord, LeaseState};
use rhyolite_format::manifest::{FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::{Segment, SegmentHeader, encode_index};
use rhyolite_format::{Epoch, Format1, Lineage, Nonce, Pos, Seq, Timestamp, keys};
use rhyolite_logic::Target;
use rhyolite_logic::history_plan::Duty;
use rhyolite_node::history::{HistoryOptions, maintain};
use rhyolite_node::progress::Silent;
use rhyolite_node::restore::RestoreError;
use rhyolite_node::verify::{Damage, Depth, VerifyOptions, verify};
use rhyolite_store::{Directory, Store};

use crate::history::policy;
use crate::history_builder::{History, START, TICK};
use crate::restore::{Outputs, write_some};

/// The epoch under which a sample is written: there is one before it.
fn epoch() -> Epoch {
    Epoch::FIRST.next()
}

/// A store with a snapshot, merged files, a bundle, retired segments that are still there, and four live segments.
struct Sample {
    folder: tempfile::TempDir,
    history: History,
    /// Time of the last commit.
    end: i64,
}

impl Sample {
    async fn new() -> Self {
        Self::of(Lineage(*b"a test's history")).await
    }

    async fn of(lineage: Lineage) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Directory::new(folder.path()));
        let mut history = History::of(store, 512, lineage).await;
        history.epoch = epoch();
        // The first states of two databases differ too.
        history.run(&format!("PRAGMA user_version = {}", lineage.0[1]));
        write_some(&mut history).await;
        history.manifest(Vec::new(), Seq::FIRST, None).await;
        let mut sample = Self { folder, history, end: 0 };
        sample.end = sample.last_time();
        for age in [6_000, 45_000, 100_000, 110_000] {
            sample.maintain(age).await;
        }
        sample.write(3).await;
        sample.maintain(8_000).await;
        sample.write(4).await;
        let kinds: Vec<FileKind> = sample.manifest().files.iter().map(|file| file.kind).collect();
        assert!([FileKind::Bundle, FileKind::Merged, FileKind::Snapshot].iter().all(|kind| kinds.contains(kind)));
        assert_eq!(sample.manifest().retired_segments.len(), 1);
        sample
    }

    fn last_time(&self) -> i64 {
        START + TICK * self.history.last().get() as i64
    }

    /// Adds segments of two commits each.
    async fn write(&mut self, segments: usize) {
        for _ in 0..segments {
            for _ in 0..2 {
                self.history.run("INSERT INTO t (v) VALUES (randomblob(400))");
            }
            self.history.upload().await;
        }
        self.end = self.last_time();
    }

    /// Lets the history be looked after when the last commit has this age.
    async fn maintain(&self, age: i64) {
        let options = HistoryOptions {
            store: Arc::clone(&self.history.store),
            policy: policy(),
            duty: Duty::All,
            epoch: epoch(),
            now: Timestamp(self.end + age),
            segments: None,
        };
        maintain(options).await.unwrap();
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    fn get(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.path(key)).unwrap()
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.path(key).parent().unwrap()).unwrap();
        std::fs::write(self.path(key), bytes).unwrap();
    }

    fn remove(&self, key: &str) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    fn manifest(&self) -> Manifest {
        Manifest::decode(&self.get(keys::MANIFEST)).unwrap()
    }

    /// The first file of a kind in the manifest.
    fn file(&self, kind: FileKind) -> ManifestFile {
        self.manifest().files.into_iter().find(|file| file.kind == kind).unwrap()
    }

    /// Key of the `n`th live segment, from 0.
    fn live(&self, n: u64) -> String {
        keys::segment(Seq::new(self.manifest().first_seq.get() + n).unwrap())
    }

    fn last_live(&self) -> String {
        keys::segment(self.history.seq.previous().unwrap())
    }

    fn retired(&self) -> String {
        keys::segment(self.manifest().retired_segments[0].first_seq)
    }

    /// One object of each kind that counts.
    fn objects(&self) -> Vec<String> {
        let kinds = [FileKind::Bundle, FileKind::Merged, FileKind::Snapshot];
        kinds.map(|kind| self.file(kind).key).into_iter().chain([self.live(1)]).collect()
    }

    /// Writes the lease of a daemon that had this position durable.
    fn put_lease(&self, epoch: Epoch, durable: Option<Pos>) {
        let lineage = self.history.lineage;
        let lease = LeaseRecord {
            format: Format1,
            epoch,
            state: LeaseState::Held,
            quiet: false,
            successor: None,
            holder: "a daemon".to_owned(),
            address: None,
            process: None,
            nonce: Nonce([7; 16]),
            ttl_ms: 10_000,
            renewed: Timestamp(self.end),
            durable: durable.map(|pos| DurablePos { lineage, pos }),
            witnesses: None,
        };
        self.put(keys::LEASE, &lease.encode());
    }

    async fn damage(&self, depth: Depth) -> Vec<Damage> {
        let store = Arc::clone(&self.history.store);
        verify(VerifyOptions { store, depth, threads: 2, progress: Arc::new(Silent) }).await.unwrap().damage
    }

    #[track_caller]
    fn check_sound(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move { assert_eq!(self.damage(Depth::EveryPoint).await, [], "{caller}") }
    }

    #[track_caller]
    fn check_found(&self, key: &str, detail: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let damage = self.damage(Depth::Newest).await;
            let is_named = damage.iter().any(|one| one.key == key && one.detail.contains(detail));
            assert!(is_named, "{caller}: {key}, {detail}: {damage:?}");
        }
    }

    /// Damages one object, looks that it is found, and mends it again.
    #[track_caller]
    fn check_damaged(&self, key: &str, bytes: Option<Vec<u8>>, detail: &str) -> impl Future<Output = ()> {
        let found = self.check_found(key, detail);
        async move {
            let good = self.get(key);
            match bytes {
                Some(bytes) => self.put(key, &bytes),
                None => self.remove(key),
            }
            found.await;
            self.put(key, &good);
        }
    }
}

/// A segment with another header around the same transactions.
fn reheaded(bytes: &[u8], change: impl FnOnce(&mut SegmentHeader)) -> Vec<u8> {
    let Segment { mut header, entries } = Segment::decode(bytes).unwrap();
    change(&mut header);
    let mut out = header.encode().to_vec();
    let end = entries.last().map_or(out.len(), |entry| entry.range().end as usize);
    out.extend_from_slice(&bytes[out.len()..end]);
    encode_index(&entries, &header, end as u64, &mut out);
    out
}

fn flipped(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] ^= 0x10;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn missing() {
    let sample = Sample::new().await;
    sample.check_sound().await;
    for key in sample.objects() {
        sample.check_damaged(&key, None, "missing").await;
    }
    sample.check_damaged(keys::ID, None, "missing").await;
    sample.check_damaged(keys::MANIFEST, None, "missing").await;
    // The last segment is missed only by who knows that it was there.
    let last = sample.history.states[&sample.history.last()].pos;
    sample.put_lease(epoch(), Some(last));
    sample.check_sound().await;
    sample.remove(&sample.last_live());
    sample.check_found(keys::LEASE, "was durable, but the last is").await;
    // Healthy: what was retired is gone before the manifest says so, and the lease is behind.
    let sample = Sample::new().await;
    sample.remove(&sample.retired());
    sample.put_lease(epoch(), Some(sample.history.states[&sample.file(FileKind::Bundle).max_txid].pos));
    sample.check_sound().await;
}

/// Damage to the log takes nothing from who asks for an earlier state, by TXID or by time; and who asks for a later one is told how far it
/// goes.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_before_a_hole_is_restored() {
    let sample = Sample::new().await;
    let outputs = Outputs::new();
    let states = &sample.history.states;
    let first_live = Segment::decode(&sample.get(&sample.live(0))).unwrap();
    let known = first_live.entries.last().unwrap().max_txid;
    let mut kept = Vec::new();
    for (txid, state) in states.range(..=known) {
        if outputs.restore(&sample.history.store, Target::Txid(*txid)).await.is_ok() {
            kept.push((*txid, state));
        }
    }
    assert!(kept.len() > 10, "{}", kept.len());
    for bytes in [None, Some(b"what is no segment".to_vec())] {
        let hole = sample.live(1);
        match bytes {
            Some(bytes) => sample.put(&hole, &bytes),
            None => sample.remove(&hole),
        }
        for (txid, state) in &kept {
            let before = outputs.restore(&sample.history.store, Target::Txid(*txid)).await.unwrap();
            assert!(before.1 == state.image, "{txid}");
            if *txid < known {
                let at = outputs.restore(&sample.history.store, Target::Time(state.time)).await.unwrap();
                assert!(at.1 == state.image, "{txid}");
            }
        }
        // The hole may hold a commit of the same time.
        let end = Timestamp(sample.end);
        let behind = [Target::Time(states[&known].time), Target::TimeNearest(end), Target::Time(end), Target::Latest];
        for target in behind.into_iter().chain([Target::Txid(known.next()), Target::Txid(sample.history.last())]) {
            let error = outputs.restore(&sample.history.store, target).await.unwrap_err();
            let RestoreError::Hole { damage, last } = &error else { panic!("{target:?}: {error}") };
            assert!(damage.to_string().contains(&hole), "{damage}");
            assert_eq!(*last, Some((known, states[&known].time)), "{target:?}");
        }
    }
}

/// What is damaged may be redundant: a restore finds the way around it, proves the result, and says what it left aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_led_around() {
    let mut sample = Sample::new().await;
    let newer = sample.history.snapshot(sample.history.last()).await;
    let mut manifest = sample.manifest();
    manifest.files.push(newer.clone());
    sample.put(keys::MANIFEST, &manifest.encode());
    let (outputs, store) = (Outputs::new(), &sample.history.store);
    let last = &sample.history.states[&sample.history.last()];
    let good = sample.get(&newer.key);
    let half = good[..good.len() / 2].to_vec();
    for bytes in [None, Some(half), Some(flipped(good.clone(), good.len() / 2)), Some(flipped(good.clone(), 3))] {
        match &bytes {
            Some(bytes) => sample.put(&newer.key, bytes),
            None => sample.remove(&newer.key),
        }
        let (report, image) = outputs.restore(store, Target::Latest).await.unwrap();
        assert!(image == last.image && report.pos == last.pos);
        assert_eq!(report.avoided, std::slice::from_ref(&newer.key));
        sample.check_found(&newer.key, "").await;
    }
    // With everything else gone too there is no way, and the first that was found is named.
    let kept: Vec<_> = sample.manifest().files.iter().map(|file| (file.key.clone(), sample.get(&file.key))).collect();
    kept.iter().filter(|(key, _)| *key != newer.key).for_each(|(key, _)| sample.remove(key));
    let error = outputs.restore(store, Target::Latest).await.unwrap_err();
    assert!(error.to_string().contains(&newer.key), "{error}");
    // Where nothing is damaged, nothing is avoided.
    kept.iter().for_each(|(key, bytes)| sample.put(key, bytes));
    sample.put(&newer.key, &good);
    assert!(outputs.restore(store, Target::Latest).await.unwrap().0.avoided.is_empty());
}

/// The daemon goes on with what it can do, keeps what may still be needed, and asks for a snapshot, which ends the damage for all that
/// comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_ended_by_a_snapshot() {
    let outputs = Outputs::new();
    let options = |sample: &Sample, age: i64| HistoryOptions {
        store: Arc::clone(&sample.history.store),
        policy: policy(),
        duty: Duty::All,
        epoch: epoch(),
        now: Timestamp(sample.end + age),
        segments: None,
    };
    // In a file of the manifest.
    let mut sample = Sample::new().await;
    sample.write(6).await;
    let mut manifest = sample.manifest();
    manifest.files.push(sample.history.snapshot(sample.history.last()).await);
    sample.put(keys::MANIFEST, &manifest.encode());
    let damaged = manifest.files.last().unwrap().clone();
    sample.put(&damaged.key, b"what is no file of ours");
    sample.write(6).await;
    let report = maintain(options(&sample, 200_000)).await.unwrap();
    assert!(report.damaged.as_ref().is_some_and(|text| text.contains(&damaged.key)), "{report:?}");
    assert!(report.snapshot_due.is_some() && report.bundled > 0, "the log is bundled all the same: {report:?}");
    assert_eq!(report.expired, 0, "what may lead around it is kept");
    let mut manifest = sample.manifest();
    manifest.files.push(sample.history.snapshot(sample.history.last()).await);
    sample.put(keys::MANIFEST, &manifest.encode());
    let report = maintain(options(&sample, 200_000)).await.unwrap();
    assert_eq!(report.snapshot_due, None, "{report:?}");
    // In the log.
    let mut sample = Sample::new().await;
    sample.remove(&sample.live(1));
    let report = maintain(options(&sample, 8_000)).await.unwrap();
    assert!(report.damaged.is_some() && report.snapshot_due.is_some(), "{report:?}");
    let refused = outputs.restore(&sample.history.store, Target::Latest).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Hole { .. }), "{refused}");
    let mut manifest = sample.manifest();
    manifest.files.push(sample.history.snapshot(sample.history.last()).await);
    sample.put(keys::MANIFEST, &manifest.encode());
    sample.write(2).await;
    let report = maintain(options(&sample, 8_000)).await.unwrap();
    assert!(report.damaged.is_some() && report.snapshot_due.is_none(), "{report:?}");
    for target in [Target::Latest, Target::Txid(sample.history.last())] {
        let (report, image) = outputs.restore(&sample.history.store, target).await.unwrap();
        assert_eq!(report.pos.txid, sample.history.last());
        assert!(image == sample.history.states[&sample.history.last()].image);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated() {
    let sample = Sample::new().await;
    for key in sample.objects() {
        let good = sample.get(&key);
        for len in [good.len() - 1, good.len() / 2, 81, 0] {
            sample.check_damaged(&key, Some(good[..len].to_vec()), "").await;
        }
    }
    let manifest = sample.get(keys::MANIFEST);
    sample.check_damaged(keys::MANIFEST, Some(manifest[..manifest.len() / 2].to_vec()), "damaged").await;
    // Healthy: half of a snapshot that nobody names, as a killed process leaves it.
    let half = sample.get(&sample.file(FileKind::Snapshot).key);
    let unnamed = keys::ltx(9, rhyolite_format::Txid::FIRST, sample.history.last(), epoch());
    sample.put(&unnamed, &half[..half.len() / 2]);
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits() {
    let sample = Sample::new().await;
    for key in sample.objects() {
        let good = sample.get(&key);
        for at in [0, 70, good.len() / 3, good.len() / 2, good.len() - 90, good.len() - 1] {
            sample.check_damaged(&key, Some(flipped(good.clone(), at)), "").await;
        }
    }
    // Healthy: rot in what was retired.
    let retired = sample.get(&sample.retired());
    sample.put(&sample.retired(), &flipped(retired, 100));
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped() {
    let sample = Sample::new().await;
    let merged: Vec<ManifestFile> =
        sample.manifest().files.into_iter().filter(|f| f.kind == FileKind::Merged).collect();
    let pairs = [(sample.live(0), sample.live(1)), (merged[0].key.clone(), merged[1].key.clone())];
    for (a, b) in pairs {
        let (of_a, of_b) = (sample.get(&a), sample.get(&b));
        sample.put(&a, &of_b);
        sample.put(&b, &of_a);
        sample.check_found(&a, "").await;
        sample.check_found(&b, "").await;
        sample.put(&a, &of_a);
        sample.put(&b, &of_b);
    }
    // Healthy: objects that came into being in another order than their numbers, as after a copy of the folder.
    for (age, n) in (0..4).enumerate() {
        let file = std::fs::File::options().write(true).open(sample.path(&sample.live(n))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age as u64 * 1000)).unwrap();
    }
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicated() {
    let mut sample = Sample::new().await;
    sample.check_damaged(&sample.live(2), Some(sample.get(&sample.live(1))), "does not fit").await;
    // The same transactions once more, under a number of their own.
    let again = reheaded(&sample.get(&sample.last_live()), |header| header.seq = sample.history.seq);
    let key = keys::segment(sample.history.seq);
    sample.put(&key, &again);
    sample.check_found(&key, "lies before it in the log already").await;
    sample.remove(&key);
    // Healthy: a second copy under a key that nobody names; a segment without transactions; the state again as a snapshot.
    let bundle = sample.file(FileKind::Bundle);
    let copy = keys::bundle(bundle.min_txid, bundle.max_txid, Epoch::FIRST);
    sample.put(&copy, &sample.get(&bundle.key));
    sample.history.upload().await;
    let image = sample.history.states[&sample.history.last()].image.clone();
    sample.history.log_snapshot(image, 512);
    sample.history.upload().await;
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale() {
    let mut sample = Sample::new().await;
    let old = sample.get(keys::MANIFEST);
    let first = sample.live(0);
    sample.maintain(8_000).await;
    assert_ne!(sample.live(0), first, "it was bundled");
    // Healthy: an older manifest is as good as the newer one while everything that it names is there.
    let new = sample.get(keys::MANIFEST);
    sample.put(keys::MANIFEST, &old);
    sample.check_sound().await;
    sample.put(keys::MANIFEST, &new);
    sample.write(1).await;
    sample.maintain(20_000).await;
    assert!(!sample.path(&first).exists(), "it was deleted");
    sample.check_sound().await;
    sample.put(keys::MANIFEST, &old);
    sample.check_found(&first, "missing").await;
    // Everything put back to what it was yesterday: only the lease can tell.
    let sample = Sample::new().await;
    sample.put_lease(
        epoch(),
        Some(Pos { txid: sample.history.last().next(), ..sample.history.states[&sample.history.last()].pos }),
    );
    sample.check_found(keys::LEASE, "was durable, but the last is").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_another_database() {
    let sample = Sample::new().await;
    let other = Sample::of(Lineage(*b"another's histor")).await;
    for key in sample.objects() {
        sample.check_damaged(&key, Some(other.get(&key)), "").await;
    }
    sample.check_damaged(keys::MANIFEST, Some(other.get(keys::MANIFEST)), "of history").await;
    let mine = sample.get(keys::ID);
    sample.put(keys::ID, &other.get(keys::ID));
    sample.check_found(keys::MANIFEST, "of history").await;
    sample.put(keys::ID, &mine);
    // A bundle that is sound, and fits by everything but its history.
    let bundle = sample.file(FileKind::Bundle);
    let mut forged = sample.manifest();
    let bytes = reheaded(&sample.get(&bundle.key), |header| header.lineage = other.history.lineage);
    let entry = forged.files.iter_mut().find(|file| file.key == bundle.key).unwrap();
    entry.crc64.0 = rhyolite_format::crc::crc64(&bytes);
    sample.put(&bundle.key, &bytes);
    sample.put(keys::MANIFEST, &forged.encode());
    sample.check_found(&bundle.key, "it says it is of history").await;
    // Healthy: another database below the same prefix.
    let sample = Sample::new().await;
    sample.put("other/manifest.json", &other.get(keys::MANIFEST));
    sample.put(&format!("other/{}", other.live(0)), &other.get(&other.live(0)));
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_wrong_epoch() {
    let sample = Sample::new().await;
    let later = epoch().next().next();
    sample.put_lease(epoch(), None);
    sample.check_sound().await;
    // Of an epoch that nobody ever had: it would make void what follows.
    let last = sample.last_live();
    let bytes = reheaded(&sample.get(&last), |header| header.epoch = later);
    sample.check_damaged(&last, Some(bytes), "it is of epoch").await;
    // Of an epoch that was over: it is void, and its transactions are missed.
    let earlier = reheaded(&sample.get(&sample.live(1)), |header| header.epoch = Epoch::FIRST);
    sample.put(&sample.live(1), &earlier);
    sample.check_found(&sample.live(2), "cannot be restored").await;
    // The whole log made void by the manifest.
    let sample = Sample::new().await;
    let mut manifest = sample.manifest();
    manifest.log_epoch = later;
    sample.put(keys::MANIFEST, &manifest.encode());
    sample.check_found(keys::MANIFEST, "its log is of epoch").await;
    // Healthy: a new writer's fence, and what the old one still got in after it.
    let mut sample = Sample::new().await;
    sample.history.epoch = epoch().next();
    let fence = sample.history.upload().await;
    sample.put_lease(epoch().next(), None);
    let void = reheaded(&sample.get(&sample.live(3)), |header| header.seq = fence.next());
    sample.put(&keys::segment(fence.next()), &void);
    sample.history.seq = fence.next().next();
    sample.write(2).await;
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_skew() {
    let mut sample = Sample::new().await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    // Healthy: a clock that was set back by an hour, and one that is ahead by a minute.
    sample.history.shift = -3_600_000;
    sample.write(2).await;
    sample.history.shift = now - sample.last_time() + 60_000;
    sample.write(1).await;
    sample.check_sound().await;
    sample.history.shift += 3_600_000;
    sample.write(1).await;
    sample.check_found(&sample.last_live(), "clock skew").await;
    // What was retired in the future would never be deleted.
    let sample = Sample::new().await;
    let mut manifest = sample.manifest();
    manifest.retired_segments[0].since = Timestamp(now + 3_600_000);
    sample.put(keys::MANIFEST, &manifest.encode());
    sample.check_found(keys::MANIFEST, "clock skew").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_snapshot() {
    let mut sample = Sample::new().await;
    let snapshot = sample.file(FileKind::Snapshot).key;
    sample.check_damaged(&snapshot, None, "missing").await;
    // Deleted as it should be, but for the only one that others build on.
    let mut manifest = sample.manifest();
    manifest.files.retain(|file| file.kind != FileKind::Snapshot);
    let without = serde_json::to_vec(&manifest).unwrap();
    sample.check_damaged(keys::MANIFEST, Some(without), "no snapshot").await;
    // Healthy: a newer snapshot, and the older one retired and gone.
    sample.write(1).await;
    let newer = sample.history.snapshot(sample.history.last()).await;
    let mut manifest = sample.manifest();
    manifest.files.push(newer);
    sample.put(keys::MANIFEST, &manifest.encode());
    sample.check_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_done_merge() {
    let sample = Sample::new().await;
    let before = sample.manifest();
    let inputs: Vec<(String, Vec<u8>)> = before.files.iter().map(|f| (f.key.clone(), sample.get(&f.key))).collect();
    let old = sample.get(keys::MANIFEST);
    sample.maintain(200_000).await;
    let after = sample.manifest();
    let made = after.files.iter().find(|f| f.kind == FileKind::Merged && !before.files.contains(f)).unwrap().clone();
    let whole = sample.get(&made.key);
    for (key, bytes) in &inputs {
        sample.put(key, bytes);
    }
    // Healthy: made but not named; then named while its inputs are still there.
    sample.check_sound().await;
    let new = sample.get(keys::MANIFEST);
    for retired in before.retired_segments.iter().flat_map(|r| r.first_seq.get()..=r.last_seq.get()) {
        assert!(retired < after.first_seq.get());
    }
    sample.put(keys::MANIFEST, &old);
    let live_again = sample.manifest().first_seq;
    if sample.path(&keys::segment(live_again)).exists() {
        sample.check_sound().await;
    }
    // Named, but only half of it is there, or none.
    sample.put(keys::MANIFEST, &new);
    sample.check_damaged(&made.key, Some(whole[..whole.len() / 2].to_vec()), "").await;
    sample.check_damaged(&made.key, None, "missing").await;
    // Its inputs deleted before it was named.
    sample.put(keys::MANIFEST, &old);
    let input = before.files.iter().find(|f| f.kind == FileKind::Bundle).unwrap();
    sample.check_damaged(&input.key, None, "missing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_format() {
    let sample = Sample::new().await;
    for key in [sample.live(1), sample.file(FileKind::Bundle).key] {
        let mut bytes = sample.get(&key);
        bytes[4] = 0;
        let crc = rhyolite_format::crc::crc64(&bytes[..72]);
        bytes[72..80].copy_from_slice(&crc.to_be_bytes());
        sample.check_damaged(&key, Some(bytes), "version").await;
    }
    for key in [keys::ID, keys::MANIFEST] {
        let text = String::from_utf8(sample.get(key)).unwrap();
        let old = text.replacen("\"format\": 1", "\"format\": 0", 1).replacen("\"format\":1", "\"format\":0", 1);
        assert_ne!(old, text);
        sample.check_damaged(key, Some(old.into_bytes()), "format").await;
    }
    // Healthy: what other programs have left beside it.
    sample.put("generations/0123456789abcdef/snapshots/00000000.snapshot.lz4", b"old");
    sample.put("ltx/0/0000000000000001-0000000000000001.ltx", b"old");
    sample.put("log/readme.txt", b"not ours");
    sample.check_sound().await;
}
