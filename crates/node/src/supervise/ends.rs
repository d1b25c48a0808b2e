//! How the life of a database ends, and what becomes of the database then.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rhyolite_format::state::parked::DatabaseMark;
use tokio::task::{self, JoinError};

use super::{DatabaseId, Life, Member, PARKED_MAX, Stage, Supervisor};
use crate::config::DatabaseConfig;
use crate::lease;
use crate::memory;
use crate::park as rest;
use crate::replicate::{Outcome, RELEASE_WAIT, ReplicateError, SharedPast};
use crate::status::State;

/// Pause before a failed database is opened again: twice as long after each failure.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What was done under shared leases is remembered of so many databases that are gone.
const PASTS_MAX: usize = 10_000;

/// The failures of a database since it last did well. Of thousands most have none.
#[derive(Debug, Default)]
pub(super) struct Failures(Option<Box<Trouble>>);

#[derive(Debug, Default)]
struct Trouble {
    count: u32,
    not_before: Option<Instant>,
    told: Option<String>,
}

impl Failures {
    /// Takes one in. The pause before the next try, and whether this was told before.
    fn note(&mut self, text: &str) -> (Duration, bool) {
        let trouble = self.0.get_or_insert_default();
        let pause = PAUSE_MIN.saturating_mul(1 << trouble.count.min(16)).min(PAUSE_MAX);
        trouble.count += 1;
        trouble.not_before = Some(Instant::now() + pause);
        let was_told = trouble.told.as_deref() == Some(text);
        trouble.told = Some(text.to_owned());
        (pause, was_told)
    }

    /// What is left of the pause, if anything is.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        let left = self.0.as_ref()?.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Another try may be made at once: there will be no other time for it.
    pub(super) fn hurry(&mut self) {
        if let Some(trouble) = &mut self.0 {
            trouble.not_before = None;
        }
    }

    /// Another try may be made at once: something was changed that may help.
    pub(super) fn forgive(&mut self) {
        self.0 = None;
    }
}

impl Supervisor {
    pub(super) fn note_ended(&mut self, ended: Result<(task::Id, Life), JoinError>) {
        self.awake -= 1;
        self.note_awake();
        let task = ended.as_ref().map_or_else(JoinError::id, |(task, _)| *task);
        let id = self.lives.remove(&task).expect("every life is noted when it begins");
        if !matches!(ended, Ok((_, Ok(_)))) {
            self.board.unsettled.store(true, Ordering::Release);
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        let restart = member.restart.take();
        let (ended, has_panicked) = match ended {
            Ok((_, ended)) => (ended, false),
            // A mistake of ours; the other databases are none the worse for it.
            Err(panic) => (Err(ReplicateError::Local(format!("internal error, please report it: {panic}"))), true),
        };
        if member.is_leaving {
            // Parked in the moment in which it was to end, it has not left its lease.
            let config = restart.map_or_else(|| member.source.config(), |before| *before);
            drop(tokio::spawn(self.leases.leave(&config, &member.status, RELEASE_WAIT)));
            match ended {
                // A process that ends says of everything that is not in the store.
                Err(error @ ReplicateError::NotDurable(_)) if *self.stop.borrow() => {
                    tracing::error!(database = %member.status.path.display(), "{error}");
                    self.remove_now(id, None);
                    self.lost.push(error);
                }
                ended => self.remove_now(id, ended.err()),
            }
            return;
        }
        // Also at the end of the process: this life may have ended before it had begun, as the next has other settings.
        if let Some(before) = restart {
            self.begin_otherwise(id, &before);
            return;
        }
        match ended {
            Ok(outcome) => self.note_well(id, outcome),
            Err(error) => self.note_failed(id, error, has_panicked),
        }
    }

    /// The next life has other settings than the one that has ended.
    fn begin_otherwise(&mut self, id: DatabaseId, before: &DatabaseConfig) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !lease::is_same(before, &member.source.config()) {
            drop(tokio::spawn(self.leases.leave(before, &member.status, RELEASE_WAIT)));
        }
        member.stage = Stage::InLine;
        self.to_wake.push_back(id);
    }

