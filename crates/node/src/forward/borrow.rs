//! The replica's end: a lock that was borrowed, the copy that a command changes, and what is sent.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use rhyolite_format::Txid;
use rhyolite_logic::lender::TTL_MAX;
use rhyolite_logic::role::Role;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::copy::{Copied, changes, copy};
use super::{Granted, Said, TTL};
use crate::cluster::node_address;
use crate::cluster::promote::{NodeControl, holder_of};
use crate::config::io_text;
use crate::follow::replica;
use crate::follow::source::Source;
use crate::random;
use crate::status::StatusBoard;
use crate::stream::client::{Link, LinkError};
use crate::stream::query::Query;

/// Between two looks at a file that is to come to a position.
const LOOK: Duration = Duration::from_millis(2);
/// How long an answer may take, beside what it waits for.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long it is tried to hear what has become of what was sent.
const SEND_MAX: Duration = Duration::from_secs(30);
/// For so long the lock is held while it is sent.
const SEND_TTL: Duration = Duration::from_secs(20);
/// Pause before that is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the own file is waited for after a commit.
const VISIBLE_MAX: Duration = Duration::from_secs(10);
/// Bytes of an answer.
pub(super) const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// In a state folder: copies.
const COPIES_FOLDER: &str = "borrowed";

/// A lock that this node has borrowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borrowed {
    /// By which it is named.
    pub id: String,
    /// The copy that may be changed.
    pub copy: PathBuf,
    /// The last transaction in it.
    pub txid: Txid,
    /// How long the lock is held, in milliseconds, unless it is asked for again.
    pub ttl_ms: u64,
}

/// What has become of the changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// See there.
    #[serde(flatten)]
    pub said: Said,
    /// Pages that were changed.
    pub pages: u32,
    /// The file of this node has them.
    pub visible: bool,
}

/// Why a request is not obeyed: how, and one line.
pub type Refusal = (StatusCode, String);

/// Answers that are remembered for whoever asks again; the oldest go first.
const ANSWERS_MAX: usize = 256;

/// The locks that this node has borrowed.
#[derive(Debug, Default)]
pub struct Borrows {
    loans: Mutex<HashMap<String, Loan>>,
    answers: Mutex<VecDeque<Answer>>,
}

/// What has become of a commit that was asked for; `None` while nobody knows.
type Answer = (String, Option<Result<Committed, Refusal>>);

#[derive(Debug)]
struct Loan {
    database: String,
    /// The file of this node.
    path: PathBuf,
    /// Taken out by whoever sends what has changed.
    copied: Option<Arc<Copied>>,
    folder: PathBuf,
    until: Instant,
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Whatever stays is removed before the next copy is made there.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What nodes of a cluster need for it.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// This node.
    pub node: &'a NodeControl,
    /// Its board.
    pub board: &'a Arc<StatusBoard>,
}

impl Borrows {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Loan>> {
        self.loans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here<'_> {
    /// The name of the database at `path`, on a replica.
    pub(super) fn database(&self, path: &Path) -> Result<String, Refusal> {
        let not_here = || (StatusCode::NOT_FOUND, format!("{} is no database of this node", path.display()));
        let name = path.strip_prefix(&self.node.folder.dir).ok().and_then(Path::to_str).ok_or_else(not_here)?;
        if !self.node.folder.takes(name) {
            return Err(not_here());
        }
        let role = self.board.look_at_node(|node| node.role.clone()).unwrap_or_default();
        if role == Role::Primary.name() {
            let text = format!("this node is the primary: write to {} itself", path.display());
            return Err((StatusCode::CONFLICT, text));
        }
        if role != Role::Replica.name() {
            return Err((StatusCode::CONFLICT, format!("this node is {role}, and follows nobody")));
        }
        Ok(name.to_owned())
    }

    /// A connection to the primary, for questions.
    pub(super) async fn link(&self) -> Result<(Source, Link), LinkError> {
        let source = match &self.node.accepting {
            Some(accepting) => Source::Accepted(Arc::clone(accepting)),
            None => {
                let holder = self.board.look_at_node(holder_of).flatten();
                let holder = holder.ok_or_else(|| LinkError::Lost("nobody is known to be the primary".to_owned()))?;
                let address = node_address(&holder).map_err(LinkError::Lost)?;
                Source::Dialed { address, access: self.node.access.clone() }
            }
        };
        let link = source.ask(ANSWER_MAX).await?;
        Ok((source, link))
    }

    /// One question to the primary.
    async fn ask(&self, path: &str, body: Bytes, within: Duration) -> Result<Bytes, LinkError> {
        let (source, link) = self.link().await?;
        let answer = tokio::time::timeout(within, link.send(path, body, ANSWER_BYTES_MAX)).await;
        source.asked(&link);
        answer.map_err(|_| LinkError::Lost("the primary does not answer".to_owned()))?
    }

