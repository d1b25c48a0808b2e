//! A file that follows a log: readers always see a whole state, whatever happens to the process that follows.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::follow::PageOneFields;
use rhyolite_format::{Checksum, PageSize, Pos, Seq, Txid, keys};
use rhyolite_node::follow::{FollowOptions, ReplicaJournal, follow};
use rhyolite_node::progress::Silent;
use rhyolite_node::restore::{Existing, RestoreError};
use rhyolite_store::{Directory, Memory, Store};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history_builder::{History, State, checksum_of};
use crate::restore::write_some;

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(store: &Arc<dyn Store>, output: &Path) -> FollowOptions {
    FollowOptions {
        store: Arc::clone(store),
        output: output.to_owned(),
        existing: Existing::Refuse,
        journal: ReplicaJournal::Rollback,
        mount: None,
        interval: Duration::from_millis(5),
        lock_timeout: Duration::from_millis(50),
        may_be_ahead: false,
        is_judged: false,
        threads: 2,
        progress: Arc::new(Silent),
    }
}

/// A file that is being followed.
struct Follow {
    positions: watch::Receiver<Option<Pos>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), RestoreError>>,
}

impl Follow {
    fn start(store: &Arc<dyn Store>, output: &Path) -> Self {
        let (positions_sender, positions) = watch::channel(None);
        let (stop, stop_receiver) = watch::channel(false);
        let task = tokio::spawn(follow(options(store, output), positions_sender, stop_receiver));
        Self { positions, stop, task }
    }

    async fn reach(&mut self, txid: Txid) {
        let reached = self.positions.wait_for(|pos| pos.is_some_and(|pos| pos.txid >= txid));
        if tokio::time::timeout(PATIENCE, reached).await.expect("it follows").is_err() {
            panic!("it has ended: {:?}", (&mut self.task).await);
        }
    }

    async fn stop(self) -> Result<(), RestoreError> {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("copy.db")
    }

    /// The file is the state, but for what readers need otherwise; and SQLite can read it.
    fn check(&self, state: &State) {
        let mut bytes = std::fs::read(self.path()).unwrap();
        assert_eq!(bytes.len(), state.image.len());
        if !bytes.is_empty() {
            assert_eq!(bytes[18..20], [1, 1]);
            PageOneFields::of(&state.image).put(&mut bytes);
        }
        assert!(bytes == state.image, "the file is not transaction {}", state.pos.txid);
        let pos = std::fs::read_to_string(self.0.path().join("copy.db-pos")).unwrap();
        assert_eq!(pos, format!("{}\n", state.pos));
        assert!(!self.0.path().join("copy.db-journal").exists());
    }

    fn read_only(&self) -> Connection {
        Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }
}

fn is_sound(db: &Connection) -> bool {
    db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap() == "ok"
}

