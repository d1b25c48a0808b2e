//! The positions that followed files have passed ([`rhyolite_logic::trail`]), of all databases of a process. A process that has just started remembers
//! none, and a file that is ahead of the store then counts as a branch.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rhyolite_format::Pos;
use rhyolite_logic::trail::Trail;

/// The trails of all databases, by name.
#[derive(Debug, Default)]
pub struct Trails {
    passed: Mutex<HashMap<String, Trail>>,
    proved: Mutex<HashSet<String>>,
}

impl Trails {
    /// The file has come through these positions, in this order, to the last of them.
    pub fn note(&self, name: &str, passed: impl IntoIterator<Item = Pos>) {
        self.lock().entry(name.to_owned()).or_default().note(passed);
    }

    /// The file was made another: it has come from nowhere.
    pub fn forget(&self, name: &str) {
        self.proved().remove(name);
        self.lock().remove(name);
    }

    /// The node that is followed has gone on from where the file is: its position is one of the history that this node has.
    pub fn prove(&self, name: &str) {
        let mut proved = self.proved();
        if !proved.contains(name) {
            proved.insert(name.to_owned());
        }
    }

    /// Another node is followed from here on: nobody knows yet whose history the files are.
    pub fn doubt_all(&self) {
        self.proved().clear();
    }

    /// Whether the position of a file is known to be one of the history that the followed node has.
    pub fn is_proved(&self, name: &str) -> bool {
        self.proved().contains(name)
    }

    fn proved(&self) -> MutexGuard<'_, HashSet<String>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file has been there.
    pub fn has(&self, name: &str, pos: Pos) -> bool {
        self.lock().get(name).is_some_and(|trail| trail.has(pos))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Trail>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;

    #[test]
    fn what_was_passed_is_known_until_the_file_is_another() {
        let pos = |n| Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n) };
        let trails = Trails::default();
        trails.note("a", [pos(1), pos(2)]);
        trails.note("a", [pos(2), pos(3)]);
        assert!(
            trails.has("a", pos(1)) && trails.has("a", pos(3)) && !trails.has("a", pos(4)) && !trails.has("b", pos(1))
        );
        assert!(!trails.has("a", Pos { checksum: Checksum::from_crc(9), ..pos(2) }));
        trails.prove("a");
        assert!(trails.is_proved("a") && !trails.is_proved("b"));
        trails.doubt_all();
        assert!(!trails.is_proved("a") && trails.has("a", pos(1)));
        trails.prove("a");
        trails.forget("a");
        assert!(!trails.is_proved("a"));
        assert!(!trails.has("a", pos(1)));
    }
}
