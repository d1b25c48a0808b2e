//! Wal-indexes made as SQLite makes them: what is read, what is believed, what is refused.

use super::*;
use proptest::prelude::*;

/// A wal-index in the order of the host, filled as SQLite fills it.
struct Builder {
    blocks: Vec<Vec<u8>>,
    pages: Vec<u32>,
}

impl Builder {
    fn new(pages: Vec<u32>) -> Self {
        let mut index = Self { blocks: vec![vec![0; at::BLOCK_SIZE]], pages: Vec::new() };
        for pgno in pages {
            index.append(pgno);
        }
        index
    }

    fn append(&mut self, pgno: u32) {
        self.pages.push(pgno);
        let frame = self.pages.len() as u32;
        let number = block_of(frame);
        self.blocks.resize(number as usize + 1, vec![0; at::BLOCK_SIZE]);
        let block = &mut self.blocks[number as usize];
        let (start, before) =
            if number == 0 { (at::SNAPSHOT_SIZE, 0) } else { (0, at::FRAMES_FIRST + (number - 1) * at::FRAMES) };
        let entry = frame - before;
        let place = start + 4 * (entry as usize - 1);
        block[place..place + 4].copy_from_slice(&pgno.to_ne_bytes());
        let mut slot = (pgno * at::HASH_PRIME) as usize % at::HASH_SLOTS;
        while block[at::HASH + 2 * slot..][..2] != [0, 0] {
            slot = (slot + 1) % at::HASH_SLOTS;
        }
        block[at::HASH + 2 * slot..][..2].copy_from_slice(&(entry as u16).to_ne_bytes());
    }

    fn find(&self, pgno: u32, frames: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let pgno = PageNumber::new(pgno).unwrap();
        find_frame(pgno, frames, |number| Ok(&self.blocks[number as usize])).unwrap()
    }

    fn find_by_search(&self, pgno: u32, frames: std::ops::RangeInclusive<u32>) -> Option<u32> {
        frames.filter(|frame| *frame > 0 && self.pages[*frame as usize - 1] == pgno).max()
    }

