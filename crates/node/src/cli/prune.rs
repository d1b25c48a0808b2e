//! `prune`: expiry and deletion that are due, now and from here.

use clap::Args;
use rhyolite_format::manifest::RetiredSegments;
use rhyolite_logic::history_plan::{Duty, Step};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::Output;
use super::policy::{GraceArgs, KeepArgs, RewriteArgs, Stores, Subject, settings};
use super::store;
use crate::history::{Garbage, HistoryReport, OnGarbage, garbage, maintain, preview};

/// Expire what the rules do not keep, and delete what nothing needs any more.
///
/// A daemon does this by itself unless `retention.enabled` is false, because its credentials may not delete; then this command
/// does it, run elsewhere by somebody who may. Nothing is deleted that the manifest, read again right before, does not name
/// as no longer needed since at least the grace period.
///
/// With --garbage also objects that no manifest names, left by processes that were killed: they are named as no longer needed
/// first, and deleted by a later run, after the grace period.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit statuses: 0 done, or nothing was due; 1 the store refused a deletion; 5 the store holds no \
backup.\n\nExamples:\n  rhyolite prune s3://bucket/app --keep-daily 90d\n  rhyolite prune ./backup --dry-run \
--garbage\n  rhyolite prune --config rhyolite.yml --json"
)]
pub(super) struct PruneArgs {
    #[command(flatten)]
    stores: Stores,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    grace: GraceArgs,
    /// Look for objects that no manifest names as well
    #[arg(long)]
    garbage: bool,
    /// Show what is due, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per store
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PruneLine<'a> {
    store: &'a str,
    dry_run: bool,
    expired_files: u64,
    deleted_objects: u64,
    garbage: Vec<GarbageLine<'a>>,
}

#[derive(Serialize)]
struct GarbageLine<'a> {
    object: &'a str,
    bytes: u64,
}

/// What was done, or what is due.
struct Done {
    expired: u64,
    deleted: u64,
    garbage: Vec<Garbage>,
    /// Files and segments, in words.
    lines: Vec<String>,
}

pub(super) fn run(args: &PruneArgs) -> Result<(), Failure> {
    let subjects = args.stores.subjects(&settings(&args.keep, &RewriteArgs::default(), &args.grace))?;
    let mut out = Output::new();
    let mut refused = None;
    let result = store::block_on(async {
        for subject in &subjects {
            let (done, not_deleted) = prune(args, subject).await?;
            show(args, &mut out, subject, &done)?;
            refused = refused.take().or_else(|| not_deleted.map(|text| format!("{}: {text}", subject.url)));
        }
        Ok(())
    });
    out.finish()?;
    result?;
    match refused {
        Some(text) => Err(Failure::new(Status::Failed, format!("cannot delete all that is due in {text}"))),
        None => Ok(()),
    }
}

async fn prune(args: &PruneArgs, subject: &Subject) -> Result<(Done, Option<String>), Failure> {
    let options = subject.options(Duty::Prune).await?;
    let failure = |e| subject.failure(&e);
    let on_garbage = if args.dry_run { OnGarbage::Show } else { OnGarbage::Retire };
    let garbage = if args.garbage { garbage(&options, on_garbage).await.map_err(failure)? } else { Vec::new() };
    if args.dry_run {
        let steps = preview(&options).await.map_err(failure)?;
        return Ok((due(&steps, garbage), None));
    }
    let HistoryReport { expired, deleted, not_deleted, damaged, .. } = maintain(options).await.map_err(failure)?;
    if let Some(damage) = damaged {
        return Err(Failure::new(Status::Damaged, format!("{}: {damage}", subject.url)));
    }
    Ok((Done { expired, deleted, garbage, lines: Vec::new() }, not_deleted))
}

fn due(steps: &[Step], garbage: Vec<Garbage>) -> Done {
    let mut done = Done { expired: 0, deleted: 0, garbage, lines: Vec::new() };
    for step in steps {
        match step {
            Step::Expire { keys } => {
                done.expired += keys.len() as u64;
                done.lines.extend(keys.iter().map(|key| format!("due: {key} expires")));
            }
            Step::Delete { files, segments } => {
                let of_range = |range: &RetiredSegments| range.last_seq.get() - range.first_seq.get() + 1;
                done.deleted += files.len() as u64 + segments.iter().map(of_range).sum::<u64>();
                done.lines.extend(files.iter().map(|key| format!("due: delete {key}")));
                let lines = segments.iter().map(|r| format!("due: delete segments {} to {}", r.first_seq, r.last_seq));
                done.lines.extend(lines);
            }
            Step::Bundle { .. } | Step::Merge { .. } | Step::Snapshot { .. } => unreachable!("not this command's duty"),
        }
    }
    done
}

fn show(args: &PruneArgs, out: &mut Output, subject: &Subject, done: &Done) -> Result<(), Failure> {
    let store = subject.url.as_str();
    if args.json {
        return out.json(&PruneLine {
            store,
            dry_run: args.dry_run,
            expired_files: done.expired,
            deleted_objects: done.deleted,
            garbage: done.garbage.iter().map(|g| GarbageLine { object: &g.key, bytes: g.size }).collect(),
        });
    }
    for line in &done.lines {
        out.line(format!("{store}: {line}"))?;
    }
    for Garbage { key, size } in &done.garbage {
        out.line(format!("{store}: nobody names {key} ({size} bytes)"))?;
    }
    let later = if done.garbage.is_empty() || args.dry_run { "" } else { ", to be deleted after the grace period" };
    let garbage = if args.garbage { format!(", {} without a name{later}", done.garbage.len()) } else { String::new() };
    let (expired, deleted) = (done.expired, done.deleted);
    let verb = if args.dry_run { "would expire" } else { "expired" };
    let delete = if args.dry_run { "would be deleted" } else { "deleted" };
    out.line(format!("{store}: {expired} files {verb}, {deleted} objects {delete}{garbage}"))
}
