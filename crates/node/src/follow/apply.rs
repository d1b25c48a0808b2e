//! Changes a plain database file: all of a batch or nothing, whatever happens in between.
//!
//! In WAL mode SQLite does it ([`WalWriter`]), after the two states in which the file may be were written beside it. Where that cannot be, for an empty database or
//! another page size, and in rollback mode, it is done as SQLite in rollback mode would do it. Order of a batch then:
//! 1. Which two states the file may be in is written beside it (`NAME-rhyolite-follow`) and synced.
//! 2. SHARED and RESERVED: readers go on, nobody else writes. Nobody has written since the last batch, or the file is given up.
//! 3. The pages as they are go into a rollback journal, which is synced. From here on a crash leaves a hot journal.
//! 4. PENDING and EXCLUSIVE: readers have ended. If they do not in time, the journal is removed and the batch waits.
//! 5. Pages and length are changed and synced.
//! 6. The journal is unlinked and the folder synced: this is the commit. Then the locks go.
//!
//! Page 1 is part of every batch then, because its change counter tells readers to drop what they have cached. It differs from the
//! log's page 1 in some bytes (docs/spec/follow.md); checksums are always those of the log's page 1.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::follow::{FollowEnd, FollowState, PageOneFields};
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::sqlite::journal_writer::{JOURNAL_HEADER_BYTES, JournalWriter};
use rhyolite_format::{Checksum, Lineage, PageCount, PageNumber, PageSize, Pos};

use super::ReplicaJournal;
use super::aside::{self, InUse};
use super::lock::{Busy, Locks};
use super::state_file::{StateFile, replace};
use super::sums::{PageSums, Summing, page_sums};
use super::wal::{Switched, WalWriter};
use super::{preview, replica};
use crate::capture::restart::boot_id;
use crate::random;
use crate::restore::RestoreError;
use crate::restore::draft::{beside, sync_folder_of};

/// Between two looks whether readers have ended: at first, when a single read is nearly over, and later.
const LOCK_POLL: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));
/// How long readers of a file that is opened are waited for, so that it comes into WAL mode: until then nobody writes to it by transparent forwarding, and the primary may be quiet for long.
const ENTER_WAL_MAX: Duration = Duration::from_millis(500);
/// What contradicts a file that it does not lead on from.
pub(super) const BATCH: &str = "a batch";
/// How long whoever writes to a file is waited for when it is opened.
const TAKE_BACK_MAX: Duration = Duration::from_secs(5);
/// Journal records that are written at once, in bytes.
const JOURNAL_WRITE_BYTES: usize = 256 << 10;

/// A database file that nobody but this writes to.
#[derive(Debug)]
pub(super) struct Follower {
    /// While the file is in WAL mode. It goes before the file: closing any descriptor of a file drops all of SQLite's locks on it.
    wal: Option<WalWriter>,
    journal: ReplicaJournal,
    /// Nobody knows at which position the file is: everything is to be written anew.
    is_lost: bool,
    file: Arc<File>,
    path: PathBuf,
    lineage: Lineage,
    /// What the file is.
    pub(super) end: FollowEnd,
    /// Checksum of each page as the log has it; 0 for the lock page. 8 bytes per page.
    table: Vec<u64>,
    change_counter: u32,
    state: StateFile,
    /// It is closed after everything else is.
    _in_use: InUse,
}

/// What a file was when it ceased to be followed.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) lineage: Lineage,
    pub(crate) pos: Pos,
    pub(crate) page_size: PageSize,
    pub(crate) commit: PageCount,
    /// Checksum of each page as the log has it; 0 for the lock page.
    pub(crate) table: Vec<u64>,
}

/// The content of changed pages.
#[derive(Debug)]
pub(super) enum Content {
    /// Each at its place in a spool file.
    Spool(File),
    /// One after the other.
    Memory(Vec<u8>),
}

/// Changed pages.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) content: Content,
    /// Ascending.
    pub(super) pages: Vec<PageNumber>,
    pub(super) pos: Pos,
    pub(super) page_size: PageSize,
    pub(super) commit: PageCount,
}

