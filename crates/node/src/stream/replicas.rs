//! Tells another node that becomes the primary what the files of this one, a replica, have ([`crate::follow::replica`]).

use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::StatusCode;
use rhyolite_format::{PageNumber, PageSize, Pos};
use rhyolite_logic::role::Role;

use super::SILENCE_MAX;
use super::client::{LinkError, read_whole};
use super::query::Query;
use super::server::{Server, refuse, response, send_whole};
use crate::follow::peer;
use crate::follow::replica::{self, For, PAGES_MAX};

impl Server {
    /// The file of a replica that is asked for.
    fn replica_path(&self, query: &Query) -> Result<PathBuf, (StatusCode, String)> {
        let none = || (StatusCode::NOT_FOUND, "this process is no node of a cluster".to_owned());
        let folder = self.replicas.as_ref().ok_or_else(none)?;
        let role = self.board.node().map(|node| node.role).unwrap_or_default();
        if ![Role::Waiting.name(), Role::Replica.name()].contains(&role.as_str()) {
            return Err((StatusCode::CONFLICT, format!("this node is {role}, and no replica")));
        }
        let name: String = query.get("db").map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        let is_plain = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || !folder.takes(&name) {
            return Err((StatusCode::NOT_FOUND, format!("there is no database {name:?} here")));
        }
        Ok(folder.database(&name).path)
    }

    pub(super) async fn replica(&self, query: &Query, respond: SendResponse<Bytes>) {
        let asked = self.replica_path(query).and_then(|path| {
            let passed: Pos = query.get("passed").map_err(|text| (StatusCode::BAD_REQUEST, text))?;
            Ok((path, passed))
        });
        let (path, passed) = match asked {
            Ok(asked) => asked,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        let turn = self.logs.acquire().await.expect("the semaphore is never closed");
        let looked = tokio::task::spawn_blocking(move || peer::whereabouts(&path, passed, For::Other)).await;
        drop(turn);
        match looked.expect("looking does not panic") {
            Ok(peer::Found::Held(at)) => {
                let json = serde_json::to_vec(&at).expect("numbers become JSON");
                send_whole(respond, response(StatusCode::OK), Bytes::from(json)).await;
            }
            Ok(peer::Found::Nothing) => refuse(respond, StatusCode::NOT_FOUND, None, "there is no such file here"),
            Ok(peer::Found::Unknown) => refuse(respond, StatusCode::CONFLICT, None, "where the file is, is not known"),
            Err(error) => refuse(respond, StatusCode::SERVICE_UNAVAILABLE, None, &error.to_string()),
        }
    }

    pub(super) async fn pages(&self, query: &Query, body: RecvStream, respond: SendResponse<Bytes>) {
        let bad = |text| (StatusCode::BAD_REQUEST, text);
        let asked = self.replica_path(query).and_then(|path| {
            let first = PageNumber::new(query.get("first").map_err(bad)?);
            let first = first.ok_or_else(|| bad("`first` is no number of a page".to_owned()))?;
            Ok((path, query.get::<Pos>("pos").map_err(bad)?, first))
        });
        let (path, pos, first) = match asked {
            Ok(asked) => asked,
            Err((status, text)) => return refuse(respond, status, None, &text),
        };
        let limit = (PAGES_MAX * size_of::<u64>()) as u64;
        let read = tokio::time::timeout(SILENCE_MAX, read_whole(body, limit)).await;
        let sums = match read {
            Ok(Ok(bytes)) if bytes.len() % size_of::<u64>() == 0 => bytes,
            Ok(Ok(_) | Err(LinkError::Unexpected(_))) => {
                return refuse(
                    respond,
                    StatusCode::BAD_REQUEST,
                    None,
                    "the body is not up to 1024 checksums of 8 bytes",
                );
            }
            // It is gone.
            Ok(Err(_)) | Err(_) => return,
        };
        let sums: Vec<u64> = sums.as_chunks().0.iter().map(|sum| u64::from_be_bytes(*sum)).collect();
        let room = self.room_for((sums.len() * PageSize::MAX.bytes()) as u64).await;
        let compared = tokio::task::spawn_blocking(move || replica::differing(&path, pos, first, &sums)).await;
        match compared.expect("reading does not panic") {
            Ok(Some(pages)) => send_whole(respond, response(StatusCode::OK), Bytes::from(pages)).await,
            Ok(None) => refuse(respond, StatusCode::CONFLICT, None, "the file is not at this position"),
            Err(error) => refuse(respond, StatusCode::SERVICE_UNAVAILABLE, None, &error.to_string()),
        }
        drop(room);
    }
}
