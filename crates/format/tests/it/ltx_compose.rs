//! Compactions and restores of the vectors: merged, and applied in order.

use std::io;

use rhyolite_format::ltx::{Decoder, Format, LtxFile, MergeError, MergeSummary, Packing, decode_any, merge};
use rhyolite_format::{Checksum, PageNumber};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::checksums::database_checksum;
use crate::ltx_files::{encode, hex_text, sha256};
use crate::vectors::{file_or_absent, hex, list, number};

/// The files as the current format; `None` when one is absent.
fn current(paths: &Value) -> Option<Vec<Vec<u8>>> {
    let current = |path: &Value| {
        let path = path.as_str().unwrap();
        let bytes = file_or_absent(path)?;
        // The large database is in the current format and not to be held in memory.
        if path.starts_with("lockpage/") {
            return Some(bytes);
        }
        let file = decode_any(&bytes).unwrap();
        Some(if file.format == Format::Three { bytes } else { encode(&file, Packing::Lz4) })
    };
    paths.as_array().unwrap().iter().map(current).collect()
}

pub(crate) fn merge_slices(
    inputs: &[&[u8]],
    packing: Packing,
    no_checksum: bool,
) -> Result<(Vec<u8>, MergeSummary), MergeError> {
    let decoders = inputs.iter().map(|input| Decoder::new(*input).unwrap()).collect();
    let mut merged = Vec::new();
    let mut sink = |out: &mut Vec<u8>| -> io::Result<()> {
        merged.append(out);
        Ok(())
    };
    let summary = merge(decoders, packing, no_checksum, &mut sink)?;
    assert_eq!(summary.encoded.len, merged.len() as u64);
    Ok((merged, summary))
}

fn slices(files: &[Vec<u8>]) -> Vec<&[u8]> {
    files.iter().map(Vec::as_slice).collect()
}

#[test]
fn compactions_come_out_as_listed() {
    for case in list("compactions") {
        let path = case["output"].as_str().unwrap();
        let (Some(inputs), Some(output)) = (current(&case["inputs"]), file_or_absent(path)) else { continue };
        let expected = decode_any(&output).unwrap();
        for packing in [Packing::Lz4, Packing::Stored] {
            let no_checksum = expected.header.no_checksum;
            let (merged, summary) = merge_slices(&slices(&inputs), packing, no_checksum).expect(path);
            let merged = decode_any(&merged).unwrap();
            assert_eq!((merged.header, summary.header), (expected.header, expected.header), "{path}");
            assert_eq!(merged.trailer.post_apply, expected.trailer.post_apply, "{path}");
            let pages = |f: &LtxFile| f.pages.iter().map(|p| (p.pgno, p.data.clone())).collect::<Vec<_>>();
            assert!(pages(&merged) == pages(&expected), "{path}: other pages");
        }
    }
}

/// Applies one file to an image of the database before it (LTX specification, section 9).
pub(crate) fn apply(file: &LtxFile, image: &mut Vec<u8>) {
    let page_size = file.header.page_size;
    for page in &file.pages {
        let at = page.pgno.offset(page_size) as usize;
        if image.len() < at + page.data.len() {
            image.resize(at + page.data.len(), 0);
        }
        image[at..at + page.data.len()].copy_from_slice(&page.data);
    }
    image.resize(file.header.commit.bytes(page_size) as usize, 0);
    if let Some(post) = file.trailer.post_apply {
        assert_eq!(database_checksum(image, page_size), post, "after {}", file.header.max_txid);
    }
}

/// Size, SHA-256 and checksum of the database that a merged file holds, without having it in memory.
fn digest_snapshot(merged: &[u8]) -> (u64, String, Checksum) {
    let mut decoder = Decoder::new(merged).unwrap();
    let header = *decoder.header();
    let (mut data, mut sha, mut sum) = (vec![0; header.page_size.bytes()], Sha256::new(), Checksum::EMPTY);
    for pgno in (1..=header.commit.get()).map(|p| PageNumber::new(p).unwrap()) {
        if pgno == header.page_size.lock_page() {
            sha.update(vec![0; header.page_size.bytes()]);
            continue;
        }
        assert_eq!(decoder.next_page(&mut data).unwrap(), Some(pgno));
        sum = sum.toggle(decoder.page_checksum().unwrap());
        sha.update(&data);
    }
    assert_eq!(decoder.next_page(&mut data).unwrap(), None);
    decoder.finish_at_end().unwrap();
    (header.commit.bytes(header.page_size), hex_text(&sha.finalize()), sum)
}

#[test]
fn restores_come_out_as_listed() {
    for case in list("restores") {
        let name = case["name"].as_str().unwrap();
        let Some(files) = current(&case["files"]) else { continue };
        let no_checksum = Decoder::new(&files[0][..]).unwrap().header().no_checksum;
        let (merged, _) = merge_slices(&slices(&files), Packing::Lz4, no_checksum).expect(name);
        let (size, sha, sum) = digest_snapshot(&merged);
        assert_eq!((size, &sha[..]), (number(&case["size"]), case["sha256"].as_str().unwrap()), "{name}");
        if let Some(expected) = case.get("database_checksum") {
            assert_eq!(sum.get(), hex(expected), "{name}");
        }
        if let Some(database) = case.get("db") {
            let stored = file_or_absent(database.as_str().unwrap()).unwrap();
            assert_eq!(sha256(&stored), sha, "{name}");
        }
    }
}

#[test]
fn restores_by_applying_in_order_come_out_as_listed() {
    for case in list("restores").iter().filter(|case| case["slow"] != true) {
        let name = case["name"].as_str().unwrap();
        let Some(files) = current(&case["files"]) else { continue };
        let mut image = Vec::new();
        for file in &files {
            apply(&decode_any(file).unwrap(), &mut image);
        }
        let expected = case.get("apply_sha256").unwrap_or(&case["sha256"]);
        assert_eq!(sha256(&image), expected.as_str().unwrap(), "{name}");
    }
}
