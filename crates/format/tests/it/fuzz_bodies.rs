//! What is done with arbitrary bytes: one function per decoder. `fuzz/` feeds them from libFuzzer, the test in
//! `fuzz_corpus.rs` from the committed corpus. This file is taken in by path, so it depends on the public crate only.
//!
//! Each function gives the bytes to the decoder, which must not panic; what is accepted must be written again and read
//! back to the same value. Where a CRC guards the rest, the bytes are tried a second time with a right CRC, or fuzzing
//! would stop there.

use std::fmt::Debug;

use rhyolite_format::crc::crc64;
use rhyolite_format::follow::FollowState;
use rhyolite_format::identity::Identity;
use rhyolite_format::lease::LeaseRecord;
use rhyolite_format::ltx::{
    Decoder, Encoder, LtxFile, LtxName, Packing, PageIndex, PageIndexCursor, decode_any, decode_page_frame, merge,
};
use rhyolite_format::manifest::Manifest;
use rhyolite_format::probe::ProbeRecord;
use rhyolite_format::push::Greeting;
use rhyolite_format::segment::{self, Segment, SegmentHeader};
use rhyolite_format::sqlite::header::DatabaseHeader;
use rhyolite_format::sqlite::journal::{self, Journal};
use rhyolite_format::sqlite::wal::{
    FRAME_HEADER_SIZE, FrameHeader, Frames, ValidFrames, WAL_HEADER_SIZE, WalHeader, WalScan, checksum, frame_size,
};
use rhyolite_format::sqlite::wal_index::{self, Block, WAL_INDEX_BLOCK_SIZE, WAL_INDEX_SNAPSHOT_SIZE};
use rhyolite_format::state::parked::Parked;
use rhyolite_format::state::{LocalState, page_table};
use rhyolite_format::stream::{self, Frame};
use rhyolite_format::{PageNumber, PageSize, keys, lz4};

/// Takes arbitrary bytes.
pub type Body = fn(&[u8]);

/// Every body, by the name of its fuzz target and of its folder in `fuzz/corpus`.
pub const BODIES: &[(&str, Body)] = &[
    ("database_header", database_header),
    ("follow", follow),
    ("identity", identity),
    ("journal", journal),
    ("keys", key_names),
    ("lease", lease),
    ("ltx_any", ltx_any),
    ("ltx_decode", ltx_decode),
    ("ltx_index", ltx_index),
    ("ltx_merge", ltx_merge),
    ("ltx_page_frame", ltx_page_frame),
    ("lz4_frame", lz4_frame),
    ("manifest", manifest),
    ("page_table", page_table_file),
    ("parked", parked),
    ("probe", probe),
    ("push", push_frame),
    ("segment", segment_object),
    ("state", state),
    ("stream", stream_frame),
    ("wal", wal),
    ("wal_index", wal_index_file),
];

/// LTX files of the current format, streamed, back to back until one is refused.
pub fn ltx_decode(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest.len();
        let Ok(mut decoder) = Decoder::new(&mut rest) else { return };
        let mut data = vec![0; decoder.header().page_size.bytes()];
        let mut pages = 0;
        loop {
            match decoder.next_page(&mut data) {
                Ok(Some(_)) => pages += 1,
                Ok(None) => break,
                Err(_) => return,
            }
        }
        let position = decoder.position();
        assert!(position >= 106 + 11 * pages, "{pages} pages in {position} bytes");
        if decoder.finish().is_err() {
            return;
        }
        assert!(before > rest.len(), "a file without bytes");
    }
}

/// LTX files of any format, whole.
pub fn ltx_any(bytes: &[u8]) {
    let Ok(file) = decode_any(bytes) else { return };
    for packing in [Packing::Lz4, Packing::Stored] {
        // A deletion without checksums is read but not written.
        let Some(written) = write_again(&file, packing) else { continue };
        let again = decode_any(&written).expect("just written");
        assert_eq!((again.header, again.trailer.post_apply), (file.header, file.trailer.post_apply));
        let same = again.pages.iter().zip(&file.pages).all(|(a, b)| (a.pgno, &a.data) == (b.pgno, &b.data));
        assert!(same && again.pages.len() == file.pages.len(), "other pages");
    }
}

