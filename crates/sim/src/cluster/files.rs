//! The file of a replica: opened, changed batch by batch, caught up with the store. A batch that does not lead on from what is there is noticed by its
//! checksum, as pages that do not add up are.

use std::sync::Arc;

use rhyolite_format::{Checksum, Lineage, PageCount, Pos};
use rhyolite_logic::base::Base;
use rhyolite_logic::trail::Trail;
use rhyolite_store::Store;

use super::catalog::{Away, Cache, Catalog};
use super::rules::NodeRules;
use super::truth;
use crate::disk::{Follow, PAGE_SIZE, PAGES};
use crate::executor::NodeId;
use crate::scenario::MS;
use crate::sim::Sim;

/// Longest time that a step on the disk takes.
const DISK_STEP: u64 = 4 * MS;

/// Why a file does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It may be otherwise later.
    Passing,
    /// It is not one of the history.
    Astray(String),
}

impl From<Away> for Trouble {
    fn from(_: Away) -> Self {
        Self::Passing
    }
}

/// How a batch was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// What has changed since the state that is there.
    From(Checksum),
    /// Every page.
    Whole,
}

/// The file of a node, and what its process has read.
#[derive(Clone, Debug)]
pub struct Files {
    /// The run.
    pub sim: Arc<Sim>,
    /// Whose.
    pub node: NodeId,
    /// Rules in force.
    pub rules: NodeRules,
    /// Segments that were read.
    pub cache: Cache,
}

impl Files {
    /// Those of a process that has just started.
    pub fn new(sim: &Arc<Sim>, node: NodeId) -> Self {
        let rules = sim.scenario.cluster.expect("a cluster").rules.node;
        Self { sim: Arc::clone(sim), node, rules, cache: Cache::default() }
    }

    /// The file has come through these positions.
    pub fn note(&self, passed: impl IntoIterator<Item = Pos>) {
        self.sim.node(self.node).disk.trail.note(passed);
    }

    /// Whether the file has been there, as far as is remembered.
    pub fn has_passed(&self, pos: Pos) -> bool {
        self.sim.node(self.node).disk.trail.has(pos)
    }

    /// Another file shows that the way from `end` leads to `known`, where this one is or has been.
    pub fn come_through(&self, end: Pos, known: Pos) {
        let trail = &mut self.sim.node(self.node).disk.trail;
        if !trail.has(known) {
            trail.note([known]);
        }
        trail.come_through(end, known);
    }

    /// The file was made another: it has come from nowhere.
    pub fn forget_trail(&self) {
        self.sim.node(self.node).disk.trail = Trail::default();
    }

    /// A line of the trace.
    pub fn say(&self, line: impl FnOnce() -> String) {
        self.sim.trace(|| format!("node {} {}", self.node, line()));
    }

    /// A step on the disk takes a moment, in which everything may end.
    pub async fn step(&self) {
        let time = self.sim.chance().below(DISK_STEP);
        self.sim.timeline.sleep(time).await;
    }

    /// Whether there is a file, and whether it follows.
    pub fn is_there(&self) -> (bool, bool) {
        let node = self.sim.node(self.node);
        let exists = node.disk.database().exists;
        (exists, exists && node.disk.follow.is_some())
    }

    /// What the file holds.
    pub fn content(&self) -> Checksum {
        self.sim.node(self.node).disk.database().content
    }

    /// Notes where the file is.
    pub fn follow(&self, lineage: Lineage, before: Pos, after: Pos) {
        self.sim.node(self.node).disk.follow = Some(Follow { lineage, before, after });
    }

    /// The file becomes one that is written to, and all of it is on the disk.
    pub fn release(&self) {
        let mut node = self.sim.node(self.node);
        node.disk.released = node.disk.follow.take();
        let mut database = node.disk.database();
        database.earlier.clear();
        database.uncaptured.clear();
    }

    /// A file that was made one that is written to, and was not, follows again.
    pub fn take_back(&self) {
        if !self.rules.witness.take_back {
            return;
        }
        let mut node = self.sim.node(self.node);
        let disk = &mut node.disk;
        let content = {
            let database = disk.database();
            database.exists.then_some(database.content)
        };
        let back = disk.released.filter(|released| disk.follow.is_none() && Some(released.after.checksum) == content);
        if let Some(released) = back {
            (disk.follow, disk.state) = (Some(released), None);
            disk.log.clear();
        }
    }

