//! `cargo xtask tidy`: rules that the compiler does not check.
//!
//! Two passes: [`arrows`] reads the manifests (which crate may know which), [`sources`] reads the files line by line. Both are
//! functions from text to findings, so that each rule has a test in which it fails.

mod arrows;
mod sources;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::args::Args;
use crate::ci::root;
use crate::error::{Context, Outcome, fail};

/// A broken rule and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    file: String,
    /// From 1; 0 for the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks the whole repository.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    let root = root();
    let mut findings = Vec::new();
    for name in arrows::CRATES {
        let file = format!("{}/Cargo.toml", name.folder);
        if !root.join(&file).exists() {
            continue;
        }
        findings.extend(arrows::check(name, &file, &read(&root.join(&file))?));
    }
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "bench"] {
        for path in rust_files(&root.join(folder))? {
            let file = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            files.push((file, read(&path)?));
        }
    }
    let tests: Vec<String> = files.iter().flat_map(|(file, text)| sources::test_modules(file, text)).collect();
    for (file, text) in &files {
        findings.extend(sources::check(file, text, tests.contains(file)));
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        return fail(format!("{} broken rules", findings.len()));
    }
    println!("tidy: {} files keep the rules", files.len());
    Ok(())
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).context(format!("read {}", path.display()))
}

fn rust_files(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context(format!("list {}", folder.display()))? {
            let path = entry.context("list a folder")?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