fn write_again(file: &LtxFile, packing: Packing) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(file.header, packing, &mut out).ok()?;
    for page in &file.pages {
        encoder.page(page.pgno, &page.data, &mut out).expect("it was read");
    }
    encoder.finish(file.trailer.post_apply, &mut out).expect("it was read");
    Some(out)
}

/// Two LTX files to merge. The first two bytes say where the second begins.
pub fn ltx_merge(bytes: &[u8]) {
    let Some((cut, rest)) = bytes.split_first_chunk() else { return };
    let (first, second) = rest.split_at(usize::from(u16::from_be_bytes(*cut)).min(rest.len()));
    for no_checksum in [true, false] {
        let (Ok(first), Ok(second)) = (Decoder::new(first), Decoder::new(second)) else { return };
        let mut merged = Vec::new();
        let mut sink = |out: &mut Vec<u8>| {
            merged.append(out);
            Ok(())
        };
        if let Ok(summary) = merge(vec![first, second], Packing::Lz4, no_checksum, &mut sink) {
            let file = decode_any(&merged).expect("just written");
            assert_eq!((file.header, file.trailer), (summary.header, summary.encoded.trailer));
        }
    }
}

/// The last bytes of an LTX file: its index, whole and in pieces. The first byte says how long the pieces are.
pub fn ltx_index(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    // The page block is not there, so its size may be anything: what the entries add up to is right.
    for block_bytes in [6, 1000, u64::from(u32::MAX)] {
        let start = 100 + block_bytes;
        let Ok(range) = PageIndex::locate(bytes, start + bytes.len() as u64) else { continue };
        let Some(at) = range.start.checked_sub(start) else { continue };
        let (at, end) = (at as usize, bytes.len() - 16);
        let whole = PageIndex::decode(&bytes[at..end], range.start);
        let mut cursor = PageIndexCursor::new(range.start);
        let mut entries = Vec::new();
        let fed = bytes[at..end - 8].chunks(usize::from(*piece).max(1)).try_for_each(|p| cursor.feed(p, &mut entries));
        let pieces = fed.and_then(|()| cursor.finish());
        assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} and {pieces:?}");
        if let Ok(index) = whole {
            assert_eq!(index.0, entries);
            assert!(entries.iter().all(|e| index.find(e.pgno) == Some(e) && e.offset + e.size <= range.start - 6));
        }
    }
}

/// One page frame. The first byte says which page size is expected.
pub fn ltx_page_frame(bytes: &[u8]) {
    let Some((log2, frame)) = bytes.split_first() else { return };
    let mut data = vec![0; 512 << (log2 % 8)];
    let expected = frame.first_chunk().and_then(|b| PageNumber::new(u32::from_be_bytes(*b)));
    let _ = decode_page_frame(frame, expected.unwrap_or(PageNumber::FIRST), &mut data);
}

