//! What replication costs the application: its rate and its slowest commits, with and without.
//!
//! Each pair is A-B-B-A (without, with, with, without), each run on a database of its own, the replicator caught up before the
//! application begins. The ratio of a pair is with over without.

use std::path::Path;

use serde_json::Value;
use xtask::args::Args;
use xtask::error::Outcome;

use crate::lab::{LIMIT, Lab, figure, make_database};
use crate::measure::{spread, spread_text};
use crate::table::Row;

const RATE_RATIO_MIN: f64 = 0.95;
const P999_RATIO_MAX: f64 = 1.2;

/// Measures all four kinds of load.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let pairs: usize = args.option_or("--pairs", 5)?;
    let seconds: String = args.option_or("--seconds", "3".to_owned())?;
    let mut rows = Vec::new();
    for synchronous in ["NORMAL", "FULL"] {
        for batch in ["1", "100"] {
            let load = ["--synchronous", synchronous, "--rows", batch, "--seconds", &seconds];
            let (mut rates, mut slow, mut off) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..pairs {
                let runs = [false, true, true, false].map(|on| one(lab, on, &load));
                let [a1, b1, b2, a2] = runs;
                let (a1, b1, b2, a2) = (a1?, b1?, b2?, a2?);
                let ratio = |name| -> Outcome<f64> {
                    Ok((figure(&b1, name)? + figure(&b2, name)?) / (figure(&a1, name)? + figure(&a2, name)?))
                };
                rates.push(ratio("per_second")?);
                slow.push(ratio("p999_us")?);
                off.push(a1);
                println!(
                    "{synchronous} {batch}: rate {:.3}, p99.9 {:.3}",
                    rates[rates.len() - 1],
                    slow[slow.len() - 1]
                );
            }
            rows.extend(rows_of(synchronous, batch, &rates, &slow, &off)?);
        }
    }
    Ok(rows)
}

/// One run of the application.
fn one(lab: &Lab, replicated: bool, load: &[&str]) -> Outcome<Value> {
    let folder = lab.folder("write-rate")?;
    make_database(&folder)?;
    let replicator = if replicated { Some(lab.replicate(&folder, &[])?) } else { None };
    let figures = lab.app(&folder, load)?;
    if let Some(mut replicator) = replicator {
        replicator.terminate(LIMIT)?;
        check(&folder, lab, &figures)?;
    }
    Ok(figures)
}

/// A rate counts only when all of it was replicated.
fn check(folder: &Path, lab: &Lab, figures: &Value) -> Outcome {
    let (points, commits) = (lab.points(folder)? as f64, figure(figures, "commits")?);
    if points < commits {
        println!("note: {commits} commits became {points} restore points");
    }
    Ok(())
}

fn rows_of(synchronous: &str, batch: &str, rates: &[f64], slow: &[f64], off: &[Value]) -> Outcome<Vec<Row>> {
    let rate_off: Vec<f64> = off.iter().map(|run| figure(run, "per_second")).collect::<Outcome<_>>()?;
    let slow_off: Vec<f64> = off.iter().map(|run| figure(run, "p999_us")).collect::<Outcome<_>>()?;
    let load = format!("{synchronous}, {batch}-row transactions");
    Ok(vec![
        Row {
            what: format!("write rate with / without replication, {load}"),
            figure: spread_text(rates, 3),
            goal: "≥ 0.95",
            met: Some(spread(rates).0 >= RATE_RATIO_MIN),
            detail: format!("{} pairs; without: {:.0} commits/s", rates.len(), spread(&rate_off).0),
        },
        Row {
            what: format!("p99.9 commit time with / without, {load}"),
            figure: spread_text(slow, 2),
            goal: "≤ 1.2",
            met: Some(spread(slow).0 <= P999_RATIO_MAX),
            detail: format!("{} pairs; without: {:.0} µs", slow.len(), spread(&slow_off).0),
        },
    ])
}
