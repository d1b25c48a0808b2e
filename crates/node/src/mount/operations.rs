//! How often the kernel has asked, by operation: what a transaction on the mount costs, whatever the machine.

use std::sync::atomic::{AtomicU64, Ordering};

/// An operation of FUSE, by the name of its handler.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Lookup,
    Forget,
    GetAttributes,
    SetAttributes,
    ReadLink,
    MakeNode,
    MakeFolder,
    Unlink,
    RemoveFolder,
    SymbolicLink,
    Rename,
    Link,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Release,
    Sync,
    SyncFolder,
    OpenFolder,
    ReadFolder,
    ReleaseFolder,
    StatFileSystem,
    Allocate,
    GetLock,
    SetLock,
}

const NAMES: [&str; 27] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "fsyncdir",
    "opendir",
    "readdir",
    "releasedir",
    "statfs",
    "fallocate",
    "getlk",
    "setlk",
];

/// Of all mounts of the process, of which there is one.
static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// The kernel asks for this.
pub(super) fn count(operation: Operation) {
    COUNTS[operation as usize].fetch_add(1, Ordering::Relaxed);
}

/// Every operation that was asked for since the process began, with how often. Empty without a mount.
pub fn counts() -> Vec<(&'static str, u64)> {
    let counts = COUNTS.iter().map(|count| count.load(Ordering::Relaxed));
    NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
}