/// One LZ4 frame: from a slice of the right and of the wrong length, from a stream, and to a vector.
pub fn lz4_frame(bytes: &[u8]) {
    let unpacked = lz4::unpack_frame_to_vec(bytes);
    if let Ok((content, len)) = &unpacked {
        let mut again = vec![0; content.len()];
        assert_eq!(lz4::unpack_frame(bytes, &mut again), Ok(*len));
        assert_eq!(&again, content);
        let longer = lz4::unpack_frame(bytes, &mut vec![0; content.len() + 1]);
        assert!(longer.is_err(), "{longer:?}");
    }
    // In bounded memory the same comes out, where nothing follows the frame.
    let mut streamed = Vec::new();
    let read = lz4::FrameReader::new(bytes).and_then(|mut frame| std::io::Read::read_to_end(&mut frame, &mut streamed));
    match &unpacked {
        Ok((content, len)) if *len == bytes.len() => assert!(read.is_ok() && streamed == *content, "{read:?}"),
        _ => assert!(read.is_err(), "{read:?}"),
    }
    let (mut input, mut frame) = (bytes, Vec::new());
    if lz4::read_frame(&mut input, 4096, &mut frame).is_ok() {
        assert_eq!((frame.len() + input.len(), &bytes[..frame.len()]), (bytes.len(), &frame[..]));
        let streamed = lz4::unpack_frame(&frame, &mut [0; 4096]);
        assert_eq!(streamed, lz4::unpack_frame(bytes, &mut [0; 4096]), "bytes after the frame matter");
    }
}

/// A segment of the log, as it is, and with its two CRCs made right.
pub fn segment_object(bytes: &[u8]) {
    check_segment(bytes);
    let mut bytes = bytes.to_vec();
    let header_end = segment::HEADER_SIZE;
    if bytes.len() < header_end {
        return;
    }
    sign(&mut bytes[..header_end]);
    if let (Ok(header), Ok(index)) = (SegmentHeader::decode(&bytes), segment::decode_footer(&bytes, bytes.len() as u64))
    {
        let signed = [&header.encode(), &bytes[index.start as usize..bytes.len() - 8]].concat();
        let end = bytes.len() - 8;
        bytes[end..].copy_from_slice(&crc64(&signed).to_be_bytes());
    }
    check_segment(&bytes);
}

fn check_segment(bytes: &[u8]) {
    let Ok(segment) = Segment::decode(bytes) else { return };
    let end = segment.entries.last().map_or(segment::HEADER_SIZE as u64, |entry| entry.range().end);
    let mut written = bytes[..end as usize].to_vec();
    segment::encode_index(&segment.entries, &segment.header, end, &mut written);
    assert_eq!(written, bytes, "a segment has one form only");
    let _ = segment.end();
}

/// Makes the last eight bytes the CRC of those before.
fn sign(bytes: &mut [u8]) {
    if let Some((rest, crc)) = bytes.split_last_chunk_mut() {
        *crc = crc64(rest).to_be_bytes();
    }
}

/// The local state, as it is, and with its CRC made right.
pub fn state(bytes: &[u8]) {
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    for bytes in [bytes, &signed] {
        if let Ok(state) = LocalState::decode(bytes) {
            assert_eq!(state.encode(), bytes, "a state has one form only");
        }
    }
}

/// The state of a parked database, as it is, and with its CRC made right.
pub fn parked(bytes: &[u8]) {
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    for bytes in [bytes, &signed] {
        if let Ok(parked) = Parked::decode(bytes) {
            assert_eq!(parked.encode(), bytes, "a state has one form only");
        }
    }
}

/// The state of a followed file, as it is, and with its CRC made right.
pub fn follow(bytes: &[u8]) {
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    for bytes in [bytes, &signed] {
        if let Ok(state) = FollowState::decode(bytes) {
            let again = state.encode();
            assert_eq!(FollowState::decode(&again), Ok(state), "what is written is read back");
            // Otherwise it is of the version before, or one of two.
            assert!(bytes.len() != again.len() || bytes == again, "a record has one form only");
        }
    }
}

/// A frame of the live stream, as it is, and with its length and CRC made right.
pub fn stream_frame(bytes: &[u8]) {
    for bytes in [bytes, &framed(bytes)] {
        let again = match Frame::decode(bytes) {
            Ok(Frame::Transactions(commits)) => {
                stream::encode_transactions(&commits.span, commits.files.iter().map(|range| &bytes[range.clone()]))
            }
            Ok(Frame::Merged(commits)) => {
                let between: Vec<_> = commits.between.iter().map(|pos| pos.checksum).collect();
                let pages: Vec<_> = commits.pages.iter().map(|(pgno, at)| (*pgno, &bytes[at.clone()])).collect();
                stream::encode_merged(&commits.span, &between, &pages)
            }
            Ok(frame) => frame.encode(),
            Err(_) => continue,
        };
        assert_eq!(again, bytes, "a frame has one form only");
    }
}