impl Batch {
    /// Reads the page at this place of [`Batch::pages`].
    pub(super) fn read(&self, index: usize, page: &mut [u8]) -> std::io::Result<()> {
        match &self.content {
            Content::Spool(spool) => spool.read_exact_at(page, self.pages[index].offset(self.page_size)),
            Content::Memory(bytes) => {
                page.copy_from_slice(&bytes[index * page.len()..][..page.len()]);
                Ok(())
            }
        }
    }
}

/// Where the state of a followed file lies.
pub(super) fn state_path(path: &Path) -> PathBuf {
    beside(path, "-rhyolite-follow")
}

/// Where its position lies, for people and programs.
pub(super) fn pos_path(path: &Path) -> PathBuf {
    beside(path, "-pos")
}

pub(super) fn journal_path(path: &Path) -> PathBuf {
    beside(path, "-journal")
}

/// Makes a restored database ready to be followed: in rollback mode, with its state beside it.
pub(super) fn prepare(
    draft: &File,
    output: &Path,
    lineage: Lineage,
    end: (Pos, PageSize, PageCount),
) -> Result<(), RestoreError> {
    let (pos, page_size, commit) = end;
    let failed = |e| RestoreError::io("write", output, e);
    let mut page_one = PageOneFields::default();
    if commit.get() > 0 {
        let mut page = vec![0; page_size.bytes()];
        draft.read_exact_at(&mut page, 0).map_err(failed)?;
        page_one = PageOneFields::of(&page);
        page_one.for_readers(page_one.change_counter).put(&mut page);
        draft.write_all_at(&page, 0).map_err(failed)?;
    }
    let end = FollowEnd { pos, page_size, commit, page_one };
    StateFile::of(output).write(lineage, boot_id(), (end, end), true)
}

impl Follower {
    /// Opens a file that was followed before, after a hot journal was rolled back, and compares it with its state. Waits while somebody has it for himself.
    pub(super) fn open(path: &Path, journal: ReplicaJournal) -> Result<Self, RestoreError> {
        let in_use = aside::enter(path)?;
        let bytes = std::fs::read(state_path(path)).map_err(|e| RestoreError::io("read", &state_path(path), e))?;
        let state = FollowState::decode(&bytes)
            .map_err(|e| RestoreError::Damaged { key: state_path(path).display().to_string(), source: e })?;
        roll_back(path)?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = Arc::new(file.map_err(|e| RestoreError::io("open", path, e))?);
        let header = read_header(&file).map_err(|e| RestoreError::io("read", path, e))?;
        if matches!(journal, ReplicaJournal::Rollback | ReplicaJournal::AsLoggedSynced) {
            // What is found here is told to be on the disk, and whoever wrote it may have ended before that was so.
            sync_all_of(&file, path)?;
        }
        let mut wal = header.filter(DatabaseHeader::is_wal).map(|_| WalWriter::open(path, journal)).transpose()?;
        let is_marked = preview::is_marked(path);
        if let Some(wal) = &mut wal {
            take_back_at_open(wal, path, &[state.after, state.before])?;
        }
        let (lineage, state_file, path) = (state.lineage, StateFile::of(path), path.to_owned());
        let mut this = Self {
            wal,
            journal,
            is_lost: false,
            file,
            path,
            lineage,
            end: state.after,
            table: Vec::new(),
            change_counter: 0,
            state: state_file,
            _in_use: in_use,
        };
        for end in [state.after, state.before] {
            if let Some((table, change_counter)) = this.compare(&end)? {
                (this.end, this.table, this.change_counter) = (end, table, change_counter);
                this.write_pos()?;
                preview::forget_mark(&this.path);
                if this.is_for_wal(&this.end.page_one) && this.end.commit.get() > 0 {
                    // Where a reader is in the way for longer it is done with the first batch.
                    let _ = this.enter_wal(ENTER_WAL_MAX)?;
                }
                return Ok(this);
            }
        }
        // What was not synced before a power cut may be gone, of the file and of its state.
        let has_lost_power = state.boot_id != boot_id() || state.boot_id == [0; 16];
        if let (Some(wal), Some(header), true) = (&this.wal, header, has_lost_power || is_marked) {
            let why = if is_marked { "it was written to when the node ended" } else { "the system has started anew" };
            tracing::warn!(database = %this.path.display(), "{why}, and the file is at no known position: writing all of it");
            (this.end.page_size, this.end.commit) = (header.page_size, wal.page_count()?);
            (this.end.page_one, this.is_lost) = (PageOneFields::default(), true);
            return Ok(this);
        }
        let detail = "its pages add up to another checksum".to_owned();
        Err(RestoreError::Diverged { path: this.path, txid: state.after.pos.txid, detail })
    }

