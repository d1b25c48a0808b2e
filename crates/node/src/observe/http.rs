//! The HTTP server: metrics and status, read-only and without authentication, off unless an address is given.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/status` | JSON, see [`StatusReport`]; `?db=PATH` for one database |
//! | `/healthz` | 200 while the process answers and what decides for all databases does, else 503 |
//! | `/events` | a line of JSON for each transaction and each change of the primary, for as long as somebody listens, see [`super::events`] |
//! | `/readyz` | 200 when every database has its first snapshot in the store, else 503 and a line for each of the first that have not |
//!
//! At most [`CONNECTIONS_MAX`] connections are open; more wait in the operating system's queue. A client that forgets to close
//! its connections can so keep others from the figures, but never take the descriptors that databases need.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::serve::Listener;
use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metrics;
use super::report::StatusReport;
use crate::pulse::PATIENCE;
use crate::status::{State, StatusBoard};
use crate::time;

/// Content type of the text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Most connections on which events are told: others get their figures all the same.
const LISTENERS_MAX: usize = CONNECTIONS_MAX / 2;
/// After so long without an event an empty line is sent.
const EVENTS_SILENCE: Duration = Duration::from_secs(15);
/// Content type of a line of JSON after another.
const EVENTS_TYPE: &str = "application/x-ndjson";

/// So many databases that are not ready are named.
const UNREADY_MAX: usize = 100;

/// Most connections that are open at the same time.
const CONNECTIONS_MAX: usize = 32;

/// Takes the address.
///
/// # Errors
/// One line that names the address.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|e| format!("cannot listen on {addr}: {}", crate::config::io_text(&e)))
}

/// Answers requests until the task is dropped.
pub async fn serve(listener: TcpListener, board: Arc<StatusBoard>) {
    let app = routes(board);
    let listener = Bounded { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!("the HTTP server ended: {error}");
    }
}

/// What is answered over TCP and over the control socket alike.
pub fn routes(board: Arc<StatusBoard>) -> axum::Router {
    axum::Router::new()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status_json))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/events", get(events))
        .with_state(board)
}

async fn alive(Shared(board): Shared<Arc<StatusBoard>>) -> Response {
    if board.pulse.is_there(PATIENCE).await {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "replication hangs: perhaps a file system does\n").into_response()
}

async fn events(Shared(board): Shared<Arc<StatusBoard>>) -> Response {
    if board.events.listeners() >= LISTENERS_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many listen to events\n").into_response();
    }
    let (first, receiver) = board.events.subscribe();
    // A subscriber that has fallen behind is cut off: it would not notice what it has missed.
    let lines = stream::unfold((Some(first), receiver), |(first, mut receiver)| async move {
        let line = match first {
            Some(first) => first,
            None => match tokio::time::timeout(EVENTS_SILENCE, receiver.recv()).await {
                Ok(line) => line.ok().filter(|line| !line.is_empty())?,
                // Nothing, so that a connection whose other end is gone is noticed.
                Err(_) => "\n".into(),
            },
        };
        Some((Ok::<_, Infallible>(Bytes::copy_from_slice(line.as_bytes())), (None, receiver)))
    });
    ([(header::CONTENT_TYPE, EVENTS_TYPE)], Body::from_stream(lines)).into_response()
}

async fn metrics_text(Shared(board): Shared<Arc<StatusBoard>>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics::render(&board, time::now())).into_response()
}

async fn status_json(Shared(board): Shared<Arc<StatusBoard>>, RawQuery(query): RawQuery) -> Response {
    let wanted = query.as_deref().and_then(|q| q.split('&').find_map(|pair| pair.strip_prefix("db=")));
    match wanted.map(percent_decode) {
        None => Json(StatusReport::new(&board, time::now())).into_response(),
        Some(path) => match StatusReport::of_one(&board, Path::new(&path), time::now()) {
            Some(report) => Json(report).into_response(),
            None => (StatusCode::NOT_FOUND, format!("{path} is not replicated here\n")).into_response(),
        },
    }
}

/// The text with `%XX` replaced; what is no such escape stays.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn ready(Shared(board): Shared<Arc<StatusBoard>>) -> (StatusCode, String) {
    let mut text = String::new();
    let mut others = 0;
    if board.unsearched() > 0 {
        text.push_str("folders are still searched for databases\n");
    }
    for database in board.databases() {
        let why = database.look(|f| {
            let is_ready = f.durable.is_some() || f.state == State::Replicating;
            (!is_ready).then(|| (f.state.name(), f.state.reason().map(|r| format!(": {r}")).unwrap_or_default()))
        });
        match why {
            Some((state, reason)) if text.lines().count() < UNREADY_MAX => {
                text.push_str(&format!("{} is {state}{reason}\n", database.path.display()));
            }
            Some(_) => others += 1,
            None => {}
        }
    }
    if others > 0 {
        text.push_str(&format!("and {others} others\n"));
    }
    if text.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, text) }
}

/// A listener that accepts no more than there are permits.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

/// A connection that gives its permit back when it is closed.
struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        (Connection { stream, _permit: permit }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn request(addr: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_path_answers() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), "/m".into(), "./backup".into());
        let server = tokio::spawn(serve(listener, Arc::clone(&board)));

        let supervisor = Arc::clone(&board);
        let supervisor = tokio::spawn(async move {
            loop {
                supervisor.pulse.asked().await;
                supervisor.pulse.answer();
            }
        });
        assert!(request(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = request(addr, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("/a.db is starting\n"), "{waiting}");
        status.set_state(State::Replicating);
        assert!(request(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        board.set_unsearched(1);
        assert!(request(addr, "/readyz").await.ends_with("folders are still searched for databases\n"));
        board.set_unsearched(0);
        let metrics = request(addr, "/metrics").await;
        assert!(metrics.contains(METRICS_TYPE) && metrics.contains("\nrhyolite_databases 1\n"), "{metrics}");
        let json = request(addr, "/status").await;
        let (_, body) = json.split_once("\r\n\r\n").unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(body).unwrap().databases.len(), 1);
        let one = request(addr, "/status?db=%2Fa.db").await;
        assert!(one.starts_with("HTTP/1.1 200") && one.contains("/a.db"), "{one}");
        assert!(request(addr, "/status?db=/b.db").await.starts_with("HTTP/1.1 404"));
        assert!(request(addr, "/nothing").await.starts_with("HTTP/1.1 404"));
        let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
        let mut many = Vec::new();
        for _ in 1..CONNECTIONS_MAX {
            many.push(tokio::net::TcpStream::connect(addr).await.unwrap());
        }
        let waiting = tokio::spawn(request(addr, "/healthz"));
        drop((idle, many));
        assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200"), "served when others have closed");

        let taken = bind(addr).await.unwrap_err();
        assert_eq!(taken, format!("cannot listen on {addr}: address already in use"));
        server.abort();
        supervisor.abort();
    }
}
