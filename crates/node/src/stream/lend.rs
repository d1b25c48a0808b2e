//! Lends write locks to replicas, and commits what they send ([`crate::forward`]).

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::StatusCode;
use serde::Serialize;

use super::client::{LinkError, read_whole};
use super::query::Query;
use super::server::{Server, refuse, response, send_whole};
use crate::forward::grants::{Grants, Refused};
use crate::forward::{Said, WRITE_BYTES_MAX};

/// Asks for the write lock of a database, or to have it for longer.
pub(super) const WRITE_LOCK: &str = "/v1/write-lock";
/// Gives it back.
pub(super) const WRITE_UNLOCK: &str = "/v1/write-unlock";
/// Commits under it.
pub(super) const WRITE: &str = "/v1/write";

/// How long a lock is waited for at most.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a transaction may take to come.
const BODY_MAX: Duration = Duration::from_secs(60);

async fn send_json(respond: SendResponse<Bytes>, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("strings and numbers become JSON");
    send_whole(respond, response(StatusCode::OK), Bytes::from(json)).await;
}

impl Server {
    pub(super) async fn write_lock(&self, query: &Query, respond: SendResponse<Bytes>) {
        let bad = |text| (StatusCode::BAD_REQUEST, text);
        let asked = self.find(query).and_then(|found| {
            let ms = |name| query.get::<u64>(name).map(Duration::from_millis).map_err(bad);
            Ok((found, query.get::<String>("id").map_err(bad)?, ms("ttl")?, ms("wait")?))
        });
        let ((served, status), id, ttl, wait) = match asked {
            Ok(asked) => asked,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        match Grants::ask(self.board(), (status, &served.name), &id, ttl, wait.min(WAIT_MAX)).await {
            Ok(granted) => send_json(respond, &granted).await,
            Err(Refused::Busy(text)) => refuse(respond, StatusCode::SERVICE_UNAVAILABLE, None, &text),
            Err(Refused::Not(text)) => refuse(respond, StatusCode::CONFLICT, None, &text),
            Err(Refused::Unknown) => refuse(respond, StatusCode::NOT_FOUND, None, "this id is not known"),
        }
    }

    pub(super) async fn write_unlock(&self, query: &Query, respond: SendResponse<Bytes>) {
        match query.get::<String>("id") {
            Ok(id) => {
                self.board().grants.give_back(&id);
                send_whole(respond, response(StatusCode::OK), Bytes::new()).await;
            }
            Err(text) => refuse(respond, StatusCode::BAD_REQUEST, None, &text),
        }
    }

    pub(super) async fn write(&self, query: &Query, body: RecvStream, respond: SendResponse<Bytes>) {
        let id: String = match query.get("id") {
            Ok(id) => id,
            Err(text) => return refuse(respond, StatusCode::BAD_REQUEST, None, &text),
        };
        let turn = self.writes.acquire().await.expect("the semaphore is never closed");
        let body = match tokio::time::timeout(BODY_MAX, read_whole(body, WRITE_BYTES_MAX)).await {
            Ok(Ok(body)) => body,
            Ok(Err(LinkError::Unexpected(text))) => return refuse(respond, StatusCode::PAYLOAD_TOO_LARGE, None, &text),
            // It is gone, and asks again if it is not.
            Ok(Err(_)) | Err(_) => return,
        };
        match Grants::write(self.board(), &id, body).await {
            Ok(outcome) => send_json(respond, &Said::from(outcome)).await,
            Err(_) => refuse(respond, StatusCode::NOT_FOUND, None, "this id is not known"),
        }
        drop(turn);
    }
}