/// A frame by which a primary that dials and its replica make themselves known, in the same way.
pub fn push_frame(bytes: &[u8]) {
    for bytes in [bytes, &framed(bytes)] {
        if let Ok(greeting) = Greeting::decode(bytes) {
            assert_eq!(greeting.encode(), bytes, "a frame has one form only");
        }
    }
}

/// The bytes with the length and the CRC of a frame in their place.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut signed = bytes.to_vec();
    if let Some(len) = signed.len().checked_sub(stream::HEADER_SIZE) {
        signed[4..8].copy_from_slice(&(len as u32).to_be_bytes());
        let crc = crc64(&[&signed[..8], &signed[stream::HEADER_SIZE..]].concat());
        signed[8..16].copy_from_slice(&crc.to_be_bytes());
    }
    signed
}

/// A page table, as it is, and with its CRC made right.
pub fn page_table_file(bytes: &[u8]) {
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    for bytes in [bytes, &signed] {
        if let Ok((header, entries)) = page_table::read(bytes) {
            let mut written = Vec::new();
            page_table::write(&header, &entries, &mut written).expect("memory takes it");
            assert_eq!(written, bytes, "a page table has one form only");
        }
    }
}

fn round_trip<T: PartialEq + Debug, E: Debug>(value: &T, encoded: &[u8], decode: impl Fn(&[u8]) -> Result<T, E>) {
    assert_eq!(&decode(encoded).expect("just written"), value);
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        round_trip(&manifest, &manifest.encode(), Manifest::decode);
    }
}

/// An identity.
pub fn identity(bytes: &[u8]) {
    if let Ok(identity) = Identity::decode(bytes) {
        round_trip(&identity, &identity.encode(), Identity::decode);
    }
}

/// A lease.
pub fn lease(bytes: &[u8]) {
    if let Ok(lease) = LeaseRecord::decode(bytes) {
        round_trip(&lease, &lease.encode(), LeaseRecord::decode);
    }
}

/// What a probe found.
pub fn probe(bytes: &[u8]) {
    if let Ok(probe) = ProbeRecord::decode(bytes) {
        round_trip(&probe, &probe.encode(), ProbeRecord::decode);
    }
}

/// Keys of objects and names of files.
pub fn key_names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(seq) = keys::parse_segment(text) {
        assert_eq!(keys::segment(seq), text);
    }
    let _ = keys::parse_file(text);
    if let Ok(name) = text.parse::<LtxName>() {
        assert_eq!(name.to_string(), text);
    }
}

/// The header of a database.
pub fn database_header(bytes: &[u8]) {
    let Ok(header) = DatabaseHeader::decode(bytes) else { return };
    let _ = (header.is_wal(), header.page_count_is_valid());
    for file_bytes in [0, 1, bytes.len() as u64, u64::MAX] {
        let _ = header.page_count(file_bytes);
    }
}

/// A WAL, as it is, with the checksum of its header made right, and with salts and checksums of its frames too.
pub fn wal(bytes: &[u8]) {
    check_wal(bytes);
    let mut signed = bytes.to_vec();
    let Some(head) = signed.first_chunk_mut::<WAL_HEADER_SIZE>() else { return };
    let big_endian = head[3] & 1 == 1;
    let mut sum = checksum((0, 0), &head[..24], big_endian);
    head[24..28].copy_from_slice(&sum.0.to_be_bytes());
    head[28..].copy_from_slice(&sum.1.to_be_bytes());
    check_wal(&signed);
    let Ok(header) = WalHeader::decode(&signed) else { return };
    for frame in signed[WAL_HEADER_SIZE..].chunks_exact_mut(frame_size(header.page_size)) {
        let (head, page) = frame.split_first_chunk_mut::<FRAME_HEADER_SIZE>().expect("a frame has a header");
        let Ok(decoded) = FrameHeader::decode(head) else { break };
        sum = decoded.expected_checksum(sum, page, big_endian);
        *head = FrameHeader { salt: header.salt, checksum: sum, ..decoded }.encode();
    }
    check_wal(&signed);
}

