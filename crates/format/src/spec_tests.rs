//! The tables in `docs/spec` and the layouts in the code say the same.

use crate::layout::{self, Field};
use crate::{follow, identity, lease, manifest, probe, push, resume, segment, state, stream};

const SEGMENT: &str = include_str!("../../../docs/spec/segment.md");
const STATE: &str = include_str!("../../../docs/spec/state.md");
const FOLLOW: &str = include_str!("../../../docs/spec/follow.md");
const STREAM: &str = include_str!("../../../docs/spec/stream.md");
const RESUME: &str = include_str!("../../../docs/spec/resume.md");
const IDENTITY: &str = include_str!("../../../docs/spec/identity.md");
const LEASE: &str = include_str!("../../../docs/spec/lease.md");
const LOST: &str = include_str!("../../../docs/spec/lost.md");
const PROBE: &str = include_str!("../../../docs/spec/probe.md");
const MANIFEST: &str = include_str!("../../../docs/spec/manifest.md");

/// The rows of the table after `<!-- marker -->`, without the two header rows, cells trimmed.
pub(crate) fn rows<'a>(document: &'a str, marker: &str) -> Vec<Vec<&'a str>> {
    let (_, rest) = document.split_once(&format!("<!-- {marker} -->")).expect("the marker is in the document");
    let lines = rest.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
    lines.skip(2).map(|l| l.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn check_table(document: &str, name: &str, fields: &[Field], size: usize) {
    let said: Vec<(usize, usize, &str)> = rows(document, &format!("table: {name}"))
        .iter()
        .map(|cells| (cells[0].parse().unwrap(), cells[1].parse().unwrap(), cells[2]))
        .collect();
    let is: Vec<_> = fields.iter().map(|f| (f.offset, f.size, f.name)).collect();
    assert_eq!(said, is, "{name}");
    assert_eq!(is.iter().map(|f| f.1).sum::<usize>(), size, "{name} has no holes");
}

#[test]
fn tables_of_binary_formats() {
    use layout::{
        backlog, backlog_entry, follow_end, follow_state, local_state, page_table_header, parked, push_challenge,
        push_hello, push_proof, push_verdict, resume_header, segment_entry, segment_footer, segment_header,
        stream_database, stream_end, stream_frame, stream_heartbeat, stream_reached, stream_transactions, trail_header,
    };
    check_table(SEGMENT, "segment_header", segment_header::FIELDS, segment::HEADER_SIZE);
    check_table(SEGMENT, "segment_entry", segment_entry::FIELDS, segment::ENTRY_SIZE);
    check_table(SEGMENT, "segment_footer", segment_footer::FIELDS, segment::FOOTER_SIZE);
    check_table(STATE, "local_state", local_state::FIELDS, state::SIZE);
    check_table(STATE, "backlog", backlog::FIELDS, state::backlog::HEADER_SIZE);
    check_table(STATE, "backlog_entry", backlog_entry::FIELDS, state::backlog::ENTRY_SIZE);
    check_table(STATE, "parked", parked::FIELDS, state::parked::SIZE);
    check_table(FOLLOW, "follow_state", follow_state::FIELDS, follow::SIZE);
    check_table(FOLLOW, "follow_end", follow_end::FIELDS, follow_end::SIZE);
    check_table(FOLLOW, "trail_header", trail_header::FIELDS, trail_header::SIZE);
    check_table(RESUME, "resume_header", resume_header::FIELDS, resume::HEADER_SIZE);
    check_table(STREAM, "stream_frame", stream_frame::FIELDS, stream::HEADER_SIZE);
    check_table(STREAM, "stream_database", stream_database::FIELDS, stream_database::SIZE);
    check_table(STREAM, "stream_heartbeat", stream_heartbeat::FIELDS, stream_heartbeat::SIZE);
    check_table(STREAM, "stream_reached", stream_reached::FIELDS, stream_reached::SIZE);
    check_table(STREAM, "stream_transactions", stream_transactions::FIELDS, stream_transactions::SIZE);
    check_table(STREAM, "stream_end", stream_end::FIELDS, stream_end::SIZE);
    check_table(STREAM, "push_hello", push_hello::FIELDS, push_hello::SIZE);
    check_table(STREAM, "push_challenge", push_challenge::FIELDS, push_challenge::SIZE);
    check_table(STREAM, "push_proof", push_proof::FIELDS, push::PROOF_SIZE);
    check_table(STREAM, "push_verdict", push_verdict::FIELDS, push_verdict::SIZE);
    check_table(STATE, "page_table_header", page_table_header::FIELDS, state::page_table::HEADER_SIZE);
}

#[test]
fn sizes_in_the_text() {
    assert!(SEGMENT.contains(&format!("header       {} bytes", segment::HEADER_SIZE)));
    assert!(SEGMENT.contains(&format!("entries      {} bytes each", segment::ENTRY_SIZE)));
    assert!(SEGMENT.contains(&format!("footer       {} bytes", segment::FOOTER_SIZE)));
    assert!(SEGMENT.contains("at most 1,048,576") && segment::ENTRIES_MAX == 1_048_576);
    assert!(MANIFEST.contains("at most 64 MiB") && manifest::SIZE_MAX == 64 << 20);
    assert!(MANIFEST.contains("below; at most 100,000") && manifest::FILES_MAX == 100_000);
    assert!(STREAM.contains("at most 16 MiB") && stream::LEN_MAX == 16 << 20);
    assert!(STREAM.contains("1 to 4096 bytes") && stream::NAME_SIZE_MAX == 4096);
    assert!(STREAM.contains("at most 64 MiB;") && manifest::SIZE_MAX == 64 << 20);
    assert!(STREAM.contains("at most 1024 bytes") && stream::TEXT_SIZE_MAX == 1024);
    assert!(STREAM.contains(&format!("at most {} bytes after the header", push::LEN_MAX)));
    assert!(IDENTITY.contains("At most 64 KiB") && identity::SIZE_MAX == 64 << 10);
    assert!(LEASE.contains("at most 64 KiB") && lease::SIZE_MAX == 64 << 10);
    assert!(PROBE.contains("at most 64 KiB") && probe::SIZE_MAX == 64 << 10);
    assert!(PROBE.contains("1 to 4096 bytes") && probe::STORE_SIZE_MAX == 4096);
    assert!(PROBE.contains("at most 100 of 1 to 64 bytes") && (probe::FAILED_MAX, probe::NAME_SIZE_MAX) == (100, 64));
    assert!(LEASE.contains("1 to 1024 bytes") && lease::NAME_SIZE_MAX == 1024);
}

/// Members of a JSON object in the order in which they are written.
fn members(json: &str) -> Vec<String> {
    struct Keys(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Keys;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            d.deserialize_map(Visitor)
        }
    }
    serde_json::from_str::<Keys>(json).unwrap().0
}

