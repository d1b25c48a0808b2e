//! What a cluster of a test is made of.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, fail};

/// Where a commit must be before it is called safe (`--durability`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    /// In the store.
    Store,
    /// On the disk of another node.
    Replica,
    /// On the disks of a majority.
    Quorum,
}

impl Safety {
    /// The level by which nodes are asked; `None` where only the store counts.
    pub fn level(self) -> Option<&'static str> {
        match self {
            Self::Store => None,
            Self::Replica => Some("replica"),
            Self::Quorum => Some("quorum"),
        }
    }
}

impl FromStr for Safety {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "store" => Ok(Self::Store),
            "replica" => Ok(Self::Replica),
            "quorum" => Ok(Self::Quorum),
            _ => fail("store, replica or quorum"),
        }
    }
}

/// How the application writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// `journal_mode = wal`.
    Wal,
    /// `journal_mode = delete`.
    Delete,
}

impl Journal {
    /// As SQLite calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Delete => "delete",
        }
    }
}

impl FromStr for Journal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "wal" => Ok(Self::Wal),
            "delete" => Ok(Self::Delete),
            _ => fail("wal or delete"),
        }
    }
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Nodes that may become the primary.
    pub candidates: usize,
    /// When a commit is called safe.
    pub safety: Safety,
    /// The folders are mounted, and the application writes like this; `None`: folders, in WAL mode.
    pub mount: Option<Journal>,
    /// On the mounts anybody writes, also on a replica (`--write-forwarding transparent`).
    pub is_forwarded: bool,
    /// There is one more node, which dials nobody and is dialed by the primary.
    pub is_pushed: bool,
    /// How long commits wait for their upload at most, as the command line has it.
    pub sync_interval: &'static str,
}

impl Setting {
    /// Folders, and the store alone counts.
    pub fn plain(candidates: usize) -> Self {
        Self {
            candidates,
            safety: Safety::Store,
            mount: None,
            is_forwarded: false,
            is_pushed: false,
            sync_interval: "100ms",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.mount.map_or("folders".to_owned(), |journal| format!("mounts, {}", journal.name()));
        write!(f, "{} nodes on {place}", self.candidates)?;
        if let Some(level) = self.safety.level() {
            write!(f, ", --durability {level}")?;
        }
        if self.is_forwarded {
            write!(f, ", --write-forwarding transparent")?;
        }
        if self.is_pushed {
            write!(f, ", one that is pushed to")?;
        }
        write!(f, ", --sync-interval {}", self.sync_interval)
    }
}
