//! The folder below the mount, which must be empty.
//!
//! While nothing is mounted, an application may open a database there: it makes an empty one. When it goes on after the mount has come, its open
//! file is that empty one, and the WAL that it finds by its name is that of the real database: SQLite removes a WAL beside an empty database, and
//! the commits in it with it. So it is looked for once nobody can make anything there any more, and before anybody is answered.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Dir, Mode, OFlags, open};

/// The folder, opened before something is mounted over it.
#[derive(Debug)]
pub(super) struct Place {
    folder: File,
    hidden: Arc<OnceLock<String>>,
}

impl Place {
    pub(super) fn open(at: &Path) -> io::Result<Self> {
        let folder = open(at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { folder: folder.into(), hidden: Arc::default() })
    }

    /// Where [`Self::check`] leaves the name of what it has found.
    pub(super) fn hidden(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.hidden)
    }

    /// Whether something lies there. Names that begin with a dot are no databases, and `lost+found` comes with a file system.
    pub(super) fn check(&self) -> io::Result<()> {
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !name.starts_with(b".") && name != b"lost+found" {
                let _ = self.hidden.set(OsStr::from_bytes(name).display().to_string());
                return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_has_made_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open(folder.path()).unwrap();
        std::fs::write(folder.path().join(".gitkeep"), b"").unwrap();
        std::fs::create_dir(folder.path().join("lost+found")).unwrap();
        place.check().unwrap();
        std::fs::write(folder.path().join("app.db"), b"").unwrap();
        assert_eq!(place.check().unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(place.hidden().get().unwrap(), "app.db");
    }
}
