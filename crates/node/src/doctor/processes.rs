//! Who has a database's files open or locked, as `/proc` shows it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rhyolite_logic::doctor::{Holder, Lock};
use rustix::fs::{major, minor};

use super::Files;

/// What all processes together show.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Those that have one of the files open.
    pub(super) holders: Vec<Holder>,
    /// Those that cannot be looked into.
    pub(super) hidden: u64,
    /// Instances of inotify of this user.
    pub(super) inotify: u64,
}

/// A file, whatever its name.
type FileId = (u64, u64);

fn id(path: &Path) -> Option<FileId> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Looks into every process but this one. `None` where the system has no `/proc`.
pub(super) fn look(files: &Files) -> Option<Seen> {
    let entries = fs::read_dir("/proc").ok()?;
    let ours: Vec<FileId> = [&files.database, &files.wal, &files.shm].into_iter().filter_map(|path| id(path)).collect();
    let namespace = fs::read_link("/proc/self/ns/mnt").ok()?;
    let user = rustix::process::getuid().as_raw();
    let mut seen = Seen::default();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let folder = entry.path();
        let Ok(descriptors) = fs::read_dir(folder.join("fd")) else {
            // One that has just ended is none.
            seen.hidden += u64::from(folder.exists());
            continue;
        };
        let is_of_user = entry.metadata().is_ok_and(|meta| meta.uid() == user);
        let (mut holds, mut holds_deleted) = (false, false);
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            seen.inotify += u64::from(is_of_user && target == Path::new("anon_inode:inotify"));
            holds |= may_be(&target, files) && id(&descriptor.path()).is_some_and(|id| ours.contains(&id));
            holds_deleted |= is_deleted(&target, files);
        }
        if holds || holds_deleted {
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default().trim().to_owned();
            let is_elsewhere = fs::read_link(folder.join("ns/mnt")).is_ok_and(|other| other != namespace);
            let maps_database = maps(&folder.join("maps"), &files.database);
            seen.holders.push(Holder { pid, name, maps_database, holds_deleted, is_elsewhere });
        }
    }
    seen.holders.sort_by_key(|holder| holder.pid);
    Some(seen)
}

/// Whether a descriptor's target has a name like one of ours: only then it is worth a closer look, which may wait for its file system.
fn may_be(target: &Path, files: &Files) -> bool {
    let names = [&files.database, &files.wal, &files.shm];
    names.into_iter().any(|path| target.file_name() == path.file_name())
}

/// Whether it is a file of our name that is not there any more.
fn is_deleted(target: &Path, files: &Files) -> bool {
    let Some(path) = target.to_str().and_then(|text| text.strip_suffix(" (deleted)")) else { return false };
    [&files.database, &files.wal].into_iter().any(|ours| Path::new(path) == ours.as_path())
}

/// Whether the database itself, not its `-shm`, is mapped.
fn maps(table: &Path, database: &PathBuf) -> bool {
    let Ok(text) = fs::read_to_string(table) else { return false };
    text.lines()
        .any(|line| line.splitn(6, char::is_whitespace).nth(5).is_some_and(|path| Path::new(path.trim()) == database))
}

/// Locks on the database and `-shm`, of processes but this one.
pub(super) fn locks(files: &Files) -> Vec<Lock> {
    let Ok(table) = fs::read_to_string("/proc/locks") else { return Vec::new() };
    let named = [("the database", &files.database), ("-shm", &files.shm)];
    let ids: Vec<(String, &'static str)> = named
        .into_iter()
        .filter_map(|(name, path)| {
            let meta = fs::metadata(path).ok()?;
            Some((format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino()), name))
        })
        .collect();
    let lock = |line: &str| {
        let mut words = line.split_whitespace().skip(1).peekable();
        let is_waiting = words.next_if_eq(&"->").is_some();
        let pid = words.nth(3)?.parse().ok()?;
        let id = words.next()?;
        let (_, file) = ids.iter().find(|(ours, _)| ours == id)?;
        Some(Lock { pid, is_waiting, file })
    };
    table.lines().filter_map(lock).filter(|lock| lock.pid != std::process::id()).collect()
}
