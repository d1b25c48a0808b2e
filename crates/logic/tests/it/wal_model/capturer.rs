//! The capturer, as the process drives it: connections, looks, checkpoints. What a look means is decided by the real code.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use rhyolite_logic::tail::{self, Captured, Live, Step};

use super::application::idle;
use super::sqlite::{Connection, Mode, tick};
use super::world::{Header, World};

/// A rule that the capturer breaks, to show that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// One read transaction ends before the next one begins.
    NoOverlap,
    /// One read transaction ends though the header could not be read after the next one began.
    BlindHandover,
    /// A generation without a frame takes the place of the one before as what is captured.
    EmptyGenerationTaken,
    /// After a start it goes on wherever the saved position is still in the WAL.
    ResumedAnywhere,
    /// It believes `backfill` without reading the header again.
    TornMoment,
}

/// What outlives the capturer's process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    captured: Captured,
    /// Checksum in the header of the last captured frame.
    checksum: u64,
    /// Commits captured so far.
    pub(super) taken: usize,
}

/// What the capturer did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) looks_with_frames: u32,
    pub(super) restarts_seen: u32,
    pub(super) pins: u32,
    pub(super) pins_on_mark_zero: u32,
    pub(super) locked_checkpoints: u32,
    pub(super) starts: u32,
    /// Starts after which the database had to be compared page by page.
    pub(super) comparisons: u32,
}

impl Done {
    pub(super) fn add(&mut self, other: &Self) {
        self.looks_with_frames += other.looks_with_frames;
        self.restarts_seen += other.restarts_seen;
        self.pins += other.pins;
        self.pins_on_mark_zero += other.pins_on_mark_zero;
        self.locked_checkpoints += other.locked_checkpoints;
        self.starts += other.starts;
        self.comparisons += other.comparisons;
    }
}

/// What the capturer shares with the test.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) saved: Option<Saved>,
    pub(super) done: Done,
}

/// A violation, in words.
type Violation = String;

pub(super) struct Capturer {
    world: Rc<RefCell<World>>,
    notes: Rc<RefCell<Notes>>,
    flaw: Flaw,
    pinned: Connection,
    free: Connection,
    captured: Captured,
    checksum: u64,
    taken: usize,
    /// The pages below a frame are known. Not for frames that were committed while no read transaction was held: later ones
    /// may have been copied to the database.
    views_hold: bool,
}

/// Captures until it dies.
pub(super) async fn capture(world: Rc<RefCell<World>>, notes: Rc<RefCell<Notes>>, flaw: Flaw) {
    let captured = async {
        let mut capturer = Capturer::start(&world, &notes, flaw).await?;
        loop {
            idle(&world, 10).await;
            capturer.act().await?;
        }
    };
    let never: Result<std::convert::Infallible, Violation> = captured.await;
    world.borrow_mut().failure = never.err();
}

impl Capturer {
    /// Pins the database and finds out where to go on: at the saved position if that is still in the WAL, otherwise after a
    /// comparison of all pages.
    async fn start(world: &Rc<RefCell<World>>, notes: &Rc<RefCell<Notes>>, flaw: Flaw) -> Result<Self, Violation> {
        let (mut pinned, mut free) = (Connection::open(world), Connection::open(world));
        pinned.begin_read().await;
        let (header, backfill) = loop {
            if let Some(moment) = moment(&pinned, flaw).await {
                break moment;
            }
            free.begin_read().await;
            free.end_read().await;
        };
        let saved = notes.borrow().saved.filter(|saved| can_resume(&world.borrow(), saved, &header, backfill, flaw));
        if saved.is_none() {
            compare(&world.borrow(), &header, backfill)?;
        }
        let position = saved.unwrap_or(Saved {
            captured: Captured { salt: header.salt, frame: header.max_frame },
            checksum: header.checksum,
            taken: header.commits,
        });
        {
            let mut notes = notes.borrow_mut();
            notes.saved = Some(position);
            notes.done.starts += 1;
            notes.done.comparisons += u32::from(saved.is_none());
        }
        let Saved { captured, checksum, taken } = position;
        let (world, notes, views_hold) = (Rc::clone(world), Rc::clone(notes), saved.is_none());
        let mut started = Self { world, notes, flaw, pinned, free, captured, checksum, taken, views_hold };
        while !started.look_or_repair().await? {}
        started.views_hold = true;
        Ok(started)
    }

