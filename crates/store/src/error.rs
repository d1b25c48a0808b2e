//! What is said about a call that failed. The kinds follow what the caller does next.

use std::fmt;

/// What was asked of a store. Also the label of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Understand a URL and prepare a backend.
    Open,
    /// `Store::get`
    Get,
    /// `Store::get_range`
    GetRange,
    /// `Store::get_tail`
    GetTail,
    /// `Store::head`
    Head,
    /// `Store::create`
    Create,
    /// `Store::swap_if`
    Swap,
    /// `Store::upload` and what follows
    Upload,
    /// `Store::list_after`
    List,
    /// `Store::delete`
    Delete,
    /// `Store::verify_created`
    Verify,
}

impl Operation {
    /// Every operation, in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::Open,
        Self::Get,
        Self::GetRange,
        Self::GetTail,
        Self::Head,
        Self::Create,
        Self::Swap,
        Self::Upload,
        Self::List,
        Self::Delete,
        Self::Verify,
    ];

    /// One lower-case word, fit for a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::GetTail => "get_tail",
            Self::Head => "head",
            Self::Create => "create",
            Self::Swap => "swap",
            Self::Upload => "upload",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Verify => "verify",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GetRange => "read a range of",
            Self::GetTail => "read the end of",
            Self::Get => "read",
            Self::Head => "look at",
            Self::Swap => "replace",
            _ => self.name(),
        })
    }
}

/// Why a call failed, by what the caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreErrorKind {
    /// There is no such object (bucket, folder): plan again, or tell the user.
    NotFound,
    /// The key to create is taken: read what is there.
    Exists,
    /// The object to replace is not the expected version: read it and decide again.
    Conflict,
    /// Missing or wrong credentials or permissions: tell the user; trying again soon does not help.
    Denied,
    /// The store did not answer, or said that it could not for the moment. Nothing was written: try again.
    Unavailable,
    /// A write that may or may not have happened: read back before anything else.
    Ambiguous,
    /// No space or quota: tell the user, keep what is local, try again later.
    Full,
    /// The answer contradicts what was stored or announced: do not use it.
    Corrupt,
    /// The call or the configuration makes no sense here: a person must change it.
    Invalid,
}

impl StoreErrorKind {
    /// Every kind, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::NotFound,
        Self::Exists,
        Self::Conflict,
        Self::Denied,
        Self::Unavailable,
        Self::Ambiguous,
        Self::Full,
        Self::Corrupt,
        Self::Invalid,
    ];

    /// One lower-case word, fit for a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Ambiguous => "ambiguous",
            Self::Full => "full",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
        }
    }

    /// What the reader of the message can do, if the kind alone says it.
    const fn advice(self) -> &'static str {
        match self {
            Self::Denied => "check the credentials and permissions",
            Self::Unavailable => "trying again may help",
            Self::Ambiguous => "it may or may not have happened: read it back before trying again",
            Self::Full => "free some space or raise the quota",
            Self::NotFound | Self::Exists | Self::Conflict | Self::Corrupt | Self::Invalid => "",
        }
    }
}

/// A call to a store that failed: what was asked, of what, where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// What the caller does about it.
    pub kind: StoreErrorKind,
    /// What was asked.
    pub operation: Operation,
    /// Of which object; a prefix for lists; may be empty.
    pub key: String,
    /// Of which store, as [`crate::Store::describe`] says it.
    pub store: String,
    /// Why it failed, in words.
    pub reason: String,
}

impl StoreError {
    /// Puts the parts together.
    pub fn new(
        kind: StoreErrorKind,
        operation: Operation,
        key: impl Into<String>,
        store: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self { kind, operation, key: key.into(), store: store.into(), reason: reason.into() }
    }

    /// Is it worth asking the same again? Only true where nothing was written.
    pub fn is_unavailable(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }

    /// May the write have happened all the same?
    pub fn is_ambiguous(&self) -> bool {
        self.kind == StoreErrorKind::Ambiguous
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), self.operation) {
            (true, _) => write!(f, "{} {}: {}", self.operation, self.store, self.reason)?,
            (false, Operation::Upload) => write!(f, "upload {} to {}: {}", self.key, self.store, self.reason)?,
            (false, op) => write!(f, "{op} {} in {}: {}", self.key, self.store, self.reason)?,
        }
        let advice = self.kind.advice();
        if advice.is_empty() { Ok(()) } else { write!(f, " ({advice})") }
    }
}

impl std::error::Error for StoreError {}
