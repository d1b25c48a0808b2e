//! Makes a file the database of a new primary: caught up with the end of the store's log, proved, and in the journal mode that the log has.
//!
//! The end is known, and nobody adds to the log any more. A file that is further, and has passed the end on its way, stays as it is: what it has
//! beyond it is found by comparing pages, as after any start. Any other state than these two is kept as a lost branch, and replaced.
//!
//! What a witness was found to have takes the place of such a state in one step, never by way of the end: the witness may not be heard again, and the file may be all that is left of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::{Lineage, Pos};
use rhyolite_logic::prepare::{Approach, approach};
use rhyolite_logic::witness::Passed;
use tokio::sync::watch;

use super::apply::{self, Batch, Follower};
use super::live::is_passing;
use super::lock::Busy;
use super::peer::{self, Better, Failed};
use super::rejoin::Taken;
use super::trails::Trails;
use super::{FollowOptions, Following, aside, rejoin, start};
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, blocking};

pub(crate) use super::apply::Released;
pub(crate) use super::rejoin::measured;

/// Pause after readers did not let go, or the store did not answer.
const PAUSE: Duration = Duration::from_millis(50);
/// Pause before a node is asked again that had something that cannot be used.
const PAUSE_LONG: Duration = Duration::from_secs(1);
/// After so many of them it is said what is waited for.
const TELL_AFTER: u32 = 40;

/// The end of the store's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) lineage: Lineage,
    pub(crate) pos: Pos,
}

/// Whether there is a file that follows.
pub(crate) fn is_follower(path: &Path) -> bool {
    path.exists() && apply::state_path(path).exists()
}

/// Catches the file up and gives it to whoever writes to it; `None` when `cancelled` turned true before.
///
/// # Errors
/// What trying again does not help.
pub(crate) async fn promote(
    options: &FollowOptions,
    meta_path: &Path,
    goal: Goal,
    better: Option<&Better>,
    (trails, name): (&Trails, &str),
    cancelled: &watch::Receiver<bool>,
) -> Result<Option<Released>, RestoreError> {
    let promotion = Promotion { options, meta_path, goal, better, trails, name };
    let mut patience = Patience { waits: 0, cancelled };
    let mut is_held_up = false;
    while !*cancelled.borrow() {
        match promotion.advance(&mut patience).await {
            Err(error) if rejoin::is_astray(&error, &options.output) => {
                trails.forget(name);
                match rejoin::rejoin(options, meta_path, &rejoin::reason(&error), is_held_up).await {
                    Ok(true) => continue,
                    Ok(false) => is_held_up = true,
                    Err(error) if is_passing(&error) => tracing::debug!(database = name, "{error}"),
                    Err(error) => return Err(error),
                }
            }
            Err(error) if is_passing(&error) => {
                tracing::debug!(database = %options.output.display(), "{error}");
            }
            ended => return ended,
        }
        patience.wait(&options.output).await;
    }
    Ok(None)
}

/// How long something is tried.
struct Patience<'a> {
    waits: u32,
    cancelled: &'a watch::Receiver<bool>,
}

impl Patience<'_> {
    /// Waits before another node is asked again that has something wrong, unless there is no more to be asked.
    async fn wait_long(&mut self) {
        // Without a sender nobody waits for this any more.
        let _ = tokio::time::timeout(PAUSE_LONG, self.cancelled.clone().wait_for(|cancelled| *cancelled)).await;
    }

    /// Waits before the next try. `false` when there is to be none.
    async fn wait(&mut self, path: &Path) -> bool {
        self.waits += 1;
        if self.waits == TELL_AFTER {
            let path = path.display();
            tracing::warn!(database = %path, "not the primary yet: readers hold it up, or the store does");
        }
        tokio::time::sleep(PAUSE).await;
        !*self.cancelled.borrow()
    }
}

/// What is to become of which file.
struct Promotion<'a> {
    options: &'a FollowOptions,
    meta_path: &'a Path,
    goal: Goal,
    better: Option<&'a Better>,
    trails: &'a Trails,
    name: &'a str,
}

