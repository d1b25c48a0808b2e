//! `import`: plain databases out of a data directory of LiteFS, and a file into a database that is in use.

use std::path::{Path, PathBuf};

use clap::Args;
use rhyolite_format::{Checksum, PageCount, PageSize, Timestamp, Txid};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::Output;
use super::store;
use crate::config::units::format_size;
use crate::foreign::litefs::{Imported, LitefsDatabase, databases};
use crate::restore::Existing;
use crate::time;

mod into;

/// Take the databases out of a data directory of LiteFS, or put a file into a database that is in use.
///
/// Out of LiteFS each becomes a plain file, brought to LiteFS's last transaction and proved by the checksum that LiteFS has recorded with it.
/// Nothing in the directory is changed. One database that is damaged does not keep the others from being written.
///
/// With --into, SOURCE is a database file, and its content replaces that of DATABASE in one transaction, under SQLite's locks. Readers go on with
/// what they see until they begin anew. A copy over the file would damage it.
#[derive(Debug, Args)]
#[command(
    after_help = "Stop LiteFS first. The directory is the one that litefs.yml calls data.dir.\n\nExit statuses: 0 all \
databases were written and proved; 3 some are damaged.\n\nExamples:\n  rhyolite import /var/lib/litefs -o ./databases\n  \
rhyolite import /var/lib/litefs -o ./databases --name app.db --json\n  rhyolite import new.db --into ./db/app.db"
)]
pub(super) struct ImportArgs {
    /// Data directory of LiteFS; with --into a database file
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Folder for the databases, made if it is missing
    #[arg(short, long, value_name = "FOLDER", required_unless_present = "into")]
    output: Option<PathBuf>,
    /// Replace the content of this database, which may be in use; it is made if it is missing
    #[arg(long, value_name = "DATABASE", conflicts_with_all = ["output", "name", "force"])]
    into: Option<PathBuf>,
    /// Only the database of this name; may be given several times
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print one JSON object per database
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct ImportLine<'a> {
    name: &'a str,
    output: Option<PathBuf>,
    ok: bool,
    dropped: bool,
    txid: Option<Txid>,
    #[serde(with = "time::rfc3339::option")]
    time: Option<Timestamp>,
    checksum: Option<Checksum>,
    page_size: Option<PageSize>,
    page_count: Option<PageCount>,
    error: Option<String>,
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    if let Some(database) = &args.into {
        return into::run(&args.source, database, args.json);
    }
    let what = format!("import {}", args.source.display());
    let mut found = databases(&args.source).map_err(|e| store::failure(&what, &e))?;
    if let Some(missing) = args.name.iter().find(|name| found.iter().all(|database| database.name != **name)) {
        return Err(Failure::new(Status::NoRestorePoint, format!("cannot {what}: there is no database {missing}")));
    }
    found.retain(|database| args.name.is_empty() || args.name.contains(&database.name));
    if found.is_empty() {
        return Err(Failure::new(Status::NoRestorePoint, format!("cannot {what}: there are no databases")));
    }
    let folder = args.output.as_deref().expect("clap asks for it where there is no --into");
    std::fs::create_dir_all(folder).map_err(|e| Failure::io("create", folder, &e))?;
    let mut out = Output::new();
    let mut failures: Vec<Failure> = Vec::new();
    for database in &found {
        let (line, failure) = import(folder, args.force, database);
        if args.json {
            out.json(&line)?;
        } else if failure.is_none() {
            out.line(text(&line, folder))?;
        }
        failures.extend(failure);
    }
    out.finish()?;
    let (failed, all) = (failures.len(), found.len());
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) if failed == 1 => Err(first),
        Some(first) => Err(Failure::new(first.status, format!("{failed} of {all} databases failed; {first}"))),
    }
}

fn import<'a>(folder: &Path, force: bool, database: &'a LitefsDatabase) -> (ImportLine<'a>, Option<Failure>) {
    let output = folder.join(&database.name);
    let existing = if force { Existing::Replace } else { Existing::Refuse };
    let line = ImportLine { name: &database.name, ok: true, ..ImportLine::default() };
    match database.import(&output, existing) {
        Ok(Imported::Database(report)) => {
            let line = ImportLine {
                output: Some(output),
                txid: Some(report.pos.txid),
                time: Some(report.time),
                checksum: Some(report.pos.checksum),
                page_size: Some(report.page_size),
                page_count: Some(report.pages),
                ..line
            };
            (line, None)
        }
        Ok(Imported::Dropped(pos)) => (ImportLine { dropped: true, txid: Some(pos.txid), ..line }, None),
        Err(error) => {
            let failure = store::failure(&format!("import {}", database.name), &error);
            (ImportLine { ok: false, error: Some(failure.line()), ..line }, Some(failure))
        }
    }
}

fn text(line: &ImportLine<'_>, folder: &Path) -> String {
    let txid = line.txid.map(|txid| txid.to_string()).unwrap_or_default();
    match (line.page_size, line.page_count, line.time) {
        (Some(page_size), Some(pages), Some(time)) => {
            let (path, size) = (folder.join(line.name), format_size(pages.bytes(page_size)));
            format!("{}: TXID {txid} of {}, {size}, proved", path.display(), time::format_utc(time))
        }
        _ => format!("{}: dropped at TXID {txid}", line.name),
    }
}
