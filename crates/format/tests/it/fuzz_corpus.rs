//! Replays the committed corpus of every fuzz target, so that what fuzzing once found stays found.

use std::fs;
use std::path::Path;

use crate::fuzz_bodies::BODIES;

fn fuzz_folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_corpus_passes() {
    for (name, body) in BODIES {
        let folder = fuzz_folder().join("corpus").join(name);
        let files = names(&folder);
        assert!(!files.is_empty(), "no corpus for {name}");
        for file in files {
            let bytes = fs::read(folder.join(&file)).unwrap();
            println!("{name}/{file}: {} bytes", bytes.len());
            body(&bytes);
        }
    }
}

/// Each body is also tried with parts of its corpus, which is what a fuzzer would do first.
#[test]
fn pieces_of_the_corpus_pass() {
    for (name, body) in BODIES {
        let folder = fuzz_folder().join("corpus").join(name);
        for file in names(&folder) {
            let bytes = fs::read(folder.join(&file)).unwrap();
            for i in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
                body(&bytes[..i]);
                body(&bytes[i..]);
                let mut changed = bytes.clone();
                changed[i] = changed[i].wrapping_add(1);
                body(&changed);
                changed[i] = 0xff;
                body(&changed);
            }
        }
    }
}

#[test]
fn every_body_is_a_target_and_has_a_corpus() {
    let bodies: Vec<&str> = BODIES.iter().map(|(name, _)| *name).collect();
    let targets = names(&fuzz_folder().join("fuzz_targets"));
    assert_eq!(targets.iter().map(|t| t.trim_end_matches(".rs")).collect::<Vec<_>>(), bodies);
    assert_eq!(names(&fuzz_folder().join("corpus")), bodies);
}
