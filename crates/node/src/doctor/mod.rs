//! Looks at the surroundings of a database, so that `rhyolite_logic::doctor` can say what is good and bad about them.
//!
//! It only looks: nothing is written, SQLite is never opened (it would take locks, and create `-shm`), and no lock is taken or tried. The
//! process holds no lock of its own on any of the files, so closing them drops nobody's. It must therefore not be called
//! from a process that replicates.

mod processes;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhyolite_format::identity::Identity;
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::state::{LocalState, page_table};
use rhyolite_format::{Lineage, keys};
use rhyolite_logic::doctor::{DatabaseFile, Facts, Header, StateFolder, StoreFacts};
use rhyolite_store::{Store, StoreErrorKind};
use rustix::fs::{Access, access, statvfs};

use crate::capture::restart::{LOG_FOLDER, STATE_FILE, TABLE_FILE};
use crate::config::io_text;
use crate::{manifest_swap, time};

/// Largest page table that is read whole.
const TABLE_BYTES_MAX: u64 = 256 << 20;

/// The files of a database.
#[derive(Clone, Debug)]
struct Files {
    database: PathBuf,
    wal: PathBuf,
    shm: PathBuf,
    journal: PathBuf,
}

impl Files {
    fn new(database: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (wal, shm, journal) = (beside("-wal"), beside("-shm"), beside("-journal"));
        Self { database: database.to_owned(), wal, shm, journal }
    }

    fn folder(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }
}

/// Looks at everything. Must run in a Tokio runtime.
pub async fn look(database: &Path, meta_path: &Path, store: Option<Arc<dyn Store>>) -> Facts {
    let files = Files::new(database);
    let (state, lineage) = state_folder(meta_path);
    let store = match store {
        None => StoreFacts::NotGiven,
        Some(store) => look_at_store(&*store, lineage).await,
    };
    let seen = processes::look(&files);
    let file = fs::metadata(&files.database);
    Facts {
        database: database_file(&files.database),
        hard_links: file.as_ref().map_or(1, MetadataExt::nlink),
        file_system: file_system(files.folder()),
        wal_bytes: fs::metadata(&files.wal).ok().map(|meta| meta.len()),
        journal_bytes: journal_bytes(&files.journal),
        shows_processes: seen.is_some(),
        hidden_processes: seen.as_ref().map_or(0, |seen| seen.hidden),
        inotify: seen.as_ref().and_then(|seen| Some((seen.inotify, inotify_limit("max_user_instances")?))),
        holders: seen.map(|seen| seen.holders).unwrap_or_default(),
        locks: processes::locks(&files),
        free_bytes: statvfs(files.folder()).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
        denied: denied(&files, meta_path),
        other_owner: other_owner(&files),
        inotify_watches_max: inotify_limit("max_user_watches"),
        linked_sqlite: u32::try_from(rusqlite::version_number()).unwrap_or(0),
        state,
        store,
    }
}

fn database_file(path: &Path) -> DatabaseFile {
    let mut start = Vec::with_capacity(DATABASE_HEADER_SIZE);
    let read = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return DatabaseFile::Foreign("it is not a file".to_owned()),
        Ok(_) => File::open(path).and_then(|f| f.take(DATABASE_HEADER_SIZE as u64).read_to_end(&mut start)),
        Err(error) => Err(error),
    };
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => DatabaseFile::Missing,
        Err(e) => DatabaseFile::Unreadable(io_text(&e)),
        Ok(0) => DatabaseFile::Empty,
        Ok(_) => match DatabaseHeader::decode(&start) {
            Ok(header) => {
                DatabaseFile::Sound(Header { is_wal: header.read_version == 2, sqlite_version: header.sqlite_version })
            }
            Err(e) => DatabaseFile::Foreign(e.to_string()),
        },
    }
}

/// Size of a rollback journal that may have to be rolled back: its header is there.
fn journal_bytes(path: &Path) -> Option<u64> {
    let mut magic = [0; 8];
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut magic).ok()?;
    let len = file.metadata().ok()?.len();
    // A journal that is kept for the next transaction has zeros here.
    (magic != [0; 8]).then_some(len)
}

