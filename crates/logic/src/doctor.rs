//! What is good and bad about the surroundings of a database: facts in, findings out.
//!
//! A fact that could not be learned is no finding of its own but says so where it matters. Nothing here guesses: what cannot be seen
//! from outside is named as such.

use std::time::Duration;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// May become a problem, or makes one worse.
    Warning,
    /// Data is in danger, or replication cannot work.
    Problem,
}

impl Severity {
    /// The word for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one word: the name for programs.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub text: String,
    /// What to do, unless it is as it should be.
    pub advice: &'static str,
}

fn finding(check: &'static str, severity: Severity, text: impl Into<String>, advice: &'static str) -> Finding {
    Finding { check, severity, text: text.into(), advice }
}

fn ok(check: &'static str, text: impl Into<String>) -> Finding {
    finding(check, Severity::Ok, text, "")
}

/// The file at the database's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseFile {
    /// There is none.
    Missing,
    /// It cannot be read.
    Unreadable(String),
    /// It is something else.
    Foreign(String),
    /// Nothing was ever committed.
    Empty,
    /// A database.
    Sound(Header),
}

/// What its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it is in WAL mode.
    pub is_wal: bool,
    /// The SQLite that last wrote page 1: 3051003 is 3.51.3.
    pub sqlite_version: u32,
}

/// A process that has one of the database's files open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// It has the database file itself mapped into memory.
    pub maps_database: bool,
    /// It holds a file that was deleted: not the one at the path.
    pub holds_deleted: bool,
    /// It runs in another mount namespace: a container.
    pub is_elsewhere: bool,
}

/// A lock on one of the database's files, as the system lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Who holds it or waits for it.
    pub pid: u32,
    /// Whether it is waited for.
    pub is_waiting: bool,
    /// Which file: the database, or `-shm`.
    pub file: &'static str,
}

/// State folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFolder {
    /// Whether there is one.
    pub exists: bool,
    /// Why it cannot be used, one line each.
    pub damage: Vec<String>,
    /// Bytes of the local log.
    pub log_bytes: u64,
}

/// The store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFacts {
    /// It was not asked for.
    NotGiven,
    /// It does not answer.
    Unreachable(String),
    /// It holds no backup.
    Empty,
    /// It holds one.
    Holds {
        /// Whether it is of the history that the state folder belongs to; `None` where that is not known.
        is_ours: Option<bool>,
        /// The writer's clock minus the store's when the manifest was last written, in milliseconds.
        skew_ms: Option<i64>,
        /// This machine's clock minus the store's is at least this: something was written in our future.
        ahead_of_us_ms: Option<i64>,
    },
}

/// Everything that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The file.
    pub database: DatabaseFile,
    /// Names that the file has.
    pub hard_links: u64,
    /// Type of the file system, as the mount table names it.
    pub file_system: Option<String>,
    /// Size of `-wal`, if there is one.
    pub wal_bytes: Option<u64>,
    /// Size of `-journal`, if there is one with a header.
    pub journal_bytes: Option<u64>,
    /// Whether the system shows which processes have which files open.
    pub shows_processes: bool,
    /// Who has the files open.
    pub holders: Vec<Holder>,
    /// Processes that could not be looked into.
    pub hidden_processes: u64,
    /// Locks on them.
    pub locks: Vec<Lock>,
    /// Free bytes where the database lies.
    pub free_bytes: Option<u64>,
    /// What this user may not do, one line each.
    pub denied: Vec<String>,
    /// Files beside the database that belong to another user than it.
    pub other_owner: Vec<String>,
    /// Instances of inotify that this user has, and may have.
    pub inotify: Option<(u64, u64)>,
    /// Files that this user may watch.
    pub inotify_watches_max: Option<u64>,
    /// The SQLite that Rhyolite is linked with: 3051003 is 3.51.3.
    pub linked_sqlite: u32,
    /// State folder.
    pub state: StateFolder,
    /// The store.
    pub store: StoreFacts,
}

/// First version with the bug by which a checkpoint of one process and a WAL reset of another lose commits.
const WAL_RESET_BUG_FIRST: u32 = 3_007_000;
/// Last version with it.
const WAL_RESET_BUG_LAST: u32 = 3_051_002;
/// Releases in between that have the mend.
const WAL_RESET_MENDED: [u32; 2] = [3_044_006, 3_050_007];
/// A WAL of this size is not checkpointed as it should be.
const WAL_BYTES_LARGE: u64 = 512 << 20;
/// Below this the next commits may fail.
const FREE_BYTES_PROBLEM: u64 = 64 << 20;
/// Below this a store that is away for some time fills the disk.
const FREE_BYTES_WARNING: u64 = 1 << 30;
/// Watches below which databases may go unwatched.
const WATCHES_FEW: u64 = 8192;
/// Clocks that differ by more than this give wrong answers to a restore to a time.
const SKEW_MAX: Duration = Duration::from_secs(300);

