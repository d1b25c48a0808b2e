//! Files on the server: what each request is, and what its failure means.
//!
//! OpenSSH answers most errors of the file system with one word, "Failure": what it was about is found out by looking afterwards.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use russh_sftp::client::error::Error;
use russh_sftp::protocol::{FileAttributes, FileType, OpenFlags, Packet, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use super::connect::Session;

/// Bytes of one read or write: what every server takes.
const PIECE_BYTES: usize = 32 << 10;

/// Pieces that are on their way at once.
const PIECES_IN_FLIGHT: usize = 16;

const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) is_folder: bool,
    pub(super) is_link: bool,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: u32,
}

impl From<&FileAttributes> for Stat {
    fn from(attributes: &FileAttributes) -> Self {
        let kind = attributes.file_type();
        Self {
            is_folder: kind == FileType::Dir,
            is_link: kind == FileType::Symlink,
            size: attributes.size.unwrap_or(0),
            modified: attributes.mtime.unwrap_or(0),
        }
    }
}

/// A session, and the right to have one more file open in it.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) session: Arc<Session>,
    pub(super) _slot: OwnedSemaphorePermit,
}

/// An open file or folder; closed when dropped, also when a future is.
#[derive(Debug)]
pub(super) struct Open {
    session: Arc<Session>,
    handle: Option<String>,
}

impl Open {
    fn handle(&self) -> &str {
        self.handle.as_deref().expect("only closing takes it")
    }

    pub(super) async fn stat(&self) -> Result<Stat, Error> {
        Ok(Stat::from(&self.session.sftp.fstat(self.handle()).await?.attrs))
    }

    /// Bytes from `start` to `end`; fewer if the file ends before.
    pub(super) async fn read(&self, start: u64, end: u64) -> Result<Bytes, Error> {
        let offsets = (start..end).step_by(PIECE_BYTES);
        let pieces = offsets.map(|offset| self.read_piece(offset, end.min(offset + PIECE_BYTES as u64)));
        let mut pieces = stream::iter(pieces).buffered(PIECES_IN_FLIGHT);
        let mut bytes = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.freeze())
    }

    async fn read_piece(&self, start: u64, end: u64) -> Result<Vec<u8>, Error> {
        let mut piece = Vec::with_capacity((end - start) as usize);
        while start + (piece.len() as u64) < end {
            let at = start + piece.len() as u64;
            match self.session.sftp.read(self.handle(), at, (end - at) as u32).await {
                Ok(data) if data.data.is_empty() || data.data.len() as u64 > end - at => {
                    return Err(Error::UnexpectedBehavior("the server sent another number of bytes".to_owned()));
                }
                Ok(data) => piece.extend_from_slice(&data.data),
                Err(Error::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(e) => return Err(e),
            }
        }
        Ok(piece)
    }

    pub(super) async fn write(&self, at: u64, bytes: &Bytes) -> Result<(), Error> {
        let pieces = (0..bytes.len()).step_by(PIECE_BYTES).map(|start| {
            let piece = bytes[start..bytes.len().min(start + PIECE_BYTES)].to_vec();
            self.session.sftp.write(self.handle(), at + start as u64, piece)
        });
        let mut written = stream::iter(pieces).buffer_unordered(PIECES_IN_FLIGHT);
        while let Some(piece) = written.next().await {
            piece?;
        }
        Ok(())
    }

    /// Makes sure that the bytes are on the server's disk, where the server offers that.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        if self.session.has_fsync {
            self.session.sftp.fsync(self.handle()).await?;
        }
        Ok(())
    }

    pub(super) async fn close(mut self) -> Result<(), Error> {
        let handle = self.handle.take().expect("only closing takes it");
        self.session.sftp.close(handle).await.map(drop)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let session = Arc::clone(&self.session);
            runtime.spawn(async move { session.sftp.close(handle).await.map(drop) });
        }
    }
}

