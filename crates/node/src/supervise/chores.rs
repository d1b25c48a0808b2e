//! What is done for parked databases when it is due, some of it at a time, without a timer for each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};

use super::DatabaseId;

/// Chores of one kind that are done at a time.
const RUNNING_MAX: usize = 4;

/// What is due, and what runs. A chore gives a `T`.
#[derive(Debug)]
pub(super) struct Chores<T> {
    due: BTreeSet<(Instant, DatabaseId)>,
    when: HashMap<DatabaseId, Instant>,
    running: JoinSet<T>,
    handles: HashMap<tokio::task::Id, DatabaseId>,
    aborts: HashMap<DatabaseId, AbortHandle>,
    woken: HashSet<DatabaseId>,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Due<T> {
    /// It is time for this one's.
    Begin(DatabaseId),
    /// That of this one has ended.
    Ended {
        id: DatabaseId,
        /// It was interrupted.
        was_woken: bool,
        /// What came of it; nothing when it was cut off.
        done: Option<T>,
    },
}

impl<T: 'static> Default for Chores<T> {
    fn default() -> Self {
        Self {
            due: BTreeSet::new(),
            when: HashMap::new(),
            running: JoinSet::new(),
            handles: HashMap::new(),
            aborts: HashMap::new(),
            woken: HashSet::new(),
        }
    }
}

impl<T: Send + 'static> Chores<T> {
    pub(super) fn plan(&mut self, id: DatabaseId, after: Duration) {
        self.forget(id);
        let when = Instant::now() + after;
        self.when.insert(id, when);
        self.due.insert((when, id));
    }

    pub(super) fn forget(&mut self, id: DatabaseId) {
        if let Some(when) = self.when.remove(&id) {
            self.due.remove(&(when, id));
        }
    }

    /// The database is needed: nothing more is planned, and what runs is ended. `true` when something runs: the end of it comes as
    /// [`Due::Ended`].
    pub(super) fn interrupt(&mut self, id: DatabaseId) -> bool {
        self.forget(id);
        let Some(abort) = self.aborts.get(&id) else { return false };
        abort.abort();
        self.woken.insert(id);
        true
    }

    pub(super) fn stop(&mut self) {
        self.running.abort_all();
    }

    /// Ends everything, and waits for that. Gives those that were interrupted before.
    pub(super) async fn end_all(&mut self) -> Vec<DatabaseId> {
        self.running.shutdown().await;
        self.handles.clear();
        self.aborts.clear();
        self.woken.drain().collect()
    }

    /// The next thing to do. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Due<T> {
        loop {
            let first = self.due.first().copied().filter(|_| self.aborts.len() < RUNNING_MAX);
            let due = async {
                match first {
                    Some((when, _)) => tokio::time::sleep_until(when.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    let (task, done) = match ended {
                        Ok((task, done)) => (task, Some(done)),
                        Err(error) => (error.id(), None),
                    };
                    let Some(id) = self.handles.remove(&task) else { continue };
                    self.aborts.remove(&id);
                    return Due::Ended { id, was_woken: self.woken.remove(&id), done };
                }
                () = due => {
                    let (_, id) = self.due.pop_first().expect("it was there");
                    self.when.remove(&id);
                    return Due::Begin(id);
                }
            }
        }
    }

    /// Whether one of this database's runs.
    pub(super) fn is_running(&self, id: DatabaseId) -> bool {
        self.aborts.contains_key(&id)
    }

    pub(super) fn begin(&mut self, id: DatabaseId, work: impl Future<Output = T> + Send + 'static) {
        let abort = self.running.spawn(work);
        self.handles.insert(abort.id(), id);
        self.aborts.insert(id, abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_tells_who_waits_for_a_chore_to_end() {
        let mut chores: Chores<()> = Chores::default();
        for id in 1..=3 {
            chores.begin(id, std::future::pending());
        }
        assert!(chores.interrupt(2), "it runs");
        assert!(!chores.interrupt(4), "nothing runs");
        assert_eq!(chores.end_all().await, [2]);
        assert!(!chores.is_running(1) && !chores.interrupt(2), "nothing runs any more");
    }
}
