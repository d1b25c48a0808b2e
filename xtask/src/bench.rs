//! `cargo xtask bench`: builds everything for release and hands over to `bench/`.

use std::process::Command;

use crate::args::Args;
use crate::ci::root;
use crate::error::{Context, Outcome, fail};

/// Builds and runs the benchmarks that `args` name.
pub(crate) fn run(args: Args) -> Outcome {
    let build = ["build", "--release", "--package", "rhyolite-node", "--package", "rhyolite-bench"];
    cargo(&build.map(str::to_owned))?;
    let mut words = ["run", "--quiet", "--release", "--package", "rhyolite-bench", "--"].map(str::to_owned).to_vec();
    words.extend(args.into_rest());
    cargo(&words)
}

fn cargo(words: &[String]) -> Outcome {
    let status = Command::new(env!("CARGO")).args(words).current_dir(root()).status().context("start cargo")?;
    if status.success() { Ok(()) } else { fail(format!("cargo {}: {status}", words.join(" "))) }
}
