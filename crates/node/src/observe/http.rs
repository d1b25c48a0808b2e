//! The HTTP server: metrics and status, read-only and without authentication, off unless an address is given.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/status` | JSON, see [`StatusReport`] |
//! | `/healthz` | 200 while the process answers |
//! | `/readyz` | 200 when every database is being replicated, else 503 and one line per database that is not |

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics;
use super::report::StatusReport;
use crate::status::{State, StatusBoard};
use crate::time;

/// Content type of the text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
        let taken = bind(addr).await.unwrap_err();
        assert_eq!(taken, format!("cannot listen on {addr}: address already in use"));
        server.abort();
    }
}
