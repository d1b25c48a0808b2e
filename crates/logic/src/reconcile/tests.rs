//! The cases of `testdata/scripts/reconcile.txt`.

use rhyolite_format::segment::SegmentHeader;
use rhyolite_format::{Checksum, Epoch, Nonce, PageCount, PageSize, Timestamp, Txid};

use super::*;

const SCRIPT: &str = include_str!("../../../../testdata/scripts/reconcile.txt");

fn pos(text: &str) -> Option<Pos> {
    let (digits, other) = text.strip_suffix('\'').map_or((text, 0), |d| (d, 1 << 40));
    let n: u64 = (digits != "-").then(|| digits.parse().unwrap())?;
    let crc = (n | other).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some(Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(crc) })
}

fn say_pos(pos_: Option<Pos>) -> String {
    let Some(p) = pos_ else { return "-".to_owned() };
    let n = p.txid.get().to_string();
    if pos(&n) == pos_ { n } else { n + "'" }
}

fn lineage(letter: &str) -> Lineage {
    Lineage([letter.as_bytes()[0]; 16])
}

fn say_lineage(lineage: Lineage) -> char {
    char::from(lineage.0[0])
}

fn nonce(letter: &str) -> Option<Nonce> {
    (letter != "-").then(|| Nonce([letter.as_bytes()[0]; 16]))
}

fn seq(text: &str) -> Seq {
    Seq::new(text.parse().unwrap()).unwrap()
}

fn value<'a>(words: &[&'a str], name: &str) -> &'a str {
    words.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

fn entry(max: u64, snapshot: bool) -> SegmentEntry {
    let end = pos(&max.to_string()).unwrap();
    SegmentEntry {
        min_txid: if snapshot { Txid::FIRST } else { end.txid },
        max_txid: end.txid,
        offset: 0,
        len: 200,
        timestamp: Timestamp(0),
        page_size: PageSize::MIN,
        commit: PageCount(1),
        pages: 1,
        pre_apply: if snapshot { None } else { pos(&(max - 1).to_string()).map(|p| p.checksum) },
        post_apply: end.checksum,
    }
}

fn segment(words: &[&str]) -> Segment {
    let mut entries = Vec::new();
    for word in &words[2..] {
        if let Some(n) = word.strip_prefix('s') {
            entries.push(entry(n.parse().unwrap(), true));
        } else {
            let (first, last) = word.split_once("..").unwrap_or((word, word));
            entries.extend((first.parse().unwrap()..=last.parse().unwrap()).map(|n| entry(n, false)));
        }
    }
    let header = SegmentHeader::log(lineage("A"), Epoch::FIRST, seq(words[0]), nonce(words[1]).unwrap(), Timestamp(0));
    Segment { header, entries }
}

fn state(words: &[&str]) -> LocalState {
    LocalState {
        lineage: lineage(words[0]),
        pos: pos(value(words, "pos")),
        durable: pos(value(words, "durable")),
        page_size: None,
        commit: PageCount(0),
        wal: None,
        epoch: Epoch::FIRST,
        next_seq: seq(value(words, "next")),
        boot_id: [0; 16],
    }
}

fn store(words: &[&str]) -> StoreEnd {
    StoreEnd { lineage: lineage(words[0]), pos: pos(value(words, "pos")), next_seq: seq(value(words, "next")) }
}

fn say_seqs(seqs: &[Seq]) -> String {
    let list: Vec<String> = seqs.iter().map(|s| s.get().to_string()).collect();
    if list.is_empty() { "-".to_owned() } else { list.join(",") }
}

