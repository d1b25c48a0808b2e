//! The uploader of one database: segments in sequence, one at a time, and snapshots.
//!
//! A segment is durable when the store has acknowledged its creation. Its key is taken once and for ever; "exists" is settled
//! by reading back ([`rhyolite_writer::create`]): the same bytes carry our nonce, so an earlier try had worked; others are another
//! writer's. Then this uploader ends, and what the store holds decides how to go on.
//!
//! Nothing is sent while the lease has run out, and nothing before the manifest was claimed. Every other error is tried again, without
//! end, until the process stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use rhyolite_format::crc::Crc64;
use rhyolite_format::lease::DurablePos;
use rhyolite_format::manifest::{Crc64Hex, FileKind, ManifestFile};
use rhyolite_format::{Nonce, Seq, Txid, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_store::{Operation, Store, StoreError, StoreErrorKind, Upload};
use rhyolite_writer::claim::Claim;
use rhyolite_writer::create::{self, CreateError};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rhyolite_writer::name::{self, Author};
use tokio::sync::mpsc::Receiver;

use crate::capture::local_log::{SealedSegment, Writer};
use crate::capture::snapshot::SnapshotSummary;
use crate::capture::thread::{SnapshotAnswer, ToCapture, ToUploader};
use crate::capture::watch::Wake;
use crate::manifest_swap::{self, ManifestError};
use crate::status::{DatabaseStatus, State};
use crate::time;
use crate::world::RealWorld;

/// Shortest and longest time between tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// So many creates of a session are checked with a `head`, and then every `CHECK_EVERY`-th: some stores have answered 200
/// without storing.
const CHECK_FIRST: u64 = 3;
const CHECK_EVERY: u64 = 64;

/// Uploads what one capture thread hands over.
#[derive(Debug)]
pub struct Uploader {
    /// The database's prefix.
    pub store: Arc<dyn Store>,
    /// Who writes.
    pub writer: Writer,
    /// The right to write, and the claim that goes before the first writing.
    pub right: Right,
    /// By which earlier lives of this process knew their segments.
    pub earlier: Vec<Nonce>,
    /// The log was fenced under this right already.
    pub is_fenced: bool,
    /// Set while a snapshot is being finished of which nobody knows whether it gets there, and its name.
    pub unnamed: Arc<AtomicBool>,
    /// The first sequence number of this session's log, for a manifest that does not exist yet.
    pub first_seq: Seq,
    /// Figures.
    pub status: Arc<DatabaseStatus>,
    /// Answers to the capture thread.
    pub answers: Sender<ToCapture>,
    /// Rung after every answer.
    pub wake: Wake,
}

/// Under which right is written.
#[derive(Clone, Debug)]
pub struct Right {
    /// The lease.
    pub lease: LeaseHandle,
    /// Whether the lease is this database's alone: then it names the last durable position.
    pub is_own: bool,
    /// The manifest's claim.
    pub claim: Arc<Claim>,
}

/// Why [`Right::exercise`] failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRight {
    /// Another writer was faster, or is at work.
    Lost(String),
    /// The store did not do it; worth another try.
    Passing(String),
}

impl Right {
    /// Waits until we may write, and makes the claim. To be called before everything that is put into the store. While there is
    /// nothing but waiting, the status says so.
    pub async fn exercise(&self, status: &DatabaseStatus) -> Result<(), NoRight> {
        let epoch = self.claim.epoch();
        if self.lease.right().is_none() {
            let problem = self.lease.problem().map_or(String::new(), |problem| format!(": {problem}"));
            let reason = format!("the lease has run out and could not be renewed{problem}");
            tracing::warn!(database = %status.path.display(), "{reason}");
            status.error(reason.clone());
            let before = status.figures().state;
            status.set_state(State::Waiting { reason });
            if self.lease.acquired().await == Some(epoch) {
                status.set_state(before);
            }
        }
        if self.lease.acquired().await != Some(epoch) {
            return Err(NoRight::Lost("the lease was lost".to_owned()));
        }
        self.claim.ensure().await.map_err(|error| match error {
            ManifestError::Fenced { .. } | ManifestError::Changed => NoRight::Lost(error.to_string()),
            error => NoRight::Passing(error.to_string()),
        })
    }
}

/// Why an uploader ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadEnd {
    /// The capture thread has ended.
    Done,
    /// Somebody else writes to this prefix.
    Conflict(String),
    /// What is to be uploaded is gone or damaged, or another writer, or an earlier life of this process, has put something else in its
    /// place: begin again with what the store has.
    BeginAgain(String),
    /// The log must be fenced before anything else: a writer of an older epoch still adds to it, or the first thing to be written is a snapshot,
    /// which holds no place in the log.
    FenceFirst,
}