/// Type of the file system in the mount table: that of the longest mount point above the folder, the last of them if several.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut best: Option<(usize, String)> = None;
    for line in table.lines() {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let kind = kind.split(' ').next()?;
        let len = point.len();
        if folder.starts_with(&point) && best.as_ref().is_none_or(|(longest, _)| *longest <= len) {
            best = Some((len, kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

fn inotify_limit(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

/// What this user may not do but replication has to.
fn denied(files: &Files, meta_path: &Path) -> Vec<String> {
    let mut denied = Vec::new();
    let mut check = |path: &Path, how: Access, verb: &str| {
        if path.exists() && access(path, how).is_err() {
            denied.push(format!("{} cannot be {verb}", path.display()));
        }
    };
    let both = Access::READ_OK | Access::WRITE_OK;
    check(&files.database, Access::READ_OK, "read");
    check(&files.database, Access::WRITE_OK, "written, which SQLite needs for locks and checkpoints");
    check(&files.wal, both, "read and written");
    check(&files.shm, both, "read and written");
    check(files.folder(), both | Access::EXEC_OK, "read and written");
    check(meta_path, both | Access::EXEC_OK, "read and written");
    denied
}

fn other_owner(files: &Files) -> Vec<String> {
    let owner = |path: &Path| fs::metadata(path).ok().map(|meta| meta.uid());
    let Some(of_database) = owner(&files.database) else { return Vec::new() };
    let beside = [&files.wal, &files.shm, &files.journal];
    let foreign = beside.into_iter().filter(|path| owner(path).is_some_and(|uid| uid != of_database));
    foreign.map(|path| path.display().to_string()).collect()
}

/// The state folder, and the history that it belongs to. A daemon may be writing it: what does not decode is read once more.
fn state_folder(meta_path: &Path) -> (StateFolder, Option<Lineage>) {
    let mut state = StateFolder { exists: meta_path.is_dir(), ..StateFolder::default() };
    if !state.exists {
        return (state, None);
    }
    let log = fs::read_dir(meta_path.join(LOG_FOLDER)).into_iter().flatten().flatten();
    state.log_bytes = log.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
    let decoded = twice(|| read_state(&meta_path.join(STATE_FILE)));
    let table = twice(|| read_table(&meta_path.join(TABLE_FILE)));
    let lineage = decoded.as_ref().ok().copied().flatten();
    state.damage.extend(decoded.err().map(|e| format!("state file: {e}")));
    state.damage.extend(table.err().map(|e| format!("page table: {e}")));
    (state, lineage)
}

fn twice<T>(read: impl Fn() -> Result<T, String>) -> Result<T, String> {
    read().or_else(|_| read())
}

fn read_state(path: &Path) -> Result<Option<Lineage>, String> {
    match fs::read(path) {
        // Nothing was captured yet.
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => LocalState::decode(&bytes).map(|state| Some(state.lineage)).map_err(|e| e.to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_text(&e)),
    }
}

fn read_table(path: &Path) -> Result<(), String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_text(&e)),
    };
    if file.metadata().is_ok_and(|meta| meta.len() > TABLE_BYTES_MAX) {
        return Ok(());
    }
    page_table::read(BufReader::new(file)).map(|_| ()).map_err(|e| e.to_string())
}

async fn look_at_store(store: &dyn Store, lineage: Option<Lineage>) -> StoreFacts {
    let identity = match store.get(keys::ID).await {
        Ok(object) => Identity::decode(&object.bytes),
        Err(e) if e.kind == StoreErrorKind::NotFound => return StoreFacts::Empty,
        Err(e) => return StoreFacts::Unreachable(e.to_string()),
    };
    let identity = match identity {
        Ok(identity) => identity,
        Err(e) => return StoreFacts::Unreachable(format!("id.json is damaged: {e}")),
    };
    let written = store.head(keys::MANIFEST).await.ok().and_then(|meta| meta.modified);
    let updated = manifest_swap::read(store).await.ok().flatten().map(|(manifest, _)| manifest.updated);
    let apart = |a: i64, b: i64| a.saturating_sub(b);
    StoreFacts::Holds {
        is_ours: lineage.map(|lineage| lineage == identity.lineage),
        skew_ms: written.zip(updated).map(|(written, updated)| apart(updated.0, written.0)),
        ahead_of_us_ms: written.map(|written| apart(written.0, time::now().0)).filter(|ms| *ms > 0),
    }
}
