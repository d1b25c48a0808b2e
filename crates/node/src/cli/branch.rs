//! `branch`: states of databases that a cluster has gone on without.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rhyolite_format::{Checksum, Epoch, Lineage, Timestamp, Txid};
use rhyolite_logic::pick::is_state_folder;
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::{Output, columns};
use crate::follow::lost::{self, Kept};
use crate::time;

/// Folders below one another that are searched at most.
const DEPTH_MAX: usize = 32;

#[derive(Debug, Subcommand)]
pub(super) enum BranchCommand {
    List(BranchListArgs),
}

/// List the lost branches below a folder: what a former primary, or a replica, had and the cluster has gone on without.
///
/// Each is a plain SQLite file, as it was: copy it to wherever it is wanted, look into it with any SQLite, and take from it what is missed. Nothing but
/// you removes it.
#[derive(Args, Debug)]
#[command(after_help = "Exit statuses: 0 also when there are none.\n\nExamples:\n  rhyolite branch list ./a\n  cp \
\"./a/.app.db-rhyolite/lost/0000000000000008-8c1d2e3f4a5b6c7d.db\" lost.db")]
pub(super) struct BranchListArgs {
    /// Folder of a node
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object for each
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    database: &'a Path,
    path: &'a Path,
    #[serde(with = "time::rfc3339")]
    time: Timestamp,
    txid: Option<Txid>,
    epoch: Option<Epoch>,
    lineage: Option<Lineage>,
    checksum: Option<Checksum>,
    size: u64,
    reason: &'a str,
}

pub(super) fn run(command: BranchCommand) -> Result<(), Failure> {
    match command {
        BranchCommand::List(args) => list(&args),
    }
}

fn list(args: &BranchListArgs) -> Result<(), Failure> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    search(&args.dir, 0, &mut found, &mut problems)?;
    print(args, found)?;
    match problems.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(Status::Damaged, format!("a lost branch cannot be read: {first}"))),
    }
}

fn print(args: &BranchListArgs, mut found: Vec<(PathBuf, Kept)>) -> Result<(), Failure> {
    found.sort_by(|a: &(PathBuf, Kept), b| (&a.0, a.1.branch.time).cmp(&(&b.0, b.1.branch.time)));
    let mut out = Output::new();
    if args.json {
        found.iter().try_for_each(|(database, kept)| out.json(&line(database, kept)))?;
        return out.finish();
    }
    if found.is_empty() {
        out.line("no lost branches")?;
        return out.finish();
    }
    let mut rows = vec![["DATABASE", "SET ASIDE", "AFTER TXID", "EPOCH", "BYTES", "COPY"].map(str::to_owned)];
    rows.extend(found.iter().map(|(database, Kept { path, branch })| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            database.display().to_string(),
            time::format_utc(branch.time),
            or_none(branch.txid.map(|txid| txid.to_string())),
            or_none(branch.epoch.map(|epoch| epoch.to_string())),
            branch.size.to_string(),
            path.display().to_string(),
        ]
    }));
    columns(&rows, [false, false, true, true, true, false]).into_iter().try_for_each(|line| out.line(line))?;
    out.line("each is a plain SQLite file: copy it to use it")?;
    out.finish()
}

fn line<'a>(database: &'a Path, Kept { path, branch }: &'a Kept) -> Line<'a> {
    Line {
        database,
        path,
        time: branch.time,
        txid: branch.txid,
        epoch: branch.epoch,
        lineage: branch.lineage,
        checksum: branch.checksum,
        size: branch.size,
        reason: &branch.reason,
    }
}

/// Looks into every state folder below `dir`.
fn search(
    dir: &Path,
    depth: usize,
    found: &mut Vec<(PathBuf, Kept)>,
    problems: &mut Vec<String>,
) -> Result<(), Failure> {
    let entries = std::fs::read_dir(dir).map_err(|e| Failure::io("read", dir, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Failure::io("read", dir, &e))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let (path, name) = (entry.path(), entry.file_name());
        let state_of = name.to_str().filter(|name| is_state_folder(name));
        let state_of = state_of.and_then(|name| name.strip_prefix('.')?.strip_suffix("-rhyolite"));
        match state_of {
            Some(database) => {
                let (kept, unread) = lost::list(&path).map_err(|e| Failure::io("read", &path, &e))?;
                problems.extend(unread);
                found.extend(kept.into_iter().map(|kept| (dir.join(database), kept)));
            }
            None if depth < DEPTH_MAX => search(&path, depth + 1, found, problems)?,
            None => {}
        }
    }
    Ok(())
}
