//! `pin`: positions with names, which retention never takes away.

use clap::Args;
use rhyolite_format::{Checksum, Timestamp, Txid};
use serde::Serialize;

use super::exit::{Failure, Status};
use super::output::{Output, columns};
use super::store::{self, TargetArgs};
use crate::pins::{self, PinError, Pinned};
use crate::time;

/// Give a restore point a name, so that it stays restorable whatever the retention rules say.
///
/// Without --txid or --at the newest restore point is pinned. `rhyolite restore STORE -o PATH --pin NAME` restores it. A pin
/// keeps everything that its restore needs; remove it when it is not needed any more.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit statuses: 0 done; 3 a listed pin cannot be restored; 5 no such restore point, or no such \
pin.\n\nExamples:\n  rhyolite pin s3://bucket/app before-migration\n  rhyolite pin ./backup release-7 --at \"10m \
ago\"\n  rhyolite pin ./backup --list\n  rhyolite pin ./backup release-7 --remove"
)]
pub(super) struct PinArgs {
    /// Store of one database
    #[arg(value_name = "STORE")]
    store: String,
    /// Name of the pin
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Show all pins
    #[arg(long, conflicts_with_all = ["name", "remove", "at", "txid", "pin"])]
    list: bool,
    /// Remove the pin of this name
    #[arg(long, conflicts_with_all = ["at", "txid", "pin"])]
    remove: bool,
    /// Print one JSON object (--list: one per pin)
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PinLine<'a> {
    name: &'a str,
    txid: Txid,
    checksum: Checksum,
    #[serde(with = "time::rfc3339::option")]
    time: Option<Timestamp>,
}

impl<'a> PinLine<'a> {
    fn new(pinned: &'a Pinned) -> Self {
        let (name, pos) = (pinned.pin.name.as_str(), pinned.pin.pos);
        Self { name, txid: pos.txid, checksum: pos.checksum, time: pinned.time }
    }
}

/// How an error of pins ends a command.
pub(super) fn failure(what: &str, error: &PinError) -> Failure {
    let status = match error {
        PinError::Name => Status::Usage,
        PinError::Unknown { .. } => Status::NoRestorePoint,
        PinError::Read(error) => return store::failure(what, error),
        PinError::Taken(_) | PinError::TooMany | PinError::Manifest(_) => Status::Failed,
    };
    Failure::new(status, format!("cannot {what}: {error}"))
}

pub(super) fn run(args: &PinArgs) -> Result<(), Failure> {
    match &args.name {
        None => run_list(args),
        Some(name) if args.remove => run_remove(args, name),
        Some(name) => run_add(args, name),
    }
}

fn run_add(args: &PinArgs, name: &str) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let what = format!("pin {name:?} in {}", args.store);
    let pinned = store::block_on(async {
        let target = args.target.target(&*store).await?;
        pins::add(store, name, target).await.map_err(|e| failure(&what, &e))
    })?;
    let mut out = Output::new();
    if args.json {
        out.json(&PinLine::new(&pinned))?;
    } else {
        let committed = pinned.time.map(time::format_utc).unwrap_or_default();
        out.line(format!("pinned {name}: TXID {} of {committed}", pinned.pin.pos.txid))?;
    }
    out.finish()
}

fn run_remove(args: &PinArgs, name: &str) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let what = format!("remove pin {name:?} from {}", args.store);
    let pin = store::block_on(async { pins::remove(&*store, name).await.map_err(|e| failure(&what, &e)) })?;
    let mut out = Output::new();
    if args.json {
        out.json(&PinLine::new(&Pinned { pin, time: None }))?;
    } else {
        out.line(format!("removed {name}: TXID {} is kept only as long as the rules say", pin.pos.txid))?;
    }
    out.finish()
}

fn run_list(args: &PinArgs) -> Result<(), Failure> {
    let store = store::open(&args.store)?;
    let what = format!("list the pins of {}", args.store);
    let pinned = store::block_on(async { pins::list(store).await.map_err(|e| failure(&what, &e)) })?;
    let lines = pinned.iter().map(PinLine::new);
    let mut out = Output::new();
    if args.json {
        for line in lines {
            out.json(&line)?;
        }
    } else {
        let mut rows = vec![["NAME", "TXID", "TIME", "CHECKSUM"].map(str::to_owned)];
        for line in lines {
            let time = line.time.map_or_else(|| "cannot be restored".to_owned(), time::format_utc);
            rows.push([line.name.to_owned(), line.txid.to_string(), time, line.checksum.to_string()]);
        }
        for line in columns(&rows, [false; 4]) {
            out.line(line)?;
        }
    }
    out.finish()?;
    match pinned.iter().find(|pinned| pinned.time.is_none()) {
        Some(lost) => Err(Failure::new(Status::Damaged, format!("pin {:?} cannot be restored", lost.pin.name))),
        None => Ok(()),
    }
}
