//! What must hold for every LTX file: round trips, merging against applying in order, damage at every byte.

use std::io::{self, Read};

use proptest::prelude::*;
use rhyolite_format::ltx::{
    Decoder, EncodeError, Encoder, LtxFile, LtxHeader, MergeError, Packing, ReadError, decode_any,
};
use rhyolite_format::{Checksum, ErrorKind, PageCount, PageNumber, PageSize, Timestamp, Txid};

use crate::checksums::database_checksum;
use crate::ltx_compose::{apply, merge_slices};

const PAGE_SIZE: PageSize = PageSize::MIN;

fn header(min: u64, max: u64, commit: u32, pre_apply: Option<Checksum>) -> LtxHeader {
    LtxHeader {
        no_checksum: false,
        page_size: PAGE_SIZE,
        commit: PageCount(commit),
        min_txid: Txid::new(min).unwrap(),
        max_txid: Txid::new(max).unwrap(),
        timestamp: Timestamp(1_700_000_000_000 + max as i64),
        pre_apply,
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    }
}

fn without_checksums(header: LtxHeader) -> LtxHeader {
    LtxHeader { no_checksum: true, pre_apply: None, ..header }
}

fn page(pgno: u32) -> PageNumber {
    PageNumber::new(pgno).unwrap()
}

fn encode(
    header: LtxHeader,
    packing: Packing,
    pages: &[(u32, Vec<u8>)],
    post: Option<Checksum>,
) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, packing, &mut out)?;
    for (pgno, data) in pages {
        let before = out.len();
        let result = encoder.page(page(*pgno), data, &mut out);
        assert!(result.is_ok() || out.len() == before, "a refused page left something behind");
        result?;
    }
    encoder.finish(post, &mut out)?;
    Ok(out)
}

fn pages_of(file: &LtxFile) -> Vec<(u32, Vec<u8>)> {
    file.pages.iter().map(|p| (p.pgno.get(), p.data.clone())).collect()
}

/// Page images from empty over repetitive to random.
fn image(bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u8>().prop_map(move |fill| vec![fill; bytes]),
        prop::collection::vec(any::<u8>(), 1..20).prop_map(move |p| p.iter().copied().cycle().take(bytes).collect()),
        prop::collection::vec(any::<u8>(), bytes),
    ]
}

