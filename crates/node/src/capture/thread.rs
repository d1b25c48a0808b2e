//! The capture thread of one database: what outlives a session.
//!
//! It owns the log, the table and the state folder, talks with the uploader through channels, and runs one session
//! (`session`) after another until it is told to stop. All work on the user's database happens here, on a thread of its own:
//! SQLite calls block.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::state::parked::DatabaseMark;
use rhyolite_format::state::{LocalState, WalPosition};
use rhyolite_format::{Pos, Seq, Txid};
use rhyolite_logic::park::{self, Patience, Rest};
use rhyolite_logic::tail::{self, Captured, Live};
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::commits::{Attending, CommitLine, CommitLines};
use super::gate::Ticket;
use super::handle::Handle;
use super::local_log::{LocalLog, SealedSegment, Writer};
use super::recorder::{RecordError, Recorder};
use super::restart::{self, STATE_FILE};
use super::session::{Moment, SessionEnd};
use super::snapshot::SnapshotSummary;
use super::table::PageTable;
use super::watch::{FileWatch, Wake};
use crate::config::DatabaseConfig;
use crate::forward::lent;
use crate::status::{DatabaseStatus, DiffReason};
use crate::stream::feed::Origin;

mod ends;
mod establish;
mod gate;
mod lines;

/// Segments that may be on their way to the store at a time: one is sent, the next is ready.
const IN_FLIGHT_MAX: usize = 2;
/// So many failures in a row double the time until the next try: a comparison reads the whole database.
const FAILURES_COUNTED: u32 = 5;
/// Time between tries to open a database that cannot be opened.
const RETRY: Duration = Duration::from_millis(250);

/// From capture to the uploader, in the order in which the store must get it.
#[derive(Debug)]
pub enum ToUploader {
    /// A segment of the log.
    Segment(Arc<SealedSegment>),
    /// A snapshot at this TXID begins; its pieces follow. The answers carry the number of the attempt.
    SnapshotBegin(Txid, u64),
    /// The next bytes of the snapshot.
    SnapshotPiece(Bytes),
    /// The snapshot is whole.
    SnapshotEnd(SnapshotSummary),
    /// The snapshot will not be finished.
    SnapshotAbort,
}

/// From the uploader to capture. Ring the [`Wake`] after sending.
#[derive(Debug)]
pub enum ToCapture {
    /// The store has this segment and all before it.
    Uploaded(Seq),
    /// What became of the snapshot that was begun as this attempt.
    Snapshot(u64, SnapshotAnswer),
    /// The store's history cannot be restored to its end any more: a snapshot of the database is to begin it anew.
    TakeSnapshot,
    /// Capture what there is, and say where that ends.
    Sync(SyncRequest),
    /// Capture what there is, pass it on, and end.
    Stop,
}

/// Somebody wants everything captured that is committed by now.
#[derive(Debug)]
pub struct SyncRequest {
    /// Gets the position after it.
    pub captured: oneshot::Sender<Pos>,
    /// When it goes to the store.
    pub upload: Upload,
}

/// When what is captured goes to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// At once.
    Now,
    /// When it is due by the sync interval.
    InTurn,
}

/// What the uploader says of a snapshot.
#[derive(Debug)]
pub enum SnapshotAnswer {
    /// The store is ready to take it.
    Ready,
    /// The store has it, and the manifest names it.
    Stored,
    /// It did not get there, as far as is known.
    Failed(String),
    /// The manifest names one at this TXID already: an earlier attempt got there after all.
    Named(String),
}

/// Why a capture thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or has nobody to capture for.
    Stopped,
    /// The local state and the store must be compared again: the state folder was removed, or nobody knows whether a
    /// snapshot has got there.
    BeginAgain,
    /// It was told to, and could not capture everything before.
    Incomplete,
    /// The database is at rest, with everything captured and durable; its files looked like this.
    Parked(DatabaseMark),
}

/// Gives the page table of a position from the store.
pub type TableSource = Box<dyn Fn(Pos) -> Result<PageTable, TableError> + Send>;

/// Why the store did not give a page table.
#[derive(Clone, Debug)]
pub enum TableError {
    /// It may do so later.
    Passing(String),
    /// What it holds is damaged: it never will.
    Damaged(String),
}

