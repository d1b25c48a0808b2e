//! Walking folders in the order of keys: a folder is sorted as its name with a slash behind, as in the directory backend.

use std::collections::BTreeMap;

use russh_sftp::client::error::Error;

use super::files::{Files, Stat, found};
use super::{Asked, Effect, Sftp, meta_of};
use crate::key::RESERVED_PREFIX;
use crate::types::Entry;
use crate::{Operation, StoreError};

/// Deepest nesting of folders that is followed.
const DEPTH_MAX: usize = 64;

enum Step {
    Folder(String),
    Object(Entry),
}

impl Sftp {
    /// At most `limit` objects below `prefix` (no slash at its end), sorted, strictly after `after`.
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let asked = Asked { operation: Operation::List, key: prefix };
        let files = self.files(asked).await?;
        let mut found = Vec::new();
        // Folders that are still to be walked, and the objects among them, next one last.
        let mut ahead = vec![Step::Folder(if prefix.is_empty() { String::new() } else { format!("{prefix}/") })];
        while found.len() < limit {
            let folder = match ahead.pop() {
                None => break,
                Some(Step::Object(entry)) => {
                    found.push(entry);
                    continue;
                }
                Some(Step::Folder(folder)) => folder,
            };
            let is_before = after.is_some_and(|after| folder.as_str() < after && !after.starts_with(&folder));
            if is_before || folder.matches('/').count() > DEPTH_MAX {
                continue;
            }
            let children = self.children(&files, &folder).await;
            let children = children.map_err(|e| self.failed(asked, &files, Effect::None, "read the folder", &e))?;
            let steps = children.into_iter().rev().filter_map(|(name, stat)| {
                let key = format!("{folder}{name}");
                if stat.is_folder {
                    return Some(Step::Folder(key));
                }
                let meta = meta_of(stat);
                let entry = Entry { key, size: meta.size, modified: meta.modified };
                after.is_none_or(|after| entry.key.as_str() > after).then_some(Step::Object(entry))
            });
            ahead.extend(steps);
        }
        Ok(found)
    }

    /// What lies in a folder, by name; the names of folders end with a slash. Symbolic links are followed.
    async fn children(&self, files: &Files, folder: &str) -> Result<BTreeMap<String, Stat>, Error> {
        let path = self.path(folder);
        let names = files.read_folder(path.trim_end_matches('/')).await?.unwrap_or_default();
        let mut children = BTreeMap::new();
        for (mut name, mut stat) in names.into_iter().filter(|(name, _)| !name.starts_with(RESERVED_PREFIX)) {
            if stat.is_link {
                match files.stat(&format!("{path}{name}")).await? {
                    Some(target) => stat = target,
                    None => continue,
                }
            }
            if stat.is_folder {
                name.push('/');
            }
            children.insert(name, stat);
        }
        Ok(children)
    }

    /// Removes the folder and those in it, as far as they hold nothing but this module's own files.
    pub(super) async fn remove_empty(&self, prefix: &str) -> Result<(), StoreError> {
        let asked = Asked { operation: Operation::Delete, key: prefix };
        if prefix.is_empty() || !self.list(prefix, None, 1).await?.is_empty() {
            return Ok(());
        }
        let files = self.files(asked).await?;
        let removed = remove_all(&files, self.path(prefix)).await;
        removed.map_err(|e| self.failed(asked, &files, Effect::None, "remove the folder", &e))
    }
}

/// Removes a folder in which nobody has an object.
async fn remove_all(files: &Files, root: String) -> Result<(), Error> {
    let mut folders = vec![root];
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        for (name, stat) in files.read_folder(&folder).await?.unwrap_or_default() {
            let path = format!("{folder}/{name}");
            match stat.is_folder {
                true => folders.push(path),
                false => drop(found(files.remove(&path).await)?),
            }
        }
        next += 1;
    }
    for folder in folders.into_iter().rev() {
        found(files.remove_folder(&folder).await)?;
    }
    Ok(())
}
