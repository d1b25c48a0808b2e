//! Makes a file that is not what was followed one that is: that of a node which was the primary, that of a replica which has commits that the
//! history lacks, and one that somebody has written to.
//!
//! ```text
//!   any file ──► SQLite's own recovery ──► nobody else has it open ──► checksum of the whole ──► is it a state of the history?
//!                                                                                  yes │        │ no
//!                       state folder emptied ◄── state of a follower beside it ◄───────┘        ▼
//!                                                       ▲────────────────────── a copy in `lost`, on the disk
//! ```
//!
//! Order: what may be lost is on the disk before anything is changed, and the file is changed in place, through a journal. A crash at any point
//! leaves a file for which all of this can be done again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::follow::{FollowEnd, PageOneFields};
use rhyolite_format::lost::{LostBranch, REASON_SIZE_MAX};
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::state::LocalState;
use rhyolite_format::{Checksum, Epoch, Format1, Lineage, PageCount, Pos, Txid};
use rhyolite_logic::branch::{Local, Verdict, judge};
use rhyolite_logic::restore_plan::{PlanError, points};

use super::apply::{self, Follower, wait};
use super::lock::{Busy, Locks};
use super::sums::{PageSums, page_sums};
use super::{FollowOptions, Following, ReplicaJournal, lost, replica};
use crate::capture::restart;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::draft::{beside, sync_folder_of};
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, blocking};
use crate::{park, time};

/// How long SQLite waits for the locks of others when it recovers a file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a file that others have open is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What a file has become.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It follows, from a state of the history.
    Joined,
    /// It follows, from a state that the history lacks: it is to be rewritten.
    Astray,
    /// It was no database, and is gone from its place.
    Gone,
}

/// The history that a file is compared with.
struct History {
    lineage: Lineage,
    points: Vec<Pos>,
}

/// Makes the file of `options` one that follows, at a state of the history. What the history lacks is kept first; `reason` says why it was looked for.
/// `false` when others have the file open: nothing has changed then, or only what is done again. On a mount the file is taken from them, with `whole` also from those who may only
/// read it.
pub(super) async fn rejoin(
    options: &FollowOptions,
    meta_path: &Path,
    reason: &str,
    whole: bool,
) -> Result<bool, RestoreError> {
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    match take(options, &reader, meta_path, reason, whole).await? {
        Err(Busy) => Ok(false),
        Ok(Taken::Joined | Taken::Gone) => Ok(true),
        Ok(Taken::Astray) => {
            let (path, journal) = (options.output.clone(), options.journal);
            let follower = Some(blocking(move || Follower::open(&path, journal)).await?);
            let mut following = Following { options: options.clone(), reader, follower, log: None };
            following.rewrite().await
        }
    }
}

/// The same of a file that is not rewritten by this, should the history lack what it is.
pub(super) async fn take(
    options: &FollowOptions,
    reader: &Arc<Reader>,
    meta_path: &Path,
    reason: &str,
    whole: bool,
) -> Result<Result<Taken, Busy>, RestoreError> {
    let catalog = Catalog::load(reader, None, OnDamage::Refuse).await?;
    // Also those within bundles: a file may have been left at any commit.
    let known = match catalog.positions(reader).await {
        Err(error @ RestoreError::Damaged { .. }) => {
            tracing::warn!("what bundles hold is not all known, and may be kept as a lost branch: {error}");
            points(&catalog.manifest, &catalog.log, &[]).map_err(PlanError::from)?.iter().map(|p| p.pos).collect()
        }
        known => known?,
    };
    let history = History { lineage: catalog.identity.lineage, points: known };
    let (output, meta, why) = (options.output.clone(), meta_path.to_owned(), reason.to_owned());
    let (timeout, mount) = (options.lock_timeout, options.mount.clone());
    let take = move || {
        let alone = mount.map(|mount| mount.alone_with(&output, whole)).transpose();
        let _alone = alone.map_err(|e| RestoreError::io("take from others", &output, e))?;
        take_in(&output, &meta, &history, &why, timeout)
    };
    blocking(take).await
}