/// What is known when the thread starts.
#[derive(Debug)]
pub enum Start {
    /// The store holds no snapshot that this log could build on: one is taken, at the TXID after `last`.
    Fresh {
        /// The last TXID that was ever given out, if any.
        last: Option<Txid>,
    },
    /// The log goes on after `pos`.
    At {
        /// The end of the log: of the local one when that goes beyond the store's.
        pos: Pos,
        /// The end of the store's log.
        durable: Pos,
        /// The page table of `pos`, if it is at hand.
        table: Option<PageTable>,
        /// Where in the WAL `pos` is, if that is known.
        wal: Option<WalPosition>,
        /// The local log. What the store does not have comes last.
        segments: Vec<SealedSegment>,
        /// The last segment that the store has.
        uploaded: Option<Seq>,
        /// Why pages must be compared when `wal` does not lead on.
        reason: DiffReason,
    },
}

/// Everything that the thread works with.
#[derive(Debug)]
pub struct CaptureThread {
    pub(super) config: DatabaseConfig,
    pub(super) status: Arc<DatabaseStatus>,
    writer: Writer,
    boot_id: [u8; 16],
    known: Option<Known>,
    /// Continuity is in doubt: the next session compares all pages.
    doubt: Option<DiffReason>,
    /// Where in the WAL the log ends.
    position: Option<WalPosition>,
    state_file: File,
    channels: Channels,
    in_flight: usize,
    /// The last segment handed to the uploader.
    sent: Option<Seq>,
    next_unconfirmed: Seq,
    durable: Option<Pos>,
    /// The first transaction of the open segment was captured then.
    open_since: Option<Instant>,
    stopping: bool,
    /// Only the store can tell how to go on.
    begin_again: bool,
    failures: u32,
    /// The keeper asked for a snapshot.
    snapshot_wanted: bool,
    /// Those who wait for what is committed by now, and whether it is to be uploaded at once.
    syncs: Vec<SyncRequest>,
    sync_now: bool,
    /// The store waits for the pieces of the snapshot at this TXID.
    snapshot_begun: Option<Txid>,
    /// The number of the last attempt to take a snapshot.
    snapshot_attempt: u64,
    /// A snapshot that lies in the state folder and is to be sent.
    spooled: Option<establish::Spooled>,
    /// Where commits of the file come from, if somebody sees them, and whether those who do know that the database is open.
    line: Option<Arc<CommitLine>>,
    is_door_open: bool,
    /// Those who wait until the store has everything up to here.
    held: Vec<(Pos, Ticket)>,
    /// The same for other nodes: each who waits has a weak one of it. A new one takes its place when nobody can say any more what becomes of them.
    held_beside: Arc<()>,
    attending: Option<Attending>,
}

/// When databases are parked, as all of the process have it.
#[derive(Debug)]
pub struct Parking {
    /// The rules.
    pub policy: park::Policy,
    /// How long a database must have been quiet, with as many as there are and as many awake as are.
    patience: Mutex<Patience>,
}

impl Parking {
    /// For one database, to begin with.
    pub fn new(policy: park::Policy) -> Self {
        Self { policy, patience: Mutex::new(park::patience(&policy, 1, 1)) }
    }