impl Promotion<'_> {
    async fn advance(&self, patience: &mut Patience<'_>) -> Result<Option<Released>, RestoreError> {
        let (options, goal) = (self.options, self.goal);
        if !is_follower(&options.output) {
            let mut cancelled = patience.cancelled.clone();
            // An interrupted restore goes on where it was, should it be tried again.
            tokio::select! {
                started = start(options) => drop(started?),
                _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(None),
            }
        }
        let follower = self.open().await?;
        if follower.lineage() != goal.lineage {
            return Err(RestoreError::WrongLineage { store: goal.lineage, file: follower.lineage() });
        }
        let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
        let mut following = Following { options: options.clone(), reader, follower: Some(follower), log: None };
        loop {
            let pos = (!following.follower().is_lost()).then(|| following.pos());
            if let Some(pos) = pos {
                self.trails.open(self.name, &options.output, pos);
            }
            let is_passed = pos.is_some_and(|pos| self.trails.has_passed(self.name, (&options.output, pos), goal.pos));
            match approach(pos, goal.pos, is_passed, self.better.is_some()) {
                Approach::There | Approach::Straight => break,
                Approach::Astray => return Err(following.diverged(format!("the store ends at {}", goal.pos))),
                Approach::CatchUp => {}
            }
            if !following.look_from_here().await? && !patience.wait(&options.output).await {
                return Ok(None);
            }
            aside::check(&options.output)?;
        }
        if let Some(better) = self.better
            && !self.take_from(better, &mut following, patience).await?
        {
            return Ok(None);
        }
        loop {
            let follower = following.follower.take().expect("put back after every batch");
            let timeout = options.lock_timeout;
            match blocking(move || follower.release(timeout)).await? {
                Ok(released) => return Ok(Some(released)),
                Err(follower) => following.follower = Some(*follower),
            }
            if !patience.wait(&options.output).await {
                return Ok(None);
            }
            aside::check(&options.output)?;
        }
    }

    async fn open(&self) -> Result<Follower, RestoreError> {
        let (path, journal) = (self.options.output.clone(), self.options.journal);
        blocking(move || Follower::open(&path, journal)).await
    }

    /// Takes what another node has beyond the file. `false`: it is to be asked again where it is.
    async fn take_from(
        &self,
        better: &Better,
        following: &mut Following,
        patience: &mut Patience<'_>,
    ) -> Result<bool, RestoreError> {
        let (end, there, name, trails) = (self.goal.pos, better.at.pos, self.name, self.trails);
        let here = (!following.follower().is_lost()).then(|| following.pos());
        if here.is_some_and(|here| here != end) && trails.has(name, there) {
            // It has come through there, and so through the end.
            trails.come_through(name, end, there);
            return Ok(true);
        }
        let Some(on_way) = self.is_on_way(better, here).await else {
            patience.wait(&self.options.output).await;
            return Ok(false);
        };
        let Some(batch) = self.fetch(better, following, patience).await? else { return Ok(false) };
        let from = here.filter(|_| on_way);
        match from {
            Some(here) => intend_on_way(trails, name, [end, here, there]),
            None if here.is_some() && !self.keep(better, following, patience).await? => return Ok(false),
            None => trails.intend_instead(name, &self.options.output, &[end, there]),
        }
        if !self.apply(batch, better, following, patience).await? {
            if let Some(here) = here {
                trails.open(name, &self.options.output, here);
            }
            return Ok(false);
        }
        match from {
            Some(_) => trails.note(name, [there]),
            None => trails.became(name, &[end, there]),
        }
        let from = here.map_or_else(|| "nowhere".to_owned(), |here| here.txid.to_string());
        tracing::info!(database = name, from, to = %there.txid, "took commits from {}", better.address);
        Ok(true)
    }

    /// Whether the file, which is at `here`, is on the way to where the other is. `None`: the other does not tell.
    async fn is_on_way(&self, better: &Better, here: Option<Pos>) -> Option<bool> {
        // The end of the log lies on the way to there.
        let Some(here) = here.filter(|here| *here != self.goal.pos) else { return Some(here.is_some()) };
        match peer::ask(&better.link, self.name, here).await {
            Ok(Some(at)) if at.pos == better.at.pos => Some(at.passed() == Passed::End),
            Ok(_) | Err(_) => None,
        }
    }

    /// The pages by which the other differs; `None`: they do not come.
    async fn fetch(
        &self,
        better: &Better,
        following: &Following,
        patience: &mut Patience<'_>,
    ) -> Result<Option<Batch>, RestoreError> {
        let mut cancelled = patience.cancelled.clone();
        let fetched = tokio::select! {
            fetched = peer::fetch(better, self.name, following) => fetched,
            _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(None),
        };
        match fetched {
            Ok(batch) => Ok(Some(batch)),
            Err(Failed::Link(error)) => {
                tracing::warn!(database = self.name, "taking commits from {}: {error}", better.address);
                patience.wait(&following.options.output).await;
                Ok(None)
            }
            Err(Failed::Here(error)) => Err(error),
        }
    }

    /// Keeps what the file is, and what takes its place lacks. `false`: it is to be looked at again.
    async fn keep(
        &self,
        better: &Better,
        following: &mut Following,
        patience: &mut Patience<'_>,
    ) -> Result<bool, RestoreError> {
        let reason = format!("{} has {}, and has not come through here", better.address, better.at.pos);
        let here = following.pos();
        following.follower = None;
        let mut is_held_up = false;
        let taken = loop {
            match rejoin::take(self.options, &following.reader, self.meta_path, &reason, is_held_up).await? {
                Ok(taken) => break taken,
                Err(Busy) => is_held_up = true,
            }
            if !patience.wait(&self.options.output).await {
                return Ok(false);
            }
        };
        if taken == Taken::Gone {
            return Ok(false);
        }
        let follower = self.open().await?;
        // Where an earlier state of the history has this content the file may be at that by now: nothing of it is kept, and it becomes what was found all the same.
        let is_same = !follower.is_lost() && follower.end.pos.checksum == here.checksum;
        following.follower = Some(follower);
        Ok(is_same)
    }

    /// Makes the file what has come. `false` when that cannot be.
    async fn apply(
        &self,
        mut batch: Batch,
        better: &Better,
        following: &mut Following,
        patience: &mut Patience<'_>,
    ) -> Result<bool, RestoreError> {
        loop {
            match following.apply_batch(batch).await {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(again)) => batch = again,
                // What came is not what the other should have: the file here is as it was.
                Err(error @ (RestoreError::WrongChecksum { .. } | RestoreError::Contradiction { .. })) => {
                    tracing::warn!(database = self.name, "what {} has cannot be used: {error}", better.address);
                    patience.wait_long().await;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            if !patience.wait(&following.options.output).await {
                return Ok(false);
            }
            aside::check(&following.options.output)?;
        }
    }
}

