//! The uploader of one database: segments in sequence, one at a time, and snapshots.
//!
//! A segment is durable when the store has acknowledged its creation. Its key is taken once and for ever; "exists" is settled
//! by reading back: the same bytes carry our nonce, so an earlier try had worked; others mean that somebody else writes to this
//! prefix. Then this uploader stops for good: two writers must not mix.
//!
//! Every error but that is tried again, without end, until the process stops.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::crc::Crc64;
use rhyolite_format::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::SegmentHeader;
use rhyolite_format::{Nonce, Seq, Txid, keys};
use rhyolite_store::{Store, StoreError, StoreErrorKind, Upload};
use tokio::sync::mpsc::Receiver;

use crate::capture::local_log::{SealedSegment, Writer};
use crate::capture::snapshot::SnapshotSummary;
use crate::capture::thread::{SnapshotAnswer, ToCapture, ToUploader};
use crate::capture::watch::Wake;
use crate::manifest_swap;
use crate::random;
use crate::status::DatabaseStatus;
use crate::time;

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
    /// By which earlier lives of this process knew their segments.
    pub earlier: Vec<Nonce>,
    /// The first sequence number of this session's log, for a manifest that does not exist yet.
    pub first_seq: Seq,
    /// Figures.
    pub status: Arc<DatabaseStatus>,
    /// Answers to the capture thread.
    pub answers: Sender<ToCapture>,
    /// Rung after every answer.
    pub wake: Wake,
}

/// Why an uploader ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadEnd {
    /// The capture thread has ended.
    Done,
    /// Somebody else writes to this prefix.
    Conflict(String),
    /// What is to be uploaded is gone or damaged, or an earlier life of this process has put something else in its place: begin
    /// again with what the store has.
    BeginAgain(String),
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
            let bytes = match segment.bytes() {
                Ok(bytes) => bytes,
                Err(error) => {
                    let text = format!("read {}: {error}", segment.path.display());
                    self.status.error(text.clone());
                    return Err(UploadEnd::BeginAgain(text));
                }
            };
            match self.try_create(&key, bytes, check).await {
                Ok(()) => {
                    self.status.update(|f| {
                        f.uploaded.segments += 1;
                        f.uploaded.segment_bytes += segment.len;
                        f.uploaded.last = Some(time::now());
                    });
                    return Ok(());
                }
                Err(TryError::Conflict) => {
                    let text = format!(
                        "another writer is at work in {}: {key} is not ours; stop the other one, then start this again",
                        self.store.describe()
                    );
                    return Err(UploadEnd::Conflict(text));
                }
                Err(TryError::OwnLate) => {
                    return Err(UploadEnd::BeginAgain(format!("{key}: a request of our own came late")));
                }
                Err(TryError::Store(error)) => {
                    tracing::warn!(database = %self.status.path.display(), "upload {key}: {error}");
                    self.status.error(format!("upload {key}: {error}"));
                    pause(&mut delay).await;
                }
            }
        }
    }

    async fn try_create(&self, key: &str, bytes: Bytes, check: bool) -> Result<(), TryError> {
        match self.store.create(key, bytes.clone()).await {
            Ok(version) if check => {
                let size = bytes.len() as u64;
                Ok(self.store.verify_created(key, &version, size).await?)
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind, StoreErrorKind::Exists | StoreErrorKind::Ambiguous) => {
                match self.store.get(key).await {
                    Ok(object) if object.bytes == bytes => Ok(()),
                    Ok(object) => match SegmentHeader::decode(&object.bytes) {
                        Ok(header) if self.earlier.contains(&header.nonce) => Err(TryError::OwnLate),
                        _ => Err(TryError::Conflict),
                    },
                    Err(_) => Err(TryError::Store(error)),
                }
            }
            Err(error) => Err(TryError::Store(error)),
        }
    }

    async fn begin_snapshot(&self, txid: Txid) -> Result<SnapshotUpload, StoreError> {
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, txid, self.writer.epoch);
        manifest_swap::clear_unnamed(&*self.store, &key).await?;
        let upload = self.store.upload(&key).await?;
        Ok(SnapshotUpload { key, upload, crc: Crc64::new() })
    }

    async fn finish_snapshot(&self, snapshot: SnapshotUpload, summary: &SnapshotSummary) -> Result<(), String> {
        let SnapshotUpload { key, upload, crc } = snapshot;
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
        let swapped =
            manifest_swap::update(&*self.store, time::now(), |manifest| Some(self.with_snapshot(manifest, &file)))
                .await;
        swapped.map_err(|e| e.to_string())?;
        self.status.update(|f| {
            f.uploaded.files += 1;
            f.uploaded.file_bytes += summary.len;
            f.uploaded.last = Some(time::now());
        });
        Ok(())
    }

    /// The manifest with one more snapshot. The first one starts the log.
    fn with_snapshot(&self, manifest: Option<Manifest>, file: &ManifestFile) -> Manifest {
        let Writer { lineage, epoch, .. } = self.writer;
        let nonce = Nonce(random::bytes());
        let first = manifest.is_none();
        let mut next = manifest.unwrap_or_else(|| Manifest::new(lineage, epoch, nonce, time::now(), self.first_seq));
        if first {
            next.log_start = Some(file.end());
        }
        next.files.retain(|f| f.key != file.key);
        next.retired_files.retain(|f| f.key != file.key);
        next.files.push(file.clone());
        next.files.sort_by_key(|f| (f.level, f.min_txid, f.max_txid));
        next
    }
}

enum TryError {
    /// Somebody else's object has the name.
    Conflict,
    /// One of our own from before we began again has it.
    OwnLate,
    Store(StoreError),
}

impl From<StoreError> for TryError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn pause(delay: &mut Duration) {
    tokio::time::sleep(*delay).await;
    *delay = (*delay * 2).min(RETRY.1);
}

#[cfg(test)]
mod tests {
    use rhyolite_format::segment::SegmentEntry;
    use rhyolite_format::{Checksum, Epoch, Lineage, PageCount, PageSize, Timestamp};
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

    async fn upload_over(found: u8, earlier: Vec<Nonce>) -> Result<(), UploadEnd> {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let theirs = segment(writer(found), &folder.path().join("theirs")).bytes().unwrap();
        store.create(&keys::segment(Seq::FIRST), theirs).await.unwrap();
        let (answers, _messages) = std::sync::mpsc::channel();
        let status = StatusBoard::new().add("app.db".into(), "state".into(), "memory:".into());
        let wake = Wake::new().unwrap();
        let uploader = Uploader { store, writer: writer(1), earlier, first_seq: Seq::FIRST, status, answers, wake };
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
}
