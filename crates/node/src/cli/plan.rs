//! `plan`: what the rules keep and delete, when, and what it costs.

use std::collections::BTreeMap;

use clap::Args;
use rhyolite_format::{Timestamp, keys};
use rhyolite_logic::cost_plan::{Deletion, Explained, Input, Kept, Prices, explain};
use serde::Serialize;

use super::exit::Failure;
use super::output::{Output, columns};
use super::policy::{GraceArgs, KeepArgs, RewriteArgs, Stores, Subject, settings};
use super::store;
use crate::config::units::format_size;
use crate::history::catalog_of;
use crate::time;

/// Deletions that are listed in words; JSON lists all.
const DELETIONS_MAX: usize = 12;

/// Explain what the retention rules keep and delete, when, and what a month of it costs.
///
/// What is there is counted. What is to come is reckoned from the commits that the store still has one by one: so many an
/// hour, so many bytes, going on around the clock. Nothing is written.
#[derive(Debug, Args)]
#[command(
    after_help = "Prices are those of Amazon S3 Standard in us-east-1 unless given. Bytes that leave the store cost \
nothing in the same region.\n\nExamples:\n  rhyolite plan s3://bucket/app\n  rhyolite plan s3://bucket/app --keep-daily \
90d --price-storage 0.015 --price-egress 0\n  rhyolite plan --config rhyolite.yml --json"
)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    stores: Stores,
    #[command(flatten)]
    rewrite: RewriteArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    grace: GraceArgs,
    /// Dollars for a GB in a month (0.023)
    #[arg(long, value_name = "DOLLARS", value_parser = price)]
    price_storage: Option<f64>,
    /// Dollars for a thousand requests that create, replace or list (0.005)
    #[arg(long, value_name = "DOLLARS", value_parser = price)]
    price_put: Option<f64>,
    /// Dollars for a thousand requests that read (0.0004)
    #[arg(long, value_name = "DOLLARS", value_parser = price)]
    price_get: Option<f64>,
    /// Dollars for a GB that leaves the store (0.09)
    #[arg(long, value_name = "DOLLARS", value_parser = price)]
    price_egress: Option<f64>,
    /// Print one JSON object per store
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<f64, String> {
    let dollars: Option<f64> = text.parse().ok();
    dollars.filter(|d| d.is_finite() && *d >= 0.0).ok_or_else(|| format!("{text:?} is no price: write 0.023"))
}

#[derive(Serialize)]
struct PlanLine<'a> {
    store: &'a str,
    kept: BTreeMap<&'static str, KeptLine>,
    deletions: Vec<DeletionLine>,
    observed: ObservedLine,
    month: MonthLine,
}

#[derive(Serialize)]
struct KeptLine {
    objects: u64,
    bytes: u64,
    #[serde(with = "time::rfc3339::option")]
    oldest: Option<Timestamp>,
}

#[derive(Serialize)]
struct DeletionLine {
    #[serde(with = "time::rfc3339")]
    at: Timestamp,
    objects: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct ObservedLine {
    hours: f64,
    commits_per_hour: f64,
    bytes_per_hour: f64,
    uploads_per_hour: f64,
    snapshot_bytes: u64,
}

#[derive(Serialize)]
struct MonthLine {
    bytes: f64,
    put_requests: f64,
    get_requests: f64,
    egress_bytes: f64,
    storage_dollars: f64,
    request_dollars: f64,
    egress_dollars: f64,
    total_dollars: f64,
}

pub(super) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let subjects = args.stores.subjects(&settings(&args.keep, &args.rewrite, &args.grace))?;
    let mut out = Output::new();
    let result = store::block_on(async {
        for subject in &subjects {
            let explained = look(args, subject).await?;
            if args.json {
                out.json(&json(subject, &explained))?;
            } else {
                text(&mut out, subject, &explained)?;
            }
        }
        Ok(())
    });
    out.finish()?;
    result
}

async fn look(args: &PlanArgs, subject: &Subject) -> Result<Explained, Failure> {
    let failure = |e| store::failure(&format!("plan {}", subject.url), &e);
    let (manifest, log) = catalog_of(&subject.store).await.map_err(failure)?;
    let mut sizes = BTreeMap::new();
    for prefix in [keys::LOG_PREFIX, keys::LTX_PREFIX] {
        let listed = subject.store.list_all(prefix.trim_end_matches('/')).await.map_err(|e| failure(e.into()))?;
        sizes.extend(listed.into_iter().map(|entry| (entry.key, entry.size)));
    }
    let usual = Prices::default();
    let config = &subject.config;
    let input = Input {
        manifest: &manifest,
        log: &log,
        sizes: &sizes,
        policy: &config.history,
        sync_interval: config.sync_interval,
        drill_interval: config.drill.interval,
        drill_bytes_max: config.drill.sample_bytes,
        prices: Prices {
            storage_gb_month: args.price_storage.unwrap_or(usual.storage_gb_month),
            put_thousand: args.price_put.unwrap_or(usual.put_thousand),
            get_thousand: args.price_get.unwrap_or(usual.get_thousand),
            egress_gb: args.price_egress.unwrap_or(usual.egress_gb),
        },
        now: time::now(),
    };
    Ok(explain(&input).expect("the catalog has no holes"))
}

