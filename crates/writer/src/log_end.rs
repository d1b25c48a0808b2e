//! Where the log of a database ends in a store.
//!
//! Four requests when the local state tells where to look and nobody has claimed the manifest since: identity, manifest, the last
//! segment, which must end at the position that is looked for, and the next, which must not be there. Otherwise the log is listed.
//!
//! # Which segment is the last that counts
//!
//! A segment of an epoch lower than that of one before it is void. Every writer claims the manifest before it creates a segment, so no
//! segment has a higher epoch than a manifest that is still the same *after* the log was listed. A newest segment that has just the manifest's epoch is
//! therefore live, and where it holds a transaction nothing before it needs to be read. Otherwise every header is, also because the manifest
//! may have been put back to an older version by hand: then segments have higher epochs than it, and the highest counts.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use rhyolite_format::identity::Identity;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::segment::{FOOTER_SIZE, HEADER_SIZE, Segment, SegmentHeader, decode_footer, decode_index};
use rhyolite_format::{Epoch, Pos, Seq, keys};
use rhyolite_logic::lease::Guards;
use rhyolite_logic::log::VoidRule;
use rhyolite_store::{LIST_PAGE, Store, StoreError, StoreErrorKind, Version};

use crate::manifest_swap::{self, ManifestError};

/// So much of the end of a segment is read at first, to learn what it holds: all of most of them.
const TAIL_BYTES: u64 = 1 << 20;
/// Headers that are read at a time.
const HEADERS_AT_ONCE: usize = 16;
/// So often a log is looked at again that a new writer went on with meanwhile.
const TRIES_MAX: usize = 5;

/// Where the local state takes the end to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The next sequence number.
    pub next_seq: Seq,
    /// The position before it.
    pub pos: Pos,
    /// The epoch under which that was written.
    pub epoch: Epoch,
}

/// What a store holds of a database.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// Which history.
    pub identity: Identity,
    /// `None` when the first snapshot was never finished.
    pub manifest: Option<Manifest>,
    /// The version of the manifest to which all this belongs.
    pub manifest_version: Option<Version>,
    /// The highest epoch that wrote to the log or the manifest; `None` when none did.
    pub epoch: Option<Epoch>,
    /// The last position that the log, the bundles or a snapshot reach.
    pub pos: Option<Pos>,
    /// The sequence number of the next segment.
    pub next_seq: Seq,
}

/// Finds the end. `None` in an empty store.
pub async fn find(store: &Arc<dyn Store>, guards: Guards, hint: Option<Hint>) -> Result<Option<LogEnd>, ManifestError> {
    let identity = match store.get(keys::ID).await {
        Ok(object) => Identity::decode(&object.bytes)
            .map_err(|e| ManifestError::Damaged(format!("{} in {}: {e}", keys::ID, store.describe())))?,
        Err(error) if error.kind == StoreErrorKind::NotFound => return without_identity(store).await,
        Err(error) => return Err(error.into()),
    };
    for _ in 0..TRIES_MAX {
        let Some((manifest, version)) = manifest_swap::read(&**store).await? else {
            let log = store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), None, 1).await?;
            if log.is_empty() {
                return Ok(Some(without_manifest(identity)));
            }
            if manifest_swap::read(&**store).await?.is_some() {
                continue;
            }
            let text = format!(
                "{} is missing in {}, but there is a log: put it back, or use another prefix",
                keys::MANIFEST,
                store.describe()
            );
            return Err(ManifestError::Damaged(text));
        };
        let from_manifest = manifest.files.iter().map(|f| f.end()).chain(manifest.log_start).max_by_key(|p| p.txid);
        let mut end = LogEnd {
            identity: identity.clone(),
            next_seq: manifest.first_seq,
            manifest: None,
            manifest_version: Some(version),
            epoch: Some(manifest.epoch),
            pos: from_manifest,
        };
        let found = match hint.filter(|h| h.next_seq >= manifest.first_seq && h.epoch == manifest.epoch) {
            Some(hint) if is_end(&**store, &manifest, &end, hint).await? => {
                end.next_seq = hint.next_seq;
                end.pos = later(end.pos, Some(hint.pos));
                true
            }
            _ => walk(store, guards, &manifest, &mut end).await?,
        };
        if found {
            end.manifest = Some(manifest);
            return Ok(Some(end));
        }
    }
    Err(ManifestError::Contended)
}

/// A store without an identity is empty, or was damaged: its writer creates that first.
async fn without_identity(store: &Arc<dyn Store>) -> Result<Option<LogEnd>, ManifestError> {
    match store.head(keys::MANIFEST).await {
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(_) => Err(ManifestError::Damaged(format!(
            "{} is missing in {}, but there is a {}: put it back, or use another prefix",
            keys::ID,
            store.describe(),
            keys::MANIFEST
        ))),
    }
}

/// The end of a store in which the first snapshot was never finished.
fn without_manifest(identity: Identity) -> LogEnd {
    let next_seq = Seq::FIRST;
    let (manifest, manifest_version, epoch) = (None, None, None);
    LogEnd { identity, manifest, manifest_version, epoch, pos: None, next_seq }
}

fn later(a: Option<Pos>, b: Option<Pos>) -> Option<Pos> {
    [a, b].into_iter().flatten().max_by_key(|p| p.txid)
}

