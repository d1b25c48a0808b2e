//! Keeps a plain file up to date with a node: commits come as they are captured there ([`crate::stream`]).
//!
//! ```text
//!            ┌──────────────── begin: restore from the store ◄── no file yet
//!            ▼
//!   ask for what comes after the file's position ──► frames ──► newest copy of each page ──► batch ──► apply
//!            ▲                                          │
//!            │                                          └─ behind: what comes next is in the store only
//!            └──────────── catch up from the store ◄────┘
//! ```
//!
//! Everything that has come while a batch is being applied becomes the next one, so that a file that is behind takes larger steps. Where the
//! file's position is not one of the node's history, or the pages do not add up to the checksum of the log, the file is left as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_format::stream::{End, EndReason, Frame};
use rhyolite_format::{Epoch, Pos, Timestamp};
use rhyolite_logic::restore_plan::points;
use rhyolite_logic::stream::{Step, joins};
use tokio::sync::watch;

use super::apply::{self, Follower};
use super::arrived::{Arrived, gather, to_batch};
use super::trails::Trails;
use super::{FollowOptions, Following, aside, preview, rejoin, start};
use crate::observe::events::Events;
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, blocking};
use crate::stream::client::{Link, LinkError};
use crate::stream::query::Query;
use crate::time;

/// Shortest and longest pause before something is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Pause after readers did not let a batch in.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before a file that went astray, or cannot be used, is tried again.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// A file that did well for so long is tried again soon.
const DID_WELL: Duration = Duration::from_secs(120);
/// What a file has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Its position, proved.
    pub pos: Pos,
    /// When its last commit was captured; `None` when that did not come along.
    pub time: Option<Timestamp>,
    /// Commits that it has got so far.
    pub transactions: u64,
    /// Whether the last of them came from the stream, or from the store.
    pub is_live: bool,
}

/// What a node of a cluster does with its files.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The state folder of the database: what the history lacks is kept there.
    pub(super) meta_path: PathBuf,
    /// What the file has passed is noted here.
    pub(super) trails: Arc<Trails>,
    /// Who wants to know what the file has come to.
    pub(super) events: Arc<Events>,
    /// Where others reach this node: by that the primary knows who has reached what.
    pub(super) address: String,
}

/// Keeps one file up to date.
pub(super) struct Live {
    pub(super) options: FollowOptions,
    /// A file that goes astray is brought back; without this that is the end of it.
    pub(super) member: Option<Member>,
    /// The database's name at the node.
    pub(super) database: String,
    pub(super) links: watch::Receiver<Option<Link>>,
    pub(super) reached: watch::Sender<Option<Reached>>,
    pub(super) stop: watch::Receiver<bool>,
}

/// Why the stream of one database has ended.
pub(super) enum Ended {
    End(End),
    Lost(LinkError),
    Stopped,
    /// The file is to be closed for a while.
    Aside,
}

impl Live {
    /// Follows until it is to stop.
    pub(super) async fn run(mut self) -> Result<(), RestoreError> {
        let Some(member) = self.member.clone() else { return self.follow().await };
        let (mut pause, mut retry, mut astray) = (RETRY.0, RETRY.0, None::<String>);
        while !*self.stop.borrow() {
            let began = Instant::now();
            let reason = astray.take();
            let followed = match reason.clone() {
                None => self.follow().await,
                Some(reason) => self.bring_back(&member, reason).await,
            };
            let Err(error) = followed else { continue };
            if began.elapsed() > DID_WELL {
                pause = RETRY.0;
            }
            if rejoin::is_astray(&error, &self.options.output) {
                member.trails.forget(&self.database);
                astray = Some(rejoin::reason(&error));
            } else if is_passing(&error) && reason.is_some() {
                // A primary that has just begun, or is just ending: the next is asked soon.
                if retry == RETRY.0 {
                    tracing::info!(database = %self.database, "not brought back yet: {error}");
                }
                astray = reason;
                if self.is_stopped_within(retry).await {
                    break;
                }
                retry = (retry * 2).min(RETRY.1);
                continue;
            } else if !is_passing(&error) {
                tracing::warn!(database = %self.database, "trying again: {error}");
            }
            if self.is_stopped_within(pause).await {
                break;
            }
            pause = (pause * 2).min(AGAIN_MAX);
        }
        Ok(())
    }

