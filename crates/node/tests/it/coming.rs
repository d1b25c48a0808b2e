//! Databases that come, go, move and fail while the process runs.

use std::path::Path;
use std::time::{Duration, Instant};

use rhyolite_logic::park::Policy;
use rhyolite_node::config::file;
use rhyolite_node::status::State;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::many::{Running, config, make};
use crate::program::{Folder, rows, wait_for};

/// Restores from a store and gives the rows.
fn restored(folder: &Folder, store: &Path) -> Vec<i64> {
    let out = folder.path("restored.db");
    let _ = std::fs::remove_file(&out);
    let outcome = folder.run(&["restore", store.to_str().unwrap(), "-o", out.to_str().unwrap()]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    rows(&out)
}

fn wait_durable(running: &Running, path: &Path) {
    wait_for("everything to be durable", || {
        running.find(path).is_some_and(|d| d.look(|f| f.local.is_some() && f.local == f.durable))
    });
}

/// A configuration with other patterns leaves alone what it still means, and a database that moves from a folder to an entry of its own, and
/// back, is replicated all the while.
fn move_there_and_back() -> (Folder, std::path::PathBuf) {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    let (a, b) = (dir.join("a.db"), dir.join("b.db"));
    make(&a, 1);
    make(&b, 1);
    // Nothing is parked: each has a task that must end before its place is free.
    let running = Running::start_with(&config(&folder, ""), Policy::default());
    wait_for("both databases", || running.count() == 2);
    wait_durable(&running, &a);
    wait_durable(&running, &b);
    let before = running.find(&a).unwrap();

    let done = running.reload(&config(&folder, "    exclude: [\"b*\"]\n"));
    assert_eq!((done.added, done.removed, done.changed), (0, 1, 1));
    wait_for("b.db to go", || running.count() == 1);
    assert!(std::sync::Arc::ptr_eq(&running.find(&a).unwrap(), &before), "a.db was left alone");
    let without = running.reload(&config(&folder, ""));
    assert_eq!(without.changed, 1);
    wait_for("b.db to come back", || running.find(&b).is_some());
    wait_durable(&running, &b);

    let own = folder.path("own");
    let moved = format!(
        "{}  - {{path: {}, replica: {{url: {}}}}}\n",
        config(&folder, "    exclude: [\"a*\"]\n"),
        a.display(),
        own.display()
    );
    running.reload(&moved);
    wait_for("a.db under its own entry", || folder.path("own/id.json").exists());
    make(&a, 2);
    wait_durable(&running, &a);
    running.reload(&config(&folder, ""));
    wait_for("a.db in the folder again", || {
        running.find(&a).is_some_and(|d| d.look(|f| f.durable.is_some()) && d.store.contains("backup"))
    });
    make(&a, 3);
    wait_durable(&running, &a);

    // Out and in again, before the last upload of the life before can have ended.
    running.reload(&moved);
    running.reload(&config(&folder, ""));
    running.reload(&moved);
    wait_for("a.db under its own entry again", || running.find(&a).is_some_and(|d| d.store.contains("own")));
    make(&a, 4);
    wait_durable(&running, &a);
    assert!(running.stop().is_empty());
    assert_eq!(restored(&folder, &own), [1, 2, 3, 4]);
    (folder, own)
}

#[test]
fn what_a_new_configuration_moves_is_not_lost() {
    let (_folder, own) = move_there_and_back();
    assert!(own.exists());
}

/// Both stores have the same epoch and the same sequence numbers: only positions tell where each ends.
#[test]
fn what_was_written_to_the_first_store_of_a_database_that_moves_is_restored() {
    for _ in 0..10 {
        let (folder, _) = move_there_and_back();
        assert_eq!(restored(&folder, &folder.path("backup/a.db")), [1, 2, 3]);
    }
}

/// Each failure is followed by a longer pause, also where the file cannot so much as be looked at.
#[test]
fn a_database_that_cannot_be_looked_at_is_tried_at_leisure() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["a.db", "b.db"] {
        make(&dir.join(name), 1);
    }
    let running = Running::start(&config(&folder, ""));
    running.wait_parked(2);
    let status = running.find(&dir.join("a.db")).unwrap();
    std::fs::rename(dir.join("a.db"), dir.join("a.away")).unwrap();
    std::os::unix::fs::symlink("a.db", dir.join("a.db")).unwrap();
    wait_for("the error", || status.look(|f| matches!(f.state, State::Error { .. })));
    std::thread::sleep(Duration::from_secs(4));
    let errors = status.look(|f| f.errors);
    assert!((2..=4).contains(&errors), "{errors} tries within about 4 s");
    std::fs::remove_file(dir.join("a.db")).unwrap();
    std::fs::rename(dir.join("a.away"), dir.join("a.db")).unwrap();
    running.wait_parked(2);
    make(&dir.join("a.db"), 2);
    wait_durable(&running, &dir.join("a.db"));
    assert!(running.stop().is_empty());
    assert_eq!(restored(&folder, &folder.path("backup/a.db")), [1, 2]);
}