    async fn act(&mut self) -> Result<(), Violation> {
        let choice = self.world.borrow_mut().below(16);
        match choice {
            0..8 => self.look_or_repair().await.map(|_| ()),
            8..12 => self.pin_again().await,
            12 => self.checkpoint_passive().await,
            13 => self.checkpoint_locked().await,
            14 => self.checkpoint_locked_by_a_third().await,
            _ => self.truncate().await,
        }
    }

    /// Looks. If there was no header to read, a writer may have died within it: whoever begins to read repairs it.
    async fn look_or_repair(&mut self) -> Result<bool, Violation> {
        let looked = self.look().await?;
        if !looked {
            self.free.begin_read().await;
            self.free.end_read().await;
        }
        Ok(looked)
    }

    /// Captures what the live header says is new. `false` when there was no header to read.
    async fn look(&mut self) -> Result<bool, Violation> {
        let Some(header) = self.pinned.live_header().await else { return Ok(false) };
        let live = Live { salt: header.salt, max_frame: header.max_frame };
        match tail::next_step(self.captured, live) {
            Step::Nothing if self.flaw == Flaw::EmptyGenerationTaken => {
                self.captured = Captured { salt: live.salt, frame: live.max_frame };
            }
            Step::Nothing => {}
            Step::Frames { first, last } => self.capture(&header, first, last).await?,
            Step::Restarted { last } => {
                self.notes.borrow_mut().done.restarts_seen += 1;
                self.capture(&header, 1, last).await?;
            }
            Step::Doubt(doubt) => return Err(format!("{doubt:?}: {:?}, {live:?}", self.captured)),
        }
        if self.taken != header.commits {
            return Err(format!("{} commits captured of {}, {live:?}", self.taken, header.commits));
        }
        Ok(true)
    }

    async fn capture(&mut self, header: &Header, first: u32, last: u32) -> Result<(), Violation> {
        let mut pages = BTreeMap::new();
        for number in first..=last {
            tick().await;
            let world = self.world.borrow();
            let frame = *world.frames.get(number as usize - 1).ok_or(format!("frame {number} is missing"))?;
            if frame.salt != header.salt {
                return Err(format!("frame {number} belongs to another generation"));
            }
            pages.insert(frame.page, frame.value);
            if !frame.commit {
                continue;
            }
            let pages: Vec<_> = std::mem::take(&mut pages).into_iter().collect();
            let expected = world.commits.get(self.taken).map(|commit| &commit.pages);
            if expected != Some(&pages) {
                return Err(format!("captured {pages:?} as commit {}, which is {expected:?}", self.taken + 1));
            }
            self.taken += 1;
            if self.views_hold {
                check_view(&world, number, self.taken)?;
            }
        }
        if !pages.is_empty() {
            return Err(format!("frame {last} ends no transaction"));
        }
        self.captured = Captured { salt: header.salt, frame: last };
        self.checksum = header.checksum;
        let mut notes = self.notes.borrow_mut();
        notes.saved = Some(Saved { captured: self.captured, checksum: self.checksum, taken: self.taken });
        notes.done.looks_with_frames += u32::from(last >= first);
        Ok(())
    }

    /// Lets the read transaction pass to the free connection: one ends when everything up to the other is captured.
    async fn pin_again(&mut self) -> Result<(), Violation> {
        if self.flaw == Flaw::NoOverlap {
            self.pinned.end_read().await;
        }
        self.free.begin_read().await;
        let looked = self.look().await?;
        if looked || self.flaw == Flaw::BlindHandover || self.flaw == Flaw::NoOverlap {
            std::mem::swap(&mut self.pinned, &mut self.free);
            self.note_pin();
        }
        self.free.end_read().await;
        Ok(())
    }

