//! Capture and upload in this process, with real SQLite as the application, against a slow and plain oracle: the log is read
//! back transaction by transaction with nothing but the LTX decoder, every checksum on the way is compared, and the last state
//! must be the database file, byte for byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::ltx::{Decoder, LtxHeader};
use rhyolite_format::manifest::{FileKind, Manifest};
use rhyolite_format::segment::Segment;
use rhyolite_format::{Checksum, PageNumber, Pos, Seq, keys};
use rhyolite_logic::Target;
use rhyolite_logic::park::Policy;
use rhyolite_node::config::DatabaseConfig;
use rhyolite_node::replicate::ReplicateError;
use rhyolite_node::status::{Figures, State, StatusBoard};
use rhyolite_node::supervise::{self, SuperviseOptions};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::restore::Outputs;

/// A database, a store beside it, and perhaps a running replication.
pub(crate) struct Rig {
    folder: TempDir,
    running: Option<Running>,
    pub(crate) parking: Policy,
}

struct Running {
    stop: watch::Sender<bool>,
    board: Arc<StatusBoard>,
    thread: std::thread::JoinHandle<Vec<ReplicateError>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), running: None, parking: Policy::default() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    pub(crate) fn open(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    pub(crate) fn open_wal(&self, page_size: u32) -> Connection {
        let connection = self.open();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "synchronous", "normal").unwrap();
        connection
    }

    pub(crate) fn start(&mut self) {
        self.start_with(|_| {});
    }

    pub(crate) fn start_with(&mut self, change: impl FnOnce(&mut DatabaseConfig)) {
        let mut config = DatabaseConfig::new(self.path(), self.store().to_str().unwrap().to_owned());
        config.sync_interval = Duration::ZERO;
        change(&mut config);
        let board = StatusBoard::new();
        let (stop, stopped) = watch::channel(false);
        let options = SuperviseOptions {
            databases: vec![config],
            folders: Vec::new(),
            stop_timeout: Duration::from_secs(20),
            parking: self.parking,
            commits: None,
            serves: false,
            lease: None,
        };
        let shown = Arc::clone(&board);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(supervise::run(options, shown, stopped, None))
        });
        self.running = Some(Running { stop, board, thread });
    }

    pub(crate) fn figures(&self) -> Figures {
        let databases = self.running.as_ref().unwrap().board.databases();
        databases.first().map(|d| d.figures()).unwrap_or_default()
    }

    /// What was asked of the store so far.
    pub(crate) fn requests(&self) -> u64 {
        let databases = self.running.as_ref().unwrap().board.databases();
        databases.iter().map(|d| d.requests.snapshot().total()).sum()
    }

    /// Waits until every commit so far is in the store.
    pub(crate) fn wait_durable(&self) -> Figures {
        let began = Instant::now();
        loop {
            let figures = self.figures();
            let quiet =
                figures.local.is_some() && figures.local == figures.durable && figures.state == State::Replicating;
            if quiet && figures.local.map(|p| p.checksum) == Some(self.committed_checksum()) {
                return figures;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "not durable: {figures:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checksum of what a reader sees now.
    fn committed_checksum(&self) -> Checksum {
        checksum_of(&committed_pages(&self.path()))
    }

    pub(crate) fn stop(&mut self) -> Vec<ReplicateError> {
        let Running { stop, thread, .. } = self.running.take().unwrap();
        stop.send(true).unwrap();
        thread.join().unwrap()
    }

    /// Stops, reads the log back, and compares its end with the database.
    pub(crate) fn check(&mut self) -> History {
        let errors = self.stop();
        assert!(errors.is_empty(), "{errors:?}");
        let history = read_history(&self.store());
        let expected = committed_pages(&self.path());
        assert_eq!(history.pages.len(), expected.len(), "size of the database");
        for (index, (found, expected)) in history.pages.iter().zip(&expected).enumerate() {
            assert!(found == expected, "page {} differs", index + 1);
        }
        history
    }
}

/// The pages that a reader sees, read through SQLite: a copy by the backup interface is equal byte for byte.
pub(crate) fn committed_pages(path: &Path) -> Vec<Vec<u8>> {
    let path = &path.canonicalize().unwrap();
    let source = Connection::open(path).unwrap();
    source.busy_timeout(Duration::from_secs(10)).unwrap();
    let page_size: u32 = source.query_row("PRAGMA page_size", [], |r| r.get(0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    let wal = std::path::PathBuf::from(format!("{}-wal", path.display()));
    // Raw files under a read transaction that sees all of the WAL: copied, then recovered by SQLite.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").unwrap();
    copy_file(path, &copy);
    if wal.exists() {
        copy_file(&wal, &folder.path().join("copy.db-wal"));
    }
    source.execute_batch("ROLLBACK").unwrap();
    let recovered = Connection::open(&copy).unwrap();
    let _: i64 = recovered.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
    recovered.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(recovered);
    std::fs::read(&copy).unwrap().chunks(page_size as usize).map(<[u8]>::to_vec).collect()
}

/// Copies by another process: opening and closing the database in this one would drop every lock that it holds.
fn copy_file(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

fn checksum_of(pages: &[Vec<u8>]) -> Checksum {
    (1..)
        .zip(pages)
        .fold(Checksum::EMPTY, |sum, (pgno, data)| sum.toggle(Checksum::of_page(PageNumber::new(pgno).unwrap(), data)))
}

/// A log, read back.
pub(crate) struct History {
    pub(crate) pages: Vec<Vec<u8>>,
    /// Position after every transaction, snapshots included.
    pub(crate) positions: Vec<Pos>,
    pub(crate) snapshots: usize,
    /// Number of pages in every transaction.
    pub(crate) sizes: Vec<usize>,
}

fn read_history(store: &Path) -> History {
    let manifest = Manifest::decode(&std::fs::read(store.join(keys::MANIFEST)).unwrap()).unwrap();
    let mut history = History { pages: Vec::new(), positions: Vec::new(), snapshots: 0, sizes: Vec::new() };
    let mut snapshots: Vec<_> = manifest.files.iter().filter(|f| f.kind == FileKind::Snapshot).collect();
    snapshots.sort_by_key(|f| f.max_txid);
    let mut snapshots = snapshots.into_iter().peekable();
    let mut seq = manifest.first_seq;
    loop {
        let bytes = std::fs::read(store.join(keys::segment(seq)));
        let next = bytes.as_ref().ok().map(|b| Segment::decode(b).unwrap());
        if next.as_ref().is_some_and(|s| s.entries.is_empty()) {
            // The fence of an epoch.
            seq = Seq::next(seq);
            continue;
        }
        let next_txid = next.as_ref().map(|s| s.entries[0].min_txid);
        while let Some(file) = snapshots.next_if(|f| next_txid.is_none_or(|t| f.max_txid < t)) {
            apply(&mut history, &std::fs::read(store.join(&file.key)).unwrap());
            history.snapshots += 1;
        }
        let (Ok(bytes), Some(segment)) = (bytes, next) else { return history };
        for entry in &segment.entries {
            let range = entry.range();
            apply(&mut history, &bytes[range.start as usize..range.end as usize]);
            assert_eq!(history.positions.last(), Some(&entry.end()));
        }
        seq = Seq::next(seq);
    }
}

fn apply(history: &mut History, mut ltx: &[u8]) {
    let mut decoder = Decoder::new(&mut ltx).unwrap();
    let header: LtxHeader = *decoder.header();
    let mut data = vec![0; header.page_size.bytes()];
    if header.is_snapshot() {
        history.pages.clear();
    } else {
        let before = history.positions.last().expect("the first is a snapshot");
        assert_eq!(header.pre_apply, Some(before.checksum), "{}", header.min_txid);
        assert_eq!((header.min_txid, header.max_txid), (before.txid.next(), before.txid.next()));
    }
    let mut size = 0;
    while let Some(pgno) = decoder.next_page(&mut data).unwrap() {
        if pgno.index() >= history.pages.len() {
            history.pages.resize(pgno.index() + 1, vec![0; data.len()]);
        }
        history.pages[pgno.index()].clone_from(&data);
        size += 1;
    }
    history.pages.resize(header.commit.get() as usize, vec![0; data.len()]);
    let (trailer, _) = decoder.finish().unwrap();
    assert_eq!(trailer.post_apply, Some(checksum_of(&history.pages)), "{}", header.max_txid);
    history.positions.push(Pos { txid: header.max_txid, checksum: checksum_of(&history.pages) });
    history.sizes.push(size);
}

fn insert(connection: &Connection, rows: std::ops::Range<i64>) {
    for i in rows {
        connection.execute("INSERT INTO t VALUES (?1, hex(randomblob(60)))", [i]).unwrap();
    }
}

#[test]
fn every_commit_is_one_transaction() {
    for page_size in [512, 1024, 4096, 65536] {
        let mut rig = Rig::new();
        let app = rig.open_wal(page_size);
        app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
        rig.start();
        rig.wait_durable();
        insert(&app, 0..500);
        rig.wait_durable();
        insert(&app, 500..1000);
        let history = rig.check();
        assert_eq!((history.positions.len(), history.snapshots), (1 + 1000, 1), "page size {page_size}");
    }
}

#[test]
fn the_wal_is_reset_again_and_again_and_nothing_is_missed() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.checkpoint.pages_min = 50);
    rig.wait_durable();
    insert(&app, 0..5000);
    let figures = rig.wait_durable();
    assert!(figures.checkpoints.complete > 0, "{:?}", figures.checkpoints);
    let history = rig.check();
    assert_eq!(history.positions.len(), 1 + 5000);
}

#[test]
fn a_stop_and_a_start_go_on_without_a_page_diff() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 0..10);
    rig.wait_durable();
    assert!(rig.stop().is_empty());
    insert(&app, 10..20);
    rig.start();
    let figures = rig.wait_durable();
    assert_eq!(serde_json::to_value(&figures.page_diffs).unwrap()["wal-reset"], 0);
    let history = rig.check();
    assert_eq!(history.positions.len(), 1 + 20, "commits while it was down are captured one by one from the WAL");
}

#[test]
fn what_was_missed_while_down_becomes_one_transaction_of_the_changed_pages() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    insert(&app, 0..3000);
    rig.start();
    rig.wait_durable();
    assert!(rig.stop().is_empty());
    insert(&app, 3000..3010);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    insert(&app, 3010..3011);
    rig.start();
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.positions.len(), 2);
    assert!(history.sizes[1] < 10, "only changed pages: {:?}", history.sizes);
}