fn page_set() -> impl Strategy<Value = (PageSize, Vec<(u32, Vec<u8>)>)> {
    prop::sample::select(vec![512u32, 1024, 4096]).prop_flat_map(|bytes| {
        let pages = prop::collection::btree_map(1..200u32, image(bytes as usize), 0..6);
        pages.prop_map(move |pages| (PageSize::new(bytes).unwrap(), pages.into_iter().collect()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn page_sets_round_trip((page_size, pages) in page_set(), stored in any::<bool>(), no_checksum in any::<bool>()) {
        let pre = Checksum::from_crc(7);
        let header = LtxHeader { page_size, ..header(2, 9, 200, Some(pre)) };
        let header = if no_checksum { without_checksums(header) } else { header };
        let post = (!no_checksum).then_some(Checksum::from_crc(8));
        let packing = if stored { Packing::Stored } else { Packing::Lz4 };
        let file = decode_any(&encode(header, packing, &pages, post).unwrap()).unwrap();
        prop_assert_eq!(file.header, header);
        prop_assert_eq!(file.trailer.post_apply, post);
        prop_assert_eq!(pages_of(&file), pages);
    }

    #[test]
    fn merging_is_applying_in_order(steps in prop::collection::vec(step(), 1..6), stored in any::<bool>(), cut in 0..5usize) {
        let (files, image) = chain(&steps);
        let packing = if stored { Packing::Stored } else { Packing::Lz4 };
        let all: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        let cut = cut % files.len();
        // The newest files merged, and applied to the image before them; from the first file on, to nothing.
        let mut merged_image = Vec::new();
        for file in &all[..cut] {
            apply(&decode_any(file).unwrap(), &mut merged_image);
        }
        let (merged, _) = merge_slices(&all[cut..], packing, false).unwrap();
        apply(&decode_any(&merged).unwrap(), &mut merged_image);
        prop_assert!(merged_image == image, "merged from {cut}");
        // However the files are grouped, the result is the same.
        if let [first, second, rest @ ..] = &all[cut..] {
            let (two, _) = merge_slices(&[first, second], packing, false).unwrap();
            let grouped: Vec<&[u8]> = [&two[..]].into_iter().chain(rest.iter().copied()).collect();
            let (regrouped, _) = merge_slices(&grouped, packing, false).unwrap();
            prop_assert_eq!(pages_of(&decode_any(&regrouped).unwrap()), pages_of(&decode_any(&merged).unwrap()));
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), with_header in any::<bool>()) {
        let mut input = if with_header { header(2, 2, 9, Some(Checksum::EMPTY)).encode().to_vec() } else { Vec::new() };
        input.extend(bytes);
        prop_assert!(decode_any(&input).is_err());
    }
}

/// One transaction: database size after it, and pages that it writes.
type Step = (u32, Vec<(u32, Vec<u8>)>);

fn step() -> impl Strategy<Value = Step> {
    (0..12u32, prop::collection::vec((1..12u32, image(512)), 0..5))
}

/// The files of `steps`, which keep the growth rule, and the image after them.
fn chain(steps: &[Step]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut files, mut image, mut pre) = (Vec::new(), Vec::<u8>::new(), None);
    for (i, (commit, writes)) in steps.iter().enumerate() {
        let old_commit = (image.len() / 512) as u32;
        image.resize(*commit as usize * 512, i as u8);
        let mut changed: Vec<u32> = (old_commit + 1..=*commit).collect();
        for (pgno, data) in writes.iter().filter(|(pgno, _)| pgno <= commit) {
            image[(*pgno as usize - 1) * 512..][..512].copy_from_slice(data);
            changed.push(*pgno);
        }
        changed.sort_unstable();
        changed.dedup();
        let data = |p: &u32| (*p, image[(*p as usize - 1) * 512..][..512].to_vec());
        let pages: Vec<_> = changed.iter().map(data).collect();
        let (txid, post) = (i as u64 + 1, database_checksum(&image, PAGE_SIZE));
        files.push(encode(header(txid, txid, *commit, pre), Packing::Lz4, &pages, Some(post)).unwrap());
        pre = Some(post);
    }
    (files, image)
}

/// Two pages, one that shrinks and one that does not.
fn sample(packing: Packing) -> Vec<u8> {
    let random: Vec<u8> = (0..512u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let pages = [(1, b"CREATE TABLE t(a, b); ".repeat(24)[..512].to_vec()), (7, random)];
    encode(header(3, 4, 9, Some(Checksum::from_crc(1))), packing, &pages, Some(Checksum::from_crc(2))).unwrap()
}

/// The file checksum covers what packed bytes unpack to: a change that only packs the same page in another way is none.
#[test]
fn no_changed_bit_changes_what_is_accepted() {
    for packing in [Packing::Stored, Packing::Lz4] {
        let bytes = sample(packing);
        let content = |file: LtxFile| (file.header, file.trailer, pages_of(&file));
        let good = content(decode_any(&bytes).unwrap());
        let mut repacked = 0;
        for (i, bit) in (0..bytes.len()).flat_map(|i| (0..8).map(move |bit| (i, bit))) {
            let mut changed = bytes.clone();
            changed[i] ^= 1 << bit;
            if let Ok(file) = decode_any(&changed) {
                assert!(content(file) == good, "{packing:?}: bit {bit} of byte {i}");
                repacked += 1;
            }
        }
        // In the last token of a block four bits are without meaning.
        let expected = 4 * 2;
        assert!(repacked == expected || packing == Packing::Lz4 && repacked < 100, "{packing:?}: {repacked}");
    }
}

#[test]
fn no_cut_or_longer_file_is_accepted() {
    for packing in [Packing::Stored, Packing::Lz4] {
        let bytes = sample(packing);
        for len in 0..bytes.len() {
            assert!(decode_any(&bytes[..len]).is_err(), "{packing:?}: cut to {len}");
        }
        for more in [&[0][..], &[0; 16], &bytes] {
            let longer = [&bytes[..], more].concat();
            assert_eq!(decode_any(&longer).unwrap_err().kind, ErrorKind::Trailing, "{packing:?}");
        }
    }
}

/// Gives one byte at a time and fails after `left` of them.
struct Dripping<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("the connection broke"))?;
        self.bytes.read(&mut buffer[..1])
    }
}

fn decode_dripping(bytes: &[u8], left: usize) -> Result<usize, ReadError> {
    let mut decoder = Decoder::new(Dripping { bytes, left })?;
    let mut data = vec![0; PAGE_SIZE.bytes()];
    let mut pages = 0;
    while decoder.next_page(&mut data)?.is_some() {
        pages += 1;
    }
    decoder.finish_at_end()?;
    Ok(pages)
}

#[test]
fn a_broken_reader_is_told_from_a_broken_file() {
    let bytes = sample(Packing::Lz4);
    assert_eq!(decode_dripping(&bytes, bytes.len() + 1).unwrap(), 2);
    for left in 0..=bytes.len() {
        assert!(matches!(decode_dripping(&bytes, left), Err(ReadError::Io(_))), "broke after {left}");
    }
}

fn encode_error(header: LtxHeader, pages: &[u32], post: Option<Checksum>) -> ErrorKind {
    let pages: Vec<_> = pages.iter().map(|p| (*p, vec![0; header.page_size.bytes()])).collect();
    encode(header, Packing::Lz4, &pages, post).unwrap_err().kind
}

#[test]
fn the_encoder_refuses_what_a_decoder_would() {
    let sum = Some(Checksum::from_crc(1));
    let delta = header(2, 2, 9, sum);
    assert_eq!(encode_error(delta, &[3, 3], sum), ErrorKind::PageOrder);
    assert_eq!(encode_error(delta, &[3, 2], sum), ErrorKind::PageOrder);
    assert_eq!(encode_error(delta, &[10], sum), ErrorKind::Commit);
    assert_eq!(encode_error(delta, &[1], None), ErrorKind::PostChecksum);
    assert_eq!(encode_error(without_checksums(delta), &[1], sum), ErrorKind::PostChecksum);
    assert_eq!(encode_error(header(2, 2, 0, sum), &[], sum), ErrorKind::PostChecksum);
    assert_eq!(encode_error(without_checksums(header(2, 2, 0, sum)), &[], None), ErrorKind::PostChecksum);
    let large = LtxHeader { page_size: PageSize::MAX, commit: PageCount(16_400), ..delta };
    assert_eq!(encode_error(large, &[16_385], sum), ErrorKind::LockPage);

    let snapshot = header(1, 2, 3, None);
    assert_eq!(encode_error(snapshot, &[2], sum), ErrorKind::SnapshotPages);
    assert_eq!(encode_error(snapshot, &[1, 2], sum), ErrorKind::SnapshotPages);
    assert_eq!(encode_error(snapshot, &[1, 2, 3], sum), ErrorKind::PostChecksum);

    assert_eq!(encode_error(header(3, 2, 9, sum), &[], sum), ErrorKind::Txid);
    assert_eq!(encode_error(header(2, 2, 9, None), &[], sum), ErrorKind::PreChecksum);
    assert_eq!(encode_error(header(1, 2, 9, sum), &[], sum), ErrorKind::PreChecksum);
    assert_eq!(encode_error(LtxHeader { no_checksum: true, ..delta }, &[], None), ErrorKind::PreChecksum);
    assert_eq!(encode_error(LtxHeader { wal_size: 1, ..delta }, &[], sum), ErrorKind::WalRange);
    assert_eq!(encode_error(LtxHeader { wal_offset: 1 << 63, ..delta }, &[], sum), ErrorKind::WalRange);
}

#[test]
fn a_snapshot_tells_its_checksum() {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header(1, 5, 2, None), Packing::Stored, &mut out).unwrap();
    assert_eq!(encoder.snapshot_checksum(), Some(Checksum::EMPTY));
    for pgno in [1, 2] {
        encoder.page(page(pgno), &[pgno as u8; 512], &mut out).unwrap();
    }
    let image = [[1; 512], [2; 512]].concat();
    let sum = encoder.snapshot_checksum();
    assert_eq!(sum, Some(database_checksum(&image, PAGE_SIZE)));
    let (encoded, buffers) = encoder.finish_reusing(sum, &mut out).unwrap();
    assert_eq!((encoded.len, encoded.pages), (out.len() as u64, 2));

    let mut next = Vec::new();
    let again = Encoder::with_buffers(header(6, 6, 2, sum), Packing::Lz4, buffers, &mut next).unwrap();
    assert_eq!((again.pages(), again.position()), (0, 100));
    again.finish(sum, &mut next).unwrap();
    assert_eq!(decode_any(&next).unwrap().pages, []);
}

