//! Our own formats: golden files of every version, round trips, and the refusal of whatever is damaged.
//!
//! The files in `testdata/formats` stay for ever: a program that can no longer read one of them has broken a promise. With
//! `RHYOLITE_WRITE_GOLDEN=1` those that are missing are written.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::error::{DecodeError, ErrorKind};
use crate::identity::Identity;
use crate::lease::LeaseRecord;
use crate::lost::LostBranch;
use crate::manifest::Manifest;
use crate::probe::ProbeRecord;
use crate::samples::{self, checksum, seq, txid};
use crate::segment::{self, ENTRY_SIZE, FOOTER_SIZE, HEADER_SIZE, Segment, SegmentEntry, SegmentHeader, SegmentKind};
use crate::state::backlog::{self, BacklogHeader};
use crate::state::page_table::{self, PageTableHeader, ReadTableError};
use crate::state::parked::Parked;
use crate::state::{LocalState, WalPosition};
use crate::types::{Epoch, Lineage, Nonce, PageCount, PageSize, Pos, Seq, Timestamp};

/// The bytes of the golden file `name`; `bytes` are what this program writes.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats").join(name);
    if std::env::var_os("RHYOLITE_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn table_bytes(header: &PageTableHeader, entries: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    page_table::write(header, entries, &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, page_table::file_size(header.count));
    bytes
}

fn read_table(bytes: &[u8]) -> Result<(PageTableHeader, Vec<u64>), DecodeError> {
    page_table::read(bytes).map_err(|e| match e {
        ReadTableError::Decode(e) => e,
        ReadTableError::Io(e) => panic!("reading a slice: {e}"),
    })
}

#[test]
fn golden_files_are_written_and_read_back() {
    for (name, header, entries) in [
        ("segment-log.v1", samples::log_header(), samples::log_entries()),
        ("segment-fence.v1", samples::log_header(), Vec::new()),
        ("segment-bundle.v1", samples::bundle_header(), samples::bundle_entries()),
    ] {
        let bytes = samples::segment(&header, &entries);
        assert_eq!(golden(name, &bytes), bytes, "{name}");
        assert_eq!(Segment::decode(&bytes), Ok(Segment { header, entries }), "{name}");
    }
    let state = samples::local_state();
    assert_eq!(golden("state.v1", &state.encode()), state.encode());
    assert_eq!(LocalState::decode(&state.encode()), Ok(state));
    let parked = samples::parked();
    assert_eq!(golden("parked.v1", &parked.encode()), parked.encode());
    assert_eq!(Parked::decode(&parked.encode()), Ok(parked));
    let header = samples::backlog();
    let entry = samples::backlog_entry(1);
    let bytes = [&header.encode()[..], &entry.encode(header.generation, backlog::HEADER_SIZE as u64)].concat();
    assert_eq!(golden("backlog.v1", &bytes), bytes);
    assert_eq!(BacklogHeader::decode(&bytes), Ok(header.clone()));
    assert_eq!(backlog::after(&header, &bytes, header.base), Some(vec![entry]));
    let (header, entries) = samples::page_table();
    let bytes = table_bytes(&header, &entries);
    assert_eq!(golden("pages.v1", &bytes), bytes);
    assert_eq!(read_table(&bytes), Ok((header, entries)));
    let identity = samples::identity();
    assert_eq!(golden("id.v1.json", &identity.encode()), identity.encode());
    assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
    let lease = samples::lease();
    assert_eq!(golden("lease.v1.json", &lease.encode()), lease.encode());
    assert_eq!(LeaseRecord::decode(&lease.encode()), Ok(lease.clone()));
    let unnamed = LeaseRecord { process: None, ..lease };
    assert_eq!(golden("lease-unnamed.v1.json", &unnamed.encode()), unnamed.encode());
    assert_eq!(LeaseRecord::decode(&unnamed.encode()), Ok(unnamed));
    let probe = samples::probe();
    assert_eq!(golden("probe.v1.json", &probe.encode()), probe.encode());
    assert_eq!(ProbeRecord::decode(&probe.encode()), Ok(probe));
    let lost = samples::lost();
    assert_eq!(golden("lost.v1.json", &lost.encode()), lost.encode());
    assert_eq!(LostBranch::decode(&lost.encode()), Ok(lost));
    let manifest = samples::manifest();
    assert_eq!(golden("manifest.v1.json", &manifest.encode()), manifest.encode());
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
}

/// Every truncation is refused, and every change of one byte that `covered` accepts.
fn check_damage<T: PartialEq>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    covered: impl Fn(usize) -> bool,
) {
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "cut to {len} of {}", bytes.len());
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(decode(&longer).is_err(), "one byte more");
    let mut damaged = bytes.to_vec();
    for at in (0..bytes.len()).filter(|at| covered(*at)) {
        for mask in [1, 0x80, 0xff] {
            damaged[at] ^= mask;
            assert!(decode(&damaged).is_err(), "byte {at} ^ {mask:#x}");
            damaged[at] ^= mask;
        }
    }
}