#[test]
fn growth_shrink_vacuum_and_big_transactions() {
    let mut rig = Rig::new();
    let app = rig.open_wal(1024);
    app.execute_batch("PRAGMA auto_vacuum = incremental; VACUUM; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    app.execute_batch("PRAGMA cache_size = 10").unwrap();
    for round in 0..4 {
        let sql = format!(
            "BEGIN; INSERT INTO t SELECT value + {round} * 100000, randomblob(700) FROM generate_series_stub; COMMIT"
        );
        let numbers = "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 2000) SELECT value FROM n";
        app.execute_batch(&sql.replace("generate_series_stub", &format!("({numbers})"))).unwrap();
        app.execute_batch("DELETE FROM t WHERE a % 3 = 1; PRAGMA incremental_vacuum(50)").unwrap();
        app.execute_batch("CREATE TABLE IF NOT EXISTS u (x); INSERT INTO u VALUES (zeroblob(300000)); DELETE FROM u")
            .unwrap();
        rig.wait_durable();
        app.execute_batch("VACUUM").unwrap();
        rig.wait_durable();
    }
    rig.check();
}

#[test]
fn a_database_in_rollback_mode_is_captured_by_page_diff() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 0..20);
    rig.wait_durable();
    app.execute_batch("PRAGMA journal_mode = wal").unwrap();
    insert(&app, 20..40);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.snapshots, 1);
}