/// A snapshot on its way.
struct SnapshotUpload {
    key: String,
    upload: Box<dyn Upload>,
    crc: Crc64,
}

impl Uploader {
    /// Uploads until the capture thread ends.
    pub async fn run(self, mut from: Receiver<ToUploader>) -> UploadEnd {
        let mut created: u64 = 0;
        let mut snapshot: Option<SnapshotUpload> = None;
        let mut attempt = 0;
        while let Some(message) = from.recv().await {
            match message {
                ToUploader::Segment(segment) => {
                    if let Err(end) = self.create_segment(&segment, created).await {
                        return end;
                    }
                    created += 1;
                    self.answer(ToCapture::Uploaded(segment.seq));
                }
                ToUploader::SnapshotBegin(txid, number) => {
                    attempt = number;
                    match self.right.exercise(&self.status).await {
                        Err(NoRight::Lost(text)) => return UploadEnd::BeginAgain(text),
                        // Told when it is begun.
                        Ok(()) | Err(NoRight::Passing(_)) => {}
                    }
                    if !self.is_fenced && created == 0 && !self.right.claim.is_first() {
                        return UploadEnd::FenceFirst;
                    }
                    let begun = self.begin_snapshot(txid).await;
                    self.answer(ToCapture::Snapshot(
                        attempt,
                        match &begun {
                            Ok(_) => SnapshotAnswer::Ready,
                            Err(error) if error.kind == StoreErrorKind::Exists => {
                                SnapshotAnswer::Named(error.to_string())
                            }
                            Err(error) => SnapshotAnswer::Failed(error.to_string()),
                        },
                    ));
                    snapshot = begun.ok();
                }
                ToUploader::SnapshotPiece(bytes) => {
                    // After a failure, which capture was told, the pieces that were on their way lead nowhere.
                    let Some(begun) = snapshot.as_mut() else { continue };
                    begun.crc.update(&bytes);
                    if let Err(error) = begun.upload.write(bytes).await {
                        self.answer(ToCapture::Snapshot(attempt, SnapshotAnswer::Failed(error.to_string())));
                        snapshot = None;
                    }
                }
                ToUploader::SnapshotEnd(summary) => {
                    let Some(begun) = snapshot.take() else { continue };
                    let finished = self.finish_snapshot(begun, &summary).await;
                    let answer = finished.map_or_else(SnapshotAnswer::Failed, |()| SnapshotAnswer::Stored);
                    self.answer(ToCapture::Snapshot(attempt, answer));
                }
                ToUploader::SnapshotAbort => {
                    if let Some(begun) = snapshot.take() {
                        // Nothing refers to it; what stays of it is the store's to clear.
                        let _ = begun.upload.abort().await;
                    }
                }
            }
        }
        UploadEnd::Done
    }

    fn answer(&self, answer: ToCapture) {
        // Without a receiver the capture thread has ended, which the loop sees next.
        let _ = self.answers.send(answer);
        self.wake.ring();
    }

    /// Creates the segment, however long that takes. An error is final.
    async fn create_segment(&self, segment: &SealedSegment, created: u64) -> Result<(), UploadEnd> {
        let key = keys::segment(segment.seq);
        let check = created < CHECK_FIRST || created.is_multiple_of(CHECK_EVERY);
        let mut delay = RETRY.0;
        loop {
            let error = match self.try_create(&key, segment, check).await {
                Ok(()) => break,
                Err(TryError::End(end)) => return Err(end),
                Err(TryError::Passing(error)) => error,
            };
            tracing::warn!(database = %self.status.path.display(), "upload {key}: {error}");
            self.status.error(format!("upload {key}: {error}"));
            pause(&mut delay).await;
        }
        self.status.update(|f| {
            f.uploaded.segments += 1;
            f.uploaded.segment_bytes += segment.len;
            f.uploaded.last = Some(time::now());
        });
        if self.right.is_own {
            let lineage = self.writer.lineage;
            self.right.lease.set_durable(segment.end().map(|pos| DurablePos { lineage, pos }));
        }
        Ok(())
    }