#[test]
fn damage_is_refused() {
    for (header, entries) in [
        (samples::log_header(), samples::log_entries()),
        (samples::log_header(), Vec::new()),
        (samples::bundle_header(), samples::bundle_entries()),
    ] {
        let bodies = HEADER_SIZE..entries.last().map_or(HEADER_SIZE, |e| e.range().end as usize);
        // LTX files carry their own checksums.
        check_damage(&samples::segment(&header, &entries), Segment::decode, |at| !bodies.contains(&at));
    }
    check_damage(&samples::local_state().encode(), LocalState::decode, |_| true);
    check_damage(&samples::parked().encode(), Parked::decode, |_| true);
    let (header, entries) = samples::page_table();
    check_damage(&table_bytes(&header, &entries), read_table, |_| true);
    for (bytes, decode) in [
        (samples::identity().encode(), (|b| Identity::decode(b).map(drop)) as fn(&[u8]) -> Result<(), DecodeError>),
        (samples::lease().encode(), |b| LeaseRecord::decode(b).map(drop)),
        (samples::probe().encode(), |b| ProbeRecord::decode(b).map(drop)),
        (samples::lost().encode(), |b| LostBranch::decode(b).map(drop)),
        (samples::manifest().encode(), |b| Manifest::decode(b).map(drop)),
    ] {
        // The last byte is a line feed, without which the text is the same.
        for len in 0..bytes.len() - 1 {
            assert!(decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(decode(&[&bytes[..], b"x"].concat()).is_err(), "one byte more");
    }
}

#[test]
fn unknown_versions_are_refused_as_such() {
    let mut bytes = samples::segment(&samples::log_header(), &[]);
    bytes[4] = 2;
    assert_eq!(Segment::decode(&bytes).unwrap_err().kind, ErrorKind::Version);
    let mut bytes = samples::local_state().encode();
    bytes[4] = 9;
    assert_eq!(LocalState::decode(&bytes).unwrap_err().kind, ErrorKind::Version);
    let (header, entries) = samples::page_table();
    let mut bytes = table_bytes(&header, &entries);
    bytes[4] = 0;
    assert_eq!(read_table(&bytes).unwrap_err().kind, ErrorKind::Version);
    for (text, kind) in [
        (r#"{"format":2}"#, ErrorKind::Version),
        (r#" { "format" : 10 , "new": 1}"#, ErrorKind::Version),
        (r#"{"format":99999999999999999999999}"#, ErrorKind::Version),
        (r#"{"lineage":"x","format":1}"#, ErrorKind::Syntax),
        (r#"{"format":"1"}"#, ErrorKind::Syntax),
        (r#"{"format":1.5}"#, ErrorKind::Field),
        (r#"{"format":1}"#, ErrorKind::Field),
        (r#"{"format":1"#, ErrorKind::Short),
        (r#"{"form"#, ErrorKind::Short),
        ("", ErrorKind::Short),
        ("[]", ErrorKind::Syntax),
    ] {
        for error in [
            Identity::decode(text.as_bytes()).unwrap_err(),
            LeaseRecord::decode(text.as_bytes()).unwrap_err(),
            ProbeRecord::decode(text.as_bytes()).unwrap_err(),
            Manifest::decode(text.as_bytes()).unwrap_err(),
        ] {
            assert_eq!(error.kind, kind, "{text}: {error}");
        }
    }
}

#[test]
fn json_is_strict() {
    let text = String::from_utf8(samples::identity().encode()).unwrap();
    for (from, to) in [
        ("\"page_size\":4096", "\"page_size\":4096,\"colour\":1"),
        ("\"page_size\":4096", "\"page_size\":4096,\"page_size\":4096"),
        ("\"page_size\":4096", "\"page_size\":4095"),
        ("\"page_size\":4096", "\"page_size\":null"),
        ("4c4c", "4c4x"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        let error = Identity::decode(bad.as_bytes()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Field, "{bad}: {error}");
    }
    let huge = format!("{}{}", text, " ".repeat(crate::identity::SIZE_MAX));
    assert_eq!(Identity::decode(huge.as_bytes()).unwrap_err().kind, ErrorKind::Field);
}

#[test]
fn a_probe_that_contradicts_itself_is_refused() {
    let text = String::from_utf8(samples::probe().encode()).unwrap();
    for (from, to) in [
        ("s3://backups/app", ""),
        ("swap-race", ""),
        ("\"backup\":true,\"fencing\":false", "\"backup\":false,\"fencing\":true"),
        ("\"backup\":true", "\"backup\":1"),
        ("\"failed\":[\"create-race\",\"swap-race\"]", "\"failed\":\"none\""),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        assert_eq!(ProbeRecord::decode(bad.as_bytes()).unwrap_err().kind, ErrorKind::Field, "{bad}");
    }
    let worse = text.replacen("true", "false", 1).replacen("[\"create-race\",\"swap-race\"]", "[]", 1);
    assert_eq!(ProbeRecord::decode(worse.as_bytes()).unwrap_err().kind, ErrorKind::Field);
}

#[test]
fn a_lease_without_meaning_is_refused() {
    let text = String::from_utf8(samples::lease().encode()).unwrap();
    let long = format!("\"{}\"", "x".repeat(1025));
    for (from, to) in [
        ("\"ttl_ms\":10000", "\"ttl_ms\":0"),
        ("\"host-a\"", "\"\""),
        ("\"host-a\"", &long),
        ("\"http://10.0.0.1:7391\"", "\"\""),
        ("\"held\"", "\"lost\""),
        ("\"epoch\":\"0000000000000002\"", "\"epoch\":\"0000000000000000\""),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text, "{from}");
        assert_eq!(LeaseRecord::decode(bad.as_bytes()).unwrap_err().kind, ErrorKind::Field, "{bad}");
    }
}

/// Changes one entry of a finished segment, makes the CRC right again and decodes: the rule must refuse what the CRC cannot.
fn changed_entry(entries: Vec<SegmentEntry>, kind: SegmentKind, change: impl Fn(&mut [SegmentEntry])) -> ErrorKind {
    let header = SegmentHeader { kind, ..samples::log_header() };
    let valid = samples::segment(&SegmentHeader { kind: SegmentKind::Log, ..header.clone() }, &entries);
    let index = segment::decode_footer(&valid, valid.len() as u64).unwrap();
    let mut changed = entries;
    change(&mut changed);
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&valid[HEADER_SIZE..index.start as usize]);
    segment::encode_unchecked(&changed, &header, index.start, &mut bytes);
    Segment::decode(&bytes).unwrap_err().kind
}

#[test]
fn segment_rules() {
    let log = |change: fn(&mut [SegmentEntry])| changed_entry(samples::log_entries(), SegmentKind::Log, change);
    assert_eq!(log(|e| e[1].min_txid = txid(5)), ErrorKind::Gap);
    assert_eq!(log(|e| (e[1].min_txid, e[1].max_txid) = (txid(7), txid(7))), ErrorKind::Gap);
    assert_eq!(log(|e| e[1].max_txid = txid(5)), ErrorKind::Txid);
    assert_eq!(log(|e| e[1].pre_apply = Some(checksum(9))), ErrorKind::Chain);
    assert_eq!(log(|e| e[1].pre_apply = None), ErrorKind::PreChecksum);
    assert_eq!(log(|e| e[1].page_size = PageSize::MIN), ErrorKind::PageSize);
    assert_eq!(log(|e| e[1].offset += 1), ErrorKind::Index);
    assert_eq!(log(|e| e[1].len -= 1), ErrorKind::Index);
    assert_eq!(log(|e| e[1].len = u64::MAX), ErrorKind::Index);
    assert_eq!(log(|e| e[1].pages = 13), ErrorKind::Commit);
    assert_eq!(log(|e| e[1].commit = PageCount(0)), ErrorKind::PostChecksum);
    assert_eq!(log(|e| e[2].max_txid = txid(6)), ErrorKind::Txid, "a snapshot must get ahead");
    assert_eq!(log(|e| e[2].pages = 11), ErrorKind::SnapshotPages);
    assert_eq!(log(|e| e[2].pre_apply = Some(checksum(6))), ErrorKind::PreChecksum);
    assert_eq!(log(|e| e[0].offset += 1), ErrorKind::Index);
    let bundle = SegmentKind::Bundle { last_seq: seq(9) };
    assert_eq!(changed_entry(samples::log_entries(), bundle, |_| ()), ErrorKind::Txid, "a snapshot in a bundle");
    assert_eq!(changed_entry(Vec::new(), bundle, |_| ()), ErrorKind::Index, "an empty bundle");
}

#[test]
fn the_tail_of_a_segment_is_enough() {
    let header = samples::log_header();
    let bytes = samples::segment(&header, &samples::log_entries());
    let size = bytes.len() as u64;
    let tail = &bytes[bytes.len() - FOOTER_SIZE..];
    let index = segment::decode_footer(tail, size).unwrap();
    assert_eq!(index.end, size - FOOTER_SIZE as u64);
    let entries = segment::decode_index(&header, &bytes[index.start as usize..], size).unwrap();
    assert_eq!(entries, samples::log_entries());
    let short = segment::decode_index(&header, &bytes[index.start as usize + ENTRY_SIZE..], size);
    assert_eq!(short.unwrap_err().kind, ErrorKind::Short);
    let other = SegmentHeader { nonce: Nonce([0; 16]), ..header };
    let swapped = segment::decode_index(&other, &bytes[index.start as usize..], size);
    assert_eq!(swapped.unwrap_err().kind, ErrorKind::FileChecksum, "a tail under another header");
}

#[test]
fn a_claimed_count_does_not_allocate() {
    let mut bytes = samples::segment(&samples::log_header(), &[]);
    let at = bytes.len() - FOOTER_SIZE + 8;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(Segment::decode(&bytes).unwrap_err().kind, ErrorKind::Index);
    let (header, _) = samples::page_table();
    let huge = PageTableHeader { count: PageCount(u32::MAX), ..header };
    assert_eq!(read_table(&huge.encode()).unwrap_err().kind, ErrorKind::Short);
}

fn any_pos() -> impl Strategy<Value = Pos> {
    (1..u64::MAX, any::<u64>()).prop_map(|(n, c)| Pos { txid: txid(n), checksum: checksum(c) })
}

fn any_page_size() -> impl Strategy<Value = PageSize> {
    (9..=16u32).prop_map(|bits| PageSize::new(1 << bits).unwrap())
}

fn any_state() -> impl Strategy<Value = LocalState> {
    let place = (any::<(u32, u32)>(), 1..=u32::MAX, any::<[u8; 24]>());
    let wal = proptest::option::of(place).prop_map(|w| {
        w.map(|(salt, frame, frame_header)| WalPosition {
            salt: crate::sqlite::wal::Salt(salt.0, salt.1),
            frame,
            frame_header,
        })
    });
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), 1..=u64::MAX, 1..=u64::MAX);
    let size = (proptest::option::of(any_page_size()), any::<u32>());
    (proptest::option::of(any_pos()), any::<bool>(), wal, ids, size).prop_map(|(pos, durable, wal, ids, size)| {
        LocalState {
            lineage: Lineage(ids.0),
            pos,
            durable: pos.filter(|_| durable),
            page_size: size.0,
            commit: PageCount(size.1),
            wal,
            epoch: Epoch::new(ids.2).unwrap(),
            next_seq: Seq::new(ids.3).unwrap(),
            boot_id: ids.1,
        }
    })
}

/// A valid list of entries: commits, with a snapshot where `true` is drawn.
fn any_entries() -> impl Strategy<Value = Vec<SegmentEntry>> {
    (2..1000u64, proptest::collection::vec((any::<bool>(), 131..400u64, any::<i64>()), 0..20)).prop_map(
        |(first, items)| {
            let mut offset = HEADER_SIZE as u64;
            let mut entries = Vec::new();
            for (i, (snapshot, len, time)) in items.into_iter().enumerate() {
                let n = first + i as u64;
                let base =
                    if snapshot { samples::snapshot_entry(n, offset, len) } else { samples::entry(n, offset, len) };
                entries.push(SegmentEntry { timestamp: Timestamp(time), ..base });
                offset += len;
            }
            entries
        },
    )
}

proptest! {
    #[test]
    fn states_come_back(state in any_state()) {
        prop_assert_eq!(LocalState::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn segments_come_back(entries in any_entries()) {
        let header = samples::log_header();
        let bytes = samples::segment(&header, &entries);
        prop_assert_eq!(Segment::decode(&bytes), Ok(Segment { header, entries }));
    }

    #[test]
    fn tables_come_back(values in proptest::collection::vec(any::<Option<u64>>(), 0..20_000)) {
        let entries: Vec<u64> = values.into_iter().map(|v| v.map_or(0, |v| v | 1 << 63)).collect();
        let (header, _) = samples::page_table();
        let header = PageTableHeader { count: PageCount(entries.len() as u32), ..header };
        let bytes = table_bytes(&header, &entries);
        prop_assert_eq!(read_table(&bytes), Ok((header, entries)));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), start in 0..6usize) {
        let starts: [&[u8]; 6] = [b"", b"RHSG\x01", b"RHST\x01", b"RHPT\x01\0\0\0", b"{\"format\":1,", b"{\"format\":1,\"lineage\":\""];
        let bytes = [starts[start], &bytes].concat();
        let _ = (Segment::decode(&bytes), LocalState::decode(&bytes), read_table(&bytes));
        let _ = (Identity::decode(&bytes), LeaseRecord::decode(&bytes), Manifest::decode(&bytes));
        let _ = ProbeRecord::decode(&bytes);
    }
}
