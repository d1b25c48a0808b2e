//! How fast LTX files are written and read: `cargo run --release -p rhyolite-format --example codec_speed`.
//!
//! Pages of 4 KiB that look like table leaves: half text and numbers, some room left. One thread, everything in memory,
//! best of five. GB/s of page data, not of file. The encoder's output is dropped piece by piece, as if it were uploaded.

use std::time::Instant;

use rhyolite_format::ltx::{Decoder, Encoder, EncoderBuffers, LtxHeader, Packing, merge};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Timestamp, Txid};

const PAGES: u32 = 16 * 1024;

fn main() {
    let page_size = PageSize::new(4096).expect("a page size");
    let pages: Vec<Vec<u8>> = (1..=PAGES).map(|pgno| leaf(pgno, page_size.bytes())).collect();
    let gigabytes = f64::from(PAGES) * f64::from(page_size.get()) / 1e9;
    let report = |what: &str, seconds: f64| println!("{what:32} {:6.2} GB/s", gigabytes / seconds);

    let (mut out, mut file) = (Vec::new(), Vec::new());
    for packing in [Packing::Lz4, Packing::Stored] {
        let mut buffers = Some(EncoderBuffers::default());
        let seconds = best_of_five(|| {
            let reused = buffers.take().expect("given back");
            buffers = Some(encode(&pages, packing, page_size, reused, &mut out, &mut |out| out.clear()));
        });
        report(&format!("encode {packing:?}"), seconds);
        file.clear();
        encode(&pages, packing, page_size, EncoderBuffers::default(), &mut out, &mut |out| file.append(out));
        println!("{:32} {:6.3} of the data", "", file.len() as f64 / gigabytes / 1e9);
        report(&format!("decode {packing:?}"), best_of_five(|| decode(&file)));
        let seconds = best_of_five(|| {
            let inputs = vec![Decoder::new(&file[..]).expect("just written")];
            let mut sink = |bytes: &mut Vec<u8>| {
                bytes.clear();
                Ok(())
            };
            merge(inputs, Packing::Lz4, false, &mut sink).expect("just written");
        });
        report(&format!("merge {packing:?} to Lz4"), seconds);
    }
}

fn best_of_five(mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn encode(
    pages: &[Vec<u8>],
    packing: Packing,
    page_size: PageSize,
    buffers: EncoderBuffers,
    out: &mut Vec<u8>,
    drain: &mut dyn FnMut(&mut Vec<u8>),
) -> EncoderBuffers {
    let header = LtxHeader {
        no_checksum: false,
        page_size,
        commit: PageCount(PAGES),
        min_txid: Txid::FIRST,
        max_txid: Txid::FIRST,
        timestamp: Timestamp(0),
        pre_apply: None,
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    let mut encoder = Encoder::with_buffers(header, packing, buffers, out).expect("a valid header");
    let mut sum = Checksum::EMPTY;
    for (i, data) in pages.iter().enumerate() {
        let pgno = PageNumber::new(i as u32 + 1).expect("from 1");
        sum = sum.toggle(encoder.page(pgno, data, out).expect("pages ascend"));
        if out.len() > 256 * 1024 {
            drain(out);
        }
    }
    let (_, buffers) = encoder.finish_reusing(Some(sum), out).expect("complete");
    drain(out);
    buffers
}

fn decode(bytes: &[u8]) {
    let mut decoder = Decoder::new(bytes).expect("just written");
    let mut data = vec![0; decoder.header().page_size.bytes()];
    while decoder.next_page(&mut data).expect("just written").is_some() {}
    decoder.finish_at_end().expect("just written");
}

/// A page like a table leaf: header, cell pointers, a gap, then rows of numbers and words.
fn leaf(pgno: u32, bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "order",
        "customer",
        "pending",
        "2026-11-",
        "street",
        "example.org",
        "total",
        "paid",
        "invoice",
        "delivered",
        "backup",
        "{\"a\":",
    ];
    let mut state = u64::from(pgno).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut page = vec![0; bytes];
    page[0] = 13;
    let mut at = bytes;
    let mut cell = 8;
    while at > bytes / 6 {
        let mut row = vec![(random() % 100) as u8, 3, 4, 25];
        row.extend_from_slice(&(random() as u32).to_be_bytes());
        for _ in 0..3 + random() % 4 {
            row.extend_from_slice(WORDS[random() % WORDS.len()].as_bytes());
            row.extend_from_slice(&(random() % 10_000).to_string().into_bytes());
        }
        at -= row.len().min(at);
        let end = (at + row.len()).min(bytes);
        page[at..end].copy_from_slice(&row[..end - at]);
        page[cell..cell + 2].copy_from_slice(&(at as u16).to_be_bytes());
        cell += 2;
    }
    page
}
