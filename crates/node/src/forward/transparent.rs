//! Transparent write forwarding: an application on a replica's mount writes to its database as on the primary, and the mount asks here for the primary's write lock and
//! has each transaction committed there ([`crate::mount`]).
//!
//! What is committed there is written here by the application itself, a moment before the stream brings the same pages. Until then the file is ahead of where it is noted to be: what
//! it had in the place of these pages is kept ([`crate::follow::preview`]), so that whatever the history goes on with, the file becomes that.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use bytes::Bytes;
use http::StatusCode;
use rhyolite_format::follow::FollowEnd;
use rhyolite_format::ltx::{Encoder, LtxHeader, Packing};
use rhyolite_format::{Checksum, Lineage, PageCount, PageNumber, PageSize};
use rusqlite::Connection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::borrow::{ANSWER_BYTES_MAX, ANSWER_MAX, Here};
use super::copy::{BUSY, check_size, open};
use super::{Granted, Said, TTL};
use crate::cluster::promote::NodeControl;
use crate::follow::source::Source;
use crate::follow::{preview, replica};
use crate::random;
use crate::status::StatusBoard;
use crate::stream::client::{Link, LinkError};
use crate::stream::query::Query;
use crate::time;

/// How long whoever asks for the lock waits for others that have it, and then for the file to be where the primary's is. SQLite asks again for as long as its busy handler says.
const WAIT: Duration = Duration::from_secs(2);
/// Between two looks at a file that is to come to a position: at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(2));
/// How long it is tried to hear what has become of what was sent. The application waits in the kernel for it.
const SEND_MAX: Duration = Duration::from_secs(10);
/// How long an application may have a transaction open, or keep the lock.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// One page, by its number.
const READ_PAGE: &str = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";

/// Tells whoever has asked.
pub(crate) type Tell<T> = Box<dyn FnOnce(T) + Send>;

/// What the mount asks for, of the database at this path.
#[derive(Debug)]
pub struct Request {
    pub(crate) database: PathBuf,
    pub(crate) what: What,
}

/// See there.
pub(crate) enum What {
    /// To have the primary's write lock, and the file where the primary's is.
    Borrow(Tell<Result<(), Refusal>>),
    /// To commit under it, once.
    Commit(Changes, Tell<Result<(), String>>),
    /// To give it back, if it was not used and nobody keeps it.
    GiveBack,
    /// To have the lock for more than one transaction, until [`What::LetGo`].
    Keep(Tell<Result<(), Refusal>>),
    /// See there.
    LetGo,
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Borrow(_) => "Borrow",
            Self::Commit(..) => "Commit",
            Self::GiveBack => "GiveBack",
            Self::Keep(_) => "Keep",
            Self::LetGo => "LetGo",
        })
    }
}

/// Why a lock is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is worth another try.
    Later(String),
    /// It is not.
    Never(String),
}

/// The pages of a transaction.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) page_size: PageSize,
    /// How many pages the database has after it.
    pub(crate) commit: PageCount,
    pub(crate) pages: BTreeMap<PageNumber, Vec<u8>>,
}

/// Answers what a mount asks for, until the mount is gone.
pub(crate) async fn serve(node: NodeControl, board: Arc<StatusBoard>, mut requests: UnboundedReceiver<Request>) {
    let mut lines: HashMap<PathBuf, UnboundedSender<What>> = HashMap::new();
    while let Some(Request { database, what }) = requests.recv().await {
        let line = lines.entry(database.clone()).or_insert_with(|| {
            let (line, come) = unbounded_channel();
            let line_of = Line {
                node: node.clone(),
                board: Arc::clone(&board),
                path: database,
                link: None,
                loan: None,
                is_kept: false,
            };
            tokio::spawn(line_of.run(come));
            line
        });
        // Its task ends when nobody asks any more.
        let _ = line.send(what);
    }
}

/// One database.
struct Line {
    node: NodeControl,
    board: Arc<StatusBoard>,
    path: PathBuf,
    /// The connection that was used last.
    link: Option<(Source, Link)>,
    loan: Option<Loan>,
    /// It is borrowed again after each transaction.
    is_kept: bool,
}

/// A lock that is borrowed.
struct Loan {
    id: String,
    database: String,
    since: Instant,
    end: FollowEnd,
    /// What was there before is read by this. It is opened while nobody writes, and closed when nobody waits any more: the kernel lets SQLite do neither (it gives
    /// files away, and flushes them) while a write to the WAL waits for its answer.
    reader: Mutex<Connection>,
}

impl Drop for Line {
    fn drop(&mut self) {
        close(self.loan.take());
    }
}