    /// Whether nobody knows at which position the file is, so that only all of a state can be applied.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// A file that is at `end`, as was found out under `locks`, becomes one that follows `lineage`: its state is written, and page 1 becomes what
    /// readers need.
    pub(super) fn begin(
        file: Arc<File>,
        path: &Path,
        lineage: Lineage,
        end: FollowEnd,
        found: PageSums,
        locks: &Locks<'_>,
    ) -> Result<Self, RestoreError> {
        let _in_use = aside::enter(path)?;
        let mut state = StateFile::of(path);
        state.write(lineage, boot_id(), (end, end), true)?;
        let PageSums { table, change_counter, .. } = found;
        let (path, journal) = (path.to_owned(), ReplicaJournal::Rollback);
        let wal = None;
        let mut follower =
            Self { wal, journal, is_lost: false, file, path, lineage, end, table, change_counter, state, _in_use };
        let fields = end.page_one.for_readers(change_counter.wrapping_add(1));
        follower.put_page_one(fields, locks)?;
        follower.write_pos()?;
        Ok(follower)
    }

    /// The file becomes a database that is written to, in the journal mode that the log has. Its change counter stays one of its own, because
    /// readers may have seen all those before. Gives what the file is, or itself when readers do not let go.
    pub(super) fn release(mut self, timeout: Duration) -> Result<Result<Released, Box<Self>>, RestoreError> {
        assert!(!self.is_lost, "nobody knows what it is");
        if self.take_back(timeout)?.is_err() {
            return Ok(Err(Box::new(self)));
        }
        if self.journal.is_as_logged() && self.wal.is_some() && self.end.page_one.is_wal() {
            return self.release_in_wal().map(Ok);
        }
        if self.leave_wal(timeout)?.is_err() {
            return Ok(Err(Box::new(self)));
        }
        let deadline = Instant::now() + timeout;
        let failed = |e, path: &Path| RestoreError::io("lock", path, e);
        let file = Arc::clone(&self.file);
        let reserved = wait(deadline, || Locks::reserve(&file)).map_err(|e| failed(e, &self.path))?;
        let Ok(locks) = reserved else { return Ok(Err(Box::new(self))) };
        self.check_untouched()?;
        if wait(deadline, || locks.exclude_readers()).map_err(|e| failed(e, &self.path))?.is_err() {
            return Ok(Err(Box::new(self)));
        }
        let page_one = self.end.page_one;
        let fields = page_one.for_readers(self.change_counter.wrapping_add(1));
        self.put_page_one(PageOneFields { versions: page_one.versions, ..fields }, &locks)?;
        self.forget_state()?;
        drop(locks);
        Ok(Ok(self.released()))
    }

    /// The same of a file that is in WAL mode and stays so: nobody is waited for.
    fn release_in_wal(mut self) -> Result<Released, RestoreError> {
        let wal = self.wal.as_mut().expect("looked at by the caller");
        if wal.has_moved()? || !wal.is_untouched()? {
            return Err(self.diverged("somebody has written to it"));
        }
        self.forget_state()?;
        Ok(self.released())
    }

    /// From here on it is a file that follows nothing. What it was is noted, should nobody write to it.
    fn forget_state(&self) -> Result<(), RestoreError> {
        let (lineage, boot_id, end) = (self.lineage, boot_id(), self.end);
        let as_released = FollowState { lineage, boot_id, before: end, after: end, turn: 0 };
        replace(&replica::released_path(&self.path), &as_released.encode(), true)?;
        for path in [state_path(&self.path), pos_path(&self.path)] {
            super::remove(&path)?;
        }
        sync_folder_of(&self.path)
    }

    fn released(self) -> Released {
        let FollowEnd { pos, page_size, commit, .. } = self.end;
        Released { lineage: self.lineage, pos, page_size, commit, table: self.table }
    }

