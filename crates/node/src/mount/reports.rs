//! Files that lie nowhere and say how far the log has come: `NAME-pos` beside a database, and `.lag` in the mount's root.
//!
//! They have LiteFS's form, so what was written for it can read them: an application that hands the position on to
//! whoever is to see its write, for one. They can be opened and are not listed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, MemfdFlags, memfd_create, statat};

use super::nodes::Nodes;
use crate::capture::commits::{CommitLine, CommitLines};

/// Set in the inode numbers of reports, and in no other.
const REPORT: u64 = 1 << 63;
/// What the lag of a mount is called, on which everything is written here: it is none.
const LAG_NAME: &str = ".lag";
const LAG: &str = "+000000000\n";
const POS_SUFFIX: &[u8] = b"-pos";

/// What a file says when it is opened.
#[derive(Clone, Debug)]
pub(super) enum Report {
    /// The last commit in the log of this database.
    Pos(Arc<CommitLine>),
    /// How far the databases are behind those of the primary.
    Lag,
}

/// The database that a name asks the position of.
fn database_of(name: &OsStr) -> Option<&OsStr> {
    name.as_bytes().strip_suffix(POS_SUFFIX).filter(|base| !base.is_empty()).map(OsStr::from_bytes)
}

/// A name that may mean a report a moment later, if it does not now.
pub(super) fn may_mean_one(name: &OsStr) -> bool {
    name == LAG_NAME || database_of(name).is_some()
}

impl Report {
    /// What a name means that no file has, and the number of what it is about.
    pub(super) fn of_name(parent: INodeNo, name: &OsStr, nodes: &Nodes, lines: &CommitLines) -> Option<(u64, Self)> {
        if parent == INodeNo::ROOT && name == LAG_NAME {
            return Some((parent.0, Self::Lag));
        }
        let (folder, base) = (nodes.get(parent).ok()?, database_of(name)?);
        let inode = statat(&folder.fd, base, AtFlags::SYMLINK_NOFOLLOW).ok()?.st_ino;
        let line = lines.get(inode).filter(|line| !folder.is_ours && line.captured().is_some())?;
        Some((inode, Self::Pos(line)))
    }

    /// Its inode number, from that of the database or of the root.
    pub(super) fn inode(of: u64) -> u64 {
        of | REPORT
    }

    fn text(&self) -> String {
        match self {
            Self::Lag => LAG.to_owned(),
            Self::Pos(line) => match line.captured() {
                Some((pos, _)) => format!("{}/{}\n", pos.txid, pos.checksum),
                None => String::new(),
            },
        }
    }

    fn changed(&self) -> SystemTime {
        let time = match self {
            Self::Pos(line) => line.captured().map(|(_, time)| time),
            Self::Lag => Some(crate::time::now()),
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
            perm: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
