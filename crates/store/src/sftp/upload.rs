//! Big objects: a draft that grows, then a rename. Each piece is on the server when the write returns.

use async_trait::async_trait;
use bytes::Bytes;

use super::files::{Files, Open, is_absent};
use super::turn::random_hex;
use super::{Asked, Effect, Sftp, meta_of};
use crate::{Operation, StoreError, StoreErrorKind as Kind, Upload, Version};

#[derive(Debug)]
pub(super) struct SftpUpload {
    store: Sftp,
    key: String,
    draft: String,
    files: Files,
    /// `None` after a write that failed: its bytes may be there in part.
    file: Option<Open>,
    written: u64,
    is_done: bool,
}

impl SftpUpload {
    pub(super) async fn begin(store: Sftp, asked: Asked<'_>) -> Result<Self, StoreError> {
        let files = store.files(asked).await?;
        let folder = store.folder_of(asked.key);
        let draft = format!("{folder}.rhyolite-tmp-{}", random_hex());
        let failed = |verb: &str, e: &_| store.failed(asked, &files, Effect::None, verb, e);
        let file = match files.create(&draft).await {
            Err(e) if is_absent(&e) => {
                files.make_folders(&folder).await.map_err(|e| failed("make the folder", &e))?;
                files.create(&draft).await
            }
            opened => opened,
        };
        let file = Some(file.map_err(|e| failed("open a draft", &e))?);
        Ok(Self { store: store.clone(), key: asked.key.to_owned(), draft, files, file, written: 0, is_done: false })
    }

    fn take_file(&mut self) -> Result<Open, StoreError> {
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        let reason = "an earlier write of this upload failed: start it again";
        self.file.take().ok_or_else(|| self.store.error(asked, Kind::Invalid, reason))
    }
}

#[async_trait]
impl Upload for SftpUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let file = self.take_file()?;
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        let written = file.write(self.written, &bytes).await;
        written.map_err(|e| self.store.failed(asked, &self.files, Effect::None, "write", &e))?;
        self.written += bytes.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Version, StoreError> {
        let file = self.take_file()?;
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        let failed = |effect, verb: &str, e: &_| self.store.failed(asked, &self.files, effect, verb, e);
        file.sync().await.map_err(|e| failed(Effect::None, "sync", &e))?;
        let stat = file.stat().await.map_err(|e| failed(Effect::None, "stat", &e))?;
        file.close().await.map_err(|e| failed(Effect::None, "close", &e))?;
        let path = self.store.path(&self.key);
        if !self.files.session.has_posix_rename {
            let reason = "the server does not offer posix-rename@openssh.com";
            return Err(self.store.error(asked, Kind::Invalid, reason));
        }
        self.files.rename(&self.draft, &path).await.map_err(|e| failed(Effect::Named, "rename", &e))?;
        self.is_done = true;
        Ok(meta_of(stat).version)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        drop(self.file.take());
        self.is_done = true;
        let asked = Asked { operation: Operation::Upload, key: &self.key };
        let removed = self.files.remove(&self.draft).await;
        removed.map_err(|e| self.store.failed(asked, &self.files, Effect::None, "remove the draft", &e))
    }
}

impl Drop for SftpUpload {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (session, draft) = (std::sync::Arc::clone(&self.files.session), self.draft.clone());
            runtime.spawn(async move { session.sftp.remove(draft).await.map(drop) });
        }
    }
}