    /// Gives page 1 other fields, with nobody reading.
    fn put_page_one(&mut self, fields: PageOneFields, _exclusive: &Locks<'_>) -> Result<(), RestoreError> {
        let FollowEnd { pos, page_size, commit, .. } = self.end;
        if commit.get() == 0 {
            return Ok(());
        }
        let nothing = Batch { content: Content::Memory(Vec::new()), pages: Vec::new(), pos, page_size, commit };
        self.write_journal(&nothing)?;
        self.write_pages(&nothing, &fields)?;
        self.remove_journal()?;
        self.change_counter = fields.change_counter;
        Ok(())
    }

    /// Notes another position and history for the state that the file is in.
    pub(super) fn stay_at(&mut self, end: FollowEnd, lineage: Lineage) -> Result<(), RestoreError> {
        self.state.write(lineage, boot_id(), (end, end), true)
    }

    /// The checksum of each page as the log has it; 0 for the lock page.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// The file itself.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The history that it belongs to.
    pub(super) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Makes the file the state at the end of the batch. `Busy` when readers or another process did not let it in time: nothing has
    /// changed then.
    pub(super) fn apply(&mut self, batch: &Batch, timeout: Duration) -> Result<Result<(), Busy>, RestoreError> {
        let (changed, page_one) = self.prove(batch)?;
        let Batch { pos, page_size, commit, .. } = *batch;
        let after = FollowEnd { pos, page_size, commit, page_one };
        let stays_whole = page_size == self.end.page_size && commit.get() > 0 && self.end.commit.get() > 0;
        let is_for_wal = self.is_for_wal(&page_one) && stays_whole;
        let entered = if is_for_wal { self.enter_wal(timeout)? } else { self.leave_wal(timeout)? };
        if entered.is_err() {
            return Ok(Err(Busy));
        }
        // Until all of it is written, whoever is stopped in the middle leaves it as lost as it was.
        let (before, boot_id) = if self.is_lost { (after, [0; 16]) } else { (self.end, boot_id()) };
        let is_synced = !is_for_wal || self.journal == ReplicaJournal::AsLoggedSynced;
        self.state.write(self.lineage, boot_id, (before, after), is_synced)?;
        let applied = if is_for_wal {
            self.apply_through_wal(batch, &page_one, timeout)?.map(|()| self.change_counter)
        } else {
            self.apply_by_journal(batch, &page_one, timeout)?
        };
        let Ok(change_counter) = applied else { return Ok(Err(Busy)) };
        let was_lost = self.is_lost;
        self.advance(batch, &changed, after, change_counter);
        if was_lost {
            self.stay_at(after, self.lineage)?;
            preview::forget_mark(&self.path);
        }
        self.write_pos()?;
        Ok(Ok(()))
    }

    /// Whether a state with this first page is kept in WAL mode. Where the log has left it, the file does not before it is released: that would wait
    /// until every reader has closed it.
    fn is_for_wal(&self, page_one: &PageOneFields) -> bool {
        match self.journal {
            ReplicaJournal::Rollback => false,
            ReplicaJournal::Wal => true,
            ReplicaJournal::AsLogged | ReplicaJournal::AsLoggedSynced => self.wal.is_some() || page_one.is_wal(),
        }
    }

    /// Goes over to WAL mode, if the file is not in it.
    fn enter_wal(&mut self, timeout: Duration) -> Result<Result<(), Busy>, RestoreError> {
        if self.wal.is_some() {
            return Ok(Ok(()));
        }
        self.check_untouched()?;
        let mut wal = WalWriter::open(&self.path, self.journal)?;
        match wal.switch("wal", timeout)? {
            Switched::Done => {}
            Switched::Busy => return Ok(Err(Busy)),
            Switched::Foreign => return Err(self.diverged("somebody has written to it")),
        }
        // The switch was one change, and the only one.
        let counter = PageOneFields::of(&wal.page_one()?).change_counter;
        let is_next = counter == self.change_counter.wrapping_add(1);
        let has_moved = wal.has_moved()?;
        let page_count = wal.page_count()?;
        self.wal = Some(wal);
        if has_moved || !is_next || page_count != self.end.commit {
            return Err(self.diverged("somebody has written to it"));
        }
        Ok(Ok(()))
    }

