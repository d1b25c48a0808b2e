//! Healthy facts, one change to them, and what is said about it.

use super::*;

fn healthy() -> Facts {
    Facts {
        database: DatabaseFile::Sound(Header { is_wal: true, sqlite_version: 3_051_003 }),
        hard_links: 1,
        file_system: Some("ext4".to_owned()),
        wal_bytes: Some(4_120_032),
        journal_bytes: None,
        shows_processes: true,
        holders: vec![holder("app")],
        hidden_processes: 0,
        locks: Vec::new(),
        free_bytes: Some(50 << 30),
        denied: Vec::new(),
        other_owner: Vec::new(),
        inotify: Some((3, 128)),
        inotify_watches_max: Some(65_536),
        linked_sqlite: 3_054_001,
        state: StateFolder { exists: true, damage: Vec::new(), log_bytes: 100 },
        store: StoreFacts::Holds { is_ours: Some(true), skew_ms: Some(40), ahead_of_us_ms: None },
    }
}

fn holder(name: &str) -> Holder {
    let name = name.to_owned();
    Holder { pid: 7, name, maps_database: false, holds_deleted: false, is_elsewhere: false }
}

/// Everything but what is as it should be, after a change to healthy facts.
fn check(change: impl FnOnce(&mut Facts), expected: &str) {
    let mut facts = healthy();
    change(&mut facts);
    let findings = judge(&facts);
    assert!(findings.iter().all(|f| (f.severity == Severity::Ok) == f.advice.is_empty()), "{findings:?}");
    let bad = findings.iter().filter(|f| f.severity > Severity::Ok && f.check != "synchronous");
    let said: Vec<String> = bad.map(|f| format!("{} {}: {}", f.severity.name(), f.check, f.text)).collect();
    assert_eq!(said.join("\n"), expected);
}

fn sqlite(version: u32, is_wal: bool) -> DatabaseFile {
    DatabaseFile::Sound(Header { is_wal, sqlite_version: version })
}

#[test]
fn a_healthy_database_raises_no_alarm() {
    check(|_| {}, "");
    check(|f| f.holders.clear(), "");
    check(|f| f.store = StoreFacts::NotGiven, "");
    check(|f| f.wal_bytes = None, "");
    check(|f| f.locks.push(Lock { pid: 7, is_waiting: false, file: "-shm" }), "");
}

#[test]
fn the_file() {
    check(|f| f.database = DatabaseFile::Missing, "problem database: there is no such file");
    check(|f| f.database = DatabaseFile::Unreadable("denied".into()), "problem database: cannot be read: denied");
    check(|f| f.database = DatabaseFile::Foreign("x".into()), "problem database: is no SQLite database: x");
    check(|f| f.database = DatabaseFile::Empty, "note database: is empty");
    check(|f| f.hard_links = 2, "problem hard-links: the file has 2 names");
}

#[test]
fn the_wal_reset_bug_is_told_by_the_version() {
    let bug = |v| {
        format!(
            "warning sqlite-version: page 1 was last written by SQLite {v}, which, unless patched, can lose commits when two processes checkpoint (WAL-reset bug)"
        )
    };
    for (version, name) in [(3_007_000, "3.7.0"), (3_040_001, "3.40.1"), (3_044_005, "3.44.5"), (3_051_002, "3.51.2")] {
        check(|f| f.database = sqlite(version, true), &bug(name));
    }
    for version in [3_006_023, 3_044_006, 3_050_007, 3_051_003, 3_054_001] {
        check(|f| f.database = sqlite(version, true), "");
    }
    let rollback = "note journal-mode: rollback journal: commits between two looks become one restore point";
    check(|f| f.database = sqlite(3_040_001, false), rollback);
    check(|f| f.database = sqlite(0, true), "note sqlite-version: the file does not say");
    check(|f| f.linked_sqlite = 3_049_001, "problem linked-sqlite: Rhyolite reads with SQLite 3.49.1");
}