/// Everything that is to be said, in the order in which it is looked at.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![database(facts)];
    if let DatabaseFile::Sound(header) = facts.database {
        findings.push(journal_mode(header));
        findings.push(sqlite_version(header));
        findings.push(finding(
            "synchronous",
            Severity::Note,
            "cannot be seen from outside: it belongs to each connection",
            "FULL keeps every commit over a power cut; NORMAL (in WAL mode) may lose the last ones",
        ));
    }
    findings.push(linked_sqlite(facts.linked_sqlite));
    findings.push(file_system(facts.file_system.as_deref()));
    findings.extend(wal(facts.wal_bytes));
    findings.extend(journal(facts));
    findings.push(holders(facts));
    findings.extend(mapped(facts));
    findings.extend(elsewhere(facts));
    findings.extend(deleted(facts));
    findings.extend(locks(facts));
    findings.extend(hard_links(facts));
    findings.extend(free(facts.free_bytes));
    findings.push(permissions(facts));
    findings.push(inotify(facts));
    findings.push(state(&facts.state));
    findings.extend(store(&facts.store));
    findings
}

/// 3051003 as 3.51.3.
fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}

fn has_wal_reset_bug(version: u32) -> bool {
    (WAL_RESET_BUG_FIRST..=WAL_RESET_BUG_LAST).contains(&version) && !WAL_RESET_MENDED.contains(&version)
}

fn database(facts: &Facts) -> Finding {
    let problem = |text: String, advice| finding("database", Severity::Problem, text, advice);
    match &facts.database {
        DatabaseFile::Missing => problem("there is no such file".to_owned(), "check the path"),
        DatabaseFile::Unreadable(why) => problem(format!("cannot be read: {why}"), "run as the user that owns it"),
        DatabaseFile::Foreign(why) => problem(format!("is no SQLite database: {why}"), "check the path"),
        DatabaseFile::Empty => {
            finding("database", Severity::Note, "is empty", "it is replicated from its first commit on")
        }
        DatabaseFile::Sound(_) => ok("database", "is an SQLite database"),
    }
}

fn journal_mode(header: Header) -> Finding {
    if header.is_wal {
        return ok("journal-mode", "WAL");
    }
    finding(
        "journal-mode",
        Severity::Note,
        "rollback journal: commits between two looks become one restore point",
        "PRAGMA journal_mode=WAL, or enable-wal, makes every commit one",
    )
}

fn sqlite_version(header: Header) -> Finding {
    let text = format!("page 1 was last written by SQLite {}", version(header.sqlite_version));
    match header.sqlite_version {
        0 => finding("sqlite-version", Severity::Note, "the file does not say", "a very old SQLite wrote it"),
        number if has_wal_reset_bug(number) && header.is_wal => finding(
            "sqlite-version",
            Severity::Warning,
            format!("{text}, which, unless patched, can lose commits when two processes checkpoint (WAL-reset bug)"),
            "update the application's SQLite to 3.51.3 or later (or 3.50.7, 3.44.6)",
        ),
        _ => ok("sqlite-version", text),
    }
}

fn linked_sqlite(number: u32) -> Finding {
    let text = format!("Rhyolite reads with SQLite {}", version(number));
    if has_wal_reset_bug(number) {
        let advice = "this build must not checkpoint: rebuild with the bundled SQLite";
        return finding("linked-sqlite", Severity::Problem, text, advice);
    }
    ok("linked-sqlite", text)
}

/// File systems that show one file to several machines, or pass locks and shared memory on to another kernel.
fn is_shared(kind: &str) -> bool {
    const SHARED: [&str; 17] = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "ceph",
        "lustre",
        "gfs2",
        "ocfs2",
        "9p",
        "virtiofs",
        "vboxsf",
        "prl_fs",
        "fuse.vmhgfs-fuse",
        "fuse.glusterfs",
    ];
    SHARED.contains(&kind) || ["fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"].contains(&kind)
}