fn json<'a>(subject: &'a Subject, explained: &Explained) -> PlanLine<'a> {
    let kept = |kept: &Kept| KeptLine { objects: kept.objects, bytes: kept.bytes, oldest: kept.oldest };
    let line = |d: &Deletion| DeletionLine { at: d.at, objects: d.objects, bytes: d.bytes };
    let (pattern, month) = (&explained.pattern, &explained.month);
    PlanLine {
        store: &subject.url,
        kept: BTreeMap::from([
            ("commits", kept(&explained.commits)),
            ("merged", kept(&explained.merged)),
            ("snapshots", kept(&explained.snapshots)),
            ("retired", kept(&explained.retired)),
        ]),
        deletions: explained.deletions.iter().map(line).collect(),
        observed: ObservedLine {
            hours: pattern.hours,
            commits_per_hour: pattern.commits_hour,
            bytes_per_hour: pattern.bytes_hour,
            uploads_per_hour: pattern.uploads_hour,
            snapshot_bytes: pattern.snapshot_bytes,
        },
        month: MonthLine {
            bytes: month.bytes,
            put_requests: month.puts,
            get_requests: month.gets,
            egress_bytes: month.egress_bytes,
            storage_dollars: month.storage_cost,
            request_dollars: month.request_cost,
            egress_dollars: month.egress_cost,
            total_dollars: month.storage_cost + month.request_cost + month.egress_cost,
        },
    }
}

/// A size that was reckoned.
fn about(bytes: f64) -> String {
    format_size(bytes.max(0.0).round() as u64)
}

fn text(out: &mut Output, subject: &Subject, explained: &Explained) -> Result<(), Failure> {
    let (pattern, month) = (&explained.pattern, &explained.month);
    out.line(format!("{}: kept now", subject.url))?;
    let mut rows = vec![["", "OBJECTS", "BYTES", "SINCE"].map(str::to_owned)];
    for (name, kept) in [
        ("  every commit", &explained.commits),
        ("  one per interval or day", &explained.merged),
        ("  snapshots", &explained.snapshots),
        ("  not needed any more", &explained.retired),
    ] {
        let since = kept.oldest.map(time::format_utc).unwrap_or_default();
        rows.push([name.to_owned(), kept.objects.to_string(), format_size(kept.bytes), since]);
    }
    for line in columns(&rows, [false, true, true, false]) {
        out.line(line)?;
    }
    out.line("deleted, if nothing is committed until then")?;
    for Deletion { at, objects, bytes } in explained.deletions.iter().take(DELETIONS_MAX) {
        out.line(format!("  {}  {objects} objects, {}", time::format_utc(*at), format_size(*bytes)))?;
    }
    match explained.deletions.len() {
        0 => out.line("  nothing")?,
        n if n > DELETIONS_MAX => out.line(format!("  and {} more times (--json lists all)", n - DELETIONS_MAX))?,
        _ => {}
    }
    let (commits, hour, uploads) = (pattern.commits_hour, about(pattern.bytes_hour), pattern.uploads_hour);
    let observed = format!("{:.1} h", pattern.hours);
    out.line(format!("observed over {observed}: {commits:.1} commits, {hour}, {uploads:.1} uploads an hour"))?;
    out.line("a month, once as much is deleted as is written")?;
    let total = month.storage_cost + month.request_cost + month.egress_cost;
    let rows = [
        ["  stored".to_owned(), about(month.bytes), format!("${:.2}", month.storage_cost)],
        [
            "  requests".to_owned(),
            format!("{:.0} create, {:.0} read", month.puts, month.gets),
            format!("${:.2}", month.request_cost),
        ],
        ["  read".to_owned(), about(month.egress_bytes), format!("${:.2}", month.egress_cost)],
        ["  total".to_owned(), String::new(), format!("${total:.2}")],
    ];
    for line in columns(&rows, [false, true, true]) {
        out.line(line)?;
    }
    Ok(())
}
