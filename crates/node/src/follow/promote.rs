//! Makes a file the database of a new primary: caught up with the end of the store's log, proved, and in the journal mode that the log has.
//!
//! The end is known, and nobody adds to the log any more. A file that is further, and has passed the end on its way, stays as it is: what it has
//! beyond it is found by comparing pages, as after any start. Any other state than these two is kept as a lost branch, and replaced.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::{Lineage, Pos};
use rhyolite_logic::prepare::{Approach, approach};
use rhyolite_logic::witness::Passed;
use tokio::sync::watch;

use super::apply::{self, Follower};
use super::live::is_passing;
use super::peer::{self, Better, Failed};
use super::trails::Trails;
use super::{FollowOptions, Following, rejoin, start};
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
    let mut patience = Patience { waits: 0, cancelled };
    let mut is_held_up = false;
    while !*cancelled.borrow() {
        match advance(options, (goal, better), (trails, name), &mut patience).await {
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

/// Takes what another node has beyond the file. `false`: it is to be asked again where it is.
async fn take_from(
    better: &Better,
    following: &mut Following,
    goal: Goal,
    (trails, name): (&Trails, &str),
    patience: &mut Patience<'_>,
) -> Result<bool, RestoreError> {
    if following.pos() != goal.pos && trails.has(name, better.at.pos) {
        // It has come through there.
        return Ok(true);
    }
    if following.pos() != goal.pos {
        // It is beyond the end. Is that on the way to where the other is?
        match peer::ask(&better.link, name, following.pos()).await {
            Ok(Some(at)) if at.pos == better.at.pos && at.passed() == Passed::End => {}
            Ok(Some(at)) if at.pos == better.at.pos => {
                return Err(following.diverged(format!(
                    "{} has {there}, and has not come through here",
                    better.address,
                    there = at.pos
                )));
            }
            Ok(_) | Err(_) => {
                patience.wait(&following.options.output).await;
                return Ok(false);
            }
        }
    }
    let mut cancelled = patience.cancelled.clone();
    let fetched = tokio::select! {
        fetched = peer::fetch(better, name, following) => fetched,
        _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(false),
    };
    let mut batch = match fetched {
        Ok(batch) => batch,
        Err(Failed::Link(error)) => {
            tracing::warn!(database = name, "taking commits from {}: {error}", better.address);
            patience.wait(&following.options.output).await;
            return Ok(false);
        }
        Err(Failed::Here(error)) => return Err(error),
    };
    let (here, there) = (following.pos(), better.at.pos);
    // The end of the log lies on the way to both.
    if !trails.has(name, goal.pos) {
        trails.note(name, [goal.pos, here]);
    }
    trails.intend(name, &[here, there]);
    loop {
        match following.apply_batch(batch).await {
            Ok(Ok(())) => break,
            Ok(Err(again)) => batch = again,
            // What came is not what the other should have: the file here is as it was.
            Err(error @ (RestoreError::WrongChecksum { .. } | RestoreError::Contradiction { .. })) => {
                tracing::warn!(database = name, "what {} has cannot be used: {error}", better.address);
                patience.wait_long().await;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        if !patience.wait(&following.options.output).await {
            return Ok(false);
        }
    }
    trails.note(name, [there]);
    tracing::info!(database = name, from = %here.txid, to = %there.txid, "took commits from {}", better.address);
    Ok(true)
}

async fn advance(
    options: &FollowOptions,
    (goal, better): (Goal, Option<&Better>),
    (trails, name): (&Trails, &str),
    patience: &mut Patience<'_>,
) -> Result<Option<Released>, RestoreError> {
    if !is_follower(&options.output) {
        let mut cancelled = patience.cancelled.clone();
        // An interrupted restore goes on where it was, should it be tried again.
        tokio::select! {
            started = start(options) => drop(started?),
            _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(None),
        }
    }
    let (path, journal) = (options.output.clone(), options.journal);
    let follower = blocking(move || Follower::open(&path, journal)).await?;
    if follower.lineage() != goal.lineage {
        return Err(RestoreError::WrongLineage { store: goal.lineage, file: follower.lineage() });
    }
    let reader = Arc::new(Reader::new(Arc::clone(&options.store)));
    let mut following = Following { options: options.clone(), reader, follower: Some(follower), log: None };
    loop {
        let pos = (!following.follower().is_lost()).then(|| following.pos());
        if let Some(pos) = pos {
            trails.open(name, &options.output, pos);
        }
        let is_passed = pos.is_some_and(|pos| trails.has_passed(name, (&options.output, pos), goal.pos));
        match approach(pos, goal.pos, is_passed) {
            Approach::There => break,
            Approach::Astray => return Err(following.diverged(format!("the store ends at {}", goal.pos))),
            Approach::CatchUp => {}
        }
        if !following.look_from_here().await? && !patience.wait(&options.output).await {
            return Ok(None);
        }
    }
    if let Some(better) = better.filter(|better| better.at.pos != following.pos())
        && !take_from(better, &mut following, goal, (trails, name), patience).await?
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
    }
}