/// The pause after [`rejoin`] was kept waiting.
pub(super) async fn pause() {
    tokio::time::sleep(BUSY_PAUSE).await;
}

fn take_in(
    path: &Path,
    meta_path: &Path,
    history: &History,
    reason: &str,
    timeout: Duration,
) -> Result<Result<Taken, Busy>, RestoreError> {
    let opened = Follower::open(path, ReplicaJournal::Rollback);
    if opened.as_ref().is_err_and(super::live::is_passing) {
        return Ok(Err(Busy));
    }
    if let Ok(mut follower) = opened
        && !follower.is_lost()
    {
        // What is kept is the file alone: nothing of it may lie in a WAL.
        if follower.leave_wal(timeout)?.is_err() {
            return Ok(Err(Busy));
        }
        return take_in_follower(&mut follower, path, meta_path, history, reason).map(Ok);
    }
    let failed = |e| RestoreError::io("open", path, e);
    if !path.try_exists().map_err(failed)? {
        return set_rest_aside(path, meta_path, reason).map(Ok);
    }
    if !is_database(path).map_err(failed)? {
        return set_file_aside(path, meta_path, reason).map(Ok);
    }
    if !recover(path)? {
        return Ok(Err(Busy));
    }
    let file = Arc::new(OpenOptions::new().read(true).write(true).open(path).map_err(failed)?);
    let deadline = Instant::now() + timeout;
    let Ok(locks) = wait(deadline, || Locks::reserve(&file)).map_err(failed)? else { return Ok(Err(Busy)) };
    if wait(deadline, || locks.exclude_readers()).map_err(failed)?.is_err() {
        return Ok(Err(Busy));
    }
    // With `journal_mode` PERSIST or TRUNCATE it stays between transactions. Nobody is in one.
    apply::remove_cold(&apply::journal_path(path))?;
    // Somebody may have written since it was recovered.
    let wal = beside(path, "-wal");
    if std::fs::metadata(&wal).is_ok_and(|meta| meta.len() > 0) || apply::journal_path(path).exists() {
        return Ok(Err(Busy));
    }
    if let Some((end, sums)) = unwritten(&file, path, history.lineage)? {
        Follower::begin(Arc::clone(&file), path, history.lineage, end, sums, &locks)?;
        remove_companions(path)?;
        empty_state_folder(meta_path)?;
        return Ok(Ok(Taken::Joined));
    }
    let Some((end, sums)) = measure(&file, path)? else { return set_file_aside(path, meta_path, reason).map(Ok) };
    let noted = noted(meta_path);
    let durable = noted.as_ref().and_then(|state| state.durable);
    let local = Local { checksum: sums.checksum, lineage: noted.as_ref().map(|state| state.lineage), durable };
    let verdict = judge(&local, history.lineage, history.points.iter().copied());
    let (pos, taken) = match verdict {
        Verdict::Known(pos) => (pos, Taken::Joined),
        Verdict::Lost => {
            let txid = noted.as_ref().and_then(|state| state.pos).map(|pos| pos.txid);
            let known = (local.lineage, txid, noted.as_ref().map(|state| state.epoch));
            let pos = Pos { txid: txid.unwrap_or(Txid::FIRST), checksum: sums.checksum };
            keep(meta_path, &file, path, None, &FollowEnd { pos, ..end }, known, reason)?;
            (pos, Taken::Astray)
        }
    };
    Follower::begin(Arc::clone(&file), path, history.lineage, FollowEnd { pos, ..end }, sums, &locks)?;
    remove_companions(path)?;
    empty_state_folder(meta_path)?;
    Ok(Ok(taken))
}

/// Nobody has the file open, and nothing is in them.
fn remove_companions(path: &Path) -> Result<(), RestoreError> {
    ["-wal", "-shm"].into_iter().try_for_each(|suffix| super::remove(&beside(path, suffix)))
}