    async fn ask_for_lock(
        &self,
        (id, database): (&str, &str),
        ttl: Duration,
        wait: Duration,
    ) -> Result<Granted, Refusal> {
        let query = Query::default().with("db", database).with("id", id).with("ttl", ttl.as_millis());
        let path = query.with("wait", wait.as_millis()).of("/v1/write-lock");
        let answer = self.ask(&path, Bytes::new(), wait + ANSWER_MAX).await;
        let bytes = answer.map_err(|error| match error {
            LinkError::Refused { status, text, .. } => (status, text),
            error => (StatusCode::BAD_GATEWAY, format!("the primary cannot be asked: {error}")),
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|e| (StatusCode::BAD_GATEWAY, format!("the primary answers in another language: {e}")))
    }

    /// Borrows the write lock of the database at `path`, and makes a copy of it that may be changed.
    ///
    /// # Errors
    /// See [`Refusal`]; 503 is worth another try.
    pub async fn borrow(&self, path: &Path, ttl: Option<Duration>, wait: Duration) -> Result<Borrowed, Refusal> {
        let database = self.database(path)?;
        let ttl = ttl.unwrap_or(TTL).min(TTL_MAX);
        let deadline = Instant::now() + wait;
        let id = random::hex();
        let borrowed = async {
            let granted = self.ask_for_lock((&id, &database), ttl, wait).await?;
            let copying = self.copy(path, (&id, &database), granted, deadline);
            let copied = self.while_kept((&id, &database), copying).await?;
            self.keep(&id, Some(ttl)).await.map(|kept| Borrowed { ttl_ms: kept.ttl_ms, ..copied })
        };
        match borrowed.await {
            Ok(borrowed) => Ok(borrowed),
            Err(refusal) => {
                self.give_back(&id).await;
                Err(refusal)
            }
        }
    }

    /// Does something that may take longer than a lock is lent, and asks for it again meanwhile.
    async fn while_kept<T>(&self, (id, database): (&str, &str), work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(TTL / 3) => {
                    // Where it is over, what comes next is refused.
                    let _ = self.ask_for_lock((id, database), TTL, Duration::ZERO).await;
                }
            }
        }
    }