fn chain_error(inputs: &[&[u8]], no_checksum: bool) -> ErrorKind {
    match merge_slices(inputs, Packing::Lz4, no_checksum) {
        Err(MergeError::Chain(error)) => error.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_do_not_belong_together_are_not_merged() {
    let steps: Vec<Step> = (1..5).map(|i| (4, vec![(i, vec![i as u8; 512])])).collect();
    let (files, _) = chain(&steps);
    assert_eq!(chain_error(&[], false), ErrorKind::Gap);
    assert_eq!(chain_error(&[&files[0], &files[2]], false), ErrorKind::Gap);
    assert_eq!(chain_error(&[&files[1], &files[0]], false), ErrorKind::Gap);
    assert_eq!(chain_error(&[&files[1], &files[1]], false), ErrorKind::Gap);

    let sum = Some(Checksum::from_crc(1));
    let other_history = encode(header(2, 2, 4, sum), Packing::Lz4, &[], sum).unwrap();
    assert_eq!(chain_error(&[&files[0], &other_history], false), ErrorKind::Chain);
    assert_eq!(chain_error(&[&files[0], &other_history], true), ErrorKind::Chain, "also when checksums are dropped");
    let other_size = LtxHeader { page_size: PageSize::MAX, ..header(2, 2, 4, sum) };
    let other_size = encode(other_size, Packing::Lz4, &[], sum).unwrap();
    assert_eq!(chain_error(&[&files[0], &other_size], false), ErrorKind::PageSize);
    let unsummed = encode(without_checksums(header(2, 2, 4, sum)), Packing::Lz4, &[], None).unwrap();
    assert_eq!(chain_error(&[&files[0], &unsummed], false), ErrorKind::PostChecksum);
    let last = encode(header(u64::MAX - 1, u64::MAX - 1, 4, sum), Packing::Lz4, &[], sum).unwrap();
    assert_eq!(chain_error(&[&last, &last], false), ErrorKind::Gap);
}

#[test]
fn checksums_can_be_dropped_by_a_merge() {
    let steps: Vec<Step> = (1..4).map(|i| (4, vec![(i, vec![i as u8; 512])])).collect();
    let (files, image) = chain(&steps);
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let (merged, summary) = merge_slices(&files, Packing::Lz4, true).unwrap();
    assert!(summary.header.no_checksum && summary.encoded.trailer.post_apply.is_none());
    let mut restored = Vec::new();
    apply(&decode_any(&merged).unwrap(), &mut restored);
    assert!(restored == image);
}

#[test]
fn stored_pages_are_compressed_by_a_merge_and_compressed_ones_passed_on() {
    let pages = [(1, vec![1; 512]), (2, vec![2; 512])];
    let sum = Some(Checksum::from_crc(1));
    let [stored, lz4] = [Packing::Stored, Packing::Lz4].map(|p| encode(header(2, 2, 4, sum), p, &pages, sum).unwrap());
    assert!(stored.len() > 1024 && lz4.len() < 300, "{} and {}", stored.len(), lz4.len());
    for input in [&stored, &lz4] {
        assert_eq!(merge_slices(&[input], Packing::Lz4, false).unwrap().0, lz4);
    }
    assert_eq!(merge_slices(&[&lz4], Packing::Stored, false).unwrap().0, lz4);
}

#[test]
fn a_damaged_input_fails_the_merge() {
    let steps: Vec<Step> = (1..3).map(|i| (4, vec![(i, vec![i as u8; 512])])).collect();
    let (mut files, _) = chain(&steps);
    let last = files[1].len() - 1;
    files[1][last] ^= 1;
    let result = merge_slices(&[&files[0], &files[1]], Packing::Lz4, false);
    assert!(matches!(result, Err(MergeError::Input { input: 1, .. })), "{result:?}");
}
