//! From a URL or a path to a backend.
//!
//! | written as | store |
//! |---|---|
//! | `./dir`, `/dir`, `dir`, `file:///dir` | a local folder |
//! | `memory:` | memory of this process, empty at first |
//!
//! Whatever is not understood is an error: an unknown scheme, an unknown option, an option without effect.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Directory, Memory, Operation, Store, StoreError, StoreErrorKind};

/// Where credentials and defaults come from.
#[derive(Clone, Debug, Default)]
pub enum Environment {
    /// The environment variables of this process.
    #[default]
    Process,
    /// Just these: for tests, and for settings that were read from a file.
    Fixed(BTreeMap<String, String>),
}

impl Environment {
    /// The value of a variable; empty ones count as absent.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = match self {
            Self::Process => std::env::var(name).ok(),
            Self::Fixed(variables) => variables.get(name).cloned(),
        };
        value.filter(|v| !v.is_empty())
    }
}

/// What [`open`] needs beside the URL.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Where credentials and defaults come from.
    pub environment: Environment,
}

/// Opens a store. Makes no request and creates nothing: a wrong bucket or folder shows with the first call.
///
/// The result does not retry and does not count; wrap it in [`crate::Counted`] and [`crate::Retrying`].
pub fn open(url_or_path: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let _ = options;
    let refuse = |reason: &str| Err(StoreError::new(StoreErrorKind::Invalid, Operation::Open, "", url_or_path, reason));
    if url_or_path == "memory:" {
        return Ok(Arc::new(Memory::new()));
    }
    if url_or_path.is_empty() {
        return refuse("the path is empty");
    }
    match url_or_path.split_once("://") {
        None => Ok(Arc::new(Directory::new(url_or_path))),
        Some(("file", path)) if path.starts_with('/') => Ok(Arc::new(Directory::new(path))),
        Some(("file", _)) => refuse("a file URL has three slashes and an absolute path: file:///var/backups"),
        Some((scheme, _)) => refuse(&format!("unknown scheme {scheme:?}")),
    }
}
