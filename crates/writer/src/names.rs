//! Names of objects that the manifest is to name: each is used once.
//!
//! A name tells level, transactions and epoch, so a second try at the same object has the name of the first. That must not be: what the
//! first try sent may still come in, an upload over the second one's object, or a deletion of it, when the manifest already names it. Two tasks of
//! one process that make the same object hurt each other in the same way. So a name whose fate is not certain is used up for its epoch; who
//! needs it asks for a higher epoch ([`crate::lease_keeper::LeaseHandle::require_epoch`]), as every process does when it starts.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rhyolite_format::Epoch;

/// The names that one process has used for one database, in its present epoch.
#[derive(Debug)]
pub struct Names {
    used: Mutex<(Epoch, BTreeSet<String>)>,
}

/// A name that was taken. It stays used unless it is given back.
#[derive(Debug)]
#[must_use = "a name is taken to be written to"]
pub struct Name<'a> {
    names: &'a Names,
    key: String,
}

impl Names {
    /// None was used yet.
    pub fn new(epoch: Epoch) -> Self {
        Self { used: Mutex::new((epoch, BTreeSet::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, (Epoch, BTreeSet<String>)> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name under `epoch`. `None` when it was taken before.
    pub fn take(&self, epoch: Epoch, key: &str) -> Option<Name<'_>> {
        let mut used = self.lock();
        if used.0 != epoch {
            *used = (epoch, BTreeSet::new());
        }
        used.1.insert(key.to_owned()).then(|| Name { names: self, key: key.to_owned() })
    }
}

impl Name<'_> {
    /// The name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Nothing was written under it, for certain.
    pub fn give_back(self) {
        self.names.lock().1.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_in_an_epoch() {
        let (first, second) = (Epoch::FIRST, Epoch::FIRST.next());
        let names = Names::new(first);
        let name = names.take(first, "ltx/9/a").expect("it is free");
        assert_eq!(name.key(), "ltx/9/a");
        assert!(names.take(first, "ltx/9/a").is_none(), "it is in use");
        name.give_back();
        drop(names.take(first, "ltx/9/a").expect("nothing was written"));
        assert!(names.take(first, "ltx/9/a").is_none(), "something may have been written");
        assert!(names.take(first, "ltx/9/b").is_some());
        assert!(names.take(second, "ltx/9/a").is_some(), "the key of another epoch is another one");
    }
}