/// A file that is at `here` will be made what another node has at `there`, which shows that the way to it leads from the end of the log through `here`. That is noted beside the file before:
/// whoever ends in the middle can show the way as well.
fn intend_on_way(trails: &Trails, name: &str, [end, here, there]: [Pos; 3]) {
    trails.come_through(name, end, here);
    trails.intend(name, &[here, there]);
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;
    use crate::follow::trails::way;

    #[test]
    fn what_another_node_has_shown_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let pos = |n| Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n) };
        let [end, here, there] = [pos(3), pos(8), pos(9)];
        for from in [here, end] {
            let path = folder.path().join(from.txid.to_string());
            let trails = Trails::default();
            trails.open("a", &path, from);
            intend_on_way(&trails, "a", [end, from, there]);
            // It ends there, before or after the file was changed.
            assert_eq!((way(&path, there, end), way(&path, from, end)), (Passed::End, Passed::End));
            assert!(trails.has("a", end) && !trails.has("a", there));
        }
        // What is only remembered shows nothing.
        let (path, trails) = (folder.path().join("other"), Trails::default());
        trails.open("a", &path, here);
        trails.note("a", [end, here]);
        trails.intend("a", &[here, there]);
        assert_eq!(way(&path, there, end), Passed::Unknown);
    }
}