    /// There are more by now, or fewer.
    pub fn set(&self, patience: Patience) {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    fn patience(&self) -> Patience {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the thread is connected.
pub struct Channels {
    /// To the uploader.
    pub out: Sender<ToUploader>,
    /// From the uploader.
    pub messages: Receiver<ToCapture>,
    /// Ends a wait when there are messages.
    pub wake: Wake,
    /// Page tables from the store.
    pub tables: TableSource,
    /// When the database is parked; `None` for one that never is.
    pub parking: Option<Arc<Parking>>,
    /// Where commits in rollback mode come from, if somebody sees them.
    pub commits: Option<Arc<CommitLines>>,
    /// The right to be among the few that are being opened: given back once the database is.
    pub opening: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

/// What a start says beside what is known.
#[derive(Default)]
struct Opened {
    position: Option<WalPosition>,
    doubt: Option<DiffReason>,
    durable: Option<Pos>,
}

/// What is known of the log's end.
#[derive(Debug)]
enum Known {
    /// Nothing to build on.
    Fresh { last: Option<Txid>, log: LocalLog },
    /// The position, but not the pages.
    Position { pos: Pos, log: LocalLog },
    /// Everything.
    Recorded(Box<Recorder>),
}

/// Why a session is to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// The process stops.
    Shutdown,
    /// The local log must not grow.
    LogFull,
    /// A snapshot is due.
    Snapshot,
}

impl CaptureThread {
    /// Prepares the thread; the state folder exists and belongs to this process.
    pub fn new(
        config: DatabaseConfig,
        status: Arc<DatabaseStatus>,
        writer: Writer,
        next_seq: Seq,
        start: Start,
        channels: Channels,
    ) -> io::Result<Self> {
        let log_dir = config.meta_path.join(restart::LOG_FOLDER);
        let mut opened = Opened::default();
        let known = match start {
            Start::Fresh { last } => {
                restart::clear(&config.meta_path)?;
                Known::Fresh { last, log: LocalLog::new(log_dir, writer, next_seq, Vec::new())? }
            }
            Start::At { pos, durable, table, wal, segments, uploaded, reason } => {
                if segments.is_empty() && table.is_none() {
                    restart::clear(&config.meta_path)?;
                }
                let next_local = segments.last().map_or(next_seq, |s| s.seq.next()).max(next_seq);
                let mut log = LocalLog::new(log_dir, writer, next_local, segments)?;
                if let Some(seq) = uploaded {
                    log.mark_uploaded(seq);
                }
                opened = Opened { doubt: wal.is_none().then_some(reason), position: wal, durable: Some(durable) };
                match table {
                    Some(table) => Known::Recorded(Box::new(Recorder::new(table, pos, log, &config))),
                    None => Known::Position { pos, log },
                }
            }
        };
        let Opened { position, doubt, durable } = opened;
        let next_unconfirmed = next_seq;
        let state_path = config.meta_path.join(STATE_FILE);
        let state_file = OpenOptions::new().create(true).truncate(false).write(true).open(state_path)?;
        let sent = next_unconfirmed.previous();
        Ok(Self {
            config,
            status,
            writer,
            boot_id: restart::boot_id(),
            known: Some(known),
            doubt,
            position,
            state_file,
            channels,
            in_flight: 0,
            sent,
            next_unconfirmed,
            durable,
            open_since: None,
            stopping: false,
            begin_again: false,
            failures: 0,
            snapshot_wanted: false,
            syncs: Vec::new(),
            sync_now: false,
            snapshot_begun: None,
            snapshot_attempt: 0,
            spooled: None,
            line: None,
            is_door_open: false,
            held: Vec::new(),
            held_beside: Arc::default(),
            attending: None,
        })
    }

    /// Runs until [`ToCapture::Stop`], until the uploader is gone, or until the state folder is.
    pub fn run(mut self) -> Ended {
        self.publish();
        self.record_left_behind();
        let ended = self.run_sessions();
        if ended != Ended::BeginAgain {
            self.drain();
        }
        if self.is_state_gone() {
            return Ended::BeginAgain;
        }
        if let Err(error) = self.save_all() {
            self.complain(&format!("save the state folder: {error}"));
            if matches!(ended, Ended::Parked(_)) {
                return Ended::BeginAgain;
            }
        }
        ended
    }

    /// Whether somebody removed the state folder, or put another in its place, under us.
    pub(super) fn is_state_gone(&self) -> bool {
        let is_gone = |name| !self.config.meta_path.join(name).exists();
        is_gone(restart::LOCK_FILE) || is_gone(restart::LOG_FOLDER)
    }

    /// The database is open, or nobody knows when it will be: others may be opened.
    pub(super) fn note_opened(&mut self) {
        self.channels.opening = None;
        self.open_door();
    }

    /// Whether the database may be parked at all.
    pub(super) fn is_parkable(&self) -> bool {
        let parking = self.channels.parking.as_ref();
        parking.is_some_and(|parking| self.database_bytes() <= parking.policy.bytes_max)
    }

    /// Whether it is time to park the database, as far as the log knows.
    pub(super) fn may_park(&self, quiet: Duration, has_written: bool) -> bool {
        let Some(parking) = &self.channels.parking else { return false };
        let all_done = !self.stopping
            && !self.snapshot_wanted
            && self.syncs.is_empty()
            && self.snapshot_begun.is_none()
            && !self.has_unsent()
            && !lent::is_lent(&self.config.path);
        let rest = Rest { quiet, has_written, bytes: self.database_bytes(), all_done };
        park::may_park(&parking.policy, &rest, parking.patience())
    }

    /// What the files look like, if they were last changed so long ago that a later change shows.
    pub(super) fn settled_mark(&self) -> Option<DatabaseMark> {
        let policy = &self.channels.parking.as_ref()?.policy;
        let mark = crate::park::mark(&self.config.path).ok()?;
        park::is_settled(policy, &mark, crate::time::now_ns()).then_some(mark)
    }

    fn database_bytes(&self) -> u64 {
        match &self.known {
            Some(Known::Recorded(recorder)) => recorder.table().page_count().bytes(recorder.table().page_size()),
            _ => u64::MAX,
        }
    }

    /// Whether nobody uploads any more.
    pub(super) fn is_uploader_gone(&self) -> bool {
        self.channels.out.is_closed()
    }

    /// Notes that the next session must compare all pages.
    pub(super) fn doubt(&mut self, reason: DiffReason) {
        self.doubt = Some(reason);
        self.position = None;
    }

    fn complain(&mut self, text: &str) {
        self.note_opened();
        let path = self.config.path.display();
        if self.status.figures().last_error.is_none_or(|last| last.text != text) {
            tracing::error!(database = %path, "{text}");
        }
        self.status.error(text);
    }

    fn is_log_full(&mut self, part: u64) -> bool {
        let max = self.config.log_bytes_max / part;
        self.log_mut().is_some_and(|log| log.unsent_bytes() >= max)
    }

    pub(super) fn recorder(&mut self) -> &mut Recorder {
        match self.known.as_mut() {
            Some(Known::Recorded(recorder)) => recorder,
            other => panic!("a session records only after it was established, not in {other:?}"),
        }
    }

    fn log_mut(&mut self) -> Option<&mut LocalLog> {
        match self.known.as_mut()? {
            Known::Fresh { log, .. } | Known::Position { log, .. } => Some(log),
            Known::Recorded(recorder) => Some(&mut recorder.log),
        }
    }

    /// Whether the WAL still goes on where the log ends: then the captured frame, otherwise `None`, and the pages must be
    /// compared.
    ///
    /// Equal salts and an equal frame header mean equal frames up to there: the header carries a checksum over all of them.
    pub(super) fn continues(&mut self, handle: &Handle, moment: &Moment) -> Option<u32> {
        let Some(Known::Recorded(recorder)) = self.known.as_ref().filter(|_| !self.snapshot_wanted) else {
            return None;
        };
        let position = self.position.filter(|_| self.doubt.is_none())?;
        let captured = Captured { salt: position.salt, frame: position.frame };
        let live = Live { salt: moment.salt, max_frame: moment.max_frame };
        if !tail::continues(captured, live, moment.backfill) || recorder.table().page_size() != moment.page_size {
            self.doubt(DiffReason::WalReset);
            return None;
        }
        let mut header = [0; 24];
        let offset = rhyolite_format::sqlite::wal::frame_offset(position.frame, moment.page_size);
        let same = matches!(handle.read_wal(&mut header, offset), Ok(true)) && header == position.frame_header;
        if !same {
            self.doubt(DiffReason::WalReset);
        }
        same.then_some(position.frame)
    }

    /// Takes in what the uploader said. Tells when the session must end.
    pub(super) fn take_messages(&mut self) -> Option<Stop> {
        while let Ok(message) = self.channels.messages.try_recv() {
            match message {
                ToCapture::Uploaded(seq) => self.note_uploaded(seq),
                ToCapture::Stop => self.stopping = true,
                ToCapture::TakeSnapshot => self.snapshot_wanted = true,
                ToCapture::Sync(sync) => self.syncs.push(sync),
                ToCapture::Snapshot(attempt, SnapshotAnswer::Failed(text)) if attempt == self.snapshot_attempt => {
                    self.snapshot_begun = None;
                    self.complain(&text);
                }
                ToCapture::Snapshot(..) => tracing::debug!("a snapshot that nobody waits for: {message:?}"),
            }
        }
        if self.channels.out.is_closed() {
            self.stopping = true;
        }
        if self.stopping {
            Some(Stop::Shutdown)
        } else if self.is_log_full(1) {
            Some(Stop::LogFull)
        } else {
            (self.snapshot_wanted && self.snapshot_begun.is_none()).then_some(Stop::Snapshot)
        }
    }

    fn note_uploaded(&mut self, seq: Seq) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.next_unconfirmed = seq.next();
        let Some(log) = self.log_mut() else { return };
        log.mark_uploaded(seq);
        if let Some(end) = log.uploaded_end() {
            self.durable = Some(end);
        }
        let keep = self.config.log_bytes_max / 2;
        let large = self.log_mut().is_some_and(|log| log.is_overfull(keep));
        if let Some(error) = large.then(|| self.trim(keep / 2)).and_then(Result::err) {
            self.complain(&format!("trim the local log: {error}"));
        }
        self.answer_held();
        self.publish();
    }

    fn trim(&mut self, keep: u64) -> io::Result<()> {
        match self.save_table() {
            // The application needs the room more than the next start needs the table, which a comparison then stands in for.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => restart::drop_table(&self.config.meta_path)?,
            other => other?,
        }
        // Without a table the log is all there is to make one from.
        let Some(Known::Recorded(recorder)) = self.known.as_mut() else { return Ok(()) };
        let txid = recorder.pos().txid;
        recorder.log.trim(txid, keep)
    }

    /// Seals what is due and hands it to the uploader.
    pub(super) fn pass_on(&mut self) -> Result<(), SessionEnd> {
        let Some(Known::Recorded(recorder)) = self.known.as_ref() else { return Ok(()) };
        let pos = recorder.pos();
        // They came before the last look, which has captured what they ask for.
        for sync in self.syncs.drain(..) {
            self.sync_now |= sync.upload == Upload::Now;
            // Whoever asked may not wait any more.
            let _ = sync.captured.send(pos);
        }
        self.pass_on_recorded()
    }

    /// The same after a look that came to nothing.
    pub(super) fn pass_on_recorded(&mut self) -> Result<(), SessionEnd> {
        let Some(Known::Recorded(recorder)) = self.known.as_ref() else { return Ok(()) };
        let open_bytes = recorder.log.open_bytes();
        if open_bytes == 0 {
            self.open_since = None;
            self.sync_now = false;
        } else if self.open_since.is_none() {
            self.open_since = Some(Instant::now());
        }
        let due = self.sync_now || self.open_since.is_some_and(|since| since.elapsed() >= self.config.sync_interval);
        let seal = open_bytes > 0
            && (open_bytes >= self.config.segment_bytes_max || ((due || self.stopping) && self.in_flight == 0));
        if let Some(SessionEnd::Failed(_, text)) = seal.then(|| self.seal()).and_then(Result::err) {
            // What was recorded is as right as before; the next look tries again.
            self.complain(&text);
            self.wait(RETRY);
        }
        self.send_sealed();
        Ok(())
    }

    fn seal(&mut self) -> Result<(), SessionEnd> {
        self.recorder().log.seal().map_err(RecordError::Log)?;
        self.open_since = None;
        self.sync_now = false;
        Ok(())
    }

    fn send_sealed(&mut self) {
        while self.in_flight < IN_FLIGHT_MAX {
            let sent = self.sent;
            let Some(next) = self.log_mut().and_then(|log| log.unsent().find(|s| Some(s.seq) > sent).cloned()) else {
                return;
            };
            let seq = next.seq;
            if self.channels.out.try_send(ToUploader::Segment(next)).is_err() {
                return;
            }
            self.sent = Some(seq);
            self.in_flight += 1;
        }
    }

    /// Brings everything recorded to the store's door, waiting for it: what follows must come after it.
    fn seal_and_send_all(&mut self) -> Result<(), SessionEnd> {
        if matches!(self.known, Some(Known::Recorded(_))) {
            self.seal()?;
        }
        while self.has_unsent() && !self.channels.out.is_closed() && !self.is_state_gone() {
            self.send_sealed();
            self.wait(RETRY);
            self.take_messages();
        }
        Ok(())
    }

    /// After the last session: passes on what is left and waits until the store has it, or the uploader has given up.
    fn drain(&mut self) {
        if let Err(end) = self.seal_and_send_all() {
            self.complain(&format!("seal the last segment: {end:?}"));
        }
    }

    /// Whether the store lacks anything that was recorded.
    pub(super) fn has_unsent(&self) -> bool {
        match &self.known {
            Some(Known::Recorded(recorder)) => recorder.log.unsent_bytes() > 0,
            Some(Known::Position { log, .. } | Known::Fresh { log, .. }) => log.unsent_bytes() > 0,
            None => false,
        }
    }

    pub(super) fn wait(&self, timeout: Duration) {
        if let Err(error) = self.channels.wake.wait(timeout) {
            tracing::warn!("wait: {error}");
            std::thread::sleep(timeout);
        }
    }

    pub(super) fn wait_for_files(&self, watch: Option<&FileWatch>, timeout: Duration) {
        match watch.map(|w| w.wait(&self.channels.wake, timeout)) {
            Some(Ok(())) => {}
            _ => self.wait(timeout.min(RETRY)),
        }
    }

    /// Where in the WAL the log ends, if that is known.
    pub(super) fn position(&self) -> Option<WalPosition> {
        self.position
    }

    /// Puts the figures where others see them.
    pub(super) fn publish(&mut self) {
        let durable = self.durable;
        let writer = self.writer;
        let Some(Known::Recorded(recorder)) = self.known.as_mut() else { return };
        let counts = recorder.take_counts();
        let pos = recorder.pos();
        let log = &recorder.log;
        let oldest = log.unsent().next().and_then(|s| s.first_time()).or_else(|| log.open_since());
        let (bytes, table) = (log.bytes(), recorder.table());
        if self.status.feed.followers() > 0 {
            let origin = Origin { lineage: writer.lineage, epoch: writer.epoch };
            self.status.feed.take_in(origin, self.status.look(|f| f.local), log);
        }
        if self.status.events.has_listeners() {
            tell_events(&self.status, log);
        }
        self.status.update(|f| {
            f.lineage = Some(writer.lineage);
            f.epoch = Some(writer.epoch);
            f.local = Some(pos);
            f.durable = durable;
            f.pending_since = oldest;
            f.page_size = Some(table.page_size());
            f.page_count = table.page_count();
            f.log_bytes = bytes;
            f.captured.transactions += counts.transactions;
            f.captured.pages += counts.pages;
            f.captured.bytes += counts.bytes;
        });
        self.status.feed.tell();
        self.tell_position();
    }

    /// Notes that the log's end is at `position` in the WAL.
    pub(super) fn save_state(&mut self, position: Option<WalPosition>) -> io::Result<()> {
        self.position = position;
        let Some(Known::Recorded(recorder)) = &self.known else { return Ok(()) };
        let state = LocalState {
            lineage: self.writer.lineage,
            pos: Some(recorder.pos()),
            durable: self.durable,
            page_size: Some(recorder.table().page_size()),
            commit: recorder.table().page_count(),
            wal: position,
            epoch: self.writer.epoch,
            next_seq: self.next_unconfirmed,
            boot_id: self.boot_id,
        };
        self.state_file.write_all_at(&state.encode(), 0)
    }

    fn save_table(&mut self) -> io::Result<()> {
        let Some(Known::Recorded(recorder)) = &self.known else { return Ok(()) };
        restart::save_table(&self.config.meta_path, self.writer.lineage, recorder.pos(), recorder.table())
    }

    fn save_all(&mut self) -> io::Result<()> {
        self.save_table()?;
        self.save_state(self.position)
    }
}

/// Tells those who listen what has come into the log since the position that was published last.
fn tell_events(status: &DatabaseStatus, log: &LocalLog) {
    let Some(told) = status.look(|f| f.local) else { return };
    let (name, mut next) = (status.name(), told.txid.next());
    for (entry, _) in log.recent(Some(told.txid)) {
        if entry.min_txid != next {
            return status.events.cut();
        }
        next = entry.max_txid.next();
        status.events.tell(&name, entry.end(), entry.page_size, entry.commit, entry.timestamp);
    }
}