/// What went wrong on this machine and is well again needs no new commit to be noticed.
#[test]
fn a_passing_local_failure_strands_no_commit() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    let meta = dir.join(".a.db-rhyolite");
    let running = Running::start(&config(&folder, ""));
    running.wait_parked(1);
    assert!(meta.is_dir());
    std::fs::rename(&meta, dir.join("away")).unwrap();
    std::fs::write(&meta, "no folder").unwrap();
    make(&dir.join("a.db"), 2);
    let status = running.find(&dir.join("a.db")).unwrap();
    wait_for("the error", || status.look(|f| matches!(f.state, State::Error { .. })));
    std::fs::remove_file(&meta).unwrap();
    std::fs::rename(dir.join("away"), &meta).unwrap();
    running.wait_parked(1);
    assert!(running.stop().is_empty());
    assert_eq!(restored(&folder, &folder.path("backup/a.db")), [1, 2]);
}

/// Whoever ends while the store is waited for still tries to upload what is captured.
#[test]
fn a_stop_while_the_store_is_waited_for_uploads_what_is_captured() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    let running = Running::start(&config(&folder, "    lease: {enabled: false}\n"));
    running.wait_parked(1);
    let (store, away) = (folder.path("backup"), folder.path("away"));
    std::fs::rename(&store, &away).unwrap();
    std::os::unix::fs::symlink(&store, &store).unwrap();
    make(&dir.join("a.db"), 2);
    let status = running.find(&dir.join("a.db")).unwrap();
    // The pauses between the tries are longer by then than what follows takes.
    wait_for("some tries", || status.look(|f| f.errors >= 4));
    assert!(status.look(|f| f.local != f.durable));
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    let errors = running.stop();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(restored(&folder, &folder.path("backup/a.db")), [1, 2]);
}

/// What was written right before a database is removed is captured and uploaded, parked or not.
#[test]
fn the_last_commit_before_a_removal_is_uploaded() {
    let folder = Folder::new();
    let db = folder.path("a.db");
    make(&db, 0);
    let yaml = |name: &str| {
        format!("dbs: [{{path: {0}/{name}, replica: {{url: {0}/store-{name}}}}}]\n", folder.path("").display())
    };
    make(&folder.path("other.db"), 0);
    let running = Running::start(&yaml("other.db"));
    let entry = file::parse(&yaml("a.db")).unwrap().databases.remove(0);
    let app = Connection::open(&db).unwrap();
    for round in 1..=12 {
        wait_for("its place", || running.add(entry.clone()).is_ok());
        wait_for("it to be parked", || running.find(&db).is_some_and(|d| d.look(|f| f.parked)));
        app.execute("INSERT INTO t VALUES (?1)", [round]).unwrap();
        running.remove(&entry.path).unwrap();
        wait_for("it to go", || running.find(&db).is_none());
        let expected: Vec<i64> = (0..=round).collect();
        assert_eq!(restored(&folder, &folder.path("store-a.db")), expected);
    }
    assert!(running.stop().is_empty());
}

/// All databases of a folder are written under one right. One that goes and comes again must not cost the others theirs.
#[test]
fn a_database_that_comes_again_disturbs_no_other_of_its_folder() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    let (stays, comes) = (dir.join("stays.db"), dir.join("comes.db"));
    make(&stays, 1);
    make(&comes, 1);
    let running = Running::start_with(&config(&folder, "    watch: true\n"), Policy::default());
    wait_for("both databases", || running.count() == 2);
    wait_durable(&running, &stays);
    wait_durable(&running, &comes);
    let status = running.find(&stays).unwrap();
    let (epoch, errors) = status.look(|f| (f.epoch, f.errors));
    for round in 2..4 {
        for name in ["comes.db", "comes.db-wal", "comes.db-shm"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        wait_for("it to go", || running.count() == 1);
        make(&comes, round);
        wait_for("it to come", || running.count() == 2);
        wait_durable(&running, &comes);
        let now = running.find(&comes).unwrap().look(|f| f.epoch);
        assert_eq!(now, epoch, "the right is the same");
    }
    make(&stays, 2);
    wait_durable(&running, &stays);
    assert_eq!(status.look(|f| (f.epoch, f.errors)), (epoch, errors));
    assert!(running.stop().is_empty());
    assert_eq!(restored(&folder, &folder.path("backup/comes.db")), [3]);
}