/// Closes what was opened for a loan.
fn close(loan: Option<Loan>) {
    if let Some(Loan { reader, .. }) = loan {
        tokio::task::spawn_blocking(move || drop(reader));
    }
}

impl Line {
    async fn run(mut self, mut come: UnboundedReceiver<What>) {
        loop {
            let what = match self.loan {
                None => come.recv().await,
                Some(_) => match tokio::time::timeout(TTL / 3, come.recv()).await {
                    Ok(what) => what,
                    Err(_) => {
                        self.keep_or_end().await;
                        continue;
                    }
                },
            };
            match what {
                None => break,
                Some(What::Borrow(tell)) => {
                    let borrowed = self.borrow().await;
                    tell(borrowed);
                }
                Some(What::Commit(changes, tell)) => {
                    match self.loan.take() {
                        None => tell(Err("the primary's write lock is not held any more".to_owned())),
                        Some(mut loan) => {
                            let committed = self.commit(&mut loan, changes).await;
                            tell(committed);
                            close(Some(loan));
                        }
                    }
                    if self.is_kept {
                        // Whoever writes next asks again should it not be had.
                        let _ = self.borrow().await;
                    }
                }
                Some(What::GiveBack) if self.is_kept => {}
                Some(What::GiveBack) => self.give_back().await,
                Some(What::Keep(tell)) => {
                    let borrowed = self.borrow().await;
                    self.is_kept = borrowed.is_ok();
                    tell(borrowed);
                }
                Some(What::LetGo) => {
                    self.is_kept = false;
                    self.give_back().await;
                }
            }
        }
        self.give_back().await;
    }