/// A file that was given to whoever writes to it, which nobody has done since.
fn unwritten(file: &File, path: &Path, lineage: Lineage) -> Result<Option<(FollowEnd, PageSums)>, RestoreError> {
    let Some(state) = replica::released(path).filter(|state| state.lineage == lineage) else { return Ok(None) };
    let sums = replica::still_released(file, path, &state.after)?;
    Ok(sums.map(|sums| (state.after, sums)))
}

/// A file that follows already, and is at the state that it was left at.
fn take_in_follower(
    follower: &mut Follower,
    path: &Path,
    meta_path: &Path,
    history: &History,
    reason: &str,
) -> Result<Taken, RestoreError> {
    let (end, lineage) = (follower.end, follower.lineage());
    let local = Local { checksum: end.pos.checksum, lineage: Some(lineage), durable: None };
    empty_state_folder(meta_path)?;
    match judge(&local, history.lineage, history.points.iter().copied()) {
        Verdict::Known(pos) if pos == end.pos => Ok(Taken::Joined),
        Verdict::Known(pos) => {
            follower.stay_at(FollowEnd { pos, ..end }, lineage)?;
            Ok(Taken::Joined)
        }
        Verdict::Lost => {
            let known = (Some(lineage), Some(end.pos.txid), None);
            keep(meta_path, &follower.file(), path, Some(&end.page_one), &end, known, reason)?;
            follower.stay_at(end, history.lineage)?;
            Ok(Taken::Astray)
        }
    }
}

/// Keeps a copy of a state that the history lacks.
fn keep(
    meta_path: &Path,
    file: &File,
    path: &Path,
    page_one: Option<&PageOneFields>,
    end: &FollowEnd,
    (lineage, txid, epoch): (Option<Lineage>, Option<Txid>, Option<Epoch>),
    reason: &str,
) -> Result<(), RestoreError> {
    if end.commit.get() == 0 {
        return Ok(());
    }
    let (checksum, size) = (Some(end.pos.checksum), end.commit.bytes(end.page_size));
    let branch = LostBranch { lineage, txid, epoch, checksum, size, ..unknown(reason) };
    let kept = lost::keep(meta_path, file, page_one.map(|fields| (end, fields)), &branch)?;
    tracing::warn!(
        database = %path.display(),
        "its state, {}, is none of the history ({reason}): kept in {}, see `rhyolite branch list`",
        end.pos.checksum,
        kept.display()
    );
    Ok(())
}

/// What is known of a file that says nothing.
fn unknown(reason: &str) -> LostBranch {
    let reason = reason.chars().filter(|c| !c.is_control()).take(REASON_SIZE_MAX / 4).collect();
    LostBranch {
        format: Format1,
        time: time::now(),
        reason,
        lineage: None,
        txid: None,
        epoch: None,
        checksum: None,
        size: 0,
    }
}

/// Takes a file that is no database from its place; an empty one, which SQLite takes for a database without content, is removed.
fn set_file_aside(path: &Path, meta_path: &Path, reason: &str) -> Result<Taken, RestoreError> {
    let size = std::fs::metadata(path).map_err(|e| RestoreError::io("read", path, e))?.len();
    if size == 0 {
        super::remove(path)?;
    } else {
        let kept = lost::move_away(meta_path, path, &LostBranch { size, ..unknown(reason) })?;
        tracing::warn!(database = %path.display(), "it was no database ({reason}): moved to {}", kept.display());
    }
    set_rest_aside(path, meta_path, reason)
}

/// Takes what lies beside a database that is not there from its place. A WAL or a journal that holds something is kept: it may be all that is left of
/// commits that nobody else has.
fn set_rest_aside(path: &Path, meta_path: &Path, reason: &str) -> Result<Taken, RestoreError> {
    for suffix in ["-wal", "-journal"] {
        let companion = beside(path, suffix);
        let size = std::fs::metadata(&companion).map_or(0, |meta| meta.len());
        if size == 0 {
            super::remove(&companion)?;
            continue;
        }
        let why = format!("its {suffix} file, without the database: {reason}");
        let kept = lost::move_away(meta_path, &companion, &LostBranch { size, ..unknown(&why) })?;
        tracing::warn!(database = %path.display(), "{suffix} without its database: moved to {}", kept.display());
    }
    for left in [beside(path, "-shm"), apply::state_path(path), apply::pos_path(path)] {
        super::remove(&left)?;
    }
    empty_state_folder(meta_path)?;
    sync_folder_of(path)?;
    Ok(Taken::Gone)
}