fn count(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_every_state_that_it_stops_at() {
    for page_size in [512, 4096] {
        let mut history = History::new(Arc::new(Memory::new()), page_size).await;
        write_some(&mut history).await;
        let place = Place::new();
        let mut following = Follow::start(&history.store, &place.path());
        following.reach(history.last()).await;
        place.check(&history.states[&history.last()]);
        let reader = place.read_only();
        let steps = [
            "INSERT INTO t (v) VALUES (randomblob(5000))",
            "DELETE FROM t WHERE id > 5; VACUUM",
            "INSERT INTO t (v) VALUES (randomblob(90000))",
            "UPDATE t SET v = zeroblob(100)",
        ];
        for sql in steps {
            history.run(sql);
            history.upload().await;
            following.reach(history.last()).await;
            place.check(&history.states[&history.last()]);
            assert!(is_sound(&reader));
            assert_eq!(count(&reader), count(&history.open()), "{sql}");
        }
        following.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_stopped() {
    let mut history = History::new(Arc::new(Memory::new()), 1024).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    following.stop().await.unwrap();
    for _ in 0..3 {
        history.run("INSERT INTO t (v) VALUES (randomblob(2000))");
        history.upload().await;
    }
    // The segments that lead on are bundled away; a snapshot of the end is there.
    let files = vec![history.snapshot(history.last()).await];
    let last = history.last();
    history.manifest(files, history.seq, Some(last)).await;
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    following.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_size_an_empty_database_and_a_new_one() {
    let mut history = History::new(Arc::new(Memory::new()), 1024).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    let before = history.states[&history.last()].image.clone();
    history.open().execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap();
    let image = std::fs::read(history.path()).unwrap();
    history.log_snapshot(image, 8192);
    history.upload().await;
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    history.log_image(Vec::new(), PageSize::new(8192).unwrap());
    history.upload().await;
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    history.log_snapshot(before, 1024);
    history.upload().await;
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    assert!(is_sound(&place.read_only()));
    following.stop().await.unwrap();
}

/// A reader keeps its state for as long as its transaction is open, and the file goes on after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_holds_it_up_and_is_never_disturbed() {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    let reader = place.read_only();
    reader.execute_batch("BEGIN").unwrap();
    let before = count(&reader);
    history.run("INSERT INTO t (v) VALUES (1), (2), (3)");
    history.upload().await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(count(&reader), before);
    }
    reader.execute_batch("COMMIT").unwrap();
    following.reach(history.last()).await;
    assert_eq!(count(&reader), before + 3);
    place.check(&history.states[&history.last()]);
    following.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_writes_to_is_given_up() {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    Connection::open(place.path()).unwrap().execute_batch("INSERT INTO t (v) VALUES (7)").unwrap();
    history.run("INSERT INTO t (v) VALUES (1)");
    history.upload().await;
    let ended = tokio::time::timeout(PATIENCE, following.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(RestoreError::Diverged { .. })), "{ended:?}");
    let again = Follow::start(&history.store, &place.path()).task.await.unwrap();
    assert!(matches!(again, Err(RestoreError::Diverged { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_replaced_is_given_up() {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    let copy = place.path().with_extension("copy");
    std::fs::copy(place.path(), &copy).unwrap();
    std::fs::rename(&copy, place.path()).unwrap();
    history.run("INSERT INTO t (v) VALUES (1)");
    history.upload().await;
    let ended = tokio::time::timeout(PATIENCE, following.task).await.unwrap().unwrap();
    let Err(RestoreError::Diverged { detail, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(detail, "another file lies in its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_changes_nothing() {
    let mut history = History::new(Arc::new(Memory::new()), 512).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    following.stop().await.unwrap();
    let last = history.last();
    let mut state = history.states[&last].clone();
    // A commit that leads elsewhere than it says.
    state.image[700] ^= 1;
    history.states.get_mut(&last).unwrap().image = state.image.clone();
    let end = state.image.len() - 1;
    state.image[end] ^= 1;
    history.log_image(state.image, PageSize::new(512).unwrap());
    history.upload().await;
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(last).await;
    let ended = tokio::time::timeout(PATIENCE, following.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(RestoreError::WrongChecksum { .. })), "{ended:?}");
    assert!(is_sound(&place.read_only()));
    assert_eq!(std::fs::read_to_string(place.0.path().join("copy.db-pos")).unwrap()[..16], last.to_string());
}

const CHILD_STORE: &str = "RHYOLITE_TEST_FOLLOW_STORE";
const CHILD_OUTPUT: &str = "RHYOLITE_TEST_FOLLOW_OUTPUT";

/// Not a test: the process that the next test kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn child() {
    let (Ok(store), Ok(output)) = (std::env::var(CHILD_STORE), std::env::var(CHILD_OUTPUT)) else { return };
    let store: Arc<dyn Store> = Arc::new(Directory::new(store));
    let following = Follow::start(&store, Path::new(&output));
    following.task.await.unwrap().unwrap();
}

fn spawn_child(store: &Path, output: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "follow::child"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env(CHILD_STORE, store).env(CHILD_OUTPUT, output).spawn().unwrap()
}

/// Whoever opens the file after a kill finds a whole state: SQLite rolls back what was half written.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_it_leaves_a_whole_state() {
    let objects = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Directory::new(objects.path()));
    let mut history = History::new(store, 1024).await;
    write_some(&mut history).await;
    let place = Place::new();
    let mut rolled_back = 0;
    for round in 0..12u64 {
        let mut child = spawn_child(objects.path(), &place.path());
        for _ in 0..12 {
            history
                .run("UPDATE t SET v = randomblob(1500) WHERE id % 2 = 0; INSERT INTO t (v) VALUES (randomblob(9000))");
            history.upload().await;
            tokio::time::sleep(Duration::from_millis(5 + round)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !place.path().exists() {
            continue;
        }
        rolled_back += u32::from(place.0.path().join("copy.db-journal").exists());
        {
            let reader = Connection::open(place.path()).unwrap();
            assert!(is_sound(&reader));
        }
        let txid = txid_of(&place, &history);
        assert!(txid.is_some(), "round {round}: the file is no state of the log");
    }
    println!("{rolled_back} kills left a hot journal");
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    following.stop().await.unwrap();
    assert!(history.store.get(&keys::segment(Seq::FIRST)).await.is_ok());
}

/// Killed between making its journal and writing the header of it, a follower leaves a file that SQLite neither plays back nor removes.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_without_a_header_is_no_hindrance() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let mut history = History::new(store, 1024).await;
    write_some(&mut history).await;
    let place = Place::new();
    for left in [&b""[..], &[0; 512]] {
        let mut following = Follow::start(&history.store, &place.path());
        following.reach(history.last()).await;
        following.stop().await.unwrap();
        std::fs::write(place.0.path().join("copy.db-journal"), left).unwrap();
        history.run("INSERT INTO t (v) VALUES (randomblob(500))");
        history.upload().await;
    }
    let mut following = Follow::start(&history.store, &place.path());
    following.reach(history.last()).await;
    place.check(&history.states[&history.last()]);
    following.stop().await.unwrap();
}

/// Which state the file is.
fn txid_of(place: &Place, history: &History) -> Option<Txid> {
    let bytes = std::fs::read(place.path()).unwrap();
    let is_it = |state: &&State| {
        let mut bytes = bytes.clone();
        bytes.len() == state.image.len() && {
            PageOneFields::of(&state.image).put(&mut bytes);
            bytes == state.image
        }
    };
    let state = history.states.values().rev().find(is_it)?;
    let checksum: Checksum = checksum_of(&state.image, state.page_size);
    assert_eq!(checksum, state.pos.checksum);
    Some(state.pos.txid)
}
