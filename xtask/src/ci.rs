//! `cargo xtask ci`: every check there is, the same on every machine.
//!
//! Each step is a command that a person could type; the first that fails ends the run with its name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::args::Args;
use crate::error::{Context, Outcome, fail};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask/ lies in the root").to_owned()
}

const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("tidy", &["xtask", "tidy"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", &["test", "--workspace"]),
];

/// Runs all steps in order.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    for (name, words) in STEPS {
        println!("== {name}: cargo {}", words.join(" "));
        let began = Instant::now();
        let status = Command::new(env!("CARGO")).args(*words).current_dir(root()).status().context("start cargo")?;
        if !status.success() {
            return fail(format!("step {name} failed: {status}"));
        }
        println!("== {name}: passed in {:.1} s", began.elapsed().as_secs_f64());
    }
    println!("all checks passed");
    Ok(())
}
