//! `cargo xtask test`: the tests of the whole workspace, as `cargo test --workspace` runs them. Those that mostly wait run beside the others, and all are run
//! whatever fails. At the end is repeated what those that failed have said.

mod failures;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::args::Args;
use crate::ci::root;
use crate::error::{Context, Outcome, fail};
use crate::scratch::Scratch;

use failures::failures;

/// They wait for servers, and need little of the processor.
const WAITING: &[&str] = &["store it"];
/// How often it is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(50);

/// A program that runs tests.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// Folder of its room, and its own name.
    name: String,
    path: PathBuf,
    /// Where cargo would start it.
    folder: PathBuf,
}

/// Builds the tests and runs them.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    let programs = build()?;
    let (beside, in_turn): (Vec<_>, Vec<_>) = programs.into_iter().partition(|p| WAITING.contains(&p.name.as_str()));
    if beside.len() != WAITING.len() {
        return fail(format!("of {WAITING:?} there is only {beside:?}"));
    }
    let scratch = Scratch::new("tests")?;
    let said = |program: &Program| scratch.path().join(program.name.replace(' ', "-"));
    let mut failed = Vec::new();
    thread::scope(|scope| -> Outcome {
        let started =
            beside.iter().map(|program| (program, scope.spawn(|| start(program, Show::Later, &said(program)))));
        let started: Vec<_> = started.collect();
        for program in &in_turn {
            println!("-- {}", program.name);
            if !start(program, Show::Now, &said(program))? {
                failed.push(program);
            }
        }
        for (program, running) in started {
            let passed = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            println!("-- {}, which ran beside the others", program.name);
            let mut output = File::open(said(program)).context("read what the tests have said")?;
            io::copy(&mut output, &mut io::stdout()).context("show it")?;
            if !passed {
                failed.push(program);
            }
        }
        Ok(())
    })?;
    if failed.is_empty() {
        return Ok(());
    }
    for program in &failed {
        let output = fs::read(said(program)).context("read what the tests have said")?;
        eprintln!("-- {}: what failed", program.name);
        failures(&String::from_utf8_lossy(&output)).iter().for_each(|failure| eprint!("{}", failure.shown()));
    }
    let names: Vec<&str> = failed.iter().map(|program| program.name.as_str()).collect();
    fail(format!("tests failed: {}", names.join(", ")))
}

/// Builds all programs that run tests.
fn build() -> Outcome<Vec<Program>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut child = cargo.current_dir(root()).stdout(Stdio::piped()).spawn().context("start cargo")?;
    let lines = BufReader::new(child.stdout.take().context("cargo has no output")?).lines();
    let mut programs = Vec::new();
    for line in lines {
        programs.extend(program(&line.context("read from cargo")?));
    }
    let status = child.wait().context("wait for cargo")?;
    if status.success() { Ok(programs) } else { fail(format!("cargo test --no-run: {status}")) }
}

/// The program that one line of cargo's tells of.
fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    let room = folder.file_name()?.to_str()?;
    let name = format!("{room} {}", message["target"]["name"].as_str()?);
    Some(Program { name, path: message["executable"].as_str()?.into(), folder })
}

/// When the output of a program is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Now,
    Later,
}

/// Runs a program, and keeps its output in the file `said`; whether its tests passed.
fn start(program: &Program, show: Show, said: &Path) -> Outcome<bool> {
    let began = Instant::now();
    let mut command = Command::new(&program.path);
    command.current_dir(&program.folder);
    let file = File::create(said).context(format!("make {}", said.display()))?;
    if show == Show::Later {
        command.stderr(file.try_clone().context("share the output")?);
    }
    let mut child = command.stdout(file).spawn().context(format!("start the tests {}", program.name))?;
    let mut output = File::open(said).context("read what the tests say")?;
    // Not by a pipe: whoever outlives the tests may have it open.
    let status = loop {
        let ended = child.try_wait().context("wait for the tests")?;
        if show == Show::Now {
            io::copy(&mut output, &mut io::stdout()).context("show what the tests say")?;
        }
        match ended {
            Some(status) => break status,
            None => thread::sleep(LOOK),
        }
    };
    println!("-- {}: {status}, {:.1} s", program.name, began.elapsed().as_secs_f64());
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_cargos_other_lines() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/x/crates/store/Cargo.toml","target":{"name":"it"},"profile":{"test":true},
            "executable":"/x/target/debug/deps/it-1"}"#;
        let found = program(line).unwrap();
        assert_eq!((found.name.as_str(), found.folder.to_str()), ("store it", Some("/x/crates/store")));
        assert!(WAITING.contains(&found.name.as_str()));
        for other in [
            line.replace("\"test\":true", "\"test\":false"),
            line.replace("\"/x/target/debug/deps/it-1\"", "null"),
            "no JSON".to_owned(),
        ] {
            assert_eq!(program(&other), None, "{other}");
        }
    }

    #[test]
    fn a_program_that_fails_is_told_from_one_that_passes_and_what_it_said_is_kept() {
        let program = |path: &str| Program { name: path.to_owned(), path: path.into(), folder: "/".into() };
        let scratch = Scratch::new("test-of-tests").unwrap();
        let said = scratch.path().join("said");
        for show in [Show::Now, Show::Later] {
            assert!(start(&program("true"), show, &said).unwrap());
            assert!(!start(&program("false"), show, &said).unwrap());
            assert!(start(&program("/nonexistent/tests"), show, &said).is_err());
            assert!(start(&program("pwd"), show, &said).unwrap());
            assert_eq!(fs::read_to_string(&said).unwrap(), "/\n");
        }
    }
}