#[test]
fn file_systems() {
    for (kind, severity) in [
        ("nfs4", "problem"),
        ("9p", "problem"),
        ("virtiofs", "problem"),
        ("cifs", "problem"),
        ("fuse.sshfs", "problem"),
        ("overlay", "warning"),
        ("tmpfs", "warning"),
        ("fuse.other", "warning"),
    ] {
        let mut facts = healthy();
        facts.file_system = Some(kind.to_owned());
        let found = judge(&facts).into_iter().find(|f| f.check == "file-system").unwrap();
        assert_eq!(found.severity.name(), severity, "{kind}");
        assert!(found.text.starts_with(kind));
    }
    for kind in ["ext4", "xfs", "btrfs", "zfs", "apfs"] {
        check(|f| f.file_system = Some(kind.to_owned()), "");
    }
    check(|f| f.file_system = None, "note file-system: cannot be told");
}

#[test]
fn files_beside_it() {
    check(|f| f.wal_bytes = Some(600 << 20), "warning wal: 600 MiB: checkpoints do not get through");
    check(
        |f| f.journal_bytes = Some(512),
        "note journal: 512 bytes: a transaction is under way, or was left by one of the holders",
    );
    let left = |f: &mut Facts| (f.journal_bytes, f.holders) = (Some(512), Vec::new());
    check(left, "warning journal: 512 bytes, and nobody has the database open: a transaction was not finished");
}

#[test]
fn other_processes() {
    check(|f| f.holders[0].maps_database = true, "note mmap: app (7) maps the database into memory (mmap_size)");
    check(|f| f.holders[0].is_elsewhere = true, "note container: app (7) has it open from another container");
    check(
        |f| f.holders[0].holds_deleted = true,
        "problem deleted-file: app (7) still writes to a deleted file of this name",
    );
    check(
        |f| f.locks.push(Lock { pid: 9, is_waiting: true, file: "-shm" }),
        "note locks: process 9 waits for a lock on -shm",
    );
    check(|f| f.shows_processes = false, "note holders: cannot be seen on this system");
    let unseen = |f: &mut Facts| (f.hidden_processes, f.holders) = (2, Vec::new());
    check(unseen, "note holders: nobody is seen; 2 processes of other users cannot be looked into");
}

#[test]
fn room_and_rights() {
    check(|f| f.free_bytes = Some(10 << 20), "problem free-space: 10 MiB");
    check(|f| f.free_bytes = Some(500 << 20), "warning free-space: 500 MiB");
    check(|f| f.denied.push("cannot write a".into()), "problem permissions: cannot write a");
    check(
        |f| f.other_owner.push("a-wal".into()),
        "warning permissions: a-wal belongs to another user than the database",
    );
    check(|f| f.inotify = Some((120, 128)), "warning inotify: 120 of 128 instances are in use");
    check(|f| f.inotify_watches_max = Some(100), "note inotify: at most 100 files can be watched");
    let unknown = |f: &mut Facts| (f.inotify, f.inotify_watches_max) = (None, None);
    check(unknown, "note inotify: not known on this system");
}

#[test]
fn state_folder_and_store() {
    check(|f| f.state = StateFolder::default(), "note state-folder: there is none: never replicated from here");
    check(|f| f.state.damage.push("state file: bad CRC".into()), "warning state-folder: state file: bad CRC");
    check(|f| f.store = StoreFacts::Unreachable("refused".into()), "problem store: does not answer: refused");
    check(|f| f.store = StoreFacts::Empty, "note store: holds no backup");
    let holds = |is_ours, skew_ms, ahead_of_us_ms| StoreFacts::Holds { is_ours, skew_ms, ahead_of_us_ms };
    let foreign = "problem store: holds the history of another database than the state folder";
    check(|f| f.store = holds(Some(false), None, None), foreign);
    check(|f| f.store = holds(None, Some(-400_000), None), "warning clock: 400 s apart from the store's");
    check(|f| f.store = holds(None, Some(1), Some(3_600_000)), "warning clock: 3600 s apart from the store's");
}
