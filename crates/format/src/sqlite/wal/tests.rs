//! WALs made frame by frame: where the committed transactions end, and what each one holds.

use super::*;
use proptest::prelude::*;

const PAGE_BYTES: u32 = 512;
const SALT: Salt = Salt(0x1234_5678, 0x9abc_def0);

/// A WAL of one page size, built frame by frame as a writer builds it.
struct Builder {
    bytes: Vec<u8>,
    checksum: (u32, u32),
    big_endian: bool,
}

impl Builder {
    fn new(big_endian: bool) -> Self {
        Self::with_version(big_endian, WAL_VERSION)
    }

    fn with_version(big_endian: bool, version: u32) -> Self {
        let words = [MAGIC | u32::from(big_endian), version, PAGE_BYTES, 7, SALT.0, SALT.1];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let sum = checksum((0, 0), &bytes, big_endian);
        bytes.extend([sum.0, sum.1].iter().flat_map(|word| word.to_be_bytes()));
        Self { bytes, checksum: sum, big_endian }
    }

    fn frame(&mut self, pgno: u32, commit: u32, fill: u8) -> &mut Self {
        self.frame_of(SALT, pgno, commit, fill)
    }

    fn frame_of(&mut self, salt: Salt, pgno: u32, commit: u32, fill: u8) -> &mut Self {
        let page = [fill; PAGE_BYTES as usize];
        let mut header = FrameHeader { pgno: PageNumber::new(pgno).unwrap(), commit, salt, checksum: (0, 0) };
        header.checksum = header.expected_checksum(self.checksum, &page, self.big_endian);
        self.checksum = header.checksum;
        self.bytes.extend(header.encode());
        self.bytes.extend(page);
        self
    }
}

/// `first..=last size: page=frame ..`, one transaction a line.
fn show(wal: &[u8]) -> String {
    let mut lines = Vec::new();
    for t in WalScan::new(wal).unwrap() {
        let pages: Vec<_> = t.pages.iter().map(|f| format!("{}={}", f.header.pgno, f.number)).collect();
        lines.push(format!("{}..={} {}: {}", t.first_frame, t.last_frame, t.commit, pages.join(" ")));
    }
    lines.join("\n")
}

/// Three transactions and an unfinished one.
fn sample(big_endian: bool) -> Vec<u8> {
    let mut wal = Builder::new(big_endian);
    wal.frame(1, 0, 1).frame(3, 0, 2).frame(2, 3, 3);
    wal.frame(2, 3, 4);
    wal.frame(3, 0, 5).frame(1, 0, 6).frame(3, 4, 7);
    wal.frame(1, 0, 8);
    wal.bytes
}

const SAMPLE: &str = "1..=3 3: 1=1 2=3 3=2\n4..=4 3: 2=4\n5..=7 4: 1=6 3=7";

#[test]
fn transactions_come_one_by_one_with_the_last_frame_of_each_page() {
    assert_eq!(show(&sample(false)), SAMPLE);
    assert_eq!(show(&sample(true)), SAMPLE);
}

#[test]
fn pages_beyond_the_commit_size_are_dropped() {
    let mut wal = Builder::new(false);
    wal.frame(9, 0, 1).frame(1, 0, 2).frame(3, 0, 3).frame(2, 2, 4);
    assert_eq!(show(&wal.bytes), "1..=4 2: 1=2 2=4");
}

#[test]
fn commit_frames_that_fill_a_sector_belong_to_their_transaction() {
    let mut wal = Builder::new(false);
    wal.frame(1, 0, 1).frame(2, 2, 9).frame(2, 2, 9).frame(2, 2, 9).frame(1, 2, 3).frame(1, 2, 4);
    assert_eq!(show(&wal.bytes), "1..=4 2: 1=1 2=2\n5..=5 2: 1=5\n6..=6 2: 1=6");
}

#[test]
fn a_repeated_commit_frame_that_is_torn_ends_the_log_behind_its_transaction() {
    let mut wal = Builder::new(false);
    wal.frame(2, 2, 9).frame(2, 2, 9);
    let mut bytes = wal.bytes;
    let last = bytes.len() - 1;
    for damage in [1, PAGE_BYTES as usize, PAGE_BYTES as usize + 1] {
        bytes[last - damage + 1] ^= 1;
        assert_eq!(show(&bytes), "1..=1 2: 2=1", "{damage} from the end");
        bytes[last - damage + 1] ^= 1;
    }
}

#[test]
fn frames_of_an_older_generation_end_the_log() {
    for old in [Salt(SALT.0.wrapping_sub(1), SALT.1), Salt(SALT.0, 1), Salt(0, 0)] {
        let mut wal = Builder::new(false);
        wal.frame(1, 1, 1).frame_of(old, 2, 2, 2).frame(3, 3, 3);
        assert_eq!(show(&wal.bytes), "1..=1 1: 1=1");
    }
}

#[test]
fn a_flipped_bit_ends_the_log_before_its_frame() {
    let wal = sample(false);
    let frame = frame_size(PageSize::new(PAGE_BYTES).unwrap());
    let ends = [3, 4, 7];
    let lines: Vec<_> = SAMPLE.lines().collect();
    for bit in 0..wal.len() * 8 {
        let mut damaged = wal.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let whole = (bit / 8).checked_sub(WAL_HEADER_SIZE).map_or(0, |place| place / frame);
        let kept = ends.iter().filter(|end| **end <= whole).count();
        assert_eq!(show(&damaged), lines[..kept].join("\n"), "bit {bit}");
    }
}

