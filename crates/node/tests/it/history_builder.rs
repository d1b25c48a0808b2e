//! Builds histories in a store from real databases, and keeps a copy of every state for comparison.
//!
//! A small writer of its own: it knows nothing of WALs. It runs SQL on a database in rollback mode, compares the file with the
//! one before, and logs the pages that differ.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rhyolite_format::identity::Identity;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::manifest::{Crc64Hex, FileKind, Manifest, ManifestFile};
use rhyolite_format::segment::{SegmentEntry, SegmentHeader, encode_index};
use rhyolite_format::{
    Checksum, Epoch, Format1, Lineage, Nonce, PageCount, PageNumber, PageSize, Pos, Seq, Timestamp, Txid, crc, keys,
};
use rhyolite_store::Store;
use rusqlite::Connection;

/// A database whose states go into a store.
pub(crate) struct History {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lineage: Lineage,
    pub(crate) epoch: Epoch,
    /// The sequence number of the next segment.
    pub(crate) seq: Seq,
    /// How far the clock is ahead, in milliseconds.
    pub(crate) shift: i64,
    /// Every state so far: when, and what the file held.
    pub(crate) states: BTreeMap<Txid, State>,
    folder: tempfile::TempDir,
    page_size: PageSize,
    /// LTX files of the segment that is not stored yet.
    body: Vec<u8>,
    entries: Vec<SegmentEntry>,
    nonces: u8,
}

/// A state of the database.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) pos: Pos,
    pub(crate) time: Timestamp,
    pub(crate) image: Vec<u8>,
    pub(crate) page_size: PageSize,
}

impl State {
    fn commit(&self) -> PageCount {
        PageCount((self.image.len() / self.page_size.bytes()) as u32)
    }

    pub(crate) fn page(&self, pgno: PageNumber) -> Option<&[u8]> {
        let start = pgno.offset(self.page_size) as usize;
        self.image.get(start..start + self.page_size.bytes())
    }
}

/// Milliseconds between two transactions.
pub(crate) const TICK: i64 = 1000;
/// Time of the first transaction.
pub(crate) const START: i64 = 1_700_000_000_000;

impl History {
    /// An empty history whose database has pages of this size.
    pub(crate) async fn new(store: Arc<dyn Store>, page_size: u32) -> Self {
        Self::of(store, page_size, Lineage(*b"a test's history")).await
    }

    /// The same, of any lineage.
    pub(crate) async fn of(store: Arc<dyn Store>, page_size: u32, lineage: Lineage) -> Self {
        let page_size = PageSize::new(page_size).unwrap();
        let identity = Identity { format: Format1, lineage, created: Timestamp(START), page_size };
        store.create(keys::ID, Bytes::from(identity.encode())).await.unwrap();
        let history = Self {
            store,
            lineage,
            epoch: Epoch::FIRST,
            seq: Seq::FIRST,
            shift: 0,
            states: BTreeMap::new(),
            folder: tempfile::tempdir().unwrap(),
            page_size,
            body: Vec::new(),
            entries: Vec::new(),
            nonces: 0,
        };
        let db = history.open();
        db.execute_batch(&format!("PRAGMA page_size={}; PRAGMA auto_vacuum=0;", page_size.get())).unwrap();
        history
    }

