//! Makes a file one of the history. What the history lacks is kept first. The order is that of the node: a crash at any point leaves a file for which all
//! of this can be done again.

use rhyolite_format::{Checksum, Lineage, Pos, Txid};
use rhyolite_logic::branch::{Local, Verdict, judge};
use rhyolite_store::Store;

use super::catalog::Catalog;
use super::files::{Batch, Files, Trouble};

/// Makes the file one that follows.
///
/// # Errors
/// The store does not tell.
pub async fn rejoin(files: &Files, store: &dyn Store, reason: &str) -> Result<(), Trouble> {
    files.say(|| format!("brings its file back: {reason}"));
    let catalog = Catalog::load(store, &files.cache).await?;
    let points = catalog.points()?;
    let taken = match files.open() {
        Ok((lineage, pos)) => follower(files, &catalog, &points, (lineage, pos)).await,
        Err(_) if files.is_there().0 => written(files, &catalog, &points).await,
        Err(_) => {
            empty_state_folder(files);
            files.sim.node(files.node).disk.follow = None;
            return Ok(());
        }
    };
    let Some(at) = taken else { return Ok(()) };
    let catalog = Catalog::load(store, &files.cache).await?;
    let plan = catalog.plan(store, &catalog.manifest).await?.map_err(|_| Trouble::Passing)?;
    files.apply(catalog.lineage, at, plan.pos, Batch::Whole).await
}

/// A file that follows already. Gives where it is, when it is to be rewritten.
async fn follower(files: &Files, catalog: &Catalog, points: &[Pos], at: (Lineage, Pos)) -> Option<Pos> {
    let (lineage, pos) = at;
    empty_state_folder(files);
    let local = Local { checksum: pos.checksum, lineage: Some(lineage), durable: None };
    match judge(&local, catalog.lineage, points.iter().copied()) {
        Verdict::Known(known) => {
            files.forget_trail();
            files.follow(lineage, known, known);
            None
        }
        Verdict::Lost => {
            keep(files, pos.checksum).await;
            files.forget_trail();
            files.follow(catalog.lineage, pos, pos);
            Some(pos)
        }
    }
}

/// A file that somebody has written to.
async fn written(files: &Files, catalog: &Catalog, points: &[Pos]) -> Option<Pos> {
    let content = files.content();
    let (lineage, durable, noted) = {
        let node = files.sim.node(files.node);
        let state = node.disk.state.as_ref();
        (state.map(|s| s.lineage), state.and_then(|s| s.durable), state.and_then(|s| s.pos))
    };
    files.step().await;
    let local = Local { checksum: content, lineage, durable };
    let verdict = judge(&local, catalog.lineage, points.iter().copied());
    let pos = match verdict {
        Verdict::Known(pos) => pos,
        Verdict::Lost => {
            keep(files, content).await;
            Pos { txid: noted.map_or(Txid::FIRST, |pos| pos.txid), checksum: content }
        }
    };
    files.forget_trail();
    files.follow(catalog.lineage, pos, pos);
    {
        // SQLite has put what was committed into the file.
        let node = files.sim.node(files.node);
        let mut database = node.disk.database();
        database.uncaptured.clear();
        database.earlier.clear();
    }
    files.step().await;
    empty_state_folder(files);
    (verdict == Verdict::Lost).then_some(pos)
}

/// Keeps a copy.
pub async fn keep(files: &Files, content: Checksum) {
    if !files.rules.keep_branch {
        return;
    }
    files.step().await;
    files.step().await;
    let mut node = files.sim.node(files.node);
    if !node.disk.lost.contains(&content) {
        node.disk.lost.push(content);
        drop(node);
        files.sim.cluster().truth().branches += 1;
        files.say(|| format!("keeps {content} as a lost branch"));
    }
}

/// What was captured here is in the history, or kept.
pub fn empty_state_folder(files: &Files) {
    let mut node = files.sim.node(files.node);
    node.disk.state = None;
    node.disk.log.clear();
}