/// Whether the log ends where `hint` says: its next segment is not there, and what comes before that ends at its position. Numbers alone say nothing: another
/// store of the same database has the same ones, and so has this store after it was put back to an older state. `end` is what the manifest says.
async fn is_end(store: &dyn Store, manifest: &Manifest, end: &LogEnd, hint: Hint) -> Result<bool, ManifestError> {
    if !is_free(store, hint.next_seq).await? {
        return Ok(false);
    }
    let Some(last) = hint.next_seq.previous().filter(|last| *last >= manifest.first_seq) else {
        return Ok(end.pos == Some(hint.pos));
    };
    match read_index(store, last).await {
        Ok(segment) => {
            let header = &segment.header;
            let is_ours = header.lineage == end.identity.lineage && header.epoch == manifest.epoch;
            Ok(is_ours && segment.end() == Some(hint.pos))
        }
        Err(ManifestError::Store(error)) if error.kind == StoreErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn is_free(store: &dyn Store, seq: Seq) -> Result<bool, StoreError> {
    match store.head(&keys::segment(seq)).await {
        Ok(_) => Ok(false),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Lists the log and reads the last segment that counts and holds a transaction. `false` when the manifest has changed meanwhile so
/// that it must be looked at again.
async fn walk(
    store: &Arc<dyn Store>,
    guards: Guards,
    manifest: &Manifest,
    end: &mut LogEnd,
) -> Result<bool, ManifestError> {
    let segments = list(store, manifest).await?;
    if Some(store.head(keys::MANIFEST).await?.version) != end.manifest_version {
        return Ok(false);
    }
    end.next_seq = segments.last().map_or(manifest.first_seq, |last| last.next());
    let Some(last) = segments.last().copied() else { return Ok(true) };
    let newest = read_index(&**store, last).await?;
    let live = if newest.header.epoch == manifest.epoch && newest.end().is_some() {
        segments
    } else {
        let epochs = epochs(store, &segments).await?;
        end.epoch = end.epoch.max(epochs.iter().copied().max());
        if guards.void_rule { without_void(manifest, &segments, &epochs) } else { segments }
    };
    for seq in live.into_iter().rev() {
        let segment = if seq == last { newest.clone() } else { read_index(&**store, seq).await? };
        if segment.header.lineage != end.identity.lineage {
            let text = format!("segment {seq} in {} belongs to another history", store.describe());
            return Err(ManifestError::Damaged(text));
        }
        if let Some(pos) = segment.end() {
            end.pos = later(end.pos, Some(pos));
            break;
        }
    }
    Ok(true)
}

/// The live log as it is listed, without a hole.
async fn list(store: &Arc<dyn Store>, manifest: &Manifest) -> Result<Vec<Seq>, ManifestError> {
    let mut segments: Vec<Seq> = Vec::new();
    let mut after = manifest.first_seq.previous().map(keys::segment);
    loop {
        let page = store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), after.as_deref(), LIST_PAGE).await?;
        let last = page.len() < LIST_PAGE;
        after = page.last().map(|e| e.key.clone());
        segments.extend(page.iter().filter_map(|e| keys::parse_segment(&e.key)));
        if last {
            break;
        }
    }
    segments.retain(|seq| *seq >= manifest.first_seq);
    let mut expected = manifest.first_seq;
    for seq in &segments {
        if *seq != expected {
            return Err(ManifestError::Damaged(format!("segment {expected} is missing in {}", store.describe())));
        }
        expected = expected.next();
    }
    Ok(segments)
}

/// The epoch of every segment.
async fn epochs(store: &Arc<dyn Store>, segments: &[Seq]) -> Result<Vec<Epoch>, ManifestError> {
    let headers: Vec<_> = segments.iter().map(|seq| epoch_of(Arc::clone(store), *seq)).collect();
    stream::iter(headers).buffered(HEADERS_AT_ONCE).try_collect().await
}

async fn epoch_of(store: Arc<dyn Store>, seq: Seq) -> Result<Epoch, ManifestError> {
    let key = keys::segment(seq);
    let bytes = store.get_range(&key, 0..HEADER_SIZE as u64).await?;
    let damaged = |e| ManifestError::Damaged(format!("{key} in {}: {e}", store.describe()));
    SegmentHeader::decode(&bytes).map(|header| header.epoch).map_err(damaged)
}

/// Leaves void segments out.
fn without_void(manifest: &Manifest, segments: &[Seq], epochs: &[Epoch]) -> Vec<Seq> {
    let mut rule = VoidRule::after(manifest);
    let judged = segments.iter().zip(epochs);
    judged.filter(|(_, epoch)| rule.counts(**epoch)).map(|(segment, _)| *segment).collect()
}

/// Header and entries of one segment.
async fn read_index(store: &dyn Store, seq: Seq) -> Result<Segment, ManifestError> {
    let key = keys::segment(seq);
    let damaged = |e| ManifestError::Damaged(format!("{key} in {}: {e}", store.describe()));
    let mut tail = store.get_tail(&key, TAIL_BYTES).await?;
    if tail.bytes.len() as u64 == tail.size {
        return Segment::decode(&tail.bytes).map_err(damaged);
    }
    let head = store.get_range(&key, 0..HEADER_SIZE as u64).await?;
    let header = SegmentHeader::decode(&head).map_err(damaged)?;
    let index = decode_footer(&tail.bytes, tail.size).map_err(damaged)?;
    let needed = tail.size - index.start;
    assert!(needed >= FOOTER_SIZE as u64, "the footer lies after the entries");
    if needed > tail.bytes.len() as u64 {
        tail = store.get_tail(&key, needed).await?;
    }
    let start = usize::try_from(needed).ok().and_then(|needed| tail.bytes.len().checked_sub(needed));
    let start = start
        .ok_or_else(|| ManifestError::Damaged(format!("{key} in {}: its end cannot be read", store.describe())))?;
    let entries = decode_index(&header, &tail.bytes[start..], tail.size).map_err(damaged)?;
    Ok(Segment { header, entries })
}
