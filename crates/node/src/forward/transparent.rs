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

use super::borrow::{ANSWER_BYTES_MAX, Here};
use super::copy::{BUSY, check_size, open};
use super::counts::{self, Asked, Ended};
use super::{Granted, Said, TTL};
use crate::cluster::promote::{NodeControl, holder_of};
use crate::config::io_text;
use crate::follow::source::Source;
use crate::follow::{aside, preview, replica};
use crate::mount::MountHandle;
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
/// How long an answer may take to a question that nobody has to wait for.
const KEEP_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether a lock is still had.
const TICK: Duration = Duration::from_millis(500);
/// How long an application may have a transaction open, or keep the lock.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// How long the node's own follower is waited for until it has closed a file. After that others are answered before it is tried again.
const ASIDE_MAX: Duration = Duration::from_secs(1);
/// One page, by its number.
const READ_PAGE: &str = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";

/// Tells whoever has asked, once. Who is told nothing, because whoever should have done it is gone, is told of that.
pub(crate) struct Tell<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> Tell<T> {
    /// Tells this: `None` when nobody answers.
    pub(crate) fn new(tell: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    fn tell(mut self, answer: T) {
        if let Some(tell) = self.0.take() {
            tell(Some(answer));
        }
    }
}

impl<T> Drop for Tell<T> {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(None);
        }
    }
}

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
pub(crate) async fn serve(
    node: NodeControl,
    board: Arc<StatusBoard>,
    mount: MountHandle,
    mut requests: UnboundedReceiver<Request>,
) {
    let mut lines: HashMap<PathBuf, UnboundedSender<What>> = HashMap::new();
    while let Some(Request { database, what }) = requests.recv().await {
        if lines.get(&database).is_none_or(UnboundedSender::is_closed) {
            let (line, come) = unbounded_channel();
            let (node, board, mount) = (node.clone(), Arc::clone(&board), mount.clone());
            let path = database.clone();
            let one = Line {
                node,
                board,
                mount,
                path,
                link: None,
                loan: None,
                used: None,
                is_to_be_taken: None,
                kept: Kept::No,
            };
            tokio::spawn(one.run(come));
            lines.insert(database.clone(), line);
        }
        // Whoever is not answered is told of that.
        let _ = lines[&database].send(what);
    }
}

/// One database.
struct Line {
    node: NodeControl,
    board: Arc<StatusBoard>,
    mount: MountHandle,
    path: PathBuf,
    /// The connection that was used last.
    link: Option<(Source, Link)>,
    loan: Option<Loan>,
    /// Since when an application has the file's lock: until it gives that back, whatever has become of the primary's.
    used: Option<Instant>,
    /// Why the file is to be taken from the application that has its lock.
    is_to_be_taken: Option<String>,
    kept: Kept,
}

/// Whether the lock is had for more than one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    No,
    /// It is borrowed again after each.
    Yes,
    /// It was, and others may have written since. Who keeps it has to let go, and ask for it again.
    Lost,
}