fn check_members(document: &str, name: &str, json: &str) {
    let said: Vec<&str> =
        rows(document, &format!("members: {name}")).iter().map(|cells| cells[0].trim_matches('`')).collect();
    assert_eq!(said, members(json), "{name}");
}

#[test]
fn tables_of_json_formats() {
    let examples = crate::samples::manifest();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    check_members(IDENTITY, "identity", &text(crate::samples::identity().encode()));
    let (state, successor) = (lease::LeaseState::Released, Some("10.0.0.2:7391".to_owned()));
    let nodes = vec!["10.0.0.2:7391".to_owned()];
    let witnesses = lease::Witnesses { of: "10.0.0.1:7391".to_owned(), count: 1, nodes };
    check_members(LEASE, "witnesses", &serde_json::to_string(&witnesses).unwrap());
    let witnesses = Some(witnesses);
    let released = lease::LeaseRecord { state, quiet: true, successor, witnesses, ..crate::samples::lease() };
    check_members(LEASE, "lease", &text(released.encode()));
    check_members(PROBE, "probe", &text(crate::samples::probe().encode()));
    check_members(LOST, "lost", &text(crate::samples::lost().encode()));
    check_members(MANIFEST, "manifest", &text(examples.encode()));
    let with_all = examples.files.iter().find(|f| f.pre_apply.is_some()).unwrap();
    check_members(MANIFEST, "manifest_file", &serde_json::to_string(with_all).unwrap());
}
