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

/// Name, and what cargo is told.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("tidy", &["xtask", "tidy"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", &["test", "--workspace"]),
    ("demo", &["xtask", "demo"]),
    ("faults", &["xtask", "faults"]),
    ("torture", &["xtask", "torture", "--seconds", "60"]),
];

/// Runs all steps in order, or only those named.
pub(crate) fn run(mut args: Args) -> Outcome {
    let mut wanted = Vec::new();
    while let Some(word) = args.word() {
        if !STEPS.iter().any(|(name, _)| *name == word) {
            return fail(format!("no step is called {word:?}"));
        }
        wanted.push(word);
    }
    args.finish()?;
    for (name, words) in STEPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name)) {
        println!("== {name}: cargo {}", words.join(" "));
        let began = Instant::now();
        let status = Command::new(env!("CARGO")).args(*words).current_dir(root()).status().context("start cargo")?;
        if !status.success() {
            return fail(format!("step {name} failed: {status}"));
        }
        println!("== {name}: passed in {:.1} s", began.elapsed().as_secs_f64());
    }
    println!("{}", if wanted.is_empty() { "all checks passed" } else { "these checks passed; not all were run" });
    Ok(())
}
