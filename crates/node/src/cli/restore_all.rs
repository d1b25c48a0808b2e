//! `restore --all`: every database below a prefix of a store, or of a configuration file, each proved as if it were the only one.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rhyolite_format::{Checksum, Txid};
use rhyolite_logic::Target;
use rhyolite_store::{RetryPolicy, Retrying, Store, StoreOptions};
use serde::Serialize;
use tokio::task::JoinSet;

use super::exit::{Failure, Status};
use super::output::Output as Printed;
use super::restore::RestoreArgs;
use super::store::{self, TargetArgs};
use crate::config::folder::{FolderConfig, store_below};
use crate::config::{DatabaseConfig, file};
use crate::progress::Silent;
use crate::restore::below::prefixes;
use crate::restore::{Output, RestoreError, RestoreOptions, restore};

/// Databases that are restored at a time, unless the user says so.
const JOBS: usize = 4;

/// One database to restore.
struct Wanted {
    url: String,
    store: Arc<dyn Store>,
    output: PathBuf,
}

/// What became of one database.
#[derive(Debug, Serialize)]
struct Line {
    store: String,
    output: PathBuf,
    restored: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    txid: Option<Txid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<Checksum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    status: Status,
}

#[derive(Debug, Serialize)]
struct Summary {
    restored: usize,
    skipped: usize,
    failed: usize,
    databases: Vec<Line>,
}

pub(super) fn run(args: &RestoreArgs) -> Result<(), Failure> {
    let mut lines = store::block_on(async {
        let wanted = wanted(args).await?;
        if wanted.is_empty() && !args.if_backup_exists {
            return Err(Failure::new(Status::NoRestorePoint, "there is no backup below the store"));
        }
        Ok(restore_each(args, wanted).await)
    })?;
    lines.sort_by(|a, b| a.output.cmp(&b.output));
    let failed = lines.iter().filter(|l| l.error.is_some()).count();
    let restored = lines.iter().filter(|l| l.restored).count();
    let first = lines.iter().find_map(|l| Some((l.status, l.error.clone()?)));
    let summary = Summary { restored, skipped: lines.len() - restored - failed, failed, databases: lines };
    print(args, &summary)?;
    match first {
        None => Ok(()),
        Some((status, text)) => {
            let all = summary.databases.len();
            Err(Failure::new(status, format!("{failed} of {all} databases were not restored, the first: {text}")))
        }
    }
}

async fn wanted(args: &RestoreArgs) -> Result<Vec<Wanted>, Failure> {
    if let Some(config) = &args.config {
        return wanted_by_config(config, args).await;
    }
    let (Some(url), Some(output)) = (&args.store, &args.output) else {
        return Err(Failure::usage("--all needs a STORE and a folder (-o), or --config"));
    };
    if args.output.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage("-o - takes one database: --all needs a folder"));
    }
    below(url, &StoreOptions::default(), output).await
}

async fn wanted_by_config(config: &Path, args: &RestoreArgs) -> Result<Vec<Wanted>, Failure> {
    if args.store.is_some() || args.output.is_some() {
        return Err(Failure::usage("with --config every database goes to its own path: name neither STORE nor -o"));
    }
    let config = file::load(config, true)?;
    let mut wanted = Vec::new();
    for database in config.databases {
        let store = store::open_with(&database.store, &database.store_options())?;
        wanted.push(Wanted { url: database.store, store, output: database.path });
    }
    for folder in config.folders {
        wanted.extend(in_folder(&folder).await?.into_iter().map(|(_, wanted)| wanted));
    }
    Ok(wanted)
}

/// The databases of a folder that its store holds, whether the files are there or not, each with what it is replicated by.
pub(super) async fn stored(folder: &FolderConfig) -> Result<Vec<DatabaseConfig>, Failure> {
    Ok(in_folder(folder).await?.into_iter().map(|(path, _)| folder.database(&path)).collect())
}

/// The databases of a folder that its store holds, by their paths in it.
async fn in_folder(folder: &FolderConfig) -> Result<Vec<(String, Wanted)>, Failure> {
    let found = below(&folder.template.store, &folder.template.store_options(), &folder.dir).await?;
    let pick = |wanted: Wanted| {
        let path = wanted.output.strip_prefix(&folder.dir).ok()?.to_str()?.to_owned();
        folder.pick.takes(&path).then_some((path, wanted))
    };
    Ok(found.into_iter().filter_map(pick).collect())
}