fn file_system(kind: Option<&str>) -> Finding {
    let check = "file-system";
    match kind {
        None => finding(check, Severity::Note, "cannot be told", "it must be local: not NFS, SMB, 9p or virtiofs"),
        Some(kind) if is_shared(kind) => finding(
            check,
            Severity::Problem,
            format!("{kind}: locks and shared memory do not reach every process that opens the database"),
            "put the database on a local disk: SQLite in WAL mode corrupts it otherwise",
        ),
        Some("overlay") => finding(
            check,
            Severity::Warning,
            "overlay: the database goes with its container, and the first write copies the file",
            "put it on a volume",
        ),
        Some(kind @ ("tmpfs" | "ramfs")) => {
            finding(check, Severity::Warning, format!("{kind}: it is gone after a reboot"), "put it on a disk")
        }
        Some(kind) if kind.starts_with("fuse") => finding(
            check,
            Severity::Warning,
            format!("{kind}: whether its locks and shared memory are right depends on its author"),
            "put the database on a local disk",
        ),
        Some(kind) => ok(check, kind),
    }
}

fn wal(bytes: Option<u64>) -> Option<Finding> {
    let bytes = bytes?;
    if bytes < WAL_BYTES_LARGE {
        return Some(ok("wal", format!("{bytes} bytes")));
    }
    let text = format!("{} MiB: checkpoints do not get through", bytes >> 20);
    Some(finding("wal", Severity::Warning, text, "look for a reader that never ends its transaction"))
}

fn journal(facts: &Facts) -> Option<Finding> {
    let bytes = facts.journal_bytes?;
    if !facts.holders.is_empty() {
        let text = format!("{bytes} bytes: a transaction is under way, or was left by one of the holders");
        return Some(finding("journal", Severity::Note, text, "nothing, unless it stays"));
    }
    let text = format!("{bytes} bytes, and nobody has the database open: a transaction was not finished");
    let advice = "never delete it: the next SQLite that opens the database rolls back with it";
    Some(finding("journal", Severity::Warning, text, advice))
}

fn holders(facts: &Facts) -> Finding {
    if !facts.shows_processes {
        return finding("holders", Severity::Note, "cannot be seen on this system", "lsof shows who has the file open");
    }
    let hidden = match facts.hidden_processes {
        0 => String::new(),
        n => format!("; {n} processes of other users cannot be looked into"),
    };
    let names: Vec<String> = facts.holders.iter().map(|h| format!("{} ({})", h.name, h.pid)).collect();
    if !names.is_empty() {
        return ok("holders", format!("open in {}{hidden}", names.join(", ")));
    }
    match facts.hidden_processes {
        0 => ok("holders", "nobody has it open"),
        _ => finding("holders", Severity::Note, format!("nobody is seen{hidden}"), "run as root to see all"),
    }
}

fn mapped(facts: &Facts) -> Option<Finding> {
    let holder = facts.holders.iter().find(|h| h.maps_database)?;
    let text = format!("{} ({}) maps the database into memory (mmap_size)", holder.name, holder.pid);
    let advice = "an I/O error then ends the process instead of the statement: mmap_size=0 is safer";
    Some(finding("mmap", Severity::Note, text, advice))
}

fn elsewhere(facts: &Facts) -> Option<Finding> {
    let holder = facts.holders.iter().find(|h| h.is_elsewhere)?;
    let text = format!("{} ({}) has it open from another container", holder.name, holder.pid);
    let advice = "share the folder, not the single file, and let both see -wal and -shm";
    Some(finding("container", Severity::Note, text, advice))
}

fn deleted(facts: &Facts) -> Option<Finding> {
    let holder = facts.holders.iter().find(|h| h.holds_deleted)?;
    let text = format!("{} ({}) still writes to a deleted file of this name", holder.name, holder.pid);
    let advice = "restart it: what it commits is lost when it ends";
    Some(finding("deleted-file", Severity::Problem, text, advice))
}

