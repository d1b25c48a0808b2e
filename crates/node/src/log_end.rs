//! Where the log of a database ends in a store.
//!
//! Four requests when the local state tells where to look: identity, manifest, the last segment, which must be there, and
//! the next, which must not. Otherwise the log is listed.

use std::sync::Arc;

use rhyolite_format::identity::Identity;
use rhyolite_format::manifest::Manifest;
use rhyolite_format::segment::{FOOTER_SIZE, Segment, SegmentHeader, decode_footer, decode_index};
use rhyolite_format::{Nonce, Pos, Seq, keys};
use rhyolite_store::{LIST_PAGE, Store, StoreError, StoreErrorKind};

use crate::manifest_swap::{self, ManifestError};

/// A segment up to this size is read whole to learn what it holds.
const WHOLE_BYTES_MAX: u64 = 1 << 20;
/// So much of the end of a larger one is read at first.
const TAIL_BYTES: u64 = 64 << 10;

/// What a store holds of a database.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// Which history.
    pub identity: Identity,
    /// `None` when the first snapshot was never finished.
    pub manifest: Option<Manifest>,
    /// The last position that the log, the bundles or a snapshot reach.
    pub pos: Option<Pos>,
    /// The sequence number of the next segment.
    pub next_seq: Seq,
    /// Who wrote the last segment.
    pub last_nonce: Option<Nonce>,
}

/// Finds the end. `None` in an empty store. `hint` is the sequence number that the local state takes for the next, and the
/// position before it.
pub async fn find(store: &Arc<dyn Store>, hint: Option<(Seq, Pos)>) -> Result<Option<LogEnd>, ManifestError> {
    let identity = match store.get(keys::ID).await {
        Ok(object) => Identity::decode(&object.bytes)
            .map_err(|e| ManifestError::Damaged(format!("{} in {}: {e}", keys::ID, store.describe())))?,
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some((manifest, _)) = manifest_swap::read(&**store).await? else {
        if !store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), None, 1).await?.is_empty() {
            let text = format!(
                "{} is missing in {}, but there is a log: put it back, or use another prefix",
                keys::MANIFEST,
                store.describe()
            );
            return Err(ManifestError::Damaged(text));
        }
        return Ok(Some(LogEnd { identity, manifest: None, pos: None, next_seq: Seq::FIRST, last_nonce: None }));
    };
    let from_manifest = manifest.files.iter().map(|f| f.end()).chain(manifest.log_start).max_by_key(|p| p.txid);
    let mut end =
        LogEnd { identity, next_seq: manifest.first_seq, manifest: None, pos: from_manifest, last_nonce: None };
    match hint.filter(|(seq, _)| *seq >= manifest.first_seq) {
        Some((seq, pos)) if is_end(&**store, &manifest, seq).await? => {
            end.next_seq = seq;
            end.pos = later(end.pos, Some(pos));
        }
        _ => walk(store, &manifest, &mut end).await?,
    }
    end.manifest = Some(manifest);
    Ok(Some(end))
}

fn later(a: Option<Pos>, b: Option<Pos>) -> Option<Pos> {
    [a, b].into_iter().flatten().max_by_key(|p| p.txid)
}

/// Whether `seq` is the first sequence number without a segment: it has none, and the one before it has, or is in a bundle. A
/// store that was put back to an older state is not taken for one that has everything.
async fn is_end(store: &dyn Store, manifest: &Manifest, seq: Seq) -> Result<bool, StoreError> {
    if !is_free(store, seq).await? {
        return Ok(false);
    }
    match seq.previous().filter(|before| *before >= manifest.first_seq) {
        Some(before) => Ok(!is_free(store, before).await?),
        None => Ok(true),
    }
}

async fn is_free(store: &dyn Store, seq: Seq) -> Result<bool, StoreError> {
    match store.head(&keys::segment(seq)).await {
        Ok(_) => Ok(false),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Lists the log and reads the last segment that holds a transaction.
async fn walk(store: &Arc<dyn Store>, manifest: &Manifest, end: &mut LogEnd) -> Result<(), ManifestError> {
    let mut segments: Vec<(Seq, u64)> = Vec::new();
    let mut after = manifest.first_seq.previous().map(keys::segment);
    loop {
        let page = store.list_after(keys::LOG_PREFIX.trim_end_matches('/'), after.as_deref(), LIST_PAGE).await?;
        let last = page.len() < LIST_PAGE;
        after = page.last().map(|e| e.key.clone());
        segments.extend(page.iter().filter_map(|e| Some((keys::parse_segment(&e.key)?, e.size))));
        if last {
            break;
        }
    }
    let mut expected = manifest.first_seq;
    for (seq, _) in segments.iter().filter(|(seq, _)| *seq >= manifest.first_seq) {
        if *seq != expected {
            return Err(ManifestError::Damaged(format!("segment {expected} is missing in {}", store.describe())));
        }
        expected = expected.next();
    }
    end.next_seq = expected;
    for (seq, size) in segments.iter().rev().take_while(|(seq, _)| *seq >= manifest.first_seq) {
        let segment = read_index(&**store, *seq, *size).await?;
        if segment.header.lineage != end.identity.lineage {
            return Err(ManifestError::Damaged(format!(
                "segment {seq} in {} belongs to another history",
                store.describe()
            )));
        }
        end.last_nonce.get_or_insert(segment.header.nonce);
        if let Some(pos) = segment.end() {
            end.pos = later(end.pos, Some(pos));
            break;
        }
    }
    Ok(())
}

/// Header and entries of one segment.
async fn read_index(store: &dyn Store, seq: Seq, size: u64) -> Result<Segment, ManifestError> {
    let key = keys::segment(seq);
    let damaged = |e| ManifestError::Damaged(format!("{key} in {}: {e}", store.describe()));
    if size <= WHOLE_BYTES_MAX {
        let object = store.get(&key).await?;
        return Segment::decode(&object.bytes).map_err(damaged);
    }
    let head = store.get_range(&key, 0..rhyolite_format::segment::HEADER_SIZE as u64).await?;
    let header = SegmentHeader::decode(&head).map_err(damaged)?;
    let mut tail = store.get_tail(&key, TAIL_BYTES).await?;
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
