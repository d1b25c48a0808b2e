//! Serves what is captured here to those who follow it (docs/spec/stream.md).
//!
//! One task for each connection, one for each request on it. A follower that does not read fills the window of its HTTP/2 stream, and then only
//! the task of that stream waits: what that follower misses meanwhile it gets from the files of the log.
//!
//! What foreign ends can make this hold in memory:
//! 1. Before the token was seen: a connection, and that for [`SILENCE_MAX`] at most.
//! 2. For each request a task, and [`SEND_BUFFER_BYTES`]; [`REQUESTS_MAX`] in all.
//! 3. What was read for answers and is not sent yet: [`READ_KIB_MAX`] in all. Nothing is read before there is room in the stream's window, and a stream
//!    whose other end takes nothing for [`STALL_MAX`] while it holds something is reset; the follower asks again.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use rhyolite_format::stream::{self, Database, End, EndReason, Frame};
use rhyolite_format::{Epoch, Lineage, Pos};
use rhyolite_logic::merge::pause_after;
use rhyolite_logic::stream::{Standing, judge};
use rhyolite_store::{Operation, Store, StoreError, StoreErrorKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;

use super::client::{Frames, LinkError};
use super::feed::{Follower, Origin, Served};
use super::frames::Form;
use super::http1::{self, Begun};
use super::lend::{WRITE, WRITE_LOCK, WRITE_UNLOCK};
use super::log_files::{Found, LogFiles};
use super::query::Query;
use super::tls::Acceptor;
use super::waiting::WAIT;
use super::{HEARTBEAT, PART_BYTES_MAX, SILENCE_MAX, WHOLE_BYTES_MAX};
use crate::capture::restart::LOG_FOLDER;
use crate::cluster::{Handoff, known_address};
use crate::config::cluster::Token;
use crate::config::folder::FolderConfig;
use crate::durability::Waits;
use crate::proxy::About;
use crate::status::{DatabaseStatus, StatusBoard};
use crate::time;
use crate::witness_board::Present;

/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 256;
/// Streams of one connection: one for each database that is followed, and some.
const STREAMS_MAX: u32 = 32_768;
/// Requests that are answered at a time, on all connections; more are refused.
const REQUESTS_MAX: usize = 65_536;
/// Bytes of the headers of a request.
pub(super) const HEADERS_BYTES_MAX: u32 = 32 << 10;
/// Bytes of a stream that wait to be sent.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// KiB that were read for answers and are not sent yet, of all requests; more wait.
const READ_KIB_MAX: u32 = 256 << 10;
/// Files of logs that are read at a time; more wait.
const LOGS_READ_MAX: usize = 16;
/// Transactions that come to be committed at a time; more wait.
const WRITES_MAX: usize = 4;
/// How long it may take until the other end has taken what was read for it, beside the time for its bytes.
const STALL_MAX: Duration = Duration::from_secs(60);
/// The least that the other end takes in a second, in bytes.
const RATE_MIN: usize = 64 << 10;
/// What is asked for first of an object that is wanted as a whole, in bytes: nearly all are smaller.
const WHOLE_BYTES_ASSUMED: u64 = 1 << 20;
/// How long a follower waits at most before the position is looked at though nothing was told.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after an error of accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a listing takes, in bytes: keys may have 1024, and most have 30.
const LIST_BYTES_ASSUMED: u64 = 1 << 20;
/// How many objects one listing may ask for.
const LIST_MAX: usize = 1000;

/// Has the primary hand its role on.
const HANDOFF: &str = "/v1/handoff";
/// Pages of a replica's file that differ from those of another.
const PAGES: &str = "/v1/pages";
/// Size of a frame that says what a follower has reached.
const REACHED_BYTES: usize = stream::HEADER_SIZE + 16;

/// Names the size of the whole object.
pub(super) const SIZE_HEADER: &str = "rhyolite-size";
/// Names which writing of the object it is.
pub(super) const VERSION_HEADER: &str = "rhyolite-version";
/// Names the kind of a store's error.
pub(super) const ERROR_HEADER: &str = "rhyolite-error";

/// What is served, to whom.
#[derive(Debug)]
pub struct Server {
    /// The databases.
    pub(super) board: Arc<StatusBoard>,
    /// What every request must carry, if anything.
    token: Option<Token>,
    /// How connections are made secret, if they are.
    tls: Option<Acceptor>,
    /// What the node says of itself.
    about: About,
    /// A node of a cluster, which can hand its role on.
    handoffs: Option<mpsc::Sender<Handoff>>,
    /// Where the files of a node of a cluster lie.
    pub(super) replicas: Option<FolderConfig>,
    /// Says where commits are.
    pub(super) waits: Waits,
    /// For requests.
    requests: Arc<Semaphore>,
    /// For KiB that were read.
    read: Semaphore,
    /// For files of logs.
    pub(super) logs: Semaphore,
    /// For transactions that come to be committed.
    pub(super) writes: Semaphore,
}

/// The other end has gone away, or does not want any more.
struct Closed;

/// Answers until the task is dropped.
pub async fn serve(listener: TcpListener, server: Arc<Server>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accept a follower: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let server = Arc::clone(&server);
        connections.spawn(async move {
            match connection(&server, stream).await {
                Ok(()) => tracing::debug!(%from, "a follower has gone"),
                Err(error) => tracing::debug!(%from, "a follower was lost: {error}"),
            }
            drop(permit);
        });
    }
}

