//! Whose turn it is to give names in a folder: creation, replacement and deletion, one writer at a time.
//!
//! WebDAV servers honour `If-Match` and `If-None-Match` by looking first and writing then, and their `LOCK` is known to some only. What
//! they all do in one step, because the file system below them does, is to rename a folder to a name that no full folder has. So:
//!
//! 1. A writer makes a folder `.rhyolite-new-<nonce>`, puts its bytes into it as `<nonce>`, and renames the folder to
//!    `.rhyolite-turn`. Who succeeds has the turn.
//! 2. It looks at what it must look at, then moves `.rhyolite-turn/<nonce>` to the object's name, then removes `.rhyolite-turn`.
//! 3. A writer that finds the same turn for longer than [`STALE_AFTER`], by its own clock, renames it away, deletes what it held,
//!    and only then takes its own turn.
//!
//! Time decides only when a turn is taken away, never whether a write is right: whoever lost its turn cannot move its bytes any
//! more, because they are gone from the path it moves them from, and nothing is ever written into `.rhyolite-turn` itself, so a
//! late request of its cannot put them back.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::request::{Asked, Dav, Effect, Request};
use crate::{StoreError, StoreErrorKind as Kind};

/// A turn takes three requests. One that lasts longer than this belongs to a writer that died.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(10);

/// Longest wait for a turn, longer than it takes to find a dead one and remove it.
const WAIT_MAX: Duration = Duration::from_secs(25);

const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The folder that is the turn.
const TURN: &str = ".rhyolite-turn";

/// A turn that was taken, and bytes that wait in it for their name.
#[derive(Debug)]
pub(super) struct Turn {
    /// Below the store's root: empty, or with a slash at its end.
    folder: String,
    nonce: String,
}

pub(super) fn random_hex() -> String {
    // Names only have to differ; where there is no randomness the server refuses the second of two equal ones.
    format!("{:016x}", getrandom::u64().unwrap_or_default())
}

/// The folder of a key: empty, or with a slash at its end.
pub(super) fn folder_of(key: &str) -> &str {
    key.rfind('/').map_or("", |at| &key[..=at])
}

impl Turn {
    /// Where the bytes wait.
    pub(super) fn draft(&self) -> String {
        format!("{}{TURN}/{}", self.folder, self.nonce)
    }

    /// Puts the bytes on the server, then waits for the turn in the key's folder.
    pub(super) async fn take(dav: &Dav, asked: Asked<'_>, folder: &str, bytes: Bytes) -> Result<Self, StoreError> {
        let nonce = random_hex();
        let (new, turn) = (format!("{folder}.rhyolite-new-{nonce}/"), format!("{folder}{TURN}/"));
        let made = dav.change(asked, "MKCOL", &new, Vec::new()).await.map_err(harmless)?;
        match made.status {
            200..=299 => {}
            404 | 409 => dav.make_folders(asked, &new).await?,
            _ => return Err(harmless(dav.refusal(asked, Effect::None, &made))),
        }
        let taken = async {
            put(dav, asked, &format!("{new}{nonce}"), bytes).await?;
            wait(dav, asked, &new, &turn, folder).await
        };
        let taken = taken.await;
        if let Err(e) = taken {
            let _ = dav.change(asked, "DELETE", &new, Vec::new()).await;
            return Err(harmless(e));
        }
        Ok(Self { folder: folder.to_owned(), nonce })
    }

    /// Is it gone, so that nothing can be done under it?
    pub(super) fn lost(dav: &Dav, asked: Asked<'_>) -> StoreError {
        dav.error(asked, Kind::Unavailable, "another writer took the turn away, because this one had lasted too long")
    }

    /// Lets the next writer have its turn. If this fails it is taken away after a while.
    pub(super) async fn end(self, dav: &Dav, asked: Asked<'_>) {
        let _ = dav.change(asked, "DELETE", &format!("{}{TURN}/", self.folder), Vec::new()).await;
    }
}

/// Nothing has its name yet: what may or may not have happened is of no consequence.
fn harmless(error: StoreError) -> StoreError {
    let kind = if error.kind == Kind::Ambiguous { Kind::Unavailable } else { error.kind };
    StoreError { kind, ..error }
}

/// Stores bytes under a name that nobody reads.
pub(super) async fn put(dav: &Dav, asked: Asked<'_>, path: &str, bytes: Bytes) -> Result<(), StoreError> {
    let len = bytes.len() as u64;
    let request = Request { method: "PUT", url: dav.url(path), headers: Vec::new(), body: bytes.into() };
    let answer = dav.send(asked, Effect::Change, len, request).await?;
    if (200..300).contains(&answer.status) { Ok(()) } else { Err(dav.refusal(asked, Effect::Change, &answer)) }
}

async fn wait(dav: &Dav, asked: Asked<'_>, new: &str, turn: &str, folder: &str) -> Result<(), StoreError> {
    let start = Instant::now();
    let (mut pause, mut seen) = (PAUSE_FIRST, None::<(Vec<String>, Instant)>);
    loop {
        let answer = dav.rename(asked, new, turn, false).await?;
        match answer.status {
            200..=299 => return Ok(()),
            // Taken; servers that meet a race say so in several ways.
            403 | 405 | 409 | 412 | 423 | 500.. => {}
            404 => return Err(dav.error(asked, Kind::Unavailable, "what was just stored is gone")),
            _ => return Err(dav.refusal(asked, Effect::None, &answer)),
        }
        if start.elapsed() > WAIT_MAX {
            let reason = format!("no turn came within {} s (status {})", WAIT_MAX.as_secs(), answer.status);
            return Err(dav.error(asked, Kind::Unavailable, reason));
        }
        let held = dav.look(asked, turn, 1).await?.unwrap_or_default();
        let held: Vec<String> = held.into_iter().map(|r| r.path).collect();
        match &seen {
            Some((before, since)) if *before == held && since.elapsed() > STALE_AFTER => {
                take_away(dav, asked, turn, folder).await?;
                seen = None;
            }
            Some((before, _)) if *before == held => {}
            _ => seen = Some((held, Instant::now())),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Renames a dead writer's turn away and deletes what it held. Of several that try, one succeeds.
async fn take_away(dav: &Dav, asked: Asked<'_>, turn: &str, folder: &str) -> Result<(), StoreError> {
    let dead = format!("{folder}.rhyolite-dead-{}/", random_hex());
    let answer = dav.rename(asked, turn, &dead, false).await?;
    if !(200..300).contains(&answer.status) {
        return Ok(());
    }
    tracing::warn!(store = %dav.description, "a writer that died held its turn in {folder:?}; taken away");
    let answer = dav.change(asked, "DELETE", &dead, Vec::new()).await?;
    match answer.status {
        200..=299 | 404 => Ok(()),
        _ => Err(dav.refusal(asked, Effect::None, &answer)),
    }
}

/// Does a writer have its turn in the folder right now?
pub(super) async fn is_taken(dav: &Dav, asked: Asked<'_>, folder: &str) -> Result<bool, StoreError> {
    Ok(dav.look(asked, &format!("{folder}{TURN}/"), 0).await?.is_some())
}