    /// Copies the file of this node as soon as it is where the primary's is.
    async fn copy(
        &self,
        path: &Path,
        (id, database): (&str, &str),
        granted: Granted,
        deadline: Instant,
    ) -> Result<Borrowed, Refusal> {
        let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text);
        let parent = self.node.folder.database(database).meta_path.join(COPIES_FOLDER);
        self.sweep(&parent, database);
        let folder = parent.join(id);
        let name = path.file_name().expect("it has the name of a database");
        let to = folder.join(name);
        let made =
            std::fs::create_dir_all(&parent).and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(&folder));
        made.map_err(|e| failed(format!("make {}: {}", folder.display(), io_text(&e))))?;
        let until = Instant::now();
        let mut loan =
            Loan { database: database.to_owned(), path: path.to_owned(), copied: None, folder: folder.clone(), until };
        loop {
            let (from, to, Granted { lineage, pos, .. }) = (path.to_owned(), to.clone(), granted);
            let copied = tokio::task::spawn_blocking(move || copy(&from, &to, lineage, pos)).await;
            if let Some(copied) = copied.expect("copying does not panic").map_err(failed)? {
                loan.copied = Some(Arc::new(copied));
                break;
            }
            if Instant::now() >= deadline {
                let text = format!("{} has not come to transaction {} in time", path.display(), granted.pos.txid);
                return Err((StatusCode::SERVICE_UNAVAILABLE, text));
            }
            tokio::time::sleep(LOOK).await;
        }
        loan.until = Instant::now() + TTL;
        self.node.borrows.lock().insert(id.to_owned(), loan);
        tokio::spawn(forget(Arc::clone(&self.node.borrows), id.to_owned()));
        Ok(Borrowed { id: id.to_owned(), copy: to, txid: granted.pos.txid, ttl_ms: granted.ttl_ms })
    }

    /// Removes copies that a process before this one has left.
    fn sweep(&self, parent: &Path, database: &str) {
        if !self.node.borrows.lock().values().any(|loan| loan.database == database) {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_dir_all(parent);
        }
    }

    /// Keeps a lock for longer.
    ///
    /// # Errors
    /// It is over, or the primary cannot be asked.
    pub async fn keep(&self, id: &str, ttl: Option<Duration>) -> Result<Borrowed, Refusal> {
        let unknown = || (StatusCode::NOT_FOUND, format!("no lock is borrowed by the id {id:?}"));
        let known = |loans: &HashMap<String, Loan>| {
            let loan = loans.get(id)?;
            let copied = loan.copied.as_ref()?;
            Some((loan.database.clone(), copied.path.clone(), copied.pos.txid))
        };
        let (database, copy, txid) = known(&self.node.borrows.lock()).ok_or_else(unknown)?;
        let asked = Instant::now();
        let granted = self.ask_for_lock((id, &database), ttl.unwrap_or(TTL), Duration::ZERO).await?;
        let mut loans = self.node.borrows.lock();
        let loan = loans.get_mut(id).ok_or_else(unknown)?;
        loan.until = asked + Duration::from_millis(granted.ttl_ms);
        Ok(Borrowed { id: id.to_owned(), copy, txid, ttl_ms: granted.ttl_ms })
    }

    /// Gives a lock back, with nothing committed.
    pub async fn give_back(&self, id: &str) {
        drop(self.node.borrows.lock().remove(id));
        self.unlock(id).await;
    }

    /// Tells the primary that a lock is not needed any more.
    pub(super) async fn unlock(&self, id: &str) {
        let path = Query::default().with("id", id).of("/v1/write-unlock");
        if let Err(error) = self.ask(&path, Bytes::new(), ANSWER_MAX).await {
            tracing::warn!("the primary cannot be told that a write lock is not needed any more: {error}");
        }
    }

    /// Has the primary commit what has changed in the copy. Once: then the copy is gone, and whoever asks again hears what has become of it.
    ///
    /// # Errors
    /// The id is not known, or what has changed cannot be sent: nothing is committed then. It is being committed: 503.
    pub async fn commit(&self, id: &str) -> Result<Committed, Refusal> {
        {
            let mut answers = self.node.borrows.answers();
            match answers.iter().find(|(known, _)| known == id) {
                Some((_, Some(answer))) => return answer.clone(),
                Some((_, None)) => {
                    return Err((StatusCode::SERVICE_UNAVAILABLE, "it is being committed: ask again".to_owned()));
                }
                None if self.node.borrows.lock().contains_key(id) => answers.push_back((id.to_owned(), None)),
                None => {}
            }
            if answers.len() > ANSWERS_MAX {
                answers.pop_front();
            }
        }
        let answer = self.commit_once(id).await;
        if let Some((_, known)) = self.node.borrows.answers().iter_mut().find(|(known, _)| known == id) {
            *known = Some(answer.clone());
        }
        answer
    }

    async fn commit_once(&self, id: &str) -> Result<Committed, Refusal> {
        let unknown = || (StatusCode::NOT_FOUND, format!("no lock is borrowed by the id {id:?}, or not any more"));
        // The copy lives until this has ended; the loan is over for everybody else.
        let loan = self.node.borrows.lock().remove(id).ok_or_else(unknown)?;
        let copied = loan.copied.clone().ok_or_else(unknown)?;
        let txid = copied.pos.txid;
        let found = tokio::task::spawn_blocking(move || changes(&copied));
        let found = self.while_kept((id, &loan.database), found).await.expect("reading does not panic");
        let (bytes, pages) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.give_back(id).await;
                return Ok(Committed { said: Said::Committed { txid }, pages: 0, visible: true });
            }
            Err(text) => {
                self.give_back(id).await;
                return Err((StatusCode::CONFLICT, text));
            }
        };
        // Sending may take longer than what is left.
        if let Err((_, why)) = self.ask_for_lock((id, &loan.database), SEND_TTL, Duration::ZERO).await {
            self.give_back(id).await;
            return Ok(Committed { said: Said::Ended { why }, pages, visible: false });
        }
        let deadline = Instant::now() + SEND_MAX;
        let said = self.while_kept((id, &loan.database), self.send(id, Bytes::from(bytes), deadline)).await;
        let visible = match said {
            Said::Committed { txid } => is_visible(&loan.path, txid).await,
            Said::Ended { .. } | Said::Unknown { .. } => false,
        };
        Ok(Committed { said, pages, visible })
    }

    /// Sends what is to be committed until somebody says what has become of it.
    pub(super) async fn send(&self, id: &str, bytes: Bytes, deadline: Instant) -> Said {
        let path = Query::default().with("id", id).of("/v1/write");
        let mut is_first = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let why = match self.ask(&path, bytes.clone(), left).await {
                Ok(answer) => match serde_json::from_slice(&answer) {
                    Ok(said) => return said,
                    Err(error) => format!("the primary answers in another language: {error}"),
                },
                Err(LinkError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                    let why = "another node has become the primary meanwhile, or it was started anew";
                    return Said::Unknown { why: why.to_owned() };
                }
                // The first answer, and it was not even looked at.
                Err(LinkError::Refused {
                    status: StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST,
                    text,
                    ..
                }) if is_first => {
                    return Said::Ended { why: text };
                }
                Err(error) => error.to_string(),
            };
            is_first = false;
            if Instant::now() >= deadline {
                return Said::Unknown { why: format!("no answer in time: {why}") };
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Waits until a file has a transaction.
async fn is_visible(path: &Path, txid: Txid) -> bool {
    let deadline = Instant::now() + VISIBLE_MAX;
    loop {
        let path = path.to_owned();
        let noted = tokio::task::spawn_blocking(move || replica::noted(&path)).await;
        if noted.expect("reading does not panic").is_some_and(|pos| pos.txid >= txid) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes the copy of a lock that nobody has come back for.
async fn forget(borrows: Arc<Borrows>, id: String) {
    loop {
        let until = match borrows.lock().get(&id) {
            Some(loan) if loan.until > Instant::now() => loan.until,
            Some(_) => break,
            None => return,
        };
        tokio::time::sleep_until(until).await;
    }
    if borrows.lock().remove(&id).is_some() {
        tracing::warn!("nobody has come back for a write lock that was borrowed: its copy is removed");
    }
}