/// A folder that is not there yet, as one on a disk that is mounted late, is found when it is; nobody is told before that all is well.
#[test]
fn a_folder_that_comes_late_is_searched_then() {
    let folder = Folder::new();
    let dir = folder.path("data");
    let running = Running::start(&config(&folder, ""));
    wait_for("the search", || running.unsearched() == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((running.count(), running.unsearched()), (0, 1));
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    wait_durable(&running, &dir.join("a.db"));
    assert_eq!(running.unsearched(), 0);
    assert!(running.stop().is_empty());
    folder.write("rhyolite.yml", config(&folder, ""));
    let status = folder.run(&["status", "--config", "rhyolite.yml", "--json"]).json();
    assert_eq!(status["databases"][0]["path"], dir.join("a.db").canonicalize().unwrap().to_str().unwrap(), "{status}");
}

/// A database that nobody had found yet when the process was told to end is in the store after it. Those that are parked stay so, and one that
/// is gone again holds up nothing.
#[test]
fn a_database_that_is_made_right_before_a_stop_is_captured() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    let running = Running::start(&config(&folder, "    watch: true\n"));
    running.wait_parked(1);
    let status = running.find(&dir.join("a.db")).unwrap();
    make(&dir.join("gone.db"), 1);
    make(&dir.join("new.db"), 2);
    std::fs::remove_file(dir.join("gone.db")).unwrap();
    let began = Instant::now();
    let errors = running.stop();
    assert!(errors.is_empty() && began.elapsed() < Duration::from_secs(10), "{errors:?}");
    assert_eq!(restored(&folder, &folder.path("backup/new.db")), [2]);
    assert!(status.look(|f| f.parked), "it was not opened for that");
}

/// What lies at the path when the process is told to end is what counts, and not what was there a moment before.
#[test]
fn a_database_that_is_replaced_right_before_a_stop_is_captured_as_it_is() {
    let replace = |path: &Path, mode: &str, gap: u64, value: i64| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(gap));
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(a)").unwrap();
        db.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
    };
    for (mode, gap) in [("wal", 0), ("wal", 40), ("delete", 0), ("delete", 40)] {
        for pause in [0, 60] {
            let folder = Folder::new();
            let path = folder.path("data").join("a.db");
            std::fs::create_dir_all(folder.path("data")).unwrap();
            replace(&path, mode, 0, 1);
            let running = Running::start_with(&config(&folder, "    watch: true\n"), Policy::default());
            wait_durable(&running, &path);
            std::thread::sleep(Duration::from_millis(100));
            replace(&path, mode, gap, 2);
            std::thread::sleep(Duration::from_millis(pause));
            let errors = running.stop();
            assert!(errors.is_empty(), "{mode} {gap} {pause}: {errors:?}");
            assert_eq!(restored(&folder, &folder.path("backup/a.db")), [2], "{mode} {gap} {pause}");
        }
    }
}

/// More than are opened at a time: some are being opened and some wait in line when the process is told to end.
#[test]
fn a_stop_right_after_the_start_takes_the_first_snapshots() {
    const COUNT: i64 = 40;
    for pause in [0, 20, 100] {
        let folder = Folder::new();
        let dir = folder.path("data");
        std::fs::create_dir_all(&dir).unwrap();
        (0..COUNT).for_each(|i| make(&dir.join(format!("{i}.db")), i));
        let running = Running::start(&config(&folder, ""));
        std::thread::sleep(Duration::from_millis(pause));
        let errors = running.stop();
        assert!(errors.is_empty(), "{pause}: {errors:?}");
        let all = folder.run(&["restore", "./backup", "-o", "out", "--all", "--json"]).json();
        assert_eq!(all["restored"], COUNT, "{pause}: {all}");
    }
}

