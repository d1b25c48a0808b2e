//! Which crate may know which, and which may not know the world.
//!
//! A new arrow is a line in [`CRATES`] and a sentence in the commit that adds it.

use super::Finding;

/// What one crate may depend on.
#[derive(Debug)]
pub(crate) struct Crate {
    /// Folder from the root.
    pub(crate) folder: &'static str,
    /// Crates of the workspace that it may name.
    ours: &'static [&'static str],
    /// Crates from elsewhere that it may name; `None` is any.
    theirs: Option<&'static [&'static str]>,
}

/// Checksums, compression and text forms: pure functions all. `twox-hash` is in LZ4 frames.
const FORMAT_USES: &[&str] = &["crc-fast", "lz4_flex", "serde", "serde_json", "twox-hash"];

/// What a sequence of requests needs, whatever runs it. Of Tokio only what tells others; no runtime and no clock.
const WRITER_USES: &[&str] = &["async-trait", "bytes", "futures-util", "tokio", "tracing"];

/// What runs futures without a runtime, and the store's trait. No clock and no source of chance but a seed.
const SIM_USES: &[&str] = &["async-trait", "bytes", "futures-util", "tokio"];

/// The allowed arrows.
pub(crate) const CRATES: &[Crate] = &[
    Crate { folder: "crates/format", ours: &[], theirs: Some(FORMAT_USES) },
    Crate { folder: "crates/logic", ours: &["format"], theirs: Some(&[]) },
    Crate { folder: "crates/store", ours: &["format"], theirs: None },
    Crate { folder: "crates/writer", ours: &["format", "logic", "store"], theirs: Some(WRITER_USES) },
    Crate { folder: "crates/sim", ours: &["format", "logic", "store", "writer"], theirs: Some(SIM_USES) },
    Crate { folder: "crates/node", ours: &["format", "logic", "store", "writer"], theirs: None },
    Crate { folder: "xtask", ours: &["format"], theirs: None },
    Crate { folder: "bench", ours: &["format", "store", "node"], theirs: None },
];

/// What tests of any crate may name besides. The last three unpack test vectors.
const TEST_ONLY: &[&str] = &["proptest", "tempfile", "serde_json", "ruzstd", "sha2", "tar"];

/// Arrows in `manifest` that are not allowed.
pub(crate) fn check(rules: &Crate, file: &str, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut section = String::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            continue;
        }
        if !section.ends_with("dependencies") || line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        let test_only = section == "dev-dependencies" && TEST_ONLY.contains(&name);
        let allowed = match name.strip_prefix("rhyolite-") {
            // A crate's tests may name the crate itself, with features of its own that are for tests.
            Some(ours) => rules.ours.contains(&ours) || section == "dev-dependencies" && rules.folder.ends_with(ours),
            None => test_only || rules.theirs.is_none_or(|theirs| theirs.contains(&name)),
        };
        if !allowed {
            let what = format!("{} may not depend on {name}", rules.folder);
            findings.push(Finding { file: file.to_owned(), line: index + 1, what });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(folder: &str, manifest: &str) -> Vec<String> {
        let rules = CRATES.iter().find(|c| c.folder == folder).unwrap();
        check(rules, "Cargo.toml", manifest).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_arrow_upwards_is_found() {
        let found = findings("crates/logic", "[dependencies]\nrhyolite-format.workspace = true\nrhyolite-store = {}\n");
        assert_eq!(found, ["Cargo.toml:3: crates/logic may not depend on rhyolite-store"]);
        assert_eq!(findings("crates/store", "[dev-dependencies]\nrhyolite-logic.workspace = true\n").len(), 1);
        assert!(findings("crates/node", "[dependencies]\nrhyolite-logic.workspace = true\n").is_empty());
    }

    #[test]
    fn a_door_to_the_world_is_found_where_there_must_be_none() {
        assert_eq!(findings("crates/logic", "[dependencies]\ntokio = \"1\"\n").len(), 1);
        assert_eq!(findings("crates/logic", "[dependencies]\nproptest = \"1\"\n").len(), 1, "not a test dependency");
        assert!(findings("crates/logic", "[dev-dependencies]\nproptest.workspace = true\n").is_empty());
        assert!(findings("crates/store", "[target.'cfg(unix)'.dependencies]\ntokio = \"1\"\n").is_empty());
    }
}
