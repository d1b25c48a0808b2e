//! What a node refuses of those who may ask: more than it takes at a time, and what cannot be.

use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::stream::Frame;
use rhyolite_format::{Pos, Txid};
use rhyolite_node::stream::client::{Access, Link, LinkError};

use crate::cluster::Cluster;
use crate::stream::Node;

/// Bytes of the checksums in one request for pages: 1024 of 8.
const SUMS_BYTES_MAX: usize = 8192;

async fn connect(address: &str) -> Link {
    let address = address.parse().unwrap();
    Link::connect(&address, &Access::default(), Duration::from_secs(10)).await.unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The history of the only database that a node serves, and where it is.
async fn whereabouts(link: &Link) -> rhyolite_format::stream::Database {
    let mut frames = link.frames("/v1/databases").await.unwrap();
    loop {
        if let Some((Frame::Database(database), _)) = frames.next().await.unwrap() {
            return database;
        }
    }
}

#[test]
fn nobody_has_what_was_not_sent_to_him() {
    let mut node = Node::new();
    let db = node.database("app.db", "wal");
    db.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    node.start();
    node.folder.wait_durable("data/app.db", 1);
    let url = node.url();
    run(async {
        let link = connect(&url).await;
        let database = whereabouts(&link).await;
        let Pos { txid, checksum } = database.pos;
        let path = format!("/v1/log?db=app.db&lineage={}&pos={}&node=127.0.0.1:9", database.lineage, database.pos);
        let later = Txid::new(txid.get() + 1).unwrap();
        for (frame, is_ended) in [
            (Frame::Reached(Pos { txid, checksum }), false),
            (Frame::Reached(Pos { txid: later, checksum }), true),
            (Frame::Leaving, true),
        ] {
            let (mut frames, mut replies) = link.frames_both_ways(&path).await.unwrap();
            // That it is at the end is said first.
            assert!(matches!(frames.next().await, Ok(Some((Frame::Heartbeat { .. }, _)))));
            replies.say(&frame);
            let end = async { while let Ok(Some(_)) = frames.next().await {} };
            let has_ended = tokio::time::timeout(Duration::from_secs(3), end).await.is_ok();
            assert_eq!(has_ended, is_ended, "{frame:?}");
        }
    });
    node.stop();
}

#[test]
fn a_name_that_is_too_long_harms_nobody() {
    let mut node = Node::new();
    node.database("app.db", "wal");
    node.start();
    node.folder.wait_durable("data/app.db", 1);
    let url = node.url();
    run(async {
        let ask = async |len: usize| {
            let link = connect(&url).await;
            link.read(&format!("/v1/object?db={}&key=id.json", "a".repeat(len)), 1 << 20).await
        };
        let status = |answer| match answer {
            Err(LinkError::Refused { status, .. }) => Some(status.as_u16()),
            _ => None,
        };
        assert_eq!(status(ask(3000).await), Some(404));
        assert_ne!(status(ask(40_000).await), Some(404), "headers of more than 32 KiB are not read");
        assert!(connect(&url).await.read("/v1/object?db=app.db&key=id.json", 1 << 20).await.is_ok());
    });
    node.stop();
}

#[test]
fn a_replica_compares_so_many_pages_at_a_time() {
    let mut cluster = Cluster::new();
    cluster.start("a");
    cluster.wait_writing("a");
    cluster.start("b");
    cluster.wait_role("b", "replica");
    let seen = cluster.last_noted("a");
    cluster.wait_row("b", seen);
    let url = format!("http://{}", cluster.addresses["b"]);
    run(async {
        let link = connect(&url).await;
        let ask = async |bytes: usize| {
            let path = "/v1/pages?db=app.db&pos=0000000000000001/8000000000000001&first=1";
            match link.send(path, Bytes::from(vec![0; bytes]), 1 << 20).await {
                Err(LinkError::Refused { status, .. }) => status.as_u16(),
                answer => panic!("{bytes}: {answer:?}"),
            }
        };
        assert_eq!(ask(SUMS_BYTES_MAX).await, 409, "it is not at this position");
        assert_eq!(ask(SUMS_BYTES_MAX + 8).await, 400);
        assert_eq!(ask(7).await, 400);
        assert_eq!(ask(8).await, 409);
    });
    cluster.stop_well("b");
    cluster.stop_primary("a");
}
