//! `doctor`: what is good and bad about the surroundings of a database.

use std::path::{Path, PathBuf};

use clap::Args;
use rhyolite_logic::doctor::{Finding, Severity, judge};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::{Output, columns};
use super::store;
use crate::config::DatabaseConfig;
use crate::doctor::look;

/// Look at everything around a database that can harm it or its replication, and say what to do.
///
/// The version of SQLite that last wrote it, the file system, the journal mode, other processes that have it open, free
/// space, rights, what is left in the state folder; with a store also that it answers, whose history it holds, and the
/// clock against it. Nothing is written and no lock is taken: it may run at any time.
#[derive(Debug, Args)]
#[command(after_help = "Exit statuses: 0 no problem (there may be warnings); 1 a problem was found.\n\nExamples:\n  \
rhyolite doctor app.db\n  rhyolite doctor app.db s3://bucket/app\n  rhyolite doctor app.db --json | jq '.findings[] | \
select(.severity != \"ok\")'")]
pub(super) struct DoctorArgs {
    /// Database to look at
    #[arg(value_name = "DB")]
    db: PathBuf,
    /// Its store
    #[arg(value_name = "STORE")]
    store: Option<String>,
    /// State folder (.NAME-rhyolite beside the database)
    #[arg(long, value_name = "PATH")]
    meta_path: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct DoctorLine<'a> {
    path: &'a Path,
    ok: bool,
    findings: Vec<FindingLine<'a>>,
}

#[derive(Serialize)]
struct FindingLine<'a> {
    check: &'a str,
    severity: &'a str,
    text: &'a str,
    advice: &'a str,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let path = std::path::absolute(&args.db).map_err(|e| Failure::io("use", &args.db, &e))?;
    let config = DatabaseConfig::new(path, String::new());
    let meta_path = args.meta_path.clone().unwrap_or(config.meta_path);
    let store = args.store.as_deref().map(store::open).transpose()?;
    let facts = store::block_on(async { Ok(look(&config.path, &meta_path, store).await) })?;
    let findings = judge(&facts);
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem).count();
    let mut out = Output::new();
    if args.json {
        out.json(&DoctorLine { path: &config.path, ok: problems == 0, findings: findings.iter().map(line).collect() })?;
    } else {
        text(&mut out, &findings)?;
    }
    out.finish()?;
    match problems {
        0 => Ok(()),
        1 => Err(Failure::new(Status::Failed, format!("{}: 1 problem found", args.db.display()))),
        n => Err(Failure::new(Status::Failed, format!("{}: {n} problems found", args.db.display()))),
    }
}

fn line(finding: &Finding) -> FindingLine<'_> {
    let Finding { check, severity, text, advice } = finding;
    FindingLine { check, severity: severity.name(), text, advice }
}

fn text(out: &mut Output, findings: &[Finding]) -> Result<(), Failure> {
    let row = |f: &Finding| [f.severity.name().to_owned(), f.check.to_owned(), f.text.clone()];
    let rows: Vec<_> = findings.iter().map(row).collect();
    for (line, finding) in columns(&rows, [false; 3]).into_iter().zip(findings) {
        out.line(line)?;
        if !finding.advice.is_empty() {
            out.line(format!("         → {}", finding.advice))?;
        }
    }
    Ok(())
}