#[test]
fn a_new_page_size_starts_with_a_new_snapshot() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    insert(&app, 0..20);
    rig.start();
    rig.wait_durable();
    app.execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap();
    rig.wait_durable();
    insert(&app, 20..40);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.snapshots, 2);
    assert!(history.positions.len() >= 3);
}

#[test]
fn another_file_at_the_path_is_compared_with_the_old_one() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    insert(&app, 0..100);
    rig.start_with(|c| c.monitor_interval = Duration::from_millis(50));
    rig.wait_durable();
    drop(app);
    let other = rig.folder.path().join("other.db");
    let app = Connection::open(&other).unwrap();
    app.execute_batch(
        "PRAGMA journal_mode = wal; CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 2)",
    )
    .unwrap();
    drop(app);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", rig.path().display()));
    }
    std::fs::rename(&other, rig.path()).unwrap();
    rig.wait_durable();
    let app = rig.open();
    app.execute_batch("INSERT INTO t VALUES (3, 4)").unwrap();
    rig.wait_durable();
    rig.check();
}

#[test]
fn a_lost_state_folder_costs_a_comparison_and_no_upload() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 0..50);
    rig.wait_durable();
    assert!(rig.stop().is_empty());
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 50..60);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!((history.positions.len(), history.snapshots), (1 + 50 + 10, 1));
}