    fn note_pin(&self) {
        let mut notes = self.notes.borrow_mut();
        notes.done.pins += 1;
        notes.done.pins_on_mark_zero += u32::from(self.pinned.mark == Some(0));
    }

    async fn checkpoint_passive(&mut self) -> Result<(), Violation> {
        self.pin_again().await?;
        let _ = self.free.checkpoint(Mode::Passive).await;
        self.pin_again().await
    }

    /// The free connection takes the write lock; the other one checkpoints and begins again.
    ///
    /// With a header that a dead writer has broken, nobody but the holder of the write lock could begin to read: then give up.
    async fn checkpoint_locked(&mut self) -> Result<(), Violation> {
        self.free.begin_read().await;
        if self.free.begin_write().await.is_ok() {
            if self.look().await? {
                self.pinned.end_read().await;
                let _ = self.pinned.checkpoint(Mode::Passive).await;
                self.pinned.begin_read().await;
                self.note_pin();
                self.notes.borrow_mut().done.locked_checkpoints += 1;
            }
            self.free.roll_back().await;
        }
        self.free.end_read().await;
        Ok(())
    }

    /// A third connection takes the write lock; the two pass the read transaction on, before and after the checkpoint.
    async fn checkpoint_locked_by_a_third(&mut self) -> Result<(), Violation> {
        let mut third = Connection::open(&self.world);
        third.begin_read().await;
        if third.begin_write().await.is_ok() {
            if self.look().await? {
                self.pin_again().await?;
                let _ = self.free.checkpoint(Mode::Passive).await;
                self.pin_again().await?;
                self.notes.borrow_mut().done.locked_checkpoints += 1;
            }
            third.roll_back().await;
        }
        third.end_read().await;
        Ok(())
    }

    async fn truncate(&mut self) -> Result<(), Violation> {
        self.checkpoint_locked().await?;
        let _ = self.free.checkpoint(Mode::Truncate).await;
        self.look().await.map(|_| ())
    }
}

/// The live header and how much of its WAL is in the database.
async fn moment(connection: &Connection, flaw: Flaw) -> Option<(Header, u32)> {
    let header = connection.live_header().await?;
    tick().await;
    let backfill = connection.world.borrow().backfill;
    if flaw == Flaw::TornMoment {
        return Some((header, backfill));
    }
    let again = connection.live_header().await?;
    (again == header).then_some((header, backfill))
}

/// Whether capture goes on at the saved position, whose last frame must be in the file as it was.
fn can_resume(world: &World, saved: &Saved, header: &Header, backfill: u32, flaw: Flaw) -> bool {
    let Captured { salt, frame } = saved.captured;
    let stored = frame.checked_sub(1).and_then(|index| world.frames.get(index as usize));
    let live = Live { salt: header.salt, max_frame: header.max_frame };
    let continues = match flaw {
        Flaw::ResumedAnywhere => salt == live.salt && frame <= live.max_frame,
        _ => tail::continues(saved.captured, live, backfill),
    };
    continues && stored.is_some_and(|stored| stored.checksum == saved.checksum)
}

/// The pages that a comparison reads: those of the database alone, if it holds every frame.
fn compare(world: &World, header: &Header, backfill: u32) -> Result<(), Violation> {
    let seen = if backfill >= header.max_frame { world.database } else { world.view(1, header.max_frame) };
    let expected = world.state_after(header.commits);
    if seen == expected { Ok(()) } else { Err(format!("compared with {seen:?}, not {expected:?}, at {header:?}")) }
}

/// The pages that the capturer would read after frame `frame` are those after commit `commits`.
fn check_view(world: &World, frame: u32, commits: usize) -> Result<(), Violation> {
    let (seen, expected) = (world.view(1, frame), world.state_after(commits));
    if seen == expected { Ok(()) } else { Err(format!("the view after frame {frame} is {seen:?}, not {expected:?}")) }
}
