//! Every file of the vectors decodes to what the manifest says, and what is written from it decodes to the same.

use rhyolite_format::ltx::{
    Decoder, Encoder, EncoderBuffers, Format, LtxFile, LtxHeader, Packing, PageEncoding, PageIndex, decode_any,
    decode_as, decode_page_frame,
};
use rhyolite_format::{Checksum, ErrorKind, PageCount, PageSize, Timestamp, Txid};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::vectors::{file, file_or_absent, hex, list, number};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex_text(&Sha256::digest(bytes))
}

pub(crate) fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The same content as a file of the current format.
pub(crate) fn encode(file: &LtxFile, packing: Packing) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::with_buffers(file.header, packing, EncoderBuffers::default(), &mut out).unwrap();
    for page in &file.pages {
        let checksum = encoder.page(page.pgno, &page.data, &mut out).unwrap();
        assert_eq!(checksum, Checksum::of_page(page.pgno, &page.data));
    }
    assert_eq!((encoder.pages() as usize, encoder.position()), (file.pages.len(), out.len() as u64));
    let encoded = encoder.finish(file.trailer.post_apply, &mut out).unwrap();
    assert_eq!((encoded.len, encoded.pages as usize), (out.len() as u64, file.pages.len()));
    out
}

/// Files small enough to be decoded as a whole.
fn quick_files() -> impl Iterator<Item = (&'static str, Vec<u8>, &'static Value)> {
    let quick = list("files").iter().filter(|case| case["slow"] != true);
    quick.filter_map(|case| {
        let path = case["path"].as_str().unwrap();
        Some((path, file_or_absent(path)?, case))
    })
}

fn header_of(case: &Value) -> (LtxHeader, bool) {
    let header = &case["header"];
    let txid = |key: &str| Txid::new(hex(&header[key])).unwrap();
    let decoded = LtxHeader {
        no_checksum: number(&header["flags"]) & 2 != 0,
        page_size: PageSize::new(number(&header["page_size"]) as u32).unwrap(),
        commit: PageCount(number(&header["commit"]) as u32),
        min_txid: txid("min_txid"),
        max_txid: txid("max_txid"),
        timestamp: Timestamp(header["timestamp"].as_i64().unwrap()),
        pre_apply: Checksum::from_raw(hex(&header["pre_apply_checksum"])),
        wal_offset: number(&header["wal_offset"]),
        wal_size: number(&header["wal_size"]),
        wal_salt: (number(&header["wal_salt1"]) as u32, number(&header["wal_salt2"]) as u32),
        node_id: hex(&header["node_id"]),
    };
    (decoded, header["reserved_zero"].as_bool().unwrap())
}

fn pages_of(file: &LtxFile) -> Value {
    let encoding = |e| match e {
        PageEncoding::Raw => "raw",
        PageEncoding::Frame => "frame",
        PageEncoding::Block => "block",
    };
    let page = |p: &rhyolite_format::ltx::LtxPage| {
        let sum = Checksum::of_page(p.pgno, &p.data).to_string();
        serde_json::json!([p.pgno.get(), encoding(p.encoding), p.offset, p.size, sum])
    };
    file.pages.iter().map(page).collect()
}

#[test]
fn files_decode_as_listed() {
    let mut seen = 0;
    for (path, bytes, case) in quick_files() {
        assert_eq!(sha256(&bytes), case["sha256"].as_str().unwrap(), "{path}");
        let (decoded, case) = (decode_any(&bytes).unwrap(), &case["ltx"]);
        let format = match decoded.format {
            Format::One => 1,
            Format::Two => 2,
            Format::Three => 3,
        };
        assert_eq!((format, bytes.len() as u64), (number(&case["format"]), number(&case["size"])), "{path}");
        assert_eq!((decoded.header, decoded.is_reserved_clear), header_of(case), "{path}");
        assert_eq!(pages_of(&decoded), case["pages"], "{path}");
        assert_eq!(decoded.pages_end, number(&case["index_offset"]), "{path}");
        let post = decoded.trailer.post_apply.map_or(0, Checksum::get);
        assert_eq!(post, hex(&case["post_apply_checksum"]), "{path}");
        assert_eq!(decoded.trailer.file_checksum.get(), hex(&case["file_checksum"]), "{path}");
        seen += 1;
    }
    assert!(seen >= 240, "{seen} files");
}

