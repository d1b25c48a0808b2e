//! Why a database could not be restored, verified or followed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rhyolite_format::{Checksum, DecodeError, Lineage, PageNumber, Pos, Timestamp, Txid};
use rhyolite_logic::litestream3_plan::OldPlanError;
use rhyolite_logic::restore_plan::PlanError;
use rhyolite_logic::store_kind::Ambiguous;
use rhyolite_store::{StoreError, StoreErrorKind};

/// Why a restore failed. Its text is one line for the user and names the object or the file.
#[derive(Debug)]
pub enum RestoreError {
    /// The store holds no database here: there is no `id.json`.
    NoDatabase {
        /// Where it was looked for.
        store: String,
    },
    /// The store is none of ours, and several replicas of Litestream lie in it.
    Ambiguous {
        /// Where they lie.
        store: String,
        /// What lies there.
        found: Ambiguous,
    },
    /// A request to the store failed.
    Store(StoreError),
    /// An object does not hold what it should.
    Damaged {
        /// The object, relative to the database's prefix.
        key: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// An object that the manifest or the log names is not there.
    Missing {
        /// The object, relative to the database's prefix.
        key: String,
    },
    /// An object of the log is missing or damaged, and the wanted state may lie behind it.
    Hole {
        /// What is wrong.
        damage: Box<RestoreError>,
        /// The last restore point before it, and its time, if there is one.
        last: Option<(Txid, Timestamp)>,
    },
    /// Two objects that cannot both be right.
    Contradiction {
        /// The object that does not fit.
        key: String,
        /// What it contradicts.
        detail: String,
    },
    /// The wanted state cannot be reached.
    Plan(PlanError),
    /// The wanted state of a Litestream 0.3 replica cannot be reached.
    OldPlan(OldPlanError),
    /// A page of the wanted state is in no object that should hold it.
    PageMissing {
        /// The first such page.
        pgno: PageNumber,
        /// How many there are.
        pages: u32,
        /// The wanted state.
        pos: Pos,
    },
    /// Everything was read, but the checksum of the whole database is another than the log's.
    WrongChecksum {
        /// The wanted state.
        pos: Pos,
        /// What the pages that were read add up to.
        found: Checksum,
    },
    /// A page is another than the one that was committed.
    WrongPage {
        /// The page.
        pgno: PageNumber,
        /// The state that it is a page of.
        pos: Pos,
    },
    /// The output exists and may not be replaced.
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A `-wal` or `-journal` lies beside the output, which SQLite would apply to the restored database.
    Companion {
        /// That file.
        path: PathBuf,
    },
    /// Another process restores to the same output.
    Busy {
        /// The draft that it holds.
        draft: PathBuf,
    },
    /// The database to follow or to compare is of another history.
    WrongLineage {
        /// What the store holds.
        store: Lineage,
        /// What the file belongs to.
        file: Lineage,
    },
    /// The followed file is not what it was left as.
    Diverged {
        /// The followed file.
        path: PathBuf,
        /// The transaction that it should be at.
        txid: Txid,
        /// Why it cannot be that.
        detail: String,
    },
    /// A file could not be used.
    Io {
        /// What was being done, for example `"create"`.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The work was cancelled before it ended.
    Cancelled,
}

impl RestoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// The object that is not as it should be, if it says that of one.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Damaged { key, .. } | Self::Missing { key } | Self::Contradiction { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whether it says that one object is not as it should be.
    pub(crate) fn is_about_an_object(&self) -> bool {
        self.key().is_some()
    }

    /// Whether trying again may help: the store or the disk has failed, not what they hold.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Io { .. } | Self::Cancelled)
    }

    /// A request for an object that must exist has failed.
    pub(crate) fn read(key: &str, source: StoreError) -> Self {
        match source.kind {
            StoreErrorKind::NotFound => Self::Missing { key: key.to_owned() },
            StoreErrorKind::Corrupt => Self::contradiction(key, source.reason),
            _ => Self::Store(source),
        }
    }

    pub(crate) fn damaged(key: &str, source: DecodeError) -> Self {
        Self::Damaged { key: key.to_owned(), source }
    }

    pub(crate) fn contradiction(key: &str, detail: impl Into<String>) -> Self {
        Self::Contradiction { key: key.to_owned(), detail: detail.into() }
    }
}

impl From<PlanError> for RestoreError {
    fn from(source: PlanError) -> Self {
        Self::Plan(source)
    }
}

impl From<StoreError> for RestoreError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguous { store, found } => write!(f, "{store} holds {found}"),
            Self::NoDatabase { store } => write!(f, "{store} holds no replicated database (there is no id.json)"),
            Self::Store(e) => e.fmt(f),
            Self::Damaged { key, source } => write!(f, "{key} is damaged: {source}"),
            Self::Missing { key } => write!(f, "{key} is missing from the store"),
            Self::Hole { damage, last: None } => damage.fmt(f),
            Self::Hole { damage, last: Some((last, _)) } => {
                write!(f, "{damage}; the last restore point before it is TXID {last}")
            }
            Self::Contradiction { key, detail } => write!(f, "{key} does not fit: {detail}"),
            Self::Plan(e) => e.fmt(f),
            Self::OldPlan(e) => e.fmt(f),
            Self::PageMissing { pgno, pages, pos } => {
                write!(f, "{pages} pages of transaction {} are in no object, the first is page {pgno}", pos.txid)
            }
            Self::WrongChecksum { pos, found } => {
                write!(f, "the pages of transaction {} add up to {found}, not to {}", pos.txid, pos.checksum)
            }
            Self::WrongPage { pgno, pos } => {
                write!(f, "page {pgno} of transaction {} is not the one that was committed", pos.txid)
            }
            Self::Exists { path } => write!(f, "{} exists", path.display()),
            Self::Companion { path } => {
                write!(
                    f,
                    "{} would be applied to it: end whatever uses the database, run PRAGMA wal_checkpoint(TRUNCATE), or remove the file if \
                     what it holds is not needed",
                    path.display()
                )
            }
            Self::Busy { draft } => write!(f, "another process is writing {}", draft.display()),
            Self::WrongLineage { store, file } => {
                write!(f, "the store holds another history ({store}) than the file ({file})")
            }
            Self::Diverged { path, txid, detail } => {
                write!(f, "{} is no longer the database at transaction {txid}: {detail}", path.display())
            }
            Self::Io { action, path, source } => write!(f, "{action} {}: {source}", path.display()),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(e) => Some(e),
            Self::Damaged { source, .. } => Some(source),
            Self::Hole { damage, .. } => damage.source(),
            Self::Plan(e) => Some(e),
            Self::OldPlan(e) => Some(e),
            Self::Ambiguous { found, .. } => Some(found),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