fn is_database(path: &Path) -> io::Result<bool> {
    let mut header = [0; DATABASE_HEADER_SIZE];
    match File::open(path)?.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(DatabaseHeader::decode(&header).is_ok()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets SQLite roll back what was not committed, and put what was into the file. `false` when others do not let it.
pub(super) fn recover(path: &Path) -> Result<bool, RestoreError> {
    let recover = || -> rusqlite::Result<bool> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = rusqlite::Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        let _: i64 = db.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
        let busy: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(busy == 0)
    };
    match replica::with_sqlite(recover) {
        Ok(done) => Ok(done),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(false),
        Err(error) => Err(RestoreError::io("recover", path, io::Error::other(error))),
    }
}

/// What the database in a file adds up to, after SQLite has recovered it; `None` when it is none. Nobody else may have it open.
///
/// # Errors
/// It cannot be read, or others hold it up.
pub(crate) fn measured(path: &Path) -> Result<Option<Checksum>, RestoreError> {
    let failed = |e| RestoreError::io("read", path, e);
    if !is_database(path).map_err(failed)? {
        return Ok(None);
    }
    if !recover(path)? {
        return Err(failed(io::Error::other("others have it open")));
    }
    let file = File::open(path).map_err(failed)?;
    Ok(measure(&file, path)?.map(|(_, sums)| sums.checksum))
}

/// What the file is; `None` when it is no database of whole pages. The position is for the caller to find.
fn measure(file: &File, path: &Path) -> Result<Option<(FollowEnd, PageSums)>, RestoreError> {
    let failed = |e| RestoreError::io("read", path, e);
    let len = file.metadata().map_err(failed)?.len();
    let mut header = [0; DATABASE_HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(failed)?;
    let Ok(DatabaseHeader { page_size, .. }) = DatabaseHeader::decode(&header) else { return Ok(None) };
    let Ok(pages) = u32::try_from(len / page_size.bytes() as u64) else { return Ok(None) };
    let commit = PageCount(pages);
    if commit.bytes(page_size) != len {
        return Ok(None);
    }
    let sums = page_sums(file, path, (page_size, commit), None)?;
    let pos = Pos { txid: Txid::FIRST, checksum: sums.checksum };
    Ok(Some((FollowEnd { pos, page_size, commit, page_one: PageOneFields::of(&header) }, sums)))
}

/// What whoever captured the database last has noted of it.
fn noted(meta_path: &Path) -> Option<LocalState> {
    LocalState::decode(&std::fs::read(meta_path.join(restart::STATE_FILE)).ok()?).ok()
}

/// What was captured here is in the history, or kept: the next capture begins with what the store has.
fn empty_state_folder(meta_path: &Path) -> Result<(), RestoreError> {
    let emptied = restart::clear(meta_path).and_then(|()| park::forget(meta_path));
    emptied.map_err(|e| RestoreError::io("empty the state folder", meta_path, e))
}

/// Why a file is brought back, for people.
pub(super) fn reason(error: &RestoreError) -> String {
    match error {
        RestoreError::Exists { .. } | RestoreError::Companion { .. } => {
            "it was written here, by a former primary or by somebody else".to_owned()
        }
        error => error.to_string(),
    }
}

/// Whether an error says that the file is not one of the history, and not that something is out of reach.
pub(super) fn is_astray(error: &RestoreError, path: &Path) -> bool {
    let state: PathBuf = apply::state_path(path);
    match error {
        RestoreError::Diverged { .. }
        | RestoreError::WrongChecksum { .. }
        | RestoreError::WrongLineage { .. }
        | RestoreError::Exists { .. }
        | RestoreError::Companion { .. } => true,
        RestoreError::Contradiction { key, .. } => key == apply::BATCH,
        RestoreError::Damaged { key, .. } => *key == state.display().to_string(),
        RestoreError::Io { path, source, .. } => *path == state && source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_without_its_database_is_kept_and_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let (path, meta) = (folder.path().join("app.db"), folder.path().join("meta"));
        std::fs::create_dir(&meta).unwrap();
        let write = |suffix: &str, bytes: &[u8]| std::fs::write(beside(&path, suffix), bytes).unwrap();
        write("-wal", b"all that is left");
        write("-shm", b"index");
        write("-journal", b"");
        let history = History { lineage: Lineage([1; 16]), points: Vec::new() };
        let taken = take_in(&path, &meta, &history, "for a test", Duration::ZERO).unwrap();
        assert!(matches!(taken, Ok(Taken::Gone)), "{taken:?}");
        for suffix in ["-wal", "-shm", "-journal"] {
            assert!(!beside(&path, suffix).exists(), "{suffix}");
        }
        let kept =
            std::fs::read_dir(meta.join("lost")).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        assert!(kept.into_iter().any(|bytes| bytes == b"all that is left"));
    }

    /// A file that follows, in a folder below `folder`.
    fn following(folder: &Path) -> (PathBuf, Arc<File>, FollowEnd) {
        let path = folder.join("below").join("app.db");
        std::fs::create_dir(folder.join("below")).unwrap();
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t(b)").unwrap();
        for _ in 0..40 {
            db.execute("INSERT INTO t VALUES (randomblob(3000))", []).unwrap();
        }
        db.close().unwrap();
        let file = Arc::new(File::options().read(true).write(true).open(&path).unwrap());
        let (end, sums) = measure(&file, &path).unwrap().unwrap();
        let locks = Locks::reserve(&file).unwrap().unwrap_or_else(|_| panic!("nobody else is there"));
        Follower::begin(Arc::clone(&file), &path, Lineage([1; 16]), end, sums, &locks).unwrap();
        drop(locks);
        (path, file, end)
    }

    #[test]
    fn what_a_killed_process_has_half_applied_is_taken_back_when_a_node_begins() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file, end) = following(folder.path());
        let db = rusqlite::Connection::open(&path).unwrap();
        // So small a cache writes into the file before the transaction ends, which is how a killed process leaves it.
        db.execute_batch("PRAGMA cache_size = 5; BEGIN; UPDATE t SET b = randomblob(3000)").unwrap();
        let journal = apply::journal_path(&path);
        let left = (std::fs::read(&path).unwrap(), std::fs::read(&journal).unwrap());
        db.execute_batch("ROLLBACK").unwrap();
        db.close().unwrap();
        std::fs::write(&path, &left.0).unwrap();
        std::fs::write(&journal, &left.1).unwrap();
        assert!(replica::still_released(&file, &path, &end).unwrap().is_none(), "half of it is in the file");
        assert_eq!(replica::look(&path, replica::For::Own).unwrap(), replica::Found::Unknown);
        replica::recover(folder.path(), 0);
        assert!(!journal.exists());
        assert!(replica::still_released(&file, &path, &end).unwrap().is_some(), "it is what it was");
        let found = replica::look(&path, replica::For::Own).unwrap();
        assert!(matches!(found, replica::Found::Held(found) if found.end.pos == end.pos), "{found:?}");
    }

    /// Whoever looks closes a descriptor in the end, and with it go the locks that SQLite has on the file in this process.
    #[test]
    fn nobody_looks_at_a_file_while_sqlite_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let (path, ..) = following(folder.path());
        let (is_done, (began, begins)) = (std::sync::atomic::AtomicBool::new(false), std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                replica::with_sqlite(|| {
                    began.send(()).unwrap();
                    std::thread::sleep(Duration::from_millis(300));
                    is_done.store(true, std::sync::atomic::Ordering::SeqCst);
                });
            });
            begins.recv().unwrap();
            replica::look(&path, replica::For::Own).unwrap();
            assert!(is_done.load(std::sync::atomic::Ordering::SeqCst), "it was looked at meanwhile");
        });
    }
}