/// Every database below the store at `url`: what has an identity.
async fn below(url: &str, options: &StoreOptions, folder: &Path) -> Result<Vec<Wanted>, Failure> {
    let base = rhyolite_store::open(url, options).map_err(|e| Failure::usage(e.to_string()))?;
    let base: Arc<dyn Store> = Arc::new(Retrying::new(base, RetryPolicy::default()));
    let failed = |e: rhyolite_store::StoreError| store::failure(&format!("list {url}"), &RestoreError::Store(e));
    let mut wanted = Vec::new();
    for prefix in prefixes(&base).await.map_err(failed)? {
        let path = Path::new(&prefix);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Failure::failed(format!("{url} holds a database with the odd name {prefix:?}")));
        }
        let store = base.sub(&prefix).map_err(failed)?;
        wanted.push(Wanted { url: store_below(url, &prefix), store, output: folder.join(path) });
    }
    Ok(wanted)
}

async fn restore_each(args: &RestoreArgs, wanted: Vec<Wanted>) -> Vec<Line> {
    let jobs = args.jobs.map_or(JOBS, std::num::NonZeroUsize::get);
    let mut lines = Vec::new();
    let mut running = JoinSet::new();
    for one in wanted {
        while running.len() >= jobs {
            lines.extend(running.join_next().await.map(|ended| ended.expect("a restore does not panic")));
        }
        let (options, target) = (options(args, &one, jobs), args.target.clone());
        let (if_missing, if_backup) = (args.if_missing, args.if_backup_exists);
        running.spawn(async move { restore_one(one, target, options, if_missing, if_backup).await });
    }
    while let Some(ended) = running.join_next().await {
        lines.push(ended.expect("a restore does not panic"));
    }
    lines
}

fn options(args: &RestoreArgs, one: &Wanted, jobs: usize) -> RestoreOptions {
    RestoreOptions {
        store: Arc::clone(&one.store),
        output: Output::File(one.output.clone()),
        target: Target::Latest,
        existing: super::restore::existing(args),
        threads: args.threads.map_or_else(|| (store::default_threads() / jobs).max(1), std::num::NonZeroUsize::get),
        spool: None,
        progress: Arc::new(Silent),
    }
}

async fn restore_one(
    one: Wanted,
    target: TargetArgs,
    options: RestoreOptions,
    if_missing: bool,
    if_backup_exists: bool,
) -> Line {
    let mut line = Line {
        store: one.url.split('?').next().unwrap_or_default().to_owned(),
        output: one.output.clone(),
        restored: false,
        txid: None,
        checksum: None,
        error: None,
        status: Status::Ok,
    };
    if if_missing && one.output.symlink_metadata().is_ok() {
        return line;
    }
    let folder = one.output.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = folder {
        let failure = Failure::io("make the folder of", &one.output, &error);
        (line.status, line.error) = (failure.status, Some(failure.line()));
        return line;
    }
    let target = match target.target(&*one.store).await {
        Ok(target) => target,
        Err(failure) => {
            (line.status, line.error) = (failure.status, Some(failure.line()));
            return line;
        }
    };
    match restore(RestoreOptions { target, ..options }).await {
        Ok(report) => {
            line.restored = true;
            line.txid = Some(report.pos.txid);
            line.checksum = Some(report.pos.checksum);
        }
        Err(RestoreError::NoDatabase { .. }) if if_backup_exists => {}
        Err(error) => {
            let failure = store::failure(&format!("restore {}", line.store), &error);
            (line.status, line.error) = (failure.status, Some(failure.line()));
        }
    }
    line
}

fn print(args: &RestoreArgs, summary: &Summary) -> Result<(), Failure> {
    let mut out = Printed::new();
    if args.json {
        out.json(summary)?;
    } else {
        for line in &summary.databases {
            let path = line.output.display();
            out.line(match (&line.error, line.txid) {
                (Some(error), _) => format!("{path}: {error}"),
                (None, Some(txid)) => format!("{path}: TXID {txid}, proved"),
                (None, None) => format!("{path}: nothing to do"),
            })?;
        }
        let Summary { restored, skipped, failed, .. } = summary;
        out.line(format!("{restored} restored, {skipped} left as they were, {failed} failed"))?;
    }
    out.finish()
}