    /// Opens a file that follows, and compares it with its state.
    ///
    /// # Errors
    /// It does not follow, or is at no state that it was left at.
    pub fn open(&self) -> Result<(Lineage, Pos), Trouble> {
        let node = self.sim.node(self.node);
        let database = node.disk.database();
        match node.disk.follow {
            Some(follow) if database.exists => {
                let at = [follow.after, follow.before].into_iter().find(|pos| pos.checksum == database.content);
                let pos = at.ok_or_else(|| Trouble::Astray("its pages add up to another checksum".to_owned()))?;
                Ok((follow.lineage, pos))
            }
            _ if database.exists => Err(Trouble::Astray("it was written here".to_owned())),
            _ => Err(Trouble::Passing),
        }
    }

    /// Makes the file, which is at `at`, the state `to`.
    ///
    /// # Errors
    /// The batch does not add up on what is there.
    pub async fn apply(&self, lineage: Lineage, at: Pos, to: Pos, batch: Batch) -> Result<(), Trouble> {
        self.step().await;
        let content = self.content();
        let result = match batch {
            Batch::From(from) if from != content || !self.is_made_from(to.checksum, content) => {
                // Pages of one state among those of another.
                Checksum::from_crc(to.checksum.get() ^ content.get().rotate_left(7))
            }
            Batch::From(_) | Batch::Whole => to.checksum,
        };
        if self.rules.stream_position {
            if content != at.checksum {
                return Err(Trouble::Astray("somebody has written to it".to_owned()));
            }
            if result != to.checksum {
                return Err(Trouble::Astray(format!("it would not be {to}")));
            }
        }
        self.follow(lineage, at, to);
        self.step().await;
        if self.rules.stream_position && self.content() != at.checksum {
            return Err(Trouble::Astray("somebody has written to it".to_owned()));
        }
        truth::replace(&self.sim, self.node, result);
        match batch {
            Batch::From(_) => self.note([at, to]),
            // What was there may have been on another way.
            Batch::Whole => {
                self.forget_trail();
                self.note([to]);
            }
        }
        self.say(|| format!("applies {to} on {at}"));
        Ok(())
    }

    /// Whether what has changed since `content` makes it `to`.
    fn is_made_from(&self, to: Checksum, content: Checksum) -> bool {
        self.sim.cluster().truth().leads(content, to)
    }

    /// The first restore: of what the store holds.
    ///
    /// # Errors
    /// There is nothing yet, or it cannot be had.
    pub async fn restore(&self, store: &dyn Store) -> Result<(), Trouble> {
        if self.is_there().0 {
            return Err(Trouble::Astray("it was written here".to_owned()));
        }
        let catalog = Catalog::load(store, &self.cache).await?;
        let plan = catalog.plan(store, &catalog.manifest).await?.map_err(|_| Trouble::Passing)?;
        self.step().await;
        self.forget_trail();
        self.follow(catalog.lineage, plan.pos, plan.pos);
        truth::replace(&self.sim, self.node, plan.pos.checksum);
        self.note([plan.pos]);
        self.say(|| format!("restores {}", plan.pos));
        Ok(())
    }

    /// Reads the store and applies what it has beyond `at`; whether there was anything.
    ///
    /// # Errors
    /// The store has another history.
    pub async fn look_from(&self, store: &dyn Store, lineage: Lineage, at: Pos) -> Result<bool, Trouble> {
        let catalog = Catalog::load(store, &self.cache).await?;
        if catalog.lineage != lineage {
            return Err(Trouble::Astray("another history".to_owned()));
        }
        if catalog.points()?.iter().any(|point| point.txid == at.txid && *point != at) {
            return Err(Trouble::Astray(format!("the store is elsewhere at {}", at.txid)));
        }
        let base = Base { pos: at, page_size: PAGE_SIZE, commit: PageCount(PAGES) };
        let from_here = base.instead_of_newer_snapshots(&catalog.manifest);
        let planned = catalog.plan(store, &from_here).await?;
        let way = planned.ok().filter(|plan| plan.pos != at && base.is_first_of(plan));
        if let Some(plan) = way {
            if plan.pos.txid < at.txid {
                return Ok(false);
            }
            return self.apply(lineage, at, plan.pos, Batch::From(at.checksum)).await.map(|()| true);
        }
        // Nothing leads on from here; a state may be ahead all the same.
        let whole = catalog.plan(store, &catalog.manifest).await?.map_err(|_| Trouble::Passing)?;
        if whole.pos.txid <= at.txid {
            return Ok(false);
        }
        if self.rules.judge_before_rewrite && !catalog.points()?.contains(&at) {
            return Err(Trouble::Astray(format!("nothing leads from {at} to {}", whole.pos)));
        }
        self.apply(lineage, at, whole.pos, Batch::Whole).await.map(|()| true)
    }
}