#[test]
fn a_torn_log_ends_before_the_torn_frame() {
    let wal = sample(false);
    let frame = frame_size(PageSize::new(PAGE_BYTES).unwrap());
    let lines: Vec<_> = SAMPLE.lines().collect();
    for len in 0..wal.len() {
        let whole = len.saturating_sub(WAL_HEADER_SIZE) / frame;
        let kept = [3, 4, 7].iter().filter(|end| **end <= whole).count();
        assert_eq!(show(&wal[..len]), lines[..kept].join("\n"), "{len} bytes");
    }
}

#[test]
fn only_a_valid_header_of_another_version_is_an_error() {
    let wal = Builder::with_version(false, WAL_VERSION + 1).bytes;
    assert_eq!(WalScan::new(&wal).unwrap_err().kind, ErrorKind::Version);
    assert_eq!(WalHeader::decode(&wal[..31]).unwrap_err().kind, ErrorKind::Short);
    assert!(WalScan::new(&wal[..31]).unwrap().header().is_none());
    let mut wal = sample(false);
    wal[0] = 0;
    assert_eq!(WalHeader::decode(&wal).unwrap_err().kind, ErrorKind::Magic);
    assert!(WalScan::new(&wal).unwrap().header().is_none());
}

#[test]
fn frames_are_taken_apart_from_the_middle_without_a_judgement() {
    let mut wal = sample(false);
    let page_size = PageSize::new(PAGE_BYTES).unwrap();
    // A wrong page and a wrong salt in frame 5.
    let place = frame_offset(5, page_size) as usize;
    wal[place + 100] ^= 1;
    wal[place + 9] ^= 1;
    let window = &wal[frame_offset(3, page_size) as usize..frame_offset(8, page_size) as usize + 100];
    let frames: Vec<_> = Frames::new(window, 3, page_size).map(|frame| frame.unwrap()).collect();
    let seen: Vec<_> = frames.iter().map(|f| (f.number, f.header.pgno.get(), f.header.commit)).collect();
    assert_eq!(seen, [(3, 2, 3), (4, 2, 3), (5, 3, 0), (6, 1, 0), (7, 3, 4)], "the torn frame 8 is left out");
    let intact: Vec<_> = frames.windows(2).map(|pair| pair[1].is_intact(pair[0].header.checksum, false)).collect();
    assert_eq!(intact, [true, false, true, true], "each frame by the checksum of the one before");

    wal[place..place + 4].fill(0);
    let mut frames = Frames::new(&wal[place..], 5, page_size);
    let error = frames.next().unwrap().unwrap_err();
    assert_eq!((error.kind, error.offset), (ErrorKind::PageNumber, frame_offset(5, page_size)));
    assert!(frames.next().is_none());
}

#[test]
fn the_last_frame_number_is_not_passed() {
    let wal = sample(false);
    let page_size = PageSize::new(PAGE_BYTES).unwrap();
    let mut frames = Frames::new(&wal[WAL_HEADER_SIZE..], u32::MAX - 1, page_size);
    assert_eq!(frames.next().unwrap().unwrap().number, u32::MAX - 1);
    assert_eq!(frames.next().unwrap().unwrap_err().kind, ErrorKind::Field);
    assert!(frames.next().is_none());
}

#[test]
fn frame_headers_are_encoded_as_they_were() {
    let wal = sample(false);
    for place in (WAL_HEADER_SIZE..wal.len()).step_by(frame_size(PageSize::MIN)) {
        let bytes = wal[place..].first_chunk().unwrap();
        assert_eq!(FrameHeader::decode(bytes).unwrap().encode(), *bytes);
    }
}

proptest! {
    #[test]
    fn random_transactions_come_back(
        transactions in prop::collection::vec((prop::collection::vec((1u32..20, any::<u8>()), 1..6), 1u32..20), 0..12),
        big_endian: bool,
    ) {
        let mut wal = Builder::new(big_endian);
        let mut expected = Vec::new();
        let mut number = 0;
        for (index, (pages, commit)) in transactions.iter().enumerate() {
            let first = number + 1;
            let mut newest = std::collections::BTreeMap::new();
            for (i, (pgno, fill)) in pages.iter().enumerate() {
                number += 1;
                let last = i + 1 == pages.len();
                // No commit frame repeats the one before it, so that none passes for padding.
                let fill = if last { index as u8 } else { *fill };
                wal.frame(*pgno, if last { *commit } else { 0 }, fill);
                newest.insert(*pgno, (number, fill));
            }
            newest.retain(|pgno, _| pgno <= commit);
            expected.push((first, number, *commit, newest.into_iter().collect::<Vec<_>>()));
        }
        let found: Vec<_> = WalScan::new(&wal.bytes).unwrap().map(|t| {
            let pages: Vec<_> = t.pages.iter().map(|f| (f.header.pgno.get(), (f.number, f.page[0]))).collect();
            (t.first_frame, t.last_frame, t.commit.get(), pages)
        }).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_are_taken_apart_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), first in 1u32..) {
        let _ = WalHeader::decode(&bytes);
        for transaction in WalScan::new(&bytes).into_iter().flatten() {
            let _ = transaction.pages.len();
        }
        for frame in Frames::new(&bytes, first, PageSize::MIN) {
            let _ = frame.map(|frame| frame.is_intact((0, 0), true));
        }
    }
}