#[test]
fn another_history_in_the_store_is_refused() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    rig.stop();
    std::fs::rename(rig.store(), rig.folder.path().join("first")).unwrap();
    std::fs::rename(rig.folder.path().join(".app.db-rhyolite"), rig.folder.path().join("kept")).unwrap();
    rig.start();
    rig.wait_durable();
    rig.stop();
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    std::fs::rename(rig.folder.path().join("kept"), rig.folder.path().join(".app.db-rhyolite")).unwrap();
    rig.start();
    let errors = std::mem::take(&mut rig.running).unwrap().thread.join().unwrap();
    assert!(matches!(&errors[..], [ReplicateError::WrongLineage(_)]), "{errors:?}");
}

#[test]
fn what_is_no_database_is_refused_and_nothing_is_touched() {
    let mut rig = Rig::new();
    std::fs::write(rig.path(), "this is a text, and a long enough one to be looked at as a database header").unwrap();
    rig.start();
    let errors = std::mem::take(&mut rig.running).unwrap().thread.join().unwrap();
    assert!(matches!(&errors[..], [ReplicateError::NotADatabase(_)]), "{errors:?}");
    let names: Vec<_> = std::fs::read_dir(rig.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["app.db"]);
}

#[test]
fn a_lost_state_folder_and_a_changed_database_cost_an_upload_of_the_changed_pages() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    insert(&app, 0..3000);
    rig.start();
    rig.wait_durable();
    insert(&app, 3000..3050);
    rig.wait_durable();
    assert!(rig.stop().is_empty());
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    insert(&app, 3050..3060);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    rig.start();
    rig.wait_durable();
    let history = rig.check();
    assert_eq!((history.positions.len(), history.snapshots), (1 + 50 + 1, 1));
    assert!(history.sizes[51] < 10, "only changed pages: {:?}", history.sizes);
}

#[test]
fn a_snapshot_that_no_manifest_names_is_written_again() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    rig.stop();
    // Killed after the snapshot and before the manifest.
    std::fs::remove_file(rig.store().join(keys::MANIFEST)).unwrap();
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    insert(&app, 0..10);
    rig.start();
    rig.wait_durable();
    rig.check();
}

#[test]
fn a_state_folder_that_vanishes_under_it_is_made_anew_from_the_store() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.monitor_interval = Duration::from_millis(50));
    rig.wait_durable();
    insert(&app, 0..10);
    rig.wait_durable();
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    insert(&app, 10..20);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.snapshots, 1);
}

#[test]
fn a_store_that_was_put_back_goes_on_from_what_it_holds() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 0..5);
    rig.wait_durable();
    rig.stop();
    let copy = rig.folder.path().join("older");
    assert!(std::process::Command::new("cp").arg("-r").arg(rig.store()).arg(&copy).status().unwrap().success());
    rig.start();
    rig.wait_durable();
    insert(&app, 5..10);
    rig.wait_durable();
    rig.stop();
    std::fs::remove_dir_all(rig.store()).unwrap();
    std::fs::rename(&copy, rig.store()).unwrap();
    rig.start();
    rig.wait_durable();
    insert(&app, 10..15);
    rig.wait_durable();
    rig.check();
}

/// Puts a file where the store keeps a folder: nothing can be created there until it goes.
struct Block(PathBuf);

