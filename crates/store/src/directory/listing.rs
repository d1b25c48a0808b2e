//! Walking the folder in the order of keys.
//!
//! Keys are sorted by their bytes, and a slash is one of them: the file `a-b` comes before the files in the folder `a`,
//! because `-` sorts before `/`. So a folder is sorted as its name with a slash behind.

use std::fs::DirEntry;
use std::io;
use std::path::Path;

use super::files::{Folder, is_absent, meta_of};
use crate::key::RESERVED_PREFIX;
use crate::types::Entry;
use crate::{Operation, StoreError};

/// Deepest nesting of folders that is followed.
const DEPTH_MAX: usize = 64;

/// What is asked for, and what was found so far.
struct Walk<'a> {
    folder: &'a Folder,
    after: Option<&'a str>,
    limit: usize,
    found: Vec<Entry>,
}

/// A name in a folder.
struct Child {
    /// As it continues a key: a folder ends with a slash.
    name: String,
    entry: DirEntry,
}

impl Folder {
    /// At most `limit` objects below `prefix` (no slash at its end), sorted, strictly after `after`.
    pub(super) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let mut walk = Walk { folder: self, after, limit, found: Vec::new() };
        let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        walk.below(&start, 0).map_err(|e| self.io_error(Operation::List, prefix, "read the folder", &e))?;
        Ok(walk.found)
    }
}

impl Folder {
    /// Removes the folder `prefix` and those in it, as far as they hold nothing but this module's own files.
    pub(super) fn remove_empty(&self, prefix: &str) -> Result<(), StoreError> {
        let gone = remove_empty(&self.path(prefix), 0);
        gone.map_err(|e| self.io_error(Operation::Delete, prefix, "remove the folder", &e))
    }
}

fn remove_empty(folder: &Path, depth: usize) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) if depth <= DEPTH_MAX => entries.collect::<io::Result<Vec<_>>>()?,
        Err(e) if !is_absent(&e) => return Err(e),
        _ => return Ok(()),
    };
    let mut own = Vec::new();
    for entry in entries {
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path(), depth + 1)?;
        } else if entry.file_name().to_str().is_some_and(|name| name.starts_with(RESERVED_PREFIX)) {
            own.push(entry.path());
        } else {
            // An object: the folder stays, and so does its lock.
            return Ok(());
        }
    }
    own.into_iter().try_for_each(std::fs::remove_file)?;
    match std::fs::remove_dir(folder) {
        // A folder in it has stayed.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

impl Walk<'_> {
    /// Takes in what lies below `prefix`, which is empty or ends with a slash.
    fn below(&mut self, prefix: &str, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX || self.is_before(prefix) {
            return Ok(());
        }
        for child in self.children(prefix)? {
            if self.found.len() >= self.limit {
                break;
            }
            let key = format!("{prefix}{}", child.name);
            if key.ends_with('/') {
                self.below(&key, depth + 1)?;
            } else if self.after.is_none_or(|after| key.as_str() > after) {
                self.take(key, &child.entry)?;
            }
        }
        Ok(())
    }

    /// Do all keys that begin with `prefix` come before what is asked for?
    fn is_before(&self, prefix: &str) -> bool {
        self.after.is_some_and(|after| prefix < after && !after.starts_with(prefix))
    }

    fn children(&self, prefix: &str) -> io::Result<Vec<Child>> {
        let entries = match std::fs::read_dir(self.folder.path(prefix)) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(mut name) = entry.file_name().into_string() else { continue };
            if name.starts_with(RESERVED_PREFIX) {
                continue;
            }
            match is_folder(&entry) {
                Ok(true) => name.push('/'),
                Ok(false) => {}
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(e),
            }
            children.push(Child { name, entry });
        }
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    /// Adds a file, unless it has gone since its name was read.
    fn take(&mut self, key: String, entry: &DirEntry) -> io::Result<()> {
        let meta = match std::fs::metadata(entry.path()) {
            Ok(meta) => meta_of(&meta),
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(e),
        };
        self.found.push(Entry { key, size: meta.size, modified: meta.modified });
        Ok(())
    }
}

/// Symbolic links are followed: a user may keep a part of the store on another disk.
fn is_folder(entry: &DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    if kind.is_symlink() { Ok(std::fs::metadata(entry.path())?.is_dir()) } else { Ok(kind.is_dir()) }
}
