//! Rollback journals made record by record: what is played back, and where the playback ends.

use super::*;
use proptest::prelude::*;

const PAGE_BYTES: u32 = 512;

struct Builder {
    bytes: Vec<u8>,
    sector: u32,
    nonce: u32,
}

impl Builder {
    fn new(sector: u32, original: u32, records: u32) -> Self {
        let mut journal = Self { bytes: Vec::new(), sector, nonce: 99 };
        journal.segment(original, records);
        journal
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(self.sector as usize);
        self.bytes.resize(len, 0);
    }

    fn segment(&mut self, original: u32, records: u32) -> &mut Self {
        self.pad();
        self.nonce += 1;
        self.bytes.extend(at::MAGIC);
        for word in [records, self.nonce, original, self.sector, PAGE_BYTES] {
            self.bytes.extend(word.to_be_bytes());
        }
        self.pad();
        self
    }

    fn record(&mut self, pgno: u32, fill: u8) -> &mut Self {
        let page = [fill; PAGE_BYTES as usize];
        self.bytes.extend(pgno.to_be_bytes());
        self.bytes.extend(page);
        self.bytes.extend(record_checksum(self.nonce, &page).to_be_bytes());
        self
    }

    fn super_journal(&mut self, path: &[u8], sum: u32) -> &mut Self {
        self.pad();
        self.bytes.extend(2_097_153u32.to_be_bytes());
        self.bytes.extend(path);
        self.bytes.extend((path.len() as u32).to_be_bytes());
        self.bytes.extend(sum.to_be_bytes());
        self.bytes.extend(at::MAGIC);
        self
    }
}

/// `size: page=fill ..` of what would be played back.
fn show(journal: &[u8]) -> String {
    let Some(journal) = Journal::decode(journal).unwrap() else { return "nothing".to_owned() };
    let playback = journal.playback();
    let pages: Vec<_> = playback.pages.iter().map(|r| format!(" {}={}", r.pgno, r.page[0])).collect();
    format!("{}:{}", playback.original, pages.concat())
}

#[test]
fn segments_are_played_back_in_order() {
    let mut journal = Builder::new(512, 9, 2);
    journal.record(5, 1).record(2, 2).segment(9, 1).record(7, 3);
    assert_eq!(show(&journal.bytes), "9: 2=2 5=1 7=3");
    journal.segment(9, 1).record(5, 4);
    assert_eq!(show(&journal.bytes), "9: 2=2 5=4 7=3", "the last record of a page is written last");
}

#[test]
fn sizes_come_from_the_first_header() {
    let mut journal = Builder::new(1024, 9, 1);
    journal.record(5, 1).segment(3, 1).record(6, 2);
    let second = 2048;
    assert_eq!(journal.bytes[second..second + 8], at::MAGIC);
    journal.bytes[second + at::SECTOR_SIZE..second + at::PAGE_SIZE + 4].fill(0xee);
    assert_eq!(show(&journal.bytes), "9: 5=1 6=2");
}

#[test]
fn pages_that_the_database_did_not_have_are_left_out_unread() {
    let mut journal = Builder::new(512, 4, 3);
    journal.record(4, 1).record(5, 2);
    *journal.bytes.last_mut().unwrap() ^= 1;
    journal.record(1, 3);
    assert_eq!(show(&journal.bytes), "4: 1=3 4=1");
}

#[test]
fn records_that_end_the_playback() {
    for bad in [0, PageSize::new(PAGE_BYTES).unwrap().lock_page().get()] {
        let mut journal = Builder::new(512, u32::MAX, 3);
        journal.record(1, 1).record(bad, 2).record(3, 3).segment(9, 1).record(4, 4);
        assert_eq!(show(&journal.bytes), "4294967295: 1=1", "page {bad}");
    }
    let mut journal = Builder::new(512, 9, u32::MAX);
    journal.record(1, 1).record(2, 2).record(3, 3);
    assert_eq!(show(&journal.bytes), "9: 1=1 2=2 3=3", "records until the end of the file");
    journal.bytes.pop();
    assert_eq!(show(&journal.bytes), "9: 1=1 2=2", "the last record is torn");
    let mut journal = Builder::new(512, 9, 5);
    journal.record(1, 1);
    assert_eq!(show(&journal.bytes), "9: 1=1", "fewer records than promised");
}

#[test]
fn a_segment_without_records_is_followed_by_the_next() {
    let mut journal = Builder::new(512, 9, 0);
    journal.segment(9, 1).record(1, 1);
    assert_eq!(show(&journal.bytes), "9: 1=1");
}