impl Block {
    fn new(store: &Path, folder: &str) -> Self {
        std::fs::create_dir_all(store).unwrap();
        let path = store.join(folder);
        if path.exists() {
            std::fs::rename(&path, path.with_extension("away")).unwrap();
        }
        std::fs::write(&path, "").unwrap();
        Self(path)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
        let away = self.0.with_extension("away");
        if away.exists() {
            std::fs::rename(away, &self.0).unwrap();
        }
    }
}

/// Commits `count` large rows and gives the slowest commit.
fn slowest_commit(app: &Connection, count: i64) -> Duration {
    let commit = |_| {
        let began = Instant::now();
        app.execute("INSERT INTO t (b) VALUES (randomblob(50000))", []).unwrap();
        began.elapsed()
    };
    (0..count).map(commit).max().unwrap()
}

#[test]
fn a_store_that_takes_no_snapshot_does_not_make_the_wal_grow() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    let block = Block::new(&rig.store(), "ltx");
    rig.start();
    while rig.figures().last_error.is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    slowest_commit(&app, 800);
    let wal = std::fs::metadata(format!("{}-wal", rig.path().display())).unwrap().len();
    assert!(wal < 12 << 20, "40 MB were written, and {wal} bytes of WAL are kept");
    drop(block);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.snapshots, 1);
}

#[test]
fn a_store_that_fails_does_not_hold_up_an_application_in_rollback_mode() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    let block = Block::new(&rig.store(), "ltx");
    rig.start();
    while rig.figures().last_error.is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let slowest = slowest_commit(&app, 50);
    assert!(slowest < Duration::from_secs(2), "while there is no snapshot: {slowest:?}");
    drop(block);
    rig.wait_durable();
    let block = Block::new(&rig.store(), "log");
    let slowest = slowest_commit(&app, 50);
    assert!(slowest < Duration::from_secs(2), "while nothing can be uploaded: {slowest:?}");
    // A new page size asks for a snapshot, which waits for the log before it.
    app.execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap();
    let slowest = slowest_commit(&app, 50);
    assert!(slowest < Duration::from_secs(2), "while a snapshot waits: {slowest:?}");
    drop(block);
    rig.wait_durable();
    let history = rig.check();
    assert_eq!(history.snapshots, 2);
}

#[test]
fn a_large_database_in_rollback_mode_is_captured_beside_a_busy_writer() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch(
        "PRAGMA journal_mode = truncate; PRAGMA synchronous = off; CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
    )
    .unwrap();
    app.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) INSERT INTO t SELECT i, randomblob(50000) FROM n",
    )
    .unwrap();
    rig.start();
    let began = Instant::now();
    let mut first = None;
    loop {
        app.execute("UPDATE t SET b = randomblob(50000) WHERE a = 1 + abs(random() % 4000)", []).unwrap();
        let txid = rig.figures().local.map(|p| p.txid);
        first = first.or(txid);
        if txid > first {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "200 MB are not captured while somebody writes: {first:?}");
    }
    rig.wait_durable();
    rig.check();
}

#[test]
fn a_rollback_that_leaves_other_bytes_in_free_pages_is_noticed() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch(
        "PRAGMA journal_mode = delete; PRAGMA cache_size = 10; CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
    )
    .unwrap();
    slowest_commit(&app, 40);
    app.execute_batch("DELETE FROM t").unwrap();
    rig.start();
    rig.wait_durable();
    // The journal does not hold free pages: what is spilled into them stays after the rollback.
    app.execute_batch("BEGIN").unwrap();
    slowest_commit(&app, 30);
    app.execute_batch("ROLLBACK").unwrap();
    rig.wait_durable();
    let history = rig.check();
    assert!(history.positions.len() >= 2, "there was something to notice");
}

