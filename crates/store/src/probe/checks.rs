//! Checks in which one call follows the other, often by different clients.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use super::{Lab, Seen, refused, said};
use crate::StoreErrorKind as Kind;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

/// Bytes that differ everywhere and between seeds.
fn pattern(seed: u64, len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(len + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_be_bytes());
    }
    out.truncate(len);
    out.freeze()
}

pub(super) fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

pub(super) async fn round_trip(lab: Lab) -> Seen {
    let (writer, reader) = (lab.client(0), lab.client(1));
    // No object of a log is empty, and some servers store none.
    for len in [1, 4096, 300_000] {
        let (key, bytes) = (format!("round-trip/{len}"), pattern(len as u64 + 1, len));
        let version = said("create", writer.create(&key, bytes.clone()).await)?;
        let object = said("read", reader.get(&key).await)?;
        ensure!(object.bytes == bytes, "{len} bytes were stored, other bytes came back");
        ensure!(object.version == version, "stored as version {version}, read as {}", object.version);
        let meta = said("look", reader.head(&key).await)?;
        ensure!(meta.size == len as u64 && meta.version == version, "a look at {len} bytes says {meta:?}");
    }
    refused("reading what is absent", reader.get("round-trip/absent").await, Kind::NotFound)?;
    Ok("objects come back as they were stored".to_owned())
}

pub(super) async fn ranged_reads(lab: Lab) -> Seen {
    let (writer, reader) = (lab.client(0), lab.client(1));
    let bytes = pattern(7, 10_000);
    said("create", writer.create("ranges", bytes.clone()).await)?;
    for range in [0..1, 0..10_000, 9_999..10_000, 4096..8192] {
        let got = said("read a range", reader.get_range("ranges", range.clone()).await)?;
        let wanted = bytes.slice(range.start as usize..range.end as usize);
        ensure!(got == wanted, "bytes {range:?} were asked for, other bytes came, {} of them", got.len());
    }
    for len in [0, 1, 512, 10_000, 20_000] {
        let tail = said("read the end", reader.get_tail("ranges", len).await)?;
        let start = 10_000u64.saturating_sub(len) as usize;
        ensure!(tail.bytes == bytes.slice(start..) && tail.size == 10_000, "the last {len} bytes are other bytes");
    }
    refused("a range behind the end", reader.get_range("ranges", 9_999..10_001).await, Kind::Corrupt)?;
    Ok("exactly the bytes that were asked for".to_owned())
}

pub(super) async fn upload_in_pieces(lab: Lab) -> Seen {
    let bytes = pattern(3, lab.size.upload_bytes);
    let mut upload = said("begin", lab.client(0).upload("upload").await)?;
    for part in bytes.chunks(1 << 20) {
        said("write", upload.write(bytes.slice_ref(part)).await)?;
    }
    refused("reading an unfinished upload", lab.client(1).get("upload").await, Kind::NotFound)?;
    let version = said("finish", upload.finish().await)?;
    let object = said("read", lab.client(1).get("upload").await)?;
    ensure!(object.bytes == bytes, "{} bytes were uploaded, other bytes came back", bytes.len());
    ensure!(object.version == version, "finished as version {version}, read as {}", object.version);
    Ok(format!("{} bytes, invisible until they were whole", bytes.len()))
}

pub(super) async fn list_after_write(lab: Lab) -> Seen {
    let mut wanted = BTreeSet::new();
    for round in 0..lab.size.rounds {
        let key = format!("list/{:04}", round * 7 % lab.size.rounds.max(1) + round * 100);
        said("create", lab.client(round).create(&key, text(&key)).await)?;
        wanted.insert(key);
        let listed = said("list", lab.client(round + 1).list_all("list").await)?;
        ensure!(listed.iter().map(|e| &e.key).eq(wanted.iter()), "created {}, listed {}", wanted.len(), listed.len());
        ensure!(listed.iter().all(|e| e.size == e.key.len() as u64), "a size in the list is wrong");
    }
    for (round, key) in wanted.clone().into_iter().enumerate() {
        said("delete", lab.client(round).delete(std::slice::from_ref(&key)).await)?;
        wanted.remove(&key);
        let listed = said("list", lab.client(round + 1).list_all("list").await)?;
        ensure!(listed.iter().all(|e| e.key != key), "a list shows what was deleted");
        ensure!(listed.len() == wanted.len(), "a list lacks what was not deleted");
    }
    Ok("lists show every write and deletion at once, in order".to_owned())
}