impl Files {
    fn open_as(&self, handle: String) -> Open {
        Open { session: Arc::clone(&self.session), handle: Some(handle) }
    }

    pub(super) async fn open(&self, path: &str) -> Result<Open, Error> {
        let opened = self.session.sftp.open(path, OpenFlags::READ, FileAttributes::empty()).await?;
        Ok(self.open_as(opened.handle))
    }

    /// A new file, which must not exist.
    pub(super) async fn create(&self, path: &str) -> Result<Open, Error> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let attributes = FileAttributes { permissions: Some(FILE_MODE), ..FileAttributes::empty() };
        Ok(self.open_as(self.session.sftp.open(path, flags, attributes).await?.handle))
    }

    pub(super) async fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        found(self.session.sftp.stat(path).await.map(|a| Stat::from(&a.attrs)))
    }

    pub(super) async fn make_folder(&self, path: &str) -> Result<(), Error> {
        let attributes = FileAttributes { permissions: Some(FOLDER_MODE), ..FileAttributes::empty() };
        self.session.sftp.mkdir(path, attributes).await.map(drop)
    }

    /// Makes the folder and those above it that are missing.
    pub(super) async fn make_folders(&self, path: &str) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut at = path.trim_end_matches('/');
        while !at.is_empty() && self.stat(at).await?.is_none() {
            missing.push(at);
            at = at.rfind('/').map_or("", |slash| &at[..slash]);
        }
        for folder in missing.into_iter().rev() {
            if let Err(e) = self.make_folder(folder).await
                && self.stat(folder).await?.is_none()
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// Gives the file a second name; fails if it is taken.
    pub(super) async fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        self.session.sftp.hardlink(from, to).await.map(drop)
    }

    /// Renames as rename(2) does: replaces a file or an empty folder in one step, never a full one.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let mut data = Vec::with_capacity(from.len() + to.len() + 8);
        for path in [from, to] {
            data.extend_from_slice(&(path.len() as u32).to_be_bytes());
            data.extend_from_slice(path.as_bytes());
        }
        match self.session.sftp.extended("posix-rename@openssh.com", data).await? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(Error::Status(status)),
            _ => Err(Error::UnexpectedPacket),
        }
    }

    pub(super) async fn set_modified(&self, path: &str, seconds: u32) -> Result<(), Error> {
        let attributes = FileAttributes { atime: Some(seconds), mtime: Some(seconds), ..FileAttributes::empty() };
        self.session.sftp.setstat(path, attributes).await.map(drop)
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), Error> {
        self.session.sftp.remove(path).await.map(drop)
    }

    pub(super) async fn remove_folder(&self, path: &str) -> Result<(), Error> {
        self.session.sftp.rmdir(path).await.map(drop)
    }

    /// Names in a folder, without `.` and `..`; `None` if there is no such folder. Names that are no UTF-8 are left out.
    pub(super) async fn read_folder(&self, path: &str) -> Result<Option<Vec<(String, Stat)>>, Error> {
        let path = if path.is_empty() { "." } else { path };
        let Some(opened) = found(self.session.sftp.opendir(path).await)? else { return Ok(None) };
        let folder = self.open_as(opened.handle);
        let mut names = Vec::new();
        loop {
            match self.session.sftp.readdir(folder.handle()).await {
                Ok(some) => names.extend(some.files.iter().map(|f| (f.filename.clone(), Stat::from(&f.attrs)))),
                Err(Error::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(e) => return Err(e),
            }
        }
        folder.close().await?;
        names.retain(|(name, _)| !matches!(name.as_str(), "." | "..") && !name.contains(['/', '\u{fffd}']));
        Ok(Some(names))
    }
}

/// "No such file" is an answer.
pub(super) fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Status(status) if status.status_code == StatusCode::NoSuchFile)
}

/// Did the server refuse, so that nothing has happened and the session is well?
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Status(_))
}
