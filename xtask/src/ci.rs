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

/// Name, and what cargo is told. What comes after the tests uses the binary that they built: one build serves all steps.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("tidy", &["xtask", "tidy"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", &["xtask", "test"]),
    ("demo", &["xtask", "demo"]),
    ("faults", &["xtask", "faults"]),
    ("large", &["xtask", "large"]),
    ("torture", &["xtask", "torture", "--seconds", "60"]),
    ("torture-mount", &["xtask", "torture-mount", "--seconds", "40"]),
    ("torture-cluster", &["xtask", "torture-cluster", "--seconds", "60"]),
    ("power-cut", &["xtask", "power-cut", "--seconds", "30"]),
    ("suites", &["xtask", "suites"]),
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
        let status = command(words)?.current_dir(root()).status().context("start a step")?;
        if !status.success() {
            return fail(format!("step {name} failed: {status}"));
        }
        println!("== {name}: passed in {:.1} s", began.elapsed().as_secs_f64());
    }
    println!("{}", if wanted.is_empty() { "all checks passed" } else { "these checks passed; not all were run" });
    Ok(())
}

/// `cargo WORDS`; this very program where cargo would only start it again.
fn command(words: &[&str]) -> Outcome<Command> {
    let own = std::env::current_exe().context("find our own binary")?;
    let ["xtask", rest @ ..] = words else {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(words);
        return Ok(cargo);
    };
    let mut xtask = Command::new(&own);
    xtask.args(rest);
    let built = own.with_file_name("rhyolite");
    if std::env::var_os("RHYOLITE_BIN").is_none() && built.exists() {
        xtask.env("RHYOLITE_BIN", built);
    }
    Ok(xtask)
}