    /// Fills in both headers.
    fn headers(&mut self, change: impl FnOnce(&mut [u8])) -> &[u8] {
        let mut header = vec![0; at::HEADER_SIZE];
        let mut word = |place: usize, value: u32| header[place..place + 4].copy_from_slice(&value.to_ne_bytes());
        word(at::VERSION, WAL_VERSION);
        word(at::CHANGE, 42);
        word(at::MAX_FRAME, self.pages.len() as u32);
        word(at::PAGE_COUNT, 9);
        word(at::FRAME_CHECKSUM, 0x11);
        word(at::FRAME_CHECKSUM + 4, 0x22);
        header[at::SALT..at::SALT + 8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        header[at::PAGE_SIZE..at::PAGE_SIZE + 2].copy_from_slice(&4096u16.to_ne_bytes());
        header[at::IS_INIT] = 1;
        change(&mut header);
        let sum = checksum((0, 0), &header[..at::CHECKSUM], cfg!(target_endian = "big"));
        header[at::CHECKSUM..][..4].copy_from_slice(&sum.0.to_ne_bytes());
        header[at::CHECKSUM + 4..][..4].copy_from_slice(&sum.1.to_ne_bytes());
        self.blocks[0][..at::HEADER_SIZE].copy_from_slice(&header);
        self.blocks[0][at::COPY..at::COPY + at::HEADER_SIZE].copy_from_slice(&header);
        for (mark, value) in [0, 7, u32::MAX, u32::MAX, 3].iter().enumerate() {
            self.blocks[0][at::READ_MARKS + 4 * mark..][..4].copy_from_slice(&u32::to_ne_bytes(*value));
        }
        self.blocks[0][at::BACKFILL..][..4].copy_from_slice(&5u32.to_ne_bytes());
        self.blocks[0][at::BACKFILL_ATTEMPTED..][..4].copy_from_slice(&6u32.to_ne_bytes());
        &self.blocks[0]
    }
}

#[test]
fn every_field_is_read() {
    let mut index = Builder::new(vec![1, 2, 3, 4, 5, 6, 7, 8]);
    let WalIndex { header, checkpoint } = decode(index.headers(|_| ())).unwrap().unwrap();
    assert_eq!(
        header,
        WalIndexHeader {
            change: 42,
            page_size: PageSize::new(4096),
            max_frame: 8,
            page_count: 9,
            frame_checksum: (0x11, 0x22),
            salt: Salt(0x0102_0304, 0x0506_0708),
            big_endian_checksums: false,
        }
    );
    assert_eq!(header.size(), PageCount(9));
    let read_marks = [0, 7, READ_MARK_UNUSED, READ_MARK_UNUSED, 3];
    assert_eq!(checkpoint, CheckpointInfo { backfill: 5, read_marks, backfill_attempted: 6 });
    let largest = index.headers(|header| header[at::PAGE_SIZE..][..2].copy_from_slice(&1u16.to_ne_bytes()));
    assert_eq!(decode(largest).unwrap().unwrap().header.page_size, Some(PageSize::MAX));
}

#[test]
fn what_cannot_be_believed_is_none_and_what_cannot_be_read_is_an_error() {
    let mut index = Builder::new(vec![1]);
    assert_eq!(decode(index.headers(|header| header[at::IS_INIT] = 0)), Ok(None));
    index.headers(|_| ());
    for byte in (0..at::HEADER_SIZE).filter(|byte| *byte != at::IS_INIT) {
        for copy in [0, at::COPY] {
            index.blocks[0][copy + byte] ^= 4;
        }
        assert_eq!(decode(&index.blocks[0]), Ok(None), "byte {byte} of both copies: wrong checksum");
        index.blocks[0][byte] ^= 4;
        assert_eq!(decode(&index.blocks[0]), Ok(None), "byte {byte} of the second copy");
        index.blocks[0][at::COPY + byte] ^= 4;
    }
    let version = decode(index.headers(|header| header[at::VERSION] ^= 1));
    assert_eq!(version.unwrap_err().kind, ErrorKind::Version);
    let size = decode(index.headers(|header| header[at::PAGE_SIZE..][..2].copy_from_slice(&1000u16.to_ne_bytes())));
    assert_eq!(size.unwrap_err().kind, ErrorKind::PageSize);
}

#[test]
fn an_index_recovered_from_an_empty_wal_knows_no_page_size() {
    let mut index = Builder::new(Vec::new());
    let zero = |header: &mut [u8]| header[at::PAGE_SIZE..][..2].fill(0);
    let header = decode(index.headers(zero)).unwrap().unwrap().header;
    assert_eq!((header.page_size, header.max_frame), (None, 0));
    let mut index = Builder::new(vec![1]);
    assert_eq!(decode(index.headers(zero)).unwrap_err().kind, ErrorKind::PageSize, "one with frames does");
}

#[test]
fn blocks_of_the_specification() {
    let blocks = [1, 4062, 4063, 8158, 8159, 12254, 12255].map(block_of);
    assert_eq!(blocks, [0, 0, 1, 1, 2, 2, 3]);
    assert!(Block::new(&[0; at::BLOCK_SIZE], block_of(u32::MAX)).is_ok());
    assert_eq!(Block::new(&[0; at::BLOCK_SIZE], u32::MAX).unwrap_err().kind, ErrorKind::Field);
}

#[test]
fn the_newest_frame_is_found_across_blocks() {
    // Some pages in every block, some in one only, and runs of neighbours in the hash table.
    let pages: Vec<u32> =
        (0..13_000u32).map(|i| if i % 3 == 0 { i % 50 + 1 } else { i * 8192 % 70_001 + 60 }).collect();
    let index = Builder::new(pages);
    for (number, bytes) in (0..).zip(&index.blocks) {
        let block = Block::new(bytes, number).unwrap();
        for frame in 1..=13_000 {
            let known = (block_of(frame) == number).then(|| PageNumber::new(index.pages[frame as usize - 1]).unwrap());
            assert_eq!(block.page_of(frame), known, "frame {frame} in block {number}");
        }
        assert_eq!(block.page_of(0), None);
        assert_eq!(block.page_of(u32::MAX), None);
    }
    for range in [1..=13_000, 1..=1, 0..=4062, 1..=4063, 4063..=8158, 8158..=8159, 5000..=12_999, 0..=0] {
        for pgno in (1..60).chain((60..70_100).step_by(997)) {
            let expected = index.find_by_search(pgno, range.clone());
            assert_eq!(index.find(pgno, range.clone()), expected, "page {pgno} in {range:?}");
        }
    }
}

#[test]
fn a_hash_table_without_a_free_slot_is_refused() {
    let bytes = [0xff; at::BLOCK_SIZE];
    let block = Block::new(&bytes, 0).unwrap();
    assert_eq!(block.find(PageNumber::FIRST, u32::MAX).unwrap_err().kind, ErrorKind::Index);
}

proptest! {
    #[test]
    fn any_bytes_are_taken_apart_without_panic(
        seed in prop::collection::vec(any::<u8>(), 1..600),
        number: u32,
        pgno in 1u32..,
        frames: (u32, u32),
    ) {
        let bytes: Vec<u8> = seed.iter().copied().cycle().take(at::BLOCK_SIZE).collect();
        let _ = decode(&bytes);
        let _ = decode(&seed);
        let pgno = PageNumber::new(pgno).unwrap();
        let block = Block::new(&bytes, number).or_else(|_| Block::new(&bytes, number % 1000)).unwrap();
        let _ = (block.page_of(frames.0), block.find(pgno, frames.1));
        let _ = find_frame(pgno, frames.0..=frames.0.saturating_add(9999), |_| Ok(&bytes));
        let _ = find_frame(pgno, 1..=frames.1 % 9999, |_| Ok(&seed));
    }
}