    /// Makes the file one of the history. What the history lacks is kept.
    async fn bring_back(&mut self, member: &Member, reason: String) -> Result<(), RestoreError> {
        let mut told = false;
        while !*self.stop.borrow() && !rejoin::rejoin(&self.options, &member.meta_path, &reason, told).await? {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(database = %self.database, "waiting for others to close the file: {reason}");
            }
            rejoin::pause().await;
        }
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), RestoreError> {
        let Some(mut following) = self.begin().await? else { return Ok(()) };
        self.tell(&following, None, 0, false);
        let (mut epoch, mut pause, mut complaint) = (None, RETRY.0, None);
        let output = self.options.output.clone();
        loop {
            let link = tokio::select! {
                biased;
                () = aside::wanted(&output) => return Ok(()),
                link = self.link() => link,
            };
            let Some(link) = link else { break };
            let before = following.pos();
            let ended = if following.follower().is_lost() {
                Ended::End(End { reason: EndReason::Behind, pos: None, text: "the file is at no position".to_owned() })
            } else {
                let ended = self.stream(&link, &mut following, &mut epoch).await;
                // Whose history it is may be another by the time somebody says so again.
                if let Some(member) = &self.member {
                    member.trails.doubt(&self.database);
                }
                ended?
            };
            match ended {
                Ended::Stopped => break,
                // It is opened anew when that is over.
                Ended::Aside => return Ok(()),
                // That the connection is lost is said once for all databases.
                Ended::Lost(LinkError::Lost(text)) => tracing::debug!(database = %self.database, "{text}"),
                Ended::Lost(error) => {
                    if complaint.as_ref() != Some(&error) {
                        tracing::warn!(database = %self.database, "asking again: {error}");
                    }
                    complaint = Some(error);
                }
                Ended::End(end) => self.note_end(&mut following, end).await?,
            }
            pause = if following.pos() == before { (pause * 2).min(RETRY.1) } else { RETRY.0 };
            if !self.is_worth_trying_after(&mut pause).await {
                break;
            }
        }
        Ok(())
    }

    /// The file as it was left, or restored. `None` when it is to stop before.
    async fn begin(&mut self) -> Result<Option<Following>, RestoreError> {
        let output = self.options.output.clone();
        let mut pause = RETRY.0;
        while !(output.exists() && apply::state_path(&output).exists()) {
            if self.link().await.is_none() {
                return Ok(None);
            }
            let mut stop = self.stop.clone();
            let restored = tokio::select! {
                restored = start(&self.options) => restored,
                _ = stop.wait_for(|stop| *stop) => return Ok(None),
            };
            match restored {
                Ok(_) => break,
                Err(error) if is_passing(&error) => {
                    tracing::info!(database = %self.database, "nothing to begin with yet: {error}");
                }
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(RETRY.1);
            if !self.is_worth_trying_after(&mut pause).await {
                return Ok(None);
            }
        }
        let journal = self.options.journal;
        let follower = blocking(move || Follower::open(&output, journal)).await?;
        if let Some(member) = &self.member {
            member.trails.open(&self.database, &self.options.output, follower.end.pos);
        }
        let reader = Arc::new(Reader::new(Arc::clone(&self.options.store)));
        Ok(Some(Following { options: self.options.clone(), reader, follower: Some(follower), log: None }))
    }

    /// The connection, once there is one; `None` when it is to stop.
    async fn link(&mut self) -> Option<Link> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            link = self.links.wait_for(Option::is_some) => link.ok().and_then(|link| link.clone()),
        }
    }

    /// Waits for this time, or until there is another connection: on that everything is tried at once. `false` when it is to stop.
    async fn is_worth_trying_after(&mut self, pause: &mut Duration) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return false,
            () = tokio::time::sleep(*pause) => {}
            () = aside::wanted(&self.options.output) => {}
            () = another(&mut self.links) => *pause = RETRY.0,
        }
        true
    }

    async fn is_stopped_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stop.wait_for(|stop| *stop)).await.is_ok()
    }

    fn tell(&self, following: &Following, time: Option<Timestamp>, transactions: u64, is_live: bool) {
        let so_far = self.reached.borrow().map_or(0, |reached| reached.transactions);
        let transactions = so_far + transactions;
        self.note_passed([following.pos()]);
        self.reached.send_replace(Some(Reached { pos: following.pos(), time, transactions, is_live }));
    }

    /// The node goes on from where the file is.
    fn note_proved(&self) {
        if let Some(member) = &self.member {
            member.trails.prove(&self.database);
        }
    }

    fn note_passed(&self, passed: impl IntoIterator<Item = Pos>) {
        if let Some(member) = &self.member {
            member.trails.note(&self.database, passed);
        }
    }

    /// Applies what comes until nothing comes any more.
    async fn stream(
        &mut self,
        link: &Link,
        following: &mut Following,
        epoch: &mut Option<Epoch>,
    ) -> Result<Ended, RestoreError> {
        let lineage = following.follower().lineage();
        let query = Query::default().with("db", &self.database).with("lineage", lineage).with("pos", following.pos());
        let query = query.with("merged", 1);
        // Who gives no address is no witness.
        let asked = match self.member.as_ref().filter(|member| !member.address.is_empty()) {
            Some(member) => {
                let asked = link.frames_both_ways(&query.with("node", &member.address).of("/v1/log")).await;
                asked.map(|(frames, replies)| (frames, Some(replies)))
            }
            // Whom nobody can ask need not say what it has.
            None => link.frames(&query.of("/v1/log")).await.map(|frames| (frames, None)),
        };
        let (mut frames, mut replies) = match asked {
            Ok(asked) => asked,
            Err(error) => return Ok(Ended::Lost(error)),
        };
        // What was applied is on the disk.
        let trails = self.member.as_ref().map(|member| (Arc::clone(&member.trails), self.database.clone()));
        let mut say = |pos| {
            // What nobody can be shown is no use to others.
            let is_shown = trails.as_ref().is_some_and(|(trails, name)| trails.is_kept(name));
            if let Some(replies) = replies.as_mut().filter(|_| is_shown) {
                replies.say(&Frame::Reached(pos));
            }
        };
        loop {
            let next = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
                () = aside::wanted(&self.options.output) => return Ok(Ended::Aside),
                next = frames.next() => next,
            };
            let first = match next {
                Ok(Some((Frame::Transactions(commits), bytes))) => Arrived::each(commits, bytes),
                Ok(Some((Frame::Merged(commits), bytes))) => Arrived::merged(commits, bytes),
                Ok(Some((Frame::End(end), _))) => return Ok(Ended::End(end)),
                Ok(Some((Frame::Heartbeat { .. }, _))) => {
                    if preview::of(&self.options.output).is_some_and(|known| known.is_void) {
                        // Whoever writes now is waited for once more with the next of these.
                        following.take_back().await?;
                    }
                    self.note_proved();
                    say(following.pos());
                    continue;
                }
                Ok(Some((Frame::Database(_) | Frame::Gone { .. } | Frame::Leaving | Frame::Reached(_), _))) => continue,
                Ok(None) => return Ok(Ended::Lost(LinkError::Lost("it ended without a reason".to_owned()))),
                Err(error) => return Ok(Ended::Lost(error)),
            };
            let (group, ended) = gather(first, &mut frames).await;
            if let Some(ended) = self.take(following, group, epoch).await? {
                return Ok(ended);
            }
            say(following.pos());
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    /// Applies commits that have come, or says why not.
    async fn take(
        &mut self,
        following: &mut Following,
        group: Vec<Arrived>,
        epoch: &mut Option<Epoch>,
    ) -> Result<Option<Ended>, RestoreError> {
        let mut pos = following.pos();
        for commits in &group {
            let span = commits.span();
            let step = Step { lineage: span.lineage, epoch: span.epoch, before: span.before, after: span.after };
            if !joins(&step, following.follower().lineage(), pos, *epoch) {
                let text = format!("commits after {} in epoch {}, at {pos} in {epoch:?}", span.before, span.epoch);
                return Ok(Some(Ended::Lost(LinkError::Unexpected(text))));
            }
            (pos, *epoch) = (span.after, Some(span.epoch));
        }
        let last = *group.last().expect("at least one").span();
        let count = group.iter().map(Arrived::count).sum();
        let folder = following.options.output.parent().map(Path::to_owned).unwrap_or_default();
        let trail = self.member.as_ref().map(|member| (Arc::clone(&member.trails), self.database.clone()));
        let mut passed: Vec<Pos> = group.iter().flat_map(Arrived::positions).collect();
        passed.push(last.after);
        let intended = trail.map(|(trails, name)| (trails, name, passed.clone()));
        let make = move || {
            let batch = to_batch(&group, &folder)?;
            if let Some((trails, name, passed)) = intended {
                trails.intend(&name, &passed);
            }
            Ok(batch)
        };
        let mut applied = following.apply_made(make).await?;
        while let Err(batch) = applied {
            // Other readers are to get a turn: while one is waited for, no new ones come in.
            if self.is_stopped_within(BUSY_PAUSE).await {
                return Ok(Some(Ended::Stopped));
            }
            if aside::is_wanted(&self.options.output) {
                return Ok(Some(Ended::Aside));
            }
            applied = following.apply_batch(batch).await?;
        }
        // What was known of the store's log lies behind.
        following.log = None;
        self.note_passed(passed);
        self.note_proved();
        self.tell(following, Some(last.timestamp), count, true);
        if let Some(member) = &self.member {
            let end = following.follower().end;
            member.events.tell(&self.database, end.pos, end.page_size, end.commit, last.timestamp);
        }
        Ok(None)
    }

    /// Goes on from the store where the stream does not lead on.
    async fn note_end(&mut self, following: &mut Following, end: End) -> Result<(), RestoreError> {
        match end.reason {
            EndReason::Behind => {
                tracing::debug!(database = %self.database, at = %following.pos().txid, "reading the store: {}", end.text);
                self.catch_up(following).await
            }
            EndReason::Gone => {
                tracing::warn!(database = %self.database, "{}", end.text);
                Ok(())
            }
            EndReason::Diverged => Err(following.diverged(format!("the node has another history: {}", end.text))),
            EndReason::WrongLineage => match following.load().await {
                Err(error) if is_passing(&error) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(following.diverged(format!("the node has another history than its store: {}", end.text))),
            },
        }
    }

    async fn catch_up(&mut self, following: &mut Following) -> Result<(), RestoreError> {
        match following.look_from_here().await {
            Ok(applied) => {
                if applied {
                    self.tell(following, None, 0, false);
                }
                Ok(())
            }
            Err(error) if is_passing(&error) => {
                tracing::debug!(database = %self.database, "{error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Ends when there is another connection than before.
async fn another(links: &mut watch::Receiver<Option<Link>>) {
    while links.changed().await.is_ok() {
        if links.borrow_and_update().is_some() {
            return;
        }
    }
    // Nobody makes connections any more, and whoever did says that it is to stop.
    std::future::pending().await
}

/// Whether it may be otherwise when it is tried again: the node is away, or its first snapshot is still on its way.
pub(super) fn is_passing(error: &RestoreError) -> bool {
    use rhyolite_logic::restore_plan::PlanError::{Empty, NoSnapshot};
    match error {
        RestoreError::Store(error) => error.is_unavailable(),
        // Whoever writes to the file ends at some time.
        RestoreError::Io { source, .. } => source.kind() == std::io::ErrorKind::WouldBlock,
        RestoreError::NoDatabase { .. } | RestoreError::Plan(Empty | NoSnapshot { .. }) => true,
        _ => false,
    }
}

impl Following {
    /// Reads the store and applies what it has; `false` when it has nothing that leads on.
    pub(super) async fn look_from_here(&mut self) -> Result<bool, RestoreError> {
        self.log = Some(self.load().await?);
        let catalog = &self.log.as_ref().expect("just read").catalog;
        let here = self.pos();
        let known = points(&catalog.manifest, &catalog.log, &[]);
        let other = known.ok().and_then(|known| known.into_iter().find(|point| point.pos.txid == here.txid));
        if let Some(other) = other.filter(|point| point.pos != here && !self.follower().is_lost()) {
            return Err(
                self.diverged(format!("transaction {} of the store leads to {}", here.txid, other.pos.checksum))
            );
        }
        let applied = self.go_on().await;
        self.log = None;
        applied
    }
}

/// How old what was reached is, for people.
pub(super) fn age_ms(reached: &Reached) -> Option<i64> {
    reached.time.map(|time| time::now().0.saturating_sub(time.0).max(0))
}
