//! Big objects: one PUT whose body grows, to a name that nobody reads, then a move. Memory holds what is on its way, no more.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use reqwest::Body;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::WebDav;
use super::request::{ANSWER_TIMEOUT, Asked, Effect, Request};
use super::turn::{folder_of, random_hex};
use crate::{Operation, StoreError, StoreErrorKind as Kind, Upload, Version};

/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;

/// Longest silence while the server takes a piece, and while it stores the whole.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that the request as a whole is given time for: no limit that matters, for every piece has its own.
const UPLOAD_BYTES_ASSUMED: u64 = 1 << 40;

#[derive(Debug)]
pub(super) struct DavUpload {
    store: WebDav,
    key: String,
    draft: String,
    pieces: Option<mpsc::Sender<Bytes>>,
    request: JoinHandle<Result<u16, StoreError>>,
    is_done: bool,
}

impl DavUpload {
    pub(super) async fn begin(store: WebDav, asked: Asked<'_>) -> Result<Self, StoreError> {
        let folder = folder_of(asked.key);
        store.dav.make_folders(asked, folder).await?;
        let draft = format!("{folder}.rhyolite-tmp-{}", random_hex());
        let (sender, receiver) = mpsc::channel::<Bytes>(PIECES_MAX);
        let body = stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), receiver))
        });
        let (dav, key, url) = (store.dav.clone(), asked.key.to_owned(), store.dav.url(&draft));
        let request = tokio::spawn(async move {
            let asked = Asked { operation: Operation::Upload, key: &key };
            let request = Request { method: "PUT", url, headers: Vec::new(), body: Body::wrap_stream(body) };
            let answer = dav.send(asked, Effect::Change, UPLOAD_BYTES_ASSUMED, request).await?;
            match answer.status {
                200..=299 => Ok(answer.status),
                _ => Err(dav.refusal(asked, Effect::None, &answer)),
            }
        });
        Ok(Self { store, key: asked.key.to_owned(), draft, pieces: Some(sender), request, is_done: false })
    }

    fn asked(&self) -> Asked<'_> {
        Asked { operation: Operation::Upload, key: &self.key }
    }

    fn error(&self, kind: Kind, reason: &str) -> StoreError {
        self.store.dav.error(self.asked(), kind, reason)
    }

    /// How the request ended; the draft has no name that counts, so nothing is ambiguous.
    async fn ended(&mut self) -> Result<(), StoreError> {
        let ended = tokio::time::timeout(PIECE_TIMEOUT + ANSWER_TIMEOUT, &mut self.request).await;
        match ended {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(e))) if e.is_ambiguous() => Err(StoreError { kind: Kind::Unavailable, ..e }),
            Ok(Ok(Err(e))) => Err(e),
            Ok(Err(_)) => Err(self.error(Kind::Unavailable, "the upload was stopped")),
            Err(_) => Err(self.error(Kind::Unavailable, "no answer to the upload")),
        }
    }
}

#[async_trait]
impl Upload for DavUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(pieces) = self.pieces.take() else {
            return Err(self.error(Kind::Invalid, "an earlier write of this upload failed: start it again"));
        };
        match tokio::time::timeout(PIECE_TIMEOUT, pieces.send(bytes)).await {
            Ok(Ok(())) => {
                self.pieces = Some(pieces);
                Ok(())
            }
            // The request has ended before its body.
            Ok(Err(_)) => match self.ended().await {
                Err(e) => Err(e),
                Ok(()) => Err(self.error(Kind::Unavailable, "the server answered before the upload was whole")),
            },
            Err(_) => Err(self.error(Kind::Unavailable, "the server does not take the upload")),
        }
    }

    async fn finish(mut self: Box<Self>) -> Result<Version, StoreError> {
        if self.pieces.take().is_none() {
            return Err(self.error(Kind::Invalid, "an earlier write of this upload failed: start it again"));
        }
        self.ended().await?;
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        let answer = self.store.dav.rename(asked, &self.draft, &self.key, true).await?;
        if !(200..300).contains(&answer.status) {
            return Err(self.store.dav.refusal(asked, Effect::Change, &answer));
        }
        let version = self.store.version_written(asked).await?;
        self.is_done = true;
        Ok(version)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        self.request.abort();
        self.is_done = true;
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        self.store.dav.change(asked, "DELETE", &self.draft, Vec::new()).await.map(drop)
    }
}

impl Drop for DavUpload {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.request.abort();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key, draft) = (self.store.clone(), self.key.clone(), self.draft.clone());
            runtime.spawn(async move {
                let asked = Asked { operation: Operation::Upload, key: &key };
                let _ = store.dav.change(asked, "DELETE", &draft, Vec::new()).await;
            });
        }
    }
}
