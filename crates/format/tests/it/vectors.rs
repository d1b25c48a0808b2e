//! The test vectors of `testdata/ltx-vectors.tar.zst`, unpacked once into memory.
//!
//! `file("chain/512/state5.db")` gives the bytes, `manifest()` what they must decode to. The SQLite vectors are under
//! `sqlite/`, with `sqlite/manifest.json`. Other crates take this file in by `#[path]`.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;

static FILES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(unpack);
static MANIFEST: LazyLock<Value> = LazyLock::new(|| json("manifest.json"));

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn unpack() -> BTreeMap<String, Vec<u8>> {
    let packed = std::fs::File::open(repository().join("testdata/ltx-vectors.tar.zst")).unwrap();
    let tar = ruzstd::decoding::StreamingDecoder::new(std::io::BufReader::new(packed)).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(path, bytes);
        }
    }
    assert!(files.len() > 300, "only {} vectors", files.len());
    files
}

/// All vectors: path below the archive's root, content.
pub(crate) fn files() -> &'static BTreeMap<String, Vec<u8>> {
    &FILES
}

/// One vector.
pub(crate) fn file(path: &str) -> &'static [u8] {
    FILES.get(path).unwrap_or_else(|| panic!("no vector {path}"))
}

/// One vector that is JSON.
pub(crate) fn json(path: &str) -> Value {
    serde_json::from_slice(file(path)).unwrap()
}

/// The manifest of all vectors but those under `sqlite/`.
pub(crate) fn manifest() -> &'static Value {
    &MANIFEST
}

/// Like [`file`], and also for the sample of a foreign cluster, which is not part of the archive: it is read from beside
/// the working copy where somebody has put it, otherwise `None`.
pub(crate) fn file_or_absent(path: &str) -> Option<Vec<u8>> {
    if let Some(bytes) = FILES.get(path) {
        return Some(bytes.clone());
    }
    assert!(path.starts_with("litefs/"), "no vector {path}");
    std::fs::read(repository().join("../shared/spec/vectors").join(path)).ok()
}

/// A number that the manifest gives as hex digits.
pub(crate) fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

/// A number that the manifest gives as a number.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The entries of the manifest's list `key`. Fails when there are none, so that a renamed key is not a passed test.
pub(crate) fn list(key: &str) -> &'static [Value] {
    let list = manifest()[key].as_array().unwrap();
    assert!(!list.is_empty(), "no {key}");
    list
}

/// Bytes from hex digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
