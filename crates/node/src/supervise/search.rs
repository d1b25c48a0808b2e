//! Finds the databases in a folder: by name, then by what every SQLite file begins with.
//!
//! Invariant: a file that is already replicated, wherever it was named or found, is not opened here. Closing it would drop the locks that this
//! process has on it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhyolite_logic::pick::is_state_folder;

use crate::config::folder::FolderConfig;

/// First bytes of every SQLite database.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Folders below one another that are searched at most.
const DEPTH_MAX: usize = 32;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Databases, by their paths relative to the folder.
    pub(super) databases: HashSet<Arc<str>>,
    /// Folders that were searched.
    pub(super) folders: Vec<PathBuf>,
    /// Files with the right names that may be about to become databases: they are empty, begin with nothing yet, or could not be looked at.
    pub(super) unsure: usize,
    /// What could not be looked at, one line each.
    pub(super) problems: Vec<String>,
    /// Folders that were not read whole, by their paths there.
    unread: Vec<String>,
}

impl Found {
    /// The folder itself could not be read.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.iter().any(String::is_empty)
    }

    /// Whether a database that was not found may be there all the same: a folder that cannot be read says nothing about what is in it.
    pub(super) fn may_hide(&self, name: &str) -> bool {
        let is_below = |folder: &String| {
            folder.is_empty() || name.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.unread.iter().any(is_below)
    }
}

/// The databases in a folder, by their paths relative to it, in order; and what could not be looked at.
pub(crate) fn databases_in(config: &FolderConfig) -> (Vec<Arc<str>>, Vec<String>) {
    let found = search(config, &HashSet::new());
    let mut databases: Vec<_> = found.databases.into_iter().collect();
    databases.sort();
    (databases, found.problems)
}

/// Searches. Those in `known` are taken for databases as long as they exist.
pub(super) fn search(config: &FolderConfig, known: &HashSet<Arc<str>>) -> Found {
    let mut found = Found::default();
    let mut stack = vec![(config.dir.clone(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = stack.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                found.problems.push(format!("{}: {error}", folder.display()));
                found.unread.push(prefix);
                continue;
            }
        };
        found.folders.push(folder.clone());
        for entry in entries {
            let looked = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
            // Symbolic links are left alone: what they lead to may lie in the folder as well.
            let (kind, entry) = match looked {
                Ok(looked) => looked,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    found.problems.push(format!("{}: {error}", folder.display()));
                    found.unread.push(prefix.clone());
                    // Another try at the next entry may fail for ever.
                    break;
                }
            };
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                found.problems.push(format!("{}: the name is not UTF-8", entry.path().display()));
                continue;
            };
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            if kind.is_dir() && config.recursive && depth < DEPTH_MAX && !is_state_folder(name) {
                stack.push((entry.path(), path, depth + 1));
            } else if kind.is_file() && config.pick.takes(&path) {
                take(&mut found, &entry.path(), Arc::from(path), known);
            }
        }
    }
    found
}

fn take(found: &mut Found, file: &Path, path: Arc<str>, known: &HashSet<Arc<str>>) {
    if known.contains(&path) {
        found.databases.insert(path);
        return;
    }
    let mut start = [0; MAGIC.len()];
    match File::open(file).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if start == *MAGIC => drop(found.databases.insert(path)),
        Ok(()) => found.unsure += usize::from(start == [0; MAGIC.len()]),
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => {
            found.unsure += 1
        }
        Err(error) => {
            found.problems.push(format!("{}: {error}", file.display()));
            found.unsure += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_hides_only_what_is_below_it() {
        let found =
            |unread: &[&str]| Found { unread: unread.iter().map(ToString::to_string).collect(), ..Found::default() };
        let part = found(&["sub", "deep/er"]);
        assert!(part.may_hide("sub/a.db") && part.may_hide("deep/er/a.db"));
        assert!(!part.may_hide("a.db") && !part.may_hide("subs/a.db") && !part.may_hide("deep/a.db"));
        assert!(found(&[""]).may_hide("a.db"), "the folder itself");
        assert!(!found(&[]).may_hide("a.db"));
    }

    /// What is about to become a database, or could not be looked at, is looked at again.
    #[test]
    fn what_may_become_a_database_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 5] = [
            ("empty.db", b""),
            ("begun.db", b"SQLite"),
            ("nothing.db", &[0; 4096]),
            ("other.db", b"this is some other file"),
            ("whole.db", b"SQLite format 3\0 and so on"),
        ];
        let mut found = Found::default();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
            take(&mut found, &folder.path().join(name), Arc::from(name), &HashSet::new());
        }
        take(&mut found, &folder.path().join("gone.db"), Arc::from("gone.db"), &HashSet::new());
        fs::create_dir(folder.path().join("folder.db")).unwrap();
        take(&mut found, &folder.path().join("folder.db"), Arc::from("folder.db"), &HashSet::new());
        assert_eq!((found.databases, found.unsure), (HashSet::from([Arc::from("whole.db")]), 5));
        assert_eq!(found.problems.len(), 1, "a folder cannot be read as a file");
    }
}