/// One connection until it ends.
async fn connection(server: &Arc<Server>, stream: TcpStream) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    match &server.tls {
        None => conversation(server, stream).await,
        Some(tls) => {
            let accepted = tokio::time::timeout(SILENCE_MAX, tls.accept(stream)).await;
            conversation(server, accepted.map_err(|_| "no TLS handshake")??).await
        }
    }
}

/// In whichever version of HTTP it is held.
async fn conversation(server: &Arc<Server>, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
    let begun = tokio::time::timeout(SILENCE_MAX, Begun::new(stream)).await;
    let stream = begun.map_err(|_| "it asked for nothing")?.map_err(|e| e.to_string())?;
    if stream.is_http2() { requests(server, stream, false).await } else { http1::requests(server, stream).await }
}

/// The requests of a connection. `is_known`: of one who has proved before who it is, and sends no token.
pub(super) async fn requests(
    server: &Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut is_known: bool,
) -> Result<(), String> {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(STREAMS_MAX).max_send_buffer_size(SEND_BUFFER_BYTES);
    builder.max_header_list_size(HEADERS_BYTES_MAX);
    let handshake = tokio::time::timeout(SILENCE_MAX, builder.handshake(stream)).await;
    let mut connection = handshake.map_err(|_| "no handshake")?.map_err(|e| e.to_string())?;
    let pings = connection.ping_pong().expect("asked for once");
    let mut silence = std::pin::pin!(silence(pings));
    let mut stranger = std::pin::pin!(tokio::time::sleep(SILENCE_MAX));
    let (has_proved, mut answers) = (is_known, JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            why = &mut silence => return Err(why),
            () = &mut stranger, if !is_known => return Err("it asked for nothing, or without the token".to_owned()),
            Some(_) = answers.join_next(), if !answers.is_empty() => continue,
        };
        let (request, respond) = match accepted {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Ok(()),
        };
        if !has_proved && !server.admits(request.headers()) {
            refuse(respond, StatusCode::UNAUTHORIZED, None, "the token is missing or wrong");
            continue;
        }
        is_known = true;
        match server.permit() {
            Some(permit) => {
                let answer = answer(Arc::clone(server), request, respond);
                answers.spawn(async move {
                    answer.await;
                    drop(permit);
                });
            }
            None => refuse(respond, StatusCode::SERVICE_UNAVAILABLE, None, "too many requests"),
        }
    }
}

/// Asks whether the other end lives; ends when it does not.
pub(super) async fn silence(mut pings: PingPong) -> String {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        match tokio::time::timeout(SILENCE_MAX, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("silent for {SILENCE_MAX:?}"),
        }
    }
}