fn locks(facts: &Facts) -> Option<Finding> {
    let waiting = facts.locks.iter().find(|lock| lock.is_waiting);
    if let Some(lock) = waiting {
        let text = format!("process {} waits for a lock on {}", lock.pid, lock.file);
        return Some(finding(
            "locks",
            Severity::Note,
            text,
            "look again: a lock that is held for long holds up every writer",
        ));
    }
    let mut pids: Vec<u32> = facts.locks.iter().map(|lock| lock.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    (!pids.is_empty()).then(|| ok("locks", format!("held by process {}", pids.join(", "))))
}

fn hard_links(facts: &Facts) -> Option<Finding> {
    (facts.hard_links > 1).then(|| {
        let text = format!("the file has {} names", facts.hard_links);
        let advice = "use one name: by another, SQLite looks for another -wal and -journal, and corrupts it";
        finding("hard-links", Severity::Problem, text, advice)
    })
}

fn free(bytes: Option<u64>) -> Option<Finding> {
    let bytes = bytes?;
    let text = format!("{} MiB", bytes >> 20);
    Some(match bytes {
        0..FREE_BYTES_PROBLEM => finding("free-space", Severity::Problem, text, "make room: commits are about to fail"),
        FREE_BYTES_PROBLEM..FREE_BYTES_WARNING => {
            let advice = "make room, or lower max-log-size: the local log grows while the store is away";
            finding("free-space", Severity::Warning, text, advice)
        }
        _ => ok("free-space", text),
    })
}

fn permissions(facts: &Facts) -> Finding {
    if let Some(first) = facts.denied.first() {
        let more =
            if facts.denied.len() > 1 { format!(" (and {} more)", facts.denied.len() - 1) } else { String::new() };
        let advice = "run Rhyolite as the user that owns the database";
        return finding("permissions", Severity::Problem, format!("{first}{more}"), advice);
    }
    if let Some(first) = facts.other_owner.first() {
        let advice = "give all files of the database to one user: the application may not be able to open it";
        return finding(
            "permissions",
            Severity::Warning,
            format!("{first} belongs to another user than the database"),
            advice,
        );
    }
    ok("permissions", "files and folder can be read and written")
}

fn inotify(facts: &Facts) -> Finding {
    let check = "inotify";
    match (facts.inotify, facts.inotify_watches_max) {
        (Some((used, max)), _) if used * 10 >= max * 9 => {
            let text = format!("{used} of {max} instances are in use");
            finding(check, Severity::Warning, text, "raise fs.inotify.max_user_instances")
        }
        (_, Some(max)) if max < WATCHES_FEW => {
            let text = format!("at most {max} files can be watched");
            finding(check, Severity::Note, text, "raise fs.inotify.max_user_watches to watch many databases")
        }
        (Some((used, max)), Some(watches)) => {
            ok(check, format!("{used} of {max} instances in use, {watches} watches allowed"))
        }
        _ => finding(check, Severity::Note, "not known on this system", "databases are looked at by time instead"),
    }
}

fn state(state: &StateFolder) -> Finding {
    if !state.exists {
        return finding(
            "state-folder",
            Severity::Note,
            "there is none: never replicated from here",
            "rhyolite replicate",
        );
    }
    match state.damage.first() {
        None => ok("state-folder", format!("sound, local log {} bytes", state.log_bytes)),
        Some(first) => {
            let advice = "nothing needs to be done: the next start compares the database with the store";
            finding("state-folder", Severity::Warning, first.clone(), advice)
        }
    }
}

fn store(store: &StoreFacts) -> Vec<Finding> {
    let check = "store";
    let (is_ours, skew, ahead) = match store {
        StoreFacts::NotGiven => return Vec::new(),
        StoreFacts::Unreachable(why) => {
            let advice = "check address, credentials and network";
            return vec![finding(check, Severity::Problem, format!("does not answer: {why}"), advice)];
        }
        StoreFacts::Empty => return vec![finding(check, Severity::Note, "holds no backup", "rhyolite replicate")],
        StoreFacts::Holds { is_ours, skew_ms, ahead_of_us_ms } => (is_ours, skew_ms, ahead_of_us_ms),
    };
    let mut findings = vec![match is_ours {
        Some(false) => finding(
            check,
            Severity::Problem,
            "holds the history of another database than the state folder",
            "give this database a prefix of its own",
        ),
        Some(true) => ok(check, "holds this database's history"),
        None => ok(check, "answers, and holds a backup"),
    }];
    let off = [skew, ahead].into_iter().flatten().map(|ms| ms.unsigned_abs()).max();
    findings.extend(off.map(|ms| {
        let text = format!("{} s apart from the store's", ms / 1000);
        if u128::from(ms) > SKEW_MAX.as_millis() {
            let advice = "set the clock (NTP): a restore to a time would give another state than the one that is meant";
            finding("clock", Severity::Warning, text, advice)
        } else {
            ok("clock", text)
        }
    }));
    findings
}

#[cfg(test)]
mod tests;