    /// Goes back to rollback mode, if the file is not in it.
    pub(super) fn leave_wal(&mut self, timeout: Duration) -> Result<Result<(), Busy>, RestoreError> {
        if self.take_back(timeout)?.is_err() {
            return Ok(Err(Busy));
        }
        let Some(mut wal) = self.wal.take() else { return Ok(Ok(())) };
        match wal.switch("delete", timeout)? {
            Switched::Done => {}
            Switched::Busy => {
                self.wal = Some(wal);
                return Ok(Err(Busy));
            }
            Switched::Foreign => return Err(self.diverged("somebody has written to it")),
        }
        drop(wal);
        let header = read_header(&self.file).map_err(|e| RestoreError::io("read", &self.path, e))?;
        match header {
            Some(header) => self.change_counter = header.change_counter,
            None => return Err(self.diverged("it has lost its header")),
        }
        Ok(Ok(()))
    }

    /// Makes the file what it is noted to be, where somebody has written what the history does not have, or not yet ([`preview`]).
    pub(super) fn take_back(&mut self, timeout: Duration) -> Result<Result<(), Busy>, RestoreError> {
        if preview::of(&self.path).is_none() || self.wal.is_none() {
            return Ok(Ok(()));
        }
        let FollowEnd { pos, page_size, commit, page_one } = self.end;
        let nothing = Batch { content: Content::Memory(Vec::new()), pages: Vec::new(), pos, page_size, commit };
        self.apply_through_wal(&nothing, &page_one, timeout)
    }

    fn apply_through_wal(
        &mut self,
        batch: &Batch,
        page_one: &PageOneFields,
        timeout: Duration,
    ) -> Result<Result<(), Busy>, RestoreError> {
        let wal = self.wal.as_mut().expect("the file is in WAL mode");
        if wal.has_moved()? {
            return Err(self.diverged("another file lies in its place"));
        }
        match wal.apply(batch, &page_one.for_wal(), timeout)? {
            Some(applied) => Ok(applied),
            None => Err(self.diverged("somebody has written to it")),
        }
    }

    /// Gives the file's new change counter.
    fn apply_by_journal(
        &self,
        batch: &Batch,
        page_one: &PageOneFields,
        timeout: Duration,
    ) -> Result<Result<u32, Busy>, RestoreError> {
        let deadline = Instant::now() + timeout;
        let failed = |e| RestoreError::io("lock", &self.path, e);
        let reserved = wait(deadline, || Locks::reserve(&self.file)).map_err(failed)?;
        let Ok(locks) = reserved else { return Ok(Err(Busy)) };
        self.check_untouched()?;
        let counter = self.change_counter.wrapping_add(1);
        if let Err(e) = self.write_journal(batch) {
            // The database is as it was, with or without what there is of the journal.
            let _ = self.remove_journal();
            return Err(e);
        }
        if wait(deadline, || locks.exclude_readers()).map_err(failed)?.is_err() {
            self.remove_journal()?;
            return Ok(Err(Busy));
        }
        self.write_pages(batch, &page_one.for_readers(counter))?;
        self.remove_journal()?;
        drop(locks);
        Ok(Ok(counter))
    }

    fn diverged(&self, detail: &str) -> RestoreError {
        RestoreError::Diverged { path: self.path.clone(), txid: self.end.pos.txid, detail: detail.to_owned() }
    }