    fn here(&self) -> Here<'_> {
        Here { node: &self.node, board: &self.board }
    }

    /// Asks the primary, by the connection of the last time if there is one. What is asked may be asked twice.
    async fn ask(&mut self, path: &str, body: Bytes, within: Duration) -> Result<Bytes, LinkError> {
        if let Some((source, link)) = self.link.take().filter(|(_, link)| !link.is_closed()) {
            match tokio::time::timeout(within, link.send(path, body.clone(), ANSWER_BYTES_MAX)).await {
                Ok(Ok(answer)) => {
                    self.link = Some((source, link));
                    return Ok(answer);
                }
                Ok(Err(error @ LinkError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. })) => {
                    self.link = Some((source, link));
                    return Err(error);
                }
                // It may lead to one that is the primary no more.
                Ok(Err(_)) | Err(_) => source.asked(&link),
            }
        }
        let (source, link) = self.here().link().await?;
        let answer = tokio::time::timeout(within, link.send(path, body, ANSWER_BYTES_MAX)).await;
        let answer = answer.map_err(|_| LinkError::Lost("the primary does not answer".to_owned()));
        match answer {
            Ok(Ok(answer)) => {
                self.link = Some((source, link));
                Ok(answer)
            }
            Ok(Err(error)) | Err(error) => {
                source.asked(&link);
                Err(error)
            }
        }
    }

    async fn ask_for_lock(&mut self, id: &str, database: &str, wait: Duration) -> Result<Granted, Refusal> {
        let query = Query::default().with("db", database).with("id", id).with("ttl", TTL.as_millis());
        let path = query.with("wait", wait.as_millis()).of("/v1/write-lock");
        let answer = self.ask(&path, Bytes::new(), wait + ANSWER_MAX).await;
        let bytes = answer.map_err(|error| Refusal::Later(error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Refusal::Never(format!("the primary answers in another language: {e}")))
    }

    async fn borrow(&mut self) -> Result<(), Refusal> {
        if self.is_kept && self.loan.is_some() && self.keep().await {
            return Ok(());
        }
        // Nobody has come back for the one before.
        self.give_back().await;
        let database = self.here().database(&self.path).map_err(|(status, text)| match status {
            StatusCode::NOT_FOUND => Refusal::Never(text),
            _ => Refusal::Later(text),
        })?;
        let (id, deadline) = (random::hex(), Instant::now() + WAIT);
        let borrowed = match self.ask_for_lock(&id, &database, WAIT).await {
            Ok(granted) => self.come_to(granted, deadline).await,
            Err(refusal) => Err(refusal),
        };
        match borrowed {
            Ok((end, reader)) => {
                // Whatever comes of it: who writes to the file from here on is no stranger.
                preview::expect(&self.path);
                self.loan = Some(Loan { id, database, since: Instant::now(), end, reader: Mutex::new(reader) });
                Ok(())
            }
            Err(refusal) => {
                // Whoever asks next does not wait for it: the primary may be gone.
                let (node, board) = (self.node.clone(), Arc::clone(&self.board));
                tokio::spawn(async move { Here { node: &node, board: &board }.unlock(&id).await });
                Err(refusal)
            }
        }
    }

    /// Waits until the file is where the primary's is, and nothing in it is ahead of that.
    async fn come_to(&self, granted: Granted, deadline: Instant) -> Result<(FollowEnd, Connection), Refusal> {
        let Granted { lineage, pos, .. } = granted;
        let mut pause = LOOK.0;
        loop {
            let path = self.path.clone();
            let look = move || -> Result<Option<(Lineage, FollowEnd, Connection)>, String> {
                if replica::noted(&path) != Some(pos) || preview::is_unsettled(&path) {
                    return Ok(None);
                }
                let found = replica::end_at(&path, pos).map_err(|e| e.to_string())?;
                let Some((held, end)) = found else { return Ok(None) };
                reader(&path)
                    .map(|reader| Some((held, end, reader)))
                    .map_err(|e| format!("read {}: {e}", path.display()))
            };
            let found = tokio::task::spawn_blocking(look).await.expect("reading does not panic");
            match found.map_err(Refusal::Never)? {
                Some((held, end, reader)) if held == lineage => return Ok((end, reader)),
                Some(_) => return Err(Refusal::Later("the file is of another history than the primary's".to_owned())),
                None if Instant::now() >= deadline => {
                    preview::doubt(&self.path, pos);
                    return Err(Refusal::Later(format!("the file has not come to transaction {} in time", pos.txid)));
                }
                None => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Keeps the lock for as long as one application may have it.
    async fn keep_or_end(&mut self) {
        if self.loan.as_ref().is_some_and(|loan| loan.since.elapsed() < HOLD_MAX) {
            let _ = self.keep().await;
        } else {
            tracing::warn!(database = %self.path.display(), "an application keeps its write lock for more than {HOLD_MAX:?}: it goes back to the primary, and what is not committed cannot be");
            self.give_back().await;
        }
    }

    /// Keeps the lock for longer. Where it is over, what comes next is refused.
    async fn keep(&mut self) -> bool {
        let Some(loan) = &self.loan else { return false };
        let (id, database, pos) = (loan.id.clone(), loan.database.clone(), loan.end.pos);
        match self.ask_for_lock(&id, &database, Duration::ZERO).await {
            Ok(granted) => granted.pos == pos,
            Err(Refusal::Later(why) | Refusal::Never(why)) => {
                tracing::debug!(database, "a borrowed write lock could not be kept: {why}");
                false
            }
        }
    }

    async fn give_back(&mut self) {
        if let Some(loan) = self.loan.take() {
            self.give_back_of(&loan.id).await;
            close(Some(loan));
        }
    }

    async fn give_back_of(&mut self, id: &str) {
        let path = Query::default().with("id", id).of("/v1/write-unlock");
        if let Err(error) = self.ask(&path, Bytes::new(), ANSWER_MAX).await {
            tracing::debug!("the primary cannot be told that a write lock is not needed any more: {error}");
        }
    }

    /// Has the primary commit. What the file has in the place of these pages is kept from before that until the stream has come so far.
    async fn commit(&mut self, loan: &mut Loan, changes: Changes) -> Result<(), String> {
        let end = loan.end;
        let compared = tokio::task::block_in_place(|| {
            compare(loan.reader.get_mut().unwrap_or_else(PoisonError::into_inner), &end, changes)
        });
        let Some(Compared { file, preview }) = (match compared {
            Ok(compared) => compared,
            Err(why) => {
                self.give_back_of(&loan.id).await;
                return Err(why);
            }
        }) else {
            // Nothing is another than before.
            self.give_back_of(&loan.id).await;
            return Ok(());
        };
        if let Err(why) = preview::put(&self.path, preview) {
            self.give_back_of(&loan.id).await;
            return Err(why);
        }
        let said = self.send(&loan.id, Bytes::from(file)).await;
        match said {
            Said::Committed { .. } => Ok(()),
            Said::Ended { why } => {
                preview::withdraw(&self.path);
                Err(format!("nothing was committed: {why}"))
            }
            Said::Unknown { why } => {
                preview::withdraw(&self.path);
                Err(format!("nobody knows whether it was committed: {why}"))
            }
        }
    }

    async fn send(&mut self, id: &str, file: Bytes) -> Said {
        let path = Query::default().with("id", id).of("/v1/write");
        let deadline = Instant::now() + SEND_MAX;
        // By the connection that is there: one that is lost is no reason to fail.
        if let Some((source, link)) = self.link.take().filter(|(_, link)| !link.is_closed()) {
            if let Ok(Ok(answer)) =
                tokio::time::timeout(SEND_MAX, link.send(&path, file.clone(), ANSWER_BYTES_MAX)).await
                && let Ok(said) = serde_json::from_slice(&answer)
            {
                self.link = Some((source, link));
                return said;
            }
            source.asked(&link);
        }
        self.here().send(id, file, deadline).await
    }
}

/// A transaction that is to be sent, and what was there before.
struct Compared {
    /// An LTX file.
    file: Vec<u8>,
    preview: preview::Preview,
}

/// What a transaction changes in the file of `reader`, which is at `end`. `None` when that is nothing.
fn compare(reader: &Connection, end: &FollowEnd, changes: Changes) -> Result<Option<Compared>, String> {
    let Changes { page_size, commit, mut pages } = changes;
    let odd = |e: &dyn fmt::Display| format!("what was written cannot be sent: {e}");
    if page_size != end.page_size {
        return Err("the page size can be changed on the primary only".to_owned());
    }
    let mut before = read_before(reader, end, commit, pages.keys().copied()).map_err(|e| odd(&e))?;
    let mut sum = end.pos.checksum;
    let next = end.pos.txid.next();
    let header = LtxHeader {
        no_checksum: false,
        page_size,
        commit,
        min_txid: next,
        max_txid: next,
        timestamp: time::now(),
        pre_apply: Some(end.pos.checksum),
        wal_offset: 0,
        wal_size: 0,
        wal_salt: (0, 0),
        node_id: 0,
    };
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, Packing::Lz4, &mut out).map_err(|e| odd(&e))?;
    let as_logged = |pgno: PageNumber, page: &[u8]| {
        let mut page = page.to_vec();
        if pgno == PageNumber::FIRST {
            end.page_one.put(&mut page);
        }
        page
    };
    pages.retain(|pgno, page| {
        let is_same = before.get(pgno).is_some_and(|before| as_logged(*pgno, before) == as_logged(*pgno, page));
        !is_same && *pgno != page_size.lock_page()
    });
    for (pgno, page) in &pages {
        let page = as_logged(*pgno, page);
        sum = sum.toggle(Checksum::of_page(*pgno, &page));
        encoder.page(*pgno, &page, &mut out).map_err(|e| odd(&e))?;
        check_size(&out).map_err(|e| odd(&e))?;
    }
    before.retain(|pgno, _| pages.contains_key(pgno) || !commit.contains(*pgno));
    for (pgno, page) in &before {
        sum = sum.toggle(Checksum::of_page(*pgno, &as_logged(*pgno, page)));
    }
    if pages.is_empty() && commit == end.commit {
        return Ok(None);
    }
    encoder.finish(Some(sum), &mut out).map_err(|e| odd(&e))?;
    check_size(&out).map_err(|e| odd(&e))?;
    let preview = preview::Preview { pos: end.pos, page_size, commit: end.commit, pages: before };
    Ok(Some(Compared { file: out, preview }))
}

/// A connection that reads what is there.
fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, rusqlite::OpenFlags::empty())?;
    connection.busy_timeout(BUSY)?;
    // All files are open from here on.
    connection.query_row(READ_PAGE, [1], |_| Ok(()))?;
    Ok(connection)
}

