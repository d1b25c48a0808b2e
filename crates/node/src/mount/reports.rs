//! Files that lie nowhere and say how far the log has come: `NAME-pos` beside a database, and `.lag` in the mount's root; and `NAME-lock`, which is empty and can be locked.
//!
//! They have LiteFS's form, so what was written for it can use them: an application that hands the position on to whoever is to see its write, for one; or a migration
//! that locks byte 72 of `NAME-lock`, to be the only one that writes. Where everything is written here, that keeps out those who lock it, too, and no one else, as with
//! LiteFS's primary; on a replica whose writes are forwarded it borrows the primary's write lock for more than one transaction ([`super::lending`]). They can be opened and are not listed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};

use super::database::is_wal;
use super::lag::Lag;
use super::nodes::Nodes;
use crate::capture::commits::{CommitLine, CommitLines};

/// Set in the inode numbers of reports, and in no other.
const REPORT: u64 = 1 << 63;
/// What the lag of a mount is called.
const LAG_NAME: &str = ".lag";
const POS_SUFFIX: &[u8] = b"-pos";
const LOCK_SUFFIX: &[u8] = b"-lock";
/// Set as well in that of a file which is locked.
const LOCK: u64 = 1 << 62;

/// What a file says when it is opened.
#[derive(Clone, Debug)]
pub(super) enum Report {
    /// The last commit in the log of this database.
    Pos(Arc<CommitLine>),
    /// How far the databases are behind those of the primary.
    Lag(Arc<Lag>),
    /// Nothing: it is there to be locked.
    Lock,
}

/// The database that a name asks something of.
fn database_of<'n>(name: &'n OsStr, suffix: &[u8]) -> Option<&'n OsStr> {
    name.as_bytes().strip_suffix(suffix).filter(|base| !base.is_empty()).map(OsStr::from_bytes)
}

/// The database of `NAME-lock`.
pub(super) fn database_of_lock(name: &OsStr) -> Option<&OsStr> {
    database_of(name, LOCK_SUFFIX)
}

/// A name that may mean a report a moment later, if it does not now.
pub(super) fn may_mean_one(name: &OsStr) -> bool {
    name == LAG_NAME || [POS_SUFFIX, LOCK_SUFFIX].iter().any(|suffix| database_of(name, suffix).is_some())
}

impl Report {
    /// What a name means that no file has, and the number of what it is about.
    pub(super) fn of_name(
        parent: INodeNo,
        name: &OsStr,
        nodes: &Nodes,
        (lines, lag): (&CommitLines, &Arc<Lag>),
        is_lent: bool,
    ) -> Option<(u64, Self)> {
        if parent == INodeNo::ROOT && name == LAG_NAME {
            return Some((parent.0, Self::Lag(Arc::clone(lag))));
        }
        let folder = nodes.get(parent).ok()?;
        let captured = |base: &OsStr| {
            let inode = nodes.number_of(&folder, base)?;
            let line = lines.get(inode).filter(|line| !folder.is_ours && line.captured().is_some())?;
            Some((inode, line))
        };
        if let Some(base) = database_of(name, LOCK_SUFFIX) {
            let lent = || {
                let node = nodes.sibling(&folder, base).filter(|node| is_lent && !node.is_ours)?;
                node.open(OFlags::RDONLY).is_ok_and(|file| is_wal(&file)).then_some(node.inode)
            };
            return captured(base).map(|(inode, _)| inode).or_else(lent).map(|inode| (inode | LOCK, Self::Lock));
        }
        captured(database_of(name, POS_SUFFIX)?).map(|(inode, line)| (inode, Self::Pos(line)))
    }

    /// Whether whoever opens it may want to write: a lock that keeps others out needs that.
    pub(super) fn may_be_written(&self) -> bool {
        matches!(self, Self::Lock)
    }

    /// Whether it is there to be locked.
    pub(super) fn is_lock(&self) -> bool {
        matches!(self, Self::Lock)
    }

    /// Its inode number, from that of the database or of the root.
    pub(super) fn inode(of: u64) -> u64 {
        of | REPORT
    }

    fn text(&self) -> String {
        match self {
            Self::Lag(lag) => lag.text(),
            Self::Lock => String::new(),
            Self::Pos(line) => match line.captured() {
                Some((pos, _)) => format!("{}/{}\n", pos.txid, pos.checksum),
                None => String::new(),
            },
        }
    }

    fn changed(&self) -> SystemTime {
        let time = match self {
            Self::Pos(line) => line.captured().map(|(_, time)| time),
            Self::Lag(_) | Self::Lock => Some(crate::time::now()),
        };
        let milliseconds = time.and_then(|time| u64::try_from(time.0).ok()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    /// A file with what there is to say now.
    pub(super) fn open(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("report", MemfdFlags::CLOEXEC)?);
        file.write_all(self.text().as_bytes())?;
        Ok(file)
    }

    /// What the kernel is told of it.
    pub(super) fn attributes(&self, inode: u64) -> FileAttr {
        let time = self.changed();
        FileAttr {
            ino: INodeNo(inode),
            size: self.text().len() as u64,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: if self.may_be_written() { 0o666 } else { 0o444 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
