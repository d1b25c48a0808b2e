//! A thread that holds SQLite's write lock on a database of the primary, and commits pages that a replica has sent.
//!
//! It is a writer like any application: capture takes its commit from the WAL, or from the mount, as any other.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use rhyolite_format::ltx::Decoder;
use rhyolite_format::{Checksum, Epoch, PageCount, PageNumber, Pos};
use rhyolite_writer::lease_keeper::LeaseHandle;
use rusqlite::config::DbConfig;
use rusqlite::types::Null;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::lent::Lent;
use crate::follow::wal::{READ_PAGE, SCHEMA, WRITE_PAGE, attach};

/// How long readers of a database in rollback mode are waited for at the commit: less than who ends the role waits for it.
const COMMIT_WAIT: Duration = Duration::from_millis(1500);
/// Where page 1 says by which journal the database is changed (SQLite file format, 1.3).
const VERSIONS: std::ops::Range<usize> = 18..20;

/// Why nothing was committed, or nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Nothing was.
    Not(String),
    /// SQLite could not say.
    Unknown(String),
}

/// Why the lock was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    /// Somebody else is writing.
    Busy,
    /// It cannot be.
    Failed(String),
}

impl Untaken {
    fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// What the thread is to commit.
struct Commit {
    /// An LTX file.
    body: Bytes,
    /// Where the database is.
    pos: Pos,
    /// The right under which it is committed.
    lease: LeaseHandle,
    epoch: Epoch,
    reply: oneshot::Sender<Result<(), Failed>>,
}

/// The write lock is held as long as this lives.
#[derive(Debug)]
pub(super) struct Holder(mpsc::Sender<Commit>);

impl Holder {
    /// Takes the lock of the database at `path`, waiting for other writers for `wait` at most. Blocks.
    pub(super) fn take(path: &Path, wait: Duration) -> Result<Self, Untaken> {
        let (line, commits) = mpsc::channel();
        let (taken, result) = mpsc::sync_channel(1);
        let path = path.to_owned();
        let thread = std::thread::Builder::new().name("write-lock".to_owned()).spawn(move || {
            let lent = Lent::new(&path);
            match open(&path, wait) {
                Ok(connection) => {
                    // Nobody is left who waits: the lock goes with the connection.
                    if taken.send(Ok(())).is_ok() {
                        hold(connection, &commits);
                    }
                }
                Err(error) => drop(taken.send(Err(Untaken::of(&error)))),
            }
            drop(lent);
        });
        thread.map_err(|e| Untaken::Failed(format!("start a thread: {e}")))?;
        result.recv().map_err(|_| Untaken::Failed("the thread has ended".to_owned()))??;
        Ok(Self(line))
    }

    /// Commits the LTX file in `body`, which must lead on from `pos`, where the database is, as long as the right of `epoch` lasts. The lock is given back with it.
    pub(super) async fn commit(&self, body: Bytes, pos: Pos, lease: LeaseHandle, epoch: Epoch) -> Result<(), Failed> {
        let gone = || Failed::Unknown("the thread that commits has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        self.0.send(Commit { body, pos, lease, epoch, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn open(path: &Path, wait: Duration) -> rusqlite::Result<Connection> {
    let connection = attach(path)?;
    connection.busy_timeout(wait)?;
    // The WAL and its checkpoints are capture's.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(Some(SCHEMA), "synchronous", "full")?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.busy_timeout(COMMIT_WAIT)?;
    Ok(connection)
}

/// Holds the lock until it is told to commit, or nobody wants it any more. The connection is closed before anybody hears of the end.
fn hold(connection: Connection, commits: &mpsc::Receiver<Commit>) {
    if let Ok(Commit { body, pos, lease, epoch, reply }) = commits.recv() {
        let done = write(&connection, &body, pos).map_err(Failed::Not).and_then(|()| {
            if lease.right() != Some(epoch) {
                return Err(Failed::Not("this node is not the primary any more".to_owned()));
            }
            connection.execute_batch("COMMIT").map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy) => Failed::Not("readers of the database do not let go".to_owned()),
                _ => Failed::Unknown(error.to_string()),
            })
        });
        if done.is_err() && !connection.is_autocommit() {
            // Whether this works or the connection is closed: nothing of it is left.
            let _ = connection.execute_batch("ROLLBACK");
        }
        drop(connection);
        // Whoever waits may be gone: what has become of it is seen in the log.
        let _ = reply.send(done);
    }
}