#[test]
fn a_history_that_cannot_be_restored_gets_a_new_snapshot() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.history.bundle_interval = Duration::from_secs(1));
    rig.wait_durable();
    app.execute_batch("PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = wal").unwrap();
    insert(&app, 0..5);
    rig.wait_durable();
    let path = rig.store().join(keys::MANIFEST);
    let manifest = || Manifest::decode(&std::fs::read(&path).unwrap()).unwrap();
    let mut broken = manifest();
    broken.files.retain(|f| f.page_size.get() != 8192);
    assert_eq!(broken.files.len(), 1, "the snapshot on which the log goes on is gone");
    std::fs::write(&path, broken.encode()).unwrap();
    let began = Instant::now();
    while manifest().files.len() == 1 {
        insert(&app, 10..11);
        app.execute_batch("DELETE FROM t WHERE a = 10").unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", rig.figures().last_error);
        std::thread::sleep(Duration::from_millis(100));
    }
    insert(&app, 20..25);
    rig.wait_durable();
    assert!(rig.stop().is_empty());
    let newest = manifest().files.into_iter().max_by_key(|f| f.max_txid).unwrap();
    assert_eq!((newest.kind, newest.page_size.get()), (FileKind::Snapshot, 8192));
    let store: Arc<dyn rhyolite_store::Store> =
        rhyolite_store::open(rig.store().to_str().unwrap(), &rhyolite_store::StoreOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_, bytes) = runtime.block_on(Outputs::new().restore(&store, Target::Latest)).unwrap();
    assert!(bytes == committed_pages(&rig.path()).concat());
}

#[test]
fn a_symbolic_link_stands_for_the_file_that_sqlite_opens() {
    let mut rig = Rig::new();
    let real = rig.folder.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink("real/data.db", rig.path()).unwrap();
    // It may point to nothing when the replicator starts.
    assert_eq!(DatabaseConfig::new(rig.path(), String::new()).path, real.canonicalize().unwrap().join("data.db"));
    let app = Connection::open(real.join("data.db")).unwrap();
    app.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.monitor_interval = Duration::from_millis(20));
    rig.wait_durable();
    for i in 0..20 {
        insert(&app, i..i + 1);
        std::thread::sleep(Duration::from_millis(10));
    }
    let figures = rig.wait_durable();
    assert!(figures.last_error.is_none(), "{:?}", figures.last_error);
    assert!(real.join(".data.db-rhyolite").exists(), "the state folder lies beside the file");
    assert!(rig.stop().is_empty());
    assert_eq!(read_history(&rig.store()).positions.len(), 1 + 20, "each commit by itself");
}

#[test]
fn a_commit_that_a_lock_hides_at_the_stop_is_captured_after_it() {
    let mut rig = Rig::new();
    let app = rig.open();
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.busy_timeout = Duration::from_millis(50));
    rig.wait_durable();
    // The exclusive lock comes with the commit that the next look would find, and outlasts many looks.
    app.execute_batch("PRAGMA locking_mode = exclusive; INSERT INTO t VALUES (1, 2)").unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        drop(app);
    });
    let history = rig.check();
    release.join().unwrap();
    assert_eq!(history.positions.len(), 2, "the commit is in the store");
}

#[test]
fn a_stop_right_after_the_state_folder_vanished_still_captures_everything() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    rig.start_with(|c| c.monitor_interval = Duration::from_millis(20));
    rig.wait_durable();
    std::fs::remove_dir_all(rig.folder.path().join(".app.db-rhyolite")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    insert(&app, 0..10);
    rig.check();
}

#[test]
fn a_state_folder_that_is_removed_while_it_is_opened_ends_nothing() {
    let mut rig = Rig::new();
    let app = rig.open_wal(4096);
    app.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
    let state = rig.folder.path().join(".app.db-rhyolite");
    for round in 0..8 {
        // A local log to be read.
        rig.start();
        insert(&app, 2 * round..2 * round + 1);
        rig.wait_durable();
        assert!(rig.stop().is_empty());
        rig.start();
        std::thread::sleep(Duration::from_micros(2500 * u64::try_from(round).unwrap()));
        let began = Instant::now();
        while std::fs::remove_dir_all(&state).is_err() && began.elapsed() < Duration::from_secs(5) {}
        insert(&app, 2 * round + 1..2 * round + 2);
        rig.wait_durable();
        let errors = rig.stop();
        assert!(errors.is_empty(), "round {round}: {errors:?}");
    }
    rig.start();
    rig.wait_durable();
    rig.check();
}