pub(super) async fn delete(lab: Lab) -> Seen {
    let keys = ["delete/a".to_owned(), "delete/absent".to_owned(), "delete/b".to_owned()];
    for key in [&keys[0], &keys[2]] {
        said("create", lab.client(0).create(key, text(key)).await)?;
    }
    said("delete", lab.client(0).delete(&keys).await)?;
    for key in &keys {
        refused("reading what was deleted", lab.client(1).get(key).await, Kind::NotFound)?;
    }
    said("delete again", lab.client(1).delete(&keys).await)?;
    said("create anew", lab.client(1).create(&keys[0], text("anew")).await)?;
    Ok("what is deleted is gone, and may be made anew".to_owned())
}

pub(super) async fn create_twice(lab: Lab) -> Seen {
    let version = said("create", lab.client(0).create("twice", text("first")).await)?;
    refused("a second create", lab.client(1).create("twice", text("second")).await, Kind::Exists)?;
    refused("a swap that expects nothing", lab.client(1).swap_if("twice", None, text("third")).await, Kind::Conflict)?;
    let object = said("read", lab.client(0).get("twice").await)?;
    ensure!(object.bytes == "first" && object.version == version, "the refused create has changed the object");
    Ok("a key that is taken is refused".to_owned())
}

pub(super) async fn swap_stale(lab: Lab) -> Seen {
    let first = said("create", lab.client(0).create("stale", text("1")).await)?;
    let second = said("swap", lab.client(1).swap_if("stale", Some(&first), text("22")).await)?;
    ensure!(first != second, "a swap left the version as it was");
    let stale = lab.client(0).swap_if("stale", Some(&first), text("333")).await;
    refused("a swap of a version that is gone", stale, Kind::Conflict)?;
    let absent = lab.client(0).swap_if("stale-absent", Some(&second), text("x")).await;
    refused("a swap of what is absent", absent, Kind::Conflict)?;
    let object = said("read", lab.client(0).get("stale").await)?;
    ensure!(object.bytes == "22" && object.version == second, "the refused swap has changed the object");
    said("delete", lab.client(0).delete(&["stale".to_owned()]).await)?;
    let deleted = lab.client(1).swap_if("stale", Some(&second), text("x")).await;
    refused("a swap of what was deleted", deleted, Kind::Conflict)?;
    Ok("a version that is gone is refused".to_owned())
}

pub(super) async fn read_after_write(lab: Lab) -> Seen {
    let mut version = said("create", lab.client(0).create("fresh", text("0")).await)?;
    for round in 1..=lab.size.rounds * 2 {
        let key = format!("fresh-{round}");
        refused("reading what is absent", lab.client(round + 1).get(&key).await, Kind::NotFound)?;
        said("create", lab.client(round).create(&key, text(round)).await)?;
        let object = said("read at once", lab.client(round + 1).get(&key).await)?;
        ensure!(object.bytes == text(round), "another object than was just created");
        version = said("swap", lab.client(round).swap_if("fresh", Some(&version), text(round)).await)?;
        let object = said("read at once", lab.client(round + 1).get("fresh").await)?;
        ensure!(object.bytes == text(round) && object.version == version, "an older object than was just stored");
        let meta = said("look at once", lab.client(round + 1).head("fresh").await)?;
        ensure!(meta.version == version, "an older version than was just stored");
    }
    Ok("every client sees every write at once".to_owned())
}

/// Whether writing the same bytes again gives the same version. Everything that is swapped holds a nonce, so it may.
pub(super) async fn equal_bytes_swap(lab: Lab) -> Seen {
    let first = said("create", lab.client(0).create("aba", text("A")).await)?;
    let second = said("swap", lab.client(0).swap_if("aba", Some(&first), text("B")).await)?;
    let third = said("swap", lab.client(0).swap_if("aba", Some(&second), text("A")).await)?;
    ensure!(third != second, "a swap left the version as it was");
    let again = if third == first { "come back with equal bytes (hashes of the content)" } else { "never come back" };
    Ok(format!("versions {again}"))
}