    /// The checksums of the changed pages, and the log's fields of page 1: only if the batch leads to the checksum that the log has, and holds all
    /// that the file grows by.
    fn prove(&self, batch: &Batch) -> Result<(Vec<u64>, PageOneFields), RestoreError> {
        let failed = |e| RestoreError::io("read", Path::new("spool file"), e);
        let same_size = batch.page_size == self.end.page_size && !self.is_lost;
        if !is_grown_by(batch, if same_size { self.end.commit } else { PageCount(0) }) {
            let detail = format!("it leads to {} pages, and lacks some", batch.commit.get());
            return Err(RestoreError::contradiction(BATCH, detail));
        }
        let (mut bits, old): (u64, &[u64]) =
            if same_size { (self.end.pos.checksum.get(), &self.table) } else { (0, &[]) };
        let mut page_one = if same_size { self.end.page_one } else { PageOneFields::default() };
        bits ^= old.iter().skip(batch.commit.get() as usize).fold(0, |bits, page| bits ^ page);
        let mut changed = Vec::with_capacity(batch.pages.len());
        let mut page = vec![0; batch.page_size.bytes()];
        for (index, pgno) in batch.pages.iter().enumerate() {
            batch.read(index, &mut page).map_err(failed)?;
            let checksum = Checksum::of_page(*pgno, &page).get();
            bits ^= checksum ^ old.get(pgno.index()).copied().unwrap_or(0);
            changed.push(checksum);
            if *pgno == PageNumber::FIRST {
                page_one = PageOneFields::of(&page);
            }
        }
        if batch.commit.get() == 0 {
            page_one = PageOneFields::default();
        }
        let found = Checksum::from_crc(bits);
        if found == batch.pos.checksum {
            return Ok((changed, page_one));
        }
        Err(RestoreError::WrongChecksum { pos: batch.pos, found })
    }

    /// Takes over what a batch has changed.
    fn advance(&mut self, batch: &Batch, changed: &[u64], end: FollowEnd, change_counter: u32) {
        if end.page_size != self.end.page_size || self.is_lost {
            self.table.clear();
        }
        self.table.resize(end.commit.get() as usize, 0);
        for (pgno, checksum) in batch.pages.iter().zip(changed) {
            self.table[pgno.index()] = *checksum;
        }
        (self.end, self.change_counter, self.is_lost) = (end, change_counter, false);
    }

    /// Refuses a file that somebody else has written to, or put in the place of ours, since the last batch.
    fn check_untouched(&self) -> Result<(), RestoreError> {
        let diverged = |detail| self.diverged(detail);
        let failed = |e| RestoreError::io("read", &self.path, e);
        if journal_path(&self.path).exists() {
            return Err(diverged("it has a journal of somebody else"));
        }
        let ours = self.file.metadata().map_err(failed)?;
        let named = std::fs::metadata(&self.path).map_err(failed)?;
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
            return Err(diverged("another file lies in its place"));
        }
        let len = ours.len();
        if len != self.end.commit.bytes(self.end.page_size) {
            return Err(diverged("its length has changed"));
        }
        if len == 0 {
            return Ok(());
        }
        match read_header(&self.file).map_err(failed)? {
            Some(header) if header.change_counter == self.change_counter => Ok(()),
            _ => Err(diverged("somebody has written to it")),
        }
    }

    /// The page checksums and the change counter of a file that is at `end`; `None` when it is not.
    fn compare(&self, end: &FollowEnd) -> Result<Option<(Vec<u64>, u32)>, RestoreError> {
        let (size, commit) = (end.page_size, end.commit);
        let sums = match &self.wal {
            Some(wal) if wal.page_count()? == commit => {
                let mut summing = Summing::new((size, commit), Some(&end.page_one));
                let mut copy = vec![0; size.bytes()];
                let mut is_same_size = true;
                wal.read_pages(|pgno, page| {
                    is_same_size &= page.len() == size.bytes();
                    if is_same_size {
                        copy.copy_from_slice(page);
                        summing.take(pgno, &mut copy);
                    }
                })?;
                if !is_same_size {
                    return Ok(None);
                }
                summing.finish()
            }
            Some(_) => return Ok(None),
            None => {
                let len = self.file.metadata().map_err(|e| RestoreError::io("read", &self.path, e))?.len();
                if len != commit.bytes(size) {
                    return Ok(None);
                }
                page_sums(&self.file, &self.path, (size, commit), Some(&end.page_one))?
            }
        };
        Ok((sums.checksum == end.pos.checksum).then_some((sums.table, sums.change_counter)))
    }

    /// The pages that the batch changes or cuts off, as they are.
    fn journaled(&self, batch: &Batch) -> Vec<PageNumber> {
        let commit = self.end.commit;
        let lock_page = self.end.page_size.lock_page();
        let mut pages: Vec<PageNumber> = Vec::new();
        let mut cut_from = 1;
        if batch.page_size == self.end.page_size {
            pages.extend(batch.pages.iter().copied().filter(|pgno| commit.contains(*pgno)));
            pages.extend(Some(PageNumber::FIRST).filter(|pgno| commit.contains(*pgno)));
            cut_from = batch.commit.get().saturating_add(1);
        }
        pages.extend((cut_from..=commit.get()).filter_map(PageNumber::new).filter(|pgno| *pgno != lock_page));
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    fn write_journal(&self, batch: &Batch) -> Result<(), RestoreError> {
        let path = journal_path(&self.path);
        let page_size = self.end.page_size;
        let pages = self.journaled(batch);
        let writer = JournalWriter::new(u32::from_be_bytes(random::bytes()), self.end.commit, page_size);
        let write = || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            let mut offset = JOURNAL_HEADER_BYTES as u64;
            file.write_all_at(&writer.header(0), 0)?;
            let mut page = vec![0; page_size.bytes()];
            let mut records = Vec::with_capacity(JOURNAL_WRITE_BYTES + 2 * page_size.bytes());
            for pgno in &pages {
                self.file.read_exact_at(&mut page, pgno.offset(page_size))?;
                writer.record(*pgno, &page, &mut records);
                if records.len() >= JOURNAL_WRITE_BYTES {
                    file.write_all_at(&records, offset)?;
                    offset += records.len() as u64;
                    records.clear();
                }
            }
            file.write_all_at(&records, offset)?;
            file.sync_all()?;
            file.write_all_at(&writer.header(pages.len() as u32), 0)?;
            file.sync_all()
        };
        write().map_err(|e| RestoreError::io("write", &path, e))?;
        sync_folder_of(&path)
    }

    fn remove_journal(&self) -> Result<(), RestoreError> {
        let path = journal_path(&self.path);
        std::fs::remove_file(&path).map_err(|e| RestoreError::io("remove", &path, e))?;
        sync_folder_of(&path)
    }

    fn write_pages(&self, batch: &Batch, page_one: &PageOneFields) -> Result<(), RestoreError> {
        let size = batch.page_size;
        let mut page = vec![0; size.bytes()];
        let mut write = || {
            for (index, pgno) in batch.pages.iter().enumerate() {
                batch.read(index, &mut page)?;
                if *pgno == PageNumber::FIRST {
                    page_one.put(&mut page);
                }
                self.file.write_all_at(&page, pgno.offset(size))?;
            }
            if batch.commit.get() > 0 && batch.pages.first() != Some(&PageNumber::FIRST) {
                self.file.read_exact_at(&mut page, 0)?;
                page_one.put(&mut page);
                self.file.write_all_at(&page, 0)?;
            }
            self.file.set_len(batch.commit.bytes(size))?;
            self.file.sync_all()
        };
        write().map_err(|e| RestoreError::io("write", &self.path, e))
    }

    fn write_pos(&self) -> Result<(), RestoreError> {
        replace(&pos_path(&self.path), format!("{}\n", self.end.pos).as_bytes(), false)
    }
}