/// What has gone wrong a moment before a stop may be well again within the time for stopping.
#[test]
fn a_stop_waits_for_what_may_pass() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    let meta = dir.join(".a.db-rhyolite");
    let running = Running::start(&config(&folder, ""));
    running.wait_parked(1);
    std::fs::rename(&meta, dir.join("away")).unwrap();
    std::fs::write(&meta, "no folder").unwrap();
    make(&dir.join("a.db"), 2);
    let status = running.find(&dir.join("a.db")).unwrap();
    wait_for("the error", || status.look(|f| matches!(f.state, State::Error { .. })));
    let mended = std::thread::spawn({
        let (meta, away) = (meta.clone(), dir.join("away"));
        move || {
            std::thread::sleep(Duration::from_millis(800));
            std::fs::remove_file(&meta).unwrap();
            std::fs::rename(away, &meta).unwrap();
        }
    });
    let errors = running.stop();
    mended.join().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(restored(&folder, &folder.path("backup/a.db")), [1, 2]);
}

/// Where the time for stopping does not suffice the process says so, and names the database.
#[test]
fn a_database_that_could_not_be_captured_in_time_is_named() {
    let folder = Folder::new();
    let dir = folder.path("data");
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir.join("a.db"), 1);
    folder.write("rhyolite.yml", config(&folder, "    watch: true\n"));
    let daemon = folder.start(&["replicate", "--config", "rhyolite.yml", "--shutdown-sync-timeout", "1s"]);
    folder.wait_durable("data/a.db", 1);
    let store = folder.path("backup");
    std::fs::rename(&store, folder.path("away")).unwrap();
    std::os::unix::fs::symlink(&store, &store).unwrap();
    make(&dir.join("new.db"), 1);
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    let line = ended.stderr.lines().last().unwrap_or_default();
    assert!(ended.code == 6 && line.contains("new.db"), "{ended:?}");
}

/// While we follow it, a database that its application has closed keeps its `-wal` and `-shm`. Who removes the database alone and makes another gets a wal-index of
/// its own: we have let go of the old one.
#[test]
fn a_database_that_is_removed_alone_can_be_made_anew() {
    let folder = Folder::new();
    let store = folder.path("backup");
    drop(folder.database("app.db"));
    let daemon = folder.start(&["replicate", "app.db", "./backup", "--sync-interval", "0", "--log-level", "warn"]);
    // Followed by looks at first, and by a watch once it has been idle.
    for (round, idle) in [0, 0, 2500, 0, 2500, 0].into_iter().enumerate() {
        let db = folder.database("app.db");
        let round = i64::try_from(round).unwrap();
        for row in 0..50 {
            db.execute("INSERT INTO t VALUES (?1)", [round * 1000 + row]).unwrap();
        }
        let expected: Vec<i64> = (0..50).map(|row| round * 1000 + row).collect();
        wait_for("the backup", || {
            let out = folder.path("restored.db");
            let _ = std::fs::remove_file(&out);
            folder.run(&["restore", store.to_str().unwrap(), "-o", "restored.db"]).code == 0 && rows(&out) == expected
        });
        std::thread::sleep(Duration::from_millis(idle));
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
        db.close().unwrap();
        std::fs::remove_file(folder.path("app.db")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.signal(Signal::TERM);
    daemon.wait();
}

/// A backup that is put in place of a database comes in two files: what lies in its WAL is part of it, however soon after the database it comes.
#[test]
fn a_database_and_its_wal_that_are_copied_into_place_are_taken_together() {
    let folder = Folder::new();
    let store = folder.path("backup");
    for row in 0..3 {
        folder.database("app.db").execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
    }
    // A copy of a database in use: three more rows lie in the WAL.
    let db = folder.database("other.db");
    db.execute_batch(
        "INSERT INTO t VALUES (10); PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES (11), (12), (13)",
    )
    .unwrap();
    for suffix in ["", "-wal"] {
        std::fs::copy(folder.path(&format!("other.db{suffix}")), folder.path(&format!("kept{suffix}"))).unwrap();
    }
    let daemon = folder.start(&["replicate", "app.db", "./backup", "--sync-interval", "0", "--log-level", "warn"]);
    folder.wait_durable("app.db", 1);
    for pause in [0, 50, 300] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.path(&format!("app.db{suffix}")));
        }
        std::fs::copy(folder.path("kept"), folder.path("app.db")).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        std::fs::copy(folder.path("kept-wal"), folder.path("app.db-wal")).unwrap();
        assert_eq!(rows(&folder.path("app.db")), [10, 11, 12, 13], "{pause}");
        wait_for("the backup", || restored(&folder, &store) == [10, 11, 12, 13]);
        folder.database("app.db").execute_batch("DELETE FROM t").unwrap();
        wait_for("the backup", || restored(&folder, &store).is_empty());
    }
    daemon.signal(Signal::TERM);
    daemon.wait();
}