    async fn try_create(&self, key: &str, segment: &SealedSegment, check: bool) -> Result<(), TryError> {
        self.right.exercise(&self.status).await?;
        let bytes = segment.bytes().map_err(|error| {
            let text = format!("read {}: {error}", segment.path.display());
            self.status.error(text.clone());
            TryError::End(UploadEnd::BeginAgain(text))
        })?;
        let created = create::segment(&*self.store, Guards::ALL, &segment.header, bytes, &self.earlier).await;
        let version = created.map_err(|error| self.judge(key, error))?;
        if let Some(version) = version.filter(|_| check) {
            self.store.verify_created(key, &version, segment.len).await?;
        }
        // A name may have been free because what took it was bundled and deleted, while we had no right any more.
        if !self.right.lease.holds(segment.header.epoch).await {
            let text = format!("{key}: the lease was lost meanwhile");
            return Err(TryError::End(UploadEnd::BeginAgain(text)));
        }
        Ok(())
    }

    fn judge(&self, key: &str, error: CreateError) -> TryError {
        let begin_again = |text: String| TryError::End(UploadEnd::BeginAgain(format!("{key}: {text}")));
        match error {
            CreateError::Store(error) => TryError::Passing(error.to_string()),
            CreateError::OwnLate => begin_again("a request of our own came late".to_owned()),
            // Its writer may go on, and be faster every time, until the log is fenced.
            CreateError::Older { .. } => TryError::End(UploadEnd::FenceFirst),
            CreateError::Fenced { theirs } => begin_again(format!("epoch {} writes here by now", theirs.get())),
            CreateError::Conflict => TryError::End(UploadEnd::Conflict(format!(
                "another writer is at work in {}: {key} is not ours; stop the other one, then start this again",
                self.store.describe()
            ))),
        }
    }

    async fn begin_snapshot(&self, txid: Txid) -> Result<SnapshotUpload, StoreError> {
        if let Err(NoRight::Lost(text) | NoRight::Passing(text)) = self.right.exercise(&self.status).await {
            let kind = StoreErrorKind::Unavailable;
            return Err(StoreError::new(kind, Operation::Upload, "a snapshot", self.store.describe(), text));
        }
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, txid, self.writer.epoch);
        manifest_swap::clear_unnamed(&*self.store, &key).await?;
        let upload = self.store.upload(&key).await?;
        Ok(SnapshotUpload { key, upload, crc: Crc64::new() })
    }

    async fn finish_snapshot(&self, snapshot: SnapshotUpload, summary: &SnapshotSummary) -> Result<(), String> {
        let SnapshotUpload { key, upload, crc } = snapshot;
        // Not taken back where this fails, or is dropped.
        self.unnamed.store(true, Ordering::Release);
        let version = upload.finish().await.map_err(|e| e.to_string())?;
        self.store.verify_created(&key, &version, summary.len).await.map_err(|e| e.to_string())?;
        let file = ManifestFile {
            kind: FileKind::Snapshot,
            key,
            level: keys::SNAPSHOT_LEVEL,
            min_txid: Txid::FIRST,
            max_txid: summary.pos.txid,
            min_time: summary.time,
            max_time: summary.time,
            size: summary.len,
            crc64: Crc64Hex(crc.sum()),
            page_size: summary.page_size,
            commit: summary.commit,
            pre_apply: None,
            post_apply: summary.pos.checksum,
            pages: u64::from(summary.pages),
            entries: 1,
        };
        let Writer { lineage, epoch, .. } = self.writer;
        let author = Author { lineage, epoch, first_seq: self.first_seq };
        let named = name::snapshot(&*self.store, &RealWorld, Guards::ALL, &self.right.claim, author, &file).await;
        named.map_err(|e| e.to_string())?;
        self.unnamed.store(false, Ordering::Release);
        // Where there was no manifest nothing was fenced: whoever has the lease by now may have begun without having seen this one.
        if !self.right.lease.holds(epoch).await {
            return Err("the lease was lost before it was named".to_owned());
        }
        self.status.update(|f| {
            f.uploaded.files += 1;
            f.uploaded.file_bytes += summary.len;
            f.uploaded.last = Some(time::now());
        });
        Ok(())
    }
}

enum TryError {
    End(UploadEnd),
    Passing(String),
}

impl From<StoreError> for TryError {
    fn from(error: StoreError) -> Self {
        Self::Passing(error.to_string())
    }
}

impl From<NoRight> for TryError {
    fn from(error: NoRight) -> Self {
        match error {
            NoRight::Lost(text) => Self::End(UploadEnd::BeginAgain(text)),
            NoRight::Passing(text) => Self::Passing(text),
        }
    }
}

async fn pause(delay: &mut Duration) {
    tokio::time::sleep(*delay).await;
    *delay = (*delay * 2).min(RETRY.1);
}