#[test]
fn single_pages_are_found_by_the_index() {
    for (path, bytes, case) in quick_files().filter(|(_, _, case)| number(&case["ltx"]["format"]) == 3) {
        let size = bytes.len() as u64;
        let range = PageIndex::locate(&bytes[bytes.len() - 24..], size).unwrap();
        assert_eq!(range.start, number(&case["ltx"]["index_offset"]), "{path}");
        assert_eq!(range.end - range.start - 8, number(&case["ltx"]["index_len"]), "{path}");
        let index = PageIndex::decode(&bytes[range.start as usize..range.end as usize], range.start).unwrap();
        let decoded = decode_as(&bytes, Format::Three).unwrap();
        assert_eq!(index.0.len(), decoded.pages.len(), "{path}");
        let mut data = vec![0; decoded.header.page_size.bytes()];
        for page in &decoded.pages {
            let entry = index.find(page.pgno).unwrap();
            let frame = &bytes[entry.offset as usize..(entry.offset + entry.size) as usize];
            decode_page_frame(frame, page.pgno, &mut data).unwrap();
            assert_eq!(data, page.data, "{path} page {}", page.pgno);
            let other = page.pgno.get().wrapping_add(1).max(1);
            let other = rhyolite_format::PageNumber::new(other).unwrap();
            assert_eq!(decode_page_frame(frame, other, &mut data).unwrap_err().kind, ErrorKind::Index, "{path}");
        }
    }
}

#[test]
fn what_is_written_decodes_to_the_same() {
    for (path, bytes, _) in quick_files() {
        let original = decode_any(&bytes).unwrap();
        for packing in [Packing::Lz4, Packing::Stored] {
            let again = decode_any(&encode(&original, packing)).unwrap();
            assert_eq!(again.format, Format::Three, "{path}");
            assert_eq!(again.header, original.header, "{path}");
            assert_eq!(again.trailer.post_apply, original.trailer.post_apply, "{path}");
            let pages = |f: &LtxFile| f.pages.iter().map(|p| (p.pgno, p.data.clone())).collect::<Vec<_>>();
            assert!(pages(&again) == pages(&original), "{path}: other pages");
            assert!(again.pages.iter().all(|p| p.encoding == PageEncoding::Block), "{path}");
        }
    }
}

/// A database of more than 1 GiB: the lock page is left out and nothing is held in memory.
#[test]
fn a_large_file_is_streamed() {
    let case = list("files").iter().find(|case| case["slow"] == true).unwrap();
    let bytes = file(case["path"].as_str().unwrap());
    assert_eq!(sha256(bytes), case["sha256"].as_str().unwrap());
    let mut decoder = Decoder::new(bytes).unwrap();
    let mut data = vec![0; 65536];
    let (mut pages, mut last) = (0, 0);
    while let Some(pgno) = decoder.next_page(&mut data).unwrap() {
        (pages, last) = (pages + 1, pgno.get());
    }
    assert_eq!((pages, last), (16378, 16378));
    decoder.finish_at_end().unwrap();
}

#[test]
fn files_lie_back_to_back() {
    let vectors =
        ["chain/512/0000000000000001-0000000000000001.ltx", "old/f3-frame/512/0000000000000001-0000000000000001.ltx"];
    let all: Vec<u8> = vectors.iter().flat_map(|path| file(path).iter().copied()).chain(*b"next").collect();
    let mut rest = &all[..];
    for path in vectors {
        let mut decoder = Decoder::new(&mut rest).unwrap();
        let mut data = vec![0; decoder.header().page_size.bytes()];
        while decoder.next_page(&mut data).unwrap().is_some() {}
        assert_eq!(decoder.next_page(&mut data).unwrap(), None, "and stays there");
        let expected = decode_any(file(path)).unwrap().trailer;
        assert_eq!(decoder.finish().unwrap().0, expected, "{path}");
    }
    assert_eq!(rest, b"next");
}