#[test]
fn finalised_and_foreign_journals_hold_nothing() {
    let mut journal = Builder::new(512, 9, 1);
    let whole = journal.record(1, 1).bytes.clone();
    assert_eq!(show(&[]), "nothing");
    assert_eq!(show(&whole[..511]), "nothing", "no whole sector");
    assert_eq!(show(&whole[..512]), "9:");
    let mut zeroed = whole.clone();
    zeroed[..28].fill(0);
    assert_eq!(show(&zeroed), "nothing", "finalised by PERSIST");
    for (place, value) in
        [(at::SECTOR_SIZE, 16), (at::SECTOR_SIZE, 513), (at::SECTOR_SIZE, 131_072), (at::PAGE_SIZE, 256)]
    {
        let mut other = whole.clone();
        other[place..place + 4].copy_from_slice(&u32::to_be_bytes(value));
        assert_eq!(show(&other), "nothing", "{value} at {place}");
    }
    let mut old = whole;
    old[at::PAGE_SIZE..at::PAGE_SIZE + 4].fill(0);
    assert_eq!(Journal::decode(&old).unwrap_err().kind, ErrorKind::PageSize);
}

#[test]
fn a_flipped_bit_that_the_checksum_sees_ends_the_playback_before_its_record() {
    let mut journal = Builder::new(512, 9, 3);
    journal.record(1, 1).record(2, 2).record(3, 3);
    let second = 512 + 520;
    for place in [second, second + 4 + 312, second + 4 + 112, second + 4 + 512, second + 519] {
        let mut damaged = journal.bytes.clone();
        damaged[place] ^= 0x80;
        // A page number with its high bit set lies beyond the database, and is skipped before its checksum is looked at.
        let expected = if place == second { "9: 1=1 3=3" } else { "9: 1=1" };
        assert_eq!(show(&damaged), expected, "byte {place}");
    }
}

#[test]
fn the_super_journal_is_named_by_either_kind_of_char() {
    let path = "/daten/größe.db-mj00000000900".as_bytes();
    let unsigned: u32 = path.iter().map(|byte| u32::from(*byte)).sum();
    let signed: i32 = path.iter().map(|byte| i32::from(*byte as i8)).sum();
    assert_ne!(unsigned, signed as u32);
    for sum in [unsigned, signed as u32] {
        let mut journal = Builder::new(512, 9, 1);
        journal.record(1, 1).super_journal(path, sum);
        let named = Journal::decode(&journal.bytes).unwrap().unwrap().super_journal;
        assert_eq!(named, Some(SuperJournalName { path, pgno: Some(2_097_153) }));
    }
    let mut journal = Builder::new(512, 9, 1);
    journal.record(1, 1).super_journal(path, unsigned + 1);
    assert_eq!(super_journal_name(&journal.bytes), None);
    let mut empty = Builder::new(512, 9, 0);
    assert_eq!(super_journal_name(&empty.super_journal(b"", 0).bytes), None);
    assert_eq!(super_journal_name(&at::MAGIC), None);
}

#[test]
fn members_of_a_super_journal() {
    let members = |bytes: &'static [u8]| super_journal_members(bytes).map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert_eq!(members(b"/a-journal\0/b-journal\0"), [b"/a-journal", b"/b-journal"]);
    assert_eq!(members(b"/a-journal\0/b-jou"), [b"/a-journal"]);
    assert!(members(b"/a-jou").is_empty() && members(b"").is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_taken_apart_without_panic(
        words in prop::collection::vec(prop_oneof![Just(0u32), Just(512), Just(u32::MAX), 0u32..70_000, any::<u32>()], 5),
        rest in prop::collection::vec(any::<u8>(), 0..4000),
    ) {
        let mut bytes = at::MAGIC.to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        bytes.extend(&rest);
        for end in [bytes.len(), bytes.len() / 2, 27] {
            let journal = Journal::decode(&bytes[..end.min(bytes.len())]);
            let _ = journal.map(|journal| journal.map(|journal| journal.playback().pages.len()));
        }
        bytes.extend(at::MAGIC);
        let _ = (super_journal_name(&bytes), super_journal_members(&bytes).count(), Journal::decode(&rest));
    }

    #[test]
    fn a_journal_cut_anywhere_plays_back_whole_records(cut in 0usize..4000) {
        let mut journal = Builder::new(1024, 9, 2);
        journal.record(1, 1).record(2, 2).segment(9, 2).record(3, 3).record(4, 4);
        let cut = cut.min(journal.bytes.len());
        let parts = [" 1=1", " 2=2", " 3=3", " 4=4"];
        // The second header, at 3072, counts once its sector is whole.
        let ends = [1024 + 520, 1024 + 1040, 4096 + 520, 4096 + 1040];
        let records = ends.iter().filter(|end| **end <= cut).count();
        let expected = if cut < 512 { "nothing".to_owned() } else { format!("9:{}", parts[..records].concat()) };
        prop_assert_eq!(show(&journal.bytes[..cut]), expected);
    }
}