#[cfg(test)]
mod tests {
    use rhyolite_format::segment::SegmentEntry;
    use rhyolite_format::{Checksum, Epoch, Lineage, PageCount, PageSize, Pos, Timestamp};
    use rhyolite_store::Memory;

    use super::*;
    use crate::capture::local_log::LocalLog;
    use crate::status::StatusBoard;

    fn segment(writer: Writer, folder: &std::path::Path) -> SealedSegment {
        let mut log = LocalLog::new(folder.to_owned(), writer, Seq::FIRST, Vec::new()).unwrap();
        log.begin(Timestamp(1)).unwrap().extend([7; 400]);
        let txid = Txid::FIRST.next();
        log.commit(SegmentEntry {
            min_txid: txid,
            max_txid: txid,
            offset: 0,
            len: 0,
            timestamp: Timestamp(1),
            page_size: PageSize::new(4096).unwrap(),
            commit: PageCount(1),
            pages: 1,
            pre_apply: Some(Checksum::EMPTY),
            post_apply: Checksum::EMPTY,
        });
        let sealed = log.seal().unwrap().unwrap();
        drop(log);
        Arc::into_inner(sealed).unwrap()
    }

    fn writer(nonce: u8) -> Writer {
        Writer { lineage: Lineage([1; 16]), epoch: Epoch::FIRST, nonce: Nonce([nonce; 16]) }
    }

    fn uploader(store: Arc<dyn Store>, earlier: Vec<Nonce>) -> Uploader {
        let (answers, _messages) = std::sync::mpsc::channel();
        let status = StatusBoard::new().add("app.db".into(), "state".into(), "memory:".into());
        let wake = Wake::new().unwrap();
        let world: Arc<dyn rhyolite_writer::World> = Arc::new(RealWorld);
        let lease = LeaseHandle::alone(Arc::clone(&world));
        let claim = Arc::new(Claim::new(Arc::clone(&store), world, Guards::ALL, Epoch::FIRST, None));
        let right = Right { lease, is_own: true, claim };
        Uploader {
            store,
            writer: writer(1),
            right,
            earlier,
            is_fenced: false,
            unnamed: Arc::default(),
            first_seq: Seq::FIRST,
            status,
            answers,
            wake,
        }
    }

    async fn upload_over(found: u8, earlier: Vec<Nonce>) -> Result<(), UploadEnd> {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let theirs = segment(writer(found), &folder.path().join("theirs")).bytes().unwrap();
        store.create(&keys::segment(Seq::FIRST), theirs).await.unwrap();
        let uploader = uploader(store, earlier);
        uploader.create_segment(&segment(writer(1), &folder.path().join("ours")), 0).await
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_judged_by_who_took_it() {
        assert_eq!(upload_over(1, Vec::new()).await, Ok(()), "our own bytes: an earlier try had worked");
        let other = upload_over(2, Vec::new()).await;
        assert!(matches!(other, Err(UploadEnd::Conflict(_))), "{other:?}");
        let late = upload_over(2, vec![Nonce([2; 16])]).await;
        assert!(matches!(late, Err(UploadEnd::BeginAgain(_))), "{late:?}");
    }

    /// Names a first snapshot; meanwhile the right is lost, or not.
    async fn first_snapshot(is_lost: bool) -> Result<(), String> {
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let uploader = uploader(Arc::clone(&store), Vec::new());
        let mut begun = uploader.begin_snapshot(Txid::FIRST).await.unwrap();
        let bytes = bytes::Bytes::from(vec![7; 5000]);
        begun.crc.update(&bytes);
        begun.upload.write(bytes).await.unwrap();
        if is_lost {
            uploader.right.lease.require_epoch(Epoch::FIRST.next());
        }
        let summary = SnapshotSummary {
            pos: Pos { txid: Txid::FIRST, checksum: Checksum::from_crc(1) },
            page_size: PageSize::new(4096).unwrap(),
            commit: PageCount(1),
            pages: 1,
            time: Timestamp(1),
            len: 5000,
            file_checksum: Checksum::EMPTY,
        };
        let finished = uploader.finish_snapshot(begun, &summary).await;
        assert!(store.get(keys::MANIFEST).await.is_ok(), "it is named either way: {finished:?}");
        finished
    }

    #[tokio::test]
    async fn a_first_snapshot_counts_only_if_the_right_was_there_when_it_was_named() {
        assert_eq!(first_snapshot(false).await, Ok(()));
        assert!(first_snapshot(true).await.is_err_and(|text| text.contains("the lease was lost")));
    }
}