/// Whether a batch holds every page that lies behind the end of the file, and none behind its new end.
fn is_grown_by(batch: &Batch, before: PageCount) -> bool {
    let (from, to) = (before.get(), batch.commit.get());
    let lock_page = batch.page_size.lock_page().get();
    let wanted = u64::from(to.saturating_sub(from)) - u64::from(from < lock_page && lock_page <= to);
    let first = batch.pages.partition_point(|pgno| pgno.get() <= from);
    let is_within = batch.pages.last().is_none_or(|last| last.get() <= to);
    is_within && (batch.pages.len() - first) as u64 == wanted
}

/// What this process knows to be ahead of the history is taken back before anything is compared.
fn take_back_at_open(wal: &mut WalWriter, path: &Path, ends: &[FollowEnd]) -> Result<(), RestoreError> {
    let Some(preview) = preview::of(path).and_then(|known| known.preview) else { return Ok(()) };
    if !ends.iter().any(|end| (end.pos, end.page_size, end.commit) == (preview.pos, preview.page_size, preview.commit))
    {
        // Another file has come in the place of the one that it was of.
        preview::withdraw(path);
        return Ok(());
    }
    let page_one = preview.pages.get(&PageNumber::FIRST).map(|page| PageOneFields::of(page)).unwrap_or_default();
    let preview::Preview { pos, page_size, commit, .. } = *preview;
    let nothing = Batch { content: Content::Memory(Vec::new()), pages: Vec::new(), pos, page_size, commit };
    if matches!(wal.apply(&nothing, &page_one.for_wal(), TAKE_BACK_MAX)?, Some(Ok(()))) {
        return Ok(());
    }
    let busy = std::io::Error::new(std::io::ErrorKind::WouldBlock, "somebody else is writing to it");
    Err(RestoreError::io("lock", path, busy))
}