/// A lock that is borrowed.
struct Loan {
    id: String,
    database: String,
    /// Of whom it was borrowed.
    holder: Option<String>,
    since: Instant,
    /// When the primary last said that it is held.
    heard: Instant,
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
            let what = match self.loan.is_some() || self.used.is_some() {
                false => come.recv().await,
                true => match tokio::time::timeout(TICK, come.recv()).await {
                    Ok(what) => what,
                    Err(_) => {
                        self.look().await;
                        continue;
                    }
                },
            };
            let Some(what) = what else { break };
            self.answer(what).await;
        }
        self.give_back().await;
    }

    async fn answer(&mut self, what: What) {
        match what {
            What::Borrow(tell) => {
                let borrowed = match self.kept {
                    Kept::Lost => Err(Refusal::Later(
                        "who keeps it by byte 72 of the -lock file has lost it, and has not let go yet".to_owned(),
                    )),
                    Kept::No | Kept::Yes => self.borrow().await,
                };
                counts::asked(match &borrowed {
                    Ok(()) => Asked::Lent,
                    Err(Refusal::Later(_)) => Asked::Busy,
                    Err(Refusal::Never(_)) => Asked::Refused,
                });
                (self.used, self.is_to_be_taken) = (borrowed.is_ok().then(Instant::now), None);
                tell.tell(borrowed);
            }
            What::Commit(changes, tell) => {
                match self.loan.take() {
                    None => {
                        counts::ended(Ended::Lost);
                        tell.tell(Err("the primary's write lock is not held any more".to_owned()));
                    }
                    Some(mut loan) => {
                        let committed = self.commit(&mut loan, changes).await;
                        tell.tell(committed);
                        close(Some(loan));
                    }
                }
                if self.kept == Kept::Yes && self.borrow().await.is_err() {
                    self.kept = Kept::Lost;
                }
            }
            What::GiveBack => {
                (self.used, self.is_to_be_taken) = (None, None);
                if self.kept != Kept::Yes {
                    self.give_back().await;
                }
            }
            What::Keep(tell) => {
                // Who is writing goes on with what he has.
                let borrowed = if self.used.is_some() && self.loan.is_some() { Ok(()) } else { self.borrow().await };
                self.kept = if borrowed.is_ok() { Kept::Yes } else { Kept::No };
                tell.tell(borrowed);
            }
            What::LetGo => {
                self.kept = Kept::No;
                if self.used.is_none() {
                    self.give_back().await;
                }
            }
        }
    }

    /// Keeps the lock for as long as one application may have it, and as long as it can be had.
    async fn look(&mut self) {
        let is_long = |since: Instant| since.elapsed() >= HOLD_MAX;
        let too_long = format!("an application has had its write lock for {HOLD_MAX:?}");
        let Some(loan) = &self.loan else {
            match self.is_to_be_taken.clone() {
                Some(why) => self.take_from_holder(why).await,
                None if self.used.is_some_and(is_long) => self.lose(too_long).await,
                None => {}
            }
            return;
        };
        let (heard, holder) = (loan.heard, loan.holder.clone());
        let why = if is_long(self.used.unwrap_or(loan.since)) {
            too_long
        } else if self.here().database(&self.path).is_err() || self.holder() != holder {
            "another node is the primary now".to_owned()
        } else if heard.elapsed() < TTL / 3 || self.keep().await || heard.elapsed() < TTL {
            // What could not be asked is asked again.
            return;
        } else {
            "the primary cannot be asked to keep it".to_owned()
        };
        self.lose(why).await;
    }

    /// The primary's lock is gone. Who has the file's must not write on, nor keep the node from going on with what the primary has.
    async fn lose(&mut self, why: String) {
        let database = self.path.display();
        if self.kept == Kept::Yes {
            self.kept = Kept::Lost;
            tracing::warn!(
                %database,
                "{why}: the primary's write lock, which byte 72 of the -lock file keeps, is given back, and nobody writes here until its holder lets go"
            );
        }
        counts::asked(Asked::Lost);
        self.give_back().await;
        if self.used.is_some() {
            self.take_from_holder(why).await;
        }
    }

    /// Takes the file from the application that has its lock. The node's own follower has closed it meanwhile: it opens it anew, and finds what it had.
    async fn take_from_holder(&mut self, why: String) {
        let (mount, path) = (self.mount.clone(), self.path.clone());
        let take = move || match aside::ask(&path, ASIDE_MAX) {
            Some(_aside) => mount.alone_with(&path, false).map(|_| true),
            None => Ok(false),
        };
        let database = self.path.display();
        match tokio::task::spawn_blocking(take).await.expect("taking does not panic") {
            Ok(true) => {
                tracing::warn!(%database, "{why}: the file was taken from whoever writes to it");
                (self.used, self.is_to_be_taken) = (None, None);
            }
            Ok(false) => {
                tracing::debug!(%database, "{why}: the file is not taken yet, as the node is busy with it");
                self.is_to_be_taken = Some(why);
            }
            Err(error) => {
                tracing::warn!(%database, "{why}: the file could not be taken: {}", io_text(&error));
                (self.used, self.is_to_be_taken) = (None, None);
            }
        }
    }

    fn holder(&self) -> Option<String> {
        match self.node.accepting {
            Some(_) => None,
            None => self.board.look_at_node(holder_of).flatten(),
        }
    }

    fn here(&self) -> Here<'_> {
        Here { node: &self.node, board: &self.board }
    }

    /// Asks the primary, by the connection of the last time if there is one. What is asked may be asked twice.
    async fn ask(&mut self, path: &str, body: Bytes, within: Duration) -> Result<Bytes, LinkError> {
        let deadline = Instant::now() + within;
        if let Some((source, link)) = self.link.take().filter(|(_, link)| !link.is_closed()) {
            let asked = link.send(path, body.clone(), ANSWER_BYTES_MAX);
            match tokio::time::timeout_at(deadline - within / 3, asked).await {
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
        let here = Here { node: &self.node, board: &self.board };
        let again = async {
            let (source, link) = here.link().await?;
            match link.send(path, body, ANSWER_BYTES_MAX).await {
                Ok(answer) => Ok((answer, source, link)),
                Err(error) => {
                    source.asked(&link);
                    Err(error)
                }
            }
        };
        let silent = |_| LinkError::Lost("the primary does not answer".to_owned());
        let (answer, source, link) = tokio::time::timeout_at(deadline, again).await.map_err(silent)??;
        self.link = Some((source, link));
        Ok(answer)
    }

    async fn ask_for_lock(&mut self, id: &str, database: &str, wait: Duration) -> Result<Granted, Refusal> {
        let query = Query::default().with("db", database).with("id", id).with("ttl", TTL.as_millis());
        let path = query.with("wait", wait.as_millis()).of("/v1/write-lock");
        let answer = self.ask(&path, Bytes::new(), wait + KEEP_MAX).await;
        let bytes = answer.map_err(|error| Refusal::Later(error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Refusal::Never(format!("the primary answers in another language: {e}")))
    }

    async fn borrow(&mut self) -> Result<(), Refusal> {
        if self.kept == Kept::Yes && self.loan.is_some() {
            if self.keep().await {
                return Ok(());
            }
            self.kept = Kept::Lost;
            self.give_back().await;
            return Err(Refusal::Later("the lock that was kept by byte 72 of the -lock file was lost".to_owned()));
        }
        // Nobody has come back for the one before.
        self.give_back().await;
        let database = self.here().database(&self.path).map_err(|(status, text)| match status {
            StatusCode::NOT_FOUND => Refusal::Never(text),
            _ => Refusal::Later(text),
        })?;
        let (id, asked, holder) = (random::hex(), Instant::now(), self.holder());
        let deadline = asked + WAIT;
        let borrowed = match self.ask_for_lock(&id, &database, WAIT).await {
            Ok(granted) => self.come_to(granted, deadline).await,
            Err(refusal) => Err(refusal),
        };
        match borrowed {
            Ok((end, reader)) => {
                // Whatever comes of it: who writes to the file from here on is no stranger.
                preview::expect(&self.path);
                self.loan =
                    Some(Loan { id, database, holder, since: asked, heard: asked, end, reader: Mutex::new(reader) });
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

    /// Keeps the lock for longer. Where it is over, what comes next is refused.
    async fn keep(&mut self) -> bool {
        let Some(loan) = &self.loan else { return false };
        let (id, database, pos) = (loan.id.clone(), loan.database.clone(), loan.end.pos);
        let asked = Instant::now();
        match self.ask_for_lock(&id, &database, Duration::ZERO).await {
            Ok(granted) if granted.pos == pos => {
                self.loan.as_mut().expect("nobody has taken it").heard = asked;
                true
            }
            Ok(_) => false,
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
        if let Err(error) = self.ask(&path, Bytes::new(), KEEP_MAX).await {
            tracing::debug!("the primary cannot be told that a write lock is not needed any more: {error}");
        }
    }

    /// Has the primary commit. What the file has in the place of these pages is kept from before that until the stream has come so far.
    async fn commit(&mut self, loan: &mut Loan, changes: Changes) -> Result<(), String> {
        let (end, began) = (loan.end, Instant::now());
        let compared = tokio::task::block_in_place(|| {
            compare(loan.reader.get_mut().unwrap_or_else(PoisonError::into_inner), &end, changes)
        });
        let Some(Compared { file, preview }) = (match compared {
            Ok(compared) => compared,
            Err(why) => {
                self.give_back_of(&loan.id).await;
                counts::ended(Ended::Refused);
                return Err(why);
            }
        }) else {
            // Nothing is another than before.
            counts::ended(Ended::Unchanged);
            self.give_back_of(&loan.id).await;
            return Ok(());
        };
        if let Err(why) = tokio::task::block_in_place(|| preview::put(&self.path, preview)) {
            self.give_back_of(&loan.id).await;
            counts::ended(Ended::Refused);
            return Err(why);
        }
        let said = self.send(&loan.id, Bytes::from(file)).await;
        match said {
            Said::Committed { .. } => {
                counts::committed(began.elapsed());
                Ok(())
            }
            Said::Ended { why } => {
                counts::ended(Ended::Refused);
                tokio::task::block_in_place(|| preview::withdraw(&self.path));
                Err(format!("nothing was committed: {why}"))
            }
            Said::Unknown { why } => {
                counts::ended(Ended::Unknown);
                tokio::task::block_in_place(|| preview::withdraw(&self.path));
                Err(format!("nobody knows whether it was committed: {why}"))
            }
        }
    }

    async fn send(&mut self, id: &str, file: Bytes) -> Said {
        let path = Query::default().with("id", id).of("/v1/write");
        let deadline = Instant::now() + SEND_MAX;
        let said = self.send_until(&path, id, file, deadline);
        let silent = |_| Said::Unknown { why: format!("no answer within {SEND_MAX:?}") };
        tokio::time::timeout_at(deadline, said).await.unwrap_or_else(silent)
    }

    async fn send_until(&mut self, path: &str, id: &str, file: Bytes, deadline: Instant) -> Said {
        // By the connection that is there: one that is lost is no reason to fail.
        if let Some((source, link)) = self.link.take().filter(|(_, link)| !link.is_closed()) {
            if let Ok(Ok(answer)) =
                tokio::time::timeout(SEND_MAX / 2, link.send(path, file.clone(), ANSWER_BYTES_MAX)).await
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