/// The answer to one request. A follower that is gone needs none.
async fn answer(server: Arc<Server>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path = request.uri().path();
    let is_post = [HANDOFF, PAGES, WRITE_LOCK, WRITE_UNLOCK, WRITE].contains(&path);
    let method = if is_post { Method::POST } else { Method::GET };
    if request.method() != method {
        return refuse(respond, StatusCode::BAD_REQUEST, None, &format!("only {method} is known"));
    }
    match path {
        "/v1/replica" => server.replica(&query, respond).await,
        PAGES => server.pages(&query, request.into_body(), respond).await,
        WRITE_LOCK => server.write_lock(&query, respond).await,
        WRITE_UNLOCK => server.write_unlock(&query, respond).await,
        WRITE => server.write(&query, request.into_body(), respond).await,
        "/v1/databases" => {
            if let Some(mut sink) = Sink::begin(respond, response(StatusCode::OK)) {
                let Err(Closed) = server.send_databases(&mut sink).await;
            }
        }
        "/v1/log" => server.log(&query, request.into_body(), respond).await,
        WAIT => {
            let (status, json) = server.wait(&query).await;
            send_whole(respond, response(status), Bytes::from(format!("{json}\n"))).await;
        }
        "/v1/object" => server.object(&query, respond).await,
        "/v1/list" => server.list(&query, respond).await,
        HANDOFF => match server.hand_on(query.find("to")).await {
            Ok(()) => send_whole(respond, response(StatusCode::OK), Bytes::new()).await,
            Err(text) => refuse(respond, StatusCode::CONFLICT, None, &text),
        },
        "/v1/node" => {
            let about = serde_json::to_vec(&server.about).expect("strings become JSON");
            send_whole(respond, response(StatusCode::OK), Bytes::from(about)).await;
        }
        path => refuse(respond, StatusCode::NOT_FOUND, None, &format!("there is no {path} here")),
    }
}

