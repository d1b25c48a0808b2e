//! `ltx dump|verify|apply|checksum`: LTX files and databases on the local disk, without a store.

mod apply;
mod checksum;
mod read;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rhyolite_format::{Checksum, PageNumber};
use serde::Serialize;

use self::read::LtxSummary;
use crate::cli::exit::{Failure, Status};
use crate::cli::output::Output;
use crate::time;

#[derive(Debug, Subcommand)]
pub(super) enum LtxCommand {
    /// Show what LTX files hold
    ///
    /// Each file is checked as a whole first; a damaged one shows nothing. Files of the formats 1, 2 and 3 are read.
    #[command(
        after_help = "Examples:\n  rhyolite ltx dump 0000000000000001-0000000000000001.ltx\n  rhyolite ltx dump \
--pages --json *.ltx | jq .pages"
    )]
    Dump(DumpArgs),
    /// Check LTX files, and that each goes on where the one before it ended
    ///
    /// Exit status 3 when a file is damaged or the chain is broken.
    #[command(after_help = "Examples:\n  rhyolite ltx verify *.ltx")]
    Verify(VerifyArgs),
    /// Apply LTX files, in the given order, to a new database or to a copy of one
    ///
    /// The first file must be a snapshot unless --base is given. The output appears only when every checksum was right.
    #[command(after_help = "Examples:\n  rhyolite ltx apply -o copy.db snapshot.ltx next.ltx\n  rhyolite ltx apply \
--base copy.db -o newer.db more.ltx")]
    Apply(apply::ApplyArgs),
    /// Print the LTX checksum of databases
    ///
    /// This is the checksum that LTX files and `rhyolite log` carry: equal checksums mean equal databases. The database
    /// must have no commits in a -wal file.
    #[command(after_help = "Examples:\n  rhyolite ltx checksum copy.db")]
    Checksum(checksum::ChecksumArgs),
}

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// LTX files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Show every page with its checksum
    #[arg(long)]
    pages: bool,
    /// Print one JSON object per file
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// LTX files, oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print one JSON object per file
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: LtxCommand) -> Result<(), Failure> {
    match command {
        LtxCommand::Dump(args) => dump(&args),
        LtxCommand::Verify(args) => verify(&args),
        LtxCommand::Apply(args) => apply::run(&args),
        LtxCommand::Checksum(args) => checksum::run(&args),
    }
}

#[derive(Serialize)]
struct PageLine {
    pgno: u32,
    checksum: Checksum,
}

#[derive(Serialize)]
struct DumpLine<'a> {
    file: &'a Path,
    #[serde(flatten)]
    summary: &'a LtxSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Vec<PageLine>>,
}

fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let mut out = Output::new();
    for (index, file) in args.files.iter().enumerate() {
        let mut pages = args.pages.then(Vec::new);
        let summary = read::visit(file, &mut |pgno: PageNumber, data: &[u8]| {
            if let Some(pages) = &mut pages {
                pages.push(PageLine { pgno: pgno.get(), checksum: Checksum::of_page(pgno, data) });
            }
            Ok(())
        })?;
        if args.json {
            out.json(&DumpLine { file, summary: &summary, pages })?;
            continue;
        }
        if index > 0 {
            out.line("")?;
        }
        dump_text(&mut out, file, &summary)?;
        for page in pages.into_iter().flatten() {
            out.line(format!("  page {:>10}  {}", page.pgno, page.checksum))?;
        }
    }
    out.finish()
}

fn dump_text(out: &mut Output, file: &Path, summary: &LtxSummary) -> Result<(), Failure> {
    let checksum = |c: Option<Checksum>| c.map_or("none".to_owned(), |c| c.to_string());
    let kind = if summary.snapshot { "snapshot, " } else { "" };
    out.line(format!("{}: {kind}format {}", file.display(), summary.format))?;
    out.line(format!("  transactions  {} to {}", summary.min_txid, summary.max_txid))?;
    out.line(format!("  time          {}", time::format_utc(summary.timestamp)))?;
    let (pages, size, commit) = (summary.page_count, summary.page_size, summary.commit);
    out.line(format!("  pages         {pages} of {size} bytes, of a database of {commit}"))?;
    out.line(format!("  before        {}", checksum(summary.pre_apply)))?;
    out.line(format!("  after         {}", checksum(summary.post_apply)))?;
    out.line(format!("  file checksum {}", summary.file_checksum))?;
    if let Some(warning) = &summary.warning {
        out.line(format!("  warning       {warning}"))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct VerifyLine<'a> {
    file: &'a Path,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    summary: Option<&'a LtxSummary>,
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let mut out = Output::new();
    let mut previous: Option<LtxSummary> = None;
    let mut bad = 0;
    for file in &args.files {
        let checked = read::visit(file, &mut |_, _| Ok(())).and_then(|summary| {
            summary.check_follows(previous.as_ref()).map_err(|m| Failure::new(Status::Damaged, m))?;
            Ok(summary)
        });
        let (summary, error) = match checked {
            Ok(summary) => (Some(summary), None),
            Err(failure) if failure.status == Status::Damaged => (None, Some(failure.line())),
            Err(failure) => return Err(failure),
        };
        bad += u32::from(error.is_some());
        if args.json {
            out.json(&VerifyLine { file, ok: error.is_none(), error, summary: summary.as_ref() })?;
        } else {
            out.line(format!("{}: {}", file.display(), error.as_deref().unwrap_or("ok")))?;
        }
        previous = summary;
    }
    out.finish()?;
    match bad {
        0 => Ok(()),
        bad => Err(Failure::new(Status::Damaged, format!("{bad} of {} LTX files are damaged", args.files.len()))),
    }
}
