//! The event stream: a line of JSON for each transaction and for each change of the primary, in LiteFS's form.
//!
//! ```text
//! {"type":"init","data":{"isPrimary":true,"hostname":"10.0.0.1:20201"}}
//! {"type":"tx","db":"app.db","data":{"txID":"0000000000000027","postApplyChecksum":"83b05ba774062d6a","pageSize":4096,"commit":2,"timestamp":"2026-01-01T00:00:00.000Z"}}
//! {"type":"primaryChange","data":{"isPrimary":false,"hostname":"10.0.0.2:20201"}}
//! ```
//!
//! Nobody waits for a subscriber: one that is more than [`EVENTS_MAX`] events behind is cut off, as all are when there were transactions that nobody can tell.

use std::sync::{Arc, Mutex, PoisonError};

use rhyolite_format::{PageCount, PageSize, Pos, Timestamp};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::time;

/// Events that a subscriber may be behind.
pub const EVENTS_MAX: usize = 1024;

/// Who the primary is, as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Primary {
    /// Whether it is this process. One that is no node of a cluster is its own primary.
    pub is_primary: bool,
    /// Where the primary can be reached by the other nodes; empty when nobody is known, or nobody follows.
    pub hostname: String,
}

/// A transaction, or several at once where a replica has got them so.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tx {
    #[serde(rename = "txID")]
    txid: Hex,
    post_apply_checksum: Hex,
    page_size: u32,
    commit: u32,
    #[serde(with = "time::rfc3339")]
    timestamp: Timestamp,
}

/// A number of 16 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

#[derive(Debug, Serialize)]
struct Event<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<&'a str>,
    data: T,
}

impl<T: Serialize> Event<'_, T> {
    fn line(&self) -> Arc<str> {
        let mut line = serde_json::to_string(self).expect("strings and numbers only");
        line.push('\n');
        line.into()
    }
}

/// Those who want to know what happens, and what they are told.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<str>>,
    primary: Mutex<Primary>,
}

impl Default for Events {
    fn default() -> Self {
        let primary = Primary { is_primary: true, hostname: String::new() };
        Self { sender: broadcast::Sender::new(EVENTS_MAX), primary: Mutex::new(primary) }
    }
}

impl Events {
    /// Whether anybody listens: an event that nobody hears need not be made.
    pub fn has_listeners(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Cuts everybody off who listens: there were events that nobody can tell.
    pub fn cut(&self) {
        let _ = self.sender.send("".into());
    }

    /// A database is at `pos`, after a transaction of this time.
    pub fn tell(&self, db: &str, pos: Pos, page_size: PageSize, commit: PageCount, timestamp: Timestamp) {
        if !self.has_listeners() {
            return;
        }
        let (txid, post_apply_checksum) = (Hex(pos.txid.get()), Hex(pos.checksum.get()));
        let data = Tx { txid, post_apply_checksum, page_size: page_size.get(), commit: commit.get(), timestamp };
        // Whoever has gone meanwhile hears nothing.
        let _ = self.sender.send(Event { kind: "tx", db: Some(db), data }.line());
    }

    /// Who the primary is from here on. The same as before is no event.
    pub fn set_primary(&self, primary: Primary) {
        let mut known = self.primary.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != primary {
            known.clone_from(&primary);
            let _ = self.sender.send(Event { kind: "primaryChange", db: None, data: primary }.line());
        }
    }

    /// Who the primary is now, as a line, and what comes after it.
    pub fn subscribe(&self) -> (Arc<str>, broadcast::Receiver<Arc<str>>) {
        // No change is told between the two.
        let known = self.primary.lock().unwrap_or_else(PoisonError::into_inner);
        (Event { kind: "init", db: None, data: &*known }.line(), self.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;

    fn pos(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(7) }
    }

    #[tokio::test]
    async fn lines_have_the_form_of_litefs() {
        let events = Events::default();
        events.tell("a.db", pos(1), PageSize::MIN, PageCount(1), Timestamp(0));
        let (init, mut receiver) = events.subscribe();
        assert_eq!(&*init, "{\"type\":\"init\",\"data\":{\"isPrimary\":true,\"hostname\":\"\"}}\n");
        events.tell("a.db", pos(39), PageSize::MIN, PageCount(2), Timestamp(0));
        let line = receiver.recv().await.unwrap();
        let expected = "{\"type\":\"tx\",\"db\":\"a.db\",\"data\":{\"txID\":\"0000000000000027\",\"postApplyChecksum\":\"8000000000000007\",\"pageSize\":512,\"commit\":2,\"timestamp\":\"1970-01-01T00:00:00.000Z\"}}\n";
        assert_eq!(&*line, expected, "what was before the subscription is not told");
        let other = Primary { is_primary: false, hostname: "b:1".to_owned() };
        events.set_primary(other.clone());
        events.set_primary(other);
        let line = receiver.recv().await.unwrap();
        assert_eq!(&*line, "{\"type\":\"primaryChange\",\"data\":{\"isPrimary\":false,\"hostname\":\"b:1\"}}\n");
        assert!(receiver.try_recv().is_err(), "no change is no event");
        assert!(events.subscribe().0.contains("\"isPrimary\":false"));
    }

    #[tokio::test]
    async fn who_is_too_far_behind_is_told_so() {
        let events = Events::default();
        let (_, mut receiver) = events.subscribe();
        for txid in 1..=EVENTS_MAX as u64 + 2 {
            events.tell("a.db", pos(txid), PageSize::MIN, PageCount(1), Timestamp(0));
        }
        assert!(matches!(receiver.recv().await, Err(broadcast::error::RecvError::Lagged(2))));
    }
}