pub(super) fn response(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// One line instead of what was asked for.
pub(super) fn refuse(mut respond: SendResponse<Bytes>, status: StatusCode, kind: Option<StoreErrorKind>, text: &str) {
    let mut response = response(status);
    if let Some(kind) = kind {
        response.headers_mut().insert(ERROR_HEADER, http::HeaderValue::from_static(kind.name()));
    }
    if let Ok(mut stream) = respond.send_response(response, false) {
        // Whoever has gone away reads no refusal.
        let _ = stream.send_data(Bytes::from(format!("{text}\n")), true);
    }
}

impl Server {
    /// Serves these databases to everybody who knows the token, if there is one, and has the certificate that TLS may ask for.
    pub fn new(
        board: Arc<StatusBoard>,
        token: Option<Token>,
        tls: Option<Acceptor>,
        about: About,
        handoffs: Option<mpsc::Sender<Handoff>>,
        replicas: Option<FolderConfig>,
        waits: Waits,
    ) -> Self {
        let (requests, logs) = (Arc::new(Semaphore::new(REQUESTS_MAX)), Semaphore::new(LOGS_READ_MAX));
        let (read, writes) = (Semaphore::new(READ_KIB_MAX as usize), Semaphore::new(WRITES_MAX));
        Self { board, token, tls, about, handoffs, replicas, waits, requests, read, logs, writes }
    }

    /// What it serves.
    pub(super) fn board(&self) -> &Arc<StatusBoard> {
        &self.board
    }

    /// The highest right under which a database is captured here; `None` while none is.
    pub(super) fn highest_epoch(&self) -> Option<Epoch> {
        let captured = self.databases().filter(|(_, status)| !status.look(|figures| figures.standby));
        captured.filter_map(|(_, status)| Some(whereabouts(&status)?.0.epoch)).max()
    }

    /// The right to be answered; `None` when too many are.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.requests).try_acquire_owned().ok()
    }

    /// Has this node hand its role on.
    async fn hand_on(&self, to: Option<&str>) -> Result<(), String> {
        let handoffs = self.handoffs.as_ref().ok_or("this process is no node of a cluster")?;
        let gone = || "the process is about to end".to_owned();
        let (reply, answer) = oneshot::channel();
        // Whoever asks without end keeps others from asking for a moment, and no longer.
        handoffs.try_send(Handoff { to: to.map(str::to_owned), reply }).map_err(|_| "others ask for the same")?;
        answer.await.map_err(|_| gone())?
    }

    /// Room for so many bytes that are read; it is given back when they are sent.
    pub(super) async fn room_for(&self, bytes: u64) -> SemaphorePermit<'_> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(READ_KIB_MAX);
        self.read.acquire_many(kib).await.expect("the semaphore is never closed")
    }

    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| token.is(given))
    }

    /// Those that are served, each name once: of two databases with one name the one that came first.
    fn databases(&self) -> impl Iterator<Item = (Arc<Served>, Arc<DatabaseStatus>)> {
        let mut names = HashSet::new();
        let all = self.board.databases().into_iter();
        all.filter_map(|status| Some((status.feed.served()?, status)))
            .filter(move |(served, _)| names.insert(served.name.clone()))
    }

    pub(super) fn find(&self, query: &Query) -> Result<(Arc<Served>, Arc<DatabaseStatus>), (StatusCode, String)> {
        let name: String = query.get("db").map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        // The first of this name, as in `databases`.
        let all = self.board.databases().into_iter();
        let found =
            all.filter_map(|status| Some((status.feed.served()?, status))).find(|(served, _)| served.name == name);
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no database {name:?} is served here")))
    }

    async fn send_databases(&self, sink: &mut Sink) -> Result<std::convert::Infallible, Closed> {
        let mut told: HashMap<String, Origin> = HashMap::new();
        let (mut leaving, mut is_told) = (self.board.leaving.subscribe(), false);
        loop {
            let mut gone: HashSet<String> = told.keys().cloned().collect();
            let mut starting = self.board.unsearched();
            for (served, status) in self.databases() {
                let name = &served.name;
                let here = whereabouts(&status).filter(|_| !self.board.witnesses.withholds());
                let Some((origin, pos)) = here else {
                    starting += 1;
                    continue;
                };
                gone.remove(name);
                if told.insert(name.clone(), origin) != Some(origin) {
                    let Origin { lineage, epoch } = origin;
                    let database = Database { name: name.clone(), lineage, epoch, pos };
                    sink.send(Frame::Database(database).encode()).await?;
                }
            }
            for name in gone {
                told.remove(&name);
                sink.send(Frame::Gone { name }.encode()).await?;
            }
            let starting = u32::try_from(starting).unwrap_or(u32::MAX);
            sink.send(Frame::Heartbeat { time: time::now(), starting }.encode()).await?;
            let is_leaving = *leaving.borrow_and_update();
            if is_leaving && !is_told {
                sink.send(Frame::Leaving.encode()).await?;
            }
            is_told = is_leaving;
            tokio::select! {
                () = sink.closed() => return Err(Closed),
                // The sender is there as long as the server.
                _ = leaving.changed() => {}
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
        }
    }

    async fn log(&self, query: &Query, body: RecvStream, respond: SendResponse<Bytes>) {
        let asked = self.find(query).and_then(|(_, status)| {
            let bad = |text| (StatusCode::BAD_REQUEST, text);
            let lineage: Lineage = query.get("lineage").map_err(bad)?;
            let pos: Pos = query.get("pos").map_err(bad)?;
            let node = query.find("node").map(str::to_owned);
            let form = match query.find("merged") {
                None | Some("0") => Form::Each,
                Some("1") => Form::Merged,
                Some(other) => return Err(bad(format!("`merged` is {other:?}, not 0 or 1"))),
            };
            // It is compared with what leases say, and may become part of one.
            match &node {
                Some(node) if known_address(node).as_ref() != Ok(node) => {
                    Err(bad("`node` is not the address of a node as the lease has it".to_owned()))
                }
                _ => Ok((status, lineage, pos, node, form)),
            }
        });
        let (status, lineage, pos, node, form) = match asked {
            Ok(asked) => asked,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        let Some(mut sink) = Sink::begin(respond, response(StatusCode::OK)) else { return };
        let generation = status.feed.generation();
        let node = node.map(|node| Present::new(Arc::clone(&self.board), Arc::clone(&status), (node, generation)));
        let sent = AtomicU64::new(0);
        let sending = self.send_log((status, generation), (lineage, pos, form), &mut sink, &sent);
        let ended = tokio::select! {
            ended = sending => ended,
            () = hear(node.as_ref(), body, &sent) => Err(Closed),
        };
        if let Ok(end) = ended
            && sink.send(Frame::End(end).encode()).await.is_ok()
        {
            sink.finish();
        }
    }

    /// Sends commits as they come, until there are none that lead on.
    async fn send_log(
        &self,
        (status, generation): (Arc<DatabaseStatus>, u64),
        (lineage, mut pos, form): (Lineage, Pos, Form),
        sink: &mut Sink,
        sent: &AtomicU64,
    ) -> Result<End, Closed> {
        let _follower = Follower::new(Arc::clone(&status), form);
        let mut files = LogFiles::new(status.meta_path.join(LOG_FOLDER), form);
        let mut is_greeted = false;
        loop {
            let moved = status.feed.moved();
            tokio::pin!(moved);
            // From here on a change is noticed, whatever is seen next.
            moved.as_mut().enable();
            if status.feed.generation() != generation {
                // Whoever follows asks anew: what it has reached would be said of another history.
                return Err(Closed);
            }
            let here = whereabouts(&status).filter(|_| !self.board.witnesses.withholds());
            let end = |reason, text: String| End { reason, pos: here.map(|(_, pos)| pos), text };
            match here.map(|(origin, here)| (origin, here, judge((origin.lineage, here), lineage, pos))) {
                Some((origin, _, Standing::OtherLineage)) => {
                    return Ok(end(EndReason::WrongLineage, format!("the history here is {}", origin.lineage)));
                }
                Some((_, here, Standing::Beyond)) => {
                    return Ok(end(EndReason::Diverged, format!("the log here ends with TXID {}", here.txid)));
                }
                Some((_, here, Standing::Other)) => {
                    return Ok(end(EndReason::Diverged, format!("TXID {} is {} here", here.txid, here.checksum)));
                }
                Some((origin, here, Standing::Before)) => {
                    if !sink.is_ready() {
                        files.close();
                        sink.ready().await?;
                    }
                    match self.next(&status, &mut files, (origin, pos, here)).await {
                        Ok((frames, room, after)) => {
                            sent.store(after.txid.get(), Ordering::Release);
                            sink.send_frames(frames).await?;
                            drop(room);
                            let (commits, is_behind) = (after.txid.get() - pos.txid.get(), after != here);
                            pos = after;
                            sink.pause(pause_after(commits, is_behind || self.board.witnesses.is_asked())).await?;
                        }
                        Err((reason, text)) => return Ok(end(reason, text)),
                    }
                    continue;
                }
                // Whoever is where the log ends is told that this is so.
                Some((_, _, Standing::AtEnd)) if !is_greeted => {
                    is_greeted = true;
                    sent.store(pos.txid.get(), Ordering::Release);
                    sink.send(Frame::Heartbeat { time: time::now(), starting: 0 }.encode()).await?;
                }
                Some((_, _, Standing::AtEnd)) | None => {}
            }
            files.close();
            // Everything that was captured is sent by then.
            if !self.board.databases().iter().any(|known| Arc::ptr_eq(known, &status)) {
                return Ok(end(EndReason::Gone, "the database is not replicated any more".to_owned()));
            }
            tokio::select! {
                () = moved => {}
                () = sink.closed() => return Err(Closed),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// What comes next from the feed, or else from the files of the log; the error is how the stream ends.
    async fn next(
        &self,
        status: &DatabaseStatus,
        files: &mut LogFiles,
        (origin, pos, until): (Origin, Pos, Pos),
    ) -> Result<(Vec<Bytes>, SemaphorePermit<'_>, Pos), (EndReason, String)> {
        let (frames, after, turn) = match status.feed.after(files.form(), origin.lineage, pos, until.txid) {
            Some((frames, after)) => (frames, after, None),
            None => {
                let turn = self.logs.acquire().await.expect("the semaphore is never closed");
                match read_log(files, origin, pos, until).await {
                    Ok(Found::Frames(frames, after)) => {
                        (frames.into_iter().map(Bytes::from).collect(), after, Some(turn))
                    }
                    Ok(Found::Nothing) => {
                        return Err((EndReason::Behind, "what comes next is in the store only".to_owned()));
                    }
                    Ok(Found::Other(checksum)) => {
                        return Err((EndReason::Diverged, format!("TXID {} was {checksum} here", pos.txid)));
                    }
                    Err(error) => {
                        tracing::warn!(database = %status.path.display(), "read the local log: {error}");
                        return Err((EndReason::Behind, "the local log cannot be read".to_owned()));
                    }
                }
            }
        };
        let bytes = frames.iter().map(|frame: &Bytes| frame.len() as u64).sum();
        let room = self.room_for(bytes).await;
        drop(turn);
        Ok((frames, room, after))
    }

    async fn object(&self, query: &Query, respond: SendResponse<Bytes>) {
        let (served, _) = match self.find(query) {
            Ok(found) => found,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        let wanted = match Wanted::parse(query) {
            Ok(wanted) => wanted,
            Err(text) => return refuse(respond, StatusCode::BAD_REQUEST, None, &text),
        };
        match wanted.read(self, &served).await {
            Ok((bytes, size, version, _room)) => {
                let mut response = response(StatusCode::OK);
                let mut set = |name, value: &str| {
                    if let Ok(value) = http::HeaderValue::from_str(value) {
                        response.headers_mut().insert(name, value);
                    }
                };
                set(SIZE_HEADER, &size.to_string());
                set(VERSION_HEADER, &version);
                send_whole(respond, response, bytes).await;
            }
            Err(error) => refuse_store(respond, &error),
        }
    }

    async fn list(&self, query: &Query, respond: SendResponse<Bytes>) {
        let (served, _) = match self.find(query) {
            Ok(found) => found,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        let limit = match query.get::<usize>("limit") {
            Ok(limit) => limit.min(LIST_MAX),
            Err(text) => return refuse(respond, StatusCode::BAD_REQUEST, None, &text),
        };
        let prefix = query.find("prefix").unwrap_or_default();
        let _room = self.room_for(LIST_BYTES_ASSUMED).await;
        let listed = async { served.store()?.list_after(prefix, query.find("after"), limit).await };
        match listed.await {
            Ok(entries) => {
                let entry = |e: rhyolite_store::Entry| serde_json::json!({ "key": e.key, "size": e.size, "modified": e.modified.map(|time| time.0) });
                let json: serde_json::Value = entries.into_iter().map(entry).collect();
                send_whole(respond, response(StatusCode::OK), Bytes::from(json.to_string())).await;
            }
            Err(error) => refuse_store(respond, &error),
        }
    }
}

/// Hears what a node has reached, for as long as the stream lives; ends when that makes no sense.
async fn hear(node: Option<&Present>, body: RecvStream, sent: &AtomicU64) {
    let Some(node) = node else { return std::future::pending().await };
    let mut frames = Frames::of_at_most(REACHED_BYTES, body);
    loop {
        match frames.next().await {
            // It cannot have what was not sent to it, nor confirmed.
            Ok(Some((Frame::Reached(pos), _))) if pos.txid.get() <= sent.load(Ordering::Acquire) => node.has(pos.txid),
            Ok(Some(_)) | Err(LinkError::Malformed(_) | LinkError::Unexpected(_)) => return,
            // It says no more, or its connection is lost, which the other direction notices.
            Ok(None) | Err(_) => return std::future::pending().await,
        }
    }
}

/// Where a database is; `None` while that is not known.
fn whereabouts(status: &DatabaseStatus) -> Option<(Origin, Pos)> {
    status.look(|f| Some((Origin { lineage: f.lineage?, epoch: f.epoch? }, f.local?)))
}

async fn read_log(files: &mut LogFiles, origin: Origin, pos: Pos, until: Pos) -> std::io::Result<Found> {
    let mut taken = files.take();
    let read = tokio::task::spawn_blocking(move || {
        let found = taken.after(origin, pos, until);
        (taken, found)
    });
    let (taken, found) = read.await.expect("reading does not panic");
    *files = taken;
    found
}

fn refuse_store(respond: SendResponse<Bytes>, error: &StoreError) {
    let status = match error.kind {
        StoreErrorKind::NotFound => StatusCode::NOT_FOUND,
        StoreErrorKind::Invalid => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(respond, status, Some(error.kind), &error.to_string());
}

pub(super) async fn send_whole(respond: SendResponse<Bytes>, response: Response<()>, bytes: Bytes) {
    if let Some(mut sink) = Sink::begin(respond, response)
        && sink.send(bytes).await.is_ok()
    {
        sink.finish();
    }
}

/// What of an object is asked for.
struct Wanted<'a> {
    key: &'a str,
    part: Part,
}

enum Part {
    Whole,
    Head,
    Range(Range<u64>),
    Tail(u64),
}

impl<'a> Wanted<'a> {
    fn parse(query: &'a Query) -> Result<Self, String> {
        let key = query.find("key").ok_or("`key` is missing")?;
        let part = if let Some(range) = query.find("range") {
            let ends = range.split_once('-');
            let ends: Option<(u64, u64)> = ends.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let ends = ends.filter(|(a, b)| a < b && b - a <= PART_BYTES_MAX);
            let (start, end) = ends.ok_or_else(|| {
                format!("`range` is {range:?}, not FIRST-END, or of more than {PART_BYTES_MAX} bytes")
            })?;
            Part::Range(start..end)
        } else if query.find("tail").is_some() {
            let tail = Some(query.get("tail")?).filter(|tail| *tail <= PART_BYTES_MAX);
            Part::Tail(tail.ok_or_else(|| format!("`tail` is of more than {PART_BYTES_MAX} bytes"))?)
        } else if query.find("head").is_some() {
            Part::Head
        } else {
            Part::Whole
        };
        Ok(Self { key, part })
    }

    /// Bytes, size of the whole (0 where that is not known), version, and the room that the bytes take.
    async fn read<'s>(
        &self,
        server: &'s Server,
        served: &Served,
    ) -> Result<(Bytes, u64, String, SemaphorePermit<'s>), StoreError> {
        let store: Arc<dyn Store> = served.store()?;
        let (mut room, mut object) = match &self.part {
            Part::Whole => {
                let room = server.room_for(WHOLE_BYTES_ASSUMED).await;
                (room, store.get_tail(self.key, WHOLE_BYTES_ASSUMED).await?)
            }
            Part::Tail(len) => (server.room_for(*len).await, store.get_tail(self.key, *len).await?),
            Part::Range(range) => {
                let room = server.room_for(range.end - range.start).await;
                return Ok((store.get_range(self.key, range.clone()).await?, 0, String::new(), room));
            }
            Part::Head => {
                let meta = store.head(self.key).await?;
                return Ok((Bytes::new(), meta.size, meta.version.as_str().to_owned(), server.room_for(0).await));
            }
        };
        if matches!(self.part, Part::Whole) && object.bytes.len() as u64 != object.size {
            drop((room, object));
            room = server.room_for(WHOLE_BYTES_MAX).await;
            object = store.get_tail(self.key, WHOLE_BYTES_MAX).await?;
            if object.bytes.len() as u64 != object.size {
                let text = format!("it has {} bytes, and is to be read in parts", object.size);
                return Err(StoreError::new(StoreErrorKind::Invalid, Operation::Get, self.key, store.describe(), text));
            }
        }
        Ok((object.bytes, object.size, object.version.as_str().to_owned(), room))
    }
}

/// The body of an answer, with as much under way as the other end has room for.
struct Sink(SendStream<Bytes>);

impl Sink {
    fn begin(mut respond: SendResponse<Bytes>, response: Response<()>) -> Option<Self> {
        respond.send_response(response, false).ok().map(Self)
    }

    /// Whether the other end takes something.
    fn is_ready(&mut self) -> bool {
        self.0.reserve_capacity(1);
        self.0.capacity() > 0
    }

    /// Waits until it does.
    async fn ready(&mut self) -> Result<(), Closed> {
        while !self.is_ready() {
            match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Closed),
            }
        }
        Ok(())
    }

    async fn send_frames(&mut self, frames: Vec<Bytes>) -> Result<(), Closed> {
        for frame in frames {
            self.send(frame).await?;
        }
        Ok(())
    }

    /// Waits for so long, or until the other end does not want any more.
    async fn pause(&mut self, time: Duration) -> Result<(), Closed> {
        if time.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = self.closed() => Err(Closed),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Sends as the other end takes it, and resets the stream when it does not.
    async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<(), Closed> {
        let bytes: Bytes = bytes.into();
        let time = STALL_MAX + Duration::from_secs((bytes.len() / RATE_MIN) as u64);
        let sent = tokio::time::timeout(time, self.send_all(bytes)).await;
        sent.unwrap_or_else(|_| {
            self.0.send_reset(h2::Reason::CANCEL);
            Err(Closed)
        })
    }

    async fn send_all(&mut self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            self.0.reserve_capacity(bytes.len());
            if self.0.capacity() == 0 {
                match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Err(Closed),
                }
            }
            let part = bytes.split_to(self.0.capacity().min(bytes.len()));
            self.0.send_data(part, false).map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn finish(mut self) {
        // Whoever has gone away needs no end.
        let _ = self.0.send_data(Bytes::new(), true);
    }

    /// Ends when the other end does not want any more.
    async fn closed(&mut self) {
        let _ = poll_fn(|cx| self.0.poll_reset(cx)).await;
    }
}