/// Writes the pages, and proves that the database was, and becomes, what the sender has.
fn write(connection: &Connection, body: &[u8], pos: Pos) -> Result<(), String> {
    let sqlite = |e: rusqlite::Error| e.to_string();
    let odd = |e: &dyn std::fmt::Display| format!("what was sent cannot be used: {e}");
    let mut decoder = Decoder::new(body).map_err(|e| odd(&e))?;
    let header = *decoder.header();
    let pragma = |name| connection.pragma_query_value(Some(SCHEMA), name, |row| row.get::<_, u32>(0)).map_err(sqlite);
    let (page_size, count) = (pragma("page_size")?, PageCount(pragma("page_count")?));
    if header.page_size.get() != page_size {
        let text = "the page size cannot be changed on a replica: run VACUUM on the primary";
        return Err(format!("{text} (it is {page_size}, and {} was sent)", header.page_size.get()));
    }
    let next = pos.txid.next();
    if header.pre_apply != Some(pos.checksum) || header.min_txid != next || header.max_txid != next {
        return Err(odd(&format!("it does not lead on from {pos}")));
    }
    if header.commit.get() == 0 {
        return Err(odd(&"it has no pages"));
    }
    let mut read = connection.prepare(READ_PAGE).map_err(sqlite)?;
    let mut insert = connection.prepare(WRITE_PAGE).map_err(sqlite)?;
    let mut page_at = |pgno: PageNumber| -> Result<Vec<u8>, String> {
        read.query_row([pgno.get()], |row| row.get(0)).map_err(sqlite)
    };
    let (mut sum, mut page, mut first, mut pages) = (pos.checksum, vec![0; header.page_size.bytes()], None, 0);
    while let Some(pgno) = decoder.next_page(&mut page).map_err(|e| odd(&e))? {
        pages += u32::from(pgno.get() > count.get());
        if pgno.get() <= count.get() {
            sum = sum.toggle(Checksum::of_page(pgno, &page_at(pgno)?));
        }
        sum = sum.toggle(Checksum::of_page(pgno, &page));
        if pgno == PageNumber::FIRST {
            first = Some(page.clone());
        } else {
            insert.execute((pgno.get(), &page)).map_err(sqlite)?;
        }
    }
    let trailer = decoder.finish_at_end().map_err(|e| odd(&e))?;
    // The lock page is never sent.
    if header.commit.get().saturating_sub(count.get()) > pages + 1 {
        return Err(odd(&"it is larger than what it has pages for"));
    }
    for number in header.commit.get()..count.get() {
        let pgno = PageNumber::new(number + 1).expect("after page 0");
        if pgno != header.page_size.lock_page() {
            sum = sum.toggle(Checksum::of_page(pgno, &page_at(pgno)?));
        }
    }
    if trailer.post_apply != Some(sum) {
        return Err(odd(&"its pages do not add up: it was not made from this database"));
    }
    if let Some(page) = &mut first {
        // Its journal mode stays the one that it has here.
        page[VERSIONS].copy_from_slice(&page_at(PageNumber::FIRST)?[VERSIONS]);
    }
    // Both come last, in this order.
    let cut = (header.commit < count).then(|| u64::from(header.commit.get()).cast_signed() + 1);
    first.map_or(Ok(0), |page| insert.execute((1, page))).map_err(sqlite)?;
    cut.map_or(Ok(0), |cut| insert.execute((cut, Null))).map_err(sqlite).map(drop)
}
