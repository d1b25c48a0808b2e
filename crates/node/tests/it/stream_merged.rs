//! Backlogs that are merged on their way to a replica: they end where each commit by itself would, and take fewer steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rhyolite_format::follow::FollowState;
use rhyolite_format::ltx::LtxHeader;
use rhyolite_format::sqlite::wal::{FRAME_HEADER_SIZE, WAL_HEADER_SIZE};
use rhyolite_format::stream::Frame;
use rhyolite_format::{Lineage, Pos, Txid};
use rhyolite_node::stream::client::{Access, Link};
use rustix::process::Signal;

use crate::stream::Node;

const COMMITS: u64 = 2000;

/// Where a replica says that it is.
fn noted(replica: &Path) -> Option<Pos> {
    std::fs::read_to_string(format!("{}-pos", replica.display())).ok()?.trim_end().parse().ok()
}

/// How many transactions the WAL of a replica holds: those of its first generation, which is the only one.
fn batches(replica: &Path) -> usize {
    let wal = std::fs::read(format!("{}-wal", replica.display())).unwrap();
    if wal.is_empty() {
        return 0;
    }
    let page_size = u32::from_be_bytes(wal[8..12].try_into().unwrap()) as usize;
    let salts = &wal[16..24];
    let frames = wal[WAL_HEADER_SIZE..].chunks_exact(FRAME_HEADER_SIZE + page_size);
    let live = frames.take_while(|frame| &frame[8..16] == salts);
    live.filter(|frame| frame[4..8] != [0; 4]).count()
}

/// What a node answers to whoever is at `pos`: each position that is led through, how many frames that takes, and how many of them were merged.
fn ask(node: &Node, (lineage, pos): (Lineage, Pos), until: Txid, form: &str) -> (Vec<Pos>, usize, usize) {
    let path = format!("/v1/log?db=app.db&lineage={lineage}&pos={pos}{form}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let link =
            Link::connect(&node.url().parse().unwrap(), &Access::default(), Duration::from_secs(10)).await.unwrap();
        let mut frames = link.frames(&path).await.unwrap();
        let (mut passed, mut count, mut merged) = (vec![pos], 0, 0);
        while passed.last().unwrap().txid < until {
            let (before, after) = match frames.next().await.unwrap().unwrap() {
                (Frame::Transactions(commits), bytes) => {
                    let headers = commits.files.iter().map(|at| LtxHeader::decode(&bytes[at.clone()]).unwrap());
                    let before =
                        headers.map(|h| Pos { txid: h.min_txid.previous().unwrap(), checksum: h.pre_apply.unwrap() });
                    (before.collect::<Vec<_>>(), commits.span.after)
                }
                (Frame::Merged(commits), _) => {
                    merged += 1;
                    ([&[commits.span.before][..], &commits.between].concat(), commits.span.after)
                }
                (Frame::Heartbeat { .. }, _) => continue,
                (other, _) => panic!("{other:?}"),
            };
            assert_eq!(passed.pop(), before.first().copied());
            passed.extend(before);
            passed.push(after);
            count += 1;
        }
        (passed, count, merged)
    })
}

#[test]
fn a_replica_that_was_frozen_takes_what_it_has_missed_in_a_few_steps() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    let (first, before) = (noted(&replica).unwrap(), batches(&replica));
    follow.signal(Signal::STOP);
    for number in 0..COMMITS {
        let sql = match number {
            // Pages that are cut off, and others in their place.
            n if n % 500 == 499 => "DELETE FROM t; VACUUM".to_owned(),
            n if n % 100 == 0 => "INSERT INTO t(b) VALUES (randomblob(9000))".to_owned(),
            n => format!("INSERT INTO t(b) VALUES ({n})"),
        };
        db.execute_batch(&sql).unwrap();
    }
    let seen = Arc::new(AtomicBool::new(false));
    let (stop, path) = (Arc::clone(&seen), replica.clone());
    let watcher = std::thread::spawn(move || {
        let mut positions = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            positions.extend(noted(&path).map(|pos| (pos.txid, pos)));
        }
        positions
    });
    follow.signal(Signal::CONT);
    node.wait_equal("app.db", &replica);
    seen.store(true, Ordering::Relaxed);
    let positions = watcher.join().unwrap();
    let (last, taken) = (noted(&replica).unwrap(), batches(&replica) - before);
    assert!(last.txid.get() - first.txid.get() >= COMMITS, "each commit was captured by itself");
    assert!((1..=COMMITS as usize / 20).contains(&taken), "{taken} batches");
    let state = std::fs::read(node.folder.path("replica.db-rhyolite-follow")).unwrap();
    let lineage = FollowState::decode(&state).unwrap().lineage;
    let (history, ..) = ask(&node, (lineage, first), last.txid, "");
    assert!(!positions.is_empty() && positions.values().all(|pos| history.contains(pos)), "{positions:?}");
    follow.stop();
    node.stop();
}

#[test]
fn whoever_wants_each_commit_gets_each_and_others_are_told_of_each() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    node.start();
    let replica = node.folder.path("replica.db");
    let follow = node.follow(&node.url(), &["app.db", "--into", "replica.db"]);
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.wait_equal("app.db", &replica);
    let state = std::fs::read(node.folder.path("replica.db-rhyolite-follow")).unwrap();
    let from = (FollowState::decode(&state).unwrap().lineage, noted(&replica).unwrap());
    for number in 0..300 {
        db.execute("INSERT INTO t(b) VALUES (?1)", [number]).unwrap();
    }
    node.wait_equal("app.db", &replica);
    let last = noted(&replica).unwrap();
    assert_eq!(last.txid.get() - from.1.txid.get(), 300);
    let (each, frames, merged) = ask(&node, from, last.txid, "");
    assert_eq!((each.len(), each.last(), merged), (301, Some(&last), 0));
    assert_eq!(ask(&node, from, last.txid, "&merged=0"), (each.clone(), frames, 0));
    let (passed, fewer, merged) = ask(&node, from, last.txid, "&merged=1");
    assert_eq!(passed, each, "the positions between are the same");
    assert!(merged > 0 && fewer < frames, "{fewer} frames, {merged} of them merged, in place of {frames}");
    follow.stop();
    node.stop();
}