fn check_wal(bytes: &[u8]) {
    for frame in Frames::new(bytes, u32::MAX - 3, PageSize::MIN) {
        let _ = frame.map(|frame| (frame.is_intact((1, 2), true), frame.repeats(&frame)));
    }
    let Ok(mut scan) = WalScan::new(bytes) else { return };
    let Some(header) = scan.header().copied() else { return };
    let frames: Vec<_> = ValidFrames::new(header, &bytes[WAL_HEADER_SIZE..]).collect();
    let mut next = 1;
    for transaction in &mut scan {
        assert_eq!(transaction.first_frame, next, "transactions follow each other");
        assert!(transaction.pages.is_sorted_by(|a, b| a.header.pgno < b.header.pgno), "each page once");
        for frame in &transaction.pages {
            assert!((transaction.first_frame..=transaction.last_frame).contains(&frame.number));
            assert!(transaction.commit.contains(frame.header.pgno));
            assert_eq!(frames[frame.number as usize - 1], *frame);
        }
        assert_eq!(frames[transaction.last_frame as usize - 1].header.commit_size(), Some(transaction.commit));
        next = transaction.last_frame + 1;
    }
    assert!(frames[next as usize - 1..].iter().all(|frame| frame.header.commit == 0), "a transaction is left out");
}

/// The start of a wal-index, as it is and with two equal headers whose checksum is right, and a block of which the bytes are
/// repeated to its full length.
pub fn wal_index_file(bytes: &[u8]) {
    let _ = wal_index::decode(bytes);
    let mut signed = bytes.to_vec();
    if let Some(head) = signed.first_chunk_mut::<WAL_INDEX_SNAPSHOT_SIZE>() {
        let sum = checksum((0, 0), &head[..40], cfg!(target_endian = "big"));
        head[40..44].copy_from_slice(&sum.0.to_ne_bytes());
        head[44..48].copy_from_slice(&sum.1.to_ne_bytes());
        head.copy_within(..48, 48);
        let initialised = head[12] != 0;
        assert!(!matches!(wal_index::decode(&signed), Ok(None) if initialised), "nothing is wrong with it");
    }
    if bytes.is_empty() {
        return;
    }
    let block: Vec<u8> = bytes.iter().copied().cycle().take(WAL_INDEX_BLOCK_SIZE).collect();
    for number in [0, 1, u32::MAX / 4096] {
        let Ok(block) = Block::new(&block, number) else { continue };
        for frame in [1, 4062, 4063, u32::MAX] {
            let Some(pgno) = block.page_of(frame) else { continue };
            let found = block.find(pgno, frame).unwrap_or_default();
            assert!(found.is_none_or(|found| found <= frame && block.page_of(found) == Some(pgno)));
        }
    }
    let _ = wal_index::find_frame(PageNumber::FIRST, 1..=9000, |_| Ok(&block));
}

/// A rollback journal.
pub fn journal(bytes: &[u8]) {
    let _ = journal::super_journal_name(bytes);
    assert!(journal::super_journal_members(bytes).map(|path| path.len() + 1).sum::<usize>() <= bytes.len());
    let Ok(Some(journal)) = Journal::decode(bytes) else { return };
    let playback = journal.playback();
    assert!(playback.pages.is_sorted_by(|a, b| a.pgno < b.pgno), "each page once");
    assert!(playback.pages.iter().all(|record| record.page.len() == playback.page_size.bytes()));
    assert!(playback.page_size >= PageSize::MIN);
}