/// Asks until it works or the time is over.
pub(super) fn wait<T>(
    deadline: Instant,
    mut ask: impl FnMut() -> std::io::Result<Result<T, Busy>>,
) -> std::io::Result<Result<T, Busy>> {
    let mut pause = LOCK_POLL.0;
    loop {
        match ask()? {
            Err(Busy) if Instant::now() < deadline => std::thread::sleep(pause),
            answer => return Ok(answer),
        }
        pause = (pause * 2).min(LOCK_POLL.1);
    }
}

/// Lets SQLite roll back a hot journal that a crash has left. Nobody else may be applying anything to the file.
pub(super) fn roll_back(path: &Path) -> Result<(), RestoreError> {
    if !journal_path(path).exists() {
        return Ok(());
    }
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let read = || -> rusqlite::Result<i64> {
        let db = rusqlite::Connection::open_with_flags(path, flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.query_row("PRAGMA schema_version", [], |row| row.get(0))
    };
    let rolled_back = replica::with_sqlite(read);
    match rolled_back {
        Ok(_) => remove_cold(&journal_path(path)),
        Err(e) => Err(RestoreError::io("roll back", path, std::io::Error::other(e))),
    }
}

/// Removes a journal whose header was never written: SQLite plays none back that is empty or begins with zero, and leaves it where it is.
pub(super) fn remove_cold(journal: &Path) -> Result<(), RestoreError> {
    let mut first = [0];
    match File::open(journal).and_then(|file| file.read_at(&mut first, 0)) {
        Ok(read) if read == 0 || first == [0] => {
            std::fs::remove_file(journal).map_err(|e| RestoreError::io("remove", journal, e))
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RestoreError::io("read", journal, e)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Writes what the system still has of a database and its WAL to the disk. SQLite has neither open.
fn sync_all_of(file: &File, path: &Path) -> Result<(), RestoreError> {
    let failed = |e| RestoreError::io("sync", path, e);
    match File::open(beside(path, "-wal")) {
        Ok(wal) => wal.sync_all().map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    file.sync_all().map_err(failed)?;
    sync_folder_of(path)
}

/// What a database says of itself; `None` for an empty file, and for one that is no database.
fn read_header(file: &File) -> std::io::Result<Option<DatabaseHeader>> {
    let mut header = [0; DATABASE_HEADER_SIZE];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(DatabaseHeader::decode(&header).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(commit: u32, pages: &[u32]) -> Batch {
        let pos = Pos { txid: rhyolite_format::Txid::new(2).unwrap(), checksum: Checksum::from_crc(0) };
        let pages = pages.iter().map(|pgno| PageNumber::new(*pgno).unwrap()).collect();
        let page_size = PageSize::new(65536).unwrap();
        Batch { content: Content::Memory(Vec::new()), pages, pos, page_size, commit: PageCount(commit) }
    }

    /// Otherwise a number that came over the wire would decide how large the file and the table of its checksums become.
    #[test]
    fn a_file_grows_only_by_pages_that_came() {
        let lock_page = PageSize::new(65536).unwrap().lock_page().get();
        for (before, commit, pages, is_right) in [
            (3, 3, &[1, 2][..], true),
            (3, 2, &[1], true),
            (3, 5, &[1, 4, 5], true),
            (3, 5, &[4, 5], true),
            (3, 5, &[1, 5], false),
            (3, u32::MAX, &[1], false),
            (3, 2, &[1, 3], false),
            (0, 0, &[], true),
            (0, 1, &[], false),
            (lock_page - 1, lock_page + 1, &[lock_page + 1], true),
            (lock_page - 1, lock_page + 1, &[lock_page, lock_page + 1], false),
        ] {
            assert_eq!(
                is_grown_by(&batch(commit, pages), PageCount(before)),
                is_right,
                "{before} to {commit}: {pages:?}"
            );
        }
    }
}
