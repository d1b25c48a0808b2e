//! A folder that somebody has open.
//!
//! SQLite opens the folder of a database to sync it, at each commit with a journal that is removed. So it is listed only when somebody reads it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};

use fuser::FileType;

use crate::mount::nodes::{is_hidden, kind};

/// Number, type and name of what lies in a folder.
pub(super) type Listed = (u64, FileType, Vec<u8>);

/// An open folder, and what lay in it when it was read last from its beginning.
#[derive(Debug)]
pub(super) struct OpenFolder {
    folder: File,
    listed: Mutex<Arc<Vec<Listed>>>,
}

impl OpenFolder {
    pub(super) fn new(folder: File) -> Self {
        Self { folder, listed: Mutex::default() }
    }

    /// What lies in it, for who reads from entry `start` on. A place in the list stays what it is until somebody reads from the beginning
    /// again.
    pub(super) fn read(&self, start: u64) -> io::Result<Arc<Vec<Listed>>> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if start == 0 {
            *listed = Arc::new(self.list()?);
        }
        Ok(Arc::clone(&listed))
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes().to_vec();
            if !is_hidden(OsStr::from_bytes(&name)) {
                listed.push((entry.ino(), kind(entry.file_type()), name));
            }
        }
        Ok(listed)
    }

    /// Writes to the disk what came and went in it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_listed_anew_by_who_reads_it_from_the_beginning() {
        let path = tempfile::tempdir().unwrap();
        let folder = OpenFolder::new(File::open(path.path()).unwrap());
        std::fs::write(path.path().join("a"), b"").unwrap();
        let names = |start| -> Vec<Vec<u8>> {
            let listed = folder.read(start).unwrap();
            listed.iter().map(|(_, _, name)| name.clone()).filter(|name| name[0] != b'.').collect()
        };
        assert_eq!(names(0), [b"a"]);
        std::fs::rename(path.path().join("a"), path.path().join("b")).unwrap();
        std::fs::create_dir(path.path().join(".b-rhyolite")).unwrap();
        assert_eq!(names(1), [b"a"], "in the middle of reading");
        assert_eq!(names(0), [b"b"]);
    }
}