fn say(start: &Start) -> String {
    let text = match start {
        Start::Fresh { lineage, first, lost } => {
            let lineage = lineage.map_or("new".to_owned(), |l| say_lineage(l).to_string());
            let first = match first {
                FirstUpload::Snapshot => "snapshot".to_owned(),
                FirstUpload::Segments(seqs) => say_seqs(seqs),
            };
            format!("fresh lineage={lineage} first={first} lost={}", say_pos(*lost))
        }
        Start::Continue { confirmed, upload, next_seq, end, tail } => {
            let (confirmed, upload, tail) = (say_seqs(confirmed), say_seqs(upload), format!("{tail:?}").to_lowercase());
            let (next, end) = (next_seq.get(), say_pos(*end));
            format!("continue confirmed={confirmed} upload={upload} next={next} end={end} tail={tail}")
        }
        Start::Adopt { lineage, at, next_seq, reason } => {
            let reason = match reason {
                AdoptReason::NoState => "no-state".to_owned(),
                AdoptReason::LocalLogLost => "local-log-lost".to_owned(),
                AdoptReason::StoreBehind { durable } => format!("store-behind:{}", say_pos(Some(*durable))),
                AdoptReason::StoreAhead => "store-ahead".to_owned(),
            };
            format!("adopt {} at={} next={} reason={reason}", say_lineage(*lineage), say_pos(*at), next_seq.get())
        }
        Start::Conflict { at, next_seq, local, unsent } => {
            let (first, last) = (unsent.0.get(), unsent.1.get());
            let (at, local) = (say_pos(*at), say_pos(*local));
            format!("conflict at={at} next={} local={local} unsent={first}..{last}", next_seq.get())
        }
        Start::WrongLineage { local, store } => {
            format!("wrong-lineage local={} store={}", say_lineage(*local), say_lineage(*store))
        }
    };
    if start.is_loud() { format!("loud {text}") } else { text }
}

#[test]
fn script() {
    let mut cases = 0;
    for block in SCRIPT.split("\n\n") {
        let (mut local_state, mut local_log, mut end) = (None, Vec::new(), None);
        for line in block.lines().filter(|l| !l.starts_with('#')) {
            let (verb, rest) = line.split_once(' ').unwrap();
            let words: Vec<&str> = rest.split_whitespace().collect();
            match verb {
                "state" => local_state = Some(state(&words)),
                "local" => local_log.push(segment(&words)),
                "store" => end = Some(store(&words)),
                "->" => {
                    let start = reconcile(local_state.as_ref(), &local_log, end.as_ref());
                    assert_eq!(say(&start), rest, "\n{block}\n");
                    assert!(!start.to_string().is_empty());
                    cases += 1;
                }
                other => panic!("{other}"),
            }
        }
    }
    assert!(cases > 30, "{cases} cases");
}

#[test]
fn a_wrong_lineage_names_both_and_what_to_do() {
    let text = Start::WrongLineage { local: lineage("A"), store: lineage("B") }.to_string();
    for part in [lineage("A").to_string().as_str(), lineage("B").to_string().as_str(), "prefix of its own"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_log_that_somebody_else_has_added_to() {
    let local = [segment(&["3", "n", "7..8"]), segment(&["4", "n", "9..12"])];
    let check = |told: &'static str, local: &[Segment], end: &'static str, expected: bool| {
        let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        let (state, store) = (state(&words(told)), store(&words(end)));
        assert_eq!(is_overtaken(&state, local, &store), expected, "{told}, {end}");
    };
    let here = "A pos=12 durable=8 next=4";
    check(here, &local, "A pos=9' next=6", true);
    check(here, &local, "A pos=20' next=6", true);
    check(here, &local[1..], "A pos=9' next=6", true);
    check("A pos=8 durable=8 next=4", &[], "A pos=9 next=6", true);
    // What was sent from here last may have come in unheard, in whatever pieces.
    check(here, &local, "A pos=12 next=5", false);
    check(here, &local, "A pos=10 next=5", false);
    // A fence adds nothing, and a manifest that was put back takes something away.
    check(here, &local, "A pos=8 next=5", false);
    check(here, &local, "A pos=8' next=5", false);
    check(here, &local, "A pos=7' next=5", false);
    // The end may be what the local log lacks.
    check(here, &local[..1], "A pos=9' next=6", false);
    check("A pos=13 durable=8 next=4", &local, "A pos=9' next=6", false);
    check("A pos=12 durable=6' next=4", &local, "A pos=9' next=6", false);
    check("A pos=12 durable=- next=4", &local, "A pos=9' next=6", false);
    check(here, &local, "B pos=9' next=6", false);
}