    /// The database file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("source.db")
    }

    /// A connection to the database.
    pub(crate) fn open(&self) -> Connection {
        let db = Connection::open(self.path()).unwrap();
        db.execute_batch(&format!("PRAGMA page_size={}; PRAGMA synchronous=OFF;", self.page_size.get())).unwrap();
        db
    }

    /// Runs SQL and logs what it changed as one transaction.
    pub(crate) fn run(&mut self, sql: &str) -> Txid {
        self.open().execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        let image = std::fs::read(self.path()).unwrap();
        self.log_image(image, self.page_size)
    }

    /// The last transaction.
    pub(crate) fn last(&self) -> Txid {
        *self.states.last_key_value().expect("there is a transaction").0
    }

    fn end(&self) -> Option<&State> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    /// Logs a state as one transaction: what differs from the state before.
    pub(crate) fn log_image(&mut self, image: Vec<u8>, page_size: PageSize) -> Txid {
        let continues = self.end().filter(|state| state.page_size == page_size).is_some();
        self.log(image, page_size, !continues)
    }

    /// Logs the current state again as a snapshot within the log.
    pub(crate) fn log_snapshot(&mut self, image: Vec<u8>, page_size: u32) -> Txid {
        self.page_size = PageSize::new(page_size).unwrap();
        self.log(image, self.page_size, true)
    }

    fn log(&mut self, image: Vec<u8>, page_size: PageSize, as_snapshot: bool) -> Txid {
        let txid = self.end().map_or(Txid::FIRST, |state| state.pos.txid.next());
        let time = Timestamp(START + TICK * txid.get() as i64 + self.shift);
        let checksum = checksum_of(&image, page_size);
        let state = State { pos: Pos { txid, checksum }, time, image, page_size };
        let before = if as_snapshot { None } else { self.end().cloned() };
        let start = self.body.len();
        let pages = encode_change(before.as_ref(), &state, &mut self.body);
        self.entries.push(SegmentEntry {
            min_txid: if as_snapshot { Txid::FIRST } else { txid },
            max_txid: txid,
            offset: start as u64,
            len: (self.body.len() - start) as u64,
            timestamp: time,
            page_size,
            commit: state.commit(),
            pages,
            pre_apply: before.map(|before| before.pos.checksum),
            post_apply: checksum,
        });
        self.states.insert(txid, state);
        txid
    }

    fn nonce(&mut self) -> Nonce {
        self.nonces += 1;
        Nonce([self.nonces; 16])
    }

    /// Stores what was logged since the last segment as the next one.
    pub(crate) async fn upload(&mut self) -> Seq {
        let created = self.end().map_or(Timestamp(START), |state| state.time);
        let header = SegmentHeader::log(self.lineage, self.epoch, self.seq, self.nonce(), created);
        let mut bytes = header.encode().to_vec();
        let mut entries = std::mem::take(&mut self.entries);
        for entry in &mut entries {
            entry.offset += bytes.len() as u64;
        }
        bytes.append(&mut self.body);
        let index_offset = bytes.len() as u64;
        encode_index(&entries, &header, index_offset, &mut bytes);
        let seq = self.seq;
        self.store.create(&keys::segment(seq), Bytes::from(bytes)).await.unwrap();
        self.seq = seq.next();
        seq
    }

    /// Stores a snapshot of a state and a manifest that names it. The log keeps all its segments when `txid` is not the end of it.
    pub(crate) async fn snapshot(&mut self, txid: Txid) -> ManifestFile {
        let state = self.states[&txid].clone();
        let mut bytes = Vec::new();
        let pages = encode_change(None, &state, &mut bytes);
        let key = keys::ltx(keys::SNAPSHOT_LEVEL, Txid::FIRST, txid, self.epoch);
        let file = ManifestFile {
            kind: FileKind::Snapshot,
            key: key.clone(),
            level: keys::SNAPSHOT_LEVEL,
            min_txid: Txid::FIRST,
            max_txid: txid,
            min_time: Timestamp(START),
            max_time: state.time,
            size: bytes.len() as u64,
            crc64: Crc64Hex(crc::crc64(&bytes)),
            page_size: state.page_size,
            commit: state.commit(),
            pre_apply: None,
            post_apply: state.pos.checksum,
            pages: u64::from(pages),
            entries: 1,
        };
        self.store.create(&key, Bytes::from(bytes)).await.unwrap();
        file
    }

    /// Stores a manifest that names these files, with the log from `first_seq` on.
    pub(crate) async fn manifest(&mut self, files: Vec<ManifestFile>, first_seq: Seq, log_start: Option<Txid>) {
        let (revision, version) = match self.store.get(keys::MANIFEST).await {
            Ok(object) => (Manifest::decode(&object.bytes).unwrap().revision + 1, Some(object.version)),
            Err(_) => (1, None),
        };
        let now = self.end().map_or(Timestamp(START), |state| state.time);
        let mut manifest = Manifest::new(self.lineage, self.epoch, self.nonce(), now, first_seq);
        manifest.revision = revision;
        manifest.log_start = log_start.map(|txid| self.states[&txid].pos);
        manifest.files = files;
        let bytes = Bytes::from(manifest.encode());
        self.store.swap_if(keys::MANIFEST, version.as_ref(), bytes).await.unwrap();
    }
}

/// Checksum of a whole database.
pub(crate) fn checksum_of(image: &[u8], page_size: PageSize) -> Checksum {
    let mut checksum = Checksum::EMPTY;
    for (i, page) in image.chunks(page_size.bytes()).enumerate() {
        let pgno = PageNumber::new(i as u32 + 1).unwrap();
        if pgno != page_size.lock_page() {
            checksum = checksum.toggle(Checksum::of_page(pgno, page));
        }
    }
    checksum
}

/// Appends the LTX file that leads from one state to another, or a snapshot; gives the number of its pages.
fn encode_change(before: Option<&State>, after: &State, out: &mut Vec<u8>) -> u32 {
    let header = LtxHeader {
        no_checksum: false,
        page_size: after.page_size,
        commit: after.commit(),
        min_txid: if before.is_some() { after.pos.txid } else { Txid::FIRST },
        max_txid: after.pos.txid,
        timestamp: after.time,
        pre_apply: before.map(|before| before.pos.checksum),
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    // The same bytes every time, but some files packed and some not.
    let packing = if after.pos.txid.get().is_multiple_of(3) { Packing::Stored } else { Packing::Lz4 };
    let mut encoder = Encoder::new(header, packing, out).unwrap();
    for (i, page) in after.image.chunks(after.page_size.bytes()).enumerate() {
        let pgno = PageNumber::new(i as u32 + 1).unwrap();
        if pgno != after.page_size.lock_page() && before.and_then(|before| before.page(pgno)) != Some(page) {
            encoder.page(pgno, page, out).unwrap();
        }
    }
    encoder.finish(Some(after.pos.checksum), out).unwrap().pages
}
