//! The HTTP server: metrics and status, read-only and without authentication, off unless an address is given.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/status` | JSON, see [`StatusReport`] |
//! | `/healthz` | 200 while the process answers |
//! | `/readyz` | 200 when every database is being replicated, else 503 and one line per database that is not |
//!
//! At most [`CONNECTIONS_MAX`] connections are open; more wait in the operating system's queue. A client that forgets to close
//! its connections can so keep others from the figures, but never take the descriptors that databases need.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metrics;
use super::report::StatusReport;
use crate::status::{State, StatusBoard};
use crate::time;

/// Content type of the text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
    let app = axum::Router::new()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status_json))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(board);
    let listener = Bounded { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!("the HTTP server ended: {error}");
    }
}

async fn metrics_text(Shared(board): Shared<Arc<StatusBoard>>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics::render(&board, time::now())).into_response()
}

async fn status_json(Shared(board): Shared<Arc<StatusBoard>>) -> Json<StatusReport> {
    Json(StatusReport::new(&board, time::now()))
}

async fn ready(Shared(board): Shared<Arc<StatusBoard>>) -> (StatusCode, String) {
    let mut text = String::new();
    for database in board.databases() {
        let state = database.figures().state;
        if state != State::Replicating {
            let reason = state.reason().map(|r| format!(": {r}")).unwrap_or_default();
            text.push_str(&format!("{} is {}{reason}\n", database.path.display(), state.name()));
        }
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

        assert!(request(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = request(addr, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("/a.db is starting\n"), "{waiting}");
        status.set_state(State::Replicating);
        assert!(request(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = request(addr, "/metrics").await;
        assert!(metrics.contains(METRICS_TYPE) && metrics.contains("\nrhyolite_databases 1\n"), "{metrics}");
        let json = request(addr, "/status").await;
        let (_, body) = json.split_once("\r\n\r\n").unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(body).unwrap().databases.len(), 1);
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
    }
}