/// Pages as they are before the transaction: those that it writes, and those that it cuts off.
fn read_before(
    connection: &Connection,
    end: &FollowEnd,
    commit: PageCount,
    written: impl Iterator<Item = PageNumber>,
) -> rusqlite::Result<BTreeMap<PageNumber, Vec<u8>>> {
    connection.execute_batch("BEGIN")?;
    let mut statement = connection.prepare(READ_PAGE)?;
    let cut_off = (commit.get()..end.commit.get()).filter_map(|number| PageNumber::new(number + 1));
    let wanted = written.filter(|pgno| end.commit.contains(*pgno)).chain(cut_off);
    let mut pages = BTreeMap::new();
    for pgno in wanted.filter(|pgno| *pgno != end.page_size.lock_page()) {
        pages.insert(pgno, statement.query_row([pgno.get()], |row| row.get(0))?);
    }
    Ok(pages)
}

/// Gives the end of a line to who asks, and the other one to who answers. A thread passes it on: those who serve a mount have other descriptors than we, and cannot wake who waits here.
///
/// # Errors
/// No thread can be started.
pub(crate) fn line() -> io::Result<(mpsc::Sender<Request>, UnboundedReceiver<Request>)> {
    let ((asks, asked), (pass, passed)) = (mpsc::channel(), unbounded_channel());
    let pass_on = move || asked.into_iter().try_for_each(|request| pass.send(request).ok()).unwrap_or_default();
    thread::Builder::new().name("forwarding".to_owned()).spawn(pass_on)?;
    Ok((asks, passed))
}
