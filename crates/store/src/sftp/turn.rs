//! Whose turn it is to replace and delete in a folder, one writer at a time.
//!
//! SFTP has no conditions and no locks, but rename(2) gives a folder a name that no full folder has in one step. So:
//!
//! 1. A writer makes a folder `.rhyolite-new-<nonce>`, puts its bytes into it as `<nonce>`, and renames the folder to `.rhyolite-turn`.
//!    Who succeeds has the turn.
//! 2. It looks at what it must look at, then renames `.rhyolite-turn/<nonce>` to the object's name, then removes `.rhyolite-turn`.
//! 3. A writer that finds the same turn for longer than [`STALE_AFTER`], by its own clock, renames it away and removes what it held and
//!    then the folder; only then does it take its own turn. A rename by the dead writer that the server had already begun has
//!    ended by then: a folder that is gone gives no file any more.
//!
//! Time decides only when a turn is taken away, never whether a write is right: whoever lost its turn cannot rename its bytes any
//! more, because they are gone from the path it renames them from, and nothing is ever written into `.rhyolite-turn` itself, so
//! a late request of its cannot put them back.

use std::time::Duration;

use russh_sftp::client::error::Error;
use tokio::time::Instant;

use super::files::{Files, found, is_absent, is_refusal};

/// A turn takes a few requests. One that lasts longer than this belongs to a writer that died.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(10);

/// Longest wait for a turn, longer than it takes to find a dead one and remove it.
const WAIT_MAX: Duration = Duration::from_secs(25);

const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The folder that is the turn.
const TURN: &str = ".rhyolite-turn";

/// Why no turn was had.
#[derive(Debug)]
pub(super) enum NoTurn {
    /// Others had it all the time.
    Waited,
    /// A request failed.
    Failed(Error),
}

impl From<Error> for NoTurn {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A turn that was taken, and a file that waits in it for its name.
#[derive(Debug)]
pub(super) struct Turn {
    /// The folder that is the turn.
    path: String,
    nonce: String,
}

pub(super) fn random_hex() -> String {
    // Names only have to differ; the server refuses the second of two equal ones.
    format!("{:016x}", getrandom::u64().unwrap_or_default())
}

/// A folder in which a draft waits, before it becomes the turn.
#[derive(Debug)]
pub(super) struct Draft {
    folder: String,
    pub(super) nonce: String,
    /// Where turns are taken: empty, or with a slash at its end.
    parent: String,
}

impl Draft {
    /// Makes the folder, for a draft below `parent` (empty, or with a slash at its end).
    pub(super) async fn begin(files: &Files, parent: &str) -> Result<Self, Error> {
        let nonce = random_hex();
        let folder = format!("{parent}.rhyolite-new-{nonce}");
        if let Err(e) = files.make_folder(&folder).await {
            if !is_absent(&e) {
                return Err(e);
            }
            files.make_folders(parent).await?;
            files.make_folder(&folder).await?;
        }
        Ok(Self { folder, nonce, parent: parent.to_owned() })
    }

    /// The file.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.folder, self.nonce)
    }

    /// Removes it again, as well as that can be done.
    pub(super) async fn discard(self, files: &Files) {
        let _ = files.remove(&self.path()).await;
        let _ = files.remove_folder(&self.folder).await;
    }

    /// Waits for the turn. The draft is removed if it does not come.
    pub(super) async fn take_turn(self, files: &Files) -> Result<Turn, NoTurn> {
        let path = format!("{}{TURN}", self.parent);
        let start = Instant::now();
        let (mut pause, mut seen) = (PAUSE_FIRST, None::<(Vec<String>, Instant)>);
        loop {
            let error = match files.rename(&self.folder, &path).await {
                Ok(()) => return Ok(Turn { path, nonce: self.nonce }),
                Err(e) => e,
            };
            if !is_refusal(&error) || is_absent(&error) {
                self.discard(files).await;
                return Err(NoTurn::Failed(error));
            }
            let held = files.read_folder(&path).await?.unwrap_or_default();
            let mut held: Vec<String> = held.into_iter().map(|(name, _)| name).collect();
            held.sort_unstable();
            if start.elapsed() > WAIT_MAX {
                self.discard(files).await;
                // Refused although nobody has it: it is something else that the server does not like.
                return Err(if held.is_empty() { NoTurn::Failed(error) } else { NoTurn::Waited });
            }
            match &seen {
                Some((before, since)) if *before == held && since.elapsed() > STALE_AFTER => {
                    take_away(files, &self.parent, &path).await?;
                    seen = None;
                }
                Some((before, _)) if *before == held => {}
                _ => seen = Some((held, Instant::now())),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Turn {
    /// Where the file waits.
    pub(super) fn draft(&self) -> String {
        format!("{}/{}", self.path, self.nonce)
    }

    /// Lets the next writer have its turn. If this fails it is taken away after a while.
    pub(super) async fn end(self, files: &Files) {
        let _ = files.remove(&self.draft()).await;
        // Another writer's turn is a full folder already, which is not removed.
        let _ = files.remove_folder(&self.path).await;
    }
}

/// Renames a dead writer's turn away and removes it. Of several that try, one succeeds.
async fn take_away(files: &Files, parent: &str, turn: &str) -> Result<(), Error> {
    let dead = format!("{parent}.rhyolite-dead-{}", random_hex());
    if found(files.rename(turn, &dead).await)?.is_none() {
        return Ok(());
    }
    tracing::warn!("a writer that died held its turn in {parent:?} of an SFTP server; taken away");
    for (name, _) in files.read_folder(&dead).await?.unwrap_or_default() {
        found(files.remove(&format!("{dead}/{name}")).await)?;
    }
    found(files.remove_folder(&dead).await).map(drop)
}