    fn note_well(&mut self, id: DatabaseId, outcome: Outcome) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.failures.forgive();
        match outcome {
            Outcome::Stopped => {
                member.status.set_state(State::Stopped);
                member.stage = Stage::Parked;
            }
            Outcome::Absent(mark) => self.put_to_rest(id, mark),
            Outcome::Parked(mark) => {
                member.status.update(|f| {
                    f.parked = true;
                    f.parkings += 1;
                });
                member.trust = true;
                self.plan_history(id);
                self.plan_drill(id);
                self.put_to_rest(id, mark);
                self.parked_since += 1;
            }
        }
    }

    fn put_to_rest(&mut self, id: DatabaseId, mark: DatabaseMark) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.stage = Stage::Parked;
        self.watcher.park(id, &member.status.path, mark);
    }

    fn note_failed(&mut self, id: DatabaseId, error: ReplicateError, has_panicked: bool) {
        let is_alone = self.members.len() == 1 && self.folders.is_empty();
        let stopping = *self.stop.borrow();
        let Some(member) = self.members.get_mut(&id) else { return };
        let text = error.to_string();
        let (pause, was_told) = member.failures.note(&text);
        // A single database's error ends the process, which says it then.
        if !is_alone && !was_told {
            tracing::error!(database = %member.status.path.display(), "{text}");
        }
        if matches!(error, ReplicateError::Held(_)) && !is_alone {
            tracing::error!("ending: `lease.if-held` is `exit`");
            let _ = self.ender.send(true);
        }
        if matches!(error, ReplicateError::Conflict(_)) && self.leases.is_lent_alone() {
            // Whoever lent it has no other way to know that its role is over.
            let _ = self.ender.send(true);
        }
        member.status.error(text.clone());
        member.status.set_state(State::Error { text });
        member.stage = Stage::Failed;
        if !stopping && !is_alone {
            if error.may_pass() {
                self.retries.plan(id, pause);
            }
            // Another file at its place may do better. After a panic perhaps a thread still has it open.
            if !has_panicked {
                let path = Arc::clone(&member.status.path);
                self.watcher.park(id, &path, rest::mark(&path).unwrap_or_default());
            }
        }
        member.error = Some(error);
    }

    /// Takes a database out of replication. What was written and is not captured yet is captured first, and uploaded.
    pub(super) fn remove(&mut self, id: DatabaseId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.is_leaving = true;
        let has_unseen = match &member.stage {
            Stage::Awake(control) => return control.stop(),
            Stage::Failed => false,
            // One that was never opened is left as it is.
            Stage::InLine => member.status.look(|f| f.local.is_some()),
            Stage::Parked => !self.watcher.look_now(id) && member.status.path.exists(),
        };
        if has_unseen {
            // It waits already, or is put in line here, for its last life.
            self.wake(id);
            return;
        }
        // What looked after its history is cut off, and leaves nothing by itself.
        drop(tokio::spawn(self.leases.leave(&member.source.config(), &member.status, RELEASE_WAIT)));
        self.watcher.forget(id);
        self.histories.interrupt(id);
        self.drills.interrupt(id);
        self.remove_now(id, None);
    }

    fn remove_now(&mut self, id: DatabaseId, error: Option<ReplicateError>) {
        let Some(member) = self.members.remove(&id) else { return };
        if let Some(error) = error {
            tracing::warn!(database = %member.status.path.display(), "removed: {error}");
        }
        member.status.set_state(State::Stopped);
        if !*self.stop.borrow() {
            self.release_commits(&member.status.path);
        }
        self.by_path.remove(&member.status.path);
        self.has_left = true;
        self.folders.note_left(&member.status.path);
        self.board.remove(&member.status);
        // Those who follow it learn that it is gone.
        member.status.feed.tell();
        self.histories.forget(id);
        self.drills.forget(id);
        self.retries.forget(id);
        self.keep_past(&member);
    }

    /// Nobody would answer those whose commits wait.
    fn release_commits(&self, path: &Path) {
        let Some(lines) = &self.commits else { return };
        if let Some(line) = std::fs::metadata(path).ok().and_then(|file| lines.get(file.ino())) {
            line.release();
        }
    }

    /// Under a lease that goes on, whoever comes to the same place must not take our own writings for another's.
    fn keep_past(&mut self, member: &Member) {
        let config = member.source.config();
        if config.lease.store.is_none() {
            return;
        }
        if self.pasts.len() >= PASTS_MAX {
            // Forgetting costs a new epoch, no more.
            self.pasts.clear();
        }
        let place = lease::place(&config);
        self.pasts.insert(config.store, (place, Arc::clone(&member.past)));
    }

    /// What was done under its lease for a database at the same place of the store.
    pub(super) fn past_of(&mut self, config: &DatabaseConfig) -> SharedPast {
        let kept = self.pasts.remove(&config.store);
        kept.filter(|(place, _)| *place == lease::place(config)).map(|(_, past)| past).unwrap_or_default()
    }

    /// Whether what parked databases have used should go back to the system: it is of no use to those that stay awake.
    pub(super) fn has_memory_to_give(&self) -> bool {
        self.parked_since >= PARKED_MAX || (self.parked_since > 0 && self.awake == 0)
    }

    pub(super) fn give_memory_back(&mut self) {
        self.parked_since = 0;
        self.gave_back = Instant::now();
        // Nobody waits for it.
        drop(tokio::task::spawn_blocking(memory::give_back));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_end_when_it_does_well() {
        let mut failures = Failures::default();
        let seconds: Vec<u64> = (0..9).map(|_| failures.note("no room").0.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(failures.note("no room").1, "told before");
        assert!(!failures.note("another reason").1);
        assert!(failures.pause_left().is_some_and(|left| left > Duration::from_secs(50)));
        failures.forgive();
        assert_eq!(failures.pause_left(), None);
        assert!(!failures.note("another reason").1);
    }
}
