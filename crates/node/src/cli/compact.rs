//! `compact`: bundles, merges and snapshots that are due, now and from here.

use clap::Args;
use rhyolite_logic::history_plan::{Duty, Step};
use serde::Serialize;

use super::exit::Failure;
use super::output::Output;
use super::policy::{GraceArgs, KeepArgs, RewriteArgs, Stores, Subject, settings};
use super::store;
use crate::config::units::format_size;
use crate::history::{HistoryReport, maintain, preview};

/// Bundle, merge and snapshot what is due in a store, without deleting anything.
///
/// A daemon does this by itself while it replicates; the command does it at a time, or on a machine, of your choice. Both may
/// run at once. Credentials that may read, create and replace suffice: what is no longer needed is left to `rhyolite
/// prune`.
#[derive(Debug, Args)]
#[command(after_help = "Exit statuses: 0 done, or nothing was due; 3 damage found; 5 the store holds no \
backup.\n\nExamples:\n  rhyolite compact s3://bucket/app\n  rhyolite compact ./backup --dry-run\n  rhyolite compact \
--config rhyolite.yml --json")]
pub(super) struct CompactArgs {
    #[command(flatten)]
    stores: Stores,
    #[command(flatten)]
    rewrite: RewriteArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Show what is due, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per store
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct CompactLine<'a> {
    store: &'a str,
    dry_run: bool,
    bundles: u64,
    merged_files: u64,
    snapshots: u64,
    bytes_written: u64,
}

pub(super) fn run(args: &CompactArgs) -> Result<(), Failure> {
    let subjects = args.stores.subjects(&settings(&args.keep, &args.rewrite, &GraceArgs::default()))?;
    let mut out = Output::new();
    let result = store::block_on(async {
        for subject in &subjects {
            let options = subject.options(Duty::Compact).await?;
            if args.dry_run {
                let steps = preview(&options).await.map_err(|e| subject.failure(&e))?;
                show_due(args, &mut out, subject, &steps)?;
            } else {
                let report = maintain(options).await.map_err(|e| subject.failure(&e))?;
                show_done(args, &mut out, subject, &report)?;
            }
        }
        Ok(())
    });
    out.finish()?;
    result
}

fn show_done(args: &CompactArgs, out: &mut Output, subject: &Subject, report: &HistoryReport) -> Result<(), Failure> {
    if let Some(damage) = &report.damaged {
        let text = format!("{}: {damage}: what needs it was left as it is (`rhyolite verify` shows more)", subject.url);
        return Err(Failure::new(super::exit::Status::Damaged, text));
    }
    if let Some(txid) = report.snapshot_due {
        let text = format!(
            "{}: TXID {txid} cannot be restored, and only a snapshot of the database itself helps: its daemon takes one",
            subject.url
        );
        return Err(Failure::new(super::exit::Status::Damaged, text));
    }
    if args.json {
        return out.json(&CompactLine {
            store: &subject.url,
            dry_run: false,
            bundles: report.bundled,
            merged_files: report.merged,
            snapshots: report.snapshots,
            bytes_written: report.bytes_written,
        });
    }
    let (bundles, merged, snapshots) = (report.bundled, report.merged, report.snapshots);
    let size = format_size(report.bytes_written);
    out.line(format!(
        "{}: {bundles} bundles, {merged} merged files, {snapshots} snapshots, {size} written",
        subject.url
    ))
}

fn show_due(args: &CompactArgs, out: &mut Output, subject: &Subject, steps: &[Step]) -> Result<(), Failure> {
    let count = |of: fn(&Step) -> u64| steps.iter().map(of).sum();
    let bundles = count(|step| if let Step::Bundle { pieces, .. } = step { pieces.len() as u64 } else { 0 });
    let merged_files = count(|step| u64::from(matches!(step, Step::Merge { .. })));
    let snapshots = count(|step| u64::from(matches!(step, Step::Snapshot { .. })));
    let store = subject.url.as_str();
    if args.json {
        return out.json(&CompactLine { store, dry_run: true, bundles, merged_files, snapshots, bytes_written: 0 });
    }
    for step in steps {
        let text = match step {
            Step::Bundle { first_seq, last_seq, pieces, .. } => {
                format!("bundle segments {first_seq} to {last_seq} into {} objects", pieces.len())
            }
            Step::Merge { inputs, .. } => {
                let (first, last) = inputs.first().zip(inputs.last()).expect("a merge has inputs");
                format!("merge {} files, TXID {} to {}", inputs.len(), first.min_txid, last.max_txid)
            }
            Step::Snapshot { from, .. } => format!("write a snapshot of TXID {from}"),
            Step::Expire { .. } | Step::Delete { .. } => unreachable!("not this command's duty"),
        };
        out.line(format!("{store}: due: {text}"))?;
    }
    if steps.is_empty() { out.line(format!("{store}: nothing is due")) } else { Ok(()) }
}
