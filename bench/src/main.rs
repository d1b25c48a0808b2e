//! `cargo xtask bench` runs this: whole-process measurements beside tight loops over the same bytes.
//!
//! Each benchmark is a module with a `run` that gives [`table::Row`]s and leaves them in `target/bench`; whatever was measured
//! last becomes the table in `docs/benchmarks.md`. Figures that are compared come from the same run, in alternating
//! order, and ratios are medians over pairs, because the machine's own speed changes from minute to minute.

mod app;
mod capture;
mod cluster;
mod durable;
mod footprint;
mod forwarding;
mod history;
mod idle;
mod lab;
mod many;
mod measure;
mod mount;
mod replica_cost;
mod restart;
mod restore;
mod stream;
mod table;
mod tight;
mod write_rate;

use std::process::{Command, ExitCode};
use std::time::Duration;

use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};

use lab::Lab;
use table::Row;

type Benchmark = fn(&Lab, &mut Args) -> Outcome<Vec<Row>>;

const BENCHMARKS: &[(&str, Benchmark)] = &[
    ("write-rate", write_rate::run),
    ("durable", durable::run),
    ("capture", capture::run),
    ("restore", restore::run),
    ("idle", idle::run),
    ("footprint", footprint::run),
    ("many", many::run),
    ("restart", restart::run),
    ("history", history::run),
    ("mount", mount::run),
    ("stream", stream::run),
    ("cluster", cluster::run),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let outcome = match words.next_if(|word| ["app", "cluster-app", "cost"].contains(&word.as_str())).as_deref() {
        Some("app") => app::run(Args::new(words)),
        Some("cluster-app") => xtask::cluster::app::run(Args::new(words)),
        Some(_) => measure::print_cost(std::env::args_os().skip(2)),
        None => run(Args::new(words)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lets the disk come to rest: what the benchmark before has written and deleted is not this one's load.
fn settle() -> Outcome {
    Command::new("sync").status().context("sync")?;
    std::thread::sleep(Duration::from_secs(10));
    Ok(())
}

fn run(mut args: Args) -> Outcome {
    if args.switch("--help") {
        let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        println!("usage: cargo xtask bench [NAME ...] [--OPTION VALUE ...]\n\nNAME: {}", names.join(", "));
        println!("Without a name all are measured, which takes an hour; docs/benchmarks.md is written anew.");
        return Ok(());
    }
    let mut wanted = Vec::new();
    while let Some(word) = args.word() {
        if !BENCHMARKS.iter().any(|(name, _)| *name == word) {
            let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
            return fail(format!("no benchmark is called {word:?}; there are {}", names.join(", ")));
        }
        wanted.push(word);
    }
    let lab = Lab::new(&mut args)?;
    for (name, benchmark) in BENCHMARKS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        println!("== {name}");
        settle()?;
        let rows = benchmark(&lab, &mut args)?;
        for row in &rows {
            println!("{row}");
        }
        table::keep(&lab, name, &rows)?;
    }
    args.finish()?;
    table::write(&lab, BENCHMARKS.iter().map(|(name, _)| *name))
}
