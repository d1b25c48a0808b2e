//! Where a log is taken to end when the local state says where to look.

use std::sync::Arc;

use rhyolite_format::{Epoch, Pos, Seq, Txid};
use rhyolite_logic::lease::Guards;
use rhyolite_store::{Counted, Counters, Memory, Operation, Store};
use rhyolite_writer::log_end::{self, Hint, LogEnd};

use crate::history_builder::History;

/// Two stores of one database with the same epoch and the same sequence numbers; the second holds one transaction less.
async fn two_stores(segments: usize) -> (History, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let store: Arc<dyn Store> = Arc::new(Counted::new(Arc::new(Memory::new()), Arc::clone(&counters)));
    let mut history = History::new(store, 4096).await;
    let first = history.run("CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    let snapshot = history.snapshot(first).await;
    // The log begins after the snapshot.
    history.manifest(vec![snapshot], Seq::FIRST.next(), Some(first)).await;
    history.upload().await;
    for _ in 0..segments {
        history.run("INSERT INTO t VALUES(2)");
        history.upload().await;
    }
    (history, counters)
}

async fn find(history: &History, hint: Hint) -> LogEnd {
    log_end::find(&history.store, Guards::ALL, Some(hint)).await.unwrap().unwrap()
}

fn hint(history: &History, pos: Pos) -> Hint {
    Hint { next_seq: history.seq, pos, epoch: Epoch::FIRST }
}

#[tokio::test]
async fn a_state_that_knows_the_end_spares_the_list() {
    for segments in [0, 3] {
        let (history, counters) = two_stores(segments).await;
        let pos = history.states[&history.last()].pos;
        let end = find(&history, hint(&history, pos)).await;
        assert_eq!((end.pos, end.next_seq), (Some(pos), history.seq), "{segments} segments");
        assert_eq!(counters.snapshot().of(Operation::List), 0, "{segments} segments");
    }
}

#[tokio::test]
async fn the_numbers_of_another_store_are_not_its_position() {
    for segments in [0, 1, 3] {
        let (history, counters) = two_stores(segments).await;
        let pos = history.states[&history.last()].pos;
        let mut elsewhere = pos;
        elsewhere.txid = Txid::new(pos.txid.get() + 1).unwrap();
        let end = find(&history, hint(&history, elsewhere)).await;
        assert_eq!((end.pos, end.next_seq), (Some(pos), history.seq), "{segments} segments");
        assert!(counters.snapshot().of(Operation::List) > 0, "{segments} segments: it was not looked at");
    }
}
